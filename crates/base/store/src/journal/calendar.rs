//! The time of a journal that one process writes.

use std::fmt;
use std::sync::Arc;

use mainstay_clock::{Clock, Instant};

/// Wall time that never goes back and never stands still: the larger of the machine's calendar and of what was shown
/// before, moved on by boot time. A calendar that is set back holds up nothing that waits; one that is set forward is
/// followed.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use mainstay_clock::{Clock, SystemClock};
/// use mainstay_store::journal::Calendar;
///
/// // The last commit was an hour ahead of what this machine shows now.
/// let clock = Arc::new(SystemClock::new());
/// let last = clock.wall().unix_millis() + 3_600_000;
/// let mut calendar = Calendar::new(clock, last);
/// assert!((last..last + 60_000).contains(&calendar.now()));
/// ```
pub struct Calendar {
    clock: Arc<dyn Clock>,
    shown: i64,
    boot: Instant,
}

impl Calendar {
    /// A calendar after `last`, the largest time that was committed, in Unix milliseconds.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, last: i64) -> Self {
        Self { boot: clock.now(), clock, shown: last }
    }

    /// Unix milliseconds.
    pub fn now(&mut self) -> i64 {
        let boot = self.clock.now();
        let passed = boot.saturating_duration_since(self.boot).as_millis();
        let moved = self.shown.saturating_add(i64::try_from(passed).unwrap_or(i64::MAX));
        let wall = self.clock.wall().unix_millis();
        if wall <= moved {
            return moved;
        }
        (self.shown, self.boot) = (wall, boot);
        wall
    }
}

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calendar").field("shown", &self.shown).finish_non_exhaustive()
    }
}
