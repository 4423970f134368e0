//! What the engine answers with.

use crate::crdt::Changed;
use crate::version::Context;

/// A message for a peer.
pub type Outgoing = (u64, Vec<u8>);

/// Something a person may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// So many tombstones were dropped.
    Collected(usize),
    /// A peer has writes that are stamped further ahead of the [clock](crate::replicate::Builder::clock) than its skew allows:
    /// one of the two clocks is wrong. They are taken in when their time has come. Told once, until the two agree again.
    FromTheFuture {
        /// Who.
        peer: u64,
    },
    /// A peer has another schema or merge version; nothing is exchanged with it.
    Incompatible {
        /// Who.
        peer: u64,
        /// Its schema and merge version.
        theirs: (u32, u32),
    },
    /// A message was no message.
    Malformed {
        /// From whom.
        peer: u64,
    },
    /// A join was refused: a type under one key differs. Remove the key on one side.
    Mismatch {
        /// With whom.
        peer: u64,
    },
    /// A peer refuses to talk to this node; `removed` says that this node is no member there any more, and must
    /// [rejoin](crate::replicate::AntiEntropy::rejoin).
    Refused {
        /// Who.
        peer: u64,
        /// Whether this node was removed.
        removed: bool,
    },
    /// A removed member tried to come back.
    Returned {
        /// Who.
        peer: u64,
    },
    /// One change fits into no message and stays here, until a later change covers it; all others get through. It was made
    /// by an actor without a [bound](crate::Actor::largest_change), or came from a peer with larger messages.
    TooLarge,
}

/// What a message did.
#[derive(Debug)]
#[non_exhaustive]
pub struct Step {
    /// Whether the value changed.
    pub changed: Changed,
    /// Answers.
    pub send: Vec<Outgoing>,
    /// What a person may want to know.
    pub events: Vec<Event>,
}

/// What a node that rejoined lost.
#[derive(Debug)]
#[non_exhaustive]
pub struct Rejoined<T> {
    /// Its own changes that the cluster never accepted.
    pub lost: Context,
    /// Its value before.
    pub before: T,
}
