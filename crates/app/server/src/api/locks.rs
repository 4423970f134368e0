//! Locks and elections over HTTP. A lease is named by its token: the holder sends it as `If-Match`.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use mainstay_store::FencingToken;
use mainstay_store::journal::{Audit, Hash};
use mainstay_store::lease::{LeaseInfo, Released, Transferred};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::json::{if_match_number, is_known, parse, reply, store_problem};
use crate::api::operation::check_reason;
use crate::api::query::Query;
use crate::api::start::idempotency_key;
use crate::api::wait::Wait;
use crate::api::{App, instant, session};
use crate::error::Code;
use crate::http::{Caller, Problem, Scope, Trace};
pub(crate) use crate::leases::NAMESPACE;
use crate::leases::{self, Ask, Desk, Refused, Taken};

/// Names of elections begin so in the store.
pub(crate) const ELECTION: &str = "election/";
/// Longest value of a leader.
const MAX_VALUE: usize = 4_096;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/locks", get(list))
        .route("/v1/locks/{name}", get(show).put(acquire).patch(renew).delete(release))
        .route("/v1/elections/{name}", get(leader).put(campaign).patch(keep_leading).delete(resign))
        .route("/v1/elections/{name}/step-down", post(step_down))
}

/// A problem for what a desk refused.
pub(crate) fn problem(refused: Refused) -> Problem {
    match refused {
        Refused::Bad(why) => Problem::new(Code::BadRequest, why),
        Refused::Gone => Problem::new(Code::LeaseGone, "the token is not that of the holder"),
        Refused::Reused => Problem::new(Code::KeyReused, "the key is known with another lease or body"),
        Refused::Late => {
            let why = "the lease was granted after its own end; it was given back";
            Problem::new(Code::TimedOut, why).retry_after(1)
        }
        Refused::Held { by, remaining, since } => {
            let remaining = remaining.and_then(leases::left);
            let left = remaining.map_or(String::new(), |d| format!(" for another {} ms", d.as_millis()));
            let seconds =
                remaining.map_or(1, |d| d.as_secs().saturating_add(u64::from(d.subsec_nanos() > 0)));
            let since = since.map_or(String::new(), |s| format!(" since {}", instant(s.at)));
            Problem::new(Code::LeaseHeld, format!("held by `{by}`{since}{left}")).retry_after(seconds.max(1))
        }
        Refused::Store(error) => store_problem(&error),
    }
}

/// A text that durations are written in.
fn duration(text: &str) -> Result<Duration, Problem> {
    let bad = || Problem::new(Code::BadRequest, "`ttl` is a duration such as 15s");
    humantime::parse_duration(text).map_err(|_| bad())
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    owner: String,
    ttl: String,
    #[serde(default)]
    note: String,
    #[serde(default)]
    value: Option<String>,
}

impl Wanted {
    pub(super) fn new(owner: String, ttl: String, value: Option<String>) -> Self {
        Self { owner, ttl, note: String::new(), value }
    }
}

/// A request for a lease.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) caller: &'a Caller,
    /// Without its namespace.
    pub(super) name: &'a str,
    pub(super) raw: Option<&'a str>,
    pub(super) headers: &'a HeaderMap,
}

/// How it is answered.
pub(super) struct How {
    pub(super) wait: Option<Wait>,
    /// The lease lives with the connection.
    pub(super) bound: bool,
}

/// The token in `If-Match`.
pub(super) fn token(headers: &HeaderMap) -> Result<FencingToken, Problem> {
    let other = Problem::new(Code::LeaseGone, "`If-Match` is no token");
    let number = if_match_number(headers, "send the token as `If-Match: \"TOKEN\"`", other);
    number.map(FencingToken::new)
}

pub(super) fn tagged(mut response: Response, token: FencingToken) -> Response {
    if let Ok(value) = HeaderValue::from_str(&format!("\"{}\"", token.get())) {
        response.headers_mut().insert(header::ETAG, value);
    }
    response
}

/// What the holder is told. The deadline counts from before the request was sent to the store.
pub(super) fn body(app: &App, name: &str, taken: &Taken) -> Value {
    let clock = app.rt.clock();
    let left = taken.deadline.saturating_duration_since(clock.now());
    json!({
        "name": name,
        "owner": taken.owner,
        "token": taken.token.get().to_string(),
        "ttl_ms": millis(taken.ttl),
        "left_ms": millis(left),
        "deadline": instant(clock.wall().saturating_add(left)),
    })
}

fn taken(app: &App, name: &str, taken: &Taken) -> Response {
    tagged(reply(StatusCode::OK, &body(app, name, taken)), taken.token)
}

/// The answer to a granted request.
fn granted(app: &Arc<App>, name: &str, held: &Taken, how: &How) -> Result<Response, Problem> {
    if how.bound {
        let full = Desk::name(NAMESPACE, name).map_err(problem)?;
        return Ok(session::stream_of(app, &full, held.token, &body(app, name, held)));
    }
    let mut response = taken(app, name, held);
    if let Some(wait) = how.wait {
        wait.applied(&mut response);
    }
    Ok(response)
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn shown(name: &str, info: &LeaseInfo) -> Value {
    let holders: Vec<Value> = info
        .holders
        .iter()
        .map(|h| {
            let left = leases::left(h.remaining).map(millis);
            let told = json!({"owner": h.owner, "token": h.token.get().to_string(), "left_ms": left});
            leases::with_since(told, h)
        })
        .collect();
    json!({"name": name, "holders": holders, "waiting": info.waiting, "note": info.note})
}

type Called = (State<Arc<App>>, Extension<Caller>, Path<String>, RawQuery, HeaderMap, Bytes);

/// Takes a lease for a caller: the same key and body are the same acquisition, and the key with another one is refused.
pub(super) async fn take(
    app: &Arc<App>,
    Request { caller, name, raw, headers }: Request<'_>,
    wanted: &Wanted,
) -> Result<(Taken, How), Problem> {
    let mut query = Query::parse(raw)?;
    let wait = Wait::asked(&mut query, headers)?;
    let bound = session::asked(&mut query)?;
    query.end()?;
    let ttl = duration(&wanted.ttl)?;
    let key = idempotency_key(headers)?;
    let key = key.map(|key| Hash::of(format!("lease/{}/{key}", caller.name).as_bytes()));
    let op_id = match key {
        // What is asked for is part of it: under the same key only the same is the same acquisition.
        Some(key) => {
            let asked = json!([key.to_string(), name, wanted.owner, millis(ttl), wanted.note, wanted.value]);
            Hash::of(asked.to_string().as_bytes()).to_string()
        }
        None => uuid::Uuid::now_v7().simple().to_string(),
    };
    let ask = Ask {
        name: Desk::name(NAMESPACE, name).map_err(problem)?,
        owner: wanted.owner.clone(),
        op_id,
        key,
        ttl,
        note: wanted.note.clone(),
        wait: wait.map_or(Duration::ZERO, |w| w.time),
    };
    tokio::select! {
        biased;
        taken = app.desk.take(&ask) => Ok((taken.map_err(problem)?, How { wait, bound })),
        () = app.drain.cancelled() => {
            Err(Problem::new(Code::Draining, "the server is stopping").retry_after(1))
        }
    }
}

async fn acquire(
    (State(app), Extension(caller), Path(name), RawQuery(raw), headers, body): Called,
) -> Result<Response, Problem> {
    let wanted: Wanted = parse(&body)?;
    if wanted.value.is_some() {
        return Err(Problem::new(Code::BadRequest, "only leaders have a `value`"));
    }
    let request = Request { caller: &caller, name: &name, raw: raw.as_deref(), headers: &headers };
    let (held, how) = take(&app, request, &wanted).await?;
    granted(&app, &name, &held, &how)
}

async fn list(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    const LIMIT: usize = 1_000;
    let mut query = Query::parse(raw.as_deref())?;
    let prefix = query.take("prefix").unwrap_or_default();
    query.end()?;
    let leases = app.desk.list(&format!("{NAMESPACE}/{prefix}"), LIMIT).await;
    let leases = leases.map_err(|e| store_problem(&e))?;
    let own = leases.iter().filter(|l| caller.reaches(short(&l.name)));
    let items: Vec<Value> = own.map(|l| shown(short(&l.name), l)).collect();
    Ok(reply(StatusCode::OK, &json!({"items": items, "more": leases.len() == LIMIT})))
}

/// A name without its namespace.
pub(crate) fn short(name: &str) -> &str {
    name.strip_prefix(NAMESPACE).and_then(|n| n.strip_prefix('/')).unwrap_or(name)
}

async fn show(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let full = Desk::name(NAMESPACE, &name).map_err(problem)?;
    let info = app.desk.inspect(&full).await.map_err(|e| store_problem(&e))?;
    let response = reply(StatusCode::OK, &shown(&name, &info));
    Ok(match info.holders.first() {
        Some(holder) => tagged(response, holder.token),
        None => response,
    })
}

async fn renew(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let full = Desk::name(NAMESPACE, &name).map_err(problem)?;
    let held = app.desk.renew(&full, token(&headers)?).await.map_err(problem)?;
    Ok(taken(&app, &name, &held))
}

async fn release(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<Trace>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let force = forced(raw.as_deref())?;
    let full = Desk::name(NAMESPACE, &name).map_err(problem)?;
    let Some(reason) = force else { return give_back(&app, &full, &headers).await };
    let token = force_release(&app, &caller, &trace, &full, reason).await?;
    Ok(reply(StatusCode::OK, &json!({"released": "forced", "token": token.get().to_string()})))
}

/// Why a lease is taken away, if it is: `force=true&reason=WHY`.
pub(super) fn forced(raw: Option<&str>) -> Result<Option<String>, Problem> {
    let mut query = Query::parse(raw)?;
    let (force, reason) = (query.take("force"), query.take("reason"));
    query.end()?;
    match (force.as_deref(), reason) {
        (None, None) => Ok(None),
        (Some("true"), reason) => Ok(Some(reason.unwrap_or_default())),
        (None, Some(_)) => Err(Problem::new(Code::BadQuery, "`reason` goes with `force=true`")),
        (Some(_), _) => Err(Problem::new(Code::BadQuery, "`force` is true or absent")),
    }
}

pub(super) async fn give_back(app: &App, full: &str, headers: &HeaderMap) -> Result<Response, Problem> {
    let released = app.desk.give_back(full, token(headers)?).await.map_err(problem)?;
    let word = match released {
        Released::Clean => "clean",
        Released::AlreadyGone => "already_gone",
    };
    Ok(reply(StatusCode::OK, &json!({"released": word})))
}

/// A person takes a lease away: needs the scope `admin` and a reason, and leaves a line in the audit.
///
/// # Errors
/// 403, 400 without a reason, or what the store says.
pub(crate) async fn force_release(
    app: &App,
    caller: &Caller,
    trace: &Trace,
    full: &str,
    reason: String,
) -> Result<FencingToken, Problem> {
    if caller.scope < Scope::Admin {
        return Err(Problem::new(Code::Forbidden, "taking a lease away needs scope admin"));
    }
    check_reason(&reason)?;
    let before = app.desk.inspect(full).await.map_err(|e| store_problem(&e))?;
    let token = app.desk.force(full).await.map_err(|e| store_problem(&e))?;
    put_line(app, caller, trace, ("lease.break", reason), &before, token.get().to_string()).await?;
    Ok(token)
}

/// What a person did to a lease, and who held it before.
async fn put_line(
    app: &App,
    caller: &Caller,
    trace: &Trace,
    (action, reason): (&str, String),
    lease: &LeaseInfo,
    after: String,
) -> Result<(), Problem> {
    let line = Audit {
        who: caller.name.clone(),
        action: action.to_owned(),
        target: lease.name.clone(),
        reason,
        before: lease.holders.iter().map(|h| h.owner.as_str()).collect::<Vec<_>>().join(", "),
        after,
        request_id: trace.id().to_owned(),
    };
    app.journal.put_audit(line).await.map_err(|e| store_problem(&e))
}

fn election(name: &str) -> String {
    format!("{ELECTION}{name}")
}

async fn campaign(
    (State(app), Extension(caller), Path(name), RawQuery(raw), headers, body): Called,
) -> Result<Response, Problem> {
    let wanted: Wanted = parse(&body)?;
    let name = election(&name);
    checked(wanted.value.as_deref())?;
    let request = Request { caller: &caller, name: &name, raw: raw.as_deref(), headers: &headers };
    let (held, how) = take(&app, request, &wanted).await?;
    let untold = match wanted.value {
        Some(_) => Some(Untold::new(&app.desk, Desk::name(NAMESPACE, &name).map_err(problem)?, held.token)),
        None => None,
    };
    proclaim(&app, &name, held.token, wanted.value.as_deref()).await?;
    if let Some(untold) = untold {
        untold.told();
    }
    granted(&app, &name, &held, &how)
}

/// A lease whose value is not told yet: it is given back when telling fails, or when nobody waits for the answer any
/// more, so that nobody leads, or keeps a name, without the value that others look for.
pub(super) struct Untold<'a> {
    desk: &'a Arc<Desk>,
    name: String,
    token: Option<FencingToken>,
}

impl<'a> Untold<'a> {
    pub(super) fn new(desk: &'a Arc<Desk>, name: String, token: FencingToken) -> Self {
        Self { desk, name, token: Some(token) }
    }

    pub(super) fn told(mut self) {
        self.token = None;
    }
}

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        if let Some(token) = self.token.take() {
            self.desk.give_back_later(&self.name, token);
        }
    }
}

fn checked(value: Option<&str>) -> Result<(), Problem> {
    if value.is_some_and(|v| v.len() > MAX_VALUE) {
        return Err(Problem::new(Code::BadRequest, "`value` has at most 4,096 bytes"));
    }
    Ok(())
}

async fn proclaim(app: &App, name: &str, term: FencingToken, value: Option<&str>) -> Result<(), Problem> {
    let Some(value) = value else { return Ok(()) };
    let full = Desk::name(NAMESPACE, name).map_err(problem)?;
    app.desk.annotate(&full, term, value).await.map_err(problem)
}

/// The leader, for those who watch: with `If-None-Match` and a wait, when it is another one.
async fn leader(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let wait = Wait::asked(&mut query, &headers)?;
    query.end()?;
    let full = Desk::name(NAMESPACE, &election(&name)).map_err(problem)?;
    let clock = app.rt.clock();
    let until = clock.now().saturating_add(wait.map_or(Duration::ZERO, |w| w.time));
    let mut vain = 0_u32;
    loop {
        // Armed before the look, so that a change in between is not slept over.
        let hint = app.desk.hint(&full, vain);
        let info = app.desk.inspect(&full).await.map_err(|e| store_problem(&e))?;
        let term = info.holders.first().map(|h| h.token);
        let same = is_known(&headers, &term.map_or(0, FencingToken::get).to_string());
        if !same || clock.now() >= until || app.drain.is_cancelled() {
            let value = info.annotation.as_deref().map(String::from_utf8_lossy);
            let body = match info.holders.first() {
                Some(h) => {
                    let left = leases::left(h.remaining).map(millis);
                    let told = json!({
                        "name": name, "leader": h.owner, "term": h.token.get().to_string(), "value": value,
                        "left_ms": left, "candidates": info.waiting,
                    });
                    leases::with_since(told, h)
                }
                None => json!({"name": name, "leader": null, "candidates": info.waiting}),
            };
            let mut response = tagged(reply(StatusCode::OK, &body), term.unwrap_or(FencingToken::ZERO));
            if let Some(wait) = wait {
                wait.applied(&mut response);
            }
            return Ok(response);
        }
        // A lease that runs out may do so without a hint.
        let look = clock.now().saturating_add(Duration::from_secs(1)).min(until);
        tokio::select! {
            biased;
            () = app.drain.cancelled() => {}
            () = hint => vain = vain.saturating_add(1),
            () = clock.sleep_until(look) => vain = 0,
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    #[serde(default)]
    value: Option<String>,
}

async fn keep_leading(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let kept: Kept = if body.is_empty() { Kept::default() } else { parse(&body)? };
    checked(kept.value.as_deref())?;
    let name = election(&name);
    let full = Desk::name(NAMESPACE, &name).map_err(problem)?;
    let held = app.desk.renew(&full, token(&headers)?).await.map_err(problem)?;
    proclaim(&app, &name, held.token, kept.value.as_deref()).await?;
    Ok(taken(&app, &name, &held))
}

async fn resign(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let full = Desk::name(NAMESPACE, &election(&name)).map_err(problem)?;
    give_back(&app, &full, &headers).await
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct StepDown {
    #[serde(default)]
    to: Option<String>,
    #[serde(default)]
    reason: String,
}

/// Hands leadership to a candidate that waits, or takes it from whoever has it. The leader shows its token; anybody else
/// needs the scope `admin` and a reason, and leaves a line in the audit.
async fn step_down(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Extension(trace): Extension<Trace>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let asked: StepDown = if body.is_empty() { StepDown::default() } else { parse(&body)? };
    let full = Desk::name(NAMESPACE, &election(&name)).map_err(problem)?;
    let Some(to) = asked.to else {
        let token = force_release(&app, &caller, &trace, &full, asked.reason).await?;
        return Ok(reply(StatusCode::OK, &json!({"released": "forced", "token": token.get().to_string()})));
    };
    let shown = headers.contains_key(header::IF_MATCH).then(|| token(&headers)).transpose()?;
    if shown.is_none() && caller.scope < Scope::Admin {
        let why = "the leader hands over with its token in `If-Match`; without it this needs scope admin";
        return Err(Problem::new(Code::Forbidden, why));
    }
    if shown.is_none() {
        check_reason(&asked.reason)?;
    }
    let before = app.desk.inspect(&full).await.map_err(|e| store_problem(&e))?;
    let stays = |why: String| Err(Problem::new(Code::IllegalAction, format!("{why}; the leader stays")));
    match app.desk.transfer(&full, shown, &to).await.map_err(problem)? {
        Transferred::Moved => {
            if shown.is_none() {
                let what = ("lease.transfer", asked.reason);
                put_line(&app, &caller, &trace, what, &before, to.clone()).await?;
            }
            Ok(reply(StatusCode::OK, &json!({"moved": true, "to": to})))
        }
        Transferred::NoSuchCandidate => stays(format!("no candidate `{to}` waits")),
        Transferred::Unsupported => {
            stays(format!("the lease store cannot hand it to `{to}`: to nobody, or to the next in line only"))
        }
    }
}
