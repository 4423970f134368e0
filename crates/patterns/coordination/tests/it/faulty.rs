//! A lease store whose answers get lost, hang or fail, as told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_store::lease::{AcquireRequest, Acquired, Guarantees, LeaseInfo, Released, Renewed};
use mainstay_store::memory::{MemoryLeaseStore, MemoryRecordStore};
use mainstay_store::{
    BoxFuture, Error, ErrorKind, FencingToken, LeaseStore, Outcome, PutIf, RecordStore, Result,
    VersionedRecord,
};
use tokio::sync::Notify;

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Done, and the caller never hears of it.
    AppliedThenHangs,
    /// Done, and the caller hears of it when [`Faulty::held_answers`] is told to let it through.
    AppliedThenHeld,
    /// Done, and the caller is told that nobody knows.
    AppliedThenUnknown,
    /// Not done, and the store says what is wrong with it.
    Fails(ErrorKind),
    /// Not done, and nothing is answered.
    Hangs,
    /// Not done, and the caller is told so.
    Refused,
    /// Done when [`Faulty::held_answers`] is told to let it through, and answered then.
    Waits,
}

#[derive(Debug)]
pub(crate) struct Faulty {
    inner: MemoryLeaseStore,
    acquire: Mutex<Vec<Fault>>,
    pub(crate) held_answers: Notify,
    renew_hangs: AtomicBool,
    declared: Guarantees,
    annotations_held: AtomicBool,
    pub(crate) renewals: AtomicU64,
    pub(crate) questions: AtomicU64,
}

impl Faulty {
    pub(crate) fn new(inner: MemoryLeaseStore) -> Arc<Self> {
        let declared = inner.guarantees();
        Self::declaring(inner, declared)
    }

    /// One that declares other things than it can do.
    pub(crate) fn declaring(inner: MemoryLeaseStore, declared: Guarantees) -> Arc<Self> {
        Arc::new(Self {
            inner,
            declared,
            acquire: Mutex::default(),
            held_answers: Notify::new(),
            renew_hangs: AtomicBool::new(false),
            annotations_held: AtomicBool::new(false),
            renewals: AtomicU64::new(0),
            questions: AtomicU64::new(0),
        })
    }

    /// The next acquisitions meet these, first one first.
    pub(crate) fn acquisitions(&self, mut faults: Vec<Fault>) {
        faults.reverse();
        *self.acquire.lock().unwrap() = faults;
    }

    /// Annotations are done, and answered when [`Faulty::held_answers`] is told to let them through.
    pub(crate) fn hold_annotations(&self) {
        self.annotations_held.store(true, Ordering::Relaxed);
    }

    pub(crate) fn hang_renewals(&self, hang: bool) {
        self.renew_hangs.store(hang, Ordering::Relaxed);
    }
}

fn failed(outcome: Outcome) -> Error {
    Error::new(ErrorKind::Unavailable, "cut off").with_outcome(outcome)
}

impl LeaseStore for Faulty {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        let fault = self.acquire.lock().unwrap().pop();
        Box::pin(async move {
            match fault {
                None => self.inner.acquire(request).await,
                Some(Fault::Refused) => Err(failed(Outcome::NotApplied)),
                Some(Fault::Fails(kind)) => Err(Error::new(kind, "it says so itself")),
                Some(Fault::Hangs) => std::future::pending().await,
                Some(Fault::AppliedThenUnknown) => {
                    self.inner.acquire(request).await?;
                    Err(failed(Outcome::Unknown))
                }
                Some(Fault::AppliedThenHeld) => {
                    let answer = self.inner.acquire(request).await;
                    self.held_answers.notified().await;
                    answer
                }
                Some(Fault::Waits) => {
                    self.held_answers.notified().await;
                    self.inner.acquire(request).await
                }
                Some(Fault::AppliedThenHangs) => {
                    self.inner.acquire(request).await?;
                    std::future::pending().await
                }
            }
        })
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        self.renewals.fetch_add(1, Ordering::Relaxed);
        if self.renew_hangs.load(Ordering::Relaxed) {
            return Box::pin(std::future::pending());
        }
        self.inner.renew(op_id)
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.inner.release(op_id)
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        self.inner.leave(op_id)
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.inner.inspect(name)
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let done = self.inner.annotate(name, token, value);
        if !self.annotations_held.load(Ordering::Relaxed) {
            return done;
        }
        Box::pin(async move {
            let answer = done.await;
            self.held_answers.notified().await;
            answer
        })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        self.inner.break_lease(name)
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        self.inner.list(prefix, limit)
    }

    fn guarantees(&self) -> Guarantees {
        self.declared.clone()
    }
}

/// Records whose next write is done while its writer is told that nobody knows, and told so late.
#[derive(Debug)]
pub(crate) struct LostWrite {
    inner: MemoryRecordStore,
    armed: AtomicBool,
    /// Lets that answer through.
    pub(crate) answer: Notify,
}

impl LostWrite {
    pub(crate) fn new(inner: MemoryRecordStore) -> Arc<Self> {
        Arc::new(Self { inner, armed: AtomicBool::new(true), answer: Notify::new() })
    }
}

impl RecordStore for LostWrite {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        self.inner.get(key)
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let written = self.inner.put_if(key, expected, value, ttl);
        if !self.armed.swap(false, Ordering::Relaxed) {
            return written;
        }
        Box::pin(async move {
            written.await?;
            self.answer.notified().await;
            Err(failed(Outcome::Unknown))
        })
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        self.inner.delete_if(key, expected)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        self.inner.list(prefix, after, limit)
    }
}

/// A store that can be replaced under its users.
#[derive(Debug)]
pub(crate) struct Swap(Mutex<MemoryLeaseStore>);

impl Swap {
    pub(crate) fn new(store: MemoryLeaseStore) -> Arc<Self> {
        Arc::new(Self(Mutex::new(store)))
    }

    pub(crate) fn replace(&self, store: MemoryLeaseStore) {
        *self.0.lock().unwrap() = store;
    }

    fn now(&self) -> MemoryLeaseStore {
        self.0.lock().unwrap().clone()
    }
}

impl LeaseStore for Swap {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        let store = self.now();
        Box::pin(async move { store.acquire(request).await })
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let (store, op_id) = (self.now(), op_id.to_owned());
        Box::pin(async move { store.renew(&op_id).await })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let (store, op_id) = (self.now(), op_id.to_owned());
        Box::pin(async move { store.release(&op_id).await })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let (store, name) = (self.now(), name.to_owned());
        Box::pin(async move { store.inspect(&name).await })
    }

    fn guarantees(&self) -> Guarantees {
        self.now().guarantees()
    }
}
