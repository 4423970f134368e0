//! CK-7: is an object linearizable? A bounded search (Wing and Gong, "Testing and Verifying Concurrent
//! Objects", 1993; with the memo of Lowe, "Testing for linearizability", 2017).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::Checker;
use crate::history::{Datum, Ended, Event, Op, Text};
use crate::verdict::{Evidence, Verdict};

/// A sequential object.
pub trait Model: Send {
    /// Its state.
    type State: Clone + Ord + fmt::Debug + Send;

    /// Its state before all operations.
    fn initial(&self) -> Self::State;

    /// The state after `op`, or `None` when `op` cannot have answered as it did in `state`. The answer of an
    /// operation whose outcome is unknown is not known: any is possible.
    fn step(&self, state: &Self::State, op: &Op) -> Option<Self::State>;
}

/// How far the search goes. A limit that is hit makes the verdict unknown, never a pass.
#[derive(Clone, Copy, Debug)]
#[allow(clippy::exhaustive_structs, reason = "there is one limit: time would differ from run to run")]
pub struct Limits {
    /// Most states visited per object.
    pub states: usize,
}

impl Default for Limits {
    /// A million states: seconds at worst, hundreds of operations in practice.
    fn default() -> Self {
        Self { states: 1_000_000 }
    }
}

/// Searches a linearization per key. Only operations that the model answers count; each unknown operation
/// may take effect anywhere after its call or never, so a few of them make the search dear.
pub struct Wgl<M: Model> {
    model: M,
    limits: Limits,
    keys: BTreeMap<Text, Vec<Op>>,
}

/// A checker of [`Wgl`].
#[must_use]
pub fn linearizable<M: Model + 'static>(model: M, limits: Limits) -> Box<dyn Checker> {
    Box::new(Wgl { model, limits, keys: BTreeMap::new() })
}

impl<M: Model> Checker for Wgl<M> {
    fn feed(&mut self, event: &Event) {
        if let Event::Op(op) = event
            && op.outcome != Ended::Fail
        {
            self.keys.entry(op.key.clone()).or_default().push(op.clone());
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        let mut visited = 0;
        let mut judged = 0;
        let mut unknown = None;
        for (key, ops) in &self.keys {
            judged += ops.iter().filter(|o| o.is_ok()).count() as u64;
            match search(&self.model, ops, self.limits.states) {
                Ok(states) => visited += states,
                Err(Stuck::Illegal(best)) => {
                    let text = format!("`{key}`: no order explains the answers");
                    return Verdict::fail(text, best.into_iter().map(Event::Op).collect());
                }
                Err(Stuck::Limit) => {
                    unknown = Some(format!("`{key}`: not decided within {} states", self.limits.states));
                }
            }
        }
        match unknown {
            Some(why) => Verdict::Unknown(why),
            None => Verdict::pass(Evidence::of(judged).with("states", visited as f64)),
        }
    }
}

impl<M: Model> fmt::Debug for Wgl<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wgl").field("limits", &self.limits).finish_non_exhaustive()
    }
}

enum Stuck {
    Illegal(Vec<Op>),
    Limit,
}

/// A set of operations already in the order, as bits.
type Done = Vec<u64>;

fn has(done: &Done, i: usize) -> bool {
    done[i / 64] & (1 << (i % 64)) != 0
}

fn search<M: Model>(model: &M, ops: &[Op], most: usize) -> Result<usize, Stuck> {
    let mut ops: Vec<&Op> = ops.iter().collect();
    ops.sort_by_key(|op| op.invoke_ns);
    let none: Done = vec![0; ops.len().div_ceil(64)];
    let mut seen: BTreeSet<(Done, M::State)> = BTreeSet::new();
    let mut stack = vec![(none, model.initial())];
    let mut best: (usize, Vec<Op>) = (0, Vec::new());
    while let Some((done, state)) = stack.pop() {
        let open = |i: &usize| !has(&done, *i);
        let must: Vec<usize> = (0..ops.len()).filter(open).filter(|i| ops[*i].is_ok()).collect();
        // What answered first bounds what may come next: nothing called after it can be before it.
        let Some(first_end) = must.iter().map(|i| ops[*i].end()).min() else { return Ok(seen.len() + 1) };
        if best.1.is_empty() || ops.len() - must.len() > best.0 {
            let blocked = must.iter().filter(|i| ops[**i].invoke_ns <= first_end).take(8);
            best = (ops.len() - must.len(), blocked.map(|i| ops[*i].clone()).collect());
        }
        let next = (0..ops.len()).filter(open).filter(|i| ops[*i].invoke_ns <= first_end);
        // Pushed in reverse, so that certain operations in order of their call come first.
        let mut candidates: Vec<usize> = next.collect();
        candidates.sort_by_key(|i| (ops[*i].is_ok(), std::cmp::Reverse(*i)));
        for i in candidates {
            if let Some(after) = model.step(&state, ops[i]) {
                let mut with = done.clone();
                with[i / 64] |= 1 << (i % 64);
                if seen.insert((with.clone(), after.clone())) {
                    stack.push((with, after));
                }
            }
        }
        if seen.len() > most {
            return Err(Stuck::Limit);
        }
    }
    Err(Stuck::Illegal(best.1))
}

fn int(datum: Option<&Datum>) -> Option<i64> {
    match datum {
        Some(Datum::Int(n)) => Some(*n),
        _ => None,
    }
}

/// A register with `read`, `write` and `cas`: a `cas` has the expected value as `epoch` and the new one as
/// argument, and answers 1 or 0.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct CasRegister;

impl Model for CasRegister {
    type State = i64;

    fn initial(&self) -> i64 {
        0
    }

    fn step(&self, state: &i64, op: &Op) -> Option<i64> {
        let known = op.is_ok();
        match &*op.f {
            "write" => int(op.arg.as_ref()),
            "read" => (!known || int(op.value.as_ref()) == Some(*state)).then_some(*state),
            "cas" => {
                let swaps = op.epoch.and_then(|e| i64::try_from(e).ok()) == Some(*state);
                let said = int(op.value.as_ref()).map(|n| n == 1);
                let after = if swaps { int(op.arg.as_ref()) } else { Some(*state) };
                after.filter(|_| !known || said == Some(swaps))
            }
            _ => None,
        }
    }
}

/// A lock without a lease: `lock` and `unlock` by the caller named in the argument.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct LockModel;

impl Model for LockModel {
    type State = Option<Datum>;

    fn initial(&self) -> Option<Datum> {
        None
    }

    fn step(&self, state: &Option<Datum>, op: &Op) -> Option<Option<Datum>> {
        match &*op.f {
            "lock" => state.is_none().then(|| op.arg.clone()),
            "unlock" => (*state == op.arg).then_some(None),
            _ => None,
        }
    }
}

/// A queue, first in first out: `push` (argument) and `pop` (result; no result when it is empty).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct QueueModel;

impl Model for QueueModel {
    type State = Vec<Datum>;

    fn initial(&self) -> Vec<Datum> {
        Vec::new()
    }

    fn step(&self, state: &Vec<Datum>, op: &Op) -> Option<Vec<Datum>> {
        match &*op.f {
            "push" => Some(state.iter().cloned().chain(op.arg.clone()).collect()),
            "pop" => {
                let legal = !op.is_ok() || state.first() == op.value.as_ref();
                legal.then(|| state.iter().skip(1).cloned().collect())
            }
            _ => None,
        }
    }
}
