//! Checking ownership and fencing tokens where the data lives: in etcd.
//!
//! Two forms, each in one transaction with the write:
//! - [`EtcdFence::put_as_owner`], for data in the cluster of the leases: the write happens while the owner's key lives
//!   (`IsOwner` of etcd's own recipes). Nobody else owns at that revision, so this is mutual exclusion, and the data
//!   needs no token.
//! - [`EtcdFence::put`], for data in any cluster, and for tokens of any store: the token is kept beside the data as
//!   twenty digits, so that etcd's comparison of texts is that of numbers.

use mainstay_clock::Runtime;
use mainstay_store::{Error, ErrorKind, FenceCheck, FencingToken, Result};

use crate::ConfigError;
use crate::config::EtcdConfig;
use crate::conn::{Conn, Repeat};
use crate::store::LockKey;
use crate::wire::{self, RequestOp, Response, TxnRequest};

/// The token as it is kept: twenty digits, zeros before, as long as the largest 64-bit number.
///
/// ```
/// use mainstay_etcd::fence::padded;
/// use mainstay_store::FencingToken;
///
/// assert_eq!(padded(FencingToken::new(7)), "00000000000000000007");
/// assert!(padded(FencingToken::new(9)) < padded(FencingToken::new(10)));
/// ```
#[must_use]
pub fn padded(token: FencingToken) -> String {
    format!("{:020}", token.get())
}

/// Writes to etcd that refuse a late writer. Cheap to keep, one per process.
///
/// The rule of [`put`](Self::put) is that of [`FencingToken::check`]: a write is accepted if no later token was seen,
/// and its token is remembered in the same step. A resource is only as safe as its writers: each of them must come
/// through here, or do the same.
///
/// ```no_run
/// use mainstay_clock::Runtime;
/// use mainstay_etcd::EtcdConfig;
/// use mainstay_etcd::fence::EtcdFence;
/// use mainstay_store::{FenceCheck, FencingToken};
///
/// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
/// let etcd = EtcdFence::new(&EtcdConfig::builder("etcd://127.0.0.1").build()?, &Runtime::system())?;
/// let (old, new) = (FencingToken::new(6), FencingToken::new(7));
/// assert_eq!(etcd.put("report/fence", "report", b"new", new).await?, FenceCheck::Pass);
/// assert_eq!(etcd.put("report/fence", "report", b"old", old).await?, FenceCheck::Stale { seen: new });
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct EtcdFence(Conn);

impl EtcdFence {
    /// On the cluster of this configuration; connects with the first call.
    ///
    /// # Errors
    /// An endpoint that cannot be an address.
    ///
    /// # Panics
    /// Outside a tokio runtime, which drives the connection.
    pub fn new(config: &EtcdConfig, rt: &Runtime) -> std::result::Result<Self, ConfigError> {
        Conn::new(config, rt).map(Self)
    }

    /// Writes `value` under `key` if no later token was seen under `fence`. The fence has no expiry; delete it only
    /// when no old holder can be alive.
    ///
    /// Guarantees: check and write are one step; after [`FenceCheck::Stale`] nothing was written.
    ///
    /// # Errors
    /// When etcd fails: after [`Outcome::Unknown`](mainstay_store::Outcome::Unknown) the value may have been written,
    /// or be written later. [`ErrorKind::Corrupt`] when what is under `fence` is no token.
    ///
    /// # Cancel safety
    /// What was sent may take effect.
    pub async fn put(&self, fence: &str, key: &str, value: &[u8], token: FencingToken) -> Result<FenceCheck> {
        self.fenced(fence, token, Some(wire::put(key.into(), value.to_vec(), 0))).await
    }

    /// Announces `token` without writing anything: from then on older ones are refused. A new holder may do so first,
    /// and whoever ended a lease by force must.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    ///
    /// # Cancel safety
    /// What was sent may take effect.
    pub async fn advance(&self, fence: &str, token: FencingToken) -> Result<FenceCheck> {
        self.fenced(fence, token, None).await
    }

    /// Writes `value` under `key` if `owner` still owns its lock at that moment; whether it did. Only in the cluster
    /// of the leases.
    ///
    /// # Errors
    /// When etcd fails: after [`Outcome::Unknown`](mainstay_store::Outcome::Unknown) the value may have been written,
    /// or be written later, but never after the lock changed hands.
    ///
    /// # Cancel safety
    /// What was sent may take effect.
    pub async fn put_as_owner(&self, owner: &LockKey, key: &str, value: &[u8]) -> Result<bool> {
        let compare = vec![wire::is_created(owner.key.clone(), owner.create_revision)];
        let success = vec![wire::put(key.into(), value.to_vec(), 0)];
        let answer = self.0.txn(Repeat::Never, TxnRequest { compare, success, failure: Vec::new() }).await?;
        Ok(answer.reply.succeeded)
    }

    async fn fenced(&self, fence: &str, token: FencingToken, write: Option<RequestOp>) -> Result<FenceCheck> {
        // Not repeated when in doubt: a write of the same holder may have come in between.
        let answer = self.0.txn(Repeat::Never, fenced(fence, token, write)).await?.reply;
        if answer.succeeded {
            return Ok(FenceCheck::Pass);
        }
        let Some(Response::ResponseTxn(inner)) = answer.responses.into_iter().next().and_then(|p| p.response)
        else {
            return Err(Error::new(ErrorKind::Internal, "the fence was answered with something else"));
        };
        if inner.succeeded {
            return Ok(FenceCheck::Pass);
        }
        let stored = wire::found(inner.responses.into_iter().next()).pop().map(|kv| kv.value);
        stored.as_deref().and_then(read).map(|seen| FenceCheck::Stale { seen }).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("what is kept under `{fence}` is no token"))
        })
    }
}

/// Below the next token, or not there yet: write. An absent key has no value to compare, hence the second look.
fn fenced(fence: &str, token: FencingToken, write: Option<RequestOp>) -> TxnRequest {
    let key = fence.as_bytes().to_vec();
    let mut puts = vec![wire::put(key.clone(), padded(token).into_bytes(), 0)];
    puts.extend(write);
    let first = TxnRequest {
        compare: vec![wire::is_created(key.clone(), 0)],
        success: puts.clone(),
        failure: vec![wire::get(key.clone())],
    };
    // Everything that begins with the digits of the token is at most the token.
    let next = padded(token.next()).into_bytes();
    TxnRequest { compare: vec![wire::is_below(key, next)], success: puts, failure: vec![wire::nested(first)] }
}

fn read(value: &[u8]) -> Option<FencingToken> {
    let digits =
        std::str::from_utf8(value).ok().filter(|t| t.len() == 20 && t.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok().map(FencingToken::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_back_and_nothing_else_does() {
        for n in [0, 1, 1 << 53, u64::MAX] {
            assert_eq!(read(padded(FencingToken::new(n)).as_bytes()), Some(FencingToken::new(n)), "{n}");
        }
        for bad in ["", "7", "0000000000000000000x", "000000000000000000007", "99999999999999999999"] {
            assert_eq!(read(bad.as_bytes()), None, "{bad}");
        }
    }
}
