//! Who waits for which name, within one process.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::{BoxFuture, Result};

/// Most watchers of one name; more are told to look again at once.
const MAX: usize = 100_000;

/// The watchers of names, for stores that keep [`LeaseStore::watch`](super::LeaseStore::watch) in their own
/// process.
///
/// Guarantees: a watch is armed when [`watch`](Self::watch) returns, and resolves if its name is fired at any time
/// after that; a watcher that went away is forgotten. Not guaranteed: that a watch resolves only for a change, so look
/// again whenever one does.
///
/// ```
/// use mainstay_store::lease::Watchers;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let watchers = Watchers::default();
/// let hint = watchers.watch("nightly");
/// watchers.fire("nightly");
/// assert!(hint.await.is_ok(), "it was fired after it was armed, though before it was polled");
/// # });
/// ```
#[derive(Default)]
pub struct Watchers(Mutex<BTreeMap<String, Vec<Arc<Watcher>>>>);

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Arc<Watcher>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Armed from now on.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the watch.
    pub fn watch(&self, name: &str) -> BoxFuture<'static, Result<()>> {
        let watcher = Arc::new(Watcher::default());
        {
            let mut names = self.lock();
            let list = names.entry(name.to_owned()).or_default();
            // Whoever stopped watching holds its entry no more.
            list.retain(|w| Arc::strong_count(w) > 1);
            if list.len() >= MAX {
                watcher.fire();
            }
            list.push(Arc::clone(&watcher));
        }
        Box::pin(poll_fn(move |cx| {
            let mut state = watcher.lock();
            if state.0 {
                return Poll::Ready(Ok(()));
            }
            state.1 = Some(cx.waker().clone());
            Poll::Pending
        }))
    }

    /// Whether anybody watches anything.
    #[must_use]
    pub fn any(&self) -> bool {
        let mut names = self.lock();
        names.retain(|_, list| {
            list.retain(|w| Arc::strong_count(w) > 1);
            !list.is_empty()
        });
        !names.is_empty()
    }

    /// `name` may have changed.
    pub fn fire(&self, name: &str) {
        let fired = self.lock().remove(name);
        // Not under the lock: whoever is woken may watch again.
        fired.into_iter().flatten().for_each(|w| w.fire());
    }

    /// Anything may have changed.
    pub fn fire_all(&self) {
        let fired = std::mem::take(&mut *self.lock());
        fired.into_values().flatten().for_each(|w| w.fire());
    }
}

/// One watch: whether it was fired, and whom to wake.
#[derive(Default)]
struct Watcher(Mutex<(bool, Option<Waker>)>);

impl Watcher {
    fn lock(&self) -> MutexGuard<'_, (bool, Option<Waker>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fire(&self) {
        let waker = {
            let mut state = self.lock();
            state.0 = true;
            state.1.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
