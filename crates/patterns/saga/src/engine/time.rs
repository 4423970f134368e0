//! The engine's time: calendar milliseconds that never jump while the process lives.

use std::sync::Arc;

use mainstay_clock::{Clock, Instant, WallTime};

/// Wall time at the start, moved on by boot time: due times are comparable with stored ones, and a jump of
/// the wall clock neither freezes nor hurries a timer.
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    boot: Instant,
    wall: WallTime,
}

impl Time {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        let (boot, wall) = (clock.now(), clock.wall());
        Self { clock, boot, wall }
    }

    /// Unix milliseconds.
    pub(super) fn now(&self) -> i64 {
        self.wall.saturating_add(self.clock.now().saturating_duration_since(self.boot)).unix_millis()
    }

    /// The instant at which [`now`](Time::now) shows `at`.
    pub(super) fn instant(&self, at: i64) -> Instant {
        self.boot.saturating_add(WallTime::from_unix_millis(at).saturating_duration_since(self.wall))
    }
}
