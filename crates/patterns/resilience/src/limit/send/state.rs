//! The arithmetic of an adaptive send rate.
//!
//! Source: the adaptive retry mode of the AWS SDKs, which takes the growth from CUBIC (RFC 9438): down to 0.7 of what
//! was sent when the service says "slow down", then along a cubic that is flat around the rate at which it said so.

use std::time::Duration;

use mainstay_clock::Instant;

/// What one throttling leaves of the rate.
const SHRINK: f64 = 0.7;
/// The constant of the cubic, in attempts per second per second cubed.
const GROWTH: f64 = 0.4;
/// Attempts per second below which the rate never falls: something must be sent to notice a recovery.
const FLOOR: f64 = 0.5;
/// How far beyond what is really sent the rate may grow: a rate that nobody uses says nothing.
const HEADROOM: f64 = 2.0;
/// Seconds of one measurement of what is sent.
const PERIOD: f64 = 0.5;
/// Weight of the newest measurement.
const WEIGHT: f64 = 0.8;
/// What rounding may take from a whole token.
const DUST: f64 = 1e-9;

/// A token bucket whose rate follows the service; no bound at all until the service throttles for the first time.
#[derive(Clone, Debug)]
pub(crate) struct State {
    rate: Option<f64>,
    /// Below zero while callers wait for their turns.
    tokens: f64,
    filled: Instant,
    /// Rate at which the service throttled last.
    peak: f64,
    throttled: Instant,
    /// One decrease per round trip: what was sent before it says nothing new.
    epoch: u32,
    meter: Meter,
}

/// Attempts per second, smoothed.
#[derive(Clone, Debug, Default)]
struct Meter {
    period: u64,
    count: f64,
    smoothed: f64,
}

impl State {
    pub(crate) fn new(now: Instant) -> Self {
        let meter = Meter::default();
        Self { rate: None, tokens: 0.0, filled: now, peak: 0.0, throttled: now, epoch: 0, meter }
    }

    /// Attempts per second that may be sent; `None` while there is no bound.
    pub(crate) fn rate(&self) -> Option<f64> {
        self.rate
    }

    /// The epoch of an attempt that is sent now.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Takes a token that is there or due within `patience`: how long until it is. `None`: there is no bound, and
    /// nothing was taken.
    ///
    /// # Errors
    /// When one will be due, beyond the patience; nothing is taken.
    pub(crate) fn reserve(&mut self, now: Instant, patience: Duration) -> Result<Option<Duration>, Duration> {
        let Some(rate) = self.rate else { return Ok(None) };
        self.fill(rate, now);
        let missing = 1.0 - self.tokens;
        let wait = if missing <= DUST { Duration::ZERO } else { seconds(missing / rate) };
        if wait > patience {
            return Err(wait);
        }
        self.tokens -= 1.0;
        Ok(Some(wait))
    }

    /// A token was not used after all.
    pub(crate) fn give_back(&mut self) {
        if let Some(rate) = self.rate {
            self.tokens = (self.tokens + 1.0).min(capacity(rate));
        }
    }

    /// An attempt that was sent in `epoch` ended.
    pub(crate) fn report(&mut self, epoch: u32, throttled: bool, now: Instant) {
        self.meter.count(now);
        let next = if throttled {
            if epoch != self.epoch {
                return;
            }
            self.epoch = self.epoch.wrapping_add(1);
            let sent = self.meter.rate();
            self.peak = self.rate.map_or(sent, |rate| rate.min(sent));
            self.throttled = now;
            self.peak * SHRINK
        } else {
            if self.rate.is_none() {
                return;
            }
            let since = now.saturating_duration_since(self.throttled).as_secs_f64();
            GROWTH * (since - plateau(self.peak)).powi(3) + self.peak
        };
        // The old rate fills until now, the new one from now on.
        match self.rate {
            Some(rate) => self.fill(rate, now),
            None => self.filled = now,
        }
        let rate = next.min(HEADROOM * self.meter.rate()).max(FLOOR);
        self.rate = Some(rate);
        self.tokens = self.tokens.min(capacity(rate));
    }

    fn fill(&mut self, rate: f64, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + passed * rate).min(capacity(rate));
    }
}

/// Most tokens that are saved up: one second's worth, and at least a whole one.
fn capacity(rate: f64) -> f64 {
    rate.max(1.0)
}

/// Seconds after a throttling until the cubic is back at the peak.
fn plateau(peak: f64) -> f64 {
    (peak * (1.0 - SHRINK) / GROWTH).cbrt()
}

fn seconds(s: f64) -> Duration {
    Duration::try_from_secs_f64(s).unwrap_or(Duration::MAX)
}

impl Meter {
    /// What is sent. The running period counts as far as it goes: a service that throttles in the first half second
    /// must not find that nothing was sent.
    fn rate(&self) -> f64 {
        self.smoothed.max(self.count / PERIOD)
    }

    fn count(&mut self, now: Instant) {
        let period = (now.as_nanos() as f64 / 1e9 / PERIOD) as u64;
        if self.period == 0 {
            self.period = period;
        }
        self.count += 1.0;
        if period > self.period {
            let current = self.count / ((period - self.period) as f64 * PERIOD);
            self.smoothed = WEIGHT * current + (1.0 - WEIGHT) * self.smoothed;
            (self.period, self.count) = (period, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstay_clock::Instant;

    use super::State;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos((10_000 + ms) * 1_000_000)
    }

    /// After `seconds` of ten attempts per second.
    fn busy(seconds: u64) -> State {
        let mut state = State::new(at(0));
        (0..seconds * 10).for_each(|i| state.report(0, false, at(i * 100)));
        state
    }

    #[test]
    fn there_is_no_bound_until_the_service_throttles() {
        let mut state = busy(10);
        assert_eq!((state.rate(), state.reserve(at(10_000), Duration::ZERO)), (None, Ok(None)));
        state.report(0, true, at(10_000));
        let rate = state.rate().unwrap();
        assert!((rate - 7.0).abs() < 0.1, "{rate}");
        // Others that were sent before the decrease are the same news.
        (0..10).for_each(|_| state.report(0, true, at(10_000)));
        assert_eq!((state.rate(), state.epoch()), (Some(rate), 1));
        // Nothing is saved up yet: the first waits a whole token, the second two.
        let mut wait = || state.reserve(at(10_000), Duration::MAX).unwrap().unwrap().as_secs_f64();
        let (first, second) = (wait(), wait());
        assert!((first - 1.0 / rate).abs() < 1e-6 && (second - 2.0 / rate).abs() < 1e-6, "{first} {second}");
        // A third would wait longer than it may, and takes nothing; a token that comes back serves the next.
        assert!(state.reserve(at(10_000), Duration::from_millis(300)).is_err());
        state.give_back();
        assert!(state.reserve(at(10_000), Duration::from_millis(300)).is_ok());
    }

    #[test]
    fn it_grows_along_a_cubic_and_not_far_beyond_what_is_sent() {
        let mut state = busy(10);
        state.report(0, true, at(10_000));
        let at_peak = super::plateau(state.peak);
        assert!((at_peak - (10.0_f64 * 0.3 / 0.4).cbrt()).abs() < 0.02, "{at_peak}");
        for i in 1..=400 {
            state.report(1, false, at(10_000 + i * 100));
            let (rate, t) = (state.rate().unwrap(), i as f64 / 10.0);
            let cubic = 0.4 * (t - at_peak).powi(3) + state.peak;
            let expected = cubic.min(2.0 * state.meter.rate()).max(0.5);
            assert!((rate - expected).abs() < 1e-9, "{t} s: {rate}");
            assert!(rate <= 20.5, "twice what is sent: {rate}");
        }
        assert!(state.rate().unwrap() > 19.0);
    }

    #[test]
    fn what_was_sent_in_the_first_half_second_counts() {
        let mut state = State::new(at(0));
        (0..20).for_each(|i| state.report(0, false, at(i)));
        state.report(0, true, at(20));
        let rate = state.rate().unwrap();
        assert!((rate - 0.7 * 42.0).abs() < 1e-9, "21 in half a second: {rate}");
    }

    #[test]
    fn it_never_falls_below_the_floor_and_saves_up_at_least_one_attempt() {
        let mut state = busy(10);
        (0..50).for_each(|i| state.report(state.epoch(), true, at(10_000 + i)));
        assert_eq!(state.rate(), Some(0.5));
        assert_eq!(state.reserve(at(30_000), Duration::ZERO), Ok(Some(Duration::ZERO)));
        assert_eq!(state.reserve(at(30_000), Duration::from_secs(2)), Ok(Some(Duration::from_secs(2))));
    }
}
