//! How reports travel.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Instant};

use crate::sync::Mutex;

/// The last report of one peer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerReport {
    /// The peer's name; the own node's is skipped by the reader.
    pub peer: Arc<str>,
    /// How long ago it was received.
    pub age: Duration,
    /// What it published.
    pub bytes: Arc<[u8]>,
}

impl PeerReport {
    /// A report of `peer`, received `age` ago.
    #[must_use]
    pub fn new(peer: Arc<str>, age: Duration, bytes: Arc<[u8]>) -> Self {
        Self { peer, age, bytes }
    }
}

/// Carries reports between nodes: a gossip, a store, or memory.
///
/// Neither method may block for long: they are called from the fleet's own task, never on the path of a call.
/// A transport that loses, delays or repeats reports only makes the fleet's advice older; one that is gone
/// leaves every breaker to itself. Reports are small (some tens of bytes per breaker) and only the last one of a peer
/// counts, so a transport may drop all others.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Makes `bytes` the last report of this node, best effort.
    fn publish(&self, bytes: &[u8]);

    /// The last report of every peer that was heard of.
    fn peers(&self) -> Vec<PeerReport>;
}

/// Reports within one process: for tests, and for several fleets in one program.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_resilience::fleet::{MemoryHub, Transport as _};
///
/// let hub = MemoryHub::new(Arc::new(SystemClock::new()));
/// let (a, b) = (hub.join("a"), hub.join("b"));
/// a.publish(b"hello");
/// assert_eq!(&*b.peers()[0].bytes, b"hello");
/// ```
#[derive(Clone, Debug)]
pub struct MemoryHub(Arc<Hub>);

#[derive(Debug)]
struct Hub {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: BTreeMap<Arc<str>, (Instant, Arc<[u8]>)>,
    down: bool,
}

impl MemoryHub {
    /// An empty hub; ages are those of `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Hub { clock, state: Mutex::new(State::default()) }))
    }

    /// The transport of the node named `peer`.
    #[must_use]
    pub fn join(&self, peer: impl Into<Arc<str>>) -> MemoryTransport {
        MemoryTransport { hub: Arc::clone(&self.0), peer: peer.into() }
    }

    /// Loses everything that is published, and every peer, while `down`.
    pub fn set_down(&self, down: bool) {
        self.0.state.lock().down = down;
    }
}

/// One node's side of a [`MemoryHub`].
#[derive(Clone, Debug)]
pub struct MemoryTransport {
    hub: Arc<Hub>,
    peer: Arc<str>,
}

impl Transport for MemoryTransport {
    fn publish(&self, bytes: &[u8]) {
        let now = self.hub.clock.now();
        let mut state = self.hub.state.lock();
        if !state.down {
            state.last.insert(Arc::clone(&self.peer), (now, bytes.into()));
        }
    }

    fn peers(&self) -> Vec<PeerReport> {
        let now = self.hub.clock.now();
        let state = self.hub.state.lock();
        if state.down {
            return Vec::new();
        }
        let others = state.last.iter().filter(|(peer, _)| **peer != self.peer);
        others
            .map(|(peer, (at, bytes))| PeerReport {
                peer: Arc::clone(peer),
                age: now.saturating_duration_since(*at),
                bytes: Arc::clone(bytes),
            })
            .collect()
    }
}
