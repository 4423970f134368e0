//! Reading sagas: lists, one, its history, its export, what needs a person, the audit.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_store::journal::{Loaded, SagaStatus, Uid};
use serde_json::{Value, json};

use crate::api::json::{reply, store_problem};
use crate::api::query::Query;
use crate::api::wait::Wait;
use crate::api::{App, instant, view};
use crate::error::Code;
use crate::http::{Caller, Problem};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/attention", get(attention))
        .route("/v1/audit", get(audit))
        .route("/v1/sagas/{uid}", get(show))
        .route("/v1/sagas/{uid}/export", get(export))
        .route("/v1/sagas/{uid}/history", get(history))
}

/// Loads a saga.
///
/// # Errors
/// 404, or 503 when the journal fails.
pub(crate) async fn load(app: &App, uid: &str) -> Result<Loaded, Problem> {
    let loaded = app.journal.load(&Uid::new(uid)).await.map_err(|e| store_problem(&e))?;
    loaded.ok_or_else(none)
}

/// Loads a saga that the caller may reach. Any other one does not exist for them.
///
/// # Errors
/// As [`load`].
pub(super) async fn load_for(app: &App, caller: &Caller, uid: &str) -> Result<Loaded, Problem> {
    let loaded = load(app, uid).await?;
    if caller.reaches(&loaded.summary.definition) { Ok(loaded) } else { Err(none()) }
}

fn none() -> Problem {
    Problem::new(Code::NotFound, "there is no such saga")
}

/// A saga as JSON with its version as `ETag`.
pub(super) fn answer(app: &App, loaded: &Loaded) -> Response {
    let definition = app.engine.definition(&loaded.summary.definition, Some(loaded.summary.version));
    let mut response =
        reply(StatusCode::OK, &app.redact.document(view::detail(definition.as_deref(), loaded)));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{}\"", loaded.summary.next_seq)) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
}

/// `GET /v1/sagas`.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let (filter, after) = query.filter()?;
    caller.demand_definition(filter.definition.as_deref())?;
    let limit = query.limit()?;
    query.end()?;
    let page = app.journal.query(&filter, after.as_ref(), limit).await.map_err(|e| match e.kind() {
        mainstay_store::ErrorKind::ApiMisuse => Problem::new(Code::BadQuery, "`cursor` is malformed"),
        _ => store_problem(&e),
    })?;
    let items: Vec<Value> = page.rows.iter().map(|row| app.redact.document(view::summary(row))).collect();
    let next = page.next.map(|c| c.0);
    let mut response = reply(StatusCode::OK, &json!({"items": items, "next": next}));
    if let Some(next) = next {
        link(&mut response, raw.as_deref().unwrap_or(""), &next);
    }
    Ok(response)
}

/// The address of the next page: the same filters with the new cursor.
fn link(response: &mut Response, raw: &str, next: &str) {
    let mut kept: Vec<&str> = raw.split('&').filter(|p| !p.is_empty() && !p.starts_with("cursor=")).collect();
    let cursor = percent_encoding::utf8_percent_encode(next, percent_encoding::NON_ALPHANUMERIC).to_string();
    let cursor = format!("cursor={cursor}");
    kept.push(&cursor);
    let text = format!("</v1/sagas?{}>; rel=\"next\"", kept.join("&"));
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(header::LINK, value);
    }
}

async fn show(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let wait = Wait::asked(&mut query, &headers)?;
    query.end()?;
    let loaded = load_for(&app, &caller, &uid).await?;
    let Some(wait) = wait else {
        return Ok(answer(&app, &loaded));
    };
    let uid_of = Uid::new(uid.as_str());
    tokio::select! {
        biased;
        _ = app.engine.outcome(&uid_of) => {}
        () = app.drain.cancelled() => {}
        () = app.rt.clock().sleep(wait.time) => {}
    }
    let mut response = answer(&app, &load(&app, &uid).await?);
    wait.applied(&mut response);
    Ok(response)
}

async fn history(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let loaded = load_for(&app, &caller, &uid).await?;
    let items: Vec<Value> = records(&app, &loaded);
    Ok(reply(StatusCode::OK, &json!({"uid": uid, "items": items})))
}

fn records(app: &App, loaded: &Loaded) -> Vec<Value> {
    loaded.records.iter().map(|r| app.redact.document(view::record(r))).collect()
}

/// Everything that is needed to look at the saga elsewhere.
async fn export(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let loaded = load_for(&app, &caller, &uid).await?;
    let definition = app.engine.definition(&loaded.summary.definition, Some(loaded.summary.version));
    let body = json!({
        "format": "mainstay-export/1",
        "exported": instant(app.rt.clock().wall()),
        "server": env!("CARGO_PKG_VERSION"),
        "saga": app.redact.document(view::summary(&loaded.summary)),
        "definition": definition.and_then(|d| serde_json::to_value(d.data()).ok()),
        "history": records(&app, &loaded),
        "inbox": loaded.posts.len(),
    });
    Ok(reply(StatusCode::OK, &body))
}

/// What only a person can move on, with what they may do.
async fn attention(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let (mut filter, after) = query.filter()?;
    caller.demand_definition(filter.definition.as_deref())?;
    let limit = query.limit()?;
    query.end()?;
    filter.status = vec![SagaStatus::NeedsAttention];
    let page = app.journal.query(&filter, after.as_ref(), limit).await.map_err(|e| store_problem(&e))?;
    let mut items = Vec::new();
    for row in &page.rows {
        // Between the page and this load a saga may have moved on or gone.
        if let Some(loaded) = app.journal.load(&row.uid).await.map_err(|e| store_problem(&e))? {
            let definition = app.engine.definition(&row.definition, Some(row.version));
            items.push(app.redact.document(view::detail(definition.as_deref(), &loaded)));
        }
    }
    let counts = app.journal.counts().await.map_err(|e| store_problem(&e))?;
    // Of the whole node, so not for everybody.
    let total: Option<u64> = caller
        .is_free()
        .then(|| counts.iter().filter(|c| c.status == SagaStatus::NeedsAttention).map(|c| c.count).sum());
    Ok(reply(StatusCode::OK, &json!({"total": total, "items": items, "next": page.next.map(|c| c.0)})))
}

async fn audit(State(app): State<Arc<App>>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let after: u64 = query.take_as("after")?.unwrap_or(0);
    let limit = query.limit()?;
    query.end()?;
    let lines = app.journal.audit(after, limit).await.map_err(|e| store_problem(&e))?;
    let items: Vec<Value> = lines
        .iter()
        .map(|l| {
            json!({
                "seq": l.seq.to_string(), "at": instant(l.at), "who": l.entry.who,
                "action": l.entry.action, "target": l.entry.target, "reason": l.entry.reason,
                "before": l.entry.before, "after": l.entry.after, "request_id": l.entry.request_id,
                "chain": l.chain.to_string(),
            })
        })
        .collect();
    let next = lines.last().filter(|_| lines.len() == limit).map(|l| l.seq.to_string());
    Ok(reply(StatusCode::OK, &json!({"items": items, "next": next})))
}
