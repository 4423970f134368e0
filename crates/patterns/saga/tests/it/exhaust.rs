//! The test kit on the order saga, on random graphs, and on worlds with a bug that it must find.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use mainstay_clock::{Clock as _, Rng, SeededRng, SystemClock};
use mainstay_saga::definition::{Definition, DefinitionData, StepData};
use mainstay_saga::exhaust::{Exhaust, ExhaustReport, exhaust, exhaust_data};
use mainstay_saga::{Known, LocalStep, Outcome, Saga, StepCx, StepError, Told, UndoError};
use mainstay_store::{BoxFuture, FencingToken};
use serde_json::{Value, json};

/// What is wrong with the participants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// A repeated action takes effect again.
    ForgetsKeys,
    /// An undo reverses what never happened.
    NullUndo,
    /// An undo that came first does not block its action.
    LateAction,
    /// An undo told `Maybe` does nothing.
    IgnoresMaybe,
    /// A repeated undo reverses twice.
    UndoesTwice,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    acted: bool,
    undone: bool,
}

/// Entries by key, money by account, and the highest token.
type Books = (BTreeMap<String, Entry>, BTreeMap<String, i64>, FencingToken);

/// Participants that keep the rules of the barrier: by key, by order, by token.
#[derive(Debug)]
struct World {
    bug: Bug,
    state: Mutex<Books>,
}

impl World {
    fn new(bug: Bug) -> Arc<Self> {
        Arc::new(Self { bug, state: Mutex::default() })
    }

    fn act(&self, cx: &StepCx) -> Result<(), StepError> {
        let (step, key) = (cx.step.to_string(), cx.idempotency_key.clone());
        let mut state = self.state.lock().unwrap();
        let (entries, net, seen) = &mut *state;
        if cx.fence < *seen {
            return Err(StepError::unknown("stale token"));
        }
        *seen = cx.fence.max(*seen);
        let entry = entries.entry(key).or_default();
        if entry.undone && self.bug != Bug::LateAction {
            return Err(StepError::rejected_for_good("undone before"));
        }
        if !entry.acted || self.bug == Bug::ForgetsKeys {
            entry.acted = true;
            *net.entry(step).or_default() += 1;
        }
        Ok(())
    }

    fn undo(&self, cx: &StepCx, told_maybe: bool) {
        let step = cx.step.to_string();
        // Of each key generation its own: `action~2` is undone by `undo~2`.
        let key = cx.idempotency_key.replace("/undo", "/action");
        let mut state = self.state.lock().unwrap();
        let (entries, net, seen) = &mut *state;
        if cx.fence < *seen {
            return;
        }
        *seen = cx.fence;
        if told_maybe && self.bug == Bug::IgnoresMaybe {
            return;
        }
        let entry = entries.entry(key).or_default();
        let first = !entry.undone || self.bug == Bug::UndoesTwice;
        if (entry.acted || self.bug == Bug::NullUndo) && first {
            *net.entry(step).or_default() -= 1;
        }
        entry.undone = true;
    }

    /// Whether an action happened. One that did not never will: it is blocked like one that was undone.
    fn known(&self, cx: &StepCx) -> Option<bool> {
        let mut state = self.state.lock().unwrap();
        let (entries, _, seen) = &mut *state;
        if cx.fence < *seen {
            return None;
        }
        *seen = cx.fence;
        let entry = entries.entry(cx.idempotency_key.clone()).or_default();
        entry.undone |= !entry.acted;
        Some(entry.acted && !entry.undone)
    }

    /// All or nothing, as the outcome says.
    fn balanced(&self, steps: usize, outcome: &Outcome) -> Result<(), String> {
        let state = self.state.lock().unwrap();
        let expected = i64::from(matches!(outcome, Outcome::Completed { .. }));
        let full = (0..steps).count();
        let net = &state.1;
        let even = net.values().all(|n| *n == expected) && (expected == 0 || net.len() == full);
        if even { Ok(()) } else { Err(format!("{net:?}")) }
    }
}

/// The action of a step, which hands on the next number.
fn acting(world: &Arc<World>) -> impl Fn(StepCx, u32) -> Fut<Result<u32, StepError>> + Send + Sync + use<> {
    let world = Arc::clone(world);
    move |cx, n| {
        let result = world.act(&cx).map(|()| n + 1);
        Box::pin(async move { result })
    }
}

/// Its undo.
fn undoing(
    world: &Arc<World>,
) -> impl Fn(StepCx, Told<u32>) -> Fut<Result<(), UndoError>> + Send + Sync + use<> {
    let world = Arc::clone(world);
    move |cx, told| {
        world.undo(&cx, told == Told::Maybe);
        Box::pin(async { Ok(()) })
    }
}

/// reserve -> charge -> ship, with typed closures.
fn order(world: &Arc<World>) -> Saga<u32> {
    let (act, undo) = (|| acting(world), || undoing(world));
    let mut b = Saga::<u32>::builder("order", 1);
    let reserve = b.step("reserve", b.input(), act()).undo(undo()).add();
    let charge = b.step("charge", &reserve, act()).undo(undo()).add();
    b.step("ship", &charge, act()).undo(undo()).add();
    b.no_deadline().build().unwrap()
}

type Fut<T> = BoxFuture<'static, T>;

/// reserve and charge side by side -> ship, the point of no return -> label and mail side by side. `asked`: what became of a step
/// may be asked.
fn parcel(world: &Arc<World>, asked: bool) -> Saga<u32> {
    let (act, undo) = (|| acting(world), || undoing(world));
    let status = || {
        let world = Arc::clone(world);
        move |cx: StepCx, n: u32| -> Fut<Known<u32>> {
            let known = match world.known(&cx) {
                Some(true) => Known::Did(n + 1),
                Some(false) => Known::Never,
                None => Known::Unclear,
            };
            Box::pin(async { known })
        }
    };
    let mut b = Saga::<u32>::builder("parcel", 1);
    let reserve = b.step("reserve", b.input(), act()).undo(undo());
    let reserve = if asked { reserve.status(status()) } else { reserve }.add();
    let charge = b.step("charge", b.input(), act()).undo(undo());
    let charge = if asked { charge.ask_when_unknown().status(status()) } else { charge }.add();
    let both = act();
    let ship = b.pivot("ship", (&reserve, &charge), move |cx: StepCx, (r, _): (u32, u32)| both(cx, r));
    let look = status();
    let ship = if asked { ship.status(move |cx: StepCx, (r, _): (u32, u32)| look(cx, r)) } else { ship };
    let (ship, mut forward) = ship.add();
    let label = forward.retriable("label", &ship, act());
    let label = if asked { label.status(status()) } else { label };
    label.add();
    forward.retriable("mail", &ship, act()).add();
    forward.no_deadline().build().unwrap()
}

/// A pivot, and what must happen after it: every fault at every step, with a crash at every append. Its status can be asked:
/// of one that cannot, a person is asked whenever a crash hides an answer and the next attempt is rejected.
#[test]
fn sg_s10_a_saga_with_a_point_of_no_return_is_exhausted() {
    let kit = exhaust(|| World::new(Bug::None), |w| parcel(w, true), &1);
    let report = show(kit.invariant(|w, outcome| w.balanced(5, outcome)).most_runs(most(3_000)).run());
    println!("{report}");
    assert!(report.cases > 75 && report.runs >= 3_000, "{report}");
    assert!(["reserve", "charge"].iter().all(|s| report.undos[*s] > 20), "{:?}", report.undos);
}

/// A kit that crosses a pivot finds what is wrong with it: a participant that forgets its keys, and one whose undo is needless.
#[test]
fn a_bug_around_a_point_of_no_return_is_found() {
    for bug in [Bug::ForgetsKeys, Bug::NullUndo, Bug::LateAction] {
        let kit = exhaust(move || World::new(bug), |w| parcel(w, false), &1);
        let kit = kit.invariant(|w, outcome| w.balanced(5, outcome));
        let error = kit.most_runs(500).run().expect_err("the bug must be found");
        assert!(!error.0.failures.is_empty(), "{bug:?}");
    }
}

/// reserve -> charge -> ship; when nobody knows whether a charge happened, a person is asked.
fn asking(world: &Arc<World>) -> Saga<u32> {
    let (act, undo) = (|| acting(world), || undoing(world));
    let mut b = Saga::<u32>::builder("order", 1);
    let reserve = b.step("reserve", b.input(), act()).undo(undo()).add();
    let charge = b.step("charge", &reserve, act()).undo(undo()).ask_when_unknown().add();
    b.step("ship", &charge, act()).undo(undo()).add();
    b.no_deadline().build().unwrap()
}

/// A charge that a person tries again with other input, with a crash and a frozen process at every append: it was charged
/// twice, under either key, each time that the first one had taken effect.
#[test]
fn sg_f10_other_input_charges_nobody_twice_wherever_the_process_dies() {
    let kit = || exhaust(|| World::new(Bug::None), asking, &1).invariant(|w, outcome| w.balanced(3, outcome));
    println!("{}", show(kit().most_runs(most(200)).run()));
    // Cancelled in flight and interrupted, it waits for a person who may say what happened, and may not try again.
    for cut in ["crash-after-3", "freeze-after-3", "crash-before-4"] {
        show(kit().only(&format!("charge.cancelled/{cut}")).run());
    }
    let mut cuts = 0;
    for place in ["crash-before", "crash-after", "freeze-after", "freeze-in-call"] {
        // A run without a cut tells where to cut; alone, it says that there are no more places.
        let ran = |k: &i32| show(kit().only(&format!("charge.edited/{place}-{k}")).run()).runs;
        cuts += (1..).take_while(|k| ran(k) > 1).count();
    }
    assert!(cuts > 30, "{cuts}");
}

fn kit(bug: Bug) -> Exhaust<Arc<World>> {
    exhaust(move || World::new(bug), order, &1).invariant(|w, outcome| w.balanced(3, outcome))
}

/// A small batch by default; `MAINSTAY_FULL=1` makes every run.
#[allow(clippy::disallowed_methods, reason = "a switch of a test")]
fn most(few: usize) -> usize {
    if std::env::var("MAINSTAY_FULL").is_ok() { 1_000_000 } else { few }
}

fn show(result: Result<ExhaustReport, mainstay_saga::exhaust::ExhaustError>) -> ExhaustReport {
    match result {
        Ok(report) => report,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn sg_f10_if_k1_if_k5_m_g1_m_g3_m_g9_the_order_saga_is_exhausted() {
    let report = show(kit(Bug::None).run());
    println!("{report}");
    assert!(report.cases > 50 && report.runs > 500, "{report}");
    assert_eq!(report.left_out, 0);
    assert!(["reserve", "charge", "ship"].iter().all(|s| report.undos[*s] > 20), "{:?}", report.undos);
}

#[test]
fn every_bug_of_a_participant_is_found_and_can_be_replayed() {
    let bugs = [Bug::ForgetsKeys, Bug::NullUndo, Bug::LateAction, Bug::IgnoresMaybe, Bug::UndoesTwice];
    for bug in bugs {
        let error = kit(bug).most_runs(300).run().expect_err("the bug must be found");
        let first = &error.0.failures[0];
        println!(
            "{bug:?}: {} of {} runs, first {}: {}",
            error.0.failures.len(),
            error.0.runs,
            first.run,
            first.what
        );
        assert!(first.replay.contains(&first.run) && first.replay.contains("cargo test"), "{}", first.replay);
        let again = kit(bug).only(&first.run).run().expect_err("the same run fails again");
        assert!(again.0.failures.iter().any(|f| f.run == first.run && f.what == first.what), "{again}");
    }
}

#[test]
fn an_undo_that_never_ran_and_a_missing_invariant_are_failures() {
    // The undo of a step that can neither fail nor be followed by a failure is still reached: by an effect
    // without an answer. So only a kit that runs nothing else leaves one out.
    let error = exhaust(|| World::new(Bug::None), order, &1).run().expect_err("nothing would be checked");
    assert!(error.to_string().contains("no invariant"), "{error}");
    let few = kit(Bug::None).only("happy").run().unwrap();
    assert_eq!(few.runs, 1);
}

/// A closure by name, for graphs that are data.
struct Plain(Arc<World>);

impl LocalStep for Plain {
    fn act(&self, cx: StepCx, _: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async move { self.0.act(&cx).map(|()| json!(1)) })
    }

    fn undo(&self, cx: StepCx, told: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async move {
            self.0.undo(&cx, told == Told::Maybe);
            Ok(())
        })
    }
}

fn graph(edges: &[(usize, usize)], nodes: usize) -> Definition {
    let mut data = DefinitionData::new("graph", 1);
    data.no_deadline = true;
    for i in 0..nodes {
        let mut step = StepData::new(format!("s{i}"));
        step.local_undo = true;
        step.after = edges.iter().filter(|(_, to)| *to == i).map(|(from, _)| format!("s{from}")).collect();
        data.steps.push(step);
    }
    Definition::from_data(data).unwrap()
}

fn on_graph(definition: Definition) -> Exhaust<Arc<World>> {
    let steps = definition.steps().len();
    let build = move |world: &Arc<World>| {
        let local = |s: &mainstay_saga::definition::Step| {
            (s.name.clone(), Arc::new(Plain(Arc::clone(world))) as Arc<dyn LocalStep>)
        };
        (definition.clone(), definition.steps().iter().map(local).collect())
    };
    exhaust_data(|| World::new(Bug::None), build, json!({})).invariant(move |w, o| w.balanced(steps, o))
}

/// A connected random graph with an edge from a lower to a higher number with the given chance.
fn random_graph(rng: &SeededRng, nodes: usize, percent: u64) -> Definition {
    let mut edges = BTreeSet::new();
    for to in 1..nodes {
        for from in 0..to {
            if rng.below(100) < percent {
                edges.insert((from, to));
            }
        }
    }
    graph(&edges.into_iter().collect::<Vec<_>>(), nodes)
}

#[test]
fn sg_f07_all_subsets_orders_and_crash_points_of_parallel_failures() {
    // a -> {b, c, d} -> e: three parallel steps.
    let diamond = graph(&[(0, 1), (0, 2), (0, 3), (1, 4), (2, 4), (3, 4)], 5);
    let report = show(on_graph(diamond).most_runs(most(1_500)).run());
    println!("{report}");
    // 7 subsets x 6 orders, each cut at each append.
    assert!(report.cases >= 5 * 16 + 42, "{report}");
}

/// reserve -> ship, neither of which returns anything.
fn quiet(world: &Arc<World>) -> Saga<u32> {
    let act = |world: &Arc<World>| {
        let world = Arc::clone(world);
        move |cx: StepCx| -> BoxFuture<'static, Result<(), StepError>> {
            let result = world.act(&cx);
            Box::pin(async move { result })
        }
    };
    let undo = |world: &Arc<World>| {
        let world = Arc::clone(world);
        move |cx: StepCx, told: Told<()>| -> BoxFuture<'static, Result<(), UndoError>> {
            world.undo(&cx, told == Told::Maybe);
            Box::pin(async { Ok(()) })
        }
    };
    let (first, second) = (act(world), act(world));
    let mut b = Saga::<u32>::builder("quiet", 1);
    let reserve = b.step("reserve", b.input(), move |cx: StepCx, _: u32| first(cx)).undo(undo(world)).add();
    b.step("ship", &reserve, move |cx: StepCx, (): ()| second(cx)).undo(undo(world)).add();
    b.no_deadline().build().unwrap()
}

/// Steps without outputs: what the log says of them must be what the engine thought, at every append.
#[test]
fn if_k5_a_saga_without_outputs_folds_to_what_was_lived() {
    let kit = exhaust(|| World::new(Bug::None), quiet, &1).invariant(|w, outcome| w.balanced(2, outcome));
    show(kit.run());
}

#[test]
fn random_graphs_are_exhausted() {
    let rng = SeededRng::new(11);
    for i in 0..6 {
        let nodes = 2 + usize::try_from(rng.below(5)).unwrap();
        let definition = random_graph(&rng, nodes, 40);
        let report = show(on_graph(definition).seed(i).most_runs(most(800)).run());
        println!("graph {i} of {nodes} steps: {} runs, {} left out", report.runs, report.left_out);
    }
}

/// The figure has its limit in `cargo xtask budget`, which reads it; here it is printed, and every run must be right.
#[test]
fn a_ten_step_saga_is_exhausted() {
    let edges: Vec<(usize, usize)> = (1..10).map(|i| (i - 1, i)).collect();
    let clock = SystemClock::new();
    let start = clock.now();
    let report = show(on_graph(graph(&edges, 10)).most_runs(most(1_500)).run());
    let took = clock.now().saturating_duration_since(start);
    let (runs, left_out) = (report.runs, report.left_out);
    println!("\nten steps: {runs} runs in {:.1} s, {left_out} left out\n{report}", took.as_secs_f64());
    assert!(report.runs >= 1_500, "{report}");
}
