//! Virtual time, a store and coordinators on it.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Deadline, Runtime, SeededRng};
use mainstay_coordination::{Coordinator, Guard, Lock};
use mainstay_store::memory::{MemoryLeaseStore, MemoryRecordStore};
use mainstay_store::{LeaseStore, RecordStore};

pub(crate) const TTL: Duration = Duration::from_secs(10);

pub(crate) struct World {
    /// Every node draws other numbers.
    nodes: AtomicU64,
    pub(crate) clock: VirtualClock,
    pub(crate) store: MemoryLeaseStore,
    pub(crate) records: MemoryRecordStore,
}

/// Runs `test` in virtual time.
pub(crate) fn virtually<F: Future<Output = ()>>(test: impl FnOnce(World) -> F) {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    rt.block_on(async {
        let clock = VirtualClock::new();
        let store = MemoryLeaseStore::new(Arc::new(clock.clone()));
        let records = MemoryRecordStore::new(Arc::new(clock.clone()));
        test(World { nodes: AtomicU64::new(1), clock, store, records }).await;
    });
}

impl World {
    pub(crate) fn node(&self, owner: &str) -> Coordinator {
        self.node_on(Arc::new(self.store.clone()), self.clock.clone(), owner)
    }

    pub(crate) fn node_on(
        &self,
        store: Arc<dyn LeaseStore>,
        clock: VirtualClock,
        owner: &str,
    ) -> Coordinator {
        self.node_with(store, Arc::new(self.records.clone()), clock, owner)
    }

    pub(crate) fn node_with(
        &self,
        store: Arc<dyn LeaseStore>,
        records: Arc<dyn RecordStore>,
        clock: VirtualClock,
        owner: &str,
    ) -> Coordinator {
        let seed = self.nodes.fetch_add(1, Ordering::Relaxed) << 32;
        let rt = Runtime::on_tokio(Arc::new(clock), Arc::new(SeededRng::new(seed)));
        Coordinator::builder(store, rt).records(records).namespace("test").owner(owner).build().unwrap()
    }

    pub(crate) fn lock(&self, owner: &str, name: &str) -> Lock {
        self.node(owner).mutex(name).ttl(TTL).build().unwrap()
    }

    pub(crate) async fn held(&self, owner: &str, name: &str) -> Guard {
        self.lock(owner, name).acquire(self.within(60)).await.unwrap()
    }

    pub(crate) fn within(&self, seconds: u64) -> Deadline {
        Deadline::after(self.clock.now(), Duration::from_secs(seconds))
    }

    /// The owner that the store names, empty when it is free.
    pub(crate) async fn holder(&self, name: &str) -> String {
        let info = self.store.inspect(&format!("test/{name}")).await.unwrap();
        info.holders.first().map(|h| h.owner.clone()).unwrap_or_default()
    }

    /// Waits until nobody holds `name`, for at most a minute.
    pub(crate) async fn freed(&self, name: &str) {
        for _ in 0..6_000 {
            if self.holder(name).await.is_empty() {
                return;
            }
            self.clock.sleep(Duration::from_millis(10)).await;
        }
        panic!("`{name}` is still held by {}", self.holder(name).await);
    }
}
