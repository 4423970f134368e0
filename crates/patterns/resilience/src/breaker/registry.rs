//! One breaker per key.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use mainstay_clock::{Instant, Runtime, Tick};

use super::{Breaker, BreakerBuilder, State};
use crate::ConfigError;
use crate::sync::{AtomicU64, Ordering};

/// One breaker per key (host, tenant), made on first use. Clones share it.
///
/// Guarantees: never more than `max_keys` breakers are remembered. When the bound is reached, keys without a call for the
/// idle time go first, then the one unused for longest, closed ones before others. What was forgotten starts
/// anew, closed. A breaker that a person holds is not forgotten; where all of them are held, a new key gets a breaker that
/// is not remembered. Metric labels carry the registry's name, never a key.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::Breaker;
///
/// let hosts = Breaker::builder("upstream").consecutive(2).keyed(100, Duration::from_secs(600)).unwrap();
/// for _ in 0..2 {
///     hosts.get("10.0.0.1").admit().unwrap().failure();
/// }
/// assert!(hosts.get("10.0.0.1").admit().is_err());
/// assert!(hosts.get("10.0.0.2").admit().is_ok());
/// ```
#[derive(Clone)]
pub struct Registry(Arc<Shared>);

struct Shared {
    template: BreakerBuilder,
    runtime: Runtime,
    tick: Tick,
    max_keys: usize,
    idle: Duration,
    breakers: RwLock<BTreeMap<Arc<str>, Entry>>,
}

struct Entry {
    breaker: Breaker,
    used: AtomicU64,
}

impl Registry {
    pub(super) fn new(
        template: BreakerBuilder,
        max_keys: usize,
        idle: Duration,
    ) -> Result<Self, ConfigError> {
        if max_keys == 0 {
            return Err(ConfigError::new("max_keys", max_keys, "at least 1"));
        }
        if idle.is_zero() {
            return Err(ConfigError::new("idle", "0 s", "more than 0 s"));
        }
        let runtime = template.runtime_or_system();
        let template = template.runtime(&runtime);
        let tick = runtime.clock().tick();
        let breakers = RwLock::new(BTreeMap::new());
        Ok(Self(Arc::new(Shared { template, runtime, tick, max_keys, idle, breakers })))
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Arc<str>, Entry>> {
        self.0.breakers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Arc<str>, Entry>> {
        self.0.breakers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The breaker of `key`, made now if it is new. A handle that is kept stays valid when its key is forgotten; it is
    /// then a breaker of its own, so ask anew for each call.
    ///
    /// Takes a shared lock for a known key, and an exclusive one to make a breaker.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::Breaker;
    ///
    /// let hosts = Breaker::builder("upstream").keyed(2, Duration::from_secs(600)).unwrap();
    /// for host in ["a", "b", "c"] {
    ///     hosts.get(host).admit().unwrap().success();
    /// }
    /// assert_eq!(hosts.len(), 2); // the bound holds: the one unused for longest is forgotten
    /// ```
    #[must_use]
    pub fn get(&self, key: &str) -> Breaker {
        let now = self.0.tick.read();
        if let Some(entry) = self.read().get(key) {
            entry.used.store(now.as_nanos(), Ordering::Relaxed);
            return entry.breaker.clone();
        }
        self.make(key)
    }

    #[cold]
    fn make(&self, key: &str) -> Breaker {
        let now = self.0.runtime.clock().now();
        let mut breakers = self.write();
        if let Some(entry) = breakers.get(key) {
            return entry.breaker.clone();
        }
        if breakers.len() >= self.0.max_keys
            && let (0, Some(oldest)) = evict(&mut breakers, now, self.0.idle)
        {
            breakers.remove(&oldest);
        }
        let key: Arc<str> = key.into();
        let breaker = self
            .0
            .template
            .build_keyed(Some(Arc::clone(&key)))
            .expect("invariant: the registry checked the same settings when it was built");
        if breakers.len() < self.0.max_keys {
            let entry = Entry { breaker: breaker.clone(), used: AtomicU64::new(now.as_nanos()) };
            breakers.insert(key, entry);
        }
        breaker
    }

    /// Forgets keys that had no call for the idle time; returns how many. Also done whenever the bound is
    /// reached.
    pub fn sweep(&self) -> usize {
        let now = self.0.runtime.clock().now();
        evict(&mut self.write(), now, self.0.idle).0
    }

    /// Keys that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether no key is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every remembered breaker, in the order of keys: for a console that shows which are open.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::{Breaker, breaker::State};
    ///
    /// let hosts = Breaker::builder("upstream").consecutive(1).keyed(100, Duration::from_secs(600)).unwrap();
    /// hosts.get("a").admit().unwrap().failure();
    /// hosts.get("b").admit().unwrap().success();
    /// let open: Vec<_> = hosts.all().into_iter().filter(|(_, b)| b.state() != State::Closed).collect();
    /// assert_eq!((open.len(), &*open[0].0), (1, "a"));
    /// assert_eq!(open[0].1.name(), "upstream"); // metric labels carry this, never the key
    /// ```
    #[must_use]
    pub fn all(&self) -> Vec<(Arc<str>, Breaker)> {
        self.read().iter().map(|(key, entry)| (Arc::clone(key), entry.breaker.clone())).collect()
    }
}

/// Forgets idle keys: how many, and which of the rest would be the next. One look at each; a person's hold outlives
/// idleness and bounds: it was put there on purpose.
fn evict(
    breakers: &mut BTreeMap<Arc<str>, Entry>,
    now: Instant,
    idle: Duration,
) -> (usize, Option<Arc<str>>) {
    let before = breakers.len();
    let mut next: Option<((bool, u64), Arc<str>)> = None;
    breakers.retain(|key, entry| {
        let (state, used) = (entry.breaker.state(), entry.used.load(Ordering::Relaxed));
        if state.is_held() {
            return true;
        }
        let stays = now.saturating_duration_since(Instant::from_nanos(used)) < idle;
        let rank = (state != State::Closed, used);
        if stays && next.as_ref().is_none_or(|(least, _)| rank < *least) {
            next = Some((rank, Arc::clone(key)));
        }
        stays
    });
    (before - breakers.len(), next.map(|(_, key)| key))
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("name", &self.0.template.name).finish_non_exhaustive()
    }
}
