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
use mainstay_store::journal::Audit;
use serde_json::{Value, json};

use crate::api::App;
use crate::api::json::{engine_problem, reply, store_problem};
use crate::api::query::Query;
use crate::error::Code;
use crate::http::{Caller, Fault, Problem, Trace};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/definitions", get(list)).route("/v1/definitions/{name}", get(show).put(put))
}

async fn list(State(app): State<Arc<App>>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let items: Vec<Value> = app
        .engine
        .definitions()
        .iter()
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
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", definition.hash())) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
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
    let faults = error.problems().iter();
    let faults = faults.map(|p| Fault { pointer: String::new(), reason: p.to_string() }).collect();
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
    let forbidden = app.participants.policy().violations(&definition);
    if !forbidden.is_empty() {
        let fault = |(step, why)| Fault { pointer: String::new(), reason: format!("step `{step}`: {why}") };
        let faults = forbidden.into_iter().map(fault).collect();
        let why = "the definition calls an address that is not allowed; nothing was stored";
        return Err(Problem::new(Code::BadDefinition, why).faults(faults));
    }
    let version = definition.version();
    let known = app.engine.definition(&name, Some(version));
    app.engine.put_definition(definition).await.map_err(|e| match e.kind() {
        ErrorKind::InputConflict => Problem::new(Code::DefinitionConflict, e.to_string()),
        _ => engine_problem(&e),
    })?;
    let stored = app.engine.definition(&name, Some(version));
    let stored = stored.ok_or_else(|| Problem::new(Code::Internal, "the definition vanished"))?;
    let entry = Audit {
        who: caller.name,
        action: "put_definition".to_owned(),
        target: format!("{name}/{version}"),
        reason: String::new(),
        before: known.as_ref().map(|d| d.hash().to_string()).unwrap_or_default(),
        after: stored.hash().to_string(),
        request_id: trace.id().to_owned(),
    };
    app.journal.put_audit(entry).await.map_err(|e| store_problem(&e))?;
    Ok(answer(if known.is_some() { StatusCode::OK } else { StatusCode::CREATED }, &stored))
}
