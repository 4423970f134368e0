//! The engine: claims sagas, drives them, records what happens.
//!
//! Every decision is made by the pure `fold` and `next`; the engine appends facts before it acts on them
//! and drops whatever it no longer owns.

mod acted;
mod again;
mod aside;
mod attention;
mod calls;
mod claims;
mod complete;
mod config;
mod drive;
mod handle;
mod leave;
mod policies;
mod registry;
mod start;
mod suspects;
mod time;
mod warnings;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use mainstay_clock::{Runtime, TaskHandle};
use mainstay_resilience::Policy;
use mainstay_store::Journal;
use mainstay_store::journal::{Claimant, Uid};
use tokio::sync::{Notify, oneshot, watch};

pub use again::RunAgain;
pub use attention::{ActionRequest, Attention};
pub use config::Config;
pub use handle::{Handle, Outcome};
pub use start::StartOptions;
pub use warnings::Warnings;

use crate::definition::Definition;
use crate::fold::Refusal;
use crate::participant::Participant;
use crate::step::LocalStep;
use crate::{Error, ErrorKind};
use policies::Policies;
use registry::Registry;
use time::Time;
use warnings::Watch;

/// Drives sagas. Clones share it.
///
/// Guarantees: a saga whose start was answered ends Completed, Compensated or visibly in need of a person,
/// across crashes, as far as the journal is durable. Not guaranteed: that a participant is called once; it
/// is called at least once, always with the same key.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

pub(crate) struct Inner {
    journal: Arc<dyn Journal>,
    runtime: Runtime,
    config: Config,
    time: Time,
    incarnation: u64,
    registry: Registry,
    participant: Option<Arc<dyn Participant>>,
    /// What steps name.
    policies: RwLock<Policies>,
    active: Mutex<HashMap<Uid, Arc<Active>>>,
    /// Whoever waits for the answer to a message, by saga and message id.
    waiting: Mutex<HashMap<String, Vec<Waiter>>>,
    /// Sagas that may be claimed here without anybody driving them; given back before the next look. As many as
    /// starts and hand-backs that went wrong since the last one, and what was in memory when a claim was lost.
    lost: Mutex<BTreeSet<Uid>>,
    /// Claimed, and waiting to be taken up alone: nobody drives them, and they are not lost. As many as were claimed.
    suspected: Mutex<BTreeSet<Uid>>,
    /// Until when, by boot time in nanoseconds, a claim of ours may take effect whose answer was lost; zero when
    /// there is none.
    claims_in_doubt: AtomicU64,
    /// Looks for due sagas at once.
    poke: Notify,
    /// Until when this node's claims are safe, by boot time in nanoseconds.
    claimed_until: AtomicU64,
    stopping: watch::Sender<bool>,
    emptied: Notify,
    recovered: AtomicBool,
    /// The last look for due sagas was cut short by the limit in memory: every end is a reason to look again.
    crowded: AtomicBool,
    watch: Watch,
    #[cfg(feature = "test-util")]
    observer: Option<Observer>,
}

/// A saga in memory.
struct Active {
    wake: Notify,
    /// What a waiter wants to know, once there is something to know.
    outcome: watch::Sender<Option<Outcome>>,
    task: Mutex<Option<TaskHandle>>,
    /// Appended once under this claim, or left memory.
    moved: watch::Sender<bool>,
}

/// Where the answer to a message is sent.
type Waiter = oneshot::Sender<Result<(), Refusal>>;

/// Shown the state in memory after every append.
#[cfg(feature = "test-util")]
pub(crate) type Observer = Arc<dyn Fn(&Uid, &crate::fold::State) + Send + Sync>;

/// Closures by step name.
type Steps = BTreeMap<String, Arc<dyn LocalStep>>;

/// Builds an [`Engine`].
pub struct EngineBuilder {
    journal: Arc<dyn Journal>,
    runtime: Runtime,
    config: Config,
    participant: Option<Arc<dyn Participant>>,
    definitions: Vec<(Definition, Steps)>,
    policies: Vec<Policy>,
    #[cfg(feature = "test-util")]
    observer: Option<Observer>,
}

impl EngineBuilder {
    /// Replaces the options.
    #[must_use]
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Calls HTTP steps through `participant`. Without one, definitions with HTTP steps are refused.
    #[must_use]
    pub fn participant(mut self, participant: Arc<dyn Participant>) -> Self {
        self.participant = Some(participant);
        self
    }

    /// Registers a definition with its closures, by step name.
    #[must_use]
    pub fn definition(
        mut self,
        definition: Definition,
        steps: impl IntoIterator<Item = (String, Arc<dyn LocalStep>)>,
    ) -> Self {
        self.definitions.push((definition, steps.into_iter().collect()));
        self
    }

    #[cfg(feature = "test-util")]
    pub(crate) fn observer(mut self, observer: Observer) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Opens the engine: stores the definitions, takes back the claims of an earlier run of this node and
    /// starts the background tasks.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] for refused options and policies, and for definitions that lack a closure, name a policy
    /// that is not there or changed under
    /// their version; [`ErrorKind::Store`] when the journal fails.
    ///
    /// # Cancel safety
    /// A dropped future may have stored definitions; nothing runs.
    pub async fn open(self) -> Result<Engine, Error> {
        self.config.check()?;
        let time = Time::of_store(self.journal.as_ref(), Arc::clone(self.runtime.clock())).await?;
        let watch = Watch::new(self.runtime.clock().as_ref());
        let mut inner = Inner {
            incarnation: u64::try_from(time.now()).unwrap_or(0),
            time,
            journal: self.journal,
            runtime: self.runtime,
            config: self.config,
            registry: Registry::default(),
            participant: self.participant,
            policies: RwLock::new(policies::by_name(self.policies)?),
            active: Mutex::default(),
            waiting: Mutex::default(),
            lost: Mutex::default(),
            suspected: Mutex::default(),
            claims_in_doubt: AtomicU64::new(0),
            poke: Notify::new(),
            claimed_until: AtomicU64::new(0),
            stopping: watch::Sender::new(false),
            emptied: Notify::new(),
            recovered: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            watch,
            #[cfg(feature = "test-util")]
            observer: self.observer,
        };
        for stored in inner.journal.definitions().await? {
            inner.adopt(&stored);
        }
        for (definition, steps) in self.definitions {
            inner.register(definition, steps).await?;
        }
        // Also for what was stored and taken up again: another node may have known nothing of it.
        inner.wake_parked(None).await?;
        let first = inner.take_over().await?;
        let inner = Arc::new(inner);
        claims::run(&inner, first);
        Ok(Engine(inner))
    }
}

impl Engine {
    /// Starts to build an engine on `journal`.
    #[must_use]
    pub fn builder(journal: Arc<dyn Journal>, runtime: Runtime) -> EngineBuilder {
        EngineBuilder {
            journal,
            runtime,
            config: Config::default(),
            participant: None,
            definitions: Vec::new(),
            policies: Vec::new(),
            #[cfg(feature = "test-util")]
            observer: None,
        }
    }

    /// The journal it stands on, for views that wait for nobody.
    #[must_use]
    pub fn journal(&self) -> &Arc<dyn Journal> {
        &self.0.journal
    }

    /// Its clock, generator and tasks.
    #[must_use]
    pub fn runtime(&self) -> &Runtime {
        &self.0.runtime
    }

    /// Sagas in memory now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.active().len()
    }

    /// Whether every saga that an earlier run of this node left behind has been taken up again.
    #[must_use]
    pub fn is_recovered(&self) -> bool {
        self.0.recovered.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Whether this node's claims are renewed, which needs a journal that takes writes. Without it nothing is
    /// driven here, and other nodes may take over.
    #[must_use]
    pub fn holds_claims(&self) -> bool {
        self.0.holds_claims()
    }

    /// Stores and registers a definition whose steps are all remote, and wakes the sagas that waited for it.
    ///
    /// # Errors
    /// [`ErrorKind::InputConflict`] when this version exists with another graph, with the difference;
    /// [`ErrorKind::Config`] when it has closures or names a policy that is not there.
    ///
    /// # Cancel safety
    /// A dropped future may have stored it; repeating is safe.
    pub async fn put_definition(&self, definition: Definition) -> Result<(), Error> {
        let name = definition.name().to_owned();
        self.0.register(definition, BTreeMap::new()).await?;
        self.0.wake_parked(Some(&name)).await
    }

    /// Takes up what is stored and not known here yet, such as a definition whose policy was not there, and wakes the
    /// sagas that waited for it.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] when the journal fails.
    ///
    /// # Cancel safety
    /// A dropped future may have taken up some; repeating is safe.
    pub async fn adopt_stored(&self) -> Result<(), Error> {
        for stored in self.0.journal.definitions().await? {
            if self.registered(&stored.name, stored.version).is_none() {
                self.0.adopt(&stored);
            }
        }
        self.0.wake_parked(None).await
    }

    /// The registered definition of `name`: of `version`, or the newest.
    #[must_use]
    pub fn definition(&self, name: &str, version: Option<u32>) -> Option<Arc<Definition>> {
        self.0.registry.find(name, version).map(|r| Arc::clone(&r.definition))
    }

    fn registered(&self, name: &str, version: u32) -> Option<Arc<registry::Registered>> {
        self.0.registry.find(name, Some(version))
    }

    /// All registered definitions, by name and version.
    #[must_use]
    pub fn definitions(&self) -> Vec<Arc<Definition>> {
        self.0.registry.all()
    }

    /// Stops claiming, awaits attempts in flight until `limit`, then hands every claim back. A crash
    /// instead of this call has the same result, later.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the engine stopping; claims end by themselves.
    pub async fn shutdown(&self, limit: Duration) {
        let inner = &self.0;
        inner.stopping.send_replace(true);
        let deadline = inner.runtime.clock().sleep(limit);
        tokio::pin!(deadline);
        loop {
            let emptied = inner.emptied.notified();
            if inner.active().is_empty() {
                break;
            }
            tokio::select! {
                biased;
                () = emptied => {}
                () = &mut deadline => break,
            }
        }
        let left: Vec<(Uid, Arc<Active>)> = inner.active().drain().collect();
        for (_, active) in &left {
            active.cut_short();
        }
        let sagas: Vec<Uid> = left.into_iter().map(|(uid, _)| uid).collect();
        inner.hand_back(&sagas).await;
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("node", &self.0.config.node).finish_non_exhaustive()
    }
}

impl fmt::Debug for EngineBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EngineBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Active {
    /// Resolves once the saga made progress under this claim or left memory.
    async fn moved(&self) {
        // An error cannot be: we hold the sender.
        drop(self.moved.subscribe().wait_for(|m| *m).await);
    }

    /// Ends its task where it is. Whoever waits for its first step waits for nothing.
    fn cut_short(&self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task {
            task.abort();
        }
        self.moved.send_replace(true);
    }
}

impl Inner {
    fn active(&self) -> MutexGuard<'_, HashMap<Uid, Arc<Active>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn suspected(&self) -> MutexGuard<'_, BTreeSet<Uid>> {
        self.suspected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claimant(&self) -> Claimant {
        Claimant { node: self.config.node.clone(), incarnation: self.incarnation, ttl: self.config.claim_ttl }
    }

    fn is_stopping(&self) -> bool {
        *self.stopping.borrow()
    }

    /// Resolves when the engine stops.
    async fn stopped(&self) {
        let mut stopping = self.stopping.subscribe();
        // An error means that the engine is gone, which is a stop too.
        drop(stopping.wait_for(|s| *s).await);
    }

    /// Gives claims back; if that fails they are given back again before the next look.
    async fn hand_back(&self, sagas: &[Uid]) {
        if sagas.is_empty() {
            return;
        }
        if let Err(error) = self.journal.hand_back(&self.config.node, self.incarnation, sagas).await {
            tracing::warn!(target: "mainstay::saga", %error, "claims could not be handed back");
            let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            lost.extend(sagas.iter().cloned());
        }
    }

    /// Refuses what cannot be driven now.
    fn admit(&self) -> Result<(), Error> {
        if self.is_stopping() {
            return Err(Error::new(ErrorKind::Overloaded, "the engine is shutting down"));
        }
        let (sagas, most) = (self.active().len(), self.config.max_in_flight.get());
        self.watch.in_memory(sagas, most);
        if sagas >= most {
            let text = format!("{} sagas are in flight, the limit of this engine", self.config.max_in_flight);
            return Err(Error::new(ErrorKind::Overloaded, text).with_retry_after(Duration::from_secs(1)));
        }
        Ok(())
    }
}
