//! The test kit: everything that can go wrong with a saga, tried on your own closures in virtual time.
//!
//! [`exhaust`] runs a saga against a world that you build per run, once for each way to go wrong:
//!
//! 1. undisturbed;
//! 2. each step rejected, not sent, unknown before and after its effect, panicking and timing out before and
//!    after it, output lost, the saga cancelled while it is in flight, and, where a person is asked, tried again with
//!    other input;
//! 3. each action and each undo executed twice;
//! 4. each undo failing once, for ever and refused for ever; a person then retries it;
//! 5. each delivery repeated after the end, and each action arriving only after its undo;
//! 6. each of those with a crash before and after **every** append, and with a process that freezes there,
//!    is taken over, and goes on afterwards;
//! 7. all subsets of up to four parallel steps failing in all orders; larger groups sampled by seed.
//!
//! After each run your invariant must hold, and after each append of it the log must fold to exactly the state that
//! the engine has in memory. A run that does not end in virtual years is a failure too, and
//! so is a saga some undo of which never ran: an undo that no test has executed is a guess.
//!
//! Guarantees: the same seed gives the same runs in the same order. Not covered: what your closures do
//! outside the world that you hand them, real time, real sockets, participants over HTTP (the chaos kit
//! does those).
//!
//! # Examples
//! ```
//! use mainstay_saga::exhaust::exhaust;
//! use mainstay_saga::{Saga, StepCx, StepError, Told, UndoError};
//! use std::collections::BTreeSet;
//! use std::sync::{Arc, Mutex};
//!
//! /// Stock that is reserved under a key, so that nothing happens twice and nothing comes back.
//! #[derive(Default)]
//! struct Stock(Mutex<(BTreeSet<String>, BTreeSet<String>)>);
//!
//! impl Stock {
//!     fn reserve(&self, key: String) -> Result<u32, StepError> {
//!         let mut stock = self.0.lock().unwrap();
//!         if stock.1.contains(&key) {
//!             return Err(StepError::rejected_for_good("released before it was reserved"));
//!         }
//!         stock.0.insert(key);
//!         Ok(1)
//!     }
//!
//!     fn release(&self, key: String) {
//!         let mut stock = self.0.lock().unwrap();
//!         stock.0.remove(&key);
//!         stock.1.insert(key);
//!     }
//! }
//!
//! fn order(stock: &Arc<Stock>) -> Saga<u32> {
//!     let mut b = Saga::<u32>::builder("order", 1);
//!     let (take, give) = (Arc::clone(stock), Arc::clone(stock));
//!     b.step("reserve", b.input(), move |cx: StepCx, _: u32| {
//!         let result = take.reserve(cx.idempotency_key);
//!         async move { result }
//!     })
//!     .undo(move |cx: StepCx, _: Told<u32>| {
//!         give.release(cx.idempotency_key.replace("/undo", "/action"));
//!         async { Ok::<(), UndoError>(()) }
//!     })
//!     .add();
//!     b.no_deadline().build().unwrap()
//! }
//!
//! let report = exhaust(|| Arc::new(Stock::default()), order, &7)
//!     .invariant(|stock, outcome| {
//!         let reserved = stock.0.lock().unwrap().0.len();
//!         let completed = matches!(outcome, mainstay_saga::Outcome::Completed { .. });
//!         if reserved == usize::from(completed) { Ok(()) } else { Err(format!("{reserved} left")) }
//!     })
//!     .run()?;
//! assert!(report.runs > 100 && report.failures.is_empty());
//! # Ok::<(), mainstay_saga::exhaust::ExhaustError>(())
//! ```

mod cut;
mod drive;
mod gate;
mod lint;
mod plan;
mod probe;
mod tap;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Outcome;
use crate::definition::Definition;
use crate::step::LocalStep;
use crate::typed::Saga;
use drive::{Ran, run_one};
use plan::{Case, Stop, cases};

pub use crate::definition::Lint;
pub use lint::lint;
pub use tap::{Tap, TapJournal, Write};

/// Most runs of one kit; more are sampled by seed. A ten-step saga needs about ten thousand.
const MOST_RUNS: usize = 50_000;

/// A definition and its closures, built on one world.
type Parts = (Definition, Vec<(String, Arc<dyn LocalStep>)>);
type Invariant<W> = Arc<dyn Fn(&W, &Outcome) -> Result<(), String> + Send + Sync>;

/// A saga about to be exhausted on worlds of type `W`.
#[must_use = "nothing runs until `run`"]
pub struct Exhaust<W> {
    world: Box<dyn Fn() -> W + Send + Sync>,
    saga: Box<dyn Fn(&W) -> Parts + Send + Sync>,
    input: Value,
    invariant: Option<Invariant<W>>,
    seed: u64,
    most_runs: usize,
    late: bool,
    zombies: bool,
    only: Option<String>,
    threads: usize,
}

/// What a kit found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ExhaustReport {
    /// Runs made.
    pub runs: usize,
    /// Runs left out because there were more than `most_runs`; which ones the seed decided.
    pub left_out: usize,
    /// Ways to go wrong, before crashes and zombies multiply them.
    pub cases: usize,
    /// Appends of the undisturbed run.
    pub appends: u64,
    /// How often the undo of each step ran; zero is a failure.
    pub undos: BTreeMap<String, u64>,
    /// Steps whose undo never ran.
    pub undos_never_ran: Vec<String>,
    /// Runs that went wrong, by name.
    pub failures: Vec<ExhaustFailure>,
    /// What is suspicious without running.
    pub lints: Vec<Lint>,
    /// The seed.
    pub seed: u64,
}

/// One run that went wrong.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExhaustFailure {
    /// Names the run: what was injected and where it was cut.
    pub run: String,
    /// What was wrong.
    pub what: String,
    /// The calls of the closures, in order.
    pub calls: Vec<String>,
    /// How to run it alone.
    pub replay: String,
}

/// The kit found something.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
#[non_exhaustive]
pub struct ExhaustError(pub Box<ExhaustReport>);

/// Exhausts the saga that `saga` builds on a world that `world` builds, started with `input`.
pub fn exhaust<W, In: Serialize + DeserializeOwned + Send + 'static>(
    world: impl Fn() -> W + Send + Sync + 'static,
    saga: impl Fn(&W) -> Saga<In> + Send + Sync + 'static,
    input: &In,
) -> Exhaust<W> {
    Exhaust {
        world: Box::new(world),
        saga: Box::new(move |world| {
            let saga = saga(world);
            (saga.definition().clone(), saga.steps().to_vec())
        }),
        // An input that is no JSON value is refused by the engine, in the first run.
        input: serde_json::to_value(input).unwrap_or(Value::Null),
        invariant: None,
        seed: 1,
        most_runs: MOST_RUNS,
        late: true,
        zombies: true,
        only: None,
        threads: 2,
    }
}

/// Exhausts a definition with closures given by name; for sagas that are data.
pub fn exhaust_data<W>(
    world: impl Fn() -> W + Send + Sync + 'static,
    saga: impl Fn(&W) -> (Definition, Vec<(String, Arc<dyn LocalStep>)>) + Send + Sync + 'static,
    input: Value,
) -> Exhaust<W> {
    Exhaust {
        world: Box::new(world),
        saga: Box::new(saga),
        input,
        invariant: None,
        seed: 1,
        most_runs: MOST_RUNS,
        late: true,
        zombies: true,
        only: None,
        threads: 2,
    }
}

impl<W: Send + Sync + 'static> Exhaust<W> {
    /// What must hold after each run, whatever happened; the outcome says how the saga ended.
    pub fn invariant(
        mut self,
        holds: impl Fn(&W, &Outcome) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        self.invariant = Some(Arc::new(holds));
        self
    }

    /// The seed of jitter and sampling.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Most runs; more are sampled by seed.
    pub fn most_runs(mut self, most: usize) -> Self {
        self.most_runs = most.max(1);
        self
    }

    /// Leaves out deliveries that come after the end. Only for steps whose requests cannot be delayed, such
    /// as a write in the process's own database.
    pub fn without_late_deliveries(mut self) -> Self {
        self.late = false;
        self
    }

    /// Leaves out processes that freeze inside a step and go on after they were taken over. Only for sagas
    /// that one process alone drives.
    pub fn without_zombies(mut self) -> Self {
        self.zombies = false;
        self
    }

    /// Runs the run of this name only, as a failure names it.
    pub fn only(mut self, run: &str) -> Self {
        self.only = Some(run.to_owned());
        self
    }

    /// Threads to spread the runs over; which runs are made does not depend on it.
    pub fn threads(mut self, n: usize) -> Self {
        self.threads = n.max(1);
        self
    }

    /// Runs everything.
    ///
    /// The environment variable `MAINSTAY_EXHAUST` limits it to the run of that name: the replay command of
    /// a failure sets it.
    ///
    /// # Errors
    /// [`ExhaustError`] with the whole report when an invariant failed, a run did not end as it must, an undo
    /// never ran, or there is no invariant.
    pub fn run(mut self) -> Result<ExhaustReport, ExhaustError> {
        if self.only.is_none() {
            self.only = replayed();
        }
        let (definition, _) = (self.saga)(&(self.world)());
        let mut report = ExhaustReport { seed: self.seed, ..ExhaustReport::default() };
        report.lints = lint(&definition, &self.input);
        if self.invariant.is_none() {
            let what = "there is no invariant: nothing would be checked".to_owned();
            report.failures.push(ExhaustFailure { run: "build".to_owned(), what, ..empty() });
            return Err(ExhaustError(Box::new(report)));
        }
        let cases = cases(&definition, self.seed, self.late, self.zombies);
        report.cases = cases.len();
        let clean: Vec<(Case, Stop)> = cases.iter().map(|c| (c.clone(), Stop::Never)).collect();
        let first = self.spread(&clean, &mut report);
        report.appends = first.first().map_or(0, |r| r.appends);
        let mut cut = Vec::new();
        for (case, ran) in cases.iter().zip(&first) {
            cut.extend(case.stops(ran.appends, ran.calls).into_iter().map(|stop| (case.clone(), stop)));
        }
        let room = self.most_runs.saturating_sub(clean.len());
        if cut.len() > room {
            report.left_out = cut.len() - room;
            cut = plan::sample(cut, room, self.seed);
        }
        drop(self.spread(&cut, &mut report));
        let undone = |step: &&str| !report.undos.contains_key(*step);
        let with_undo =
            definition.steps().iter().filter(|s| lint::has_local_undo(s)).map(|s| s.name.as_str());
        report.undos_never_ran = with_undo.filter(undone).map(str::to_owned).collect();
        let alone = self.only.is_some();
        let silent = !alone && !report.undos_never_ran.is_empty();
        if report.failures.is_empty() && !silent && (!alone || report.runs > 0) {
            Ok(report)
        } else {
            Err(ExhaustError(Box::new(report)))
        }
    }

    /// Makes runs on all threads; results in the order of the runs.
    fn spread(&self, runs: &[(Case, Stop)], report: &mut ExhaustReport) -> Vec<Ran> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some((case, stop)) = runs.get(i) else { return done };
                // A replay still makes the clean run of its case: it tells where to cut.
                let name = stop.name(&case.name);
                let wanted = self.only.as_ref().is_none_or(|only| {
                    *only == name || (*stop == Stop::Never && only.starts_with(&format!("{}/", case.name)))
                });
                done.push((i, wanted.then(|| run_one(self, case, *stop))));
            }
        };
        let mut results: Vec<(usize, Option<Ran>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads.min(runs.len())).map(|_| scope.spawn(work)).collect();
            // A thread that panicked has runs that nobody judged.
            let joined = |t: std::thread::ScopedJoinHandle<'_, _>| {
                t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))
            };
            threads.into_iter().flat_map(joined).collect()
        });
        results.sort_by_key(|(i, _)| *i);
        let mut all = Vec::with_capacity(results.len());
        for (i, ran) in results {
            let Some(ran) = ran else {
                all.push(Ran::default());
                continue;
            };
            report.runs += 1;
            for (step, n) in &ran.undos {
                *report.undos.entry(step.clone()).or_default() += n;
            }
            if let Some(what) = &ran.failure {
                let run = runs[i].1.name(&runs[i].0.name);
                let replay = replay(&run);
                report.failures.push(ExhaustFailure {
                    run,
                    what: what.clone(),
                    calls: ran.log.clone(),
                    replay,
                });
            }
            all.push(ran);
        }
        all
    }
}

fn empty() -> ExhaustFailure {
    ExhaustFailure { run: String::new(), what: String::new(), calls: Vec::new(), replay: String::new() }
}

/// The test that runs the kit is named after its thread.
fn replay(run: &str) -> String {
    let thread = std::thread::current();
    let test = thread.name().filter(|n| *n != "main").unwrap_or_default();
    format!("MAINSTAY_EXHAUST='{run}' cargo test {test}").trim_end().to_owned()
}

#[allow(clippy::disallowed_methods, reason = "a switch of a test kit: which run to replay")]
fn replayed() -> Option<String> {
    std::env::var("MAINSTAY_EXHAUST").ok().filter(|r| !r.is_empty())
}

impl<W> fmt::Debug for Exhaust<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exhaust").field("seed", &self.seed).field("only", &self.only).finish_non_exhaustive()
    }
}

impl fmt::Display for ExhaustReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runs, cases, appends, left_out, seed, .. } = self;
        writeln!(f, "exhaust: {runs} runs of {cases} cases, {appends} appends undisturbed, seed {seed}")?;
        if *left_out > 0 {
            writeln!(f, "  {left_out} runs left out by sampling")?;
        }
        for step in &self.undos_never_ran {
            writeln!(f, "  RED: the undo of `{step}` never ran")?;
        }
        for lint in &self.lints {
            writeln!(f, "  note: {lint}")?;
        }
        if !self.failures.is_empty() {
            writeln!(f, "  {} runs failed", self.failures.len())?;
        }
        for failure in self.failures.iter().take(5) {
            writeln!(f, "  FAIL {}: {}", failure.run, failure.what)?;
            writeln!(f, "    calls: {}", failure.calls.join(", "))?;
            writeln!(f, "    replay: {}", failure.replay)?;
        }
        Ok(())
    }
}
