//! What every placement answers.

use std::fmt;

use crate::node::{NodeIdx, Nodes};
use crate::owners::Owners;

pub(crate) mod sealed {
    /// Only this crate places keys: a placement outside would not be frozen with a profile.
    pub trait Sealed {}
}

/// Who owns a key, who else holds it, how even that is, and whether two clients agree.
///
/// Object-safe and sealed. Every implementation gives the same answer whatever the order in which nodes
/// were given, on every platform and in every process.
///
/// ```
/// use mainstay_partition::{Node, Place, Ring};
///
/// let ring = Ring::builder().nodes(["a", "b", "c"].map(Node::new)).build()?;
/// let place: &dyn Place = &ring;
/// let all: Vec<_> = place.owners(b"user:17").collect();
/// assert_eq!(all.len(), 3);
/// assert_eq!(Some(all[0]), place.owner(b"user:17"));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
pub trait Place: sealed::Sealed + fmt::Debug + Send + Sync {
    /// The nodes, in the order that [`NodeIdx`] counts.
    fn nodes(&self) -> &Nodes;

    /// The hash of a key, to be used again with the `_of_hash` methods.
    fn hash_of(&self, key: &[u8]) -> u64;

    /// The owner of a hash that [`Place::hash_of`] gave; `None` when there are no nodes.
    ///
    /// The hash must come from the same placement, or from one with the same hash: another one would place the key
    /// elsewhere.
    ///
    /// ```
    /// use mainstay_partition::{Node, Place, Ring};
    ///
    /// let ring = Ring::builder().nodes(["a", "b", "c"].map(Node::new)).build()?;
    /// let hash = ring.hash_of(b"user:17");
    /// assert_eq!(ring.owner_of_hash(hash), ring.owner(b"user:17"));
    /// assert!(ring.owners_of_hash(hash).eq(ring.owners(b"user:17")));
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    fn owner_of_hash(&self, hash: u64) -> Option<NodeIdx>;

    /// The owner of a key; `None` when there are no nodes.
    fn owner(&self, key: &[u8]) -> Option<NodeIdx> {
        self.owner_of_hash(self.hash_of(key))
    }

    /// Every node that could hold this hash, each once, the owner first. Lazy.
    fn owners_of_hash(&self, hash: u64) -> Owners<'_>;

    /// Every node that could hold this key, each once, the owner first. Lazy, and without an allocation for
    /// the first 16.
    fn owners(&self, key: &[u8]) -> Owners<'_> {
        self.owners_of_hash(self.hash_of(key))
    }

    /// The part of the key space that each node owns.
    fn shares(&self) -> Shares;

    /// The same for two placements exactly when profile, parameters and nodes are the same (XXH3-128 over
    /// canonical bytes). Compare it between clients: a difference is a silent disagreement on owners.
    ///
    /// ```
    /// use mainstay_partition::{Node, Place, Ring};
    ///
    /// let ring = |ids: [&'static str; 2], points| Ring::builder().points(points).nodes(ids.map(Node::new)).build();
    /// let here = ring(["a", "b"], 160)?.fingerprint();
    /// assert_eq!(here, ring(["b", "a"], 160)?.fingerprint());
    /// assert_ne!(here, ring(["a", "b"], 150)?.fingerprint(), "the same nodes, other owners");
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    fn fingerprint(&self) -> u128;
}

/// What [`Place`] asks of every placement that has `nodes` and `hash` and answers itself.
macro_rules! place_by_hash {
    () => {
        fn nodes(&self) -> &$crate::Nodes {
            &self.nodes
        }

        #[inline]
        fn hash_of(&self, key: &[u8]) -> u64 {
            self.hash.key(key)
        }

        #[inline]
        fn owner_of_hash(&self, hash: u64) -> Option<$crate::NodeIdx> {
            Self::owner_of_hash(self, hash)
        }

        #[inline]
        fn owner(&self, key: &[u8]) -> Option<$crate::NodeIdx> {
            Self::owner(self, key)
        }
    };
}

pub(crate) use place_by_hash;

/// The part of the key space of each node.
/// Exact, not sampled: lengths of arcs, entries of a table, slots. Look at both ends before you choose a
/// placement or its number of points, and put both on a dashboard.
///
/// ```
/// use mainstay_partition::{Node, Place, Ring};
///
/// let nodes = || [Node::new("a"), Node::new("b"), Node::new("c").weight(2)];
/// let few = Ring::builder().points(10).nodes(nodes()).build()?.shares();
/// let many = Ring::builder().points(1_000).nodes(nodes()).build()?.shares();
/// assert!((many.as_slice().iter().sum::<f64>() - 1.0).abs() < 1e-9);
/// assert!(many.max_over_mean() < 1.1 && many.min_over_mean() > 0.9);
/// assert!(few.max_over_mean() > many.max_over_mean());
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Shares {
    of: Vec<f64>,
    max_over_mean: f64,
    min_over_mean: f64,
}

impl Shares {
    /// From how much each node has, in any unit, and the weights that it should follow.
    pub(crate) fn new(amounts: Vec<f64>, nodes: &Nodes) -> Self {
        let all: f64 = amounts.iter().sum();
        let weights: f64 = nodes.total_weight() as f64;
        let of: Vec<f64> = amounts.iter().map(|a| if all > 0.0 { a / all } else { 0.0 }).collect();
        let (mut max, mut min) = (0.0_f64, f64::INFINITY);
        for (share, node) in of.iter().zip(nodes.as_slice()).filter(|(_, n)| n.weight > 0) {
            let ratio = share * weights / f64::from(node.weight);
            max = max.max(ratio);
            min = min.min(ratio);
        }
        Self { of, max_over_mean: max, min_over_mean: if min.is_finite() { min } else { 0.0 } }
    }

    /// The share of a node, 0 to 1.
    #[must_use]
    pub fn of(&self, idx: NodeIdx) -> f64 {
        self.of.get(idx.as_usize()).copied().unwrap_or(0.0)
    }

    /// All shares, in the order of the nodes; they sum to 1 unless there are no nodes.
    #[must_use]
    pub fn as_slice(&self) -> &[f64] {
        &self.of
    }

    /// The largest share, as a multiple of what the node's weight asks for. The node that fills first.
    #[must_use]
    pub fn max_over_mean(&self) -> f64 {
        self.max_over_mean
    }

    /// The smallest share, as a multiple of what the node's weight asks for. A balance that reports only
    /// the largest hides a node that starves.
    #[must_use]
    pub fn min_over_mean(&self) -> f64 {
        self.min_over_mean
    }
}
