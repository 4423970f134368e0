//! One node: a clock, a generator, tasks, stores behind a faulty network, messages, a disk.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Spawn, TaskFuture, TaskHandle};
use mainstay_store::{BoxFuture, DurableCell, Journal, LeaseStore, RecordStore, Result};

use super::faults::{FaultKind, draw};
use super::link::Link;
use super::pause;
use super::points::Points;
use super::stores::{FaultyJournal, FaultyLeases, FaultyRecords};
use super::world::{World, nanos};
use crate::history::{Fault, Process};

/// Most messages that wait at a node; more are lost, as in a full socket buffer.
const MAX_INBOX: usize = 10_000;
/// Most older values of a cell that a stale restart may bring back.
const MAX_OLD: usize = 16;

/// One node of a [`World`], in one incarnation.
#[derive(Clone)]
pub struct Node {
    world: World,
    index: usize,
    incarnation: u64,
}

impl Node {
    pub(super) fn new(world: World, index: usize) -> Self {
        let state = world.0.nodes[index].state.lock().unwrap_or_else(PoisonError::into_inner);
        let incarnation = state.incarnation;
        drop(state);
        Self { world, index, incarnation }
    }

    /// The world it lives in.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Its number, from 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Its name: `n0`, `n1`, ...
    #[must_use]
    pub fn name(&self) -> &str {
        self.world.name(self.index)
    }

    /// How often it crashed before.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn virtual_clock(&self) -> &VirtualClock {
        &self.world.0.nodes[self.index].clock
    }

    /// Its clock, with an offset and a rate of its own.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.virtual_clock().clone())
    }

    /// Its generator, fixed by seed, node and incarnation.
    #[must_use]
    pub fn rng(&self) -> Arc<dyn mainstay_clock::Rng> {
        Arc::new(SeededRng::new(draw(self.world.seed(), "node rng", self.name(), self.incarnation)))
    }

    /// Clock, generator and tasks for library code. A crash drops the tasks, a pause stops them.
    #[must_use]
    pub fn runtime(&self) -> Runtime {
        Runtime::new(self.clock(), self.rng(), Arc::new(Tasks(self.clone())))
    }

    /// The failpoints of the run.
    #[must_use]
    pub fn points(&self) -> &Points {
        self.world.points()
    }

    /// A process of this node in the history.
    #[must_use]
    pub fn process(&self) -> Process {
        self.world.process()
    }

    /// The observer's stamp of `at` on this node's clock, for claims like "I hold it until".
    #[must_use]
    pub fn observed(&self, at: Instant) -> u64 {
        let now = self.world.0.clock.now().as_nanos();
        self.virtual_clock().until(at).map_or(u64::MAX, |d| now.saturating_add(nanos(d)))
    }

    /// The link of this node's store calls, for [`crate::history::Op::via`].
    #[must_use]
    pub fn via(&self) -> String {
        self.world.via(self.index, self.world.nodes())
    }

    fn link(&self) -> Link {
        Link::new(self.world.clone(), self.index)
    }

    /// The lease store, through the network.
    #[must_use]
    pub fn lease_store(&self) -> Arc<dyn LeaseStore> {
        Arc::new(FaultyLeases(self.link(), None))
    }

    /// A lease store that the scenario brought, through the network. Its clock is
    /// [`World::store_clock`](super::World::store_clock), so that faults of the store reach it.
    #[must_use]
    pub fn through(&self, store: Arc<dyn LeaseStore>) -> Arc<dyn LeaseStore> {
        Arc::new(FaultyLeases(self.link(), Some(store)))
    }

    /// The journal, through the network.
    #[must_use]
    pub fn journal(&self) -> Arc<dyn Journal> {
        Arc::new(FaultyJournal(self.link()))
    }

    /// The records, through the network.
    #[must_use]
    pub fn records(&self) -> Arc<dyn RecordStore> {
        Arc::new(FaultyRecords(self.link()))
    }

    /// A cell on this node's disk: it survives a crash, but for faults that age the disk.
    #[must_use]
    pub fn cell(&self, name: &str) -> Arc<dyn DurableCell> {
        Arc::new(DiskCell { node: self.clone(), name: name.to_owned() })
    }

    /// Runs an exchange with a service of the scenario, with the faults of a store call. `apply` may run
    /// twice, late, or without its answer being heard.
    ///
    /// # Errors
    /// Those of `apply`, and what the network says.
    ///
    /// # Cancel safety
    /// A dropped future may have applied, or apply later.
    pub async fn call<T: Send + 'static>(
        &self,
        apply: impl Fn() -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> Result<T> {
        self.link().call(apply).await
    }

    /// Sends `bytes` to node `to`: lost, late, twice or out of order, as the seed wants.
    pub fn send(&self, to: usize, bytes: Vec<u8>) {
        let (world, from) = (self.world.clone(), self.index);
        let place = world.via(from, to);
        let n = world.next_message();
        let start = world.recorder().stamp();
        let record = |kind: FaultKind| {
            let id = format!("{}@{place}#{n}", kind.name());
            let end = start.saturating_add(nanos(world.latency(&place, n)));
            world.recorder().fault(Fault::new(&id, kind.name(), &place, start, end));
        };
        let mut copies = 1;
        if world.suffers(FaultKind::MessageLost, &place, n) {
            record(FaultKind::MessageLost);
            copies = 0;
        } else if world.suffers(FaultKind::MessageDuplicated, &place, n) {
            record(FaultKind::MessageDuplicated);
            copies = 2;
        }
        for copy in 0..copies {
            let (inner, bytes, wait) = (world.clone(), bytes.clone(), world.latency(&place, n * 2 + copy));
            world.spawn(async move {
                pause(wait).await;
                if inner.passes(from, to).await {
                    deliver(&inner, from, to, bytes);
                }
            });
        }
    }

    /// The next message: who sent it, and what.
    ///
    /// # Cancel safety
    /// A dropped future takes no message.
    pub async fn recv(&self) -> (usize, Vec<u8>) {
        let slot = &self.world.0.nodes[self.index];
        loop {
            let mail = slot.mail.notified();
            if let Some(message) = lock(&slot.state).inbox.pop_front() {
                return message;
            }
            mail.await;
        }
    }

    pub(super) fn spawn_task(&self, task: TaskFuture) -> TaskHandle {
        let gated = Gated { task, clock: self.virtual_clock().clone(), waits: None };
        let handle = self.world.spawn(gated);
        let mut state = lock(&self.world.0.nodes[self.index].state);
        if state.incarnation != self.incarnation || state.down {
            handle.abort();
        } else {
            if state.tasks.len() >= 64 {
                state.tasks.retain(|t| !t.is_finished());
            }
            state.tasks.push(handle.clone());
        }
        TaskHandle::new(move || handle.abort())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn deliver(world: &World, from: usize, to: usize, bytes: Vec<u8>) {
    let Some(slot) = world.0.nodes.get(to) else { return };
    {
        let mut state = lock(&slot.state);
        if state.down || state.inbox.len() >= MAX_INBOX {
            return;
        }
        state.inbox.push_back((from, bytes));
    }
    slot.mail.notify_waiters();
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("name", &self.name()).field("incarnation", &self.incarnation).finish()
    }
}

#[derive(Debug)]
struct Tasks(Node);

impl Spawn for Tasks {
    fn spawn(&self, _name: &'static str, task: TaskFuture) -> TaskHandle {
        self.0.spawn_task(task)
    }
}

/// A task that is not polled while its node is paused.
struct Gated {
    task: TaskFuture,
    clock: VirtualClock,
    waits: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Some(waits) = &mut self.waits {
                if waits.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.waits = None;
            }
            if !self.clock.is_paused() {
                return self.task.as_mut().poll(cx);
            }
            let clock = self.clock.clone();
            self.waits = Some(Box::pin(async move { clock.running().await }));
        }
    }
}

/// A cell on a node's disk.
#[derive(Debug)]
struct DiskCell {
    node: Node,
    name: String,
}

impl DurableCell for DiskCell {
    fn load(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>>> {
        Box::pin(async {
            let state = lock(&self.node.world.0.nodes[self.node.index].state);
            Ok(state.cells.get(&self.name).and_then(|values| values.last().cloned()))
        })
    }

    fn store_synced(&self, value: Vec<u8>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            // A sync takes a moment, in which a crash may come.
            pause(Duration::from_micros(500)).await;
            let mut state = lock(&self.node.world.0.nodes[self.node.index].state);
            let values = state.cells.entry(self.name.clone()).or_default();
            values.push(value);
            if values.len() > MAX_OLD {
                values.remove(0);
            }
            Ok(())
        })
    }
}
