//! The slots of a policy.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;

use super::stats::Stats;
use super::{Core, HedgePlan, LimitSlot, Limiter, Policy, Repeat, Spans};
use crate::event::{Ear, Kind};
use crate::limit::SendRate;
use crate::{Breaker, Budget, Bulkhead, ConfigError, Listener, Retry};

/// Fills the slots of a [`Policy`]. One slot per kind; the order is not an input, and filling a slot twice keeps the
/// later content.
///
/// # Defaults
/// | slot | default | why |
/// |---|---|---|
/// | deadline, attempt timeout | none | only you know what the caller waits, and the observed 99.9th percentile |
/// | limits, bulkheads, send rate, hedge, breaker | none | each guards against something; take what you need |
/// | retry | none: one attempt | a repeated operation must be declared harmless first |
/// | budget | [`Budget::builder`]'s rule as soon as something can be repeated | without one an overload feeds itself |
/// | idempotence | undeclared: together with a retry or hedge `build` refuses | an error is no proof of no effect |
///
/// ```
/// use mainstay_resilience::{Policy, Retry};
///
/// let retry = Retry::standard().build().unwrap();
/// let refused = Policy::builder("payments").retry(retry).build().unwrap_err();
/// assert_eq!((refused.field(), refused.value()), ("idempotent", "undeclared"));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct PolicyBuilder {
    name: Arc<str>,
    runtime: Option<Runtime>,
    deadline: Option<Duration>,
    limits: [Option<Arc<dyn Limiter>>; LimitSlot::COUNT],
    bulkhead: Option<Bulkhead>,
    retry: Option<Retry>,
    repeat: Repeat,
    budget: BudgetSlot,
    hedge: Option<Arc<dyn HedgePlan>>,
    send_rate: Option<SendRate>,
    attempt_bulkhead: Option<Bulkhead>,
    breaker: Option<Breaker>,
    attempt_timeout: Option<Duration>,
    listener: Option<Arc<dyn Listener>>,
}

#[derive(Clone, Debug)]
enum BudgetSlot {
    Default,
    /// The default one of a policy that was built before.
    #[cfg(feature = "serde")]
    Kept(Budget),
    None,
    Own(Budget),
}

impl PolicyBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            runtime: None,
            deadline: None,
            limits: [const { None }; LimitSlot::COUNT],
            bulkhead: None,
            retry: None,
            repeat: Repeat::Undeclared,
            budget: BudgetSlot::Default,
            hedge: None,
            send_rate: None,
            attempt_bulkhead: None,
            breaker: None,
            attempt_timeout: None,
            listener: None,
        }
    }

    /// Clock and randomness of the policy and of its default budget. Default: the system's. Give the parts that are
    /// built apart (breaker, bulkhead, budget) the same one.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.runtime = Some(runtime.clone());
        self
    }

    /// Bounds the whole call: queueing, attempts, backoff and hedges. The earlier of this and the context's
    /// deadline holds, and travels on through [`Attempt::nest`](crate::Attempt::nest) and
    /// [`wire`](crate::timeout::wire). Read from the tick of about 1 ms when the call begins.
    ///
    /// `build` refuses zero and more than a day, and a retry whose first delay or whose attempts leave no time for a
    /// second attempt.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{CallContext, Policy};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = Policy::builder("search").deadline(Duration::from_millis(10)).build().unwrap();
    /// let never = |_| std::future::pending::<Result<(), std::io::Error>>();
    /// let failed = policy.call(&CallContext::new(), never).await.unwrap_err();
    /// assert_eq!(failed.code(), "deadline_timeout"); // the whole call, not one attempt of it
    /// # });
    /// ```
    pub fn deadline(mut self, d: Duration) -> Self {
        self.deadline = Some(d);
        self
    }

    /// Fills a limit slot: a [`RateLimiter`](crate::limit::RateLimiter), an
    /// [`AdaptiveLimiter`](crate::limit::AdaptiveLimiter), a [`ClientThrottle`](crate::limit::ClientThrottle), a
    /// [`Shedder`](crate::limit::Shedder) or
    /// something of your own. Asked once per call, before the bulkhead: what is refused must not wait first.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use mainstay_resilience::{CallContext, Policy, limit::RateLimiter, policy::LimitSlot};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let rate = RateLimiter::builder("partner api").rate(1, Duration::from_secs(60)).build().unwrap();
    /// let policy = Policy::builder("partner").limit(LimitSlot::Rate, Arc::new(rate)).build().unwrap();
    /// let cx = CallContext::new();
    /// assert!(policy.call(&cx, |_| async { Ok::<_, std::io::Error>(()) }).await.is_ok());
    /// let refused = policy.call(&cx, |_| async { Ok::<_, std::io::Error>(()) }).await.unwrap_err();
    /// assert_eq!((refused.code(), refused.rejected().unwrap().policy()), ("rate", "partner api"));
    /// # });
    /// ```
    pub fn limit(mut self, slot: LimitSlot, limiter: Arc<dyn Limiter>) -> Self {
        self.limits[slot.index()] = Some(limiter);
        self
    }

    /// Bounds logical calls in flight; the permit is held during backoff, or a storm of retries would queue anew with
    /// each attempt. For a pool of connections see [`attempt_bulkhead`](Self::attempt_bulkhead).
    pub fn bulkhead(mut self, bulkhead: &Bulkhead) -> Self {
        self.bulkhead = Some(bulkhead.clone());
        self
    }

    /// Repeats failed attempts. Needs [`idempotent`](Self::idempotent) or
    /// [`idempotent_per_call`](Self::idempotent_per_call), or `build` refuses; spends the [`budget`](Self::budget).
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Declares that every operation under this policy may be executed more than once: reads, and writes that say what
    /// the result shall be and not what to add.
    pub fn idempotent(mut self) -> Self {
        self.repeat = Repeat::Always;
        self
    }

    /// Only calls whose context declares it ([`CallContext::idempotent`](crate::CallContext::idempotent)), or carries an
    /// idempotency key ([`with_key`](crate::CallContext::with_key)), are repeated; the others get one attempt.
    ///
    /// ```
    /// use std::io::{Error, ErrorKind};
    /// use mainstay_resilience::{CallContext, Policy, Retry};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let retry = Retry::constant(std::time::Duration::from_millis(1)).attempts(2).build().unwrap();
    /// let policy = Policy::builder("orders").idempotent_per_call().retry(retry).build().unwrap();
    /// let down = |_| async { Err::<(), _>(Error::from(ErrorKind::ConnectionReset)) };
    /// let (bare, keyed) = (CallContext::new(), CallContext::new().with_key("order-17"));
    /// assert_eq!(policy.call(&bare, down).await.unwrap_err().attempts(), 1);
    /// assert_eq!(policy.call(&keyed, down).await.unwrap_err().attempts(), 2);
    /// # });
    /// ```
    pub fn idempotent_per_call(mut self) -> Self {
        self.repeat = Repeat::PerCall;
        self
    }

    /// The budget that retries and hedges spend. Default: the rule of [`Budget::builder`], one per policy, or the one
    /// that the context brings from above.
    ///
    /// ```
    /// use mainstay_resilience::{Budget, Policy, Retry};
    ///
    /// // Two policies that call the same dependency share what may be added to its load.
    /// let budget = Budget::builder("database").build().unwrap();
    /// let retry = Retry::standard().build().unwrap();
    /// let policy = |name| Policy::builder(name).idempotent().retry(retry.clone()).budget(&budget).build();
    /// let (reads, searches) = (policy("reads").unwrap(), policy("searches").unwrap());
    /// assert_eq!(reads.snapshot().budget.unwrap().name, searches.snapshot().budget.unwrap().name);
    /// ```
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = BudgetSlot::Own(budget.clone());
        self
    }

    /// The default budget, with the credit that it has.
    #[cfg(feature = "serde")]
    pub(crate) fn kept_budget(mut self, budget: &Budget) -> Self {
        self.budget = BudgetSlot::Kept(budget.clone());
        self
    }

    /// Retries without a budget. Under overload this multiplies the load by the number of attempts, and with nested
    /// layers by their product. For a batch job that is alone on its dependency.
    pub fn without_budget(mut self) -> Self {
        self.budget = BudgetSlot::None;
        self
    }

    /// Starts a second attempt beside a slow one: [`Hedge::plan`](crate::hedge::Hedge::plan). The first success wins.
    /// Needs a declaration as a retry does, and spends the same budget.
    pub fn hedge_plan(mut self, plan: Arc<dyn HedgePlan>) -> Self {
        self.hedge = Some(plan);
        self
    }

    /// Spaces attempts out by what the service throttles: AWS' adaptive mode, see [`SendRate`]. One turn per attempt,
    /// the first included; the wait counts against the deadline and not against the attempt's timeout. What does not start
    /// after all gives its turn back. A second
    /// attempt of a hedge does not wait: without a token it does not start.
    pub fn send_rate(mut self, rate: &SendRate) -> Self {
        self.send_rate = Some(rate.clone());
        self
    }

    /// Bounds attempts in flight, as a pool of connections does; [`bulkhead`](Self::bulkhead) bounds whole calls.
    /// The permit is held while the attempt runs and not during backoff. An attempt waits in line as the bulkhead
    /// says, before it asks the breaker for its ticket, unless that is open already; a refusal ends the call and is never retried. A second attempt of a hedge
    /// does not wait: without a free permit it does not start.
    ///
    /// ```
    /// use mainstay_resilience::{Bulkhead, CallContext, Policy};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let connections = Bulkhead::builder("connections", 1).build().unwrap();
    /// let policy = Policy::builder("shop").attempt_bulkhead(&connections).build().unwrap();
    /// let held = connections.try_acquire().unwrap();
    /// let refused = policy.call(&CallContext::new(), |_| async { Ok::<_, std::io::Error>(()) }).await;
    /// assert_eq!(refused.unwrap_err().rejected().unwrap().policy(), "connections");
    /// # drop(held);
    /// # });
    /// ```
    pub fn attempt_bulkhead(mut self, bulkhead: &Bulkhead) -> Self {
        self.attempt_bulkhead = Some(bulkhead.clone());
        self
    }

    /// Asked once per attempt, hedges included, and told how each ended. An attempt that it refuses ends the call: the
    /// own breaker's "no" is not retried. Where it is open for longer than a backoff would last, the call ends at once.
    ///
    /// Where the breaker's own settings do not say what dropped calls mean, those that ran for half the
    /// [`attempt_timeout`](Self::attempt_timeout) of this policy count as failures
    /// ([`Abandoned`](crate::breaker::Abandoned)).
    ///
    /// `build` refuses a breaker whose probe lease is shorter than the attempt timeout: its probes would be void.
    ///
    /// ```
    /// use std::io::{Error, ErrorKind};
    /// use mainstay_resilience::{Breaker, CallContext, Policy, Retry};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let breaker = Breaker::builder("search").consecutive(2).build().unwrap();
    /// let retry = Retry::constant(std::time::Duration::from_millis(1)).attempts(5).build().unwrap();
    /// let policy = Policy::builder("search").idempotent().retry(retry).breaker(&breaker).build().unwrap();
    /// let down = |_| async { Err::<(), _>(Error::from(ErrorKind::ConnectionRefused)) };
    /// let failed = policy.call(&CallContext::new(), down).await.unwrap_err();
    /// assert_eq!((failed.attempts(), failed.code()), (2, "open")); // the third attempt was refused and ended the call
    /// # });
    /// ```
    pub fn breaker(mut self, breaker: &Breaker) -> Self {
        self.breaker = Some(breaker.clone());
        self
    }

    /// Bounds one attempt, from its start to its end. The timer is armed at the first `Pending`: an operation that is
    /// ready at once costs none. What is cut off counts as a failure, may be retried, and its outcome is unknown.
    ///
    /// `build` refuses zero, more than a day, and together with a retry one that is not shorter than the deadline.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{Policy, Retry};
    ///
    /// let ms = Duration::from_millis;
    /// let policy = |timeout| {
    ///     let retry = Retry::standard().build().unwrap();
    ///     Policy::builder("search").idempotent().deadline(ms(500)).retry(retry).attempt_timeout(timeout).build()
    /// };
    /// assert!(policy(ms(150)).is_ok());
    /// assert_eq!(policy(ms(500)).unwrap_err().field(), "attempt_timeout"); // it leaves no second attempt
    /// ```
    pub fn attempt_timeout(mut self, d: Duration) -> Self {
        self.attempt_timeout = Some(d);
        self
    }

    /// Hears the events of this policy: ended calls, refusals, retries, hedges. A breaker and a bulkhead have listeners
    /// of their own.
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Checks the settings and builds.
    ///
    /// # Errors
    /// [`ConfigError`] names the refused field, its value and what is allowed: a time of zero or above a day, a retry or
    /// hedge without a declaration, or slots that contradict each other (rules M4, M7, M8 and M9 of
    /// [`lint`](crate::lint)).
    pub fn build(self) -> Result<Policy, ConfigError> {
        self.check()?;
        let runtime = self.runtime.unwrap_or_else(Runtime::system);
        let (budget, own_budget) = match self.budget {
            BudgetSlot::Own(budget) => (Some(budget), true),
            BudgetSlot::None => (None, true),
            #[cfg(feature = "serde")]
            BudgetSlot::Kept(budget) => (Some(budget), false),
            BudgetSlot::Default if self.retry.is_none() && self.hedge.is_none() => (None, true),
            BudgetSlot::Default => {
                (Some(Budget::builder(Arc::clone(&self.name)).runtime(&runtime).build()?), false)
            }
        };
        let limited = self.limits.iter().any(Option::is_some);
        let gated = self.send_rate.is_some() || self.attempt_bulkhead.is_some();
        // Without a budget of its own that is final, a policy spends the one that the context brings.
        let spends = budget.is_some() || !own_budget;
        let holds = limited || gated || self.bulkhead.is_some() || self.breaker.is_some() || spends;
        Ok(Policy(Arc::new(Core {
            bare: !holds && self.hedge.is_none() && self.listener.is_none(),
            ear: Ear::new(Kind::Policy, &self.name, self.listener.as_ref()),
            name: self.name,
            tick: runtime.clock().tick(),
            clock: Arc::clone(runtime.clock()),
            rng: Arc::clone(runtime.rng()),
            spans: Spans::of(self.deadline, self.attempt_timeout, self.retry.as_ref()),
            deadline: self.deadline,
            limited,
            limits: self.limits,
            bulkhead: self.bulkhead,
            retry: self.retry,
            repeat: self.repeat,
            budget,
            own_budget,
            hedge: self.hedge,
            gated,
            send_rate: self.send_rate,
            attempt_bulkhead: self.attempt_bulkhead,
            breaker: self.breaker,
            attempt_timeout: self.attempt_timeout,
            stats: Stats::new(),
        })))
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, value) in [("deadline", self.deadline), ("attempt_timeout", self.attempt_timeout)] {
            value.map_or(Ok(()), |d| crate::error::check_time(field, d))?;
        }
        let attempts = self.retry.as_ref().map_or(1, Retry::max_attempts);
        if (attempts > 1 || self.hedge.is_some()) && self.repeat == Repeat::Undeclared {
            let allowed =
                "a declaration, as the operation may run twice: idempotent() or idempotent_per_call()";
            return Err(ConfigError::new("idempotent", "undeclared", allowed));
        }
        if let (Some(attempt), Some(deadline)) = (self.attempt_timeout, self.deadline)
            && attempts > 1
            && attempt >= deadline
        {
            let allowed = format!("less than the deadline, {deadline:?}, or no second attempt can happen");
            return Err(ConfigError::new("attempt_timeout", format!("{attempt:?}"), allowed));
        }
        if let (Some(retry), Some(deadline)) = (&self.retry, self.deadline)
            && retry.schedule().base() >= deadline
        {
            let allowed = format!("less than the deadline, {deadline:?}");
            return Err(ConfigError::new("base", format!("{:?}", retry.schedule().base()), allowed));
        }
        if let (Some(breaker), Some(attempt)) = (&self.breaker, self.attempt_timeout) {
            let lease = breaker.config().probe_lease();
            if lease < attempt {
                let allowed = format!("at least the attempt timeout, {attempt:?}");
                return Err(ConfigError::new("probe_lease", format!("{lease:?}"), allowed));
            }
        }
        Ok(())
    }
}
