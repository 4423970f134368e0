//! Rendezvous hashing: every node scores every key, the best one owns it.

mod score;
mod scores;
mod vectors;
#[cfg(all(feature = "simd", target_arch = "x86_64"))]
mod wide;

use crate::error::ConfigError;
use crate::fingerprint::Canon;
use crate::hash::Hash;
use crate::node::{Node, NodeIdx, Nodes};
use crate::owners::Owners;
use crate::place::{Place, Shares, place_by_hash, sealed};
use crate::source::Source;
use crate::warning::Warning;

pub(crate) use scores::{Ranked, Scores};

/// The profile's version.
const VERSION: u64 = 1;

/// Highest random weight (Thaler, Ravishankar, 1998), with weights by the logarithmic method (Mosharaf et al.;
/// Schindelhauer, Schomaker, SPAA 2005) in integers.
///
/// The most even placement without a table, for up to some hundred nodes: a lookup asks every node, by vector
/// instructions where the processor has them, with the same answer where it has not. Adding a node moves keys
/// only to it, removing one moves only its keys.
///
/// Two names whose hashes share their upper 32 bits (at 64 nodes one fleet in two million) always score alike:
/// the smaller id gets the keys of both, and [`Rendezvous::warnings`] says so.
///
/// ```
/// use mainstay_partition::{Node, Place, Rendezvous};
///
/// let nodes = [Node::new("a"), Node::new("b").weight(3), Node::new("c")];
/// let place = Rendezvous::builder().nodes(nodes).build()?;
/// assert_eq!(place.shares().as_slice(), [0.2, 0.6, 0.2]);
/// let best_two: Vec<_> = place.owners(b"user:17").take(2).collect();
/// assert_eq!(place.owner(b"user:17"), Some(best_two[0]));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rendezvous {
    nodes: Nodes,
    hash: Hash,
    layout: Layout,
}

#[derive(Clone, Debug)]
enum Layout {
    Flat(Scores),
    Zoned(Zoned),
}

/// Zones compete by the sum of their weights, then the nodes within.
#[derive(Clone, Debug)]
pub(crate) struct Zoned {
    zones: Scores,
    within: Vec<Scores>,
}

impl Rendezvous {
    /// A builder with the defaults.
    #[must_use]
    pub fn builder() -> RendezvousBuilder {
        RendezvousBuilder::default()
    }

    /// What an operator should know before this placement is used.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let pairs = match &self.layout {
            Layout::Flat(scores) => scores.shadowed(),
            Layout::Zoned(zoned) => zoned.within.iter().flat_map(Scores::shadowed).collect(),
        };
        pairs
            .into_iter()
            .map(|(a, b)| Warning::SameScores { node: NodeIdx::new(a), shadowed: NodeIdx::new(b) })
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
        let best = match &self.layout {
            Layout::Flat(scores) => scores.best(hash)?,
            Layout::Zoned(zoned) => zoned.within[zoned.zones.best(hash)? as usize].best(hash)?,
        };
        Some(NodeIdx::new(best))
    }
}

impl sealed::Sealed for Rendezvous {}

impl Place for Rendezvous {
    place_by_hash!();

    fn owners_of_hash(&self, hash: u64) -> Owners<'_> {
        let source = match &self.layout {
            Layout::Flat(scores) => Source::Ranked(scores.walk(hash)),
            Layout::Zoned(zoned) => Source::Zoned(ZonedWalk::new(zoned, hash)),
        };
        Owners::new(&self.nodes, source)
    }

    /// What weights ask for, exact up to the 2^-32 of a score; a node in the shadow of another
    /// ([`Warning::SameScores`]) is counted as if it were not.
    fn shares(&self) -> Shares {
        Shares::new(self.nodes.as_slice().iter().map(|n| f64::from(n.weight)).collect(), &self.nodes)
    }

    fn fingerprint(&self) -> u128 {
        let mut canon = Canon::profile("rendezvous", VERSION);
        self.hash.canon(&mut canon);
        canon.number(u64::from(matches!(self.layout, Layout::Zoned(_))));
        canon.nodes(&self.nodes);
        canon.finish()
    }
}

/// Zone by zone, in each from the best node down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ZonedWalk<'a> {
    zoned: &'a Zoned,
    hash: u64,
    zones: Ranked<'a>,
    within: Option<Ranked<'a>>,
}

impl<'a> ZonedWalk<'a> {
    fn new(zoned: &'a Zoned, hash: u64) -> Self {
        Self { zoned, hash, zones: zoned.zones.walk(hash), within: None }
    }

    pub(crate) fn next(&mut self) -> Option<u32> {
        loop {
            if let Some(node) = self.within.as_mut().and_then(Ranked::next) {
                return Some(node);
            }
            let zone = self.zones.next()?;
            self.within = Some(self.zoned.within[zone as usize].walk(self.hash));
        }
    }

    /// Back to the best of the best zone.
    pub(crate) fn restart(&mut self) {
        self.zones.restart();
        self.within = None;
    }
}

/// Settings of a [`Rendezvous`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `by_zone` | off | flat moves least; by zone costs a second pass and keeps a zone's keys in it |
/// | `hash` | XXH3-64, seed 0 | the fastest hash that is frozen in every language |
#[derive(Clone, Debug, Default)]
pub struct RendezvousBuilder {
    nodes: Vec<Node>,
    by_zone: bool,
    hash: Hash,
}

impl RendezvousBuilder {
    /// The nodes, in any order.
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.nodes = nodes.into_iter().collect();
        self
    }

    /// Chooses a zone first, by the sum of its nodes' weights, then a node in it. A node that goes lowers its
    /// zone's weight, so a few keys of its neighbours leave the zone with it.
    ///
    /// ```
    /// use mainstay_partition::{Node, Place, Rendezvous};
    ///
    /// let nodes = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")].map(|(id, zone)| Node::new(id).zone(zone));
    /// let place = Rendezvous::builder().nodes(nodes).by_zone().build()?;
    /// let zone = |node| place.nodes().zone_of(node);
    /// let order: Vec<_> = place.owners(b"user:17").map(zone).collect();
    /// assert!(order[0] == order[1] && order[2] == order[3], "one zone is used up before the next");
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn by_zone(mut self) -> Self {
        self.by_zone = true;
        self
    }

    /// How keys and names are hashed.
    #[must_use]
    pub fn hash(mut self, hash: Hash) -> Self {
        self.hash = hash;
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// A duplicate or empty id, weights that are all zero.
    pub fn build(self) -> Result<Rendezvous, ConfigError> {
        let nodes = Nodes::weighted(self.nodes)?;
        let hash = self.hash;
        let columns = |zone: Option<usize>| {
            let chosen = nodes.iter().filter(|(i, _)| zone.is_none() || nodes.zone_of(*i) == zone);
            Scores::new(chosen.map(|(i, n)| (i, hash.node(n.id.as_str()), u64::from(n.weight))))
        };
        let layout = if self.by_zone {
            let weights = nodes.iter().fold(vec![0_u64; nodes.zones().len()], |mut sum, (i, n)| {
                if let Some(zone) = nodes.zone_of(i) {
                    sum[zone] += u64::from(n.weight);
                }
                sum
            });
            let named = (0_u32..).map(NodeIdx::new).zip(nodes.zones()).zip(weights);
            let zones =
                Scores::new(named.map(|((i, zone), weight)| {
                    (i, hash.zone(zone.as_ref().map_or("", |z| z.as_str())), weight)
                }));
            Layout::Zoned(Zoned {
                zones,
                within: (0..nodes.zones().len()).map(|z| columns(Some(z))).collect(),
            })
        } else {
            Layout::Flat(columns(None))
        };
        Ok(Rendezvous { nodes, hash, layout })
    }
}
