//! How many attempts per second are sent, by what the service says to them.

mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Instant, Runtime};

use super::parts::{Parts, Voice};
use crate::sync::Mutex;
use crate::{ConfigError, Listener, Reason, Rejected, Verdict};
use state::State;

/// Longest wait for a turn that can be set: beyond an hour somebody meant another unit.
const MAX_WAIT: Duration = Duration::from_secs(3_600);

/// An adaptive send rate: the client side of "slow down".
///
/// As long as the service never throttles there is no bound. When it does ([`Verdict::Throttled`]), attempts are
/// paced at 0.7 of the rate that was really sent, and from then on the rate grows along a cubic: fast back to where
/// the service objected, slowly past that point, then faster. One token per attempt, first attempts included. However
/// many attempts are throttled at once, the rate falls once: what was sent before a decrease says nothing new.
///
/// In the [`send_rate`](crate::policy::PolicyBuilder::send_rate) slot of a policy every attempt waits for its turn
/// and reports its end by itself. Outside of one, [`acquire`](Self::acquire) a ticket and report with it.
///
/// Guarantees: turns are given in the order of the calls; none lies beyond the deadline or the longest wait; never
/// less than one attempt in two seconds may be sent, so that a recovery is noticed. Not guaranteed: a rate. The
/// service's own limit is the bound; this one only stops running into it. Turns that were given before the rate fell are
/// kept.
///
/// Source: the adaptive retry mode of the AWS SDKs; the growth is that of CUBIC (RFC 9438). Not the same as
/// [`ClientThrottle`](super::ClientThrottle), which refuses a share at once instead of spacing attempts out.
///
/// ```
/// use mainstay_clock::Deadline;
/// use mainstay_resilience::{Verdict, limit::SendRate};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let rate = SendRate::builder("table").build().unwrap();
/// let ticket = rate.acquire(Deadline::NONE).await.unwrap(); // at once: nobody has been throttled
/// assert_eq!(rate.snapshot().rate, None);
/// ticket.report(Verdict::Throttled { after: None });
/// // One in half a second is a rate of two, of which 0.7 remain.
/// assert_eq!(rate.snapshot().rate, Some(1.4));
/// # });
/// ```
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | longest wait | 20 s | the cap of the delays in the same source; a call with a deadline waits less |
#[derive(Clone)]
pub struct SendRate(Arc<Inner>);

struct Inner {
    voice: Voice,
    clock: Arc<dyn Clock>,
    longest: Duration,
    state: Mutex<State>,
}

/// Settings of a [`SendRate`].
#[derive(Clone, Debug)]
#[must_use]
pub struct SendBuilder {
    parts: Parts,
    longest: Duration,
}

/// A send rate at one moment.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct SendSnapshot {
    /// The configured name.
    pub name: Arc<str>,
    /// Attempts per second that may be sent; `None`: no bound, as the service has never throttled.
    pub rate: Option<f64>,
}

impl SendRate {
    /// Starts a send rate named `name`, without a bound until the service throttles.
    pub fn builder(name: impl Into<Arc<str>>) -> SendBuilder {
        SendBuilder { parts: Parts::new(name), longest: Duration::from_secs(20) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.voice.name
    }

    /// The rate now.
    #[must_use]
    pub fn snapshot(&self) -> SendSnapshot {
        SendSnapshot { name: Arc::clone(&self.0.voice.name), rate: self.0.state.lock().rate() }
    }

    /// Waits for the turn of one attempt, but neither past `deadline` nor longer than the longest wait. Tell the ticket
    /// how the attempt ended; dropped, it tells nothing.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Rate`] at once when the turn would come too late, with the time until then.
    ///
    /// # Cancel safety
    /// Dropping the future gives the token back; those who wait already keep their turns.
    pub async fn acquire(&self, deadline: Deadline) -> Result<SendTicket<'_>, Rejected> {
        if let Token::At(at) = self.reserve(self.0.clock.now(), deadline)? {
            let turn = Turn(Some(self));
            self.0.clock.sleep_until(at).await;
            turn.keep();
        }
        Ok(SendTicket { rate: self, epoch: self.epoch() })
    }

    /// An attempt that was sent in `epoch` ended with `verdict`.
    pub(crate) fn report(&self, epoch: u32, verdict: Verdict) {
        let now = self.0.clock.now();
        self.0.state.lock().report(epoch, matches!(verdict, Verdict::Throttled { .. }), now);
    }

    /// The epoch of an attempt that is sent now.
    pub(crate) fn epoch(&self) -> u32 {
        self.0.state.lock().epoch()
    }

    /// Takes a token, for now or later.
    pub(crate) fn reserve(&self, now: Instant, deadline: Deadline) -> Result<Token, Rejected> {
        let left = deadline.remaining(now).unwrap_or(Duration::MAX);
        let reserved = self.0.state.lock().reserve(now, self.0.longest.min(left));
        match reserved {
            Ok(wait) => Ok(Token::of(wait, now)),
            Err(wait) => Err(self.0.voice.refuse(Reason::Rate, Some(wait), now)),
        }
    }

    /// Takes a token now or never.
    pub(crate) fn take(&self, now: Instant) -> Option<Token> {
        let reserved = self.0.state.lock().reserve(now, Duration::ZERO);
        reserved.ok().map(|wait| Token::of(wait, now))
    }

    /// A token that was taken is not used.
    pub(crate) fn give_back(&self) {
        self.0.state.lock().give_back();
    }
}

/// What an attempt was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// One whose turn comes then.
    At(Instant),
    /// One that may be used now.
    Now,
    /// None: there is no bound.
    Unbound,
}

impl Token {
    fn of(wait: Option<Duration>, now: Instant) -> Self {
        match wait {
            None => Self::Unbound,
            Some(Duration::ZERO) => Self::Now,
            Some(wait) => Self::At(now.saturating_add(wait)),
        }
    }

    /// Whether there is something to give back.
    pub(crate) fn is_taken(self) -> bool {
        self != Self::Unbound
    }
}

/// One attempt on its way.
#[derive(Debug)]
#[must_use = "the rate follows what is reported"]
pub struct SendTicket<'a> {
    rate: &'a SendRate,
    epoch: u32,
}

impl SendTicket<'_> {
    /// The attempt ended with `verdict`. Every end counts towards what is sent; only throttling lowers the rate.
    pub fn report(self, verdict: Verdict) {
        self.rate.report(self.epoch, verdict);
    }
}

/// A token whose turn has not come.
struct Turn<'a>(Option<&'a SendRate>);

impl Turn<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(rate) = self.0 {
            rate.give_back();
        }
    }
}

impl fmt::Debug for SendRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SendRate").field("name", &self.0.voice.name).finish_non_exhaustive()
    }
}

impl SendBuilder {
    /// The longest wait for a turn: an attempt that would have to wait longer is refused.
    pub fn longest_wait(mut self, d: Duration) -> Self {
        self.longest = d;
        self
    }

    /// Clock. Default: the system's. Tests and simulations pass their own.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.parts.runtime = Some(runtime.clone());
        self
    }

    /// Hears every refusal, as [`Event::Rejected`](crate::Event::Rejected) from a source of the kind
    /// [`Limit`](crate::Kind::Limit) with this limit's name.
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.parts.listener = Some(listener);
        self
    }

    /// The send rate.
    ///
    /// # Errors
    /// [`ConfigError`] for a longest wait of zero or above an hour.
    pub fn build(self) -> Result<SendRate, ConfigError> {
        if self.longest.is_zero() || self.longest > MAX_WAIT {
            let given = format!("{:?}", self.longest);
            return Err(ConfigError::new(
                "longest_wait",
                given,
                format!("more than 0 s, at most {MAX_WAIT:?}"),
            ));
        }
        let clock = Arc::clone(self.parts.runtime().clock());
        Ok(SendRate(Arc::new(Inner {
            voice: self.parts.voice(),
            longest: self.longest,
            state: Mutex::new(State::new(clock.now())),
            clock,
        })))
    }
}
