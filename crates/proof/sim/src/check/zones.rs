//! CK-3: is a register linearizable? Decided exactly by zones in O(n log n).
//!
//! Gibbons and Korach, "Testing Shared Memories", SIAM J. Comput. 26(4), 1997: with writes of unique values
//! the question is one of intervals. The condition: reads and plain writes only, every write another value.

use std::collections::{BTreeMap, HashMap};

use super::Checker;
use crate::history::{Datum, Ended, Event, Op, Text};
use crate::verdict::{Evidence, Verdict};

/// One operation on a register, without ornaments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "the input of the decision is exactly this")]
pub struct RegisterOp {
    /// A write; otherwise a read.
    pub is_write: bool,
    /// The value written or read.
    pub value: i64,
    /// When it was called, from 1.
    pub invoke: u64,
    /// When it answered.
    pub end: u64,
    /// How it ended.
    pub outcome: Ended,
}

/// Why a history of a register is not linearizable: indexes of operations involved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// One sentence.
    pub why: &'static str,
    /// The values whose operations clash.
    pub values: Vec<i64>,
}

/// All operations on one value: the write and the reads that saw it.
#[derive(Clone, Copy)]
struct Cluster {
    write: Option<(u64, u64, Ended)>,
    /// Smallest return of a read, largest invocation of a read.
    first_end: u64,
    last_invoke: u64,
    first_read_end: u64,
    reads: u32,
}

const EMPTY: Cluster =
    Cluster { write: None, first_end: u64::MAX, last_invoke: 0, first_read_end: u64::MAX, reads: 0 };

/// Decides whether the operations on one register are linearizable. `initial` is its value before all.
///
/// # Errors
/// The [`Violation`], also when two writes have one value, which the method cannot decide.
///
/// ```
/// use mainstay_sim::check::zones::{RegisterOp, decide};
/// use mainstay_sim::history::Ended;
///
/// let op = |is_write, value, invoke, end| RegisterOp { is_write, value, invoke, end, outcome: Ended::Ok };
/// let fresh = [op(true, 1, 1, 2), op(false, 1, 3, 4)];
/// let stale = [op(true, 1, 1, 2), op(false, 0, 3, 4)];
/// assert!(decide(&fresh, 0).is_ok());
/// assert!(decide(&stale, 0).is_err());
/// ```
pub fn decide(ops: &[RegisterOp], initial: i64) -> Result<(), Violation> {
    let clusters = clusters(ops, initial)?;
    let mut forward: Vec<(u64, u64, i64)> = Vec::new();
    let mut backward: Vec<(u64, u64, i64)> = Vec::new();
    for (value, cluster) in clusters {
        let violation = |why| Err(Violation { why, values: vec![value] });
        let (invoke, mut end) = match cluster.write {
            None if cluster.reads == 0 => continue,
            None => return violation("a value was read that nobody wrote"),
            Some((_, _, Ended::Fail)) if cluster.reads == 0 => continue,
            Some((_, _, Ended::Fail)) => return violation("a value was read whose write certainly failed"),
            Some((_, _, Ended::Unknown)) if cluster.reads == 0 => continue,
            Some((invoke, _, Ended::Unknown)) => (invoke, u64::MAX),
            Some((invoke, end, Ended::Ok)) => (invoke, end),
        };
        if cluster.first_read_end < invoke {
            return violation("a value was read before its write was called");
        }
        end = end.min(cluster.first_end);
        let start = cluster.last_invoke.max(invoke);
        if end < start {
            forward.push((end, start, value));
        } else {
            backward.push((start, end, value));
        }
    }
    overlaps(&mut forward, &backward)
}

fn overlaps(forward: &mut [(u64, u64, i64)], backward: &[(u64, u64, i64)]) -> Result<(), Violation> {
    forward.sort_unstable();
    for pair in forward.windows(2) {
        if pair[1].0 < pair[0].1 {
            let why = "two values were each seen before and after the other";
            return Err(Violation { why, values: vec![pair[0].2, pair[1].2] });
        }
    }
    for (left, right, value) in backward {
        let before = forward.partition_point(|f| f.0 < *left);
        if let Some(f) = before.checked_sub(1).map(|i| forward[i])
            && f.1 > *right
        {
            let why = "a value lies wholly between two sights of another";
            return Err(Violation { why, values: vec![*value, f.2] });
        }
    }
    Ok(())
}

/// Operations by value. Small values, the normal case, need no hashing.
fn clusters(ops: &[RegisterOp], initial: i64) -> Result<Vec<(i64, Cluster)>, Violation> {
    let values = || ops.iter().map(|o| o.value).chain([initial]);
    let (low, high) = (values().min().unwrap_or(0), values().max().unwrap_or(0));
    let span = usize::try_from(high.abs_diff(low)).unwrap_or(usize::MAX);
    let mut found: Vec<(i64, Cluster)>;
    if span <= ops.len().saturating_mul(4).saturating_add(1_024) {
        found = (0..=span).map(|i| (low.wrapping_add(i64::try_from(i).unwrap_or(0)), EMPTY)).collect();
        let index = |value: i64| usize::try_from(value.abs_diff(low)).unwrap_or(0);
        found[index(initial)].1.write = Some((0, 0, Ended::Ok));
        found[index(initial)].1.first_end = 0;
        for op in ops {
            add(&mut found[index(op.value)], op)?;
        }
    } else {
        // The order of the map is never seen: zones are sorted by time.
        let mut places: HashMap<i64, usize> = HashMap::from([(initial, 0)]);
        found = vec![(initial, Cluster { write: Some((0, 0, Ended::Ok)), first_end: 0, ..EMPTY })];
        for op in ops {
            let next = found.len();
            let place = *places.entry(op.value).or_insert(next);
            if place == next {
                found.push((op.value, EMPTY));
            }
            add(&mut found[place], op)?;
        }
    }
    Ok(found)
}

fn add((value, cluster): &mut (i64, Cluster), op: &RegisterOp) -> Result<(), Violation> {
    if op.is_write {
        if cluster.write.is_some() {
            let why = "two writes have one value: this method cannot decide";
            return Err(Violation { why, values: vec![*value] });
        }
        cluster.write = Some((op.invoke, op.end, op.outcome));
    } else if op.outcome == Ended::Ok {
        cluster.reads += 1;
        cluster.first_end = cluster.first_end.min(op.end);
        cluster.first_read_end = cluster.first_read_end.min(op.end);
        cluster.last_invoke = cluster.last_invoke.max(op.invoke);
    }
    Ok(())
}

/// Registers, one per key: operations `read` (result: the value) and `write` (argument: a value that no
/// other write of the key has).
#[derive(Debug)]
pub struct Register {
    initial: i64,
    keys: BTreeMap<Text, Vec<(RegisterOp, Op)>>,
    odd: Option<String>,
}

/// A checker of [`Register`] whose keys begin with `initial`.
#[must_use]
pub fn register(initial: i64) -> Box<dyn Checker> {
    Box::new(Register { initial, keys: BTreeMap::new(), odd: None })
}

impl Checker for Register {
    fn feed(&mut self, event: &Event) {
        let Event::Op(op) = event else { return };
        let (is_write, datum) = match &*op.f {
            "write" => (true, &op.arg),
            "read" => (false, &op.value),
            _ => return,
        };
        let value = match datum {
            Some(Datum::Int(value)) => *value,
            _ if !is_write && !op.is_ok() => 0,
            _ => {
                self.odd = Some(format!("an operation on `{}` has no number: {op:?}", op.key));
                return;
            }
        };
        let plain = RegisterOp { is_write, value, invoke: op.invoke_ns, end: op.end(), outcome: op.outcome };
        self.keys.entry(op.key.clone()).or_default().push((plain, op.clone()));
    }

    fn verdict(self: Box<Self>) -> Verdict {
        if let Some(odd) = self.odd {
            return Verdict::Unknown(odd);
        }
        let mut judged = 0;
        for (key, ops) in &self.keys {
            let plain: Vec<RegisterOp> = ops.iter().map(|(p, _)| *p).collect();
            judged += plain.iter().filter(|p| p.outcome == Ended::Ok).count() as u64;
            if let Err(violation) = decide(&plain, self.initial) {
                let involved = ops.iter().filter(|(p, _)| violation.values.contains(&p.value));
                let events = involved.map(|(_, op)| Event::Op(op.clone())).take(20).collect();
                return Verdict::fail(format!("`{key}`: {} {:?}", violation.why, violation.values), events);
            }
        }
        Verdict::pass(Evidence::of(judged))
    }
}
