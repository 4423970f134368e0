//! Breakers of others: the closed success, and the ones that answer the battery.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use circuitbreaker_rs::{BreakerError, DefaultPolicy};
use failsafe::futures::CircuitBreaker as _;
use layered::{Execute, Service as _, Stack as _};
use recloser::{AsyncRecloser, Recloser};
use resilient::circuit_breaker::{BreakerPolicy, BreakerResult, CircuitBreakerMode};
use seatbelt::breaker::{Breaker, HalfOpenMode};
use seatbelt::{RecoveryInfo, ResilienceContext};
use throttle_net::{CircuitBreaker, Throttle, Trip};
use tower::ServiceExt as _;
use tower::service_fn;
use tower_resilience_circuitbreaker::{CircuitBreakerError, CircuitBreakerLayer};

use crate::battery::{Call, Failed, OPEN, Script, Subject};
use crate::measure::{Row, ready, row};
use crate::operation;

/// The window of seatbelt has at least this length.
const SAMPLING: Duration = Duration::from_secs(1);

/// A refusal beside a failure, for those that have one error for both.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    Failed,
    Refused,
}

/// Never the limit that is reached first.
fn unlimited() -> Throttle {
    Throttle::per_second(u32::MAX)
}

fn failsafe() -> impl failsafe::futures::CircuitBreaker + Clone {
    let policy = failsafe::failure_policy::consecutive_failures(5, failsafe::backoff::constant(OPEN));
    failsafe::Config::new().failure_policy(policy).build()
}

fn recloser() -> AsyncRecloser {
    let built = Recloser::custom().error_rate(0.5).closed_len(10).half_open_len(1).open_wait(OPEN).build();
    AsyncRecloser::from(built)
}

fn throttle_net(trip: Trip) -> Arc<CircuitBreaker<Throttle>> {
    Arc::new(CircuitBreaker::builder().trip(trip).cooldown(OPEN).half_open(1, 1).build(unlimited()))
}

const RATIO: Trip = Trip::Ratio { window: 10, ratio: 0.5, min_calls: 10 };

fn tower_resilience(consecutive: bool) -> CircuitBreakerLayer {
    let base = CircuitBreakerLayer::builder()
        .failure_rate_threshold(0.5)
        .sliding_window_size(10)
        .minimum_number_of_calls(10)
        .wait_duration_in_open(OPEN)
        .permitted_calls_in_half_open(1);
    let built = if consecutive { base.consecutive_failures(5).build() } else { base.build() };
    built.expect("the settings are allowed")
}

/// What it decides by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Consecutive,
    /// The rate of everything since it closed.
    Rate,
}

fn circuitbreaker_rs(by: By) -> circuitbreaker_rs::CircuitBreaker<DefaultPolicy, Failed> {
    let base = circuitbreaker_rs::CircuitBreaker::<DefaultPolicy, Failed>::builder()
        .cooldown(OPEN)
        .probe_interval(1)
        .consecutive_successes(1);
    // It always looks at both: the one that is not asked for is put out of reach.
    match by {
        By::Consecutive => base.consecutive_failures(5).min_throughput(u64::MAX).build(),
        By::Rate => base.failure_threshold(0.5).min_throughput(10).consecutive_failures(u64::MAX).build(),
    }
}

/// By failures in a row, as it is made: its windows are of time, and say little about the last ten calls.
fn resilient() -> BreakerPolicy {
    BreakerPolicy::default()
        .with_mode(CircuitBreakerMode::CountBased)
        .with_failure_threshold(5)
        .with_open_timeout(OPEN)
        .with_half_open_max_calls(1)
        .with_success_threshold(1)
}

macro_rules! seatbelt {
    ($operation:expr) => {{
        let context = ResilienceContext::new(tick::Clock::new_tokio());
        let stack = (
            Breaker::layer("breaker", &context)
                .recovery_with(|result: &Result<_, Ended>, _| match result {
                    Ok(_) => RecoveryInfo::never(),
                    Err(_) => RecoveryInfo::retry(),
                })
                .rejected_input_error(|_, _| Ended::Refused)
                .failure_threshold(0.5)
                .min_throughput(10)
                .sampling_duration(SAMPLING)
                .break_duration(OPEN)
                .half_open_mode(HalfOpenMode::quick()),
            Execute::new($operation),
        );
        Arc::new(stack.into_service())
    }};
}

pub(crate) fn rows(quick: bool) -> Vec<Row> {
    let service = || service_fn(|(): ()| operation());
    vec![
        row(("breaker", "failsafe 1.3.0"), quick, failsafe, |b| {
            black_box(ready(b.call(operation())).is_ok());
        }),
        row(("breaker", "recloser 1.4.0"), quick, recloser, |b| {
            black_box(ready(b.call(operation())).is_ok());
        }),
        row(("breaker", "throttle-net 2.0.0 (with its limiter)"), quick, || throttle_net(RATIO), |b| {
            black_box(ready(b.call(operation)).is_ok());
        }),
        row(
            ("breaker", "tower-resilience 0.14.0"),
            quick,
            || tower_resilience(false).layer_fn(service()),
            |b| {
                black_box(ready(b.clone().oneshot(())).is_ok());
            },
        ),
        row(
            ("breaker", "seatbelt 0.11.0"),
            quick,
            || seatbelt!(|(): ()| async { operation().await.map_err(|_| Ended::Failed) }),
            |b| {
                black_box(ready(b.execute(())).is_ok());
            },
        ),
        row(("breaker", "circuitbreaker-rs 0.1.1"), quick, || circuitbreaker_rs(By::Rate), |b| {
            black_box(ready(b.call_async(operation)).is_ok());
        }),
        row(("breaker", "resilient 0.1.0"), quick, resilient, |b| {
            black_box(ready(b.run(operation)).is_ok());
        }),
    ]
}

type Make = Box<dyn Fn() -> Box<dyn Subject>>;

pub(crate) fn subjects() -> Vec<(&'static str, Make)> {
    vec![
        ("failsafe 1.3.0, consecutive", Box::new(|| {
            let breaker = failsafe();
            Box::new(move |script: Script| -> Call {
                let breaker = breaker.clone();
                Box::pin(async move {
                    match breaker.call(script.run()).await {
                        Ok(()) => Some(Ok(())),
                        Err(failsafe::Error::Inner(failed)) => Some(Err(failed)),
                        Err(failsafe::Error::Rejected) => None,
                    }
                })
            })
        })),
        ("recloser 1.4.0", Box::new(|| {
            let breaker = recloser();
            Box::new(move |script: Script| -> Call {
                let breaker = breaker.clone();
                Box::pin(async move {
                    match breaker.call(script.run()).await {
                        Ok(()) => Some(Ok(())),
                        Err(recloser::Error::Inner(failed)) => Some(Err(failed)),
                        Err(recloser::Error::Rejected) => None,
                    }
                })
            })
        })),
        ("throttle-net 2.0.0, ratio", Box::new(|| throttled(RATIO))),
        ("throttle-net 2.0.0, consecutive", Box::new(|| throttled(Trip::Consecutive(5)))),
        ("tower-resilience 0.14.0, count", Box::new(|| layered_service(false))),
        ("tower-resilience 0.14.0, consecutive", Box::new(|| layered_service(true))),
        ("seatbelt 0.11.0 (window of 1 s)", Box::new(|| {
            let service = seatbelt!(|script: Script| async { script.run().await.map_err(|_| Ended::Failed) });
            Box::new(move |script: Script| -> Call {
                let service = Arc::clone(&service);
                Box::pin(async move {
                    match service.execute(script).await {
                        Ok(()) => Some(Ok(())),
                        Err(Ended::Failed) => Some(Err(Failed)),
                        Err(Ended::Refused) => None,
                    }
                })
            })
        })),
        ("circuitbreaker-rs 0.1.1, rate of all calls", Box::new(|| counted(By::Rate))),
        ("circuitbreaker-rs 0.1.1, consecutive", Box::new(|| counted(By::Consecutive))),
        ("resilient 0.1.0, consecutive", Box::new(monitored)),
    ]
}

fn counted(by: By) -> Box<dyn Subject> {
    let breaker = circuitbreaker_rs(by);
    Box::new(move |script: Script| -> Call {
        let breaker = breaker.clone();
        Box::pin(async move {
            match breaker.call_async(|| script.run()).await {
                Ok(()) => Some(Ok(())),
                Err(BreakerError::Operation(failed)) => Some(Err(failed)),
                Err(_) => None,
            }
        })
    })
}

/// Through `run`: its `Policy::call` starts what it should refuse.
fn monitored() -> Box<dyn Subject> {
    let breaker = resilient();
    Box::new(move |script: Script| -> Call {
        let breaker = breaker.clone();
        Box::pin(async move {
            match breaker.run(|| script.clone().run()).await {
                Ok(()) => Some(Ok(())),
                Err(BreakerResult::Inner(failed)) => Some(Err(failed)),
                Err(BreakerResult::CircuitOpen { .. }) => None,
            }
        })
    })
}

fn throttled(trip: Trip) -> Box<dyn Subject> {
    let breaker = throttle_net(trip);
    Box::new(move |script: Script| -> Call {
        let breaker = Arc::clone(&breaker);
        Box::pin(async move {
            match breaker.call(|| script.run()).await {
                Ok(()) => Some(Ok(())),
                Err(throttle_net::CallError::Failed(failed)) => Some(Err(failed)),
                Err(throttle_net::CallError::Rejected(_)) => None,
            }
        })
    })
}

fn layered_service(consecutive: bool) -> Box<dyn Subject> {
    let service = tower_resilience(consecutive).layer_fn(service_fn(|script: Script| script.run()));
    Box::new(move |script: Script| -> Call {
        let service = service.clone();
        Box::pin(async move {
            match service.oneshot(script).await {
                Ok(()) => Some(Ok(())),
                Err(CircuitBreakerError::Inner(failed)) => Some(Err(failed)),
                Err(CircuitBreakerError::OpenCircuit) => None,
            }
        })
    })
}
