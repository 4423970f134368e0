//! When slots are.

use std::fmt;
use std::time::Duration;

use mainstay_clock::WallTime;

use crate::ConfigError;

/// The slots of a job. Whoever shares the job must have the same schedule: a slot is known by its instant.
pub trait Schedule: Send + Sync + fmt::Debug {
    /// The latest slot that is not after `at`.
    fn latest(&self, at: WallTime) -> Option<WallTime>;

    /// The first slot after `after`; none when there is none any more.
    fn next(&self, after: WallTime) -> Option<WallTime>;
}

/// A slot every so often, counted from the Unix epoch, so that everybody has the same ones.
///
/// ```
/// use mainstay_clock::WallTime;
/// use mainstay_coordination::cron::{Every, Schedule};
/// use std::time::Duration;
///
/// let every = Every::new(Duration::from_secs(60)).unwrap();
/// let now = WallTime::from_unix_millis(150_000);
/// assert_eq!(every.latest(now), Some(WallTime::from_unix_millis(120_000)));
/// assert_eq!(every.next(now), Some(WallTime::from_unix_millis(180_000)));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Every(i64);

impl Every {
    /// A slot every `interval`.
    ///
    /// # Errors
    /// An interval below 100 ms or over 366 days.
    pub fn new(interval: Duration) -> Result<Self, ConfigError> {
        let allowed = Duration::from_millis(100)..=Duration::from_secs(86_400 * 366);
        if !allowed.contains(&interval) {
            return Err(ConfigError::new("interval", format!("{interval:?}"), "100 ms to 366 days"));
        }
        Ok(Self(i64::try_from(interval.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Schedule for Every {
    fn latest(&self, at: WallTime) -> Option<WallTime> {
        let ms = at.unix_millis();
        Some(WallTime::from_unix_millis(ms.checked_sub(ms.rem_euclid(self.0))?))
    }

    fn next(&self, after: WallTime) -> Option<WallTime> {
        let latest = self.latest(after)?.unix_millis();
        latest.checked_add(self.0).map(WallTime::from_unix_millis)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_the_same_for_everybody_and_none_is_far_away() {
        assert!(Every::new(Duration::ZERO).is_err() && Every::new(Duration::MAX).is_err());
        let every = Every::new(Duration::from_millis(700)).unwrap();
        for ms in [-1, 0, 1, 699, 700, 701, i64::from(i32::MAX)] {
            let at = WallTime::from_unix_millis(ms);
            let (latest, next) = (every.latest(at).unwrap(), every.next(at).unwrap());
            assert!(latest <= at && at < next, "{ms}");
            assert_eq!(next.saturating_duration_since(latest), Duration::from_millis(700));
            assert_eq!(every.latest(next), Some(next), "a slot is its own latest");
        }
        assert_eq!(every.next(WallTime::from_unix_millis(i64::MAX)), None);
    }
}
