//! Branches beside each other: how many at once, in which order, and what the failure of one means for the others.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Clock as _;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_saga::definition::{Definition, RetryData, StepData};
use mainstay_saga::next::PARALLEL_STEPS;
use mainstay_saga::wire::Cause;
use mainstay_saga::{Engine, Handle, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay_store::BoxFuture;
use serde_json::{Value, json};

use crate::world::{World, definition, step};

/// What was called, with the millisecond.
type Calls = Arc<Mutex<Vec<(u64, String)>>>;

/// How an action ends, after so many milliseconds.
#[derive(Clone, Copy)]
enum End {
    Done(u64),
    No(u64),
    Unknown(u64),
}

struct Branch {
    clock: VirtualClock,
    calls: Calls,
    end: End,
}

impl Branch {
    fn call(&self, what: String) {
        self.calls.lock().unwrap().push((self.clock.now().as_nanos() / 1_000_000, what));
    }
}

impl LocalStep for Branch {
    fn act(&self, cx: StepCx, _: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async move {
            self.call(cx.step.to_string());
            let (End::Done(after) | End::No(after) | End::Unknown(after)) = self.end;
            self.clock.sleep(Duration::from_millis(after)).await;
            match self.end {
                End::Done(_) => Ok(json!({})),
                End::No(_) => Err(StepError::rejected(format!("{} says no", cx.step))),
                End::Unknown(_) => Err(StepError::unknown(format!("{} says nothing", cx.step))),
            }
        })
    }

    fn undo(&self, cx: StepCx, told: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        let told = if told == Told::Maybe { "maybe" } else { "did" };
        self.call(format!("undo {} {told}", cx.step));
        Box::pin(async { Ok(()) })
    }
}

fn patient(name: &str) -> StepData {
    let (mut step, long) = (step(name, &[]), Duration::from_secs(5));
    (step.timeout, step.retry) = (Some(long), Some(RetryData::new(3, long, long)));
    step
}

async fn begin(world: &World, ends: &[(&str, End)]) -> (Definition, Engine, Handle, Calls) {
    let (definition, calls) =
        (definition(ends.iter().map(|(name, _)| patient(name)).collect()), Calls::default());
    let steps = ends.iter().map(|(name, end)| {
        let branch = Branch { clock: world.clock.clone(), calls: Arc::clone(&calls), end: *end };
        ((*name).to_owned(), Arc::new(branch) as Arc<dyn LocalStep>)
    });
    let builder = Engine::builder(Arc::clone(&world.journal), world.runtime());
    let engine = builder.definition(definition.clone(), steps.collect::<Vec<_>>()).open().await.unwrap();
    let handle = world.start(&engine, &definition, "one").await;
    (definition, engine, handle, calls)
}

/// A definition may have a thousand steps beside each other; its participants get sixteen at a time, in the order of their
/// declaration.
#[tokio::test(start_paused = true)]
async fn at_most_sixteen_steps_are_in_flight_and_those_declared_first_begin_first() {
    let world = World::new();
    let names: Vec<String> = (0..40).map(|n| format!("s{:02}", 39 - n)).collect();
    let ends: Vec<_> = names.iter().map(|name| (name.as_str(), End::Done(1_000))).collect();
    let (_, _engine, handle, calls) = begin(&world, &ends).await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
    let calls = calls.lock().unwrap().clone();
    let begun: Vec<&str> = calls.iter().map(|(_, name)| name.as_str()).collect();
    assert_eq!(begun, names);
    let at_once = |second: usize| calls.iter().filter(|(at, _)| *at / 1_000 == second as u64).count();
    let start = calls[0].0 / 1_000;
    let waves = [0, 1, 2].map(|n| at_once(usize::try_from(start).unwrap() + n));
    assert_eq!(waves, [PARALLEL_STEPS, PARALLEL_STEPS, 40 - 2 * PARALLEL_STEPS]);
}

/// The first by the order of the log is the cause, the later ones are listed with their reasons; whoever reads the log later
/// says the same.
#[tokio::test(start_paused = true)]
async fn sg_f07_the_first_failure_is_the_cause_and_later_ones_are_listed() {
    for (b, c, first, second) in [(100, 200, "b", "c"), (200, 100, "c", "b")] {
        let world = World::new();
        let ends = [("a", End::Done(300)), ("b", End::No(b)), ("c", End::No(c))];
        let (definition, engine, handle, _) = begin(&world, &ends).await;
        let lived = handle.outcome().await.unwrap();
        let says = |step: &str| (step.to_owned(), format!("{step} says no"));
        let cause = Cause::StepFailed { step: first.to_owned(), reason: says(first).1 };
        assert_eq!(lived, Outcome::Compensated { cause: Some(cause), also_failed: vec![says(second)] });
        engine.shutdown(Duration::ZERO).await;
        let reader = world.engine(&definition).await;
        assert_eq!(reader.outcome(handle.uid()).await.unwrap(), lived);
    }
}

/// After the first failure no pause between attempts goes on, and no step begins; what is in flight is awaited.
#[tokio::test(start_paused = true)]
async fn after_the_first_failure_nothing_is_tried_again_and_what_is_in_flight_is_awaited() {
    let world = World::new();
    // `waits` is between two attempts when `fails` is refused, `runs` ends later, without an answer.
    let ends = [
        ("done", End::Done(10)),
        ("waits", End::Unknown(50)),
        ("fails", End::No(60)),
        ("runs", End::Unknown(3_000)),
    ];
    let (_, _engine, handle, calls) = begin(&world, &ends).await;
    let start = world.clock.now();
    let Outcome::Compensated { cause: Some(Cause::StepFailed { step, .. }), also_failed } =
        handle.outcome().await.unwrap()
    else {
        panic!("it is compensated")
    };
    assert_eq!(step, "fails");
    let also: Vec<&str> = also_failed.iter().map(|(step, _)| step.as_str()).collect();
    assert_eq!(also, ["runs"], "a step that was never over did not fail");
    let took = world.clock.now().saturating_duration_since(start);
    assert!(took >= Duration::from_millis(2_900) && took < Duration::from_millis(3_200), "{took:?}");
    let mut all: Vec<String> = calls.lock().unwrap().iter().map(|(_, call)| call.clone()).collect();
    all.sort_unstable();
    let expected = ["done", "fails", "runs", "undo done did", "undo runs maybe", "undo waits maybe", "waits"];
    assert_eq!(all, expected);
}
