//! Registers.

use std::cmp::Ordering;

use crate::crdt::causal::Causal;
use crate::crdt::dotfun::DotFun;
use crate::crdt::lattice::{Item, Lattice};
use crate::crdt::{Changed, DeltaState, Join, Key, Value};
use crate::error::Result;
use crate::hlc::{Hlc, Timestamp};
use crate::lww::Stamp;
use crate::version::Context;
use crate::wire::{Reader, Wire, Writer, encode};
use crate::{Actor, ActorId};

/// A register that keeps every value of concurrent writes, until a write that saw them replaces them.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, Join, crdt::MvRegister};
///
/// let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
/// let (mut a, mut b) = (MvRegister::new(), MvRegister::new());
/// a.write(&mut at_a, 1_u64)?;
/// b.write(&mut at_b, 2)?;
/// a.join(&b)?;
/// assert!(a.values().eq(&[1, 2]));
/// a.write(&mut at_a, 3)?;
/// assert!(a.values().eq(&[3]));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type MvRegister<V> = Causal<DotFun<V>>;

impl<V: Value> MvRegister<V> {
    /// Replaces every value seen; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn write(&mut self, actor: &mut Actor, value: V) -> Result<Self> {
        self.mutate(actor, |register, mint| register.write_value(mint, value))
    }

    /// The concurrent values, in the order of their dots.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.store().values()
    }
}

/// A register in which the larger stamp wins. Equal stamps mean equal values.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_consistency::{ActorId, Join, crdt::LwwRegister, hlc::Hlc};
///
/// let hlc = Hlc::builder(Arc::new(SystemClock::new())).build()?;
/// let mut register = LwwRegister::new();
/// register.set(&hlc, ActorId::new(1, 1, 0), "on".to_owned())?;
/// assert_eq!(register.get().map(String::as_str), Some("on"));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LwwRegister<V>(Option<(Stamp, V)>);

impl<V> Default for LwwRegister<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V: Value> LwwRegister<V> {
    /// Never written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value.
    #[must_use]
    pub fn get(&self) -> Option<&V> {
        self.0.as_ref().map(|e| &e.1)
    }

    /// The stamp of the value.
    #[must_use]
    pub fn stamp(&self) -> Option<Stamp> {
        self.0.as_ref().map(|e| e.0)
    }

    /// Writes `value` after what is here, whatever the wall clock says; the delta.
    ///
    /// # Errors
    /// Those of [`Hlc::now`] and [`Hlc::observe`].
    pub fn set(&mut self, hlc: &Hlc, actor: ActorId, value: V) -> Result<Self> {
        let stamp = Stamp::after(self.stamp(), hlc, actor, &value)?;
        self.0 = Some((stamp, value));
        Ok(self.clone())
    }

    fn compare(&self, other: &Self) -> Ordering {
        let by_bytes = || self.get().map(encode).cmp(&other.get().map(encode));
        self.stamp().cmp(&other.stamp()).then_with(by_bytes)
    }
}

impl<V: Value> Join for LwwRegister<V> {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        let newer = self.compare(other) == Ordering::Less;
        if newer {
            self.0.clone_from(&other.0);
        }
        Ok(Changed::from(newer))
    }

    fn leq(&self, other: &Self) -> bool {
        self.compare(other) != Ordering::Greater
    }
}

impl<V: Value> DeltaState for LwwRegister<V> {
    fn delta_since(&self, _seen: &Context) -> Self {
        self.clone()
    }
}

impl<V: Value> Wire for LwwRegister<V> {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self(Option::read(input)?))
    }
}

impl<V: Value> Lattice for LwwRegister<V> {
    fn each_item(&self, f: &mut dyn FnMut(Item)) {
        if self.0.is_some() {
            f(Item::of(&(), self));
        }
    }

    fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self {
        if keep(&Item::of(&(), self)) { self.clone() } else { Self(None) }
    }

    fn stamped(&self) -> Option<Timestamp> {
        self.stamp().map(Stamp::at)
    }
}

/// A register that only grows: a high-water mark.
///
/// ```
/// use mainstay_consistency::{Join, crdt::MaxRegister};
///
/// let mut peak = MaxRegister::new();
/// peak.raise(3_u64);
/// peak.raise(2);
/// assert_eq!(peak.get(), Some(&3));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaxRegister<V>(Option<V>);

/// A register that only shrinks: the earliest deadline, the smallest limit.
///
/// ```
/// use mainstay_consistency::{Join, crdt::MinRegister};
///
/// let mut limit = MinRegister::new();
/// limit.lower(3_u64);
/// limit.lower(5);
/// assert_eq!(limit.get(), Some(&3));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MinRegister<V>(Option<V>);

impl<V> Default for MaxRegister<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V> Default for MinRegister<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V: Key> MaxRegister<V> {
    /// Never written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The largest value.
    #[must_use]
    pub fn get(&self) -> Option<&V> {
        self.0.as_ref()
    }

    /// Keeps `value` if it is larger; the delta.
    pub fn raise(&mut self, value: V) -> Self {
        let delta = Self(Some(value));
        if self.0 < delta.0 {
            self.0.clone_from(&delta.0);
        }
        delta
    }
}

impl<V: Key> MinRegister<V> {
    /// Never written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The smallest value.
    #[must_use]
    pub fn get(&self) -> Option<&V> {
        self.0.as_ref()
    }

    /// Keeps `value` if it is smaller; the delta.
    pub fn lower(&mut self, value: V) -> Self {
        let delta = Self(Some(value));
        if delta.below(self) {
            self.0.clone_from(&delta.0);
        }
        delta
    }

    /// Whether this one is strictly further along.
    fn below(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(mine), Some(theirs)) => mine < theirs,
            (mine, theirs) => mine.is_some() && theirs.is_none(),
        }
    }
}

impl<V: Key> Join for MaxRegister<V> {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        let grows = self.0 < other.0;
        if grows {
            self.0.clone_from(&other.0);
        }
        Ok(Changed::from(grows))
    }

    fn leq(&self, other: &Self) -> bool {
        self.0 <= other.0
    }
}

impl<V: Key> Join for MinRegister<V> {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        let shrinks = other.below(self);
        if shrinks {
            self.0.clone_from(&other.0);
        }
        Ok(Changed::from(shrinks))
    }

    fn leq(&self, other: &Self) -> bool {
        !self.below(other)
    }
}

/// What both extremes share.
macro_rules! extreme {
    ($name:ident) => {
        impl<V: Key> DeltaState for $name<V> {
            fn delta_since(&self, _seen: &Context) -> Self {
                self.clone()
            }
        }

        impl<V: Key> Wire for $name<V> {
            fn write(&self, out: &mut Writer) {
                self.0.write(out);
            }

            fn read(input: &mut Reader<'_>) -> Result<Self> {
                Ok(Self(Option::read(input)?))
            }
        }

        impl<V: Key> Lattice for $name<V> {
            fn each_item(&self, f: &mut dyn FnMut(Item)) {
                if let Some(value) = &self.0 {
                    f(Item::of(&(), value));
                }
            }

            fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self {
                Self(self.0.clone().filter(|value| keep(&Item::of(&(), value))))
            }
        }
    };
}
extreme!(MaxRegister);
extreme!(MinRegister);
