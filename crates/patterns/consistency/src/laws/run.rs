//! Schedules: made from seeds or all of them, run, judged, made smaller.

use std::fmt;
use std::sync::Arc;

use mainstay_clock::{Rng, SeededRng};

use crate::hlc::Hlc;
use crate::laws::{Law, ManualClock, Subject, Violation};
use crate::{Actor, ActorId};

/// What a replica of a schedule has besides its state.
#[derive(Debug)]
pub struct Replica {
    /// Its actor.
    pub actor: Actor,
    /// Its clock.
    pub hlc: Hlc,
    /// The actors of all replicas.
    pub all: Vec<ActorId>,
    wall: Arc<ManualClock>,
}

impl Replica {
    /// Replica `index` of `count`. The clocks differ: later replicas are slower.
    pub(super) fn new(index: usize, count: usize) -> Option<Self> {
        let id = |i: usize| ActorId::new(i as u64 + 1, 1, 0);
        let wall = Arc::new(ManualClock::new(1_000_000 - index as i64));
        let hlc = Hlc::builder(wall.clone()).build().ok()?;
        Some(Self { actor: Actor::new(id(index)), hlc, all: (0..count).map(id).collect(), wall })
    }

    /// Lets its wall clock show another millisecond.
    pub fn set_wall(&self, ms: i64) {
        self.wall.set(ms);
    }
}

/// How much is tried.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// The first seed.
    pub seed: u64,
    /// How many schedules.
    pub schedules: u64,
    /// Steps of a schedule.
    pub steps: usize,
    /// Replicas.
    pub replicas: usize,
}

impl Profile {
    /// 500 schedules of 24 steps on three replicas: a second or so in a debug build.
    #[must_use]
    pub const fn standard() -> Self {
        Self { seed: 1, schedules: 500, steps: 24, replicas: 3 }
    }

    /// The same with `schedules`, from `seed` on.
    #[must_use]
    pub const fn batch(seed: u64, schedules: u64) -> Self {
        Self { seed, schedules, steps: 24, replicas: 3 }
    }
}

/// How much was tried without a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Schedules.
    pub schedules: u64,
    /// Changes made in them.
    pub changes: u64,
}

#[derive(Clone)]
enum Move<O> {
    /// A replica makes a change.
    Change(usize, O),
    /// A replica joins the whole state of another.
    Pull { to: usize, from: usize },
    /// A replica joins one delta, known or not.
    Deliver { to: usize, delta: usize },
}

impl<O: fmt::Debug> fmt::Debug for Move<O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Change(at, op) => write!(f, "r{at}: {op:?}"),
            Self::Pull { to, from } => write!(f, "r{to} joins r{from}"),
            Self::Deliver { to, delta } => write!(f, "r{to} joins delta {delta}"),
        }
    }
}

/// Runs L1 to L10, L12 and L20 over random schedules with full and partial exchanges, repetitions and reordering.
///
/// # Errors
/// The first violation, with its seed and the smallest schedule that shows it.
pub fn check<T: Subject>(profile: Profile) -> Result<Report, Violation> {
    let alphabet = T::alphabet();
    let mut report = Report { schedules: 0, changes: 0 };
    for seed in profile.seed..profile.seed.saturating_add(profile.schedules) {
        let schedule = draw(&alphabet, profile, seed);
        match run::<T>(&schedule, profile.replicas, seed) {
            Ok(changes) => report.changes += changes,
            Err(found) => return Err(shrink::<T>(schedule, profile.replicas, seed, found)),
        }
        report.schedules += 1;
    }
    Ok(report)
}

fn draw<O: Clone>(alphabet: &[O], profile: Profile, seed: u64) -> Vec<Move<O>> {
    let rng = SeededRng::new(seed);
    let index = |n: usize| rng.below(n as u64) as usize;
    let one = |_| {
        let to = index(profile.replicas);
        match index(10) {
            0..=4 if !alphabet.is_empty() => Move::Change(to, alphabet[index(alphabet.len())].clone()),
            5..=7 => Move::Deliver { to, delta: index(profile.steps) },
            _ => Move::Pull { to, from: index(profile.replicas) },
        }
    };
    (0..profile.steps).map(one).collect()
}

/// Runs every schedule of `operations` changes on three replicas, where the replica that makes a change first joins any
/// of the others. The first change is at the first replica: the others are the same by renaming. Joins of a replica that
/// knows nothing new are left out: they are the same schedule without them.
///
/// # Errors
/// The first violation, with the smallest schedule that shows it.
pub fn exhaustive<T: Subject>(operations: u32) -> Result<Report, Violation> {
    let mut all = Every { alphabet: T::alphabet(), operations, report: Report { schedules: 0, changes: 0 } };
    all.extend::<T>(&mut Vec::new(), [0; REPLICAS], 0)?;
    Ok(all.report)
}

/// Replicas of exhaustive schedules.
const REPLICAS: usize = 3;

/// A walk over every schedule.
struct Every<O> {
    alphabet: Vec<O>,
    operations: u32,
    report: Report,
}

impl<O: Clone + fmt::Debug> Every<O> {
    /// Every way to go on from `schedule` after `made` changes; `knows` has a bit per change and replica.
    fn extend<T: Subject<Op = O>>(
        &mut self,
        schedule: &mut Vec<Move<O>>,
        knows: [u64; REPLICAS],
        made: u32,
    ) -> Result<(), Violation> {
        if made == self.operations {
            return match run::<T>(schedule, REPLICAS, 0) {
                Ok(changes) => {
                    self.report = Report {
                        schedules: self.report.schedules + 1,
                        changes: self.report.changes + changes,
                    };
                    Ok(())
                }
                Err(found) => Err(shrink::<T>(schedule.clone(), REPLICAS, 0, found)),
            };
        }
        let places = if made == 0 { 1 } else { REPLICAS };
        for (at, pulls) in (0..places).flat_map(|at| (0..4).map(move |pulls| (at, pulls))) {
            let (start, mut after) = (schedule.len(), knows);
            let mut new = true;
            for other in (1..REPLICAS).filter(|other| pulls & other != 0) {
                let from = (at + other) % REPLICAS;
                new &= after[from] & !after[at] != 0;
                after[at] |= after[from];
                schedule.push(Move::Pull { to: at, from });
            }
            if new {
                after[at] |= 1 << made;
                for op in self.alphabet.clone() {
                    schedule.push(Move::Change(at, op));
                    self.extend::<T>(schedule, after, made + 1)?;
                    schedule.pop();
                }
            }
            schedule.truncate(start);
        }
        Ok(())
    }
}

fn shrink<T: Subject>(schedule: Vec<Move<T::Op>>, replicas: usize, seed: u64, found: Violation) -> Violation {
    smallest_of(schedule, seed, found, without, |fewer| run::<T>(fewer, replicas, seed).err())
}

/// The schedule without one step. Deltas are named by their places: those behind the one of a change that is gone move up,
/// and nobody joins that one.
fn without<O: Clone>(schedule: &[Move<O>], at: usize) -> Vec<Move<O>> {
    let mut fewer = schedule.to_vec();
    if matches!(fewer.remove(at), Move::Change(..)) {
        let gone = schedule[..at].iter().filter(|step| matches!(step, Move::Change(..))).count();
        fewer.retain(|step| !matches!(step, Move::Deliver { delta, .. } if *delta == gone));
        for step in &mut fewer {
            if let Move::Deliver { delta, .. } = step {
                *delta -= usize::from(*delta > gone);
            }
        }
    }
    fewer
}

/// Drops every step without which `run` still finds the same law broken.
pub(super) fn smallest<S: Clone + fmt::Debug>(
    steps: Vec<S>,
    seed: u64,
    found: Violation,
    run: impl Fn(&[S]) -> Option<Violation>,
) -> Violation {
    let without = |steps: &[S], at: usize| {
        let mut fewer = steps.to_vec();
        fewer.remove(at);
        fewer
    };
    smallest_of(steps, seed, found, without, run)
}

fn smallest_of<S: Clone + fmt::Debug>(
    mut steps: Vec<S>,
    seed: u64,
    mut found: Violation,
    without: impl Fn(&[S], usize) -> Vec<S>,
    run: impl Fn(&[S]) -> Option<Violation>,
) -> Violation {
    let mut at = steps.len();
    while at > 0 {
        at -= 1;
        let fewer = without(&steps, at);
        if let Some(still) = run(&fewer).filter(|still| still.law == found.law) {
            (steps, found) = (fewer, still);
            // What was kept may be needed no more.
            at = steps.len();
        }
    }
    found.seed = seed;
    found.schedule = steps.iter().map(|step| format!("{step:?}")).collect();
    found
}

fn run<T: Subject>(schedule: &[Move<T::Op>], count: usize, seed: u64) -> Result<u64, Violation> {
    let mut states = vec![T::default(); count];
    let mut replicas: Vec<Replica> = (0..count).filter_map(|i| Replica::new(i, count)).collect();
    let mut deltas: Vec<T> = Vec::new();
    for step in schedule {
        match step {
            Move::Change(at, op) => {
                let before = states[*at].clone();
                if let Some(delta) = states[*at].apply(op, &mut replicas[*at]) {
                    changed(&before, &states[*at], &delta)?;
                    deltas.push(delta);
                }
            }
            Move::Pull { to, from } => {
                let other = states[*from].clone();
                joined(&mut states[*to], &other)?;
            }
            Move::Deliver { to, delta } => {
                if let Some(delta) = deltas.get(*delta) {
                    joined(&mut states[*to], delta)?;
                }
            }
        }
    }
    algebra(&states, deltas.last())?;
    streams(&states, &deltas, seed)?;
    Ok(deltas.len() as u64)
}

fn sum<T: Subject>(a: &T, b: &T) -> T {
    let mut sum = a.clone();
    sum.merge(b);
    sum
}

fn expect<T: PartialEq + fmt::Debug>(law: Law, is: &T, should: &T) -> Result<(), Violation> {
    if is == should { Ok(()) } else { Err(Violation::of(law, format!("{is:?} instead of {should:?}"))) }
}

/// L6, L7.
fn changed<T: Subject>(before: &T, after: &T, delta: &T) -> Result<(), Violation> {
    expect(Law::L7, &sum(before, delta), after)?;
    expect(Law::L6, &sum(before, after), after)?;
    expect(Law::L6, &sum(after, before), after)
}

/// L4, L9.
fn joined<T: Subject>(state: &mut T, other: &T) -> Result<(), Violation> {
    let before = state.clone();
    let (said, contained) = (state.merge(other), other.leq(&before));
    let did = *state != before;
    expect(Law::L9, &said, &did)?;
    if let Some(contained) = contained {
        expect(Law::L4, &contained, &!did)?;
        expect(Law::L4, &(before.leq(state), other.leq(state)), &(Some(true), Some(true)))?;
    }
    Ok(())
}

/// L1 to L5, L12, L20 over the states that a schedule led to.
fn algebra<T: Subject>(states: &[T], delta: Option<&T>) -> Result<(), Violation> {
    let all: Vec<&T> = states.iter().chain(delta).collect();
    let bottom = T::default();
    // Of every two: each is needed in many triples.
    let pairs: Vec<Vec<T>> = all.iter().map(|a| all.iter().map(|b| sum(*a, *b)).collect()).collect();
    for (i, a) in all.iter().enumerate() {
        expect(Law::L1, &pairs[i][i], *a)?;
        expect(Law::L5, &sum(*a, &bottom), *a)?;
        expect(Law::L5, &sum(&bottom, *a), *a)?;
        if let Some((bytes, back)) = a.round_trip() {
            expect(Law::L20, &back.as_ref(), &Some(*a))?;
            let again = back.and_then(|back| back.round_trip());
            expect(Law::L20, &again.map(|r| r.0), &Some(bytes))?;
        }
        for (j, b) in all.iter().enumerate() {
            let ab = &pairs[i][j];
            expect(Law::L2, &pairs[j][i], ab)?;
            if let Some(missing) = b.missing_at(a) {
                expect(Law::L12, &sum(*a, &missing), ab)?;
            }
            for (c, bc) in all.iter().zip(&pairs[j]) {
                expect(Law::L3, &sum(ab, *c), &sum(*a, bc))?;
            }
        }
    }
    Ok(())
}

/// L8, L10: the deltas, backwards and shuffled with repetitions, give what the states give together.
fn streams<T: Subject>(states: &[T], deltas: &[T], seed: u64) -> Result<(), Violation> {
    let whole = states.iter().fold(T::default(), |all, state| sum(&all, state));
    let backwards = states.iter().rev().fold(T::default(), |all, state| sum(&all, state));
    expect(Law::L3, &backwards, &whole)?;
    let reversed = deltas.iter().rev().fold(T::default(), |all, delta| sum(&all, delta));
    expect(Law::L10, &reversed, &whole)?;
    let rng = SeededRng::new(!seed);
    let mut order: Vec<&T> = deltas.iter().chain(deltas.iter().step_by(2)).collect();
    for i in (1..order.len()).rev() {
        order.swap(i, rng.below(i as u64 + 1) as usize);
    }
    let shuffled = order.into_iter().fold(T::default(), |all, delta| sum(&all, delta));
    expect(Law::L8, &shuffled, &whole)?;
    // Equal values, reached on different ways, are equal bytes.
    if let (Some(one), Some(other)) = (shuffled.round_trip(), whole.round_trip()) {
        expect(Law::L20, &one.0, &other.0)?;
    }
    Ok(())
}
