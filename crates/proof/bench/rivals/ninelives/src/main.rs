//! The breaker of ninelives, in a program of its own: it holds tokio at a version that ours has left.

#[path = "../../../src/resilience/battery.rs"]
mod battery;
#[path = "../../../src/resilience/measure.rs"]
mod measure;

use std::hint::black_box;

use battery::{Call, Failed, OPEN, Script, Subject};
use measure::{ready, row};
use ninelives::{CircuitBreakerConfig, CircuitBreakerLayer, ResilienceError};
use tower::{Layer as _, ServiceExt as _, service_fn};

/// An operation that is ready at once and says so.
#[inline(always)]
async fn operation() -> Result<u64, Failed> {
    Ok(black_box(1))
}

fn layer() -> CircuitBreakerLayer {
    let config = CircuitBreakerConfig::new(5, OPEN, 1).expect("the settings are allowed");
    CircuitBreakerLayer::new(config).expect("the settings are allowed")
}

fn subject() -> Box<dyn Subject> {
    let service = layer().layer(service_fn(|script: Script| script.run()));
    Box::new(move |script: Script| -> Call {
        let service = service.clone();
        Box::pin(async move {
            match service.oneshot(script).await {
                Ok(()) => Some(Ok(())),
                Err(ResilienceError::Inner(failed)) => Some(Err(failed)),
                Err(_) => None,
            }
        })
    })
}

fn main() {
    let quick = std::env::args().any(|word| word == "--quick");
    let make = || layer().layer(service_fn(|(): ()| operation()));
    let row = row(("breaker", "ninelives 0.2.0"), quick, make, |b| {
        black_box(ready(b.clone().oneshot(())).is_ok());
    });
    println!("{}", row.line());
    println!("{}", battery::line("ninelives 0.2.0, consecutive", &battery::ask(&subject)));
}
