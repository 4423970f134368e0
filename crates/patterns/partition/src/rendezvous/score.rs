//! Scores: one 32-bit formula for equal and for weighted nodes, the same in scalar and in vector code.
//!
//! Two formulas would remap the fleet when the first weight appears, and a logarithm of the platform would
//! remap it when the toolchain changes; so weights are compared through an integer table.

/// The multipliers of the score, those of `MurmurHash3`'s 32-bit finalizer.
pub(super) const FIRST: u32 = 0x85eb_ca6b;
pub(super) const SECOND: u32 = 0xc2b2_ae35;

/// The score of a node, given the high 32 bits of its name's hash and a key's hash.
#[inline]
pub(super) const fn score(node: u32, hash: u64) -> u32 {
    let (high, low) = ((hash >> 32) as u32, hash as u32);
    let mut x = (node ^ high).wrapping_mul(FIRST);
    x ^= x >> 15;
    x = x.wrapping_add(low).wrapping_mul(SECOND);
    x ^ (x >> 16)
}

/// `round(2^32 * log2(1 + j/1024))` for j = 0 to 1024, made by integers alone: the same on every platform.
static LOG2: [u64; 1025] = log2_table();

/// About `2^32 * -log2 u` for `u = (score + 0.5) / 2^32`: smaller is better. Falls as the score rises.
#[inline]
pub(super) fn cost(score: u32) -> u64 {
    let y = 2 * u64::from(score) + 1;
    let e = 63 - y.leading_zeros();
    // The bits below the top one, moved to the top: ten choose the entry, 32 interpolate.
    let below = (y << (63 - e)) << 1;
    let k = (below >> 54) as usize;
    let r = (below >> 22) & 0xffff_ffff;
    let (low, high) = (LOG2[k], LOG2[k + 1]);
    (u64::from(33 - e) << 32) - (low + (((high - low) * r) >> 32))
}

const fn log2_table() -> [u64; 1025] {
    let mut table = [0; 1025];
    let mut j = 0;
    while j <= 1024 {
        table[j] = log2_rounded(1024 + j as u128);
        j += 1;
    }
    table
}

/// `round(2^32 * log2(x / 1024))` for x = 1024 to 2048, by squaring: each square gives one binary digit.
const fn log2_rounded(x: u128) -> u64 {
    // A fixed-point number in [1, 2), 63 digits after the point: enough that 40 squarings leave more than
    // 33 exact digits.
    const ONE: u128 = 1 << 63;
    if x == 2048 {
        return 1 << 32;
    }
    let mut v = x << 53;
    let mut log = 0_u64;
    let mut digit = 0;
    while digit < 40 {
        v = (v * v) >> 63;
        log <<= 1;
        if v >= 2 * ONE {
            log |= 1;
            v >>= 1;
        }
        digit += 1;
    }
    (log + (1 << 7)) >> 8
}

#[cfg(test)]
mod tests {
    use super::{LOG2, cost, score};

    #[test]
    fn the_table_is_the_logarithm() {
        for (j, entry) in LOG2.iter().enumerate() {
            let exact = (1.0 + j as f64 / 1024.0).log2() * 2.0_f64.powi(32);
            assert_eq!(*entry as f64, exact.round(), "entry {j}");
        }
    }

    #[test]
    fn f22_cost_falls_as_the_score_rises_and_is_the_logarithm() {
        let mut before = u64::MAX;
        // Every score near the ends and where the exponent changes, and a stride over the rest.
        let edges = (0..32).flat_map(|e| {
            let base = 1_u64 << e;
            base.saturating_sub(300)..base + 300
        });
        let mut scores: Vec<u64> = edges.chain((0..1 << 32).step_by(9973)).collect();
        scores.extend((1_u64 << 32) - 1000..1 << 32);
        scores.retain(|s| *s < 1 << 32);
        scores.sort_unstable();
        scores.dedup();
        for s in scores {
            let s = u32::try_from(s).unwrap();
            let now = cost(s);
            assert!(now <= before, "score {s}");
            before = now;
            let exact = -((f64::from(s) + 0.5) / 2.0_f64.powi(32)).log2();
            let ours = now as f64 / 2.0_f64.powi(32);
            assert!((ours - exact).abs() < 2e-7 + 1e-9 * exact, "score {s}: {ours} {exact}");
        }
    }

    #[test]
    fn scores_are_frozen() {
        // By the formula of the profile in another language.
        assert_eq!(score(0, 0), 0);
        assert_eq!(score(0x1234_5678, 0x0123_4567_89ab_cdef), frozen(0x1234_5678, 0x0123_4567_89ab_cdef));
    }

    fn frozen(s: u32, h: u64) -> u32 {
        let m = |a: u64, b: u64| a.wrapping_mul(b) & 0xffff_ffff;
        let mut x = m(u64::from(s) ^ (h >> 32), 0x85eb_ca6b);
        x ^= x >> 15;
        x = m((x + (h & 0xffff_ffff)) & 0xffff_ffff, 0xc2b2_ae35);
        u32::try_from(x ^ (x >> 16)).unwrap()
    }
}
