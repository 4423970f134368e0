//! What an attempt is told of its saga's turn: `StepCx::cancelled`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Clock as _;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_saga::engine::{ActionRequest, StartOptions};
use mainstay_saga::wire::Operation;
use mainstay_saga::{Engine, Handle, Known, Outcome, Saga, StepCx, StepError, Told, UndoError};

use crate::world::World;

const MS: fn(u64) -> Duration = Duration::from_millis;

/// What was called, and whether it was told to stop.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Works for so long, or until it is told that the saga turned back.
    async fn work(&self, what: &str, cx: &StepCx, clock: &VirtualClock, d: Duration) -> bool {
        let told = tokio::select! {
            biased;
            () = cx.cancelled() => true,
            () = clock.sleep(d) => false,
        };
        self.add(format!("{what} {}", if told { "stops" } else { "ends" }));
        told
    }
}

async fn begin(world: &World, saga: &Saga<u32>) -> (Engine, Handle) {
    let engine = Engine::builder(Arc::clone(&world.journal), world.runtime()).register(saga).open().await;
    let engine = engine.unwrap();
    let handle = engine.start_saga(saga, &5, StartOptions::id("one")).await.unwrap();
    (engine, handle)
}

/// Two branches beside the one that fails: one hears of it and stops, the other does not listen and is awaited, so that
/// its undo is told what it did. Undos are not told to stop: they are what the turn is for.
#[tokio::test(start_paused = true)]
async fn running_siblings_of_a_failure_are_told_and_awaited_and_undos_are_not_told() {
    let (world, seen) = (World::new(), Seen::default());
    let mut b = Saga::<u32>::builder("order", 1).timeout(MS(10_000)).retry(5, MS(1), MS(1));
    let fails = |clock: VirtualClock| {
        move |_: StepCx, _: u32| {
            let clock = clock.clone();
            async move {
                clock.sleep(MS(100)).await;
                Err::<u32, _>(StepError::rejected("no"))
            }
        }
    };
    b.step("fails", b.input(), fails(world.clock.clone())).no_undo("nothing").add();
    for (name, listens) in [("listens", true), ("deaf", false)] {
        let (act, acted) = ((seen.clone(), world.clock.clone()), (seen.clone(), world.clock.clone()));
        let action = move |cx: StepCx, n: u32| {
            let (seen, clock) = act.clone();
            async move {
                if listens && seen.work(name, &cx, &clock, MS(5_000)).await {
                    return Err(StepError::unknown("told to stop"));
                }
                clock.sleep(MS(5_000)).await;
                seen.add(format!("{name} ends"));
                Ok(n)
            }
        };
        let undo = move |cx: StepCx, told: Told<u32>| {
            let (seen, clock) = acted.clone();
            async move {
                let what = format!("undo {name} {told:?}");
                match seen.work(&what, &cx, &clock, MS(1_000)).await {
                    true => Err(UndoError::failed("told to stop")),
                    false => Ok(()),
                }
            }
        };
        b.step(name, b.input(), action).undo(undo).add();
    }
    let saga = b.no_deadline().build().unwrap();
    let (_engine, handle) = begin(&world, &saga).await;
    let outcome = handle.outcome().await.unwrap();
    assert!(matches!(outcome, Outcome::Compensated { .. }), "{outcome:?} {:?}", seen.all());
    let mut all = seen.all();
    all.sort_unstable();
    let expected = ["deaf ends", "listens stops", "undo deaf Did(5) ends", "undo listens Maybe ends"];
    assert_eq!(all, expected, "nothing is repeated");
}

/// A cancel that came while the pivot was in flight, and too late: what follows the pivot was told to stop as soon as it began,
/// each time, so that a step that listens never came to its end.
#[tokio::test(start_paused = true)]
async fn a_step_after_the_pivot_is_not_told_of_a_cancel_that_came_too_late() {
    let (world, seen) = (World::new(), Seen::default());
    let b = Saga::<u32>::builder("order", 1).timeout(MS(10_000)).retry(3, MS(1), MS(1));
    let (input, pivot) = (b.input(), (seen.clone(), world.clock.clone()));
    let ship = move |cx: StepCx, n: u32| {
        let (seen, clock) = pivot.clone();
        async move {
            let first = seen.all().is_empty();
            let told = seen.work("ship", &cx, &clock, MS(1_000)).await;
            assert_eq!(told, first, "the first attempt is in flight when the cancel comes");
            // Nobody knows whether the one that stopped had its effect: it is made again.
            if told { Err(StepError::unknown("told to stop")) } else { Ok(n) }
        }
    };
    let (shipped, mut forward) = b.pivot("ship", input, ship).add();
    let after = (seen.clone(), world.clock.clone());
    let email = move |cx: StepCx, n: u32| {
        let (seen, clock) = after.clone();
        async move {
            match seen.work("email", &cx, &clock, MS(1_000)).await {
                true => Err(StepError::unknown("told to stop")),
                false => Ok(n),
            }
        }
    };
    forward.retriable("email", &shipped, email).add();
    let saga = forward.no_deadline().build().unwrap();
    let (engine, handle) = begin(&world, &saga).await;
    world.clock.sleep(MS(100)).await;
    let cancel = ActionRequest::new("ann", "customer left", Operation::Cancel);
    engine.attention().act(handle.uid(), cancel).await.unwrap();
    let outcome = handle.outcome().await.unwrap();
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?} {:?}", seen.all());
    assert_eq!(seen.all(), ["ship stops", "ship ends", "email ends"]);
}

/// Asked because the saga turns back, a status that listens could not say a word.
#[tokio::test(start_paused = true)]
async fn a_question_what_became_of_an_action_is_not_told_of_the_turn_that_it_is_asked_for() {
    let (world, seen) = (World::new(), Seen::default());
    let mut b = Saga::<u32>::builder("order", 1).timeout(MS(10_000)).retry(1, MS(1), MS(1));
    let charge = |_: StepCx, _: u32| async { Err::<u32, _>(StepError::unknown("reset")) };
    let (asks, undoes) = ((seen.clone(), world.clock.clone()), seen.clone());
    let status = move |cx: StepCx, _: u32| {
        let (seen, clock) = asks.clone();
        async move { if seen.work("status", &cx, &clock, MS(100)).await { Known::Unclear } else { Known::Did(7) } }
    };
    let undo = move |_: StepCx, told: Told<u32>| {
        let seen = undoes.clone();
        async move {
            seen.add(format!("undo {told:?}"));
            Ok::<(), UndoError>(())
        }
    };
    b.step("charge", b.input(), charge).undo(undo).status(status).add();
    let saga = b.no_deadline().build().unwrap();
    let (_engine, handle) = begin(&world, &saga).await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
    assert_eq!(seen.all(), ["status ends", "undo Did(7)"]);
}
