//! The second-best answer.
//!
//! A fallback stands outside everything else: inside a retry it would turn a failure into a success that
//! nobody repeats, inside a breaker it would hide the failure from it. So it is no slot of a policy but a
//! function over the result of one.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{CallError, Classify, ConfigError, Verdict};

/// Which failures get the second-best answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum When {
    /// All but those that say nothing about the dependency ([`Verdict::Ignore`]): a "not found" or a
    /// declined card is an answer, not an outage. A refusal is none, also that of a policy further in
    /// ([`Classify::is_refusal`]).
    #[default]
    Outage,
    /// Only refusals of the call's own policy: the operation was not started.
    Refused,
    /// Every failure.
    Always,
}

/// Answers in place of a call that failed.
///
/// Guarantees: runs at most once per call, after everything else has given up, and sees the error; if it
/// fails itself, both errors are reported. Does not guarantee: that it is quick; give it a policy of its own
/// if it can hang.
///
/// ```
/// use mainstay_resilience::{CallContext, CallError, Policy, fallback::Fallback};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let policy = Policy::builder("prices").build().unwrap();
/// let fallback = Fallback::new("yesterday's prices").unwrap();
/// let cx = CallContext::new();
/// let live = policy.call(&cx, |_| async { Err::<u32, _>(std::io::Error::from(std::io::ErrorKind::TimedOut)) });
/// let price = fallback.call(live, |_error: &CallError<std::io::Error>| async { Ok(42) }).await.unwrap();
/// assert_eq!((price, fallback.used()), (42, 1));
/// # });
/// ```
///
/// # Defaults
/// [`When::Outage`].
#[derive(Clone)]
pub struct Fallback(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    when: When,
    used: AtomicU64,
    failed: AtomicU64,
}

impl Fallback {
    /// A fallback named `name` for outages.
    ///
    /// # Errors
    /// [`ConfigError`] for an empty name: an answer that nobody can tell apart is worse than none.
    pub fn new(name: impl Into<Arc<str>>) -> Result<Self, ConfigError> {
        Self::when(name, When::default())
    }

    /// A fallback named `name` for the failures that `when` says.
    ///
    /// # Errors
    /// [`ConfigError`] for an empty name.
    ///
    /// ```
    /// use std::io::{Error, ErrorKind};
    /// use mainstay_resilience::fallback::{Fallback, When};
    /// use mainstay_resilience::{CallContext, CallError, Policy};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = Policy::builder("prices").build().unwrap();
    /// let refused_only = Fallback::when("cached prices", When::Refused).unwrap();
    /// let cx = CallContext::new();
    /// let live = policy.call(&cx, |_| async { Err::<u32, _>(Error::from(ErrorKind::TimedOut)) });
    /// let failed = refused_only.call(live, |_: &CallError<Error>| async { Ok(42) }).await.unwrap_err();
    /// assert!(failed.fallback().is_none()); // the operation was started: no second answer here
    /// assert_eq!(refused_only.used(), 0);
    /// # });
    /// ```
    pub fn when(name: impl Into<Arc<str>>, when: When) -> Result<Self, ConfigError> {
        let name = name.into();
        if name.is_empty() {
            return Err(ConfigError::new("name", "\"\"", "a name of at least one character"));
        }
        Ok(Self(Arc::new(Inner { name, when, used: AtomicU64::new(0), failed: AtomicU64::new(0) })))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How many calls it answered or tried to. Worth an alert: a fallback that always answers is an outage nobody sees.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// How many times it failed itself.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.0.failed.load(Ordering::Relaxed)
    }

    /// Awaits `call`; if it fails in a way that counts, awaits what `with` makes of the error. `with` is not called
    /// otherwise, so it may be expensive.
    ///
    /// # Errors
    /// [`FallbackError`] with the error of the call and, if the fallback ran, its own.
    ///
    /// # Cancel safety
    /// Dropping the future drops whichever of the two is running.
    ///
    /// ```
    /// use std::io::{Error, ErrorKind};
    /// use mainstay_resilience::{CallContext, CallError, Policy, fallback::Fallback};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let policy = Policy::builder("prices").build().unwrap();
    /// let fallback = Fallback::new("cached prices").unwrap();
    /// let cx = CallContext::new();
    /// let live = policy.call(&cx, |_| async { Err::<u32, _>(Error::from(ErrorKind::TimedOut)) });
    /// let cached = |_: &CallError<Error>| async { Err(Error::from(ErrorKind::NotFound)) };
    /// let failed = fallback.call(live, cached).await.unwrap_err();
    /// assert_eq!(failed.primary().inner().unwrap().kind(), ErrorKind::TimedOut);
    /// assert_eq!(failed.fallback().unwrap().kind(), ErrorKind::NotFound); // neither hides the other
    /// # });
    /// ```
    pub async fn call<T, E, Fut>(
        &self,
        call: impl Future<Output = Result<T, CallError<E>>>,
        with: impl FnOnce(&CallError<E>) -> Fut,
    ) -> Result<T, FallbackError<E>>
    where
        E: Classify,
        Fut: Future<Output = Result<T, E>>,
    {
        let primary = match call.await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if !self.0.when.covers(&primary) {
            return Err(FallbackError { primary, fallback: None });
        }
        self.0.used.fetch_add(1, Ordering::Relaxed);
        let second = with(&primary);
        second.await.map_err(|error| {
            self.0.failed.fetch_add(1, Ordering::Relaxed);
            FallbackError { primary, fallback: Some(error) }
        })
    }
}

impl When {
    fn covers<E: Classify>(self, error: &CallError<E>) -> bool {
        match self {
            Self::Always => true,
            Self::Refused => !error.was_started(),
            Self::Outage => match error.inner() {
                Some(inner) => inner.verdict() != Verdict::Ignore || inner.is_refusal(),
                None => true,
            },
        }
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fallback")
            .field("name", &self.0.name)
            .field("used", &self.used())
            .finish_non_exhaustive()
    }
}

/// A call that failed, and what became of its fallback.
#[derive(Debug)]
pub struct FallbackError<E> {
    primary: CallError<E>,
    fallback: Option<E>,
}

impl<E> FallbackError<E> {
    /// Why the call failed.
    #[must_use]
    pub fn primary(&self) -> &CallError<E> {
        &self.primary
    }

    /// Why the fallback failed; `None` when it does not cover this failure.
    #[must_use]
    pub fn fallback(&self) -> Option<&E> {
        self.fallback.as_ref()
    }

    /// The error of the call by value.
    #[must_use]
    pub fn into_primary(self) -> CallError<E> {
        self.primary
    }
}

impl<E> fmt::Display for FallbackError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fallback {
            Some(_) => f.write_str("the call failed and so did its fallback"),
            None => f.write_str("the call failed; its fallback does not cover this"),
        }
    }
}

impl<E: StdError + 'static> StdError for FallbackError<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.primary)
    }
}
