//! The calculator: builds what would be built and counts what would move.

use std::fmt;

use crate::error::{ConfigError, Error};
use crate::hash::mix64;
use crate::jump::{Jump, JumpKind};
use crate::maglev::Maglev;
use crate::node::{Node, NodeId, NodeIdx, Nodes};
use crate::place::Place;
use crate::rendezvous::Rendezvous;
use crate::ring::Ring;
use crate::slots::{Planner, SlotMap};

/// A placement with its parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// [`Jump`] with the `JumpBack` rule.
    JumpBack,
    /// [`Maglev`] with a table of this prime size.
    Maglev {
        /// Entries.
        table: u32,
    },
    /// [`Rendezvous`].
    Rendezvous,
    /// [`Rendezvous`] over zones, then nodes.
    RendezvousByZone,
    /// [`Ring`] with so many points per unit of weight.
    Ring {
        /// Points.
        points: u32,
    },
    /// [`SlotMap`] under the planner.
    Slots {
        /// Slots.
        slots: usize,
    },
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::JumpBack => f.write_str("jumpback"),
            Self::Maglev { table } => write!(f, "maglev, table {table}"),
            Self::Rendezvous => f.write_str("rendezvous"),
            Self::RendezvousByZone => f.write_str("rendezvous by zone"),
            Self::Ring { points } => write!(f, "ring, {points} points"),
            Self::Slots { slots } => write!(f, "slots, {slots}"),
        }
    }
}

impl Choice {
    /// Builds it over these nodes; slots are filled by the planner.
    ///
    /// # Errors
    /// What the builder of the placement refuses.
    ///
    /// # Examples
    /// ```
    /// use mainstay_partition::{Node, advise::Choice};
    ///
    /// let nodes = ["a", "b", "c"].map(Node::new);
    /// let slots = Choice::Slots { slots: 16384 };
    /// let place = slots.build(&nodes)?;
    /// assert_eq!((slots.to_string().as_str(), place.nodes().len()), ("slots, 16384", 3));
    /// assert!(place.shares().max_over_mean() < 1.001);
    /// # Ok::<(), mainstay_partition::Error>(())
    /// ```
    pub fn build(&self, nodes: &[Node]) -> Result<Box<dyn Place>, Error> {
        let nodes = nodes.iter().cloned();
        Ok(match self {
            Self::JumpBack => Box::new(Jump::builder().nodes(nodes).kind(JumpKind::Back).build()?),
            Self::Maglev { table } => Box::new(Maglev::builder().nodes(nodes).table(*table).build()?),
            Self::Rendezvous => Box::new(Rendezvous::builder().nodes(nodes).build()?),
            Self::RendezvousByZone => Box::new(Rendezvous::builder().nodes(nodes).by_zone().build()?),
            Self::Ring { points } => Box::new(Ring::builder().nodes(nodes).points(*points).build()?),
            Self::Slots { slots } => Box::new(fresh(*slots, nodes)?),
        })
    }

    /// Builds what follows `before` when the fleet becomes `nodes`.
    fn change(&self, before: &[Node], nodes: &[Node]) -> Result<Box<dyn Place>, Error> {
        match self {
            Self::Slots { slots } => {
                let map = fresh(*slots, before.iter().cloned())?;
                Ok(Box::new(Planner::new(&map).target(nodes.iter().cloned()).solve()?.next().clone()))
            }
            _ => self.build(nodes),
        }
    }
}

fn fresh(slots: usize, nodes: impl Iterator<Item = Node>) -> Result<SlotMap, Error> {
    let empty = SlotMap::builder(0).slots(slots).build()?;
    Ok(Planner::new(&empty).target(nodes).solve()?.next().clone())
}

/// What a change of the fleet would do.
///
/// Read it in this order: `min_over_mean` and `max_over_mean` say which node starves and which fills first, `multiple()`
/// what the change costs beyond what it must, `needless` whether keys move between nodes that both stay.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Simulation {
    /// Share of every node before, sorted by id.
    pub before: Vec<(NodeId, f64)>,
    /// Share of every node after.
    pub after: Vec<(NodeId, f64)>,
    /// Largest share after, as a multiple of what the node's weight asks for.
    pub max_over_mean: f64,
    /// Smallest share after, likewise.
    pub min_over_mean: f64,
    /// The part of the keys whose owner changes.
    pub moved: f64,
    /// The part that must move, given the weights.
    pub ideal: f64,
    /// The part that moves between nodes of both fleets although the receiver's part did not grow.
    pub needless: f64,
    /// How many keys were looked up; shares are exact.
    pub keys: u64,
}

impl Simulation {
    /// Moved keys as a multiple of what must move; `None` when nothing must.
    #[must_use]
    pub fn multiple(&self) -> Option<f64> {
        (self.ideal > 0.0).then(|| self.moved / self.ideal)
    }
}

/// Most keys of a simulation: some seconds of work.
const MAX_KEYS: u64 = 100_000_000;

/// Builds the placement over both fleets and looks `keys` synthetic keys up in both. The same arguments give
/// the same answer.
///
/// # Errors
/// What the placement refuses; no keys, or more than 100 million.
///
/// ```
/// use mainstay_partition::{Node, advise::{Choice, simulate}};
///
/// let fleet = |n| (0..n).map(|i| Node::new(format!("n{i}"))).collect::<Vec<_>>();
/// let ring = simulate(&Choice::Ring { points: 160 }, &fleet(10), &fleet(11), 50_000)?;
/// assert!(ring.needless == 0.0 && ring.multiple().unwrap() < 1.4);
/// let maglev = simulate(&Choice::Maglev { table: 65537 }, &fleet(100), &fleet(101), 50_000)?;
/// assert!(maglev.multiple().unwrap() > 1.2);
/// # Ok::<(), mainstay_partition::Error>(())
/// ```
pub fn simulate(choice: &Choice, before: &[Node], after: &[Node], keys: u64) -> Result<Simulation, Error> {
    if !(1..=MAX_KEYS).contains(&keys) {
        let allowed = format!("1 to {MAX_KEYS}");
        return Err(ConfigError::new("keys", keys, allowed).into());
    }
    let (old, new) = (choice.build(before)?, choice.change(before, after)?);
    let number: Vec<Option<NodeIdx>> =
        old.nodes().as_slice().iter().map(|n| new.nodes().find(n.id.as_str())).collect();
    let (was, is) = (wanted(old.nodes()), wanted(new.nodes()));
    let mut grows = is.clone();
    for (at, idx) in number.iter().enumerate() {
        if let Some(idx) = idx {
            grows[idx.as_usize()] -= was[at];
        }
    }
    let ideal = grows.iter().filter(|g| **g > 0.0).sum();
    let (mut moved, mut needless) = (0_u64, 0_u64);
    for i in 0..keys {
        let key = mix64(i).to_le_bytes();
        let (a, b) =
            (old.owner(&key).and_then(|a| number[a.as_usize()].map(Ok).or(Some(Err(())))), new.owner(&key));
        let stays = matches!((a, b), (Some(Ok(a)), Some(b)) if a == b) || (a.is_none() && b.is_none());
        if stays {
            continue;
        }
        moved += 1;
        // Rounding of weights to shares is no growth.
        if let (Some(Ok(_)), Some(b)) = (a, b)
            && grows[b.as_usize()] <= 1e-12
        {
            needless += 1;
        }
    }
    let part = |n: u64| n as f64 / keys as f64;
    let shares = new.shares();
    Ok(Simulation {
        before: named(&*old),
        after: named(&*new),
        max_over_mean: shares.max_over_mean(),
        min_over_mean: shares.min_over_mean(),
        moved: part(moved),
        ideal,
        needless: part(needless),
        keys,
    })
}

/// The share that each node's weight asks for.
fn wanted(nodes: &Nodes) -> Vec<f64> {
    let all = nodes.total_weight() as f64;
    nodes.as_slice().iter().map(|n| if all > 0.0 { f64::from(n.weight) / all } else { 0.0 }).collect()
}

fn named(place: &dyn Place) -> Vec<(NodeId, f64)> {
    let shares = place.shares();
    place.nodes().iter().map(|(idx, n)| (n.id.clone(), shares.of(idx))).collect()
}
