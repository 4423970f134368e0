//! L15 and L16: what changes mean, one after the other, beside each other, and after a reset.

use std::fmt;

use mainstay_clock::{Rng, SeededRng};

use crate::laws::run::{Profile, Replica, Report, smallest};
use crate::laws::{Law, Subject, Violation};

/// Checks L15 without concurrency: where every change is made by somebody who knows all earlier ones, a type reads as
/// `specification` says of the changes made so far, wherever each was made. Changes that were not possible are left out.
///
/// ```
/// use mainstay_consistency::crdt::AwSet;
/// use mainstay_consistency::laws::{self, Profile};
///
/// // The operations are those of the subject: "add 1", "add 2", "remove 1", "clear".
/// let specification = |made: &[&str]| {
///     let mut set = std::collections::BTreeSet::new();
///     for op in made {
///         match op.split_once(' ') {
///             Some(("add", n)) => set.extend([n.parse::<u64>().unwrap()]),
///             Some((_, n)) => set.retain(|held| *held != n.parse::<u64>().unwrap()),
///             None => set.clear(),
///         }
///     }
///     set
/// };
/// let read = |set: &AwSet<u64>| set.elements().copied().collect();
/// laws::sequential(Profile::batch(1, 50), read, specification)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first violation, with its seed and the smallest schedule that shows it.
pub fn sequential<T: Subject, R: PartialEq + fmt::Debug>(
    profile: Profile,
    read: impl Fn(&T) -> R,
    specification: impl Fn(&[T::Op]) -> R,
) -> Result<Report, Violation> {
    let alphabet = T::alphabet();
    let mut report = Report { schedules: 0, changes: 0 };
    let run = |steps: &[(usize, T::Op)]| -> Result<u64, Violation> {
        let mut replicas = replicas(profile.replicas);
        let (mut state, mut made) = (T::default(), Vec::new());
        for (at, op) in steps {
            if state.apply(op, &mut replicas[*at]).is_some() {
                made.push(op.clone());
            }
            expect(Law::L15, &read(&state), &specification(&made))?;
        }
        Ok(made.len() as u64)
    };
    for seed in seeds(profile) {
        let rng = SeededRng::new(seed);
        let one = |_| (below(&rng, profile.replicas), alphabet[below(&rng, alphabet.len())].clone());
        let steps: Vec<_> = (0..profile.steps).map(one).collect();
        match run(&steps) {
            Ok(changes) => report.changes += changes,
            Err(found) => return Err(smallest(steps, seed, found, |fewer| run(fewer).err())),
        }
        report.schedules += 1;
    }
    Ok(report)
}

/// A row of a table of what concurrent changes mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair<O> {
    before: Vec<O>,
    one: O,
    other: O,
    reads: String,
}

impl<O> Pair<O> {
    /// After `before`, which both know, a replica makes the change `one`, and another one `other`; neither knows of it.
    /// Then all read `reads`, as `Debug` shows it. What is made `before` is made where `one` is.
    #[must_use]
    pub fn new(before: impl IntoIterator<Item = O>, one: O, other: O, reads: impl fmt::Debug) -> Self {
        Self { before: before.into_iter().collect(), one, other, reads: format!("{reads:?}") }
    }
}

/// Checks L15 with concurrency: each row of `table`, on the two replicas that made the changes and on one that hears of
/// them in the other order.
///
/// ```
/// use mainstay_consistency::crdt::{AwSet, RwSet};
/// use mainstay_consistency::laws::{self, Law, Pair};
///
/// let adding_wins = [Pair::new(["add 1"], "remove 1", "add 1", vec![1])];
/// laws::concurrent(&adding_wins, |set: &AwSet<u64>| set.elements().copied().collect::<Vec<_>>())?;
/// let other = laws::concurrent(&adding_wins, |set: &RwSet<u64>| set.elements().copied().collect::<Vec<_>>());
/// assert_eq!(other.unwrap_err().law, Law::L15);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first row that reads otherwise, or of which a change is not possible.
pub fn concurrent<T: Subject, R: fmt::Debug>(
    table: &[Pair<T::Op>],
    read: impl Fn(&T) -> R,
) -> Result<(), Violation> {
    for row in table {
        let steps = || {
            let before = row.before.iter().map(|op| format!("r0: {op:?}"));
            before.chain([format!("r0: {:?}", row.one), format!("r1: {:?}", row.other)]).collect()
        };
        let broken = |detail: String| Violation { schedule: steps(), ..Violation::of(Law::L15, detail) };
        let mut replicas = replicas(2);
        let mut start = T::default();
        for op in &row.before {
            if start.apply(op, &mut replicas[0]).is_none() {
                return Err(broken(format!("{op:?} is not possible")));
            }
        }
        let (mut left, mut right) = (start.clone(), start.clone());
        let made = (left.apply(&row.one, &mut replicas[0]), right.apply(&row.other, &mut replicas[1]));
        let (Some(one), Some(other)) = made else {
            return Err(broken("one of the two is not possible".to_owned()));
        };
        let mut third = start;
        left.merge(&other);
        right.merge(&one);
        third.merge(&other);
        third.merge(&one);
        for state in [&left, &right, &third] {
            let reads = format!("{:?}", read(state));
            if reads != row.reads {
                return Err(broken(format!("{reads} instead of {}", row.reads)));
            }
        }
    }
    Ok(())
}

/// Checks L16: after any schedule, somebody who knows all of it and makes the change `reset` reads what a new value
/// reads; changes after that mean what they mean to a new value; and nothing of what there was before comes back from
/// whoever still holds it. Of a map, let `reset` remove a key, and read that key only.
///
/// ```
/// use mainstay_consistency::crdt::ResettableCounter;
/// use mainstay_consistency::laws::{self, Profile};
///
/// laws::starts_anew(Profile::batch(1, 50), &"reset", |counter: &ResettableCounter| counter.value())?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first violation, with its seed and the smallest schedule that shows it.
pub fn starts_anew<T: Subject, R: PartialEq + fmt::Debug>(
    profile: Profile,
    reset: &T::Op,
    read: impl Fn(&T) -> R,
) -> Result<Report, Violation> {
    let alphabet = T::alphabet();
    let mut report = Report { schedules: 0, changes: 0 };
    let run = |steps: &[Doing<T::Op>]| anew::<T, R>(steps, profile.replicas, reset, &read);
    for seed in seeds(profile) {
        let rng = SeededRng::new(seed);
        let op = || alphabet[below(&rng, alphabet.len())].clone();
        let one = |_| match rng.below(3) {
            0 => Doing::Pull { to: below(&rng, profile.replicas), from: below(&rng, profile.replicas) },
            _ => Doing::Before(below(&rng, profile.replicas), op()),
        };
        let mut steps: Vec<_> = (0..profile.steps).map(one).collect();
        steps.extend((0..rng.below(4)).map(|_| Doing::After(op())));
        match run(&steps) {
            Ok(changes) => report.changes += changes,
            Err(found) => return Err(smallest(steps, seed, found, |fewer| run(fewer).err())),
        }
        report.schedules += 1;
    }
    Ok(report)
}

/// A step of a schedule with a reset in it.
#[derive(Clone)]
enum Doing<O> {
    /// A replica makes a change before the reset.
    Before(usize, O),
    /// A replica joins another before the reset.
    Pull { to: usize, from: usize },
    /// Who has reset makes a change.
    After(O),
}

impl<O: fmt::Debug> fmt::Debug for Doing<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(at, op) => write!(f, "r{at}: {op:?}"),
            Self::Pull { to, from } => write!(f, "r{to} joins r{from}"),
            Self::After(op) => write!(f, "after the reset: {op:?}"),
        }
    }
}

fn anew<T: Subject, R: PartialEq + fmt::Debug>(
    steps: &[Doing<T::Op>],
    count: usize,
    reset: &T::Op,
    read: &impl Fn(&T) -> R,
) -> Result<u64, Violation> {
    let (mut actors, mut states) = (replicas(count), vec![T::default(); count]);
    let (mut told, mut after) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Doing::Before(at, op) => told.extend(states[*at].apply(op, &mut actors[*at])),
            Doing::Pull { to, from } => {
                let other = states[*from].clone();
                states[*to].merge(&other);
            }
            Doing::After(op) => after.push(op),
        }
    }
    let changes = told.len() as u64;
    told.extend(states.iter().cloned());
    let mut one = told.iter().fold(T::default(), |mut all, part| {
        all.merge(part);
        all
    });
    if one.apply(reset, &mut actors[0]).is_none() {
        return Err(Violation::of(Law::L16, format!("{reset:?} is not possible")));
    }
    let (mut new, mut news) = (T::default(), replicas(count));
    expect(Law::L16, &read(&one), &read(&new))?;
    for op in after {
        let _ = (one.apply(op, &mut actors[0]), new.apply(op, &mut news[0]));
        expect(Law::L16, &read(&one), &read(&new))?;
    }
    for part in &told {
        one.merge(part);
        expect(Law::L16, &read(&one), &read(&new))?;
    }
    Ok(changes)
}

fn expect<R: PartialEq + fmt::Debug>(law: Law, is: &R, should: &R) -> Result<(), Violation> {
    if is == should { Ok(()) } else { Err(Violation::of(law, format!("{is:?} instead of {should:?}"))) }
}

fn replicas(count: usize) -> Vec<Replica> {
    (0..count).filter_map(|index| Replica::new(index, count)).collect()
}

fn seeds(profile: Profile) -> std::ops::Range<u64> {
    profile.seed..profile.seed.saturating_add(profile.schedules)
}

fn below(rng: &SeededRng, n: usize) -> usize {
    usize::try_from(rng.below(n as u64)).unwrap_or(0)
}
