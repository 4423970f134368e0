//! Messages to a saga in memory: whoever goes away, and whatever fails, each is taken up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_saga::Outcome;
use mainstay_saga::definition::{Definition, RetryData};
use mainstay_saga::engine::{ActionRequest, Config};
use mainstay_saga::exhaust::{Tap, TapJournal, Write};
use mainstay_saga::wire::{Action, Operation, POST_ACTION};
use mainstay_store::journal::{Append, Posted, Row, SagaStatus};
use mainstay_store::{BoxFuture, Error, ErrorKind, Journal, Result};

use crate::bounds::{Looks, is_calm};
use crate::vanished::process;
use crate::world::{Act, ByHand, World, order, step};

/// Its saga waits in memory for a long while between two attempts.
fn waits_long(world: &World) -> Definition {
    let mut charge = step("charge", &[]);
    let long = Duration::from_secs(15 * 60);
    charge.retry = Some(RetryData::new(50, long, long));
    world.script("charge", &[Act::UnknownBefore]);
    let mut data = mainstay_saga::definition::DefinitionData::new("order", 1);
    data.no_deadline = true;
    data.steps = vec![charge];
    Definition::from_data(data).unwrap()
}

fn act(operation: Operation) -> ActionRequest {
    ActionRequest::new("ann", "as the runbook says", operation)
}

/// A journal that answers a post a second after it is committed, and fails at reading logs when told to.
struct Slow {
    clock: VirtualClock,
    failures: AtomicU32,
}

impl Tap for Slow {
    fn before_load(&self) -> BoxFuture<'_, Result<()>> {
        let fails =
            self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        Box::pin(
            async move { if fails { Err(Error::new(ErrorKind::Unavailable, "planted")) } else { Ok(()) } },
        )
    }

    fn after(&self, write: Write) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if write == Write::Post {
                self.clock.sleep(Duration::from_secs(1)).await;
            }
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn an_action_whose_caller_goes_away_is_taken_up_all_the_same() {
    let world = World::new();
    let slow = Slow { clock: world.clock.clone(), failures: AtomicU32::new(0) };
    let journal = TapJournal::new(Arc::clone(&world.journal), Arc::new(slow));
    let definition = waits_long(&world);
    let engine = world.engine_on(Arc::new(journal), &definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_millis(10)).await;
    // A client that hangs up: the message is committed, its answer is on the way.
    let attention = engine.attention();
    tokio::select! {
        biased;
        done = attention.act(handle.uid(), act(Operation::Pause)) => panic!("too fast: {done:?}"),
        () = world.clock.sleep(Duration::from_millis(500)) => {}
    }
    world.clock.sleep(Duration::from_secs(2)).await;
    assert!(world.journal.summary(handle.uid()).await.unwrap().unwrap().row.paused);
}

#[tokio::test(start_paused = true)]
async fn an_inbox_that_cannot_be_read_is_read_again_a_poll_later() {
    let world = World::new();
    let slow = Arc::new(Slow { clock: world.clock.clone(), failures: AtomicU32::new(0) });
    let journal = TapJournal::new(Arc::clone(&world.journal), Arc::clone(&slow) as Arc<dyn Tap>);
    let definition = waits_long(&world);
    let engine = world.engine_on(Arc::new(journal), &definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_millis(10)).await;
    slow.failures.store(3, Ordering::SeqCst);
    engine.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap();
    assert_eq!(slow.failures.load(Ordering::SeqCst), 0);
}

/// A store that cannot be read is asked once a poll, not without a rest.
#[tokio::test(start_paused = true)]
async fn a_saga_that_cannot_be_read_keeps_no_node_busy() {
    let world = World::new();
    world.script("reserve", &[Act::Hang, Act::Done]);
    let (engine, handle) = world.begin(&order()).await;
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    let slow = Arc::new(Slow { clock: world.clock.clone(), failures: AtomicU32::new(1_000) });
    let journal = TapJournal::new(Arc::clone(&world.journal), Arc::clone(&slow) as Arc<dyn Tap>);
    let engine = world.engine_on(Arc::new(journal), &order()).await;
    world.clock.sleep(Duration::from_secs(10)).await;
    let asked = 1_000 - slow.failures.swap(0, Ordering::SeqCst);
    assert!((9..=12).contains(&asked), "{asked} times in 10 s");
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
}

/// Another node posts just before the saga's last append: the journal knows of the message, and nobody is told.
struct Before {
    journal: Arc<dyn Journal>,
    posted: AtomicBool,
    /// What that append says.
    last: SagaStatus,
    /// The owner hears nothing after that append: it died.
    dies: bool,
}

impl Before {
    fn on(journal: &Arc<dyn Journal>, last: SagaStatus, dies: bool) -> TapJournal {
        let tap = Self { journal: Arc::clone(journal), posted: AtomicBool::new(false), last, dies };
        TapJournal::new(Arc::clone(journal), Arc::new(tap))
    }
}

impl Tap for Before {
    fn before_append<'a>(&'a self, append: &'a Append) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let last = append.row.status == self.last;
            if !last || self.posted.swap(true, Ordering::SeqCst) {
                return;
            }
            let action = Action {
                message: "m".to_owned(),
                who: "ann".to_owned(),
                reason: "refunded by hand".to_owned(),
                expected_seq: None,
                operation: Operation::Cancel,
            };
            let bytes = serde_json::to_vec(&action).unwrap();
            let posted = self.journal.post(&append.saga, "m", POST_ACTION, bytes).await.unwrap();
            assert_eq!(posted, Posted::Posted);
        })
    }

    fn after(&self, write: Write) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if self.dies && write == Write::Append && self.posted.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            Ok(())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_came_just_before_the_last_append_is_taken_up() {
    let world = World::new();
    let journal = Before::on(&world.journal, SagaStatus::NeedsAttention, false);
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let definition = order();
    let engine = world.engine_on(Arc::new(journal), &definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    handle.outcome().await.unwrap();
    world.clock.sleep(Duration::from_secs(5)).await;
    let audit = world.journal.audit(0, 10).await.unwrap();
    assert_eq!(audit.len(), 1, "it was looked at, and refused: the saga turns back already");
}

/// That append says that nothing is due, and the owner dies with it: the message slept until somebody sent another one.
#[test]
fn a_message_that_came_just_before_the_last_append_outlives_its_owner() {
    let world = World::on(ByHand::default());
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let audit = async || world.journal.audit(0, 10).await.unwrap().len();
    process().block_on(async {
        let journal = Before::on(&world.journal, SagaStatus::NeedsAttention, true);
        let engine = world.engine_on(Arc::new(journal), &order()).await;
        world.start(&engine, &order(), "one").await;
        world.clock.sleep(Duration::from_secs(5)).await;
        assert_eq!(audit().await, 0, "nobody looked at it");
    });
    process().block_on(async {
        world.clock.sleep(Duration::from_millis(1)).await;
        let _engine = world.engine(&order()).await;
        world.clock.sleep(Duration::from_secs(5)).await;
        assert_eq!(audit().await, 1);
    });
}

/// It came while the last step was in flight, and the saga ended with it in its inbox: nobody took it up any more, whoever
/// waited for it was told after ten seconds that it would be, each time it was sent, and no audit has it.
#[tokio::test(start_paused = true)]
async fn an_action_that_came_just_before_the_end_is_refused_at_once_and_audited() {
    for last in [SagaStatus::Completed, SagaStatus::Compensated] {
        let world = World::new();
        if last == SagaStatus::Compensated {
            world.script("ship", &[Act::Rejected]);
        }
        let journal = Before::on(&world.journal, last, false);
        let engine = world.engine_on(Arc::new(journal), &order()).await;
        let handle = world.start(&engine, &order(), "one").await;
        handle.outcome().await.unwrap();
        world.clock.sleep(Duration::from_millis(10)).await;
        assert_eq!(engine.in_flight(), 0);
        let loaded = world.journal.load(handle.uid()).await.unwrap().unwrap();
        assert!(loaded.posts.is_empty(), "{last}: {:?}", loaded.posts);
        assert_eq!((loaded.summary.row.status, loaded.summary.row.due), (last, None));
        let audit = world.journal.audit(0, 10).await.unwrap();
        assert_eq!(audit.len(), 1, "{last}");
        assert_eq!(audit[0].entry.after, format!("refused: the saga is {last} already"));
        // Who lost the answer gets it.
        let mut again = act(Operation::Cancel);
        again.message = Some("m".to_owned());
        let start = world.clock.now();
        let refused = engine.attention().act(handle.uid(), again).await.unwrap_err();
        assert_eq!(refused.kind(), mainstay_saga::ErrorKind::Conflict, "{refused}");
        assert!(refused.to_string().contains(&format!("{last} already")), "{refused}");
        assert!(world.clock.now().saturating_duration_since(start) < Duration::from_secs(1));
        assert!(matches!(
            handle.outcome().await.unwrap(),
            Outcome::Completed { .. } | Outcome::Compensated { .. }
        ));
    }
}

/// The same where its owner died with the end.
#[test]
fn an_action_that_came_just_before_the_end_is_refused_by_whoever_is_asked_next() {
    let world = World::on(ByHand::default());
    let uid = process().block_on(async {
        let journal = Before::on(&world.journal, SagaStatus::Completed, true);
        let engine = world.engine_on(Arc::new(journal), &order()).await;
        let uid = world.start(&engine, &order(), "one").await.uid().clone();
        world.clock.sleep(Duration::from_secs(5)).await;
        uid
    });
    process().block_on(async {
        world.clock.sleep(Duration::from_millis(1)).await;
        let engine = world.engine(&order()).await;
        world.clock.sleep(Duration::from_secs(5)).await;
        let mut again = act(Operation::Cancel);
        again.message = Some("m".to_owned());
        let refused = engine.attention().act(&uid, again).await.unwrap_err();
        assert!(refused.to_string().contains("completed already"), "{refused}");
    });
}

/// Its owner hears nothing of a message that another node takes: it waited in memory, for up to the longest wait of a step.
#[tokio::test(start_paused = true)]
async fn a_message_that_reaches_another_node_is_taken_up_within_a_poll_or_two() {
    let world = World::new();
    let definition = waits_long(&world);
    let (_owner, handle) = world.begin(&definition).await;
    world.clock.sleep(Duration::from_secs(2)).await;
    let mut config = Config::default();
    config.node = "other".to_owned();
    let other = world.engine_with(&definition, config).await;
    let start = world.clock.now();
    other.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap();
    assert!(world.clock.now().saturating_duration_since(start) <= Duration::from_secs(2));
    assert!(world.journal.summary(handle.uid()).await.unwrap().unwrap().row.paused);
}

/// What waits for a quarter of an hour takes no place in memory from what could move, and goes on in time.
#[tokio::test(start_paused = true)]
async fn a_saga_that_waits_long_takes_no_place_in_memory() {
    let world = World::new();
    let definition = waits_long(&world);
    let mut config = Config::default();
    config.max_in_flight = std::num::NonZeroUsize::MIN;
    let engine = world.engine_with(&definition, config).await;
    let first = world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(engine.in_flight(), 0);
    world.script("charge", &[Act::Done]);
    let second = world.start(&engine, &definition, "two").await;
    assert!(matches!(second.outcome().await.unwrap(), Outcome::Completed { .. }));
    let start = world.clock.now();
    assert!(matches!(first.outcome().await.unwrap(), Outcome::Completed { .. }));
    assert!(world.clock.now().saturating_duration_since(start) <= Duration::from_secs(15 * 60));
}

/// The calendar of the machine is set forward by an hour, and the store follows: by it every saga that waited out of
/// memory was due, by its node's time none was, and the node took it up and gave it back without a rest.
#[tokio::test(start_paused = true)]
async fn sg_f22_a_calendar_that_is_set_forward_keeps_no_node_busy_and_hurries_nothing() {
    let world = World::new();
    let definition = waits_long(&world);
    let (looks, journal) = Looks::on(&world);
    let engine = world.engine_on(journal, &definition).await;
    let first = world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(engine.in_flight(), 0);
    let row = async |uid| world.journal.summary(uid).await.unwrap().unwrap().row;
    let wait = |row: &Row| row.due.unwrap().saturating_duration_since(world.clock.wall());
    let left = wait(&row(first.uid()).await);
    assert!(left > Duration::from_secs(200), "{left:?}");
    world.clock.jump_wall(3_600_000);
    looks.take();
    let jumped = world.clock.now();
    world.clock.sleep(Duration::from_secs(100)).await;
    is_calm(&looks, 100);
    assert_eq!(world.calls().len(), 1, "nothing is tried early");
    // One that begins to wait now is due by the store's calendar when it is by the node's.
    let second = world.start(&engine, &definition, "two").await;
    world.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!((world.calls().len(), engine.in_flight()), (2, 0));
    let there = world.journal.summary(second.uid()).await.unwrap().unwrap();
    assert_eq!(there.epoch, 1, "it was not taken up in vain");
    assert!(wait(&there.row) > Duration::from_secs(10), "{there:?}");
    world.script("charge", &[Act::Done]);
    assert!(matches!(first.outcome().await.unwrap(), Outcome::Completed { .. }));
    let took = world.clock.now().saturating_duration_since(jumped);
    assert!(left <= took && took <= left + Duration::from_secs(5), "{took:?} of {left:?}");
}
