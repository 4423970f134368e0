//! A fleet of nine nodes in three zones gets a tenth, a node is drained, and nobody loses a key on the way.
//!
//! The plan is data: it is rehearsed before anything runs, carried out wave by wave, each wave an epoch that
//! all members acknowledge before it counts. The coordinator dies in the middle; its successor plans again
//! from where things stand and finishes what was begun.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use mainstay::clock::SystemClock;
use mainstay::partition::slots::{Plan, Planner, SlotMap};
use mainstay::partition::topology::{EpochFence, Guard, Stage, Topology};
use mainstay::partition::{Node, Spread};
use mainstay::store::FencingToken;

const ZONES: Spread = Spread::Hard { min: 3 };

/// What every node has: the stand-in for its disk.
type Disks = BTreeMap<String, BTreeMap<usize, String>>;

fn main() -> anyhow::Result<()> {
    let fleet = |n: usize| (0..n).map(|i| Node::new(format!("node-{i}")).zone(format!("zone-{}", i % 3)));
    let empty = SlotMap::builder(0).slots(4096).build()?;
    let first = Planner::new(&empty).target(fleet(9)).rf(3).zones(ZONES).solve()?;
    let mut disks = Disks::new();
    for m in first.moves() {
        disks.entry(m.to.to_string()).or_default().insert(m.slot, format!("data of {}", m.slot));
    }

    // Three nodes more, and node-4 is to be switched off.
    let target: Vec<Node> =
        fleet(12).map(|n| if n.id.as_str() == "node-4" { n.weight(0) } else { n }).collect();
    let map = first.next().clone();
    let plan = Planner::new(&map).target(target.clone()).rf(3).zones(ZONES).max_parallel(8).solve()?;
    let seen = plan.rehearse()?;
    println!(
        "{} of {} replicas move, at least {} must; {} waves; never fewer than {} live replicas",
        plan.moves().len(),
        4096 * 3,
        plan.certified_bound(),
        plan.waves(),
        seen.fewest_live
    );
    anyhow::ensure!(plan.is_minimal() && seen.fewest_live == 3, "the plan is not what was promised");

    let topology = Topology::new(map.epoch(), Arc::new(map), Arc::new(SystemClock::new()));
    let mut fence = EpochFence::new(4096);
    let half = plan.waves() / 2;
    carry_out(&topology, &plan, half, 1, &mut disks, &mut fence)?;
    println!("the coordinator dies after wave {half} of {}", plan.waves());

    // The successor holds a higher token, looks at the map in force, and plans the rest.
    let now = topology.view().place().clone();
    let rest = Planner::new(&now).target(target).rf(3).zones(ZONES).max_parallel(8).solve()?;
    let done = plan.moves().iter().filter(|m| m.wave <= half).count();
    anyhow::ensure!(done + rest.moves().len() == plan.moves().len(), "something was undone");
    carry_out(&topology, &rest, rest.waves(), 2, &mut disks, &mut fence)?;

    let view = topology.view();
    let held = |id: &str| disks.get(id).map_or(0, BTreeMap::len);
    println!(
        "epoch {}: node-4 holds {} slots, node-11 holds {}",
        view.epoch(),
        held("node-4"),
        held("node-11")
    );
    anyhow::ensure!(held("node-4") == 0, "node-4 can be switched off");
    // Whoever still thinks of an old epoch is refused by the store.
    let moved = plan.moves()[0].slot;
    anyhow::ensure!(fence.admit(moved, 1).is_err(), "a late write was taken");
    Ok(())
}

/// Runs waves of a plan. After every wave each slot's owner has its data.
fn carry_out(
    topology: &Topology<SlotMap>,
    plan: &Plan,
    waves: usize,
    token: u64,
    disks: &mut Disks,
    fence: &mut EpochFence,
) -> anyhow::Result<()> {
    let mut reader = topology.reader();
    for wave in 1..=waves {
        // Copy first ...
        for m in plan.wave(wave) {
            let source = m.source.as_ref().context("somebody has the data")?;
            let data = disks[source.as_str()][&m.slot].clone();
            disks.entry(m.to.to_string()).or_default().insert(m.slot, data);
        }
        // ... then let the map say so ...
        let next = Arc::new(plan.after(wave)?);
        let mut change = topology.prepare(Arc::clone(&next), &Guard::new())?;
        if let Stage::Prepared { missing, .. } = topology.stage() {
            missing.iter().try_for_each(|member| change.ack(member.as_str()))?;
        }
        let epoch = change.commit(FencingToken::new(token))?;
        if let Stage::Moving { pending } = topology.stage() {
            pending.iter().try_for_each(|m| topology.handoff_done(epoch, m.as_str()).map(|_| ()))?;
        }
        // ... then remove.
        for m in plan.wave(wave) {
            fence.admit(m.slot, epoch)?;
            if let Some(from) = &m.from {
                disks.get_mut(from.as_str()).context("it had data")?.remove(&m.slot);
            }
        }
        for key in 0..500 {
            let key = format!("user:{key}");
            let routed = reader.owner(key.as_bytes()).context("there are nodes")?;
            let slot = next.slot(key.as_bytes());
            let has = disks.get(routed.node.id.as_str()).is_some_and(|d| d.contains_key(&slot));
            anyhow::ensure!(has && routed.epoch == epoch, "{key} is lost in wave {wave}");
        }
    }
    Ok(())
}
