//! Nodes, their zones, and the sorted set of them that every placement stands on.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Index;
use std::sync::Arc;

use crate::error::ConfigError;

/// Most nodes of one placement: beyond it tables of points would pass a gigabyte.
pub const MAX_NODES: usize = 1 << 22;
/// Longest id or zone, in bytes; a host name has at most 255.
pub const MAX_NAME: usize = 1024;

/// The stable name of a node. Placement depends on it and never on a position in a list.
/// Take what stays with the data: a host name, a volume, a shard's label; never an address that a restart
/// changes. Not empty, at most [`MAX_NAME`] bytes, compared byte by byte.
///
/// ```
/// use mainstay_partition::NodeId;
///
/// let id = NodeId::from("cache-7");
/// assert_eq!((id.as_str(), id.to_string()), ("cache-7", "cache-7".to_owned()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for NodeId {
    fn from(s: &str) -> Self {
        Self(s.into())
    }
}

impl From<String> for NodeId {
    fn from(s: String) -> Self {
        Self(s.into())
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What fails together: a rack, a zone, a region.
/// ```
/// use mainstay_partition::{Node, Zone};
///
/// assert_eq!(Node::new("a").zone("eu-1a").zone, Some(Zone::from("eu-1a")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zone(Arc<str>);

impl Zone {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Zone {
    fn from(s: &str) -> Self {
        Self(s.into())
    }
}

impl From<String> for Zone {
    fn from(s: String) -> Self {
        Self(s.into())
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A node as its operator describes it.
///
/// ```
/// use mainstay_partition::Node;
///
/// let node = Node::new("cache-7").weight(2).zone("eu-1a");
/// assert_eq!((node.id.as_str(), node.weight), ("cache-7", 2));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Node {
    /// The stable name.
    pub id: NodeId,
    /// Its part of the load; 0 drains it: it keeps its place in the fleet and owns nothing.
    pub weight: u32,
    /// Where it stands. Nodes without a zone count as standing together in one unnamed zone.
    pub zone: Option<Zone>,
}

impl Node {
    /// A node of weight 1 without a zone.
    #[must_use]
    pub fn new(id: impl Into<NodeId>) -> Self {
        Self { id: id.into(), weight: 1, zone: None }
    }

    /// The same node with another weight.
    ///
    /// A share is the weight over the sum of all weights, so only ratios matter: 1 and 2 mean the same as 100 and 200,
    /// except to a [`Ring`](crate::Ring), whose points per unit of weight are counted (see
    /// [`RingBuilder::weight_unit`](crate::RingBuilder::weight_unit)). Weight 0 drains: the node stays known, so that it can
    /// hand over, and is nobody's owner.
    ///
    /// ```
    /// use mainstay_partition::{Node, Place, Rendezvous};
    ///
    /// let nodes = [Node::new("a"), Node::new("old").weight(0)];
    /// let place = Rendezvous::builder().nodes(nodes).build()?;
    /// let old = place.nodes().find("old").unwrap();
    /// assert_eq!(place.shares().of(old), 0.0);
    /// assert!(place.owners(b"user:17").all(|node| node != old));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn weight(mut self, weight: u32) -> Self {
        self.weight = weight;
        self
    }

    /// The same node in a zone.
    ///
    /// On its own a zone changes nothing: who asks for owners says over how many zones they are spread, with
    /// [`Owners::spread`](crate::Owners::spread), and the planner takes [`Spread`](crate::Spread) as a rule.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<Zone>) -> Self {
        self.zone = Some(zone.into());
        self
    }
}

/// The position of a node in the [`Nodes`] of one placement. It means nothing in another one.
/// Four bytes instead of a name, for tables and counters of your own. Between placements, carry the
/// [`NodeId`].
///
/// ```
/// use mainstay_partition::{Node, Place, Ring};
///
/// let ring = Ring::builder().nodes(["a", "b"].map(Node::new)).build()?;
/// let mut calls = vec![0; ring.nodes().len()];
/// calls[ring.owner(b"k").unwrap().as_usize()] += 1;
/// assert_eq!(calls.iter().sum::<i32>(), 1);
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeIdx(u32);

impl NodeIdx {
    /// The index with this number.
    #[must_use]
    pub const fn new(n: u32) -> Self {
        Self(n)
    }

    /// Its number.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Its number, for indexing.
    #[must_use]
    #[inline]
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

struct Inner {
    list: Vec<Node>,
    zones: Vec<Option<Zone>>,
    zone_of: Vec<u32>,
    total_weight: u64,
}

/// A checked set of nodes: sorted by id, no id twice. Cheap to clone.
///
/// The order in which nodes are given never matters.
///
/// ```
/// use mainstay_partition::{Node, Nodes};
///
/// let nodes = Nodes::new([Node::new("b").weight(2), Node::new("a")])?;
/// let ids: Vec<&str> = nodes.as_slice().iter().map(|node| node.id.as_str()).collect();
/// assert_eq!((ids, nodes.total_weight()), (vec!["a", "b"], 3));
/// assert_eq!(nodes[nodes.find("b").unwrap()].weight, 2);
/// let twice = Nodes::new(["a", "a"].map(Node::new)).unwrap_err();
/// assert_eq!((twice.field(), twice.value()), ("nodes.id", "a"));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone)]
pub struct Nodes(Arc<Inner>);

impl Nodes {
    /// Checks and sorts.
    ///
    /// # Errors
    /// An id twice, an empty or overlong id or zone, more than [`MAX_NODES`] nodes.
    pub fn new(nodes: impl IntoIterator<Item = Node>) -> Result<Self, ConfigError> {
        let mut list: Vec<Node> = nodes.into_iter().collect();
        list.sort_by(|a, b| a.id.cmp(&b.id));
        if let Some(pair) = list.windows(2).find(|w| w[0].id == w[1].id) {
            return Err(ConfigError::new("nodes.id", &pair[0].id, "each id once"));
        }
        Self::ordered(list)
    }

    /// Keeps the given order, which has a meaning of its own: numbered shards, the list of another product.
    pub(crate) fn numbered(list: Vec<Node>) -> Result<Self, ConfigError> {
        let mut seen = BTreeSet::new();
        if let Some(node) = list.iter().find(|n| !seen.insert(&n.id)) {
            return Err(ConfigError::new("nodes.id", &node.id, "each id once"));
        }
        Self::ordered(list)
    }

    fn ordered(list: Vec<Node>) -> Result<Self, ConfigError> {
        if list.len() > MAX_NODES {
            return Err(ConfigError::new("nodes", list.len(), format!("at most {MAX_NODES}")));
        }
        let mut names: BTreeMap<Option<Zone>, u32> = BTreeMap::new();
        for node in &list {
            check_name("nodes.id", node.id.as_str())?;
            if let Some(zone) = &node.zone {
                check_name("nodes.zone", zone.as_str())?;
            }
            names.insert(node.zone.clone(), 0);
        }
        for (number, slot) in (0_u32..).zip(names.values_mut()) {
            *slot = number;
        }
        let zone_of = list.iter().map(|n| names[&n.zone]).collect();
        let total_weight = list.iter().map(|n| u64::from(n.weight)).sum();
        let zones = names.into_keys().collect();
        Ok(Self(Arc::new(Inner { list, zones, zone_of, total_weight })))
    }

    /// The same, but a fleet of which no node has a weight is refused: nobody could own anything.
    pub(crate) fn weighted(nodes: impl IntoIterator<Item = Node>) -> Result<Self, ConfigError> {
        let nodes = Self::new(nodes)?;
        nodes.require_weight()?;
        Ok(nodes)
    }

    pub(crate) fn require_weight(&self) -> Result<(), ConfigError> {
        if !self.is_empty() && self.total_weight() == 0 {
            return Err(ConfigError::new("nodes.weight", 0, "at least one node with a weight"));
        }
        Ok(())
    }

    /// How many there are, drained ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.list.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.list.is_empty()
    }

    /// The node at `idx`.
    ///
    /// `None` for an index of a larger placement. An index of another placement that is in range names some node all the
    /// same: it cannot be told apart, so keep ids, not indexes, across a change.
    #[must_use]
    pub fn get(&self, idx: NodeIdx) -> Option<&Node> {
        self.0.list.get(idx.as_usize())
    }

    /// Where the node of this id stands.
    ///
    /// A binary search in a fleet sorted by id. Where the order has a meaning of its own (shards, the list of another
    /// system) the whole list is looked through: not for every request.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<NodeIdx> {
        let at = match self.0.list.binary_search_by(|n| n.id.as_str().cmp(id)) {
            Ok(at) => at,
            // Lists in an order of their own are not sorted.
            Err(_) => self.0.list.iter().position(|n| n.id.as_str() == id)?,
        };
        Some(index(at))
    }

    /// All nodes with their index.
    pub fn iter(&self) -> impl Iterator<Item = (NodeIdx, &Node)> {
        (0..).map(NodeIdx).zip(&self.0.list)
    }

    /// The nodes as a slice.
    #[must_use]
    pub fn as_slice(&self) -> &[Node] {
        &self.0.list
    }

    /// The sum of all weights.
    #[must_use]
    pub fn total_weight(&self) -> u64 {
        self.0.total_weight
    }

    /// The zones, sorted; `None` is the unnamed one.
    ///
    /// ```
    /// use mainstay_partition::{Node, Nodes, Zone};
    ///
    /// let nodes = Nodes::new([Node::new("a").zone("west"), Node::new("b").zone("east"), Node::new("c")])?;
    /// assert_eq!(nodes.zones(), [None, Some(Zone::from("east")), Some(Zone::from("west"))]);
    /// assert_eq!(nodes.zone_of(nodes.find("b").unwrap()), Some(1));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn zones(&self) -> &[Option<Zone>] {
        &self.0.zones
    }

    /// The position of the node's zone in [`Nodes::zones`].
    #[must_use]
    pub fn zone_of(&self, idx: NodeIdx) -> Option<usize> {
        self.0.zone_of.get(idx.as_usize()).map(|z| *z as usize)
    }
}

impl fmt::Debug for Nodes {
    /// How many nodes and zones; a fleet is too long for a line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nodes({} in {} zones)", self.len(), self.zones().len())
    }
}

impl Index<NodeIdx> for Nodes {
    type Output = Node;

    /// # Panics
    /// If `idx` comes from another placement and is too large. [`Nodes::get`] does not.
    fn index(&self, idx: NodeIdx) -> &Node {
        &self.0.list[idx.as_usize()]
    }
}

/// An index below [`MAX_NODES`].
pub(crate) fn index(at: usize) -> NodeIdx {
    NodeIdx(u32::try_from(at).expect("invariant: at most MAX_NODES nodes"))
}

fn check_name(field: &'static str, name: &str) -> Result<(), ConfigError> {
    if name.is_empty() || name.len() > MAX_NAME {
        let shown: String = name.chars().take(40).collect();
        return Err(ConfigError::new(field, shown, format!("1 to {MAX_NAME} bytes")));
    }
    Ok(())
}
