//! Options of anti-entropy.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use crate::error::ConfigError;
use crate::hash::DigestKey;
use crate::hlc::Hlc;
use crate::replicate::{AntiEntropy, Replicated};

/// Largest message by default: one datagram on every network.
const MAX_MESSAGE: usize = 1_200;
/// Smallest allowed: a root, or a range with its sums, must fit.
const MIN_MESSAGE: usize = 512;
/// Largest allowed: what one read of a stream takes without a second thought.
const LARGEST_MESSAGE: usize = 64 << 10;
/// Bytes of deltas kept for peers that are behind; what a minute of heavy writing makes.
const LOG_BYTES: usize = 1 << 20;
/// Bytes for one peer per tick: at three ticks a second, under 200 KiB per second even in a repair.
const BUDGET: usize = 64 << 10;
/// Peers per tick, as the rivals have it.
const FANOUT: usize = 3;

/// The options; made by [`AntiEntropyConfig::builder`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `max_message` | 1,200 bytes | one datagram |
/// | `log_bytes` | 1 MiB | peers that are further behind repair by digests |
/// | `budget` | 64 KiB | for one peer and tick; deltas first, repairs with the rest |
/// | `largest_change` | as `max_message` | one way to send is the rule |
/// | `fanout` | 3 | rounds to converge grow with the logarithm of the fleet |
/// | `clock` | none | most types have no stamps |
/// | `merge_version`, `accepts` | 1, only 1 | nodes with other merge code are refused by name |
#[derive(Clone, Debug)]
pub struct AntiEntropyConfig {
    pub(super) me: u64,
    pub(super) members: BTreeSet<u64>,
    pub(super) removed: BTreeSet<u64>,
    pub(super) key: DigestKey,
    pub(super) session: u64,
    pub(super) max_message: usize,
    pub(super) log_bytes: usize,
    pub(super) budget: usize,
    pub(super) fanout: usize,
    pub(super) schema: u32,
    pub(super) merge_version: u32,
    pub(super) accepts: RangeInclusive<u32>,
    pub(super) largest_change: usize,
    pub(super) keep_all: bool,
    pub(super) root_first: bool,
    pub(super) clock: Option<Hlc>,
}

impl AntiEntropyConfig {
    /// Options of the node `me`. `session` must differ at every start of the node: draw it at random. It is what makes
    /// sequence numbers of an earlier run meaningless.
    #[must_use]
    pub fn builder(me: u64, session: u64, key: DigestKey) -> Builder {
        Builder(Self {
            me,
            members: BTreeSet::from([me]),
            removed: BTreeSet::new(),
            key,
            session,
            max_message: MAX_MESSAGE,
            log_bytes: LOG_BYTES,
            budget: BUDGET,
            fanout: FANOUT,
            schema: 1,
            merge_version: 1,
            accepts: 1..=1,
            largest_change: 0,
            keep_all: false,
            root_first: false,
            clock: None,
        })
    }
}

/// Builds an [`AntiEntropy`].
#[derive(Clone, Debug)]
pub struct Builder(AntiEntropyConfig);

impl Builder {
    /// The configured members. They, and only they, decide what may be forgotten.
    #[must_use]
    pub fn members(mut self, members: impl IntoIterator<Item = u64>) -> Self {
        self.0.members.extend(members);
        self
    }

    /// Members that were removed before this start, as [`AntiEntropy::removed`] told them. What they would bring back may
    /// be forgotten, so they stay refused; one that is configured again is a member again.
    #[must_use]
    pub fn removed(mut self, members: impl IntoIterator<Item = u64>) -> Self {
        self.0.removed.extend(members);
        self
    }

    /// Largest message in bytes.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.0.max_message = bytes;
        self
    }

    /// What a message may have whose contents cannot be split: one large change. For transports with a second way for
    /// what does not fit into a datagram. Less than `max_message` counts as that.
    #[must_use]
    pub fn largest_change(mut self, bytes: usize) -> Self {
        self.0.largest_change = bytes;
        self
    }

    /// Forgets nothing, whoever acknowledged it: for fleets that have no list of members. What is hidden stays.
    #[must_use]
    pub fn keep_all(mut self) -> Self {
        self.0.keep_all = true;
        self
    }

    /// Answers a differing root with the changes of the log before anything costlier, and with the own root, so that
    /// the sender does the same. For callers that send roots by [`greet`](AntiEntropy::greet).
    #[must_use]
    pub fn root_first(mut self) -> Self {
        self.0.root_first = true;
        self
    }

    /// Holds back what peers stamped further ahead of this clock than its skew allows, until its time has come
    /// ([`FromTheFuture`](crate::replicate::Event::FromTheFuture) tells), and lets the clock take note of every other
    /// stamp. Without it a peer whose clock is hours ahead wins every conflict of an [`LwwMap`](crate::crdt::LwwMap) or
    /// an [`LwwRegister`](crate::crdt::LwwRegister), and nobody else can write what it wrote.
    #[must_use]
    pub fn clock(mut self, clock: Hlc) -> Self {
        self.0.clock = Some(clock);
        self
    }

    /// Bytes of deltas kept for peers that are behind.
    #[must_use]
    pub fn log_bytes(mut self, bytes: usize) -> Self {
        self.0.log_bytes = bytes;
        self
    }

    /// Bytes for one peer per tick.
    #[must_use]
    pub fn budget(mut self, bytes: usize) -> Self {
        self.0.budget = bytes;
        self
    }

    /// Peers per tick.
    #[must_use]
    pub fn fanout(mut self, peers: usize) -> Self {
        self.0.fanout = peers;
        self
    }

    /// The version of the data's schema: nodes with another one are refused by name.
    #[must_use]
    pub fn schema(mut self, version: u32) -> Self {
        self.0.schema = version;
        self
    }

    /// The version of the merge code, and those it gets along with.
    #[must_use]
    pub fn merge_version(mut self, version: u32, accepts: RangeInclusive<u32>) -> Self {
        (self.0.merge_version, self.0.accepts) = (version, accepts);
        self
    }

    /// Starts with `state`: empty, or what a snapshot held.
    ///
    /// # Errors
    /// `max_message` outside 512 bytes to 64 KiB, `largest_change` above 64 KiB, a `budget` below one message, a `fanout` of zero, `accepts` without
    /// the own version.
    pub fn build<T: Replicated>(self, state: T) -> Result<AntiEntropy<T>, ConfigError> {
        let c = self.0;
        if !(MIN_MESSAGE..=LARGEST_MESSAGE).contains(&c.max_message) {
            return Err(ConfigError::new("max_message", c.max_message, "512 to 65536"));
        }
        if c.largest_change > LARGEST_MESSAGE {
            return Err(ConfigError::new("largest_change", c.largest_change, "at most 65536"));
        }
        let least = c.max_message.max(c.largest_change);
        if c.budget < least {
            let allowed = format!("at least max_message and largest_change ({least})");
            return Err(ConfigError::new("budget", c.budget, allowed));
        }
        if c.fanout == 0 {
            return Err(ConfigError::new("fanout", c.fanout, "at least 1"));
        }
        if !c.accepts.contains(&c.merge_version) {
            return Err(ConfigError::new(
                "accepts",
                format!("{:?}", c.accepts),
                format!("contains {}", c.merge_version),
            ));
        }
        Ok(AntiEntropy::start(c, state))
    }
}
