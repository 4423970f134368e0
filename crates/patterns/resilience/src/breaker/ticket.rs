//! Admissions and what becomes of them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::Breaker;
use super::core::{Core, End, Raw};
use crate::Verdict;

/// What a verdict means to a breaker.
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

pin_project_lite::pin_project! {
    /// An operation under a ticket. A panic of the operation is told apart from a drop by a flag: where the
    /// panic is caught outside, the drop comes later, when the thread is not panicking any more.
    pub(super) struct Guarded<'a, Fut, K> {
        core: &'a Core,
        // `Raw::NONE` once it is settled.
        raw: Raw,
        classify: K,
        polling: bool,
        #[pin]
        operation: Fut,
    }

    impl<Fut, K> PinnedDrop for Guarded<'_, Fut, K> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.raw.word != Raw::NONE.word {
                this.core.end(*this.raw, if *this.polling { End::Failure } else { End::Abandoned });
            }
        }
    }
}

impl<'a, Fut, K> Guarded<'a, Fut, K> {
    /// `start` makes the operation; its panics count too.
    pub(super) fn new(core: &'a Core, raw: Raw, classify: K, start: impl FnOnce() -> Fut) -> Self {
        let ticket = Ticket::of(core, raw);
        let operation = start();
        std::mem::forget(ticket);
        Self { core, raw, classify, polling: false, operation }
    }
}

impl<T, E, Fut, K> Future for Guarded<'_, Fut, K>
where
    Fut: Future<Output = Result<T, E>>,
    K: Fn(&Result<T, E>) -> Verdict,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        *this.polling = true;
        let polled = this.operation.poll(cx);
        if let Poll::Ready(result) = &polled {
            let verdict = (this.classify)(result);
            let raw = Raw { word: std::mem::take(&mut this.raw.word), stamp: this.raw.stamp };
            finish(this.core, raw, end_of(verdict));
        }
        *this.polling = false;
        polled
    }
}
