//! A participant reports by itself how an accepted attempt ended.

use mainstay_store::journal::{Posted, Uid};

use super::Engine;
use crate::definition::MAX_PAYLOAD;
use crate::fold::Refusal;
use crate::wire::{self, AttemptRef, Completed, Completion, Verdict};
use crate::{Error, ErrorKind};

impl Engine {
    /// Ends an attempt that its participant accepted with "in progress", from whichever node the report reaches.
    ///
    /// Idempotent: the report of one attempt is taken once. A report of an attempt that is over (answered, timed
    /// out, interrupted by a crash and repeated) is refused and kept as a remark: only the attempt in flight
    /// decides.
    ///
    /// # Errors
    /// [`ErrorKind::Conflict`] when the attempt is not in flight; [`ErrorKind::NotFound`];
    /// [`ErrorKind::TooLarge`]; [`ErrorKind::Overloaded`] when nobody took the report up in time: it stays in
    /// the saga's inbox.
    ///
    /// # Cancel safety
    /// A dropped future may have posted the report; repeating it is safe.
    pub async fn complete(&self, uid: &Uid, at: AttemptRef, result: Completed) -> Result<(), Error> {
        let (op, size) = match &result {
            Completed::Action(Verdict::Done { output: Some(output) }) => ("action", output.to_string().len()),
            Completed::Action(_) => ("action", 0),
            Completed::Undo(_) => ("undo", 0),
        };
        if size > MAX_PAYLOAD {
            let why = format!("the output has {size} bytes; at most {MAX_PAYLOAD} are allowed");
            return Err(Error::new(ErrorKind::TooLarge, why));
        }
        let message = format!("complete/{}/{op}/{}/{}", at.step, at.generation, at.attempt);
        let completion = Completion { message: message.clone(), at, result };
        let bytes = serde_json::to_vec(&completion)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("a report cannot be written: {e}")))?;
        let waiting = self.waiting(uid, &message);
        match self.0.journal.post(uid, &message, wire::POST_COMPLETE, bytes).await? {
            Posted::Posted => {}
            // The first one was answered; whatever it was, this one adds nothing.
            Posted::Duplicate => return Ok(()),
            Posted::Final(status) => {
                return Err(Error::new(ErrorKind::Conflict, Refusal::Finished(status).to_string()));
            }
            Posted::NoSuchSaga => {
                return Err(Error::new(ErrorKind::NotFound, format!("there is no saga {uid}")));
            }
            Posted::InboxFull => return Err(Error::new(ErrorKind::Overloaded, "the saga's inbox is full")),
        }
        self.hint(uid);
        waiting.answer().await
    }
}
