//! Last writer wins, by an order that is total; and the textbook's document.
//!
//! Two writes never tie: stamps are compared first, then actors, then a hash of the value, then its encoding. So a
//! join does not depend on who joins whom, and equal stamps mean equal values.

use std::collections::{BTreeMap, VecDeque};

use crate::ActorId;
use crate::crdt::Value;
use crate::error::{ConfigError, Error, ErrorKind, Result};
use crate::hash;
use crate::hlc::{Hlc, Timestamp};
use crate::version::{Causality, Dot, VersionVector};
use crate::wire::{Reader, Wire, Writer, encode};

/// The place of a write in the total order of all writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    at: Timestamp,
    actor: ActorId,
    hash: u64,
}

impl Stamp {
    /// A stamp after `replaced`, whatever the wall clock says.
    pub(crate) fn after<V: Wire>(
        replaced: Option<Self>,
        hlc: &Hlc,
        actor: ActorId,
        value: &V,
    ) -> Result<Self> {
        if let Some(stamp) = replaced {
            hlc.observe(stamp.at)?;
        }
        Ok(Self { at: hlc.now()?, actor, hash: hash::of_value(value) })
    }

    /// When, by the writer's clock.
    #[must_use]
    pub const fn at(self) -> Timestamp {
        self.at
    }

    /// Who.
    #[must_use]
    pub const fn actor(self) -> ActorId {
        self.actor
    }
}

impl Wire for Stamp {
    fn write(&self, out: &mut Writer) {
        self.at.write(out);
        out.actor(self.actor);
        out.raw(&self.hash.to_be_bytes());
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let (at, actor) = (Timestamp::read(input)?, input.actor()?);
        Ok(Self { at, actor, hash: u64::from_be_bytes(input.array()?) })
    }
}

/// What a state says of stamps: for anti-entropy that takes in nothing of the future.
#[doc(hidden)]
#[derive(Debug)]
pub struct Stamps {
    limit: Timestamp,
    /// The newest stamp up to the limit.
    pub(crate) newest: Option<Timestamp>,
    /// Changes that are stamped later.
    pub(crate) late: Vec<Dot>,
}

impl Stamps {
    pub(crate) const fn until(limit: Timestamp) -> Self {
        Self { limit, newest: None, late: Vec::new() }
    }

    /// Takes note of a stamp; whether it is one of the future.
    pub(crate) fn is_late(&mut self, at: Timestamp) -> bool {
        if at > self.limit {
            return true;
        }
        self.newest = self.newest.max(Some(at));
        false
    }
}

/// The textbook's document: a value with the version vector of everything it contains.
///
/// A version that contains the other one wins, whatever the clocks say; of two concurrent ones the larger stamp wins,
/// and the winner takes over the join of both versions, so that the loser is never mistaken for news.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_consistency::{ActorId, hlc::Hlc, lww::Document};
///
/// let hlc = Hlc::builder(Arc::new(SystemClock::new())).build()?;
/// let (ada, bob) = (ActorId::new(1, 1, 0), ActorId::new(2, 1, 0));
/// let first = Document::new(&hlc, ada, "v1".to_owned())?;
/// let left = first.edit(&hlc, ada, "v2, by ada".to_owned())?;
/// let right = first.edit(&hlc, bob, "v2, by bob".to_owned())?;
/// let (one, other) = (left.clone().resolve(&right), right.resolve(&left));
/// assert_eq!(one, other);
/// assert_eq!(one.version().get(ada), 2);
/// assert_eq!(one.version().get(bob), 1);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Document<V> {
    value: Option<V>,
    version: VersionVector,
    stamp: Stamp,
}

impl<V: Value> Document<V> {
    /// A first version.
    ///
    /// # Errors
    /// Those of [`Hlc::now`].
    pub fn new(hlc: &Hlc, actor: ActorId, value: V) -> Result<Self> {
        Self::write(VersionVector::new(), None, hlc, actor, Some(value))
    }

    fn write(
        mut version: VersionVector,
        replaced: Option<Stamp>,
        hlc: &Hlc,
        actor: ActorId,
        value: Option<V>,
    ) -> Result<Self> {
        let stamp = Stamp::after(replaced, hlc, actor, &value)?;
        version.advance(actor);
        Ok(Self { value, version, stamp })
    }

    /// The next version, with another value.
    ///
    /// # Errors
    /// Those of [`Hlc::now`] and [`Hlc::observe`].
    pub fn edit(&self, hlc: &Hlc, actor: ActorId, value: V) -> Result<Self> {
        Self::write(self.version.clone(), Some(self.stamp), hlc, actor, Some(value))
    }

    /// The next version, deleted. It is kept as long as older versions may come back.
    ///
    /// # Errors
    /// Those of [`Hlc::now`] and [`Hlc::observe`].
    pub fn delete(&self, hlc: &Hlc, actor: ActorId) -> Result<Self> {
        Self::write(self.version.clone(), Some(self.stamp), hlc, actor, None)
    }

    /// The value, unless it was deleted.
    #[must_use]
    pub fn value(&self) -> Option<&V> {
        self.value.as_ref()
    }

    /// Every change that this version contains or decided against.
    #[must_use]
    pub fn version(&self) -> &VersionVector {
        &self.version
    }

    /// Its place in the order of writes.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The winner of two versions: the same whoever asks.
    #[must_use]
    pub fn resolve(mut self, other: &Self) -> Self {
        let key = |d: &Self| (d.stamp, encode(&d.value));
        let theirs = match self.version.compare(&other.version) {
            Causality::Before => true,
            Causality::After => false,
            Causality::Concurrent | Causality::Equal => key(&self) < key(other),
        };
        if theirs {
            self.value.clone_from(&other.value);
            self.stamp = other.stamp;
        }
        let _ = self.version.merge(&other.version);
        self
    }
}

/// Holds states from the future back until their time has come.
///
/// A state stamped further ahead than the clock's skew would win every conflict for hours. It is neither merged early
/// nor dropped: it waits here, up to `limit` of them; beyond that the sender is told to come back
/// ([`ErrorKind::Full`]).
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_consistency::{ActorId, crdt::LwwRegister, hlc::Hlc, lww::Holdback};
///
/// let hlc = Hlc::builder(Arc::new(SystemClock::new())).build()?;
/// let mut held = Holdback::new(64)?;
/// let mut register = LwwRegister::new();
/// let delta = register.set(&hlc, ActorId::new(1, 1, 0), 5_u64)?;
/// let at = delta.stamp().unwrap().at();
/// assert_eq!(held.offer(&hlc, at, delta.clone())?, Some(delta)); // of the present: at once
/// assert!(held.due(&hlc).is_empty());
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Debug)]
pub struct Holdback<T> {
    waiting: BTreeMap<Timestamp, VecDeque<T>>,
    len: usize,
    limit: usize,
}

impl<T> Holdback<T> {
    /// Room for `limit` states.
    ///
    /// # Errors
    /// A limit of zero.
    pub fn new(limit: usize) -> std::result::Result<Self, ConfigError> {
        if limit == 0 {
            return Err(ConfigError::new("limit", limit, "at least 1"));
        }
        Ok(Self { waiting: BTreeMap::new(), len: 0, limit })
    }

    /// Gives `state` back when the clock accepts its newest stamp `at`, and keeps it otherwise.
    ///
    /// # Errors
    /// [`ErrorKind::Full`] when there is no room; the sender must keep it. Other refusals of the clock.
    pub fn offer(&mut self, hlc: &Hlc, at: Timestamp, state: T) -> Result<Option<T>> {
        match hlc.observe(at) {
            Ok(()) => Ok(Some(state)),
            Err(error) if matches!(error.kind(), ErrorKind::Skew { .. }) => {
                if self.len == self.limit {
                    let text = format!("{} states from the future wait already", self.limit);
                    return Err(Error::new(ErrorKind::Full, text));
                }
                self.waiting.entry(at).or_default().push_back(state);
                self.len += 1;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The states whose time has come, oldest first.
    pub fn due(&mut self, hlc: &Hlc) -> Vec<T> {
        let mut due = Vec::new();
        while let Some(first) = self.waiting.first_entry() {
            if hlc.observe(*first.key()).is_err() {
                break;
            }
            due.extend(first.remove());
        }
        self.len -= due.len();
        due
    }

    /// How many wait: a number worth a metric, it is zero unless a clock is wrong.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
