//! What a saga does next. Pure: time and jitter go in, decisions come out.

use std::time::Duration;

use mainstay_clock::backoff::Backoff;
use mainstay_store::journal::SagaStatus;

use crate::definition::{Definition, OnUnknown, RETRIABLE_ATTEMPTS, RetrySpec, StepKind, Undo};
use crate::fold::{Effect, Phase, State};
use crate::wire::{AttemptRef, Cause, ItemKind, StepEnded, UndoEnded, UndoVerdict, Verdict};

/// Most steps of one saga in flight.
pub const PARALLEL_STEPS: usize = 16;
/// Attempts cut by a crash of the process before the step counts as failed: a poison step must not be
/// tried for ever, and an innocent one must survive two crashes of its neighbors.
pub const MAX_INTERRUPTED: u32 = 3;
/// Undos that failed without an answer are repeated this slowly behind their item, so that outages heal.
pub const SLOW_RETRY: Duration = Duration::from_secs(15 * 60);

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
    let mut slots = PARALLEL_STEPS.saturating_sub(state.nodes.iter().filter(|n| n.running.is_some()).count());
    for (i, step) in definition.steps().iter().enumerate() {
        let node = &state.nodes[i];
        let blocked = node.item.is_some() && node.retry_at.is_none();
        if node.done || node.failed || node.running.is_some() || blocked || !state.ready(step) || state.paused
        {
            continue;
        }
        match node.retry_at {
            Some(at) if at > now => wake = Some(wake.map_or(at, |w| w.min(at))),
            _ if slots == 0 => {}
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
                let attempt = node.generations[generation as usize - 1].undo_attempts + 1;
                commands.push(Command::Undo(AttemptRef { step: step.name.clone(), attempt, generation }));
            }
        }
    }
    commands.extend(wake.map(Command::WakeAt));
    commands
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
    let i = definition.index(&at.step).expect("invariant: attempts are started from the definition");
    let (step, node) = (&definition.steps()[i], &state.nodes[i]);
    let effect = node.effect().max(node.current().effect.join(&verdict));
    let effect = match &verdict {
        Verdict::Rejected { is_final: true, .. } if node.generations.len() == 1 => Effect::None,
        _ => effect,
    };
    let turning = state.stop.is_some() && !(step.kind != StepKind::Compensable && effect != Effect::None);
    let ask = |otherwise: Option<ItemKind>| match (step.kind, step.on_unknown, effect) {
        (StepKind::Pivot, _, Effect::Maybe | Effect::Did) => Some(ItemKind::UnknownOutcome),
        (StepKind::Compensable, OnUnknown::Ask, Effect::Maybe) => Some(ItemKind::UnknownOutcome),
        (StepKind::Retriable, _, _) => Some(ItemKind::RetriableExhausted),
        _ => otherwise,
    };
    let later = |n: u32| {
        Some(now.saturating_add(millis(delay(step.retry, n, jitter).max(advice.unwrap_or_default()))))
    };
    let (retry_at, item) = match &verdict {
        Verdict::Done { output: Some(_) } => (None, None),
        Verdict::Done { output: None } if step.kind == StepKind::Compensable => (None, None),
        Verdict::Done { output: None } => (None, Some(ItemKind::UnknownOutcome)),
        _ if turning => (None, ask(None).filter(|i| *i == ItemKind::UnknownOutcome)),
        Verdict::ContractBroken { .. } => (None, Some(ItemKind::ContractBroken)),
        Verdict::Rejected { .. } if step.kind != StepKind::Retriable => (None, ask(None)),
        Verdict::Unknown { interrupted: true, .. } if node.interrupted + 1 < MAX_INTERRUPTED => {
            (Some(now), None)
        }
        Verdict::Unknown { interrupted: true, .. } => (None, ask(None)),
        _ => {
            let limit = if step.kind == StepKind::Retriable {
                step.retry.attempts.max(RETRIABLE_ATTEMPTS)
            } else {
                step.retry.attempts
            };
            let spent = node.spent + 1;
            match spent < limit {
                true => (later(spent), None),
                false => (None, ask(None)),
            }
        }
    };
    // A retriable step goes on behind its item, at the capped delay.
    let retry_at = match item {
        Some(ItemKind::RetriableExhausted) => Some(now.saturating_add(millis(step.retry.cap))),
        _ => retry_at,
    };
    StepEnded { at, verdict, retry_at, item }
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
    let spent = node.undo_spent + 1;
    let (retry_at, item) = match &verdict {
        UndoVerdict::Undone => (None, None),
        _ if spent < step.undo_retry.attempts => {
            let wait = delay(step.undo_retry, spent, jitter).max(advice.unwrap_or_default());
            (Some(now.saturating_add(millis(wait))), None)
        }
        UndoVerdict::Refused { .. } => (None, Some(ItemKind::UndoFailed)),
        UndoVerdict::Failed { .. } => {
            (Some(now.saturating_add(millis(SLOW_RETRY))), Some(ItemKind::UndoFailed))
        }
    };
    UndoEnded { at, verdict, retry_at, item }
}

/// Full jitter over the doubling schedule; never zero, so that a retry is never a spin.
fn delay(spec: RetrySpec, n: u32, jitter: f64) -> Duration {
    let doubling = mainstay_clock::backoff::Growth::Exponential { factor: 2.0 };
    let plain = Backoff::new(spec.base, spec.cap, doubling).map_or(spec.cap, |b| b.plain(n));
    plain.mul_f64(jitter.clamp(0.0, 1.0)).max(Duration::from_millis(1))
}

fn millis(d: Duration) -> i64 {
    i64::try_from(d.as_millis()).unwrap_or(i64::MAX)
}
