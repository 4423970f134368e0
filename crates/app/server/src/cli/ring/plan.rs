//! `ring plan`: what would move, why not less, and in which order.

use std::path::PathBuf;
use std::process::ExitCode;

use mainstay_partition::slots::{Move, Plan, Planner, SlotHash, SlotMap};
use mainstay_partition::{Node, NodeId, Place as _, Spread};
use serde_json::{Value, json};

use super::{input, refused};
use crate::cli::output::plain;
use crate::cli::{Output, print};
use crate::error::Result;

/// Moves that a table shows unless all are asked for.
const SHOWN: usize = 20;

/// Arguments of `ring plan`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The map in force; without one the plan fills a new map.
    #[arg(long)]
    map: Option<PathBuf>,
    /// The fleet after the change: `id[*weight][@zone],...`, a number of nodes, or a .toml or .json file.
    /// Weight 0 drains a node; a node that is missing counts as gone. Without it: a repair.
    #[arg(long)]
    target: Option<String>,
    /// Replicas per slot. Without it: as many as the map has, one for a new map.
    #[arg(long)]
    rf: Option<usize>,
    /// any, hard:ZONES or prefer:ZONES.
    #[arg(long, default_value = "any", value_parser = input::spread)]
    zones: Spread,
    /// A JSON list with the bytes of each slot.
    #[arg(long)]
    bytes: Option<PathBuf>,
    /// A JSON list with the load of each slot: nodes then share the load instead of the slots.
    #[arg(long)]
    load: Option<PathBuf>,
    /// How far above its share of the load a node may stay.
    #[arg(long, default_value_t = 0.1)]
    tolerance: f64,
    /// Most copies that a node sends, and receives, at once.
    #[arg(long, default_value_t = 4)]
    max_parallel: u32,
    /// Slots of a new map: a power of two, 4096 to 65536.
    #[arg(long, default_value_t = 16_384)]
    slots: usize,
    /// Let a new map place keys as Redis Cluster does.
    #[arg(long)]
    redis: bool,
    /// Show every move.
    #[arg(long)]
    all: bool,
    /// Write the map at the end of the plan here.
    #[arg(long)]
    write: Option<PathBuf>,
}

/// Runs `ring plan`.
pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let map = match &args.map {
        Some(path) => input::map(path)?,
        None => {
            let empty = SlotMap::builder(0).slots(args.slots);
            let empty = if args.redis { empty.hash(SlotHash::Redis) } else { empty };
            empty.build().map_err(refused)?
        }
    };
    let bytes: Option<Vec<u64>> = input::numbers(args.bytes.as_deref())?;
    let load: Option<Vec<f64>> = input::numbers(args.load.as_deref())?;
    let rf = input::rf(args.rf, &map);
    let mut planner = Planner::new(&map).rf(rf).zones(args.zones).max_parallel(args.max_parallel);
    if let Some(target) = &args.target {
        planner = planner.target(input::nodes(target)?);
    }
    if let Some(bytes) = &bytes {
        planner = planner.bytes(bytes);
    }
    if let Some(load) = &load {
        planner = planner.load(load).tolerance(args.tolerance);
    }
    let plan = planner.solve().map_err(refused)?;
    plan.rehearse().map_err(refused)?;
    if let Some(path) = &args.write {
        input::write_map(path, plan.next())?;
    }
    match output {
        Output::Json => print(&format!("{:#}\n", to_json(&plan))),
        Output::Table => print(&to_text(&plan, args, rf)),
    }
}

fn name(id: Option<&NodeId>) -> String {
    id.map_or_else(|| "-".to_owned(), |id| plain(id.as_str()))
}

fn to_text(plan: &Plan, args: &Args, rf: usize) -> String {
    let moves = plan.moves();
    let (least, proof) = match (plan.within_tolerance(), plan.is_minimal()) {
        (false, _) => (plan.lower_bound(), "are needed to reach the tolerance, and it is not reached"),
        (true, true) => (plan.certified_bound(), "must: proven minimal"),
        (true, false) => (plan.certified_bound(), "must: not proven minimal"),
    };
    let mut text = format!(
        "epoch {} -> {}: {} of {} replicas move, at least {least} {proof}\n",
        plan.base().epoch(),
        plan.next().epoch(),
        moves.len(),
        plan.next().slots() * rf,
    );
    text += &format!(
        "lower bound of {} {}, waves {} (at least {}), role changes {}, removals {}, bytes {}\n",
        if args.load.is_some() { "loads" } else { "counts" },
        plan.lower_bound(),
        plan.waves(),
        plan.fewest_waves(),
        plan.role_changes().len(),
        plan.removals().len(),
        plan.bytes(),
    );
    for note in plan.notes() {
        text += &format!("note: {}\n", plain(&note.to_string()));
    }
    text += "\n";
    text += &counts(plan);
    let shown = if args.all { moves.len() } else { SHOWN.min(moves.len()) };
    if shown > 0 {
        text += &format!(
            "\n{:>5} {:>6}  {:20} {:20} {:20} {:>12}\n",
            "WAVE", "SLOT", "FROM", "TO", "SOURCE", "BYTES"
        );
    }
    for Move { slot, from, to, source, bytes, wave, .. } in &moves[..shown] {
        let (from, source) = (name(from.as_ref()), name(source.as_ref()));
        text +=
            &format!("{wave:>5} {slot:>6}  {from:20} {:20} {source:20} {bytes:>12}\n", plain(to.as_str()));
    }
    if shown < moves.len() {
        text += &format!("and {} more; --all shows them\n", moves.len() - shown);
    }
    text += match &args.write {
        Some(_) => "\nwritten\n",
        None => "\na dry run: nothing was written\n",
    };
    text
}

/// Replicas and primaries per node, before and after.
fn counts(plan: &Plan) -> String {
    let mut text =
        format!("{:24} {:>8} {:>10} {:>10} {:>10}\n", "NODE", "WEIGHT", "BEFORE", "AFTER", "PRIMARIES");
    let before = held(plan.base());
    let after = held(plan.next());
    for (idx, Node { id, weight, .. }) in plan.next().nodes().iter() {
        let was = plan.base().nodes().find(id.as_str()).map_or(0, |i| before[i.as_usize()].0);
        let (now, primaries) = after[idx.as_usize()];
        text += &format!("{:24} {weight:>8} {was:>10} {now:>10} {primaries:>10}\n", plain(id.as_str()));
    }
    for (idx, node) in plan.base().nodes().iter() {
        if plan.next().nodes().find(node.id.as_str()).is_none() {
            let was = before[idx.as_usize()].0;
            text += &format!("{:24} {:>8} {was:>10} {:>10} {:>10}\n", plain(node.id.as_str()), "gone", 0, 0);
        }
    }
    text
}

/// Replicas and primaries of every node.
fn held(map: &SlotMap) -> Vec<(usize, usize)> {
    let mut held = vec![(0, 0); map.nodes().len()];
    for slot in 0..map.slots() {
        for (at, idx) in map.replicas(slot).iter().enumerate() {
            held[idx.as_usize()].0 += 1;
            held[idx.as_usize()].1 += usize::from(at == 0);
        }
    }
    held
}

fn to_json(plan: &Plan) -> Value {
    let id = |id: &Option<NodeId>| id.as_ref().map(NodeId::as_str).map(str::to_owned);
    let moves: Vec<Value> = plan
        .moves()
        .iter()
        .map(|m| {
            json!({
                "wave": m.wave, "slot": m.slot, "from": id(&m.from), "to": m.to.as_str(),
                "source": id(&m.source), "bytes": m.bytes,
            })
        })
        .collect();
    let roles: Vec<Value> = plan
        .role_changes()
        .iter()
        .map(|r| json!({"slot": r.slot, "from": id(&r.from), "to": r.to.as_str()}))
        .collect();
    let removals: Vec<Value> = plan
        .removals()
        .iter()
        .map(|r| json!({"wave": r.wave, "slot": r.slot, "node": r.node.as_str()}))
        .collect();
    let prices: serde_json::Map<String, Value> =
        plan.prices().iter().filter(|(_, p)| *p != 0).map(|(n, p)| (n.to_string(), json!(p))).collect();
    json!({
        "epoch": {"from": plan.base().epoch(), "to": plan.next().epoch()},
        "fingerprint": {
            "from": format!("{:032x}", plan.base().fingerprint()),
            "to": format!("{:032x}", plan.next().fingerprint()),
        },
        "moves": moves,
        "removals": removals,
        "role_changes": roles,
        "lower_bound": plan.lower_bound(),
        "certified_bound": plan.certified_bound(),
        "minimal": plan.is_minimal(),
        "within_tolerance": plan.within_tolerance(),
        "prices": prices,
        "waves": plan.waves(),
        "fewest_waves": plan.fewest_waves(),
        "bytes": plan.bytes(),
        "notes": plan.notes().iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}
