//! The engine's time: the store's calendar, which never jumps while the process lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, WallTime};
use mainstay_store::Journal;
use mainstay_store::journal::Row;

/// An answer that took longer is asked for again: half of that is how wrong the store's time may be here.
const SLOW: Duration = Duration::from_secs(1);
/// Answers asked for before the quickest is taken.
const TRIES: usize = 3;

/// The store's time at the start, moved on by boot time. When a saga is due is written by this clock and judged by
/// the store's: a node whose own calendar is hours off neither hurries nor puts off a retry, and a jump of any
/// wall clock neither freezes nor hurries a timer.
///
/// A store follows its calendar when that is set forward; this time does not. What it writes for the store to judge
/// is put where the store's calendar will be by then.
pub(super) struct Time {
    clock: Arc<dyn Clock>,
    boot: Instant,
    wall: WallTime,
    /// How far the store was set forward since, in milliseconds.
    ahead: AtomicI64,
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
                best = Some((
                    took,
                    Self { clock: Arc::clone(&clock), boot: sent, wall, ahead: AtomicI64::new(0) },
                ));
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

    /// Looks how far the store is ahead. One that fails, is slow or does not tell leaves what is known.
    pub(super) async fn compare(&self, journal: &dyn Journal) {
        let (sent, now) = (self.clock.now(), self.now());
        let told = journal.now().await;
        if let Ok(Some(told)) = told
            && self.clock.now().saturating_duration_since(sent) <= SLOW
        {
            // Counted from the question, as at the start.
            self.ahead.store(told.unix_millis().saturating_sub(now).max(0), Ordering::Release);
        }
    }

    /// Unix milliseconds, as the store shows them.
    pub(super) fn shown(&self) -> i64 {
        self.now().saturating_add(self.ahead.load(Ordering::Acquire))
    }

    /// The row with its times as the store will show them.
    pub(super) fn as_shown(&self, mut row: Row) -> Row {
        let ahead = self.ahead.load(Ordering::Acquire);
        let at = |t: WallTime| WallTime::from_unix_millis(t.unix_millis().saturating_add(ahead));
        // What is due since ever is due.
        row.due = row.due.map(|due| if due == WallTime::default() { due } else { at(due) });
        row.next_try = row.next_try.map(at);
        row
    }

    /// The instant at which [`now`](Time::now) shows `at`.
    pub(super) fn instant(&self, at: i64) -> Instant {
        self.boot.saturating_add(WallTime::from_unix_millis(at).saturating_duration_since(self.wall))
    }
}
