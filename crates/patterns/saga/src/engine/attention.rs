//! What a person does to a saga.

use std::sync::PoisonError;
use std::time::Duration;

use mainstay_store::ErrorKind as StoreErrorKind;
use mainstay_store::journal::{Loaded, MAX_ID_BYTES, Posted, SagaStatus, Uid};
use tokio::sync::oneshot;

use super::{Engine, Inner};
use crate::definition::payload_fault;
use crate::fold::Refusal;
use crate::wire::{self, Action, Fact, Operation};
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

/// What a log is searched for, when it says nothing of an action's message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Abandon,
    Cancel,
    Other,
}

impl Attention {
    /// Acts on a saga and waits until the action is on its log, accepted or refused. Both are audited.
    ///
    /// A saga that is set aside, because its log or its definition cannot be read here, takes [`Operation::TakeUp`], which
    /// is refused when it ends in the same way, and [`Operation::Abandon`], which closes it whatever its log says.
    /// A cancel may be repeated: one of a saga that is being cancelled, or that a cancel ended, is accepted and changes nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when the saga's state does not allow it or changed since it was looked at;
    /// [`ErrorKind::ApiMisuse`] without a reason; [`ErrorKind::TooLarge`]; [`ErrorKind::NotFound`];
    /// [`ErrorKind::Overloaded`] when nobody took the action up in time: it stays in the saga's inbox.
    ///
    /// # Cancel safety
    /// A dropped future may have posted the action; repeating it with the same message is safe.
    pub async fn act(&self, uid: &Uid, request: ActionRequest) -> Result<(), Error> {
        if request.reason.trim().is_empty() {
            return Err(Error::new(ErrorKind::ApiMisuse, "an action needs a reason"));
        }
        check_size(&request)?;
        let inner = &self.engine.0;
        let message = request.message.unwrap_or_else(|| inner.new_uid().to_string());
        let asked = match request.operation {
            Operation::Cancel => Asked::Cancel,
            Operation::Abandon => Asked::Abandon,
            _ => Asked::Other,
        };
        let action = Action {
            message: message.clone(),
            who: request.who,
            reason: request.reason,
            expected_seq: request.expected_seq,
            operation: request.operation,
        };
        let bytes = serde_json::to_vec(&action)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("an action cannot be written: {e}")))?;
        let waiting = self.engine.waiting(uid, &message);
        match self.engine.post(uid, &message, wire::POST_ACTION, bytes).await? {
            Posted::Posted => {}
            // It may be on the log already; then the log has the answer.
            Posted::Duplicate => {
                if let Some(answer) = self.engine.settled(uid, &message, asked).await? {
                    return answer;
                }
            }
            // Cancelled before, and that came true: whoever cancels has what they want.
            Posted::Final(SagaStatus::Compensated)
                if asked == Asked::Cancel
                    && matches!(self.engine.settled(uid, &message, asked).await?, Some(Ok(()))) =>
            {
                return Ok(());
            }
            Posted::Final(status) => return Err(refused(&Refusal::Finished(status))),
            Posted::NoSuchSaga => {
                return Err(Error::new(ErrorKind::NotFound, format!("there is no saga {uid}")));
            }
            Posted::InboxFull => return Err(Error::new(ErrorKind::Overloaded, "the saga's inbox is full")),
        }
        waiting.answer().await
    }

    pub(super) fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// Longest reason of an action: 4,000 characters, whatever they are.
const MAX_WORDS: usize = 16_000;

/// An action is on the log for ever: it is no place for documents.
fn check_size(request: &ActionRequest) -> Result<(), Error> {
    let payload = match &request.operation {
        Operation::Retry { input: Some(value), .. } | Operation::ResolveDone { output: value, .. } => {
            payload_fault(value)
        }
        _ => None,
    };
    if let Some(why) = payload {
        return Err(Error::new(ErrorKind::TooLarge, format!("the input or output {why}")));
    }
    let step = request.operation.step().map_or(0, str::len);
    let sizes = [
        ("who acts", request.who.len(), MAX_ID_BYTES),
        ("the step", step, MAX_ID_BYTES),
        ("the reason", request.reason.len(), MAX_WORDS),
    ];
    match sizes.into_iter().find(|(_, size, most)| size > most) {
        Some((what, size, most)) => {
            let why = format!("{what} has {size} bytes; at most {most} are allowed");
            Err(Error::new(ErrorKind::TooLarge, why))
        }
        None => Ok(()),
    }
}

impl Engine {
    /// Posts a message and tells whoever drives the saga, in a task of its own: a caller that goes away while the
    /// message is committed does not take the hint along.
    pub(super) async fn post(
        &self,
        uid: &Uid,
        message: &str,
        kind: u16,
        bytes: Vec<u8>,
    ) -> Result<Posted, Error> {
        let (sender, answer) = oneshot::channel();
        let (engine, uid, message) = (self.clone(), uid.clone(), message.to_owned());
        self.0.runtime.spawn("mainstay-saga-post", async move {
            let posted = engine.0.journal.post(&uid, &message, kind, bytes).await;
            // Also after an error: the message may be there.
            engine.hint(&uid);
            // The caller may have gone.
            let _ = sender.send(posted);
        });
        match answer.await {
            Ok(posted) => Ok(posted?),
            Err(_) => {
                Err(Error::new(ErrorKind::Overloaded, "the engine stopped while it posted the message"))
            }
        }
    }

    /// Tells whoever drives the saga that there is something in its inbox.
    fn hint(&self, uid: &Uid) {
        match self.0.active().get(uid) {
            Some(active) => active.wake.notify_one(),
            None => self.0.poke.notify_one(),
        }
    }

    /// What the log says of an action that was posted as `message`.
    async fn settled(
        &self,
        uid: &Uid,
        message: &str,
        asked: Asked,
    ) -> Result<Option<Result<(), Error>>, Error> {
        let Some(loaded) = self.load_or_row(uid).await? else { return Ok(None) };
        let mut cancelled = false;
        let on_log = loaded.records.iter().find_map(|record| match wire::decode(record) {
            Ok(Fact::Action(action)) if action.message == message => Some(Ok(())),
            Ok(Fact::Closed(closed)) if closed.message == message => Some(Ok(())),
            Ok(Fact::Action(action)) => {
                cancelled |= action.operation == Operation::Cancel;
                None
            }
            Ok(Fact::ActionRefused(refused)) if refused.message == message => {
                Some(Err(Error::new(ErrorKind::Conflict, refused.why)))
            }
            _ => None,
        });
        // Taken up without a trace: a log keeps no end of refusals.
        let waits = loaded.posts.iter().any(|p| p.message == message);
        let status = loaded.summary.row.status;
        if on_log.is_none() && waits && status.is_final() && !(asked == Asked::Cancel && cancelled) {
            // It came just before the end, and nobody takes it up any more.
            return Ok(Some(Err(refused(&Refusal::Finished(status)))));
        }
        // A log that is damaged or full does not say who closed its saga. A cancel that repeated another is no action of its
        // own.
        let done = match asked {
            Asked::Abandon => status == SagaStatus::Abandoned,
            Asked::Cancel => cancelled,
            Asked::Other => false,
        };
        let before = || Error::new(ErrorKind::Conflict, "the action was refused before");
        let is_heard = !waits || status.is_final();
        Ok(on_log.or_else(|| is_heard.then(|| if done { Ok(()) } else { Err(before()) })))
    }

    /// A saga; one whose log is damaged without its records.
    pub(super) async fn load_or_row(&self, uid: &Uid) -> Result<Option<Loaded>, Error> {
        let journal = &self.0.journal;
        match journal.load(uid).await {
            Err(e) if e.kind() == StoreErrorKind::Corrupt => {
                let Some(summary) = journal.summary(uid).await? else { return Ok(None) };
                Ok(Some(Loaded { summary, records: Vec::new(), posts: journal.inbox(uid).await? }))
            }
            other => Ok(other?),
        }
    }

    /// Registers a wait for the answer to a message, before it is posted.
    pub(super) fn waiting(&self, uid: &Uid, message: &str) -> Waiting<'_> {
        let (sender, answer) = oneshot::channel();
        let key = answer_key(uid, message);
        let mut all = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(key.clone()).or_default().push(sender);
        Waiting { engine: self, key, answer }
    }
}

impl Inner {
    /// Tells whoever waits for the answer to a message.
    pub(super) fn answer(&self, uid: &Uid, message: &str, answer: &Result<(), Refusal>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for waiter in waiting.remove(&answer_key(uid, message)).into_iter().flatten() {
            // The waiter may have gone; the log or the audit has the answer.
            let _ = waiter.send(answer.clone());
        }
    }
}

/// Message ids are unique per saga only.
fn answer_key(uid: &Uid, message: &str) -> String {
    format!("{uid} {message}")
}

fn refused(refusal: &Refusal) -> Error {
    Error::new(ErrorKind::Conflict, refusal.to_string())
}

/// A wait for the answer of whoever drives the saga. It ends with this value, however that goes.
pub(super) struct Waiting<'a> {
    engine: &'a Engine,
    key: String,
    answer: oneshot::Receiver<Result<(), Refusal>>,
}

impl Waiting<'_> {
    /// The answer, within bounds.
    pub(super) async fn answer(mut self) -> Result<(), Error> {
        /// A saga in memory answers within milliseconds; one on another node within a poll or two.
        const PATIENCE: Duration = Duration::from_secs(10);
        let overloaded = |why| Err(Error::new(ErrorKind::Overloaded, why));
        let clock = self.engine.0.runtime.clock();
        tokio::select! {
            biased;
            result = &mut self.answer => match result {
                Ok(Ok(())) => Ok(()),
                Ok(Err(refusal)) => Err(refused(&refusal)),
                Err(_) => overloaded("the engine stopped before the message was taken up"),
            },
            () = clock.sleep(PATIENCE) => {
                overloaded("the message is in the saga's inbox, but nobody took it up yet")
            }
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.answer.close();
        let mut all = self.engine.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(waiters) = all.get_mut(&self.key) {
            waiters.retain(|w| !w.is_closed());
            if waiters.is_empty() {
                all.remove(&self.key);
            }
        }
    }
}
