//! Three-step sagas per second: ours, the floor, the rivals; our memory, our recovery, our server.

pub(crate) mod block;
pub(crate) mod embedded;
pub(crate) mod http;
mod postgres;
pub(crate) mod recovery;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::child::Program;
use crate::load::{Figures, Order};
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
    for place in Place::all(options)? {
        for workload in ["ok", "undo"] {
            let block = block::run(options, &place, workload)?;
            section.note(&format!("### {}, {workload}", place.name));
            if let Some(disk) = &block.disk {
                section.note(disk);
            }
            section.table(&Point::HEAD, &block.points.iter().map(Point::row).collect::<Vec<_>>());
            for missing in &block.missing {
                section.note(&format!("Not measured: {missing}."));
            }
            points.extend(block.points.into_iter().map(|p| (place.name, workload, p)));
        }
    }
    embedded_goals(section, &points);
    memory(options, section)?;
    recovery::run(options, section)?;
    http::run(options, section)
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
fn memory(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let dir = fresh(Path::new("/dev/shm"))?;
    let count = if options.smoke { 2_000 } else { 1_000_000 };
    let order = Order { count, ..order("ok", 64, 0.0, dir.path()) };
    let found = block::quiet(options, &Program::own("saga")?, &order)?;
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
