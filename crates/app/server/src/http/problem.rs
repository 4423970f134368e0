//! RFC 9457 problems: one shape for everything that goes wrong.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::error::Code;
use crate::http::Trace;

/// One field of a request that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    /// JSON pointer.
    pub(crate) pointer: String,
    /// Why.
    pub(crate) reason: String,
}

/// An answer that says what is wrong. Rendered by the gate, which knows the trace.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    code: Code,
    detail: String,
    retry_after: Option<u64>,
    allow: Option<String>,
    faults: Vec<Fault>,
}

/// Longest detail: enough for a person, too short to echo a payload.
const MAX_DETAIL: usize = 2_000;

impl Problem {
    /// A problem of this code.
    pub(crate) fn new(code: Code, detail: impl Into<String>) -> Self {
        let mut detail: String = detail.into();
        if detail.len() > MAX_DETAIL {
            let end = (0..=MAX_DETAIL).rev().find(|i| detail.is_char_boundary(*i)).unwrap_or(0);
            detail.truncate(end);
        }
        Self { code, detail, retry_after: None, allow: None, faults: Vec::new() }
    }

    /// When to try again, in seconds.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// The fields that are wrong.
    pub(crate) fn faults(mut self, faults: Vec<Fault>) -> Self {
        self.faults = faults;
        self
    }

    /// The code.
    pub(crate) fn code(&self) -> Code {
        self.code
    }

    /// What happened.
    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// The status it is answered with.
    pub(crate) fn status(&self) -> StatusCode {
        let status = self.code.status().and_then(|s| StatusCode::from_u16(s).ok());
        status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Seconds until another try makes sense.
    pub(crate) fn wait(&self) -> Option<u64> {
        self.retry_after
    }

    /// A problem for an answer that was made without one (by the router).
    pub(crate) fn of_status(status: StatusCode, allow: Option<String>) -> Self {
        match status {
            StatusCode::METHOD_NOT_ALLOWED => {
                let mut problem = Self::new(Code::MethodNotAllowed, "this address does not take the method");
                problem.allow = allow;
                problem
            }
            StatusCode::NOT_FOUND => Self::new(Code::NotFound, "nothing has this address"),
            StatusCode::PAYLOAD_TOO_LARGE => Self::new(Code::BodyTooLarge, "the body is over the limit"),
            status if status.is_server_error() => Self::new(Code::Internal, "see the log for the trace id"),
            _ => Self::new(Code::BadRequest, "the request is malformed"),
        }
    }

    /// The answer.
    pub(crate) fn render(&self, instance: &str, trace: &Trace) -> Response {
        let status = self.status();
        let mut body = json!({
            "type": format!("/problems/{}", self.code.name()),
            "title": self.code.title(),
            "status": status.as_u16(),
            "detail": self.detail,
            "instance": instance,
            "code": self.code.name(),
            "trace_id": trace.id(),
        });
        if let Some(seconds) = self.retry_after {
            body["retry_after"] = seconds.into();
        }
        if !self.faults.is_empty() {
            let faults = self.faults.iter();
            body["errors"] = faults.map(|f| json!({"pointer": f.pointer, "reason": f.reason})).collect();
        }
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(allow) = self.allow.as_ref().and_then(|a| HeaderValue::from_str(a).ok()) {
            headers.insert(header::ALLOW, allow);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"mainstay\""));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status();
        response.extensions_mut().insert(self);
        response
    }
}
