//! Sagas that are set aside: what a person may do to one that nobody can drive.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_clock::Clock as _;
use mainstay_saga::definition::{Definition, DefinitionData};
use mainstay_saga::engine::ActionRequest;
use mainstay_saga::seal::{Place, Seal, SealedJournal};
use mainstay_saga::wire::{Closed, Fact, Operation, decode};
use mainstay_saga::{Engine, ErrorKind, Handle, Outcome};
use mainstay_store::journal::{Append, Appended, ClaimRequest, Claimant, Row, SagaStatus, StoredAudit, Uid};
use mainstay_store::{Error, ErrorKind as StoreErrorKind, Result};

use crate::world::{Act, World, order, step};

fn act(operation: Operation) -> ActionRequest {
    ActionRequest::new("ann", "the ledger shows nothing", operation)
}

fn other() -> Definition {
    let mut other = DefinitionData::new("other", 1);
    other.no_deadline = true;
    other.steps = vec![step("x", &[])];
    Definition::from_data(other).unwrap()
}

/// A saga whose first step is in flight, left by its node.
async fn left(world: &World) -> Handle {
    world.script("reserve", &[Act::Hang]);
    let (engine, handle) = world.begin(&order()).await;
    world.clock.sleep(Duration::from_millis(10)).await;
    engine.shutdown(Duration::ZERO).await;
    handle
}

async fn row(world: &World, uid: &Uid) -> Row {
    world.journal.summary(uid).await.unwrap().unwrap().row
}

async fn audit(world: &World) -> Vec<StoredAudit> {
    world.journal.audit(0, 100).await.unwrap()
}

async fn waits(engine: &Engine, uid: &Uid) {
    assert_eq!(engine.outcome(uid).await.unwrap(), Outcome::NeedsAttention { steps: Vec::new() });
}

/// An action waited in the inbox until somebody deployed the definition, and its caller was told nothing for ten seconds.
#[tokio::test(start_paused = true)]
async fn a_saga_without_its_definition_answers_a_person_at_once() {
    let world = World::new();
    let uid = left(&world).await.uid().clone();
    let without = world.engine(&other()).await;
    waits(&without, &uid).await;
    let start = world.clock.now();
    let attention = without.attention();
    for operation in [Operation::TakeUp, Operation::Cancel, Operation::Pause] {
        let name = operation.name();
        let refused = attention.act(&uid, act(operation)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
        let text = refused.to_string();
        assert!(text.contains(name) && text.contains("set aside") && text.contains("version 1"), "{text}");
    }
    let stale = attention.act(&uid, act(Operation::Abandon).expecting(99)).await.unwrap_err();
    assert!(stale.to_string().contains("changed since"), "{stale}");
    assert!(world.clock.now().saturating_duration_since(start) < Duration::from_secs(5));
    assert!(world.journal.inbox(&uid).await.unwrap().is_empty(), "nothing lies there to act in a year");
    assert_eq!(row(&world, &uid).await.status, SagaStatus::NeedsAttention);

    let seen = world.journal.summary(&uid).await.unwrap().unwrap().next_seq;
    let mut abandon = act(Operation::Abandon).expecting(seen);
    abandon.message = Some("m".to_owned());
    attention.act(&uid, abandon.clone()).await.unwrap();
    attention.act(&uid, abandon).await.unwrap();
    let late = attention.act(&uid, act(Operation::TakeUp)).await.unwrap_err();
    assert!(late.to_string().contains("abandoned already"), "{late}");
    assert_eq!(without.outcome(&uid).await.unwrap(), Outcome::Abandoned { remaining: Vec::new() });

    let lines = audit(&world).await;
    let (last, refused) = lines.split_last().unwrap();
    assert_eq!((refused.len(), last.entry.action.as_str(), last.entry.who.as_str()), (4, "abandon", "ann"));
    assert_eq!(
        (last.entry.reason.as_str(), last.entry.before.as_str()),
        ("the ledger shows nothing", "needs_attention")
    );
    assert!(last.entry.after.starts_with("abandoned, which was set aside: parked"), "{last:?}");
    assert!(refused.iter().all(|l| l.entry.after.starts_with("refused")), "{refused:?}");
    without.shutdown(Duration::ZERO).await;

    // Whoever knows the definition reads what happened, and what may have been left behind.
    let with = world.engine(&order()).await;
    world.clock.sleep(Duration::from_secs(5)).await;
    let remaining = vec!["reserve".to_owned()];
    assert_eq!(with.outcome(&uid).await.unwrap(), Outcome::Abandoned { remaining });
    assert_eq!(world.calls(), ["reserve"], "nothing is called any more");
    let loaded = world.journal.load(&uid).await.unwrap().unwrap();
    let Ok(Fact::Closed(Closed { who, why, .. })) = decode(loaded.records.last().unwrap()) else {
        panic!("the log does not say how it ended")
    };
    assert!(who == "ann" && why.contains("definition `order`"), "{who} {why}");
}

/// Stands for a log that is damaged: nothing of it can be read, and its row and inbox can.
#[derive(Debug, Default)]
struct Damage(AtomicBool);

impl Seal for Damage {
    fn seal(&self, _: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>> {
        Ok(plain.to_vec())
    }

    fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>> {
        match place {
            Place::Record { .. } if self.0.load(Ordering::SeqCst) => {
                Err(Error::new(StoreErrorKind::Corrupt, "log row 7 fails its checksum"))
            }
            _ => Ok(sealed.to_vec()),
        }
    }
}

impl Damage {
    /// A node that reads the world's journal through it.
    async fn engine(self: &Arc<Self>, world: &World) -> Engine {
        let journal = SealedJournal::new(Arc::clone(&world.journal), Arc::clone(self) as Arc<dyn Seal>);
        world.engine_on(Arc::new(journal), &order()).await
    }

    /// A saga that was left with its first step in flight, and whose log is damaged since.
    async fn left(self: &Arc<Self>, world: &World) -> Uid {
        world.script("reserve", &[Act::Hang]);
        let engine = self.engine(world).await;
        let uid = world.start(&engine, &order(), "one").await.uid().clone();
        world.clock.sleep(Duration::from_millis(10)).await;
        engine.shutdown(Duration::ZERO).await;
        self.0.store(true, Ordering::SeqCst);
        uid
    }
}

#[tokio::test(start_paused = true)]
async fn a_saga_whose_log_is_damaged_is_closed_without_a_touch_of_its_log() {
    let (world, damage) = (World::new(), Arc::new(Damage::default()));
    let uid = damage.left(&world).await;
    let before = world.journal.load(&uid).await.unwrap().unwrap().records;
    let engine = damage.engine(&world).await;
    waits(&engine, &uid).await;
    let refused = engine.attention().act(&uid, act(Operation::TakeUp)).await.unwrap_err();
    assert!(refused.to_string().contains("fails its checksum"), "{refused}");
    let mut abandon = act(Operation::Abandon);
    abandon.message = Some("m".to_owned());
    engine.attention().act(&uid, abandon.clone()).await.unwrap();
    engine.attention().act(&uid, abandon).await.unwrap();
    assert_eq!(engine.outcome(&uid).await.unwrap(), Outcome::Abandoned { remaining: Vec::new() });
    let row = row(&world, &uid).await;
    assert!(row.status == SagaStatus::Abandoned && row.error.unwrap().contains("checksum"));
    assert_eq!(
        world.journal.load(&uid).await.unwrap().unwrap().records,
        before,
        "what is left of it is evidence"
    );
    let lines = audit(&world).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[1].entry.who == "ann" && lines[1].entry.after.starts_with("abandoned"), "{lines:?}");
    world.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!(world.calls(), ["reserve"]);
}

#[tokio::test(start_paused = true)]
async fn a_saga_whose_log_was_mended_goes_on_when_a_person_says_so() {
    let (world, damage) = (World::new(), Arc::new(Damage::default()));
    let uid = damage.left(&world).await;
    let engine = damage.engine(&world).await;
    waits(&engine, &uid).await;
    damage.0.store(false, Ordering::SeqCst);
    world.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(row(&world, &uid).await.status, SagaStatus::NeedsAttention, "nobody looks by itself");
    world.script("reserve", &[Act::Done]);
    engine.attention().act(&uid, act(Operation::TakeUp)).await.unwrap();
    let outcome = engine.outcome(&uid).await.unwrap();
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
    assert_eq!(audit(&world).await.len(), 1);
    // There is nothing to take up in one that runs, or waits at a step.
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let stuck = world.start(&engine, &order(), "two").await;
    assert!(matches!(stuck.outcome().await.unwrap(), Outcome::NeedsAttention { .. }));
    let refused = engine.attention().act(stuck.uid(), act(Operation::TakeUp)).await.unwrap_err();
    assert!(refused.to_string().contains("name the step"), "{refused}");
}

/// A step of it asked for a person before it was set aside as a whole: that it be read anew was refused, though it
/// had been.
#[tokio::test(start_paused = true)]
async fn a_saga_with_an_open_question_that_was_set_aside_is_taken_up_again() {
    let (world, damage) = (World::new(), Arc::new(Damage::default()));
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let engine = damage.engine(&world).await;
    let handle = world.start(&engine, &order(), "one").await;
    let needs = Outcome::NeedsAttention { steps: vec!["charge".to_owned()] };
    assert_eq!(handle.outcome().await.unwrap(), needs);
    let uid = handle.uid();
    damage.0.store(true, Ordering::SeqCst);
    let refused = engine.attention().act(uid, act(Operation::Pause)).await.unwrap_err();
    assert!(refused.to_string().contains("set aside"), "{refused}");
    damage.0.store(false, Ordering::SeqCst);
    engine.attention().act(uid, act(Operation::TakeUp)).await.unwrap();
    assert_eq!(engine.outcome(uid).await.unwrap(), needs, "as before");
    assert_eq!(row(&world, uid).await.error.as_deref(), Some("undo no"));
    // Once.
    let again = engine.attention().act(uid, act(Operation::TakeUp)).await.unwrap_err();
    assert!(again.to_string().contains("name the step"), "{again}");
}

/// Sets a saga that nobody holds aside as a whole, as a node does with one whose owners vanish.
async fn set_aside(world: &World, uid: &Uid) -> u64 {
    let claimant = Claimant { node: "n".to_owned(), incarnation: 1, ttl: Duration::from_secs(1) };
    let claimed = world.journal.claim(ClaimRequest { claimant, limit: 1 }).await.unwrap();
    let summary = world.journal.summary(uid).await.unwrap().unwrap();
    let error = Some("its owner vanished 3 times".to_owned());
    let row = Row { status: SagaStatus::NeedsAttention, due: None, error, ..summary.row };
    let append = Append::new(uid.clone(), claimed[0].epoch, summary.next_seq, Vec::new(), row);
    assert!(matches!(world.journal.append(append).await.unwrap(), Appended::Appended { .. }));
    world.journal.hand_back("n", 1, std::slice::from_ref(uid)).await.unwrap();
    summary.next_seq
}

/// It was refused: no step of it asked for a person.
#[tokio::test(start_paused = true)]
async fn a_saga_that_was_set_aside_as_a_whole_can_be_given_up() {
    let world = World::new();
    let uid = left(&world).await.uid().clone();
    let seen = set_aside(&world, &uid).await;
    let engine = world.engine(&order()).await;
    // Her click and his: one counts.
    let (a, b) = (act(Operation::Abandon).expecting(seen), act(Operation::Abandon).expecting(seen));
    let attention = engine.attention();
    let (first, second) = tokio::join!(attention.act(&uid, a), attention.act(&uid, b));
    assert_eq!(first.is_ok(), second.is_err(), "{first:?} {second:?}");
    let remaining = vec!["reserve".to_owned()];
    assert_eq!(engine.outcome(&uid).await.unwrap(), Outcome::Abandoned { remaining });
    let loaded = world.journal.load(&uid).await.unwrap().unwrap();
    let closes = loaded
        .records
        .iter()
        .filter(|r| matches!(decode(r), Ok(Fact::Closed(c)) if c.why.contains("vanished")));
    assert_eq!(closes.count(), 1);
    assert_eq!(world.calls(), ["reserve"]);
}

#[tokio::test(start_paused = true)]
async fn a_saga_that_was_set_aside_as_a_whole_is_taken_up_by_who_saw_it_so() {
    let world = World::new();
    let uid = left(&world).await.uid().clone();
    let seen = set_aside(&world, &uid).await;
    let engine = world.engine(&order()).await;
    world.script("reserve", &[Act::Done]);
    // What the crash cut short is noted as it is taken up, and moves the version that she saw.
    engine.attention().act(&uid, act(Operation::TakeUp).expecting(seen)).await.unwrap();
    assert!(matches!(engine.outcome(&uid).await.unwrap(), Outcome::Completed { .. }));
}
