//! Groups over HTTP. A member is named by its incarnation: it sends it as `If-Match`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_coordination::membership::{Group, Member};
use mainstay_store::journal::Hash;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::App;
use crate::api::json::{is_known, parse, reply};
use crate::api::locks::{self, Request, Untold, Wanted, force_release, problem, token};
use crate::api::query::Query;
use crate::api::session;
use crate::api::wait::Wait;
use crate::error::Code;
use crate::feeds::member;
use crate::http::{Caller, Problem, Trace};
use crate::leases::{Refused, deaf};

/// Between two looks without a hint.
const LOOK: Duration = Duration::from_secs(1);
/// Longest metadata.
const MAX_META: usize = mainstay_coordination::membership::MAX_META;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/members/{group}", get(list))
        .route("/v1/members/{group}/{name}", get(show).put(join).patch(renew).delete(leave))
}

fn failed(error: mainstay_coordination::Error) -> Problem {
    problem(Refused::from(error))
}

fn tag(members: &[Member]) -> String {
    let known: Vec<_> = members.iter().map(|m| (&m.name, m.incarnation.get(), &m.meta)).collect();
    format!("{:.16}", Hash::of(format!("{known:?}").as_bytes()).to_string())
}

/// Everybody; with `If-None-Match` and a wait, when that is different.
async fn list(
    State(app): State<Arc<App>>,
    Path(group): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let wait = Wait::asked(&mut query, &headers)?;
    query.end()?;
    let of = app.desk.group(&group).map_err(problem)?;
    let clock = app.rt.clock();
    let until = clock.now().saturating_add(wait.map_or(Duration::ZERO, |w| w.time));
    let mut vain = 0_u32;
    loop {
        // Armed before the look, so that a change in between is not slept over.
        let hint = of.changed();
        let members = of.members().await.map_err(failed)?;
        let tag = tag(&members);
        if !is_known(&headers, &tag) || clock.now() >= until || app.drain.is_cancelled() {
            let items: Vec<Value> = members.iter().map(member).collect();
            let mut response = reply(StatusCode::OK, &json!({"group": group, "members": items}));
            if let Ok(value) = HeaderValue::from_str(&format!("\"{tag}\"")) {
                response.headers_mut().insert(header::ETAG, value);
            }
            if let Some(wait) = wait {
                wait.applied(&mut response);
            }
            return Ok(response);
        }
        let hint = async {
            if vain > 0 {
                clock.sleep(deaf(vain)).await;
            }
            hint.await;
        };
        tokio::select! {
            biased;
            () = app.drain.cancelled() => {}
            () = hint => vain = vain.saturating_add(1),
            () = clock.sleep_until(clock.now().saturating_add(LOOK).min(until)) => vain = 0,
        }
    }
}

async fn show(
    State(app): State<Arc<App>>,
    Path((group, name)): Path<(String, String)>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let members = app.desk.group(&group).map_err(problem)?.members().await.map_err(failed)?;
    let found = members.iter().find(|m| m.name == name);
    let found = found.ok_or_else(|| Problem::new(Code::NotFound, format!("no member `{name}` is there")))?;
    Ok(locks::tagged(reply(StatusCode::OK, &member(found)), found.incarnation))
}

type Called = (State<Arc<App>>, Extension<Caller>, Path<(String, String)>, RawQuery, HeaderMap, Bytes);

/// The name of the lease behind a member, without its namespace.
fn lease(group: &Group, name: &str) -> Result<String, Problem> {
    let full = group.lease(name).map_err(failed)?;
    Ok(locks::short(&full).to_owned())
}

async fn join(
    (State(app), Extension(caller), Path((group, name)), RawQuery(raw), headers, body): Called,
) -> Result<Response, Problem> {
    let wanted: Joining = parse(&body)?;
    checked(wanted.meta.as_deref())?;
    let of = app.desk.group(&group).map_err(problem)?;
    let lease = lease(&of, &name)?;
    let owner = wanted.owner.unwrap_or_else(|| caller.name.clone());
    let asked = Wanted::new(owner, wanted.ttl, wanted.meta.clone());
    let request = Request { caller: &caller, name: &lease, raw: raw.as_deref(), headers: &headers };
    let (held, how) = locks::take(&app, request, &asked).await?;
    let full = of.lease(&name).map_err(failed)?;
    // Who has said nothing about itself is no member.
    let untold = Untold::new(&app.desk, full.clone(), held.token);
    let meta = wanted.meta.as_deref().unwrap_or_default();
    app.desk.annotate(&full, held.token, meta).await.map_err(problem)?;
    untold.told();
    of.announce();
    let mut body = locks::body(&app, &name, &held);
    body["group"] = group.into();
    if how.bound {
        return Ok(session::stream_of(&app, &full, held.token, &body));
    }
    let mut response = locks::tagged(reply(StatusCode::OK, &body), held.token);
    if let Some(wait) = how.wait {
        wait.applied(&mut response);
    }
    Ok(response)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Joining {
    #[serde(default)]
    owner: Option<String>,
    ttl: String,
    #[serde(default)]
    meta: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    #[serde(default)]
    meta: Option<String>,
}

fn checked(meta: Option<&str>) -> Result<(), Problem> {
    if meta.is_some_and(|m| m.len() > MAX_META) {
        return Err(Problem::new(Code::BadRequest, format!("`meta` has at most {MAX_META} bytes")));
    }
    Ok(())
}

async fn renew(
    State(app): State<Arc<App>>,
    Path((group, name)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let kept: Kept = if body.is_empty() { Kept::default() } else { parse(&body)? };
    checked(kept.meta.as_deref())?;
    let of = app.desk.group(&group).map_err(problem)?;
    let full = of.lease(&name).map_err(failed)?;
    let held = app.desk.renew(&full, token(&headers)?).await.map_err(problem)?;
    if let Some(meta) = kept.meta {
        app.desk.annotate(&full, held.token, &meta).await.map_err(problem)?;
        of.announce();
    }
    let mut body = locks::body(&app, &name, &held);
    body["group"] = group.into();
    Ok(locks::tagged(reply(StatusCode::OK, &body), held.token))
}

async fn leave(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<Trace>,
    Path((group, name)): Path<(String, String)>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let force = locks::forced(raw.as_deref())?;
    let of = app.desk.group(&group).map_err(problem)?;
    let full = of.lease(&name).map_err(failed)?;
    let response = match force {
        None => {
            let incarnation = token(&headers)?;
            app.desk.holds(&full, incarnation).await.map_err(problem)?;
            of.goodbye(&name, incarnation).await.map_err(failed)?;
            locks::give_back(&app, &full, &headers).await?
        }
        Some(reason) => {
            let token = force_release(&app, &caller, &trace, &full, reason).await?;
            reply(StatusCode::OK, &json!({"released": "forced", "token": token.get().to_string()}))
        }
    };
    of.announce();
    Ok(response)
}
