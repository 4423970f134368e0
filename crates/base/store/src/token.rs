//! Fencing tokens and the rule that checks them.

use std::fmt;

/// A number that only grows per name. Whatever is written under a lease carries it, and the resource
/// refuses a smaller one than it has seen (Lamport's sequencers; Burrows, "The Chubby lock service",
/// OSDI 2006).
///
/// It orders writes with writes. Whoever reads first and writes what it made of it must show its token with the *read*
/// already: until the resource has seen it, a late write of the holder before is accepted and then overwritten.
///
/// ```
/// use mainstay_store::{FenceCheck, FencingToken};
///
/// let seen = FencingToken::new(7);
/// assert_eq!(FencingToken::new(6).check(seen), FenceCheck::Stale { seen });
/// assert_eq!(FencingToken::new(7).check(seen), FenceCheck::Pass);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The token that no grant carries.
    pub const ZERO: Self = Self(0);

    /// The token with this number.
    #[must_use]
    pub const fn new(n: u64) -> Self {
        Self(n)
    }

    /// Its number. On JSON wires it travels as a decimal string: it may pass 2^53.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The next token.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Whether a resource that has seen `seen` may accept this token: equal is accepted, smaller is not.
    #[must_use]
    pub fn check(self, seen: Self) -> FenceCheck {
        if self < seen { FenceCheck::Stale { seen } } else { FenceCheck::Pass }
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The verdict of a fence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a fence passes or it does not")]
pub enum FenceCheck {
    /// The token is at least the largest one seen.
    Pass,
    /// A larger token was seen: its owner lost the right.
    Stale {
        /// The largest token seen.
        seen: FencingToken,
    },
}
