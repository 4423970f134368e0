//! The in-memory implementations against the one suite.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_sim::conformance::{self, Cluster};
use mainstay_store::lease::{AcquireRequest, Acquired, Fencing, Line, Renewed, ToldBy};
use mainstay_store::memory::{
    MemoryCell, MemoryCluster, MemoryJournal, MemoryLeaseStore, MemoryNode, MemoryRecordStore,
};
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, TimelineSwitch, judge};
use mainstay_store::{BoxFuture, ErrorKind, Journal, LeaseStore, ReplicatedStore};

#[tokio::test(start_paused = true)]
async fn memory_journal_conforms() {
    let clock = VirtualClock::new();
    let make = || Arc::new(MemoryJournal::new(Arc::new(clock.clone()))) as Arc<dyn Journal>;
    let checks = conformance::journal(&make, &clock).await;
    println!("memory journal: {checks} checks");
    assert_eq!(checks, 22);
}

#[tokio::test(start_paused = true)]
async fn memory_leases_conform_in_every_section() {
    let clock = VirtualClock::new();
    let store = MemoryLeaseStore::new(Arc::new(clock.clone()));
    let sections = conformance::leases(&store, &clock).await;
    assert_eq!(conformance::since_when(&store, &clock).await, ToldBy::Store);
    println!("memory leases: {sections:?}");
    assert_eq!((sections.ran.len(), sections.refused.len()), (9, 0));
    assert_eq!(store.guarantees().fencing, Fencing::WhileStateSurvives);
}

#[tokio::test(start_paused = true)]
async fn memory_records_and_cell_conform() {
    let clock = VirtualClock::new();
    let store = MemoryRecordStore::new(Arc::new(clock.clone()));
    assert_eq!(conformance::records(&store, &clock).await, 6);
    assert_eq!(conformance::cell(&MemoryCell::new()).await, 1);
}

struct InMemory {
    cluster: MemoryCluster,
    primary: MemoryNode,
    replica: MemoryNode,
}

impl Cluster for InMemory {
    fn primary(&self) -> &dyn ReplicatedStore {
        &self.primary
    }

    fn replica(&self) -> &dyn ReplicatedStore {
        &self.replica
    }

    fn write(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.primary.write("k", b"v").await.unwrap()) })
    }

    fn hold_back(&self, held: bool) -> BoxFuture<'_, ()> {
        Box::pin(async move { self.cluster.set_cut(1, held).unwrap() })
    }

    fn fail_over(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { drop(self.cluster.fail_over(1).unwrap()) })
    }
}

fn cluster(clock: &VirtualClock, replicas: usize) -> MemoryCluster {
    MemoryCluster::new(Arc::new(clock.clone()), "db", replicas)
}

#[tokio::test(start_paused = true)]
async fn memory_cluster_conforms() {
    let clock = VirtualClock::new();
    let cluster = cluster(&clock, 1);
    let (primary, replica) = (cluster.primary(), cluster.node(1).unwrap());
    cluster.set_lag(1, Duration::from_secs(2)).unwrap();
    assert_eq!(conformance::replicated(&InMemory { cluster, primary, replica }).await, 4);
}

#[tokio::test(start_paused = true)]
async fn a_lagging_replica_is_waited_for_exactly_its_lag() {
    let clock = VirtualClock::new();
    let cluster = cluster(&clock, 1);
    cluster.set_lag(1, Duration::from_secs(30)).unwrap();
    let replica = cluster.node(1).unwrap();
    let mark = cluster.primary().write("k", b"v").await.unwrap();
    assert_eq!(replica.read("k").value, None);
    let start = clock.now();
    assert_eq!(replica.wait(&mark, Duration::from_secs(60)).await.unwrap(), Judgment::Satisfied);
    assert_eq!(clock.now().saturating_duration_since(start).as_secs(), 30);
    assert_eq!(replica.read("k").value.as_deref(), Some(&b"v"[..]));
    let write = replica.write("k", b"w").await.unwrap_err();
    assert_eq!(write.kind(), ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn after_a_failover_the_old_primary_shows_its_own_history_until_it_rejoins() {
    let clock = VirtualClock::new();
    let cluster = cluster(&clock, 2);
    let old = cluster.primary();
    old.write("k", b"1").await.unwrap();
    cluster.set_cut(1, true).unwrap();
    let lost = old.write("k", b"2").await.unwrap();
    cluster.fail_over(1).unwrap();
    // Node 2 had seen the lost write: it stays behind on the old history, like the old primary.
    for node in [0, 2] {
        let node = cluster.node(node).unwrap();
        assert_eq!(judge(&lost, &node.observe().await.unwrap()), Judgment::Satisfied);
    }
    let fresh = cluster.primary().write("k", b"3").await.unwrap();
    for node in [0, 2] {
        cluster.rejoin(node).unwrap();
        let node = cluster.node(node).unwrap();
        assert_eq!(judge(&lost, &node.observe().await.unwrap()), Judgment::Lost);
        assert_eq!(node.wait(&fresh, Duration::ZERO).await.unwrap(), Judgment::Satisfied);
        assert_eq!(node.read("k").value.as_deref(), Some(&b"3"[..]));
    }
}

/// Dropped before its first poll it did nothing; dropped after, it may have: the op id finds out.
#[tokio::test(start_paused = true)]
async fn cancel_safety_of_acquire() {
    let clock = VirtualClock::new();
    let store = MemoryLeaseStore::new(Arc::new(clock.clone()));
    let request = AcquireRequest::exclusive("a", "me", "op", Duration::from_secs(5));
    drop(store.acquire(request.clone()));
    assert!(store.inspect("a").await.unwrap().holders.is_empty());
    let mut call = store.acquire(request.clone());
    let polled = futures_util::poll!(call.as_mut());
    drop(call);
    assert!(polled.is_ready());
    let Acquired::Granted(grants) = store.acquire(request).await.unwrap() else { panic!("it is ours") };
    assert_eq!(grants[0].token.get(), 1, "the same grant, not a second one");
}

#[tokio::test(start_paused = true)]
async fn several_names_wait_for_each_other_without_overtaking_or_deadlock() {
    let clock = VirtualClock::new();
    let store = MemoryLeaseStore::new(Arc::new(clock.clone()));
    let both = |op: &str| AcquireRequest {
        names: vec!["a".to_owned(), "b".to_owned()],
        line: Line::Join,
        ..AcquireRequest::exclusive("a", op, op, Duration::from_secs(60))
    };
    let one = |name: &str, op: &str| AcquireRequest {
        line: Line::Join,
        ..AcquireRequest::exclusive(name, op, op, Duration::from_secs(60))
    };
    assert!(matches!(store.acquire(one("b", "b1")).await.unwrap(), Acquired::Granted(_)));
    assert!(matches!(store.acquire(both("ab")).await.unwrap(), Acquired::Queued { position: Some(0), .. }));
    // `a` is free, but promised to who came first.
    assert!(matches!(
        store.acquire(one("a", "a1")).await.unwrap(),
        Acquired::Queued { position: Some(1), .. }
    ));
    store.release("b1").await.unwrap();
    assert!(matches!(store.acquire(both("ab")).await.unwrap(), Acquired::Granted(g) if g.len() == 2));
    // A break of one name costs the whole acquisition.
    store.break_lease("b").await.unwrap();
    assert_eq!(store.renew("ab").await.unwrap(), Renewed::Broken);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_a_store_of_its_own() {
    let clock = VirtualClock::new();
    let store = MemoryLeaseStore::new(Arc::new(clock.clone()));
    let request = AcquireRequest::exclusive("a", "me", "op", Duration::from_secs(5));
    store.acquire(request).await.unwrap();
    let copy = store.snapshot();
    store.release("op").await.unwrap();
    assert_eq!(copy.inspect("a").await.unwrap().holders.len(), 1);
    assert!(store.inspect("a").await.unwrap().holders.is_empty());
}

/// Found by simulation: a replica that follows the new history without having replayed up to the switch, and
/// a second failover that cuts deeper than the first, were both taken for replicas that have the write.
#[test]
fn a_history_that_kept_a_write_is_no_replica_that_has_it() {
    let mark = |timeline: &str, n| Mark {
        system: "db".to_owned(),
        timeline: timeline.to_owned(),
        position: Position::Counter(n),
    };
    let switch = |from: &str, n, to: &str| TimelineSwitch {
        timeline: from.to_owned(),
        position: Position::Counter(n),
        next: to.to_owned(),
    };
    let first = vec![switch("1", 5, "2")];
    assert_eq!(judge(&mark("1", 4), &Observed::new(mark("2", 3), first.clone())), Judgment::Behind);
    assert_eq!(judge(&mark("1", 4), &Observed::new(mark("2", 4), first.clone())), Judgment::Satisfied);
    let deeper = vec![switch("1", 5, "2"), switch("2", 3, "3")];
    assert_eq!(judge(&mark("1", 4), &Observed::new(mark("3", 9), deeper.clone())), Judgment::Lost);
    assert_eq!(judge(&mark("1", 3), &Observed::new(mark("3", 9), deeper)), Judgment::Satisfied);
}
