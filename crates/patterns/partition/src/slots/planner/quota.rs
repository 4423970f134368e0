//! How many replicas each node should hold: exact weighted shares under caps and the zone rule, rounded to
//! whole replicas, and the bound on moves that follows from them.
//!
//! Shares are weighted max-min fair: everybody's share grows in step with its weight until something is full
//! (a node holds every slot once, a zone holds all it may), and the rest goes on growing. The region of
//! possible counts is an integer polymatroid, which is why whole numbers next to the exact shares always
//! exist and why a greedy choice of the rounding is an optimal one (Edmonds 1970; Fujishige 1980).

use std::cmp::Ordering;

use super::Shape;

/// An exact share: `num / den` replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    num: u128,
    den: u128,
}

impl Share {
    const ZERO: Self = Self { num: 0, den: 1 };

    pub(super) fn floor(self) -> u64 {
        // Shares are at most the number of slots.
        u64::try_from(self.num / self.den).unwrap_or(u64::MAX)
    }

    pub(super) fn ceil(self) -> u64 {
        u64::try_from(self.num.div_ceil(self.den)).unwrap_or(u64::MAX)
    }

    pub(super) fn as_f64(self) -> f64 {
        self.num as f64 / self.den as f64
    }

    fn cmp_remainder(self, other: Self) -> Ordering {
        // Remainders and denominators stay below 2^55: u32 weights of up to 2^22 nodes.
        ((self.num % self.den) * other.den).cmp(&((other.num % other.den) * self.den))
    }
}

/// `a.0 / a.1` against `b.0 / b.1`.
fn less(a: (u128, u128), b: (u128, u128)) -> bool {
    a.0 * b.1 < b.0 * a.1
}

/// What fills up next while all shares grow.
#[derive(Clone, Copy)]
enum Event {
    /// Everything is given out.
    Finish,
    /// This node holds as much as it can.
    Node(usize),
    /// This zone holds one replica of every slot.
    Zone(usize),
    /// The zones with more than one replica per slot hold all of those that the rule allows.
    Tight,
}

#[derive(Clone, Default)]
struct ZoneState {
    fixed: u128,
    weight: u128,
    high: bool,
}

struct Fill<'a> {
    shape: &'a Shape,
    slots: u128,
    allowance: u128,
    open: Vec<bool>,
    zones: Vec<ZoneState>,
    fixed: u128,
    weight: u128,
    tight: bool,
    shares: Vec<Share>,
}

/// The share of every node; `None` when the nodes cannot hold everything. `caps` is the most a node can hold.
pub(super) fn shares(shape: &Shape, caps: &[u64]) -> Option<Vec<Share>> {
    let n = shape.weights.len();
    let goal = shape.slots as u128 * shape.rf as u128;
    let mut fill = Fill {
        shape,
        slots: shape.slots as u128,
        allowance: shape.slots as u128 * (shape.rf - shape.min_zones) as u128,
        open: shape.weights.iter().map(|w| *w > 0).collect(),
        zones: vec![ZoneState::default(); shape.zones],
        fixed: 0,
        weight: 0,
        tight: shape.rf == shape.min_zones,
        shares: vec![Share::ZERO; n],
    };
    for (w, z) in shape.weights.iter().zip(&shape.zone) {
        fill.zones[*z as usize].weight += u128::from(*w);
        fill.weight += u128::from(*w);
    }
    let mut by_level: Vec<usize> = (0..n).filter(|i| shape.weights[*i] > 0).collect();
    let level = |i: usize| (u128::from(caps[i]), u128::from(shape.weights[i]));
    by_level.sort_by(|a, b| (level(*a).0 * level(*b).1).cmp(&(level(*b).0 * level(*a).1)).then(a.cmp(b)));
    let mut next = 0;
    while fill.fixed < goal {
        if fill.weight == 0 {
            return None;
        }
        while by_level.get(next).is_some_and(|i| !fill.open[*i]) {
            next += 1;
        }
        let mut event = (Event::Finish, (goal - fill.fixed, fill.weight));
        if let Some(&i) = by_level.get(next)
            && less(level(i), event.1)
        {
            event = (Event::Node(i), level(i));
        }
        event = fill.earlier(event);
        fill.happen(event.0, event.1, caps);
    }
    Some(fill.shares)
}

impl Fill<'_> {
    /// The event of a zone that comes before `event`, if there is one.
    fn earlier(&self, mut event: (Event, (u128, u128))) -> (Event, (u128, u128)) {
        let (mut high, mut fixed, mut weight) = (0, 0, 0);
        for (z, zone) in self.zones.iter().enumerate() {
            if zone.high {
                (high, fixed, weight) = (high + 1, fixed + zone.fixed, weight + zone.weight);
            } else if zone.weight > 0 {
                let level = (self.slots - zone.fixed, zone.weight);
                if less(level, event.1) {
                    event = (Event::Zone(z), level);
                }
            }
        }
        if !self.tight && weight > 0 {
            let level = (self.allowance + high * self.slots - fixed, weight);
            if less(level, event.1) {
                event = (Event::Tight, level);
            }
        }
        event
    }

    fn happen(&mut self, event: Event, level: (u128, u128), caps: &[u64]) {
        match event {
            Event::Finish => {
                self.fix(|_| true, level);
                self.fixed = self.slots * self.shape.rf as u128;
            }
            Event::Node(i) => {
                let (cap, w) = (u128::from(caps[i]), u128::from(self.shape.weights[i]));
                self.open[i] = false;
                self.shares[i] = Share { num: cap, den: 1 };
                let zone = &mut self.zones[self.shape.zone[i] as usize];
                zone.fixed += cap;
                zone.weight -= w;
                self.fixed += cap;
                self.weight -= w;
            }
            Event::Zone(z) if self.tight => {
                self.fixed += self.slots - self.zones[z].fixed;
                self.fix(|zone| zone == z, level);
            }
            Event::Zone(z) => self.zones[z].high = true,
            Event::Tight => {
                let high: Vec<bool> = self.zones.iter().map(|z| z.high).collect();
                let full = high.iter().filter(|h| **h).count() as u128 * self.slots + self.allowance;
                let held: u128 = self.zones.iter().filter(|z| z.high).map(|z| z.fixed).sum();
                self.fixed += full - held;
                self.fix(|zone| high[zone], level);
                self.tight = true;
            }
        }
    }

    /// Fixes every open node of these zones at `level` per unit of weight.
    fn fix(&mut self, zones: impl Fn(usize) -> bool, level: (u128, u128)) {
        for i in 0..self.open.len() {
            let z = self.shape.zone[i] as usize;
            if self.open[i] && zones(z) {
                let w = u128::from(self.shape.weights[i]);
                self.open[i] = false;
                self.shares[i] = Share { num: w * level.0, den: level.1 };
                self.weight -= w;
                self.zones[z].weight = 0;
            }
        }
    }
}

/// Whole replicas per node: the floor of its share, or one more. The spare ones go first to nodes that hold
/// more than the floor already, then by remainder, then by id, as far as node and zones have room.
///
/// `None` only for caps that no rounding can keep.
pub(super) fn quotas(shape: &Shape, shares: &[Share], held: &[u64]) -> Option<Vec<u64>> {
    let slots = shape.slots as u64;
    let mut quota: Vec<u64> = shares.iter().map(|s| s.floor()).collect();
    let mut zone = vec![0_u64; shape.zones];
    for (q, z) in quota.iter().zip(&shape.zone) {
        zone[*z as usize] += q;
    }
    let mut doubled: u64 = zone.iter().map(|held| held.saturating_sub(slots)).sum();
    let allowance = slots * (shape.rf - shape.min_zones) as u64;
    let mut spare = slots * shape.rf as u64 - quota.iter().sum::<u64>();
    let mut order: Vec<usize> = (0..shares.len()).filter(|i| shares[*i].ceil() > quota[*i]).collect();
    order.sort_by(|&a, &b| {
        let keeps = |i: usize| held[i] > quota[i];
        keeps(b).cmp(&keeps(a)).then_with(|| shares[b].cmp_remainder(shares[a])).then_with(|| a.cmp(&b))
    });
    for i in order {
        let z = shape.zone[i] as usize;
        let more = u64::from(zone[z] >= slots);
        if spare == 0 {
            break;
        }
        if doubled + more <= allowance {
            quota[i] += 1;
            zone[z] += 1;
            doubled += more;
            spare -= 1;
        }
    }
    (spare == 0).then_some(quota)
}

/// Every node below its quota must receive the difference: no plan moves less.
pub(super) fn lower_bound(quota: &[u64], held: &[u64]) -> u64 {
    quota.iter().zip(held).map(|(q, h)| q.saturating_sub(*h)).sum()
}
