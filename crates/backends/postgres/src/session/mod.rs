//! Leases as session advisory locks, bound to a connection.

mod keys;
mod table;
mod watch;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::future::FutureExt as _;
use mainstay_clock::{Instant, Runtime};
use mainstay_store::lease::table::Table;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Grant, Guarantees, LeaseInfo, LeaseStore, Line, Names, Released,
    Renewed, Server, Share, WATCHED, Watchers,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, Result};
use tokio::sync::watch as tell;

pub use keys::{AdvisoryKey, KeyError, KeyProfile};

use crate::config::{PostgresConfig, Wake};
use crate::listen::Hub;
use crate::op::Op;
use crate::pool::{Lent, Pool, Use};
use crate::schema::Tables;
use table::Texts;
use watch::{Seen, Watches};

/// Connections for short questions beside the sessions: what is asked while a session waits.
const CONTROL: u32 = 2;

/// A [`LeaseStore`] on session advisory locks. Clones share it.
///
/// Each lease has a connection of its own. When the holder's process dies, the server sees its connection end and
/// the next holder starts at once, without waiting for a ttl. A lease that is not renewed for its ttl is given up by
/// its own process. Whoever else takes the same key, from `psql` or another library, excludes ours and is excluded.
///
/// Guarantees: as [`LeaseStore`]; tokens are drawn under the lock and committed before they are told. Waiters stand
/// in the server's queue and are served in order.
///
/// Not guaranteed: that anything survives the end of the connection: a restart of the server, a failover, a pooler
/// that shares connections lose the lock silently, and the holder learns it at its next renewal. Not guaranteed
/// either: that a holder which is paused or cut off, while its connection stays open, ever loses the lock. Renewals
/// ask the server; any failure of the connection is a loss.
///
/// A watch resolves when a lease of ours is taken or ends, in whichever process, and when a holder that this process was
/// told of lets go, dies or is cut off, whoever it is. That another client takes a lock that is free, it does not tell.
///
/// Exclusive leases only. It does not exclude [`PostgresLeases`](crate::PostgresLeases): a name uses one of both.
///
/// ```no_run
/// use mainstay_clock::Runtime;
/// use mainstay_postgres::{KeyProfile, Names, PostgresConfig, PostgresSessions};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let config = PostgresConfig::builder("postgres://app@localhost/app").build()?;
/// // Excludes services in Rust that lock with sqlx.
/// let store = PostgresSessions::open(config, KeyProfile::Sqlx, Names::Bare, &Runtime::system()).await?;
/// # drop(store); Ok(()) }
/// ```
#[derive(Clone)]
pub struct PostgresSessions(Arc<Shared>);

struct Shared {
    /// Connections that hold or wait for locks.
    sessions: Arc<Pool>,
    /// Connections for short questions.
    control: Arc<Pool>,
    texts: Texts,
    profile: KeyProfile,
    names: Names,
    fencing: Fencing,
    rt: Runtime,
    watches: Watches,
    /// Who holds a name may have changed: a lease was taken or ended, here or by another process of ours. Who waits in
    /// the queue is in front of its own watch, and learns its turn here.
    news: Arc<Hub>,
    /// Told when somebody of this process was told that a name is held.
    told: Watchers,
    open: Mutex<BTreeMap<Op, Arc<Session>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.news.close();
    }
}

/// One acquisition of this process.
struct Session {
    op: Op,
    names: Vec<String>,
    ttl: Duration,
    pid: i32,
    started: i64,
    state: Mutex<State>,
    /// Told when the place changed.
    changed: tell::Sender<()>,
}

struct State {
    /// When it is given up unless it is asked for again.
    until: Instant,
    place: Place,
}

#[derive(Clone)]
enum Place {
    Gone,
    Holding { lent: Arc<Lent>, grants: Vec<Grant> },
    Waiting,
}

impl Session {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> Place {
        self.state().place.clone()
    }

    /// Takes what it holds; it holds nothing from now on.
    fn end(&self) -> Place {
        let place = std::mem::replace(&mut self.state().place, Place::Gone);
        self.changed.send_replace(());
        place
    }
}

impl fmt::Debug for PostgresSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSessions")
            .field("profile", &self.0.profile)
            .field("pool", &self.0.sessions)
            .finish_non_exhaustive()
    }
}

/// The lock of a name, as calls and as the server's view.
#[derive(Clone, Debug)]
struct Key {
    arguments: String,
    text: String,
}

impl PostgresSessions {
    /// Connects, checks what the configuration asks of the server, and makes the table of tokens. `connections` of
    /// the configuration are the locks that may be held or waited for at once.
    ///
    /// # Errors
    /// As [`PostgresLeases::open`](crate::PostgresLeases::open).
    ///
    /// # Cancel safety
    /// A dropped future may have made the table.
    pub async fn open(
        config: PostgresConfig,
        profile: KeyProfile,
        names: Names,
        rt: &Runtime,
    ) -> Result<Self> {
        let table = format!("{}_session", config.table);
        let tables = Tables::new(&table, config.epoch);
        let sessions = Pool::new(&config, Use::Sessions, rt);
        let fencing = config.fencing;
        let (wake, config) = (config.wake, PostgresConfig { connections: CONTROL, ..config });
        let control = Pool::new(&config, Use::Requests, rt);
        tables.prepare(&control, true).await?;
        let texts = Texts::new(&tables);
        let watches = Watches::new(Arc::clone(&sessions), rt.clone());
        let open = Mutex::default();
        let rt = rt.clone();
        let (news, told) = (Hub::new(tables), Watchers::default());
        if wake == Wake::Listen {
            rt.spawn("postgres-listen", Arc::clone(&news).listen(Arc::clone(&control)));
        }
        let shared =
            Shared { sessions, control, texts, profile, names, fencing, rt, watches, news, told, open };
        Ok(Self(Arc::new(shared)))
    }

    fn key(&self, name: &str) -> Result<Key> {
        let key = self.0.profile.key(self.0.names.known(name));
        let key = key.map_err(|e| Error::new(ErrorKind::ApiMisuse, e.to_string()).with_source(e))?;
        Ok(Key { arguments: key.arguments(), text: key.text() })
    }

    fn open_sessions(&self) -> MutexGuard<'_, BTreeMap<Op, Arc<Session>>> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, op: Op) -> Option<Arc<Session>> {
        self.open_sessions().get(&op).cloned()
    }

    /// For those of this process; elsewhere the server tells.
    fn changed(&self, names: &[String]) {
        names.iter().for_each(|name| self.0.news.fire(name));
    }

    /// Resolves when the lock of `key` was let go after somebody of this process was told that it is held. A lock that
    /// is free, and was when its state was told last, is no news.
    async fn freed(&self, key: Key, mut told: BoxFuture<'_, Result<()>>) -> Result<()> {
        loop {
            // What was told after the watch was armed may have passed before this look.
            if self.0.watches.watch(key.clone()).await? == Seen::Freed
                || told.as_mut().now_or_never().is_some()
            {
                return Ok(());
            }
            told.as_mut().await?;
        }
    }

    /// Gives up what was not asked for in time, and waits until the server knows.
    async fn reap(&self) -> Result<()> {
        let now = self.0.rt.clock().now();
        let late: Vec<Arc<Session>> =
            self.open_sessions().values().filter(|s| s.state().until <= now).cloned().collect();
        for session in late {
            self.close(&session).await?;
        }
        Ok(())
    }

    /// Ends a session and waits until the server knows.
    async fn close(&self, session: &Session) -> Result<()> {
        drop(session.end());
        // Until then it is in the list, so that whoever looks in between waits too.
        self.terminate(session.pid, session.started).await?;
        self.open_sessions().remove(&session.op);
        self.changed(&session.names);
        Ok(())
    }

    async fn ask(&self, request: AcquireRequest) -> Result<Acquired> {
        // An empty table refuses exactly what every store must refuse.
        Table::default().acquire(&request)?;
        if request.share != Share::Exclusive {
            let text = "session locks are exclusive: readers and permits need the leases in rows";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let keys = request.names.iter().map(|name| self.key(name)).collect::<Result<Vec<Key>>>()?;
        self.reap().await?;
        let op = Op::of(&request.op_id);
        if let Some(session) = self.session(op) {
            if session.names != request.names {
                let text = format!("op id `{}` already stands for other names", request.op_id);
                return Err(Error::new(ErrorKind::ApiMisuse, text));
            }
            if let Some(answer) = self.again(&session, &request, &keys).await? {
                return Ok(answer);
            }
        }
        for (name, token) in &request.require {
            if !self.is_held_with(name, *token).await? {
                return Ok(Acquired::Held { by: String::new(), remaining: None, since: None });
            }
        }
        let lent = self.0.sessions.lend_now().await?;
        if let Some(blocked) = self.try_locks(&lent, &keys).await? {
            let (by, since) = self.holder(&keys[blocked], &request.names[blocked]).await?;
            self.0.told.fire(&request.names[blocked]);
            if request.line == Line::Try {
                lent.give_back();
                return Ok(Acquired::Held { by, remaining: None, since });
            }
            return self.stand_in_line(lent, &request, op, keys).await;
        }
        let grants = self.draw(&lent, &request, &keys).await?;
        self.0.news.tell(lent.client(), &request.names);
        let place = Place::Holding { lent: Arc::new(lent), grants: grants.clone() };
        self.enter(&request, op, place, None);
        Ok(Acquired::Granted(grants))
    }

    /// An acquisition that is asked for again; none when it must begin anew.
    async fn again(
        &self,
        session: &Arc<Session>,
        request: &AcquireRequest,
        keys: &[Key],
    ) -> Result<Option<Acquired>> {
        session.state().until = self.0.rt.clock().now().saturating_add(request.ttl);
        let mut changed = session.changed.subscribe();
        loop {
            changed.mark_unchanged();
            match session.place() {
                Place::Holding { lent, grants } if !lent.client().is_closed() => {
                    return Ok(Some(Acquired::Granted(grants)));
                }
                Place::Gone | Place::Holding { .. } => {
                    self.close(session).await?;
                    return Ok(None);
                }
                Place::Waiting => {}
            }
            if let Some(position) = self.position(session.pid, keys).await? {
                return Ok(Some(in_line(position)));
            }
            // The server has granted it; its session is about to learn that.
            let what = "a lock that was granted";
            let told = async { Ok(changed.changed().await) };
            // A closed channel means that the place has changed too.
            let _ = self.0.control.within(what, mainstay_store::Outcome::Unknown, told).await?;
        }
    }

    /// Waits for the locks in the server's queue, in the background.
    async fn stand_in_line(
        &self,
        lent: Lent,
        request: &AcquireRequest,
        op: Op,
        keys: Vec<Key>,
    ) -> Result<Acquired> {
        let (pid, started) = (lent.conn.pid, lent.conn.started);
        let session = self.enter(request, op, Place::Waiting, Some((pid, started)));
        let (this, request, of) = (Arc::downgrade(&self.0), request.clone(), keys.clone());
        let (mut changed, session) = (session.changed.subscribe(), Arc::downgrade(&session));
        self.0.rt.spawn("advisory-wait", async move {
            let given_up = async {
                // Nobody sends any more when the session is forgotten.
                while changed.changed().await.is_ok() {
                    if session.upgrade().is_none_or(|s| matches!(s.place(), Place::Gone)) {
                        return;
                    }
                }
            };
            let taken = tokio::select! {
                biased;
                () = given_up => return,
                taken = Self::wait_for(&this, &lent, &request, &of) => taken,
            };
            let Some(session) = session.upgrade() else { return };
            let mut state = session.state();
            // Given up meanwhile: the connection goes, and the locks with it.
            if matches!(state.place, Place::Waiting) {
                state.place = match taken {
                    Ok(grants) => Place::Holding { lent: Arc::new(lent), grants },
                    Err(_) => Place::Gone,
                };
            }
            drop(state);
            session.changed.send_replace(());
            if let Some(shared) = this.upgrade() {
                Self(shared).changed(&request.names);
            }
        });
        self.queued(pid, &keys).await
    }

    /// Waits until the server shows the session in its queue, so that the order of arrivals is the order of calls.
    async fn queued(&self, pid: i32, keys: &[Key]) -> Result<Acquired> {
        let shown = async {
            loop {
                if let Some(position) = self.position(pid, keys).await? {
                    return Ok(in_line(position));
                }
                if self.holds(pid, keys).await? {
                    return Ok(in_line(0));
                }
            }
        };
        self.0.control.within("standing in line", mainstay_store::Outcome::Unknown, shown).await
    }

    async fn wait_for(
        this: &Weak<Shared>,
        lent: &Lent,
        request: &AcquireRequest,
        keys: &[Key],
    ) -> Result<Vec<Grant>> {
        for key in keys {
            let sql = format!("select pg_advisory_lock({})", key.arguments);
            lent.client().batch_execute(&sql).await.map_err(crate::error::store_error)?;
        }
        let gone = || Error::new(ErrorKind::Unavailable, "the lease store was closed");
        let this = Self(this.upgrade().ok_or_else(gone)?);
        let grants = this.draw(lent, request, keys).await?;
        this.0.news.tell(lent.client(), &request.names);
        Ok(grants)
    }

    fn enter(
        &self,
        request: &AcquireRequest,
        op: Op,
        place: Place,
        waits: Option<(i32, i64)>,
    ) -> Arc<Session> {
        let (pid, started) = match (&place, waits) {
            (Place::Holding { lent, .. }, _) => (lent.conn.pid, lent.conn.started),
            (_, waits) => waits.unwrap_or_default(),
        };
        let until = self.0.rt.clock().now().saturating_add(request.ttl);
        let session = Arc::new(Session {
            op,
            names: request.names.clone(),
            ttl: request.ttl,
            pid,
            started,
            state: Mutex::new(State { until, place }),
            changed: tell::Sender::new(()),
        });
        self.open_sessions().insert(op, Arc::clone(&session));
        self.0.rt.spawn(
            "advisory-ttl",
            keep(Arc::downgrade(&self.0), Arc::downgrade(&session), self.0.rt.clone()),
        );
        session
    }

    async fn give_up(&self, op: Op) -> Result<Released> {
        self.reap().await?;
        let Some(session) = self.open_sessions().remove(&op) else { return Ok(Released::AlreadyGone) };
        match session.end() {
            Place::Gone => Ok(Released::AlreadyGone),
            Place::Waiting => {
                self.terminate(session.pid, session.started).await?;
                self.changed(&session.names);
                Ok(Released::AlreadyGone)
            }
            Place::Holding { lent, .. } => {
                let keys = session.names.iter().map(|name| self.key(name)).collect::<Result<Vec<Key>>>()?;
                let clean = self.unlock(&lent, op, &keys).await?;
                if let Ok(lent) = Arc::try_unwrap(lent)
                    && clean
                {
                    lent.give_back();
                }
                self.changed(&session.names);
                Ok(if clean { Released::Clean } else { Released::AlreadyGone })
            }
        }
    }

    async fn keep_alive(&self, op: Op) -> Result<Renewed> {
        self.reap().await?;
        let Some(session) = self.session(op) else { return Ok(Renewed::Lost) };
        let Place::Holding { lent, grants } = session.place() else { return Ok(Renewed::Lost) };
        let now = self.0.rt.clock().now();
        if !self.is_alive(&lent, op, &grants).await? {
            self.close(&session).await?;
            return Ok(Renewed::Closed);
        }
        let mut state = session.state();
        state.until = state.until.max(now.saturating_add(session.ttl));
        Ok(Renewed::Renewed(grants))
    }
}

/// Gives a session up when it is not asked for within its ttl.
async fn keep(this: Weak<Shared>, session: Weak<Session>, rt: Runtime) {
    let Some(mut changed) = session.upgrade().map(|s| s.changed.subscribe()) else { return };
    loop {
        let Some(until) = session.upgrade().map(|s| s.state().until) else { return };
        if rt.clock().now() >= until {
            break;
        }
        tokio::select! {
            biased;
            () = rt.clock().sleep_until(until) => {}
            told = changed.changed() => {
                let gone = |s: Arc<Session>| matches!(s.place(), Place::Gone);
                if told.is_err() || session.upgrade().is_none_or(gone) {
                    return;
                }
            }
        }
    }
    let (Some(this), Some(session)) = (this.upgrade(), session.upgrade()) else { return };
    if let Err(error) = PostgresSessions(this).close(&session).await {
        tracing::warn!(%error, "a session lock that nobody renews was not seen to end");
    }
}

/// The end of whoever is before it is told by the server, by whatever it comes.
fn in_line(position: u32) -> Acquired {
    Acquired::Queued { position: Some(position), remaining: None }
}

impl LeaseStore for PostgresSessions {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(self.ask(request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        Box::pin(self.keep_alive(Op::of(op_id)))
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        Box::pin(self.give_up(Op::of(op_id)))
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        let op = Op::of(op_id);
        Box::pin(async move {
            match self.session(op).map(|s| s.place()) {
                Some(Place::Waiting) => self.give_up(op).await.map(drop),
                _ => Ok(()),
            }
        })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        Box::pin(async move {
            let key = self.key(&name)?;
            self.burn(&name, &key).await.inspect(|_| self.changed(&[name]))
        })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        Box::pin(async move {
            self.reap().await?;
            let key = self.key(&name)?;
            self.look(&name, &key).await
        })
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        Box::pin(async move {
            self.reap().await?;
            self.look_all(&prefix, limit).await
        })
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        match self.key(name) {
            Ok(key) => {
                // Both are armed from now on.
                let (news, told) = (self.0.news.watch(name), self.0.told.watch(name));
                Box::pin(async move {
                    tokio::select! {
                        biased;
                        news = news => news,
                        freed = self.freed(key, told) => freed,
                    }
                })
            }
            Err(e) => Box::pin(async move { Err(e) }),
        }
    }

    fn servers(&self) -> BoxFuture<'_, Result<Vec<Server>>> {
        Box::pin(async { Ok(vec![self.0.control.server().await?]) })
    }

    fn guarantees(&self) -> Guarantees {
        let failover = "lost: a session ends with its server";
        let clock = "the connection; within the holder's process also the ttl";
        let mut guarantees = Guarantees::new(self.0.fencing, clock, failover);
        guarantees.fair = true;
        guarantees.min_ttl = Duration::from_millis(100);
        guarantees.recheck = WATCHED;
        guarantees.native = &["break_lease", "line", "list", "watch"];
        guarantees
    }
}
