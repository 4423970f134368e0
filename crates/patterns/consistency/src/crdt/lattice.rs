//! What anti-entropy needs from types without dots.

use crate::crdt::DeltaState;
use crate::error::Result;
use crate::hash;
use crate::hlc::Timestamp;
use crate::wire::{Wire, encode};

/// One element of a state, as anti-entropy compares it: a place and what is there, both as hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Item {
    pub(crate) place: u64,
    pub(crate) content: u64,
}

impl Item {
    pub(crate) fn of<K: Wire, V: Wire>(key: &K, value: &V) -> Self {
        let mut bytes = encode(key);
        let place = hash::of_bytes(&bytes);
        bytes.extend(encode(value));
        Self { place, content: hash::of_bytes(&bytes) }
    }
}

/// A state that is the join of its elements, without dots.
pub trait Lattice: DeltaState + Wire + Clone + Default + PartialEq + std::fmt::Debug {
    /// Calls `f` with every element.
    fn each_item(&self, f: &mut dyn FnMut(Item));

    /// The join of the elements that satisfy `keep`.
    #[must_use]
    fn subset(&self, keep: &dyn Fn(&Item) -> bool) -> Self;

    /// The stamp of its write, where writes are ordered by stamps.
    fn stamped(&self) -> Option<Timestamp> {
        None
    }

    /// Makes a change, all of it or, when `f` refuses, nothing. Types whose copy costs much note what comes instead.
    ///
    /// # Errors
    /// What `f` answers.
    fn attempt(&mut self, f: impl FnOnce(&mut Self) -> Result<Self>) -> Result<Self> {
        let before = self.clone();
        let made = f(self);
        if made.is_err() {
            *self = before;
        }
        made
    }
}
