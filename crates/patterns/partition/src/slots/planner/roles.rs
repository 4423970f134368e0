//! Which replica of each slot is the primary: even by weight, with as few changes as possible.

use super::flow::{Counts, Shifts, run};
use super::{Lists, Shape, quota};

struct Roles<'a> {
    shape: &'a Shape,
    sets: &'a [u32],
    /// The primary now, where it stays a replica.
    stays: Vec<Option<u32>>,
    primary: Vec<u32>,
    entries: Vec<Vec<u32>>,
}

impl Roles<'_> {
    fn set(&self, slot: u32) -> &[u32] {
        let first = slot as usize * self.shape.rf;
        &self.sets[first..first + self.shape.rf]
    }
}

impl Shifts for Roles<'_> {
    const FAR: bool = false;

    fn entries(&self, u: u32) -> &[u32] {
        &self.entries[u as usize]
    }

    fn holder(&self, entry: u32) -> u32 {
        self.primary[entry as usize]
    }

    fn paid(&self, entry: u32) -> i32 {
        i32::from(self.stays[entry as usize] != Some(self.primary[entry as usize]))
    }

    fn price(&self, entry: u32, to: u32) -> Option<i32> {
        let other = self.primary[entry as usize] != to && self.set(entry).contains(&to);
        other.then(|| i32::from(self.stays[entry as usize] != Some(to)))
    }

    fn near(&self, entry: u32, into: &mut Vec<u32>) {
        let me = self.primary[entry as usize];
        into.extend(self.set(entry).iter().copied().filter(|n| *n != me));
    }

    fn closed(&self, _entry: u32, _zone: u32) -> bool {
        true
    }

    fn shift(&mut self, entry: u32, to: u32) {
        self.primary[entry as usize] = to;
        self.entries[to as usize].push(entry);
    }
}

/// The primary of every slot, and by how many slots nodes still pass their share because the replica sets
/// leave no choice.
pub(super) fn choose(shape: &Shape, sets: &[u32], current: &Lists, now: &[Option<u32>]) -> (Vec<u32>, u64) {
    let n = shape.weights.len();
    let mut copies = vec![0_u64; n];
    for node in sets {
        copies[*node as usize] += 1;
    }
    let one = Shape { rf: 1, min_zones: 1, zone: vec![0; n], zones: 1, ..shape.clone() };
    // Without shares for everybody nobody is bound, which leaves the roles as they are.
    let shares = quota::shares(&one, &copies).unwrap_or_default();
    let low = shares.iter().map(|s| s.floor()).collect();
    let high: Vec<u64> = shares.iter().map(|s| s.ceil()).collect();
    let mut roles = Roles {
        shape,
        sets,
        stays: Vec::with_capacity(shape.slots),
        primary: Vec::with_capacity(shape.slots),
        entries: vec![Vec::new(); n],
    };
    let mut held = vec![0_u64; n];
    for (slot, set) in (0_u32..).zip(sets.chunks_exact(shape.rf)) {
        let stays = now[slot as usize].filter(|p| set.contains(p));
        // A new primary that has the data already serves at once; among equals the one that lacks most.
        let has = |n: &u32| current.of(slot as usize).contains(n);
        let lacks = |n: &u32| high.get(*n as usize).map_or(0, |h| h.saturating_sub(held[*n as usize]));
        let best =
            set.iter().copied().max_by_key(|n| (lacks(n) > 0, has(n), lacks(n), std::cmp::Reverse(*n)));
        let Some(primary) = stays.or(best) else { continue };
        roles.stays.push(stays);
        roles.primary.push(primary);
        roles.entries[primary as usize].push(slot);
        held[primary as usize] += 1;
    }
    if shares.is_empty() {
        return (roles.primary, 0);
    }
    let counts = Counts { held, low, high };
    let outcome = run(&mut roles, &shape.zone, &counts, shape.slots as u64);
    (roles.primary, outcome.left)
}
