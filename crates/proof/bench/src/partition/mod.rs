//! Placements: ours and the rivals, the same keys and the same loop.

mod hot;
mod measure;
mod ours;
mod planner;
mod readers;
mod rebalance;
#[cfg(feature = "rivals")]
mod rivals;

use crate::report::Section;
use crate::{Options, Suite};

pub(crate) const SUITE: Suite = Suite {
    name: "partition",
    about: "Nanoseconds per lookup of a 16-byte key, the fastest of 25 batches of 16384 keys, hash included; 150 points \
            per node where there are points. Every batch has the same keys, unless a row says otherwise. Safe indexing everywhere on our side.",
    run,
};

/// Apart from the others: it takes minutes, and what counts there is not time.
pub(crate) const REDIS: Suite = Suite {
    name: "partition-redis",
    about: "The planner against `redis-cli --cluster rebalance` on Redis Clusters of real, empty masters, started for it: \
            slots moved, slots per master afterwards, slots that drained masters keep.",
    run: rebalance::run,
};

/// Sizes of the fleet.
const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

/// A row: a name and a figure per size; `None` where it was not measured.
type Row = (String, [Option<f64>; 4]);

fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    pin();
    let sizes: &[usize] = if options.smoke { &SIZES[..2] } else { &SIZES };
    let keys = measure::keys();
    ours::run(sizes, &keys, section);
    #[cfg(feature = "rivals")]
    rivals::run(sizes, &keys, section);
    #[cfg(not(feature = "rivals"))]
    section.note("Rivals: not measured, built without feature `rivals`.");
    planner::run(options.smoke, section);
    readers::run(options, &keys, section);
    hot::run(options, section)
}

/// One core, the last: the first one also serves interrupts.
fn pin() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = rustix::thread::CpuSet::new();
    set.set(cores - 1);
    // Without the right to, the figures are only noisier.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}

fn table(section: &mut Section, what: &str, rows: &[Row]) {
    let cell = |v: &Option<f64>| {
        v.map_or_else(|| "-".to_owned(), |v| if v < 100.0 { format!("{v:.1}") } else { format!("{v:.0}") })
    };
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, values)| std::iter::once(name.clone()).chain(values.iter().map(cell)).collect())
        .collect();
    section.table(&[what, "10 nodes", "100", "1,000", "10,000"], &rows);
}

/// A figure per size.
fn per_size(sizes: &[usize], mut figure: impl FnMut(usize) -> Option<f64>) -> [Option<f64>; 4] {
    std::array::from_fn(|i| sizes.get(i).and_then(|n| figure(*n)))
}

fn name(i: usize) -> String {
    format!("node-{i:05}")
}
