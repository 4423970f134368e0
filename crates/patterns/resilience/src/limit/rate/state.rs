//! The generic cell rate algorithm (ITU-T I.371, virtual scheduling form) as arithmetic on nanoseconds.

use std::time::Duration;

use crate::ConfigError;

/// Shortest time per cell: below it the rounding to whole nanoseconds would exceed 1 %.
const SHORTEST_CELL: u64 = 100;
/// Longest burst: keeps every sum far from overflow.
const LONGEST_BURST: u64 = 1 << 60;

/// A validated rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Nanoseconds per cell, rounded up: never more than the configured rate.
    cell: u64,
    /// How far the theoretical arrival time may run ahead.
    tolerance: u64,
    burst: u32,
}

impl Rule {
    pub(crate) fn new(cells: u32, per: Duration, burst: u32) -> Result<Self, ConfigError> {
        if cells == 0 {
            return Err(ConfigError::new("rate", cells, "at least 1 cell"));
        }
        if burst == 0 {
            return Err(ConfigError::new("burst", burst, "at least 1 cell"));
        }
        let per = u64::try_from(per.as_nanos()).unwrap_or(u64::MAX);
        let cell = per.div_ceil(u64::from(cells));
        if cell < SHORTEST_CELL {
            let given = format!("{cells} per {per} ns");
            return Err(ConfigError::new(
                "rate",
                given,
                "a period above 0 and at most 10,000,000 per second",
            ));
        }
        let whole = cell.checked_mul(u64::from(burst)).filter(|whole| *whole <= LONGEST_BURST);
        if whole.is_none() {
            return Err(ConfigError::new("burst", burst, "a burst that refills within 30 years"));
        }
        Ok(Self { cell, tolerance: cell * u64::from(burst - 1), burst })
    }

    pub(crate) fn burst(&self) -> u32 {
        self.burst
    }

    /// Whether `n` cells may pass at `now` when the next one was due at `tat`.
    ///
    /// # Errors
    /// The nanoseconds to wait.
    pub(crate) fn decide(&self, tat: u64, now: u64, n: u32) -> Result<u64, u64> {
        let more = self.cell * u64::from(n.saturating_sub(1));
        let earliest = tat.saturating_add(more).saturating_sub(self.tolerance);
        if now < earliest { Err(earliest - now) } else { Ok(self.after(tat, now, n)) }
    }

    /// The theoretical arrival time after `n` cells.
    pub(crate) fn after(&self, tat: u64, now: u64, n: u32) -> u64 {
        tat.max(now).saturating_add(self.cost(n))
    }

    /// What `n` cells cost.
    pub(crate) fn cost(&self, n: u32) -> u64 {
        self.cell * u64::from(n)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Rule;

    #[track_caller]
    fn check(rule: &Rule, steps: &[(u64, u32, Result<u64, u64>)]) {
        let mut tat = 0;
        for (i, (now, n, expected)) in steps.iter().enumerate() {
            let decided = rule.decide(tat, *now, *n);
            assert_eq!(&decided, expected, "step {i}");
            tat = decided.unwrap_or(tat);
        }
    }

    #[test]
    fn the_formula_by_hand() {
        // 10 per second: t = 100 ms; burst 3: tau = 200 ms. Times in ns from 1 s.
        let rule = Rule::new(10, Duration::from_secs(1), 3).unwrap();
        let s = 1_000_000_000;
        let t = 100_000_000;
        check(
            &rule,
            &[
                (s, 1, Ok(s + t)),
                (s, 2, Ok(s + 3 * t)),
                (s, 1, Err(t)),
                (s + t - 1, 1, Err(1)),
                (s + t, 1, Ok(s + 4 * t)),
                (s + 10 * t, 3, Ok(s + 13 * t)),
            ],
        );
    }

    #[test]
    fn bad_rates_are_refused() {
        let second = Duration::from_secs(1);
        for (cells, per, burst, field) in [
            (0, second, 1, "rate"),
            (1, Duration::ZERO, 1, "rate"),
            (1, second, 0, "burst"),
            (u32::MAX, second, 1, "rate"),
            (1, Duration::MAX, 2, "burst"),
        ] {
            assert_eq!(Rule::new(cells, per, burst).unwrap_err().field(), field, "{cells} {per:?} {burst}");
        }
    }
}
