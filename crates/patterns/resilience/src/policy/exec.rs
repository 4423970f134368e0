//! The order of a policy, as one future without a name to box: deadline, limits, bulkhead, retry with budget,
//! hedge, then attempts ([`Running`]).
//!
//! The future holds plain marks (a parity, a ticket's word) instead of borrowing guards, so it can own its policy;
//! its drop gives back whatever the marks say is held.

mod admit;

use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use mainstay_clock::{Deadline, Instant, Sleep};

use self::admit::Line;
use super::running::{Ended, Operation, Running, Start, Watch};
use super::seam::{Ask, LimitSlot, Pass, Sample};
use super::{Core, Repeat};
use crate::budget::{Budget, Cost, Paid};
use crate::bulkhead::Wait;
use crate::retry::{Bounds, Decision, Failed, Used};
use crate::timeout::LazyTimer;
use crate::{CallContext, CallError, Event, GaveUp, Outcome, Reason, Rejected, Stop, Verdict};

/// Where a call stands.
enum Stage {
    Start,
    Queue(Wait),
    Line(Line),
    Attempt,
    Backoff(Sleep),
    Over,
}

/// What a call holds, to be given back exactly once.
#[derive(Default)]
struct Held {
    passes: [Option<Pass>; LimitSlot::COUNT],
    permit: Option<u8>,
    /// Permits of the attempts: the primary's, its rival's.
    attempts: [Option<u8>; 2],
    /// In which epoch of the send rate the last attempt was sent.
    epoch: u32,
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

pin_project_lite::pin_project! {
    /// A whole guarded call. Future, value and error of the operation are parameters of their own instead of
    /// being looked up in `O`: whether the call is `Send` must not depend on a lifetime in `O`.
    pub(crate) struct Run<P, C, O, K, F, T, E>
    where
        P: Deref<Target = Core>,
        C: Deref<Target = CallContext>,
    {
        core: P,
        cx: C,
        op: O,
        classify: K,
        stage: Stage,
        held: Held,
        started: Instant,
        deadline: Deadline,
        number: u32,
        used: Used,
        paid: Paid,
        first: Option<Box<CallError<E>>>,
        // The primary's end, while its rival still runs.
        ended: Option<Box<Ended<T, E>>>,
        rival: Rival<F>,
        // Of the primary.
        watch: Watch,
        #[pin]
        primary: Option<F>,
    }

    impl<P, C, O, K, F, T, E> PinnedDrop for Run<P, C, O, K, F, T, E>
    where
        P: Deref<Target = Core>,
        C: Deref<Target = CallContext>,
    {
        fn drop(this: Pin<&mut Self>) {
            this.clean_up();
        }
    }
}

impl<P, C, O, K, F, T, E> Run<P, C, O, K, F, T, E>
where
    P: Deref<Target = Core>,
    C: Deref<Target = CallContext>,
{
    #[inline(always)]
    pub(crate) fn new(core: P, cx: C, op: O, classify: K) -> Self {
        Self {
            core,
            cx,
            op,
            classify,
            stage: Stage::Start,
            held: Held::default(),
            started: Instant::ZERO,
            deadline: Deadline::NONE,
            number: 0,
            used: Used::default(),
            paid: Paid::default(),
            first: None,
            ended: None,
            rival: Rival::None,
            watch: Watch::idle(),
            primary: None,
        }
    }

    /// A call that was dropped, or whose operation panicked, before it ended.
    fn clean_up(mut self: Pin<&mut Self>) {
        match self.stage {
            Stage::Over => return,
            // A limiter that panicked may leave passes of outer ones.
            Stage::Start if self.held.is_empty() => return,
            _ => {}
        }
        let panicked = self.as_mut().drop_attempts();
        let outcome = if panicked { Outcome::Failure } else { Outcome::Abandoned };
        self.give_back(outcome);
    }

    /// Drops what runs; its tickets are abandoned. True if one of them ended by a panic.
    fn drop_attempts(self: Pin<&mut Self>) -> bool {
        let mut this = self.project();
        let core: &Core = this.core;
        let mut panicked = this.watch.abandon(core);
        this.primary.set(None);
        if let Rival::Runs(mut rival) = std::mem::replace(this.rival, Rival::None) {
            panicked |= rival.as_mut().project().watch.abandon(core);
        }
        panicked
    }

    /// Gives back permit, passes and budget, and tells how the call ended.
    #[inline(always)]
    fn give_back(self: Pin<&mut Self>, outcome: Outcome) {
        let this = self.project();
        let core: &Core = this.core;
        if core.gated {
            this.held.end_attempts(core, this.stage, outcome);
        }
        if let (Stage::Queue(wait), Some(bulkhead)) = (&mut *this.stage, &core.bulkhead)
            && let Some(parity) = wait.cancel(bulkhead.core())
        {
            this.held.permit = Some(parity);
        }
        *this.stage = Stage::Over;
        if let (Some(parity), Some(bulkhead)) = (this.held.permit.take(), &core.bulkhead) {
            bulkhead.core().leave(parity);
        }
        if let Some(budget) = core.budget_for(this.cx) {
            let began = std::mem::take(&mut this.held.began);
            if outcome == Outcome::Success {
                budget.attempt(true);
            }
            budget.end(std::mem::take(this.paid), began, outcome == Outcome::Success);
        }
        if core.limited {
            give_back_passes(core, this.held, *this.started, outcome);
        }
        if core.ear.is_open() {
            let elapsed = core.tick.read().saturating_duration_since(*this.started);
            core.ear.tell(&Event::Call { outcome, elapsed, attempts: *this.number });
        }
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
enum Step<T, E> {
    Go,
    Return(Box<(Result<T, CallError<E>>, Outcome)>),
    Value(T),
}

impl<T, E> Step<T, E> {
    fn end(result: Result<T, CallError<E>>, outcome: Outcome) -> Self {
        Self::Return(Box::new((result, outcome)))
    }
}

impl<P, C, O, K, F, T, E> Future for Run<P, C, O, K, F, T, E>
where
    P: Deref<Target = Core>,
    C: Deref<Target = CallContext>,
    O: Operation<Value = T, Error = E, Future = F>,
    F: Future<Output = Result<T, E>>,
    K: Fn(&Result<T, E>) -> Verdict,
{
    type Output = Result<T, CallError<E>>;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let step = match self.as_mut().project().stage {
                Stage::Start => self.as_mut().begin(),
                Stage::Attempt => ready!(self.as_mut().poll_attempt(cx)),
                Stage::Queue(_) => ready!(self.as_mut().poll_queue(cx)),
                Stage::Line(_) => ready!(self.as_mut().poll_line(cx)),
                Stage::Backoff(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    self.as_mut().attempt()
                }
                Stage::Over => return Poll::Pending,
            };
            match step {
                Step::Go => {}
                Step::Value(value) => {
                    self.give_back(Outcome::Success);
                    return Poll::Ready(Ok(value));
                }
                Step::Return(end) => {
                    let (result, outcome) = *end;
                    self.give_back(outcome);
                    return Poll::Ready(result);
                }
            }
        }
    }
}

impl<P, C, O, K, F, T, E> Run<P, C, O, K, F, T, E>
where
    P: Deref<Target = Core>,
    C: Deref<Target = CallContext>,
    O: Operation<Value = T, Error = E, Future = F>,
    F: Future<Output = Result<T, E>>,
    K: Fn(&Result<T, E>) -> Verdict,
{
    /// Deadline, limits, bulkhead.
    #[inline(always)]
    fn begin(self: Pin<&mut Self>) -> Step<T, E> {
        let this = self.project();
        let core: &Core = this.core;
        let now = core.tick.read();
        *this.started = now;
        *this.deadline = match core.deadline {
            Some(d) => this.cx.deadline().child(now, d),
            None => this.cx.deadline(),
        };
        if core.is_hopeless(now, *this.deadline) {
            return refuse(core, core.too_late());
        }
        if core.limited
            && let Err(rejected) = core.pass_limits(this.cx, now, &mut this.held.passes)
        {
            return refuse(core, rejected);
        }
        if let Some(bulkhead) = &core.bulkhead {
            this.held.permit = bulkhead.core().try_enter(now);
            if this.held.permit.is_none() {
                *this.stage = Stage::Queue(Wait::default());
                return Step::Go;
            }
        }
        *this.stage = Stage::Attempt;
        Step::Go
    }

    fn poll_queue(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<T, E>> {
        let this = self.project();
        let core: &Core = this.core;
        let (Stage::Queue(wait), Some(bulkhead)) = (&mut *this.stage, &core.bulkhead) else {
            return Poll::Ready(Step::Go);
        };
        let entered = ready!(wait.poll(bulkhead.core(), this.cx.priority(), *this.deadline, cx));
        *this.stage = Stage::Attempt;
        match entered {
            Ok(parity) => {
                this.held.permit = Some(parity);
                if core.is_hopeless(core.tick.read(), *this.deadline) {
                    return Poll::Ready(refuse(core, core.too_late()));
                }
                Poll::Ready(Step::Go)
            }
            Err(rejected) => Poll::Ready(refuse(core, rejected)),
        }
    }

    /// The next attempt: what it needs, then its start.
    #[inline(always)]
    fn attempt(self: Pin<&mut Self>) -> Step<T, E> {
        if self.core.gated { self.admit() } else { self.start() }
    }

    /// Starts the next attempt.
    #[inline(always)]
    fn start(self: Pin<&mut Self>) -> Step<T, E> {
        let mut this = self.project();
        let core: &Core = this.core;
        *this.stage = Stage::Attempt;
        *this.number += 1;
        if *this.number == 1
            && let Some(budget) = core.budget_for(this.cx)
            && !this.cx.is_fed(budget)
        {
            budget.begin(*this.started);
            this.held.began = true;
        }
        *this.rival = Rival::None;
        let start = Start { number: *this.number, hedge: false, deadline: *this.deadline };
        match this.watch.start(this.op, core, this.cx, start) {
            Ok(operation) => {
                this.primary.set(Some(operation));
                Step::Go
            }
            Err(rejected) => {
                *this.number -= 1;
                refuse_attempt(core, *rejected, this.first.take(), *this.number)
            }
        }
    }

    /// Polls what runs.
    #[inline(always)]
    fn poll_attempt(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<T, E>> {
        let mut this = self.as_mut().project();
        let core: &Core = this.core;
        let Some(primary) = this.primary.as_mut().as_pin_mut() else {
            if this.ended.is_some() {
                return self.poll_rival(cx);
            }
            return Poll::Ready(self.attempt());
        };
        match this.watch.poll(primary, core, this.classify, cx) {
            Poll::Ready(Ok(value)) => {
                if core.hedge.is_some() {
                    self.as_mut().observe();
                }
                self.project().primary.set(None);
                Poll::Ready(Step::Value(value))
            }
            Poll::Ready(Err(ended)) => {
                this.primary.set(None);
                Poll::Ready(self.ended(ended))
            }
            Poll::Pending if core.hedge.is_some() => self.poll_rival(cx),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Tells the hedge's plan how long the success of what runs took, and drops the other one.
    #[cold]
    fn observe(mut self: Pin<&mut Self>) {
        let core: &Core = &self.core;
        let now = core.tick.read();
        let started = match (&self.primary, &self.rival) {
            (Some(_), _) => self.watch.started(),
            (None, Rival::Runs(rival)) => rival.watch.started(),
            (None, _) => now,
        };
        if let Some(hedge) = &core.hedge {
            hedge.succeeded(now, now.saturating_duration_since(started));
        }
        self.as_mut().drop_attempts();
    }

    /// The primary has ended without success.
    #[cold]
    fn ended(mut self: Pin<&mut Self>, ended: Box<Ended<T, E>>) -> Step<T, E> {
        let this = self.as_mut().project();
        this.held.leave_attempt(this.core, admit::PRIMARY);
        if self.core.hedge.is_some() && can_retry(ended.verdict) && self.as_mut().has_rival() {
            *self.project().ended = Some(ended);
            return Step::Go;
        }
        self.failed(*ended)
    }

    /// After a failure: try again, or end the call.
    #[cold]
    fn failed(mut self: Pin<&mut Self>, ended: Ended<T, E>) -> Step<T, E> {
        self.as_mut().drop_attempts();
        let mut this = self.as_mut().project();
        let core: &Core = this.core;
        let budget = core.budget_for(this.cx);
        if let Some(budget) = budget
            && can_retry(ended.verdict)
        {
            budget.attempt(false);
        }
        this.held.throttled = matches!(ended.verdict, Verdict::Throttled { .. });
        this.held.fail_attempts(core, ended.verdict);
        let timed_out = matches!(&ended.result, Err(CallError::Timeout(_)));
        let outcome = outcome_of(&ended);
        let Some(retry) = &core.retry else { return Step::end(ended.result, outcome) };
        let now = core.clock.now();
        let failed = Failed {
            verdict: ended.verdict,
            timed_out,
            attempt: *this.number,
            elapsed: now.saturating_duration_since(*this.started),
        };
        let bounds = Bounds { now, deadline: *this.deadline, repeatable: core.may_repeat(this.cx) };
        let decision = retry.decide(&failed, this.used, bounds, &*core.rng);
        let decision = pay(decision, budget, &failed, this.paid, now);
        match decision {
            Decision::After(delay) => {
                core.ear.tell(&Event::Retry { attempt: *this.number, delay });
                core.stats.retried();
                if this.first.is_none()
                    && let Err(error) = ended.result
                {
                    *this.first = Some(Box::new(error));
                }
                this.primary.set(None);
                if delay.is_zero() {
                    return self.attempt();
                }
                *this.stage = Stage::Backoff(core.clock.sleep_until(now.saturating_add(delay)));
                Step::Go
            }
            Decision::Stop(stop, hint) => {
                let result = ended.result.map_err(|last| {
                    let plain = *this.number == 1 && stop == Stop::NotRetryable && hint.is_none();
                    let once = retry.max_attempts() == 1 && hint.is_none();
                    if plain || once {
                        last
                    } else {
                        gave_up(this.first.take(), last, *this.number, stop, hint)
                    }
                });
                Step::end(result, outcome)
            }
        }
    }

    /// Whether a second attempt runs, or can be started right now because the first failed early.
    fn has_rival(mut self: Pin<&mut Self>) -> bool {
        if matches!(self.rival, Rival::None | Rival::Due(_)) {
            self.as_mut().launch();
        }
        matches!(self.rival, Rival::Runs(_))
    }

    /// Starts the second attempt, if it may be repeated, the budget pays and the breaker admits it.
    fn launch(self: Pin<&mut Self>) {
        let this = self.project();
        let core: &Core = this.core;
        *this.rival = Rival::Done;
        let now = core.clock.now();
        if !core.may_repeat(this.cx) || core.is_hopeless(now, *this.deadline) {
            return;
        }
        if !this.held.admit_rival(core, now) {
            return;
        }
        if core.budget_for(this.cx).is_some_and(|budget| !budget.pay(Cost::Hedge, this.paid, now)) {
            this.held.recall_rival(core);
            return;
        }
        let start = Start { number: *this.number, hedge: true, deadline: *this.deadline };
        let mut armed = Armed { core, watch: Watch::idle() };
        if let Ok(operation) = armed.watch.start(this.op, core, this.cx, start) {
            let watch = std::mem::replace(&mut armed.watch, Watch::idle());
            let running = Running { watch, operation };
            let after = if this.primary.is_some() { this.watch.started() } else { now };
            core.ear.tell(&Event::Hedged { after: now.saturating_duration_since(after) });
            core.stats.hedged();
            *this.rival = Rival::Runs(Box::pin(running));
        } else {
            this.held.recall_rival(core);
        }
    }

    /// The second attempt: due, running, or none.
    fn poll_rival(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Step<T, E>> {
        let this = self.as_mut().project();
        let core: &Core = this.core;
        if let (Rival::None, Some(hedge)) = (&*this.rival, &core.hedge) {
            let delay = if core.may_repeat(this.cx) { hedge.delay(core.tick.read()) } else { None };
            let due = |d: Duration| Rival::Due(LazyTimer::at(this.watch.started().saturating_add(d)));
            *this.rival = delay.map_or(Rival::Done, due);
        }
        if let Rival::Due(timer) = this.rival {
            ready!(timer.poll(&*core.clock, cx));
            self.as_mut().launch();
        }
        let this = self.as_mut().project();
        let Rival::Runs(rival) = this.rival else { return Poll::Pending };
        let running = rival.as_mut().project();
        let failed = match ready!(running.watch.poll(running.operation, this.core, this.classify, cx)) {
            Ok(value) => {
                this.core.ear.tell(&Event::HedgeWon);
                // The plan learns how long an unhedged call would have taken at least: counted from the primary's
                // start. Were the rival's own time counted, the percentile would fall with every hedge.
                self.observe();
                return Poll::Ready(Step::Value(value));
            }
            Err(ended) => ended.verdict,
        };
        *this.rival = Rival::Done;
        this.held.leave_attempt(this.core, admit::RIVAL);
        this.core.report(this.held.epoch, failed);
        match this.ended.take() {
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

/// A refusal of an attempt: after a failure, that failure is worth keeping.
#[cold]
fn refuse_attempt<T, E>(
    core: &Core,
    rejected: Rejected,
    first: Option<Box<CallError<E>>>,
    attempts: u32,
) -> Step<T, E> {
    if first.is_none() {
        return refuse(core, rejected);
    }
    core.keep(&rejected);
    let last = CallError::Rejected(rejected);
    Step::end(Err(gave_up(first, last, attempts, Stop::NotRetryable, None)), Outcome::Failure)
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
    /// Whether nothing that starts now can end in time.
    #[inline]
    fn is_hopeless(&self, now: Instant, deadline: Deadline) -> bool {
        let least = self.retry.as_ref().map_or(Duration::ZERO, |retry| retry.min_attempt_time());
        deadline.is_some() && now.saturating_add(least) >= deadline.instant()
    }

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

    /// The refusal of what cannot end in time.
    #[cold]
    fn too_late(&self) -> Rejected {
        let since = self.stats.late_since(self.clock.now());
        Rejected::new(Arc::clone(&self.name), Reason::Deadline).with_since(Some(since))
    }

    /// Remembers and tells a refusal.
    fn keep(&self, rejected: &Rejected) {
        self.stats.rejected(rejected, self.clock.now());
        self.ear.tell(&Event::Rejected(rejected));
    }
}
