//! Which changes a state contains: dots, version vectors and causal contexts.

mod context;
mod runs;
mod vector;

use std::fmt;
use std::num::NonZeroU64;

pub use context::Context;
pub(crate) use runs::Runs;
pub use vector::{Causality, VersionVector};

use crate::ActorId;

/// One change: the `n`-th of an actor, from 1.
///
/// Dots are minted by an [`Actor`](crate::Actor) only: whoever could make them up could name changes of others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dot {
    actor: ActorId,
    /// Never zero, so that an optional dot is no larger.
    n: NonZeroU64,
}

impl Dot {
    /// The `n`-th change of `actor`. Counters start at one: zero is read as one.
    pub(crate) fn new(actor: ActorId, n: u64) -> Self {
        Self { actor, n: NonZeroU64::new(n).unwrap_or(NonZeroU64::MIN) }
    }

    /// Who made the change.
    #[must_use]
    pub const fn actor(self) -> ActorId {
        self.actor
    }

    /// The how-manieth of its actor, from 1.
    #[must_use]
    pub const fn counter(self) -> u64 {
        self.n.get()
    }
}

impl fmt::Debug for Dot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.actor, self.n)
    }
}
