//! All policies around one operation, in the one right order.

mod attempt;
mod builder;
pub mod seam;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Rng, Tick};

pub use attempt::Attempt;
pub use builder::PolicyBuilder;
pub use seam::{HedgePlan, LimitSlot, Limiter, ProbeGate};

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
    pub(crate) ear: Ear,
}

impl Core {
    /// The budget that retries and hedges of this call spend.
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
    pub async fn call<'a, T, E, F, Fut>(&'a self, cx: &'a CallContext, f: F) -> Result<T, CallError<E>>
    where
        E: Classify,
        F: FnMut(Attempt<'a>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.call_with(cx, crate::outcome::by_trait, f).await
    }

    /// Runs `f` under this policy; `classify` says what a result means.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn call_with<'a, T, E, F, Fut, K>(
        &'a self,
        cx: &'a CallContext,
        classify: K,
        mut f: F,
    ) -> Result<T, CallError<E>>
    where
        K: Fn(&Result<T, E>) -> Verdict,
        F: FnMut(Attempt<'a>) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let head = attempt::Head { number: 1, hedge: false, deadline: cx.deadline() };
        let result = f(Attempt { head, core: &self.0, cx }).await;
        let _ = classify(&result);
        result.map_err(CallError::Inner)
    }
}
