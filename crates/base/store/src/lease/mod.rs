//! Named leases with fencing tokens.

mod names;
pub mod table;
mod watchers;

use std::fmt;
use std::time::Duration;

use mainstay_clock::WallTime;

pub use names::Names;
pub use watchers::Watchers;

use crate::{BoxFuture, Error, ErrorKind, FencingToken, Result};

/// The longest lease: a longer one is a mistake, for it would outlive whoever could end it.
pub const MAX_TTL: Duration = Duration::from_secs(86_400 * 30);
/// The largest semaphore: what a signed number of 32 bits holds, which is what some store keeps it in.
pub const MAX_PERMITS: u32 = i32::MAX.unsigned_abs();
/// The longest name, owner or op id, in bytes.
pub const MAX_TEXT: usize = 1_024;

/// How holders of one name share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "mutex, readers, semaphore")]
pub enum Share {
    /// Nobody else.
    Exclusive,
    /// `count` of `limit` permits, all or none.
    Permit {
        /// How many there are: the same for everybody who holds or waits, until [`LeaseStore::resize`].
        limit: u32,
        /// How many are taken.
        count: u32,
    },
    /// Any number of sharing holders, no exclusive one.
    Shared,
}

impl Share {
    /// As two numbers, for a store that keeps rows: the kind, and the permits.
    #[must_use]
    pub fn columns(self) -> (u8, i64) {
        match self {
            Self::Exclusive => (0, 0),
            Self::Shared => (1, 0),
            Self::Permit { limit, count } => (2, i64::from(limit) | (i64::from(count.max(1) - 1) << 32)),
        }
    }

    /// From the numbers of [`columns`](Self::columns).
    ///
    /// ```
    /// use mainstay_store::lease::Share;
    ///
    /// let three_of_five = Share::Permit { limit: 5, count: 3 };
    /// let (kind, permits) = three_of_five.columns();
    /// assert_eq!(Share::of_columns(kind, permits), three_of_five);
    /// ```
    #[must_use]
    pub fn of_columns(kind: u8, permits: i64) -> Self {
        let part = |shift: u32| u32::try_from((permits >> shift) & i64::from(u32::MAX)).unwrap_or(u32::MAX);
        match kind {
            0 => Self::Exclusive,
            1 => Self::Shared,
            _ => Self::Permit { limit: part(0), count: part(32).saturating_add(1) },
        }
    }
}

/// What to do when the name is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "stand in line or do not")]
pub enum Line {
    /// Take a place in the line; ask again with the same `op_id`.
    Join,
    /// Answer [`Acquired::Held`].
    Try,
}

/// A request for leases.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the request is part of the contract; growth is a new method")]
pub struct AcquireRequest {
    /// The names, sorted and unique; all or none is granted.
    pub names: Vec<String>,
    /// Who asks: shown to others.
    pub owner: String,
    /// Identifies this acquisition: repeating it after a lost reply gives the same grants.
    pub op_id: String,
    /// How long the lease lasts without renewal.
    pub ttl: Duration,
    /// How the names are shared.
    pub share: Share,
    /// What to do when a name is held.
    pub line: Line,
    /// A note for people.
    pub note: String,
    /// Grant only if every requirement holds: name and the token that its lease must have now.
    pub require: Vec<(String, FencingToken)>,
}

impl AcquireRequest {
    /// An exclusive try for one name.
    #[must_use]
    pub fn exclusive(name: &str, owner: &str, op_id: &str, ttl: Duration) -> Self {
        Self {
            names: vec![name.to_owned()],
            owner: owner.to_owned(),
            op_id: op_id.to_owned(),
            ttl,
            share: Share::Exclusive,
            line: Line::Try,
            note: String::new(),
            require: Vec::new(),
        }
    }

    /// What every store refuses before it looks at anything: names that are not sorted and unique, no time or more than
    /// [`MAX_TTL`], no permits of a semaphore or more than it has, texts that are empty or longer than [`MAX_TEXT`].
    ///
    /// # Errors
    /// `ApiMisuse`, saying what is wrong.
    ///
    /// ```
    /// use mainstay_store::lease::AcquireRequest;
    /// use std::time::Duration;
    ///
    /// let request = AcquireRequest::exclusive("n", "host-7", "op-1", Duration::from_secs(5));
    /// assert!(request.check().is_ok());
    /// assert!(AcquireRequest { names: vec!["b".into(), "a".into()], ..request }.check().is_err());
    /// ```
    pub fn check(&self) -> Result<()> {
        let misuse = |text: &str| Err(Error::new(ErrorKind::ApiMisuse, text));
        if self.names.is_empty() || self.names.windows(2).any(|w| w[0] >= w[1]) {
            return misuse("lease names must be given sorted and unique, at least one");
        }
        if self.ttl.is_zero() || self.ttl > MAX_TTL {
            return misuse("a lease lasts more than 0 and at most 30 days");
        }
        if let Share::Permit { limit, count } = self.share
            && (limit > MAX_PERMITS || !(1..=limit).contains(&count))
        {
            return misuse(
                "a semaphore has 1 to 2,147,483,647 permits, and 1 to all of them are taken at once",
            );
        }
        let sizes = self.names.iter().chain([&self.owner, &self.op_id]);
        if sizes.into_iter().any(|s| s.is_empty() || s.len() > MAX_TEXT) {
            return misuse("lease names, owners and op ids have 1 to 1,024 bytes");
        }
        Ok(())
    }
}

/// One granted lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a grant is exactly this")]
pub struct Grant {
    /// Its name.
    pub name: String,
    /// Its fencing token, larger than every earlier one of the name.
    pub token: FencingToken,
    /// Time granted, counted from before the request was sent.
    pub ttl: Duration,
}

/// The answer of [`LeaseStore::acquire`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Acquired {
    /// All names, in the order of the request.
    Granted(Vec<Grant>),
    /// Somebody else holds one of them.
    Held {
        /// The owner that stands in the way.
        by: String,
        /// How long it is until the way would be free if nobody renewed, if the store can tell.
        remaining: Option<Duration>,
        /// Since when that owner holds it, if it holds it and anybody wrote that down.
        since: Option<Since>,
    },
    /// In line.
    Queued {
        /// Places before this one, if the store can tell.
        position: Option<u32>,
        /// When its turn would come if nobody before it renewed, if that is an end that the store tells nobody of:
        /// whoever waits asks again then. None where [`LeaseStore::watch`] tells of ends too.
        remaining: Option<Duration>,
    },
}

/// The answer of [`LeaseStore::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "there are two answers")]
pub enum Released {
    /// It had ended before: work done under it may have overlapped with another holder's. Also what a release is told
    /// that is repeated because its answer was lost, where the store cannot tell who ended it: each store's page says
    /// when that is.
    AlreadyGone,
    /// It was held until now, or until an earlier release whose answer was lost.
    Clean,
}

/// The answer of [`LeaseStore::renew`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Renewed {
    /// At least one is gone: somebody ended it by force ([`LeaseStore::break_lease`]).
    Broken,
    /// They are gone with what they were bound to: a connection, a session.
    Closed,
    /// At least one is gone, and the store cannot say why: it ran out, and may be somebody else's.
    Lost,
    /// Every lease of the operation runs `ttl` longer, counted from before the request.
    Renewed(Vec<Grant>),
}

/// The answer of [`LeaseStore::transfer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Transferred {
    /// The named candidate holds it now.
    Moved,
    /// No such candidate stands in line.
    NoSuchCandidate,
    /// The store cannot do that.
    Unsupported,
}

/// Whose calendar it was that told since when somebody holds a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "a store has a clock or has none")]
pub enum ToldBy {
    /// The holder's own, or that of whoever handed the lease on: the store has no clock that it shows.
    Holder,
    /// The store's: one for all its holders.
    Store,
}

/// Since when a lease is held without a break, for people. Renewals do not move it.
///
/// A calendar may be wrong and may jump, so nothing is decided by it: who holds is decided by the store, and for how long
/// by boot time. A holder that other clients wrote has none: it is unknown, never guessed.
///
/// ```
/// use mainstay_clock::WallTime;
/// use mainstay_store::lease::{Since, ToldBy};
/// use std::time::Duration;
///
/// let since = Since { at: WallTime::from_unix_millis(60_000), by: ToldBy::Store };
/// assert_eq!(since.ago(WallTime::from_unix_millis(90_000)), Duration::from_secs(30));
/// assert_eq!(since.ago(WallTime::from_unix_millis(5)), Duration::ZERO, "two calendars may differ");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "a time and whose it is")]
pub struct Since {
    /// When it was granted.
    pub at: WallTime,
    /// By whose calendar.
    pub by: ToldBy,
}

impl Since {
    /// By the store's calendar.
    #[must_use]
    pub const fn store(at: WallTime) -> Self {
        Self { at, by: ToldBy::Store }
    }

    /// By the holder's calendar.
    #[must_use]
    pub const fn holder(at: WallTime) -> Self {
        Self { at, by: ToldBy::Holder }
    }

    /// How long that is at `now`; nothing where `now`, of another calendar, is earlier.
    #[must_use]
    pub fn ago(self, now: WallTime) -> Duration {
        now.saturating_duration_since(self.at)
    }
}

/// One of those who hold a lease.
///
/// ```
/// use mainstay_store::FencingToken;
/// use mainstay_store::lease::Holder;
/// use std::time::Duration;
///
/// let stranger = Holder::new("another client", FencingToken::ZERO, Duration::MAX);
/// assert_eq!(stranger.since, None, "it wrote down nothing of that");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Who.
    pub owner: String,
    /// Under which token; zero for a client that has none.
    pub token: FencingToken,
    /// How long it lasts without renewal; `Duration::MAX` without an end.
    pub remaining: Duration,
    /// Since when; none where nobody wrote it down.
    pub since: Option<Since>,
}

impl Holder {
    /// One of whom it is not known since when.
    #[must_use]
    pub fn new(owner: impl Into<String>, token: FencingToken, remaining: Duration) -> Self {
        Self { owner: owner.into(), token, remaining, since: None }
    }

    /// The same with what is known of since when.
    #[must_use]
    pub fn with_since(mut self, since: Option<Since>) -> Self {
        self.since = since;
        self
    }
}

/// What a store knows about one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseInfo {
    /// Its name.
    pub name: String,
    /// Who holds it, smallest token first.
    pub holders: Vec<Holder>,
    /// The largest token ever handed out or burned.
    pub last_token: FencingToken,
    /// The holder's note.
    pub note: String,
    /// Value set by [`LeaseStore::annotate`].
    pub annotation: Option<Vec<u8>>,
    /// How many wait in line.
    pub waiting: u32,
}

impl LeaseInfo {
    /// A lease nobody holds.
    #[must_use]
    pub fn free(name: &str, last_token: FencingToken) -> Self {
        Self {
            name: name.to_owned(),
            holders: Vec::new(),
            last_token,
            note: String::new(),
            annotation: None,
            waiting: 0,
        }
    }
}

/// [`Guarantees::recheck`] of a store that cannot watch: as often as a person would look.
pub const UNWATCHED: Duration = Duration::from_secs(1);
/// [`Guarantees::recheck`] of a store whose hints may be lost: losses come with broken connections, which are rare, and
/// ten thousand names that are waited for cost a few hundred questions each second.
pub const WATCHED: Duration = Duration::from_secs(30);

/// How far fencing tokens can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Fencing {
    /// Tokens are no fence.
    None,
    /// Tokens only grow, also across crash and restart of the store.
    Strict,
    /// Tokens only grow while the store keeps its state.
    WhileStateSurvives,
}

/// What a store promises, machine readable.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Guarantees {
    /// How far tokens can be trusted.
    pub fencing: Fencing,
    /// Which clock ends leases, for people.
    pub clock: &'static str,
    /// What a failover of the store does to leases, for people.
    pub failover: &'static str,
    /// Whether waiters are served in order.
    pub fair: bool,
    /// The longest ttl that is granted.
    pub max_ttl: Duration,
    /// The shortest ttl that makes sense.
    pub min_ttl: Duration,
    /// The longest silence that a waiter may believe: a hint of [`LeaseStore::watch`] may be lost with a
    /// connection, so it asks again after half of this to all of it, even if it was told nothing and no lease is
    /// due. [`UNWATCHED`] where the store cannot watch, [`WATCHED`] where hints may be lost, [`Duration::MAX`] where
    /// none is.
    pub recheck: Duration,
    /// Names of the capabilities beyond the mutex that are native.
    pub native: &'static [&'static str],
}

impl Guarantees {
    /// Declares guarantees.
    #[must_use]
    pub const fn new(fencing: Fencing, clock: &'static str, failover: &'static str) -> Self {
        let min_ttl = Duration::from_millis(10);
        let (max_ttl, recheck) = (MAX_TTL, UNWATCHED);
        Self { fencing, clock, failover, fair: false, max_ttl, min_ttl, recheck, native: &[] }
    }
}

/// Named leases with fencing tokens.
///
/// Guarantees: a granted token is larger than every earlier token of the name, as far as
/// [`guarantees`](LeaseStore::guarantees) says; `acquire` and `release` are idempotent by `op_id`.
/// Not guaranteed: mutual exclusion by the lease alone; a paused holder may act late, so check tokens at
/// the resource.
///
/// Everything beyond the exclusive mutex has a default that answers `Unsupported`.
pub trait LeaseStore: Send + Sync + fmt::Debug {
    /// Asks for all names of the request or none.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a share or line the store cannot do, [`ErrorKind::ApiMisuse`] for
    /// unsorted names or a ttl of zero, [`ErrorKind::ConfigMismatch`] when others hold or wait for permits of the
    /// name under another limit, otherwise when the store fails.
    ///
    /// # Cancel safety
    /// A dropped future may have acquired: release by `op_id`, or the lease ends by itself.
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>>;

    /// Extends every lease of `op_id` by its ttl from now.
    ///
    /// # Errors
    /// When the store fails.
    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>>;

    /// Gives back every lease of `op_id`. Idempotent.
    ///
    /// # Errors
    /// When the store fails.
    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>>;

    /// Leaves the line.
    ///
    /// # Errors
    /// `Unsupported` by default.
    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let _ = op_id;
        unsupported("leave")
    }

    /// Turns an exclusive lease into a shared one in one step: nobody holds it alone in between, and its token
    /// stays. Repeating it changes nothing. False when `op_id` holds nothing.
    ///
    /// # Errors
    /// `Unsupported` by default.
    fn downgrade(&self, op_id: &str) -> BoxFuture<'_, Result<bool>> {
        let _ = op_id;
        unsupported("downgrade")
    }

    /// Gives the semaphore `name` another limit, for everybody who holds a permit or waits for one in line, in one
    /// step. A smaller limit takes nothing away from anybody: nobody gets a permit until so many came back. With
    /// nobody there it changes nothing: a limit is that of those who use it. Repeating it changes nothing.
    ///
    /// # Errors
    /// `ConfigMismatch` when the name is held or waited for as something else; `ApiMisuse` for a limit of zero or over
    /// [`MAX_PERMITS`]; `Unsupported` by default.
    fn resize(&self, name: &str, limit: u32) -> BoxFuture<'_, Result<()>> {
        let _ = (name, limit);
        unsupported("resize")
    }

    /// Attaches a value to the lease that `token` holds. False when it no longer does.
    ///
    /// # Errors
    /// `Unsupported` by default.
    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let _ = (name, token, value);
        unsupported("annotate")
    }

    /// Hands the lease to a waiting candidate.
    ///
    /// # Errors
    /// When the store fails.
    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let _ = (name, token, to);
        Box::pin(async { Ok(Transferred::Unsupported) })
    }

    /// Ends the lease by force and burns a token, so that the old holder is refused everywhere.
    ///
    /// # Errors
    /// `Unsupported` by default.
    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let _ = name;
        unsupported("break_lease")
    }

    /// What is known about `name`.
    ///
    /// # Errors
    /// When the store fails.
    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>>;

    /// Held leases whose name starts with `prefix`, by name, at most `limit`.
    ///
    /// # Errors
    /// `Unsupported` by default.
    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let _ = (prefix, limit);
        unsupported("list")
    }

    /// Resolves when `name` may have changed: a hint that may be spurious, never the only wake-up.
    ///
    /// # Errors
    /// `Unsupported` by default.
    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        let _ = name;
        unsupported("watch")
    }

    /// The servers behind this store, asked now: for people who look whether they are recent enough. A store in the memory
    /// of the program has none.
    ///
    /// # Errors
    /// When the store fails. A server of several that does not answer is told without a version.
    fn servers(&self) -> BoxFuture<'_, Result<Vec<Server>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    /// What this store promises.
    fn guarantees(&self) -> Guarantees;
}

/// A server or a library behind a store, as it names itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Server {
    /// What it is: `Redis`, `PostgreSQL`.
    pub product: &'static str,
    /// Where it is, without a password; empty for a library.
    pub address: String,
    /// Its version; empty when it does not answer.
    pub version: String,
    /// The oldest version that the store is tested with.
    pub oldest: &'static str,
}

impl Server {
    /// A server that answered with `version`.
    #[must_use]
    pub fn new(
        product: &'static str,
        address: impl Into<String>,
        version: impl Into<String>,
        oldest: &'static str,
    ) -> Self {
        Self { product, address: address.into(), version: version.into(), oldest }
    }

    /// Whether its version is at least the oldest one that is tested: by numbers, as far as both go. What is no version is
    /// not.
    ///
    /// # Examples
    /// ```
    /// use mainstay_store::lease::Server;
    ///
    /// let server = |version: &str| Server::new("Redis", "127.0.0.1:6379", version, "6.2");
    /// assert!(server("7.0.15").is_recent() && server("6.2").is_recent() && server("6.10-rc1").is_recent());
    /// assert!(!server("6.0.16").is_recent() && !server("").is_recent());
    /// ```
    #[must_use]
    pub fn is_recent(&self) -> bool {
        let numbers = |text: &str| -> Vec<u32> {
            let digits = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>();
            text.split('.').map_while(|part| digits(part).parse().ok()).collect()
        };
        let (have, need) = (numbers(&self.version), numbers(self.oldest));
        !have.is_empty() && have >= need[..need.len().min(have.len())].to_vec()
    }
}

/// What every store refuses before it gives a semaphore another limit.
///
/// # Errors
/// `ApiMisuse` for none or more than [`MAX_PERMITS`].
pub fn check_limit(limit: u32) -> Result<()> {
    if (1..=MAX_PERMITS).contains(&limit) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::ApiMisuse, "a semaphore has 1 to 2,147,483,647 permits"))
}

/// Somebody uses `name` as another kind of lock, or as a semaphore of another size.
#[must_use]
pub fn mismatch(name: &str, text: impl fmt::Display) -> Error {
    Error::new(ErrorKind::ConfigMismatch, format!("`{name}` {text}"))
}

fn unsupported<T>(what: &'static str) -> BoxFuture<'static, Result<T>>
where
    T: Send + 'static,
{
    Box::pin(
        async move { Err(Error::new(ErrorKind::Unsupported, format!("this lease store cannot {what}"))) },
    )
}
