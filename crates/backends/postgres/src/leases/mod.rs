//! Leases as rows with a ttl.
//!
//! An exclusive lease of one name is one statement; its row is the only thing that is written. Everything else
//! (readers, permits, lines, several names) locks the rows of its names, loads who shares them into the
//! [table of rules](mainstay_store::lease::table) and writes back what changed, in one transaction. Both ways
//! exclude each other by the rows.

mod crowd;
mod records;
mod single;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_clock::{Instant, Runtime};
use mainstay_store::lease::table::Table;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, LeaseStore, Line, Released, Renewed, Server,
    Share, Transferred, WATCHED,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, Outcome, Result};

use crate::config::{PostgresConfig, Wake};
use crate::listen::Hub;
use crate::op::Op;
use crate::pool::{Lent, Pool, Use};
use crate::schema::Tables;
use crowd::Scope;
use records::Records;
use single::{Asked, Texts};
pub(crate) use single::{dated, unix_millis};

/// Acquisitions whose answer was lost and whose names are remembered. More are forgotten, oldest id first: what
/// they left then lasts one ttl instead of ending with their release.
const MAX_DOUBTS: usize = 10_000;
/// A name that was freed between the question and the look at its holder is asked for again.
const ASKS: u32 = 3;

/// A [`LeaseStore`] on PostgreSQL rows. Clones share it.
///
/// Guarantees: as [`LeaseStore`], with [`Fencing::Strict`] while commits are synced: a token is drawn under its
/// row's lock and committed before it is told; after a promotion that lost grants, the new timeline keeps tokens
/// growing. Waiters in line are served in order, also across processes. A standby grants nothing.
///
/// Not guaranteed: that a lease survives the promotion of an asynchronous standby (its holder is refused by its
/// token, not by the lease); that leases end on time when the server's wall clock jumps (tokens still grow).
///
/// ```no_run
/// use mainstay_clock::Runtime;
/// use mainstay_postgres::{PostgresConfig, PostgresLeases};
/// use mainstay_store::LeaseStore;
/// use mainstay_store::lease::{AcquireRequest, Acquired};
/// use std::time::Duration;
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let config = PostgresConfig::builder("postgres://app@localhost/app").build()?;
/// let store = PostgresLeases::open(config, &Runtime::system()).await?;
/// let request = AcquireRequest::exclusive("billing/nightly", "host-7", "op-1", Duration::from_secs(30));
/// if let Acquired::Granted(grants) = store.acquire(request).await? {
///     println!("every write carries {}", grants[0].token);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresLeases(Arc<Shared>);

struct Shared {
    pool: Arc<Pool>,
    tables: Tables,
    texts: Texts,
    records: Records,
    hub: Arc<Hub>,
    fencing: Fencing,
    wake: Wake,
    /// Acquisitions that were given up or whose answer was lost: they may still arrive.
    doubts: Mutex<BTreeMap<Op, Vec<String>>>,
    /// What was granted and not released yet.
    held: Mutex<BTreeMap<Op, Held>>,
}

/// What is known of a lease for its release, which is told nothing but the operation.
#[derive(Clone, Debug)]
struct Held {
    names: Vec<String>,
    ttl: Duration,
    /// When it ends by itself, by this process's clock.
    until: Instant,
    /// A release was sent, and may have taken effect.
    releasing: bool,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.hub.close();
    }
}

impl fmt::Debug for PostgresLeases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresLeases")
            .field("table", &self.0.tables.lease)
            .field("pool", &self.0.pool)
            .finish_non_exhaustive()
    }
}

impl PostgresLeases {
    /// Connects, checks what the configuration asks of the server, and makes the tables if they are not there.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when no server that takes writes answers, [`ErrorKind::Unsupported`] for a
    /// server that is too old, does not sync commits though `Strict` is asked for, or refuses the tables, and
    /// [`ErrorKind::NewerVersion`].
    ///
    /// # Cancel safety
    /// A dropped future may have made the tables.
    pub async fn open(config: PostgresConfig, rt: &Runtime) -> Result<Self> {
        let tables = Tables::new(&config.table, config.epoch);
        let pool = Pool::new(&config, Use::Requests, rt);
        tables.prepare(&pool, false).await?;
        let hub = Hub::new(tables.clone());
        if config.wake == Wake::Listen {
            rt.spawn("postgres-listen", Arc::clone(&hub).listen(Arc::clone(&pool)));
        }
        let (texts, records) = (Texts::new(&tables), Records::new(&tables.lease));
        let (fencing, wake) = (config.fencing, config.wake);
        Ok(Self(Arc::new(Shared {
            pool,
            tables,
            texts,
            records,
            hub,
            fencing,
            wake,
            doubts: Mutex::default(),
            held: Mutex::default(),
        })))
    }

    fn doubts(&self) -> MutexGuard<'_, BTreeMap<Op, Vec<String>>> {
        self.0.doubts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until its answer is there, nobody knows.
    fn doubt(&self, op: Op, names: Vec<String>) {
        let mut doubts = self.doubts();
        if doubts.len() >= MAX_DOUBTS {
            doubts.pop_first();
        }
        doubts.insert(op, names);
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Op, Held>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Granted by a question of `sent`.
    fn hold(&self, op: Op, request: &AcquireRequest, sent: Instant) {
        let mut held = self.held();
        if held.len() >= MAX_DOUBTS {
            held.pop_first();
        }
        let until = sent.saturating_add(request.ttl);
        held.insert(op, Held { names: request.names.clone(), ttl: request.ttl, until, releasing: false });
    }

    /// A release goes out. What was held, if an earlier one whose answer was lost may have freed it.
    fn releases(&self, op: Op) -> Option<Held> {
        let mut held = self.held();
        let held = held.get_mut(&op)?;
        let before = held.clone();
        held.releasing = true;
        (before.releasing && self.0.pool.rt.clock().now() < before.until).then_some(before)
    }

    fn tell<'a>(&self, lent: &Lent, names: impl IntoIterator<Item = &'a String>) {
        self.0.hub.tell(lent.client(), names);
    }

    /// One acquisition: the single statement where it can decide, the rules of a crowd where it cannot.
    async fn ask(&self, request: &AcquireRequest, op: Op) -> Result<Acquired> {
        let one = request.names.len() == 1 && request.share == Share::Exclusive && request.require.is_empty();
        if one {
            for _ in 0..ASKS {
                match self.ask_one(request, op).await? {
                    Asked::Granted(token) => {
                        let name = request.names[0].clone();
                        let grant = mainstay_store::lease::Grant { name, token, ttl: request.ttl };
                        return Ok(Acquired::Granted(vec![grant]));
                    }
                    Asked::Held { by, remaining, since } if request.line == Line::Try => {
                        return Ok(Acquired::Held { by, remaining, since });
                    }
                    Asked::Held { .. } | Asked::Crowd => break,
                    Asked::Freed => {}
                }
            }
        }
        let mut names = request.names.clone();
        names.extend(request.require.iter().map(|(name, _)| name.clone()));
        let scope = Scope { names, own: Some(op), released: None, burn: false };
        let request = AcquireRequest { op_id: op.text(), ..request.clone() };
        self.exclusively(scope, |table| table.acquire(&request)).await
    }

    async fn renew_all(&self, op: Op) -> Result<Renewed> {
        if let Some(renewed) = self.renew_single(op).await? {
            return Ok(renewed);
        }
        let scope = self.scope_of(op, None).await?;
        if scope.names.is_empty() {
            return Ok(Renewed::Lost);
        }
        self.exclusively(scope, |table| Ok(table.renew(&op.text()))).await
    }

    async fn release_all(&self, op: Op, doubtful: Option<&[String]>) -> Result<Released> {
        let single = self.release_single(op, doubtful).await?;
        self.doubts().remove(&op);
        if let Some(released) = single {
            return Ok(released);
        }
        let scope = self.scope_of(op, Some(op)).await?;
        self.exclusively(scope, |table| Ok(table.release(&op.text()))).await
    }

    fn single(&self) -> &Texts {
        &self.0.texts
    }
}

impl LeaseStore for PostgresLeases {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(async move {
            request.check()?;
            let op = Op::of(&request.op_id);
            self.doubt(op, request.names.clone());
            let sent = self.0.pool.rt.clock().now();
            let answer = self.ask(&request, op).await;
            if matches!(answer, Ok(Acquired::Granted(_))) {
                self.hold(op, &request, sent);
            }
            if !matches!(&answer, Err(e) if e.outcome() != Outcome::NotApplied) {
                self.doubts().remove(&op);
            }
            answer
        })
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op = Op::of(op_id);
        Box::pin(async move {
            let sent = self.0.pool.rt.clock().now();
            let renewed = self.renew_all(op).await;
            if let (Ok(Renewed::Renewed(_)), Some(held)) = (&renewed, self.held().get_mut(&op)) {
                held.until = held.until.max(sent.saturating_add(held.ttl));
            }
            renewed
        })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op = Op::of(op_id);
        Box::pin(async move {
            let doubtful = self.doubts().get(&op).cloned();
            // What is buried below looks as if it had been released.
            let earlier = self.releases(op).filter(|_| doubtful.is_none());
            let mut released = self.release_all(op, doubtful.as_deref()).await?;
            if let (Released::AlreadyGone, Some(held)) = (released, earlier)
                && self.was_released(op, &held.names).await?
            {
                released = Released::Clean;
            }
            self.held().remove(&op);
            Ok(released)
        })
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op = Op::of(op_id);
        Box::pin(async move {
            let scope = self.scope_of(op, None).await?;
            if scope.names.is_empty() {
                return Ok(());
            }
            let leave = |table: &mut Table| {
                table.leave(&op.text());
                Ok(())
            };
            self.exclusively(scope, leave).await
        })
    }

    fn downgrade(&self, op_id: &str) -> BoxFuture<'_, Result<bool>> {
        let op = Op::of(op_id);
        Box::pin(async move {
            let scope = self.scope_of(op, None).await?;
            if scope.names.is_empty() {
                return Ok(false);
            }
            self.exclusively(scope, |table| Ok(table.downgrade(&op.text()))).await
        })
    }

    fn resize(&self, name: &str, limit: u32) -> BoxFuture<'_, Result<()>> {
        let name = name.to_owned();
        Box::pin(async move {
            let scope = Scope::name(&name);
            self.exclusively(scope, |table| table.resize(&name, limit)).await
        })
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let name = name.to_owned();
        Box::pin(async move {
            let scope = Scope::name(&name);
            self.exclusively(scope, |table| Ok(table.annotate(&name, token, value.clone()))).await
        })
    }

    fn transfer(&self, name: &str, token: FencingToken, to: &str) -> BoxFuture<'_, Result<Transferred>> {
        let (name, to) = (name.to_owned(), to.to_owned());
        Box::pin(async move {
            let scope = Scope::name(&name);
            self.exclusively(scope, |table| Ok(table.transfer(&name, token, &to))).await
        })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        Box::pin(async move {
            let scope = Scope { burn: true, ..Scope::name(&name) };
            self.exclusively(scope, |table| Ok(table.break_lease(&name))).await
        })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        Box::pin(async move {
            let found = self.look(std::slice::from_ref(&name)).await?.pop();
            Ok(found.unwrap_or_else(|| LeaseInfo::free(&name, FencingToken::ZERO)))
        })
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            let names = self.held_names(&prefix, limit).await?;
            let mut found = self.look(&names).await?;
            // Freed between the two looks.
            found.retain(|info| !info.holders.is_empty());
            Ok(found)
        })
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        if self.0.wake == Wake::Timers {
            let text = "this lease store cannot watch: it was told that nobody can listen";
            return Box::pin(async move { Err(Error::new(ErrorKind::Unsupported, text)) });
        }
        self.0.hub.watch(name)
    }

    fn servers(&self) -> BoxFuture<'_, Result<Vec<Server>>> {
        Box::pin(async { Ok(vec![self.0.pool.server().await?]) })
    }

    fn guarantees(&self) -> Guarantees {
        let failover = "an asynchronous standby may lack the lease when it is promoted; tokens keep growing";
        let mut guarantees = Guarantees::new(self.0.fencing, "wall clock of the server", failover);
        guarantees.fair = true;
        guarantees.min_ttl = Duration::from_millis(100);
        guarantees.native = match self.0.wake {
            Wake::Listen => {
                guarantees.recheck = WATCHED;
                &["annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"]
            }
            Wake::Timers => &["annotate", "break_lease", "line", "list", "permit", "shared", "transfer"],
        };
        guarantees
    }
}
