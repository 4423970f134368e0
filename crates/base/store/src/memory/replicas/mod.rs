//! A replicated store in memory: a primary, replicas that lag, failovers that lose writes.

mod state;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mainstay_clock::{Clock, Sleep};

use crate::replicated::{Judgment, Mark, Observed, ReplicatedStore, TimelineSwitch, judge};
use crate::{BoxFuture, Error, ErrorKind, Result};
use state::State;

/// Most wakers kept; more waiters are told to look again at once.
const MAX_WAKERS: usize = 100_000;

/// A primary with asynchronous replicas, as a model: writes go to the primary's log, each replica shows
/// what is older than its lag, and a failover to a replica that is behind loses what it had not seen.
///
/// For tests and simulations of sessions. It keeps the whole log and has no durability.
///
/// ```
/// use mainstay_clock::SystemClock;
/// use mainstay_store::ReplicatedStore;
/// use mainstay_store::memory::MemoryCluster;
/// use mainstay_store::replicated::{Judgment, judge};
/// use std::sync::Arc;
/// use std::time::Duration;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let cluster = MemoryCluster::new(Arc::new(SystemClock::new()), "db", 1);
/// cluster.set_lag(1, Duration::from_secs(3600)).unwrap();
/// let mark = cluster.primary().write("k", b"v").await.unwrap();
/// let replica = cluster.node(1).unwrap();
/// assert_eq!(judge(&mark, &replica.observe().await.unwrap()), Judgment::Behind);
/// cluster.fail_over(1).unwrap();
/// assert_eq!(judge(&mark, &replica.observe().await.unwrap()), Judgment::Lost);
/// # });
/// ```
#[derive(Clone)]
pub struct MemoryCluster(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    state: Mutex<(State, Vec<Waker>)>,
}

/// One node of a [`MemoryCluster`], as a client's connection sees it.
#[derive(Clone)]
pub struct MemoryNode {
    shared: Arc<Shared>,
    node: usize,
    /// What the last write through this handle reached.
    last: Arc<Mutex<Option<Mark>>>,
}

/// What a node answers to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a read is exactly this")]
pub struct Read {
    /// The value, if there is one.
    pub value: Option<Vec<u8>>,
    /// The state of the node that answered.
    pub mark: Mark,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, (State, Vec<Waker>)> {
        let now = self.clock.now();
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        guard.0.tick(now);
        guard
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let (result, wakers) = {
            let mut guard = self.lock();
            let result = f(&mut guard.0);
            let now = self.clock.now();
            guard.0.tick(now);
            (result, std::mem::take(&mut guard.1))
        };
        wakers.into_iter().for_each(Waker::wake);
        result
    }
}

impl MemoryCluster {
    /// A primary (node 0) and `replicas` replicas (nodes 1 and up) without lag.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, system: &str, replicas: usize) -> Self {
        Self(Arc::new(Shared { clock, state: Mutex::new((State::new(system, replicas), Vec::new())) }))
    }

    fn check(&self, node: usize) -> Result<()> {
        let nodes = self.0.lock().0.len();
        if node >= nodes {
            return Err(Error::new(ErrorKind::ApiMisuse, format!("there is no node {node} of {nodes}")));
        }
        Ok(())
    }

    fn handle(&self, node: usize) -> MemoryNode {
        MemoryNode { shared: Arc::clone(&self.0), node, last: Arc::default() }
    }

    /// A connection to the node that is primary now. It stays with that node after a failover.
    #[must_use]
    pub fn primary(&self) -> MemoryNode {
        let node = self.0.lock().0.primary();
        self.handle(node)
    }

    /// A connection to node `node`.
    ///
    /// # Errors
    /// [`ErrorKind::ApiMisuse`] when there is no such node.
    pub fn node(&self, node: usize) -> Result<MemoryNode> {
        self.check(node)?;
        Ok(self.handle(node))
    }

    /// From now on node `node` shows writes `lag` after their commit. What it has it keeps.
    ///
    /// # Errors
    /// [`ErrorKind::ApiMisuse`] when there is no such node.
    pub fn set_lag(&self, node: usize, lag: Duration) -> Result<()> {
        self.check(node)?;
        self.0.change(|s| s.set_lag(node, lag));
        Ok(())
    }

    /// Cuts a replica off, so that it gets nothing, or connects it again.
    ///
    /// # Errors
    /// [`ErrorKind::ApiMisuse`] when there is no such node.
    pub fn set_cut(&self, node: usize, cut: bool) -> Result<()> {
        self.check(node)?;
        self.0.change(|s| s.set_cut(node, cut));
        Ok(())
    }

    /// Makes `to` the primary with what it has: later writes of the old history are lost.
    ///
    /// # Errors
    /// [`ErrorKind::ApiMisuse`] when there is no such node, or it is primary already.
    pub fn fail_over(&self, to: usize) -> Result<TimelineSwitch> {
        self.check(to)?;
        if self.0.lock().0.primary() == to {
            return Err(Error::new(ErrorKind::ApiMisuse, format!("node {to} is primary already")));
        }
        Ok(self.0.change(|s| s.fail_over(to)))
    }

    /// Lets a node of an older history follow the primary; what it has beyond is thrown away, and a new incarnation
    /// of the node begins. Nothing happens to a node that follows already.
    ///
    /// # Errors
    /// [`ErrorKind::ApiMisuse`] when there is no such node.
    pub fn rejoin(&self, node: usize) -> Result<()> {
        self.check(node)?;
        self.0.change(|s| s.rejoin(node));
        Ok(())
    }
}

impl MemoryNode {
    /// Writes `value` under `key`; the mark that contains it.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] on a replica, [`ErrorKind::Full`] when the model's log is full.
    ///
    /// # Cancel safety
    /// The write happens at the first poll.
    pub async fn write(&self, key: &str, value: &[u8]) -> Result<Mark> {
        let mark = self.shared.change(|s| s.write(self.node, key.to_owned(), value.to_vec()))?;
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(mark.clone());
        Ok(mark)
    }

    /// Reads `key` as this node has it now.
    #[must_use]
    pub fn read(&self, key: &str) -> Read {
        let (value, mark) = self.shared.lock().0.read(self.node, key);
        Read { value, mark }
    }

    fn look(&self) -> Observed {
        self.shared.lock().0.observe(self.node)
    }

    /// One look of [`ReplicatedStore::wait`]: the judgment, or when to look again at the latest.
    fn poll_judgment(
        &self,
        wanted: &Mark,
        end: &mut Sleep,
        next: &mut Option<Sleep>,
        cx: &mut Context<'_>,
    ) -> Poll<Judgment> {
        loop {
            let judgment = judge(wanted, &self.look());
            if judgment != Judgment::Behind || end.as_mut().poll(cx).is_ready() {
                return Poll::Ready(judgment);
            }
            let change = {
                let mut guard = self.shared.lock();
                if guard.1.len() < MAX_WAKERS {
                    guard.1.push(cx.waker().clone());
                }
                guard.0.next_change(self.node)
            };
            *next = change.map(|at| self.shared.clock.sleep_until(at));
            match next.as_mut().map(|n| n.as_mut().poll(cx)) {
                Some(Poll::Ready(())) => {}
                _ => return Poll::Pending,
            }
        }
    }
}

impl fmt::Debug for MemoryCluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCluster").finish_non_exhaustive()
    }
}

impl fmt::Debug for MemoryNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryNode").field("node", &self.node).finish_non_exhaustive()
    }
}

impl ReplicatedStore for MemoryNode {
    fn commit_position(&self) -> BoxFuture<'_, Result<Mark>> {
        Box::pin(async {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
            Ok(last.unwrap_or_else(|| self.look().mark))
        })
    }

    fn observe(&self) -> BoxFuture<'_, Result<Observed>> {
        Box::pin(async { Ok(self.look()) })
    }

    fn wait<'a>(&'a self, wanted: &'a Mark, limit: Duration) -> BoxFuture<'a, Result<Judgment>> {
        Box::pin(async move {
            let mut end = self.shared.clock.sleep(limit);
            let mut next = None;
            let judgment =
                std::future::poll_fn(|cx| self.poll_judgment(wanted, &mut end, &mut next, cx)).await;
            Ok(judgment)
        })
    }

    fn incarnation(&self) -> Option<u64> {
        Some(self.shared.lock().0.incarnation(self.node))
    }
}
