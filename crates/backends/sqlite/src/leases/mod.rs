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
mod scout;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_store::lease::table::Table;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, Released, Renewed, Server, Transferred, WATCHED,
};
use mainstay_store::{BoxFuture, FencingToken, LeaseStore, Result};

use crate::config::Driver;
use crate::error::store_error;
use crate::open;
use combine::Combiner;
use rows::Scope;
use scout::Scout;

/// A [`LeaseStore`] in a SQLite file that several processes of one machine share. Clones share it.
///
/// Guarantees: as [`LeaseStore`], with [`Fencing::Strict`]: a grant is synced before it is answered, and
/// tokens grow over a crash of the machine as far as the disk honors a sync; should it have lied, the clock
/// in every token and the epoch of the next boot keep them growing. Waiters are served in the order in which
/// they came, across processes. After a sync that failed this handle refuses everything: nobody knows what the
/// file holds until it is opened again. Not guaranteed: anything on a network file system; that damage to the
/// file's log is told from its end (a [`SqliteStore`](crate::SqliteStore) looks: it alone writes its file); that tokens
/// grow over a file that was lost or restored from a copy, without a larger [`epoch`](LeasesBuilder::epoch).
///
/// ```
/// use mainstay_clock::Runtime;
/// use mainstay_sqlite::SqliteLeases;
/// use mainstay_store::LeaseStore;
/// use mainstay_store::lease::{AcquireRequest, Acquired};
/// use std::time::Duration;
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir().unwrap();
/// let open = || SqliteLeases::builder(dir.path().join("leases.db")).open(&Runtime::system()).unwrap();
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
    rt: Runtime,
    scout: Scout,
}

/// Opens a lease file with other settings.
///
/// # Defaults
/// | setting | default | why |
/// |---|---|---|
/// | `driver` | a thread | callers that come together share a sync |
/// | `epoch` | 0 | raise it after the file was lost or restored from an older copy, or when names move here from another store |
#[derive(Clone, Debug)]
#[must_use]
pub struct LeasesBuilder {
    file: PathBuf,
    driver: Driver,
    epoch: u16,
}

impl LeasesBuilder {
    /// Who runs the transactions. The inline driver is for virtual time.
    pub fn driver(mut self, driver: Driver) -> Self {
        self.driver = driver;
        self
    }

    /// Added to the number of boots in the epoch of every token, its upper 15 bits. The file counts boots from when it
    /// was made, so raise this by more than there may have been: by 1000 each time, say. Never lower it.
    pub fn epoch(mut self, epoch: u16) -> Self {
        self.epoch = epoch;
        self
    }

    /// Opens or creates the file; its folder must exist.
    ///
    /// # Errors
    /// `NewerVersion`, `Corrupt`, `Unsupported` when SQLite does not take the durable settings, `Unavailable` and `Full`;
    /// `ApiMisuse` when epoch and boots are more than 32767 together.
    pub fn open(self, rt: &Runtime) -> Result<SqliteLeases> {
        let Self { file, driver, epoch } = self;
        let conn = open::open(&file, true)?;
        // Checkpoints are ours: a commit that makes one hides whether its sync failed.
        conn.pragma_update(None, "wal_autocheckpoint", 0).map_err(store_error)?;
        let clock = Arc::clone(rt.clock());
        rows::prepare(&conn, clock.now(), epoch)?;
        let origin = rt.rng().next_u64().cast_signed();
        let combiner = Combiner::new(conn, driver, clock, origin, epoch);
        let scout = Scout::new(origin);
        Ok(SqliteLeases(Arc::new(Shared { file, combiner, rt: rt.clone(), scout })))
    }
}

impl SqliteLeases {
    /// Settings for a lease file.
    ///
    /// ```
    /// use mainstay_clock::Runtime;
    /// use mainstay_sqlite::SqliteLeases;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// let (dir, rt) = (tempfile::tempdir().unwrap(), Runtime::system());
    /// let restored = SqliteLeases::builder(dir.path().join("leases.db")).epoch(1_000);
    /// restored.open(&rt).unwrap();
    /// let refused = SqliteLeases::builder(dir.path().join("other.db")).epoch(40_000).open(&rt);
    /// assert_eq!(refused.unwrap_err().kind(), mainstay_store::ErrorKind::ApiMisuse);
    /// # });
    /// ```
    pub fn builder(file: impl AsRef<Path>) -> LeasesBuilder {
        LeasesBuilder { file: file.as_ref().to_owned(), driver: Driver::Thread, epoch: 0 }
    }

    /// One transaction over the operations in `scope`.
    fn work<T: Send + 'static>(
        &self,
        scope: Scope,
        work: impl Fn(&mut Table) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'_, Result<T>> {
        Box::pin(self.0.combiner.run(scope, work))
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
        self.work(scope, move |table| table.acquire(&request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op = op_id.to_owned();
        self.work(Scope::op(op_id), move |table| Ok(table.renew(&op)))
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op = op_id.to_owned();
        self.work(Scope::op(op_id), move |table| Ok(table.release(&op)))
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op = op_id.to_owned();
        self.work(Scope::op(op_id), move |table| {
            table.leave(&op);
            Ok(())
        })
    }

    fn downgrade(&self, op_id: &str) -> BoxFuture<'_, Result<bool>> {
        let op = op_id.to_owned();
        self.work(Scope::op(op_id), move |table| Ok(table.downgrade(&op)))
    }

    fn resize(&self, name: &str, limit: u32) -> BoxFuture<'_, Result<()>> {
        let of = name.to_owned();
        self.work(Scope::name(name), move |table| table.resize(&of, limit))
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let of = name.to_owned();
        self.work(Scope::name(name), move |table| Ok(table.annotate(&of, token, value.clone())))
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let (of, to) = (name.to_owned(), to.to_owned());
        self.work(Scope::name(name), move |table| Ok(table.transfer(&of, token, &to)))
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let of = name.to_owned();
        self.work(Scope::name(name), move |table| Ok(table.break_lease(&of)))
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let of = name.to_owned();
        self.work(Scope::name(name), move |table| Ok(table.inspect(&of)))
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let of = prefix.to_owned();
        let scope = Scope { names: Vec::new(), op: None, prefix: Some((prefix.to_owned(), limit)) };
        self.work(scope, move |table| Ok(table.list(&of, limit)))
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        // Armed before the scout may look for the first time.
        let hint = self.0.combiner.watchers.watch(name);
        Box::pin(async move {
            self.0.scout.send(&self.0.combiner, &self.0.rt);
            hint.await
        })
    }

    fn servers(&self) -> BoxFuture<'_, Result<Vec<Server>>> {
        let library = Server::new("SQLite", "", rusqlite::version(), open::OLDEST);
        Box::pin(async { Ok(vec![library]) })
    }

    fn guarantees(&self) -> Guarantees {
        let clock = "boot time of this machine";
        let mut guarantees = Guarantees::new(Fencing::Strict, clock, "none: one file on one machine");
        guarantees.fair = true;
        guarantees.min_ttl = Duration::from_millis(100);
        // Nothing is lost between processes, but a program of an earlier version tells no names.
        guarantees.recheck = WATCHED;
        guarantees.native =
            &["annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"];
        guarantees
    }
}
