//! A journal whose answers get lost: what it did, it did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_store::journal::{
    Append, Appended, AppendedWith, Audit, ClaimRequest, Claimed, Create, Created, Cursor, EventPage, Filter,
    Loaded, Page, PageCursor, Posted, PurgeRequest, Purged, PutDefinition, Reply, StatusCount, StoredAudit,
    StoredDefinition, Summary, TxWork, Uid,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, Journal, Outcome, Result};

/// Loses the answer of every `every`th write; the write itself is made.
#[derive(Debug)]
pub(crate) struct Lossy {
    pub(crate) inner: Arc<dyn Journal>,
    pub(crate) every: u32,
    pub(crate) writes: AtomicU32,
    /// Lets a second pass between a creation and its answer.
    pub(crate) slow_create: Option<Arc<dyn Clock>>,
}

impl Lossy {
    fn answer<T>(&self, result: Result<T>) -> Result<T> {
        let n = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        if n.is_multiple_of(self.every) {
            return Err(
                Error::new(ErrorKind::Unavailable, "the answer was lost").with_outcome(Outcome::Unknown)
            );
        }
        result
    }
}

impl Journal for Lossy {
    fn create(&self, create: Create) -> BoxFuture<'_, Result<Created>> {
        Box::pin(async move {
            let created = self.inner.create(create).await;
            if let Some(clock) = &self.slow_create {
                clock.sleep(Duration::from_secs(1)).await;
            }
            self.answer(created)
        })
    }
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(async move { self.answer(self.inner.append(append).await) })
    }
    fn append_with(&self, append: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        self.inner.append_with(append, work)
    }
    fn post(&self, saga: &Uid, message: &str, kind: u16, bytes: Vec<u8>) -> BoxFuture<'_, Result<Posted>> {
        self.inner.post(saga, message, kind, bytes)
    }
    fn claim(&self, claim: ClaimRequest) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        self.inner.claim(claim)
    }
    fn renew_node(&self, node: &str, incarnation: u64, ttl: Duration) -> BoxFuture<'_, Result<bool>> {
        self.inner.renew_node(node, incarnation, ttl)
    }
    fn hand_back(&self, node: &str, incarnation: u64, sagas: &[Uid]) -> BoxFuture<'_, Result<()>> {
        self.inner.hand_back(node, incarnation, sagas)
    }
    fn load(&self, saga: &Uid) -> BoxFuture<'_, Result<Option<Loaded>>> {
        self.inner.load(saga)
    }
    fn find(&self, definition: &str, id: &str) -> BoxFuture<'_, Result<Option<Summary>>> {
        self.inner.find(definition, id)
    }
    fn query(
        &self,
        filter: &Filter,
        after: Option<&PageCursor>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page>> {
        self.inner.query(filter, after, limit)
    }
    fn counts(&self) -> BoxFuture<'_, Result<Vec<StatusCount>>> {
        self.inner.counts()
    }
    fn purge(&self, purge: PurgeRequest) -> BoxFuture<'_, Result<Purged>> {
        self.inner.purge(purge)
    }
    fn put_definition(&self, definition: StoredDefinition) -> BoxFuture<'_, Result<PutDefinition>> {
        self.inner.put_definition(definition)
    }
    fn definitions(&self) -> BoxFuture<'_, Result<Vec<StoredDefinition>>> {
        self.inner.definitions()
    }
    fn reply(&self, key: &str) -> BoxFuture<'_, Result<Option<Reply>>> {
        self.inner.reply(key)
    }
    fn events(&self, after: Option<&Cursor>, limit: usize) -> BoxFuture<'_, Result<EventPage>> {
        self.inner.events(after, limit)
    }
    fn last_cursor(&self) -> BoxFuture<'_, Result<Cursor>> {
        self.inner.last_cursor()
    }
    fn changed(&self, after: &Cursor) -> BoxFuture<'_, Result<()>> {
        self.inner.changed(after)
    }
    fn audit(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredAudit>>> {
        self.inner.audit(after, limit)
    }
    fn put_audit(&self, entry: Audit) -> BoxFuture<'_, Result<()>> {
        self.inner.put_audit(entry)
    }
}
