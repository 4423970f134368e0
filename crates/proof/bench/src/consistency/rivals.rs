//! The same with `crdts` and `uhlc`.

use std::hint::black_box;

use anyhow::Context as _;
use crdts::{CmRDT as _, CvRDT as _, MVReg, Map, Orswot, VClock};
use uhlc::HLC;

use mainstay_consistency::laws::{self, Profile};

use super::theirs::Theirs;
use super::{element, nanos, row};
use crate::report::Section;

fn vector(k: u64, add: u64) -> VClock<u64> {
    let mut vector = VClock::new();
    for node in 0..k {
        for _ in 0..=(node * 7 + add) % 13 {
            let dot = vector.inc(element(node));
            vector.apply(dot);
        }
    }
    vector
}

fn set_of(n: u64) -> Orswot<u64, u64> {
    let mut set = Orswot::new();
    for i in 0..n {
        let context = set.read_ctx().derive_add_ctx(1);
        let change = set.add(element(i), context);
        set.apply(change);
    }
    set
}

/// How soon the laws find that their map does not keep them.
#[allow(clippy::disallowed_methods, reason = "a clock behind a port would be part of what is measured")]
fn divergence(section: &mut Section) -> anyhow::Result<()> {
    let began = std::time::Instant::now();
    let broken = laws::check::<Theirs>(Profile::batch(1, 100_000)).err();
    let took = began.elapsed();
    let broken = broken.context("the laws found nothing in the map of crdts")?;
    section.note(&format!(
        "The laws find the divergence of the map of crdts 7.3.2 in {took:.1?}: {:?}.",
        broken.law
    ));
    section.gate(
        "divergence of the map of crdts found",
        "< 1 s",
        format!("{took:.1?}"),
        took.as_secs_f64() < 1.0,
    );
    Ok(())
}

pub(super) fn run(large: u64, rows: &mut Vec<Vec<String>>, section: &mut Section) -> anyhow::Result<()> {
    let hlc = HLC::default();
    let now = nanos(100_000, |_| {
        let _ = black_box(hlc.new_timestamp());
    });
    rows.push(row("uhlc, now", now));
    for k in [10, 100] {
        let (mine, theirs) = (vector(k, 1), vector(k, 5));
        let compare = nanos(10_000, |_| {
            let _ = black_box(black_box(&mine).partial_cmp(black_box(&theirs)));
        });
        // Its merge takes the other one by value: the copy is part of every use.
        let mut sum = mine.clone();
        let merge = nanos(10_000, |_| sum.merge(black_box(&theirs).clone()));
        rows.push(row(&format!("crdts, version vector, {k} actors, compare"), compare));
        rows.push(row(&format!("crdts, version vector, {k} actors, merge"), merge));
    }
    for n in [1_000, large / 10, large] {
        let set = set_of(n);
        let mut mine = set.clone();
        let copies: Vec<_> = (0..2).map(|_| set.clone()).collect();
        let mut next = copies.into_iter().cycle();
        let whole = nanos(2, |_| {
            if let Some(theirs) = next.next() {
                mine.merge(theirs);
            }
        });
        rows.push(row(&format!("crdts, set of {n}, merge of an equal one, per element"), whole / n as f64));
    }
    let mut map: Map<u64, MVReg<u64, u64>, u64> = Map::new();
    let n = large / 10;
    for i in 0..n {
        let context = map.read_ctx().derive_add_ctx(1);
        let change = map.update(element(i), context, |register, context| register.write(i, context));
        map.apply(change);
    }
    let mut mine = map.clone();
    let whole = nanos(1, |_| mine.merge(map.clone()));
    rows.push(row(
        &format!("crdts, map of {n} registers, merge of an equal one, per element"),
        whole / n as f64,
    ));
    divergence(section)
}
