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
/// 400 naming the place: syntax, types, unknown and missing fields, integers that would become others, what is no object.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    // The fields of an object would be read from a list in their order, too.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::new(Code::BadRequest, "the body is a list; send an object"));
    }
    let parsed = serde_json::from_slice(body).map_err(|e| Problem::new(Code::BadRequest, e.to_string()))?;
    match beyond_64_bits(body) {
        None => Ok(parsed),
        Some(number) => {
            let shown = String::from_utf8_lossy(&number[..number.len().min(40)]);
            let why =
                format!("the integer {shown} has more than 64 bits and would be rounded: send it as text");
            Err(Problem::new(Code::BadRequest, why))
        }
    }
}

/// The first integer of a JSON text that no 64 bits hold. The parser makes a float of it: what a participant is told, and
/// what two bodies of one key are compared by, would be another number.
fn beyond_64_bits(text: &[u8]) -> Option<&[u8]> {
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        match rest[0] {
            b'"' => at += end_of_string(rest),
            b'-' | b'0'..=b'9' => {
                let digit = |b: &u8| matches!(b, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let number = &rest[..rest.iter().take_while(|b| digit(b)).count()];
                let integer = !number.iter().any(|b| matches!(b, b'.' | b'e' | b'E'));
                let held = || {
                    let text = std::str::from_utf8(number).unwrap_or_default();
                    text.parse::<i64>().is_ok() || text.parse::<u64>().is_ok()
                };
                if integer && !held() {
                    return Some(number);
                }
                at += number.len();
            }
            _ => at += 1,
        }
    }
    None
}

/// How long the string is that begins here.
fn end_of_string(text: &[u8]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
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
    } else if code == Code::BodyTooLarge {
        // Only the store knows what was too large; these texts name sizes, and nothing of it.
        Problem::new(code, chain(error))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A participant was told another number than the client had sent, and two bodies of one key were the same.
    #[test]
    fn if_c04_an_integer_that_would_be_rounded_is_refused() {
        let refused = |text: &str| parse::<Value>(text.as_bytes()).unwrap_err().detail().to_owned();
        for text in [
            "18446744073709551616",
            "{\"a\": [1, -9223372036854775809]}",
            "{\"\\\\\": 100000000000000000000000000000}",
        ] {
            assert!(refused(text).contains("would be rounded: send it as text"), "{text}");
        }
        for text in [
            "{\"a\": [18446744073709551615, -9223372036854775808, -0, 0]}",
            "{\"18446744073709551616\": \"\\\"18446744073709551616\"}",
            "{\"a\": [1e30, 1.8446744073709551616, 18446744073709551616.0]}",
        ] {
            assert!(parse::<Value>(text.as_bytes()).is_ok(), "{text}");
        }
        assert!(refused("{\"a\": 18446744073709551616").contains("EOF"), "what is no JSON is said first");
        assert!(refused(" [1]").contains("send an object"));
    }
}
