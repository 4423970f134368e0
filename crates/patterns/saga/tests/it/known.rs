//! What became of an action of which nobody knows: its participant is asked before a person is, and not every no is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay_saga::definition::Definition;
use mainstay_saga::engine::{ActionRequest, StartOptions};
use mainstay_saga::wire::{Cause, Completed, Fact, Operation, POST_COMPLETE, UndoVerdict, Verdict};
use mainstay_saga::{Engine, ErrorKind, Known, Outcome, Saga, StepCx, StepError, Told, UndoError};
use serde_json::{Value, json};

use crate::remote::{Bench, Say, at, ok, say};
use crate::world::World;

/// reserve -> ship, which may be asked about -> email.
fn order(ship: &Value) -> Definition {
    let mut step =
        json!({"name": "ship", "after": ["reserve"], "action": "http://p/ship", "status": "http://p/status"});
    for (name, value) in ship.as_object().unwrap() {
        step[name] = value.clone();
    }
    let mut steps =
        vec![json!({"name": "reserve", "action": "http://p/reserve", "undo": "http://p/release"}), step];
    if ship["kind"] == "pivot" {
        steps.push(
            json!({"name": "email", "kind": "retriable", "after": ["ship"], "action": "http://p/email"}),
        );
    }
    let retry = json!({"attempts": 2, "base": "10ms", "cap": "10ms"});
    let data = json!({"name": "remote", "version": 1, "deadline": "1h", "timeout": "10s", "retry": retry, "steps": steps});
    Definition::from_json(data.to_string().as_bytes()).unwrap()
}

fn pivot() -> Definition {
    order(&json!({"kind": "pivot"}))
}

fn needs_ship() -> Outcome {
    Outcome::NeedsAttention { steps: vec!["ship".to_owned()] }
}

fn failed_at_ship(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Compensated { cause: Some(Cause::StepFailed { step, reason }), .. }
        if step == "ship" && reason.contains("its status says"))
}

/// Nobody asked it: a lost answer of a pivot went straight to a person.
#[tokio::test(start_paused = true)]
async fn a_pivot_of_which_nobody_knows_is_asked_about_before_a_person_is() {
    let done = || ok(json!({"state": "done", "output": {"parcel": 7}}));
    for definition in [pivot(), order(&json!({"undo": "http://p/recall", "on_unknown": "ask"}))] {
        let pivot = definition.pivot().is_some();
        let bench = Bench::of(definition.clone()).await;
        bench.remote.script("ship", &[Say::Unknown]);
        bench.remote.script("status", &[done()]);
        let outcome = bench.run().await;
        let Outcome::Completed { outputs } = &outcome else { panic!("{outcome:?}") };
        assert_eq!(outputs[1].1, json!({"parcel": 7}));
        let mut calls = vec!["POST reserve", "POST ship", "POST ship", "GET status"];
        calls.extend(pivot.then_some("POST email"));
        assert_eq!(bench.remote.calls(), calls, "after the last attempt, and once");
        assert!(bench.remote.all("status")[0].idempotency_key.ends_with("/ship/action"));

        // It promises that it never will: there is a way back.
        let bench = Bench::of(definition.clone()).await;
        bench.remote.script("ship", &[Say::Unknown]);
        bench.remote.script("status", &[ok(json!({"state": "none", "effect": "none"}))]);
        let outcome = bench.run().await;
        assert!(failed_at_ship(&outcome), "{outcome:?}");
        assert_eq!(bench.remote.calls().last().unwrap(), "POST release");
        assert!(bench.remote.all("recall").is_empty());

        // What says nothing leaves it to a person.
        let promises_nothing = ok(json!({"state": "none"}));
        for status in [promises_nothing, say(404), say(500), say(202), Say::Unknown, Say::Never] {
            let bench = Bench::of(definition.clone()).await;
            bench.remote.script("ship", &[say(503)]);
            bench.remote.script("status", std::slice::from_ref(&status));
            let handle = bench.start().await;
            assert_eq!(handle.outcome().await.unwrap(), needs_ship(), "{status:?}");
            let row = bench.world.journal.summary(handle.uid()).await.unwrap().unwrap().row;
            assert!(
                row.error.unwrap().contains("503"),
                "{status:?}: the answer to the action, not to the question"
            );
            // Their retry asks again, when it ends as before.
            let asked = bench.remote.all("status").len();
            bench.remote.script("status", &[done()]);
            let retry = Operation::Retry { step: "ship".to_owned(), input: None };
            let retry = ActionRequest::new("ann", "the carrier is back", retry);
            bench.engine.attention().act(handle.uid(), retry).await.unwrap();
            assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }), "{status:?}");
            assert_eq!(bench.remote.all("status").len(), asked + 1);
        }
    }
}

/// What certainly happened or certainly did not is not asked about, nor what a person is not asked about.
#[tokio::test(start_paused = true)]
async fn nothing_is_asked_where_nobody_would_be() {
    let bench = Bench::of(pivot()).await;
    bench.remote.script("ship", &[Say::Unknown, ok(json!({}))]);
    assert!(matches!(bench.run().await, Outcome::Completed { .. }));
    assert!(bench.remote.all("status").is_empty());
    for no in [say(409), Say::NotSent] {
        let bench = Bench::of(pivot()).await;
        bench.remote.script("ship", std::slice::from_ref(&no));
        assert!(matches!(bench.run().await, Outcome::Compensated { .. }), "{no:?}");
        assert!(bench.remote.all("status").is_empty(), "{no:?}");
    }
}

/// It may have happened before the cancel, so it is tried again under its key; when that says nothing either, it is asked
/// about, once, and what it says decides which way the saga goes.
#[tokio::test(start_paused = true)]
async fn a_pivot_in_flight_when_the_saga_is_cancelled_is_asked_about() {
    let done = ok(json!({"state": "done", "output": {}}));
    let never = ok(json!({"state": "none", "effect": "none"}));
    for (status, completes) in [(done, true), (never, false)] {
        let bench = Bench::of(pivot()).await;
        bench.remote.script("ship", &vec![Say::Never; 8]);
        bench.remote.script("status", std::slice::from_ref(&status));
        let handle = bench.start().await;
        bench.called("ship", 1).await;
        let cancel = ActionRequest::new("ann", "changed my mind", Operation::Cancel);
        bench.engine.attention().act(handle.uid(), cancel).await.unwrap();
        let outcome = handle.outcome().await.unwrap();
        match completes {
            true => assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}"),
            false => {
                let cancelled = |c: &Cause| matches!(c, Cause::Cancelled { by, .. } if by == "ann");
                assert!(
                    matches!(&outcome, Outcome::Compensated { cause: Some(c), .. } if cancelled(c)),
                    "{outcome:?}"
                );
            }
        }
        assert_eq!(bench.remote.all("status").len(), 1);
    }
}

/// A node that dies with it again and again leaves nothing else to ask.
#[tokio::test(start_paused = true)]
async fn a_pivot_that_was_cut_short_too_often_is_asked_about() {
    let mut bench = Bench::of(pivot()).await;
    bench.remote.script("ship", &[Say::Never]);
    // The first answer to the question is lost with its node, too.
    bench.remote.script("status", &[Say::Never, ok(json!({"state": "done", "output": {"parcel": 7}}))]);
    let handle = bench.start().await;
    for lives in 1..=3 {
        bench.called("ship", lives).await;
        bench.restart().await;
    }
    bench.called("status", 1).await;
    bench.restart().await;
    let outcome = bench.engine.outcome(handle.uid()).await.unwrap();
    let Outcome::Completed { outputs } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(outputs[1].1, json!({"parcel": 7}));
    assert_eq!((bench.remote.all("ship").len(), bench.remote.all("status").len()), (3, 2));
}

/// The attempt counts as in flight until the question is answered: who reports meanwhile is heard.
#[tokio::test(start_paused = true)]
async fn a_participant_may_report_while_it_is_asked() {
    let bench = Bench::of(pivot()).await;
    bench.remote.script("ship", &[Say::Unknown]);
    bench.remote.script("status", &[Say::Never]);
    let handle = bench.start().await;
    bench.called("status", 1).await;
    let done = Completed::Action(Verdict::Done { output: Some(json!({"parcel": 9})) });
    bench.engine.complete(handle.uid(), at("ship", 2), done).await.unwrap();
    let outcome = handle.outcome().await.unwrap();
    let Outcome::Completed { outputs } = &outcome else { panic!("{outcome:?}") };
    assert_eq!(outputs[1].1, json!({"parcel": 9}));
}

/// A report that says no more than a lost answer went straight to a person, though there was somebody to ask.
#[tokio::test(start_paused = true)]
async fn a_pivot_that_is_reported_to_have_failed_is_asked_about_before_a_person_is() {
    let failed = || Verdict::Unknown { reason: "the carrier's line is down".to_owned(), interrupted: false };
    let report = |attempt| (at("ship", attempt), Completed::Action(failed()));
    let done = ok(json!({"state": "done", "output": {"parcel": 7}}));
    let never = ok(json!({"state": "none", "effect": "none"}));
    for (status, expected) in [(done, "done"), (never, "never"), (say(404), "unclear")] {
        let bench = Bench::of(pivot()).await;
        bench.remote.script("ship", &[Say::Never]);
        bench.remote.script("status", std::slice::from_ref(&status));
        let handle = bench.start().await;
        for attempt in 1..=2 {
            bench.called("ship", usize::try_from(attempt).unwrap()).await;
            let (at, result) = report(attempt);
            bench.engine.complete(handle.uid(), at, result).await.unwrap();
        }
        let outcome = handle.outcome().await.unwrap();
        let row = bench.world.journal.summary(handle.uid()).await.unwrap().unwrap().row;
        match expected {
            "done" => assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}"),
            "never" => assert!(failed_at_ship(&outcome), "{outcome:?}"),
            _ => {
                assert_eq!(outcome, needs_ship());
                assert!(row.error.unwrap().contains("line is down"), "what was reported");
            }
        }
        assert_eq!((bench.remote.all("ship").len(), bench.remote.all("status").len()), (2, 1), "{expected}");
    }
}

/// The report was taken, whatever becomes of the question; a node that dies meanwhile makes the attempt again.
#[tokio::test(start_paused = true)]
async fn a_report_that_has_its_step_asked_is_taken_once_and_outlives_its_node() {
    let failed = || Verdict::Unknown { reason: "no line".to_owned(), interrupted: false };
    let mut bench = Bench::of(pivot()).await;
    bench.remote.script("ship", &[Say::Unknown, Say::Never, ok(json!({"parcel": 7}))]);
    bench.remote.script("status", &[Say::Never]);
    let handle = bench.start().await;
    bench.called("ship", 2).await;
    // The second one is the report again, while its step is being asked.
    for _ in 0..2 {
        bench.engine.complete(handle.uid(), at("ship", 2), Completed::Action(failed())).await.unwrap();
        bench.called("status", 1).await;
    }
    // Not what was reported, nor what stands.
    let done = Completed::Action(Verdict::Done { output: Some(json!({})) });
    let other = bench.engine.complete(handle.uid(), at("ship", 2), done).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::Conflict);
    bench.restart().await;
    let outcome = bench.engine.outcome(handle.uid()).await.unwrap();
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
    assert_eq!((bench.remote.all("ship").len(), bench.remote.all("status").len()), (3, 1));
    let notes = bench.facts(&handle).await.into_iter().filter_map(|f| match f {
        Fact::Note(note) => Some(note.text),
        _ => None,
    });
    let notes: Vec<String> = notes.collect();
    assert!(notes.iter().any(|n| n.contains("report") && n.contains("no line")), "{notes:?}");

    // One that came while no node was there is taken up by the next, and nothing is made again.
    let bench = Bench::of(pivot()).await;
    bench.remote.script("ship", &[Say::Unknown, Say::Never]);
    bench.remote.script("status", &[ok(json!({"state": "done", "output": {"parcel": 7}}))]);
    let handle = bench.start().await;
    bench.called("ship", 2).await;
    bench.engine.shutdown(Duration::ZERO).await;
    let body = json!({"message": "m", "at": {"step": "ship", "attempt": 2, "generation": 1},
        "result": {"action": {"verdict": "unknown", "reason": "no line"}}});
    let post = bench.world.journal.post(handle.uid(), "m", POST_COMPLETE, body.to_string().into_bytes());
    post.await.unwrap();
    let mut bench = bench;
    bench.restart().await;
    let outcome = bench.engine.outcome(handle.uid()).await.unwrap();
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
    assert_eq!((bench.remote.all("ship").len(), bench.remote.all("status").len()), (2, 1));
}

/// The same for closures: before a person, and before an undo.
#[tokio::test(start_paused = true)]
async fn a_closure_says_what_became_of_its_action() {
    let cases = [(Known::Did(7), true, 0), (Known::Never, false, 0), (Known::Unclear, false, 1)];
    for pivots in [false, true] {
        for (known, did, undone_as_maybe) in cases.clone() {
            let (maybes, dids) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
            let (maybe, done) = (Arc::clone(&maybes), Arc::clone(&dids));
            let world = World::new();
            let ship = |_: StepCx, _: u32| async { Err::<u32, _>(StepError::unknown("no answer")) };
            let says = known.clone();
            let look_up = move |cx: StepCx, order: u32| {
                assert!(cx.idempotency_key.ends_with("/ship/action") && order == 5);
                let says = says.clone();
                async move { says }
            };
            let instant = Duration::from_millis(1);
            let mut b = Saga::<u32>::builder("order", 1).retry(1, instant, instant);
            let saga = if pivots {
                let input = b.input();
                let (_, forward) = b.pivot("ship", input, ship).status(look_up).add();
                forward.no_deadline().build().unwrap()
            } else {
                let undo = move |_: StepCx, told: Told<u32>| {
                    let count = if told == Told::Maybe { &maybe } else { &done };
                    count.fetch_add(1, Ordering::SeqCst);
                    async { Ok::<(), UndoError>(()) }
                };
                b.step("ship", b.input(), ship).undo(undo).status(look_up).add();
                b.no_deadline().build().unwrap()
            };
            let builder = Engine::builder(Arc::clone(&world.journal), world.runtime()).register(&saga);
            let engine = builder.open().await.unwrap();
            let handle = engine.start_saga(&saga, &5, StartOptions::id("one")).await.unwrap();
            let outcome = handle.outcome().await.unwrap();
            match (pivots, &known) {
                (true, Known::Did(_)) => assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}"),
                (true, Known::Unclear) => assert_eq!(outcome, needs_ship()),
                _ => assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}"),
            }
            if !pivots {
                let seen = (dids.load(Ordering::SeqCst), maybes.load(Ordering::SeqCst));
                assert_eq!(seen, (u32::from(did), undone_as_maybe), "{known:?}");
            }
        }
    }
}

/// A step that is done, and whose output is lost, says what it was.
#[tokio::test(start_paused = true)]
async fn a_lost_output_of_a_pivot_is_asked_for() {
    let world = World::new();
    let b = Saga::<u32>::builder("order", 1);
    let input = b.input();
    let ship = |_: StepCx, _: u32| async { Err::<u32, _>(StepError::output_lost()) };
    let (_, forward) = b.pivot("ship", input, ship).status(|_: StepCx, _: u32| async { Known::Did(7) }).add();
    let saga = forward.no_deadline().build().unwrap();
    let builder = Engine::builder(Arc::clone(&world.journal), world.runtime()).register(&saga);
    let engine = builder.open().await.unwrap();
    let handle = engine.start_saga(&saga, &5, StartOptions::id("one")).await.unwrap();
    let outputs = vec![("ship".to_owned(), json!(7))];
    assert_eq!(handle.outcome().await.unwrap(), Outcome::Completed { outputs });
}

/// It accepted the charge, was given it again because it named no place to ask, and answered 409: "the first request is
/// still running", as the draft of the Idempotency-Key has it. That was taken for a no of the shop, and nothing was refunded.
#[tokio::test(start_paused = true)]
async fn sg_x01_a_no_to_what_was_accepted_and_sent_again_leaves_a_maybe() {
    let busy = || Say::Status(202, vec![("retry-after", "1")], Value::Null);
    for no in [say(409), say(422)] {
        let bench = Bench::new().await;
        bench.remote.script("charge", &[busy(), no.clone()]);
        bench.remote.script("status", &[say(404)]);
        let handle = bench.start().await;
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }), "{no:?}");
        let body: Value = serde_json::from_slice(&bench.remote.last("refund").body).unwrap();
        assert_eq!(body["effect"], "maybe", "{no:?}");
        let first = bench.facts(&handle).await.into_iter().find_map(|f| match f {
            Fact::StepEnded(end) => Some(end.verdict),
            _ => None,
        });
        assert!(
            matches!(&first, Some(Verdict::Unknown { reason, .. }) if reason.contains("sent again")),
            "{first:?}"
        );
    }
    // A final no is a promise about every delivery, and what is read where the participant said is about the work.
    let problem = vec![("content-type", "application/problem+json")];
    let final_no = Say::Status(409, problem, json!({"title": "declined", "effect": "none"}));
    let place = Say::Status(202, vec![("location", "http://p/jobs/7")], Value::Null);
    for (first, then) in [(busy(), ("charge", final_no)), (place, ("jobs/7", say(409)))] {
        let bench = Bench::new().await;
        match then.0 {
            "charge" => bench.remote.script("charge", &[first, then.1]),
            at => {
                bench.remote.script("charge", &[first]);
                bench.remote.script(at, &[then.1]);
            }
        }
        assert!(matches!(bench.run().await, Outcome::Compensated { .. }));
        assert!(bench.remote.all("refund").is_empty(), "{:?}", bench.remote.calls());
    }
    // An undo that was accepted is not refused either: it goes on slowly, and heals.
    let bench = Bench::new().await;
    bench.remote.script("ship", &[say(409)]);
    bench.remote.script("refund", &[busy(), say(409)]);
    let handle = bench.start().await;
    handle.outcome().await.unwrap();
    let ends: Vec<UndoVerdict> = bench
        .facts(&handle)
        .await
        .into_iter()
        .filter_map(|f| match f {
            Fact::UndoEnded(end) => Some(end.verdict),
            _ => None,
        })
        .collect();
    assert!(matches!(&ends[..], [UndoVerdict::Failed { .. }, UndoVerdict::Refused { .. }]), "{ends:?}");
}
