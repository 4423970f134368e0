//! One replicated value on many nodes: sealed datagrams, membership, and a snapshot on disk.
//!
//! [`Gossip`] runs [`mainstay_consistency::replicate`] over a [`Network`]: every few hundred milliseconds a node tells a
//! few others the digest of its value; who has another one exchanges what differs. Fresh changes travel at once.
//!
//! - [`Keys`]: who does not hold one can neither read nor write. A stolen key is the whole cluster: whoever has it can
//!   read everything and write anything, and nothing tells it from a member.
//! - [`Membership`]: who is there, by SWIM from a few [`seeds`](config::Builder::seeds), by a
//!   [list](config::Builder::list), or by something of yours.
//! - [`Snapshot`], [`FileCell`]: a restart goes on from where it was, in a new epoch; a lost or rolled-back disk makes
//!   somebody new.
//!
//! For control planes: flags, addresses, breakers, counts, up to about a million elements in memory. Not a database, no
//! consensus, no order between nodes, and no promise of how soon. The page `docs/gossip.md` says how it works and what it
//! needs.

pub mod config;
mod error;
mod event;
mod file;
mod member;
mod network;
mod node;
mod seal;
mod snapshot;
mod sockets;
mod state;
mod swim;

pub use config::Config;
pub use error::{ConfigError, Error, ErrorKind, Result};
pub use event::{Event, Stats};
pub use file::FileCell;
pub use member::{Change, Member, Membership, Presence, StaticList};
pub use network::{Inbound, MAX_DATAGRAM, MAX_FRAME, Network, Sent, Way};
pub use node::Gossip;
pub use seal::{Keys, PROTOCOL};
pub use snapshot::Snapshot;
pub use sockets::Sockets;
