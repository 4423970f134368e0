//! Leases on a majority of independent Redis servers.

mod config;
mod debts;
mod exec;
mod reads;
mod state;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use mainstay_clock::Runtime;
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Guarantees, LeaseInfo, Line, Released, Renewed, Server, Share, WATCHED,
};
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, LeaseStore, Result};

use crate::config::Options;
use crate::health::Health;
use crate::keys::Keys;
use crate::node::Node;
use crate::ops::Ops;
pub use config::{Builder, Redlock};
use debts::Debts;
use state::majority;

/// The shortest lease that makes sense over several servers.
const MIN_TTL: Duration = Duration::from_millis(200);
/// One server is waited for this share of a ttl, so that a hung one leaves most of it; within limits.
const PATIENCE_DIVISOR: u32 = 20;
const MIN_PATIENCE: Duration = Duration::from_millis(50);
const MAX_PATIENCE: Duration = Duration::from_millis(500);
/// Clocks of two machines run apart by at most this share of a ttl, plus a floor for what a short ttl would
/// round away (Antirez, "Distributed Locks with Redis": drift factor 0.01).
pub(crate) const DRIFT_DIVISOR: u32 = 100;
pub(crate) const DRIFT_FLOOR: Duration = Duration::from_millis(2);

/// A [`LeaseStore`] on a majority of independent Redis servers. Clones share the connections.
///
/// Guarantees: as [`LeaseStore`] while a majority of the servers answers, whatever the others do. A call
/// returns as soon as a majority has decided; a hung server is not waited for, and what it was sent stays in
/// order behind it. Tokens grow strictly without trusting any clock, as long as a majority of the servers
/// keeps its counters ([`require_durable`](Builder::require_durable) makes that a condition) or the clocks of
/// those that lost them did not go back. A server that restarted without durable data grants nothing until
/// every lease that it may have forgotten has ended.
///
/// Not guaranteed: mutual exclusion when clocks of a majority jump; check tokens at the resource
/// ([`fence`](crate::fence)). Readers and permits are not offered here, nor is a line of waiters. Only what
/// was acquired through this value or a clone can be renewed and released.
///
/// ```
/// use mainstay_clock::Runtime;
/// use mainstay_redis::RedisQuorum;
/// use mainstay_store::LeaseStore;
/// use mainstay_store::lease::Fencing;
///
/// let urls = ["redis://10.0.0.1", "redis://10.0.0.2", "redis://10.0.0.3"];
/// let store = RedisQuorum::builder(urls).require_durable().build(&Runtime::system()).unwrap();
/// assert_eq!(store.guarantees().fencing, Fencing::Strict);
/// assert!(RedisQuorum::builder(&urls[..2]).build(&Runtime::system()).is_err(), "two are no quorum");
/// ```
#[derive(Clone)]
pub struct RedisQuorum(Arc<Shared>);

struct Shared {
    nodes: Vec<Node>,
    options: Options,
    ops: Ops,
    rt: Runtime,
    fenced: bool,
    durable: bool,
    max_ttl: Duration,
    /// Longest wait for one server; none means a share of the ttl.
    patience: Option<Duration>,
    background: AtomicU64,
    /// Per server, what it has not answered for.
    debts: Vec<Mutex<Debts>>,
}

impl fmt::Debug for RedisQuorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisQuorum").field("nodes", &self.0.nodes).finish_non_exhaustive()
    }
}

impl RedisQuorum {
    /// A store on the servers at these URLs; see [`RedisLeases::builder`](crate::RedisLeases::builder).
    pub fn builder<T: AsRef<str>>(urls: impl IntoIterator<Item = T>) -> Builder {
        Builder::new(urls.into_iter().map(|u| u.as_ref().to_owned()).collect())
    }

    fn on(nodes: Vec<Node>, options: Options, builder: &Builder, rt: &Runtime) -> Self {
        Self(Arc::new(Shared {
            ops: Ops::new(nodes.len()),
            debts: nodes.iter().map(|_| Mutex::default()).collect(),
            nodes,
            options,
            rt: rt.clone(),
            fenced: builder.fenced,
            durable: builder.durable,
            max_ttl: builder.max_ttl,
            patience: builder.patience,
            background: AtomicU64::new(0),
        }))
    }

    /// How long one server is waited for.
    fn patience(&self, ttl: Duration) -> Duration {
        self.0.patience.unwrap_or_else(|| (ttl / PATIENCE_DIVISOR).clamp(MIN_PATIENCE, MAX_PATIENCE))
    }

    fn needed(&self) -> usize {
        majority(self.0.nodes.len())
    }

    /// Connects to all servers, and says what is wrong with them if they are no quorum.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when one must not be used: one server behind two addresses, not durable
    /// though that was required, a cluster node, too old; [`ErrorKind::Unavailable`] when no majority answers.
    ///
    /// # Cancel safety
    /// Dropping the future leaves nothing.
    pub async fn ready(&self) -> Result<()> {
        let answers = join_all(self.0.nodes.iter().map(Node::ready)).await;
        let mut failed = Vec::new();
        for error in answers.into_iter().filter_map(Result::err) {
            if error.kind() == ErrorKind::Unsupported {
                return Err(error);
            }
            failed.push(error);
        }
        let up = self.0.nodes.len() - failed.len();
        match failed.pop() {
            Some(last) if up < self.needed() => Err(self.unreachable(up, Some(last))),
            _ => Ok(()),
        }
    }

    /// What was noticed about each server, in the order of the URLs.
    #[must_use]
    pub fn health(&self) -> Vec<Health> {
        self.0.nodes.iter().map(Node::health).collect()
    }

    /// Requests to servers that are still waited for after the majority had decided, and the servers that are asked again
    /// for what they did not answer. Each ends within the ttl of its lease.
    #[must_use]
    pub fn in_background(&self) -> u64 {
        self.0.background.load(Ordering::Acquire)
    }

    /// Acquires as the published algorithm does: tries, and tries again after random pauses.
    ///
    /// A lock of `mainstay-coordination` does better: it waits for a change, until the caller's deadline. This
    /// is for callers that want the textbook's behavior, 11 tries in about two seconds.
    ///
    /// # Errors
    /// As [`acquire`](LeaseStore::acquire), of the last try.
    ///
    /// # Cancel safety
    /// As [`acquire`](LeaseStore::acquire).
    pub async fn redlock(&self, request: AcquireRequest, preset: &Redlock) -> Result<Acquired> {
        let mut tries = 0;
        loop {
            let answer = self.acquire(request.clone()).await;
            let again = match &answer {
                Ok(Acquired::Granted(_)) => false,
                Ok(_) => true,
                Err(error) => error.is_retryable(),
            };
            if !again || tries >= preset.retries {
                return answer;
            }
            tries += 1;
            self.0.rt.clock().sleep(preset.pause(&**self.0.rt.rng())).await;
        }
    }

    fn unreachable(&self, answered: usize, cause: Option<Error>) -> Error {
        let (all, needed) = (self.0.nodes.len(), self.needed());
        let text = format!("{answered} of {all} redis servers answered, {needed} are needed");
        let error = Error::new(ErrorKind::Unavailable, text).with_answered(answered, needed);
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }

    fn check(&self, request: &AcquireRequest) -> Result<Arc<[Keys]>> {
        crate::check::check(request)?;
        if request.share != Share::Exclusive || request.line == Line::Join {
            let text = "a quorum of Redis has exclusive leases only, and no line of waiters";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        if request.ttl > self.0.max_ttl && !self.0.durable {
            let text = format!("a lease here lasts at most {:?}: the option `max_ttl`", self.0.max_ttl);
            return Err(Error::new(ErrorKind::ApiMisuse, text));
        }
        self.0.options.all_keys(&request.names)
    }
}

impl LeaseStore for RedisQuorum {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        Box::pin(self.grant(request))
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.extend(&op).await })
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        let op = op_id.to_owned();
        Box::pin(async move { self.give_back(&op).await })
    }

    fn annotate(&self, name: &str, token: FencingToken, value: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        let name = name.to_owned();
        Box::pin(async move { self.write(&name, token, &value).await })
    }

    fn break_lease(&self, name: &str) -> BoxFuture<'_, Result<FencingToken>> {
        let name = name.to_owned();
        Box::pin(async move { self.burn(&name).await })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        let name = name.to_owned();
        Box::pin(async move { self.look(&name).await })
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        let prefix = prefix.to_owned();
        Box::pin(async move { self.find(&prefix, limit).await })
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        let keys = self.0.options.keys(name);
        // Now, not when it is polled: what changes until then is told.
        let known = keys.as_ref().map_or_else(
            |_| Vec::new(),
            |keys| self.0.nodes.iter().map(|node| node.ears().known(keys)).collect(),
        );
        Box::pin(async move { self.changed(&keys?, known).await })
    }

    fn servers(&self) -> BoxFuture<'_, Result<Vec<Server>>> {
        Box::pin(async { Ok(join_all(self.0.nodes.iter().map(Node::server)).await) })
    }

    fn guarantees(&self) -> Guarantees {
        let fencing = match (self.0.fenced, self.0.durable) {
            (false, _) => Fencing::None,
            (true, false) => Fencing::WhileStateSurvives,
            (true, true) => Fencing::Strict,
        };
        let clock = "wall clock of each server";
        let mut guarantees = Guarantees::new(fencing, clock, "a majority keeps leases and tokens");
        guarantees.min_ttl = MIN_TTL;
        if !self.0.durable {
            guarantees.max_ttl = self.0.max_ttl;
        }
        guarantees.recheck = WATCHED;
        guarantees.native = &["annotate", "break_lease", "list", "watch"];
        guarantees
    }
}
