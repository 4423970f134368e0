//! The reference protocol of a session on lagging replicas and failovers, and bugs planted in it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Rng};
use mainstay_sim::check::session_guarantees;
use mainstay_sim::history::Process;
use mainstay_sim::sim::{FaultKind, Faults, Node, Report, World};
use mainstay_sim::{Sim, sometimes};
use mainstay_store::ReplicatedStore;
use mainstay_store::memory::{MemoryCluster, MemoryNode};
use mainstay_store::replicated::{Judgment, Mark, Observed, Position, judge};

/// What is wrong with the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    None,
    /// Reads anywhere.
    IgnoresJudgment,
    /// Reads after a wait that ended without success.
    ReadsAfterTimeout,
    /// A lost write is taken for one that is there.
    LostAsSatisfied,
    /// A node that does not know the history of the write is taken for one that contains it.
    UnknownAsSatisfied,
    /// Reads do not move the token.
    TokenIgnoresReads,
    /// Of two writes the one that answers last sets the token.
    LastAnswerWins,
    /// Compares positions without histories.
    PositionOnly,
    /// Any failed call throws the token away.
    ForgetsOnError,
}

const PLANTED: [Bug; 8] = [
    Bug::IgnoresJudgment,
    Bug::ReadsAfterTimeout,
    Bug::LostAsSatisfied,
    Bug::UnknownAsSatisfied,
    Bug::TokenIgnoresReads,
    Bug::LastAnswerWins,
    Bug::PositionOnly,
    Bug::ForgetsOnError,
];

const NODES: usize = 3;
const KEY: &str = "x";
/// What must have happened in a campaign, or it proves nothing.
const BEHIND: &str = "a replica was behind";
const FAILED_OVER: &str = "another node took over";
const LOST: &str = "what a session knew was lost";
const REACHED: [&str; 3] = [BEHIND, FAILED_OVER, LOST];

/// Whether the node is on another history and knows nothing about the wanted one.
fn unknown(wanted: &Mark, node: &Observed) -> bool {
    wanted.timeline != node.mark.timeline && node.history.iter().all(|s| s.timeline != wanted.timeline)
}

struct Client {
    node: Node,
    bug: Bug,
    cluster: MemoryCluster,
    versions: Arc<AtomicI64>,
    rng: Arc<dyn Rng>,
    process: Process,
    /// What must be there, one mark per history: a failover between two writes leaves two.
    token: BTreeMap<String, Mark>,
    sessions: u64,
}

fn counter(mark: &Mark) -> u64 {
    match mark.position {
        Position::Counter(n) => n,
        _ => 0,
    }
}

impl Client {
    fn judge(&self, wanted: &Mark, node: &Observed) -> Judgment {
        match self.bug {
            Bug::IgnoresJudgment => Judgment::Satisfied,
            Bug::PositionOnly if counter(&node.mark) >= counter(wanted) => Judgment::Satisfied,
            Bug::PositionOnly => Judgment::Behind,
            Bug::UnknownAsSatisfied if unknown(wanted, node) => Judgment::Satisfied,
            _ => match judge(wanted, node) {
                Judgment::Lost if self.bug == Bug::LostAsSatisfied => Judgment::Satisfied,
                other => other,
            },
        }
    }

    fn merge(&mut self, mark: Mark) {
        let newer = self.token.get(&mark.timeline).is_none_or(|token| counter(&mark) > counter(token));
        if newer || self.bug == Bug::LastAnswerWins {
            self.token.insert(mark.timeline.clone(), mark);
        }
    }

    /// What the session knew is gone: it is said, and a new session begins.
    fn new_session(&mut self) {
        self.token.clear();
        self.sessions += 1;
        let name = format!("{}-{}-{}", self.node.name(), self.node.incarnation(), self.sessions);
        self.process = self.node.process().in_session(&name);
    }

    async fn write(&mut self) {
        // Two writes in flight at once; their answers come in any order.
        let (a, b) = tokio::join!(self.one_write(KEY), self.one_write("y"));
        let mut done: Vec<(u64, Mark)> = [a, b].into_iter().flatten().collect();
        done.sort_by_key(|(at, _)| *at);
        let failed = done.len() < 2;
        done.into_iter().for_each(|(_, mark)| self.merge(mark));
        if failed && self.bug == Bug::ForgetsOnError {
            self.token.clear();
        } else if failed {
            // It may have happened under a mark that nobody told: what follows cannot be promised.
            self.new_session();
        }
    }

    async fn one_write(&self, key: &'static str) -> Option<(u64, Mark)> {
        let (primary, versions) = (self.cluster.primary(), Arc::clone(&self.versions));
        let call = self.process.begin("write", key).via(&self.node.via());
        let answer = self.node.call(move || {
            let (primary, versions) = (primary.clone(), Arc::clone(&versions));
            Box::pin(async move {
                let version = versions.fetch_add(1, Ordering::SeqCst) + 1;
                let mark = primary.write(key, &version.to_be_bytes()).await?;
                Ok((version, mark))
            })
        });
        match answer.await {
            Ok((version, mark)) => {
                call.ok_with(version);
                Some((self.node.clock().now().as_nanos(), mark))
            }
            Err(error) => {
                call.error(&error, true);
                None
            }
        }
    }

    async fn read(&mut self) {
        let key = if self.rng.below(2) == 0 { KEY } else { "y" };
        let i = usize::try_from(self.rng.below(NODES as u64)).unwrap();
        let mut node = self.cluster.node(i).unwrap();
        for token in self.token.clone().into_values() {
            let mut judgment = self.judge(&token, &node.observe().await.unwrap());
            if judgment == Judgment::Behind {
                sometimes!(self.node.world(), BEHIND);
                let limit = Duration::from_millis(200);
                judgment = node.wait(&token, limit).await.unwrap();
                if judgment == Judgment::Behind && self.bug != Bug::ReadsAfterTimeout {
                    node = self.cluster.primary();
                    judgment = self.judge(&token, &node.observe().await.unwrap());
                }
                judgment = match (self.bug, judgment) {
                    (Bug::LostAsSatisfied, Judgment::Lost) | (Bug::PositionOnly, _) => Judgment::Satisfied,
                    (_, other) => other,
                };
            }
            if matches!(judgment, Judgment::Lost | Judgment::Foreign) {
                sometimes!(self.node.world(), LOST);
                self.new_session();
                break;
            }
        }
        self.record(&node, key);
    }

    fn record(&mut self, node: &MemoryNode, key: &str) {
        let call = self.process.begin("read", key).via(&self.node.via());
        let read = node.read(key);
        let version = read.value.map_or(0, |v| i64::from_be_bytes(v.try_into().unwrap()));
        call.ok_with(version);
        if self.bug != Bug::TokenIgnoresReads {
            self.merge(read.mark);
        }
    }

    async fn run(mut self) {
        self.new_session();
        loop {
            if self.rng.below(3) == 0 {
                self.write().await
            } else {
                self.read().await
            }
            self.node.clock().sleep(Duration::from_millis(20 + self.rng.below(100))).await;
        }
    }
}

/// Replicas lag, are cut off, take over, rejoin.
async fn disturb(world: &World, cluster: &MemoryCluster) {
    let rng = world.rng("cluster");
    while world.elapsed() < Duration::from_secs(12) {
        let node = usize::try_from(rng.below(NODES as u64)).unwrap();
        match rng.below(8) {
            0 if cluster.fail_over(node).is_ok() => sometimes!(world, FAILED_OVER),
            // It is the primary already.
            0 => {}
            1 | 2 => cluster.set_cut(node, true).unwrap(),
            3 | 4 => cluster.set_cut(node, false).unwrap(),
            5 => cluster.rejoin(node).unwrap(),
            _ => cluster.set_lag(node, Duration::from_millis(rng.below(1_500))).unwrap(),
        }
        world.clock().sleep(Duration::from_millis(50 + rng.below(400))).await;
    }
}

pub(crate) fn campaign(name: &str, bug: Bug, seeds: std::ops::Range<u64>) -> Report {
    let kinds = [FaultKind::ReplyLost, FaultKind::RequestLost, FaultKind::ErrorReply, FaultKind::Slow];
    let faults = Faults::only(&kinds).healing_after(Duration::from_secs(12));
    let mut builder = Sim::builder(name).seeds(seeds).nodes(2).faults(faults);
    if bug == Bug::None {
        builder = REACHED.into_iter().fold(builder, mainstay_sim::sim::SimBuilder::sometimes);
    }
    let sim = builder.build().unwrap();
    let campaign = sim.run(move |world| async move {
        let clock: Arc<dyn Clock> = world.clock();
        let cluster = MemoryCluster::new(clock, "db", NODES - 1);
        let versions = Arc::new(AtomicI64::new(0));
        let shared = cluster.clone();
        world.start_all(move |node| {
            let (rng, process) = (node.rng(), node.process());
            let (cluster, versions) = (shared.clone(), Arc::clone(&versions));
            Client { node, bug, cluster, versions, rng, process, token: BTreeMap::new(), sessions: 0 }.run()
        });
        disturb(&world, &cluster).await;
    });
    let campaign = campaign.check(session_guarantees);
    if bug == Bug::None { campaign.judge() } else { campaign.as_found().judge() }
}

#[test]
fn sessions_hold_on_lagging_replicas_and_through_failovers() {
    campaign("session", Bug::None, 0..100).assert_pass();
}

#[test]
fn pv_4_every_bug_planted_in_the_session_is_found() {
    let mut missed = Vec::new();
    for bug in PLANTED {
        let report = campaign("session-planted", bug, 0..400);
        match report.failures.first() {
            Some(f) => println!("{bug:?}: found with seed {}", f.seed),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found within 400 seeds: {missed:?}");
}
