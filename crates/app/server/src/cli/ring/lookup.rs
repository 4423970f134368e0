//! `ring where`: who holds a key.

use std::path::PathBuf;
use std::process::ExitCode;

use mainstay_partition::{Place, Spread};
use serde_json::json;

use super::{input, refused};
use crate::cli::Output;
use crate::error::{Code, Error, Result};

/// Arguments of `ring where`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The key, as its bytes are.
    key: String,
    /// A slot map.
    #[arg(long, conflicts_with = "nodes")]
    map: Option<PathBuf>,
    /// Or a fleet: `id[*weight][@zone],...`, a number of nodes, or a .toml or .json file.
    #[arg(long)]
    nodes: Option<String>,
    #[command(flatten)]
    placement: input::Placement,
    /// How many holders; without it all replicas of a slot, and one owner elsewhere.
    #[arg(long)]
    replicas: Option<usize>,
    /// any, hard:ZONES or prefer:ZONES.
    #[arg(long, default_value = "any", value_parser = input::spread)]
    zones: Spread,
}

/// Runs `ring where`.
pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let key = args.key.as_bytes();
    let (place, slot, held): (Box<dyn Place>, _, _) = match (&args.map, &args.nodes) {
        (Some(path), _) => {
            let map = input::map(path)?;
            let slot = map.slot(key);
            let held = map.replicas(slot).len();
            (Box::new(map), Some(slot), held)
        }
        (None, Some(nodes)) => {
            (args.placement.choice().build(&input::nodes(nodes)?).map_err(refused)?, None, 1)
        }
        (None, None) => return Err(Error::new(Code::PlacementInput, "give --map FILE or --nodes NODES")),
    };
    let owners = place.owners(key).spread(args.zones).pick(args.replicas.unwrap_or(held)).map_err(refused)?;
    let nodes = place.nodes();
    let zone = |n: &mainstay_partition::Node| n.zone.as_ref().map(|z| z.as_str().to_owned());
    let rows = owners.iter().enumerate().map(|(at, i)| {
        let node = &nodes[*i];
        let role = if at == 0 { "owner" } else { "replica" };
        vec![role.to_owned(), node.id.to_string(), zone(node).unwrap_or_else(|| "-".to_owned())]
    });
    let list = owners.iter().map(|i| json!({"id": nodes[*i].id.as_str(), "zone": zone(&nodes[*i])}));
    let json = json!({
        "key": args.key,
        "hash": format!("{:016x}", place.hash_of(key)),
        "slot": slot,
        "owners": list.collect::<Vec<_>>(),
        "fingerprint": format!("{:032x}", place.fingerprint()),
    });
    output.rows(&["ROLE", "NODE", "ZONE"], rows.collect(), &json)
}
