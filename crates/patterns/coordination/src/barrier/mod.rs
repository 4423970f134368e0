//! Barriers: members wait for each other before they go on.
//!
//! Every member holds a lease while it waits, so a member that dies is noticed when that lease ends: it is
//! subtracted and reported, or the round breaks for all, as the barrier was built. What was decided is kept in a
//! record, so that nobody who was counted misses that it opened.

mod state;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Deadline;
use mainstay_store::lease::Released;

use crate::coordinator::{Core, LOOK, given, part};
use crate::lock;
use crate::record::{Record, Step, read};
use crate::{ConfigError, Error, ErrorKind, Guard, LossReason};
use state::{Kind, Member, Mismatch, Outcome, Status};

/// Most members of a barrier: all of them are in one record.
pub const MAX_SIZE: u32 = 1_000;
/// Longest name of a member.
const MAX_ID: usize = 255;

/// Settings of a barrier.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `ttl` | 30 s, renewed each 10 s | as for a lock; a member that died is noticed within it |
/// | `breaks` | off | the others can go on without it, and are told |
#[derive(Debug)]
#[must_use]
pub struct Builder {
    core: Arc<Core>,
    name: String,
    size: u32,
    ttl: Duration,
    breaks: bool,
}

impl Builder {
    pub(crate) fn new(core: Arc<Core>, name: &str, size: u32) -> Self {
        Self { core, name: name.to_owned(), size, ttl: lock::DEFAULT_TTL, breaks: false }
    }

    /// How long the lease of a waiting member lasts without renewal.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// A member that dies while it is waited for ends the round for all, with `Broken`. All members must say so.
    pub fn breaks(mut self) -> Self {
        self.breaks = true;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// A bad name, a size of zero or over 1,000, a ttl that the store cannot keep, no records.
    pub fn build(self) -> Result<Barrier, ConfigError> {
        if self.size == 0 || self.size > MAX_SIZE {
            return Err(ConfigError::new("size", self.size, format!("1 to {MAX_SIZE} members")));
        }
        let name = format!("barrier/{}", part(given("name", &self.name)?));
        let key = self.core.full_name(&name)?;
        let record = Record { core: Arc::clone(&self.core), store: self.core.records()?, key };
        let (prefix, bell) = (self.core.full_name(&format!("{name}/"))?, self.core.bell(&name)?);
        let inner = Inner {
            core: self.core,
            record,
            name,
            prefix,
            bell,
            size: self.size,
            ttl: self.ttl,
            breaks: self.breaks,
        };
        inner.lock("x")?;
        Ok(Barrier(Arc::new(inner)))
    }
}

#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    record: Record,
    name: String,
    /// Of the leases of members.
    prefix: String,
    bell: String,
    size: u32,
    ttl: Duration,
    breaks: bool,
}

/// A round that opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Passage {
    /// Counts the rounds.
    pub generation: u64,
    /// Who passes.
    pub members: BTreeSet<String>,
    /// Who was counted and died; they were not waited for.
    pub dead: BTreeSet<String>,
}

impl From<Outcome> for Passage {
    fn from(outcome: Outcome) -> Self {
        let members = outcome.members.into_iter().map(|(id, _)| id).collect();
        Self { generation: outcome.generation, members, dead: outcome.dead }
    }
}

/// One member while its lease is held.
struct Place {
    me: Member,
    guard: Guard,
}

impl Inner {
    fn lock(&self, id: &str) -> Result<lock::Lock, ConfigError> {
        let name = format!("{}/{id}", self.name);
        lock::Builder::new(Arc::clone(&self.core), vec![name], lock::Kind::Exclusive).ttl(self.ttl).build()
    }

    fn decoded(&self, value: Option<&[u8]>, kind: Kind) -> Result<state::Barrier, Error> {
        let Some(value) = value else { return Ok(state::Barrier::new(kind, self.size)) };
        let key = &self.record.key;
        wire::decoded(&read(key, value)?)
            .ok_or_else(|| Error::new(ErrorKind::ApiMisuse, format!("the record `{key}` is no barrier's")))
    }

    async fn look(&self, kind: Kind) -> Result<state::Barrier, Error> {
        self.decoded(self.record.get().await?.as_deref(), kind)
    }

    /// One step of the state machine, and the state after it.
    async fn step(
        &self,
        kind: Kind,
        step: impl Fn(&mut state::Barrier) -> Result<bool, Mismatch>,
    ) -> Result<state::Barrier, Error> {
        let done = self.record.update(Deadline::NONE, |value| {
            let mut barrier = self.decoded(value, kind)?;
            let (generation, inside) = (barrier.generation, !barrier.inside.is_empty());
            let changed = step(&mut barrier).map_err(|m| self.mismatch(m))?;
            let moved = generation != barrier.generation || (inside && barrier.inside.is_empty());
            let answer = (barrier.clone(), changed && moved);
            Ok(if changed { Step::Write(wire::encoded(&barrier), answer) } else { Step::Keep(answer) })
        });
        let (barrier, moved) = done.await?;
        if moved {
            self.core.ring_later(&self.bell);
        }
        Ok(barrier)
    }

    fn mismatch(&self, Mismatch { kind, size }: Mismatch) -> Error {
        let how = if kind == Kind::Double { "enter and leave" } else { "wait" };
        let why = format!("`{}` is in use by {size} members that {how}", self.record.key);
        Error::new(ErrorKind::ConfigMismatch, why)
    }

    /// Takes a place in the round that gathers.
    async fn enter(&self, id: &str, kind: Kind, limit: Deadline) -> Result<Place, Error> {
        let misuse = |why: String| Error::new(ErrorKind::ApiMisuse, why);
        if id.is_empty() || id.len() > MAX_ID {
            return Err(misuse("a member's name has 1 to 255 bytes".to_owned()));
        }
        // The lease comes first: who is in the record without one is dead.
        let lock = self.lock(id).map_err(|e| misuse(e.to_string()))?;
        let guard = lock.acquire(limit).await?;
        let place = Place { me: (id.to_owned(), guard.token()), guard };
        self.step(kind, |barrier| barrier.enter(&place.me, kind, self.size)).await?;
        Ok(place)
    }

    /// Waits until `done` says something of the barrier, burying who died meanwhile.
    async fn until<T>(
        &self,
        kind: Kind,
        place: &Place,
        limit: Deadline,
        done: impl Fn(&state::Barrier) -> Option<T>,
    ) -> Result<Option<T>, Error> {
        let core = &self.core;
        let mut vain = 0;
        loop {
            // Armed before the look, so that a change in between is not slept over.
            let hint = core.hint(&self.bell, vain);
            let mut barrier = self.look(kind).await?;
            if done(&barrier).is_none() {
                let (live, dead) = self.leases(&barrier).await?;
                if barrier.looked(&live, &dead, self.breaks) {
                    barrier = self.step(kind, |b| Ok(b.looked(&live, &dead, self.breaks))).await?;
                }
            }
            if let Some(answer) = done(&barrier) {
                return Ok(Some(answer));
            }
            place.guard.check()?;
            let now = core.now();
            if limit.is_some() && now >= limit.instant() {
                return Ok(None);
            }
            tokio::select! {
                biased;
                () = hint => vain += 1,
                _ = place.guard.lost() => {}
                () = core.clock().sleep_until(now.saturating_add(LOOK).min(limit.instant())) => vain = 0,
            }
        }
    }

    /// Of those who are waited for: who has a lease, and who has none any more. They were in the record before
    /// this look, and had their lease before that.
    async fn leases(&self, barrier: &state::Barrier) -> Result<(Vec<Member>, Vec<Member>), Error> {
        let most = MAX_SIZE as usize * 4;
        let found =
            self.core.store.list(&self.prefix, most).await.map_err(|e| Error::store(&self.prefix, e))?;
        if found.len() >= most {
            let why = format!("more than {most} members stand before `{}`", self.record.key);
            return Err(Error::new(ErrorKind::ApiMisuse, why));
        }
        let lives = |(id, token): &Member| {
            found.iter().any(|info| {
                info.name.strip_prefix(&self.prefix) == Some(id)
                    && info.holders.iter().any(|h| h.token == *token)
            })
        };
        Ok(barrier.expected().into_iter().partition(lives))
    }

    async fn pass(&self, kind: Kind, place: &Place, limit: Deadline) -> Result<Passage, Error> {
        let over = |barrier: &state::Barrier| match barrier.status(&place.me) {
            Status::Waiting => None,
            other => Some(other),
        };
        let status = match self.until(kind, place, limit, over).await? {
            Some(status) => status,
            None => {
                // It may open in the very moment in which the wait ends.
                let after = self.step(kind, |b| Ok(b.withdraw(&place.me))).await?;
                match after.status(&place.me) {
                    Status::Over(outcome) => Status::Over(outcome),
                    _ => {
                        let why = format!("`{}` did not open in time", self.record.key);
                        return Err(Error::new(ErrorKind::TimedOut { holder: None }, why));
                    }
                }
            }
        };
        match status {
            Status::Over(outcome) if outcome.opened => Ok(outcome.into()),
            Status::Over(outcome) => {
                let dead: Vec<String> = outcome.dead.into_iter().collect();
                let why = format!("`{}` broke: {} died", self.record.key, dead.join(", "));
                Err(Error::new(ErrorKind::Broken { dead }, why))
            }
            Status::Dropped | Status::Waiting => Err(Error::lost(&self.record.key, LossReason::TakenOver)),
        }
    }
}

/// A barrier. Cheap to clone.
///
/// Guarantees: nobody passes before one look found `size` waiting members with a live lease; everybody who was
/// counted then passes, those who came later wait for the next round. Not guaranteed: that all of them are still alive when the last one passes.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::{Deadline, Runtime};
/// use mainstay_coordination::Coordinator;
/// use mainstay_store::memory::{MemoryLeaseStore, MemoryRecordStore};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let rt = Runtime::system();
/// let leases = Arc::new(MemoryLeaseStore::new(Arc::clone(rt.clock())));
/// let records = Arc::new(MemoryRecordStore::new(Arc::clone(rt.clock())));
/// let node = Coordinator::builder(leases, rt).records(records).namespace("billing").owner("host-7").build()?;
///
/// let phase = node.barrier("phase-1", 2).build()?;
/// let (a, b) = tokio::join!(phase.wait("a", Deadline::NONE), phase.wait("b", Deadline::NONE));
/// assert_eq!(a?.members, b?.members);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Barrier(Arc<Inner>);

impl Barrier {
    /// Waits until `size` members wait, or until `limit`. The barrier can be used again at once.
    ///
    /// # Errors
    /// `TimedOut`; `Broken` when a member died and the barrier [breaks](Builder::breaks); `ConfigMismatch` when
    /// the others use it with another size or as a double barrier; `Lost` when this member was taken for dead;
    /// when the store fails.
    ///
    /// # Cancel safety
    /// Dropping the future gives up: the others see this member as dead, unless the round had opened.
    pub async fn wait(&self, id: &str, limit: Deadline) -> Result<Passage, Error> {
        let place = self.0.enter(id, Kind::Single, limit).await?;
        let passed = self.0.pass(Kind::Single, &place, limit).await;
        // What was decided is decided, also when the lease cannot be given back.
        if let Err(error) = place.guard.release().await {
            tracing::warn!(barrier = self.0.record.key, %error, "the lease of a member was not given back");
        }
        passed
    }

    /// Waits until `size` members want in, or until `limit`: the first half of a double barrier.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    /// As [`wait`](Self::wait).
    pub async fn enter(&self, id: &str, limit: Deadline) -> Result<Inside, Error> {
        let place = self.0.enter(id, Kind::Double, limit).await?;
        let passage = self.0.pass(Kind::Double, &place, limit).await?;
        Ok(Inside { barrier: Arc::clone(&self.0), place, passage })
    }
}

/// A member between the two halves of a double barrier. Its lease is renewed; dropping it counts as dying.
#[must_use = "a dropped member counts as dead"]
pub struct Inside {
    barrier: Arc<Inner>,
    place: Place,
    passage: Passage,
}

impl std::fmt::Debug for Inside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inside").field("passage", &self.passage).finish_non_exhaustive()
    }
}

impl Inside {
    /// The round, as it opened.
    #[must_use]
    pub fn passage(&self) -> &Passage {
        &self.passage
    }

    /// Whether the others still count this member, without asking the store.
    ///
    /// # Errors
    /// `Lost` with the reason.
    pub fn check(&self) -> Result<(), Error> {
        self.place.guard.check()
    }

    /// Waits until all members of the round want out, or until `limit`; who died is not waited for.
    ///
    /// # Errors
    /// `TimedOut`: this member is out, others are not; `Broken` when a member died inside and the barrier
    /// [breaks](Builder::breaks); `Lost` when this member was taken for dead; when the store fails.
    ///
    /// # Cancel safety
    /// Dropping the future leaves without waiting for the others.
    pub async fn leave(self, limit: Deadline) -> Result<Passage, Error> {
        let Self { barrier, place, passage } = self;
        place.guard.check()?;
        barrier.step(Kind::Double, |b| Ok(b.go_out(&place.me))).await?;
        let generation = passage.generation;
        let out = |b: &state::Barrier| {
            b.is_out(generation).then(|| b.past.iter().find(|o| o.generation == generation).cloned())
        };
        let left = barrier.until(Kind::Double, &place, limit, out).await;
        let _: Result<Released, Error> = place.guard.release().await;
        match left? {
            None => {
                let why = format!("`{}`: others are still inside", barrier.record.key);
                Err(Error::new(ErrorKind::TimedOut { holder: None }, why))
            }
            Some(Some(outcome)) if barrier.breaks && outcome.dead != passage.dead => {
                let dead: Vec<String> = outcome.dead.difference(&passage.dead).cloned().collect();
                let why = format!("`{}` broke: {} died inside", barrier.record.key, dead.join(", "));
                Err(Error::new(ErrorKind::Broken { dead }, why))
            }
            Some(outcome) => Ok(outcome.map_or(passage, Into::into)),
        }
    }
}
