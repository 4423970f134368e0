//! Where limits and hedges plug into a policy.
//!
//! The order of a policy is fixed; these are the two slots whose content is not this module's business:
//!
//! - A [`Limiter`] decides about one logical call before it may queue, and hears exactly once how every
//!   admitted call ended, drops included. Three slots, asked outside in: [`LimitSlot`].
//! - A [`HedgePlan`] says how long a first attempt may run before a second one starts beside it. The policy
//!   itself races them: it asks for the delay when the first attempt is first `Pending`, arms one timer,
//!   spends the budget, starts the second attempt (its own breaker ticket, its own timeout), lets the first
//!   success win, drops the loser (its ticket is abandoned), and returns the first attempt's error when both
//!   fail. An attempt that fails before the delay starts the hedge at once. A plan is asked only for
//!   operations that are declared idempotent.
//!
//! A breaker has two seams of its own, for whoever looks at many of them at once (a fleet): a [`ProbeGate`]
//! is asked before a half-open breaker lets a probe pass, and `Breaker::prearm(factor, ttl)` lowers its
//! thresholds for a while without ever opening it.
//!
//! A fallback needs no slot: it is outermost, so it is a function over [`Policy::call`](crate::Policy::call).

use std::fmt;
use std::time::Duration;

use mainstay_clock::Instant;

use crate::{CallContext, Outcome, Rejected};

/// The limit slots of a policy, outside in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LimitSlot {
    /// Client throttling by the share of accepted calls.
    Throttle,
    /// Calls per time.
    Rate,
    /// Adaptive concurrency and priority shedding.
    Adaptive,
}

impl LimitSlot {
    /// Number of slots.
    pub(crate) const COUNT: usize = 3;

    pub(crate) fn index(self) -> usize {
        match self {
            Self::Throttle => 0,
            Self::Rate => 1,
            Self::Adaptive => 2,
        }
    }
}

/// What a limiter is asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Ask<'a> {
    /// Priority, tenant and deadline of the call.
    pub cx: &'a CallContext,
    /// The coarse tick; a limiter that needs more reads its own clock.
    pub now: Instant,
}

/// An admission. What the number means is the limiter's own affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a number and nothing else, for ever")]
pub struct Pass(pub u64);

/// How an admitted call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Sample {
    /// How the call counted. [`Outcome::Abandoned`] and ignored ones are no measure of latency.
    pub outcome: Outcome,
    /// From admission to the end, by the coarse tick; queueing in the bulkhead included.
    pub elapsed: Duration,
    /// Whether the last attempt was refused for load ([`Verdict::Throttled`](crate::Verdict::Throttled)); then the
    /// outcome is a failure, unless a hedge or a retry made up for it.
    pub throttled: bool,
}

/// Admits calls: a rate limit, an adaptive concurrency limit, a throttle.
///
/// Both methods are on the path of every call: no lock that is held long, no allocation, no waiting.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use mainstay_resilience::policy::seam::{Ask, LimitSlot, Limiter, Pass, Sample};
/// use mainstay_resilience::{CallContext, Policy, Reason, Rejected};
///
/// /// Lets nobody in after closing time, and knows who is still inside.
/// #[derive(Debug, Default)]
/// struct Door {
///     inside: AtomicU32,
///     closed: std::sync::atomic::AtomicBool,
/// }
///
/// impl Limiter for Door {
///     fn admit(&self, _: &Ask<'_>) -> Result<Pass, Rejected> {
///         if self.closed.load(Ordering::Relaxed) {
///             return Err(Rejected::new("door".into(), Reason::Shed));
///         }
///         Ok(Pass(u64::from(self.inside.fetch_add(1, Ordering::Relaxed))))
///     }
///
///     fn done(&self, _: Pass, _: Sample) {
///         self.inside.fetch_sub(1, Ordering::Relaxed);
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let door = Arc::new(Door::default());
/// let policy = Policy::builder("shop").limit(LimitSlot::Adaptive, door.clone()).build().unwrap();
/// let cx = CallContext::new();
/// let inside = || async { Ok::<_, std::io::Error>(door.inside.load(Ordering::Relaxed)) };
/// assert_eq!(policy.call(&cx, |_| inside()).await.unwrap(), 1);
/// door.closed.store(true, Ordering::Relaxed);
/// assert_eq!(policy.call(&cx, |_| inside()).await.unwrap_err().code(), "shed");
/// assert_eq!(door.inside.load(Ordering::Relaxed), 0);
/// # });
/// ```
pub trait Limiter: Send + Sync + fmt::Debug {
    /// Admits or refuses one logical call.
    ///
    /// # Errors
    /// The refusal, with this limiter's name and, if known, when to come back.
    fn admit(&self, ask: &Ask<'_>) -> Result<Pass, Rejected>;

    /// The call that got `pass` has ended. Called exactly once per admission, also when the call was
    /// refused further inside ([`Outcome::Ignored`]), dropped ([`Outcome::Abandoned`]) or panicked (a failure).
    fn done(&self, pass: Pass, sample: Sample);
}

/// When to start a second attempt.
pub trait HedgePlan: Send + Sync + fmt::Debug {
    /// How long a first attempt may run before a second starts. `None`: do not hedge now.
    fn delay(&self, now: Instant) -> Option<Duration>;

    /// An attempt succeeded after `elapsed` (coarse tick).
    fn succeeded(&self, now: Instant, elapsed: Duration);
}

/// Rations probes beyond one breaker. Asked outside every lock, only when a probe would otherwise pass.
pub trait ProbeGate: Send + Sync + fmt::Debug {
    /// Lets one probe of the breaker named `breaker` pass, or says after how long to ask again.
    ///
    /// # Errors
    /// How long until a probe may pass, if known.
    fn admit(&self, breaker: &str, now: Instant) -> Result<(), Option<Duration>>;
}
