//! `ring advise`: the decision table.

use std::process::ExitCode;

use clap::ValueEnum;
use mainstay_partition::advise::{Constraints, Purpose, Recommendation, System, advise};
use serde_json::json;

use super::refused;
use crate::cli::{Output, print};
use crate::error::Result;

/// Arguments of `ring advise`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What the nodes do with the keys.
    #[arg(long, value_enum)]
    purpose: PurposeName,
    /// How many nodes.
    #[arg(long)]
    nodes: usize,
    /// Distinct nodes per key.
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// Distinct zones per key.
    #[arg(long, default_value_t = 1)]
    zones: usize,
    /// Nodes differ in weight.
    #[arg(long)]
    unequal: bool,
    /// Clients share a list of names and nothing more.
    #[arg(long)]
    no_shared_map: bool,
    /// Numbered shards; only the last one is ever added or removed.
    #[arg(long)]
    numbered: bool,
    /// Single keys can be hotter than a node can take, or requests are long streams.
    #[arg(long)]
    hot_keys: bool,
    /// Users choose keys and may be hostile.
    #[arg(long)]
    hostile_keys: bool,
    /// Must agree with this system.
    #[arg(long, value_enum)]
    agree_with: Option<SystemName>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PurposeName {
    Cache,
    OwnData,
    Traffic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SystemName {
    Cassandra,
    EnvoyMaglev,
    EnvoyRing,
    Guava,
    Haproxy,
    Memcached,
    Nginx,
    Redis,
}

/// One more thing that is known of the use.
type Constrain = fn(Constraints) -> Constraints;

/// Runs `ring advise`.
pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let purpose = match args.purpose {
        PurposeName::Cache => Purpose::Cache,
        PurposeName::OwnData => Purpose::OwnData,
        PurposeName::Traffic => Purpose::Traffic,
    };
    let mut constraints = Constraints::new(purpose, args.nodes).replicas(args.replicas).zones(args.zones);
    let flags: [(bool, Constrain); 5] = [
        (args.unequal, Constraints::unequal),
        (args.no_shared_map, Constraints::no_shared_map),
        (args.numbered, Constraints::numbered),
        (args.hot_keys, Constraints::hot_keys),
        (args.hostile_keys, Constraints::hostile_keys),
    ];
    for (_, set) in flags.into_iter().filter(|(given, _)| *given) {
        constraints = set(constraints);
    }
    if let Some(system) = args.agree_with {
        constraints = constraints.agree_with(match system {
            SystemName::Cassandra => System::Cassandra,
            SystemName::EnvoyMaglev => System::EnvoyMaglev,
            SystemName::EnvoyRing => System::EnvoyRing,
            SystemName::Guava => System::Guava,
            SystemName::Haproxy => System::Haproxy,
            SystemName::Memcached => System::Memcached,
            SystemName::Nginx => System::Nginx,
            SystemName::Redis => System::Redis,
        });
    }
    let answer = advise(&constraints).map_err(refused)?;
    match output {
        Output::Json => print(&format!("{:#}\n", to_json(&answer))),
        Output::Table => print(&to_text(&answer)),
    }
}

fn to_text(answer: &Recommendation) -> String {
    let mut text = format!("take {answer}\n");
    for (head, lines) in [("because", &answer.reasons), ("know that", &answer.limits)] {
        if !lines.is_empty() {
            text += &format!("\n{head}\n");
        }
        for line in lines {
            text += &format!("  - {line}\n");
        }
    }
    if !answer.rejected.is_empty() {
        text += "\nand not\n";
    }
    for (name, why) in &answer.rejected {
        text += &format!("  - {name}: {why}\n");
    }
    text
}

fn to_json(answer: &Recommendation) -> serde_json::Value {
    let rejected = answer.rejected.iter().map(|(name, why)| json!({"placement": name, "why": why}));
    json!({
        "recommendation": answer.to_string(),
        "placement": answer.choice.as_ref().map(ToString::to_string),
        "profile": answer.profile,
        "bounded": answer.bounded,
        "keyed": answer.keyed,
        "reasons": answer.reasons,
        "limits": answer.limits,
        "rejected": rejected.collect::<Vec<_>>(),
    })
}
