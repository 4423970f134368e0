//! Stops calling what does not answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{ConfigError, Listener};

/// What a breaker does with calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// A person lets every call pass; nothing is counted.
    ForcedClosed,
    /// A person refuses every call.
    ForcedOpen,
    /// Probes pass.
    HalfOpen,
    /// A person lets every call pass; results are counted, nothing trips.
    MetricsOnly,
    /// Calls are refused.
    Open,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::ForcedClosed => "forced_closed",
            Self::ForcedOpen => "forced_open",
            Self::HalfOpen => "half_open",
            Self::MetricsOnly => "metrics_only",
            Self::Open => "open",
        })
    }
}

/// One change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    to: State,
}

impl Transition {
    /// The new state.
    #[must_use]
    pub fn to(&self) -> State {
        self.to
    }
}

/// A circuit breaker. Clones share it.
#[derive(Clone, Debug)]
pub struct Breaker(Arc<()>);

/// Settings of a [`Breaker`].
#[derive(Clone, Debug)]
#[must_use]
pub struct BreakerBuilder {
    rate: f64,
    listener: Option<Arc<dyn Listener>>,
}

impl Breaker {
    /// Starts a breaker named `name`.
    pub fn builder(_name: impl Into<Arc<str>>) -> BreakerBuilder {
        BreakerBuilder { rate: 0.5, listener: None }
    }

    /// Refuses every call until `release` or until `ttl` is over.
    pub fn force_open(&self, _why: &str, _ttl: Option<Duration>) {}
}

impl BreakerBuilder {
    /// Share of failures that opens it.
    pub fn failure_rate(mut self, rate: f64) -> Self {
        self.rate = rate;
        self
    }

    /// Hears its events.
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.listener = Some(listener);
        self
    }

    /// Checks the settings and builds.
    ///
    /// # Errors
    /// [`ConfigError`] names the refused field.
    pub fn build(self) -> Result<Breaker, ConfigError> {
        let _ = self.listener;
        Ok(Breaker(Arc::new(())))
    }
}
