//! A latency histogram that forgets: four slices of the window, log-linear buckets.

use std::time::Duration;

use mainstay_clock::Instant;

/// Slices of the window; the oldest quarter is forgotten at once.
const SLICES: usize = 4;
/// Buckets per power of two: an answer is within 1/32 of the truth.
const PER_OCTAVE: u32 = 16;
/// The first octave begins at 2^14 ns, about 16 us; the tick that measures is far coarser.
const LOWEST: u32 = 14;
/// The last one ends at 2^42 ns, about 73 minutes.
const OCTAVES: u32 = 28;
const BUCKETS: usize = (OCTAVES * PER_OCTAVE) as usize;

/// Latencies of the last window.
#[derive(Clone)]
pub(crate) struct Latencies {
    slice: u64,
    slices: Box<[Slice; SLICES]>,
}

#[derive(Clone)]
struct Slice {
    index: u64,
    count: u64,
    buckets: [u32; BUCKETS],
}

impl Slice {
    fn new(index: u64) -> Self {
        Self { index, count: 0, buckets: [0; BUCKETS] }
    }
}

impl Latencies {
    pub(crate) fn new(window: Duration) -> Self {
        let slice = u64::try_from(window.as_nanos() / SLICES as u128).unwrap_or(u64::MAX).max(1);
        Self {
            slice,
            slices: Box::new([const { Slice { index: 0, count: 0, buckets: [0; BUCKETS] } }; SLICES]),
        }
    }

    pub(crate) fn add(&mut self, now: Instant, latency: Duration) {
        let index = now.as_nanos() / self.slice;
        let slice = &mut self.slices[usize::try_from(index % SLICES as u64).unwrap_or(0)];
        if slice.index != index {
            *slice = Slice::new(index);
        }
        slice.count += 1;
        let bucket = &mut slice.buckets[bucket(latency)];
        *bucket = bucket.saturating_add(1);
    }

    /// Latencies that are still in the window.
    pub(crate) fn count(&self, now: Instant) -> u64 {
        self.fresh(now).map(|s| s.count).sum()
    }

    /// The latency that a share `p` of the calls does not exceed; `None` without any.
    pub(crate) fn percentile(&self, now: Instant, p: f64) -> Option<Duration> {
        let count = self.count(now);
        let rank = ((count as f64 * p).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        for i in 0..BUCKETS {
            seen += self.fresh(now).map(|s| u64::from(s.buckets[i])).sum::<u64>();
            if seen >= rank {
                return Some(middle(i));
            }
        }
        None
    }

    fn fresh(&self, now: Instant) -> impl Iterator<Item = &Slice> {
        let index = now.as_nanos() / self.slice;
        self.slices.iter().filter(move |s| s.index + (SLICES as u64) > index)
    }
}

fn bucket(latency: Duration) -> usize {
    let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1 << LOWEST);
    let octave = nanos.ilog2();
    let within = (nanos >> (octave - PER_OCTAVE.ilog2())) & u64::from(PER_OCTAVE - 1);
    let i = u64::from((octave - LOWEST) * PER_OCTAVE) + within;
    usize::try_from(i).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

/// The middle of a bucket.
fn middle(i: usize) -> Duration {
    let i = u32::try_from(i).unwrap_or(0);
    let base = 1_u64 << (LOWEST + i / PER_OCTAVE);
    let width = base / u64::from(PER_OCTAVE);
    Duration::from_nanos(base + width * u64::from(i % PER_OCTAVE) + width / 2)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstay_clock::{Instant, Rng as _, SeededRng};

    use super::{Latencies, bucket, middle};

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_bucket_is_within_a_thirtysecond_of_its_values() {
        let rng = SeededRng::new(1);
        for _ in 0..10_000 {
            let latency = Duration::from_nanos(20_000 + rng.below(60_000_000_000));
            let error = middle(bucket(latency)).as_secs_f64() / latency.as_secs_f64() - 1.0;
            assert!(error.abs() <= 1.0 / 31.0, "{latency:?}: {error}");
        }
        assert!(middle(bucket(Duration::ZERO)) < Duration::from_micros(20));
        assert!(middle(bucket(Duration::MAX)) > Duration::from_secs(4_000));
    }

    #[test]
    fn percentiles_follow_the_window() {
        let mut latencies = Latencies::new(Duration::from_secs(4));
        assert_eq!(latencies.percentile(at(0), 0.95), None);
        for i in 1..=100 {
            latencies.add(at(100), Duration::from_millis(i));
        }
        let p95 = latencies.percentile(at(100), 0.95).unwrap().as_secs_f64();
        assert!((p95 / 0.095 - 1.0).abs() < 0.04, "{p95}");
        assert_eq!(latencies.count(at(3_900)), 100);
        assert_eq!(latencies.count(at(4_100)), 0, "forgotten");
    }
}
