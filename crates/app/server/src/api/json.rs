//! Shapes shared by routes.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_clock::WallTime;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::Code;
use crate::http::Problem;

/// RFC 3339 in UTC with milliseconds.
pub(crate) fn instant(t: WallTime) -> String {
    let at = jiff::Timestamp::from_millisecond(t.unix_millis()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    format!("{at:.3}")
}

/// An answer of JSON.
pub(crate) fn reply(status: StatusCode, body: &Value) -> Response {
    bytes(status, "application/json", body.to_string())
}

/// An answer of any type.
pub(crate) fn bytes(status: StatusCode, kind: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// Reads a body of JSON.
///
/// # Errors
/// 400 naming the place: syntax, types, unknown and missing fields.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|e| Problem::new(Code::BadRequest, e.to_string()))
}

/// The tag in `If-Match`: in quotes, as RFC 9110 has it and `ETag` shows it, or without. A weak one is none that was given
/// out here, so it matches nothing.
pub(crate) fn if_match(headers: &HeaderMap) -> Option<&str> {
    Some(unquoted(headers.get(header::IF_MATCH)?.to_str().unwrap_or("")))
}

/// Whether `tag` is one of those in `If-None-Match`, read as in `If-Match`; a cache may have made a weak one of it.
pub(crate) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let lines = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|known| {
        let known = known.trim();
        unquoted(known.strip_prefix("W/").unwrap_or(known)) == tag
    })
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text)
}

/// The number in `If-Match`.
///
/// # Errors
/// 428 with `missing` when there is no such header, `other` when it has no number.
pub(crate) fn if_match_number(headers: &HeaderMap, missing: &str, other: Problem) -> Result<u64, Problem> {
    let tag = if_match(headers).ok_or_else(|| Problem::new(Code::PreconditionRequired, missing))?;
    tag.parse().ok().filter(|_| tag.bytes().all(|b| b.is_ascii_digit())).ok_or(other)
}

/// A problem for an error of the engine.
pub(crate) fn engine_problem(error: &mainstay_saga::Error) -> Problem {
    use mainstay_saga::ErrorKind;
    let code = match error.kind() {
        ErrorKind::Config => Code::BadDefinition,
        ErrorKind::Conflict => Code::IllegalAction,
        ErrorKind::InputConflict => Code::SagaConflict,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::TooLarge => Code::BodyTooLarge,
        ErrorKind::ApiMisuse => Code::BadRequest,
        ErrorKind::Overloaded => Code::Overloaded,
        ErrorKind::Store => Code::StoreUnavailable,
        _ => Code::Internal,
    };
    let problem = if code == Code::StoreUnavailable || code == Code::Internal {
        // Texts of the store may carry SQL or paths: they belong into the log.
        tracing::error!(error = %chain(error), "a request failed");
        Problem::new(code, format!("outcome: {:?}", error.outcome()))
    } else {
        Problem::new(code, error.to_string())
    };
    match code {
        Code::Overloaded | Code::StoreUnavailable => problem.retry_after(retry_after(error)),
        _ => problem,
    }
}

fn retry_after(error: &mainstay_saga::Error) -> u64 {
    error.retry_after().map_or(1, |d| d.as_secs().max(1))
}

/// A problem for an error of a page of the journal: its cursor may be none.
pub(crate) fn page_problem(error: &mainstay_store::Error) -> Problem {
    match error.kind() {
        mainstay_store::ErrorKind::ApiMisuse => Problem::new(Code::BadQuery, "`cursor` is malformed"),
        _ => store_problem(error),
    }
}

/// A problem for an error of the journal.
pub(crate) fn store_problem(error: &mainstay_store::Error) -> Problem {
    tracing::error!(error = %chain(error), "the journal failed");
    Problem::new(Code::StoreUnavailable, format!("outcome: {:?}", error.outcome())).retry_after(1)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(e) = next {
        text.push_str(": ");
        text.push_str(&e.to_string());
        next = e.source();
    }
    text
}
