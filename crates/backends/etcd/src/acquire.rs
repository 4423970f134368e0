//! Asking for leases.
//!
//! An acquisition first makes a lease of its own, under an id drawn here and remembered before it is sent, then puts
//! its keys in one transaction. So whatever became of a lost request, revoking the lease undoes it, and makes it
//! harmless should it still arrive (coordination S3).

use std::time::Duration;

use mainstay_store::lease::{AcquireRequest, Acquired, Grant, Line, Share};
use mainstay_store::{Error, ErrorKind, FencingToken, Outcome, Result};
use prost::Message as _;

use crate::conn::Repeat;
use crate::error::Refusal;
use crate::keys::last_part;
use crate::ops::Op;
use crate::state::{Entry, View, operation, seconds, token};
use crate::store::EtcdLeases;
use crate::wire::record::{Operation, Place, Share as Kind};
use crate::wire::{self, Compare, KeyValue, RequestOp, TxnRequest, TxnResponse};

/// How often a name that changes between a look and a transaction is looked at again.
const LOOKS: u32 = 5;

/// What a known acquisition turned out to be.
enum Known {
    Answer(Acquired),
    /// Its keys are gone, or were never there.
    Gone,
}

impl EtcdLeases {
    pub(crate) async fn ask(&self, request: &AcquireRequest) -> Result<Acquired> {
        if let Some(op) = self.0.ops.get(&request.op_id) {
            if op.names != request.names {
                return Err(other_names(&request.op_id));
            }
            match self.again(request, &op).await? {
                Known::Answer(answer) => return Ok(answer),
                // The lease ended, or a name was broken: it starts anew, with nothing of the old one left.
                Known::Gone => self.abandon(&request.op_id, op.lease).await?,
            }
        }
        self.first(request).await
    }

    /// An acquisition that this process knows nothing of.
    async fn first(&self, request: &AcquireRequest) -> Result<Acquired> {
        let look_first =
            request.line == Line::Try || request.share != Share::Exclusive || !request.require.is_empty();
        let mut views = None;
        if look_first {
            let (seen, known) = self.look_for(request).await?;
            if let Some(known) = known {
                return self.adopt(request, known).await;
            }
            if let Some(refused) = self.refused(request, &seen).await? {
                return Ok(refused);
            }
            views = Some(seen);
        }
        let lease = self.begin(request).await?;
        for _ in 0..LOOKS {
            // A line that is occupied is joined; without a look it is found out by trying.
            let blocked = views.as_deref().is_some_and(|v| blocks(v, request, i64::MAX));
            if blocked && request.line == Line::Join {
                return self.join(request, lease, views.as_deref().unwrap_or_default()).await;
            }
            let (granted, seen, known) =
                self.take(request, lease, views.as_deref().unwrap_or_default()).await?;
            if let Some(revision) = granted {
                return self.granted(
                    request,
                    lease,
                    request.ttl,
                    revision,
                    &vec![revision; request.names.len()],
                );
            }
            if let Some(known) = known {
                return self.adopt_instead(request, lease, known).await;
            }
            if let Some(refused) = self.refused(request, &seen).await? {
                self.abandon(&request.op_id, lease).await?;
                return Ok(refused);
            }
            views = Some(seen);
        }
        if request.line == Line::Join {
            return self.join(request, lease, views.as_deref().unwrap_or_default()).await;
        }
        self.abandon(&request.op_id, lease).await?;
        Ok(Acquired::Held { by: "several others who ask at once".to_owned(), remaining: None })
    }

    /// Whether the answer is no already: somebody holds what is not waited for, or a requirement is not met.
    async fn refused(&self, request: &AcquireRequest, views: &[View]) -> Result<Option<Acquired>> {
        if let Some(unmet) = self.unmet(request, views) {
            return Ok(Some(unmet));
        }
        if request.line == Line::Join {
            return Ok(None);
        }
        let asked = || views.iter().filter(|v| request.names.contains(&v.name));
        let Some(obstacle) = asked().find_map(|v| v.obstacle(request.share, i64::MAX)) else {
            return Ok(None);
        };
        let (by, lease) = (obstacle.first.owner(), obstacle.first.lease);
        let remaining = self.left(lease).await?;
        Ok(Some(Acquired::Held { by, remaining }))
    }

    /// Remembers a new lease, then makes it.
    async fn begin(&self, request: &AcquireRequest) -> Result<i64> {
        let lease = self.draw();
        let seconds = seconds(request.ttl);
        self.0.ops.begin(&request.op_id, op(request, lease, seconds));
        // A server with slower elections makes it longer, none makes it shorter.
        self.0.conn.grant(lease, seconds).await?;
        Ok(lease)
    }

    /// An id that nobody else draws.
    fn draw(&self) -> i64 {
        let drawn = self.0.conn.rt.rng().next_u64() >> 1;
        i64::try_from(drawn).unwrap_or(i64::MAX).max(1)
    }

    /// Puts all keys at once if everybody leaves room for them; the revision that proves it, or what was in the way.
    async fn take(
        &self,
        request: &AcquireRequest,
        lease: i64,
        views: &[View],
    ) -> Result<(Option<i64>, Vec<View>, Option<KeyValue>)> {
        let scheme = &self.0.scheme;
        let since = |name: &String| views.iter().find(|v| v.name == *name).map_or(0, |v| v.revision);
        let mut compare = self.wanted(request, views);
        compare.extend(request.names.iter().map(|name| wire::none_since(scheme.locks(name), since(name))));
        let txn =
            TxnRequest { compare, success: self.puts(request, lease, true), failure: self.looks(request) };
        let answer = self.0.conn.txn(Repeat::Harmless, txn).await?.reply;
        let revision = wire::revision(answer.header.as_ref());
        if answer.succeeded {
            return Ok((Some(revision), Vec::new(), None));
        }
        let (seen, known) = self.seen(request, revision, answer.responses)?;
        Ok((None, seen, known))
    }

    /// Nobody knows this operation yet, and its requirements are met.
    fn wanted(&self, request: &AcquireRequest, views: &[View]) -> Vec<Compare> {
        let mut compare = vec![wire::is_created(self.0.scheme.operation(&request.op_id), 0)];
        compare.extend(self.required(request, views));
        compare
    }

    /// The requirements are met as they were when they were looked at.
    fn required(&self, request: &AcquireRequest, views: &[View]) -> Vec<Compare> {
        let required = |(name, token): &(String, FencingToken)| {
            let view = views.iter().find(|v| v.name == *name);
            let holder = view.and_then(|v| self.holder(v, *token));
            match holder.and_then(|e| Some((e.mark.clone()?, e.proof?))) {
                Some((mark, proof)) => wire::is_created(mark, proof),
                // No key has a negative revision: not met.
                None => wire::is_created(self.0.scheme.operation(&request.op_id), -1),
            }
        };
        request.require.iter().map(required).collect()
    }

    /// The first requirement that is not met, as an answer.
    fn unmet(&self, request: &AcquireRequest, views: &[View]) -> Option<Acquired> {
        request.require.iter().find_map(|(name, token)| {
            let view = views.iter().find(|v| v.name == *name)?;
            if self.holder(view, *token).is_some() {
                return None;
            }
            let by = view.holders().next().map(Entry::owner).unwrap_or_default();
            Some(Acquired::Held { by, remaining: None })
        })
    }

    /// The keys of an acquisition, with the marks of its ownership or without.
    fn puts(&self, request: &AcquireRequest, lease: i64, held: bool) -> Vec<RequestOp> {
        let scheme = &self.0.scheme;
        let (kind, limit) = match request.share {
            Share::Exclusive => (Kind::Exclusive, 0),
            Share::Shared => (Kind::Shared, 0),
            Share::Permit { limit } => (Kind::Permit, limit),
        };
        let place = Place {
            op: request.op_id.clone(),
            owner: request.owner.clone(),
            note: request.note.clone(),
            share: kind.into(),
            limit,
            several: request.names.len() > 1,
        };
        let nanos = u64::try_from(request.ttl.as_nanos()).unwrap_or(u64::MAX);
        let record = Operation { names: request.names.clone(), lease, ttl_nanos: nanos };
        let mut puts = vec![wire::put(scheme.operation(&request.op_id), record.encode_to_vec(), lease)];
        for name in &request.names {
            puts.push(wire::put(scheme.lock(name, lease), Vec::new(), lease));
            puts.push(wire::put(scheme.place(name, lease), place.encode_to_vec(), lease));
            if held {
                puts.push(wire::put(scheme.mark(name, lease), Vec::new(), lease));
            }
        }
        puts
    }

    fn granted(
        &self,
        request: &AcquireRequest,
        lease: i64,
        ttl: Duration,
        created: i64,
        proofs: &[i64],
    ) -> Result<Acquired> {
        self.0.ops.placed(&request.op_id, lease, created, true);
        self.0.hub.unfollow(&request.op_id);
        self.grants(&request.names, proofs, ttl).map(Acquired::Granted)
    }

    pub(crate) fn grants(&self, names: &[String], proofs: &[i64], ttl: Duration) -> Result<Vec<Grant>> {
        let grant = |(name, revision): (&String, &i64)| {
            let token = token(self.0.epoch, *revision).map_err(|e| e.with_outcome(Outcome::Applied))?;
            Ok(Grant { name: name.clone(), token, ttl })
        };
        names.iter().zip(proofs).map(grant).collect()
    }

    /// Takes places in line.
    async fn join(&self, request: &AcquireRequest, lease: i64, views: &[View]) -> Result<Acquired> {
        let scheme = &self.0.scheme;
        let mut success = self.puts(request, lease, false);
        let puts = success.len();
        success.extend(request.names.iter().map(|name| wire::count(scheme.locks(name))));
        success.extend(request.names.iter().map(|name| wire::count(scheme.marks(name))));
        let failure = vec![wire::get(scheme.operation(&request.op_id))];
        let txn = TxnRequest { compare: self.wanted(request, views), success, failure };
        let answer = self.0.conn.txn(Repeat::Harmless, txn).await?.reply;
        if !answer.succeeded {
            let known = answer.responses.into_iter().next();
            if let Some(known) = wire::found(known).pop() {
                return self.adopt_instead(request, lease, known).await;
            }
            // A requirement ended meanwhile.
            self.abandon(&request.op_id, lease).await?;
            return Ok(Acquired::Held { by: String::new(), remaining: None });
        }
        let created = wire::revision(answer.header.as_ref());
        self.0.ops.placed(&request.op_id, lease, created, false);
        let counts: Vec<i64> =
            answer.responses.into_iter().skip(puts).map(|r| wire::counted(Some(r))).collect();
        let (keys, marks) = counts.split_at(request.names.len().min(counts.len()));
        // Its own key and the holders are not before it in line; a holder of other make has no mark.
        let before =
            keys.iter().zip(marks).map(|(keys, marks)| keys - 1 - marks.max(&1)).max().unwrap_or(0).max(0);
        match self.turn(request, lease, request.ttl, created).await? {
            Known::Answer(Acquired::Queued { position: None }) => {
                Ok(Acquired::Queued { position: u32::try_from(before).ok() })
            }
            Known::Answer(answer) => Ok(answer),
            Known::Gone => Err(lost(&request.op_id)),
        }
    }

    /// An acquisition that was asked for before: a repeated request, or the next look of a waiter. What it has is
    /// kept alive meanwhile.
    async fn again(&self, request: &AcquireRequest, op: &Op) -> Result<Known> {
        let (alive, known) = tokio::join!(self.0.conn.keep_alive(op.lease), self.resume(request, op));
        let known = known?;
        if !alive? {
            return Ok(Known::Gone);
        }
        Ok(known)
    }

    async fn resume(&self, request: &AcquireRequest, op: &Op) -> Result<Known> {
        // The lease cannot be made longer than it is.
        let most = u64::try_from(op.seconds).unwrap_or_default();
        let ttl = request.ttl.min(Duration::from_secs(most));
        self.0.ops.lasts(&request.op_id, op.lease, ttl);
        let created = match op.created {
            Some(created) => Some(created),
            None => self.created(&op.names, op.lease).await?,
        };
        let Some(created) = created else { return Ok(Known::Gone) };
        self.turn(request, op.lease, ttl, created).await
    }

    /// Whether it is the turn of keys that wait since `created`; if so, takes what they wait for.
    async fn turn(&self, request: &AcquireRequest, lease: i64, ttl: Duration, created: i64) -> Result<Known> {
        let alone = request.share == Share::Exclusive && request.line == Line::Join;
        let stand = match alone {
            true => self.stand_alone(request, lease, created).await?,
            false => None,
        };
        let stand = match stand {
            Some(stand) => stand,
            None => self.stand_in_crowd(request, lease, created).await?,
        };
        match stand {
            Stand::Gone => Ok(Known::Gone),
            Stand::Holds(proofs) => self.granted(request, lease, ttl, created, &proofs).map(Known::Answer),
            Stand::Next => self.prove(request, lease, ttl, created).await,
            Stand::Waits(waits) => {
                self.0.ops.placed(&request.op_id, lease, created, false);
                // Without one key to wait for, the watch of all keys of the name is relied on.
                match waits.follows {
                    Some(key) => self.0.hub.follow(&request.op_id, &request.names, key, waits.revision),
                    None => self.0.hub.unfollow(&request.op_id),
                }
                Ok(Known::Answer(match request.line {
                    Line::Join => Acquired::Queued { position: waits.position },
                    Line::Try => Acquired::Held { by: waits.by, remaining: None },
                }))
            }
        }
    }

    /// The short way for whoever shares with nobody: its own keys, and the last key before each, whatever that is.
    /// None when that key is the lock of a longer name, and all have to be looked at.
    async fn stand_alone(&self, request: &AcquireRequest, lease: i64, created: i64) -> Result<Option<Stand>> {
        let (scheme, names) = (&self.0.scheme, &request.names);
        let mut success = self.own(names, lease);
        success.extend(names.iter().map(|n| wire::last_before(scheme.locks(n), created)));
        let answer = self.read(success).await?;
        let revision = wire::revision(answer.header.as_ref());
        let mut parts = answer.responses.into_iter().map(|part| wire::found(Some(part)).pop());
        let own: Vec<Option<KeyValue>> = parts.by_ref().take(2 * names.len()).collect();
        let (locks, marks) = own.split_at(names.len());
        if locks.iter().any(Option::is_none) {
            return Ok(Some(Stand::Gone));
        }
        if let Some(proofs) = marks.iter().map(|m| m.as_ref().map(|m| m.create_revision)).collect() {
            return Ok(Some(Stand::Holds(proofs)));
        }
        for (name, before) in names.iter().zip(parts) {
            let Some(before) = before else { continue };
            if last_part(&scheme.locks(name), &before.key).is_none() {
                return Ok(None);
            }
            let follows = Some(before.key);
            return Ok(Some(Stand::Waits(Waits { follows, by: String::new(), revision, position: None })));
        }
        Ok(Some(Stand::Next))
    }

    /// The long way: all who stand before it.
    async fn stand_in_crowd(&self, request: &AcquireRequest, lease: i64, created: i64) -> Result<Stand> {
        let views = self.views(&request.names).await?;
        let part = format!("{lease:x}");
        let own: Option<Vec<&Entry>> =
            views.iter().map(|v| v.entries.iter().find(|e| e.part == part && e.created == created)).collect();
        let Some(own) = own else { return Ok(Stand::Gone) };
        if let Some(proofs) = own.iter().map(|e| e.proof).collect() {
            return Ok(Stand::Holds(proofs));
        }
        for view in &views {
            if let Some(obstacle) = view.obstacle(request.share, created) {
                return Ok(Stand::Waits(Waits {
                    follows: obstacle.last.map(|e| e.key.clone()),
                    by: obstacle.first.owner(),
                    revision: view.revision,
                    position: Some(view.position(created)),
                }));
            }
        }
        Ok(Stand::Next)
    }

    /// It is the turn of these keys, and stays so while they live: nothing comes before them any more. The
    /// transaction sees that they do, and its revision is the token (coordination F34).
    async fn prove(
        &self,
        request: &AcquireRequest,
        lease: i64,
        ttl: Duration,
        created: i64,
    ) -> Result<Known> {
        let (scheme, names) = (&self.0.scheme, &request.names);
        let mut compare: Vec<Compare> =
            names.iter().map(|n| wire::is_created(scheme.lock(n, lease), created)).collect();
        if !request.require.is_empty() {
            let required: Vec<String> = request.require.iter().map(|(name, _)| name.clone()).collect();
            let views = self.views(&required).await?;
            if let Some(unmet) = self.unmet(request, &views) {
                return Ok(Known::Answer(unmet));
            }
            compare.extend(self.required(request, &views));
        }
        // Repeated, it must not move the token.
        compare.extend(names.iter().map(|n| wire::is_created(scheme.mark(n, lease), 0)));
        let success = names.iter().map(|n| wire::put(scheme.mark(n, lease), Vec::new(), lease)).collect();
        let txn = TxnRequest { compare, success, failure: self.own(names, lease) };
        let answer = match self.0.conn.txn(Repeat::Harmless, txn).await {
            Ok(answer) => answer.reply,
            Err(failed) if failed.refusal == Refusal::LeaseGone => return Ok(Known::Gone),
            Err(failed) => return Err(failed.error),
        };
        if answer.succeeded {
            let proofs = vec![wire::revision(answer.header.as_ref()); names.len()];
            return self.granted(request, lease, ttl, created, &proofs).map(Known::Answer);
        }
        // An earlier try was applied after all, somebody handed it over, or the keys are gone.
        match proofs(names.len(), answer) {
            Some(proofs) => self.granted(request, lease, ttl, created, &proofs).map(Known::Answer),
            None => Ok(Known::Gone),
        }
    }

    /// Goes on with what another process, or an earlier life of this one, asked for under the same id.
    async fn adopt(&self, request: &AcquireRequest, known: KeyValue) -> Result<Acquired> {
        let record = operation(&known)?;
        if record.names != request.names {
            return Err(other_names(&request.op_id));
        }
        let seconds = seconds(Duration::from_nanos(record.ttl_nanos));
        let op = op(request, record.lease, seconds);
        self.0.ops.begin(&request.op_id, op.clone());
        match self.again(request, &op).await? {
            Known::Answer(answer) => Ok(answer),
            Known::Gone => {
                self.abandon(&request.op_id, op.lease).await?;
                Err(lost(&request.op_id))
            }
        }
    }

    /// The record that kept new keys from being put: another process's, or our own of an earlier try whose answer was
    /// lost, and whose lease must live then.
    async fn adopt_instead(&self, request: &AcquireRequest, lease: i64, known: KeyValue) -> Result<Acquired> {
        if operation(&known)?.lease != lease {
            self.abandon(&request.op_id, lease).await?;
        }
        self.adopt(request, known).await
    }

    /// After an answer that cannot be trusted: what it may have granted is not kept.
    pub(crate) async fn undo(&self, op_id: &str) {
        let Some(op) = self.0.ops.get(op_id) else { return };
        match self.0.conn.revoke(op.lease).await {
            Ok(_) => self.0.ops.end(op_id, op.lease),
            Err(error) => tracing::debug!(%error, "a lease was not ended, and ends by itself"),
        }
    }

    /// Ends a lease that led to nothing, and with it whatever of it is still on its way.
    pub(crate) async fn abandon(&self, op_id: &str, lease: i64) -> Result<()> {
        self.0.hub.unfollow(op_id);
        self.0.conn.revoke(lease).await.map_err(|e| e.with_outcome(Outcome::Unknown))?;
        self.0.ops.end(op_id, lease);
        Ok(())
    }

    /// The lock keys of an acquisition, then its marks.
    fn own(&self, names: &[String], lease: i64) -> Vec<RequestOp> {
        let scheme = &self.0.scheme;
        let locks = names.iter().map(|n| wire::get(scheme.lock(n, lease)));
        locks.chain(names.iter().map(|n| wire::get(scheme.mark(n, lease)))).collect()
    }

    /// The proofs of all names of an operation, if it holds all of them.
    pub(crate) async fn proofs(&self, names: &[String], lease: i64) -> Result<Option<Vec<i64>>> {
        Ok(proofs(names.len(), self.read(self.own(names, lease)).await?))
    }

    /// When the keys of an acquisition were created, if all are there.
    async fn created(&self, names: &[String], lease: i64) -> Result<Option<i64>> {
        let answer = self.read(self.own(names, lease)).await?;
        let locks = answer.responses.into_iter().take(names.len()).map(|part| wire::found(Some(part)).pop());
        let all: Option<Vec<i64>> = locks.map(|kv| kv.map(|kv| kv.create_revision)).collect();
        Ok(all.and_then(|all| all.first().copied()))
    }
}

/// How a place in line stands.
enum Stand {
    /// Its keys are not there.
    Gone,
    /// It holds, as these revisions prove.
    Holds(Vec<i64>),
    /// Nobody is before it any more.
    Next,
    Waits(Waits),
}

struct Waits {
    /// The key whose end it waits for, if it is one.
    follows: Option<Vec<u8>>,
    /// Who stands in the way, for people.
    by: String,
    /// When that was seen.
    revision: i64,
    /// How many are before it, if they were counted.
    position: Option<u32>,
}

fn op(request: &AcquireRequest, lease: i64, seconds: i64) -> Op {
    Op { names: request.names.clone(), lease, seconds, ttl: request.ttl, created: None, held: false }
}

/// From the lock keys and marks of so many names: the marks, if everything is there.
fn proofs(names: usize, answer: TxnResponse) -> Option<Vec<i64>> {
    let parts = answer.responses.into_iter().map(|part| wire::found(Some(part)).pop());
    let revisions: Option<Vec<i64>> = parts.map(|kv| kv.map(|kv| kv.create_revision)).collect();
    revisions.map(|mut all| all.split_off(names.min(all.len()))).filter(|marks| marks.len() == names)
}

fn blocks(views: &[View], request: &AcquireRequest, created: i64) -> bool {
    let mut asked = views.iter().filter(|v| request.names.contains(&v.name));
    asked.any(|v| v.obstacle(request.share, created).is_some())
}

fn other_names(op_id: &str) -> Error {
    Error::new(ErrorKind::ApiMisuse, format!("op id `{op_id:.8}..` already stands for other names"))
}

/// Asked again, it starts anew.
fn lost(op_id: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the place of `{op_id:.8}..` in line was lost meanwhile"))
}
