//! A sliding time window whose common event costs a load and a store on a line of the own thread.
//!
//! Time is cut into buckets; the window is the current one and the nine before it, so it spans between
//! nine and ten buckets. Cells live in a ring of sixteen, more than the window needs, so that a bucket is
//! cleared long before it is used again. Every cell carries the number of its bucket in its upper bits: an
//! add that comes so late that its cell was reused sees a foreign number and takes itself back. Clearing
//! the window is a jump of the bucket number, so that results of before the clear cannot enter it either.
//!
//! Cells at a *place* ([`shard`]) are written by one thread only, which is what makes a load and a store an addition. So
//! it is the owner who clears them, when it counts for the first time in a new bucket, and readers pass by a place whose
//! owner has not counted within the window.

use std::time::Duration;

use mainstay_clock::Instant;

use crate::pad::{CacheLined, CachePadded};
use crate::shard;
use crate::sync::{AtomicU64, Mutex, Ordering};

/// Buckets in the window: its error is one tenth of its span.
pub(crate) const BUCKETS: u64 = 10;
/// Cells in the ring, a power of two above [`BUCKETS`].
const CELLS: usize = 16;
/// Bits of a cell that count. 2^40 events per bucket and shard: an hour's bucket at 3e9 per second.
const COUNT_BITS: u32 = 40;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

type Cells = [AtomicU64; CELLS];

/// A window with one sharded counter for the common event and `R` shared ones for rare events.
#[derive(Debug)]
pub(crate) struct Window<const R: usize> {
    /// When the current bucket ends, in nanoseconds of the tick.
    until: AtomicU64,
    /// Number of the current bucket.
    head: AtomicU64,
    /// In which bucket the owner of each place has counted last.
    last: [AtomicU64; shard::MAX],
    own: Box<[CachePadded<Cells>]>,
    shared: Box<[CachePadded<Cells>]>,
    rare: CacheLined<[Cells; R]>,
    /// Common events that left the window, for the count since the start.
    retired: AtomicU64,
    /// Length of a bucket. Its lock is held by the one thread that turns the ring.
    turn: Mutex<u64>,
}

/// Sums over the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sums<const R: usize> {
    pub(crate) common: u64,
    pub(crate) rare: [u64; R],
}

fn cells(first: u64) -> Cells {
    std::array::from_fn(|i| AtomicU64::new(tag(bucket_of(i, first))))
}

/// The newest bucket number up to `head` that lives in cell `i`.
fn bucket_of(i: usize, head: u64) -> u64 {
    head - (head.wrapping_sub(i as u64) & (CELLS as u64 - 1))
}

fn tag(bucket: u64) -> u64 {
    bucket << COUNT_BITS
}

fn same_tag(cell: u64, bucket: u64) -> bool {
    (cell ^ tag(bucket)) >> COUNT_BITS == 0
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl<const R: usize> Window<R> {
    /// Every ring starts one turn in, so that bucket numbers never go below zero.
    const FIRST: u64 = CELLS as u64 * 2;

    pub(crate) fn new(span: Duration, now: Instant) -> Self {
        let bucket = (nanos(span) / BUCKETS).max(1);
        let (own, shared) = shard::places();
        let lines = |n| (0..n).map(|_| CachePadded::new(cells(Self::FIRST))).collect();
        Self {
            until: AtomicU64::new(now.as_nanos().saturating_add(bucket)),
            head: AtomicU64::new(Self::FIRST),
            last: std::array::from_fn(|_| AtomicU64::new(Self::FIRST)),
            own: lines(own),
            shared: lines(shared),
            rare: CacheLined::new(std::array::from_fn(|_| cells(Self::FIRST))),
            retired: AtomicU64::new(0),
            turn: Mutex::new(bucket),
        }
    }

    /// The current bucket at `now`, after turning the ring if its time has come.
    #[inline(always)]
    pub(crate) fn bucket(&self, now: Instant) -> u64 {
        if now.as_nanos() >= self.until.load(Ordering::Acquire) {
            self.turn(now);
        }
        self.head.load(Ordering::Acquire)
    }

    /// Counts one common event in `bucket`.
    #[inline(always)]
    pub(crate) fn add(&self, bucket: u64) {
        self.add_at(shard::place(), bucket);
    }

    /// As [`add`](Self::add); `place` is the calling thread's.
    #[inline(always)]
    fn add_at(&self, place: usize, bucket: u64) {
        match self.own.get(place) {
            Some(cells) if self.last[place % shard::MAX].load(Ordering::Relaxed) == bucket => {
                let cell = &cells[bucket as usize % CELLS];
                cell.store(cell.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            }
            Some(cells) => self.add_first(cells, &self.last[place % shard::MAX], bucket),
            None => self.add_shared(bucket),
        }
    }

    /// The first event of an owner in another bucket than before: clears the cells of the buckets that it has slept
    /// through.
    #[cold]
    #[inline(never)]
    fn add_first(&self, own: &Cells, last: &AtomicU64, bucket: u64) {
        let before = last.load(Ordering::Relaxed);
        let steps = bucket.saturating_sub(before).min(CELLS as u64);
        for bucket in bucket + 1 - steps..=bucket {
            let cell = &own[bucket as usize % CELLS];
            let old = cell.load(Ordering::Relaxed) & COUNT_MASK;
            cell.store(tag(bucket), Ordering::Release);
            if old > 0 {
                self.retired.fetch_add(old, Ordering::Relaxed);
            }
        }
        if steps > 0 {
            last.store(bucket, Ordering::Release);
        }
        let cell = &own[bucket as usize % CELLS];
        let seen = cell.load(Ordering::Relaxed);
        if same_tag(seen, bucket) {
            cell.store(seen + 1, Ordering::Relaxed);
        } else {
            // So late that its cell is a later bucket's.
            self.retired.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// An event of a thread without a place.
    #[inline(never)]
    fn add_shared(&self, bucket: u64) {
        let cells = &self.shared[shard::thread() & (self.shared.len() - 1)];
        let cell = &cells[bucket as usize % CELLS];
        let before = cell.fetch_add(1, Ordering::Relaxed);
        if !same_tag(before, bucket) && take_back(cell, before) {
            self.retired.fetch_add(1, Ordering::Relaxed);
        }
        shard::want();
    }

    /// Counts one rare event of kind `kind` in `bucket`.
    pub(crate) fn add_rare(&self, kind: usize, bucket: u64) {
        let cell = &self.rare[kind][bucket as usize % CELLS];
        let before = cell.fetch_add(1, Ordering::SeqCst);
        if !same_tag(before, bucket) {
            take_back(cell, before);
        }
    }

    /// Turns the ring to the bucket of `now`. One thread does it; others go on with the bucket they see.
    #[cold]
    fn turn(&self, now: Instant) {
        let Some(bucket) = self.turn.try_lock() else { return };
        let until = self.until.load(Ordering::Relaxed);
        let now = now.as_nanos();
        if now < until {
            return;
        }
        let steps = (now - until) / *bucket + 1;
        let head = self.head.load(Ordering::Relaxed);
        self.advance(head, steps);
        let end = until.saturating_add(steps.saturating_mul(*bucket));
        self.until.store(end, Ordering::Release);
    }

    /// Resets the cells of the next `steps` buckets, but those that have an owner, then makes the last of them current.
    /// Needs the lock.
    fn advance(&self, head: u64, steps: u64) {
        let next = head + steps;
        let fresh = steps.min(CELLS as u64);
        for bucket in next + 1 - fresh..=next {
            let at = bucket as usize % CELLS;
            for cells in &self.shared {
                let old = cells[at].swap(tag(bucket), Ordering::AcqRel) & COUNT_MASK;
                if old > 0 {
                    self.retired.fetch_add(old, Ordering::Relaxed);
                }
            }
            for cells in self.rare.iter() {
                cells[at].store(tag(bucket), Ordering::Release);
            }
        }
        self.head.store(next, Ordering::Release);
    }

    /// Empties the window. What is being added to an older bucket right now enters nothing.
    pub(crate) fn clear(&self, now: Instant) {
        let bucket = self.turn.lock();
        let head = self.head.load(Ordering::Relaxed);
        self.advance(head, CELLS as u64);
        self.until.store(now.as_nanos().saturating_add(*bucket), Ordering::Release);
    }

    /// Changes the span. Nothing is lost: buckets that exist leave the window bucket by bucket, at the new
    /// pace.
    pub(crate) fn set_span(&self, span: Duration, now: Instant) {
        let mut bucket = self.turn.lock();
        *bucket = (nanos(span) / BUCKETS).max(1);
        let until = self.until.load(Ordering::Relaxed).min(now.as_nanos().saturating_add(*bucket));
        self.until.store(until, Ordering::Release);
    }

    /// What the window holds at `now`.
    pub(crate) fn sums(&self, now: Instant) -> Sums<R> {
        let head = self.bucket(now);
        let held = |cells: &Cells| -> u64 {
            let read = |bucket: u64| {
                let seen = cells[bucket as usize % CELLS].load(Ordering::SeqCst);
                if same_tag(seen, bucket) { seen & COUNT_MASK } else { 0 }
            };
            (head + 1 - BUCKETS..=head).map(read).sum()
        };
        // Cells of an owner who sleeps may be so old that the number of their bucket has come round.
        let awake = |last: &AtomicU64| last.load(Ordering::Acquire) + BUCKETS > head;
        let own = self.own.iter().zip(&self.last).filter(|(_, last)| awake(last)).map(|(cells, _)| cells);
        let common = own.chain(&self.shared).map(|cells| held(cells)).sum();
        Sums { common, rare: std::array::from_fn(|kind| held(&self.rare[kind])) }
    }

    /// Common events since the start, in the window or not.
    pub(crate) fn total(&self) -> u64 {
        let live = self.own.iter().chain(&self.shared).flat_map(|cells| cells.iter());
        let live: u64 = live.map(|cell| cell.load(Ordering::Relaxed) & COUNT_MASK).sum();
        live + self.retired.load(Ordering::Relaxed)
    }
}

/// Undoes an add to a cell that belongs to another bucket by now: the event enters no window. False when
/// the cell was reset since, which has moved the event out already.
#[cold]
fn take_back(cell: &AtomicU64, seen: u64) -> bool {
    let mut current = cell.load(Ordering::Relaxed);
    while (current ^ seen) >> COUNT_BITS == 0 {
        match cell.compare_exchange_weak(current, current - 1, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => current = now,
        }
    }
    false
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::{BUCKETS, CELLS, Instant, Window};
    use crate::shard;
    use crate::sync::{AtomicU64, Ordering};
    use std::time::Duration;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn window() -> Window<1> {
        Window::new(Duration::from_millis(100), at(0))
    }

    /// The first place, and none.
    const PLACES: [usize; 2] = [0, shard::NOWHERE];

    #[test]
    fn an_event_stays_for_the_window_and_no_longer() {
        for place in PLACES {
            let w = window();
            w.add_at(place, w.bucket(at(5)));
            w.add_rare(0, w.bucket(at(5)));
            assert_eq!((w.sums(at(99)).common, w.sums(at(99)).rare), (1, [1]));
            assert_eq!((w.sums(at(100)).common, w.sums(at(100)).rare), (0, [0]));
            assert_eq!(w.total(), 1);
        }
    }

    #[test]
    fn an_idle_gap_empties_the_window() {
        for (gap, place) in
            [100, 159, 160, 170, 1_000_000].into_iter().flat_map(|gap| PLACES.map(|p| (gap, p)))
        {
            let w = window();
            w.add_at(place, w.bucket(at(0)));
            assert_eq!(w.sums(at(gap)).common, 0, "{gap}");
            w.add_at(place, w.bucket(at(gap)));
            assert_eq!((w.sums(at(gap)).common, w.total()), (1, 2), "{gap}");
        }
    }

    /// Numbers of buckets in cells have 24 bits: after so many buckets an owner who has slept finds cells that look like
    /// today's, and so would a reader.
    #[test]
    fn an_owner_who_slept_until_the_numbers_came_round_counts_anew() {
        let round = 10 * (1 << (64 - super::COUNT_BITS));
        let w = window();
        (0..7).for_each(|_| w.add_at(0, w.bucket(at(0))));
        assert_eq!(w.sums(at(round)).common, 0);
        w.add_at(0, w.bucket(at(round)));
        assert_eq!((w.sums(at(round)).common, w.total()), (1, 8));
    }

    #[test]
    fn a_late_add_enters_no_foreign_bucket() {
        for place in PLACES {
            let w = window();
            let old = w.bucket(at(0));
            // The ring comes round: the old cell belongs to a new bucket.
            let new = w.bucket(at(10 * CELLS as u64));
            assert_eq!(old as usize % CELLS, new as usize % CELLS);
            w.add_at(place, old);
            w.add_rare(0, old);
            let sums = w.sums(at(10 * CELLS as u64));
            assert_eq!((sums.common, sums.rare, w.total()), (0, [0], 1));
            // The same once the owner itself has gone on.
            w.add_at(place, new);
            w.add_at(place, old);
            assert_eq!((w.sums(at(10 * CELLS as u64)).common, w.total()), (1, 3));
        }
    }

    #[test]
    fn an_add_from_before_a_clear_enters_nothing() {
        for place in PLACES {
            let w = window();
            let old = w.bucket(at(0));
            w.add_at(place, old);
            w.clear(at(1));
            w.add_at(place, old);
            assert_eq!(w.sums(at(1)).common, 0);
            assert_eq!(w.total(), 2);
        }
    }

    #[test]
    fn a_changed_span_loses_nothing() {
        for place in PLACES {
            let w = window();
            for ms in 0..100 {
                w.add_at(place, w.bucket(at(ms)));
            }
            w.set_span(Duration::from_millis(1_000), at(99));
            assert_eq!(w.sums(at(99)).common, 100);
            w.set_span(Duration::from_millis(50), at(99));
            assert_eq!(w.sums(at(99)).common, 100);
            assert_eq!(w.sums(at(99 + 10 * 5 + 5)).common, 0);
        }
    }

    /// Against the naive model: keep every event with its bucket number.
    #[test]
    fn equals_a_list_of_events() {
        let mut seed = 7_u64;
        let mut draw = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let places = shard::places().0 as u64;
        for _ in 0..200 {
            let (w, mut events, mut now) = (window(), Vec::new(), 0);
            for _ in 0..100 {
                now += if draw(20) == 0 { draw(300) } else { draw(8) };
                let place = usize::try_from(draw(places + 1)).unwrap();
                w.add_at(place, w.bucket(at(now)));
                events.push(now / 10);
                let naive = events.iter().filter(|b| **b + BUCKETS > now / 10).count();
                assert_eq!((w.sums(at(now)).common, w.total()), (naive as u64, events.len() as u64));
            }
        }
    }

    /// More threads than places, in generations, while time goes on: none of their events is lost or counted twice.
    #[test]
    fn threads_that_take_and_give_back_places_lose_no_event() {
        const EACH: u64 = 200_000;
        const THREADS: usize = shard::MAX + 2;
        let (w, time) = (window(), AtomicU64::new(0));
        for _ in 0..4 {
            let start = std::sync::Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        start.wait();
                        for n in 0..EACH {
                            let ms = if n % 1_000 == 0 {
                                time.fetch_add(1, Ordering::Relaxed)
                            } else {
                                time.load(Ordering::Relaxed)
                            };
                            w.add(w.bucket(at(ms)));
                        }
                    });
                }
            });
        }
        assert_eq!(w.total(), 4 * THREADS as u64 * EACH);
        let now = at(time.load(Ordering::Relaxed));
        let before = w.sums(now).common;
        (0..10).for_each(|_| w.add(w.bucket(now)));
        assert_eq!(w.sums(now).common, before + 10);
    }
}
