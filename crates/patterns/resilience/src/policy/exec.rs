//! A whole guarded call as one future without a name to box.
//!
//! A call that can go straight through does: everything it holds stays in registers until its operation has
//! answered, and what comes back is given back from there. Only a call that has to wait, or ends otherwise than
//! with a success, writes down what it holds ([`Live`]) and goes on as a [`Machine`]. Marks that were written and
//! are read again at once, in other widths than they were written, cost more than all policies together.

use std::future::Future;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};

use mainstay_clock::{Deadline, Instant};

use super::Core;
use super::attempt::Head;
use super::machine::{Live, Machine, Phase};
use super::running::{Operation, Watch};
use crate::breaker::{self, Raw};
use crate::budget::{Budget, Paid};
use crate::{CallContext, CallError, Outcome, TimeoutKind, Verdict};

/// Where a call stands. What must be dropped is taken out first ([`Stage::leave`]): dropping a whole stage does nothing,
/// so that the end of a call that went straight through has nothing to ask about.
#[allow(clippy::large_enum_variant, reason = "a box would be an allocation for every call that has to wait")]
enum Stage<F, T, E> {
    /// Not polled yet: it has done nothing and holds nothing.
    New,
    Live(ManuallyDrop<Live<F, T, E>>),
    /// Over; the result lies here from the function that came to it until its caller, inlined, takes it. What is handed on
    /// by reference is kept in memory on every path, also on the straight one.
    Done(ManuallyDrop<Option<Result<T, CallError<E>>>>),
    Over,
}

impl<F, T, E> Stage<F, T, E> {
    /// Over; what the call held, to be cleaned up or dropped.
    fn leave(&mut self) -> Option<Live<F, T, E>> {
        match std::mem::replace(self, Self::Over) {
            Self::Live(live) => Some(ManuallyDrop::into_inner(live)),
            _ => None,
        }
    }
}

pin_project_lite::pin_project! {
    /// A whole guarded call. Future, value and error of the operation are parameters of their own instead of
    /// being looked up in `O`: whether the call is `Send` must not depend on a lifetime in `O`.
    ///
    /// It holds plain marks (a parity, a ticket's word) instead of borrowing guards, so it can own its policy; its
    /// drop gives back whatever the marks say is held.
    pub(crate) struct Run<P, C, O, K, F, T, E>
    where
        P: Deref<Target = Core>,
        C: Deref<Target = CallContext>,
    {
        core: P,
        cx: C,
        op: O,
        classify: K,
        stage: Stage<F, T, E>,
        #[pin]
        primary: Option<F>,
    }

    impl<P, C, O, K, F, T, E> PinnedDrop for Run<P, C, O, K, F, T, E>
    where
        P: Deref<Target = Core>,
        C: Deref<Target = CallContext>,
    {
        fn drop(this: Pin<&mut Self>) {
            if let Stage::Live(_) = this.stage {
                this.clean_up();
            }
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
        Self { core, cx, op, classify, stage: Stage::New, primary: None }
    }

    /// A call that was dropped, or whose operation panicked, before it ended.
    #[cold]
    fn clean_up(self: Pin<&mut Self>) {
        let this = self.project();
        if let Some(mut live) = this.stage.leave() {
            let (core, cx): (&Core, &CallContext) = (this.core, this.cx);
            let (op, classify, live, primary) = (this.op, &*this.classify, &mut live, this.primary);
            Machine { core, cx, op, classify, live, primary }.clean_up();
        }
    }

    /// What goes on where the straight way ended.
    fn machine(self: Pin<&mut Self>) -> Option<Machine<'_, O, K, F, T, E>> {
        let this = self.project();
        let Stage::Live(live) = this.stage else { return None };
        let (core, cx): (&Core, &CallContext) = (this.core, this.cx);
        Some(Machine { core, cx, op: this.op, classify: this.classify, live, primary: this.primary })
    }
}

/// How far a poll came: small, so that it is handed up in registers where a result would go through memory.
enum Went<T> {
    /// To the end, with a success.
    Value(T),
    /// To the end; the result lies in [`Stage::Done`].
    Done,
    /// It has to wait.
    Pending,
}

impl<T> Went<T> {
    #[inline(always)]
    fn of(over: bool) -> Self {
        if over { Self::Done } else { Self::Pending }
    }
}

/// What a call could not get past.
#[derive(Clone, Copy)]
enum Bar {
    Breaker,
    Queue,
    Start,
}

/// What a call that goes straight through holds while its operation is polled.
///
/// It is copied from and to registers, never handed on by reference: what is must live in memory.
#[derive(Clone, Copy)]
pub(super) struct Marks {
    pub(super) started: Instant,
    pub(super) deadline: Deadline,
    pub(super) permit: Option<u8>,
    pub(super) began: bool,
    ticket: Raw,
}

/// Writes the marks down when the operation panics, so that the drop of the call finds them.
struct Parking<'a, F, T, E> {
    stage: &'a mut Stage<F, T, E>,
    marks: Marks,
    polling: bool,
}

impl<F, T, E> Drop for Parking<'_, F, T, E> {
    #[inline(always)]
    fn drop(&mut self) {
        let Marks { started, deadline, permit, began, ticket } = self.marks;
        park(self.stage, started, deadline, permit, began, ticket.word, ticket.stamp, self.polling);
    }
}

/// Writes down a call in its first attempt.
#[cold]
#[inline(never)]
#[allow(clippy::too_many_arguments, reason = "one register each; together they would have to be in memory")]
fn park<F, T, E>(
    stage: &mut Stage<F, T, E>,
    started: Instant,
    deadline: Deadline,
    permit: Option<u8>,
    began: bool,
    word: u64,
    stamp: u64,
    polling: bool,
) {
    let ticket = Raw { word, stamp };
    let marks = Marks { started, deadline, permit, began, ticket };
    let live = Live::first(Phase::Attempt, marks, Watch::running(ticket, started, polling));
    *stage = Stage::Live(ManuallyDrop::new(live));
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
        let went = match self.stage {
            Stage::New if self.core.bare => self.as_mut().bare(cx),
            Stage::New => self.as_mut().straight(cx),
            _ => Went::of(self.as_mut().resume(cx)),
        };
        match went {
            Went::Value(value) => Poll::Ready(Ok(value)),
            Went::Done => self.result(),
            Went::Pending => Poll::Pending,
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
    /// Deadline and one attempt of a policy of which a call holds nothing and that nobody hears.
    #[inline(always)]
    fn bare(mut self: Pin<&mut Self>, waker: &mut Context<'_>) -> Went<T> {
        let mut this = self.as_mut().project();
        let (core, cx): (&Core, &CallContext) = (this.core, this.cx);
        let started = core.tick.read();
        let deadline = core.deadline_of(cx, started);
        if core.is_hopeless(started, deadline) {
            return Went::of(self.barred(waker, Bar::Start, started, deadline, None));
        }
        // A panic leaves nothing to give back.
        *this.stage = Stage::Over;
        let (until, _) = core.attempt_until(started, deadline);
        let head = Head { number: 1, hedge: false, deadline: Deadline::at(until) };
        this.primary.set(Some(this.op.start(head, core, cx)));
        let Some(operation) = this.primary.as_mut().as_pin_mut() else { return Went::Pending };
        let Poll::Ready(result) = operation.poll(waker) else {
            park(this.stage, started, deadline, None, false, Raw::NONE.word, Raw::NONE.stamp, false);
            return Went::of(self.wait(waker));
        };
        match ((this.classify)(&result), result) {
            (Verdict::Ok, Ok(value)) => {
                this.primary.set(None);
                Went::Value(value)
            }
            (verdict, result) => {
                park(this.stage, started, deadline, None, false, Raw::NONE.word, Raw::NONE.stamp, false);
                Went::of(self.ended(waker, result, verdict))
            }
        }
    }

    /// Deadline, bulkhead, breaker, one attempt, all given back: as long as nothing is in the way. Not inlined: a
    /// [`bare`](Self::bare) call would save and restore the registers that this needs.
    #[inline(never)]
    fn straight(mut self: Pin<&mut Self>, waker: &mut Context<'_>) -> Went<T> {
        let mut this = self.as_mut().project();
        let (core, cx): (&Core, &CallContext) = (this.core, this.cx);
        let started = core.tick.read();
        let deadline = core.deadline_of(cx, started);
        if core.limited || core.gated || core.is_hopeless(started, deadline) {
            return Went::of(self.barred(waker, Bar::Start, started, deadline, None));
        }
        let mut permit = None;
        if let Some(bulkhead) = &core.bulkhead {
            permit = bulkhead.core().try_enter(started);
            if permit.is_none() {
                return Went::of(self.barred(waker, Bar::Queue, started, deadline, None));
            }
        }
        let mut ticket = Raw::NONE;
        if let Some(breaker) = &core.breaker {
            match breaker.core().admit_closed() {
                Some(raw) => ticket = raw,
                None => return Went::of(self.barred(waker, Bar::Breaker, started, deadline, permit)),
            }
        }
        let budget = core.budget_for(cx);
        let began = budget.is_some_and(|budget| core.feed(budget, cx, started));
        // Nothing has waited since the call began, so the attempt begins at the same tick.
        let marks = Marks { started, deadline, permit, began, ticket };
        let mut parking = Parking { stage: this.stage, marks, polling: true };
        let (until, _) = core.attempt_until(started, deadline);
        let head = Head { number: 1, hedge: false, deadline: Deadline::at(until) };
        this.primary.set(Some(this.op.start(head, core, cx)));
        let Some(operation) = this.primary.as_mut().as_pin_mut() else { return Went::Pending };
        let Poll::Ready(result) = operation.poll(waker) else {
            std::mem::forget(parking);
            park(this.stage, started, deadline, permit, began, ticket.word, ticket.stamp, false);
            return Went::of(self.wait(waker));
        };
        let verdict = (this.classify)(&result);
        (parking.polling, parking.marks.ticket.word) = (false, Raw::NONE.word);
        if let Some(breaker) = &core.breaker {
            breaker::finish(breaker.core(), ticket, breaker::end_of(verdict));
        }
        match (result, verdict) {
            (Ok(value), Verdict::Ok) => {
                if core.hedge.is_some() {
                    core.observe(started);
                }
                this.primary.set(None);
                std::mem::forget(parking);
                *this.stage = Stage::Over;
                core.give_back(permit, budget, Paid::default(), began, Outcome::Success);
                core.tell_end(Outcome::Success, started, 1);
                Went::Value(value)
            }
            (result, verdict) => {
                drop(parking);
                Went::of(self.ended(waker, result, verdict))
            }
        }
    }

    /// The result that [`rest`](Self::rest) put down.
    #[inline(always)]
    fn result(self: Pin<&mut Self>) -> Poll<Result<T, CallError<E>>> {
        match self.project().stage {
            Stage::Done(result) => result.take().map_or(Poll::Pending, Poll::Ready),
            _ => Poll::Pending,
        }
    }

    /// Something is in the way before the operation can be started. As all that follow, true if the call is over.
    #[inline(never)]
    fn barred(
        mut self: Pin<&mut Self>,
        waker: &mut Context<'_>,
        bar: Bar,
        started: Instant,
        deadline: Deadline,
        permit: Option<u8>,
    ) -> bool {
        let marks = Marks { started, deadline, permit, began: false, ticket: Raw::NONE };
        let phase = match bar {
            Bar::Start => Phase::Start,
            Bar::Queue => Phase::queue(),
            Bar::Breaker => Phase::Attempt,
        };
        let mut live = Live::first(phase, marks, Watch::idle());
        live.number = 0;
        *self.as_mut().project().stage = Stage::Live(ManuallyDrop::new(live));
        self.resume(waker)
    }

    /// Goes on from what was written down.
    #[inline(never)]
    fn resume(self: Pin<&mut Self>, waker: &mut Context<'_>) -> bool {
        self.rest(|machine| machine.run(waker))
    }

    /// The operation was pending at its first poll.
    #[inline(never)]
    fn wait(self: Pin<&mut Self>, waker: &mut Context<'_>) -> bool {
        self.rest(|machine| machine.wait(waker))
    }

    /// The operation ended at its first poll, but not with a success.
    #[cold]
    #[inline(never)]
    fn ended(self: Pin<&mut Self>, waker: &mut Context<'_>, result: Result<T, E>, verdict: Verdict) -> bool {
        self.rest(|machine| machine.not_ok(waker, result, verdict))
    }

    /// Goes on with the machine; if that comes to the end, lets go of what the call held and puts its result down.
    fn rest(
        mut self: Pin<&mut Self>,
        go_on: impl FnOnce(&mut Machine<'_, O, K, F, T, E>) -> Poll<Result<T, CallError<E>>>,
    ) -> bool {
        let Some(mut machine) = self.as_mut().machine() else { return false };
        let Poll::Ready(result) = go_on(&mut machine) else { return false };
        let stage = self.project().stage;
        drop(stage.leave());
        *stage = Stage::Done(ManuallyDrop::new(Some(result)));
        true
    }
}

impl Core {
    /// By when a call that begins now must have ended.
    #[inline(always)]
    pub(super) fn deadline_of(&self, cx: &CallContext, now: Instant) -> Deadline {
        cx.deadline().min(Deadline::at(after(now, self.spans.deadline)))
    }

    /// By when an attempt that begins now must have ended, and what it is called if it has not.
    #[inline(always)]
    pub(super) fn attempt_until(&self, now: Instant, deadline: Deadline) -> (Instant, TimeoutKind) {
        let own = after(now, self.spans.attempt);
        if own < deadline.instant() {
            (own, TimeoutKind::Attempt)
        } else {
            (deadline.instant(), TimeoutKind::Deadline)
        }
    }

    /// Whether nothing that starts now can end in time.
    #[inline(always)]
    pub(super) fn is_hopeless(&self, now: Instant, deadline: Deadline) -> bool {
        deadline.is_some() && after(now, self.spans.least) >= deadline.instant()
    }

    /// Counts a first attempt, unless a layer above has.
    #[inline(always)]
    pub(super) fn feed(&self, budget: &Budget, cx: &CallContext, now: Instant) -> bool {
        let feeds = !cx.is_fed(budget);
        if feeds {
            budget.begin(now);
        }
        feeds
    }

    /// Gives back permit and budget.
    #[inline(always)]
    pub(super) fn give_back(
        &self,
        permit: Option<u8>,
        budget: Option<&Budget>,
        paid: Paid,
        began: bool,
        outcome: Outcome,
    ) {
        if let (Some(parity), Some(bulkhead)) = (permit, &self.bulkhead) {
            bulkhead.core().leave(parity);
        }
        if let Some(budget) = budget.filter(|budget| !budget.is_indifferent()) {
            let success = outcome == Outcome::Success;
            if success {
                budget.attempt(true);
            }
            budget.end(paid, began, success);
        }
    }

    /// Tells the hedge's plan of a success at the first poll.
    #[cold]
    fn observe(&self, started: Instant) {
        if let Some(hedge) = &self.hedge {
            let now = self.tick.read();
            hedge.succeeded(now, now.saturating_duration_since(started));
        }
    }

    /// Tells how a call ended.
    #[inline(always)]
    pub(super) fn tell_end(&self, outcome: Outcome, started: Instant, attempts: u32) {
        if self.ear.is_open() {
            let elapsed = self.tick.read().saturating_duration_since(started);
            self.ear.tell(&crate::Event::Call { outcome, elapsed, attempts });
        }
    }
}

/// `span` nanoseconds after `now`; [`NEVER`](super::NEVER) after any instant is the far future.
#[inline(always)]
fn after(now: Instant, span: u64) -> Instant {
    Instant::from_nanos(now.as_nanos().saturating_add(span))
}
