//! The order of a policy where a call has to wait or does not succeed at once: deadline, limits, bulkhead, retry with
//! budget, hedge, then attempts ([`Running`]).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mainstay_clock::{Deadline, Instant, Sleep};

use super::admit::{self, Line};
use super::exec::Marks;
use super::running::{Ended, Operation, Running, Start, Watch, not_ok};
use super::seam::{Ask, LimitSlot, Pass, Sample};
use super::{Core, Repeat};
use crate::budget::{Budget, Cost, Paid};
use crate::bulkhead::Wait;
use crate::retry::{Bounds, Decision, Failed, Used};
use crate::timeout::LazyTimer;
use crate::{CallContext, CallError, Event, GaveUp, Outcome, Reason, Rejected, Stop, Verdict};

/// What a call waits for.
pub(super) enum Phase {
    Start,
    Queue(Wait),
    Line(Line),
    Attempt,
    Backoff(Sleep),
}

impl Phase {
    pub(super) fn queue() -> Self {
        Self::Queue(Wait::default())
    }
}

/// What a call holds, to be given back exactly once.
#[derive(Default)]
pub(super) struct Held {
    passes: [Option<Pass>; LimitSlot::COUNT],
    permit: Option<u8>,
    /// Permits of the attempts: the primary's, its rival's.
    pub(super) attempts: [Option<u8>; 2],
    /// Tokens of the send rate that were taken for attempts which have not started: the primary's, its rival's.
    pub(super) tokens: [bool; 2],
    /// In which epoch of the send rate the last attempt was sent.
    pub(super) epoch: u32,
    /// Whether the last attempt that ended was refused for load.
    throttled: bool,
    began: bool,
}

/// The second attempt of a hedge.
enum Rival<F> {
    /// Not yet, or not at all for this attempt.
    None,
    /// The plan has been asked.
    Due(LazyTimer),
    Runs(Pin<Box<Running<F>>>),
    /// It failed, was refused or must not start.
    Done,
}

/// Everything about a call that has not ended but its parts and its first operation.
pub(super) struct Live<F, T, E> {
    pub(super) phase: Phase,
    pub(super) held: Held,
    started: Instant,
    pub(super) deadline: Deadline,
    pub(super) number: u32,
    used: Used,
    paid: Paid,
    /// While a retry that has been paid for has not started: what had been paid before it.
    unspent: Option<Paid>,
    pub(super) first: Option<Box<CallError<E>>>,
    /// The primary's end, while its rival still runs.
    ended: Option<Box<Ended<T, E>>>,
    rival: Rival<F>,
    /// Of the primary.
    watch: Watch,
}

impl<F, T, E> Live<F, T, E> {
    /// In its first attempt.
    pub(super) fn first(phase: Phase, marks: Marks, watch: Watch) -> Self {
        Self {
            phase,
            held: Held { permit: marks.permit, began: marks.began, ..Held::default() },
            started: marks.started,
            deadline: marks.deadline,
            number: 1,
            used: Used::default(),
            paid: Paid::default(),
            unspent: None,
            first: None,
            ended: None,
            rival: Rival::None,
            watch,
        }
    }
}

/// A call that has not ended, with all its parts at hand.
pub(super) struct Machine<'a, O, K, F, T, E> {
    pub(super) core: &'a Core,
    pub(super) cx: &'a CallContext,
    pub(super) op: &'a mut O,
    pub(super) classify: &'a K,
    pub(super) live: &'a mut Live<F, T, E>,
    pub(super) primary: Pin<&'a mut Option<F>>,
}

impl<O, K, F, T, E> Machine<'_, O, K, F, T, E> {
    /// A call that was dropped, or whose operation panicked, before it ended.
    pub(super) fn clean_up(&mut self) {
        // A limiter that panicked at the start may leave passes of outer ones.
        if matches!(self.live.phase, Phase::Start) && self.live.held.is_empty() {
            return;
        }
        let panicked = self.drop_attempts();
        self.give_back(if panicked { Outcome::Failure } else { Outcome::Abandoned });
    }

    /// Drops what runs; its tickets are abandoned. True if one of them ended by a panic.
    fn drop_attempts(&mut self) -> bool {
        let mut panicked = self.live.watch.abandon(self.core);
        self.primary.set(None);
        if let Rival::Runs(mut rival) = std::mem::replace(&mut self.live.rival, Rival::None) {
            panicked |= rival.as_mut().project().watch.abandon(self.core);
        }
        panicked
    }

    /// Gives back permit, passes and budget, and tells how the call ended.
    fn give_back(&mut self, outcome: Outcome) {
        let (core, live) = (self.core, &mut *self.live);
        if core.gated {
            live.held.end_attempts(core, &mut live.phase, outcome);
        }
        if let (Phase::Queue(wait), Some(bulkhead)) = (&mut live.phase, &core.bulkhead)
            && let Some(parity) = wait.cancel(bulkhead.core())
        {
            live.held.permit = Some(parity);
        }
        let (permit, began) = (live.held.permit.take(), std::mem::take(&mut live.held.began));
        let mut paid = std::mem::take(&mut live.paid);
        if let (Some(before), Some(budget)) = (live.unspent.take(), core.budget_for(self.cx)) {
            budget.refund(&mut paid, before);
        }
        core.give_back(permit, core.budget_for(self.cx), paid, began, outcome);
        if core.limited {
            give_back_passes(core, &mut live.held, live.started, outcome);
        }
        core.tell_end(outcome, live.started, live.number);
    }
}

#[cold]
fn give_back_passes(core: &Core, held: &mut Held, started: Instant, outcome: Outcome) {
    let elapsed = core.tick.read().saturating_duration_since(started);
    // Inside out.
    for (slot, pass) in held.passes.iter_mut().enumerate().rev() {
        if let (Some(pass), Some(limiter)) = (pass.take(), &core.limits[slot]) {
            limiter.done(pass, Sample { outcome, elapsed, throttled: held.throttled });
        }
    }
}

impl Held {
    fn is_empty(&self) -> bool {
        self.permit.is_none() && !self.began && self.passes.iter().all(Option::is_none)
    }
}

/// What the loop does next. Small, so that a success is handed up in registers.
pub(super) enum Step<T, E> {
    Go,
    Return(Box<(Result<T, CallError<E>>, Outcome)>),
    Value(T),
}

impl<T, E> Step<T, E> {
    fn end(result: Result<T, CallError<E>>, outcome: Outcome) -> Self {
        Self::Return(Box::new((result, outcome)))
    }
}

impl<O, K, F, T, E> Machine<'_, O, K, F, T, E>
where
    O: Operation<Value = T, Error = E, Future = F>,
    F: Future<Output = Result<T, E>>,
    K: Fn(&Result<T, E>) -> Verdict,
{
    /// Goes on until it has to wait or has ended.
    pub(super) fn run(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, CallError<E>>> {
        loop {
            let step = match &mut self.live.phase {
                Phase::Start => self.begin(),
                Phase::Attempt => ready!(self.poll_attempt(cx)),
                Phase::Queue(_) => ready!(self.poll_queue(cx)),
                Phase::Line(_) => ready!(self.poll_line(cx)),
                Phase::Backoff(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    self.wake()
                }
            };
            if let Some(result) = self.take(step) {
                return Poll::Ready(result);
            }
        }
    }

    /// Ends the call, if the step says so.
    fn take(&mut self, step: Step<T, E>) -> Option<Result<T, CallError<E>>> {
        let (result, outcome) = match step {
            Step::Go => return None,
            Step::Value(value) => (Ok(value), Outcome::Success),
            Step::Return(end) => *end,
        };
        self.give_back(outcome);
        Some(result)
    }

    /// Goes on after `step`.
    fn after(&mut self, step: Step<T, E>, cx: &mut Context<'_>) -> Poll<Result<T, CallError<E>>> {
        match self.take(step) {
            Some(result) => Poll::Ready(result),
            None => self.run(cx),
        }
    }

    /// The primary has just been polled and is pending.
    pub(super) fn wait(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, CallError<E>>> {
        self.live.watch.bound(self.core, self.live.deadline);
        let step = ready!(match self.live.watch.pending(self.core, cx) {
            Poll::Ready(ended) => {
                self.primary.set(None);
                Poll::Ready(self.ended(ended))
            }
            Poll::Pending if self.core.hedge.is_some() => self.poll_rival(cx),
            Poll::Pending => Poll::Pending,
        });
        self.after(step, cx)
    }

    /// The primary has just been polled and has ended without success.
    pub(super) fn not_ok(
        &mut self,
        cx: &mut Context<'_>,
        result: Result<T, E>,
        verdict: Verdict,
    ) -> Poll<Result<T, CallError<E>>> {
        self.primary.set(None);
        let step = self.ended(not_ok(result, verdict));
        self.after(step, cx)
    }

    /// Deadline, limits, bulkhead.
    fn begin(&mut self) -> Step<T, E> {
        let (core, live) = (self.core, &mut *self.live);
        let now = live.started;
        if core.is_hopeless(now, live.deadline) {
            return refuse(core, core.too_late());
        }
        if core.limited
            && let Err(rejected) = core.pass_limits(self.cx, now, &mut live.held.passes)
        {
            return refuse(core, rejected);
        }
        if let Some(bulkhead) = &core.bulkhead {
            live.held.permit = bulkhead.core().try_enter(now);
            if live.held.permit.is_none() {
                live.phase = Phase::queue();
                return Step::Go;
            }
        }
        live.phase = Phase::Attempt;
        Step::Go
    }

    fn poll_queue(&mut self, cx: &mut Context<'_>) -> Poll<Step<T, E>> {
        let core = self.core;
        let (Phase::Queue(wait), Some(bulkhead)) = (&mut self.live.phase, &core.bulkhead) else {
            return Poll::Ready(Step::Go);
        };
        let entered = ready!(wait.poll(bulkhead.core(), self.cx.priority(), self.live.deadline, cx));
        self.live.phase = Phase::Attempt;
        match entered {
            Ok(parity) => {
                self.live.held.permit = Some(parity);
                if core.is_hopeless(core.tick.read(), self.live.deadline) {
                    return Poll::Ready(refuse(core, core.too_late()));
                }
                Poll::Ready(Step::Go)
            }
            Err(rejected) => Poll::Ready(refuse(core, rejected)),
        }
    }

    /// The backoff is over. Its timer may have come late: a process that was stopped sleeps past its deadline.
    #[cold]
    fn wake(&mut self) -> Step<T, E> {
        let (core, live) = (self.core, &mut *self.live);
        if core.is_hopeless(core.clock.now(), live.deadline) {
            return refuse_attempt(core, core.too_late(), live.first.take(), live.number);
        }
        self.attempt()
    }

    /// The next attempt: what it needs, then its start.
    fn attempt(&mut self) -> Step<T, E> {
        if self.core.gated { self.admit() } else { self.start() }
    }

    /// Starts the next attempt.
    pub(super) fn start(&mut self) -> Step<T, E> {
        let core = self.core;
        self.live.phase = Phase::Attempt;
        self.live.number += 1;
        self.live.rival = Rival::None;
        let start = Start { number: self.live.number, hedge: false, deadline: self.live.deadline };
        match self.live.watch.start(self.op, core, self.cx, start) {
            Ok(operation) => {
                self.live.held.tokens[admit::PRIMARY] = false;
                self.live.unspent = None;
                // What was refused before it began earns nothing.
                if self.live.number == 1
                    && let Some(budget) = core.budget_for(self.cx)
                {
                    self.live.held.began = core.feed(budget, self.cx, self.live.started);
                }
                self.primary.set(Some(operation));
                Step::Go
            }
            Err(rejected) => {
                self.live.number -= 1;
                refuse_attempt(core, *rejected, self.live.first.take(), self.live.number)
            }
        }
    }

    /// Polls what runs.
    fn poll_attempt(&mut self, cx: &mut Context<'_>) -> Poll<Step<T, E>> {
        let core = self.core;
        let Some(primary) = self.primary.as_mut().as_pin_mut() else {
            if self.live.ended.is_some() {
                return self.poll_rival(cx);
            }
            return Poll::Ready(self.attempt());
        };
        match self.live.watch.poll(primary, core, self.classify, cx) {
            Poll::Ready(Ok(value)) => {
                if core.hedge.is_some() {
                    self.observe();
                }
                self.primary.set(None);
                Poll::Ready(Step::Value(value))
            }
            Poll::Ready(Err(ended)) => {
                self.primary.set(None);
                Poll::Ready(self.ended(ended))
            }
            Poll::Pending if core.hedge.is_some() => self.poll_rival(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Tells the hedge's plan how long the success of what runs took, and drops the other one.
    fn observe(&mut self) {
        let core = self.core;
        let now = core.tick.read();
        let started = match (&*self.primary, &self.live.rival) {
            (Some(_), _) => self.live.watch.started(),
            (None, Rival::Runs(rival)) => rival.watch.started(),
            (None, _) => now,
        };
        if let Some(hedge) = &core.hedge {
            hedge.succeeded(now, now.saturating_duration_since(started));
        }
        self.drop_attempts();
    }

    /// The primary has ended without success.
    fn ended(&mut self, ended: Box<Ended<T, E>>) -> Step<T, E> {
        self.live.held.leave_attempt(self.core, admit::PRIMARY);
        if self.core.hedge.is_some() && can_retry(ended.verdict) && self.has_rival() {
            self.live.ended = Some(ended);
            return Step::Go;
        }
        self.failed(*ended)
    }

    /// After a failure: try again, or end the call.
    fn failed(&mut self, ended: Ended<T, E>) -> Step<T, E> {
        self.drop_attempts();
        let core = self.core;
        let budget = core.budget_for(self.cx);
        if let Some(budget) = budget
            && can_retry(ended.verdict)
        {
            budget.attempt(false);
        }
        self.live.held.throttled = matches!(ended.verdict, Verdict::Throttled { .. });
        self.live.held.fail_attempts(core, ended.verdict);
        let timed_out = matches!(&ended.result, Err(CallError::Timeout(_)));
        let outcome = outcome_of(&ended);
        let Some(retry) = &core.retry else { return Step::end(ended.result, outcome) };
        let now = core.clock.now();
        let failed = Failed {
            verdict: ended.verdict,
            timed_out,
            attempt: self.live.number,
            elapsed: now.saturating_duration_since(self.live.started),
        };
        let bounds = Bounds { now, deadline: self.live.deadline, repeatable: core.may_repeat(self.cx) };
        let decision = retry.decide(&failed, &mut self.live.used, bounds, &*core.rng);
        if let Decision::After(delay) = decision
            && let Some(rejected) = core.refused_by_breaker(now.saturating_add(delay))
        {
            return self.refused_next(ended.result, outcome, rejected);
        }
        let before = self.live.paid;
        let decision = pay(decision, budget, &failed, &mut self.live.paid, now);
        match decision {
            Decision::After(delay) => {
                self.live.unspent = budget.map(|_| before);
                core.ear.tell(&Event::Retry { attempt: self.live.number, delay });
                core.stats.retried();
                if self.live.first.is_none()
                    && let Err(error) = ended.result
                {
                    self.live.first = Some(Box::new(error));
                }
                self.primary.set(None);
                if delay.is_zero() {
                    return self.attempt();
                }
                self.live.phase = Phase::Backoff(core.clock.sleep_until(now.saturating_add(delay)));
                Step::Go
            }
            Decision::Stop(stop, hint) => {
                let result = ended.result.map_err(|last| {
                    let plain = self.live.number == 1 && stop == Stop::NotRetryable && hint.is_none();
                    let once = retry.max_attempts() == 1 && hint.is_none();
                    if plain || once {
                        last
                    } else {
                        gave_up(self.live.first.take(), last, self.live.number, stop, hint)
                    }
                });
                Step::end(result, outcome)
            }
        }
    }

    /// The breaker has opened for longer than the backoff would last: there is nothing to wait or to pay for.
    #[cold]
    fn refused_next(
        &mut self,
        result: Result<T, CallError<E>>,
        outcome: Outcome,
        rejected: Rejected,
    ) -> Step<T, E> {
        match result {
            Ok(value) => {
                self.core.keep(&rejected);
                Step::end(Ok(value), outcome)
            }
            Err(error) => {
                let first = self.live.first.take().or_else(|| Some(Box::new(error)));
                refuse_attempt(self.core, rejected, first, self.live.number)
            }
        }
    }

    /// Whether a second attempt runs, or can be started right now because the first failed early.
    fn has_rival(&mut self) -> bool {
        match self.live.rival {
            Rival::None if self.planned().is_some() => self.launch(),
            Rival::Due(_) => self.launch(),
            _ => {}
        }
        matches!(self.live.rival, Rival::Runs(_))
    }

    /// After how long the plan wants a second attempt, if it does and there may be one.
    fn planned(&self) -> Option<Duration> {
        let hedge = self.core.hedge.as_ref().filter(|_| self.core.may_repeat(self.cx))?;
        hedge.delay(self.core.tick.read())
    }

    /// Starts the second attempt, if it may be repeated, the budget pays and the breaker admits it.
    fn launch(&mut self) {
        let core = self.core;
        self.live.rival = Rival::Done;
        let now = core.clock.now();
        if !core.may_repeat(self.cx) || core.is_hopeless(now, self.live.deadline) {
            return;
        }
        // An open breaker is asked first: what it refuses needs no token, no permit and no money.
        if core.refused_by_breaker(now).is_some() || !self.live.held.admit_rival(core, now) {
            return;
        }
        let (budget, before) = (core.budget_for(self.cx), self.live.paid);
        if budget.is_some_and(|budget| !budget.pay(Cost::Hedge, &mut self.live.paid, now)) {
            self.live.held.recall_rival(core);
            return;
        }
        let start = Start { number: self.live.number, hedge: true, deadline: self.live.deadline };
        let mut armed = Armed { core, watch: Watch::idle() };
        if let Ok(operation) = armed.watch.start(self.op, core, self.cx, start) {
            self.live.held.tokens[admit::RIVAL] = false;
            let watch = std::mem::replace(&mut armed.watch, Watch::idle());
            let running = Running { watch, operation };
            let after = if self.primary.is_some() { self.live.watch.started() } else { now };
            core.ear.tell(&Event::Hedged { after: now.saturating_duration_since(after) });
            core.stats.hedged();
            self.live.rival = Rival::Runs(Box::pin(running));
        } else {
            // Half-open, and no probe to spare.
            if let Some(budget) = budget {
                budget.refund(&mut self.live.paid, before);
            }
            self.live.held.recall_rival(core);
        }
    }

    /// The second attempt: due, running, or none.
    fn poll_rival(&mut self, cx: &mut Context<'_>) -> Poll<Step<T, E>> {
        let core = self.core;
        if let Rival::None = self.live.rival {
            let due = |d: Duration| Rival::Due(LazyTimer::at(self.live.watch.started().saturating_add(d)));
            self.live.rival = self.planned().map_or(Rival::Done, due);
        }
        if let Rival::Due(timer) = &mut self.live.rival {
            ready!(timer.poll(&*core.clock, cx));
            self.launch();
        }
        let Rival::Runs(rival) = &mut self.live.rival else { return Poll::Pending };
        let running = rival.as_mut().project();
        let failed = match ready!(running.watch.poll(running.operation, self.core, self.classify, cx)) {
            Ok(value) => {
                self.core.ear.tell(&Event::HedgeWon);
                // The plan learns how long an unhedged call would have taken at least: counted from the primary's
                // start. Were the rival's own time counted, the percentile would fall with every hedge.
                self.observe();
                return Poll::Ready(Step::Value(value));
            }
            Err(ended) => ended.verdict,
        };
        self.live.rival = Rival::Done;
        self.live.held.leave_attempt(self.core, admit::RIVAL);
        self.core.report(self.live.held.epoch, failed);
        match self.live.ended.take() {
            Some(primary) => Poll::Ready(self.failed(*primary)),
            None => Poll::Pending,
        }
    }
}

/// Settles the ticket of a second attempt whose operation panics while it is being made.
struct Armed<'a> {
    core: &'a Core,
    watch: Watch,
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.watch.abandon(self.core);
    }
}

/// Asks the budget for the retry that was decided.
fn pay(
    decision: Decision,
    budget: Option<&Budget>,
    failed: &Failed,
    paid: &mut Paid,
    now: Instant,
) -> Decision {
    let (Decision::After(delay), Some(budget)) = (decision, budget) else { return decision };
    let cost = match failed.verdict {
        Verdict::Throttled { .. } => Cost::RetryThrottled,
        _ if failed.timed_out => Cost::RetryTimeout,
        _ => Cost::Retry,
    };
    if budget.pay(cost, paid, now) { decision } else { Decision::Stop(Stop::Budget, Some(delay)) }
}

fn can_retry(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Fail { retryable: true } | Verdict::Throttled { .. })
}

fn outcome_of<T, E>(ended: &Ended<T, E>) -> Outcome {
    match (&ended.result, ended.verdict) {
        (Err(CallError::Timeout(timeout)), _) => Outcome::Timeout(timeout.kind()),
        (_, Verdict::Ignore) => Outcome::Ignored,
        (_, Verdict::Ok) => Outcome::Success,
        _ => Outcome::Failure,
    }
}

/// A local refusal ends the call; it is no evidence.
#[cold]
fn refuse<T, E>(core: &Core, rejected: Rejected) -> Step<T, E> {
    core.keep(&rejected);
    Step::end(Err(rejected.into()), Outcome::Ignored)
}

/// A refusal of an attempt. A call that has had one is never said not to have been started: its attempts may have had an
/// effect, also those that were answered and not counted as a success.
#[cold]
pub(super) fn refuse_attempt<T, E>(
    core: &Core,
    rejected: Rejected,
    first: Option<Box<CallError<E>>>,
    attempts: u32,
) -> Step<T, E> {
    if attempts == 0 {
        return refuse(core, rejected);
    }
    core.keep(&rejected);
    let stop = if *rejected.why() == Reason::Deadline { Stop::Deadline } else { Stop::NotRetryable };
    let last = CallError::Rejected(rejected);
    Step::end(Err(gave_up(first, last, attempts, stop, None)), Outcome::Failure)
}

#[cold]
fn gave_up<E>(
    first: Option<Box<CallError<E>>>,
    last: CallError<E>,
    attempts: u32,
    stop: Stop,
    retry_after: Option<Duration>,
) -> CallError<E> {
    let first = first.map(|first| *first);
    CallError::GaveUp(Box::new(GaveUp { first, last, attempts, stop, retry_after }))
}

impl Core {
    fn may_repeat(&self, cx: &CallContext) -> bool {
        match self.repeat {
            Repeat::Always => true,
            Repeat::PerCall => cx.is_idempotent(),
            Repeat::Undeclared => false,
        }
    }

    #[cold]
    fn pass_limits(
        &self,
        cx: &CallContext,
        now: Instant,
        passes: &mut [Option<Pass>; LimitSlot::COUNT],
    ) -> Result<(), Rejected> {
        let ask = Ask { cx, now };
        for (limiter, pass) in self.limits.iter().zip(passes) {
            if let Some(limiter) = limiter {
                *pass = Some(limiter.admit(&ask)?);
            }
        }
        Ok(())
    }

    /// What an open breaker will say to an attempt that asks `then`, after it has waited for other things.
    #[cold]
    pub(super) fn refused_by_breaker(&self, then: Instant) -> Option<Rejected> {
        self.breaker.as_ref().and_then(|breaker| breaker.core().refused_at(then))
    }

    /// The refusal of what cannot end in time.
    #[cold]
    pub(super) fn too_late(&self) -> Rejected {
        let since = self.stats.late_since(self.clock.now());
        Rejected::new(self.name.clone(), Reason::Deadline).with_since(Some(since))
    }

    /// Remembers and tells a refusal.
    fn keep(&self, rejected: &Rejected) {
        self.stats.rejected(rejected, self.clock.now());
        self.ear.tell(&Event::Rejected(rejected));
    }
}
