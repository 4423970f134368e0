//! Records beside the leases, for recipes that remember more than a lease can.
//!
//! A record is one key; its version is the revision that wrote it, which etcd gives to no other write.

use std::time::Duration;

use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, PutIf, RecordStore, Result, VersionedRecord};

use crate::conn::{Answer, Repeat};
use crate::state::seconds;
use crate::store::EtcdLeases;
use crate::wire::{self, KeyValue, RangeRequest, RequestOp, TxnRequest, TxnResponse};

/// Longest key, as that of a lease's name.
const MAX_KEY: usize = 1_024;
/// Records in one answer: a client takes 4 MiB of them, so each may have 64 KiB.
const PAGE: usize = 64;

fn check(key: &str) -> Result<()> {
    if (1..=MAX_KEY).contains(&key.len()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::ApiMisuse, "the key of a record has 1 to 1,024 bytes"))
}

/// Revisions are signed; a version that is none of them is nobody's.
fn revision(version: u64) -> Result<i64> {
    i64::try_from(version)
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| Error::new(ErrorKind::ApiMisuse, "no record has a version like this"))
}

fn record(key: &str, kv: KeyValue) -> VersionedRecord {
    VersionedRecord { key: key.to_owned(), version: kv.mod_revision.unsigned_abs(), value: kv.value }
}

/// An earlier try of the same request may have done what this one finds done.
fn doubtful(key: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("etcd lost an answer about the record `{key}`"))
        .with_outcome(Outcome::Unknown)
}

impl EtcdLeases {
    async fn change_record(
        &self,
        key: &str,
        expected: i64,
        success: Vec<RequestOp>,
    ) -> Result<Answer<TxnResponse>> {
        let place = self.0.scheme.record(key);
        let compare = vec![wire::is_written(place.clone(), expected)];
        let txn = TxnRequest { compare, success, failure: vec![wire::get(place)] };
        Ok(self.0.conn.txn(Repeat::Harmless, txn).await?)
    }

    async fn put_record(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> Result<PutIf> {
        check(key)?;
        let expected = expected.map_or(Ok(0), revision)?;
        let lease = match ttl {
            None => 0,
            Some(ttl) => {
                let lease = self.draw();
                // A lease without a key is no record.
                let granted = self.0.conn.grant(lease, seconds(ttl)).await;
                granted.map_err(|e| e.with_outcome(Outcome::NotApplied))?;
                lease
            }
        };
        let success = vec![wire::replace(self.0.scheme.record(key), value, lease)];
        let Answer { reply, in_doubt } = self.change_record(key, expected, success).await?;
        let written = wire::revision(reply.header.as_ref());
        let part = reply.responses.into_iter().next();
        if reply.succeeded {
            // The end of what was there before has nothing to end any more.
            self.forget(wire::replaced(part).map_or(0, |kv| kv.lease)).await;
            return Ok(PutIf::Stored(written.unsigned_abs()));
        }
        if in_doubt {
            return Err(doubtful(key));
        }
        self.forget(lease).await;
        Ok(PutIf::Conflict(wire::found(part).pop().map(|kv| record(key, kv))))
    }

    /// Ends a lease that no key has any more. It would end by itself, after the ttl.
    async fn forget(&self, lease: i64) {
        if lease != 0
            && let Err(error) = self.0.conn.revoke(lease).await
        {
            tracing::debug!(%error, "the lease of a record that was replaced ends by itself");
        }
    }

    async fn remove(&self, key: &str, expected: u64) -> Result<bool> {
        check(key)?;
        let success = vec![wire::delete(self.0.scheme.record(key))];
        let Answer { reply, in_doubt } = self.change_record(key, revision(expected)?, success).await?;
        if in_doubt && !reply.succeeded {
            return Err(doubtful(key));
        }
        Ok(reply.succeeded)
    }

    async fn look_up(&self, key: &str) -> Result<Option<VersionedRecord>> {
        check(key)?;
        let answer = self.read(vec![wire::get(self.0.scheme.record(key))]).await?;
        Ok(wire::found(answer.responses.into_iter().next()).pop().map(|kv| record(key, kv)))
    }

    async fn records(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<VersionedRecord>> {
        let scheme = &self.0.scheme;
        let all = scheme.record(prefix);
        let range_end = wire::behind(&all);
        // The smallest key behind one is that key and a byte of zero.
        let behind = |key: &[u8]| [key, &[0]].concat();
        let mut from = after.map_or(all.clone(), |key| all.max(behind(&scheme.record(key))));
        let mut found = Vec::new();
        while found.len() < limit && from < range_end {
            let room = (limit - found.len()).min(PAGE);
            let page = RangeRequest {
                key: from,
                range_end: range_end.clone(),
                limit: i64::try_from(room).unwrap_or(i64::MAX),
                ..RangeRequest::default()
            };
            let answer = self.read(vec![wire::range(page)]).await?;
            let page = wire::found(answer.responses.into_iter().next());
            let is_last = page.len() < room;
            from = page.last().map_or_else(|| range_end.clone(), |kv| behind(&kv.key));
            found.extend(page.into_iter().filter_map(|kv| Some(record(&scheme.recorded(&kv.key)?, kv))));
            if is_last {
                break;
            }
        }
        Ok(found)
    }
}

/// Every answer comes from a majority. A ttl is one of a lease: whole seconds, two at least, by the clock of etcd's
/// leader. etcd tells nobody the time, so neither does this: what is due is decided by the machine that asks.
impl RecordStore for EtcdLeases {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        let key = key.to_owned();
        Box::pin(async move { self.look_up(&key).await })
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let key = key.to_owned();
        Box::pin(async move { self.put_record(&key, expected, value, ttl).await })
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        let key = key.to_owned();
        Box::pin(async move { self.remove(&key, expected).await })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        Box::pin(async move { self.records(&prefix, after.as_deref(), limit).await })
    }
}
