//! Cassandra and Scylla: token rings under `Murmur3Partitioner`.

use super::ring::{CompatRing, KeyHash, Parts, token_point};
use crate::error::ConfigError;
use crate::node::{Node, Nodes};

/// A token ring: who owns a partition key first. Tokens come from the cluster (`system.local`,
/// `system.peers`), they are not computed.
///
/// ```
/// use mainstay_partition::{Place, compat::cassandra_murmur3};
///
/// let ring = cassandra_murmur3().node("10.0.0.1", [-3 << 60]).node("10.0.0.2", [3 << 60]).build()?;
/// assert_eq!(ring.owner(b"jim").map(|i| i.get()), Some(1));
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[must_use]
pub fn cassandra_murmur3() -> CassandraBuilder {
    CassandraBuilder { nodes: Vec::new() }
}

/// Settings of [`cassandra_murmur3`].
#[derive(Clone, Debug)]
pub struct CassandraBuilder {
    nodes: Vec<(String, Vec<i64>)>,
}

impl CassandraBuilder {
    /// Adds a node with its tokens.
    #[must_use]
    pub fn node(mut self, id: impl Into<String>, tokens: impl IntoIterator<Item = i64>) -> Self {
        self.nodes.push((id.into(), tokens.into_iter().collect()));
        self
    }

    /// Checks everything and sorts the tokens.
    ///
    /// # Errors
    /// A node or a token twice.
    pub fn build(mut self) -> Result<CompatRing, ConfigError> {
        self.nodes.sort();
        let nodes = Nodes::new(self.nodes.iter().map(|(id, _)| Node::new(id.as_str())))?;
        let owned =
            self.nodes.iter().zip(0_u32..).flat_map(|((_, tokens), at)| tokens.iter().map(move |t| (*t, at)));
        let mut tokens: Vec<(i64, u32)> = owned.collect();
        tokens.sort_unstable();
        if let Some(pair) = tokens.windows(2).find(|w| w[0].0 == w[1].0) {
            return Err(ConfigError::new("tokens", pair[0].0, "each token once"));
        }
        CompatRing::build(Parts {
            profile: "cassandra murmur3",
            version: 1,
            parameters: tokens.iter().flat_map(|(t, at)| [t.cast_unsigned(), u64::from(*at)]).collect(),
            nodes,
            points: tokens.iter().map(|(token, at)| (token_point(*token), *at)),
            key: KeyHash::Cassandra,
        })
    }
}
