//! A world in which steps have effects that can be counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};
use mainstay_saga::definition::{Definition, DefinitionData, RetryData, StepData};
use mainstay_saga::engine::{EngineBuilder, StartOptions};
use mainstay_saga::{Engine, Handle, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay_store::memory::MemoryJournal;
use mainstay_store::{BoxFuture, Journal};
use serde_json::{Value, json};

/// How a step behaves on one attempt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Act {
    Done,
    Rejected,
    RejectedForGood,
    NotSent,
    /// An error before the effect.
    UnknownBefore,
    /// The effect, then an error.
    UnknownAfter,
    Panic,
    /// The effect, then no answer.
    Hang,
    OutputLost,
    UndoFails,
    UndoHangs,
    UndoRefused,
    UndoRefusedForGood,
}

#[derive(Default, Debug)]
pub(crate) struct Ledger {
    /// Net effect per step.
    pub(crate) net: BTreeMap<String, i64>,
    /// Calls in order: `reserve`, `undo reserve did`.
    pub(crate) calls: Vec<String>,
    /// Keys in order of the calls.
    pub(crate) keys: Vec<String>,
    applied: BTreeMap<String, bool>,
    undone: BTreeMap<String, bool>,
}

/// What each attempt of each step does; the last entry goes on for ever.
pub(crate) type Script = BTreeMap<String, Vec<Act>>;

#[derive(Clone)]
pub(crate) struct Scripted {
    name: String,
    script: Arc<Mutex<Script>>,
    ledger: Arc<Mutex<Ledger>>,
}

impl Scripted {
    fn act_now(&self, key: &str) -> Act {
        let mut script = self.script.lock().unwrap();
        match script.get_mut(key) {
            None => Act::Done,
            Some(acts) if acts.len() > 1 => acts.remove(0),
            Some(acts) => acts.first().copied().unwrap_or(Act::Done),
        }
    }
}

impl LocalStep for Scripted {
    fn act(&self, cx: StepCx, _input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async move {
            let act = self.act_now(&self.name);
            {
                let mut ledger = self.ledger.lock().unwrap();
                ledger.calls.push(self.name.clone());
                ledger.keys.push(cx.idempotency_key.clone());
                let takes = matches!(act, Act::Done | Act::UnknownAfter | Act::Hang | Act::OutputLost);
                let first = !ledger.applied.get(&cx.idempotency_key).copied().unwrap_or(false);
                if takes && first {
                    ledger.applied.insert(cx.idempotency_key.clone(), true);
                    *ledger.net.entry(self.name.clone()).or_default() += 1;
                }
            }
            match act {
                Act::Rejected => Err(StepError::rejected("no")),
                Act::RejectedForGood => Err(StepError::rejected_for_good("never")),
                Act::NotSent => Err(StepError::not_sent("refused")),
                Act::UnknownBefore | Act::UnknownAfter => Err(StepError::unknown("reset")),
                Act::Panic => panic!("scripted"),
                Act::Hang => std::future::pending().await,
                Act::OutputLost => Err(StepError::output_lost()),
                _ => Ok(json!({"step": self.name})),
            }
        })
    }

    fn undo(&self, cx: StepCx, effect: Told<Value>, _input: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async move {
            let told = if matches!(effect, Told::Did(_)) { "did" } else { "maybe" };
            let act = self.act_now(&format!("undo {}", self.name));
            {
                let mut ledger = self.ledger.lock().unwrap();
                ledger.calls.push(format!("undo {} {told}", self.name));
                ledger.keys.push(cx.idempotency_key.clone());
            }
            if act == Act::UndoHangs {
                std::future::pending::<()>().await;
            }
            let mut ledger = self.ledger.lock().unwrap();
            match act {
                Act::UndoFails => return Err(UndoError::failed("undo reset")),
                Act::UndoRefused => return Err(UndoError::refused("undo no")),
                Act::UndoRefusedForGood => return Err(UndoError::refused_for_good("undo never")),
                Act::Panic => {
                    drop(ledger);
                    panic!("scripted undo");
                }
                _ => {}
            }
            let action_key = cx.idempotency_key.replace("/undo", "/action");
            let applied = ledger.applied.get(&action_key).copied().unwrap_or(false);
            let first = !ledger.undone.get(&action_key).copied().unwrap_or(false);
            if applied && first {
                ledger.undone.insert(action_key, true);
                *ledger.net.entry(self.name.clone()).or_default() -= 1;
            }
            Ok(())
        })
    }
}

/// A clock that outlives tokio runtimes and that only a sleep moves.
#[derive(Clone, Debug, Default)]
pub(crate) struct ByHand(Arc<AtomicU64>);

impl Clock for ByHand {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> WallTime {
        let millis = i64::try_from(self.now().as_nanos() / 1_000_000).unwrap();
        WallTime::from_unix_millis(1_767_225_600_000 + millis)
    }

    fn tick(&self) -> Tick {
        Tick::of(Arc::new(self.clone()))
    }

    #[allow(clippy::disallowed_methods, reason = "waits in tokio's virtual time, then moves this clock")]
    fn sleep_until(&self, deadline: Instant) -> Sleep {
        let this = self.clone();
        Box::pin(async move {
            tokio::time::sleep(deadline.saturating_duration_since(this.now())).await;
            this.0.fetch_max(deadline.as_nanos(), Ordering::SeqCst);
        })
    }
}

pub(crate) struct World<C = VirtualClock> {
    pub(crate) clock: C,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) ledger: Arc<Mutex<Ledger>>,
    pub(crate) script: Arc<Mutex<Script>>,
    pub(crate) seed: u64,
}

impl World {
    pub(crate) fn new() -> Self {
        Self::on(VirtualClock::new())
    }
}

impl<C: Clock + Clone + 'static> World<C> {
    pub(crate) fn on(clock: C) -> Self {
        let journal = Arc::new(MemoryJournal::new(Arc::new(clock.clone())));
        Self { clock, journal, ledger: Arc::default(), script: Arc::default(), seed: 7 }
    }

    pub(crate) fn script(&self, step: &str, acts: &[Act]) {
        self.script.lock().unwrap().insert(step.to_owned(), acts.to_vec());
    }

    pub(crate) fn runtime(&self) -> Runtime {
        Runtime::on_tokio(Arc::new(self.clock.clone()), Arc::new(SeededRng::new(self.seed)))
    }

    pub(crate) fn step(&self, name: &str) -> Arc<dyn LocalStep> {
        Arc::new(Scripted {
            name: name.to_owned(),
            script: Arc::clone(&self.script),
            ledger: Arc::clone(&self.ledger),
        })
    }

    pub(crate) async fn engine(&self, definition: &Definition) -> Engine {
        self.engine_with(definition, mainstay_saga::engine::Config::default()).await
    }

    pub(crate) async fn engine_with(
        &self,
        definition: &Definition,
        config: mainstay_saga::engine::Config,
    ) -> Engine {
        self.builder(Arc::clone(&self.journal), definition).config(config).open().await.unwrap()
    }

    /// An engine that sees the journal through another one.
    pub(crate) async fn engine_on(&self, journal: Arc<dyn Journal>, definition: &Definition) -> Engine {
        self.builder(journal, definition).open().await.unwrap()
    }

    pub(crate) fn builder(&self, journal: Arc<dyn Journal>, definition: &Definition) -> EngineBuilder {
        let steps: Vec<_> = definition.steps().iter().map(|s| (s.name.clone(), self.step(&s.name))).collect();
        Engine::builder(journal, self.runtime()).definition(definition.clone(), steps)
    }

    pub(crate) async fn start(&self, engine: &Engine, definition: &Definition, id: &str) -> Handle {
        engine.start(definition.name(), json!({"order": id}), StartOptions::id(id)).await.unwrap()
    }

    /// An engine, and the saga `one` started on it.
    pub(crate) async fn begin(&self, definition: &Definition) -> (Engine, Handle) {
        let engine = self.engine(definition).await;
        let handle = self.start(&engine, definition, "one").await;
        (engine, handle)
    }

    /// An order that asks for a person: its shipment was refused, and so is the undo of its charge.
    pub(crate) async fn stuck(&self, definition: &Definition) -> (Engine, Handle) {
        self.script("ship", &[Act::Rejected]);
        self.script("undo charge", &[Act::UndoRefused]);
        let (engine, handle) = self.begin(definition).await;
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { .. }));
        (engine, handle)
    }

    /// Runs one saga to its outcome.
    pub(crate) async fn run(&self, definition: &Definition) -> Outcome {
        let engine = self.engine(definition).await;
        self.start(&engine, definition, "one").await.outcome().await.unwrap()
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.ledger.lock().unwrap().calls.clone()
    }

    pub(crate) fn net(&self) -> BTreeMap<String, i64> {
        self.ledger.lock().unwrap().net.clone()
    }

    pub(crate) fn nothing_left(&self) -> bool {
        self.net().values().all(|n| *n == 0)
    }
}

/// A compensable local step.
pub(crate) fn step(name: &str, after: &[&str]) -> StepData {
    let mut step = StepData::new(name);
    step.after = after.iter().map(|s| (*s).to_owned()).collect();
    step.local_undo = true;
    step.timeout = Some(Duration::from_millis(500));
    step.retry = Some(RetryData::new(3, Duration::from_millis(50), Duration::from_millis(500)));
    step.undo_retry = Some(RetryData::new(3, Duration::from_millis(50), Duration::from_secs(1)));
    step
}

pub(crate) fn definition(steps: Vec<StepData>) -> Definition {
    let mut data = DefinitionData::new("order", 1);
    data.deadline = Some(Duration::from_secs(20));
    data.steps = steps;
    Definition::from_data(data).unwrap()
}

/// reserve -> charge -> ship, all compensable.
pub(crate) fn order() -> Definition {
    definition(vec![step("reserve", &[]), step("charge", &["reserve"]), step("ship", &["charge"])])
}
