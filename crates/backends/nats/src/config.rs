//! Options.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::ServerAddr;
use mainstay_store::address::TlsFiles;
use mainstay_store::lease::Names;

use crate::ConfigError;

/// Where leases are unless told otherwise.
const BUCKET: &str = "mainstay_leases";
/// Longest wait for one answer, unless told otherwise: room for a leader of the stream to be elected twice.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than a round trip and a sync on a busy machine is a mistake.
const MIN_TIMEOUT: Duration = Duration::from_millis(50);
/// Longer would outlive most leases.
const MAX_TIMEOUT: Duration = Duration::from_secs(300);
/// Sequences have 48 bits, so that the epoch above them leaves a positive 63-bit number.
pub(crate) const EPOCH_SHIFT: u32 = 48;
const MAX_EPOCH: u64 = (1 << 15) - 1;
/// As many copies as the server keeps at most.
const MAX_REPLICAS: u32 = 5;

/// Who ends a lease whose holder is silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// The server too where it can (2.11 or later, and the bucket allows it), else observers alone.
    #[default]
    Auto,
    /// Whoever saw the same entry for its ttl, by its own boot clock.
    Observer,
    /// The server too, in whole seconds; opening fails where it cannot.
    Server,
}

/// Options of [`NatsLeases`](crate::NatsLeases), checked. Made by [`NatsConfig::builder`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `bucket` | `mainstay_leases` | made when it is not there |
/// | `names` | whole | applications must not meet by accident |
/// | `replicas` | 3 in a cluster, else 1 | one server may die; used only when the bucket is made |
/// | `expiry` | `Auto` | the server ends leases that nobody watches |
/// | `epoch` | 0 | raise it when a name moves here from another store, or after a restore that went back |
/// | `request_timeout` | 5 s | half of a third of the default ttl of 30 s, so a renewal can be repeated |
/// | `system` | none | without it nobody can show that servers sync before they answer |
#[derive(Clone)]
pub struct NatsConfig {
    pub(crate) servers: Vec<ServerAddr>,
    pub(crate) bucket: String,
    pub(crate) names: Names,
    pub(crate) replicas: Option<u32>,
    pub(crate) expiry: Expiry,
    pub(crate) epoch: u64,
    pub(crate) request_timeout: Duration,
    pub(crate) system: Option<Vec<ServerAddr>>,
    pub(crate) tls: TlsFiles,
}

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Addresses may hold passwords.
        f.debug_struct("NatsConfig").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// Collects what a [`NatsConfig`] holds.
#[derive(Clone)]
#[must_use]
pub struct Builder {
    servers: String,
    system: Option<String>,
    config: NatsConfig,
}

/// Without its address, which may hold a password.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl NatsConfig {
    /// Starts with the servers of one cluster, commas between them: `nats://[user:password@]host:port[,..]`, or
    /// `tls://` where nothing may be said without encryption. A name without a password is a token. Others of the
    /// cluster are learnt from these. Files of TLS may follow: `?ca=FILE`, `?ca=FILE&cert=FILE&key=FILE`.
    ///
    /// ```
    /// use mainstay_nats::NatsConfig;
    ///
    /// let config = NatsConfig::builder("nats://n-1:4222,nats://n-2:4222").bucket("locks").replicas(3).build();
    /// assert!(config.is_ok());
    /// let refused = NatsConfig::builder("nats://n-1").replicas(2).build().unwrap_err();
    /// assert_eq!(refused.field(), "replicas");
    /// ```
    pub fn builder(servers: &str) -> Builder {
        let config = Self {
            servers: Vec::new(),
            bucket: BUCKET.to_owned(),
            names: Names::Whole,
            replicas: None,
            expiry: Expiry::Auto,
            epoch: 0,
            request_timeout: REQUEST_TIMEOUT,
            system: None,
            tls: TlsFiles::default(),
        };
        Builder { servers: servers.to_owned(), system: None, config }
    }

    pub(crate) fn stream(&self) -> String {
        format!("KV_{}", self.bucket)
    }
}

impl Builder {
    /// The bucket that keeps the leases, and nothing else.
    pub fn bucket(mut self, bucket: &str) -> Self {
        bucket.clone_into(&mut self.config.bucket);
        self
    }

    /// Which part of a name is the key: with [`Names::Bare`] that without its namespace, which is what another client of
    /// the bucket writes. Records keep theirs.
    pub fn names(mut self, names: Names) -> Self {
        self.config.names = names;
        self
    }

    /// How many servers keep the bucket, when it is made here.
    pub fn replicas(mut self, n: u32) -> Self {
        self.config.replicas = Some(n);
        self
    }

    /// Who ends a lease whose holder is silent.
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.config.expiry = expiry;
        self
    }

    /// The upper 15 bits of every token.
    pub fn epoch(mut self, epoch: u16) -> Self {
        self.config.epoch = epoch.into();
        self
    }

    /// Longest wait for one answer.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.config.request_timeout = limit;
        self
    }

    /// Servers with a login of the system account. They are asked once, at opening, whether each server that
    /// keeps the bucket syncs before it answers; only then, and with three copies, fencing is `Strict`.
    pub fn system(mut self, servers: &str) -> Self {
        self.system = Some(servers.to_owned());
        self
    }

    /// Trusts the certificates of this file in PEM, in place of those of the system.
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.config.tls.ca = Some(file.into());
        self
    }

    /// Shows this certificate to servers that ask for one; both files in PEM.
    pub fn client_certificate(mut self, file: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.config.tls.own = Some((file.into(), key.into()));
        self
    }

    /// Checks the settings. Nothing is connected yet.
    ///
    /// # Errors
    /// Servers that cannot be read, a bucket of other than 1 to 64 letters, digits, `-` and `_`, an even number
    /// of replicas or more than 5, an epoch over 15 bits, a timeout outside 50 ms to 300 s.
    pub fn build(self) -> Result<NatsConfig, ConfigError> {
        let mut config = self.config;
        let (servers, files) = TlsFiles::split(&self.servers)?;
        config.servers = addresses("servers", servers)?;
        config.tls = TlsFiles { ca: files.ca.or(config.tls.ca), own: files.own.or(config.tls.own) };
        config.tls.check()?;
        config.system = self.system.map(|s| addresses("system", &s)).transpose()?;
        let is_key = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if config.bucket.is_empty() || config.bucket.len() > 64 || !config.bucket.bytes().all(is_key) {
            return Err(ConfigError::new("bucket", &config.bucket, "1 to 64 of a-z, A-Z, 0-9, - and _"));
        }
        if let Some(n) = config.replicas.filter(|n| n % 2 == 0 || *n > MAX_REPLICAS) {
            return Err(ConfigError::new("replicas", n, "1, 3 or 5: an even number has no better majority"));
        }
        if config.epoch > MAX_EPOCH {
            return Err(ConfigError::new("epoch", config.epoch, "0 to 32,767"));
        }
        if config.request_timeout < MIN_TIMEOUT || config.request_timeout > MAX_TIMEOUT {
            return Err(ConfigError::new(
                "request_timeout",
                format!("{:?}", config.request_timeout),
                "50 ms to 300 s",
            ));
        }
        Ok(config)
    }
}

/// The text may hold a password, so it is never repeated.
fn addresses(field: &'static str, text: &str) -> Result<Vec<ServerAddr>, ConfigError> {
    let refused =
        || ConfigError::new(field, "(not shown)", "nats://host:port, several with commas between them");
    let one = |part: &str| part.trim().parse::<ServerAddr>().map_err(|_| refused());
    let all: Vec<ServerAddr> = text.split(',').map(one).collect::<Result<_, _>>()?;
    if all.iter().any(|a| a.host().is_empty()) { Err(refused()) } else { Ok(all) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f41_settings_that_cannot_hold_are_refused_by_name() {
        let of = |b: Builder| b.build().unwrap_err().field();
        let b = || NatsConfig::builder("nats://127.0.0.1:1");
        assert_eq!(of(NatsConfig::builder("")), "servers");
        assert_eq!(of(NatsConfig::builder("redis://x")), "servers");
        assert_eq!(of(b().system("http://x")), "system");
        assert_eq!(of(b().bucket("a.b")), "bucket");
        assert_eq!(of(b().bucket("")), "bucket");
        assert_eq!(of(b().replicas(2)), "replicas");
        assert_eq!(of(b().replicas(7)), "replicas");
        assert_eq!(of(b().epoch(1 << 15)), "epoch");
        assert_eq!(of(b().request_timeout(Duration::from_millis(49))), "request_timeout");
        assert!(b().epoch((1 << 15) - 1).replicas(5).build().is_ok());
        assert_eq!(of(NatsConfig::builder("tls://h:1?x=y")), "url");
        assert_eq!(of(b().ca("/no/such/file")), "tls");
        let login = NatsConfig::builder("nats://me:secret@h").system("nats://sys:secret@h");
        assert!(!format!("{login:?} {:?}", login.clone().build()).contains("secret"));
        let secret = NatsConfig::builder("nats://me:secret@").build().unwrap_err();
        assert!(!secret.to_string().contains("secret"));
    }
}
