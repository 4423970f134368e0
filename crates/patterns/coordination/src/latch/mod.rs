//! A latch: opens once a number of different ids was counted.
//!
//! It counts a set of ids, so counting one again changes nothing, and a caller that got no answer repeats itself.
//! It opens once; arming it again makes a new generation, and nobody who waits in the old one is held up by that.

mod state;

use std::sync::Arc;

use mainstay_clock::Deadline;

use crate::coordinator::{Core, LOOK, given};
use crate::record::{Record, Step, read, written};
use crate::{ConfigError, Error, ErrorKind};
use state::{Count, Refused};

/// Most ids of a latch: all of them are in one record.
pub const MAX_SIZE: u32 = 1_000;
/// Longest id.
const MAX_ID: usize = 255;

/// How far a latch is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Progress {
    /// Grows each time it is armed again.
    pub generation: u64,
    /// The ids that were counted, sorted.
    pub ids: Vec<String>,
    /// Whether it is open.
    pub open: bool,
}

/// A latch. Cheap to clone.
///
/// Guarantees: it opens when `size` different ids were counted, in whatever process, and stays open until it is
/// armed again. Not guaranteed: that whoever counted is still alive.
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
/// let loaded = node.latch("shards-loaded", 2)?;
/// loaded.count_down("shard-1").await?;
/// loaded.count_down("shard-1").await?;
/// assert!(!loaded.progress().await?.open, "one shard, told twice");
/// loaded.count_down("shard-2").await?;
/// assert_eq!(loaded.wait(Deadline::NONE).await?.generation, 1);
/// assert_eq!(loaded.rearm(1).await?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct Latch(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    core: Arc<Core>,
    record: Record,
    bell: String,
    size: u32,
}

impl Latch {
    pub(crate) fn new(core: Arc<Core>, name: &str, size: u32) -> Result<Self, ConfigError> {
        if size == 0 || size > MAX_SIZE {
            return Err(ConfigError::new("size", size, format!("1 to {MAX_SIZE} ids")));
        }
        let name = format!("latch/{}", given("name", name)?);
        let record = Record { core: Arc::clone(&core), store: core.records()?, key: core.full_name(&name)? };
        let bell = core.bell(&name)?;
        Ok(Self(Arc::new(Inner { core, record, bell, size })))
    }

    /// Counts `id`, in the generation that it finds. Repeating it changes nothing; the answer tells of that generation.
    ///
    /// # Errors
    /// `ConfigMismatch` when the others count to another number, `ApiMisuse` for an empty or overlong id, and when
    /// the store fails.
    ///
    /// # Cancel safety
    /// A dropped future may have counted.
    pub async fn count_down(&self, id: &str) -> Result<Progress, Error> {
        if id.is_empty() || id.len() > MAX_ID {
            return Err(Error::new(ErrorKind::ApiMisuse, "an id has 1 to 255 bytes"));
        }
        // A try whose answer was lost may have opened it, and others may have armed it again before the next one.
        let mut first = None;
        let progress = self.step(|count, size| {
            let generation = *first.get_or_insert(count.generation);
            count.count_down(id, generation, size)
        });
        let progress = progress.await?;
        Ok(seen_in(first.unwrap_or(progress.generation), progress))
    }

    /// Closes an open latch: the generation after `generation`. Repeating it changes nothing.
    ///
    /// # Errors
    /// `ApiMisuse` while it is closed, or when it is not in `generation`; otherwise as
    /// [`count_down`](Self::count_down).
    ///
    /// # Cancel safety
    /// A dropped future may have closed it.
    pub async fn rearm(&self, generation: u64) -> Result<u64, Error> {
        Ok(self.step(|count, size| count.rearm(generation, size)).await?.generation)
    }

    async fn step(
        &self,
        mut step: impl FnMut(&mut Count, u32) -> Result<bool, Refused>,
    ) -> Result<Progress, Error> {
        let inner = &self.0;
        let done = inner.record.update(Deadline::NONE, |value| {
            let mut count = self.decoded(value)?;
            let changed = step(&mut count, inner.size).map_err(|why| self.refused(why))?;
            let progress = progress(&count);
            Ok(if changed { Step::Write(encoded(&count), progress) } else { Step::Keep(progress) })
        });
        let progress = done.await?;
        if progress.open {
            inner.core.ring_later(&inner.bell);
        }
        Ok(progress)
    }

    fn refused(&self, why: Refused) -> Error {
        let key = &self.0.record.key;
        match why {
            Refused::Size(size) => {
                let why = format!("`{key}` counts to {size}, not to {}", self.0.size);
                Error::new(ErrorKind::ConfigMismatch, why)
            }
            Refused::Closed => Error::new(ErrorKind::ApiMisuse, format!("`{key}` is still closed")),
            Refused::Generation(now) => {
                Error::new(ErrorKind::ApiMisuse, format!("`{key}` is in generation {now}"))
            }
        }
    }

    fn decoded(&self, value: Option<&[u8]>) -> Result<Count, Error> {
        let Some(value) = value else { return Ok(Count::new(self.0.size)) };
        let key = &self.0.record.key;
        decoded(&read(key, value)?)
            .ok_or_else(|| Error::new(ErrorKind::ApiMisuse, format!("the record `{key}` is no latch's")))
    }

    /// How far it is, as far as the store knows.
    ///
    /// # Errors
    /// When the store fails.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn progress(&self) -> Result<Progress, Error> {
        Ok(progress(&self.decoded(self.0.record.get().await?.as_deref())?))
    }

    /// Waits until it opens, or until `limit`: for the generation that it is in now.
    ///
    /// # Errors
    /// `TimedOut`, `ConfigMismatch`, and when the store fails.
    ///
    /// # Cancel safety
    /// Changes nothing.
    pub async fn wait(&self, limit: Deadline) -> Result<Progress, Error> {
        let core = &self.0.core;
        let (mut waits, mut vain) = (None, 0);
        loop {
            // Armed before the look, so that a change in between is not slept over.
            let hint = core.hint(&self.0.bell, vain);
            let count = self.decoded(self.0.record.get().await?.as_deref())?;
            if count.size != self.0.size {
                return Err(self.refused(Refused::Size(count.size)));
            }
            let generation = *waits.get_or_insert(count.generation);
            if count.opened(generation) {
                return Ok(seen_in(generation, progress(&count)));
            }
            let now = core.now();
            if limit.is_some() && now >= limit.instant() {
                let why =
                    format!("`{}` is not open: {} of {}", self.0.record.key, count.ids.len(), count.size);
                return Err(Error::new(ErrorKind::TimedOut { holder: None }, why));
            }
            tokio::select! {
                biased;
                () = hint => vain += 1,
                () = core.clock().sleep_until(now.saturating_add(LOOK).min(limit.instant())) => vain = 0,
            }
        }
    }
}

fn progress(count: &Count) -> Progress {
    let ids = count.ids.iter().cloned().collect();
    Progress { generation: count.generation, ids, open: count.is_open() }
}

/// What there is to say of `generation`, now or in a later one: only an open latch is armed again, and what was counted
/// then is not remembered.
fn seen_in(generation: u64, now: Progress) -> Progress {
    if now.generation > generation { Progress { generation, ids: Vec::new(), open: true } } else { now }
}

fn encoded(count: &Count) -> Vec<u8> {
    let mut lines = vec![vec!["latch".to_owned(), count.generation.to_string(), count.size.to_string()]];
    lines.extend(count.ids.iter().map(|id| vec![id.clone()]));
    written(&lines)
}

fn decoded(lines: &[Vec<String>]) -> Option<Count> {
    let (head, rest) = lines.split_first()?;
    let [word, generation, size] = head.as_slice() else { return None };
    let ids = rest.iter().map(|line| line.first().cloned()).collect::<Option<_>>()?;
    let count = Count { generation: generation.parse().ok()?, size: size.parse().ok()?, ids };
    (word == "latch").then_some(count)
}
