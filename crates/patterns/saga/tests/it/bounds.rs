//! What must not go on for ever: looks for due sagas, attempts, records.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_saga::definition::{Definition, RetryData, StepData, StepKind};
use mainstay_saga::engine::ActionRequest;
use mainstay_saga::exhaust::{Tap, TapJournal, Write};
use mainstay_saga::wire::{AttemptRef, Completed, Fact, Note, Operation, UndoVerdict, decode, encode};
use mainstay_saga::{Engine, ErrorKind, Handle, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay_store::journal::{Append, Appended, MAX_RECORDS, Row, SagaStatus};
use mainstay_store::{BoxFuture, Journal};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::vanished::process;
use crate::world::{Act, ByHand, World, definition, order, step};

fn act(operation: Operation) -> ActionRequest {
    ActionRequest::new("ann", "as the runbook says", operation)
}

/// Counts the looks for due sagas. A node that looks without a rest is held: its virtual time would stand still.
pub(crate) struct Looks {
    clock: Arc<dyn Clock>,
    all: AtomicU32,
    /// In this second of boot time, so many.
    second: Mutex<(u64, u32)>,
}

impl Looks {
    const MOST: u32 = 300;

    pub(crate) fn on(world: &World) -> (Arc<Self>, Arc<dyn Journal>) {
        let clock = Arc::new(world.clock.clone());
        let looks = Arc::new(Self { clock, all: AtomicU32::new(0), second: Mutex::default() });
        let tapped = TapJournal::new(Arc::clone(&world.journal), Arc::clone(&looks) as Arc<dyn Tap>);
        (looks, Arc::new(tapped))
    }

    /// Looks since it was asked last.
    pub(crate) fn take(&self) -> u32 {
        self.all.swap(0, Ordering::SeqCst)
    }

    fn is_too_much(&self) -> bool {
        self.all.fetch_add(1, Ordering::SeqCst);
        let now = self.clock.now().as_nanos() / 1_000_000_000;
        let mut second = self.second.lock().unwrap();
        *second = if second.0 == now { (now, second.1 + 1) } else { (now, 1) };
        second.1 > Self::MOST
    }
}

impl Tap for Looks {
    fn before(&self, write: Write) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if write == Write::Claim && self.is_too_much() {
                std::future::pending::<()>().await;
            }
        })
    }
}

/// A node that looks once a poll, and now and then because it was told to.
#[track_caller]
pub(crate) fn is_calm(looks: &Looks, seconds: u32) {
    let seen = looks.take();
    assert!(seen <= seconds + seconds / 10 + 10, "{seen} looks in {seconds} s");
}

fn after_pivot(name: &str, after: &[&str], kind: StepKind) -> StepData {
    let mut step = step(name, after);
    step.kind = kind;
    step.local_undo = false;
    step
}

/// reserve -> ship (the pivot) -> email (retriable).
fn shipped() -> Definition {
    let ship = after_pivot("ship", &["reserve"], StepKind::Pivot);
    definition(vec![step("reserve", &[]), ship, after_pivot("email", &["ship"], StepKind::Retriable)])
}

async fn row<C: Clock + Clone + 'static>(world: &World<C>, handle: &Handle) -> Row {
    world.journal.summary(handle.uid()).await.unwrap().unwrap().row
}

async fn facts(world: &World, handle: &Handle) -> Vec<Fact> {
    let loaded = world.journal.load(handle.uid()).await.unwrap().unwrap();
    loaded.records.iter().map(|r| decode(r).unwrap()).collect()
}

/// A paused saga was due when the attempt would have been that its pause keeps back: the node took it up and gave it
/// back without a rest.
#[tokio::test(start_paused = true)]
async fn a_paused_saga_that_is_overdue_keeps_no_node_busy() {
    let slow_email = || {
        let mut email = after_pivot("email", &["ship"], StepKind::Retriable);
        email.retry = Some(RetryData::new(3, Duration::from_secs(5), Duration::from_secs(5)));
        let ship = after_pivot("ship", &["reserve"], StepKind::Pivot);
        definition(vec![step("reserve", &[]), ship, email])
    };
    type Case = (Definition, &'static [(&'static str, &'static [Act])], u64, SagaStatus);
    let cases: [Case; 3] = [
        (shipped(), &[("email", &[Act::NotSent])], 60, SagaStatus::NeedsAttention),
        (
            order(),
            &[("ship", &[Act::Rejected]), ("undo charge", &[Act::UndoFails])],
            60,
            SagaStatus::NeedsAttention,
        ),
        // Its deadline passes while it is paused, after the pivot.
        (slow_email(), &[("email", &[Act::NotSent])], 4, SagaStatus::Running),
    ];
    for (definition, script, pause_after, status) in cases {
        let world = World::new();
        let (looks, journal) = Looks::on(&world);
        script.iter().for_each(|(step, acts)| world.script(step, acts));
        let engine = world.engine_on(journal, &definition).await;
        let handle = world.start(&engine, &definition, "one").await;
        world.clock.sleep(Duration::from_secs(pause_after)).await;
        assert_eq!(row(&world, &handle).await.status, status);
        engine.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap();
        looks.take();
        world.clock.sleep(Duration::from_secs(2_000)).await;
        is_calm(&looks, 2_000);
        let (calls, row) = (world.calls().len(), row(&world, &handle).await);
        assert!(row.paused && row.due.is_none(), "{row:?}");
        // Nothing is lost: it goes on where it was.
        world.script("email", &[Act::Done]);
        world.script("undo charge", &[Act::Done]);
        engine.attention().act(handle.uid(), act(Operation::Resume)).await.unwrap();
        world.clock.sleep(Duration::from_secs(1)).await;
        let outcome = handle.outcome().await.unwrap();
        assert!(!matches!(outcome, Outcome::NeedsAttention { .. }), "{outcome:?}");
        assert!(world.calls().len() > calls);
    }
}

/// The deadline still turns a paused saga, also one that no node has in memory.
#[tokio::test(start_paused = true)]
async fn a_paused_saga_is_due_at_its_deadline() {
    let world = World::new();
    let definition = order();
    world.script("charge", &[Act::UnknownBefore]);
    let engine = world.engine(&definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_millis(1)).await;
    engine.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap();
    engine.shutdown(Duration::ZERO).await;
    let begun = world.clock.wall().unix_millis();
    let due = row(&world, &handle).await.due.expect("its deadline counts").unix_millis() - begun;
    assert!((19_000..=20_000).contains(&due), "{due} ms");
    let engine = world.engine(&definition).await;
    world.clock.sleep(Duration::from_secs(30)).await;
    assert!(facts(&world, &handle).await.iter().any(|f| matches!(f, Fact::Stopped(_))));
    engine.attention().act(handle.uid(), act(Operation::Resume)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
}

/// A row that says "due" of a saga with nothing to do, whatever wrote it, is put right by who takes the saga up.
#[tokio::test(start_paused = true)]
async fn a_row_that_is_due_for_nothing_is_put_right() {
    let world = World::new();
    let definition = order();
    let (looks, journal) = Looks::on(&world);
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let engine = world.engine_on(journal, &definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    handle.outcome().await.unwrap();
    world.clock.sleep(Duration::from_secs(1)).await;
    let there = world.journal.summary(handle.uid()).await.unwrap().unwrap();
    let wrong = Row { due: Some(world.clock.wall()), ..there.row.clone() };
    let append = Append::new(handle.uid().clone(), there.epoch, there.next_seq, Vec::new(), wrong);
    assert!(matches!(world.journal.append(append).await.unwrap(), Appended::Appended { .. }));
    looks.take();
    world.clock.sleep(Duration::from_secs(100)).await;
    is_calm(&looks, 100);
    assert_eq!(row(&world, &handle).await, there.row);
}
