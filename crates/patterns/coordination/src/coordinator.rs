//! Where locks and elections come from.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime};
use mainstay_store::lease::AcquireRequest;
use mainstay_store::{FencingToken, LeaseStore, RecordStore};

use crate::{ConfigError, Error, ErrorKind, barrier, cron, election, latch, lock, membership};

/// Names whose highest token is remembered. More are not refused: the oldest by name is forgotten, and a
/// store that loses state is then not noticed for it. 10,000 names cost about 1 MiB.
const MAX_SEEN: usize = 10_000;
/// Longest name with its namespace, in bytes; the limit of the HTTP API.
pub(crate) const MAX_NAME: usize = 1_024;
/// What a refused name is told.
const ALLOWED: &str = "1 to 1,024 bytes with the namespace, no control characters";
/// Between two looks at something that others change, where the store gives no hint.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Names of leases that are taken and given back for the hint alone begin so.
const BELL: &str = "bell/";
/// How long a bell lasts whose ringer died: nobody waits for one.
const RINGS: Duration = Duration::from_secs(1);

/// Makes locks and elections on one lease store.
///
/// Guarantees: two coordinators on one store and namespace exclude each other by name. Not guaranteed:
/// anything between namespaces, or between stores.
///
/// Cheap to clone; clones share the line of waiters and the tokens seen.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use mainstay_clock::{Deadline, Runtime};
/// use mainstay_coordination::{Coordinator, ErrorKind};
/// use mainstay_store::memory::MemoryLeaseStore;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let rt = Runtime::system();
/// let store = Arc::new(MemoryLeaseStore::new(Arc::clone(rt.clock())));
/// let locks = Coordinator::builder(store, rt).namespace("billing").owner("node-7").build()?;
///
/// let nightly = locks.mutex("nightly").ttl(Duration::from_secs(10)).build()?;
/// let guard = nightly.acquire(Deadline::NONE).await?;
/// assert!(matches!(nightly.try_acquire().await.unwrap_err().kind(), ErrorKind::Contended { .. }));
///
/// let sum = guard.run(|fence| async move { fence.token().get() + 1 }).await?;
/// assert_eq!(sum, guard.token().get() + 1);
/// guard.release().await?;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct Coordinator(pub(crate) Arc<Core>);

impl fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coordinator")
            .field("namespace", &self.0.namespace)
            .field("owner", &self.0.owner)
            .field("store", &self.0.store)
            .finish_non_exhaustive()
    }
}

/// What all handles of a coordinator share.
pub(crate) struct Core {
    pub(crate) store: Arc<dyn LeaseStore>,
    pub(crate) records: Option<Arc<dyn RecordStore>>,
    pub(crate) rt: Runtime,
    pub(crate) owner: String,
    namespace: String,
    seen: Mutex<BTreeMap<String, FencingToken>>,
    lines: Mutex<HashMap<String, Weak<Line>>>,
    /// Releases and reconciliations that go on in the background.
    background: AtomicU64,
}

/// The waiters of this process for one name.
#[derive(Debug, Default)]
pub(crate) struct Line {
    turns: tokio::sync::Mutex<()>,
    /// The last question of those whose turn it was got no answer.
    silent: AtomicBool,
}

impl Line {
    /// Waits for those who came before.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.turns.lock().await
    }

    /// Whether a question was answered.
    pub(crate) fn heard(&self, answered: bool) {
        self.silent.store(!answered, Ordering::Relaxed);
    }

    /// Whether nobody knows if somebody stands in the way.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Core {
    pub(crate) fn now(&self) -> Instant {
        self.rt.clock().now()
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        self.rt.clock()
    }

    pub(crate) fn unit(&self) -> f64 {
        self.rt.rng().unit()
    }

    /// 128 random bits: what the store keeps and compares.
    pub(crate) fn op_id(&self) -> String {
        format!("{:016x}{:016x}", self.rt.rng().next_u64(), self.rt.rng().next_u64())
    }

    /// The line of waiters of this process for `name`: one of them talks to the store.
    pub(crate) fn line(&self, name: &str) -> Arc<Line> {
        let mut lines = locked(&self.lines);
        if let Some(line) = lines.get(name).and_then(Weak::upgrade) {
            return line;
        }
        // Not each time: with many names that would be most of the work.
        if lines.len().is_power_of_two() {
            lines.retain(|_, line| line.strong_count() > 0);
        }
        let line = Arc::new(Line::default());
        lines.insert(name.to_owned(), Arc::downgrade(&line));
        line
    }

    /// The highest token granted so far, as far as it is remembered.
    pub(crate) fn highest(&self, name: &str) -> FencingToken {
        locked(&self.seen).get(name).copied().unwrap_or(FencingToken::ZERO)
    }

    /// Remembers a granted token; refuses one that is smaller than `floor`, without one than the highest so far.
    pub(crate) fn remember(
        &self,
        name: &str,
        token: FencingToken,
        floor: Option<FencingToken>,
    ) -> Result<(), Error> {
        let mut seen = locked(&self.seen);
        let known = seen.get_mut(name);
        let floor = floor.or(known.as_deref().copied()).unwrap_or(FencingToken::ZERO);
        if token < floor {
            let why = format!(
                "`{name}`: the store granted token {token} after {floor}; it lost state, so nothing is held"
            );
            return Err(Error::new(ErrorKind::StoreRegressed, why));
        }
        match known {
            Some(highest) => {
                *highest = token.max(*highest);
                Ok(())
            }
            None => {
                if seen.len() >= MAX_SEEN {
                    seen.pop_first();
                }
                seen.insert(name.to_owned(), token);
                Ok(())
            }
        }
    }

    /// Something goes on in the background from now on.
    pub(crate) fn unsettled(&self) {
        self.background.fetch_add(1, Ordering::AcqRel);
    }

    /// It ended.
    pub(crate) fn settled(&self) {
        self.background.fetch_sub(1, Ordering::AcqRel);
    }

    /// The store's name of a caller's name.
    pub(crate) fn full_name(&self, name: &str) -> Result<String, ConfigError> {
        let full = format!("{}/{name}", self.namespace);
        if name.is_empty() || full.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err(ConfigError::new("name", name, ALLOWED));
        }
        Ok(full)
    }

    /// The records, for a recipe that cannot do without.
    pub(crate) fn records(&self) -> Result<Arc<dyn RecordStore>, ConfigError> {
        let allowed = "a record store: this recipe remembers more than a lease can";
        self.records.clone().ok_or_else(|| ConfigError::new("records", "none", allowed))
    }

    /// The name of the bell that is rung when `name` changed.
    pub(crate) fn bell(&self, name: &str) -> Result<String, ConfigError> {
        self.full_name(&format!("{BELL}{name}"))
    }

    /// Wakes whoever watches `bell`, in every process that the store reaches. Best effort: watchers have a
    /// timer too.
    pub(crate) async fn ring(&self, bell: &str) {
        let ttl = RINGS.max(self.store.guarantees().min_ttl);
        let request = AcquireRequest::exclusive(bell, &self.owner, &self.op_id(), ttl);
        let op_id = request.op_id.clone();
        // Held by another ringer: its release comes after this, and hints too.
        if self.store.acquire(request).await.is_ok() {
            let _ = self.store.release(&op_id).await;
        }
    }

    /// Rings in the background, for whoever cannot wait.
    pub(crate) fn ring_later(self: &Arc<Self>, bell: &str) {
        let (core, bell) = (Arc::clone(self), bell.to_owned());
        self.rt.spawn("recipe-bell", async move { core.ring(&bell).await });
    }

    /// A hint that something may have changed, armed from now on; never, where the store cannot say. Hints may be spurious:
    /// after so many `vain` ones in a row it comes a little later.
    pub(crate) fn hint(&self, name: &str, vain: u32) -> impl Future<Output = ()> + Send + use<'_> {
        let hint = self.store.watch(name);
        async move {
            if vain > 0 {
                self.clock().sleep(lock::deaf(vain)).await;
            }
            if hint.await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A name that a recipe puts something before: the whole is looked at by [`Core::full_name`], which cannot see that this
/// part is empty.
pub(crate) fn given<'a>(field: &'static str, name: &'a str) -> Result<&'a str, ConfigError> {
    if name.is_empty() { Err(ConfigError::new(field, name, ALLOWED)) } else { Ok(name) }
}

/// A part of a name in which a slash is no separator.
pub(crate) fn part(text: &str) -> String {
    text.replace('%', "%25").replace('/', "%2F")
}

impl Coordinator {
    /// A coordinator on `store`.
    pub fn builder(store: Arc<dyn LeaseStore>, rt: Runtime) -> Builder {
        Builder { store, records: None, rt, namespace: String::new(), owner: String::new() }
    }

    /// A lock that one holder has alone.
    pub fn mutex(&self, name: &str) -> lock::Builder {
        lock::Builder::new(Arc::clone(&self.0), vec![name.to_owned()], lock::Kind::Exclusive)
    }

    /// Several names at once: all of them or none. They are taken in byte order, so two callers that name
    /// the same ones in another order cannot wait for each other.
    pub fn multi<T: AsRef<str>>(&self, names: impl IntoIterator<Item = T>) -> lock::Builder {
        let names = names.into_iter().map(|n| n.as_ref().to_owned()).collect();
        lock::Builder::new(Arc::clone(&self.0), names, lock::Kind::Exclusive)
    }

    /// The reading side of a lock that many readers or one writer have.
    pub fn read(&self, name: &str) -> lock::Builder {
        lock::Builder::new(Arc::clone(&self.0), vec![name.to_owned()], lock::Kind::Shared)
    }

    /// The writing side of a lock that many readers or one writer have: the [`mutex`](Self::mutex) of the
    /// same name.
    pub fn write(&self, name: &str) -> lock::Builder {
        self.mutex(name)
    }

    /// A lock that at most `limit` holders have at once. Each has a lease of its own, so the permit of a
    /// dead holder comes back when that lease ends.
    ///
    /// Everybody names the same limit: while somebody holds or waits, another one is refused with `ConfigMismatch`
    /// ([`resize`](lock::Lock::resize) changes it). One token per permit: those who hold at once have no order among them.
    pub fn semaphore(&self, name: &str, limit: u32) -> lock::Builder {
        lock::Builder::new(Arc::clone(&self.0), vec![name.to_owned()], lock::Kind::Permit(limit))
    }

    /// An election: one leader at a time.
    pub fn election(&self, name: &str) -> election::Builder {
        election::Builder::new(Arc::clone(&self.0), name)
    }

    /// A group whose members know of each other.
    pub fn group(&self, name: &str) -> membership::Builder {
        membership::Builder::new(Arc::clone(&self.0), name)
    }

    /// A job that one of many runs, once for each slot of a schedule. Needs
    /// [`records`](Builder::records).
    pub fn cron(&self, name: &str) -> cron::Builder {
        cron::Builder::new(Arc::clone(&self.0), name)
    }

    /// A barrier that opens when `size` live members wait at it. Needs [`records`](Builder::records).
    pub fn barrier(&self, name: &str, size: u32) -> barrier::Builder {
        barrier::Builder::new(Arc::clone(&self.0), name, size)
    }

    /// A latch that opens when `size` different ids were counted. Needs [`records`](Builder::records).
    ///
    /// # Errors
    /// A bad name, a size of zero or over 1,000, no records.
    pub fn latch(&self, name: &str, size: u32) -> Result<latch::Latch, ConfigError> {
        latch::Latch::new(Arc::clone(&self.0), name, size)
    }

    /// What the store promises.
    #[must_use]
    pub fn guarantees(&self) -> mainstay_store::lease::Guarantees {
        self.0.store.guarantees()
    }

    /// Releases and reconciliations that still go on in the background. Each ends within the ttl of its
    /// lease and one request.
    #[must_use]
    pub fn in_background(&self) -> u64 {
        self.0.background.load(Ordering::Acquire)
    }
}

/// Collects what a [`Coordinator`] needs.
#[derive(Debug)]
#[must_use]
pub struct Builder {
    store: Arc<dyn LeaseStore>,
    records: Option<Arc<dyn RecordStore>>,
    rt: Runtime,
    namespace: String,
    owner: String,
}

impl Builder {
    /// Required: what keeps two applications on one store apart, unless the store was told to leave it out
    /// ([`Names::Bare`](mainstay_store::lease::Names::Bare)) so that clients that know none are met.
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Required: who holds, for people. It is shown and never compared.
    pub fn owner(mut self, owner: &str) -> Self {
        owner.clone_into(&mut self.owner);
        self
    }

    /// Where barriers, latches and jobs keep what outlives a lease; locks, elections and groups need none. It
    /// must live as long as the lease store does: the same file or server.
    pub fn records(mut self, records: Arc<dyn RecordStore>) -> Self {
        self.records = Some(records);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// When the namespace or the owner is empty, too long or has control characters, or when the
    /// namespace has a slash.
    pub fn build(self) -> Result<Coordinator, ConfigError> {
        for (field, value) in [("namespace", &self.namespace), ("owner", &self.owner)] {
            let clean = !value.is_empty() && value.len() <= 255 && !value.chars().any(char::is_control);
            if !clean || (field == "namespace" && value.contains('/')) {
                let allowed = "1 to 255 bytes, no control characters; a namespace has no slash";
                return Err(ConfigError::new(field, value, allowed));
            }
        }
        Ok(Coordinator(Arc::new(Core {
            store: self.store,
            records: self.records,
            rt: self.rt,
            owner: self.owner,
            namespace: self.namespace,
            seen: Mutex::new(BTreeMap::new()),
            lines: Mutex::new(HashMap::new()),
            background: AtomicU64::new(0),
        })))
    }
}
