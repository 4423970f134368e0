//! Flags.

use crate::Actor;
use crate::crdt::causal::{Causal, DotStore as _, Mint};
use crate::crdt::dotfun::DotFun;
use crate::crdt::dotset::DotSet;
use crate::error::Result;
use crate::wire::{Reader, Wire, Writer};

/// A flag that is on when one of two concurrent changes turned it on. It starts off.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, crdt::EwFlag};
///
/// let mut actor = Actor::new(ActorId::new(1, 1, 0));
/// let mut flag = EwFlag::new();
/// flag.enable(&mut actor)?;
/// assert!(flag.is_on());
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type EwFlag = Causal<DotSet>;

impl DotSet {
    /// Turns it on.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn turn_on(&self, mint: &mut Mint<'_>) -> Result<Self> {
        mint.cover(self);
        Ok(Self::one(mint.dot()))
    }

    /// Turns it off.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn turn_off(&self, mint: &mut Mint<'_>) -> Result<Self> {
        mint.cover(self);
        Ok(Self::default())
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.is_bottom()
    }
}

impl EwFlag {
    /// Turns it on; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn enable(&mut self, actor: &mut Actor) -> Result<Self> {
        self.mutate(actor, DotSet::turn_on)
    }

    /// Turns it off; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn disable(&mut self, actor: &mut Actor) -> Result<Self> {
        self.mutate(actor, DotSet::turn_off)
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.store().is_on()
    }
}

/// One opinion about a [`DwFlag`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote(bool);

impl Wire for Vote {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        bool::read(input).map(Self)
    }
}

/// A flag that is off when one of two concurrent changes turned it off. It starts off: a flag that were on without
/// a change would vanish from a map that holds it.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, crdt::DwFlag};
///
/// let mut actor = Actor::new(ActorId::new(1, 1, 0));
/// let mut flag = DwFlag::new();
/// assert!(!flag.is_on());
/// flag.enable(&mut actor)?;
/// assert!(flag.is_on());
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type DwFlag = Causal<DotFun<Vote>>;

impl DotFun<Vote> {
    /// Turns it on.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn turn_on(&self, mint: &mut Mint<'_>) -> Result<Self> {
        self.write_value(mint, Vote(true))
    }

    /// Turns it off.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn turn_off(&self, mint: &mut Mint<'_>) -> Result<Self> {
        self.write_value(mint, Vote(false))
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.is_bottom() && self.values().all(|vote| vote.0)
    }
}

impl DwFlag {
    /// Turns it on; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn enable(&mut self, actor: &mut Actor) -> Result<Self> {
        self.mutate(actor, DotFun::<Vote>::turn_on)
    }

    /// Turns it off; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn disable(&mut self, actor: &mut Actor) -> Result<Self> {
        self.mutate(actor, DotFun::<Vote>::turn_off)
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.store().is_on()
    }
}
