//! Every seed that was recorded, whichever campaign found it, and what campaigns with a planted bug must find.

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

/// Seeds within which each thing done wrong must be found.
pub(crate) const WITHIN: Range<u64> = 0..2_000;

/// The campaign went red, and says what it was planted to say.
#[track_caller]
pub(crate) fn found(report: &Report, expected: &str) {
    let seed = report.assert_fail();
    let text = report.failures[0].verdict.to_string();
    println!("{}: found with seed {seed}: {}", report.suite, text.lines().next().unwrap_or_default());
    assert!(text.contains(expected), "{}, seed {seed}: {text}", report.suite);
}
