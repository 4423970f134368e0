//! Which fault the n-th request meets.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use mainstay_clock::{Rng, SeededRng};

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Fault {
    /// It arrives late by this much; nothing else.
    Delay(Duration),
    /// The connection ends before the request is passed on: no effect.
    Drop,
    /// It is delivered twice, one after the other; the first reply goes back.
    Duplicate,
    /// It is delivered twice and no reply goes back.
    DuplicateLost,
    /// Answered with 500 and not passed on: no effect, but the caller cannot know.
    Error,
    /// Delivered, and the reply is cut off: the effect stands.
    Lost,
}

impl Fault {
    /// Its name in logs and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Delay(_) => "delay",
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::DuplicateLost => "duplicate+lost",
            Self::Error => "error",
            Self::Lost => "lost",
        }
    }
}

/// Shares of requests that meet each fault, 0 to 1; the rest passes unharmed. Made by [`HttpFaults::builder`].
#[derive(Clone, Debug, PartialEq)]
pub struct HttpFaults {
    drop: f64,
    error: f64,
    lost: f64,
    duplicate: f64,
    delay: f64,
    delays: RangeInclusive<Duration>,
}

/// Builds [`HttpFaults`]; every share starts at 0.
#[derive(Clone, Debug)]
pub struct HttpFaultsBuilder(HttpFaults);

impl HttpFaults {
    /// No faults at all.
    #[must_use]
    pub fn none() -> Self {
        Self {
            drop: 0.0,
            error: 0.0,
            lost: 0.0,
            duplicate: 0.0,
            delay: 0.0,
            delays: Duration::ZERO..=Duration::ZERO,
        }
    }

    /// Starts to choose shares.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_chaos::proxy::HttpFaults;
    ///
    /// let faults = HttpFaults::builder().drop(0.02).lost(0.02).delay(0.05, Duration::ZERO..=Duration::from_millis(50));
    /// assert!(faults.build().is_ok());
    /// assert!(HttpFaults::builder().drop(0.9).lost(0.9).build().is_err(), "shares add up to more than 1");
    /// ```
    #[must_use]
    pub fn builder() -> HttpFaultsBuilder {
        HttpFaultsBuilder(Self::none())
    }

    /// The fault of request number `n` under `seed`. Pure: the schedule can be printed before the run.
    #[must_use]
    pub fn nth(&self, seed: u64, n: u64) -> Option<Fault> {
        // One generator per request: the schedule does not depend on how much earlier requests drew.
        let rng = SeededRng::new(seed ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut at = rng.unit();
        let classes = [
            (self.drop, Fault::Drop),
            (self.error, Fault::Error),
            (self.lost, Fault::Lost),
            (self.duplicate, Fault::Duplicate),
            (self.delay, Fault::Delay(self.delay_of(&rng))),
        ];
        for (share, fault) in classes {
            if at < share {
                return Some(fault);
            }
            at -= share;
        }
        None
    }

    fn delay_of(&self, rng: &SeededRng) -> Duration {
        let span = self.delays.end().saturating_sub(*self.delays.start());
        self.delays.start().saturating_add(span.mul_f64(rng.unit()))
    }
}

impl HttpFaultsBuilder {
    /// Share of requests dropped before they are passed on.
    #[must_use]
    pub fn drop(mut self, share: f64) -> Self {
        self.0.drop = share;
        self
    }

    /// Share of requests answered 500 without being passed on.
    #[must_use]
    pub fn error(mut self, share: f64) -> Self {
        self.0.error = share;
        self
    }

    /// Share of requests whose reply is cut off.
    #[must_use]
    pub fn lost(mut self, share: f64) -> Self {
        self.0.lost = share;
        self
    }

    /// Share of requests delivered twice.
    #[must_use]
    pub fn duplicate(mut self, share: f64) -> Self {
        self.0.duplicate = share;
        self
    }

    /// Share of requests that come late, and by how much.
    #[must_use]
    pub fn delay(mut self, share: f64, by: RangeInclusive<Duration>) -> Self {
        self.0.delay = share;
        self.0.delays = by;
        self
    }

    /// Checks the shares.
    ///
    /// # Errors
    /// A text that names the share that is out of range, or their sum.
    pub fn build(self) -> Result<HttpFaults, String> {
        let f = &self.0;
        let shares = [
            ("drop", f.drop),
            ("error", f.error),
            ("lost", f.lost),
            ("duplicate", f.duplicate),
            ("delay", f.delay),
        ];
        for (name, share) in shares {
            if !(0.0..=1.0).contains(&share) {
                return Err(format!("`{name}` is {share}; allowed: 0 to 1"));
            }
        }
        let sum: f64 = shares.iter().map(|(_, s)| s).sum();
        if sum > 1.0 + 1e-9 {
            return Err(format!("the shares add up to {sum}; allowed: at most 1"));
        }
        if f.delays.start() > f.delays.end() {
            return Err("`delay` ends before it begins".to_owned());
        }
        Ok(self.0)
    }
}

/// Faults by class, as they were done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Requests that came in.
    pub requests: u64,
    /// Late ones.
    pub delayed: u64,
    /// Dropped ones.
    pub dropped: u64,
    /// Delivered twice.
    pub duplicated: u64,
    /// Answered 500 by the proxy.
    pub errors: u64,
    /// Done, with the reply cut off.
    pub lost: u64,
    /// Not delivered because the service did not answer: killed, or not up yet.
    pub unreachable: u64,
}

impl Counts {
    pub(super) fn add(&mut self, fault: Fault) {
        match fault {
            Fault::Delay(_) => self.delayed += 1,
            Fault::Drop => self.dropped += 1,
            Fault::Duplicate => self.duplicated += 1,
            Fault::DuplicateLost => {
                self.duplicated += 1;
                self.lost += 1;
            }
            Fault::Error => self.errors += 1,
            Fault::Lost => self.lost += 1,
        }
    }
}

/// Which requests a forced fault is for: the path and the body.
type Matches = Box<dyn Fn(&str, &[u8]) -> bool + Send + Sync>;

/// A fault for the first request that matches and reaches the service, whatever the seed says.
pub struct Forced {
    pub(super) fault: Fault,
    pub(super) matches: Matches,
}

impl Forced {
    /// Forces `fault` on the first request for which `matches(path, body)` holds. It stays armed until the
    /// request was delivered as often as the fault asks.
    #[must_use]
    pub fn new(fault: Fault, matches: impl Fn(&str, &[u8]) -> bool + Send + Sync + 'static) -> Self {
        Self { fault, matches: Box::new(matches) }
    }
}

impl fmt::Debug for Forced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forced").field("fault", &self.fault).finish_non_exhaustive()
    }
}
