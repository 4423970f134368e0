//! A retry with other input: another key, and what was done under the former one is taken back first.

use std::time::Duration;

use mainstay_clock::Clock as _;
use mainstay_saga::definition::{Definition, OnUnknown, StepKind};
use mainstay_saga::engine::ActionRequest;
use mainstay_saga::wire::Operation;
use mainstay_saga::{Engine, ErrorKind, Handle, Outcome};
use serde_json::json;

use crate::world::{Act, World, definition, step};

/// reserve -> charge -> ship; when nobody knows whether a charge happened, a person is asked.
fn asking() -> Definition {
    let mut charge = step("charge", &["reserve"]);
    charge.on_unknown = OnUnknown::Ask;
    definition(vec![step("reserve", &[]), charge, step("ship", &["charge"])])
}

fn charge(other: i64) -> Operation {
    Operation::Retry { step: "charge".to_owned(), input: Some(json!({"amount": other})) }
}

async fn act(engine: &Engine, handle: &Handle, operation: Operation) -> Result<(), ErrorKind> {
    let request = ActionRequest::new("ann", "as the runbook says", operation);
    engine.attention().act(handle.uid(), request).await.map(|_| ()).map_err(|e| e.kind())
}

fn needs_charge() -> Outcome {
    Outcome::NeedsAttention { steps: vec!["charge".to_owned()] }
}

/// A charge that had its effect and lost its answer, about which a person has been asked.
async fn asked(world: &World) -> (Engine, Handle) {
    world.script("charge", &[Act::UnknownAfter, Act::UnknownAfter, Act::UnknownAfter, Act::Done]);
    let (engine, handle) = world.begin(&asking()).await;
    assert_eq!(handle.outcome().await.unwrap(), needs_charge());
    (engine, handle)
}

/// The saga completed with both charges.
#[tokio::test(start_paused = true)]
async fn other_input_is_another_key_once_the_former_is_taken_back() {
    let world = World::new();
    let (engine, handle) = asked(&world).await;
    act(&engine, &handle, charge(5)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(world.calls()[3..], ["charge", "undo charge maybe", "charge", "ship"]);
    assert_eq!(world.net().values().copied().collect::<Vec<_>>(), [1, 1, 1]);
    let keys = world.ledger.lock().unwrap().keys.clone();
    assert!(keys[4].ends_with("/charge/undo") && keys[5].ends_with("/charge/action~2"), "{keys:?}");
}

/// Each in turn, and what was done last is undone alone when the saga turns back.
#[tokio::test(start_paused = true)]
async fn every_other_input_takes_back_the_one_before() {
    let world = World::new();
    world.script("charge", &[Act::UnknownAfter]);
    world.script("ship", &[Act::Rejected]);
    let (engine, handle) = world.begin(&asking()).await;
    for amount in [5, 6] {
        assert_eq!(handle.outcome().await.unwrap(), needs_charge());
        assert_eq!(world.net()["charge"], 1);
        act(&engine, &handle, charge(amount)).await.unwrap();
    }
    assert_eq!(handle.outcome().await.unwrap(), needs_charge());
    let done = Operation::ResolveDone { step: "charge".to_owned(), output: json!({}) };
    act(&engine, &handle, done).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert!(world.nothing_left(), "{:?}", world.net());
    let keys = world.ledger.lock().unwrap().keys.clone();
    let undos: Vec<_> = keys.iter().filter_map(|k| k.split_once("/charge/undo")).map(|(_, n)| n).collect();
    assert_eq!(undos, ["", "~2", "~3"]);
}

/// What cannot be taken back asks a person, who says what becomes of it: it is tried again, somebody has undone it, or it
/// stays.
#[tokio::test(start_paused = true)]
async fn a_former_effect_that_cannot_be_taken_back_is_a_persons() {
    let step = || "charge".to_owned();
    let answers = [
        (Operation::Retry { step: step(), input: None }, 1),
        (Operation::ResolveUndone { step: step() }, 2),
        (Operation::Skip { step: step() }, 2),
    ];
    for (answer, net) in answers {
        for ships in [true, false] {
            let world = World::new();
            world.script("undo charge", &[Act::UndoRefusedForGood, Act::Done]);
            if !ships {
                world.script("ship", &[Act::Rejected]);
            }
            let (engine, handle) = asked(&world).await;
            act(&engine, &handle, charge(5)).await.unwrap();
            assert_eq!(handle.outcome().await.unwrap(), needs_charge(), "{answer:?}");
            assert_eq!(world.net()["charge"], 1, "the new one has not begun");
            act(&engine, &handle, answer.clone()).await.unwrap();
            let (outcome, left) = (handle.outcome().await.unwrap(), world.net()["charge"]);
            let skipped = matches!(answer, Operation::Skip { .. });
            match outcome {
                Outcome::Completed { .. } if ships => assert_eq!(left, net, "{answer:?}"),
                Outcome::Compensated { .. } if !ships && !skipped => assert_eq!(left, net - 1, "{answer:?}"),
                Outcome::Abandoned { remaining } if !ships && skipped => {
                    assert_eq!((left, remaining), (1, vec!["charge".to_owned()]), "{answer:?}");
                }
                other => panic!("{answer:?}, {ships}: {other:?}"),
            }
        }
    }
}

/// Turned back meanwhile, the new one never begins.
#[tokio::test(start_paused = true)]
async fn a_saga_that_turns_back_while_the_former_effect_is_taken_back_begins_nothing() {
    let world = World::new();
    world.script("undo charge", &[Act::UndoHangs, Act::Done]);
    let (engine, handle) = asked(&world).await;
    act(&engine, &handle, charge(5)).await.unwrap();
    while !world.calls().iter().any(|c| c == "undo charge maybe") {
        world.clock.sleep(Duration::from_millis(1)).await;
    }
    act(&engine, &handle, Operation::Cancel).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert!(world.nothing_left(), "{:?}", world.net());
    assert!(!world.ledger.lock().unwrap().keys.iter().any(|k| k.ends_with("~2")));
}

/// The undo of a former effect fails because of an outage, a person has been asked, and it is tried on slowly. A saga that turns
/// back then waited for that person alone, however long ago the outage was over.
#[tokio::test(start_paused = true)]
async fn a_former_effect_whose_undo_is_tried_slowly_is_taken_back_also_after_the_turn() {
    for turns in ["cancel", "deadline"] {
        let world = World::new();
        world.script("undo charge", &[Act::UndoFails]);
        let (engine, handle) = asked(&world).await;
        act(&engine, &handle, charge(5)).await.unwrap();
        assert_eq!(handle.outcome().await.unwrap(), needs_charge());
        match turns {
            "cancel" => act(&engine, &handle, Operation::Cancel).await.unwrap(),
            _ => world.clock.sleep(Duration::from_secs(30)).await,
        }
        world.script("undo charge", &[Act::Done]);
        world.clock.sleep(Duration::from_secs(16 * 60)).await;
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }), "{turns}");
        assert!(world.nothing_left(), "{turns}: {:?}", world.net());
    }
}

/// Nothing undoes a pivot: other input could make it happen twice, and the same input cannot.
#[tokio::test(start_paused = true)]
async fn a_pivot_that_may_have_happened_takes_no_other_input() {
    let mut pivot = step("charge", &["reserve"]);
    (pivot.local_undo, pivot.kind) = (false, StepKind::Pivot);
    let definition = definition(vec![step("reserve", &[]), pivot]);
    let world = World::new();
    world.script("charge", &[Act::UnknownAfter, Act::UnknownAfter, Act::UnknownAfter, Act::Done]);
    let (engine, handle) = world.begin(&definition).await;
    assert_eq!(handle.outcome().await.unwrap(), needs_charge());
    assert_eq!(act(&engine, &handle, charge(5)).await, Err(ErrorKind::Conflict));
    let same = Operation::Retry { step: "charge".to_owned(), input: None };
    act(&engine, &handle, same).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(world.net()["charge"], 1);
}
