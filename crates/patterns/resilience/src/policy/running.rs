//! One attempt: breaker ticket, lazy timeout, operation, verdict.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

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

/// An attempt that has ended.
pub(crate) struct Ended<T, E> {
    pub(crate) result: Result<T, CallError<E>>,
    pub(crate) verdict: Verdict,
    pub(crate) elapsed: Duration,
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
    #[inline]
    pub(crate) fn start<O: Operation<Future = F>>(
        op: &mut O,
        core: &Core,
        cx: &CallContext,
        number: u32,
        hedge: bool,
        deadline: Deadline,
    ) -> Result<Self, crate::Rejected> {
        let started = core.tick.read();
        let own = core.attempt_timeout.map_or(Deadline::NONE, |d| Deadline::after(started, d));
        let kind =
            if own.instant() < deadline.instant() { TimeoutKind::Attempt } else { TimeoutKind::Deadline };
        let until = deadline.min(own);
        let head = Head { number, hedge, deadline: until };
        let (ticket, operation) = match &core.breaker {
            None => (None, op.start(head, core, cx)),
            Some(breaker) => {
                let raw = breaker.core().admit()?;
                // A panic while the operation is being made is a failure too.
                let ticket = Ticket::of(breaker.core(), raw);
                let operation = op.start(head, core, cx);
                std::mem::forget(ticket);
                (Some(raw), operation)
            }
        };
        let timer = LazyTimer::at(until.instant());
        Ok(Self { ticket, started, kind, timer, polling: false, operation })
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
    #[inline]
    pub(crate) fn poll(
        self: Pin<&mut Self>,
        core: &Core,
        classify: &impl Fn(&Result<T, E>) -> Verdict,
        cx: &mut Context<'_>,
    ) -> Poll<Ended<T, E>> {
        let this = self.project();
        *this.polling = true;
        let polled = this.operation.poll(cx);
        let ended = match polled {
            Poll::Ready(result) => {
                let verdict = classify(&result);
                *this.polling = false;
                settle(core, this.ticket.take(), breaker::end_of(verdict));
                let elapsed = core.tick.read().saturating_duration_since(*this.started);
                Ended { result: result.map_err(CallError::Inner), verdict, elapsed }
            }
            Poll::Pending => {
                *this.polling = false;
                if this.timer.poll(&*core.clock, cx).is_pending() {
                    return Poll::Pending;
                }
                settle(core, this.ticket.take(), End::Failure);
                let elapsed = core.clock.now().saturating_duration_since(*this.started);
                let result = Err(Timeout::new(*this.kind, elapsed).into());
                Ended { result, verdict: Verdict::RETRYABLE, elapsed }
            }
        };
        Poll::Ready(ended)
    }
}
