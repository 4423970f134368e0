//! Leases in a file of their own, shared by all processes of one machine.
//!
//! The rules are those of [`mainstay_store::lease::table`]; here they are executed in one transaction each
//! group of callers. Time is the boot clock, so a jump of the wall clock changes nothing. The file remembers
//! which boot of the machine it was written in: after another one every lease gets a full ttl of grace, since
//! its holder may live elsewhere on the same network file or in another machine's memory of the name, and
//! the epoch in every later token is one higher, since a disk may have lied about its last sync.

mod combine;
mod records;
mod rows;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Runtime};
use mainstay_store::lease::table::Table;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, Released, Renewed, Transferred,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, LeaseStore, Result};
use rusqlite::Connection;
use tokio::sync::watch;

use crate::config::Driver;
use crate::error::store_error;
use crate::open;
use combine::Combiner;
use rows::Scope;

/// Between two looks of a watcher at what other processes wrote; a look reads one page in shared memory.
const LOOK: Duration = Duration::from_millis(20);

/// A [`LeaseStore`] in a SQLite file that several processes of one machine share. Clones share it.
///
/// Guarantees: as [`LeaseStore`], with [`Fencing::Strict`]: a grant is synced before it is answered, and
/// tokens grow over a crash of the machine as far as the disk honors a sync; should it have lied, the clock
/// in every token and the epoch of the next boot keep them growing. Waiters are served in the order in which
/// they came, across processes. After a sync that failed this handle refuses everything: nobody knows what the
/// file holds until it is opened again. Not guaranteed: anything on a network file system; that damage to the
/// file's log is told from its end (a [`SqliteStore`](crate::SqliteStore) looks: it alone writes its file).
///
/// ```
/// use mainstay_clock::Runtime;
/// use mainstay_sqlite::{Driver, SqliteLeases};
/// use mainstay_store::LeaseStore;
/// use mainstay_store::lease::{AcquireRequest, Acquired};
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir().unwrap();
/// let open = || SqliteLeases::open(dir.path().join("leases.db"), Driver::Thread, &Runtime::system()).unwrap();
/// let (here, there) = (open(), open());
/// let ask = |owner| AcquireRequest::exclusive("nightly", owner, owner, Duration::from_secs(5));
/// assert!(matches!(here.acquire(ask("a")).await.unwrap(), Acquired::Granted(_)));
/// assert!(matches!(there.acquire(ask("b")).await.unwrap(), Acquired::Held { by, .. } if by == "a"));
/// # });
/// ```
#[derive(Clone)]
pub struct SqliteLeases(Arc<Shared>);

struct Shared {
    file: PathBuf,
    combiner: Combiner,
    clock: Arc<dyn Clock>,
    /// Told after every change of this process.
    changed: watch::Sender<u64>,
    /// What `pragma data_version` said last.
    seen: AtomicU64,
}

impl SqliteLeases {
    /// Opens or creates the file; its folder must exist. The inline driver is for virtual time.
    ///
    /// # Errors
    /// [`ErrorKind::NewerVersion`], [`ErrorKind::Corrupt`], [`ErrorKind::Unsupported`] when SQLite does not
    /// take the durable settings, [`ErrorKind::Unavailable`] and [`ErrorKind::Full`].
    pub fn open(file: impl AsRef<Path>, driver: Driver, rt: &Runtime) -> Result<Self> {
        let file = file.as_ref().to_owned();
        let conn = open::open(&file, true)?;
        // Checkpoints are ours: a commit that makes one hides whether its sync failed.
        conn.pragma_update(None, "wal_autocheckpoint", 0).map_err(store_error)?;
        let clock = Arc::clone(rt.clock());
        rows::prepare(&conn, clock.now())?;
        let combiner = Combiner::new(conn, driver, Arc::clone(&clock));
        let shared =
            Shared { file, combiner, clock, changed: watch::Sender::new(0), seen: AtomicU64::new(0) };
        Ok(Self(Arc::new(shared)))
    }

    /// One transaction over the operations in `scope`.
    fn work<T: Send + 'static>(
        &self,
        scope: Scope,
        changes: fn(&T) -> bool,
        work: impl Fn(&mut Table) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        Box::pin(async move {
            let done = self.0.combiner.run(scope, work).await?;
            if changes(&done) {
                self.0.changed.send_modify(|n| *n += 1);
            }
            Ok(done)
        })
    }

    /// Whether another process has committed since the last look.
    async fn foreign_change(&self) -> Result<bool> {
        let look = |conn: &Connection| -> rusqlite::Result<u64> {
            conn.prepare_cached("pragma data_version")?.query_row([], |r| r.get(0))
        };
        let version = self.0.combiner.look(look).await?.map_err(store_error)?;
        Ok(self.0.seen.swap(version, Ordering::AcqRel) != version)
    }
}

impl fmt::Debug for SqliteLeases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteLeases").field("file", &self.0.file).finish_non_exhaustive()
    }
}

impl LeaseStore for SqliteLeases {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        let mut names = request.names.clone();
        names.extend(request.require.iter().map(|(name, _)| name.clone()));
        let scope = Scope { names, op: Some(request.op_id.clone()), prefix: None };
        self.work(scope, |a| matches!(a, Acquired::Granted(_)), move |table| table.acquire(&request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op = op_id.to_owned();
        self.work(Scope::op(op_id), |_| false, move |table| Ok(table.renew(&op)))
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op = op_id.to_owned();
        self.work(Scope::op(op_id), |_| true, move |table| Ok(table.release(&op)))
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op = op_id.to_owned();
        self.work(
            Scope::op(op_id),
            |()| true,
            move |table| {
                table.leave(&op);
                Ok(())
            },
        )
    }

    fn downgrade(&self, op_id: &str) -> BoxFuture<'_, Result<bool>> {
        let op = op_id.to_owned();
        self.work(Scope::op(op_id), |done| *done, move |table| Ok(table.downgrade(&op)))
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let of = name.to_owned();
        self.work(Scope::name(name), |_| true, move |table| Ok(table.annotate(&of, token, value.clone())))
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let (of, to) = (name.to_owned(), to.to_owned());
        self.work(Scope::name(name), |_| true, move |table| Ok(table.transfer(&of, token, &to)))
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let of = name.to_owned();
        self.work(Scope::name(name), |_| true, move |table| Ok(table.break_lease(&of)))
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let of = name.to_owned();
        self.work(Scope::name(name), |_| false, move |table| Ok(table.inspect(&of)))
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let of = prefix.to_owned();
        let scope = Scope { names: Vec::new(), op: None, prefix: Some((prefix.to_owned(), limit)) };
        self.work(scope, |_| false, move |table| Ok(table.list(&of, limit)))
    }

    fn watch(&self, _name: &str) -> BoxFuture<'_, Result<()>> {
        let mut changed = self.0.changed.subscribe();
        Box::pin(async move {
            loop {
                let look = self.0.clock.sleep(LOOK);
                tokio::select! {
                    biased;
                    told = changed.changed() => {
                        let gone = |_| Error::new(ErrorKind::Unavailable, "the lease file is closed");
                        return told.map_err(gone);
                    }
                    () = look => if self.foreign_change().await? { return Ok(()) },
                }
            }
        })
    }

    fn guarantees(&self) -> Guarantees {
        let clock = "boot time of this machine";
        let mut guarantees = Guarantees::new(Fencing::Strict, clock, "none: one file on one machine");
        guarantees.fair = true;
        guarantees.min_ttl = Duration::from_millis(100);
        guarantees.native =
            &["annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"];
        guarantees
    }
}
