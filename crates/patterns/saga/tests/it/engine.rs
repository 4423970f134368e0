//! The engine in virtual time: outcomes, unwinding, recovery, people.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_saga::definition::{DefinitionData, OnUnknown, RetryData, StepKind};
use mainstay_saga::engine::{ActionRequest, StartOptions};
use mainstay_saga::fold::State;
use mainstay_saga::wire::{Cause, Operation, decode};
use mainstay_saga::{Engine, ErrorKind, LocalStep, Outcome};
use mainstay_store::journal::{
    Append, Appended, ClaimRequest, Claimant, Filter, Hash, NewRecord, PurgeRequest, SagaStatus,
};
use serde_json::{Value, json};

use crate::world::{Act, World, definition, order, step};

fn compensated_by(outcome: &Outcome) -> Option<String> {
    match outcome {
        Outcome::Compensated { cause: Some(Cause::StepFailed { step, .. }), .. } => Some(step.clone()),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn every_step_done_completes_with_outputs_in_order() {
    let world = World::new();
    let outcome = world.run(&order()).await;
    let Outcome::Completed { outputs } = outcome else { panic!("{outcome:?}") };
    assert_eq!(outputs.iter().map(|(s, _)| s.as_str()).collect::<Vec<_>>(), ["reserve", "charge", "ship"]);
    assert_eq!(world.calls(), ["reserve", "charge", "ship"]);
}

#[tokio::test(start_paused = true)]
async fn a_rejection_undoes_in_reverse_order() {
    let world = World::new();
    world.script("ship", &[Act::Rejected]);
    let outcome = world.run(&order()).await;
    assert_eq!(compensated_by(&outcome).as_deref(), Some("ship"));
    assert_eq!(world.calls(), ["reserve", "charge", "ship", "undo charge did", "undo reserve did"]);
    assert!(world.nothing_left());
}

/// The process dies after each record; the journal alone carries the saga on.
#[tokio::test(start_paused = true)]
async fn sg_s01_m_g1_a_saga_continues_from_the_journal_alone() {
    for last in [Act::Done, Act::Rejected, Act::UnknownAfter] {
        for crash_after_ms in 0..12_u64 {
            let world = World::new();
            let definition = order();
            world.script("ship", &[last]);
            // Every step takes a little, so that the crash lands between and inside of them.
            world.script("charge", &[Act::Hang, Act::Done]);
            let engine = world.engine(&definition).await;
            let handle = world.start(&engine, &definition, "one").await;
            world.clock.sleep(Duration::from_millis(crash_after_ms * 100)).await;
            engine.shutdown(Duration::ZERO).await;
            drop(engine);
            let engine = world.engine(&definition).await;
            let outcome = engine.outcome(handle.uid()).await.unwrap();
            match last {
                Act::Done => assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}"),
                _ => {
                    assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}");
                    assert!(world.nothing_left(), "{:?}", world.calls());
                }
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn sg_s02_m_g2_a_timeout_after_the_effect_is_undone_as_maybe() {
    let world = World::new();
    world.script("ship", &[Act::Hang]);
    let outcome = world.run(&order()).await;
    assert_eq!(compensated_by(&outcome).as_deref(), Some("ship"));
    assert!(world.calls().contains(&"undo ship maybe".to_owned()));
    assert!(world.nothing_left());
}

#[tokio::test(start_paused = true)]
async fn sg_s03_an_undo_that_fails_is_retried_then_asks_a_person() {
    let world = World::new();
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let definition = order();
    let (engine, handle) = world.begin(&definition).await;
    assert_eq!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { steps: vec!["charge".to_owned()] });
    let tries = world.calls().iter().filter(|c| c.starts_with("undo charge")).count();
    assert_eq!(tries, 3);
    let resolve = Operation::ResolveUndone { step: "charge".to_owned() };
    engine
        .attention()
        .act(handle.uid(), ActionRequest::new("ann", "refunded by hand", resolve))
        .await
        .unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    let audit = world.journal.audit(0, 10).await.unwrap();
    assert_eq!((audit.len(), audit[0].entry.action.as_str()), (1, "resolve_undone"));
}

/// One failed undo stopped all others, or the process, again and again.
#[tokio::test(start_paused = true)]
async fn sg_f08_a_failed_undo_holds_up_what_it_stands_on_and_nothing_else_and_can_be_resumed() {
    for failing in [Act::UndoRefused, Act::UndoFails, Act::Panic] {
        let world = World::new();
        world.script("ship", &[Act::Rejected]);
        world.script("undo charge", &[failing]);
        let steps = [("pack", &["reserve"][..]), ("charge", &["reserve"]), ("ship", &["pack", "charge"])];
        let steps = steps.into_iter().map(|(name, after)| step(name, after));
        let definition = definition([step("reserve", &[])].into_iter().chain(steps).collect());
        let (engine, handle) = world.begin(&definition).await;
        let needs = Outcome::NeedsAttention { steps: vec!["charge".to_owned()] };
        assert_eq!(handle.outcome().await.unwrap(), needs, "{failing:?}");
        let undone = |name: &str| world.calls().iter().any(|c| c.starts_with(&format!("undo {name}")));
        assert!(undone("pack"), "{failing:?}: the branch beside it");
        assert!(!undone("reserve"), "{failing:?}: what charge stands on waits for it");
        // Another process finds it as it is, and goes on when a person says so.
        engine.shutdown(Duration::ZERO).await;
        let engine = world.engine(&definition).await;
        assert_eq!(engine.outcome(handle.uid()).await.unwrap(), needs, "{failing:?}");
        world.script("undo charge", &[Act::Done]);
        let retry = Operation::Retry { step: "charge".to_owned(), input: None };
        let request = ActionRequest::new("ann", "the ledger is back", retry);
        engine.attention().act(handle.uid(), request).await.unwrap();
        let outcome = engine.outcome(handle.uid()).await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated { .. }), "{failing:?}: {outcome:?}");
        assert!(undone("reserve") && world.nothing_left(), "{failing:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn if_k4_an_undo_that_keeps_failing_needs_attention_and_is_never_dropped() {
    let world = World::new();
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoFails]);
    let (_engine, handle) = world.begin(&order()).await;
    let undos = || world.calls().iter().filter(|c| c.starts_with("undo charge")).count();
    let mut before = 0;
    for _ in 0..8 {
        let needs = Outcome::NeedsAttention { steps: vec!["charge".to_owned()] };
        assert_eq!(handle.outcome().await.unwrap(), needs);
        assert!(undos() > before, "tried on after {before} times");
        before = undos();
        world.clock.sleep(Duration::from_secs(16 * 60)).await;
    }
    world.script("undo charge", &[Act::Done]);
    world.clock.sleep(Duration::from_secs(16 * 60)).await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert!(world.nothing_left());
}

#[tokio::test(start_paused = true)]
async fn sg_s04_m_g8_concurrent_sagas_of_one_definition_share_nothing() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    world.script("ship", &[Act::Done, Act::Rejected, Act::Done, Act::Rejected, Act::Done]);
    let mut outcomes = Vec::new();
    for i in 0..5 {
        let handle = world.start(&engine, &definition, &format!("o{i}")).await;
        outcomes.push(handle);
    }
    let mut shipped = 0;
    for handle in &outcomes {
        if matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }) {
            shipped += 1;
        }
    }
    assert_eq!(shipped, 3);
    assert_eq!(world.net()["reserve"], 3);
    assert_eq!(world.net()["charge"], 3);
    // Each undid its own steps and no other's.
    let mut undone: Vec<String> = Vec::new();
    for handle in &outcomes {
        if matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }) {
            undone.extend(["charge", "reserve"].map(|step| format!("{}/{step}/undo", handle.uid())));
        }
    }
    let mut keys = world.ledger.lock().unwrap().keys.clone();
    keys.retain(|key| key.ends_with("/undo"));
    undone.sort_unstable();
    keys.sort_unstable();
    assert_eq!(keys, undone);
}

#[tokio::test(start_paused = true)]
async fn sg_s05_a_step_that_never_answers_ends_by_its_timeout_and_the_deadline_applies() {
    let world = World::new();
    let mut slow = step("charge", &["reserve"]);
    slow.retry = Some(RetryData::new(1_000, Duration::from_millis(50), Duration::from_millis(500)));
    world.script("charge", &[Act::Hang]);
    let start = world.clock.now();
    let outcome = world.run(&definition(vec![step("reserve", &[]), slow])).await;
    assert!(
        matches!(outcome, Outcome::Compensated { cause: Some(Cause::DeadlineExceeded), .. }),
        "{outcome:?}"
    );
    let took = world.clock.now().saturating_duration_since(start);
    assert!(took >= Duration::from_secs(20) && took < Duration::from_secs(23), "{took:?}");
    assert!(world.nothing_left());
}

#[tokio::test(start_paused = true)]
async fn sg_s06_one_transient_error_is_retried_not_compensated() {
    let world = World::new();
    world.script("charge", &[Act::UnknownBefore, Act::NotSent, Act::Done]);
    assert!(matches!(world.run(&order()).await, Outcome::Completed { .. }));
    assert_eq!(world.calls(), ["reserve", "charge", "charge", "charge", "ship"]);
}

#[tokio::test(start_paused = true)]
async fn sg_s08_if_a02_every_attempt_of_one_op_carries_one_key() {
    let world = World::new();
    world.script("charge", &[Act::UnknownAfter, Act::Hang, Act::Done]);
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoFails, Act::Done]);
    world.run(&order()).await;
    let ledger = world.ledger.lock().unwrap();
    let keys = |call: &str| -> Vec<&String> {
        let all = ledger.calls.iter().zip(&ledger.keys);
        all.filter(|(c, _)| c.starts_with(call)).map(|(_, k)| k).collect()
    };
    let (actions, undos) = (keys("charge"), keys("undo charge"));
    assert_eq!((actions.len(), undos.len()), (3, 2));
    assert!(actions.iter().all(|k| *k == actions[0]) && actions[0].ends_with("/charge/action"));
    assert!(undos.iter().all(|k| *k == undos[0]) && undos[0].ends_with("/charge/undo"));
    assert!(ledger.net.values().all(|n| *n == 0));
}

#[tokio::test(start_paused = true)]
async fn sg_s09_sg_s10_past_the_pivot_the_saga_only_goes_forward() {
    let world = World::new();
    let mut pivot = step("ship", &["reserve"]);
    pivot.kind = StepKind::Pivot;
    pivot.local_undo = false;
    let mut email = step("email", &["ship"]);
    email.kind = StepKind::Retriable;
    email.local_undo = false;
    world.script("email", &[Act::Rejected, Act::UnknownBefore, Act::Rejected, Act::Done]);
    let definition = definition(vec![step("reserve", &[]), pivot, email]);
    assert!(matches!(world.run(&definition).await, Outcome::Completed { .. }));
    assert!(!world.calls().iter().any(|c| c.starts_with("undo")));
}

/// What is tried again behind its item needs a person all the while: the list, the count and the alarm of the saga
/// do not come and go with every attempt.
#[tokio::test(start_paused = true)]
async fn a_saga_that_is_tried_slowly_behind_its_item_does_not_flicker() {
    let world = World::new();
    let mut pivot = step("ship", &[]);
    pivot.kind = StepKind::Pivot;
    pivot.local_undo = false;
    let mut email = step("email", &["ship"]);
    email.kind = StepKind::Retriable;
    email.local_undo = false;
    world.script("email", &[Act::UnknownBefore]);
    let definition = definition(vec![pivot, email]);
    let (_engine, handle) = world.begin(&definition).await;
    let steps = vec!["email".to_owned()];
    assert_eq!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { steps });
    let before = world.calls().len();
    world.script("email", &[Act::UnknownBefore, Act::Hang, Act::UnknownBefore]);
    let mut seen = Vec::new();
    while world.calls().len() < before + 4 {
        world.clock.sleep(Duration::from_millis(20)).await;
        let row = world.journal.summary(handle.uid()).await.unwrap().unwrap().row;
        seen.push((row.status, row.attempt));
    }
    assert!(seen.iter().all(|(status, _)| *status == SagaStatus::NeedsAttention), "{seen:?}");
    world.script("email", &[Act::Done]);
    while !matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }) {
        world.clock.sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pivot_nobody_knows_about_is_neither_undone_nor_guessed() {
    let world = World::new();
    let mut pivot = step("ship", &["reserve"]);
    pivot.kind = StepKind::Pivot;
    pivot.local_undo = false;
    let definition = definition(vec![step("reserve", &[]), pivot]);
    world.script("ship", &[Act::UnknownBefore]);
    let (engine, handle) = world.begin(&definition).await;
    assert_eq!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { steps: vec!["ship".to_owned()] });
    let cancel = ActionRequest::new("ann", "enough", Operation::Cancel);
    let refused = engine.attention().act(handle.uid(), cancel).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let not_done = Operation::ResolveNotDone { step: "ship".to_owned() };
    engine.attention().act(handle.uid(), ActionRequest::new("ann", "checked", not_done)).await.unwrap();
    assert_eq!(compensated_by(&handle.outcome().await.unwrap()).as_deref(), Some("ship"));
    assert!(world.nothing_left());
}

#[tokio::test(start_paused = true)]
async fn sg_f02_sg_x01_a_rejection_after_an_unknown_attempt_leaves_maybe_unless_final() {
    for (second, undone) in [(Act::NotSent, true), (Act::Rejected, true), (Act::RejectedForGood, false)] {
        let world = World::new();
        world.script("charge", &[Act::UnknownAfter, second]);
        let outcome = world.run(&order()).await;
        assert_eq!(compensated_by(&outcome).as_deref(), Some("charge"), "{second:?}");
        assert_eq!(world.calls().contains(&"undo charge maybe".to_owned()), undone, "{second:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn sg_f05_one_unreadable_saga_among_many_is_set_aside_and_the_rest_recover() {
    const SAGAS: usize = 300;
    let world = World::new();
    let definition = order();
    world.script("reserve", &[Act::Hang]);
    let engine = world.engine(&definition).await;
    let mut handles = Vec::new();
    for i in 0..SAGAS {
        handles.push(world.start(&engine, &definition, &format!("o{i}")).await);
    }
    engine.shutdown(Duration::ZERO).await;
    let bad = handles[7].uid();
    let claimant = Claimant { node: "saboteur".to_owned(), incarnation: 1, ttl: Duration::from_secs(1) };
    let claimed = world.journal.claim(ClaimRequest { claimant, limit: SAGAS }).await.unwrap();
    let epoch = claimed.iter().find(|c| c.saga == *bad).unwrap().epoch;
    let summary = world.journal.summary(bad).await.unwrap().unwrap();
    let garbage = vec![NewRecord { kind: 999, bytes: b"?".to_vec() }];
    let append = Append::new(bad.clone(), epoch, summary.next_seq, garbage, summary.row);
    assert!(matches!(world.journal.append(append).await.unwrap(), Appended::Appended { .. }));
    world.script("reserve", &[Act::Done]);
    let engine = world.engine(&definition).await;
    for handle in &handles {
        let outcome = engine.outcome(handle.uid()).await.unwrap();
        if handle.uid() == bad {
            assert_eq!(outcome, Outcome::NeedsAttention { steps: Vec::new() });
        } else {
            assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
        }
    }
    let row = world.journal.summary(bad).await.unwrap().unwrap().row;
    assert!(row.error.unwrap().contains("kind 999"));
}

#[tokio::test(start_paused = true)]
async fn sg_f09_a_panic_is_an_unknown_attempt_and_the_engine_lives() {
    let world = World::new();
    world.script("charge", &[Act::Panic]);
    world.script("undo reserve", &[Act::Panic, Act::Done]);
    let definition = order();
    let engine = world.engine(&definition).await;
    let outcome = world.start(&engine, &definition, "one").await.outcome().await.unwrap();
    assert_eq!(compensated_by(&outcome).as_deref(), Some("charge"));
    world.script("charge", &[Act::Done]);
    let second = world.start(&engine, &definition, "two").await.outcome().await.unwrap();
    assert!(matches!(second, Outcome::Completed { .. }));
}

#[tokio::test(start_paused = true)]
async fn sg_f14_parallel_branches_are_undone_along_reversed_edges() {
    let world = World::new();
    let definition = definition(vec![
        step("a", &[]),
        step("b", &["a"]),
        step("c", &["a"]),
        step("d", &["b", "c"]),
        step("e", &["d"]),
    ]);
    world.script("e", &[Act::Rejected]);
    world.run(&definition).await;
    let calls = world.calls();
    let at = |name: &str| calls.iter().position(|c| c == &format!("undo {name} did")).unwrap();
    for (from, to) in [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")] {
        assert!(at(to) < at(from), "undo {to} must end before undo {from}: {calls:?}");
    }
    assert!(world.nothing_left());
}

#[tokio::test(start_paused = true)]
async fn sg_f15_if_k2_a_shutdown_during_the_unwind_only_pauses_it() {
    for crash_after_ms in (0..400_u64).step_by(20) {
        let world = World::new();
        let definition = order();
        world.script("ship", &[Act::Rejected]);
        world.script("undo charge", &[Act::UndoFails, Act::UndoFails, Act::Done]);
        let engine = world.engine(&definition).await;
        let handle = world.start(&engine, &definition, "one").await;
        world.clock.sleep(Duration::from_millis(crash_after_ms)).await;
        engine.shutdown(Duration::from_secs(1)).await;
        let engine = world.engine(&definition).await;
        let outcome = engine.outcome(handle.uid()).await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}");
        assert!(world.nothing_left());
    }
}

#[tokio::test(start_paused = true)]
async fn sg_f17_the_undo_limit_is_kept_and_the_row_says_why() {
    let world = World::new();
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoFails]);
    let definition = order();
    let (engine, handle) = world.begin(&definition).await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { .. }));
    let row = engine.journal().summary(handle.uid()).await.unwrap().unwrap().row;
    assert_eq!(row.status, SagaStatus::NeedsAttention);
    assert_eq!(
        (row.step.as_deref(), row.attempt, row.error.as_deref()),
        (Some("charge"), 3, Some("undo reset"))
    );
    assert!(row.next_try.is_some(), "an unanswered undo is repeated slowly behind its item");
    // The outage heals: the slow retry closes the item by itself.
    world.script("undo charge", &[Act::Done]);
    world.clock.sleep(Duration::from_secs(16 * 60)).await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
}

/// Nine calls were "running" for ten minutes, and the last failure was empty.
#[tokio::test(start_paused = true)]
async fn sg_f23_what_is_retried_on_and_on_says_why_how_often_and_when_next() {
    let world = World::new();
    let mut charge = step("charge", &["reserve"]);
    charge.retry = Some(RetryData::new(1_000, Duration::from_secs(5), Duration::from_secs(5)));
    let mut data = definition(vec![step("reserve", &[]), charge]).data().clone();
    data.deadline = Some(Duration::from_secs(3_600));
    let definition = mainstay_saga::definition::Definition::from_data(data).unwrap();
    world.script("charge", &[Act::UnknownBefore]);
    let (engine, handle) = world.begin(&definition).await;
    let mut attempts = Vec::new();
    for _ in 0..3 {
        world.clock.sleep(Duration::from_secs(60)).await;
        let row = engine.journal().summary(handle.uid()).await.unwrap().unwrap().row;
        assert!(row.retrying && row.status == SagaStatus::Running, "{row:?}");
        assert_eq!(row.step.as_deref(), Some("charge"));
        assert!(row.error.as_deref().is_some_and(|e| e.contains("reset")), "{row:?}");
        assert!(row.next_try.is_some(), "{row:?}");
        attempts.push(row.attempt);
    }
    assert!(attempts[0] > 1 && attempts.windows(2).all(|w| w[0] < w[1]), "{attempts:?}");
    // Found by whoever looks for what was tried too often.
    let often = Filter { attempt_gte: Some(attempts[2]), retrying: Some(true), ..Filter::default() };
    assert_eq!(engine.journal().query(&often, None, 10).await.unwrap().rows.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn sg_f18_m_g7_a_changed_definition_is_refused_at_load_with_a_diff() {
    let world = World::new();
    let old = order();
    world.engine(&old).await.shutdown(Duration::ZERO).await;
    let new = definition(vec![step("reserve", &[]), step("ship", &["reserve"])]);
    let steps: Vec<(String, Arc<dyn LocalStep>)> =
        new.steps().iter().map(|s| (s.name.clone(), world.step(&s.name))).collect();
    let refused = Engine::builder(Arc::clone(&world.journal), world.runtime())
        .definition(new, steps)
        .open()
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InputConflict);
    assert!(refused.to_string().contains("step `charge` was removed"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn sg_f19_a_saga_whose_definition_is_gone_is_parked_and_continues_after_the_deploy() {
    let world = World::new();
    let definition = order();
    world.script("reserve", &[Act::Hang]);
    let (engine, handle) = world.begin(&definition).await;
    engine.shutdown(Duration::ZERO).await;
    let mut other = DefinitionData::new("other", 1);
    other.no_deadline = true;
    other.steps = vec![step("x", &[])];
    let other = mainstay_saga::definition::Definition::from_data(other).unwrap();
    let without = world.engine(&other).await;
    assert_eq!(without.outcome(handle.uid()).await.unwrap(), Outcome::NeedsAttention { steps: Vec::new() });
    let row = world.journal.summary(handle.uid()).await.unwrap().unwrap().row;
    assert!(
        row.error.unwrap().starts_with("parked: definition `order` version 1"),
        "the reason is on the row"
    );
    without.shutdown(Duration::ZERO).await;
    world.script("reserve", &[Act::Done]);
    let with = world.engine(&definition).await;
    world.clock.sleep(Duration::from_secs(3)).await;
    assert!(matches!(with.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
}

#[tokio::test(start_paused = true)]
async fn sg_f20_done_with_its_output_lost_is_undone_as_maybe() {
    let world = World::new();
    world.script("charge", &[Act::OutputLost]);
    let outcome = world.run(&order()).await;
    assert_eq!(compensated_by(&outcome).as_deref(), Some("charge"));
    assert!(world.calls().contains(&"undo charge maybe".to_owned()));
    assert!(world.nothing_left());
}

#[tokio::test(start_paused = true)]
async fn sg_f21_same_id_and_input_is_the_same_saga_and_other_input_a_conflict() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    let first = world.start(&engine, &definition, "one").await;
    let again = world.start(&engine, &definition, "one").await;
    assert_eq!((first.uid(), again.is_new()), (again.uid(), false));
    let other = engine.start("order", json!({"order": "two"}), StartOptions::id("one")).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::InputConflict);
    assert!(other.to_string().contains("stored") && other.to_string().contains("given"));
}

/// Two requests for one saga, under two keys; the second is repeated. Its reply was kept with the uid of a saga that was
/// never made.
#[tokio::test(start_paused = true)]
async fn if_a01_another_request_for_a_saga_that_exists_is_answered_with_it_each_time() {
    let world = World::new();
    let engine = world.engine(&order()).await;
    let start = async |key: &str| {
        let mut options = StartOptions::id("one");
        options.request = Some((key.to_owned(), Hash::of(b"the request")));
        engine.start("order", json!({}), options).await.unwrap()
    };
    let first = start("k1").await;
    for key in ["k2", "k2", "k1"] {
        let again = start(key).await;
        assert_eq!((again.uid(), again.id(), again.is_new()), (first.uid(), "one", false), "{key}");
    }
}

#[tokio::test(start_paused = true)]
async fn sg_f24_finished_sagas_leave_memory() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    for i in 0..200 {
        world.start(&engine, &definition, &format!("o{i}")).await.outcome().await.unwrap();
    }
    world.clock.sleep(Duration::from_millis(10)).await;
    assert_eq!(engine.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn sg_f28_ids_are_data() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    let id = "x'); drop table sagas; --/.%#?";
    world.start(&engine, &definition, id).await.outcome().await.unwrap();
    let found = world.journal.find("order", id).await.unwrap().unwrap();
    assert_eq!(found.id, id);
}

#[tokio::test(start_paused = true)]
async fn sg_x07_an_id_reused_after_purge_gets_new_keys() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    let first = world.start(&engine, &definition, "one").await;
    first.outcome().await.unwrap();
    let later = mainstay_clock::WallTime::from_unix_millis(i64::MAX);
    let all = PurgeRequest {
        completed_before: later,
        compensated_before: later,
        tombstones_before: later,
        limit: 10,
    };
    world.journal.purge(all).await.unwrap();
    let second = world.start(&engine, &definition, "one").await;
    second.outcome().await.unwrap();
    assert!(second.is_new() && first.uid() != second.uid());
    let keys = world.ledger.lock().unwrap().keys.clone();
    let unique: std::collections::BTreeSet<&String> = keys.iter().collect();
    assert_eq!((keys.len(), unique.len()), (6, 6));
}

#[tokio::test(start_paused = true)]
async fn sg_x09_the_second_of_two_operators_gets_a_conflict_and_both_are_audited() {
    let world = World::new();
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let definition = order();
    let (engine, handle) = world.begin(&definition).await;
    handle.outcome().await.unwrap();
    let seen = world.journal.summary(handle.uid()).await.unwrap().unwrap().next_seq;
    let request = |who: &str| {
        let resolve = Operation::ResolveUndone { step: "charge".to_owned() };
        ActionRequest::new(who, "by hand", resolve).expecting(seen)
    };
    let attention = engine.attention();
    let (ann, bob) = tokio::join!(
        attention.act(handle.uid(), request("ann")),
        attention.act(handle.uid(), request("bob"))
    );
    assert!(ann.is_ok() != bob.is_ok(), "{ann:?} {bob:?}");
    let refused = ann.err().or(bob.err()).unwrap();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let audit = world.journal.audit(0, 10).await.unwrap();
    let who: std::collections::BTreeSet<&str> = audit.iter().map(|a| a.entry.who.as_str()).collect();
    assert_eq!(who, ["ann", "bob"].into());
}

#[tokio::test(start_paused = true)]
async fn if_k3_an_unknown_outcome_asks_a_person_when_the_policy_says_so() {
    let world = World::new();
    let mut charge = step("charge", &["reserve"]);
    charge.on_unknown = OnUnknown::Ask;
    world.script("charge", &[Act::UnknownAfter]);
    let definition = definition(vec![step("reserve", &[]), charge]);
    let (engine, handle) = world.begin(&definition).await;
    assert_eq!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { steps: vec!["charge".to_owned()] });
    assert!(!world.calls().iter().any(|c| c.starts_with("undo")), "nothing is guessed");
    let done = Operation::ResolveDone { step: "charge".to_owned(), output: json!({"charge": 1}) };
    engine.attention().act(handle.uid(), ActionRequest::new("ann", "seen in the bank", done)).await.unwrap();
    let outcome = handle.outcome().await.unwrap();
    let Outcome::Completed { outputs } = outcome else { panic!("{outcome:?}") };
    assert_eq!(outputs[1].1, json!({"charge": 1}));
}

/// Turned back while it waits for a person, a step is not made again: a retry closed the question unanswered, and its
/// undo was sent, or, where there is none, the saga ended as if nothing had happened.
#[tokio::test(start_paused = true)]
async fn if_k3_an_unknown_outcome_of_a_saga_that_turned_back_is_answered_and_not_retried() {
    for has_undo in [true, false] {
        let world = World::new();
        let mut charge = step("charge", &["reserve"]);
        charge.on_unknown = OnUnknown::Ask;
        if !has_undo {
            charge.local_undo = false;
            charge.no_undo = Some("a question only".to_owned());
        }
        world.script("charge", &[Act::UnknownAfter]);
        let definition = definition(vec![step("reserve", &[]), charge]);
        let (engine, handle) = world.begin(&definition).await;
        handle.outcome().await.unwrap();
        let act = async |operation: Operation| {
            let request = ActionRequest::new("ann", "seen in the bank", operation);
            engine.attention().act(handle.uid(), request).await
        };
        let state = async || {
            let loaded = world.journal.load(handle.uid()).await.unwrap().unwrap();
            let facts: Vec<_> = loaded.records.iter().map(|r| decode(r).unwrap()).collect();
            State::fold(&definition, &facts).unwrap()
        };
        let legal = async || state().await.legal_on_step(&definition, "charge");
        assert_eq!(legal().await, ["retry", "retry_with_input", "resolve_done", "resolve_not_done"]);
        act(Operation::Cancel).await.unwrap();
        assert_eq!(legal().await, ["resolve_done", "resolve_not_done"], "undo {has_undo}");
        for input in [None, Some(json!({}))] {
            let retry = Operation::Retry { step: "charge".to_owned(), input };
            assert_eq!(act(retry).await.unwrap_err().kind(), ErrorKind::Conflict);
        }
        world.clock.sleep(Duration::from_secs(60)).await;
        assert!(!world.calls().iter().any(|c| c.starts_with("undo")), "nothing is guessed");
        act(Operation::ResolveNotDone { step: "charge".to_owned() }).await.unwrap();
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
        assert_eq!(world.calls().last().unwrap(), "undo reserve did");
    }
}

#[tokio::test(start_paused = true)]
async fn cancel_turns_back() {
    let world = World::new();
    world.script("charge", &[Act::Hang]);
    let definition = order();
    let (engine, handle) = world.begin(&definition).await;
    world.clock.sleep(Duration::from_millis(20)).await;
    let cancel = || ActionRequest::new("ann", "customer left", Operation::Cancel);
    engine.attention().act(handle.uid(), cancel()).await.unwrap();
    let outcome = handle.outcome().await.unwrap();
    assert!(
        matches!(outcome, Outcome::Compensated { cause: Some(Cause::Cancelled { .. }), .. }),
        "{outcome:?}"
    );
    assert!(world.nothing_left());
}

#[tokio::test(start_paused = true)]
async fn pause_starts_nothing_and_resume_goes_on() {
    let world = World::new();
    world.script("reserve", &[Act::Hang, Act::Done]);
    let definition = order();
    let (engine, handle) = world.begin(&definition).await;
    world.clock.sleep(Duration::from_millis(20)).await;
    engine
        .attention()
        .act(handle.uid(), ActionRequest::new("ann", "look first", Operation::Pause))
        .await
        .unwrap();
    world.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(world.calls(), ["reserve"]);
    assert!(world.journal.summary(handle.uid()).await.unwrap().unwrap().row.paused);
    engine.attention().act(handle.uid(), ActionRequest::new("ann", "fine", Operation::Resume)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
}

/// Each of its parts is within its bound, and the whole was sent: a participant that keeps to the bounds refused the undo of
/// what it had done, which carries an output too, and a person was asked.
#[tokio::test(start_paused = true)]
async fn an_input_put_together_over_the_limit_is_not_sent_and_the_saga_turns_back() {
    let big = Value::String("x".repeat(200 * 1024));
    for (input, fits) in [
        (json!("$input"), true),
        (json!({"order": "$input", "n": [1, null]}), true),
        (json!({"order": "$input", "again": ["$input"]}), false),
        (json!(["$input", {"hold": "$reserve"}, "x".repeat(70 * 1024)]), false),
    ] {
        let world = World::new();
        let mut charge = step("charge", &["reserve"]);
        charge.input = Some(input.clone());
        let definition = definition(vec![step("reserve", &[]), charge]);
        let engine = world.engine(&definition).await;
        let handle = engine.start("order", big.clone(), StartOptions::id("one")).await.unwrap();
        let outcome = handle.outcome().await.unwrap();
        if fits {
            assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
            continue;
        }
        let Outcome::Compensated { cause: Some(Cause::StepFailed { step, reason }), .. } = outcome else {
            panic!("{outcome:?}")
        };
        assert!(step == "charge" && reason.contains("more than 262144 bytes"), "{step}: {reason}");
        assert_eq!(world.calls(), ["reserve", "undo reserve did"], "nobody was asked, and once is enough");
    }
}

/// Dropping a start at every poll leaves nothing half-made: repeated with the same id it gives one saga.
#[tokio::test(start_paused = true)]
async fn cancel_safety_of_start_at_every_poll() {
    for polls in 0..6 {
        let world = World::new();
        let definition = order();
        let engine = world.engine(&definition).await;
        {
            let start = engine.start("order", json!({"order": "one"}), StartOptions::id("one"));
            tokio::pin!(start);
            for _ in 0..polls {
                if futures_util::poll!(&mut start).is_ready() {
                    break;
                }
            }
        }
        let handle = world.start(&engine, &definition, "one").await;
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
        let page = world.journal.query(&Filter::default(), None, 10).await.unwrap();
        assert_eq!(page.rows.len(), 1);
        assert_eq!(world.net().values().copied().collect::<Vec<_>>(), [1, 1, 1]);
    }
}

#[tokio::test(start_paused = true)]
async fn ids_and_attributes_are_bounded_before_anything_is_stored() {
    let world = World::new();
    let engine = world.engine(&order()).await;
    let kind = async |options: StartOptions| {
        engine.start("order", json!({}), options).await.map_err(|e| e.kind()).map(|h| h.id().len())
    };
    let long = |n: usize| "x".repeat(n);
    let attrs = |attrs: Vec<(String, String)>| {
        let mut options = StartOptions::default();
        options.attrs = attrs.into_iter().collect();
        options
    };
    assert_eq!(kind(StartOptions::id(long(256))).await, Err(ErrorKind::ApiMisuse));
    assert_eq!(kind(StartOptions::id("")).await, Err(ErrorKind::ApiMisuse));
    let many = |n: usize| attrs((0..n).map(|i| (format!("k{i}"), String::new())).collect());
    for refused in [many(17), attrs(vec![(long(256), long(1))]), attrs(vec![(long(1), long(256))])] {
        assert_eq!(kind(refused).await, Err(ErrorKind::TooLarge));
    }
    assert!(world.journal.query(&Filter::default(), None, 10).await.unwrap().rows.is_empty());
    assert_eq!(kind(StartOptions::id(long(255))).await, Ok(255));
    assert!(kind(many(16)).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_payload_over_the_limit_is_refused_before_anything_is_stored() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    let big = Value::String("x".repeat(300 * 1024));
    let refused = engine.start("order", big, StartOptions::id("one")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge);
    assert!(world.journal.query(&Filter::default(), None, 10).await.unwrap().rows.is_empty());
}
