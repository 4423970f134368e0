//! Ten thousand who wait: what they ask while nothing happens, and that each of them gets its turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, SystemClock};
use mainstay_store::lease::{
    AcquireRequest, Acquired, Guarantees, LeaseInfo, Released, Renewed, UNWATCHED, WATCHED,
};
use mainstay_store::memory::MemoryLeaseStore;
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, LeaseStore, Result};
use tokio::task::JoinSet;

use crate::world::virtually;

const WAITERS: u64 = 10_000;
const TTL: Duration = Duration::from_secs(60);

/// What a store does with its hints.
const TOLD: u8 = 0;
const LOST: u8 = 1;
const FAILING: u8 = 2;
/// Each watch resolves at once, though nothing happened.
const SPURIOUS: u8 = 3;

/// Counts every call, and may lose its hints.
#[derive(Debug)]
struct Counted {
    inner: MemoryLeaseStore,
    calls: AtomicU64,
    hints: AtomicU8,
    recheck: Duration,
}

impl Counted {
    fn new(inner: &MemoryLeaseStore, hints: u8, recheck: Duration) -> Arc<Self> {
        let (calls, hints) = (AtomicU64::new(0), AtomicU8::new(hints));
        Arc::new(Self { inner: inner.clone(), calls, hints, recheck })
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn count(&self) -> &MemoryLeaseStore {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed);
        assert!(calls < 1_000_000, "that is a loop without a pause");
        &self.inner
    }
}

impl LeaseStore for Counted {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.count().acquire(request)
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        self.count().renew(op_id)
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.count().release(op_id)
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        self.count().leave(op_id)
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        self.count().break_lease(name)
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.count().inspect(name)
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        self.count().list(prefix, limit)
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        match self.hints.load(Ordering::Relaxed) {
            TOLD => self.inner.watch(name),
            LOST => Box::pin(std::future::pending()),
            SPURIOUS => Box::pin(async { Ok(()) }),
            _ => Box::pin(async { Err(Error::new(ErrorKind::Unavailable, "the connection is gone")) }),
        }
    }

    fn guarantees(&self) -> Guarantees {
        let mut guarantees = self.inner.guarantees();
        guarantees.recheck = self.recheck;
        guarantees
    }
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    status.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4_096
}

async fn served(mut tasks: JoinSet<Released>) -> u64 {
    let mut served = 0;
    while let Some(done) = tasks.join_next().await {
        assert_eq!(done.unwrap(), Released::Clean);
        served += 1;
    }
    served
}

/// Ten thousand of one process wait for one name for ten minutes: one of them talks to the store.
#[test]
fn ten_thousand_waiters_of_one_name_ask_only_to_keep_one_place() {
    for fair in [false, true] {
        virtually(|w| async move {
            let holder = w.node("holder").mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
            let store = Counted::new(&w.store, TOLD, Duration::MAX);
            let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
            let lock = node.mutex("n").ttl(TTL);
            let lock = if fair { lock.fair() } else { lock }.build().unwrap();
            let future = lock.acquire(Deadline::NONE);
            let size = std::mem::size_of_val(&future);
            drop(future);
            let before = resident();
            let mut tasks = JoinSet::new();
            for _ in 0..WAITERS {
                let lock = lock.clone();
                tasks.spawn(
                    async move { lock.acquire(Deadline::NONE).await.unwrap().release().await.unwrap() },
                );
            }
            w.clock.sleep(Duration::from_secs(1)).await;
            let grown = resident().saturating_sub(before) / WAITERS;
            println!("fair: {fair}; a waiter: {grown} bytes of resident memory, its future {size} bytes");
            assert!(size < 8_192, "{size} bytes");
            let parked = store.calls();
            w.clock.sleep(Duration::from_secs(600)).await;
            // A fair place is kept each third of a ttl; else the holder's lease is asked after when it is due.
            let asked = store.calls() - parked;
            println!("fair: {fair}; {WAITERS} parked for ten minutes: {asked} calls of the store");
            assert!(asked <= 31, "{asked} calls in ten minutes");
            holder.release().await.unwrap();
            assert_eq!(served(tasks).await, WAITERS);
        });
    }
}

/// Ten thousand wait for a name each, so each talks to the store itself: nothing is asked while nothing is due, and
/// one hint is one question.
#[test]
fn ten_thousand_waiters_of_as_many_names_are_woken_by_their_own_release_alone() {
    virtually(|w| async move {
        let (holder, long) = (w.node("holder"), Duration::from_secs(3_600));
        let store = Counted::new(&w.store, TOLD, Duration::MAX);
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let mut held = Vec::new();
        let mut tasks = JoinSet::new();
        for n in 0..WAITERS {
            let name = format!("n{n}");
            held.push(holder.mutex(&name).ttl(long).build().unwrap().try_acquire().await.unwrap());
            let lock = node.mutex(&name).ttl(long).fair().build().unwrap();
            tasks.spawn(async move { lock.acquire(Deadline::NONE).await.unwrap().release().await.unwrap() });
        }
        w.clock.sleep(Duration::from_secs(1)).await;
        let parked = store.calls();
        assert_eq!(parked, WAITERS, "each asked once");
        w.clock.sleep(Duration::from_secs(1_000)).await;
        assert_eq!(store.calls(), parked, "nobody asks while nothing is due");
        for guard in held {
            guard.release().await.unwrap();
        }
        assert_eq!(served(tasks).await, WAITERS);
        // One question for each release, and its own release.
        assert_eq!(store.calls() - parked, 2 * WAITERS);
    });
}

/// A hint that never comes costs the time that the store declares, not the rest of the holder's lease.
#[test]
fn f15_a_lost_hint_costs_the_declared_time_and_a_failing_watch_a_second() {
    for (hints, recheck, most) in
        [(LOST, WATCHED, WATCHED), (LOST, UNWATCHED, UNWATCHED), (FAILING, WATCHED, UNWATCHED)]
    {
        for fair in [false, true] {
            virtually(|w| async move {
                let long = Duration::from_secs(3_600);
                let holder = w.node("h").mutex("n").ttl(long).build().unwrap().try_acquire().await.unwrap();
                let store = Counted::new(&w.store, hints, recheck);
                let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
                let lock = node.mutex("n").ttl(long);
                let lock = if fair { lock.fair() } else { lock }.build().unwrap();
                let mut waiter = JoinSet::new();
                waiter.spawn(async move { lock.acquire(Deadline::NONE).await.unwrap() });
                w.clock.sleep(Duration::from_secs(100)).await;
                let asked = store.calls();
                let bound = 2 * 100_000 / u64::try_from(most.as_millis()).unwrap() + 2;
                assert!(asked <= bound, "{asked} questions in 100 s, at most {bound}");
                let start = w.clock.now();
                holder.release().await.unwrap();
                let _guard = waiter.join_next().await.unwrap().unwrap();
                let waited = w.clock.now().saturating_duration_since(start);
                assert!(
                    waited <= most + Duration::from_millis(100),
                    "{waited:?} with hints {hints}, fair: {fair}"
                );
            });
        }
    }
}

/// Whoever watches looks at each hint, and hints may be spurious.
#[test]
fn a_store_whose_hints_say_nothing_is_not_asked_without_a_pause() {
    virtually(|w| async move {
        let store = Counted::new(&w.store, SPURIOUS, UNWATCHED);
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let election = node.election("e").ttl(TTL).build().unwrap();
        let mut watch = node.group("g").ttl(TTL).build().unwrap().watch();
        watch.next().await.unwrap();
        tokio::select! {
            biased;
            leader = election.changed(None) => panic!("{leader:?}"),
            event = watch.next() => panic!("{event:?}"),
            () = w.clock.sleep(Duration::from_secs(10)) => {}
        }
        let asked = store.calls();
        assert!(asked <= 250, "{asked} questions of two watchers in ten seconds");
    });
}

/// The timer that looks at suspends must not be a poll of the store, on the real clock as well.
#[tokio::test]
async fn a_thousand_real_waiters_cost_no_question_each() {
    let clock = Arc::new(SystemClock::new());
    let inner = MemoryLeaseStore::new(clock.clone());
    let store = Counted::new(&inner, TOLD, Duration::MAX);
    let rt = mainstay_clock::Runtime::system();
    let node = mainstay_coordination::Coordinator::builder(Arc::clone(&store) as Arc<dyn LeaseStore>, rt);
    let node = node.namespace("test").owner("a").build().unwrap();
    let lock = node.mutex("n").ttl(Duration::from_secs(3_600)).fair().build().unwrap();
    let first = lock.try_acquire().await.unwrap();
    let mut tasks = JoinSet::new();
    let limit = Deadline::after(clock.now(), Duration::from_secs(600));
    for _ in 0..1_000 {
        let lock = lock.clone();
        tasks.spawn(async move { lock.acquire(limit).await.unwrap().release().await.unwrap() });
    }
    while store.calls() < 2 {
        tokio::task::yield_now().await;
    }
    let parked = store.calls();
    first.release().await.unwrap();
    assert_eq!(served(tasks).await, 1_000);
    // Each asks, is told to wait for the one before it, asks again when that is gone, and releases.
    let calls = store.calls() - parked;
    assert!((2_000..=3_003).contains(&calls), "{calls}");
}
