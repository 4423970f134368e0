//! Options of one server's connections.

use std::sync::Arc;
use std::time::Duration;

use mainstay_store::ConfigError;
use mainstay_store::lease::Fencing;
use tokio_postgres::config::TargetSessionAttrs;

use crate::config::{PostgresConfig, Wake};
use crate::connect::Connector;
use crate::tls::connector;

/// Most connections to one server; it allows 100 in all as shipped.
const MAX_CONNECTIONS: u32 = 256;
/// Shorter than a round trip and a sync on a busy machine is a mistake.
const MIN_TIMEOUT: Duration = Duration::from_millis(50);
/// A read that takes longer belongs to no session.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);

/// Whether a commit that nobody waited for may have a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Commits {
    AllowAsync,
    Synced,
}

/// Options of an [`Endpoint`](super::Endpoint), checked. Made by [`EndpointConfig::builder`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `connections` | 8 | reads of one process; a server has 100 in all |
/// | `request_timeout` | 5 s | one statement, also of a closure; nobody who waits for a page waits longer |
/// | `allow_async_commit` | off | what a crash takes away without a trace is no write to find again |
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    pub(super) inner: PostgresConfig,
    pub(super) commits: Commits,
}

/// Collects what an [`EndpointConfig`] holds.
#[derive(Debug)]
#[must_use]
pub struct EndpointBuilder {
    connector: Result<Arc<dyn Connector>, ConfigError>,
    connections: u32,
    request_timeout: Duration,
    commits: Commits,
}

impl EndpointConfig {
    /// Starts with a URL or a `key=value` text of one server; encrypted as for
    /// [`PostgresConfig::builder`].
    ///
    /// Several hosts are refused, and so is a wish for one that takes writes: what is known about a server is known
    /// about that one only, and which one is primary is observed.
    ///
    /// ```
    /// use mainstay_postgres::replicas::EndpointConfig;
    ///
    /// assert!(EndpointConfig::builder("postgres://app@db-1/app").connections(4).build().is_ok());
    /// let refused = EndpointConfig::builder("postgres://app@db-1,db-2/app").build().unwrap_err();
    /// assert_eq!(refused.field(), "url");
    /// ```
    pub fn builder(url: &str) -> EndpointBuilder {
        let connector = connector(url, |config| {
            if config.get_hosts().len().max(config.get_hostaddrs().len()) != 1 {
                return Err(ConfigError::new("url", "***", "one host: one endpoint is one server"));
            }
            if config.get_target_session_attrs() != TargetSessionAttrs::Any {
                let allowed = "no target_session_attrs: which server is primary is observed";
                return Err(ConfigError::new("url", "***", allowed));
            }
            Ok(())
        });
        EndpointBuilder::new(connector)
    }

    /// Starts with whatever connects to one server: another TLS, a tunnel.
    pub fn through(connector: Arc<dyn Connector>) -> EndpointBuilder {
        EndpointBuilder::new(Ok(connector))
    }
}

impl EndpointBuilder {
    fn new(connector: Result<Arc<dyn Connector>, ConfigError>) -> Self {
        let request_timeout = Duration::from_secs(5);
        Self { connector, connections: 8, request_timeout, commits: Commits::Synced }
    }

    /// Most connections at once.
    pub fn connections(mut self, most: u32) -> Self {
        self.connections = most;
        self
    }

    /// How long one request may take, the wait for a connection included. Statements of closures are ended by the
    /// server after the same time, and so is a transaction in which nothing happens.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Leaves `synchronous_commit = off` as it is set and gives such commits a position all the same: one that is lost
    /// with the server's next restart, and that no replica answers for before the primary has flushed it. Without this,
    /// every commit through [`Node::write`](super::Node::write) is waited for.
    pub fn allow_async_commit(mut self) -> Self {
        self.commits = Commits::AllowAsync;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting that cannot hold.
    pub fn build(self) -> Result<EndpointConfig, ConfigError> {
        let connector = self.connector?;
        if !(1..=MAX_CONNECTIONS).contains(&self.connections) {
            let allowed = format!("1 to {MAX_CONNECTIONS}");
            return Err(ConfigError::new("connections", self.connections, allowed));
        }
        if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&self.request_timeout) {
            let allowed = format!("{MIN_TIMEOUT:?} to {MAX_TIMEOUT:?}");
            return Err(ConfigError::new("request_timeout", format!("{:?}", self.request_timeout), allowed));
        }
        let inner = PostgresConfig {
            connector,
            table: String::new(),
            connections: self.connections,
            request_timeout: self.request_timeout,
            epoch: 0,
            // Whether commits are waited for is settled per commit, not per server.
            fencing: Fencing::WhileStateSurvives,
            wake: Wake::Timers,
        };
        Ok(EndpointConfig { inner, commits: self.commits })
    }
}
