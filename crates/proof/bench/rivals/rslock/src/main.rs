//! Pairs of acquire and release with rslock: locks without a token, on one server or a majority. Its servers stand
//! in `--server`, between commas.

#[allow(dead_code, reason = "this one counts acquisitions apart, and needs less of it")]
#[path = "../../../src/load.rs"]
mod load;

use std::time::{Duration, Instant};

use load::{Figures, Histogram, Order};
use rslock::LockManager;

const TTL: Duration = Duration::from_secs(10);

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Acquisitions of one caller, as its documentation shows them, until `end`.
async fn caller(manager: LockManager, name: String, end: Instant) -> Result<Histogram, Failure> {
    let mut times = Histogram::new();
    while Instant::now() < end {
        let sent = Instant::now();
        let lock = manager.lock(name.as_str(), TTL).await?;
        times.add(sent.elapsed());
        manager.unlock(&lock).await;
    }
    Ok(times)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let order = Order::read(std::env::args().skip(1))?;
    let manager = LockManager::new(order.server.split(',').collect());
    // Connected before it is measured.
    caller(manager.clone(), "bench/first".to_owned(), Instant::now() + Duration::from_millis(20)).await?;
    let began = Instant::now();
    let end = began + Duration::from_secs_f64(order.seconds);
    let callers: Vec<_> = (0..order.concurrency)
        .map(|n| tokio::spawn(caller(manager.clone(), format!("bench/{n}"), end)))
        .collect();
    let mut times = Histogram::new();
    for caller in callers {
        times.merge(&caller.await??);
    }
    let figures = Figures {
        done: times.count(),
        seconds: began.elapsed().as_secs_f64(),
        p50: times.micros(0.5),
        p99: times.micros(0.99),
        ..Figures::default()
    };
    println!("{}", figures.line());
    Ok(())
}
