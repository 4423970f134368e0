//! CK-2: fencing tokens only grow.

use std::collections::BTreeMap;

use super::Checker;
use crate::history::{Effect, Event, Op, Text};
use crate::verdict::{Evidence, Verdict};

/// Epochs grow: a grant invoked after another one returned has a larger epoch, store restarts included; in
/// each resource's own order, accepted epochs never decrease; one epoch has one owner.
///
/// Reads operations `acquire` with an epoch, and effects with an epoch.
#[derive(Debug, Default)]
pub struct Epochs {
    grants: BTreeMap<Text, Vec<Op>>,
    accepted: BTreeMap<(Text, Text), Effect>,
    judged: u64,
    failed: Option<Verdict>,
}

/// A checker of [`Epochs`].
#[must_use]
pub fn epochs_grow() -> Box<dyn Checker> {
    Box::new(Epochs::default())
}

impl Checker for Epochs {
    fn feed(&mut self, event: &Event) {
        match event {
            Event::Op(op) if &*op.f == "acquire" && op.is_ok() && op.epoch.is_some() => {
                self.judged += 1;
                self.grants.entry(op.key.clone()).or_default().push(op.clone());
            }
            Event::Effect(effect) if effect.accepted && effect.epoch.is_some() => {
                self.judged += 1;
                let place = (effect.resource.clone(), effect.key.clone());
                if let Some(last) = self.accepted.get(&place)
                    && last.epoch > effect.epoch
                    && self.failed.is_none()
                {
                    let text = format!(
                        "`{}` accepted epoch {:?} after {:?}: a stale holder acted",
                        effect.resource, effect.epoch, last.epoch
                    );
                    let events = vec![Event::Effect(last.clone()), event.clone()];
                    self.failed = Some(Verdict::fail(text, events));
                }
                self.accepted.insert(place, effect.clone());
            }
            _ => {}
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        if let Some(failed) = self.failed {
            return failed;
        }
        for (key, grants) in &self.grants {
            if let Some(failed) = judge_grants(key, grants) {
                return failed;
            }
        }
        Verdict::pass(Evidence::of(self.judged))
    }
}

fn judge_grants(key: &str, grants: &[Op]) -> Option<Verdict> {
    let mut by_invoke: Vec<&Op> = grants.iter().collect();
    by_invoke.sort_by_key(|op| op.invoke_ns);
    let mut by_return = by_invoke.clone();
    by_return.sort_by_key(|op| op.end());
    let mut returned = by_return.into_iter().peekable();
    let mut largest: Option<&Op> = None;
    let mut owners: BTreeMap<Option<u64>, &Op> = BTreeMap::new();
    for op in by_invoke {
        while let Some(earlier) = returned.next_if(|r| r.end() < op.invoke_ns) {
            if largest.is_none_or(|l| l.epoch < earlier.epoch) {
                largest = Some(earlier);
            }
        }
        // The same acquisition asked again keeps its epoch.
        let same = |other: &Op| other.op_id.is_some() && other.op_id == op.op_id;
        if let Some(l) = largest.filter(|l| l.epoch >= op.epoch && !same(l)) {
            let text = format!("`{key}`: epoch {:?} was granted after {:?} was", op.epoch, l.epoch);
            return Some(Verdict::fail(text, vec![Event::Op(l.clone()), Event::Op(op.clone())]));
        }
        match owners.get(&op.epoch) {
            Some(other) if !same(other) => {
                let text = format!("`{key}`: epoch {:?} has two owners", op.epoch);
                return Some(Verdict::fail(text, vec![Event::Op((*other).clone()), Event::Op(op.clone())]));
            }
            _ => {
                owners.insert(op.epoch, op);
            }
        }
    }
    None
}
