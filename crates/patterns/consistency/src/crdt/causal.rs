//! A store of dots under one causal context.

use std::fmt;

use crate::crdt::{Changed, DeltaState, Join};
use crate::error::{Error, Result};
use crate::hash::DigestKey;
use crate::hlc::Timestamp;
use crate::lww::Stamps;
use crate::replicate::{Admitted, sendable};
use crate::version::{Context, Dot};
use crate::wire::{Reader, Wire, Writer};
use crate::{Actor, ActorId};

/// A store whose every visible part hangs on dots.
///
/// Sealed: the laws of a map hold only if they hold for everything in it, so users combine these and wrap values of
/// their own in [`DotFun`](crate::crdt::DotFun).
pub trait DotStore: Clone + Default + PartialEq + fmt::Debug + Wire + sealed::Sealed {
    /// Whether a join may be refused.
    #[doc(hidden)]
    const CHECKED: bool = false;
    /// Whether something here may be hidden and yet kept.
    #[doc(hidden)]
    const TOMBSTONES: bool = false;

    /// Whether writes are ordered by stamps somewhere in here.
    #[doc(hidden)]
    const STAMPED: bool = false;

    /// Whether nothing is visible.
    fn is_bottom(&self) -> bool;

    /// Whether one of its dots satisfies `f`; stops at the first.
    fn any_dot(&self, f: &mut dyn FnMut(Dot) -> bool) -> bool;

    /// Joins `other`, and notes every dot that came (`true`) or went.
    #[doc(hidden)]
    fn absorb(&mut self, mine: &Context, other: &Self, theirs: &Context, moved: &mut Vec<(Dot, bool)>);

    /// Whether [`absorb`](DotStore::absorb) makes sense.
    ///
    /// # Errors
    /// When different types would be visible at one place.
    #[doc(hidden)]
    fn compatible(&self, mine: &Context, other: &Self, theirs: &Context) -> Result<()> {
        let _ = (mine, other, theirs);
        Ok(())
    }

    /// Notes the stamps in here, and the dots of what is stamped in the future.
    #[doc(hidden)]
    fn look_ahead(&self, stamps: &mut Stamps) {
        let _ = stamps;
    }

    /// The part whose dots satisfy `f`.
    #[doc(hidden)]
    #[must_use]
    fn keep(&self, f: &dyn Fn(Dot) -> bool) -> Self;

    /// A hash of the dot, of where it is and of its payload; `None` when it is not here.
    #[doc(hidden)]
    fn fingerprint(&self, dot: Dot, key: &DigestKey) -> Option<u128>;

    /// Count and sum of the fingerprints of the dots of `actor` in `lo..=hi`.
    #[doc(hidden)]
    fn sum(&mut self, actor: ActorId, lo: u64, hi: u64, key: &DigestKey) -> (u64, u128) {
        let mut found = (0, 0_u128);
        for dot in dots(self).into_iter().filter(|d| d.actor() == actor && (lo..=hi).contains(&d.counter())) {
            found.0 += 1;
            found.1 = found.1.wrapping_add(self.fingerprint(dot, key).unwrap_or(0));
        }
        found
    }

    /// The dots of `actor` in `lo..=hi`, ascending.
    #[doc(hidden)]
    fn live(&self, actor: ActorId, lo: u64, hi: u64) -> Vec<Dot> {
        let mut live = dots(self);
        live.retain(|d| d.actor() == actor && (lo..=hi).contains(&d.counter()));
        live
    }

    /// Actors that have dots here, ascending.
    #[doc(hidden)]
    fn actors(&self) -> Vec<ActorId> {
        let mut actors: Vec<ActorId> = dots(self).into_iter().map(Dot::actor).collect();
        actors.dedup();
        actors
    }

    /// Drops what is hidden and hangs on dots of `stable` only; how much that was. The dots that went are noted.
    #[doc(hidden)]
    fn collect(&mut self, stable: &dyn Fn(Dot) -> bool, moved: &mut Vec<(Dot, bool)>) -> usize {
        let _ = (stable, moved);
        0
    }
}

pub(crate) mod sealed {
    /// Keeps foreign stores out.
    pub trait Sealed {}
}

/// Every dot, ascending.
pub(crate) fn dots<S: DotStore>(store: &S) -> Vec<Dot> {
    let mut all = Vec::new();
    store.any_dot(&mut |dot| {
        all.push(dot);
        false
    });
    all.sort_unstable();
    all
}

/// What one mutation mints and covers.
#[derive(Debug)]
pub struct Mint<'a> {
    actor: &'a mut Actor,
    /// How much the actor has minted when this is over: nothing new, unless the change was made.
    after: u64,
    dots: Vec<Dot>,
    /// What it covers besides, here or not.
    seen: Context,
}

impl Drop for Mint<'_> {
    fn drop(&mut self) {
        // Also when the closure panics: an actor ahead of its context could never make a change again.
        self.actor.rewind(self.after);
    }
}

impl Mint<'_> {
    /// A new dot.
    pub(crate) fn dot(&mut self) -> Dot {
        let dot = self.actor.mint();
        self.dots.push(dot);
        dot
    }

    /// States that every dot of `store` is gone unless the delta carries it.
    pub(crate) fn cover<S: DotStore>(&mut self, store: &S) {
        store.any_dot(&mut |dot| {
            self.dots.push(dot);
            false
        });
    }

    pub(crate) fn cover_dot(&mut self, dot: Dot) {
        self.dots.push(dot);
    }

    /// States that all of `seen` is gone, also what has not arrived here.
    pub(crate) fn cover_seen(&mut self, seen: Context) {
        self.seen = seen;
    }

    /// Who makes the change.
    #[must_use]
    pub fn actor(&self) -> ActorId {
        self.actor.id()
    }
}

/// A replicated value: a store and the context of every change it knows. A delta is one too.
///
/// Guarantees: replicas that joined the same deltas are equal, whatever the order, the loss in between and the
/// repetitions; a join that changes nothing says so; equal values have equal encodings. Not guaranteed: anything about
/// *when* they are equal, or any rule across elements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Causal<S> {
    store: S,
    context: Context,
}

impl<S: DotStore> Causal<S> {
    /// The empty value.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// What is visible.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    pub(crate) fn store_mut(&mut self) -> &mut S {
        &mut self.store
    }

    /// Every change it knows.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Applies `f` to the store: it reads the store and answers with a delta of it. Every mutator of this crate is one
    /// call of this; it is public for changes of several nested values in one delta.
    ///
    /// # Errors
    /// Whatever `f` answers, [`ForeignActor`](crate::ErrorKind::ForeignActor),
    /// [`DuplicateActor`](crate::ErrorKind::DuplicateActor), or [`TooLarge`](crate::ErrorKind::TooLarge) above the actor's
    /// [`largest_change`](Actor::largest_change); nothing was changed then.
    pub fn mutate(
        &mut self,
        actor: &mut Actor,
        f: impl FnOnce(&S, &mut Mint<'_>) -> Result<S>,
    ) -> Result<Self> {
        actor.check(&self.context)?;
        let after = actor.minted();
        let mut mint = Mint { actor, after, dots: Vec::with_capacity(2), seen: Context::new() };
        let store = f(&self.store, &mut mint)?;
        let (dots, seen) = (std::mem::take(&mut mint.dots), std::mem::take(&mut mint.seen));
        let mut context = if let [one] = dots[..] { Context::of_dot(one) } else { Context::of_dots(dots) };
        let _ = context.union(&seen);
        let delta = Self { store, context };
        self.admit(&delta, mint.actor.largest())?;
        mint.after = mint.actor.minted();
        let _ = self.absorb(&delta);
        Ok(delta)
    }

    /// Whether a change may be made: it fits here, and a message holds every part of it.
    fn admit(&self, delta: &Self, largest: usize) -> Result<()> {
        if S::CHECKED {
            self.store.compatible(&self.context, &delta.store, &delta.context)?;
        }
        if largest == usize::MAX { Ok(()) } else { sendable(delta, largest) }
    }

    fn absorb(&mut self, other: &Self) -> bool {
        let mut moved = Vec::new();
        self.store.absorb(&self.context, &other.store, &other.context, &mut moved);
        let learned = self.context.union(&other.context).is_yes();
        learned || !moved.is_empty()
    }

    /// Joins `other`; what of it was new here, as a delta: changes that were not known, and removals of what was visible.
    pub(crate) fn join_news(&mut self, other: Self) -> Result<Option<Self>> {
        if S::CHECKED {
            self.store.compatible(&self.context, &other.store, &other.context)?;
        }
        let mut news = other.context.minus(&self.context);
        let mut moved = Vec::new();
        self.store.absorb(&self.context, &other.store, &other.context, &mut moved);
        let _ = self.context.union(&other.context);
        if news.is_empty() && moved.is_empty() {
            return Ok(None);
        }
        let _ = news.union(&Context::of_dots(moved.into_iter().map(|(dot, _)| dot).collect()));
        Ok(Some(if news.covers(&other.context) { other } else { other.about(&news) }))
    }

    /// The part about the dots in `these`: store and claims.
    pub(crate) fn about(&self, these: &Context) -> Self {
        Self { store: self.store.keep(&|dot| these.contains(dot)), context: self.context.common(these) }
    }

    /// The dots in `these` that are still visible.
    pub(crate) fn live_of(&self, these: &Context) -> Vec<Dot> {
        let mut live = Vec::new();
        for (actor, runs) in these.entries() {
            for (lo, hi) in runs.iter() {
                live.extend(self.store.live(*actor, lo, hi));
            }
        }
        live
    }

    /// What of `other` may be joined while nothing stamped after `limit` may. Whoever has such writes calls gone what they
    /// replaced, long after they were told: as long as they are held back (`early`), nothing here goes by its word.
    pub(crate) fn admit_until(&self, other: Self, limit: Timestamp, early: bool) -> Admitted<Self> {
        let mut stamps = Stamps::until(limit);
        other.store.look_ahead(&mut stamps);
        let Stamps { newest, mut late, .. } = stamps;
        let held_back = !late.is_empty();
        if held_back || early {
            late.extend(self.live_of(&other.context).into_iter().filter(|dot| !other.store.live_dot(*dot)));
        }
        let state =
            if late.is_empty() { other } else { other.about(&other.context.minus(&Context::of_dots(late))) };
        Admitted { state, newest, held_back }
    }

    /// Drops tombstones whose dots satisfy `stable`; how many.
    pub(crate) fn collect(&mut self, stable: &dyn Fn(Dot) -> bool) -> usize {
        self.store.collect(stable, &mut Vec::new())
    }
}

impl<S: DotStore> Join for Causal<S> {
    fn join(&mut self, other: &Self) -> Result<Changed> {
        if S::CHECKED {
            self.store.compatible(&self.context, &other.store, &other.context)?;
        }
        Ok(Changed::from(self.absorb(other)))
    }

    fn leq(&self, other: &Self) -> bool {
        // Nothing visible there may be something that this one saw go.
        other.context.covers(&self.context)
            && other.live_of(&self.context).into_iter().all(|dot| self.store.live_dot(dot))
    }
}

/// Single look-ups.
trait LiveDot {
    fn live_dot(&self, dot: Dot) -> bool;
}

impl<S: DotStore> LiveDot for S {
    fn live_dot(&self, dot: Dot) -> bool {
        !self.live(dot.actor(), dot.counter(), dot.counter()).is_empty()
    }
}

impl<S: DotStore> DeltaState for Causal<S> {
    fn delta_since(&self, seen: &Context) -> Self {
        let known = Context::of_dots(self.live_of(seen));
        Self { store: self.store.keep(&|dot| !seen.contains(dot)), context: self.context.minus(&known) }
    }
}

/// The context is written whole, or as what it knows beyond the visible dots, whichever has fewer intervals.
impl<S: DotStore> Wire for Causal<S> {
    fn write(&self, out: &mut Writer) {
        self.store.write(out);
        let live = Context::of_dots(dots(&self.store));
        let beyond = self.context.minus(&live);
        let short = beyond.pieces() < self.context.pieces();
        short.write(out);
        if short { beyond.write(out) } else { self.context.write(out) }
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        let store = S::read(input)?;
        let all = dots(&store);
        if all.windows(2).any(|w| w[0] == w[1]) {
            return Err(Error::malformed("a dot at two places"));
        }
        let live = Context::of_dots(all);
        let short = bool::read(input)?;
        let written = Context::read(input)?;
        let mut context = written.clone();
        let _ = context.union(&live);
        let beyond = context.minus(&live);
        // Exactly the form that a writer chooses, and no visible dot that the context does not know.
        let canonical = short == (beyond.pieces() < context.pieces())
            && written == *(if short { &beyond } else { &context });
        if !canonical {
            return Err(Error::malformed("a context that does not fit its store"));
        }
        Ok(Self { store, context })
    }
}
