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

/// Figures taken while the writer works, and epochs that must have been published meanwhile.
const FIGURES: usize = 51;
const EPOCHS: u64 = 200;

pub(super) fn run(options: &Options, keys: &[Key], section: &mut Section) {
    let place = Arc::new(ring(100));
    let bare = nanos(keys, |k| place.owner(k).map_or(0, |n| u64::from(n.get())));
    let topology = Topology::new(1, Arc::clone(&place), Arc::clone(Runtime::system().clock()));
    let mut reader = topology.reader();
    let mut ask = |k: &Key| reader.owner(k).map_or(0, |r| u64::from(r.idx.get()));
    let quiet = nanos(keys, &mut ask);
    let (stop, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let busy = std::thread::scope(|scope| {
        scope.spawn(|| write(&topology, &stop, &changes));
        // The median of many, each the fastest of its batches: one alone might fall between two epochs.
        let mut figures = Vec::new();
        while figures.len() < FIGURES || changes.load(Ordering::Acquire) < EPOCHS {
            figures.push(nanos(keys, &mut ask));
        }
        stop.store(true, Ordering::Release);
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    });
    let changes = changes.load(Ordering::Acquire);
    section.note(&format!(
        "A reader of a ring of 100 nodes: bare ring {bare:.1} ns, through a topology {quiet:.1} ns, while a writer on the \
         other core builds and publishes without a pause {busy:.1} ns ({changes} epochs meanwhile)."
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

/// Builds and publishes rings of 100 and 101 nodes in turn.
fn write(topology: &Topology<Ring>, stop: &AtomicBool, changes: &AtomicU64) {
    // The measuring thread is pinned; this one takes the other core.
    let mut set = rustix::thread::CpuSet::new();
    set.set(0);
    let _ = rustix::thread::sched_setaffinity(None, &set);
    for epoch in 2.. {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let next = Arc::new(ring(100 + epoch as usize % 2));
        if topology.observe(epoch, next).is_ok() {
            changes.fetch_add(1, Ordering::Release);
        }
    }
}
