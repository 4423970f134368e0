//! Undos of parallel branches: one after the other, or as many at once as the node has slots, and always along reversed edges.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Clock as _;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_saga::definition::{Definition, RetryData};
use mainstay_saga::engine::{ActionRequest, Config};
use mainstay_saga::wire::Operation;
use mainstay_saga::{Engine, ErrorKind, Handle, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay_store::BoxFuture;
use serde_json::{Value, json};

use crate::world::{World, definition, step};

/// Milliseconds at which undos began and ended, by step; one that failed has both twice.
type Times = Arc<Mutex<BTreeMap<String, Vec<(u64, u64)>>>>;

/// Its undo takes a second; the first `fails` of them fail then.
struct Timed {
    clock: VirtualClock,
    times: Times,
    rejects: bool,
    fails: Mutex<u32>,
}

impl Timed {
    fn now(&self) -> u64 {
        self.clock.now().as_nanos() / 1_000_000
    }
}

impl LocalStep for Timed {
    fn act(&self, _: StepCx, _: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async { if self.rejects { Err(StepError::rejected("no")) } else { Ok(json!({})) } })
    }

    fn undo(&self, cx: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async move {
            let begun = self.now();
            self.clock.sleep(Duration::from_secs(1)).await;
            self.times.lock().unwrap().entry(cx.step.to_string()).or_default().push((begun, self.now()));
            let mut fails = self.fails.lock().unwrap();
            match fails.checked_sub(1) {
                Some(left) => {
                    *fails = left;
                    Err(UndoError::failed("an outage"))
                }
                None => Ok(()),
            }
        })
    }
}

/// a -> (b, c, d) -> e -> f, which is refused; `failing` fails once to be undone.
fn diamond() -> Definition {
    let steps =
        [("a", &[][..]), ("b", &["a"]), ("c", &["a"]), ("d", &["a"]), ("e", &["b", "c", "d"]), ("f", &["e"])];
    let slow = |(name, after): (&str, &[&str])| {
        let mut step = step(name, after);
        let long = Duration::from_secs(30);
        (step.undo_timeout, step.undo_retry) = (Some(long), Some(RetryData::new(3, long, long)));
        step
    };
    definition(steps.into_iter().map(slow).collect())
}

async fn begin(world: &World, slots: usize, failing: &str) -> (Engine, Handle, Times) {
    let (definition, times) = (diamond(), Times::default());
    let mut config = Config::default();
    config.undo_slots = NonZeroUsize::new(slots).unwrap();
    let steps = definition.steps().iter().map(|s| {
        let fails = Mutex::new(u32::from(s.name == failing));
        let (clock, times) = (world.clock.clone(), Arc::clone(&times));
        let step = Timed { clock, times, rejects: s.name == "f", fails };
        (s.name.clone(), Arc::new(step) as Arc<dyn LocalStep>)
    });
    let steps: Vec<_> = steps.collect();
    let builder = Engine::builder(Arc::clone(&world.journal), world.runtime()).config(config);
    let engine = builder.definition(definition.clone(), steps).open().await.unwrap();
    let handle = world.start(&engine, &definition, "one").await;
    (engine, handle, times)
}

/// When the undo of `step` that worked began and ended.
fn worked(times: &Times, step: &str) -> (u64, u64) {
    *times.lock().unwrap()[step].last().unwrap()
}

/// Its undos took no time in a test, so that one that began before another had ended was never seen.
#[tokio::test(start_paused = true)]
async fn sg_f14_an_undo_begins_when_those_of_what_follows_it_have_ended_however_many_slots_there_are() {
    for slots in 1..=4 {
        for failing in ["none", "b", "c", "d", "e"] {
            let world = World::new();
            let (_engine, handle, times) = begin(&world, slots, failing).await;
            let outcome = handle.outcome().await.unwrap();
            assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?}");
            let case = format!("{slots} slots, {failing} fails: {:?}", times.lock().unwrap());
            for (from, to) in [("a", "b"), ("a", "c"), ("a", "d"), ("b", "e"), ("c", "e"), ("d", "e")] {
                assert!(worked(&times, to).1 <= worked(&times, from).0, "{to} before {from}: {case}");
            }
            let all: Vec<(u64, u64)> = times.lock().unwrap().values().flatten().copied().collect();
            let at_once = |at: u64| all.iter().filter(|(begun, ended)| *begun <= at && at < *ended).count();
            let most = all.iter().map(|(begun, _)| at_once(*begun)).max().unwrap();
            assert_eq!(most, slots.min(3), "{case}");
        }
    }
}

/// One slot: exactly the reverse of the order in which they started; and what waits for its next try holds up what it stands
/// on, not the branch beside it.
#[tokio::test(start_paused = true)]
async fn sg_f14_one_slot_undoes_in_reverse_order_of_the_starts_and_a_pause_holds_up_no_other_branch() {
    let order = |times: &Times| {
        let times = times.lock().unwrap();
        let mut all: Vec<(u64, String)> = times
            .iter()
            .flat_map(|(step, all)| all.iter().map(|(begun, _)| (*begun, step.clone())))
            .collect();
        all.sort_unstable();
        all.into_iter().map(|(_, step)| step).collect::<Vec<_>>()
    };
    for (failing, expected) in [("none", "edcba"), ("d", "edcbda"), ("c", "edcbca"), ("b", "edcbba")] {
        let world = World::new();
        let (_engine, handle, times) = begin(&world, 1, failing).await;
        handle.outcome().await.unwrap();
        assert_eq!(order(&times).concat(), expected, "{failing} fails");
    }
}

/// Whoever waits may go away, and a cancel changes nothing: an unwind comes to its end.
#[tokio::test(start_paused = true)]
async fn sg_f15_neither_a_caller_that_goes_away_nor_a_cancel_ends_an_unwind() {
    for after in (0..6_000).step_by(250) {
        let world = World::new();
        let (engine, handle, times) = begin(&world, 1, "c").await;
        let uid = handle.uid().clone();
        tokio::select! {
            biased;
            outcome = handle.outcome() => panic!("too fast: {outcome:?}"),
            () = world.clock.sleep(Duration::from_millis(after)) => {}
        }
        drop(handle);
        let cancel = ActionRequest::new("ann", "customer left", Operation::Cancel);
        let refused = engine.attention().act(&uid, cancel).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict, "it turns back already");
        let outcome = engine.outcome(&uid).await.unwrap();
        assert!(matches!(outcome, Outcome::Compensated { .. }), "after {after} ms: {outcome:?}");
        let calls: usize = times.lock().unwrap().values().map(Vec::len).sum();
        assert_eq!(calls, 6, "after {after} ms: {times:?}");
    }
}
