//! Leases in memory: the full contract.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_clock::Clock;

use crate::lease::table::Table;
use crate::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, LeaseStore, Released, Renewed, Since,
    Transferred, Watchers,
};
use crate::{BoxFuture, FencingToken, Result};

/// A [`LeaseStore`] in memory with every capability: exclusive, shared and permit leases, a line that is
/// served first come first served, annotations, transfer, break, watch. Clones share it.
///
/// Guarantees: as [`LeaseStore`]; tokens of all names come from one counter that only grows; nobody in line
/// is overtaken, whatever the share. A place in line ends `ttl` after it was last asked for, so a waiter
/// that died holds up the line that long at most. Not guaranteed: anything beyond the life of the process
/// ([`Fencing::WhileStateSurvives`]).
///
/// ```
/// use mainstay_clock::SystemClock;
/// use mainstay_store::LeaseStore;
/// use mainstay_store::lease::{AcquireRequest, Acquired, Released};
/// use mainstay_store::memory::MemoryLeaseStore;
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let store = MemoryLeaseStore::new(Arc::new(SystemClock::new()));
/// let request = AcquireRequest::exclusive("nightly", "host-7", "op-1", Duration::from_secs(5));
/// let Acquired::Granted(grants) = store.acquire(request).await.unwrap() else { panic!("it is free") };
/// assert_eq!(grants[0].token.get(), 1);
/// assert_eq!(store.release("op-1").await.unwrap(), Released::Clean);
/// # });
/// ```
#[derive(Clone)]
pub struct MemoryLeaseStore(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<Table>,
    watchers: Watchers,
}

impl MemoryLeaseStore {
    /// An empty store on `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared { clock, state: Mutex::default(), watchers: Watchers::default() }))
    }

    /// A store of its own with the state of this moment; for simulations that lose state.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let state = Mutex::new(self.lock().clone());
        let clock = Arc::clone(&self.0.clock);
        Self(Arc::new(Shared { clock, state, watchers: Watchers::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applied when the future is first polled, as for a store that is asked.
    fn ask<'a, T: Send + 'a>(&'a self, f: impl FnOnce(&mut Table) -> T + Send + 'a) -> BoxFuture<'a, T> {
        Box::pin(async move {
            let (now, today) = (self.0.clock.now(), Since::store(self.0.clock.wall()));
            let (result, changed) = {
                let mut state = self.lock();
                state.tick(now);
                state.date(today);
                (f(&mut state), state.take_changed())
            };
            changed.iter().for_each(|name| self.0.watchers.fire(name));
            result
        })
    }
}

impl fmt::Debug for MemoryLeaseStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryLeaseStore").finish_non_exhaustive()
    }
}

impl LeaseStore for MemoryLeaseStore {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.ask(move |s| s.acquire(&request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op_id = op_id.to_owned();
        self.ask(move |s| Ok(s.renew(&op_id)))
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op_id = op_id.to_owned();
        self.ask(move |s| Ok(s.release(&op_id)))
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op_id = op_id.to_owned();
        self.ask(move |s| {
            s.leave(&op_id);
            Ok(())
        })
    }

    fn downgrade(&self, op_id: &str) -> BoxFuture<'_, Result<bool>> {
        let op_id = op_id.to_owned();
        self.ask(move |s| Ok(s.downgrade(&op_id)))
    }

    fn resize(&self, name: &str, limit: u32) -> BoxFuture<'_, Result<()>> {
        let name = name.to_owned();
        self.ask(move |s| s.resize(&name, limit))
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let name = name.to_owned();
        self.ask(move |s| Ok(s.annotate(&name, token, value)))
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let (name, to) = (name.to_owned(), to.to_owned());
        self.ask(move |s| Ok(s.transfer(&name, token, &to)))
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        self.ask(move |s| Ok(s.break_lease(&name)))
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        self.ask(move |s| Ok(s.inspect(&name)))
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        self.ask(move |s| Ok(s.list(&prefix, limit)))
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        self.0.watchers.watch(name)
    }

    fn guarantees(&self) -> Guarantees {
        let failover = "none: the state ends with the process";
        let mut guarantees = Guarantees::new(Fencing::WhileStateSurvives, "the clock it was given", failover);
        guarantees.fair = true;
        guarantees.min_ttl = Duration::from_millis(1);
        guarantees.recheck = Duration::MAX;
        guarantees.native =
            &["annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"];
        guarantees
    }
}
