//! Bounds calls in flight per partition.

use std::sync::Arc;

/// One partition of permits. Clones share it.
#[derive(Clone, Debug)]
pub struct Bulkhead(Arc<()>);
