//! Nanoseconds of something that takes a few.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Batches of which the fastest counts: what else runs on the machine only ever slows down.
const BATCHES: usize = 25;
/// Keys of a batch, when they are quick: 256 KiB, more than fits beside the table in the first cache.
pub(super) const KEYS: usize = 1 << 14;
/// Longest time for one figure.
const LIMIT: Duration = Duration::from_millis(600);

/// A key as users have them: 16 bytes.
pub(super) type Key = [u8; 16];

/// Distinct keys of one batch, the same in every run.
pub(super) fn keys() -> Vec<Key> {
    many(KEYS)
}

/// Distinct keys (`SplitMix64`).
fn many(count: usize) -> Vec<Key> {
    let mut state = 0x5eed_u64;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let two =
        |a: u64, b: u64| -> Key { std::array::from_fn(|i| (if i < 8 { a } else { b } >> (i % 8 * 8)) as u8) };
    (0..count).map(|_| two(next(), next())).collect()
}

/// Nanoseconds per key of the fastest batch. Slow ones get fewer keys, so that a figure ends in time.
#[allow(clippy::disallowed_methods, reason = "a clock behind a port would be most of what is measured")]
pub(super) fn nanos(keys: &[Key], mut once: impl FnMut(&Key) -> u64) -> f64 {
    let began = Instant::now();
    let mut sum = 0_u64;
    for key in &keys[..16] {
        sum = sum.wrapping_add(once(key));
    }
    let each = began.elapsed() / 16;
    let fit = (LIMIT.as_nanos() / BATCHES as u128 / each.as_nanos().max(1)) as usize;
    let keys = &keys[..fit.clamp(16, keys.len())];
    let mut best = f64::INFINITY;
    for _ in 0..BATCHES {
        let began = Instant::now();
        for key in keys {
            sum = sum.wrapping_add(once(key));
        }
        best = best.min(began.elapsed().as_nanos() as f64 / keys.len() as f64);
    }
    black_box(sum);
    best
}

/// The same with other keys in every batch: a processor learns the branches of keys that come again, and keeps
/// what they touch in its caches.
#[allow(clippy::disallowed_methods, reason = "a clock behind a port would be most of what is measured")]
pub(super) fn fresh(mut once: impl FnMut(&Key) -> u64) -> f64 {
    let (mut best, mut sum) = (f64::INFINITY, 0_u64);
    for keys in many(BATCHES * KEYS).chunks(KEYS) {
        let began = Instant::now();
        for key in keys {
            sum = sum.wrapping_add(once(key));
        }
        best = best.min(began.elapsed().as_nanos() as f64 / keys.len() as f64);
    }
    black_box(sum);
    best
}

/// Like [`nanos`], with each key waiting for the answer before it.
pub(super) fn latency(keys: &[Key], mut once: impl FnMut(&Key) -> u64) -> f64 {
    let mut before = 0_u64;
    nanos(keys, |key| {
        let mut own = *key;
        own[0] ^= (before & 1) as u8;
        before = once(&own);
        before
    })
}

/// Milliseconds of the fastest of three.
#[allow(clippy::disallowed_methods, reason = "a clock behind a port would be part of what is measured")]
pub(super) fn millis<T>(mut build: impl FnMut() -> T) -> f64 {
    let once = |_| {
        let began = Instant::now();
        black_box(build());
        began.elapsed().as_secs_f64() * 1e3
    };
    (0..3).map(once).fold(f64::INFINITY, f64::min)
}
