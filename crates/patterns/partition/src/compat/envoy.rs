//! Envoy: `RING_HASH` and `MAGLEV`.

use std::fmt::Write as _;

use xxhash_rust::xxh64::xxh64;

use super::hashes::murmur2_64;
use super::ring::{CompatRing, KeyHash, Parts};
use crate::error::ConfigError;
use crate::fingerprint::Canon;
use crate::hash::Hash;
use crate::maglev::{Chain, Table, check_table};
use crate::node::{Node, NodeIdx, Nodes};
use crate::owners::Owners;
use crate::place::{Place, Shares, sealed};
use crate::rendezvous::Scores;
use crate::source::Source;

/// Envoy's bound on `maximum_ring_size`.
const MAX_RING: u64 = 8_388_608;
/// Envoy's bound on `table_size`.
const MAX_MAGLEV: u32 = 5_000_011;

/// Joins the hashes of several `hash_policy` entries, in their order. Start with the first hash.
///
/// ```
/// use mainstay_partition::compat::envoy_combine;
///
/// assert_eq!(envoy_combine(1 << 63, 0), 1);
/// ```
#[must_use]
pub fn envoy_combine(hash: u64, next: u64) -> u64 {
    hash.rotate_left(1) ^ next
}

/// Envoy's `RING_HASH`. `minimum` and `maximum` are the ring sizes of its configuration (1024 and 8388608).
///
/// The *order* of hosts matters here when weights differ: point counts are running sums of f64.
///
/// A host gets points in proportion to its weight, scaled so that the smallest weight comes out whole; three equal hosts
/// get 1026 points from a minimum of 1024, not 1024.
///
/// ```
/// use mainstay_partition::{Place, compat};
///
/// let ring = compat::envoy_ring(1024, 8_388_608)
///     .host("10.0.0.1:80", 1)
///     .host("10.0.0.2:80", 1)
///     .host("10.0.0.3:80", 1)
///     .build()?;
/// assert_eq!(ring.points(), 1026);
/// assert!(ring.owner(b"session-17").is_some());
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[must_use]
pub fn envoy_ring(minimum: u64, maximum: u64) -> EnvoyRingBuilder {
    EnvoyRingBuilder { minimum, maximum, murmur: false, hosts: Vec::new() }
}

/// Settings of [`envoy_ring`].
#[derive(Clone, Debug)]
pub struct EnvoyRingBuilder {
    minimum: u64,
    maximum: u64,
    murmur: bool,
    hosts: Vec<Node>,
}

impl EnvoyRingBuilder {
    /// Adds a host by what Envoy hashes of it: `ip:port`, or the host name with `use_hostname_for_hashing`.
    #[must_use]
    pub fn host(mut self, key: impl Into<String>, weight: u32) -> Self {
        self.hosts.push(Node::new(key.into()).weight(weight));
        self
    }

    /// Points by `MURMUR_HASH_2`. Requests are hashed by XXH64 all the same.
    #[must_use]
    pub fn murmur2(mut self) -> Self {
        self.murmur = true;
        self
    }

    /// Checks everything and sorts the points.
    ///
    /// # Errors
    /// A host twice, a weight of 0, sizes out of 1 to 8388608 or in the wrong order.
    pub fn build(self) -> Result<CompatRing, ConfigError> {
        if self.minimum == 0 || self.minimum > self.maximum || self.maximum > MAX_RING {
            let value = format!("{} to {}", self.minimum, self.maximum);
            let allowed = format!("1 to {MAX_RING}, the smaller first");
            return Err(ConfigError::new("ring_size", value, allowed));
        }
        let nodes = Nodes::numbered(self.hosts)?;
        let weights = normalized(&nodes)?;
        let mut points = Vec::new();
        if let Some(smallest) = weights.iter().copied().reduce(f64::min) {
            let scale = ((smallest * self.minimum as f64).ceil() / smallest).min(self.maximum as f64);
            let (mut current, mut target) = (0.0, 0.0);
            let mut name = String::new();
            for ((weight, node), at) in weights.iter().zip(nodes.as_slice()).zip(0_u32..) {
                target += scale * weight;
                let mut i = 0_u64;
                while current < target {
                    name.clear();
                    // Writing to a string cannot fail.
                    let _ = write!(name, "{}_{i}", node.id);
                    let hash =
                        if self.murmur { murmur2_64(name.as_bytes()) } else { xxh64(name.as_bytes(), 0) };
                    points.push((hash, at));
                    i += 1;
                    current += 1.0;
                }
            }
        }
        CompatRing::build(Parts {
            profile: "envoy ring_hash",
            version: 1,
            parameters: vec![self.minimum, self.maximum, u64::from(self.murmur)],
            nodes,
            points: points.iter().copied(),
            key: KeyHash::Xxh64,
        })
    }
}

/// Weights as parts of one, in f64 as Envoy computes them.
fn normalized(nodes: &Nodes) -> Result<Vec<f64>, ConfigError> {
    if let Some(node) = nodes.as_slice().iter().find(|n| n.weight == 0) {
        let value = format!("0 of {}", node.id);
        return Err(ConfigError::new("host.weight", value, "at least 1"));
    }
    let sum = nodes.total_weight() as f64;
    Ok(nodes.as_slice().iter().map(|n| f64::from(n.weight) * 1.0 / sum).collect())
}

/// Envoy's `MAGLEV` with a table of `size` entries, a prime up to 5000011 (65537 unless configured).
///
/// ```
/// use mainstay_partition::{Place, compat::envoy_maglev};
///
/// let table = envoy_maglev(65_537).host("10.0.0.1:80", 1).host("10.0.0.2:80", 3).build()?;
/// let heavy = table.nodes().find("10.0.0.2:80").unwrap();
/// assert!((table.shares().of(heavy) - 0.75).abs() < 0.001);
/// let even = envoy_maglev(65_536).host("10.0.0.1:80", 1).build().unwrap_err();
/// assert_eq!(even.field(), "table");
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[must_use]
pub fn envoy_maglev(size: u32) -> EnvoyMaglevBuilder {
    EnvoyMaglevBuilder { size, hosts: Vec::new() }
}

/// Settings of [`envoy_maglev`].
#[derive(Clone, Debug)]
pub struct EnvoyMaglevBuilder {
    size: u32,
    hosts: Vec<Node>,
}

impl EnvoyMaglevBuilder {
    /// Adds a host by what Envoy hashes of it; see [`EnvoyRingBuilder::host`]. The order does not matter.
    #[must_use]
    pub fn host(mut self, key: impl Into<String>, weight: u32) -> Self {
        self.hosts.push(Node::new(key.into()).weight(weight));
        self
    }

    /// Checks everything and fills the table.
    ///
    /// # Errors
    /// A host twice, a weight of 0, a table that is not prime or too small or too large.
    pub fn build(self) -> Result<EnvoyMaglev, ConfigError> {
        let nodes = Nodes::new(self.hosts)?;
        check_table(self.size, nodes.len())?;
        if self.size > MAX_MAGLEV {
            let allowed = format!("at most {MAX_MAGLEV}");
            return Err(ConfigError::new("table", self.size, allowed));
        }
        let weights = normalized(&nodes)?;
        let keys = nodes.as_slice().iter().map(|n| n.id.as_str().as_bytes());
        let weighed: Vec<(&[u8], f64)> = keys.zip(weights).collect();
        let table = Table::fill(if weighed.is_empty() { 0 } else { self.size }, &weighed);
        let hash = Hash::default();
        let named = nodes.iter().map(|(i, n)| (i, hash.node(n.id.as_str()), u64::from(n.weight)));
        let next = Scores::new(named);
        Ok(EnvoyMaglev { nodes, table, next })
    }
}

/// Envoy's `MAGLEV` table. The owner is Envoy's; the owners after it are ours, because Envoy's retries may hit
/// the same host again.
#[derive(Clone, Debug)]
pub struct EnvoyMaglev {
    nodes: Nodes,
    table: Table,
    next: Scores,
}

impl sealed::Sealed for EnvoyMaglev {}

impl Place for EnvoyMaglev {
    fn nodes(&self) -> &Nodes {
        &self.nodes
    }

    #[inline]
    fn hash_of(&self, key: &[u8]) -> u64 {
        xxh64(key, 0)
    }

    #[inline]
    fn owner_of_hash(&self, hash: u64) -> Option<NodeIdx> {
        let at = hash.checked_rem(self.table.len() as u64)?;
        self.table.get(at as usize).map(NodeIdx::new)
    }

    fn owners_of_hash(&self, hash: u64) -> Owners<'_> {
        let first = self.owner_of_hash(hash);
        Owners::new(&self.nodes, Source::Chain(Chain::new(first, self.next.walk(hash))))
    }

    fn shares(&self) -> Shares {
        Shares::new(self.table.counts(self.nodes.len()), &self.nodes)
    }

    fn fingerprint(&self) -> u128 {
        let mut canon = Canon::profile("envoy maglev", 1);
        canon.number(self.table.len() as u64);
        canon.nodes(&self.nodes);
        canon.finish()
    }
}
