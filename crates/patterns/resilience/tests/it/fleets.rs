//! Fifty nodes and one dependency, in steps of 10 ms of virtual time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock as _, Runtime, SeededRng};
use mainstay_resilience::breaker::{OwnedTicket, State};
use mainstay_resilience::fleet::{Fleet, MemoryHub, PeerReport, Transport};
use mainstay_resilience::{Breaker, ConfigError};

use crate::manual::Manual;

const NODES: u64 = 50;
const STEP_MS: u64 = 10;

struct Node {
    breaker: Breaker,
    fleet: Option<Fleet>,
    /// Calls under way: when they end, and whether they were admitted as probes.
    calls: VecDeque<(u64, bool, OwnedTicket)>,
}

struct World {
    clock: Manual,
    hub: MemoryHub,
    nodes: Vec<Node>,
    ms: u64,
    /// Who was admitted when: equal worlds have equal logs.
    log: Vec<(u64, usize, bool)>,
    most_probes: usize,
}

impl World {
    fn new(with_fleet: bool, seed: u64) -> Self {
        Self::of(NODES, with_fleet, seed)
    }

    fn of(nodes: u64, with_fleet: bool, seed: u64) -> Self {
        let clock = Manual::new();
        let hub = MemoryHub::new(clock.arc());
        let nodes = (0..nodes).map(|i| node(&clock, &hub, with_fleet, seed * 1_000 + i)).collect();
        Self { clock, hub, nodes, ms: 0, log: Vec::new(), most_probes: 0 }
    }

    /// Runs for `ms`; `fails` says whether a call of a node that starts now will fail. Calls take 80 ms.
    fn run(&mut self, ms: u64, fails: impl Fn(usize) -> bool) {
        self.run_some(ms, |_| true, fails);
    }

    /// As [`run`](Self::run), with calls only on nodes that are busy.
    fn run_some(&mut self, ms: u64, busy: impl Fn(usize) -> bool, fails: impl Fn(usize) -> bool) {
        for _ in 0..ms / STEP_MS {
            self.clock.advance(Duration::from_millis(STEP_MS));
            self.ms += STEP_MS;
            for (i, node) in self.nodes.iter_mut().enumerate() {
                // Phases differ: no two nodes step together.
                if let Some(fleet) =
                    node.fleet.as_ref().filter(|_| (self.ms / STEP_MS + i as u64).is_multiple_of(25))
                {
                    fleet.step();
                }
                end_due(node, self.ms, fails(i));
                if !busy(i) {
                    continue;
                }
                if let Ok(ticket) = node.breaker.admit_owned() {
                    let probe = node.breaker.state() == State::HalfOpen;
                    node.calls.push_back((self.ms + 80, probe, ticket));
                    self.log.push((self.ms, i, probe));
                }
            }
            let probes = self.nodes.iter().flat_map(|n| &n.calls).filter(|(_, probe, _)| *probe).count();
            self.most_probes = self.most_probes.max(probes);
        }
    }

    fn count(&self, f: impl Fn(&Node) -> bool) -> usize {
        self.nodes.iter().filter(|n| f(n)).count()
    }
}

fn node(clock: &Manual, hub: &MemoryHub, with_fleet: bool, seed: u64) -> Node {
    let runtime = Runtime::on_tokio(clock.arc(), Arc::new(SeededRng::new(seed)));
    let name = format!("node-{seed}");
    let fleet = with_fleet.then(|| {
        let transport = Arc::new(hub.join(name.clone()));
        Fleet::builder(name.clone(), transport).runtime(&clock.runtime(1)).build().unwrap()
    });
    let mut builder = Breaker::builder("db").runtime(&runtime);
    if let Some(fleet) = &fleet {
        builder = builder.probe_gate(fleet.gate());
    }
    let breaker = builder.build().unwrap();
    if let Some(fleet) = &fleet {
        fleet.watch(&breaker);
    }
    Node { breaker, fleet, calls: VecDeque::new() }
}

fn end_due(node: &mut Node, now: u64, fails: bool) {
    while node.calls.front().is_some_and(|call| call.0 <= now) {
        if let Some((_, _, ticket)) = node.calls.pop_front() {
            if fails { ticket.failure() } else { ticket.success() }
        }
    }
}

fn is_armed(node: &Node) -> bool {
    node.breaker.state() != State::Closed || node.fleet.as_ref().is_some_and(|f| f.is_armed("db"))
}

#[test]
fn fl1_one_broken_network_card_trips_nobody_else() {
    for seed in 0..2 {
        let mut world = World::new(true, seed);
        world.run(5_000, |_| false);
        world.run(40_000, |i| i == 7);
        assert_ne!(world.nodes[7].breaker.state(), State::Closed, "the broken node itself trips");
        let others = |f: &dyn Fn(&Node) -> bool| {
            world.nodes.iter().enumerate().filter(|(i, n)| *i != 7 && f(n)).count()
        };
        assert_eq!(others(&is_armed), 0, "seed {seed}");
        assert_eq!(others(&|n| n.breaker.snapshot().generation > 1), 0, "seed {seed}: nobody moved");
    }
}

#[test]
fn fl2_a_dead_dependency_arms_95_percent_within_two_seconds() {
    for seed in 0..6 {
        let mut world = World::new(true, seed);
        // Dies at another point of the nodes' periods each time.
        world.run(12_000 + seed * 130, |_| false);
        assert_eq!(world.count(is_armed), 0);
        world.run(2_000, |_| true);
        let armed = world.count(is_armed);
        assert!(armed * 100 >= 95 * NODES as usize, "seed {seed}: {armed} of {NODES}");
    }
}

#[test]
fn fl2_armed_nodes_open_sooner_than_alone() {
    let open = |with_fleet| {
        let mut world = World::new(with_fleet, 1);
        world.run(12_000, |_| false);
        let mut ms = 0;
        while world.count(|n| n.breaker.state() != State::Closed) < NODES as usize / 2 {
            world.run(100, |_| true);
            ms += 100;
        }
        ms
    };
    let (together, alone) = (open(true), open(false));
    assert!(together < alone, "{together} ms together, {alone} ms alone");
}

#[test]
fn fl3_recovery_traffic_stays_within_the_permits_fleet_wide() {
    for seed in 0..2 {
        let mut world = World::new(true, seed);
        world.run(12_000, |_| false);
        world.run(20_000, |_| true);
        assert_eq!(world.count(|n| n.breaker.state() == State::Closed), 0);
        world.run(60_000, |_| false);
        assert_eq!(
            world.count(|n| n.breaker.state() == State::Closed),
            NODES as usize,
            "seed {seed}: recovered"
        );
        assert!(world.most_probes <= 3, "seed {seed}: {} probes in flight", world.most_probes);

        let mut alone = World::new(false, seed);
        alone.run(12_000, |_| false);
        alone.run(20_000, |_| true);
        alone.run(30_000, |_| false);
        assert!(alone.most_probes > 3, "seed {seed}: without a fleet the bound does not hold by itself");
    }
}

#[test]
fn fl3_idle_nodes_do_not_lock_a_busy_one_out_nor_keep_it_armed() {
    let mut world = World::of(4, true, 3);
    world.run(12_000, |_| false);
    world.run(4_000, |_| true);
    assert_eq!(world.count(|n| n.breaker.state() == State::Closed), 0);
    // Three have no traffic any more; the fourth's probe fails once, so the others stand before it.
    world.run_some(10_000, |i| i == 3, |_| true);
    assert!(world.nodes[3].breaker.snapshot().round > 1);
    assert_eq!(world.nodes[0].breaker.snapshot().round, 1);
    world.run_some(60_000, |i| i == 3, |_| false);
    assert_eq!(world.nodes[3].breaker.state(), State::Closed, "the busy one has recovered");
    assert!(!world.nodes[3].fleet.as_ref().unwrap().is_armed("db"), "idle nodes are no evidence");
    // They come back one day, and recover too.
    world.run(20_000, |_| false);
    assert_eq!(world.count(|n| n.breaker.state() == State::Closed), 4);
    assert!(world.most_probes <= 3, "{} probes in flight", world.most_probes);
}

#[test]
fn fl3_nodes_that_wake_together_share_the_permits() {
    for seed in 0..2 {
        let mut world = World::new(true, seed);
        world.run(12_000, |_| false);
        world.run(4_000, |_| true);
        assert_eq!(world.count(|n| n.breaker.state() == State::Closed), 0);
        world.run_some(60_000, |_| false, |_| false);
        assert_eq!(world.count(|n| n.fleet.as_ref().is_some_and(|f| f.is_armed("db"))), 0, "seed {seed}");
        world.run(60_000, |_| false);
        assert_eq!(world.count(|n| n.breaker.state() == State::Closed), NODES as usize, "seed {seed}");
        assert!(world.most_probes <= 3, "seed {seed}: {} probes in flight", world.most_probes);
    }
}

#[test]
fn fl3_one_call_in_ten_seconds_still_recovers() {
    let mut world = World::of(5, true, 6);
    world.run(12_000, |_| false);
    world.run(4_000, |_| true);
    for _ in 0..12 {
        world.run_some(10, |_| true, |_| false);
        world.run_some(9_990, |_| false, |_| false);
    }
    assert_eq!(world.count(|n| n.breaker.state() == State::Closed), 5);
}

#[test]
fn t14_a_hung_probe_of_a_rationed_node_loses_its_lease() {
    let mut world = World::of(3, true, 5);
    world.run(12_000, |_| false);
    world.run(4_000, |_| true);
    assert_eq!(world.count(|n| n.breaker.state() == State::Closed), 0);
    world.run(80, |_| true);
    assert!(world.nodes[0].calls.is_empty());
    // On one node every probe hangs: nobody hears of it again.
    let hung = |world: &mut World, ms: u64| {
        let mut tickets = Vec::new();
        for _ in 0..ms / STEP_MS {
            world.run(STEP_MS, |_| true);
            tickets.extend(world.nodes[0].calls.drain(..));
        }
        tickets
    };
    let first = hung(&mut world, 8_000);
    assert_eq!(first.len(), 1, "one probe was admitted");
    assert!(world.nodes[0].fleet.as_ref().unwrap().probe_share("db") < 3, "it is rationed");
    // The lease is 10 s.
    let second = hung(&mut world, 12_000);
    assert!(!second.is_empty(), "another one after the lease");
    drop((first, second));
}

#[test]
fn fl4_losing_the_transport_changes_nothing() {
    let run = |with_fleet| {
        let mut world = World::new(with_fleet, 9);
        world.hub.set_down(true);
        world.run(12_000, |_| false);
        world.run(15_000, |_| true);
        world.run(30_000, |_| false);
        world.log
    };
    assert!(run(true) == run(false), "the same calls are admitted at the same instants");
}

#[test]
fn fl4_a_transport_lost_during_an_outage_leaves_every_node_to_itself() {
    let mut world = World::new(true, 4);
    world.run(12_000, |_| false);
    world.run(6_000, |_| true);
    world.hub.set_down(true);
    world.run(10_000, |_| true);
    world.run(60_000, |_| false);
    assert_eq!(world.count(|n| n.breaker.state() == State::Closed), NODES as usize);
    assert_eq!(world.count(|n| n.fleet.as_ref().is_some_and(|f| f.is_armed("db"))), 0);
}

#[derive(Debug)]
struct Garbage;

impl Transport for Garbage {
    fn publish(&self, _bytes: &[u8]) {}

    fn peers(&self) -> Vec<PeerReport> {
        let report =
            |i: u8, bytes: &[u8]| PeerReport::new(format!("n{i}").into(), Duration::ZERO, bytes.into());
        vec![report(1, b""), report(2, &[9, 9, 9]), report(3, &[1, 255, 255, 0, 0])]
    }
}

#[test]
fn garbage_from_peers_is_counted_and_ignored() {
    let clock = Manual::new();
    let fleet = Fleet::builder("me", Arc::new(Garbage)).runtime(&clock.runtime(1)).build().unwrap();
    let runtime = Runtime::on_tokio(clock.arc(), Arc::new(SeededRng::new(1)));
    let breaker = Breaker::builder("db").runtime(&runtime).build().unwrap();
    fleet.watch(&breaker);
    fleet.step();
    assert_eq!((fleet.garbage(), fleet.is_armed("db"), fleet.probe_share("db")), (3, false, 3));
    assert!(clock.now() > mainstay_clock::Instant::ZERO);
}

#[test]
fn bad_settings_are_refused() {
    let build =
        |f: fn(mainstay_resilience::fleet::FleetBuilder) -> mainstay_resilience::fleet::FleetBuilder| {
            f(Fleet::builder("n", Arc::new(Garbage))).build().map(drop).map_err(|e: ConfigError| e.field())
        };
    assert_eq!(build(|b| b.period(Duration::ZERO)), Err("period"));
    assert_eq!(build(|b| b.quorum(0.0, 2)), Err("quorum"));
    assert_eq!(build(|b| b.quorum(f64::NAN, 2)), Err("quorum"));
    assert_eq!(build(|b| b.quorum(0.5, 1)), Err("min_peers"));
    assert_eq!(build(|b| b.probes(0)), Err("probes"));
}
