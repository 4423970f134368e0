//! A process that joins a group under one name after another, watches the group, and says what it did and saw.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Rng};
use mainstay_coordination::Coordinator;
use mainstay_coordination::membership::{Change, Delta, Departure, Event, Group, Member, Membership};
use mainstay_sim::history::Process;
use mainstay_sim::sim::Node;
use mainstay_store::LeaseStore;

pub(crate) const TTL: Duration = Duration::from_secs(2);
pub(crate) const GROUP: &str = "workers";
/// Fewer than those who want one, often.
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// What is done wrong by a process, to show that the campaign sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// The entry of a member that ended is renewed for ever.
    Outlives,
    /// A watcher overhears that somebody went.
    Overhears,
    /// A member that says that it leaves just goes.
    Silent,
}

/// What one watcher knows: the incarnation and the metadata behind each name.
pub(crate) type Picture = BTreeMap<String, (u64, String)>;

/// What all nodes of a run share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Members that live, by incarnation. An observer that stands outside asks what they believe.
    living: Mutex<BTreeMap<u64, Weak<Membership>>>,
    /// The picture of each node's watcher, once it has one.
    pub(crate) pictures: Mutex<BTreeMap<String, Picture>>,
    /// Nobody comes or goes on purpose any more.
    pub(crate) quiet: Mutex<bool>,
}

impl Shared {
    fn believes(&self, incarnation: u64) -> bool {
        let living = self.living.lock().unwrap().get(&incarnation).and_then(Weak::upgrade);
        living.is_some_and(|member| member.check().is_ok())
    }

    fn is_quiet(&self) -> bool {
        *self.quiet.lock().unwrap()
    }
}

/// A picture as text.
pub(crate) fn drawn(picture: &Picture) -> String {
    let mut text = String::new();
    for (name, (incarnation, meta)) in picture {
        let _ = write!(text, "{name}#{incarnation}={meta} ");
    }
    text
}

pub(crate) struct Worker {
    node: Node,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    process: Process,
    via: String,
    group: Group,
    bug: Bug,
    shared: Arc<Shared>,
}

/// A member that lives; says when it last believed so, and how it ended, also when it is dropped.
struct Life<'w> {
    worker: &'w Worker,
    name: &'w str,
    id: String,
    member: Option<Arc<Membership>>,
    incarnation: u64,
    last: u64,
    how: &'static str,
}

impl Life<'_> {
    /// Whether it still believes to be there.
    fn goes_on(&mut self) -> bool {
        let there = self.member.as_ref().is_some_and(|member| member.check().is_ok());
        if there {
            self.last = self.worker.node.world().recorder().stamp();
        }
        there
    }
}

impl Drop for Life<'_> {
    fn drop(&mut self) {
        let ended = |f: &str| {
            self.worker.process.begin(f, self.name).with(|op| {
                op.epoch = Some(self.incarnation);
                op.op_id = Some(self.id.as_str().into());
            })
        };
        ended("release").with(|op| op.invoke_ns = self.last).ok();
        ended("ended").ok_with(self.how);
        if self.worker.bug == Bug::Outlives {
            std::mem::forget(self.member.take());
        }
    }
}

impl Worker {
    pub(crate) fn new(node: Node, store: Arc<dyn LeaseStore>, bug: Bug, shared: Arc<Shared>) -> Self {
        let coordinator = Coordinator::builder(store, node.runtime()).namespace("sim").owner(node.name());
        let group = coordinator.build().unwrap().group(GROUP).ttl(TTL).build().unwrap();
        let (clock, rng, process, via) = (node.clock(), node.rng(), node.process(), node.via());
        Self { node, clock, rng, process, via, group, bug, shared }
    }

    /// Joins, looks and watches, all at once.
    pub(crate) async fn run(self) {
        // A watcher that begins again knows nothing.
        self.shared.pictures.lock().unwrap().remove(self.node.name());
        tokio::join!(self.join(), self.look(), self.watch());
    }

    async fn nap(&self, least: u64, most: u64) {
        self.clock.sleep(Duration::from_millis(least + self.rng.below(most - least))).await;
    }

    async fn join(&self) {
        for turn in 0_u64.. {
            if !self.shared.is_quiet() {
                let name = NAMES[usize::try_from(self.rng.below(NAMES.len() as u64)).unwrap()];
                let id = format!("{}-{}-{turn}", self.node.name(), self.node.incarnation());
                if let Some(life) = self.enter(name, id).await {
                    self.live(life).await;
                }
            }
            self.nap(20, 600).await;
        }
    }

    async fn enter<'w>(&'w self, name: &'w str, id: String) -> Option<Life<'w>> {
        let call =
            self.process.begin("acquire", name).via(&self.via).with(|op| op.op_id = Some(id.as_str().into()));
        let meta = format!("{id}/0");
        let joined = if self.rng.below(3) == 0 {
            self.group.try_join(name, meta).await
        } else {
            let limit = Deadline::after(self.clock.now(), Duration::from_millis(300 + self.rng.below(3_000)));
            self.group.join(name, meta, limit).await
        };
        let Ok(member) = joined else {
            // Whatever was taken is given back by the library.
            call.fail();
            return None;
        };
        let incarnation = member.incarnation().get();
        call.with(|op| op.epoch = Some(incarnation)).ok();
        let member = Arc::new(member);
        self.shared.living.lock().unwrap().insert(incarnation, Arc::downgrade(&member));
        let last = self.node.world().recorder().stamp();
        Some(Life { worker: self, name, id, member: Some(member), incarnation, last, how: "crashed" })
    }

    async fn live(&self, mut life: Life<'_>) {
        let steps = 1 + self.rng.below(12);
        for step in 1.. {
            // Once all is quiet it stays until the end.
            if step > steps && !self.shared.is_quiet() {
                break;
            }
            self.nap(50, 700).await;
            if !life.goes_on() {
                mainstay_sim::sometimes!(self.node.world(), "a lost member");
                life.how = "lost";
                return;
            }
            if self.rng.below(4) == 0 && !self.shared.is_quiet() && !self.update(&life, step).await {
                break;
            }
        }
        self.end(life).await;
    }

    /// Whether it was done for sure: what is not may be done later, and after an update that comes then.
    async fn update(&self, life: &Life<'_>, version: u64) -> bool {
        let Some(member) = &life.member else { return false };
        let call = self.process.begin("update", life.name).via(&self.via).with(|op| {
            op.epoch = Some(life.incarnation);
            op.op_id = Some(life.id.as_str().into());
        });
        match member.update(format!("{}/{version}", life.id)).await {
            Ok(()) => {
                call.ok();
                true
            }
            Err(_) => false,
        }
    }

    async fn end(&self, mut life: Life<'_>) {
        life.how = "dropped";
        if self.rng.below(2) == 0 {
            return;
        }
        let Some(member) = life.member.take().and_then(Arc::into_inner) else { return };
        // From here on it may be gone, and knows.
        let call = self.process.begin("leave", life.name).via(&self.via).with(|op| {
            op.epoch = Some(life.incarnation);
        });
        life.how = "left";
        let (silent, world) = (self.bug == Bug::Silent, self.node.world().clone());
        drop(life);
        if silent {
            drop(member);
            return call.ok();
        }
        match member.leave().await {
            Ok(_) => call.ok(),
            Err(_) => drop(call),
        }
        mainstay_sim::sometimes!(world, "a goodbye");
    }

    /// Asks now and then who is there.
    async fn look(&self) {
        loop {
            self.nap(100, 1_500).await;
            let call = self.process.begin("look", GROUP).via(&self.via);
            if let Ok(members) = self.group.members().await {
                let picture: Picture = members.into_iter().map(known).collect();
                call.ok_with(drawn(&picture).as_str());
            }
        }
    }

    async fn watch(&self) {
        let watcher = format!("{}-{}", self.node.name(), self.node.incarnation());
        let process = self.node.process().in_session(&watcher);
        let mut watch = self.group.watch();
        let mut revision = None;
        loop {
            let call = process.begin("watch", GROUP).via(&self.via);
            match watch.next().await {
                Ok(Event::Snapshot(seen)) => {
                    call.ok();
                    if revision.replace(seen.revision).is_some() {
                        self.node.world().fail("a watch told a second snapshot");
                    }
                    for member in seen.members {
                        self.told(&process, Change::Joined(member));
                    }
                    // Also with nobody there.
                    self.shared.pictures.lock().unwrap().entry(self.node.name().to_owned()).or_default();
                }
                Ok(Event::Delta(Delta { revision: next, change, .. })) => {
                    call.ok();
                    if revision.replace(next) != Some(next - 1) {
                        self.node.world().fail(format!("revision {next} did not follow the one before"));
                    }
                    self.told(&process, change);
                }
                Err(_) => {
                    drop(call);
                    self.nap(50, 300).await;
                }
            }
        }
    }

    fn told(&self, process: &Process, change: Change) {
        let (f, member) = match change {
            Change::Joined(member) => ("joined", member),
            Change::Updated(member) => ("updated", member),
            Change::Gone { member, how: Departure::Expired } => ("expired", member),
            Change::Gone { member, how: Departure::Left } => ("left", member),
            Change::Gone { member, how: Departure::Unknown } => ("gone", member),
        };
        let gone = !matches!(f, "joined" | "updated");
        let (name, (incarnation, meta)) = known(member);
        let believes = gone && self.shared.believes(incarnation);
        self.node.world().points().reached(f);
        let call = process.begin(f, &name).with(|op| op.epoch = Some(incarnation));
        call.arg(if believes { "believes" } else { "" }).ok_with(meta.as_str());
        let mut pictures = self.shared.pictures.lock().unwrap();
        let picture = pictures.entry(self.node.name().to_owned()).or_default();
        if !gone {
            picture.insert(name, (incarnation, meta));
        } else if self.bug != Bug::Overhears {
            picture.remove(&name);
        }
    }
}

fn known(member: Member) -> (String, (u64, String)) {
    (member.name, (member.incarnation.get(), String::from_utf8_lossy(&member.meta).into_owned()))
}
