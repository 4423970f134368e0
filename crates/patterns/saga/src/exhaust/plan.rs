//! Which runs a kit makes. Pure.

use mainstay_clock::{Rng as _, SeededRng};

use crate::definition::{Definition, OnUnknown, StepKind};
use crate::exhaust::lint::has_local_undo;

/// Parallel groups up to this size are tried completely.
const COMPLETE: usize = 4;
/// Runs of a larger group.
const SAMPLES: u64 = 64;

/// What goes wrong at one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// The business says no.
    Rejected,
    NotSent,
    UnknownBefore,
    UnknownAfter,
    /// The first attempt only: the second one must not double its effect.
    UnknownAfterOnce,
    PanicBefore,
    PanicAfter,
    TimeoutBefore,
    TimeoutAfter,
    OutputLost,
    ActTwice,
    UndoTwice,
    UndoFailsOnce,
    UndoFailsForEver,
    UndoRefused,
    /// The undo works, its answer is lost once.
    UndoTimeoutAfterOnce,
    /// Everything sent to the step arrives again after the end.
    Redelivered,
    /// The action arrives after the saga has ended.
    Delayed,
    /// Somebody cancels the saga while the step is in flight.
    Cancelled,
    /// It had an effect that nobody knows of, and a person tries again with other input.
    Edited,
}

impl Fault {
    const ALL: [Self; 20] = [
        Self::Rejected,
        Self::NotSent,
        Self::UnknownBefore,
        Self::UnknownAfter,
        Self::UnknownAfterOnce,
        Self::PanicBefore,
        Self::PanicAfter,
        Self::TimeoutBefore,
        Self::TimeoutAfter,
        Self::OutputLost,
        Self::ActTwice,
        Self::UndoTwice,
        Self::UndoFailsOnce,
        Self::UndoFailsForEver,
        Self::UndoRefused,
        Self::UndoTimeoutAfterOnce,
        Self::Redelivered,
        Self::Delayed,
        Self::Cancelled,
        Self::Edited,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::NotSent => "not_sent",
            Self::UnknownBefore => "unknown_before",
            Self::UnknownAfter => "unknown_after",
            Self::UnknownAfterOnce => "unknown_after_once",
            Self::PanicBefore => "panic_before",
            Self::PanicAfter => "panic_after",
            Self::TimeoutBefore => "timeout_before",
            Self::TimeoutAfter => "timeout_after",
            Self::OutputLost => "output_lost",
            Self::ActTwice => "act_twice",
            Self::UndoTwice => "undo_twice",
            Self::UndoFailsOnce => "undo_fails_once",
            Self::UndoFailsForEver => "undo_fails_for_ever",
            Self::UndoRefused => "undo_refused",
            Self::UndoTimeoutAfterOnce => "undo_timeout_after_once",
            Self::Redelivered => "redelivered",
            Self::Delayed => "delayed",
            Self::Cancelled => "cancelled",
            Self::Edited => "edited",
        }
    }

    fn is_of_undo(self) -> bool {
        matches!(
            self,
            Self::UndoTwice
                | Self::UndoFailsOnce
                | Self::UndoFailsForEver
                | Self::UndoRefused
                | Self::UndoTimeoutAfterOnce
        )
    }
}

/// One way to go wrong.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) name: String,
    /// Step index and fault.
    pub(super) faults: Vec<(usize, Fault)>,
    /// Milliseconds by which a step delays its end, to order parallel ones.
    pub(super) ranks: Vec<(usize, u64)>,
    /// Whether a person may be needed.
    pub(super) person: bool,
    /// Nothing fails for good: it must complete.
    pub(super) completes: bool,
    /// Deliveries after the end are part of it, so a process that goes on after takeover is too.
    pub(super) zombies: bool,
}

/// Where a run is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Never,
    /// The process dies before the k-th append reaches the journal.
    CrashBefore(u64),
    /// The process dies after the k-th append was committed, before it hears.
    CrashAfter(u64),
    /// The process freezes after the k-th append and goes on after another one took over.
    FreezeAfter(u64),
    /// The process freezes before the effect of the k-th call.
    FreezeInCall(u64),
}

impl Stop {
    pub(super) fn name(self, case: &str) -> String {
        match self {
            Self::Never => case.to_owned(),
            Self::CrashBefore(k) => format!("{case}/crash-before-{k}"),
            Self::CrashAfter(k) => format!("{case}/crash-after-{k}"),
            Self::FreezeAfter(k) => format!("{case}/freeze-after-{k}"),
            Self::FreezeInCall(k) => format!("{case}/freeze-in-call-{k}"),
        }
    }
}

impl Case {
    fn new(name: String, faults: Vec<(usize, Fault)>) -> Self {
        Self { name, faults, ranks: Vec::new(), person: false, completes: false, zombies: false }
    }

    /// Whether a person may be asked what became of a step that goes wrong: a crash can hide its answer, and nobody else knows.
    fn asks_a_person(&self, definition: &Definition) -> bool {
        self.faults.iter().map(|(i, _)| &definition.steps()[*i]).any(|step| {
            let known = step.local_status || step.status.is_some();
            let asks = step.kind == StepKind::Pivot || matches!(step.on_unknown, OnUnknown::Ask);
            asks && !known
        })
    }

    /// Every place to cut a run of `appends` appends and `calls` calls.
    pub(super) fn stops(&self, appends: u64, calls: u64) -> Vec<Stop> {
        let mut stops = Vec::new();
        for k in 1..=appends {
            stops.push(Stop::CrashBefore(k));
            stops.push(Stop::CrashAfter(k));
            if self.zombies {
                stops.push(Stop::FreezeAfter(k));
            }
        }
        if self.zombies {
            stops.extend((1..=calls).map(Stop::FreezeInCall));
        }
        stops
    }
}

/// All cases, in a fixed order.
pub(super) fn cases(definition: &Definition, seed: u64, late: bool, zombies: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut happy = Case::new("happy".to_owned(), Vec::new());
    happy.completes = true;
    cases.push(happy);
    for i in 0..definition.steps().len() {
        for fault in Fault::ALL {
            cases.extend(single(definition, i, fault, late));
        }
    }
    for group in levels(definition) {
        cases.extend(parallel(definition, &group, seed));
    }
    for case in &mut cases {
        case.zombies = zombies;
    }
    cases
}

/// `fault` at step `i`, with what it takes to make the saga turn back when the fault is of an undo.
fn single(definition: &Definition, i: usize, fault: Fault, late: bool) -> Option<Case> {
    let step = &definition.steps()[i];
    let undo = has_local_undo(step);
    let asks = matches!(step.on_unknown, OnUnknown::Ask);
    let harmless = matches!(fault, Fault::UnknownAfterOnce | Fault::ActTwice);
    let mut faults = vec![(i, fault)];
    match fault {
        _ if fault.is_of_undo() && !undo => return None,
        Fault::Redelivered | Fault::Delayed if !late => return None,
        // A pivot or a retriable step that only answers later is asked for again until it does.
        Fault::Delayed if !undo => return None,
        // Others are undone without a person.
        Fault::Edited if !undo || !asks => return None,
        _ => {}
    }
    if fault.is_of_undo() || (fault == Fault::Redelivered && undo) {
        faults.push(trigger(definition, i)?);
    }
    let mut case = Case::new(format!("{}.{}", step.name, fault.name()), faults);
    case.person = matches!(fault, Fault::UndoFailsForEver | Fault::UndoRefused)
        || step.kind != StepKind::Compensable
        || asks
        || case.asks_a_person(definition);
    case.completes =
        (harmless && step.retry.attempts > 1) || matches!(fault, Fault::ActTwice | Fault::Edited);
    Some(case)
}

/// A failure that makes step `i` be undone: of a step after it, or its own with an effect.
fn trigger(definition: &Definition, i: usize) -> Option<(usize, Fault)> {
    let step = &definition.steps()[i];
    let after = step.before.iter().find(|j| definition.steps()[**j].kind != StepKind::Retriable);
    match after {
        Some(j) => Some((*j, Fault::Rejected)),
        None if step.kind == StepKind::Compensable => Some((i, Fault::UnknownAfter)),
        None => None,
    }
}

/// Steps by the length of the longest way to them: none of one level waits for another.
fn levels(definition: &Definition) -> Vec<Vec<usize>> {
    let steps = definition.steps();
    let mut depth = vec![0_usize; steps.len()];
    for _ in 0..steps.len() {
        for (i, step) in steps.iter().enumerate() {
            depth[i] = step.after.iter().map(|p| depth[*p] + 1).max().unwrap_or(0);
        }
    }
    let deepest = depth.iter().copied().max().unwrap_or(0);
    let level = |d: usize| (0..steps.len()).filter(|i| depth[*i] == d).collect::<Vec<_>>();
    (0..=deepest).map(level).filter(|g: &Vec<usize>| g.len() > 1).collect()
}

/// Subsets of a parallel group fail, in every order of their ends.
fn parallel(definition: &Definition, group: &[usize], seed: u64) -> Vec<Case> {
    let group: Vec<usize> =
        group.iter().copied().filter(|i| definition.steps()[*i].kind == StepKind::Compensable).collect();
    if group.len() < 2 {
        return Vec::new();
    }
    let rng = SeededRng::new(seed);
    let all = 1_u64 << group.len();
    let (subsets, orders): (Vec<u64>, Vec<Vec<usize>>) = if group.len() <= COMPLETE {
        ((1..all).collect(), permutations(&group))
    } else {
        let shuffled = (0..SAMPLES).map(|_| shuffle(group.clone(), &rng)).collect();
        ((0..SAMPLES).map(|_| 1 + rng.below(all - 1)).collect(), shuffled)
    };
    let mut cases = Vec::new();
    let pairs: Vec<(u64, &Vec<usize>)> = if group.len() <= COMPLETE {
        subsets.iter().flat_map(|s| orders.iter().map(|o| (*s, o))).collect()
    } else {
        subsets.into_iter().zip(&orders).collect()
    };
    for (subset, order) in pairs {
        let failing = group.iter().enumerate().filter(|(bit, _)| subset & (1 << bit) != 0);
        // Alternately a clean "no" and an effect without an answer.
        let fault = |bit: usize| if bit.is_multiple_of(2) { Fault::Rejected } else { Fault::UnknownAfter };
        let faults: Vec<(usize, Fault)> = failing.map(|(bit, i)| (*i, fault(bit))).collect();
        let text = |indexes: &[usize]| {
            let names: Vec<&str> = indexes.iter().map(|i| definition.steps()[*i].name.as_str()).collect();
            names.join("+")
        };
        let failed: Vec<usize> = faults.iter().map(|(i, _)| *i).collect();
        let name = format!("parallel {} fail in order {}", text(&failed), text(order));
        let mut case = Case::new(name, faults);
        case.person = case.asks_a_person(definition);
        case.ranks = (1..).zip(order).map(|(rank, i)| (*i, rank * 10)).collect();
        cases.push(case);
    }
    cases
}

fn permutations(items: &[usize]) -> Vec<Vec<usize>> {
    if items.is_empty() {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for (i, first) in items.iter().enumerate() {
        let mut rest = items.to_vec();
        rest.remove(i);
        for mut tail in permutations(&rest) {
            tail.insert(0, *first);
            all.push(tail);
        }
    }
    all
}

/// Fisher and Yates.
fn shuffle(mut items: Vec<usize>, rng: &SeededRng) -> Vec<usize> {
    for i in (1..items.len()).rev() {
        let j = usize::try_from(rng.below(i as u64 + 1)).unwrap_or(0);
        items.swap(i, j);
    }
    items
}

/// `room` of the runs, chosen by seed, in their order.
pub(super) fn sample<T>(runs: Vec<T>, room: usize, seed: u64) -> Vec<T> {
    let rng = SeededRng::new(seed);
    let total = runs.len();
    let order = shuffle((0..total).collect(), &rng);
    let mut keep = vec![false; total];
    order.into_iter().take(room).for_each(|i| keep[i] = true);
    runs.into_iter().zip(keep).filter_map(|(run, kept)| kept.then_some(run)).collect()
}
