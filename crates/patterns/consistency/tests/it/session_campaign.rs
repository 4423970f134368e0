//! SL1, SL2 and SL6 over random schedules: replicas lag, are cut off, take over with less, and rejoin.
//!
//! `cargo xtask sim session-router --seed N` replays a seed that was printed, `--seeds N` runs more.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Rng};
use mainstay_consistency::session::{CallError, Consistency, Router, Session};
use mainstay_sim::check::session_guarantees;
use mainstay_sim::history::Process;
use mainstay_sim::sim::{Faults, Node, Report, World, seed_lines};
use mainstay_sim::{Sim, sometimes};
use mainstay_store::Error;
use mainstay_store::memory::{MemoryCluster, MemoryNode};

const NODES: usize = 3;
/// What must have happened in a campaign, or it proves nothing.
const CUT_OFF: &str = "a replica was cut off";
const FAILED_OVER: &str = "another node took over";
const LAGGED: &str = "a replica lagged";
const LOSS_TOLD: &str = "a session was told of its loss";
const REACHED: [&str; 4] = [CUT_OFF, FAILED_OVER, LAGGED, LOSS_TOLD];

/// How a client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// Through its session.
    Session,
    /// From any replica, as most applications do.
    Naive,
    /// Through sessions that each forget what the one before knew.
    Forgetful,
    /// Through a session that takes what was lost for present, without a word.
    Silent,
}

struct User {
    node: Node,
    client: Client,
    router: Router<MemoryNode>,
    session: Session<MemoryNode>,
    versions: Arc<AtomicI64>,
    rng: Arc<dyn Rng>,
    process: Process,
    sessions: u64,
}

fn version(read: Option<Vec<u8>>) -> i64 {
    read.map_or(0, |v| i64::from_be_bytes(v.try_into().unwrap()))
}

impl User {
    /// The loss was said: what follows is another session to the checker.
    fn new_session(&mut self) {
        self.sessions += 1;
        let name = format!("{}-{}-{}", self.node.name(), self.node.incarnation(), self.sessions);
        self.process = self.node.process().in_session(&name);
    }

    fn refused(&mut self) {
        if self.session.accept_loss() && self.client != Client::Silent {
            sometimes!(self.node.world(), LOSS_TOLD);
            self.new_session();
        }
    }

    async fn write(&mut self, key: &'static str) {
        let versions = Arc::clone(&self.versions);
        let call = self.process.begin("write", key).via(&self.node.via());
        // The version is drawn where the write happens: versions are in the order of the log.
        let out = self.session.write(async |c: &mut MemoryNode| {
            let version = versions.fetch_add(1, Ordering::SeqCst) + 1;
            c.write(key, &version.to_be_bytes()).await.map(|_| version)
        });
        match out.await {
            Ok(version) => call.ok_with(version),
            Err(CallError::Inner(error)) => call.error(&error, true),
            Err(_) => {
                call.fail();
                self.refused();
            }
        }
    }

    async fn read(&mut self, key: &'static str) {
        let call = self.process.begin("read", key).via(&self.node.via());
        let look = async |c: &mut MemoryNode| Ok::<_, Error>(c.read(key).value);
        let out = match self.client {
            Client::Naive => self.session.read_at(&Consistency::MinLatency, look).await,
            _ => self.session.read(look).await,
        };
        match out {
            Ok(read) => call.ok_with(version(read)),
            Err(_) => {
                call.fail();
                self.refused();
            }
        }
    }

    /// Goes on in another handle, as the next request of the same user does.
    async fn hand_over(&mut self) {
        match self.session.token().await {
            Ok(token) if self.client != Client::Forgetful => {
                self.session = self.router.session().resume(&token).unwrap();
            }
            Ok(_) => self.session = self.router.session(),
            Err(_) => self.refused(),
        }
    }

    async fn run(mut self) {
        self.new_session();
        loop {
            let key = if self.rng.below(2) == 0 { "x" } else { "y" };
            match self.rng.below(6) {
                0 | 1 => self.write(key).await,
                2 => self.hand_over().await,
                _ => self.read(key).await,
            }
            self.node.clock().sleep(Duration::from_millis(5 + self.rng.below(80))).await;
        }
    }
}

async fn disturb(world: &World, cluster: &MemoryCluster) {
    let rng = world.rng("cluster");
    while world.elapsed() < Duration::from_secs(10) {
        let node = usize::try_from(rng.below(NODES as u64)).unwrap();
        match rng.below(8) {
            0 if cluster.fail_over(node).is_ok() => sometimes!(world, FAILED_OVER),
            // It is the primary already.
            0 => {}
            1 | 2 => {
                cluster.set_cut(node, true).unwrap();
                sometimes!(world, CUT_OFF);
            }
            3 | 4 => cluster.set_cut(node, false).unwrap(),
            5 => cluster.rejoin(node).unwrap(),
            _ => {
                cluster.set_lag(node, Duration::from_millis(rng.below(1_500))).unwrap();
                sometimes!(world, LAGGED);
            }
        }
        world.clock().sleep(Duration::from_millis(50 + rng.below(300))).await;
    }
}

fn campaign(name: &str, client: Client, seeds: std::ops::Range<u64>) -> Report {
    let mut builder = Sim::builder(name).seeds(seeds).nodes(2).faults(Faults::none());
    if client == Client::Session {
        builder = REACHED.into_iter().fold(builder, mainstay_sim::sim::SimBuilder::sometimes);
    }
    let sim = builder.build().unwrap();
    let campaign = sim.run(move |world| async move {
        let clock: Arc<dyn Clock> = world.clock();
        let cluster = MemoryCluster::new(clock, "db", NODES - 1);
        let versions = Arc::new(AtomicI64::new(0));
        let shared = cluster.clone();
        world.start_all(move |node| {
            let (shared, versions) = (shared.clone(), Arc::clone(&versions));
            async move {
                let mut builder = Router::builder("db", node.clock());
                for i in 0..NODES {
                    builder = builder.shared(&format!("n{i}"), shared.node(i).unwrap());
                }
                let router = builder.build().unwrap();
                let _poller = router.start(&node.runtime());
                let (rng, process, session) = (node.rng(), node.process(), router.session());
                User { node, client, router, session, versions, rng, process, sessions: 0 }.run().await;
            }
        });
        disturb(&world, &cluster).await;
    });
    let campaign = campaign.check(session_guarantees);
    if client == Client::Session { campaign.judge() } else { campaign.as_found().judge() }
}

#[test]
fn sl1_sl2_reads_never_go_back_over_failovers() {
    campaign("session-router", Client::Session, 0..60).assert_pass();
}

/// Who is wrong in which way.
const PLANTED: [(&str, Client); 3] = [
    ("session-router-naive", Client::Naive),
    ("session-router-forgetful", Client::Forgetful),
    ("session-router-silent", Client::Silent),
];

#[test]
fn the_checker_goes_red_with_naive_reads_forgotten_tokens_and_silent_losses() {
    for (name, client) in PLANTED {
        println!("{client:?}: found with seed {}", campaign(name, client, 0..60).assert_fail());
    }
}

#[test]
fn every_recorded_seed_gives_its_verdict() {
    let lines = seed_lines(include_str!("../../seeds.txt")).unwrap();
    assert!(!lines.is_empty());
    for line in lines {
        let planted = PLANTED.iter().find(|(name, _)| *name == line.suite);
        let client = planted.map_or(Client::Session, |(_, client)| *client);
        let report = campaign(&line.suite, client, line.seed..line.seed + 1);
        let verdict = if report.failures.is_empty() { "PASS" } else { "FAIL" };
        assert_eq!(verdict, line.verdict, "{report}");
    }
}

/// Every schedule of a write, a failover that keeps or loses it, and a read: Lost if and only if it was lost.
#[test]
fn sl6_lost_is_said_if_and_only_if_it_is() {
    for kept in [true, false] {
        for rounds in 1..6_usize {
            super::sessions::on_paused(async {
                let w = super::sessions::World::new(|b| b.max_wait(Duration::from_millis(1)));
                w.router.poll_once().await;
                let mut session = w.router.session();
                for round in 0..rounds {
                    super::sessions::put(&mut session, "k", b"kept").await.unwrap();
                    (0..3).for_each(|n| w.cluster.rejoin(n).unwrap());
                    let cut = |on| (0..3).for_each(|n| w.cluster.set_cut(n, on).unwrap());
                    let last = round + 1 == rounds;
                    cut(last && !kept);
                    super::sessions::put(&mut session, "k", b"last").await.unwrap();
                    w.cluster.fail_over((round + 1) % 3).unwrap();
                    cut(false);
                    (0..3).for_each(|n| w.cluster.rejoin(n).unwrap());
                    w.router.poll_once().await;
                }
                let read = super::sessions::get(&mut session, "k").await;
                match read {
                    Ok(value) => assert!(kept && value.as_deref() == Some(&b"last"[..])),
                    Err(error) => assert!(!kept && error.is_lost(), "{error}"),
                }
            });
        }
    }
}
