//! The saga log: appends under a claim epoch, an inbox, definitions, queries and an event stream.

mod calendar;
mod types;

use std::any::Any;
use std::fmt;

pub use calendar::Calendar;
pub use types::*;

use mainstay_clock::WallTime;

use crate::{BoxFuture, Error, ErrorKind, Result};

/// Work that runs inside the transaction of an append, on the driver's own transaction type.
///
/// The work returns the records to append after it ran (typically the step's output), or an error that
/// rolls back its effects and the append. It runs at most once per call.
#[allow(clippy::exhaustive_enums, reason = "drivers are synchronous or asynchronous")]
pub enum TxWork {
    /// For asynchronous drivers.
    Async(AsyncWork),
    /// For synchronous drivers: runs on the writer, so it must be short.
    Sync(SyncWork),
}

/// Synchronous [`TxWork`]. The argument is the backend's transaction type behind `Any`.
pub type SyncWork = Box<dyn FnOnce(&mut dyn Any) -> TxResult + Send>;

/// Asynchronous [`TxWork`].
pub type AsyncWork = Box<dyn for<'t> FnOnce(&'t mut (dyn Any + Send)) -> BoxFuture<'t, TxResult> + Send>;

/// What transactional work answers: the records to append with it, or why it must be rolled back.
pub type TxResult = std::result::Result<Vec<NewRecord>, Box<dyn std::error::Error + Send + Sync>>;

impl fmt::Debug for TxWork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Async(_) => "TxWork::Async",
            Self::Sync(_) => "TxWork::Sync",
        })
    }
}

/// The saga log.
///
/// Guarantees: an append is one transaction, conditional on the claim epoch and the next sequence number,
/// both evaluated where it inserts; an answered append is as durable as the implementation says; no event
/// ever appears behind an issued [`Cursor`]. The journal checks sequence, epoch and size; whether a record
/// is *legal* is the caller's business.
///
/// Time (`due`, claims) is the store's clock. Callers compute due times from [`now`](Journal::now), not from
/// the clock of their own machine.
pub trait Journal: Send + Sync + fmt::Debug {
    /// The store's time now: the clock that judges when a saga is due, when claims end and what is past its
    /// retention. `None` from a store that does not tell; its callers must then trust their own clock.
    ///
    /// # Errors
    /// When the store fails.
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(None) })
    }

    /// Creates a saga, claimed by `create.owner` when given. Idempotent by (definition, id) and by
    /// idempotency key.
    ///
    /// # Errors
    /// When the store fails; [`Error::outcome`] says whether it happened. Repeating is safe.
    ///
    /// # Cancel safety
    /// A dropped future may have created the saga.
    fn create(&self, create: Create) -> BoxFuture<'_, Result<Created>>;

    /// Appends records, replaces the row, drains posts, all in one transaction. While a post waits that it neither
    /// drains nor has [`seen`](Append::seen), the saga is due at once: a holder that dies now leaves no message asleep.
    /// One without records that changes the status has a place of its own in the event stream.
    ///
    /// # Errors
    /// When the store fails. With outcome `Unknown` reload the saga before going on.
    ///
    /// # Cancel safety
    /// A dropped future may have appended.
    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended>>;

    /// Like [`append`](Journal::append), with work in the same transaction: epoch and sequence are checked,
    /// the work runs, its records follow those of `append`.
    ///
    /// # Errors
    /// `Unsupported` by default.
    fn append_with(&self, append: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        let _ = (append, work);
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "this journal has no transactional work")) })
    }

    /// Puts a message into a saga's inbox and makes it due. Unfenced, idempotent by `message`; to repeat one that still
    /// waits makes the saga due again.
    ///
    /// # Errors
    /// When the store fails.
    fn post(&self, saga: &Uid, message: &str, kind: u16, bytes: Vec<u8>) -> BoxFuture<'_, Result<Posted>>;

    /// Claims up to `limit` due sagas that nobody holds; each claim raises the saga's epoch and strike
    /// counter and puts it behind the other due ones. An append clears the strikes, and so does
    /// [`hand_back`](Journal::hand_back): what is left are claims whose holder vanished.
    ///
    /// # Errors
    /// [`ErrorKind::ApiMisuse`] when a newer incarnation of `node` is known.
    fn claim(&self, claim: ClaimRequest) -> BoxFuture<'_, Result<Vec<Claimed>>>;

    /// Keeps every claim of the node. False when a newer incarnation took its name.
    ///
    /// # Errors
    /// When the store fails.
    fn renew_node(
        &self,
        node: &str,
        incarnation: u64,
        ttl: std::time::Duration,
    ) -> BoxFuture<'_, Result<bool>>;

    /// Gives claims back, so that any node may take them at once, and clears their strikes: a holder that can
    /// say so did not die of them.
    ///
    /// # Errors
    /// When the store fails.
    fn hand_back(&self, node: &str, incarnation: u64, sagas: &[Uid]) -> BoxFuture<'_, Result<()>>;

    /// A saga with all its records and undrained posts. A gap in the sequence is [`ErrorKind::Corrupt`].
    ///
    /// # Errors
    /// When the store fails or the log is damaged.
    fn load(&self, saga: &Uid) -> BoxFuture<'_, Result<Option<Loaded>>>;

    /// The row of one saga. Must answer also when the saga's log is damaged.
    ///
    /// # Errors
    /// When the store fails.
    fn summary<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Option<Summary>>> {
        Box::pin(async move { Ok(self.load(saga).await?.map(|l| l.summary)) })
    }

    /// The messages that wait in a saga's inbox, by number; empty when there is no such saga. Must answer also when the
    /// saga's log is damaged: what a person says of such a saga stands there.
    ///
    /// # Errors
    /// When the store fails.
    fn inbox<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Vec<Post>>> {
        Box::pin(async move { Ok(self.load(saga).await?.map(|l| l.posts).unwrap_or_default()) })
    }

    /// The row of one saga by its user id.
    ///
    /// # Errors
    /// When the store fails.
    fn find(&self, definition: &str, id: &str) -> BoxFuture<'_, Result<Option<Summary>>>;

    /// A page of rows, newest first.
    ///
    /// # Errors
    /// When the store fails.
    fn query(&self, filter: &Filter, after: Option<&PageCursor>, limit: usize)
    -> BoxFuture<'_, Result<Page>>;

    /// How many sagas are in each status, per definition.
    ///
    /// # Errors
    /// When the store fails.
    fn counts(&self) -> BoxFuture<'_, Result<Vec<StatusCount>>>;

    /// Removes finished sagas and tombstones past their retention, at most `limit` at once.
    ///
    /// # Errors
    /// When the store fails.
    fn purge(&self, purge: PurgeRequest) -> BoxFuture<'_, Result<Purged>>;

    /// Stores a definition. One (name, version) never changes.
    ///
    /// # Errors
    /// When the store fails.
    fn put_definition(&self, definition: StoredDefinition) -> BoxFuture<'_, Result<PutDefinition>>;

    /// All stored definitions, by name and version.
    ///
    /// # Errors
    /// When the store fails.
    fn definitions(&self) -> BoxFuture<'_, Result<Vec<StoredDefinition>>>;

    /// The reply stored under an idempotency key.
    ///
    /// # Errors
    /// When the store fails.
    fn reply(&self, key: &str) -> BoxFuture<'_, Result<Option<Reply>>>;

    /// Events after `after` (from the beginning when `None`), at most `limit` and [`MAX_EVENT_BYTES`], in commit order. Damaged
    /// records are named in [`EventPage::unreadable`] and passed over; what changed a status without a record is in
    /// [`EventPage::changes`].
    ///
    /// # Errors
    /// When the store fails.
    fn events(&self, after: Option<&Cursor>, limit: usize) -> BoxFuture<'_, Result<EventPage>>;

    /// The cursor of the newest event.
    ///
    /// # Errors
    /// When the store fails.
    fn last_cursor(&self) -> BoxFuture<'_, Result<Cursor>>;

    /// Resolves when there may be events after `after`: a hint, possibly spurious, never early-missed.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    fn changed(&self, after: &Cursor) -> BoxFuture<'_, Result<()>>;

    /// Audit entries after `after` (a sequence number), at most `limit`.
    ///
    /// # Errors
    /// When the store fails.
    fn audit(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredAudit>>>;

    /// Records an audit entry that belongs to no saga.
    ///
    /// # Errors
    /// When the store fails.
    fn put_audit(&self, entry: Audit) -> BoxFuture<'_, Result<()>>;
}
