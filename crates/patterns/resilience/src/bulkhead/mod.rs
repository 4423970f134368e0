//! Bounds calls in flight per partition, so that one slow dependency cannot take every thread and socket.
//!
//! # How it decides
//!
//! Permits, holders and waiters are one atomic word. A free permit is one compare-and-swap; only who has to wait takes a
//! lock. A permit that comes free goes to the first in line and never to somebody who just arrives, so nobody starves
//! within a class; more important classes ([`Priority`](crate::Priority)) go first. Leaving the line and being granted a
//! permit at the same moment is one decision: the permit goes to the next one, and no wake-up is lost.
//!
//! | asks | free permit, empty line | full, room in line | line full | wait limit over | deadline over |
//! |---|---|---|---|---|---|
//! | [`try_acquire`](Bulkhead::try_acquire) | permit | `Full` | `Full` | - | - |
//! | [`acquire`](Bulkhead::acquire), [`call`](Bulkhead::call) | permit | waits | `Full` at once | `Waited` | `Deadline` |
//!
//! Who has been inside for how long is known between two bounds, without a timestamp per holder: holders are counted by
//! the parity of a second that turns when nobody of the other parity is left.

mod core;
mod permit;
mod queue;
mod state;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Instant, Runtime};

pub(crate) use self::core::Core;
use self::core::Parts;
pub(crate) use permit::Wait;
pub use permit::{OwnedPermit, Permit};
use state::{MAX_LIMIT, MAX_QUEUE};

use crate::event::{Ear, Kind};
use crate::{CallContext, CallError, ConfigError, Listener, Reason, Rejected};

/// One partition of permits with a bounded queue. Clones share it.
///
/// Guarantees: never more than `limit` in flight, but for holders from before a shrink; never more than the
/// queue's bound waiting; first in, first out within a priority class, more important classes first; a dropped
/// waiter or permit comes back. Not guaranteed: progress of low classes while higher ones fill the queue;
/// their wait limit frees them.
///
/// Taking a permit of one bulkhead while holding one of another can deadlock like two locks: take them always in
/// the same order, and give every queue a wait limit, as it must have here.
///
/// ```
/// use mainstay_resilience::Bulkhead;
///
/// let payments = Bulkhead::builder("payments", 1).build().unwrap();
/// let held = payments.try_acquire().unwrap();
/// let refused = payments.try_acquire().unwrap_err();
/// assert_eq!(refused.to_string(), "`payments` rejected the call: full: 1 of 1 in flight, 0 queued");
/// drop(held);
/// assert!(payments.try_acquire().is_ok());
/// ```
#[derive(Clone)]
pub struct Bulkhead(Arc<Core>);

/// Settings of a [`Bulkhead`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | limit | none, required | a guessed size bites under load |
/// | queue | none | a queue hides overload unless somebody thought about its wait |
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::Bulkhead;
///
/// let ms = Duration::from_millis;
/// let reports = Bulkhead::builder("reports", 4).queue(16, ms(250)).build().unwrap();
/// assert_eq!((reports.snapshot().limit, reports.snapshot().max_queue), (4, 16));
/// // Zero never means unlimited.
/// assert_eq!(Bulkhead::builder("reports", 0).build().unwrap_err().to_string(), "limit is `0`; allowed: 1 to 65535");
/// assert_eq!(Bulkhead::builder("reports", 4).queue(16, ms(0)).build().unwrap_err().field(), "wait");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct BulkheadBuilder {
    name: Arc<str>,
    limit: u32,
    queue: Option<(u32, Duration)>,
    runtime: Option<Runtime>,
    listener: Option<Arc<dyn Listener>>,
}

/// How long the oldest holder has been inside, between two bounds about a second apart under steady traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HolderAge {
    /// At least so long.
    pub at_least: Duration,
    /// At most so long.
    pub at_most: Duration,
}

/// A bulkhead at one moment.
///
/// ```
/// use mainstay_resilience::Bulkhead;
///
/// let pool = Bulkhead::builder("pool", 2).build().unwrap();
/// let held = pool.try_acquire().unwrap();
/// let now = pool.snapshot();
/// assert_eq!((now.in_flight, now.limit, now.queued), (1, 2, 0));
/// assert!(now.oldest_holder.is_some()); // if this one grows without end, something hangs
/// drop(held);
/// assert_eq!(pool.snapshot().oldest_holder, None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BulkheadSnapshot {
    /// The configured name.
    pub name: Arc<str>,
    /// Permits.
    pub limit: u32,
    /// Calls in flight.
    pub in_flight: u32,
    /// Callers that wait.
    pub queued: u32,
    /// The queue's bound.
    pub max_queue: u32,
    /// The wait limit.
    pub wait: Duration,
    /// Age of the oldest holder, if there is one: what hangs shows here.
    pub oldest_holder: Option<HolderAge>,
    /// How long the first in line has been waiting.
    pub oldest_waiter: Option<Duration>,
    /// Refusals since the start.
    pub rejected: u64,
}

impl BulkheadBuilder {
    /// Lets `n` callers wait for a permit, each at most `wait` and never past its deadline. As long as the wait you would
    /// accept times the rate at which permits come free; longer only makes everybody late. `build` refuses a wait of zero
    /// or above a day: nothing here waits for ever.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Bulkhead;
    ///
    /// // 10 permits, calls of about 20 ms: 500 per second come free, so 50 in line wait for about 100 ms.
    /// let mail = Bulkhead::builder("mail", 10).queue(50, Duration::from_millis(100)).build().unwrap();
    /// assert_eq!(mail.snapshot().max_queue, 50);
    /// let endless = Bulkhead::builder("mail", 10).queue(50, Duration::ZERO).build().unwrap_err();
    /// assert_eq!(endless.field(), "wait");
    /// ```
    pub fn queue(mut self, n: u32, wait: Duration) -> Self {
        self.queue = Some((n, wait));
        self
    }

    /// Clock. Default: the system's.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.runtime = Some(runtime.clone());
        self
    }

    /// Hears refusals.
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Checks the settings and builds.
    ///
    /// # Errors
    /// [`ConfigError`] names the refused field, its value and what is allowed.
    pub fn build(&self) -> Result<Bulkhead, ConfigError> {
        check_limit(self.limit)?;
        let (max_queue, wait) = self.queue.unwrap_or((0, Duration::ZERO));
        if self.queue.is_some() {
            check_queue(max_queue)?;
            if wait.is_zero() {
                return Err(ConfigError::new("wait", "0 s", "more than 0 s; without waiting use no queue"));
            }
            crate::error::check_time("wait", wait)?;
        }
        let runtime = self.runtime.clone().unwrap_or_else(Runtime::system);
        Ok(Bulkhead(Arc::new(Core::new(Parts {
            ear: Ear::new(Kind::Bulkhead, &self.name, self.listener.as_ref()),
            name: Arc::clone(&self.name),
            limit: self.limit,
            max_queue,
            wait,
            clock: Arc::clone(runtime.clock()),
        }))))
    }
}

fn check_limit(limit: u32) -> Result<(), ConfigError> {
    if limit == 0 || limit > MAX_LIMIT {
        return Err(ConfigError::new("limit", limit, format!("1 to {MAX_LIMIT}")));
    }
    Ok(())
}

fn check_queue(n: u32) -> Result<(), ConfigError> {
    if n == 0 || n > MAX_QUEUE {
        return Err(ConfigError::new("queue", n, format!("1 to {MAX_QUEUE}, or no queue at all")));
    }
    Ok(())
}

impl Bulkhead {
    /// Starts a bulkhead named `name` with `limit` permits, 1 to 65,535. There is no default: a guessed size bites under
    /// load.
    ///
    /// ```
    /// use mainstay_resilience::Bulkhead;
    ///
    /// let refused = Bulkhead::builder("pool", 0).build().unwrap_err();
    /// assert_eq!((refused.field(), refused.allowed()), ("limit", "1 to 65535")); // 0 is not "unlimited"
    /// ```
    pub fn builder(name: impl Into<Arc<str>>, limit: u32) -> BulkheadBuilder {
        BulkheadBuilder { name: name.into(), limit, queue: None, runtime: None, listener: None }
    }

    pub(crate) fn core(&self) -> &Core {
        &self.0
    }

    /// A permit now or never: one compare-and-swap. Never overtakes those who wait.
    ///
    /// # Errors
    /// [`Reason::Full`] when none is free or somebody already waits.
    ///
    /// ```
    /// use mainstay_resilience::{Bulkhead, Reason};
    ///
    /// let pool = Bulkhead::builder("pool", 1).build().unwrap();
    /// let held = pool.try_acquire().unwrap();
    /// let full = pool.try_acquire().unwrap_err();
    /// assert_eq!(full.why(), &Reason::Full { in_flight: 1, queued: 0, limit: 1 });
    /// drop(held);
    /// assert!(pool.try_acquire().is_ok());
    /// ```
    #[inline]
    pub fn try_acquire(&self) -> Result<Permit<'_>, Rejected> {
        let now = self.0.tick();
        match self.0.try_enter(now) {
            Some(parity) => Ok(Permit::new(&self.0, parity)),
            None => Err(self.full(now)),
        }
    }

    #[cold]
    #[inline(never)]
    fn full(&self, now: Instant) -> Rejected {
        let s = self.snapshot();
        self.0.refuse(Reason::Full { in_flight: s.in_flight, queued: s.queued, limit: s.limit }, now)
    }

    /// A permit, waiting in line if there is a queue: at most the wait limit and not past the deadline of `cx`.
    ///
    /// # Errors
    /// [`Reason::Full`], [`Reason::Waited`] or [`Reason::Deadline`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line; a permit that was granted meanwhile goes to the next one.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{Bulkhead, CallContext};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let pool = Bulkhead::builder("pool", 1).queue(1, Duration::from_secs(60)).build().unwrap();
    /// let cx = CallContext::new();
    /// let held = pool.acquire(&cx).await.unwrap();
    /// let mut waiting = Box::pin(pool.acquire(&cx));
    /// assert!(futures_util::poll!(&mut waiting).is_pending());
    /// let next = pool.acquire(&cx).await.unwrap_err(); // one may wait, and one does
    /// assert_eq!(next.why().code(), "full");
    /// drop(held);
    /// assert!(waiting.await.is_ok());
    /// # });
    /// ```
    pub async fn acquire(&self, cx: &CallContext) -> Result<Permit<'_>, Rejected> {
        permit::Acquire::new(&self.0, cx).await
    }

    /// As [`try_acquire`](Self::try_acquire), with a permit that may outlive the borrow.
    ///
    /// # Errors
    /// As for [`try_acquire`](Self::try_acquire).
    ///
    /// ```
    /// use mainstay_resilience::Bulkhead;
    ///
    /// let pool = Bulkhead::builder("pool", 1).build().unwrap();
    /// let permit = pool.try_acquire_owned().unwrap();
    /// let worker = std::thread::spawn(move || drop(permit));
    /// worker.join().unwrap();
    /// assert_eq!(pool.snapshot().in_flight, 0);
    /// ```
    pub fn try_acquire_owned(&self) -> Result<OwnedPermit, Rejected> {
        self.try_acquire().map(|permit| OwnedPermit::new(self.clone(), permit))
    }

    /// As [`acquire`](Self::acquire), with a permit that may outlive the borrow.
    ///
    /// # Errors
    /// As for [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As for [`acquire`](Self::acquire).
    ///
    /// ```
    /// use mainstay_resilience::{Bulkhead, CallContext};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let uploads = Bulkhead::builder("uploads", 1).build().unwrap();
    /// let permit = uploads.acquire_owned(&CallContext::new()).await.unwrap();
    /// let task = tokio::spawn(async move {
    ///     let _permit = permit; // held until the task ends
    ///     "uploaded"
    /// });
    /// assert_eq!(uploads.snapshot().in_flight, 1);
    /// assert_eq!(task.await.unwrap(), "uploaded");
    /// assert_eq!(uploads.snapshot().in_flight, 0);
    /// # });
    /// ```
    pub async fn acquire_owned(&self, cx: &CallContext) -> Result<OwnedPermit, Rejected> {
        let permit = self.acquire(cx).await?;
        Ok(OwnedPermit::new(self.clone(), permit))
    }

    /// Runs the operation that `f` makes under a permit; `f` is not called without one.
    ///
    /// # Errors
    /// [`CallError::Rejected`], or [`CallError::Inner`] with the operation's own error.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line or gives the permit back.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{Bulkhead, CallContext};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let mail = Bulkhead::builder("mail", 1).queue(1, Duration::from_millis(5)).build().unwrap();
    /// let held = mail.try_acquire().unwrap();
    /// let cx = CallContext::new();
    /// let waited = mail.call(&cx, || async { Ok::<_, std::io::Error>("sent") }).await.unwrap_err();
    /// assert_eq!((waited.code(), waited.was_started()), ("waited", false));
    /// drop(held);
    /// assert_eq!(mail.call(&cx, || async { Ok::<_, std::io::Error>("sent") }).await.unwrap(), "sent");
    /// # });
    /// ```
    pub async fn call<T, E, Fut>(&self, cx: &CallContext, f: impl FnOnce() -> Fut) -> Result<T, CallError<E>>
    where
        Fut: Future<Output = Result<T, E>>,
    {
        let _permit = self.acquire(cx).await?;
        f().await.map_err(CallError::Inner)
    }

    /// The configured name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Changes the number of permits while it runs. Growing wakes waiters; shrinking lets holders finish, and
    /// nobody enters above the new limit.
    ///
    /// # Errors
    /// [`ConfigError`] for 0 or a number beyond what it can count.
    ///
    /// ```
    /// use mainstay_resilience::Bulkhead;
    ///
    /// let pool = Bulkhead::builder("pool", 2).build().unwrap();
    /// let held = (pool.try_acquire().unwrap(), pool.try_acquire().unwrap());
    /// pool.resize(1).unwrap();
    /// drop(held.0);
    /// assert!(pool.try_acquire().is_err()); // one is still inside, and there is room for one
    /// drop(held.1);
    /// assert!(pool.try_acquire().is_ok());
    /// ```
    pub fn resize(&self, limit: u32) -> Result<(), ConfigError> {
        check_limit(limit)?;
        self.0.resize(limit);
        Ok(())
    }

    /// Changes the bound of the queue. Those who wait already may stay.
    ///
    /// # Errors
    /// [`ConfigError`] for 0, a number beyond what it can count, or a bulkhead built without a queue.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Bulkhead;
    ///
    /// let mail = Bulkhead::builder("mail", 1).queue(8, Duration::from_secs(1)).build().unwrap();
    /// mail.resize_queue(32).unwrap();
    /// assert_eq!(mail.snapshot().max_queue, 32);
    /// ```
    pub fn resize_queue(&self, n: u32) -> Result<(), ConfigError> {
        check_queue(n)?;
        if self.0.wait.is_zero() {
            return Err(ConfigError::new("queue", n, "none: this bulkhead was built without a wait limit"));
        }
        self.0.resize_queue(n);
        Ok(())
    }

    /// Everything about it at this moment.
    #[must_use]
    pub fn snapshot(&self) -> BulkheadSnapshot {
        self.0.snapshot()
    }
}

impl fmt::Debug for Bulkhead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bulkhead").field("name", &self.0.name).finish_non_exhaustive()
    }
}

/// A fixed set of named partitions.
///
/// ```
/// use mainstay_resilience::Bulkhead;
/// use mainstay_resilience::bulkhead::Partitions;
///
/// let all = Partitions::new([
///     Bulkhead::builder("payment-service", 10).build().unwrap(),
///     Bulkhead::builder("email-service", 5).build().unwrap(),
/// ])
/// .unwrap();
/// assert!(all.get("payment-service").is_ok());
/// let unknown = all.get("billing").unwrap_err();
/// assert_eq!(unknown.field(), "partition");
/// assert_eq!(unknown.allowed(), "email-service, payment-service");
/// ```
#[derive(Clone, Debug)]
pub struct Partitions(Arc<BTreeMap<Arc<str>, Bulkhead>>);

impl Partitions {
    /// The partitions `all`, by their names.
    ///
    /// # Errors
    /// [`ConfigError`] for a name that occurs twice, or no partition at all.
    pub fn new(all: impl IntoIterator<Item = Bulkhead>) -> Result<Self, ConfigError> {
        let mut named = BTreeMap::new();
        for bulkhead in all {
            let name = Arc::clone(&bulkhead.0.name);
            if named.insert(Arc::clone(&name), bulkhead).is_some() {
                return Err(ConfigError::new("partition", name, "every name once"));
            }
        }
        if named.is_empty() {
            return Err(ConfigError::new("partition", "none", "at least one"));
        }
        Ok(Self(Arc::new(named)))
    }

    /// The partition `name`.
    ///
    /// # Errors
    /// [`ConfigError`] for a name nobody configured: a mistake of the program, never a full bulkhead.
    pub fn get(&self, name: &str) -> Result<&Bulkhead, ConfigError> {
        self.0.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.0.keys().map(AsRef::as_ref).collect();
            ConfigError::new("partition", name, known.join(", "))
        })
    }

    /// Every partition, in the order of names: for a console, or for metrics.
    pub fn iter(&self) -> impl Iterator<Item = &Bulkhead> {
        self.0.values()
    }
}
