//! Standing in line: whose turn it is, and taking it.

use std::time::Duration;

use mainstay_store::Result;
use mainstay_store::lease::{AcquireRequest, Acquired, Line, Share, Since};

use crate::acquire::{Known, LOOKS, lost};
use crate::conn::Repeat;
use crate::error::Refusal;
use crate::keys::last_part;
use crate::ops::Op;
use crate::state::{Entry, View};
use crate::store::EtcdLeases;
use crate::wire::{self, Compare, KeyValue, RequestOp, TxnRequest, TxnResponse};

impl EtcdLeases {
    /// Takes places in line.
    pub(crate) async fn join(
        &self,
        request: &AcquireRequest,
        lease: i64,
        views: &[View],
    ) -> Result<Acquired> {
        let scheme = &self.0.scheme;
        let mut success = self.puts(request, lease, false);
        let puts = success.len();
        success.extend(request.names.iter().map(|name| wire::count(scheme.locks(name))));
        success.extend(request.names.iter().map(|name| wire::count(scheme.marks(name))));
        let failure = vec![wire::get(scheme.operation(&request.op_id))];
        let txn = TxnRequest { compare: self.wanted(request, views), success, failure };
        let answer = self.put(request, txn).await?;
        if !answer.succeeded {
            let known = answer.responses.into_iter().next();
            if let Some(known) = wire::found(known).pop() {
                return self.adopt_instead(request, lease, known).await;
            }
            // A requirement ended meanwhile.
            self.abandon(&request.op_id, lease).await?;
            return Ok(Acquired::Held { by: String::new(), remaining: None, since: None });
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
            Known::Answer(Acquired::Queued { position: None, remaining }) => {
                Ok(Acquired::Queued { position: u32::try_from(before).ok(), remaining })
            }
            Known::Answer(answer) => Ok(answer),
            Known::Gone => Err(lost(&request.op_id)),
        }
    }

    /// An acquisition that was asked for before: a repeated request, or the next look of a waiter. What it has is
    /// kept alive meanwhile.
    pub(crate) async fn again(&self, request: &AcquireRequest, op: &Op) -> Result<Known> {
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
        for _ in 0..LOOKS {
            match self.stand(request, lease, created).await? {
                Stand::Gone => return Ok(Known::Gone),
                Stand::Holds(proofs) => {
                    return self.granted(request, lease, ttl, created, &proofs).map(Known::Answer);
                }
                Stand::Next(seen) => {
                    if let Some(known) = self.prove(request, lease, ttl, created, seen).await? {
                        return Ok(known);
                    }
                }
                Stand::Waits(waits) => return Ok(Known::Answer(self.waits(request, lease, created, waits))),
            }
        }
        let by = "somebody who changes the limit all the time".to_owned();
        let waits = Waits { follows: None, by, since: None, revision: created, position: None };
        Ok(Known::Answer(self.waits(request, lease, created, waits)))
    }

    async fn stand(&self, request: &AcquireRequest, lease: i64, created: i64) -> Result<Stand> {
        if request.share == Share::Exclusive
            && request.line == Line::Join
            && let Some(stand) = self.stand_alone(request, lease, created).await?
        {
            return Ok(stand);
        }
        self.stand_in_crowd(request, lease, created).await
    }

    /// It keeps its place.
    fn waits(&self, request: &AcquireRequest, lease: i64, created: i64, waits: Waits) -> Acquired {
        self.0.ops.placed(&request.op_id, lease, created, false);
        // Without one key to wait for, the watch of all keys of the name is relied on.
        match waits.follows {
            Some(key) => self.0.hub.follow(&request.op_id, &request.names, key, waits.revision),
            None => self.0.hub.unfollow(&request.op_id),
        }
        match request.line {
            // The end of a lease deletes its keys, and that is told.
            Line::Join => Acquired::Queued { position: waits.position, remaining: None },
            Line::Try => Acquired::Held { by: waits.by, remaining: None, since: waits.since },
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
            let by = String::new();
            return Ok(Some(Stand::Waits(Waits { follows, by, since: None, revision, position: None })));
        }
        // Who shares with nobody has no limit that could be another one by then.
        Ok(Some(Stand::Next(revision)))
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
        for (view, own) in views.iter().zip(&own) {
            // Its own share, not the request's: the semaphore may have been given another limit while it waited.
            if let Some(error) = view.mismatch(own.share(), created) {
                self.abandon(&request.op_id, lease).await?;
                return Err(error);
            }
            if let Some(obstacle) = view.obstacle(own.share(), created) {
                return Ok(Stand::Waits(Waits {
                    follows: obstacle.last.map(|e| e.key.clone()),
                    by: obstacle.first.owner(),
                    since: obstacle.first.since,
                    revision: view.revision,
                    position: Some(view.position(created)),
                }));
            }
        }
        Ok(Stand::Next(views.first().map_or(0, |view| view.revision)))
    }

    /// It is the turn of these keys, and stays so while they live: nothing comes before them any more. The
    /// transaction sees that they do, and its revision is the token (coordination F34). What may change is the limit of
    /// a semaphore: None when it did after `seen`, and it has to be looked again.
    async fn prove(
        &self,
        request: &AcquireRequest,
        lease: i64,
        ttl: Duration,
        created: i64,
        seen: i64,
    ) -> Result<Option<Known>> {
        let (scheme, names) = (&self.0.scheme, &request.names);
        let mut compare: Vec<Compare> =
            names.iter().map(|n| wire::is_created(scheme.lock(n, lease), created)).collect();
        if !request.require.is_empty() {
            let required: Vec<String> = request.require.iter().map(|(name, _)| name.clone()).collect();
            let views = self.views(&required).await?;
            if let Some(unmet) = self.unmet(request, &views) {
                return Ok(Some(Known::Answer(unmet)));
            }
            compare.extend(self.required(request, &views));
        }
        let permit = matches!(request.share, Share::Permit { .. });
        if permit {
            // Another limit is written into every place, also its own; places that only come stand behind it.
            compare.extend(names.iter().map(|n| wire::is_as_of(scheme.place(n, lease), seen)));
        }
        // Repeated, it must not move the token.
        compare.extend(names.iter().map(|n| wire::is_created(scheme.mark(n, lease), 0)));
        let success = names.iter().map(|n| wire::put(scheme.mark(n, lease), self.mark(), lease)).collect();
        let txn = TxnRequest { compare, success, failure: self.own(names, lease) };
        let answer = match self.0.conn.txn(Repeat::Harmless, txn).await {
            Ok(answer) => answer.reply,
            Err(failed) if failed.refusal == Refusal::LeaseGone => return Ok(Some(Known::Gone)),
            Err(failed) => return Err(failed.error),
        };
        if answer.succeeded {
            let proofs = vec![wire::revision(answer.header.as_ref()); names.len()];
            return self
                .granted(request, lease, ttl, created, &proofs)
                .map(|granted| Some(Known::Answer(granted)));
        }
        if permit && still_waits(names.len(), created, &answer) {
            return Ok(None);
        }
        // An earlier try was applied after all, somebody handed it over, or the keys are gone.
        match proofs(names.len(), answer) {
            Some(proofs) => self
                .granted(request, lease, ttl, created, &proofs)
                .map(|granted| Some(Known::Answer(granted))),
            None => Ok(Some(Known::Gone)),
        }
    }

    /// The lock keys of an acquisition, then its marks.
    fn own(&self, names: &[String], lease: i64) -> Vec<RequestOp> {
        let scheme = &self.0.scheme;
        let locks = names.iter().map(|n| wire::get(scheme.lock(n, lease)));
        locks.chain(names.iter().map(|n| wire::get(scheme.mark(n, lease)))).collect()
    }

    /// How an operation stands that held its names.
    pub(crate) async fn held_as(&self, op_id: &str, names: &[String], lease: i64) -> Result<Held> {
        let mut looks = self.own(names, lease);
        looks.push(wire::get(self.0.scheme.operation(op_id)));
        let mut answer = self.read(looks).await?;
        let record = wire::found(answer.responses.pop()).pop();
        let first = answer.responses.iter().take(names.len()).cloned();
        let all = first.filter(|lock| !wire::found(Some(lock.clone())).is_empty()).count() == names.len();
        Ok(match proofs(names.len(), answer) {
            Some(proofs) => Held::Proved(proofs),
            // Its lease is alive, for the record is bound to it as well: somebody deleted the key.
            None if !all && record.is_some_and(|kv| kv.lease == lease) => Held::Broken,
            None => Held::Gone,
        })
    }

    /// When the keys of an acquisition were created, if all are there.
    async fn created(&self, names: &[String], lease: i64) -> Result<Option<i64>> {
        let answer = self.read(self.own(names, lease)).await?;
        let locks = answer.responses.into_iter().take(names.len()).map(|part| wire::found(Some(part)).pop());
        let all: Option<Vec<i64>> = locks.map(|kv| kv.map(|kv| kv.create_revision)).collect();
        Ok(all.and_then(|all| all.first().copied()))
    }
}

/// How an operation stands that held its names.
pub(crate) enum Held {
    /// Somebody deleted a key of it.
    Broken,
    /// It has ended, or never held.
    Gone,
    /// It holds, as these revisions prove.
    Proved(Vec<i64>),
}

/// How a place in line stands.
enum Stand {
    /// Its keys are not there.
    Gone,
    /// It holds, as these revisions prove.
    Holds(Vec<i64>),
    /// Nobody is before it any more, as seen at this revision.
    Next(i64),
    Waits(Waits),
}

struct Waits {
    /// The key whose end it waits for, if it is one.
    follows: Option<Vec<u8>>,
    /// Who stands in the way, for people, and since when it holds.
    by: String,
    since: Option<Since>,
    /// When that was seen.
    revision: i64,
    /// How many are before it, if they were counted.
    position: Option<u32>,
}

/// From the lock keys and marks of so many names: whether the keys are there as they were created, and no mark.
fn still_waits(names: usize, created: i64, answer: &TxnResponse) -> bool {
    let mut parts = answer.responses.iter().map(|part| wire::found(Some(part.clone())).pop());
    let keys = parts.by_ref().take(names).all(|kv| kv.is_some_and(|kv| kv.create_revision == created));
    keys && parts.all(|mark| mark.is_none())
}

/// From the lock keys and marks of so many names: the marks, if everything is there.
fn proofs(names: usize, answer: TxnResponse) -> Option<Vec<i64>> {
    let parts = answer.responses.into_iter().map(|part| wire::found(Some(part)).pop());
    let revisions: Option<Vec<i64>> = parts.map(|kv| kv.map(|kv| kv.create_revision)).collect();
    revisions.map(|mut all| all.split_off(names.min(all.len()))).filter(|marks| marks.len() == names)
}
