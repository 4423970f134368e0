//! One after the other, among futures that wait for their turn.

use std::future::poll_fn;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// What one holds at a time. Who waits longest need not be next.
#[derive(Debug, Default)]
pub(crate) struct Turn(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    taken: bool,
    /// Those who wait, each once.
    waiting: Vec<Waker>,
}

/// The turn, given back when it is dropped.
#[derive(Debug)]
#[must_use = "dropping it lets the next one go"]
pub(crate) struct Taken<'a>(&'a Turn);

impl Turn {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nobody else has it. A dropped future only stops waiting.
    pub(crate) async fn take(&self) -> Taken<'_> {
        poll_fn(|cx| {
            let mut state = self.lock();
            if !state.taken {
                state.taken = true;
                return Poll::Ready(Taken(self));
            }
            if !state.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                state.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.0.lock();
            state.taken = false;
            std::mem::take(&mut state.waiting)
        };
        // All of them: the one that would be next may have been dropped.
        waiting.into_iter().for_each(Waker::wake);
    }
}
