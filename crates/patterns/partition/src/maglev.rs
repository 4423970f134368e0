//! Maglev: a prime table of owners.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

use xxhash_rust::xxh64::xxh64;

use crate::error::ConfigError;
use crate::fingerprint::Canon;
use crate::hash::Hash;
use crate::node::{Node, NodeIdx, Nodes};
use crate::owners::Owners;
use crate::place::{Place, Shares, place_by_hash, sealed};
use crate::rendezvous::{Ranked, Scores};
use crate::source::Source;
use crate::warning::Warning;

/// The profile's version.
const VERSION: u64 = 1;
/// The table of the paper's small setting, and of Envoy.
pub const DEFAULT_TABLE: u32 = 65_537;
/// Largest table: the largest prime below 2^24, 64 MiB.
pub const MAX_TABLE: u32 = 16_777_213;
/// Entries per node below which shares deviate by more than 1% (Maglev, section 5.3).
const ENTRIES_PER_NODE: usize = 100;
/// Owners that fit a small entry.
const SMALL: usize = u16::MAX as usize;

/// Table of owners: two bytes each while they suffice.
#[derive(Clone)]
pub(crate) enum Table {
    Small(Vec<u16>),
    Large(Vec<u32>),
}

impl Table {
    /// Fills `size` entries, a prime, for nodes given by the bytes that are hashed and their weight, in order.
    ///
    /// In round `it` a node takes a turn when `it * weight` has reached its target; a turn takes the node's
    /// next free entry and moves its target on by the largest weight.
    pub(crate) fn fill(size: u32, nodes: &[(&[u8], f64)]) -> Self {
        let m = u64::from(size);
        let mut strides: Vec<Stride> = nodes
            .iter()
            .map(|(id, _)| Stride { at: xxh64(id, 0) % m, skip: xxh64(id, 1) % (m - 1).max(1) + 1 })
            .collect();
        let mut table = vec![u32::MAX; size as usize];
        let mut left = table.len();
        let mut turns = Turns::new(nodes);
        while left > 0 {
            let Some(node) = turns.next() else { break };
            strides[node].take(&mut table, node, m);
            left -= 1;
        }
        if nodes.len() <= SMALL {
            Self::Small(table.into_iter().map(|n| n as u16).collect())
        } else {
            Self::Large(table)
        }
    }

    #[inline]
    pub(crate) fn get(&self, at: usize) -> Option<u32> {
        match self {
            Self::Small(table) => table.get(at).map(|n| u32::from(*n)),
            Self::Large(table) => table.get(at).copied(),
        }
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Small(table) => table.len(),
            Self::Large(table) => table.len(),
        }
    }

    /// How many entries each of `n` owners has.
    pub(crate) fn counts(&self, n: usize) -> Vec<f64> {
        let mut counts = vec![0.0; n];
        for owner in (0..self.len()).filter_map(|at| self.get(at)) {
            counts[owner as usize] += 1.0;
        }
        counts
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Small(table) => table.capacity() * size_of::<u16>(),
            Self::Large(table) => table.capacity() * size_of::<u32>(),
        }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({})", self.len())
    }
}

/// A node's own order of all entries. The permutation is walked, never stored.
struct Stride {
    at: u64,
    skip: u64,
}

impl Stride {
    fn take(&mut self, table: &mut [u32], node: usize, m: u64) {
        loop {
            let at = self.at as usize;
            self.at += self.skip;
            if self.at >= m {
                self.at -= m;
            }
            if table[at] == u32::MAX {
                table[at] = node as u32;
                return;
            }
        }
    }
}

/// Who takes the next turn.
enum Turns {
    /// Equal weights: everybody in every round.
    Equal { n: usize, next: usize },
    /// By round, then by position; a node is asked again in the first round that lets it.
    Weighted { queue: BinaryHeap<Reverse<(u64, usize)>>, weights: Vec<f64>, targets: Vec<f64>, max: f64 },
}

impl Turns {
    fn new(nodes: &[(&[u8], f64)]) -> Self {
        let weights: Vec<f64> = nodes.iter().map(|(_, w)| *w).collect();
        if weights.windows(2).all(|w| w[0] == w[1]) {
            return Self::Equal { n: weights.len(), next: 0 };
        }
        let max = weights.iter().fold(0.0_f64, |a, b| a.max(*b));
        let queue = (0..weights.len()).map(|i| Reverse((1, i))).collect();
        Self::Weighted { queue, targets: vec![0.0; weights.len()], weights, max }
    }

    fn next(&mut self) -> Option<usize> {
        match self {
            Self::Equal { n: 0, .. } => None,
            Self::Equal { n, next } => {
                let now = *next;
                *next = if now + 1 == *n { 0 } else { now + 1 };
                Some(now)
            }
            Self::Weighted { queue, weights, targets, max } => {
                let Reverse((round, node)) = queue.pop()?;
                targets[node] += *max;
                queue.push(Reverse((first_round(round + 1, weights[node], targets[node]), node)));
                Some(node)
            }
        }
    }
}

/// The first round from `from` on with `round * weight >= target`, by that very comparison.
fn first_round(from: u64, weight: f64, target: f64) -> u64 {
    let reached = |round: u64| round as f64 * weight >= target;
    // The quotient may be off by rounding; the comparison decides.
    let mut round = ((target / weight) as u64).saturating_sub(2).max(from);
    while !reached(round) {
        round += 1;
    }
    round
}

/// A table whose entries name owners (Eisenbud et al.: "Maglev: A Fast and Reliable Software Network Load
/// Balancer", NSDI 2016).
///
/// The fastest lookup and near-perfect balance; in exchange a change moves more keys than it must: 1.3 to 10
/// times the ideal, more with more nodes (see the sheet of the decision table). Not for nodes that own data.
/// The owners after the first come from [`Rendezvous`](crate::Rendezvous) over the same ids, because
/// neighbours in the table mean nothing.
///
/// ```
/// use mainstay_partition::{Maglev, Node, Place};
///
/// let maglev = Maglev::builder().nodes(["a", "b", "c"].map(Node::new)).build()?;
/// assert!(maglev.shares().max_over_mean() < 1.001);
/// assert_eq!(maglev.owners(b"user:17").count(), 3);
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Maglev {
    nodes: Nodes,
    hash: Hash,
    table: Table,
    size: u64,
    next: Scores,
}

impl Maglev {
    /// A builder with the defaults.
    #[must_use]
    pub fn builder() -> MaglevBuilder {
        MaglevBuilder { nodes: Vec::new(), table: DEFAULT_TABLE, hash: Hash::default() }
    }

    /// What an operator should know before this placement is used.
    /// ```
    /// use mainstay_partition::{Maglev, Node, Warning};
    ///
    /// let nodes = (0..10).map(|i| Node::new(format!("n{i}")));
    /// let small = Maglev::builder().table(101).nodes(nodes).build()?;
    /// assert_eq!(small.warnings(), [Warning::SmallTable { size: 101, nodes: 10 }]);
    /// # Ok::<(), mainstay_partition::ConfigError>(())
    /// ```
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        let (size, nodes) = (self.table.len(), self.nodes.len());
        let small = size < nodes.saturating_mul(ENTRIES_PER_NODE);
        small.then_some(Warning::SmallTable { size, nodes }).into_iter().collect()
    }

    /// Memory of the table, without the nodes' names.
    ///
    /// Two bytes per entry up to 65,535 nodes, four beyond; the default table takes 128 KiB whatever the number of nodes.
    #[must_use]
    pub fn table_bytes(&self) -> usize {
        self.table.bytes()
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
        let at = (u128::from(hash) * u128::from(self.size)) >> 64;
        self.table.get(at as usize).map(NodeIdx::new)
    }
}

impl sealed::Sealed for Maglev {}

impl Place for Maglev {
    place_by_hash!();

    fn owners_of_hash(&self, hash: u64) -> Owners<'_> {
        let first = Self::owner_of_hash(self, hash);
        Owners::new(&self.nodes, Source::Chain(Chain::new(first, self.next.walk(hash))))
    }

    fn shares(&self) -> Shares {
        Shares::new(self.table.counts(self.nodes.len()), &self.nodes)
    }

    fn fingerprint(&self) -> u128 {
        let mut canon = Canon::profile("maglev", VERSION);
        self.hash.canon(&mut canon);
        canon.number(self.size);
        canon.nodes(&self.nodes);
        canon.finish()
    }
}

/// An owner from a table, then a ranking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain<'a> {
    first: Option<u32>,
    begun: bool,
    rest: Ranked<'a>,
}

impl<'a> Chain<'a> {
    pub(crate) fn new(first: Option<NodeIdx>, rest: Ranked<'a>) -> Self {
        Self { first: first.map(NodeIdx::get), begun: false, rest }
    }

    pub(crate) fn next(&mut self) -> Option<u32> {
        if self.begun {
            return self.rest.next();
        }
        self.begun = true;
        self.first
    }

    /// Back to the owner.
    pub(crate) fn restart(&mut self) {
        self.begun = false;
        self.rest.restart();
    }
}

/// Settings of a [`Maglev`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `table` | 65537 | 128 KiB stay in the cache; 1% deviation up to 655 nodes |
/// | `hash` | XXH3-64, seed 0 | the fastest hash that is frozen in every language |
#[derive(Clone, Debug)]
pub struct MaglevBuilder {
    nodes: Vec<Node>,
    table: u32,
    hash: Hash,
}

impl MaglevBuilder {
    /// The nodes, in any order.
    #[must_use]
    pub fn nodes(mut self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.nodes = nodes.into_iter().collect();
        self
    }

    /// Entries of the table: a prime, at least one per node, at most [`MAX_TABLE`].
    /// With 100 entries per node shares deviate by about 1%; a table of another size is another placement, and
    /// nearly every key moves.
    ///
    /// ```
    /// use mainstay_partition::{Maglev, Node};
    ///
    /// let even = Maglev::builder().table(65_536).nodes([Node::new("a")]).build().unwrap_err();
    /// assert_eq!((even.field(), even.value()), ("table", "65536"));
    /// ```
    #[must_use]
    pub fn table(mut self, entries: u32) -> Self {
        self.table = entries;
        self
    }

    /// How keys are hashed.
    #[must_use]
    pub fn hash(mut self, hash: Hash) -> Self {
        self.hash = hash;
        self
    }

    /// Checks everything and fills the table.
    ///
    /// # Errors
    /// A duplicate or empty id, a table that is not prime or too small or too large, weights that are all
    /// zero. However small its weight, a node that has one gets an entry.
    pub fn build(self) -> Result<Maglev, ConfigError> {
        let nodes = Nodes::weighted(self.nodes)?;
        check_table(self.table, nodes.len())?;
        let placed: Vec<(NodeIdx, &Node)> = nodes.iter().filter(|(_, n)| n.weight > 0).collect();
        let weighed: Vec<(&[u8], f64)> =
            placed.iter().map(|(_, n)| (n.id.as_str().as_bytes(), f64::from(n.weight))).collect();
        let table = Table::fill(if placed.is_empty() { 0 } else { self.table }, &weighed);
        let table = table.renumber(&placed, nodes.len());
        let hash = self.hash;
        let next = Scores::new(nodes.iter().map(|(i, n)| (i, hash.node(n.id.as_str()), u64::from(n.weight))));
        let size = table.len() as u64;
        Ok(Maglev { nodes, hash, table, size, next })
    }
}

impl Table {
    /// Numbers of placed nodes become indexes of all nodes.
    fn renumber(self, placed: &[(NodeIdx, &Node)], all: usize) -> Self {
        if placed.len() == all {
            return self;
        }
        let of = |n: usize| placed[n].0.get();
        match self {
            Self::Small(table) if all <= SMALL => {
                Self::Small(table.into_iter().map(|n| of(usize::from(n)) as u16).collect())
            }
            Self::Small(table) => Self::Large(table.into_iter().map(|n| of(usize::from(n))).collect()),
            Self::Large(table) => Self::Large(table.into_iter().map(|n| of(n as usize)).collect()),
        }
    }
}

/// # Errors
/// Not prime, or not between the number of nodes and [`MAX_TABLE`].
pub(crate) fn check_table(size: u32, nodes: usize) -> Result<(), ConfigError> {
    if size > MAX_TABLE || (size as usize) < nodes.max(2) {
        let allowed = format!("from {} to {MAX_TABLE}", nodes.max(2));
        return Err(ConfigError::new("table", size, allowed));
    }
    if !is_prime(size) {
        let allowed = format!("a prime, such as {}", next_prime(size));
        return Err(ConfigError::new("table", size, allowed));
    }
    Ok(())
}

fn is_prime(n: u32) -> bool {
    let n = u64::from(n);
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| n % d != 0)
}

fn next_prime(from: u32) -> u32 {
    (from..=MAX_TABLE).find(|n| is_prime(*n)).unwrap_or(MAX_TABLE)
}

#[cfg(test)]
mod tests {
    use super::{MAX_TABLE, Table, is_prime};

    /// The rounds as the profile writes them.
    fn naive(size: u32, nodes: &[(&[u8], f64)]) -> Vec<u32> {
        use xxhash_rust::xxh64::xxh64;
        let m = u64::from(size);
        let max = nodes.iter().map(|n| n.1).fold(0.0, f64::max);
        let mut table = vec![None; size as usize];
        let (mut next, mut target) = (vec![0_u64; nodes.len()], vec![0.0; nodes.len()]);
        let mut taken = 0;
        for round in 1_u64.. {
            for (i, (id, weight)) in nodes.iter().enumerate() {
                if round as f64 * weight < target[i] {
                    continue;
                }
                target[i] += max;
                loop {
                    let at = (xxh64(id, 0) % m + (xxh64(id, 1) % (m - 1) + 1) * next[i]) % m;
                    next[i] += 1;
                    if table[at as usize].is_none() {
                        table[at as usize] = Some(i as u32);
                        break;
                    }
                }
                taken += 1;
                if taken == size {
                    return table.into_iter().map(Option::unwrap).collect();
                }
            }
        }
        unreachable!()
    }

    #[test]
    fn the_queue_takes_the_turns_of_the_rounds() {
        let ids: Vec<String> = (0..40).map(|i| format!("node-{i}")).collect();
        for weigh in
            [|_| 1.0, |i: usize| (i % 7 + 1) as f64, |i: usize| 1.0 / (i + 3) as f64, |i| [1.0, 1e6][i % 2]]
        {
            for (size, n) in [(2, 1), (2, 2), (7, 5), (251, 40), (4093, 13), (65537, 3)] {
                let nodes: Vec<(&[u8], f64)> = (0..n).map(|i| (ids[i].as_bytes(), weigh(i))).collect();
                let ours = Table::fill(size, &nodes);
                let ours: Vec<u32> = (0..ours.len()).filter_map(|at| ours.get(at)).collect();
                assert_eq!(ours, naive(size, &nodes), "table of {size} for {n}");
            }
        }
    }

    #[test]
    fn primes() {
        let primes: Vec<u32> = (0..50).filter(|n| is_prime(*n)).collect();
        assert_eq!(primes, [2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47]);
        assert!(is_prime(65_537) && is_prime(MAX_TABLE) && !is_prime(65_536));
        assert!((MAX_TABLE + 1..1 << 24).all(|n| !is_prime(n)));
    }
}
