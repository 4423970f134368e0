//! Causal contexts: a version vector with a cloud of dots beyond it.

use std::collections::BTreeMap;

use crate::version::{Causality, Dot, Runs, VersionVector};
use crate::{ActorId, Changed};

/// The set of changes a state knows, whether their effect is still visible or not.
///
/// Kept as intervals per actor: the interval from 1 on is the version vector, what lies beyond a gap is the
/// cloud. Intervals that touch are always one, so equal contexts are equal structures and a filled gap costs
/// nothing any more. The cloud is as large as the network's disorder; [`cloud_len`](Context::cloud_len) tells.
///
/// # Growth
/// An actor that changed anything stays, on every replica: 48 bytes in memory and about 20 in an encoding, for each start of
/// a node that made a change. A hundred nodes that restart every day are 36,500 entries or 1.7 MiB after a year, and a repair
/// by contexts sends what takes 710 KiB. [`actors`](Context::actors) tells. Earlier epochs of a node are not folded into one
/// entry, although all members may have acknowledged them: such an entry would call *every* change of those epochs known, also
/// one that a crash left with somebody who was away, and those of a restored or copied disk. They would be deleted everywhere,
/// and nobody told. [Removing a member](crate::replicate::AntiEntropy::remove_member) lets others forget tombstones, not
/// actors. To be rid of them, make a new value of what is visible, by one actor, and start all replicas with it under
/// another [schema](crate::replicate::Builder::schema): those that were away are then refused by name.
///
/// Source: Almeida, Shoker, Baquero, "Delta State Replicated Data Types" (2018), section 7.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, Join, crdt::AwSet};
///
/// let mut actor = Actor::new(ActorId::new(1, 1, 0));
/// let mut set = AwSet::<u64>::new();
/// let (first, second) = (set.add(&mut actor, 1)?, set.add(&mut actor, 2)?);
///
/// let mut replica = AwSet::new();
/// replica.join(&second)?;
/// assert_eq!(replica.context().cloud_len(), 1); // the first is missing
/// replica.join(&first)?;
/// assert_eq!(replica.context().cloud_len(), 0);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Context(Vec<(ActorId, Runs)>);

impl Context {
    /// The context without changes.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn from_sorted(entries: Vec<(ActorId, Runs)>) -> Self {
        Self(entries)
    }

    pub(crate) fn of_dot(dot: Dot) -> Self {
        Self(vec![(dot.actor(), Runs::range(dot.counter(), dot.counter()))])
    }

    /// A context of exactly these dots.
    pub(crate) fn of_dots(mut dots: Vec<Dot>) -> Self {
        dots.sort_unstable();
        let mut context = Self::new();
        for group in dots.chunk_by(|a, b| a.actor() == b.actor()) {
            let runs = Runs::of(group.iter().map(|d| (d.counter(), d.counter())));
            context.0.push((group[0].actor(), runs));
        }
        context
    }

    #[inline]
    fn find(&self, actor: ActorId) -> Option<&Runs> {
        self.0.binary_search_by_key(&actor, |e| e.0).ok().map(|at| &self.0[at].1)
    }

    /// Whether it knows the change.
    #[inline]
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        self.find(dot.actor()).is_some_and(|runs| runs.contains(dot.counter()))
    }

    /// Whether it knows everything that `other` knows.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(actor, runs)| self.find(*actor).is_some_and(|mine| mine.covers(runs)))
    }

    /// How it relates to `other`.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Causality {
        match (self.covers(other), other.covers(self)) {
            (true, true) => Causality::Equal,
            (true, false) => Causality::After,
            (false, true) => Causality::Before,
            (false, false) => Causality::Concurrent,
        }
    }

    /// The largest counter known of `actor`, gaps or not.
    #[must_use]
    pub fn top(&self, actor: ActorId) -> u64 {
        self.find(actor).map_or(0, Runs::max)
    }

    /// The gap-free part.
    #[must_use]
    pub fn vector(&self) -> VersionVector {
        let prefix = |(actor, runs): &(ActorId, Runs)| (runs.prefix() > 0).then(|| (*actor, runs.prefix()));
        VersionVector::from_sorted(self.0.iter().filter_map(prefix).collect())
    }

    /// The gap-free part, as a context.
    pub(crate) fn gap_free(&self) -> Self {
        let prefix = |(actor, n): (ActorId, u64)| (actor, Runs::range(1, n));
        Self(self.vector().iter().map(prefix).collect())
    }

    /// How many changes lie beyond gaps.
    #[must_use]
    pub fn cloud_len(&self) -> u64 {
        self.0.iter().map(|(_, runs)| runs.count() - runs.prefix()).fold(0, u64::saturating_add)
    }

    /// How many actors.
    #[must_use]
    pub fn actors(&self) -> usize {
        self.0.len()
    }

    /// How many changes.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(_, runs)| runs.count()).fold(0, u64::saturating_add)
    }

    /// Whether it knows nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Learns everything that `other` knows.
    pub fn union(&mut self, other: &Self) -> Changed {
        let mut changed = false;
        // One search per actor; contexts of deltas have one or two.
        for (actor, runs) in &other.0 {
            match self.0.binary_search_by_key(actor, |e| e.0) {
                Ok(at) => changed |= self.0[at].1.union(runs),
                Err(at) => {
                    self.0.insert(at, (*actor, runs.clone()));
                    changed = true;
                }
            }
        }
        Changed::from(changed)
    }

    /// What it knows and `other` does not.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        self.map(other, |mine, theirs| theirs.map_or_else(|| mine.clone(), |theirs| mine.minus(theirs)))
    }

    /// What both know.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        self.map(other, |mine, theirs| theirs.map_or_else(Runs::default, |theirs| mine.common(theirs)))
    }

    fn map(&self, other: &Self, f: impl Fn(&Runs, Option<&Runs>) -> Runs) -> Self {
        let entry = |(actor, runs): &(ActorId, Runs)| {
            let runs = f(runs, other.find(*actor));
            (!runs.is_empty()).then_some((*actor, runs))
        };
        Self(self.0.iter().filter_map(entry).collect())
    }

    /// The part about actors in `from..=to`.
    pub(crate) fn between(&self, from: ActorId, to: ActorId) -> Self {
        Self(self.0.iter().filter(|(a, _)| (from..=to).contains(a)).cloned().collect())
    }

    /// The first half of the changes, in dot order, and the second.
    pub(crate) fn halves(&self) -> (Self, Self) {
        let mut left = self.count() / 2;
        let (mut first, mut second) = (Self::new(), Self::new());
        for (actor, runs) in &self.0 {
            let (a, b) = runs.split(left);
            left -= a.count();
            for (half, runs) in [(&mut first, a), (&mut second, b)] {
                if !runs.is_empty() {
                    half.0.push((*actor, runs));
                }
            }
        }
        (first, second)
    }

    pub(crate) fn entries(&self) -> &[(ActorId, Runs)] {
        &self.0
    }

    /// How many intervals: what an encoding costs.
    pub(crate) fn pieces(&self) -> usize {
        self.0.iter().map(|(_, runs)| runs.pieces()).sum()
    }

    /// For a node, the highest epoch it was seen in, with the nonces of that epoch.
    #[must_use]
    pub fn latest_epochs(&self) -> BTreeMap<u64, (u32, Vec<u32>)> {
        let mut latest: BTreeMap<u64, (u32, Vec<u32>)> = BTreeMap::new();
        for (actor, _) in &self.0 {
            let seen = latest.entry(actor.node()).or_default();
            if actor.epoch() > seen.0 || seen.1.is_empty() {
                *seen = (actor.epoch(), vec![actor.nonce()]);
            } else if actor.epoch() == seen.0 {
                seen.1.push(actor.nonce());
            }
        }
        latest
    }
}
