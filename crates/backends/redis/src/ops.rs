//! The acquisitions that this process asked for: a store is told an op id, the server wants keys.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::lease::{Grant, Share};

use crate::keys::Keys;
use crate::node::locked;
use crate::quorum::{DRIFT_DIVISOR, DRIFT_FLOOR};

/// What ended this long ago is forgotten, should nobody have released it.
const KEEP: Duration = Duration::from_secs(60);
/// From how many on the forgotten are looked for; doubles with what is alive.
const SWEEP: usize = 1_024;

/// One acquisition.
#[derive(Clone, Debug)]
pub(crate) struct Op {
    pub(crate) keys: Arc<[Keys]>,
    pub(crate) ttl: Duration,
    pub(crate) share: Share,
    /// What was granted last; empty before.
    pub(crate) grants: Vec<Grant>,
    /// Requests per server whose fate is not known: each may still take effect.
    pub(crate) open: Vec<u32>,
    /// Requests per server that were ever sent.
    sent: Vec<u32>,
    /// It may have a place in line.
    pub(crate) waits: bool,
    /// Per server: the life in which it last said that it holds, and what became of its release there.
    there: Vec<There>,
    until: Instant,
}

/// What may still take effect on a server when a release goes out to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Open {
    /// Nothing: every request was answered.
    None,
    /// The one request that was ever sent, unless the server has heard it already.
    Once,
    /// Any of several.
    Several,
}

/// One acquisition on one server.
#[derive(Clone, Copy, Debug, Default)]
struct There {
    held: Option<u64>,
    release: Release,
}

#[derive(Clone, Copy, Debug, Default)]
enum Release {
    /// It found all names held, or not.
    Answered(bool),
    #[default]
    None,
    /// It may have taken effect.
    Sent,
}

impl Op {
    /// Whether an acquisition may still land on any server.
    pub(crate) fn in_doubt(&self) -> bool {
        self.open.iter().any(|n| *n > 0)
    }

    /// What may still take effect on this server.
    pub(crate) fn open_on(&self, server: usize) -> Open {
        match (self.open.get(server), self.sent.get(server)) {
            (Some(0), _) => Open::None,
            (Some(1), Some(1)) => Open::Once,
            _ => Open::Several,
        }
    }

    /// What an earlier release was answered by this server.
    pub(crate) fn freed(&self, server: usize) -> Option<bool> {
        match self.there.get(server)?.release {
            Release::Answered(all) => Some(all),
            Release::None | Release::Sent => None,
        }
    }

    /// Whether an earlier release may have taken effect on this server.
    pub(crate) fn was_released(&self, server: usize) -> bool {
        self.there.get(server).is_some_and(|t| !matches!(t.release, Release::None))
    }

    /// The life in which this server last said that it holds, as long as that is sure to last there by itself.
    pub(crate) fn held_in(&self, server: usize, now: Instant) -> Option<u64> {
        let sure = self.ttl.saturating_sub(self.ttl / DRIFT_DIVISOR).saturating_sub(DRIFT_FLOOR);
        let asked = self.until.saturating_sub(self.ttl);
        self.there.get(server)?.held.filter(|_| now < asked.saturating_add(sure))
    }
}

#[derive(Debug)]
struct Map {
    ops: HashMap<String, Op>,
    sweep_at: usize,
}

/// The acquisitions of one store.
#[derive(Debug)]
pub(crate) struct Ops {
    map: Mutex<Map>,
    servers: usize,
}

impl Ops {
    pub(crate) fn new(servers: usize) -> Self {
        Self { map: Mutex::new(Map { ops: HashMap::new(), sweep_at: SWEEP }), servers }
    }

    /// A request goes out: from now on it may take effect on every server. What it was granted before, if it
    /// was; none when the op id already stands for other names.
    pub(crate) fn asked(
        &self,
        op_id: &str,
        keys: &Arc<[Keys]>,
        ttl: Duration,
        share: Share,
        now: Instant,
    ) -> Option<Vec<Grant>> {
        let mut map = locked(&self.map);
        if map.ops.len() >= map.sweep_at {
            map.ops.retain(|_, op| op.until.saturating_add(KEEP) > now);
            map.sweep_at = (map.ops.len() * 2).max(SWEEP);
        }
        let until = now.saturating_add(ttl);
        let op = map.ops.entry(op_id.to_owned()).or_insert_with(|| Op {
            keys: Arc::clone(keys),
            ttl,
            share,
            grants: Vec::new(),
            open: vec![0; self.servers],
            sent: vec![0; self.servers],
            waits: false,
            there: vec![There::default(); self.servers],
            until,
        });
        if op.keys != *keys {
            return None;
        }
        (op.ttl, op.share, op.until) = (ttl, share, until);
        // What was known of it is not what this may make of it.
        op.there.fill(There::default());
        op.open.iter_mut().chain(&mut op.sent).for_each(|n| *n += 1);
        Some(op.grants.clone())
    }

    /// The fate of one request to `server` is known.
    pub(crate) fn settled(&self, op_id: &str, server: usize) {
        if let Some(open) = locked(&self.map).ops.get_mut(op_id).and_then(|op| op.open.get_mut(server)) {
            *open = open.saturating_sub(1);
        }
    }

    pub(crate) fn granted(&self, op_id: &str, grants: &[Grant]) {
        if let Some(op) = locked(&self.map).ops.get_mut(op_id) {
            grants.clone_into(&mut op.grants);
            op.waits = false;
        }
    }

    fn there(&self, op_id: &str, server: usize, change: impl FnOnce(&mut There)) {
        let mut map = locked(&self.map);
        if let Some(there) = map.ops.get_mut(op_id).and_then(|op| op.there.get_mut(server)) {
            change(there);
        }
    }

    /// A server said that it holds, to a question sent in this life of it; none when that does not last by itself.
    pub(crate) fn holds(&self, op_id: &str, server: usize, life: Option<u64>) {
        self.there(op_id, server, |t| t.held = life);
    }

    /// A release goes out to a server: what it may come before. None when the op is forgotten.
    pub(crate) fn releases(&self, op_id: &str, server: usize) -> Option<Open> {
        let mut map = locked(&self.map);
        let op = map.ops.get_mut(op_id)?;
        if let Some(there) = op.there.get_mut(server)
            && matches!(there.release, Release::None)
        {
            there.release = Release::Sent;
        }
        Some(op.open_on(server))
    }

    /// Whether a request may be sent to a server once more: not behind a release, which may have found the first one heard.
    pub(crate) fn repeats(&self, op_id: &str, server: usize) -> bool {
        let mut map = locked(&self.map);
        let Some(op) = map.ops.get_mut(op_id).filter(|op| !op.was_released(server)) else { return false };
        op.sent[server] += 1;
        true
    }

    /// It did not take effect, and none before it did.
    pub(crate) fn not_released(&self, op_id: &str, server: usize) {
        self.there(op_id, server, |t| t.release = Release::None);
    }

    /// What it was answered: whether it found all names held.
    pub(crate) fn freed(&self, op_id: &str, server: usize, all: bool) {
        self.there(op_id, server, |t| t.release = Release::Answered(all));
    }

    /// Whether it may have a place in line.
    pub(crate) fn waits(&self, op_id: &str, waits: bool) {
        if let Some(op) = locked(&self.map).ops.get_mut(op_id) {
            op.waits = waits;
        }
    }

    pub(crate) fn renewed(&self, op_id: &str, now: Instant) {
        if let Some(op) = locked(&self.map).ops.get_mut(op_id) {
            op.until = now.saturating_add(op.ttl);
        }
    }

    /// It shares from now on.
    pub(crate) fn shares(&self, op_id: &str) {
        if let Some(op) = locked(&self.map).ops.get_mut(op_id) {
            op.share = Share::Shared;
        }
    }

    pub(crate) fn get(&self, op_id: &str) -> Option<Op> {
        locked(&self.map).ops.get(op_id).cloned()
    }

    /// Nothing was granted: forgets it, unless it holds or waits, or something may still take effect.
    pub(crate) fn refused(&self, op_id: &str) {
        let mut map = locked(&self.map);
        if map.ops.get(op_id).is_some_and(|op| op.grants.is_empty() && !op.waits && !op.in_doubt()) {
            map.ops.remove(op_id);
        }
    }

    pub(crate) fn released(&self, op_id: &str) {
        locked(&self.map).ops.remove(op_id);
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        locked(&self.map).ops.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyProfile;

    const TTL: Duration = Duration::from_secs(1);

    #[test]
    fn what_nobody_releases_is_forgotten_and_what_is_in_doubt_is_kept() {
        let ops = Ops::new(2);
        let keys: Arc<[Keys]> = Arc::new([KeyProfile::Verbatim.keys("a", "a").unwrap()]);
        let ask = |op: &str, at: Instant| ops.asked(op, &keys, TTL, Share::Exclusive, at).is_some();
        assert!(ask("x", Instant::ZERO));
        ops.settled("x", 0);
        ops.refused("x");
        assert!(ops.get("x").unwrap().in_doubt(), "server 1 has not answered");
        ops.settled("x", 1);
        ops.refused("x");
        assert!(ops.get("x").is_none());
        for n in 0..SWEEP {
            ask(&format!("op{n}"), Instant::ZERO);
        }
        ask("late", Instant::ZERO.saturating_add(TTL + KEEP));
        assert_eq!(ops.len(), 1);
    }

    #[test]
    fn s4_only_a_release_that_may_have_taken_effect_makes_the_next_one_a_repetition() {
        let ops = Ops::new(2);
        let keys: Arc<[Keys]> = Arc::new([KeyProfile::Verbatim.keys("a", "a").unwrap()]);
        let at = |ms| Instant::ZERO.saturating_add(Duration::from_millis(ms));
        ops.asked("x", &keys, TTL, Share::Exclusive, at(0));
        ops.holds("x", 0, Some(7));
        let op = || ops.get("x").unwrap();
        assert_eq!((op().held_in(0, at(987)), op().held_in(1, at(0))), (Some(7), None));
        assert_eq!(op().held_in(0, at(988)), None, "it may have ended by itself");
        ops.releases("x", 0);
        ops.not_released("x", 0);
        assert!(!op().was_released(0), "it was never sent");
        ops.releases("x", 0);
        assert!(op().was_released(0) && !op().was_released(1));
        ops.freed("x", 0, true);
        ops.releases("x", 0);
        assert_eq!((op().freed(0), op().freed(1)), (Some(true), None), "what was answered stays");
        // Asked for anew it is another hold.
        ops.asked("x", &keys, TTL, Share::Exclusive, at(500));
        assert!(!op().was_released(0) && op().held_in(0, at(500)).is_none());
    }

    #[test]
    fn a_release_knows_how_many_requests_it_may_come_before_and_none_follows_it() {
        let ops = Ops::new(2);
        let keys: Arc<[Keys]> = Arc::new([KeyProfile::Verbatim.keys("a", "a").unwrap()]);
        let ask = || ops.asked("x", &keys, TTL, Share::Exclusive, Instant::ZERO).is_some();
        assert!(ask());
        ops.settled("x", 0);
        assert_eq!((ops.releases("x", 0), ops.releases("x", 1)), (Some(Open::None), Some(Open::Once)));
        assert!(!ops.repeats("x", 1), "a release may have found it heard");
        // Asked for again, what is found held may be the first one's, while the second is on its way.
        assert!(ask());
        assert_eq!((ops.releases("x", 0), ops.releases("x", 1)), (Some(Open::Several), Some(Open::Several)));
        ops.released("x");
        assert!(ops.releases("x", 0).is_none() && !ops.repeats("x", 0));
        // Sent twice, one of them may follow the release that found the other one's hold.
        assert!(ask() && ops.repeats("x", 0));
        assert_eq!((ops.releases("x", 0), ops.releases("x", 1)), (Some(Open::Several), Some(Open::Once)));
    }

    #[test]
    fn an_op_id_stands_for_one_set_of_names() {
        let ops = Ops::new(1);
        let keys = |name: &str| -> Arc<[Keys]> { Arc::new([KeyProfile::Verbatim.keys(name, name).unwrap()]) };
        let ask = |op: &str, names: &Arc<[Keys]>| {
            ops.asked(op, names, TTL, Share::Exclusive, Instant::ZERO).is_some()
        };
        assert!(ask("x", &keys("a")));
        assert!(!ask("x", &keys("b")));
        // Granted again after a release it may stand for others.
        ops.released("x");
        assert!(ask("x", &keys("b")));
    }
}
