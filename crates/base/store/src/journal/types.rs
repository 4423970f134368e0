//! What goes into and comes out of a journal.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::WallTime;

/// The engine's own id of a saga: never reused, so keys derived from it are not either.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Uid(Arc<str>);

impl Uid {
    /// Wraps an id.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Uid({})", self.0)
    }
}

/// A 256-bit hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(clippy::exhaustive_structs, reason = "a hash is its bytes")]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The BLAKE3 hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hash({self})")
    }
}

/// Where a saga stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(clippy::exhaustive_enums, reason = "the statuses of the design; a new one is a breaking change")]
pub enum SagaStatus {
    /// Closed by a person with effects remaining.
    Abandoned,
    /// Every started effect was undone.
    Compensated,
    /// Undoing.
    Compensating,
    /// Every step is done.
    Completed,
    /// Only a person can move it on.
    NeedsAttention,
    /// Going forward.
    Running,
    /// Waiting for a timer, a signal, a child or a lock.
    Waiting,
}

impl SagaStatus {
    /// Every status.
    pub const ALL: [Self; 7] = [
        Self::Running,
        Self::Waiting,
        Self::Compensating,
        Self::NeedsAttention,
        Self::Completed,
        Self::Compensated,
        Self::Abandoned,
    ];

    /// Whether nothing will happen any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Abandoned | Self::Compensated | Self::Completed)
    }

    /// The text on wires and in databases.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Abandoned => "abandoned",
            Self::Compensated => "compensated",
            Self::Compensating => "compensating",
            Self::Completed => "completed",
            Self::NeedsAttention => "needs_attention",
            Self::Running => "running",
            Self::Waiting => "waiting",
        }
    }

    /// Reads what [`SagaStatus::as_str`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

impl fmt::Display for SagaStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The row of a saga: what lists show and claims decide by. Derived from the log by its writer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the row is part of the contract")]
pub struct Row {
    /// Where it stands.
    pub status: SagaStatus,
    /// An attempt failed and will be repeated.
    pub retrying: bool,
    /// A person paused it.
    pub paused: bool,
    /// Its deadline passed when there was no way back, it goes on, and nobody said yet that they know. Never of a finished
    /// saga.
    pub overdue: bool,
    /// When it wants to be claimed; `None` when only a post can move it. A saga with posts that nobody looked at is due at
    /// once, see [`Append::seen`].
    pub due: Option<WallTime>,
    /// When the next attempt starts, for people.
    pub next_try: Option<WallTime>,
    /// The step it is at, for people and filters.
    pub step: Option<String>,
    /// The attempt it is at.
    pub attempt: u32,
    /// The last error, bounded by the writer.
    pub error: Option<String>,
    /// Attributes for filters, given at the start.
    pub attrs: BTreeMap<String, String>,
}

impl Row {
    /// Whether it waits for a person.
    #[must_use]
    pub fn waits_for_person(&self) -> bool {
        self.status == SagaStatus::NeedsAttention || self.overdue
    }

    /// A running saga that is due at once.
    #[must_use]
    pub fn running(due: WallTime) -> Self {
        Self {
            status: SagaStatus::Running,
            retrying: false,
            paused: false,
            overdue: false,
            due: Some(due),
            next_try: None,
            step: None,
            attempt: 0,
            error: None,
            attrs: BTreeMap::new(),
        }
    }
}

/// A record to append. The kind is the writer's; the journal does not interpret it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a record is exactly this")]
pub struct NewRecord {
    /// The writer's kind.
    pub kind: u16,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// A stored record.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a record is exactly this")]
pub struct Record {
    /// Sequence number in its saga, from 1, without gaps.
    pub seq: u64,
    /// The writer's kind.
    pub kind: u16,
    /// When it was committed, by the store's clock; never decreases within a saga.
    pub at: WallTime,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// A reply kept under an idempotency key, in the same transaction as the effect it reports.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a reply is exactly this")]
pub struct Reply {
    /// Scope and key.
    pub key: String,
    /// Hash of the request it answers.
    pub request: Hash,
    /// The status it was answered with.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// A person's action.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "an audit line is exactly this")]
pub struct Audit {
    /// Who acted.
    pub who: String,
    /// What they did.
    pub action: String,
    /// On what.
    pub target: String,
    /// Why.
    pub reason: String,
    /// State before, bounded by the writer.
    pub before: String,
    /// State after.
    pub after: String,
    /// The request that carried it.
    pub request_id: String,
}

/// An audit line with its place in the hash chain.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "an audit line is exactly this")]
pub struct StoredAudit {
    /// Its number, from 1.
    pub seq: u64,
    /// When.
    pub at: WallTime,
    /// The line.
    pub entry: Audit,
    /// Hash over the previous line's hash and this line: a missing or changed line breaks the chain.
    pub chain: Hash,
}

impl StoredAudit {
    /// The chain value of a line after one with `previous`.
    #[must_use]
    pub fn chain_of(previous: &Hash, seq: u64, at: WallTime, entry: &Audit) -> Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&previous.0);
        hasher.update(&seq.to_be_bytes());
        hasher.update(&at.unix_millis().to_be_bytes());
        let parts = [
            &entry.who,
            &entry.action,
            &entry.target,
            &entry.reason,
            &entry.before,
            &entry.after,
            &entry.request_id,
        ];
        for part in parts {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        Hash(*hasher.finalize().as_bytes())
    }
}

/// Who claims, and how long the claim lasts without renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a claimant is exactly this")]
pub struct Claimant {
    /// The node's name.
    pub node: String,
    /// Grows with every start of the node: an older incarnation stops claiming.
    pub incarnation: u64,
    /// How long its claims last without [`renew_node`](super::Journal::renew_node).
    pub ttl: Duration,
}

/// A new saga.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "the request is part of the contract")]
pub struct Create {
    /// The engine's id.
    pub uid: Uid,
    /// The user's id, unique per definition.
    pub id: String,
    /// Definition name.
    pub definition: String,
    /// Definition version.
    pub version: u32,
    /// Hash of the definition's graph, pinned for the life of the saga.
    pub definition_hash: Hash,
    /// Hash of the canonical input.
    pub input_hash: Hash,
    /// The first records.
    pub records: Vec<NewRecord>,
    /// The row.
    pub row: Row,
    /// Claims it at once for this node.
    pub owner: Option<Claimant>,
    /// The reply to keep under an idempotency key; of a saga that exists already, [`Create::reply_of`] it.
    pub reply: Option<Reply>,
    /// The parent saga and its step, for sub-sagas.
    pub parent: Option<(Uid, String)>,
    /// Semantic locks to take with it, sorted: all or none.
    pub locks: Vec<String>,
}

impl Create {
    /// The reply to keep when the saga turns out to exist already, as `there`. A body that begins with the uid that the
    /// new saga would have had begins with the one of the existing saga: nobody is ever sent to a saga that is not there.
    ///
    /// ```
    /// use mainstay_clock::WallTime;
    /// use mainstay_store::journal::{Create, Hash, Reply, Row, Uid};
    ///
    /// let (key, body) = ("k".to_owned(), b"new order-7".to_vec());
    /// let create = Create {
    ///     uid: Uid::new("new"),
    ///     id: "order-7".to_owned(),
    ///     definition: "order".to_owned(),
    ///     version: 1,
    ///     definition_hash: Hash::of(b"definition"),
    ///     input_hash: Hash::of(b"input"),
    ///     records: Vec::new(),
    ///     row: Row::running(WallTime::default()),
    ///     owner: None,
    ///     reply: Some(Reply { key, request: Hash::of(b"request"), status: 202, body }),
    ///     parent: None,
    ///     locks: Vec::new(),
    /// };
    /// assert_eq!(create.reply_of(&Uid::new("old")).unwrap().body, b"old order-7");
    /// ```
    #[must_use]
    pub fn reply_of(&self, there: &Uid) -> Option<Reply> {
        let mut reply = self.reply.clone()?;
        if let Some(rest) = reply.body.strip_prefix(self.uid.as_str().as_bytes()) {
            reply.body = [there.as_str().as_bytes(), rest].concat();
        }
        Some(reply)
    }
}

/// The answer of [`Journal::create`](super::Journal::create).
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Created {
    /// The same identity exists with another input.
    Conflict {
        /// The existing saga.
        uid: Uid,
        /// Its input hash.
        stored: Hash,
        /// The hash given now.
        given: Hash,
    },
    /// Created; when an owner was given it holds `epoch`.
    Created {
        /// The claim epoch.
        epoch: u64,
        /// The next sequence number.
        next_seq: u64,
    },
    /// A lock is held; nothing was created.
    LockHeld {
        /// The lock.
        lock: String,
        /// The saga that holds it.
        by: Uid,
    },
    /// The idempotency key was used for another request.
    ReplyMismatch,
    /// The idempotency key was used for this request: its reply.
    Replayed(Reply),
    /// The same identity and input exist, possibly finished or purged.
    Same {
        /// The existing saga.
        uid: Uid,
        /// Where it stands, or stood when it was purged.
        status: SagaStatus,
    },
}

/// An append to one saga.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "the request is part of the contract")]
pub struct Append {
    /// The saga.
    pub saga: Uid,
    /// The sequence number its first record must get.
    pub expected_seq: u64,
    /// The claim epoch it was made under.
    pub epoch: u64,
    /// The records.
    pub records: Vec<NewRecord>,
    /// The row after it.
    pub row: Row,
    /// Semantic locks to take, sorted.
    pub take_locks: Vec<String>,
    /// Semantic locks to free.
    pub free_locks: Vec<String>,
    /// Replies to keep.
    pub replies: Vec<Reply>,
    /// Audit lines to keep.
    pub audit: Vec<Audit>,
    /// Numbers of posts that these records consume.
    pub drain: Vec<u64>,
    /// Posts up to this number were looked at and are left for later: they do not make the saga due. Any other post
    /// that waits does, whatever `row.due` says, because the writer of this append may know nothing of it.
    pub seen: u64,
}

impl Append {
    /// An append of records and a row, nothing else.
    #[must_use]
    pub fn new(saga: Uid, epoch: u64, expected_seq: u64, records: Vec<NewRecord>, row: Row) -> Self {
        Self {
            saga,
            expected_seq,
            epoch,
            records,
            row,
            take_locks: Vec::new(),
            free_locks: Vec::new(),
            replies: Vec::new(),
            audit: Vec::new(),
            drain: Vec::new(),
            seen: 0,
        }
    }
}

/// The answer of [`Journal::append`](super::Journal::append).
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Appended {
    /// Committed.
    Appended {
        /// The next sequence number.
        next_seq: u64,
        /// The inbox holds posts that this append did not drain.
        posts: bool,
    },
    /// The epoch is current, the sequence is not: somebody using this claim appended. Reload.
    Conflict {
        /// The next sequence number in the store.
        next_seq: u64,
    },
    /// Another claim owns the saga, or it is gone. Drop it.
    Fenced,
    /// A semantic lock is held; nothing was appended.
    LockHeld {
        /// The lock.
        lock: String,
        /// The saga that holds it.
        by: Uid,
    },
}

/// The answer of [`Journal::append_with`](super::Journal::append_with).
#[derive(Debug)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum AppendedWith {
    /// As for a plain append; `Appended` carries the records that the work made.
    Append(Appended, Vec<NewRecord>),
    /// The work failed; neither it nor the append left an effect.
    WorkFailed(Box<dyn std::error::Error + Send + Sync>),
}

/// The answer of [`Journal::post`](super::Journal::post).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Posted {
    /// The message was there already. If it still waits, the saga is due again.
    Duplicate,
    /// The saga is finished, with this status.
    Final(SagaStatus),
    /// The inbox is full.
    InboxFull,
    /// No such saga.
    NoSuchSaga,
    /// Stored; the saga is due.
    Posted,
}

/// A message in a saga's inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a post is exactly this")]
pub struct Post {
    /// Its number, for [`Append::drain`].
    pub number: u64,
    /// Its idempotency id.
    pub message: String,
    /// The writer's kind.
    pub kind: u16,
    /// When it was posted.
    pub at: WallTime,
    /// The payload.
    pub bytes: Vec<u8>,
}

/// A request for claims.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the request is part of the contract")]
pub struct ClaimRequest {
    /// Who claims.
    pub claimant: Claimant,
    /// Most claims.
    pub limit: usize,
}

/// A claimed saga.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a claim is exactly this")]
pub struct Claimed {
    /// The saga.
    pub saga: Uid,
    /// The epoch of the claim; also the fencing token for participants.
    pub epoch: u64,
    /// Claims since the last append.
    pub strikes: u32,
}

/// A row with its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a summary is exactly this")]
pub struct Summary {
    /// The engine's id.
    pub uid: Uid,
    /// The user's id.
    pub id: String,
    /// Definition name.
    pub definition: String,
    /// Definition version.
    pub version: u32,
    /// Pinned definition hash.
    pub definition_hash: Hash,
    /// Hash of the canonical input.
    pub input_hash: Hash,
    /// The claim epoch.
    pub epoch: u64,
    /// The next sequence number; also the version for conditional actions.
    pub next_seq: u64,
    /// The node that holds it.
    pub owner: Option<String>,
    /// When it was created.
    pub created: WallTime,
    /// When it was last appended to.
    pub updated: WallTime,
    /// The row.
    pub row: Row,
    /// The parent saga and its step.
    pub parent: Option<(Uid, String)>,
}

/// A saga with its log and inbox.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a loaded saga is exactly this")]
pub struct Loaded {
    /// Identity and row.
    pub summary: Summary,
    /// All records, by sequence.
    pub records: Vec<Record>,
    /// Undrained posts, by number.
    pub posts: Vec<Post>,
}

/// Which sagas a query returns. Every field that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "built field by field over its default")]
pub struct Filter {
    /// Any of these statuses; empty: all.
    pub status: Vec<SagaStatus>,
    /// The retrying flag.
    pub retrying: Option<bool>,
    /// The paused flag.
    pub paused: Option<bool>,
    /// The overdue flag.
    pub overdue: Option<bool>,
    /// Only what waits for a person: sagas that need attention, and those that are overdue.
    pub attention: bool,
    /// Definition name.
    pub definition: Option<String>,
    /// The step it is at.
    pub step: Option<String>,
    /// The user's id.
    pub id: Option<String>,
    /// At least this attempt.
    pub attempt_gte: Option<u32>,
    /// At most this attempt.
    pub attempt_lte: Option<u32>,
    /// The error contains this text.
    pub error_contains: Option<String>,
    /// Attributes that must be equal.
    pub attrs: BTreeMap<String, String>,
    /// Created at or after.
    pub created_gte: Option<WallTime>,
    /// Created at or before.
    pub created_lte: Option<WallTime>,
}

/// Where the next page starts. Opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "opaque text")]
pub struct PageCursor(pub String);

/// A page of rows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a page is exactly this")]
pub struct Page {
    /// The rows, newest first.
    pub rows: Vec<Summary>,
    /// Where the next page starts, `None` at the end.
    pub next: Option<PageCursor>,
}

/// How many sagas of a definition are in a status.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a count is exactly this")]
pub struct StatusCount {
    /// Definition name.
    pub definition: String,
    /// Status.
    pub status: SagaStatus,
    /// How many of them are retrying.
    pub retrying: u64,
    /// How many of them are overdue.
    pub overdue: u64,
    /// How many.
    pub count: u64,
    /// When the oldest of them was last appended to; of finished ones, when the oldest ended; of those that need
    /// attention, since when the oldest does without a break.
    pub oldest: WallTime,
}

impl StatusCount {
    /// How many of them wait for a person: all that need attention, else those that are overdue.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        if self.status == SagaStatus::NeedsAttention { self.count } else { self.overdue }
    }
}

/// What to purge. Unfinished sagas are never touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the request is part of the contract")]
pub struct PurgeRequest {
    /// Completed sagas last appended to before.
    pub completed_before: WallTime,
    /// Compensated and abandoned sagas last appended to before.
    pub compensated_before: WallTime,
    /// Tombstones and replies older than.
    pub tombstones_before: WallTime,
    /// At most this many sagas, and about as many tombstones and replies.
    pub limit: usize,
}

/// What was purged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(clippy::exhaustive_structs, reason = "counts")]
pub struct Purged {
    /// Sagas replaced by tombstones.
    pub sagas: usize,
    /// Tombstones and replies removed.
    pub tombstones: usize,
}

/// A definition as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a definition is exactly this")]
pub struct StoredDefinition {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u32,
    /// Hash of its graph.
    pub hash: Hash,
    /// The definition as written.
    pub bytes: Vec<u8>,
}

/// The answer of [`Journal::put_definition`](super::Journal::put_definition).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum PutDefinition {
    /// This version exists with another hash.
    Conflict {
        /// The stored hash.
        stored: Hash,
    },
    /// This version exists with this hash; its bytes (timeouts, retry policies) were replaced.
    Same,
    /// New.
    Stored,
}

/// A place in the event stream. Opaque, ordered by commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[allow(clippy::exhaustive_structs, reason = "opaque number")]
pub struct Cursor(pub u64);

/// A committed record as the event stream shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "an event is exactly this")]
pub struct JournalEvent {
    /// Its place.
    pub cursor: Cursor,
    /// The saga.
    pub saga: Uid,
    /// The user's id of the saga.
    pub id: String,
    /// Definition name.
    pub definition: String,
    /// The record.
    pub record: Record,
    /// The status after the append that carried it.
    pub status: SagaStatus,
}

/// A place in the event stream whose records are damaged: shown, so that nobody takes it for quiet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a place is exactly this")]
pub struct Unreadable {
    /// The place.
    pub cursor: Cursor,
    /// The saga.
    pub saga: Uid,
    /// The user's id of the saga.
    pub id: String,
    /// Definition name.
    pub definition: String,
    /// What is wrong with it.
    pub why: String,
}

/// A place in the event stream where a saga's status changed without a record: whoever drove it set it aside, and left
/// its log as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a change is exactly this")]
pub struct StatusChange {
    /// The place.
    pub cursor: Cursor,
    /// The saga.
    pub saga: Uid,
    /// The user's id of the saga.
    pub id: String,
    /// Definition name.
    pub definition: String,
    /// When it was committed.
    pub at: WallTime,
    /// The status from then on.
    pub status: SagaStatus,
}

/// A page of events.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a page is exactly this")]
pub struct EventPage {
    /// The events, in commit order.
    pub events: Vec<JournalEvent>,
    /// Places between them whose records are damaged, in commit order. The stream goes on behind them.
    pub unreadable: Vec<Unreadable>,
    /// Places between them where a status changed without a record, in commit order.
    pub changes: Vec<StatusChange>,
    /// Where to go on.
    pub next: Cursor,
    /// Events after the given cursor were purged: the stream starts anew at the first one here.
    pub reset: bool,
}

/// Largest payload of one record. Larger data is a reference.
pub const MAX_RECORD_BYTES: usize = 512 * 1024;
/// Most records of one saga: larger work is sub-sagas.
pub const MAX_RECORDS: u64 = 10_000;
/// Most bytes of one saga's log.
pub const MAX_LOG_BYTES: usize = 16 * 1024 * 1024;
/// Most bytes of records in one page of events; at least one record is in it, however large.
pub const MAX_EVENT_BYTES: usize = 4 * 1024 * 1024;
/// Most undrained posts of one saga.
pub const MAX_POSTS: usize = 64;
/// Longest user id, lock name, message id, in bytes.
pub const MAX_ID_BYTES: usize = 255;
