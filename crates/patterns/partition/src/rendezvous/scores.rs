//! The nodes of a rendezvous as columns, and who is best for a key.

use std::cmp::Ordering;
use std::fmt;

use super::score::{cost, score};
use super::vectors::{Arch, LANES, first_max};
use crate::node::NodeIdx;

/// Candidates found in one pass after the first.
pub(crate) const BATCH: usize = 4;

/// Nodes with a weight, sorted by id.
#[derive(Clone)]
pub(crate) struct Scores {
    /// The last one again until full blocks are reached: it scores no better and comes later.
    hashes: Vec<u32>,
    /// Empty when all weights are equal.
    weights: Vec<u64>,
    nodes: Vec<u32>,
    arch: Arch,
}

/// A node that competes for a key.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    cost: u64,
    weight: u64,
    score: u32,
    at: u32,
}

impl Candidate {
    /// `Less` is better: smaller cost per weight, then larger score, then smaller id.
    #[inline]
    fn rank(&self, other: &Self) -> Ordering {
        let (a, b) = (
            u128::from(self.cost) * u128::from(other.weight),
            u128::from(other.cost) * u128::from(self.weight),
        );
        a.cmp(&b).then(other.score.cmp(&self.score)).then(self.at.cmp(&other.at))
    }
}

impl Scores {
    /// From the hash of the name and the weight of each node in order of ids; weight 0 stays out.
    pub(crate) fn new(nodes: impl Iterator<Item = (NodeIdx, u64, u64)>) -> Self {
        let (mut hashes, mut weights, mut indexes) = (Vec::new(), Vec::new(), Vec::new());
        for (idx, hash, weight) in nodes.filter(|(_, _, weight)| *weight > 0) {
            hashes.push((hash >> 32) as u32);
            weights.push(weight);
            indexes.push(idx.get());
        }
        if weights.windows(2).all(|w| w[0] == w[1]) {
            weights = Vec::new();
        }
        if let Some(last) = hashes.last().copied() {
            hashes.resize(hashes.len().next_multiple_of(LANES), last);
        }
        Self { hashes, weights, nodes: indexes, arch: Arch::new() }
    }

    /// Pairs with the same 32 bits: the second never wins against the first.
    pub(crate) fn shadowed(&self) -> Vec<(u32, u32)> {
        let mut sorted: Vec<(u32, u32)> =
            self.hashes.iter().copied().zip(self.nodes.iter().copied()).collect();
        sorted.sort_unstable();
        sorted.windows(2).filter(|w| w[0].0 == w[1].0).map(|w| (w[0].1, w[1].1)).collect()
    }

    /// The best node for a hash.
    #[inline]
    pub(crate) fn best(&self, hash: u64) -> Option<u32> {
        let at = if self.weights.is_empty() { self.best_equal(hash)? } else { self.best_weighted(hash)? };
        Some(self.nodes[at])
    }

    /// Largest score, then smallest id.
    #[inline]
    fn best_equal(&self, hash: u64) -> Option<usize> {
        if self.hashes.is_empty() {
            return None;
        }
        Some(first_max(self.arch, &self.hashes, hash))
    }

    fn best_weighted(&self, hash: u64) -> Option<usize> {
        self.all().map(|at| self.candidate(at, hash)).min_by(Candidate::rank).map(|c| c.at as usize)
    }

    /// Positions of nodes.
    fn all(&self) -> std::ops::Range<u32> {
        0..u32::try_from(self.nodes.len()).unwrap_or(u32::MAX)
    }

    #[inline]
    fn candidate(&self, at: u32, hash: u64) -> Candidate {
        let score = score(self.hashes[at as usize], hash);
        let weight = self.weights.get(at as usize).copied().unwrap_or(1);
        Candidate { cost: cost(score), weight, score, at }
    }

    /// The next best after `last`, at most [`BATCH`], best first.
    fn after(&self, hash: u64, last: Option<u32>) -> ([u32; BATCH], usize) {
        let bar = last.map(|at| self.candidate(at, hash));
        let mut found: [Candidate; BATCH] = [Candidate { cost: 0, weight: 1, score: 0, at: 0 }; BATCH];
        let mut len = 0;
        for at in self.all() {
            let new = self.candidate(at, hash);
            if bar.as_ref().is_some_and(|bar| new.rank(bar) != Ordering::Greater) {
                continue;
            }
            if len == BATCH && new.rank(&found[BATCH - 1]) != Ordering::Less {
                continue;
            }
            let to = found[..len].partition_point(|c| c.rank(&new) == Ordering::Less);
            len = (len + 1).min(BATCH);
            found[to..len].rotate_right(1);
            found[to] = new;
        }
        (found.map(|c| c.at), len)
    }

    /// All nodes, best first.
    #[inline]
    pub(crate) fn walk(&self, hash: u64) -> Ranked<'_> {
        Ranked { scores: self, hash, batch: [0; BATCH], len: 0, next: 0, state: State::Fresh }
    }

    #[cfg(test)]
    fn best_scalar(&self, hash: u64) -> Option<u32> {
        let best = self.all().map(|at| self.candidate(at, hash)).min_by(Candidate::rank)?;
        Some(self.nodes[best.at as usize])
    }
}

impl fmt::Debug for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scores")
            .field("nodes", &self.nodes.len())
            .field("weighted", &!self.weights.is_empty())
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Nothing was given out.
    Fresh,
    /// The best was given out.
    First,
    /// Batches were filled.
    Batched,
    /// The last batch is out.
    Done,
}

/// Nodes from the best down. The owner alone costs one vector pass, each further four one pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ranked<'a> {
    scores: &'a Scores,
    hash: u64,
    batch: [u32; BATCH],
    len: u8,
    next: u8,
    state: State,
}

impl Ranked<'_> {
    pub(crate) fn next(&mut self) -> Option<u32> {
        match self.state {
            State::Done => return None,
            State::Fresh => {
                self.state = State::First;
                return self.scores.best(self.hash);
            }
            State::First => {
                self.fill(None);
                // The best one is out already.
                (self.next, self.state) = (1, State::Batched);
            }
            State::Batched => {}
        }
        if self.next == BATCH as u8 {
            self.fill(Some(self.batch[BATCH - 1]));
        }
        if self.next >= self.len {
            self.state = State::Done;
            return None;
        }
        let at = self.batch[usize::from(self.next)];
        self.next += 1;
        Some(self.scores.nodes[at as usize])
    }

    fn fill(&mut self, last: Option<u32>) {
        let (batch, len) = self.scores.after(self.hash, last);
        (self.batch, self.len, self.next) = (batch, len as u8, 0);
    }

    /// Back to the best.
    pub(crate) fn restart(&mut self) {
        self.state = State::Fresh;
    }
}

#[cfg(test)]
mod tests {
    use super::super::vectors::search;
    use super::Scores;
    use crate::hash::mix64;
    use crate::node::NodeIdx;

    fn scores(n: u32, weight: impl Fn(u32) -> u64) -> Scores {
        Scores::new((0..n).map(|i| (NodeIdx::new(i), mix64(u64::from(i) + 7), weight(i))))
    }

    #[test]
    fn l7_vectors_equal_scalars_and_equal_weights_equal_weighted_ones() {
        for n in [1, 2, 7, 8, 63, 64, 65, 127, 128, 200, 500] {
            let equal = scores(n, |_| 1);
            assert!(equal.weights.is_empty());
            let mut forced = equal.clone();
            forced.weights = vec![3; n as usize];
            for key in 0..2_000_u64 {
                let hash = mix64(key.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                let best = equal.best(hash);
                assert_eq!(best, equal.best_scalar(hash));
                let chunks = search(&equal.hashes, hash);
                assert_eq!(best, Some(equal.nodes[chunks]));
                assert_eq!(best, forced.best(hash));
            }
        }
    }

    #[test]
    fn equal_scores_go_to_the_smallest_id() {
        for n in [2, 64, 65, 130] {
            let mut s = scores(n, |_| 1);
            s.hashes.fill(77);
            assert_eq!(s.best(mix64(5)), Some(0));
            let first = s.nodes.len() / 2;
            s.hashes[..first].fill(1);
            let all: Vec<u32> = std::iter::from_fn({
                let mut walk = s.walk(mix64(5));
                move || walk.next()
            })
            .collect();
            assert_eq!(all.len(), n as usize);
            assert_eq!(Some(all[0]), s.best_scalar(mix64(5)));
        }
        assert_eq!(scores(3, |_| 1).shadowed(), []);
    }

    #[test]
    fn the_walk_is_the_sorted_list() {
        for (n, weighted) in [(1, false), (5, true), (8, true), (9, false), (16, true), (40, true)] {
            let s = scores(n, |i| if weighted { u64::from(i % 4) + 1 } else { 1 });
            for key in 0..200 {
                let hash = mix64(key);
                let mut all: Vec<_> = (0..n).map(|at| s.candidate(at, hash)).collect();
                all.sort_by(|a, b| a.rank(b));
                let mut walk = s.walk(hash);
                let walked: Vec<u32> = std::iter::from_fn(|| walk.next()).collect();
                assert_eq!(walked, all.iter().map(|c| s.nodes[c.at as usize]).collect::<Vec<_>>());
            }
        }
    }
}
