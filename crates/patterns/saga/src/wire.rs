//! What the journal stores: record kinds and their JSON payloads.
//!
//! These types are never the domain types. A kind's payload never changes its meaning; a new meaning is a
//! new kind. An unknown kind quarantines the saga that carries it.

use mainstay_store::journal::{NewRecord, Record};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Kinds 20 to 39 are reserved: timers (20, 21), signals (22, 23), fan-out (24), sub-sagas (25, 26),
/// semantic locks (27, 28), upgrades (29).
mod kind {
    pub(super) const CREATED: u16 = 1;
    pub(super) const STEP_STARTED: u16 = 2;
    pub(super) const STEP_ENDED: u16 = 3;
    pub(super) const UNDO_STARTED: u16 = 4;
    pub(super) const UNDO_ENDED: u16 = 5;
    pub(super) const STOPPED: u16 = 6;
    pub(super) const ACTION: u16 = 7;
    pub(super) const ACTION_REFUSED: u16 = 8;
    pub(super) const OVERDUE: u16 = 9;
    pub(super) const FINISHED: u16 = 10;
    pub(super) const NOTE: u16 = 11;
    pub(super) const CARRIED: u16 = 12;
    pub(super) const CLOSED: u16 = 13;
}

/// A fact of a saga.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Fact {
    /// A person acted.
    Action(Action),
    /// A person's action was refused.
    ActionRefused(ActionRefused),
    /// A step was done by the saga that this one runs again.
    Carried(Carried),
    /// A person closed a saga that was set aside.
    Closed(Closed),
    /// The saga exists.
    Created(Started),
    /// Nothing will happen any more.
    Finished(Finished),
    /// Something worth keeping that changes nothing: a late result.
    Note(Note),
    /// The deadline passed after the pivot.
    Overdue(Overdue),
    /// An attempt ended.
    StepEnded(StepEnded),
    /// An attempt is about to be made.
    StepStarted(AttemptRef),
    /// No new step starts; what has an effect is undone.
    Stopped(Stopped),
    /// An undo attempt ended.
    UndoEnded(UndoEnded),
    /// An undo attempt is about to be made.
    UndoStarted(AttemptRef),
}

/// The first fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Started {
    /// The saga's input.
    pub input: Value,
    /// When going forward must have passed the pivot, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<i64>,
    /// Trace context of the request that started it, sent on with every call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    /// What tracing systems added to it (W3C `tracestate`), sent on with every call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_state: Option<String>,
    /// The uid of the saga that it runs again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub again: Option<String>,
}

/// A step that counts as done because an earlier saga did it. Its effect stays that saga's: it is never undone
/// here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Carried {
    /// Step name.
    pub step: String,
    /// Its output there.
    pub output: Value,
}

/// Which attempt of which step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct AttemptRef {
    /// Step name.
    pub step: String,
    /// Attempt number, from 1, over the whole generation.
    pub attempt: u32,
    /// Key generation, from 1; grows with every retry with edited input.
    pub generation: u32,
}

/// What an attempt of an action came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "the verdicts of the design")]
pub enum Verdict {
    /// Not understood: never repeated blindly.
    ContractBroken {
        /// What was wrong.
        reason: String,
    },
    /// It happened.
    Done {
        /// Its output; absent when the effect is certain and the output is lost. An output of `null` is one.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        output: Option<Value>,
    },
    /// It was never sent.
    NotSent {
        /// Why.
        reason: String,
    },
    /// The participant said no: no effect of this attempt.
    Rejected {
        /// Why.
        reason: String,
        /// No effect of any attempt under this key, ever.
        #[serde(rename = "final")]
        is_final: bool,
    },
    /// Nobody knows.
    Unknown {
        /// What happened instead of an answer.
        reason: String,
        /// The process died during the attempt.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        interrupted: bool,
    },
}

/// Why a person is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ItemKind {
    /// The participant broke its contract.
    ContractBroken,
    /// A step after the pivot keeps failing; it is still repeated.
    RetriableExhausted,
    /// An undo was refused or keeps failing.
    UndoFailed,
    /// Nobody knows whether the step happened, and guessing is not allowed.
    UnknownOutcome,
}

/// The end of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct StepEnded {
    /// Which attempt.
    #[serde(flatten)]
    pub at: AttemptRef,
    /// What it came to.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// A policy of this side refused it: nothing was sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
    /// When the next attempt starts, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<i64>,
    /// A person is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<ItemKind>,
}

/// What an attempt of an undo came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "an undo worked, was refused, or failed")]
pub enum UndoVerdict {
    /// It failed; repeating may help.
    Failed {
        /// Why.
        reason: String,
    },
    /// The participant refuses: repeating does not help.
    Refused {
        /// Why.
        reason: String,
    },
    /// The effect is reversed, or never was.
    Undone,
}

/// The end of an undo attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct UndoEnded {
    /// Which attempt.
    #[serde(flatten)]
    pub at: AttemptRef,
    /// What it came to.
    #[serde(flatten)]
    pub verdict: UndoVerdict,
    /// The process died during the attempt.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interrupted: bool,
    /// A policy of this side refused it: nothing was sent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub withheld: bool,
    /// When the next attempt starts, Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at: Option<i64>,
    /// A person is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub item: Option<ItemKind>,
}

/// Why a saga turned back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Cause {
    /// A person or a program cancelled it.
    Cancelled {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// The deadline passed.
    DeadlineExceeded,
    /// An operator chose to compensate.
    Operator {
        /// Who.
        by: String,
        /// Why.
        reason: String,
    },
    /// A step failed for good.
    StepFailed {
        /// The step.
        step: String,
        /// Its last error.
        reason: String,
    },
}

/// The turn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Stopped {
    /// Why.
    #[serde(flatten)]
    pub cause: Cause,
}

/// What a person did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Operation {
    /// Close the saga with effects remaining.
    Abandon,
    /// A person has seen that it is overdue; nothing else changes.
    Acknowledge,
    /// Turn back; refused after the pivot.
    Cancel,
    /// Turn back as an operator; refused after the pivot.
    Compensate,
    /// Start nothing new.
    Pause,
    /// The step happened, with this output.
    ResolveDone {
        /// Step name.
        step: String,
        /// Its output.
        output: Value,
    },
    /// The step did not happen.
    ResolveNotDone {
        /// Step name.
        step: String,
    },
    /// The step's effect is reversed.
    ResolveUndone {
        /// Step name.
        step: String,
    },
    /// Go on after a pause.
    Resume,
    /// Try again, now, with a fresh count of attempts.
    Retry {
        /// Step name.
        step: String,
        /// Another input, under a new key generation. What may have happened under the former one is undone before, by
        /// a step that has an undo. Of an undo: what it is told.
        #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "present")]
        input: Option<Value>,
    },
    /// Leave the step or the undo as it is.
    Skip {
        /// Step name.
        step: String,
    },
    /// Read a saga that was set aside anew, and go on where its log ends. Nothing else changes.
    TakeUp,
}

impl Operation {
    /// The name in audit lines.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Abandon => "abandon",
            Self::Acknowledge => "acknowledge",
            Self::Cancel => "cancel",
            Self::Compensate => "compensate",
            Self::Pause => "pause",
            Self::ResolveDone { .. } => "resolve_done",
            Self::ResolveNotDone { .. } => "resolve_not_done",
            Self::ResolveUndone { .. } => "resolve_undone",
            Self::Resume => "resume",
            Self::Retry { .. } | Self::TakeUp => "retry",
            Self::Skip { .. } => "skip",
        }
    }

    /// The step it is about.
    #[must_use]
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::ResolveDone { step, .. }
            | Self::ResolveNotDone { step }
            | Self::ResolveUndone { step }
            | Self::Retry { step, .. }
            | Self::Skip { step } => Some(step),
            _ => None,
        }
    }
}

/// An action of a person, as posted and as recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Action {
    /// Idempotency id of the message.
    pub message: String,
    /// Who.
    pub who: String,
    /// Why; for `resolve` and `skip` the evidence.
    pub reason: String,
    /// The sequence the person saw; another one is a conflict. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_seq: Option<u64>,
    /// What.
    #[serde(flatten)]
    pub operation: Operation,
}

/// A refused action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct ActionRefused {
    /// Idempotency id of the message.
    pub message: String,
    /// Who.
    pub who: String,
    /// What.
    pub action: String,
    /// Why it was refused.
    pub why: String,
}

/// A person gave up a saga that no node could drive, and ended it for good: whatever its log says, in whatever order.
/// Effects that it had stay; an attempt in flight may have had one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Closed {
    /// Idempotency id of the message.
    pub message: String,
    /// Who.
    pub who: String,
    /// The evidence.
    pub reason: String,
    /// Why nobody could drive it.
    pub why: String,
}

/// The deadline passed too late to turn back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Overdue {}

/// The last fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Finished {
    /// `completed`, `compensated` or `abandoned`.
    pub status: String,
}

/// A remark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Note {
    /// The text.
    pub text: String,
}

/// Why a record cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The payload does not fit its kind.
    #[error("record {seq} of kind {kind} cannot be read: {message}")]
    Payload {
        /// Sequence number.
        seq: u64,
        /// Kind.
        kind: u16,
        /// What the parser says.
        message: String,
    },
    /// A kind of a newer version.
    #[error("record {seq} has kind {kind}, which this version does not know")]
    UnknownKind {
        /// Sequence number.
        seq: u64,
        /// Kind.
        kind: u16,
    },
}

/// A value that is there, also when it is `null`: serde would take that for none, and a step without an output would
/// be read as one whose output is lost.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Encodes a fact.
#[must_use]
pub fn encode(fact: &Fact) -> NewRecord {
    fn json<T: Serialize>(kind: u16, payload: &T) -> NewRecord {
        let bytes = serde_json::to_vec(payload).expect("invariant: payloads are plain data with text keys");
        NewRecord { kind, bytes }
    }
    match fact {
        Fact::Action(p) => json(kind::ACTION, p),
        Fact::ActionRefused(p) => json(kind::ACTION_REFUSED, p),
        Fact::Carried(p) => json(kind::CARRIED, p),
        Fact::Closed(p) => json(kind::CLOSED, p),
        Fact::Created(p) => json(kind::CREATED, p),
        Fact::Finished(p) => json(kind::FINISHED, p),
        Fact::Note(p) => json(kind::NOTE, p),
        Fact::Overdue(p) => json(kind::OVERDUE, p),
        Fact::StepEnded(p) => json(kind::STEP_ENDED, p),
        Fact::StepStarted(p) => json(kind::STEP_STARTED, p),
        Fact::Stopped(p) => json(kind::STOPPED, p),
        Fact::UndoEnded(p) => json(kind::UNDO_ENDED, p),
        Fact::UndoStarted(p) => json(kind::UNDO_STARTED, p),
    }
}

/// Decodes a record.
///
/// # Errors
/// [`DecodeError`] for an unknown kind or an unreadable payload.
pub fn decode(record: &Record) -> Result<Fact, DecodeError> {
    fn json<T: DeserializeOwned>(record: &Record) -> Result<T, DecodeError> {
        serde_json::from_slice(&record.bytes).map_err(|e| DecodeError::Payload {
            seq: record.seq,
            kind: record.kind,
            message: e.to_string(),
        })
    }
    Ok(match record.kind {
        kind::ACTION => Fact::Action(json(record)?),
        kind::ACTION_REFUSED => Fact::ActionRefused(json(record)?),
        kind::CARRIED => Fact::Carried(json(record)?),
        kind::CLOSED => Fact::Closed(json(record)?),
        kind::CREATED => Fact::Created(json(record)?),
        kind::FINISHED => Fact::Finished(json(record)?),
        kind::NOTE => Fact::Note(json(record)?),
        kind::OVERDUE => Fact::Overdue(json(record)?),
        kind::STEP_ENDED => Fact::StepEnded(json(record)?),
        kind::STEP_STARTED => Fact::StepStarted(json(record)?),
        kind::STOPPED => Fact::Stopped(json(record)?),
        kind::UNDO_ENDED => Fact::UndoEnded(json(record)?),
        kind::UNDO_STARTED => Fact::UndoStarted(json(record)?),
        kind => return Err(DecodeError::UnknownKind { seq: record.seq, kind }),
    })
}

/// Kind of an inbox message that carries an [`Action`].
pub const POST_ACTION: u16 = 1;
/// Kind of an inbox message that only makes a saga due.
pub const POST_WAKE: u16 = 2;
/// Kind of an inbox message that carries a [`Completion`].
pub const POST_COMPLETE: u16 = 3;
/// Kind of an inbox message that says that an owner is about to take the saga up alone.
pub const POST_ALONE: u16 = 4;

/// What a participant reports by itself after it answered "in progress".
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[allow(clippy::exhaustive_structs, reason = "a payload is exactly this")]
pub struct Completion {
    /// Idempotency id of the message.
    pub message: String,
    /// Which attempt.
    pub at: AttemptRef,
    /// What it came to.
    pub result: Completed,
}

/// The end of an attempt of an action or of an undo.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "a step has an action and an undo")]
pub enum Completed {
    /// Of the action.
    Action(Verdict),
    /// Of the undo.
    Undo(UndoVerdict),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn again(fact: &Fact) -> Fact {
        let new = encode(fact);
        decode(&Record {
            seq: 1,
            at: mainstay_clock::WallTime::from_unix_millis(0),
            kind: new.kind,
            bytes: new.bytes,
        })
        .expect("it was just encoded")
    }

    #[test]
    fn an_output_or_input_of_null_is_not_an_absent_one() {
        let at = AttemptRef { step: "ship".to_owned(), attempt: 1, generation: 1 };
        for output in [Some(Value::Null), None, Some(Value::Bool(false))] {
            let verdict = Verdict::Done { output };
            let fact = Fact::StepEnded(StepEnded {
                at: at.clone(),
                verdict,
                withheld: false,
                retry_at: None,
                item: None,
            });
            assert_eq!(again(&fact), fact);
        }
        for input in [Some(Value::Null), None] {
            let retry = Operation::Retry { step: "ship".to_owned(), input };
            let text = serde_json::to_string(&retry).expect("plain data");
            assert_eq!(serde_json::from_str::<Operation>(&text).expect("just written"), retry);
        }
    }
}
