//! The best of nodes with equal weights, eight at once: one pass that keeps the largest score of each lane and
//! where it was.

use pulp::NullaryFnOnce;
use pulp::x86::V3;

use super::score::{FIRST, SECOND};
use super::vectors::LANES;

/// The position of the first largest score.
#[inline]
pub(super) fn first_max(v3: V3, blocks: &[[u32; LANES]], hash: u64) -> usize {
    v3.vectorize(FirstMax { v3, blocks, hash })
}

struct FirstMax<'a> {
    v3: V3,
    blocks: &'a [[u32; LANES]],
    hash: u64,
}

impl NullaryFnOnce for FirstMax<'_> {
    type Output = usize;

    #[inline(always)]
    fn call(self) -> usize {
        let (avx, avx2) = (self.v3.avx, self.v3.avx2);
        let all = |n: u32| avx._mm256_set1_epi32(n.cast_signed());
        let (high, low) = (all((self.hash >> 32) as u32), all(self.hash as u32));
        let (first, second) = (all(FIRST), all(SECOND));
        let (mut best, mut at) = (all(0), all(0));
        for (block, number) in self.blocks.iter().zip(0_u32..) {
            let mut x = avx2._mm256_xor_si256(pulp::cast(*block), high);
            x = avx2._mm256_mullo_epi32(x, first);
            x = avx2._mm256_xor_si256(x, avx2._mm256_srli_epi32::<15>(x));
            x = avx2._mm256_mullo_epi32(avx2._mm256_add_epi32(x, low), second);
            x = avx2._mm256_xor_si256(x, avx2._mm256_srli_epi32::<16>(x));
            let larger = avx2._mm256_max_epu32(best, x);
            // Where the best is the old one, it stays where it was: of equal scores the first one counts.
            let old = avx2._mm256_cmpeq_epi32(larger, best);
            (best, at) = (larger, avx2._mm256_blendv_epi8(all(number), at, old));
        }
        let (best, at): ([u32; LANES], [u32; LANES]) = (pulp::cast(best), pulp::cast(at));
        // The largest score, and of equal ones the smallest position: one number has both.
        let lane =
            |(i, lane): (usize, u32)| u64::from(best[i]) << 32 | u64::from(!(at[i] * LANES as u32 + lane));
        let winner = (0..LANES).zip(0..).map(lane).fold(0, u64::max);
        !(winner as u32) as usize
    }
}
