//! What an ended operation means to the policies around it.

use std::convert::Infallible;
use std::time::Duration;

use crate::CallError;

/// What an ended operation means.
///
/// | verdict | the breaker | the retry | adaptive limit |
/// |---|---|---|---|
/// | `Ok` | a success | done | a sample |
/// | `Fail { retryable: true }` | a failure | may try again | nothing |
/// | `Fail { retryable: false }` | a failure | stops | nothing |
/// | `Throttled { after }` | a failure | may try again, not before `after` | a drop |
/// | `Ignore` | no evidence | stops | nothing |
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{CallContext, Policy, Retry, Verdict};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let retry = Retry::constant(Duration::from_millis(1)).attempts(2).build().unwrap();
/// let policy = Policy::builder("shop").idempotent().retry(retry).build().unwrap();
/// let mut attempts = Vec::new();
/// for status in [200, 404, 501, 503] {
///     let verdict = |result: &Result<(), u16>| result.map_or_else(|s| Verdict::of_http(s, None), |()| Verdict::Ok);
///     let answer = |_| async move { if status < 400 { Ok(()) } else { Err(status) } };
///     let result = policy.call_with(&CallContext::new(), verdict, answer).await;
///     attempts.push(result.map_or_else(|error| error.attempts(), |()| 1));
/// }
/// assert_eq!(attempts, [1, 1, 1, 2]); // only what another attempt may cure is repeated
/// # });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It failed, and the dependency is to blame.
    Fail {
        /// Whether another attempt may succeed.
        retryable: bool,
    },
    /// It says nothing about the dependency: a validation error, a business no, most 4xx.
    Ignore,
    /// It succeeded.
    Ok,
    /// The dependency asked for less. Counts as a failure, may be retried after `after`.
    Throttled {
        /// The server's advice (`Retry-After`, gRPC push-back), already a duration; `None` without advice.
        after: Option<Duration>,
    },
}

impl Verdict {
    /// A failure that may be retried.
    pub const RETRYABLE: Self = Self::Fail { retryable: true };
    /// A failure that must not be retried.
    pub const FATAL: Self = Self::Fail { retryable: false };

    /// The verdict on an HTTP status: below 400 is `Ok`, 408 and 5xx are failures, 429 is throttling, other
    /// 4xx are ignored. 501 and 505 will not change by asking again.
    ///
    /// ```
    /// use mainstay_resilience::Verdict;
    ///
    /// assert_eq!(Verdict::of_http(404, None), Verdict::Ignore);
    /// assert_eq!(Verdict::of_http(503, None), Verdict::RETRYABLE);
    /// assert_eq!(Verdict::of_http(429, None), Verdict::Throttled { after: None });
    /// ```
    #[must_use]
    pub fn of_http(status: u16, retry_after: Option<Duration>) -> Self {
        match status {
            0..=399 => Self::Ok,
            429 => Self::Throttled { after: retry_after },
            503 if retry_after.is_some() => Self::Throttled { after: retry_after },
            501 | 505 => Self::FATAL,
            408 | 500.. => Self::RETRYABLE,
            _ => Self::Ignore,
        }
    }

    /// Whether a breaker counts this against the dependency.
    #[must_use]
    pub fn is_failure(self) -> bool {
        matches!(self, Self::Fail { .. } | Self::Throttled { .. })
    }
}

/// Says what an error means. Implement it on your error type, or pass a closure to `call_with`.
///
/// ```
/// use mainstay_resilience::{Classify, Verdict};
///
/// enum PaymentError { Declined, Unreachable }
///
/// impl Classify for PaymentError {
///     fn verdict(&self) -> Verdict {
///         match self {
///             Self::Declined => Verdict::Ignore,
///             Self::Unreachable => Verdict::RETRYABLE,
///         }
///     }
/// }
/// assert!(PaymentError::Unreachable.verdict().is_failure());
/// assert!(!PaymentError::Declined.verdict().is_failure());
/// ```
pub trait Classify {
    /// What this error means.
    fn verdict(&self) -> Verdict;

    /// Whether this is the refusal of a policy further in: an open breaker, a full bulkhead. No evidence for the policies
    /// around it ([`verdict`](Self::verdict) says [`Verdict::Ignore`]), and no answer of the dependency either: a
    /// [`Fallback`](crate::fallback::Fallback) for outages covers it. [`CallError`] says so; an error of your own that
    /// wraps one should pass it on.
    ///
    /// ```
    /// use mainstay_resilience::{CallError, Classify, Reason, Rejected, Verdict};
    ///
    /// enum ShopError { Stock(CallError<std::io::Error>), UnknownArticle }
    ///
    /// impl Classify for ShopError {
    ///     fn verdict(&self) -> Verdict {
    ///         match self {
    ///             Self::Stock(below) => below.verdict(),
    ///             Self::UnknownArticle => Verdict::Ignore,
    ///         }
    ///     }
    ///     fn is_refusal(&self) -> bool {
    ///         matches!(self, Self::Stock(below) if below.is_refusal())
    ///     }
    /// }
    /// assert!(ShopError::Stock(Rejected::new("stock".into(), Reason::Open).into()).is_refusal());
    /// assert!(!ShopError::UnknownArticle.is_refusal());
    /// ```
    fn is_refusal(&self) -> bool {
        false
    }
}

impl<E: Classify + ?Sized> Classify for &E {
    fn verdict(&self) -> Verdict {
        (**self).verdict()
    }

    fn is_refusal(&self) -> bool {
        (**self).is_refusal()
    }
}

impl<E: Classify + ?Sized> Classify for Box<E> {
    fn verdict(&self) -> Verdict {
        (**self).verdict()
    }

    fn is_refusal(&self) -> bool {
        (**self).is_refusal()
    }
}

impl Classify for Infallible {
    fn verdict(&self) -> Verdict {
        match *self {}
    }
}

/// Misuse and refusals of the own side are ignored or final; what the network did may be retried.
impl Classify for std::io::Error {
    fn verdict(&self) -> Verdict {
        use std::io::ErrorKind as K;
        match self.kind() {
            K::InvalidInput | K::InvalidData | K::NotFound | K::AlreadyExists => Verdict::Ignore,
            K::PermissionDenied | K::Unsupported | K::OutOfMemory => Verdict::FATAL,
            _ => Verdict::RETRYABLE,
        }
    }
}

/// An inner policy's local refusal is no evidence for an outer one: otherwise one outage trips the chain.
impl<E: Classify> Classify for CallError<E> {
    fn verdict(&self) -> Verdict {
        match self.last() {
            Self::Inner(error) => error.verdict(),
            Self::Timeout(_) => Verdict::RETRYABLE,
            Self::Rejected(_) | Self::GaveUp(_) => Verdict::Ignore,
        }
    }

    fn is_refusal(&self) -> bool {
        match self.last() {
            Self::Rejected(_) => true,
            Self::Inner(error) => error.is_refusal(),
            Self::Timeout(_) | Self::GaveUp(_) => false,
        }
    }
}

/// The closure form of [`Classify`]: sees the whole result, so that an `Ok` response may be a failure.
#[inline(always)]
pub(crate) fn by_trait<T, E: Classify>(result: &Result<T, E>) -> Verdict {
    match result {
        Ok(_) => Verdict::Ok,
        Err(error) => error.verdict(),
    }
}
