//! The router: samples of every node by a poller, and the few calls that reads make.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use mainstay_clock::{Clock, Instant, Runtime, TaskHandle, Tick};
use mainstay_store::ReplicatedStore;
use mainstay_store::replicated::{Mark, Observed, Role};

use super::config::{Connect, Limits, Listener, RouterBuilder, SessionEvent};
use super::handle::Session;
use super::state::{Noted, Sample, View};
use crate::error::{Error, ErrorKind, Result};

/// Sends the reads of sessions to replicas that have what the session knows.
///
/// Clones share everything. Guarantees: a read whose replica was judged `Satisfied` by a sample runs without any round
/// trip of the router's; a node that hangs delays nobody else's samples. Not guaranteed: anything about a node behind
/// a virtual address: a sample is knowledge about one server.
pub struct Router<C>(Arc<Core<C>>);

impl<C> Clone for Router<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> fmt::Debug for Router<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("name", &self.0.name).finish_non_exhaustive()
    }
}

struct Core<C> {
    name: String,
    clock: Arc<dyn Clock>,
    tick: Tick,
    nodes: Vec<Node<C>>,
    limits: Limits,
    listener: Option<Listener>,
    view: ArcSwap<View>,
    turn: AtomicU32,
    order: AtomicU64,
}

struct Node<C> {
    name: String,
    connect: Connect<C>,
    waiters: AtomicUsize,
}

/// What the router knows about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its last position.
    pub mark: Option<Mark>,
    /// What it says it is.
    pub role: Option<Role>,
    /// How old this is.
    pub age: Option<Duration>,
    /// Whether sessions read from it now.
    pub eligible: bool,
    /// Whether it is on a history of the primary's name that began elsewhere.
    pub forked: bool,
}

/// The poller's tasks. They end when it or the last [`Router`] is dropped.
#[must_use = "dropping it ends the polling"]
#[derive(Debug)]
pub struct Poller(Vec<TaskHandle>);

impl Drop for Poller {
    fn drop(&mut self) {
        self.0.drain(..).for_each(TaskHandle::abort);
    }
}

/// `future`, unless `limit` is over first.
pub(crate) async fn within<F: Future>(clock: &dyn Clock, limit: Duration, future: F) -> Option<F::Output> {
    let mut end = clock.sleep(limit);
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(out) => Poll::Ready(Some(out)),
        Poll::Pending => end.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// One place among the waiters of a node.
pub(crate) struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<C: ReplicatedStore + 'static> Router<C> {
    /// Sets up a router for the store `name`.
    #[must_use]
    pub fn builder(name: &str, clock: Arc<dyn Clock>) -> RouterBuilder<C> {
        RouterBuilder::new(name, clock)
    }

    pub(crate) fn new(setup: RouterBuilder<C>) -> Self {
        let node = |(name, connect)| Node { name, connect, waiters: AtomicUsize::new(0) };
        let nodes: Vec<Node<C>> = setup.nodes.into_iter().map(node).collect();
        let view = ArcSwap::from_pointee(View::new(nodes.len()));
        let (name, clock, limits, listener) = (setup.name, setup.clock, setup.limits, setup.listener);
        let (tick, turn, order) = (clock.tick(), AtomicU32::new(0), AtomicU64::new(0));
        Self(Arc::new(Core { name, clock, tick, nodes, limits, listener, view, turn, order }))
    }

    /// A session that has done nothing yet, with all guarantees.
    #[must_use]
    pub fn session(&self) -> Session<C> {
        Session::new(self.clone())
    }

    /// Starts the poller: one task per node, so that none waits for another.
    ///
    /// # Panics
    /// With the tokio runtime: when called outside one.
    pub fn start(&self, runtime: &Runtime) -> Poller {
        let tasks = (0..self.0.nodes.len()).map(|node| {
            let core = Arc::downgrade(&self.0);
            runtime.spawn("session-poller", poll(core, node))
        });
        Poller(tasks.collect())
    }

    /// Asks every node once, one after the other; for programs without a poller, and for tests. A node that cannot be
    /// asked is forgotten until it answers.
    ///
    /// # Cancel safety
    /// Dropping the future keeps what was learned.
    pub async fn poll_once(&self) {
        for node in 0..self.0.nodes.len() {
            let _ = self.ask(node).await;
        }
    }

    /// What is known about each node.
    #[must_use]
    pub fn status(&self) -> Vec<NodeStatus> {
        let (view, now) = (self.view(), self.now());
        let status = |(i, node): (usize, &Node<C>)| {
            let sample = view.sample(i);
            NodeStatus {
                name: node.name.clone(),
                mark: sample.map(|s| s.observed.mark.clone()),
                role: sample.map(|s| s.observed.role),
                age: sample.map(|s| now.saturating_duration_since(s.asked)),
                eligible: view.eligible(i) && view.fresh(i, now, self.0.limits.trust).is_some(),
                forked: view.forked(i),
            }
        };
        self.0.nodes.iter().enumerate().map(status).collect()
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    pub(crate) fn now(&self) -> Instant {
        self.0.clock.now()
    }

    /// The time to about a millisecond, which is enough to tell whether a sample is too old, and costs one load.
    pub(crate) fn about_now(&self) -> Instant {
        self.0.tick.read()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.0.limits
    }

    pub(crate) fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.0.view.load()
    }

    /// The next place among all questions and reads.
    pub(crate) fn next_order(&self) -> u64 {
        self.0.order.fetch_add(1, Ordering::SeqCst)
    }

    /// The node that is next in turn.
    pub(crate) fn turn(&self) -> usize {
        // In 32 bits, because dividing 64 takes as long as all the rest; there are at most 64 nodes.
        (self.0.turn.fetch_add(1, Ordering::Relaxed) % self.0.nodes.len() as u32) as usize
    }

    pub(crate) fn emit(&self, event: impl FnOnce() -> SessionEvent) {
        if let Some(listener) = &self.0.listener {
            listener(&event());
        }
    }

    pub(crate) fn node_name(&self, node: usize) -> String {
        self.name_of(node).to_owned()
    }

    pub(crate) fn name_of(&self, node: usize) -> &str {
        &self.0.nodes[node].name
    }

    pub(crate) fn waiter(&self, node: usize) -> Option<Waiter<'_>> {
        let waiters = &self.0.nodes[node].waiters;
        let place = Waiter(waiters);
        // The place is given back by its drop if there was none left.
        (waiters.fetch_add(1, Ordering::Relaxed) < self.0.limits.waiters).then_some(place)
    }

    /// Whether a node that did not answer within `limit` had its time. Who has less to give learns nothing about it, and
    /// must not keep others from it.
    fn had_its_time(&self, limit: Duration) -> bool {
        limit >= self.0.limits.call
    }

    /// A connection to `node`, within `limit`.
    pub(crate) async fn connect(&self, node: usize, limit: Duration) -> Result<C> {
        let limit = limit.min(self.0.limits.call);
        match within(self.clock(), limit, (self.0.nodes[node].connect)()).await {
            Some(Ok(connection)) => Ok(connection),
            Some(Err(error)) => {
                self.forget(node);
                Err(Error::unavailable(
                    format!("node `{}` cannot be reached", self.0.nodes[node].name),
                    Some(error),
                ))
            }
            None => {
                if self.had_its_time(limit) {
                    self.forget(node);
                }
                Err(Error::unavailable(
                    format!("node `{}` did not answer in time", self.0.nodes[node].name),
                    None,
                ))
            }
        }
    }

    /// Asks `node` on `connection`, within `limit`, and takes the answer in.
    pub(crate) async fn observe(
        &self,
        node: usize,
        connection: &C,
        limit: Duration,
    ) -> Result<(u64, Observed)> {
        let (asked, order) = (self.now(), self.next_order());
        let limit = limit.min(self.0.limits.call);
        match within(self.clock(), limit, connection.observe()).await {
            Some(Ok(observed)) => {
                self.note(node, Sample { observed: observed.clone(), asked, order });
                Ok((order, observed))
            }
            Some(Err(error)) => {
                self.forget(node);
                Err(Error::unavailable(
                    format!("node `{}` cannot be asked", self.0.nodes[node].name),
                    Some(error),
                ))
            }
            None => {
                if self.had_its_time(limit) {
                    self.forget(node);
                }
                Err(Error::unavailable(
                    format!("node `{}` did not say what it has", self.0.nodes[node].name),
                    None,
                ))
            }
        }
    }

    async fn ask(&self, node: usize) -> Result<()> {
        let limit = self.0.limits.call;
        let connection = self.connect(node, limit).await?;
        self.observe(node, &connection, limit).await.map(|_| ())
    }

    fn note(&self, node: usize, sample: Sample) {
        let mut noted = Noted::default();
        self.0.view.rcu(|view| {
            let mut next = View::clone(view);
            noted = next.note(node, sample.clone(), self.0.limits.trust);
            next
        });
        if noted.forked {
            self.emit(|| SessionEvent::Forked { node: self.node_name(node) });
        }
        if let Some(primary) = self.view().primary().filter(|_| noted.primary_changed) {
            self.emit(|| SessionEvent::PrimaryChanged { node: self.node_name(primary) });
        }
    }

    fn forget(&self, node: usize) {
        let now = self.now();
        self.0.view.rcu(|view| {
            let mut next = View::clone(view);
            next.forget(node, now);
            next
        });
    }

    /// What the primary had when it was last asked.
    pub(crate) fn present(&self) -> Option<Mark> {
        self.view().leader().map(|s| s.observed.mark.clone())
    }

    /// The nodes in the order in which to look for the primary.
    pub(crate) fn by_primacy(&self) -> Vec<usize> {
        let primary = self.view().primary();
        let others = (0..self.0.nodes.len()).filter(|i| Some(*i) != primary);
        primary.into_iter().chain(others).collect()
    }

    pub(crate) fn no_primary(&self, last: Option<Error>) -> Error {
        last.unwrap_or_else(|| {
            let context = format!("no node of `{}` is a primary with the session's history", self.0.name);
            Error::new(ErrorKind::Unavailable, context)
        })
    }
}

async fn poll<C: ReplicatedStore + 'static>(core: Weak<Core<C>>, node: usize) {
    loop {
        let Some(router) = core.upgrade().map(Router) else { return };
        let _ = router.ask(node).await;
        let pause = router.0.clock.sleep(router.0.limits.poll_every);
        drop(router);
        pause.await;
    }
}
