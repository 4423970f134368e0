//! What is known of one peer.

use crate::replicate::message::Mark;
use crate::version::VersionVector;

/// Most parts of one delta that a receiver puts together.
pub(super) const MAX_PARTS: u64 = 64;

#[derive(Debug)]
pub(super) struct Peer<T> {
    /// How much of my log it has.
    pub(super) acked: u64,
    /// How much of its log I have.
    pub(super) applied: Mark,
    /// A delta that is not complete.
    partial: Option<(Whole, Vec<T>)>,
    /// Whether it lacks my present stand.
    pub(super) owed: bool,
    /// The hash of the collected cut it last named.
    pub(super) collected: u64,
    /// Bytes it may still get before the next tick.
    pub(super) budget: usize,
    /// Whether a root of it was answered with a root since the last tick.
    pub(super) answered: bool,
    /// Whether it was told what was collected since the last tick.
    pub(super) told: bool,
    /// Whether something of it is held back.
    pub(super) early: bool,
}

/// Which delta a part is of. Where a delta was cut depends on the room that its collected cut left, so parts that carry
/// another one do not fit together either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) start: u64,
    pub(super) mark: Mark,
    pub(super) collected: Option<VersionVector>,
    pub(super) parts: u64,
}

/// What a part was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken<T> {
    /// The last one: these are all of them, in order.
    All(Vec<T>),
    /// More are to come.
    Open,
    /// None that follows the one before.
    Refused,
}

impl<T> Peer<T> {
    pub(super) fn new(budget: usize) -> Self {
        Self {
            acked: 0,
            applied: Mark::default(),
            partial: None,
            owed: true,
            collected: 0,
            budget,
            answered: false,
            told: false,
            early: false,
        }
    }

    /// It holds what it could have told: parts of that are needed no more.
    pub(super) fn has(&mut self, mark: Mark) {
        self.applied = mark;
        self.partial = None;
    }

    /// Takes a part in. The first one begins anew, whatever there was.
    pub(super) fn take(&mut self, of: Whole, part: u64, state: T) -> Taken<T> {
        let fits = match &self.partial {
            _ if part == 0 => of.parts <= MAX_PARTS,
            Some((whole, parts)) => *whole == of && part == parts.len() as u64,
            None => false,
        };
        if !fits || part >= of.parts {
            self.partial = None;
            return Taken::Refused;
        }
        let mut parts = self.partial.take().map(|(_, parts)| parts).filter(|_| part > 0).unwrap_or_default();
        parts.push(state);
        if part + 1 == of.parts {
            return Taken::All(parts);
        }
        self.partial = Some((of, parts));
        Taken::Open
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_PARTS, Mark, Peer, Taken, VersionVector, Whole};

    fn whole(start: u64, seq: u64, parts: u64) -> Whole {
        Whole { start, mark: Mark { session: 1, seq }, collected: None, parts }
    }

    #[test]
    fn g2_parts_of_one_delta_only_are_put_together() {
        let a = whole(5, 8, 2);
        for b in [
            whole(5, 10, 2),
            whole(4, 8, 2),
            whole(5, 8, 3),
            Whole { mark: Mark { session: 2, seq: 8 }, ..a.clone() },
            Whole { collected: Some(VersionVector::new()), ..a.clone() },
        ] {
            let mut peer = Peer::new(0);
            assert_eq!(peer.take(a.clone(), 0, "a0"), Taken::Open);
            assert_eq!(peer.take(b.clone(), 1, "b1"), Taken::Refused, "{b:?}");
            assert_eq!(peer.take(a.clone(), 1, "a1"), Taken::Refused, "it begins anew");
            assert_eq!(peer.take(a.clone(), 0, "a0"), Taken::Open);
            assert_eq!(peer.take(b.clone(), 0, "b0"), Taken::Open);
            assert_eq!(peer.take(a.clone(), 0, "a0"), Taken::Open);
            assert_eq!(peer.take(a.clone(), 1, "a1"), Taken::All(vec!["a0", "a1"]));
        }
    }

    #[test]
    fn parts_that_nobody_sends_are_refused() {
        let mut peer = Peer::new(0);
        for (part, parts) in [(0, 0), (1, 1), (1, 2), (0, MAX_PARTS + 1), (u64::MAX, u64::MAX)] {
            assert_eq!(peer.take(whole(0, 1, parts), part, ()), Taken::Refused, "{part} of {parts}");
        }
        for part in 0..MAX_PARTS - 1 {
            assert_eq!(peer.take(whole(0, 1, MAX_PARTS), part, ()), Taken::Open);
        }
        let last = peer.take(whole(0, 1, MAX_PARTS), MAX_PARTS - 1, ());
        assert_eq!(last, Taken::All(vec![(); MAX_PARTS as usize]));
    }
}
