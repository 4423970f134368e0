//! The server's side of a change: which reads and writes a member takes, and the fence of its store.

use std::sync::Arc;

use crate::error::{ConfigError, ConfigErrorKind, Error, ErrorKind};
use crate::node::{NodeId, NodeIdx};
use crate::place::Place;

/// What a member answers a client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The key is here.
    Accept,
    /// The key is elsewhere: refresh the topology to at least this epoch.
    Moved {
        /// The epoch of this answer.
        epoch: u64,
        /// The owner in it.
        node: NodeId,
    },
    /// The key is here and its data is not yet: ask the owner before, this once.
    Ask {
        /// The owner before.
        node: NodeId,
    },
    /// The key is about to leave: no write until the change is decided. Try again.
    Frozen {
        /// The epoch that is prepared.
        epoch: u64,
    },
    /// The client is behind.
    StaleEpoch {
        /// The epoch in force here.
        seen: u64,
    },
    /// The client is ahead: this member has not heard of its epoch yet. Try again.
    Behind {
        /// The epoch in force here.
        epoch: u64,
    },
    /// There are no nodes.
    Nobody,
}

/// A member of the fleet, as it decides on its own requests.
///
/// The rule that keeps a key from having two writers: a member that acknowledged a change takes no write for
/// a key that it will lose, and the change commits only when every member acknowledged or its lease ended. So
/// when the new owner accepts its first write, the old one has refused them for a while.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_partition::{Node, Place, Ring, topology::{Member, Verdict}};
///
/// let ring = |ids: &[&str]| Ring::builder().nodes(ids.iter().map(|id| Node::new(*id))).build();
/// let mut a = Member::new("a".into(), 1, Arc::new(ring(&["a"])?));
/// a.prepare(2, Arc::new(ring(&["b"])?))?;
/// assert_eq!(a.write(b"user:17", 1), Verdict::Frozen { epoch: 2 });
/// a.commit(2)?;
/// assert_eq!(a.write(b"user:17", 2), Verdict::Moved { epoch: 2, node: "b".into() });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Member<P: ?Sized> {
    id: NodeId,
    epoch: u64,
    place: Arc<P>,
    prepared: Option<(u64, Arc<P>)>,
    /// The placement before, until its data has arrived here.
    before: Option<Arc<P>>,
}

impl<P: Place + ?Sized> Member<P> {
    /// A member that knows one epoch.
    #[must_use]
    pub fn new(id: NodeId, epoch: u64, place: Arc<P>) -> Self {
        Self { id, epoch, place, prepared: None, before: None }
    }

    /// The epoch in force here.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Freezes what this member will lose; on `Ok` it may acknowledge.
    ///
    /// # Errors
    /// `StaleEpoch` unless `epoch` is above the one in force, `Conflict` when another change of this epoch is
    /// prepared.
    pub fn prepare(&mut self, epoch: u64, next: Arc<P>) -> Result<(), Error> {
        if epoch <= self.epoch {
            return Err(self.stale(epoch));
        }
        if let Some((at, place)) = &self.prepared
            && *at == epoch
            && place.fingerprint() != next.fingerprint()
        {
            return Err(Error::new(ErrorKind::Conflict, format!("two changes claim epoch {epoch}")));
        }
        self.prepared = Some((epoch, next));
        Ok(())
    }

    /// The change is the truth.
    ///
    /// # Errors
    /// `StaleEpoch` for an epoch that is over, `ApiMisuse` for one that was not prepared here: fetch it and
    /// [`Member::install`] it.
    pub fn commit(&mut self, epoch: u64) -> Result<(), Error> {
        if epoch < self.epoch {
            return Err(self.stale(epoch));
        }
        if epoch == self.epoch {
            return Ok(());
        }
        match self.prepared.take() {
            Some((at, place)) if at == epoch => {
                self.install(epoch, place);
                Ok(())
            }
            other => {
                self.prepared = other;
                Err(Error::new(ErrorKind::ApiMisuse, format!("epoch {epoch} was not prepared here")))
            }
        }
    }

    /// The change was dropped: writes go on.
    pub fn abort(&mut self, epoch: u64) {
        if self.prepared.as_ref().is_some_and(|(at, _)| *at == epoch) {
            self.prepared = None;
        }
    }

    /// Puts a committed placement in force; lower epochs are ignored.
    ///
    /// For a member that missed the preparation: it was restarted, or excused. What it owned before is known from the
    /// placement that it had, which may be several epochs old.
    pub fn install(&mut self, epoch: u64, place: Arc<P>) {
        if epoch > self.epoch {
            self.before = Some(std::mem::replace(&mut self.place, place));
            self.epoch = epoch;
            self.prepared = self.prepared.take().filter(|(at, _)| *at > epoch);
        }
    }

    /// All data has arrived: no more [`Verdict::Ask`].
    pub fn arrived(&mut self) {
        self.before = None;
    }

    /// Whether to take a write from a client that routed by `epoch`.
    ///
    /// It is the check before the store, not instead of it: between the verdict and the write the member may stall while
    /// the fleet moves on. Give the epoch to the store too and let its [`EpochFence`] decide last.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_partition::{Node, Ring, topology::{Member, Verdict}};
    ///
    /// let ring = |id: &str| Ring::builder().nodes([Node::new(id)]).build().map(Arc::new);
    /// let mut a = Member::new("a".into(), 5, ring("a")?);
    /// assert_eq!(a.write(b"k", 5), Verdict::Accept);
    /// assert_eq!(a.write(b"k", 4), Verdict::StaleEpoch { seen: 5 });
    /// assert_eq!(a.write(b"k", 6), Verdict::Behind { epoch: 5 });
    /// a.prepare(6, ring("b")?)?;
    /// assert_eq!(a.write(b"k", 5), Verdict::Frozen { epoch: 6 });
    /// a.abort(6);
    /// assert_eq!(a.write(b"k", 5), Verdict::Accept, "nothing was decided, so it goes on");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn write(&self, key: &[u8], epoch: u64) -> Verdict {
        if epoch > self.epoch {
            return Verdict::Behind { epoch: self.epoch };
        }
        let Some(owner) = self.owner(&*self.place, key) else { return Verdict::Nobody };
        if owner != self.id {
            return Verdict::Moved { epoch: self.epoch, node: owner };
        }
        if epoch < self.epoch {
            return Verdict::StaleEpoch { seen: self.epoch };
        }
        match &self.prepared {
            Some((epoch, next)) if self.owner(&**next, key).as_ref() != Some(&self.id) => {
                Verdict::Frozen { epoch: *epoch }
            }
            _ => Verdict::Accept,
        }
    }

    /// Whether to answer a read that was routed here; `has` says whether the data of the key has arrived.
    ///
    /// A key that never existed is asked for at the former owner as well, until [`Member::arrived`]: that it is not here
    /// does not say that it is nowhere.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_partition::{Node, Ring, topology::{Member, Verdict}};
    ///
    /// let ring = |id: &str| Ring::builder().nodes([Node::new(id)]).build().map(Arc::new);
    /// let mut b = Member::new("b".into(), 1, ring("a")?);
    /// b.install(2, ring("b")?);
    /// assert_eq!(b.read(b"k", false), Verdict::Ask { node: "a".into() });
    /// assert_eq!(b.read(b"k", true), Verdict::Accept, "it was written here since");
    /// b.arrived();
    /// assert_eq!(b.read(b"k", false), Verdict::Accept);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn read(&self, key: &[u8], has: bool) -> Verdict {
        let Some(owner) = self.owner(&*self.place, key) else { return Verdict::Nobody };
        if owner != self.id {
            return Verdict::Moved { epoch: self.epoch, node: owner };
        }
        match self.before.as_ref().and_then(|before| self.owner(&**before, key)) {
            Some(before) if !has && before != self.id => Verdict::Ask { node: before },
            _ => Verdict::Accept,
        }
    }

    /// Whether to answer a read that the owner sent here with [`Verdict::Ask`]: yes, when this member had the
    /// key before the change.
    #[must_use]
    pub fn read_asked(&self, key: &[u8]) -> Verdict {
        let had = self.before.as_ref().and_then(|before| self.owner(&**before, key));
        match self.owner(&*self.place, key) {
            _ if had.as_ref() == Some(&self.id) => Verdict::Accept,
            Some(owner) if owner == self.id => Verdict::Accept,
            Some(node) => Verdict::Moved { epoch: self.epoch, node },
            None => Verdict::Nobody,
        }
    }

    fn owner(&self, place: &P, key: &[u8]) -> Option<NodeId> {
        place.owner(key).map(|i: NodeIdx| place.nodes()[i].id.clone())
    }

    fn stale(&self, got: u64) -> Error {
        let seen = self.epoch;
        Error::new(ErrorKind::StaleEpoch { seen, got }, format!("epoch {got} is over: {seen} is in force"))
    }
}

/// The fence of a store: per slot (or any other unit) it refuses an epoch below one that it has seen. It is
/// what holds when everything else is late.
///
/// ```
/// use mainstay_partition::topology::EpochFence;
///
/// let mut fence = EpochFence::new(16384);
/// fence.admit(7, 2)?;
/// assert!(fence.admit(7, 1).is_err());
/// assert!(fence.admit(8, 1).is_ok());
/// # Ok::<(), mainstay_partition::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct EpochFence {
    seen: Vec<u64>,
}

impl EpochFence {
    /// A fence of so many units that has seen nothing.
    #[must_use]
    pub fn new(units: usize) -> Self {
        Self { seen: vec![0; units] }
    }

    /// Lets a write of `epoch` to `unit` pass and remembers the epoch.
    ///
    /// # Errors
    /// `StaleEpoch` below the highest epoch seen there, `Config` for a unit that does not exist.
    pub fn admit(&mut self, unit: usize, epoch: u64) -> Result<(), Error> {
        let units = self.seen.len();
        let Some(seen) = self.seen.get_mut(unit) else {
            let allowed = format!("below {units}");
            return Err(ConfigError::new(ConfigErrorKind::OutOfRange, "unit", unit, allowed).into());
        };
        if epoch < *seen {
            let (seen, got) = (*seen, epoch);
            let text = format!("unit {unit} has seen epoch {seen}; a write of epoch {got} is too late");
            return Err(Error::new(ErrorKind::StaleEpoch { seen, got }, text));
        }
        *seen = epoch;
        Ok(())
    }
}
