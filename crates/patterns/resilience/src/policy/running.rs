//! One attempt: breaker ticket, lazy timeout, operation, verdict.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use mainstay_clock::{Deadline, Instant};

use super::Core;
use super::attempt::{Attempt, Head};
use crate::breaker::{self, End, Raw, Ticket};
use crate::timeout::LazyTimer;
use crate::{CallContext, CallError, Timeout, TimeoutKind, Verdict};

/// What starts attempts. Its futures borrow nothing of the call's future, so that this can be a value with a
/// name.
pub(crate) trait Operation {
    type Value;
    type Error;
    type Future: Future<Output = Result<Self::Value, Self::Error>>;

    fn start(&mut self, head: Head, core: &Core, cx: &CallContext) -> Self::Future;
}

/// A closure as an operation.
pub(crate) struct Closure<'a, F> {
    pub(crate) f: F,
    pub(crate) core: &'a Core,
    pub(crate) cx: &'a CallContext,
}

impl<'a, T, E, F, Fut> Operation for Closure<'a, F>
where
    F: FnMut(Attempt<'a>) -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Value = T;
    type Error = E;
    type Future = Fut;

    #[inline]
    fn start(&mut self, head: Head, _core: &Core, _cx: &CallContext) -> Fut {
        (self.f)(Attempt { head, core: self.core, cx: self.cx })
    }
}

/// An attempt that has ended otherwise than with success.
pub(crate) struct Ended<T, E> {
    pub(crate) result: Result<T, CallError<E>>,
    pub(crate) verdict: Verdict,
}

/// Which attempt is to start.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    pub(crate) number: u32,
    pub(crate) hedge: bool,
    pub(crate) deadline: Deadline,
}

/// The breaker's admission, or none without a breaker.
#[inline(always)]
pub(crate) fn admit(core: &Core) -> Result<Option<Raw>, crate::Rejected> {
    match &core.breaker {
        None => Ok(None),
        Some(breaker) => breaker.core().admit().map(Some),
    }
}

pin_project_lite::pin_project! {
    /// An attempt that runs. Its ticket is settled by whoever holds it, who also holds the breaker: before it is
    /// dropped, [`abandon`](Running::abandon) must be called.
    pub(crate) struct Running<F> {
        ticket: Option<Raw>,
        started: Instant,
        kind: TimeoutKind,
        timer: LazyTimer,
        polling: bool,
        #[pin]
        operation: F,
    }
}

impl<F> Running<F> {
    /// Takes the ticket and starts the operation.
    #[inline(always)]
    pub(crate) fn start<O: Operation<Future = F>>(
        op: &mut O,
        core: &Core,
        cx: &CallContext,
        start: Start,
        ticket: Option<Raw>,
    ) -> Self {
        let started = core.tick.read();
        let mut until = start.deadline;
        let mut kind = TimeoutKind::Deadline;
        if let Some(timeout) = core.attempt_timeout {
            let own = Deadline::after(started, timeout);
            if own.instant() < until.instant() {
                (until, kind) = (own, TimeoutKind::Attempt);
            }
        }
        // A panic while the operation is being made is a failure too.
        let guard = match (&core.breaker, ticket) {
            (Some(breaker), Some(raw)) => Some(Ticket::of(breaker.core(), raw)),
            _ => None,
        };
        let operation =
            op.start(Head { number: start.number, hedge: start.hedge, deadline: until }, core, cx);
        std::mem::forget(guard);
        let timer = LazyTimer::at(until.instant());
        Self { ticket, started, kind, timer, polling: false, operation }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Settles the ticket of an attempt that will not be polled again: dropped, or ended by a panic. True for a
    /// panic.
    pub(crate) fn abandon(self: Pin<&mut Self>, core: &Core) -> bool {
        let this = self.project();
        let panicked = *this.polling;
        let end = if panicked { End::Failure } else { End::Abandoned };
        settle(core, this.ticket.take(), end);
        panicked
    }
}

#[inline]
fn settle(core: &Core, ticket: Option<Raw>, end: End) {
    if let (Some(breaker), Some(raw)) = (&core.breaker, ticket) {
        breaker::finish(breaker.core(), raw, end);
    }
}

impl<T, E, F: Future<Output = Result<T, E>>> Running<F> {
    /// The value, or how it ended otherwise: boxed, because the success path should not carry it around.
    #[inline(always)]
    pub(crate) fn poll(
        self: Pin<&mut Self>,
        core: &Core,
        classify: &impl Fn(&Result<T, E>) -> Verdict,
        cx: &mut Context<'_>,
    ) -> Poll<Result<T, Box<Ended<T, E>>>> {
        let this = self.project();
        *this.polling = true;
        let polled = this.operation.poll(cx);
        if let Poll::Ready(result) = polled {
            let verdict = classify(&result);
            *this.polling = false;
            settle(core, this.ticket.take(), breaker::end_of(verdict));
            return Poll::Ready(match (result, verdict) {
                (Ok(value), Verdict::Ok) => Ok(value),
                (result, verdict) => Err(not_ok(result, verdict)),
            });
        }
        *this.polling = false;
        if this.timer.poll(&*core.clock, cx).is_pending() {
            return Poll::Pending;
        }
        settle(core, this.ticket.take(), End::Failure);
        let elapsed = core.clock.now().saturating_duration_since(*this.started);
        let result = Err(Timeout::new(*this.kind, elapsed).into());
        Poll::Ready(Err(Box::new(Ended { result, verdict: Verdict::RETRYABLE })))
    }
}

#[cold]
fn not_ok<T, E>(result: Result<T, E>, verdict: Verdict) -> Box<Ended<T, E>> {
    // An error that is classified as `Ok` says nothing against the dependency, and is still an error.
    let verdict = if result.is_err() && verdict == Verdict::Ok { Verdict::Ignore } else { verdict };
    Box::new(Ended { result: result.map_err(CallError::Inner), verdict })
}
