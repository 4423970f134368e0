//! Bulk actions: one action on every saga that matches a filter, as a job.
//!
//! Jobs live in memory: a node that dies forgets them, and what is done stays done. Repeating a bulk action is
//! safe: each item is conditional on the version that the job saw.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use futures_util::StreamExt as _;
use http::{HeaderValue, StatusCode, header};
use mainstay_clock::WallTime;
use mainstay_saga::engine::ActionRequest;
use mainstay_store::journal::{Audit, Filter, Summary, Uid};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::api::json::{engine_problem, parse, reply, store_problem};
use crate::api::operation::{Body, Name};
use crate::api::query::Query;
use crate::api::{App, instant};
use crate::error::Code;
use crate::http::{Caller, Problem, Trace};

/// Most sagas of one job: their ids and versions are held in memory.
const MAX_ITEMS: usize = 20_000;
/// Rows read at once.
const PAGE: usize = 500;
/// Most jobs remembered; the oldest finished one is forgotten first.
const MAX_JOBS: usize = 100;
/// Most failures listed; more are only counted.
const MAX_FAILURES: usize = 1_000;
/// Most bytes of a filter: as many as the address of a list has. It stands in the audit for ever.
const MAX_FILTER: usize = 8 * 1024;
/// Items acted on at once: enough to share commits, few enough to leave room for others.
const AT_ONCE: usize = 16;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/sagas/actions", post(start))
        .route("/v1/jobs", get(list))
        .route("/v1/jobs/{id}", get(show))
}

/// The jobs of this node.
#[derive(Debug, Default)]
pub(crate) struct Jobs(Mutex<BTreeMap<String, Arc<Mutex<Job>>>>);

#[derive(Debug)]
struct Job {
    id: String,
    who: String,
    action: String,
    reason: String,
    total: usize,
    done: usize,
    failures: usize,
    failed: Vec<(String, String)>,
    started: WallTime,
    ended: Option<WallTime>,
}

impl Job {
    fn view(&self) -> Value {
        let failed = self.failed.iter().map(|(uid, why)| json!({"uid": uid, "why": why}));
        json!({
            "id": self.id, "who": self.who, "action": self.action, "reason": self.reason, "total": self.total,
            "done": self.done, "failures": self.failures, "failed": failed.collect::<Vec<Value>>(),
            "started": instant(self.started), "ended": self.ended.map(instant),
            "status": if self.ended.is_some() { "finished" } else { "running" },
        })
    }

    fn count(&mut self, uid: &str, result: Result<(), String>) {
        match result {
            Ok(()) => self.done += 1,
            Err(why) => {
                self.failures += 1;
                if self.failed.len() < MAX_FAILURES {
                    self.failed.push((uid.to_owned(), why));
                }
            }
        }
    }
}

impl Jobs {
    /// Remembers a job.
    ///
    /// # Errors
    /// 503 when as many are running.
    fn keep(&self, job: Job) -> Result<Arc<Mutex<Job>>, Problem> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_JOBS {
            // Ids sort by time.
            let over = all.iter().find(|(_, j)| locked(j).ended.is_some()).map(|(id, _)| id.clone());
            let over =
                over.ok_or_else(|| Problem::new(Code::Overloaded, "too many jobs run").retry_after(1))?;
            all.remove(&over);
        }
        let id = job.id.clone();
        let job = Arc::new(Mutex::new(job));
        all.insert(id, Arc::clone(&job));
        Ok(job)
    }

    /// Of a job that did not begin.
    fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    fn all(&self) -> Vec<Value> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().rev().map(|j| locked(j).view()).collect()
    }

    /// A job; who may not reach everything sees only their own.
    fn find(&self, id: &str, caller: &Caller) -> Option<Value> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let job = locked(all.get(id)?);
        (caller.is_free() || job.who == caller.name).then(|| job.view())
    }
}

fn locked(job: &Mutex<Job>) -> std::sync::MutexGuard<'_, Job> {
    job.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Deserialize)]
struct Bulk {
    filter: Map<String, Value>,
    #[serde(default)]
    dry_run: bool,
    #[serde(flatten)]
    action: Map<String, Value>,
}

async fn start(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<Trace>,
    body: Bytes,
) -> Result<Response, Problem> {
    let bulk: Bulk = parse(&body)?;
    let body: Body = serde_json::from_value(Value::Object(bulk.action))
        .map_err(|e| Problem::new(Code::BadRequest, e.to_string()))?;
    body.check(&app.redact)?;
    if body.action == Name::RunAgain {
        return Err(Problem::new(Code::BadRequest, "run_again is for one saga at a time"));
    }
    if bulk.filter.iter().map(|(name, value)| name.len() + value.to_string().len()).sum::<usize>()
        > MAX_FILTER
    {
        return Err(Problem::new(Code::BadQuery, format!("`filter` has more than {MAX_FILTER} bytes")));
    }
    let mut query = Query::of(&bulk.filter)?;
    let (filter, cursor) = query.filter()?;
    caller.demand_definition(filter.definition.as_deref())?;
    query.end()?;
    if cursor.is_some() || filter == Filter::default() {
        return Err(Problem::new(Code::BadQuery, "`filter` names what the action is for, and no cursor"));
    }
    let mut items: Vec<(Uid, u64)> = Vec::new();
    let mut after = None;
    loop {
        let page = app.journal.query(&filter, after.as_ref(), PAGE).await.map_err(|e| store_problem(&e))?;
        items.extend(page.rows.into_iter().map(|row: Summary| (row.uid, row.next_seq)));
        if items.len() > MAX_ITEMS {
            let why = format!("more than {MAX_ITEMS} sagas match; narrow the filter");
            return Err(Problem::new(Code::BulkTooLarge, why));
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    if bulk.dry_run {
        return Ok(reply(StatusCode::OK, &json!({"dry_run": true, "total": items.len()})));
    }
    let job = app.jobs.keep(Job {
        id: uuid::Uuid::now_v7().to_string(),
        who: caller.name.clone(),
        action: format!("{:?}", body.action).to_ascii_lowercase(),
        reason: body.reason.clone(),
        total: items.len(),
        done: 0,
        failures: 0,
        failed: Vec::new(),
        started: app.rt.clock().wall(),
        ended: None,
    })?;
    let answer = locked(&job).view();
    let (rt, begun, filter) = (app.rt.clone(), answer.clone(), app.redact.filter(&bulk.filter));
    let (tell, told) = oneshot::channel();
    // In a task of its own: whoever asked may go away before the line of the audit stands.
    rt.spawn("bulk", async move {
        let audited = audit(&app, &begun, &filter, trace.id()).await;
        let begins = audited.is_ok();
        if !begins {
            app.jobs.forget(begun["id"].as_str().unwrap_or_default());
        }
        let _ = tell.send(audited);
        if begins {
            run(&app, &caller.name, &body, items, &job).await;
        }
    });
    told.await.map_err(|_| Problem::new(Code::Draining, "the server is stopping").retry_after(1))??;
    let mut response = reply(StatusCode::ACCEPTED, &answer);
    let location = format!("/v1/jobs/{}", answer["id"].as_str().unwrap_or_default());
    if let Ok(value) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    Ok(response)
}

/// Who began it, on what. Each item has a line of its own besides.
async fn audit(app: &App, job: &Value, filter: &Value, request: &str) -> Result<(), Problem> {
    let text = |name: &str| job[name].as_str().unwrap_or_default().to_owned();
    let line = Audit {
        who: text("who"),
        action: format!("bulk_{}", text("action")),
        target: filter.to_string(),
        reason: text("reason"),
        before: format!("{} sagas match", job["total"]),
        after: format!("job {}", text("id")),
        request_id: request.to_owned(),
    };
    app.journal.put_audit(line).await.map_err(|e| store_problem(&e))
}

async fn run(app: &App, who: &str, body: &Body, items: Vec<(Uid, u64)>, job: &Mutex<Job>) {
    let each = futures_util::stream::iter(items).for_each_concurrent(AT_ONCE, |(uid, seen)| async move {
        let Some(operation) = body.operation() else { return };
        // The rest is left alone when the node stops; the job goes with the node.
        if app.drain.is_cancelled() {
            return locked(job).count(uid.as_str(), Err("the node is stopping".to_owned()));
        }
        let request = ActionRequest::new(who, body.reason.clone(), operation).expecting(seen);
        let result = app.engine.attention().act(&uid, request).await;
        // The code and the text of the answer that a single action would have got.
        let result = result.map_err(|e| format!("{}: {e}", engine_problem(&e).code().name()));
        locked(job).count(uid.as_str(), result);
    });
    each.await;
    locked(job).ended = Some(app.rt.clock().wall());
}

async fn list(State(app): State<Arc<App>>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    Ok(reply(StatusCode::OK, &json!({"items": app.jobs.all()})))
}

async fn show(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let found = app.jobs.find(&id, &caller);
    let found = found.ok_or_else(|| Problem::new(Code::NotFound, "there is no such job on this node"))?;
    Ok(reply(StatusCode::OK, &found))
}
