//! The rules of leases as a plain state machine: time and requests go in, answers come out.
//!
//! A store executes them where its data is: in memory on one [`Table`] of everything, in a database on a
//! table of the operations that share a name with the request, [loaded](Table::load) and
//! [written back](Table::entry) in one transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_clock::Instant;

use crate::lease::{
    AcquireRequest, Acquired, Grant, Holder, LeaseInfo, Line, Released, Renewed, Share, Since, Transferred,
    check_limit, mismatch,
};
use crate::{Error, ErrorKind, FencingToken, Result};

/// Most operations that hold or wait at once: bounds memory, far above what one process drives.
const MAX_OPS: usize = 1_000_000;

/// One acquisition as a store keeps it: it waits, or it holds its names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a store writes every field")]
pub struct Entry {
    /// Its identity.
    pub op_id: String,
    /// Who asked.
    pub owner: String,
    /// Its names, sorted, each with the token under which it is held; none while it waits, and none for a
    /// name whose lease was broken.
    pub names: BTreeMap<String, Option<FencingToken>>,
    /// How its names are shared.
    pub share: Share,
    /// How long it lasts without renewal.
    pub ttl: Duration,
    /// When the lease, or the place in line, ends by itself.
    pub until: Instant,
    /// Its note.
    pub note: String,
    /// Its place in line; none when it holds.
    pub number: Option<u64>,
    /// Since when it holds, if that is known.
    pub since: Option<Since>,
}

/// One acquisition: it waits, or it holds all its names.
#[derive(Clone, Debug)]
struct Op {
    owner: String,
    names: Vec<String>,
    share: Share,
    ttl: Duration,
    /// When the lease, or the place in line, ends by itself.
    until: Instant,
    note: String,
    place: Place,
    /// Since when it holds, for people.
    since: Option<Since>,
}

#[derive(Clone, Debug)]
enum Place {
    /// The token of each name still held; fewer than `names` once a name was broken.
    Holding(BTreeMap<String, FencingToken>),
    Waiting(u64),
}

/// Who stands in the way first, and how long until the way would be free if nobody renewed.
struct Obstacle {
    by: String,
    remaining: Duration,
    since: Option<Since>,
}

#[derive(Clone, Debug, Default)]
struct Name {
    holders: BTreeSet<String>,
    /// Arrival number to op id: the line, first come first served.
    line: BTreeMap<u64, String>,
    annotation: Option<Vec<u8>>,
}

/// The operations that hold or wait, and the two counters. Tokens come from one counter for all names, so that
/// a free name needs no memory.
///
/// ```
/// use mainstay_clock::Instant;
/// use mainstay_store::lease::table::Table;
/// use mainstay_store::lease::{AcquireRequest, Acquired};
/// use std::time::Duration;
///
/// let mut table = Table::default();
/// table.tick(Instant::from_nanos(1));
/// let request = AcquireRequest::exclusive("n", "host-7", "op-1", Duration::from_secs(5));
/// assert!(matches!(table.acquire(&request).unwrap(), Acquired::Granted(_)));
/// let entry = table.entry("op-1").unwrap();
/// let mut again = Table::load(table.last_token(), table.arrivals(), [entry], []);
/// again.tick(Instant::from_nanos(2));
/// let other = AcquireRequest::exclusive("n", "host-8", "op-2", Duration::from_secs(5));
/// assert!(matches!(again.acquire(&other).unwrap(), Acquired::Held { .. }));
/// ```
#[derive(Clone, Debug, Default)]
pub struct Table {
    now: Instant,
    /// What a grant of this moment is dated with.
    today: Option<Since>,
    last_token: FencingToken,
    arrivals: u64,
    ops: BTreeMap<String, Op>,
    names: BTreeMap<String, Name>,
    ends: BTreeSet<(Instant, String)>,
    /// Names that changed since they were last taken.
    changed: BTreeSet<String>,
}

impl Table {
    /// A table of these operations, with the counters as they were written. A value belongs to whoever holds its name:
    /// that of a name which nobody of these holds is dropped, also when somebody waits for the name.
    #[must_use]
    pub fn load(
        last_token: FencingToken,
        arrivals: u64,
        entries: impl IntoIterator<Item = Entry>,
        annotations: impl IntoIterator<Item = (String, Vec<u8>)>,
    ) -> Self {
        let mut table = Self { last_token, arrivals, ..Self::default() };
        for entry in entries {
            table.insert(entry);
        }
        for (name, value) in annotations {
            if let Some(name) = table.names.get_mut(&name).filter(|name| !name.holders.is_empty()) {
                name.annotation = Some(value);
            }
        }
        table
    }

    fn insert(&mut self, entry: Entry) {
        let Entry { op_id, owner, names, share, ttl, until, note, number, since } = entry;
        let place = match number {
            Some(number) => Place::Waiting(number),
            None => Place::Holding(names.iter().filter_map(|(n, t)| Some((n.clone(), (*t)?))).collect()),
        };
        for name in names.keys() {
            match &place {
                Place::Waiting(number) => {
                    self.names.entry(name.clone()).or_default().line.insert(*number, op_id.clone());
                }
                Place::Holding(tokens) if tokens.contains_key(name) => {
                    self.names.entry(name.clone()).or_default().holders.insert(op_id.clone());
                }
                Place::Holding(_) => {}
            }
        }
        self.ends.insert((until, op_id.clone()));
        let names = names.into_keys().collect();
        self.ops.insert(op_id, Op { owner, names, share, ttl, until, note, place, since });
    }

    /// The operation as it is to be written, if it holds or waits.
    #[must_use]
    pub fn entry(&self, op_id: &str) -> Option<Entry> {
        let op = self.ops.get(op_id)?;
        let (number, held) = match &op.place {
            Place::Waiting(number) => (Some(*number), None),
            Place::Holding(tokens) => (None, Some(tokens)),
        };
        let token = |name: &String| held.and_then(|tokens| tokens.get(name).copied());
        Some(Entry {
            op_id: op_id.to_owned(),
            owner: op.owner.clone(),
            names: op.names.iter().map(|name| (name.clone(), token(name))).collect(),
            share: op.share,
            ttl: op.ttl,
            until: op.until,
            note: op.note.clone(),
            number,
            since: op.since,
        })
    }

    /// The value attached to `name`.
    #[must_use]
    pub fn annotation(&self, name: &str) -> Option<&[u8]> {
        self.names.get(name)?.annotation.as_deref()
    }

    /// The largest token handed out or burned.
    #[must_use]
    pub fn last_token(&self) -> FencingToken {
        self.last_token
    }

    /// Makes the next token larger than `floor`.
    pub fn raise(&mut self, floor: FencingToken) {
        self.last_token = self.last_token.max(floor);
    }

    /// How many places in line were ever given.
    #[must_use]
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Says what day it is: what is granted from now on is dated so. Without it nobody knows since when they hold.
    pub fn date(&mut self, today: Since) {
        self.today = Some(today);
    }

    /// Time never goes back; what ended by itself is forgotten.
    pub fn tick(&mut self, now: Instant) {
        self.now = self.now.max(now);
        while let Some((until, op_id)) = self.ends.first().cloned() {
            if until > self.now {
                break;
            }
            self.forget(&op_id);
        }
    }

    fn forget(&mut self, op_id: &str) -> Option<Op> {
        let op = self.ops.remove(op_id)?;
        self.ends.remove(&(op.until, op_id.to_owned()));
        for name in &op.names {
            self.unlink(name, op_id, &op.place);
        }
        Some(op)
    }

    /// The names that changed since the last call.
    #[must_use]
    pub fn take_changed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.changed)
    }

    fn unlink(&mut self, name: &str, op_id: &str, place: &Place) {
        self.changed.insert(name.to_owned());
        let Some(entry) = self.names.get_mut(name) else { return };
        match place {
            Place::Waiting(number) => drop(entry.line.remove(number)),
            Place::Holding(_) => {
                entry.holders.remove(op_id);
                if entry.holders.is_empty() {
                    entry.annotation = None;
                }
            }
        }
        if entry.holders.is_empty() && entry.line.is_empty() {
            self.names.remove(name);
        }
    }

    fn set_until(&mut self, op_id: &str, until: Instant) {
        if let Some(op) = self.ops.get_mut(op_id) {
            self.ends.remove(&(op.until, op_id.to_owned()));
            op.until = until;
            self.ends.insert((until, op_id.to_owned()));
        }
    }

    fn left(&self, op: &Op) -> Duration {
        op.until.saturating_duration_since(self.now)
    }

    fn grants(op: &Op) -> Option<Vec<Grant>> {
        let Place::Holding(tokens) = &op.place else { return None };
        if tokens.len() < op.names.len() {
            return None;
        }
        let grant = |name: &String| Grant { name: name.clone(), token: tokens[name], ttl: op.ttl };
        Some(op.names.iter().map(grant).collect())
    }

    /// As [`LeaseStore::acquire`](super::LeaseStore::acquire).
    ///
    /// # Errors
    /// As there, and `Full` when too many hold or wait.
    pub fn acquire(&mut self, request: &AcquireRequest) -> Result<Acquired> {
        request.check()?;
        let until = self.now.saturating_add(request.ttl);
        let known = self.ops.get(&request.op_id).map(|op| (op.names == request.names, Self::grants(op)));
        match known {
            Some((false, _)) => {
                let text = format!("op id `{}` already stands for other names", request.op_id);
                return Err(Error::new(ErrorKind::ApiMisuse, text));
            }
            // A repeated request after a lost reply, or a candidate that was moved up, keeps its tokens.
            Some((true, Some(grants))) => {
                self.set_until(&request.op_id, until);
                return Ok(Acquired::Granted(grants));
            }
            // Broken meanwhile: it starts anew.
            Some((true, None)) if self.number(&request.op_id).is_none() => drop(self.forget(&request.op_id)),
            _ => {}
        }
        let unmet = |(name, token): &&(String, FencingToken)| !self.is_held_with(name, *token);
        if let Some((name, _)) = request.require.iter().find(unmet) {
            let (by, since) = self.holder_of(name);
            return Ok(Acquired::Held { by, remaining: None, since });
        }
        let number = self.number(&request.op_id);
        // Its semaphore may have been given another limit while it waited.
        let resized = self.resized(request);
        let request = resized.as_ref().unwrap_or(request);
        let mut in_the_way = None;
        for name in &request.names {
            match self.obstacle(name, request, number) {
                Ok(found) => in_the_way = found,
                Err(error) => {
                    // Whoever can never have its turn must not hold up the others.
                    self.leave(&request.op_id);
                    return Err(error);
                }
            }
            if in_the_way.is_some() {
                break;
            }
        }
        match (in_the_way, request.line) {
            (None, _) => Ok(self.grant(request, until)),
            (Some(Obstacle { by, remaining, since }), Line::Try) => {
                Ok(Acquired::Held { by, remaining: Some(remaining), since })
            }
            (Some(Obstacle { remaining, .. }), Line::Join) => self.join(request, number, until, remaining),
        }
    }

    /// The request with the limit of its place in line, if that is another one.
    fn resized(&self, request: &AcquireRequest) -> Option<AcquireRequest> {
        let op = self.ops.get(&request.op_id)?;
        let (Share::Permit { limit, .. }, Share::Permit { count, .. }) = (op.share, request.share) else {
            return None;
        };
        let share = Share::Permit { limit, count };
        (share != request.share).then(|| AcquireRequest { share, ..request.clone() })
    }

    fn number(&self, op_id: &str) -> Option<u64> {
        match self.ops.get(op_id)?.place {
            Place::Waiting(number) => Some(number),
            Place::Holding(_) => None,
        }
    }

    fn is_held_with(&self, name: &str, token: FencingToken) -> bool {
        let holders = self.names.get(name).into_iter().flat_map(|n| &n.holders);
        holders.filter_map(|op| self.ops.get(op)).any(|op| match &op.place {
            Place::Holding(tokens) => tokens.get(name) == Some(&token),
            Place::Waiting(_) => false,
        })
    }

    fn holder_of(&self, name: &str) -> (String, Option<Since>) {
        let first = self.names.get(name).and_then(|n| n.holders.first());
        first.and_then(|op| self.ops.get(op)).map(|op| (op.owner.clone(), op.since)).unwrap_or_default()
    }

    /// Who stands in the way of `request` at `name`: holders, and whoever came before it. Nobody is
    /// overtaken, not even by a request that could share: otherwise writers starve, and whoever wants many permits.
    fn obstacle(
        &self,
        name: &str,
        request: &AcquireRequest,
        number: Option<u64>,
    ) -> Result<Option<Obstacle>> {
        let Some(entry) = self.names.get(name) else { return Ok(None) };
        let earlier = entry.line.range(..number.unwrap_or(u64::MAX)).map(|(_, op)| op);
        let (limit, count) = match request.share {
            Share::Permit { limit, count } => (u64::from(limit), u64::from(count)),
            _ => (u64::MAX, 1),
        };
        if count > limit {
            return Err(mismatch(name, format_args!("has {limit} permits now; {count} are asked for")));
        }
        let (mut by, mut all, mut some, mut taken) = (None, Duration::ZERO, Vec::new(), 0_u64);
        for op in entry.holders.iter().chain(earlier).filter_map(|op_id| self.ops.get(op_id)) {
            match (op.share, request.share) {
                (Share::Shared, Share::Shared) => {}
                (Share::Permit { limit: theirs, count }, Share::Permit { limit, .. }) => {
                    if theirs != limit {
                        return Err(mismatch(
                            name,
                            format_args!("is a semaphore of {theirs} permits, not of {limit}"),
                        ));
                    }
                    taken += u64::from(count);
                    some.push((self.left(op), u64::from(count), op));
                }
                _ => {
                    by.get_or_insert(op);
                    all = all.max(self.left(op));
                }
            }
        }
        // So many permits must come back before there is room.
        let mut missing = (taken + count).saturating_sub(limit);
        some.sort_by(|(a, n, x), (b, m, y)| (a, n, &x.owner).cmp(&(b, m, &y.owner)));
        for (left, count, op) in some {
            if missing == 0 {
                break;
            }
            by.get_or_insert(op);
            all = all.max(left);
            missing = missing.saturating_sub(count);
        }
        Ok(by.map(|op| Obstacle { by: op.owner.clone(), remaining: all, since: op.since }))
    }

    fn grant(&mut self, request: &AcquireRequest, until: Instant) -> Acquired {
        self.forget(&request.op_id);
        let mut tokens = BTreeMap::new();
        for name in &request.names {
            self.last_token = self.last_token.next();
            tokens.insert(name.clone(), self.last_token);
            self.changed.insert(name.clone());
            self.names.entry(name.clone()).or_default().holders.insert(request.op_id.clone());
        }
        let op = Op {
            owner: request.owner.clone(),
            names: request.names.clone(),
            share: request.share,
            ttl: request.ttl,
            until,
            note: request.note.clone(),
            place: Place::Holding(tokens),
            since: self.today,
        };
        let grants = Self::grants(&op).unwrap_or_default();
        self.ends.insert((until, request.op_id.clone()));
        self.ops.insert(request.op_id.clone(), op);
        Acquired::Granted(grants)
    }

    fn join(
        &mut self,
        request: &AcquireRequest,
        number: Option<u64>,
        until: Instant,
        remaining: Duration,
    ) -> Result<Acquired> {
        let number = match number {
            Some(number) => {
                self.set_until(&request.op_id, until);
                number
            }
            None if self.ops.len() >= MAX_OPS => {
                return Err(Error::new(ErrorKind::Full, format!("{MAX_OPS} acquisitions hold or wait")));
            }
            None => {
                self.arrivals += 1;
                let number = self.arrivals;
                for name in &request.names {
                    self.names.entry(name.clone()).or_default().line.insert(number, request.op_id.clone());
                }
                let op = Op {
                    owner: request.owner.clone(),
                    names: request.names.clone(),
                    share: request.share,
                    ttl: request.ttl,
                    until,
                    note: request.note.clone(),
                    place: Place::Waiting(number),
                    since: None,
                };
                self.ends.insert((until, request.op_id.clone()));
                self.ops.insert(request.op_id.clone(), op);
                number
            }
        };
        let before: BTreeSet<&String> = request
            .names
            .iter()
            .filter_map(|n| self.names.get(n))
            .flat_map(|n| n.line.range(..number).map(|(_, op)| op))
            .collect();
        Ok(Acquired::Queued { position: u32::try_from(before.len()).ok(), remaining: Some(remaining) })
    }

    /// As [`LeaseStore::renew`](super::LeaseStore::renew).
    pub fn renew(&mut self, op_id: &str) -> Renewed {
        let Some(op) = self.ops.get(op_id) else { return Renewed::Lost };
        let Some(grants) = Self::grants(op) else {
            // A place in line was never a lease; what holds less than its names was broken.
            return if matches!(op.place, Place::Holding(_)) { Renewed::Broken } else { Renewed::Lost };
        };
        let until = self.now.saturating_add(op.ttl);
        self.set_until(op_id, until);
        Renewed::Renewed(grants)
    }

    /// As [`LeaseStore::release`](super::LeaseStore::release).
    pub fn release(&mut self, op_id: &str) -> Released {
        match self.forget(op_id).as_ref().and_then(Self::grants) {
            Some(_) => Released::Clean,
            None => Released::AlreadyGone,
        }
    }

    /// As [`LeaseStore::downgrade`](super::LeaseStore::downgrade).
    pub fn downgrade(&mut self, op_id: &str) -> bool {
        let Some(op) = self.ops.get_mut(op_id) else { return false };
        if Self::grants(op).is_none() || matches!(op.share, Share::Permit { .. }) {
            return false;
        }
        op.share = Share::Shared;
        // Readers who wait may come in.
        self.changed.extend(op.names.iter().cloned());
        true
    }

    /// As [`LeaseStore::resize`](super::LeaseStore::resize).
    ///
    /// # Errors
    /// As there.
    pub fn resize(&mut self, name: &str, limit: u32) -> Result<()> {
        check_limit(limit)?;
        let Some(entry) = self.names.get(name) else { return Ok(()) };
        let all: Vec<String> = entry.holders.iter().chain(entry.line.values()).cloned().collect();
        let other = |op_id: &&String| {
            self.ops.get(*op_id).is_some_and(|op| !matches!(op.share, Share::Permit { .. }))
        };
        if all.iter().any(|op_id| other(&op_id)) {
            return Err(mismatch(name, "is no semaphore"));
        }
        for op_id in all {
            let Some(Share::Permit { limit: now, .. }) = self.ops.get_mut(&op_id).map(|op| &mut op.share)
            else {
                continue;
            };
            if *now != limit {
                *now = limit;
                self.changed.insert(name.to_owned());
            }
        }
        Ok(())
    }

    /// As [`LeaseStore::leave`](super::LeaseStore::leave).
    pub fn leave(&mut self, op_id: &str) {
        if self.number(op_id).is_some() {
            self.forget(op_id);
        }
    }

    /// As [`LeaseStore::annotate`](super::LeaseStore::annotate).
    pub fn annotate(&mut self, name: &str, token: FencingToken, value: Vec<u8>) -> bool {
        let holds = self.is_held_with(name, token);
        if let Some(entry) = self.names.get_mut(name).filter(|_| holds) {
            entry.annotation = Some(value);
            self.changed.insert(name.to_owned());
        }
        holds
    }

    /// Hands an exclusive lease of one name to the first waiter whose owner is `to`.
    pub fn transfer(&mut self, name: &str, token: FencingToken, to: &str) -> Transferred {
        if !self.is_held_with(name, token) {
            return Transferred::NoSuchCandidate;
        }
        let Some(entry) = self.names.get(name) else { return Transferred::NoSuchCandidate };
        let single = |op: &Op| op.names.len() == 1 && op.share == Share::Exclusive;
        let candidate = entry
            .line
            .values()
            .find(|op_id| self.ops.get(*op_id).is_some_and(|op| op.owner == to && single(op)));
        let holder = entry.holders.first().filter(|op| self.ops.get(*op).is_some_and(single));
        let (Some(candidate), Some(holder)) = (candidate.cloned(), holder.cloned()) else {
            return Transferred::NoSuchCandidate;
        };
        self.forget(&holder);
        let Some(op) = self.forget(&candidate) else { return Transferred::NoSuchCandidate };
        let mut request = AcquireRequest::exclusive(name, &op.owner, &candidate, op.ttl);
        request.note = op.note;
        self.grant(&request, self.now.saturating_add(op.ttl));
        Transferred::Moved
    }

    /// As [`LeaseStore::break_lease`](super::LeaseStore::break_lease).
    pub fn break_lease(&mut self, name: &str) -> FencingToken {
        self.last_token = self.last_token.next();
        let holders = self.names.get(name).map(|n| n.holders.clone()).unwrap_or_default();
        for op_id in holders {
            let Some(op) = self.ops.get_mut(&op_id) else { continue };
            if let Place::Holding(tokens) = &mut op.place {
                tokens.remove(name);
            }
            let place = op.place.clone();
            self.unlink(name, &op_id, &place);
        }
        self.last_token
    }

    /// As [`LeaseStore::inspect`](super::LeaseStore::inspect).
    #[must_use]
    pub fn inspect(&self, name: &str) -> LeaseInfo {
        let mut info = LeaseInfo::free(name, self.last_token);
        let Some(entry) = self.names.get(name) else { return info };
        for op in entry.holders.iter().filter_map(|op| self.ops.get(op)) {
            if let Place::Holding(tokens) = &op.place
                && let Some(token) = tokens.get(name)
            {
                let holder = Holder::new(op.owner.clone(), *token, self.left(op));
                info.holders.push(holder.with_since(op.since));
                info.note.clone_from(&op.note);
            }
        }
        info.holders.sort_by_key(|h| h.token);
        info.annotation.clone_from(&entry.annotation);
        info.waiting = u32::try_from(entry.line.len()).unwrap_or(u32::MAX);
        info
    }

    /// As [`LeaseStore::list`](super::LeaseStore::list).
    #[must_use]
    pub fn list(&self, prefix: &str, limit: usize) -> Vec<LeaseInfo> {
        self.names
            .range(prefix.to_owned()..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .filter(|(_, entry)| !entry.holders.is_empty())
            .take(limit)
            .map(|(name, _)| self.inspect(name))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(5);

    fn join(owner: &str) -> AcquireRequest {
        AcquireRequest { line: Line::Join, ..AcquireRequest::exclusive("n", owner, owner, TTL) }
    }

    #[test]
    fn the_value_of_a_dead_holder_is_not_shown_under_the_next() {
        let mut table = Table::default();
        let Acquired::Granted(held) = table.acquire(&join("a")).unwrap() else { panic!("`n` is free") };
        for waiter in ["b", "c"] {
            assert!(matches!(table.acquire(&join(waiter)).unwrap(), Acquired::Queued { .. }));
        }
        assert!(table.annotate("n", held[0].token, b"A:80".to_vec()));
        let loaded = |ops: &[&str]| {
            let entries = ops.iter().filter_map(|op| table.entry(op));
            let notes = [("n".to_owned(), b"A:80".to_vec())];
            Table::load(table.last_token(), table.arrivals(), entries, notes)
        };
        assert_eq!(loaded(&["a", "b", "c"]).annotation("n"), Some(&b"A:80"[..]), "its holder lives");
        // As a store loads it that left out what has ended.
        let mut after = loaded(&["b", "c"]);
        assert!(matches!(after.acquire(&join("b")).unwrap(), Acquired::Granted(_)));
        let info = after.inspect("n");
        assert_eq!((info.holders[0].owner.as_str(), info.waiting, info.annotation), ("b", 1, None));
    }
}
