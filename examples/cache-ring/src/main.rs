//! A cache client over a ring: every entry on two nodes in two zones, a node that dies and returns, and a key that
//! turns hot.

use std::collections::HashMap;

use anyhow::ensure;
use mainstay::partition::{Bounded, Load, Node, NodeIdx, Ring, Spread};

/// The fleet as a client sees it: who is up, and what each node holds.
struct Fleet {
    ring: Ring,
    down: Option<NodeIdx>,
    stored: HashMap<NodeIdx, HashMap<String, String>>,
}

impl Fleet {
    fn new() -> anyhow::Result<Self> {
        let node = |i: usize| Node::new(format!("cache-{i}")).zone(["north", "south"][i % 2]);
        let ring = Ring::builder().nodes((0..8).map(node)).build()?;
        Ok(Self { ring, down: None, stored: HashMap::new() })
    }

    /// Two live nodes in two zones, the owner first.
    fn homes(&self, key: &str) -> anyhow::Result<[NodeIdx; 2]> {
        let up = |node| Some(node) != self.down;
        let two = self.ring.owners(key.as_bytes()).spread(Spread::Hard { min: 2 }).healthy(up).pick(2)?;
        Ok([two[0], two[1]])
    }

    fn put(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        for home in self.homes(key)? {
            self.stored.entry(home).or_default().insert(key.to_owned(), value.to_owned());
        }
        Ok(())
    }

    fn get(&self, key: &str) -> anyhow::Result<Option<&str>> {
        let homes = self.homes(key)?;
        Ok(homes.iter().find_map(|home| self.stored.get(home)?.get(key).map(String::as_str)))
    }
}

fn main() -> anyhow::Result<()> {
    let mut fleet = Fleet::new()?;
    let keys: Vec<String> = (0..1_000).map(|i| format!("session:{i}")).collect();
    for key in &keys {
        fleet.put(key, "alive")?;
    }

    // A node dies. Its keys are read from their second home; nobody else's move.
    let before: Vec<_> = keys.iter().map(|key| fleet.homes(key)).collect::<anyhow::Result<_>>()?;
    let dead = fleet.homes("session:0")?[0];
    fleet.down = Some(dead);
    for (key, homes) in keys.iter().zip(&before) {
        ensure!(fleet.get(key)? == Some("alive"), "{key} was lost with one node");
        ensure!(homes[0] == dead || fleet.homes(key)?[0] == homes[0], "{key} moved without need");
    }

    // It returns, and every key is where it was.
    fleet.down = None;
    for (key, homes) in keys.iter().zip(&before) {
        ensure!(fleet.homes(key)? == *homes);
    }

    // One key turns hot. With a bound its calls spill to its next owners.
    let bounded = Bounded::new(fleet.ring, Load::default())?;
    let calls: Vec<_> = (0..200).map(|_| bounded.acquire(b"session:0")).collect::<Result<_, _>>()?;
    let busiest = bounded.nodes().iter().map(|(node, _)| bounded.in_flight(node)).max().unwrap_or(0);
    ensure!(busiest <= 32, "200 calls on 8 nodes, {busiest} on one");
    drop(calls);
    ensure!(bounded.total_in_flight() == 0);
    println!(
        "a node died and returned without a lost or displaced key; the busiest of 8 nodes had {busiest} of 200 calls"
    );
    Ok(())
}
