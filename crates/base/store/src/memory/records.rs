//! Records in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, WallTime};

use crate::{BoxFuture, PutIf, RecordStore, Result, VersionedRecord};

/// A [`RecordStore`] in memory. Clones share it; nothing survives the process.
///
/// ```
/// use mainstay_clock::SystemClock;
/// use mainstay_store::memory::MemoryRecordStore;
/// use mainstay_store::{PutIf, RecordStore};
/// use std::sync::Arc;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let store = MemoryRecordStore::new(Arc::new(SystemClock::new()));
/// let stored = store.put_if("k", None, b"1".to_vec(), None).await.unwrap();
/// assert_eq!(stored, PutIf::Stored(1));
/// assert!(matches!(store.put_if("k", None, b"2".to_vec(), None).await.unwrap(), PutIf::Conflict(Some(_))));
/// # });
/// ```
#[derive(Clone)]
pub struct MemoryRecordStore(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

/// Versions come from one counter for all keys, so that a deleted key needs no memory.
#[derive(Default)]
struct State {
    version: u64,
    records: BTreeMap<String, (VersionedRecord, Instant)>,
    ends: BTreeSet<(Instant, String)>,
}

impl State {
    fn tick(&mut self, now: Instant) {
        while let Some((until, key)) = self.ends.first().filter(|(until, _)| *until <= now).cloned() {
            self.ends.remove(&(until, key.clone()));
            self.records.remove(&key);
        }
    }

    fn remove(&mut self, key: &str) {
        if let Some((_, until)) = self.records.remove(key) {
            self.ends.remove(&(until, key.to_owned()));
        }
    }

    fn put_if(&mut self, key: String, expected: Option<u64>, value: Vec<u8>, until: Instant) -> PutIf {
        let current = self.records.get(&key).map(|(r, _)| r);
        if current.map(|r| r.version) != expected {
            return PutIf::Conflict(current.cloned());
        }
        self.remove(&key);
        self.version += 1;
        let record = VersionedRecord { key: key.clone(), version: self.version, value };
        if until != Instant::FAR_FUTURE {
            self.ends.insert((until, key.clone()));
        }
        self.records.insert(key, (record, until));
        PutIf::Stored(self.version)
    }
}

impl MemoryRecordStore {
    /// An empty store on `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared { clock, state: Mutex::default() }))
    }

    fn ask<'a, T: Send + 'a>(
        &'a self,
        f: impl FnOnce(&mut State, Instant) -> T + Send + 'a,
    ) -> BoxFuture<'a, T> {
        Box::pin(async move {
            let now = self.0.clock.now();
            let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.tick(now);
            f(&mut state, now)
        })
    }
}

impl fmt::Debug for MemoryRecordStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryRecordStore").finish_non_exhaustive()
    }
}

impl RecordStore for MemoryRecordStore {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(Some(self.0.clock.wall())) })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        let key = key.to_owned();
        self.ask(move |s, _| Ok(s.records.get(&key).map(|(r, _)| r.clone())))
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let key = key.to_owned();
        self.ask(move |s, now| {
            let until = ttl.map_or(Instant::FAR_FUTURE, |ttl| now.saturating_add(ttl));
            Ok(s.put_if(key, expected, value, until))
        })
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        let key = key.to_owned();
        self.ask(move |s, _| {
            let matches = s.records.get(&key).is_some_and(|(r, _)| r.version == expected);
            if matches {
                s.remove(&key);
            }
            Ok(matches)
        })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        self.ask(move |s, _| {
            let from = after.clone().unwrap_or_default().max(prefix.clone());
            let found = s
                .records
                .range(from..)
                .take_while(|(key, _)| key.starts_with(&prefix))
                .filter(|(key, _)| after.as_ref().is_none_or(|a| *key > a))
                .take(limit)
                .map(|(_, (record, _))| record.clone());
            Ok(found.collect())
        })
    }
}
