//! What a request must be, before anything is sent.

use mainstay_store::lease::{AcquireRequest, MAX_TEXT};
use mainstay_store::{Error, ErrorKind, Result};

/// Longest note: it travels with every renewal.
const MAX_NOTE: usize = 4_096;
/// Names of one request: they are taken one by one.
const MAX_NAMES: usize = 64;

pub(crate) fn check(request: &AcquireRequest) -> Result<()> {
    let misuse = |text: &str| Err(Error::new(ErrorKind::ApiMisuse, text));
    request.check()?;
    if request.names.len() > MAX_NAMES {
        return misuse("a lease request has at most 64 names");
    }
    if request.note.len() > MAX_NOTE {
        return misuse("a note has at most 4,096 bytes");
    }
    Ok(())
}

/// A name that may be looked at. Escaped, it is three times as long at most, and a line of the protocol has 4,096 bytes.
pub(crate) fn name(name: &str) -> Result<()> {
    if (1..=MAX_TEXT).contains(&name.len()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::ApiMisuse, "a lease name has 1 to 1,024 bytes"))
}
