//! Remove-wins sets and maps.

use crate::Actor;
use crate::crdt::Key;
use crate::crdt::causal::{Causal, DotStore, Mint, sealed::Sealed};
use crate::crdt::dotmap::{DotMap, RemoveWins};
use crate::crdt::dotset::DotSet;
use crate::error::Result;
use crate::hash::DigestKey;
use crate::lww::Stamps;
use crate::version::{Context, Dot};
use crate::wire::{Reader, Wire, Writer};

/// Dots for and against the presence of an element. One against it hides it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Votes {
    yes: DotSet,
    no: DotSet,
}

impl Votes {
    /// Whether the element is there.
    #[must_use]
    pub fn is_present(&self) -> bool {
        !self.yes.is_bottom() && self.no.is_bottom()
    }

    fn cast(mint: &mut Mint<'_>, present: bool) -> Self {
        let dot = DotSet::one(mint.dot());
        if present {
            Self { yes: dot, no: DotSet::default() }
        } else {
            Self { yes: DotSet::default(), no: dot }
        }
    }
}

impl Sealed for Votes {}

impl DotStore for Votes {
    const TOMBSTONES: bool = true;

    fn is_bottom(&self) -> bool {
        self.yes.is_bottom() && self.no.is_bottom()
    }

    fn any_dot(&self, f: &mut dyn FnMut(Dot) -> bool) -> bool {
        self.yes.any_dot(f) || self.no.any_dot(f)
    }

    fn absorb(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>) {
        self.yes.absorb(mine, &other.yes, theirs, moved);
        self.no.absorb(mine, &other.no, theirs, moved);
    }

    fn keep(&self, f: &dyn Fn(Dot) -> bool) -> Self {
        Self { yes: self.yes.keep(f), no: self.no.keep(f) }
    }

    fn fingerprint(&self, dot: Dot, key: &DigestKey) -> Option<u128> {
        // A vote for and one against must not look alike.
        let no = || self.no.fingerprint(dot, key).map(u128::swap_bytes);
        self.yes.fingerprint(dot, key).or_else(no)
    }

    fn collect(&mut self, stable: &dyn Fn(Dot) -> bool, moved: &mut Vec<(Dot, bool)>) -> usize {
        let rest = self.keep(&|dot| !stable(dot));
        // What a stable removal hides may show only together with nothing, or behind a later removal.
        if self.no.is_bottom() || (rest.no.is_bottom() && !rest.is_bottom()) {
            return 0;
        }
        drop_to(self, rest, moved)
    }
}

/// Keeps `rest` of `store` and notes what went; whether something did.
fn drop_to<S: DotStore>(store: &mut S, rest: S, moved: &mut Vec<(Dot, bool)>) -> usize {
    let start = moved.len();
    store.any_dot(&mut |dot| {
        if !rest.any_dot(&mut |kept| kept == dot) {
            moved.push((dot, false));
        }
        false
    });
    *store = rest;
    usize::from(moved.len() > start)
}

impl Wire for Votes {
    fn write(&self, out: &mut Writer) {
        self.yes.write(out);
        self.no.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { yes: DotSet::read(input)?, no: DotSet::read(input)? })
    }
}

/// A set in which a removal wins over a concurrent addition.
///
/// A removed element leaves a tombstone until every member has seen the removal; see
/// [`replicate`](crate::replicate) for when that is.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, Join, crdt::RwSet};
///
/// let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
/// let mut a = RwSet::new();
/// a.add(&mut at_a, "mallory".to_owned())?;
/// let mut b = a.clone();
/// let banned = a.remove(&mut at_a, "mallory".to_owned())?;
/// b.add(&mut at_b, "mallory".to_owned())?; // at the same time
/// b.join(&banned)?;
/// assert!(!b.contains(&"mallory".to_owned()));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type RwSet<E> = Causal<DotMap<E, Votes, RemoveWins>>;

impl<E: Key> DotMap<E, Votes, RemoveWins> {
    /// Adds `element` (`present`), or removes it; a removal also forbids what it has not seen.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn put(&self, mint: &mut Mint<'_>, element: E, present: bool) -> Result<Self> {
        if let Some(votes) = self.entry(&element) {
            mint.cover(votes);
        }
        Ok(Self::one(element, Votes::cast(mint, present)))
    }
}

impl<E: Key> RwSet<E> {
    /// Adds `element`; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn add(&mut self, actor: &mut Actor, element: E) -> Result<Self> {
        self.mutate(actor, |set, mint| set.put(mint, element, true))
    }

    /// Removes `element`; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn remove(&mut self, actor: &mut Actor, element: E) -> Result<Self> {
        self.mutate(actor, |set, mint| set.put(mint, element, false))
    }

    /// Whether `element` is in it.
    #[must_use]
    pub fn contains(&self, element: &E) -> bool {
        self.store().entry(element).is_some_and(Votes::is_present)
    }

    /// The elements, in order.
    pub fn elements(&self) -> impl Iterator<Item = &E> {
        self.store().entries().filter(|e| e.1.is_present()).map(|e| e.0)
    }

    /// How many removed elements are still remembered.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.store().entries().filter(|e| !e.1.is_present()).count()
    }
}

/// A value with votes about its presence: the store of a key in an [`RwMap`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Guarded<S> {
    votes: Votes,
    value: S,
}

impl<S: DotStore> Guarded<S> {
    fn visible(&self) -> Option<&S> {
        self.votes.is_present().then_some(&self.value)
    }
}

impl<S> Sealed for Guarded<S> {}

impl<S: DotStore> DotStore for Guarded<S> {
    const CHECKED: bool = S::CHECKED;
    const TOMBSTONES: bool = true;
    const STAMPED: bool = S::STAMPED;

    fn is_bottom(&self) -> bool {
        self.votes.is_bottom() && self.value.is_bottom()
    }

    fn any_dot(&self, f: &mut dyn FnMut(Dot) -> bool) -> bool {
        self.votes.any_dot(f) || self.value.any_dot(f)
    }

    fn absorb(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>) {
        self.votes.absorb(mine, &other.votes, theirs, moved);
        self.value.absorb(mine, &other.value, theirs, moved);
    }

    fn compatible(&self, mine: &Context, other: &Self, theirs: &Context) -> Result<()> {
        self.value.compatible(mine, &other.value, theirs)
    }

    fn look_ahead(&self, stamps: &mut Stamps) {
        let before = stamps.late.len();
        self.value.look_ahead(stamps);
        if stamps.late.len() > before {
            // The key comes with its value.
            self.votes.any_dot(&mut |dot| {
                stamps.late.push(dot);
                false
            });
        }
    }

    fn keep(&self, f: &dyn Fn(Dot) -> bool) -> Self {
        Self { votes: self.votes.keep(f), value: self.value.keep(f) }
    }

    fn fingerprint(&self, dot: Dot, key: &DigestKey) -> Option<u128> {
        let value = || self.value.fingerprint(dot, key).map(|f| f.rotate_left(1));
        self.votes.fingerprint(dot, key).or_else(value)
    }

    fn collect(&mut self, stable: &dyn Fn(Dot) -> bool, moved: &mut Vec<(Dot, bool)>) -> usize {
        let rest = self.keep(&|dot| !stable(dot));
        let hidden = !self.votes.no.is_bottom();
        if hidden && (rest.is_bottom() || !rest.votes.no.is_bottom()) {
            return drop_to(self, rest, moved);
        }
        self.value.collect(stable, moved)
    }
}

impl<S: DotStore> Wire for Guarded<S> {
    fn write(&self, out: &mut Writer) {
        self.votes.write(out);
        self.value.write(out);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self { votes: Votes::read(input)?, value: S::read(input)? })
    }
}

/// A map of replicated values in which a removal wins over a concurrent update. A key that is added again starts
/// empty.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, crdt::{RwMap, Tally, DotFun}};
///
/// let mut actor = Actor::new(ActorId::new(1, 1, 0));
/// let mut map: RwMap<String, DotFun<Tally>> = RwMap::new();
/// map.update(&mut actor, "hits".into(), |counter, mint| counter.count(mint, 5, 0))?;
/// map.remove(&mut actor, "hits".into())?;
/// map.update(&mut actor, "hits".into(), |counter, mint| counter.count(mint, 1, 0))?;
/// assert_eq!(map.get(&"hits".into()).unwrap().total(), 1);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type RwMap<K, S> = Causal<DotMap<K, Guarded<S>, RemoveWins>>;

impl<K: Key, S: DotStore> DotMap<K, Guarded<S>, RemoveWins> {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&S> {
        self.entry(key).and_then(Guarded::visible)
    }

    /// Changes the value of `key` by one of its own mutators. What is hidden under a removed key is taken away first.
    ///
    /// # Errors
    /// What `f` answers.
    pub fn update_value(
        &self,
        mint: &mut Mint<'_>,
        key: K,
        f: impl FnOnce(&S, &mut Mint<'_>) -> Result<S>,
    ) -> Result<Self> {
        let value = match self.entry(&key) {
            Some(Guarded { votes, value }) if votes.is_present() => {
                mint.cover(votes);
                f(value, mint)?
            }
            Some(hidden) => {
                mint.cover(hidden);
                f(&S::default(), mint)?
            }
            None => f(&S::default(), mint)?,
        };
        Ok(Self::one(key, Guarded { votes: Votes::cast(mint, true), value }))
    }

    /// Removes `key`, also what others put there at the same time.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn remove_key(&self, mint: &mut Mint<'_>, key: K) -> Result<Self> {
        if let Some(entry) = self.entry(&key) {
            mint.cover(entry);
        }
        Ok(Self::one(key, Guarded { votes: Votes::cast(mint, false), value: S::default() }))
    }
}

impl<K: Key, S: DotStore> RwMap<K, S> {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&S> {
        self.store().get(key)
    }

    /// Keys and values, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &S)> {
        self.store().entries().filter_map(|(key, entry)| Some((key, entry.visible()?)))
    }

    /// Changes the value of `key` by one of its own mutators; the delta.
    ///
    /// # Errors
    /// What `f` answers, and those of [`Causal::mutate`].
    pub fn update(
        &mut self,
        actor: &mut Actor,
        key: K,
        f: impl FnOnce(&S, &mut Mint<'_>) -> Result<S>,
    ) -> Result<Self> {
        self.mutate(actor, |map, mint| map.update_value(mint, key, f))
    }

    /// Removes `key`; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn remove(&mut self, actor: &mut Actor, key: K) -> Result<Self> {
        self.mutate(actor, |map, mint| map.remove_key(mint, key))
    }

    /// How many removed keys are still remembered.
    #[must_use]
    pub fn tombstones(&self) -> usize {
        self.store().entries().filter(|e| e.1.visible().is_none()).count()
    }
}
