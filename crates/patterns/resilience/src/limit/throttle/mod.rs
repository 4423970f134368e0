//! Refuses locally what the service would refuse anyway.
//!
//! Source: "Site Reliability Engineering" (2016), chapter 21, client-side throttling.

mod state;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Rng, Runtime};

use super::parts::{Parts, Voice};
use crate::policy::seam::{self, Ask, Pass};
use crate::sync::Mutex;
use crate::{CallError, Classify, ConfigError, Listener, Outcome, Reason, Rejected, Verdict};
use state::{Window, refusal};

/// Client-side throttling: when a service accepts less than `1/k` of what it is sent, the client refuses the
/// excess itself and so spares the service the work of refusing.
///
/// Guarantees: refuses nothing while at least `1/k` of the requests of the window are accepted; always lets a
/// trickle through, so that it notices a recovery. Does not guarantee: a rate; the service's own limit is the
/// bound.
///
/// ```
/// use mainstay_resilience::limit::ClientThrottle;
///
/// let throttle = ClientThrottle::builder("search").build().unwrap();
/// for _ in 0..500 {
///     if let Ok(ticket) = throttle.check() {
///         ticket.refused(); // the service said 429
///     }
/// }
/// assert!(throttle.refusal() > 0.9);
/// ```
///
/// # Defaults
/// `k` 2, window 2 minutes (the book's values), trickle 1 %: with fewer than one request in a hundred a
/// recovery would go unnoticed for long.
#[derive(Clone)]
pub struct ClientThrottle(Arc<Inner>);

struct Inner {
    voice: Voice,
    k: f64,
    trickle: f64,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    window: Mutex<Window>,
    /// Bits of the share to refuse when it was last worked out: zero is read without the lock.
    refusal: AtomicU64,
}

/// Settings of a [`ClientThrottle`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | k | 2 | the book's: half of the requests may be refused before the client helps; smaller spares the service more and refuses sooner |
/// | window | 2 minutes | the book's; shorter follows faster and is noisier |
/// | trickle | 1 % | with less a recovery goes unnoticed for long |
///
/// ```
/// use mainstay_resilience::limit::ClientThrottle;
///
/// assert!(ClientThrottle::builder("search").k(1.5).trickle(0.05).build().is_ok());
/// assert_eq!(ClientThrottle::builder("search").k(1.0).build().unwrap_err().field(), "k");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ThrottleBuilder {
    parts: Parts,
    k: f64,
    window: Duration,
    trickle: f64,
}

impl ClientThrottle {
    /// Starts a throttle named `name`.
    pub fn builder(name: impl Into<Arc<str>>) -> ThrottleBuilder {
        ThrottleBuilder { parts: Parts::new(name), k: 2.0, window: Duration::from_secs(120), trickle: 0.01 }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.voice.name
    }

    /// The share of requests that is refused now, between 0 and 1 less the trickle.
    #[must_use]
    pub fn refusal(&self) -> f64 {
        self.0.share()
    }

    /// Lets a request pass, or refuses it. Tell the ticket what the service did; a dropped ticket counts as
    /// nothing.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Shed`], without advice: each request draws its own lot.
    ///
    /// ```
    /// use mainstay_resilience::limit::ClientThrottle;
    ///
    /// let throttle = ClientThrottle::builder("search").build().unwrap();
    /// for _ in 0..200 {
    ///     throttle.check().unwrap().accepted();
    /// }
    /// assert_eq!(throttle.refusal(), 0.0); // a service that takes everything is not spared
    /// ```
    pub fn check(&self) -> Result<ThrottleTicket<'_>, Rejected> {
        self.0.admit()?;
        Ok(ThrottleTicket(&self.0))
    }

    /// Runs `f` unless its lot says no. Only throttling ([`Verdict::Throttled`]) counts as refused by the
    /// service; every other end counts as accepted.
    ///
    /// # Errors
    /// [`CallError::Rejected`], else what `f` failed with.
    ///
    /// # Cancel safety
    /// A dropped call counts as nothing.
    ///
    /// ```
    /// use mainstay_resilience::limit::ClientThrottle;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let throttle = ClientThrottle::builder("search").build().unwrap();
    /// // A failure that is no throttling is still an answer: the service took the request.
    /// let failed = throttle.call(|| async { Err::<(), _>(std::io::Error::other("no such index")) }).await;
    /// assert_eq!((failed.unwrap_err().code(), throttle.refusal()), ("inner", 0.0));
    /// # });
    /// ```
    pub async fn call<T, E, Fut>(&self, f: impl FnOnce() -> Fut) -> Result<T, CallError<E>>
    where
        E: Classify,
        Fut: Future<Output = Result<T, E>>,
    {
        let ticket = self.check()?;
        let result = f().await;
        match &result {
            Err(error) if matches!(error.verdict(), Verdict::Throttled { .. }) => ticket.refused(),
            _ => ticket.accepted(),
        }
        result.map_err(CallError::Inner)
    }
}

impl Inner {
    fn admit(&self) -> Result<(), Rejected> {
        let p = self.share();
        if p <= 0.0 || self.rng.unit() >= p {
            return Ok(());
        }
        // What is refused here was still asked for: the formula counts it as a request.
        let now = self.clock.now();
        self.count(false, now);
        Err(self.voice.refuse(Reason::Shed, None, now))
    }

    fn end(&self, accepted: bool) {
        self.count(accepted, self.clock.now());
    }

    /// The share to refuse now. While nothing is refused a load; else worked out anew: what was last counted may have left
    /// the window since.
    fn share(&self) -> f64 {
        let last = f64::from_bits(self.refusal.load(Ordering::Relaxed));
        if last <= 0.0 { last } else { self.reckon(&self.window.lock(), self.clock.now()) }
    }

    fn count(&self, accepted: bool, now: Instant) {
        let mut window = self.window.lock();
        window.count(now, accepted);
        self.reckon(&window, now);
    }

    fn reckon(&self, window: &Window, now: Instant) -> f64 {
        let (requests, accepts) = window.totals(now);
        let p = refusal(requests, accepts, self.k, self.trickle);
        self.refusal.store(p.to_bits(), Ordering::Relaxed);
        p
    }
}

/// A request on its way.
#[derive(Debug)]
#[must_use]
pub struct ThrottleTicket<'a>(&'a Inner);

impl ThrottleTicket<'_> {
    /// The service worked on it, whatever came out.
    pub fn accepted(self) {
        self.0.end(true);
    }

    /// The service refused it for load.
    pub fn refused(self) {
        self.0.end(false);
    }
}

/// In the throttle slot of a policy: a call that was throttled or cut off was not accepted; one that ended well or failed
/// otherwise was; one without evidence, or refused further inside, counts as nothing.
impl seam::Limiter for ClientThrottle {
    fn admit(&self, _ask: &Ask<'_>) -> Result<Pass, Rejected> {
        self.0.admit().map(|()| Pass(0))
    }

    fn done(&self, _pass: Pass, sample: seam::Sample) {
        match sample.outcome {
            Outcome::Success | Outcome::SlowSuccess => self.0.end(true),
            Outcome::Failure => self.0.end(!sample.throttled),
            Outcome::Timeout(_) => self.0.end(false),
            _ => {}
        }
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientThrottle").field("name", &self.voice.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for ClientThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ThrottleBuilder {
    /// How many requests per accepted one are sent before the client refuses; above 1 and at most 1000.
    pub fn k(mut self, k: f64) -> Self {
        self.k = k;
        self
    }

    /// How far back requests and accepts count, in twelve slices; 1 ms to 1 day.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// The share that always passes, in `(0, 1]`; with 1 nothing is ever refused.
    pub fn trickle(mut self, share: f64) -> Self {
        self.trickle = share;
        self
    }

    /// Clock and randomness. Default: the system's. Tests and simulations pass their own.
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

    /// The throttle.
    ///
    /// # Errors
    /// [`ConfigError`] unless `1 < k <= 1000`, the window is 1 ms to 1 day and the trickle in (0, 1].
    pub fn build(self) -> Result<ClientThrottle, ConfigError> {
        if !(self.k > 1.0 && self.k <= 1000.0) {
            return Err(ConfigError::new("k", self.k, "a number in (1, 1000]"));
        }
        if self.window < Duration::from_millis(1) || self.window > Duration::from_secs(86_400) {
            return Err(ConfigError::new("window", format!("{:?}", self.window), "1ms to 1day"));
        }
        if !(self.trickle > 0.0 && self.trickle <= 1.0) {
            return Err(ConfigError::new("trickle", self.trickle, "a number in (0, 1]"));
        }
        let runtime = self.parts.runtime();
        Ok(ClientThrottle(Arc::new(Inner {
            voice: self.parts.voice(),
            k: self.k,
            trickle: self.trickle,
            clock: Arc::clone(runtime.clock()),
            rng: Arc::clone(runtime.rng()),
            window: Mutex::new(Window::new(self.window)),
            refusal: AtomicU64::new(0),
        })))
    }
}
