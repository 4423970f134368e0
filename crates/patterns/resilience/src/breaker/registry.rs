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
/// idle time go first, then the one unused for longest, closed ones before others; all keys are looked at once per
/// sixteenth of them, so what becomes idle in between is found by the next look. What was forgotten starts
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
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    breakers: BTreeMap<Arc<str>, Entry>,
    /// Who goes next when room is needed, last one first: what the last look at all keys found.
    leaving: Vec<(Rank, Arc<str>)>,
}

struct Entry {
    breaker: Breaker,
    used: AtomicU64,
}

/// The lowest goes first: closed before others, then by the last call.
type Rank = (bool, u64);

impl Entry {
    /// `None` for one that a person holds: it was put there on purpose, and outlives idleness and bounds.
    fn rank(&self) -> Option<Rank> {
        let state = self.breaker.state();
        (!state.is_held()).then(|| (state != State::Closed, self.used.load(Ordering::Relaxed)))
    }
}

/// One look at all keys finds the sixteenth of them that goes next, so that a stream of new keys is not paid with a look at
/// all for each.
const PART: usize = 16;

impl Table {
    /// Forgets keys without a call for `idle`; how many.
    fn sweep(&mut self, now: Instant, idle: Duration) -> usize {
        let before = self.breakers.len();
        self.breakers.retain(|_, entry| {
            let recent = |(_, used)| now.saturating_duration_since(Instant::from_nanos(used)) < idle;
            entry.rank().is_none_or(recent)
        });
        before - self.breakers.len()
    }

    /// Forgets the key that goes next, after all that were idle; false when every breaker is held.
    fn make_room(&mut self, now: Instant, idle: Duration) -> bool {
        while let Some((rank, key)) = self.leaving.pop() {
            // Called meanwhile, or not closed any more: there are others before it.
            if self.breakers.get(&key).and_then(Entry::rank) == Some(rank) {
                self.breakers.remove(&key);
                return true;
            }
        }
        if self.sweep(now, idle) > 0 {
            return true;
        }
        let mut all: Vec<(Rank, Arc<str>)> =
            self.breakers.iter().filter_map(|(key, e)| Some((e.rank()?, Arc::clone(key)))).collect();
        all.sort_unstable();
        all.truncate(self.breakers.len().div_ceil(PART));
        all.reverse();
        let Some((_, first)) = all.pop() else { return false };
        self.breakers.remove(&first);
        self.leaving = all;
        true
    }
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
        let table = RwLock::default();
        Ok(Self(Arc::new(Shared { template, runtime, tick, max_keys, idle, table })))
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.0.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.0.table.write().unwrap_or_else(PoisonError::into_inner)
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
        if let Some(entry) = self.read().breakers.get(key) {
            entry.used.store(now.as_nanos(), Ordering::Relaxed);
            return entry.breaker.clone();
        }
        self.make(key)
    }

    #[cold]
    fn make(&self, key: &str) -> Breaker {
        let now = self.0.runtime.clock().now();
        let mut table = self.write();
        if let Some(entry) = table.breakers.get(key) {
            return entry.breaker.clone();
        }
        let room = table.breakers.len() < self.0.max_keys || table.make_room(now, self.0.idle);
        let key: Arc<str> = key.into();
        let breaker = self
            .0
            .template
            .build_keyed(Some(Arc::clone(&key)))
            .expect("invariant: the registry checked the same settings when it was built");
        if room {
            let entry = Entry { breaker: breaker.clone(), used: AtomicU64::new(now.as_nanos()) };
            table.breakers.insert(key, entry);
        }
        breaker
    }

    /// Forgets keys that had no call for the idle time; returns how many. Also done whenever the bound is
    /// reached.
    pub fn sweep(&self) -> usize {
        let now = self.0.runtime.clock().now();
        self.write().sweep(now, self.0.idle)
    }

    /// Keys that are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.read().breakers.len()
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
        self.read().breakers.iter().map(|(key, entry)| (Arc::clone(key), entry.breaker.clone())).collect()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("name", &self.0.template.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(keys: u64) -> Table {
        let entry = |n: u64| {
            let breaker = Breaker::builder("b").consecutive(1).build().unwrap();
            (format!("k{n:02}").into(), Entry { breaker, used: AtomicU64::new(n) })
        };
        Table { breakers: (0..keys).map(entry).collect(), leaving: Vec::new() }
    }

    /// Makes room for one; which key went.
    fn gone(table: &mut Table, idle: Duration) -> Vec<String> {
        let before: Vec<_> = table.breakers.keys().cloned().collect();
        assert!(table.make_room(Instant::from_nanos(1_000), idle));
        before.iter().filter(|key| !table.breakers.contains_key(*key)).map(ToString::to_string).collect()
    }

    #[test]
    fn one_look_at_all_keys_finds_a_sixteenth_and_what_was_used_since_stays() {
        let idle = Duration::from_secs(60);
        let mut all = table(64);
        assert_eq!(gone(&mut all, idle), ["k00"]);
        assert_eq!(all.leaving.len(), 3, "the next ones are known without a look at the others");
        all.breakers["k01"].used.store(900, Ordering::Relaxed);
        all.breakers["k02"].breaker.admit().unwrap().failure();
        assert_eq!(gone(&mut all, idle), ["k03"], "called since, and open since");
        assert_eq!(gone(&mut all, idle), ["k04"], "another look");
        all.breakers["k05"].breaker.force_open("held", None);
        assert_eq!(gone(&mut all, idle), ["k06"], "a person holds it");
        all.leaving.clear();
        let rest = gone(&mut all, Duration::from_nanos(950));
        assert_eq!((rest.len(), rest[0].as_str()), (45, "k02"), "all that were idle, open or not");
        assert!(all.breakers.contains_key("k05") && all.breakers.contains_key("k01"));
    }

    #[test]
    fn where_every_breaker_is_held_there_is_no_room() {
        let mut all = table(3);
        all.breakers.values().for_each(|e| e.breaker.force_open("held", None));
        assert!(!all.make_room(Instant::from_nanos(1_000), Duration::from_nanos(1)));
        assert_eq!(all.breakers.len(), 3);
    }
}
