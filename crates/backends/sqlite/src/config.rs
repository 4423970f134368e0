//! Options of the store.

use std::path::PathBuf;

/// Who runs the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(clippy::exhaustive_enums, reason = "a thread of its own, or the caller")]
pub enum Driver {
    /// Each write is its own transaction on the caller's thread; for virtual time.
    Inline,
    /// A thread of its own with group commit.
    #[default]
    Thread,
}

/// Options of a [`SqliteStore`](crate::SqliteStore).
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `driver` | a thread | group commit |
/// | `readers` | 2 connections | one for lists and counts, which may take long, one that they leave to those who drive sagas and look at single ones; more reads at once wait in line |
/// | `max_pages` | none | the disk is the limit |
/// | `base_epoch` | 0 | raise it when the file was restored from an older copy |
/// | `max_wal_bytes` | 64 MiB | long enough that checkpoints stay beside the commits, short enough to read back after a crash in a moment |
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SqliteConfig {
    /// The database file; its folder must exist.
    pub file: PathBuf,
    /// Who runs the writer.
    pub driver: Driver,
    /// Reader connections, 1 to 64. Of two and more, one is kept from lists and counts.
    pub readers: usize,
    /// Most pages (4 KiB each) of the file.
    pub max_pages: Option<u32>,
    /// Length at which the write-ahead log starts over, at least 64 KiB. A reader that stays in it longer
    /// than that can make it grow to more; this is reported.
    pub max_wal_bytes: u64,
    /// Claims of sagas, and with them the fencing tokens that participants see, are above this many times 2^32, 0 to
    /// 32767. Larger by one after each restore of the file, every saga is claimed above what it was before. Never
    /// lower it.
    pub base_epoch: u16,
}

impl SqliteConfig {
    /// The defaults for a database file.
    #[must_use]
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            driver: Driver::Thread,
            readers: 2,
            max_pages: None,
            max_wal_bytes: 64 * 1024 * 1024,
            base_epoch: 0,
        }
    }

    /// The same with another driver.
    #[must_use]
    pub fn with_driver(mut self, driver: Driver) -> Self {
        self.driver = driver;
        self
    }

    /// The same with another length of the write-ahead log.
    #[must_use]
    pub fn with_max_wal_bytes(mut self, bytes: u64) -> Self {
        self.max_wal_bytes = bytes;
        self
    }

    /// The same with claims above those of before a restore.
    #[must_use]
    pub fn with_base_epoch(mut self, epoch: u16) -> Self {
        self.base_epoch = epoch;
        self
    }

    /// The same with a limit on the file's size, in pages of 4 KiB.
    #[must_use]
    pub fn with_max_pages(mut self, pages: u32) -> Self {
        self.max_pages = Some(pages);
        self
    }
}
