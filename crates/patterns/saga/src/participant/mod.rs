//! Participants: the services a saga's steps call, and what their replies mean.
//!
//! [`Participant`] moves bytes and reports what is known; [`judge`] decides what a reply means, as pure
//! code. Neither trusts the other side: replies are bounded by the caller, and whatever is not understood
//! is never read as success.

mod guarded;
mod table;

use std::fmt;
use std::time::Duration;

use http::HeaderMap;
use mainstay_clock::{Instant, WallTime};
use mainstay_store::barrier::Op;
use mainstay_store::{BoxFuture, FencingToken};
use serde_json::Value;

pub use guarded::Guarded;
pub use table::judge;

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the three requests of the protocol")]
pub enum Kind {
    /// Do it: `POST` with the body.
    Act,
    /// Ask how an accepted request goes: `GET` of the address it named.
    Poll,
    /// Ask whether an action happened: `GET` of the step's status address.
    Status,
}

/// A request to a participant.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a request is exactly this")]
pub struct Request {
    /// Address, from the definition only.
    pub url: String,
    /// JSON body.
    pub body: Vec<u8>,
    /// The same for all attempts and owners: `<saga uid>/<step>/<op>`.
    pub idempotency_key: String,
    /// The saga's uid.
    pub saga: String,
    /// The name of its definition.
    pub definition: String,
    /// The step's name.
    pub step: String,
    /// Which half of the step.
    pub op: Op,
    /// From 1.
    pub attempt: u32,
    /// Grows with every claim of the saga; a participant refuses a smaller one.
    pub fencing_token: FencingToken,
    /// When the attempt is given up; a hint, clocks differ.
    pub deadline_wall: Option<WallTime>,
    /// Trace context to send on.
    pub traceparent: Option<String>,
    /// What tracing systems added to it; sent on only together with it.
    pub tracestate: Option<String>,
    /// What it is for.
    pub kind: Kind,
}

/// A complete reply.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a reply is exactly this")]
pub struct Attempt {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// The body, bounded by the caller.
    pub body: Vec<u8>,
}

/// What is known after a call.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_enums, reason = "answered, proven unsent by either side, or unknown")]
pub enum Reply {
    /// A complete reply.
    Answered(Attempt),
    /// Not a byte was sent: certainly no effect.
    NotSent(String),
    /// Anything else.
    Unknown(String),
    /// A policy of this side refused it: nothing was sent, and nobody was asked.
    Withheld {
        /// What refused it, and why.
        reason: String,
        /// When it may let a call through, if that is known.
        retry_after: Option<Duration>,
    },
}

/// What a reply means.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "the rows of the reply table")]
pub enum Verdict {
    /// Not understood: not repeated blindly.
    ContractBroken(String),
    /// Done, with the output; for an undo: undone.
    Done(Value),
    /// Still working.
    InProgress {
        /// When to ask again.
        retry_after: Option<Duration>,
        /// Where to ask.
        location: Option<String>,
    },
    /// Not a byte was sent.
    NotSent(String),
    /// An undo was refused.
    Refused(String),
    /// A business no: no effect of this attempt.
    Rejected {
        /// Why.
        reason: String,
        /// No effect of any attempt under this key, ever.
        is_final: bool,
    },
    /// The participant has seen a larger fencing token.
    StaleToken,
    /// Nobody knows.
    Unknown {
        /// What came instead of an answer.
        reason: String,
        /// The participant's wish when to be asked again.
        retry_after: Option<Duration>,
    },
    /// A policy of this side refused it: nothing was sent.
    Withheld {
        /// What refused it, and why.
        reason: String,
        /// When it may let a call through, if that is known.
        retry_after: Option<Duration>,
    },
}

/// Calls participants. Implement it to reach them by another protocol.
pub trait Participant: Send + Sync + fmt::Debug {
    /// Makes one call, bounded in time by `deadline` (boot time) and in memory by the implementation.
    ///
    /// # Cancel safety
    /// A dropped call counts as unknown: the request may have been sent.
    fn call(&self, request: Request, deadline: Instant) -> BoxFuture<'_, Reply>;

    /// Whether this address may be called at all: asked when a definition is registered, so that a forbidden
    /// one is refused there. The default allows every address.
    ///
    /// # Errors
    /// Why not.
    fn check(&self, url: &str) -> Result<(), String> {
        let _ = url;
        Ok(())
    }
}
