//! What an undo is told, and what becomes of one that is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Clock as _;
use mainstay_saga::definition::Definition;
use mainstay_saga::engine::{ActionRequest, StartOptions};
use mainstay_saga::wire::{Fact, ItemKind, Operation};
use mainstay_saga::{Engine, Outcome, Saga, StepCx, StepError, Told, UndoError};
use mainstay_store::journal::SagaStatus;
use serde_json::{Value, json};

use crate::remote::{Bench, Say, ok, say};
use crate::world::{Act, World, order};

fn data() -> Definition {
    let policy = json!({"attempts": 4, "base": "10ms", "cap": "10ms"});
    let data = json!({
        "name": "remote", "version": 1, "deadline": "1h", "timeout": "10s",
        "retry": {"attempts": 1}, "undo_retry": policy,
        "steps": [
            {"name": "charge", "action": "http://p/charge", "undo": "http://p/refund", "status": "http://p/status"},
            {"name": "ship", "after": ["charge"], "action": "http://p/ship", "no_undo": "a refused one never left"},
        ],
    });
    Definition::from_json(data.to_string().as_bytes()).unwrap()
}

fn act(operation: Operation) -> ActionRequest {
    ActionRequest::new("ann", "as the runbook says", operation)
}

fn retry(input: Option<Value>) -> ActionRequest {
    act(Operation::Retry { step: "charge".to_owned(), input })
}

fn needs_charge() -> Outcome {
    Outcome::NeedsAttention { steps: vec!["charge".to_owned()] }
}

/// Keys that are no text: what JSON cannot say. It is done, and its output is lost.
#[tokio::test(start_paused = true)]
async fn sg_f20_an_output_that_cannot_be_written_down_is_undone_as_maybe() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let world = World::new();
    let mut b = Saga::<u32>::builder("order", 1);
    let act = |_: StepCx, n: u32| async move { Ok::<_, StepError>(BTreeMap::from([((n, n), n)])) };
    let undone = Arc::clone(&told);
    let undo = move |_: StepCx, told: Told<BTreeMap<(u32, u32), u32>>| {
        undone.lock().unwrap().push(told);
        async { Ok::<(), UndoError>(()) }
    };
    b.step("charge", b.input(), act).undo(undo).add();
    let saga = b.no_deadline().build().unwrap();
    let builder = Engine::builder(Arc::clone(&world.journal), world.runtime()).register(&saga);
    let engine = builder.open().await.unwrap();
    let handle = engine.start_saga(&saga, &5, StartOptions::id("one")).await.unwrap();
    let outcome = handle.outcome().await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}");
    assert_eq!(*told.lock().unwrap(), [Told::Maybe], "once, and not as if nothing had happened");
}

/// "Not found" was asked for twenty times, over an hour, before anybody heard of it.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_none_to_an_undo_asks_a_person_at_once() {
    // Of a charge that certainly happened, and of one that may have.
    for charge in [ok(json!({"receipt": 7})), Say::Unknown] {
        for nonsense in [100, 302, 401, 404, 418] {
            let bench = Bench::of(data()).await;
            bench.remote.script("charge", std::slice::from_ref(&charge));
            bench.remote.script("ship", &[say(409)]);
            bench.remote.script("status", &[say(404)]);
            bench.remote.script("refund", &[say(nonsense), ok(json!({}))]);
            let handle = bench.start().await;
            assert_eq!(handle.outcome().await.unwrap(), needs_charge(), "{charge:?}, {nonsense}");
            assert_eq!(bench.remote.all("refund").len(), 1, "{charge:?}, {nonsense}");
            let facts = bench.facts(&handle).await;
            let ended =
                facts.iter().find_map(|f| if let Fact::UndoEnded(end) = f { Some(end) } else { None });
            let ended = ended.unwrap();
            assert_eq!((ended.item, ended.retry_at), (Some(ItemKind::UndoFailed), None), "{nonsense}");
            // The person has put it right.
            bench.engine.attention().act(handle.uid(), retry(None)).await.unwrap();
            let outcome = handle.outcome().await.unwrap();
            assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}");
        }
    }
}

/// A refusal may pass, and an outage does: both are repeated by the policy of the undo. "Gone" is the agreed word for
/// what is undone already.
#[tokio::test(start_paused = true)]
async fn other_answers_to_an_undo_are_repeated_and_gone_is_undone() {
    for (answer, undos) in [(say(409), 4), (say(422), 4), (say(503), 4), (Say::Unknown, 4), (Say::NotSent, 4)]
    {
        let bench = Bench::of(data()).await;
        bench.remote.script("ship", &[say(409)]);
        bench.remote.script("refund", std::slice::from_ref(&answer));
        assert_eq!(bench.run().await, needs_charge(), "{answer:?}");
        assert_eq!(bench.remote.all("refund").len(), undos, "{answer:?}");
    }
    let bench = Bench::of(data()).await;
    bench.remote.script("ship", &[say(409)]);
    bench.remote.script("refund", &[say(410)]);
    assert!(matches!(bench.run().await, Outcome::Compensated { .. }));
}

/// "Gone" was the agreed word also where an accepted undo was polled: the refund counted as made, because its job had
/// been forgotten.
#[tokio::test(start_paused = true)]
async fn an_accepted_undo_whose_place_is_gone_is_sent_again() {
    let bench = Bench::of(data()).await;
    bench.remote.script("ship", &[say(409)]);
    let busy = Say::Status(202, vec![("location", "http://p/jobs/7"), ("retry-after", "1")], Value::Null);
    bench.remote.script("refund", &[busy, ok(json!({}))]);
    bench.remote.script("jobs/7", &[say(410)]);
    assert!(matches!(bench.run().await, Outcome::Compensated { .. }));
    let calls = bench.remote.calls();
    let undo = &calls[calls.iter().position(|c| c == "POST refund").unwrap()..];
    assert_eq!(undo, ["POST refund", "GET jobs/7", "POST refund"]);
}

/// A node that died while it tried on behind an open question took the question away, until that undo had failed once more: whoever
/// looked at what needs a person saw nothing, and its age began anew.
#[tokio::test(start_paused = true)]
async fn if_k4_a_node_that_dies_behind_an_open_question_does_not_take_it_away() {
    let world = World::new();
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoFails, Act::UndoFails, Act::UndoFails, Act::UndoHangs]);
    let (engine, handle) = world.begin(&order()).await;
    assert_eq!(handle.outcome().await.unwrap(), needs_charge());
    let undos = || world.calls().iter().filter(|c| c.starts_with("undo charge")).count();
    for _ in 0..20_000 {
        if undos() == 4 {
            break;
        }
        world.clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(undos(), 4, "it is tried on slowly, and hangs");
    engine.shutdown(Duration::ZERO).await;
    let engine = world.engine(&order()).await;
    world.clock.sleep(Duration::from_millis(200)).await;
    let row = world.journal.summary(handle.uid()).await.unwrap().unwrap().row;
    assert_eq!(row.status, SagaStatus::NeedsAttention, "{row:?}");
    world.script("undo charge", &[Act::Done]);
    world.clock.sleep(Duration::from_secs(16 * 60)).await;
    let outcome = engine.outcome(handle.uid()).await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closure_refuses_its_undo_for_good_and_is_not_asked_again() {
    let world = World::new();
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefusedForGood, Act::Done]);
    let (engine, handle) = world.begin(&order()).await;
    assert_eq!(handle.outcome().await.unwrap(), needs_charge());
    assert_eq!(world.calls().iter().filter(|c| c.starts_with("undo charge")).count(), 1);
    engine.attention().act(handle.uid(), retry(None)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert!(world.nothing_left());
}

/// Each undo is told what its action was given under its key: the first one the saga's input, the other one what a person gave.
#[tokio::test(start_paused = true)]
async fn an_undo_over_http_is_told_the_input_that_its_action_was_given() {
    let bench = Bench::of(data()).await;
    bench.remote.script("charge", &[say(404), ok(json!({"receipt": 7}))]);
    bench.remote.script("ship", &[say(409)]);
    let handle = bench.start().await;
    assert_eq!(handle.outcome().await.unwrap(), needs_charge());
    bench.engine.attention().act(handle.uid(), retry(Some(json!({"n": 2})))).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    let told: Vec<(String, Value)> = bench
        .remote
        .all("refund")
        .iter()
        .map(|r| (r.idempotency_key.clone(), serde_json::from_slice(&r.body).unwrap()))
        .collect();
    assert_eq!(told[0].1, json!({"effect": "maybe", "input": {"n": 1}, "output": null}));
    assert_eq!(told[1].1, json!({"effect": "did", "input": {"n": 2}, "output": {"receipt": 7}}));
    assert!(told[0].0.ends_with("/charge/undo") && told[1].0.ends_with("/charge/undo~2"), "{told:?}");
    // Only of the one that may have happened it was asked, under its own key.
    let asked: Vec<String> = bench.remote.all("status").into_iter().map(|r| r.idempotency_key).collect();
    assert!(asked.len() == 1 && asked[0].ends_with("/charge/action"), "{asked:?}");
}

type Told3 = Arc<Mutex<Vec<(Told<u32>, String)>>>;

/// book -> pay: a booking that nobody answers for is asked of a person, and one may be undone by its seat.
fn trip(told: &Told3, refuses: u32) -> Saga<String> {
    let told = Arc::clone(told);
    let left = Arc::new(Mutex::new(refuses));
    let mut b = Saga::<String>::builder("trip", 1);
    let book = |_: StepCx, seat: String| async move {
        if seat == "A1" { Err(StepError::unknown("no answer")) } else { Ok(7_u32) }
    };
    let free = move |_: StepCx, effect: Told<u32>, seat: String| {
        told.lock().unwrap().push((effect, seat));
        let mut left = left.lock().unwrap();
        let answer = match *left {
            0 => Ok(()),
            _ => Err(UndoError::refused_for_good("no such seat")),
        };
        *left = left.saturating_sub(1);
        async move { answer }
    };
    let instant = std::time::Duration::from_millis(1);
    let booked = b.step("charge", b.input(), book).undo_with_input(free).ask_when_unknown();
    let booked = booked.retry(1, instant, instant).add();
    b.step("pay", &booked, |_: StepCx, _: u32| async { Err::<(), _>(StepError::rejected("no money")) })
        .no_undo("nothing is paid")
        .add();
    b.no_deadline().build().unwrap()
}

/// The typed undo saw the output, or nothing, and never the input.
#[tokio::test(start_paused = true)]
async fn a_typed_undo_is_told_the_input_that_its_action_was_given() {
    let world = World::new();
    let told = Told3::default();
    let saga = trip(&told, 1);
    let builder = Engine::builder(Arc::clone(&world.journal), world.runtime()).register(&saga);
    let engine = builder.open().await.unwrap();
    let handle = engine.start_saga(&saga, &"A1".to_owned(), StartOptions::id("one")).await.unwrap();
    assert_eq!(handle.outcome().await.unwrap(), needs_charge());
    engine.attention().act(handle.uid(), retry(Some(json!("B2")))).await.unwrap();
    // The first one is undone before; that is refused, and a person gives it another seat.
    assert_eq!(handle.outcome().await.unwrap(), needs_charge());
    assert_eq!(*told.lock().unwrap(), [(Told::Maybe, "A1".to_owned())]);
    engine.attention().act(handle.uid(), retry(Some(json!({"seat": "B3"})))).await.unwrap();
    assert_eq!(handle.outcome().await.unwrap(), needs_charge(), "that is no seat");
    assert_eq!(told.lock().unwrap().len(), 1, "the undo was not called with it");
    engine.attention().act(handle.uid(), retry(Some(json!("B3")))).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    let all = told.lock().unwrap().clone();
    let seats: Vec<&str> = all.iter().map(|(_, seat)| seat.as_str()).collect();
    assert_eq!(seats, ["A1", "B3", "B2"]);
    assert_eq!(all[2].0, Told::Did(7));
}
