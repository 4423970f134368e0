//! What a policy remembers for whoever looks: counts and the last refusals. Nothing of it is touched by a success.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Instant;

use crate::Rejected;
use crate::breaker::BreakerSnapshot;
use crate::budget::BudgetSnapshot;
use crate::bulkhead::BulkheadSnapshot;
use crate::limit::SendSnapshot;
use crate::streak::Streak;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Refusals that are remembered: a page of a console.
const KEPT: usize = 100;

#[derive(Debug)]
pub(crate) struct Stats {
    retries: AtomicU64,
    hedges: AtomicU64,
    rejected: AtomicU64,
    last: Mutex<VecDeque<(Instant, Rejected)>>,
    /// Of refusals because there is no time.
    late: Streak,
}

impl Stats {
    pub(crate) fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            retries: zero(),
            hedges: zero(),
            rejected: zero(),
            last: Mutex::new(VecDeque::new()),
            late: Streak::new(),
        }
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn hedged(&self) {
        self.hedges.fetch_add(1, Ordering::Relaxed);
    }

    /// Since when calls come too late.
    pub(crate) fn late_since(&self, now: Instant) -> Instant {
        self.late.hit(now)
    }

    pub(crate) fn rejected(&self, rejected: &Rejected, now: Instant) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        // In a storm of refusals one more line is not worth waiting for.
        if let Some(mut last) = self.last.try_lock() {
            if last.len() == KEPT {
                last.pop_front();
            }
            last.push_back((now, rejected.clone()));
        }
    }

    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        (read(&self.retries), read(&self.hedges), read(&self.rejected))
    }

    pub(crate) fn last(&self) -> Vec<(Instant, Rejected)> {
        self.last.lock().iter().cloned().collect()
    }
}

/// A policy at one moment: what is live, slot by slot.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct PolicySnapshot {
    /// The configured name.
    pub name: Arc<str>,
    /// The bound of the whole call.
    pub deadline: Option<Duration>,
    /// The bound of one attempt.
    pub attempt_timeout: Option<Duration>,
    /// Executions at most; 1 without a retry.
    pub max_attempts: u32,
    /// Whether a hedge is set.
    pub hedged: bool,
    /// The limit slots that are filled.
    pub limits: Vec<super::LimitSlot>,
    /// The bulkhead of whole calls.
    pub bulkhead: Option<BulkheadSnapshot>,
    /// The bulkhead of attempts.
    pub attempt_bulkhead: Option<BulkheadSnapshot>,
    /// The send rate.
    pub send_rate: Option<SendSnapshot>,
    /// The budget.
    pub budget: Option<BudgetSnapshot>,
    /// The breaker.
    pub breaker: Option<BreakerSnapshot>,
    /// Retries since the start.
    pub retries: u64,
    /// Hedges since the start.
    pub hedges: u64,
    /// Refusals since the start.
    pub rejected: u64,
    /// The last refusals, oldest first, with when they happened.
    pub last_rejected: Vec<(Instant, Rejected)>,
}
