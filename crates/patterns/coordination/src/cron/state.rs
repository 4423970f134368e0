//! Which slot is to be run, and which not any more. No I/O, no clock.

use std::time::Duration;

use mainstay_clock::WallTime;

/// What to do with a slot whose time went by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Missed {
    /// Run the latest one late; earlier ones are dropped.
    RunLatest,
    /// Drop it.
    #[default]
    Skip,
}

/// What to do at a slot while an earlier run still goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlap {
    /// Drop the slot.
    #[default]
    Skip,
    /// Wait for the run to end; of several slots that wait the latest is run.
    Wait,
}

/// What a schedule says about a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) now: WallTime,
    /// The latest slot that is not after `now`.
    pub(super) latest: Option<WallTime>,
    /// The first slot after `now`.
    pub(super) next: Option<WallTime>,
}

/// What follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing was run so far, and the schedule began before anybody looked: remember this slot as done.
    Baseline(WallTime),
    /// Run this slot.
    Run(WallTime),
    /// Nothing to do before this.
    Wait {
        /// The next slot; none when the schedule has ended.
        until: Option<WallTime>,
        /// A slot that is dropped because it was missed.
        missed: Option<WallTime>,
    },
}

/// Decides about a moment; `stored` is the slot taken last. A slot is fresh for `late`.
pub(super) fn decide(moment: Moment, stored: Option<WallTime>, missed: Missed, late: Duration) -> Decision {
    let Moment { now, latest, next } = moment;
    let wait = |missed| Decision::Wait { until: next, missed };
    let Some(slot) = latest else { return wait(None) };
    let fresh = now.saturating_duration_since(slot) <= late;
    match stored {
        Some(last) if last >= slot => wait(None),
        _ if fresh => Decision::Run(slot),
        None => Decision::Baseline(slot),
        Some(_) => match missed {
            Missed::RunLatest => Decision::Run(slot),
            Missed::Skip => wait(Some(slot)),
        },
    }
}

/// What a job remembers: the slot taken last, and by which acquisition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) slot: WallTime,
    pub(super) op: String,
}

impl Kept {
    /// A slot is taken only if the one taken last was before it. Whoever finds its own mark took it.
    pub(super) fn claim(stored: Option<&Self>, slot: WallTime, op: &str) -> Claim {
        match stored {
            Some(kept) if kept.slot == slot && kept.op == op => Claim::Ours,
            Some(kept) if kept.slot >= slot => Claim::Taken(kept.slot),
            _ => Claim::Free,
        }
    }
}

/// Whether a slot can be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    Free,
    Ours,
    /// The slot taken last.
    Taken(WallTime),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(s: i64) -> WallTime {
        WallTime::from_unix_millis(s * 1_000)
    }

    const LATE: Duration = Duration::from_secs(10);

    /// A slot each minute.
    #[track_caller]
    fn check(now: i64, stored: Option<i64>, missed: Missed, expected: Decision) {
        let latest = now - now.rem_euclid(60);
        let moment = Moment { now: at(now), latest: Some(at(latest)), next: Some(at(latest + 60)) };
        assert_eq!(decide(moment, stored.map(at), missed, LATE), expected, "{now} after {stored:?}");
    }

    fn wait(until: i64, missed: Option<i64>) -> Decision {
        Decision::Wait { until: Some(at(until)), missed: missed.map(at) }
    }

    #[test]
    fn a_slot_is_run_while_it_is_fresh_and_not_again() {
        check(120, Some(60), Missed::Skip, Decision::Run(at(120)));
        check(130, Some(60), Missed::Skip, Decision::Run(at(120)));
        check(125, Some(120), Missed::Skip, wait(180, None));
        check(125, Some(180), Missed::Skip, wait(180, None));
    }

    #[test]
    fn a_missed_slot_is_dropped_or_the_latest_is_run() {
        check(131, Some(60), Missed::Skip, wait(180, Some(120)));
        check(131, Some(60), Missed::RunLatest, Decision::Run(at(120)));
        check(431, Some(60), Missed::RunLatest, Decision::Run(at(420)));
    }

    #[test]
    fn a_job_that_is_new_has_missed_nothing() {
        check(131, None, Missed::RunLatest, Decision::Baseline(at(120)));
        check(131, None, Missed::Skip, Decision::Baseline(at(120)));
        check(121, None, Missed::Skip, Decision::Run(at(120)));
        let never = Moment { now: at(5), latest: None, next: Some(at(60)) };
        assert_eq!(decide(never, None, Missed::RunLatest, LATE), wait(60, None));
        let ended = Moment { now: at(500), latest: Some(at(60)), next: None };
        let over = Decision::Wait { until: None, missed: None };
        assert_eq!(decide(ended, Some(at(60)), Missed::RunLatest, LATE), over);
    }

    #[test]
    fn a_slot_is_taken_only_if_the_last_one_was_before_it() {
        let kept = Kept { slot: at(60), op: "a".to_owned() };
        assert_eq!(Kept::claim(None, at(60), "a"), Claim::Free);
        assert_eq!(Kept::claim(Some(&kept), at(120), "b"), Claim::Free);
        assert_eq!(Kept::claim(Some(&kept), at(60), "b"), Claim::Taken(at(60)));
        assert_eq!(Kept::claim(Some(&kept), at(60), "a"), Claim::Ours, "the answer was lost");
        assert_eq!(Kept::claim(Some(&kept), at(0), "a"), Claim::Taken(at(60)), "time went back");
    }
}
