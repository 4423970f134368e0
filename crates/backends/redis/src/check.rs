//! What a request must be, before anything is sent.

use std::time::Duration;

use mainstay_store::lease::AcquireRequest;
use mainstay_store::{Error, ErrorKind, Result};

use crate::answer::SHARED;

/// A longer lease than this is a mistake: it would outlive whoever could end it.
const MAX_TTL: Duration = Duration::from_secs(86_400 * 30);
/// Longest name, owner or op id, in bytes; the same as the other stores allow.
const MAX_TEXT: usize = 1_024;
/// Names of one request: a script holds up everybody else while it runs.
const MAX_NAMES: usize = 64;

pub(crate) fn check(request: &AcquireRequest) -> Result<()> {
    let misuse = |text: &str| Err(Error::new(ErrorKind::ApiMisuse, text));
    if request.names.is_empty() || request.names.windows(2).any(|w| w[0] >= w[1]) {
        return misuse("lease names must be given sorted and unique, at least one");
    }
    if request.names.len() > MAX_NAMES {
        return misuse("a lease request has at most 64 names");
    }
    if request.ttl.is_zero() || request.ttl > MAX_TTL {
        return misuse("a lease lasts more than 0 and at most 30 days");
    }
    let sizes = request.names.iter().chain([&request.owner, &request.op_id]);
    if sizes.into_iter().any(|s| s.is_empty() || s.len() > MAX_TEXT) {
        return misuse("lease names, owners and op ids have 1 to 1,024 bytes");
    }
    if request.op_id.chars().any(char::is_control) || request.op_id == SHARED {
        return misuse("an op id has no control characters, and is not what a shared lock says");
    }
    Ok(())
}

/// Whole milliseconds, rounded up: a server must not end a lease before its holder does.
pub(crate) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}
