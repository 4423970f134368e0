//! Shapes shared by routes.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
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
