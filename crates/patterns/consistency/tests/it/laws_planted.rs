//! One planted bug per law of joins, deltas and encodings: the harness names the law that it breaks.
//!
//! What is planted is a set of numbers in which one thing is wrong. A bug may break several laws; the one that is named
//! is the first that its first schedule shows.

use std::collections::BTreeSet;

use mainstay_consistency::laws::{self, Law, Profile, Replica, Subject};

/// What is wrong.
const NOTHING: u8 = 0;
const NOT_IDEMPOTENT: u8 = 1;
const NOT_COMMUTATIVE: u8 = 2;
const NOT_ASSOCIATIVE: u8 = 3;
const WRONG_ORDER: u8 = 4;
const NO_BOTTOM: u8 = 5;
const SHRINKS: u8 = 6;
const OTHER_DELTA: u8 = 7;
const COUNTS_DELIVERIES: u8 = 8;
const SILENT: u8 = 9;
const NEEDS_ORDER: u8 = 10;
const MISSES: u8 = 12;
const OTHER_BYTES: u8 = 20;

/// A set that only grows, of which changes have numbers of their own: node times ten and the operation. With a bug; `n` is
/// what that needs besides, and of a change that travels alone it is its place among those of its node.
#[derive(Clone, Debug, Default, PartialEq)]
struct Planted<const BUG: u8> {
    set: BTreeSet<u64>,
    n: u64,
}

impl<const BUG: u8> Planted<BUG> {
    fn of(set: impl IntoIterator<Item = u64>) -> Self {
        Self { set: set.into_iter().collect(), n: 0 }
    }

    /// The number of a change of `node`.
    fn change(node: u64, op: u64) -> u64 {
        node * 10 + op
    }

    /// Whether a later change of the node that made the only one in `other` is here.
    fn is_ahead_of(&self, other: &Self) -> bool {
        let Some(change) = other.set.first() else { return false };
        self.set.iter().any(|held| held / 10 == change / 10 && held % 10 > change % 10)
    }
}

impl<const BUG: u8> Subject for Planted<BUG> {
    type Op = u64;

    fn alphabet() -> Vec<u64> {
        vec![1, 2, 3]
    }

    fn apply(&mut self, op: &u64, replica: &mut Replica) -> Option<Self> {
        let node = replica.actor.id().node();
        let change = Self::change(node, *op);
        if self.set.contains(&change) {
            return None;
        }
        let mut delta = Self::of([change]);
        delta.n = match BUG {
            NOT_COMMUTATIVE => node,
            NOT_ASSOCIATIVE => *op,
            SHRINKS => self.n + 1,
            COUNTS_DELIVERIES | NEEDS_ORDER => 1,
            _ => 0,
        };
        self.merge(&delta);
        match BUG {
            OTHER_DELTA => delta = Self::of([]),
            COUNTS_DELIVERIES | NEEDS_ORDER => self.n = 0,
            _ => {}
        }
        Some(delta)
    }

    fn merge(&mut self, other: &Self) -> bool {
        let before = self.clone();
        match BUG {
            NOT_IDEMPOTENT => self.n += u64::from(self.set == other.set && self.set.len() > 1),
            // The right one stays.
            NOT_COMMUTATIVE if other.n > 0 => self.n = other.n,
            // Each beats the one after it, in a circle.
            NOT_ASSOCIATIVE if self.n == 0 || other.n % 3 + 1 == self.n => {
                self.n = other.n.max(self.n.min(1) * other.n)
            }
            NO_BOTTOM => self.n |= other.n | u64::from(self.set.is_empty() != other.set.is_empty()),
            SHRINKS if other.set.len() == 1 => self.n = other.n,
            SHRINKS => self.n = self.n.min(other.n),
            // A change that comes again leaves a trace.
            COUNTS_DELIVERIES if other.n == 1 && other.set.is_subset(&self.set) => self.set.extend([99]),
            // A change that comes after a later one of its node is dropped, where nothing but changes came.
            NEEDS_ORDER if self.n == 1 && other.n == 1 && self.is_ahead_of(other) => return false,
            NEEDS_ORDER if self.set.is_empty() => self.n = other.n,
            _ => {}
        }
        self.set.extend(&other.set);
        *self != before && !(BUG == SILENT && other.set.len() > 1)
    }

    fn leq(&self, other: &Self) -> Option<bool> {
        match BUG {
            NOTHING | MISSES | OTHER_BYTES => Some(self.set.is_subset(&other.set)),
            WRONG_ORDER => Some(self.set.len() <= other.set.len()),
            _ => None,
        }
    }

    fn missing_at(&self, other: &Self) -> Option<Self> {
        let missing = self.set.difference(&other.set).copied();
        match BUG {
            NOTHING => Some(Self::of(missing)),
            MISSES => Some(Self::of(missing.take(1))),
            _ => None,
        }
    }

    fn round_trip(&self) -> Option<(Vec<u8>, Option<Self>)> {
        let (mut bytes, mut back): (Vec<u8>, _) = (self.set.iter().map(|n| *n as u8).collect(), self.clone());
        match BUG {
            NOTHING => Some((bytes, Some(back))),
            OTHER_BYTES if bytes.len() > 1 => {
                let _ = (bytes.pop(), back.set.pop_last());
                Some((bytes, Some(back)))
            }
            _ => None,
        }
    }
}

#[track_caller]
fn found<const BUG: u8>(law: Law) {
    let random = laws::check::<Planted<BUG>>(Profile::standard()).unwrap_err();
    assert_eq!(random.law, law, "{random}");
    assert!(random.schedule.len() <= 10, "{random}");
    let again = laws::check::<Planted<BUG>>(Profile::batch(random.seed, 1)).unwrap_err();
    assert_eq!(again, random, "a seed replays");
}

#[test]
fn what_has_no_bug_breaks_no_law() {
    laws::check::<Planted<NOTHING>>(Profile::standard()).unwrap();
    laws::exhaustive::<Planted<NOTHING>>(3).unwrap();
}

#[test]
fn l1_a_join_that_is_not_idempotent_is_found() {
    found::<NOT_IDEMPOTENT>(Law::L1);
}

#[test]
fn l2_a_join_that_is_not_commutative_is_found() {
    found::<NOT_COMMUTATIVE>(Law::L2);
}

#[test]
fn l3_a_join_that_is_not_associative_is_found() {
    found::<NOT_ASSOCIATIVE>(Law::L3);
}

#[test]
fn l4_an_order_that_is_not_that_of_the_join_is_found() {
    found::<WRONG_ORDER>(Law::L4);
}

#[test]
fn l5_a_bottom_that_changes_something_is_found() {
    found::<NO_BOTTOM>(Law::L5);
}

#[test]
fn l6_a_change_that_takes_something_away_is_found() {
    found::<SHRINKS>(Law::L6);
}

#[test]
fn l7_a_delta_without_the_change_is_found() {
    found::<OTHER_DELTA>(Law::L7);
}

#[test]
fn l8_a_delta_that_counts_when_it_comes_again_is_found() {
    found::<COUNTS_DELIVERIES>(Law::L8);
}

#[test]
fn l9_a_join_that_is_silent_about_what_it_changed_is_found() {
    found::<SILENT>(Law::L9);
}

#[test]
fn l10_a_delta_that_is_dropped_when_it_comes_early_is_found() {
    found::<NEEDS_ORDER>(Law::L10);
}

#[test]
fn l12_less_than_what_is_missing_is_found() {
    found::<MISSES>(Law::L12);
}

#[test]
fn l20_an_encoding_that_drops_something_is_found() {
    found::<OTHER_BYTES>(Law::L20);
}
