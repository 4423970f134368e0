//! What a person does to a saga.

use std::sync::PoisonError;
use std::time::Duration;

use mainstay_store::journal::{Posted, Uid};
use tokio::sync::oneshot;

use super::Engine;
use crate::fold::Refusal;
use crate::wire::{self, Action, Operation};
use crate::{Error, ErrorKind};

/// An action of a person.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ActionRequest {
    /// Who acts; goes to the audit.
    pub who: String,
    /// Why; required, goes to the audit. For `resolve` the evidence.
    pub reason: String,
    /// The sequence the person saw (a row's `next_seq`); another one is refused as stale.
    pub expected_seq: Option<u64>,
    /// Makes the request idempotent; made by the engine when absent.
    pub message: Option<String>,
    /// What to do.
    pub operation: Operation,
}

impl ActionRequest {
    /// A request without conditions.
    #[must_use]
    pub fn new(who: impl Into<String>, reason: impl Into<String>, operation: Operation) -> Self {
        Self { who: who.into(), reason: reason.into(), expected_seq: None, message: None, operation }
    }

    /// The same request, refused unless the saga is still where the person saw it.
    #[must_use]
    pub fn expecting(mut self, seq: u64) -> Self {
        self.expected_seq = Some(seq);
        self
    }
}

/// The door to what needs a person.
#[derive(Clone, Debug)]
pub struct Attention {
    engine: Engine,
}

impl Engine {
    /// What a person may do.
    #[must_use]
    pub fn attention(&self) -> Attention {
        Attention { engine: self.clone() }
    }
}

impl Attention {
    /// Acts on a saga and waits until the action is on its log, accepted or refused. Both are audited.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when the saga's state does not allow it or changed since it was looked at;
    /// [`ErrorKind::ApiMisuse`] without a reason; [`ErrorKind::NotFound`]; [`ErrorKind::Overloaded`] when
    /// nobody took the action up in time: it stays in the saga's inbox.
    ///
    /// # Cancel safety
    /// A dropped future may have posted the action; repeating it with the same message is safe.
    pub async fn act(&self, uid: &Uid, request: ActionRequest) -> Result<(), Error> {
        /// A saga in memory answers within milliseconds; one on another node within a poll or two.
        const PATIENCE: Duration = Duration::from_secs(10);
        if request.reason.trim().is_empty() {
            return Err(Error::new(ErrorKind::ApiMisuse, "an action needs a reason"));
        }
        let inner = &self.engine.0;
        let message = request.message.unwrap_or_else(|| inner.new_uid().to_string());
        let action = Action {
            message: message.clone(),
            who: request.who,
            reason: request.reason,
            expected_seq: request.expected_seq,
            operation: request.operation,
        };
        let bytes = serde_json::to_vec(&action)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("an action cannot be written: {e}")))?;
        let (sender, answer) = oneshot::channel();
        let _waiting = Waiting::new(&self.engine, &message, sender);
        match inner.journal.post(uid, &message, wire::POST_ACTION, bytes).await? {
            Posted::Posted | Posted::Duplicate => {}
            Posted::Final(status) => return Err(refused(&Refusal::Finished(status))),
            Posted::NoSuchSaga => {
                return Err(Error::new(ErrorKind::NotFound, format!("there is no saga {uid}")));
            }
            Posted::InboxFull => return Err(Error::new(ErrorKind::Overloaded, "the saga's inbox is full")),
        }
        match inner.active().get(uid) {
            Some(active) => active.wake.notify_one(),
            None => inner.poke.notify_one(),
        }
        tokio::select! {
            biased;
            result = answer => match result {
                Ok(Ok(())) => Ok(()),
                Ok(Err(refusal)) => Err(refused(&refusal)),
                Err(_) => Err(Error::new(ErrorKind::Overloaded, "the engine stopped before the action was taken up")),
            },
            () = inner.runtime.clock().sleep(PATIENCE) => {
                Err(Error::new(ErrorKind::Overloaded, "the action is in the saga's inbox, but nobody took it up yet"))
            }
        }
    }
}

fn refused(refusal: &Refusal) -> Error {
    Error::new(ErrorKind::Conflict, refusal.to_string())
}

/// Takes a waiter off the list however the wait ends.
struct Waiting<'a> {
    engine: &'a Engine,
    message: &'a str,
}

impl<'a> Waiting<'a> {
    fn new(engine: &'a Engine, message: &'a str, sender: oneshot::Sender<Result<(), Refusal>>) -> Self {
        let mut waiting = engine.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.insert(message.to_owned(), sender);
        Self { engine, message }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.engine.0.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(self.message);
    }
}
