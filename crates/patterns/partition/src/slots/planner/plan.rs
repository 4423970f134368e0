//! A plan: what moves, from whom, in which wave, and why not less.

use std::collections::BTreeMap;
use std::fmt;

use super::load::Balanced;
use super::rehearsal::{self, Rehearsal};
use super::sets::Solved;
use super::waves::{self, Copy};
use super::{Now, Shape, out_of_range, replicas, roles, sets};
use crate::error::{Error, ErrorKind};
use crate::node::{Node, NodeId, NodeIdx, Nodes, Zone};
use crate::place::Place as _;
use crate::slots::SlotMap;

/// One replica that moves.
///
/// Carry it out in this order, so that a slot never has fewer live replicas than before: let `source` copy to `to`,
/// tell readers of the slot, then let `from` remove its replica. Moves of one wave may run at the same time; the next
/// wave begins when all of them are done. When it stops in the middle, plan again from what there is: nothing that is
/// finished is undone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Move {
    /// The slot.
    pub slot: usize,
    /// Whose replica it replaces; `None` for an additional replica.
    pub from: Option<NodeId>,
    /// Who receives it.
    pub to: NodeId,
    /// Who copies: `from` while it is in the fleet, otherwise another replica; `None` when nobody in the
    /// target fleet has the data.
    pub source: Option<NodeId>,
    /// How much is copied.
    pub bytes: u64,
    /// When, from 1. Within a wave: copy first, then remove.
    pub wave: usize,
}

/// A replica that is given up without a successor, because the replication factor fell.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Removal {
    /// The slot.
    pub slot: usize,
    /// Who gives it up.
    pub node: NodeId,
    /// When: after the last copy of the slot.
    pub wave: usize,
}

/// A slot whose primary changes. No data is copied for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoleChange {
    /// The slot.
    pub slot: usize,
    /// The primary before; `None` when the slot had none.
    pub from: Option<NodeId>,
    /// The primary after.
    pub to: NodeId,
}

/// What a person should know about a plan.
///
/// None of them is a failure: the plan keeps every rule. They say what the rules cost, and what no plan can mend. Their
/// `Display` is a sentence for an operator.
///
/// ```
/// use mainstay_partition::{Node, Spread, slots::{Note, Planner, SlotMap}};
///
/// let empty = SlotMap::builder(1).build()?;
/// let nodes = [("a", "x"), ("b", "x"), ("c", "y")].map(|(id, zone)| Node::new(id).zone(zone));
/// let plan = Planner::new(&empty).target(nodes).rf(2).zones(Spread::Hard { min: 2 }).solve()?;
/// let skew = plan.notes().iter().find(|note| matches!(note, Note::ForcedSkew { .. })).unwrap();
/// assert!(skew.to_string().contains("the rules give"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Note {
    /// A rule keeps a node from the share that its weight asks for: a small zone, or more weight than there
    /// are slots.
    ForcedSkew {
        /// The node.
        node: NodeId,
        /// Its zone.
        zone: Option<Zone>,
        /// Replicas that its weight alone asks for.
        asked: f64,
        /// Replicas that the rules let it have.
        given: f64,
    },
    /// More moves than the counts alone demand, and why: these replicas cannot stay where they are.
    Repairs {
        /// Replicas that break the zone rule now.
        replicas: u64,
    },
    /// Nobody in the target fleet has the data of these slots: bring the node back or restore them.
    Orphans {
        /// How many.
        slots: usize,
        /// The first one.
        first: usize,
    },
    /// The replica sets leave some nodes with more primaries than their share.
    UnevenPrimaries {
        /// By how many slots in total.
        slots: u64,
    },
    /// With loads: these nodes stay above the tolerance, because a slot is too hot or the budget is spent.
    Overloaded {
        /// The nodes.
        nodes: Vec<NodeId>,
    },
    /// With loads: a single one of these slots is more than any node should carry. Split it: twice the
    /// slots, or a cache in front.
    TooHot {
        /// The slots.
        slots: Vec<usize>,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForcedSkew { node, zone, asked, given } => {
                let zone = zone.as_ref().map_or("(none)", Zone::as_str);
                write!(
                    f,
                    "the rules give {node} in zone {zone} {given:.1} replicas; its weight asks for {asked:.1}"
                )
            }
            Self::Repairs { replicas } => {
                write!(f, "{replicas} replicas break the zone rule now and move to repair it")
            }
            Self::Orphans { slots, first } => {
                write!(f, "nobody in the target fleet has the data of {slots} slots, the first is {first}")
            }
            Self::UnevenPrimaries { slots } => {
                write!(f, "the replica sets leave {slots} primaries beyond the shares of their nodes")
            }
            Self::Overloaded { nodes } => {
                let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
                write!(f, "above the tolerance: {}", names.join(", "))
            }
            Self::TooHot { slots } => {
                write!(
                    f,
                    "{} slots are each more than a node should carry, the first is {:?}; split them",
                    slots.len(),
                    slots.first()
                )
            }
        }
    }
}

/// The way from one map to the next.
///
/// Data, and nothing but data: it holds no connection and changes nothing. Read it, show it, rehearse it, then carry its
/// [`Move`]s out and publish what [`Plan::apply`] makes of the current map. It proves what it claims: [`Plan::certified_bound`] is a number of
/// moves that no plan for this target can stay below, whatever the solver did.
///
/// ```
/// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
///
/// let empty = SlotMap::builder(1).build()?;
/// let map = Planner::new(&empty).target(["a", "b", "c"].map(Node::new)).solve()?.next().clone();
/// let plan = Planner::new(&map).target(["a", "b", "c", "d"].map(Node::new)).solve()?;
/// assert_eq!((plan.moves().len() as u64, plan.lower_bound(), plan.certified_bound()), (4096, 4096, 4096));
/// assert_eq!((plan.base().epoch(), plan.next().epoch()), (2, 3));
/// let first = plan.wave(1);
/// assert!(first.iter().all(|m| m.to.as_str() == "d") && first.len() <= plan.max_parallel() as usize);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Plan {
    base: SlotMap,
    next: SlotMap,
    moves: Vec<Move>,
    removals: Vec<Removal>,
    role_changes: Vec<RoleChange>,
    notes: Vec<Note>,
    lower_bound: u64,
    certified: u64,
    demanded: u64,
    within_tolerance: bool,
    prices: Vec<(NodeId, i64)>,
    max_parallel: u32,
    waves: usize,
    fewest_waves: usize,
}

impl Plan {
    /// Every replica that moves, by wave, then slot.
    #[must_use]
    pub fn moves(&self) -> &[Move] {
        &self.moves
    }

    /// Replicas that are only removed.
    #[must_use]
    pub fn removals(&self) -> &[Removal] {
        &self.removals
    }

    /// Slots whose primary changes.
    #[must_use]
    pub fn role_changes(&self) -> &[RoleChange] {
        &self.role_changes
    }

    /// What a person should know.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// What the counts alone prove: every node below its share must receive the difference. With loads, what it
    /// takes to bring every node within the tolerance; a plan that [does not](Plan::within_tolerance) may move less.
    #[must_use]
    pub fn lower_bound(&self) -> u64 {
        self.lower_bound
    }

    /// The best bound that is proven: [`Plan::lower_bound`], or more where rules force more. It is computed
    /// from the map, the target and [`Plan::prices`] alone.
    ///
    /// With loads, no plan that ends within the tolerance moves less. Where this one does not end there, because of its
    /// budget, of pinned slots or of a slot that is too hot, it is what the rules alone demand.
    #[must_use]
    pub fn certified_bound(&self) -> u64 {
        self.certified
    }

    /// Whether no plan for this target moves less: moves equal the certified bound, and the goal is reached.
    ///
    /// False with [`Planner::load`](super::Planner::load) as a rule: fewest moves under a bound on load is bin packing, and
    /// the bound beside it is not always reached.
    #[must_use]
    pub fn is_minimal(&self) -> bool {
        self.within_tolerance && self.moves.len() as u64 == self.certified
    }

    /// Whether every node ends within the tolerance of [`Planner::load`](super::Planner::load). Without loads there
    /// is none to miss.
    ///
    /// ```
    /// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
    ///
    /// let empty = SlotMap::builder(1).slots(4096).build()?;
    /// let map = Planner::new(&empty).target(["a", "b"].map(Node::new)).solve()?.next().clone();
    /// let load: Vec<f64> = (0..4096).map(|s| if map.replicas(s)[0].get() == 0 { 3.0 } else { 1.0 }).collect();
    /// let some = Planner::new(&map).load(&load).budget(10).solve()?;
    /// assert!(!some.within_tolerance() && !some.is_minimal());
    /// assert_eq!((some.moves().len(), some.lower_bound(), some.certified_bound()), (10, 547, 0));
    /// let all = Planner::new(&map).load(&load).solve()?;
    /// assert!(all.within_tolerance() && all.certified_bound() == 547);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn within_tolerance(&self) -> bool {
        self.within_tolerance
    }

    /// The moves that the rules demand, whatever the loads are.
    pub(crate) fn demanded(&self) -> u64 {
        self.demanded
    }

    /// The prices behind [`Plan::certified_bound`]: whatever they are, slots cannot be placed cheaper than
    /// the bound (Lagrangian duality). All zero where counts suffice, and with loads.
    #[must_use]
    pub fn prices(&self) -> &[(NodeId, i64)] {
        &self.prices
    }

    /// Bytes to copy.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.moves.iter().fold(0, |sum, m| sum.saturating_add(m.bytes))
    }

    /// How many waves there are.
    #[must_use]
    pub fn waves(&self) -> usize {
        self.waves
    }

    /// No schedule under `max_parallel` has fewer waves.
    #[must_use]
    pub fn fewest_waves(&self) -> usize {
        self.fewest_waves
    }

    /// The moves of a wave, from 1.
    ///
    /// Within a wave no node sends or receives more than [`Plan::max_parallel`] copies, and a slot moves at most once.
    /// Empty for a wave that there is not.
    #[must_use]
    pub fn wave(&self, wave: usize) -> &[Move] {
        let from = self.moves.partition_point(|m| m.wave < wave);
        let to = self.moves.partition_point(|m| m.wave <= wave);
        &self.moves[from..to]
    }

    /// Copies per node and direction at once.
    #[must_use]
    pub fn max_parallel(&self) -> u32 {
        self.max_parallel
    }

    /// The map that the plan starts from.
    #[must_use]
    pub fn base(&self) -> &SlotMap {
        &self.base
    }

    /// The map at the end, one epoch later.
    #[must_use]
    pub fn next(&self) -> &SlotMap {
        &self.next
    }

    /// The next map, if `map` still is the one that was planned from.
    ///
    /// # Errors
    /// [`ErrorKind::StaleEpoch`] when the map moved on, [`ErrorKind::Conflict`] when it has the planned epoch
    /// and other content, [`ErrorKind::ApiMisuse`] when it is older than the plan's base.
    /// # Examples
    /// ```
    /// use mainstay_partition::{ErrorKind, Node, slots::{Planner, SlotMap}};
    ///
    /// let nodes = |ids: &[&str]| ids.iter().map(|id| Node::new(*id)).collect::<Vec<_>>();
    /// let empty = SlotMap::builder(1).nodes(nodes(&["a"])).build()?;
    /// let first = Planner::new(&empty).target(nodes(&["a", "b"])).rf(1).solve()?;
    /// let map = first.apply(&empty)?;
    /// assert_eq!(map.epoch(), 2);
    /// let again = first.apply(&map).unwrap_err();
    /// assert_eq!(again.kind(), ErrorKind::StaleEpoch { seen: 2, got: 1 });
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn apply(&self, map: &SlotMap) -> Result<SlotMap, Error> {
        let (seen, got) = (map.epoch(), self.base.epoch());
        if seen > got {
            let text = format!("the plan starts from epoch {got}, the map is at {seen}; plan again");
            return Err(Error::new(ErrorKind::StaleEpoch { seen, got }, text));
        }
        if seen < got {
            let text = format!("the plan starts from epoch {got}, the map is at {seen}; fetch the newer map");
            return Err(Error::new(ErrorKind::ApiMisuse, text));
        }
        if map.fingerprint() != self.base.fingerprint() {
            let text = format!("two different maps of epoch {seen}");
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        Ok(self.next.clone())
    }

    /// The dry run: replays every wave and checks rules and limits on the way.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] naming the slot and the wave where the plan breaks its promise.
    ///
    /// # Examples
    /// ```
    /// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
    ///
    /// let empty = SlotMap::builder(1).build()?;
    /// let map = Planner::new(&empty).target(["a", "b", "c"].map(Node::new)).rf(2).solve()?.next().clone();
    /// let plan = Planner::new(&map).target(["a", "b", "c", "d"].map(Node::new)).rf(2).solve()?;
    /// let seen = plan.rehearse()?;
    /// assert_eq!((seen.fewest_live, seen.most_live), (2, 3), "copied first, then removed");
    /// assert!(seen.most_received <= u64::from(plan.max_parallel()));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn rehearse(&self) -> Result<Rehearsal, Error> {
        rehearsal::run(self)
    }

    /// The map after a wave, with everything moved so far and the roles of the end where they are possible.
    /// Its epoch is the base's plus the wave, so that every wave can be published; its nodes are those of
    /// both fleets until the last wave. Of a plan that copies nothing, everything comes with wave 1.
    ///
    /// # Errors
    /// An epoch that cannot be counted on.
    ///
    /// # Examples
    /// ```
    /// use mainstay_partition::{Node, slots::{Planner, SlotMap}};
    ///
    /// let empty = SlotMap::builder(1).build()?;
    /// let map = Planner::new(&empty).target(["a", "b"].map(Node::new)).solve()?.next().clone();
    /// let plan = Planner::new(&map).target(["a", "b", "c"].map(Node::new)).solve()?;
    /// // Whoever carried out ten waves and died left this behind; the next one plans the rest.
    /// let stopped = plan.after(10)?;
    /// let rest = Planner::new(&stopped).target(["a", "b", "c"].map(Node::new)).solve()?;
    /// let done = (1..=10).map(|wave| plan.wave(wave).len()).sum::<usize>();
    /// assert_eq!(done + rest.moves().len(), plan.moves().len());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn after(&self, wave: usize) -> Result<SlotMap, Error> {
        rehearsal::map_after(self, wave)
    }
}

/// The pieces of a plan.
pub(super) struct Draft<'a> {
    pub(super) map: &'a SlotMap,
    pub(super) nodes: Nodes,
    pub(super) shape: &'a Shape,
    pub(super) now: &'a Now,
    pub(super) solved: Solved,
    pub(super) balanced: Option<Balanced>,
    pub(super) bytes: Option<&'a [u64]>,
    pub(super) max_parallel: u32,
}

/// A move before it has a wave.
struct Step {
    slot: usize,
    from: Option<NodeId>,
    to: u32,
    source: Option<u32>,
}

impl Draft<'_> {
    pub(super) fn plan(self) -> Result<Plan, Error> {
        let shape = self.shape;
        let sets = self.balanced.as_ref().map_or(&self.solved.sets, |b| &b.sets);
        let (primary, left) = roles::choose(shape, sets, &self.now.lists, &self.now.primary);
        let epoch = self.map.epoch().checked_add(1).ok_or_else(|| {
            Error::from(out_of_range(
                "epoch",
                self.map.epoch(),
                "below 2^64 - 1: the next map needs one more",
            ))
        })?;
        let lists: Vec<Vec<NodeIdx>> = (0..shape.slots).map(|slot| self.list(slot, sets, &primary)).collect();
        let next = SlotMap::from_lists(self.nodes.clone(), self.map.slot_hash(), epoch, shape.slots, &lists)?;
        let (steps, gone) = self.steps(sets);
        let (moves, removals, fewest_waves) = self.schedule(steps, gone);
        if self.balanced.is_none() && moves.len() as u64 != self.solved.moves {
            let text = format!("{} moves were written down of {} decided", moves.len(), self.solved.moves);
            return Err(Error::new(ErrorKind::Internal, text));
        }
        let notes = self.notes(&moves, left);
        let waves = moves.iter().map(|m| m.wave).chain(removals.iter().map(|r| r.wave)).max().unwrap_or(0);
        let demanded = replicas::demanded(shape, &self.now.lists);
        let (lower_bound, certified, within_tolerance) = match &self.balanced {
            Some(Balanced { needed, over, .. }) if over.is_empty() => (*needed, *needed, true),
            Some(Balanced { needed, .. }) => (*needed, demanded, false),
            None => (self.solved.lower_bound, self.solved.certified, true),
        };
        // Prices prove nothing about loads.
        let price = |(node, price): (&Node, &i64)| {
            (node.id.clone(), if self.balanced.is_some() { 0 } else { *price })
        };
        let prices = self.nodes.as_slice().iter().zip(&self.solved.prices).map(price);
        Ok(Plan {
            role_changes: self.role_changes(&next),
            prices: prices.collect(),
            base: self.map.clone(),
            next,
            moves,
            removals,
            notes,
            lower_bound,
            certified,
            demanded,
            within_tolerance,
            max_parallel: self.max_parallel,
            waves,
            fewest_waves,
        })
    }

    fn id(&self, node: u32) -> NodeId {
        self.nodes.as_slice()[node as usize].id.clone()
    }

    /// The replicas of a slot: the primary, then those that stay in their order, then the new ones by id.
    fn list(&self, slot: usize, sets: &[u32], primary: &[u32]) -> Vec<NodeIdx> {
        let set = &sets[slot * self.shape.rf..(slot + 1) * self.shape.rf];
        let now = self.now.lists.of(slot);
        let mut list = vec![primary[slot]];
        list.extend(now.iter().copied().filter(|n| set.contains(n) && *n != primary[slot]));
        let mut new: Vec<u32> = set.iter().copied().filter(|n| !list.contains(n)).collect();
        new.sort_unstable();
        list.extend(new);
        list.into_iter().map(NodeIdx::new).collect()
    }

    /// What changes in every slot: each new replica takes the place of a lost one, of the same zone if there
    /// is one, so that zones stay spread while copies run.
    fn steps(&self, sets: &[u32]) -> (Vec<Step>, Vec<(usize, NodeId)>) {
        let (mut steps, mut gone) = (Vec::new(), Vec::new());
        let old = self.map.nodes();
        let mut sends = vec![0_u64; self.nodes.len()];
        for (slot, set) in sets.chunks_exact(self.shape.rf).enumerate() {
            let now = self.now.lists.of(slot);
            let mut new: Vec<u32> = set.iter().copied().filter(|n| !now.contains(n)).collect();
            new.sort_unstable();
            let here = |idx: NodeIdx| self.now.target_of[idx.as_usize()];
            let stays = |idx: &NodeIdx| here(*idx).is_some_and(|n| set.contains(&n));
            let mut lost: Vec<NodeIdx> =
                self.map.replicas(slot).iter().copied().filter(|i| !stays(i)).collect();
            // Replicas that are only dropped are the last ones of the list.
            let mut pairs: Vec<(Option<NodeIdx>, u32)> = Vec::new();
            let zone_of = |n: u32| self.nodes.as_slice()[n as usize].zone.as_ref();
            new.retain(|n| match lost.iter().position(|i| old[*i].zone.as_ref() == zone_of(*n)) {
                Some(at) => {
                    pairs.push((Some(lost.remove(at)), *n));
                    false
                }
                None => true,
            });
            let mut rest = lost.into_iter();
            pairs.extend(new.into_iter().map(|n| (rest.next(), n)));
            gone.extend(rest.map(|i| (slot, old[i].id.clone())));
            for (from, to) in pairs {
                // Another holder can copy too: one that stays, and of those the one that sends least.
                let holders = || self.map.replicas(slot).iter().filter_map(|i| here(*i));
                let best = || holders().min_by_key(|n| (!set.contains(n), sends[*n as usize]));
                let source = from.and_then(here).or_else(best);
                if let Some(node) = source {
                    sends[node as usize] += 1;
                }
                steps.push(Step { slot, from: from.map(|i| old[i].id.clone()), to, source });
            }
        }
        (steps, gone)
    }

    fn schedule(&self, steps: Vec<Step>, gone: Vec<(usize, NodeId)>) -> (Vec<Move>, Vec<Removal>, usize) {
        let copies: Vec<Copy> = steps
            .iter()
            .map(|s| Copy { slot: u32::try_from(s.slot).unwrap_or(u32::MAX), out: s.source, into: s.to })
            .collect();
        let (nodes, slots) = (self.nodes.len(), self.shape.slots);
        let fewest = waves::fewest(&copies, nodes, slots, u64::from(self.max_parallel));
        let mut wave = waves::schedule(&copies, nodes, slots, u64::from(self.max_parallel));
        let weight = |slot: usize| self.bytes.map_or(0, |b| b[slot]);
        waves::heavy_first(&mut wave, |edge| weight(steps[edge].slot));
        let mut last = vec![1; slots];
        let mut moves: Vec<Move> = steps
            .into_iter()
            .zip(wave)
            .map(|(step, wave)| {
                let wave = wave as usize + 1;
                last[step.slot] = last[step.slot].max(wave);
                Move {
                    slot: step.slot,
                    from: step.from,
                    to: self.id(step.to),
                    source: step.source.map(|n| self.id(n)),
                    bytes: weight(step.slot),
                    wave,
                }
            })
            .collect();
        moves.sort_by(|a, b| (a.wave, a.slot, &a.to).cmp(&(b.wave, b.slot, &b.to)));
        sources_leave_last(&mut moves);
        let removals =
            gone.into_iter().map(|(slot, node)| Removal { slot, node, wave: last[slot] }).collect();
        (moves, removals, fewest)
    }

    fn role_changes(&self, next: &SlotMap) -> Vec<RoleChange> {
        let changes = (0..self.shape.slots).filter_map(|slot| {
            let (from, to) = (self.map.replicas(slot).first(), next.replicas(slot).first()?.get());
            let same = from.is_some_and(|i| self.now.target_of[i.as_usize()] == Some(to));
            let from = from.map(|i| self.map.nodes()[*i].id.clone());
            (!same).then(|| RoleChange { slot, from, to: self.id(to) })
        });
        changes.collect()
    }

    fn notes(&self, moves: &[Move], uneven: u64) -> Vec<Note> {
        let shape = self.shape;
        let mut notes = self.forced_skew();
        let repairs: usize = (0..shape.slots)
            .map(|s| {
                let has = self.now.lists.of(s);
                has.len().min(shape.rf) - replicas::keepable(shape, has)
            })
            .sum();
        if repairs > 0 {
            notes.push(Note::Repairs { replicas: repairs as u64 });
        }
        let mut orphans: Vec<usize> =
            moves.iter().filter(|m| m.source.is_none() && m.from.is_some()).map(|m| m.slot).collect();
        orphans.sort_unstable();
        orphans.dedup();
        if let Some(first) = orphans.first() {
            notes.push(Note::Orphans { slots: orphans.len(), first: *first });
        }
        if uneven > 0 {
            notes.push(Note::UnevenPrimaries { slots: uneven });
        }
        if let Some(balanced) = &self.balanced {
            if !balanced.over.is_empty() {
                notes.push(Note::Overloaded { nodes: balanced.over.iter().map(|n| self.id(*n)).collect() });
            }
            if !balanced.too_hot.is_empty() {
                let slots = balanced.too_hot.iter().map(|s| *s as usize).collect();
                notes.push(Note::TooHot { slots });
            }
        }
        notes
    }

    fn forced_skew(&self) -> Vec<Note> {
        let shape = self.shape;
        let total = self.nodes.total_weight() as f64;
        let shares = sets::shares(shape).unwrap_or_default();
        let skewed = self.nodes.as_slice().iter().zip(shares).filter_map(|(node, share)| {
            let asked = (shape.slots * shape.rf) as f64 * f64::from(node.weight) / total;
            let given = share.as_f64();
            // Less than one replica apart is rounding.
            ((asked - given).abs() >= 1.0).then(|| Note::ForcedSkew {
                node: node.id.clone(),
                zone: node.zone.clone(),
                asked,
                given,
            })
        });
        skewed.collect()
    }
}

/// Where a replica that leaves also copies for another one of its slot, it must not leave before it has: the
/// replicas that leave a slot do so in the order of their last copy. Copies of one slot run in different
/// waves, so that order always fits.
fn sources_leave_last(moves: &mut [Move]) {
    let copies_for_another = |m: &Move| m.source.is_some() && m.source != m.from;
    let mut slots: Vec<usize> = moves.iter().filter(|m| copies_for_another(m)).map(|m| m.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    let mut of_slot: BTreeMap<usize, Vec<usize>> = slots.into_iter().map(|s| (s, Vec::new())).collect();
    for (at, m) in moves.iter().enumerate() {
        if let Some(list) = of_slot.get_mut(&m.slot) {
            list.push(at);
        }
    }
    for list in of_slot.into_values() {
        let last_copy = |from: &Option<NodeId>| {
            let copies = list.iter().filter(|at| from.is_some() && moves[**at].source == *from);
            copies.map(|at| moves[*at].wave).max().unwrap_or(0)
        };
        let mut leave: Vec<(usize, Option<NodeId>)> =
            list.iter().map(|at| (last_copy(&moves[*at].from), moves[*at].from.clone())).collect();
        leave.sort();
        for (at, (_, from)) in list.into_iter().zip(leave) {
            moves[at].from = from;
        }
    }
}
