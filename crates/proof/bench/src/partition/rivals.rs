//! Crates of others, as their documentation uses them.

use std::collections::hash_map::DefaultHasher;
use std::hash::{BuildHasherDefault, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::sync::Arc;

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

fn consistent_hash(
    n: usize,
) -> consistent_hash::StaticHashRing<'static, usize, (), consistent_hash::DefaultHash> {
    let nodes = (0..n).map(|i| consistent_hash::Node::new(i).quantity(150));
    consistent_hash::StaticHashRing::new(consistent_hash::DefaultHash, nodes)
}

fn libmemcached(n: usize) -> ketama::Ring {
    (0..n).fold(ketama::RingBuilder::new(), |ring, i| ring.node(&name(i), 1)).build()
}

fn lfchring(n: usize) -> lfchring::HashRing<String, impl lfchring::Hasher> {
    let nodes: Vec<_> = (0..n).map(|i| Arc::new(name(i))).collect();
    lfchring::HashRing::with_nodes(150, 1, &nodes).expect("the nodes have names of their own")
}

/// What stands before those that take a number for a key.
fn number(key: &Key) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// `SplitMix64`, as the paper of `JumpBack` hands it out.
struct Split(u64);

impl rand_core_05::RngCore for Split {
    fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        for some in bytes.chunks_mut(8) {
            let next = self.next_u64().to_le_bytes();
            some.copy_from_slice(&next[..some.len()]);
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand_core_05::Error> {
        self.fill_bytes(bytes);
        Ok(())
    }
}

pub(super) fn run(sizes: &[usize], keys: &[Key], section: &mut Section) {
    let mut rows = rings(sizes, keys);
    rows.extend(more_rings(sizes, keys));
    rows.extend(others(sizes, keys));
    rows.extend(jumps(sizes, keys));
    table(section, "rivals, ns", &rows);
    section.note("Not measured: consistent-hashing-rs 0.1.0, which names no licence.");
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

fn more_rings(sizes: &[usize], keys: &[Key]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, values| rows.push((name.to_owned(), values));
    add(
        "consistent_hash 0.1.4",
        per_size(sizes, |n| {
            let ring = consistent_hash(n);
            Some(nanos(keys, |k| ring.calc_candidates(k).next().map_or(0, |n| n.key as u64)))
        }),
    );
    add(
        "ketama 0.0.2",
        per_size(sizes, |n| {
            let ring = libmemcached(n);
            Some(nanos(keys, |k| ring.route(k) as u64))
        }),
    );
    add(
        "lfchring 0.1.3",
        per_size(sizes, |n| {
            let ring = lfchring(up_to(1_000, n)?);
            Some(nanos(keys, |k| ring.virtual_node_for_key(k).map_or(0, |v| v.replica_owners().len() as u64)))
        }),
    );
    add(
        "mpchash 2.0.10, 21 probes",
        per_size(sizes, |n| {
            let ring = mpchash::HashRing::new();
            (0..n).for_each(|i| ring.add(i));
            Some(nanos(keys, |k| ring.node(k).map_or(0, |token| *token.node() as u64)))
        }),
    );
    add(
        "hash-rings 1.1.0, multi-probe, 21 probes",
        per_size(sizes, |n| {
            let names: Vec<usize> = (0..n).collect();
            let mut ring = hash_rings::mpc::Ring::with_hasher(Fast::default(), 21);
            names.iter().for_each(|i| ring.insert_node(i));
            Some(nanos(keys, |k| *ring.get_node(k) as u64))
        }),
    );
    rows
}

fn jumps(sizes: &[usize], keys: &[Key]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut add = |name: &str, values| rows.push((name.to_owned(), values));
    add(
        "jumpch 2.0.0",
        per_size(sizes, |n| {
            let hasher = jumpch::JumpHasher::<DefaultHasher>::new(n as u32);
            Some(nanos(keys, |k| {
                let mut hasher = hasher.clone();
                k.hash(&mut hasher);
                hasher.finish()
            }))
        }),
    );
    add(
        "jump-consistent-hash 0.1.0",
        per_size(sizes, |n| Some(nanos(keys, |k| u64::from(jump_consistent_hash::hash(number(k), n))))),
    );
    add(
        "jump-back-hash 0.1.0",
        per_size(sizes, |n| {
            Some(nanos(keys, |k| u64::from(jump_back_hash::bucket(&mut Split(number(k)), n as u32))))
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
        "rendezvous_hash 0.3.0",
        per_size(sizes, |n| {
            let mut nodes = rendezvous_hash::RendezvousNodes::default();
            nodes.extend((0..up_to(1_000, n)?).map(rendezvous_hash::IdNode::new));
            Some(nanos(keys, |k| nodes.calc_candidates(k).next().map_or(0, |n| **n as u64)))
        }),
    );
    add(
        "hash-rings 1.1.0, maglev",
        per_size(sizes, |n| {
            let names: Vec<usize> = (0..up_to(100, n)?).collect();
            let table = hash_rings::maglev::Ring::with_capacity_hint(names.iter().collect(), 65_537);
            Some(nanos(keys, |k| *table.get_node(k) as u64))
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
        row("consistent_hash 0.1.4", per_size(sizes, |n| Some(millis(|| consistent_hash(n))))),
        row("ketama 0.0.2", per_size(sizes, |n| Some(millis(|| libmemcached(n))))),
        row("lfchring 0.1.3", per_size(sizes, |n| (n <= 1_000).then(|| millis(|| lfchring(n))))),
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
