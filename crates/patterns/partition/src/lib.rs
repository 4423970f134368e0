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
//!
//! Which one to take is a question of what a moved key costs; [`advise`](advise::advise) answers it from the table:
//!
//! | nodes | take |
//! |---|---|
//! | own data, locks or sagas, and a small map can be stored | [`slots::SlotMap`] with the planner |
//! | are a list of names that independent clients share | [`Ring`], up to some hundred [`Rendezvous`] |
//! | serve traffic, and some churn is fine | [`Maglev`] |
//! | are numbered shards that come and go at the end | [`Jump`] |
//! | stand behind hot keys or long streams | [`Bounded`] over any of them |
//! | must agree with clients of another system | [`compat`] |
//!
//! How to use them: `docs/partition.md`, and `docs/planned-change.md` for changes of a fleet.
//!
//! What a profile answers is frozen: another default, seed or tie rule is a new profile with another fingerprint. A
//! node that is down is a filter on the owners and never a change of the placement, so nobody else's keys move:
//!
//! ```
//! use mainstay_partition::{Node, Place, Ring, Spread};
//!
//! let nodes = [("a", "east"), ("b", "east"), ("c", "west")].map(|(id, zone)| Node::new(id).zone(zone));
//! let ring = Ring::builder().nodes(nodes).build()?;
//! let down = ring.owner(b"user:17").unwrap();
//! let next = ring.owners(b"user:17").healthy(|node| node != down).next().unwrap();
//! assert_eq!(Some(next), ring.owners(b"user:17").nth(1));
//!
//! let replicas = ring.owners(b"user:17").spread(Spread::Hard { min: 2 }).pick(2)?;
//! assert_ne!(ring.nodes()[replicas[0]].zone, ring.nodes()[replicas[1]].zone);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
pub use error::{ConfigError, Error, ErrorKind};
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
