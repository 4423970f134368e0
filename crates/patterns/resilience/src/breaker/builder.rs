//! Building a breaker.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;

use super::config::{Abandoned, BreakerConfig, HalfOpen, Window};
use super::core::{Core, Parts};
use super::{Breaker, Registry};
use crate::event::{Ear, Kind};
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
    pub fn consecutive(mut self, k: u32) -> Self {
        self.config.set_window(Window::Consecutive(k));
        self
    }

    /// Decides by the results of the last `d`, in ten buckets: between nine and ten tenths of it. Shorter than what an
    /// outage may last, or the successes from before it outvote it.
    ///
    /// `build` refuses less than 100 ms and more than an hour.
    pub fn window(mut self, d: Duration) -> Self {
        self.config.set_window(Window::Time(d));
        self
    }

    /// Decides by exactly the last `n` results; a success then takes a short lock. For traffic so uneven that a time
    /// means nothing.
    ///
    /// `build` refuses 0, more than 100,000, and fewer than [`min_calls`](Self::min_calls).
    pub fn count_window(mut self, n: u32) -> Self {
        self.config.set_window(Window::Count(n));
        self
    }

    /// Trips at this share of failures, in `(0, 1]`: at exactly this share, not above it.
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.config.set_failure_rate(rate);
        self
    }

    /// Trips when this share of calls takes `threshold` or longer. Below about 10 ms use
    /// [`precise`](Self::precise).
    pub fn slow(mut self, threshold: Duration, rate: f64) -> Self {
        self.config.set_slow(Some((threshold, rate)));
        self
    }

    /// Results the window needs before a rate can trip. More than the window ever holds, and the breaker never opens
    /// (rule M9 of [`lint`](crate::lint)).
    pub fn min_calls(mut self, n: u32) -> Self {
        self.config.set_min_calls(n);
        self
    }

    /// Stays open for `d`, always, up to the [`jitter`](Self::jitter). What is longer than the outage is outage too.
    pub fn open_for(mut self, d: Duration) -> Self {
        self.config.set_open_for(d);
        self
    }

    /// Stays open for `base`, `factor` times longer after every failed half-open round, up to `cap`: soon back after a
    /// hiccup, seldom in the way of a long outage. Closing starts it over.
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
    pub fn probe_lease(mut self, d: Duration) -> Self {
        self.config.set_probe_lease(d);
        self
    }

    /// What dropped calls mean; see [`Abandoned`].
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
        let parts = Parts {
            ear: Ear::new(Kind::Breaker, &self.name, self.listener.as_ref()),
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
