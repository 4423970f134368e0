//! One attempt: breaker ticket, lazy timeout, operation, verdict.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use mainstay_clock::{Deadline, Instant};

use super::Core;
use super::attempt::{Attempt, Head};
use crate::breaker::{self, End, Raw};
use crate::timeout::LazyTimer;
use crate::{CallContext, CallError, Rejected, Timeout, TimeoutKind, Verdict};

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

    #[inline(always)]
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

/// Everything about a running attempt but its operation. Its ticket is settled by whoever holds the breaker:
/// before it is dropped, [`abandon`](Watch::abandon) must be called.
pub(crate) struct Watch {
    /// `Raw::NONE` without a breaker, and once it is settled.
    ticket: Raw,
    started: Instant,
    kind: TimeoutKind,
    timer: LazyTimer,
    polling: bool,
}

impl Watch {
    pub(crate) const fn idle() -> Self {
        Self {
            ticket: Raw::NONE,
            started: Instant::ZERO,
            kind: TimeoutKind::Deadline,
            timer: LazyTimer::at(Instant::FAR_FUTURE),
            polling: false,
        }
    }

    /// Of an attempt that is under way already, without a bound yet.
    pub(crate) fn running(ticket: Raw, started: Instant, polling: bool) -> Self {
        Self { ticket, started, polling, ..Self::idle() }
    }

    /// Sets until when it may run, of a call that must have ended by `deadline`.
    pub(crate) fn bound(&mut self, core: &Core, deadline: Deadline) {
        let (until, kind) = core.attempt_until(self.started, deadline);
        self.kind = kind;
        self.timer.reset(until);
    }

    /// Takes the ticket and starts the operation.
    pub(crate) fn start<O: Operation>(
        &mut self,
        op: &mut O,
        core: &Core,
        cx: &CallContext,
        start: Start,
    ) -> Result<O::Future, Box<Rejected>> {
        let mut ticket = Raw::NONE;
        if let Some(breaker) = &core.breaker {
            ticket = match breaker.core().admit_closed() {
                Some(raw) => raw,
                None => breaker.core().admit_slow().map_err(Box::new)?,
            };
        }
        self.ticket = ticket;
        self.started = core.tick.read();
        let (until, kind) = core.attempt_until(self.started, start.deadline);
        self.kind = kind;
        self.timer.reset(until);
        // A panic while the operation is being made is a failure too.
        self.polling = true;
        let head = Head { number: start.number, hedge: start.hedge, deadline: Deadline::at(until) };
        let operation = op.start(head, core, cx);
        self.polling = false;
        Ok(operation)
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// Settles the ticket of an attempt that will not be polled again: dropped, or ended by a panic. True for a
    /// panic.
    pub(crate) fn abandon(&mut self, core: &Core) -> bool {
        let panicked = std::mem::take(&mut self.polling);
        self.settle(core, if panicked { End::Failure } else { End::Abandoned });
        self.timer.reset(Instant::FAR_FUTURE);
        panicked
    }

    fn settle(&mut self, core: &Core, end: End) {
        let raw = Raw { word: std::mem::take(&mut self.ticket.word), stamp: self.ticket.stamp };
        if let Some(breaker) = &core.breaker
            && raw.word != Raw::NONE.word
        {
            match end {
                End::Abandoned => breaker.core().abandon(raw, core.attempt_timeout),
                end => breaker::finish(breaker.core(), raw, end),
            }
        }
    }

    /// The value, or how it ended otherwise: boxed, because the success path should not carry it around.
    pub(crate) fn poll<T, E, F: Future<Output = Result<T, E>>>(
        &mut self,
        operation: Pin<&mut F>,
        core: &Core,
        classify: &impl Fn(&Result<T, E>) -> Verdict,
        cx: &mut Context<'_>,
    ) -> Poll<Result<T, Box<Ended<T, E>>>> {
        self.polling = true;
        let polled = operation.poll(cx);
        if let Poll::Ready(result) = polled {
            let verdict = classify(&result);
            self.polling = false;
            self.settle(core, breaker::end_of(verdict));
            return Poll::Ready(match (result, verdict) {
                (Ok(value), Verdict::Ok) => Ok(value),
                (result, verdict) => Err(not_ok(result, verdict)),
            });
        }
        self.polling = false;
        self.pending(core, cx).map(Err)
    }

    /// The operation waits: so does its timer.
    pub(crate) fn pending<T, E>(&mut self, core: &Core, cx: &mut Context<'_>) -> Poll<Box<Ended<T, E>>> {
        if self.timer.poll(&*core.clock, cx).is_pending() {
            return Poll::Pending;
        }
        self.settle(core, End::Failure);
        let elapsed = core.clock.now().saturating_duration_since(self.started);
        let result = Err(Timeout::new(self.kind, elapsed).into());
        Poll::Ready(Box::new(Ended { result, verdict: Verdict::RETRYABLE }))
    }
}

pin_project_lite::pin_project! {
    /// An attempt with its watch; the second one of a hedge.
    pub(crate) struct Running<F> {
        pub(crate) watch: Watch,
        #[pin]
        pub(crate) operation: F,
    }
}

#[cold]
pub(crate) fn not_ok<T, E>(result: Result<T, E>, verdict: Verdict) -> Box<Ended<T, E>> {
    // An error that is classified as `Ok` says nothing against the dependency, and is still an error.
    let verdict = if result.is_err() && verdict == Verdict::Ok { Verdict::Ignore } else { verdict };
    Box::new(Ended { result: result.map_err(CallError::Inner), verdict })
}
