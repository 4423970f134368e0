//! From a release to the next in line.

use std::time::Duration;

use anyhow::{Context as _, bail};
use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_etcd::{EtcdConfig, EtcdLeases};
use mainstay_sim::servers::EtcdKit;
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired, Line};

use super::TTL;
use crate::load::Histogram;
use crate::report::Section;

const NAME: &str = "bench/handover";
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

/// One node on this machine, which syncs each write.
pub(super) fn etcd(each: Duration, section: &mut Section) -> anyhow::Result<()> {
    let node = EtcdKit::new().context("etcd is not installed")?.single()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let times = runtime.block_on(async {
        let config = EtcdConfig::builder(&node.url()).build()?;
        let rt = Runtime::system();
        let stores = [EtcdLeases::open(config.clone(), &rt).await?, EtcdLeases::open(config, &rt).await?];
        turns(&stores, each).await
    })?;
    let (p50, p99) = (times.micros(0.5) / 1_000.0, times.micros(0.99) / 1_000.0);
    let row = ["etcd, one node", &times.count().to_string(), &format!("{p50:.2}"), &format!("{p99:.2}")];
    section.table(&["", "hand-overs", "p50, ms", "p99, ms"], &[row.map(str::to_owned).to_vec()]);
    section.gate("hand-over p50, etcd", "< 5 ms from release to the next", format!("{p50:.2} ms"), p50 < 5.0);
    Ok(())
}
