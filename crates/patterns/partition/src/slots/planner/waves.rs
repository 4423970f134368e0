//! When each copy runs: nobody copies more than it may at once, and no slot changes twice in a wave.
//!
//! Without the rule on slots this is edge colouring of a bipartite multigraph, which needs no more colours
//! than the largest degree (Koenig 1916): where no colour is free on both sides, two colours are swapped
//! along an alternating path. A swap that would break the rule on slots is not made; a further wave is
//! opened instead.

use std::collections::HashMap;

/// A copy to schedule.
#[derive(Clone, Copy)]
pub(super) struct Copy {
    pub(super) slot: u32,
    /// Who sends; `None` when nobody in the fleet has the data.
    pub(super) out: Option<u32>,
    pub(super) into: u32,
}

/// The wave of every copy, from 0; `nodes` bounds the node numbers. Earlier copies get earlier waves where
/// there is a choice.
pub(super) fn schedule(copies: &[Copy], nodes: usize, slots: usize, parallel: u64) -> Vec<u32> {
    let fewest = fewest(copies, nodes, slots, parallel);
    let mut table = Table::new(copies, nodes, fewest, parallel);
    for edge in 0..copies.len() {
        table.place(edge);
    }
    table.wave
}

/// No schedule has fewer waves than this.
pub(super) fn fewest(copies: &[Copy], nodes: usize, slots: usize, parallel: u64) -> usize {
    let (mut out, mut into, mut per_slot) = (vec![0_u64; nodes], vec![0_u64; nodes], vec![0_u64; slots]);
    for copy in copies {
        if let Some(node) = copy.out {
            out[node as usize] += 1;
        }
        into[copy.into as usize] += 1;
        per_slot[copy.slot as usize] += 1;
    }
    let busiest = out.iter().chain(&into).max().copied().unwrap_or(0);
    let crowded = per_slot.iter().max().copied().unwrap_or(0);
    usize::try_from(busiest.div_ceil(parallel).max(crowded)).unwrap_or(usize::MAX)
}

/// Reorders the waves, which do not depend on each other: the one with the heaviest copy first.
pub(super) fn heavy_first(waves: &mut [u32], weight: impl Fn(usize) -> u64) {
    let count = waves.iter().max().map_or(0, |w| *w as usize + 1);
    let mut heaviest = vec![0_u64; count];
    for (edge, wave) in waves.iter().enumerate() {
        heaviest[*wave as usize] = heaviest[*wave as usize].max(weight(edge));
    }
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|w| (std::cmp::Reverse(heaviest[*w]), *w));
    let mut place = vec![0; count];
    for (new, old) in (0_u32..).zip(order) {
        place[old] = new;
    }
    for wave in waves {
        *wave = place[*wave as usize];
    }
}

const NO_WAVE: u32 = u32::MAX;

/// A port is one of the `parallel` lanes of a node, in one direction: one copy per wave.
struct Table<'a> {
    copies: &'a [Copy],
    /// Ports of each copy: sender, receiver.
    ports: Vec<[Option<u32>; 2]>,
    /// Waves in use, a bit each, by port.
    used: Vec<Vec<u64>>,
    by_wave: HashMap<(u32, u32), u32>,
    per_slot: HashMap<u32, Vec<u32>>,
    fewest: usize,
    wave: Vec<u32>,
}

impl<'a> Table<'a> {
    fn new(copies: &'a [Copy], nodes: usize, fewest: usize, parallel: u64) -> Self {
        // The copies of a node fill one lane after the other, `fewest` each.
        let lanes = fewest.max(1);
        let mut seen: [Vec<usize>; 2] = [vec![0; nodes], vec![0; nodes]];
        let mut number: HashMap<(usize, u32, usize), u32> = HashMap::new();
        let mut port = |side: usize, node: u32| {
            let count = &mut seen[side][node as usize];
            let lane = *count / lanes;
            *count += 1;
            debug_assert!((lane as u64) < parallel, "a lane takes as many copies as there are waves");
            let next = u32::try_from(number.len()).unwrap_or(NO_WAVE);
            *number.entry((side, node, lane)).or_insert(next)
        };
        let ports: Vec<_> =
            copies.iter().map(|c| [c.out.map(|n| port(0, n)), Some(port(1, c.into))]).collect();
        let mut per_slot: HashMap<u32, Vec<u32>> = HashMap::new();
        for (edge, copy) in (0_u32..).zip(copies) {
            per_slot.entry(copy.slot).or_default().push(edge);
        }
        Self {
            used: vec![Vec::new(); number.len()],
            copies,
            ports,
            by_wave: HashMap::new(),
            per_slot,
            fewest,
            wave: vec![NO_WAVE; copies.len()],
        }
    }

    fn is_used(&self, port: Option<u32>, wave: usize) -> bool {
        port.is_some_and(|p| self.used[p as usize].get(wave / 64).is_some_and(|w| w >> (wave % 64) & 1 == 1))
    }

    /// Whether another copy of the same slot runs in this wave.
    fn crowded(&self, edge: usize, wave: usize) -> bool {
        let others = &self.per_slot[&self.copies[edge].slot];
        others.iter().any(|o| *o as usize != edge && self.wave[*o as usize] as usize == wave)
    }

    /// The first wave from `from` on in which none of these ports is busy and the slot rests.
    fn free(&self, edge: usize, ports: &[Option<u32>], from: usize) -> usize {
        let mut word = from / 64;
        loop {
            let busy = ports.iter().flatten().map(|p| self.used[*p as usize].get(word).copied().unwrap_or(0));
            let mut open = !busy.fold(0, |a, b| a | b);
            while open != 0 {
                let wave = word * 64 + open.trailing_zeros() as usize;
                if wave >= from && !self.crowded(edge, wave) {
                    return wave;
                }
                open &= open - 1;
            }
            word += 1;
        }
    }

    fn place(&mut self, edge: usize) {
        let ports = self.ports[edge];
        let both = self.free(edge, &ports, 0);
        if both < self.fewest {
            return self.set(edge, both);
        }
        let (a, b) = (self.free(edge, &ports[..1], 0), self.free(edge, &ports[1..], 0));
        if a < self.fewest && b < self.fewest && self.swap(edge, a, b) {
            return self.set(edge, a);
        }
        self.set(edge, both);
    }

    fn set(&mut self, edge: usize, wave: usize) {
        let number = u32::try_from(wave).unwrap_or(NO_WAVE);
        self.wave[edge] = number;
        for port in self.ports[edge].into_iter().flatten() {
            let used = &mut self.used[port as usize];
            if used.len() <= wave / 64 {
                used.resize(wave / 64 + 1, 0);
            }
            used[wave / 64] |= 1 << (wave % 64);
            self.by_wave.insert((port, number), u32::try_from(edge).unwrap_or(NO_WAVE));
        }
    }

    fn clear(&mut self, edge: usize) {
        let wave = self.wave[edge];
        for port in self.ports[edge].into_iter().flatten() {
            self.used[port as usize][wave as usize / 64] &= !(1 << (wave % 64));
            self.by_wave.remove(&(port, wave));
        }
        self.wave[edge] = NO_WAVE;
    }

    /// Frees wave `a` at the receiver of `edge` by swapping `a` and `b` along the alternating path that
    /// starts there. It never reaches the sender, where `a` is free: paths of a bipartite graph arrive at
    /// senders by `a`.
    fn swap(&mut self, edge: usize, a: usize, b: usize) -> bool {
        let (mut port, mut wave, mut other) = (self.ports[edge][1], a, b);
        let mut path = Vec::new();
        while self.is_used(port, wave) {
            let (Some(at), Ok(number)) = (port, u32::try_from(wave)) else { return false };
            let Some(&next) = self.by_wave.get(&(at, number)) else { return false };
            let ends = self.ports[next as usize];
            port = if ends[0] == port { ends[1] } else { ends[0] };
            path.push((next as usize, other));
            (wave, other) = (other, wave);
        }
        // The slots of the path must not meet themselves in their new waves, nor this copy's slot.
        let moved = |e: u32| path.iter().find(|(edge, _)| *edge == e as usize).map(|(_, wave)| *wave);
        let later = |e: u32| moved(e).unwrap_or(self.wave[e as usize] as usize);
        let clash = |e: usize, wave: usize| {
            let others = &self.per_slot[&self.copies[e].slot];
            others.iter().any(|o| *o as usize != e && later(*o) == wave)
        };
        let single = |e: usize| self.per_slot[&self.copies[e].slot].len() == 1;
        if path.iter().any(|(e, wave)| !single(*e) && clash(*e, *wave)) || (!single(edge) && clash(edge, a)) {
            return false;
        }
        for (edge, _) in &path {
            self.clear(*edge);
        }
        for (edge, wave) in path {
            self.set(edge, wave);
        }
        true
    }
}
