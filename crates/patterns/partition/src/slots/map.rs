//! The slot table: key to slot, slot to replicas.

use std::fmt;

use crate::error::ConfigError;
use crate::fingerprint::Canon;
use crate::hash::Hash;
use crate::node::{Node, NodeId, NodeIdx, Nodes};
use crate::owners::Owners;
use crate::place::{Place, Shares, sealed};
use crate::source::Source;

/// The profile's version.
const VERSION: u64 = 1;
/// Fewest slots: with fewer, a fleet of some hundred nodes cannot be balanced.
pub const MIN_SLOTS: usize = 1 << 12;
/// Most slots.
pub const MAX_SLOTS: usize = 1 << 16;
/// Slots unless told otherwise: the number of Redis Cluster, 16 per node at 1,000 nodes.
pub const DEFAULT_SLOTS: usize = 1 << 14;
/// Slots of a Redis Cluster: its hash has no others.
const REDIS_SLOTS: usize = 1 << 14;
/// No primary.
const NONE: u32 = u32::MAX;

/// How a key becomes a slot.
///
/// A map never changes it: every key would have another slot, and its data would be elsewhere.
///
/// ```
/// use mainstay_partition::slots::{SlotHash, SlotMap};
///
/// let map = SlotMap::builder(1).hash(SlotHash::Redis).build()?;
/// assert_eq!(map.slot(b"foo"), 12182);
/// assert_eq!(map.slot(b"{user1000}.following"), map.slot(b"{user1000}.followers"));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotHash {
    /// The low bits of a mixed 64-bit hash.
    Mixed(Hash),
    /// CRC16 with hash tags, as Redis Cluster does. Only for maps with its 16384 slots.
    Redis,
}

impl SlotHash {
    #[inline]
    fn hash(&self, key: &[u8]) -> u64 {
        match self {
            Self::Mixed(hash) => hash.key(key),
            Self::Redis => u64::from(crate::compat::redis_slot(key)),
        }
    }
}

/// A table of 2^12 to 2^16 slots; each has an ordered list of replicas, the primary first.
///
/// Nothing is computed from node names here: who owns what is what the table says. The planner makes and
/// changes such tables; the epoch says which one is newer.
///
/// ```
/// use mainstay_partition::{Node, Place, slots::SlotMap};
///
/// let nodes = ["a", "b"].map(Node::new);
/// let map = SlotMap::builder(1).nodes(nodes).replicas(|slot| match slot % 2 {
///     0 => vec!["a".into(), "b".into()],
///     _ => vec!["b".into(), "a".into()],
/// }).build()?;
/// let slot = map.slot(b"user:17");
/// assert_eq!(map.replicas(slot)[0], map.owner(b"user:17").unwrap());
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct SlotMap {
    nodes: Nodes,
    hash: SlotHash,
    epoch: u64,
    primary: Vec<u32>,
    starts: Vec<u32>,
    lists: Vec<NodeIdx>,
}

impl SlotMap {
    /// A builder of a map with this epoch.
    #[must_use]
    pub fn builder(epoch: u64) -> SlotMapBuilder {
        SlotMapBuilder {
            epoch,
            nodes: Vec::new(),
            slots: DEFAULT_SLOTS,
            hash: SlotHash::Mixed(Hash::default()),
            lists: None,
        }
    }

    /// Its epoch: of two maps the one with the higher epoch counts.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How many slots there are.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.primary.len()
    }

    /// How keys become slots.
    #[must_use]
    pub fn slot_hash(&self) -> SlotHash {
        self.hash
    }

    /// The slot of a key.
    #[must_use]
    #[inline]
    pub fn slot(&self, key: &[u8]) -> usize {
        self.slot_of_hash(self.hash.hash(key))
    }

    /// The slot of a hash: its low bits.
    #[must_use]
    #[inline]
    pub fn slot_of_hash(&self, hash: u64) -> usize {
        hash as usize & (self.primary.len() - 1)
    }

    /// The replicas of a slot, the primary first; empty when nobody holds it or there is no such slot.
    ///
    /// ```
    /// use mainstay_partition::{Node, slots::SlotMap};
    ///
    /// let only = SlotMap::builder(1)
    ///     .nodes(["a", "b"].map(Node::new))
    ///     .replicas(|slot| if slot == 0 { vec!["b".into(), "a".into()] } else { vec![] })
    ///     .build()?;
    /// let ids: Vec<_> = only.replicas(0).iter().map(|node| node.get()).collect();
    /// assert_eq!(ids, [1, 0], "the primary is the first");
    /// assert!(only.replicas(1).is_empty() && only.replicas(1 << 20).is_empty());
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn replicas(&self, slot: usize) -> &[NodeIdx] {
        match self.starts.get(slot..=slot.saturating_add(1)) {
            Some(pair) if pair.len() == 2 => &self.lists[pair[0] as usize..pair[1] as usize],
            _ => &[],
        }
    }

    /// The owner of a key; `None` when nobody holds its slot.
    #[must_use]
    #[inline]
    pub fn owner(&self, key: &[u8]) -> Option<NodeIdx> {
        self.owner_of_hash(self.hash.hash(key))
    }

    /// The owner of a key that is hashed already.
    #[must_use]
    #[inline]
    pub fn owner_of_hash(&self, hash: u64) -> Option<NodeIdx> {
        match self.primary.get(self.slot_of_hash(hash)) {
            Some(&n) if n != NONE => Some(NodeIdx::new(n)),
            _ => None,
        }
    }
}

impl fmt::Debug for SlotMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SlotMap")
            .field("epoch", &self.epoch)
            .field("slots", &self.slots())
            .field("nodes", &self.nodes)
            .field("hash", &self.hash)
            .finish_non_exhaustive()
    }
}

impl sealed::Sealed for SlotMap {}

impl Place for SlotMap {
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    #[inline]
    fn hash_of(&self, key: &[u8]) -> u64 {
        self.hash.hash(key)
    }

    #[inline]
    fn owner_of_hash(&self, hash: u64) -> Option<NodeIdx> {
        Self::owner_of_hash(self, hash)
    }

    #[inline]
    fn owners_of_hash(&self, hash: u64) -> Owners<'_> {
        Owners::new(&self.nodes, Source::List(self.replicas(self.slot_of_hash(hash)), 0))
    }

    /// The part of the slots whose primary a node is.
    fn shares(&self) -> Shares {
        let mut counts = vec![0.0; self.nodes.len()];
        for &n in self.primary.iter().filter(|n| **n != NONE) {
            counts[n as usize] += 1.0;
        }
        Shares::new(counts, &self.nodes)
    }

    /// Covers the replica lists and not the epoch: the same epoch with another fingerprint is a conflict.
    fn fingerprint(&self) -> u128 {
        let mut canon = Canon::profile("slots", VERSION);
        match &self.hash {
            SlotHash::Mixed(hash) => hash.canon(&mut canon),
            SlotHash::Redis => canon.text("redis"),
        }
        canon.number(self.primary.len() as u64);
        canon.nodes(&self.nodes);
        for slot in 0..self.slots() {
            let list = self.replicas(slot);
            canon.number(list.len() as u64);
            for idx in list {
                canon.number(u64::from(idx.get()));
            }
        }
        canon.finish()
    }
}

/// Settings of a [`SlotMap`].
///
/// You seldom write one by hand: [`Planner`](super::Planner) fills an empty map, and every map after that is the end of
/// a [`Plan`](super::Plan). Build one to load what was stored, or to say what another system holds now.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `slots` | 16384 | as many as a Redis Cluster has; 16 per node at 1,000 nodes |
/// | `hash` | XXH3-64, seed 0 | quick, and frozen in every language |
/// | `replicas` | nobody holds any | a plan gives them out |
#[derive(Clone, Debug)]
pub struct SlotMapBuilder {
    epoch: u64,
    nodes: Vec<Node>,
    slots: usize,
    hash: SlotHash,
    lists: Option<Vec<Vec<NodeId>>>,
}

impl SlotMapBuilder {
    /// The nodes, in any order.
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.nodes = nodes.into_iter().collect();
        self
    }

    /// How many slots: a power of two from [`MIN_SLOTS`] to [`MAX_SLOTS`]. Set it before
    /// [`SlotMapBuilder::replicas`]; a map never changes it.
    #[must_use]
    pub fn slots(mut self, slots: usize) -> Self {
        self.slots = slots;
        self
    }

    /// How keys become slots.
    #[must_use]
    pub fn hash(mut self, hash: SlotHash) -> Self {
        self.hash = hash;
        self
    }

    /// Who holds each slot, the primary first. Without it nobody holds any.
    #[must_use]
    pub fn replicas(mut self, list: impl FnMut(usize) -> Vec<NodeId>) -> Self {
        self.lists = Some((0..self.slots.min(MAX_SLOTS)).map(list).collect());
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// A number of slots that is no power of two or out of range, another one than 16384 with
    /// [`SlotHash::Redis`], a list that names an unknown node or one node twice, a refused set of nodes.
    ///
    /// # Examples
    /// ```
    /// use mainstay_partition::{Node, slots::SlotMap};
    ///
    /// let build = |slots, id: &str| {
    ///     let held = vec![id.into()];
    ///     SlotMap::builder(1).nodes([Node::new("a")]).slots(slots).replicas(move |_| held.clone()).build()
    /// };
    /// assert_eq!(build(4096, "a")?.slots(), 4096);
    /// assert_eq!(build(5000, "a").unwrap_err().field(), "slots");
    /// let unknown = build(4096, "b").unwrap_err();
    /// assert_eq!((unknown.field(), unknown.value()), ("replicas", "b of slot 0"));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    pub fn build(self) -> Result<SlotMap, ConfigError> {
        let nodes = Nodes::new(self.nodes)?;
        let lists = self.lists.unwrap_or_else(|| vec![Vec::new(); self.slots.min(MAX_SLOTS)]);
        let resolve = |slot: usize, id: &NodeId| {
            nodes.find(id.as_str()).ok_or_else(|| {
                ConfigError::new("replicas", format!("{id} of slot {slot}"), "ids of nodes of this map")
            })
        };
        let mut resolved = Vec::with_capacity(lists.len());
        for (slot, list) in lists.iter().enumerate() {
            resolved.push(list.iter().map(|id| resolve(slot, id)).collect::<Result<Vec<_>, _>>()?);
        }
        SlotMap::from_lists(nodes, self.hash, self.epoch, self.slots, &resolved)
    }
}

impl SlotMap {
    /// A map from lists of indexes into `nodes`, one per slot.
    ///
    /// # Errors
    /// A number of slots that is no power of two or out of range or differs from the number of lists, another
    /// one than 16384 with [`SlotHash::Redis`], an index beyond the nodes, one node twice in a list.
    pub fn from_lists(
        nodes: Nodes,
        hash: SlotHash,
        epoch: u64,
        slots: usize,
        lists: &[Vec<NodeIdx>],
    ) -> Result<Self, ConfigError> {
        if !slots.is_power_of_two() || !(MIN_SLOTS..=MAX_SLOTS).contains(&slots) || lists.len() != slots {
            let value = if lists.len() == slots { slots } else { lists.len() };
            let allowed = format!("a power of two from {MIN_SLOTS} to {MAX_SLOTS}, and one list per slot");
            return Err(ConfigError::new("slots", value, allowed));
        }
        // CRC16 reaches a quarter of 65536 slots and folds what a cluster tells apart into fewer than its own.
        if hash == SlotHash::Redis && slots != REDIS_SLOTS {
            let allowed = format!("{REDIS_SLOTS} with the hash of a Redis Cluster");
            return Err(ConfigError::new("slots", slots, allowed));
        }
        let mut map = Self {
            nodes,
            hash,
            epoch,
            primary: Vec::with_capacity(slots),
            starts: Vec::with_capacity(slots + 1),
            lists: Vec::new(),
        };
        map.starts.push(0);
        for (slot, list) in lists.iter().enumerate() {
            map.check_list(slot, list)?;
            map.primary.push(list.first().map_or(NONE, |i| i.get()));
            map.lists.extend_from_slice(list);
            let end = u32::try_from(map.lists.len())
                .map_err(|_| ConfigError::new("replicas", map.lists.len(), "below 2^32 in total"))?;
            map.starts.push(end);
        }
        Ok(map)
    }

    fn check_list(&self, slot: usize, list: &[NodeIdx]) -> Result<(), ConfigError> {
        for (at, idx) in list.iter().enumerate() {
            if self.nodes.get(*idx).is_none() {
                return Err(ConfigError::new(
                    "replicas",
                    format!("index {} of slot {slot}", idx.get()),
                    format!("below {}", self.nodes.len()),
                ));
            }
            if list[..at].contains(idx) {
                return Err(ConfigError::new(
                    "replicas",
                    format!("{} of slot {slot}", self.nodes[*idx].id),
                    "each node once per slot",
                ));
            }
        }
        Ok(())
    }
}
