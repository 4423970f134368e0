//! Options of the store.

use std::path::{Path, PathBuf};

use mainstay_clock::Runtime;
use mainstay_store::Result;

use crate::store::SqliteStore;

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

/// Opens a [`SqliteStore`], with other options than the usual ones where they are named.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `driver` | a thread | group commit |
/// | `readers` | 2 connections | one for lists and counts, which may take long, one that they leave to those who drive sagas and look at single ones; more reads at once wait in line |
/// | `max_pages` | none | the disk is the limit |
/// | `epoch` | 0 | raise it when the file was restored from an older copy |
/// | `max_wal_bytes` | 64 MiB | long enough that checkpoints stay beside the commits, short enough to read back after a crash in a moment |
#[derive(Clone, Debug)]
#[must_use]
pub struct StoreBuilder {
    pub(crate) file: PathBuf,
    pub(crate) driver: Driver,
    pub(crate) readers: usize,
    pub(crate) max_pages: Option<u32>,
    pub(crate) max_wal_bytes: u64,
    pub(crate) epoch: u16,
}

impl StoreBuilder {
    pub(crate) fn new(file: &Path) -> Self {
        Self {
            file: file.to_owned(),
            driver: Driver::Thread,
            readers: 2,
            max_pages: None,
            max_wal_bytes: 64 * 1024 * 1024,
            epoch: 0,
        }
    }

    /// Who runs the writer. The inline driver is for virtual time.
    pub fn driver(mut self, driver: Driver) -> Self {
        self.driver = driver;
        self
    }

    /// Reader connections, 1 to 64. Of two and more, one is kept from lists and counts.
    pub fn readers(mut self, connections: usize) -> Self {
        self.readers = connections;
        self
    }

    /// Most pages (4 KiB each) of the file.
    pub fn max_pages(mut self, pages: u32) -> Self {
        self.max_pages = Some(pages);
        self
    }

    /// Length at which the write-ahead log starts over, at least 64 KiB. A reader that stays in it longer
    /// than that can make it grow to more; this is reported.
    pub fn max_wal_bytes(mut self, bytes: u64) -> Self {
        self.max_wal_bytes = bytes;
        self
    }

    /// Claims of sagas, and with them the fencing tokens that participants see, are above this many times 2^32, 0 to
    /// 32767. Larger by one after each restore of the file, every saga is claimed above what it was before. Never
    /// lower it.
    pub fn epoch(mut self, epoch: u16) -> Self {
        self.epoch = epoch;
        self
    }

    /// Opens or creates the file, whose folder must exist: takes its lock, proves the settings, checks integrity,
    /// migrates.
    ///
    /// # Errors
    /// [`ErrorKind::Occupied`](mainstay_store::ErrorKind::Occupied) when another engine has the file, `NewerVersion`,
    /// `Corrupt`, `Unsupported` when SQLite does not take the durable settings, `ApiMisuse` for refused options,
    /// `Unavailable` and `Full`.
    pub fn open(self, rt: &Runtime) -> Result<SqliteStore> {
        SqliteStore::with(self, rt)
    }
}
