//! Which members count, while discovery flaps.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_clock::Instant;

use crate::error::ConfigError;
use crate::node::{Node, NodeId};

/// Settings of a [`Damper`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `settle` | 30 s | longer than a restart: a node that leaves and returns within it moves nothing |
/// | `memory` | 10 min | a node that flapped within it must be steady longer |
/// | `longest` | 10 min | the most that a flapping node waits |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamperConfig {
    settle: Duration,
    memory: Duration,
    longest: Duration,
}

impl Default for DamperConfig {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(30),
            memory: Duration::from_secs(600),
            longest: Duration::from_secs(600),
        }
    }
}

impl DamperConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a node must be there, or gone, until it counts.
    #[must_use]
    pub fn settle(mut self, d: Duration) -> Self {
        self.settle = d;
        self
    }

    /// How long a flap is remembered. Each one that is doubles the time to settle.
    ///
    /// A node that flaps five times within it waits 32 times `settle`, at most `longest`, so that a crash
    /// loop does not move keys at every restart.
    #[must_use]
    pub fn memory(mut self, d: Duration) -> Self {
        self.memory = d;
        self
    }

    /// The most that the time to settle grows to.
    #[must_use]
    pub fn longest(mut self, d: Duration) -> Self {
        self.longest = d;
        self
    }
}

#[derive(Debug)]
struct Track {
    node: Node,
    /// Whether it counts.
    counts: bool,
    /// Whether discovery shows it.
    shown: bool,
    since: Instant,
    /// Flaps that are remembered, and when the last one was.
    flaps: u32,
    last_flap: Instant,
}

/// Turns what discovery shows into what a topology should hold: a node joins or leaves only after it has been
/// steady, and the longer the more it flapped (the idea of route flap damping, RFC 2439).
///
/// A change of weight or zone of a node that counts goes through at once: it is a decision, not a flap. Pure:
/// time goes in with every observation.
///
/// ```
/// use std::time::Duration;
/// use mainstay_clock::Instant;
/// use mainstay_partition::{Node, topology::{Damper, DamperConfig}};
///
/// let at = |s: u64| Instant::from_nanos(s * 1_000_000_000);
/// let mut damper = Damper::new(["a", "b"].map(Node::new), DamperConfig::new(), at(0))?;
/// assert_eq!(damper.observe([Node::new("a")], at(1)), None);
/// assert_eq!(damper.observe(["a", "b"].map(Node::new), at(9)), None);
/// let gone = damper.observe([Node::new("a")], at(10)).or_else(|| damper.observe([Node::new("a")], at(99)));
/// assert_eq!(gone, Some(vec![Node::new("a")]));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Debug)]
pub struct Damper {
    config: DamperConfig,
    tracks: BTreeMap<NodeId, Track>,
}

impl Damper {
    /// Starts with nodes that count.
    ///
    /// # Errors
    /// A `settle` of zero, or above `longest`.
    pub fn new(
        nodes: impl IntoIterator<Item = Node>,
        config: DamperConfig,
        now: Instant,
    ) -> Result<Self, ConfigError> {
        if config.settle.is_zero() || config.settle > config.longest {
            let (value, allowed) =
                (format!("{:?}", config.settle), format!("above 0, at most {:?}", config.longest));
            return Err(ConfigError::new("settle", value, allowed));
        }
        let track =
            |node: Node| Track { node, counts: true, shown: true, since: now, flaps: 0, last_flap: now };
        let tracks = nodes.into_iter().map(|n| (n.id.clone(), track(n))).collect();
        Ok(Self { config, tracks })
    }

    /// Takes in what discovery shows now. `Some` with all nodes that count, sorted, when that changed.
    pub fn observe(&mut self, shown: impl IntoIterator<Item = Node>, now: Instant) -> Option<Vec<Node>> {
        let mut shown: BTreeMap<NodeId, Node> = shown.into_iter().map(|n| (n.id.clone(), n)).collect();
        let mut changed = false;
        for (id, track) in &mut self.tracks {
            let new = shown.remove(id);
            if track.shown != new.is_some() {
                // A node that goes back to where it counts flapped; one that turns from there may yet settle.
                if track.counts == new.is_some() {
                    let forgotten = now.saturating_duration_since(track.last_flap) > self.config.memory;
                    track.flaps = if forgotten { 1 } else { track.flaps.saturating_add(1) };
                    track.last_flap = now;
                }
                track.shown = new.is_some();
                track.since = now;
            }
            if let Some(node) = new {
                changed |= track.counts && track.node != node;
                track.node = node;
            }
        }
        for (id, node) in shown {
            let track = Track { node, counts: false, shown: true, since: now, flaps: 0, last_flap: now };
            self.tracks.insert(id, track);
        }
        let config = &self.config;
        for track in self.tracks.values_mut().filter(|t| t.counts != t.shown) {
            if now.saturating_duration_since(track.since) >= wait(config, track, now) {
                track.counts = track.shown;
                changed = true;
            }
        }
        self.tracks
            .retain(|_, t| t.counts || t.shown || now.saturating_duration_since(t.since) <= config.memory);
        changed.then(|| self.nodes())
    }

    /// All nodes that count, sorted by id.
    #[must_use]
    pub fn nodes(&self) -> Vec<Node> {
        self.tracks.values().filter(|t| t.counts).map(|t| t.node.clone()).collect()
    }
}

/// How long this node must be steady.
fn wait(config: &DamperConfig, track: &Track, now: Instant) -> Duration {
    let forgotten = now.saturating_duration_since(track.last_flap) > config.memory;
    let flaps = if forgotten { 0 } else { track.flaps.min(31) };
    config.settle.saturating_mul(1 << flaps).min(config.longest)
}
