//! A clock that stands still until it is told.

use std::sync::atomic::{AtomicI64, Ordering};

use mainstay_clock::{Clock, Instant, Sleep, Tick, WallTime};

/// Wall time set by hand. Boot time is that of the system: nothing of the laws depends on it.
///
/// ```
/// use mainstay_clock::Clock as _;
/// use mainstay_consistency::laws::ManualClock;
///
/// let clock = ManualClock::new(1_000);
/// clock.set(2_000);
/// assert_eq!(clock.wall().unix_millis(), 2_000);
/// ```
#[derive(Debug)]
pub struct ManualClock(AtomicI64);

impl ManualClock {
    /// A clock that shows `ms` since 1970.
    #[must_use]
    pub const fn new(ms: i64) -> Self {
        Self(AtomicI64::new(ms))
    }

    /// Shows `ms` from now on.
    pub fn set(&self, ms: i64) {
        self.0.store(ms, Ordering::Relaxed);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Instant {
        Instant::ZERO
    }

    fn wall(&self) -> WallTime {
        WallTime::from_unix_millis(self.0.load(Ordering::Relaxed))
    }

    fn tick(&self) -> Tick {
        Tick::system()
    }

    fn sleep_until(&self, _deadline: Instant) -> Sleep {
        Box::pin(std::future::pending())
    }
}
