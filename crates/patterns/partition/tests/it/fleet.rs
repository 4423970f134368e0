//! Fleets, keys and placements that the tests share.

use mainstay_partition::slots::SlotMap;
use mainstay_partition::{Jump, Maglev, Node, Place, Rendezvous, Ring, compat};

/// A kind of placement, from its nodes.
pub(crate) type Make = fn(Vec<Node>) -> Box<dyn Place>;

/// A generator whose seed is in the text of every failure (`SplitMix64`).
pub(crate) struct Seeded(pub(crate) u64);

impl Seeded {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn shuffle<T>(&mut self, list: &mut [T]) {
        for i in (1..list.len()).rev() {
            list.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

pub(crate) fn nodes(n: usize) -> Vec<Node> {
    (0..n).map(|i| Node::new(format!("node-{i:05}"))).collect()
}

/// Weights 1 to 4 and three zones.
pub(crate) fn mixed(n: usize) -> Vec<Node> {
    let weighed = |i: usize| Node::new(format!("node-{i:05}")).weight(i as u32 % 4 + 1);
    (0..n).map(|i| weighed(i).zone(["east", "north", "west"][i % 3])).collect()
}

pub(crate) fn key(i: usize) -> Vec<u8> {
    format!("user:{i}:profile").into_bytes()
}

pub(crate) fn ring(nodes: Vec<Node>) -> Ring {
    Ring::builder().nodes(nodes).build().unwrap()
}

pub(crate) fn rendezvous(nodes: Vec<Node>) -> Rendezvous {
    Rendezvous::builder().nodes(nodes).build().unwrap()
}

pub(crate) fn maglev(nodes: Vec<Node>) -> Maglev {
    Maglev::builder().nodes(nodes).build().unwrap()
}

/// Slots dealt round over the nodes, `rf` replicas each.
pub(crate) fn slots(nodes: Vec<Node>, rf: usize) -> SlotMap {
    let mut ids: Vec<_> = nodes.iter().map(|n| n.id.clone()).collect();
    ids.sort();
    let deal = |slot: usize| (0..rf.min(ids.len())).map(|r| ids[(slot + r) % ids.len()].clone()).collect();
    SlotMap::builder(1).replicas(deal).nodes(nodes).build().unwrap()
}

/// Every kind of placement over the same nodes, by name.
pub(crate) fn every(nodes: &[Node]) -> Vec<(&'static str, Box<dyn Place>)> {
    let list = || nodes.to_vec();
    let envoy = nodes.iter().fold(compat::envoy_maglev(65_537), |b, n| b.host(n.id.as_str(), n.weight));
    let nginx = nodes.iter().fold(compat::nginx(), |b, n| b.server(n.id.as_str(), n.weight));
    let haproxy = nodes.iter().fold(compat::haproxy(), |b, n| b.server(n.id.as_str(), n.weight));
    let unweighted = list().into_iter().map(|n| n.weight(1));
    vec![
        ("ring", Box::new(ring(list()))),
        ("rendezvous", Box::new(rendezvous(list()))),
        ("zoned", Box::new(Rendezvous::builder().nodes(list()).by_zone().build().unwrap())),
        ("maglev", Box::new(maglev(list()))),
        ("jump", Box::new(Jump::builder().nodes(unweighted).build().unwrap())),
        ("slots", Box::new(slots(list(), nodes.len()))),
        ("envoy maglev", Box::new(envoy.build().unwrap())),
        ("nginx", Box::new(nginx.build().unwrap())),
        ("haproxy", Box::new(haproxy.build().unwrap())),
    ]
}

/// Names of owners instead of indexes, which mean nothing across placements.
pub(crate) fn owner_name(place: &dyn Place, key: &[u8]) -> Option<String> {
    place.owner(key).map(|i| place.nodes()[i].id.to_string())
}

pub(crate) fn owner_names(place: &dyn Place, key: &[u8]) -> Vec<String> {
    place.owners(key).map(|i| place.nodes()[i].id.to_string()).collect()
}
