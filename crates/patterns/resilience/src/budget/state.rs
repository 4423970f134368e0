//! The rules of the budgets, as arithmetic.

use mainstay_clock::Instant;

/// What is paid for.
///
/// Only the AWS bucket has different prices; the other rules take one for each.
///
/// ```
/// use mainstay_resilience::{Budget, budget::Cost};
///
/// let price = |cost| {
///     let budget = Budget::builder("table").aws_legacy().build().unwrap();
///     budget.spend(cost).unwrap();
///     500.0 - budget.tokens().unwrap()
/// };
/// assert_eq!((price(Cost::Retry), price(Cost::RetryTimeout)), (5.0, 10.0));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Cost {
    /// A second attempt beside a slow one.
    Hedge,
    /// A probe.
    Probe,
    /// An attempt after a failure.
    Retry,
    /// An attempt after the dependency asked for less.
    RetryThrottled,
    /// An attempt after a timeout.
    RetryTimeout,
}

/// Credit that first attempts and time earn. It is worked out only when somebody wants to spend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Credit {
    pub(crate) credit: f64,
    last: Instant,
    seen: u64,
}

/// Shares are floats: ten deposits of a tenth are one.
const DUST: f64 = 1e-9;

impl Credit {
    pub(crate) fn new(credit: f64, now: Instant) -> Self {
        Self { credit, last: now, seen: 0 }
    }

    /// Books what was earned until `now`: `total` first attempts ever, `recent` of them within the credit
    /// time of `seconds`. The cap is the income of that time, but at least one: a slow client must be able
    /// to save up for a retry.
    pub(crate) fn book(
        &mut self,
        ratio: f64,
        floor: f64,
        seconds: f64,
        total: u64,
        recent: u64,
        now: Instant,
    ) {
        let passed = now.saturating_duration_since(self.last).as_secs_f64();
        let earned = floor * passed + ratio * total.saturating_sub(self.seen) as f64;
        let cap = floor * seconds + ratio * recent as f64;
        let cap = if floor > 0.0 { cap.max(1.0) } else { cap };
        (self.last, self.seen) = (now.max(self.last), total.max(self.seen));
        self.credit = (self.credit + earned).min(cap);
    }

    /// Takes one spending back. The next booking caps it.
    pub(crate) fn refund(&mut self) {
        self.credit += 1.0;
    }

    /// Spends one.
    pub(crate) fn spend(&mut self) -> bool {
        let enough = self.credit + DUST >= 1.0;
        if enough {
            self.credit = (self.credit - 1.0).max(0.0);
        }
        enough
    }
}

/// What the costs of an AWS bucket are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AwsCosts {
    pub(crate) retry: u32,
    pub(crate) timeout: u32,
    pub(crate) throttled: u32,
}

impl AwsCosts {
    /// AWS SDKs, retry behaviour 2.1.
    pub(crate) const CURRENT: Self = Self { retry: 14, timeout: 14, throttled: 5 };
    /// The behaviour before.
    pub(crate) const LEGACY: Self = Self { retry: 5, timeout: 10, throttled: 5 };

    pub(crate) fn of(self, cost: Cost) -> u32 {
        match cost {
            Cost::RetryTimeout => self.timeout,
            Cost::RetryThrottled => self.throttled,
            Cost::Retry | Cost::Hedge | Cost::Probe => self.retry,
        }
    }
}
