//! The round-trip time without a queue, measured instead of guessed.
//!
//! A baseline that follows the measured times follows an overload too: the ratio returns to 1 and the limit
//! creeps up without end (concurrency-limits#134). So the limit is lowered now and then, and only calls
//! admitted under the lowered limit are measured. The instants are jittered: many limiters in front of
//! one service must not probe together (envoy#8337).

/// How often and how wide the baseline is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ProbeConfig {
    /// Samples per unit of the limit between two probes, before jitter.
    pub(crate) every_per_limit: u32,
    /// Fewest calls in flight during a probe; not the same thing as the minimum limit.
    pub(crate) concurrency: u32,
    /// Samples that make one measurement.
    pub(crate) samples: u32,
}

/// Weight of a new measurement: averages the noise of single probes, forgets a stale baseline in a few.
const WEIGHT: f64 = 0.3;
/// Ordinary samples per sample of a probe, at least: a probe costs up to half the throughput.
const FEWEST: f64 = 20.0;
/// A call this many times longer than the baseline was hung; its length is no measurement.
const LONGEST: f64 = 10.0;
/// Samples per unit of the limit that come back before a probe measures: five round trips at half the limit.
const DRAIN: f64 = 2.5;
/// Samples per unit of the limit until the probe after a surprise.
const FIRST: u32 = 4;
/// A measurement this far from the baseline is a new situation, not noise.
const SHIFT: f64 = 0.25;

/// What a sample did to the baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Step {
    /// Nothing; the sample belongs to the ordinary window.
    Ordinary,
    /// A probe began: lower the limit.
    Began,
    /// The probe goes on; the sample is not for the window.
    Probing,
    /// The probe ended: a new baseline stands.
    Measured,
}

/// Measures the baseline. Without clock and randomness: the caller passes a number in `[0, 1)`.
#[derive(Clone, Debug)]
pub(crate) struct Baseline {
    config: ProbeConfig,
    value: Option<f64>,
    /// Ordinary samples until the next probe.
    left: u64,
    /// Samples per unit of the limit between two probes: few after a surprise, the configured number after
    /// some confirmations.
    every: u32,
    probe: Option<Probe>,
}

impl Baseline {
    /// Begins with a probe: the first calls make the first baseline.
    pub(crate) fn new(config: ProbeConfig) -> Self {
        Self { config, value: None, left: 0, every: FIRST, probe: Some(Probe::default()) }
    }

    /// Seconds without a queue, once measured.
    pub(crate) fn value(&self) -> Option<f64> {
        self.value
    }

    /// The limit during a probe of a limiter that otherwise allows `limit`: half of it, so that a queue of
    /// up to one service time's worth drains, but not below the configured concurrency.
    pub(crate) fn lowered(&self, limit: f64) -> Option<f64> {
        self.probe.as_ref().map(|_| lowered(&self.config, limit))
    }

    /// The window is far off the baseline: measure soon, it may be the baseline that is wrong.
    pub(crate) fn doubt(&mut self, limit: f64) {
        self.every = FIRST.min(self.config.every_per_limit);
        self.left = self.left.min(self.pause(limit, 0.0));
    }

    /// Takes the round-trip time (seconds) of a call that succeeded.
    pub(crate) fn on_sample(&mut self, rtt: f64, limit: f64, unit: f64) -> Step {
        let Some(probe) = &mut self.probe else {
            self.left = self.left.saturating_sub(1);
            if self.left > 0 {
                return Step::Ordinary;
            }
            self.probe = Some(Probe::default());
            return Step::Began;
        };
        // Until the queue has drained. Calls admitted before the probe count afterwards: leaving out what
        // began early would leave out what takes long, and the baseline would be too low.
        if f64::from(probe.skipped) < DRAIN * limit {
            probe.skipped += 1;
            return Step::Probing;
        }
        probe.rtt.add(self.value.map_or(rtt, |value| rtt.min(value * LONGEST)));
        if probe.rtt.count < self.config.samples {
            return Step::Probing;
        }
        let measured = probe.rtt.mean();
        self.probe = None;
        match self.value {
            Some(old) if (measured - old).abs() <= SHIFT * old => {
                self.value = Some(old + WEIGHT * (measured - old));
                self.every = self.every.saturating_mul(2).min(self.config.every_per_limit);
            }
            _ => {
                self.value = Some(measured);
                self.every = FIRST.min(self.config.every_per_limit);
            }
        }
        self.left = self.pause(limit, unit);
        Step::Measured
    }

    /// Samples until the next probe: `every * limit * U[0.5, 1]`.
    fn pause(&self, limit: f64, unit: f64) -> u64 {
        let samples = f64::from(self.every) * limit * (0.5 + 0.5 * unit);
        let fewest = if self.every < self.config.every_per_limit { 1.0 } else { FEWEST * (0.5 + 0.5 * unit) };
        samples.max(f64::from(self.config.samples) * fewest) as u64
    }
}

/// A measurement under way.
#[derive(Clone, Copy, Debug, Default)]
struct Probe {
    skipped: u32,
    rtt: Mean,
}

fn lowered(config: &ProbeConfig, limit: f64) -> f64 {
    (limit / 2.0).max(f64::from(config.concurrency)).min(limit)
}

/// A running mean.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mean {
    sum: f64,
    pub(crate) count: u32,
}

impl Mean {
    pub(crate) fn add(&mut self, x: f64) {
        self.sum += x;
        self.count += 1;
    }

    pub(crate) fn mean(self) -> f64 {
        self.sum / f64::from(self.count.max(1))
    }
}
