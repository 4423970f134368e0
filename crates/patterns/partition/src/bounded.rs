//! Bounded loads: a hot node passes keys on to their next owners.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{ConfigError, Error, ErrorKind};
use crate::hash::mix64;
use crate::node::{NodeIdx, Nodes};
use crate::place::Place;

/// Largest factor: above it nothing is bounded.
const MAX_FACTOR: f64 = 1000.0;
/// Walks over the owners when concurrent calls change the counters under a walk.
const WALKS: usize = 3;
/// Counters of calls in flight by key, 8 KiB: a key shares its own with one in a thousand others, which
/// hardly ever have as many calls in flight as a hot key.
const CELLS: usize = 1 << 10;
/// A key is hot when its calls could fill this part of one node.
const HOT_PART: u64 = 4;

/// What happens when no owner has room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// The relatively least loaded of the probed owners takes it, unless it is at its hard limit.
    LeastLoaded,
    /// [`ErrorKind::AllFull`].
    #[default]
    Refuse,
}

/// How much load a node accepts, relative to all load in flight.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `factor` | 1.25 | the busiest node carries 1.3 times the mean, at one point of cache hits (Zipf 1.1; four at 0.9) |
/// | `min_gap` | 2 | an idle fleet must not spill: with one call in flight the relative bound would be 1 |
/// | `max_probes` | all owners | one always accepts |
/// | `hard_limit` | none | the relative bound needs none |
/// | `when_full` | refuse | a caller that queues or sheds knows better than a guess |
/// | `hot_keys_stay` | off | the plain rule costs two to three points of cache hits more, for one counter per call less |
#[derive(Clone, Debug, PartialEq)]
pub struct Load {
    factor: f64,
    min_gap: u32,
    max_probes: usize,
    hard_limit: Option<u64>,
    when_full: WhenFull,
    hot_keys_stay: bool,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            factor: 1.25,
            min_gap: 2,
            max_probes: usize::MAX,
            hard_limit: None,
            when_full: WhenFull::Refuse,
            hot_keys_stay: false,
        }
    }
}

impl Load {
    /// How many times its even share a node may carry, from 1 on.
    #[must_use]
    pub fn factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// How many calls above its even share a node may carry in any case.
    #[must_use]
    pub fn min_gap(mut self, gap: u32) -> Self {
        self.min_gap = gap;
        self
    }

    /// How many owners of a key are asked at most, from 1 on.
    #[must_use]
    pub fn max_probes(mut self, probes: usize) -> Self {
        self.max_probes = probes;
        self
    }

    /// How many calls one node may carry whatever the others do, from 1 on.
    #[must_use]
    pub fn hard_limit(mut self, calls: u64) -> Self {
        self.hard_limit = Some(calls);
        self
    }

    /// What happens when no probed owner has room.
    #[must_use]
    pub fn when_full(mut self, choice: WhenFull) -> Self {
        self.when_full = choice;
        self
    }

    /// Takes the plain rule of the paper: any key fills its owner up to the bound before it goes on.
    ///
    /// Without this, the room above a node's even share and `min_gap` is kept for keys that are not hot. A hot
    /// key is at home on many nodes soon, whereas every other key that its calls displace is a cache miss; so a
    /// key whose calls in flight could fill a quarter of a node goes on to its next owner earlier. The bound is
    /// the same: when no owner has room below its even share, a hot key takes what is left up to the bound.
    #[must_use]
    pub fn hot_keys_stay(mut self) -> Self {
        self.hot_keys_stay = true;
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        if !(1.0..=MAX_FACTOR).contains(&self.factor) {
            let allowed = format!("1 to {MAX_FACTOR}");
            return Err(ConfigError::new("factor", self.factor, allowed));
        }
        if self.max_probes == 0 {
            return Err(ConfigError::new("max_probes", 0, "at least 1"));
        }
        if self.hard_limit == Some(0) {
            return Err(ConfigError::new("hard_limit", 0, "at least 1"));
        }
        Ok(())
    }

    /// The load at which a node of weight `part` of the whole is full, with `all` calls in flight: for any key,
    /// and for one that yields.
    fn caps(&self, all: u64, part: f64) -> (u64, u64) {
        let all = all as f64;
        let relative = self.factor * (all + 1.0) * part;
        let absolute = all * part + f64::from(self.min_gap);
        let limit = self.hard_limit.unwrap_or(u64::MAX);
        let whole = |calls: f64| (calls.ceil().max(1.0) as u64).min(limit);
        (whole(relative.max(absolute)), whole(absolute))
    }
}

/// Counters that outlive a change of nodes: leases keep theirs.
struct Counters {
    fleet: Arc<Fleet>,
    of: Vec<Arc<AtomicU64>>,
}

/// Calls in flight on all nodes.
struct Fleet {
    total: AtomicU64,
    /// By key; empty when hot keys stay.
    keys: Box<[AtomicU64]>,
}

/// A placement whose nodes never carry much more than their share (Mirrokni, Thorup, Zadimoghaddam:
/// "Consistent Hashing with Bounded Loads", SODA 2018).
///
/// A key goes to its first owner with room, so hot keys spread over their next owners and come back. Counters
/// are this process's own: of N gateways each bounds what it sends, not what arrives.
///
/// ```
/// use mainstay_partition::{Bounded, Load, Node, Ring};
///
/// let ring = Ring::builder().nodes(["a", "b", "c", "d"].map(Node::new)).build()?;
/// let bounded = Bounded::new(ring, Load::default())?;
/// let hot: Vec<_> = (0..40).map(|_| bounded.acquire(b"one hot key")).collect::<Result<_, _>>()?;
/// assert!(bounded.nodes().iter().all(|(node, _)| bounded.in_flight(node) <= 13));
/// drop(hot);
/// assert_eq!(bounded.total_in_flight(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Bounded<P> {
    place: P,
    load: Load,
    counters: Counters,
    /// The part of its weight that each node takes. Whoever changes weights and sum holds it.
    parts: Mutex<Vec<f64>>,
    /// Weights after ramps, as the bits of f64, and their sum. A call that reads the sum before the weights never
    /// sees too small a share, but for a ramp down in between.
    weights: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl<P: Place> Bounded<P> {
    /// Bounds the loads of a placement.
    ///
    /// # Errors
    /// A factor that is not finite or below 1, zero probes, a hard limit of zero.
    pub fn new(place: P, load: Load) -> Result<Self, ConfigError> {
        let of = place.nodes().iter().map(|_| Arc::default()).collect();
        let cells = if load.hot_keys_stay { 0 } else { CELLS };
        let keys = (0..cells).map(|_| AtomicU64::new(0)).collect();
        let fleet = Arc::new(Fleet { total: AtomicU64::new(0), keys });
        let parts = vec![1.0; place.nodes().len()];
        Self::with(place, load, Counters { fleet, of }, parts)
    }

    fn with(place: P, load: Load, counters: Counters, parts: Vec<f64>) -> Result<Self, ConfigError> {
        load.check()?;
        let sum = AtomicU64::new(ramped(place.nodes(), &parts).sum::<f64>().to_bits());
        let weights = ramped(place.nodes(), &parts).map(|weight| AtomicU64::new(weight.to_bits())).collect();
        Ok(Self { place, load, counters, parts: Mutex::new(parts), weights, sum })
    }

    /// The same bounds over another set of nodes. Nodes known by the same id keep their count, so leases taken
    /// before are still counted, and given back, where they belong; they keep the part of their weight too that
    /// [`Bounded::ramp`] gave them, so that a slow start goes on.
    /// ```
    /// use mainstay_partition::{Bounded, Load, Node, Ring};
    ///
    /// let ring = |ids: &[&str]| Ring::builder().nodes(ids.iter().map(|id| Node::new(*id))).build();
    /// let old = Bounded::new(ring(&["a"])?, Load::default())?;
    /// let lease = old.acquire(b"a long stream")?;
    /// let new = old.moved_to(ring(&["a", "b"])?)?;
    /// assert_eq!((new.total_in_flight(), new.in_flight(new.nodes().find("a").unwrap())), (1, 1));
    /// drop(lease);
    /// assert_eq!(new.total_in_flight(), 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// None that [`Bounded::new`] has not.
    pub fn moved_to(&self, place: P) -> Result<Self, ConfigError> {
        let old = self.place.nodes();
        let keep = |id: &str| old.find(id).map(|i| Arc::clone(&self.counters.of[i.as_usize()]));
        let of = place.nodes().as_slice().iter().map(|n| keep(n.id.as_str()).unwrap_or_default()).collect();
        let parts = {
            let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
            let part = |id: &str| old.find(id).map_or(1.0, |i| parts[i.as_usize()]);
            place.nodes().as_slice().iter().map(|n| part(n.id.as_str())).collect()
        };
        Self::with(place, self.load.clone(), Counters { fleet: Arc::clone(&self.counters.fleet), of }, parts)
    }

    /// The placement below.
    pub fn place(&self) -> &P {
        &self.place
    }

    /// Its nodes.
    pub fn nodes(&self) -> &Nodes {
        self.place.nodes()
    }

    /// Calls in flight on a node.
    pub fn in_flight(&self, node: NodeIdx) -> u64 {
        self.counters.of.get(node.as_usize()).map_or(0, |n| n.load(Ordering::Acquire))
    }

    /// Calls in flight on all nodes, those of nodes that left included.
    pub fn total_in_flight(&self) -> u64 {
        self.counters.fleet.total.load(Ordering::Acquire)
    }

    /// Lets a node take only a part of its weight, 0 to 1: for a slow start, or 0 to leave it out. Which keys
    /// it owns does not change, only how many of them it accepts.
    /// ```
    /// use mainstay_partition::{Bounded, Load, Node, Ring};
    ///
    /// let ring = Ring::builder().nodes(["a", "b"].map(Node::new)).build()?;
    /// let bounded = Bounded::new(ring, Load::default())?;
    /// let a = bounded.nodes().find("a").unwrap();
    /// bounded.ramp(a, 0.0)?;
    /// let leases: Vec<_> = (0..50_u32).map(|i| bounded.acquire(&i.to_le_bytes())).collect::<Result<_, _>>()?;
    /// assert!(leases.iter().all(|lease| lease.node() != a));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// A part that is not a number from 0 to 1, an unknown node.
    pub fn ramp(&self, node: NodeIdx, part: f64) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&part) {
            return Err(ConfigError::new("part", part, "0 to 1"));
        }
        let Some(known) = self.place.nodes().get(node) else {
            let allowed = format!("below {}", self.weights.len());
            return Err(ConfigError::new("node", node.get(), allowed));
        };
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts[node.as_usize()] = part;
        let weight = f64::from(known.weight) * part;
        let sum: f64 = ramped(self.nodes(), &parts).sum();
        let (cell, grows) = (&self.weights[node.as_usize()], weight > self.weight(node));
        // In this order no share is too small meanwhile: no call is refused that has room.
        if grows {
            cell.store(weight.to_bits(), Ordering::Release);
        }
        self.sum.store(sum.to_bits(), Ordering::Release);
        cell.store(weight.to_bits(), Ordering::Release);
        Ok(())
    }

    /// Takes room on the first owner of the key that has some.
    ///
    /// Synchronous: there is no await to be cancelled at. The lease gives the room back when it is dropped, by
    /// a normal end, a cancelled future or a panic alike; hold it for the whole stream.
    ///
    /// # Errors
    /// [`ErrorKind::AllFull`]; [`ErrorKind::TooFewNodes`] when there is no node at all.
    pub fn acquire(&self, key: &[u8]) -> Result<Lease, Error> {
        self.acquire_among(key, |_| true, true)
    }

    /// The same among the nodes that `up` accepts. Their bounds are shares of the weight that is up, so the healthy
    /// ones take all the load. For a call that finds room at once `up` is asked about its owner alone, for others about
    /// every node.
    ///
    /// ```
    /// use mainstay_partition::{Bounded, Load, Node, NodeIdx, Ring};
    ///
    /// let ring = Ring::builder().nodes(["a", "b"].map(Node::new)).build()?;
    /// let bounded = Bounded::new(ring, Load::default())?;
    /// let down = NodeIdx::new(1);
    /// let leases: Vec<_> =
    ///     (0..50_u32).map(|i| bounded.acquire_healthy(&i.to_le_bytes(), |node| node != down)).collect::<Result<_, _>>()?;
    /// assert!(leases.iter().all(|lease| lease.node() != down));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::AllFull`]; [`ErrorKind::TooFewNodes`] when no node is up.
    pub fn acquire_healthy(&self, key: &[u8], up: impl Fn(NodeIdx) -> bool) -> Result<Lease, Error> {
        self.acquire_among(key, up, false)
    }

    /// `all_up` says that `up` accepts every node.
    fn acquire_among(&self, key: &[u8], up: impl Fn(NodeIdx) -> bool, all_up: bool) -> Result<Lease, Error> {
        let hash = self.place.hash_of(key);
        // Counted first: the sum over nodes never passes the total that caps are computed from.
        let entry = Entry::new(&self.counters.fleet, hash);
        let mut all = entry.all;
        let mut least: Option<(f64, NodeIdx, usize)> = None;
        for walk in 0..WALKS {
            least = None;
            if walk > 0 {
                // Others filled the nodes during the walk before: they raise the bounds that they filled them to.
                all = entry.others();
            }
            let mut sum = f64::from_bits(self.sum.load(Ordering::Acquire));
            // Bounds by the weight of all nodes are the lower ones: whoever has room by them has room.
            let mut exact = all_up;
            let owners = self.place.owners_of_hash(hash).healthy(&up);
            for (probe, node) in owners.take(self.load.max_probes).enumerate() {
                let weight = self.weight(node);
                if weight <= 0.0 || sum <= 0.0 {
                    continue;
                }
                let counter = &self.counters.of[node.as_usize()];
                let take = |sum: f64| {
                    let (cap, yielding) = self.load.caps(all, weight / sum);
                    let hot = entry.of_key >= cap.div_ceil(HOT_PART).max(2);
                    Room::below(counter, if hot && walk == 0 { yielding } else { cap })
                };
                let mut room = take(sum);
                if room.is_none() && !exact {
                    let nodes = self.place.nodes().iter().map(|(node, _)| node);
                    sum =
                        nodes.filter(|node| up(*node)).map(|node| self.weight(node)).sum::<f64>().max(weight);
                    exact = true;
                    room = take(sum);
                }
                if let Some(room) = room {
                    return Ok(Lease { node, probe, room, _entry: entry });
                }
                let relative = counter.load(Ordering::Acquire) as f64 / weight;
                if least.is_none_or(|(load, ..)| relative < load) {
                    least = Some((relative, node, probe));
                }
            }
        }
        let Some((_, node, probe)) = least else {
            let (have, need) = (0, 1);
            return Err(Error::new(ErrorKind::TooFewNodes { have, need }, "no node is up and has a weight"));
        };
        if self.load.when_full == WhenFull::LeastLoaded {
            let counter = &self.counters.of[node.as_usize()];
            let limit = self.load.hard_limit.unwrap_or(u64::MAX);
            if let Some(room) = Room::below(counter, limit) {
                return Ok(Lease { node, probe, room, _entry: entry });
            }
        }
        Err(Error::new(ErrorKind::AllFull, format!("every owner that may be asked is full; {all} in flight")))
    }

    fn weight(&self, node: NodeIdx) -> f64 {
        f64::from_bits(self.weights[node.as_usize()].load(Ordering::Acquire))
    }
}

/// What is left of the weights after ramps.
fn ramped<'a>(nodes: &'a Nodes, parts: &'a [f64]) -> impl Iterator<Item = f64> + 'a {
    nodes.as_slice().iter().zip(parts).map(|(node, part)| f64::from(node.weight) * part)
}

impl<P: fmt::Debug> fmt::Debug for Bounded<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bounded")
            .field("place", &self.place)
            .field("load", &self.load)
            .field("in_flight", &self.counters.fleet.total)
            .finish_non_exhaustive()
    }
}

/// One unit of a counter, given back on drop.
struct Room {
    counter: Arc<AtomicU64>,
    before: u64,
}

impl Room {
    /// Takes one unless `cap` are taken.
    fn below(counter: &Arc<AtomicU64>, cap: u64) -> Option<Self> {
        let before =
            counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < cap).then_some(n + 1)).ok()?;
        Some(Self { counter: Arc::clone(counter), before })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.counter.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One call in the fleet, wherever it goes; given back on drop.
struct Entry {
    fleet: Arc<Fleet>,
    cell: usize,
    /// Calls before this one, and those of its key; none when hot keys stay.
    all: u64,
    of_key: u64,
}

impl Entry {
    fn new(fleet: &Arc<Fleet>, hash: u64) -> Self {
        let cell = mix64(hash) as usize % CELLS;
        let all = fleet.total.fetch_add(1, Ordering::AcqRel);
        let of_key = fleet.keys.get(cell).map_or(0, |calls| calls.fetch_add(1, Ordering::AcqRel));
        Self { fleet: Arc::clone(fleet), cell, all, of_key }
    }

    /// Calls beside this one now.
    fn others(&self) -> u64 {
        self.fleet.total.load(Ordering::Acquire).saturating_sub(1)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(calls) = self.fleet.keys.get(self.cell) {
            calls.fetch_sub(1, Ordering::AcqRel);
        }
        self.fleet.total.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Room for one call on one node. Given back exactly once, when it is dropped.
/// ```
/// use mainstay_partition::{Bounded, Load, Node, Ring};
///
/// let ring = Ring::builder().nodes(["a", "b"].map(Node::new)).build()?;
/// let bounded = Bounded::new(ring, Load::default())?;
/// let lease = bounded.acquire(b"k")?;
/// assert_eq!((lease.spilled(), lease.load_before()), (0, 0));
/// assert_eq!(bounded.in_flight(lease.node()), 1);
/// drop(lease);
/// assert_eq!(bounded.total_in_flight(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use = "the room is given back when the lease is dropped"]
pub struct Lease {
    node: NodeIdx,
    probe: usize,
    // Before the total: the sum over nodes stays below it.
    room: Room,
    _entry: Entry,
}

impl Lease {
    /// The node to call.
    #[must_use]
    pub fn node(&self) -> NodeIdx {
        self.node
    }

    /// How many owners of the key were passed over; 0 on its first owner.
    #[must_use]
    pub fn spilled(&self) -> usize {
        self.probe
    }

    /// Calls in flight on the node when this one was admitted, without it.
    #[must_use]
    pub fn load_before(&self) -> u64 {
        self.room.before
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("node", &self.node)
            .field("spilled", &self.probe)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::{Bounded, Load};
    use crate::node::{Node, NodeIdx};
    use crate::ring::Ring;

    /// Two ramps that overlap must not leave a sum that lacks one of them: it would stay wrong for good.
    #[test]
    fn ramps_of_two_threads_leave_the_sum_of_the_weights() {
        // Many nodes, so that a sum takes long enough to be overtaken.
        let ring =
            Ring::builder().points(1).nodes((0..2000).map(|i| Node::new(i.to_string()))).build().unwrap();
        let bounded = Bounded::new(ring, Load::default()).unwrap();
        let (start, wrong) = (Barrier::new(2), AtomicBool::new(false));
        let value = |cell: &AtomicU64| f64::from_bits(cell.load(Ordering::Acquire));
        let ramp = |node: u32| {
            for round in 0..1000_u32 {
                start.wait();
                bounded.ramp(NodeIdx::new(node), f64::from(1 + (round + node) % 8) / 8.0).unwrap();
                start.wait();
                let weights: f64 = bounded.weights.iter().map(value).sum();
                wrong.fetch_or(value(&bounded.sum) != weights, Ordering::AcqRel);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| ramp(0));
            ramp(1);
        });
        assert!(!wrong.into_inner(), "a sum without one of the two ramps");
    }
}
