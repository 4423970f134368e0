//! One engine per file.

use std::fs::File;
use std::path::Path;

use mainstay_store::{Error, ErrorKind};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

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
            Err(e) => Err(refusal(database, e)),
        }
    }
}

/// Only a lock that somebody holds means another engine; all else is the file system's trouble.
fn refusal(database: &Path, e: Errno) -> Error {
    let name = database.display();
    let (kind, text) = match e {
        Errno::WOULDBLOCK => (
            ErrorKind::Occupied,
            format!("{name} is in use by another engine; stop it or choose another file"),
        ),
        _ => (
            ErrorKind::Unavailable,
            format!("{name} cannot be locked; it needs a local file system that knows flock"),
        ),
    };
    Error::new(kind, text).with_source(std::io::Error::from(e))
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::path::Path;

    use mainstay_store::ErrorKind;
    use rustix::io::Errno;

    use super::refusal;

    #[test]
    fn only_a_held_lock_is_called_occupied() {
        let kind = |e| refusal(Path::new("a.db"), e).kind();
        assert_eq!(kind(Errno::WOULDBLOCK), ErrorKind::Occupied);
        for other in [Errno::NOLCK, Errno::NOTSUP, Errno::INTR, Errno::IO] {
            assert_eq!(kind(other), ErrorKind::Unavailable, "{other}");
        }
        let why = refusal(Path::new("a.db"), Errno::NOLCK);
        assert!(why.source().is_some(), "the system's own reason is kept");
    }
}
