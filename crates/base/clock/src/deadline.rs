//! Deadline arithmetic.

use std::time::Duration;

use crate::{Clock, Instant};

/// The instant by which work must have ended, or none.
///
/// A child's deadline is never later than its parent's. On the wire travels what *remains*, because the
/// clocks of two machines cannot be compared.
///
/// ```
/// use mainstay_clock::{Deadline, Instant};
/// use std::time::Duration;
///
/// let now = Instant::from_nanos(0);
/// let parent = Deadline::after(now, Duration::from_secs(2));
/// let child = parent.child(now, Duration::from_secs(5));
/// assert_eq!(child, parent);
/// assert_eq!(child.remaining(now), Some(Duration::from_secs(2)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Deadline(Instant);

impl Default for Deadline {
    fn default() -> Self {
        Self::NONE
    }
}

impl Deadline {
    /// No deadline.
    pub const NONE: Self = Self(Instant::FAR_FUTURE);

    /// A deadline at `at`.
    #[must_use]
    pub const fn at(at: Instant) -> Self {
        Self(at)
    }

    /// A deadline `d` after `now`.
    #[must_use]
    pub fn after(now: Instant, d: Duration) -> Self {
        Self(now.saturating_add(d))
    }

    /// The earlier of the two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// The deadline of work that may take `d` from `now` but not longer than this deadline.
    #[must_use]
    pub fn child(self, now: Instant, d: Duration) -> Self {
        self.min(Self::after(now, d))
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_some(self) -> bool {
        self.0 != Instant::FAR_FUTURE
    }

    /// The instant, [`Instant::FAR_FUTURE`] without a deadline.
    #[must_use]
    pub const fn instant(self) -> Instant {
        self.0
    }

    /// Time left, zero once it is over, `None` without a deadline.
    #[must_use]
    pub fn remaining(self, now: Instant) -> Option<Duration> {
        self.is_some().then(|| self.0.saturating_duration_since(now))
    }

    /// Whether it is over by `clock`.
    #[must_use]
    pub fn is_over(self, clock: &dyn Clock) -> bool {
        self.is_some() && clock.now() >= self.0
    }
}
