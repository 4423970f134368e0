//! Cuts the engine off at the k-th append.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mainstay_store::{BoxFuture, Result};

use super::plan::Stop;
use super::probe::Control;
use super::tap::{Tap, Write};

/// The cuts of one run. A creation is its first append.
pub(super) struct Cut(pub(super) Arc<Control>);

impl Cut {
    fn counts(write: Write) -> bool {
        matches!(write, Write::Append | Write::Create)
    }

    async fn never(&self) {
        self.0.cut.notify_one();
        std::future::pending::<()>().await;
    }
}

impl Tap for Cut {
    fn before(&self, write: Write) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if !Self::counts(write) {
                return;
            }
            let k = self.0.appends.fetch_add(1, Ordering::AcqRel) + 1;
            if self.0.cuts(Stop::CrashBefore(k)) {
                self.never().await;
            }
        })
    }

    fn after(&self, write: Write) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let k = self.0.appends.load(Ordering::Acquire);
            if Self::counts(write) && self.0.cuts(Stop::CrashAfter(k)) {
                self.never().await;
            }
            if Self::counts(write) && self.0.cuts(Stop::FreezeAfter(k)) {
                self.0.cut.notify_one();
                // The process is frozen before it is polled again.
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }
}
