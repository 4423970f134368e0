//! What an attempt needs before it starts: its turn at the send rate, then a permit of its own.

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use mainstay_clock::{Instant, Sleep};

use super::{Held, Run, Stage, Step, refuse_attempt};
use crate::bulkhead::Wait;
use crate::policy::Core;
use crate::policy::running::Operation;
use crate::{CallContext, Outcome, Verdict};

/// Places in [`Held::attempts`].
pub(super) const PRIMARY: usize = 0;
pub(super) const RIVAL: usize = 1;

/// What an attempt waits for.
pub(super) enum Line {
    /// Its turn at the send rate. It has its token already.
    Turn(Sleep),
    /// A permit of the attempts' bulkhead.
    Permit(Wait),
}

impl<P, C, O, K, F, T, E> Run<P, C, O, K, F, T, E>
where
    P: Deref<Target = Core>,
    C: Deref<Target = CallContext>,
    O: Operation<Value = T, Error = E, Future = F>,
    F: Future<Output = Result<T, E>>,
    K: Fn(&Result<T, E>) -> Verdict,
{
    /// Gets the next attempt what it needs, waiting if it must, and starts it.
    #[cold]
    #[inline(never)]
    pub(super) fn admit(mut self: Pin<&mut Self>) -> Step<T, E> {
        let this = self.as_mut().project();
        let core: &Core = this.core;
        if let Some(rate) = &core.send_rate {
            match rate.reserve(core.clock.now(), *this.deadline) {
                Ok(None) => {}
                Ok(Some(at)) => {
                    *this.stage = Stage::Line(Line::Turn(core.clock.sleep_until(at)));
                    return Step::Go;
                }
                Err(rejected) => return refuse_attempt(core, rejected, this.first.take(), *this.number),
            }
        }
        self.permit()
    }

    /// The permit, now or in line.
    fn permit(mut self: Pin<&mut Self>) -> Step<T, E> {
        let this = self.as_mut().project();
        let core: &Core = this.core;
        if let Some(bulkhead) = &core.attempt_bulkhead {
            this.held.attempts[PRIMARY] = bulkhead.core().try_enter(core.tick.read());
            if this.held.attempts[PRIMARY].is_none() {
                *this.stage = Stage::Line(Line::Permit(Wait::default()));
                return Step::Go;
            }
        }
        self.start_admitted()
    }

    /// Polls what the next attempt waits for.
    pub(super) fn poll_line(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<T, E>> {
        let this = self.as_mut().project();
        let core: &Core = this.core;
        match this.stage {
            Stage::Line(Line::Turn(turn)) => {
                ready!(turn.as_mut().poll(cx));
                *this.stage = Stage::Attempt;
                Poll::Ready(self.permit())
            }
            Stage::Line(Line::Permit(wait)) => {
                let Some(bulkhead) = &core.attempt_bulkhead else { return Poll::Ready(Step::Go) };
                let entered = ready!(wait.poll(bulkhead.core(), this.cx.priority(), *this.deadline, cx));
                *this.stage = Stage::Attempt;
                match entered {
                    Ok(parity) => this.held.attempts[PRIMARY] = Some(parity),
                    Err(rejected) => {
                        return Poll::Ready(refuse_attempt(core, rejected, this.first.take(), *this.number));
                    }
                }
                Poll::Ready(self.start_admitted())
            }
            _ => Poll::Ready(Step::Go),
        }
    }

    /// The start, unless the wait has used up the time.
    #[inline(never)]
    fn start_admitted(mut self: Pin<&mut Self>) -> Step<T, E> {
        let this = self.as_mut().project();
        let core: &Core = this.core;
        if core.is_hopeless(core.tick.read(), *this.deadline) {
            return refuse_attempt(core, core.too_late(), this.first.take(), *this.number);
        }
        if let Some(rate) = &core.send_rate {
            this.held.epoch = rate.epoch();
        }
        self.start()
    }
}

impl Held {
    /// Gives the permit of one attempt back, if it has one.
    pub(super) fn leave_attempt(&mut self, core: &Core, which: usize) {
        if let (Some(parity), Some(bulkhead)) = (self.attempts[which].take(), &core.attempt_bulkhead) {
            bulkhead.core().leave(parity);
        }
    }

    /// Token and permit for a second attempt, now or never: one that has to wait helps nobody.
    pub(super) fn admit_rival(&mut self, core: &Core, now: Instant) -> bool {
        if let Some(bulkhead) = &core.attempt_bulkhead {
            self.attempts[RIVAL] = bulkhead.core().try_enter(now);
            if self.attempts[RIVAL].is_none() {
                return false;
            }
        }
        let admitted = core.send_rate.as_ref().is_none_or(|rate| rate.take(now));
        if !admitted {
            self.leave_attempt(core, RIVAL);
        }
        admitted
    }

    /// The second attempt did not start after all.
    pub(super) fn recall_rival(&mut self, core: &Core) {
        self.leave_attempt(core, RIVAL);
        if let Some(rate) = &core.send_rate {
            rate.give_back();
        }
    }

    /// All attempts of a round have ended, the last one with `verdict`.
    pub(super) fn fail_attempts(&mut self, core: &Core, verdict: Verdict) {
        self.leave_attempt(core, PRIMARY);
        self.leave_attempt(core, RIVAL);
        core.report(self.epoch, verdict);
    }

    /// The call has ended: leaves every line and gives every permit back.
    #[cold]
    #[inline(never)]
    pub(super) fn end_attempts(&mut self, core: &Core, stage: &mut Stage, outcome: Outcome) {
        match stage {
            Stage::Line(Line::Turn(_)) => core.send_rate.iter().for_each(|rate| rate.give_back()),
            Stage::Line(Line::Permit(wait)) => {
                if let Some(bulkhead) = &core.attempt_bulkhead
                    && let Some(parity) = wait.cancel(bulkhead.core())
                {
                    self.attempts[PRIMARY] = Some(parity);
                }
            }
            _ => {}
        }
        self.leave_attempt(core, PRIMARY);
        self.leave_attempt(core, RIVAL);
        if outcome == Outcome::Success {
            core.report(self.epoch, Verdict::Ok);
        }
    }
}

impl Core {
    /// Tells the send rate how an attempt ended.
    pub(super) fn report(&self, epoch: u32, verdict: Verdict) {
        if let Some(rate) = &self.send_rate {
            rate.report(epoch, verdict);
        }
    }
}
