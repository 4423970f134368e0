//! Options.

use std::fmt;
use std::time::Duration;

use mainstay_store::address::{TlsFiles, plain};
use mainstay_store::lease::Names;

use crate::ConfigError;

/// The port of clients.
const PORT: u16 = 2379;
/// More endpoints than any cluster has members.
const MAX_ENDPOINTS: usize = 32;
/// Longest wait for an answer, other members included: an election takes one to two seconds.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
/// Shorter than a round trip and a sync on a busy machine is a mistake.
const MIN_TIMEOUT: Duration = Duration::from_millis(50);
/// Longer would outlive most leases.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// Revisions have 48 bits, so that the epoch above them leaves a positive 63-bit number.
pub(crate) const EPOCH_SHIFT: u32 = 48;
const MAX_EPOCH: u16 = (1 << 15) - 1;
/// Keys of etcd may be as long as a request; names have 1,024 bytes.
const MAX_PREFIX: usize = 255;

/// Options of [`EtcdLeases`](crate::EtcdLeases) and [`EtcdFence`](crate::fence::EtcdFence), checked. Made by
/// [`EtcdConfig::builder`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `prefix` | empty | the name is the key, as `etcdctl` has it |
/// | `names` | whole | applications must not meet by accident |
/// | `request_timeout` | 3 s | an election of the cluster fits into it |
/// | `epoch` | 0 | raise it when names move here from another store, or after a restore from a snapshot |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    pub(crate) endpoints: Vec<String>,
    pub(crate) prefix: String,
    pub(crate) names: Names,
    pub(crate) request_timeout: Duration,
    pub(crate) epoch: u16,
    pub(crate) login: Option<Login>,
    pub(crate) tls: TlsFiles,
}

/// A user of etcd.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Collects what an [`EtcdConfig`] holds.
#[derive(Clone)]
#[must_use]
pub struct Builder {
    url: String,
    config: EtcdConfig,
}

/// Without its address, which may hold a password.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl EtcdConfig {
    /// Starts with the members of one cluster: `etcd://host:port`, more of them with commas between; the port may be
    /// left out when it is 2379. `etcds://` is encrypted, and trusts the authorities of the system or those of
    /// `?ca=FILE`; `?cert=FILE&key=FILE` shows a certificate to servers that ask for one. `user:password@` before the
    /// first host is a user of etcd.
    ///
    /// ```
    /// use mainstay_etcd::EtcdConfig;
    ///
    /// let config = EtcdConfig::builder("etcd://etcd-1,etcd-2,etcd-3:2479").epoch(1);
    /// assert!(config.build().is_ok());
    /// let refused = EtcdConfig::builder("etcd://etcd-1").epoch(40_000).build().unwrap_err();
    /// assert_eq!(refused.field(), "epoch");
    /// ```
    pub fn builder(url: &str) -> Builder {
        let config = Self {
            endpoints: Vec::new(),
            prefix: String::new(),
            names: Names::Whole,
            request_timeout: REQUEST_TIMEOUT,
            epoch: 0,
            login: None,
            tls: TlsFiles::default(),
        };
        Builder { url: url.to_owned(), config }
    }
}

impl Builder {
    /// Put before every key, also before those of locks and elections.
    pub fn prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.config.prefix);
        self
    }

    /// Which part of a name is the key: with [`Names::Bare`] that without its namespace, so that `etcdctl lock job` and
    /// the lock `job` of any namespace exclude each other. Records keep theirs.
    pub fn names(mut self, names: Names) -> Self {
        self.config.names = names;
        self
    }

    /// How long one request may take, other members asked in place of a silent one included.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.config.request_timeout = limit;
        self
    }

    /// The upper 15 bits of every token; below them is etcd's revision.
    pub fn epoch(mut self, epoch: u16) -> Self {
        self.config.epoch = epoch;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// The first setting that cannot hold.
    pub fn build(mut self) -> Result<EtcdConfig, ConfigError> {
        let (servers, tls) = TlsFiles::split(&self.url)?;
        tls.check()?;
        (self.config.endpoints, self.config.login) = endpoints(servers)?;
        if tls != TlsFiles::default() && !servers.starts_with(SECURE) {
            return Err(ConfigError::new("url", "***", "files of TLS behind etcds:// only"));
        }
        self.config.tls = tls;
        let config = self.config;
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
        if config.prefix.len() > MAX_PREFIX || config.prefix.contains('\0') {
            let allowed = format!("up to {MAX_PREFIX} bytes, none of them zero");
            return Err(ConfigError::new("prefix", &config.prefix, allowed));
        }
        Ok(config)
    }
}

/// Before servers whose connections are encrypted.
const SECURE: &str = "etcds://";

/// The endpoints as the transport wants them, and who asks.
fn endpoints(url: &str) -> Result<(Vec<String>, Option<Login>), ConfigError> {
    // The text may hold a password.
    let refused = |allowed: &str| Err(ConfigError::new("url", "***", allowed));
    let (scheme, hosts) = match (url.strip_prefix("etcd://"), url.strip_prefix(SECURE)) {
        (Some(hosts), _) => ("http", hosts),
        (_, Some(hosts)) => ("https", hosts),
        _ => return refused("etcd://HOST:PORT or etcds://HOST:PORT, more of them with commas between"),
    };
    let (login, hosts) = match hosts.split_once('@') {
        None => (None, hosts),
        Some((login, hosts)) => match login.split_once(':') {
            Some((user, password)) if !user.is_empty() && !login.contains(',') => {
                (Some(Login { user: plain(user), password: plain(password) }), hosts)
            }
            _ => return refused("one user:password@ before the first host"),
        },
    };
    let mut endpoints = Vec::new();
    for host in hosts.trim_end_matches('/').split(',') {
        if host.contains('@') {
            return refused("one user for all hosts, before the first of them");
        }
        let wrong = "hosts, each with a port from 1 to 65535 or without one";
        let Ok(authority) = host.parse::<http::uri::Authority>() else { return refused(wrong) };
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str() == authority.host() => PORT,
            None => return refused(wrong),
        };
        if authority.host().is_empty() || port == 0 {
            return refused(wrong);
        }
        let uri = format!("{scheme}://{}:{port}", authority.host());
        if endpoints.contains(&uri) {
            return refused("each endpoint once");
        }
        endpoints.push(uri);
    }
    if endpoints.len() > MAX_ENDPOINTS {
        return refused("at most 32 endpoints");
    }
    Ok((endpoints, login))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_of_clusters() {
        let hosts = |url: &str| EtcdConfig::builder(url).build().map(|c| c.endpoints);
        assert_eq!(hosts("etcd://a").unwrap(), ["http://a:2379"]);
        assert_eq!(hosts("etcd://a:1,[::1]:2/").unwrap(), ["http://a:1", "http://[::1]:2"]);
        for bad in [
            "",
            "a:1",
            "http://a",
            "etcd://",
            "etcd://a,,b",
            "etcd://a,a:2379",
            "etcd://a,me:secret@b",
            "etcd://secret@a",
            "etcd://:secret@a",
            "etcd://me:secret@a?ca=/etc/passwd",
            "etcds://me:secret@a?x=y",
            "etcd://a:x",
        ] {
            let refused = hosts(bad).unwrap_err();
            assert_eq!(refused.field(), "url", "{bad}");
            assert!(!refused.to_string().contains("secret"));
        }
        let all = EtcdConfig::builder("etcds://me:s3%40cret@a,b?ca=/etc/passwd");
        assert!(!format!("{all:?}").contains("cret"));
        let all = all.build().unwrap();
        assert_eq!(all.endpoints, ["https://a:2379", "https://b:2379"]);
        assert_eq!(all.login.as_ref().map(|l| l.password.as_str()), Some("s3@cret"));
        assert!(!format!("{all:?}").contains("cret"));
    }

    #[test]
    fn settings_that_cannot_hold_are_refused() {
        let builder = || EtcdConfig::builder("etcd://a");
        for (field, builder) in [
            ("request_timeout", builder().request_timeout(Duration::ZERO)),
            ("request_timeout", builder().request_timeout(Duration::MAX)),
            ("epoch", builder().epoch(u16::MAX)),
            ("prefix", builder().prefix("a\0")),
            ("prefix", builder().prefix(&"x".repeat(256))),
        ] {
            assert_eq!(builder.build().unwrap_err().field(), field);
        }
    }
}
