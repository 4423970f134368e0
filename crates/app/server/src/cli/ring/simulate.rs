//! `ring simulate`: shares, and what a change would move, before anything is used.

use std::path::PathBuf;
use std::process::ExitCode;

use mainstay_partition::Node;
use mainstay_partition::advise::{Simulation, simulate};
use serde_json::json;

use super::chart::{self, Bar};
use super::{input, percent, refused};
use crate::cli::{Output, print};
use crate::error::Result;

/// Arguments of `ring simulate`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    placement: input::Placement,
    /// The fleet: `id[*weight][@zone],...`, a number of nodes, or a .toml or .json file.
    #[arg(long)]
    nodes: String,
    /// The fleet after a change.
    #[arg(long)]
    to: Option<String>,
    /// Keys to look up in both.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Also draw the shares into this SVG file.
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// Runs `ring simulate`.
pub(super) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let before = input::nodes(&args.nodes)?;
    let after = args.to.as_deref().map_or_else(|| Ok(before.clone()), input::nodes)?;
    let choice = args.placement.choice();
    let keys = if args.to.is_some() { args.keys } else { 1 };
    let result = simulate(&choice, &before, &after, keys).map_err(refused)?;
    let bars = bars(&result, &after);
    if let Some(path) = &args.svg {
        let title = format!("{choice}: {} nodes, {}", after.len(), summary(&result));
        input::write(path, &chart::svg(&title, &bars))?;
    }
    if output == Output::Json {
        return print(&format!("{:#}\n", to_json(&choice.to_string(), &result, args.to.is_some())));
    }
    let mut text = format!("{choice}: {} nodes, {}\n", after.len(), summary(&result));
    if args.to.is_some() {
        let multiple = result.multiple().map_or_else(|| "-".to_owned(), |m| format!("{m:.2}"));
        text += &format!(
            "the change moves {} of all keys, {multiple} times the ideal {}; {} move between nodes that stay, \
             without need\n",
            percent(result.moved),
            percent(result.ideal),
            percent(result.needless)
        );
    }
    print(&(text + "\n" + &chart::text(&bars)))
}

fn summary(result: &Simulation) -> String {
    format!("max/mean {:.3}, min/mean {:.3}", result.max_over_mean, result.min_over_mean)
}

fn bars(result: &Simulation, after: &[Node]) -> Vec<Bar> {
    let all: f64 = after.iter().map(|n| f64::from(n.weight)).sum();
    let before = |id: &str| result.before.iter().find(|(n, _)| n.as_str() == id).map_or(0.0, |(_, s)| *s);
    let wanted = |id: &str| {
        let weight = after.iter().find(|n| n.id.as_str() == id).map_or(0, |n| n.weight);
        if all > 0.0 { f64::from(weight) / all } else { 0.0 }
    };
    let bar = |(id, share): &(mainstay_partition::NodeId, f64)| Bar {
        name: id.to_string(),
        before: before(id.as_str()),
        after: *share,
        wanted: wanted(id.as_str()),
    };
    result.after.iter().map(bar).collect()
}

fn to_json(choice: &str, result: &Simulation, change: bool) -> serde_json::Value {
    let shares = |list: &[(mainstay_partition::NodeId, f64)]| {
        let all = list.iter().map(|(id, share)| (id.to_string(), json!(share)));
        all.collect::<serde_json::Map<String, serde_json::Value>>()
    };
    let change = change.then(|| {
        json!({
            "moved": result.moved, "ideal": result.ideal, "multiple": result.multiple(),
            "needless": result.needless, "keys": result.keys, "before": shares(&result.before),
        })
    });
    json!({
        "placement": choice,
        "max_over_mean": result.max_over_mean,
        "min_over_mean": result.min_over_mean,
        "shares": shares(&result.after),
        "change": change,
    })
}
