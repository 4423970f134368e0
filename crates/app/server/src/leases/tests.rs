use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use mainstay_clock::{Clock, SeededRng, Sleep, SystemClock, Tick};
use mainstay_store::BoxFuture;
use mainstay_store::lease::Guarantees;
use mainstay_store::memory::{MemoryLeaseStore, MemoryRecordStore};

use super::*;

/// Grants at once and answers when the lease has run out.
#[derive(Debug)]
struct Slow(MemoryLeaseStore, Runtime);

impl LeaseStore for Slow {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(async move {
            let over = self.1.clock().now().saturating_add(request.ttl);
            let answer = self.0.acquire(request).await;
            self.1.clock().sleep_until(over).await;
            answer
        })
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        self.0.renew(op_id)
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.0.release(op_id)
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.0.inspect(name)
    }

    fn guarantees(&self) -> Guarantees {
        self.0.guarantees()
    }
}

fn ask(ttl: Duration) -> Ask {
    Ask {
        name: "default/x".to_owned(),
        owner: "a".to_owned(),
        op_id: "op".to_owned(),
        key: Some(Hash::of(b"key")),
        ttl,
        note: String::new(),
        wait: Duration::ZERO,
    }
}

#[tokio::test]
async fn if_w7_a_grant_that_comes_after_its_own_end_is_never_handed_out() {
    let rt = Runtime::system();
    let leases = Slow(MemoryLeaseStore::new(Arc::new(SystemClock::new())), rt.clone());
    let grants = Arc::new(MemoryRecordStore::new(Arc::new(SystemClock::new())));
    let desk = Arc::new(Desk::new(Arc::new(leases), Arc::clone(&grants) as _, rt));
    let refused = desk.take(&ask(Duration::from_millis(100))).await;
    assert!(matches!(refused, Err(Refused::Late)), "{refused:?}");
    let kept = grants.list(GRANTS, None, 10).await.unwrap();
    assert!(kept.is_empty(), "no token of it can be used: {kept:?}");
}

/// Lets the first release wait for a permit, and says when it does.
#[derive(Debug)]
struct Gated(MemoryLeaseStore, Arc<tokio::sync::Semaphore>, Arc<tokio::sync::Notify>);

impl LeaseStore for Gated {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.0.acquire(request)
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        self.0.renew(op_id)
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op_id = op_id.to_owned();
        Box::pin(async move {
            self.2.notify_one();
            let _permit = self.1.acquire().await;
            self.0.leave(&op_id).await
        })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.0.release(op_id)
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.0.inspect(name)
    }

    fn guarantees(&self) -> Guarantees {
        self.0.guarantees()
    }
}

#[tokio::test]
async fn cleaning_up_after_a_request_takes_nothing_from_its_repetition() {
    let rt = Runtime::system();
    let (gate, cleans) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(tokio::sync::Notify::new()));
    let leases = MemoryLeaseStore::new(Arc::new(SystemClock::new()));
    let leases = Arc::new(Gated(leases, Arc::clone(&gate), Arc::clone(&cleans)));
    let grants = Arc::new(MemoryRecordStore::new(Arc::new(SystemClock::new())));
    let desk = Arc::new(Desk::new(Arc::clone(&leases) as _, grants, rt));
    let ask = ask(Duration::from_secs(60));
    // The first request was granted and went away before it was answered.
    let lost = desk.store.acquire(AcquireRequest::exclusive(&ask.name, &ask.owner, &ask.op_id, ask.ttl));
    assert!(matches!(lost.await.unwrap(), Acquired::Granted(_)));
    drop(GivenUp { desk: Arc::clone(&desk), ask: Some((ask.clone(), Round::default())) });
    cleans.notified().await;
    // Its repetition comes in the middle of the cleaning: it waits for that, and has what nobody takes away.
    let again = Ask { wait: Duration::from_secs(30), ..ask.clone() };
    let (taken, ()) = tokio::join!(desk.take(&again), async { gate.add_permits(1) });
    let taken = taken.unwrap();
    gate.add_permits(100);
    let held = desk.inspect(&ask.name).await.unwrap();
    assert_eq!(held.holders.len(), 1);
    assert_eq!(held.holders[0].token, taken.token);
    assert!(desk.renew(&ask.name, taken.token).await.is_ok());
    // And the other way: who was told keeps it, whatever goes away then.
    drop(GivenUp { desk: Arc::clone(&desk), ask: Some((ask.clone(), Round { n: 1, told: false })) });
    assert!(!desk.give_up(&ask, Round { n: 1, told: false }).await.unwrap());
    assert!(desk.renew(&ask.name, taken.token).await.is_ok());
}

#[tokio::test]
async fn a_release_is_remembered_for_a_while_and_a_later_grant_stays() {
    let rt = Runtime::system();
    let leases = Arc::new(MemoryLeaseStore::new(Arc::new(SystemClock::new())));
    let grants = Arc::new(MemoryRecordStore::new(Arc::new(SystemClock::new())));
    let desk = Arc::new(Desk::new(leases, grants, rt));
    let first = desk.take(&ask(Duration::from_secs(60))).await.unwrap().token;
    assert_eq!(desk.give_back("default/x", first).await.unwrap(), Released::Clean);
    assert_eq!(desk.give_back("default/x", first).await.unwrap(), Released::Clean, "the same answer");
    let other = Ask { op_id: "op2".to_owned(), ..ask(Duration::from_secs(60)) };
    assert!(matches!(desk.take(&other).await, Err(Refused::Reused)), "the key stands for the first one");
    let other = Ask { key: Some(Hash::of(b"other")), ..other };
    let second = desk.take(&other).await.unwrap().token;
    assert!(matches!(desk.give_back("default/x", first).await, Err(Refused::Gone)));
    assert_eq!(desk.renew("default/x", second).await.unwrap().token, second);
}

/// A clock that only the test moves.
#[derive(Debug, Default)]
struct ByHand(AtomicU64);

impl Clock for ByHand {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> WallTime {
        WallTime::from_unix_millis(i64::try_from(self.0.load(Ordering::SeqCst) / 1_000_000).unwrap())
    }

    fn tick(&self) -> Tick {
        Tick::system()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        self.0.fetch_max(deadline.as_nanos(), Ordering::SeqCst);
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test]
async fn grants_that_are_neither_renewed_nor_released_leave_nothing_and_renewed_ones_stay() {
    let clock = Arc::new(ByHand::default());
    let rt = Runtime::on_tokio(Arc::clone(&clock) as _, Arc::new(SeededRng::new(1)));
    let leases = Arc::new(MemoryLeaseStore::new(Arc::clone(&clock) as _));
    let grants = Arc::new(MemoryRecordStore::new(Arc::clone(&clock) as _));
    let desk = Arc::new(Desk::new(leases, Arc::clone(&grants) as _, rt));
    for n in 0..50 {
        let name = format!("default/{n}");
        let ask = ask(Duration::from_secs(60));
        desk.take(&Ask { name, op_id: n.to_string(), key: None, ..ask }).await.unwrap();
    }
    let once = Ask { key: None, ..ask(Duration::from_secs(60)) };
    let renewed = desk.take(&once).await.unwrap().token;
    for _ in 0..100 {
        clock.sleep(Duration::from_secs(40)).await;
        desk.renew("default/x", renewed).await.unwrap();
    }
    let left = grants.list(GRANTS, None, 100).await.unwrap();
    assert_eq!(left.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(), ["http-lease/default/x"]);
    assert!(left[0].version < 70, "not every renewal writes: {}", left[0].version);
}

/// Knows of an operation only what this process asked, as stores do whose servers keep no operations, and shows what it was
/// asked for.
#[derive(Debug)]
struct Forgetful(MemoryLeaseStore, Mutex<BTreeMap<String, String>>);

impl LeaseStore for Forgetful {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.1.lock().unwrap().insert(request.op_id.clone(), request.note.clone());
        self.0.acquire(request)
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        match self.1.lock().unwrap().contains_key(op_id) {
            true => self.0.renew(op_id),
            false => Box::pin(async { Ok(Renewed::Lost) }),
        }
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.0.release(op_id)
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.0.inspect(name)
    }

    fn guarantees(&self) -> Guarantees {
        self.0.guarantees()
    }
}

/// Why it is held was lost with the first renewal after a restart.
#[tokio::test]
async fn a_lease_that_is_taken_up_after_a_restart_keeps_its_note() {
    let leases = Arc::new(Forgetful(MemoryLeaseStore::new(Arc::new(SystemClock::new())), Mutex::default()));
    let grants = Arc::new(MemoryRecordStore::new(Arc::new(SystemClock::new())));
    let desk = Arc::new(Desk::new(Arc::clone(&leases) as _, grants, Runtime::system()));
    let noted = Ask { note: "moving the table".to_owned(), ..ask(Duration::from_secs(60)) };
    let token = desk.take(&noted).await.unwrap().token;
    let asked = std::mem::take(&mut *leases.1.lock().unwrap());
    assert_eq!(desk.renew("default/x", token).await.unwrap().token, token);
    assert_eq!(*leases.1.lock().unwrap(), asked, "the same operation with the same note");
}
