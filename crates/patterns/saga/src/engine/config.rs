//! Options of the engine.

use std::num::NonZeroUsize;
use std::time::Duration;

use crate::{Error, ErrorKind};

/// Options of an [`Engine`](crate::Engine).
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `node` | `"local"` | one engine per embedded journal |
/// | `claim_ttl` | 10 s | takeover in under 11 s; two lost renewals survive |
/// | `max_in_flight` | 10,000 sagas | bounds memory |
/// | `claim_batch` | 256 | a fair share between nodes |
/// | `poll` | 1 s | bounds a lost notification |
/// | `undo_slots` | 1 | exactly reverse start order |
/// | `keep_completed` | 7 days | status questions after the fact |
/// | `keep_compensated` | 30 days | evidence where something went wrong |
/// | `keep_tombstones` | 90 days | late duplicate starts are still answered |
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Name of this node; its claims survive its restart under this name.
    pub node: String,
    /// How long claims last without renewal.
    pub claim_ttl: Duration,
    /// Most sagas in memory.
    pub max_in_flight: NonZeroUsize,
    /// Most claims at once.
    pub claim_batch: NonZeroUsize,
    /// How often due sagas are looked for without a hint.
    pub poll: Duration,
    /// Undos of one saga in flight.
    pub undo_slots: NonZeroUsize,
    /// How long completed sagas are kept.
    pub keep_completed: Duration,
    /// How long compensated and abandoned sagas are kept.
    pub keep_compensated: Duration,
    /// How long identities and replies of purged sagas are kept.
    pub keep_tombstones: Duration,
}

const DAY: Duration = Duration::from_secs(86_400);

impl Default for Config {
    fn default() -> Self {
        const fn count(n: usize) -> NonZeroUsize {
            match NonZeroUsize::new(n) {
                Some(n) => n,
                None => NonZeroUsize::MIN,
            }
        }
        Self {
            node: "local".to_owned(),
            claim_ttl: Duration::from_secs(10),
            max_in_flight: count(10_000),
            claim_batch: count(256),
            poll: Duration::from_secs(1),
            undo_slots: NonZeroUsize::MIN,
            keep_completed: DAY * 7,
            keep_compensated: DAY * 30,
            keep_tombstones: DAY * 90,
        }
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), Error> {
        let refuse = |field: &str, value: &dyn std::fmt::Debug, allowed: &str| {
            Err(Error::new(ErrorKind::Config, format!("engine `{field}` is {value:?}; allowed: {allowed}")))
        };
        if self.node.is_empty() || self.node.len() > 255 || self.node.chars().any(char::is_control) {
            return refuse("node", &self.node, "1 to 255 bytes without control characters");
        }
        if self.claim_ttl < Duration::from_millis(300) || self.claim_ttl > DAY {
            return refuse("claim_ttl", &self.claim_ttl, "300ms to 1day");
        }
        if self.poll < Duration::from_millis(1) || self.poll > Duration::from_secs(3_600) {
            return refuse("poll", &self.poll, "1ms to 1h");
        }
        Ok(())
    }
}
