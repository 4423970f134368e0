//! What a request must be, before anything is sent.

use std::time::Duration;

use mainstay_store::lease::{AcquireRequest, Share};
use mainstay_store::{Error, ErrorKind, Result};

/// A longer lease than this is a mistake: it would outlive whoever could end it.
const MAX_TTL: Duration = Duration::from_secs(86_400 * 30);
/// Longest name, owner or op id, in bytes; the same as the other stores allow. Escaped, a name is three times as
/// long at most, and a line of the protocol has 4,096 bytes.
const MAX_TEXT: usize = 1_024;
/// Longest note: it travels with every renewal.
const MAX_NOTE: usize = 4_096;
/// Names of one request: they are taken one by one.
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
    if matches!(request.share, Share::Permit { limit: 0 }) {
        return misuse("a semaphore has at least one permit");
    }
    if request.names.iter().chain([&request.owner, &request.op_id]).any(|s| !is_text(s)) {
        return misuse("lease names, owners and op ids have 1 to 1,024 bytes");
    }
    if request.note.len() > MAX_NOTE {
        return misuse("a note has at most 4,096 bytes");
    }
    Ok(())
}

/// A name that may be looked at.
pub(crate) fn name(name: &str) -> Result<()> {
    if is_text(name) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::ApiMisuse, "a lease name has 1 to 1,024 bytes"))
}

fn is_text(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_TEXT
}
