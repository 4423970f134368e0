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
use crate::ops::Op;
use crate::state::{View, mark_of, operation, seconds, token};
use crate::store::EtcdLeases;
use crate::wire::record::{Operation, Place, Share as Kind};
use crate::wire::{self, Compare, KeyValue, RequestOp, TxnRequest, TxnResponse};

/// How often a name that changes between a look and a transaction is looked at again.
pub(crate) const LOOKS: u32 = 5;

/// What a known acquisition turned out to be.
pub(crate) enum Known {
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
        let mut views = None;
        if !is_plain(request) {
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
            if is_plain(request) {
                // Somebody is there; a long line is not read only to stand behind it.
                return self.join(request, lease, &[]).await;
            }
            let refused = self.refused(request, &seen).await;
            if !matches!(refused, Ok(None)) {
                self.abandon(&request.op_id, lease).await?;
            }
            if let Some(refused) = refused? {
                return Ok(refused);
            }
            views = Some(seen);
        }
        if request.line == Line::Join {
            return self.join(request, lease, views.as_deref().unwrap_or_default()).await;
        }
        self.abandon(&request.op_id, lease).await?;
        Ok(Acquired::Held { by: "several others who ask at once".to_owned(), remaining: None, since: None })
    }

    /// Whether the answer is no already: somebody holds what is not waited for, or a requirement is not met.
    async fn refused(&self, request: &AcquireRequest, views: &[View]) -> Result<Option<Acquired>> {
        if let Some(unmet) = self.unmet(request, views) {
            return Ok(Some(unmet));
        }
        let asked = || views.iter().filter(|v| request.names.contains(&v.name));
        if let Some(error) = asked().find_map(|v| v.mismatch(request.share, i64::MAX)) {
            return Err(error);
        }
        if request.line == Line::Join {
            return Ok(None);
        }
        let Some(obstacle) = asked().find_map(|v| v.obstacle(request.share, i64::MAX)) else {
            return Ok(None);
        };
        let (by, lease, since) = (obstacle.first.owner(), obstacle.first.lease, obstacle.first.since);
        let remaining = self.left(lease).await?;
        Ok(Some(Acquired::Held { by, remaining, since }))
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
    pub(crate) fn draw(&self) -> i64 {
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
        if matches!(request.share, Share::Permit { .. }) {
            // Another limit is written into the places that are there.
            let same = |name: &String| wire::none_written_since(scheme.places(name), since(name));
            compare.extend(request.names.iter().map(same));
        }
        let failure = match is_plain(request) {
            true => vec![wire::get(scheme.operation(&request.op_id))],
            false => self.looks(request),
        };
        let txn = TxnRequest { compare, success: self.puts(request, lease, true), failure };
        let answer = self.put(request, txn).await?;
        let revision = wire::revision(answer.header.as_ref());
        if answer.succeeded {
            return Ok((Some(revision), Vec::new(), None));
        }
        if is_plain(request) {
            return Ok((None, Vec::new(), wire::found(answer.responses.into_iter().next()).pop()));
        }
        let (seen, known) = self.seen(request, revision, answer.responses)?;
        Ok((None, seen, known))
    }

    /// Sends the keys of an acquisition.
    pub(crate) async fn put(&self, request: &AcquireRequest, txn: TxnRequest) -> Result<TxnResponse> {
        match self.0.conn.txn(Repeat::Harmless, txn).await {
            Ok(answer) => Ok(answer.reply),
            // It took longer than the lease lasts.
            Err(failed) if failed.refusal == Refusal::LeaseGone => Err(lost(&request.op_id)),
            Err(failed) => Err(failed.error),
        }
    }

    /// Nobody knows this operation yet, and its requirements are met.
    pub(crate) fn wanted(&self, request: &AcquireRequest, views: &[View]) -> Vec<Compare> {
        let mut compare = vec![wire::is_created(self.0.scheme.operation(&request.op_id), 0)];
        compare.extend(self.required(request, views));
        compare
    }

    /// The requirements are met as they were when they were looked at.
    pub(crate) fn required(&self, request: &AcquireRequest, views: &[View]) -> Vec<Compare> {
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
    pub(crate) fn unmet(&self, request: &AcquireRequest, views: &[View]) -> Option<Acquired> {
        request.require.iter().find_map(|(name, token)| {
            let view = views.iter().find(|v| v.name == *name)?;
            if self.holder(view, *token).is_some() {
                return None;
            }
            let (by, since) = view.holders().next().map(|e| (e.owner(), e.since)).unwrap_or_default();
            Some(Acquired::Held { by, remaining: None, since })
        })
    }

    /// What is written into a mark.
    pub(crate) fn mark(&self) -> Vec<u8> {
        mark_of(self.0.conn.rt.clock().wall())
    }

    /// The keys of an acquisition, with the marks of its ownership or without.
    pub(crate) fn puts(&self, request: &AcquireRequest, lease: i64, held: bool) -> Vec<RequestOp> {
        let scheme = &self.0.scheme;
        let (kind, limit, count) = match request.share {
            Share::Exclusive => (Kind::Exclusive, 0, 0),
            Share::Shared => (Kind::Shared, 0, 0),
            Share::Permit { limit, count } => (Kind::Permit, limit, count),
        };
        let place = Place {
            op: request.op_id.clone(),
            owner: request.owner.clone(),
            note: request.note.clone(),
            share: kind.into(),
            limit,
            count,
            several: request.names.len() > 1,
        };
        let nanos = u64::try_from(request.ttl.as_nanos()).unwrap_or(u64::MAX);
        let record = Operation { names: request.names.clone(), lease, ttl_nanos: nanos };
        let mut puts = vec![wire::put(scheme.operation(&request.op_id), record.encode_to_vec(), lease)];
        for name in &request.names {
            puts.push(wire::put(scheme.lock(name, lease), Vec::new(), lease));
            puts.push(wire::put(scheme.place(name, lease), place.encode_to_vec(), lease));
            if held {
                puts.push(wire::put(scheme.mark(name, lease), self.mark(), lease));
            }
        }
        puts
    }

    pub(crate) fn granted(
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
    pub(crate) async fn adopt_instead(
        &self,
        request: &AcquireRequest,
        lease: i64,
        known: KeyValue,
    ) -> Result<Acquired> {
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
}

fn op(request: &AcquireRequest, lease: i64, seconds: i64) -> Op {
    let (names, ttl) = (request.names.clone(), request.ttl);
    Op { names, lease, seconds, ttl, created: None, held: false, releasing: false }
}

/// One that shares with nobody, waits in line and requires nothing: it need not know who is there.
fn is_plain(request: &AcquireRequest) -> bool {
    request.share == Share::Exclusive && request.line == Line::Join && request.require.is_empty()
}

fn blocks(views: &[View], request: &AcquireRequest, created: i64) -> bool {
    let mut asked = views.iter().filter(|v| request.names.contains(&v.name));
    asked.any(|v| v.obstacle(request.share, created).is_some())
}

fn other_names(op_id: &str) -> Error {
    Error::new(ErrorKind::ApiMisuse, format!("op id `{op_id:.8}..` already stands for other names"))
}

/// Asked again, it starts anew.
pub(crate) fn lost(op_id: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("the place of `{op_id:.8}..` in line was lost meanwhile"))
}
