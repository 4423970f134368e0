//! The stores as a node sees them: every call through a [`Link`].

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::journal::{
    Append, Appended, AppendedWith, Audit, ClaimRequest, Claimed, Create, Created, Cursor, EventPage, Filter,
    Loaded, Page, PageCursor, Post, Posted, PurgeRequest, Purged, PutDefinition, Reply, StatusCount,
    StoredAudit, StoredDefinition, Summary, TxWork, Uid,
};
use mainstay_store::lease::{
    AcquireRequest, Acquired, Guarantees, LeaseInfo, Released, Renewed, Transferred,
};
use mainstay_store::memory::MemoryLeaseStore;
use mainstay_store::{
    BoxFuture, FencingToken, Journal, LeaseStore, PutIf, RecordStore, Result, VersionedRecord,
};

use super::link::Link;
use super::world::World;

/// Leases through the network: those of the world, or of a store that the scenario brought.
#[derive(Debug)]
pub(super) struct FaultyLeases(pub(super) Link, pub(super) Option<Arc<dyn LeaseStore>>);

fn leases(world: &World) -> MemoryLeaseStore {
    world.0.backend.leases.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

impl FaultyLeases {
    fn store(&self) -> Arc<dyn LeaseStore> {
        self.1.clone().unwrap_or_else(|| Arc::new(leases(&self.0.world)))
    }

    fn ask<'a, T: Send + 'static>(
        &'a self,
        f: impl Fn(Arc<dyn LeaseStore>) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        let (world, own) = (self.0.world.clone(), self.1.clone());
        // Looked up when it is applied: a failover may have replaced the store meanwhile.
        Box::pin(self.0.call(move || f(own.clone().unwrap_or_else(|| Arc::new(leases(&world))))))
    }
}

impl LeaseStore for FaultyLeases {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.ask(move |s| {
            let request = request.clone();
            Box::pin(async move { s.acquire(request).await })
        })
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op_id = op_id.to_owned();
        self.ask(move |s| {
            let op_id = op_id.clone();
            Box::pin(async move { s.renew(&op_id).await })
        })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op_id = op_id.to_owned();
        self.ask(move |s| {
            let op_id = op_id.clone();
            Box::pin(async move { s.release(&op_id).await })
        })
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op_id = op_id.to_owned();
        self.ask(move |s| {
            let op_id = op_id.clone();
            Box::pin(async move { s.leave(&op_id).await })
        })
    }

    fn downgrade(&self, op_id: &str) -> BoxFuture<'_, Result<bool>> {
        let op_id = op_id.to_owned();
        self.ask(move |s| {
            let op_id = op_id.clone();
            Box::pin(async move { s.downgrade(&op_id).await })
        })
    }

    fn resize(&self, name: &str, limit: u32) -> BoxFuture<'_, Result<()>> {
        let name = name.to_owned();
        self.ask(move |s| {
            let name = name.clone();
            Box::pin(async move { s.resize(&name, limit).await })
        })
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let name = name.to_owned();
        self.ask(move |s| {
            let (name, value) = (name.clone(), value.clone());
            Box::pin(async move { s.annotate(&name, token, value).await })
        })
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let (name, to) = (name.to_owned(), to.to_owned());
        self.ask(move |s| {
            let (name, to) = (name.clone(), to.clone());
            Box::pin(async move { s.transfer(&name, token, &to).await })
        })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        self.ask(move |s| {
            let name = name.clone();
            Box::pin(async move { s.break_lease(&name).await })
        })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        self.ask(move |s| {
            let name = name.clone();
            Box::pin(async move { s.inspect(&name).await })
        })
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        self.ask(move |s| {
            let prefix = prefix.clone();
            Box::pin(async move { s.list(&prefix, limit).await })
        })
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        let (store, name) = (self.store(), name.to_owned());
        Box::pin(self.0.hint(Box::pin(async move { store.watch(&name).await })))
    }

    fn guarantees(&self) -> Guarantees {
        self.store().guarantees()
    }
}

/// Records through the network.
#[derive(Debug)]
pub(super) struct FaultyRecords(pub(super) Link);

impl RecordStore for FaultyRecords {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        let store = self.0.world.records();
        Box::pin(self.0.call(move || {
            let store = store.clone();
            Box::pin(async move { store.now().await })
        }))
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        let (store, key) = (self.0.world.records(), key.to_owned());
        Box::pin(self.0.call(move || {
            let (store, key) = (store.clone(), key.clone());
            Box::pin(async move { store.get(&key).await })
        }))
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let (store, key) = (self.0.world.records(), key.to_owned());
        Box::pin(self.0.call(move || {
            let (store, key, value) = (store.clone(), key.clone(), value.clone());
            Box::pin(async move { store.put_if(&key, expected, value, ttl).await })
        }))
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        let (store, key) = (self.0.world.records(), key.to_owned());
        Box::pin(self.0.call(move || {
            let (store, key) = (store.clone(), key.clone());
            Box::pin(async move { store.delete_if(&key, expected).await })
        }))
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (store, prefix, after) = (self.0.world.records(), prefix.to_owned(), after.map(str::to_owned));
        Box::pin(self.0.call(move || {
            let (store, prefix, after) = (store.clone(), prefix.clone(), after.clone());
            Box::pin(async move { store.list(&prefix, after.as_deref(), limit).await })
        }))
    }
}

/// The journal through the network.
#[derive(Debug)]
pub(super) struct FaultyJournal(pub(super) Link);

impl FaultyJournal {
    /// Asks the journal with a request that can be repeated.
    fn ask<'a, Q: Clone + Send + Sync + 'static, T: Send + 'static>(
        &'a self,
        request: Q,
        f: fn(Arc<dyn Journal>, Q) -> BoxFuture<'static, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        let journal: Arc<dyn Journal> = Arc::new(self.0.world.journal());
        Box::pin(self.0.call(move || f(Arc::clone(&journal), request.clone())))
    }
}

impl Journal for FaultyJournal {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        self.ask((), |j, ()| Box::pin(async move { j.now().await }))
    }

    fn create(&self, create: Create) -> BoxFuture<'_, Result<Created>> {
        self.ask(create, |j, q| Box::pin(async move { j.create(q).await }))
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended>> {
        self.ask(append, |j, q| Box::pin(async move { j.append(q).await }))
    }

    fn append_with(&self, append: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        // One-shot work cannot be repeated by the network: it goes straight through.
        let journal = self.0.world.journal();
        Box::pin(async move { journal.append_with(append, work).await })
    }

    fn post(&self, saga: &Uid, message: &str, kind: u16, bytes: Vec<u8>) -> BoxFuture<'_, Result<Posted>> {
        self.ask((saga.clone(), message.to_owned(), kind, bytes), |j, (saga, message, kind, bytes)| {
            Box::pin(async move { j.post(&saga, &message, kind, bytes).await })
        })
    }

    fn claim(&self, claim: ClaimRequest) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        self.ask(claim, |j, q| Box::pin(async move { j.claim(q).await }))
    }

    fn renew_node(&self, node: &str, incarnation: u64, ttl: Duration) -> BoxFuture<'_, Result<bool>> {
        self.ask((node.to_owned(), incarnation, ttl), |j, (node, incarnation, ttl)| {
            Box::pin(async move { j.renew_node(&node, incarnation, ttl).await })
        })
    }

    fn hand_back(&self, node: &str, incarnation: u64, sagas: &[Uid]) -> BoxFuture<'_, Result<()>> {
        self.ask((node.to_owned(), incarnation, sagas.to_vec()), |j, (node, incarnation, sagas)| {
            Box::pin(async move { j.hand_back(&node, incarnation, &sagas).await })
        })
    }

    fn load(&self, saga: &Uid) -> BoxFuture<'_, Result<Option<Loaded>>> {
        self.ask(saga.clone(), |j, q| Box::pin(async move { j.load(&q).await }))
    }

    fn summary<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Option<Summary>>> {
        self.ask(saga.clone(), |j, q| Box::pin(async move { j.summary(&q).await }))
    }

    fn inbox<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Vec<Post>>> {
        self.ask(saga.clone(), |j, q| Box::pin(async move { j.inbox(&q).await }))
    }

    fn find(&self, definition: &str, id: &str) -> BoxFuture<'_, Result<Option<Summary>>> {
        self.ask((definition.to_owned(), id.to_owned()), |j, (definition, id)| {
            Box::pin(async move { j.find(&definition, &id).await })
        })
    }

    fn query(
        &self,
        filter: &Filter,
        after: Option<&PageCursor>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page>> {
        self.ask((filter.clone(), after.cloned(), limit), |j, (filter, after, limit)| {
            Box::pin(async move { j.query(&filter, after.as_ref(), limit).await })
        })
    }

    fn counts(&self) -> BoxFuture<'_, Result<Vec<StatusCount>>> {
        self.ask((), |j, ()| Box::pin(async move { j.counts().await }))
    }

    fn purge(&self, purge: PurgeRequest) -> BoxFuture<'_, Result<Purged>> {
        self.ask(purge, |j, q| Box::pin(async move { j.purge(q).await }))
    }

    fn put_definition(&self, definition: StoredDefinition) -> BoxFuture<'_, Result<PutDefinition>> {
        self.ask(definition, |j, q| Box::pin(async move { j.put_definition(q).await }))
    }

    fn definitions(&self) -> BoxFuture<'_, Result<Vec<StoredDefinition>>> {
        self.ask((), |j, ()| Box::pin(async move { j.definitions().await }))
    }

    fn reply(&self, key: &str) -> BoxFuture<'_, Result<Option<Reply>>> {
        self.ask(key.to_owned(), |j, q| Box::pin(async move { j.reply(&q).await }))
    }

    fn events(&self, after: Option<&Cursor>, limit: usize) -> BoxFuture<'_, Result<EventPage>> {
        self.ask((after.copied(), limit), |j, (after, limit)| {
            Box::pin(async move { j.events(after.as_ref(), limit).await })
        })
    }

    fn last_cursor(&self) -> BoxFuture<'_, Result<Cursor>> {
        self.ask((), |j, ()| Box::pin(async move { j.last_cursor().await }))
    }

    fn changed(&self, after: &Cursor) -> BoxFuture<'_, Result<()>> {
        let (journal, after) = (self.0.world.journal(), *after);
        Box::pin(self.0.hint(Box::pin(async move { journal.changed(&after).await })))
    }

    fn audit(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredAudit>>> {
        self.ask((after, limit), |j, (after, limit)| Box::pin(async move { j.audit(after, limit).await }))
    }

    fn put_audit(&self, entry: Audit) -> BoxFuture<'_, Result<()>> {
        self.ask(entry, |j, q| Box::pin(async move { j.put_audit(q).await }))
    }
}
