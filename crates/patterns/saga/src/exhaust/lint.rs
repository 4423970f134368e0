//! What is suspicious about a definition without running it.

use std::fmt;

use serde_json::Value;

use crate::definition::{Call, Definition, MAX_PAYLOAD, Step, StepKind, Undo};

/// Something to look at. Not an error: it may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lint {
    /// A step without an undo has steps after it that may still fail: its effect then remains.
    Irreversible {
        /// The step.
        step: String,
        /// Why it has no undo.
        reason: String,
        /// A step after it that may fail.
        before: String,
    },
    /// All attempts of a step together may last longer than the saga may: it never gets them.
    LongerThanDeadline {
        /// The step.
        step: String,
    },
    /// A remote step that cannot be asked whether it happened: a lost answer is undone as `Maybe`.
    NoStatusAddress {
        /// The step.
        step: String,
    },
    /// The input takes over 80 % of what one payload may have.
    PayloadNearLimit {
        /// Its bytes.
        bytes: usize,
    },
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Irreversible { step, reason, before } => {
                write!(
                    f,
                    "`{step}` has no undo ({reason}), but `{before}` after it may fail: make it the pivot or move it last"
                )
            }
            Self::LongerThanDeadline { step } => {
                write!(f, "the attempts of `{step}` last longer than the deadline of the saga")
            }
            Self::NoStatusAddress { step } => {
                write!(f, "`{step}` has no status address: a lost answer is undone as `Maybe`")
            }
            Self::PayloadNearLimit { bytes } => {
                write!(f, "the input has {bytes} of {MAX_PAYLOAD} bytes: give a reference instead")
            }
        }
    }
}

/// Whether the kit can watch the undo of `step`.
pub(super) fn has_local_undo(step: &Step) -> bool {
    matches!(step.undo, Undo::Call(Call::Local))
}

/// Looks at a definition and an input without running anything.
///
/// ```
/// use mainstay_saga::exhaust::{Lint, lint};
/// use mainstay_saga::{Saga, StepCx, StepError, Told, UndoError};
///
/// async fn act(_: StepCx, n: u32) -> Result<u32, StepError> {
///     Ok(n)
/// }
/// let mut b = Saga::<u32>::builder("order", 1);
/// let mail = b.step("mail", b.input(), act).no_undo("mail cannot be unsent").add();
/// b.step("charge", &mail, act).undo(|_: StepCx, _: Told<u32>| async { Ok::<(), UndoError>(()) }).add();
/// let saga = b.no_deadline().build()?;
/// let lints = lint(saga.definition(), &serde_json::json!(1));
/// assert!(matches!(&lints[..], [Lint::Irreversible { step, .. }] if step == "mail"));
/// # Ok::<(), mainstay_saga::definition::DefinitionError>(())
/// ```
#[must_use]
pub fn lint(definition: &Definition, input: &Value) -> Vec<Lint> {
    let steps = definition.steps();
    let mut lints = Vec::new();
    for step in steps {
        if let Undo::None(reason) = &step.undo
            && step.kind == StepKind::Compensable
            && let Some(next) = step.before.iter().find(|j| steps[**j].kind != StepKind::Retriable)
        {
            let before = steps[*next].name.clone();
            lints.push(Lint::Irreversible { step: step.name.clone(), reason: reason.clone(), before });
        }
        if matches!(step.action, Call::Http(_)) && step.status.is_none() && step.kind != StepKind::Retriable {
            lints.push(Lint::NoStatusAddress { step: step.name.clone() });
        }
        let longest = step.timeout.saturating_mul(step.retry.attempts);
        if definition.deadline().is_some_and(|d| longest > d) && step.kind != StepKind::Retriable {
            lints.push(Lint::LongerThanDeadline { step: step.name.clone() });
        }
    }
    let bytes = input.to_string().len();
    if bytes > MAX_PAYLOAD / 5 * 4 {
        lints.push(Lint::PayloadNearLimit { bytes });
    }
    lints
}
