//! Sorted points with owners, looked up through the high bits of the hash.
//!
//! A point and its owner share one word: the index already knows the point's high bits, so the low ones move
//! up and the owner takes their place. An owner is smaller than the number of buckets, which makes the sum of
//! both exactly 64 bits; one cache line answers a lookup, and ties sort by owner.

use std::fmt;

use crate::error::{ConfigError, ConfigErrorKind};

/// Most points: 2^24, 256 MiB. Envoy's largest ring has half of that.
const MOST: usize = 1 << 24;

/// Words after the last one, so that a lookup reads two without asking whether they are there.
const PAD: usize = 2;

/// Longest bucket that is scanned; a longer one is halved. Even hashes give 9 at most, hostile names more.
const SCAN: usize = 16;

#[derive(Clone)]
pub(crate) struct Points {
    /// `point << bits | owner`, sorted within each bucket, buckets in order; then the first word again for
    /// those beyond the last point, and words that are never the answer.
    words: Vec<u64>,
    len: usize,
    /// Where the bucket of a hash's high bits begins; one more at the end.
    index: Vec<u32>,
    bits: u32,
}

impl Points {
    /// Sorts `points` of owners below `owners`.
    ///
    /// # Errors
    /// More than 2^24.
    pub(crate) fn build(
        owners: usize,
        points: impl Iterator<Item = (u64, u32)> + Clone,
    ) -> Result<Self, ConfigError> {
        let len = points.clone().count();
        if len > MOST {
            let allowed = format!("at most {MOST} in total");
            return Err(ConfigError::new(ConfigErrorKind::TooManyPoints, "points", len, allowed));
        }
        let wide = |n: usize| usize::BITS - n.leading_zeros();
        let bits = wide(len).max(wide(owners)).max(4);
        let mut index = vec![0_u32; (1 << bits) + 1];
        for (point, _) in points.clone() {
            index[bucket(point, bits)] += 1;
        }
        let mut sum = 0;
        for slot in &mut index {
            sum += *slot;
            *slot = sum;
        }
        let mut words = vec![0_u64; len + PAD];
        for (point, owner) in points {
            let slot = &mut index[bucket(point, bits)];
            *slot -= 1;
            words[*slot as usize] = (point << bits) | u64::from(owner);
        }
        for pair in index.windows(2) {
            let (from, to) = (pair[0] as usize, pair[1] as usize);
            if to - from > 1 {
                words[from..to].sort_unstable();
            }
        }
        words[len] = words[0];
        Ok(Self { words, len, index, bits })
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Retained memory.
    pub(crate) fn bytes(&self) -> usize {
        self.words.capacity() * size_of::<u64>() + self.index.capacity() * size_of::<u32>()
    }

    /// Most points in one bucket.
    pub(crate) fn longest(&self) -> u32 {
        self.index.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    /// The position of the first point at or after `hash`; the length when it is beyond the last.
    #[inline]
    fn find(&self, hash: u64) -> usize {
        let at = bucket(hash, self.bits);
        let (begin, end) = (self.index[at] as usize, self.index[at + 1] as usize);
        let low = hash << self.bits;
        // Nearly always at most two points of the bucket are before the hash: counted without a branch that
        // the processor could guess wrong.
        let (first, second) = (self.words[begin], self.words[begin + 1]);
        let before = usize::from(begin < end && first < low) + usize::from(begin + 1 < end && second < low);
        if before == 2 { self.find_far(begin + 2, end, low) } else { begin + before }
    }

    #[inline]
    fn find_far(&self, mut i: usize, end: usize, low: u64) -> usize {
        if end - i > SCAN {
            return i + self.words[i..end].partition_point(|w| *w < low);
        }
        while i < end && self.words[i] < low {
            i += 1;
        }
        i
    }

    /// The owner of the first point at or after `hash`, clockwise.
    #[inline]
    pub(crate) fn owner(&self, hash: u64) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        Some(self.owner_of(self.words[self.find(hash)]))
    }

    #[inline]
    fn owner_of(&self, word: u64) -> u32 {
        // Owners are below 2^bits and bits is at most 25.
        (word & ((1 << self.bits) - 1)) as u32
    }

    /// One turn over the points, from the first at or after `hash`.
    #[inline]
    pub(crate) fn walk(&self, hash: u64) -> Walk<'_> {
        Walk { points: self, at: self.find(hash) as u32, left: self.len as u32 }
    }

    /// Every point with its owner, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        let buckets = self.index.windows(2).zip(0_u64..);
        buckets.flat_map(move |(pair, bucket)| {
            let words = &self.words[pair[0] as usize..pair[1] as usize];
            let high = bucket << (64 - self.bits);
            words.iter().map(move |w| (high | (w >> self.bits), self.owner_of(*w)))
        })
    }

    /// How much of the space of 2^64 hashes each owner has: a point owns what lies between its predecessor
    /// and itself.
    pub(crate) fn arcs(&self, owners: usize) -> Vec<f64> {
        let mut arcs = vec![0.0; owners];
        let Some((mut before, _)) = self.iter().last() else { return arcs };
        for (at, (point, owner)) in self.iter().enumerate() {
            let arc = point.wrapping_sub(before);
            // A single point owns everything.
            let whole = at == 0 && self.len() == 1;
            arcs[owner as usize] += if whole { 2.0_f64.powi(64) } else { arc as f64 };
            before = point;
        }
        arcs
    }
}

#[inline]
fn bucket(point: u64, bits: u32) -> usize {
    (point >> (64 - bits)) as usize
}

impl fmt::Debug for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Points({})", self.len)
    }
}

/// A turn over points.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Walk<'a> {
    points: &'a Points,
    at: u32,
    left: u32,
}

impl Walk<'_> {
    #[inline]
    pub(crate) fn next(&mut self) -> Option<u32> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let word = self.points.words[self.at as usize];
        self.at += 1;
        if self.at as usize > self.points.len {
            // The word after the last is the first one.
            self.at = 1;
        }
        Some(self.points.owner_of(word))
    }

    /// Back to where it began.
    pub(crate) fn restart(&mut self) {
        let len = self.points.len as u32;
        let taken = len - self.left;
        self.at = if self.at >= taken { self.at - taken } else { self.at + len - taken };
        self.left = len;
    }
}
