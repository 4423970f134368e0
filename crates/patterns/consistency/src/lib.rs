//! The same state everywhere, whatever the network did; and clocks and merges that never lie about order.
//!
//! - [`hlc`]: hybrid logical clocks: eight bytes, lock-free, bounded skew, a durable bound.
//! - [`version`]: dots, version vectors, causal contexts.
//! - [`identity`]: actors whose identity no restored backup can repeat.
//! - [`lww`]: last writer wins by a total order, and what holds stamps from the future back.
//! - [`siblings`]: values that conflict are kept until somebody merges them, within limits.
//! - [`crdt`]: delta-state replicated data types: counters, registers, flags, sets, maps.
//! - `document` (feature `documents`): texts, lists and maps that several people edit at once.
//! - [`replicate`]: anti-entropy without sockets: what to send to whom, and what to do with what came.
//! - [`session`]: reads that find what the user wrote and saw, on replicas that lag, or say that it is lost.
//! - [`laws`] (feature `laws`): the laws all of this obeys, as a harness for types and merge functions of users.
//! - [`wire`]: the canonical encoding.
//!
//! Nothing here reads a clock of the system or draws random numbers: clocks and generators are handed in. Nothing waits
//! but for a store: sessions, and `open` and `extend` of [`identity`] and [`hlc::DurableHlc`].
//!
//! What this is not: a database or consensus. A replica holds everything in memory, up to about a million
//! elements; no invariant holds across replicas except that of [`crdt::BoundedCounter`].
//!
//! How to use it: `docs/sessions.md`, `docs/conflict-resolution.md` and `docs/crdt.md`.

mod actor;
pub mod crdt;
#[cfg(feature = "documents")]
pub mod document;
mod error;
mod hash;
pub mod hlc;
pub mod identity;
#[cfg(feature = "laws")]
pub mod laws;
pub mod lww;
pub mod replicate;
pub mod session;
pub mod siblings;
mod sorted;
mod turn;
pub mod version;
pub mod wire;

pub use actor::{Actor, ActorId};
pub use crdt::{Changed, DeltaState, Join};
pub use error::{ConfigError, Error, ErrorKind, Result};
