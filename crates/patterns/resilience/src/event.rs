//! What policies tell the outside world. The guide `docs/events-and-metrics.md` has the whole table.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::breaker::Transition;
use crate::{Rejected, TimeoutKind};

/// What kind of policy an event comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// A breaker.
    Breaker,
    /// A retry budget.
    Budget,
    /// A bulkhead partition.
    Bulkhead,
    /// A hedge.
    Hedge,
    /// A rate or concurrency limit.
    Limit,
    /// A whole policy.
    Policy,
}

/// How an ended call counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Outcome {
    /// Dropped before it ended.
    Abandoned,
    /// It failed.
    Failure,
    /// It ended without evidence.
    Ignored,
    /// Its result came from an older generation of the breaker and was dropped.
    Late,
    /// It succeeded, but slowly.
    SlowSuccess,
    /// It succeeded.
    Success,
    /// It was cut off.
    Timeout(TimeoutKind),
}

/// Something that happened. Borrowed: a listener copies what it keeps.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use mainstay_resilience::{CallContext, Event, Listener, Policy, Retry, Source};
///
/// #[derive(Debug, Default)]
/// struct Told(Mutex<Vec<String>>);
///
/// impl Listener for Told {
///     fn event(&self, source: &Source, event: &Event<'_>) {
///         let told = match event {
///             Event::Retry { attempt, .. } => format!("{}: attempt {attempt} failed", source.name()),
///             Event::Call { attempts, .. } => format!("{}: {attempts} attempts", source.name()),
///             _ => return,
///         };
///         self.0.lock().unwrap().push(told);
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let told = Arc::new(Told::default());
/// let retry = Retry::constant(std::time::Duration::from_millis(1)).build().unwrap();
/// let policy = Policy::builder("stock").idempotent().retry(retry).listener(told.clone()).build().unwrap();
/// let second_time = |a: mainstay_resilience::Attempt<'_>| {
///     let fails = a.number() == 1;
///     async move { if fails { Err(std::io::Error::from(std::io::ErrorKind::TimedOut)) } else { Ok(()) } }
/// };
/// policy.call(&CallContext::new(), second_time).await.unwrap();
/// assert_eq!(*told.0.lock().unwrap(), ["stock: attempt 1 failed", "stock: 2 attempts"]);
/// # });
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A call ended. From a breaker: one attempt; from a policy: the whole call.
    Call {
        /// How it counted.
        outcome: Outcome,
        /// How long it took, by the coarse tick unless the breaker was built with precise timing.
        elapsed: Duration,
        /// Attempts made; 1 from a breaker.
        attempts: u32,
    },
    /// A second attempt was started beside a slow one.
    Hedged {
        /// How long the first had been running.
        after: Duration,
    },
    /// A hedge ended as the winner.
    HedgeWon,
    /// The listener was so slow that this many transitions of a breaker could not be kept for it.
    Missed {
        /// How many.
        transitions: u64,
    },
    /// A call was refused.
    Rejected(&'a Rejected),
    /// An attempt failed and another follows.
    Retry {
        /// Number of the attempt that failed, from 1.
        attempt: u32,
        /// How long until the next one.
        delay: Duration,
    },
    /// A breaker changed its state.
    Transition(&'a Transition),
}

/// Who speaks: the kind and the configured name, never a key or an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    kind: Kind,
    name: Arc<str>,
    keyed: bool,
}

impl Source {
    pub(crate) fn new(kind: Kind, name: &Arc<str>) -> Self {
        Self { kind, name: Arc::clone(name), keyed: false }
    }

    /// One of many with this name.
    pub(crate) fn keyed(self) -> Self {
        Self { keyed: true, ..self }
    }

    /// Whether it is the breaker of one key of a [`Registry`](crate::breaker::Registry): many sources have this name, and
    /// each has a state of its own.
    ///
    /// ```
    /// use std::sync::{Arc, Mutex};
    /// use std::time::Duration;
    /// use mainstay_resilience::{Breaker, Event, Listener, Source};
    ///
    /// #[derive(Debug, Default)]
    /// struct Log(Mutex<Vec<(String, bool)>>);
    ///
    /// impl Listener for Log {
    ///     fn event(&self, source: &Source, _: &Event<'_>) {
    ///         self.0.lock().unwrap().push((source.name().to_owned(), source.is_keyed()));
    ///     }
    /// }
    ///
    /// let log = Arc::new(Log::default());
    /// let hosts = Breaker::builder("upstream").listener(log.clone()).keyed(100, Duration::from_secs(600)).unwrap();
    /// hosts.get("10.0.0.1").force_open("maintenance", None);
    /// assert_eq!(*log.0.lock().unwrap(), [("upstream".to_owned(), true)]);
    /// ```
    #[must_use]
    pub fn is_keyed(&self) -> bool {
        self.keyed
    }

    /// The kind of policy.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Hears events. Called outside every lock; a panic in it is caught and dropped, and what it does to a
/// policy from within is allowed. A slow listener slows the calls it hears.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use mainstay_resilience::{Breaker, Event, Listener, Source};
///
/// #[derive(Debug, Default)]
/// struct Names(Mutex<Vec<String>>);
///
/// impl Listener for Names {
///     fn event(&self, source: &Source, event: &Event<'_>) {
///         if let Event::Transition(t) = event {
///             self.0.lock().unwrap().push(format!("{} is {}", source.name(), t.to()));
///         }
///     }
/// }
///
/// let names = Arc::new(Names::default());
/// let breaker = Breaker::builder("payments").listener(names.clone()).build().unwrap();
/// breaker.force_open("maintenance", None);
/// assert_eq!(*names.0.lock().unwrap(), ["payments is forced_open"]);
/// ```
pub trait Listener: Send + Sync + fmt::Debug {
    /// Something happened.
    fn event(&self, source: &Source, event: &Event<'_>);

    /// Called once when a policy is built: returns the listener that shall hear this policy, so that an
    /// adapter can look up its counters once instead of per call. `None`: this one.
    fn bind(&self, source: &Source) -> Option<Arc<dyn Listener>> {
        let _ = source;
        None
    }
}

/// A listener bound to its source, or none.
#[derive(Clone, Debug)]
pub(crate) struct Ear(Option<Arc<(Source, Arc<dyn Listener>)>>);

impl Ear {
    pub(crate) fn new(kind: Kind, name: &Arc<str>, listener: Option<&Arc<dyn Listener>>) -> Self {
        Self::of(Source::new(kind, name), listener)
    }

    pub(crate) fn of(source: Source, listener: Option<&Arc<dyn Listener>>) -> Self {
        Self(listener.map(|listener| {
            let bound = listener.bind(&source).unwrap_or_else(|| Arc::clone(listener));
            Arc::new((source, bound))
        }))
    }

    /// Whether anyone listens.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.0.is_some()
    }

    /// Tells the listener of a refusal, and marks it as told.
    #[cold]
    pub(crate) fn told(&self, mut rejected: Rejected) -> Rejected {
        self.tell(&Event::Rejected(&rejected));
        rejected.told_by = self.0.as_ref().map(|bound| bound.0.kind);
        rejected
    }

    /// Tells the listener. Its panics end here: they must not change what the call returns.
    pub(crate) fn tell(&self, event: &Event<'_>) {
        if let Some(bound) = &self.0 {
            let call = std::panic::AssertUnwindSafe(|| bound.1.event(&bound.0, event));
            // A panic of a listener is the listener's affair; the panic hook has shown it.
            drop(std::panic::catch_unwind(call));
        }
    }
}
