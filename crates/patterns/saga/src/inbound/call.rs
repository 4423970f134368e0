//! A request, understood. Pure.

use std::time::{Duration, UNIX_EPOCH};

use http::HeaderMap;
use mainstay_clock::WallTime;
use mainstay_store::FencingToken;
use mainstay_store::barrier::Op;
use serde_json::Value;

use crate::step::Told;

/// Longest idempotency key: saga, step and op with their names at their longest.
const MAX_KEY: usize = 512;

/// What an engine asks of a participant.
///
/// Saga, step and op are read from the idempotency key, which a signature covers; headers that say otherwise
/// are refused. The fencing token and the attempt are unsigned.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Call {
    /// The key: the same for all attempts and owners.
    pub idempotency_key: String,
    /// The saga's uid.
    pub saga: String,
    /// The step's name.
    pub step: String,
    /// Which half of the step.
    pub op: Op,
    /// From 1; one when it was not said.
    pub attempt: u32,
    /// Grows with every claim of the saga.
    pub fencing_token: FencingToken,
    /// When the caller gives up, by its clock: a hint.
    pub deadline: Option<WallTime>,
    /// The step's input; for an undo that of the action.
    pub input: Value,
    /// What an undo is told about the action; `None` for an action.
    pub told: Option<Told<Value>>,
}

/// Why a request is no call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadCall {
    /// The body is not what the protocol says.
    #[error("the body is no call of a saga: {0}")]
    Body(String),
    /// A header is missing or cannot be read.
    #[error("header `{0}` is missing or malformed")]
    Header(&'static str),
    /// A header contradicts the idempotency key.
    #[error("header `{0}` contradicts `Idempotency-Key`")]
    Mismatch(&'static str),
}

impl Call {
    /// Reads a request.
    ///
    /// # Errors
    /// [`BadCall`] says what is wrong; nothing was done.
    ///
    /// ```
    /// use mainstay_saga::inbound::Call;
    /// use mainstay_store::barrier::Op;
    ///
    /// let mut headers = http::HeaderMap::new();
    /// headers.insert("idempotency-key", "\"018f/charge/undo~2\"".parse().unwrap());
    /// headers.insert("fencing-token", "3".parse().unwrap());
    /// let call = Call::read(&headers, br#"{"effect":"maybe","input":{"n":1},"output":null}"#).unwrap();
    /// assert_eq!((call.saga.as_str(), call.step.as_str()), ("018f", "charge"));
    /// assert_eq!(call.op, Op::Undo { generation: 2 });
    /// headers.insert("saga-step", "refund".parse().unwrap());
    /// assert!(Call::read(&headers, b"{}").is_err());
    /// ```
    pub fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, BadCall> {
        let text = |name: &'static str| match headers.get(name) {
            None => Ok(None),
            Some(v) => v.to_str().map(|t| Some(t.trim())).map_err(|_| BadCall::Header(name)),
        };
        let key = text("idempotency-key")?.ok_or(BadCall::Header("idempotency-key"))?;
        let key = key.strip_prefix('"').and_then(|k| k.strip_suffix('"')).unwrap_or(key);
        let (saga, step, op) = parts(key).ok_or(BadCall::Header("idempotency-key"))?;
        for (name, said) in [("saga-id", saga), ("saga-step", step), ("saga-op", op.text().as_str())] {
            if text(name)?.is_some_and(|t| t != said) {
                return Err(BadCall::Mismatch(name));
            }
        }
        let number =
            |name| text(name)?.map(|t| t.parse::<u64>().map_err(|_| BadCall::Header(name))).transpose();
        let token = number("fencing-token")?.ok_or(BadCall::Header("fencing-token"))?;
        let attempt = number("saga-attempt")?.map_or(Ok(1), u32::try_from);
        let deadline = text("saga-deadline")?.map(|t| wall(t).ok_or(BadCall::Header("saga-deadline")));
        let (input, told) = payload(&op, body)?;
        Ok(Self {
            idempotency_key: key.to_owned(),
            saga: saga.to_owned(),
            step: step.to_owned(),
            op,
            attempt: attempt.map_err(|_| BadCall::Header("saga-attempt"))?,
            fencing_token: FencingToken::new(token),
            deadline: deadline.transpose()?,
            input,
            told,
        })
    }
}

/// Saga, step and op of a key. A step may be a path.
fn parts(key: &str) -> Option<(&str, &str, Op)> {
    let (saga, rest) = key.split_once('/')?;
    let (step, op) = rest.rsplit_once('/')?;
    let fine = key.len() <= MAX_KEY && !saga.is_empty() && !step.is_empty() && !key.contains('"');
    Op::parse(op).filter(|_| fine).map(|op| (saga, step, op))
}

fn wall(text: &str) -> Option<WallTime> {
    let since: Duration = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(WallTime::from_unix_millis(i64::try_from(since.as_millis()).ok()?))
}

fn payload(op: &Op, body: &[u8]) -> Result<(Value, Option<Told<Value>>), BadCall> {
    let bad = |why: &dyn std::fmt::Display| BadCall::Body(why.to_string());
    let mut value: Value = match body {
        [] => Value::Null,
        body => serde_json::from_slice(body).map_err(|e| bad(&e))?,
    };
    if matches!(op, Op::Action { .. }) {
        return Ok((value, None));
    }
    let told = match value["effect"].as_str() {
        Some("did") => Told::Did(value["output"].take()),
        Some("maybe") => Told::Maybe,
        _ => return Err(bad(&"an undo says `effect`: did or maybe")),
    };
    Ok((value["input"].take(), Some(told)))
}
