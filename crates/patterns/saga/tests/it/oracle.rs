//! The `steno` crate as an oracle: random graphs, the same nodes fail, the process dies at the k-th record.
//!
//! Both run graphs of layers, of which each waits for all of the one before: more its builder cannot say. Compared are what
//! was done and undone, the order along every edge, and, after a death, what is in effect at the end: the oracle runs a
//! node again that was started and then undoes it, ours is told `Maybe`.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use mainstay_clock::{Rng as _, Runtime, SeededRng};
use mainstay_saga::definition::Definition;
use mainstay_saga::engine::StartOptions;
use mainstay_saga::exhaust::{Tap, TapJournal, Write};
use mainstay_saga::{Engine, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay_store::memory::MemoryJournal;
use mainstay_store::{BoxFuture, Journal, Result};
use serde_json::{Value, json};
use steno::{
    Action, ActionContext, ActionError, ActionFunc, ActionRegistry, DagBuilder, Node, SagaCachedState,
    SagaCreateParams, SagaDag, SagaId, SagaName, SagaNodeEvent, SagaType, SecStore,
};
use tokio::sync::Notify;

use crate::world::{ByHand, definition, step};

const SEEDS: u64 = 150;

/// A graph, and who says no in it.
#[derive(Clone, Debug)]
struct Plan {
    layers: Vec<Vec<usize>>,
    fails: BTreeSet<usize>,
}

impl Plan {
    fn random(rng: &SeededRng) -> Self {
        let (mut layers, mut next) = (Vec::new(), 0);
        for _ in 0..=rng.below(4) {
            let width = 1 + usize::try_from(rng.below(3)).unwrap();
            layers.push((next..next + width).collect());
            next += width;
        }
        let mut fails = BTreeSet::new();
        if rng.below(3) > 0 {
            let layer: &Vec<usize> = &layers[usize::try_from(rng.below(layers.len() as u64)).unwrap()];
            for _ in 0..=rng.below(2) {
                fails.insert(layer[usize::try_from(rng.below(layer.len() as u64)).unwrap()]);
            }
        }
        Self { layers, fails }
    }

    /// Who must have acted before `node` says no, so that both systems start the same ones.
    fn siblings(&self, node: usize) -> Vec<usize> {
        let layer = self.layers.iter().find(|layer| layer.contains(&node)).unwrap();
        layer.iter().copied().filter(|n| !self.fails.contains(n)).collect()
    }

    fn edges(&self) -> Vec<(usize, usize)> {
        let pairs = |two: &[Vec<usize>]| -> Vec<(usize, usize)> {
            two[0].iter().flat_map(|a| two[1].iter().map(|b| (*a, *b))).collect()
        };
        self.layers.windows(2).flat_map(pairs).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Act(usize),
    Acted(usize),
    Undo(usize),
}

/// What participants keep, whoever asks them: effects by node, and the barrier.
#[derive(Debug, Default)]
struct Ledger {
    calls: Vec<Call>,
    acted: BTreeSet<usize>,
    effects: BTreeSet<usize>,
    undone: BTreeSet<usize>,
}

#[derive(Debug)]
struct Participants {
    plan: Plan,
    ledger: Mutex<Ledger>,
}

impl Participants {
    fn new(plan: &Plan) -> Arc<Self> {
        Arc::new(Self { plan: plan.clone(), ledger: Mutex::default() })
    }

    /// Whether it takes effect; the other ones say no.
    async fn act(&self, node: usize) -> bool {
        self.ledger.lock().unwrap().calls.push(Call::Act(node));
        if self.plan.fails.contains(&node) {
            let siblings = self.plan.siblings(node);
            while !siblings.iter().all(|n| self.ledger.lock().unwrap().acted.contains(n)) {
                tokio::task::yield_now().await;
            }
            return false;
        }
        let mut ledger = self.ledger.lock().unwrap();
        ledger.calls.push(Call::Acted(node));
        ledger.acted.insert(node);
        if !ledger.undone.contains(&node) {
            ledger.effects.insert(node);
        }
        true
    }

    fn undo(&self, node: usize) {
        let mut ledger = self.ledger.lock().unwrap();
        ledger.calls.push(Call::Undo(node));
        ledger.undone.insert(node);
        ledger.effects.remove(&node);
    }
}

/// How one system ended.
#[derive(Debug)]
struct Ended {
    completed: bool,
    calls: Vec<Call>,
    effects: BTreeSet<usize>,
    /// Records of the first life.
    records: u64,
}

impl Ended {
    fn of(completed: bool, participants: &Participants, records: u64) -> Self {
        let ledger = participants.ledger.lock().unwrap();
        Self { completed, calls: ledger.calls.clone(), effects: ledger.effects.clone(), records }
    }

    fn set(&self, wanted: impl Fn(&Call) -> Option<usize>) -> BTreeSet<usize> {
        self.calls.iter().filter_map(wanted).collect()
    }

    fn started(&self) -> BTreeSet<usize> {
        self.set(|c| if let Call::Act(n) = c { Some(*n) } else { None })
    }

    fn undone(&self) -> BTreeSet<usize> {
        self.set(|c| if let Call::Undo(n) = c { Some(*n) } else { None })
    }

    /// Whatever the system: forward along each edge, back against it.
    fn keeps_order(&self, plan: &Plan) {
        let at = |call: Call| self.calls.iter().position(|c| *c == call);
        for (a, b) in plan.edges() {
            if let (Some(done), Some(begun)) = (at(Call::Acted(a)), at(Call::Act(b))) {
                assert!(done < begun, "{a} before {b}: {:?}", self.calls);
            }
            if let (Some(first), Some(then)) = (at(Call::Undo(b)), at(Call::Undo(a))) {
                assert!(first < then, "undo {b} before {a}: {:?}", self.calls);
            }
        }
    }
}

fn life<T>(run: impl Future<Output = T>) -> T {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    rt.block_on(run)
}

/// Counts records, and lets nothing happen from the `cut`th on.
#[derive(Debug)]
struct Death {
    cut: Option<u64>,
    records: AtomicU64,
    now: Notify,
}

impl Death {
    fn at(cut: Option<u64>) -> Arc<Self> {
        Arc::new(Self { cut, records: AtomicU64::new(0), now: Notify::new() })
    }

    async fn record(&self) {
        let n = self.records.fetch_add(1, Ordering::SeqCst) + 1;
        if self.cut.is_some_and(|cut| n >= cut) {
            self.now.notify_one();
            std::future::pending::<()>().await;
        }
    }

    fn records(&self) -> u64 {
        self.records.load(Ordering::SeqCst)
    }
}

impl Tap for Death {
    fn before(&self, write: Write) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if matches!(write, Write::Append | Write::Create) {
                self.record().await;
            }
        })
    }

    fn after(&self, _: Write) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

struct OurStep(Arc<Participants>, usize);

impl LocalStep for OurStep {
    fn act(&self, _: StepCx, _: Value) -> BoxFuture<'_, std::result::Result<Value, StepError>> {
        Box::pin(async {
            if self.0.act(self.1).await { Ok(json!(self.1)) } else { Err(StepError::rejected_for_good("no")) }
        })
    }

    fn undo(&self, _: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, std::result::Result<(), UndoError>> {
        Box::pin(async {
            self.0.undo(self.1);
            Ok(())
        })
    }
}

fn our_graph(plan: &Plan) -> Definition {
    let name = |n: &usize| format!("n{n}");
    let mut steps = Vec::new();
    for (i, layer) in plan.layers.iter().enumerate() {
        let before: Vec<String> =
            if i == 0 { Vec::new() } else { plan.layers[i - 1].iter().map(name).collect() };
        let before: Vec<&str> = before.iter().map(String::as_str).collect();
        steps.extend(layer.iter().map(|n| step(&name(n), &before)));
    }
    definition(steps)
}

fn ours(plan: &Plan, cut: Option<u64>) -> Ended {
    let (clock, participants) = (ByHand::default(), Participants::new(plan));
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new(Arc::new(clock.clone())));
    let graph = our_graph(plan);
    let run = async |death: Arc<Death>| -> bool {
        let seen: Arc<dyn Journal> = Arc::new(TapJournal::new(Arc::clone(&journal), death));
        let rt = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(7)));
        let steps = plan.layers.iter().flatten().map(|n| {
            let step: Arc<dyn LocalStep> = Arc::new(OurStep(Arc::clone(&participants), *n));
            (format!("n{n}"), step)
        });
        let engine = Engine::builder(seen, rt).definition(graph.clone(), steps.collect::<Vec<_>>());
        let engine = engine.open().await.unwrap();
        let handle = engine.start(graph.name(), json!({}), StartOptions::id("one")).await.unwrap();
        match handle.outcome().await.unwrap() {
            Outcome::Completed { .. } => true,
            Outcome::Compensated { .. } => false,
            other => panic!("{other:?}"),
        }
    };
    let first = Death::at(cut);
    let done = life(async {
        tokio::select! {
            biased;
            () = first.now.notified() => None,
            completed = run(Arc::clone(&first)) => Some(completed),
        }
    });
    let completed = done.unwrap_or_else(|| life(run(Death::at(None))));
    Ended::of(completed, &participants, first.records())
}

#[derive(Debug)]
struct Graph;

impl SagaType for Graph {
    type ExecContextType = Arc<()>;
}

/// The oracle's store: what was recorded before the death.
#[derive(Debug)]
struct Events {
    death: Arc<Death>,
    kept: Mutex<Vec<SagaNodeEvent>>,
}

#[async_trait]
impl SecStore for Events {
    async fn saga_create(&self, _: SagaCreateParams) -> std::result::Result<(), anyhow::Error> {
        Ok(())
    }

    async fn record_event(&self, event: SagaNodeEvent) {
        self.death.record().await;
        self.kept.lock().unwrap().push(event);
    }

    async fn saga_update(&self, _: SagaId, _: SagaCachedState) {}
}

fn their_graph(plan: &Plan, participants: &Arc<Participants>) -> (Arc<SagaDag>, Arc<ActionRegistry<Graph>>) {
    let mut registry = ActionRegistry::new();
    let mut builder = DagBuilder::new(SagaName::new("order"));
    for layer in &plan.layers {
        let mut nodes = Vec::new();
        for &n in layer {
            let (act, undo) = (Arc::clone(participants), Arc::clone(participants));
            let action: Arc<dyn Action<Graph>> = ActionFunc::new_action(
                format!("n{n}"),
                move |_: ActionContext<Graph>| {
                    let participants = Arc::clone(&act);
                    async move {
                        let took = participants.act(n).await;
                        if took { Ok(n) } else { Err(ActionError::action_failed("no".to_owned())) }
                    }
                },
                move |_: ActionContext<Graph>| {
                    let participants = Arc::clone(&undo);
                    async move {
                        participants.undo(n);
                        Ok::<(), anyhow::Error>(())
                    }
                },
            );
            registry.register(Arc::clone(&action));
            nodes.push(Node::action(format!("o{n}"), format!("n{n}"), action.as_ref()));
        }
        builder.append_parallel(nodes);
    }
    // Its graphs end in one node, which has the output.
    builder.append(Node::constant("end", json!(null)));
    (Arc::new(SagaDag::new(builder.build().unwrap(), json!({}))), Arc::new(registry))
}

fn theirs(plan: &Plan, cut: Option<u64>) -> Ended {
    let participants = Participants::new(plan);
    let (dag, registry) = their_graph(plan, &participants);
    let id = SagaId::new_v4();
    let quiet = || slog::Logger::root(slog::Discard, slog::o!());
    let first = Death::at(cut);
    let events = Arc::new(Events { death: Arc::clone(&first), kept: Mutex::default() });
    let done = life(async {
        let sec = steno::sec(quiet(), Arc::clone(&events) as Arc<dyn SecStore>);
        let run = async {
            let ended = sec
                .saga_create(id, Arc::new(Arc::new(())), Arc::clone(&dag), Arc::clone(&registry))
                .await
                .unwrap();
            sec.saga_start(id).await.unwrap();
            ended.await.kind.is_ok()
        };
        tokio::select! {
            biased;
            () = first.now.notified() => None,
            completed = run => Some(completed),
        }
    });
    let completed = done.unwrap_or_else(|| {
        let kept = events.kept.lock().unwrap().clone();
        life(async {
            let store = Events { death: Death::at(None), kept: Mutex::default() };
            let sec = steno::sec(quiet(), Arc::new(store));
            let dag = serde_json::to_value(&*dag).unwrap();
            let ended =
                sec.saga_resume(id, Arc::new(Arc::new(())), dag, Arc::clone(&registry), kept).await.unwrap();
            sec.saga_start(id).await.unwrap();
            ended.await.kind.is_ok()
        })
    });
    Ended::of(completed, &participants, first.records())
}

#[test]
fn random_graphs_unwind_as_those_of_the_oracle() {
    let mut unwound = 0;
    for seed in 0..SEEDS {
        let plan = Plan::random(&SeededRng::new(seed));
        let (ours, theirs) = (ours(&plan, None), theirs(&plan, None));
        assert_eq!(ours.completed, theirs.completed, "seed {seed}: {plan:?}");
        assert_eq!(ours.started(), theirs.started(), "seed {seed}: {plan:?}");
        assert_eq!(ours.undone(), theirs.undone(), "seed {seed}: {plan:?}");
        assert_eq!(ours.effects, theirs.effects, "seed {seed}: {plan:?}");
        ours.keeps_order(&plan);
        theirs.keeps_order(&plan);
        unwound += u64::from(!ours.completed);
    }
    assert!(unwound > SEEDS / 2 && unwound < SEEDS, "{unwound} of {SEEDS} unwound");
}

#[test]
fn after_a_death_at_any_record_the_same_is_in_effect_as_by_the_oracle() {
    let mut cut = 0;
    for seed in 0..SEEDS {
        let rng = SeededRng::new(1_000_000 + seed);
        let plan = Plan::random(&rng);
        let whole = (ours(&plan, None).records, theirs(&plan, None).records);
        let deaths = (1 + rng.below(whole.0), 1 + rng.below(whole.1));
        let (ours, theirs) = (ours(&plan, Some(deaths.0)), theirs(&plan, Some(deaths.1)));
        assert_eq!(ours.completed, theirs.completed, "seed {seed}, deaths at {deaths:?}: {plan:?}");
        assert_eq!(ours.effects, theirs.effects, "seed {seed}, deaths at {deaths:?}: {plan:?}");
        assert_eq!(ours.completed, plan.fails.is_empty(), "seed {seed}");
        cut += u64::from(ours.records == deaths.0);
    }
    assert_eq!(cut, SEEDS, "every run of ours was cut where it should be");
}
