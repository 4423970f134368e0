//! One rate per key, with a bound on the keys.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::Arc;

use mainstay_clock::Clock;

use super::state::Rule;
use super::{OverBurst, RateError, Refused, Voice};
use crate::Rejected;
use crate::sync::Mutex;

/// Keys remembered unless told otherwise: a few MiB.
pub(super) const MAX_KEYS: u32 = 100_000;
/// Locks: enough that two threads seldom meet.
const SHARDS: usize = 16;
/// A shard is not swept below this size: looking through so few costs more than keeping them.
const SWEEP_FROM: usize = 64;
/// Nanoseconds between two sweeps of one shard: bounds the share of time that a flood of keys can cost.
const SWEEP_PAUSE: u64 = 100_000_000;

/// At most a rate of calls *per key*: per tenant, per address, per user.
///
/// Guarantees: each remembered key has its own rate; memory is bounded by `max_keys`. A key whose cells are
/// all due again equals one never seen, so it is forgotten when its shard grows. When `max_keys` are busy at
/// once, further keys share one rate: a flood of made-up keys neither fills the memory nor passes unlimited.
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::limit::{KeyedRateLimiter, RateLimiter};
///
/// let limiter: KeyedRateLimiter<String> =
///     RateLimiter::builder("per tenant").rate(1, Duration::from_secs(60)).build_keyed().unwrap();
/// assert!(limiter.check(&"a".to_owned()).is_ok());
/// assert!(limiter.check(&"a".to_owned()).is_err());
/// assert!(limiter.check(&"b".to_owned()).is_ok());
/// ```
///
/// # Defaults
/// `max_keys` 100,000: a few MiB.
pub struct KeyedRateLimiter<K>(Arc<Inner<K>>);

impl<K> Clone for KeyedRateLimiter<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<K> {
    voice: Voice,
    rule: Rule,
    clock: Arc<dyn Clock>,
    hasher: RandomState,
    shards: Vec<Mutex<Shard<K>>>,
    /// Shared by the keys beyond the bound.
    overflow: Mutex<u64>,
    max_per_shard: usize,
}

struct Shard<K> {
    tats: HashMap<K, u64, RandomState>,
    /// Size at which idle keys are looked for; doubles with what remains, so a sweep is paid by insertions.
    sweep_at: usize,
    /// No sweep before this instant: when every key is busy, looking again at once finds nothing.
    quiet_until: u64,
}

impl<K: Hash + Eq> KeyedRateLimiter<K> {
    pub(super) fn new(voice: Voice, rule: Rule, max_keys: u32, clock: Arc<dyn Clock>) -> Self {
        let max_per_shard = (max_keys as usize).div_ceil(SHARDS);
        let sweep_at = SWEEP_FROM.min(max_per_shard);
        let shard = || Mutex::new(Shard { tats: HashMap::default(), sweep_at, quiet_until: 0 });
        Self(Arc::new(Inner {
            voice,
            rule,
            clock,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| shard()).collect(),
            overflow: Mutex::new(0),
            max_per_shard,
        }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.voice.name
    }

    /// Takes one cell of `key`, now or never. Takes the short lock of one of sixteen shards.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Rate`](crate::Reason::Rate) and the time until a cell of this key is free.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_resilience::limit::{KeyedRateLimiter, RateLimiter};
    ///
    /// let limiter: KeyedRateLimiter<u32> =
    ///     RateLimiter::builder("per user").rate(1, Duration::from_secs(600)).burst(2).build_keyed().unwrap();
    /// assert!(limiter.check(&7).is_ok() && limiter.check(&7).is_ok());
    /// let wait = limiter.check(&7).unwrap_err().retry_after().unwrap();
    /// assert!(wait > Duration::from_secs(300) && wait <= Duration::from_secs(600));
    /// ```
    pub fn check(&self, key: &K) -> Result<(), Rejected>
    where
        K: Clone,
    {
        self.take(key, 1).map_err(|refused| refused.by(&self.0.voice))
    }

    /// Takes `n` cells of `key` or none.
    ///
    /// # Errors
    /// [`RateError::OverBurst`] when `n` exceeds the burst, [`RateError::Rejected`] as for
    /// [`check`](KeyedRateLimiter::check). Zero cells always pass.
    pub fn check_n(&self, key: &K, n: u32) -> Result<(), RateError>
    where
        K: Clone,
    {
        let burst = self.0.rule.burst();
        if n > burst {
            return Err(RateError::OverBurst(OverBurst { policy: Arc::clone(&self.0.voice.name), n, burst }));
        }
        if n == 0 {
            return Ok(());
        }
        self.take(key, n).map_err(|refused| RateError::Rejected(refused.by(&self.0.voice)))
    }

    /// Keys remembered now. Locks each shard in turn.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.0.shards.iter().map(|shard| shard.lock().tats.len()).sum()
    }

    /// Forgets every key that equals one never seen, and gives their memory back. Insertions do it by themselves as the
    /// map grows; call it when the memory shall come back in a lull.
    pub fn sweep(&self) {
        let now = self.0.clock.now().as_nanos();
        for shard in &self.0.shards {
            let mut shard = shard.lock();
            shard.sweep(now, self.0.max_per_shard);
            shard.tats.shrink_to_fit();
        }
    }

    fn take(&self, key: &K, n: u32) -> Result<(), Refused>
    where
        K: Clone,
    {
        let inner = &*self.0;
        let decide = |tat, now| inner.rule.decide(tat, now, n).map_err(|wait| Refused { wait, now });
        let index = usize::try_from(inner.hasher.hash_one(key) % SHARDS as u64).unwrap_or(0);
        let mut shard = inner.shards[index].lock();
        // Read under the lock: nobody can have decided by a later reading.
        let now = inner.clock.now().as_nanos();
        if let Some(tat) = shard.tats.get_mut(key) {
            *tat = decide(*tat, now)?;
            return Ok(());
        }
        if shard.tats.len() >= shard.sweep_at && now >= shard.quiet_until {
            shard.sweep(now, inner.max_per_shard);
        }
        if shard.tats.len() >= inner.max_per_shard {
            drop(shard);
            let mut tat = inner.overflow.lock();
            *tat = decide(*tat, inner.clock.now().as_nanos())?;
            return Ok(());
        }
        let tat = decide(0, now)?;
        shard.tats.insert(key.clone(), tat);
        Ok(())
    }
}

impl<K: Hash + Eq> Shard<K> {
    fn sweep(&mut self, now: u64, max: usize) {
        self.tats.retain(|_, tat| *tat > now);
        self.sweep_at = (self.tats.len() * 2).clamp(SWEEP_FROM.min(max), max);
        self.quiet_until = now.saturating_add(SWEEP_PAUSE);
    }
}

impl<K> fmt::Debug for KeyedRateLimiter<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyedRateLimiter").field("name", &self.0.voice.name).finish_non_exhaustive()
    }
}
