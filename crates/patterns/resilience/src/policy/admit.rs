//! What an attempt needs before it starts: its turn at the send rate, then a permit of its own.

use std::future::Future;
use std::task::{Context, Poll, ready};

use mainstay_clock::{Instant, Sleep};

use super::Core;
use super::machine::{Held, Machine, Phase, Step, refuse_attempt};
use super::running::Operation;
use crate::bulkhead::Wait;
use crate::limit::Token;
use crate::{Outcome, Verdict};

/// Places in [`Held::attempts`] and [`Held::tokens`].
pub(super) const PRIMARY: usize = 0;
pub(super) const RIVAL: usize = 1;

/// What an attempt waits for.
pub(super) enum Line {
    /// Its turn at the send rate. Its token has been taken.
    Turn(Sleep),
    /// A permit of the attempts' bulkhead.
    Permit(Wait),
}

impl<O, K, F, T, E> Machine<'_, O, K, F, T, E>
where
    O: Operation<Value = T, Error = E, Future = F>,
    F: Future<Output = Result<T, E>>,
    K: Fn(&Result<T, E>) -> Verdict,
{
    /// Gets the next attempt what it needs, waiting if it must, and starts it.
    #[cold]
    #[inline(never)]
    pub(super) fn admit(&mut self) -> Step<T, E> {
        let (core, live) = (self.core, &mut *self.live);
        // What an open breaker will refuse has nothing to wait for.
        if let Some(rejected) = core.refused_by_breaker(core.clock.now()) {
            return refuse_attempt(core, rejected, live.first.take(), live.number);
        }
        if let Some(rate) = &core.send_rate {
            match rate.reserve(core.clock.now(), live.deadline) {
                Ok(token) => {
                    live.held.tokens[PRIMARY] = token.is_taken();
                    if let Token::At(at) = token {
                        live.phase = Phase::Line(Line::Turn(core.clock.sleep_until(at)));
                        return Step::Go;
                    }
                }
                Err(rejected) => return refuse_attempt(core, rejected, live.first.take(), live.number),
            }
        }
        self.permit()
    }

    /// The permit, now or in line.
    fn permit(&mut self) -> Step<T, E> {
        let (core, live) = (self.core, &mut *self.live);
        if let Some(bulkhead) = &core.attempt_bulkhead {
            live.held.attempts[PRIMARY] = bulkhead.core().try_enter(core.tick.read());
            if live.held.attempts[PRIMARY].is_none() {
                live.phase = Phase::Line(Line::Permit(Wait::default()));
                return Step::Go;
            }
        }
        self.start_admitted()
    }

    /// Polls what the next attempt waits for.
    pub(super) fn poll_line(&mut self, cx: &mut Context<'_>) -> Poll<Step<T, E>> {
        let (core, live) = (self.core, &mut *self.live);
        match &mut live.phase {
            Phase::Line(Line::Turn(turn)) => {
                ready!(turn.as_mut().poll(cx));
                live.phase = Phase::Attempt;
                Poll::Ready(self.permit())
            }
            Phase::Line(Line::Permit(wait)) => {
                let Some(bulkhead) = &core.attempt_bulkhead else { return Poll::Ready(Step::Go) };
                let entered = ready!(wait.poll(bulkhead.core(), self.cx.priority(), live.deadline, cx));
                live.phase = Phase::Attempt;
                match entered {
                    Ok(parity) => live.held.attempts[PRIMARY] = Some(parity),
                    Err(rejected) => {
                        return Poll::Ready(refuse_attempt(core, rejected, live.first.take(), live.number));
                    }
                }
                Poll::Ready(self.start_admitted())
            }
            _ => Poll::Ready(Step::Go),
        }
    }

    /// The start, unless the wait has used up the time.
    #[inline(never)]
    fn start_admitted(&mut self) -> Step<T, E> {
        let (core, live) = (self.core, &mut *self.live);
        if core.is_hopeless(core.tick.read(), live.deadline) {
            return refuse_attempt(core, core.too_late(), live.first.take(), live.number);
        }
        if let Some(rate) = &core.send_rate {
            live.held.epoch = rate.epoch();
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
        let token = core.send_rate.as_ref().map_or(Some(Token::Unbound), |rate| rate.take(now));
        match token {
            Some(token) => self.tokens[RIVAL] = token.is_taken(),
            None => self.leave_attempt(core, RIVAL),
        }
        token.is_some()
    }

    /// The second attempt did not start after all.
    pub(super) fn recall_rival(&mut self, core: &Core) {
        self.leave_attempt(core, RIVAL);
        self.return_token(core, RIVAL);
    }

    /// Gives back the token of an attempt that has not started, if it has one.
    fn return_token(&mut self, core: &Core, which: usize) {
        if std::mem::take(&mut self.tokens[which])
            && let Some(rate) = &core.send_rate
        {
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
    pub(super) fn end_attempts(&mut self, core: &Core, phase: &mut Phase, outcome: Outcome) {
        if let (Phase::Line(Line::Permit(wait)), Some(bulkhead)) = (phase, &core.attempt_bulkhead)
            && let Some(parity) = wait.cancel(bulkhead.core())
        {
            self.attempts[PRIMARY] = Some(parity);
        }
        for which in [PRIMARY, RIVAL] {
            self.leave_attempt(core, which);
            self.return_token(core, which);
        }
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
