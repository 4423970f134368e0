//! Our side: the same operation under each policy.

use std::future::Future;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_resilience::breaker::HalfOpen;
use mainstay_resilience::limit::{AdaptiveLimiter, Algorithm, RateLimiter};
use mainstay_resilience::metrics::MetricsListener;
use mainstay_resilience::policy::PolicyBuilder;
use mainstay_resilience::{
    Breaker, Budget, Bulkhead, CallContext, CallError, Classify, Listener, Policy, Retry, Verdict,
};

use super::battery::{Call, Failed, OPEN, Script, Subject};
use super::counting;
use super::measure::{MOST, Row, ready, row};

const SYSTEM: &str = "mainstay";
/// The machine without any library.
pub(super) const BARE: &str = "bare";

impl Classify for Failed {
    fn verdict(&self) -> Verdict {
        Verdict::RETRYABLE
    }
}

/// An operation that is ready at once and says so.
#[inline(always)]
async fn operation() -> Result<u64, Failed> {
    Ok(black_box(1))
}

#[inline(always)]
fn called<E: std::fmt::Debug>(future: impl Future<Output = Result<u64, E>>) {
    black_box(ready(future).expect("a ready operation succeeds"));
}

/// All paths.
pub(super) fn rows(quick: bool) -> Vec<Row> {
    let mut rows = bare(quick);
    rows.extend(breakers(quick));
    rows.extend(limits(quick));
    rows.extend(policies(quick));
    rows
}

fn bare(quick: bool) -> Vec<Row> {
    let counter = || AtomicU64::new(64);
    vec![
        row((BARE, "locked add"), quick, counter, |n| {
            black_box(n.fetch_add(1, Ordering::Relaxed));
        }),
        row((BARE, "compare and swap, locked add"), quick, counter, |n| {
            let free = n.load(Ordering::Relaxed);
            black_box(n.compare_exchange(free, free - 1, Ordering::Acquire, Ordering::Relaxed).is_ok());
            black_box(n.fetch_add(1, Ordering::Release));
        }),
    ]
}

fn breakers(quick: bool) -> Vec<Row> {
    let call = |b: &Breaker| called(b.call(operation));
    let one = |system: &str, make: &dyn Fn() -> Breaker| row(("breaker", system), quick, make, call);
    vec![
        one(SYSTEM, &|| built(Breaker::builder("b").build())),
        one("mainstay, consecutive", &|| built(Breaker::builder("b").consecutive(5).build())),
        one("mainstay, slow calls", &|| {
            built(Breaker::builder("b").slow(Duration::from_millis(500), 0.8).build())
        }),
        one("mainstay, exact last 128", &|| built(Breaker::builder("b").count_window(128).build())),
    ]
}

fn limits(quick: bool) -> Vec<Row> {
    let rate = |burst: u32| RateLimiter::builder("r").rate(10_000_000, Duration::from_secs(1)).burst(burst);
    let check = |r: &RateLimiter| black_box(r.check()).expect("the burst is long enough");
    // Half a second of burst used up: the tick is enough. In the second row it is not.
    let busy = || {
        let limiter = built(rate(MOST + 10_000_000).build());
        limiter.check_n(5_000_000).expect("a fresh burst");
        limiter
    };
    vec![
        row(
            ("bulkhead", SYSTEM),
            quick,
            || built(Bulkhead::builder("k", 64).build()),
            |k| {
                drop(k.try_acquire().expect("a permit is free"));
            },
        ),
        row(("rate limit", SYSTEM), quick, busy, check),
        row(("rate limit", "mainstay, clock needed"), quick, || built(rate(MOST + 1).build()), check),
        row(
            ("rate limit", "mainstay, coarse clock"),
            quick,
            || built(rate(MOST + 20_000).coarse_clock().build()),
            check,
        ),
        row(
            ("adaptive AIMD", SYSTEM),
            quick,
            || built(AdaptiveLimiter::builder("a").algorithm(Algorithm::aimd()).build()),
            |a| a.acquire().expect("a permit is free").success(),
        ),
    ]
}

/// A policy with a context made once, as a service has it.
struct Guard(Policy, CallContext);

fn guard(policy: PolicyBuilder) -> Guard {
    Guard(built(policy.build()), CallContext::new())
}

/// Deadline, bulkhead, retry with budget, breaker, attempt timeout; `listener` hears policy and breaker.
fn five(listener: Option<Arc<dyn Listener>>, everywhere: bool) -> Guard {
    let mut breaker = Breaker::builder("b");
    let mut policy = Policy::builder("p");
    if let Some(listener) = listener {
        policy = policy.listener(Arc::clone(&listener));
        if everywhere {
            breaker = breaker.listener(listener);
        }
    }
    let budget = built(Budget::builder("r").build());
    guard(
        policy
            .idempotent()
            .deadline(Duration::from_secs(2))
            .bulkhead(&built(Bulkhead::builder("k", 64).build()))
            .retry(built(Retry::standard().build()))
            .budget(&budget)
            .breaker(&built(breaker.build()))
            .attempt_timeout(Duration::from_millis(300)),
    )
}

fn policies(quick: bool) -> Vec<Row> {
    let call = |g: &Guard| called(g.0.call(&g.1, |_| operation()));
    let one = |path: &str, system: &str, make: &dyn Fn() -> Guard| row((path, system), quick, make, call);
    let retry = || Policy::builder("p").idempotent().retry(built(Retry::standard().build()));
    let metrics = || -> Arc<dyn Listener> { MetricsListener::new() };
    counting::install();
    vec![
        one("empty policy", SYSTEM, &|| guard(Policy::builder("p"))),
        one("retry", SYSTEM, &|| guard(retry().without_budget())),
        one("retry", "mainstay, with budget", &|| guard(retry())),
        one("timeout", SYSTEM, &|| guard(Policy::builder("p").attempt_timeout(Duration::from_millis(300)))),
        one("five policies", SYSTEM, &|| five(None, false)),
        one("five policies, metrics", SYSTEM, &|| five(Some(metrics()), false)),
        one("five policies, metrics", "mainstay, breaker's too", &|| five(Some(metrics()), true)),
    ]
}

/// Settings of a breaker, for its size.
pub(super) fn sizes() -> Vec<(&'static str, u64)> {
    // The first tick starts the process's ticker, which is not a breaker's.
    let _ticker = built(Breaker::builder("first").build());
    let size = |make: &dyn Fn() -> Breaker| {
        let mut kept = None;
        let used = allocation_counter::measure(|| kept = Some(make()));
        drop(kept);
        u64::try_from(used.bytes_current).unwrap_or(0)
    };
    let ten = HalfOpen::permits(10);
    vec![
        ("time window (default)", size(&|| built(Breaker::builder("b").build()))),
        (
            "time window, slow calls",
            size(&|| built(Breaker::builder("b").slow(Duration::from_millis(500), 0.8).build())),
        ),
        ("time window, 10 probes", size(&|| built(Breaker::builder("b").half_open(ten).build()))),
        ("consecutive failures", size(&|| built(Breaker::builder("b").consecutive(5).build()))),
        ("classic preset", size(&|| built(Breaker::builder("b").classic().build()))),
        ("count window, last 100", size(&|| built(Breaker::builder("b").count_window(100).build()))),
        ("count window, last 1,000", size(&|| built(Breaker::builder("b").count_window(1_000).build()))),
    ]
}

/// Makes a fresh breaker per question.
type Make = Box<dyn Fn() -> Box<dyn Subject>>;

/// The breakers that answer the battery.
pub(super) fn subjects() -> Vec<(&'static str, Make)> {
    fn subject(breaker: Breaker) -> Box<dyn Subject> {
        Box::new(move |script: Script| -> Call {
            let breaker = breaker.clone();
            Box::pin(async move {
                match breaker.call(|| script.run()).await {
                    Ok(()) => Some(Ok(())),
                    Err(CallError::Inner(failed)) => Some(Err(failed)),
                    Err(_) => None,
                }
            })
        })
    }
    let base =
        || Breaker::builder("b").open_for(OPEN).jitter(0.0).half_open(HalfOpen::permits(1).required(1));
    vec![
        (
            "mainstay, count",
            Box::new(move || subject(built(base().count_window(10).failure_rate(0.5).min_calls(10).build()))),
        ),
        ("mainstay, consecutive", Box::new(move || subject(built(base().consecutive(5).build())))),
    ]
}

fn built<T>(made: Result<T, mainstay_resilience::ConfigError>) -> T {
    made.expect("invariant: the settings of the bench are allowed")
}
