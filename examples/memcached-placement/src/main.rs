//! A fleet of memcached servers that Python or PHP clients on libmemcached use already: a Rust client joins and finds
//! every entry where they put it.

use anyhow::ensure;
use mainstay::partition::compat::{CompatRing, KetamaMode, ketama};
use mainstay::partition::{ConfigError, Place, Ring};

/// The servers as the other clients' configuration lists them.
const SERVERS: [(&str, u16, u32); 3] = [("a", 11211, 1), ("b.example", 11212, 1), ("10.0.0.3", 11211, 1)];

fn client(mode: KetamaMode, weight: u32) -> Result<CompatRing, ConfigError> {
    let add = |builder: mainstay::partition::compat::KetamaBuilder, (host, port, _): &(&str, u16, u32)| {
        builder.server(*host, *port, if *host == "a" { weight } else { 1 })
    };
    SERVERS.iter().fold(ketama(mode), add).build()
}

fn main() -> anyhow::Result<()> {
    // Any order of the servers gives the same owners; that they are libmemcached's is tested in the library, on
    // what libmemcached answered.
    let (ring, key) = (client(KetamaMode::Weighted, 1)?, |i: usize| format!("key-{i}").into_bytes());
    let host =
        |owner: Option<mainstay::partition::NodeIdx>| owner.map(|n| ring.nodes()[n].id.as_str().to_owned());
    let mut held = std::collections::BTreeMap::new();
    for i in 0..1_000 {
        *held.entry(host(ring.owner(&key(i)))).or_insert(0) += 1;
    }
    ensure!(
        held.len() == SERVERS.len() && !held.contains_key(&None),
        "every server holds some keys: {held:?}"
    );

    // In the plain mode one weight above 1 switches the whole ring. libmemcached does so silently; here it is said.
    let (plain, switched) = (client(KetamaMode::Plain, 1)?, client(KetamaMode::Plain, 2)?);
    ensure!(!plain.reweighted() && switched.reweighted());
    let moved = (0..1_000).filter(|i| plain.owner(&key(*i)) != switched.owner(&key(*i))).count();
    ensure!(moved > 500, "the switch moves most keys");

    // Where nobody else decides, our own ring moves keys only to the server that became heavier.
    let own = |weight| {
        let node =
            |(host, port, _): (&str, u16, u32)| mainstay::partition::Node::new(format!("{host}:{port}"));
        let nodes = SERVERS.map(node).map(|n| if n.id.as_str() == "a:11211" { n.weight(weight) } else { n });
        Ring::builder().nodes(nodes).build()
    };
    let (before, after) = (own(1)?, own(2)?);
    for i in 0..1_000 {
        let (old, new) = (before.owner(&key(i)), after.owner(&key(i)));
        ensure!(old == new || new.is_some_and(|n| after.nodes()[n].id.as_str() == "a:11211"));
    }
    println!("every server holds its part; the plain mode would move {moved} of 1000 keys for one weight");
    Ok(())
}
