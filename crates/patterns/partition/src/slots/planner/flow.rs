//! The minimum-cost flow under the planner: moves single replicas between nodes until every node holds as
//! many as it should, at the smallest cost that is possible.
//!
//! A primal-dual method (Ford and Fulkerson 1962; blocking flows after Dinic 1970) on a graph whose vertices
//! are the nodes and whose arcs are read off the slots when they are needed: `u -> v` exists while some slot
//! may swap `u` for `v`. Written out, the graph of 16,384 slots and 1,000 nodes would have 16 million arcs;
//! here a search looks at each replica about once. One more vertex, the hub, stands for the freedom that some
//! nodes have between their lower and their upper count.
//!
//! The potentials that it ends with are prices; [`super::bound`] turns them into a lower bound that owes
//! nothing to this file.

use std::collections::BTreeMap;

/// What a flow moves: replicas, or the role of primary.
pub(super) trait Shifts {
    /// Entries that node `u` held at some time; [`Shifts::holder`] tells which it holds now.
    fn entries(&self, u: u32) -> &[u32];
    /// Who holds an entry.
    fn holder(&self, entry: u32) -> u32;
    /// The price paid for the entry where it is.
    fn paid(&self, entry: u32) -> i32;
    /// The price of the entry at `to`; `None` when the rules forbid it there.
    fn price(&self, entry: u32, to: u32) -> Option<i32>;
    /// The targets that are listed: all that are allowed, or, with [`Shifts::FAR`], those that cost nothing.
    fn near(&self, entry: u32, into: &mut Vec<u32>);
    /// Whether every allowed node that is not near is a target too, at price 1.
    const FAR: bool;
    /// Whether the zone is closed to the entry.
    fn closed(&self, entry: u32, zone: u32) -> bool;
    /// Moves the entry.
    fn shift(&mut self, entry: u32, to: u32);
}

/// How many entries each node holds and may hold.
pub(super) struct Counts {
    pub(super) held: Vec<u64>,
    pub(super) low: Vec<u64>,
    pub(super) high: Vec<u64>,
}

/// What is left when no path is left.
pub(super) struct Outcome {
    /// Entries beyond what nodes may hold. 0 when everything found its place.
    pub(super) left: u64,
    /// The potential of each node.
    pub(super) potential: Vec<i32>,
}

const UNSEEN: u32 = u32::MAX;

struct Flow<'a, S> {
    shifts: &'a mut S,
    zone: &'a [u32],
    low: &'a [u64],
    high: &'a [u64],
    /// What of its count a node passes on to the hub.
    accepted: Vec<u64>,
    /// What a vertex has too much (above 0) or too little. The hub is the last vertex.
    excess: Vec<i64>,
    potential: Vec<i32>,
    hub: u32,
}

/// One step of a path.
#[derive(Clone, Copy)]
struct Arc {
    from: u32,
    to: u32,
    /// The entry that moves, or [`UNSEEN`] at the hub.
    entry: u32,
}

/// Moves entries until counts are within bounds, as cheaply as possible. Every group of entries that share a
/// rule must start at its own cheapest choice.
pub(super) fn run<S: Shifts>(shifts: &mut S, zone: &[u32], counts: &Counts, total: u64) -> Outcome {
    let n = counts.held.len();
    let accepted: Vec<u64> = (0..n).map(|i| counts.held[i].clamp(counts.low[i], counts.high[i])).collect();
    let difference =
        |a: u64, b: u64| i64::try_from(a).unwrap_or(i64::MAX) - i64::try_from(b).unwrap_or(i64::MAX);
    let mut excess: Vec<i64> = (0..n).map(|i| difference(counts.held[i], accepted[i])).collect();
    excess.push(difference(accepted.iter().sum(), total));
    let mut flow = Flow {
        shifts,
        zone,
        low: &counts.low,
        high: &counts.high,
        accepted,
        excess,
        potential: vec![0; n + 1],
        hub: u32::try_from(n).unwrap_or(UNSEEN),
    };
    while flow.raise() {
        let mut sent = false;
        while flow.block() {
            sent = true;
        }
        if !sent {
            // A shortest path of a fresh search can always be used; were it not so, the caller sees what is
            // left instead of an endless loop.
            break;
        }
    }
    let left = flow.excess.iter().filter(|e| **e > 0).map(|e| e.unsigned_abs()).sum();
    flow.potential.pop();
    Outcome { left, potential: flow.potential }
}

/// Vertices that a search has not reached, by potential and zone, so that all targets of one price are found
/// without looking at those that are reached.
#[derive(Default)]
struct Pool(BTreeMap<i32, Vec<(u32, Vec<u32>)>>);

impl Pool {
    /// `nodes` with their potential and zone.
    fn of(nodes: impl Iterator<Item = (i32, u32, u32)>) -> Self {
        let mut sorted: BTreeMap<(i32, u32), Vec<u32>> = BTreeMap::new();
        for (potential, zone, node) in nodes {
            sorted.entry((potential, zone)).or_default().push(node);
        }
        let mut pool = Self::default();
        for ((potential, zone), nodes) in sorted {
            pool.0.entry(potential).or_default().push((zone, nodes));
        }
        pool
    }

    /// Takes out every node of this potential that `open` lets through; forgets those that are `gone`.
    fn take(
        &mut self,
        potential: i32,
        closed: impl Fn(u32) -> bool,
        stays: impl Fn(u32) -> bool,
        gone: impl Fn(u32) -> bool,
        mut each: impl FnMut(u32),
    ) {
        let Some(zones) = self.0.get_mut(&potential) else { return };
        zones.retain_mut(|(zone, nodes)| {
            if closed(*zone) {
                return true;
            }
            nodes.retain(|v| {
                if gone(*v) {
                    return false;
                }
                if stays(*v) {
                    return true;
                }
                each(*v);
                false
            });
            !nodes.is_empty()
        });
    }

    /// One node of this potential that `open` lets through; it stays. Forgets those that are `gone`.
    fn find(
        &mut self,
        potential: i32,
        closed: impl Fn(u32) -> bool,
        passed: impl Fn(u32) -> bool,
        gone: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        let zones = self.0.get_mut(&potential)?;
        let mut at = zones.len();
        while at > 0 {
            at -= 1;
            let (zone, nodes) = &mut zones[at];
            if closed(*zone) {
                continue;
            }
            while nodes.last().is_some_and(|v| gone(*v)) {
                nodes.pop();
            }
            if nodes.is_empty() {
                zones.swap_remove(at);
                continue;
            }
            if let Some(v) = nodes.iter().rev().find(|v| !passed(**v) && !gone(**v)) {
                return Some(*v);
            }
        }
        None
    }
}

impl<S: Shifts> Flow<'_, S> {
    /// Measures the distance of every vertex from those that have too much and adds it to the potentials.
    /// False when nothing that has too little can be reached: then the flow is done.
    fn raise(&mut self) -> bool {
        let mut distance = vec![i32::MAX; self.excess.len()];
        let mut order: Vec<u32> = Vec::new();
        for (v, e) in (0_u32..).zip(&self.excess) {
            if *e > 0 {
                distance[v as usize] = 0;
                order.push(v);
            }
        }
        if order.is_empty() {
            return false;
        }
        let range = self.potential.iter().max().zip(self.potential.iter().min()).map_or(0, |(a, b)| a - b);
        let mut pool = self.pool(&distance);
        let (mut level, mut last) = (0, 0);
        // Prices are 0 and 1, so no arc is longer than this.
        while level <= last + range + 2 {
            let mut at = 0;
            while at < order.len() {
                let u = order[at];
                at += 1;
                let before = order.len();
                self.reach(u, level - distance[u as usize], &mut pool, &mut |v| {
                    if distance[v as usize] == i32::MAX {
                        distance[v as usize] = level;
                        order.push(v);
                    }
                });
                if order.len() > before {
                    last = level;
                }
            }
            if order.iter().any(|v| self.excess[*v as usize] < 0) {
                for (p, d) in self.potential.iter_mut().zip(&distance) {
                    *p += level.min(*d);
                }
                return true;
            }
            level += 1;
        }
        false
    }

    fn pool(&self, distance: &[i32]) -> Pool {
        let open = (0..self.hub).filter(|v| S::FAR && distance[*v as usize] == i32::MAX);
        Pool::of(open.map(|v| (self.potential[v as usize], self.zone[v as usize], v)))
    }

    /// Tells every vertex that an arc of reduced cost `r` leads to from `u`. Far ones leave the pool, so they
    /// are told once; others may be told again.
    fn reach(&self, u: u32, r: i32, pool: &mut Pool, each: &mut impl FnMut(u32)) {
        let pu = self.potential[u as usize];
        let hub = self.hub as usize;
        if u == self.hub {
            for v in 0..self.hub {
                let i = v as usize;
                if self.accepted[i] > self.low[i] && pu - self.potential[i] == r {
                    each(v);
                }
            }
            return;
        }
        let i = u as usize;
        if self.accepted[i] < self.high[i] && pu - self.potential[hub] == r {
            each(self.hub);
        }
        let mut near = Vec::new();
        for &entry in self.shifts.entries(u) {
            if self.shifts.holder(entry) != u {
                continue;
            }
            let paid = self.shifts.paid(entry);
            near.clear();
            self.shifts.near(entry, &mut near);
            for &v in &near {
                if let Some(price) = self.shifts.price(entry, v)
                    && price - paid + pu - self.potential[v as usize] == r
                {
                    each(v);
                }
            }
            if S::FAR {
                let closed = |zone| self.shifts.closed(entry, zone);
                let not_far = |v| self.shifts.price(entry, v) != Some(1);
                pool.take(pu + 1 - paid - r, closed, not_far, |_| false, &mut *each);
            }
        }
    }

    /// Sends what it can along shortest paths of arcs without reduced cost. False when there is none.
    fn block(&mut self) -> bool {
        let Some((level, depth)) = self.levels() else { return false };
        let mut search = Search {
            pools: (0..=depth)
                .map(|at| {
                    let there = (0..self.hub).filter(|v| S::FAR && level[*v as usize] == at);
                    Pool::of(there.map(|v| (self.potential[v as usize], self.zone[v as usize], v)))
                })
                .collect(),
            dead: vec![false; level.len()],
            next: vec![0; level.len()],
            level,
            depth,
        };
        let mut sent = false;
        for source in 0..=self.hub {
            while self.excess[source as usize] > 0 {
                let Some(path) = self.path(source, &mut search) else { break };
                if !self.send(&path) {
                    // Earlier paths of this round changed a slot under this one: measure again.
                    return sent;
                }
                sent = true;
            }
        }
        sent
    }

    /// How many arcs away each vertex is, up to the nearest that has too little.
    fn levels(&self) -> Option<(Vec<u32>, u32)> {
        let mut level = vec![UNSEEN; self.excess.len()];
        let mut order: Vec<u32> = (0..=self.hub).filter(|v| self.excess[*v as usize] > 0).collect();
        for v in &order {
            level[*v as usize] = 0;
        }
        let mark: Vec<i32> = level.iter().map(|l| if *l == 0 { 0 } else { i32::MAX }).collect();
        let mut pool = self.pool(&mark);
        let (mut at, mut depth) = (0, UNSEEN);
        while at < order.len() {
            let u = order[at];
            at += 1;
            let next = level[u as usize] + 1;
            if next > depth {
                break;
            }
            self.reach(u, 0, &mut pool, &mut |v| {
                if level[v as usize] == UNSEEN {
                    level[v as usize] = next;
                    order.push(v);
                    if self.excess[v as usize] < 0 {
                        depth = next;
                    }
                }
            });
        }
        (depth != UNSEEN).then_some((level, depth))
    }

    /// A path from `source` to a vertex that has too little.
    fn path(&self, source: u32, search: &mut Search) -> Option<Vec<Arc>> {
        let mut path: Vec<Arc> = Vec::new();
        let mut u = source;
        loop {
            if self.excess[u as usize] < 0 {
                return Some(path);
            }
            match self.arc(u, search) {
                Some(arc) => {
                    u = arc.to;
                    path.push(arc);
                }
                None => {
                    search.dead[u as usize] = true;
                    u = path.pop()?.from;
                }
            }
        }
    }

    /// The next arc from `u` to a living vertex one level deeper.
    fn arc(&self, u: u32, search: &mut Search) -> Option<Arc> {
        let i = u as usize;
        let deeper = search.level[i] + 1;
        if search.dead[i] || deeper > search.depth {
            return None;
        }
        let pu = self.potential[i];
        let Search { pools, dead, next, level, .. } = search;
        let lives = |v: u32| !dead[v as usize] && level[v as usize] == deeper;
        if u == self.hub {
            while next[i] < self.hub as usize {
                let v = next[i];
                if self.accepted[v] > self.low[v] && self.potential[v] == pu && lives(v as u32) {
                    return Some(Arc { from: u, to: v as u32, entry: UNSEEN });
                }
                next[i] += 1;
            }
            return None;
        }
        let hub = self.hub as usize;
        if self.accepted[i] < self.high[i] && self.potential[hub] == pu && lives(self.hub) {
            return Some(Arc { from: u, to: self.hub, entry: UNSEEN });
        }
        let mut near = Vec::new();
        while let Some(&entry) = self.shifts.entries(u).get(next[i]) {
            if self.shifts.holder(entry) == u {
                let paid = self.shifts.paid(entry);
                near.clear();
                self.shifts.near(entry, &mut near);
                let free = |v: &u32| {
                    lives(*v)
                        && self
                            .shifts
                            .price(entry, *v)
                            .is_some_and(|p| p - paid + pu == self.potential[*v as usize])
                };
                let mut to = near.iter().copied().find(free);
                if to.is_none() && S::FAR {
                    let closed = |zone| self.shifts.closed(entry, zone);
                    let not_far = |v| self.shifts.price(entry, v) != Some(1);
                    let gone = |v: u32| dead[v as usize];
                    to = pools[deeper as usize].find(pu + 1 - paid, closed, not_far, gone);
                }
                if let Some(to) = to {
                    return Some(Arc { from: u, to, entry });
                }
            }
            next[i] += 1;
        }
        None
    }

    /// Moves one entry along every arc. False, with nothing changed, when one of them is not there any more.
    fn send(&mut self, path: &[Arc]) -> bool {
        let (Some(first), Some(last)) = (path.first(), path.last()) else { return false };
        for (at, arc) in path.iter().enumerate() {
            if arc.entry == UNSEEN {
                continue;
            }
            let paid = self.shifts.paid(arc.entry);
            let gain = self.potential[arc.to as usize] - self.potential[arc.from as usize];
            let free = self.shifts.holder(arc.entry) == arc.from
                && self.shifts.price(arc.entry, arc.to).is_some_and(|p| p - paid == gain);
            if !free {
                for done in path[..at].iter().rev().filter(|a| a.entry != UNSEEN) {
                    self.shifts.shift(done.entry, done.from);
                }
                return false;
            }
            self.shifts.shift(arc.entry, arc.to);
        }
        for arc in path {
            if arc.to == self.hub {
                self.accepted[arc.from as usize] += 1;
            } else if arc.from == self.hub {
                self.accepted[arc.to as usize] -= 1;
            }
        }
        self.excess[first.from as usize] -= 1;
        self.excess[last.to as usize] += 1;
        true
    }
}

/// The state of one round of searching.
struct Search {
    /// Far targets by level.
    pools: Vec<Pool>,
    dead: Vec<bool>,
    /// The next entry of each vertex to look at.
    next: Vec<usize>,
    level: Vec<u32>,
    depth: u32,
}
