//! Named leases with fencing tokens.

pub mod table;
mod watchers;

use std::fmt;
use std::time::Duration;

pub use watchers::Watchers;

use crate::{BoxFuture, Error, ErrorKind, FencingToken, Result};

/// The longest lease: a longer one is a mistake, for it would outlive whoever could end it.
pub const MAX_TTL: Duration = Duration::from_secs(86_400 * 30);
/// The longest name, owner or op id, in bytes.
pub const MAX_TEXT: usize = 1_024;

/// How holders of one name share it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_enums, reason = "mutex, readers, semaphore")]
pub enum Share {
    /// Nobody else.
    Exclusive,
    /// At most `limit` holders.
    Permit {
        /// Most holders at once.
        limit: u32,
    },
    /// Any number of sharing holders, no exclusive one.
    Shared,
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
    /// [`MAX_TTL`], a semaphore without permits, texts that are empty or longer than [`MAX_TEXT`].
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
        if matches!(self.share, Share::Permit { limit: 0 }) {
            return misuse("a semaphore has at least one permit");
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
        /// How long its lease still lasts, if the store can tell.
        remaining: Option<Duration>,
    },
    /// In line.
    Queued {
        /// Places before this one, if the store can tell.
        position: Option<u32>,
    },
}

/// The answer of [`LeaseStore::release`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "there are two answers")]
pub enum Released {
    /// It had ended before: work done under it may have overlapped with another holder's.
    AlreadyGone,
    /// It was held until now.
    Clean,
}

/// The answer of [`LeaseStore::renew`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "there are two answers")]
pub enum Renewed {
    /// Every lease of the operation runs `ttl` longer, counted from before the request.
    Renewed(Vec<Grant>),
    /// At least one is gone.
    Lost,
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

/// What a store knows about one lease.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaseInfo {
    /// Its name.
    pub name: String,
    /// Holders: owner, token, remaining time.
    pub holders: Vec<(String, FencingToken, Duration)>,
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
    /// The shortest ttl that makes sense.
    pub min_ttl: Duration,
    /// Names of the capabilities beyond the mutex that are native.
    pub native: &'static [&'static str],
}

impl Guarantees {
    /// Declares guarantees.
    #[must_use]
    pub const fn new(fencing: Fencing, clock: &'static str, failover: &'static str) -> Self {
        Self { fencing, clock, failover, fair: false, min_ttl: Duration::from_millis(10), native: &[] }
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
    /// unsorted names or a ttl of zero, otherwise when the store fails.
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

    /// What this store promises.
    fn guarantees(&self) -> Guarantees;
}

fn unsupported<T>(what: &'static str) -> BoxFuture<'static, Result<T>>
where
    T: Send + 'static,
{
    Box::pin(
        async move { Err(Error::new(ErrorKind::Unsupported, format!("this lease store cannot {what}"))) },
    )
}
