//! The server's side of a change: which reads and writes a member takes, and the fence of its store.

use std::sync::Arc;

use mainstay_store::{FenceCheck, FencingToken};

use crate::error::{ConfigError, Error, ErrorKind};
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
/// Every message of a coordinator carries its fencing token, and names the change by epoch and fingerprint: one that
/// comes late, from a coordinator that has a successor or about a change that is no longer the one prepared, decides
/// nothing. Only messages of one coordinator about one change look alike. When it offers a change again that it
/// aborted, it first waits for the answers to its abort.
///
/// It is the state of one process. What was prepared is lost with it: a member that starts anew gets the epoch in force
/// and installs it before it takes a write.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_partition::{ErrorKind, Node, Place, Ring, topology::{Member, Verdict}};
/// use mainstay_store::FencingToken;
///
/// let ring = |ids: &[&str]| Ring::builder().nodes(ids.iter().map(|id| Node::new(*id))).build().map(Arc::new);
/// let (next, token) = (ring(&["b"])?, FencingToken::new(7));
/// let mut a = Member::new("a".into(), 1, ring(&["a"])?);
/// a.prepare(2, token, Arc::clone(&next))?;
/// assert_eq!(a.write(b"user:17", 1), Verdict::Frozen { epoch: 2 });
/// let late = a.abort(2, FencingToken::new(6), next.fingerprint()).unwrap_err();
/// assert_eq!(late.kind(), ErrorKind::StaleToken);
/// a.commit(2, token, next.fingerprint())?;
/// assert_eq!(a.write(b"user:17", 2), Verdict::Moved { epoch: 2, node: "b".into() });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Member<P: ?Sized> {
    id: NodeId,
    epoch: u64,
    place: Arc<P>,
    /// The highest token of a coordinator that was seen.
    highest: FencingToken,
    prepared: Option<Prepared<P>>,
    before: Option<Before<P>>,
}

/// A change that this member has frozen for.
#[derive(Debug)]
struct Prepared<P: ?Sized> {
    epoch: u64,
    token: FencingToken,
    fingerprint: u128,
    place: Arc<P>,
}

/// The placement before, while its data is on the way.
#[derive(Debug)]
struct Before<P: ?Sized> {
    /// Nothing is still to come here.
    arrived: bool,
    place: Arc<P>,
}

impl<P: Place + ?Sized> Member<P> {
    /// A member that knows one epoch.
    #[must_use]
    pub fn new(id: NodeId, epoch: u64, place: Arc<P>) -> Self {
        Self { id, epoch, place, highest: FencingToken::ZERO, prepared: None, before: None }
    }

    /// The epoch in force here.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Freezes what this member will lose; on `Ok` it may acknowledge.
    ///
    /// A coordinator with a higher token replaces what its predecessor prepared for the epoch: that it prepares says that
    /// nothing was committed.
    ///
    /// # Errors
    /// `StaleToken` below a token that was seen here, `StaleEpoch` unless `epoch` is above the one in force,
    /// `Conflict` when this coordinator has prepared another change of this epoch, `InProgress` when a change of
    /// another epoch is prepared here: fetch how that ended and [`Member::install`] it, or abort it.
    pub fn prepare(&mut self, epoch: u64, token: FencingToken, next: Arc<P>) -> Result<(), Error> {
        self.fence(token)?;
        if epoch <= self.epoch {
            return Err(self.stale(epoch));
        }
        let fingerprint = next.fingerprint();
        if let Some(prepared) = &self.prepared {
            if prepared.epoch != epoch {
                let text = format!("epoch {} is prepared here and not decided", prepared.epoch);
                return Err(Error::new(ErrorKind::InProgress, text));
            }
            if prepared.fingerprint != fingerprint && prepared.token == token {
                return Err(prepared.conflict(fingerprint));
            }
        }
        self.prepared = Some(Prepared { epoch, token, fingerprint, place: next });
        Ok(())
    }

    /// The change is the truth.
    ///
    /// # Errors
    /// `StaleToken` below a token that was seen here, `StaleEpoch` for an epoch that is over, `Conflict` when another
    /// change of this epoch is prepared or in force here, `ApiMisuse` for an epoch that was not prepared here: fetch it
    /// and [`Member::install`] it.
    pub fn commit(&mut self, epoch: u64, token: FencingToken, fingerprint: u128) -> Result<(), Error> {
        self.fence(token)?;
        if epoch < self.epoch {
            return Err(self.stale(epoch));
        }
        if epoch == self.epoch {
            let here = self.place.fingerprint();
            return if here == fingerprint { Ok(()) } else { Err(conflict(epoch, here, fingerprint)) };
        }
        match &self.prepared {
            Some(prepared) if prepared.epoch == epoch => {
                if prepared.fingerprint != fingerprint {
                    return Err(prepared.conflict(fingerprint));
                }
                let place = Arc::clone(&prepared.place);
                self.install(epoch, place);
                Ok(())
            }
            _ => Err(Error::new(ErrorKind::ApiMisuse, format!("epoch {epoch} was not prepared here"))),
        }
    }

    /// The change was dropped: writes go on. A change that is not prepared here is dropped already.
    ///
    /// # Errors
    /// `StaleToken` below a token that was seen here, `Conflict` when another change of this epoch is prepared here;
    /// it stays prepared.
    pub fn abort(&mut self, epoch: u64, token: FencingToken, fingerprint: u128) -> Result<(), Error> {
        self.fence(token)?;
        if let Some(prepared) = self.prepared.as_ref().filter(|p| p.epoch == epoch) {
            if prepared.fingerprint != fingerprint {
                return Err(prepared.conflict(fingerprint));
            }
            self.prepared = None;
        }
        Ok(())
    }

    /// Puts a committed placement in force; lower epochs are ignored.
    ///
    /// For a member that missed the preparation: it was restarted, or excused. What it owned before is known from the
    /// placement that it had, which may be several epochs old.
    pub fn install(&mut self, epoch: u64, place: Arc<P>) {
        if epoch > self.epoch {
            let before = std::mem::replace(&mut self.place, place);
            self.before = Some(Before { arrived: false, place: before });
            self.epoch = epoch;
            self.prepared = self.prepared.take().filter(|prepared| prepared.epoch > epoch);
        }
    }

    /// All data that this member gained has arrived: no more [`Verdict::Ask`]. What it lost it still answers for,
    /// see [`Member::read_asked`].
    pub fn arrived(&mut self) {
        if let Some(before) = &mut self.before {
            before.arrived = true;
        }
    }

    /// The change is over for all: every former owner has handed over, as [`Topology::handoff_done`] told the last one,
    /// and nobody is asked for what was here before. The next change says so too.
    ///
    /// [`Topology::handoff_done`]: super::Topology::handoff_done
    pub fn handed_over(&mut self) {
        self.before = None;
    }

    /// Whether to take a write from a client that routed by `epoch`.
    ///
    /// It is the check before the store, not instead of it: between the verdict and the write the member may stall while
    /// the fleet moves on. Give the epoch to the store too and let its [`EpochFence`] decide last.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_partition::{Node, Place, Ring, topology::{Member, Verdict}};
    /// use mainstay_store::FencingToken;
    ///
    /// let ring = |id: &str| Ring::builder().nodes([Node::new(id)]).build().map(Arc::new);
    /// let mut a = Member::new("a".into(), 5, ring("a")?);
    /// assert_eq!(a.write(b"k", 5), Verdict::Accept);
    /// assert_eq!(a.write(b"k", 4), Verdict::StaleEpoch { seen: 5 });
    /// assert_eq!(a.write(b"k", 6), Verdict::Behind { epoch: 5 });
    /// let (next, token) = (ring("b")?, FencingToken::new(1));
    /// a.prepare(6, token, Arc::clone(&next))?;
    /// assert_eq!(a.write(b"k", 5), Verdict::Frozen { epoch: 6 });
    /// a.abort(6, token, next.fingerprint())?;
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
            Some(next) if self.owner(&*next.place, key).as_ref() != Some(&self.id) => {
                Verdict::Frozen { epoch: next.epoch }
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
        let coming = self.before.as_ref().filter(|before| !before.arrived);
        match coming.and_then(|before| self.owner(&*before.place, key)) {
            Some(before) if !has && before != self.id => Verdict::Ask { node: before },
            _ => Verdict::Accept,
        }
    }

    /// Whether to answer a read that the owner sent here with [`Verdict::Ask`]: yes, when this member had the
    /// key before the change. That lasts until [`Member::handed_over`] or the next change, whatever has arrived here
    /// meanwhile: the owner asks until its own data has.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_partition::{Node, Ring, topology::{Member, Verdict}};
    ///
    /// let ring = |id: &str| Ring::builder().nodes([Node::new(id)]).build().map(Arc::new);
    /// let mut a = Member::new("a".into(), 1, ring("a")?);
    /// a.install(2, ring("b")?);
    /// a.arrived();
    /// assert_eq!(a.read_asked(b"k"), Verdict::Accept, "b may still lack it");
    /// a.handed_over();
    /// assert_eq!(a.read_asked(b"k"), Verdict::Moved { epoch: 2, node: "b".into() });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn read_asked(&self, key: &[u8]) -> Verdict {
        let had = self.before.as_ref().and_then(|before| self.owner(&*before.place, key));
        match self.owner(&*self.place, key) {
            _ if had.as_ref() == Some(&self.id) => Verdict::Accept,
            Some(owner) if owner == self.id => Verdict::Accept,
            Some(node) => Verdict::Moved { epoch: self.epoch, node },
            None => Verdict::Nobody,
        }
    }

    /// A coordinator that has a successor decides nothing here.
    fn fence(&mut self, token: FencingToken) -> Result<(), Error> {
        match token.check(self.highest) {
            FenceCheck::Pass => {
                self.highest = token;
                Ok(())
            }
            FenceCheck::Stale { .. } => {
                let text = format!(
                    "token {token} is stale: {} was seen; another coordinator took over",
                    self.highest
                );
                Err(Error::new(ErrorKind::StaleToken, text))
            }
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

impl<P: ?Sized> Prepared<P> {
    fn conflict(&self, fingerprint: u128) -> Error {
        conflict(self.epoch, self.fingerprint, fingerprint)
    }
}

fn conflict(epoch: u64, here: u128, there: u128) -> Error {
    let text = format!("two changes claim epoch {epoch}: {here:032x} here, {there:032x} there");
    Error::new(ErrorKind::Conflict, text)
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
            return Err(ConfigError::new("unit", unit, allowed).into());
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
