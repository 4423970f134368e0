//! Everything but breakers.

use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use governor::{Quota, RateLimiter};
use throttle_net::{AdaptiveLimiter, Aimd, Backoff, Bulkhead, RetryAction, Throttle};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tower::limit::ConcurrencyLimitLayer;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resilience_adaptive::{AdaptiveLimiterLayer, Aimd as TowerAimd};
use tower_resilience_bulkhead::BulkheadLayer;
use tower_resilience_circuitbreaker::CircuitBreakerLayer;
use tower_resilience_retry::RetryLayer;
use tower_resilience_timelimiter::TimeLimiterLayer;

use crate::battery::Failed;
use crate::measure::{MOST, Row, ready, row};
use crate::operation;

const ATTEMPT: Duration = Duration::from_millis(300);

pub(crate) fn rows(quick: bool, runtime: &Runtime) -> Vec<Row> {
    let mut rows = bulkheads(quick);
    rows.extend(retries(quick));
    rows.extend(timeouts(quick, runtime));
    rows.extend(limits(quick));
    rows.push(pipeline(quick, runtime));
    rows
}

fn bulkheads(quick: bool) -> Vec<Row> {
    vec![
        row(("bulkhead", "throttle-net 2.0.0"), quick, || Bulkhead::new(64), |b| {
            drop(b.try_acquire().expect("a permit is free"));
        }),
        row(("bulkhead", "tokio Semaphore, try"), quick, || Semaphore::new(64), |s| {
            drop(s.try_acquire().expect("a permit is free"));
        }),
        row(("bulkhead", "tokio Semaphore, await"), quick, || Semaphore::new(64), |s| {
            drop(ready(s.acquire()).expect("a permit is free"));
        }),
        row(
            ("bulkhead", "tower 0.5.3"),
            quick,
            || ConcurrencyLimitLayer::new(64).layer(service_fn(|(): ()| operation())),
            |s| {
                black_box(ready(s.clone().oneshot(())).is_ok());
            },
        ),
        row(
            ("bulkhead", "tower-resilience 0.14.0"),
            quick,
            || {
                let layer = BulkheadLayer::builder().max_concurrent_calls(64).build();
                layer.expect("the settings are allowed").layer(service_fn(|(): ()| operation()))
            },
            |s| {
                black_box(ready(s.clone().oneshot(())).is_ok());
            },
        ),
    ]
}

/// tower's own retry: at most two more.
#[derive(Clone)]
struct Thrice(u32);

impl tower::retry::Policy<(), u64, Failed> for Thrice {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut (), result: &mut Result<u64, Failed>) -> Option<Self::Future> {
        if result.is_ok() || self.0 == 0 {
            return None;
        }
        self.0 -= 1;
        Some(std::future::ready(()))
    }

    fn clone_request(&mut self, (): &()) -> Option<()> {
        Some(())
    }
}

fn retries(quick: bool) -> Vec<Row> {
    let backoff = ExponentialBuilder::default().with_jitter().with_max_times(2);
    let aimless = || {
        let backoff = Backoff::exponential(Duration::from_millis(50), 2.0);
        throttle_net::Retry::new(backoff).max_attempts(3)
    };
    vec![
        row(("retry", "backon 1.6.0"), quick, move || backoff, |b| {
            black_box(ready(operation.retry(*b)).is_ok());
        }),
        row(("retry", "throttle-net 2.0.0"), quick, aimless, |r| {
            black_box(ready(r.run(operation, |_| RetryAction::Retry)).is_ok());
        }),
        row(
            ("retry", "tower 0.5.3"),
            quick,
            || tower::retry::RetryLayer::new(Thrice(2)).layer(service_fn(|(): ()| operation())),
            |s| {
                black_box(ready(s.clone().oneshot(())).is_ok());
            },
        ),
        row(
            ("retry", "tower-resilience 0.14.0"),
            quick,
            || {
                let layer: RetryLayer<(), u64, Failed> = RetryLayer::builder().max_attempts(3).build();
                layer.layer(service_fn(|(): ()| operation()))
            },
            |s| {
                black_box(ready(s.clone().oneshot(())).is_ok());
            },
        ),
    ]
}

fn timeouts(quick: bool, runtime: &Runtime) -> Vec<Row> {
    let handle = runtime.handle();
    vec![
        row(
            ("timeout", "tokio"),
            quick,
            || handle.clone(),
            |handle| {
                let _entered = handle.enter();
                black_box(ready(tokio::time::timeout(ATTEMPT, operation())).is_ok());
            },
        ),
        row(
            ("timeout", "tower-resilience 0.14.0"),
            quick,
            || {
                let layer = TimeLimiterLayer::builder().timeout_duration(ATTEMPT).build();
                (layer.layer(service_fn(|(): ()| operation())), handle.clone())
            },
            |(s, handle)| {
                let _entered = handle.enter();
                black_box(ready(s.clone().oneshot(())).is_ok());
            },
        ),
    ]
}

fn limits(quick: bool) -> Vec<Row> {
    let quota = || {
        let burst = NonZeroU32::new(MOST + 10_000_000).expect("not zero");
        Quota::per_second(NonZeroU32::new(10_000_000).expect("not zero")).allow_burst(burst)
    };
    vec![
        row(("rate limit", "governor 0.10.4"), quick, || RateLimiter::direct(quota()), |r| {
            black_box(r.check().is_ok());
        }),
        row(("rate limit", "throttle-net 2.0.0"), quick, || Throttle::per_second(u32::MAX), |t| {
            black_box(t.try_acquire());
        }),
        row(
            ("adaptive AIMD", "throttle-net 2.0.0"),
            quick,
            || AdaptiveLimiter::builder().ceiling(1_000).initial(20).build(Aimd::default()),
            |a| a.try_acquire().expect("a permit is free").success(),
        ),
        row(
            ("adaptive AIMD", "tower-resilience 0.14.0"),
            quick,
            || {
                let aimd = TowerAimd::builder().initial_limit(20).max_limit(1_000).build();
                let aimd = aimd.expect("the settings are allowed");
                AdaptiveLimiterLayer::new(aimd).layer(service_fn(|(): ()| operation()))
            },
            |s| {
                black_box(ready(s.clone().oneshot(())).is_ok());
            },
        ),
    ]
}

/// What tower-resilience has of the five: bulkhead, retry, breaker, attempt timeout.
fn pipeline(quick: bool, runtime: &Runtime) -> Row {
    let handle = runtime.handle();
    row(
        ("five policies", "tower-resilience 0.14.0 (4 parts)"),
        quick,
        || {
            let operation = service_fn(|(): ()| async { operation().await.map_err(|_| Refused) });
            let timed = TimeLimiterLayer::builder().timeout_duration(ATTEMPT).build().layer(operation);
            let breaker = CircuitBreakerLayer::builder().build().expect("the settings are allowed");
            let broken = breaker.layer_fn(timed.map_err(|_| Refused));
            let retry: RetryLayer<(), u64, Refused> = RetryLayer::builder().max_attempts(3).build();
            let retried = retry.layer(broken.map_err(|_| Refused));
            let bulkhead = BulkheadLayer::builder().max_concurrent_calls(64).build();
            (Arc::new(bulkhead.expect("the settings are allowed").layer(retried)), handle.clone())
        },
        |(s, handle)| {
            let _entered = handle.enter();
            black_box(ready((**s).clone().oneshot(())).is_ok());
        },
    )
}

/// One error for the whole stack.
#[derive(Clone, Copy, Debug)]
struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("refused")
    }
}

impl std::error::Error for Refused {}
