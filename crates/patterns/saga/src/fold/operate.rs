//! Actions of a person: which are legal, and what they change.

use mainstay_store::journal::SagaStatus;
use serde_json::Value;

use super::{Effect, Generation, Illegal, Phase, State};
use crate::definition::{Definition, StepKind};
use crate::wire::{Action, Cause, ItemKind, Operation};

/// Why an action is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The saga is over.
    #[error("the saga is {0} already")]
    Finished(SagaStatus),
    /// No such step.
    #[error("there is no step `{0}`")]
    NoSuchStep(String),
    /// The state offers no such action.
    #[error("`{action}` is not possible now: {why}")]
    NotLegal {
        /// The action.
        action: &'static str,
        /// Why not.
        why: &'static str,
    },
    /// No node can drive the saga.
    #[error("`{action}` is not possible: the saga is set aside, because {why}")]
    SetAside {
        /// The action.
        action: &'static str,
        /// Why it is set aside.
        why: String,
    },
    /// The pivot happened or may have happened.
    #[error("the saga is past its pivot and only goes forward")]
    PastPivot,
    /// Somebody else was faster.
    #[error("the saga changed since it was looked at: it is at {now}, the action was for {expected}")]
    Stale {
        /// The sequence the person saw.
        expected: u64,
        /// The sequence now.
        now: u64,
    },
}

impl State {
    /// Whether a person may do that now.
    ///
    /// # Errors
    /// [`Refusal`] says why not.
    pub fn allows(&self, definition: &Definition, action: &Action) -> Result<(), Refusal> {
        self.is_current(action)?;
        self.allows_operation(definition, &action.operation)
    }

    /// Whether the saga is still where the person saw it.
    pub(crate) fn is_current(&self, action: &Action) -> Result<(), Refusal> {
        if let Some(status) = self.finished {
            return Err(Refusal::Finished(status));
        }
        let now = self.seq + 1;
        match action.expected_seq.filter(|e| *e != now) {
            Some(expected) => Err(Refusal::Stale { expected, now }),
            None => Ok(()),
        }
    }

    /// Whether the action says what was said and taken before: a saga that is being cancelled is cancelled again, as a caller does
    /// who lost the answer. It changes nothing, and its record would say nothing.
    #[must_use]
    pub fn repeats(&self, definition: &Definition, action: &Action) -> bool {
        let seen = action.expected_seq.is_none_or(|expected| expected == self.seq + 1);
        let past = definition.pivot().is_some_and(|p| self.nodes[p].done);
        let cancelled = matches!(self.stop, Some(Cause::Cancelled { .. }));
        action.operation == Operation::Cancel && cancelled && self.finished.is_none() && seen && !past
    }

    fn allows_operation(&self, definition: &Definition, operation: &Operation) -> Result<(), Refusal> {
        let no = |why| Err(Refusal::NotLegal { action: operation.name(), why });
        if let Some(step) = operation.step() {
            let i = definition.index(step).ok_or_else(|| Refusal::NoSuchStep(step.to_owned()))?;
            return self.allows_on_step(definition, operation, i);
        }
        match operation {
            Operation::Acknowledge if !self.overdue => no("the saga is not overdue"),
            Operation::Acknowledge if self.acknowledged => no("a person has seen it already"),
            Operation::Cancel | Operation::Compensate if self.past_pivot(definition) => {
                Err(Refusal::PastPivot)
            }
            Operation::Cancel | Operation::Compensate if self.stop.is_some() => {
                no("the saga already turns back")
            }
            Operation::Pause if self.paused => no("the saga is paused already"),
            Operation::Resume if !self.paused => no("the saga is not paused"),
            Operation::Abandon if self.busy() => no("an attempt is in flight"),
            Operation::Abandon if self.nodes.iter().all(|n| n.item.is_none()) => {
                no("only a saga that needs attention can be abandoned")
            }
            _ => Ok(()),
        }
    }

    fn allows_on_step(
        &self,
        definition: &Definition,
        operation: &Operation,
        i: usize,
    ) -> Result<(), Refusal> {
        let no = |why| Err(Refusal::NotLegal { action: operation.name(), why });
        let node = &self.nodes[i];
        if node.running.is_some() || node.undoing.is_some() {
            return no("an attempt is in flight");
        }
        let waiting = node.retry_at.is_some();
        let stands = node.effect() != Effect::None;
        let turned = self.phase(definition) == Phase::Unwinding;
        match (operation, node.item) {
            // Its action is not made any more: it would be undone though nobody said whether it happened.
            (Operation::Retry { .. }, Some(item)) if turned && item != ItemKind::UndoFailed => {
                no("the saga turns back: say whether it happened, use resolve")
            }
            // Other input is another key: what happened under this one, nothing could undo.
            (Operation::Retry { input: Some(_), .. }, Some(_))
                if stands && definition.steps()[i].kind == StepKind::Pivot =>
            {
                no("the pivot may have happened, and is never undone: use resolve")
            }
            // A retry without new input only brings the next attempt forward.
            (Operation::Retry { input: None, .. }, _) if waiting || node.item.is_some() => Ok(()),
            (_, None) => no("the step does not need attention"),
            (Operation::Retry { .. }, Some(_)) => Ok(()),
            (Operation::ResolveUndone { .. }, Some(ItemKind::UndoFailed)) => Ok(()),
            (Operation::ResolveUndone { .. }, Some(_)) => no("its action, not its undo, needs attention"),
            (_, Some(ItemKind::UndoFailed)) if !matches!(operation, Operation::Skip { .. }) => {
                no("its undo, not its action, needs attention")
            }
            (Operation::ResolveNotDone { .. }, Some(_))
                if definition.steps()[i].kind == StepKind::Retriable =>
            {
                no("a step after the pivot must be done")
            }
            (Operation::Skip { .. }, Some(ItemKind::UnknownOutcome)) => {
                no("say whether it happened: use resolve")
            }
            _ => Ok(()),
        }
    }

    fn busy(&self) -> bool {
        self.nodes.iter().any(|n| n.running.is_some() || n.undoing.is_some())
    }

    /// The actions that are possible on a step now, by name.
    #[must_use]
    pub fn legal_on_step(&self, definition: &Definition, step: &str) -> Vec<&'static str> {
        let step = || step.to_owned();
        let all = [
            Operation::Retry { step: step(), input: None },
            Operation::Retry { step: step(), input: Some(Value::Null) },
            Operation::ResolveDone { step: step(), output: Value::Null },
            Operation::ResolveNotDone { step: step() },
            Operation::ResolveUndone { step: step() },
            Operation::Skip { step: step() },
        ];
        let legal =
            all.iter().filter(|op| self.finished.is_none() && self.allows_operation(definition, op).is_ok());
        legal
            .map(|op| match op {
                Operation::Retry { input: Some(_), .. } => "retry_with_input",
                other => other.name(),
            })
            .collect()
    }

    /// The actions that are possible on the whole saga now, by name.
    #[must_use]
    pub fn legal_on_saga(&self, definition: &Definition) -> Vec<&'static str> {
        let all = [
            Operation::Acknowledge,
            Operation::Compensate,
            Operation::Cancel,
            Operation::Pause,
            Operation::Resume,
            Operation::Abandon,
        ];
        let legal =
            all.iter().filter(|op| self.finished.is_none() && self.allows_operation(definition, op).is_ok());
        legal.map(Operation::name).collect()
    }
}

pub(super) fn apply(state: &mut State, definition: &Definition, action: &Action) -> Result<(), Illegal> {
    // The record itself has advanced the sequence; the person saw the one before.
    state.seq -= 1;
    let allowed = state.allows(definition, action);
    state.seq += 1;
    allowed.map_err(|why| Illegal(format!("record {}: {why}", state.seq)))?;
    let cause = (action.who.clone(), action.reason.clone());
    match &action.operation {
        Operation::Acknowledge => state.acknowledged = true,
        Operation::Abandon => state.finished = Some(SagaStatus::Abandoned),
        Operation::Cancel => state.turn(Cause::Cancelled { by: cause.0, reason: cause.1 }),
        Operation::Compensate => state.turn(Cause::Operator { by: cause.0, reason: cause.1 }),
        Operation::Pause => state.paused = true,
        Operation::Resume => state.paused = false,
        operation => on_step(state, definition, operation),
    }
    Ok(())
}

fn on_step(state: &mut State, definition: &Definition, operation: &Operation) {
    let Some(i) = operation.step().and_then(|s| definition.index(s)) else { return };
    let undoing = state.nodes[i].item == Some(ItemKind::UndoFailed);
    let forward = state.phase(definition) == Phase::Forward;
    let node = &mut state.nodes[i];
    node.item = None;
    node.retry_at = None;
    match operation {
        Operation::Retry { input, .. } => {
            node.spent = 0;
            node.interrupted = 0;
            node.withheld = 0;
            node.undo_spent = 0;
            node.undo_interrupted = 0;
            node.undo_withheld = 0;
            match input {
                // An undo has no generation of its own: it is told another input.
                Some(input) if undoing => {
                    let open = node.to_undo().map_or(0, |g| g as usize - 1);
                    node.generations[open].input = Some(input.clone());
                }
                Some(input) => {
                    node.generations.push(Generation { input: Some(input.clone()), ..Generation::default() });
                }
                None => {}
            }
        }
        Operation::ResolveDone { output, .. } => {
            let generation = node.current_mut();
            generation.effect = Effect::Did;
            generation.output = Some(output.clone());
            node.done = true;
        }
        Operation::ResolveNotDone { step } => {
            // What a person left as it is, they knew of.
            node.generations.iter_mut().filter(|g| !g.left).for_each(|g| g.effect = Effect::None);
            node.failed = true;
            state.fail(step, i);
        }
        Operation::ResolveUndone { .. } => {
            node.generations.iter_mut().filter(|g| g.stands()).for_each(|g| g.undone = true);
        }
        Operation::Skip { .. } if undoing => match node.replaced().filter(|_| forward) {
            Some(generation) => node.generations[generation as usize - 1].left = true,
            None => node.skipped = true,
        },
        Operation::Skip { .. } => {
            // Done for what follows, with nothing to hand on; its effect, if any, stays on the books.
            node.done = true;
            node.current_mut().output = Some(Value::Null);
        }
        _ => {}
    }
}
