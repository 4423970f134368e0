//! What is ours.

use std::hint::black_box;

use mainstay_partition::slots::SlotMap;
use mainstay_partition::{Jump, JumpKind, Maglev, Node, Place, Rendezvous, Ring};

use super::measure::{Key, fresh, latency, millis, nanos};
use super::{Row, name, per_size, table};
use crate::report::Section;

fn nodes(n: usize) -> Vec<Node> {
    (0..n).map(|i| Node::new(name(i))).collect()
}

pub(super) fn ring(n: usize) -> Ring {
    Ring::builder().textbook().nodes(nodes(n)).build().expect("a fleet without faults")
}

fn rendezvous(n: usize, weighted: bool) -> Rendezvous {
    let weigh = |(i, node): (usize, Node)| if weighted { node.weight(i as u32 % 4 + 1) } else { node };
    let nodes = nodes(n).into_iter().enumerate().map(weigh);
    Rendezvous::builder().nodes(nodes).build().expect("a fleet without faults")
}

fn maglev(n: usize) -> Maglev {
    Maglev::builder().nodes(nodes(n)).build().expect("a fleet without faults")
}

fn slots(n: usize) -> SlotMap {
    let names: Vec<_> = nodes(n).into_iter().map(|node| node.id).collect();
    let deal = |slot: usize| (0..3).map(|r| names[(slot + r) % n].clone()).collect();
    SlotMap::builder(1).nodes(nodes(n)).replicas(deal).build().expect("a map without faults")
}

fn jump(n: usize, kind: JumpKind) -> Jump {
    Jump::builder().shards(n as u32).kind(kind).build().expect("shards")
}

fn of(node: Option<mainstay_partition::NodeIdx>) -> u64 {
    node.map_or(0, |n| u64::from(n.get()))
}

pub(super) fn run(sizes: &[usize], keys: &[Key], section: &mut Section) {
    let row = |name: &str, values| -> Row { (name.to_owned(), values) };
    let found = per_size(sizes, |n| {
        let ring = ring(n);
        Some(nanos(keys, |k| of(ring.owner(k))))
    });
    let given = per_size(sizes, |n| {
        let ring = ring(n);
        let read = |k: &Key| k.first_chunk().map_or(0, |eight| u64::from_le_bytes(*eight));
        Some(nanos(keys, |k| of(ring.owner_of_hash(read(k)))))
    });
    let unseen = per_size(sizes, |n| {
        let ring = ring(n);
        Some(fresh(|k| of(ring.owner(k))))
    });
    let waited = per_size(sizes, |n| {
        let ring = ring(n);
        Some(latency(keys, |k| of(ring.owner(k))))
    });
    let three = per_size(sizes, |n| {
        let ring = ring(n);
        Some(nanos(keys, |k| ring.owners(k).take(3).map(|n| u64::from(n.get())).sum()))
    });
    let table_of_slots = per_size(sizes, |n| {
        let map = slots(n);
        Some(nanos(keys, |k| of(map.owner(k))))
    });
    let prime = per_size(sizes, |n| {
        let maglev = maglev(n);
        Some(nanos(keys, |k| of(maglev.owner(k))))
    });
    let scored = |weighted| {
        per_size(sizes, |n| {
            let place = rendezvous(n, weighted);
            Some(nanos(keys, |k| of(place.owner(k))))
        })
    };
    let jumped = |kind| {
        per_size(sizes, |n| {
            let place = jump(n, kind);
            Some(nanos(keys, |k| of(place.owner(k))))
        })
    };
    // One by one: two at once, as the compiler would, take longer.
    let floor = nanos(keys, |k| black_box(mainstay_partition::Hash::default().key(k)));
    let (equal, weighted) = (scored(false), scored(true));
    let rows = [
        row("XXH3-64 alone (the floor)", [Some(floor); 4]),
        row("ring", found),
        row("ring, hash given", given),
        row("ring, keys never seen before", unseen),
        row("ring, each key waits for the last answer", waited),
        row("ring, 3 distinct owners", three),
        row("slots, 2^14", table_of_slots),
        row("Maglev, 65537", prime),
        row("rendezvous, equal weights", equal),
        row("rendezvous, weights", weighted),
        row("JumpBack", jumped(JumpKind::Back)),
        row("Jump", jumped(JumpKind::Paper)),
    ];
    table(section, "ours, ns", &rows);
    gates(section, [found, three, table_of_slots, prime]);
    let small = nanos(keys, {
        let place = rendezvous(64, false);
        move |k| of(place.owner(k))
    });
    section.gate("rendezvous, 64 nodes", "<= 30 ns", format!("{small:.1} ns"), small <= 30.0);
    if let Some(ns) = weighted[1] {
        section.gate(
            "rendezvous, weights",
            "<= 10 ns per node",
            format!("{:.1} ns", ns / 100.0),
            ns / 100.0 <= 10.0,
        );
    }
    builds(sizes, section);
}

fn gates(section: &mut Section, [found, three, slots, maglev]: [[Option<f64>; 4]; 4]) {
    let limits = [("100", found[1], 3.0), ("1,000", found[2], 5.5), ("10,000", found[3], 12.0)];
    for (n, value, limit) in limits {
        if let Some(ns) = value {
            section.gate(
                &format!("ring lookup, {n} nodes"),
                &format!("<= {limit} ns"),
                format!("{ns:.1} ns"),
                ns <= limit,
            );
        }
    }
    for (what, values, limit) in [
        ("3 distinct owners, up to 1,000 nodes", &three[..3], 15.0),
        ("slots", &slots[..], 2.2),
        ("Maglev", &maglev[..], 2.2),
    ] {
        let worst = values.iter().flatten().copied().fold(0.0, f64::max);
        section.gate(what, &format!("<= {limit} ns"), format!("{worst:.1} ns"), worst <= limit);
    }
}

fn builds(sizes: &[usize], section: &mut Section) {
    let row = |name: &str, values| -> Row { (name.to_owned(), values) };
    let bytes = |n: usize| {
        let ring = ring(n);
        ring.table_bytes() as f64 / ring.points() as f64
    };
    let built = per_size(sizes, |n| Some(millis(|| black_box(ring(n)))));
    let rows = [
        row("ring: build, ms", built),
        row("ring: bytes per point", per_size(sizes, |n| Some(bytes(n)))),
        row(
            "ring: largest share / mean",
            per_size(sizes, |n| Some((ring(n).shares().max_over_mean() * 100.0).round() / 100.0)),
        ),
        row("Maglev: build, ms", per_size(sizes, |n| Some(millis(|| black_box(maglev(n)))))),
        row("Maglev: table, KiB", per_size(sizes, |n| Some(maglev(n).table_bytes() as f64 / 1024.0))),
    ];
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, values)| {
            let cell = |v: &Option<f64>| v.map_or_else(|| "-".to_owned(), |v| format!("{v:.2}"));
            std::iter::once(name.clone()).chain(values.iter().map(cell)).collect()
        })
        .collect();
    section.table(&["ours", "10 nodes", "100", "1,000", "10,000"], &cells);
    if let Some(ms) = built[2] {
        section.gate("ring build, 1,000 x 150", "<= 10 ms", format!("{ms:.1} ms"), ms <= 10.0);
        let per_point = bytes(1_000);
        section.gate("ring memory", "<= 20 bytes per point", format!("{per_point:.1}"), per_point <= 20.0);
    }
}
