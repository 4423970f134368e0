//! One run: a world, an engine, a cut, an end, and what must hold then.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::FutureExt;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Runtime, SeededRng};
use mainstay_store::Journal;
use mainstay_store::journal::Uid;
use mainstay_store::memory::MemoryJournal;

use super::cut::Cut;
use super::gate::Process;
use super::plan::{Case, Fault, Stop};
use super::probe::{Control, Probe, deliver};
use super::tap::TapJournal;
use super::{Exhaust, Parts};
use crate::definition::Definition;
use crate::engine::{ActionRequest, Config, Observer, StartOptions};
use crate::fold::State;
use crate::step::LocalStep;
use crate::wire::{Operation, decode};
use crate::{Engine, Error, ErrorKind, Handle, Outcome};

/// A saga that has not ended after a virtual year never will.
const LONGEST: Duration = Duration::from_secs(86_400 * 365);
/// A dead process comes back this soon.
const RESTART: Duration = Duration::from_millis(50);
/// A person looks again this long after a repair.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Longer than in production: every idle second of virtual time costs real time.
const CLAIM: Duration = Duration::from_secs(60);
/// A frozen process goes on this long after its saga ended elsewhere.
const AFTERLIFE: Duration = Duration::from_secs(120);
/// A person repairs and retries this often before the kit calls it hopeless.
const MOST_REPAIRS: usize = 20;

/// What a run came to.
#[derive(Debug, Default)]
pub(super) struct Ran {
    pub(super) failure: Option<String>,
    pub(super) appends: u64,
    pub(super) calls: u64,
    pub(super) undos: BTreeMap<String, u64>,
    pub(super) log: Vec<String>,
}

/// Makes one run, in a runtime of its own.
pub(super) fn run_one<W: Send + Sync + 'static>(kit: &Exhaust<W>, case: &Case, stop: Stop) -> Ran {
    let built = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = match built {
        Ok(runtime) => runtime,
        Err(error) => {
            return Ran { failure: Some(format!("there is no runtime: {error}")), ..Ran::default() };
        }
    };
    runtime.block_on(async {
        let clock = VirtualClock::new();
        let world = (kit.world)();
        let parts = (kit.saga)(&world);
        let control = Arc::new(Control::new(case.clone(), stop, Arc::new(clock.clone())));
        let run = Run {
            journal: MemoryJournal::new(Arc::new(clock.clone())),
            clock: clock.clone(),
            control: Arc::clone(&control),
            definition: parts.0.clone(),
            steps: probes(parts, &control),
            input: kit.input.clone(),
            seed: kit.seed,
        };
        let checked = AssertUnwindSafe(async {
            let outcome = run.to_the_end().await?;
            run.judge(&outcome)?;
            if let Some(differs) = control.state().differs.take() {
                return Err(differs);
            }
            let late = std::mem::take(&mut control.state().late);
            deliver(late).await;
            let holds = kit.invariant.as_ref().map_or(Ok(()), |holds| holds(&world, &outcome));
            holds.map_err(|why| format!("the invariant does not hold after {}: {why}", ended(&outcome)))
        });
        let limit = clock.sleep(LONGEST);
        let failure = tokio::select! {
            biased;
            result = checked.catch_unwind() => match result {
                Ok(result) => result.err(),
                Err(_) => Some("the run panicked".to_owned()),
            },
            () = limit => Some("the saga had not ended after a virtual year".to_owned()),
        };
        let state = control.state();
        Ran {
            failure,
            appends: control.appends.load(Ordering::Acquire),
            calls: control.calls.load(Ordering::Acquire),
            undos: state.undos.clone(),
            log: state.log.clone(),
        }
    })
}

fn probes((definition, steps): Parts, control: &Arc<Control>) -> Vec<(String, Arc<dyn LocalStep>)> {
    let probe = |(name, inner): (String, Arc<dyn LocalStep>)| {
        let index = definition.index(&name).unwrap_or(usize::MAX);
        let probe = Probe { index, name: name.clone(), inner, control: Arc::clone(control) };
        (name, Arc::new(probe) as Arc<dyn LocalStep>)
    };
    steps.into_iter().map(probe).collect()
}

fn ended(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Abandoned { .. } => "it was abandoned",
        Outcome::Compensated { .. } => "it was compensated",
        Outcome::Completed { .. } => "it completed",
        Outcome::NeedsAttention { .. } => "it asked for a person",
    }
}

struct Run {
    journal: MemoryJournal,
    clock: VirtualClock,
    control: Arc<Control>,
    definition: Definition,
    steps: Vec<(String, Arc<dyn LocalStep>)>,
    input: serde_json::Value,
    seed: u64,
}

/// The one id that every run starts.
const ID: &str = "exhaust";

impl Run {
    fn fail(error: &Error) -> String {
        format!("the engine failed: {error}")
    }

    async fn open(&self, node: &str, process: &Process) -> Result<Engine, String> {
        let rng = Arc::new(SeededRng::new(self.seed));
        let runtime = Runtime::new(Arc::new(self.clock.clone()), rng, Arc::new(process.clone()));
        let cut = Arc::new(Cut(Arc::clone(&self.control)));
        let journal = Arc::new(TapJournal::new(Arc::new(self.journal.clone()), cut));
        let config = Config { node: node.to_owned(), claim_ttl: CLAIM, poll: CLAIM / 3, ..Config::default() };
        let builder = Engine::builder(journal, runtime)
            .config(config)
            .observer(self.observer())
            .definition(self.definition.clone(), self.steps.clone());
        builder.open().await.map_err(|e| Self::fail(&e))
    }

    /// Compares the state in memory with the one that the log folds to, after every append: what a crash there
    /// would recover is what was lived.
    fn observer(&self) -> Observer {
        let (journal, definition) = (self.journal.clone(), self.definition.clone());
        let control = Arc::clone(&self.control);
        Arc::new(move |uid: &Uid, live: &State| {
            // Up to its cut a run does what the same run without one did, which was compared.
            if control.stop != Stop::Never && !control.was_cut.load(Ordering::Acquire) {
                return;
            }
            // A journal in memory answers at once.
            let Some(Ok(Some(loaded))) = journal.load(uid).now_or_never() else {
                control.state().differs = Some("the log could not be read".to_owned());
                return;
            };
            // A process that froze looks late: others may have written since.
            let end = loaded.records.partition_point(|r| r.seq <= live.seq);
            let lived = &loaded.records[..end];
            let facts: Result<Vec<_>, _> = lived.iter().map(decode).collect();
            let folded = facts
                .map_err(|e| e.to_string())
                .and_then(|facts| State::fold(&definition, &facts).map_err(|e| e.to_string()))
                .map(|state| state.with_log_of(lived));
            if folded.as_ref() != Ok(live) {
                let text =
                    format!("the log folds to another state than was lived: {folded:?}, lived {live:?}");
                control.state().differs.get_or_insert(text);
            }
        })
    }

    /// Starts the saga, as a caller repeats it after a crash, and waits for its end; a person repairs what
    /// only a person can.
    async fn outcome(&self, engine: &Engine) -> Result<Outcome, String> {
        let name = self.definition.name();
        let handle =
            engine.start(name, self.input.clone(), StartOptions::id(ID)).await.map_err(|e| Self::fail(&e))?;
        for _ in 0..MOST_REPAIRS {
            let outcome = tokio::select! {
                biased;
                outcome = handle.outcome() => outcome.map_err(|e| Self::fail(&e))?,
                () = self.control.cancel.notified() => {
                    self.cancel(engine, &handle).await?;
                    handle.outcome().await.map_err(|e| Self::fail(&e))?
                }
            };
            let Outcome::NeedsAttention { steps } = &outcome else { return Ok(outcome) };
            if !self.control.case.person {
                return Err(format!("a person is needed at {steps:?}, though nothing failed for ever"));
            }
            self.control.healed.store(true, Ordering::Release);
            for step in steps {
                let edits = self.control.case.faults.iter().any(|(_, fault)| *fault == Fault::Edited);
                let input = if edits { self.edited(step).await? } else { None };
                let retry = Operation::Retry { step: step.clone(), input };
                let request = ActionRequest::new("exhaust", "repaired", retry);
                match engine.attention().act(handle.uid(), request).await {
                    // It turned back, and is to be told what became of the step; or an action posted before a crash was
                    // taken up meanwhile, and there is nothing left to do.
                    Err(e) if e.kind() == ErrorKind::Conflict => self.tell(engine, &handle, step).await?,
                    // It lies in the inbox until somebody owns the saga again.
                    Err(e) if e.kind() == ErrorKind::Overloaded => {}
                    result => result.map_err(|e| Self::fail(&e))?,
                }
            }
            self.clock.sleep(LOOK_AGAIN).await;
        }
        Err(format!("{MOST_REPAIRS} repairs did not end it"))
    }

    /// The input of a step, as somebody sends it who found nothing to change: it is another key all the same.
    async fn edited(&self, step: &str) -> Result<Option<serde_json::Value>, String> {
        let name = self.definition.name();
        let found = self.journal.find(name, ID).await.map_err(|e| e.to_string())?;
        let Some(found) = found else { return Ok(None) };
        let loaded = self.journal.load(&found.uid).await.map_err(|e| e.to_string())?;
        let records = loaded.map(|l| l.records).unwrap_or_default();
        let facts: Result<Vec<_>, _> = records.iter().map(decode).collect();
        let facts = facts.map_err(|e| e.to_string())?;
        let state = State::fold(&self.definition, &facts).map_err(|e| e.to_string())?;
        let output = |name: &str| {
            let node = self.definition.index(name).map(|i| &state.nodes[i])?;
            node.current().output.clone()
        };
        let step = self.definition.index(step).map(|i| &self.definition.steps()[i]);
        Ok(step.map(|step| step.input.render(&state.input, output)))
    }

    /// Says whether a step happened, as it is found at its participant.
    async fn tell(&self, engine: &Engine, handle: &Handle, step: &str) -> Result<(), String> {
        let (step, worked) = (step.to_owned(), self.control.state().worked.get(step).cloned());
        let operation = match worked {
            Some(output) => Operation::ResolveDone { step, output },
            None => Operation::ResolveNotDone { step },
        };
        match engine.attention().act(handle.uid(), ActionRequest::new("exhaust", "found", operation)).await {
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Overloaded) => Ok(()),
            result => result.map_err(|e| Self::fail(&e)),
        }
    }

    async fn cancel(&self, engine: &Engine, handle: &Handle) -> Result<(), String> {
        let request = ActionRequest::new("exhaust", "cancelled", Operation::Cancel);
        match engine.attention().act(handle.uid(), request).await {
            // Too late to turn back, or in the inbox of whoever owns it next.
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Overloaded) => Ok(()),
            result => result.map_err(|e| Self::fail(&e)),
        }
    }

    async fn to_the_end(&self) -> Result<Outcome, String> {
        let process = Process::new();
        let engine = self.open("a", &process).await?;
        let first = tokio::select! {
            biased;
            () = self.control.cut.notified() => None,
            outcome = self.outcome(&engine) => Some(outcome?),
        };
        if let Some(outcome) = first {
            engine.shutdown(Duration::ZERO).await;
            process.kill();
            return Ok(outcome);
        }
        match self.control.stop {
            Stop::FreezeAfter(_) | Stop::FreezeInCall(_) => self.taken_over(engine, process).await,
            _ => self.restarted(engine, &process).await,
        }
    }

    /// The process died; it comes back under its own name.
    async fn restarted(&self, engine: Engine, process: &Process) -> Result<Outcome, String> {
        process.kill();
        drop(engine);
        self.clock.sleep(RESTART).await;
        let process = Process::new();
        let engine = self.open("a", &process).await?;
        let outcome = self.outcome(&engine).await?;
        engine.shutdown(Duration::ZERO).await;
        process.kill();
        Ok(outcome)
    }

    /// The process froze; another one takes over when its claim ends; then the first goes on.
    async fn taken_over(&self, zombie: Engine, frozen: Process) -> Result<Outcome, String> {
        frozen.set_frozen(true);
        let process = Process::new();
        let engine = self.open("b", &process).await?;
        let outcome = self.outcome(&engine).await?;
        let records = self.records().await?;
        frozen.set_frozen(false);
        self.clock.sleep(AFTERLIFE).await;
        if self.records().await? != records {
            return Err("a process that had lost its claim wrote to the log".to_owned());
        }
        for engine in [&engine, &zombie] {
            engine.shutdown(Duration::ZERO).await;
        }
        frozen.kill();
        process.kill();
        Ok(outcome)
    }

    async fn records(&self) -> Result<u64, String> {
        let found = self.journal.find(self.definition.name(), ID).await.map_err(|e| e.to_string())?;
        Ok(found.map_or(0, |s| s.next_seq))
    }

    /// What must be true whatever the invariant says.
    fn judge(&self, outcome: &Outcome) -> Result<(), String> {
        match outcome {
            Outcome::Completed { .. } | Outcome::Compensated { .. } if !self.control.case.completes => Ok(()),
            Outcome::Completed { .. } => Ok(()),
            other => Err(format!("nothing failed for good, but {}", ended(other))),
        }
    }
}
