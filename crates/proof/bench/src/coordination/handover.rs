//! From a release to the next in line.

use std::time::Duration;

use anyhow::{Context as _, bail};
use mainstay_clock::{Clock as _, Deadline, Runtime, SystemClock};
use mainstay_etcd::{EtcdConfig, EtcdLeases};
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired, Line};

use super::TTL;
use super::places::{Place, SERVER};
use super::served::Client;
use crate::floor;
use crate::load::Histogram;
use crate::report::Section;

const NAME: &str = "bench/handover";
const LOCK: &str = "hand-over";
/// So long that no lease of the run ends by itself: only a notification hands over.
const LONG: Duration = Duration::from_secs(600);
/// The other one waits when the lock is given back.
const PARKED: Duration = Duration::from_millis(5);
/// Longer than any hand-over, shorter than anybody's patience.
const PATIENCE: Duration = Duration::from_secs(30);
/// A waiter that nobody wakes looks again after this; it would show in the figures.
const LOOK: Duration = Duration::from_secs(1);

fn in_line(op: &str) -> AcquireRequest {
    AcquireRequest { line: Line::Join, ..AcquireRequest::exclusive(NAME, "bench", op, TTL) }
}

async fn served(store: &dyn LeaseStore, op: &str) -> anyhow::Result<()> {
    let clock = SystemClock::new();
    loop {
        let hint = store.watch(NAME);
        match store.acquire(in_line(op)).await? {
            Acquired::Granted(_) => return Ok(()),
            Acquired::Queued { .. } => {}
            Acquired::Held { by, .. } => bail!("held by {by}"),
        }
        let look = clock.sleep(LOOK);
        tokio::select! {
            biased;
            hint = hint => hint?,
            () = look => {}
        }
    }
}

/// Two processes' stores take turns; each waits in line while the other holds.
async fn turns(stores: &[EtcdLeases; 2], time: Duration) -> anyhow::Result<Histogram> {
    let clock = SystemClock::new();
    let end = clock.now().saturating_add(time);
    let mut times = Histogram::new();
    let mut round = 0_usize;
    served(&stores[0], "op-0").await?;
    while clock.now() < end {
        let (holder, waiter) = (&stores[round % 2], &stores[(round + 1) % 2]);
        let (now, next) = (format!("op-{round}"), format!("op-{}", round + 1));
        let release = async {
            while holder.inspect(NAME).await?.waiting == 0 {}
            let at = clock.now();
            holder.release(&now).await?;
            anyhow::Ok(at)
        };
        let taken = async {
            served(waiter, &next).await?;
            anyhow::Ok(clock.now())
        };
        let (released, taken) = tokio::try_join!(release, taken)?;
        times.add(taken.saturating_duration_since(released));
        round += 1;
    }
    stores[round % 2].release(&format!("op-{round}")).await?;
    Ok(times)
}

/// Two locks in turns: from the call that gives back to the grant of the other.
async fn of_locks(place: &Place, rounds: usize) -> anyhow::Result<Histogram> {
    let clock = SystemClock::new();
    let locks = [place.lock(LOCK, "one", LONG).await?, place.lock(LOCK, "two", LONG).await?];
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

/// The same over HTTP, with two clients.
async fn of_server(place: &Place, rounds: usize) -> anyhow::Result<Histogram> {
    let clock = SystemClock::new();
    let mut times = Histogram::new();
    let mut third = Client::connect(&place.url).await?;
    let (mut holder, mut waiter) = (Client::connect(&place.url).await?, Client::connect(&place.url).await?);
    let mut token = holder.acquire(LOCK, "first").await?;
    for round in 0..rounds {
        let owner = format!("next-{round}");
        let give = async {
            while third.waiting(LOCK).await? == 0 {}
            let at = clock.now();
            holder.release(LOCK, &token).await?;
            anyhow::Ok(at)
        };
        let take = async {
            let token = waiter.acquire(LOCK, &owner).await?;
            anyhow::Ok((clock.now(), token))
        };
        let (at, (taken, next)) = tokio::try_join!(give, take)?;
        times.add(taken.saturating_duration_since(at));
        token = next;
        std::mem::swap(&mut holder, &mut waiter);
    }
    holder.release(LOCK, &token).await?;
    Ok(times)
}

/// Two stores of one etcd in turns, in line.
async fn of_etcd(place: &Place, each: Duration) -> anyhow::Result<Histogram> {
    let config = EtcdConfig::builder(&place.url).build()?;
    let rt = Runtime::system();
    let stores = [EtcdLeases::open(config.clone(), &rt).await?, EtcdLeases::open(config, &rt).await?];
    turns(&stores, each).await
}

/// The most of p50, in milliseconds, where a sync takes `sync`: a release and a grant of rows are durable before they are
/// told.
fn goal(kind: &str, sync: f64) -> Option<f64> {
    match kind {
        "redis" | SERVER => Some(1.0),
        "postgres" => Some(2.0 + 2.0 * sync),
        "advisory" | "nats" => Some(2.0),
        "etcd" => Some(5.0),
        _ => None,
    }
}

/// On every store in turn.
pub(super) fn run(
    runtime: &tokio::runtime::Runtime,
    places: &[Place],
    (each, rounds): (Duration, usize),
    section: &mut Section,
) -> anyhow::Result<()> {
    let sync = floor::probe(&std::env::temp_dir(), each.as_secs_f64())?.p50 / 1_000.0;
    section
        .note(&format!("A sync of the disk under the stores took {sync:.2} ms (p50) before the hand-overs."));
    let (mut rows, mut goals) = (Vec::new(), Vec::new());
    for place in places {
        let times = runtime.block_on(async {
            match place.kind {
                SERVER => of_server(place, rounds).await,
                "etcd" => of_etcd(place, each).await,
                _ => of_locks(place, rounds).await,
            }
        });
        let times = times.with_context(|| format!("hand-overs on {}", place.name))?;
        let (p50, p99) = (times.micros(0.5) / 1_000.0, times.micros(0.99) / 1_000.0);
        let figures = [times.count().to_string(), format!("{p50:.2}"), format!("{p99:.2}")];
        rows.push([place.name.to_owned()].into_iter().chain(figures).collect::<Vec<_>>());
        goals.extend(goal(place.kind, sync).map(|most| (place.name, most, p50)));
    }
    section.table(&["store", "hand-overs", "p50, ms", "p99, ms"], &rows);
    for (name, most, p50) in goals {
        let id = format!("hand-over p50, {name}");
        section.gate(
            &id,
            &format!("< {most:.1} ms from release to the next"),
            format!("{p50:.2} ms"),
            p50 < most,
        );
    }
    Ok(())
}
