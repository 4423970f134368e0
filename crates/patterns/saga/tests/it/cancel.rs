//! A cancel that is said again.

use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_saga::definition::StepKind;
use mainstay_saga::engine::ActionRequest;
use mainstay_saga::fold::State;
use mainstay_saga::wire::{Cause, Fact, Operation, decode};
use mainstay_saga::{Engine, ErrorKind, Handle, Outcome};

use crate::world::{Act, World, definition, order, step};

fn cancel(who: &str) -> ActionRequest {
    ActionRequest::new(who, "customer left", Operation::Cancel)
}

async fn cancels(engine: &Engine, handle: &Handle, request: ActionRequest) -> Result<(), ErrorKind> {
    engine.attention().act(handle.uid(), request).await.map_err(|e| e.kind())
}

async fn facts(world: &World, handle: &Handle) -> Vec<Fact> {
    let loaded = world.journal.load(handle.uid()).await.unwrap().unwrap();
    loaded.records.iter().map(|r| decode(r).unwrap()).collect()
}

/// It answered "conflict", as if the caller had wanted something else than what was under way.
#[tokio::test(start_paused = true)]
async fn a_cancel_said_again_is_accepted_while_it_turns_back_and_after_the_end() {
    let world = World::new();
    let definition = order();
    world.script("charge", &[Act::Hang]);
    world.script("undo charge", &[Act::UndoFails, Act::UndoFails, Act::Done]);
    let (engine, handle) = world.begin(&definition).await;
    world.clock.sleep(Duration::from_millis(20)).await;
    assert_eq!(cancels(&engine, &handle, cancel("ann")).await, Ok(()));
    assert_eq!(cancels(&engine, &handle, cancel("bob")).await, Ok(()));
    let state = State::fold(&definition, &facts(&world, &handle).await).unwrap();
    assert!(!state.legal_on_saga(&definition).contains(&"cancel"), "nobody is asked to press it again");
    // As one request repeated: the first answer was lost.
    let mut lost = cancel("cara");
    lost.message = Some("m1".to_owned());
    for _ in 0..2 {
        assert_eq!(cancels(&engine, &handle, lost.clone()).await, Ok(()));
    }
    let outcome = handle.outcome().await.unwrap();
    let Outcome::Compensated { cause: Some(Cause::Cancelled { by, .. }), .. } = &outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!(by, "ann", "the first word stands");
    for request in [cancel("dora"), lost] {
        assert_eq!(cancels(&engine, &handle, request).await, Ok(()), "it came true");
    }
    // Said once, as far as the log is concerned; who said it again is remarked and in the audit.
    let facts = facts(&world, &handle).await;
    assert_eq!(facts.iter().filter(|f| matches!(f, Fact::Action(_))).count(), 1);
    let again = |f: &&Fact| matches!(f, Fact::Note(n) if n.text.starts_with("cancelled again by "));
    assert_eq!(facts.iter().filter(again).count(), 2, "{facts:?}");
    let audit = world.journal.audit(0, 10).await.unwrap();
    let who: Vec<&str> = audit.iter().map(|a| a.entry.who.as_str()).collect();
    assert_eq!(who, ["ann", "bob", "cara"]);
}

#[tokio::test(start_paused = true)]
async fn a_cancel_of_what_ended_or_turned_back_otherwise_stays_a_conflict() {
    let definition = order();
    let world = World::new();
    let (engine, done) = world.begin(&definition).await;
    assert!(matches!(done.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(cancels(&engine, &done, cancel("ann")).await, Err(ErrorKind::Conflict), "completed");

    let world = World::new();
    world.script("ship", &[Act::Rejected]);
    let (engine, undone) = world.begin(&definition).await;
    assert!(matches!(undone.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert_eq!(cancels(&engine, &undone, cancel("ann")).await, Err(ErrorKind::Conflict), "failed");

    let world = World::new();
    let (engine, stuck) = world.stuck(&definition).await;
    assert_eq!(cancels(&engine, &stuck, cancel("ann")).await, Err(ErrorKind::Conflict), "turning back");
}

/// Cancelled, but its pivot had happened: the second word is told so, as the first would have been.
#[tokio::test(start_paused = true)]
async fn a_cancel_said_again_after_the_pivot_is_refused() {
    let mut ship = step("ship", &["reserve"]);
    (ship.kind, ship.local_undo, ship.timeout) = (StepKind::Pivot, false, Some(Duration::from_secs(5)));
    let mut email = step("email", &["ship"]);
    (email.kind, email.local_undo) = (StepKind::Retriable, false);
    let definition = definition(vec![step("reserve", &[]), ship, email]);
    let world = World::new();
    // Its first attempt ends after the cancel; the answer says that it happened.
    world.script("ship", &[Act::Hang, Act::Done]);
    world.script("email", &[Act::NotSent]);
    let (engine, handle) = world.begin(&definition).await;
    while world.calls().last().is_none_or(|c| c != "ship") {
        world.clock.sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(cancels(&engine, &handle, cancel("ann")).await, Ok(()));
    assert_eq!(cancels(&engine, &handle, cancel("bob")).await, Ok(()), "nobody knows yet");
    // It is tried again under its key, and had happened; what comes after it needs a person.
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { .. }));
    assert_eq!(cancels(&engine, &handle, cancel("ann")).await, Err(ErrorKind::Conflict));
}
