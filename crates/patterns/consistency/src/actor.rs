//! Who makes changes.

use std::fmt;

use mainstay_clock::Rng;

use crate::error::{Error, ErrorKind, Result};
use crate::version::{Context, Dot};

/// The identity of one incarnation of one replica: node, actor epoch and a nonce drawn at every open.
///
/// Node identifiers survive restarts, epochs grow with every open, and the nonce makes two copies of one
/// disk distinct even when both believe in the same epoch. One that changed something stays in the
/// [context](crate::version::Context#growth) for ever; starts without a change cost nothing.
///
/// ```
/// use mainstay_consistency::ActorId;
///
/// let (first, later) = (ActorId::new(7, 1, 99), ActorId::new(7, 2, 4));
/// assert!(first < later);
/// assert_eq!((later.node(), later.epoch(), later.nonce()), (7, 2, 4));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActorId {
    node: u64,
    /// Epoch in the high half, nonce in the low half: one comparison for both.
    rest: u64,
}

impl ActorId {
    /// The actor of `node` in `epoch`, told apart from copies by `nonce`.
    #[must_use]
    pub const fn new(node: u64, epoch: u32, nonce: u32) -> Self {
        Self { node, rest: ((epoch as u64) << 32) | nonce as u64 }
    }

    /// The node.
    #[must_use]
    pub const fn node(self) -> u64 {
        self.node
    }

    /// The actor epoch.
    #[must_use]
    pub const fn epoch(self) -> u32 {
        (self.rest >> 32) as u32
    }

    /// The nonce.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the low half")]
    pub const fn nonce(self) -> u32 {
        self.rest as u32
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.node.to_be_bytes());
        bytes[8..].copy_from_slice(&self.rest.to_be_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let all = u128::from_be_bytes(bytes);
        Self { node: (all >> 64) as u64, rest: (all & u128::from(u64::MAX)) as u64 }
    }

    /// The largest one below it.
    pub(crate) fn just_before(self) -> Self {
        Self::from_bytes(u128::from_be_bytes(self.to_bytes()).saturating_sub(1).to_be_bytes())
    }

    pub(crate) const fn words(self) -> (u64, u64) {
        (self.node, self.rest)
    }
}

impl fmt::Debug for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{}.{:x}", self.node, self.epoch(), self.nonce())
    }
}

/// The right to make changes to one replicated value on one replica. Not `Clone`: a counter that two
/// holders advance is the classical way to lose data.
///
/// One actor belongs to one causal context. Every use checks that the context knows exactly the changes this
/// actor made:
///
/// - it knows fewer: the actor was used with another value, and its dots would never become contiguous
///   ([`ErrorKind::ForeignActor`]);
/// - it knows more: somebody else made changes under this identity, after a restored backup or a cloned disk
///   ([`ErrorKind::DuplicateActor`]). Take an actor of a new epoch.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, ErrorKind, crdt::AwSet};
///
/// let mut actor = Actor::new(ActorId::new(1, 1, 1));
/// let (mut cart, mut other) = (AwSet::<String>::new(), AwSet::<String>::new());
/// cart.add(&mut actor, "book".into())?;
/// assert_eq!(other.add(&mut actor, "pen".into()).unwrap_err().kind(), ErrorKind::ForeignActor);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Debug)]
pub struct Actor {
    id: ActorId,
    last: u64,
    /// What one change may take that cannot be split.
    largest: usize,
}

impl Actor {
    /// An actor that has not changed anything yet. Identities must be unique: take them from
    /// [`Identity`](crate::identity::Identity), or be sure of it otherwise.
    #[must_use]
    pub const fn new(id: ActorId) -> Self {
        Self { id, last: 0, largest: usize::MAX }
    }

    /// Refuses changes that cannot be split and whose encoding takes more than `bytes`
    /// ([`ErrorKind::TooLarge`]), before anything is changed. Without it there is no bound: then such a change stays on this
    /// replica. [`AntiEntropy::largest_change`](crate::replicate::AntiEntropy::largest_change) says what gets through.
    ///
    /// ```
    /// use mainstay_consistency::{Actor, ActorId, ErrorKind, crdt::AwSet};
    ///
    /// let mut actor = Actor::new(ActorId::new(1, 1, 0)).largest_change(500);
    /// let mut set = AwSet::<String>::new();
    /// let error = set.add(&mut actor, "x".repeat(600)).unwrap_err();
    /// assert_eq!(error.kind(), ErrorKind::TooLarge);
    /// assert!(set.elements().next().is_none());
    /// set.add(&mut actor, "x".repeat(400))?;
    /// # Ok::<(), mainstay_consistency::Error>(())
    /// ```
    #[must_use]
    pub const fn largest_change(mut self, bytes: usize) -> Self {
        self.largest = bytes;
        self
    }

    /// An actor with a random node and nonce, for tests and for replicas without a disk.
    #[must_use]
    pub fn ephemeral(rng: &dyn Rng) -> Self {
        Self::new(ActorId::new(rng.next_u64(), 1, nonce(rng)))
    }

    /// Its identity.
    #[must_use]
    pub const fn id(&self) -> ActorId {
        self.id
    }

    /// How many dots it minted.
    #[must_use]
    pub const fn minted(&self) -> u64 {
        self.last
    }

    /// Whether `context` knows exactly what this actor did.
    pub(crate) fn check(&self, context: &Context) -> Result<()> {
        let known = context.top(self.id);
        if known < self.last {
            let text = format!(
                "actor {} is used with a second value; every value needs an actor of its own",
                self.id
            );
            return Err(Error::new(ErrorKind::ForeignActor, text));
        }
        self.check_seen(context)
    }

    /// Checks that whoever knows `context` saw no changes of this actor but those that it made.
    pub(crate) fn check_seen(&self, context: &Context) -> Result<()> {
        if context.top(self.id) > self.last {
            let text =
                format!("changes of actor {} exist that it did not make; take a new actor epoch", self.id);
            return Err(Error::new(ErrorKind::DuplicateActor, text));
        }
        Ok(())
    }

    /// What one change may take that cannot be split.
    pub(crate) const fn largest(&self) -> usize {
        self.largest
    }

    pub(crate) fn mint(&mut self) -> Dot {
        self.last += 1;
        Dot::new(self.id, self.last)
    }

    /// Takes back dots of a change that failed before anybody saw it.
    pub(crate) fn rewind(&mut self, last: u64) {
        self.last = last;
    }
}

/// 32 random bits.
pub(crate) fn nonce(rng: &dyn Rng) -> u32 {
    (rng.next_u64() >> 32) as u32
}
