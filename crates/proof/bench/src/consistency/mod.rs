//! Clocks, vectors, sets: ours and the rivals, the same data and the same loop.

mod fleet;
#[cfg(feature = "rivals")]
mod rivals;
mod sessions;
#[cfg(feature = "rivals")]
#[path = "../../../../patterns/consistency/tests/it/theirs.rs"]
mod theirs;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use mainstay_clock::SystemClock;
use mainstay_consistency::crdt::{AwMap, AwSet, DotFun};
use mainstay_consistency::hlc::{Hlc, Source};
use mainstay_consistency::version::VersionVector;
use mainstay_consistency::wire::{encode, encode_for};
use mainstay_consistency::{Actor, ActorId, Join as _};

use crate::report::Section;
use crate::{Options, Suite};

pub(crate) const SUITE: Suite = Suite {
    name: "consistency",
    about: "Nanoseconds, the fastest of nine batches; sets of u64 in random order. One thread.",
    run,
};

/// Batches of which the fastest counts.
const BATCHES: usize = 9;

/// Nanoseconds of one call of `once`, the fastest batch of `count` calls.
#[allow(clippy::disallowed_methods, reason = "a clock behind a port would be part of what is measured")]
fn nanos(count: usize, mut once: impl FnMut(usize)) -> f64 {
    let mut best = f64::INFINITY;
    for _ in 0..BATCHES {
        let began = Instant::now();
        for i in 0..count {
            once(i);
        }
        best = best.min(began.elapsed().as_nanos() as f64 / count as f64);
    }
    best
}

fn element(i: u64) -> u64 {
    i.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn set_of(n: u64) -> anyhow::Result<(AwSet<u64>, Actor)> {
    let (mut set, mut actor) = (AwSet::new(), Actor::new(ActorId::new(1, 1, 0)));
    for i in 0..n {
        set.add(&mut actor, element(i))?;
    }
    Ok((set, actor))
}

fn vector(k: u64, add: u64) -> VersionVector {
    let mut vector = VersionVector::new();
    for node in 0..k {
        for _ in 0..=(node * 7 + add) % 13 {
            vector.advance(ActorId::new(element(node), 1, 0));
        }
    }
    vector
}

fn row(name: &str, value: f64) -> Vec<String> {
    vec![name.to_owned(), if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }]
}

fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let large: u64 = if options.smoke { 2_000 } else { 100_000 };
    let mut rows = Vec::new();
    clocks(&mut rows, section)?;
    vectors(&mut rows, section);
    sets(large, &mut rows, section)?;
    maps(large / 10, &mut rows)?;
    sessions::run(&mut rows, section)?;
    #[cfg(feature = "rivals")]
    rivals::run(large, &mut rows, section)?;
    #[cfg(not(feature = "rivals"))]
    section.note("Rivals: not measured, built without feature `rivals`.");
    section.table(&["what", "ns"], &rows);
    wire(section)?;
    fleet::run(options.smoke, section)
}

fn clocks(rows: &mut Vec<Vec<String>>, section: &mut Section) -> anyhow::Result<()> {
    let clock = Arc::new(SystemClock::new());
    for (source, name, goal) in [(Source::Cached, "cached clock", 5.0), (Source::Wall, "wall clock", 30.0)] {
        let hlc = Hlc::builder(clock.clone()).source(source).build()?;
        let now = nanos(100_000, |_| {
            let _ = black_box(hlc.now());
        });
        rows.push(row(&format!("HLC now, {name}"), now));
        section.gate(&format!("HLC now, {name}"), &format!("<= {goal} ns"), format!("{now:.1}"), now <= goal);
        let stamp = hlc.now()?;
        let observe = nanos(100_000, |_| {
            let _ = black_box(hlc.observe(black_box(stamp)));
        });
        rows.push(row(&format!("HLC observe, {name}"), observe));
    }
    Ok(())
}

fn vectors(rows: &mut Vec<Vec<String>>, section: &mut Section) {
    for (k, goal) in [(10, 15.0), (100, 150.0)] {
        let (mut mine, theirs) = (vector(k, 1), vector(k, 5));
        let compare = nanos(100_000, |_| {
            let _ = black_box(black_box(&mine).compare(black_box(&theirs)));
        });
        let merge = nanos(100_000, |_| {
            let _ = black_box(mine.merge(black_box(&theirs)));
        });
        rows.push(row(&format!("version vector, {k} actors, compare"), compare));
        rows.push(row(&format!("version vector, {k} actors, merge"), merge));
        let found = format!("{merge:.1}");
        section.gate(
            &format!("version vector, {k} actors, merge"),
            &format!("<= {goal} ns"),
            found,
            merge <= goal,
        );
    }
}

fn sets(large: u64, rows: &mut Vec<Vec<String>>, section: &mut Section) -> anyhow::Result<()> {
    for n in [1_000, large / 10, large] {
        let (set, _) = set_of(n)?;
        let (mut mine, theirs) = (set.clone(), set);
        let whole = nanos(20, |_| {
            let _ = black_box(mine.join(black_box(&theirs)));
        });
        let each = whole / n as f64;
        rows.push(row(&format!("set of {n}, join of an equal one, per element"), each));
        section.gate(
            &format!("equal sets of {n}"),
            "<= 10 ns per element",
            format!("{each:.1}"),
            each <= 10.0,
        );
    }
    let (mut source, mut actor) = set_of(large)?;
    let mut target = source.clone();
    let count = 2_000;
    let mut deltas = Vec::new();
    for i in 0..count * BATCHES as u64 {
        deltas.push(source.add(&mut actor, element(large + i))?);
    }
    let mut next = deltas.iter();
    let change = nanos(count as usize, |_| {
        if let Some(delta) = next.next() {
            let _ = black_box(target.join(delta));
        }
    });
    rows.push(row(&format!("one change into {large}, join"), change));
    section.gate("one change into 100,000", "<= 1,000 ns", format!("{change:.0}"), change <= 1_000.0);
    let mut i = large * 2;
    let add = nanos(count as usize, |_| {
        i += 1;
        let _ = black_box(source.add(&mut actor, element(i)));
    });
    rows.push(row(&format!("add to a set of {large}, with its delta"), add));
    Ok(())
}

fn maps(n: u64, rows: &mut Vec<Vec<String>>) -> anyhow::Result<()> {
    let mut actor = Actor::new(ActorId::new(1, 1, 0));
    let mut map: AwMap<u64, DotFun<u64>> = AwMap::new();
    for i in 0..n {
        map.update(&mut actor, element(i), |register, mint| register.write_value(mint, i))?;
    }
    let (mut mine, theirs) = (map.clone(), map);
    let whole = nanos(20, |_| {
        let _ = black_box(mine.join(black_box(&theirs)));
    });
    rows.push(row(&format!("map of {n} registers, join of an equal one, per element"), whole / n as f64));
    Ok(())
}

fn wire(section: &mut Section) -> anyhow::Result<()> {
    let (mut set, mut actor) = set_of(10_000)?;
    let delta = set.add(&mut actor, 5)?;
    let one = encode_for(&delta, &[actor.id()]).len();
    let all = encode(&set).len() as f64 / 10_001.0;
    section.note(&format!(
        "On the wire: {one} bytes for one addition to a reader who knows its actor, {} to one who does not; {all:.1} bytes \
         per element of a whole set of random u64 (ten of them are the element). HLC stamp: 8 bytes.",
        encode(&delta).len()
    ));
    section.gate("one addition on the wire", "<= 16 bytes", one.to_string(), one <= 16);
    Ok(())
}
