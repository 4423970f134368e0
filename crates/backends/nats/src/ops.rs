//! The acquisitions that this process asked for: a store is told an op id, the bucket wants names.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_clock::Instant;

/// What ended this long ago is forgotten, should nobody have released it.
const KEEP: Duration = Duration::from_secs(60);
/// From how many on the forgotten are looked for; doubles with what is alive.
const SWEEP: usize = 1_024;
/// Writes of one operation whose fate is not known, remembered at most: older ones are overtaken by newer.
const DOUBTS: usize = 256;

/// One acquisition.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) names: Arc<[String]>,
    pub(crate) ttl: Duration,
    /// When its lease ends by its own clock; what was never told that it holds has none.
    pub(crate) until: Option<Instant>,
    /// The same, should the answer to its last question have been lost.
    pub(crate) at_most: Instant,
    /// It has a place in line, or some of its names.
    present: bool,
    /// Name and expected sequence of writes that may still land.
    doubts: Vec<(String, u64)>,
    forget_at: Instant,
}

impl Op {
    /// Whether a write of it may still land where `name` stands at `seq`.
    pub(crate) fn may_land(&self, name: &str, seq: u64) -> bool {
        self.doubts.iter().any(|(n, s)| n == name && *s == seq)
    }
}

#[derive(Debug)]
struct Map {
    ops: HashMap<String, Op>,
    sweep_at: usize,
}

/// The acquisitions of one store.
#[derive(Debug)]
pub(crate) struct Ops(Mutex<Map>);

impl Ops {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Map { ops: HashMap::new(), sweep_at: SWEEP }))
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(&self, op_id: &str, change: impl FnOnce(&mut Op)) {
        if let Some(op) = self.lock().ops.get_mut(op_id) {
            change(op);
        }
    }

    /// A request goes out. False when the op id already stands for other names.
    pub(crate) fn asked(&self, op_id: &str, names: &[String], ttl: Duration, now: Instant) -> bool {
        let mut map = self.lock();
        if map.ops.len() >= map.sweep_at {
            map.ops.retain(|_, op| op.forget_at > now);
            map.sweep_at = (map.ops.len() * 2).max(SWEEP);
        }
        let forget_at = now.saturating_add(ttl).saturating_add(KEEP);
        let op = map.ops.entry(op_id.to_owned()).or_insert_with(|| Op {
            names: names.into(),
            ttl,
            until: None,
            at_most: now,
            present: false,
            doubts: Vec::new(),
            forget_at,
        });
        if *op.names != *names {
            return false;
        }
        (op.ttl, op.forget_at, op.at_most) = (ttl, forget_at, now.saturating_add(ttl));
        true
    }

    /// A write leaves that takes `name` where it stands at `seq`: until it is answered it may land any time.
    pub(crate) fn sent(&self, op_id: &str, name: &str, seq: u64) {
        self.with(op_id, |op| {
            if !op.may_land(name, seq) {
                if op.doubts.len() >= DOUBTS {
                    op.doubts.remove(0);
                }
                op.doubts.push((name.to_owned(), seq));
            }
        });
    }

    /// The name stands at `seq` now, by the leader's word: nothing that expected it to stand before that can land.
    pub(crate) fn stands(&self, op_id: &str, name: &str, seq: u64) {
        self.with(op_id, |op| op.doubts.retain(|(n, s)| n != name || *s >= seq));
    }

    /// Granted or renewed by a request sent at `sent`.
    pub(crate) fn granted(&self, op_id: &str, sent: Instant) {
        self.with(op_id, |op| {
            op.until = Some(sent.saturating_add(op.ttl));
            op.forget_at = sent.saturating_add(op.ttl).saturating_add(KEEP);
        });
    }

    /// Whether it has a place in line, or some of its names.
    pub(crate) fn present(&self, op_id: &str, is_there: bool) {
        self.with(op_id, |op| op.present = is_there);
    }

    pub(crate) fn get(&self, op_id: &str) -> Option<Op> {
        self.lock().ops.get(op_id).cloned()
    }

    /// Nothing was granted: forgets it, unless it held, or is somewhere, or something may still land.
    pub(crate) fn refused(&self, op_id: &str) {
        let mut map = self.lock();
        if map.ops.get(op_id).is_some_and(|op| op.until.is_none() && !op.present && op.doubts.is_empty()) {
            map.ops.remove(op_id);
        }
    }

    pub(crate) fn released(&self, op_id: &str) {
        self.lock().ops.remove(op_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(1);

    fn names(name: &str) -> Vec<String> {
        vec![name.to_owned()]
    }

    #[test]
    fn f19_what_may_still_land_is_remembered_until_the_name_moved_on() {
        let ops = Ops::new();
        assert!(ops.asked("x", &names("a"), TTL, Instant::ZERO));
        ops.sent("x", "a", 7);
        ops.refused("x");
        let op = ops.get("x").unwrap();
        assert!(op.may_land("a", 7) && !op.may_land("a", 8) && !op.may_land("b", 7));
        for seq in [0, 6, 7] {
            ops.stands("x", "a", seq);
            ops.refused("x");
            assert!(ops.get("x").unwrap().may_land("a", 7), "it stands at {seq}, not beyond");
        }
        ops.stands("x", "b", 9);
        assert!(ops.get("x").unwrap().may_land("a", 7), "another name moved on");
        ops.stands("x", "a", 8);
        ops.refused("x");
        assert!(ops.get("x").is_none());
    }

    #[test]
    fn what_nobody_releases_is_forgotten() {
        let ops = Ops::new();
        for n in 0..SWEEP {
            ops.asked(&format!("op{n}"), &names("a"), TTL, Instant::ZERO);
        }
        ops.asked("late", &names("a"), TTL, Instant::ZERO.saturating_add(TTL + KEEP));
        assert_eq!(ops.lock().ops.len(), 1);
    }

    #[test]
    fn an_op_id_stands_for_one_set_of_names() {
        let ops = Ops::new();
        assert!(ops.asked("x", &names("a"), TTL, Instant::ZERO));
        assert!(!ops.asked("x", &names("b"), TTL, Instant::ZERO));
        ops.released("x");
        assert!(ops.asked("x", &names("b"), TTL, Instant::ZERO));
    }
}
