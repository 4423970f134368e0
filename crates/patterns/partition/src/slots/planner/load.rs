//! Balancing by load instead of by count: every replica weighs what its slot weighs.
//!
//! Fewest moves under a load bound is bin packing, so this is a heuristic with a bound beside it: the hottest
//! replica that fits moves first, from the node that passes its share most to the one that lacks most.

use super::replicas::{allows_swap, demanded, keep};
use super::sets::Solved;
use super::{Lists, Shape};

/// What came out.
pub(super) struct Balanced {
    /// `rf` nodes per slot.
    pub(super) sets: Vec<u32>,
    /// No plan that ends within the tolerance moves less.
    pub(super) needed: u64,
    /// Nodes that stay above the tolerance.
    pub(super) over: Vec<u32>,
    /// Slots so hot that no node can hold them within the tolerance.
    pub(super) too_hot: Vec<u32>,
}

/// What the balance is measured against.
pub(super) struct Goal<'a> {
    /// Load per slot.
    pub(super) load: &'a [f64],
    /// Load per node that its weight asks for.
    pub(super) target: &'a [f64],
    /// Accepted deviation, for example 0.1.
    pub(super) tolerance: f64,
    /// Most replicas to move.
    pub(super) budget: u64,
    /// Slots that stay.
    pub(super) pinned: Option<&'a [bool]>,
}

struct State<'a> {
    shape: &'a Shape,
    goal: &'a Goal<'a>,
    sets: Vec<u32>,
    moved: Vec<bool>,
    held: Vec<f64>,
    entries: Vec<Vec<u32>>,
}

/// Moves from the current map; what the rules do not let stay is taken from `solved`.
pub(super) fn balance(shape: &Shape, current: &Lists, solved: &Solved, goal: &Goal<'_>) -> Balanced {
    let n = shape.weights.len();
    let sets = keep(shape, current, &solved.sets);
    let mut state = State {
        shape,
        goal,
        moved: (0..sets.len()).map(|e| goal.pinned.is_some_and(|p| p[e / shape.rf])).collect(),
        sets,
        held: vec![0.0; n],
        entries: vec![Vec::new(); n],
    };
    for (entry, node) in (0_u32..).zip(&state.sets) {
        state.held[*node as usize] += goal.load[entry as usize / shape.rf];
        state.entries[*node as usize].push(entry);
    }
    let load = |e: &u32| goal.load[*e as usize / shape.rf];
    for list in &mut state.entries {
        list.sort_by(|a, b| load(b).total_cmp(&load(a)).then(a.cmp(b)));
    }
    let needed = state.needed(current);
    let mut left = goal.budget;
    // A replica that is new anyway costs nothing more when it lands elsewhere.
    let fresh = |sets: &[u32], e: u32| !current.of(e as usize / shape.rf).contains(&sets[e as usize]);
    let mut stuck = vec![false; n];
    while let Some(from) = state.worst(&stuck) {
        match state.best_move(from, |e| left > 0 || fresh(&state.sets, e)) {
            Some((entry, to)) => {
                left -= u64::from(!fresh(&state.sets, entry));
                state.shift(entry, to);
            }
            None => stuck[from as usize] = true,
        }
    }
    let over = (0_u32..).zip(&stuck).filter(|(_, s)| **s).map(|(v, _)| v).collect();
    let most = (0..n).map(|v| state.ceiling(v)).fold(0.0, f64::max);
    let too_hot = (0_u32..).zip(goal.load).filter(|(_, l)| **l > most).map(|(s, _)| s).collect();
    Balanced { sets: state.sets, needed, over, too_hot }
}

impl State<'_> {
    fn ceiling(&self, node: usize) -> f64 {
        self.goal.target[node] * (1.0 + self.goal.tolerance)
    }

    fn ratio(&self, node: usize) -> f64 {
        let target = self.goal.target[node];
        if target > 0.0 { self.held[node] / target } else { 0.0 }
    }

    /// The node that passes its share most.
    fn worst(&self, stuck: &[bool]) -> Option<u32> {
        (0_u32..)
            .zip(stuck)
            .filter(|(v, stuck)| !**stuck && self.held[*v as usize] > self.ceiling(*v as usize))
            .map(|(v, _)| v)
            .max_by(|a, b| self.ratio(*a as usize).total_cmp(&self.ratio(*b as usize)).then(b.cmp(a)))
    }

    /// The hottest replica of `from` that fits somewhere, and the node with most room for it.
    fn best_move(&self, from: u32, may: impl Fn(u32) -> bool) -> Option<(u32, u32)> {
        let weighted = (0_u32..).zip(&self.shape.weights).filter(|(_, w)| **w > 0);
        let mut order: Vec<u32> = weighted.map(|(v, _)| v).collect();
        order.sort_by(|a, b| self.ratio(*a as usize).total_cmp(&self.ratio(*b as usize)).then(a.cmp(b)));
        let mine = self.held[from as usize];
        self.entries[from as usize].iter().copied().find_map(|entry| {
            if self.sets[entry as usize] != from || self.moved[entry as usize] || !may(entry) {
                return None;
            }
            let load = self.goal.load[entry as usize / self.shape.rf];
            // What leaves must not turn this node into one that lacks more than it had too much.
            if load <= 0.0 || mine - load < self.goal.target[from as usize] * (1.0 - self.goal.tolerance) {
                return None;
            }
            let fits = |v: &&u32| {
                self.held[**v as usize] + load <= self.ceiling(**v as usize)
                    && allows_swap(self.shape, &self.sets, entry, **v)
            };
            order.iter().find(fits).map(|v| (entry, *v))
        })
    }

    fn shift(&mut self, entry: u32, to: u32) {
        let load = self.goal.load[entry as usize / self.shape.rf];
        let from = std::mem::replace(&mut self.sets[entry as usize], to);
        self.held[from as usize] -= load;
        self.held[to as usize] += load;
        self.moved[entry as usize] = true;
    }

    /// Computed from the map as it is and not from what was decided: every node above its ceiling must at least give
    /// away its hottest replicas until it is below. Whatever leaves a slot is replaced, and what it lacks is added.
    fn needed(&self, current: &Lists) -> u64 {
        let mut loads: Vec<Vec<f64>> = vec![Vec::new(); self.held.len()];
        for (slot, load) in self.goal.load.iter().enumerate() {
            current.of(slot).iter().for_each(|v| loads[*v as usize].push(*load));
        }
        // Sums of floats depend on their order: what is above by no more than that counts as below.
        let slack = self.goal.load.iter().sum::<f64>() * 1e-9;
        let given: usize = loads
            .iter_mut()
            .enumerate()
            .map(|(v, loads)| {
                loads.sort_by(|a, b| b.total_cmp(a));
                let mut held: f64 = loads.iter().sum();
                let goes = |load: &&f64| {
                    let above = held > self.ceiling(v) + slack;
                    held -= **load;
                    above
                };
                loads.iter().take_while(goes).count()
            })
            .sum();
        let shape = self.shape;
        let moves = (shape.slots * shape.rf + given).saturating_sub(current.items.len());
        demanded(shape, current).max(moves as u64)
    }
}
