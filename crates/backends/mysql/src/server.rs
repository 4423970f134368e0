//! One server: its connections, and who it says it is.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_store::{BoxFuture, Error, ErrorKind, Result};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder};

use crate::config::Store;
use crate::conn::MysqlConn;
use crate::{ConfigError, error};

/// Which server it is, in both dialects.
const WHO: &str = "SELECT VERSION(), @@server_id";

/// Whose language a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    MariaDb,
    MySql,
}

/// An open connection, and what stays true of it.
pub(crate) struct Live {
    pub(crate) conn: Conn,
    pub(crate) dialect: Dialect,
    pub(crate) id: u32,
    /// The life of the server, once it was asked: a connection leads to one process.
    pub(crate) life: Option<u64>,
}

pub(crate) struct Endpoint {
    opts: Opts,
    pub(crate) name: String,
    pub(crate) store: Arc<Store>,
    idle: Mutex<Vec<Live>>,
}

/// One server of a [`MysqlReplicas`](crate::MysqlReplicas), primary or replica. Clones share its idle connections.
#[derive(Clone)]
pub struct MysqlServer(pub(crate) Arc<Endpoint>);

impl fmt::Debug for MysqlServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlServer").field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// `future`, unless `limit` is over first.
pub(crate) async fn within<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Option<F::Output> {
    let mut end = clock.sleep(limit);
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(out) => Poll::Ready(Some(out)),
        Poll::Pending => end.as_mut().poll(cx).map(|()| None),
    })
    .await
}

impl MysqlServer {
    pub(crate) fn new(url: &str, store: Arc<Store>) -> std::result::Result<Self, ConfigError> {
        // The URL may carry a password, so it is never repeated.
        let refused = |_| ConfigError::new("url", "(not shown)", "mysql://user@host:port/database");
        let opts = Opts::from_url(url).map_err(refused)?;
        let name = format!("{}:{}", opts.ip_or_hostname(), opts.tcp_port());
        // A server that is told to be asked at an address is asked there, not at a socket that it names.
        let opts = OptsBuilder::from_opts(opts).prefer_socket(false).tcp_nodelay(true).into();
        Ok(Self(Arc::new(Endpoint { opts, name, store, idle: Mutex::default() })))
    }

    /// Its address, for people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A connection to it, an idle one if there is one.
    ///
    /// # Errors
    /// It cannot be reached in time, refuses the user, or is of neither dialect.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing.
    pub async fn connect(&self) -> Result<MysqlConn> {
        let idle = self.0.lock().pop();
        let live = match idle {
            Some(live) => live,
            None => self.0.open().await?,
        };
        Ok(MysqlConn::new(Arc::clone(&self.0), live))
    }

    /// What a router takes for a node: it gives a connection each time.
    pub fn lender(&self) -> impl Fn() -> BoxFuture<'static, Result<MysqlConn>> + Send + Sync + 'static {
        let server = self.clone();
        move || {
            let server = server.clone();
            Box::pin(async move { server.connect().await })
        }
    }
}

impl Endpoint {
    fn lock(&self) -> MutexGuard<'_, Vec<Live>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one of our own statements, within the limit of all of them.
    pub(crate) async fn timed<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = mysql_async::Result<T>>,
    ) -> Result<T> {
        match within(self.store.clock(), limit, call).await {
            Some(Ok(out)) => Ok(out),
            Some(Err(error)) => Err(error::called(&self.name, error)),
            None => Err(error::late(&self.name)),
        }
    }

    async fn open(&self) -> Result<Live> {
        let opened = within(self.store.clock(), self.store.timeout, async {
            let mut conn = Conn::new(self.opts.clone()).await?;
            let who: Option<(String, u32)> = conn.query_first(WHO).await?;
            Ok((conn, who))
        });
        let (conn, who) = match opened.await {
            Some(Ok(opened)) => opened,
            Some(Err(error)) => return Err(error::unreachable(&self.name, error)),
            None => {
                let text = format!("mysql {} cannot be reached in time", self.name);
                return Err(Error::new(ErrorKind::Unavailable, text));
            }
        };
        let (version, id) = who.unwrap_or_default();
        let dialect = if version.contains("MariaDB") { Dialect::MariaDb } else { Dialect::MySql };
        Ok(Live { conn, dialect, id, life: None })
    }

    /// Keeps a connection for later. One that a user had is put back to its first state before.
    pub(crate) fn keep(self: Arc<Self>, mut live: Live, used: bool) {
        if live.conn.is_disconnected() || self.lock().len() >= self.store.idle {
            return;
        }
        if !used {
            return self.lock().push(live);
        }
        let runtime = self.store.runtime.clone();
        runtime.spawn("mysql-reset", async move {
            let reset = within(self.store.clock(), self.store.timeout, live.conn.reset()).await;
            // A server that cannot do that would hand on what the last user left.
            if matches!(reset, Some(Ok(true))) && self.lock().len() < self.store.idle {
                self.lock().push(live);
            }
        });
    }
}
