//! The protocol of a change, without readers, threads or clocks: events and the time go in, verdicts come
//! out.

use std::collections::BTreeMap;

use mainstay_clock::Instant;
use mainstay_store::{FenceCheck, FencingToken};

use super::{Guard, LeaseEnd};
use crate::error::{ConfigError, Error, ErrorKind};
use crate::node::{NodeId, Nodes};

/// What the protocol needs to know of a placement.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    /// The weight of every node; 0 is drained.
    members: BTreeMap<NodeId, u32>,
    fingerprint: u128,
}

impl Summary {
    pub(super) fn of(nodes: &Nodes, fingerprint: u128) -> Self {
        let members = nodes.as_slice().iter().map(|n| (n.id.clone(), n.weight)).collect();
        Self { members, fingerprint }
    }

    /// Which part of the nodes that have a weight, and of their weight, is still there in `next`. Others in their
    /// place do not count: they have none of the data.
    fn kept(&self, next: &Self) -> (f64, f64) {
        let (mut nodes, mut weight, mut live, mut all) = (0_u64, 0_u64, 0_u64, 0_u64);
        for (id, had) in self.members.iter().filter(|(_, had)| **had > 0) {
            let has = next.members.get(id).copied().unwrap_or(0);
            live += 1;
            all += u64::from(*had);
            nodes += u64::from(has > 0);
            weight += u64::from(has.min(*had));
        }
        let part = |kept: u64, of: u64| if of > 0 { kept as f64 / of as f64 } else { 1.0 };
        (part(nodes, live), part(weight, all))
    }

    /// Who may have something to hand over after the next change: nobody has yet.
    fn former(self) -> BTreeMap<NodeId, bool> {
        self.members.into_keys().map(|m| (m, false)).collect()
    }
}

#[derive(Debug)]
enum Phase {
    Stable,
    Prepared {
        next: Summary,
        acked: BTreeMap<NodeId, bool>,
        until: Instant,
        change: u64,
    },
    /// The former owners, and whether they have handed over.
    Moving {
        former: BTreeMap<NodeId, bool>,
    },
}

/// Those who have not answered yet.
fn open(answers: &BTreeMap<NodeId, bool>) -> Vec<NodeId> {
    answers.iter().filter(|(_, answered)| !**answered).map(|(m, _)| m.clone()).collect()
}

/// Where a topology stands, for people and consoles.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stage {
    /// No change is under way.
    Stable,
    /// A change is prepared; lookups still answer from the old epoch.
    Prepared {
        /// The epoch after the commit.
        epoch: u64,
        /// Who has not acknowledged yet.
        missing: Vec<NodeId>,
    },
    /// A change is committed; these former owners have not confirmed their handoff.
    Moving {
        /// Former owners still to confirm.
        pending: Vec<NodeId>,
    },
}

/// The state of the protocol.
#[derive(Debug)]
pub(super) struct State {
    epoch: u64,
    current: Summary,
    phase: Phase,
    highest: FencingToken,
    /// Number of the latest change or takeover: a handle with another number is void.
    change: u64,
    /// The shrunken candidate that came last, and how often in a row.
    held_back: Option<(u128, u32)>,
}

fn misuse(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::ApiMisuse, text)
}

impl State {
    pub(super) fn new(epoch: u64, current: Summary) -> Self {
        let highest = FencingToken::ZERO;
        Self { epoch, current, phase: Phase::Stable, highest, change: 0, held_back: None }
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn stage(&self) -> Stage {
        match &self.phase {
            Phase::Stable => Stage::Stable,
            Phase::Prepared { acked, .. } => Stage::Prepared { epoch: self.epoch + 1, missing: open(acked) },
            Phase::Moving { former } => Stage::Moving { pending: open(former) },
        }
    }

    /// Begins a change; its number is the answer.
    pub(super) fn prepare(&mut self, next: Summary, guard: &Guard, now: Instant) -> Result<u64, Error> {
        guard.check()?;
        self.expire(now);
        if !matches!(self.phase, Phase::Stable) {
            let text = format!("a change of epoch {} is under way: {:?}", self.epoch, self.stage());
            return Err(Error::new(ErrorKind::InProgress, text));
        }
        if next.fingerprint == self.current.fingerprint {
            // The whole fleet was seen, so a shrunken one is no longer seen in a row.
            self.held_back = None;
            return Err(misuse("the candidate is what is in force; there is nothing to change"));
        }
        if self.epoch == u64::MAX {
            let allowed = "below 2^64 - 1: a change needs one more";
            return Err(ConfigError::new("epoch", self.epoch, allowed).into());
        }
        self.pass(&next, guard)?;
        let members = self.current.members.keys().chain(next.members.keys());
        let acked = members.map(|m| (m.clone(), false)).collect();
        self.change += 1;
        let until = now.saturating_add(guard.timeout);
        self.phase = Phase::Prepared { next, acked, until, change: self.change };
        Ok(self.change)
    }

    /// The guard against a discovery that lost most of the fleet.
    fn pass(&mut self, next: &Summary, guard: &Guard) -> Result<(), Error> {
        let (nodes, weight) = self.current.kept(next);
        let least = 1.0 - guard.max_shrink;
        if guard.force || nodes.min(weight) >= least {
            self.held_back = None;
            return Ok(());
        }
        let before = self.held_back.filter(|(f, _)| *f == next.fingerprint).map_or(0, |(_, n)| n);
        let seen = before + 1;
        if seen >= guard.hold {
            self.held_back = None;
            return Ok(());
        }
        self.held_back = Some((next.fingerprint, seen));
        let text = format!(
            "the candidate keeps {:.0}% of the nodes and {:.0}% of the weight, seen {seen} of {} times in a row; \
             offer it again, or force it",
            nodes * 100.0,
            weight * 100.0,
            guard.hold
        );
        Err(Error::new(ErrorKind::Guarded { seen, hold: guard.hold }, text))
    }

    /// The prepared change, if it has this number.
    fn prepared(&mut self, number: u64, now: Instant) -> Result<&mut BTreeMap<NodeId, bool>, Error> {
        self.expire(now);
        match &mut self.phase {
            Phase::Prepared { acked, change, .. } if *change == number => Ok(acked),
            _ => Err(misuse("this change was committed, aborted, timed out or taken over")),
        }
    }

    pub(super) fn ack(&mut self, change: u64, member: &str, now: Instant) -> Result<(), Error> {
        let acked = self.prepared(change, now)?;
        let found = acked.iter_mut().find(|(id, _)| id.as_str() == member);
        let Some((_, acked)) = found else {
            let allowed = "a node of the old or the new fleet";
            return Err(ConfigError::new("member", member, allowed).into());
        };
        *acked = true;
        Ok(())
    }

    /// Goes on without a member whose lease has certainly ended.
    pub(super) fn excuse(
        &mut self,
        change: u64,
        member: &str,
        lease: LeaseEnd,
        now: Instant,
    ) -> Result<(), Error> {
        let safe = lease.ends.saturating_add(lease.uncertainty);
        if now < safe {
            let left = safe.saturating_duration_since(now);
            return Err(misuse(format!("the lease of {member} may be in force for {left:?} more")));
        }
        self.ack(change, member, now)
    }

    /// Makes the next placement the current one.
    pub(super) fn commit(&mut self, change: u64, token: FencingToken, now: Instant) -> Result<(), Error> {
        self.fence(token)?;
        let missing = self.prepared(change, now)?.values().filter(|a| !**a).count();
        if missing > 0 {
            let text = format!("{missing} members have not acknowledged: {:?}", self.stage());
            return Err(Error::new(ErrorKind::NotAcknowledged { missing }, text));
        }
        let Phase::Prepared { next, .. } = std::mem::replace(&mut self.phase, Phase::Stable) else {
            return Err(Error::new(ErrorKind::Internal, "a prepared change vanished"));
        };
        let old = std::mem::replace(&mut self.current, next);
        self.epoch += 1;
        self.begin_handoff(old);
        Ok(())
    }

    fn begin_handoff(&mut self, old: Summary) {
        let former = old.former();
        self.phase = if former.is_empty() { Phase::Stable } else { Phase::Moving { former } };
    }

    /// Drops the prepared change. A handle that is void aborts nothing.
    pub(super) fn abandon(&mut self, number: u64) {
        if matches!(&self.phase, Phase::Prepared { change, .. } if *change == number) {
            self.phase = Phase::Stable;
        }
    }

    pub(super) fn abort(&mut self, change: u64, token: FencingToken, now: Instant) -> Result<(), Error> {
        self.fence(token)?;
        self.prepared(change, now)?;
        self.phase = Phase::Stable;
        Ok(())
    }

    /// Gives the prepared change a new number, for a successor.
    pub(super) fn take_over(&mut self, token: FencingToken, now: Instant) -> Result<u64, Error> {
        self.expire(now);
        if token <= self.highest {
            return Err(self.stale(token));
        }
        let Phase::Prepared { change, .. } = &mut self.phase else {
            return Err(misuse("no change is prepared, so there is none to take over"));
        };
        self.highest = token;
        self.change += 1;
        *change = self.change;
        Ok(self.change)
    }

    fn fence(&mut self, token: FencingToken) -> Result<(), Error> {
        match token.check(self.highest) {
            FenceCheck::Pass => {
                self.highest = token;
                Ok(())
            }
            FenceCheck::Stale { .. } => Err(self.stale(token)),
        }
    }

    fn stale(&self, token: FencingToken) -> Error {
        let text =
            format!("token {token} is stale: {} was seen; another coordinator took over", self.highest);
        Error::new(ErrorKind::StaleToken, text)
    }

    /// A prepared change does not outlive its time.
    pub(super) fn expire(&mut self, now: Instant) {
        if matches!(&self.phase, Phase::Prepared { until, .. } if now >= *until) {
            self.phase = Phase::Stable;
        }
    }

    /// A former owner has nothing left to hand over. True when it was the last one.
    pub(super) fn handoff_done(&mut self, epoch: u64, member: &str) -> Result<bool, Error> {
        self.fresh(epoch)?;
        let Phase::Moving { former } = &mut self.phase else {
            return Err(misuse("no handoff is under way"));
        };
        match former.iter_mut().find(|(id, _)| id.as_str() == member) {
            Some((_, done)) => *done = true,
            // A new node had nothing: there is nothing to wait for.
            None if self.current.members.keys().any(|id| id.as_str() == member) => {}
            None => {
                let allowed = "a node of the old or the new fleet";
                return Err(ConfigError::new("member", member, allowed).into());
            }
        }
        let last = former.values().all(|done| *done);
        if last {
            self.phase = Phase::Stable;
        }
        Ok(last)
    }

    /// Whether an epoch is the current one.
    fn fresh(&self, got: u64) -> Result<(), Error> {
        let seen = self.epoch;
        if got < seen {
            return Err(Error::new(
                ErrorKind::StaleEpoch { seen, got },
                format!("epoch {got} is over: {seen} is in force"),
            ));
        }
        if got > seen {
            return Err(misuse(format!("epoch {got} is not in force yet: {seen} is")));
        }
        Ok(())
    }

    /// Takes over what the coordinator committed elsewhere. False when it is in force already.
    pub(super) fn observe(&mut self, epoch: u64, next: Summary) -> Result<bool, Error> {
        let seen = self.epoch;
        if epoch < seen {
            let text = format!("epoch {epoch} was offered after epoch {seen}");
            return Err(Error::new(ErrorKind::StaleEpoch { seen, got: epoch }, text));
        }
        if epoch == seen {
            if next.fingerprint == self.current.fingerprint {
                return Ok(false);
            }
            let text = format!(
                "two placements claim epoch {epoch}: {:032x} here, {:032x} there",
                self.current.fingerprint, next.fingerprint
            );
            return Err(Error::new(ErrorKind::Conflict, text));
        }
        let old = std::mem::replace(&mut self.current, next);
        self.epoch = epoch;
        // A change prepared here was overtaken: its handle is void. So is a row of candidates: they shrank the
        // fleet before.
        self.change += 1;
        self.held_back = None;
        self.begin_handoff(old);
        Ok(true)
    }
}
