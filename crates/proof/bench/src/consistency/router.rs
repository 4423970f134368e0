//! What it costs to decide where a session reads, and what a read asks for that it would not ask for anyway.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, bail};
use mainstay_clock::SystemClock;
use mainstay_consistency::session::{Consistency, Guarantees, Plan, Router};
use mainstay_store::memory::{MemoryCluster, MemoryNode};
use mainstay_store::replicated::{Judgment, Mark, Observed};
use mainstay_store::{BoxFuture, Error, ReplicatedStore, Result};

use super::{nanos, row};
use crate::report::Section;

/// A node whose round trips are counted, and of which each takes a millisecond.
#[derive(Clone, Debug)]
struct Counted {
    node: MemoryNode,
    trips: Arc<AtomicU64>,
}

impl Counted {
    async fn trip(&self) {
        self.trips.fetch_add(1, Ordering::Relaxed);
        mainstay_clock::Runtime::system().clock().sleep(Duration::from_millis(1)).await;
    }
}

impl ReplicatedStore for Counted {
    fn commit_position(&self) -> BoxFuture<'_, Result<Mark>> {
        Box::pin(async {
            self.trip().await;
            self.node.commit_position().await
        })
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed>> {
        Box::pin(async {
            self.trip().await;
            self.node.observe().await
        })
    }

    fn wait<'a>(&'a self, wanted: &'a Mark, limit: Duration) -> BoxFuture<'a, Result<Judgment>> {
        Box::pin(async move {
            self.trip().await;
            self.node.wait(wanted, limit).await
        })
    }

    fn read_position(&self) -> Option<Mark> {
        self.node.read_position()
    }

    fn incarnation(&self) -> Option<u64> {
        self.node.incarnation()
    }
}

pub(super) fn run(smoke: bool, rows: &mut Vec<Vec<String>>, section: &mut Section) -> anyhow::Result<()> {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    rt.block_on(measure(smoke, rows, section))
}

async fn measure(smoke: bool, rows: &mut Vec<Vec<String>>, section: &mut Section) -> anyhow::Result<()> {
    let clock = Arc::new(SystemClock::new());
    let cluster = MemoryCluster::new(clock.clone(), "orders", 2);
    let trips = Arc::new(AtomicU64::new(0));
    let node = |n| Ok::<_, Error>(Counted { node: cluster.node(n)?, trips: Arc::clone(&trips) });
    // Samples stay trusted for the whole run: what is measured is the path between two polls.
    let router = Router::builder("orders", clock)
        .shared("a", node(0)?)
        .shared("b", node(1)?)
        .shared("c", node(2)?)
        .trust(Duration::from_secs(600))
        .build()?;
    let mut session = router.session();
    session.write(async |c: &mut Counted| c.node.write("k", b"v").await).await?;
    router.poll_once().await;
    let how = Consistency::Session(Guarantees::ALL);
    if !matches!(session.plan(&how), Plan::Replica(_)) {
        bail!("no replica is chosen: {:?}", session.plan(&how));
    }
    let count = if smoke { 1_000 } else { 100_000 };
    let decision = nanos(count, |_| {
        let _ = black_box(session.plan(black_box(&how)));
    });
    let allocated = allocation_counter::measure(|| {
        let _ = black_box(session.plan(black_box(&how)));
    });
    rows.push(row("session, decision of a read among two replicas", decision));
    section.gate("router decision", "<= 50 ns", format!("{decision:.1}"), decision <= 50.0);
    let found = allocated.count_total;
    section.gate("router decision, allocations", "0", found.to_string(), found == 0);

    let (reads, before) = (200, trips.load(Ordering::Relaxed));
    for _ in 0..reads {
        let read = session.read(async |c: &mut Counted| Ok::<_, Error>(c.node.read("k").value)).await?;
        read.context("the session does not find its write")?;
    }
    let extra = trips.load(Ordering::Relaxed) - before;
    let found = format!("{extra} in {reads} reads");
    section.gate("extra round trips of reads from replicas, at 1 ms each", "0", found, extra == 0);
    Ok(())
}
