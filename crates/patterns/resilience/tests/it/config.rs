//! Bad input: what means nothing is refused by name when it is built.

use std::time::Duration;

use mainstay_clock::backoff::Jitter;
use mainstay_resilience::breaker::{BreakerBuilder, HalfOpen};
use mainstay_resilience::hedge::Hedge;
use mainstay_resilience::limit::{AdaptiveLimiter, Algorithm, ClientThrottle, SendRate};
use mainstay_resilience::outlier::OutlierDetector;
use mainstay_resilience::policy::PolicyBuilder;
use mainstay_resilience::retry::RetryBuilder;
use mainstay_resilience::{Breaker, Budget, Bulkhead, ConfigError, Policy, Retry};

use crate::world::{ms, secs};

#[test]
fn l7_breakers_refuse_what_means_nothing() {
    let b = || Breaker::builder("b");
    let cases: Vec<(BreakerBuilder, &str)> = vec![
        (b().failure_rate(0.0), "failure_rate"),
        (b().failure_rate(-0.5), "failure_rate"),
        (b().failure_rate(1.01), "failure_rate"),
        (b().failure_rate(f64::NAN), "failure_rate"),
        (b().slow(ms(0), 0.5), "slow"),
        (b().slow(ms(5), 0.0), "slow_rate"),
        (b().slow(ms(5), 0.5).consecutive(3), "slow"),
        (b().window(ms(0)), "window"),
        (b().window(Duration::MAX), "window"),
        (b().count_window(0), "window"),
        (b().count_window(u32::MAX), "window"),
        (b().count_window(10).min_calls(11), "min_calls"),
        (b().consecutive(0), "consecutive"),
        (b().min_calls(0), "min_calls"),
        (b().open_for(ms(0)), "open_for"),
        (b().open_for(Duration::MAX), "open_for"),
        (b().growing_open(secs(2), 0.5, secs(30)), "open_growth"),
        (b().growing_open(secs(2), f64::INFINITY, secs(30)), "open_growth"),
        (b().growing_open(secs(2), 2.0, secs(1)), "open_cap"),
        (b().jitter(1.0), "jitter"),
        (b().jitter(-0.1), "jitter"),
        (b().probe_lease(ms(0)), "probe_lease"),
        (b().probe_lease(secs(1)).attempt_timeout(secs(2)), "probe_lease"),
        (b().attempt_timeout(ms(0)), "attempt_timeout"),
        (b().half_open(HalfOpen::permits(0)), "half_open.permits"),
        (b().half_open(HalfOpen::permits(3).required(0)), "half_open.required"),
        (b().half_open(HalfOpen::ratio(3, 0, 0.5)), "half_open.samples"),
        (b().half_open(HalfOpen::ratio(3, 5, 0.0)), "half_open.rate"),
        (b().half_open(HalfOpen::progressive(3, ms(0))), "half_open.stage"),
    ];
    for (builder, field) in cases {
        let refused = builder.build().unwrap_err();
        assert_eq!(refused.field(), field, "{refused}");
        assert!(!refused.value().is_empty() && !refused.allowed().is_empty());
        assert!(builder.keyed(10, secs(1)).is_err());
    }
    assert_eq!(b().keyed(0, secs(1)).unwrap_err().field(), "max_keys");
    assert_eq!(b().keyed(1, ms(0)).unwrap_err().field(), "idle");
    assert!(b().build().is_ok() && b().classic().build().is_ok());
}

#[test]
fn l7_retries_and_bulkheads_refuse_what_means_nothing() {
    let r = || Retry::exponential(ms(50), secs(2));
    let cases: Vec<(RetryBuilder, &str)> = vec![
        (r().attempts(0), "attempts"),
        (r().attempts(u32::MAX), "attempts"),
        (Retry::exponential(ms(0), secs(1)), "base"),
        (Retry::exponential(secs(2), secs(1)), "cap"),
        (Retry::linear(secs(2), secs(1)).jitter(Jitter::Equal), "cap"),
        (Retry::constant(ms(0)), "base"),
        (r().factor(0.5), "factor"),
        (r().factor(f64::NAN), "factor"),
        (r().total_time(ms(0)), "total_time"),
        (r().when_throttled(secs(2), secs(1)), "cap"),
        (r().total_time(Duration::MAX), "total_time"),
        (r().min_attempt_time(Duration::MAX), "min_attempt_time"),
        (r().max_retry_after(Duration::MAX), "max_retry_after"),
        (Retry::exponential(secs(1), Duration::MAX), "cap"),
    ];
    for (builder, field) in cases {
        assert_eq!(builder.build().unwrap_err().field(), field);
    }
    let b = |n| Bulkhead::builder("b", n);
    assert_eq!(b(65_536).build().unwrap_err().field(), "limit");
    assert_eq!(b(1).queue(0, secs(1)).build().unwrap_err().field(), "queue");
    assert_eq!(b(1).queue(32_768, secs(1)).build().unwrap_err().field(), "queue");
    assert_eq!(b(1).queue(1, ms(0)).build().unwrap_err().field(), "wait");
    assert_eq!(b(1).queue(1, Duration::MAX).build().unwrap_err().field(), "wait");
    assert_eq!(b(1).build().unwrap().resize_queue(5).unwrap_err().field(), "queue");
    assert_eq!(b(1).build().unwrap().resize(0).unwrap_err().field(), "limit");
}

#[test]
fn times_that_overflow_are_refused_wherever_one_is_set() {
    let refused = |made: Result<(), ConfigError>| made.unwrap_err().field();
    for (d, what) in [(Duration::ZERO, "zero"), (Duration::MAX, "endless")] {
        let policy = |b: PolicyBuilder| refused(b.build().map(drop));
        assert_eq!(policy(Policy::builder("p").deadline(d)), "deadline", "{what}");
        assert_eq!(policy(Policy::builder("p").attempt_timeout(d)), "attempt_timeout", "{what}");
        assert_eq!(refused(Hedge::after(d).build().map(drop)), "delay", "{what}");
        let outlier = || OutlierDetector::builder("o").endpoints(["a"]);
        assert_eq!(refused(outlier().interval(d).build().map(drop)), "interval", "{what}");
        assert_eq!(refused(outlier().ejection(d, d).build().map(drop)), "ejection", "{what}");
        assert_eq!(
            refused(SendRate::builder("s").longest_wait(d).build().map(drop)),
            "longest_wait",
            "{what}"
        );
        let aimd = Algorithm::Aimd { timeout: d, backoff: 0.9 };
        let adaptive = AdaptiveLimiter::builder("a").algorithm(aimd);
        assert_eq!(refused(adaptive.build().map(drop)), "aimd.timeout", "{what}");
        assert_eq!(refused(ClientThrottle::builder("t").window(d).build().map(drop)), "window", "{what}");
        assert_eq!(refused(Budget::builder("b").credit(d).build().map(drop)), "credit", "{what}");
    }
    let hedge = Hedge::at_percentile(0.9).at_least(Duration::MAX);
    assert_eq!(refused(hedge.build().map(drop)), "at_least");
}
