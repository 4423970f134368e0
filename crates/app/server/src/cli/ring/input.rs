//! Files and words of `ring`: nodes, slot maps, loads.

use std::fmt::Display;
use std::path::Path;

use mainstay_partition::advise::Choice;
use mainstay_partition::slots::{SlotHash, SlotMap};
use mainstay_partition::{Hash, Node, NodeIdx, Nodes, Place as _, Spread};
use serde::{Deserialize, Serialize};

use super::refused;
use crate::error::{Code, Error, Result};

fn bad(context: impl Into<String>) -> Error {
    Error::new(Code::PlacementInput, context)
}

/// Reads a file whose name or content a message can cite.
pub(super) fn read(path: &Path) -> Result<String> {
    let why = format!("cannot read {}", path.display());
    std::fs::read_to_string(path).map_err(|e| Error::with(Code::PlacementInput, why, e))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fleet {
    nodes: Vec<NodeEntry>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct NodeEntry {
    id: String,
    #[serde(default = "one")]
    weight: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
}

fn one() -> u32 {
    1
}

impl NodeEntry {
    fn node(self) -> Node {
        let node = Node::new(self.id).weight(self.weight);
        match self.zone {
            Some(zone) => node.zone(zone),
            None => node,
        }
    }

    fn of(node: &Node) -> Self {
        let zone = node.zone.as_ref().map(|z| z.as_str().to_owned());
        Self { id: node.id.to_string(), weight: node.weight, zone }
    }
}

/// Most nodes that a number stands for.
const MOST_GENERATED: usize = 100_000;

/// Nodes from a file (`.toml`, `.json`), a number (`12` stands for `node-0` to `node-11`) or a list
/// `id[*weight][@zone],...`.
pub(super) fn nodes(text: &str) -> Result<Vec<Node>> {
    let path = Path::new(text);
    match path.extension().and_then(|e| e.to_str()) {
        Some("toml") => {
            let fleet: Fleet = toml::from_str(&read(path)?).map_err(|e| unreadable(path, e))?;
            return Ok(fleet.nodes.into_iter().map(NodeEntry::node).collect());
        }
        Some("json") => {
            let fleet: Fleet = serde_json::from_str(&read(path)?).map_err(|e| unreadable(path, e))?;
            return Ok(fleet.nodes.into_iter().map(NodeEntry::node).collect());
        }
        _ => {}
    }
    if let Ok(count) = text.parse::<usize>() {
        if count > MOST_GENERATED {
            return Err(bad(format!("{count} nodes; a number stands for at most {MOST_GENERATED}")));
        }
        return Ok((0..count).map(|i| Node::new(format!("node-{i}"))).collect());
    }
    text.split(',').map(str::trim).filter(|t| !t.is_empty()).map(node).collect()
}

/// `id[*weight][@zone]`.
fn node(text: &str) -> Result<Node> {
    let (rest, zone) = text.split_once('@').map_or((text, None), |(rest, zone)| (rest, Some(zone)));
    let (id, weight) = match rest.split_once('*') {
        None => (rest, 1),
        Some((id, weight)) => {
            let allowed = format!("the weight of `{text}` is `{weight}`; allowed: 0 to {}", u32::MAX);
            (id, weight.parse().map_err(|_| bad(allowed))?)
        }
    };
    let node = Node::new(id).weight(weight);
    Ok(match zone {
        Some(zone) => node.zone(zone),
        None => node,
    })
}

fn unreadable(path: &Path, error: impl Display) -> Error {
    bad(format!("{}: {error}", path.display()))
}

/// A slot map as it stands in a file. The format has a version of its own.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct MapFile {
    format: String,
    epoch: u64,
    hash: String,
    nodes: Vec<NodeEntry>,
    /// Per slot the positions of its replicas in `nodes`, the primary first.
    slots: Vec<Vec<u32>>,
}

const FORMAT: &str = "mainstay-slots/1";

/// Reads a slot map.
pub(super) fn map(path: &Path) -> Result<SlotMap> {
    let file: MapFile = serde_json::from_str(&read(path)?).map_err(|e| unreadable(path, e))?;
    if file.format != FORMAT {
        return Err(bad(format!("{}: format is `{}`; allowed: {FORMAT}", path.display(), file.format)));
    }
    let hash = match file.hash.as_str() {
        "redis" => SlotHash::Redis,
        other => match other.strip_prefix("xxh3:").and_then(|seed| seed.parse().ok()) {
            Some(seed) => SlotHash::Mixed(Hash::xxh3(seed)),
            None => {
                return Err(bad(format!("{}: hash is `{other}`; allowed: redis, xxh3:SEED", path.display())));
            }
        },
    };
    let count = file.nodes.len();
    let given: Vec<Node> = file.nodes.into_iter().map(NodeEntry::node).collect();
    let nodes = Nodes::new(given.iter().cloned()).map_err(refused)?;
    let place: Vec<Option<NodeIdx>> = given.iter().map(|n| nodes.find(n.id.as_str())).collect();
    let at = |slot: usize, n: &u32| {
        let found = place.get(usize::try_from(*n).unwrap_or(usize::MAX)).copied().flatten();
        found.ok_or_else(|| bad(format!("{}: slot {slot} names node number {n} of {count}", path.display())))
    };
    let lists = file.slots.iter().enumerate();
    let lists: Vec<Vec<NodeIdx>> =
        lists.map(|(s, l)| l.iter().map(|n| at(s, n)).collect::<Result<_>>()).collect::<Result<_>>()?;
    SlotMap::from_lists(nodes, hash, file.epoch, lists.len(), &lists).map_err(refused)
}

/// Replicas per slot: as many as given, otherwise what the slots of the map have. A new map gets one.
pub(super) fn rf(given: Option<usize>, map: &SlotMap) -> usize {
    given.unwrap_or_else(|| (0..map.slots()).map(|s| map.replicas(s).len()).max().unwrap_or(0).max(1))
}

/// Writes a slot map beside its place and moves it there, so that no reader sees half of it.
pub(super) fn write_map(path: &Path, map: &SlotMap) -> Result<()> {
    let hash = match map.slot_hash() {
        SlotHash::Redis => "redis".to_owned(),
        // Maps of the command line have no secret.
        SlotHash::Mixed(hash) => format!("xxh3:{}", hash.seed().unwrap_or(0)),
        _ => return Err(bad("this hash cannot be written")),
    };
    let file = MapFile {
        format: FORMAT.to_owned(),
        epoch: map.epoch(),
        hash,
        nodes: map.nodes().as_slice().iter().map(NodeEntry::of).collect(),
        slots: (0..map.slots()).map(|s| map.replicas(s).iter().map(|i| i.get()).collect()).collect(),
    };
    let text = serde_json::to_string(&file)
        .map_err(|e| Error::with(Code::Internal, "cannot write the map as JSON", e))?;
    write(path, &(text + "\n"))
}

/// Writes a file as a whole.
pub(super) fn write(path: &Path, text: &str) -> Result<()> {
    let why = format!("cannot write {}", path.display());
    let mut beside = path.as_os_str().to_owned();
    // Of two that write at the same moment each renames its own.
    beside.push(format!(".{}.new", std::process::id()));
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|e| Error::with(Code::PlacementInput, why, e))
}

/// A JSON list of numbers, one per slot.
pub(super) fn numbers<T: for<'de> Deserialize<'de>>(path: Option<&Path>) -> Result<Option<Vec<T>>> {
    let Some(path) = path else { return Ok(None) };
    serde_json::from_str(&read(path)?).map(Some).map_err(|e| unreadable(path, e))
}

/// `any`, `hard:N` or `prefer:N`.
pub(super) fn spread(text: &str) -> std::result::Result<Spread, String> {
    let parsed = match text.split_once(':') {
        None if text == "any" => Some(Spread::Any),
        Some(("hard", n)) => n.parse().ok().map(|min| Spread::Hard { min }),
        Some(("prefer", n)) => n.parse().ok().map(|min| Spread::Prefer { min }),
        _ => None,
    };
    parsed.ok_or_else(|| "any, hard:ZONES or prefer:ZONES".to_owned())
}

/// A placement that is computed from names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    Jumpback,
    Maglev,
    Rendezvous,
    RendezvousByZone,
    Ring,
    Slots,
}

/// How a placement is described on the command line.
#[derive(Debug, clap::Args)]
pub(super) struct Placement {
    /// Which placement.
    #[arg(long, value_enum, default_value = "ring")]
    pub(super) kind: Kind,
    /// Points per unit of weight, for ring.
    #[arg(long, default_value_t = 160)]
    pub(super) points: u32,
    /// Entries of the table, a prime, for maglev.
    #[arg(long, default_value_t = 65_537)]
    pub(super) table: u32,
    /// Slots, for slots.
    #[arg(long, default_value_t = 16_384)]
    pub(super) slots: usize,
}

impl Placement {
    pub(super) fn choice(&self) -> Choice {
        match self.kind {
            Kind::Jumpback => Choice::JumpBack,
            Kind::Maglev => Choice::Maglev { table: self.table },
            Kind::Rendezvous => Choice::Rendezvous,
            Kind::RendezvousByZone => Choice::RendezvousByZone,
            Kind::Ring => Choice::Ring { points: self.points },
            Kind::Slots => Choice::Slots { slots: self.slots },
        }
    }
}
