//! CK-5: the four session guarantees (Terry et al., "Session Guarantees for Weakly Consistent Replicated
//! Data", PDIS 1994).

use std::collections::{BTreeMap, BTreeSet};

use super::Checker;
use crate::history::{Datum, Event, Op, Text};
use crate::verdict::{Evidence, Verdict};

/// Read-your-writes, monotonic reads, monotonic writes, writes-follow-reads, per session and key.
///
/// Reads operations `write` and `read` with a session; a write's `op_id` names it, its result is the
/// version it got; a read's result is the version it saw, its `op_id` the write it saw. A read labelled
/// `lost` or `stale` by its argument promises nothing. Replicas report what they apply as effects of a
/// resource `replica/..` with the write's `op_id`, in their own order.
#[derive(Debug, Default)]
pub struct Sessions {
    ops: BTreeMap<Text, Vec<Op>>,
    applied: BTreeMap<Text, Vec<Text>>,
    judged: u64,
}

/// A checker of [`Sessions`].
#[must_use]
pub fn session_guarantees() -> Box<dyn Checker> {
    Box::new(Sessions::default())
}

impl Checker for Sessions {
    fn feed(&mut self, event: &Event) {
        match event {
            Event::Op(op) if op.is_ok() && matches!(&*op.f, "read" | "write") => {
                if let Some(session) = &op.session {
                    self.judged += 1;
                    self.ops.entry(session.clone()).or_default().push(op.clone());
                }
            }
            Event::Effect(e) if e.accepted && e.resource.starts_with("replica/") => {
                self.applied.entry(e.resource.clone()).or_default().push(e.op_id.clone());
            }
            _ => {}
        }
    }

    fn verdict(mut self: Box<Self>) -> Verdict {
        for (session, ops) in &mut self.ops {
            ops.sort_by_key(|op| op.invoke_ns);
            if let Some(failed) = reads(session, ops) {
                return failed;
            }
        }
        for (replica, log) in &self.applied {
            let places: BTreeMap<&Text, usize> = log.iter().enumerate().rev().map(|(i, w)| (w, i)).collect();
            for (session, ops) in &self.ops {
                if let Some(failed) = order(replica, &places, session, ops) {
                    return failed;
                }
            }
        }
        Verdict::pass(Evidence::of(self.judged))
    }
}

fn version(op: &Op) -> Option<i64> {
    match op.value {
        Some(Datum::Int(version)) => Some(version),
        _ => None,
    }
}

fn labelled(op: &Op) -> bool {
    matches!(&op.arg, Some(Datum::Text(label)) if matches!(&**label, "lost" | "stale"))
}

fn reads(session: &str, ops: &[Op]) -> Option<Verdict> {
    let mut written: BTreeMap<&Text, &Op> = BTreeMap::new();
    let mut seen: BTreeMap<&Text, &Op> = BTreeMap::new();
    for op in ops {
        if &*op.f == "write" {
            written.insert(&op.key, op);
            continue;
        }
        if labelled(op) {
            continue;
        }
        let rules = [(&written, "does not see its own write"), (&seen, "sees less than an earlier read")];
        for (earlier, what) in rules {
            if let Some(other) = earlier.get(&op.key).filter(|o| version(o) > version(op)) {
                let text = format!("session `{session}`: a read of `{}` {what}", op.key);
                return Some(Verdict::fail(text, vec![Event::Op((*other).clone()), Event::Op(op.clone())]));
            }
        }
        seen.insert(&op.key, op);
    }
    None
}

/// On a replica, a write stands after the session's earlier writes and after every write it had read.
fn order(replica: &str, places: &BTreeMap<&Text, usize>, session: &str, ops: &[Op]) -> Option<Verdict> {
    let mut before: BTreeSet<&Text> = BTreeSet::new();
    for op in ops {
        let Some(id) = &op.op_id else { continue };
        if &*op.f == "write"
            && let Some(place) = places.get(id)
        {
            let late = before.iter().find(|b| **b != id && places.get(**b).is_none_or(|p| p > place));
            if let Some(late) = late {
                let text = format!(
                    "`{replica}` has write `{id}` of session `{session}` without or before `{late}`, which it follows"
                );
                return Some(Verdict::fail(text, vec![Event::Op(op.clone())]));
            }
        }
        before.insert(id);
    }
    None
}
