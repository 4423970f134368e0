//! `redis-cli --cluster rebalance` as an opponent of the planner, on Redis Cluster nodes that are started here.

mod cluster;

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use mainstay_partition::Node;
use mainstay_partition::slots::{Plan, Planner, SlotHash, SlotMap};
use mainstay_sim::servers::find;

use crate::Options;
use crate::partition::measure::millis;
use crate::report::Section;
use cluster::{Cluster, SLOTS};

/// Longest time for redis-cli: on 201 masters an older one went round for ever (redis#4941).
const PATIENCE: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(2);
/// What a master takes, with room for what it says to the others; a server alone takes about six.
const MIB_PER_MASTER: u64 = 16;

/// A change of a cluster.
struct Case {
    what: &'static str,
    /// Slots that each master holds before; those with none are new.
    before: Vec<usize>,
    /// Masters with weight 0: they are to hold nothing afterwards.
    drained: &'static [usize],
    /// Whether both change the cluster, or only say what they would do.
    live: bool,
}

/// As even as `masters` can be, the first ones one slot richer; then `fresh` without any.
fn even(masters: usize, fresh: usize) -> Vec<usize> {
    let count = |i: usize| if i < masters { SLOTS / masters + usize::from(i < SLOTS % masters) } else { 0 };
    (0..masters + fresh).map(count).collect()
}

fn cases(smoke: bool) -> Vec<Case> {
    let case = |what, before, drained, live| Case { what, before, drained, live };
    let first = case("3 masters, the third drained", even(3, 0), &[2], false);
    if smoke {
        return vec![first];
    }
    vec![
        first,
        case("3 masters get 4 more", even(3, 4), &[], true),
        case("4 masters, one of them new, the first drained", even(3, 1), &[0], false),
        case("7 masters, the first drained", even(7, 0), &[0], false),
        case("200 masters get one more (redis#4941)", even(200, 1), &[], false),
        case("the same, and one of the 200 drained", even(200, 1), &[199], false),
    ]
}

/// What one of the two did, or would do.
struct Outcome {
    moves: usize,
    /// Slots per master afterwards.
    after: Vec<usize>,
    /// Milliseconds to say what is to be moved.
    plan: f64,
    /// Seconds with the changes, where the case is live.
    changes: Option<f64>,
}

impl Outcome {
    /// Slots that drained masters still hold.
    fn left(&self, case: &Case) -> usize {
        case.drained.iter().map(|at| self.after[*at]).sum()
    }

    /// Fewest and most slots of a master that is to hold some.
    fn spread(&self, case: &Case) -> (usize, usize) {
        let kept = self.after.iter().enumerate().filter(|(at, _)| !case.drained.contains(at));
        kept.fold((usize::MAX, 0), |(low, high), (_, n)| (low.min(*n), high.max(*n)))
    }
}

pub(crate) fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let (Some(server), Some(cli)) = (find("redis-server"), find("redis-cli")) else {
        section.note("`redis-cli --cluster rebalance`: not measured, redis-server or redis-cli is absent.");
        return Ok(());
    };
    let (mut rows, mut never_more, mut solved) = (Vec::new(), true, true);
    let mut kept: Option<(Vec<usize>, Cluster)> = None;
    for case in cases(options.smoke) {
        // A case that changed nothing leaves its cluster to the next one with the same masters.
        let same = kept.take().filter(|(before, _)| *before == case.before).map(|(_, cluster)| cluster);
        if same.is_none() && !fits(case.before.len()) {
            section.note(&format!("{}: not measured, too little memory for so many servers.", case.what));
            continue;
        }
        let start = || Cluster::start(&server, &case.before).with_context(|| case.what);
        let mut cluster = same.map_or_else(start, Ok)?;
        let theirs = theirs(&cli, &mut cluster, &case)?;
        if case.live {
            cluster = Cluster::start(&server, &case.before)?;
        }
        let (ours, bound) = ours(&mut cluster, &case)?;
        // Fewer moves that leave slots where none may be are no success.
        never_more &= ours.moves as u64 == bound && (ours.moves <= theirs.moves || theirs.left(&case) > 0);
        let (low, high) = ours.spread(&case);
        solved &= ours.left(&case) == 0 && high - low <= 1;
        rows.push(row(&case, &ours, &theirs, bound));
        if !case.live {
            kept = Some((case.before, cluster));
        }
    }
    report(section, &version(&cli)?, &rows);
    let found = |good: bool| if good { "in every row" } else { "not in every row" }.to_owned();
    section.gate(
        "moves against redis-cli",
        "never more, and as many as must move",
        found(never_more),
        never_more,
    );
    section.gate(
        "redis#4941, redis#3001",
        "masters differ by one slot at most, none left on a drained one",
        found(solved),
        solved,
    );
    Ok(())
}

/// Whether that many servers fit beside what runs; unknown means yes.
fn fits(masters: usize) -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.is_none_or(|kib| kib / 1024 >= masters as u64 * MIB_PER_MASTER)
}

/// `redis-cli 7.0.15`.
fn version(cli: &Path) -> anyhow::Result<String> {
    let output = Command::new(cli).arg("--version").output().context("redis-cli")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.split_whitespace().take(2).collect::<Vec<_>>().join(" "))
}

fn report(section: &mut Section, version: &str, rows: &[Vec<String>]) {
    section.note(&format!(
        "{version} runs with `--cluster-use-empty-masters --cluster-threshold 1`, and drains masters by \
         `--cluster-weight ID=0`. *live*: both changed a cluster, slot by slot, and what its nodes say afterwards was \
         counted; otherwise redis-cli ran with `--cluster-simulate` on the running cluster. Its time to plan is that of \
         the whole program, which asks every master first."
    ));
    let head = [
        "16,384 slots",
        "moves",
        "redis-cli",
        "must move",
        "slots per master",
        "redis-cli",
        "left on drained",
        "redis-cli",
        "plan, ms",
        "redis-cli",
        "with the changes, s",
        "redis-cli",
    ];
    section.table(&head, rows);
}

fn row(case: &Case, ours: &Outcome, theirs: &Outcome, bound: u64) -> Vec<String> {
    let spread = |o: &Outcome| {
        let (low, high) = o.spread(case);
        if low == high { low.to_string() } else { format!("{low} to {high}") }
    };
    let seconds = |o: &Outcome| o.changes.map_or_else(|| "-".to_owned(), |s| format!("{s:.1}"));
    let name = if case.live { format!("{}, live", case.what) } else { case.what.to_owned() };
    vec![
        name,
        ours.moves.to_string(),
        theirs.moves.to_string(),
        bound.to_string(),
        spread(ours),
        spread(theirs),
        ours.left(case).to_string(),
        theirs.left(case).to_string(),
        format!("{:.1}", ours.plan),
        format!("{:.1}", theirs.plan),
        seconds(ours),
        seconds(theirs),
    ]
}

/// What redis-cli does: it prints a line per pair of masters.
fn theirs(cli: &Path, cluster: &mut Cluster, case: &Case) -> anyhow::Result<Outcome> {
    let (text, plan) = rebalance(cli, cluster, case, &["--cluster-simulate"])?;
    let (mut moves, mut after) = (0, case.before.clone());
    for line in text.lines().filter(|l| l.contains("Moving ") && l.contains(" slots from ")) {
        let (count, from, to) = moved(line).with_context(|| format!("redis-cli said `{line}`"))?;
        let of = |address: &str| cluster.find(address).with_context(|| format!("no master at {address}"));
        let (from, to) = (of(from)?, of(to)?);
        moves += count;
        after[from] -= count;
        after[to] += count;
    }
    let mut changes = None;
    if case.live {
        changes = Some(rebalance(cli, cluster, case, &[])?.1.as_secs_f64());
        cluster.agree()?;
        let counted = cluster.counts()?;
        ensure!(counted == after, "redis-cli did not do what it said: {counted:?}, not {after:?}");
    }
    Ok(Outcome { moves, after, plan: plan.as_secs_f64() * 1e3, changes })
}

/// Runs redis-cli to its end, for [`PATIENCE`] at most. What it said, and how long it took.
#[allow(clippy::disallowed_methods, reason = "the time of another program")]
fn rebalance(cli: &Path, cluster: &Cluster, case: &Case, how: &[&str]) -> anyhow::Result<(String, Duration)> {
    let mut command = Command::new(cli);
    command.args(["--cluster", "rebalance", &cluster.address().to_string()]);
    command.args(["--cluster-use-empty-masters", "--cluster-threshold", "1"]).args(how);
    if !case.drained.is_empty() {
        command.arg("--cluster-weight");
        command.args(case.drained.iter().map(|at| format!("{}=0", cluster.masters[*at].id)));
    }
    let began = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("redis-cli")?;
    let mut out = child.stdout.take().context("a pipe")?;
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        out.read_to_end(&mut text).map(|_| text)
    });
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("{}: redis-cli does not end", case.what);
        }
        std::thread::park_timeout(PAUSE);
    };
    let took = began.elapsed();
    let text = reader.join().ok().context("the reader of redis-cli")??;
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(status.success(), "redis-cli: {text}");
    Ok((text, took))
}

/// `Moving 12 slots from a:1 to b:2`, with colors before.
fn moved(line: &str) -> Option<(usize, &str, &str)> {
    let (_, rest) = line.split_once("Moving ")?;
    let (count, rest) = rest.split_once(" slots from ")?;
    let (from, to) = rest.trim().split_once(" to ")?;
    Some((count.parse().ok()?, from, to))
}

/// Our plan for the map that the cluster itself reports, carried out when `live`.
#[allow(clippy::disallowed_methods, reason = "the time of the same work")]
fn ours(cluster: &mut Cluster, case: &Case) -> anyhow::Result<(Outcome, u64)> {
    let owners = cluster.owners()?;
    let ids: Vec<String> = cluster.masters.iter().map(|m| m.id.clone()).collect();
    let nodes = ids.iter().enumerate().map(|(at, id)| {
        let drained = case.drained.contains(&at);
        Node::new(id.as_str()).weight(u32::from(!drained))
    });
    let nodes: Vec<Node> = nodes.collect();
    let map = SlotMap::builder(1)
        .nodes(nodes.clone())
        .hash(SlotHash::Redis)
        .replicas(|slot| vec![ids[owners[slot]].as_str().into()])
        .build()?;
    let solve = || Planner::new(&map).target(nodes.clone()).solve();
    let plan = solve()?;
    let plan_ms = millis(solve);
    let mut after = case.before.clone();
    let position = |id: &str| ids.iter().position(|i| *i == id).context("a node of the plan");
    let steps = steps(&plan, position)?;
    for (_, from, to) in &steps {
        after[*from] -= 1;
        after[*to] += 1;
    }
    let mut changes = None;
    if case.live {
        let began = Instant::now();
        for (slot, from, to) in &steps {
            cluster.hand_over(*slot, *from, *to)?;
        }
        changes = Some(began.elapsed().as_secs_f64());
        cluster.agree()?;
        after = cluster.counts()?;
    }
    Ok((Outcome { moves: steps.len(), after, plan: plan_ms, changes }, plan.lower_bound()))
}

/// Slot, giver, taker.
fn steps(
    plan: &Plan,
    position: impl Fn(&str) -> anyhow::Result<usize>,
) -> anyhow::Result<Vec<(usize, usize, usize)>> {
    let step = |m: &mainstay_partition::slots::Move| {
        let from = m.from.as_ref().context("every slot has a master")?;
        Ok((m.slot, position(from.as_str())?, position(m.to.as_str())?))
    };
    plan.moves().iter().map(step).collect()
}
