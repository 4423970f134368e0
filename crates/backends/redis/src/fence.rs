//! Checking fencing tokens where the data lives: in Redis.
//!
//! The rule is that of [`FencingToken::check`](mainstay_store::FencingToken::check): a write is accepted if no
//! later token was seen, and its token is remembered in the same step. The script compares tokens as digits,
//! since numbers of Lua end at 2^53.

use mainstay_store::{Error, ErrorKind, FenceCheck, FencingToken, Outcome, Result};
use redis::aio::ConnectionLike;
use redis::{Cmd, Value};

const SOURCE: &str = include_str!("lua/fence.lua");

/// Writes `value` under `key` if no later token was seen under `fence`. In a cluster both keys must share a
/// slot. The fence has no expiry; delete it only when no old holder can be alive.
///
/// Guarantees: check and write are one step; after [`FenceCheck::Stale`] nothing was written.
///
/// # Errors
/// When the server fails; after [`Outcome::Unknown`] the value may have been written.
///
/// # Cancel safety
/// What was sent may take effect.
///
/// ```no_run
/// use mainstay_redis::fence;
/// use mainstay_store::{FenceCheck, FencingToken};
///
/// # async fn f(mut redis: redis::aio::MultiplexedConnection) -> mainstay_store::Result<()> {
/// let (old, new) = (FencingToken::new(6), FencingToken::new(7));
/// assert_eq!(fence::set(&mut redis, "{report}:fence", "{report}", b"new", new).await?, FenceCheck::Pass);
/// let late = fence::set(&mut redis, "{report}:fence", "{report}", b"old", old).await?;
/// assert_eq!(late, FenceCheck::Stale { seen: new });
/// # Ok(()) }
/// ```
pub async fn set(
    connection: &mut impl ConnectionLike,
    fence: &str,
    key: &str,
    value: &[u8],
    token: FencingToken,
) -> Result<FenceCheck> {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(SOURCE).arg(2).arg(fence).arg(key).arg(token.get().to_string()).arg(value);
    run(connection, &cmd).await
}

/// Announces `token` without writing anything: from then on older ones are refused. A new holder may do so
/// first, and whoever ended a lease by force must.
///
/// # Errors
/// When the server fails.
///
/// # Cancel safety
/// What was sent may take effect.
pub async fn advance(
    connection: &mut impl ConnectionLike,
    fence: &str,
    token: FencingToken,
) -> Result<FenceCheck> {
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(SOURCE).arg(1).arg(fence).arg(token.get().to_string());
    run(connection, &cmd).await
}

async fn run(connection: &mut impl ConnectionLike, cmd: &Cmd) -> Result<FenceCheck> {
    let failed = |e: redis::RedisError| {
        Error::new(ErrorKind::Unavailable, "the fence could not be asked")
            .with_outcome(Outcome::Unknown)
            .with_source(e)
    };
    match connection.req_packed_command(cmd).await.map_err(failed)? {
        Value::Nil | Value::Boolean(false) => Ok(FenceCheck::Pass),
        Value::BulkString(digits) => {
            let seen = std::str::from_utf8(&digits).ok().and_then(|t| t.parse().ok());
            seen.map(|seen| FenceCheck::Stale { seen: FencingToken::new(seen) })
                .ok_or_else(|| Error::new(ErrorKind::Corrupt, "what should be a fence holds no token"))
        }
        Value::ServerError(e) => Err(crate::error::by_server("of the fence", &e)),
        other => Err(crate::error::garbled("of the fence", &other)),
    }
}
