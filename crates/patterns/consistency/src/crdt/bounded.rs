//! A counter with a floor.

use std::collections::BTreeMap;

use crate::crdt::lattice::{Item, Lattice};
use crate::crdt::{Changed, DeltaState, Join};
use crate::error::{Error, ErrorKind, Result};
use crate::version::{Context, VersionVector};
use crate::wire::{Reader, Wire, Writer};
use crate::{Actor, ActorId};

/// A counter that no replica ever shows below its floor: stock, seats, credit.
///
/// Every increment makes rights of its actor, every decrement spends them, and rights can be handed over. What an
/// actor may take is known locally, so taking needs no round trip; whoever has too few rights is refused
/// ([`ErrorKind::NoRights`]) although others may have plenty.
///
/// Guarantees: the floor, on every replica, in every order of deliveries. Not guaranteed: that rights are used up. Those
/// of an actor that is gone for ever (a lost disk, an old epoch) are stranded; they are never spent twice.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, ErrorKind, Join, crdt::BoundedCounter};
///
/// let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
/// let mut a = BoundedCounter::new(0);
/// a.inc(&mut at_a, 10)?;
/// a.transfer(&mut at_a, at_b.id(), 4)?;
/// let mut b = a.clone();
/// a.dec(&mut at_a, 6)?;
/// b.dec(&mut at_b, 4)?;
/// assert_eq!(a.dec(&mut at_a, 1).unwrap_err().kind(), ErrorKind::NoRights { have: 0, need: 1 });
/// a.join(&b)?;
/// assert_eq!(a.value(), 0);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BoundedCounter {
    floor: Option<i64>,
    /// Made (on the diagonal) or handed over, in total.
    rights: BTreeMap<(ActorId, ActorId), u64>,
    used: VersionVector,
}

impl BoundedCounter {
    /// A counter at its floor. Every replica must name the same one.
    #[must_use]
    pub fn new(floor: i64) -> Self {
        Self { floor: Some(floor), ..Self::default() }
    }

    /// What `actor` may take or hand over.
    #[must_use]
    pub fn rights(&self, actor: ActorId) -> u64 {
        let mut rights = -i128::from(self.used.get(actor));
        for (&(from, to), n) in &self.rights {
            match (from == actor, to == actor) {
                (true, true) | (false, true) => rights += i128::from(*n),
                (true, false) => rights -= i128::from(*n),
                (false, false) => {}
            }
        }
        u64::try_from(rights.max(0)).unwrap_or(u64::MAX)
    }

    /// Adds `by`; the delta.
    ///
    /// # Errors
    /// [`ErrorKind::Overflow`] when a total would leave 64 bits.
    pub fn inc(&mut self, actor: &mut Actor, by: u64) -> Result<Self> {
        self.give(actor.id(), actor.id(), by)
    }

    /// Takes `by` away; the delta.
    ///
    /// # Errors
    /// [`ErrorKind::NoRights`] when `actor` has fewer rights, [`ErrorKind::Overflow`] when a total would leave 64 bits.
    pub fn dec(&mut self, actor: &mut Actor, by: u64) -> Result<Self> {
        self.demand(actor.id(), by)?;
        let total = raised(self.used.get(actor.id()), by)?;
        self.used.raise(actor.id(), total);
        let mut delta = self.covering();
        delta.used.raise(actor.id(), total);
        Ok(delta)
    }

    /// Hands `by` of the actor's rights to `to`; the delta.
    ///
    /// # Errors
    /// [`ErrorKind::NoRights`] when `actor` has fewer rights, [`ErrorKind::Overflow`] when a total would leave 64 bits.
    pub fn transfer(&mut self, actor: &mut Actor, to: ActorId, by: u64) -> Result<Self> {
        self.demand(actor.id(), by)?;
        if actor.id() == to {
            return Ok(self.covering());
        }
        self.give(actor.id(), to, by)
    }

    fn give(&mut self, from: ActorId, to: ActorId, by: u64) -> Result<Self> {
        let total = raised(self.rights.get(&(from, to)).copied().unwrap_or(0), by)?;
        if total > 0 {
            self.rights.insert((from, to), total);
        }
        Ok(self.covering())
    }

    fn demand(&self, actor: ActorId, need: u64) -> Result<()> {
        let have = self.rights(actor);
        if have < need {
            let text = format!("{actor} has rights for {have}, not for {need}; others may hand some over");
            return Err(Error::new(ErrorKind::NoRights { have, need }, text));
        }
        Ok(())
    }

    /// A delta that carries every right it may rest on: whoever sees a decrement sees what backs it.
    fn covering(&self) -> Self {
        Self { floor: self.floor, rights: self.rights.clone(), used: VersionVector::new() }
    }

    /// The count.
    #[must_use]
    pub fn value(&self) -> i128 {
        let made: i128 = self.rights.iter().filter(|((a, b), _)| a == b).map(|(_, n)| i128::from(*n)).sum();
        let used: i128 = self.used.iter().map(|(_, n)| i128::from(n)).sum();
        i128::from(self.floor.unwrap_or(0)) + made - used
    }
}

fn raised(total: u64, by: u64) -> Result<u64> {
    let refused = || Error::new(ErrorKind::Overflow, "the rights of one actor would leave 64 bits");
    total.checked_add(by).filter(|n| *n < u64::MAX).ok_or_else(refused)
}

impl Join for BoundedCounter {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        if let (Some(a), Some(b)) = (self.floor, other.floor)
            && a != b
        {
            let text = format!("counters with the floors {a} and {b} are not the same counter");
            return Err(Error::new(ErrorKind::TypeMismatch, text));
        }
        let mut changed = self.floor.is_none() && other.floor.is_some();
        self.floor = self.floor.or(other.floor);
        for (pair, n) in &other.rights {
            let mine = self.rights.entry(*pair).or_insert(0);
            changed |= *mine < *n;
            *mine = (*mine).max(*n);
        }
        changed |= self.used.merge(&other.used).is_yes();
        Ok(Changed::from(changed))
    }

    fn leq(&self, other: &Self) -> bool {
        (self.floor.is_none() || self.floor == other.floor)
            && self.rights.iter().all(|(pair, n)| other.rights.get(pair).is_some_and(|theirs| n <= theirs))
            && self.used.iter().all(|(actor, n)| n <= other.used.get(actor))
    }
}

impl DeltaState for BoundedCounter {
    fn delta_since(&self, _seen: &Context) -> Self {
        self.clone()
    }
}

impl Wire for BoundedCounter {
    fn write(&self, out: &mut Writer) {
        self.floor.write(out);
        out.number(self.rights.len() as u64);
        for ((from, to), n) in &self.rights {
            out.actor(*from);
            out.actor(*to);
            out.number(*n);
        }
        self.used.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let floor = Option::<i64>::read(input)?;
        let rights = input.entries(|input| {
            let pair = (input.actor()?, input.actor()?);
            let n = input.number()?;
            if n == 0 || n == u64::MAX { Err(Error::malformed("rights out of range")) } else { Ok((pair, n)) }
        })?;
        Ok(Self { floor, rights: rights.into_iter().collect(), used: VersionVector::read(input)? })
    }
}

/// One element as a whole: parts of it could show a decrement without the rights behind it.
impl Lattice for BoundedCounter {
    fn each_item(&self, f: &mut dyn FnMut(Item)) {
        if *self != Self::default() {
            f(Item::of(&(), self));
        }
    }

    fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self {
        if keep(&Item::of(&(), self)) { self.clone() } else { Self::default() }
    }
}
