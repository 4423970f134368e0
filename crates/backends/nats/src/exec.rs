//! One name at a time: read, decide, write if it still stands there.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mainstay_clock::{Instant, Runtime, WallTime};
use mainstay_store::lease::{
    AcquireRequest, Acquired, Fencing, Grant, Holder, LeaseInfo, Line, Released, Renewed, Transferred,
    check_limit, mismatch,
};
use mainstay_store::{Error, ErrorKind, FencingToken, Outcome, Result};

use crate::api::{Api, Put};
use crate::board::{Board, Known, Source};
use crate::bucket;
use crate::check;
use crate::config::NatsConfig;
use crate::ops::{Op, Ops};
use crate::state::{Content, Loaded, Record, Version, token};

/// Longest wait for the answer to one of several tries: an election of the stream's leader takes about a second.
pub(crate) const TRY: Duration = Duration::from_secs(1);
/// Between two tries after a failure, and at most between two tries after a lost race.
pub(crate) const PAUSE: Duration = Duration::from_millis(20);
/// Lost races in a row before the loser waits a moment: the winner got on, so somebody always does.
const RACES: u32 = 2;
/// The remaining time of a lease that has none.
const NO_EXPIRY: Duration = Duration::MAX;

/// What a request makes of a name: an answer, and what is to be written first, if anything.
type Plan<T> = (Option<Record>, T);

/// How a plan ended.
struct Done<T> {
    answer: T,
    /// What the answer was decided on.
    loaded: Loaded,
    /// The sequence of the message that was written, or of the one that was read.
    seq: u64,
}

/// A later failure does not undo what an earlier try may have done.
pub(crate) fn told(error: Error, doubt: bool) -> Error {
    if doubt { error.with_outcome(Outcome::Unknown) } else { error }
}

/// What is taken out of a name.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Out {
    /// Whatever it has there.
    All,
    /// A place in line.
    Place,
}

/// What callers of one store share.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) api: Api,
    pub(crate) board: Arc<Board>,
    pub(crate) ops: Ops,
    pub(crate) rt: Runtime,
    pub(crate) config: NatsConfig,
    pub(crate) fencing: Fencing,
    pub(crate) clock_name: &'static str,
    /// The server can end messages.
    pub(crate) can_end: bool,
}

impl Core {
    pub(crate) fn now(&self) -> Instant {
        self.rt.clock().now()
    }

    /// For the rules, and for people.
    fn moment(&self) -> (Instant, WallTime) {
        (self.now(), self.rt.clock().wall())
    }

    /// What `name` is known by: the key in the bucket.
    pub(crate) fn known<'n>(&self, name: &'n str) -> &'n str {
        self.config.names.known(name)
    }

    pub(crate) fn limit(&self) -> Instant {
        self.now().saturating_add(self.config.request_timeout)
    }

    /// The leader's word. A bucket that is gone is made anew: every lease of it is over.
    async fn read(&self, name: &str, limit: Instant) -> Result<Known> {
        loop {
            let soon = self.now().saturating_add(TRY).min(limit);
            match self.api.read(name, soon).await {
                Ok(Some(version)) => return Ok(self.board.learn(name, version, Source::Read)),
                Ok(None) => drop(bucket::ensure(&self.api, &self.config, self.can_end, limit).await?),
                Err(e) if e.kind() == ErrorKind::Unavailable && self.now() < limit => {
                    self.rt.clock().sleep(PAUSE).await;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Carries out `plan` on `name`. What is known is good enough to write by, since the write is refused if it
    /// was old; what only answers is decided on the leader's word. A plan must stand being carried out twice: a
    /// write whose answer was lost is tried again.
    ///
    /// # Cancel safety
    /// A write that was sent may take effect; `op` remembers where.
    async fn step<T>(
        &self,
        name: &str,
        op: Option<&str>,
        limit: Instant,
        plan: impl Fn(&mut Loaded, &Version) -> Result<Plan<T>>,
    ) -> Result<Done<T>> {
        let mut known = self.board.get(name).filter(|k| k.version.seq > 0);
        let (mut races, mut doubt) = (0, false);
        loop {
            let (fresh, Known { version, sight }) = match known.take() {
                Some(known) => (false, known),
                None => (true, self.read(name, limit).await.map_err(|e| told(e, doubt))?),
            };
            if let Some(op) = op.filter(|_| fresh) {
                self.ops.stands(op, name, version.seq);
            }
            let mut loaded = Loaded::new(name, &version, &sight, self.moment(), self.config.epoch);
            let (record, answer) = plan(&mut loaded, &version)?;
            let Some(record) = record else {
                if fresh {
                    return Ok(Done { answer, loaded, seq: version.seq });
                }
                continue;
            };
            match self.write(name, version.seq, op, record, limit).await {
                Ok(Put::Done(seq)) => return Ok(Done { answer, loaded, seq }),
                Ok(Put::Conflict) if self.now() < limit => {
                    races += 1;
                    if races > RACES {
                        self.rt.clock().sleep(PAUSE.mul_f64(self.rt.rng().unit())).await;
                    }
                }
                Ok(Put::Conflict) => {
                    let why = format!("`{name}`: others write it all the time");
                    return Err(told(Error::new(ErrorKind::Unavailable, why), doubt));
                }
                Err(e) if e.kind() == ErrorKind::Unavailable && self.now() < limit => {
                    doubt |= e.outcome() == Outcome::Unknown;
                    self.rt.clock().sleep(PAUSE).await;
                }
                Err(e) => return Err(told(e, doubt)),
            }
        }
    }

    async fn write(
        &self,
        name: &str,
        expected: u64,
        op: Option<&str>,
        record: Record,
        limit: Instant,
    ) -> Result<Put> {
        if let Some(op) = op {
            self.ops.sent(op, name, expected);
        }
        let soon = self.now().saturating_add(TRY).min(limit);
        let put = self.api.write(name, expected, &record, soon).await?;
        // A conflict does not say that the name moved on: a leader without a majority refuses what stands against an
        // earlier write of its own, which is not done and may still be.
        if let Put::Done(seq) = put {
            if let Some(op) = op {
                self.ops.stands(op, name, seq);
            }
            let version = match record.entries.is_empty() {
                true => Version { released: record.released, ..Version::of(seq, Content::Free) },
                false => Version::of(seq, Content::Ours(record)),
            };
            self.board.learn(name, version, Source::Written);
        }
        Ok(put)
    }

    pub(crate) async fn acquire(&self, request: AcquireRequest) -> Result<Acquired> {
        check::check(&request)?;
        self.config.names.check(&request.names)?;
        let (op, sent) = (request.op_id.as_str(), self.now());
        if !self.ops.asked(op, &request.names, request.ttl, sent) {
            let text = format!("op id `{op:.8}..` already stands for other names");
            return Err(Error::new(ErrorKind::ApiMisuse, text));
        }
        let answered = self.take_all(&request).await;
        match &answered {
            Ok(Acquired::Granted(_)) => self.ops.granted(op, sent),
            Ok(Acquired::Queued { .. }) => self.ops.present(op, true),
            Ok(Acquired::Held { .. }) | Err(_) => self.ops.refused(op),
        }
        answered
    }

    /// One name after the other, in their order; what was taken is given back if a later one is held.
    async fn take_all(&self, request: &AcquireRequest) -> Result<Acquired> {
        let limit = self.limit();
        if let Some(held) = self.unmet(request, limit).await? {
            return Ok(held);
        }
        let mut grants: Vec<Grant> = Vec::new();
        for name in &request.names {
            let taken = self.take(name, request, limit).await;
            match taken {
                Ok(Acquired::Granted(mut more)) => {
                    self.ops.present(&request.op_id, true);
                    grants.append(&mut more);
                }
                other => {
                    self.undo(request, grants.len(), limit).await?;
                    return other;
                }
            }
        }
        // A requirement held before; now that the names are ours it must still hold, or it may have ended before
        // they were.
        if let Some(held) = self.unmet(request, limit).await? {
            self.undo(request, grants.len(), limit).await?;
            return Ok(held);
        }
        Ok(Acquired::Granted(grants))
    }

    async fn undo(&self, request: &AcquireRequest, taken: usize, limit: Instant) -> Result<()> {
        for name in request.names[..taken].iter().rev() {
            let dropped = self.drop_one(name, &request.op_id, None, Out::All, limit).await;
            // What was taken may still be held.
            dropped.map_err(|e| e.with_outcome(Outcome::Unknown))?;
        }
        self.ops.present(&request.op_id, false);
        Ok(())
    }

    async fn unmet(&self, request: &AcquireRequest, limit: Instant) -> Result<Option<Acquired>> {
        for (name, token) in &request.require {
            let info = self.look(name, limit).await?;
            if info.holders.iter().all(|h| h.token != *token) {
                let first = info.holders.into_iter().next();
                let (by, since) = first.map(|h| (h.owner, h.since)).unwrap_or_default();
                return Ok(Some(Acquired::Held { by, remaining: None, since }));
            }
        }
        Ok(None)
    }

    async fn take(&self, name: &str, request: &AcquireRequest, limit: Instant) -> Result<Acquired> {
        let (op, known) = (request.op_id.as_str(), self.known(name));
        let mut one = request.clone();
        one.names = vec![known.to_owned()];
        one.require = Vec::new();
        if request.names.len() > 1 {
            // Who stood first in one line and last in another would hold up both.
            one.line = Line::Try;
        }
        let plan = |loaded: &mut Loaded, version: &Version| {
            if let Content::Foreign(by) = &version.content {
                return Ok((None, Acquired::Held { by: by.clone(), remaining: None, since: None }));
            }
            let before = loaded.has(op);
            let mut answer = loaded.table.acquire(&one)?;
            if let Acquired::Held { remaining, .. } | Acquired::Queued { remaining, .. } = &mut answer {
                // The margin is the observer's business: nobody is told of more than the ttl.
                *remaining = remaining.map(|left| left.min(version.longest()));
            }
            let write = match &answer {
                Acquired::Granted(_) => true,
                Acquired::Held { .. } => false,
                // A place is refreshed well before it ends, not at each question.
                Acquired::Queued { .. } => before.is_none_or(|place| {
                    place.until.saturating_duration_since(self.now()) < one.ttl.saturating_mul(3) / 4
                }),
            };
            Ok((write.then(|| loaded.record(Some(op))), answer))
        };
        let done = self.step(known, Some(op), limit, plan).await?;
        let granted = |grant| Grant { name: name.to_owned(), ..done.loaded.settle(grant, done.seq) };
        Ok(match done.answer {
            Acquired::Granted(grants) => Acquired::Granted(grants.into_iter().map(granted).collect()),
            other => other,
        })
    }

    pub(crate) async fn renew(&self, op: &str) -> Result<Renewed> {
        let Some(known) = self.ops.get(op) else { return Ok(Renewed::Lost) };
        let sent = self.now();
        // Over by its own clock: others may know it already, and need not be asked.
        if known.until.is_none_or(|until| sent >= until) {
            return Ok(Renewed::Lost);
        }
        let limit = self.limit();
        let each = join_all(known.names.iter().map(|name| self.extend(name, op, limit))).await;
        let mut grants = Vec::new();
        for grant in each {
            match grant? {
                Some(grant) => grants.push(grant),
                None => return Ok(Renewed::Lost),
            }
        }
        self.ops.granted(op, sent);
        Ok(Renewed::Renewed(grants))
    }

    async fn extend(&self, name: &str, op: &str, limit: Instant) -> Result<Option<Grant>> {
        let plan = |loaded: &mut Loaded, _: &Version| {
            let holds = loaded.has(op).is_some_and(|e| e.number.is_none());
            match loaded.table.renew(op) {
                Renewed::Renewed(mut grants) if holds => Ok((Some(loaded.record(Some(op))), grants.pop())),
                _ => Ok((None, None)),
            }
        };
        let grant = self.step(self.known(name), None, limit, plan).await?.answer;
        Ok(grant.map(|grant| Grant { name: name.to_owned(), ..grant }))
    }

    pub(crate) async fn release(&self, op: &str) -> Result<Released> {
        let Some(known) = self.ops.get(op) else { return Ok(Released::AlreadyGone) };
        let limit = self.limit();
        let in_time = self.now() < known.until.unwrap_or(known.at_most);
        let each = known.names.iter().map(|name| self.drop_one(name, op, Some(&known), Out::All, limit));
        let mut all = in_time;
        for held in join_all(each).await {
            all &= held?;
        }
        self.ops.released(op);
        // A name that was broken or taken over makes the whole hold a doubtful one.
        Ok(if all { Released::Clean } else { Released::AlreadyGone })
    }

    /// Takes `op` out of `name`; whether it held it. What of it may still be on its way is made to fail: the
    /// name moves on from where it was expected.
    async fn drop_one(
        &self,
        name: &str,
        op: &str,
        known: Option<&Op>,
        out: Out,
        limit: Instant,
    ) -> Result<bool> {
        let name = self.known(name);
        let plan = |loaded: &mut Loaded, version: &Version| {
            if let Some(entry) = version.entry(op) {
                if out == Out::Place && entry.number.is_none() {
                    return Ok((None, true));
                }
                let held = loaded.release(op);
                return Ok((Some(loaded.record(None)), held));
            }
            // An earlier try whose answer was lost may have taken it out.
            let released = out == Out::All && version.released() == Some(op);
            let may_land = known.is_some_and(|known| known.may_land(name, version.seq));
            let moved =
                (may_land && !matches!(version.content, Content::Foreign(_))).then(|| loaded.record(None));
            Ok((moved, released))
        };
        Ok(self.step(name, None, limit, plan).await?.answer)
    }

    pub(crate) async fn leave(&self, op: &str) -> Result<()> {
        let Some(known) = self.ops.get(op) else { return Ok(()) };
        let limit = self.limit();
        let mut holds = false;
        for name in known.names.iter() {
            holds |= self.drop_one(name, op, Some(&known), Out::Place, limit).await?;
        }
        if !holds {
            self.ops.released(op);
        }
        Ok(())
    }

    pub(crate) async fn annotate(&self, name: &str, token: FencingToken, value: &[u8]) -> Result<bool> {
        check::name(name)?;
        let name = self.known(name);
        let plan = |loaded: &mut Loaded, _: &Version| {
            let holds = loaded.table.annotate(name, token, value.to_vec());
            Ok((holds.then(|| loaded.record(None)), holds))
        };
        Ok(self.step(name, None, self.limit(), plan).await?.answer)
    }

    pub(crate) async fn resize(&self, name: &str, permits: u32) -> Result<()> {
        check_limit(permits)?;
        check::name(name)?;
        let name = self.known(name);
        let plan = |loaded: &mut Loaded, version: &Version| {
            if matches!(version.content, Content::Foreign(_)) {
                return Err(mismatch(name, "is no semaphore"));
            }
            loaded.table.resize(name, permits)?;
            // The table alone knows whether anything is other than before.
            let changed = !loaded.table.take_changed().is_empty();
            Ok((changed.then(|| loaded.record(None)), ()))
        };
        self.step(name, None, self.limit(), plan).await.map(drop)
    }

    pub(crate) async fn transfer(&self, name: &str, token: FencingToken, to: &str) -> Result<Transferred> {
        check::name(name)?;
        let name = self.known(name);
        let plan = |loaded: &mut Loaded, _: &Version| {
            let answer = loaded.table.transfer(name, token, to);
            Ok(((answer == Transferred::Moved).then(|| loaded.record(None)), answer))
        };
        Ok(self.step(name, None, self.limit(), plan).await?.answer)
    }

    pub(crate) async fn break_lease(&self, name: &str) -> Result<FencingToken> {
        check::name(name)?;
        let name = self.known(name);
        let plan = |loaded: &mut Loaded, version: &Version| {
            if let Content::Foreign(by) = &version.content {
                let text = format!("`{name}` is held by {by}, which only its own client can read and end");
                return Err(Error::new(ErrorKind::Unsupported, text));
            }
            loaded.table.break_lease(name);
            Ok((Some(loaded.record(None)), ()))
        };
        let done = self.step(name, None, self.limit(), plan).await?;
        Ok(token(self.config.epoch, done.seq))
    }

    pub(crate) async fn inspect(&self, name: &str) -> Result<LeaseInfo> {
        check::name(name)?;
        self.look(name, self.limit()).await
    }

    async fn look(&self, name: &str, limit: Instant) -> Result<LeaseInfo> {
        let known = self.known(name);
        let Known { version, sight } = self.read(known, limit).await?;
        let loaded = Loaded::new(known, &version, &sight, self.moment(), self.config.epoch);
        let mut info = loaded.table.inspect(known);
        name.clone_into(&mut info.name);
        for holder in &mut info.holders {
            holder.remaining = holder.remaining.min(version.longest());
        }
        if let Content::Foreign(by) = &version.content {
            info.holders.push(Holder::new(by.clone(), FencingToken::ZERO, NO_EXPIRY));
        }
        Ok(info)
    }

    pub(crate) async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<LeaseInfo>> {
        let until = self.limit();
        let mut found = Vec::new();
        let known = crate::scan::names(&self.api, self.config.names.known_prefix(prefix), until).await?;
        for name in known.iter().filter_map(|known| self.config.names.listed(prefix, known)) {
            if found.len() >= limit {
                break;
            }
            let info = self.look(&name, until).await?;
            if !info.holders.is_empty() {
                found.push(info);
            }
        }
        Ok(found)
    }
}
