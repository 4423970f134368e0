//! Sets of counters of one actor, as intervals.

/// Counters `1..=prefix`, and beyond it disjoint intervals with a gap before each.
///
/// The form is canonical: equal sets are equal structures, because neighbours are always joined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Runs {
    prefix: u64,
    rest: Vec<(u64, u64)>,
}

impl Runs {
    pub(crate) fn range(lo: u64, hi: u64) -> Self {
        let mut runs = Self::default();
        runs.push(lo, hi);
        runs
    }

    /// From ascending, possibly touching or overlapping intervals.
    pub(crate) fn of(intervals: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut runs = Self::default();
        for (lo, hi) in intervals {
            runs.push(lo, hi);
        }
        runs
    }

    /// Adds an interval that starts at or after every start before it.
    fn push(&mut self, lo: u64, hi: u64) {
        if lo > hi || lo == 0 {
            return;
        }
        if let Some(last) = self.rest.last_mut() {
            if lo <= last.1.saturating_add(1) {
                last.1 = last.1.max(hi);
            } else {
                self.rest.push((lo, hi));
            }
        } else if lo <= self.prefix.saturating_add(1) {
            self.prefix = self.prefix.max(hi);
        } else {
            self.rest.push((lo, hi));
        }
    }

    pub(crate) fn prefix(&self) -> u64 {
        self.prefix
    }

    /// The intervals beyond the prefix.
    pub(crate) fn rest(&self) -> &[(u64, u64)] {
        &self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.prefix == 0 && self.rest.is_empty()
    }

    /// Every interval, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let first = (self.prefix > 0).then_some((1, self.prefix));
        first.into_iter().chain(self.rest.iter().copied())
    }

    #[inline]
    pub(crate) fn contains(&self, n: u64) -> bool {
        if n <= self.prefix {
            return n > 0;
        }
        let at = self.rest.partition_point(|r| r.1 < n);
        self.rest.get(at).is_some_and(|r| r.0 <= n)
    }

    pub(crate) fn max(&self) -> u64 {
        self.rest.last().map_or(self.prefix, |r| r.1)
    }

    /// How many counters.
    pub(crate) fn count(&self) -> u64 {
        self.iter().map(|(lo, hi)| hi - lo + 1).fold(0, u64::saturating_add)
    }

    /// How many intervals.
    pub(crate) fn pieces(&self) -> usize {
        usize::from(self.prefix > 0) + self.rest.len()
    }

    /// Whether it was new.
    pub(crate) fn insert(&mut self, n: u64) -> bool {
        if n == 0 || self.contains(n) {
            return false;
        }
        if n == self.prefix + 1 {
            self.prefix = n;
            if let Some(&(lo, hi)) = self.rest.first()
                && lo == n + 1
            {
                self.prefix = hi;
                self.rest.remove(0);
            }
            return true;
        }
        let at = self.rest.partition_point(|r| r.1 < n);
        let joins_before = at > 0 && self.rest[at - 1].1 + 1 == n;
        let joins_after = self.rest.get(at).is_some_and(|r| r.0 == n + 1);
        match (joins_before, joins_after) {
            (true, true) => {
                self.rest[at - 1].1 = self.rest[at].1;
                self.rest.remove(at);
            }
            (true, false) => self.rest[at - 1].1 = n,
            (false, true) => self.rest[at].0 = n,
            (false, false) => self.rest.insert(at, (n, n)),
        }
        true
    }

    /// Adds everything of `other`; whether something was new.
    pub(crate) fn union(&mut self, other: &Self) -> bool {
        if other.rest.is_empty() && other.prefix <= self.prefix {
            return false;
        }
        if self.rest.is_empty() && other.rest.is_empty() {
            self.prefix = other.prefix;
            return true;
        }
        // The usual delta: one counter.
        if other.prefix == 0
            && let [(lo, hi)] = other.rest[..]
            && lo == hi
        {
            return self.insert(lo);
        }
        if self.covers(other) {
            return false;
        }
        let mut all: Vec<(u64, u64)> = self.iter().chain(other.iter()).collect();
        all.sort_unstable();
        *self = Self::of(all);
        true
    }

    pub(crate) fn covers(&self, other: &Self) -> bool {
        other.iter().all(|(lo, hi)| {
            if hi <= self.prefix {
                return true;
            }
            let at = self.rest.partition_point(|r| r.1 < hi);
            self.rest.get(at).is_some_and(|r| r.0 <= lo)
        })
    }

    /// What is here and not in `other`.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let mut out = Self::default();
        let mut cuts = other.iter().peekable();
        for (mut lo, hi) in self.iter() {
            while let Some(&(from, to)) = cuts.peek() {
                if to < lo {
                    cuts.next();
                    continue;
                }
                if from > hi {
                    break;
                }
                if from > lo {
                    out.push(lo, from - 1);
                }
                lo = to.saturating_add(1);
                if lo > hi {
                    break;
                }
                cuts.next();
            }
            if lo <= hi {
                out.push(lo, hi);
            }
        }
        out
    }

    /// What is in both.
    pub(crate) fn common(&self, other: &Self) -> Self {
        let mut out = Self::default();
        let (mut left, mut right) = (self.iter().peekable(), other.iter().peekable());
        while let (Some(&(a, b)), Some(&(c, d))) = (left.peek(), right.peek()) {
            out.push(a.max(c), b.min(d));
            if b <= d {
                left.next();
            }
            if d <= b {
                right.next();
            }
        }
        out
    }

    /// The first `n` counters, and the others.
    pub(crate) fn split(&self, mut n: u64) -> (Self, Self) {
        let (mut first, mut second) = (Self::default(), Self::default());
        for (lo, hi) in self.iter() {
            let take = n.min(hi - lo + 1);
            if take > 0 {
                first.push(lo, lo + take - 1);
            }
            second.push(lo + take, hi);
            n -= take;
        }
        (first, second)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mainstay_clock::{Rng, SeededRng};

    use super::Runs;

    fn of(set: &BTreeSet<u64>) -> Runs {
        Runs::of(set.iter().map(|n| (*n, *n)))
    }

    #[test]
    fn every_operation_is_that_of_sets() {
        let rng = SeededRng::new(11);
        for round in 0..4_000_u64 {
            let density = 1 + rng.below(20);
            let draw = || -> BTreeSet<u64> { (0..density).map(|_| 1 + rng.below(18)).collect() };
            let (a, b) = (draw(), draw());
            let (x, y) = (of(&a), of(&b));
            let mut sum = x.clone();
            assert_eq!(sum.union(&y), !b.is_subset(&a), "round {round}");
            assert_eq!(sum, of(&(&a | &b)));
            assert_eq!(x.minus(&y), of(&(&a - &b)));
            assert_eq!(x.common(&y), of(&(&a & &b)));
            assert_eq!(x.covers(&y), b.is_subset(&a));
            assert_eq!(x.count(), a.len() as u64);
            assert_eq!(x.max(), a.last().copied().unwrap_or(0));
            let (first, second) = x.split(3);
            assert_eq!(first, of(&a.iter().copied().take(3).collect()));
            assert_eq!(second, of(&a.iter().copied().skip(3).collect()));
            let mut one = Runs::default();
            // Inserted in an order of its own.
            for n in b.iter().rev().chain(&a) {
                one.insert(*n);
            }
            assert_eq!(one, of(&(&a | &b)));
            assert!((1..20).all(|n| one.contains(n) == (a.contains(&n) || b.contains(&n))));
        }
    }
}
