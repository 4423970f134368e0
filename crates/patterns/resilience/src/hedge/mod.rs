//! A second attempt beside a slow first one.
//!
//! A [`Hedge`] fills the hedge slot of a [`Policy`](crate::Policy), which races the two attempts: the first
//! *success* wins, the loser is dropped with its permit and ticket, a primary that fails early starts the
//! hedge at once, and when both fail the primary's error is returned. Only operations that are declared
//! idempotent are hedged, and every hedge costs one from the budget.
//!
//! | what happens | then |
//! |---|---|
//! | the first attempt ends before the delay | nothing was spent, no timer was armed before its first `Pending` |
//! | it is still running at the delay | budget, breaker and attempt bulkhead are asked; if all agree, a second one starts |
//! | it fails early, in a way to retry | the same at once |
//! | one of both succeeds | that is the result; the other is dropped and counts as abandoned |
//! | both fail | the first one's error is the result, and the retry decides about the next round |
//!
//! Source of the idea and of the percentile: Dean and Barroso, "The Tail at Scale" (2013).

mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::Instant;

use crate::ConfigError;
use crate::error::MAX_TIME;
use crate::policy::seam::HedgePlan;
use crate::sync::Mutex;
use state::Latencies;

/// When to start a second attempt: after a fixed delay, or after the time that most successes need.
///
/// Guarantees: the delay follows the successes of the window; the percentile is computed at most every 100 ms
/// and reading it is one load. Does not guarantee: precision below the coarse tick of about 1 ms.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{CallContext, Policy, hedge::Hedge};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let hedge = Hedge::after(Duration::from_millis(5)).build().unwrap();
/// let policy = Policy::builder("search").idempotent().hedge_plan(hedge.plan()).build().unwrap();
/// let answer = policy
///     .call(&CallContext::new(), |attempt| async move {
///         if !attempt.is_hedge() {
///             std::future::pending::<()>().await; // the first one hangs
///         }
///         Ok::<_, std::io::Error>("from the hedge")
///     })
///     .await;
/// assert_eq!(answer.unwrap(), "from the hedge");
/// # });
/// ```
///
/// # Defaults
/// No hedge until asked for: it costs load. At a percentile: window 30 s, at least 100 samples (below that
/// p95 is the fifth of a handful), until then the delay of [`initially`](HedgeBuilder::initially) or none.
#[derive(Clone)]
pub struct Hedge(Arc<Inner>);

struct Inner {
    percentile: Option<f64>,
    /// Nanoseconds; zero: do not hedge.
    delay: AtomicU64,
    initial: u64,
    /// Next instant at which the percentile is computed.
    due: AtomicU64,
    least: Duration,
    latencies: Mutex<Latencies>,
}

/// Successes before the percentile counts.
const SAMPLES: u64 = 100;
/// Nanoseconds between two computations of the percentile: each reads every bucket.
const REFRESH: u64 = 100_000_000;

/// Settings of a [`Hedge`].
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::hedge::Hedge;
///
/// let hedge = Hedge::at_percentile(0.95)
///     .initially(Duration::from_millis(80))
///     .at_least(Duration::from_millis(5))
///     .window(Duration::from_secs(60))
///     .build()
///     .unwrap();
/// assert_eq!(hedge.delay(), Some(Duration::from_millis(80))); // no samples yet
/// assert_eq!(Hedge::at_percentile(1.0).build().unwrap_err().field(), "percentile");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct HedgeBuilder {
    percentile: Option<f64>,
    delay: Option<Duration>,
    least: Duration,
    window: Duration,
}

impl Hedge {
    /// After a fixed delay: the same for every call, whatever the service does. For services whose latency you know.
    pub fn after(delay: Duration) -> HedgeBuilder {
        HedgeBuilder {
            percentile: None,
            delay: Some(delay),
            least: Duration::ZERO,
            window: Duration::from_secs(30),
        }
    }

    /// After the time that a share `p` of the successes does not exceed; 0.95 adds at most 5 % of load. Follows the
    /// service: it is computed from the successes of the window, at most every 100 ms.
    pub fn at_percentile(p: f64) -> HedgeBuilder {
        HedgeBuilder {
            percentile: Some(p),
            delay: None,
            least: Duration::from_millis(2),
            window: Duration::from_secs(30),
        }
    }

    /// For the slot of a policy. Policies that share a plan share its latencies, so share one only among policies that
    /// call the same dependency for the same kind of answer.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{CallContext, Policy, hedge::Hedge};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let hedge = Hedge::after(Duration::from_millis(2)).build().unwrap();
    /// let policy = Policy::builder("search").idempotent().hedge_plan(hedge.plan()).build().unwrap();
    /// let cx = CallContext::new();
    /// // The first attempt hangs, the second answers.
    /// let answer = policy.call(&cx, |attempt| async move {
    ///     if !attempt.is_hedge() {
    ///         std::future::pending::<()>().await;
    ///     }
    ///     Ok::<_, std::io::Error>("from the second")
    /// });
    /// assert_eq!(answer.await.unwrap(), "from the second");
    /// assert_eq!(policy.snapshot().hedges, 1);
    /// # });
    /// ```
    #[must_use]
    pub fn plan(&self) -> Arc<dyn HedgePlan> {
        Arc::<Inner>::clone(&self.0)
    }

    /// The delay now; `None`: no hedge, because there are too few samples and no [`initially`](HedgeBuilder::initially).
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        self.0.current()
    }
}

impl Inner {
    fn current(&self) -> Option<Duration> {
        let nanos = self.delay.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    fn refresh(&self, latencies: &Latencies, now: Instant, p: f64) {
        let delay = if latencies.count(now) < SAMPLES {
            self.initial
        } else {
            let at = latencies.percentile(now, p).unwrap_or(Duration::ZERO).max(self.least);
            u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
        };
        self.delay.store(delay, Ordering::Relaxed);
    }
}

impl HedgePlan for Inner {
    fn delay(&self, now: Instant) -> Option<Duration> {
        if let Some(p) = self.percentile {
            // Also without successes: what is in the window grows old.
            let due = self.due.load(Ordering::Relaxed);
            if now.as_nanos() >= due
                && let Some(latencies) = self.latencies.try_lock()
            {
                self.due.store(now.as_nanos().saturating_add(REFRESH), Ordering::Relaxed);
                self.refresh(&latencies, now, p);
            }
        }
        self.current()
    }

    fn succeeded(&self, now: Instant, elapsed: Duration) {
        // One sample more or less under contention does not move a percentile.
        if self.percentile.is_some()
            && let Some(mut latencies) = self.latencies.try_lock()
        {
            latencies.add(now, elapsed);
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hedge")
            .field("percentile", &self.percentile)
            .field("delay", &self.current())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Hedge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl HedgeBuilder {
    /// The delay until 100 successes have been seen. Without it nothing is hedged before that.
    pub fn initially(mut self, delay: Duration) -> Self {
        self.delay = Some(delay);
        self
    }

    /// No percentile below this counts: hedging faster than the network is noise. Default 2 ms, twice the tick by which
    /// latencies are measured.
    pub fn at_least(mut self, delay: Duration) -> Self {
        self.least = delay;
        self
    }

    /// How far back successes count, in four slices. Default 30 s: a shift of the latency is followed within a minute.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// The hedge.
    ///
    /// # Errors
    /// [`ConfigError`] for a delay of zero or above a day, a least one above a day, a percentile outside `[0.5, 0.999]`, a window
    /// outside 1 s to 1 day.
    pub fn build(self) -> Result<Hedge, ConfigError> {
        self.delay.map_or(Ok(()), |d| crate::error::check_time("delay", d))?;
        if self.least > MAX_TIME {
            let allowed = format!("at most {MAX_TIME:?}");
            return Err(ConfigError::new("at_least", format!("{:?}", self.least), allowed));
        }
        if let Some(p) = self.percentile.filter(|p| !(0.5..=0.999).contains(p)) {
            return Err(ConfigError::new("percentile", p, "a number in [0.5, 0.999]"));
        }
        if self.window < Duration::from_secs(1) || self.window > MAX_TIME {
            return Err(ConfigError::new("window", format!("{:?}", self.window), "1s to 1day"));
        }
        let initial = self.delay.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        Ok(Hedge(Arc::new(Inner {
            percentile: self.percentile,
            delay: AtomicU64::new(initial),
            initial,
            due: AtomicU64::new(0),
            least: self.least,
            latencies: Mutex::new(Latencies::new(self.window)),
        })))
    }
}
