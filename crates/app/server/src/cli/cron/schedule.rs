//! Schedules of five fields, as instants.

use cronexpr::{Crontab, FallbackTimezoneOption, ParseOptions, parse_crontab_with};
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use mainstay_clock::WallTime;
use mainstay_coordination::cron::Schedule;

use crate::error::{Code, Error, Result};

const MINUTE_MS: i64 = 60_000;
/// A schedule whose slots are further apart has none that matters: 29 February comes within eight years.
const FARTHEST_MS: i64 = MINUTE_MS * 60 * 24 * 366 * 8;

/// Fields before the zone.
const FIELDS: usize = 5;
/// Slots of one civil hour that comes twice, and of what may be around it: more are not looked through for the next one.
const MOST: usize = 4 * 60;

/// A schedule of five fields with an optional time zone behind them; without one, UTC.
///
/// Where it names hours, each day has each of its times once, whatever the zone does: a time that does not exist is its
/// first instant after the gap, of one that comes twice the first counts. Where the hour is `*`, it follows the instants,
/// so that what runs each five minutes does so through the night in which an hour comes twice.
#[derive(Debug)]
pub(super) struct Fields {
    /// By the calendar of the zone.
    instants: Crontab,
    /// By a calendar without gaps, read in this zone.
    named: Option<(Crontab, TimeZone)>,
}

fn read(text: &str) -> std::result::Result<Crontab, cronexpr::Error> {
    let mut options = ParseOptions::default();
    options.fallback_timezone_option = FallbackTimezoneOption::UTC;
    parse_crontab_with(text, options)
}

impl Fields {
    /// Reads `minute hour day month weekday [zone]`.
    ///
    /// # Errors
    /// `BadValue` with the place that cannot be read.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = |why: String| {
            let expected = "expected MINUTE HOUR DAY MONTH WEEKDAY [ZONE], such as '0 3 * * * Europe/Berlin'";
            Error::new(Code::BadValue, format!("--schedule `{text}`: {why}\n{expected}"))
        };
        let instants = read(text).map_err(|e| bad(e.to_string()))?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let named = match words.get(FIELDS) {
            Some(zone) if !words[1].starts_with('*') => {
                let zone = TimeZone::get(zone).map_err(|e| bad(e.to_string()))?;
                let fields = read(&words[..FIELDS].join(" ")).map_err(|e| bad(e.to_string()))?;
                Some((fields, zone))
            }
            _ => None,
        };
        Ok(Self { instants, named })
    }

    fn after(&self, ms: i64) -> Option<i64> {
        let at = Timestamp::from_millisecond(ms).ok()?;
        let Some((fields, zone)) = &self.named else {
            return self.instants.find_next(at).ok().map(|zoned| zoned.timestamp().as_millisecond());
        };
        // A later time of the calendar is never an earlier instant.
        let mut civil = zone.to_datetime(at);
        for _ in 0..MOST {
            let next = fields.find_next(TimeZone::UTC.to_timestamp(civil).ok()?).ok()?;
            civil = next.datetime();
            let slot = instant(zone, civil)?;
            if slot > at {
                return Some(slot.as_millisecond());
            }
        }
        None
    }
}

/// When the clocks of `zone` show this time first, or would if they did not leave it out.
fn instant(zone: &TimeZone, civil: DateTime) -> Option<Timestamp> {
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    match ambiguous.offset() {
        AmbiguousOffset::Gap { .. } => {
            // What the offset after the gap makes of it lies before the gap, by as much as it is inside.
            let before = ambiguous.earlier().ok()?;
            zone.following(before).next().map(|change| change.timestamp())
        }
        AmbiguousOffset::Fold { .. } | AmbiguousOffset::Unambiguous { .. } => ambiguous.earlier().ok(),
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

    /// The slots of a schedule between two instants, each found from the one before it and from the moment after it.
    #[track_caller]
    fn slots(fields: &str, from: &str, to: &str) -> Vec<String> {
        let fields = Fields::parse(fields).unwrap();
        let (mut slots, mut now) = (Vec::new(), at(from));
        while let Some(next) = fields.next(now).filter(|n| *n < at(to)) {
            assert!(next > now, "time goes on");
            assert_eq!(fields.latest(next), Some(next));
            let behind = WallTime::from_unix_millis(next.unix_millis() + 59_999);
            assert_eq!(fields.latest(behind), Some(next));
            slots.push(Timestamp::from_millisecond(next.unix_millis()).unwrap().to_string());
            now = next;
        }
        slots
    }

    /// Berlin goes from 2:00 to 3:00 on 2026-03-29, and from 3:00 back to 2:00 on 2026-10-25.
    #[test]
    fn an_hour_that_does_not_exist_or_comes_twice_gives_each_day_one_slot() {
        let daily = "30 2 * * * Europe/Berlin";
        assert_eq!(
            slots(daily, "2026-03-27T12:00:00Z", "2026-03-30T12:00:00Z"),
            ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
            "at the end of the gap"
        );
        assert_eq!(
            slots(daily, "2026-10-23T12:00:00Z", "2026-10-26T12:00:00Z"),
            ["2026-10-24T00:30:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
            "the first of both"
        );
        // Times inside the gap fall together with the one at its end.
        assert_eq!(
            slots("*/20 2,3 * * * Europe/Berlin", "2026-03-29T00:00:00Z", "2026-03-29T12:00:00Z"),
            ["2026-03-29T01:00:00Z", "2026-03-29T01:20:00Z", "2026-03-29T01:40:00Z"]
        );
        assert_eq!(
            slots("*/20 2,3 * * * Europe/Berlin", "2026-10-25T00:30:00Z", "2026-10-25T12:00:00Z"),
            ["2026-10-25T00:40:00Z", "2026-10-25T02:00:00Z", "2026-10-25T02:20:00Z", "2026-10-25T02:40:00Z"]
        );
        // Half an hour only, and a day that does not exist.
        assert_eq!(
            slots("15 2 * * * Australia/Lord_Howe", "2026-10-02T20:00:00Z", "2026-10-04T20:00:00Z"),
            ["2026-10-03T15:30:00Z", "2026-10-04T15:15:00Z"]
        );
        assert_eq!(
            slots("0 12 * * * Pacific/Apia", "2011-12-29T00:00:00Z", "2012-01-01T00:00:00Z"),
            ["2011-12-29T22:00:00Z", "2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z", "2011-12-31T22:00:00Z"]
        );
    }

    #[test]
    fn what_runs_at_each_hour_goes_by_the_instants_though_an_hour_comes_twice_or_not_at_all() {
        for (from, to) in [
            ("2026-03-29T00:00:00Z", "2026-03-29T03:00:00Z"),
            ("2026-10-24T23:00:00Z", "2026-10-25T02:00:00Z"),
        ] {
            assert_eq!(slots("*/30 * * * * Europe/Berlin", from, to).len(), 5, "{from}");
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
