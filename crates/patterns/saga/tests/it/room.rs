//! A log is limited in records and in bytes: what ends its saga has room in both.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_saga::definition::{Definition, RetryData};
use mainstay_saga::engine::ActionRequest;
use mainstay_saga::wire::{Action, Fact, Note, Operation, POST_ACTION, encode};
use mainstay_saga::{Engine, ErrorKind, Handle, LocalStep, Outcome, StepCx, StepError, Told, UndoError};
use mainstay_store::BoxFuture;
use mainstay_store::journal::{Append, Appended, MAX_LOG_BYTES, Posted};
use serde_json::{Value, json};

use crate::bounds::shipped;
use crate::world::{Act, World, definition, order, step};

fn act(operation: Operation) -> ActionRequest {
    ActionRequest::new("ann", "as the runbook says", operation)
}

async fn log_bytes(world: &World, handle: &Handle) -> usize {
    let loaded = world.journal.load(handle.uid()).await.unwrap().unwrap();
    loaded.records.iter().map(|r| r.bytes.len()).sum()
}

/// Answers with a document, and counts what of it is left.
struct Document {
    world: Arc<dyn LocalStep>,
    bytes: usize,
}

impl LocalStep for Document {
    fn act(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        Box::pin(async move {
            self.world.act(cx, input).await?;
            Ok(json!("x".repeat(self.bytes)))
        })
    }

    fn undo(&self, cx: StepCx, told: Told<Value>, input: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        self.world.undo(cx, told, input)
    }
}

async fn with_documents(world: &World, definition: &Definition, bytes: usize) -> Engine {
    let steps = definition.steps().iter().map(|s| {
        let document = Document { world: world.step(&s.name), bytes };
        (s.name.clone(), Arc::new(document) as Arc<dyn LocalStep>)
    });
    let steps: Vec<_> = steps.collect();
    let builder = Engine::builder(Arc::clone(&world.journal), world.runtime());
    builder.definition(definition.clone(), steps).open().await.unwrap()
}

/// Outputs of 17 MiB in a log of 16: it was set aside with all its effects, and nobody could end it any more.
#[tokio::test(start_paused = true)]
async fn a_saga_whose_outputs_would_fill_its_log_turns_back_while_there_is_room() {
    const STEPS: usize = 70;
    let world = World::new();
    let name = |i: usize| format!("s{i}");
    let steps = (0..STEPS).map(|i| match i {
        0 => step(&name(0), &[]),
        _ => step(&name(i), &[&name(i - 1)]),
    });
    let definition = definition(steps.collect());
    let engine = with_documents(&world, &definition, 250 * 1024).await;
    let handle = world.start(&engine, &definition, "one").await;
    let Outcome::Compensated { cause, .. } = handle.outcome().await.unwrap() else { panic!("not undone") };
    assert!(format!("{cause:?}").contains("its output is lost"), "{cause:?}");
    assert!(world.nothing_left(), "{:?}", world.net());
    let undone = world.calls().iter().filter(|c| c.starts_with("undo")).count();
    assert!((55..STEPS).contains(&undone), "{undone} steps fitted");
    assert!(log_bytes(&world, &handle).await < MAX_LOG_BYTES);
}

/// Fills the log of a saga that nobody has in memory up to about `bytes`, with few records.
async fn fill(world: &World, handle: &Handle, bytes: usize) {
    let missing = bytes - log_bytes(world, handle).await;
    let there = world.journal.summary(handle.uid()).await.unwrap().unwrap();
    let note = encode(&Fact::Note(Note { text: "x".repeat(400 * 1024) }));
    let records = vec![note.clone(); missing / note.bytes.len() + 1];
    let append = Append::new(handle.uid().clone(), there.epoch, there.next_seq, records, there.row);
    assert!(matches!(world.journal.append(append).await.unwrap(), Appended::Appended { .. }));
}

/// As for records: half of the bytes are not for what nodes repeat.
#[tokio::test(start_paused = true)]
async fn from_half_of_its_bytes_on_a_saga_repeats_nothing_by_itself() {
    let world = World::new();
    let mut charge = step("charge", &["reserve"]);
    charge.retry = Some(RetryData::new(1_000, Duration::from_secs(100), Duration::from_secs(100)));
    let patient = definition(vec![step("reserve", &[]), charge]);
    world.script("charge", &[Act::UnknownBefore]);
    world.script("undo charge", &[Act::UndoFails]);
    let (engine, handle) = world.begin(&patient).await;
    world.clock.sleep(Duration::from_millis(1)).await;
    engine.shutdown(Duration::ZERO).await;
    fill(&world, &handle, MAX_LOG_BYTES / 2).await;
    let engine = world.engine(&patient).await;
    world.clock.sleep(Duration::from_secs(3_600)).await;
    let steps = vec!["charge".to_owned()];
    assert_eq!(engine.outcome(handle.uid()).await.unwrap(), Outcome::NeedsAttention { steps });
    assert_eq!(world.calls().iter().filter(|c| c.starts_with("undo charge")).count(), 1);
    let undone = Operation::ResolveUndone { step: "charge".to_owned() };
    engine.attention().act(handle.uid(), act(undone)).await.unwrap();
    assert!(matches!(engine.outcome(handle.uid()).await.unwrap(), Outcome::Compensated { .. }));
}

/// Whoever retries with large inputs fills the log up to what its end needs, and can still end it.
#[tokio::test(start_paused = true)]
async fn retries_with_large_inputs_leave_room_for_the_end() {
    let (world, definition) = (World::new(), shipped());
    world.script("email", &[Act::NotSent]);
    let (engine, handle) = world.begin(&definition).await;
    let mut refused = None;
    for _ in 0..100 {
        handle.outcome().await.unwrap();
        let input = Some(json!("x".repeat(250 * 1024)));
        let retry = act(Operation::Retry { step: "email".to_owned(), input });
        refused = engine.attention().act(handle.uid(), retry).await.err();
        if refused.is_some() {
            break;
        }
        world.clock.sleep(Duration::from_secs(300)).await;
    }
    let refused = refused.expect("a log has an end");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("nearly full"), "{refused}");
    assert!(log_bytes(&world, &handle).await > MAX_LOG_BYTES / 10 * 9, "most of it could be used");
    let done = Operation::ResolveDone { step: "email".to_owned(), output: Value::Null };
    engine.attention().act(handle.uid(), act(done)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Completed { .. }));
}

/// What is refused is kept as a remark, with a name of at most a few hundred bytes, whatever somebody sends.
#[tokio::test(start_paused = true)]
async fn refusals_with_long_names_do_not_fill_a_log() {
    let world = World::new();
    let (engine, handle) = world.stuck(&order()).await;
    let before = log_bytes(&world, &handle).await;
    let step = "x".repeat(400 * 1024);
    let skip = act(Operation::Skip { step: step.clone() });
    assert_eq!(engine.attention().act(handle.uid(), skip).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let mut wordy = act(Operation::Cancel);
    wordy.reason = "x".repeat(16_001);
    assert_eq!(engine.attention().act(handle.uid(), wordy).await.unwrap_err().kind(), ErrorKind::TooLarge);
    // By a node that asked for less.
    for n in 0..60 {
        let action = Action {
            message: format!("m{n}"),
            who: "ann".to_owned(),
            reason: "no".to_owned(),
            expected_seq: None,
            operation: Operation::Skip { step: step.clone() },
        };
        let bytes = serde_json::to_vec(&action).unwrap();
        let posted = world.journal.post(handle.uid(), &format!("m{n}"), POST_ACTION, bytes).await.unwrap();
        assert_eq!(posted, Posted::Posted);
    }
    world.clock.sleep(Duration::from_secs(5)).await;
    let grown = log_bytes(&world, &handle).await - before;
    assert!((60 * 100..60 * 1_500).contains(&grown), "{grown} bytes");
    let undone = Operation::ResolveUndone { step: "charge".to_owned() };
    engine.attention().act(handle.uid(), act(undone)).await.unwrap();
    assert!(matches!(handle.outcome().await.unwrap(), Outcome::Compensated { .. }));
}
