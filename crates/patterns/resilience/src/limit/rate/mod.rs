//! Calls per time: the generic cell rate algorithm, unkeyed and per key.
//!
//! Source: ITU-T I.371, virtual scheduling. The whole state of a limiter is one number, the instant at which the next
//! cell is due if cells come evenly; there is no background task that refills anything.

mod keyed;
mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Instant, Runtime, Tick};

pub use keyed::KeyedRateLimiter;

use super::parts::{Parts, Voice};
use crate::pad::CachePadded;
use crate::policy::seam::{Ask, Limiter, Pass, Sample};
use crate::{ConfigError, Listener, Reason, Rejected};
use state::Rule;

/// At most a rate of calls, with a burst.
///
/// Guarantees: in any interval of length `d` at most `burst + rate * d` cells pass, under any number of
/// threads; the decision is one compare-and-swap without a lock. Does not guarantee: fairness among callers
/// of [`check`](RateLimiter::check); that is what [`acquire`](RateLimiter::acquire) is for.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{Reason, limit::RateLimiter};
///
/// let limiter = RateLimiter::builder("search").rate(1, Duration::from_secs(60)).burst(2).build().unwrap();
/// assert!(limiter.check().is_ok());
/// assert!(limiter.check().is_ok());
/// let refused = limiter.check().unwrap_err();
/// assert_eq!(refused.why(), &Reason::Rate);
/// assert!(refused.retry_after().unwrap() <= Duration::from_secs(60));
/// ```
///
/// # Defaults
/// `burst` 1: a burst is load that arrives at once, so whoever wants one says so. The exact clock where it can
/// change the answer: while 100 ms or more of the burst are used up the coarse tick gives the same one.
/// [`coarse_clock`](RateBuilder::coarse_clock) is cheaper for short bursts too.
#[derive(Clone)]
pub struct RateLimiter(Arc<Inner>);

struct Inner {
    voice: Voice,
    rule: Rule,
    clock: Arc<dyn Clock>,
    tick: Tick,
    coarse: bool,
    /// When the next cell is due if cells come evenly, in nanoseconds of the clock.
    tat: CachePadded<AtomicU64>,
}

/// A refusal as it was decided: how long to wait, by which reading of the clock.
#[derive(Clone, Copy, Debug)]
struct Refused {
    wait: u64,
    now: u64,
}

impl Refused {
    fn by(self, voice: &Voice) -> Rejected {
        voice.refuse(Reason::Rate, Some(Duration::from_nanos(self.wait)), Instant::from_nanos(self.now))
    }
}

/// How far a running ticker may be behind; see `Inner::coarse`.
const TICK: u64 = 1_000_000;
/// How far a ticker may be behind before `Inner::ahead` charges too little: longer than a container that used up
/// its share of the processor stands still.
const LATE: u64 = 100_000_000;

/// Settings of a rate limiter; see [`RateLimiter`].
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::limit::RateLimiter;
///
/// let limiter = RateLimiter::builder("api").rate(100, Duration::from_secs(1)).burst(20).build().unwrap();
/// assert!(limiter.check_n(20).is_ok());
/// assert_eq!(RateLimiter::builder("api").build().unwrap_err().field(), "rate"); // only you know it
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct RateBuilder {
    parts: Parts,
    cells: u32,
    per: Duration,
    burst: u32,
    coarse: bool,
    max_keys: u32,
}

/// More cells were asked for than the burst holds: waiting would never help.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{policy}` was asked for {n} cells at once; its burst is {burst}")]
pub struct OverBurst {
    policy: Arc<str>,
    n: u32,
    burst: u32,
}

impl OverBurst {
    /// The name of the limiter.
    #[must_use]
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// Cells asked for.
    #[must_use]
    pub fn n(&self) -> u32 {
        self.n
    }

    /// Most cells that can ever pass at once.
    #[must_use]
    pub fn burst(&self) -> u32 {
        self.burst
    }
}

/// Why several cells did not pass.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RateError {
    /// Never: a mistake of the caller.
    #[error(transparent)]
    OverBurst(OverBurst),
    /// Not now.
    #[error(transparent)]
    Rejected(Rejected),
}

impl RateLimiter {
    /// Starts a limiter named `name`; the rate is required.
    pub fn builder(name: impl Into<Arc<str>>) -> RateBuilder {
        RateBuilder {
            parts: Parts::new(name),
            cells: 0,
            per: Duration::ZERO,
            burst: 1,
            coarse: false,
            max_keys: keyed::MAX_KEYS,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.voice.name
    }

    /// Takes one cell, now or never.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Rate`] and the time until a cell is free.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::limit::RateLimiter;
    ///
    /// let limiter = RateLimiter::builder("api").rate(1, Duration::from_secs(10)).build().unwrap();
    /// assert!(limiter.check().is_ok());
    /// let refused = limiter.check().unwrap_err();
    /// assert_eq!(refused.why().code(), "rate");
    /// assert!(refused.retry_after().unwrap() <= Duration::from_secs(10));
    /// ```
    #[inline]
    pub fn check(&self) -> Result<(), Rejected> {
        self.0.take(1).map_err(|refused| self.0.refuse(refused))
    }

    /// Takes `n` cells or none: for calls that weigh more than one, by bytes or by rows.
    ///
    /// # Errors
    /// [`RateError::OverBurst`] when `n` exceeds the burst: it could never pass. [`RateError::Rejected`] with
    /// the time until `n` cells are free. Zero cells always pass.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::limit::{RateError, RateLimiter};
    ///
    /// let rows = RateLimiter::builder("rows").rate(1_000, Duration::from_secs(60)).burst(500).build().unwrap();
    /// assert!(rows.check_n(500).is_ok());
    /// assert!(matches!(rows.check_n(100), Err(RateError::Rejected(_)))); // later
    /// assert!(matches!(rows.check_n(501), Err(RateError::OverBurst(_)))); // never
    /// ```
    pub fn check_n(&self, n: u32) -> Result<(), RateError> {
        let burst = self.0.rule.burst();
        if n > burst {
            return Err(RateError::OverBurst(OverBurst { policy: Arc::clone(&self.0.voice.name), n, burst }));
        }
        if n == 0 {
            return Ok(());
        }
        self.0.take(n).map_err(|refused| RateError::Rejected(self.0.refuse(refused)))
    }

    /// Waits for one cell, in the order of the calls, but not past `deadline`. With [`Deadline::NONE`] the wait is as long
    /// as the line of those before; bound it.
    ///
    /// # Errors
    /// [`Rejected`] at once when the cell is due after the deadline.
    ///
    /// # Cancel safety
    /// A dropped wait gives its cell back unless a later caller already stands behind it; then the cell
    /// passes unused. The limit is never exceeded.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_clock::{Clock as _, Deadline, SystemClock};
    /// use mainstay_resilience::limit::RateLimiter;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let clock = SystemClock::new();
    /// let limiter = RateLimiter::builder("api").rate(1, Duration::from_millis(5)).build().unwrap();
    /// let begun = clock.now();
    /// for _ in 0..3 {
    ///     limiter.acquire(Deadline::NONE).await.unwrap();
    /// }
    /// assert!(clock.now().saturating_duration_since(begun) >= Duration::from_millis(10));
    /// // Who has no time is told at once.
    /// let now = Deadline::at(clock.now());
    /// assert!(limiter.acquire(now).await.unwrap_err().retry_after().is_some());
    /// # });
    /// ```
    pub async fn acquire(&self, deadline: Deadline) -> Result<(), Rejected> {
        let Some(turn) = self.0.reserve(deadline)? else { return Ok(()) };
        self.0.clock.sleep_until(turn.at).await;
        turn.keep();
        Ok(())
    }
}

impl Inner {
    fn now(&self) -> u64 {
        self.clock.now().as_nanos()
    }

    #[inline]
    fn take(&self, n: u32) -> Result<(), Refused> {
        if self.ahead(n) || (self.coarse && self.coarse(n)) {
            return Ok(());
        }
        self.take_exactly(n)
    }

    /// Passes cells without the clock where it cannot change the answer: the coarse tick is early, so whatever it
    /// lets pass may pass; and where the next cell is due later than now can be, now is not charged.
    #[inline]
    fn ahead(&self, n: u32) -> bool {
        let mut tat = self.tat.load(Ordering::Acquire);
        loop {
            let now = self.tick.read().as_nanos();
            if tat < now.saturating_add(LATE) {
                return false;
            }
            let Ok(next) = self.rule.decide(tat, now, n) else { return false };
            match self.tat.compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(seen) => tat = seen,
            }
        }
    }

    fn take_exactly(&self, n: u32) -> Result<(), Refused> {
        let mut tat = self.tat.load(Ordering::Acquire);
        loop {
            // Read anew in every round: a reading older than the lost race could admit too early.
            let now = self.now();
            let next = self.rule.decide(tat, now, n).map_err(|wait| Refused { wait, now })?;
            match self.tat.compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(()),
                Err(seen) => tat = seen,
            }
        }
    }

    /// One try with the coarse clock. It decides by the earliest and charges by the latest instant that can
    /// be now, so it never admits more than the exact rule while the ticker is at most [`TICK`] behind.
    /// Whatever it does not admit, the exact rule decides.
    fn coarse(&self, n: u32) -> bool {
        let tat = self.tat.load(Ordering::Acquire);
        let now = self.tick.read().as_nanos();
        if self.rule.decide(tat, now, n).is_err() {
            return false;
        }
        let next = self.rule.after(tat, now.saturating_add(TICK), n);
        self.tat.compare_exchange(tat, next, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// A place in line: the cell is taken now and used when it is due.
    fn reserve(&self, deadline: Deadline) -> Result<Option<Turn<'_>>, Rejected> {
        let mut tat = self.tat.load(Ordering::Acquire);
        loop {
            let now = self.now();
            let wait = self.rule.decide(tat, now, 1).err();
            let at = Instant::from_nanos(now.saturating_add(wait.unwrap_or(0)));
            if let Some(wait) = wait.filter(|_| deadline.is_some() && at > deadline.instant()) {
                return Err(self.refuse(Refused { wait, now }));
            }
            let next = self.rule.after(tat, now, 1);
            match self.tat.compare_exchange_weak(tat, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Ok(wait.map(|_| Turn { limiter: self, at, tat: next, kept: false })),
                Err(seen) => tat = seen,
            }
        }
    }

    #[cold]
    fn refuse(&self, refused: Refused) -> Rejected {
        refused.by(&self.voice)
    }
}

/// A cell that is due later.
struct Turn<'a> {
    limiter: &'a Inner,
    at: Instant,
    tat: u64,
    kept: bool,
}

impl Turn<'_> {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let back = self.tat - self.limiter.rule.cost(1);
            // Fails when someone stands behind: their instant is fixed, so the cell stays taken.
            let _ = self.limiter.tat.compare_exchange(self.tat, back, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}

impl fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimiter").field("name", &self.0.voice.name).field("rule", &self.0.rule).finish()
    }
}

impl RateBuilder {
    /// At most `cells` per `per`, rounded down to whole nanoseconds per cell.
    pub fn rate(mut self, cells: u32, per: Duration) -> Self {
        self.cells = cells;
        self.per = per;
        self
    }

    /// How many cells may pass at once after a quiet time.
    pub fn burst(mut self, cells: u32) -> Self {
        self.burst = cells;
        self
    }

    /// Reads the coarse tick (about 1 ms) for short bursts too. It charges an idle limiter up to 1 ms more,
    /// never less; should the ticker thread itself be delayed by `x`, up to `rate * x` cells more can pass.
    pub fn coarse_clock(mut self) -> Self {
        self.coarse = true;
        self
    }

    /// Most keys a [`KeyedRateLimiter`] remembers; further ones share one rate.
    pub fn max_keys(mut self, keys: u32) -> Self {
        self.max_keys = keys;
        self
    }

    /// Clock. Default: the system's. Tests and simulations pass their own.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.parts.runtime = Some(runtime.clone());
        self
    }

    /// Hears every refusal, as [`Event::Rejected`](crate::Event::Rejected) from a source of the kind
    /// [`Limit`](crate::Kind::Limit) with this limit's name.
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.parts.listener = Some(listener);
        self
    }

    /// The limiter.
    ///
    /// # Errors
    /// [`ConfigError`] when the rate is missing, zero or above 10,000,000 per second, or the burst is zero or
    /// would take longer than 30 years.
    pub fn build(self) -> Result<RateLimiter, ConfigError> {
        let rule = Rule::new(self.cells, self.per, self.burst)?;
        let clock = Arc::clone(self.parts.runtime().clock());
        Ok(RateLimiter(Arc::new(Inner {
            rule,
            tick: clock.tick(),
            coarse: self.coarse,
            voice: self.parts.voice(),
            clock,
            tat: CachePadded::new(AtomicU64::new(0)),
        })))
    }

    /// A limiter with one state per key.
    ///
    /// # Errors
    /// As for [`build`](RateBuilder::build), and when `max_keys` is zero.
    pub fn build_keyed<K: std::hash::Hash + Eq>(self) -> Result<KeyedRateLimiter<K>, ConfigError> {
        let rule = Rule::new(self.cells, self.per, self.burst)?;
        if self.max_keys == 0 {
            return Err(ConfigError::new("max_keys", 0, "at least 1"));
        }
        let clock = Arc::clone(self.parts.runtime().clock());
        Ok(KeyedRateLimiter::new(self.parts.voice(), rule, self.max_keys, clock))
    }
}

/// In the rate slot of a policy: one cell per logical call.
impl Limiter for RateLimiter {
    fn admit(&self, _ask: &Ask<'_>) -> Result<Pass, Rejected> {
        self.check().map(|()| Pass(0))
    }

    fn done(&self, _pass: Pass, _sample: Sample) {}
}
