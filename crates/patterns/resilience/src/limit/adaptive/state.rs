//! The decision core: samples go in, a limit comes out.
//!
//! Sources: AIMD is Chiu and Jain, "Analysis of the Increase and Decrease Algorithms for Congestion
//! Avoidance" (1989); Vegas is Brakmo and Peterson, "TCP Vegas" (1995), with the thresholds of Netflix'
//! concurrency-limits; the gradient is that project's Gradient2 with the growth guard of this one.

use std::time::Duration;

use mainstay_clock::Instant;

use super::baseline::{Baseline, Mean, ProbeConfig, Step};

/// One finished call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    /// How long it took.
    pub(crate) rtt: Duration,
    /// Calls in flight when it was admitted, itself included.
    pub(crate) in_flight: u32,
    /// The epoch it was admitted in.
    pub(crate) epoch: u32,
}

/// The rule, validated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    Aimd { timeout: Duration, backoff: f64 },
    Gradient { tolerance: f64, growth: f64, smoothing: f64 },
    Vegas,
}

/// Bounds of every rule, validated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) rule: Rule,
    pub(crate) initial: u32,
    pub(crate) min: u32,
    pub(crate) max: u32,
    pub(crate) probe: ProbeConfig,
}

/// Fewest samples of one window of the rules that look at times.
const WINDOW: f64 = 100.0;
/// The raw ratio `baseline / window` that still allows growth: below it a queue has begun.
const GROWTH_GUARD: f64 = 0.95;
/// Share of the limit given up for a window with drops.
const DROP: f64 = 0.1;
/// A ratio this low is a queue as long as the service itself takes, or a baseline that no longer holds.
const DOUBT: f64 = 0.5;
/// Weight of a window in the smoothed ratio that guards growth.
const RATIO_WEIGHT: f64 = 0.2;

/// A limit that follows the service behind it.
#[derive(Clone, Debug)]
pub(crate) struct State {
    settings: Settings,
    limit: f64,
    baseline: Baseline,
    window: Window,
    /// Smoothed `baseline / window`, so that the noise of one window is no reason to grow.
    ratio: Option<f64>,
    /// Completions per second of the last window that was bounded by the limit.
    throughput: Option<f64>,
    /// AIMD: one decrease per round trip; calls admitted before it say nothing new.
    epoch: u32,
}

/// The samples since the last decision.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    rtt: Mean,
    drops: u32,
    max_in_flight: u32,
    start: Option<Instant>,
}

impl State {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            limit: f64::from(settings.initial),
            baseline: Baseline::new(settings.probe),
            window: Window::default(),
            ratio: None,
            throughput: None,
            epoch: 0,
        }
    }

    /// The limit now; lowered while the baseline is measured.
    pub(crate) fn limit(&self) -> u32 {
        let limit =
            if self.is_aimd() { self.limit } else { self.baseline.lowered(self.limit).unwrap_or(self.limit) };
        (limit as u32).max(1)
    }

    /// The epoch of a call admitted now; each decrease of AIMD begins a new one.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The time without a queue, once measured; AIMD has none.
    pub(crate) fn baseline(&self) -> Option<Duration> {
        self.baseline.value().and_then(|s| Duration::try_from_secs_f64(s).ok())
    }

    /// Whether the limit is lowered for a measurement.
    pub(crate) fn is_probing(&self) -> bool {
        !self.is_aimd() && self.baseline.lowered(self.limit).is_some()
    }

    /// A call succeeded. `unit` is a random number in `[0, 1)`.
    pub(crate) fn on_success(&mut self, sample: Sample, now: Instant, unit: f64) {
        if let Rule::Aimd { timeout, .. } = self.settings.rule {
            if sample.rtt > timeout {
                self.on_drop(sample, now);
            } else if sample.in_flight.saturating_mul(2) >= self.limit() {
                self.set(self.limit + 1.0);
            }
            return;
        }
        let rtt = sample.rtt.as_secs_f64();
        match self.baseline.on_sample(rtt, self.limit, unit) {
            Step::Probing => {}
            Step::Began => self.window = Window::default(),
            Step::Measured => self.resume(),
            Step::Ordinary => self.gather(sample, Some(rtt), now),
        }
    }

    /// A call was refused for overload or timed out. At most one decrease per round trip (AIMD) or window
    /// (the others): a hundred drops of one overload are one piece of news.
    pub(crate) fn on_drop(&mut self, sample: Sample, now: Instant) {
        let Rule::Aimd { backoff, .. } = self.settings.rule else {
            if !self.is_probing() {
                self.gather(sample, None, now);
            }
            return;
        };
        if sample.epoch == self.epoch {
            self.epoch = self.epoch.wrapping_add(1);
            self.set((self.limit - 1.0).min((self.limit * backoff).floor()));
        }
    }

    /// After a measurement: no more than what the service did, by Little's law. A limit that stood above
    /// the knee comes down to it here, whatever tolerance the gradient has.
    fn resume(&mut self) {
        self.window = Window::default();
        let queued = self.ratio.is_some_and(|ratio| ratio < GROWTH_GUARD);
        if let (true, Some(throughput), Some(baseline)) =
            (queued, self.throughput.take(), self.baseline.value())
        {
            self.set(self.limit.min(throughput * baseline));
        }
    }

    fn gather(&mut self, sample: Sample, rtt: Option<f64>, now: Instant) {
        let window = &mut self.window;
        let start = *window.start.get_or_insert(now);
        match rtt {
            Some(rtt) => window.rtt.add(rtt),
            None => window.drops += 1,
        }
        window.max_in_flight = window.max_in_flight.max(sample.in_flight);
        if f64::from(window.rtt.count + window.drops) < WINDOW.max(2.0 * self.limit) {
            return;
        }
        let done = std::mem::take(&mut self.window);
        let elapsed = now.saturating_duration_since(start).as_secs_f64();
        let bounded = f64::from(done.max_in_flight) >= self.limit.floor();
        // The first sample opened the window, so it does not count for the rate.
        self.throughput =
            (bounded && elapsed > 0.0).then(|| f64::from(done.rtt.count.saturating_sub(1)) / elapsed);
        if done.drops > 0 {
            self.set(self.limit - log10(self.limit).max(self.limit * DROP));
        } else if let Some(baseline) = self.baseline.value() {
            let may_grow = f64::from(done.max_in_flight) >= self.limit / 2.0;
            self.decide(baseline, done.rtt, may_grow);
        }
    }

    /// One decision per window: `baseline` and `rtt` in seconds.
    fn decide(&mut self, baseline: f64, rtts: Mean, may_grow: bool) {
        let (rtt, samples) = (rtts.mean(), f64::from(rtts.count));
        let raw = if rtt > 0.0 { baseline / rtt } else { 1.0 };
        let smoothed = self.ratio.map_or(raw, |old| old + RATIO_WEIGHT * (raw - old));
        self.ratio = Some(smoothed);
        if raw < DOUBT {
            self.baseline.doubt(self.limit);
        }
        match self.settings.rule {
            Rule::Aimd { .. } => {}
            Rule::Gradient { tolerance, growth, smoothing } => {
                let gradient = (tolerance * raw).clamp(0.5, 1.0);
                let grow = may_grow && raw.min(smoothed) >= GROWTH_GUARD;
                let more = if grow { self.growth(smoothing * growth, samples) } else { 0.0 };
                self.set(self.limit * (1.0 - smoothing * (1.0 - gradient)) + more);
            }
            Rule::Vegas => self.vegas(raw, may_grow),
        }
    }

    /// `step` per two round trips, at most a twentieth of the limit per window: the smoothed ratio needs some
    /// windows to notice a queue.
    fn growth(&self, step: f64, samples: f64) -> f64 {
        (step * samples / (2.0 * self.limit)).min((self.limit * 0.05).max(0.1))
    }

    fn vegas(&mut self, raw: f64, may_grow: bool) {
        let log = log10(self.limit);
        let queue = (self.limit * (1.0 - raw)).ceil();
        let step = if queue > 6.0 * log {
            -log
        } else if !may_grow {
            0.0
        } else if queue <= log {
            6.0 * log
        } else if queue < 3.0 * log {
            log
        } else {
            0.0
        };
        self.set(self.limit + step);
    }

    fn set(&mut self, limit: f64) {
        self.limit = limit.clamp(f64::from(self.settings.min), f64::from(self.settings.max));
    }

    fn is_aimd(&self) -> bool {
        matches!(self.settings.rule, Rule::Aimd { .. })
    }
}

/// The step of Vegas: at least 1, so that small limits still move.
fn log10(limit: f64) -> f64 {
    limit.log10().max(1.0)
}
