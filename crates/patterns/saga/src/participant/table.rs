//! The reply table: from a reply to its meaning. Pure.

use std::time::Duration;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, LOCATION, RETRY_AFTER};
use mainstay_store::barrier::Op;
use serde_json::Value;

use super::{Attempt, Reply, Verdict};
use crate::definition::{MAX_DEPTH, MAX_PAYLOAD, is_too_deep};

/// Longest wish of a participant that is honored: an hour; more is a mistake or an attack.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3_600);
/// Longest text taken over from a reply.
const MAX_TEXT: usize = 500;

/// What `reply` to a request for `op` means.
///
/// ```
/// use http::HeaderMap;
/// use mainstay_saga::participant::{Attempt, Reply, Verdict, judge};
/// use mainstay_store::barrier::Op;
///
/// let action = Op::Action { generation: 1 };
/// let reply = |status| Reply::Answered(Attempt { status, headers: HeaderMap::new(), body: b"{}".to_vec() });
/// assert!(matches!(judge(&action, &reply(200)), Verdict::Done(_)));
/// assert!(matches!(judge(&action, &reply(409)), Verdict::Rejected { is_final: false, .. }));
/// assert!(matches!(judge(&action, &reply(500)), Verdict::Unknown { .. }));
/// assert!(matches!(judge(&action, &reply(302)), Verdict::ContractBroken(_)));
/// ```
#[must_use]
pub fn judge(op: &Op, reply: &Reply) -> Verdict {
    match reply {
        Reply::NotSent(reason) => Verdict::NotSent(reason.clone()),
        Reply::Unknown(reason) => Verdict::Unknown { reason: reason.clone(), retry_after: None },
        Reply::Answered(attempt) => answered(op, attempt),
        Reply::Withheld { reason, retry_after } => {
            Verdict::Withheld { reason: reason.clone(), retry_after: *retry_after }
        }
    }
}

fn answered(op: &Op, attempt: &Attempt) -> Verdict {
    let is_undo = matches!(op, Op::Undo { .. });
    let retry_after = retry_after(&attempt.headers);
    match attempt.status {
        202 | 425 => Verdict::InProgress { retry_after, location: location(&attempt.headers) },
        200..=299 => output(&attempt.body, is_undo),
        409 if retry_after.is_some() => Verdict::InProgress { retry_after, location: None },
        409 | 422 => {
            let (reason, is_final) = problem(attempt);
            if is_undo { Verdict::Refused(reason) } else { Verdict::Rejected { reason, is_final } }
        }
        410 if is_undo => Verdict::Done(Value::Null),
        412 => Verdict::StaleToken,
        429 | 500..=599 => Verdict::Unknown { reason: describe(attempt), retry_after },
        _ => Verdict::ContractBroken(describe(attempt)),
    }
}

fn output(body: &[u8], is_undo: bool) -> Verdict {
    // Nobody reads what an undo says.
    if is_undo || body.is_empty() {
        return Verdict::Done(Value::Null);
    }
    if body.len() > MAX_PAYLOAD {
        return Verdict::ContractBroken(format!(
            "the output has {} bytes; at most {MAX_PAYLOAD} are allowed",
            body.len()
        ));
    }
    match serde_json::from_slice(body) {
        Ok(output) if is_too_deep(&output) => {
            Verdict::ContractBroken(format!("the output is nested deeper than {MAX_DEPTH} levels"))
        }
        Ok(output) => Verdict::Done(output),
        Err(e) => Verdict::ContractBroken(format!("the output is no JSON: {e}")),
    }
}

/// The reason of a refusal, and whether the participant says that no attempt had an effect.
fn problem(attempt: &Attempt) -> (String, bool) {
    let is_problem = attempt
        .headers
        .get(CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .is_some_and(|v| v.starts_with("application/problem+json"));
    let body: Value = serde_json::from_slice(&attempt.body).unwrap_or(Value::Null);
    let text = |name: &str| body[name].as_str().map(|s| cut(s).to_owned());
    let reason = text("detail").or_else(|| text("title")).unwrap_or_else(|| describe(attempt));
    (reason, is_problem && body["effect"] == "none")
}

fn describe(attempt: &Attempt) -> String {
    let text = String::from_utf8_lossy(&attempt.body);
    let text = cut(text.trim());
    if text.is_empty() {
        format!("HTTP {}", attempt.status)
    } else {
        format!("HTTP {}: {text}", attempt.status)
    }
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn location(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(LOCATION)?.to_str().ok()?;
    (text.len() <= 2_048).then(|| text.to_owned())
}

/// `Retry-After` in seconds, bounded. A date needs a clock: it is turned into seconds where the reply is
/// received, so one that is still here means "at once".
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?;
    let seconds: u64 = text.trim().parse().unwrap_or(0);
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}
