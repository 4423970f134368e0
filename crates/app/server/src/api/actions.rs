//! `POST /v1/sagas/{uid}/actions`: a person moves a saga, from exactly the state that they saw.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use http::{HeaderMap, header};
use mainstay_saga::ErrorKind;
use mainstay_saga::engine::ActionRequest;
use mainstay_saga::wire::{Fact, Operation, decode};
use mainstay_store::journal::{Loaded, Uid};
use serde::Deserialize;
use serde_json::Value;

use crate::api::json::{engine_problem, parse};
use crate::api::start::idempotency_key;
use crate::api::{App, sagas};
use crate::error::Code;
use crate::http::{Caller, Problem};

/// Longest reason: it stands in the audit for ever.
const MAX_REASON: usize = 4_096;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/sagas/{uid}/actions", post(act))
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    Abandon,
    Cancel,
    Compensate,
    Pause,
    Resolve,
    Resume,
    Retry,
    Skip,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Resolved {
    Done,
    NotDone,
    Undone,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    action: Name,
    #[serde(default)]
    step: Option<String>,
    #[serde(default)]
    input: Option<Value>,
    #[serde(default, rename = "as")]
    resolved: Option<Resolved>,
    #[serde(default)]
    output: Option<Value>,
    /// Why; `evidence` is the same field under the name that fits a resolve.
    #[serde(alias = "evidence")]
    reason: String,
}

impl Body {
    fn operation(self) -> Result<Operation, Problem> {
        let bad = |why: &str| Problem::new(Code::BadRequest, why);
        let on_step = matches!(self.action, Name::Resolve | Name::Retry | Name::Skip);
        if on_step != self.step.is_some() {
            return Err(bad("`step` is for resolve, retry and skip, and needed there"));
        }
        if self.input.is_some() && !matches!(self.action, Name::Retry) {
            return Err(bad("`input` is for retry"));
        }
        if self.resolved.is_some() != matches!(self.action, Name::Resolve) {
            return Err(bad("`as` is for resolve, and needed there: done, not_done or undone"));
        }
        if self.output.is_some() && !matches!(self.resolved, Some(Resolved::Done)) {
            return Err(bad("`output` is for resolve as done"));
        }
        let step = self.step.unwrap_or_default();
        Ok(match (self.action, self.resolved) {
            (Name::Abandon, _) => Operation::Abandon,
            (Name::Cancel, _) => Operation::Cancel,
            (Name::Compensate, _) => Operation::Compensate,
            (Name::Pause, _) => Operation::Pause,
            (Name::Resume, _) => Operation::Resume,
            (Name::Retry, _) => Operation::Retry { step, input: self.input },
            (Name::Skip, _) => Operation::Skip { step },
            (Name::Resolve, Some(Resolved::NotDone)) => Operation::ResolveNotDone { step },
            (Name::Resolve, Some(Resolved::Undone)) => Operation::ResolveUndone { step },
            (Name::Resolve, _) => Operation::ResolveDone { step, output: self.output.unwrap_or(Value::Null) },
        })
    }
}

/// The version in `If-Match`.
fn seen(headers: &HeaderMap) -> Result<u64, Problem> {
    let missing = || Problem::new(Code::PreconditionRequired, "send the ETag of the saga as `If-Match`");
    let value = headers.get(header::IF_MATCH).ok_or_else(missing)?;
    let text = value.to_str().unwrap_or("").trim();
    let number = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).and_then(|t| t.parse().ok());
    number.ok_or_else(|| Problem::new(Code::PreconditionFailed, "`If-Match` is no version of this saga"))
}

async fn act(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(uid): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let body: Body = parse(&body)?;
    let key = idempotency_key(&headers)?;
    let reason = body.reason.clone();
    let wanted = Wanted {
        operation: body.operation()?,
        reason,
        expected: seen(&headers)?,
        message: key.map(|key| format!("act/{}/{key}", caller.name)),
    };
    Ok(sagas::answer(&app, &perform(&app, caller.name, &uid, wanted).await?))
}

/// What a person wants of a saga.
pub(crate) struct Wanted {
    pub(crate) operation: Operation,
    pub(crate) reason: String,
    /// The version that the person saw.
    pub(crate) expected: u64,
    /// Makes a repetition harmless.
    pub(crate) message: Option<String>,
}

/// Acts on a saga, from exactly the state that the person saw, and returns it as it is then.
///
/// # Errors
/// 412 when somebody was faster, 409 when the state does not allow it, 404, 400 without a reason.
pub(crate) async fn perform(app: &App, who: String, uid: &str, wanted: Wanted) -> Result<Loaded, Problem> {
    if wanted.reason.trim().is_empty() || wanted.reason.len() > MAX_REASON {
        return Err(Problem::new(Code::BadRequest, "`reason` has 1 to 4096 bytes"));
    }
    let keyed = wanted.message.is_some();
    let message = wanted.message.unwrap_or_else(|| format!("act/{}", uuid::Uuid::now_v7()));
    let expected = wanted.expected;
    let before = sagas::load(app, uid).await?;
    // With a key the action may be on the log already: then the engine answers.
    if !keyed && before.summary.next_seq != expected {
        return Err(stale());
    }
    let mut request = ActionRequest::new(who, wanted.reason, wanted.operation).expecting(expected);
    request.message = Some(message.clone());
    let uid_of = Uid::new(uid);
    match app.engine.attention().act(&uid_of, request).await {
        Ok(()) => sagas::load(app, uid).await,
        Err(e) if e.kind() == ErrorKind::Conflict => {
            let after = sagas::load(app, uid).await?;
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

fn stale() -> Problem {
    Problem::new(Code::PreconditionFailed, "the saga moved on since it was looked at")
}
