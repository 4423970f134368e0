//! One server and its connections.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_clock::Runtime;
use mainstay_store::replicated::TimelineSwitch;
use mainstay_store::{BoxFuture, Outcome, Result};

use super::config::{Commits, EndpointConfig};
use super::node::Node;
use crate::pool::{Pool, Use};

/// Most histories kept per server: one per failover in one of its lives, and a few of each are short.
const MAX_HISTORIES: usize = 64;

/// A life of the server and a timeline.
type HistoryKey = (u64, u32);

pub(super) struct Shared {
    pub(super) pool: Arc<Pool>,
    pub(super) commits: Commits,
    histories: Mutex<BTreeMap<HistoryKey, Vec<TimelineSwitch>>>,
}

impl Shared {
    fn histories(&self) -> MutexGuard<'_, BTreeMap<HistoryKey, Vec<TimelineSwitch>>> {
        self.histories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn history(&self, key: HistoryKey) -> Option<Vec<TimelineSwitch>> {
        self.histories().get(&key).cloned()
    }

    pub(super) fn keep_history(&self, key: HistoryKey, history: Vec<TimelineSwitch>) {
        let mut histories = self.histories();
        histories.insert(key, history);
        if histories.len() > MAX_HISTORIES {
            // The oldest life, the lowest timeline.
            histories.pop_first();
        }
    }
}

/// One server of a replicated cluster, primary or standby, and the connections of this process to it.
///
/// Clones share the connections. Guarantees: every [`Node`] says which life of which server it is connected to, so
/// what is known about one is never concluded for another, also when an address moves. Not guaranteed: anything about
/// a pooler that lends the connections of several servers under one address; give each server an endpoint of its own.
///
/// ```no_run
/// use std::sync::Arc;
/// use mainstay_clock::{Runtime, SystemClock};
/// use mainstay_consistency::session::Router;
/// use mainstay_postgres::replicas::{Endpoint, EndpointConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let at = |url| Ok::<_, mainstay_postgres::ConfigError>(Endpoint::new(EndpointConfig::builder(url).build()?, &Runtime::system()));
/// let router = Router::builder("orders", Arc::new(SystemClock::new()))
///     .node("db-1", at("postgres://app@db-1/app")?.lender())
///     .node("db-2", at("postgres://app@db-2/app")?.lender())
///     .build()?;
/// assert_eq!(router.status().len(), 2);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Endpoint(Arc<Shared>);

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoint").field(&self.0.pool).finish()
    }
}

impl Endpoint {
    /// An endpoint that has no connection yet.
    #[must_use]
    pub fn new(config: EndpointConfig, rt: &Runtime) -> Self {
        let pool = Pool::new(&config.inner, Use::Requests, rt);
        Self(Arc::new(Shared { pool, commits: config.commits, histories: Mutex::default() }))
    }

    /// A connection: one that is idle, or a new one.
    ///
    /// # Errors
    /// [`Unavailable`](mainstay_store::ErrorKind::Unavailable) when the server does not answer in time, and
    /// [`Unsupported`](mainstay_store::ErrorKind::Unsupported) when it is no server whose log is replayed elsewhere, or
    /// the role cannot see what a setting needs.
    ///
    /// # Cancel safety
    /// A dropped future leaves no connection.
    pub async fn connect(&self) -> Result<Node> {
        let lent = self.0.pool.lend().await?;
        let node = Node::new(Arc::clone(&self.0), lent);
        self.0.pool.within("who the server is", Outcome::NotApplied, node).await
    }

    /// What connects, for a router's node.
    pub fn lender(&self) -> impl Fn() -> BoxFuture<'static, Result<Node>> + Send + Sync + 'static {
        let endpoint = self.clone();
        move || {
            let endpoint = endpoint.clone();
            Box::pin(async move { endpoint.connect().await })
        }
    }
}
