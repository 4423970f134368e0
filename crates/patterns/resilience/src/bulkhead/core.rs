//! Entering, waiting and leaving.

use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Tick};

use super::queue::{Place, Queue, Waiter};
use super::state::Word;
use super::{BulkheadSnapshot, HolderAge};
use crate::event::Ear;
use crate::pad::CachePadded;
use crate::streak::Streak;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::{Priority, Reason, Rejected};

/// How often the parity may turn: the error of a holder's age.
const EPOCH: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Hot {
    word: AtomicU64,
    turn_at: AtomicU64,
}

#[derive(Debug)]
struct Slow {
    queue: Queue,
    max_queue: u32,
    /// Begin of the epoch of either parity.
    since: [Instant; 2],
}

#[derive(Debug)]
pub(crate) struct Core {
    hot: CachePadded<Hot>,
    pub(super) name: Arc<str>,
    pub(super) wait: Duration,
    pub(super) clock: Arc<dyn Clock>,
    tick: Tick,
    ear: Ear,
    rejected: AtomicU64,
    streak: Streak,
    slow: Mutex<Slow>,
}

/// What came of asking for a permit.
#[derive(Debug)]
pub(crate) enum Entry {
    In { parity: u8 },
    Queued(Arc<Waiter>),
}

/// What a bulkhead is put together from.
pub(super) struct Parts {
    pub(super) name: Arc<str>,
    pub(super) limit: u32,
    pub(super) max_queue: u32,
    pub(super) wait: Duration,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) ear: Ear,
}

impl Core {
    pub(super) fn new(parts: Parts) -> Self {
        let now = parts.clock.now();
        let slow = Slow { queue: Queue::default(), max_queue: parts.max_queue, since: [now; 2] };
        let hot = Hot { word: AtomicU64::new(Word::new(parts.limit).0), turn_at: AtomicU64::new(0) };
        Self {
            hot: CachePadded::new(hot),
            name: parts.name,
            wait: parts.wait,
            tick: parts.clock.tick(),
            clock: parts.clock,
            ear: parts.ear,
            rejected: AtomicU64::new(0),
            streak: Streak::new(),
            slow: Mutex::new(slow),
        }
    }

    pub(super) fn tick(&self) -> Instant {
        self.tick.read()
    }

    #[inline]
    fn word(&self) -> Word {
        Word(self.hot.word.load(Ordering::Acquire))
    }

    /// Replaces the word by `f` of it until that succeeds; the word before.
    fn update(&self, f: impl Fn(Word) -> Option<Word>) -> Result<Word, Word> {
        self.hot
            .word
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |w| f(Word(w)).map(|w| w.0))
            .map(Word)
            .map_err(Word)
    }

    /// A permit, if one is free and nobody waits: one compare-and-swap.
    #[inline(always)]
    pub(crate) fn try_enter(&self, now: Instant) -> Option<u8> {
        if now.as_nanos() >= self.hot.turn_at.load(Ordering::Relaxed) {
            self.turn(now);
        }
        let mut seen = self.word();
        loop {
            let next = seen.enter()?;
            match self.hot.word.compare_exchange_weak(seen.0, next.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(seen.parity()),
                Err(now) => seen = Word(now),
            }
        }
    }

    /// Begins a new epoch, if nobody of the one before is left.
    #[cold]
    #[inline(never)]
    fn turn(&self, now: Instant) {
        let Some(mut slow) = self.slow.try_lock() else { return };
        if now.as_nanos() < self.hot.turn_at.load(Ordering::Relaxed) {
            return;
        }
        if let Ok(before) = self.update(Word::turn) {
            slow.since[usize::from(before.parity() ^ 1)] = now;
        }
        self.hot.turn_at.store(now.saturating_add(EPOCH).as_nanos(), Ordering::Relaxed);
    }

    /// A permit, or a place in the queue.
    pub(crate) fn enter(&self, priority: Priority, waker: &Waker, now: Instant) -> Result<Entry, Rejected> {
        if let Some(parity) = self.try_enter(now) {
            return Ok(Entry::In { parity });
        }
        let mut slow = self.slow.lock();
        // A permit that came back a moment ago may not have been handed on yet.
        let woken = self.hand_out(&mut slow);
        let entry = self.enter_locked(&mut slow, priority, waker, now);
        drop(slow);
        woken.into_iter().for_each(Waker::wake);
        entry.map_err(|full| {
            let (in_flight, queued, limit) = (full.in_flight(), full.waiters(), full.limit());
            self.refuse(Reason::Full { in_flight, queued, limit }, now)
        })
    }

    fn enter_locked(
        &self,
        slow: &mut Slow,
        priority: Priority,
        waker: &Waker,
        now: Instant,
    ) -> Result<Entry, Word> {
        let max_queue = slow.max_queue;
        // One step decides: a permit that came free meanwhile, or one waiter more.
        let before = self.update(|w| w.enter().or_else(|| (w.waiters() < max_queue).then(|| w.wait())))?;
        if before.enter().is_some() {
            return Ok(Entry::In { parity: before.parity() });
        }
        let place = Mutex::new(Place::Waiting { waker: waker.clone() });
        let waiter = Arc::new(Waiter { place, since: now });
        slow.queue.push(priority, Arc::clone(&waiter), before.waiters() + 1);
        Ok(Entry::Queued(waiter))
    }

    /// Whether a waiter has got its permit; registers `waker` if not.
    pub(crate) fn poll_waiter(&self, waiter: &Waiter, waker: &Waker) -> Option<u8> {
        match &mut *waiter.place.lock() {
            Place::Granted { parity } => Some(*parity),
            Place::Waiting { waker: old } => {
                old.clone_from(waker);
                None
            }
            Place::Cancelled => None,
        }
    }

    /// Stops waiting: the permit if it was granted meanwhile.
    pub(crate) fn cancel(&self, waiter: &Waiter) -> Option<u8> {
        // The lock keeps a releaser from counting this waiter in while it goes.
        let slow = self.slow.lock();
        let mut place = waiter.place.lock();
        match *place {
            Place::Granted { parity } => Some(parity),
            Place::Cancelled => None,
            Place::Waiting { .. } => {
                *place = Place::Cancelled;
                drop(place);
                // Never refuses: the closure always returns `Some`.
                let _ = self.update(|w| Some(w.stop_waiting()));
                drop(slow);
                None
            }
        }
    }

    /// Gives a permit back, to the first in line if somebody waits: one subtraction.
    #[inline(always)]
    pub(crate) fn leave(&self, parity: u8) {
        let before = Word(self.hot.word.fetch_sub(Word::one(parity), Ordering::AcqRel));
        if before.waiters() > 0 {
            self.serve();
        }
    }

    /// A permit is free and somebody waits. Whoever begins to wait later sees the free permit.
    #[cold]
    #[inline(never)]
    fn serve(&self) {
        let mut slow = self.slow.lock();
        let woken = self.hand_out(&mut slow);
        drop(slow);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Gives free permits to those who wait. Under the lock nobody else can take them: entering needs an empty
    /// queue.
    fn hand_out(&self, slow: &mut Slow) -> Vec<Waker> {
        let mut woken = Vec::new();
        let next = |w: Word| (w.waiters() > 0).then(|| w.take()).flatten().map(Word::stop_waiting);
        while let Ok(before) = self.update(next) {
            match slow.queue.grant(before.parity()) {
                Some(waker) => woken.push(waker),
                // Counted waiters are in the queue: both change under this lock.
                None => {
                    let _ = self.update(|w| Some(w.leave(before.parity())));
                    break;
                }
            }
        }
        woken
    }

    pub(super) fn resize(&self, limit: u32) {
        let mut slow = self.slow.lock();
        // Never refuses: the closure always returns `Some`.
        let _ = self.update(|w| Some(w.with_limit(limit)));
        let woken = self.hand_out(&mut slow);
        drop(slow);
        woken.into_iter().for_each(Waker::wake);
    }

    pub(super) fn resize_queue(&self, max_queue: u32) {
        self.slow.lock().max_queue = max_queue;
    }

    /// The refusal of one whose wait limit is over.
    pub(crate) fn refuse_waited(&self, now: Instant) -> Rejected {
        let w = self.word();
        let (in_flight, queued, limit) = (w.in_flight(), w.waiters(), w.limit());
        self.refuse(Reason::Waited { in_flight, queued, limit }, now)
    }

    /// A refusal, counted and told.
    #[cold]
    pub(crate) fn refuse(&self, why: Reason, now: Instant) -> Rejected {
        self.rejected.fetch_add(1, Ordering::Relaxed);
        let rejected = Rejected::new(Arc::clone(&self.name), why);
        self.ear.told(rejected.with_since(Some(self.streak.hit(now))))
    }

    pub(super) fn snapshot(&self) -> BulkheadSnapshot {
        let now = self.clock.now();
        let slow = self.slow.lock();
        let word = self.word();
        let current = word.parity();
        let age = |parity: u8| now.saturating_duration_since(slow.since[usize::from(parity)]);
        let oldest = if word.holders(current ^ 1) > 0 {
            Some(HolderAge { at_least: age(current), at_most: age(current ^ 1) })
        } else {
            (word.holders(current) > 0).then(|| HolderAge { at_least: Duration::ZERO, at_most: age(current) })
        };
        BulkheadSnapshot {
            name: Arc::clone(&self.name),
            limit: word.limit(),
            in_flight: word.in_flight(),
            queued: word.waiters(),
            max_queue: slow.max_queue,
            wait: self.wait,
            oldest_holder: oldest,
            oldest_waiter: slow.queue.oldest().map(|since| now.saturating_duration_since(since)),
            rejected: self.rejected.load(Ordering::Relaxed),
        }
    }
}
