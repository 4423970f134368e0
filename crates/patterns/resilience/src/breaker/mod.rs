//! Stops calling what does not answer, and finds out when it does again.
//!
//! The state is one atomic word, `generation << 8 | state`. An admission is stamped with it; a result whose
//! stamp is no longer current is counted as late and decides nothing, so neither a straggler nor a hung probe
//! can open or close a breaker. A closed success costs a few loads and one store on a line of the own thread;
//! windows are summed only when a failure, a slow call or a reader asks.
//!
//! # States
//!
//! | event | closed | open | half-open |
//! |---|---|---|---|
//! | a call asks | ticket | before the time is over: refused, with the time left; then one caller moves it to half-open | a free permit: probe with a lease; else refused, until the earliest lease ends |
//! | success | counted | - | one of the required; enough of them close, with an empty window |
//! | failure | counted, may open | - | opens, the next open time grows |
//! | slow success | success for one rate, slow for the other; may open | - | a failure, if slow calls trip |
//! | ignored | nothing | - | permit back, no evidence |
//! | dropped | by [`Abandoned`] | - | permit back; a failure only if that says so |
//! | lease over | - | - | permit free; what that probe reports is void |
//! | result of another generation | counted as late, decides nothing | the same | the same |
//!
//! A person's hold ([`force_open`](Breaker::force_open), [`force_closed`](Breaker::force_closed),
//! [`metrics_only`](Breaker::metrics_only)) replaces any of them until [`release`](Breaker::release) or its end; then the
//! breaker is closed, with an empty window.
//!
//! # When it opens
//!
//! ```text
//! consecutive:  failures in a row >= k
//! rates:        total >= min_calls  and  ( failures / total >= failure_rate  or  slow / total >= slow_rate )
//! blind:        nothing conclusive in the window of time  and  dropped calls in it >= min_calls
//!               other windows: dropped calls since the last conclusive result >= min_calls
//! open time:    min(cap, base * growth^(failed half-open rounds)) * (1 +- jitter)
//! ```
//!
//! # Evidence
//!
//! [`Verdict::Fail`] and [`Verdict::Throttled`] are failures, [`Verdict::Ignore`] is nothing: a validation error, a "not
//! found", a declined card say nothing about the dependency. A panic is a failure. A local refusal of another policy (a
//! full bulkhead, an open inner breaker) is never evidence, or one outage would trip the whole chain.
//!
//! # Sources
//!
//! The abandoned-call policy and the progressive half-open follow the ideas of Polly and of the crate
//! `seatbelt`; count and time windows with failure and slow rates are those of Resilience4j.

mod builder;
mod config;
mod core;
mod registry;
mod snapshot;
mod state;
mod tally;
mod ticket;
mod transitions;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use builder::BreakerBuilder;
pub use config::{Abandoned, BreakerConfig, HalfOpen, Window};
pub use registry::Registry;
pub use snapshot::{BreakerSnapshot, Lifetime};
pub use state::{Cause, Counts, State, Transition};
pub use ticket::{OwnedTicket, Ticket};
pub use transitions::{Followed, Transitions};

pub(crate) use self::core::{Core, End, Raw};
pub(crate) use ticket::{end_of, finish};

use crate::{CallError, Classify, ConfigError, Rejected, Verdict};

/// A circuit breaker. Clones share it.
///
/// Guarantees: while open it starts nothing; half-open it has at most `permits` probes in flight; results of
/// an older generation decide nothing; a dropped or panicking call gives its permit back. Not guaranteed:
/// that no call fails - it learns from failures.
///
/// ```
/// use mainstay_resilience::{Breaker, CallError, breaker::State};
/// use std::io::{Error, ErrorKind::ConnectionRefused};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let breaker = Breaker::builder("payments").consecutive(2).build().unwrap();
/// for _ in 0..2 {
///     let failed = breaker.call(|| async { Err::<(), _>(Error::from(ConnectionRefused)) }).await;
///     assert!(failed.unwrap_err().inner().is_some());
/// }
/// assert_eq!(breaker.state(), State::Open);
/// let refused = breaker.call(|| async { Ok::<_, Error>(()) }).await.unwrap_err();
/// assert_eq!(refused.code(), "open");
/// assert!(refused.retry_after().is_some());
/// # });
/// ```
#[derive(Clone)]
pub struct Breaker(Arc<Core>);

impl Breaker {
    /// Starts a breaker named `name`: the name of refusals, events, metric labels and, in a fleet, of the dependency.
    pub fn builder(name: impl Into<Arc<str>>) -> BreakerBuilder {
        BreakerBuilder::new(name.into())
    }

    fn of(core: Core) -> Self {
        Self(Arc::new(core))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0
    }

    /// Admits or refuses one call. Takes no lock and allocates nothing while closed. For calls that are no single future:
    /// tell the [`Ticket`] how it ended. Otherwise [`call`](Self::call) does.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Open`](crate::Reason::Open) or `ForcedOpen`, and when to come back.
    ///
    /// # Cancel safety
    /// A ticket that is dropped reports an abandoned call, or a failure while its thread panics; a probe's permit comes back.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    ///
    /// let breaker = Breaker::builder("feed").consecutive(1).build().unwrap();
    /// let ticket = breaker.admit().unwrap();
    /// // ... any number of reads and writes, then one verdict on all of them:
    /// ticket.failure();
    /// let refused = breaker.admit().unwrap_err();
    /// assert_eq!((refused.policy(), refused.why().code()), ("feed", "open"));
    /// ```
    #[inline(always)]
    pub fn admit(&self) -> Result<Ticket<'_>, Rejected> {
        match self.0.admit_closed() {
            Some(raw) => Ok(Ticket::of(&self.0, raw)),
            None => self.0.admit_slow().map(|raw| Ticket::of(&self.0, raw)),
        }
    }

    /// As [`admit`](Self::admit), with a ticket that may outlive the borrow: for tasks and streams.
    ///
    /// # Errors
    /// As for [`admit`](Self::admit).
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let breaker = Breaker::builder("feed").build().unwrap();
    /// let ticket = breaker.admit_owned().unwrap();
    /// let reader = tokio::spawn(async move {
    ///     // A stream is read to its end, then the call is over.
    ///     ticket.success();
    /// });
    /// reader.await.unwrap();
    /// assert_eq!(breaker.snapshot().lifetime.successes, Some(1));
    /// # });
    /// ```
    pub fn admit_owned(&self) -> Result<OwnedTicket, Rejected> {
        self.0.admit().map(|raw| OwnedTicket::new(self.clone(), raw))
    }

    /// Runs the operation that `f` makes, if admitted; `f` is not called otherwise.
    ///
    /// # Errors
    /// [`CallError::Rejected`], or [`CallError::Inner`] with the operation's own error.
    ///
    /// # Panics
    /// When the operation does; the panic counts as a failure.
    ///
    /// # Cancel safety
    /// Dropped before its first poll it has done nothing. Dropped later, the call is abandoned: a probe's
    /// permit comes back, and [`Abandoned`] says what it means.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let breaker = Breaker::builder("stock").build().unwrap();
    /// let pieces = breaker.call(|| async { Ok::<_, std::io::Error>(17) }).await.unwrap();
    /// assert_eq!((pieces, breaker.snapshot().counts.total), (17, 1));
    /// breaker.force_open("stocktaking", None);
    /// let refused = breaker.call(|| async { Ok::<_, std::io::Error>(unreachable!("not started")) }).await;
    /// assert!(!refused.unwrap_err().was_started());
    /// # });
    /// ```
    #[inline(always)]
    pub fn call<T, E, F, Fut>(
        &self,
        f: F,
    ) -> impl Future<Output = Result<T, CallError<E>>> + use<'_, T, E, F, Fut>
    where
        E: Classify,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.call_with(crate::outcome::by_trait, f)
    }

    /// As [`call`](Self::call); `classify` says what a result means, also of an `Ok`.
    ///
    /// # Errors
    /// As for [`call`](Self::call).
    ///
    /// # Cancel safety
    /// As for [`call`](Self::call).
    ///
    /// ```
    /// use mainstay_resilience::{Breaker, Verdict, breaker::State};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let breaker = Breaker::builder("shop").consecutive(2).build().unwrap();
    /// let by_status = |result: &Result<u16, std::io::Error>| match result {
    ///     Ok(status) => Verdict::of_http(*status, None),
    ///     Err(_) => Verdict::RETRYABLE,
    /// };
    /// for status in [503, 503] {
    ///     assert_eq!(breaker.call_with(by_status, || async move { Ok(status) }).await.unwrap(), status);
    /// }
    /// assert_eq!(breaker.state(), State::Open); // both came back as `Ok`
    /// # });
    /// ```
    #[inline(always)]
    pub fn call_with<T, E, F, Fut, K>(
        &self,
        classify: K,
        f: F,
    ) -> impl Future<Output = Result<T, CallError<E>>> + use<'_, T, E, F, Fut, K>
    where
        K: Fn(&Result<T, E>) -> Verdict,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        ticket::Guarded::new(&self.0, classify, f)
    }

    /// The state. A look, nothing more: an open breaker whose time is over stays open until a call asks.
    #[must_use]
    pub fn state(&self) -> State {
        self.0.state()
    }

    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Everything about it at this moment.
    ///
    /// Takes short locks and sums the window; for consoles and scrapers, not for the path of calls.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    ///
    /// let breaker = Breaker::builder("search").build().unwrap();
    /// for failed in [false, false, true, false] {
    ///     let ticket = breaker.admit().unwrap();
    ///     if failed { ticket.failure() } else { ticket.success() }
    /// }
    /// let now = breaker.snapshot();
    /// assert_eq!((now.counts.total, now.counts.failure_rate()), (4, 0.25));
    /// assert_eq!((now.generation, now.retry_in), (1, None)); // it has never changed its state
    /// ```
    #[must_use]
    pub fn snapshot(&self) -> BreakerSnapshot {
        self.0.snapshot()
    }

    /// The transitions from now on, as a stream and by [`next`](Transitions::next).
    pub fn transitions(&self) -> Transitions {
        Transitions::new(self.clone())
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> BreakerConfig {
        self.0.config()
    }

    /// Refuses every call until [`release`](Self::release) or until `ttl` is over. Refusals quote `why`. Wins over whatever
    /// the breaker has learned; calls that are under way may end and decide nothing.
    ///
    /// ```
    /// use mainstay_resilience::{Breaker, Reason};
    ///
    /// let breaker = Breaker::builder("billing").build().unwrap();
    /// breaker.force_open("migration until noon", None);
    /// let refused = breaker.admit().unwrap_err();
    /// assert_eq!(refused.why(), &Reason::ForcedOpen { why: "migration until noon".into() });
    /// breaker.release();
    /// assert!(breaker.admit().is_ok());
    /// ```
    pub fn force_open(&self, why: &str, ttl: Option<Duration>) {
        self.0.hold(State::ForcedOpen, why, ttl);
    }

    /// Lets every call pass and counts none, neither in the window nor since the start, whatever is known about the
    /// dependency, until [`release`](Self::release) or until `ttl` is over.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Breaker;
    ///
    /// let breaker = Breaker::builder("billing").consecutive(1).build().unwrap();
    /// breaker.admit().unwrap().failure();
    /// breaker.force_closed("month end: every attempt counts", Some(Duration::from_secs(3_600)));
    /// for _ in 0..100 {
    ///     breaker.admit().unwrap().failure();
    /// }
    /// let held = breaker.snapshot();
    /// assert_eq!(held.why.as_deref(), Some("month end: every attempt counts"));
    /// assert_eq!(held.counts.total, 0);
    /// ```
    pub fn force_closed(&self, why: &str, ttl: Option<Duration>) {
        self.0.hold(State::ForcedClosed, why, ttl);
    }

    /// Lets every call pass and counts them without ever tripping, until [`release`](Self::release) or until
    /// `ttl` is over.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    /// use mainstay_resilience::breaker::State;
    ///
    /// let breaker = Breaker::builder("search").consecutive(1).build().unwrap();
    /// breaker.metrics_only("a week of looking before it may act", None);
    /// for _ in 0..10 {
    ///     breaker.admit().unwrap().failure();
    /// }
    /// assert_eq!((breaker.state(), breaker.snapshot().lifetime.failures), (State::MetricsOnly, 10));
    /// ```
    pub fn metrics_only(&self, why: &str, ttl: Option<Duration>) {
        self.0.hold(State::MetricsOnly, why, ttl);
    }

    /// Ends a person's hold: closed, with an empty window. Without a hold it does nothing.
    pub fn release(&self) {
        self.0.release();
    }

    /// Declares the dependency recovered: closed, with an empty window, whatever the state was.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    ///
    /// let breaker = Breaker::builder("search").consecutive(1).build().unwrap();
    /// breaker.admit().unwrap().failure();
    /// assert!(breaker.admit().is_err());
    /// breaker.reset("restarted by hand, answers again");
    /// assert!(breaker.admit().is_ok());
    /// ```
    pub fn reset(&self, why: &str) {
        self.0.reset(why);
    }

    /// Changes settings while it runs. State, generation, window and running timers stay; new thresholds
    /// hold from the next result on. `f` runs outside the locks that calls take, and one change at a time: a change of the
    /// same breaker from within `f` would wait for itself.
    ///
    /// # Errors
    /// [`ConfigError`]; then nothing has changed. The kind of the window cannot change.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    ///
    /// let breaker = Breaker::builder("payments").build().unwrap();
    /// breaker.reconfigure(|c| { c.set_min_calls(50); }).unwrap();
    /// assert_eq!(breaker.config().min_calls(), 50);
    /// assert!(breaker.reconfigure(|c| { c.set_failure_rate(0.0); }).is_err());
    /// ```
    pub fn reconfigure(&self, f: impl FnOnce(&mut BreakerConfig)) -> Result<(), ConfigError> {
        self.0.reconfigure(f)
    }

    /// Lowers the thresholds to `factor` of their value for `ttl`: a hint from elsewhere that the dependency
    /// is in trouble. It never opens by itself; the own results still decide.
    ///
    /// # Errors
    /// [`ConfigError`] for a factor outside `(0, 1]`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Breaker;
    /// use mainstay_resilience::breaker::State;
    ///
    /// let breaker = Breaker::builder("search").failure_rate(0.5).min_calls(4).build().unwrap();
    /// breaker.prearm(0.5, Duration::from_secs(3)).unwrap();
    /// for failed in [false, false, false, true] {
    ///     let ticket = breaker.admit().unwrap();
    ///     if failed { ticket.failure() } else { ticket.success() }
    /// }
    /// assert_eq!(breaker.state(), State::Open); // a quarter is enough now
    /// ```
    pub fn prearm(&self, factor: f64, ttl: Duration) -> Result<(), ConfigError> {
        self.0.prearm(factor, ttl)
    }
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Breaker")
            .field("name", &self.0.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
