//! Sets.

use std::collections::BTreeSet;
use std::fmt;

use crate::Actor;
use crate::crdt::causal::{Causal, Mint};
use crate::crdt::dotmap::{AddWins, DotMap};
use crate::crdt::dotset::DotSet;
use crate::crdt::lattice::{Item, Lattice};
use crate::crdt::{Changed, DeltaState, Join, Key};
use crate::error::{Error, Result};
use crate::version::Context;
use crate::wire::{Reader, Wire, Writer};

/// A set in which an addition wins over a concurrent removal (observed-remove set).
///
/// Guarantees: a removal removes exactly what it saw; nothing is kept about removed elements. Not guaranteed: that a
/// removed element stays away while others add it, see [`RwSet`](crate::crdt::RwSet).
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, Join, crdt::AwSet};
///
/// let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
/// let milk = "milk".to_owned();
/// let mut a = AwSet::new();
/// a.add(&mut at_a, milk.clone())?;
/// let mut b = a.clone();
/// let removed = a.remove(&mut at_a, &milk)?;
/// let added = b.add(&mut at_b, milk.clone())?; // at the same time
/// a.join(&added)?;
/// b.join(&removed)?;
/// assert!(a == b && a.contains(&milk));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type AwSet<E> = Causal<DotMap<E, DotSet, AddWins>>;

impl<E: Key> DotMap<E, DotSet, AddWins> {
    /// Adds `element`.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn insert(&self, mint: &mut Mint<'_>, element: E) -> Result<Self> {
        if let Some(dots) = self.entry(&element) {
            mint.cover(dots);
        }
        Ok(Self::one(element, DotSet::one(mint.dot())))
    }
}

impl<E: Key> AwSet<E> {
    /// Adds `element`; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn add(&mut self, actor: &mut Actor, element: E) -> Result<Self> {
        self.mutate(actor, |set, mint| set.insert(mint, element))
    }

    /// Whether `element` is in it.
    #[must_use]
    pub fn contains(&self, element: &E) -> bool {
        self.store().entry(element).is_some()
    }

    /// The elements, in order.
    pub fn elements(&self) -> impl Iterator<Item = &E> + Clone {
        self.store().entries().map(|e| e.0)
    }
}

/// A set that only grows.
///
/// ```
/// use mainstay_consistency::crdt::GSet;
///
/// let mut set = GSet::new();
/// set.add(3_u64);
/// assert!(set.contains(&3));
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct GSet<E> {
    elements: BTreeSet<E>,
    noted: Noted<E>,
}

/// What came since somebody may want to take it back. It is no part of the value, nor of a copy.
struct Noted<E>(Option<Vec<E>>);

impl<E> Clone for Noted<E> {
    fn clone(&self) -> Self {
        Self(None)
    }
}

impl<E> PartialEq for Noted<E> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<E> Eq for Noted<E> {}

impl<E> Default for GSet<E> {
    fn default() -> Self {
        Self::of(BTreeSet::new())
    }
}

impl<E: fmt::Debug> fmt::Debug for GSet<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("GSet").field(&self.elements).finish()
    }
}

impl<E> GSet<E> {
    const fn of(elements: BTreeSet<E>) -> Self {
        Self { elements, noted: Noted(None) }
    }
}

impl<E: Key> GSet<E> {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `element`; the delta.
    pub fn add(&mut self, element: E) -> Self {
        self.insert(element.clone());
        Self::of(BTreeSet::from([element]))
    }

    fn insert(&mut self, element: E) {
        match &mut self.noted.0 {
            Some(noted) => {
                if self.elements.insert(element.clone()) {
                    noted.push(element);
                }
            }
            None => {
                self.elements.insert(element);
            }
        }
    }

    /// Notes from now on what comes.
    fn note(&mut self) {
        self.noted = Noted(Some(Vec::new()));
    }

    /// Notes no more, and keeps or takes back what was noted.
    fn settle(&mut self, keep: bool) {
        let noted = self.noted.0.take().filter(|_| !keep);
        for element in noted.into_iter().flatten() {
            self.elements.remove(&element);
        }
    }

    /// Whether `element` is in it.
    #[must_use]
    pub fn contains(&self, element: &E) -> bool {
        self.elements.contains(element)
    }

    /// The elements, in order.
    pub fn elements(&self) -> impl Iterator<Item = &E> {
        self.elements.iter()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.elements.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }
}

impl<E: Key> Join for GSet<E> {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        let before = self.elements.len();
        for element in &other.elements {
            if !self.elements.contains(element) {
                self.insert(element.clone());
            }
        }
        Ok(Changed::from(self.elements.len() > before))
    }

    fn leq(&self, other: &Self) -> bool {
        self.elements.is_subset(&other.elements)
    }
}

impl<E: Key> DeltaState for GSet<E> {
    fn delta_since(&self, _seen: &Context) -> Self {
        self.clone()
    }
}

impl<E: Key> Wire for GSet<E> {
    fn write(&self, out: &mut Writer) {
        out.number(self.elements.len() as u64);
        for element in &self.elements {
            element.write(out);
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let entries = input.entries(|input| Ok((E::read(input)?, ())))?;
        Ok(Self::of(entries.into_iter().map(|e| e.0).collect()))
    }
}

impl<E: Key> Lattice for GSet<E> {
    fn each_item(&self, f: &mut dyn FnMut(Item)) {
        for element in &self.elements {
            f(Item::of(element, &()));
        }
    }

    fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self {
        Self::of(self.elements.iter().filter(|e| keep(&Item::of(*e, &()))).cloned().collect())
    }

    fn attempt(&mut self, f: impl FnOnce(&mut Self) -> Result<Self>) -> Result<Self> {
        self.note();
        let made = f(self);
        self.settle(made.is_ok());
        made
    }
}

/// A set whose removed elements never return.
///
/// ```
/// use mainstay_consistency::crdt::TwoPhaseSet;
///
/// let mut tokens = TwoPhaseSet::new();
/// tokens.add("t1".to_owned());
/// tokens.remove(&"t1".to_owned())?;
/// tokens.add("t1".to_owned());
/// assert!(!tokens.contains(&"t1".to_owned()));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TwoPhaseSet<E> {
    added: GSet<E>,
    removed: GSet<E>,
}

impl<E> Default for TwoPhaseSet<E> {
    fn default() -> Self {
        Self { added: GSet::default(), removed: GSet::default() }
    }
}

impl<E: Key> TwoPhaseSet<E> {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `element`, in vain if it was removed; the delta.
    pub fn add(&mut self, element: E) -> Self {
        Self { added: self.added.add(element), removed: GSet::default() }
    }

    /// Removes `element` for ever; the delta.
    ///
    /// # Errors
    /// [`ForeignContext`](crate::ErrorKind::ForeignContext) when it was never added here: removing what one has not
    /// seen would forbid it to everybody.
    pub fn remove(&mut self, element: &E) -> Result<Self> {
        if !self.added.contains(element) {
            let text = format!("{element:?} was not seen here, so it cannot be removed");
            return Err(Error::new(crate::ErrorKind::ForeignContext, text));
        }
        Ok(Self { added: GSet::default(), removed: self.removed.add(element.clone()) })
    }

    /// Whether `element` is in it.
    #[must_use]
    pub fn contains(&self, element: &E) -> bool {
        self.added.contains(element) && !self.removed.contains(element)
    }

    /// The elements, in order.
    pub fn elements(&self) -> impl Iterator<Item = &E> {
        self.added.elements().filter(|e| !self.removed.contains(e))
    }
}

impl<E: Key> Join for TwoPhaseSet<E> {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        let added = self.added.join(&other.added)?.is_yes();
        let removed = self.removed.join(&other.removed)?.is_yes();
        Ok(Changed::from(added || removed))
    }

    fn leq(&self, other: &Self) -> bool {
        self.added.leq(&other.added) && self.removed.leq(&other.removed)
    }
}

impl<E: Key> DeltaState for TwoPhaseSet<E> {
    fn delta_since(&self, _seen: &Context) -> Self {
        self.clone()
    }
}

impl<E: Key> Wire for TwoPhaseSet<E> {
    fn write(&self, out: &mut Writer) {
        self.added.write(out);
        self.removed.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { added: GSet::read(input)?, removed: GSet::read(input)? })
    }
}

impl<E: Key> Lattice for TwoPhaseSet<E> {
    fn each_item(&self, f: &mut dyn FnMut(Item)) {
        for (removed, set) in [(false, &self.added), (true, &self.removed)] {
            for element in &set.elements {
                f(Item::of(&(Ref(element), removed), &()));
            }
        }
    }

    fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self {
        let part = |removed: bool, set: &GSet<E>| {
            let kept = set.elements.iter().filter(|e| keep(&Item::of(&(Ref(*e), removed), &())));
            GSet::of(kept.cloned().collect())
        };
        Self { added: part(false, &self.added), removed: part(true, &self.removed) }
    }

    fn attempt(&mut self, f: impl FnOnce(&mut Self) -> Result<Self>) -> Result<Self> {
        self.added.note();
        self.removed.note();
        let made = f(self);
        self.added.settle(made.is_ok());
        self.removed.settle(made.is_ok());
        made
    }
}

/// Writes like what it refers to.
struct Ref<'a, T>(&'a T);

impl<T: Wire> Wire for Ref<'_, T> {
    fn write(&self, out: &mut Writer) {
        self.0.write(out);
    }

    fn read(_: &mut Reader<'_>) -> Result<Self> {
        Err(Error::malformed("a reference is never read"))
    }
}
