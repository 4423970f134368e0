//! All systems at one place with one workload: what is compared is measured together.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::postgres::Postgres;
use super::{Place, fresh, order, rate};
use crate::Options;
use crate::child::{self, Program};
use crate::floor;
use crate::load::{Figures, Order};
use crate::piece;

/// Concurrent sagas of the points.
pub(crate) const CONCURRENCY: [usize; 3] = [1, 32, 64];

/// Fewer sagas than that say little about a rate.
const FEW: u64 = 100;

/// A system at one concurrency, over the rounds.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) system: String,
    pub(crate) concurrency: usize,
    rounds: Vec<Figures>,
}

impl Point {
    pub(crate) const HEAD: [&'static str; 9] =
        ["system", "c", "sagas/s", "median", "p50", "p99", "p999", "RSS MiB", "CPU"];

    /// The round with the most sagas per second.
    pub(crate) fn best(&self) -> &Figures {
        let best = self.rounds.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
        best.expect("invariant: a point has a round")
    }

    fn median(&self) -> f64 {
        let mut rates: Vec<f64> = self.rounds.iter().map(rate).collect();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }

    pub(crate) fn row(&self) -> Vec<String> {
        let best = self.best();
        let millis = |micros: f64| format!("{:.2}", micros / 1_000.0);
        let cpu = if best.done == 0 { 0.0 } else { best.cpu_seconds * 1_000.0 / best.done as f64 };
        let failed = if best.failed > 0 { format!(" ({} failed)", best.failed) } else { String::new() };
        // A system whose sagas take as long as the point lasts is counted short: the reader must see that.
        let few = if best.done < FEW { format!(" (of {} sagas)", best.done) } else { String::new() };
        vec![
            self.system.clone(),
            self.concurrency.to_string(),
            format!("{:.0}{failed}{few}", rate(best)),
            format!("{:.0}", self.median()),
            millis(best.p50),
            millis(best.p99),
            millis(best.p999),
            (best.peak_kib / 1024).to_string(),
            format!("{cpu:.3}"),
        ]
    }
}

/// What a block came to.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) points: Vec<Point>,
    pub(crate) missing: Vec<String>,
    pub(crate) disk: Option<String>,
}

/// A command through the program that waits for quiet, if there is one.
fn through(options: &Options, command: Command) -> Command {
    let Some(program) = &options.through else { return command };
    let mut outer = Command::new(program);
    outer.arg(command.get_program()).args(command.get_args());
    outer
}

/// Runs one program in a quiet moment; the figures are its last line.
pub(crate) fn quiet(options: &Options, program: &Program, order: &Order) -> anyhow::Result<String> {
    let output = through(options, program.command(order)).output().context("a program cannot be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("{program:?} failed: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(text.lines().last().unwrap_or_default().to_owned())
}

/// Measures a block, in a process of its own so that it can wait for quiet as a whole. `None`: not asked for.
pub(crate) fn run(
    options: &Options,
    place: &Place,
    workload: &str,
    concurrency: usize,
    times: &mut Vec<String>,
) -> anyhow::Result<Option<Block>> {
    let name = format!("{}-{workload}-{concurrency}", place.name.replace(' ', "-").to_lowercase());
    let piece = piece::measure(options, &name, || ask(options, place, workload, concurrency))?;
    let Some(piece) = piece else { return Ok(None) };
    times.push(piece.when);
    read(&piece.text).map(Some)
}

fn ask(options: &Options, place: &Place, workload: &str, concurrency: usize) -> anyhow::Result<String> {
    let mut command = Command::new(std::env::current_exe().context("this program has no path")?);
    command
        .args(["child", "block", "--place", place.name, "--workload", workload])
        .arg("--dir")
        .arg(&place.dir);
    command.args(["--concurrency", &concurrency.to_string()]);
    command.args(["--seconds", &options.seconds.to_string(), "--repeat", &options.repeat.to_string()]);
    if let Some(rivals) = &options.rivals {
        command.arg("--rivals").arg(rivals);
    }
    let output = through(options, command).output().context("a block cannot be started")?;
    if !output.status.success() {
        bail!("a block failed: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What the process of a block said.
fn read(text: &str) -> anyhow::Result<Block> {
    let mut block = Block::default();
    for line in text.lines() {
        let found: Value = serde_json::from_str(line).with_context(|| format!("a block said `{line}`"))?;
        let text = |name: &str| found[name].as_str().map(str::to_owned);
        if let Some(missing) = text("missing") {
            block.missing.push(missing);
        } else if let Some(disk) = text("disk") {
            block.disk = Some(disk);
        } else {
            let rounds: anyhow::Result<Vec<Figures>> = found["rounds"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|r| child::read(&r.to_string()))
                .collect();
            let concurrency = found["concurrency"].as_u64().and_then(|c| usize::try_from(c).ok());
            block.points.push(Point {
                system: text("system").context("no system")?,
                concurrency: concurrency.context("no concurrency")?,
                rounds: rounds?,
            });
        }
    }
    Ok(block)
}

/// What a block's own process is asked.
struct Asked {
    place: String,
    workload: String,
    dir: PathBuf,
    seconds: f64,
    repeat: usize,
    concurrency: usize,
    rivals: Option<PathBuf>,
}

impl Asked {
    fn read(mut words: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut asked = Self {
            place: String::new(),
            workload: String::new(),
            dir: PathBuf::new(),
            seconds: 1.0,
            repeat: 1,
            concurrency: 1,
            rivals: None,
        };
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            match name.as_str() {
                "--place" => asked.place = value,
                "--workload" => asked.workload = value,
                "--dir" => asked.dir = value.into(),
                "--seconds" => asked.seconds = value.parse()?,
                "--concurrency" => asked.concurrency = value.parse()?,
                "--repeat" => asked.repeat = value.parse()?,
                "--rivals" => asked.rivals = Some(value.into()),
                _ => bail!("{name} is unknown"),
            }
        }
        Ok(asked)
    }
}

/// A system under test.
struct System {
    name: &'static str,
    program: Program,
    variant: &'static str,
    server: String,
    /// Measured in every round; others in the first only.
    each_round: bool,
}

/// Ours, the floor, and what of the rivals was built.
fn systems(
    asked: &Asked,
    postgres: Option<&Postgres>,
    say: &mut dyn FnMut(Value),
) -> anyhow::Result<Vec<System>> {
    let own = |name, child, variant| -> anyhow::Result<System> {
        Ok(System { name, program: Program::own(child)?, variant, server: String::new(), each_round: true })
    };
    let mut systems = vec![own("floor", "floor", "saga")?, own("mainstay", "saga", "")?];
    let mut rivals = vec![
        ("steno, in memory", "steno", "memory"),
        ("steno, one sync per event", "steno", "sync"),
        ("duroxide, defaults", "duroxide", "defaults"),
        ("duroxide, tuned", "duroxide", "tuned"),
    ];
    match postgres {
        Some(_) => rivals.push(("dbos on PostgreSQL", "dbos", "")),
        None if asked.rivals.is_some() => say(json!({"missing": "dbos: no PostgreSQL could be started"})),
        None => {}
    }
    for (name, program, variant) in rivals {
        if asked.rivals.is_none() {
            continue;
        }
        let Some(found) = Program::rival(asked.rivals.as_deref(), program) else {
            say(json!({"missing": format!("{name}: its program was not built")}));
            continue;
        };
        let server = postgres.filter(|_| program == "dbos").map_or_else(String::new, Postgres::url);
        systems.push(System { name, program: found, variant, server, each_round: false });
    }
    Ok(systems)
}

/// `mainstay-bench child block --..`: one JSON line per finding.
pub(crate) fn child(words: impl Iterator<Item = String>) -> anyhow::Result<()> {
    let asked = Asked::read(words)?;
    let mut say = |v: Value| println!("{v}");
    let folder = fresh(&asked.dir)?;
    let postgres = match &asked.rivals {
        Some(_) => Postgres::start(folder.path()).map_err(|e| eprintln!("no PostgreSQL: {e:#}")).ok(),
        None => None,
    };
    let systems = systems(&asked, postgres.as_ref(), &mut say)?;
    let on_disk = asked.place == "disk";
    let mut probes = Vec::new();
    let concurrency = asked.concurrency;
    let mut rounds: Vec<Vec<Figures>> = systems.iter().map(|_| Vec::new()).collect();
    for round in 0..asked.repeat {
        for (system, found) in systems.iter().zip(&mut rounds) {
            if round > 0 && !system.each_round {
                continue;
            }
            probes.extend(on_disk.then(|| floor::probe(folder.path(), 0.1)).transpose()?);
            match measure(&asked, system, concurrency, folder.path()) {
                Ok(figures) => found.push(figures),
                Err(e) if system.name == "mainstay" || system.name == "floor" => return Err(e),
                Err(e) => say(json!({"missing": format!("{}, c={concurrency}: {e:#}", system.name)})),
            }
        }
    }
    probes.extend(on_disk.then(|| floor::probe(folder.path(), 0.1)).transpose()?);
    for (system, found) in systems.iter().zip(&rounds).filter(|(_, r)| !r.is_empty()) {
        let lines: Vec<Value> =
            found.iter().map(|f| serde_json::from_str(&f.line())).collect::<Result<_, _>>()?;
        say(json!({"system": system.name, "concurrency": concurrency, "rounds": lines}));
    }
    if on_disk {
        say(json!({"disk": describe(&mut probes)}));
    }
    Ok(())
}

fn measure(asked: &Asked, system: &System, concurrency: usize, folder: &Path) -> anyhow::Result<Figures> {
    let dir = fresh(folder)?;
    let order = Order {
        variant: system.variant.to_owned(),
        server: system.server.clone(),
        ..order(&asked.workload, concurrency, asked.seconds, dir.path())
    };
    system.program.run(&order)
}

/// The state of the disk around the points.
fn describe(probes: &mut [floor::Probe]) -> String {
    probes.sort_by(|a, b| a.p50.total_cmp(&b.p50));
    let (Some(quiet), Some(busy)) = (probes.first(), probes.last()) else { return String::new() };
    let middle = probes[probes.len() / 2];
    format!(
        "Sync probe (128 bytes and `fdatasync`) before and after each point: {:.0}/s and p50 {:.0} us at best, {:.0}/s and \
         {:.0} us in the middle (p99 {:.0} us), {:.0}/s and {:.0} us at worst.",
        quiet.syncs_per_second,
        quiet.p50,
        middle.syncs_per_second,
        middle.p50,
        middle.p99,
        busy.syncs_per_second,
        busy.p50
    )
}
