//! Runs a scenario over its seeds and judges what happened.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::minimize::minimize;
use super::switch::{self, Until};
use super::world::panic_text;
use super::{FaultKind, Options, Sim, World, pause};
use crate::check::{Checker, Coverage};
use crate::history::{Event, Text, write};
use crate::verdict::Verdict;

/// A scenario, given a world.
pub(super) type Scenario = Box<dyn Fn(World) -> Pin<Box<dyn Future<Output = ()>>>>;
/// Makes a fresh checker for each run.
type MakeChecker = Box<dyn Fn() -> Box<dyn Checker>>;

/// A scenario bound to a [`Sim`], and the checkers that judge each of its runs.
pub struct Campaign {
    sim: Sim,
    scenario: Scenario,
    checks: Vec<MakeChecker>,
    go_on: bool,
    minimize: bool,
    traced: bool,
}

/// One run that did not pass.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Its verdict.
    pub verdict: Verdict,
    /// Every option of the smallest run found that still fails.
    pub options: Vec<Text>,
    /// The command that replays it.
    pub replay: String,
    /// Its history.
    pub history: Vec<Event>,
}

/// What a campaign came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The suite.
    pub suite: String,
    /// Seeds run.
    pub seeds: u64,
    /// The verdict over all of them.
    pub verdict: Verdict,
    /// Runs that failed, the first one minimised.
    pub failures: Vec<Failure>,
    /// Runs of which nobody can say whether they were right. Few are no news beside others that pass: nothing happened
    /// in them, or a checker gave up. A run that did not end leaves the whole campaign unknown.
    pub unknown: u64,
    /// The first of those, one that did not end before others: its seed, and why.
    pub first_unknown: Option<(u64, String)>,
    hung: bool,
    /// What was broken and felt.
    pub coverage: Coverage,
    /// Virtual time simulated.
    pub simulated: Duration,
    /// A hash over the traces of all runs when they were [`traced`](Campaign::traced): equal for equal
    /// seeds and options.
    pub trace: u64,
}

/// One run.
pub(super) struct Ran {
    pub(super) verdict: Verdict,
    pub(super) history: Vec<Event>,
    simulated: Duration,
    /// The scenario came to its end, or panicked.
    ended: bool,
}

impl Campaign {
    pub(super) fn new(sim: Sim, scenario: Scenario) -> Self {
        Self { sim, scenario, checks: Vec::new(), go_on: false, minimize: true, traced: false }
    }

    /// Judges every run with a fresh checker from `make`.
    #[must_use]
    pub fn check(mut self, make: impl Fn() -> Box<dyn Checker> + 'static) -> Self {
        self.checks.push(Box::new(make));
        self
    }

    /// Goes on after the first failing seed, to count how many fail.
    #[must_use]
    pub fn count_all(mut self) -> Self {
        self.go_on = true;
        self.minimize = false;
        self
    }

    /// Hashes the trace of every run into [`Report::trace`], to compare executions.
    #[must_use]
    pub fn traced(mut self) -> Self {
        self.traced = true;
        self
    }

    /// Leaves a failing run as it is.
    #[must_use]
    pub fn as_found(mut self) -> Self {
        self.minimize = false;
        self
    }

    /// Runs every seed and judges it. Prints nothing; see [`Report`].
    #[must_use]
    pub fn judge(self) -> Report {
        let search = switch::search();
        let until = Until::new(&search);
        let mut report = Report {
            suite: self.sim.options.suite.clone(),
            seeds: 0,
            verdict: Verdict::Unknown("no seed was run".to_owned()),
            failures: Vec::new(),
            unknown: 0,
            first_unknown: None,
            hung: false,
            coverage: Coverage::default(),
            simulated: Duration::ZERO,
            trace: 0xcbf2_9ce4_8422_2325,
        };
        for seed in self.sim.seeds.clone() {
            if until.is_over() {
                break;
            }
            let mut options = self.sim.options.clone();
            options.seed = seed;
            let ran = self.once(&options);
            report.add(seed, &ran, self.traced);
            if matches!(ran.verdict, Verdict::Fail(_)) {
                report.failures.push(self.failure(options, ran));
                if !self.go_on {
                    break;
                }
            }
        }
        report.close(&self.sim, search.replay || search.minutes.is_some());
        report
    }

    fn failure(&self, options: Options, ran: Ran) -> Failure {
        let seed = options.seed;
        let (options, ran) =
            if self.minimize { minimize(options, ran, |options| self.once(options)) } else { (options, ran) };
        let mut replay = format!("MAINSTAY_SEED={seed}");
        if options.nodes != self.sim.options.nodes {
            replay.push_str(&format!(" MAINSTAY_NODES={}", options.nodes));
        }
        if options.ops != self.sim.options.ops {
            replay.push_str(&format!(" MAINSTAY_OPS={}", options.ops));
        }
        if !options.without.is_empty() {
            let ids: Vec<String> = options.without.iter().cloned().collect();
            replay.push_str(&format!(" MAINSTAY_WITHOUT='{}'", ids.join(",")));
        }
        replay.push_str(&format!(" cargo xtask sim {}", options.suite));
        Failure {
            seed,
            verdict: ran.verdict,
            options: options.config().options,
            replay,
            history: ran.history,
        }
    }

    /// One execution.
    pub(super) fn once(&self, options: &Options) -> Ran {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => {
                let verdict = Verdict::Unknown(format!("there is no runtime: {error}"));
                return Ran { verdict, history: Vec::new(), simulated: Duration::ZERO, ended: false };
            }
        };
        let (world, ended, panicked, simulated) = runtime.block_on(async {
            let world = World::new(options);
            let scenario = AssertUnwindSafe((self.scenario)(world.clone())).catch_unwind();
            let limit = pause(options.limit);
            tokio::pin!(limit, scenario);
            let (ended, panicked) = tokio::select! {
                biased;
                result = &mut scenario => (true, result.err().map(|p| panic_text(&*p))),
                () = &mut limit => (false, None),
            };
            let simulated = world.elapsed();
            world.end().await;
            (world, ended, panicked, simulated)
        });
        drop(runtime);
        let history = world.recorder().take();
        let mut verdict = self.verdict(&history);
        if let Some(panic) = panicked {
            verdict = Verdict::fail(format!("the scenario panicked: {panic}"), Vec::new());
        } else if let Some(why) = world.failures().first() {
            verdict = Verdict::fail(why.clone(), Vec::new()).and(verdict);
        } else if !ended {
            let why = format!("the scenario had not ended after {:?}", options.limit);
            verdict = verdict.and(Verdict::Unknown(why));
        }
        Ran { verdict, history, simulated, ended }
    }

    fn verdict(&self, history: &[Event]) -> Verdict {
        let mut checkers: Vec<Box<dyn Checker>> = self.checks.iter().map(|make| make()).collect();
        for event in history {
            checkers.iter_mut().for_each(|c| c.feed(event));
        }
        let verdicts = checkers.into_iter().map(Checker::verdict);
        verdicts.reduce(Verdict::and).unwrap_or_else(|| Verdict::Unknown("no checker was given".to_owned()))
    }
}

impl fmt::Debug for Campaign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Campaign")
            .field("sim", &self.sim)
            .field("checks", &self.checks.len())
            .finish_non_exhaustive()
    }
}

impl Report {
    fn add(&mut self, seed: u64, ran: &Ran, traced: bool) {
        self.seeds += 1;
        self.simulated += ran.simulated;
        self.coverage.add(Coverage::of(&ran.history));
        if traced {
            for byte in write(&ran.history).bytes() {
                self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        let verdict = ran.verdict.clone();
        if let Verdict::Unknown(why) = &verdict {
            self.unknown += 1;
            if self.first_unknown.is_none() || (!ran.ended && !self.hung) {
                self.first_unknown = Some((seed, why.clone()));
            }
            self.hung |= !ran.ended;
        }
        if self.seeds == 1 {
            self.verdict = verdict;
            return;
        }
        // One run in which nothing happened is no news as long as others pass; a failure always is.
        self.verdict = match (std::mem::replace(&mut self.verdict, verdict.clone()), verdict) {
            (Verdict::Unknown(_), Verdict::Pass(e)) | (Verdict::Pass(e), Verdict::Unknown(_)) => {
                Verdict::Pass(e)
            }
            (a, b) => a.and(b),
        };
    }

    /// A campaign in which a declared fault or state never came about proves nothing, nor does one with a run that hung.
    fn close(&mut self, sim: &Sim, partial: bool) {
        if let Some((seed, why)) = self.first_unknown.clone().filter(|_| self.hung) {
            self.worsen(Verdict::Unknown(format!("seed {seed}: {why}")));
        }
        if partial {
            return;
        }
        let kinds = sim.options.faults.kinds.iter().map(|k| FaultKind::name(*k));
        if let Some(why) = self.coverage.vacuous(kinds, sim.sometimes.iter().copied()) {
            self.worsen(Verdict::Unknown(why));
        }
    }

    fn worsen(&mut self, other: Verdict) {
        let known = std::mem::replace(&mut self.verdict, Verdict::Unknown(String::new()));
        self.verdict = known.and(other);
    }

    /// How many runs failed.
    #[must_use]
    pub fn failed(&self) -> usize {
        self.failures.len()
    }

    /// Demands a pass.
    ///
    /// # Panics
    /// With the whole report, the first failing run and the command that replays it, otherwise.
    pub fn assert_pass(&self) {
        println!("{self}");
        assert!(matches!(self.verdict, Verdict::Pass(_)), "{self}");
    }

    /// Demands a failure: what a planted bug must give. Answers the first failing seed.
    ///
    /// # Panics
    /// With the report, when no run failed.
    #[must_use]
    pub fn assert_fail(&self) -> u64 {
        match self.failures.first() {
            Some(failure) => failure.seed,
            None => panic!("nothing failed: {self}"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { suite, seeds, verdict, simulated, coverage, .. } = self;
        writeln!(f, "sim {suite}: {} over {seeds} seeds, {simulated:?} simulated", verdict.name())?;
        writeln!(f, "  {} operations; faults (fired, felt): {:?}", coverage.ops, coverage.kinds)?;
        if !coverage.sometimes.is_empty() {
            writeln!(f, "  reached: {:?}", coverage.sometimes)?;
        }
        if let Some((seed, why)) = &self.first_unknown {
            writeln!(f, "  runs that say nothing: {}; seed {seed}: {why}", self.unknown)?;
        }
        if self.failures.is_empty() {
            return write!(f, "  {verdict}");
        }
        for failure in self.failures.iter().take(3) {
            writeln!(f, "  seed {}: {}", failure.seed, failure.verdict)?;
            writeln!(f, "  options: {:?}", failure.options)?;
            writeln!(f, "  replay: {}", failure.replay)?;
            writeln!(f, "  seeds.txt: {suite} {} FAIL", failure.seed)?;
        }
        Ok(())
    }
}
