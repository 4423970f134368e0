//! Definitions: one version never changes; sagas in flight keep theirs.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_saga::ErrorKind;
use mainstay_saga::definition::{Definition, DefinitionError};
use mainstay_store::journal::{Audit, Hash};
use serde_json::{Value, json};

use crate::api::App;
use crate::api::json::{engine_problem, if_match, reply, store_problem};
use crate::api::query::Query;
use crate::error::Code;
use crate::http::{Caller, Fault, Problem, Trace};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/definitions", get(list)).route("/v1/definitions/{name}", get(show).put(put))
}

async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let items: Vec<Value> = app
        .engine
        .definitions()
        .iter()
        .filter(|d| caller.reaches(d.name()))
        .map(|d| {
            json!({
                "name": d.name(), "version": d.version(), "hash": d.hash().to_string(),
                "steps": d.steps().len(),
            })
        })
        .collect();
    Ok(reply(StatusCode::OK, &json!({"items": items})))
}

async fn show(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let version = query.take_as("version")?;
    query.end()?;
    let found = app.engine.definition(&name, version);
    let found = found.ok_or_else(|| Problem::new(Code::NotFound, "there is no such definition"))?;
    Ok(answer(StatusCode::OK, &found))
}

fn answer(status: StatusCode, definition: &Definition) -> Response {
    let body = json!({
        "name": definition.name(),
        "version": definition.version(),
        "hash": definition.hash().to_string(),
        "definition": serde_json::to_value(definition.data()).unwrap_or(Value::Null),
    });
    let mut response = reply(status, &body);
    if let Ok(etag) = HeaderValue::from_str(&etag(definition)) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// The version of what may change under a version of a definition: timeouts, retries, addresses.
fn version_tag(definition: &Definition) -> String {
    let text = serde_json::to_value(definition.data()).unwrap_or(Value::Null).to_string();
    Hash::of(text.as_bytes()).to_string()
}

fn etag(definition: &Definition) -> String {
    format!("\"{}\"", version_tag(definition))
}

/// Refuses to overwrite what the caller has not seen. The same content again changes nothing.
fn seen(headers: &HeaderMap, known: Option<&Definition>, new: &Definition) -> Result<(), Problem> {
    let Some(known) = known.filter(|k| k.hash() == new.hash() && k.data() != new.data()) else {
        return Ok(());
    };
    match if_match(headers) {
        Some(tag) if tag == version_tag(known) => Ok(()),
        Some(_) => Err(Problem::new(Code::PreconditionFailed, "the definition is another one by now")),
        None => {
            let why =
                "this version exists with other timeouts, retries or addresses: send its ETag as `If-Match`";
            Err(Problem::new(Code::PreconditionRequired, why))
        }
    }
}

/// Reads a definition by its media type.
fn read(headers: &HeaderMap, body: &[u8]) -> Result<Definition, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("application/json");
    match kind.split(';').next().unwrap_or("").trim() {
        "application/json" => Definition::from_json(body).map_err(|e| refused(&e)),
        "application/toml" => {
            let text = std::str::from_utf8(body)
                .map_err(|_| Problem::new(Code::BadRequest, "the body is not UTF-8"))?;
            Definition::from_toml(text).map_err(|e| refused(&e))
        }
        _ => Err(Problem::new(Code::UnsupportedMedia, "send application/json or application/toml")),
    }
}

fn refused(error: &DefinitionError) -> Problem {
    let faults = error.problems().iter().zip(error.pointers());
    let faults =
        faults.map(|(problem, at)| Fault { pointer: at.clone(), reason: problem.to_string() }).collect();
    Problem::new(Code::BadDefinition, "the definition is refused; nothing was stored").faults(faults)
}

async fn put(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<Trace>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let definition = read(&headers, &body)?;
    if definition.name() != name {
        return Err(Problem::new(Code::BadRequest, "the name in the body is not the name in the path"));
    }
    let forbidden = app.participants.violations(&definition);
    if let Some((step, why)) = forbidden.first() {
        let after = format!("refused: step `{step}`: {why}");
        audit(&app, &caller, &trace, format!("{name}/{}", definition.version()), (String::new(), after))
            .await?;
        let at = |step: &str| definition.index(step).map_or("/steps".to_owned(), |i| format!("/steps/{i}"));
        let fault = |(step, why): (String, String)| Fault {
            pointer: at(&step),
            reason: format!("step `{step}`: {why}"),
        };
        let faults = forbidden.into_iter().map(fault).collect();
        let why = "the definition calls an address that is not allowed; nothing was stored";
        return Err(Problem::new(Code::BadDefinition, why).faults(faults));
    }
    let version = definition.version();
    let known = app.engine.definition(&name, Some(version));
    seen(&headers, known.as_deref(), &definition)?;
    app.engine.put_definition(definition).await.map_err(|e| match e.kind() {
        ErrorKind::InputConflict => Problem::new(Code::DefinitionConflict, e.to_string()),
        _ => engine_problem(&e),
    })?;
    let stored = app.engine.definition(&name, Some(version));
    let stored = stored.ok_or_else(|| Problem::new(Code::Internal, "the definition vanished"))?;
    let before = known.as_deref().map(etag).unwrap_or_default();
    audit(&app, &caller, &trace, format!("{name}/{version}"), (before, etag(&stored))).await?;
    Ok(answer(if known.is_some() { StatusCode::OK } else { StatusCode::CREATED }, &stored))
}

async fn audit(
    app: &App,
    caller: &Caller,
    trace: &Trace,
    target: String,
    (before, after): (String, String),
) -> Result<(), Problem> {
    let entry = Audit {
        who: caller.name.clone(),
        action: "put_definition".to_owned(),
        target,
        reason: String::new(),
        before,
        after,
        request_id: trace.id().to_owned(),
    };
    app.journal.put_audit(entry).await.map_err(|e| store_problem(&e))
}
