//! `POST /v1/sagas`: idempotent by key, the reply kept in the transaction that creates the saga.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_saga::engine::StartOptions;
use mainstay_store::journal::Hash;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::json::{engine_problem, parse, reply, store_problem};
use crate::api::{App, sagas};
use crate::error::Code;
use crate::http::{Caller, Problem, Trace};

/// Longest key.
const MAX_KEY: usize = 255;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/sagas", get(sagas::list).post(start))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Start {
    definition: String,
    #[serde(default)]
    version: Option<u32>,
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

/// The `Idempotency-Key`: a quoted string or the bare text, which are the same key.
///
/// # Errors
/// 400 for a malformed one.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let bad = || Problem::new(Code::BadRequest, "`Idempotency-Key` is 1 to 255 visible ASCII characters");
    let mut all = headers.get_all("idempotency-key").iter();
    let Some(value) = all.next() else { return Ok(None) };
    if all.next().is_some() {
        // Which of them the caller will repeat nobody knows.
        return Err(Problem::new(Code::BadRequest, "`Idempotency-Key` comes twice"));
    }
    let text = value.to_str().map_err(|_| bad())?.trim();
    let bare = text.strip_prefix('"').and_then(|t| t.strip_suffix('"')).unwrap_or(text);
    if bare.is_empty() || bare.len() > MAX_KEY || bare.contains('"') {
        return Err(bad());
    }
    Ok(Some(bare.to_owned()))
}

/// Refuses an id that looks like another one, or that no terminal takes.
///
/// # Errors
/// 400.
pub(super) fn check_id(id: &str) -> Result<(), Problem> {
    check_text("the id", id)
}

fn check_text(what: &str, text: &str) -> Result<(), Problem> {
    if text.chars().any(char::is_control) {
        return Err(Problem::new(Code::BadRequest, format!("{what} has control characters")));
    }
    Ok(())
}

async fn start(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<Trace>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let key = idempotency_key(&headers)?
        .ok_or_else(|| Problem::new(Code::KeyMissing, "send `Idempotency-Key: \"unique text\"`"))?;
    let canonical: Value = parse(&body)?;
    let wanted: Start = parse(&body)?;
    caller.demand(&wanted.definition)?;
    if let Some(id) = &wanted.id {
        check_id(id)?;
    }
    wanted.attrs.keys().try_for_each(|name| check_text("the name of an attribute", name))?;
    let request = Hash::of(format!("POST /v1/sagas {canonical}").as_bytes());
    let scope = format!("start/{}/{key}", caller.name);
    let _running = app.running.take(&scope)?;
    let mut options = StartOptions::default();
    options.id = wanted.id;
    options.version = wanted.version;
    options.attrs = wanted.attrs;
    options.request = Some((scope.clone(), request));
    options.trace = Some(trace.onward());
    options.trace_state = trace.state().map(str::to_owned);
    // The store itself answers a repeated key, in the transaction that would create the saga. Only what is
    // refused before that, or lost a race against the same key, is looked up.
    let refused = if app.engine.definition(&wanted.definition, wanted.version).is_none() {
        let version = wanted.version.map(|v| format!(" of version {v}")).unwrap_or_default();
        let why = format!("there is no definition `{}`{version}", wanted.definition);
        Problem::new(Code::UnknownDefinition, why)
    } else {
        match app.engine.start(&wanted.definition, wanted.input, options).await {
            Ok(handle) => return Ok(accepted(handle.uid().as_str(), handle.id())),
            Err(e) => engine_problem(&e),
        }
    };
    match replay(&app, &scope, request).await {
        Some(problem_or_reply) => problem_or_reply,
        None => Err(refused),
    }
}

/// What was answered under this key before: a problem when that was for another request.
pub(super) async fn replay(app: &App, scope: &str, request: Hash) -> Option<Result<Response, Problem>> {
    match app.journal.reply(scope).await {
        Err(e) => Some(Err(store_problem(&e))),
        Ok(None) => None,
        Ok(Some(kept)) if kept.request == request => {
            let text = String::from_utf8_lossy(&kept.body);
            let (uid, id) = text.split_once(' ').unwrap_or((&text, &text));
            Some(Ok(accepted(uid, id)))
        }
        Ok(Some(_)) => Some(Err(Problem::new(Code::KeyReused, "the key is known with another body"))),
    }
}

/// 202 with the place of the saga.
pub(super) fn accepted(uid: &str, id: &str) -> Response {
    let location = format!("/v1/sagas/{uid}");
    let mut response = reply(StatusCode::ACCEPTED, &json!({"uid": uid, "id": id, "location": location}));
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}
