//! Three-step sagas per second: ours, the floor, the rivals.

pub(crate) mod embedded;

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::child::Program;
use crate::floor;
use crate::load::{Figures, Order};
use crate::report::Section;
use crate::{Options, Suite};

pub(crate) const SUITE: Suite = Suite {
    name: "saga",
    about: "A saga of three trivial steps (reserve, charge, ship) in a closed loop, embedded in the measuring process. \
            `undo`: ship says no and the other two are undone. Every system runs in a process of its own, one after \
            the other, round by round. Times in milliseconds.",
    run,
};

/// A disk to measure on.
struct Place {
    name: &'static str,
    dir: PathBuf,
}

fn places(options: &Options) -> anyhow::Result<Vec<Place>> {
    let disk = std::env::current_dir().context("no working folder")?.join("target");
    let mut places = vec![Place { name: "RAM disk", dir: PathBuf::from("/dev/shm") }];
    if !options.smoke {
        places.push(Place { name: "disk", dir: disk });
    }
    Ok(places)
}

fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    for place in places(options)? {
        let mut rows = Vec::new();
        for workload in ["ok", "undo"] {
            for concurrency in [1, 32, 64] {
                rows.push(point(options, &place, workload, concurrency)?);
            }
        }
        section.note(&format!("### {}", place.name));
        section.table(&["system", "workload", "c", "sagas/s", "p50", "p99", "RSS MiB"], &rows);
    }
    Ok(())
}

fn point(
    options: &Options,
    place: &Place,
    workload: &str,
    concurrency: usize,
) -> anyhow::Result<Vec<String>> {
    let dir = fresh(&place.dir)?;
    let order = Order {
        workload: workload.to_owned(),
        concurrency,
        seconds: options.seconds,
        count: 0,
        dir: dir.path().display().to_string(),
        variant: String::new(),
        server: String::new(),
    };
    let probe = floor::probe(dir.path(), 0.2)?;
    let figures: Figures = Program::own("saga")?.run(&order)?;
    println!("probe: {probe:?} {figures:?}");
    let per_second = figures.done as f64 / figures.seconds;
    Ok(vec![
        "mainstay".to_owned(),
        workload.to_owned(),
        concurrency.to_string(),
        format!("{per_second:.0}"),
        format!("{:.2}", figures.p50 / 1_000.0),
        format!("{:.2}", figures.p99 / 1_000.0),
        (figures.peak_kib / 1024).to_string(),
    ])
}

fn fresh(on: &Path) -> anyhow::Result<tempfile::TempDir> {
    std::fs::create_dir_all(on)?;
    tempfile::Builder::new().prefix("mainstay-bench-").tempdir_in(on).context("no folder to measure in")
}
