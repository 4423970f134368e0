//! Everything a bulkhead counts, in one word, so that one compare-and-swap decides an admission.
//!
//! Holders are counted by the parity of the epoch in which they entered. The parity turns about once a second
//! as soon as nobody of the other parity is left: so the age of the oldest holder is known between two
//! bounds, at no cost for those who enter and leave.

/// Most permits; the width of the counts.
pub(crate) const MAX_LIMIT: u32 = u16::MAX as u32;
/// Longest queue.
pub(crate) const MAX_QUEUE: u32 = (1 << WAITERS_BITS) - 1;

const WAITERS_BITS: u32 = 15;
const COUNT_BITS: u32 = 16;
const FIRST: u32 = WAITERS_BITS;
const LIMIT: u32 = FIRST + 2 * COUNT_BITS;
const PARITY: u32 = LIMIT + COUNT_BITS;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// `parity | limit | holders of parity 1 | holders of parity 0 | waiters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) fn new(limit: u32) -> Self {
        Self(u64::from(limit) << LIMIT)
    }

    fn part(self, at: u32, mask: u64) -> u32 {
        // Every mask is at most 16 bits wide.
        (self.0 >> at & mask) as u32
    }

    pub(crate) fn waiters(self) -> u32 {
        self.part(0, (1 << WAITERS_BITS) - 1)
    }

    pub(crate) fn holders(self, parity: u8) -> u32 {
        self.part(FIRST + COUNT_BITS * u32::from(parity & 1), COUNT_MASK)
    }

    pub(crate) fn in_flight(self) -> u32 {
        self.holders(0) + self.holders(1)
    }

    pub(crate) fn limit(self) -> u32 {
        self.part(LIMIT, COUNT_MASK)
    }

    pub(crate) fn parity(self) -> u8 {
        self.part(PARITY, 1) as u8
    }

    /// One holder of `parity`, as a difference of words. Chosen and not shifted: it stands between reading the word and
    /// writing it.
    #[inline(always)]
    pub(crate) fn one(parity: u8) -> u64 {
        if parity & 1 == 0 { 1 << FIRST } else { 1 << (FIRST + COUNT_BITS) }
    }

    /// One more holder, if there is a permit and nobody waits for it.
    #[inline]
    pub(crate) fn enter(self) -> Option<Self> {
        (self.waiters() == 0).then(|| self.take()).flatten()
    }

    /// One more holder, if there is a permit.
    #[inline]
    pub(crate) fn take(self) -> Option<Self> {
        (self.in_flight() < self.limit()).then(|| Self(self.0 + Self::one(self.parity())))
    }

    /// One holder of `parity` less.
    #[inline]
    pub(crate) fn leave(self, parity: u8) -> Self {
        Self(self.0 - Self::one(parity))
    }

    pub(crate) fn wait(self) -> Self {
        Self(self.0 + 1)
    }

    pub(crate) fn stop_waiting(self) -> Self {
        Self(self.0 - 1)
    }

    pub(crate) fn with_limit(self, limit: u32) -> Self {
        Self(self.0 & !(COUNT_MASK << LIMIT) | u64::from(limit) << LIMIT)
    }

    /// A new epoch, if nobody of the one before the current is left.
    pub(crate) fn turn(self) -> Option<Self> {
        (self.holders(self.parity() ^ 1) == 0).then_some(Self(self.0 ^ 1 << PARITY))
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::{MAX_LIMIT, MAX_QUEUE, Word};

    #[test]
    fn parts_do_not_touch_each_other() {
        let mut w = Word::new(MAX_LIMIT);
        for _ in 0..MAX_LIMIT {
            w = w.enter().unwrap();
        }
        assert_eq!(w.enter(), None);
        for _ in 0..MAX_QUEUE {
            w = w.wait();
        }
        assert_eq!((w.in_flight(), w.waiters(), w.limit()), (MAX_LIMIT, MAX_QUEUE, MAX_LIMIT));
        w = w.with_limit(3).turn().unwrap();
        assert_eq!((w.in_flight(), w.waiters(), w.limit(), w.parity()), (MAX_LIMIT, MAX_QUEUE, 3, 1));
        assert_eq!(w.turn(), None);
        for _ in 0..MAX_LIMIT {
            w = w.leave(0);
        }
        assert_eq!((w.in_flight(), w.waiters()), (0, MAX_QUEUE));
        assert_eq!(w.take().unwrap().holders(1), 1);
    }
}
