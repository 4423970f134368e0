//! Version vectors.

use std::cmp::Ordering;

use crate::version::Dot;
use crate::{ActorId, Changed};

/// How two versions relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a partial order has exactly four answers")]
pub enum Causality {
    /// The right one contains the left one.
    Before,
    /// The left one contains the right one.
    After,
    /// Neither contains the other: a conflict.
    Concurrent,
    /// The same.
    Equal,
}

/// How many changes of each actor a version contains; all of them from the first on, without gaps.
///
/// Entries are sorted and never zero, so equal versions are equal structures. Nothing is ever pruned by size
/// or age: a pruned entry makes old versions look concurrent.
///
/// Source: Parker et al., "Detection of Mutual Inconsistency in Distributed Systems" (1983).
///
/// ```
/// use mainstay_consistency::{ActorId, version::{Causality, VersionVector}};
///
/// let (a, b) = (ActorId::new(1, 1, 0), ActorId::new(2, 1, 0));
/// let (mut mine, mut theirs) = (VersionVector::new(), VersionVector::new());
/// mine.advance(a);
/// theirs.advance(b);
/// assert_eq!(mine.compare(&theirs), Causality::Concurrent);
/// assert!(mine.merge(&theirs).is_yes());
/// assert_eq!(mine.compare(&theirs), Causality::After);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct VersionVector(Vec<(ActorId, u64)>);

impl VersionVector {
    /// The version without changes.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn from_sorted(entries: Vec<(ActorId, u64)>) -> Self {
        Self(entries)
    }

    /// The first half of the actors, and the second.
    pub(crate) fn halves(&self) -> (Self, Self) {
        let (first, second) = self.0.split_at(self.0.len() / 2);
        (Self(first.to_vec()), Self(second.to_vec()))
    }

    /// How many changes of `actor` it contains.
    #[must_use]
    pub fn get(&self, actor: ActorId) -> u64 {
        self.0.binary_search_by_key(&actor, |e| e.0).map_or(0, |at| self.0[at].1)
    }

    /// One more change of `actor`; its number.
    pub fn advance(&mut self, actor: ActorId) -> u64 {
        let n = self.get(actor).saturating_add(1);
        self.raise(actor, n);
        n
    }

    /// At least `n` changes of `actor`.
    pub(crate) fn raise(&mut self, actor: ActorId, n: u64) {
        if n == 0 {
            return;
        }
        match self.0.binary_search_by_key(&actor, |e| e.0) {
            Ok(at) => self.0[at].1 = self.0[at].1.max(n),
            Err(at) => self.0.insert(at, (actor, n)),
        }
    }

    /// Whether it contains the change.
    #[must_use]
    pub fn contains(&self, dot: Dot) -> bool {
        dot.counter() <= self.get(dot.actor())
    }

    /// Actors and their counts, sorted by actor.
    pub fn iter(&self) -> impl Iterator<Item = (ActorId, u64)> + '_ {
        self.0.iter().copied()
    }

    /// How many actors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it contains no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Compares in one pass over both.
    #[must_use]
    pub fn compare(&self, other: &Self) -> Causality {
        let (mut less, mut more) = (false, false);
        if self.same_actors(other) {
            for (a, b) in self.0.iter().zip(&other.0) {
                less |= a.1 < b.1;
                more |= a.1 > b.1;
            }
        } else {
            (less, more) = self.compare_apart(other);
        }
        match (less, more) {
            (false, false) => Causality::Equal,
            (true, false) => Causality::Before,
            (false, true) => Causality::After,
            (true, true) => Causality::Concurrent,
        }
    }

    fn compare_apart(&self, other: &Self) -> (bool, bool) {
        let (mut less, mut more) = (false, false);
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        loop {
            match (left.peek(), right.peek()) {
                (None, None) => return (less, more),
                (Some(_), None) => return (less, true),
                (None, Some(_)) => return (true, more),
                (Some(a), Some(b)) => match a.0.cmp(&b.0) {
                    Ordering::Less => {
                        more = true;
                        left.next();
                    }
                    Ordering::Greater => {
                        less = true;
                        right.next();
                    }
                    Ordering::Equal => {
                        less |= a.1 < b.1;
                        more |= a.1 > b.1;
                        left.next();
                        right.next();
                    }
                },
            }
        }
    }

    #[inline]
    fn same_actors(&self, other: &Self) -> bool {
        // No early end: the loop is short and runs without branches.
        self.0.len() == other.0.len()
            && self.0.iter().zip(&other.0).fold(0, |differ, (a, b)| {
                let ((x, y), (v, w)) = (a.0.words(), b.0.words());
                differ | (x ^ v) | (y ^ w)
            }) == 0
    }

    /// Takes the larger count of every actor.
    pub fn merge(&mut self, other: &Self) -> Changed {
        if self.same_actors(other) {
            let mut changed = false;
            for (a, b) in self.0.iter_mut().zip(&other.0) {
                changed |= a.1 < b.1;
                a.1 = a.1.max(b.1);
            }
            return Changed::from(changed);
        }
        self.merge_apart(other)
    }

    fn merge_apart(&mut self, other: &Self) -> Changed {
        if !matches!(self.compare(other), Causality::Before | Causality::Concurrent) {
            return Changed::No;
        }
        let mut all = Vec::with_capacity(self.0.len() + other.0.len());
        let (mut left, mut right) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(&&a), Some(&&b)) = (left.peek(), right.peek()) {
            all.push(match a.0.cmp(&b.0) {
                Ordering::Less => a,
                Ordering::Greater => b,
                Ordering::Equal => (a.0, a.1.max(b.1)),
            });
            if a.0 <= b.0 {
                left.next();
            }
            if b.0 <= a.0 {
                right.next();
            }
        }
        all.extend(left.chain(right).copied());
        self.0 = all;
        Changed::Yes
    }

    /// The smaller count of every actor: what both contain.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let both = |&(actor, n): &(ActorId, u64)| {
            let n = n.min(other.get(actor));
            (n > 0).then_some((actor, n))
        };
        Self(self.0.iter().filter_map(both).collect())
    }
}
