//! Reading sagas: lists, one, its history, its export, what needs a person, the audit.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_store::ErrorKind;
use mainstay_store::journal::{Loaded, MAX_LOG_BYTES, SagaStatus, StatusCount, Uid};
use serde_json::{Value, json};

use crate::api::json::{page_problem, reply, store_problem};
use crate::api::query::Query;
use crate::api::wait::Wait;
use crate::api::{App, instant, view};
use crate::error::Code;
use crate::http::{Caller, Problem};
use crate::redact::Redact;

/// Bytes of logs behind which a page of details ends: one more is read, and what is shown of it is smaller.
const MAX_LOGS: usize = MAX_LOG_BYTES;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/attention", get(attention))
        .route("/v1/audit", get(audit))
        .route("/v1/sagas/{uid}", get(show))
        .route("/v1/sagas/{uid}/export", get(export))
        .route("/v1/sagas/{uid}/history", get(history))
}

/// Loads a saga. One whose log is damaged comes without records: its row is what can be known.
///
/// # Errors
/// 503 when the journal fails.
pub(crate) async fn find(app: &App, uid: &Uid) -> Result<Option<Loaded>, Problem> {
    match app.journal.load(uid).await {
        Ok(loaded) => Ok(loaded),
        Err(error) if error.kind() == ErrorKind::Corrupt => {
            tracing::error!(saga = %uid, %error, "the log of a saga is damaged");
            let row = app.journal.summary(uid).await.map_err(|e| store_problem(&e))?;
            Ok(row.map(|summary| Loaded { summary, records: Vec::new(), posts: Vec::new() }))
        }
        Err(error) => Err(store_problem(&error)),
    }
}

/// A saga to look at; without records when its log is damaged.
///
/// # Errors
/// 404, or 503 when the journal fails.
pub(crate) async fn look(app: &App, uid: &str) -> Result<Loaded, Problem> {
    find(app, &Uid::new(uid)).await?.ok_or_else(none)
}

/// Refuses a saga whose log is damaged, for what needs all of it.
///
/// # Errors
/// 409.
pub(super) fn whole(loaded: &Loaded) -> Result<(), Problem> {
    if loaded.records.is_empty() {
        return Err(Problem::new(Code::IllegalAction, view::DAMAGED));
    }
    Ok(())
}

/// A saga that the caller may reach. Any other one does not exist for them.
///
/// # Errors
/// As [`look`].
pub(super) async fn look_for(app: &App, caller: &Caller, uid: &str) -> Result<Loaded, Problem> {
    let loaded = look(app, uid).await?;
    if caller.reaches(&loaded.summary.definition) { Ok(loaded) } else { Err(none()) }
}

fn none() -> Problem {
    Problem::new(Code::NotFound, "there is no such saga")
}

/// A saga as JSON with its version as `ETag`.
pub(super) fn answer(app: &App, loaded: &Loaded) -> Response {
    let mut response = reply(StatusCode::OK, &detailed(app, loaded));
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
    let page = app.journal.query(&filter, after.as_ref(), limit).await.map_err(|e| page_problem(&e))?;
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
    let loaded = look_for(&app, &caller, &uid).await?;
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
    let mut response = answer(&app, &look(&app, &uid).await?);
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
    let loaded = look_for(&app, &caller, &uid).await?;
    let mut body = json!({"uid": uid, "items": records(&app, &loaded)});
    mark(&mut body, &loaded);
    Ok(reply(StatusCode::OK, &body))
}

/// An empty history is not taken for one that was read.
fn mark(body: &mut Value, loaded: &Loaded) {
    if loaded.records.is_empty() {
        body["unreadable"] = view::DAMAGED.into();
    }
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
    let loaded = look_for(&app, &caller, &uid).await?;
    Ok(reply(StatusCode::OK, &exported(&app, &app.redact, &loaded)))
}

/// The document of an export.
pub(crate) fn exported(app: &App, redact: &Redact, loaded: &Loaded) -> Value {
    let definition = app.engine.definition(&loaded.summary.definition, Some(loaded.summary.version));
    let records: Vec<Value> = loaded.records.iter().map(|r| redact.document(view::record(r))).collect();
    let mut body = json!({
        "format": "mainstay-export/1",
        "exported": instant(app.rt.clock().wall()),
        "server": env!("CARGO_PKG_VERSION"),
        "saga": redact.document(view::summary(&loaded.summary)),
        "definition": definition.and_then(|d| serde_json::to_value(d.data()).ok()),
        "history": records,
        "inbox": loaded.posts.len(),
    });
    mark(&mut body, loaded);
    body
}

fn detailed(app: &App, loaded: &Loaded) -> Value {
    let definition = app.engine.definition(&loaded.summary.definition, Some(loaded.summary.version));
    app.redact.document(view::detail(definition.as_deref(), loaded))
}

/// What waits for a person, because only they can move it on or because it is overdue, with what they may do.
async fn attention(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let status = query.take("status");
    if status.as_ref().is_some_and(|status| *status != SagaStatus::NeedsAttention.as_str()) {
        return Err(Problem::new(
            Code::BadQuery,
            "`status` is needs_attention here; other ones are at /v1/sagas",
        ));
    }
    let (mut filter, after) = query.filter()?;
    // Without those that are overdue and go on.
    filter.status.extend(status.map(|_| SagaStatus::NeedsAttention));
    caller.demand_definition(filter.definition.as_deref())?;
    let limit = query.limit()?;
    query.end()?;
    filter.attention = true;
    let query =
        async |limit| app.journal.query(&filter, after.as_ref(), limit).await.map_err(|e| page_problem(&e));
    let mut page = query(limit).await?;
    let (mut seen, mut bytes) = (BTreeMap::new(), 0);
    for row in &page.rows {
        // Between the page and this load a saga may have moved on or gone.
        let found = find(&app, &row.uid).await?;
        bytes += found.iter().flat_map(|l| &l.records).map(|r| r.bytes.len()).sum::<usize>();
        seen.insert(row.uid.clone(), found.map(|loaded| detailed(&app, &loaded)));
        if bytes >= MAX_LOGS {
            break;
        }
    }
    if seen.len() < page.rows.len() {
        // A shorter page, whose end says where to go on.
        page = query(seen.len()).await?;
    }
    let mut items = Vec::new();
    for row in &page.rows {
        let item = match seen.remove(&row.uid) {
            Some(item) => item,
            // It came meanwhile.
            None => find(&app, &row.uid).await?.map(|loaded| detailed(&app, &loaded)),
        };
        items.extend(item);
    }
    let counts = app.journal.counts().await.map_err(|e| store_problem(&e))?;
    // Of the whole node, so not for everybody.
    let total: Option<u64> = caller.is_free().then(|| counts.iter().map(StatusCount::waiting).sum());
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
