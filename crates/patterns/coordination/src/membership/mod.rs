//! Membership: who is there, with metadata.
//!
//! A member is a held lease under the group's prefix with its metadata attached; its incarnation is the fencing
//! token of that lease. A name that lives is refused to others. Whoever watches gets a snapshot, then changes, and
//! can tell a member that left from one whose entry ran out.
//!
//! What is seen is a picture of the past: a member that is listed may be gone, one that is not may be there. Decide
//! by tokens what must not happen twice.

mod state;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Deadline;
use mainstay_store::FencingToken;
use mainstay_store::lease::{AcquireRequest, Acquired, Holder, LeaseInfo, Released};

use crate::coordinator::{Core, LOOK, given, part};
use crate::lock::{self, Lock};
use crate::{ConfigError, Error, ErrorKind, Guard, LossReason};
use state::{Entry, Look, REMEMBER, View};

/// Most members of one group: every look reads all of them.
pub const MAX_MEMBERS: usize = 10_000;
/// Longest metadata: it travels with every look.
pub const MAX_META: usize = 4_096;
/// Tries to leave a trace while an older trace is in the way.
const TRACES: u32 = 3;

/// A member, as a look found it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its name in the group.
    pub name: String,
    /// The owner that its coordinator has, for people.
    pub owner: String,
    /// Grows with every join of the name.
    pub incarnation: FencingToken,
    /// What it says about itself.
    pub meta: Vec<u8>,
}

/// How a member went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Departure {
    /// Its entry was not renewed and ran out: it crashed, hung or was cut off.
    Expired,
    /// It said so.
    Left,
    /// It was taken away or dropped its entry without a word, well before its end, or went while nobody looked for a minute.
    Unknown,
}

/// One change of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "callers must handle each")]
pub enum Change {
    /// It is there no more.
    Gone {
        /// As it was seen last.
        member: Member,
        /// How it went.
        how: Departure,
    },
    /// It came; a name that came back has another incarnation.
    Joined(Member),
    /// Its metadata changed.
    Updated(Member),
}

/// A change with its place in the order of one watch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delta {
    /// Counts the changes of this watch from its snapshot on, without a gap.
    pub revision: u64,
    /// What changed.
    pub change: Change,
}

/// Everybody at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Snapshot {
    /// The revision that later changes follow.
    pub revision: u64,
    /// By name.
    pub members: Vec<Member>,
}

/// What a watch tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "a watch tells these two")]
pub enum Event {
    /// A change; always after a snapshot.
    Delta(Delta),
    /// Where changes start from; always the first.
    Snapshot(Snapshot),
}

/// Settings of a group.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `ttl` | 30 s, renewed each 10 s | as for a lock: two failed renewals fit, a crash is seen within it |
#[derive(Debug)]
#[must_use]
pub struct Builder {
    core: Arc<Core>,
    name: String,
    ttl: Duration,
}

impl Builder {
    pub(crate) fn new(core: Arc<Core>, name: &str) -> Self {
        Self { core, name: name.to_owned(), ttl: lock::DEFAULT_TTL }
    }

    /// How long an entry lasts without renewal.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A bad name, a ttl that the store cannot keep.
    pub fn build(self) -> Result<Group, ConfigError> {
        let group = part(given("name", &self.name)?);
        let prefix = self.core.full_name(&format!("member/{group}/"))?;
        let left = self.core.full_name(&format!("left/{group}/"))?;
        let bell = self.core.bell(&format!("member/{group}"))?;
        let inner = Inner { core: self.core, name: self.name, ttl: self.ttl, prefix, left, bell };
        // Refuses a ttl now, not at the first join.
        inner.lock("x")?;
        Ok(Group(Arc::new(inner)))
    }
}

#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    name: String,
    ttl: Duration,
    prefix: String,
    left: String,
    bell: String,
}

impl Inner {
    fn lock(&self, member: &str) -> Result<Lock, ConfigError> {
        let name = format!("member/{}/{}", part(&self.name), given("member", member)?);
        lock::Builder::new(Arc::clone(&self.core), vec![name], lock::Kind::Exclusive).ttl(self.ttl).build()
    }

    async fn listed(&self, prefix: &str) -> Result<Vec<LeaseInfo>, Error> {
        let found = self.core.store.list(prefix, MAX_MEMBERS).await.map_err(|e| Error::store(prefix, e))?;
        if found.len() >= MAX_MEMBERS {
            let why = format!("`{}` has {MAX_MEMBERS} members or more; use several groups", self.name);
            return Err(Error::new(ErrorKind::ApiMisuse, why));
        }
        Ok(found)
    }

    async fn entries(&self) -> Result<Vec<Entry>, Error> {
        let found = self.listed(&self.prefix).await?;
        Ok(found.into_iter().filter_map(|info| self.entry(info)).collect())
    }

    /// Who has said nothing about itself yet is still joining.
    fn entry(&self, info: LeaseInfo) -> Option<Entry> {
        let name = info.name.strip_prefix(&self.prefix)?.to_owned();
        let Holder { owner, token, remaining, .. } = info.holders.into_iter().next()?;
        let member = Member { name, owner, incarnation: token, meta: info.annotation? };
        Some(Entry { member, remaining })
    }

    /// Who said goodbye within the last minute.
    async fn departures(&self) -> Result<BTreeMap<String, FencingToken>, Error> {
        let found = self.listed(&self.left).await?;
        let one = |info: LeaseInfo| {
            let name = info.name.strip_prefix(&self.left)?.to_owned();
            let incarnation = info.holders.first()?.owner.parse().ok()?;
            Some((name, FencingToken::new(incarnation)))
        };
        Ok(found.into_iter().filter_map(one).collect())
    }

    /// Leaves a trace that says which incarnation went on purpose; it ends by itself.
    async fn trace(&self, member: &str, incarnation: FencingToken) -> mainstay_store::Result<()> {
        let name = format!("{}{member}", self.left);
        let said = incarnation.get().to_string();
        for _ in 0..TRACES {
            let request = AcquireRequest::exclusive(&name, &said, &self.core.op_id(), REMEMBER);
            match self.core.store.acquire(request).await? {
                Acquired::Granted(_) => return Ok(()),
                // An earlier incarnation left less than a minute ago.
                _ => self.core.store.break_lease(&name).await.map(drop)?,
            }
        }
        Ok(())
    }
}

/// A group that can be joined and watched. Cheap to clone.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::Runtime;
/// use mainstay_coordination::Coordinator;
/// use mainstay_coordination::membership::{Change, Departure, Event};
/// use mainstay_store::memory::MemoryLeaseStore;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let rt = Runtime::system();
/// let store = Arc::new(MemoryLeaseStore::new(Arc::clone(rt.clock())));
/// let node = Coordinator::builder(store, rt).namespace("billing").owner("host-7").build()?;
/// let workers = node.group("workers").build()?;
///
/// let me = workers.try_join("w1", "10.0.0.7:80").await?;
/// assert!(workers.try_join("w1", "somebody else").await.is_err(), "the name lives");
/// let mut watch = workers.watch();
/// let Event::Snapshot(seen) = watch.next().await? else { panic!("a snapshot comes first") };
/// assert_eq!(seen.members[0].meta, b"10.0.0.7:80");
///
/// me.leave().await?;
/// let Event::Delta(delta) = watch.next().await? else { panic!("then changes") };
/// assert!(matches!(delta.change, Change::Gone { how: Departure::Left, .. }));
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Group(Arc<Inner>);

impl Group {
    /// Joins under `name`, waiting until an entry of that name ends, or until `limit`.
    ///
    /// # Errors
    /// `TimedOut` while another entry of that name lives; `ApiMisuse` for a bad name or too much metadata; `Lost` when the
    /// entry ended before the store had answered all; otherwise as [`Lock::acquire`].
    ///
    /// # Cancel safety
    /// As [`Lock::acquire`]: dropping the future leaves no member.
    pub async fn join(
        &self,
        name: &str,
        meta: impl Into<Vec<u8>>,
        limit: Deadline,
    ) -> Result<Membership, Error> {
        let (lock, meta) = self.ready(name, meta.into())?;
        self.enter(name, meta, lock.acquire(limit).await?).await
    }

    /// Joins under `name`, or says that the name lives.
    ///
    /// # Errors
    /// `Contended` when another entry of that name lives; otherwise as [`join`](Self::join).
    ///
    /// # Cancel safety
    /// As [`join`](Self::join).
    pub async fn try_join(&self, name: &str, meta: impl Into<Vec<u8>>) -> Result<Membership, Error> {
        let (lock, meta) = self.ready(name, meta.into())?;
        self.enter(name, meta, lock.try_acquire().await?).await
    }

    fn ready(&self, name: &str, meta: Vec<u8>) -> Result<(Lock, Vec<u8>), Error> {
        checked(&meta)?;
        let lock = self.0.lock(name).map_err(|e| Error::new(ErrorKind::ApiMisuse, e.to_string()))?;
        Ok((lock, meta))
    }

    async fn enter(&self, name: &str, meta: Vec<u8>, guard: Guard) -> Result<Membership, Error> {
        let membership = Membership { group: Arc::clone(&self.0), name: name.to_owned(), guard };
        membership.update(meta).await?;
        // The answer may have come after the end of the entry.
        membership.check()?;
        Ok(membership)
    }

    /// Who is there now, by name, as far as the store knows.
    ///
    /// # Errors
    /// When the store fails.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn members(&self) -> Result<Vec<Member>, Error> {
        Ok(self.0.entries().await?.into_iter().map(|entry| entry.member).collect())
    }

    /// The name of the lease behind a member, for whoever holds it by the store's contract instead of a
    /// [`Membership`]: the metadata is the annotation of that lease, and a lease without one is no member yet.
    ///
    /// # Errors
    /// `ApiMisuse` for a bad name.
    pub fn lease(&self, name: &str) -> Result<String, Error> {
        self.0.lock(name).map_err(|e| Error::new(ErrorKind::ApiMisuse, e.to_string()))?;
        Ok(format!("{}{name}", self.0.prefix))
    }

    /// Resolves when the group may have changed, armed from now on: a hint that may be spurious or missing.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + use<'_> {
        self.0.core.hint(&self.0.bell, 0)
    }

    /// Wakes whoever watches the group, best effort: a lease behind a member has changed.
    pub fn announce(&self) {
        self.0.core.ring_later(&self.0.bell);
    }

    /// Says goodbye for a member whose lease is about to be released by the store's contract.
    ///
    /// # Errors
    /// When the store fails.
    ///
    /// # Cancel safety
    /// A dropped future may have said it.
    pub async fn goodbye(&self, name: &str, incarnation: FencingToken) -> Result<(), Error> {
        self.0.trace(name, incarnation).await.map_err(|e| Error::store(&self.0.name, e))
    }

    /// Watches the group: a snapshot, then every change that a look finds.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch { group: Arc::clone(&self.0), view: View::default() }
    }
}

fn checked(meta: &[u8]) -> Result<(), Error> {
    if meta.len() > MAX_META {
        return Err(Error::new(ErrorKind::ApiMisuse, format!("metadata has at most {MAX_META} bytes")));
    }
    Ok(())
}

/// A watch of a group.
///
/// Guarantees: the first event is a snapshot; revisions have no gap; what is there when things are quiet is told.
/// Not guaranteed: that somebody who came and went between two looks is told at all. A look follows every hint of
/// the store, the end of every entry, and a second without either.
#[derive(Debug)]
pub struct Watch {
    group: Arc<Inner>,
    view: View,
}

impl Watch {
    /// The next event.
    ///
    /// # Errors
    /// When the store fails; ask again to go on from where it stood.
    ///
    /// # Cancel safety
    /// No event is lost: what the dropped future would have told comes with the next.
    pub async fn next(&mut self) -> Result<Event, Error> {
        let mut vain = 0;
        loop {
            if let Some(event) = self.view.pop() {
                return Ok(event);
            }
            let (group, core) = (&self.group, &self.group.core);
            // Armed before the look, so that a change in between is not slept over.
            let hint = core.hint(&group.bell, vain);
            let asked = core.now();
            let entries = group.entries().await?;
            let look = Look { asked, answered: core.now() };
            let left = if self.view.misses(&entries) { group.departures().await? } else { BTreeMap::new() };
            self.view.saw(look, entries, &left);
            if let Some(event) = self.view.pop() {
                return Ok(event);
            }
            tokio::select! {
                biased;
                () = hint => vain += 1,
                () = core.clock().sleep_until(self.view.next_look(core.now(), LOOK)) => vain = 0,
            }
        }
    }
}

/// One's own entry in a group. It is renewed until it is dropped or leaves.
///
/// Dropping it gives the entry back in the background without a word: watchers see [`Departure::Unknown`].
/// [`leave`](Self::leave) says goodbye.
#[derive(Debug)]
#[must_use = "a dropped membership ends"]
pub struct Membership {
    group: Arc<Inner>,
    name: String,
    guard: Guard,
}

impl Membership {
    /// The name in the group.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The incarnation: larger than that of every earlier member of the name.
    #[must_use]
    pub fn incarnation(&self) -> FencingToken {
        self.guard.token()
    }

    /// Whether the entry is still there, without asking the store.
    ///
    /// # Errors
    /// `Lost` with the reason.
    pub fn check(&self) -> Result<(), Error> {
        self.guard.check()
    }

    /// Resolves when the entry is gone: others no longer see this member, and may take its name.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn lost(&self) -> LossReason {
        self.guard.lost().await
    }

    /// Replaces the metadata.
    ///
    /// # Errors
    /// `Lost` when the entry is gone, `ApiMisuse` for too much, `Unsupported` on a store without annotations.
    ///
    /// # Cancel safety
    /// A dropped future may have replaced it.
    pub async fn update(&self, meta: impl Into<Vec<u8>>) -> Result<(), Error> {
        let meta = meta.into();
        checked(&meta)?;
        self.check()?;
        let name = self.guard.name();
        let kept = self.guard.store().annotate(name, self.incarnation(), meta).await;
        if !kept.map_err(|e| Error::store(name, e))? {
            return Err(Error::lost(name, LossReason::TakenOver));
        }
        self.group.core.ring_later(&self.group.bell);
        Ok(())
    }

    /// Says goodbye and goes.
    ///
    /// # Errors
    /// When the store fails until the entry has ended by itself.
    ///
    /// # Cancel safety
    /// A dropped future goes without a word, or has gone.
    pub async fn leave(self) -> Result<Released, Error> {
        let Self { group, name, guard } = self;
        if let Err(error) = group.trace(&name, guard.token()).await {
            tracing::warn!(group = group.name, member = name, %error, "a member goes without a word");
        }
        let released = guard.release().await?;
        group.core.ring_later(&group.bell);
        Ok(released)
    }
}
