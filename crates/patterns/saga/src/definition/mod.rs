//! Definitions: a saga as data, a directed acyclic graph of steps.
//!
//! A [`Definition`] is made from TOML or JSON ([`Definition::from_toml`], [`Definition::from_json`]) or by
//! the typed builder of the crate root; both end in the same checks and the same hash. It never contains
//! code: closures are registered beside it.

mod check;
mod data;
mod lint;
mod template;

use std::time::Duration;

use mainstay_store::journal::Hash;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use check::{DefinitionError, Problem};
pub use data::{DefinitionData, RetryData, StepData};
pub use lint::Lint;
pub use template::Template;

/// Most steps of one definition: a readable history; larger work is sub-sagas.
pub const MAX_STEPS: usize = 1_000;
/// Most bytes of one input or output: larger data is a reference.
pub const MAX_PAYLOAD: usize = 256 * 1024;
/// Most levels that an input or output is nested. What is read back from a log is read to 128 levels; a record and an
/// export put some of their own around it.
pub const MAX_DEPTH: usize = 100;
/// A hung step must end: the default attempt timeout.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Attempts of a retriable step before a person is told; it goes on meanwhile.
pub const RETRIABLE_ATTEMPTS: u32 = 20;

/// Why a value cannot be an input or output, if so.
pub(crate) fn payload_fault(value: &Value) -> Option<String> {
    // First: a value without end in depth cannot be written at all.
    if is_too_deep(value) {
        return Some(format!("is nested deeper than {MAX_DEPTH} levels"));
    }
    let bytes = value.to_string().len();
    (bytes > MAX_PAYLOAD).then(|| format!("has {bytes} bytes; at most {MAX_PAYLOAD} are allowed"))
}

/// Whether a value is nested deeper than [`MAX_DEPTH`].
pub(crate) fn is_too_deep(value: &Value) -> bool {
    fn is_deeper(value: &Value, levels: usize) -> bool {
        let below = |value: &Value| is_deeper(value, levels - 1);
        match value {
            Value::Array(items) => levels == 0 || items.iter().any(below),
            Value::Object(fields) => levels == 0 || fields.values().any(below),
            _ => false,
        }
    }
    is_deeper(value, MAX_DEPTH)
}

/// What a step may do to the saga.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "the three kinds of Garcia-Molina's sagas with a pivot")]
pub enum StepKind {
    /// Can be undone; spent attempts unwind the saga.
    Compensable,
    /// The point of no return.
    Pivot,
    /// After the pivot: must finish, so it is repeated.
    Retriable,
}

/// Where a step's action or undo is executed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "over the wire or in the process")]
pub enum Call {
    /// `POST` to this address.
    Http(String),
    /// A closure registered with the engine.
    Local,
}

/// How a step is reversed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "an undo exists, or its absence has a reason")]
pub enum Undo {
    /// By this call.
    Call(Call),
    /// It needs none, for this reason.
    None(String),
}

/// What happens when a compensable step's attempts are spent and nobody knows whether it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "guessing is no third way")]
pub enum OnUnknown {
    /// A person decides.
    Ask,
    /// Undo it as `Maybe`.
    #[default]
    Compensate,
}

/// A durable retry schedule: doubling from `base` to `cap` with full jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a schedule is exactly this")]
pub struct RetrySpec {
    /// Attempts, the first included.
    pub attempts: u32,
    /// First delay.
    pub base: Duration,
    /// Largest delay.
    pub cap: Duration,
}

impl RetrySpec {
    /// The default of actions: rides out a blip; an outage unwinds instead of queueing.
    pub const ACTION: Self =
        Self { attempts: 5, base: Duration::from_millis(100), cap: Duration::from_secs(10) };
    /// The default of undos: about an hour, so that a deploy or a restart pages nobody.
    pub const UNDO: Self = Self { attempts: 20, base: Duration::from_secs(1), cap: Duration::from_secs(300) };
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// Its name, unique in the definition.
    pub name: String,
    /// What it may do to the saga.
    pub kind: StepKind,
    /// Indexes of the steps that must be done before it.
    pub after: Vec<usize>,
    /// Indexes of the steps that wait for it.
    pub before: Vec<usize>,
    /// Its action.
    pub action: Call,
    /// Its undo.
    pub undo: Undo,
    /// An address to ask whether an unknown action happened.
    pub status: Option<String>,
    /// A closure is asked that.
    pub local_status: bool,
    /// How its input is made from the saga's input and earlier outputs.
    pub input: Template,
    /// Longest time of one attempt.
    pub timeout: Duration,
    /// Longest time of one undo attempt.
    pub undo_timeout: Duration,
    /// Retries of the action.
    pub retry: RetrySpec,
    /// Retries of the undo.
    pub undo_retry: RetrySpec,
    /// What spent attempts with an unknown effect mean.
    pub on_unknown: OnUnknown,
    /// Name of the policy that guards its attempts.
    pub policy: Option<String>,
    /// Text for whoever has to act.
    pub runbook: Option<String>,
}

impl Step {
    /// Every address of the step: of the action, the undo and the status.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        let action = match &self.action {
            Call::Http(url) => Some(url),
            Call::Local => None,
        };
        let undo = match &self.undo {
            Undo::Call(Call::Http(url)) => Some(url),
            _ => None,
        };
        [action, undo, self.status.as_ref()].into_iter().flatten().map(String::as_str)
    }
}

/// A checked definition. Immutable; cheap to share behind an `Arc`.
///
/// ```
/// use mainstay_saga::definition::Definition;
///
/// let order = Definition::from_toml(r#"
/// name = "order"
/// version = 1
/// deadline = "20s"
///
/// [[steps]]
/// name = "reserve"
/// action = "http://127.0.0.1:7001/reserve"
/// undo = "http://127.0.0.1:7001/release"
///
/// [[steps]]
/// name = "charge"
/// after = ["reserve"]
/// action = "http://127.0.0.1:7002/charge"
/// undo = "http://127.0.0.1:7002/refund"
/// "#)?;
/// assert_eq!(order.steps().len(), 2);
/// # Ok::<(), mainstay_saga::definition::DefinitionError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) steps: Vec<Step>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) hash: Hash,
    pub(crate) source: DefinitionData,
}

impl Definition {
    /// Reads and checks a definition written in TOML. Needs the feature `toml`.
    ///
    /// # Errors
    /// [`DefinitionError`] with every problem found.
    #[cfg(feature = "toml")]
    pub fn from_toml(text: &str) -> Result<Self, DefinitionError> {
        check::build(data::parse_toml(text)?)
    }

    /// Reads and checks a definition written in JSON.
    ///
    /// # Errors
    /// [`DefinitionError`] with every problem found.
    pub fn from_json(bytes: &[u8]) -> Result<Self, DefinitionError> {
        check::build(data::parse_json(bytes)?)
    }

    /// Checks a definition given as data.
    ///
    /// # Errors
    /// [`DefinitionError`] with every problem found.
    pub fn from_data(data: DefinitionData) -> Result<Self, DefinitionError> {
        check::build(data)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Its steps, in declaration order.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How long a saga may go forward before its pivot is done.
    #[must_use]
    pub fn deadline(&self) -> Option<Duration> {
        self.deadline
    }

    /// Hash of the graph: names, kinds, edges, inputs, which steps have an undo. Timeouts, retries, policies and
    /// addresses are not in it: they may be tuned under sagas in flight.
    #[must_use]
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// The definition as data.
    #[must_use]
    pub fn data(&self) -> &DefinitionData {
        &self.source
    }

    /// The index of the step called `name`.
    #[must_use]
    pub fn index(&self, name: &str) -> Option<usize> {
        self.steps.iter().position(|s| s.name == name)
    }

    /// The index of the pivot.
    #[must_use]
    pub fn pivot(&self) -> Option<usize> {
        self.steps.iter().position(|s| s.kind == StepKind::Pivot)
    }

    /// How this graph differs from `other`, a line per difference; empty when the hashes agree.
    #[must_use]
    pub fn diff(&self, other: &Self) -> Vec<String> {
        check::diff(self, other)
    }
}
