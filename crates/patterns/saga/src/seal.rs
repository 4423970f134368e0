//! Payloads that only their owner can read: a hook between the engine and its journal.
//!
//! A saga's log holds its input, the outputs of its steps and the answers of its participants. A [`SealedJournal`] hands
//! records and messages to a [`Seal`] before any store sees them, and opens them for the engine. Which cipher, and where
//! its keys are, is the user's; the place of a record is told with it, so that an authenticated cipher can bind both and a
//! record that was moved to another saga or another place does not open.
//!
//! What is **not** sealed, because stores search, count and order by it: ids and attributes of sagas, names of definitions
//! and steps, the kind, size and time of each record, the last error on the row (a text that a participant answered),
//! who did what and why in the audit, definitions, idempotency keys. Put no secret there.
//!
//! A record is a little larger when it is sealed. The engine reserves room on a log for the way back by what it wrote
//! itself: with thousands of records of one saga and a seal that adds hundreds of bytes to each, a log may be full before
//! the saga ended, and the saga is set aside.
//!
//! # Examples
//! ```
//! use std::sync::Arc;
//!
//! use mainstay_clock::SystemClock;
//! use mainstay_saga::seal::{Place, Seal, SealedJournal};
//! use mainstay_store::memory::MemoryJournal;
//! use mainstay_store::{Error, ErrorKind, Journal, Result};
//!
//! /// Shows the form of a seal and hides nothing from anybody: take an AEAD, with the place as associated data.
//! #[derive(Debug)]
//! struct Toy;
//!
//! impl Seal for Toy {
//!     fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>> {
//!         let mut sealed: Vec<u8> = plain.iter().map(|b| b ^ 0x5a).collect();
//!         sealed.push(place.to_bytes().iter().fold(0, |sum: u8, b| sum.wrapping_add(*b)));
//!         Ok(sealed)
//!     }
//!
//!     fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>> {
//!         let sum = place.to_bytes().iter().fold(0, |sum: u8, b| sum.wrapping_add(*b));
//!         match sealed.split_last() {
//!             Some((last, rest)) if *last == sum => Ok(rest.iter().map(|b| b ^ 0x5a).collect()),
//!             _ => Err(Error::new(ErrorKind::Corrupt, "a record was moved or changed")),
//!         }
//!     }
//! }
//!
//! let store = Arc::new(MemoryJournal::new(Arc::new(SystemClock::new())));
//! let journal: Arc<dyn Journal> = Arc::new(SealedJournal::new(store, Arc::new(Toy)));
//! // `Engine::builder(journal, ..)` as with any other journal.
//! # assert!(format!("{journal:?}").contains("SealedJournal"));
//! ```

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::journal::{
    Append, Appended, AppendedWith, AsyncWork, Audit, ClaimRequest, Claimed, Create, Created, Cursor,
    EventPage, Filter, JournalEvent, Loaded, NewRecord, Page, PageCursor, Post, Posted, PurgeRequest, Purged,
    PutDefinition, Record, Reply, StatusCount, StoredAudit, StoredDefinition, Summary, TxResult, TxWork, Uid,
    Unreadable,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, Journal, Result};

/// Begins what is sealed, and is all that is handed on of a message that does not open. What is not sealed begins with a
/// brace.
pub(crate) const SEALED: u8 = 0;

/// Where a record or a message belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place<'a> {
    /// A message in a saga's inbox.
    Message {
        /// The saga.
        saga: &'a Uid,
        /// Its kind.
        kind: u16,
        /// Its id.
        message: &'a str,
    },
    /// A record of a saga's log.
    Record {
        /// The saga.
        saga: &'a Uid,
        /// Its kind.
        kind: u16,
        /// Its sequence number.
        seq: u64,
    },
}

impl Place<'_> {
    /// The place as bytes, different for every two places: what a cipher binds to the record.
    ///
    /// # Examples
    /// ```
    /// # use mainstay_saga::seal::Place;
    /// # use mainstay_store::journal::Uid;
    /// let saga = Uid::new("u");
    /// let at = |seq| Place::Record { saga: &saga, kind: 1, seq }.to_bytes();
    /// assert_ne!(at(1), at(2));
    /// ```
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (form, saga, kind, tail) = match self {
            Self::Message { saga, kind, message } => (1, saga, kind, message.as_bytes().to_vec()),
            Self::Record { saga, kind, seq } => (2, saga, kind, seq.to_be_bytes().to_vec()),
        };
        let mut bytes = vec![form];
        bytes.extend(kind.to_be_bytes());
        bytes.extend((saga.as_str().len() as u64).to_be_bytes());
        bytes.extend(saga.as_str().as_bytes());
        bytes.extend(tail);
        bytes
    }
}

/// Seals payloads and opens them. Called where records are written and read, so it must not block for long: keys are at
/// hand, not fetched.
pub trait Seal: Send + Sync + fmt::Debug {
    /// The payload as it is stored. A new nonce each time, if the cipher has one: a call that is repeated seals again.
    ///
    /// # Errors
    /// Of the caller's choice; a retryable one ([`ErrorKind::Unavailable`]) is tried again.
    fn seal(&self, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>>;

    /// What [`seal`](Seal::seal) was given.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for what was changed, moved or sealed with a key that is not known: for a record its saga is set
    /// aside; a message is dropped, which its saga's log notes.
    fn open(&self, place: &Place<'_>, sealed: &[u8]) -> Result<Vec<u8>>;
}

/// A [`Journal`] whose records and messages are sealed before they reach another one.
///
/// What was written before there was a seal is read as it is, so that a seal can be put on a journal that is in use; with
/// [`only_sealed`](SealedJournal::only_sealed) it is refused.
pub struct SealedJournal {
    inner: Arc<dyn Journal>,
    seal: Arc<dyn Seal>,
    only_sealed: bool,
}

impl SealedJournal {
    /// Puts `seal` between a caller and `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn Journal>, seal: Arc<dyn Seal>) -> Self {
        Self { inner, seal, only_sealed: false }
    }

    /// Refuses what is not sealed. Without this, whoever can write to the store can add records in plain.
    #[must_use]
    pub fn only_sealed(mut self) -> Self {
        self.only_sealed = true;
        self
    }

    fn open(&self, place: &Place<'_>, bytes: Vec<u8>) -> Result<Vec<u8>> {
        match bytes.split_first() {
            Some((&SEALED, sealed)) => self.seal.open(place, sealed),
            // Messages without a payload have nothing to hide.
            None => Ok(bytes),
            Some(_) if self.only_sealed => {
                Err(Error::new(ErrorKind::Corrupt, "a record is not sealed, and only sealed ones are read"))
            }
            Some(_) => Ok(bytes),
        }
    }

    fn open_record(&self, saga: &Uid, record: Record) -> Result<Record> {
        let place = Place::Record { saga, kind: record.kind, seq: record.seq };
        Ok(Record { bytes: self.open(&place, record.bytes)?, ..record })
    }

    /// The messages. The saga is worth more than one that does not open, and that it is there is told all the same: whoever
    /// looks at an inbox would look again for what it has not seen. Nothing of it is shown, for it may be forged.
    fn open_posts(&self, saga: &Uid, posts: Vec<Post>) -> Result<Vec<Post>> {
        let open = |post: Post| {
            let place = Place::Message { saga, kind: post.kind, message: &post.message };
            let bytes = match self.open(&place, post.bytes) {
                Err(error) if !error.is_retryable() => {
                    tracing::warn!(target: "mainstay::saga", saga = %saga, %error, "a message cannot be opened");
                    vec![SEALED]
                }
                opened => opened?,
            };
            Ok(Post { bytes, ..post })
        };
        posts.into_iter().map(open).collect()
    }

    /// A record that cannot be opened is passed over, as a damaged one is; not while its key is only not at hand.
    fn open_event(&self, page: &mut EventPage, event: JournalEvent) -> Result<()> {
        let JournalEvent { cursor, saga, id, definition, record, status } = event;
        match self.open_record(&saga, record) {
            Ok(record) => page.events.push(JournalEvent { cursor, saga, id, definition, record, status }),
            Err(error) if error.is_retryable() => return Err(error),
            Err(error) => {
                page.unreadable.push(Unreadable { cursor, saga, id, definition, why: error.to_string() });
            }
        }
        Ok(())
    }
}

fn seal_bytes(seal: &dyn Seal, place: &Place<'_>, plain: &[u8]) -> Result<Vec<u8>> {
    if plain.is_empty() {
        return Ok(Vec::new());
    }
    let sealed = seal.seal(place, plain)?;
    let mut bytes = Vec::with_capacity(sealed.len() + 1);
    bytes.push(SEALED);
    bytes.extend(sealed);
    Ok(bytes)
}

/// Seals records whose first one gets the sequence number `seq`.
fn seal_records(seal: &dyn Seal, saga: &Uid, seq: u64, records: &mut [NewRecord]) -> Result<()> {
    for (record, seq) in records.iter_mut().zip(seq..) {
        let place = Place::Record { saga, kind: record.kind, seq };
        record.bytes = seal_bytes(seal, &place, &record.bytes)?;
    }
    Ok(())
}

/// The same work, whose records are sealed before they are appended. `seq` is that of its first one.
fn sealed_work(seal: Arc<dyn Seal>, saga: Uid, seq: u64, work: TxWork) -> TxWork {
    let sealed = move |made: TxResult| -> TxResult {
        let mut records = made?;
        seal_records(seal.as_ref(), &saga, seq, &mut records)?;
        Ok(records)
    };
    match work {
        TxWork::Sync(work) => TxWork::Sync(Box::new(move |tx: &mut dyn Any| sealed(work(tx)))),
        TxWork::Async(work) => TxWork::Async(asynchronous(move |tx| {
            let made = work(tx);
            Box::pin(async move { sealed(made.await) })
        })),
    }
}

/// Tells the compiler the lifetimes of such a closure.
fn asynchronous<F>(work: F) -> AsyncWork
where
    F: for<'t> FnOnce(&'t mut (dyn Any + Send)) -> BoxFuture<'t, TxResult> + Send + 'static,
{
    Box::new(work)
}

impl fmt::Debug for SealedJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealedJournal").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl Journal for SealedJournal {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        self.inner.now()
    }

    fn create(&self, mut create: Create) -> BoxFuture<'_, Result<Created>> {
        let sealed = seal_records(self.seal.as_ref(), &create.uid, 1, &mut create.records);
        Box::pin(async move {
            sealed?;
            self.inner.create(create).await
        })
    }

    fn append(&self, mut append: Append) -> BoxFuture<'_, Result<Appended>> {
        let seq = append.expected_seq;
        let sealed = seal_records(self.seal.as_ref(), &append.saga, seq, &mut append.records);
        Box::pin(async move {
            sealed?;
            self.inner.append(append).await
        })
    }

    fn append_with(&self, mut append: Append, work: TxWork) -> BoxFuture<'_, Result<AppendedWith>> {
        let (saga, seq) = (append.saga.clone(), append.expected_seq);
        let made_from = seq + append.records.len() as u64;
        let sealed = seal_records(self.seal.as_ref(), &saga, seq, &mut append.records);
        let work = sealed_work(Arc::clone(&self.seal), saga.clone(), made_from, work);
        Box::pin(async move {
            sealed?;
            match self.inner.append_with(append, work).await? {
                AppendedWith::Append(appended, mut made) => {
                    for (record, seq) in made.iter_mut().zip(made_from..) {
                        let place = Place::Record { saga: &saga, kind: record.kind, seq };
                        record.bytes = self.open(&place, std::mem::take(&mut record.bytes))?;
                    }
                    Ok(AppendedWith::Append(appended, made))
                }
                failed => Ok(failed),
            }
        })
    }

    fn post(&self, saga: &Uid, message: &str, kind: u16, bytes: Vec<u8>) -> BoxFuture<'_, Result<Posted>> {
        match seal_bytes(self.seal.as_ref(), &Place::Message { saga, kind, message }, &bytes) {
            Ok(bytes) => self.inner.post(saga, message, kind, bytes),
            Err(error) => Box::pin(async move { Err(error) }),
        }
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
        let saga = saga.clone();
        Box::pin(async move {
            let Some(loaded) = self.inner.load(&saga).await? else { return Ok(None) };
            let records = loaded.records.into_iter().map(|record| self.open_record(&saga, record));
            let records = records.collect::<Result<Vec<_>>>()?;
            let posts = self.open_posts(&saga, loaded.posts)?;
            Ok(Some(Loaded { summary: loaded.summary, records, posts }))
        })
    }

    fn summary<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Option<Summary>>> {
        self.inner.summary(saga)
    }

    fn inbox<'a>(&'a self, saga: &'a Uid) -> BoxFuture<'a, Result<Vec<Post>>> {
        Box::pin(async move {
            let posts = self.inner.inbox(saga).await?;
            self.open_posts(saga, posts)
        })
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
        let after = after.copied();
        Box::pin(async move {
            let mut page = self.inner.events(after.as_ref(), limit).await?;
            for event in std::mem::take(&mut page.events) {
                self.open_event(&mut page, event)?;
            }
            page.unreadable.sort_by_key(|u| u.cursor);
            Ok(page)
        })
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
