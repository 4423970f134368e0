//! What a breaker remembers of results.

use mainstay_clock::Instant;

use super::config::Window as Kind;
use super::state::{Counts, Word};
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::window::Window;

const FAIL: usize = 0;
const SLOW: usize = 1;
const ABANDONED: usize = 2;

/// One result, as the window sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    Abandoned,
    Failure { slow: bool },
    Success { slow: bool },
}

/// The memory of one breaker.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "one per breaker, and a box would be one more load per success")]
pub(crate) enum Tally {
    Plain(Plain),
    Time(Window<3>),
}

/// What is small. An enum of its own: a window has room for one bit that tells it apart, and a tag beside it would take
/// a whole line of 128 bytes.
#[derive(Debug)]
pub(crate) enum Plain {
    Count(Mutex<Ring>),
    Run(Run),
}

impl Tally {
    pub(crate) fn new(kind: Kind, now: Instant) -> Self {
        match kind {
            Kind::Consecutive(_) => Self::Plain(Plain::Run(Run::new())),
            Kind::Count(n) => Self::Plain(Plain::Count(Mutex::new(Ring::new(n as usize)))),
            Kind::Time(span) => Self::Time(Window::new(span, now)),
        }
    }

    /// Adds a result of the generation `word`; false when that is not the current one any more.
    pub(crate) fn add(&self, mark: Mark, word: Word, now: Instant, current: &AtomicU64) -> bool {
        let same = || current.load(Ordering::Acquire) == word.0;
        match self {
            Self::Time(window) => {
                // The bucket first: a window cleared after this look refuses what is added to it.
                let bucket = window.bucket(now);
                if !same() {
                    return false;
                }
                match mark {
                    Mark::Abandoned => window.add_rare(ABANDONED, bucket),
                    Mark::Failure { slow } => {
                        if slow {
                            window.add_rare(SLOW, bucket);
                        }
                        window.add_rare(FAIL, bucket);
                    }
                    Mark::Success { slow } => {
                        window.add(bucket);
                        if slow {
                            window.add_rare(SLOW, bucket);
                        }
                    }
                }
                true
            }
            Self::Plain(Plain::Run(run)) => same() && run.add(mark, word),
            Self::Plain(Plain::Count(ring)) => {
                // Clearing takes the same lock, so a result of an older generation cannot slip in.
                let mut ring = ring.lock();
                same() && ring.add(mark)
            }
        }
    }

    /// What the window holds.
    pub(crate) fn counts(&self, word: Word, now: Instant) -> Counts {
        match self {
            Self::Time(window) => {
                let sums = window.sums(now);
                Counts {
                    total: sums.common + sums.rare[FAIL],
                    failures: sums.rare[FAIL],
                    slow: sums.rare[SLOW],
                    abandoned: sums.rare[ABANDONED],
                    run: 0,
                }
            }
            Self::Plain(Plain::Run(run)) => run.counts(word),
            Self::Plain(Plain::Count(ring)) => ring.lock().counts(),
        }
    }

    /// Forgets everything, before the word of the new generation is published.
    pub(crate) fn clear(&self, now: Instant) {
        match self {
            Self::Time(window) => window.clear(now),
            // A run carries the generation it belongs to.
            Self::Plain(Plain::Run(_)) => {}
            Self::Plain(Plain::Count(ring)) => ring.lock().clear(),
        }
    }

    /// Takes another size of the same kind.
    pub(crate) fn resize(&self, kind: Kind, now: Instant) {
        match (self, kind) {
            (Self::Time(window), Kind::Time(span)) => window.set_span(span, now),
            (Self::Plain(Plain::Count(ring)), Kind::Count(n)) => ring.lock().resize(n as usize),
            _ => {}
        }
    }

    /// Successes since the start, if this window counts them.
    pub(crate) fn successes(&self) -> Option<u64> {
        match self {
            Self::Time(window) => Some(window.total()),
            Self::Plain(Plain::Count(ring)) => Some(ring.lock().successes),
            Self::Plain(Plain::Run(_)) => None,
        }
    }
}

/// Failures in a row and drops in a row, stamped with the low bits of their generation. A success only
/// reads unless there is something to reset.
#[derive(Debug)]
pub(crate) struct Run(AtomicU64);

const RUN_BITS: u32 = 20;
const RUN_MASK: u64 = (1 << RUN_BITS) - 1;
const STAMP_SHIFT: u32 = 2 * RUN_BITS;

impl Run {
    fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn stamp(word: Word) -> u64 {
        word.generation() << STAMP_SHIFT
    }

    /// `(failures, drops)` in a row, zero for another generation.
    fn read(packed: u64, word: Word) -> (u64, u64) {
        if (packed ^ Self::stamp(word)) >> STAMP_SHIFT != 0 {
            return (0, 0);
        }
        (packed & RUN_MASK, packed >> RUN_BITS & RUN_MASK)
    }

    /// Whether `packed` counts for a generation after `word`'s; stamps wrap, generations only grow.
    fn is_newer(packed: u64, word: Word) -> bool {
        let ahead = packed.wrapping_sub(Self::stamp(word)) >> STAMP_SHIFT;
        ahead != 0 && ahead < 1 << (63 - STAMP_SHIFT)
    }

    #[inline(always)]
    pub(crate) fn success(&self, word: Word) {
        if self.0.load(Ordering::Acquire) & ((1 << STAMP_SHIFT) - 1) != 0 {
            self.add(Mark::Success { slow: false }, word);
        }
    }

    fn add(&self, mark: Mark, word: Word) -> bool {
        let mut packed = self.0.load(Ordering::SeqCst);
        loop {
            if Self::is_newer(packed, word) {
                // A newer generation has begun to count: this result belongs to none any more.
                return false;
            }
            let (failures, drops) = Self::read(packed, word);
            let (failures, drops) = match mark {
                Mark::Success { .. } => (0, 0),
                Mark::Failure { .. } => ((failures + 1).min(RUN_MASK), 0),
                Mark::Abandoned => (failures, (drops + 1).min(RUN_MASK)),
            };
            let next = Self::stamp(word) | drops << RUN_BITS | failures;
            match self.0.compare_exchange_weak(packed, next, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return true,
                Err(seen) => packed = seen,
            }
        }
    }

    fn counts(&self, word: Word) -> Counts {
        let (run, abandoned) = Self::read(self.0.load(Ordering::SeqCst), word);
        Counts { total: run, failures: run, slow: 0, abandoned, run }
    }
}

/// Exactly the last `n` conclusive results, two bits each: a thousand of them take 250 bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    words: Box<[u64]>,
    size: usize,
    /// Where the next result goes; once the ring is full, where the oldest one is.
    at: usize,
    len: usize,
    failures: u64,
    slow: u64,
    /// Drops since the last result.
    abandoned: u64,
    successes: u64,
}

const RING_FAIL: u64 = 1;
const RING_SLOW: u64 = 2;
const RING_MARK: u64 = RING_FAIL | RING_SLOW;
/// Results of one word.
const PER_WORD: usize = 32;

impl Ring {
    fn new(size: usize) -> Self {
        let words = vec![0; size.div_ceil(PER_WORD)].into_boxed_slice();
        Self { words, size, at: 0, len: 0, failures: 0, slow: 0, abandoned: 0, successes: 0 }
    }

    fn add(&mut self, mark: Mark) -> bool {
        let bits = match mark {
            Mark::Abandoned => {
                self.abandoned += 1;
                return true;
            }
            Mark::Failure { slow } => RING_FAIL | if slow { RING_SLOW } else { 0 },
            Mark::Success { slow } => {
                self.successes += 1;
                if slow { RING_SLOW } else { 0 }
            }
        };
        self.abandoned = 0;
        self.push(bits);
        true
    }

    fn push(&mut self, bits: u64) {
        let shift = self.at % PER_WORD * 2;
        let word = &mut self.words[self.at / PER_WORD];
        // Places that were never written hold a success, which no count knows.
        let old = *word >> shift & RING_MARK;
        *word ^= (old ^ bits) << shift;
        self.failures = self.failures + (bits & RING_FAIL) - (old & RING_FAIL);
        self.slow = self.slow + (bits >> 1) - (old >> 1);
        self.len = (self.len + 1).min(self.size);
        self.at = if self.at + 1 == self.size { 0 } else { self.at + 1 };
    }

    /// Keeps the newest that fit.
    fn resize(&mut self, size: usize) {
        let mut next = Self { successes: self.successes, abandoned: self.abandoned, ..Self::new(size) };
        for back in (1..=self.len.min(size)).rev() {
            let at = (self.at + self.size - back) % self.size;
            next.push(self.words[at / PER_WORD] >> (at % PER_WORD * 2) & RING_MARK);
        }
        *self = next;
    }

    fn clear(&mut self) {
        self.words.fill(0);
        (self.at, self.len, self.failures, self.slow, self.abandoned) = (0, 0, 0, 0, 0);
    }

    fn counts(&self) -> Counts {
        Counts {
            total: self.len as u64,
            failures: self.failures,
            slow: self.slow,
            abandoned: self.abandoned,
            run: 0,
        }
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::{Mark, Ring};

    /// Against a list of what was added, over sizes around the ends of words, with changes of size on the way.
    #[test]
    fn a_ring_counts_exactly_the_last_results() {
        let mut seed = 3_u64;
        let mut draw = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        for size in [1, 2, 31, 32, 33, 64, 100] {
            let (mut ring, mut list, mut size) = (Ring::new(size), Vec::new(), size);
            for step in 0..2_000 {
                let (fails, slow) = (draw(3) == 0, draw(4) == 0);
                ring.add(if fails { Mark::Failure { slow } } else { Mark::Success { slow } });
                list.push((fails, slow));
                if step % 97 == 96 {
                    // What is forgotten by a smaller ring does not come back in a larger one.
                    let kept = list.len().saturating_sub(size);
                    list.drain(..kept);
                    size = 1 + usize::try_from(draw(130)).unwrap();
                    ring.resize(size);
                }
                let last = &list[list.len().saturating_sub(size)..];
                let counts = ring.counts();
                assert_eq!(counts.total, last.len() as u64, "{size} at {step}");
                assert_eq!(counts.failures, last.iter().filter(|r| r.0).count() as u64, "{size} at {step}");
                assert_eq!(counts.slow, last.iter().filter(|r| r.1).count() as u64, "{size} at {step}");
            }
            ring.clear();
            assert_eq!((ring.counts().total, ring.counts().failures), (0, 0));
        }
    }
}
