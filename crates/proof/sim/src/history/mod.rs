//! What happened: operations, effects, faults, in a form that can be judged again from a file alone.
//!
//! Times are nanoseconds of **one** observer. A history in which every outcome is recorded as the caller
//! knew it - `Unknown` stays unknown - can be judged by any [`crate::check`]er, whatever produced it.

mod jsonl;
mod recorder;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use jsonl::{ReadError, read, write};
pub use recorder::{Pending, Process, Recorder};

/// A small shared text.
pub type Text = Arc<str>;

/// An argument or a result. Numbers beyond 2^53 must travel as text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
#[allow(clippy::exhaustive_enums, reason = "numbers and text are all that histories carry")]
pub enum Datum {
    /// A number.
    Int(i64),
    /// A text.
    Text(Text),
}

impl From<i64> for Datum {
    fn from(n: i64) -> Self {
        Self::Int(n)
    }
}

impl From<&str> for Datum {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

/// How an operation ended, as its caller knew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::exhaustive_enums, reason = "there is no fourth answer")]
pub enum Ended {
    /// It certainly had no effect.
    Fail,
    /// It succeeded.
    Ok,
    /// It may take effect at any later time, or never.
    Unknown,
}

/// One operation of one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Op {
    /// Who: a process goes on under a new number after an unknown outcome.
    pub proc: u64,
    /// What: `acquire`, `read`, ...
    pub f: Text,
    /// On what.
    pub key: Text,
    /// With which argument.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arg: Option<Datum>,
    /// When it was called.
    #[serde(with = "jsonl::text")]
    pub invoke_ns: u64,
    /// When it answered; `None` is open for ever.
    #[serde(default, with = "jsonl::text_option")]
    pub return_ns: Option<u64>,
    /// How it ended.
    pub outcome: Ended,
    /// Its result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Datum>,
    /// The fencing token or epoch that it got or carried.
    #[serde(default, with = "jsonl::text_option", skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// Its idempotency key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op_id: Option<Text>,
    /// The session it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Text>,
    /// The link it used, `from>to`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via: Option<Text>,
    /// Until when its caller believes to hold what it got, by the observer's clock.
    #[serde(default, with = "jsonl::text_option", skip_serializing_if = "Option::is_none")]
    pub until_ns: Option<u64>,
}

impl Op {
    /// An operation that ended.
    #[must_use]
    pub fn new(
        proc: u64,
        f: &str,
        key: &str,
        invoke_ns: u64,
        return_ns: Option<u64>,
        outcome: Ended,
    ) -> Self {
        Self {
            proc,
            f: f.into(),
            key: key.into(),
            arg: None,
            invoke_ns,
            return_ns,
            outcome,
            value: None,
            epoch: None,
            op_id: None,
            session: None,
            via: None,
            until_ns: None,
        }
    }

    /// Whether it succeeded.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.outcome == Ended::Ok
    }

    /// When it answered, `u64::MAX` while open.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.return_ns.unwrap_or(u64::MAX)
    }
}

/// Something that a resource did, written by the resource in its own order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Effect {
    /// Which resource.
    pub resource: Text,
    /// On what.
    pub key: Text,
    /// The fencing token it was asked under.
    #[serde(default, with = "jsonl::text_option", skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The idempotency key it was asked under.
    pub op_id: Text,
    /// Whether it took effect.
    pub accepted: bool,
    /// What it added, for balances.
    #[serde(default)]
    pub amount: i64,
    /// When.
    #[serde(with = "jsonl::text")]
    pub at_ns: u64,
}

impl Effect {
    /// An accepted effect of `amount`.
    #[must_use]
    pub fn new(resource: &str, key: &str, op_id: &str, amount: i64, at_ns: u64) -> Self {
        Self {
            resource: resource.into(),
            key: key.into(),
            epoch: None,
            op_id: op_id.into(),
            accepted: true,
            amount,
            at_ns,
        }
    }
}

/// A fault that was injected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Fault {
    /// Names this one; what a minimiser drops.
    pub id: Text,
    /// What kind.
    pub kind: Text,
    /// A node, a link `from>to`, or `*`.
    pub target: Text,
    /// From when.
    #[serde(with = "jsonl::text")]
    pub start_ns: u64,
    /// Until when.
    #[serde(with = "jsonl::text")]
    pub end_ns: u64,
    /// Whether it did anything.
    pub fired: bool,
}

impl Fault {
    /// A fault that fired.
    #[must_use]
    pub fn new(id: &str, kind: &str, target: &str, start_ns: u64, end_ns: u64) -> Self {
        Self { id: id.into(), kind: kind.into(), target: target.into(), start_ns, end_ns, fired: true }
    }

    /// Whether `op` ran while the fault did and used what it broke.
    #[must_use]
    pub fn overlaps(&self, op: &Op) -> bool {
        let uses = &*self.target == "*"
            || op
                .via
                .as_deref()
                .is_some_and(|via| via == &*self.target || via.split('>').any(|end| end == &*self.target));
        self.fired && uses && op.invoke_ns < self.end_ns && op.end() > self.start_ns
    }
}

/// What ran: the first line of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Config {
    /// The suite.
    pub suite: Text,
    /// The seed.
    #[serde(with = "jsonl::text")]
    pub seed: u64,
    /// The level: `S`, `P`, `K`, `N`, `D`.
    pub level: Text,
    /// Versions of what ran.
    pub versions: Vec<Text>,
    /// Every option that changes the run.
    pub options: Vec<Text>,
}

impl Config {
    /// The configuration of a run of `suite` with `seed` at `level`.
    #[must_use]
    pub fn new(suite: &str, seed: u64, level: &str) -> Self {
        Self { suite: suite.into(), seed, level: level.into(), versions: Vec::new(), options: Vec::new() }
    }
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// What ran.
    Config(Config),
    /// What a replica has once everything is quiet.
    Digest {
        /// Which replica.
        replica: Text,
        /// A hash of the set of operations it has seen.
        delivered: Text,
        /// A hash of its state.
        digest: Text,
        /// Exchanges until it was quiet.
        rounds: u64,
    },
    /// What a resource did.
    Effect(Effect),
    /// What was broken.
    Fault {
        /// The fault; nested, because it has a kind of its own.
        fault: Fault,
    },
    /// From here on nothing is broken.
    Heal {
        /// When.
        #[serde(with = "jsonl::text")]
        at_ns: u64,
    },
    /// An operation.
    Op(Op),
    /// How often a state was reached.
    Sometimes {
        /// Its name.
        name: Text,
        /// How often.
        count: u64,
    },
}
