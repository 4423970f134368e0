//! The acceptance window and the formula of client-side throttling ("Site Reliability Engineering", ch. 21).

use std::time::Duration;

use mainstay_clock::Instant;

/// Slices of the window: the oldest twelfth is forgotten at once.
const SLICES: usize = 12;

/// Requests and accepts of the last window.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    slice: u64,
    slices: [Slice; SLICES],
}

#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    index: u64,
    requests: u64,
    accepts: u64,
}

impl Window {
    pub(crate) fn new(window: Duration) -> Self {
        let slice = u64::try_from(window.as_nanos() / SLICES as u128).unwrap_or(u64::MAX).max(1);
        Self { slice, slices: [Slice::default(); SLICES] }
    }

    /// Counts one request that the service accepted or refused.
    pub(crate) fn count(&mut self, now: Instant, accepted: bool) {
        let index = now.as_nanos() / self.slice;
        let slice = &mut self.slices[usize::try_from(index % SLICES as u64).unwrap_or(0)];
        if slice.index != index {
            *slice = Slice { index, ..Slice::default() };
        }
        slice.requests += 1;
        slice.accepts += u64::from(accepted);
    }

    /// Requests and accepts that are still in the window.
    pub(crate) fn totals(&self, now: Instant) -> (u64, u64) {
        let index = now.as_nanos() / self.slice;
        let fresh = |s: &&Slice| s.index + (SLICES as u64) > index;
        self.slices.iter().filter(fresh).fold((0, 0), |(r, a), s| (r + s.requests, a + s.accepts))
    }
}

/// `max(0, (requests - k * accepts) / (requests + 1))`, at most `1 - trickle`.
pub(crate) fn refusal(requests: u64, accepts: u64, k: f64, trickle: f64) -> f64 {
    let (requests, accepts) = (requests as f64, accepts as f64);
    ((requests - k * accepts) / (requests + 1.0)).clamp(0.0, 1.0 - trickle)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mainstay_clock::Instant;

    use super::{Window, refusal};

    #[test]
    fn the_formula_by_hand() {
        for (requests, accepts, k, expected) in [
            (0, 0, 2.0, 0.0),
            (100, 100, 2.0, 0.0),
            (100, 50, 2.0, 0.0),
            (99, 30, 2.0, 0.39),
            (999, 0, 2.0, 0.99),
            (1, 0, 2.0, 0.5),
        ] {
            let p = refusal(requests, accepts, k, 0.01);
            assert!((p - expected).abs() < 1e-9, "{requests} {accepts}: {p}");
        }
    }

    #[test]
    fn the_window_forgets() {
        let mut window = Window::new(Duration::from_secs(120));
        let at = |s: u64| Instant::from_nanos(s * 1_000_000_000);
        window.count(at(1), false);
        window.count(at(15), true);
        assert_eq!(window.totals(at(20)), (2, 1));
        assert_eq!(window.totals(at(125)), (1, 1));
        assert_eq!(window.totals(at(135)), (0, 0));
        window.count(at(121), true);
        assert_eq!(window.totals(at(121)), (2, 2));
    }
}
