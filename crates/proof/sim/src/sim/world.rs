//! One run: nodes, their clocks, a store, a network, all under one seed.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt as _;
use mainstay_clock::virtual_time::{Changes, VirtualClock};
use mainstay_clock::{Clock, SeededRng};
use mainstay_store::BoxFuture;
use mainstay_store::memory::{MemoryJournal, MemoryLeaseStore, MemoryRecordStore};
use tokio::sync::Notify;

use super::faults::{Class, FaultKind, draw, is_on, plan, unit};
use super::nemesis;
use super::node::Node;
use super::points::Points;
use super::{Options, pause};
use crate::history::{Effect, Event, Fault, Process, Recorder, Text};

/// How long a client waits for a reply.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(1);

/// What a cut link does with what it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Clogged,
    Lost,
}

/// The main function of a node, run anew after every crash.
type Main = Arc<dyn Fn(Node) -> BoxFuture<'static, ()> + Send + Sync>;

pub(super) struct NodeSlot {
    pub(super) name: Text,
    pub(super) clock: VirtualClock,
    pub(super) state: Mutex<NodeState>,
    pub(super) mail: Notify,
    pub(super) calls: AtomicU64,
}

#[derive(Default)]
pub(super) struct NodeState {
    pub(super) incarnation: u64,
    pub(super) down: bool,
    pub(super) tasks: Vec<tokio::task::AbortHandle>,
    pub(super) inbox: VecDeque<(usize, Vec<u8>)>,
    /// Synced values by cell, oldest first.
    pub(super) cells: BTreeMap<String, Vec<Vec<u8>>>,
    main: Option<Main>,
}

/// What the stores have. Leases may be replaced by a failover that lost state.
pub(super) struct Backend {
    pub(super) clock: VirtualClock,
    pub(super) leases: Mutex<MemoryLeaseStore>,
    pub(super) journal: MemoryJournal,
    pub(super) records: MemoryRecordStore,
}

pub(super) struct Shared {
    pub(super) options: Options,
    /// The kinds of fault that happen in this run, one bit each: asked at every call.
    on: u64,
    pub(super) clock: VirtualClock,
    pub(super) recorder: Recorder,
    pub(super) nodes: Vec<NodeSlot>,
    pub(super) backend: Backend,
    pub(super) points: Points,
    cuts: Mutex<BTreeMap<(usize, usize), Cut>>,
    /// Grows whenever a cut ends.
    healed_links: Changes,
    /// Every reset of a link so far: which links, by number of the reset.
    resets: Mutex<Vec<Vec<(usize, usize)>>>,
    reset: Changes,
    failures: Mutex<Vec<String>>,
    started: mainstay_clock::Instant,
    messages: AtomicU64,
}

/// Everything a scenario can reach: it hands out ports only, and no operating system lies behind them.
///
/// Dropping a scenario kills its nodes; its history up to then stays.
#[derive(Clone)]
pub struct World(pub(super) Arc<Shared>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Must be called inside a paused runtime.
    pub(super) fn new(options: &Options) -> Self {
        let clock = VirtualClock::new();
        let seed = options.seed;
        let constant = |kind: FaultKind, node: &str| {
            let on =
                options.faults.kinds.contains(&kind) && is_on(seed, kind) && !options.is_off(kind.name());
            on.then(|| unit(draw(seed, kind.name(), node, 0)))
        };
        let nodes = (0..options.nodes)
            .map(|i| {
                let name = format!("n{i}");
                let skew = constant(FaultKind::ClockSkew, &name).unwrap_or(0.0);
                let rate = constant(FaultKind::ClockRate, &name)
                    .map_or(1.0, |u| 1.0 + options.faults.clock_rate * (2.0 * u - 1.0));
                NodeSlot {
                    name: name.into(),
                    clock: clock.node(Duration::from_secs(86_400).mul_f64(skew), rate),
                    state: Mutex::default(),
                    mail: Notify::new(),
                    calls: AtomicU64::new(0),
                }
            })
            .collect();
        let store_clock = clock.node(Duration::ZERO, 1.0);
        let shared = Arc::new(store_clock.clone());
        let backend = Backend {
            leases: Mutex::new(MemoryLeaseStore::new(shared.clone())),
            journal: MemoryJournal::new(shared.clone()),
            records: MemoryRecordStore::new(shared),
            clock: store_clock,
        };
        let kinds = options.faults.kinds.iter().filter(|k| is_on(seed, **k) && !options.is_off(k.name()));
        let on = kinds.fold(0, |on, kind| on | 1 << *kind as u64);
        let recorder = Recorder::new(Arc::new(clock.clone()));
        recorder.push(Event::Config(options.config()));
        let world = Self(Arc::new(Shared {
            recorder,
            nodes,
            backend,
            points: Points::new(seed, &options.points),
            cuts: Mutex::default(),
            healed_links: Changes::default(),
            resets: Mutex::default(),
            reset: Changes::default(),
            failures: Mutex::default(),
            started: clock.now(),
            messages: AtomicU64::new(0),
            clock,
            on,
            options: options.clone(),
        }));
        world.record_constants();
        let windows = plan(&options.faults, seed, options.nodes, |id| options.is_off(id));
        nemesis::unleash(&world, windows);
        world
    }

    fn record_constants(&self) {
        let options = &self.0.options;
        for kind in [FaultKind::ClockRate, FaultKind::ClockSkew] {
            if options.faults.kinds.contains(&kind)
                && is_on(options.seed, kind)
                && !options.is_off(kind.name())
            {
                let start = self.0.recorder.stamp();
                let end = start.saturating_add(nanos(options.length()));
                self.0.recorder.fault(Fault::new(kind.name(), kind.name(), "*", start, end));
            }
        }
    }

    /// The seed of this run.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0.options.seed
    }

    /// How many nodes there are.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.0.nodes.len()
    }

    /// How many operations each client of the scenario should make; what a minimiser lowers.
    #[must_use]
    pub fn ops(&self) -> u64 {
        self.0.options.ops
    }

    /// The observer's clock: the one that stamps the history. Nodes have clocks of their own.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.0.clock.clone())
    }

    /// The clock of the stores, which a fault may pause.
    #[must_use]
    pub fn store_clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.0.backend.clock.clone())
    }

    /// A generator of the scenario's own, fixed by the seed and `name`.
    #[must_use]
    pub fn rng(&self, name: &str) -> Arc<dyn mainstay_clock::Rng> {
        Arc::new(SeededRng::new(draw(self.seed(), "rng", name, 0)))
    }

    /// The history of this run.
    #[must_use]
    pub fn recorder(&self) -> &Recorder {
        &self.0.recorder
    }

    /// A process of the observer, for final reads.
    #[must_use]
    pub fn process(&self) -> Process {
        self.0.recorder.process()
    }

    /// The failpoints of this run.
    #[must_use]
    pub fn points(&self) -> &Points {
        &self.0.points
    }

    /// The lease store itself, past the network: for a resource that checks, and for final reads.
    #[must_use]
    pub fn leases(&self) -> MemoryLeaseStore {
        lock(&self.0.backend.leases).clone()
    }

    /// The journal itself, past the network.
    #[must_use]
    pub fn journal(&self) -> MemoryJournal {
        self.0.backend.journal.clone()
    }

    /// The records themselves, past the network.
    #[must_use]
    pub fn records(&self) -> MemoryRecordStore {
        self.0.backend.records.clone()
    }

    /// Records what a resource did.
    pub fn effect(&self, effect: Effect) {
        self.0.recorder.effect(effect);
    }

    /// Node `i`, counted from 0.
    ///
    /// # Panics
    /// When there is no such node.
    #[must_use]
    pub fn node(&self, i: usize) -> Node {
        assert!(i < self.nodes(), "there are {} nodes", self.nodes());
        Node::new(self.clone(), i)
    }

    /// Runs `main` on node `i`, now and after every crash.
    ///
    /// # Panics
    /// When there is no such node.
    pub fn start<F, Fut>(&self, i: usize, main: F)
    where
        F: Fn(Node) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let main: Main = Arc::new(move |node| Box::pin(main(node)));
        lock(&self.0.nodes[i].state).main = Some(main);
        self.boot(i);
    }

    /// Runs `main` on every node.
    pub fn start_all<F, Fut>(&self, main: F)
    where
        F: Fn(Node) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        (0..self.nodes()).for_each(|i| self.start(i, main.clone()));
    }

    fn boot(&self, i: usize) {
        let main = lock(&self.0.nodes[i].state).main.clone();
        if let Some(main) = main {
            let node = self.node(i);
            node.spawn_task(main(node.clone()));
        }
    }

    /// Kills node `i`: every task of it is dropped where it stands, its inbox is gone.
    pub fn crash(&self, i: usize) {
        let tasks = {
            let mut state = lock(&self.0.nodes[i].state);
            state.incarnation += 1;
            state.down = true;
            state.inbox.clear();
            std::mem::take(&mut state.tasks)
        };
        tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }

    /// Starts node `i` again; `change` may age its synced cells.
    pub(super) fn restart(&self, i: usize, change: impl Fn(&mut Vec<Vec<u8>>)) {
        {
            let mut state = lock(&self.0.nodes[i].state);
            if !state.down {
                return;
            }
            state.cells.values_mut().for_each(change);
            state.down = false;
        }
        self.boot(i);
    }

    /// Starts a crashed node again with what it had synced.
    pub fn reboot(&self, i: usize) {
        self.restart(i, |_| {});
    }

    /// Stops node `i`, or lets it go on: all timers that came due fire at once.
    pub fn set_paused(&self, i: usize, paused: bool) {
        let clock = &self.0.nodes[i].clock;
        if paused { clock.pause() } else { clock.resume() }
    }

    /// Waits until `after` the start of the run.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn until(&self, after: Duration) {
        let left = after.saturating_sub(self.elapsed());
        pause(left).await;
    }

    /// Waits until nothing is broken any more. In safety mode that is the end of the run.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn healed(&self) {
        self.until(self.0.options.faults.heal).await;
    }

    /// Waits until the run ends: the heal, and after it the bound that liveness has.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn finished(&self) {
        self.until(self.0.options.length()).await;
    }

    /// Virtual time since the start of the run.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.clock.now().saturating_duration_since(self.0.started)
    }

    pub(super) fn name(&self, i: usize) -> &str {
        self.0.nodes.get(i).map_or("store", |n| &*n.name)
    }

    pub(super) fn via(&self, from: usize, to: usize) -> String {
        format!("{}>{}", self.name(from), self.name(to))
    }

    /// Whether the `n`-th call or message at `place` suffers `kind`; remembered as a fault by the caller.
    pub(super) fn suffers(&self, kind: FaultKind, place: &str, n: u64) -> bool {
        let options = &self.0.options;
        debug_assert!(!matches!(kind.class(), Class::Window | Class::Constant));
        self.0.on >> kind as u64 & 1 == 1
            && self.elapsed() < options.faults.heal
            && unit(draw(options.seed, kind.name(), place, n)) < options.faults.rate
            && !options.is_off(&format!("{}@{place}#{n}", kind.name()))
    }

    /// How long one leg of the `n`-th exchange at `place` takes.
    pub(super) fn latency(&self, place: &str, n: u64) -> Duration {
        /// A local network: 0.2 to 5 ms, mostly short.
        const LEAST: Duration = Duration::from_micros(200);
        const SPREAD: Duration = Duration::from_micros(4_800);
        let u = unit(draw(self.seed(), "latency", place, n));
        LEAST + SPREAD.mul_f64(u * u)
    }

    pub(super) fn set_cut(&self, from: usize, to: usize, cut: Option<Cut>) {
        match cut {
            Some(cut) => drop(lock(&self.0.cuts).insert((from, to), cut)),
            None => {
                lock(&self.0.cuts).remove(&(from, to));
                self.0.healed_links.bump();
            }
        }
    }

    /// Passes a link: false when what passes is lost. A clogged link holds it back.
    pub(super) async fn passes(&self, from: usize, to: usize) -> bool {
        loop {
            let seen = self.0.healed_links.count();
            let cut = lock(&self.0.cuts).get(&(from, to)).copied();
            match cut {
                None => return true,
                Some(Cut::Lost) => return false,
                Some(Cut::Clogged) => {
                    self.0.healed_links.after(seen).await;
                }
            }
        }
    }

    /// Cuts the calls in flight on these links.
    pub(super) fn reset(&self, links: &[(usize, usize)]) {
        lock(&self.0.resets).push(links.to_vec());
        self.0.reset.bump();
    }

    /// Resolves when the link between `a` and `b` is reset.
    pub(super) async fn until_reset(&self, a: usize, b: usize) {
        let mut seen = self.0.reset.count();
        loop {
            let count = self.0.reset.after(seen).await;
            let (from, to) = (usize::try_from(seen).unwrap_or(0), usize::try_from(count).unwrap_or(0));
            let hit = |links: &Vec<(usize, usize)>| links.contains(&(a, b)) || links.contains(&(b, a));
            if lock(&self.0.resets)[from..to].iter().any(hit) {
                return;
            }
            seen = count;
        }
    }

    pub(super) fn next_message(&self) -> u64 {
        self.0.messages.fetch_add(1, Ordering::Relaxed)
    }

    /// Reports that something went wrong that no checker sees: the run fails.
    pub fn fail(&self, why: impl Into<String>) {
        lock(&self.0.failures).push(why.into());
    }

    pub(super) fn failures(&self) -> Vec<String> {
        lock(&self.0.failures).clone()
    }

    /// Runs a task of the world itself: a message in flight, a store at work.
    #[allow(clippy::disallowed_methods, reason = "the simulator is the runtime here")]
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> tokio::task::AbortHandle {
        let world = self.clone();
        let caught = async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                world.fail(format!("a task panicked: {}", panic_text(&*panic)));
            }
        };
        tokio::spawn(caught).abort_handle()
    }

    /// Ends every node, so that what they drop is dropped in virtual time.
    pub(super) async fn end(&self) {
        (0..self.nodes()).for_each(|i| self.crash(i));
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        for (name, count) in self.0.points.sometimes() {
            self.0.recorder.push(Event::Sometimes { name: name.into(), count });
        }
    }
}

pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

pub(super) fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("seed", &self.seed())
            .field("nodes", &self.nodes())
            .finish_non_exhaustive()
    }
}
