//! One allowance for retries, hedges and probes, so that they cannot multiply an overload.
//!
//! Backoff and jitter spread retries; they do not reduce them. Under a lasting overload only a budget keeps
//! the load near one request per request. One budget per dependency, shared by every policy that calls it;
//! nested policies share it through the [`CallContext`](crate::CallContext), and only the outermost first
//! attempt earns.
//!
//! ```text
//! ratio:      credit += ratio per first attempt + floor per second, at most what one second earns; a retry costs 1
//! in flight:  retries and hedges in flight <= max(at_least, share * calls in flight)
//! gRPC:       tokens -= 1 per failed attempt, += ratio per success; retries only above half of max
//! AWS:        a retry takes 14 of 500 (5 when throttled); success after retries returns the last cost, at once adds 1
//! ```
//!
//! The first attempt is free under every rule: a budget bounds what is added to the load, not the load.
//!
//! Sources of the rules: Finagle's `RetryBudget`; Envoy's retry budgets; gRFC A6 for gRPC; the AWS SDKs'
//! retry behaviour 2.1.

mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime, Tick};

pub use state::Cost;
use state::{AwsCosts, Credit};

use crate::pad::CachePadded;
use crate::streak::Streak;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::window::Window;
use crate::{ConfigError, Reason, Rejected, shard};

/// Longest credit time. What was earned an hour ago says nothing about the dependency now.
const MAX_CREDIT: Duration = Duration::from_secs(3_600);
/// Shortest credit time: the window behind it has ten buckets and a tick of about 1 ms.
const MIN_CREDIT: Duration = Duration::from_millis(100);
/// Tokens of gRPC budgets are counted in thousandths.
const MILLI: u64 = 1_000;

/// A shared allowance. Clones share it.
///
/// Guarantees: never more is spent than the rule allows, however many threads try. Not guaranteed: fairness
/// among the callers that share it.
///
/// ```
/// use mainstay_resilience::budget::{Budget, Cost};
///
/// let budget = Budget::builder("payments").ratio(0.0, 2.0).build().unwrap();
/// assert!(budget.spend(Cost::Retry).is_ok());
/// assert!(budget.spend(Cost::Hedge).is_ok());
/// let refused = budget.spend(Cost::Retry).unwrap_err();
/// assert_eq!(refused.why().code(), "budget");
/// ```
#[derive(Clone)]
pub struct Budget(Arc<Core>);

struct Core {
    name: Arc<str>,
    clock: Arc<dyn Clock>,
    tick: Tick,
    rule: Rule,
    refused: AtomicU64,
    streak: Streak,
}

enum Rule {
    Aws { costs: AwsCosts, capacity: u64, tokens: AtomicU64 },
    Grpc { max: u64, ratio: u64, tokens: AtomicU64 },
    InFlight { share: f64, at_least: u64, active: Box<[CachePadded<AtomicU64>]>, retries: AtomicU64 },
    Ratio { ratio: f64, floor: f64, seconds: f64, deposits: Window<0>, credit: Mutex<Credit> },
}

/// What a budget paid for one call so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Paid {
    times: u32,
    last: u32,
}

/// Settings of a [`Budget`].
///
/// # Defaults
/// 20 % of first attempts plus 10 per second, one second of credit. A share alone starves slow clients, hence
/// the floor; ten seconds of credit release their whole burst exactly when the dependency begins to fail.
///
/// | rule | numbers | for |
/// |---|---|---|
/// | [`ratio`](BudgetBuilder::ratio) | 0.2, 10 per second | nearly everything |
/// | [`finagle`](BudgetBuilder::finagle) | the same, ten seconds of credit | whoever comes from there |
/// | [`in_flight`](BudgetBuilder::in_flight) | none; Envoy has 0.2, 3 | slow calls: counts what runs, not what came |
/// | [`grpc`](BudgetBuilder::grpc) | none | whoever comes from gRPC's retry throttling |
/// | [`aws`](BudgetBuilder::aws) | 500 tokens | whoever talks to what AWS' SDKs talk to |
#[derive(Clone, Debug)]
#[must_use]
pub struct BudgetBuilder {
    name: Arc<str>,
    runtime: Option<Runtime>,
    setting: Setting,
}

#[derive(Clone, Copy, Debug)]
enum Setting {
    Aws { costs: AwsCosts, capacity: u32 },
    Grpc { max: u32, ratio: f64 },
    InFlight { share: f64, at_least: u32 },
    Ratio { ratio: f64, floor: f64, credit: Duration },
}

impl BudgetBuilder {
    /// First attempts earn `ratio` each, time earns `floor` per second; a retry or hedge costs 1. The credit
    /// is capped at the income of one second. `build` refuses a ratio outside `[0, 1]`, and both at 0: without income use
    /// no retry.
    ///
    /// ```
    /// use mainstay_resilience::{Budget, budget::Cost};
    ///
    /// let budget = Budget::builder("search").ratio(0.1, 3.0).build().unwrap();
    /// let paid = (0..10).filter(|_| budget.spend(Cost::Retry).is_ok()).count();
    /// assert_eq!(paid, 3); // a fresh budget holds what a second without traffic earns
    /// assert_eq!(Budget::builder("search").ratio(0.0, 0.0).build().unwrap_err().field(), "ratio");
    /// ```
    pub fn ratio(mut self, ratio: f64, floor: f64) -> Self {
        self.setting = Setting::Ratio { ratio, floor, credit: Duration::from_secs(1) };
        self
    }

    /// Finagle's: 20 % plus 10 per second, credit of ten seconds.
    ///
    /// ```
    /// use mainstay_resilience::Budget;
    ///
    /// let budget = Budget::builder("payments").finagle().build().unwrap();
    /// assert_eq!(budget.snapshot().available, 100.0); // ten seconds of ten per second
    /// ```
    pub fn finagle(mut self) -> Self {
        self.setting = Setting::Ratio { ratio: 0.2, floor: 10.0, credit: Duration::from_secs(10) };
        self
    }

    /// The time whose income caps the credit of a [`ratio`](Self::ratio) budget; 100 ms to an hour. Other rules ignore it.
    ///
    /// More of it forgives a longer stumble, and lets as much more out at once when an outage begins: ten seconds of it made a
    /// burst of 2.6 times the load.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Budget;
    ///
    /// let patient = Budget::builder("batch").ratio(0.2, 10.0).credit(Duration::from_secs(5)).build().unwrap();
    /// assert_eq!(patient.snapshot().available, 50.0);
    /// ```
    pub fn credit(mut self, d: Duration) -> Self {
        if let Setting::Ratio { credit, .. } = &mut self.setting {
            *credit = d;
        }
        self
    }

    /// Envoy's: at most `share` of the calls in flight are retries or hedges, but `at_least` so many.
    ///
    /// ```
    /// use mainstay_resilience::{Budget, budget::Cost};
    ///
    /// let budget = Budget::builder("reports").in_flight(0.2, 3).build().unwrap();
    /// // Nothing is in flight, so the smallest number holds.
    /// let paid = (0..10).filter(|_| budget.spend(Cost::Retry).is_ok()).count();
    /// assert_eq!((paid, budget.snapshot().refused), (3, 7));
    /// ```
    pub fn in_flight(mut self, share: f64, at_least: u32) -> Self {
        self.setting = Setting::InFlight { share, at_least };
        self
    }

    /// gRPC's: starts at `max` tokens, an attempt that fails takes 1, one that succeeds gives `ratio`; retries
    /// only above half of `max`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{Budget, CallContext, Policy, Retry};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let budget = Budget::builder("search").grpc(10, 0.1).build().unwrap();
    /// let retry = Retry::constant(Duration::from_millis(1)).attempts(100).build().unwrap();
    /// let policy = Policy::builder("search").idempotent().retry(retry).budget(&budget).build().unwrap();
    /// let down = |_| async { Err::<(), _>(std::io::Error::from(std::io::ErrorKind::TimedOut)) };
    /// let failed = policy.call(&CallContext::new(), down).await.unwrap_err();
    /// assert_eq!((failed.attempts(), budget.tokens()), (5, Some(5.0))); // down to half
    /// # });
    /// ```
    pub fn grpc(mut self, max: u32, ratio: f64) -> Self {
        self.setting = Setting::Grpc { max, ratio };
        self
    }

    /// The bucket of AWS retry behaviour 2.1: 500 tokens, a retry costs 14, a throttled one 5; a success after
    /// retries gets the last cost back, a success at once adds 1.
    ///
    /// ```
    /// use mainstay_resilience::{Budget, budget::Cost};
    ///
    /// let budget = Budget::builder("table").aws().build().unwrap();
    /// budget.spend(Cost::Retry).unwrap();
    /// budget.spend(Cost::RetryThrottled).unwrap();
    /// assert_eq!(budget.tokens(), Some(500.0 - 14.0 - 5.0));
    /// ```
    pub fn aws(mut self) -> Self {
        self.setting = Setting::Aws { costs: AwsCosts::CURRENT, capacity: 500 };
        self
    }

    /// The AWS bucket before 2.1: a retry costs 5, after a timeout 10.
    pub fn aws_legacy(mut self) -> Self {
        self.setting = Setting::Aws { costs: AwsCosts::LEGACY, capacity: 500 };
        self
    }

    /// Clock. Default: the system's.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.runtime = Some(runtime.clone());
        self
    }

    /// Checks the settings and builds.
    ///
    /// # Errors
    /// [`ConfigError`] names the refused field, its value and what is allowed.
    pub fn build(&self) -> Result<Budget, ConfigError> {
        let runtime = self.runtime.clone().unwrap_or_else(Runtime::system);
        let now = runtime.clock().now();
        let rule = match self.setting {
            Setting::Ratio { ratio, floor, credit } => {
                check("ratio", ratio, 1.0)?;
                check("floor", floor, 1e9)?;
                if ratio == 0.0 && floor == 0.0 {
                    return Err(ConfigError::new("ratio", ratio, "ratio or floor above 0; or no retries"));
                }
                if !(MIN_CREDIT..=MAX_CREDIT).contains(&credit) {
                    let allowed = format!("{MIN_CREDIT:?} to {MAX_CREDIT:?}");
                    return Err(ConfigError::new("credit", format!("{credit:?}"), allowed));
                }
                let seconds = credit.as_secs_f64();
                let start = Mutex::new(Credit::new(floor * seconds, now));
                Rule::Ratio { ratio, floor, seconds, deposits: Window::new(credit, now), credit: start }
            }
            Setting::InFlight { share, at_least } => {
                check("share", share, 1.0)?;
                let active = (0..shard::count()).map(|_| CachePadded::new(AtomicU64::new(0))).collect();
                Rule::InFlight { share, at_least: u64::from(at_least), active, retries: AtomicU64::new(0) }
            }
            Setting::Grpc { max, ratio } => {
                check("ratio", ratio, f64::from(max))?;
                if max == 0 || max > 1_000 {
                    return Err(ConfigError::new("max", max, "1 to 1000"));
                }
                let max = u64::from(max) * MILLI;
                let ratio = (ratio * MILLI as f64) as u64;
                Rule::Grpc { max, ratio, tokens: AtomicU64::new(max) }
            }
            Setting::Aws { costs, capacity } => {
                let capacity = u64::from(capacity);
                Rule::Aws { costs, capacity, tokens: AtomicU64::new(capacity) }
            }
        };
        Ok(Budget(Arc::new(Core {
            name: Arc::clone(&self.name),
            tick: runtime.clock().tick(),
            clock: Arc::clone(runtime.clock()),
            rule,
            refused: AtomicU64::new(0),
            streak: Streak::new(),
        })))
    }
}

fn check(field: &'static str, x: f64, most: f64) -> Result<(), ConfigError> {
    if (0.0..=most).contains(&x) {
        Ok(())
    } else {
        Err(ConfigError::new(field, x, format!("a number in [0, {most}]")))
    }
}

/// Takes `n` if that leaves at least `keep`.
fn take(tokens: &AtomicU64, n: u64, keep: u64) -> bool {
    tokens
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, |t| t.checked_sub(n).filter(|left| *left >= keep))
        .is_ok()
}

/// Gives `n` back, up to `most`. Reads only when there is nothing to add.
fn give(tokens: &AtomicU64, n: u64, most: u64) {
    if n > 0 && tokens.load(Ordering::Acquire) < most {
        // The closure always returns `Some`.
        let _ = tokens.fetch_update(Ordering::AcqRel, Ordering::Acquire, |t| Some((t + n).min(most)));
    }
}

/// A budget at one moment.
///
/// ```
/// use mainstay_resilience::{Budget, budget::Cost};
///
/// let budget = Budget::builder("table").aws().build().unwrap();
/// while budget.spend(Cost::Retry).is_ok() {}
/// let now = budget.snapshot();
/// assert_eq!((&*now.name, now.available, now.refused), ("table", 0.0, 1));
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BudgetSnapshot {
    /// The configured name.
    pub name: Arc<str>,
    /// How many retries it would pay for right now.
    pub available: f64,
    /// Refusals since the start.
    pub refused: u64,
}

impl Budget {
    /// Starts a budget named `name` with the default rule: the name of the dependency, not of a layer.
    pub fn builder(name: impl Into<Arc<str>>) -> BudgetBuilder {
        let setting = Setting::Ratio { ratio: 0.2, floor: 10.0, credit: Duration::from_secs(1) };
        BudgetBuilder { name: name.into(), runtime: None, setting }
    }

    /// Pays for one retry, hedge or probe from outside a policy: a reconnect, a poll, a request that somebody else
    /// repeats. Policies pay by themselves.
    ///
    /// # Errors
    /// [`Reason::Budget`] when the rule does not allow it.
    ///
    /// ```
    /// use mainstay_resilience::{Budget, budget::Cost};
    ///
    /// let budget = Budget::builder("search").ratio(0.0, 1.0).build().unwrap();
    /// budget.spend(Cost::Probe).unwrap(); // a reconnect, say
    /// let refused = budget.spend(Cost::Probe).unwrap_err();
    /// assert_eq!((refused.policy(), refused.why().code()), ("search", "budget"));
    /// assert!(refused.since().is_some());
    /// ```
    pub fn spend(&self, cost: Cost) -> Result<(), Rejected> {
        let now = self.0.clock.now();
        if self.pay(cost, &mut Paid::default(), now) {
            return Ok(());
        }
        let since = self.0.streak.hit(now);
        Err(Rejected::new(Arc::clone(&self.0.name), Reason::Budget).with_since(Some(since)))
    }

    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// What it would pay right now. Books what has been earned until now; for consoles and scrapers.
    #[must_use]
    pub fn snapshot(&self) -> BudgetSnapshot {
        let now = self.0.clock.now();
        let available = match &self.0.rule {
            Rule::Ratio { credit, .. } => {
                let mut credit = credit.lock();
                self.book(&mut credit, now);
                credit.credit
            }
            Rule::InFlight { retries, .. } => {
                (self.allowed_in_flight() - retries.load(Ordering::Acquire) as f64).max(0.0)
            }
            Rule::Grpc { max, tokens, .. } => {
                tokens.load(Ordering::Acquire).saturating_sub(*max / 2) as f64 / MILLI as f64
            }
            Rule::Aws { costs, tokens, .. } => {
                (tokens.load(Ordering::Acquire) / u64::from(costs.of(Cost::Retry))) as f64
            }
        };
        let refused = self.0.refused.load(Ordering::Relaxed);
        BudgetSnapshot { name: Arc::clone(&self.0.name), available, refused }
    }

    /// The bare number of tokens of a bucket rule (gRPC's, AWS'); `None` for the others.
    #[must_use]
    pub fn tokens(&self) -> Option<f64> {
        match &self.0.rule {
            Rule::Grpc { tokens, .. } => Some(tokens.load(Ordering::Acquire) as f64 / MILLI as f64),
            Rule::Aws { tokens, .. } => Some(tokens.load(Ordering::Acquire) as f64),
            Rule::InFlight { .. } | Rule::Ratio { .. } => None,
        }
    }

    /// Tells budgets apart.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }

    /// A logical call begins; only the outermost layer says so.
    #[inline]
    pub(crate) fn begin(&self, now: Instant) {
        match &self.0.rule {
            Rule::Ratio { deposits, .. } => deposits.add(deposits.bucket(now)),
            Rule::InFlight { active, .. } => {
                active[shard::thread() & (active.len() - 1)].fetch_add(1, Ordering::Relaxed);
            }
            Rule::Grpc { .. } | Rule::Aws { .. } => {}
        }
    }

    /// What [`begin`](Self::begin) said is over; `paid` is given back where the rule says so.
    pub(crate) fn end(&self, paid: Paid, began: bool, success: bool) {
        match &self.0.rule {
            Rule::Ratio { .. } | Rule::Grpc { .. } => {}
            Rule::InFlight { active, retries, .. } => {
                if began {
                    active[shard::thread() & (active.len() - 1)].fetch_sub(1, Ordering::Relaxed);
                }
                if paid.times > 0 {
                    retries.fetch_sub(u64::from(paid.times), Ordering::AcqRel);
                }
            }
            Rule::Aws { capacity, tokens, .. } => {
                if success {
                    let back = if paid.times == 0 { 1 } else { paid.last };
                    give(tokens, u64::from(back), *capacity);
                }
            }
        }
    }

    /// Whether the end of a call that paid nothing changes nothing.
    #[inline(always)]
    pub(crate) fn is_indifferent(&self) -> bool {
        matches!(self.0.rule, Rule::Ratio { .. })
    }

    /// An attempt ended.
    pub(crate) fn attempt(&self, success: bool) {
        if let Rule::Grpc { max, ratio, tokens } = &self.0.rule {
            if success {
                give(tokens, *ratio, *max);
            } else {
                // The closure always returns `Some`.
                let _ = tokens
                    .fetch_update(Ordering::AcqRel, Ordering::Acquire, |t| Some(t.saturating_sub(MILLI)));
            }
        }
    }

    /// Pays for one more attempt of a call, if the rule allows it.
    pub(crate) fn pay(&self, cost: Cost, paid: &mut Paid, now: Instant) -> bool {
        let mut price = 1;
        let granted = match &self.0.rule {
            Rule::Ratio { credit, .. } => {
                let mut credit = credit.lock();
                self.book(&mut credit, now);
                credit.spend()
            }
            Rule::InFlight { retries, .. } => {
                let allowed = self.allowed_in_flight();
                let more = |n: u64| (((n + 1) as f64) <= allowed).then_some(n + 1);
                retries.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_ok()
            }
            Rule::Grpc { max, tokens, .. } => tokens.load(Ordering::Acquire) > *max / 2,
            Rule::Aws { costs, tokens, .. } => {
                price = costs.of(cost);
                take(tokens, u64::from(price), 0)
            }
        };
        if granted {
            *paid = Paid { times: paid.times + 1, last: price };
        } else {
            self.0.refused.fetch_add(1, Ordering::Relaxed);
        }
        granted
    }

    /// What was paid last was not used: as if it had not been paid. `before` is what had been paid until then.
    pub(crate) fn refund(&self, paid: &mut Paid, before: Paid) {
        match &self.0.rule {
            Rule::Ratio { credit, .. } => credit.lock().refund(),
            Rule::InFlight { retries, .. } => {
                retries.fetch_sub(1, Ordering::AcqRel);
            }
            Rule::Grpc { .. } => {}
            Rule::Aws { capacity, tokens, .. } => give(tokens, u64::from(paid.last), *capacity),
        }
        *paid = before;
    }

    fn book(&self, credit: &mut Credit, now: Instant) {
        if let Rule::Ratio { ratio, floor, seconds, deposits, .. } = &self.0.rule {
            let recent = deposits.sums(self.0.tick.read()).common;
            credit.book(*ratio, *floor, *seconds, deposits.total(), recent, now);
        }
    }

    fn allowed_in_flight(&self) -> f64 {
        match &self.0.rule {
            Rule::InFlight { share, at_least, active, .. } => {
                // A call may begin on one shard and end on another; read between the two, the sum may be below zero.
                let sum = active.iter().fold(0_u64, |sum, n| sum.wrapping_add(n.load(Ordering::Relaxed)));
                let sum = sum.cast_signed().max(0);
                (share * sum as f64).floor().max(*at_least as f64)
            }
            _ => 0.0,
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::{Budget, Cost, Ordering, Paid, Rule};

    #[test]
    fn a_sum_that_is_torn_below_zero_allows_no_more_than_the_least() {
        let budget = Budget::builder("x").in_flight(0.2, 3).build().unwrap();
        let Rule::InFlight { active, .. } = &budget.0.rule else { panic!("another rule") };
        // The end of a call was counted on this shard, and its begin on one that was read before it.
        active[0].fetch_sub(1, Ordering::Relaxed);
        assert_eq!((0..10).filter(|_| budget.spend(Cost::Retry).is_ok()).count(), 3);
    }

    #[test]
    fn what_is_refunded_was_never_paid_under_every_rule() {
        let of = || Budget::builder("x");
        let rules =
            [of().ratio(0.0, 5.0), of().in_flight(0.2, 3), of().grpc(10, 0.1), of().aws(), of().aws_legacy()];
        for builder in rules {
            let budget = builder.build().unwrap();
            let now = budget.0.clock.now();
            let mut paid = Paid::default();
            assert!(budget.pay(Cost::Retry, &mut paid, now));
            let (before, left) = (paid, (budget.tokens(), budget.snapshot().available.floor()));
            assert!(budget.pay(Cost::Hedge, &mut paid, now));
            budget.refund(&mut paid, before);
            assert_eq!((paid.times, paid.last), (before.times, before.last), "{builder:?}");
            assert_eq!((budget.tokens(), budget.snapshot().available.floor()), left, "{builder:?}");
        }
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("name", &self.0.name).finish_non_exhaustive()
    }
}
