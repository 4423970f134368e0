//! Backoff schedules: how long to wait before retry `n`.
//!
//! The order of every schedule is: formula, jitter, clamp to `cap`. The clamp comes last, so no delay
//! ever exceeds `cap`. The jitters are those of M. Brooker, "Exponential Backoff And Jitter" (AWS
//! Architecture Blog, 2015).

use std::time::Duration;

use crate::Rng;

/// How the delay grows with the number of the retry.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Growth {
    /// Always `base`.
    Constant,
    /// `base * factor^(n-1)`.
    Exponential {
        /// Growth per retry; 2.0 doubles.
        factor: f64,
    },
    /// `base * n`.
    Linear,
}

/// How randomness spreads the retries of many callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Jitter {
    /// `U[base, 3 * previous]`; ignores the growth.
    Decorrelated,
    /// `d/2 + U[0, d/2]`.
    Equal,
    /// `U[0, d]`; spreads best.
    Full,
    /// `d`.
    None,
}

/// Why a schedule was refused.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackoffError {
    /// The base exceeds the cap.
    #[error("backoff base {base:?} exceeds cap {cap:?}; allowed: 0 < base <= cap")]
    BaseOverCap {
        /// The refused base.
        base: Duration,
        /// The cap it exceeds.
        cap: Duration,
    },
    /// The growth factor is not a finite number of at least 1.
    #[error("backoff factor {0} is not a finite number >= 1")]
    Factor(f64),
    /// The base is zero: retries would spin.
    #[error("backoff base 0 is not allowed; allowed: 0 < base <= cap")]
    ZeroBase,
}

/// A validated schedule.
///
/// # Defaults
/// None: base and cap depend on the operation; [`Backoff::exponential`] doubles with full jitter because
/// that spreads a herd best.
///
/// ```
/// use mainstay_clock::{SeededRng, backoff::{Backoff, Jitter}};
/// use std::time::Duration;
///
/// let ms = Duration::from_millis;
/// let schedule = Backoff::exponential(ms(50), ms(400)).unwrap().with_jitter(Jitter::None);
/// let rng = SeededRng::new(1);
/// let mut state = schedule.start();
/// let delays: Vec<_> = (0..5).map(|_| state.next_delay(&rng)).collect();
/// assert_eq!(delays, [ms(50), ms(100), ms(200), ms(400), ms(400)]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    growth: Growth,
    jitter: Jitter,
}

impl Backoff {
    /// Any growth, without jitter.
    ///
    /// # Errors
    /// [`BackoffError`] when `base` is zero or exceeds `cap`, or the factor is below 1 or not finite.
    pub fn new(base: Duration, cap: Duration, growth: Growth) -> Result<Self, BackoffError> {
        if base.is_zero() {
            return Err(BackoffError::ZeroBase);
        }
        if base > cap {
            return Err(BackoffError::BaseOverCap { base, cap });
        }
        match growth {
            Growth::Exponential { factor } if !(factor.is_finite() && factor >= 1.0) => {
                Err(BackoffError::Factor(factor))
            }
            _ => Ok(Self { base, cap, growth, jitter: Jitter::None }),
        }
    }

    /// Doubles from `base` to `cap` with full jitter.
    ///
    /// # Errors
    /// [`BackoffError`] as for [`Backoff::new`].
    pub fn exponential(base: Duration, cap: Duration) -> Result<Self, BackoffError> {
        Ok(Self::new(base, cap, Growth::Exponential { factor: 2.0 })?.with_jitter(Jitter::Full))
    }

    /// The same schedule with another jitter.
    #[must_use]
    pub fn with_jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The first delay before jitter.
    #[must_use]
    pub fn base(&self) -> Duration {
        self.base
    }

    /// The largest delay.
    #[must_use]
    pub fn cap(&self) -> Duration {
        self.cap
    }

    /// The delay before retry `n` (from 1) without jitter, clamped; never overflows.
    #[must_use]
    pub fn plain(&self, n: u32) -> Duration {
        let n = n.max(1);
        let raw = match self.growth {
            Growth::Constant => self.base,
            Growth::Linear => self.base.saturating_mul(n),
            Growth::Exponential { factor } => {
                let exponent = i32::try_from(n - 1).unwrap_or(i32::MAX);
                scale(self.base, factor.powi(exponent), self.cap)
            }
        };
        raw.min(self.cap)
    }

    /// The delay before retry `n` (from 1), jittered and clamped. `previous` is the delay before it, which
    /// only [`Jitter::Decorrelated`] reads; `None` before the first.
    pub fn delay(&self, n: u32, previous: Option<Duration>, rng: &dyn Rng) -> Duration {
        let plain = self.plain(n);
        let jittered = match self.jitter {
            Jitter::None => plain,
            Jitter::Full => scale(plain, rng.unit(), self.cap),
            Jitter::Equal => (plain / 2).saturating_add(scale(plain / 2, rng.unit(), self.cap)),
            Jitter::Decorrelated => {
                let top = previous.unwrap_or(self.base).saturating_mul(3).max(self.base);
                self.base.saturating_add(scale(top - self.base, rng.unit(), top))
            }
        };
        jittered.min(self.cap)
    }

    /// A counter that starts before retry 1.
    #[must_use]
    pub fn start(&self) -> BackoffState {
        BackoffState { schedule: *self, retries: 0, previous: None }
    }
}

/// A schedule and how far one operation has come in it.
#[derive(Clone, Debug)]
pub struct BackoffState {
    schedule: Backoff,
    retries: u32,
    previous: Option<Duration>,
}

impl BackoffState {
    /// The delay before the next retry.
    pub fn next_delay(&mut self, rng: &dyn Rng) -> Duration {
        self.retries = self.retries.saturating_add(1);
        let delay = self.schedule.delay(self.retries, self.previous, rng);
        self.previous = Some(delay);
        delay
    }

    /// Delays handed out so far.
    #[must_use]
    pub fn retries(&self) -> u32 {
        self.retries
    }
}

/// `d * x` without a panic: what cannot be expressed becomes `limit`.
fn scale(d: Duration, x: f64, limit: Duration) -> Duration {
    Duration::try_from_secs_f64(d.as_secs_f64() * x).unwrap_or(limit).min(limit)
}
