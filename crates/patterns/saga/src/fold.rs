//! The state of a saga, folded from its facts. Pure: no clock, no randomness, no I/O.
//!
//! Live execution and recovery use the same [`State::apply`], which refuses what the rules do not allow;
//! the folded state is the only truth in memory.

mod operate;

use mainstay_store::journal::{Record, SagaStatus};
use serde_json::Value;

use crate::definition::{Definition, Step, StepKind, Undo};
use crate::wire::{AttemptRef, Carried, Cause, Fact, ItemKind, StepEnded, UndoEnded, UndoVerdict, Verdict};

pub use operate::Refusal;

/// What is known about the effect of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[allow(clippy::exhaustive_enums, reason = "there is no fourth answer")]
pub enum Effect {
    /// Certainly none.
    #[default]
    None,
    /// Nobody knows.
    Maybe,
    /// Certainly.
    Did,
}

impl Effect {
    /// The effect of a step after one more attempt: the larger of both, except that a final rejection
    /// proves that no attempt under the key had one.
    #[must_use]
    pub fn join(self, verdict: &Verdict) -> Self {
        match verdict {
            Verdict::Done { .. } => Self::Did,
            Verdict::Rejected { is_final: true, .. } => Self::None,
            Verdict::NotSent { .. } | Verdict::Rejected { .. } => self,
            Verdict::ContractBroken { .. } | Verdict::Unknown { .. } => self.max(Self::Maybe),
        }
    }
}

/// A record that the rules do not allow: the saga is quarantined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Illegal(pub(crate) String);

/// One key generation of a step. A retry with edited input opens a new one.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct Generation {
    /// Input given by an operator.
    pub input: Option<Value>,
    /// Attempts made.
    pub attempts: u32,
    /// What is known about its effect.
    pub effect: Effect,
    /// Its output, when it is `Did` and not lost.
    pub output: Option<Value>,
    /// Undo attempts made.
    pub undo_attempts: u32,
    /// Its effect is reversed.
    pub undone: bool,
    /// A person decided to leave its effect as it is, and to go on with the next generation.
    pub left: bool,
}

impl Generation {
    /// Whether it may have an effect that is to be undone when the step is.
    fn stands(&self) -> bool {
        self.effect != Effect::None && !self.undone && !self.left
    }
}

/// The state of one step.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Node {
    /// Key generations, oldest first; never empty.
    pub generations: Vec<Generation>,
    /// The attempt in flight.
    pub running: Option<AttemptRef>,
    /// The undo attempt in flight.
    pub undoing: Option<AttemptRef>,
    /// Its action is done.
    pub done: bool,
    /// It failed for good.
    pub failed: bool,
    /// A person decided to leave it as it is.
    pub skipped: bool,
    /// When its next attempt or undo attempt starts, Unix milliseconds.
    pub retry_at: Option<i64>,
    /// Why it needs a person.
    pub item: Option<ItemKind>,
    /// The last error.
    pub last_error: Option<String>,
    /// Sequence of its last start, zero when it never started.
    pub start_seq: u64,
    /// Attempts that count against the retry policy; a person's retry starts anew.
    pub spent: u32,
    /// Attempts cut short by a crash of the process; they have a limit of their own.
    pub interrupted: u32,
    /// Attempts that a policy of this side refused since the last one that was made; they have a limit of their own.
    pub withheld: u32,
    /// Undo attempts that count against the retry policy.
    pub undo_spent: u32,
    /// Undo attempts cut short by a crash of the process; they have a limit of their own.
    pub undo_interrupted: u32,
    /// Undo attempts that a policy of this side refused since the last one that was made; they have a limit of their
    /// own.
    pub undo_withheld: u32,
}

impl Node {
    fn new() -> Self {
        Self {
            generations: vec![Generation::default()],
            running: None,
            undoing: None,
            done: false,
            failed: false,
            skipped: false,
            retry_at: None,
            item: None,
            last_error: None,
            start_seq: 0,
            spent: 0,
            interrupted: 0,
            withheld: 0,
            undo_spent: 0,
            undo_interrupted: 0,
            undo_withheld: 0,
        }
    }

    /// The generation in force.
    #[must_use]
    pub fn current(&self) -> &Generation {
        &self.generations[self.generations.len() - 1]
    }

    fn current_mut(&mut self) -> &mut Generation {
        let last = self.generations.len() - 1;
        &mut self.generations[last]
    }

    /// The largest effect of all generations that is not reversed, and that nobody decided to leave: what is undone when the
    /// saga turns back.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.generations.iter().filter(|g| g.stands()).map(|g| g.effect).max().unwrap_or_default()
    }

    /// The largest effect that is in the world: as [`effect`](Self::effect), and also that of a generation which a person left
    /// as it is.
    #[must_use]
    pub fn remaining(&self) -> Effect {
        let stays = |g: &&Generation| !g.undone;
        self.generations.iter().filter(stays).map(|g| g.effect).max().unwrap_or_default()
    }

    /// As [`effect`](Self::effect), after one more attempt of the generation in force.
    pub(crate) fn effect_after(&self, verdict: &Verdict) -> Effect {
        let (current, earlier) = self.generations.split_last().expect("invariant: there is a generation");
        let earlier = earlier.iter().filter(|g| g.stands()).map(|g| g.effect).max().unwrap_or_default();
        earlier.max(current.effect.join(verdict))
    }

    /// The newest generation (from 1) whose effect must be reversed.
    #[must_use]
    pub fn to_undo(&self) -> Option<u32> {
        let open = self.generations.iter().rposition(Generation::stands)?;
        u32::try_from(open + 1).ok()
    }

    /// The generation (from 1) that was replaced by one with other input, and whose effect must be reversed before that
    /// one is begun: both would stand.
    #[must_use]
    pub fn replaced(&self) -> Option<u32> {
        let unbegun = self.generations.len() > 1 && self.current().attempts == 0 && !self.done;
        self.to_undo().filter(|_| unbegun)
    }

    /// Whether it was ever started.
    #[must_use]
    pub fn started(&self) -> bool {
        self.start_seq > 0
    }
}

/// Which way a saga goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "forward, back, or waiting to know")]
pub enum Phase {
    /// Steps start.
    Forward,
    /// It shall turn back, but its pivot is in flight: nothing starts until that is known.
    Holding,
    /// Effects are undone.
    Unwinding,
}

/// The folded state of a saga.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct State {
    /// Its input.
    pub input: Value,
    /// When going forward must have passed the pivot, Unix milliseconds.
    pub deadline: Option<i64>,
    /// One per step, in declaration order.
    pub nodes: Vec<Node>,
    /// Why it turned back.
    pub stop: Option<Cause>,
    /// Failures after the first, with their reasons.
    pub also_failed: Vec<(String, String)>,
    /// Nothing new starts.
    pub paused: bool,
    /// The deadline passed after the pivot.
    pub overdue: bool,
    /// A person has seen that.
    pub acknowledged: bool,
    /// How it ended.
    pub finished: Option<SagaStatus>,
    /// Trace context of the request that started it.
    pub trace: Option<String>,
    /// What tracing systems added to it.
    pub trace_state: Option<String>,
    /// The uid of the saga that it runs again.
    pub again: Option<String>,
    /// Records applied.
    pub seq: u64,
    /// Their size on the log. Not known to `apply`, which sees facts: whoever reads or writes the records counts it.
    pub bytes: u64,
    /// Of them, those that changed nothing: notes and refused actions.
    pub remarks: u64,
    created: bool,
}

impl State {
    /// The state before the first record.
    #[must_use]
    pub fn new(definition: &Definition) -> Self {
        Self {
            input: Value::Null,
            deadline: None,
            nodes: definition.steps().iter().map(|_| Node::new()).collect(),
            stop: None,
            also_failed: Vec::new(),
            paused: false,
            overdue: false,
            acknowledged: false,
            finished: None,
            trace: None,
            trace_state: None,
            again: None,
            seq: 0,
            bytes: 0,
            remarks: 0,
            created: false,
        }
    }

    /// Folds facts from the beginning.
    ///
    /// # Errors
    /// [`Illegal`] at the first fact that the rules do not allow.
    pub fn fold<'f>(
        definition: &Definition,
        facts: impl IntoIterator<Item = &'f Fact>,
    ) -> Result<Self, Illegal> {
        let mut state = Self::new(definition);
        for fact in facts {
            state.apply(definition, fact)?;
        }
        Ok(state)
    }

    /// The same state, with the size of the log that it was folded from.
    #[must_use]
    pub(crate) fn with_log_of(mut self, records: &[Record]) -> Self {
        self.bytes = records.iter().map(|r| r.bytes.len() as u64).sum();
        self
    }

    /// Applies the next fact.
    ///
    /// # Errors
    /// [`Illegal`] when the rules do not allow it. The end of an attempt has then changed nothing; after any other fact the
    /// state is of no further use.
    pub fn apply(&mut self, definition: &Definition, fact: &Fact) -> Result<(), Illegal> {
        self.seq += 1;
        self.apply_next(definition, fact).inspect_err(|_| self.seq -= 1)
    }

    fn apply_next(&mut self, definition: &Definition, fact: &Fact) -> Result<(), Illegal> {
        if self.created == matches!(fact, Fact::Created(_)) {
            return Err(Illegal(format!("record {} must be `created` exactly at the start", self.seq)));
        }
        // After the end only remarks and refusals are written.
        if self.finished.is_some() && !matches!(fact, Fact::Note(_) | Fact::ActionRefused(_)) {
            return Err(Illegal(format!("record {} follows the end", self.seq)));
        }
        match fact {
            Fact::Created(started) => {
                self.created = true;
                self.input = started.input.clone();
                self.deadline = started.deadline;
                self.trace.clone_from(&started.trace);
                self.trace_state.clone_from(&started.trace_state);
                self.again.clone_from(&started.again);
                Ok(())
            }
            Fact::Carried(carried) => self.carried(definition, carried),
            Fact::Closed(_) => {
                self.close();
                Ok(())
            }
            Fact::StepStarted(at) => self.step_started(definition, at),
            Fact::StepEnded(end) => self.step_ended(definition, end),
            Fact::UndoStarted(at) => self.undo_started(definition, at),
            Fact::UndoEnded(end) => self.undo_ended(definition, end),
            Fact::Stopped(stopped) => self.stop(definition, stopped.cause.clone()),
            Fact::Action(action) => operate::apply(self, definition, action),
            Fact::Overdue(_) => {
                self.overdue = true;
                Ok(())
            }
            Fact::Finished(end) => self.finish(definition, &end.status),
            Fact::ActionRefused(_) | Fact::Note(_) => {
                self.remarks += 1;
                Ok(())
            }
        }
    }

    /// Which way it goes now.
    #[must_use]
    pub fn phase(&self, definition: &Definition) -> Phase {
        if self.stop.is_none() {
            return Phase::Forward;
        }
        match definition.pivot().map(|p| &self.nodes[p]) {
            Some(pivot) if pivot.running.is_some() => Phase::Holding,
            Some(_) if self.past_pivot(definition) => Phase::Forward,
            _ => Phase::Unwinding,
        }
    }

    /// Whether the pivot happened or may have happened: there is no way back.
    #[must_use]
    pub fn past_pivot(&self, definition: &Definition) -> bool {
        definition.pivot().map(|p| &self.nodes[p]).is_some_and(|n| n.done || n.effect() != Effect::None)
    }

    /// Whether every step that must be done before `node` is.
    #[must_use]
    pub fn ready(&self, step: &Step) -> bool {
        step.after.iter().all(|p| self.nodes[*p].done)
    }

    /// Whether `node` and everything after it needs no more undoing.
    #[must_use]
    pub fn settled(&self, definition: &Definition) -> Vec<bool> {
        let mut settled: Vec<Option<bool>> = vec![None; self.nodes.len()];
        for i in 0..self.nodes.len() {
            self.settle(definition, i, &mut settled);
        }
        settled.into_iter().map(|s| s.unwrap_or(false)).collect()
    }

    fn settle(&self, definition: &Definition, i: usize, settled: &mut [Option<bool>]) -> bool {
        if let Some(known) = settled[i] {
            return known;
        }
        let step = &definition.steps()[i];
        let mut all = self.self_settled(step, i);
        for next in &step.before {
            // Visited even when the answer is known, so that every node is filled in.
            all &= self.settle(definition, *next, settled);
        }
        settled[i] = Some(all);
        all
    }

    fn self_settled(&self, step: &Step, i: usize) -> bool {
        let node = &self.nodes[i];
        if node.running.is_some() || node.undoing.is_some() {
            return false;
        }
        if node.skipped || node.effect() == Effect::None {
            return true;
        }
        // Asked whether it happened: nothing before it moves until a person answers.
        matches!(step.undo, Undo::None(_)) && node.item.is_none()
    }

    /// Where the saga stands.
    #[must_use]
    pub fn status(&self, definition: &Definition) -> SagaStatus {
        if let Some(status) = self.finished {
            return status;
        }
        let items = self.nodes.iter().any(|n| n.item.is_some());
        if items && !self.active(definition) {
            return SagaStatus::NeedsAttention;
        }
        match self.phase(definition) {
            Phase::Forward => SagaStatus::Running,
            Phase::Holding | Phase::Unwinding => SagaStatus::Compensating,
        }
    }

    /// Whether anything runs or will run without a person. What is tried slowly behind an open item does not
    /// count: the saga needs a person before such an attempt, during it and after it.
    fn active(&self, definition: &Definition) -> bool {
        if self.nodes.iter().any(|n| n.item.is_none() && (n.running.is_some() || n.undoing.is_some())) {
            return true;
        }
        let steps = definition.steps().iter().zip(&self.nodes);
        match self.phase(definition) {
            Phase::Holding => true,
            Phase::Forward => {
                steps.into_iter().any(|(s, n)| !n.done && !n.failed && n.item.is_none() && self.ready(s))
            }
            Phase::Unwinding => {
                let settled = self.settled(definition);
                steps.into_iter().enumerate().any(|(i, (s, n))| {
                    !settled[i]
                        && n.item.is_none()
                        && n.to_undo().is_some()
                        && s.before.iter().all(|j| settled[*j])
                })
            }
        }
    }

    /// How a saga with nothing left to do ends; `None` while something is left.
    #[must_use]
    pub fn end(&self, definition: &Definition) -> Option<SagaStatus> {
        let idle = self.nodes.iter().all(|n| n.running.is_none() && n.undoing.is_none());
        match self.phase(definition) {
            _ if !idle => None,
            Phase::Holding => None,
            Phase::Forward => self.nodes.iter().all(|n| n.done).then_some(SagaStatus::Completed),
            Phase::Unwinding if !self.settled(definition).iter().all(|s| *s) => None,
            Phase::Unwinding => {
                let left = |n: &Node| {
                    n.skipped && n.effect() != Effect::None || n.generations.iter().any(|g| g.left)
                };
                let left = self.nodes.iter().any(left);
                Some(if left { SagaStatus::Abandoned } else { SagaStatus::Compensated })
            }
        }
    }

    fn node(&mut self, definition: &Definition, at: &AttemptRef) -> Result<usize, Illegal> {
        definition
            .index(&at.step)
            .ok_or_else(|| Illegal(format!("record {}: no step `{}`", self.seq, at.step)))
    }

    fn refuse(&self, at: &AttemptRef, why: &str) -> Illegal {
        Illegal(format!("record {}: step `{}` attempt {}: {why}", self.seq, at.step, at.attempt))
    }

    /// Done by another saga, before anything starts here. The effect stays there: nothing to undo.
    fn carried(&mut self, definition: &Definition, carried: &Carried) -> Result<(), Illegal> {
        let seq = self.seq;
        let illegal = |why: &str| Illegal(format!("record {seq}: step `{}` {why}", carried.step));
        let i = definition.index(&carried.step).ok_or_else(|| illegal("does not exist"))?;
        if self.again.is_none() || self.nodes.iter().any(Node::started) {
            return Err(illegal("is carried over where nothing can be"));
        }
        if self.nodes[i].done || !self.ready(&definition.steps()[i]) {
            return Err(illegal("is carried over before a step it waits for, or twice"));
        }
        let node = &mut self.nodes[i];
        node.done = true;
        node.current_mut().output = Some(carried.output.clone());
        Ok(())
    }

    fn step_started(&mut self, definition: &Definition, at: &AttemptRef) -> Result<(), Illegal> {
        let i = self.node(definition, at)?;
        let step = &definition.steps()[i];
        let node = &self.nodes[i];
        let next = node.current().attempts + 1;
        let why = match () {
            () if node.running.is_some() || node.undoing.is_some() => "is already running",
            () if node.done || node.failed => "is over",
            () if at.attempt != next || at.generation as usize != node.generations.len() => {
                "is not the next one"
            }
            () if !self.ready(step) => "starts before a step it waits for",
            () if self.phase(definition) != Phase::Forward => "starts while the saga turns back",
            () if node.item.is_some_and(|i| i != ItemKind::RetriableExhausted) => "waits for a person",
            () => {
                let seq = self.seq;
                let node = &mut self.nodes[i];
                node.current_mut().attempts = next;
                node.running = Some(at.clone());
                node.start_seq = seq;
                node.retry_at = None;
                return Ok(());
            }
        };
        Err(self.refuse(at, why))
    }

    fn step_ended(&mut self, definition: &Definition, end: &StepEnded) -> Result<(), Illegal> {
        let i = self.node(definition, &end.at)?;
        if self.nodes[i].running.as_ref() != Some(&end.at) {
            return Err(self.refuse(&end.at, "ends, but is not running"));
        }
        let lost = !matches!(end.verdict, Verdict::Done { output: Some(_) });
        let failed = lost && end.retry_at.is_none() && end.item.is_none();
        let decided = match definition.steps()[i].kind {
            StepKind::Compensable => true,
            StepKind::Retriable => false,
            StepKind::Pivot => self.nodes[i].effect_after(&end.verdict) == Effect::None,
        };
        if failed && !decided {
            return Err(self.refuse(&end.at, "cannot fail for good here"));
        }
        let node = &mut self.nodes[i];
        node.running = None;
        node.withheld = if end.withheld { node.withheld + 1 } else { 0 };
        let generation = node.current_mut();
        generation.effect = generation.effect.join(&end.verdict);
        match &end.verdict {
            Verdict::Done { output: Some(output) } => {
                generation.output = Some(output.clone());
                node.done = true;
                node.item = None;
                node.last_error = None;
                return Ok(());
            }
            Verdict::Done { output: None } => {
                node.last_error = Some("done, but its output is lost".to_owned())
            }
            Verdict::ContractBroken { reason }
            | Verdict::NotSent { reason }
            | Verdict::Rejected { reason, .. }
            | Verdict::Unknown { reason, .. } => node.last_error = Some(reason.clone()),
        }
        match end.verdict {
            _ if end.withheld => {}
            Verdict::Unknown { interrupted: true, .. } => node.interrupted += 1,
            _ => node.spent += 1,
        }
        node.retry_at = end.retry_at;
        node.item = end.item;
        node.failed = failed;
        if failed {
            self.fail(&end.at.step, i);
        }
        Ok(())
    }

    /// The first failure by sequence is the cause; later ones are listed.
    fn fail(&mut self, step: &str, i: usize) {
        let reason = self.nodes[i].last_error.clone().unwrap_or_default();
        if self.stop.is_some() {
            self.also_failed.push((step.to_owned(), reason));
        } else {
            self.turn(Cause::StepFailed { step: step.to_owned(), reason });
        }
    }

    fn turn(&mut self, cause: Cause) {
        self.stop = Some(cause);
        for node in &mut self.nodes {
            // A broken contract needs no person any more: the step is undone as `Maybe`.
            if node.item == Some(ItemKind::ContractBroken) {
                node.item = None;
                node.failed = true;
            }
            // An undo that is tried slowly behind its item goes on, whichever way the saga goes.
            if node.running.is_none() && node.item != Some(ItemKind::UndoFailed) {
                node.retry_at = None;
            }
        }
    }

    fn stop(&mut self, definition: &Definition, cause: Cause) -> Result<(), Illegal> {
        if self.stop.is_some() || self.past_pivot(definition) {
            return Err(Illegal(format!("record {}: the saga cannot turn back now", self.seq)));
        }
        self.turn(cause);
        Ok(())
    }

    fn undo_started(&mut self, definition: &Definition, at: &AttemptRef) -> Result<(), Illegal> {
        let i = self.node(definition, at)?;
        let settled = self.settled(definition);
        let step = &definition.steps()[i];
        let node = &self.nodes[i];
        let next = node.to_undo().map(|g| (g, node.generations[g as usize - 1].undo_attempts + 1));
        let why = match () {
            () if self.phase(definition) != Phase::Unwinding && node.replaced() != Some(at.generation) => {
                "is undone while the saga goes forward"
            }
            () if node.running.is_some() || node.undoing.is_some() => "is undone while it runs",
            () if node.skipped || next != Some((at.generation, at.attempt)) => "has nothing to undo there",
            () if !matches!(step.undo, Undo::Call(_)) => "has no undo",
            () if !step.before.iter().all(|j| settled[*j]) => "is undone before a step that follows it",
            () if node.item.is_some_and(|i| i != ItemKind::UndoFailed) => "waits for a person",
            () => {
                let node = &mut self.nodes[i];
                node.generations[at.generation as usize - 1].undo_attempts = at.attempt;
                node.undoing = Some(at.clone());
                node.retry_at = None;
                return Ok(());
            }
        };
        Err(self.refuse(at, why))
    }

    fn undo_ended(&mut self, definition: &Definition, end: &UndoEnded) -> Result<(), Illegal> {
        let i = self.node(definition, &end.at)?;
        if self.nodes[i].undoing.as_ref() != Some(&end.at) {
            return Err(self.refuse(&end.at, "undo ends, but is not running"));
        }
        if end.verdict != UndoVerdict::Undone && end.retry_at.is_none() && end.item.is_none() {
            return Err(self.refuse(&end.at, "an undo cannot fail without a retry or a person"));
        }
        let node = &mut self.nodes[i];
        node.undoing = None;
        node.undo_withheld = if end.withheld { node.undo_withheld + 1 } else { 0 };
        match &end.verdict {
            UndoVerdict::Undone => {
                node.generations[end.at.generation as usize - 1].undone = true;
                node.item = None;
                node.retry_at = None;
                node.undo_spent = 0;
                node.undo_interrupted = 0;
                return Ok(());
            }
            UndoVerdict::Failed { reason } | UndoVerdict::Refused { reason } => {
                node.last_error = Some(reason.clone());
            }
        }
        match end {
            _ if end.withheld => {}
            _ if end.interrupted => node.undo_interrupted += 1,
            _ => node.undo_spent += 1,
        }
        node.retry_at = end.retry_at;
        node.item = end.item;
        Ok(())
    }

    /// A person gave it up from outside the rules. What was in flight may have had an effect.
    fn close(&mut self) {
        for node in &mut self.nodes {
            if node.running.take().is_some() {
                let generation = node.current_mut();
                generation.effect = generation.effect.max(Effect::Maybe);
            }
            node.undoing = None;
            node.retry_at = None;
        }
        self.finished = Some(SagaStatus::Abandoned);
    }

    fn finish(&mut self, definition: &Definition, status: &str) -> Result<(), Illegal> {
        let end = self.end(definition);
        if end.is_none() || end != SagaStatus::parse(status) {
            return Err(Illegal(format!("record {}: the saga cannot end as `{status}` now", self.seq)));
        }
        self.finished = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::wire::Started;

    /// The live engine applies ends of attempts to the only state it has, and goes on when the rules refuse one.
    #[test]
    fn the_end_of_an_attempt_that_is_refused_changes_nothing() {
        let steps = json!([
            {"name": "book", "undo": "http://a.example/cancel"},
            {"name": "pay", "kind": "pivot", "after": ["book"], "action": "http://a.example/pay"},
            {"name": "tell", "kind": "retriable", "after": ["pay"]},
        ]);
        let text = json!({"name": "trip", "version": 1, "deadline": "20s", "steps": steps}).to_string();
        let definition = Definition::from_json(text.as_bytes()).unwrap();
        let at = |step: &str, attempt| AttemptRef { step: step.to_owned(), attempt, generation: 1 };
        let unknown = || Verdict::Unknown { reason: "silence".to_owned(), interrupted: false };
        let lost = |step: &str, attempt| StepEnded {
            at: at(step, attempt),
            verdict: unknown(),
            withheld: false,
            retry_at: None,
            item: None,
        };
        let done =
            |step: &str| StepEnded { verdict: Verdict::Done { output: Some(json!(1)) }, ..lost(step, 1) };
        let refused = |state: &State, fact: Fact| {
            let mut after = state.clone();
            after.apply(&definition, &fact).unwrap_err();
            assert_eq!(&after, state, "{fact:?}");
        };
        let started =
            Started { input: json!({}), deadline: None, trace: None, trace_state: None, again: None };
        let mut state = State::new(&definition);
        let apply = |state: &mut State, fact: Fact| state.apply(&definition, &fact).unwrap();
        apply(&mut state, Fact::Created(started));
        apply(&mut state, Fact::StepStarted(at("book", 1)));
        refused(&state, Fact::StepEnded(lost("book", 2)));
        refused(&state, Fact::StepEnded(lost("hotel", 1)));
        apply(&mut state, Fact::StepEnded(done("book")));
        apply(&mut state, Fact::StepStarted(at("pay", 1)));
        // Nobody knows whether it happened, and nobody is to look: there is no such end of a pivot.
        refused(&state, Fact::StepEnded(lost("pay", 1)));
        let mut forward = state.clone();
        apply(&mut forward, Fact::StepEnded(done("pay")));
        apply(&mut forward, Fact::StepStarted(at("tell", 1)));
        refused(&forward, Fact::StepEnded(lost("tell", 1)));
        let no = Verdict::Rejected { reason: "no money".to_owned(), is_final: true };
        apply(&mut state, Fact::StepEnded(StepEnded { verdict: no, ..lost("pay", 1) }));
        apply(&mut state, Fact::UndoStarted(at("book", 1)));
        let undo = |verdict| {
            let at = at("book", 1);
            Fact::UndoEnded(UndoEnded {
                at,
                verdict,
                interrupted: false,
                withheld: false,
                retry_at: None,
                item: None,
            })
        };
        refused(&state, undo(UndoVerdict::Failed { reason: "silence".to_owned() }));
        apply(&mut state, undo(UndoVerdict::Undone));
        assert_eq!(state.end(&definition), Some(SagaStatus::Compensated));
    }
}
