//! Settings of a breaker and their checks.

use std::time::Duration;

use crate::ConfigError;
use crate::error::MAX_TIME;

/// Shortest time window: its buckets must stay well above the coarse tick of about 1 ms.
const MIN_WINDOW: Duration = Duration::from_millis(100);
/// Longest time window: a bucket of six minutes counts up to 3e9 calls per second.
const MAX_WINDOW: Duration = Duration::from_secs(3_600);
/// Largest count window; every result is two bits.
const MAX_COUNT: u32 = 100_000;
/// Most probes in flight: half-open is meant to be careful.
const MAX_PERMITS: u32 = 10_000;

/// Which results decide. Conclusive ones only: what is ignored or late is in no window.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{Breaker, breaker::Window};
///
/// let breaker = Breaker::builder("search").count_window(100).build().unwrap();
/// breaker.reconfigure(|c| { c.set_window(Window::Count(50)); }).unwrap(); // keeps the newest fifty
/// let other = breaker.reconfigure(|c| { c.set_window(Window::Time(Duration::from_secs(10))); });
/// assert_eq!(other.unwrap_err().field(), "window"); // what was counted by number has no time
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Window {
    /// Failures in a row. The success path only reads.
    Consecutive(u32),
    /// Exactly the last `n` conclusive results. Costs a short lock per result.
    Count(u32),
    /// The results of the last while, in ten buckets: between nine and ten tenths of it. The success path is
    /// one store on a line of the own thread; an atomic addition for threads beyond the first few.
    Time(Duration),
}

/// How a half-open breaker tests the water. Only probes count; at most `permits` are in flight, each with a lease.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::Breaker;
/// use mainstay_resilience::breaker::HalfOpen;
///
/// let careful = HalfOpen::permits(1).required(5); // five in a row, one at a time
/// let tolerant = HalfOpen::ratio(5, 20, 0.3); // of twenty results fewer than six may fail
/// let ramp = HalfOpen::progressive(50, Duration::from_secs(1)); // more and more of the traffic
/// for half_open in [careful, tolerant, ramp] {
///     assert!(Breaker::builder("search").half_open(half_open).build().is_ok());
/// }
/// let refused = Breaker::builder("search").half_open(HalfOpen::permits(0)).build().unwrap_err();
/// assert_eq!(refused.field(), "half_open.permits");
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HalfOpen {
    pub(crate) permits: u32,
    pub(crate) rule: ProbeRule,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum ProbeRule {
    Required(u32),
    Ratio { samples: u32, rate: f64 },
    Progressive { stage: Duration, rate: f64 },
}

impl HalfOpen {
    /// At most `permits` probes in flight; as many successes close, any failure opens again.
    #[must_use]
    pub const fn permits(permits: u32) -> Self {
        Self { permits, rule: ProbeRule::Required(permits) }
    }

    /// Closes after `successes` instead of as many as permits; still any failure opens again.
    #[must_use]
    pub const fn required(mut self, successes: u32) -> Self {
        self.rule = ProbeRule::Required(successes);
        self
    }

    /// Decides after `samples` results: opens again when the share of failures is at least `rate`, else closes. For
    /// dependencies of which a known part always fails.
    ///
    /// ```
    /// use mainstay_resilience::breaker::HalfOpen;
    ///
    /// assert_ne!(HalfOpen::ratio(5, 20, 0.3), HalfOpen::permits(5)); // of twenty, five may fail
    /// ```
    #[must_use]
    pub const fn ratio(permits: u32, samples: u32, rate: f64) -> Self {
        Self { permits, rule: ProbeRule::Ratio { samples, rate } }
    }

    /// Admits 0.1, 1, 5, 10, 25 and 50 % of calls, but at least the first, in stages of at least `stage` and one result
    /// each, then closes: at the next result or the next call. Opens again as soon as half of a stage's results are failures. For services that break again when everybody
    /// comes back at once: cold caches, an empty queue in front of a slow store. The ladder is that of the crate
    /// `seatbelt`.
    #[must_use]
    pub const fn progressive(permits: u32, stage: Duration) -> Self {
        Self { permits, rule: ProbeRule::Progressive { stage, rate: 0.5 } }
    }
}

/// What a call means that was dropped before it ended: by a caller who lost patience, by a hedge that won, by a deadline
/// further up.
///
/// Whatever is chosen, a dropped probe gives its permit back. And where a window of time holds nothing but dropped calls,
/// or in the other windows nothing else came since the last result, so many of them as
/// [`min_calls`](BreakerConfig::min_calls) open the breaker: else a dead host whose every call is dropped in favor of
/// another would stay invisible.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{Breaker, breaker::Abandoned};
///
/// let ms = Duration::from_millis;
/// let patience = |b: mainstay_resilience::breaker::BreakerBuilder| b.build().unwrap().config().abandoned();
/// let of = || Breaker::builder("search");
/// assert_eq!(patience(of()), Abandoned::FailureIfElapsed(ms(1_000)));
/// assert_eq!(patience(of().attempt_timeout(ms(300))), Abandoned::FailureIfElapsed(ms(150)));
/// assert_eq!(patience(of().slow(ms(500), 0.8)), Abandoned::FailureIfElapsed(ms(500)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Abandoned {
    /// A failure.
    Failure,
    /// A failure if it had run this long, nothing otherwise. Callers that lose patience are evidence.
    FailureIfElapsed(Duration),
    /// Nothing.
    Ignore,
}

/// Settings of a [`Breaker`](crate::Breaker). Change them while it runs by
/// [`Breaker::reconfigure`](crate::Breaker::reconfigure).
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | window | 10 s | a window of 30 s never tripped in a brown-out of 10 s with budgeted retries |
/// | failure rate | 0.5 | consecutive failures are jumpy at high rates |
/// | min calls | 20 | two failures of three calls say little |
/// | slow calls | off | what is slow depends on the service; 500 ms at 0.8 is a start |
/// | open for | 2 s, doubling to 30 s, 10 % jitter | 60 s fixed meant 55 s of needless outage |
/// | half-open | 3 permits, 3 successes | one lucky probe is no recovery |
/// | probe lease | the attempt timeout, at least 10 s | a hung probe must not wedge the breaker |
/// | abandoned | failure after the slow threshold, half the attempt timeout (the breaker's own, else that of the policy around the call), or 1 s | callers' patience is evidence |
///
/// ```
/// use mainstay_resilience::Breaker;
///
/// let breaker = Breaker::builder("payments").build().unwrap();
/// breaker.reconfigure(|c| { c.set_failure_rate(0.3).set_min_calls(50); }).unwrap();
/// let config = breaker.config();
/// assert_eq!((config.failure_rate(), config.min_calls(), config.slow()), (0.3, 50, None));
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerConfig {
    pub(crate) window: Window,
    pub(crate) failure_rate: f64,
    pub(crate) slow: Option<(Duration, f64)>,
    pub(crate) min_calls: u32,
    pub(crate) open_for: Duration,
    pub(crate) growth: f64,
    pub(crate) open_cap: Duration,
    pub(crate) jitter: f64,
    pub(crate) half_open: HalfOpen,
    pub(crate) lease: Option<Duration>,
    pub(crate) abandoned: Option<Abandoned>,
    pub(crate) attempt_timeout: Option<Duration>,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            window: Window::Time(Duration::from_secs(10)),
            failure_rate: 0.5,
            slow: None,
            min_calls: 20,
            open_for: Duration::from_secs(2),
            growth: 2.0,
            open_cap: Duration::from_secs(30),
            jitter: 0.1,
            half_open: HalfOpen::permits(3),
            lease: None,
            abandoned: None,
            attempt_timeout: None,
        }
    }
}

impl BreakerConfig {
    /// Sets the window. The kind of a running breaker's window cannot change, its size can.
    pub fn set_window(&mut self, window: Window) -> &mut Self {
        self.window = window;
        self
    }

    /// Sets the share of failures that trips, in `(0, 1]`.
    pub fn set_failure_rate(&mut self, rate: f64) -> &mut Self {
        self.failure_rate = rate;
        self
    }

    /// Sets how long a slow call takes and which share of them trips; `None` switches it off.
    pub fn set_slow(&mut self, slow: Option<(Duration, f64)>) -> &mut Self {
        self.slow = slow;
        self
    }

    /// Sets how many results the window needs before a rate can trip.
    pub fn set_min_calls(&mut self, n: u32) -> &mut Self {
        self.min_calls = n;
        self
    }

    /// Sets a constant open time.
    pub fn set_open_for(&mut self, d: Duration) -> &mut Self {
        (self.open_for, self.growth, self.open_cap) = (d, 1.0, d);
        self
    }

    /// Sets an open time that grows by `factor` with every failed half-open round, up to `cap`.
    pub fn set_growing_open(&mut self, base: Duration, factor: f64, cap: Duration) -> &mut Self {
        (self.open_for, self.growth, self.open_cap) = (base, factor, cap);
        self
    }

    /// Sets the jitter of the open time: 0.1 means plus or minus 10 %.
    pub fn set_jitter(&mut self, share: f64) -> &mut Self {
        self.jitter = share;
        self
    }

    /// Sets how half-open works.
    pub fn set_half_open(&mut self, half_open: HalfOpen) -> &mut Self {
        self.half_open = half_open;
        self
    }

    /// Sets how long a probe may hold its permit.
    pub fn set_probe_lease(&mut self, d: Duration) -> &mut Self {
        self.lease = Some(d);
        self
    }

    /// Sets what dropped calls mean.
    pub fn set_abandoned(&mut self, abandoned: Abandoned) -> &mut Self {
        self.abandoned = Some(abandoned);
        self
    }

    /// Tells the breaker the attempt timeout of its callers; only defaults depend on it.
    pub fn set_attempt_timeout(&mut self, d: Duration) -> &mut Self {
        self.attempt_timeout = Some(d);
        self
    }

    /// The window.
    #[must_use]
    pub fn window(&self) -> Window {
        self.window
    }

    /// The share of failures that trips.
    #[must_use]
    pub fn failure_rate(&self) -> f64 {
        self.failure_rate
    }

    /// How long a slow call takes, and the share of slow calls that trips.
    #[must_use]
    pub fn slow(&self) -> Option<(Duration, f64)> {
        self.slow
    }

    /// Results needed before a rate can trip.
    #[must_use]
    pub fn min_calls(&self) -> u32 {
        self.min_calls
    }

    /// The first open time.
    #[must_use]
    pub fn open_for(&self) -> Duration {
        self.open_for
    }

    /// Probes in flight, at most.
    #[must_use]
    pub fn permits(&self) -> u32 {
        self.half_open.permits
    }

    /// How long a probe may hold its permit.
    #[must_use]
    pub fn probe_lease(&self) -> Duration {
        const LEAST: Duration = Duration::from_secs(10);
        self.lease.unwrap_or_else(|| self.attempt_timeout.unwrap_or(LEAST).max(LEAST))
    }

    /// What dropped calls mean.
    #[must_use]
    pub fn abandoned(&self) -> Abandoned {
        const PATIENCE: Duration = Duration::from_secs(1);
        self.abandoned.unwrap_or_else(|| {
            let half = self.attempt_timeout.map(|d| d / 2);
            Abandoned::FailureIfElapsed(self.slow.map(|(d, _)| d).or(half).unwrap_or(PATIENCE))
        })
    }

    /// Whether nothing that is set says what dropped calls mean: then half the attempt timeout of a policy does.
    pub(crate) fn is_abandoned_open(&self) -> bool {
        self.abandoned.is_none() && self.slow.is_none() && self.attempt_timeout.is_none()
    }

    /// Checks every field and the fields against each other.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        self.check_window()?;
        share("failure_rate", self.failure_rate)?;
        if let Some((threshold, rate)) = self.slow {
            crate::error::check_time("slow", threshold)?;
            share("slow_rate", rate)?;
        }
        crate::error::check_time("open_for", self.open_for)?;
        if !(self.growth.is_finite() && self.growth >= 1.0) {
            return Err(ConfigError::new("open_growth", self.growth, "a finite number >= 1"));
        }
        if self.open_cap < self.open_for || self.open_cap > MAX_TIME {
            let allowed = format!("{:?} (open_for) to {MAX_TIME:?}", self.open_for);
            return Err(ConfigError::new("open_cap", format!("{:?}", self.open_cap), allowed));
        }
        if !(self.jitter.is_finite() && (0.0..1.0).contains(&self.jitter)) {
            return Err(ConfigError::new("jitter", self.jitter, "a number in [0, 1)"));
        }
        if let Some(lease) = self.lease {
            crate::error::check_time("probe_lease", lease)?;
        }
        if let Some(timeout) = self.attempt_timeout {
            crate::error::check_time("attempt_timeout", timeout)?;
            if self.probe_lease() < timeout {
                let allowed = format!("at least the attempt timeout, {timeout:?}");
                let lease = format!("{:?}", self.probe_lease());
                return Err(ConfigError::new("probe_lease", lease, allowed));
            }
        }
        self.check_half_open()
    }

    fn check_window(&self) -> Result<(), ConfigError> {
        match self.window {
            Window::Consecutive(k) => {
                count("consecutive", k, MAX_COUNT)?;
                if let Some((threshold, _)) = self.slow {
                    let allowed = "none with a consecutive window: it has no rates";
                    return Err(ConfigError::new("slow", format!("{threshold:?}"), allowed));
                }
            }
            Window::Count(n) => {
                count("window", n, MAX_COUNT)?;
                if self.min_calls > n {
                    let allowed = format!("1 to {n}, the size of the window");
                    return Err(ConfigError::new("min_calls", self.min_calls, allowed));
                }
            }
            Window::Time(span) if !(MIN_WINDOW..=MAX_WINDOW).contains(&span) => {
                let allowed = format!("{MIN_WINDOW:?} to {MAX_WINDOW:?}");
                return Err(ConfigError::new("window", format!("{span:?}"), allowed));
            }
            Window::Time(_) => {}
        }
        count("min_calls", self.min_calls, u32::MAX)
    }

    fn check_half_open(&self) -> Result<(), ConfigError> {
        count("half_open.permits", self.half_open.permits, MAX_PERMITS)?;
        match self.half_open.rule {
            ProbeRule::Required(n) => count("half_open.required", n, MAX_COUNT),
            ProbeRule::Ratio { samples, rate } => {
                count("half_open.samples", samples, MAX_COUNT)?;
                share("half_open.rate", rate)
            }
            ProbeRule::Progressive { stage, rate } => {
                crate::error::check_time("half_open.stage", stage)?;
                share("half_open.rate", rate)
            }
        }
    }
}

fn share(field: &'static str, x: f64) -> Result<(), ConfigError> {
    if x > 0.0 && x <= 1.0 { Ok(()) } else { Err(ConfigError::new(field, x, "a number in (0, 1]")) }
}

fn count(field: &'static str, n: u32, most: u32) -> Result<(), ConfigError> {
    if n == 0 || n > most {
        return Err(ConfigError::new(field, n, format!("1 to {most}")));
    }
    Ok(())
}
