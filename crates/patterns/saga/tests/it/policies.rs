//! Policies that steps name.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_resilience::{Breaker, Bulkhead, Policy, Retry};
use mainstay_saga::definition::{Definition, DefinitionData, RetryData, StepKind};
use mainstay_saga::engine::StartOptions;
use mainstay_saga::next::MAX_WITHHELD;
use mainstay_saga::participant::{Guarded, Participant};
use mainstay_saga::wire::{
    AttemptRef, Cause, Completed, Fact, ItemKind, StepEnded, UndoEnded, UndoVerdict, Verdict,
};
use mainstay_saga::{Engine, ErrorKind, Handle, Outcome};
use serde_json::{Value, json};

use crate::remote::{Bench, Remote, Say, ok, say};
use crate::world::{Act, World, definition, step};

fn order(charge: Option<&str>) -> Definition {
    let retry = json!({"attempts": 2, "base": "10ms", "cap": "10ms"});
    let mut step = json!({"name": "charge", "action": "http://p/charge", "undo": "http://p/refund"});
    if let Some(policy) = charge {
        step["policy"] = policy.into();
    }
    let ship = json!({"name": "ship", "after": ["charge"], "action": "http://p/ship", "no_undo": "a refused one never left"});
    let data = json!({"name": "remote", "version": 1, "deadline": "1h", "timeout": "10s", "retry": retry,
        "undo_retry": {"attempts": 50, "base": "10ms", "cap": "1s"}, "steps": [step, ship]});
    Definition::from_json(data.to_string().as_bytes()).unwrap()
}

/// A breaker that opens at the second failure, and one call at a time.
fn narrow(world: &World, name: &str) -> (Policy, Bulkhead) {
    let breaker = Breaker::builder(name).consecutive(2).open_for(Duration::from_secs(5)).jitter(0.0);
    let breaker = breaker.runtime(&world.runtime()).build().unwrap();
    let places = Bulkhead::builder(name, 1).runtime(&world.runtime()).build().unwrap();
    let policy = Policy::builder(name).runtime(&world.runtime()).breaker(&breaker).bulkhead(&places);
    (policy.build().unwrap(), places)
}

async fn guarded(world: World) -> (Bench, Bulkhead) {
    let (policy, places) = narrow(&world, "payments");
    let remote = Arc::new(Remote::default());
    let definition = order(Some("payments"));
    let engine = Engine::builder(Arc::clone(&world.journal), world.runtime())
        .participant(Arc::clone(&remote) as Arc<dyn Participant>)
        .policies([policy])
        .definition(definition.clone(), [])
        .open()
        .await
        .unwrap();
    (Bench::with(world, remote, engine, definition), places)
}

/// What the policy of a step refuses was never sent, and only that step is guarded by it.
#[tokio::test(start_paused = true)]
async fn a_step_is_guarded_by_the_policy_that_it_names() {
    let (bench, _) = guarded(World::new()).await;
    let sent = |url: &str| bench.remote.all(url).len();
    bench.remote.script("charge", &[say(503), say(503), ok(json!({}))]);
    let first = bench.start().await;
    bench.called("charge", 2).await;
    // The breaker is open for five seconds: nothing is sent, and nobody asks again before.
    let second = bench.engine.start("remote", json!({}), StartOptions::id("two")).await.unwrap();
    bench.world.clock.sleep(Duration::from_millis(4_500)).await;
    let ends = bench.refused(&second, 1).await;
    assert_eq!((sent("charge"), sent("refund"), ends.len()), (2, 0, 1));
    assert!(
        matches!(&ends[0].verdict, Verdict::NotSent { reason } if reason.contains("breaker is open")),
        "{ends:?}"
    );
    // After its time probes are let through: the undo of the first, and the second. A business no blames nobody, however
    // often it is said.
    assert!(matches!(first.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert!(matches!(second.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert_eq!((sent("charge"), sent("refund")), (3, 1));
    bench.remote.script("charge", &[ok(json!({})), say(409)]);
    let third = bench.engine.start("remote", json!({}), StartOptions::id("three")).await.unwrap();
    assert!(matches!(third.outcome().await.unwrap(), Outcome::Completed { .. }));
    for n in 0..5 {
        let no = bench.engine.start("remote", json!({}), StartOptions::id(format!("no-{n}"))).await.unwrap();
        let outcome = no.outcome().await.unwrap();
        assert!(
            matches!(&outcome, Outcome::Compensated { cause: Some(Cause::StepFailed { reason, .. }), .. }
                if reason.contains("409")),
            "{outcome:?}"
        );
    }
}

/// An undo has a place of its own turn, and one that found none is repeated, however it goes with the saga.
#[tokio::test(start_paused = true)]
async fn an_undo_is_guarded_like_its_action_and_repeated_when_it_was_not_sent() {
    let (bench, places) = guarded(World::new()).await;
    bench.remote.script("ship", &[Say::Status(202, vec![("retry-after", "1")], Value::Null), say(409)]);
    let handle = bench.start().await;
    bench.called("ship", 1).await;
    let held = places.try_acquire_owned().unwrap();
    bench.called("ship", 2).await;
    bench.world.clock.sleep(Duration::from_millis(1)).await;
    let facts = bench.facts(&handle).await;
    assert!(
        facts.iter().any(|f| matches!(f, Fact::UndoEnded(end) if matches!(&end.verdict,
            UndoVerdict::Failed { reason } if reason.contains("full")))),
        "{facts:?}"
    );
    assert!(bench.remote.all("refund").is_empty());
    drop(held);
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert_eq!(bench.remote.all("refund").len(), 1);
}

/// Closures too.
#[tokio::test(start_paused = true)]
async fn a_closure_is_guarded_by_the_policy_that_its_step_names() {
    let world = World::new();
    let mut charge = step("charge", &["reserve"]);
    charge.policy = Some("payments".to_owned());
    // Its breaker stays open for five seconds, for the undo too.
    charge.undo_retry = Some(RetryData::new(20, Duration::from_secs(1), Duration::from_secs(5)));
    let definition = definition(vec![step("reserve", &[]), charge]);
    world.script("charge", &[Act::UnknownBefore]);
    let (policy, _) = narrow(&world, "payments");
    let builder = world.builder(Arc::clone(&world.journal), &definition).policies([policy]);
    let engine = builder.open().await.unwrap();
    let start = world.clock.now();
    let handle = world.start(&engine, &definition, "one").await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    // The third attempt met an open breaker, and was made when that let one through.
    assert_eq!(world.calls().iter().filter(|c| *c == "charge").count(), 3);
    assert!(world.clock.now().saturating_duration_since(start) >= Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_not_there_is_refused_where_a_definition_comes_from() {
    let (bench, _) = guarded(World::new()).await;
    let error = bench.engine.put_definition(order(Some("payment"))).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(
        text.contains("step `charge`") && text.ends_with("which nobody knows (known: `payments`)"),
        "{text}"
    );
    assert_eq!(*bench.engine.definition("remote", None).unwrap(), order(Some("payments")), "nothing changed");
    // One that is named stays; under the same version a definition may name another one, or none.
    let other = || [narrow(&bench.world, "other").0];
    assert_eq!(bench.engine.set_policies(other()).unwrap_err().kind(), ErrorKind::Config);
    bench.engine.put_definition(order(None)).await.unwrap();
    bench.engine.set_policies(other()).unwrap();
    bench.engine.put_definition(order(Some("other"))).await.unwrap();
}

/// What was stored waits for its policy, as it does for its closures: nothing is called unguarded.
#[tokio::test(start_paused = true)]
async fn a_stored_definition_whose_policy_is_gone_parks_its_sagas() {
    let (bench, _) = guarded(World::new()).await;
    bench.remote.script("charge", &[Say::Never]);
    let handle = bench.start().await;
    bench.called("charge", 1).await;
    bench.engine.shutdown(Duration::ZERO).await;
    let open = || {
        Engine::builder(Arc::clone(&bench.world.journal), bench.world.runtime())
            .participant(Arc::clone(&bench.remote) as Arc<dyn Participant>)
    };
    let engine = open().open().await.unwrap();
    assert_eq!(engine.outcome(handle.uid()).await.unwrap(), Outcome::NeedsAttention { steps: Vec::new() });
    assert_eq!(bench.remote.all("charge").len(), 1);
    bench.remote.script("charge", &[ok(json!({}))]);
    engine.adopt_stored().await.unwrap();
    assert!(engine.definition("remote", None).is_none(), "its policy is still not there");
    engine.set_policies([narrow(&bench.world, "payments").0]).unwrap();
    engine.adopt_stored().await.unwrap();
    // Woken; until then its row says that it waits.
    let mut outcome = engine.outcome(handle.uid()).await.unwrap();
    for _ in 0..1_000 {
        if matches!(outcome, Outcome::Completed { .. }) {
            return;
        }
        bench.world.clock.sleep(Duration::from_millis(10)).await;
        outcome = engine.outcome(handle.uid()).await.unwrap();
    }
    panic!("it still waits: {outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_repeats_and_two_of_one_name_are_refused() {
    let world = World::new();
    let retry = Retry::exponential(Duration::from_millis(1), Duration::from_millis(2)).build().unwrap();
    let repeats = Policy::builder("payments").idempotent().retry(retry).build().unwrap();
    let plain = || Policy::builder("payments").build().unwrap();
    for policies in [vec![repeats], vec![plain(), plain()]] {
        let builder = Engine::builder(Arc::clone(&world.journal), world.runtime());
        let error = builder.policies(policies).open().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().contains("`payments`"), "{error}");
    }
}

/// A charge that is guarded by a policy of its step, by one of its participant, or by both; each has its own breaker.
/// Its undo is made twice at most.
async fn behind(step: Option<&Breaker>, participant: Option<&Breaker>) -> Bench {
    let (world, remote) = (World::new(), Arc::new(Remote::default()));
    let policy = |name: &str, breaker: &Breaker| {
        Policy::builder(name).runtime(&world.runtime()).breaker(breaker).build().unwrap()
    };
    let mut data = order(step.map(|_| "payments")).data().clone();
    data.undo_retry = Some(RetryData::new(2, Duration::from_millis(100), Duration::from_millis(100)));
    let definition = Definition::from_json(&serde_json::to_vec(&data).unwrap()).unwrap();
    let inner = participant.map(|breaker| policy("participant", breaker));
    let choose =
        move |url: &str| inner.clone().filter(|_| url.ends_with("/charge") || url.ends_with("/refund"));
    let caller = Guarded::new(Arc::clone(&remote) as Arc<dyn Participant>, choose);
    let engine = Engine::builder(Arc::clone(&world.journal), world.runtime())
        .participant(Arc::new(caller))
        .policies(step.map(|breaker| policy("payments", breaker)))
        .definition(definition.clone(), [])
        .open()
        .await
        .unwrap();
    Bench::with(world, remote, engine, definition)
}

/// The order with changes, its charge behind this breaker.
async fn with(world: World, open: &Breaker, change: impl FnOnce(&mut DefinitionData)) -> Bench {
    let remote = Arc::new(Remote::default());
    let policy = Policy::builder("payments").runtime(&world.runtime()).breaker(open).build().unwrap();
    let mut data = order(Some("payments")).data().clone();
    change(&mut data);
    let definition = Definition::from_data(data).unwrap();
    let engine = Engine::builder(Arc::clone(&world.journal), world.runtime())
        .participant(Arc::clone(&remote) as Arc<dyn Participant>)
        .policies([policy])
        .definition(definition.clone(), [])
        .open()
        .await
        .unwrap();
    Bench::with(world, remote, engine, definition)
}

fn breaker(name: &str) -> Breaker {
    Breaker::builder(name).consecutive(2).build().unwrap()
}

impl Bench {
    /// Waits until its step was refused here so often; the ends of steps so far.
    async fn refused(&self, handle: &Handle, times: usize) -> Vec<StepEnded> {
        for _ in 0..10_000 {
            let facts = self.facts(handle).await.into_iter();
            let ends: Vec<StepEnded> =
                facts.filter_map(|f| if let Fact::StepEnded(end) = f { Some(end) } else { None }).collect();
            if ends.iter().filter(|end| end.withheld).count() >= times {
                return ends;
            }
            self.world.clock.sleep(Duration::from_millis(50)).await;
        }
        panic!("the step was not refused {times} times");
    }

    /// Waits until its undo was refused here so often; the ends of undos so far.
    async fn withheld(&self, handle: &Handle, times: usize) -> Vec<UndoEnded> {
        for _ in 0..10_000 {
            let facts = self.facts(handle).await.into_iter();
            let ends: Vec<UndoEnded> =
                facts.filter_map(|f| if let Fact::UndoEnded(end) = f { Some(end) } else { None }).collect();
            if ends.len() >= times {
                return ends;
            }
            self.world.clock.sleep(Duration::from_millis(50)).await;
        }
        panic!("the undo was not refused {times} times");
    }
}

/// Two refusals of an open breaker were two attempts: the saga turned back, though nobody had been asked for anything.
#[tokio::test(start_paused = true)]
async fn a_step_that_an_open_breaker_refuses_uses_up_no_attempt() {
    for at_step in [true, false] {
        let open = breaker("payments");
        let bench = if at_step { behind(Some(&open), None).await } else { behind(None, Some(&open)).await };
        bench.remote.script("charge", &[say(503), ok(json!({}))]);
        open.force_open("the test", None);
        let handle = bench.start().await;
        let ends = bench.refused(&handle, 10).await;
        assert!(ends.iter().all(|e| e.withheld && e.item.is_none() && e.retry_at.is_some()), "{ends:?}");
        assert!(bench.remote.all("charge").is_empty());
        open.release();
        // One attempt fails, and there is still another one.
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }), "{at_step}");
        assert_eq!(bench.remote.all("charge").len(), 2);
    }
}

/// Going forward has an end of its own, whatever refuses to let it: the deadline, and else a number of refusals.
#[tokio::test(start_paused = true)]
async fn a_step_that_is_refused_again_and_again_turns_back_at_the_deadline_or_after_so_many() {
    let most = usize::try_from(MAX_WITHHELD).unwrap();
    for (deadline, cause) in [(Some(20), "deadline"), (None, "held open by a person")] {
        let open = breaker("payments");
        open.force_open("the test", None);
        let bench = with(World::new(), &open, |data| {
            data.deadline = deadline.map(Duration::from_secs);
            data.no_deadline = deadline.is_none();
            data.retry = Some(RetryData::new(2, Duration::from_millis(100), Duration::from_secs(1)));
        })
        .await;
        let start = bench.world.clock.now();
        let handle = bench.start().await;
        let outcome = handle.outcome().await.unwrap();
        let took = bench.world.clock.now().saturating_duration_since(start).as_secs();
        let Outcome::Compensated { cause: Some(why), .. } = outcome else { panic!("{outcome:?}") };
        let ends = bench.refused(&handle, 1).await;
        match (why, deadline) {
            (Cause::DeadlineExceeded, Some(at)) => {
                assert!((at..at + 2).contains(&took) && ends.len() < most, "{took} {}", ends.len());
            }
            (Cause::StepFailed { reason, .. }, None) => {
                assert!(reason.contains(cause) && ends.len() == most, "{reason} {}", ends.len());
            }
            (why, _) => panic!("{why:?} instead of {cause}"),
        }
        assert!(bench.remote.calls().is_empty());
    }
}

/// A step after the pivot has to be done: somebody hears of it, it goes on slowly, and the question stays meanwhile.
#[tokio::test(start_paused = true)]
async fn a_step_after_the_pivot_that_is_refused_again_and_again_asks_a_person_and_goes_on() {
    let open = breaker("payments");
    let bench = with(World::new(), &open, |data| {
        data.steps[0].kind = StepKind::Pivot;
        data.steps[0].undo = None;
        data.steps[0].policy = None;
        data.steps[1].kind = StepKind::Retriable;
        data.steps[1].no_undo = None;
        data.steps[1].policy = Some("payments".to_owned());
    })
    .await;
    open.force_open("the test", None);
    let handle = bench.start().await;
    let needs = Outcome::NeedsAttention { steps: vec!["ship".to_owned()] };
    assert_eq!(handle.outcome().await.unwrap(), needs);
    let most = usize::try_from(MAX_WITHHELD).unwrap();
    let ends = bench.refused(&handle, most).await;
    let items: Vec<_> = ends.iter().filter(|e| e.withheld).map(|e| e.item).collect();
    assert_eq!((items.len(), items[most - 1]), (most, Some(ItemKind::RetriableExhausted)));
    assert!(items[..most - 1].iter().all(Option::is_none));
    bench.world.clock.sleep(Duration::from_secs(16 * 60)).await;
    assert_eq!(handle.outcome().await.unwrap(), needs);
    assert_eq!(bench.refused(&handle, most + 1).await.iter().filter(|e| e.withheld).count(), most + 1);
    open.release();
    bench.world.clock.sleep(Duration::from_secs(16 * 60)).await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
}

/// Two refusals of an open breaker were two attempts: the saga waited for a person, though nobody had been asked to
/// undo anything.
#[tokio::test(start_paused = true)]
async fn an_undo_that_an_open_breaker_refuses_uses_up_no_attempt() {
    for at_step in [true, false] {
        let open = breaker("payments");
        let bench = if at_step { behind(Some(&open), None).await } else { behind(None, Some(&open)).await };
        bench.remote.script("ship", &[Say::Status(202, vec![("retry-after", "1")], Value::Null), say(409)]);
        bench.remote.script("refund", &[say(503), ok(json!({}))]);
        let handle = bench.start().await;
        bench.called("ship", 1).await;
        open.force_open("the test", None);
        let ends = bench.withheld(&handle, 10).await;
        assert!(ends.iter().all(|e| e.withheld && e.item.is_none() && e.retry_at.is_some()), "{ends:?}");
        assert!(bench.remote.all("refund").is_empty());
        open.release();
        // One attempt fails, and there is still another one.
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }), "{at_step}");
        assert_eq!(bench.remote.all("refund").len(), 2);
    }
}

/// Somebody must hear of what goes on for ever; it goes on all the same.
#[tokio::test(start_paused = true)]
async fn an_undo_that_is_refused_again_and_again_asks_a_person_and_is_tried_on() {
    let open = breaker("payments");
    let bench = behind(Some(&open), None).await;
    bench.remote.script("ship", &[Say::Status(202, vec![("retry-after", "1")], Value::Null), say(409)]);
    let handle = bench.start().await;
    bench.called("ship", 1).await;
    open.force_open("the test", None);
    let needs = Outcome::NeedsAttention { steps: vec!["charge".to_owned()] };
    assert_eq!(handle.outcome().await.unwrap(), needs);
    let most = usize::try_from(MAX_WITHHELD).unwrap();
    let ends = bench.withheld(&handle, most).await;
    assert_eq!((ends.len(), ends[most - 1].item), (most, Some(ItemKind::UndoFailed)));
    assert!(ends[..most - 1].iter().all(|e| e.item.is_none()));
    // Behind its item slowly, and the question stays.
    bench.world.clock.sleep(Duration::from_secs(16 * 60)).await;
    assert_eq!(handle.outcome().await.unwrap(), needs);
    assert_eq!(bench.withheld(&handle, most + 1).await.len(), most + 1);
    open.release();
    bench.world.clock.sleep(Duration::from_secs(16 * 60)).await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
}

/// One outage tripped the chain: what the participant's breaker refused counted against that of the step.
#[tokio::test(start_paused = true)]
async fn what_an_inner_policy_refuses_blames_nobody_further_out() {
    let (outer, inner) = (breaker("payments"), breaker("participant"));
    let bench = behind(Some(&outer), Some(&inner)).await;
    inner.force_open("the test", None);
    assert!(matches!(bench.run().await, Outcome::Compensated { .. }));
    inner.release();
    let second = bench.engine.start("remote", json!({}), StartOptions::id("two")).await.unwrap();
    assert!(matches!(second.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(bench.remote.all("charge").len(), 1);
}

/// A participant that accepts, works and reports looked as if every call of it had been given up: its breaker opened.
#[tokio::test(start_paused = true)]
async fn what_a_participant_reports_by_itself_is_what_its_policy_hears() {
    let (bench, _) = guarded(World::new()).await;
    bench.remote.script("charge", &[Say::Status(202, vec![("retry-after", "60")], Value::Null)]);
    let report = async |id: &str, verdict: Verdict| {
        let before = bench.remote.all("charge").len();
        let handle = bench.engine.start("remote", json!({}), StartOptions::id(id)).await.unwrap();
        bench.called("charge", before + 1).await;
        // Longer than a call may last that is given up and blames nobody.
        bench.world.clock.sleep(Duration::from_secs(5)).await;
        let at = AttemptRef { step: "charge".to_owned(), attempt: 1, generation: 1 };
        bench.engine.complete(handle.uid(), at, Completed::Action(verdict)).await.unwrap();
        handle
    };
    for id in ["one", "two", "three"] {
        let handle = report(id, Verdict::Done { output: Some(json!({})) }).await;
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }), "{id}");
    }
    // And when it reports that it failed, that counts: this breaker opens at the second failure.
    let failed = || Verdict::Unknown { reason: "the disk".to_owned(), interrupted: false };
    let four = report("four", failed()).await;
    bench.called("charge", 5).await;
    let at = AttemptRef { step: "charge".to_owned(), attempt: 2, generation: 1 };
    bench.engine.complete(four.uid(), at, Completed::Action(failed())).await.unwrap();
    let five = bench.engine.start("remote", json!({}), StartOptions::id("five")).await.unwrap();
    let ends = bench.refused(&five, 1).await;
    assert!(
        matches!(&ends[0].verdict, Verdict::NotSent { reason } if reason.contains("breaker is open")),
        "{ends:?}"
    );
}
