//! Following a breaker's changes.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;

use super::Breaker;
use super::state::Transition;

/// What a reader of transitions gets.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Followed {
    /// The reader was too slow: so many transitions are gone.
    Lagged(u64),
    /// The next transition.
    Transition(Transition),
}

/// The transitions of a breaker from now on, in order. Never ends by itself; keeps the breaker alive. A
/// reader that falls more than 32 behind is told how many it missed.
///
/// ```
/// use mainstay_resilience::Breaker;
/// use mainstay_resilience::breaker::{Followed, State};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let breaker = Breaker::builder("search").build().unwrap();
/// let mut transitions = breaker.transitions();
/// breaker.force_open("maintenance", None);
/// let Followed::Transition(first) = transitions.next().await else { panic!("nothing was missed") };
/// assert_eq!((first.from(), first.to()), (State::Closed, State::ForcedOpen));
/// # });
/// ```
#[derive(Debug)]
#[must_use = "a stream does nothing unless it is read"]
pub struct Transitions {
    breaker: Breaker,
    reader: u64,
    next: u64,
}

impl Transitions {
    pub(super) fn new(breaker: Breaker) -> Self {
        let (reader, next) = breaker.core().reader();
        Self { breaker, reader, next }
    }

    /// The next transition, or a notice of how many were missed.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing: the next call returns what it would have.
    ///
    /// ```
    /// use mainstay_resilience::Breaker;
    /// use mainstay_resilience::breaker::Followed;
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let breaker = Breaker::builder("search").build().unwrap();
    /// let mut slow_reader = breaker.transitions();
    /// for _ in 0..20 {
    ///     breaker.force_open("flapping", None);
    ///     breaker.release();
    /// }
    /// // 40 transitions, of which the last 32 are kept.
    /// assert_eq!(slow_reader.next().await, Followed::Lagged(8));
    /// assert!(matches!(slow_reader.next().await, Followed::Transition(_)));
    /// # });
    /// ```
    pub async fn next(&mut self) -> Followed {
        std::future::poll_fn(|cx| self.poll_read(cx)).await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Followed> {
        match self.breaker.core().read_log(self.reader, self.next, cx.waker()) {
            None => Poll::Pending,
            Some(Ok(transition)) => {
                self.next += 1;
                Poll::Ready(Followed::Transition(transition))
            }
            Some(Err(missed)) => {
                self.next += missed;
                Poll::Ready(Followed::Lagged(missed))
            }
        }
    }
}

impl Stream for Transitions {
    type Item = Followed;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Followed>> {
        self.get_mut().poll_read(cx).map(Some)
    }
}

impl Drop for Transitions {
    fn drop(&mut self) {
        self.breaker.core().forget_reader(self.reader);
    }
}
