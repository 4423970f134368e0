//! A fleet that gossips: rounds until all have a change, and what it says when there is nothing to say. Ours and
//! chitchat, each in a process of its own, over the same loopback, in real time, with the same tick and fan-out.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use mainstay_clock::Runtime;
use mainstay_consistency::crdt::AwSet;
use mainstay_gossip::{Config, Gossip, Keys, Presence, Sockets};

use crate::child::Program;
use crate::report::Section;
use crate::{Options, Suite};

pub(crate) const SUITE: Suite = Suite {
    name: "gossip",
    about: "100 nodes in one process per system, UDP over loopback, a tick of 300 ms, every node an author of one entry. A round \
            is a tick; headers of UDP and IP (28 bytes) are counted. Our packets are sealed, those of chitchat are not.",
    run,
};

const TICK: Duration = Duration::from_millis(300);
/// What IPv4 and UDP put in front of a datagram.
const HEADERS: u64 = 28;
/// Changes whose rounds are counted.
const CHANGES: usize = 11;

/// What one system said.
#[derive(Debug)]
struct Found {
    rounds: Vec<f64>,
    /// Per second and node.
    bytes: f64,
}

impl Found {
    fn median(&self) -> f64 {
        self.rounds[self.rounds.len() / 2]
    }

    fn row(&self, name: &str) -> Vec<String> {
        let most = self.rounds.last().copied().unwrap_or_default();
        vec![
            name.to_owned(),
            format!("{:.1}", self.median()),
            format!("{most:.1}"),
            format!("{:.1}", self.bytes / 1_000.0),
        ]
    }
}

fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let (nodes, idle) = if options.smoke { (10, 1) } else { (100, 10) };
    let ours = ask(Program::own("gossip")?.bare(), nodes, idle, "1")?;
    let mut rows = vec![ours.row("mainstay-gossip")];
    match Program::rival(options.rivals.as_deref(), "chitchat") {
        Some(program) => {
            for (version, name) in
                [("0", "chitchat 0.13, as by default"), ("1", "chitchat 0.13, digests compressed")]
            {
                rows.push(ask(program.bare(), nodes, idle, version)?.row(name));
            }
        }
        None => section.note("chitchat: not measured, its program was not built."),
    }
    section.table(&["system", "rounds, p50", "rounds, most", "KB/s per idle node"], &rows);
    let found = ours.median();
    section.gate("rounds to converge at 100 nodes, p50", "<= 3", format!("{found:.1}"), found <= 3.0);
    let kilobytes = ours.bytes / 1_000.0;
    section.gate("idle node among 100", "<= 10 KB/s", format!("{kilobytes:.1} KB/s"), kilobytes <= 10.0);
    Ok(())
}

/// Runs a program and reads its last line.
fn ask(mut program: Command, nodes: u64, idle: u64, version: &str) -> anyhow::Result<Found> {
    program.args([&nodes.to_string(), &TICK.as_millis().to_string(), &idle.to_string(), version]);
    let output = program.output().with_context(|| format!("{program:?} cannot be started"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{program:?} failed: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    let found: serde_json::Value = serde_json::from_str(text.lines().last().unwrap_or_default())?;
    let micros = found["micros"].as_array().context("no `micros`")?;
    let mut rounds: Vec<f64> =
        micros.iter().filter_map(serde_json::Value::as_f64).map(|m| m / TICK.as_micros() as f64).collect();
    rounds.sort_by(f64::total_cmp);
    let number = |name: &str| found[name].as_u64().with_context(|| format!("no `{name}`"));
    let bytes = (number("bytes")? + HEADERS * number("packets")?) as f64 / idle as f64 / nodes as f64;
    if rounds.is_empty() {
        bail!("{program:?} counted no rounds");
    }
    Ok(Found { rounds, bytes })
}

/// The other side: our fleet.
pub(crate) fn child(words: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let numbers: Vec<u64> = words.map(|word| word.parse()).collect::<Result<_, _>>()?;
    let [nodes, tick, idle, _] = numbers[..] else {
        bail!("usage: child gossip NODES TICK_MS IDLE_S VERSION")
    };
    let rt = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    rt.block_on(fleet(usize::try_from(nodes)?, Duration::from_millis(tick), Duration::from_secs(idle)))
}

async fn fleet(count: usize, tick: Duration, idle: Duration) -> anyhow::Result<()> {
    let rt = Runtime::system();
    let mut nodes: Vec<Gossip<AwSet<u64>>> = Vec::new();
    for n in 0..count {
        let seeds: Vec<_> = nodes.iter().take(3).map(Gossip::address).collect();
        let config = Config::builder(&format!("n{n}"), "bench")
            .keys(Keys::new(1, [7; 32]))
            .members((0..count).map(|n| format!("n{n}")))
            .seeds(seeds)
            .tick(tick)
            .build()?;
        let sockets = Sockets::bind("127.0.0.1:0".parse()?, None, &rt).await?;
        nodes.push(Gossip::start(config, Arc::new(sockets), None, &rt).await?);
    }
    for (n, node) in nodes.iter().enumerate() {
        node.change(|set, actor| set.add(actor, n as u64))?;
    }
    let up = |node: &Gossip<AwSet<u64>>| node.members().iter().filter(|m| m.presence == Presence::Up).count();
    until(&nodes, |node| up(node) + 1 == count && node.read(|set| set.elements().count() == count)).await?;
    let mut micros = Vec::new();
    for change in 0..CHANGES {
        let value = (1_000 + change) as u64;
        nodes[change * 7 % count].change(|set, actor| set.add(actor, value))?;
        micros.push(until(&nodes, |node| node.read(|set| set.contains(&value))).await?.as_micros());
        rt.clock().sleep(Duration::from_millis(400)).await;
    }
    let sent = || {
        let all = nodes.iter().map(|node| node.stats());
        all.fold((0, 0), |sum, stats| (sum.0 + stats.sent, sum.1 + stats.sent_bytes))
    };
    let before = sent();
    rt.clock().sleep(idle).await;
    let after = sent();
    println!("{{\"micros\":{micros:?},\"packets\":{},\"bytes\":{}}}", after.0 - before.0, after.1 - before.1);
    Ok(())
}

/// Waits until every node satisfies `holds`, two minutes at most; how long it took.
#[allow(clippy::disallowed_methods, reason = "a clock behind a port would be part of what is measured")]
async fn until(
    nodes: &[Gossip<AwSet<u64>>],
    holds: impl Fn(&Gossip<AwSet<u64>>) -> bool,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    while !nodes.iter().all(&holds) {
        if began.elapsed() > Duration::from_secs(120) {
            bail!("the fleet does not agree");
        }
        Runtime::system().clock().sleep(Duration::from_millis(5)).await;
    }
    Ok(began.elapsed())
}
