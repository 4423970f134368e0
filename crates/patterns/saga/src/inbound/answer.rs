//! What a participant answers. Pure.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use mainstay_store::barrier::{Performed, StoredReply, Work};
use serde::Serialize;
use serde_json::{Value, json};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Work that is done, with its output.
///
/// Output that cannot be written as JSON (a map with keys that are no text) becomes `null`: the effect is
/// certain, and an engine that is told nothing would have to guess.
#[must_use]
pub fn done<T: Serialize>(output: &T) -> Work {
    let output = serde_json::to_value(output).unwrap_or(Value::Null);
    Work::Done { status: 200, body: output.to_string().into_bytes() }
}

/// A business "no". Of an action it is final, which the answer says: nothing was done under this key, and
/// nothing will be.
#[must_use]
pub fn no(reason: &str) -> Work {
    Work::No { status: 409, body: problem(409, reason, true).to_string().into_bytes() }
}

/// The answer for what a call came to.
///
/// ```
/// use mainstay_saga::inbound::answer;
/// use mainstay_store::barrier::Performed;
///
/// assert_eq!(answer(Performed::Late).status(), 409);
/// assert_eq!(answer(Performed::NullUndo).status(), 200);
/// ```
#[must_use]
pub fn answer(performed: Performed) -> Response<Bytes> {
    match performed {
        Performed::Duplicate(reply) | Performed::Ran(reply) | Performed::Refused(reply) => stored(reply),
        Performed::Late => refuse(StatusCode::CONFLICT, "the step was undone before its action came", true),
        Performed::NullUndo => reply(StatusCode::OK, JSON, "{}".into()),
        Performed::StaleToken { seen } => {
            let why = format!("a newer owner of the saga came with fencing token {seen}");
            refuse(StatusCode::PRECONDITION_FAILED, &why, false)
        }
    }
}

fn stored(stored: StoredReply) -> Response<Bytes> {
    let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = if stored.rejected || !status.is_success() { PROBLEM } else { JSON };
    reply(status, kind, stored.body.into())
}

/// A problem. `none`: no attempt under this key had an effect.
pub(super) fn refuse(status: StatusCode, why: &str, none: bool) -> Response<Bytes> {
    reply(status, PROBLEM, problem(status.as_u16(), why, none).to_string().into())
}

fn problem(status: u16, why: &str, none: bool) -> Value {
    let mut body = json!({"title": why, "status": status});
    if none {
        body["effect"] = "none".into();
    }
    body
}

fn reply(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
