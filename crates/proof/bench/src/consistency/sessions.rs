//! Where a session's read goes: what deciding costs, and what a read adds to the work of its closure.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, SystemClock};
use mainstay_consistency::session::{Consistency, Guarantees, Plan, Router};
use mainstay_store::memory::{MemoryCluster, MemoryNode};
use mainstay_store::replicated::{Judgment, Mark, Observed};
use mainstay_store::{BoxFuture, ReplicatedStore, Result};

use super::{nanos, row};
use crate::report::Section;

/// What a way to a node takes, in the measurement of reads.
const WAY: Duration = Duration::from_millis(1);
/// Reads that are measured; with their ways they end before the router's samples are too old to be trusted.
const READS: u32 = 100;

/// A connection over a slow way that counts the questions.
#[derive(Clone, Debug)]
struct Far {
    node: MemoryNode,
    asked: Arc<AtomicU64>,
    clock: Arc<SystemClock>,
}

impl Far {
    async fn way(&self) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.clock.sleep(WAY).await;
    }
}

impl ReplicatedStore for Far {
    fn commit_position(&self) -> BoxFuture<'_, Result<Mark>> {
        Box::pin(async {
            self.way().await;
            self.node.commit_position().await
        })
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed>> {
        Box::pin(async {
            self.way().await;
            self.node.observe().await
        })
    }

    fn wait<'a>(&'a self, wanted: &'a Mark, limit: Duration) -> BoxFuture<'a, Result<Judgment>> {
        Box::pin(async move {
            self.way().await;
            self.node.wait(wanted, limit).await
        })
    }

    fn incarnation(&self) -> Option<u64> {
        self.node.incarnation()
    }
}

pub(super) fn run(rows: &mut Vec<Vec<String>>, section: &mut Section) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure(rows, section))
}

async fn measure(rows: &mut Vec<Vec<String>>, section: &mut Section) -> anyhow::Result<()> {
    let clock = Arc::new(SystemClock::new());
    let cluster = MemoryCluster::new(clock.clone(), "orders", 2);
    let asked = Arc::new(AtomicU64::new(0));
    let mut builder = Router::builder("orders", clock.clone());
    for i in 0..3 {
        let far = Far { node: cluster.node(i)?, asked: asked.clone(), clock: clock.clone() };
        builder = builder.shared(&format!("n{i}"), far);
    }
    let router = builder.build()?;
    router.poll_once().await;
    let mut session = router.session();
    session.write(async |far: &mut Far| far.node.write("k", b"1").await).await?;
    router.poll_once().await;

    let how = Consistency::Session(Guarantees::ALL);
    let mut replicas = 0;
    let decision = nanos(20_000, |_| {
        replicas += usize::from(matches!(black_box(session.plan(black_box(&how))), Plan::Replica(_)));
    });
    let heap = allocation_counter::measure(|| {
        let _ = black_box(session.plan(&how));
    });
    anyhow::ensure!(replicas == 20_000 * super::BATCHES, "not every decision was for a replica: {replicas}");
    rows.push(row("session with four guarantees, decision among three nodes", decision));
    section.gate(
        "session decision",
        "<= 50 ns, 0 allocations",
        format!("{decision:.1} ns, {} allocations", heap.count_total),
        decision <= 50.0 && heap.count_total == 0,
    );

    router.poll_once().await;
    let before = asked.load(Ordering::Relaxed);
    let began = clock.now();
    for _ in 0..READS {
        let read = session.read(async |far: &mut Far| {
            far.clock.sleep(WAY).await;
            Ok::<_, std::convert::Infallible>(far.node.read("k").value)
        });
        anyhow::ensure!(read.await?.as_deref() == Some(b"1"), "a read did not find the session's write");
    }
    let each = clock.now().saturating_duration_since(began).as_secs_f64() * 1e3 / f64::from(READS);
    let extra = asked.load(Ordering::Relaxed) - before;
    section.note(&format!(
        "{READS} reads of replicas, one way of 1 ms each in the closure, took {each:.2} ms each; the router asked {extra} \
         questions for them."
    ));
    section.gate("extra round trips of a read", "0", extra.to_string(), extra == 0);
    Ok(())
}
