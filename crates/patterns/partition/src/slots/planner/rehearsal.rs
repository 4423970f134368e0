//! The dry run of a plan: replays it on the maps' own ids and trusts nothing that the solver said.

use std::collections::{BTreeMap, BTreeSet};

use super::out_of_range;
use super::plan::Plan;
use crate::error::{Error, ErrorKind};
use crate::node::{Node, NodeId, Nodes};
use crate::place::Place as _;
use crate::slots::SlotMap;

/// What a dry run saw.
///
/// It replays the moves one by one on the ids of the maps and takes nothing from the solver: who sends must hold the
/// slot, who receives must not, the lists at the end must be those of the next map.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rehearsal {
    /// Waves that were replayed.
    pub waves: usize,
    /// Most copies that one node sent in a wave.
    pub most_sent: u64,
    /// Most copies that one node received in a wave.
    pub most_received: u64,
    /// Fewest live replicas of a slot at any time, of slots that had at least that many to begin with.
    pub fewest_live: usize,
    /// Most replicas of a slot at any time: the extra space that copy-before-remove needs.
    pub most_live: usize,
}

fn broken(text: String) -> Error {
    Error::new(ErrorKind::Internal, text)
}

fn lists(map: &SlotMap) -> Vec<Vec<NodeId>> {
    let ids = |s| map.replicas(s).iter().map(|i| map.nodes()[*i].id.clone()).collect();
    (0..map.slots()).map(ids).collect()
}

/// Replays all waves.
pub(super) fn run(plan: &Plan) -> Result<Rehearsal, Error> {
    let rf = plan.next().replicas(0).len();
    let mut live = lists(plan.base());
    let mut seen = Rehearsal {
        waves: plan.waves(),
        most_sent: 0,
        most_received: 0,
        fewest_live: rf,
        most_live: live.iter().map(Vec::len).max().unwrap_or(0),
    };
    let floor: Vec<usize> = live.iter().map(|l| l.len().min(rf)).collect();
    for wave in 1..=plan.waves() {
        copy(plan, wave, &mut live, &mut seen)?;
        for m in plan.wave(wave) {
            if let Some(from) = &m.from {
                live[m.slot].retain(|n| n != from);
            }
        }
        for removal in plan.removals().iter().filter(|r| r.wave == wave) {
            live[removal.slot].retain(|n| *n != removal.node);
        }
        for (slot, list) in live.iter().enumerate() {
            if list.len() < floor[slot] {
                return Err(broken(format!("slot {slot} has {} live replicas in wave {wave}", list.len())));
            }
            if floor[slot] == rf {
                seen.fewest_live = seen.fewest_live.min(list.len());
            }
        }
    }
    for (slot, (is, should)) in live.iter().zip(lists(plan.next())).enumerate() {
        let same = is.iter().collect::<BTreeSet<_>>() == should.iter().collect::<BTreeSet<_>>();
        if !same || is.len() != should.len() {
            return Err(broken(format!("slot {slot} ends up on {is:?} instead of {should:?}")));
        }
    }
    Ok(seen)
}

/// The copies of a wave, which all come before its removals.
fn copy(plan: &Plan, wave: usize, live: &mut [Vec<NodeId>], seen: &mut Rehearsal) -> Result<(), Error> {
    let limit = u64::from(plan.max_parallel());
    let (mut sent, mut received) = (BTreeMap::new(), BTreeMap::new());
    let mut slots = BTreeSet::new();
    for m in plan.wave(wave) {
        if !slots.insert(m.slot) {
            return Err(broken(format!("slot {} moves twice in wave {wave}", m.slot)));
        }
        if live[m.slot].contains(&m.to) {
            return Err(broken(format!("{} holds slot {} already in wave {wave}", m.to, m.slot)));
        }
        if let Some(source) = &m.source {
            if !live[m.slot].contains(source) {
                return Err(broken(format!("{source} does not hold slot {} in wave {wave}", m.slot)));
            }
            *sent.entry(source).or_insert(0_u64) += 1;
        }
        *received.entry(&m.to).or_insert(0_u64) += 1;
        live[m.slot].push(m.to.clone());
        seen.most_live = seen.most_live.max(live[m.slot].len());
    }
    seen.most_sent = seen.most_sent.max(sent.values().max().copied().unwrap_or(0));
    seen.most_received = seen.most_received.max(received.values().max().copied().unwrap_or(0));
    if seen.most_sent > limit || seen.most_received > limit {
        return Err(broken(format!("more than {limit} copies at once in wave {wave}")));
    }
    Ok(())
}

/// The map with the moves of all waves up to `wave`.
pub(super) fn map_after(plan: &Plan, wave: usize) -> Result<SlotMap, Error> {
    if wave == 0 {
        return Ok(plan.base().clone());
    }
    let mut live = lists(plan.base());
    for m in plan.moves().iter().take_while(|m| m.wave <= wave) {
        let list = &mut live[m.slot];
        match m.from.as_ref().and_then(|from| list.iter().position(|n| n == from)) {
            Some(at) => list[at] = m.to.clone(),
            None => list.push(m.to.clone()),
        }
    }
    for removal in plan.removals().iter().filter(|r| r.wave <= wave) {
        live[removal.slot].retain(|n| *n != removal.node);
    }
    for (list, end) in live.iter_mut().zip(lists(plan.next())) {
        // The primary of the end serves as soon as it has the data.
        if let Some(at) = end.first().and_then(|p| list.iter().position(|n| n == p)) {
            list[..=at].rotate_right(1);
        }
    }
    let nodes = if wave >= plan.waves() {
        plan.next().nodes().clone()
    } else {
        let mut fleet: BTreeMap<NodeId, Node> = BTreeMap::new();
        let all = plan.base().nodes().as_slice().iter().chain(plan.next().nodes().as_slice());
        fleet.extend(all.map(|n| (n.id.clone(), n.clone())));
        Nodes::new(fleet.into_values())?
    };
    let find = |n: &NodeId| nodes.find(n.as_str()).ok_or_else(|| broken(format!("{n} is in no map")));
    let indexes: Vec<Vec<_>> =
        live.iter().map(|l| l.iter().map(find).collect::<Result<_, _>>()).collect::<Result<_, _>>()?;
    // A plan that changes roles alone has no wave, and its map is another one all the same.
    let wave = u64::try_from(wave.min(plan.waves().max(1))).unwrap_or(u64::MAX);
    let epoch = plan.base().epoch().checked_add(wave).ok_or_else(|| {
        Error::from(out_of_range("epoch", plan.base().epoch(), "below 2^64 less the number of waves"))
    })?;
    Ok(SlotMap::from_lists(nodes.clone(), plan.base().slot_hash(), epoch, indexes.len(), &indexes)?)
}
