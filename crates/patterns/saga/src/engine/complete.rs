//! A participant reports by itself how an accepted attempt ended.

use std::sync::Arc;

use mainstay_store::journal::{Posted, Record, Uid};

use super::Engine;
use super::calls::cut;
use super::drive::Drive;
use super::policies;
use crate::definition::payload_fault;
use crate::fold::{Illegal, Refusal};
use crate::next::{end_step, end_undo};
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

/// Why it ended as it did, where that was said.
fn reason_of(result: &Completed) -> Option<&str> {
    match result {
        Completed::Action(
            Verdict::ContractBroken { reason }
            | Verdict::NotSent { reason }
            | Verdict::Rejected { reason, .. }
            | Verdict::Unknown { reason, .. },
        )
        | Completed::Undo(UndoVerdict::Failed { reason } | UndoVerdict::Refused { reason }) => Some(reason),
        Completed::Action(Verdict::Done { .. }) | Completed::Undo(UndoVerdict::Undone) => None,
    }
}

impl Engine {
    /// Ends an attempt that its participant accepted with "in progress", from whichever node the report reaches.
    ///
    /// Idempotent: the report of one attempt is taken once, and a repeated one is told whether what it says stands.
    /// A report of an attempt that is over (answered, timed
    /// out, interrupted by a crash and repeated) is refused and kept as a remark: only the attempt in flight
    /// decides. One that leaves open what became of a step that a person would be asked about has the step's status asked
    /// first.
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

    /// What the log says of a report that was posted before; `None` while it waits in the inbox. One that was taken from
    /// there, of an attempt that did not end, left open what became of it, and its step is being asked.
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
        // What nobody took up before the end, nobody takes up any more.
        let waits =
            !loaded.summary.row.status.is_final() && loaded.posts.iter().any(|p| p.message == report.message);
        let begun = |record: &Record| {
            matches!((wire::decode(record), &report.result),
                (Ok(Fact::StepStarted(at)), Completed::Action(Verdict::Unknown { .. })) if at == report.at)
        };
        Ok(match stands {
            Some(true) => Some(Ok(())),
            None if waits => None,
            None if loaded.records.iter().any(begun) => Some(Ok(())),
            _ => {
                let why = Refusal::NotLegal { action: "complete", why: "the attempt is not in flight" };
                Some(Err(Error::new(ErrorKind::Conflict, why.to_string())))
            }
        })
    }
}

impl Drive {
    /// A participant reports the end of an attempt. Only the attempt in flight decides anything. Where its end would ask
    /// a person whether it happened, its step is asked before, as it is after an answer that says no more.
    pub(super) fn reported(&mut self, report: Completion) -> Result<(), Illegal> {
        let definition = Arc::clone(&self.registered.definition);
        let node = definition.index(&report.at.step).map(|i| &self.state.nodes[i]);
        let in_flight = node.and_then(|n| match report.result {
            Completed::Action(_) => n.running.as_ref(),
            Completed::Undo(_) => n.undoing.as_ref(),
        });
        let AttemptRef { step, attempt, .. } = report.at.clone();
        if in_flight != Some(&report.at) {
            self.note(format!("a report of attempt {attempt} of step `{step}` came too late"))?;
            let why = Refusal::NotLegal { action: "complete", why: "the attempt is not in flight" };
            self.answers.push((report.message, Err(why)));
            return Ok(());
        }
        let (now, jitter) = (self.inner.time.now(), self.inner.runtime.rng().unit());
        let health = policies::health_of(&report.result);
        let said = reason_of(&report.result).map(str::to_owned);
        let fact = match report.result {
            Completed::Action(verdict) => {
                Fact::StepEnded(end_step(&definition, &self.state, report.at, verdict, now, jitter, None))
            }
            Completed::Undo(verdict) => {
                Fact::UndoEnded(end_undo(&definition, &self.state, report.at, verdict, now, jitter, None))
            }
        };
        let question = self.question_of(&fact);
        if question.is_none() {
            self.apply_end(fact)?;
        } else {
            // What it said is not lost, whatever comes of the question.
            let said = said.unwrap_or_default();
            self.note(format!(
                "a report ended attempt {attempt} of step `{step}`, which is asked now: {said}"
            ))?;
        }
        if let Some(stop) = self.stops.remove(&step) {
            // The call may have ended by itself just now; then its result comes too late.
            let _ = stop.send(Some(health));
        }
        if let Some((at, question)) = question {
            self.make(&at, None, question);
        }
        self.answers.push((report.message, Ok(())));
        Ok(())
    }
}
