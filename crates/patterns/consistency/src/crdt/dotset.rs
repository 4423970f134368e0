//! Sets of dots.

use crate::crdt::causal::{DotStore, sealed::Sealed};
use crate::error::{Error, Result};
use crate::hash::DigestKey;
use crate::version::{Context, Dot};
use crate::wire::{Reader, Wire, Writer};

/// A set of dots: the store of an [`EwFlag`](crate::crdt::EwFlag), and of an element in an
/// [`AwSet`](crate::crdt::AwSet). One dot, the usual case, needs no allocation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DotSet(Inner);

/// `Many` holds none, or two and more, sorted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::box_collection, reason = "a boxed vector fits beside the niche of a dot: 24 bytes in all")]
enum Inner {
    One(Dot),
    Many(Option<Box<Vec<Dot>>>),
}

impl Default for DotSet {
    fn default() -> Self {
        Self(Inner::Many(None))
    }
}

impl DotSet {
    pub(crate) fn one(dot: Dot) -> Self {
        Self(Inner::One(dot))
    }

    fn from_sorted(dots: Vec<Dot>) -> Self {
        match dots[..] {
            [] => Self::default(),
            [dot] => Self::one(dot),
            _ => Self(Inner::Many(Some(Box::new(dots)))),
        }
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[Dot] {
        match &self.0 {
            Inner::One(dot) => std::slice::from_ref(dot),
            Inner::Many(dots) => dots.as_deref().map_or(&[], Vec::as_slice),
        }
    }
}

impl Sealed for DotSet {}

impl DotStore for DotSet {
    fn is_bottom(&self) -> bool {
        self.as_slice().is_empty()
    }

    fn any_dot(&self, f: &mut dyn FnMut(Dot) -> bool) -> bool {
        self.as_slice().iter().any(|dot| f(*dot))
    }

    fn absorb(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>) {
        let (ours, others) = (self.as_slice(), other.as_slice());
        if ours == others {
            return;
        }
        let start = moved.len();
        let gone = |dot: &&Dot| others.binary_search(dot).is_err() && theirs.contains(**dot);
        moved.extend(ours.iter().filter(gone).map(|dot| (*dot, false)));
        let came = |dot: &&Dot| ours.binary_search(dot).is_err() && !mine.contains(**dot);
        moved.extend(others.iter().filter(came).map(|dot| (*dot, true)));
        let moves = &moved[start..];
        if moves.is_empty() {
            return;
        }
        let stays = |dot: &&Dot| !moves.contains(&(**dot, false));
        let mut next: Vec<Dot> = ours.iter().filter(stays).copied().collect();
        next.extend(moves.iter().filter(|m| m.1).map(|m| m.0));
        next.sort_unstable();
        *self = Self::from_sorted(next);
    }

    fn keep(&self, f: &dyn Fn(Dot) -> bool) -> Self {
        Self::from_sorted(self.as_slice().iter().copied().filter(|dot| f(*dot)).collect())
    }

    fn fingerprint(&self, dot: Dot, key: &DigestKey) -> Option<u128> {
        self.as_slice().binary_search(&dot).ok().map(|_| key.hash(&bytes(dot)))
    }
}

/// The dot as bytes of a fixed width: what a fingerprint starts with.
pub(crate) fn bytes(dot: Dot) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..16].copy_from_slice(&dot.actor().to_bytes());
    bytes[16..].copy_from_slice(&dot.counter().to_be_bytes());
    bytes
}

impl Wire for DotSet {
    fn write(&self, out: &mut Writer) {
        out.number(self.as_slice().len() as u64);
        for dot in self.as_slice() {
            out.dot(*dot);
        }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let entries = input.entries(|input| Ok((input.dot()?, ())))?;
        Ok(Self::from_sorted(entries.into_iter().map(|e| e.0).collect()))
    }
}

/// A store that must not be empty inside a map: an empty one is written as the absence of its key.
pub(crate) fn nonempty<S: DotStore>(store: S) -> Result<S> {
    if store.is_bottom() { Err(Error::malformed("an empty store under a key")) } else { Ok(store) }
}
