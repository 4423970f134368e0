//! Small versioned records.

use std::fmt;
use std::time::Duration;

use mainstay_clock::WallTime;

use crate::{BoxFuture, Result};

/// A stored value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a record is exactly this")]
pub struct VersionedRecord {
    /// Its key.
    pub key: String,
    /// Grows with every write of the key; never reused, also not after a delete or an expiry.
    pub version: u64,
    /// The value.
    pub value: Vec<u8>,
}

/// The answer of [`RecordStore::put_if`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "compare-and-set has two answers")]
pub enum PutIf {
    /// The version did not match; nothing changed. The current record, if any.
    Conflict(Option<VersionedRecord>),
    /// Written; the new version.
    Stored(u64),
}

/// Records with compare-and-set: for barriers, latches, membership, cron slots, fleet counters.
///
/// Guarantees: `put_if` is linearizable per key. Not guaranteed: an order between keys.
pub trait RecordStore: Send + Sync + fmt::Debug {
    /// The store's time now: the clock by which everybody who shares the store agrees what is due. `None` from a
    /// store that does not tell; its callers must then trust their own clock.
    ///
    /// # Errors
    /// When the store fails.
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async { Ok(None) })
    }

    /// The record of `key`, unless absent or expired.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>>;

    /// Writes `value` if the current version is `expected` (`None`: the key must be absent). With `ttl` the
    /// record ends by itself; the store's clock decides.
    ///
    /// # Errors
    /// When the store cannot be written; [`crate::Error::outcome`] says whether it happened.
    ///
    /// # Cancel safety
    /// A dropped future may have written: read before repeating.
    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>>;

    /// Deletes `key` if its version is `expected`. True when it was deleted.
    ///
    /// # Errors
    /// When the store cannot be written.
    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>>;

    /// Up to `limit` records whose key starts with `prefix` and is greater than `after`, by key.
    ///
    /// # Errors
    /// When the store cannot be read.
    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>>;
}
