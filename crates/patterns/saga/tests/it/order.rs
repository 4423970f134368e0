//! What is on the log before what, and what a lost answer of the journal leads to.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use mainstay_clock::{Clock, Runtime, SeededRng};
use mainstay_saga::engine::{Config, StartOptions};
use mainstay_saga::exhaust::{Tap, TapJournal};
use mainstay_saga::wire::{Fact, decode};
use mainstay_saga::{Engine, LocalStep, Outcome, Saga, StepCx, StepError, Told, UndoError};
use mainstay_store::journal::Uid;
use mainstay_store::{BoxFuture, Journal};
use serde_json::{Value, json};

use crate::lossy::Lossy;
use crate::world::{Act, World, definition, order, step};

/// Looks at the log before it does anything.
struct Watchful {
    journal: Arc<dyn Journal>,
    seen: Arc<AtomicU32>,
}

impl Watchful {
    async fn last(&self, cx: &StepCx) -> Vec<Fact> {
        let loaded = self.journal.load(&Uid::new(&*cx.saga)).await.unwrap().unwrap();
        self.seen.fetch_add(1, Ordering::Relaxed);
        loaded.records.iter().map(|r| decode(r).unwrap()).collect()
    }
}

impl LocalStep for Watchful {
    fn act(&self, cx: StepCx, _: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async move {
            let begun = self.last(&cx).await.into_iter().any(
                |f| matches!(f, Fact::StepStarted(at) if *at.step == *cx.step && at.attempt == cx.attempt),
            );
            assert!(begun, "step {} acts before its start is on the log", cx.step);
            match &*cx.step {
                "ship" => Err(StepError::rejected("no")),
                _ => Ok(Value::Null),
            }
        })
    }

    fn undo(&self, cx: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async move {
            let begun = self.last(&cx).await.into_iter().any(
                |f| matches!(f, Fact::UndoStarted(at) if *at.step == *cx.step && at.attempt == cx.attempt),
            );
            assert!(begun, "the undo of {} acts before its start is on the log", cx.step);
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn if_k1_every_start_is_on_the_log_before_its_closure_runs() {
    let world = World::new();
    let definition = order();
    let seen = Arc::new(AtomicU32::new(0));
    let step = || Watchful { journal: Arc::clone(&world.journal), seen: Arc::clone(&seen) };
    let steps = definition.steps().iter().map(|s| (s.name.clone(), Arc::new(step()) as Arc<dyn LocalStep>));
    let builder = Engine::builder(Arc::clone(&world.journal), world.runtime());
    let steps: Vec<_> = steps.collect();
    let engine = builder.definition(definition.clone(), steps).open().await.unwrap();
    let handle = world.start(&engine, &definition, "one").await;
    // A panic in a step would be an unknown attempt: another number of looks, another outcome.
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert_eq!(seen.load(Ordering::Relaxed), 5, "three actions, two undos");
}

/// Every second, third or fifth answer of the journal is lost after the write was made: nothing happens twice.
#[tokio::test(start_paused = true)]
async fn sg_x03_a_lost_answer_of_a_commit_is_looked_up_and_no_effect_is_doubled() {
    for every in [2, 3, 5] {
        for last in [Act::Done, Act::Rejected] {
            let world = World::new();
            let definition = order();
            world.script("ship", &[last]);
            let lossy = Lossy { every, ..Lossy::new() }.on(&world.journal);
            let engine = world.engine_on(lossy, &definition).await;
            let mut handles = Vec::new();
            for n in 0..5 {
                let options = StartOptions::id(format!("o-{n}"));
                handles.push(engine.start("order", json!({}), options).await.unwrap());
            }
            for handle in &handles {
                match (last, handle.outcome().await.unwrap()) {
                    (Act::Done, Outcome::Completed { .. }) | (Act::Rejected, Outcome::Compensated { .. }) => {
                    }
                    (_, outcome) => panic!("every {every}: {outcome:?}"),
                }
            }
            let ledger = world.ledger.lock().unwrap();
            let mut keys = ledger.keys.clone();
            keys.sort();
            let calls = keys.len();
            keys.dedup();
            assert_eq!(keys.len(), calls, "every {every}: a step ran twice: {:?}", ledger.calls);
            let left: i64 = ledger.net.values().sum();
            assert_eq!(left, if last == Act::Done { 15 } else { 0 }, "every {every}");
        }
    }
}

/// Steps that return nothing are done: what is read back from the log is what was lived.
#[tokio::test(start_paused = true)]
async fn an_outcome_read_from_the_log_is_the_one_that_was_lived_also_without_outputs() {
    let world = World::new();
    let mut b = Saga::<u32>::builder("quiet", 1);
    let nothing = |_: StepCx, _: u32| async { Ok::<(), StepError>(()) };
    let after = |_: StepCx, (): ()| async { Ok::<(), StepError>(()) };
    let reserve = b.step("reserve", b.input(), nothing).no_undo("nothing is kept").add();
    b.step("ship", &reserve, after).no_undo("nothing is kept").add();
    let saga = b.no_deadline().build().unwrap();
    let open = || Engine::builder(Arc::clone(&world.journal), world.runtime()).register(&saga).open();
    let engine = open().await.unwrap();
    let handle = engine.start_saga(&saga, &1, StartOptions::id("one")).await.unwrap();
    let lived = handle.outcome().await.unwrap();
    assert!(matches!(lived, Outcome::Completed { .. }), "{lived:?}");
    let reader = open().await.unwrap();
    assert_eq!(reader.outcome(handle.uid()).await.unwrap(), lived);
}

/// Whoever starts a saga may go away while it is created: a client that hangs up. The saga is driven all the same.
#[tokio::test(start_paused = true)]
async fn a_start_whose_caller_goes_away_is_driven_all_the_same() {
    let world = World::new();
    let definition = order();
    let slow: Option<Arc<dyn Clock>> = Some(Arc::new(world.clock.clone()));
    let lossy = Lossy { slow_create: slow, ..Lossy::new() }.on(&world.journal);
    let engine = world.engine_on(lossy, &definition).await;
    tokio::select! {
        biased;
        started = engine.start("order", json!({}), StartOptions::id("one")) => panic!("too fast: {started:?}"),
        () = world.clock.sleep(std::time::Duration::from_millis(500)) => {}
    }
    let summary = world.journal.find("order", "one").await.unwrap().unwrap();
    assert!(matches!(engine.outcome(&summary.uid).await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(world.calls(), ["reserve", "charge", "ship"]);
}

/// Claims whose answers are lost, again and again: nobody died of the saga, so nobody sets it aside.
#[tokio::test(start_paused = true)]
async fn sg_x08_claims_without_an_answer_set_no_innocent_aside() {
    let world = World::new();
    let definition = order();
    world.script("reserve", &[Act::Hang, Act::Done]);
    let deaf = Arc::new(Lossy::new());
    let journal = Arc::new(TapJournal::new(Arc::clone(&world.journal), Arc::clone(&deaf) as Arc<dyn Tap>));
    let engine = world.engine_on(journal, &definition).await;
    deaf.claims.store(8, Ordering::Relaxed);
    let mut config = Config::default();
    config.node = "b".to_owned();
    let other = world.engine_with(&definition, config).await;
    let handle = world.start(&other, &definition, "one").await;
    other.shutdown(std::time::Duration::ZERO).await;
    let outcome = engine.outcome(handle.uid()).await.unwrap();
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
    assert_eq!(deaf.claims.load(Ordering::Relaxed), 0, "all of them were lost");
}

/// A node whose calendar is hours ahead of the store's, or behind it, writes due times that the store understands.
#[tokio::test(start_paused = true)]
async fn sg_f22_a_node_whose_calendar_is_hours_off_neither_puts_off_nor_hurries_a_retry() {
    let hours = 3 * 3_600_000;
    for off in [hours, -hours] {
        let world = World::new();
        let definition = order();
        world.script("reserve", &[Act::UnknownBefore, Act::Done]);
        let node = world.clock.node(std::time::Duration::ZERO, 1.0);
        node.jump_wall(off);
        let runtime = Runtime::on_tokio(Arc::new(node), Arc::new(SeededRng::new(7)));
        let steps: Vec<_> =
            definition.steps().iter().map(|s| (s.name.clone(), world.step(&s.name))).collect();
        let builder = Engine::builder(Arc::clone(&world.journal), runtime);
        let engine = builder.definition(definition.clone(), steps).open().await.unwrap();
        let handle = world.start(&engine, &definition, "one").await;
        while world.calls().is_empty() {
            world.clock.sleep(std::time::Duration::from_millis(1)).await;
        }
        world.clock.sleep(std::time::Duration::from_millis(1)).await;
        let row = world.journal.summary(handle.uid()).await.unwrap().unwrap().row;
        let next = row.next_try.expect("it waits for its retry");
        let wait = next.unix_millis() - world.clock.wall().unix_millis();
        assert!((-1..=50).contains(&wait), "the store thinks that the retry is {wait} ms away");
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
    }
}

/// The wall clock is set back, and then the node is started anew: what waits, waits for its own time only.
#[tokio::test(start_paused = true)]
async fn sg_f22_a_node_that_starts_after_its_calendar_was_set_back_takes_up_what_waits() {
    let world = World::new();
    let mut reserve = step("reserve", &[]);
    let ten = std::time::Duration::from_secs(10);
    reserve.retry = Some(mainstay_saga::definition::RetryData::new(3, ten, ten));
    let definition = definition(vec![reserve]);
    world.script("reserve", &[Act::UnknownBefore, Act::Done]);
    let (engine, handle) = world.begin(&definition).await;
    world.clock.sleep(std::time::Duration::from_millis(1)).await;
    engine.shutdown(std::time::Duration::ZERO).await;
    drop(engine);
    world.clock.jump_wall(-3_600_000);
    let start = world.clock.now();
    let engine = world.engine(&definition).await;
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
    let took = world.clock.now().saturating_duration_since(start);
    assert!(took < std::time::Duration::from_secs(12), "{took:?}");
    assert_eq!(world.calls(), ["reserve", "reserve"]);
}

/// A crash between the effect and its record: the same key again, so that the participant can refuse it.
#[tokio::test(start_paused = true)]
async fn sg_f11_a_crash_between_the_effect_and_its_record_repeats_the_same_key() {
    let world = World::new();
    let definition = order();
    world.script("charge", &[Act::Hang, Act::Done]);
    let (engine, handle) = world.begin(&definition).await;
    while world.calls().len() < 2 {
        world.clock.sleep(std::time::Duration::from_millis(1)).await;
    }
    engine.shutdown(std::time::Duration::ZERO).await;
    drop(engine);
    let engine = world.engine(&definition).await;
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
    let keys: Vec<String> = world.ledger.lock().unwrap().keys.clone();
    let charges: Vec<&String> = keys.iter().filter(|k| k.contains("/charge/")).collect();
    assert_eq!(charges.len(), 2);
    assert_eq!(charges[0], charges[1]);
    assert_eq!(world.net()["charge"], 1, "a participant that honors the key took effect once");
}

/// A log longer than any page is read whole, and a saga with it goes on.
#[tokio::test(start_paused = true)]
async fn sg_f06_a_log_longer_than_a_page_is_read_whole() {
    let world = World::new();
    let definition = order();
    let (engine, handle) = world.stuck(&definition).await;
    let retries = Mutex::new(0);
    for n in 0..400 {
        let step = "charge".to_owned();
        let mut retry = mainstay_saga::engine::ActionRequest::new(
            "ann",
            "once more",
            mainstay_saga::wire::Operation::Retry { step, input: None },
        );
        retry.message = Some(format!("m{n}"));
        engine.attention().act(handle.uid(), retry).await.unwrap();
        handle.outcome().await.unwrap();
        *retries.lock().unwrap() += 1;
    }
    engine.shutdown(std::time::Duration::ZERO).await;
    drop(engine);
    let loaded = world.journal.load(handle.uid()).await.unwrap().unwrap();
    assert!(loaded.records.len() > 2_000, "{}", loaded.records.len());
    world.script("undo charge", &[Act::Done]);
    let engine = world.engine(&definition).await;
    let step = "charge".to_owned();
    let retry = mainstay_saga::wire::Operation::Retry { step, input: None };
    let retry = mainstay_saga::engine::ActionRequest::new("ann", "the account is open again", retry);
    engine.attention().act(handle.uid(), retry).await.unwrap();
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Compensated { .. }));
    assert!(world.nothing_left());
}
