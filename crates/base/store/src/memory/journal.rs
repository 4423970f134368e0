//! The async shell of the in-memory journal.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_clock::{Clock, WallTime};

use super::state::State;
use crate::journal::{
    Append, Appended, Audit, Calendar, ClaimRequest, Claimed, Create, Created, Cursor, EventPage, Filter,
    Journal, Loaded, Page, PageCursor, Posted, PurgeRequest, Purged, PutDefinition, Reply, StatusCount,
    StoredAudit, StoredDefinition, Summary, Uid,
};
use crate::{BoxFuture, Result};

/// Hints between looks of [`Journal::changed`]: a waiter looks at the state itself.
type Wakers = Vec<std::task::Waker>;

/// A [`Journal`] in memory: every contract, no durability. Clones share it.
#[derive(Clone)]
pub struct MemoryJournal(Arc<Shared>);

struct Shared {
    calendar: Mutex<Calendar>,
    state: Mutex<(State, Wakers)>,
}

impl MemoryJournal {
    /// An empty journal on `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared { calendar: Mutex::new(Calendar::new(clock, 0)), state: Mutex::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, (State, Wakers)> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads: answers at once.
    fn read<'a, T: Send + 'a>(&self, f: impl FnOnce(&State) -> T) -> BoxFuture<'a, T> {
        let result = f(&self.lock().0);
        Box::pin(async move { result })
    }

    /// Writes: applied when the future is first polled, as for a store that is asked.
    fn write<'a, T: Send + 'a>(
        &'a self,
        f: impl FnOnce(&mut State, i64) -> T + Send + 'a,
    ) -> BoxFuture<'a, T> {
        Box::pin(async move {
            let (result, wakers) = {
                let mut guard = self.lock();
                let (state, wakers) = &mut *guard;
                let now = self.0.calendar.lock().unwrap_or_else(PoisonError::into_inner).now();
                (f(state, now), std::mem::take(wakers))
            };
            wakers.into_iter().for_each(std::task::Waker::wake);
            result
        })
    }
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryJournal").finish_non_exhaustive()
    }
}

impl Journal for MemoryJournal {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        self.write(|_, now| Ok(Some(WallTime::from_unix_millis(now))))
    }

    fn create(&self, create: Create) -> BoxFuture<'_, Result<Created>> {
        self.write(|s, now| s.create(create, now))
    }

    fn append(&self, append: Append) -> BoxFuture<'_, Result<Appended>> {
        self.write(|s, now| s.append(append, now))
    }

    fn post(&self, saga: &Uid, message: &str, kind: u16, bytes: Vec<u8>) -> BoxFuture<'_, Result<Posted>> {
        let (saga, message) = (saga.clone(), message.to_owned());
        self.write(move |s, now| s.post(&saga, message, kind, bytes, now))
    }

    fn claim(&self, claim: ClaimRequest) -> BoxFuture<'_, Result<Vec<Claimed>>> {
        self.write(move |s, now| s.claim(&claim, now))
    }

    fn renew_node(&self, node: &str, incarnation: u64, ttl: Duration) -> BoxFuture<'_, Result<bool>> {
        let node = node.to_owned();
        self.write(move |s, now| Ok(s.renew(&node, incarnation, ttl, now)))
    }

    fn hand_back(&self, node: &str, incarnation: u64, sagas: &[Uid]) -> BoxFuture<'_, Result<()>> {
        let (node, sagas) = (node.to_owned(), sagas.to_vec());
        self.write(move |s, _| {
            s.hand_back(&node, incarnation, &sagas);
            Ok(())
        })
    }

    fn load(&self, saga: &Uid) -> BoxFuture<'_, Result<Option<Loaded>>> {
        self.read(|s| Ok(s.load(saga)))
    }

    fn find(&self, definition: &str, id: &str) -> BoxFuture<'_, Result<Option<Summary>>> {
        self.read(|s| Ok(s.find(definition, id)))
    }

    fn query(
        &self,
        filter: &Filter,
        after: Option<&PageCursor>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Page>> {
        self.read(|s| s.query(filter, after, limit))
    }

    fn counts(&self) -> BoxFuture<'_, Result<Vec<StatusCount>>> {
        self.read(|s| Ok(s.counts()))
    }

    fn purge(&self, purge: PurgeRequest) -> BoxFuture<'_, Result<Purged>> {
        self.write(move |s, _| Ok(s.purge(purge)))
    }

    fn put_definition(&self, definition: StoredDefinition) -> BoxFuture<'_, Result<PutDefinition>> {
        self.write(move |s, _| Ok(s.put_definition(definition)))
    }

    fn definitions(&self) -> BoxFuture<'_, Result<Vec<StoredDefinition>>> {
        self.read(|s| Ok(s.definitions()))
    }

    fn reply(&self, key: &str) -> BoxFuture<'_, Result<Option<Reply>>> {
        self.read(|s| Ok(s.reply(key)))
    }

    fn events(&self, after: Option<&Cursor>, limit: usize) -> BoxFuture<'_, Result<EventPage>> {
        self.read(|s| Ok(s.events(after.copied(), limit)))
    }

    fn last_cursor(&self) -> BoxFuture<'_, Result<Cursor>> {
        self.read(|s| Ok(s.last_cursor()))
    }

    fn changed(&self, after: &Cursor) -> BoxFuture<'_, Result<()>> {
        /// Most wakers kept; more waiters are told to look again at once.
        const MAX_WAKERS: usize = 100_000;
        let after = *after;
        Box::pin(std::future::poll_fn(move |cx| {
            let mut guard = self.lock();
            let (state, wakers) = &mut *guard;
            if state.last_cursor() > after || wakers.len() >= MAX_WAKERS {
                return std::task::Poll::Ready(Ok(()));
            }
            wakers.push(cx.waker().clone());
            std::task::Poll::Pending
        }))
    }

    fn audit(&self, after: u64, limit: usize) -> BoxFuture<'_, Result<Vec<StoredAudit>>> {
        self.read(|s| Ok(s.audit(after, limit)))
    }

    fn put_audit(&self, entry: Audit) -> BoxFuture<'_, Result<()>> {
        self.write(move |s, now| {
            s.put_audit(entry, now);
            Ok(())
        })
    }
}
