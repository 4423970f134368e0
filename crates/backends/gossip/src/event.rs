//! What a node tells: events for people, numbers for charts.

use std::net::SocketAddr;

use mainstay_consistency::replicate::Event as StateEvent;

use crate::member::Change;

/// Something a person may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Somebody makes changes as this node: its disk was copied or rolled back. It goes on in an epoch above.
    Doubled {
        /// The epoch of the other one.
        epoch: u32,
    },
    /// The membership changed.
    Member(Change),
    /// Packets of another version of the protocol arrive. They are dropped.
    OtherVersion {
        /// Whence the first one came.
        from: SocketAddr,
        /// The version.
        theirs: u8,
    },
    /// A snapshot could not be written; it is tried again.
    SnapshotFailed(String),
    /// What the replicated value says.
    State(StateEvent),
}

impl Event {
    pub(crate) fn trace(&self) {
        match self {
            Self::Doubled { epoch } => {
                tracing::error!(target: "mainstay::gossip", epoch, "another node makes changes under this identity")
            }
            Self::OtherVersion { from, theirs } => {
                tracing::warn!(target: "mainstay::gossip", %from, theirs, ours = crate::PROTOCOL, "packets of another protocol version are refused");
            }
            Self::SnapshotFailed(why) => {
                tracing::error!(target: "mainstay::gossip", why, "a snapshot could not be written")
            }
            Self::State(StateEvent::Incompatible { peer, theirs }) => {
                tracing::warn!(target: "mainstay::gossip", peer, ?theirs, "a peer has another schema or merge version and is refused");
            }
            Self::State(StateEvent::FromTheFuture { peer }) => {
                tracing::warn!(target: "mainstay::gossip", peer, "writes of a peer are stamped in the future and held back: one of the clocks is wrong");
            }
            Self::Member(_) | Self::State(_) => {
                tracing::debug!(target: "mainstay::gossip", event = ?self, "gossip")
            }
        }
    }
}

/// What a node counted since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Packets sent, and their bytes.
    pub sent: u64,
    /// Bytes of packets sent.
    pub sent_bytes: u64,
    /// Packets that arrived.
    pub received: u64,
    /// Bytes of packets that arrived.
    pub received_bytes: u64,
    /// Dropped: no room for it on the way out.
    pub full: u64,
    /// Dropped: larger than any packet.
    pub oversized: u64,
    /// Dropped: no packet, or no message in it.
    pub malformed: u64,
    /// Dropped: of another cluster.
    pub foreign: u64,
    /// Dropped: made without one of the keys.
    pub unauthenticated: u64,
    /// Dropped: of another version of the protocol.
    pub other_version: u64,
    /// Dropped: meant for another node.
    pub misdirected: u64,
    /// Dropped: of this node, played back, or of another one with its name.
    pub own: u64,
    /// Held back: times that a peer came with writes of the future.
    pub from_the_future: u64,
    /// Dropped: state of somebody who is no member, or not yet.
    pub strangers: u64,
    /// Not learned of: there are too many members.
    pub crowded: u64,
    /// Not sent: nobody knows the address.
    pub unreachable: u64,
    /// Snapshots written.
    pub snapshots: u64,
    /// Snapshots that could not be written.
    pub snapshot_errors: u64,
}
