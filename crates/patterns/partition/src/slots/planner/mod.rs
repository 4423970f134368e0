//! Planned changes of a slot map: provably few moves, in waves, checked before anything runs.

mod bound;
mod flow;
mod load;
mod plan;
mod quota;
mod rehearsal;
mod replicas;
mod roles;
mod sets;
mod waves;

use crate::error::{ConfigError, Error, ErrorKind};
use crate::node::{Node, NodeIdx, Nodes};
use crate::owners::Spread;
use crate::place::Place as _;
use crate::slots::SlotMap;

pub use plan::{Move, Note, Plan, Removal, RoleChange};
pub use rehearsal::Rehearsal;

/// Most replicas per slot: what [`crate::Owners`] keeps without an allocation.
pub const MAX_RF: usize = crate::owners::INLINE;

/// The problem: how many slots and replicas, over which nodes, in how many zones.
#[derive(Clone, Debug)]
struct Shape {
    slots: usize,
    rf: usize,
    /// Distinct zones per slot, 1 to `rf`.
    min_zones: usize,
    /// 0: holds nothing.
    weights: Vec<u32>,
    zone: Vec<u32>,
    zones: usize,
}

/// A list of nodes per slot.
#[derive(Clone, Debug)]
struct Lists {
    starts: Vec<usize>,
    items: Vec<u32>,
}

impl Lists {
    fn of_lists(lists: impl IntoIterator<Item = Vec<u32>>) -> Self {
        let mut all = Self { starts: vec![0], items: Vec::new() };
        for list in lists {
            all.items.extend(list);
            all.starts.push(all.items.len());
        }
        all
    }

    fn of(&self, slot: usize) -> &[u32] {
        &self.items[self.starts[slot]..self.starts[slot + 1]]
    }
}

/// Plans the way from one [`SlotMap`] to the next.
///
/// Goals, in strict order: (1) the rules: `rf` distinct nodes per slot, the zone rule, nothing on drained
/// nodes; (2) every node holds its exact weighted share, rounded up or down; (3) fewest replica moves; (4)
/// primaries even by weight; (5) fewest changes of the primary; (6) few bytes; (7) ties by id.
///
/// Guaranteed: (1) and (2) always, or an error; (3) is the optimum, and [`Plan::certified_bound`] proves it
/// without trusting the solver. The same input gives the same plan, in whatever order nodes are given.
/// Planning again from any state in between finishes the rest and undoes nothing, as long as target and map
/// are otherwise the same.
///
/// Not guaranteed: (4) to (6) are best *for the replica sets that (3) chose*, not over all sets with as few
/// moves; bytes are kept low by giving away light slots first. With [`Planner::load`], (2) and (3) become a
/// heuristic with a lower bound beside it, because fewest moves under a load bound is bin packing.
///
/// The method is a minimum-cost flow (Ford, Fulkerson: "Flows in Networks", 1962) over exact weighted
/// max-min fair shares.
///
/// ```
/// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
///
/// let empty = SlotMap::builder(1).build()?;
/// let three = Planner::new(&empty).target(["a", "b", "c"].map(Node::new)).solve()?.next().clone();
/// let seven = ["a", "b", "c", "d", "e", "f", "g"].map(Node::new);
/// let plan = Planner::new(&three).target(seven).solve()?;
/// assert_eq!((plan.moves().len(), plan.lower_bound()), (9361, 9361));
/// assert!(plan.is_minimal());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `target` | the nodes of the map | a repair of the map as it is |
/// | `rf` | 1 | more copies are a decision |
/// | `zones` | [`Spread::Any`] | zones are known only where someone names them |
/// | `bytes` | 0 per slot | then only moves count |
/// | `max_parallel` | 4 | copies per node and direction; more compete with live traffic |
/// | `tolerance` | 0.1 | with `load` only: closer than 10% moves much for little |
#[derive(Clone, Debug)]
pub struct Planner<'a> {
    map: &'a SlotMap,
    target: Option<Vec<Node>>,
    rf: usize,
    zones: Spread,
    bytes: Option<&'a [u64]>,
    load: Option<&'a [f64]>,
    tolerance: f64,
    budget: u64,
    pinned: Option<&'a [bool]>,
    max_parallel: u32,
}

impl<'a> Planner<'a> {
    /// A planner that starts from `map`.
    #[must_use]
    pub fn new(map: &'a SlotMap) -> Self {
        Self {
            map,
            target: None,
            rf: 1,
            zones: Spread::Any,
            bytes: None,
            load: None,
            tolerance: 0.1,
            budget: u64::MAX,
            pinned: None,
            max_parallel: 4,
        }
    }

    /// The fleet after the change. A node of weight 0 is drained: it ends up without replicas and copies
    /// what it has. A node that is not in the list counts as gone: others copy, as far as they can.
    ///
    /// ```
    /// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
    ///
    /// let empty = SlotMap::builder(1).build()?;
    /// let map = Planner::new(&empty).target(["a", "b", "c"].map(Node::new)).solve()?.next().clone();
    /// let drained = [Node::new("a"), Node::new("b"), Node::new("c").weight(0)];
    /// let plan = Planner::new(&map).target(drained).solve()?;
    /// assert_eq!(plan.moves().len(), 5461, "what c had, and nothing else");
    /// assert!(plan.moves().iter().all(|m| m.from == Some("c".into()) && m.source == Some("c".into())));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn target(mut self, nodes: impl IntoIterator<Item = Node>) -> Self {
        self.target = Some(nodes.into_iter().collect());
        self
    }

    /// Replicas per slot, 1 to [`MAX_RF`].
    #[must_use]
    pub fn rf(mut self, rf: usize) -> Self {
        self.rf = rf;
        self
    }

    /// How replicas are spread over zones.
    ///
    /// A hard rule that cannot be kept is an error, and one that forces a small zone to hold more than its weight asks for
    /// is named by [`Note::ForcedSkew`].
    ///
    /// ```
    /// use mainstay_partition::{ErrorKind, Node, Spread, slots::{Planner, SlotMap}};
    ///
    /// let empty = SlotMap::builder(1).build()?;
    /// let nodes = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")].map(|(id, z)| Node::new(id).zone(z));
    /// let planner = Planner::new(&empty).target(nodes).rf(2);
    /// let plan = planner.clone().zones(Spread::Hard { min: 2 }).solve()?;
    /// let map = plan.next();
    /// let zone = |node: &mainstay_partition::NodeIdx| node.get() / 2;
    /// assert!((0..map.slots()).all(|s| zone(&map.replicas(s)[0]) != zone(&map.replicas(s)[1])));
    /// let three = planner.rf(3).zones(Spread::Hard { min: 3 }).solve().unwrap_err();
    /// assert_eq!(three.kind(), ErrorKind::TooFewZones { have: 2, need: 3 });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn zones(mut self, zones: Spread) -> Self {
        self.zones = zones;
        self
    }

    /// Bytes per slot: what a move costs. Moves stay fewest; among the slots of a node, light ones go.
    ///
    /// ```
    /// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
    ///
    /// let empty = SlotMap::builder(1).build()?;
    /// let map = Planner::new(&empty).target(["a", "b"].map(Node::new)).solve()?.next().clone();
    /// let bytes: Vec<u64> = (0..map.slots() as u64).collect();
    /// let grown = ["a", "b", "c"].map(Node::new);
    /// let heavy = Planner::new(&map).target(grown.clone()).solve()?;
    /// let light = Planner::new(&map).target(grown).bytes(&bytes).solve()?;
    /// assert_eq!(light.moves().len(), heavy.moves().len());
    /// let mean = light.bytes() / light.moves().len() as u64;
    /// assert!(mean < 16_384 / 4, "the lighter third of each node went, not just any");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn bytes(mut self, bytes: &'a [u64]) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Load per slot in any unit: nodes then hold their share of the load, within the tolerance, instead of
    /// their share of the slots. Every replica counts the whole load of its slot.
    #[must_use]
    pub fn load(mut self, load: &'a [f64]) -> Self {
        self.load = Some(load);
        self
    }

    /// With [`Planner::load`]: how far above its share a node may stay, above 0 and at most 1.
    #[must_use]
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// With [`Planner::load`]: most replicas to move beyond what the rules demand.
    #[must_use]
    pub fn budget(mut self, moves: u64) -> Self {
        self.budget = moves;
        self
    }

    /// With [`Planner::load`]: slots that stay where the rules let them stay.
    #[must_use]
    pub fn pinned(mut self, slots: &'a [bool]) -> Self {
        self.pinned = Some(slots);
        self
    }

    /// Most copies that a node sends, and as many that it receives, at once.
    ///
    /// It bounds what a wave puts on a node's disk and network beside live traffic. More of it means fewer waves and a
    /// shorter time with data on its way:
    ///
    /// ```
    /// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
    ///
    /// let empty = SlotMap::builder(1).build()?;
    /// let map = Planner::new(&empty).target(["a", "b"].map(Node::new)).solve()?.next().clone();
    /// let planner = Planner::new(&map).target(["a", "b", "c"].map(Node::new));
    /// let waves = |copies| planner.clone().max_parallel(copies).solve().map(|plan| plan.waves());
    /// assert_eq!((waves(4)?, waves(64)?), (1366, 86));
    /// # Ok::<(), mainstay_partition::Error>(())
    /// ```
    #[must_use]
    pub fn max_parallel(mut self, copies: u32) -> Self {
        self.max_parallel = copies;
        self
    }

    /// Finds the plan. Nothing is changed: the plan is data, and [`Plan::rehearse`] is its dry run.
    ///
    /// # Errors
    /// - [`ErrorKind::Config`]: a duplicate id, zero total weight, `rf`, zones or `max_parallel` out of
    ///   range, `bytes` or `load` of another length than the slots, a load that is negative or no number;
    /// - [`ErrorKind::TooFewNodes`], [`ErrorKind::TooFewZones`]: the rules cannot be kept.
    pub fn solve(&self) -> Result<Plan, Error> {
        let nodes = match &self.target {
            Some(target) => Nodes::weighted(target.iter().cloned())?,
            None => self.map.nodes().clone(),
        };
        let shape = self.shape(&nodes)?;
        self.check()?;
        let now = Now::of(self.map, &nodes, &shape);
        let impossible =
            || Error::new(ErrorKind::Internal, "no assignment keeps rules that were found possible");
        let solved = sets::solve(&shape, &now.lists, self.bytes).ok_or_else(impossible)?;
        let balanced = self.load.map(|load| self.balance(load, &shape, &now.lists, &solved));
        plan::Draft {
            map: self.map,
            nodes,
            shape: &shape,
            now: &now,
            solved,
            balanced,
            bytes: self.bytes,
            max_parallel: self.max_parallel,
        }
        .plan()
    }

    fn shape(&self, nodes: &Nodes) -> Result<Shape, Error> {
        if !(1..=MAX_RF).contains(&self.rf) {
            return Err(out_of_range("rf", self.rf, format!("1 to {MAX_RF}")).into());
        }
        let weights: Vec<u32> = nodes.as_slice().iter().map(|n| n.weight).collect();
        let have = weights.iter().filter(|w| **w > 0).count();
        if have < self.rf {
            let text = format!("{have} nodes with a weight for {} replicas", self.rf);
            return Err(Error::new(ErrorKind::TooFewNodes { have, need: self.rf }, text));
        }
        let zone: Vec<u32> = (0..nodes.len())
            .map(|i| nodes.zone_of(crate::node::index(i)).and_then(|z| u32::try_from(z).ok()).unwrap_or(0))
            .collect();
        let mut live: Vec<u32> =
            zone.iter().zip(&weights).filter(|(_, w)| **w > 0).map(|(z, _)| *z).collect();
        live.sort_unstable();
        live.dedup();
        let min_zones = match self.zones {
            Spread::Any => 1,
            Spread::Prefer { min } => min.clamp(1, live.len().min(self.rf)),
            Spread::Hard { min } if min > self.rf => {
                return Err(out_of_range("zones.min", min, format!("at most rf, {}", self.rf)).into());
            }
            Spread::Hard { min } if min > live.len() => {
                let text = format!("{} zones with a node that has a weight; {min} are demanded", live.len());
                return Err(Error::new(ErrorKind::TooFewZones { have: live.len(), need: min }, text));
            }
            Spread::Hard { min } => min.max(1),
        };
        let zones = nodes.zones().len();
        Ok(Shape { slots: self.map.slots(), rf: self.rf, min_zones, weights, zone, zones })
    }

    fn check(&self) -> Result<(), Error> {
        if self.max_parallel == 0 {
            return Err(out_of_range("max_parallel", 0, "at least 1").into());
        }
        let slots = self.map.slots();
        let lengths = [
            ("bytes", self.bytes.map(<[u64]>::len)),
            ("load", self.load.map(<[f64]>::len)),
            ("pinned", self.pinned.map(<[bool]>::len)),
        ];
        for (field, length) in lengths {
            if let Some(length) = length.filter(|l| *l != slots) {
                return Err(out_of_range(
                    field,
                    format!("{length} values"),
                    format!("{slots}, one per slot"),
                )
                .into());
            }
        }
        let Some(load) = self.load else { return Ok(()) };
        if !(self.tolerance > 0.0 && self.tolerance <= 1.0) {
            return Err(out_of_range("tolerance", self.tolerance, "above 0, at most 1").into());
        }
        check_loads(load)
    }

    fn balance(&self, load: &[f64], shape: &Shape, current: &Lists, solved: &sets::Solved) -> load::Balanced {
        let shares = sets::shares(shape).unwrap_or_default();
        let all: f64 = load.iter().sum::<f64>();
        let target: Vec<f64> = shares.iter().map(|s| s.as_f64() / shape.slots as f64 * all).collect();
        let goal = load::Goal {
            load,
            target: &target,
            tolerance: self.tolerance,
            budget: self.budget,
            pinned: self.pinned,
        };
        load::balance(shape, current, solved, &goal)
    }
}

/// Loads must be numbers from 0 on.
pub(crate) fn check_loads(load: &[f64]) -> Result<(), Error> {
    let bad = load.iter().enumerate().find(|(_, l)| !l.is_finite() || **l < 0.0);
    bad.map_or(Ok(()), |(slot, l)| {
        let value = format!("{l} of slot {slot}");
        Err(ConfigError::new("load", value, "a finite number from 0").into())
    })
}

fn out_of_range(
    field: &'static str,
    value: impl std::fmt::Display,
    allowed: impl std::fmt::Display,
) -> ConfigError {
    ConfigError::new(field, value, allowed)
}

/// The map as it is, seen from the target.
struct Now {
    /// Replicas on target nodes that may keep them.
    lists: Lists,
    /// The primary, where it is such a node.
    primary: Vec<Option<u32>>,
    /// Every node of the map in the target, drained ones too.
    target_of: Vec<Option<u32>>,
}

impl Now {
    fn of(map: &SlotMap, nodes: &Nodes, shape: &Shape) -> Self {
        let find = |n: &Node| nodes.find(n.id.as_str()).map(NodeIdx::get);
        let target_of: Vec<Option<u32>> = map.nodes().as_slice().iter().map(find).collect();
        let of = |idx: &NodeIdx| target_of[idx.as_usize()].filter(|i| shape.weights[*i as usize] > 0);
        let lists = (0..map.slots()).map(|s| map.replicas(s).iter().filter_map(of).collect());
        let primary = (0..map.slots()).map(|s| map.replicas(s).first().and_then(of)).collect();
        Self { lists: Lists::of_lists(lists), primary, target_of }
    }
}
