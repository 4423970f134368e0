//! Checkers: each judges one property of a history, event by event.
//!
//! A checker does not know where its history came from: the same one judges a simulation, a run through a
//! fault proxy and a run under kernel faults. It never passes an empty history.

mod automaton;
mod converge;
mod counts;
mod epochs;
mod ledger;
mod liveness;
mod sessions;
mod sweep;
mod wgl;
pub mod zones;

use crate::history::{Config, Event, Fault};
use crate::verdict::Verdict;

pub use automaton::{Automaton, legal};
pub use converge::{Convergence, converges};
pub use counts::{
    Amplification, Jitter, Rate, Schedule, amplification, jitter, kolmogorov_p, kolmogorov_statistic, rate,
    schedule,
};
pub use epochs::{Epochs, epochs_grow};
pub use ledger::{Counter, Ledger, counter, ledger};
pub use liveness::{Liveness, recovers_within};
pub use sessions::{Sessions, session_guarantees};
pub use sweep::{Capacity, at_most, mutual_exclusion};
pub use wgl::{CasRegister, Limits, LockModel, Model, QueueModel, Wgl, linearizable};
pub use zones::{Register, register};

/// Judges one property. Object-safe: `Box<dyn Checker>` is what campaigns keep.
pub trait Checker: Send {
    /// Takes the next event. Events come in the order in which they were recorded, which for operations
    /// is the order of their ends.
    fn feed(&mut self, event: &Event);

    /// The verdict over everything fed.
    fn verdict(self: Box<Self>) -> Verdict;
}

/// Judges a whole history.
///
/// ```
/// use mainstay_sim::check::{judge, mutual_exclusion};
/// use mainstay_sim::verdict::Verdict;
///
/// assert!(matches!(judge(&[], mutual_exclusion()), Verdict::Unknown(_)));
/// ```
#[must_use]
pub fn judge(events: &[Event], mut checker: Box<dyn Checker>) -> Verdict {
    events.iter().for_each(|e| checker.feed(e));
    checker.verdict()
}

/// What was broken in a history, and how many operations felt it, by kind of fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Coverage {
    /// Kind to (fired, operations that overlapped one).
    pub kinds: std::collections::BTreeMap<String, (u64, u64)>,
    /// How often declared states were reached.
    pub sometimes: std::collections::BTreeMap<String, u64>,
    /// Operations.
    pub ops: u64,
}

impl Coverage {
    /// The coverage of one history.
    #[must_use]
    pub fn of(events: &[Event]) -> Self {
        let mut coverage = Self::default();
        let faults: Vec<&Fault> = events
            .iter()
            .filter_map(|e| match e {
                Event::Fault { fault } if fault.fired => Some(fault),
                _ => None,
            })
            .collect();
        for fault in &faults {
            coverage.kinds.entry(fault.kind.to_string()).or_default().0 += 1;
        }
        for event in events {
            match event {
                Event::Op(op) => {
                    coverage.ops += 1;
                    let mut felt: Vec<&str> =
                        faults.iter().filter(|f| f.overlaps(op)).map(|f| &*f.kind).collect();
                    felt.sort_unstable();
                    felt.dedup();
                    for kind in felt {
                        coverage.kinds.entry(kind.to_owned()).or_default().1 += 1;
                    }
                }
                Event::Sometimes { name, count } => {
                    *coverage.sometimes.entry(name.to_string()).or_default() += count;
                }
                _ => {}
            }
        }
        coverage
    }

    /// Adds another run of the same campaign.
    pub fn add(&mut self, other: Self) {
        self.ops += other.ops;
        for (kind, (fired, felt)) in other.kinds {
            let sum = self.kinds.entry(kind).or_default();
            sum.0 += fired;
            sum.1 += felt;
        }
        for (name, count) in other.sometimes {
            *self.sometimes.entry(name).or_default() += count;
        }
    }

    /// Why a pass would be vacuous, if it would: an expected fault that never fired or that no operation
    /// felt, a declared state that was never reached.
    #[must_use]
    pub fn vacuous<'a>(
        &self,
        kinds: impl IntoIterator<Item = &'a str>,
        states: impl IntoIterator<Item = &'a str>,
    ) -> Option<String> {
        for kind in kinds {
            match self.kinds.get(kind) {
                None | Some((0, _)) => return Some(format!("the fault `{kind}` never fired")),
                Some((_, 0)) => return Some(format!("no operation felt the fault `{kind}`")),
                Some(_) => {}
            }
        }
        let missed = states.into_iter().find(|s| self.sometimes.get(*s).copied().unwrap_or(0) == 0);
        missed.map(|s| format!("the state `{s}` was never reached"))
    }
}

/// The configuration line of a history.
#[must_use]
pub fn config_of(events: &[Event]) -> Option<&Config> {
    events.iter().find_map(|e| match e {
        Event::Config(config) => Some(config),
        _ => None,
    })
}
