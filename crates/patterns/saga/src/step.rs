//! Steps that run in the process: what a closure is told and what it answers.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use mainstay_clock::Deadline;
use mainstay_store::{BoxFuture, FencingToken};
use serde_json::Value;
use tokio::sync::watch;

/// What an attempt of an action or an undo is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepCx {
    /// The saga's uid.
    pub saga: Arc<str>,
    /// The step's name.
    pub step: Arc<str>,
    /// Stable over all attempts and owners: give it to whatever must not happen twice.
    pub idempotency_key: String,
    /// Grows with every claim of the saga: give it to whatever can refuse a smaller one.
    pub fence: FencingToken,
    /// Attempt number, from 1.
    pub attempt: u32,
    /// When the attempt is given up.
    pub deadline: Deadline,
    pub(crate) cancelled: watch::Receiver<bool>,
}

impl StepCx {
    /// Resolves when the saga turned back, or shall as soon as its pivot in flight is known not to have happened: the attempt
    /// is still awaited, but may stop early. Of an undo and of a status question it never resolves, nor of a step of a saga
    /// that goes on because its pivot happened, or may have, after it had been cancelled.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn cancelled(&self) {
        let mut rx = self.cancelled.clone();
        // The engine going away is not a cancellation: the attempt is dropped with it.
        if rx.wait_for(|c| *c).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What an undo is told about the action's effect.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "an undo is only called for these two")]
pub enum Told<T> {
    /// It happened, with this output.
    Did(T),
    /// Nobody knows whether it happened, or its output is lost.
    Maybe,
}

/// Why an action did not answer with an output.
///
/// Every foreign error converts to *unknown*: an error is no proof that nothing happened. A business "no"
/// takes an explicit [`StepError::rejected`].
#[derive(Debug)]
pub struct StepError(pub(crate) StepFailure);

#[derive(Debug)]
pub(crate) enum StepFailure {
    NotSent(String),
    /// It happened, but its output cannot be written down.
    OutputLost,
    Rejected {
        reason: String,
        is_final: bool,
    },
    Unknown(String),
}

impl StepError {
    /// The participant said no: this attempt certainly had no effect.
    #[must_use]
    pub fn rejected(reason: impl fmt::Display) -> Self {
        Self(StepFailure::Rejected { reason: reason.to_string(), is_final: false })
    }

    /// The participant said no and will refuse every attempt under this key: no attempt had an effect.
    #[must_use]
    pub fn rejected_for_good(reason: impl fmt::Display) -> Self {
        Self(StepFailure::Rejected { reason: reason.to_string(), is_final: true })
    }

    /// The call was never made: certainly no effect; worth repeating.
    #[must_use]
    pub fn not_sent(reason: impl fmt::Display) -> Self {
        Self(StepFailure::NotSent(reason.to_string()))
    }

    /// It happened, but its output is lost: the step is compensated as `Maybe`.
    #[must_use]
    pub fn output_lost() -> Self {
        Self(StepFailure::OutputLost)
    }

    /// Nobody knows whether it happened.
    #[must_use]
    pub fn unknown(reason: impl fmt::Display) -> Self {
        Self(StepFailure::Unknown(reason.to_string()))
    }
}

impl<E: StdError> From<E> for StepError {
    fn from(e: E) -> Self {
        Self::unknown(e)
    }
}

/// What a step's status says about an action of which nobody knows whether it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "it did, it never will, or nobody can say")]
pub enum Known<T> {
    /// It happened, with this output.
    Did(T),
    /// It did not happen, and never will: a late attempt under this key is refused.
    Never,
    /// Nobody can say, or it may still happen.
    Unclear,
}

/// Why an undo failed.
#[derive(Debug)]
pub struct UndoError {
    pub(crate) reason: String,
    pub(crate) failure: UndoFailure,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UndoFailure {
    Failed,
    Refused,
    RefusedForGood,
}

impl UndoError {
    /// The participant refuses: after the retries a person is asked.
    #[must_use]
    pub fn refused(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), failure: UndoFailure::Refused }
    }

    /// The participant refuses and will refuse every time: a person is asked at once.
    #[must_use]
    pub fn refused_for_good(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), failure: UndoFailure::RefusedForGood }
    }

    /// It failed; repeating may help.
    #[must_use]
    pub fn failed(reason: impl fmt::Display) -> Self {
        Self { reason: reason.to_string(), failure: UndoFailure::Failed }
    }
}

impl<E: StdError> From<E> for UndoError {
    fn from(e: E) -> Self {
        Self::failed(e)
    }
}

/// A step executed in the process. Implemented for you by the typed builder; implement it to run steps on
/// JSON values.
pub trait LocalStep: Send + Sync {
    /// Runs the action.
    ///
    /// # Errors
    /// [`StepError`] says what is known about the effect.
    ///
    /// # Cancel safety
    /// The future is dropped at its deadline and when the claim is lost; that counts as unknown.
    fn act(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>>;

    /// Reverses the action. Must accept [`Told::Maybe`] and must be idempotent. `input` is what the action was given under this key,
    /// or what a person gave the undo when they retried it with another input.
    ///
    /// # Errors
    /// [`UndoError`] when it did not work.
    ///
    /// # Cancel safety
    /// The future is dropped at its deadline and when the claim is lost; it is then repeated.
    fn undo(&self, cx: StepCx, effect: Told<Value>, input: Value) -> BoxFuture<'_, Result<(), UndoError>>;

    /// Says whether the action happened, of which nobody knows: asked of steps that say
    /// [`local_status`](crate::definition::StepData::local_status), with the key of the action, before a `Maybe` is undone and
    /// before a person is asked. Must change nothing. The default cannot say.
    ///
    /// # Cancel safety
    /// The future is dropped at its deadline and when the claim is lost; that says nothing.
    fn status(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Known<Value>> {
        let _ = (cx, input);
        Box::pin(async { Known::Unclear })
    }
}
