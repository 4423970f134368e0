//! The laws of replicated data, as a harness for the types here, and for types and merge functions of users.
//!
//! | law | says |
//! |---|---|
//! | L1 to L3 | a join is idempotent, commutative, associative |
//! | L4, L5 | a join grows, agrees with the order, and bottom changes nothing |
//! | L6, L7 | a change grows, and equals the join with its delta |
//! | L8, L10 | deltas in any order, doubled, give the full state |
//! | L9 | a join reports a change iff there was one |
//! | L11, L14 | a network converges after losses; forgetting is invisible |
//! | L12 | what somebody misses is exactly what makes both equal |
//! | L13, L18 | actors and clocks never repeat themselves |
//! | L15, L16 | what concurrent and repeated changes mean, type by type |
//! | L17, L19 | orders are orders |
//! | L20 | equal values are equal bytes; decoding undoes encoding |
//! | L21 | versions that do not fit refuse each other by name |
//!
//! | law | run it on | with |
//! |---|---|---|
//! | L1 to L10, L12, L20 | a type, as a [`Subject`] | [`check`] over random schedules, [`exhaustive`] over every short one |
//! | L1 to L3 | a plain merge function | [`merge_function`] |
//! | L11, L9 and L12 of what is passed on, L14 | a type that is replicated | [`network::converges`], [`network::passes_on_news`], [`network::forgets_invisibly`] |
//! | L13 | what gives a node its identity | [`actors`] |
//! | L15 | a type and what it should mean | [`sequential`], [`concurrent`] |
//! | L16 | a type and its reset or removal | [`starts_anew`] |
//! | L17 | an order of versions or stamps | [`total_order`] |
//! | L18 | a clock, as a [`Stamping`] | [`clocks`] |
//! | L19 | a version, a [`SiblingStore`] | [`partial_order`], [`siblings`] |
//! | L21 | two versions of a type | [`versions_meet`] |
//!
//! A violation comes with the seed, and with the smallest schedule that shows it or the last steps before it. The laws of
//! sessions, SL1 to SL6, are about stores: `mainstay-sim` has their checker and the suite for a `ReplicatedStore`.
//!
//! ```
//! use mainstay_consistency::laws::{self, Law};
//!
//! // Keeps the longer text, and of two equally long ones the left one: two replicas never agree.
//! let merge = |a: &String, b: &String| if b.len() > a.len() { b.clone() } else { a.clone() };
//! let samples = ["", "ada", "bob"].map(str::to_owned);
//! assert_eq!(laws::merge_function(&samples, merge).unwrap_err().law, Law::L2);
//! ```

mod actors;
mod clock;
mod meaning;
mod mixed;
pub mod network;
mod run;
mod stamps;
mod subjects;
mod versions;

use std::fmt;

pub use actors::{Disk, actors};
pub use clock::ManualClock;
pub use meaning::{Pair, concurrent, sequential, starts_anew};
pub use mixed::{Meeting, versions_meet};
pub use run::{Profile, Replica, Report, check, exhaustive};
pub use stamps::{Stamping, clocks};
pub use versions::{SiblingStore, partial_order, siblings};

/// A law by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the table of the module says what each is")]
pub enum Law {
    L1,
    L2,
    L3,
    L4,
    L5,
    L6,
    L7,
    L8,
    L9,
    L10,
    L11,
    L12,
    L13,
    L14,
    L15,
    L16,
    L17,
    L18,
    L19,
    L20,
    L21,
}

/// A broken law, with what shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// Which law.
    pub law: Law,
    /// The seed of the schedule; zero where there is none.
    pub seed: u64,
    /// The smallest schedule found that shows it.
    pub schedule: Vec<String>,
    /// What was and what should have been.
    pub detail: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schedule = self.schedule.join("; ");
        write!(f, "{:?} is broken (seed {}) by [{schedule}]: {}", self.law, self.seed, self.detail)
    }
}

impl std::error::Error for Violation {}

impl Violation {
    fn of(law: Law, detail: impl Into<String>) -> Self {
        Self { law, seed: 0, schedule: Vec::new(), detail: detail.into() }
    }
}

/// A replicated type under test. Bottom is its default.
///
/// What a type does not have (an order, deltas of what is missing, an encoding) is left at its default, and the law is
/// not checked.
pub trait Subject: Clone + PartialEq + fmt::Debug + Default {
    /// A kind of change.
    type Op: Clone + fmt::Debug;

    /// Every kind of change, with few distinct keys and values: conflicts are what is looked for.
    fn alphabet() -> Vec<Self::Op>;

    /// Makes a change and answers with its delta; `None` when it is not possible now.
    fn apply(&mut self, op: &Self::Op, replica: &mut Replica) -> Option<Self>;

    /// Joins `other`, and says whether that changed anything.
    fn merge(&mut self, other: &Self) -> bool;

    /// Whether `other` contains this state.
    fn leq(&self, _other: &Self) -> Option<bool> {
        None
    }

    /// What `other` misses.
    fn missing_at(&self, _other: &Self) -> Option<Self> {
        None
    }

    /// The encoding, and what decoding it gives.
    fn round_trip(&self) -> Option<(Vec<u8>, Option<Self>)> {
        None
    }
}

/// Checks L1 to L3 of a merge function over every triple of `samples`.
///
/// # Errors
/// The first violation.
pub fn merge_function<V: PartialEq + fmt::Debug>(
    samples: &[V],
    merge: impl Fn(&V, &V) -> V,
) -> Result<(), Violation> {
    for a in samples {
        let same = merge(a, a);
        if same != *a {
            return Err(Violation::of(Law::L1, format!("{a:?} with itself gives {same:?}")));
        }
        for b in samples {
            let (ab, ba) = (merge(a, b), merge(b, a));
            if ab != ba {
                return Err(Violation::of(
                    Law::L2,
                    format!("{a:?} with {b:?} gives {ab:?}, the other way {ba:?}"),
                ));
            }
            for c in samples {
                let (left, right) = (merge(&ab, c), merge(a, &merge(b, c)));
                if left != right {
                    let detail = format!("{a:?}, {b:?}, {c:?} give {left:?} or {right:?} by grouping");
                    return Err(Violation::of(Law::L3, detail));
                }
            }
        }
    }
    Ok(())
}

/// Checks L17: `less` is a strict total order over `samples`, and values that are not ordered are equal.
///
/// # Errors
/// The first violation.
pub fn total_order<V: PartialEq + fmt::Debug>(
    samples: &[V],
    less: impl Fn(&V, &V) -> bool,
) -> Result<(), Violation> {
    for a in samples {
        for b in samples {
            let orders = usize::from(less(a, b)) + usize::from(less(b, a));
            if orders != usize::from(a != b) {
                return Err(Violation::of(Law::L17, format!("{a:?} and {b:?} are ordered {orders} ways")));
            }
            for c in samples {
                if less(a, b) && less(b, c) && !less(a, c) {
                    return Err(Violation::of(
                        Law::L17,
                        format!("{a:?} < {b:?} < {c:?}, but not the first and last"),
                    ));
                }
            }
        }
    }
    Ok(())
}
