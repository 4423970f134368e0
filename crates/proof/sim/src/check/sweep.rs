//! CK-1: who held what, and did they exclude each other? An interval sweep.

use std::collections::BTreeMap;

use super::Checker;
use crate::history::{Datum, Event, Op, Text};
use crate::verdict::{Evidence, Verdict};

/// At most `capacity` of weight held at once, per key.
///
/// Reads operations `acquire` (its argument is the weight, 1 without one), `renew`, `lost` and `release`.
/// A hold runs from the return of its `acquire` to the earliest of: the deadline that its holder claimed
/// (`until_ns`), the instant at which the holder reported it lost, the invocation of its `release`. The
/// claim is believed, so a claim that is too long is exactly what this finds. An unknown acquire holds
/// nothing: its caller never knew.
#[derive(Debug)]
pub struct Capacity {
    capacity: i64,
    holds: BTreeMap<Text, BTreeMap<Grant, Vec<Mark>>>,
    grants: u64,
}

type Grant = (Option<u64>, Option<Text>);

#[derive(Debug)]
enum Mark {
    Acquired(Op),
    Renewed(Op),
    Ended(u64),
}

impl Mark {
    fn at(&self) -> u64 {
        match self {
            Self::Acquired(op) | Self::Renewed(op) => op.end(),
            Self::Ended(at) => *at,
        }
    }
}

/// At most one holder per key.
#[must_use]
pub fn mutual_exclusion() -> Box<dyn Checker> {
    at_most(1)
}

/// At most `capacity` of weight per key. A semaphore of n: capacity n, weight 1. A read-write lock:
/// capacity n, readers 1, writers n.
#[must_use]
pub fn at_most(capacity: i64) -> Box<dyn Checker> {
    Box::new(Capacity { capacity, holds: BTreeMap::new(), grants: 0 })
}

impl Checker for Capacity {
    fn feed(&mut self, event: &Event) {
        let Event::Op(op) = event else { return };
        let mark = match &*op.f {
            "acquire" if op.is_ok() => {
                self.grants += 1;
                Mark::Acquired(op.clone())
            }
            "renew" if op.is_ok() => Mark::Renewed(op.clone()),
            "lost" | "release" => Mark::Ended(op.invoke_ns),
            _ => return,
        };
        let grants = self.holds.entry(op.key.clone()).or_default();
        grants.entry((op.epoch, op.op_id.clone())).or_default().push(mark);
    }

    fn verdict(self: Box<Self>) -> Verdict {
        for (key, grants) in &self.holds {
            let mut edges = Vec::new();
            for (grant, marks) in grants {
                for (start, end, weight) in segments(marks) {
                    // Ends come before starts at equal instants.
                    edges.push((start, 1, weight, grant));
                    edges.push((end, 0, -weight, grant));
                }
            }
            edges.sort_unstable_by_key(|(at, kind, ..)| (*at, *kind));
            let mut sum = 0;
            let mut open: BTreeMap<&Grant, i64> = BTreeMap::new();
            for (at, _, weight, grant) in edges {
                sum += weight;
                *open.entry(grant).or_default() += weight;
                open.retain(|_, w| *w > 0);
                if sum > self.capacity {
                    let text = format!("`{key}` is held {sum} of {} at {at} ns: {open:?}", self.capacity);
                    let involved = open.keys().flat_map(|g| &grants[*g]).filter_map(|m| match m {
                        Mark::Acquired(op) | Mark::Renewed(op) => Some(Event::Op(op.clone())),
                        Mark::Ended(_) => None,
                    });
                    return Verdict::fail(text, involved.collect());
                }
            }
        }
        Verdict::pass(Evidence::of(self.grants))
    }
}

/// The stretches of time in which a grant was held, by its holder's own claims.
fn segments(marks: &[Mark]) -> Vec<(u64, u64, i64)> {
    let mut marks: Vec<&Mark> = marks.iter().collect();
    marks.sort_by_key(|m| m.at());
    let mut found: Vec<(u64, u64, i64)> = Vec::new();
    let mut weight = 1;
    for mark in marks {
        match mark {
            Mark::Ended(at) => {
                if let Some(last) = found.last_mut() {
                    last.1 = last.1.min(*at);
                }
            }
            Mark::Acquired(op) | Mark::Renewed(op) => {
                if let (Mark::Acquired(_), Some(Datum::Int(w))) = (mark, &op.arg) {
                    weight = *w;
                }
                let until = op.until_ns.unwrap_or(u64::MAX);
                match found.last_mut() {
                    Some(last) if last.1 >= op.end() => last.1 = last.1.max(until),
                    _ => found.push((op.end(), until, weight)),
                }
            }
        }
    }
    found.retain(|(start, end, _)| start < end);
    found
}
