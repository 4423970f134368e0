//! Whether a file changed.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What identifies a version of a file: an atomic replacement changes at least the inode.
pub(crate) type Stamp = (u64, u64, i64, i64);

/// The version that is there now; `None` without a file.
pub(crate) fn stamp(file: &Path) -> Option<Stamp> {
    let m = std::fs::metadata(file).ok()?;
    Some((m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
}
