//! Locks: a mutex, readers and a writer, a semaphore, several names at once.
//!
//! All of them are one recipe on a lease store: ask; if it is held, wait for a hint of the store *and* a
//! timer, then ask again, until the caller's deadline. What is granted comes as a [`Guard`].
//!
//! Waiters of one process stand in one line per name, in the order in which they came, and only the first
//! of them talks to the store. Between processes a lock is as fair as the store
//! ([`guarantees`](crate::Coordinator::guarantees)).

mod exec;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_clock::Deadline;
use mainstay_store::lease::{Fencing, LeaseInfo, Line, MAX_PERMITS, Share};

use crate::coordinator::Core;
use crate::guard::is_too_short;
use crate::{ConfigError, Error, ErrorKind, Guard};
use state::Patience;
pub(crate) use state::deaf;

/// Lease of a lock that was told nothing else: two renewals may fail and the third still comes in time.
pub(crate) const DEFAULT_TTL: Duration = Duration::from_secs(30);
/// Names of one acquisition: they are taken in one transaction of the store.
const MAX_NAMES: usize = 64;

/// How a name is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Exclusive,
    Permit(u32),
    Shared,
}

impl Kind {
    fn share(self) -> Share {
        match self {
            Self::Exclusive => Share::Exclusive,
            Self::Permit(limit) => Share::Permit { limit, count: 1 },
            Self::Shared => Share::Shared,
        }
    }
}

/// Settings of a lock.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `ttl` | 30 s | two failed renewals fit; a dead holder blocks for half a minute |
/// | `require` | nothing | the weakest store still excludes while nothing fails |
/// | `max_hold` | none | work decides how long it takes |
/// | `fair` | off | standing in line costs the store a queue, and not every store keeps one |
#[derive(Debug)]
#[must_use]
pub struct Builder {
    core: Arc<Core>,
    names: Vec<String>,
    kind: Kind,
    ttl: Duration,
    require: Fencing,
    max_hold: Option<Duration>,
    line: Line,
    note: String,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new(core: Arc<Core>, names: Vec<String>, kind: Kind) -> Self {
        Self {
            core,
            names,
            kind,
            ttl: DEFAULT_TTL,
            require: Fencing::None,
            max_hold: None,
            line: Line::Try,
            note: String::new(),
        }
    }

    /// How long the lease lasts without renewal.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// The weakest fencing that the store must declare.
    pub fn require(mut self, fencing: Fencing) -> Self {
        self.require = fencing;
        self
    }

    /// Ends a hold after this time though it could be renewed: for work that may hang.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.max_hold = Some(limit);
        self
    }

    /// Stands in the store's line, so that waiters of all processes are served in order. Refused by
    /// [`build`](Self::build) on a store that keeps no line.
    pub fn fair(mut self) -> Self {
        self.line = Line::Join;
        self
    }

    /// A note that others see.
    pub fn note(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }

    /// Checks the settings against what the store declares.
    ///
    /// # Errors
    /// A name that is empty, too long, repeated or has control characters; a ttl under the store's
    /// shortest or over its longest, or one that the margin before its end would use up; a limit of zero; more fencing than the store declares; readers, permits or a
    /// place in line where the store has none.
    pub fn build(self) -> Result<Lock, ConfigError> {
        let declared = self.core.store.guarantees();
        if self.ttl < declared.min_ttl || self.ttl > declared.max_ttl {
            let allowed = format!("{:?} to {:?} on this store", declared.min_ttl, declared.max_ttl);
            return Err(ConfigError::new("ttl", format!("{:?}", self.ttl), allowed));
        }
        if is_too_short(self.ttl) {
            let allowed = "more than 8 ms: of less, too little is left to work in";
            return Err(ConfigError::new("ttl", format!("{:?}", self.ttl), allowed));
        }
        if let Some((field, what)) = self.unsupported(declared.native) {
            let allowed = format!("none: this store has no {what}");
            return Err(ConfigError::new(field, self.names.join(", "), allowed));
        }
        if rank(declared.fencing) < rank(self.require) {
            let allowed = format!("at most {:?}: that is what this store declares", declared.fencing);
            return Err(ConfigError::new("require", format!("{:?}", self.require), allowed));
        }
        if self.max_hold.is_some_and(|d| d.is_zero()) {
            return Err(ConfigError::new("max_hold", "0s", "more than 0"));
        }
        if let Kind::Permit(limit) = self.kind
            && !(1..=MAX_PERMITS).contains(&limit)
        {
            return Err(ConfigError::new("limit", limit, "1 to 2,147,483,647 permits"));
        }
        let mut names = Vec::with_capacity(self.names.len());
        for name in &self.names {
            names.push(self.core.full_name(name)?);
        }
        names.sort();
        if names.is_empty() || names.len() > MAX_NAMES || names.windows(2).any(|w| w[0] == w[1]) {
            return Err(ConfigError::new("names", self.names.join(", "), "1 to 64 different names"));
        }
        let want = Want {
            names,
            share: self.kind.share(),
            ttl: self.ttl,
            max_hold: self.max_hold,
            line: self.line,
            note: self.note,
        };
        Ok(Lock { core: self.core, want: Arc::new(Mutex::new(Arc::new(want))) })
    }

    /// The first setting that needs what the store does not have natively, and what that is.
    fn unsupported(&self, native: &[&str]) -> Option<(&'static str, &'static str)> {
        let needed = [
            (self.kind == Kind::Shared, "shared", "read", "readers beside each other"),
            (matches!(self.kind, Kind::Permit(_)), "permit", "semaphore", "semaphores"),
            (self.line == Line::Join, "line", "fair", "line of waiters"),
        ];
        let lacks = needed.into_iter().find(|(wanted, name, ..)| *wanted && !native.contains(name));
        lacks.map(|(_, _, field, what)| (field, what))
    }
}

fn rank(fencing: Fencing) -> u8 {
    match fencing {
        Fencing::None => 0,
        Fencing::WhileStateSurvives => 1,
        Fencing::Strict => 2,
    }
}

/// What is asked for, the same for every acquisition of a handle.
#[derive(Clone, Debug)]
pub(crate) struct Want {
    pub(crate) names: Vec<String>,
    pub(crate) share: Share,
    pub(crate) ttl: Duration,
    pub(crate) max_hold: Option<Duration>,
    pub(crate) line: Line,
    pub(crate) note: String,
}

impl Want {
    /// Of a semaphore.
    fn size(&self) -> Result<u32, Error> {
        match self.share {
            Share::Permit { limit, .. } => Ok(limit),
            Share::Exclusive | Share::Shared => {
                let why = format!("`{}` is no semaphore", self.names[0]);
                Err(Error::new(ErrorKind::ApiMisuse, why))
            }
        }
    }
}

/// A lock that can be acquired again and again. Cheap to clone.
///
/// Not re-entrant: a second acquisition waits for the first, also in the same task.
#[derive(Clone, Debug)]
pub struct Lock {
    pub(crate) core: Arc<Core>,
    /// Changes with the size of a semaphore.
    want: Arc<Mutex<Arc<Want>>>,
}

impl Lock {
    pub(crate) fn want(&self) -> Arc<Want> {
        Arc::clone(&self.want.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits until it is held, or until `limit`. When that is over already it is asked once.
    ///
    /// # Errors
    /// `TimedOut` when somebody else held it to the end, `Unreachable` when the store did not answer to the
    /// end, `Store` when what it says of itself cannot pass, `Expired` for a grant that came too late,
    /// `StoreRegressed`, `Unsupported`.
    ///
    /// # Cancel safety
    /// Dropping the future gives up. A lease that may have been granted is released in the background; until
    /// then, at most one ttl, it may keep others waiting.
    pub async fn acquire(&self, limit: Deadline) -> Result<Guard, Error> {
        exec::acquire(&self.core, &self.want(), Patience::Until(limit)).await
    }

    /// Asks once.
    ///
    /// # Errors
    /// `Contended` when somebody else holds it; otherwise as [`acquire`](Self::acquire).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire(&self) -> Result<Guard, Error> {
        exec::acquire(&self.core, &self.want(), Patience::None).await
    }

    /// Waits until `count` permits of a semaphore are held together, or until `limit`: all of them or none, so two who
    /// want many cannot each hold what the other waits for. The guard gives them back together.
    ///
    /// Where the store keeps a line it is stood in, so that whoever wants few does not overtake.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire); `ConfigMismatch` when others use the semaphore with another size, or when it has
    /// fewer permits than are asked for; `ApiMisuse` for what is no semaphore, and for no permit.
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use mainstay_clock::{Deadline, Runtime};
    /// # use mainstay_coordination::{Coordinator, ErrorKind};
    /// # use mainstay_store::memory::MemoryLeaseStore;
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// # let rt = Runtime::system();
    /// # let store = Arc::new(MemoryLeaseStore::new(Arc::clone(rt.clock())));
    /// # let locks = Coordinator::builder(store, rt).namespace("billing").owner("node-7").build()?;
    /// let workers = locks.semaphore("workers", 5).build()?;
    /// let three = workers.acquire_many(3, Deadline::NONE).await?;
    /// assert!(matches!(workers.try_acquire_many(3).await.unwrap_err().kind(), ErrorKind::Contended { .. }));
    ///
    /// workers.resize(6).await?;
    /// workers.acquire_many(3, Deadline::NONE).await?.release().await?;
    /// let old = locks.semaphore("workers", 5).build()?;
    /// assert_eq!(*old.try_acquire().await.unwrap_err().kind(), ErrorKind::ConfigMismatch);
    /// # three.release().await?;
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    pub async fn acquire_many(&self, count: u32, limit: Deadline) -> Result<Guard, Error> {
        exec::acquire(&self.core, &self.many(count)?, Patience::Until(limit)).await
    }

    /// Asks once for `count` permits of a semaphore.
    ///
    /// # Errors
    /// `Contended` when so many are not free; otherwise as [`acquire_many`](Self::acquire_many).
    ///
    /// # Cancel safety
    /// As [`acquire`](Self::acquire).
    pub async fn try_acquire_many(&self, count: u32) -> Result<Guard, Error> {
        exec::acquire(&self.core, &self.many(count)?, Patience::None).await
    }

    fn many(&self, count: u32) -> Result<Arc<Want>, Error> {
        let mut want = self.want();
        let size = want.size()?;
        if count == 0 {
            let why = format!("`{}`: no permit was asked for", want.names[0]);
            return Err(Error::new(ErrorKind::ApiMisuse, why));
        }
        if count > size {
            let why = format!("`{}` has {size} permits; {count} are asked for", want.names[0]);
            return Err(Error::new(ErrorKind::ConfigMismatch, why));
        }
        let many = Arc::make_mut(&mut want);
        many.share = Share::Permit { limit: size, count };
        if count > 1 && self.core.store.guarantees().native.contains(&"line") {
            many.line = Line::Join;
        }
        Ok(want)
    }

    /// Gives a semaphore another size: for everybody who holds a permit or waits in line, and for this handle and its
    /// clones. Nobody loses a permit: after it shrank, nobody gets one until so many came back.
    ///
    /// Other handles keep the size that they were built with. While somebody uses the semaphore they are refused with
    /// `ConfigMismatch`; build them anew with the new size. When nobody uses it any more, its size is that of whoever comes
    /// next.
    ///
    /// # Errors
    /// `ApiMisuse` for what is no semaphore, and for a size of 0 or over 2,147,483,647; `ConfigMismatch` when others use the
    /// name for something else; `Unsupported` on a store without semaphores. Otherwise when the store fails: this handle
    /// then keeps its size, and whether others got the new one is unknown. Repeating it is harmless.
    ///
    /// # Cancel safety
    /// A dropped future may have changed the size for others only. Repeating it is harmless.
    pub async fn resize(&self, size: u32) -> Result<(), Error> {
        let want = self.want();
        want.size()?;
        let name = &want.names[0];
        self.core.store.resize(name, size).await.map_err(|e| Error::store(name, e))?;
        let mut now = self.want.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut now).share = Share::Permit { limit: size, count: 1 };
        Ok(())
    }

    /// Who holds it, as far as the store knows: a picture of the past, for people. Decide nothing by it.
    ///
    /// # Errors
    /// When the store fails.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn stats(&self) -> Result<Vec<Stats>, Error> {
        let want = self.want();
        let mut all = Vec::with_capacity(want.names.len());
        for name in &want.names {
            let info = self.core.store.inspect(name).await.map_err(|e| Error::store(name, e))?;
            all.push(Stats { info });
        }
        Ok(all)
    }
}

/// What a store knows about one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stats {
    info: LeaseInfo,
}

impl Stats {
    /// The store's record.
    #[must_use]
    pub fn info(&self) -> &LeaseInfo {
        &self.info
    }
}
