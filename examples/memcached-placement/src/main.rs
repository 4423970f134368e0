//! A fleet of memcached servers that Python or PHP clients on libmemcached use already: a Rust client joins and finds
//! every entry where they put it.

use anyhow::ensure;
use mainstay::partition::compat::{CompatRing, KetamaMode, ketama};
use mainstay::partition::{ConfigError, Place, Ring};

/// The servers as the other clients' configuration lists them.
const SERVERS: [(&str, u16, u32); 3] = [("a", 11211, 1), ("b.example", 11212, 1), ("10.0.0.3", 11211, 1)];

/// Owners of `key-0`, `key-1`, ... as libmemcached 1.1 answers with `MEMCACHED_BEHAVIOR_KETAMA_WEIGHTED`; keys 3 and 10
/// are other ones there and left out.
const RECORDED: [Option<u32>; 12] =
    [Some(1), Some(0), Some(1), None, Some(0), Some(1), Some(0), Some(2), Some(1), Some(2), None, Some(0)];

fn client(mode: KetamaMode, weight: u32) -> Result<CompatRing, ConfigError> {
    let add = |builder: mainstay::partition::compat::KetamaBuilder, (host, port, _): &(&str, u16, u32)| {
        builder.server(*host, *port, if *host == "a" { weight } else { 1 })
    };
    SERVERS.iter().fold(ketama(mode), add).build()
}

fn main() -> anyhow::Result<()> {
    let ring = client(KetamaMode::Weighted, 1)?;
    for (i, recorded) in RECORDED.iter().enumerate() {
        let owner = ring.owner(format!("key-{i}").as_bytes()).map(|node| node.get());
        ensure!(recorded.is_none() || owner == *recorded, "key-{i} lies elsewhere for libmemcached");
    }

    // In the plain mode one weight above 1 switches the whole ring. libmemcached does so silently; here it is said.
    let (plain, switched) = (client(KetamaMode::Plain, 1)?, client(KetamaMode::Plain, 2)?);
    ensure!(!plain.reweighted() && switched.reweighted());
    let key = |i: usize| format!("key-{i}").into_bytes();
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
    println!("agreed with libmemcached; its plain mode would move {moved} of 1000 keys for one weight");
    Ok(())
}
