//! Options.

use std::sync::Arc;
use std::time::Duration;

use mainstay_store::ConfigError;
use mainstay_store::lease::Fencing;
use tokio_postgres::config::TargetSessionAttrs;

use crate::connect::Connector;
use crate::tls::connector;

/// Most connections of one store; a server allows 100 in all as shipped.
const MAX_CONNECTIONS: u32 = 256;
/// Shorter than a round trip and a sync on a busy machine is a mistake.
const MIN_TIMEOUT: Duration = Duration::from_millis(50);
/// Longer would outlive most leases.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);
/// Epochs have 15 bits, and the timeline needs most of them.
const MAX_EPOCH: u16 = 16_383;
/// Longest part of a table's name: suffixes are added and 63 bytes are the server's limit.
const MAX_IDENTIFIER: usize = 40;

/// How waiters learn that a name may be free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the server tells, or nobody does")]
pub enum Wake {
    /// One connection of the process listens for notifications.
    #[default]
    Listen,
    /// Timers of the waiter only: for transaction poolers, through which nobody can listen.
    Timers,
}

/// Options of [`PostgresLeases`](crate::PostgresLeases) and [`PostgresSessions`](crate::PostgresSessions),
/// checked. Made by [`PostgresConfig::builder`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `table` | `mainstay_lease` | in the first schema of the search path |
/// | `connections` | 8 | commits that come together share a sync; a server has 100 in all |
/// | `request_timeout` | 5 s | half of a third of the default ttl of 30 s, so a renewal can be repeated |
/// | `epoch` | 0 | raise it when a name moves here from another store |
/// | `fencing` | `Strict` | refused at open unless commits are synced |
/// | `wake` | `Listen` | hand-over in milliseconds |
#[derive(Clone, Debug)]
pub struct PostgresConfig {
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) table: String,
    pub(crate) connections: u32,
    pub(crate) request_timeout: Duration,
    pub(crate) epoch: u16,
    pub(crate) fencing: Fencing,
    pub(crate) wake: Wake,
}

/// Collects what a [`PostgresConfig`] holds.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    connector: Result<Arc<dyn Connector>, ConfigError>,
    config: PostgresConfig,
}

#[derive(Debug)]
struct Nowhere;

impl Connector for Nowhere {
    fn connect(
        &self,
    ) -> mainstay_store::BoxFuture<'_, Result<crate::connect::Connected, tokio_postgres::Error>> {
        Box::pin(std::future::pending())
    }
}

impl PostgresConfig {
    /// Starts with a URL or a `key=value` text. Several hosts may be named: the one that takes writes is used, so a
    /// client follows a promotion.
    ///
    /// With `sslmode` of `require`, `verify-ca` or `verify-full` connections are encrypted, and the server must show a
    /// certificate for its name or address by an authority of the system, or of the file in `sslrootcert`; `require` is
    /// stricter here than in libpq, which would take any certificate. `sslcert` and `sslkey` are one's own. The files
    /// can be named in a URL only. Without `sslmode` nothing is encrypted.
    ///
    /// ```
    /// use mainstay_postgres::PostgresConfig;
    /// use std::time::Duration;
    ///
    /// let config = PostgresConfig::builder("postgres://app@db-1,db-2/app").request_timeout(Duration::from_secs(2));
    /// assert!(config.build().is_ok());
    /// let refused = PostgresConfig::builder("postgres://app@db-1/app").connections(0).build().unwrap_err();
    /// assert_eq!(refused.field(), "connections");
    /// assert!(PostgresConfig::builder("postgres://app@db-1/app?sslmode=verify-full").build().is_ok());
    /// let refused = PostgresConfig::builder("postgres://app@db-1/app?sslmode=allow").build().unwrap_err();
    /// assert_eq!(refused.field(), "url");
    /// ```
    pub fn builder(url: &str) -> Builder {
        let connector = connector(url, |config| {
            if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
                return Err(ConfigError::new("url", "***", "names at least one host"));
            }
            if config.get_target_session_attrs() == TargetSessionAttrs::Any {
                config.target_session_attrs(TargetSessionAttrs::ReadWrite);
            }
            Ok(())
        });
        Builder::new(connector)
    }

    /// Starts with whatever connects: another TLS, a proxy, a simulated stream.
    pub fn through(connector: Arc<dyn Connector>) -> Builder {
        Builder::new(Ok(connector))
    }
}

/// A peer that is gone without a word is noticed in seconds.
pub(crate) fn patient(config: &mut tokio_postgres::Config) {
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(Duration::from_secs(5));
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_idle(Duration::from_secs(5)).keepalives_interval(Duration::from_secs(2));
        config.keepalives_retries(3);
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(Duration::from_secs(15));
    }
    if config.get_application_name().is_none() {
        config.application_name("mainstay");
    }
}

impl Builder {
    fn new(connector: Result<Arc<dyn Connector>, ConfigError>) -> Self {
        let config = PostgresConfig {
            connector: Arc::new(Nowhere),
            table: "mainstay_lease".to_owned(),
            connections: 8,
            request_timeout: Duration::from_secs(5),
            epoch: 0,
            fencing: Fencing::Strict,
            wake: Wake::Listen,
        };
        Self { connector, config }
    }

    /// The table of the leases, with a schema or without; a second one has the same name and `_place` behind.
    pub fn table(mut self, table: &str) -> Self {
        table.clone_into(&mut self.config.table);
        self
    }

    /// Most connections at once, beside the one that listens.
    pub fn connections(mut self, most: u32) -> Self {
        self.config.connections = most;
        self
    }

    /// How long one request may take, the wait for a connection included. Statements are ended by the server
    /// after the same time.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.config.request_timeout = timeout;
        self
    }

    /// Added to the timeline in the epoch of every token.
    pub fn epoch(mut self, epoch: u16) -> Self {
        self.config.epoch = epoch;
        self
    }

    /// What is declared and held: `Strict` needs synced commits (`fsync` and `synchronous_commit` on).
    pub fn fencing(mut self, fencing: Fencing) -> Self {
        self.config.fencing = fencing;
        self
    }

    /// How waiters are woken.
    pub fn wake(mut self, wake: Wake) -> Self {
        self.config.wake = wake;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting that cannot hold.
    pub fn build(mut self) -> Result<PostgresConfig, ConfigError> {
        self.config.connector = self.connector?;
        let config = self.config;
        if !(1..=MAX_CONNECTIONS).contains(&config.connections) {
            let allowed = format!("1 to {MAX_CONNECTIONS}");
            return Err(ConfigError::new("connections", config.connections, allowed));
        }
        if !(MIN_TIMEOUT..=MAX_TIMEOUT).contains(&config.request_timeout) {
            let allowed = format!("{MIN_TIMEOUT:?} to {MAX_TIMEOUT:?}");
            return Err(ConfigError::new(
                "request_timeout",
                format!("{:?}", config.request_timeout),
                allowed,
            ));
        }
        if config.epoch > MAX_EPOCH {
            let allowed = format!("0 to {MAX_EPOCH}");
            return Err(ConfigError::new("epoch", config.epoch, allowed));
        }
        let parts: Vec<&str> = config.table.split('.').collect();
        if parts.len() > 2 || !parts.iter().all(|part| is_identifier(part)) {
            let allowed = format!(
                "a table or schema.table of lower-case letters, digits and _, up to {MAX_IDENTIFIER} bytes each"
            );
            return Err(ConfigError::new("table", &config.table, allowed));
        }
        if config.fencing == Fencing::None {
            return Err(ConfigError::new("fencing", "None", "WhileStateSurvives or Strict"));
        }
        Ok(config)
    }
}

/// Whether the server takes it as a name without quotes.
pub(crate) fn is_identifier(text: &str) -> bool {
    let letters = |b: u8| b.is_ascii_lowercase() || b == b'_';
    text.len() <= MAX_IDENTIFIER
        && text.bytes().next().is_some_and(letters)
        && text.bytes().all(|b| letters(b) || b.is_ascii_digit())
}
