//! What a node asks of a network: datagrams that may get lost, frames for what does not fit into one.

use std::fmt;
use std::net::SocketAddr;

use mainstay_store::BoxFuture;

/// Largest datagram: it passes every network without being cut into pieces.
pub const MAX_DATAGRAM: usize = 1_200;
/// Largest frame of a stream.
pub const MAX_FRAME: usize = 64 << 10;

/// How bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// At most [`MAX_DATAGRAM`] bytes, on their own.
    Datagram,
    /// At most [`MAX_FRAME`] bytes, on a connection.
    Stream,
}

/// What became of something that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sent {
    /// No room: it was dropped.
    Full,
    /// It is on its way, and may get lost there.
    OnItsWay,
}

/// Something that arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inbound {
    /// Whence. Of a stream this is no address to answer to.
    pub from: SocketAddr,
    /// How.
    pub way: Way,
    /// What.
    pub bytes: Vec<u8>,
}

impl Inbound {
    /// Something that arrived.
    #[must_use]
    pub const fn new(from: SocketAddr, way: Way, bytes: Vec<u8>) -> Self {
        Self { from, way, bytes }
    }
}

/// A network. Implement it to run nodes over something else than sockets: tests run hundreds in one process.
///
/// It may lose, double, delay and reorder. It bounds what waits: per peer, and what comes in.
pub trait Network: Send + Sync + fmt::Debug {
    /// Where this node can be reached.
    fn address(&self) -> SocketAddr;

    /// Sends without waiting.
    fn send(&self, to: SocketAddr, way: Way, bytes: Vec<u8>) -> Sent;

    /// Whether more for `to` would only be dropped. A node then makes nothing more for it.
    fn is_full(&self, to: SocketAddr) -> bool;

    /// The next thing that arrives.
    ///
    /// # Cancel safety
    /// A dropped future loses nothing that arrived.
    fn receive(&self) -> BoxFuture<'_, Inbound>;

    /// Closes a stream from `from` that sent something which nobody with a key made.
    fn refuse(&self, from: SocketAddr);
}
