//! Who owns a key, who else holds it, and what moves when the fleet changes.
//!
//! - [`Ring`]: virtual nodes, found through a radix index.
//! - [`slots`]: fixed slots with explicit replica lists and an epoch.
//! - [`compat`]: profiles that answer bit by bit like other systems.
//!
//! Every placement is a [`Place`]: an owner, distinct [`Owners`] in order, exact [`Shares`], and a fingerprint
//! that tells whether two clients agree. Nodes are known by their id, never by their position in a list; keys
//! are bytes. Nothing here waits, reads a clock or draws a random number.

pub mod compat;
mod error;
mod fingerprint;
mod hash;
mod node;
mod owners;
mod place;
mod points;
mod ring;
pub mod slots;
mod source;
pub mod topology;
mod warning;

pub use error::{ConfigError, ConfigErrorKind, Error, ErrorKind};
pub use hash::Hash;
pub use node::{MAX_NAME, MAX_NODES, Node, NodeId, NodeIdx, Nodes, Zone};
pub use owners::{INLINE, Owners, Picked, Spread};
pub use place::{Place, Shares};
pub use ring::{Ring, RingBuilder};
pub use warning::Warning;

/// The result of a placement question.
pub type Result<T> = std::result::Result<T, Error>;
