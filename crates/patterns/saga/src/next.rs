//! What a saga does next. Pure: time and jitter go in, decisions come out.

use std::time::Duration;

use mainstay_clock::backoff::Backoff;
use mainstay_store::journal::{MAX_LOG_BYTES, MAX_RECORDS, SagaStatus};

use crate::definition::{
    Definition, MAX_PAYLOAD, MAX_STEPS, OnUnknown, RETRIABLE_ATTEMPTS, RetrySpec, Step, StepKind, Undo,
};
use crate::fold::{Effect, Node, Phase, State};
use crate::wire::{AttemptRef, Cause, ItemKind, StepEnded, UndoEnded, UndoVerdict, Verdict};

/// Most steps of one saga in flight.
pub const PARALLEL_STEPS: usize = 16;
/// Attempts cut by a crash of the process before the step counts as failed: a poison step must not be
/// tried for ever, and an innocent one must survive two crashes of its neighbors.
pub const MAX_INTERRUPTED: u32 = 3;
/// Undos that failed without an answer are repeated this slowly behind their item, so that outages heal.
pub const SLOW_RETRY: Duration = Duration::from_secs(15 * 60);
/// Refusals in a row by a policy of this side after which an undo needs a person: at the default pace about four
/// hours, longer than a breaker stays open because of anything that ends by itself. A step that has met so many of them
/// is over, as if its attempts were spent; most sagas have a deadline that comes first.
pub const MAX_WITHHELD: u32 = 100;
/// From so many records on nothing is repeated by itself. The other half of a log is for one attempt of every step
/// and of its undo, two records each, and for people.
pub const REPEAT_RECORDS: u64 = MAX_RECORDS / 2;
/// From so many bytes on nothing is repeated by itself.
pub const REPEAT_BYTES: u64 = MAX_LOG_BYTES as u64 / 2;
/// The records of one attempt of a step and of its undo, when nothing is repeated.
const STEP_RECORDS: u64 = 4;
/// Their size without an output, with reasons that are cut to [`SHORT_REASON`]: about 260 bytes each, and two reasons,
/// every byte of which may take six on the log.
const STEP_BYTES: u64 = 3_000;
/// A reason on a log that is nearly full.
const SHORT_REASON: usize = 150;
/// For what ends the saga: a person's word on every step, and remarks.
const LAST_RECORDS: u64 = 500;
/// As much of the log's size.
const LAST_BYTES: u64 = 1024 * 1024;
const _: () = assert!(
    REPEAT_RECORDS <= room_for(MAX_STEPS).0 && REPEAT_BYTES <= room_for(MAX_STEPS).1,
    "an end must fit"
);

/// Records and bytes of a log behind which only what ends its saga is written.
const fn room_for(steps: usize) -> (u64, u64) {
    let steps = steps as u64;
    (
        MAX_RECORDS - LAST_RECORDS - STEP_RECORDS * steps,
        MAX_LOG_BYTES as u64 - LAST_BYTES - STEP_BYTES * steps,
    )
}

/// Whether so many more records and bytes leave the room that the way back of every step needs, and people.
pub(crate) fn fits(definition: &Definition, state: &State, records: u64, bytes: usize) -> bool {
    state.seq + records <= room_for(definition.steps().len()).0 && has_bytes(definition, state, bytes)
}

fn has_bytes(definition: &Definition, state: &State, bytes: usize) -> bool {
    state.bytes + bytes as u64 <= room_for(definition.steps().len()).1
}

/// Whether so many more bytes leave the room that the way back of every step needs.
pub(crate) fn fits_the_end(definition: &Definition, state: &State, bytes: usize) -> bool {
    state.bytes + bytes as u64 + STEP_BYTES * definition.steps().len() as u64 <= MAX_LOG_BYTES as u64
}

/// Whether the log is too long for anything to be repeated by itself.
fn is_half_full(state: &State) -> bool {
    state.seq >= REPEAT_RECORDS || state.bytes >= REPEAT_BYTES
}

/// A decision.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the engine handles each")]
pub enum Command {
    /// Record the end.
    Finish(SagaStatus),
    /// Record that the deadline passed after the pivot.
    Overdue,
    /// Record and start an attempt.
    Start(AttemptRef),
    /// Record the turn.
    Stop(Cause),
    /// Record and start an undo attempt.
    Undo(AttemptRef),
    /// Look again then, Unix milliseconds.
    WakeAt(i64),
}

/// What to do in `state` at `now` (Unix milliseconds of the store's clock), with `undo_slots` undos at once.
#[must_use]
pub fn next(definition: &Definition, state: &State, now: i64, undo_slots: usize) -> Vec<Command> {
    if state.finished.is_some() {
        return Vec::new();
    }
    if let Some(status) = state.end(definition) {
        return vec![Command::Finish(status)];
    }
    match state.phase(definition) {
        Phase::Forward => forward(definition, state, now),
        Phase::Holding => Vec::new(),
        Phase::Unwinding => unwind(definition, state, now, undo_slots),
    }
}

fn forward(definition: &Definition, state: &State, now: i64) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut wake: Option<i64> = None;
    if let Some(deadline) = state.deadline {
        let over = now >= deadline;
        match (over, state.past_pivot(definition)) {
            (true, false) if state.stop.is_none() => return vec![Command::Stop(Cause::DeadlineExceeded)],
            (true, true) if !state.overdue => commands.push(Command::Overdue),
            (false, _) => wake = Some(deadline),
            _ => {}
        }
    }
    let busy = |n: &Node| n.running.is_some() || n.undoing.is_some();
    let mut slots = PARALLEL_STEPS.saturating_sub(state.nodes.iter().filter(|n| busy(n)).count());
    for (i, step) in definition.steps().iter().enumerate() {
        let node = &state.nodes[i];
        let blocked = node.item.is_some() && node.retry_at.is_none();
        if node.done || node.failed || busy(node) || blocked || !state.ready(step) || state.paused {
            continue;
        }
        let replaced = node.replaced().filter(|_| matches!(step.undo, Undo::Call(_)));
        match node.retry_at {
            Some(at) if at > now => wake = Some(wake.map_or(at, |w| w.min(at))),
            _ if slots == 0 => {}
            _ if replaced.is_some() => {
                slots -= 1;
                commands.extend(replaced.map(|generation| undo_of(step, node, generation)));
            }
            _ => {
                slots -= 1;
                let generation = u32::try_from(node.generations.len()).unwrap_or(u32::MAX);
                let attempt = node.current().attempts + 1;
                commands.push(Command::Start(AttemptRef { step: step.name.clone(), attempt, generation }));
            }
        }
    }
    commands.extend(wake.map(Command::WakeAt));
    commands
}

fn unwind(definition: &Definition, state: &State, now: i64, undo_slots: usize) -> Vec<Command> {
    let mut commands = Vec::new();
    if state.paused {
        return commands;
    }
    let settled = state.settled(definition);
    let mut slots = undo_slots.saturating_sub(state.nodes.iter().filter(|n| n.undoing.is_some()).count());
    let mut wake: Option<i64> = None;
    let mut order: Vec<usize> = (0..state.nodes.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(state.nodes[*i].start_seq));
    for i in order {
        let (step, node) = (&definition.steps()[i], &state.nodes[i]);
        let free = node.running.is_none() && node.undoing.is_none() && !node.skipped;
        let has_undo = matches!(step.undo, Undo::Call(_));
        let blocked = node.item.is_some() && node.retry_at.is_none();
        let Some(generation) = node.to_undo().filter(|_| free && has_undo && !blocked) else { continue };
        if !step.before.iter().all(|j| settled[*j]) {
            continue;
        }
        match node.retry_at {
            Some(at) if at > now => wake = Some(wake.map_or(at, |w| w.min(at))),
            _ if slots == 0 => {}
            _ => {
                slots -= 1;
                commands.push(undo_of(step, node, generation));
            }
        }
    }
    commands.extend(wake.map(Command::WakeAt));
    commands
}

/// The next attempt to undo a generation.
fn undo_of(step: &Step, node: &Node, generation: u32) -> Command {
    let attempt = node.generations[generation as usize - 1].undo_attempts + 1;
    Command::Undo(AttemptRef { step: step.name.clone(), attempt, generation })
}

/// What follows from the end of an attempt: retry, a person, or failure. `jitter` is a random number in
/// `[0, 1)`; `advice` is the participant's wish when to be asked again.
///
/// # Panics
/// When `at` names no step of the definition.
#[must_use]
pub fn end_step(
    definition: &Definition,
    state: &State,
    at: AttemptRef,
    verdict: Verdict,
    now: i64,
    jitter: f64,
    advice: Option<Duration>,
) -> StepEnded {
    ended(definition, state, at, verdict, false, Pace { now, jitter, advice })
}

/// What follows from an attempt that a policy of this side refused, because its breaker is open or its places are
/// taken: nobody was asked, so it uses up no attempt. It is repeated at the pace of the step, not before `advice`, until
/// the saga's deadline. [`MAX_WITHHELD`] of them in a row are as good as the attempts of the step.
///
/// # Panics
/// When `at` names no step of the definition.
#[must_use]
pub fn withhold_step(
    definition: &Definition,
    state: &State,
    at: AttemptRef,
    reason: String,
    now: i64,
    jitter: f64,
    advice: Option<Duration>,
) -> StepEnded {
    ended(definition, state, at, Verdict::NotSent { reason }, true, Pace { now, jitter, advice })
}

/// What decides when something is repeated.
struct Pace {
    now: i64,
    jitter: f64,
    advice: Option<Duration>,
}

fn ended(
    definition: &Definition,
    state: &State,
    at: AttemptRef,
    verdict: Verdict,
    withheld: bool,
    pace: Pace,
) -> StepEnded {
    let i = definition.index(&at.step).expect("invariant: attempts are started from the definition");
    let (step, node) = (&definition.steps()[i], &state.nodes[i]);
    let verdict = kept(definition, state, verdict);
    let effect = node.effect_after(&verdict);
    // What runs after the pivot goes on, whatever was asked for while the pivot was in flight.
    let turning = state.stop.is_some()
        && match step.kind {
            StepKind::Compensable => true,
            StepKind::Pivot => effect == Effect::None,
            StepKind::Retriable => false,
        };
    let ask = |otherwise: Option<ItemKind>| match (step.kind, step.on_unknown, effect) {
        (StepKind::Pivot, _, Effect::Maybe | Effect::Did) => Some(ItemKind::UnknownOutcome),
        (StepKind::Compensable, OnUnknown::Ask, Effect::Maybe) => Some(ItemKind::UnknownOutcome),
        (StepKind::Retriable, _, _) => Some(ItemKind::RetriableExhausted),
        _ => otherwise,
    };
    let full = is_half_full(state);
    let interrupted = matches!(verdict, Verdict::Unknown { interrupted: true, .. });
    let limit = match step.kind {
        StepKind::Retriable => step.retry.attempts.max(RETRIABLE_ATTEMPTS),
        _ => step.retry.attempts,
    };
    let (spent, refused) = if withheld { (node.spent, node.withheld + 1) } else { (node.spent + 1, 0) };
    // What a person was asked about stays with them.
    let again = if withheld { node.item.is_none() && refused < MAX_WITHHELD } else { spent < limit };
    let after =
        |wait: Duration| Some(pace.now.saturating_add(millis(wait.max(pace.advice.unwrap_or_default()))));
    let (retry_at, item) = match &verdict {
        Verdict::Done { output: Some(_) } => (None, None),
        Verdict::Done { output: None } if step.kind == StepKind::Compensable => (None, None),
        Verdict::Done { output: None } => (None, Some(ItemKind::UnknownOutcome)),
        _ if turning => (None, ask(None).filter(|i| *i == ItemKind::UnknownOutcome)),
        Verdict::ContractBroken { .. } => (None, Some(ItemKind::ContractBroken)),
        Verdict::Rejected { .. } if step.kind != StepKind::Retriable => (None, ask(None)),
        // What a person was asked about stays with them.
        Verdict::Unknown { interrupted: true, .. } if node.interrupted + 1 < MAX_INTERRUPTED && !full => {
            (Some(pace.now), node.item)
        }
        Verdict::Unknown { interrupted: true, .. } => (None, ask(None)),
        _ if again && !full => (after(delay(step.retry, spent.max(refused), pace.jitter)), None),
        _ => (None, ask(None)),
    };
    // A retriable step goes on behind its item, ever more slowly.
    let retry_at = match item {
        // One that cut short every process that began it is begun again by a person only.
        Some(ItemKind::RetriableExhausted) if !full && !interrupted => {
            let behind = (spent + 1).saturating_sub(limit).saturating_add(refused);
            after(slower(step.retry.cap, behind))
        }
        _ => retry_at,
    };
    StepEnded { at, verdict, withheld, retry_at, item }
}

/// What follows from the end of an undo attempt.
///
/// # Panics
/// When `at` names no step of the definition.
#[must_use]
pub fn end_undo(
    definition: &Definition,
    state: &State,
    at: AttemptRef,
    verdict: UndoVerdict,
    now: i64,
    jitter: f64,
    advice: Option<Duration>,
) -> UndoEnded {
    let i = definition.index(&at.step).expect("invariant: attempts are started from the definition");
    let (step, node) = (&definition.steps()[i], &state.nodes[i]);
    let short = |reason| short(definition, state, reason);
    let verdict = match verdict {
        UndoVerdict::Undone => UndoVerdict::Undone,
        UndoVerdict::Failed { reason } => UndoVerdict::Failed { reason: short(reason) },
        UndoVerdict::Refused { reason } => UndoVerdict::Refused { reason: short(reason) },
    };
    let spent = node.undo_spent + 1;
    let full = is_half_full(state);
    let (retry_at, item) = match &verdict {
        UndoVerdict::Undone => (None, None),
        _ if spent < step.undo_retry.attempts && !full => {
            let wait = delay(step.undo_retry, spent, jitter).max(advice.unwrap_or_default());
            (Some(now.saturating_add(millis(wait))), None)
        }
        UndoVerdict::Failed { .. } if full => (None, Some(ItemKind::UndoFailed)),
        UndoVerdict::Refused { .. } => (None, Some(ItemKind::UndoFailed)),
        UndoVerdict::Failed { .. } => {
            (Some(now.saturating_add(millis(SLOW_RETRY))), Some(ItemKind::UndoFailed))
        }
    };
    UndoEnded { at, verdict, interrupted: false, withheld: false, retry_at, item }
}

/// What follows from an undo that its participant refuses for good: an answer that says nothing of the kind that an undo may be
/// answered with, such as "not found", will be the same the next time. A person is asked at once.
#[must_use]
pub fn refuse_undo(definition: &Definition, state: &State, at: AttemptRef, reason: String) -> UndoEnded {
    let verdict = UndoVerdict::Refused { reason: short(definition, state, reason) };
    let item = Some(ItemKind::UndoFailed);
    UndoEnded { at, verdict, interrupted: false, withheld: false, retry_at: None, item }
}

/// What follows from an undo that a policy of this side refused, because its breaker is open or its places are taken:
/// nobody was asked, so it uses up no attempt. It is repeated at the pace of the undo, not before `advice`. After
/// [`MAX_WITHHELD`] of them in a row a person hears of it, and it goes on slowly.
///
/// # Panics
/// When `at` names no step of the definition.
#[must_use]
pub fn withhold_undo(
    definition: &Definition,
    state: &State,
    at: AttemptRef,
    reason: String,
    now: i64,
    jitter: f64,
    advice: Option<Duration>,
) -> UndoEnded {
    let i = definition.index(&at.step).expect("invariant: attempts are started from the definition");
    let (step, node) = (&definition.steps()[i], &state.nodes[i]);
    let refused = node.undo_withheld + 1;
    // What a person was asked about stays with them.
    let item = node.item.or((refused >= MAX_WITHHELD || is_half_full(state)).then_some(ItemKind::UndoFailed));
    let wait = match item {
        _ if is_half_full(state) => None,
        Some(_) => Some(SLOW_RETRY),
        None => Some(delay(step.undo_retry, refused, jitter).max(advice.unwrap_or_default())),
    };
    let retry_at = wait.map(|wait| now.saturating_add(millis(wait)));
    let verdict = UndoVerdict::Failed { reason: short(definition, state, reason) };
    UndoEnded { at, verdict, interrupted: false, withheld: true, retry_at, item }
}

/// What follows from an undo attempt that a crash of the process cut short: another one after a while, or, when that
/// happened as often as an undo may fail, a person. An undo is what makes a saga whole: a node that restarts a few times in
/// a row is no reason to wake anybody, and one undo that ends every process is tried so often and no more.
///
/// # Panics
/// When `at` names no step of the definition.
#[must_use]
pub fn cut_undo(definition: &Definition, state: &State, at: AttemptRef, now: i64, jitter: f64) -> UndoEnded {
    let i = definition.index(&at.step).expect("invariant: attempts are started from the definition");
    let (step, node) = (&definition.steps()[i], &state.nodes[i]);
    let cut = node.undo_interrupted + 1;
    let limit = step.undo_retry.attempts.max(MAX_INTERRUPTED);
    let after = |wait| Some(now.saturating_add(millis(wait)));
    let (retry_at, item) = match node.item {
        _ if cut >= limit || is_half_full(state) => (None, Some(ItemKind::UndoFailed)),
        // What a person was asked about stays with them.
        Some(item) => (after(SLOW_RETRY), Some(item)),
        None => (after(delay(step.undo_retry, cut, jitter)), None),
    };
    let reason = "the process ended during the undo".to_owned();
    let verdict = UndoVerdict::Failed { reason };
    UndoEnded { at, verdict, interrupted: true, withheld: false, retry_at, item }
}

/// The verdict as the log has room for it: an output that would take the room of the way back is lost, and what is done
/// without an output is undone, or a person says what it was.
fn kept(definition: &Definition, state: &State, verdict: Verdict) -> Verdict {
    let short = |reason| short(definition, state, reason);
    match verdict {
        // Its length is looked at only where it may matter.
        Verdict::Done { output: Some(output) }
            if !has_bytes(definition, state, MAX_PAYLOAD)
                && !has_bytes(definition, state, output.to_string().len()) =>
        {
            Verdict::Done { output: None }
        }
        Verdict::Done { output } => Verdict::Done { output },
        Verdict::ContractBroken { reason } => Verdict::ContractBroken { reason: short(reason) },
        Verdict::NotSent { reason } => Verdict::NotSent { reason: short(reason) },
        Verdict::Rejected { reason, is_final } => Verdict::Rejected { reason: short(reason), is_final },
        Verdict::Unknown { reason, interrupted } => Verdict::Unknown { reason: short(reason), interrupted },
    }
}

/// The reason as the log has room for it.
fn short(definition: &Definition, state: &State, reason: String) -> String {
    if has_bytes(definition, state, 6 * reason.len()) { reason } else { cut(reason, SHORT_REASON) }
}

/// At most so many bytes of a text, and a mark where there was more.
pub(crate) fn cut(mut text: String, most: usize) -> String {
    if text.len() > most {
        let mut end = most;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str("...");
    }
    text
}

/// Full jitter over the doubling schedule; never zero, so that a retry is never a spin.
fn delay(spec: RetrySpec, n: u32, jitter: f64) -> Duration {
    let doubling = mainstay_clock::backoff::Growth::Exponential { factor: 2.0 };
    let plain = Backoff::new(spec.base, spec.cap, doubling).map_or(spec.cap, |b| b.plain(n));
    plain.mul_f64(jitter.clamp(0.0, 1.0)).max(Duration::from_millis(1))
}

/// The delay before retry `n` (from 1) behind an item: from the step's longest to [`SLOW_RETRY`], doubling.
fn slower(cap: Duration, n: u32) -> Duration {
    let doubling = mainstay_clock::backoff::Growth::Exponential { factor: 2.0 };
    let most = cap.max(SLOW_RETRY);
    Backoff::new(cap, most, doubling).map_or(most, |b| b.plain(n))
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}
