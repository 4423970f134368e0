//! What a guarded call can end with besides a value.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use mainstay_clock::ConfigError;
use mainstay_clock::Instant;

use crate::event::Kind;

/// Longest time of any setting that waits or bounds: beyond a day somebody meant another unit.
pub(crate) const MAX_TIME: Duration = Duration::from_secs(86_400);

/// Refuses a time of zero, and one so long that somebody meant another unit.
pub(crate) fn check_time(field: &'static str, d: Duration) -> Result<(), ConfigError> {
    if d.is_zero() || d > MAX_TIME {
        let allowed = format!("more than 0 s, at most {MAX_TIME:?}");
        return Err(ConfigError::new(field, format!("{d:?}"), allowed));
    }
    Ok(())
}

/// Why a policy refused to start an operation.
///
/// A rejection is local: the operation was not started, so it is never evidence for a breaker, never
/// retried and never costs budget.
///
/// ```
/// use mainstay_resilience::{Reason, Rejected};
///
/// let full = Rejected::new("mail".into(), Reason::Full { in_flight: 5, queued: 2, limit: 5 });
/// assert_eq!(full.why().code(), "full"); // for labels and logs
/// assert_eq!(full.to_string(), "`mail` rejected the call: full: 5 of 5 in flight, 2 queued");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The retry budget is spent.
    Budget,
    /// The deadline is over, or too near for the operation to finish.
    Deadline,
    /// A person holds the breaker open.
    ForcedOpen {
        /// What the person wrote.
        why: Arc<str>,
    },
    /// The bulkhead and its queue are full.
    Full {
        /// Calls in flight.
        in_flight: u32,
        /// Callers that wait.
        queued: u32,
        /// Permits.
        limit: u32,
    },
    /// The breaker is open, or half-open without a free permit.
    Open,
    /// Above the rate limit.
    Rate,
    /// Shed: the limiter or the priority rule chose this call.
    Shed,
    /// No permit became free within the bulkhead's wait limit.
    Waited {
        /// Calls in flight.
        in_flight: u32,
        /// Callers that still wait.
        queued: u32,
        /// Permits.
        limit: u32,
    },
}

impl Reason {
    /// A stable name: `budget deadline forced_open full open rate shed waited`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Budget => "budget",
            Self::Deadline => "deadline",
            Self::ForcedOpen { .. } => "forced_open",
            Self::Full { .. } => "full",
            Self::Open => "open",
            Self::Rate => "rate",
            Self::Shed => "shed",
            Self::Waited { .. } => "waited",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget => f.write_str("the retry budget is spent"),
            Self::Deadline => f.write_str("the deadline leaves no time"),
            Self::ForcedOpen { why } => write!(f, "held open by a person: {why}"),
            Self::Full { in_flight, queued, limit } => {
                write!(f, "full: {in_flight} of {limit} in flight, {queued} queued")
            }
            Self::Open => f.write_str("the breaker is open"),
            Self::Rate => f.write_str("above the rate limit"),
            Self::Shed => f.write_str("shed under load"),
            Self::Waited { in_flight, queued, limit } => {
                write!(f, "no permit in time: {in_flight} of {limit} in flight, {queued} still queued")
            }
        }
    }
}

/// A refusal as data: which policy, why, since when, and when to come back.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{Breaker, Reason};
///
/// let breaker = Breaker::builder("payments").consecutive(1).build().unwrap();
/// breaker.admit().unwrap().failure();
/// let refused = breaker.admit().unwrap_err();
/// assert_eq!((refused.policy(), refused.why()), ("payments", &Reason::Open));
/// assert!(refused.retry_after().unwrap() > Duration::ZERO); // for a `Retry-After` of your own
/// assert!(refused.since().is_some());
/// ```
#[derive(Clone, Debug, thiserror::Error)]
#[error("`{policy}` rejected the call: {why}")]
pub struct Rejected {
    why: Reason,
    policy: Arc<str>,
    retry_after: Option<Duration>,
    /// Zero where it is not known: every guarded call returns room for a refusal, so it shall be small.
    since: Instant,
    /// The kind of part that has told its listener of it: the policy around it tells of the same refusal again.
    pub(crate) told_by: Option<Kind>,
}

/// Who has been told of it makes no difference.
impl PartialEq for Rejected {
    fn eq(&self, other: &Self) -> bool {
        let all = |r: &Self| (r.retry_after, r.since);
        self.why == other.why && self.policy == other.policy && all(self) == all(other)
    }
}

impl Eq for Rejected {}

impl Rejected {
    /// A refusal by the policy named `policy`.
    #[must_use]
    pub fn new(policy: Arc<str>, why: Reason) -> Self {
        Self { why, policy, retry_after: None, since: Instant::ZERO, told_by: None }
    }

    /// The same refusal with advice when to come back.
    #[must_use]
    pub fn with_retry_after(mut self, d: Option<Duration>) -> Self {
        self.retry_after = d;
        self
    }

    /// The same refusal with the instant at which its cause began.
    #[must_use]
    pub fn with_since(mut self, since: Option<Instant>) -> Self {
        self.since = since.unwrap_or(Instant::ZERO);
        self
    }

    /// Why.
    #[must_use]
    pub fn why(&self) -> &Reason {
        &self.why
    }

    /// The name of the policy that refused.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// When to come back, if known.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Since when calls are refused for this reason, if known.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        (self.since != Instant::ZERO).then_some(self.since)
    }
}

/// Which bound cut an operation off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum TimeoutKind {
    /// The bound of one attempt.
    Attempt,
    /// The bound of the whole call.
    Deadline,
}

/// An operation was cut off while it ran: nobody knows whether it took effect.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{CallContext, Policy, TimeoutKind};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let policy = Policy::builder("search").attempt_timeout(Duration::from_millis(5)).build().unwrap();
/// let never = |_| std::future::pending::<Result<(), std::io::Error>>();
/// let failed = policy.call(&CallContext::new(), never).await.unwrap_err();
/// let cut = failed.timeout().unwrap();
/// assert_eq!((cut.kind(), failed.was_started()), (TimeoutKind::Attempt, true));
/// assert!(cut.after() >= Duration::from_millis(4)); // by the tick of about 1 ms
/// # });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cut off by the {} after {after:?}; whether it took effect is unknown", self.name())]
pub struct Timeout {
    kind: TimeoutKind,
    after: Duration,
}

impl Timeout {
    pub(crate) fn new(kind: TimeoutKind, after: Duration) -> Self {
        Self { kind, after }
    }

    /// Which bound.
    #[must_use]
    pub fn kind(&self) -> TimeoutKind {
        self.kind
    }

    /// How long the attempt ran.
    #[must_use]
    pub fn after(&self) -> Duration {
        self.after
    }

    fn name(self) -> &'static str {
        match self.kind {
            TimeoutKind::Attempt => "attempt timeout",
            TimeoutKind::Deadline => "deadline",
        }
    }
}

/// Why no further attempt was made after a failure that could have been retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stop {
    /// The server's advice lies beyond `max_retry_after` or the deadline, or it said stop.
    Advice,
    /// All attempts were made.
    Attempts,
    /// The retry budget is spent.
    Budget,
    /// The next attempt could not finish before the deadline.
    Deadline,
    /// The last failure was not of a kind to retry, or the operation must not be repeated.
    NotRetryable,
    /// The time for all attempts together is used up.
    TotalTime,
    /// The predicate of the retry said no.
    When,
}

/// A call that was, or could have been, retried: its first and last cause, and why it stopped.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{CallContext, CallError, Policy, Retry, Stop, Verdict};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let retry = Retry::constant(Duration::from_millis(1)).attempts(2).build().unwrap();
/// let policy = Policy::builder("shop").idempotent().retry(retry).build().unwrap();
/// let all = |_: &Result<(), &str>| Verdict::RETRYABLE;
/// let words = ["reset", "refused"];
/// let cx = CallContext::new();
/// let failed = policy.call_with(&cx, all, |a| async move { Err::<(), _>(words[a.number() as usize - 1]) }).await;
/// let Err(CallError::GaveUp(gave_up)) = failed else { panic!("two attempts failed") };
/// assert_eq!(gave_up.first().and_then(CallError::inner), Some(&"reset"));
/// assert_eq!(gave_up.last().inner(), Some(&"refused"));
/// assert_eq!((gave_up.attempts(), gave_up.stop()), (2, Stop::Attempts));
/// # });
/// ```
#[derive(Debug)]
pub struct GaveUp<E> {
    pub(crate) first: Option<CallError<E>>,
    pub(crate) last: CallError<E>,
    pub(crate) attempts: u32,
    pub(crate) stop: Stop,
    pub(crate) retry_after: Option<Duration>,
}

impl<E> GaveUp<E> {
    /// The failure of the first attempt, when there was more than one, or the second was refused. `None` also when that
    /// attempt ended with an `Ok` that counted as a failure, and no later one with an error.
    #[must_use]
    pub fn first(&self) -> Option<&CallError<E>> {
        self.first.as_ref()
    }

    /// The failure of the last attempt, or the refusal of the one that was to follow it.
    #[must_use]
    pub fn last(&self) -> &CallError<E> {
        &self.last
    }

    /// The failure of the last attempt, by value.
    #[must_use]
    pub fn into_last(self) -> CallError<E> {
        self.last
    }

    /// Attempts made, the first included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Why no further attempt was made.
    #[must_use]
    pub fn stop(&self) -> Stop {
        self.stop
    }
}

/// How a guarded call failed. `E` is the operation's own error, never turned into text.
///
/// ```
/// use mainstay_resilience::{CallError, Reason, Rejected};
///
/// let refused: CallError<std::io::Error> = Rejected::new("payments".into(), Reason::Open).into();
/// assert_eq!(refused.code(), "open");
/// assert!(!refused.was_started());
/// assert!(refused.inner().is_none());
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum CallError<E> {
    /// Retries ended without success.
    GaveUp(Box<GaveUp<E>>),
    /// The operation failed.
    Inner(E),
    /// A policy refused; the operation was not started.
    Rejected(Rejected),
    /// The operation was cut off.
    Timeout(Timeout),
}

impl<E> CallError<E> {
    /// The last cause: looks through [`CallError::GaveUp`], so that a `match` on it has three arms.
    #[must_use]
    pub fn last(&self) -> &Self {
        match self {
            Self::GaveUp(gave_up) => gave_up.last.last(),
            _ => self,
        }
    }

    /// The operation's error, if that is the last cause.
    #[must_use]
    pub fn inner(&self) -> Option<&E> {
        match self.last() {
            Self::Inner(error) => Some(error),
            _ => None,
        }
    }

    /// The operation's error by value, if that is the last cause.
    ///
    /// ```
    /// use std::io::{Error, ErrorKind};
    /// use mainstay_resilience::{CallContext, Policy};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = Policy::builder("files").build().unwrap();
    /// let missing = |_| async { Err::<(), _>(Error::from(ErrorKind::NotFound)) };
    /// let failed = policy.call(&CallContext::new(), missing).await.unwrap_err();
    /// assert_eq!(failed.into_inner().unwrap().kind(), ErrorKind::NotFound); // its own type, whole
    /// # });
    /// ```
    #[must_use]
    pub fn into_inner(self) -> Option<E> {
        match self {
            Self::Inner(error) => Some(error),
            Self::GaveUp(gave_up) => gave_up.last.into_inner(),
            Self::Rejected(_) | Self::Timeout(_) => None,
        }
    }

    /// The refusal, if that is the last cause.
    #[must_use]
    pub fn rejected(&self) -> Option<&Rejected> {
        match self.last() {
            Self::Rejected(rejected) => Some(rejected),
            _ => None,
        }
    }

    /// The cut-off, if that is the last cause.
    #[must_use]
    pub fn timeout(&self) -> Option<Timeout> {
        match self.last() {
            Self::Timeout(timeout) => Some(*timeout),
            _ => None,
        }
    }

    /// Attempts that were started; zero when the call was refused.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        match self {
            Self::GaveUp(gave_up) => gave_up.attempts,
            Self::Inner(_) | Self::Timeout(_) => 1,
            Self::Rejected(_) => 0,
        }
    }

    /// Whether the operation was started at least once. If not, it certainly had no effect; if so, only its own answer can
    /// tell, and after a timeout nobody can.
    #[must_use]
    pub fn was_started(&self) -> bool {
        self.attempts() > 0
    }

    /// When to come back, if a policy or the server said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::GaveUp(gave_up) => gave_up.retry_after.or_else(|| gave_up.last.retry_after()),
            Self::Rejected(rejected) => rejected.retry_after(),
            Self::Inner(_) | Self::Timeout(_) => None,
        }
    }

    /// A stable name of the last cause: `inner`, `timeout`, `deadline_timeout` or a [`Reason::code`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self.last() {
            Self::Rejected(rejected) => rejected.why.code(),
            Self::Timeout(Timeout { kind: TimeoutKind::Attempt, .. }) => "timeout",
            Self::Timeout(_) => "deadline_timeout",
            Self::Inner(_) | Self::GaveUp(_) => "inner",
        }
    }
}

impl<E> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GaveUp(gave_up) => write!(f, "gave up after {} attempts", gave_up.attempts),
            Self::Inner(_) => f.write_str("the operation failed"),
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Timeout(timeout) => timeout.fmt(f),
        }
    }
}

impl<E: StdError + 'static> StdError for CallError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::GaveUp(gave_up) => Some(&gave_up.last),
            Self::Inner(error) => Some(error),
            Self::Rejected(_) | Self::Timeout(_) => None,
        }
    }
}

impl<E> From<Rejected> for CallError<E> {
    fn from(rejected: Rejected) -> Self {
        Self::Rejected(rejected)
    }
}

impl<E> From<Timeout> for CallError<E> {
    fn from(timeout: Timeout) -> Self {
        Self::Timeout(timeout)
    }
}
