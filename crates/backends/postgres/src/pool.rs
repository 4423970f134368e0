//! Connections, each lent to one operation at a time.

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::stream::StreamExt as _;
use mainstay_clock::{Runtime, TaskHandle};
use mainstay_store::lease::{Fencing, Server};
use mainstay_store::{Error, ErrorKind, Outcome, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

use crate::config::PostgresConfig;
use crate::connect::{Connected, Connector, Messages};
use crate::error::{late, store_error};
use crate::replicas::Identity;
use crate::tls::is_distrust;

/// The first version whose server ends a session on request and notices a client that is gone.
const MIN_VERSION: i32 = 140_000;
/// The same, as people write it.
const OLDEST: &str = "14";

/// Who answers, for people.
const WHO: &str = "select current_setting('server_version'),
       coalesce(host(inet_server_addr()) || ':' || inet_server_port(), 'a local socket')";

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Short statements, each with a limit.
    Requests,
    /// Statements that wait for a lock or hold it for long.
    Sessions,
}

/// Limits and facts of a new session in one round trip. A limit of 0 is none.
const SET_UP: &str = "
select set_config('statement_timeout', $1, false), set_config('lock_timeout', $2, false),
       set_config('idle_in_transaction_session_timeout', $3, false),
       pg_backend_pid(), current_setting('server_version_num')::int4,
       current_setting('synchronous_commit') <> 'off' and current_setting('fsync')::bool,
       set_config('default_transaction_isolation', 'read committed', false),
       (select (extract(epoch from backend_start) * 1000000)::int8 from pg_stat_activity where pid = pg_backend_pid())";

/// Ends the session of a client that is gone though the server waits for something else.
const WATCH_CLIENT: &str = "set client_connection_check_interval = '500ms'";

/// One connection and the task that drives it.
pub(crate) struct Conn {
    pub(crate) client: Client,
    pub(crate) pid: i32,
    /// When the server's process started, in microseconds: its number may be used again.
    pub(crate) started: i64,
    /// Whose connection it is, once somebody has asked.
    pub(crate) identity: OnceLock<Identity>,
    driver: Option<TaskHandle>,
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(driver) = self.driver.take() {
            // Closes the socket, whatever the server is doing.
            driver.abort();
        }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn").field("pid", &self.pid).finish_non_exhaustive()
    }
}

pub(crate) struct Pool {
    connector: Arc<dyn Connector>,
    pub(crate) rt: Runtime,
    pub(crate) timeout: Duration,
    fencing: Fencing,
    usage: Use,
    idle: Mutex<Vec<Conn>>,
    turns: Arc<Semaphore>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("connector", &self.connector).finish_non_exhaustive()
    }
}

/// A connection on loan. Dropped without being given back it is closed: nobody knows what it is doing.
pub(crate) struct Lent {
    pub(crate) conn: Conn,
    pool: Arc<Pool>,
    _turn: OwnedSemaphorePermit,
}

impl Lent {
    /// It does nothing and holds nothing: the next operation may have it.
    pub(crate) fn give_back(self) {
        let Self { conn, pool, _turn } = self;
        if !conn.client.is_closed() {
            pool.idle().push(conn);
        }
    }

    pub(crate) fn client(&self) -> &Client {
        &self.conn.client
    }
}

impl Pool {
    pub(crate) fn new(config: &PostgresConfig, usage: Use, rt: &Runtime) -> Arc<Self> {
        Arc::new(Self {
            connector: Arc::clone(&config.connector),
            rt: rt.clone(),
            timeout: config.request_timeout,
            fencing: config.fencing,
            usage,
            idle: Mutex::new(Vec::new()),
            turns: Arc::new(Semaphore::new(config.connections as usize)),
        })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Conn>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `future`, at most for the request timeout; `outcome` is what is known when it took longer.
    pub(crate) async fn within<T>(
        &self,
        what: &str,
        outcome: Outcome,
        future: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let end = self.rt.clock().sleep(self.timeout);
        tokio::select! {
            biased;
            result = future => result,
            () = end => Err(late(what, outcome)),
        }
    }

    /// A connection: one that is idle, or a new one.
    pub(crate) async fn lend(self: &Arc<Self>) -> Result<Lent> {
        self.within("a connection", Outcome::NotApplied, async {
            let turn = Arc::clone(&self.turns).acquire_owned().await;
            let turn = turn.map_err(|_| Error::new(ErrorKind::Internal, "the connections are closed"))?;
            self.conn().await.map(|conn| Lent { conn, pool: Arc::clone(self), _turn: turn })
        })
        .await
    }

    /// A connection at once, or `Full`: sessions are held for long, so there is no line for them.
    pub(crate) async fn lend_now(self: &Arc<Self>) -> Result<Lent> {
        let full = |_| Error::new(ErrorKind::Full, "every connection of this store holds a session lock");
        let turn = Arc::clone(&self.turns).try_acquire_owned().map_err(full)?;
        self.within("a connection", Outcome::NotApplied, self.conn()).await.map(|conn| Lent {
            conn,
            pool: Arc::clone(self),
            _turn: turn,
        })
    }

    /// The server, as it names itself.
    pub(crate) async fn server(self: &Arc<Self>) -> Result<Server> {
        let lent = self.lend().await?;
        let asked = async { lent.client().query_typed_one(WHO, &[]).await.map_err(store_error) };
        let row = self.within("the server's version", Outcome::NotApplied, asked).await?;
        let (version, address): (String, String) = (row.get(0), row.get(1));
        lent.give_back();
        Ok(Server::new("PostgreSQL", address, version, OLDEST))
    }

    async fn conn(&self) -> Result<Conn> {
        loop {
            let idle = self.idle().pop();
            match idle {
                Some(conn) if conn.client.is_closed() => drop(conn),
                Some(conn) => return Ok(conn),
                None => return self.connect().await,
            }
        }
    }

    async fn connect(&self) -> Result<Conn> {
        let (client, messages) = dial(&*self.connector).await?;
        let driver = self.rt.spawn("postgres-connection", drive(messages));
        let mut conn = Conn { client, pid: 0, started: 0, identity: OnceLock::new(), driver: Some(driver) };
        let limit = match self.usage {
            Use::Requests => self.timeout,
            Use::Sessions => Duration::ZERO,
        };
        let millis = |d: Duration| d.as_millis().to_string();
        // A row that is locked that long is locked by somebody's transaction: say so before the request ends.
        let (statement, lock, idle) = (millis(limit), millis(limit / 2), millis(limit));
        let row = conn
            .client
            .query_typed_one(SET_UP, &[(&statement, Type::TEXT), (&lock, Type::TEXT), (&idle, Type::TEXT)])
            .await
            .map_err(unconnected)?;
        let version: i32 = row.get(4);
        if version < MIN_VERSION {
            let text = format!("the server's version is {version}; needed: {MIN_VERSION} or later");
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if self.fencing == Fencing::Strict && !row.get::<_, bool>(5) {
            let text = "`fencing` is Strict, but `synchronous_commit` or `fsync` is off on the server; allowed: both on, \
                        or `fencing` WhileStateSurvives";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        (conn.pid, conn.started) = (row.get(3), row.get(7));
        if self.usage == Use::Sessions {
            conn.client.batch_execute(WATCH_CLIENT).await.map_err(unconnected)?;
        }
        Ok(conn)
    }

    /// Connects outside the pool and drives nothing.
    pub(crate) async fn dial(&self) -> Result<(Client, Messages)> {
        self.within("a connection", Outcome::NotApplied, dial(&*self.connector)).await
    }
}

async fn dial(connector: &dyn Connector) -> Result<(Client, Messages)> {
    let Connected { client, messages } = connector.connect().await.map_err(unconnected)?;
    Ok((client, messages))
}

/// Nothing was asked for yet.
fn unconnected(e: tokio_postgres::Error) -> Error {
    if e.as_db_error().is_some() {
        return store_error(e).with_outcome(Outcome::NotApplied);
    }
    if is_distrust(&e) {
        let text = "PostgreSQL and this client do not trust each other's certificates";
        return Error::new(ErrorKind::Unsupported, text).with_source(e);
    }
    Error::new(ErrorKind::Unavailable, "PostgreSQL cannot be reached, or none of the servers takes writes")
        .with_source(e)
}

async fn drive(mut messages: Messages) {
    while let Some(Ok(_)) = messages.next().await {}
}
