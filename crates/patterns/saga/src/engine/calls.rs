//! Making one attempt: a closure or a participant, bounded in time, never believed beyond what is proven.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt;
use mainstay_clock::{Clock, Deadline, Instant, WallTime};
use mainstay_store::barrier::Op;
use mainstay_store::{BoxFuture, FencingToken};
use serde_json::{Value, json};

use super::drive::Drive;
use crate::definition::{Call, Step, Undo, payload_fault};
use crate::fold::Effect;
use crate::participant::{Kind, Participant, Request, Verdict as Answer, judge};
use crate::step::{LocalStep, StepCx, StepError, StepFailure, Told, UndoError};
use crate::wire::{AttemptRef, UndoVerdict, Verdict};

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
    /// The participant has seen a larger fencing token: this node no longer owns the saga.
    Stale,
    Step(Verdict, Option<Duration>),
    /// The participant reported the end by itself: it is on the log already.
    Reported,
    Undo(UndoVerdict, Option<Duration>),
}

impl Drive {
    fn step(&self, at: &AttemptRef) -> (usize, &Step) {
        let definition = &self.registered.definition;
        let i = definition.index(&at.step).expect("invariant: attempts are started from the definition");
        (i, &definition.steps()[i])
    }

    fn input_of(&self, i: usize, generation: u32) -> Value {
        let definition = &self.registered.definition;
        let given =
            self.state.nodes[i].generations.get(generation as usize - 1).and_then(|g| g.input.clone());
        given.unwrap_or_else(|| {
            definition.steps()[i].input.render(&self.state.input, |name| {
                let node = definition.index(name).map(|j| &self.state.nodes[j])?;
                node.current().output.clone()
            })
        })
    }

    fn cx(&self, at: &AttemptRef, op: &Op, deadline: Instant) -> StepCx {
        StepCx {
            saga: self.uid.as_str().into(),
            step: at.step.as_str().into(),
            idempotency_key: format!("{}/{}/{}", self.uid, at.step, op.text()),
            fence: FencingToken::new(self.epoch),
            attempt: at.attempt,
            deadline: Deadline::at(deadline),
            cancelled: self.cancelled.subscribe(),
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
        let input = self.input_of(i, at.generation);
        let clock = Arc::clone(self.inner.runtime.clock());
        let deadline = clock.now().saturating_add(step.timeout);
        let op = Op::Action { generation: at.generation };
        let cx = self.cx(&at, &op, deadline);
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

    /// Makes an attempt of an undo. A `Maybe` with a status address is asked about first.
    pub(super) fn undo(&self, at: AttemptRef) -> BoxFuture<'static, CallEnd> {
        let (i, step) = self.step(&at);
        let generation = &self.state.nodes[i].generations[at.generation as usize - 1];
        let told = match (&generation.effect, &generation.output) {
            (Effect::Did, Some(output)) => Told::Did(output.clone()),
            _ => Told::Maybe,
        };
        let input = self.input_of(i, at.generation);
        let clock = Arc::clone(self.inner.runtime.clock());
        let deadline = clock.now().saturating_add(step.undo_timeout);
        let op = Op::Undo { generation: at.generation };
        let cx = self.cx(&at, &op, deadline);
        let inner = Arc::clone(&self.inner);
        match &step.undo {
            Undo::Call(Call::Http(url)) => {
                let request = self.request(&cx, op, url, &Value::Null);
                let status = step.status.as_ref().filter(|_| told == Told::Maybe).map(|status| {
                    let action = Op::Action { generation: at.generation };
                    let cx = self.cx(&at, &action, deadline);
                    Request { kind: Kind::Status, ..self.request(&cx, action, status, &Value::Null) }
                });
                let caller = inner.participant.clone();
                Box::pin(async move {
                    let result = match caller {
                        Some(caller) if inner.holds_claims() => {
                            undo_remote(&*caller, request, status, told, input, &*clock, deadline).await
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
                        undo_local(&*local, cx, told, input, &*clock, deadline).await
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
        Ok(Err(UndoError { reason, refused: true })) => UndoVerdict::Refused { reason: cut(reason) },
        Ok(Err(UndoError { reason, .. })) | Err(reason) => UndoVerdict::Failed { reason: cut(reason) },
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
    loop {
        let op = request.op.clone();
        let reply = match bounded(caller.call(request.clone(), deadline), clock, deadline).await {
            Ok(reply) => reply,
            Err(reason) => return (Answer::Unknown { reason, retry_after: None }, None),
        };
        match judge(&op, &reply) {
            Answer::InProgress { retry_after, location } => {
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
            answer => return (answer, None),
        }
    }
}

fn step_result(answer: Answer, advice: Option<Duration>) -> CallResult {
    let verdict = match answer {
        Answer::StaleToken => return CallResult::Stale,
        Answer::Done(output) if payload_fault(&output).is_some() => Verdict::Done { output: None },
        Answer::Done(output) => Verdict::Done { output: Some(output) },
        Answer::Rejected { reason, is_final } => Verdict::Rejected { reason: cut(reason), is_final },
        Answer::NotSent(reason) => Verdict::NotSent { reason: cut(reason) },
        Answer::ContractBroken(reason) => Verdict::ContractBroken { reason: cut(reason) },
        Answer::Unknown { reason, .. } | Answer::Refused(reason) => unknown(reason),
        Answer::InProgress { .. } => unknown("still in progress".to_owned()),
    };
    CallResult::Step(verdict, advice)
}

async fn undo_remote(
    caller: &dyn Participant,
    mut request: Request,
    status: Option<Request>,
    mut told: Told<Value>,
    input: Value,
    clock: &dyn Clock,
    deadline: Instant,
) -> CallResult {
    if let Some(status) = status {
        // Half of the time is the undo's own: a status that stays "in progress" must not use it up.
        let left = deadline.saturating_duration_since(clock.now());
        let half = clock.now().saturating_add(left / 2);
        // An answer that says nothing leaves `Maybe`, which every undo must accept.
        if let (Answer::Done(answer), _) = ask(caller, status, clock, half).await {
            match answer["state"].as_str() {
                Some("done") => told = Told::Did(answer["output"].clone()),
                // Only a promise that it never will makes the undo needless: a late action would stay.
                Some("none") if answer["effect"] == "none" => {
                    return CallResult::Undo(UndoVerdict::Undone, None);
                }
                _ => {}
            }
        }
    }
    let body = match told {
        Told::Did(output) => json!({"effect": "did", "input": input, "output": output}),
        Told::Maybe => json!({"effect": "maybe", "input": input, "output": null}),
    };
    request.body = body.to_string().into_bytes();
    let (answer, advice) = ask(caller, request, clock, deadline).await;
    let verdict = match answer {
        Answer::StaleToken => return CallResult::Stale,
        Answer::Done(_) => UndoVerdict::Undone,
        Answer::Refused(reason) | Answer::Rejected { reason, .. } | Answer::ContractBroken(reason) => {
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
