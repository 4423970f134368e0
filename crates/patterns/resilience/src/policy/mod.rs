//! All policies around one operation, in the one right order.

mod attempt;
mod builder;
mod exec;
mod machine;
mod running;
pub mod seam;
mod stats;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Rng, Tick};

pub use attempt::Attempt;
pub use builder::PolicyBuilder;
pub use seam::{HedgePlan, LimitSlot, Limiter, ProbeGate};
pub use stats::PolicySnapshot;

#[cfg(feature = "tower")]
pub(crate) use attempt::Head;
pub(crate) use exec::Run;
#[cfg(feature = "tower")]
pub(crate) use running::Operation;

use running::Closure;
use stats::Stats;

use crate::event::Ear;
use crate::{Breaker, Budget, Bulkhead, CallContext, CallError, Classify, Retry, Verdict};

/// Whether operations may be executed more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    Always,
    PerCall,
    Undeclared,
}

/// Composed policies. See the [crate] for the order.
#[derive(Clone)]
pub struct Policy(Arc<Core>);

/// Everything a call needs, in slots.
pub(crate) struct Core {
    pub(crate) name: Arc<str>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tick: Tick,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) deadline: Option<Duration>,
    pub(crate) limits: [Option<Arc<dyn Limiter>>; LimitSlot::COUNT],
    pub(crate) bulkhead: Option<Bulkhead>,
    pub(crate) retry: Option<Retry>,
    pub(crate) repeat: Repeat,
    pub(crate) budget: Option<Budget>,
    /// Whether `budget` was given, or is the default that a budget from above replaces.
    pub(crate) own_budget: bool,
    pub(crate) hedge: Option<Arc<dyn HedgePlan>>,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) spans: Spans,
    /// Whether any limit slot is filled.
    pub(crate) limited: bool,
    pub(crate) ear: Ear,
    pub(crate) stats: Stats,
}

/// No bound: later than any instant.
const NEVER: u64 = u64::MAX;

/// The bounds of [`Core`] in nanoseconds, so that a call adds instead of converting.
#[derive(Clone, Copy)]
pub(crate) struct Spans {
    /// [`NEVER`] without a deadline.
    pub(crate) deadline: u64,
    /// [`NEVER`] without an attempt timeout.
    pub(crate) attempt: u64,
    /// The least time in which an attempt can succeed.
    pub(crate) least: u64,
}

impl Spans {
    fn of(deadline: Option<Duration>, attempt: Option<Duration>, retry: Option<&Retry>) -> Self {
        let nanos = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(NEVER);
        Self {
            deadline: deadline.map_or(NEVER, nanos),
            attempt: attempt.map_or(NEVER, nanos),
            least: retry.map_or(0, |retry| nanos(retry.min_attempt_time())),
        }
    }
}

impl Core {
    /// The budget that retries and hedges of this call spend.
    #[inline(always)]
    pub(crate) fn budget_for<'a>(&'a self, cx: &'a CallContext) -> Option<&'a Budget> {
        match cx.budget() {
            Some(above) if !self.own_budget => Some(above),
            _ => self.budget.as_ref(),
        }
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Policy {
    /// Starts a policy named `name`.
    pub fn builder(name: impl Into<Arc<str>>) -> PolicyBuilder {
        PolicyBuilder::new(name.into())
    }

    /// Runs `f` under this policy.
    ///
    /// # Errors
    /// [`CallError`].
    #[inline(always)]
    pub fn call<'a, T, E, F, Fut>(
        &'a self,
        cx: &'a CallContext,
        f: F,
    ) -> impl Future<Output = Result<T, CallError<E>>> + use<'a, T, E, F, Fut>
    where
        E: Classify,
        F: FnMut(Attempt<'a>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.call_with(cx, crate::outcome::by_trait, f)
    }

    /// Runs `f` under this policy; `classify` says what a result means.
    ///
    /// # Errors
    /// [`CallError`].
    #[inline(always)]
    pub fn call_with<'a, T, E, F, Fut, K>(
        &'a self,
        cx: &'a CallContext,
        classify: K,
        f: F,
    ) -> impl Future<Output = Result<T, CallError<E>>> + use<'a, T, E, F, Fut, K>
    where
        K: Fn(&Result<T, E>) -> Verdict,
        F: FnMut(Attempt<'a>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let core: &'a Core = &self.0;
        Run::new(core, cx, Closure { f, core, cx }, classify)
    }

    #[cfg(feature = "tower")]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0
    }

    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Everything about it at this moment.
    #[must_use]
    pub fn snapshot(&self) -> PolicySnapshot {
        let core = &*self.0;
        let (retries, hedges, rejected) = core.stats.counts();
        let slots = [LimitSlot::Throttle, LimitSlot::Rate, LimitSlot::Adaptive];
        PolicySnapshot {
            name: Arc::clone(&core.name),
            deadline: core.deadline,
            attempt_timeout: core.attempt_timeout,
            max_attempts: core.retry.as_ref().map_or(1, Retry::max_attempts),
            hedged: core.hedge.is_some(),
            limits: slots.into_iter().filter(|slot| core.limits[slot.index()].is_some()).collect(),
            bulkhead: core.bulkhead.as_ref().map(Bulkhead::snapshot),
            budget: core.budget.as_ref().map(Budget::snapshot),
            breaker: core.breaker.as_ref().map(Breaker::snapshot),
            retries,
            hedges,
            rejected,
            last_rejected: core.stats.last(),
        }
    }
}
