//! What people do: pauses, repeats, runs again; and what late starters are told after a purge.

use std::time::Duration;

use mainstay_clock::{Clock, WallTime};
use mainstay_saga::engine::{ActionRequest, RunAgain, StartOptions};
use mainstay_saga::wire::{Cause, Operation};
use mainstay_saga::{ErrorKind, Outcome};
use mainstay_store::journal::{PurgeRequest, SagaStatus};
use serde_json::json;

use crate::world::{Act, World, definition, order, step};

fn act(operation: Operation) -> ActionRequest {
    ActionRequest::new("ann", "as the runbook says", operation)
}

#[tokio::test(start_paused = true)]
async fn a_paused_saga_starts_nothing_and_a_resumed_one_goes_on() {
    let world = World::new();
    // Its first attempt fails, so that there is a time between attempts to pause in.
    world.script("charge", &[Act::UnknownBefore, Act::Done]);
    let mut slow = step("charge", &["reserve"]);
    let wait = Duration::from_secs(5);
    slow.retry = Some(mainstay_saga::definition::RetryData::new(3, wait, wait));
    let definition = definition(vec![step("reserve", &[]), slow, step("ship", &["charge"])]);
    let (engine, handle) = world.begin(&definition).await;
    world.clock.sleep(Duration::from_millis(1)).await;
    engine.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap();
    let again = engine.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::Conflict);
    world.clock.sleep(Duration::from_secs(10)).await;
    assert_eq!(world.calls(), ["reserve", "charge"], "nothing starts, however long it takes");
    let row = world.journal.summary(handle.uid()).await.unwrap().unwrap().row;
    assert!(row.paused && row.status == SagaStatus::Running, "{row:?}");
    engine.attention().act(handle.uid(), act(Operation::Resume)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(world.calls(), ["reserve", "charge", "charge", "ship"]);
}

#[tokio::test(start_paused = true)]
async fn a_paused_unwind_waits_for_a_person_and_a_deadline_counts_through_a_pause() {
    let world = World::new();
    let definition = order();
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoFails, Act::Done]);
    let (engine, handle) = world.begin(&definition).await;
    while !world.calls().iter().any(|c| c.starts_with("undo charge")) {
        world.clock.sleep(Duration::from_micros(100)).await;
    }
    engine.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap();
    world.clock.sleep(Duration::from_secs(60)).await;
    assert!(!world.calls().iter().any(|c| c.starts_with("undo reserve")), "{:?}", world.calls());
    engine.attention().act(handle.uid(), act(Operation::Resume)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert!(world.nothing_left());

    // Forward: the deadline passes while it is paused; then it turns back.
    let world = World::new();
    world.script("charge", &[Act::UnknownBefore]);
    let engine = world.engine(&definition).await;
    let handle = world.start(&engine, &definition, "two").await;
    world.clock.sleep(Duration::from_millis(1)).await;
    engine.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap();
    world.clock.sleep(Duration::from_secs(30)).await;
    engine.attention().act(handle.uid(), act(Operation::Resume)).await.unwrap();
    let outcome = handle.outcome().await.unwrap();
    let cause = Cause::DeadlineExceeded;
    assert!(matches!(&outcome, Outcome::Compensated { cause: Some(c), .. } if *c == cause), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn if_a01_an_action_repeated_under_its_message_gets_the_answer_of_the_first() {
    let world = World::new();
    let definition = order();
    let (engine, handle) = world.stuck(&definition).await;
    let mut skip = act(Operation::Skip { step: "reserve".to_owned() });
    skip.message = Some("m1".to_owned());
    let first = engine.attention().act(handle.uid(), skip.clone()).await.unwrap_err();
    let start = world.clock.now();
    let again = engine.attention().act(handle.uid(), skip).await.unwrap_err();
    assert_eq!((first.kind(), first.to_string()), (again.kind(), again.to_string()));
    let mut undone = act(Operation::ResolveUndone { step: "charge".to_owned() });
    undone.message = Some("m2".to_owned());
    engine.attention().act(handle.uid(), undone.clone()).await.unwrap();
    engine.attention().act(handle.uid(), undone).await.unwrap();
    // At once: nobody waits for an answer that will not come again.
    assert!(world.clock.now().saturating_duration_since(start) < Duration::from_secs(1));
    assert_eq!(world.journal.audit(0, 10).await.unwrap().len(), 2, "each once");
}

#[tokio::test(start_paused = true)]
async fn a_finished_saga_is_run_again_under_new_keys() {
    let world = World::new();
    let definition = order();
    world.script("ship", &[Act::Rejected, Act::Done]);
    let engine = world.engine(&definition).await;
    let old = world.start(&engine, &definition, "one").await;
    assert!(matches!(old.outcome().await.unwrap(), Outcome::Compensated { .. }));
    let mut again = RunAgain::new("ann", "the carrier is back");
    again.start = StartOptions::id("one-again");
    let new = engine.attention().run_again(old.uid(), again.clone()).await.unwrap();
    let Outcome::Completed { .. } = new.outcome().await.unwrap() else { panic!("not completed") };
    assert_ne!(new.uid(), old.uid());
    let keys = world.ledger.lock().unwrap().keys.clone();
    let (first, second): (Vec<_>, Vec<_>) = keys.iter().partition(|k| k.starts_with(old.uid().as_str()));
    assert_eq!((first.len(), second.len()), (5, 3), "no key of the old saga is used again: {keys:?}");
    assert_eq!(
        world.net(),
        [("charge", 1), ("reserve", 1), ("ship", 1)].map(|(k, n)| (k.to_owned(), n)).into()
    );
    let audit = world.journal.audit(0, 10).await.unwrap();
    assert_eq!((audit[0].entry.action.as_str(), audit[0].entry.who.as_str()), ("run_again", "ann"));
    assert!(audit[0].entry.after.contains(new.uid().as_str()));
    // Repeated with its id it is the same saga, and one line of the audit.
    let same = engine.attention().run_again(old.uid(), again).await.unwrap();
    assert_eq!((same.uid(), same.is_new()), (new.uid(), false));
    assert_eq!(world.journal.audit(0, 10).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_run_from_a_step_takes_over_what_stands_and_never_undoes_it() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    let old = world.start(&engine, &definition, "one").await;
    assert!(matches!(old.outcome().await.unwrap(), Outcome::Completed { .. }));
    let from = |step: &str, id: &str| {
        let mut again = RunAgain::new("ann", "the parcel was lost");
        again.from = Some(step.to_owned());
        again.start = StartOptions::id(id);
        again
    };
    let new = engine.attention().run_again(old.uid(), from("ship", "a")).await.unwrap();
    let Outcome::Completed { outputs } = new.outcome().await.unwrap() else { panic!("not completed") };
    assert_eq!(outputs[0].1, json!({"step": "reserve"}), "the output of the old saga");
    assert_eq!(world.calls(), ["reserve", "charge", "ship", "ship"]);
    // One that fails undoes its own steps only; the old saga's effects are the old saga's.
    world.script("ship", &[Act::Rejected]);
    let new = engine.attention().run_again(old.uid(), from("charge", "b")).await.unwrap();
    assert!(matches!(new.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert_eq!(world.calls()[4..], ["charge", "ship", "undo charge did"]);
    // What was undone there does not stand: all of it runs.
    world.script("ship", &[Act::Done]);
    let after_undo = engine.attention().run_again(new.uid(), from("ship", "c")).await.unwrap();
    assert!(matches!(after_undo.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(world.calls()[7..], ["charge", "ship"], "reserve was taken over once more");
}

#[tokio::test(start_paused = true)]
async fn run_again_is_refused_where_it_makes_no_sense() {
    let world = World::new();
    let definition = order();
    world.script("ship", &[Act::Hang]);
    let engine = world.engine(&definition).await;
    let live = world.start(&engine, &definition, "one").await;
    let attention = engine.attention();
    let refused = async |again: RunAgain| attention.run_again(live.uid(), again).await.unwrap_err().kind();
    assert_eq!(refused(RunAgain::new("ann", "why not")).await, ErrorKind::Conflict, "it is not finished");
    assert_eq!(refused(RunAgain::new("ann", " ")).await, ErrorKind::ApiMisuse, "no reason");
    live.outcome().await.unwrap();
    let mut both = RunAgain::new("ann", "x");
    (both.from, both.input) = (Some("ship".to_owned()), Some(json!(1)));
    assert_eq!(refused(both).await, ErrorKind::ApiMisuse);
    let mut nowhere = RunAgain::new("ann", "x");
    nowhere.from = Some("nowhere".to_owned());
    assert_eq!(refused(nowhere).await, ErrorKind::NotFound);
    let missing = mainstay_store::journal::Uid::new("missing");
    let error = attention.run_again(&missing, RunAgain::new("ann", "x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(world.journal.audit(0, 10).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_purged_saga_leaves_a_tombstone_that_answers_late_starters() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    let start = async |input| engine.start("order", input, StartOptions::id("one")).await;
    let first = start(json!({"n": 1})).await.unwrap();
    first.outcome().await.unwrap();
    let soon = WallTime::from_unix_millis(world.clock.wall().unix_millis() + 1);
    let mut request = PurgeRequest {
        completed_before: soon,
        compensated_before: soon,
        tombstones_before: WallTime::from_unix_millis(0),
        limit: 10,
    };
    assert_eq!(world.journal.purge(request).await.unwrap().sagas, 1);
    assert!(world.journal.load(first.uid()).await.unwrap().is_none());
    let late = start(json!({"n": 1})).await.unwrap();
    assert_eq!((late.uid(), late.is_new()), (first.uid(), false), "the tombstone answers");
    let other = start(json!({"n": 2})).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::InputConflict);
    assert_eq!(world.calls().len(), 3, "nothing ran again");
    world.clock.sleep(Duration::from_secs(1)).await;
    request.tombstones_before = world.clock.wall();
    assert_eq!(world.journal.purge(request).await.unwrap().tombstones, 1);
    assert!(start(json!({"n": 2})).await.unwrap().is_new(), "after its time the id is free");
}

/// The caller saw "failed" for what was clean and for what was not: four ends, told apart by the outcome and by the row.
#[tokio::test(start_paused = true)]
async fn sg_s09_each_end_is_told_apart() {
    let ends = [
        (Act::Done, Act::Done, SagaStatus::Completed),
        (Act::Rejected, Act::Done, SagaStatus::Compensated),
        (Act::Rejected, Act::UndoRefused, SagaStatus::NeedsAttention),
        (Act::Rejected, Act::UndoRefused, SagaStatus::Abandoned),
    ];
    for (ship, undo, status) in ends {
        let world = World::new();
        world.script("ship", &[ship]);
        world.script("undo charge", &[undo]);
        let (engine, handle) = world.begin(&order()).await;
        let mut outcome = handle.outcome().await.unwrap();
        if status == SagaStatus::Abandoned {
            engine.attention().act(handle.uid(), act(Operation::Abandon)).await.unwrap();
            outcome = handle.outcome().await.unwrap();
        }
        match (status, &outcome) {
            (SagaStatus::Completed, Outcome::Completed { outputs }) => assert_eq!(outputs.len(), 3),
            (SagaStatus::Compensated, Outcome::Compensated { cause, also_failed }) => {
                let Some(Cause::StepFailed { step, reason }) = cause else { panic!("{cause:?}") };
                assert_eq!((step.as_str(), reason.as_str(), also_failed.len()), ("ship", "no", 0));
            }
            (SagaStatus::NeedsAttention, Outcome::NeedsAttention { steps }) => assert_eq!(steps, &["charge"]),
            (SagaStatus::Abandoned, Outcome::Abandoned { remaining }) => {
                assert_eq!(remaining, &["reserve", "charge"], "the effects that stay");
            }
            _ => panic!("{status}: {outcome:?}"),
        }
        let row = world.journal.summary(handle.uid()).await.unwrap().unwrap().row;
        assert_eq!(row.status, status);
        // Whoever comes later reads the same.
        engine.shutdown(Duration::ZERO).await;
        let reader = world.engine(&order()).await;
        assert_eq!(reader.outcome(handle.uid()).await.unwrap(), outcome);
    }
}

/// Retention by its options, not by hand: the engine purges what is past its time and nothing else.
#[tokio::test(start_paused = true)]
async fn retention_keeps_each_kind_for_its_own_time() {
    let world = World::new();
    let definition = order();
    let mut config = mainstay_saga::engine::Config::default();
    config.keep_completed = Duration::from_secs(100);
    config.keep_compensated = Duration::from_secs(1_000);
    let engine = world.engine_with(&definition, config).await;
    let done = world.start(&engine, &definition, "done").await;
    done.outcome().await.unwrap();
    world.script("ship", &[Act::Rejected]);
    let undone = world.start(&engine, &definition, "undone").await;
    undone.outcome().await.unwrap();
    world.script("undo charge", &[Act::UndoRefused]);
    let stuck = world.start(&engine, &definition, "stuck").await;
    stuck.outcome().await.unwrap();
    let there = async |uid| world.journal.summary(uid).await.unwrap().is_some();
    world.clock.sleep(Duration::from_secs(61)).await;
    assert!(there(done.uid()).await && there(undone.uid()).await);
    world.clock.sleep(Duration::from_secs(120)).await;
    assert!(!there(done.uid()).await && there(undone.uid()).await);
    world.clock.sleep(Duration::from_secs(1_000)).await;
    assert!(!there(undone.uid()).await);
    world.clock.sleep(Duration::from_secs(10_000)).await;
    assert!(there(stuck.uid()).await, "what needs a person is kept for ever");
}
