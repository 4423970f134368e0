//! The engine's time: the store's calendar, which never jumps while the process lives.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Instant, WallTime};
use mainstay_store::Journal;

/// An answer that took longer is asked for again: half of that is how wrong the store's time may be here.
const SLOW: Duration = Duration::from_secs(1);
/// Answers asked for before the quickest is taken.
const TRIES: usize = 3;

/// The store's time at the start, moved on by boot time. When a saga is due is written by this clock and judged by
/// the store's: a node whose own calendar is hours off neither hurries nor puts off a retry, and a jump of any
/// wall clock neither freezes nor hurries a timer.
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    boot: Instant,
    wall: WallTime,
}

impl Time {
    /// Asks the store. One that does not tell leaves the node's own calendar.
    pub(super) async fn of_store(
        journal: &dyn Journal,
        clock: Arc<dyn Clock>,
    ) -> mainstay_store::Result<Self> {
        let mut best: Option<(Duration, Self)> = None;
        for _ in 0..TRIES {
            let sent = clock.now();
            let own = clock.wall();
            let told = journal.now().await?;
            let took = clock.now().saturating_duration_since(sent);
            if best.as_ref().is_none_or(|(quickest, _)| took < *quickest) {
                // Counted from the question: late is allowed, early is not.
                let wall = told.unwrap_or(own);
                best = Some((took, Self { clock: Arc::clone(&clock), boot: sent, wall }));
            }
            if took <= SLOW || told.is_none() {
                break;
            }
        }
        Ok(best.expect("invariant: it is asked at least once").1)
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
