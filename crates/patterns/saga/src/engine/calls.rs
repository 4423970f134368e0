//! Making one attempt: a closure or a participant, bounded in time, never believed beyond what is proven.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt;
use mainstay_clock::{Clock, Deadline, Instant, WallTime};
use mainstay_resilience::Verdict as Health;
use mainstay_store::barrier::Op;
use mainstay_store::{BoxFuture, FencingToken};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::drive::Drive;
use crate::definition::{Call, MAX_PAYLOAD, Step, Undo, payload_fault};
use crate::fold::Effect;
use crate::participant::{Kind, Participant, Reply, Request, Verdict as Answer, judge};
use crate::step::{Known, LocalStep, StepCx, StepError, StepFailure, Told, UndoError, UndoFailure};
use crate::wire::{AttemptRef, ItemKind, StepEnded, UndoVerdict, Verdict};

/// Pause before asking again when a participant says "in progress" without saying when.
const ASK_AGAIN: Duration = Duration::from_millis(200);
/// Longest error text on the log.
const MAX_REASON: usize = 4_000;

/// The end of an attempt.
pub(super) struct CallEnd {
    pub(super) at: AttemptRef,
    pub(super) result: CallResult,
}

/// What it came to, with the participant's advice when to come back.
pub(super) enum CallResult {
    /// The participant has seen a larger fencing token.
    Fenced,
    /// Nothing was sent: this node no longer owns the saga.
    Stale,
    Step(Verdict, Option<Duration>),
    /// The verdict of an action after the question what became of it: nobody asks again.
    Known(Verdict),
    /// The participant reported the end by itself: it is on the log already. What that says about its health.
    Reported(Health),
    /// A policy refused the action, with advice when it may let one through: nothing was sent.
    Withheld(String, Option<Duration>),
    Undo(UndoVerdict, Option<Duration>),
    /// The undo will be refused however often it is repeated.
    UndoRefused(String),
    /// A policy refused the undo, with advice when it may let one through: nothing was sent.
    UndoWithheld(String, Option<Duration>),
}

/// Where to ask whether an action happened.
enum Question {
    Local(Arc<dyn LocalStep>, StepCx, Value),
    Remote(Arc<dyn Participant>, Request),
}

impl Question {
    /// The answer, until `until`. None at all is [`Known::Unclear`].
    async fn ask(self, clock: &dyn Clock, until: Instant) -> Known<Value> {
        match self {
            Self::Local(step, cx, input) => {
                let known = bounded(async { step.status(cx, input).await }, clock, until).await;
                known.unwrap_or(Known::Unclear)
            }
            Self::Remote(caller, request) => match ask(&*caller, request, clock, until).await {
                (Answer::Done(answer), _) => match answer["state"].as_str() {
                    Some("done") => Known::Did(answer["output"].clone()),
                    // Only a promise that it never will: a late action would stay.
                    Some("none") if answer["effect"] == "none" => Known::Never,
                    _ => Known::Unclear,
                },
                _ => Known::Unclear,
            },
        }
    }
}

impl Drive {
    pub(super) fn step(&self, at: &AttemptRef) -> (usize, &Step) {
        let definition = &self.registered.definition;
        let i = definition.index(&at.step).expect("invariant: attempts are started from the definition");
        (i, &definition.steps()[i])
    }

    /// What a step acts with; `None` when that is more than one input may have.
    fn input_of(&self, i: usize, generation: u32) -> Option<Value> {
        let definition = &self.registered.definition;
        let given =
            self.state.nodes[i].generations.get(generation as usize - 1).and_then(|g| g.input.clone());
        given.or_else(|| {
            definition.steps()[i].input.render_within(MAX_PAYLOAD, &self.state.input, |name| {
                let node = definition.index(name).map(|j| &self.state.nodes[j])?;
                node.current().output.clone()
            })
        })
    }

    /// What a step acted with, or would have, if it had been sent at all.
    fn input_after(&self, i: usize, generation: u32) -> Value {
        self.input_of(i, generation).unwrap_or(Value::Null)
    }

    /// What an attempt is told. `cancelled`: whether the saga turned back, for what is worth stopping then.
    fn cx(&self, at: &AttemptRef, op: &Op, deadline: Instant, cancelled: watch::Receiver<bool>) -> StepCx {
        StepCx {
            saga: self.uid.as_str().into(),
            step: at.step.as_str().into(),
            idempotency_key: format!("{}/{}/{}", self.uid, at.step, op.text()),
            fence: FencingToken::new(self.epoch),
            attempt: at.attempt,
            deadline: Deadline::at(deadline),
            cancelled,
        }
    }

    fn request(&self, cx: &StepCx, op: Op, url: &str, body: &Value) -> Request {
        let clock = self.inner.runtime.clock();
        let left = cx.deadline.remaining(clock.now()).unwrap_or_default();
        Request {
            url: url.to_owned(),
            body: body.to_string().into_bytes(),
            idempotency_key: cx.idempotency_key.clone(),
            saga: self.uid.to_string(),
            definition: self.registered.definition.name().to_owned(),
            step: cx.step.to_string(),
            op,
            attempt: cx.attempt,
            fencing_token: cx.fence,
            deadline_wall: Some(WallTime::from_unix_millis(self.inner.time.shown()).saturating_add(left)),
            traceparent: self.state.trace.clone(),
            tracestate: self.state.trace_state.clone(),
            kind: Kind::Act,
        }
    }

    /// Makes an attempt of an action.
    pub(super) fn action(&self, at: AttemptRef) -> BoxFuture<'static, CallEnd> {
        let (i, step) = self.step(&at);
        let Some(input) = self.input_of(i, at.generation) else {
            // Nobody was asked, and it will be the same the next time.
            let reason = format!("its input has more than {MAX_PAYLOAD} bytes: hand on references");
            let result = CallResult::Step(Verdict::Rejected { reason, is_final: false }, None);
            return Box::pin(async move { CallEnd { at, result } });
        };
        let clock = Arc::clone(self.inner.runtime.clock());
        let deadline = clock.now().saturating_add(step.timeout);
        let op = Op::Action { generation: at.generation };
        let cx = self.cx(&at, &op, deadline, self.cancelled.subscribe());
        let inner = Arc::clone(&self.inner);
        match &step.action {
            Call::Local => {
                let local = Arc::clone(&self.registered.steps[&step.name]);
                Box::pin(async move {
                    let result = if inner.holds_claims() {
                        run_local(&*local, cx, input, &*clock, deadline).await
                    } else {
                        CallResult::Stale
                    };
                    CallEnd { at, result }
                })
            }
            Call::Http(url) => {
                let request = self.request(&cx, op, url, &input);
                let caller = inner.participant.clone();
                Box::pin(async move {
                    let result = match caller {
                        Some(caller) if inner.holds_claims() => {
                            let (answer, advice) = ask(&*caller, request, &*clock, deadline).await;
                            step_result(answer, advice)
                        }
                        _ => CallResult::Stale,
                    };
                    CallEnd { at, result }
                })
            }
        }
    }

    /// The question what became of an action, if its step can be asked.
    fn question(&self, at: &AttemptRef, deadline: Instant) -> Option<Question> {
        let (i, step) = self.step(at);
        let action = Op::Action { generation: at.generation };
        let cx = self.cx(at, &action, deadline, never());
        if step.local_status {
            let local = Arc::clone(&self.registered.steps[&step.name]);
            return Some(Question::Local(local, cx, self.input_after(i, at.generation)));
        }
        let (url, caller) = (step.status.as_ref()?, self.inner.participant.clone()?);
        let request = Request { kind: Kind::Status, ..self.request(&cx, action, url, &Value::Null) };
        Some(Question::Remote(caller, request))
    }

    /// Before a person is asked what became of an action, its step is. The attempt counts as in flight until then; it has as much
    /// time for the question as for the action. `None`: there is nothing to ask, or nobody.
    pub(super) fn ask_first(&self, end: &StepEnded) -> Option<BoxFuture<'static, CallEnd>> {
        if end.item != Some(ItemKind::UnknownOutcome) {
            return None;
        }
        let (at, otherwise) = (end.at.clone(), end.verdict.clone());
        let clock = Arc::clone(self.inner.runtime.clock());
        let deadline = clock.now().saturating_add(self.step(&at).1.timeout);
        let question = self.question(&at, deadline)?;
        let inner = Arc::clone(&self.inner);
        Some(Box::pin(async move {
            let result = if inner.holds_claims() {
                CallResult::Known(known(question.ask(&*clock, deadline).await, otherwise))
            } else {
                CallResult::Stale
            };
            CallEnd { at, result }
        }))
    }

    /// Makes an attempt of an undo. A `Maybe` that can be asked about is asked about first.
    pub(super) fn undo(&self, at: AttemptRef) -> BoxFuture<'static, CallEnd> {
        let (i, step) = self.step(&at);
        let generation = &self.state.nodes[i].generations[at.generation as usize - 1];
        let told = match (&generation.effect, &generation.output) {
            (Effect::Did, Some(output)) => Told::Did(output.clone()),
            _ => Told::Maybe,
        };
        let input = self.input_after(i, at.generation);
        let clock = Arc::clone(self.inner.runtime.clock());
        let deadline = clock.now().saturating_add(step.undo_timeout);
        let op = Op::Undo { generation: at.generation };
        let cx = self.cx(&at, &op, deadline, never());
        let inner = Arc::clone(&self.inner);
        let question = if told == Told::Maybe { self.question(&at, deadline) } else { None };
        match &step.undo {
            Undo::Call(Call::Http(url)) => {
                let request = self.request(&cx, op, url, &Value::Null);
                let caller = inner.participant.clone();
                Box::pin(async move {
                    let result = match caller {
                        Some(caller) if inner.holds_claims() => {
                            match learn(told, question, &*clock, deadline).await {
                                Some(told) => {
                                    undo_remote(&*caller, request, told, input, &*clock, deadline).await
                                }
                                None => CallResult::Undo(UndoVerdict::Undone, None),
                            }
                        }
                        _ => CallResult::Stale,
                    };
                    CallEnd { at, result }
                })
            }
            Undo::Call(Call::Local) => {
                let local = Arc::clone(&self.registered.steps[&step.name]);
                Box::pin(async move {
                    let result = if inner.holds_claims() {
                        match learn(told, question, &*clock, deadline).await {
                            Some(told) => undo_local(&*local, cx, told, input, &*clock, deadline).await,
                            None => CallResult::Undo(UndoVerdict::Undone, None),
                        }
                    } else {
                        CallResult::Stale
                    };
                    CallEnd { at, result }
                })
            }
            // `next` starts no undo where there is none; nothing to reverse is reversed.
            Undo::None(_) => {
                Box::pin(async move { CallEnd { at, result: CallResult::Undo(UndoVerdict::Undone, None) } })
            }
        }
    }
}

/// An undo, and a question what became of an action, are wanted because the saga turned back: that is no reason to stop.
fn never() -> watch::Receiver<bool> {
    watch::channel(false).1
}

/// Races `work` with its deadline, the work first, and catches its panics.
async fn bounded<T>(
    work: impl Future<Output = T> + Send,
    clock: &dyn Clock,
    deadline: Instant,
) -> Result<T, String> {
    let work = AssertUnwindSafe(work).catch_unwind();
    tokio::pin!(work);
    tokio::select! {
        biased;
        result = &mut work => result.map_err(|panic| format!("the step panicked: {}", panic_text(&*panic))),
        () = clock.sleep_until(deadline) => Err("no answer within the attempt timeout".to_owned()),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

async fn run_local(
    local: &dyn LocalStep,
    cx: StepCx,
    input: Value,
    clock: &dyn Clock,
    deadline: Instant,
) -> CallResult {
    // The call itself may panic, not only its future.
    let verdict = match bounded(async { local.act(cx, input).await }, clock, deadline).await {
        Err(reason) => unknown(reason),
        Ok(Ok(output)) if payload_fault(&output).is_some() => Verdict::Done { output: None },
        Ok(Ok(output)) => Verdict::Done { output: Some(output) },
        Ok(Err(StepError(failure))) => match failure {
            StepFailure::NotSent(reason) => Verdict::NotSent { reason: cut(reason) },
            StepFailure::Rejected { reason, is_final } => Verdict::Rejected { reason: cut(reason), is_final },
            StepFailure::Unknown(reason) => unknown(reason),
            StepFailure::OutputLost => Verdict::Done { output: None },
        },
    };
    CallResult::Step(verdict, None)
}

async fn undo_local(
    local: &dyn LocalStep,
    cx: StepCx,
    told: Told<Value>,
    input: Value,
    clock: &dyn Clock,
    deadline: Instant,
) -> CallResult {
    let verdict = match bounded(async { local.undo(cx, told, input).await }, clock, deadline).await {
        Ok(Ok(())) => UndoVerdict::Undone,
        Ok(Err(UndoError { reason, failure })) => match failure {
            UndoFailure::Failed => UndoVerdict::Failed { reason: cut(reason) },
            UndoFailure::Refused => UndoVerdict::Refused { reason: cut(reason) },
            UndoFailure::RefusedForGood => return CallResult::UndoRefused(cut(reason)),
        },
        Err(reason) => UndoVerdict::Failed { reason: cut(reason) },
    };
    CallResult::Undo(verdict, None)
}

/// Calls a participant and keeps asking while it says "in progress", until the deadline.
async fn ask(
    caller: &dyn Participant,
    mut request: Request,
    clock: &dyn Clock,
    deadline: Instant,
) -> (Answer, Option<Duration>) {
    // A question after an action is answered by who is asked.
    let may_report = request.kind == Kind::Act;
    let mut accepted = false;
    loop {
        let op = request.op.clone();
        let reply = match bounded(caller.call(request.clone(), deadline), clock, deadline).await {
            Ok(reply) => reply,
            Err(reason) => return (Answer::Unknown { reason, retry_after: None }, None),
        };
        if request.kind == Kind::Poll && matches!(&reply, Reply::Answered(a) if a.status == 410) {
            // Gone is the place that was to be asked, whatever became of the work: for an undo it would read as
            // "undone already".
            let reason = "what was accepted is no longer known where it was to be asked for (410)".to_owned();
            return (Answer::Unknown { reason, retry_after: None }, None);
        }
        match judge(&op, &reply) {
            Answer::InProgress { retry_after, location } => {
                accepted = true;
                let wait = retry_after.unwrap_or(ASK_AGAIN).max(Duration::from_millis(10));
                let again = clock.now().saturating_add(wait);
                if again >= deadline {
                    // Until then the participant may report by itself.
                    if may_report {
                        clock.sleep_until(deadline).await;
                    }
                    let reason = "still in progress at the attempt timeout".to_owned();
                    let left = retry_after.map(|_| again.saturating_duration_since(deadline));
                    return (Answer::Unknown { reason, retry_after: None }, left);
                }
                clock.sleep(wait).await;
                if let Some(location) = location {
                    request.url = location;
                    request.kind = Kind::Poll;
                }
            }
            Answer::Unknown { reason, retry_after } => {
                return (Answer::Unknown { reason, retry_after: None }, retry_after);
            }
            // Only that the participant was asked again was not sent: it accepted before, and may be at work.
            Answer::NotSent(reason) | Answer::Withheld { reason, .. } if accepted => {
                return (Answer::Unknown { reason, retry_after: None }, None);
            }
            // The first delivery was accepted and may be at work: "still running" is said so too, and the work may have
            // been done. Only a final no says that it was not.
            Answer::Rejected { reason, is_final: false } | Answer::Refused(reason)
                if accepted && request.kind == Kind::Act =>
            {
                let reason = format!("accepted, and refused when it was sent again: {reason}");
                return (Answer::Unknown { reason, retry_after: None }, None);
            }
            answer => return (answer, None),
        }
    }
}

fn step_result(answer: Answer, advice: Option<Duration>) -> CallResult {
    let verdict = match answer {
        Answer::StaleToken => return CallResult::Fenced,
        Answer::Done(output) if payload_fault(&output).is_some() => Verdict::Done { output: None },
        Answer::Done(output) => Verdict::Done { output: Some(output) },
        Answer::Rejected { reason, is_final } => Verdict::Rejected { reason: cut(reason), is_final },
        Answer::NotSent(reason) => Verdict::NotSent { reason: cut(reason) },
        Answer::Withheld { reason, retry_after } => return CallResult::Withheld(cut(reason), retry_after),
        Answer::ContractBroken(reason) => Verdict::ContractBroken { reason: cut(reason) },
        Answer::Unknown { reason, .. } | Answer::Refused(reason) => unknown(reason),
        Answer::InProgress { .. } => unknown("still in progress".to_owned()),
    };
    CallResult::Step(verdict, advice)
}

/// The verdict of an action after somebody was asked what became of it; `otherwise`: what was known before.
fn known(answer: Known<Value>, otherwise: Verdict) -> Verdict {
    match answer {
        Known::Did(output) if payload_fault(&output).is_some() => Verdict::Done { output: None },
        Known::Did(output) => Verdict::Done { output: Some(output) },
        Known::Never => {
            let reason = match otherwise {
                Verdict::ContractBroken { reason }
                | Verdict::NotSent { reason }
                | Verdict::Rejected { reason, .. }
                | Verdict::Unknown { reason, .. } => reason,
                Verdict::Done { .. } => "its output is lost".to_owned(),
            };
            let reason = cut(format!("{reason}; its status says that it did not happen and never will"));
            Verdict::Rejected { reason, is_final: true }
        }
        Known::Unclear => otherwise,
    }
}

/// What an undo is told after the question what became of the action; `None`: there is nothing to undo. An answer that says nothing
/// leaves `Maybe`, which every undo must accept.
async fn learn(
    told: Told<Value>,
    question: Option<Question>,
    clock: &dyn Clock,
    deadline: Instant,
) -> Option<Told<Value>> {
    let Some(question) = question else { return Some(told) };
    // Half of the time is the undo's own: a status that stays "in progress" must not use it up.
    let left = deadline.saturating_duration_since(clock.now());
    match question.ask(clock, clock.now().saturating_add(left / 2)).await {
        Known::Did(output) => Some(Told::Did(output)),
        Known::Never => None,
        Known::Unclear => Some(told),
    }
}

async fn undo_remote(
    caller: &dyn Participant,
    mut request: Request,
    told: Told<Value>,
    input: Value,
    clock: &dyn Clock,
    deadline: Instant,
) -> CallResult {
    let body = match told {
        Told::Did(output) => json!({"effect": "did", "input": input, "output": output}),
        Told::Maybe => json!({"effect": "maybe", "input": input, "output": null}),
    };
    request.body = body.to_string().into_bytes();
    let (answer, advice) = ask(caller, request, clock, deadline).await;
    let verdict = match answer {
        Answer::StaleToken => return CallResult::Fenced,
        Answer::Done(_) => UndoVerdict::Undone,
        // "Not found", a redirect: no answer to an undo, and the same the next time.
        Answer::ContractBroken(reason) => return CallResult::UndoRefused(cut(reason)),
        Answer::Withheld { reason, retry_after } => {
            return CallResult::UndoWithheld(cut(reason), retry_after);
        }
        Answer::Refused(reason) | Answer::Rejected { reason, .. } => {
            UndoVerdict::Refused { reason: cut(reason) }
        }
        Answer::NotSent(reason) | Answer::Unknown { reason, .. } => {
            UndoVerdict::Failed { reason: cut(reason) }
        }
        Answer::InProgress { .. } => UndoVerdict::Failed { reason: "still in progress".to_owned() },
    };
    CallResult::Undo(verdict, advice)
}

fn unknown(reason: String) -> Verdict {
    Verdict::Unknown { reason: cut(reason), interrupted: false }
}

pub(super) fn cut(reason: String) -> String {
    crate::next::cut(reason, MAX_REASON)
}

/// The call, unless its participant reports the end of it before.
pub(super) fn until_reported(
    at: &AttemptRef,
    call: BoxFuture<'static, CallEnd>,
    mut stopped: watch::Receiver<Option<Health>>,
) -> BoxFuture<'static, CallEnd> {
    let at = at.clone();
    Box::pin(async move {
        // A sender that is gone reports nothing.
        let reported = async { stopped.wait_for(Option::is_some).await.ok().and_then(|health| *health) };
        tokio::select! {
            biased;
            end = call => end,
            Some(health) = reported => CallEnd { at, result: CallResult::Reported(health) },
        }
    })
}
