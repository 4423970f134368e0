//! Crates of others, as their documentation uses them.

use std::collections::hash_map::DefaultHasher;
use std::hash::BuildHasherDefault;
use std::net::SocketAddr;

use super::measure::{Key, fresh, millis, nanos};
use super::{Row, name, per_size, table};
use crate::report::Section;

/// The hasher of those that want one and are not to be slowed down by a bad choice.
type Fast = BuildHasherDefault<DefaultHasher>;

fn address(i: usize) -> SocketAddr {
    SocketAddr::from(([10, (i >> 16) as u8, (i >> 8) as u8, i as u8], 80))
}

fn ketama(n: usize, version: pingora_ketama::Version) -> pingora_ketama::Continuum {
    let buckets: Vec<_> = (0..n).map(|i| pingora_ketama::Bucket::new(address(i), 1)).collect();
    pingora_ketama::Continuum::new_with_version(&buckets, version)
}

fn hashring(n: usize) -> hashring::HashRing<(usize, u32)> {
    let mut ring = hashring::HashRing::new();
    ring.batch_add((0..n).flat_map(|i| (0..150).map(move |v| (i, v))).collect());
    ring
}

#[derive(Clone)]
struct Server(String);

impl conhash::Node for Server {
    fn name(&self) -> String {
        self.0.clone()
    }
}

fn conhash(n: usize) -> conhash::ConsistentHash<Server> {
    let mut ring = conhash::ConsistentHash::new();
    (0..n).for_each(|i| ring.add(&Server(name(i)), 150));
    ring
}

fn consistent_hash_ring(n: usize) -> consistent_hash_ring::Ring<usize> {
    let nodes: Vec<usize> = (0..n).collect();
    consistent_hash_ring::RingBuilder::default().vnodes(150).nodes(&nodes).build()
}

pub(super) fn run(sizes: &[usize], keys: &[Key], section: &mut Section) {
    let mut rows = rings(sizes, keys);
    rows.extend(others(sizes, keys));
    table(section, "rivals, ns", &rows);
    builds(sizes, section);
}

/// Those whose tables take gigabytes or minutes to build are measured up to where they can be.
fn up_to(most: usize, n: usize) -> Option<usize> {
    (n <= most).then_some(n)
}

fn rings(sizes: &[usize], keys: &[Key]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, values| rows.push((name.to_owned(), values));
    add(
        "pingora-ketama 0.9.1, v1",
        per_size(sizes, |n| {
            let ring = ketama(n, pingora_ketama::Version::V1);
            Some(nanos(keys, |k| ring.node(k).map_or(0, |a| u64::from(a.port()))))
        }),
    );
    add(
        "pingora-ketama 0.9.1, v2",
        per_size(sizes, |n| {
            let ring = ketama(n, pingora_ketama::Version::V2 { point_multiple: 160 });
            Some(nanos(keys, |k| ring.node(k).map_or(0, |a| u64::from(a.port()))))
        }),
    );
    add(
        "pingora-ketama 0.9.1, v2, keys never seen before",
        per_size(sizes, |n| {
            let ring = ketama(n, pingora_ketama::Version::V2 { point_multiple: 160 });
            Some(fresh(|k| ring.node(k).map_or(0, |a| u64::from(a.port()))))
        }),
    );
    add(
        "hashring 0.3.6",
        per_size(sizes, |n| {
            let ring = hashring(n);
            Some(nanos(keys, |k| ring.get(k).map_or(0, |node| node.0 as u64)))
        }),
    );
    add(
        "hash-rings 1.1.0, ring",
        per_size(sizes, |n| {
            let names: Vec<usize> = (0..up_to(1_000, n)?).collect();
            let mut ring = hash_rings::consistent::Ring::with_hasher(Fast::default());
            names.iter().for_each(|i| ring.insert_node(i, 150));
            Some(nanos(keys, |k| *ring.get_node(k) as u64))
        }),
    );
    add(
        "consistent_hash_ring 0.8.0",
        per_size(sizes, |n| {
            let ring = consistent_hash_ring(up_to(100, n)?);
            Some(nanos(keys, |k| *ring.get(k) as u64))
        }),
    );
    add(
        "conhash 0.5.1",
        per_size(sizes, |n| {
            let ring = conhash(up_to(1_000, n)?);
            Some(nanos(keys, |k| ring.get(k).map_or(0, |s| s.0.len() as u64)))
        }),
    );
    rows
}

fn others(sizes: &[usize], keys: &[Key]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, values| rows.push((name.to_owned(), values));
    add(
        "hrw-hash 2.0.3",
        per_size(sizes, |n| {
            let nodes = hrw_hash::HrwNodes::new(0..up_to(1_000, n)? as u32);
            Some(nanos(keys, |k| nodes.sorted(k).next().map_or(0, |n| u64::from(*n))))
        }),
    );
    add(
        "hash-rings 1.1.0, rendezvous",
        per_size(sizes, |n| {
            let names: Vec<usize> = (0..up_to(1_000, n)?).collect();
            let mut ring = hash_rings::rendezvous::Ring::with_hasher(Fast::default());
            names.iter().for_each(|i| ring.insert_node(i, 1));
            Some(nanos(keys, |k| *ring.get_node(k) as u64))
        }),
    );
    add(
        "maglev 0.2.1",
        per_size(sizes, |n| {
            use maglev::ConsistentHasher as _;
            let table = maglev::Maglev::<_, Fast>::with_capacity_and_hasher(
                0..up_to(100, n)?,
                65_537,
                Fast::default(),
            );
            Some(nanos(keys, |k| table.get(k).map_or(0, |n| *n as u64)))
        }),
    );
    add(
        "maglev-hash 0.1.0",
        per_size(sizes, |n| {
            let table = maglev_hash::MaglevTable::with_capacity((0..n).collect(), 65_537);
            Some(nanos(keys, |k| table.get(k).map_or(0, |n| *n as u64)))
        }),
    );
    add(
        "jumphash 0.1.9",
        per_size(sizes, |n| {
            let hasher = jumphash::JumpHasher::new();
            Some(nanos(keys, |k| u64::from(hasher.slot(k, n as u32))))
        }),
    );
    add(
        "anchorhash 0.2.2",
        per_size(sizes, |n| {
            let anchor =
                anchorhash::Builder::with_hasher(Fast::default()).with_resources(0..n).build::<Key>(n as u16);
            Some(nanos(keys, |k| anchor.get_resource(*k).map_or(0, |n| *n as u64)))
        }),
    );
    rows
}

fn builds(sizes: &[usize], section: &mut Section) {
    let row = |name: &str, values| -> Row { (name.to_owned(), values) };
    let rows = [
        row(
            "pingora-ketama 0.9.1, v1",
            per_size(sizes, |n| Some(millis(|| ketama(n, pingora_ketama::Version::V1)))),
        ),
        row("hashring 0.3.6", per_size(sizes, |n| Some(millis(|| hashring(n))))),
        row("conhash 0.5.1", per_size(sizes, |n| (n <= 1_000).then(|| millis(|| conhash(n))))),
        row(
            "maglev-hash 0.1.0",
            per_size(sizes, |n| {
                Some(millis(|| maglev_hash::MaglevTable::with_capacity((0..n).collect::<Vec<_>>(), 65_537)))
            }),
        ),
    ];
    table(section, "rivals: build, ms", &rows);
}
