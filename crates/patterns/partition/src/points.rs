//! Sorted points with owners, found through buckets of equal width.
//!
//! The circle is cut into buckets of eight points on average. A bucket is one cache line: who owns the sixteen points
//! from its first one on, and a piece of each that lies in it. One line and one comparison of all its lanes answer a
//! lookup, without a branch that depends on the key, and a walk finds its next owners where it found the first; where
//! the pieces cannot tell, the points themselves decide.

use std::fmt;

use crate::error::ConfigError;

/// Most points: 2^24, about 296 MiB. Envoy's largest ring has half of that.
const MOST: usize = 1 << 24;
/// Points per bucket, on average. With half of the lanes to spare, one lookup in a thousand passes all of a bucket; with
/// ten it would be one in a hundred, and each costs a mispredicted branch (November 2026).
const PER_BUCKET: usize = 8;
/// Lanes of a bucket: with owners of 16 bits they fill a cache line.
const LANES: usize = 16;
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
#[repr(align(64))]
struct Bucket<N> {
    /// Ascending: how far each point is into the bucket, up to the number of lanes; then the largest number.
    pieces: [i16; LANES],
    /// Who owns them, and the points after them, whichever bucket those are in.
    owners: [N; LANES],
}

impl<N: Number> Bucket<N> {
    /// The first lane that is not below `piece`, or [`LANES`].
    #[inline]
    fn lane(&self, piece: i16) -> usize {
        #[cfg(all(feature = "simd", target_arch = "x86_64"))]
        if let Some(sse) = pulp::core_arch::x86::Sse2::try_new() {
            let [low, high]: [pulp::i16x8; 2] = pulp::cast(self.pieces);
            let all = sse._mm_set1_epi16(piece);
            let below = |lanes| sse._mm_cmpgt_epi16(all, pulp::cast(lanes));
            // A bit per lane; above the sixteenth there are only ones.
            let mask = sse._mm_movemask_epi8(sse._mm_packs_epi16(below(low), below(high)));
            return (!mask).trailing_zeros() as usize;
        }
        // Without the feature, and on other processors.
        self.lane_by_hand(piece)
    }

    /// Counts instead of searching: no branch depends on the key.
    #[inline]
    fn lane_by_hand(&self, piece: i16) -> usize {
        self.pieces.iter().map(|p| u16::from(*p < piece)).sum::<u16>().into()
    }

    /// The first lane that is not below `piece`, if it is above: equal pieces cannot tell who comes first.
    #[inline]
    fn clear(&self, piece: i16) -> Option<usize> {
        let lane = self.lane(piece);
        (lane < LANES && self.pieces[lane] != piece).then_some(lane)
    }
}

/// Buckets, and the owner of every point in order.
#[derive(Clone)]
struct Table<N> {
    buckets: Vec<Bucket<N>>,
    owners: Vec<N>,
}

impl<N: Number> Table<N> {
    fn fill(sorted: &[(u64, u32)], starts: &[u32]) -> Self {
        let narrow = |owner: u32| N::try_from(owner).unwrap_or_default();
        let owners: Vec<N> = sorted.iter().map(|(_, owner)| narrow(*owner)).collect();
        let count = starts.len() - 1;
        let bucket = |at: usize| {
            let (from, to) = (starts[at] as usize, starts[at + 1] as usize);
            let mut bucket = Bucket { pieces: [i16::MAX; LANES], owners: [N::default(); LANES] };
            for (piece, (point, _)) in bucket.pieces.iter_mut().zip(&sorted[from..to]) {
                *piece = split(*point, count).1;
            }
            // A ring with few points comes round.
            let window = owners[from..].iter().chain(owners.iter().cycle());
            for (lane, owner) in bucket.owners.iter_mut().zip(window) {
                *lane = *owner;
            }
            bucket
        };
        Self { buckets: (0..count).map(bucket).collect(), owners }
    }

    /// The bucket of a hash and the lane of the first point from there on, if the pieces can tell.
    #[inline]
    fn find(&self, hash: u64) -> Option<(usize, usize)> {
        let (at, piece) = split(hash, self.buckets.len());
        Some((at, self.buckets.get(at)?.clear(piece)?))
    }

    /// The owner of the point that many places behind the first one of a bucket, if the bucket has it.
    #[inline]
    fn near(&self, bucket: usize, places: usize) -> Option<N> {
        self.buckets.get(bucket)?.owners.get(places).copied()
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
            return Err(ConfigError::new("points", len, allowed));
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
        let Some(lane) = bucket.clear(piece) else { return Some(self.owner_by_search(hash)) };
        Some(bucket.owners[lane].into())
    }

    #[cold]
    #[inline(never)]
    fn owner_by_search(&self, hash: u64) -> u32 {
        let (bucket, places) = self.search(hash);
        self.owner_past(bucket, places)
    }

    /// The bucket of `hash` and how many of its points are before it, by the points themselves: where there are more
    /// than lanes, or a lane equals the hash's.
    #[cold]
    #[inline(never)]
    fn search(&self, hash: u64) -> (usize, usize) {
        let bucket = split(hash, self.starts.len() - 1).0;
        let (from, to) = (self.starts[bucket] as usize, self.starts[bucket + 1] as usize);
        (bucket, self.points[from..to].partition_point(|point| *point < hash))
    }

    /// The owner of the point that many places behind the first one of a bucket, at most one turn.
    #[cold]
    #[inline(never)]
    fn owner_past(&self, bucket: usize, places: usize) -> u32 {
        let at = self.starts[bucket] as usize + places;
        self.owner_at(if at < self.len() { at } else { at - self.len() })
    }

    fn owner_at(&self, at: usize) -> u32 {
        match &self.table {
            Width::Small(table) => table.owners[at].into(),
            Width::Large(table) => table.owners[at],
        }
    }

    /// One turn over the points, from the first at or after `hash`.
    #[inline]
    pub(crate) fn walk(&self, hash: u64) -> Walk<'_> {
        let found = match &self.table {
            Width::Small(table) => table.find(hash),
            Width::Large(table) => table.find(hash),
        };
        let (bucket, places) = match found {
            Some(place) => place,
            None if self.points.is_empty() => (0, 0),
            None => self.search(hash),
        };
        Walk { points: self, bucket, places: places as u32, left: self.len() as u32 }
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

/// The bucket of a hash among `count`, and how far into it the hash is, from its upper half alone: one short
/// multiplication. Both rise with the hash, and the second never decides where it is equal.
#[inline]
fn split(hash: u64, count: usize) -> (usize, i16) {
    // Below 2^64: a count is below 2^32, there are fewer points.
    let scaled = (hash >> 32) * count as u64;
    ((scaled >> 32) as usize, (scaled as u32 >> (32 - KEPT)) as i16)
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
    /// The bucket where it began, and how many places behind its first point the next one is.
    bucket: usize,
    places: u32,
    left: u32,
}

impl<'a> Walk<'a> {
    /// The next owners, as many as the bucket has, at most one turn and again from its start.
    #[inline]
    pub(crate) fn near(&self) -> &'a [u16] {
        let Width::Small(table) = &self.points.table else { return &[] };
        let bucket = table.buckets.get(self.bucket);
        bucket.and_then(|bucket| bucket.owners.get(self.places as usize..)).unwrap_or(&[])
    }

    #[inline]
    pub(crate) fn next(&mut self) -> Option<u32> {
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        let places = self.places as usize;
        self.places += 1;
        let near = match &self.points.table {
            Width::Small(table) => table.near(self.bucket, places).map(u32::from),
            Width::Large(table) => table.near(self.bucket, places),
        };
        Some(near.unwrap_or_else(|| self.points.owner_past(self.bucket, places)))
    }

    /// Back to where it began.
    pub(crate) fn restart(&mut self) {
        let len = self.points.len() as u32;
        self.places -= len - self.left;
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
                let (bucket, places) = ring.search(hash);
                assert_eq!(ring.starts[bucket] as usize + places, at);
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
        // A bucket of this ring is about 2^55 wide, a lane's piece 2^40: these differ below.
        let twins: Vec<_> = (0..4_000).map(|i| ((mix64(i / 3) >> 32 << 32) | (i % 3), i as u32)).collect();
        check(&twins, 4_000);
        let ends: Vec<_> = [0, 0, 1, u64::MAX - 1, u64::MAX, u64::MAX].into_iter().zip(0..).collect();
        check(&ends, 6);
    }

    #[test]
    fn l7_vectors_find_the_lane_that_a_loop_finds() {
        let ring = Points::build(9, (0..40_000).map(|i| (mix64(i), (i % 9) as u32))).unwrap();
        let Width::Small(table) = &ring.table else { panic!("nine owners fit 16 bits") };
        let (mut some, mut none) = (0, 0);
        for bucket in &table.buckets {
            let edges = bucket.pieces.iter().flat_map(|p| [p.saturating_sub(1), *p, p.saturating_add(1)]);
            for piece in edges.chain([0, i16::MAX]).filter(|p| *p >= 0) {
                let lane = bucket.lane(piece);
                assert_eq!(lane, bucket.lane_by_hand(piece));
                assert_eq!(lane, bucket.pieces.iter().position(|p| *p >= piece).unwrap_or(LANES));
                if lane == LANES { none += 1 } else { some += 1 }
            }
        }
        assert!(some > 0 && none > 0, "some buckets hold more points than lanes");
        assert_eq!((size_of::<Bucket<u16>>(), align_of::<Bucket<u16>>()), (64, 64));
        assert_eq!(split(u64::MAX, 3), (2, i16::MAX));
    }

    #[test]
    fn s3_points_that_coincide_are_the_smallest_owners_and_removal_touches_no_others() {
        let shared = vec![(5, 2), (5, 0), (5, 1), (9, 2), (9, 1)];
        let ring = Points::build(3, shared.iter().copied()).unwrap();
        assert_eq!((ring.owner(5), ring.owner(6), ring.owner(10)), (Some(0), Some(1), Some(0)));
        let mut walk = ring.walk(6);
        assert_eq!([1, 2, 0, 1, 2].map(|_| walk.next()), [1, 2, 0, 1, 2].map(Some));
        let without: Vec<_> = shared.into_iter().filter(|p| p.1 != 1).collect();
        let ring = Points::build(3, without.iter().copied()).unwrap();
        assert_eq!(ring.iter().collect::<Vec<_>>(), [(5, 0), (5, 2), (9, 2)]);
    }

    #[test]
    fn walks_take_one_turn_within_a_bucket_and_beyond() {
        for (len, owners) in [(0, 1), (1, 1), (3, 2), (15, 4), (17, 4), (40, 9), (1_000, 70_000)] {
            let points: Vec<_> = (0..len).map(|i| (mix64(i), (i % 50) as u32)).collect();
            let ring = Points::build(owners, points.iter().copied()).unwrap();
            let mut sorted = points.clone();
            sorted.sort_unstable();
            let near = points.iter().flat_map(|p| [p.0, p.0.wrapping_add(1)]);
            for hash in near.chain([0, u64::MAX]) {
                let at = sorted.partition_point(|p| p.0 < hash);
                let turn: Vec<_> = sorted[at..].iter().chain(&sorted[..at]).map(|p| p.1).collect();
                let mut walk = ring.walk(hash);
                for taken in [0, turn.len() / 2, turn.len()] {
                    let some: Vec<_> = std::iter::from_fn(|| walk.next()).take(taken).collect();
                    assert_eq!(some, turn[..taken], "{hash:x} among {len} points");
                    walk.restart();
                }
                let all: Vec<_> = std::iter::from_fn(|| walk.next()).collect();
                assert_eq!(all, turn);
                assert_eq!(walk.next(), None);
            }
        }
    }
}
