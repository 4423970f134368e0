//! What is suspicious about a definition that is not wrong.

use std::fmt;
use std::time::Duration;

use serde_json::Value;

use super::{Call, Definition, MAX_PAYLOAD, OnUnknown, RETRIABLE_ATTEMPTS, Step, StepKind, Undo};

/// Something to look at. Not an error: it may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lint {
    /// An option that has no effect on a step of its kind.
    Ignored {
        /// The step.
        step: String,
        /// The option.
        option: &'static str,
        /// Why not.
        why: &'static str,
    },
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
        /// How long its attempts and the pauses between them may last.
        longest: Duration,
        /// How long the saga may.
        deadline: Duration,
    },
    /// A person will be asked what became of a step, and nothing tells them how to find out.
    NoRunbook {
        /// The step.
        step: String,
    },
    /// A remote step that cannot be asked whether it happened: a lost answer is undone as `Maybe`, or asked of a person.
    NoStatusAddress {
        /// The step.
        step: String,
        /// What a lost answer comes to.
        asks: bool,
    },
    /// A step whose participant does not honor the key is repeated.
    NotIdempotent {
        /// The step.
        step: String,
        /// Its attempts.
        attempts: u32,
    },
    /// The input takes over 80 % of what one payload may have.
    PayloadNearLimit {
        /// Its bytes.
        bytes: usize,
    },
    /// An undo that is given up at its first failure: every blip asks for a person.
    UndoTriedOnce {
        /// The step.
        step: String,
    },
}

impl Lint {
    /// A stable name.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Ignored { .. } => "ignored",
            Self::Irreversible { .. } => "irreversible",
            Self::LongerThanDeadline { .. } => "longer_than_deadline",
            Self::NoRunbook { .. } => "no_runbook",
            Self::NoStatusAddress { .. } => "no_status_address",
            Self::NotIdempotent { .. } => "not_idempotent",
            Self::PayloadNearLimit { .. } => "payload_near_limit",
            Self::UndoTriedOnce { .. } => "undo_tried_once",
        }
    }

    /// The step that it is about.
    #[must_use]
    pub fn step(&self) -> Option<&str> {
        match self {
            Self::Ignored { step, .. }
            | Self::Irreversible { step, .. }
            | Self::LongerThanDeadline { step, .. }
            | Self::NoRunbook { step }
            | Self::NoStatusAddress { step, .. }
            | Self::NotIdempotent { step, .. }
            | Self::UndoTriedOnce { step } => Some(step),
            Self::PayloadNearLimit { .. } => None,
        }
    }

    /// Looks at an input.
    #[must_use]
    pub fn of_input(input: &Value) -> Option<Self> {
        let bytes = input.to_string().len();
        (bytes > MAX_PAYLOAD / 5 * 4).then_some(Self::PayloadNearLimit { bytes })
    }
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |d: &Duration| humantime::format_duration(*d);
        match self {
            Self::Ignored { step, option, why } => write!(f, "`{option}` of `{step}` changes nothing: {why}"),
            Self::Irreversible { step, reason, before } => {
                write!(
                    f,
                    "`{step}` has no undo ({reason}), but `{before}` after it may fail: make it the pivot or move it last"
                )
            }
            Self::LongerThanDeadline { step, longest, deadline } => {
                let (longest, deadline) = (time(longest), time(deadline));
                write!(
                    f,
                    "the attempts of `{step}` may last {longest}, but the deadline of the saga is {deadline}: it never gets them all"
                )
            }
            Self::NoRunbook { step } => {
                write!(f, "a person may be asked what became of `{step}`: say in `runbook` how to find out")
            }
            Self::NoStatusAddress { step, asks: false } => {
                write!(f, "`{step}` has no status address: a lost answer is undone as `Maybe`")
            }
            Self::NoStatusAddress { step, asks: true } => {
                write!(f, "`{step}` has no status address: a lost answer is asked of a person")
            }
            Self::NotIdempotent { step, attempts } => {
                write!(
                    f,
                    "`{step}` does not honor the key, but has {attempts} attempts: each may take effect; give it one"
                )
            }
            Self::PayloadNearLimit { bytes } => {
                write!(f, "the input has {bytes} of {MAX_PAYLOAD} bytes: give a reference instead")
            }
            Self::UndoTriedOnce { step } => {
                write!(f, "the undo of `{step}` is tried once: every blip asks for a person")
            }
        }
    }
}

/// Whether a lost answer of `step` is asked of a person.
fn asks(step: &Step) -> bool {
    step.kind == StepKind::Pivot || (step.kind == StepKind::Compensable && step.on_unknown == OnUnknown::Ask)
}

/// The longest that the attempts of a step may take, with the pauses between them.
fn longest(step: &Step) -> Duration {
    let (mut pause, mut pauses) = (step.retry.base, Duration::ZERO);
    // Doubling: after at most 64 of them each pause is the cap.
    for _ in 1..step.retry.attempts.min(64) {
        pauses = pauses.saturating_add(pause.min(step.retry.cap));
        pause = pause.saturating_mul(2);
    }
    let rest = step.retry.attempts.saturating_sub(64);
    let pauses = pauses.saturating_add(step.retry.cap.saturating_mul(rest));
    step.timeout.saturating_mul(step.retry.attempts).saturating_add(pauses)
}

/// Looks at one step. `written`: what its definition says of it.
fn of_step(definition: &Definition, i: usize, lints: &mut Vec<Lint>) {
    let (steps, written) = (definition.steps(), &definition.data().steps[i]);
    let step = &steps[i];
    let name = || step.name.clone();
    let may_fail = |j: &&usize| steps[**j].kind != StepKind::Retriable;
    if let (Undo::None(reason), StepKind::Compensable) = (&step.undo, step.kind)
        && let Some(next) = step.before.iter().find(may_fail)
    {
        let before = steps[*next].name.clone();
        lints.push(Lint::Irreversible { step: name(), reason: reason.clone(), before });
    }
    let remote = matches!(step.action, Call::Http(_));
    if remote && step.status.is_none() && step.kind != StepKind::Retriable {
        lints.push(Lint::NoStatusAddress { step: name(), asks: asks(step) });
    }
    if asks(step) && step.runbook.is_none() {
        lints.push(Lint::NoRunbook { step: name() });
    }
    if let Some(deadline) = definition.deadline().filter(|_| step.kind != StepKind::Retriable) {
        let longest = longest(step);
        if longest > deadline {
            lints.push(Lint::LongerThanDeadline { step: name(), longest, deadline });
        }
    }
    if !written.idempotent && step.retry.attempts > 1 {
        lints.push(Lint::NotIdempotent { step: name(), attempts: step.retry.attempts });
    }
    if matches!(step.undo, Undo::Call(_)) && step.undo_retry.attempts == 1 {
        lints.push(Lint::UndoTriedOnce { step: name() });
    }
    let mut ignored = |given: bool, option, why| {
        if given {
            lints.push(Lint::Ignored { step: name(), option, why });
        }
    };
    let no_undo = matches!(step.undo, Undo::None(_));
    let none = "the step has no undo";
    ignored(no_undo && written.undo_retry.is_some(), "undo_retry", none);
    ignored(no_undo && written.undo_timeout.is_some(), "undo_timeout", none);
    let reasoned = step.kind != StepKind::Compensable && written.no_undo.is_some();
    ignored(reasoned, "no_undo", "no step from the pivot on has an undo");
    let decided = step.kind != StepKind::Compensable && step.on_unknown == OnUnknown::Ask;
    ignored(decided, "on_unknown", "a pivot always asks, and a retriable step is repeated until it is done");
    let gives_up = step.kind == StepKind::Retriable
        && written.retry.and_then(|r| r.attempts).is_some_and(|n| n < RETRIABLE_ATTEMPTS);
    ignored(
        gives_up,
        "retry.attempts",
        "a retriable step is repeated until it is done; a person is told after 20",
    );
}

impl Definition {
    /// What is suspicious: it may be meant, and nothing refuses it. In the order of the steps.
    ///
    /// ```
    /// use mainstay_saga::definition::{Definition, Lint};
    ///
    /// let text = r#"
    /// name = "order"
    /// version = 1
    /// deadline = "20s"
    /// [[steps]]
    /// name = "charge"
    /// action = "https://pay.example/charge"
    /// undo = "https://pay.example/refund"
    /// status = "https://pay.example/status"
    /// "#;
    /// let lints = Definition::from_toml(text)?.lints();
    /// // Five attempts of 30 s each, by default.
    /// assert!(matches!(&lints[..], [Lint::LongerThanDeadline { step, .. }] if step == "charge"));
    /// assert_eq!(lints[0].code(), "longer_than_deadline");
    /// # Ok::<(), mainstay_saga::definition::DefinitionError>(())
    /// ```
    #[must_use]
    pub fn lints(&self) -> Vec<Lint> {
        let mut lints = Vec::new();
        for i in 0..self.steps().len() {
            of_step(self, i, &mut lints);
        }
        lints
    }
}
