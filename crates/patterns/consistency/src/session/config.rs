//! What a session asks for, and how a router is set up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Deadline};
use mainstay_store::BoxFuture;
use mainstay_store::ReplicatedStore;

use super::router::Router;
use super::token::{Refusal, SessionToken};
use super::{Verdict, Why};
use crate::error::ConfigError;

/// Which of the four session guarantees hold (Terry et al., "Session Guarantees for Weakly Consistent Replicated
/// Data", PDIS 1994).
///
/// ```
/// use mainstay_consistency::session::Guarantees;
///
/// let both = Guarantees::READ_YOUR_WRITES | Guarantees::MONOTONIC_READS;
/// assert!(both.contains(Guarantees::MONOTONIC_READS));
/// assert!(!both.contains(Guarantees::ALL));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Guarantees(u8);

impl Guarantees {
    /// A read sees every earlier write of the session.
    pub const READ_YOUR_WRITES: Self = Self(1);
    /// A later read never sees less.
    pub const MONOTONIC_READS: Self = Self(2);
    /// The session's writes apply in their order.
    pub const MONOTONIC_WRITES: Self = Self(4);
    /// A write comes after what the session read before it.
    pub const WRITES_FOLLOW_READS: Self = Self(8);
    /// All four; the default, for it costs one comparison.
    pub const ALL: Self = Self(15);

    /// Whether all of `other` are among these.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    pub(crate) const fn any_of(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::ops::BitOr for Guarantees {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What one read asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Consistency {
    /// Whatever has at least what this token says.
    AtLeast(SessionToken),
    /// At most so stale.
    Bounded(Duration),
    /// Any replica of this system that answers.
    MinLatency,
    /// The primary.
    Primary,
    /// What the session's history asks for under these guarantees.
    Session(Guarantees),
}

/// What a router tells about its decisions.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEvent {
    /// Two nodes are on histories of one name that began at different places; this node is not read from.
    Forked {
        /// The node.
        node: String,
    },
    /// A read was refused, because what the session knows is gone or from elsewhere.
    Judged {
        /// Lost or Foreign.
        verdict: Verdict,
    },
    /// Another node is primary now.
    PrimaryChanged {
        /// The node.
        node: String,
    },
    /// A read was sent to the primary.
    ToPrimary {
        /// Why.
        why: Why,
    },
    /// A read was sent to a replica.
    ToReplica {
        /// The node.
        node: String,
        /// How long it waited for the replica.
        waited: Duration,
    },
    /// A text was no token.
    TokenRefused {
        /// Why.
        refusal: Refusal,
    },
}

pub(crate) type Listener = Arc<dyn Fn(&SessionEvent) + Send + Sync>;
pub(crate) type Connect<C> = Arc<dyn Fn() -> BoxFuture<'static, mainstay_store::Result<C>> + Send + Sync>;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_wait: Duration,
    pub(crate) poll_every: Duration,
    pub(crate) trust: Duration,
    pub(crate) call: Duration,
    pub(crate) waiters: usize,
}

/// Sets up a [`Router`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `max_wait` | 250 ms | ten times the usual lag; past it the primary is faster |
/// | `poll_every` | 250 ms | a sample per node and quarter second costs a server nothing |
/// | `trust` | 1 s | four polls: one lost answer does not send everybody to the primary |
/// | `call_timeout` | 1 s | connecting and asking a node |
/// | `max_waiters` | 64 per node | a replica that hangs must not hold every request |
pub struct RouterBuilder<C> {
    pub(crate) name: String,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) nodes: Vec<(String, Connect<C>)>,
    pub(crate) limits: Limits,
    pub(crate) listener: Option<Listener>,
}

impl<C> fmt::Debug for RouterBuilder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouterBuilder")
            .field("name", &self.name)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl<C: ReplicatedStore + 'static> RouterBuilder<C> {
    pub(crate) fn new(name: &str, clock: Arc<dyn Clock>) -> Self {
        let limits = Limits {
            max_wait: Duration::from_millis(250),
            poll_every: Duration::from_millis(250),
            trust: Duration::from_secs(1),
            call: Duration::from_secs(1),
            waiters: 64,
        };
        Self { name: name.to_owned(), clock, nodes: Vec::new(), limits, listener: None }
    }

    /// Adds a node by what connects to it. One node is one server: no virtual address, no balancer behind it. Which
    /// one is primary is observed, not configured.
    #[must_use]
    pub fn node<F>(mut self, name: &str, connect: F) -> Self
    where
        F: Fn() -> BoxFuture<'static, mainstay_store::Result<C>> + Send + Sync + 'static,
    {
        self.nodes.push((name.to_owned(), Arc::new(connect)));
        self
    }

    /// Adds a node by one connection that everybody shares.
    #[must_use]
    pub fn shared(self, name: &str, connection: C) -> Self
    where
        C: Clone,
    {
        self.node(name, move || {
            let connection = connection.clone();
            Box::pin(async move { Ok(connection) })
        })
    }

    /// Longest wait for a replica.
    #[must_use]
    pub fn max_wait(mut self, d: Duration) -> Self {
        self.limits.max_wait = d;
        self
    }

    /// How often each node is asked.
    #[must_use]
    pub fn poll_every(mut self, d: Duration) -> Self {
        self.limits.poll_every = d;
        self
    }

    /// How old an answer may be and still count.
    #[must_use]
    pub fn trust(mut self, d: Duration) -> Self {
        self.limits.trust = d;
        self
    }

    /// Longest time for connecting to a node or asking it.
    #[must_use]
    pub fn call_timeout(mut self, d: Duration) -> Self {
        self.limits.call = d;
        self
    }

    /// Most reads that wait for one node at a time.
    #[must_use]
    pub fn max_waiters(mut self, n: usize) -> Self {
        self.limits.waiters = n;
        self
    }

    /// Hears about every decision. It is called in the middle of reads, so it has to be quick.
    #[must_use]
    pub fn on_event(mut self, listener: impl Fn(&SessionEvent) + Send + Sync + 'static) -> Self {
        self.listener = Some(Arc::new(listener));
        self
    }

    /// The router. It knows nothing about its nodes before a poll; until then reads go to the primary.
    ///
    /// # Errors
    /// [`ConfigError`] for no node or more than 64, two of one name, times that are zero, or trust shorter than a poll.
    pub fn build(self) -> Result<Router<C>, ConfigError> {
        if self.nodes.is_empty() || self.nodes.len() > 64 {
            return Err(ConfigError::new("nodes", self.nodes.len(), "1 to 64"));
        }
        for (i, (name, _)) in self.nodes.iter().enumerate() {
            if self.nodes[..i].iter().any(|(other, _)| other == name) {
                return Err(ConfigError::new("nodes", format!("`{name}` twice"), "each name once"));
            }
        }
        let l = &self.limits;
        let hour = Duration::from_secs(3600);
        let times = [("max_wait", l.max_wait), ("poll_every", l.poll_every), ("call_timeout", l.call)];
        for (field, d) in times {
            if d.is_zero() || d > hour {
                return Err(ConfigError::new(field, format!("{d:?}"), "more than 0s, at most 1h"));
            }
        }
        if l.trust < l.poll_every || l.trust > hour {
            return Err(ConfigError::new("trust", format!("{:?}", l.trust), "poll_every to 1h"));
        }
        if l.waiters == 0 {
            return Err(ConfigError::new("max_waiters", 0, "at least 1"));
        }
        Ok(Router::new(self))
    }
}

/// How long a session's calls may take in all; the router's own limits count besides.
pub(crate) fn cap(deadline: Deadline, now: mainstay_clock::Instant, limit: Duration) -> Duration {
    deadline.remaining(now).map_or(limit, |left| left.min(limit))
}
