//! The slots of a policy.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;

use super::stats::Stats;
use super::{Core, HedgePlan, LimitSlot, Limiter, Policy, Repeat, Spans};
use crate::event::{Ear, Kind};
use crate::{Breaker, Budget, Bulkhead, ConfigError, Listener, Retry};

/// Longest deadline and attempt timeout: beyond a day somebody meant another unit.
const MAX_TIME: Duration = Duration::from_secs(86_400);

/// Fills the slots of a [`Policy`]. One slot per kind; the order is not an input.
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
    breaker: Option<Breaker>,
    attempt_timeout: Option<Duration>,
    listener: Option<Arc<dyn Listener>>,
}

#[derive(Clone, Debug)]
enum BudgetSlot {
    Default,
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
            breaker: None,
            attempt_timeout: None,
            listener: None,
        }
    }

    /// Clock and randomness. Default: the system's.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.runtime = Some(runtime.clone());
        self
    }

    /// Bounds the whole call: queueing, attempts, backoff and hedges. The earlier of this and the context's
    /// deadline holds.
    pub fn deadline(mut self, d: Duration) -> Self {
        self.deadline = Some(d);
        self
    }

    /// Fills a limit slot.
    pub fn limit(mut self, slot: LimitSlot, limiter: Arc<dyn Limiter>) -> Self {
        self.limits[slot.index()] = Some(limiter);
        self
    }

    /// Bounds logical calls in flight; the permit is held during backoff.
    pub fn bulkhead(mut self, bulkhead: &Bulkhead) -> Self {
        self.bulkhead = Some(bulkhead.clone());
        self
    }

    /// Repeats failed attempts. Needs [`idempotent`](Self::idempotent) or
    /// [`idempotent_per_call`](Self::idempotent_per_call).
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = Some(retry);
        self
    }

    /// Declares that every operation under this policy may be executed more than once.
    pub fn idempotent(mut self) -> Self {
        self.repeat = Repeat::Always;
        self
    }

    /// Only calls whose context declares it, or carries an idempotency key, are repeated.
    pub fn idempotent_per_call(mut self) -> Self {
        self.repeat = Repeat::PerCall;
        self
    }

    /// The budget that retries and hedges spend. Default: the rule of [`Budget::builder`], one per policy, or the one
    /// that the context brings from above.
    pub fn budget(mut self, budget: &Budget) -> Self {
        self.budget = BudgetSlot::Own(budget.clone());
        self
    }

    /// Retries without a budget. Under overload this multiplies the load by the number of attempts.
    pub fn without_budget(mut self) -> Self {
        self.budget = BudgetSlot::None;
        self
    }

    /// Starts a second attempt beside a slow one.
    pub fn hedge_plan(mut self, plan: Arc<dyn HedgePlan>) -> Self {
        self.hedge = Some(plan);
        self
    }

    /// Asked once per attempt.
    pub fn breaker(mut self, breaker: &Breaker) -> Self {
        self.breaker = Some(breaker.clone());
        self
    }

    /// Bounds one attempt.
    pub fn attempt_timeout(mut self, d: Duration) -> Self {
        self.attempt_timeout = Some(d);
        self
    }

    /// Hears the events of this policy.
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Checks the settings and builds.
    ///
    /// # Errors
    /// [`ConfigError`] names the refused field, its value and what is allowed.
    pub fn build(self) -> Result<Policy, ConfigError> {
        self.check()?;
        let runtime = self.runtime.unwrap_or_else(Runtime::system);
        let (budget, own_budget) = match self.budget {
            BudgetSlot::Own(budget) => (Some(budget), true),
            BudgetSlot::None => (None, true),
            BudgetSlot::Default if self.retry.is_none() && self.hedge.is_none() => (None, true),
            BudgetSlot::Default => {
                (Some(Budget::builder(Arc::clone(&self.name)).runtime(&runtime).build()?), false)
            }
        };
        Ok(Policy(Arc::new(Core {
            ear: Ear::new(Kind::Policy, &self.name, self.listener.as_ref()),
            name: self.name,
            tick: runtime.clock().tick(),
            clock: Arc::clone(runtime.clock()),
            rng: Arc::clone(runtime.rng()),
            spans: Spans::of(self.deadline, self.attempt_timeout, self.retry.as_ref()),
            deadline: self.deadline,
            limited: self.limits.iter().any(Option::is_some),
            limits: self.limits,
            bulkhead: self.bulkhead,
            retry: self.retry,
            repeat: self.repeat,
            budget,
            own_budget,
            hedge: self.hedge,
            breaker: self.breaker,
            attempt_timeout: self.attempt_timeout,
            stats: Stats::new(),
        })))
    }

    fn check(&self) -> Result<(), ConfigError> {
        for (field, value) in [("deadline", self.deadline), ("attempt_timeout", self.attempt_timeout)] {
            if value.is_some_and(|d| d.is_zero() || d > MAX_TIME) {
                let value = format!("{:?}", value.unwrap_or_default());
                return Err(ConfigError::new(field, value, format!("more than 0 s, at most {MAX_TIME:?}")));
            }
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
