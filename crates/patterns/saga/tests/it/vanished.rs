//! Owners that vanish: of the saga they took up, or of something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mainstay_clock::Clock as _;
use mainstay_saga::definition::StepKind;
use mainstay_saga::exhaust::{Tap, TapJournal, Write};
use mainstay_saga::{Engine, Known, LocalStep, StepCx, StepError, Told, UndoError};
use mainstay_store::journal::{Append, SagaStatus, Uid};
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, Result};
use serde_json::Value;

use crate::world::{Act, ByHand, World, definition, order, step};

/// A runtime that is dropped with everything in it: a process that vanishes.
pub(crate) fn process() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

/// Each run of a node dies before or shortly after it took up anything; dropping its tokio runtime is the
/// crash: nothing is handed back.
#[test]
fn sg_x08_rapid_crashes_set_no_innocent_aside() {
    const SAGAS: usize = 20;
    const CRASHES: usize = 60;
    let world = World::on(ByHand::default());
    let definition = order();
    world.script("reserve", &[Act::Hang]);
    let handles: Vec<String> = process().block_on(async {
        let engine = world.engine(&definition).await;
        let mut ids = Vec::new();
        for i in 0..SAGAS {
            ids.push(world.start(&engine, &definition, &format!("o{i}")).await.uid().to_string());
        }
        ids
    });
    for crash in 0..CRASHES {
        process().block_on(async {
            world.clock.sleep(Duration::from_millis(1)).await;
            let _engine = world.engine(&definition).await;
            for _ in 0..crash / 15 {
                tokio::task::yield_now().await;
            }
        });
    }
    world.script("reserve", &[Act::Done]);
    process().block_on(async {
        world.clock.sleep(Duration::from_millis(1)).await;
        let engine = world.engine(&definition).await;
        for uid in handles {
            let outcome = engine.outcome(&Uid::new(uid.as_str())).await.unwrap();
            let row = world.journal.summary(&Uid::new(uid)).await.unwrap().unwrap().row;
            // Interrupted again and again may compensate; it may never need a person.
            assert!(!matches!(outcome, mainstay_saga::Outcome::NeedsAttention { .. }), "{outcome:?} {row:?}");
        }
    });
}

/// Whatever would be written of one saga stops the process.
struct Deadly {
    saga: Uid,
    on: AtomicBool,
    died: AtomicBool,
}

impl Deadly {
    fn new(saga: &Uid) -> Arc<Self> {
        Arc::new(Self { saga: saga.clone(), on: AtomicBool::new(true), died: AtomicBool::new(false) })
    }
}

impl Tap for Deadly {
    fn before_append<'a>(&'a self, append: &'a Append) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            // To set it aside writes no record.
            if self.on.load(Ordering::SeqCst) && append.saga == self.saga && !append.records.is_empty() {
                self.died.store(true, Ordering::SeqCst);
                std::future::pending::<()>().await;
            }
        })
    }
}

/// Runs a node for so long; whether it died before.
fn dies(world: &World<ByHand>, deadly: &Arc<Deadly>, within: Duration) -> bool {
    dies_on(world, deadly, within, Arc::new(Quiet))
}

/// Nothing happens around its writes.
struct Quiet;

impl Tap for Quiet {}

/// As [`dies`], on a journal behind another tap.
fn dies_on(world: &World<ByHand>, deadly: &Arc<Deadly>, within: Duration, tap: Arc<dyn Tap>) -> bool {
    deadly.died.store(false, Ordering::SeqCst);
    process().block_on(async {
        // A later run has a larger number than an earlier one.
        world.clock.sleep(Duration::from_millis(1)).await;
        let journal = TapJournal::new(Arc::clone(&world.journal), Arc::clone(deadly) as Arc<dyn Tap>);
        let journal = TapJournal::new(Arc::new(journal), tap);
        let _engine = world.engine_on(Arc::new(journal), &order()).await;
        for _ in 0..within.as_millis() / 10 {
            world.clock.sleep(Duration::from_millis(10)).await;
            if deadly.died.load(Ordering::SeqCst) {
                return true;
            }
        }
        false
    })
}

/// The sagas `ids`, each begun by a node that vanished.
fn begun(world: &World<ByHand>, ids: &[&str]) -> Vec<Uid> {
    process().block_on(async {
        let engine = world.engine(&order()).await;
        let mut uids = Vec::new();
        for id in ids {
            uids.push(world.start(&engine, &order(), id).await.uid().clone());
        }
        uids
    })
}

/// The status of a saga, and the error of its row.
fn row(world: &World<ByHand>, uid: &Uid) -> (SagaStatus, String) {
    let row = process().block_on(world.journal.summary(uid)).unwrap().unwrap().row;
    (row.status, row.error.unwrap_or_default())
}

#[test]
fn sg_x08_a_saga_that_stops_every_process_that_takes_it_up_is_set_aside_and_its_neighbor_is_not() {
    let world = World::on(ByHand::default());
    world.script("reserve", &[Act::Hang, Act::Hang, Act::Done]);
    let uids = begun(&world, &["poison", "innocent"]);
    let deadly = Deadly::new(&uids[0]);
    let deaths = (0..20).take_while(|_| dies(&world, &deadly, Duration::from_secs(5))).count();
    assert_eq!(deaths, 2 + 3, "twice among others, three times alone");
    let (status, error) = row(&world, &uids[0]);
    assert_eq!(status, SagaStatus::NeedsAttention);
    assert!(error.contains("vanished 3 times while it took up nothing else"), "{error}");
    // Interrupted again and again may compensate; it may never need a person.
    assert!(row(&world, &uids[1]).0.is_final());
}

#[test]
fn sg_x08_processes_that_die_of_something_else_set_nothing_aside() {
    for after in [Duration::ZERO, Duration::from_millis(900)] {
        let world = World::on(ByHand::default());
        world.script("reserve", &[Act::Hang, Act::Done]);
        let uid = begun(&world, &["one"]).remove(0);
        // Each claims it, is too slow to write anything, and vanishes in its first second.
        let slow = Deadly::new(&uid);
        for _ in 0..30 {
            process().block_on(async {
                world.clock.sleep(Duration::from_millis(1)).await;
                let journal = TapJournal::new(Arc::clone(&world.journal), Arc::clone(&slow) as Arc<dyn Tap>);
                let _engine = world.engine_on(Arc::new(journal), &order()).await;
                world.clock.sleep(after).await;
            });
        }
        process().block_on(async {
            world.clock.sleep(Duration::from_secs(20)).await;
            let engine = world.engine(&order()).await;
            let outcome = engine.outcome(&uid).await.unwrap();
            assert!(
                !matches!(outcome, mainstay_saga::Outcome::NeedsAttention { .. }),
                "{after:?}: {outcome:?}"
            );
        });
    }
}

#[test]
fn sg_x08_progress_makes_earlier_misfortune_forgotten() {
    let world = World::on(ByHand::default());
    world.script("reserve", &[Act::Hang, Act::Hang, Act::Done]);
    let uid = begun(&world, &["one"]).remove(0);
    let deadly = Deadly::new(&uid);
    // The second time it is left alone long enough to end.
    for (round, within) in [Duration::from_millis(1_200), Duration::from_secs(10)].into_iter().enumerate() {
        deadly.on.store(true, Ordering::SeqCst);
        for death in 0..4 {
            assert!(dies(&world, &deadly, Duration::from_secs(5)), "round {round}, death {death}");
        }
        deadly.on.store(false, Ordering::SeqCst);
        assert!(!dies(&world, &deadly, within));
        let (status, error) = row(&world, &uid);
        assert_ne!(status, SagaStatus::NeedsAttention, "{error}");
        assert_eq!(status.is_final(), round == 1, "{status:?}");
    }
}

/// A node that stops while it looks at a suspect alone: the loop that waited for the suspect to move waited for ever, and
/// kept the journal.
#[test]
fn a_node_that_stops_while_a_suspect_is_looked_at_lets_its_journal_go() {
    let world = World::on(ByHand::default());
    world.script("reserve", &[Act::Hang]);
    let uid = begun(&world, &["poison"]).remove(0);
    let deadly = Deadly::new(&uid);
    assert!((0..3).all(|_| dies(&world, &deadly, Duration::from_secs(5))));
    process().block_on(async {
        world.clock.sleep(Duration::from_millis(1)).await;
        let tap = Arc::clone(&deadly) as Arc<dyn Tap>;
        let journal = Arc::new(TapJournal::new(Arc::clone(&world.journal), tap));
        let kept = Arc::downgrade(&journal);
        let engine = world.engine_on(journal, &order()).await;
        world.clock.sleep(Duration::from_secs(5)).await;
        engine.shutdown(Duration::ZERO).await;
        drop(engine);
        world.clock.sleep(Duration::from_secs(20)).await;
        assert!(kept.upgrade().is_none());
    });
}

/// Its action, and the question what became of it, stop every process; each is counted.
#[derive(Clone, Default)]
struct Poison {
    acts: Arc<AtomicU32>,
    questions: Arc<AtomicU32>,
}

impl LocalStep for Poison {
    fn act(&self, _: StepCx, _: Value) -> BoxFuture<'_, std::result::Result<Value, StepError>> {
        self.acts.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::pending())
    }

    fn undo(&self, _: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, std::result::Result<(), UndoError>> {
        Box::pin(async { Ok(()) })
    }

    fn status(&self, _: StepCx, _: Value) -> BoxFuture<'_, Known<Value>> {
        self.questions.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::pending())
    }
}

/// A question is not on the log before it is asked, and no limit of attempts counts it: one that stops the process was asked
/// by every process there was.
#[test]
fn sg_x08_a_question_that_stops_every_process_is_asked_no_more_and_a_person_is() {
    let world = World::on(ByHand::default());
    let mut ship = step("ship", &[]);
    (ship.kind, ship.local_undo, ship.local_status) = (StepKind::Pivot, false, true);
    ship.timeout = Some(Duration::from_secs(60));
    let definition = definition(vec![ship]);
    let poison = Poison::default();
    let runs = |start: bool| {
        let calls = || poison.acts.load(Ordering::SeqCst) + poison.questions.load(Ordering::SeqCst);
        process().block_on(async {
            world.clock.sleep(Duration::from_millis(1)).await;
            let step = Arc::new(poison.clone()) as Arc<dyn LocalStep>;
            let builder = Engine::builder(Arc::clone(&world.journal), world.runtime());
            let builder = builder.definition(definition.clone(), [("ship".to_owned(), step)]);
            let engine = builder.open().await.unwrap();
            let before = calls();
            if start {
                world.start(&engine, &definition, "one").await;
            }
            for _ in 0..500 {
                world.clock.sleep(Duration::from_millis(10)).await;
                if calls() > before {
                    return true;
                }
            }
            false
        })
    };
    assert!(runs(true));
    let deaths = 1 + (0..30).take_while(|_| runs(false)).count();
    let found = process().block_on(world.journal.find("order", "one")).unwrap().unwrap();
    assert_eq!(found.row.status, SagaStatus::NeedsAttention, "after {deaths} deaths");
    let counts = (poison.acts.load(Ordering::SeqCst), poison.questions.load(Ordering::SeqCst));
    assert_eq!(counts, (3, 2), "as often as an attempt may be cut short, and then two more times");
    // What is asked about is the step: a person says what became of it.
    assert_eq!(found.row.step.as_deref(), Some("ship"));
}

/// The answer to a node's second claim is lost.
#[derive(Default)]
struct Doubtful(AtomicU32);

impl Tap for Doubtful {
    fn after(&self, write: Write) -> BoxFuture<'_, Result<()>> {
        let lost = write == Write::Claim && self.0.fetch_add(1, Ordering::SeqCst) == 1;
        let error = Error::new(ErrorKind::Unavailable, "the answer was lost").with_outcome(Outcome::Unknown);
        Box::pin(async move { if lost { Err(error) } else { Ok(()) } })
    }
}

/// A suspect that waits to be looked at alone was taken for a claim that nobody drives: it was given back, with a clean
/// record, and taken up beside all others for ever.
#[test]
fn sg_x08_a_suspect_that_waits_is_not_given_back_with_a_clean_record() {
    let world = World::on(ByHand::default());
    world.script("reserve", &[Act::Hang]);
    let uid = begun(&world, &["poison"]).remove(0);
    let deadly = Deadly::new(&uid);
    let within = Duration::from_secs(5);
    let deaths = (0..20).take_while(|_| dies_on(&world, &deadly, within, Arc::new(Doubtful::default())));
    assert_eq!(deaths.count(), 2 + 3, "twice among others, three times alone");
    assert_eq!(row(&world, &uid).0, SagaStatus::NeedsAttention);
}
