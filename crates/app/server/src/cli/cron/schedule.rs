//! Schedules of five fields, as instants.

use cronexpr::{Crontab, FallbackTimezoneOption, ParseOptions, parse_crontab_with};
use jiff::Timestamp;
use mainstay_clock::WallTime;
use mainstay_coordination::cron::Schedule;

use crate::error::{Code, Error, Result};

const MINUTE_MS: i64 = 60_000;
/// A schedule whose slots are further apart has none that matters: 29 February comes within eight years.
const FARTHEST_MS: i64 = MINUTE_MS * 60 * 24 * 366 * 8;

/// A schedule of five fields with an optional time zone behind them; without one, UTC.
#[derive(Debug)]
pub(super) struct Fields(Crontab);

impl Fields {
    /// Reads `minute hour day month weekday [zone]`.
    ///
    /// # Errors
    /// `BadValue` with the place that cannot be read.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut options = ParseOptions::default();
        options.fallback_timezone_option = FallbackTimezoneOption::UTC;
        let fields = parse_crontab_with(text, options).map_err(|e| {
            let why = format!("--schedule `{text}`: {e}\nexpected MINUTE HOUR DAY MONTH WEEKDAY [ZONE], such as '0 3 * * * Europe/Berlin'");
            Error::new(Code::BadValue, why)
        })?;
        Ok(Self(fields))
    }

    fn after(&self, ms: i64) -> Option<i64> {
        let at = Timestamp::from_millisecond(ms).ok()?;
        self.0.find_next(at).ok().map(|zoned| zoned.timestamp().as_millisecond())
    }
}

impl Schedule for Fields {
    fn latest(&self, at: WallTime) -> Option<WallTime> {
        let at = at.unix_millis();
        // Slots are found forwards only: the latest one follows the last minute whose next slot is not after `at`.
        let reached = |from: i64| self.after(from).filter(|slot| *slot <= at);
        let (mut back, mut from) = (MINUTE_MS, at.checked_sub(MINUTE_MS)?);
        while reached(from).is_none() {
            if back > FARTHEST_MS {
                return None;
            }
            back *= 2;
            from = at.checked_sub(back)?;
        }
        let mut to = at;
        while to - from > MINUTE_MS {
            let middle = from + (to - from) / 2;
            if reached(middle).is_some() { from = middle } else { to = middle }
        }
        // One minute may hold the end of one search step and the slot itself.
        let mut slot = reached(from)?;
        while let Some(later) = reached(slot) {
            slot = later;
        }
        Some(WallTime::from_unix_millis(slot))
    }

    fn next(&self, after: WallTime) -> Option<WallTime> {
        self.after(after.unix_millis()).map(WallTime::from_unix_millis)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> WallTime {
        WallTime::from_unix_millis(text.parse::<Timestamp>().unwrap().as_millisecond())
    }

    #[track_caller]
    fn check(fields: &str, now: &str, latest: &str, next: &str) {
        let fields = Fields::parse(fields).unwrap();
        assert_eq!(fields.latest(at(now)), Some(at(latest)), "latest");
        assert_eq!(fields.next(at(now)), Some(at(next)), "next");
    }

    #[test]
    fn slots_before_and_after_a_moment() {
        check("*/5 * * * *", "2026-11-26T10:07:03Z", "2026-11-26T10:05:00Z", "2026-11-26T10:10:00Z");
        check("*/5 * * * *", "2026-11-26T10:05:00Z", "2026-11-26T10:05:00Z", "2026-11-26T10:10:00Z");
        check("0 3 * * MON", "2026-11-26T10:00:00Z", "2026-11-23T03:00:00Z", "2026-11-30T03:00:00Z");
        check("0 0 29 2 *", "2026-11-26T10:00:00Z", "2024-02-29T00:00:00Z", "2028-02-29T00:00:00Z");
        check("0 3 * * * Asia/Tokyo", "2026-11-26T10:00:00Z", "2026-11-25T18:00:00Z", "2026-11-26T18:00:00Z");
    }

    #[test]
    fn an_hour_that_does_not_exist_or_comes_twice_gives_each_day_one_slot() {
        // Berlin goes from 2:00 to 3:00 on 2026-03-29, and from 3:00 back to 2:00 on 2026-10-25.
        for (from, to) in [
            ("2026-03-27T12:00:00Z", "2026-03-31T12:00:00Z"),
            ("2026-10-23T12:00:00Z", "2026-10-27T12:00:00Z"),
        ] {
            let fields = Fields::parse("30 2 * * * Europe/Berlin").unwrap();
            let (mut slots, mut now) = (Vec::new(), at(from));
            while let Some(next) = fields.next(now).filter(|n| *n < at(to)) {
                assert_eq!(fields.latest(next), Some(next));
                slots.push(next);
                now = next;
            }
            assert!((3..=5).contains(&slots.len()), "{slots:?}");
            assert!(slots.windows(2).all(|s| s[0] < s[1]), "time goes on: {slots:?}");
        }
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for bad in ["", "* * * *", "61 * * * *", "* * * * * Atlantis/Town", "@daily", "a b c d e"] {
            assert_eq!(Fields::parse(bad).unwrap_err().code(), Code::BadValue, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_latest_slot_is_the_last_one_before(ms in 1_700_000_000_000_i64..1_900_000_000_000, which in 0_usize..5) {
            let text = ["* * * * *", "7 */3 * * *", "15 4 1 * *", "0 12 * * 1-5", "30 23 31 12 *"][which];
            let fields = Fields::parse(text).unwrap();
            let now = WallTime::from_unix_millis(ms);
            let latest = fields.latest(now).unwrap();
            prop_assert!(latest <= now);
            prop_assert_eq!(fields.next(latest), fields.next(now), "nothing between it and now");
            let before = WallTime::from_unix_millis(latest.unix_millis() - 1);
            prop_assert_eq!(fields.next(before), Some(latest), "it is a slot");
        }
    }
}
