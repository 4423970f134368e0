//! Outlier ejection.

use std::time::Duration;

use mainstay_resilience::Verdict;
use mainstay_resilience::outlier::{Cause, OutlierBuilder, OutlierDetector};

use crate::manual::Manual;

const FAIL: Verdict = Verdict::RETRYABLE;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn detector(hosts: usize, clock: &Manual) -> OutlierBuilder {
    OutlierDetector::builder("x").endpoints((0..hosts).map(|i| format!("h{i:02}"))).runtime(&clock.runtime(1))
}

fn fail(detector: &OutlierDetector, host: &str, times: usize) -> Option<Cause> {
    (0..times).fold(None, |last, _| detector.record(host, FAIL).or(last))
}

#[test]
fn five_failures_in_a_row_eject_for_longer_each_time() {
    let clock = Manual::new();
    let detector = detector(3, &clock).build().unwrap();
    fail(&detector, "h01", 4);
    assert_eq!(detector.record("h01", Verdict::Ok), None);
    assert_eq!(fail(&detector, "h01", 4), None, "a success begins anew");
    assert_eq!(detector.record("h01", Verdict::Ignore), None, "no evidence");
    for times in 1..=12_u64 {
        fail(&detector, "h01", if times == 1 { 1 } else { 5 });
        let ejection = &detector.ejections()[0];
        assert_eq!((ejection.endpoint(), ejection.cause()), ("h01", Cause::Consecutive));
        let out = secs((30 * times).min(300));
        clock.advance(out - Duration::from_millis(1));
        assert!(!detector.is_available("h01"), "ejection {times}");
        assert_eq!(detector.record("h01", Verdict::Ok), None, "late results of an ejected one are dropped");
        clock.advance(Duration::from_millis(1));
        assert!(detector.is_available("h01"), "ejection {times}");
    }
    // Healthy intervals make the next ejection short again.
    for _ in 0..20 {
        detector.record("h01", Verdict::Ok);
        clock.advance(secs(10));
    }
    fail(&detector, "h01", 5);
    clock.advance(secs(30));
    assert!(detector.is_available("h01"));
}

#[test]
fn the_share_is_bounded_and_the_last_endpoint_stays() {
    let clock = Manual::new();
    for (hosts, share, most) in [(1, 0.1, 0), (2, 1.0, 1), (5, 0.1, 1), (30, 0.1, 3), (10, 1.0, 9)] {
        let detector = detector(hosts, &clock).max_share(share).build().unwrap();
        for i in 0..hosts {
            fail(&detector, &format!("h{i:02}"), 50);
        }
        assert_eq!(detector.ejections().len(), most, "{hosts} hosts, share {share}");
        assert_eq!(detector.available().len(), hosts - most);
        assert!(detector.pick().is_ok());
    }
}

#[test]
fn a_success_rate_far_below_the_others_ejects() {
    let clock = Manual::new();
    let detector = detector(10, &clock).build().unwrap();
    let interval = |bad_share: usize| {
        for i in 0..10 {
            for call in 0..200 {
                // Never five in a row: only the rate can see it.
                let failed = if i == 4 { call % 4 < bad_share } else { call % 50 == 0 };
                detector.record(&format!("h{i:02}"), if failed { FAIL } else { Verdict::Ok });
            }
        }
        clock.advance(secs(10));
        detector.ejections()
    };
    assert!(interval(0).is_empty(), "all alike");
    let ejected = interval(2);
    assert_eq!(ejected.len(), 1);
    assert_eq!((ejected[0].endpoint(), ejected[0].cause()), ("h04", Cause::SuccessRate));
}

#[test]
fn success_rates_need_hosts_and_requests() {
    let clock = Manual::new();
    for (hosts, requests) in [(4, 200), (10, 99)] {
        let detector = detector(hosts, &clock).build().unwrap();
        for i in 0..hosts {
            for call in 0..requests {
                let failed = i == 0 && call % 2 == 0;
                detector.record(&format!("h{i:02}"), if failed { FAIL } else { Verdict::Ok });
            }
        }
        clock.advance(secs(10));
        assert!(detector.ejections().is_empty(), "{hosts} hosts, {requests} requests");
    }
}

#[test]
fn endpoints_take_turns_and_may_come_and_go() {
    let clock = Manual::new();
    let detector = detector(2, &clock).build().unwrap();
    assert!(detector.add("h02") && !detector.add("h02"));
    let picked: Vec<_> = (0..6).map(|_| detector.pick().unwrap()).collect();
    assert_eq!(picked.iter().map(|p| &**p).collect::<Vec<_>>(), ["h00", "h01", "h02", "h00", "h01", "h02"]);
    for host in ["h00", "h01", "h02"] {
        assert!(detector.remove(host));
    }
    assert_eq!(detector.record("h00", FAIL), None, "unknown");
    let refused = detector.pick().unwrap_err();
    assert_eq!(refused.policy(), "x");
}

#[test]
fn what_is_left_when_endpoints_go_is_never_all_ejected() {
    let clock = Manual::new();
    let detector = detector(4, &clock).max_share(1.0).build().unwrap();
    fail(&detector, "h01", 5);
    clock.advance(secs(1));
    fail(&detector, "h02", 5);
    fail(&detector, "h03", 5);
    assert_eq!(detector.available().len(), 1);
    assert!(detector.remove("h00"));
    // The one whose time ends first serves again; the others stay out.
    assert_eq!(&*detector.pick().unwrap(), "h01");
    assert_eq!(detector.ejections().len(), 2);
    assert!(detector.remove("h01"));
    assert_eq!(&*detector.pick().unwrap(), "h02");
    // It was forgiven, not forgotten: the next ejection is its second.
    fail(&detector, "h02", 5);
    assert!(detector.is_available("h02"), "the last one stays");
    clock.advance(secs(30));
    fail(&detector, "h02", 5);
    clock.advance(secs(59));
    assert!(!detector.is_available("h02"));
    clock.advance(secs(1));
    assert!(detector.is_available("h02"));
}

#[test]
fn bad_settings_are_refused() {
    let clock = Manual::new();
    let field = |b: OutlierBuilder| b.build().map(drop).unwrap_err().field();
    assert_eq!(field(detector(1, &clock).consecutive(0)), "consecutive");
    assert_eq!(field(detector(1, &clock).interval(Duration::ZERO)), "interval");
    assert_eq!(field(detector(1, &clock).ejection(secs(2), secs(1))), "ejection");
    assert_eq!(field(detector(1, &clock).max_share(0.0)), "max_share");
    assert_eq!(field(detector(1, &clock).deviations(f64::NAN)), "deviations");
    assert_eq!(field(detector(1, &clock).minimum(1, 1)), "minimum");
}
