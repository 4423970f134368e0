//! Counters.

use crate::crdt::causal::{Causal, Mint};
use crate::crdt::dotfun::DotFun;
use crate::crdt::lattice::{Item, Lattice};
use crate::crdt::{Changed, DeltaState, Join};
use crate::error::{Error, ErrorKind, Result};
use crate::version::{Causality, Context, VersionVector};
use crate::wire::{Reader, Wire, Writer};
use crate::{Actor, ActorId};

fn overflow() -> Error {
    Error::new(ErrorKind::Overflow, "the count of one actor would leave 64 bits")
}

/// A counter that only grows: a total per actor, joined by the larger.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, Join, crdt::GCounter};
///
/// let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
/// let (mut a, mut b) = (GCounter::new(), GCounter::new());
/// a.inc(&mut at_a, 2)?;
/// let delta = b.inc(&mut at_b, 3)?;
/// a.join(&delta)?;
/// assert_eq!(a.value(), 5);
/// assert!(!a.join(&delta)?.is_yes()); // twice counts once
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GCounter(VersionVector);

impl GCounter {
    /// Zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `by`; the delta.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`] when the actor's total would leave 64 bits.
    pub fn inc(&mut self, actor: &mut Actor, by: u64) -> Result<Self> {
        let total = self.0.get(actor.id()).checked_add(by).filter(|n| *n < u64::MAX).ok_or_else(overflow)?;
        self.0.raise(actor.id(), total);
        let mut delta = Self::default();
        delta.0.raise(actor.id(), total);
        Ok(delta)
    }

    /// The count.
    #[must_use]
    pub fn value(&self) -> i128 {
        self.0.iter().map(|(_, n)| i128::from(n)).sum()
    }

    fn part(&self, keep: impl Fn(ActorId, u64) -> bool) -> Self {
        Self(VersionVector::from_sorted(self.0.iter().filter(|(a, n)| keep(*a, *n)).collect()))
    }
}

impl Join for GCounter {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        Ok(self.0.merge(&other.0))
    }

    fn leq(&self, other: &Self) -> bool {
        matches!(self.0.compare(&other.0), Causality::Before | Causality::Equal)
    }
}

impl DeltaState for GCounter {
    fn delta_since(&self, _seen: &Context) -> Self {
        self.clone()
    }
}

impl Wire for GCounter {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        VersionVector::read(input).map(Self)
    }
}

impl Lattice for GCounter {
    fn each_item(&self, f: &mut dyn FnMut(Item)) {
        for (actor, n) in self.0.iter() {
            f(Item::of(&actor, &n));
        }
    }

    fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self {
        self.part(|actor, n| keep(&Item::of(&actor, &n)))
    }
}

/// A counter that goes up and down. It may show any intermediate value, negative ones included: it is no quota, see
/// [`BoundedCounter`](crate::crdt::BoundedCounter).
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, crdt::PnCounter};
///
/// let mut actor = Actor::new(ActorId::new(1, 1, 0));
/// let mut counter = PnCounter::new();
/// counter.inc(&mut actor, 2)?;
/// counter.dec(&mut actor, 5)?;
/// assert_eq!(counter.value(), -3);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PnCounter {
    up: GCounter,
    down: GCounter,
}

impl PnCounter {
    /// Zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `by`; the delta.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`] when the actor's total would leave 64 bits.
    pub fn inc(&mut self, actor: &mut Actor, by: u64) -> Result<Self> {
        Ok(Self { up: self.up.inc(actor, by)?, down: GCounter::default() })
    }

    /// Takes `by` away; the delta.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`] when the actor's total would leave 64 bits.
    pub fn dec(&mut self, actor: &mut Actor, by: u64) -> Result<Self> {
        Ok(Self { up: GCounter::default(), down: self.down.inc(actor, by)? })
    }

    /// The count.
    #[must_use]
    pub fn value(&self) -> i128 {
        self.up.value() - self.down.value()
    }
}

impl Join for PnCounter {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        let up = self.up.join(&other.up)?.is_yes();
        let down = self.down.join(&other.down)?.is_yes();
        Ok(Changed::from(up || down))
    }

    fn leq(&self, other: &Self) -> bool {
        self.up.leq(&other.up) && self.down.leq(&other.down)
    }
}

impl DeltaState for PnCounter {
    fn delta_since(&self, _seen: &Context) -> Self {
        self.clone()
    }
}

impl Wire for PnCounter {
    fn write(&self, out: &mut Writer) {
        self.up.write(out);
        self.down.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { up: GCounter::read(input)?, down: GCounter::read(input)? })
    }
}

impl Lattice for PnCounter {
    fn each_item(&self, f: &mut dyn FnMut(Item)) {
        for (down, part) in [(false, &self.up), (true, &self.down)] {
            for (actor, n) in part.0.iter() {
                f(Item::of(&(down, actor), &n));
            }
        }
    }

    fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self {
        let part =
            |down: bool, counter: &GCounter| counter.part(|actor, n| keep(&Item::of(&(down, actor), &n)));
        Self { up: part(false, &self.up), down: part(true, &self.down) }
    }
}

/// What one actor contributed to a [`ResettableCounter`] since the last reset it saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    up: u64,
    down: u64,
}

impl Wire for Tally {
    fn write(&self, out: &mut Writer) {
        out.number(self.up);
        out.number(self.down);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { up: input.number()?, down: input.number()? })
    }
}

/// A counter that can be set back to zero, and that can live in a map whose keys are removed.
///
/// A reset takes away what it saw. An increment concurrent with a reset keeps its actor's *whole* contribution alive:
/// five, then plus three concurrent with a reset, is eight. After a reset that was seen, counting starts from zero.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, crdt::ResettableCounter};
///
/// let mut actor = Actor::new(ActorId::new(1, 1, 0));
/// let mut counter = ResettableCounter::new();
/// counter.inc(&mut actor, 5)?;
/// counter.reset(&mut actor)?;
/// counter.inc(&mut actor, 1)?;
/// assert_eq!(counter.value(), 1);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type ResettableCounter = Causal<DotFun<Tally>>;

impl DotFun<Tally> {
    /// Adds `up` and takes `down` away.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`] when the actor's totals would leave 64 bits.
    pub fn count(&self, mint: &mut Mint<'_>, up: u64, down: u64) -> Result<Self> {
        let mut total = Tally { up, down };
        let me = mint.actor();
        for (dot, own) in self.entries().iter().filter(|e| e.0.actor() == me) {
            total.up = total.up.checked_add(own.up).ok_or_else(overflow)?;
            total.down = total.down.checked_add(own.down).ok_or_else(overflow)?;
            mint.cover_dot(*dot);
        }
        Ok(Self::one(mint.dot(), total))
    }

    /// Takes everything seen away.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn reset_all(&self, mint: &mut Mint<'_>) -> Result<Self> {
        mint.cover(self);
        Ok(Self::default())
    }

    /// The count.
    #[must_use]
    pub fn total(&self) -> i128 {
        self.values().map(|t| i128::from(t.up) - i128::from(t.down)).sum()
    }
}

impl ResettableCounter {
    /// Adds `by`; the delta.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`], and those of [`Causal::mutate`].
    pub fn inc(&mut self, actor: &mut Actor, by: u64) -> Result<Self> {
        self.mutate(actor, |counter, mint| counter.count(mint, by, 0))
    }

    /// Takes `by` away; the delta.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`], and those of [`Causal::mutate`].
    pub fn dec(&mut self, actor: &mut Actor, by: u64) -> Result<Self> {
        self.mutate(actor, |counter, mint| counter.count(mint, 0, by))
    }

    /// Takes everything seen away; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn reset(&mut self, actor: &mut Actor) -> Result<Self> {
        self.mutate(actor, DotFun::<Tally>::reset_all)
    }

    /// The count.
    #[must_use]
    pub fn value(&self) -> i128 {
        self.store().total()
    }
}
