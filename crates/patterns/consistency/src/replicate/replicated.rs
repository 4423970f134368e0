//! What anti-entropy asks of a state.

use std::collections::BTreeMap;

use crate::ActorId;
use crate::crdt::{Causal, DeltaState, DotStore, Item, Lattice};
use crate::error::{Error, ErrorKind, Result};
use crate::hash::DigestKey;
use crate::hlc::Timestamp;
use crate::version::{Context, Dot};
use crate::wire::{Reader, Wire, Writer, encode};

/// A place in the order in which ranges are compared: a dot, or the hash of an element without dots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(u64, u64, u64);

impl Place {
    pub(super) const FIRST: Self = Self(0, 0, 0);
    pub(super) const LAST: Self = Self(u64::MAX, u64::MAX, u64::MAX);

    fn of(dot: Dot) -> Self {
        let (node, rest) = dot.actor().words();
        Self(node, rest, dot.counter())
    }

    fn actor(self) -> ActorId {
        ActorId::new(self.0, (self.1 >> 32) as u32, self.1 as u32)
    }

    fn dot(self) -> Dot {
        Dot::new(self.actor(), self.2)
    }

    /// The place right after this one.
    pub(super) fn next(self) -> Self {
        match (self.2.checked_add(1), self.1.checked_add(1)) {
            (Some(n), _) => Self(self.0, self.1, n),
            (None, Some(rest)) => Self(self.0, rest, 0),
            (None, None) => Self(self.0.saturating_add(1), 0, 0),
        }
    }
}

impl Wire for Place {
    fn write(&self, out: &mut Writer) {
        for word in [self.0, self.1] {
            out.raw(&word.to_be_bytes());
        }
        out.number(self.2);
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self(u64::from_be_bytes(input.array()?), u64::from_be_bytes(input.array()?), input.number()?))
    }
}

/// What may be joined of a state.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Admitted<T> {
    /// The part that may.
    pub state: T,
    /// The newest stamp in it.
    pub newest: Option<Timestamp>,
    /// Whether it is not all.
    pub held_back: bool,
}

/// A state that [`AntiEntropy`](crate::replicate::AntiEntropy) can keep equal on many nodes. Implemented for every
/// [`Causal`] type and every [`Lattice`]; the methods are for the engine.
pub trait Replicated: DeltaState + Wire + Clone + Default + PartialEq + std::fmt::Debug {
    /// Whether something is kept that is not visible, and may be forgotten once everybody knows of it.
    const FORGETS: bool;

    /// The changes it knows, if it keeps track of them.
    fn known(&self) -> Option<&Context>;

    /// Count and sum of hashes of what lies in `lo..=hi`.
    fn sum(&mut self, lo: Place, hi: Place, key: &DigestKey) -> (u64, u128);

    /// What lies in `lo..=hi`, in order, with hashes of the contents.
    fn list(&self, lo: Place, hi: Place, key: &DigestKey) -> Vec<(Place, u64)>;

    /// What somebody lacks who holds exactly `theirs` in `lo..=hi`: additions and removals.
    fn answer(&self, lo: Place, hi: Place, theirs: &[(Place, u64)], key: &DigestKey) -> Self;

    /// What somebody lacks who, of the actors in `from..=to`, knows exactly `theirs`.
    fn missing(&self, from: ActorId, to: ActorId, theirs: &Context) -> Self;

    /// Two smaller states whose join it is; `None` when it cannot be smaller.
    fn halves(&self) -> Option<(Self, Self)>;

    /// Makes a change and answers with its delta. Of a type without dots, a change is refused before it is made that has a
    /// part of more than `largest` bytes; where there are dots, that is up to the [actor](crate::Actor::largest_change).
    ///
    /// # Errors
    /// What `f` answers, and [`ErrorKind::TooLarge`].
    fn change(&mut self, largest: usize, f: impl FnOnce(&mut Self) -> Result<Self>) -> Result<Self>;

    /// What of `other` may be joined while nothing stamped after `limit` may. `early`: whoever sent it has such writes, so
    /// what it calls gone they may have replaced.
    fn admit(&self, other: Self, limit: Timestamp, early: bool) -> Admitted<Self> {
        let _ = (limit, early);
        Admitted { state: other, newest: None, held_back: false }
    }

    /// Joins `other`; what of it was new here, if anything.
    ///
    /// # Errors
    /// As for [`join`](crate::Join::join).
    fn join_news(&mut self, other: Self) -> Result<Option<Self>>;

    /// Drops what is hidden and rests on changes that satisfy `stable` only; how much.
    fn collect(&mut self, stable: &dyn Fn(Dot) -> bool) -> usize;

    /// Whether nothing is in it.
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

impl<S: DotStore> Replicated for Causal<S> {
    const FORGETS: bool = S::TOMBSTONES;

    fn known(&self) -> Option<&Context> {
        Some(self.context())
    }

    fn sum(&mut self, lo: Place, hi: Place, key: &DigestKey) -> (u64, u128) {
        let mut total = (0, 0_u128);
        for actor in self.store().actors() {
            let Some((from, to)) = within(actor, lo, hi) else { continue };
            let (count, sum) = self.store_mut().sum(actor, from, to, key);
            total = (total.0 + count, total.1.wrapping_add(sum));
        }
        total
    }

    fn list(&self, lo: Place, hi: Place, key: &DigestKey) -> Vec<(Place, u64)> {
        let mut all = Vec::new();
        for actor in self.store().actors() {
            let Some((from, to)) = within(actor, lo, hi) else { continue };
            for dot in self.store().live(actor, from, to) {
                let content = self.store().fingerprint(dot, key).unwrap_or(0);
                all.push((Place::of(dot), content as u64));
            }
        }
        all
    }

    fn answer(&self, lo: Place, hi: Place, theirs: &[(Place, u64)], key: &DigestKey) -> Self {
        let theirs: BTreeMap<Place, u64> = theirs.iter().copied().collect();
        let mine: BTreeMap<Place, u64> = self.list(lo, hi, key).into_iter().collect();
        let lacks = mine.keys().filter(|place| !theirs.contains_key(*place));
        let gone =
            theirs.keys().filter(|p| !mine.contains_key(*p) && p.2 > 0 && self.context().contains(p.dot()));
        self.about(&Context::of_dots(lacks.chain(gone).map(|place| place.dot()).collect()))
    }

    fn missing(&self, from: ActorId, to: ActorId, theirs: &Context) -> Self {
        self.about(&self.context().between(from, to).minus(theirs))
    }

    fn halves(&self) -> Option<(Self, Self)> {
        if self.context().count() < 2 {
            return None;
        }
        let (first, second) = self.context().halves();
        Some((self.about(&first), self.about(&second)))
    }

    fn change(&mut self, _largest: usize, f: impl FnOnce(&mut Self) -> Result<Self>) -> Result<Self> {
        f(self)
    }

    fn admit(&self, other: Self, limit: Timestamp, early: bool) -> Admitted<Self> {
        if S::STAMPED {
            self.admit_until(other, limit, early)
        } else {
            Admitted { state: other, newest: None, held_back: false }
        }
    }

    fn join_news(&mut self, other: Self) -> Result<Option<Self>> {
        Causal::join_news(self, other)
    }

    fn collect(&mut self, stable: &dyn Fn(Dot) -> bool) -> usize {
        Causal::collect(self, stable)
    }

    fn is_nothing(&self) -> bool {
        self.context().is_empty()
    }
}

/// The counters of `actor` between two places.
fn within(actor: ActorId, lo: Place, hi: Place) -> Option<(u64, u64)> {
    let (node, rest) = actor.words();
    let from = if (node, rest) > (lo.0, lo.1) { 1 } else { lo.2 };
    let to = if (node, rest) < (hi.0, hi.1) { u64::MAX } else { hi.2 };
    ((node, rest) >= (lo.0, lo.1) && (node, rest) <= (hi.0, hi.1) && from <= to).then_some((from, to))
}

impl<T: Lattice> Replicated for T {
    const FORGETS: bool = false;

    fn known(&self) -> Option<&Context> {
        None
    }

    fn sum(&mut self, lo: Place, hi: Place, key: &DigestKey) -> (u64, u128) {
        let mut total = (0, 0_u128);
        self.each_item(&mut |item| {
            if (lo..=hi).contains(&place(&item)) {
                let hash = key.hash(&[item.place.to_be_bytes(), item.content.to_be_bytes()].concat());
                total = (total.0 + 1, total.1.wrapping_add(hash));
            }
        });
        total
    }

    fn list(&self, lo: Place, hi: Place, _key: &DigestKey) -> Vec<(Place, u64)> {
        let mut all = Vec::new();
        self.each_item(&mut |item| {
            if (lo..=hi).contains(&place(&item)) {
                all.push((place(&item), item.content));
            }
        });
        all.sort_unstable();
        all
    }

    fn answer(&self, lo: Place, hi: Place, theirs: &[(Place, u64)], _key: &DigestKey) -> Self {
        let lacks =
            |item: &Item| (lo..=hi).contains(&place(item)) && !theirs.contains(&(place(item), item.content));
        self.subset(&lacks)
    }

    fn missing(&self, _from: ActorId, _to: ActorId, _theirs: &Context) -> Self {
        self.clone()
    }

    fn halves(&self) -> Option<(Self, Self)> {
        let mut places = Vec::new();
        self.each_item(&mut |item| places.push((item.place, item.content)));
        places.sort_unstable();
        places.dedup();
        let middle = *places.get(places.len() / 2).filter(|_| places.len() > 1)?;
        let first = |item: &Item| (item.place, item.content) < middle;
        Some((self.subset(&first), self.subset(&|item| !first(item))))
    }

    fn change(&mut self, largest: usize, f: impl FnOnce(&mut Self) -> Result<Self>) -> Result<Self> {
        self.attempt(|state| {
            let delta = f(state)?;
            sendable(&delta, largest)?;
            Ok(delta)
        })
    }

    fn admit(&self, other: Self, limit: Timestamp, _early: bool) -> Admitted<Self> {
        match other.stamped() {
            Some(at) if at > limit => Admitted { state: Self::default(), newest: None, held_back: true },
            newest => Admitted { state: other, newest, held_back: false },
        }
    }

    fn join_news(&mut self, other: Self) -> Result<Option<Self>> {
        let (mut open, mut news) = (vec![other], None::<Self>);
        // Halves of what is not all new, down to single elements.
        while let Some(part) = open.pop() {
            if part.leq(self) {
                continue;
            }
            match part.halves() {
                Some((first, second)) => open.extend([second, first]),
                None => match &mut news {
                    None => news = Some(part),
                    Some(news) => {
                        let _ = news.join(&part)?;
                    }
                },
            }
        }
        if let Some(news) = &news {
            let _ = self.join(news)?;
        }
        Ok(news)
    }

    fn collect(&mut self, _stable: &dyn Fn(Dot) -> bool) -> usize {
        0
    }
}

fn place(item: &Item) -> Place {
    Place(item.place, 0, 0)
}

/// Whether `delta` has no part of more than `largest` bytes.
pub(crate) fn sendable<T: Replicated>(delta: &T, largest: usize) -> Result<()> {
    let size = encode(delta).len();
    if size > largest && pieces(delta.clone(), largest, largest).too_large > 0 {
        let text = format!("a change of {size} bytes has a part of more than {largest}: no message holds it");
        return Err(Error::new(ErrorKind::TooLarge, text));
    }
    Ok(())
}

/// What a state is sent as.
pub(super) struct Pieces<T> {
    pub(super) fit: Vec<T>,
    /// Changes that fit into no message.
    pub(super) too_large: usize,
}

/// `state` in pieces whose encodings take at most `max` bytes, or `most` when one change alone is larger. A change that
/// is larger than that is left out: the others have to get through.
pub(super) fn pieces<T: Replicated>(state: T, max: usize, most: usize) -> Pieces<T> {
    let (mut open, mut pieces) = (vec![state], Pieces { fit: Vec::new(), too_large: 0 });
    while let Some(state) = open.pop() {
        let size = encode(&state).len();
        if size <= max {
            pieces.fit.push(state);
        } else if let Some((first, second)) = state.halves() {
            open.extend([second, first]);
        } else if size <= most {
            pieces.fit.push(state);
        } else {
            pieces.too_large += 1;
        }
    }
    pieces
}
