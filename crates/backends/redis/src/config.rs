//! Options that a single Redis and a quorum share.

use std::fmt;
use std::time::Duration;

use mainstay_clock::Runtime;

use crate::ConfigError;
use crate::keys::KeyProfile;
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
    pub(crate) epoch: u64,
    pub(crate) request_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { profile: KeyProfile::default(), epoch: 0, request_timeout: REQUEST_TIMEOUT }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if self.epoch > MAX_EPOCH {
            return Err(ConfigError::new("epoch", self.epoch, "0 to 32,767"));
        }
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(60));
        if self.request_timeout < least || self.request_timeout > most {
            return Err(ConfigError::new("request_timeout", self.request_timeout, "1 ms to 60 s"));
        }
        if matches!(&self.profile, KeyProfile::Prefixed(p) if p.is_empty() || p.len() > 255) {
            return Err(ConfigError::new("profile", &self.profile, "a prefix of 1 to 255 bytes"));
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

    /// The upper 15 bits of every token.
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.options.epoch = epoch;
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
    pub fn build(self, rt: &Runtime) -> Result<RedisLeases, ConfigError> {
        self.options.check()?;
        let node = Node::new(&self.url, self.options.request_timeout, rt)?;
        Ok(RedisLeases::on(node, self.options, rt))
    }
}
