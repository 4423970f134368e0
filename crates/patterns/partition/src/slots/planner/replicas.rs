//! Which nodes hold each slot: the start of the flow and the rules of a single slot.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};

use super::flow::Shifts;
use super::{Lists, Shape};
use crate::hash::mix64;

/// The replica sets of all slots while they are chosen.
pub(super) struct Replicas<'a> {
    shape: &'a Shape,
    current: &'a Lists,
    /// `rf` nodes per slot.
    place: Vec<u32>,
    /// 1 where the node does not hold the slot now.
    paid: Vec<u8>,
    entries: Vec<Vec<u32>>,
}

impl<'a> Replicas<'a> {
    /// Keeps as much of what every slot has as the rules let it keep, and fills up where `quota` has room.
    /// `None` when a slot cannot be filled, which the checks of the caller exclude.
    pub(super) fn start(shape: &'a Shape, current: &'a Lists, quota: &[u64]) -> Option<Self> {
        let mut sets: Vec<Vec<u32>> = Vec::with_capacity(shape.slots);
        let mut held = vec![0_u64; shape.weights.len()];
        for slot in 0..shape.slots {
            let mut set: Vec<u32> = Vec::with_capacity(shape.rf);
            for &node in current.of(slot) {
                if allows(shape, &set, node) {
                    set.push(node);
                    held[node as usize] += 1;
                }
            }
            sets.push(set);
        }
        let mut room = Room::new(shape, quota, &held);
        let mut place = Vec::with_capacity(shape.slots * shape.rf);
        let mut paid = Vec::with_capacity(place.capacity());
        let mut entries = vec![Vec::new(); shape.weights.len()];
        for mut set in sets {
            let kept = set.len();
            while set.len() < shape.rf {
                set.push(room.take(&set)?);
            }
            for (at, node) in set.into_iter().enumerate() {
                entries[node as usize].push(u32::try_from(place.len()).ok()?);
                place.push(node);
                paid.push(u8::from(at >= kept));
            }
        }
        Some(Self { shape, current, place, paid, entries })
    }

    /// Looks at slots with few bytes first when a node must give something away.
    pub(super) fn light_first(&mut self, bytes: &[u64]) {
        let rf = self.shape.rf;
        for list in &mut self.entries {
            list.sort_by_key(|e| (bytes[*e as usize / rf], *e));
        }
    }

    pub(super) fn held(&self) -> Vec<u64> {
        let mut held = vec![0; self.shape.weights.len()];
        for node in &self.place {
            held[*node as usize] += 1;
        }
        held
    }

    /// Replicas on nodes that do not hold the slot now.
    pub(super) fn moves(&self) -> u64 {
        self.paid.iter().map(|p| u64::from(*p)).sum()
    }

    pub(super) fn into_sets(self) -> Vec<u32> {
        self.place
    }

    fn set(&self, entry: u32) -> &[u32] {
        let rf = self.shape.rf;
        let first = entry as usize / rf * rf;
        &self.place[first..first + rf]
    }
}

/// Whether `zone` is closed to this entry of `set`: the others lack zones, and this one is among theirs.
fn is_closed(shape: &Shape, set: &[u32], at: usize, zone: u32) -> bool {
    let others = || set.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, n)| shape.zone[*n as usize]);
    if !others().any(|z| z == zone) {
        return false;
    }
    let distinct = others().enumerate().filter(|(i, z)| !others().take(*i).any(|y| y == *z)).count();
    distinct < shape.min_zones
}

/// Whether the rules let `to` take the place of this entry of `sets`.
pub(super) fn allows_swap(shape: &Shape, sets: &[u32], entry: u32, to: u32) -> bool {
    let (slot, at) = (entry as usize / shape.rf, entry as usize % shape.rf);
    let set = &sets[slot * shape.rf..(slot + 1) * shape.rf];
    shape.weights[to as usize] > 0
        && !set.contains(&to)
        && !is_closed(shape, set, at, shape.zone[to as usize])
}

/// Whether a set that can be completed can still be completed with `node` in it.
fn allows(shape: &Shape, set: &[u32], node: u32) -> bool {
    if set.len() == shape.rf || set.contains(&node) {
        return false;
    }
    let zone = |n: u32| shape.zone[n as usize];
    let new = |at: usize, z: u32| !set[..at].iter().any(|n| zone(*n) == z);
    let distinct = set.iter().enumerate().filter(|(at, n)| new(*at, zone(**n))).count()
        + usize::from(new(set.len(), zone(node)));
    set.len() + 1 - distinct <= shape.rf - shape.min_zones
}

/// How many of these replicas the rules let stay together.
pub(super) fn keepable(shape: &Shape, has: &[u32]) -> usize {
    let mut set = Vec::with_capacity(shape.rf);
    for &node in has {
        if allows(shape, &set, node) {
            set.push(node);
        }
    }
    set.len()
}

/// The moves that the rules demand, whatever the shares are: replicas that are missing or may not stay.
pub(super) fn demanded(shape: &Shape, current: &Lists) -> u64 {
    (0..shape.slots).map(|slot| (shape.rf - keepable(shape, current.of(slot))) as u64).sum()
}

/// The sets that keep what every slot has as far as the rules let it, filled up from `spare` sets.
pub(super) fn keep(shape: &Shape, current: &Lists, spare: &[u32]) -> Vec<u32> {
    let mut sets = Vec::with_capacity(spare.len());
    for (slot, spare) in spare.chunks_exact(shape.rf).enumerate() {
        let mut set: Vec<u32> = Vec::with_capacity(shape.rf);
        // A spare set is a base, so what it has always completes a set that can be completed.
        for &node in current.of(slot).iter().chain(spare) {
            if allows(shape, &set, node) {
                set.push(node);
            }
        }
        sets.extend(set);
    }
    sets
}

impl Shifts for Replicas<'_> {
    const FAR: bool = true;

    fn entries(&self, u: u32) -> &[u32] {
        &self.entries[u as usize]
    }

    fn holder(&self, entry: u32) -> u32 {
        self.place[entry as usize]
    }

    fn paid(&self, entry: u32) -> i32 {
        i32::from(self.paid[entry as usize])
    }

    fn price(&self, entry: u32, to: u32) -> Option<i32> {
        let slot = entry as usize / self.shape.rf;
        allows_swap(self.shape, &self.place, entry, to)
            .then(|| i32::from(!self.current.of(slot).contains(&to)))
    }

    fn near(&self, entry: u32, into: &mut Vec<u32>) {
        let set = self.set(entry);
        let current = self.current.of(entry as usize / self.shape.rf);
        into.extend(current.iter().copied().filter(|n| !set.contains(n)));
    }

    fn closed(&self, entry: u32, zone: u32) -> bool {
        is_closed(self.shape, self.set(entry), entry as usize % self.shape.rf, zone)
    }

    fn shift(&mut self, entry: u32, to: u32) {
        self.place[entry as usize] = to;
        let current = self.current.of(entry as usize / self.shape.rf);
        self.paid[entry as usize] = u8::from(!current.contains(&to));
        self.entries[to as usize].push(entry);
    }
}

/// Where there is room: the zone that lacks most, in it the node that lacks most.
struct Room<'a> {
    shape: &'a Shape,
    zones: BTreeSet<(Reverse<i64>, u32)>,
    need: Vec<i64>,
    /// What a node lacks, and its rank among those that lack as much.
    nodes: Vec<BinaryHeap<(i64, u64, u32)>>,
}

/// A new rank on every level of lack. In the order of ids, the same nodes would share slots again and again;
/// then a dead node's load would fall on a few, and a heavier node could take nothing from its mates.
fn rank(lacks: i64, node: u32) -> u64 {
    mix64(lacks.unsigned_abs() << 32 | u64::from(node))
}

impl<'a> Room<'a> {
    fn new(shape: &'a Shape, quota: &[u64], held: &[u64]) -> Self {
        let mut need = vec![0; shape.zones];
        let mut nodes = vec![BinaryHeap::new(); shape.zones];
        for (node, ((q, h), z)) in (0_u32..).zip(quota.iter().zip(held).zip(&shape.zone)) {
            if shape.weights[node as usize] > 0 {
                let lacks = i64::try_from(*q).unwrap_or(i64::MAX) - i64::try_from(*h).unwrap_or(i64::MAX);
                need[*z as usize] += lacks;
                nodes[*z as usize].push((lacks, rank(lacks, node), node));
            }
        }
        let zones = (0_u32..).zip(&need).map(|(z, n)| (Reverse(*n), z)).collect();
        Self { shape, zones, need, nodes }
    }

    fn take(&mut self, set: &[u32]) -> Option<u32> {
        let mut passed = Vec::new();
        let mut found = None;
        'zones: for &(_, z) in &self.zones {
            while let Some((lacks, _, node)) = self.nodes[z as usize].pop() {
                if allows(self.shape, set, node) {
                    found = Some((z, lacks, node));
                    break 'zones;
                }
                passed.push((z, lacks, node));
                // A zone that is closed is closed to all its nodes; one that is open has at most as many
                // refused nodes as the set has members.
                if passed.iter().filter(|p| p.0 == z).count() > set.len() {
                    break;
                }
            }
        }
        for (z, lacks, node) in passed {
            self.nodes[z as usize].push((lacks, rank(lacks, node), node));
        }
        let (z, lacks, node) = found?;
        self.nodes[z as usize].push((lacks - 1, rank(lacks - 1, node), node));
        let need = &mut self.need[z as usize];
        self.zones.remove(&(Reverse(*need), z));
        *need -= 1;
        self.zones.insert((Reverse(*need), z));
        Some(node)
    }
}
