//! Who waits for which name, within one process.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::{BoxFuture, Result};

/// Most watchers of one name; more are told to look again at once.
const MAX: usize = 100_000;
/// Fewer watched names are not worth a look for those that nobody watches any more.
const SWEEP_MIN: usize = 1_024;

/// The watchers of names, for stores that keep [`LeaseStore::watch`](super::LeaseStore::watch) in their own
/// process.
///
/// Guarantees: a watch is armed when [`watch`](Self::watch) returns, and resolves if its name is fired at any time
/// after that; watchers that went away are forgotten, at the latest when as many names were added as are watched.
/// Not guaranteed: that a watch resolves only for a change, so look
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
pub struct Watchers(Mutex<Watched>);

#[derive(Default)]
struct Watched {
    names: BTreeMap<String, Vec<Arc<Watcher>>>,
    /// With more names than this, all of them are looked through.
    sweep_at: usize,
}

impl Watched {
    /// Forgets who stopped watching: it holds its entry no more.
    fn sweep(&mut self) {
        self.names.retain(|_, list| {
            list.retain(|w| Arc::strong_count(w) > 1);
            !list.is_empty()
        });
        // As much again may come before the next one, so that a watch costs the same however many there are.
        self.sweep_at = self.names.len().saturating_mul(2).max(SWEEP_MIN);
    }
}

impl fmt::Debug for Watchers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watchers").finish_non_exhaustive()
    }
}

impl Watchers {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Armed from now on.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the watch.
    pub fn watch(&self, name: &str) -> BoxFuture<'static, Result<()>> {
        let watcher = Arc::new(Watcher::default());
        {
            let mut watched = self.lock();
            if watched.names.len() > watched.sweep_at {
                watched.sweep();
            }
            let list = watched.names.entry(name.to_owned()).or_default();
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
        let mut watched = self.lock();
        watched.sweep();
        !watched.names.is_empty()
    }

    /// `name` may have changed.
    pub fn fire(&self, name: &str) {
        let fired = self.lock().names.remove(name);
        // Not under the lock: whoever is woken may watch again.
        fired.into_iter().flatten().for_each(|w| w.fire());
    }

    /// Anything may have changed.
    pub fn fire_all(&self) {
        let fired = std::mem::take(&mut self.lock().names);
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

#[cfg(test)]
mod tests {
    use super::{SWEEP_MIN, Watchers};

    #[test]
    fn names_that_nobody_watches_any_more_are_forgotten() {
        let watchers = Watchers::default();
        let kept: Vec<_> = (0..SWEEP_MIN).map(|n| watchers.watch(&format!("kept/{n}"))).collect();
        let mut most = 0;
        for n in 0..100_000 {
            drop(watchers.watch(&format!("once/{n}")));
            most = most.max(watchers.lock().names.len());
        }
        assert!(most <= 2 * SWEEP_MIN + 1, "{most} names for {} watchers", kept.len());
        let watched = watchers.lock();
        let still = watched.names.keys().filter(|name| name.starts_with("kept/")).count();
        assert_eq!(still, kept.len(), "who still watches is not forgotten");
    }
}
