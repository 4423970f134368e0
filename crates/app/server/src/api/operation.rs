//! An action of a person, as it comes over the wire: for one saga and for many.

use mainstay_saga::wire::Operation;
use serde::Deserialize;
use serde_json::Value;

use crate::error::Code;
use crate::http::Problem;
use crate::redact::Redact;

/// Longest reason: it stands in the audit for ever.
pub(crate) const MAX_REASON: usize = 4_096;

/// Refuses what says nothing, and more than the audit takes.
///
/// # Errors
/// 400 naming the field.
pub(crate) fn check_reason(reason: &str) -> Result<(), Problem> {
    if reason.trim().is_empty() || reason.len() > MAX_REASON {
        return Err(Problem::new(Code::BadRequest, "`reason` has 1 to 4096 bytes"));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Name {
    Abandon,
    Acknowledge,
    Cancel,
    Compensate,
    Pause,
    Resolve,
    Resume,
    Retry,
    RunAgain,
    Skip,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Resolved {
    Done,
    NotDone,
    Undone,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Body {
    pub(super) action: Name,
    #[serde(default)]
    pub(super) step: Option<String>,
    /// The step that a run starts from.
    #[serde(default)]
    pub(super) from: Option<String>,
    /// The id of the new saga of a run.
    #[serde(default)]
    pub(super) id: Option<String>,
    #[serde(default)]
    pub(super) input: Option<Value>,
    #[serde(default, rename = "as")]
    resolved: Option<Resolved>,
    #[serde(default)]
    pub(super) output: Option<Value>,
    /// Why; `evidence` is the same field under the name that fits a resolve.
    #[serde(alias = "evidence")]
    pub(super) reason: String,
}

impl Body {
    /// Refuses what no action takes.
    ///
    /// # Errors
    /// 400 naming the field.
    pub(super) fn check(&self, redact: &Redact) -> Result<(), Problem> {
        let bad = |why: &str| Err(Problem::new(Code::BadRequest, why));
        if [&self.input, &self.output].into_iter().flatten().any(|payload| redact.has_hidden(payload)) {
            return bad("the payload has a value that is hidden from you as `[hidden]`: send the real one");
        }
        check_reason(&self.reason)?;
        let on_step = matches!(self.action, Name::Resolve | Name::Retry | Name::Skip);
        // A saga that is set aside as a whole is retried as a whole.
        let whole = self.action == Name::Retry && self.input.is_none();
        if on_step != self.step.is_some() && !(whole && self.step.is_none()) {
            return bad(
                "`step` is for resolve, retry and skip, and needed there but for a retry of a saga that is set aside",
            );
        }
        if self.input.is_some() && !matches!(self.action, Name::Retry | Name::RunAgain) {
            return bad("`input` is for retry and run_again");
        }
        if (self.from.is_some() || self.id.is_some()) && self.action != Name::RunAgain {
            return bad("`from` and `id` are for run_again");
        }
        if self.resolved.is_some() != (self.action == Name::Resolve) {
            return bad("`as` is for resolve, and needed there: done, not_done or undone");
        }
        if self.output.is_some() && !matches!(self.resolved, Some(Resolved::Done)) {
            return bad("`output` is for resolve as done");
        }
        Ok(())
    }

    /// The action of the engine. A run of a finished saga is none: `None`.
    pub(super) fn operation(&self) -> Option<Operation> {
        let step = self.step.clone().unwrap_or_default();
        Some(match (self.action, self.resolved) {
            (Name::RunAgain, _) => return None,
            (Name::Abandon, _) => Operation::Abandon,
            (Name::Acknowledge, _) => Operation::Acknowledge,
            (Name::Cancel, _) => Operation::Cancel,
            (Name::Compensate, _) => Operation::Compensate,
            (Name::Pause, _) => Operation::Pause,
            (Name::Resume, _) => Operation::Resume,
            (Name::Retry, _) if self.step.is_none() => Operation::TakeUp,
            (Name::Retry, _) => Operation::Retry { step, input: self.input.clone() },
            (Name::Skip, _) => Operation::Skip { step },
            (Name::Resolve, Some(Resolved::NotDone)) => Operation::ResolveNotDone { step },
            (Name::Resolve, Some(Resolved::Undone)) => Operation::ResolveUndone { step },
            (Name::Resolve, _) => {
                Operation::ResolveDone { step, output: self.output.clone().unwrap_or(Value::Null) }
            }
        })
    }
}
