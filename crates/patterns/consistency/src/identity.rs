//! Actors whose identity nobody repeats: not after a crash, not from a restored backup, not from a cloned disk.
//!
//! A replica that loses its state and goes on counting from one makes changes that others take for old ones; they
//! are dropped, and what they replaced is deleted. So an identity is a node, an epoch that grows with every open, and a
//! nonce drawn at every open. What was not written down, or was written down twice, differs in the nonce.

use std::sync::Arc;

use mainstay_clock::Rng;
use mainstay_store::DurableCell;

use crate::actor::nonce;
use crate::error::{Error, Result};
use crate::version::Context;
use crate::{Actor, ActorId};

/// What peers know about this node that it does not know itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Alarm {
    /// Somebody else runs as this node in this epoch: a clone, or a restored backup beside its original.
    Cloned {
        /// The epoch both run in.
        epoch: u32,
        /// The other one's nonce.
        nonce: u32,
    },
    /// This node ran in a higher epoch before: its disk was rolled back.
    RolledBack {
        /// The highest epoch that peers know.
        known: u32,
    },
}

/// A node's identity, kept in a [`DurableCell`]. Every open takes a new epoch.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemRng;
/// use mainstay_consistency::identity::Identity;
/// use mainstay_store::memory::MemoryCell;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let (cell, rng) = (Arc::new(MemoryCell::new()), Arc::new(SystemRng::new()));
/// let mut before = Identity::open(cell.clone(), rng.clone()).await?;
/// let first = before.actor();
/// let mut after = Identity::open(cell, rng).await?; // a restart
/// let second = after.actor();
/// assert_eq!(first.id().node(), second.id().node());
/// assert!(first.id().epoch() < second.id().epoch());
/// # Ok::<(), mainstay_consistency::Error>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Identity {
    node: u64,
    epoch: u32,
    /// Nonces of the actors handed out in this epoch.
    mine: Vec<u32>,
    cell: Arc<dyn DurableCell>,
    rng: Arc<dyn Rng>,
}

impl Identity {
    /// Reads who this node is, or decides it, and takes the next epoch; durable before anything is changed under it.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) when the cell holds something else, and
    /// [`Store`](crate::ErrorKind::Store).
    ///
    /// # Cancel safety
    /// A dropped future may have used up an epoch.
    pub async fn open(cell: Arc<dyn DurableCell>, rng: Arc<dyn Rng>) -> Result<Self> {
        let (node, last) = match cell.load().await? {
            // No state: whoever this was, it is somebody new now.
            None => (rng.next_u64(), 0),
            Some(bytes) => {
                let bytes = <[u8; 12]>::try_from(bytes)
                    .map_err(|_| Error::malformed("the cell holds no identity"))?;
                let all = u128::from_be_bytes(std::array::from_fn(|i| if i < 4 { 0 } else { bytes[i - 4] }));
                ((all >> 32) as u64, (all & u128::from(u32::MAX)) as u32)
            }
        };
        let mut identity = Self { node, epoch: last, mine: Vec::new(), cell, rng };
        identity.advance(last).await?;
        Ok(identity)
    }

    /// Takes an epoch above `known`, durable first.
    async fn advance(&mut self, known: u32) -> Result<()> {
        let Some(epoch) = known.max(self.epoch).checked_add(1) else {
            // Four billion opens: start over as somebody else.
            return Err(Error::malformed("every epoch of this node is used; remove its identity"));
        };
        let mut bytes = self.node.to_be_bytes().to_vec();
        bytes.extend_from_slice(&epoch.to_be_bytes());
        self.cell.store_synced(bytes).await?;
        self.epoch = epoch;
        self.mine.clear();
        Ok(())
    }

    /// A new actor of this node. Every replicated value needs its own.
    pub fn actor(&mut self) -> Actor {
        let nonce = nonce(&*self.rng);
        self.mine.push(nonce);
        Actor::new(ActorId::new(self.node, self.epoch, nonce))
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> u64 {
        self.node
    }

    /// The actor epoch.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Compares with what a peer knows about this node, before the first change is made. On an alarm a higher epoch is
    /// taken: throw the actors handed out so far away and take new ones.
    ///
    /// # Errors
    /// [`Store`](crate::ErrorKind::Store): no new epoch was taken, so nothing may be changed.
    ///
    /// # Cancel safety
    /// A dropped future may have used up an epoch.
    pub async fn hear(&mut self, peer: &Context) -> Result<Option<Alarm>> {
        let Some((epoch, nonces)) = peer.latest_epochs().remove(&self.node) else { return Ok(None) };
        let alarm = if epoch > self.epoch {
            Some(Alarm::RolledBack { known: epoch })
        } else {
            let foreign = nonces.into_iter().find(|n| epoch == self.epoch && !self.mine.contains(n));
            foreign.map(|nonce| Alarm::Cloned { epoch, nonce })
        };
        if alarm.is_some() {
            self.advance(epoch).await?;
        }
        Ok(alarm)
    }
}
