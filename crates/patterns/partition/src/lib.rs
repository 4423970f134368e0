//! Who owns a key, who else holds it, and what moves when the fleet changes.
//!
//! - [`Ring`]: virtual nodes, found through buckets of equal width.
//! - [`Rendezvous`]: every node scores every key.
//! - [`Maglev`]: a prime table of owners.
//! - [`Jump`]: numbered shards without a table.
//! - [`slots`]: fixed slots with explicit replica lists and an epoch.
//! - [`Bounded`]: a bound on every node's load, over any of them.
//! - [`topology`]: epochs, prepare and commit, wait-free readers, handoff.
//! - [`advise`]: which placement to take, and what it costs before it is taken.
//! - [`compat`]: profiles that answer bit by bit like other systems.
//!
//! Every placement is a [`Place`]: an owner, distinct [`Owners`] in order, exact [`Shares`], and a fingerprint
//! that tells whether two clients agree. Nodes are known by their id, never by their position in a list; keys
//! are bytes. Nothing here waits, reads a clock or draws a random number.

pub mod advise;
mod bounded;
pub mod compat;
mod error;
mod fingerprint;
mod hash;
mod jump;
mod maglev;
mod node;
mod owners;
mod place;
mod points;
mod rendezvous;
mod ring;
pub mod slots;
mod source;
pub mod topology;
mod warning;

pub use bounded::{Bounded, Lease, Load, WhenFull};
pub use error::{ConfigError, ConfigErrorKind, Error, ErrorKind};
pub use hash::Hash;
pub use jump::{Jump, JumpBuilder, JumpKey, JumpKind, jump, jump_back, jump_guava};
pub use maglev::{DEFAULT_TABLE, MAX_TABLE, Maglev, MaglevBuilder};
pub use node::{MAX_NAME, MAX_NODES, Node, NodeId, NodeIdx, Nodes, Zone};
pub use owners::{INLINE, Owners, Picked, Spread};
pub use place::{Place, Shares};
pub use rendezvous::{Rendezvous, RendezvousBuilder};
pub use ring::{MAX_POINTS, Ring, RingBuilder};
pub use warning::Warning;

/// The result of a placement question.
pub type Result<T> = std::result::Result<T, Error>;
