//! A journal that cuts its caller off at the k-th append.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mainstay_store::journal::{
    Append, Appended, AppendedWith, Audit, ClaimRequest, Claimed, Create, Created, Cursor, EventPage, Filter,
    Loaded, Page, PageCursor, Posted, PurgeRequest, Purged, PutDefinition, Reply, StatusCount, StoredAudit,
    StoredDefinition, Summary, TxWork, Uid,
};
use mainstay_store::memory::MemoryJournal;
use mainstay_store::{BoxFuture, Journal, Result};

use super::plan::Stop;
use super::probe::Control;

/// The journal of one run.
pub(super) struct CutJournal {
    pub(super) inner: MemoryJournal,
    pub(super) control: Arc<Control>,
}

impl CutJournal {
    /// A write of records, with the cuts around it.
    async fn cut<T>(&self, write: impl Future<Output = Result<T>>) -> Result<T> {
        let k = self.control.appends.fetch_add(1, Ordering::AcqRel) + 1;
        if self.control.cuts(Stop::CrashBefore(k)) {
            self.control.cut.notify_one();
            std::future::pending::<()>().await;
        }
        let result = write.await;
        if self.control.cuts(Stop::CrashAfter(k)) {
            self.control.cut.notify_one();
            std::future::pending::<()>().await;
        }
        if self.control.cuts(Stop::FreezeAfter(k)) {
            self.control.cut.notify_one();
            // The process is frozen before it is polled again.
            tokio::task::yield_now().await;
        }
        result
    }
}

impl fmt::Debug for CutJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CutJournal").finish_non_exhaustive()
    }
}

impl Journal for CutJournal {
    fn create(&self, create: Create) -> BoxFuture<'_, Result<Created>> {
        Box::pin(self.cut(self.inner.create(create)))
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended>> {
        Box::pin(self.cut(self.inner.append(append)))
    }

    fn append_with(&self, append: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        Box::pin(self.cut(self.inner.append_with(append, work)))
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
