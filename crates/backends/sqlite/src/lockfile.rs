//! One engine per file.

use std::fs::File;
use std::path::Path;

use mainstay_store::{Error, ErrorKind};
use rustix::fs::{FlockOperation, flock};

/// Held while the store is open; the operating system frees it when the process ends.
#[derive(Debug)]
pub(crate) struct LockFile(#[allow(dead_code, reason = "the lock lives as long as the file is open")] File);

impl LockFile {
    pub(crate) fn take(database: &Path) -> Result<Self, Error> {
        let mut name = database.as_os_str().to_owned();
        name.push(".lock");
        let unusable = |e: std::io::Error| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the lock file of {} cannot be opened", database.display()),
            )
            .with_source(e)
        };
        let file = File::options().create(true).truncate(false).write(true).open(&name).map_err(unusable)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(e) => Err(Error::new(
                ErrorKind::Occupied,
                format!("{} is in use by another engine; stop it or choose another file", database.display()),
            )
            .with_source(e)),
        }
    }
}
