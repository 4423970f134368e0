//! Claims that are given away, kept, or end while something is driven under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, WallTime};
use mainstay_saga::definition::{Definition, StepData};
use mainstay_saga::engine::{ActionRequest, Config, StartOptions};
use mainstay_saga::exhaust::{Tap, TapJournal, Write};
use mainstay_saga::wire::Operation;
use mainstay_saga::{Engine, ErrorKind, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay_store::journal::{Create, Hash, NewRecord, Row, SagaStatus, Uid};
use mainstay_store::{BoxFuture, Error, ErrorKind as StoreErrorKind, Journal, Result};
use serde_json::{Value, json};

use crate::world::{Act, World, definition, order, step};

/// A journal that answers late, or not at all, when told to.
struct Late {
    clock: VirtualClock,
    claims: AtomicBool,
    creates: AtomicBool,
    silent: AtomicBool,
}

impl Late {
    fn on(world: &World) -> (Arc<Self>, Arc<dyn Journal>) {
        let late = Self {
            clock: world.clock.clone(),
            claims: AtomicBool::new(false),
            creates: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        };
        let late = Arc::new(late);
        let tapped = TapJournal::new(Arc::clone(&world.journal), Arc::clone(&late) as Arc<dyn Tap>);
        (late, Arc::new(tapped))
    }
}

impl Tap for Late {
    fn before(&self, write: Write) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if matches!(write, Write::Claim | Write::Renew) && self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
        })
    }

    fn after(&self, write: Write) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if write == Write::Claim && self.claims.load(Ordering::SeqCst) {
                self.clock.sleep(Duration::from_millis(300)).await;
            }
            if write == Write::Create && self.creates.load(Ordering::SeqCst) {
                self.clock.sleep(Duration::from_secs(5)).await;
            }
            Ok(())
        })
    }
}

fn patient(name: &str, after: &[&str]) -> StepData {
    let mut step = step(name, after);
    (step.timeout, step.undo_timeout) = (Some(Duration::from_secs(100)), Some(Duration::from_secs(100)));
    step
}

/// A claim was looked for while its answer was on the way, and given back while its saga was driven: it was claimed again,
/// the undo in flight was made a second time, and whoever was fenced gave away the claim of who came after.
#[tokio::test(start_paused = true)]
async fn a_claim_whose_answer_is_slow_is_not_given_away() {
    let world = World::new();
    let (late, journal) = Late::on(&world);
    let charge = patient("charge", &["reserve"]);
    let definition = definition(vec![step("reserve", &[]), charge, step("ship", &["charge"])]);
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let opened = world.clock.now();
    let engine = world.engine_on(journal, &definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::NeedsAttention { .. }));
    world.script("undo charge", &[Act::UndoHangs]);
    // What nobody drives is looked for once a minute.
    world.clock.sleep_until(opened.saturating_add(Duration::from_millis(59_900))).await;
    let before = world.calls().len();
    late.claims.store(true, Ordering::SeqCst);
    let retry = Operation::Retry { step: "charge".to_owned(), input: None };
    engine.attention().act(handle.uid(), ActionRequest::new("ann", "repaired", retry)).await.unwrap();
    late.claims.store(false, Ordering::SeqCst);
    world.clock.sleep(Duration::from_secs(20)).await;
    assert_eq!(&world.calls()[before..], ["undo charge did"]);
    let there = world.journal.summary(handle.uid()).await.unwrap().unwrap();
    assert_eq!(there.owner.as_deref(), Some("local"));
}

/// A store that says nothing may have given the claims to somebody else: what is driven under them ends with them.
#[tokio::test(start_paused = true)]
async fn what_is_driven_ends_with_its_claim_also_when_the_store_is_silent() {
    let world = World::new();
    let (late, journal) = Late::on(&world);
    let definition = definition(vec![patient("reserve", &[])]);
    world.script("reserve", &[Act::Hang]);
    let engine = world.engine_on(journal, &definition).await;
    world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_millis(100)).await;
    late.silent.store(true, Ordering::SeqCst);
    world.clock.sleep(Duration::from_secs(8)).await;
    assert_eq!(engine.in_flight(), 1, "the claim still holds");
    world.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(engine.in_flight(), 0);
}

/// Its creation was answered when the claim was over: somebody else may drive it.
#[tokio::test(start_paused = true)]
async fn nothing_is_sent_under_a_claim_that_is_over() {
    let world = World::new();
    let (late, journal) = Late::on(&world);
    let definition = definition(vec![patient("reserve", &[])]);
    let engine = world.engine_on(journal, &definition).await;
    late.silent.store(true, Ordering::SeqCst);
    late.creates.store(true, Ordering::SeqCst);
    world.clock.sleep(Duration::from_secs(8)).await;
    // Five seconds later.
    world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_millis(100)).await;
    assert!(!engine.holds_claims());
    assert!(world.calls().is_empty(), "{:?}", world.calls());
}

/// A process that still runs while its successor under the same name does: it hears of that when it renews its claims, drops
/// what it drives and begins nothing more.
#[tokio::test(start_paused = true)]
async fn the_older_run_of_a_node_stops_when_it_hears_of_a_newer_one() {
    let world = World::new();
    let definition = definition(vec![patient("reserve", &[])]);
    world.script("reserve", &[Act::Hang, Act::Done]);
    let (older, handle) = world.begin(&definition).await;
    world.clock.sleep(Duration::from_millis(100)).await;
    let newer = world.engine(&definition).await;
    assert!(matches!(newer.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
    world.clock.sleep(Duration::from_secs(4)).await;
    assert_eq!(older.in_flight(), 0);
    let refused = older.start("order", json!({}), StartOptions::id("two")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Overloaded, "{refused}");
    assert!(newer.start("order", json!({}), StartOptions::id("two")).await.unwrap().is_new());
}

/// A row of another graph than the definition of its version has here: of a journal put together from two, say.
#[tokio::test(start_paused = true)]
async fn sg_f18_a_saga_of_another_graph_is_parked_at_load_and_nothing_of_it_is_called() {
    let world = World::new();
    let definition = order();
    let engine = world.engine(&definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    handle.outcome().await.unwrap();
    let like = world.journal.load(handle.uid()).await.unwrap().unwrap();
    let first = &like.records[0];
    let before = world.calls().len();
    let create = Create {
        uid: Uid::new("foreign"),
        id: "two".to_owned(),
        definition: "order".to_owned(),
        version: 1,
        definition_hash: Hash::of(b"another graph"),
        input_hash: Hash::of(b"two"),
        records: vec![NewRecord { kind: first.kind, bytes: first.bytes.clone() }],
        row: Row::running(WallTime::default()),
        owner: None,
        reply: None,
        parent: None,
        locks: Vec::new(),
    };
    world.journal.create(create).await.unwrap();
    world.clock.sleep(Duration::from_secs(3)).await;
    let row = world.journal.summary(&Uid::new("foreign")).await.unwrap().unwrap().row;
    assert_eq!(row.status, SagaStatus::NeedsAttention);
    let why = row.error.unwrap_or_default();
    assert!(why.starts_with("parked: ") && why.ends_with("has another graph"), "{why}");
    assert_eq!(world.calls().len(), before);
}

/// Takes half a minute.
struct Slow {
    clock: VirtualClock,
    calls: Arc<AtomicU32>,
}

impl LocalStep for Slow {
    fn act(&self, _: StepCx, _: Value) -> BoxFuture<'_, std::result::Result<Value, StepError>> {
        Box::pin(async move {
            self.calls.fetch_add(1, Ordering::SeqCst);
            self.clock.sleep(Duration::from_secs(30)).await;
            Ok(json!({}))
        })
    }

    fn undo(&self, _: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, std::result::Result<(), UndoError>> {
        Box::pin(async { Ok(()) })
    }
}

async fn slow_node(world: &World, node: &str, definition: &Definition, calls: &Arc<AtomicU32>) -> Engine {
    let slow = Arc::new(Slow { clock: world.clock.clone(), calls: Arc::clone(calls) }) as Arc<dyn LocalStep>;
    let mut config = Config::default();
    config.node = node.to_owned();
    Engine::builder(Arc::clone(&world.journal), world.runtime())
        .config(config)
        .definition(definition.clone(), [("reserve".to_owned(), slow)])
        .open()
        .await
        .unwrap()
}

/// A node that stops awaits what is in flight for longer than a claim lasts: nobody renewed it, and another node made the
/// attempt a second time beside it.
#[tokio::test(start_paused = true)]
async fn a_node_that_stops_keeps_the_claims_of_what_it_awaits() {
    let world = World::new();
    let calls = Arc::new(AtomicU32::new(0));
    let definition = definition(vec![patient("reserve", &[])]);
    let definition = &without_deadline(&definition);
    let stops = slow_node(&world, "a", definition, &calls).await;
    let handle = world.start(&stops, definition, "one").await;
    world.clock.sleep(Duration::from_millis(100)).await;
    let other = slow_node(&world, "b", definition, &calls).await;
    stops.shutdown(Duration::from_secs(60)).await;
    assert!(matches!(other.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// A start whose answer came after the node had stopped began its first step there, under a claim that nobody renewed.
#[tokio::test(start_paused = true)]
async fn a_start_that_is_answered_after_the_stop_begins_nothing() {
    let world = World::new();
    let (late, journal) = Late::on(&world);
    late.creates.store(true, Ordering::SeqCst);
    let definition = order();
    let engine = world.engine_on(journal, &definition).await;
    let stop = async {
        world.clock.sleep(Duration::from_secs(1)).await;
        engine.shutdown(Duration::ZERO).await;
    };
    let (handle, ()) = tokio::join!(world.start(&engine, &definition, "one"), stop);
    world.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(world.calls(), Vec::<String>::new());
    let there = world.journal.summary(handle.uid()).await.unwrap().unwrap();
    assert_eq!(there.owner, None, "given back");
    let next = world.engine(&definition).await;
    assert!(matches!(next.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
    assert_eq!(world.calls(), ["reserve", "charge", "ship"]);
}

fn without_deadline(definition: &Definition) -> Definition {
    let mut data = definition.data().clone();
    (data.deadline, data.no_deadline) = (None, true);
    Definition::from_data(data).unwrap()
}

/// Nothing of a saga can be read, and looks for due sagas are counted.
#[derive(Default)]
struct Unreadable(AtomicU32);

impl Tap for Unreadable {
    fn before(&self, write: Write) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            // A node that looks without a rest is held: its virtual time would stand still.
            if write == Write::Claim && self.0.fetch_add(1, Ordering::SeqCst) > 500 {
                std::future::pending::<()>().await;
            }
        })
    }

    fn before_load(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Err(Error::new(StoreErrorKind::Corrupt, "planted")) })
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_cannot_even_be_set_aside_keeps_no_node_busy() {
    let world = World::new();
    world.script("reserve", &[Act::Hang]);
    let (engine, _handle) = world.begin(&order()).await;
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    let unreadable = Arc::new(Unreadable::default());
    let journal = TapJournal::new(Arc::clone(&world.journal), Arc::clone(&unreadable) as Arc<dyn Tap>);
    let _engine = world.engine_on(Arc::new(journal), &order()).await;
    world.clock.sleep(Duration::from_secs(20)).await;
    let looks = unreadable.0.load(Ordering::SeqCst);
    assert!((15..=60).contains(&looks), "{looks} looks in 20 s");
}

/// Each start of a node that knows another version of its definition woke a parked saga in vain. The messages stayed in its
/// inbox until that was full, and the deploy that it waited for could wake it no more.
#[tokio::test(start_paused = true)]
async fn sg_f19_a_parked_saga_continues_however_often_it_was_woken_in_vain() {
    let world = World::new();
    let old = without_deadline(&order());
    let mut data = old.data().clone();
    data.version = 2;
    let newer = Definition::from_data(data).unwrap();
    world.script("reserve", &[Act::Hang, Act::Done]);
    let (engine, handle) = world.begin(&old).await;
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    for _ in 0..70 {
        let engine = world.engine(&newer).await;
        world.clock.sleep(Duration::from_secs(2)).await;
        engine.shutdown(Duration::ZERO).await;
    }
    let engine = world.engine(&old).await;
    world.clock.sleep(Duration::from_secs(10)).await;
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
}
