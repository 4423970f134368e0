//! Add-wins maps.

use crate::Actor;
use crate::crdt::Key;
use crate::crdt::causal::{Causal, DotStore, Mint};
use crate::crdt::dotmap::{AddWins, DotMap};
use crate::error::Result;

/// A map of replicated values in which an update wins over a concurrent removal.
///
/// A key is there iff its value shows something. A removal takes away exactly what it saw: of an update concurrent
/// with it, only what it had not seen survives, so no old value returns.
///
/// ```
/// use mainstay_consistency::{Actor, ActorId, Join, crdt::{AwMap, DotFun}};
///
/// let (mut at_a, mut at_b) = (Actor::new(ActorId::new(1, 1, 0)), Actor::new(ActorId::new(2, 1, 0)));
/// let mut a: AwMap<String, DotFun<String>> = AwMap::new();
/// a.update(&mut at_a, "color".into(), |color, mint| color.write_value(mint, "red".into()))?;
/// let mut b = a.clone();
///
/// let removed = a.remove(&mut at_a, &"color".to_owned())?;
/// let updated = b.update(&mut at_b, "color".into(), |color, mint| color.write_value(mint, "blue".into()))?;
/// a.join(&updated)?;
/// b.join(&removed)?;
/// assert_eq!(a, b);
/// assert!(a.get(&"color".to_owned()).unwrap().values().eq(["blue"]));
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
pub type AwMap<K, S> = Causal<DotMap<K, S, AddWins>>;

impl<K: Key, S: DotStore> DotMap<K, S, AddWins> {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&S> {
        self.entry(key)
    }

    /// Keys and values, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &S)> + Clone {
        self.entries()
    }

    /// How many keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.size()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.size() == 0
    }

    /// Changes the value of `key` by one of its own mutators; an absent one starts empty.
    ///
    /// # Errors
    /// What `f` answers.
    pub fn update_value(
        &self,
        mint: &mut Mint<'_>,
        key: K,
        f: impl FnOnce(&S, &mut Mint<'_>) -> Result<S>,
    ) -> Result<Self> {
        let delta = match self.entry(&key) {
            Some(value) => f(value, mint)?,
            None => f(&S::default(), mint)?,
        };
        Ok(Self::one(key, delta))
    }

    /// Removes `key` with everything seen under it.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn remove_key(&self, mint: &mut Mint<'_>, key: &K) -> Result<Self> {
        if let Some(value) = self.entry(key) {
            mint.cover(value);
        }
        Ok(Self::default())
    }

    /// Removes everything seen.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn clear_all(&self, mint: &mut Mint<'_>) -> Result<Self> {
        mint.cover(self);
        Ok(Self::default())
    }
}

impl<K: Key, S: DotStore> AwMap<K, S> {
    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&S> {
        self.store().get(key)
    }

    /// Keys and values, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &S)> + Clone {
        self.store().iter()
    }

    /// How many keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.store().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.store().is_empty()
    }

    /// Changes the value of `key` by one of its own mutators; the delta.
    ///
    /// # Errors
    /// What `f` answers, and the errors of [`Causal::mutate`].
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
    pub fn remove(&mut self, actor: &mut Actor, key: &K) -> Result<Self> {
        self.mutate(actor, |map, mint| map.remove_key(mint, key))
    }

    /// Removes every key seen; the delta.
    ///
    /// # Errors
    /// Those of [`Causal::mutate`].
    pub fn clear(&mut self, actor: &mut Actor) -> Result<Self> {
        self.mutate(actor, |map, mint| map.clear_all(mint))
    }
}
