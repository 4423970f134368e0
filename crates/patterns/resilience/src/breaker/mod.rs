//! Stops calling what does not answer, and finds out when it does again.
//!
//! The state is one atomic word, `generation << 8 | state`. An admission is stamped with it; a result whose
//! stamp is no longer current is counted as late and decides nothing, so neither a straggler nor a hung probe
//! can open or close a breaker. A closed success costs two loads and one add on a line of the own thread;
//! windows are summed only when a failure, a slow call or a reader asks.
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
    /// Starts a breaker named `name`.
    pub fn builder(name: impl Into<Arc<str>>) -> BreakerBuilder {
        BreakerBuilder::new(name.into())
    }

    fn of(core: Core) -> Self {
        Self(Arc::new(core))
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0
    }

    /// Admits or refuses one call. Takes no lock and allocates nothing while closed.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Open`](crate::Reason::Open) or `ForcedOpen`, and when to come back.
    #[inline(always)]
    pub fn admit(&self) -> Result<Ticket<'_>, Rejected> {
        match self.0.admit_closed() {
            Some(raw) => Ok(Ticket::of(&self.0, raw)),
            None => self.0.admit_slow().map(|raw| Ticket::of(&self.0, raw)),
        }
    }

    /// As [`admit`](Self::admit), with a ticket that may outlive the borrow.
    ///
    /// # Errors
    /// As for [`admit`](Self::admit).
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
    #[must_use]
    pub fn snapshot(&self) -> BreakerSnapshot {
        self.0.snapshot()
    }

    /// The transitions from now on.
    pub fn transitions(&self) -> Transitions {
        Transitions::new(self.clone())
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> BreakerConfig {
        self.0.config()
    }

    /// Refuses every call until [`release`](Self::release) or until `ttl` is over.
    pub fn force_open(&self, why: &str, ttl: Option<Duration>) {
        self.0.hold(State::ForcedOpen, why, ttl);
    }

    /// Lets every call pass and counts none, until [`release`](Self::release) or until `ttl` is over.
    pub fn force_closed(&self, why: &str, ttl: Option<Duration>) {
        self.0.hold(State::ForcedClosed, why, ttl);
    }

    /// Lets every call pass and counts them without ever tripping, until [`release`](Self::release) or until
    /// `ttl` is over.
    pub fn metrics_only(&self, why: &str, ttl: Option<Duration>) {
        self.0.hold(State::MetricsOnly, why, ttl);
    }

    /// Ends a person's hold: closed, with an empty window. Without a hold it does nothing.
    pub fn release(&self) {
        self.0.release();
    }

    /// Declares the dependency recovered: closed, with an empty window, whatever the state was.
    pub fn reset(&self, why: &str) {
        self.0.reset(why);
    }

    /// Changes settings while it runs. State, generation, window and running timers stay; new thresholds
    /// hold from the next result on. `f` runs outside the breaker's locks.
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
