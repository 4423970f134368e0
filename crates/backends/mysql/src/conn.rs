//! A connection as sessions use it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::Deadline;
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, ReplicatedStore, Role};
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, Result};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};
use tokio::sync::Mutex;

use crate::error;
use crate::gtid::{self, State};
use crate::server::{Dialect, Endpoint, Live};
use crate::state::{MariaDb, MySql};

/// What a MariaDB says about itself, in one statement. No privilege is needed. The server's start is the difference of
/// two readings within it, so it is the same number each time.
const ASK_MARIADB: &str = "SELECT @@global.gtid_binlog_state, @@global.gtid_slave_pos, @@global.gtid_binlog_pos, \
    @@server_id, @@session.gtid_domain_id, CAST(@@global.read_only AS CHAR), @@global.log_bin + 0, \
    @@global.log_slave_updates + 0, MAX(IF(VARIABLE_NAME = 'UPTIME', UNIX_TIMESTAMP() - VARIABLE_VALUE, 0)), \
    MAX(IF(VARIABLE_NAME = 'SLAVES_RUNNING', VARIABLE_VALUE + 0, 0)) \
    FROM information_schema.GLOBAL_STATUS WHERE VARIABLE_NAME IN ('UPTIME', 'SLAVES_RUNNING')";
/// The same of a MySQL 8, from its reference manual.
const ASK_MYSQL: &str = "SELECT @@global.gtid_executed, @@server_uuid, @@global.gtid_mode, @@global.read_only + 0, \
    (SELECT UNIX_TIMESTAMP() - VARIABLE_VALUE FROM performance_schema.global_status WHERE VARIABLE_NAME = 'Uptime'), \
    (SELECT MAX(SOURCE_UUID) FROM performance_schema.replication_connection_status WHERE SERVICE_STATE = 'ON')";
/// One message and one round trip: the position belongs to this commit, and a refused commit gives none.
const COMMIT_MARIADB: &str = "COMMIT; SELECT @@last_gtid";
/// How long a replica may take between logging a transaction and showing it, before it counts as one that hangs: the
/// group commit of some disks.
const SETTLE: Duration = Duration::from_millis(100);

/// A connection to one server of a [`MysqlReplicas`](crate::MysqlReplicas). Dropped, it is kept for later, unless
/// something was under way.
///
/// Begin transactions *inside* the closures of a session: a snapshot that is older than the judgment does not have
/// what was judged to be there. [`read`](Self::read) and [`write`](Self::write) do so.
pub struct MysqlConn {
    endpoint: Arc<Endpoint>,
    live: Option<Mutex<Live>>,
    used: bool,
    written: Written,
    life: AtomicU64,
}

/// What is known of the last write.
#[derive(Clone, Debug)]
enum Written {
    Nothing,
    At(Mark),
    Unknown,
}

impl fmt::Debug for MysqlConn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlConn").field("server", &self.endpoint.name).finish_non_exhaustive()
    }
}

impl Drop for MysqlConn {
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            Arc::clone(&self.endpoint).keep(live.into_inner(), self.used);
        }
    }
}

/// What a server said.
enum Told {
    MariaDb(MariaDb),
    MySql(MySql),
}

impl Told {
    fn observed(&self, system: &str) -> Observed {
        match self {
            Self::MariaDb(told) => told.observed(system),
            Self::MySql(told) => told.observed(system),
        }
    }
}

impl MysqlConn {
    pub(crate) fn new(endpoint: Arc<Endpoint>, live: Live) -> Self {
        let life = AtomicU64::new(live.life.unwrap_or(0));
        Self { endpoint, live: Some(Mutex::new(live)), used: false, written: Written::Nothing, life }
    }

    fn live(&mut self) -> &mut Live {
        self.live.as_mut().expect("invariant: taken by drop only").get_mut()
    }

    fn shared(&self) -> &Mutex<Live> {
        self.live.as_ref().expect("invariant: taken by drop only")
    }

    /// The driver's connection, for statements of your own. Commit what they write by [`commit`](Self::commit), or
    /// statement by statement: the position is asked for on this connection afterwards.
    #[must_use]
    pub fn conn(&mut self) -> &mut Conn {
        self.used = true;
        // What is committed by hand now is later than the commit that is remembered.
        if matches!(self.written, Written::At(_)) {
            self.written = Written::Nothing;
        }
        &mut self.live().conn
    }

    /// Runs `f` in a read-only transaction that begins now: the same statements are refused on every node.
    ///
    /// # Errors
    /// What the server refused, and what it did not answer.
    ///
    /// # Cancel safety
    /// The connection is closed, and nothing happened.
    pub async fn read<T>(&mut self, f: impl AsyncFnOnce(&mut Conn) -> mysql_async::Result<T>) -> Result<T> {
        let name = self.endpoint.name.clone();
        let conn = self.conn();
        let out = async {
            conn.query_drop("START TRANSACTION READ ONLY").await?;
            let out = f(conn).await;
            // What was read is known whatever becomes of the end.
            conn.query_drop("ROLLBACK").await?;
            out
        };
        out.await.map_err(|e| error::called(&name, e).with_outcome(Outcome::NotApplied))
    }

    /// Runs `f` in a transaction, commits it, and remembers where the commit is.
    ///
    /// # Errors
    /// What the server refused: rolled back. What it did not answer: [`Outcome::Unknown`] if that was the commit.
    ///
    /// # Cancel safety
    /// The connection is closed; once the commit was sent, it may have taken effect.
    pub async fn write<T>(&mut self, f: impl AsyncFnOnce(&mut Conn) -> mysql_async::Result<T>) -> Result<T> {
        let name = self.endpoint.name.clone();
        let conn = self.conn();
        let out = async {
            conn.query_drop("START TRANSACTION").await?;
            let out = f(conn).await;
            if out.is_err() {
                // The first error is the one that tells.
                let _ = conn.query_drop("ROLLBACK").await;
            }
            out
        };
        let out = out.await.map_err(|e| error::called(&name, e).with_outcome(Outcome::NotApplied))?;
        self.commit().await?;
        Ok(out)
    }

    /// Commits the open transaction, and remembers where the commit is. A transaction that logged nothing has no
    /// position of its own: what a session wants stays what it was.
    ///
    /// # Errors
    /// What the server refused, and, with [`Outcome::Unknown`], what it did not answer.
    ///
    /// # Cancel safety
    /// The connection is closed; the commit may take effect.
    pub async fn commit(&mut self) -> Result<()> {
        self.written = Written::Unknown;
        let endpoint = Arc::clone(&self.endpoint);
        let live = self.live();
        if live.dialect == Dialect::MySql {
            // The driver does not ask for GTIDs in OK packets. What the server had executed right after is at or past
            // the commit.
            live.conn.query_drop("COMMIT").await.map_err(|e| error::called(&endpoint.name, e))?;
            let Told::MySql(told) = self.ask().await? else { return Err(self.garbled()) };
            self.written = Written::At(told.committed(&endpoint.store.system));
            return Ok(());
        }
        let last = async {
            let mut result = live.conn.query_iter(COMMIT_MARIADB).await?;
            let _: Vec<Row> = result.collect().await?;
            let last: Vec<String> = result.collect().await?;
            result.drop_result().await?;
            Ok(last)
        };
        let last: Vec<String> = last.await.map_err(|e| error::called(&endpoint.name, e))?;
        let mark = last.first().and_then(|text| MariaDb::committed(&endpoint.store.system, live.id, text));
        match mark {
            Some(mark) => self.written = Written::At(mark),
            // It was committed; where is what the next question to the primary tells.
            None => self.written = Written::Unknown,
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Told> {
        let mut live = self.shared().lock().await;
        let limit = self.endpoint.store.timeout;
        let told = match live.dialect {
            Dialect::MariaDb => {
                let row: Option<Row> = self.endpoint.timed(limit, live.conn.query_first(ASK_MARIADB)).await?;
                Told::MariaDb(self.mariadb(row)?)
            }
            Dialect::MySql => {
                let row: Option<Row> = self.endpoint.timed(limit, live.conn.query_first(ASK_MYSQL)).await?;
                Told::MySql(self.mysql(row)?)
            }
        };
        let life = match &told {
            Told::MariaDb(told) => told.life,
            Told::MySql(told) => told.life,
        };
        live.life = Some(life);
        self.life.store(life, Ordering::Release);
        Ok(told)
    }

    fn mariadb(&self, row: Option<Row>) -> Result<MariaDb> {
        type Columns = (String, String, String, u32, u32, String, u8, u8, f64, f64);
        let row: Columns =
            row.and_then(|r| mysql_async::from_row_opt(r).ok()).ok_or_else(|| self.garbled())?;
        let (state, applied, last, server, domain, read_only, log, log_applied, start, running) = row;
        if log == 0 || log_applied == 0 {
            let text = format!("mysql {} needs log_bin and log_slave_updates", self.endpoint.name);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let writes = matches!(read_only.as_str(), "0" | "OFF") && running == 0.0;
        let role = if writes { Role::Primary } else { Role::Replica };
        MariaDb::read((&state, &applied, &last), (server, domain), (role, start as u64))
            .ok_or_else(|| self.garbled())
    }

    fn mysql(&self, row: Option<Row>) -> Result<MySql> {
        type Columns = (String, String, String, u8, f64, Option<String>);
        let row: Columns =
            row.and_then(|r| mysql_async::from_row_opt(r).ok()).ok_or_else(|| self.garbled())?;
        let (executed, server, mode, read_only, start, source) = row;
        if mode != "ON" {
            let text = format!("mysql {} needs gtid_mode=ON, not {mode}", self.endpoint.name);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let server = server.to_ascii_lowercase();
        let source = source.map(|uuid| uuid.to_ascii_lowercase());
        let role = if read_only == 0 && source.is_none() { Role::Primary } else { Role::Replica };
        let executed = gtid::mysql(&executed).ok_or_else(|| self.garbled())?;
        let source = source.unwrap_or_else(|| server.clone());
        Ok(MySql { executed, server, source, role, life: start as u64 })
    }

    fn garbled(&self) -> Error {
        let text = format!("mysql {} answered what no server of its kind does", self.endpoint.name);
        Error::new(ErrorKind::Internal, text)
    }

    /// Waits on the server itself, always for a limited time: one that never gets there would wait for ever.
    async fn until(&self, wanted: &Position, limit: Duration) -> Result<()> {
        let seconds = limit.as_secs_f64().max(0.001);
        let sql = match wanted {
            Position::MariaGtid(state) if !state.is_empty() => {
                let text = gtid::mariadb_text(&gtid::latest(state));
                format!("SELECT MASTER_GTID_WAIT('{text}', {seconds:.3})")
            }
            Position::Gtid(set) if !set.is_empty() => {
                let parts: Vec<String> = set.iter().map(|(server, end)| format!("{server}:{end}")).collect();
                format!("SELECT WAIT_FOR_EXECUTED_GTID_SET('{}', {seconds:.3})", parts.join(","))
            }
            _ => return Ok(()),
        };
        let mut live = self.shared().lock().await;
        let call = live.conn.query_drop(sql);
        self.endpoint.timed(limit.saturating_add(self.endpoint.store.timeout), call).await
    }

    /// What the server has, and all of that is visible: nothing that a read before this question saw lacks, and
    /// nothing is counted that a read behind it would not see.
    async fn look(&self) -> Result<Observed> {
        let system = &self.endpoint.store.system;
        let told = self.ask().await?;
        let Told::MariaDb(first) = &told else { return Ok(told.observed(system)) };
        let open = first.unapplied();
        if open.is_empty() {
            return Ok(told.observed(system));
        }
        self.until(&Position::MariaGtid(open.clone()), SETTLE).await?;
        match self.ask().await? {
            Told::MariaDb(now) if settled(&open, &now) => Ok(told.observed(system)),
            _ => {
                let text = format!("mysql {} logs what it does not show", self.endpoint.name);
                Err(Error::new(ErrorKind::Unavailable, text))
            }
        }
    }

    async fn wait_for(&self, wanted: &Mark, limit: Duration) -> Result<Judgment> {
        let clock = self.endpoint.store.clock();
        let end = Deadline::after(clock.now(), limit);
        let observed = self.look().await?;
        let judgment = observed.judge(wanted);
        let left = end.remaining(clock.now()).unwrap_or_default();
        if judgment != Judgment::Behind || left.is_zero() || observed.role == Role::Primary {
            return Ok(judgment);
        }
        self.until(&wanted.position, left).await?;
        // Getting there by its sequence is not having it: another server may have used the number.
        Ok(self.look().await?.judge(wanted))
    }
}

/// Whether what was open has been applied since.
fn settled(open: &State, now: &MariaDb) -> bool {
    open.iter().all(|((domain, _), n)| now.applied.get(domain).is_some_and(|at| at >= n))
}

impl ReplicatedStore for MysqlConn {
    fn commit_position(&self) -> BoxFuture<'_, Result<Mark>> {
        Box::pin(async move {
            match &self.written {
                Written::At(mark) => return Ok(mark.clone()),
                Written::Unknown => {
                    let text = format!("mysql {} did not tell where its last commit is", self.endpoint.name);
                    return Err(Error::new(ErrorKind::Unavailable, text));
                }
                Written::Nothing => {}
            }
            let (dialect, id) = {
                let live = self.shared().lock().await;
                (live.dialect, live.id)
            };
            let system = &self.endpoint.store.system;
            if dialect == Dialect::MySql {
                return match self.ask().await? {
                    Told::MySql(told) => Ok(told.committed(system)),
                    Told::MariaDb(_) => Err(self.garbled()),
                };
            }
            // Whatever this connection committed by itself, statement by statement.
            let mut live = self.shared().lock().await;
            let call = live.conn.query_first("SELECT @@last_gtid");
            let last: Option<String> = self.endpoint.timed(self.endpoint.store.timeout, call).await?;
            MariaDb::committed(system, id, &last.unwrap_or_default()).ok_or_else(|| self.garbled())
        })
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed>> {
        Box::pin(self.look())
    }

    fn wait<'a>(&'a self, wanted: &'a Mark, limit: Duration) -> BoxFuture<'a, Result<Judgment>> {
        Box::pin(self.wait_for(wanted, limit))
    }

    fn incarnation(&self) -> Option<u64> {
        Some(self.life.load(Ordering::Acquire)).filter(|life| *life != 0)
    }
}
