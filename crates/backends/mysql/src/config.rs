//! The store of sessions that some servers are, and its settings.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Runtime};

use crate::ConfigError;
use crate::server::MysqlServer;

/// A MariaDB or MySQL that replicates by GTID, as one store of sessions.
///
/// Guarantees: a position names the server that wrote and its sequence, so that a failover that lost a write is told
/// from a replica that lags. Not guaranteed: that a write survives, and anything about servers that do not keep what
/// they log (`sync_binlog=1`, `innodb_flush_log_at_trx_commit=1`) or do not log what they apply (`log_slave_updates`,
/// which is asked for).
///
/// Run against MariaDB 10.11. For MySQL 8 the rules are checked by documented examples of GTID sets only.
///
/// ```
/// use mainstay_clock::Runtime;
/// use mainstay_mysql::MysqlReplicas;
///
/// let store = MysqlReplicas::builder("orders").build(&Runtime::system())?;
/// let a = store.server("mysql://app@10.0.0.1/shop")?; // one server; nothing is connected yet
/// assert_eq!(a.name(), "10.0.0.1:3306");
/// assert_eq!(store.server("postgres://x/").unwrap_err().field(), "url");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct MysqlReplicas(pub(crate) Arc<Store>);

/// What all servers of a store share.
pub(crate) struct Store {
    pub(crate) system: String,
    pub(crate) timeout: Duration,
    pub(crate) idle: usize,
    pub(crate) runtime: Runtime,
}

impl Store {
    pub(crate) fn clock(&self) -> &dyn Clock {
        &**self.runtime.clock()
    }
}

impl fmt::Debug for MysqlReplicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlReplicas").field("system", &self.0.system).finish_non_exhaustive()
    }
}

/// Settings of a [`MysqlReplicas`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `request_timeout` | 1 s | connecting and asking for positions; your own statements take what they take |
/// | `max_idle` | 8 per server | connections that wait for their next use; more are closed |
#[derive(Clone, Debug)]
#[must_use]
pub struct ReplicasBuilder {
    name: String,
    timeout: Duration,
    idle: usize,
}

impl ReplicasBuilder {
    /// Longest wait for a connection or a position.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Most connections per server that are kept for later.
    pub fn max_idle(mut self, n: usize) -> Self {
        self.idle = n;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// An empty name or one over 200 bytes, a timeout outside 1 ms to 60 s, over 1,000 idle connections.
    pub fn build(self, runtime: &Runtime) -> Result<MysqlReplicas, ConfigError> {
        if self.name.is_empty() || self.name.len() > 200 {
            return Err(ConfigError::new("name", self.name, "1 to 200 bytes"));
        }
        if self.timeout < Duration::from_millis(1) || self.timeout > Duration::from_secs(60) {
            return Err(ConfigError::new("request_timeout", format!("{:?}", self.timeout), "1 ms to 60 s"));
        }
        if self.idle > 1_000 {
            return Err(ConfigError::new("max_idle", self.idle, "0 to 1,000"));
        }
        let (system, timeout, idle) = (self.name, self.timeout, self.idle);
        Ok(MysqlReplicas(Arc::new(Store { system, timeout, idle, runtime: runtime.clone() })))
    }
}

impl MysqlReplicas {
    /// The store named `name`: a name that you give, because servers that replicate have no common one.
    pub fn builder(name: &str) -> ReplicasBuilder {
        ReplicasBuilder { name: name.to_owned(), timeout: Duration::from_secs(1), idle: 8 }
    }

    /// The name in positions and tokens.
    #[must_use]
    pub fn system(&self) -> &str {
        &self.0.system
    }

    /// One server of it, primary or replica: no virtual address, no proxy that chooses. Nothing is connected yet.
    ///
    /// # Errors
    /// An URL that cannot be read.
    pub fn server(&self, url: &str) -> Result<MysqlServer, ConfigError> {
        MysqlServer::new(url, Arc::clone(&self.0))
    }
}
