//! Admissions and what becomes of them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::Breaker;
use super::core::{Core, End, Raw};
use crate::{CallError, Verdict};

/// What a verdict means to a breaker.
#[inline(always)]
pub(crate) fn end_of(verdict: Verdict) -> End {
    match verdict {
        Verdict::Ok => End::Success,
        Verdict::Ignore => End::Ignored,
        Verdict::Fail { .. } | Verdict::Throttled { .. } => End::Failure,
    }
}

/// Ends `raw` with `end`.
#[inline(always)]
pub(crate) fn finish(core: &Core, raw: Raw, end: End) {
    if end == End::Success { core.succeed(raw) } else { core.end(raw, end) }
}

/// How a ticket that nobody settled ends.
fn dropped() -> End {
    if std::thread::panicking() { End::Failure } else { End::Abandoned }
}

/// The admission of one call, stamped with the breaker's generation: what it reports after the breaker
/// changed its state is counted as late and decides nothing.
///
/// Dropped without a verdict it is *abandoned*, or a failure if the thread is panicking.
///
/// ```
/// use mainstay_resilience::{Breaker, Verdict};
///
/// let breaker = Breaker::builder("search").consecutive(2).build().unwrap();
/// let before = breaker.admit().unwrap(); // a call that will outlive the state it began in
/// breaker.admit().unwrap().settle(Verdict::of_http(503, None));
/// breaker.admit().unwrap().failure();
/// assert!(breaker.admit().is_err()); // open
/// before.success();
/// assert!(breaker.admit().is_err()); // and still open: a straggler closes nothing
/// assert_eq!(breaker.snapshot().lifetime.late, 1);
/// ```
#[must_use = "a ticket that is dropped at once reports an abandoned call"]
pub struct Ticket<'a> {
    core: &'a Core,
    raw: Raw,
}

impl<'a> Ticket<'a> {
    pub(crate) fn of(core: &'a Core, raw: Raw) -> Self {
        Self { core, raw }
    }

    /// The call succeeded.
    #[inline(always)]
    pub fn success(self) {
        let (core, raw) = (self.core, self.raw);
        std::mem::forget(self);
        core.succeed(raw);
    }

    /// The call failed.
    pub fn failure(self) {
        self.settle(Verdict::FATAL);
    }

    /// The call says nothing about the dependency. A probe's permit comes back, and nothing is counted but that.
    pub fn ignore(self) {
        self.settle(Verdict::Ignore);
    }

    /// The call ended with `verdict`. Throttling counts as a failure.
    ///
    /// ```
    /// use mainstay_resilience::{Breaker, Verdict};
    ///
    /// let breaker = Breaker::builder("search").build().unwrap();
    /// for status in [200, 404, 429, 500] {
    ///     breaker.admit().unwrap().settle(Verdict::of_http(status, None));
    /// }
    /// let counts = breaker.snapshot().counts;
    /// assert_eq!((counts.total, counts.failures), (3, 2)); // 404 says nothing, 429 and 500 count against it
    /// ```
    #[inline]
    pub fn settle(self, verdict: Verdict) {
        let (core, raw) = (self.core, self.raw);
        std::mem::forget(self);
        finish(core, raw, end_of(verdict));
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.core.end(self.raw, dropped());
    }
}

impl fmt::Debug for Ticket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("breaker", &self.core.name).finish_non_exhaustive()
    }
}

/// A [`Ticket`] without a lifetime, at the price of a shared counter; for calls that outlive their scope.
///
/// ```
/// use mainstay_resilience::Breaker;
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let breaker = Breaker::builder("feed").build().unwrap();
/// let ticket = breaker.admit_owned().unwrap();
/// let panicking = tokio::spawn(async move {
///     let _ticket = ticket;
///     panic!("the reader has a bug");
/// });
/// assert!(panicking.await.is_err());
/// assert_eq!(breaker.snapshot().lifetime.failures, 1); // nothing was settled, and it counts all the same
/// # });
/// ```
#[must_use = "a ticket that is dropped at once reports an abandoned call"]
pub struct OwnedTicket {
    breaker: Breaker,
    raw: Option<Raw>,
}

impl OwnedTicket {
    pub(super) fn new(breaker: Breaker, raw: Raw) -> Self {
        Self { breaker, raw: Some(raw) }
    }

    /// The call succeeded.
    pub fn success(self) {
        self.settle(Verdict::Ok);
    }

    /// The call failed.
    pub fn failure(self) {
        self.settle(Verdict::FATAL);
    }

    /// The call says nothing about the dependency.
    pub fn ignore(self) {
        self.settle(Verdict::Ignore);
    }

    /// The call ended with `verdict`.
    pub fn settle(mut self, verdict: Verdict) {
        if let Some(raw) = self.raw.take() {
            finish(self.breaker.core(), raw, end_of(verdict));
        }
    }
}

impl Drop for OwnedTicket {
    fn drop(&mut self) {
        if let Some(raw) = self.raw.take() {
            self.breaker.core().end(raw, dropped());
        }
    }
}

impl fmt::Debug for OwnedTicket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedTicket").field("breaker", &self.breaker.core().name).finish_non_exhaustive()
    }
}

/// A ticket whose operation runs right now. It is dropped only when the operation panics.
struct Running<'a> {
    core: &'a Core,
    raw: Raw,
}

impl Running<'_> {
    /// The operation came back.
    #[inline(always)]
    fn back(self) -> Raw {
        let raw = self.raw;
        std::mem::forget(self);
        raw
    }
}

impl Drop for Running<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.core.end(self.raw, End::Failure);
    }
}

/// Where a guarded call stands.
enum Stage<F> {
    /// Not polled yet: it has done nothing.
    New(F),
    Runs(Raw),
    Over,
}

pin_project_lite::pin_project! {
    /// One call under a breaker. A call that is ready at once is admitted, run and settled within one poll, out of
    /// registers: nothing of it is written down to be read again.
    pub(super) struct Guarded<'a, F, Fut, K> {
        core: &'a Core,
        classify: K,
        stage: Stage<F>,
        #[pin]
        operation: Option<Fut>,
    }

    impl<F, Fut, K> PinnedDrop for Guarded<'_, F, Fut, K> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let Stage::Runs(raw) = *this.stage {
                this.core.end(raw, End::Abandoned);
            }
        }
    }
}

impl<'a, F, Fut, K> Guarded<'a, F, Fut, K> {
    #[inline(always)]
    pub(super) fn new(core: &'a Core, classify: K, start: F) -> Self {
        Self { core, classify, stage: Stage::New(start), operation: None }
    }
}

impl<T, E, F, Fut, K> Future for Guarded<'_, F, Fut, K>
where
    F: FnOnce() -> Fut,
    Fut: Future<Output = Result<T, E>>,
    K: Fn(&Result<T, E>) -> Verdict,
{
    type Output = Result<T, CallError<E>>;

    #[inline(always)]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let core: &Core = this.core;
        // While the operation runs the ticket is on the stack: a panic settles it at once.
        let running = match std::mem::replace(this.stage, Stage::Over) {
            Stage::New(start) => {
                let raw = match core.admit_closed() {
                    Some(raw) => raw,
                    None => core.admit_slow()?,
                };
                let running = Running { core, raw };
                this.operation.set(Some(start()));
                running
            }
            Stage::Runs(raw) => Running { core, raw },
            Stage::Over => return Poll::Pending,
        };
        let Some(operation) = this.operation.as_mut().as_pin_mut() else { return Poll::Pending };
        match operation.poll(cx) {
            Poll::Pending => {
                *this.stage = Stage::Runs(running.back());
                Poll::Pending
            }
            Poll::Ready(result) => {
                let verdict = (this.classify)(&result);
                finish(core, running.back(), end_of(verdict));
                Poll::Ready(result.map_err(CallError::Inner))
            }
        }
    }
}
