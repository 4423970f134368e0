//! A dependency dies, is left alone, is probed, and is used again.

use std::io::{Error, ErrorKind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::ensure;
use example_policies::virtual_runtime;
use mainstay::resilience::{Breaker, CallError, breaker::State};

/// A dependency that can be switched off, and counts who asks.
#[derive(Default)]
struct Greeter {
    down: AtomicBool,
    asked: AtomicU32,
}

impl Greeter {
    async fn greet(&self) -> Result<&'static str, Error> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if self.down.load(Ordering::Relaxed) { Err(ErrorKind::ConnectionRefused.into()) } else { Ok("hello") }
    }
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> anyhow::Result<()> {
    let runtime = virtual_runtime();
    let greeter = Greeter::default();
    let open_for = Duration::from_millis(400);
    let breaker =
        Breaker::builder("greeter").failure_rate(0.5).open_for(open_for).runtime(&runtime).build()?;

    // Thirty calls go well, then the dependency dies. Half of the window has failed after thirty more.
    for n in 0..60 {
        greeter.down.store(n >= 30, Ordering::Relaxed);
        ensure!(breaker.call(|| greeter.greet()).await.is_ok() == (n < 30));
    }
    ensure!(breaker.state() == State::Open);

    // A thousand callers get an answer at once, and the dependency gets some rest.
    for _ in 0..1_000 {
        let refused = breaker.call(|| greeter.greet()).await.err();
        ensure!(refused.is_some_and(|e| matches!(e, CallError::Rejected(_)) && e.retry_after().is_some()));
    }
    ensure!(greeter.asked.load(Ordering::Relaxed) == 60);
    println!("open: 1000 callers refused, none of them reached the dependency");

    // It is back. Three probes have to succeed before everybody may call again.
    greeter.down.store(false, Ordering::Relaxed);
    runtime.clock().sleep(Duration::from_millis(450)).await;
    for state in [State::HalfOpen, State::HalfOpen, State::Closed] {
        ensure!(breaker.call(|| greeter.greet()).await.is_ok());
        ensure!(breaker.state() == state);
    }
    for change in breaker.snapshot().last {
        println!("{} -> {}", change.from(), change.to());
    }
    Ok(())
}
