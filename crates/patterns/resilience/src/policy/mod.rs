//! All policies around one operation, in the one right order.
//!
//! A [`Policy`] has one named slot per kind of protection. Which slots are filled is an input; their order is not:
//!
//! ```text
//! deadline > throttle > rate > adaptive limit > bulkhead > retry (+ budget) > hedge
//!          > send rate > attempt bulkhead > breaker > attempt timeout > operation
//! ```
//!
//! Everything up to the retry happens once per call, everything after it once per attempt. A [`Fallback`] stands outside
//! of all of it and is no slot: it is a function over the result.
//!
//! What a call goes through, and what each refusal means:
//!
//! | slot | asked | says no with | and then |
//! |---|---|---|---|
//! | deadline | before the call, before each attempt, while waiting | `deadline` | the operation is not started (again) |
//! | throttle, rate, adaptive | once per call | `shed`, `rate`, `shed` | nothing has been queued |
//! | bulkhead | once per call; held during backoff | `full`, `waited` | |
//! | retry and budget | after a failed attempt | `GaveUp` with the reason | first and last cause are kept |
//! | hedge | when an attempt is slow or fails early | no second attempt | the first goes on |
//! | send rate | before each attempt | `rate` | the call ends |
//! | attempt bulkhead | before each attempt; free during backoff | `full`, `waited` | the call ends |
//! | breaker | before each attempt | `open`, `forced_open` | the call ends: its own breaker's "no" is not retried |
//! | attempt timeout | while an attempt runs | `Timeout` | a failure; its outcome is unknown |
//!
//! Empty slots cost a branch. Parts stand alone too, and one part may be in many policies: a breaker, a bulkhead or a
//! budget that is shared is the same object everywhere.
//!
//! [`Fallback`]: crate::fallback::Fallback

mod admit;
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
use crate::limit::SendRate;
use crate::{Breaker, Budget, Bulkhead, CallContext, CallError, Classify, Retry, Verdict};

/// Whether operations may be executed more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    Always,
    PerCall,
    Undeclared,
}

/// Composed policies around one kind of operation. Clones share it: build one per dependency, keep it, and call through
/// it.
///
/// Guarantees:
/// - The operation is not started after a refusal, and a refusal says which part refused, why, since when and when to
///   come back ([`Rejected`](crate::Rejected)).
/// - No attempt starts that cannot end before the deadline, and nothing waits past it: neither in a queue nor in a
///   backoff.
/// - An operation is repeated only if it was declared repeatable, and only as often as the budget pays for.
/// - Local refusals are no evidence for the breaker, are never retried and cost no budget.
/// - A call that is dropped or panics gives every permit, ticket and pass back.
/// - A call that succeeds at once takes no lock, allocates nothing and arms no timer; a live percentile, a count window,
///   a send rate, and limits that learn or count by key, where they are set, take a short lock each.
///
/// Not guaranteed: that an attempt that was cut off had no effect. Nobody on this side can know; see
/// [`CallError::was_started`].
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{Breaker, Bulkhead, CallContext, Policy, Retry};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let policy = Policy::builder("payments")
///     .idempotent_per_call()
///     .deadline(Duration::from_secs(2))
///     .bulkhead(&Bulkhead::builder("payments", 64).build().unwrap())
///     .retry(Retry::standard().build().unwrap())
///     .breaker(&Breaker::builder("payments").build().unwrap())
///     .attempt_timeout(Duration::from_millis(300))
///     .build()
///     .unwrap();
/// let cx = CallContext::new().with_key("order-17/charge");
/// let receipt = policy
///     .call(&cx, |attempt| async move {
///         assert_eq!(attempt.key(), Some("order-17/charge"));
///         Ok::<_, std::io::Error>(format!("charged in attempt {}", attempt.number()))
///     })
///     .await;
/// assert_eq!(receipt.unwrap(), "charged in attempt 1");
/// # });
/// ```
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
    pub(crate) send_rate: Option<SendRate>,
    pub(crate) attempt_bulkhead: Option<Bulkhead>,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) attempt_timeout: Option<Duration>,
    pub(crate) spans: Spans,
    /// Whether any limit slot is filled.
    pub(crate) limited: bool,
    /// Whether an attempt needs anything before it starts: a turn at the send rate, a permit of its own.
    pub(crate) gated: bool,
    /// Whether a call holds nothing and nobody hears of it: there is at most a deadline, a retry without a budget and
    /// an attempt timeout.
    pub(crate) bare: bool,
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
    /// Starts a policy named `name`: the name of refusals, events and metric labels, so a dependency and never a key.
    pub fn builder(name: impl Into<Arc<str>>) -> PolicyBuilder {
        PolicyBuilder::new(name.into())
    }

    /// Runs `f` under this policy. `f` makes one attempt each time it is called, so it builds the request anew; what the
    /// attempt may know and what it should hand on is in [`Attempt`]. Errors say themselves what they mean
    /// ([`Classify`]); where they do not, use [`call_with`](Self::call_with).
    ///
    /// # Errors
    /// - [`CallError::Rejected`]: a part of the policy refused, and the operation was never started.
    /// - [`CallError::Inner`]: the operation's own error, without a retry, or of a kind that is not repeated.
    /// - [`CallError::Timeout`]: without a retry, the attempt was cut off; whether it took effect is unknown.
    /// - [`CallError::GaveUp`]: with a retry, attempts ended without success, or the next one was refused; it has the first
    ///   and the last cause and why there was no further one.
    ///
    /// # Panics
    /// When `f` or its future does. The panic counts as a failure, permits and tickets come back, and it unwinds on.
    ///
    /// # Cancel safety
    /// Dropped before its first poll the call has done nothing. Dropped later, at any await, it gives everything back at
    /// once: its place in a queue, permits, passes of limits, a turn at the send rate. A running attempt is dropped with
    /// it and counts as abandoned for the breaker ([`Abandoned`](crate::breaker::Abandoned)). What the budget has paid for
    /// attempts that started is not refunded, but by budgets that count what is in flight. Whether a dropped attempt took effect is unknown.
    ///
    /// # Examples
    /// The future is `Send` if the operation's is, and needs no box. Where it is put into one all the same (a trait with
    /// boxed futures, `async_trait`), the compiler may complain that an implementation of `FnMut` is not general enough;
    /// writing the type of the parameter, `|_: Attempt<'_>|`, settles it:
    ///
    /// ```
    /// use std::{future::Future, pin::Pin};
    /// use mainstay_resilience::{Attempt, CallContext, Policy};
    ///
    /// type Boxed<'a> = Pin<Box<dyn Future<Output = Option<u32>> + Send + 'a>>;
    ///
    /// fn ask<'a>(policy: &'a Policy, cx: &'a CallContext) -> Boxed<'a> {
    ///     Box::pin(async move {
    ///         policy.call(cx, |_: Attempt<'_>| async { Ok::<_, std::io::Error>(42) }).await.ok()
    ///     })
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = Policy::builder("search").build().unwrap();
    /// assert_eq!(ask(&policy, &CallContext::new()).await, Some(42));
    /// # });
    /// ```
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

    /// As [`call`](Self::call); `classify` says what a result means, also of an `Ok`: a response with status 503 is no
    /// success. An `Ok` that counts as a failure is retried like one, and returned as it is when no further attempt is to
    /// follow, also because it has opened the breaker. When one was to follow, the `Ok` has been dropped before the backoff
    /// (a response that is kept keeps its connection): if that attempt is then refused, the call ends with
    /// [`CallError::GaveUp`], of as many attempts as were made, with the refusal as its last cause.
    ///
    /// # Errors
    /// As for [`call`](Self::call).
    ///
    /// # Panics
    /// As for [`call`](Self::call), and when `classify` does.
    ///
    /// # Cancel safety
    /// As for [`call`](Self::call).
    ///
    /// # Examples
    /// ```
    /// use mainstay_resilience::{Breaker, CallContext, Policy, Verdict, breaker::State};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let breaker = Breaker::builder("shop").consecutive(2).build().unwrap();
    /// let policy = Policy::builder("shop").breaker(&breaker).build().unwrap();
    /// let status = |result: &Result<u16, std::io::Error>| match result {
    ///     Ok(status) => Verdict::of_http(*status, None),
    ///     Err(_) => Verdict::RETRYABLE,
    /// };
    /// let cx = CallContext::new();
    /// for answer in [404, 503, 503] {
    ///     let response = policy.call_with(&cx, status, |_| async move { Ok(answer) }).await;
    ///     assert_eq!(response.unwrap(), answer);
    /// }
    /// assert_eq!(breaker.state(), State::Open); // of 404 it took no notice
    /// # });
    /// ```
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

    #[cfg(any(feature = "serde", feature = "tower"))]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0
    }

    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The breaker in its slot, to be held, released, reconfigured or watched: the same object, not a copy.
    ///
    /// ```
    /// use mainstay_resilience::{Breaker, CallContext, Policy};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = Policy::builder("billing").breaker(&Breaker::builder("billing").build().unwrap()).build().unwrap();
    /// policy.breaker().unwrap().force_open("migration until noon", None);
    /// let refused = policy.call(&CallContext::new(), |_| async { Ok::<_, std::io::Error>(()) }).await;
    /// assert_eq!(refused.unwrap_err().code(), "forced_open");
    /// # });
    /// ```
    #[must_use]
    pub fn breaker(&self) -> Option<&Breaker> {
        self.0.breaker.as_ref()
    }

    /// The bulkhead of whole calls in its slot, to be resized: the same object, not a copy.
    ///
    /// ```
    /// use mainstay_resilience::{Bulkhead, Policy};
    ///
    /// let policy = Policy::builder("mail").bulkhead(&Bulkhead::builder("mail", 4).build().unwrap()).build().unwrap();
    /// policy.bulkhead().unwrap().resize(8).unwrap();
    /// assert_eq!(policy.snapshot().bulkhead.unwrap().limit, 8);
    /// assert!(policy.attempt_bulkhead().is_none());
    /// ```
    #[must_use]
    pub fn bulkhead(&self) -> Option<&Bulkhead> {
        self.0.bulkhead.as_ref()
    }

    /// The bulkhead of attempts in its slot.
    #[must_use]
    pub fn attempt_bulkhead(&self) -> Option<&Bulkhead> {
        self.0.attempt_bulkhead.as_ref()
    }

    /// The budget that its retries and hedges spend, unless a context brings another one: to pay for what happens outside
    /// of it ([`Budget::spend`]), or to share it ([`CallContext::with_budget`]).
    ///
    /// ```
    /// use mainstay_resilience::{Policy, Retry, budget::Cost};
    ///
    /// let retry = Retry::standard().build().unwrap();
    /// let policy = Policy::builder("search").idempotent().retry(retry).build().unwrap();
    /// policy.budget().unwrap().spend(Cost::Probe).unwrap(); // a reconnect, say
    /// assert!(Policy::builder("bare").build().unwrap().budget().is_none());
    /// ```
    #[must_use]
    pub fn budget(&self) -> Option<&Budget> {
        self.0.budget.as_ref()
    }

    /// The send rate in its slot.
    #[must_use]
    pub fn send_rate(&self) -> Option<&SendRate> {
        self.0.send_rate.as_ref()
    }

    /// Everything about it at this moment, slot by slot: what is live, not what somebody meant to configure. Takes short
    /// locks; for consoles and scrapers, not for the path of calls.
    ///
    /// ```
    /// use mainstay_resilience::{Policy, Retry};
    ///
    /// let retry = Retry::standard().attempts(4).build().unwrap();
    /// let policy = Policy::builder("search").idempotent().retry(retry).build().unwrap();
    /// let snapshot = policy.snapshot();
    /// assert_eq!((snapshot.max_attempts, snapshot.retries, snapshot.rejected), (4, 0, 0));
    /// assert!(snapshot.breaker.is_none() && snapshot.budget.is_some());
    /// ```
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
            attempt_bulkhead: core.attempt_bulkhead.as_ref().map(Bulkhead::snapshot),
            send_rate: core.send_rate.as_ref().map(SendRate::snapshot),
            budget: core.budget.as_ref().map(Budget::snapshot),
            breaker: core.breaker.as_ref().map(Breaker::snapshot),
            retries,
            hedges,
            rejected,
            last_rejected: core.stats.last(),
        }
    }
}
