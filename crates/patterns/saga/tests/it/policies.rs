//! Policies that steps name.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_resilience::{Breaker, Bulkhead, Policy, Retry};
use mainstay_saga::definition::{Definition, RetryData};
use mainstay_saga::engine::StartOptions;
use mainstay_saga::participant::Participant;
use mainstay_saga::wire::{Cause, Fact, UndoVerdict, Verdict};
use mainstay_saga::{Engine, ErrorKind, Outcome};
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
    bench.remote.script("charge", &[say(503)]);
    let first = bench.start().await;
    bench.called("charge", 2).await;
    // The breaker is open: nothing is sent, and there is nothing to undo.
    let second = bench.engine.start("remote", json!({}), StartOptions::id("two")).await.unwrap();
    let outcome = second.outcome().await.unwrap();
    assert!(
        matches!(&outcome, Outcome::Compensated { cause: Some(Cause::StepFailed { reason, .. }), .. }
            if reason.contains("breaker is open")),
        "{outcome:?}"
    );
    assert_eq!((sent("charge"), sent("refund")), (2, 0));
    let facts = bench.facts(&second).await;
    let unsent =
        |f: &&Fact| matches!(f, Fact::StepEnded(end) if matches!(end.verdict, Verdict::NotSent { .. }));
    assert_eq!(facts.iter().filter(unsent).count(), 2);
    // After its time a probe is let through: the undo of the first. A business no blames nobody, however often it is said.
    assert!(matches!(first.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert_eq!(sent("refund"), 1);
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
    let handle = world.start(&engine, &definition, "one").await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    // The third attempt met an open breaker.
    assert_eq!(world.calls().iter().filter(|c| *c == "charge").count(), 2);
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
    engine.set_policies([narrow(&bench.world, "payments").0]).unwrap();
    engine.put_definition(order(Some("payments"))).await.unwrap();
    // Woken by the definition; until then its row says that it waits.
    while !matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }) {
        bench.world.clock.sleep(Duration::from_millis(10)).await;
    }
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
