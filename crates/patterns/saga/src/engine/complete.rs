//! A participant reports by itself how an accepted attempt ended.

use mainstay_store::journal::{Posted, Uid};

use super::Engine;
use super::calls::cut;
use crate::definition::payload_fault;
use crate::fold::Refusal;
use crate::wire::{self, AttemptRef, Completed, Completion, Fact, UndoVerdict, Verdict};
use crate::{Error, ErrorKind};

/// The report with reasons that a log takes.
fn bounded(mut result: Completed) -> Completed {
    match &mut result {
        Completed::Action(
            Verdict::ContractBroken { reason }
            | Verdict::NotSent { reason }
            | Verdict::Rejected { reason, .. }
            | Verdict::Unknown { reason, .. },
        )
        | Completed::Undo(UndoVerdict::Failed { reason } | UndoVerdict::Refused { reason }) => {
            *reason = cut(std::mem::take(reason));
        }
        Completed::Action(Verdict::Done { .. }) | Completed::Undo(UndoVerdict::Undone) => {}
    }
    result
}

impl Engine {
    /// Ends an attempt that its participant accepted with "in progress", from whichever node the report reaches.
    ///
    /// Idempotent: the report of one attempt is taken once, and a repeated one is told whether what it says stands.
    /// A report of an attempt that is over (answered, timed
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
        let (op, fault) = match &result {
            Completed::Action(Verdict::Done { output: Some(output) }) => ("action", payload_fault(output)),
            Completed::Action(_) => ("action", None),
            Completed::Undo(_) => ("undo", None),
        };
        if let Some(why) = fault {
            return Err(Error::new(ErrorKind::TooLarge, format!("the output {why}")));
        }
        let result = bounded(result);
        let message = format!("complete/{}/{op}/{}/{}", at.step, at.generation, at.attempt);
        let completion = Completion { message: message.clone(), at, result };
        let bytes = serde_json::to_vec(&completion)
            .map_err(|e| Error::new(ErrorKind::Internal, format!("a report cannot be written: {e}")))?;
        let waiting = self.waiting(uid, &message);
        match self.post(uid, &message, wire::POST_COMPLETE, bytes).await? {
            Posted::Posted => {}
            // It may have been taken up already; then the log has the answer.
            Posted::Duplicate => {
                if let Some(answer) = self.reported(uid, &completion).await? {
                    return answer;
                }
            }
            Posted::Final(status) => {
                return Err(Error::new(ErrorKind::Conflict, Refusal::Finished(status).to_string()));
            }
            Posted::NoSuchSaga => {
                return Err(Error::new(ErrorKind::NotFound, format!("there is no saga {uid}")));
            }
            Posted::InboxFull => return Err(Error::new(ErrorKind::Overloaded, "the saga's inbox is full")),
        }
        waiting.answer().await
    }

    /// What the log says of a report that was posted before; `None` while it waits in the inbox.
    async fn reported(&self, uid: &Uid, report: &Completion) -> Result<Option<Result<(), Error>>, Error> {
        let Some(loaded) = self.0.journal.load(uid).await? else { return Ok(None) };
        let stands = loaded.records.iter().find_map(|record| match (wire::decode(record), &report.result) {
            (Ok(Fact::StepEnded(end)), Completed::Action(told)) if end.at == report.at => {
                // A log that was nearly full did not keep the output.
                let lost = end.verdict == Verdict::Done { output: None };
                Some(end.verdict == *told || (lost && matches!(told, Verdict::Done { .. })))
            }
            (Ok(Fact::UndoEnded(end)), Completed::Undo(told)) if end.at == report.at => {
                Some(end.verdict == *told)
            }
            _ => None,
        });
        let waits = loaded.posts.iter().any(|p| p.message == report.message);
        Ok(match stands {
            Some(true) => Some(Ok(())),
            None if waits => None,
            _ => {
                let why = Refusal::NotLegal { action: "complete", why: "the attempt is not in flight" };
                Some(Err(Error::new(ErrorKind::Conflict, why.to_string())))
            }
        })
    }
}
