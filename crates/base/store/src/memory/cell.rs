//! A cell in memory.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use crate::{BoxFuture, DurableCell, Result};

/// A [`DurableCell`] in memory. Clones share it; it survives whoever used it, not the process.
///
/// ```
/// use mainstay_store::DurableCell;
/// use mainstay_store::memory::MemoryCell;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let cell = MemoryCell::new();
/// cell.store_synced(b"7".to_vec()).await.unwrap();
/// assert_eq!(cell.load().await.unwrap().as_deref(), Some(&b"7"[..]));
/// # });
/// ```
#[derive(Clone, Default)]
pub struct MemoryCell(Arc<Mutex<Option<Vec<u8>>>>);

impl MemoryCell {
    /// An empty cell.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl fmt::Debug for MemoryCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryCell").finish_non_exhaustive()
    }
}

impl DurableCell for MemoryCell {
    fn load(&self) -> BoxFuture<'_, Result<Option<Vec<u8>>>> {
        Box::pin(async { Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()) })
    }

    fn store_synced(&self, value: Vec<u8>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            Ok(())
        })
    }
}
