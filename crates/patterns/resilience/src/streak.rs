//! Since when the same thing keeps happening.

use std::time::Duration;

use mainstay_clock::Instant;

use crate::sync::{AtomicU64, Ordering};

/// A pause of this length ends a streak: what was refused last a second ago is not being refused now.
const PAUSE: Duration = Duration::from_secs(1);

/// Remembers when a run of events began. For slow paths; two threads at once may begin the same streak twice.
#[derive(Debug)]
pub(crate) struct Streak {
    first: AtomicU64,
    last: AtomicU64,
}

impl Streak {
    pub(crate) fn new() -> Self {
        Self { first: AtomicU64::new(0), last: AtomicU64::new(0) }
    }

    /// It happened; the begin of the streak.
    pub(crate) fn hit(&self, now: Instant) -> Instant {
        let last = Instant::from_nanos(self.last.swap(now.as_nanos(), Ordering::Relaxed));
        if last == Instant::ZERO || now.saturating_duration_since(last) >= PAUSE {
            self.first.store(now.as_nanos(), Ordering::Relaxed);
            return now;
        }
        Instant::from_nanos(self.first.load(Ordering::Relaxed))
    }
}
