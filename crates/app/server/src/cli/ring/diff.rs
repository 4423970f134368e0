//! `ring diff`: what differs between two slot maps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::ExitCode;

use mainstay_partition::Place as _;
use mainstay_partition::slots::SlotMap;
use serde_json::json;

use super::{input, percent};
use crate::cli::Output;
use crate::error::{Code, Error, Result};

/// Arguments of `ring diff`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The map before.
    old: PathBuf,
    /// The map after.
    new: PathBuf,
}

/// Runs `ring diff`.
pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let (old, new) = (input::map(&args.old)?, input::map(&args.new)?);
    if old.slots() != new.slots() || old.slot_hash() != new.slot_hash() {
        let why =
            format!("{} and {} slots, or other hashes: nothing can be compared", old.slots(), new.slots());
        return Err(Error::new(Code::PlacementConflict, why));
    }
    let mut between: BTreeMap<(String, String), usize> = BTreeMap::new();
    let (mut moved, mut roles) = (0, 0);
    for slot in 0..old.slots() {
        let (before, after) = (names(&old, slot), names(&new, slot));
        roles += usize::from(before.first() != after.first());
        let is: BTreeSet<&String> = after.iter().collect();
        let was: BTreeSet<&String> = before.iter().collect();
        let mut lost = was.difference(&is);
        for gained in is.difference(&was) {
            moved += 1;
            let from = lost.next().map_or_else(|| "-".to_owned(), |n| (*n).clone());
            *between.entry((from, (*gained).clone())).or_default() += 1;
        }
        for gone in lost {
            *between.entry(((*gone).clone(), "-".to_owned())).or_default() += 1;
        }
    }
    let replicas: usize = (0..new.slots()).map(|s| new.replicas(s).len()).sum();
    let mut rows: Vec<Vec<String>> =
        between.iter().map(|((from, to), n)| vec![from.clone(), to.clone(), n.to_string()]).collect();
    rows.push(vec!["all".into(), percent(moved as f64 / replicas.max(1) as f64), moved.to_string()]);
    let list = between.iter().map(|((from, to), n)| json!({"from": from, "to": to, "replicas": n}));
    let json = json!({
        "epoch": {"old": old.epoch(), "new": new.epoch()},
        "fingerprint": {
            "old": format!("{:032x}", old.fingerprint()),
            "new": format!("{:032x}", new.fingerprint()),
        },
        "moved": moved,
        "replicas": replicas,
        "role_changes": roles,
        "between": list.collect::<Vec<_>>(),
    });
    output.rows(&["FROM", "TO", "REPLICAS"], rows, &json)
}

fn names(map: &SlotMap, slot: usize) -> Vec<String> {
    map.replicas(slot).iter().map(|i| map.nodes()[*i].id.to_string()).collect()
}
