//! One connection to one server, and what it is asked.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_store::replicated::{Judgment, Mark, Observed, Position, Role, TimelineSwitch};
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, ReplicatedStore, Result};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

use super::config::Commits;
use super::endpoint::Shared;
use super::lsn::{self, Pages};
use crate::error::store_error;
use crate::pool::Lent;

/// The first version that can wait for a position by itself.
const CAN_WAIT: i32 = 190_000;
/// Between two looks at a position, doubling: a replica is usually less than a millisecond behind.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(10);

/// Who the server is. The checkpointer is started anew when the server has crashed and recovered without ending, which
/// puts a standby back just as a restart does and leaves the server's own start time as it was.
const IDENTITY: &str = "
select (select system_identifier from pg_control_system()),
       current_setting('server_version_num'),
       current_setting('wal_block_size'),
       (select setting from pg_settings where name = 'wal_segment_size'),
       (select (extract(epoch from greatest(pg_postmaster_start_time(), backend_start)) * 1000000)::int8
          from pg_stat_activity where backend_type = 'checkpointer'),
       (select (extract(epoch from backend_start) * 1000000)::int8 from pg_stat_activity
         where pid = pg_backend_pid()),
       to_regproc('aurora_version') is not null";

/// What it has. The position that was replayed first, so that what was received is not less.
const OBSERVED: &str = "
select pg_is_in_recovery(),
       case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end,
       case when pg_is_in_recovery() then pg_last_wal_receive_lsn() else pg_current_wal_flush_lsn() end,
       case when pg_is_in_recovery() then (select lpad(to_hex(received_tli), 8, '0') from pg_stat_wal_receiver)
            else left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) end";

/// Whether no transaction is open: one begins with its first statement. `ROLLBACK` outside of one would be a warning in the
/// server's log each time.
const OUTSIDE: &str = "select now() = statement_timestamp()";

/// Who a connection talks to. It stays so for the life of the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(super) system: String,
    version: i32,
    pages: Pages,
    /// Since when the server has been what it is. Without the right to see it: since when this connection has been
    /// there, so that nothing is concluded from one connection for another.
    pub(super) life: u64,
    sees_life: bool,
}

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// The identifier of its cluster.
    pub system: String,
    /// What it says it is.
    pub role: Role,
    /// Its history; `None` on a standby that is not connected, or whose role may not see it.
    pub timeline: Option<u32>,
    /// The end of its log: replayed on a standby, inserted on a primary.
    pub lsn: u64,
    /// Received on a standby, flushed on a primary.
    pub other_lsn: u64,
    /// Its past; `None` when it could not be read.
    pub history: Option<Vec<TimelineSwitch>>,
    /// The life of the server, in microseconds since 1970.
    pub life: u64,
}

/// One connection to one server, lent by an [`Endpoint`](super::Endpoint): what sessions read and write through.
///
/// Dropped, it goes back to its endpoint; if a call on it was not over, it is closed instead, because nobody knows
/// what it is doing. What was begun through [`client`](Node::client) and left open is rolled back before.
pub struct Node {
    lent: Option<Lent>,
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Identity,
    last: Mutex<Last>,
    clean: AtomicBool,
    /// Whether somebody had the driver's connection: they may have begun a transaction.
    by_hand: AtomicBool,
}

/// What is known about the position of the last write.
#[derive(Clone, Debug)]
pub(super) enum Last {
    At(Mark),
    Nothing,
    Untold,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let Some(lent) = self.lent.take().filter(|_| *self.clean.get_mut()) else { return };
        if !*self.by_hand.get_mut() {
            return lent.give_back();
        }
        let pool = Arc::clone(&self.shared.pool);
        if tokio::runtime::Handle::try_current().is_ok() {
            pool.rt.clone().spawn("postgres-settle", async move {
                let settled =
                    pool.within("the end of a transaction", Outcome::NotApplied, settle(lent.client()));
                if settled.await.is_ok() {
                    lent.give_back();
                }
            });
        }
    }
}

/// Ends what was begun by hand: who got the connection next would read in a snapshot of before, and commit what is not its
/// own.
async fn settle(client: &Client) -> Result<()> {
    match client.simple_query(OUTSIDE).await {
        Ok(said) if row(&said).and_then(|r| r.get(0)) == Some("t") => Ok(()),
        // Also one that has failed, which refuses the question.
        Ok(_) | Err(_) => client.batch_execute("rollback").await.map_err(store_error),
    }
}

/// A row of texts.
fn row(messages: &[SimpleQueryMessage]) -> Option<&SimpleQueryRow> {
    messages.iter().find_map(|m| if let SimpleQueryMessage::Row(row) = m { Some(row) } else { None })
}

pub(super) fn strange(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the server does not say {what} as PostgreSQL does"))
}

impl Node {
    /// Takes a connection and finds out whose it is, unless that is known.
    pub(super) async fn new(shared: Arc<Shared>, lent: Lent) -> Result<Self> {
        let identity = match lent.conn.identity.get() {
            Some(identity) => identity.clone(),
            None => {
                let identity = ask_identity(lent.client()).await?;
                lent.conn.identity.get_or_init(|| identity).clone()
            }
        };
        if shared.commits == Commits::AllowAsync && !identity.sees_life {
            let text = "`allow_async_commit` needs the server's start: grant pg_read_all_stats to the role";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let (last, clean, by_hand) =
            (Mutex::new(Last::Nothing), AtomicBool::new(true), AtomicBool::new(false));
        Ok(Self { lent: Some(lent), shared, identity, last, clean, by_hand })
    }

    /// The driver's connection, for statements outside a transaction of ours. A position is only known of what goes
    /// through [`write`](Node::write). What you set for the session stays set for whoever gets the connection next.
    #[must_use]
    pub fn client(&self) -> &Client {
        self.by_hand.store(true, Ordering::Release);
        self.driver()
    }

    pub(super) fn driver(&self) -> &Client {
        self.lent.as_ref().expect("invariant: taken by drop alone").client()
    }

    /// Runs `call`; if it is dropped or fails on the way, the connection is not used again.
    pub(super) async fn whole<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.clean.store(false, Ordering::Release);
        let out = self.shared.pool.within("a statement", Outcome::Unknown, call).await?;
        self.clean.store(true, Ordering::Release);
        Ok(out)
    }

    pub(super) fn start(&self) {
        self.clean.store(false, Ordering::Release);
    }

    pub(super) fn finish(&self) {
        self.clean.store(true, Ordering::Release);
    }

    pub(super) fn remember(&self, last: Last) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }

    pub(super) fn mark(&self, timeline: u32, position: Position) -> Mark {
        Mark { system: self.identity.system.clone(), timeline: timeline.to_string(), position }
    }

    /// The position of a commit that the server did not wait for, on its own pages.
    pub(super) fn unsynced(&self, insert: u64) -> Position {
        Position::LsnUnsynced { lsn: self.identity.pages.normalize(insert), start: self.identity.life }
    }

    /// Asks for everything about the server that sessions go by.
    ///
    /// # Errors
    /// The server cannot be asked.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn report(&self) -> Result<Report> {
        self.whole(async {
            let said = self.driver().simple_query(OBSERVED).await.map_err(store_error)?;
            let row = row(&said).ok_or_else(|| strange("what it has"))?;
            let role = if row.get(0) == Some("t") { Role::Replica } else { Role::Primary };
            let at = |i| row.get(i).and_then(lsn::parse);
            let timeline = row.get(3).and_then(|t| u32::from_str_radix(t, 16).ok());
            // A standby that never received anything has replayed what its copy brought.
            let lsn = at(1).ok_or_else(|| strange("its position"))?;
            let history = match timeline {
                Some(timeline) => self.history(timeline).await?,
                None => None,
            };
            let (system, life) = (self.identity.system.clone(), self.identity.life);
            let lsn = if role == Role::Primary { self.identity.pages.normalize(lsn) } else { lsn };
            Ok(Report { system, role, timeline, lsn, other_lsn: at(2).unwrap_or(0), history, life })
        })
        .await
    }

    /// The switches that led to `timeline`; read once in a life of the server.
    async fn history(&self, timeline: u32) -> Result<Option<Vec<TimelineSwitch>>> {
        if timeline == 1 {
            return Ok(Some(Vec::new()));
        }
        let key = (self.identity.life, timeline);
        if let Some(known) = self.shared.history(key) {
            return Ok(Some(known));
        }
        let question = format!("select pg_read_file('pg_wal/{timeline:08X}.history', 0, 100000, true)");
        let said = match self.driver().simple_query(&question).await {
            Ok(said) => said,
            Err(e) if e.code() == Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE) => {
                return Ok(None);
            }
            Err(e) => return Err(store_error(e)),
        };
        let found = row(&said).and_then(|r| r.get(0)).and_then(|text| lsn::history(text, timeline));
        Ok(found.inspect(|history| self.shared.keep_history(key, history.clone())))
    }

    async fn look(&self) -> Result<Observed> {
        let Report { role, timeline, lsn, other_lsn, history, life, .. } = self.report().await?;
        let Some(timeline) = timeline else {
            let text = "the standby does not say which history it receives: it is not connected to a primary, or the \
                        role lacks pg_read_all_stats";
            return Err(Error::new(ErrorKind::Unavailable, text));
        };
        let position = match (role, other_lsn.saturating_sub(lsn)) {
            (Role::Replica, ahead) if ahead > 0 => Position::LsnRead { lsn, ahead },
            _ => Position::Lsn(lsn),
        };
        let observed = Observed::new(self.mark(timeline, position), history.unwrap_or_default());
        let observed = observed.with_role(role).with_incarnation(life);
        Ok(if role == Role::Primary { observed.with_durable(Position::Lsn(other_lsn)) } else { observed })
    }

    /// Waits inside the server, where it can. Its answer is not the judgment: it knows no timelines.
    async fn wait_inside(&self, wanted: &Mark, limit: Duration) -> Result<()> {
        let target = match wanted.position {
            Position::Lsn(lsn) => lsn,
            Position::LsnRead { lsn, ahead } => lsn.saturating_add(ahead),
            _ => return Ok(()),
        };
        // The limit of one request stays above it.
        let statement = wait_statement(target, limit.min(self.shared.pool.timeout / 2));
        self.whole(async { self.driver().simple_query(&statement).await.map(drop).map_err(store_error) })
            .await
    }
}

/// A limit of 0 would be none, and less than half a millisecond is rounded to it.
fn wait_statement(lsn: u64, limit: Duration) -> String {
    let millis = limit.as_millis().max(1);
    format!(
        "WAIT FOR LSN '{}' WITH (MODE 'standby_replay', TIMEOUT '{millis}ms', NO_THROW)",
        lsn::format(lsn)
    )
}

async fn ask_identity(client: &Client) -> Result<Identity> {
    let said = client.simple_query(IDENTITY).await.map_err(store_error)?;
    let row = row(&said).ok_or_else(|| strange("who it is"))?;
    if row.get(6) == Some("t") {
        let text =
            "Aurora does not replicate a log that is replayed: its positions say nothing about its readers";
        return Err(Error::new(ErrorKind::Unsupported, text));
    }
    let number = |i, what| row.get(i).and_then(|t| t.parse::<u64>().ok()).ok_or_else(|| strange(what));
    // It is signed on the wire and unsigned in the control file; the text names it either way.
    let system = row.get(0).ok_or_else(|| strange("its system identifier"))?.to_owned();
    let version = i32::try_from(number(1, "its version")?).map_err(|_| strange("its version"))?;
    let pages = Pages { block: number(2, "its block size")?, segment: number(3, "its segment size")? };
    if pages.block == 0 || pages.segment == 0 {
        return Err(strange("its block size"));
    }
    let (life, sees_life) = match row.get(4) {
        Some(_) => (number(4, "its start")?, true),
        None => (number(5, "when the connection began")?, false),
    };
    Ok(Identity { system, version, pages, life, sees_life })
}

impl ReplicatedStore for Node {
    fn commit_position(&self) -> BoxFuture<'_, Result<Mark>> {
        Box::pin(async {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match last {
                Last::At(mark) => Ok(mark),
                Last::Nothing => {
                    let text = "nothing was committed through `Node::write`";
                    Err(Error::new(ErrorKind::ApiMisuse, text))
                }
                Last::Untold => {
                    let text = "it is committed, and the server did not say where";
                    Err(Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Applied))
                }
            }
        })
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed>> {
        Box::pin(self.look())
    }

    fn wait<'a>(&'a self, wanted: &'a Mark, limit: Duration) -> BoxFuture<'a, Result<Judgment>> {
        Box::pin(async move {
            let clock = Arc::clone(self.shared.pool.rt.clock());
            let end = clock.now().saturating_add(limit);
            // One wait inside the server: where it answers at once, without the position, polls go on.
            let (mut pause, mut inside) = (FIRST_LOOK, self.identity.version >= CAN_WAIT);
            loop {
                let observed = self.look().await?;
                let judgment = observed.judge(wanted);
                let left = end.saturating_duration_since(clock.now());
                if judgment != Judgment::Behind || left.is_zero() {
                    return Ok(judgment);
                }
                if std::mem::take(&mut inside) && observed.role == Role::Replica {
                    // Conflicts with recovery end it, as they end every statement there.
                    let _ = self.wait_inside(wanted, left).await;
                    continue;
                }
                clock.sleep(pause.min(left)).await;
                pause = (pause * 2).min(LAST_LOOK);
            }
        })
    }

    fn incarnation(&self) -> Option<u64> {
        Some(self.identity.life)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::wait_statement;

    #[test]
    fn p12_a_wait_inside_the_server_never_goes_without_a_limit() {
        let statement = wait_statement(0x0306_EE20, Duration::from_micros(400));
        assert_eq!(
            statement,
            "WAIT FOR LSN '0/306EE20' WITH (MODE 'standby_replay', TIMEOUT '1ms', NO_THROW)"
        );
        assert!(wait_statement(1, Duration::ZERO).contains("'1ms'"));
    }
}
