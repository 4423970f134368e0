//! When to try again, and after how long.
//!
//! A retry is a slot of a [`Policy`](crate::Policy): the loop itself lives there, because a retry without a
//! deadline and a budget around it is what keeps overloads alive.
//!
//! # The decision
//!
//! After each failure, in this order; the first "no" ends the call, and [`Stop`](crate::Stop) says which it was:
//!
//! 1. Is the failure of a kind to retry ([`Verdict`](crate::Verdict)), and may the operation be repeated at all?
//! 2. Are attempts left?
//! 3. Does the predicate of [`when`](RetryBuilder::when) agree?
//! 4. Is the server's advice within [`max_retry_after`](RetryBuilder::max_retry_after)?
//! 5. Is there time: for the delay within [`total_time`](RetryBuilder::total_time), for the delay *and* an attempt before
//!    the deadline?
//! 6. Does the [budget](crate::budget) pay?
//!
//! # Delays
//!
//! ```text
//! exp(n) = min(cap, base * factor^(n-1))     constant = base     linear = min(cap, base * n)
//! full jitter  = U[0, exp(n)]                equal = exp(n)/2 + U[0, exp(n)/2]
//! decorrelated = min(cap, U[base, 3 * previous])                 none = exp(n)
//! ```
//!
//! `n` is the number of the retry, from 1. The clamp comes after the jitter, so no delay exceeds the cap, and the
//! arithmetic saturates: attempt ten thousand is as harmless as the tenth. With server advice the wait is the longer of
//! both.
//!
//! Sources: "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015) for the jitters; RFC 9110 for `Retry-After`; gRFC
//! A6 for push-back.

mod after;
mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::backoff::{Backoff, BackoffError, Growth, Jitter};

pub use after::{Pushback, pushback, retry_after};
pub use state::Failed;
pub(crate) use state::{Bounds, Decision, Used};

use crate::ConfigError;
use crate::error::MAX_TIME;

/// Most attempts: beyond this somebody confused a retry with a loop.
const MAX_ATTEMPTS: u32 = 1_000_000;

/// What server advice does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Advice {
    /// Wait at least as long as asked; stop when that is more than `at_most`.
    Followed { at_most: Duration },
    /// Wait as asked, but between the own delay and so much more.
    Clamped { extra: Duration },
}

impl Advice {
    fn longest(self) -> Duration {
        match self {
            Self::Followed { at_most } => at_most,
            Self::Clamped { extra } => extra,
        }
    }
}

/// How failed attempts are repeated. Cheap to clone.
///
/// Guarantees: at most `attempts` executions, the first included; no delay above the cap, jitter included, but
/// for server advice within its own bound; no attempt starts that cannot finish before the deadline.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::Retry;
///
/// let ms = Duration::from_millis;
/// assert_eq!(Retry::exponential(ms(50), ms(2_000)).attempts(3).build().unwrap().max_attempts(), 3);
/// let refused = Retry::exponential(ms(50), ms(20)).build().unwrap_err();
/// assert_eq!(refused.field(), "cap");
/// assert_eq!(Retry::exponential(ms(50), ms(60)).attempts(0).build().unwrap_err().field(), "attempts");
/// ```
#[derive(Clone, Debug)]
pub struct Retry {
    schedule: Backoff,
    throttled: Option<Backoff>,
    attempts: u32,
    total: Option<Duration>,
    advice: Advice,
    min_attempt_time: Duration,
    when: Option<When>,
}

#[derive(Clone)]
struct When(Arc<dyn Fn(&Failed) -> bool + Send + Sync>);

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("When")
    }
}

/// Settings of a [`Retry`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | attempts | 3 | more of them rarely help and always load |
/// | jitter | full | spreads a herd best |
/// | factor | 2 | |
/// | max retry after | 60 s | a server may ask for patience, not for ever |
/// | min attempt time | 0 | unknown here; set it to the fastest useful answer |
#[derive(Clone, Debug)]
#[must_use]
pub struct RetryBuilder {
    base: Duration,
    cap: Duration,
    growth: Growth,
    jitter: Jitter,
    throttled: Option<(Duration, Duration)>,
    attempts: u32,
    total: Option<Duration>,
    advice: Advice,
    min_attempt_time: Duration,
    when: Option<When>,
}

impl Retry {
    /// Doubling delays from `base` to `cap`, with full jitter: each is drawn from zero to what the doubling says.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Retry;
    ///
    /// let ms = Duration::from_millis;
    /// let upside_down = Retry::exponential(ms(500), ms(50)).build().unwrap_err();
    /// assert_eq!((upside_down.field(), upside_down.value()), ("cap", "50ms"));
    /// ```
    pub fn exponential(base: Duration, cap: Duration) -> RetryBuilder {
        RetryBuilder::new(base, cap, Growth::Exponential { factor: 2.0 }, Jitter::Full)
    }

    /// Delays of `base`, twice `base`, and so on up to `cap`, with full jitter. Gentler than doubling; for dependencies
    /// that are back in a known time.
    pub fn linear(base: Duration, cap: Duration) -> RetryBuilder {
        RetryBuilder::new(base, cap, Growth::Linear, Jitter::Full)
    }

    /// Always `delay`, without jitter: for a single client. A fleet of them would retry in step; add
    /// [`jitter`](RetryBuilder::jitter).
    pub fn constant(delay: Duration) -> RetryBuilder {
        RetryBuilder::new(delay, delay, Growth::Constant, Jitter::None)
    }

    /// What we would choose: 3 attempts, 50 ms to 2 s, doubling, full jitter.
    pub fn standard() -> RetryBuilder {
        Self::exponential(Duration::from_millis(50), Duration::from_secs(2))
    }

    /// AWS retry behaviour 2.1: 3 attempts, base 50 ms, after throttling 1 s, cap 20 s; advice is clamped to at
    /// most 5 s above the own delay. Use it with [`BudgetBuilder::aws`](crate::budget::BudgetBuilder::aws); the adaptive
    /// mode of the same source is [`SendRate`](crate::limit::SendRate).
    ///
    /// Source: the AWS SDKs' reference on retry behavior.
    ///
    /// ```
    /// use mainstay_resilience::{Budget, Policy, Retry, limit::SendRate};
    ///
    /// let policy = Policy::builder("table")
    ///     .idempotent()
    ///     .retry(Retry::aws().build().unwrap())
    ///     .budget(&Budget::builder("table").aws().build().unwrap())
    ///     .send_rate(&SendRate::builder("table").build().unwrap())
    ///     .build()
    ///     .unwrap();
    /// // 500 tokens pay for 35 retries at 14.
    /// assert_eq!(policy.snapshot().budget.unwrap().available, 35.0);
    /// ```
    pub fn aws() -> RetryBuilder {
        let cap = Duration::from_secs(20);
        let mut aws = Self::exponential(Duration::from_millis(50), cap);
        aws.throttled = Some((Duration::from_secs(1), cap));
        aws.advice = Advice::Clamped { extra: Duration::from_secs(5) };
        aws
    }

    /// Executions at most, the first included.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.attempts
    }

    /// The schedule of delays.
    #[must_use]
    pub fn schedule(&self) -> &Backoff {
        &self.schedule
    }

    pub(crate) fn min_attempt_time(&self) -> Duration {
        self.min_attempt_time
    }
}

impl RetryBuilder {
    fn new(base: Duration, cap: Duration, growth: Growth, jitter: Jitter) -> Self {
        Self {
            base,
            cap,
            growth,
            jitter,
            throttled: None,
            attempts: 3,
            total: None,
            advice: Advice::Followed { at_most: Duration::from_secs(60) },
            min_attempt_time: Duration::ZERO,
            when: None,
        }
    }

    /// Executions at most, the first included. 1 is no retry at all; `build` refuses 0 and more than a million.
    ///
    /// ```
    /// use std::io::{Error, ErrorKind};
    /// use mainstay_resilience::{CallContext, Policy, Retry};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let retry = Retry::constant(std::time::Duration::from_millis(1)).attempts(3).build().unwrap();
    /// let policy = Policy::builder("search").idempotent().retry(retry).build().unwrap();
    /// let down = |_| async { Err::<(), _>(Error::from(ErrorKind::ConnectionReset)) };
    /// assert_eq!(policy.call(&CallContext::new(), down).await.unwrap_err().attempts(), 3); // not four
    /// assert_eq!(Retry::standard().attempts(0).build().unwrap_err().field(), "attempts");
    /// # });
    /// ```
    pub fn attempts(mut self, n: u32) -> Self {
        self.attempts = n;
        self
    }

    /// The jitter. It comes before the clamp: no delay exceeds the cap. Full jitter spreads a herd best; equal jitter
    /// never retries at once; none is for tests.
    pub fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// The growth of an exponential schedule: 2 doubles. `build` refuses what is not finite or below 1.
    pub fn factor(mut self, factor: f64) -> Self {
        self.growth = Growth::Exponential { factor };
        self
    }

    /// No attempt starts later than this after the call began. A policy's deadline also bounds the attempts themselves;
    /// this one only says when to stop repeating.
    pub fn total_time(mut self, d: Duration) -> Self {
        self.total = Some(d);
        self
    }

    /// Longest server advice that is followed; beyond it the call ends and hands the advice on as
    /// [`CallError::retry_after`](crate::CallError::retry_after). The deadline bounds it in any case.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{CallContext, Policy, Retry, Verdict};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let retry = Retry::standard().max_retry_after(Duration::from_secs(10)).build().unwrap();
    /// let policy = Policy::builder("search").idempotent().retry(retry).build().unwrap();
    /// let tomorrow = Duration::from_secs(86_400);
    /// let all = |_: &Result<(), &str>| Verdict::Throttled { after: Some(tomorrow) };
    /// let failed = policy.call_with(&CallContext::new(), all, |_| async { Err("come back tomorrow") }).await;
    /// let failed = failed.unwrap_err();
    /// assert_eq!((failed.attempts(), failed.retry_after()), (1, Some(tomorrow))); // told, and not waited for
    /// # });
    /// ```
    pub fn max_retry_after(mut self, d: Duration) -> Self {
        self.advice = Advice::Followed { at_most: d };
        self
    }

    /// Delays after throttling, in place of the usual ones: a service that says "slow down" needs longer pauses than a
    /// connection that broke.
    pub fn when_throttled(mut self, base: Duration, cap: Duration) -> Self {
        self.throttled = Some((base, cap));
        self
    }

    /// The least time in which an attempt can succeed: none starts with less before the deadline.
    pub fn min_attempt_time(mut self, d: Duration) -> Self {
        self.min_attempt_time = d;
        self
    }

    /// A further condition, asked after the verdict allowed a retry. It can only say no.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{CallContext, CallError, Policy, Retry, Stop};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// // Resets may be repeated, timeouts not: too expensive here.
    /// let retry = Retry::constant(Duration::from_millis(1)).when(|failed| !failed.timed_out).build().unwrap();
    /// let policy = Policy::builder("report")
    ///     .idempotent()
    ///     .retry(retry)
    ///     .attempt_timeout(Duration::from_millis(5))
    ///     .build()
    ///     .unwrap();
    /// let hung = policy.call(&CallContext::new(), |_| std::future::pending::<Result<(), std::io::Error>>()).await;
    /// let Err(CallError::GaveUp(gave_up)) = hung else { panic!("it may not be repeated") };
    /// assert_eq!((gave_up.attempts(), gave_up.stop()), (1, Stop::When));
    /// # });
    /// ```
    pub fn when(mut self, when: impl Fn(&Failed) -> bool + Send + Sync + 'static) -> Self {
        self.when = Some(When(Arc::new(when)));
        self
    }

    /// Checks the settings and builds.
    ///
    /// # Errors
    /// [`ConfigError`] names the refused field, its value and what is allowed.
    pub fn build(&self) -> Result<Retry, ConfigError> {
        if self.attempts == 0 || self.attempts > MAX_ATTEMPTS {
            let allowed = format!("1 to {MAX_ATTEMPTS}; 1 is the first call alone");
            return Err(ConfigError::new("attempts", self.attempts, allowed));
        }
        self.total.map_or(Ok(()), |d| crate::error::check_time("total_time", d))?;
        let longest = [
            ("cap", self.cap),
            ("min_attempt_time", self.min_attempt_time),
            ("max_retry_after", self.advice.longest()),
        ];
        if let Some((field, d)) = longest.into_iter().find(|(_, d)| *d > MAX_TIME) {
            return Err(ConfigError::new(field, format!("{d:?}"), format!("at most {MAX_TIME:?}")));
        }
        let schedule = backoff(Backoff::new(self.base, self.cap, self.growth))?.with_jitter(self.jitter);
        let throttled = match self.throttled {
            Some((base, cap)) => {
                Some(backoff(Backoff::new(base, cap, self.growth))?.with_jitter(self.jitter))
            }
            None => None,
        };
        Ok(Retry {
            schedule,
            throttled,
            attempts: self.attempts,
            total: self.total,
            advice: self.advice,
            min_attempt_time: self.min_attempt_time,
            when: self.when.clone(),
        })
    }
}

fn backoff(made: Result<Backoff, BackoffError>) -> Result<Backoff, ConfigError> {
    made.map_err(|error| match error {
        BackoffError::ZeroBase => ConfigError::new("base", "0 s", "more than 0 s, at most the cap"),
        BackoffError::BaseOverCap { base, cap } => {
            ConfigError::new("cap", format!("{cap:?}"), format!("at least the base, {base:?}"))
        }
        BackoffError::Factor(factor) => ConfigError::new("factor", factor, "a finite number >= 1"),
        other => ConfigError::new("backoff", other, "0 < base <= cap, factor >= 1"),
    })
}
