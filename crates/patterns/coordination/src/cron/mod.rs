//! Jobs of a schedule: of many that could run a slot, one does.
//!
//! A slot is an instant of the schedule. It is taken in a record, only if the slot taken last was before it, so
//! nobody runs it again, whatever the clocks say; then the job's lease is taken, so that two runs do not overlap.
//! What is due is judged by the store's time where it tells one.
//!
//! A slot is *started* at most once. Whoever takes it and dies before or during the run has used it up: the next
//! slot is the next chance. Work that must happen belongs into a saga that the job starts.

mod schedule;
mod state;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Deadline, WallTime};
use mainstay_store::Outcome;
use mainstay_store::lease::{AcquireRequest, Acquired, Released};

pub use schedule::{Every, Schedule};
use state::{Claim, Decision, Kept, Moment, decide};
pub use state::{Missed, Overlap};

use crate::coordinator::{Core, given};
use crate::guard::as_its_guard;
use crate::lock::{self, Lock};
use crate::record::{Record, Step, read, written};
use crate::{ConfigError, Error, ErrorKind, Fence, Guard};

/// A slot is fresh this long: schedulers wake up late, and a slot that was passed over for longer was missed.
const LATE: Duration = Duration::from_secs(10);
/// Longest time that is kept after an early end: longer ones are another schedule.
const MAX_KEPT: Duration = Duration::from_secs(86_400);
/// The store's time is asked for again at least so often: clocks run apart, and wall clocks are set.
const ASK: Duration = Duration::from_secs(60);
/// Between two tries to keep the time of a run while the store fails.
const AGAIN: Duration = Duration::from_millis(100);
/// Shortest wait for a slot that should have come by the store's time.
const NAP: Duration = Duration::from_millis(1);

/// Settings of a job.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `ttl` | 30 s, renewed each 10 s | as for a lock |
/// | `at_most` | none | a run decides how long it takes |
/// | `at_least` | none | a slot is taken once anyway |
/// | `missed` | skip | a job that is late may do harm |
/// | `overlap` | skip | a pile of waiting runs helps nobody |
/// | `late` | 10 s | a scheduler may wake up a little late, and not much |
#[derive(Debug)]
#[must_use]
pub struct Builder {
    core: Arc<Core>,
    name: String,
    ttl: Duration,
    at_most: Option<Duration>,
    at_least: Duration,
    missed: Missed,
    overlap: Overlap,
    late: Duration,
    note: String,
}

impl Builder {
    pub(crate) fn new(core: Arc<Core>, name: &str) -> Self {
        Self {
            core,
            name: name.to_owned(),
            ttl: lock::DEFAULT_TTL,
            at_most: None,
            at_least: Duration::ZERO,
            missed: Missed::default(),
            overlap: Overlap::default(),
            late: LATE,
            note: String::new(),
        }
    }

    /// How long the lease of a run lasts without renewal: a run that died blocks the next one so long.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Stops a run that takes longer.
    pub fn at_most(mut self, limit: Duration) -> Self {
        self.at_most = Some(limit);
        self
    }

    /// Keeps other runs away for this long after a start, also after an early end or a crash.
    pub fn at_least(mut self, least: Duration) -> Self {
        self.at_least = least;
        self
    }

    /// What becomes of a slot whose time went by.
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// What becomes of a slot while an earlier run goes on.
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// How long after its instant a slot counts as being on time.
    pub fn late(mut self, late: Duration) -> Self {
        self.late = late;
        self
    }

    /// A note that others see beside the runner.
    pub fn note(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// As [`lock::Builder::build`]; `at_least` over a day or over `at_most`; no records.
    pub fn build(self) -> Result<Job, ConfigError> {
        if self.at_least > MAX_KEPT || self.at_most.is_some_and(|most| most < self.at_least) {
            return Err(ConfigError::new(
                "at_least",
                format!("{:?}", self.at_least),
                "at most a day and at most `at_most`",
            ));
        }
        let store = self.core.records()?;
        let name = format!("cron/{}", given("name", &self.name)?);
        let record = Record { core: Arc::clone(&self.core), store, key: self.core.full_name(&name)? };
        let kept = self.core.full_name(&format!("cron-kept/{}", self.name))?;
        let mut builder = lock::Builder::new(Arc::clone(&self.core), vec![name], lock::Kind::Exclusive)
            .ttl(self.ttl)
            .note(&self.note);
        if let Some(limit) = self.at_most {
            builder = builder.max_hold(limit);
        }
        let lock = builder.build()?;
        let (at_least, missed, overlap, late) = (self.at_least, self.missed, self.overlap, self.late);
        Ok(Job(Arc::new(Inner { record, kept, lock, at_least, missed, overlap, late })))
    }
}

#[derive(Debug)]
struct Inner {
    record: Record,
    /// The lease that stays after an early end.
    kept: String,
    lock: Lock,
    at_least: Duration,
    missed: Missed,
    overlap: Overlap,
    late: Duration,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Due {
    /// The schedule has no slot any more.
    Ended,
    /// This slot, unless somebody is faster.
    Slot(WallTime),
    /// Nothing for this long; ask again then.
    Wait {
        /// Until the next slot, or until the store's time should be asked for again.
        pause: Duration,
        /// The next slot.
        next: WallTime,
        /// A slot that is dropped because its time went by.
        missed: Option<WallTime>,
    },
}

/// Why a slot is not run here, or the right to run it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Start {
    /// Run it.
    Go(Turn),
    /// The time of an earlier run is kept for this long.
    Kept {
        /// How long it lasts.
        remaining: Duration,
    },
    /// An earlier run still goes on, and the slot is dropped.
    Overlapped {
        /// Who runs it.
        holder: String,
    },
    /// Before it could begin, a later slot was taken.
    Superseded,
    /// Somebody took this slot, or a later one.
    Taken,
}

/// What became of a slot in [`Job::run_once_per`].
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ran<T> {
    /// It was run here.
    Done(T),
    /// It was not run here; see the same words of [`Start`].
    Kept,
    /// An earlier run still goes on.
    Overlapped,
    /// A later slot was taken meanwhile.
    Superseded,
    /// Somebody else took it.
    Taken,
}

/// A job of a schedule. Cheap to clone.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use mainstay_clock::{Runtime, WallTime};
/// use mainstay_coordination::Coordinator;
/// use mainstay_coordination::cron::Ran;
/// use mainstay_store::memory::{MemoryLeaseStore, MemoryRecordStore};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let rt = Runtime::system();
/// let leases = Arc::new(MemoryLeaseStore::new(Arc::clone(rt.clock())));
/// let records = Arc::new(MemoryRecordStore::new(Arc::clone(rt.clock())));
/// let node = Coordinator::builder(leases, rt).records(records).namespace("billing").owner("host-7").build()?;
/// let report = node.cron("report").at_most(Duration::from_secs(600)).build()?;
///
/// let slot = WallTime::from_unix_millis(1_800_000_000_000);
/// assert_eq!(report.run_once_per(slot, |fence| async move { fence.token() > Default::default() }).await?, Ran::Done(true));
/// assert_eq!(report.run_once_per(slot, |_| async { true }).await?, Ran::Taken);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Job(Arc<Inner>);

impl Job {
    /// The store's time, or this machine's where the store tells none.
    ///
    /// # Errors
    /// When the store fails.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn now(&self) -> Result<WallTime, Error> {
        let record = &self.0.record;
        let told = record.store.now().await.map_err(|e| Error::store(&record.key, e))?;
        Ok(told.unwrap_or_else(|| record.core.clock().wall()))
    }

    /// Which slot of `schedule` is to be run now, or how long to wait. The first look of a new job takes what went
    /// by before it as done.
    ///
    /// # Errors
    /// When the store fails.
    ///
    /// # Cancel safety
    /// May have remembered where a new job starts.
    pub async fn due(&self, schedule: &dyn Schedule) -> Result<Due, Error> {
        let inner = &self.0;
        loop {
            let now = self.now().await?;
            let stored = self.stored().await?.map(|kept| kept.slot);
            let moment = Moment { now, latest: schedule.latest(now), next: schedule.next(now) };
            match decide(moment, stored, inner.missed, inner.late) {
                Decision::Run(slot) => return Ok(Due::Slot(slot)),
                Decision::Baseline(slot) => self.baseline(slot).await?,
                Decision::Wait { until: None, .. } => return Ok(Due::Ended),
                Decision::Wait { until: Some(next), missed } => {
                    let pause = next.saturating_duration_since(now).clamp(NAP, ASK);
                    return Ok(Due::Wait { pause, next, missed });
                }
            }
        }
    }

    async fn stored(&self) -> Result<Option<Kept>, Error> {
        let record = &self.0.record;
        let value = record.get().await?;
        value.map(|v| decoded(&record.key, &v)).transpose()
    }

    /// Remembers where a new job starts. By the time of the write it may be new no more, and then the slots of others are
    /// not used up: their clocks may be behind.
    async fn baseline(&self, slot: WallTime) -> Result<(), Error> {
        let record = &self.0.record;
        let op = record.core.op_id();
        record
            .update(Deadline::NONE, |value| {
                Ok(match value {
                    Some(_) => Step::Keep(()),
                    None => Step::Write(encoded(&Kept { slot, op: op.clone() }), ()),
                })
            })
            .await
    }

    /// Takes the slot if nobody has taken it or a later one.
    async fn claim(&self, slot: WallTime, limit: Deadline) -> Result<Claim, Error> {
        let record = &self.0.record;
        let op = record.core.op_id();
        record
            .update(limit, |value| {
                let stored = value.map(|v| decoded(&record.key, v)).transpose()?;
                Ok(match Kept::claim(stored.as_ref(), slot, &op) {
                    Claim::Free => Step::Write(encoded(&Kept { slot, op: op.clone() }), Claim::Ours),
                    other => Step::Keep(other),
                })
            })
            .await
    }

    /// Takes `slot` and the right to run it. With [`Overlap::Wait`] it waits for an earlier run until `limit`.
    ///
    /// # Errors
    /// When the store fails: the slot may have been taken and is then used up; `Lost` when the run's lease ended before
    /// the store had answered all.
    ///
    /// # Cancel safety
    /// A dropped future may have used the slot up, and may keep the time of the run; the run's lease is given back.
    pub async fn start(&self, slot: WallTime, limit: Deadline) -> Result<Start, Error> {
        let inner = &self.0;
        if let Claim::Taken(_) = self.claim(slot, limit).await? {
            return Ok(Start::Taken);
        }
        let waits = inner.overlap == Overlap::Wait;
        let asked = if waits { inner.lock.acquire(limit).await } else { inner.lock.try_acquire().await };
        let guard = match asked {
            Ok(guard) => guard,
            Err(error) => {
                return match error.kind() {
                    ErrorKind::Contended { holder, .. } => Ok(Start::Overlapped { holder: holder.clone() }),
                    ErrorKind::TimedOut { holder } => {
                        Ok(Start::Overlapped { holder: holder.clone().unwrap_or_default() })
                    }
                    _ => Err(error),
                };
            }
        };
        self.begin(slot, limit, guard).await
    }

    /// What is left to ask once the run's lease is there.
    async fn begin(&self, slot: WallTime, limit: Deadline, guard: Guard) -> Result<Start, Error> {
        let (inner, core) = (&self.0, &self.0.record.core);
        loop {
            // Between the slot and the lease a later slot may have been taken, and run: then this one comes no more, so
            // that slots start in their order, and of those who waited only the latest runs.
            if self.stored().await?.is_some_and(|kept| kept.slot > slot) {
                return Ok(Start::Superseded);
            }
            let Some(remaining) = self.kept(&guard).await? else {
                // The answers may have come after the end of the lease.
                guard.check()?;
                return Ok(Start::Go(Turn { slot, guard }));
            };
            let end = core.now().saturating_add(remaining);
            if inner.overlap == Overlap::Skip || end > limit.instant() {
                return Ok(Start::Kept { remaining });
            }
            core.clock().sleep_until(end.saturating_add(NAP)).await;
        }
    }

    /// How long an earlier run's time is still kept. If none is, this run's is from now on: in a lease of its own, which
    /// needs nobody alive, so that neither a crash nor an early end lets another run come too soon.
    async fn kept(&self, guard: &Guard) -> Result<Option<Duration>, Error> {
        let (inner, core) = (&self.0, &self.0.record.core);
        if inner.at_least.is_zero() {
            let info = core.store.inspect(&inner.kept).await.map_err(|e| Error::store(&inner.kept, e))?;
            return Ok(info.holders.into_iter().next().map(|h| h.remaining));
        }
        let ttl = inner.at_least.max(core.store.guarantees().min_ttl);
        let request = AcquireRequest::exclusive(&inner.kept, &core.owner, &core.op_id(), ttl);
        loop {
            // Who has no right to run any more keeps nobody away.
            guard.check()?;
            let error = match core.store.acquire(request.clone()).await {
                Ok(Acquired::Granted(_)) => return Ok(None),
                Ok(Acquired::Held { remaining, .. } | Acquired::Queued { remaining, .. }) => {
                    return Ok(Some(remaining.unwrap_or(inner.at_least)));
                }
                Err(error) => error,
            };
            if !error.is_retryable() && error.outcome() != Outcome::Unknown {
                return Err(Error::store(&inner.kept, error));
            }
            // It is asked again as the same acquisition: whether it was granted or not, it is the same time that is kept.
            core.clock().sleep(AGAIN).await;
        }
    }

    /// Runs `work` if nobody has taken `slot` or a later one.
    ///
    /// # Errors
    /// As [`start`](Self::start); `Lost` when the lease was lost or the run took longer than
    /// [`at_most`](Builder::at_most): the work was dropped.
    ///
    /// # Cancel safety
    /// Dropping the future drops the work; the slot is used up, the lease is given back.
    pub async fn run_once_per<T, F>(
        &self,
        slot: WallTime,
        work: impl FnOnce(Fence) -> F,
    ) -> Result<Ran<T>, Error>
    where
        F: Future<Output = T>,
    {
        let turn = match self.start(slot, Deadline::NONE).await? {
            Start::Go(turn) => turn,
            Start::Kept { .. } => return Ok(Ran::Kept),
            Start::Overlapped { .. } => return Ok(Ran::Overlapped),
            Start::Superseded => return Ok(Ran::Superseded),
            Start::Taken => return Ok(Ran::Taken),
        };
        let done = turn.run(work).await?;
        // What was done is done, also when the lease cannot be given back.
        if let Err(error) = turn.finish().await {
            tracing::warn!(job = self.0.record.key, %error, "the lease of a run was not given back");
        }
        Ok(Ran::Done(done))
    }
}

fn encoded(kept: &Kept) -> Vec<u8> {
    written(&[vec!["slot".to_owned(), kept.slot.unix_millis().to_string(), kept.op.clone()]])
}

fn decoded(key: &str, value: &[u8]) -> Result<Kept, Error> {
    let lines = read(key, value)?;
    let kept = match lines.as_slice() {
        [line] => match line.as_slice() {
            [word, slot, op] if word == "slot" => slot.parse().ok().map(|slot| (slot, op.clone())),
            _ => None,
        },
        _ => None,
    };
    let (slot, op) =
        kept.ok_or_else(|| Error::new(ErrorKind::ApiMisuse, format!("the record `{key}` is no job's")))?;
    Ok(Kept { slot: WallTime::from_unix_millis(slot), op })
}

/// The right to run one slot.
///
/// Dropping it ends the run and gives the lease back in the background. The time of
/// [`at_least`](Builder::at_least) is kept from the start on, whatever becomes of the run.
#[derive(Debug)]
#[must_use = "a dropped turn is used up"]
pub struct Turn {
    slot: WallTime,
    guard: Guard,
}

as_its_guard!(Turn);

impl Turn {
    /// The slot.
    #[must_use]
    pub fn slot(&self) -> WallTime {
        self.slot
    }

    /// Ends the run and gives its lease back. What is left of [`at_least`](Builder::at_least) is kept without it.
    ///
    /// # Errors
    /// When the store fails until the lease has ended by itself.
    ///
    /// # Cancel safety
    /// Once polled, the lease is given back in the background when the future is dropped.
    pub async fn finish(self) -> Result<Released, Error> {
        self.guard.release().await
    }
}
