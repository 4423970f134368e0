//! The consistent-hash ring: virtual nodes with 64-bit points.

use crate::error::ConfigError;
use crate::fingerprint::Canon;
use crate::hash::{Hash, mix64};
use crate::node::{Node, NodeIdx, Nodes};
use crate::owners::Owners;
use crate::place::{Place, Shares, place_by_hash, sealed};
use crate::points::Points;
use crate::source::Source;
use crate::warning::Warning;

/// The profile's version: a changed default, seed or tie rule is a new one.
const VERSION: u64 = 1;
/// Most points of one ring. At about 18.5 bytes each that is 74 MiB.
pub const MAX_POINTS: usize = 1 << 22;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
/// Below it the share of a node deviates by more than 16% (`1/sqrt(v)`), and with a handful of points a node
/// may get nearly everything.
const FEW_POINTS: u64 = 40;

/// A ring of virtual nodes (Karger et al.: "Consistent Hashing and Random Trees", STOC 1997).
///
/// Adding a node moves keys only *to* it, removing one moves only *its* keys, and a raised weight moves keys
/// only to the node whose weight rose: the number of a node's points depends on that node alone, and a
/// heavier node has the same points and more. Shares deviate by about `1/sqrt(points)`, 8% at 160;
/// [`Place::shares`] has the exact ones.
///
/// ```
/// use mainstay_partition::{Node, Place, Ring};
///
/// let ring = Ring::builder().nodes(["a", "b", "c"].map(Node::new)).build()?;
/// let owner = ring.owner(b"user:17").unwrap();
/// let without: Vec<Node> = ring.nodes().iter().filter(|(i, _)| *i != owner).map(|(_, n)| n.clone()).collect();
/// let next = ring.owners(b"user:17").nth(1).unwrap();
/// let smaller = Ring::builder().nodes(without).build()?;
/// assert_eq!(smaller.nodes()[smaller.owner(b"user:17").unwrap()], ring.nodes()[next]);
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Ring {
    nodes: Nodes,
    hash: Hash,
    points: Points,
    points_per_unit: u32,
    weight_unit: u32,
}

impl Ring {
    /// A builder with the defaults.
    #[must_use]
    pub fn builder() -> RingBuilder {
        RingBuilder::default()
    }

    /// How many points there are.
    #[must_use]
    pub fn points(&self) -> usize {
        self.points.len()
    }

    /// Memory of the table, without the nodes' names.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.points.bytes()
    }

    /// The most points in one bucket of the index. Even names give eight on average and hardly more than 28; above
    /// sixteen, the lookups that pass the sixteenth halve what is there.
    #[must_use]
    pub fn longest_scan(&self) -> u32 {
        self.points.longest()
    }

    /// What an operator should know before this ring is used.
    /// ```
    /// use mainstay_partition::{Node, Ring, Warning};
    ///
    /// let ring = Ring::builder().points(3).nodes(["a", "b"].map(Node::new)).build()?;
    /// assert!(matches!(ring.warnings()[0], Warning::FewPoints { points: 3, .. }));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let counts = self.nodes.iter().map(|(i, n)| (i, self.count(n.weight)));
        counts
            .filter(|(_, count)| (1..FEW_POINTS).contains(count))
            .map(|(node, points)| Warning::FewPoints { node, points })
            .collect()
    }

    /// The owner of a key; `None` when there are no nodes.
    #[must_use]
    #[inline]
    pub fn owner(&self, key: &[u8]) -> Option<NodeIdx> {
        self.owner_of_hash(self.hash.key(key))
    }

    /// The owner of a key that is hashed already.
    #[must_use]
    #[inline]
    pub fn owner_of_hash(&self, hash: u64) -> Option<NodeIdx> {
        self.points.owner(hash).map(NodeIdx::new)
    }

    /// Every node with points, each once, clockwise from the key.
    #[must_use]
    #[inline(always)]
    pub fn owners(&self, key: &[u8]) -> Owners<'_> {
        self.walk(self.hash.key(key))
    }

    #[inline(always)]
    fn walk(&self, hash: u64) -> Owners<'_> {
        Owners::new(&self.nodes, Source::Points(self.points.walk(hash)))
    }

    fn count(&self, weight: u32) -> u64 {
        count(self.points_per_unit, weight, self.weight_unit)
    }
}

/// Points of a node: `points_per_unit * weight / weight_unit`, rounded, at least one; none for weight 0.
fn count(points_per_unit: u32, weight: u32, weight_unit: u32) -> u64 {
    if weight == 0 {
        return 0;
    }
    // Below 2^64: the product of two u32 plus half a u32.
    let product = u64::from(points_per_unit) * u64::from(weight) + u64::from(weight_unit / 2);
    (product / u64::from(weight_unit)).max(1)
}

impl sealed::Sealed for Ring {}

impl Place for Ring {
    place_by_hash!();

    #[inline]
    fn owners_of_hash(&self, hash: u64) -> Owners<'_> {
        self.walk(hash)
    }

    fn shares(&self) -> Shares {
        Shares::new(self.points.arcs(self.nodes.len()), &self.nodes)
    }

    fn fingerprint(&self) -> u128 {
        let mut canon = Canon::profile("ring", VERSION);
        self.hash.canon(&mut canon);
        canon.number(u64::from(self.points_per_unit));
        canon.number(u64::from(self.weight_unit));
        canon.nodes(&self.nodes);
        canon.finish()
    }
}

/// Settings of a [`Ring`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `points` | 160 | shares within about 8%; the number ketama and nginx made usual |
/// | `weight_unit` | 1 | weight 2 is twice the points of weight 1 |
/// | `hash` | XXH3-64, seed 0 | the fastest hash that is frozen in every language |
#[derive(Clone, Debug)]
pub struct RingBuilder {
    nodes: Vec<Node>,
    points: u32,
    weight_unit: u32,
    hash: Hash,
}

impl Default for RingBuilder {
    fn default() -> Self {
        Self { nodes: Vec::new(), points: 160, weight_unit: 1, hash: Hash::default() }
    }
}

impl RingBuilder {
    /// The nodes, in any order.
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.nodes = nodes.into_iter().collect();
        self
    }

    /// Points of a node per `weight_unit` of weight.
    #[must_use]
    pub fn points(mut self, points: u32) -> Self {
        self.points = points;
        self
    }

    /// The 150 points per node of the textbook.
    #[must_use]
    pub fn textbook(self) -> Self {
        self.points(150)
    }

    /// The weight that stands for `points` points. With weights like 100 and 150, set it to 100.
    /// It is a constant of the fleet, not of its members: were it computed from the weights of today, one node's
    /// change would move the points of all.
    ///
    /// ```
    /// use mainstay_partition::{Node, Ring};
    ///
    /// let nodes = [Node::new("a").weight(100), Node::new("b").weight(150)];
    /// assert_eq!(Ring::builder().points(160).weight_unit(100).nodes(nodes).build()?.points(), 160 + 240);
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn weight_unit(mut self, unit: u32) -> Self {
        self.weight_unit = unit;
        self
    }

    /// How keys and names are hashed.
    #[must_use]
    pub fn hash(mut self, hash: Hash) -> Self {
        self.hash = hash;
        self
    }

    /// Checks everything and sorts the points.
    ///
    /// # Errors
    /// A duplicate or empty id, zero points or unit, weights that are all zero, more points than the cap of
    /// 2^22 (it names the node whose weight passes it). Points are never scaled down silently.
    /// # Examples
    /// ```
    /// use mainstay_partition::{Node, Ring};
    ///
    /// let heavy = Node::new("b").weight(1_000_000);
    /// let error = Ring::builder().nodes([Node::new("a"), heavy]).build().unwrap_err();
    /// assert_eq!((error.field(), error.value()), ("nodes.weight", "1000000 of b"));
    /// ```
    pub fn build(self) -> Result<Ring, ConfigError> {
        let nodes = Nodes::weighted(self.nodes)?;
        for (field, value) in [("points", self.points), ("weight_unit", self.weight_unit)] {
            if value == 0 {
                return Err(ConfigError::new(field, value, "at least 1"));
            }
        }
        let mut total = 0_u64;
        for node in nodes.as_slice() {
            total = total.saturating_add(count(self.points, node.weight, self.weight_unit));
            if total > MAX_POINTS as u64 {
                return Err(ConfigError::new(
                    "nodes.weight",
                    format!("{} of {}", node.weight, node.id),
                    format!("at most {MAX_POINTS} points in total; raise weight_unit"),
                ));
            }
        }
        let hashed: Vec<(u64, u64, u32)> = nodes
            .iter()
            .map(|(i, n)| {
                (self.hash.node(n.id.as_str()), count(self.points, n.weight, self.weight_unit), i.get())
            })
            .collect();
        let points =
            hashed.iter().flat_map(|&(base, count, owner)| (1..=count).map(move |r| (point(base, r), owner)));
        let points = Points::build(nodes.len(), points)?;
        Ok(Ring {
            nodes,
            hash: self.hash,
            points,
            points_per_unit: self.points,
            weight_unit: self.weight_unit,
        })
    }
}

fn point(base: u64, r: u64) -> u64 {
    mix64(base.wrapping_add(r.wrapping_mul(GOLDEN)))
}
