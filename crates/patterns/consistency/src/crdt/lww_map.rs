//! Maps in which the last writer wins.

use std::cmp::Ordering;

use crate::Actor;
use crate::crdt::causal::{Causal, DotStore, Mint, sealed::Sealed};
use crate::crdt::dotfun::fingerprint_of;
use crate::crdt::dotmap::{DotMap, Latest};
use crate::crdt::{Key, Value};
use crate::error::{Error, Result};
use crate::hash::DigestKey;
use crate::hlc::Hlc;
use crate::lww::{Stamp, Stamps};
use crate::version::{Context, Dot};
use crate::wire::{Reader, Wire, Writer, encode};

/// The last write to one key: a value, or a tombstone.
///
/// It hangs on a dot as everything else does: a tombstone that was collected is known to have been there, so an old
/// copy of what it hid cannot return.
#[derive(Clone, Debug, PartialEq)]
pub struct LwwCell<V>(Option<(Dot, Stamp, Option<V>)>);

impl<V> Default for LwwCell<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V: Value> LwwCell<V> {
    fn value(&self) -> Option<&V> {
        self.0.as_ref()?.2.as_ref()
    }

    fn stamp(&self) -> Option<Stamp> {
        self.0.as_ref().map(|e| e.1)
    }

    fn dot(&self) -> Option<Dot> {
        self.0.as_ref().map(|e| e.0)
    }

    /// A write after the one here: the clock first takes note of the stamp it replaces.
    fn write_after(&self, mint: &mut Mint<'_>, hlc: &Hlc, value: Option<V>) -> Result<Self> {
        let stamp = Stamp::after(self.stamp(), hlc, mint.actor(), &value)?;
        mint.cover(self);
        Ok(Self(Some((mint.dot(), stamp, value))))
    }

    fn compare(&self, other: &Self) -> Ordering {
        let by_bytes = || {
            let bytes = |cell: &Self| cell.0.as_ref().map(|e| encode(&e.2));
            bytes(self).cmp(&bytes(other))
        };
        self.stamp().cmp(&other.stamp()).then_with(by_bytes)
    }
}

impl<V> Sealed for LwwCell<V> {}

impl<V: Value> DotStore for LwwCell<V> {
    const TOMBSTONES: bool = true;
    const STAMPED: bool = true;

    fn is_bottom(&self) -> bool {
        self.0.is_none()
    }

    fn any_dot(&self, f: &mut dyn FnMut(Dot) -> bool) -> bool {
        self.dot().is_some_and(f)
    }

    fn absorb(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>) {
        let (ours, others) = (self.dot(), other.dot());
        if ours == others {
            return;
        }
        let stays = ours.filter(|dot| !theirs.contains(*dot));
        let comes = others.filter(|dot| !mine.contains(*dot));
        let wins = comes.is_some() && (stays.is_none() || other.compare(self) == Ordering::Greater);
        if let Some(dot) = ours
            && (wins || stays.is_none())
        {
            moved.push((dot, false));
            self.0 = None;
        }
        if wins {
            moved.extend(comes.map(|dot| (dot, true)));
            self.0.clone_from(&other.0);
        }
    }

    fn look_ahead(&self, stamps: &mut Stamps) {
        if let Some((dot, stamp, _)) = &self.0
            && stamps.is_late(stamp.at())
        {
            stamps.late.push(*dot);
        }
    }

    fn keep(&self, f: &dyn Fn(Dot) -> bool) -> Self {
        if self.dot().is_some_and(f) { self.clone() } else { Self::default() }
    }

    fn fingerprint(&self, dot: Dot, key: &DigestKey) -> Option<u128> {
        let entry = self.0.as_ref().filter(|e| e.0 == dot)?;
        Some(fingerprint_of(dot, &(entry.1, entry.2.clone()), key))
    }

    fn collect(&mut self, stable: &dyn Fn(Dot) -> bool, moved: &mut Vec<(Dot, bool)>) -> usize {
        match &self.0 {
            Some((dot, _, None)) if stable(*dot) => {
                moved.push((*dot, false));
                self.0 = None;
                1
            }
            _ => 0,
        }
    }
}

impl<V: Value> Wire for LwwCell<V> {
    fn write(&self, out: &mut Writer) {
        match &self.0 {
            None => out.byte(0),
            Some((dot, stamp, value)) => {
                out.byte(1);
                out.dot(*dot);
                stamp.write(out);
                value.write(out);
            }
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        match input.byte()? {
            0 => Ok(Self(None)),
            1 => Ok(Self(Some((input.dot()?, Stamp::read(input)?, Option::read(input)?)))),
            _ => Err(Error::malformed("no cell")),
        }
    }
}

/// A map of values in which the last write to a key wins, by a total order of stamps that no two writes share.
///
/// Also the form of a record whose fields are merged one by one: the key is the field. A write that saw another one
/// always wins over it, whatever the wall clocks said. Removals leave tombstones until every member has seen them.
///
/// Let the clock take note of what arrives, and keep out what comes from the future, as anti-entropy does that was given the
/// [clock](crate::replicate::Builder::clock), and [`Holdback::offer`](crate::lww::Holdback::offer): once a tombstone was
/// collected only the clocks remember its stamp, and a stamp of next week would win until then.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_consistency::{Actor, ActorId, Join, crdt::LwwMap, hlc::Hlc};
///
/// let hlc = Hlc::builder(Arc::new(SystemClock::new())).build()?;
/// let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
/// let mut a = LwwMap::<String, String>::new();
/// a.set(&mut at_a, &hlc, "title".into(), "draft".into())?;
/// let mut b = a.clone();
/// a.set(&mut at_a, &hlc, "title".into(), "final".into())?;
/// b.set(&mut at_b, &hlc, "owner".into(), "ada".into())?; // another field, at the same time
/// a.join(&b)?;
/// assert_eq!(a.get(&"title".into()).map(String::as_str), Some("final"));
/// assert_eq!(a.get(&"owner".into()).map(String::as_str), Some("ada"));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type LwwMap<K, V> = Causal<DotMap<K, LwwCell<V>, Latest>>;

impl<K: Key, V: Value> DotMap<K, LwwCell<V>, Latest> {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entry(key).and_then(LwwCell::value)
    }

    /// Writes `value` to `key`, or a tombstone.
    ///
    /// # Errors
    /// Those of [`Hlc::now`] and [`Hlc::observe`].
    pub fn write_key(&self, mint: &mut Mint<'_>, hlc: &Hlc, key: K, value: Option<V>) -> Result<Self> {
        let cell = match self.entry(&key) {
            Some(cell) => cell.write_after(mint, hlc, value)?,
            None => LwwCell::default().write_after(mint, hlc, value)?,
        };
        Ok(Self::one(key, cell))
    }
}

impl<K: Key, V: Value> LwwMap<K, V> {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        self.store().get(key)
    }

    /// Keys and values, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.store().entries().filter_map(|(key, cell)| Some((key, cell.value()?)))
    }

    /// Writes `value` to `key`; the delta.
    ///
    /// # Errors
    /// Those of [`Hlc::now`], [`Hlc::observe`] and [`Causal::mutate`].
    pub fn set(&mut self, actor: &mut Actor, hlc: &Hlc, key: K, value: V) -> Result<Self> {
        self.mutate(actor, |map, mint| map.write_key(mint, hlc, key, Some(value)))
    }

    /// Removes `key`; the delta. The tombstone also wins over earlier writes that were not seen.
    ///
    /// # Errors
    /// Those of [`Hlc::now`], [`Hlc::observe`] and [`Causal::mutate`].
    pub fn remove(&mut self, actor: &mut Actor, hlc: &Hlc, key: K) -> Result<Self> {
        self.mutate(actor, |map, mint| map.write_key(mint, hlc, key, None))
    }

    /// The newest stamp in it.
    #[must_use]
    pub fn newest(&self) -> Option<Stamp> {
        self.store().entries().filter_map(|e| e.1.stamp()).max()
    }

    /// How many removed keys are still remembered.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.store().entries().filter(|e| e.1.value().is_none()).count()
    }
}
