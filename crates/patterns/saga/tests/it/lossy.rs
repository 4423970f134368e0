//! A journal whose answers get lost: what it did, it did.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_saga::exhaust::{Tap, TapJournal, Write};
use mainstay_store::{BoxFuture, Error, ErrorKind, Journal, Outcome, Result};

/// Loses the answer of every `every`th creation or append, and of the first `claims` claims.
pub(crate) struct Lossy {
    pub(crate) every: u32,
    pub(crate) writes: AtomicU32,
    pub(crate) claims: AtomicU32,
    /// Lets a second pass between a creation and its answer.
    pub(crate) slow_create: Option<Arc<dyn Clock>>,
}

impl Lossy {
    /// Loses nothing.
    pub(crate) fn new() -> Self {
        Self { every: u32::MAX, writes: AtomicU32::new(0), claims: AtomicU32::new(0), slow_create: None }
    }

    pub(crate) fn on(self, inner: &Arc<dyn Journal>) -> Arc<dyn Journal> {
        Arc::new(TapJournal::new(Arc::clone(inner), Arc::new(self)))
    }

    fn loses(&self, write: Write) -> bool {
        let one_less = |n: u32| n.checked_sub(1);
        match write {
            Write::Append | Write::Create => {
                (self.writes.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(self.every)
            }
            Write::Claim => self.claims.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok(),
            _ => false,
        }
    }
}

impl Tap for Lossy {
    fn after(&self, write: Write) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            if let Some(clock) = self.slow_create.as_ref().filter(|_| write == Write::Create) {
                clock.sleep(Duration::from_secs(1)).await;
            }
            if self.loses(write) {
                let lost = Error::new(ErrorKind::Unavailable, "the answer was lost");
                return Err(lost.with_outcome(Outcome::Unknown));
            }
            Ok(())
        })
    }
}
