//! Calls in flight, bounded by what the service behind can do.
//!
//! Sources: AIMD is Chiu and Jain (1989); Vegas is Brakmo and Peterson (1995) with the thresholds of Netflix'
//! concurrency-limits; the gradient is that project's Gradient2, with a baseline that is measured instead of followed and
//! growth only while no queue is visible: a baseline that follows an overload lets the limit creep up without end.
//!
//! ```text
//! AIMD:      drop, or slower than the timeout: max(min, min(L - 1, floor(backoff * L))), once per round trip
//!            else, if 2 * in flight >= L: L + 1
//! gradient:  r = baseline / mean of the window;  g = clamp(tolerance * r, 0.5, 1)
//!            L * (1 - smoothing * (1 - g)), plus growth only while r, now and smoothed, is at least 0.95
//! Vegas:     q = ceil(L * (1 - r));  q <= log10 L: L + 6 log10 L;  q < 3 log10 L: L + log10 L;  q > 6 log10 L: L - log10 L
//! all:       no growth while less than half of L is in use; cancelled calls are no samples, timeouts are drops
//! ```

mod baseline;
mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Rng, Runtime, Tick};

use super::parts::{Parts, Voice};
use crate::pad::CachePadded;
use crate::policy::seam::{self, Ask, Pass};
use crate::sync::Mutex;
use crate::{CallError, Classify, ConfigError, Listener, Outcome, Reason, Rejected, Verdict};
use baseline::ProbeConfig;
use state::{Rule, Sample, Settings, State};

/// How the limit follows the service.
///
/// | algorithm | needs | good for | not good for |
/// |---|---|---|---|
/// | gradient (default) | latencies that grow with the load | services that queue | latencies that vary tenfold by themselves |
/// | Vegas | the same | large limits | small ones: it keeps 3 to 6 `log10` of the limit waiting |
/// | AIMD | a service that refuses, or a timeout that says what too slow means | hard limits | services that only get slower |
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Algorithm {
    /// Additive increase, multiplicative decrease: needs a service that refuses or a timeout that says what
    /// too slow means.
    Aimd {
        /// A success slower than this is a drop.
        timeout: Duration,
        /// What a drop leaves of the limit, in `[0.5, 1)`.
        backoff: f64,
    },
    /// The gradient of the latency, with a guard: it grows only while no queue is visible, and its baseline
    /// is measured at a lowered limit instead of following the load.
    Gradient {
        /// How many times the baseline a call may take before the limit shrinks, at least 1.
        tolerance: f64,
        /// How much the limit may grow beyond the gradient, per window.
        growth: f64,
        /// Weight of the newest window, in `(0, 1]`.
        smoothing: f64,
    },
    /// Keeps a short queue at the service: between 3 and 6 times `log10` of the limit.
    Vegas,
}

impl Algorithm {
    /// The reference's numbers: slower than 5 s is a drop, and a drop leaves 0.9 of the limit. Set the timeout to what
    /// is too slow for your service.
    #[must_use]
    pub fn aimd() -> Self {
        Self::Aimd { timeout: Duration::from_secs(5), backoff: 0.9 }
    }

    /// The reference's numbers: tolerance 1.5, growth 4 per window, smoothing 0.2.
    #[must_use]
    pub fn gradient() -> Self {
        Self::Gradient { tolerance: 1.5, growth: 4.0, smoothing: 0.2 }
    }
}

/// At most as many calls in flight as the service can work on.
///
/// Guarantees: never more permits out than the limit was when they were given; the limit stays within
/// `min..=max`; it does not grow while the application itself uses less than half of it; a cancelled call
/// never feeds the measurement. Does not guarantee: that the limit is right at any instant. It is an estimate
/// that needs some hundred calls. While the time without a queue is measured, at the start and now and then later, half as
/// many may be in flight, but as many as the probe concurrency; AIMD measures none and begins at `initial`.
///
/// ```
/// use mainstay_resilience::{Reason, limit::{AdaptiveLimiter, Algorithm}};
///
/// let limiter = AdaptiveLimiter::builder("search").algorithm(Algorithm::aimd()).initial(1).build().unwrap();
/// let permit = limiter.acquire().unwrap();
/// assert_eq!(limiter.acquire().unwrap_err().why(), &Reason::Shed);
/// permit.success();
/// assert_eq!(limiter.snapshot().limit(), 2);
/// ```
///
/// # Defaults
/// [`Algorithm::gradient`], initial 20 (a guess that costs little either way), min 1, max 1000, probes every
/// 100 (gradient) or 30 (Vegas) samples per unit of the limit with at least 4 calls in flight.
#[derive(Clone)]
pub struct AdaptiveLimiter(Arc<Inner>);

struct Inner {
    voice: Voice,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    in_flight: CachePadded<AtomicU32>,
    /// `epoch << 32 | limit` of the state, for admissions that take no lock.
    word: CachePadded<AtomicU64>,
    state: Mutex<State>,
    /// What AIMD needs to see that a success changes nothing.
    aimd: Option<Aimd>,
}

/// The part of AIMD that takes no lock.
struct Aimd {
    timeout: Duration,
    max: u32,
    /// For timeouts that a coarse time is good enough for.
    tick: Option<Tick>,
}

/// Shortest timeout that the coarse tick of about 1 ms may measure.
const COARSE_FROM: Duration = Duration::from_millis(10);

/// Settings of an [`AdaptiveLimiter`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | algorithm | gradient | the only one that finds the knee of a plain queue, see the numbers in the guide |
/// | initial | 20 | costs little either way: it is left within some hundred calls |
/// | min, max | 1, 1000 | never locked out; beyond a thousand it is hardly the limit that protects |
/// | probe concurrency | 4 | fewer give no stable measurement |
/// | probe every | 100 samples per unit of the limit (Vegas: 30) | a probe costs up to half of the throughput for its time |
///
/// ```
/// use mainstay_resilience::limit::{AdaptiveLimiter, Algorithm};
///
/// let vegas = AdaptiveLimiter::builder("search").algorithm(Algorithm::Vegas).initial(50).min(10).max(200);
/// // It begins with a measurement of the baseline, at half of the limit.
/// assert_eq!(vegas.build().unwrap().limit(), 25);
/// let refused = AdaptiveLimiter::builder("search").min(30).build().unwrap_err();
/// assert_eq!((refused.field(), refused.allowed()), ("initial", "min (30) to max (1000)"));
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct AdaptiveBuilder {
    parts: Parts,
    algorithm: Algorithm,
    initial: u32,
    min: u32,
    max: u32,
    probe_concurrency: u32,
    probe_every: Option<u32>,
}

/// What an adaptive limiter looks like now.
#[derive(Clone, Debug)]
pub struct AdaptiveSnapshot {
    limit: u32,
    in_flight: u32,
    baseline: Option<Duration>,
    probing: bool,
}

impl AdaptiveSnapshot {
    /// The limit, lowered while the baseline is measured.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Permits out.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// The latency without a queue, once measured.
    #[must_use]
    pub fn baseline(&self) -> Option<Duration> {
        self.baseline
    }

    /// Whether the limit is lowered to measure the baseline.
    #[must_use]
    pub fn is_probing(&self) -> bool {
        self.probing
    }
}

impl AdaptiveLimiter {
    /// Starts a limiter named `name`.
    pub fn builder(name: impl Into<Arc<str>>) -> AdaptiveBuilder {
        AdaptiveBuilder {
            parts: Parts::new(name),
            algorithm: Algorithm::gradient(),
            initial: 20,
            min: 1,
            max: 1000,
            probe_concurrency: 4,
            probe_every: None,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.voice.name
    }

    /// Limit, permits out and baseline. Takes the lock of the measurements; for consoles and scrapers.
    #[must_use]
    pub fn snapshot(&self) -> AdaptiveSnapshot {
        let state = self.0.state.lock();
        AdaptiveSnapshot {
            limit: state.limit(),
            in_flight: self.0.in_flight.load(Ordering::Acquire),
            baseline: state.baseline(),
            probing: state.is_probing(),
        }
    }

    /// The limit now: one load, for those who follow it as a [`Shedder`](super::Shedder) does.
    #[must_use]
    pub fn limit(&self) -> u32 {
        low(self.0.word.load(Ordering::Acquire))
    }

    /// Takes a permit. Tell it how the call ended; dropping it counts as cancelled.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Shed`] when the limit is reached; without advice when to come back, as a
    /// permit may become free at any instant.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::limit::{AdaptiveLimiter, Algorithm};
    ///
    /// let limiter = AdaptiveLimiter::builder("search").algorithm(Algorithm::aimd()).initial(10).build().unwrap();
    /// limiter.acquire().unwrap().dropped(); // the service said no
    /// assert_eq!(limiter.limit(), 9);
    /// drop(limiter.acquire().unwrap()); // cancelled: says nothing
    /// assert_eq!((limiter.limit(), limiter.snapshot().in_flight()), (9, 0));
    /// ```
    #[inline]
    pub fn acquire(&self) -> Result<AdaptivePermit<'_>, Rejected> {
        let stamp = self.0.admit()?;
        Ok(AdaptivePermit { limiter: &self.0, stamp, start: self.0.now(), open: true })
    }

    /// Runs `f` under a permit. Success is measured; throttling and timeouts are drops; other failures and
    /// panics are neither.
    ///
    /// # Errors
    /// [`CallError::Rejected`] when the limit is reached, else what `f` failed with.
    ///
    /// # Cancel safety
    /// Dropping the future returns the permit; the call is not measured.
    ///
    /// ```
    /// use mainstay_resilience::limit::{AdaptiveLimiter, Algorithm};
    /// use mainstay_resilience::{Classify, Verdict};
    ///
    /// struct Busy;
    /// impl Classify for Busy {
    ///     fn verdict(&self) -> Verdict {
    ///         Verdict::Throttled { after: None }
    ///     }
    /// }
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let limiter = AdaptiveLimiter::builder("search").algorithm(Algorithm::aimd()).initial(10).build().unwrap();
    /// assert!(limiter.call(|| async { Err::<(), _>(Busy) }).await.is_err());
    /// assert_eq!(limiter.limit(), 9); // the service refused for load
    /// # });
    /// ```
    pub async fn call<T, E, Fut>(&self, f: impl FnOnce() -> Fut) -> Result<T, CallError<E>>
    where
        E: Classify,
        Fut: Future<Output = Result<T, E>>,
    {
        let permit = self.acquire()?;
        let result = f().await;
        match &result {
            Ok(_) => permit.success(),
            Err(error) => match error.verdict() {
                Verdict::Ok => permit.success(),
                Verdict::Throttled { .. } => permit.dropped(),
                _ => permit.ignore(),
            },
        }
        result.map_err(CallError::Inner)
    }
}

/// `in_flight` at admission and the epoch, as one number.
#[derive(Clone, Copy, Debug)]
struct Stamp {
    in_flight: u32,
    epoch: u32,
}

impl Inner {
    /// Now, as exactly as the algorithm needs it.
    #[inline]
    fn now(&self) -> Instant {
        match &self.aimd {
            Some(Aimd { tick: Some(tick), .. }) => tick.read(),
            _ => self.clock.now(),
        }
    }

    #[inline]
    fn admit(&self) -> Result<Stamp, Rejected> {
        let word = self.word.load(Ordering::Acquire);
        let before = self.in_flight.fetch_add(1, Ordering::AcqRel);
        if before >= low(word) {
            self.in_flight.fetch_sub(1, Ordering::AcqRel);
            return Err(self.voice.refuse(Reason::Shed, None, self.clock.now()));
        }
        Ok(Stamp { in_flight: before + 1, epoch: high(word) })
    }

    #[inline]
    fn release(&self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }

    #[inline]
    fn success(&self, stamp: Stamp, rtt: Duration, now: Instant) {
        if let Some(aimd) = &self.aimd
            && rtt <= aimd.timeout
        {
            let limit = low(self.word.load(Ordering::Acquire));
            if limit >= aimd.max || stamp.in_flight.saturating_mul(2) < limit {
                return;
            }
        }
        self.measure(stamp, rtt, now);
    }

    fn measure(&self, stamp: Stamp, rtt: Duration, now: Instant) {
        // Under contention a sample is dispensable; a drop is not.
        if let Some(mut state) = self.state.try_lock() {
            state.on_success(stamp.sample(rtt), now, self.rng.unit());
            self.publish(&state);
        }
    }

    fn dropped(&self, stamp: Stamp, rtt: Duration, now: Instant) {
        let mut state = self.state.lock();
        state.on_drop(stamp.sample(rtt), now);
        self.publish(&state);
    }

    fn publish(&self, state: &State) {
        let word = u64::from(state.epoch()) << 32 | u64::from(state.limit());
        if self.word.load(Ordering::Relaxed) != word {
            self.word.store(word, Ordering::Release);
        }
    }
}

impl Stamp {
    fn sample(self, rtt: Duration) -> Sample {
        Sample { rtt, in_flight: self.in_flight, epoch: self.epoch }
    }
}

fn low(word: u64) -> u32 {
    (word & u64::from(u32::MAX)) as u32
}

fn high(word: u64) -> u32 {
    (word >> 32) as u32
}

/// The right to be in flight. Dropping it returns it and measures nothing.
#[derive(Debug)]
#[must_use]
pub struct AdaptivePermit<'a> {
    limiter: &'a Inner,
    stamp: Stamp,
    start: Instant,
    open: bool,
}

impl AdaptivePermit<'_> {
    /// The call succeeded: its duration is a sample.
    #[inline]
    pub fn success(mut self) {
        self.close();
        let now = self.limiter.now();
        self.limiter.success(self.stamp, now.saturating_duration_since(self.start), now);
    }

    /// The service refused for overload, or the call timed out.
    pub fn dropped(mut self) {
        self.close();
        let now = self.limiter.now();
        self.limiter.dropped(self.stamp, now.saturating_duration_since(self.start), now);
    }

    /// The call says nothing about the load.
    pub fn ignore(self) {}

    #[inline]
    fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            self.limiter.release();
        }
    }
}

impl Drop for AdaptivePermit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.close();
    }
}

/// In the adaptive slot of a policy: a permit per logical call, measured from admission to the end.
impl seam::Limiter for AdaptiveLimiter {
    fn admit(&self, _ask: &Ask<'_>) -> Result<Pass, Rejected> {
        let stamp = self.0.admit()?;
        Ok(Pass(u64::from(stamp.epoch) << 32 | u64::from(stamp.in_flight)))
    }

    fn done(&self, pass: Pass, sample: seam::Sample) {
        self.0.release();
        let stamp = Stamp { in_flight: low(pass.0), epoch: high(pass.0) };
        match sample.outcome {
            Outcome::Success | Outcome::SlowSuccess => {
                self.0.success(stamp, sample.elapsed, self.0.now());
            }
            Outcome::Timeout(_) => self.0.dropped(stamp, sample.elapsed, self.0.now()),
            Outcome::Failure if sample.throttled => {
                self.0.dropped(stamp, sample.elapsed, self.0.now());
            }
            _ => {}
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdaptiveLimiter").field("name", &self.voice.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for AdaptiveLimiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl AdaptiveBuilder {
    /// How the limit follows the service. `build` refuses numbers of the algorithm that are out of range.
    pub fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// The first limit, between [`min`](Self::min) and [`max`](Self::max).
    pub fn initial(mut self, limit: u32) -> Self {
        self.initial = limit;
        self
    }

    /// The smallest limit, at least 1: a limiter that admits nothing learns nothing.
    pub fn min(mut self, limit: u32) -> Self {
        self.min = limit;
        self
    }

    /// The largest limit, at most a million.
    pub fn max(mut self, limit: u32) -> Self {
        self.max = limit;
        self
    }

    /// Fewest calls in flight while the baseline is measured. Not the same as [`min`](Self::min): a probe may
    /// go below a high minimum, and need not go down to a low one.
    pub fn probe_concurrency(mut self, calls: u32) -> Self {
        self.probe_concurrency = calls;
        self
    }

    /// Samples per unit of the limit between two measurements of the baseline, before jitter: many limiters in front of
    /// one service must not measure together.
    pub fn probe_every(mut self, samples: u32) -> Self {
        self.probe_every = Some(samples);
        self
    }

    /// Clock and randomness. Default: the system's. Tests and simulations pass their own.
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
    /// [`ConfigError`] unless `1 <= min <= initial <= max <= 1,000,000`, the probe settings are at least 1 and
    /// the algorithm's numbers are in their ranges.
    pub fn build(self) -> Result<AdaptiveLimiter, ConfigError> {
        /// More in flight than any one client ever has.
        const MOST: u32 = 1_000_000;
        if self.min == 0 {
            return Err(ConfigError::new("min", 0, "at least 1"));
        }
        if self.max < self.min || self.max > MOST {
            return Err(ConfigError::new("max", self.max, format!("min ({}) to {MOST}", self.min)));
        }
        if self.initial < self.min || self.initial > self.max {
            let allowed = format!("min ({}) to max ({})", self.min, self.max);
            return Err(ConfigError::new("initial", self.initial, allowed));
        }
        if self.probe_concurrency == 0 {
            return Err(ConfigError::new("probe_concurrency", 0, "at least 1"));
        }
        let (rule, every) = rule(self.algorithm)?;
        let every = self.probe_every.unwrap_or(every);
        if every == 0 {
            return Err(ConfigError::new("probe_every", 0, "at least 1"));
        }
        let probe = ProbeConfig {
            every_per_limit: every,
            concurrency: self.probe_concurrency,
            samples: PROBE_SAMPLES,
        };
        let runtime = self.parts.runtime();
        let aimd = match rule {
            Rule::Aimd { timeout, .. } => {
                let tick = (timeout >= COARSE_FROM).then(|| runtime.clock().tick());
                Some(Aimd { timeout, max: self.max, tick })
            }
            _ => None,
        };
        let state = State::new(Settings { rule, initial: self.initial, min: self.min, max: self.max, probe });
        Ok(AdaptiveLimiter(Arc::new(Inner {
            voice: self.parts.voice(),
            clock: Arc::clone(runtime.clock()),
            rng: Arc::clone(runtime.rng()),
            in_flight: CachePadded::new(AtomicU32::new(0)),
            word: CachePadded::new(AtomicU64::new(u64::from(state.limit()))),
            state: Mutex::new(state),
            aimd,
        })))
    }
}

/// Samples of one measurement: the mean of 100 exponential times is within 10 % two times in three.
const PROBE_SAMPLES: u32 = 100;

/// The validated rule, and how often it probes.
fn rule(algorithm: Algorithm) -> Result<(Rule, u32), ConfigError> {
    match algorithm {
        Algorithm::Aimd { backoff, .. } if !(0.5..1.0).contains(&backoff) => {
            Err(ConfigError::new("aimd.backoff", backoff, "a number in [0.5, 1)"))
        }
        Algorithm::Aimd { timeout, backoff } => {
            crate::error::check_time("aimd.timeout", timeout)?;
            Ok((Rule::Aimd { timeout, backoff }, 1))
        }
        Algorithm::Gradient { tolerance, .. } if !(1.0..=10.0).contains(&tolerance) => {
            Err(ConfigError::new("gradient.tolerance", tolerance, "a number in [1, 10]"))
        }
        Algorithm::Gradient { growth, .. } if !(growth > 0.0 && growth <= 1000.0) => {
            Err(ConfigError::new("gradient.growth", growth, "a number in (0, 1000]"))
        }
        Algorithm::Gradient { smoothing, .. } if !(smoothing > 0.0 && smoothing <= 1.0) => {
            Err(ConfigError::new("gradient.smoothing", smoothing, "a number in (0, 1]"))
        }
        Algorithm::Gradient { tolerance, growth, smoothing } => {
            Ok((Rule::Gradient { tolerance, growth, smoothing }, 100))
        }
        Algorithm::Vegas => Ok((Rule::Vegas, 30)),
    }
}
