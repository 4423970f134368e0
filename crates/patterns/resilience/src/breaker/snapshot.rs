//! What a breaker looks like from outside.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Instant;

use super::config::BreakerConfig;
use super::state::{Counts, State, Transition};

/// Counts since the breaker was built.
///
/// ```
/// use mainstay_resilience::{Breaker, Verdict};
///
/// let breaker = Breaker::builder("search").build().unwrap();
/// breaker.admit().unwrap().success();
/// breaker.admit().unwrap().settle(Verdict::of_http(500, None));
/// breaker.admit().unwrap().ignore();
/// drop(breaker.admit().unwrap());
/// let life = breaker.snapshot().lifetime;
/// assert_eq!((life.successes, life.failures, life.ignored, life.abandoned), (Some(1), 1, 1, 1));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lifetime {
    /// Successes; `None` with a consecutive window, whose success path only reads.
    pub successes: Option<u64>,
    /// Failures, dropped calls that counted as such included.
    pub failures: u64,
    /// Slow calls.
    pub slow: u64,
    /// Calls without evidence.
    pub ignored: u64,
    /// Dropped calls.
    pub abandoned: u64,
    /// Results of an older generation, dropped.
    pub late: u64,
    /// Refused calls.
    pub rejected: u64,
}

/// A breaker at one moment: what is live, not what somebody configured once.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{Breaker, breaker::{Cause, State}};
///
/// let breaker = Breaker::builder("search").consecutive(2).build().unwrap();
/// for _ in 0..2 {
///     breaker.admit().unwrap().failure();
/// }
/// let open = breaker.snapshot();
/// assert_eq!((open.state, open.round), (State::Open, 1));
/// assert!(open.retry_in.unwrap() <= Duration::from_millis(2_200)); // 2 s and at most 10 % of jitter
/// assert_eq!(open.last[0].cause(), &Cause::Consecutive { failures: 2 });
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct BreakerSnapshot {
    /// The configured name.
    pub name: Arc<str>,
    /// The key, if it is one of many.
    pub key: Option<Arc<str>>,
    /// The state.
    pub state: State,
    /// Number of the state's generation.
    pub generation: u64,
    /// Since when, in boot time.
    pub since: Instant,
    /// What the person wrote who holds it.
    pub why: Option<Arc<str>>,
    /// When the hold ends by itself.
    pub hold_until: Option<Instant>,
    /// Open or half-open: how long until a call may pass.
    pub retry_in: Option<Duration>,
    /// Failed half-open rounds in a row, plus one.
    pub round: u32,
    /// Probes in flight.
    pub probes: u32,
    /// Probes of this round that succeeded.
    pub probe_successes: u32,
    /// The window.
    pub counts: Counts,
    /// Since the start.
    pub lifetime: Lifetime,
    /// The settings in force.
    pub config: BreakerConfig,
    /// The last transitions, oldest first.
    pub last: Vec<Transition>,
}
