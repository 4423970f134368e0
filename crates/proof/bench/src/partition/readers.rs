//! Readers while a writer changes the topology without a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mainstay_clock::Runtime;
use mainstay_partition::Ring;
use mainstay_partition::topology::Topology;

use super::measure::{Key, nanos};
use super::ours::ring;
use crate::Options;
use crate::report::Section;

/// Figures taken while the writer works.
const FIGURES: usize = 51;

pub(super) fn run(options: &Options, keys: &[Key], section: &mut Section) {
    let place = Arc::new(ring(100));
    let bare_owner = |k: &Key| place.owner(k).map_or(0, |n| u64::from(n.get()));
    let bare = nanos(keys, bare_owner);
    let topology = Topology::new(1, Arc::clone(&place), Arc::clone(Runtime::system().clock()));
    let mut reader = topology.reader();
    let mut ask = |k: &Key| reader.owner(k).map_or(0, |r| u64::from(r.idx.get()));
    let quiet = nanos(keys, &mut ask);
    let alone = beside(|stop| write(stop, |_, ring| drop(ring)), || nanos(keys, bare_owner));
    let changes = AtomicU64::new(0);
    let publish = |epoch, ring| {
        if topology.observe(epoch, Arc::new(ring)).is_ok() {
            changes.fetch_add(1, Ordering::Release);
        }
    };
    let busy = beside(|stop| write(stop, publish), || nanos(keys, &mut ask));
    let changes = changes.load(Ordering::Acquire);
    section.note(&format!(
        "A reader of a ring of 100 nodes: bare ring {bare:.1} ns, through a topology {quiet:.1} ns. While a writer on the \
         other core builds and publishes without a pause {busy:.1} ns ({changes} epochs meanwhile); the bare ring beside \
         a writer that builds as much and publishes nothing {alone:.1} ns."
    ));
    if options.smoke {
        return;
    }
    let ratio = busy / bare;
    section.gate(
        "reader under constant rebuilds",
        "<= 1.5 x bare",
        format!("{ratio:.2}"),
        ratio <= 1.5 && changes > 0,
    );
}

/// The median of many figures, each the fastest of its batches, taken while `work` runs on the other core: one alone
/// might fall between two epochs.
fn beside(work: impl Fn(&AtomicBool) + Sync, mut figure: impl FnMut() -> f64) -> f64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| work(&stop));
        let mut figures: Vec<f64> = (0..FIGURES).map(|_| figure()).collect();
        stop.store(true, Ordering::Release);
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    })
}

/// Builds rings of 100 and 101 nodes in turn, for `then`.
fn write(stop: &AtomicBool, then: impl Fn(u64, Ring)) {
    // The measuring thread is pinned; this one takes the other core.
    let mut set = rustix::thread::CpuSet::new();
    set.set(0);
    let _ = rustix::thread::sched_setaffinity(None, &set);
    for epoch in 2.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        then(epoch, ring(100 + epoch as usize % 2));
    }
}
