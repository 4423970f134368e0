//! Every seed that was recorded, whichever campaign found it.

use std::ops::Range;

use mainstay_sim::sim::{Report, seed_lines};

/// Replays seeds of a suite, if it is one of its own.
type Replay = fn(&str, Range<u64>) -> Option<Report>;

#[test]
fn every_recorded_seed_gives_its_verdict() {
    let lines = seed_lines(include_str!("../../seeds.txt")).unwrap();
    assert!(!lines.is_empty());
    let campaigns: [Replay; 3] = [crate::leases::replayed, crate::jobs::replayed, crate::groups::replayed];
    for line in lines {
        let report = campaigns.iter().find_map(|replayed| replayed(&line.suite, line.seed..line.seed + 1));
        let Some(report) = report else { panic!("there is no campaign `{}`", line.suite) };
        let verdict = if report.failures.is_empty() { "PASS" } else { "FAIL" };
        assert_eq!(verdict, line.verdict, "{report}");
    }
}
