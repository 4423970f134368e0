//! CK-4: do the books balance?

use std::collections::{BTreeMap, BTreeSet};

use super::Checker;
use crate::history::{Datum, Ended, Event, Op, Text};
use crate::verdict::{Evidence, Verdict};

/// Effects of sagas, from the participants' own books: each idempotency key took effect at most once, and
/// per saga the net effect of every step is 0, or of every step is 1.
///
/// Reads accepted effects; the key is `saga/step`, the amount +1 for an action and -1 for an undo. Sagas
/// named by an operation `left_open` may be uneven: a person still has them in hand.
#[derive(Debug, Default)]
pub struct Ledger {
    seen: BTreeMap<(Text, Text), Event>,
    net: BTreeMap<Text, BTreeMap<Text, i64>>,
    open: BTreeSet<Text>,
    steps: BTreeSet<Text>,
    judged: u64,
    failed: Option<Verdict>,
}

/// A checker of [`Ledger`].
#[must_use]
pub fn ledger() -> Box<dyn Checker> {
    Box::new(Ledger::default())
}

impl Checker for Ledger {
    fn feed(&mut self, event: &Event) {
        match event {
            Event::Op(op) if &*op.f == "left_open" => {
                self.open.insert(op.key.clone());
            }
            Event::Effect(effect) if effect.accepted => {
                self.judged += 1;
                let id = (effect.resource.clone(), effect.op_id.clone());
                if let Some(first) = self.seen.insert(id, event.clone())
                    && self.failed.is_none()
                {
                    let text = format!("`{}` took effect twice at `{}`", effect.op_id, effect.resource);
                    self.failed = Some(Verdict::fail(text, vec![first, event.clone()]));
                }
                let (saga, step) = match effect.key.rsplit_once('/') {
                    Some((saga, step)) => (saga.into(), step.into()),
                    None => (effect.key.clone(), Text::from("")),
                };
                self.steps.insert(Text::clone(&step));
                *self.net.entry(saga).or_default().entry(step).or_default() += effect.amount;
            }
            _ => {}
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        if let Some(failed) = self.failed {
            return failed;
        }
        for (saga, steps) in self.net.iter().filter(|(saga, _)| !self.open.contains(*saga)) {
            let of = |step: &Text| steps.get(step).copied().unwrap_or(0);
            let none = self.steps.iter().all(|s| of(s) == 0);
            let all = self.steps.iter().all(|s| of(s) == 1);
            if !none && !all {
                return Verdict::fail(format!("saga `{saga}` is half done: {steps:?}"), Vec::new());
            }
        }
        Verdict::pass(Evidence::of(self.judged).with("sagas", self.net.len() as f64))
    }
}

/// A counter that is read and written under a lock: no update is lost and no stale holder writes.
///
/// Reads operations `add` (outcome as the caller knew) and one `total` with the final value:
/// `ok <= total <= ok + unknown`.
#[derive(Debug, Default)]
pub struct Counter {
    keys: BTreeMap<Text, (i64, i64, Option<i64>)>,
    judged: u64,
}

/// A checker of [`Counter`].
#[must_use]
pub fn counter() -> Box<dyn Checker> {
    Box::new(Counter::default())
}

impl Checker for Counter {
    fn feed(&mut self, event: &Event) {
        let Event::Op(Op { f, key, outcome, value, .. }) = event else { return };
        let (ok, unknown, total) = match &**f {
            "add" | "total" => self.keys.entry(key.clone()).or_default(),
            _ => return,
        };
        match (&**f, outcome, value) {
            ("total", Ended::Ok, Some(Datum::Int(n))) => *total = Some(*n),
            ("add", Ended::Ok, _) => {
                self.judged += 1;
                *ok += 1;
            }
            ("add", Ended::Unknown, _) => *unknown += 1,
            _ => {}
        }
    }

    fn verdict(self: Box<Self>) -> Verdict {
        for (key, (ok, unknown, total)) in &self.keys {
            let Some(total) = total else {
                return Verdict::Unknown(format!("nobody read the final value of `{key}`"));
            };
            if total < ok || *total > ok + unknown {
                let text = format!("`{key}` is {total}; {ok} additions succeeded, {unknown} are unknown");
                return Verdict::fail(text, Vec::new());
            }
        }
        Verdict::pass(Evidence::of(self.judged))
    }
}
