//! Options that a single Redis and a quorum share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_store::Result;
use mainstay_store::lease::Names;

use crate::ConfigError;
use crate::keys::{KeyProfile, Keys};
use crate::node::Node;
use crate::store::RedisLeases;

/// Longest wait for one answer, unless told otherwise: far above a round trip, far below a usual ttl.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);
/// Counters have 48 bits, so that the epoch above them leaves a positive 63-bit number.
pub(crate) const EPOCH_SHIFT: u32 = 48;
const MAX_EPOCH: u64 = (1 << 15) - 1;

/// Options of one store, whatever it stands on.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) profile: KeyProfile,
    pub(crate) names: Names,
    pub(crate) epoch: u64,
    pub(crate) request_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let (profile, names) = (KeyProfile::default(), Names::default());
        Self { profile, names, epoch: 0, request_timeout: REQUEST_TIMEOUT }
    }
}

impl Options {
    /// The keys of a lease.
    ///
    /// # Errors
    /// As [`KeyProfile::keys`].
    pub(crate) fn keys(&self, name: &str) -> Result<Keys> {
        self.profile.keys(self.names.known(name), name)
    }

    /// The keys of several leases, each its own.
    ///
    /// # Errors
    /// Two names that are known by the same, and as [`keys`](Self::keys).
    pub(crate) fn all_keys(&self, names: &[String]) -> Result<Arc<[Keys]>> {
        self.names.check(names)?;
        names.iter().map(|name| self.keys(name)).collect()
    }

    /// The keys of a record: nobody else has one, so its name is whole.
    ///
    /// # Errors
    /// As [`KeyProfile::keys`].
    pub(crate) fn record_keys(&self, name: &str) -> Result<Keys> {
        self.profile.keys(name, name)
    }

    pub(crate) fn check(&self) -> std::result::Result<(), ConfigError> {
        if self.epoch > MAX_EPOCH {
            return Err(ConfigError::new("epoch", self.epoch, "0 to 32,767"));
        }
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(60));
        if self.request_timeout < least || self.request_timeout > most {
            return Err(ConfigError::new(
                "request_timeout",
                format!("{:?}", self.request_timeout),
                "1 ms to 60 s",
            ));
        }
        if let KeyProfile::Prefixed(prefix) = &self.profile
            && (prefix.is_empty() || prefix.len() > 255)
        {
            return Err(ConfigError::new("profile", prefix, "a prefix of 1 to 255 bytes"));
        }
        Ok(())
    }
}

/// Settings of a [`RedisLeases`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `profile` | the name is the key | what most clients of other make do |
/// | `names` | whole | applications must not meet by accident |
/// | `epoch` | 0 | raise it when a name moves here from another store, or after a restore that went back |
/// | `request_timeout` | 500 ms | far above a round trip, far below a usual ttl |
#[derive(Clone)]
#[must_use]
pub struct Builder {
    url: String,
    options: Options,
}

/// Without its address, which may hold a password.
impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_owned(), options: Options::default() }
    }

    /// How names become keys.
    pub fn profile(mut self, profile: KeyProfile) -> Self {
        self.options.profile = profile;
        self
    }

    /// Which part of a name is the key: with [`Names::Bare`] that without its namespace, which is what clients of other
    /// make lock. Records keep theirs.
    pub fn names(mut self, names: Names) -> Self {
        self.options.names = names;
        self
    }

    /// The upper 15 bits of every token.
    pub fn epoch(mut self, epoch: u16) -> Self {
        self.options.epoch = epoch.into();
        self
    }

    /// Longest wait for one answer.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.options.request_timeout = limit;
        self
    }

    /// Checks the settings. Nothing is connected yet: the first call does that, or
    /// [`ready`](RedisLeases::ready).
    ///
    /// # Errors
    /// An URL that cannot be read, an epoch over 15 bits, a timeout outside 1 ms to 60 s, an empty prefix.
    pub fn build(self, rt: &Runtime) -> std::result::Result<RedisLeases, ConfigError> {
        self.options.check()?;
        let node = Node::new(&self.url, self.options.request_timeout, rt)?;
        Ok(RedisLeases::on(node, self.options, rt))
    }
}
