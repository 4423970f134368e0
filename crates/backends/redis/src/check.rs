//! What a request must be, before anything is sent.

use std::time::Duration;

use mainstay_store::lease::AcquireRequest;
use mainstay_store::{Error, ErrorKind, Result};

use crate::answer::SHARED;

/// Names of one request: a script holds up everybody else while it runs.
const MAX_NAMES: usize = 64;

pub(crate) fn check(request: &AcquireRequest) -> Result<()> {
    let misuse = |text: &str| Err(Error::new(ErrorKind::ApiMisuse, text));
    request.check()?;
    if request.names.len() > MAX_NAMES {
        return misuse("a lease request has at most 64 names");
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
