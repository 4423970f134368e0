//! `POST /v1/sagas/{uid}/actions`: a person moves a saga, from exactly the state that they saw.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use http::HeaderMap;
use mainstay_saga::ErrorKind;
use mainstay_saga::engine::{ActionRequest, RunAgain, StartOptions};
use mainstay_saga::wire::{Fact, Operation, decode};
use mainstay_store::journal::{Hash, Loaded, Uid};
use serde_json::Value;

use crate::api::json::{engine_problem, if_match_number, parse};
use crate::api::operation::Body;
use crate::api::start::{accepted, check_id, idempotency_key, replay};
use crate::api::{App, sagas};
use crate::error::Code;
use crate::http::{Caller, Problem, Trace};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/sagas/{uid}/actions", post(act))
}

/// The version in `If-Match`.
fn seen(headers: &HeaderMap) -> Result<u64, Problem> {
    let other = Problem::new(Code::PreconditionFailed, "`If-Match` is no version of this saga");
    if_match_number(headers, "send the ETag of the saga as `If-Match`", other)
}

async fn act(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<Trace>,
    Path(uid): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let canonical: Value = parse(&body)?;
    let body: Body = parse(&body)?;
    body.check(&app.redact)?;
    if let Some(id) = &body.id {
        check_id(id)?;
    }
    let key = idempotency_key(&headers)?;
    let expected = seen(&headers)?;
    let scope = key.map(|key| format!("act/{}/{uid}/{key}", caller.name));
    let _running = scope.as_deref().map(|scope| app.running.take(scope)).transpose()?;
    let before = sagas::look_for(&app, &caller, &uid).await?;
    // With a key the action may be on the log already: then the engine answers.
    if scope.is_none() && before.summary.next_seq != expected {
        return Err(stale());
    }
    let operation = body.operation();
    if let Some(scope) = &scope {
        same_action(&before, &message_of(scope), operation.as_ref(), &body.reason)?;
    }
    match operation {
        Some(operation) => {
            let seen = (scope, expected);
            let loaded = operate(&app, caller.name, &uid, seen, body.reason, operation).await?;
            Ok(sagas::answer(&app, &loaded))
        }
        None if before.summary.next_seq != expected => Err(stale()),
        None => {
            sagas::whole(&before)?;
            let request = Hash::of(format!("POST /v1/sagas/{uid}/actions {canonical}").as_bytes());
            run_again(&app, caller, &trace, &uid, scope.map(|s| (s, request)), body).await
        }
    }
}

/// Refuses a key under which something else was done. Of a refused action the log keeps no more than the refusal, which
/// is what a repetition gets.
fn same_action(
    saga: &Loaded,
    message: &str,
    operation: Option<&Operation>,
    reason: &str,
) -> Result<(), Problem> {
    let taken = saga.records.iter().find_map(|r| match decode(r) {
        Ok(Fact::Action(action)) if action.message == message => Some((action.operation, action.reason)),
        Ok(Fact::Closed(closed)) if closed.message == message => Some((Operation::Abandon, closed.reason)),
        _ => None,
    });
    match taken {
        Some((taken, said)) if Some(&taken) != operation || said != reason => {
            Err(Problem::new(Code::KeyReused, "the key is known with another action"))
        }
        _ => Ok(()),
    }
}

/// Acts on a saga, from exactly the state that the person saw, and returns it as it is then. A scope makes a
/// repetition harmless.
///
/// # Errors
/// 412 when somebody was faster, 409 when the state does not allow it, 404.
pub(crate) async fn operate(
    app: &App,
    who: String,
    uid: &str,
    (scope, expected): (Option<String>, u64),
    reason: String,
    operation: Operation,
) -> Result<Loaded, Problem> {
    // Ids of messages are bounded; a scope may be longer.
    let message = match scope {
        Some(scope) => message_of(&scope),
        None => format!("act/{}", uuid::Uuid::now_v7()),
    };
    let mut request = ActionRequest::new(who, reason, operation).expecting(expected);
    request.message = Some(message.clone());
    match app.engine.attention().act(&Uid::new(uid), request).await {
        Ok(()) => sagas::look(app, uid).await,
        Err(e) if e.kind() == ErrorKind::Conflict => {
            let after = sagas::look(app, uid).await?;
            // A refusal that stands behind the version that was seen: somebody was faster.
            let at = after.records.iter().rev().find_map(|r| match decode(r) {
                Ok(Fact::ActionRefused(refused)) if refused.message == message => Some(r.seq),
                _ => None,
            });
            let faster = at.unwrap_or(after.summary.next_seq) != expected;
            Err(if faster { stale() } else { engine_problem(&e) })
        }
        Err(e) => Err(engine_problem(&e)),
    }
}

/// The message under which an action of a scope is on the log.
pub(crate) fn message_of(scope: &str) -> String {
    format!("act/{}", Hash::of(scope.as_bytes()))
}

async fn run_again(
    app: &App,
    caller: Caller,
    trace: &Trace,
    uid: &str,
    request: Option<(String, Hash)>,
    body: Body,
) -> Result<Response, Problem> {
    if let Some((scope, hash)) = &request
        && let Some(answer) = replay(app, scope, *hash).await
    {
        return answer;
    }
    let mut again = RunAgain::new(caller.name, body.reason);
    (again.from, again.input) = (body.from, body.input);
    again.start = StartOptions::default();
    again.start.id = body.id;
    again.start.request = request;
    again.start.trace = Some(trace.onward());
    again.start.trace_state = trace.state().map(str::to_owned);
    let handle = app.engine.attention().run_again(&Uid::new(uid), again).await;
    let handle = handle.map_err(|e| engine_problem(&e))?;
    Ok(accepted(handle.uid().as_str(), handle.id()))
}

fn stale() -> Problem {
    Problem::new(Code::PreconditionFailed, "the saga moved on since it was looked at")
}
