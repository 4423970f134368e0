//! Cancellation, enumerated: a future is dropped at its k-th poll, for every k.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// How a future behaved under [`cancel_at_every_poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Polls {
    /// Polls until it ended when nobody dropped it.
    pub to_end: u64,
    /// Places at which it was dropped.
    pub dropped: u64,
}

/// Most polls of one future: more is a busy loop.
const MAX_POLLS: u64 = 10_000;

struct CutShort<'a, T> {
    inner: Pin<Box<dyn Future<Output = T> + 'a>>,
    left: u64,
    polls: u64,
}

impl<T> Future for CutShort<'_, T> {
    type Output = (u64, Option<T>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready((self.polls, None));
        }
        self.left -= 1;
        self.polls += 1;
        match self.inner.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready((self.polls, Some(value))),
            Poll::Pending if self.left == 0 => Poll::Ready((self.polls, None)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Makes the future anew and drops it before its first poll, then after its first, its second, ... until it
/// ends by itself; after each drop `check` looks for what leaked.
///
/// # Panics
/// When the future is not done after 10,000 polls, and when `check` does.
///
/// # Examples
/// ```
/// use mainstay_sim::sim::cancel_at_every_poll;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let polls = cancel_at_every_poll(|| async { tokio::task::yield_now().await }, async || {}).await;
/// assert_eq!(polls.to_end, 2);
/// # });
/// ```
pub async fn cancel_at_every_poll<'a, T, F: Future<Output = T> + 'a>(
    mut make: impl FnMut() -> F,
    mut check: impl AsyncFnMut(),
) -> Polls {
    for k in 0..MAX_POLLS {
        let cut = CutShort { inner: Box::pin(make()), left: k, polls: 0 };
        let (polls, done) = cut.await;
        let ended = done.is_some();
        drop(done);
        check().await;
        if ended {
            return Polls { to_end: polls, dropped: k };
        }
    }
    panic!("not done after {MAX_POLLS} polls: it is a busy loop");
}
