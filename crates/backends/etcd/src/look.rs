//! Looking at names, and what is done to them from outside.

use std::time::Duration;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use mainstay_store::lease::{AcquireRequest, LeaseInfo, Share, Transferred, check_limit, mismatch};
use mainstay_store::{Error, ErrorKind, FencingToken, Outcome, Result};
use prost::Message as _;

use crate::conn::Repeat;
use crate::state::{Entry, View, revision_of, token};
use crate::store::EtcdLeases;
use crate::wire::record::Place;
use crate::wire::{self, KeyValue, RangeRequest, RequestOp, ResponseOp, TxnRequest, TxnResponse};

/// Marks read at once when names are listed.
const PAGE: i64 = 1_000;
/// Names looked at at once.
const LOOKS: usize = 16;
/// Of holders of one name whose remaining time is asked for.
const MAX_TIMES: usize = 100;
/// A name that changes between look and change is looked at again.
const TRIES: u32 = 5;

impl EtcdLeases {
    /// Reads at one revision, from a majority.
    pub(crate) async fn read(&self, success: Vec<RequestOp>) -> Result<TxnResponse> {
        let answer = self.0.conn.txn(Repeat::Harmless, TxnRequest { success, ..TxnRequest::default() }).await;
        answer.map(|a| a.reply).map_err(|failed| match failed.error.kind() {
            // A store that went back is not asked again, whatever this request would have done.
            ErrorKind::Corrupt | ErrorKind::Regressed => failed.error,
            // Looking changes nothing, so nothing is in doubt.
            _ => failed.error.with_outcome(Outcome::NotApplied),
        })
    }

    fn ranges(&self, name: &str) -> [RequestOp; 3] {
        let scheme = &self.0.scheme;
        [wire::all(scheme.locks(name)), wire::all(scheme.places(name)), wire::all(scheme.marks(name))]
    }

    fn view(&self, name: &str, revision: i64, parts: &mut impl Iterator<Item = ResponseOp>) -> Result<View> {
        let [locks, places, marks] = [(); 3].map(|()| wire::found(parts.next()));
        View::read(&self.0.scheme, name, revision, locks, &places, &marks)
    }

    pub(crate) async fn views(&self, names: &[String]) -> Result<Vec<View>> {
        let answer = self.read(names.iter().flat_map(|name| self.ranges(name)).collect()).await?;
        let revision = wire::revision(answer.header.as_ref());
        let mut parts = answer.responses.into_iter();
        names.iter().map(|name| self.view(name, revision, &mut parts)).collect()
    }

    pub(crate) async fn look(&self, name: &str) -> Result<View> {
        let mut views = self.views(&[name.to_owned()]).await?;
        Ok(views.pop().unwrap_or_default())
    }

    /// What an acquisition has to know: its record, and all names that it asks for or requires.
    pub(crate) fn looks(&self, request: &AcquireRequest) -> Vec<RequestOp> {
        let mut looks = vec![wire::get(self.0.scheme.operation(&request.op_id))];
        looks.extend(involved(request).into_iter().flat_map(|name| self.ranges(name)));
        looks
    }

    pub(crate) fn seen(
        &self,
        request: &AcquireRequest,
        revision: i64,
        parts: Vec<ResponseOp>,
    ) -> Result<(Vec<View>, Option<KeyValue>)> {
        let mut parts = parts.into_iter();
        let known = wire::found(parts.next()).pop();
        let views = involved(request).into_iter().map(|name| self.view(name, revision, &mut parts));
        Ok((views.collect::<Result<_>>()?, known))
    }

    pub(crate) async fn look_for(&self, request: &AcquireRequest) -> Result<(Vec<View>, Option<KeyValue>)> {
        let answer = self.read(self.looks(request)).await?;
        self.seen(request, wire::revision(answer.header.as_ref()), answer.responses)
    }

    /// Whoever holds under `token`.
    pub(crate) fn holder<'a>(&self, view: &'a View, token: FencingToken) -> Option<&'a Entry> {
        view.proved(revision_of(self.0.epoch, token)?)
    }

    /// How long a lease still lasts; none when nobody can say.
    pub(crate) async fn left(&self, lease: i64) -> Result<Option<Duration>> {
        if lease == 0 { Ok(None) } else { self.0.conn.remaining(lease).await }
    }

    pub(crate) async fn describe(&self, name: &str) -> Result<LeaseInfo> {
        let view = self.look(name).await?;
        let mut info = view.info(self.0.epoch)?;
        let leases: Vec<i64> = view.holders().take(MAX_TIMES).map(|e| e.lease).collect();
        let times = stream::iter(leases).map(|lease| async move {
            // A key without a lease has no end.
            let left = self.left(lease).await?;
            Ok::<_, Error>(if lease == 0 { Duration::MAX } else { left.unwrap_or_default() })
        });
        for (holder, left) in
            info.holders.iter_mut().zip(times.buffered(LOOKS).try_collect::<Vec<_>>().await?)
        {
            holder.remaining = left;
        }
        Ok(info)
    }

    pub(crate) async fn held_under(&self, prefix: &str, limit: usize) -> Result<Vec<LeaseInfo>> {
        let names = self.marked_names(prefix, limit).await?;
        let looks = stream::iter(names).map(|name| async move { self.describe(&name).await });
        let mut found: Vec<LeaseInfo> = looks.buffered(LOOKS).try_collect().await?;
        // Freed between the two looks.
        found.retain(|info| !info.holders.is_empty());
        Ok(found)
    }

    /// Names with a holder of ours, by name.
    async fn marked_names(&self, prefix: &str, limit: usize) -> Result<Vec<String>> {
        let mut key = self.0.scheme.all_marks(prefix);
        let range_end = wire::behind(&key);
        let mut names: Vec<String> = Vec::new();
        while names.len() < limit {
            let page = RangeRequest {
                key: key.clone(),
                range_end: range_end.clone(),
                limit: PAGE,
                keys_only: true,
                ..RangeRequest::default()
            };
            let answer = self.read(vec![wire::range(page)]).await?;
            let found = wire::found(answer.responses.into_iter().next());
            let Some(last) = found.last() else { break };
            key = [last.key.as_slice(), &[0]].concat();
            names.extend(found.iter().filter_map(|kv| self.0.scheme.marked(prefix, &kv.key)));
            names.dedup();
        }
        names.truncate(limit);
        Ok(names)
    }

    pub(crate) async fn proclaim(&self, name: &str, token: FencingToken, value: Vec<u8>) -> Result<bool> {
        let view = self.look(name).await?;
        let Some(Entry { key, created, mark: Some(mark), proof: Some(proof), .. }) =
            self.holder(&view, token)
        else {
            return Ok(false);
        };
        let compare = vec![wire::is_created(key.clone(), *created), wire::is_created(mark.clone(), *proof)];
        let success = vec![wire::change(key.clone(), value)];
        let answer =
            self.0.conn.txn(Repeat::Harmless, TxnRequest { compare, success, failure: Vec::new() }).await?;
        if answer.reply.succeeded {
            self.0.hub.fire(name);
        }
        Ok(answer.reply.succeeded)
    }

    /// etcd's own candidates do not notice that their key was deleted, and lead later without one. So nobody is
    /// skipped (coordination F35): only the next in line can be moved up.
    pub(crate) async fn hand_over(&self, name: &str, token: FencingToken, to: &str) -> Result<Transferred> {
        let view = self.look(name).await?;
        let mut line = view.entries.iter();
        let (Some(holder), Some(next)) = (line.next(), line.next()) else {
            return Ok(Transferred::Unsupported);
        };
        let single =
            |e: &Entry| e.share() == Share::Exclusive && e.place.as_ref().is_none_or(|place| !place.several);
        let proof = revision_of(self.0.epoch, token).filter(|p| holder.proof == Some(*p));
        let (Some(proof), Some(mark), Some(place)) = (proof, &holder.mark, &holder.place) else {
            return Ok(Transferred::Unsupported);
        };
        if !single(holder) || !single(next) || next.owner() != to {
            return Ok(Transferred::Unsupported);
        }
        let scheme = &self.0.scheme;
        let compare = vec![
            wire::is_created(holder.key.clone(), holder.created),
            wire::is_created(mark.clone(), proof),
            wire::is_created(next.key.clone(), next.created),
        ];
        let mut success = self.deletes(name, holder);
        success.push(wire::delete(scheme.operation(&place.op)));
        if next.place.is_some() {
            success.push(wire::put(scheme.mark(name, next.lease), self.mark(), next.lease));
        }
        let answer =
            self.0.conn.txn(Repeat::Never, TxnRequest { compare, success, failure: Vec::new() }).await?;
        self.0.hub.fire(name);
        Ok(if answer.reply.succeeded { Transferred::Moved } else { Transferred::Unsupported })
    }

    /// The keys of one name of an operation.
    fn deletes(&self, name: &str, entry: &Entry) -> Vec<RequestOp> {
        let scheme = &self.0.scheme;
        let side = [scheme.marks(name), scheme.places(name)];
        let mut deletes = vec![wire::delete(entry.key.clone())];
        deletes.extend(side.map(|prefix| wire::delete([prefix.as_slice(), entry.part.as_bytes()].concat())));
        deletes
    }

    /// Writes another limit for everybody who holds or waits. Other processes are not told: who waits there sees it when
    /// it next keeps its place.
    pub(crate) async fn give_limit(&self, name: &str, limit: u32) -> Result<()> {
        check_limit(limit)?;
        self.0.scheme.check(&[name.to_owned()])?;
        for _ in 0..TRIES {
            let view = self.look(name).await?;
            if view.entries.is_empty() {
                return Ok(());
            }
            if view.entries.len() > MAX_TIMES {
                let text =
                    format!("more than {MAX_TIMES} hold `{name}` or wait for it: too many for one step");
                return Err(Error::new(ErrorKind::TooLarge, text));
            }
            let mut compare: Vec<_> =
                view.entries.iter().map(|e| wire::is_created(e.key.clone(), e.created)).collect();
            compare.push(wire::none_since(self.0.scheme.locks(name), view.revision));
            let mut success = Vec::new();
            for entry in &view.entries {
                let Some(place) =
                    entry.place.as_ref().filter(|_| matches!(entry.share(), Share::Permit { .. }))
                else {
                    return Err(mismatch(name, "is no semaphore"));
                };
                let key = self.0.scheme.place(name, entry.lease);
                success.push(wire::change(key, Place { limit, ..place.clone() }.encode_to_vec()));
            }
            let txn = TxnRequest { compare, success, failure: Vec::new() };
            let answer = self.0.conn.txn(Repeat::Harmless, txn).await?;
            if answer.reply.succeeded {
                self.0.hub.fire(name);
                return Ok(());
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("`{name}` changed hands while it was given another limit"),
        ))
    }

    pub(crate) async fn burn(&self, name: &str) -> Result<FencingToken> {
        self.0.scheme.check(&[name.to_owned()])?;
        for _ in 0..TRIES {
            let view = self.look(name).await?;
            // As many as one transaction takes; there are more only with a very large semaphore.
            let holders: Vec<&Entry> = view.holders().take(MAX_TIMES / 3).collect();
            if holders.is_empty() {
                // Every later token is larger than the revision of a look that found nobody.
                return token(self.0.epoch, view.revision);
            }
            let compare = holders.iter().map(|e| wire::is_created(e.key.clone(), e.created)).collect();
            let success: Vec<RequestOp> = holders.iter().flat_map(|e| self.deletes(name, e)).collect();
            let answer =
                self.0.conn.txn(Repeat::Never, TxnRequest { compare, success, failure: Vec::new() }).await?;
            self.0.hub.fire(name);
            let all = holders.len() == view.holders().count();
            if answer.reply.succeeded && all {
                return token(self.0.epoch, wire::revision(answer.reply.header.as_ref()));
            }
        }
        Err(Error::new(ErrorKind::Unavailable, format!("`{name}` changed hands while it was being broken")))
    }
}

/// The names that an acquisition asks for or requires, each once.
fn involved(request: &AcquireRequest) -> Vec<&String> {
    let mut names: Vec<&String> = request.names.iter().collect();
    for (name, _) in &request.require {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
