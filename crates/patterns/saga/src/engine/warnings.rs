//! What is nearly used up, and clocks that go apart: told once, and counted.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use mainstay_clock::Clock;
use mainstay_store::journal::{MAX_LOG_BYTES, MAX_RECORDS, Uid};

use super::Engine;

/// Tenths of a bound from which on it is nearly used up: early enough to split a saga or to add a node.
const NEARLY: u64 = 8;
/// Tenths below which sagas in memory are few again: a number that goes up and down around the bound is told once.
const FEW: u64 = 7;
/// How far wall and boot time of a machine may go apart before that is told, in milliseconds: more than an NTP client
/// corrects by slewing between two looks, less than a lease.
const MAX_DRIFT: i64 = 5_000;

/// How often an engine warned since it was opened. Each warning is also logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Warnings {
    /// The wall clock went more than 5 s ahead of boot time or fell behind it: somebody set it, or the machine slept.
    pub clock_drifts: u64,
    /// A saga's log passed 80 % of the most records or bytes that one may have.
    pub logs_nearly_full: u64,
    /// Sagas in memory passed 80 % of [`Config::max_in_flight`](super::Config::max_in_flight).
    pub memory_nearly_full: u64,
}

#[derive(Debug, Default)]
pub(super) struct Watch {
    drifts: AtomicU64,
    logs: AtomicU64,
    memory: AtomicU64,
    is_crowded: AtomicBool,
    /// Wall minus boot time when that was last told.
    offset: AtomicI64,
}

/// Whether a count that grew passed [`NEARLY`] of the most.
fn passes(before: u64, after: u64, most: u64) -> bool {
    let is_nearly = |n: u64| n.saturating_mul(10) >= most.saturating_mul(NEARLY);
    !is_nearly(before) && is_nearly(after)
}

fn offset(clock: &dyn Clock) -> i64 {
    let boot = i64::try_from(clock.now().as_nanos() / 1_000_000).unwrap_or(i64::MAX);
    clock.wall().unix_millis().saturating_sub(boot)
}

impl Watch {
    pub(super) fn new(clock: &dyn Clock) -> Self {
        Self { offset: AtomicI64::new(offset(clock)), ..Self::default() }
    }

    /// A saga's log grew from so many records and bytes to so many.
    pub(super) fn log_grew(&self, saga: &Uid, before: (u64, u64), after: (u64, u64)) {
        let records = passes(before.0, after.0, MAX_RECORDS);
        if records || passes(before.1, after.1, MAX_LOG_BYTES as u64) {
            self.logs.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(target: "mainstay::saga", saga = %saga, records = after.0, bytes = after.1,
                "the log of a saga is at 80 % of what one may have");
        }
    }

    /// So many sagas are in memory.
    pub(super) fn in_memory(&self, sagas: usize, most: usize) {
        let (now, most) = (sagas as u64, most as u64);
        if now.saturating_mul(10) < most.saturating_mul(FEW) {
            self.is_crowded.store(false, Ordering::Relaxed);
        } else if passes(0, now, most) && !self.is_crowded.swap(true, Ordering::Relaxed) {
            self.memory.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(target: "mainstay::saga", sagas, most, "80 % of the sagas that fit into memory are there");
        }
    }

    /// Compares the machine's clocks.
    pub(super) fn look_at(&self, clock: &dyn Clock) {
        let (now, told) = (offset(clock), self.offset.load(Ordering::Relaxed));
        let drift = now.saturating_sub(told);
        if drift.saturating_abs() > MAX_DRIFT {
            self.offset.store(now, Ordering::Relaxed);
            self.drifts.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(target: "mainstay::saga", drift_ms = drift,
                "the wall clock and boot time went apart; timers follow boot time, times on the log the store");
        }
    }
}

impl Engine {
    /// How often it warned of bounds that are nearly reached, and of clocks.
    ///
    /// # Examples
    /// ```
    /// # use std::sync::Arc;
    /// # use mainstay_clock::{Clock, Runtime, SeededRng, virtual_time::VirtualClock};
    /// # use mainstay_saga::Engine;
    /// # use mainstay_store::memory::MemoryJournal;
    /// # let rt = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    /// # rt.block_on(async {
    /// let clock = VirtualClock::new();
    /// let journal = Arc::new(MemoryJournal::new(Arc::new(clock.clone())));
    /// let runtime = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)));
    /// let engine = Engine::builder(journal, runtime).open().await.unwrap();
    /// assert_eq!(engine.warnings().clock_drifts, 0);
    /// clock.jump_wall(3_600_000);
    /// // Looked at with every renewal of the claims.
    /// clock.sleep(std::time::Duration::from_secs(10)).await;
    /// assert_eq!(engine.warnings().clock_drifts, 1);
    /// # });
    /// ```
    #[must_use]
    pub fn warnings(&self) -> Warnings {
        let watch = &self.0.watch;
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Warnings {
            clock_drifts: of(&watch.drifts),
            logs_nearly_full: of(&watch.logs),
            memory_nearly_full: of(&watch.memory),
        }
    }

    /// Most sagas in memory, [`Config::max_in_flight`](super::Config::max_in_flight).
    #[must_use]
    pub fn max_in_flight(&self) -> usize {
        self.0.config.max_in_flight.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_told_when_it_is_passed_and_not_again() {
        assert!(!passes(0, 7_999, MAX_RECORDS) && passes(7_999, 8_000, MAX_RECORDS));
        assert!(!passes(8_000, 8_001, MAX_RECORDS) && !passes(9, 9, 10));
        assert!(passes(0, 1, 1), "the smallest one is used up at once");
    }

    #[test]
    fn sagas_in_memory_that_come_and_go_around_the_bound_are_told_once() {
        let watch = Watch::default();
        let told = || watch.memory.load(Ordering::Relaxed);
        for sagas in [0, 79, 80, 79, 81, 70, 80] {
            watch.in_memory(sagas, 100);
        }
        assert_eq!(told(), 1);
        watch.in_memory(69, 100);
        watch.in_memory(80, 100);
        assert_eq!(told(), 2);
    }

    #[test]
    fn a_log_is_told_for_its_records_or_its_bytes() {
        let (watch, saga) = (Watch::default(), Uid::new("u"));
        let most = MAX_LOG_BYTES as u64;
        watch.log_grew(&saga, (1, 0), (7_999, most / 2));
        assert_eq!(watch.logs.load(Ordering::Relaxed), 0);
        watch.log_grew(&saga, (7_999, most / 2), (8_001, most / 2));
        watch.log_grew(&saga, (8_001, most / 2), (8_002, most));
        assert_eq!(watch.logs.load(Ordering::Relaxed), 2);
    }
}
