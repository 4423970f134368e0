//! A process that runs the slots of a schedule, and says what it did.

use std::collections::BTreeSet;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Rng, WallTime};
use mainstay_coordination::cron::{Due, Every, Job, Missed, Overlap, Start, Turn};
use mainstay_coordination::{Coordinator, Error, ErrorKind};
use mainstay_sim::history::{Effect, Process};
use mainstay_sim::sim::{Node, World};
use mainstay_store::{BoxFuture, PutIf, RecordStore, VersionedRecord};

pub(crate) const JOB: &str = "report";
/// Between two slots.
pub(crate) const EVERY: Duration = Duration::from_secs(2);
/// Of a run's lease: a run that died may hold up the next slot.
pub(crate) const TTL: Duration = Duration::from_secs(2);
pub(crate) const LATE: Duration = Duration::from_millis(500);
/// Longer than two slots are apart, and than a lease lasts.
pub(crate) const AT_LEAST: Duration = Duration::from_secs(5);
/// When the last fault ends.
pub(crate) const HEALED: Duration = Duration::from_secs(14);
/// Of a start, for an earlier run.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Shorter than some runs want to be.
pub(crate) const AT_MOST: Duration = Duration::from_millis(1_500);

/// What a job is told to keep to; one of them for all nodes of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Starts are kept apart.
    AtLeast,
    /// Long runs are stopped.
    AtMost,
    /// A slot that was missed is run late, and one that comes during a run waits for its end.
    Latest,
    /// The store tells no time: everybody goes by the own clock, which may be off by a day. Starts are kept apart.
    OwnClock,
}

impl Mode {
    pub(crate) const ALL: [Self; 4] = [Self::AtLeast, Self::AtMost, Self::Latest, Self::OwnClock];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::AtLeast => "at least",
            Self::AtMost => "at most",
            Self::Latest => "latest",
            Self::OwnClock => "own clock",
        }
    }

    pub(crate) fn of(world: &World) -> Self {
        let drawn = usize::try_from(world.rng("mode").below(Self::ALL.len() as u64)).unwrap();
        Self::ALL[drawn]
    }
}

/// What is done wrong, to show that the campaign sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// The record store writes without comparing.
    BlindWrites,
    /// A missed slot is dropped though it should be run late.
    DropsMissed,
    /// Starts are not kept apart.
    NotApart,
    /// Long runs go on.
    NotStopped,
    /// The own clock decides what is due though the store tells its time.
    OwnTime,
    /// The resource looks at no token.
    Unfenced,
    /// Work goes on when its right is gone.
    Unguarded,
}

/// What the runs write to: refuses smaller tokens, and repeats nothing.
#[derive(Debug, Default)]
pub(crate) struct Resource {
    token: u64,
    seen: BTreeSet<String>,
}

/// What all nodes of a run share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    resource: Mutex<Resource>,
}

/// Records of a node, with what its store does not do or does wrong.
#[derive(Debug)]
struct Records {
    inner: Arc<dyn RecordStore>,
    tells_time: bool,
    bug: Bug,
}

impl RecordStore for Records {
    fn now(&self) -> BoxFuture<'_, mainstay_store::Result<Option<WallTime>>> {
        if self.tells_time { self.inner.now() } else { Box::pin(async { Ok(None) }) }
    }

    fn get(&self, key: &str) -> BoxFuture<'_, mainstay_store::Result<Option<VersionedRecord>>> {
        self.inner.get(key)
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, mainstay_store::Result<PutIf>> {
        let key = key.to_owned();
        Box::pin(async move {
            let mut answer = self.inner.put_if(&key, expected, value.clone(), ttl).await?;
            if let (PutIf::Conflict(Some(there)), Bug::BlindWrites) = (&answer, self.bug) {
                answer = self.inner.put_if(&key, Some(there.version), value, ttl).await?;
            }
            Ok(answer)
        })
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, mainstay_store::Result<bool>> {
        self.inner.delete_if(key, expected)
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, mainstay_store::Result<Vec<VersionedRecord>>> {
        self.inner.list(prefix, after, limit)
    }
}

pub(crate) struct Runner {
    node: Node,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    process: Process,
    via: String,
    job: Job,
    every: Every,
    bug: Bug,
    shared: Arc<Shared>,
}

/// Work under way; says when it last ran, also when it is dropped.
struct Working<'r> {
    runner: &'r Runner,
    token: u64,
    id: &'r str,
    last_ran: u64,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        let end = self.runner.process.begin("release", JOB).with(|op| {
            op.epoch = Some(self.token);
            op.op_id = Some(self.id.into());
            // A process that stands still drops its work late, and does nothing with it until then.
            op.invoke_ns = self.last_ran;
        });
        end.ok();
    }
}

fn built(node: &Node, mode: Mode, bug: Bug) -> Job {
    let records =
        Records { inner: node.records(), tells_time: mode != Mode::OwnClock && bug != Bug::OwnTime, bug };
    let builder = Coordinator::builder(node.lease_store(), node.runtime()).records(Arc::new(records));
    let coordinator = builder.namespace("sim").owner(node.name()).build().unwrap();
    let job = coordinator.cron(JOB).ttl(TTL).late(LATE);
    let waits = if node.world().rng("overlap").below(2) == 0 { Overlap::Wait } else { Overlap::Skip };
    let job = match mode {
        Mode::AtMost if bug == Bug::NotStopped => job,
        Mode::AtMost => job.at_most(AT_MOST),
        Mode::Latest if bug == Bug::DropsMissed => job.overlap(Overlap::Wait),
        Mode::Latest => job.overlap(Overlap::Wait).missed(Missed::RunLatest),
        Mode::AtLeast | Mode::OwnClock if bug == Bug::NotApart => job.overlap(waits),
        Mode::AtLeast | Mode::OwnClock => job.overlap(waits).at_least(AT_LEAST),
    };
    job.build().unwrap()
}

impl Runner {
    pub(crate) fn new(node: Node, mode: Mode, bug: Bug, shared: Arc<Shared>) -> Self {
        let job = built(&node, mode, bug);
        let (clock, rng, process, via) = (node.clock(), node.rng(), node.process(), node.via());
        Self { node, clock, rng, process, via, job, every: Every::new(EVERY).unwrap(), bug, shared }
    }

    pub(crate) async fn run(self) {
        for turn in 0_u64.. {
            match self.due().await {
                Some(Due::Slot(slot)) => {
                    let id = format!("{}-{}-{turn}", self.node.name(), self.node.incarnation());
                    if let Some(turn) = self.start(slot, &id).await {
                        self.hold(turn, &id).await;
                    }
                }
                Some(Due::Wait { pause, .. }) => self.clock.sleep(pause).await,
                Some(other) => self.node.world().fail(format!("the schedule never ends: {other:?}")),
                None => {}
            }
            self.clock.sleep(Duration::from_millis(1 + self.rng.below(100))).await;
        }
    }

    /// Its value is the slot that is due, or -1.
    async fn due(&self) -> Option<Due> {
        let call = self.process.begin("due", JOB).via(&self.via);
        let due = self.job.due(&self.every).await.ok()?;
        call.ok_with(match &due {
            Due::Slot(slot) => slot.unix_millis(),
            _ => -1,
        });
        Some(due)
    }

    /// Recorded as `acquire` when the slot was started or nobody knows, else as what was said; its value is the slot.
    async fn start(&self, slot: WallTime, id: &str) -> Option<Turn> {
        let call = self.process.begin("acquire", JOB).via(&self.via).with(|op| {
            op.op_id = Some(id.into());
            op.value = Some(slot.unix_millis().into());
        });
        let wait = LONGEST_WAIT.mul_f64((1 + self.rng.below(5)) as f64 / 5.0);
        let limit = Deadline::after(self.clock.now(), wait);
        let mut asked = pin!(self.job.start(slot, limit));
        // A caller that loses patience, while things go wrong.
        let answer = if self.rng.below(10) == 0 && self.node.world().elapsed() < HEALED {
            let patience = self.clock.sleep(Duration::from_millis(self.rng.below(400)));
            tokio::select! {
                biased;
                answer = &mut asked => answer,
                () = patience => {
                    mainstay_sim::sometimes!(self.node.world(), "a dropped start");
                    return None;
                }
            }
        } else {
            asked.await
        };
        let said = match answer {
            Ok(Start::Go(turn)) => {
                call.with(|op| op.epoch = Some(turn.token().get())).ok();
                return Some(turn);
            }
            Ok(Start::Kept { .. }) => "kept",
            Ok(Start::Overlapped { .. }) => "overlapped",
            Ok(Start::Superseded) => "superseded",
            Ok(Start::Taken) => "taken",
            Ok(other) => panic!("an answer of another version: {other:?}"),
            // The slot may be used up.
            Err(_) => return None,
        };
        self.node.world().points().reached(said);
        call.with(|op| op.f = said.into()).ok();
        None
    }

    async fn hold(&self, turn: Turn, id: &str) {
        let token = turn.token().get();
        let last_ran = self.node.world().recorder().stamp();
        let work = self.work(Working { runner: self, token, id, last_ran }, turn.slot());
        if self.bug == Bug::Unguarded {
            work.await;
        } else if turn.run(|_| work).await.is_err_and(|error| is_lost(&error)) {
            mainstay_sim::sometimes!(self.node.world(), "a stopped run");
        }
        match self.rng.below(4) {
            0 => drop(turn),
            // It ends with the lease or with the process, whatever the answer is.
            _ => drop(turn.finish().await),
        }
    }

    async fn work(&self, mut working: Working<'_>, slot: WallTime) {
        let (token, id) = (working.token, working.id);
        let mut steps = pin!(self.steps(token, id, slot));
        poll_fn(|cx| {
            working.last_ran = self.node.world().recorder().stamp();
            steps.as_mut().poll(cx)
        })
        .await;
    }

    /// Up to two slots long.
    async fn steps(&self, token: u64, id: &str, slot: WallTime) {
        for write in 0..1 + self.rng.below(4) {
            let call = self.process.begin("write", JOB).via(&self.via);
            match self.ask(token, format!("{id}/{write}"), slot).await {
                Ok(()) => call.ok(),
                Err(error) => return call.error(&error, true),
            }
            self.clock.sleep(Duration::from_millis(20 + self.rng.below(900))).await;
        }
    }

    async fn ask(&self, token: u64, key: String, slot: WallTime) -> mainstay_store::Result<()> {
        let (shared, world) = (Arc::clone(&self.shared), self.node.world().clone());
        let fenced = self.bug != Bug::Unfenced;
        self.node
            .call(move || {
                let done = apply(&shared.resource, &world, fenced, token, &key, slot);
                Box::pin(async move { done })
            })
            .await
    }
}

fn is_lost(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Lost(_))
}

/// The amount of an effect is its slot.
fn apply(
    resource: &Mutex<Resource>,
    world: &World,
    fenced: bool,
    token: u64,
    key: &str,
    slot: WallTime,
) -> mainstay_store::Result<()> {
    let mut resource = resource.lock().unwrap();
    let accepted = !fenced || token >= resource.token;
    if accepted && !resource.seen.insert(key.to_owned()) {
        return Ok(());
    }
    let mut effect = Effect::new("report", JOB, key, slot.unix_millis(), 0);
    (effect.epoch, effect.accepted) = (Some(token), accepted);
    world.effect(effect);
    if !accepted {
        mainstay_sim::sometimes!(world, "a refused write");
        return Err(mainstay_store::Error::new(
            mainstay_store::ErrorKind::ApiMisuse,
            "a larger token was seen",
        ));
    }
    resource.token = resource.token.max(token);
    Ok(())
}
