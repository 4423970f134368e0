//! Bounds in time: on one future, and on the wire.
//!
//! Inside a [`Policy`](crate::Policy) the attempt timeout and the deadline are slots; [`bounded`] is the same
//! for a lone future. What travels to the next service is the time *remaining*: see [`wire`].
//!
//! A timeout drops the future. Work that blocks its thread, or that runs elsewhere, goes on: that is why a
//! timeout's outcome is unknown.
//!
//! | bound | begins | covers | ends in |
//! |---|---|---|---|
//! | attempt timeout | when the attempt starts, after it got what it waited for | one execution | a failure that may be retried |
//! | deadline | with the call, or earlier in a service above | queueing, attempts, backoff, hedges | the end of the call |

pub mod wire;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Instant, Sleep};

use crate::{Timeout, TimeoutKind};

/// A timer that is armed at the first `Pending`: a future that is ready at once costs none.
pub(crate) struct LazyTimer {
    at: Instant,
    sleep: Option<Sleep>,
}

impl LazyTimer {
    pub(crate) const fn at(at: Instant) -> Self {
        Self { at, sleep: None }
    }

    /// The same timer for another instant, not armed.
    #[inline(always)]
    pub(crate) fn reset(&mut self, at: Instant) {
        self.at = at;
        if self.sleep.is_some() {
            self.sleep = None;
        }
    }

    /// Call it when what it bounds is pending. Never ready for [`Instant::FAR_FUTURE`].
    pub(crate) fn poll(&mut self, clock: &dyn Clock, cx: &mut Context<'_>) -> Poll<()> {
        if self.at == Instant::FAR_FUTURE {
            return Poll::Pending;
        }
        let at = self.at;
        self.sleep.get_or_insert_with(|| clock.sleep_until(at)).as_mut().poll(cx)
    }
}

impl fmt::Debug for LazyTimer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LazyTimer").field("at", &self.at).field("armed", &self.sleep.is_some()).finish()
    }
}

pin_project_lite::pin_project! {
    struct Bounded<'a, F> {
        clock: &'a dyn Clock,
        started: Instant,
        kind: TimeoutKind,
        timer: LazyTimer,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Bounded<'_, F> {
    type Output = Result<F::Output, Timeout>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(output) = this.future.poll(cx) {
            return Poll::Ready(Ok(output));
        }
        this.timer.poll(*this.clock, cx).map(|()| {
            let after = this.clock.now().saturating_duration_since(*this.started);
            Err(Timeout::new(*this.kind, after))
        })
    }
}

/// Runs `future` for at most `d`, and not past `deadline`. Polls first: a future that is ready at once arms no
/// timer and returns its output even if the deadline is over.
///
/// # Errors
/// [`Timeout`], which says whether `d` or the deadline came first; the future has been dropped, and whether it took effect
/// is unknown.
///
/// # Cancel safety
/// Dropping it drops `future`.
///
/// ```
/// use std::time::Duration;
/// use mainstay_clock::{Deadline, SystemClock};
/// use mainstay_resilience::timeout::bounded;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let clock = SystemClock::new();
/// let ms = Duration::from_millis(5);
/// assert_eq!(bounded(&clock, ms, Deadline::NONE, async { 7 }).await, Ok(7));
/// let cut = bounded(&clock, ms, Deadline::NONE, std::future::pending::<()>()).await.unwrap_err();
/// assert!(cut.after() >= ms);
/// # });
/// ```
pub async fn bounded<F: Future>(
    clock: &dyn Clock,
    d: Duration,
    deadline: Deadline,
    future: F,
) -> Result<F::Output, Timeout> {
    let started = clock.now();
    let own = started.saturating_add(d);
    let kind = if own < deadline.instant() { TimeoutKind::Attempt } else { TimeoutKind::Deadline };
    let timer = LazyTimer::at(own.min(deadline.instant()));
    Bounded { clock, started, kind, timer, future }.await
}
