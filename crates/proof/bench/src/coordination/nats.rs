//! NATS: how long until the next holder works.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use mainstay_clock::{Clock as _, Deadline, Runtime, SystemClock};
use mainstay_coordination::Coordinator;
use mainstay_coordination::lock::Lock;
use mainstay_nats::{NatsConfig, NatsLeases};
use mainstay_sim::servers::NatsKit;

use crate::load::Histogram;
use crate::report::Section;

/// So long that no lease of the run ends by itself: only a notification hands over.
const TTL: Duration = Duration::from_secs(600);
/// The other one waits when the lock is given back.
const PARKED: Duration = Duration::from_millis(5);
/// Longer than any hand-over, shorter than anybody's patience.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lock of its own connection, as another process has it.
async fn lock(url: &str, owner: &str) -> anyhow::Result<Lock> {
    let rt = Runtime::system();
    let store = Arc::new(NatsLeases::open(NatsConfig::builder(url).build()?, &rt).await?);
    let locks = Coordinator::builder(store, rt).namespace("bench").owner(owner).build()?;
    Ok(locks.mutex("hand-over").ttl(TTL).build()?)
}

/// Two in turns: from the call that gives back to the grant of the other.
async fn hand_overs(url: &str, rounds: usize) -> anyhow::Result<Histogram> {
    let clock = SystemClock::new();
    let locks = [lock(url, "one").await?, lock(url, "two").await?];
    let soon = || Deadline::after(clock.now(), PATIENCE);
    let mut guard = locks[0].acquire(soon()).await?;
    let mut times = Histogram::new();
    for round in 1..=rounds {
        let give = async {
            clock.sleep(PARKED).await;
            let at = clock.now();
            guard.release().await.map(|_| at)
        };
        let (next, at) = tokio::join!(locks[round % 2].acquire(soon()), give);
        times.add(clock.now().saturating_duration_since(at?));
        guard = next?;
    }
    guard.release().await?;
    Ok(times)
}

/// Measures, and says so if there is nothing to measure on.
pub(super) fn run(
    runtime: &tokio::runtime::Runtime,
    rounds: usize,
    section: &mut Section,
) -> anyhow::Result<()> {
    let Some(kit) = NatsKit::new() else {
        section.note("nats-server is not installed: its hand-over was not measured.");
        return Ok(());
    };
    let server = kit.server("").context("nats-server does not start")?;
    let times = runtime.block_on(hand_overs(&server.url(), rounds))?;
    let (p50, p99) = (times.micros(0.5) / 1_000.0, times.micros(0.99) / 1_000.0);
    section.note(&format!("NATS, one server, hand-over of a lock: p50 {p50:.2} ms, p99 {p99:.2} ms."));
    section.gate("hand-over p50, NATS", "< 2 ms", format!("{p50:.2} ms"), p50 < 2.0);
    Ok(())
}
