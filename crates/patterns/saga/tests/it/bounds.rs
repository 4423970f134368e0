//! What must not go on for ever: looks for due sagas, attempts, records.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_saga::definition::{Definition, RetryData, StepData, StepKind};
use mainstay_saga::engine::{ActionRequest, StartOptions};
use mainstay_saga::exhaust::{Tap, TapJournal, Write};
use mainstay_saga::wire::{
    AttemptRef, Completed, Fact, Note, Operation, UndoVerdict, Verdict, decode, encode,
};
use mainstay_saga::{Engine, ErrorKind, Handle, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay_store::journal::{Append, Appended, MAX_RECORDS, Row, SagaStatus, StoredAudit};
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

/// A node that looks once a poll, and now and then because it was told to; one that was held looks no more.
#[track_caller]
pub(crate) fn is_calm(looks: &Looks, seconds: u32) {
    let seen = looks.take();
    let calm = seconds - seconds / 10..=seconds + seconds / 10 + 10;
    assert!(calm.contains(&seen), "{seen} looks in {seconds} s");
}

fn after_pivot(name: &str, after: &[&str], kind: StepKind) -> StepData {
    let mut step = step(name, after);
    step.kind = kind;
    step.local_undo = false;
    step
}

/// reserve -> ship (the pivot) -> email (retriable).
pub(crate) fn shipped() -> Definition {
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

/// Late behind the pivot the saga goes on, and a person says that they know, once.
#[tokio::test(start_paused = true)]
async fn an_overdue_saga_is_acknowledged_once_and_goes_on() {
    let world = World::new();
    world.script("email", &[Act::NotSent]);
    let engine = world.engine(&shipped()).await;
    let handle = world.start(&engine, &shipped(), "one").await;
    let attention = engine.attention();
    let acknowledge = || attention.act(handle.uid(), act(Operation::Acknowledge));
    world.clock.sleep(Duration::from_secs(1)).await;
    let early = acknowledge().await.unwrap_err();
    assert!(early.kind() == ErrorKind::Conflict && early.to_string().contains("not overdue"), "{early}");
    world.clock.sleep(Duration::from_secs(60)).await;
    assert!(facts(&world, &handle).await.iter().any(|f| matches!(f, Fact::Overdue(_))));
    assert!(row(&world, &handle).await.overdue, "whoever lists what waits for a person finds it");
    acknowledge().await.unwrap();
    assert!(!row(&world, &handle).await.overdue);
    let twice = acknowledge().await.unwrap_err();
    assert!(twice.kind() == ErrorKind::Conflict && twice.to_string().contains("seen it already"), "{twice}");
    let audit = world.journal.audit(0, 100).await.unwrap();
    // What was refused stands there too.
    let taken = |l: &&StoredAudit| l.entry.action == "acknowledge" && !l.entry.after.starts_with("refused");
    let lines: Vec<_> = audit.iter().filter(taken).collect();
    assert_eq!(lines.len(), 1, "{audit:?}");
    assert_eq!((lines[0].entry.who.as_str(), &lines[0].entry.after), ("ann", &lines[0].entry.before));
    world.script("email", &[Act::Done]);
    world.clock.sleep(Duration::from_secs(3_600)).await;
    let outcome = handle.outcome().await.unwrap();
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
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

/// An order that waits for a person, on a node whose looks are counted.
async fn stuck() -> (World, Arc<Looks>, Engine, Handle) {
    let world = World::new();
    let definition = order();
    let (looks, journal) = Looks::on(&world);
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoRefused]);
    let engine = world.engine_on(journal, &definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    handle.outcome().await.unwrap();
    world.clock.sleep(Duration::from_secs(1)).await;
    (world, looks, engine, handle)
}

/// A row that says "due" of a saga with nothing to do, whatever wrote it, is put right by who takes the saga up.
#[tokio::test(start_paused = true)]
async fn a_row_that_is_due_for_nothing_is_put_right() {
    let (world, looks, _engine, handle) = stuck().await;
    let there = world.journal.summary(handle.uid()).await.unwrap().unwrap();
    let wrong = Row { due: Some(world.clock.wall()), ..there.row.clone() };
    let append = Append::new(handle.uid().clone(), there.epoch, there.next_seq, Vec::new(), wrong);
    assert!(matches!(world.journal.append(append).await.unwrap(), Appended::Appended { .. }));
    looks.take();
    world.clock.sleep(Duration::from_secs(100)).await;
    is_calm(&looks, 100);
    assert_eq!(row(&world, &handle).await, there.row);
}

/// Rows of before they knew of "overdue" do not say it, and what is paused writes none: a journal that makes it due once has
/// its row put right.
#[tokio::test(start_paused = true)]
async fn a_paused_saga_whose_row_does_not_say_that_it_is_overdue_says_so_when_it_is_taken_up() {
    let mut email = after_pivot("email", &["ship"], StepKind::Retriable);
    email.retry = Some(RetryData::new(3, Duration::from_secs(5), Duration::from_secs(5)));
    let ship = after_pivot("ship", &["reserve"], StepKind::Pivot);
    let definition = definition(vec![step("reserve", &[]), ship, email]);
    let world = World::new();
    world.script("email", &[Act::NotSent]);
    let engine = world.engine(&definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_secs(4)).await;
    engine.attention().act(handle.uid(), act(Operation::Pause)).await.unwrap();
    world.clock.sleep(Duration::from_secs(60)).await;
    engine.shutdown(Duration::ZERO).await;
    let there = world.journal.summary(handle.uid()).await.unwrap().unwrap();
    assert!(there.row.overdue && there.row.due.is_none() && there.row.status == SagaStatus::Running);
    let old = Row { overdue: false, due: Some(world.clock.wall()), ..there.row.clone() };
    let append = Append::new(handle.uid().clone(), there.epoch, there.next_seq, Vec::new(), old);
    assert!(matches!(world.journal.append(append).await.unwrap(), Appended::Appended { .. }));
    let _engine = world.engine(&definition).await;
    world.clock.sleep(Duration::from_secs(10)).await;
    assert_eq!(row(&world, &handle).await, there.row);
}

/// Fills the log of a saga that nobody has in memory up to `seq` records.
async fn fill(world: &World, handle: &Handle, seq: u64) {
    let there = world.journal.summary(handle.uid()).await.unwrap().unwrap();
    let note = encode(&Fact::Note(Note { text: "filled by hand".to_owned() }));
    let missing = usize::try_from(seq + 1 - there.next_seq).unwrap();
    let records = vec![note; missing];
    let append = Append::new(handle.uid().clone(), there.epoch, there.next_seq, records, there.row);
    assert!(matches!(world.journal.append(append).await.unwrap(), Appended::Appended { .. }));
}

fn resolved(step: &str) -> ActionRequest {
    act(Operation::ResolveUndone { step: step.to_owned() })
}

/// A log that takes no more records sets the saga aside, with the reason on its row, and answers who asked.
#[tokio::test(start_paused = true)]
async fn a_full_log_sets_its_saga_aside_and_keeps_no_node_busy() {
    let (world, looks, engine, handle) = stuck().await;
    fill(&world, &handle, MAX_RECORDS).await;
    let start = world.clock.now();
    let refused = engine.attention().act(handle.uid(), resolved("charge")).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    assert!(world.clock.now().saturating_duration_since(start) < Duration::from_secs(1), "at once");
    looks.take();
    world.clock.sleep(Duration::from_secs(100)).await;
    is_calm(&looks, 100);
    let row = row(&world, &handle).await;
    assert_eq!(row.status, SagaStatus::NeedsAttention);
    assert!(row.error.as_deref().unwrap_or_default().contains("10000 records"), "{row:?}");
    let audit = world.journal.audit(0, 10).await.unwrap();
    assert!(audit.len() == 1 && audit[0].entry.after.contains("refused"), "{audit:?}");
}

/// Half of a log is for what nodes repeat; the rest is for the way back and for people.
#[tokio::test(start_paused = true)]
async fn from_half_of_its_log_on_a_saga_repeats_nothing_by_itself_and_people_can_still_end_it() {
    // Forward: a step that is spent turns the saga back, and one undo each is made.
    let world = World::new();
    let mut charge = step("charge", &["reserve"]);
    charge.retry = Some(RetryData::new(1_000, Duration::from_secs(100), Duration::from_secs(100)));
    let patient = definition(vec![step("reserve", &[]), charge]);
    world.script("charge", &[Act::UnknownBefore]);
    world.script("undo charge", &[Act::UndoFails]);
    let (engine, handle) = world.begin(&patient).await;
    world.clock.sleep(Duration::from_millis(1)).await;
    engine.shutdown(Duration::ZERO).await;
    fill(&world, &handle, MAX_RECORDS / 2).await;
    let engine = world.engine(&patient).await;
    world.clock.sleep(Duration::from_secs(3_600)).await;
    let steps = vec!["charge".to_owned()];
    assert_eq!(engine.outcome(handle.uid()).await.unwrap(), Outcome::NeedsAttention { steps });
    assert_eq!(world.calls().iter().filter(|c| c.starts_with("undo charge")).count(), 1);
    assert_eq!(row(&world, &handle).await.due, None);
    engine.attention().act(handle.uid(), resolved("charge")).await.unwrap();
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Compensated { .. }));

    // After the pivot it waits for a person, who can end it nearly until the last record.
    let (world, definition) = (World::new(), shipped());
    world.script("email", &[Act::NotSent]);
    let (engine, handle) = world.begin(&definition).await;
    handle.outcome().await.unwrap();
    engine.shutdown(Duration::ZERO).await;
    fill(&world, &handle, MAX_RECORDS / 2).await;
    let engine = world.engine(&definition).await;
    world.clock.sleep(Duration::from_secs(10_000)).await;
    let calls = world.calls().len();
    world.clock.sleep(Duration::from_secs(10_000)).await;
    assert_eq!(world.calls().len(), calls, "nothing more by itself");
    fill(&world, &handle, MAX_RECORDS - 10).await;
    let retry = act(Operation::Retry { step: "email".to_owned(), input: None });
    let refused = engine.attention().act(handle.uid(), retry).await.unwrap_err();
    assert!(refused.to_string().contains("log"), "{refused}");
    let done = Operation::ResolveDone { step: "email".to_owned(), output: Value::Null };
    engine.attention().act(handle.uid(), act(done)).await.unwrap();
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Completed { .. }));
}

/// An outage behind the pivot costs a few records an hour, however quick the step's own retries are.
#[tokio::test(start_paused = true)]
async fn a_long_outage_after_the_pivot_costs_few_records() {
    let world = World::new();
    let definition = shipped();
    let (_looks, journal) = Looks::on(&world);
    world.script("email", &[Act::NotSent]);
    let engine = world.engine_on(journal, &definition).await;
    let handle = world.start(&engine, &definition, "one").await;
    world.clock.sleep(Duration::from_secs(24 * 3_600)).await;
    let before = facts(&world, &handle).await.len();
    assert!(before < 300, "{before} records in a day");
    // And it heals by itself.
    world.script("email", &[Act::Done]);
    world.clock.sleep(Duration::from_secs(15 * 60 + 1)).await;
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
}

/// Whoever may act, but acts in vain, leaves an answer and a line of the audit each time, and the log as good as it
/// was.
#[tokio::test(start_paused = true)]
async fn a_thousand_refusals_do_not_fill_a_log() {
    let world = World::new();
    let (engine, handle) = world.stuck(&order()).await;
    let before = facts(&world, &handle).await.len();
    let vain = |n: u32| {
        let mut skip = act(Operation::Skip { step: "reserve".to_owned() });
        skip.message = Some(format!("m{n}"));
        skip
    };
    for n in 0..1_000 {
        let refused = engine.attention().act(handle.uid(), vain(n)).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        let at = AttemptRef { step: "charge".to_owned(), attempt: 100 + n, generation: 1 };
        let undone = Completed::Undo(UndoVerdict::Undone);
        let late = engine.complete(handle.uid(), at, undone).await.unwrap_err();
        assert_eq!(late.kind(), ErrorKind::Conflict);
    }
    let refusals = facts(&world, &handle).await.len() - before;
    assert!((100..=500).contains(&refusals), "{refusals} records");
    assert_eq!(world.journal.audit(990, 100).await.unwrap().len(), 10, "each is audited");
    // One that is repeated gets its answer again, also when the log did not keep it.
    let start = world.clock.now();
    for n in [0, 999] {
        let again = engine.attention().act(handle.uid(), vain(n)).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict, "{again}");
    }
    assert!(world.clock.now().saturating_duration_since(start) < Duration::from_secs(1));
    engine.attention().act(handle.uid(), resolved("charge")).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
}

/// A node that dies with whatever it was doing, `within` so much time. Nothing is handed back.
fn vanishes(world: &World<ByHand>, definition: &Definition, within: Duration) {
    process().block_on(async {
        // A later run has a larger number than an earlier one.
        world.clock.sleep(Duration::from_millis(1)).await;
        let _engine = world.engine(definition).await;
        for _ in 0..within.as_millis() / 10 {
            world.clock.sleep(Duration::from_millis(10)).await;
        }
    });
}

/// A saga that was begun by a node that vanished.
fn begun(world: &World<ByHand>, definition: &Definition) -> mainstay_store::journal::Uid {
    process().block_on(async {
        let engine = world.engine(definition).await;
        world.start(&engine, definition, "one").await.uid().clone()
    })
}

/// An undo, which may fail three times here, or a step after the pivot, that ends every process that begins it: what is
/// cut short has a limit, and then a person decides when it is begun again.
#[test]
fn sg_x08_what_cuts_every_process_short_is_tried_three_times_and_then_needs_a_person() {
    for (definition, script, poison) in [
        (order(), ("ship", Act::Rejected), ("undo charge", Act::UndoHangs)),
        (shipped(), ("ship", Act::Done), ("email", Act::Hang)),
    ] {
        let world = World::on(ByHand::default());
        world.script(script.0, &[script.1]);
        world.script(poison.0, &[poison.1]);
        let uid = begun(&world, &definition);
        // Shorter than any attempt may last.
        (0..10).for_each(|_| vanishes(&world, &definition, Duration::from_millis(450)));
        let called = || world.calls().iter().filter(|c| c.starts_with(poison.0)).count();
        assert_eq!(called(), 3, "{:?}", world.calls());
        let status = || process().block_on(world.journal.summary(&uid)).unwrap().unwrap().row.status;
        assert_eq!(status(), SagaStatus::NeedsAttention);
        vanishes(&world, &definition, Duration::from_secs(3_600));
        assert_eq!(called(), 3, "not by itself");
        // A person says when.
        world.script(poison.0, &[Act::Done]);
        process().block_on(async {
            world.clock.sleep(Duration::from_millis(1)).await;
            let engine = world.engine(&definition).await;
            let step = poison.0.trim_start_matches("undo ").to_owned();
            engine.attention().act(&uid, act(Operation::Retry { step, input: None })).await.unwrap();
            let outcome = engine.outcome(&uid).await.unwrap();
            assert!(!matches!(outcome, Outcome::NeedsAttention { .. }), "{outcome:?}");
        });
        assert_eq!(called(), 4);
    }
}

/// An undo that was cut short waits before it is made again, like one that failed.
#[tokio::test(start_paused = true)]
async fn an_undo_that_was_cut_short_is_not_repeated_at_once() {
    let world = World::new();
    let mut charge = step("charge", &["reserve"]);
    charge.undo_retry = Some(RetryData::new(3, Duration::from_secs(100), Duration::from_secs(100)));
    let definition = definition(vec![step("reserve", &[]), charge, step("ship", &["charge"])]);
    world.script("ship", &[Act::Rejected]);
    world.script("undo charge", &[Act::UndoHangs, Act::Done]);
    let (engine, handle) = world.begin(&definition).await;
    world.clock.sleep(Duration::from_millis(100)).await;
    engine.shutdown(Duration::ZERO).await;
    let undone = || world.calls().iter().filter(|c| c.starts_with("undo charge")).count();
    assert_eq!(undone(), 1);
    let engine = world.engine(&definition).await;
    world.clock.sleep(Duration::from_millis(500)).await;
    assert_eq!(undone(), 1);
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Compensated { .. }));
    assert_eq!(undone(), 2);
}

/// Answers when it is let go.
struct Gated(Arc<Notify>);

impl LocalStep for Gated {
    fn act(&self, _: StepCx, _: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async move {
            self.0.notified().await;
            Ok(json!({}))
        })
    }

    fn undo(&self, _: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async { Ok(()) })
    }
}

/// A cancel that came while the pivot was in flight, and too late: what follows the pivot is repeated as always. It
/// failed "for good", which the rules do not know after a pivot, and nobody was left to repeat it.
#[tokio::test(start_paused = true)]
async fn a_cancel_that_came_too_late_does_not_end_the_retries_after_the_pivot() {
    for fails in [Act::NotSent, Act::Rejected, Act::RejectedForGood] {
        let world = World::new();
        let definition = shipped();
        world.script("email", &[fails, fails, Act::Done]);
        let gate = Arc::new(Notify::new());
        let ship = Arc::new(Gated(Arc::clone(&gate))) as Arc<dyn LocalStep>;
        let steps = ["reserve", "email"].map(|name| (name.to_owned(), world.step(name)));
        let engine = Engine::builder(Arc::clone(&world.journal), world.runtime())
            .definition(definition.clone(), steps.into_iter().chain([("ship".to_owned(), ship)]))
            .open()
            .await
            .unwrap();
        let handle = world.start(&engine, &definition, "one").await;
        world.clock.sleep(Duration::from_millis(100)).await;
        engine.attention().act(handle.uid(), act(Operation::Cancel)).await.unwrap();
        gate.notify_one();
        let start = world.clock.now();
        assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }), "{fails:?}");
        assert!(world.clock.now().saturating_duration_since(start) < Duration::from_secs(1), "{fails:?}");
        let facts = facts(&world, &handle).await;
        assert!(!facts.iter().any(|f| matches!(f, Fact::Note(_))), "{facts:?}");
        assert_eq!(world.calls(), ["reserve", "email", "email", "email"]);
    }
}

/// An array in an array, so often.
pub(crate) fn nested(levels: usize) -> Value {
    (1..levels).fold(json!([]), |inner, _| Value::Array(vec![inner]))
}

/// Answers with what it was made with.
struct Says(Value);

impl LocalStep for Says {
    fn act(&self, _: StepCx, _: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async { Ok(self.0.clone()) })
    }

    fn undo(&self, _: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async { Ok(()) })
    }
}

/// What is nested deeper than a log can be read back was written all the same: the first restart set the saga aside, and
/// what it had done was never undone.
#[tokio::test(start_paused = true)]
async fn what_is_nested_deeper_than_a_log_can_be_read_is_never_written() {
    let run = async |levels: usize| {
        let world = World::new();
        let definition = definition(vec![step("reserve", &[])]);
        let reserve = Arc::new(Says(nested(levels))) as Arc<dyn LocalStep>;
        let engine = Engine::builder(Arc::clone(&world.journal), world.runtime())
            .definition(definition.clone(), [("reserve".to_owned(), reserve)])
            .open()
            .await
            .unwrap();
        let handle = world.start(&engine, &definition, "one").await;
        let outcome = handle.outcome().await.unwrap();
        // Each record can be read.
        facts(&world, &handle).await;
        outcome
    };
    let outcome = run(100).await;
    assert!(matches!(outcome, Outcome::Completed { .. }), "{outcome:?}");
    for levels in [101, 126, 1_000] {
        let outcome = run(levels).await;
        assert!(matches!(outcome, Outcome::Compensated { .. }), "{levels}: {outcome:?}");
    }
    let world = World::new();
    let engine = world.engine(&order()).await;
    let refused = engine.start("order", nested(101), StartOptions::id("one")).await.unwrap_err();
    assert!(refused.kind() == ErrorKind::TooLarge && refused.to_string().contains("nested"), "{refused}");
    let (world, _, engine, handle) = stuck().await;
    let retry = Operation::Retry { step: "charge".to_owned(), input: Some(nested(101)) };
    let refused = engine.attention().act(handle.uid(), act(retry)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
    let at = AttemptRef { step: "charge".to_owned(), attempt: 1, generation: 1 };
    let done = Completed::Action(Verdict::Done { output: Some(nested(101)) });
    let refused = engine.complete(handle.uid(), at, done).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
    assert!(world.journal.load(handle.uid()).await.unwrap().unwrap().posts.is_empty());
}
