//! One small durable value.

use std::fmt;

use crate::{BoxFuture, Result};

/// A small value that must survive a crash: a clock bound, an actor epoch, a sequence.
///
/// Guarantees: after [`store_synced`](DurableCell::store_synced) answered, [`load`](DurableCell::load)
/// gives that value or a later one, also after power loss when the implementation says so.
/// A crash in between leaves the old or the new value, never a mixture. A store whose future was dropped takes nothing
/// back that a later call has stored; of calls that are made at once either may be the later.
pub trait DurableCell: Send + Sync + fmt::Debug {
    /// The last stored value.
    ///
    /// # Errors
    /// When the value cannot be read or fails its checksum.
    fn load(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>>>;

    /// Stores `value` and answers once it is synced.
    ///
    /// # Errors
    /// When it cannot be stored; after an error with outcome `Unknown` the cell must be loaded again.
    ///
    /// # Cancel safety
    /// A dropped future may have stored the value.
    fn store_synced(&self, value: Vec<u8>) -> BoxFuture<'_, Result<()>>;
}
