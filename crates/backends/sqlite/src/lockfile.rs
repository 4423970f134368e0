//! One engine per file.

use std::fs::File;
use std::path::Path;

use mainstay_store::{Error, ErrorKind};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Held until it is dropped; the operating system frees it when the process ends.
#[derive(Debug)]
pub(crate) struct LockFile(File);

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

impl Drop for LockFile {
    /// Closing alone would not do: a process that another thread starts has a copy of the descriptor until it becomes
    /// its program, and the lock lasts as long as any copy.
    fn drop(&mut self) {
        // Refused only for what is no descriptor.
        let _ = flock(&self.0, FlockOperation::Unlock);
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

    use super::{LockFile, refusal};

    /// What a fork does to a descriptor between itself and the program that it becomes, for as long as the test wants.
    #[test]
    fn a_copy_of_the_descriptor_in_a_child_keeps_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        let database = dir.path().join("a.db");
        let lock = LockFile::take(&database).unwrap();
        let copy = lock.0.try_clone().unwrap();
        let held = LockFile::take(&database).unwrap_err();
        assert_eq!(held.kind(), ErrorKind::Occupied);
        drop(lock);
        LockFile::take(&database).unwrap();
        drop(copy);
    }

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
