//! The store as users hold it.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_clock::Runtime;
use mainstay_store::{Error, ErrorKind, Result};
use rusqlite::Connection;
use tokio::sync::{Semaphore, watch};

use crate::config::{Driver, StoreBuilder};
use crate::lockfile::LockFile;
use crate::writer::{Core, Writer, Writes};
use crate::{log, open, schema};

/// A shorter log would start over with every few commits.
const MIN_WAL_BYTES: u64 = 64 * 1024;
/// As that of lease stores.
const MAX_EPOCH: u16 = (1 << 15) - 1;
/// Steps of SQLite's machine after which a scan looks whether anybody still waits for it: a millisecond or less.
const LOOK_UP: i32 = 20_000;

/// Journal, records and cells in one SQLite file. Clones share it.
///
/// Guarantees: what was answered survives a power cut, as far as the disk honors a sync. After a sync that failed
/// every write is refused until the file is opened again; no sync is tried twice. Damage to log rows, records,
/// cells and the write-ahead log is an error, never another value or a shorter log. Not guaranteed: that damage
/// inside the last transaction of the write-ahead log is told from one that a power cut tore, nor that a flipped
/// bit in the row of a saga, outside its log, is seen.
///
/// ```
/// use mainstay_clock::Runtime;
/// use mainstay_sqlite::SqliteStore;
/// use mainstay_store::RecordStore;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir().unwrap();
/// let store = SqliteStore::builder(dir.path().join("node.db")).open(&Runtime::system()).unwrap();
/// store.put_if("k", None, b"v".to_vec(), None).await.unwrap();
/// assert_eq!(store.get("k").await.unwrap().unwrap().value, b"v");
/// # });
/// ```
#[derive(Clone)]
pub struct SqliteStore(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) writer: Writer,
    readers: Arc<Mutex<Vec<Connection>>>,
    /// One for each connection in `readers`.
    turns: Arc<Semaphore>,
    /// One less: reads that may look at every saga leave a connection to the others.
    scans: Arc<Semaphore>,
    pub(crate) config: StoreBuilder,
    /// Counts commits.
    pub(crate) changed: watch::Receiver<u64>,
}

impl SqliteStore {
    /// Options for a database file.
    pub fn builder(file: impl AsRef<Path>) -> StoreBuilder {
        StoreBuilder::new(file.as_ref())
    }

    /// The store that these options describe.
    pub(crate) fn with(config: StoreBuilder, runtime: &Runtime) -> Result<Self> {
        if config.readers == 0 || config.readers > 64 {
            let text = format!("`readers` is {}; allowed: 1 to 64", config.readers);
            return Err(Error::new(ErrorKind::ApiMisuse, text));
        }
        if config.max_wal_bytes < MIN_WAL_BYTES {
            let text =
                format!("`max_wal_bytes` is {}; allowed: {MIN_WAL_BYTES} or more", config.max_wal_bytes);
            return Err(Error::new(ErrorKind::ApiMisuse, text));
        }
        if config.epoch > MAX_EPOCH {
            let text = format!("`epoch` is {}; allowed: 0 to {MAX_EPOCH}", config.epoch);
            return Err(Error::new(ErrorKind::ApiMisuse, text));
        }
        let lock = LockFile::take(&config.file)?;
        log::check(&config.file)?;
        let conn = open::open(&config.file, true)?;
        open::check(&conn)?;
        schema::migrate(&conn)?;
        if let Some(pages) = config.max_pages {
            conn.pragma_update(None, "max_page_count", pages).map_err(crate::error::store_error)?;
        }
        // Checkpoints are ours: a commit that makes one hides whether its sync failed.
        conn.pragma_update(None, "wal_autocheckpoint", 0).map_err(crate::error::store_error)?;
        let commits = watch::Sender::new(0);
        let changed = commits.subscribe();
        let mut readers = Vec::with_capacity(config.readers);
        for _ in 0..config.readers {
            readers.push(open::open(&config.file, false)?);
        }
        let writer = match config.driver {
            Driver::Inline => Writer::inline(Core::new(conn, Arc::clone(runtime.clock()), commits, lock)?),
            Driver::Thread => {
                // A file that had to grow is cut back when the log starts over.
                conn.pragma_update(None, "journal_size_limit", config.max_wal_bytes)
                    .map_err(crate::error::store_error)?;
                let checkpoint = open::open(&config.file, true)?;
                let core = Core::new(conn, Arc::clone(runtime.clock()), commits, lock)?;
                Writer::thread(core, checkpoint, config.max_wal_bytes)?
            }
        };
        let turns = Arc::new(Semaphore::new(config.readers));
        let scans = Arc::new(Semaphore::new((config.readers - 1).max(1)));
        let readers = Arc::new(Mutex::new(readers));
        Ok(Self(Arc::new(Shared { writer, readers, turns, scans, config, changed })))
    }

    /// Gives this handle up, and waits until the file is free for whoever opens it next: until every clone and every cell
    /// of this store is gone, and what was asked of it is written. A store that is only dropped frees its file in the
    /// background, soon, so that a next [`open`](StoreBuilder::open) may still find it occupied.
    ///
    /// # Cancel safety
    /// The handle is given up, and the file is freed without anybody who waits for it.
    ///
    /// ```
    /// use mainstay_clock::Runtime;
    /// use mainstay_sqlite::SqliteStore;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let dir = tempfile::tempdir().unwrap();
    /// let file = SqliteStore::builder(dir.path().join("node.db"));
    /// let store = file.clone().open(&Runtime::system()).unwrap();
    /// store.close().await;
    /// file.open(&Runtime::system()).unwrap();
    /// # });
    /// ```
    pub async fn close(self) {
        let mut commits = self.0.changed.clone();
        drop(self);
        while commits.changed().await.is_ok() {}
    }

    /// What was written since it was opened, and how long the disk took.
    #[must_use]
    pub fn writes(&self) -> Writes {
        self.0.writer.writes()
    }

    /// Runs `read` on a reader connection: off the async threads in production, on the caller's thread with
    /// the inline driver.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.run(None, read).await
    }

    /// As [`read`](Self::read), for what may look at every saga there is: together they leave a connection free, so that
    /// nobody who drives sagas or asks for the node's health stands in line behind a list. When the caller goes away, so
    /// does what is read for it.
    pub(crate) async fn scan<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let turn = Arc::clone(&self.0.scans).acquire_owned().await;
        let turn = turn.map_err(|_| Error::new(ErrorKind::Internal, "the readers are closed"))?;
        let wanted = Wanted(Arc::new(AtomicBool::new(true)));
        let flag = Arc::clone(&wanted.0);
        let read = move |conn: &Connection| {
            let result = read(conn);
            drop(turn);
            result
        };
        self.run(Some(flag), read).await
    }

    async fn run<T: Send + 'static>(
        &self,
        wanted: Option<Arc<AtomicBool>>,
        read: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (readers, file) = (Arc::clone(&self.0.readers), self.0.config.file.clone());
        let run = move || {
            let pooled = readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            // None is there only after a read that panicked took its connection along.
            let mut conn = pooled.map_or_else(|| open::open(&file, false), Ok)?;
            let leashed = wanted.is_some();
            if let Some(wanted) = wanted {
                let over = move || !wanted.load(Ordering::Relaxed);
                conn.progress_handler(LOOK_UP, Some(over)).map_err(crate::error::store_error)?;
            }
            let result = read(&conn);
            if leashed {
                conn.progress_handler(0, None::<fn() -> bool>).map_err(crate::error::store_error)?;
            }
            readers.lock().unwrap_or_else(PoisonError::into_inner).push(conn);
            result
        };
        if self.0.config.driver == Driver::Inline {
            return run();
        }
        // In line for a connection: to open one costs more than most reads.
        let turn = Arc::clone(&self.0.turns).acquire_owned().await;
        let turn = turn.map_err(|_| Error::new(ErrorKind::Internal, "the readers are closed"))?;
        // The turn lasts as long as the read, also when the caller goes away.
        let run = move || {
            let result = run();
            drop(turn);
            result
        };
        let ended = |_| Error::new(ErrorKind::Internal, "a reader panicked");
        tokio::task::spawn_blocking(run).await.map_err(ended)?
    }
}

/// Held by whoever waits for a scan: without them it ends.
struct Wanted(Arc<AtomicBool>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("file", &self.0.config.file).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, mpsc};

    use futures_util::poll;

    use super::*;

    fn store(dir: &tempfile::TempDir) -> SqliteStore {
        SqliteStore::builder(dir.path().join("x.db")).open(&Runtime::system()).unwrap()
    }

    /// A list that looks at every saga takes as long as there are sagas; so many of them kept every reader busy, and the
    /// engine, the streams and the health of the node stood in line behind them.
    #[tokio::test]
    async fn lists_leave_a_connection_to_those_who_drive_and_look() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let (go, (begun, begins)) = (Arc::new((Mutex::new(false), Condvar::new())), mpsc::channel());
        let mut lists: Vec<_> = Vec::new();
        for _ in 0..8 {
            let (go, begun) = (Arc::clone(&go), begun.clone());
            let list = store.scan(move |_| {
                begun.send(()).unwrap();
                drop(go.1.wait_while(go.0.lock().unwrap(), |open| !*open).unwrap());
                Ok(())
            });
            lists.push(Box::pin(list));
        }
        for list in &mut lists {
            assert!(poll!(list.as_mut()).is_pending());
        }
        begins.recv().unwrap();
        assert_eq!(store.0.turns.available_permits(), 1, "one is kept free");
        let answer = store.read(|conn| Ok(conn.query_row("select 7", [], |r| r.get::<_, i64>(0)).unwrap()));
        assert_eq!(answer.await.unwrap(), 7);
        *go.0.lock().unwrap() = true;
        go.1.notify_all();
        for list in lists {
            list.await.unwrap();
        }
    }

    /// Whoever asked for a list and went away left it running, until its end.
    #[tokio::test]
    async fn a_list_ends_with_the_wish_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let (begun, begins) = mpsc::channel();
        let (tell, told) = mpsc::channel();
        let mut list = Box::pin(store.scan(move |conn| {
            begun.send(()).unwrap();
            let long = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 1000000000)
                select count(*) from n";
            tell.send(conn.query_row(long, [], |r| r.get::<_, i64>(0))).unwrap();
            Ok(())
        }));
        assert!(poll!(list.as_mut()).is_pending());
        begins.recv().unwrap();
        drop(list);
        let ended = told.recv().unwrap().unwrap_err();
        assert_eq!(ended.sqlite_error_code(), Some(rusqlite::ErrorCode::OperationInterrupted), "{ended}");
        // Its connection serves the next one.
        let all = u32::try_from(store.0.config.readers).unwrap();
        drop(store.0.turns.acquire_many(all).await.unwrap());
        store.scan(|conn| conn.execute_batch("select 1").map_err(crate::error::store_error)).await.unwrap();
    }
}
