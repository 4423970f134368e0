//! Dots with payloads.

use crate::crdt::causal::{DotStore, Mint, sealed::Sealed};
use crate::crdt::dotset::bytes;
use crate::crdt::{Join, Value};
use crate::error::Result;
use crate::hash::DigestKey;
use crate::version::{Context, Dot};
use crate::wire::{Reader, Wire, Writer, encode};

/// A payload per dot: the store of a [`MvRegister`](crate::crdt::MvRegister). A dot's payload never changes.
#[derive(Clone, Debug, PartialEq)]
pub struct DotFun<V>(Vec<(Dot, V)>);

impl<V> Default for DotFun<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V: Value> DotFun<V> {
    pub(crate) fn one(dot: Dot, value: V) -> Self {
        Self(vec![(dot, value)])
    }

    pub(crate) fn entries(&self) -> &[(Dot, V)] {
        &self.0
    }

    /// The concurrent values, in dot order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|e| &e.1)
    }

    /// Replaces every visible value by `value`.
    ///
    /// # Errors
    /// None; the signature is that of every mutator.
    pub fn write_value(&self, mint: &mut Mint<'_>, value: V) -> Result<Self> {
        mint.cover(self);
        Ok(Self::one(mint.dot(), value))
    }
}

impl<V: Value + Join + Default> DotFun<V> {
    /// Wraps a type without dots, so that it can live in a map: the join of every visible payload, changed by `f`,
    /// becomes the payload of a new dot.
    ///
    /// Concurrent changes stay beside each other until the next one joins them; read them with
    /// [`joined`](DotFun::joined).
    ///
    /// # Errors
    /// What `f` or the join of the payloads answers.
    pub fn apply(&self, mint: &mut Mint<'_>, f: impl FnOnce(&mut V) -> Result<()>) -> Result<Self> {
        let mut value = self.joined()?;
        f(&mut value)?;
        self.write_value(mint, value)
    }

    /// The join of every visible payload.
    ///
    /// # Errors
    /// What the join answers.
    pub fn joined(&self) -> Result<V> {
        let mut value = V::default();
        for (_, other) in &self.0 {
            let _ = value.join(other)?;
        }
        Ok(value)
    }
}

impl<V> Sealed for DotFun<V> {}

impl<V: Value> DotStore for DotFun<V> {
    fn is_bottom(&self) -> bool {
        self.0.is_empty()
    }

    fn any_dot(&self, f: &mut dyn FnMut(Dot) -> bool) -> bool {
        self.0.iter().any(|e| f(e.0))
    }

    fn absorb(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>) {
        if self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(a, b)| a.0 == b.0) {
            return;
        }
        let position = |entries: &[(Dot, V)], dot: &Dot| entries.binary_search_by(|e| e.0.cmp(dot));
        self.0.retain(|(dot, _)| {
            let stays = !theirs.contains(*dot) || position(&other.0, dot).is_ok();
            if !stays {
                moved.push((*dot, false));
            }
            stays
        });
        for (dot, value) in &other.0 {
            if let Err(at) = position(&self.0, dot)
                && !mine.contains(*dot)
            {
                self.0.insert(at, (*dot, value.clone()));
                moved.push((*dot, true));
            }
        }
    }

    fn keep(&self, f: &dyn Fn(Dot) -> bool) -> Self {
        Self(self.0.iter().filter(|e| f(e.0)).cloned().collect())
    }

    fn fingerprint(&self, dot: Dot, key: &DigestKey) -> Option<u128> {
        let at = self.0.binary_search_by(|e| e.0.cmp(&dot)).ok()?;
        Some(fingerprint_of(dot, &self.0[at].1, key))
    }
}

/// A hash of a dot and what is at it.
pub(crate) fn fingerprint_of<V: Wire>(dot: Dot, value: &V, key: &DigestKey) -> u128 {
    let mut all = bytes(dot).to_vec();
    all.extend(encode(value));
    key.hash(&all)
}

impl<V: Value> Wire for DotFun<V> {
    fn write(&self, out: &mut Writer) {
        out.number(self.0.len() as u64);
        for (dot, value) in &self.0 {
            out.dot(*dot);
            value.write(out);
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self(input.entries(|input| Ok((input.dot()?, V::read(input)?)))?))
    }
}
