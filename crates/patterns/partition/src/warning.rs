//! What is allowed and probably not meant.

use std::fmt;

use crate::node::NodeIdx;

/// A setting that works and will disappoint.
///
/// Builders refuse what cannot work; this is what works and is seldom meant. Log it where the placement is built.
///
/// ```
/// use mainstay_partition::{Node, Ring};
///
/// let ring = Ring::builder().points(4).nodes(["a", "b"].map(Node::new)).build()?;
/// let texts: Vec<String> = ring.warnings().iter().map(ToString::to_string).collect();
/// assert_eq!(texts[0], "node number 0 has 4 points: expect its share to be off by 50%");
/// # Ok::<(), mainstay_partition::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// A node has so few points that its share may be far from its weight.
    FewPoints {
        /// The node.
        node: NodeIdx,
        /// Its points.
        points: u64,
    },
    /// Two nodes have the same 32 bits of name hash, so the second one owns nothing. Take another seed.
    SameScores {
        /// The node that gets the keys of both.
        node: NodeIdx,
        /// The node that gets none.
        shadowed: NodeIdx,
    },
    /// A table has less than 100 entries per node, so shares deviate by more than 1%.
    SmallTable {
        /// Entries.
        size: usize,
        /// Nodes.
        nodes: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FewPoints { node, points } => write!(
                f,
                "node number {} has {points} points: expect its share to be off by {:.0}%",
                node.get(),
                100.0 / (*points as f64).sqrt()
            ),
            Self::SameScores { node, shadowed } => write!(
                f,
                "node number {} owns nothing: its name hashes like that of number {}; take another seed",
                shadowed.get(),
                node.get()
            ),
            Self::SmallTable { size, nodes } => {
                write!(f, "a table of {size} for {nodes} nodes: shares deviate by more than 1%")
            }
        }
    }
}
