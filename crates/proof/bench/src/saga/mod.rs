//! Three-step sagas per second: ours, the floor, the rivals; our memory, our recovery, our server.

pub(crate) mod block;
pub(crate) mod embedded;
pub(crate) mod http;
pub(crate) mod listed;
mod postgres;
pub(crate) mod recovery;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::child::{self, Program};
use crate::load::{Figures, Order};
use crate::piece;
use crate::report::Section;
use crate::{Options, Suite};
use block::Point;

pub(crate) const SUITE: Suite = Suite {
    name: "saga",
    about: "A saga of three trivial steps (reserve, charge, ship) in a closed loop, embedded in the measuring process.\n\
            `undo`: ship says no and the other two are undone. Every system runs in a process of its own; they take\n\
            turns, round by round. `floor` is four group-committed appends of 128 bytes with `fdatasync`: the durable\n\
            waits of such a saga without any engine. Times in milliseconds, best round first, the median of the rounds\n\
            behind it; CPU in seconds per 1,000 sagas.",
    run,
};

/// A disk to measure on.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    name: &'static str,
    dir: PathBuf,
}

impl Place {
    fn all(options: &Options) -> anyhow::Result<Vec<Self>> {
        let ram = Self { name: "RAM disk", dir: PathBuf::from("/dev/shm") };
        if options.smoke {
            return Ok(vec![ram]);
        }
        let dir = std::env::current_dir().context("no working folder")?.join("target");
        Ok(vec![Self { name: "disk", dir }, ram])
    }
}

/// An order with nothing but these.
fn order(workload: &str, concurrency: usize, seconds: f64, dir: &Path) -> Order {
    Order {
        workload: workload.to_owned(),
        concurrency,
        seconds,
        count: 0,
        dir: dir.display().to_string(),
        variant: String::new(),
        server: String::new(),
    }
}

fn fresh(on: &Path) -> anyhow::Result<tempfile::TempDir> {
    std::fs::create_dir_all(on)?;
    tempfile::Builder::new().prefix("mainstay-bench-").tempdir_in(on).context("no folder to measure in")
}

fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let mut points = Vec::new();
    let mut times = Vec::new();
    for place in Place::all(options)? {
        for workload in ["ok", "undo"] {
            let mut blocks = Vec::new();
            for concurrency in block::CONCURRENCY {
                blocks.extend(block::run(options, &place, workload, concurrency, &mut times)?);
            }
            if blocks.is_empty() {
                continue;
            }
            section.note(&format!("### {}, {workload}", place.name));
            let rows: Vec<_> = blocks.iter().flat_map(|b| &b.points).map(Point::row).collect();
            section.table(&Point::HEAD, &rows);
            let missing: BTreeSet<_> = blocks.iter().flat_map(|b| &b.missing).collect();
            for missing in missing {
                section.note(&format!("Not measured: {missing}."));
            }
            for (disk, c) in blocks.iter().filter_map(|b| b.disk.as_ref()).zip(block::CONCURRENCY) {
                section.note(&format!("c={c}: {disk}"));
            }
            let found = blocks.into_iter().flat_map(|b| b.points);
            points.extend(found.map(|p| (place.name, workload, p)));
        }
    }
    embedded_goals(section, &points);
    memory(options, section, &mut times)?;
    recovery::run(options, section, &mut times)?;
    http::run(options, section, &mut times)?;
    times.sort();
    if let (Some(first), Some(last)) = (times.first(), times.last()) {
        let count = times.len();
        section.note(&format!(
            "Measured in {count} pieces: the first {first}, the last {last} of the minute before."
        ));
    }
    Ok(())
}

/// SG-T1 and SG-T2.
fn embedded_goals(section: &mut Section, points: &[(&str, &str, Point)]) {
    let ours = |place: &str, concurrency: usize| {
        points.iter().find(|(p, w, point)| {
            *p == place && *w == "ok" && point.system == "mainstay" && point.concurrency == concurrency
        })
    };
    if let (Some((_, _, one)), Some((_, _, many))) = (ours("disk", 1), ours("disk", 64)) {
        let (one, many) = (one.best(), many.best());
        let found =
            format!("{:.0}/s, p99 {:.1} ms; p50 {:.2} ms at c=1", rate(many), many.p99 / 1e3, one.p50 / 1e3);
        let met = rate(many) >= 10_000.0 && many.p99 <= 10_000.0 && one.p50 <= 1_000.0;
        let wanted = "disk, c=64: >= 10,000/s and p99 <= 10 ms; p50 <= 1 ms at c=1";
        section.gate("SG-T1", wanted, found, met);
    }
    if let Some((_, _, many)) = ours("RAM disk", 64) {
        let found = rate(many.best());
        section.gate("SG-T2", "RAM disk, c=64: >= 25,000/s", format!("{found:.0}/s"), found >= 25_000.0);
    }
}

fn rate(f: &Figures) -> f64 {
    f.done as f64 / f.seconds
}

/// SG-T5: resident memory over many sagas.
fn memory(options: &Options, section: &mut Section, times: &mut Vec<String>) -> anyhow::Result<()> {
    let dir = fresh(Path::new("/dev/shm"))?;
    let count = if options.smoke { 2_000 } else { 1_000_000 };
    let order = Order { count, ..order("ok", 64, 0.0, dir.path()) };
    let run = || block::quiet(options, &Program::own("saga")?, &order);
    let Some(piece) = piece::measure(options, "memory", run)? else { return Ok(()) };
    times.push(piece.when);
    let found = child::read(&piece.text)?;
    anyhow::ensure!(found.done == count, "{} of {count} sagas were completed", found.done);
    let (early, end, peak) = (found.early_kib, found.rss_kib, found.peak_kib);
    section.note(&format!(
        "### Memory over {count} sagas\n\nRAM disk, c=64, {:.0} sagas/s. Resident after a tenth: {} KiB, at the end: {} KiB, \
         at most: {} KiB.",
        rate(&found), early, end, peak
    ));
    let flat = end <= early + early / 10;
    let text = format!("at most {} MiB, {} -> {} KiB", peak / 1024, early, end);
    section.gate(
        "SG-T5",
        "RSS <= 60 MiB, grows by less than a tenth after the first tenth",
        text,
        peak <= 60 * 1024 && flat,
    );
    Ok(())
}
