//! Definitions as people write them: TOML or JSON.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::check::{DefinitionError, Problem};
use super::{OnUnknown, StepKind};

/// A definition as written. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct DefinitionData {
    /// Its name, 1 to 255 bytes.
    pub name: String,
    /// Its version; one (name, version) never changes its graph.
    pub version: u32,
    /// How long a saga may go forward before its pivot is done, such as `"20s"`.
    #[serde(default, with = "human", skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// Says explicitly that there is no deadline.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_deadline: bool,
    /// Default of `timeout` for steps that set none.
    #[serde(default, with = "human", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Default of `retry` for steps that set none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryData>,
    /// Default of `undo_retry` for steps that set none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_retry: Option<RetryData>,
    /// The steps, in declaration order.
    pub steps: Vec<StepData>,
}

/// A step as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct StepData {
    /// Its name, 1 to 100 bytes of `a-z A-Z 0-9 _ -`, not `input`.
    pub name: String,
    /// `compensable` (default), `pivot` or `retriable`.
    #[serde(default = "compensable", skip_serializing_if = "is_compensable")]
    pub kind: StepKind,
    /// Names of the steps that must be done before it. Steps its input refers to are added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<String>,
    /// Address of the action; absent for a closure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// Address of the undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
    /// The undo is a closure.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local_undo: bool,
    /// Why no undo is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub no_undo: Option<String>,
    /// Address to ask whether an unknown action happened, by `GET` with the headers of the action: before a
    /// `Maybe` is undone, and before a person is asked. It answers `{"state": "done", "output": ..}`: the step is done, or its undo
    /// is told that output; or
    /// `{"state": "none", "effect": "none"}`, which promises that the action did not happen and never will: the step is rejected,
    /// or no undo is sent; anything else says nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// A closure is asked whether an unknown action happened.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local_status: bool,
    /// Its input; default `"$input"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<Value>,
    /// Whether the participant honors the idempotency key. A retriable step must.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub idempotent: bool,
    /// Longest time of one attempt.
    #[serde(default, with = "human", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Longest time of one undo attempt; default `timeout`.
    #[serde(default, with = "human", skip_serializing_if = "Option::is_none")]
    pub undo_timeout: Option<Duration>,
    /// Retries of the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryData>,
    /// Retries of the undo.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo_retry: Option<RetryData>,
    /// `compensate` (default) or `ask`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_unknown: OnUnknown,
    /// Name of the resilience policy that guards its attempts and those of its undo, beside what guards its participant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Text for whoever has to act.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runbook: Option<String>,
}

impl StepData {
    /// A compensable step without anything else.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: StepKind::Compensable,
            after: Vec::new(),
            action: None,
            undo: None,
            local_undo: false,
            no_undo: None,
            status: None,
            local_status: false,
            input: None,
            idempotent: true,
            timeout: None,
            undo_timeout: None,
            retry: None,
            undo_retry: None,
            on_unknown: OnUnknown::Compensate,
            policy: None,
            runbook: None,
        }
    }
}

impl DefinitionData {
    /// A definition without steps, without a deadline.
    #[must_use]
    pub fn new(name: impl Into<String>, version: u32) -> Self {
        Self {
            name: name.into(),
            version,
            deadline: None,
            no_deadline: false,
            timeout: None,
            retry: None,
            undo_retry: None,
            steps: Vec::new(),
        }
    }
}

/// A retry schedule as written; what is absent has the default of its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RetryData {
    /// Attempts, the first included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// First delay.
    #[serde(default, with = "human", skip_serializing_if = "Option::is_none")]
    pub base: Option<Duration>,
    /// Largest delay.
    #[serde(default, with = "human", skip_serializing_if = "Option::is_none")]
    pub cap: Option<Duration>,
}

impl RetryData {
    /// A schedule with every field given.
    #[must_use]
    pub fn new(attempts: u32, base: Duration, cap: Duration) -> Self {
        Self { attempts: Some(attempts), base: Some(base), cap: Some(cap) }
    }
}

fn compensable() -> StepKind {
    StepKind::Compensable
}

fn is_compensable(kind: &StepKind) -> bool {
    *kind == StepKind::Compensable
}

fn yes() -> bool {
    true
}

fn is_default(value: &OnUnknown) -> bool {
    *value == OnUnknown::default()
}

#[cfg(feature = "toml")]
pub(super) fn parse_toml(text: &str) -> Result<DefinitionData, DefinitionError> {
    toml::from_str(text).map_err(|e| DefinitionError::one(Problem::Syntax { message: located(text, &e) }))
}

/// Longest part of a line that is repeated: enough to find it.
#[cfg(feature = "toml")]
const LINE: usize = 100;

/// In one line, as the parser of JSON says it, with the line that is meant: that of TOML draws the place over five,
/// which no table and no JSON shows.
#[cfg(feature = "toml")]
fn located(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    let Some(before) = before else { return error.message().to_owned() };
    let (number, begun) = (before.matches('\n').count(), before.rsplit('\n').next().unwrap_or_default());
    let line: String = text.lines().nth(number).unwrap_or_default().trim().chars().take(LINE).collect();
    let (message, column) = (error.message(), begun.chars().count() + 1);
    format!("{message} at line {} column {column}: {line}", number + 1)
}

pub(super) fn parse_json(bytes: &[u8]) -> Result<DefinitionData, DefinitionError> {
    serde_json::from_slice(bytes)
        .map_err(|e| DefinitionError::one(Problem::Syntax { message: e.to_string() }))
}

/// Durations as people write them: `"500ms"`, `"20s"`.
mod human {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[allow(clippy::ref_option, reason = "the signature serde asks for")]
    pub(super) fn serialize<S: Serializer>(d: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        match d {
            Some(d) => s.collect_str(&humantime::format_duration(*d)),
            None => s.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(d)?;
        humantime::parse_duration(&text).map(Some).map_err(D::Error::custom)
    }
}
