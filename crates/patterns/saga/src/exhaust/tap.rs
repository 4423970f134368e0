//! A journal between the engine and another one, for tests: its writes can be held, cut off, or left without an
//! answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::journal::{
    Append, Appended, AppendedWith, Audit, ClaimRequest, Claimed, Create, Created, Cursor, EventPage, Filter,
    Loaded, Page, PageCursor, Post, Posted, PurgeRequest, Purged, PutDefinition, Reply, StatusCount,
    StoredAudit, StoredDefinition, Summary, TxWork, Uid,
};
use mainstay_store::{BoxFuture, Journal, Result};

/// A write that a [`Tap`] sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Write {
    /// Records of a saga under way.
    Append,
    /// Sagas are claimed.
    Claim,
    /// A saga is created.
    Create,
    /// Claims are given back.
    HandBack,
    /// A message is posted.
    Post,
    /// A node's claims are renewed.
    Renew,
}

/// What happens around the writes of a [`TapJournal`], and before a saga is read. The hooks do nothing by
/// default.
pub trait Tap: Send + Sync {
    /// Awaited before the write is made. A future that never ends is a write that never was.
    ///
    /// # Cancel safety
    /// Dropped with the write.
    fn before(&self, write: Write) -> BoxFuture<'_, ()> {
        let _ = write;
        Box::pin(async {})
    }

    /// Awaited before an append, after [`before`](Tap::before): for what concerns one saga only.
    ///
    /// # Cancel safety
    /// Dropped with the append.
    fn before_append<'a>(&'a self, append: &'a Append) -> BoxFuture<'a, ()> {
        let _ = append;
        Box::pin(async {})
    }

    /// Awaited before the log of a saga, or its row, is read.
    ///
    /// # Errors
    /// An error takes the place of the answer.
    ///
    /// # Cancel safety
    /// Dropped with the read.
    fn before_load(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    /// Awaited once the write is made, before its answer. A future that never ends is a caller that died with it.
    ///
    /// # Errors
    /// An error takes the place of the answer; the write stands.
    ///
    /// # Cancel safety
    /// Dropped with the answer; the write stands.
    fn after(&self, write: Write) -> BoxFuture<'_, Result<()>> {
        let _ = write;
        Box::pin(async { Ok(()) })
    }
}

/// A [`Journal`] that hands everything on to another one, with a [`Tap`] around its writes.
///
/// # Examples
/// ```
/// use std::sync::Arc;
///
/// use mainstay_clock::SystemClock;
/// use mainstay_saga::exhaust::{Tap, TapJournal, Write};
/// use mainstay_store::journal::{ClaimRequest, Claimant};
/// use mainstay_store::memory::MemoryJournal;
/// use mainstay_store::{BoxFuture, Error, ErrorKind, Journal, Outcome, Result};
///
/// /// Claims take effect, but nobody hears of it.
/// struct Deaf;
///
/// impl Tap for Deaf {
///     fn after(&self, write: Write) -> BoxFuture<'_, Result<()>> {
///         let lost = Error::new(ErrorKind::Unavailable, "lost").with_outcome(Outcome::Unknown);
///         Box::pin(async move { if write == Write::Claim { Err(lost) } else { Ok(()) } })
///     }
/// }
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let inner = Arc::new(MemoryJournal::new(Arc::new(SystemClock::new())));
/// let journal = TapJournal::new(inner, Arc::new(Deaf));
/// let claimant = Claimant { node: "a".to_owned(), incarnation: 1, ttl: std::time::Duration::from_secs(1) };
/// assert!(journal.claim(ClaimRequest { claimant, limit: 1 }).await.is_err());
/// # });
/// ```
pub struct TapJournal {
    inner: Arc<dyn Journal>,
    tap: Arc<dyn Tap>,
}

impl TapJournal {
    /// Puts `tap` between a caller and `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Journal>, tap: Arc<dyn Tap>) -> Self {
        Self { inner, tap }
    }

    fn tapped<'a, T: Send + 'a>(
        &'a self,
        kind: Write,
        write: BoxFuture<'a, Result<T>>,
    ) -> BoxFuture<'a, Result<T>> {
        Box::pin(async move {
            self.tap.before(kind).await;
            let answer = write.await;
            self.tap.after(kind).await?;
            answer
        })
    }
}

impl fmt::Debug for TapJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TapJournal").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Journal for TapJournal {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        self.inner.now()
    }

    fn create(&self, create: Create) -> BoxFuture<'_, Result<Created>> {
        self.tapped(Write::Create, self.inner.create(create))
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended>> {
        let write = async move {
            self.tap.before_append(&append).await;
            self.inner.append(append).await
        };
        self.tapped(Write::Append, Box::pin(write))
    }

    fn append_with(&self, append: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        self.tapped(Write::Append, self.inner.append_with(append, work))
    }

    fn post(&self, saga: &Uid, message: &str, kind: u16, bytes: Vec<u8>) -> BoxFuture<'_, Result<Posted>> {
        self.tapped(Write::Post, self.inner.post(saga, message, kind, bytes))
    }

    fn claim(&self, claim: ClaimRequest) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        self.tapped(Write::Claim, self.inner.claim(claim))
    }

    fn renew_node(&self, node: &str, incarnation: u64, ttl: Duration) -> BoxFuture<'_, Result<bool>> {
        self.tapped(Write::Renew, self.inner.renew_node(node, incarnation, ttl))
    }

    fn hand_back(&self, node: &str, incarnation: u64, sagas: &[Uid]) -> BoxFuture<'_, Result<()>> {
        self.tapped(Write::HandBack, self.inner.hand_back(node, incarnation, sagas))
    }

    fn load(&self, saga: &Uid) -> BoxFuture<'_, Result<Option<Loaded>>> {
        let saga = saga.clone();
        Box::pin(async move {
            self.tap.before_load().await?;
            self.inner.load(&saga).await
        })
    }

    fn summary<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Option<Summary>>> {
        Box::pin(async move {
            self.tap.before_load().await?;
            self.inner.summary(saga).await
        })
    }

    fn inbox<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Vec<Post>>> {
        self.inner.inbox(saga)
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
