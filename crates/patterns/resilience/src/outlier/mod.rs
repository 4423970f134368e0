//! Leaves out the endpoints that fail while the others work.
//!
//! Source: the outlier detection of Envoy, its two rules (failures in a row, success rate) and its defaults.

mod state;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime, SystemClock};

pub use state::Cause;

use crate::error::MAX_TIME;
use crate::sync::Mutex;
use crate::{ConfigError, Reason, Rejected, Verdict};
use state::{Settings, State};

/// Watches the endpoints of one service and ejects outliers for a while.
///
/// Guarantees: at most the configured share of endpoints is ejected at once, and never the last one, so a
/// failure of the whole service ejects nearly nobody; that is a breaker's affair. An ejected endpoint comes
/// back by itself, and stays away longer each time until it is healthy for some intervals. Does not
/// guarantee: balance; [`pick`](OutlierDetector::pick) only takes turns.
///
/// ```
/// use mainstay_resilience::{Verdict, outlier::OutlierDetector};
///
/// let detector = OutlierDetector::builder("search").endpoints(["a:80", "b:80", "c:80"]).build().unwrap();
/// for _ in 0..5 {
///     detector.record("b:80", Verdict::RETRYABLE);
/// }
/// assert!(!detector.is_available("b:80"));
/// assert_eq!(detector.available(), ["a:80".into(), "c:80".into()]);
/// ```
///
/// # Defaults
/// Envoy's: 5 failures in a row, or a success rate below the mean minus 1.9 standard deviations among at
/// least 5 endpoints with at least 100 requests per interval of 10 s; out for 30 s times the number of
/// ejections, at most 300 s; at most 10 % of the endpoints, but at least one.
#[derive(Clone)]
pub struct OutlierDetector(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
    turn: crate::sync::AtomicU64,
}

/// An endpoint that is left out now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    endpoint: Arc<str>,
    until: Instant,
    cause: Cause,
}

impl Ejection {
    /// Which endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Until when, in boot time.
    #[must_use]
    pub fn until(&self) -> Instant {
        self.until
    }

    /// Why.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
    }
}

/// Settings of an [`OutlierDetector`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | consecutive | 5 | one failure is an accident |
/// | interval | 10 s | success rates of less time are noise |
/// | ejection | 30 s, times the number of ejections in a row, at most 300 s | back by itself; longer away if it must |
/// | max share | 0.1, at least one endpoint, never the last | a failure of all is no matter of endpoints |
/// | deviations | 1.9 | Envoy's factor |
/// | minimum | 5 endpoints, 100 requests each | a deviation of a few numbers says nothing |
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::outlier::OutlierDetector;
///
/// let secs = Duration::from_secs;
/// let detector = OutlierDetector::builder("search")
///     .endpoints(["a:80", "b:80", "c:80", "d:80"])
///     .consecutive(3)
///     .ejection(secs(5), secs(60))
///     .max_share(0.5)
///     .without_success_rate()
///     .build()
///     .unwrap();
/// assert_eq!(detector.available().len(), 4);
/// let refused = OutlierDetector::builder("search").ejection(secs(60), secs(5)).build().unwrap_err();
/// assert_eq!(refused.field(), "ejection");
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct OutlierBuilder {
    name: Arc<str>,
    settings: Settings,
    endpoints: Vec<Arc<str>>,
    clock: Arc<dyn Clock>,
}

impl OutlierDetector {
    /// Starts a detector named `name`.
    pub fn builder(name: impl Into<Arc<str>>) -> OutlierBuilder {
        OutlierBuilder {
            name: name.into(),
            settings: Settings {
                consecutive: 5,
                interval: Duration::from_secs(10),
                base: Duration::from_secs(30),
                cap: Duration::from_secs(300),
                max_share: 0.1,
                success_rate: true,
                deviations: 1.9,
                min_hosts: 5,
                min_requests: 100,
            },
            endpoints: Vec::new(),
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Watches one more endpoint, with a clean slate; returns whether it is new.
    pub fn add(&self, endpoint: impl Into<Arc<str>>) -> bool {
        self.0.state.lock().add(endpoint.into())
    }

    /// Forgets an endpoint; returns whether it was known. Results of its calls that are under way count as nothing. If only
    /// ejected ones are left, the one whose time ends first serves again: an endpoint in doubt is better than none.
    ///
    /// ```
    /// use mainstay_resilience::{Verdict, outlier::OutlierDetector};
    ///
    /// let hosts = OutlierDetector::builder("search").endpoints(["a", "b"]).consecutive(1).build().unwrap();
    /// hosts.record("b", Verdict::RETRYABLE);
    /// assert!(hosts.remove("a"));
    /// assert_eq!(&*hosts.pick().unwrap(), "b");
    /// ```
    pub fn remove(&self, endpoint: &str) -> bool {
        self.0.state.lock().remove(endpoint)
    }

    /// Counts how a call to `endpoint` ended; [`Verdict::Ignore`] counts as nothing. Returns why the endpoint
    /// was ejected by this result, if it was.
    ///
    /// ```
    /// use mainstay_resilience::Verdict;
    /// use mainstay_resilience::outlier::{Cause, OutlierDetector};
    ///
    /// let hosts = OutlierDetector::builder("search").endpoints(["a", "b"]).consecutive(2).build().unwrap();
    /// assert_eq!(hosts.record("b", Verdict::RETRYABLE), None);
    /// assert_eq!(hosts.record("b", Verdict::Ignore), None); // says nothing, also not "well"
    /// assert_eq!(hosts.record("b", Verdict::RETRYABLE), Some(Cause::Consecutive));
    /// assert_eq!(hosts.ejections()[0].endpoint(), "b");
    /// ```
    pub fn record(&self, endpoint: &str, verdict: Verdict) -> Option<Cause> {
        if verdict == Verdict::Ignore {
            return None;
        }
        let now = self.0.clock.now();
        self.0.state.lock().record(endpoint, !verdict.is_failure(), now)
    }

    /// Whether `endpoint` is known and not ejected.
    #[must_use]
    pub fn is_available(&self, endpoint: &str) -> bool {
        let now = self.0.clock.now();
        self.0.state.lock().is_available(endpoint, now)
    }

    /// The endpoints that are not ejected, in order of their names.
    #[must_use]
    pub fn available(&self) -> Vec<Arc<str>> {
        let now = self.0.clock.now();
        self.0.state.lock().available(now)
    }

    /// What is ejected now, in order of the names.
    #[must_use]
    pub fn ejections(&self) -> Vec<Ejection> {
        let now = self.0.clock.now();
        let ejected = self.0.state.lock().ejected(now);
        let public =
            |(endpoint, e): (Arc<str>, state::Ejected)| Ejection { endpoint, until: e.until, cause: e.cause };
        ejected.into_iter().map(public).collect()
    }

    /// The next available endpoint in turn: a balancer for those who have none. Others ask
    /// [`is_available`](Self::is_available).
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Open`] when no endpoint is known. Known ones are never all ejected.
    ///
    /// ```
    /// use mainstay_resilience::{Verdict, outlier::OutlierDetector};
    ///
    /// let hosts = OutlierDetector::builder("search").endpoints(["a", "b", "c"]).consecutive(1).build().unwrap();
    /// hosts.record("b", Verdict::RETRYABLE);
    /// let picked: Vec<_> = (0..4).map(|_| hosts.pick().unwrap().to_string()).collect();
    /// assert_eq!(picked, ["a", "c", "a", "c"]);
    /// ```
    pub fn pick(&self) -> Result<Arc<str>, Rejected> {
        let available = self.available();
        let turn = self.0.turn.fetch_add(1, crate::sync::Ordering::Relaxed);
        let index = turn.checked_rem(available.len() as u64).and_then(|i| usize::try_from(i).ok());
        let picked = index.and_then(|i| available.get(i).cloned());
        picked.ok_or_else(|| Rejected::new(Arc::clone(&self.0.name), Reason::Open))
    }
}

impl fmt::Debug for OutlierDetector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OutlierDetector").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl OutlierBuilder {
    /// The endpoints to begin with.
    pub fn endpoints<S: Into<Arc<str>>>(mut self, endpoints: impl IntoIterator<Item = S>) -> Self {
        self.endpoints = endpoints.into_iter().map(Into::into).collect();
        self
    }

    /// Failures in a row that eject.
    pub fn consecutive(mut self, failures: u32) -> Self {
        self.settings.consecutive = failures;
        self
    }

    /// How often success rates are compared and the multiplier of healthy endpoints falls.
    pub fn interval(mut self, d: Duration) -> Self {
        self.settings.interval = d;
        self
    }

    /// How long the first ejection lasts, and the longest one.
    pub fn ejection(mut self, base: Duration, cap: Duration) -> Self {
        (self.settings.base, self.settings.cap) = (base, cap);
        self
    }

    /// The largest share of endpoints that is out at once; at least one may always be, the last never.
    pub fn max_share(mut self, share: f64) -> Self {
        self.settings.max_share = share;
        self
    }

    /// How many standard deviations below the mean ejects.
    pub fn deviations(mut self, deviations: f64) -> Self {
        self.settings.deviations = deviations;
        self
    }

    /// Fewest endpoints, and fewest requests of each per interval, for success rates to be compared.
    pub fn minimum(mut self, endpoints: u32, requests: u32) -> Self {
        (self.settings.min_hosts, self.settings.min_requests) = (endpoints, requests);
        self
    }

    /// Failures in a row are the only rule.
    pub fn without_success_rate(mut self) -> Self {
        self.settings.success_rate = false;
        self
    }

    /// Clock. Default: the system's.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.clock = Arc::clone(runtime.clock());
        self
    }

    /// The detector.
    ///
    /// # Errors
    /// [`ConfigError`] for zeros, times above a day, a base above its cap, a share outside `(0, 1]`, deviations outside `(0, 10]`.
    pub fn build(self) -> Result<OutlierDetector, ConfigError> {
        let s = &self.settings;
        if s.consecutive == 0 {
            return Err(ConfigError::new("consecutive", 0, "at least 1"));
        }
        crate::error::check_time("interval", s.interval)?;
        if s.base.is_zero() || s.base > s.cap || s.cap > MAX_TIME {
            let given = format!("{:?} to {:?}", s.base, s.cap);
            return Err(ConfigError::new("ejection", given, format!("0 < base <= cap <= {MAX_TIME:?}")));
        }
        if !(s.max_share > 0.0 && s.max_share <= 1.0) {
            return Err(ConfigError::new("max_share", s.max_share, "a number in (0, 1]"));
        }
        if !(s.deviations > 0.0 && s.deviations <= 10.0) {
            return Err(ConfigError::new("deviations", s.deviations, "a number in (0, 10]"));
        }
        if s.min_hosts < 2 || s.min_requests == 0 {
            let given = format!("{} endpoints, {} requests", s.min_hosts, s.min_requests);
            return Err(ConfigError::new("minimum", given, "at least 2 endpoints and 1 request"));
        }
        let mut state = State::new(self.settings, self.clock.now());
        for endpoint in self.endpoints {
            state.add(endpoint);
        }
        Ok(OutlierDetector(Arc::new(Inner {
            name: self.name,
            clock: self.clock,
            state: Mutex::new(state),
            turn: crate::sync::AtomicU64::new(0),
        })))
    }
}
