//! Checking fencing tokens where the data lives: in a stream of NATS.
//!
//! The rule is that of [`FencingToken::check`]: a write is accepted if no later token was seen, and its token is
//! remembered in the same step. The token travels as a header of the message; the step is a write that is refused
//! if the subject's last sequence is another than the one whose token was compared.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::header::HeaderMap;
use bytes::Bytes;
use mainstay_clock::{Clock as _, SystemClock};
use mainstay_store::{Error, ErrorKind, FenceCheck, FencingToken, Result};

use crate::api::{Api, Last, Marks, Put};

/// The header that carries the token.
pub(crate) const HEADER: &str = "Fencing-Token";
/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lost races in a row: each loser lost to a write that got through.
const RACES: u32 = 64;

/// Writes `value` to `subject` of `stream` if no later token was written there. For a key of a key-value bucket
/// `b` the stream is `KV_b` and the subject `$KV.b.key`; its readers see the value as any other.
///
/// Guarantees: check and write are one step; after [`FenceCheck::Stale`] nothing was written. Not guaranteed: the
/// fence goes with the last message of the subject, so nobody may write there without a token, nor purge it, and
/// the stream must not drop it by age or size while an old holder may be alive.
///
/// # Errors
/// When the server fails; after [`Outcome::Unknown`](mainstay_store::Outcome::Unknown) the value may have been
/// written. `Corrupt` when the last message carries what is no token.
///
/// # Cancel safety
/// What was sent may take effect.
///
/// ```no_run
/// use mainstay_nats::fence;
/// use mainstay_store::{FenceCheck, FencingToken};
///
/// # async fn f(nats: async_nats::Client) -> mainstay_store::Result<()> {
/// let (old, new) = (FencingToken::new(6), FencingToken::new(7));
/// assert_eq!(fence::put(&nats, "KV_b", "$KV.b.report", b"new", new).await?, FenceCheck::Pass);
/// let late = fence::put(&nats, "KV_b", "$KV.b.report", b"old", old).await?;
/// assert_eq!(late, FenceCheck::Stale { seen: new });
/// # Ok(()) }
/// ```
pub async fn put(
    client: &Client,
    stream: &str,
    subject: &str,
    value: &[u8],
    token: FencingToken,
) -> Result<FenceCheck> {
    guarded(client, stream, subject, Some(value), token).await
}

/// Announces `token` without changing the value: from then on older ones are refused. A new holder may do so
/// first, and whoever ended a lease by force must.
///
/// # Errors
/// As [`put`].
///
/// # Cancel safety
/// What was sent may take effect.
pub async fn advance(
    client: &Client,
    stream: &str,
    subject: &str,
    token: FencingToken,
) -> Result<FenceCheck> {
    guarded(client, stream, subject, None, token).await
}

async fn guarded(
    client: &Client,
    stream: &str,
    subject: &str,
    value: Option<&[u8]>,
    token: FencingToken,
) -> Result<FenceCheck> {
    let clock = Arc::new(SystemClock::new());
    let limit = clock.now().saturating_add(PATIENCE);
    let api = Api { client: client.clone(), clock, stream: stream.into(), bucket: "".into(), ends: false };
    for _ in 0..RACES {
        let (seq, marks, old) = match api.last(subject, limit).await? {
            Last::At(seq, marks, old) => (seq, marks, old),
            Last::Nothing => (0, Marks::free(), Vec::new()),
            Last::NoStream => return Err(crate::error::nobody(stream)),
        };
        let seen = read(marks.fence.as_deref())?;
        let verdict = token.check(seen);
        if verdict != FenceCheck::Pass || (value.is_none() && token == seen) {
            return Ok(verdict);
        }
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, token.to_string());
        let body = match value {
            Some(value) => Bytes::copy_from_slice(value),
            // Announced: what is there stays, and what is not there stays away.
            None if !marks.is_free => old.into(),
            None => {
                headers.insert("KV-Operation", "DEL");
                Bytes::new()
            }
        };
        if let Put::Done(_) = api.put(subject.to_owned(), seq, headers, body, limit).await? {
            return Ok(FenceCheck::Pass);
        }
    }
    Err(Error::new(ErrorKind::Unavailable, format!("`{subject}`: others write it all the time")))
}

fn read(digits: Option<&str>) -> Result<FencingToken> {
    let Some(digits) = digits else { return Ok(FencingToken::ZERO) };
    let number = digits.parse().map(FencingToken::new);
    number.map_err(|_| Error::new(ErrorKind::Corrupt, "what should be a fence holds no token"))
}
