//! Building a breaker.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;

use super::config::{Abandoned, BreakerConfig, HalfOpen, Window};
use super::core::{Core, Parts};
use super::{Breaker, Registry};
use crate::event::{Ear, Kind, Source};
use crate::policy::ProbeGate;
use crate::{ConfigError, Listener};

/// Settings of a [`Breaker`]; see [`BreakerConfig`] for the defaults and their reasons.
///
/// One of three windows decides: failures in a row ([`consecutive`](Self::consecutive)), the results of the last while
/// ([`window`](Self::window), the default) or exactly the last so many ([`count_window`](Self::count_window)). The last
/// one that is set holds.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::Breaker;
/// use mainstay_resilience::breaker::{HalfOpen, State};
///
/// let breaker = Breaker::builder("search")
///     .window(Duration::from_secs(5))
///     .min_calls(4)
///     .failure_rate(0.5)
///     .slow(Duration::from_millis(500), 0.8)
///     .growing_open(Duration::from_secs(1), 2.0, Duration::from_secs(20))
///     .half_open(HalfOpen::permits(2).required(5))
///     .build()
///     .unwrap();
/// for failed in [false, true, false, true] {
///     let ticket = breaker.admit().unwrap();
///     if failed { ticket.failure() } else { ticket.success() }
/// }
/// assert_eq!(breaker.state(), State::Open); // two of four
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct BreakerBuilder {
    pub(super) name: Arc<str>,
    config: BreakerConfig,
    runtime: Option<Runtime>,
    listener: Option<Arc<dyn Listener>>,
    gate: Option<Arc<dyn ProbeGate>>,
    precise: bool,
}

impl BreakerBuilder {
    pub(super) fn new(name: Arc<str>) -> Self {
        Self {
            name,
            config: BreakerConfig::default(),
            runtime: None,
            listener: None,
            gate: None,
            precise: false,
        }
    }

    /// The textbook's numbers with correct semantics: 5 failures in a row, open for 60 s, 3 probes, 3
    /// successes. For whoever moves over and wants the same figures first; the defaults recover sooner.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{Breaker, breaker::Window};
    ///
    /// let classic = Breaker::builder("legacy").classic().build().unwrap().config();
    /// assert_eq!((classic.window(), classic.permits()), (Window::Consecutive(5), 3));
    /// assert_eq!(classic.open_for(), Duration::from_secs(60));
    /// ```
    pub fn classic(mut self) -> Self {
        self.config
            .set_window(Window::Consecutive(5))
            .set_open_for(Duration::from_secs(60))
            .set_jitter(0.0)
            .set_half_open(HalfOpen::permits(3));
        self
    }

    /// Trips after `k` failures in a row. Cheapest, and good where calls are rare; at high rates one unlucky streak is
    /// enough, and a service that fails four calls in five never trips it.
    ///
    /// `build` refuses 0 and more than 100,000, and slow calls beside it: a streak has no rates.
    ///
    /// ```
    /// use mainstay_resilience::{Breaker, breaker::State};
    ///
    /// let breaker = Breaker::builder("printer").consecutive(3).build().unwrap();
    /// for failed in [true, true, false, true, true] {
    ///     let ticket = breaker.admit().unwrap();
    ///     if failed { ticket.failure() } else { ticket.success() }
    /// }
    /// assert_eq!(breaker.state(), State::Closed); // four failures in five, and never three in a row
    /// ```
    pub fn consecutive(mut self, k: u32) -> Self {
        self.config.set_window(Window::Consecutive(k));
        self
    }

    /// Decides by the results of the last `d`, in ten buckets: between nine and ten tenths of it. Shorter than what an
    /// outage may last, or the successes from before it outvote it.
    ///
    /// `build` refuses less than 100 ms and more than an hour.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Breaker;
    ///
    /// assert!(Breaker::builder("search").window(Duration::from_secs(5)).build().is_ok());
    /// let hasty = Breaker::builder("search").window(Duration::from_millis(20)).build().unwrap_err();
    /// assert_eq!((hasty.field(), hasty.value()), ("window", "20ms")); // its buckets would be finer than the tick
    /// ```
    pub fn window(mut self, d: Duration) -> Self {
        self.config.set_window(Window::Time(d));
        self
    }

    /// Decides by exactly the last `n` results; a success then takes a short lock. For traffic so uneven that a time
    /// means nothing.
    ///
    /// `build` refuses 0, more than 100,000, and fewer than [`min_calls`](Self::min_calls).
    ///
    /// ```
    /// use mainstay_resilience::{Breaker, breaker::State};
    ///
    /// let breaker = Breaker::builder("nightly").count_window(10).min_calls(10).failure_rate(0.5).build().unwrap();
    /// for _ in 0..10_000 {
    ///     breaker.admit().unwrap().success();
    /// }
    /// let failures = (1..).find(|_| {
    ///     breaker.admit().unwrap().failure();
    ///     breaker.state() == State::Open
    /// });
    /// assert_eq!(failures, Some(5)); // of the last ten; the ten thousand before them count no more
    /// ```
    pub fn count_window(mut self, n: u32) -> Self {
        self.config.set_window(Window::Count(n));
        self
    }

    /// Trips at this share of failures, in `(0, 1]`: at exactly this share, not above it.
    ///
    /// A rate below what the service fails on a good day opens it on a good day; one near 1 waits for a total outage.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    ///
    /// for nonsense in [0.0, -0.1, 1.1, f64::NAN] {
    ///     let refused = Breaker::builder("search").failure_rate(nonsense).build().unwrap_err();
    ///     assert_eq!(refused.field(), "failure_rate");
    /// }
    /// ```
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.config.set_failure_rate(rate);
        self
    }

    /// Trips when this share of calls takes `threshold` or longer. Below about 10 ms use
    /// [`precise`](Self::precise).
    ///
    /// A hung dependency fails nobody until the timeouts end, so a rate of failures alone sees it late. While half-open a slow
    /// probe counts as failed: an answer nobody waits for is no recovery.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_clock::{Clock as _, SystemClock};
    /// use mainstay_resilience::{Breaker, breaker::State};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let slow = Duration::from_millis(10);
    /// let breaker = Breaker::builder("search").slow(slow, 0.8).min_calls(2).precise().build().unwrap();
    /// for _ in 0..2 {
    ///     let ticket = breaker.admit().unwrap();
    ///     SystemClock::new().sleep(slow * 2).await;
    ///     ticket.success();
    /// }
    /// assert_eq!(breaker.state(), State::Open); // nothing has failed
    /// # });
    /// ```
    pub fn slow(mut self, threshold: Duration, rate: f64) -> Self {
        self.config.set_slow(Some((threshold, rate)));
        self
    }

    /// Results the window needs before a rate can trip. More than the window ever holds, and the breaker never opens
    /// (rule M9 of [`lint`](crate::lint)).
    ///
    /// ```
    /// use mainstay_resilience::{Breaker, breaker::State};
    ///
    /// let breaker = Breaker::builder("search").min_calls(4).build().unwrap();
    /// let mut states = Vec::new();
    /// for _ in 0..4 {
    ///     breaker.admit().unwrap().failure();
    ///     states.push(breaker.state());
    /// }
    /// assert_eq!(states, [State::Closed, State::Closed, State::Closed, State::Open]);
    /// ```
    pub fn min_calls(mut self, n: u32) -> Self {
        self.config.set_min_calls(n);
        self
    }

    /// Stays open for `d`, always, up to the [`jitter`](Self::jitter). What is longer than the outage is outage too.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Breaker;
    ///
    /// let breaker =
    ///     Breaker::builder("search").consecutive(1).open_for(Duration::from_secs(600)).jitter(0.0).build().unwrap();
    /// breaker.admit().unwrap().failure();
    /// let wait = breaker.admit().unwrap_err().retry_after().unwrap();
    /// assert!(wait > Duration::from_secs(300) && wait <= Duration::from_secs(600));
    /// ```
    pub fn open_for(mut self, d: Duration) -> Self {
        self.config.set_open_for(d);
        self
    }

    /// Stays open for `base`, `factor` times longer after every failed half-open round, up to `cap`: soon back after a
    /// hiccup, seldom in the way of a long outage. Closing starts it over.
    ///
    /// `build` refuses a base of zero or above the cap, and a factor below 1.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Breaker;
    ///
    /// let secs = Duration::from_secs;
    /// assert!(Breaker::builder("search").growing_open(secs(1), 3.0, secs(60)).build().is_ok());
    /// assert!(Breaker::builder("search").growing_open(secs(60), 2.0, secs(1)).build().is_err());
    /// assert!(Breaker::builder("search").growing_open(secs(1), 0.5, secs(60)).build().is_err());
    /// ```
    pub fn growing_open(mut self, base: Duration, factor: f64, cap: Duration) -> Self {
        self.config.set_growing_open(base, factor, cap);
        self
    }

    /// Jitter of the open time: 0.1 means plus or minus 10 %, so that the nodes of a fleet do not probe in step.
    pub fn jitter(mut self, share: f64) -> Self {
        self.config.set_jitter(share);
        self
    }

    /// How half-open works: by permits, by a share of samples, or as a ramp; see [`HalfOpen`].
    pub fn half_open(mut self, half_open: HalfOpen) -> Self {
        self.config.set_half_open(half_open);
        self
    }

    /// How long a probe may hold its permit. Then the permit is free, and whatever the probe still reports is void: a
    /// hung probe cannot keep the breaker half-open. Never shorter than an attempt may take, or `build` refuses.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Breaker;
    ///
    /// let secs = Duration::from_secs;
    /// let hasty = Breaker::builder("report").attempt_timeout(secs(30)).probe_lease(secs(5));
    /// assert_eq!(hasty.build().unwrap_err().field(), "probe_lease"); // every probe would be void
    /// assert_eq!(Breaker::builder("report").attempt_timeout(secs(30)).build().unwrap().config().probe_lease(), secs(30));
    /// ```
    pub fn probe_lease(mut self, d: Duration) -> Self {
        self.config.set_probe_lease(d);
        self
    }

    /// What dropped calls mean; see [`Abandoned`].
    ///
    /// ```
    /// use mainstay_resilience::{Breaker, breaker::{Abandoned, State}};
    ///
    /// let breaker = Breaker::builder("search").consecutive(2).abandoned(Abandoned::Failure).build().unwrap();
    /// for _ in 0..2 {
    ///     drop(breaker.admit().unwrap()); // a caller who lost patience
    /// }
    /// assert_eq!(breaker.state(), State::Open);
    /// ```
    pub fn abandoned(mut self, abandoned: Abandoned) -> Self {
        self.config.set_abandoned(abandoned);
        self
    }

    /// The attempt timeout of the callers; only the defaults of lease and abandoned calls depend on it.
    pub fn attempt_timeout(mut self, d: Duration) -> Self {
        self.config.set_attempt_timeout(d);
        self
    }

    /// Any setting, by its setter: the same closure serves here and in
    /// [`Breaker::reconfigure`].
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    /// use mainstay_resilience::breaker::BreakerConfig;
    ///
    /// fn from_our_file(config: &mut BreakerConfig) {
    ///     config.set_failure_rate(0.3).set_min_calls(50);
    /// }
    ///
    /// let breaker = Breaker::builder("search").configure(from_our_file).build().unwrap();
    /// breaker.reconfigure(from_our_file).unwrap(); // and whenever the file changes
    /// assert_eq!(breaker.config().failure_rate(), 0.3);
    /// ```
    pub fn configure(mut self, f: impl FnOnce(&mut BreakerConfig)) -> Self {
        f(&mut self.config);
        self
    }

    /// Clock and randomness (of the jitter and the ramp). Default: the system's. Tests and simulations pass their own.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.runtime = Some(runtime.clone());
        self
    }

    /// Hears transitions, refusals and ended calls. With a listener the success path is no longer bare.
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Asked before a probe passes, outside every lock: rations probes beyond this one breaker, as a
    /// [`Fleet`](crate::fleet::Fleet) does.
    ///
    /// ```
    /// use std::{sync::Arc, time::Duration};
    /// use mainstay_clock::Instant;
    /// use mainstay_resilience::{Breaker, policy::ProbeGate};
    ///
    /// /// Nobody probes before the morning shift is there.
    /// #[derive(Debug)]
    /// struct Night;
    ///
    /// impl ProbeGate for Night {
    ///     fn admit(&self, _breaker: &str, _now: Instant) -> Result<(), Option<Duration>> {
    ///         Err(Some(Duration::from_secs(3_600)))
    ///     }
    /// }
    ///
    /// let breaker = Breaker::builder("ledger")
    ///     .consecutive(1)
    ///     .open_for(Duration::from_nanos(1))
    ///     .probe_gate(Arc::new(Night))
    ///     .build()
    ///     .unwrap();
    /// breaker.admit().unwrap().failure();
    /// let refused = (0..1_000).find_map(|_| breaker.admit().err()?.retry_after().filter(|d| d.as_secs() == 3_600));
    /// assert!(refused.is_some()); // its time is over, and the gate says no
    /// ```
    pub fn probe_gate(mut self, gate: Arc<dyn ProbeGate>) -> Self {
        self.gate = Some(gate);
        self
    }

    /// Reads the exact clock twice per call instead of the tick of about 1 ms: some 50 ns more.
    pub fn precise(mut self) -> Self {
        self.precise = true;
        self
    }

    /// Checks the settings and builds.
    ///
    /// # Errors
    /// [`ConfigError`] names the refused field, its value and what is allowed.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    ///
    /// let template = Breaker::builder("search").consecutive(1);
    /// let (a, b) = (template.build().unwrap(), template.build().unwrap());
    /// a.admit().unwrap().failure();
    /// assert!(a.admit().is_err() && b.admit().is_ok()); // built twice: two breakers; a clone would be the same one
    /// ```
    pub fn build(&self) -> Result<Breaker, ConfigError> {
        self.build_keyed(None)
    }

    /// Checks the settings and builds a registry: one breaker per key, at most `max_keys`, forgotten after
    /// `idle` without a call.
    ///
    /// # Errors
    /// [`ConfigError`] as for [`build`](Self::build), and for a bound or idle time of zero.
    pub fn keyed(self, max_keys: usize, idle: Duration) -> Result<Registry, ConfigError> {
        self.config.check()?;
        Registry::new(self, max_keys, idle)
    }

    pub(super) fn runtime_or_system(&self) -> Runtime {
        self.runtime.clone().unwrap_or_else(Runtime::system)
    }

    pub(super) fn build_keyed(&self, key: Option<Arc<str>>) -> Result<Breaker, ConfigError> {
        self.config.check()?;
        let runtime = self.runtime_or_system();
        let source = Source::new(Kind::Breaker, &self.name);
        let source = if key.is_some() { source.keyed() } else { source };
        let parts = Parts {
            ear: Ear::of(source, self.listener.as_ref()),
            name: Arc::clone(&self.name),
            key,
            clock: Arc::clone(runtime.clock()),
            rng: Arc::clone(runtime.rng()),
            gate: self.gate.clone(),
            precise: self.precise,
        };
        Ok(Breaker::of(Core::new(self.config.clone(), parts)))
    }
}
