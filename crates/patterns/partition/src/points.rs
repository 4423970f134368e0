//! Sorted points with owners, found through buckets of equal width.
//!
//! The circle is cut into buckets of four points on average. A bucket is half a cache line: a piece of each of
//! its first seven points, and who owns them. One line and one comparison of all its lanes answer a lookup,
//! without a branch that depends on the key; where the pieces cannot tell, the points themselves decide.

use std::fmt;

use crate::error::{ConfigError, ConfigErrorKind};

/// Most points: 2^24, about 304 MiB. Envoy's largest ring has half of that.
const MOST: usize = 1 << 24;
/// Points per bucket, on average. With three, tables are larger and lookups of big rings miss the cache more
/// often; with five, one lookup in thirty meets a bucket that is too full (measured, November 2026).
const PER_BUCKET: usize = 4;
/// Lanes of a bucket. The last one stands for the first point behind the bucket.
const LANES: usize = 8;
/// Bits of a point's place in its bucket that a lane keeps: as many as a signed comparison has.
const KEPT: u32 = 15;
/// Most owners whose number fits 16 bits.
const SMALL: usize = 1 << 16;

/// The number of an owner, as narrow as it can be.
trait Number: Copy + Default + Into<u32> + TryFrom<u32> {}

impl Number for u16 {}
impl Number for u32 {}

/// A piece of the circle.
#[derive(Clone, Copy)]
#[repr(align(32))]
struct Bucket<N> {
    /// Ascending: how far each point is into the bucket; then the largest number. When the bucket has more than
    /// seven points, the last lane is below every number, so that who passes seven finds no lane.
    pieces: [i16; LANES],
    /// Whose they are; then the owner of the first point behind the bucket.
    owners: [N; LANES],
}

impl<N: Number> Bucket<N> {
    /// The first lane that is not below `piece`, or [`LANES`].
    #[inline]
    fn lane(&self, piece: i16) -> usize {
        #[cfg(all(feature = "simd", target_arch = "x86_64"))]
        if let Some(sse) = pulp::core_arch::x86::Sse2::try_new() {
            let lanes = pulp::cast(self.pieces);
            let below = sse._mm_movemask_epi8(sse._mm_cmpgt_epi16(sse._mm_set1_epi16(piece), lanes));
            // Two bits per lane; above the sixteenth there are only ones.
            return ((!below).trailing_zeros() / 2) as usize;
        }
        // Without the feature, and on other processors.
        self.lane_by_hand(piece)
    }

    fn lane_by_hand(&self, piece: i16) -> usize {
        self.pieces.iter().position(|p| *p >= piece).unwrap_or(LANES)
    }

    /// The first lane that is not below `piece`, if it is above: equal pieces cannot tell who comes first.
    #[inline]
    fn clear(&self, piece: i16) -> Option<usize> {
        let lane = self.lane(piece);
        (lane < LANES && self.pieces[lane] != piece).then_some(lane)
    }
}

/// Buckets, and the owner of every point in order; the first one again at the end.
#[derive(Clone)]
struct Table<N> {
    buckets: Vec<Bucket<N>>,
    owners: Vec<N>,
}

impl<N: Number> Table<N> {
    fn fill(sorted: &[(u64, u32)], starts: &[u32]) -> Self {
        let narrow = |owner: u32| N::try_from(owner).unwrap_or_default();
        let owners: Vec<N> = sorted.iter().chain(sorted.first()).map(|(_, owner)| narrow(*owner)).collect();
        let count = starts.len() - 1;
        let bucket = |at: usize| {
            let (from, to) = (starts[at] as usize, starts[at + 1] as usize);
            let mut bucket = Bucket { pieces: [i16::MAX; LANES], owners: [owners[to]; LANES] };
            for (lane, at) in (from..to).take(LANES - 1).enumerate() {
                bucket.pieces[lane] = split(sorted[at].0, count).1;
                bucket.owners[lane] = owners[at];
            }
            if to - from >= LANES {
                bucket.pieces[LANES - 1] = i16::MIN;
            }
            bucket
        };
        Self { buckets: (0..count).map(bucket).collect(), owners }
    }

    fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket<N>>() + self.owners.capacity() * size_of::<N>()
    }
}

#[derive(Clone)]
enum Width {
    Small(Table<u16>),
    Large(Table<u32>),
}

#[derive(Clone)]
pub(crate) struct Points {
    /// Ascending.
    points: Vec<u64>,
    /// How many points there are before each bucket; one more at the end.
    starts: Vec<u32>,
    table: Width,
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
        let count = len.div_ceil(PER_BUCKET);
        let mut starts = vec![0_u32; count + 1];
        for (point, _) in points.clone() {
            starts[split(point, count).0] += 1;
        }
        let mut sum = 0;
        for start in &mut starts {
            sum += *start;
            *start = sum;
        }
        let mut sorted = vec![(0, 0); len];
        for (point, owner) in points {
            let start = &mut starts[split(point, count).0];
            *start -= 1;
            sorted[*start as usize] = (point, owner);
        }
        for pair in starts.windows(2) {
            sorted[pair[0] as usize..pair[1] as usize].sort_unstable();
        }
        let table = if owners <= SMALL {
            Width::Small(Table::fill(&sorted, &starts))
        } else {
            Width::Large(Table::fill(&sorted, &starts))
        };
        // Not from the list itself: that would keep its memory, which is twice as much.
        Ok(Self { points: sorted.iter().map(|(point, _)| *point).collect(), starts, table })
    }

    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }

    /// Retained memory.
    pub(crate) fn bytes(&self) -> usize {
        let table = match &self.table {
            Width::Small(table) => table.bytes(),
            Width::Large(table) => table.bytes(),
        };
        table + self.points.capacity() * size_of::<u64>() + self.starts.capacity() * size_of::<u32>()
    }

    /// Most points in one bucket.
    pub(crate) fn longest(&self) -> u32 {
        self.starts.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0)
    }

    /// The owner of the first point at or after `hash`, clockwise.
    #[inline]
    pub(crate) fn owner(&self, hash: u64) -> Option<u32> {
        match &self.table {
            Width::Small(table) => self.owner_in(table, hash),
            Width::Large(table) => self.owner_in(table, hash),
        }
    }

    #[inline]
    fn owner_in<N: Number>(&self, table: &Table<N>, hash: u64) -> Option<u32> {
        let (at, piece) = split(hash, table.buckets.len());
        let bucket = table.buckets.get(at)?;
        let Some(lane) = bucket.clear(piece) else { return Some(self.owner_at(self.search(hash))) };
        Some(bucket.owners[lane].into())
    }

    /// The position of the first point at or after `hash`; the length when it is beyond the last.
    #[inline]
    fn find(&self, hash: u64) -> usize {
        let (at, lane) = match &self.table {
            Width::Small(table) => lane_in(table, hash),
            Width::Large(table) => lane_in(table, hash),
        };
        match lane {
            Some(lane) => self.starts[at] as usize + lane,
            None => self.search(hash),
        }
    }

    /// The same by the points themselves: where a bucket is too full, or a lane equals the hash's.
    #[cold]
    #[inline(never)]
    fn search(&self, hash: u64) -> usize {
        let count = self.starts.len() - 1;
        if count == 0 {
            return 0;
        }
        let at = split(hash, count).0;
        let (from, to) = (self.starts[at] as usize, self.starts[at + 1] as usize);
        from + self.points[from..to].partition_point(|point| *point < hash)
    }

    /// The owner of the point at a position up to the length, which is the first one again.
    #[inline]
    fn owner_at(&self, at: usize) -> u32 {
        match &self.table {
            Width::Small(table) => table.owners[at].into(),
            Width::Large(table) => table.owners[at],
        }
    }

    /// One turn over the points, from the first at or after `hash`.
    #[inline]
    pub(crate) fn walk(&self, hash: u64) -> Walk<'_> {
        Walk { points: self, at: self.find(hash) as u32, left: self.len() as u32 }
    }

    /// Every point with its owner, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u32)> {
        self.points.iter().enumerate().map(|(at, point)| (*point, self.owner_at(at)))
    }

    /// How much of the space of 2^64 hashes each owner has: a point owns what lies between its predecessor
    /// and itself.
    pub(crate) fn arcs(&self, owners: usize) -> Vec<f64> {
        let mut arcs = vec![0.0; owners];
        let Some(mut before) = self.points.last().copied() else { return arcs };
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

/// The bucket of a hash among `count`, and how far into it the hash is. Both rise with the hash, and the second
/// never decides alone: the bits that it leaves out do where it is equal.
#[inline]
fn split(hash: u64, count: usize) -> (usize, i16) {
    let wide = u128::from(hash) * count as u128;
    ((wide >> 64) as usize, (wide as u64 >> (64 - KEPT)) as i16)
}

#[inline]
fn lane_in<N: Number>(table: &Table<N>, hash: u64) -> (usize, Option<usize>) {
    let (at, piece) = split(hash, table.buckets.len());
    (at, table.buckets.get(at).and_then(|bucket| bucket.clear(piece)))
}

impl fmt::Debug for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Points({})", self.len())
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
        let owner = self.points.owner_at(self.at as usize);
        self.at += 1;
        if self.at as usize > self.points.len() {
            // The owner after the last is the first one.
            self.at = 1;
        }
        Some(owner)
    }

    /// Back to where it began.
    pub(crate) fn restart(&mut self) {
        let len = self.points.len() as u32;
        let taken = len - self.left;
        self.at = if self.at >= taken { self.at - taken } else { self.at + len - taken };
        self.left = len;
    }
}

#[cfg(test)]
mod tests {
    use super::{Bucket, LANES, Points, Width, split};
    use crate::hash::mix64;

    fn check(points: &[(u64, u32)], owners: usize) {
        let ring = Points::build(owners, points.iter().copied()).unwrap();
        let mut sorted = points.to_vec();
        sorted.sort_unstable();
        assert!(ring.iter().eq(sorted.iter().copied()));
        let near = points.iter().flat_map(|p| [p.0.wrapping_sub(1), p.0, p.0.wrapping_add(1)]);
        let random = (0..5_000).map(mix64);
        for hash in near.chain(random).chain([0, 1, u64::MAX - 1, u64::MAX]) {
            let at = sorted.partition_point(|p| p.0 < hash);
            let wanted = sorted.get(at).or(sorted.first()).map(|p| p.1);
            assert_eq!(ring.owner(hash), wanted, "{hash:x} among {} points", points.len());
            assert_eq!(ring.walk(hash).next(), wanted, "{hash:x} among {} points", points.len());
            if !sorted.is_empty() {
                assert_eq!(ring.find(hash), at);
            }
        }
    }

    #[test]
    fn l7_the_buckets_find_what_a_binary_search_finds() {
        for len in [0, 1, 2, 3, 4, 5, 7, 8, 9, 64, 1_000, 20_000] {
            let even: Vec<_> = (0..len).map(|i| (mix64(i + 9), (i % 50) as u32)).collect();
            check(&even, 50);
            check(&even, 1 << 16);
            check(&even, 70_000);
        }
    }

    #[test]
    fn l7_hostile_points_that_crowd_or_coincide_are_found_too() {
        let crowd: Vec<_> = (0..3_000).map(|i| ((1 << 40) + i, i as u32)).collect();
        check(&crowd, 3_000);
        // A bucket of this ring is about 2^54 wide, a lane's piece 2^39: these differ below.
        let twins: Vec<_> = (0..4_000).map(|i| ((mix64(i / 3) >> 32 << 32) | (i % 3), i as u32)).collect();
        check(&twins, 4_000);
        let ends: Vec<_> = [0, 0, 1, u64::MAX - 1, u64::MAX, u64::MAX].into_iter().zip(0..).collect();
        check(&ends, 6);
    }

    #[test]
    fn l7_vectors_find_the_lane_that_a_loop_finds() {
        let ring = Points::build(9, (0..4_000).map(|i| (mix64(i), (i % 9) as u32))).unwrap();
        let Width::Small(table) = &ring.table else { panic!("nine owners fit 16 bits") };
        let (mut full, mut none) = (0, 0);
        for bucket in &table.buckets {
            full += usize::from(bucket.pieces[LANES - 1] == i16::MIN);
            let edges = bucket.pieces.iter().flat_map(|p| [p.saturating_sub(1), *p, p.saturating_add(1)]);
            for piece in edges.chain([0, i16::MAX]).filter(|p| *p >= 0) {
                let lane = bucket.lane(piece);
                assert_eq!(lane, bucket.lane_by_hand(piece));
                none += usize::from(lane == LANES);
            }
        }
        assert!(full > 0 && none > 0, "some buckets hold more than seven points");
        assert_eq!(size_of::<Bucket<u16>>(), 32);
        assert_eq!(split(u64::MAX, 3), (2, i16::MAX));
    }
}
