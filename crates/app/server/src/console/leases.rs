//! *Locks*, *Elections* and *Members*: who holds what, who waits, who is there, and how to take it away.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use http::StatusCode;
use mainstay_clock::WallTime;
use mainstay_store::lease::{Holder, LeaseInfo, ToldBy};
use maud::{Markup, html};

use crate::api::json::store_problem;
use crate::api::locks::{ELECTION, NAMESPACE, force_release, problem, short};
use crate::api::operation::{MAX_REASON, check_reason};
use crate::api::query::Query;
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, login, parts, see_other, words};
use crate::error::Code;
use crate::http::{Problem, Trace};
use crate::leases::{Desk, left};

/// Names of members of groups begin so in the store.
const MEMBER: &str = "member/";
/// What recipes hold for a moment or leave behind for a minute is nobody's lock.
const TRACES: [&str; 2] = ["bell/", "left/"];
/// Most rows of a page.
const LIMIT: usize = 500;
/// Leases change without an event: the pages are fetched again after this many seconds.
const REFRESH: &str = "events?every=2";

/// `GET locks`.
pub(super) async fn locks(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    page(&console, raw.as_deref(), &visit, Place::Locks).await
}

/// `GET elections`.
pub(super) async fn elections(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    page(&console, raw.as_deref(), &visit, Place::Elections).await
}

/// `GET members`.
pub(super) async fn members(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    page(&console, raw.as_deref(), &visit, Place::Members).await
}

/// The page that a lease stands on; none for traces.
fn place(name: &str) -> Option<Place> {
    if TRACES.iter().any(|trace| name.starts_with(trace)) {
        return None;
    }
    Some(match name {
        _ if name.starts_with(ELECTION) => Place::Elections,
        _ if name.starts_with(MEMBER) => Place::Members,
        _ => Place::Locks,
    })
}

async fn page(
    console: &Console,
    raw: Option<&str>,
    visit: &Visit,
    place: Place,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw)?;
    let done = query.take("did");
    let mut burned = query.take_as::<u64>("burned")?;
    query.end()?;
    if let Some(name) = &done {
        let lease = console.app.desk.inspect(&Desk::name(NAMESPACE, name).map_err(problem)?).await;
        let last = lease.map_err(|e| store_problem(&e))?.last_token.get();
        // The address may be anybody's; a token that was never given locks out everybody.
        burned = burned.filter(|token| *token <= last);
    }
    let (title, prefix, api) = match place {
        Place::Elections => ("Elections", ELECTION, "/v1/locks?prefix=election/"),
        Place::Members => ("Members", MEMBER, "/v1/locks?prefix=member/"),
        _ => ("Locks", "", "/v1/locks"),
    };
    let prefix = format!("{NAMESPACE}/{prefix}");
    let leases = console.app.desk.list(&prefix, LIMIT).await.map_err(|e| store_problem(&e))?;
    let more = leases.len() == LIMIT;
    let rows: Vec<&LeaseInfo> =
        leases.iter().filter(|l| self::place(short(&l.name)) == Some(place)).collect();
    let needed = console.access.needed()?;
    let live = html! {
        (list(visit, console, &rows, place))
        @if more { p.dim { "Only the first " (LIMIT) " leases are read here; the API takes a prefix." } }
        (parts::command("c-leases", "The same by the API", &parts::curl_get(visit, needed, api)))
    };
    let fixed = html! {
        h1 { (title) }
        @if let Some(name) = done {
            p.notice.good role="status" { "Taken away: " code { (name) } ". The next holder has a higher token." }
            @if let Some(token) = burned { (advance(token)) }
        }
    };
    let page = Page { live: Some(REFRESH.to_owned()), ..Page::new(console, visit, place, title) };
    Ok(page.render(fixed, live).await)
}

/// What is still to do after a lease was taken away: the resource learns of it from its next holder only.
fn advance(token: u64) -> Markup {
    html! {
        p.notice.warn {
            "The burned token is " strong { code { (token) } } ". Until the next holder writes, the resource knows only the old one: call "
            code { "advance(" (token) ")" } " on it now, so that it refuses the old holder at once."
        }
    }
}

fn list(visit: &Visit, console: &Console, rows: &[&LeaseInfo], place: Place) -> Markup {
    let now = console.app.rt.clock().wall();
    let store = console.lease_store();
    // What a shell would read itself is quoted.
    let quote = if store.contains(['?', '&', '*', ';']) { "'" } else { "" };
    let command = |verb: &str| format!("mainstay {verb} NAME --store {quote}{store}{quote} -- COMMAND");
    let (none, api, example) = match place {
        Place::Elections => ("Nobody leads anything.", "PUT /v1/elections/{name}", Some(command("elect"))),
        Place::Members => ("Nobody is in a group.", "PUT /v1/members/{group}/{name}", None),
        _ => ("Nothing is locked.", "PUT /v1/locks/{name}", Some(command("lock"))),
    };
    html! {
        @if rows.is_empty() {
            p.empty { (none) " " code { (api) } @if let Some(example) = example { " or " code { (example) } " takes one." } @else { " joins one." } }
        } @else {
            ul.rows {
                @for lease in rows { (row(visit, now, lease, place)) }
            }
        }
    }
}

fn row(visit: &Visit, now: WallTime, lease: &LeaseInfo, place: Place) -> Markup {
    let name = short(&lease.name);
    let shown = name.strip_prefix(ELECTION).or_else(|| name.strip_prefix(MEMBER)).unwrap_or(name);
    let (by, token, press) = match place {
        Place::Elections => ("led by ", "term ", "Ask to step down"),
        Place::Members => ("joined by ", "incarnation ", "Take it away"),
        _ => ("held by ", "token ", "Take it away"),
    };
    html! {
        li.row {
            div.main {
                p.lead { strong { (shown) } }
                @for holder in &lease.holders {
                    p { (by) strong { (holder.owner) } ", " (token) code { (holder.token.get()) } (since(now, holder)) (lasts(holder.remaining)) }
                }
                @if lease.holders.is_empty() { p.dim { "free" } }
                @if !lease.note.is_empty() { p.why { (lease.note) } }
                @if let Some(value) = lease.annotation.as_deref().filter(|v| place != Place::Locks && !v.is_empty()) { p.why { code { (String::from_utf8_lossy(value)) } } }
            }
            div.side {
                @if lease.waiting > 0 { p { (words::plural(u64::from(lease.waiting), "waiter")) } }
                @if !lease.holders.is_empty() && visit.administers() {
                    a.button href={ "leases/break?name=" (words::encode(name)) } { (press) }
                }
            }
        }
    }
}

/// Since when a holder has it, and by whose calendar unless it is the store's own.
fn since(now: WallTime, holder: &Holder) -> Markup {
    html! {
        @match holder.since {
            Some(since) => {
                ", since " (words::moment(since.at)) " (" (words::ago(now, since.at)) ")"
                @if since.by == ToldBy::Holder { " by its own clock" }
            }
            None => ", nobody knows since when"
        }
    }
}

/// How long a holder has it.
fn lasts(time: Duration) -> String {
    match left(time) {
        Some(left) => format!(", for another {} unless it is renewed", words::span(left)),
        None => ", without an expiry: it ends when its holder ends it, or when it is taken away".to_owned(),
    }
}

/// The page that a lease stands on.
fn home(name: &str) -> (&'static str, Place) {
    match place(name) {
        Some(Place::Elections) => ("elections", Place::Elections),
        Some(Place::Members) => ("members", Place::Members),
        _ => ("locks", Place::Locks),
    }
}

fn allowed(visit: &Visit) -> Result<(), Problem> {
    if visit.administers() {
        return Ok(());
    }
    Err(Problem::new(Code::Forbidden, "taking a lease away needs scope admin"))
}

/// `GET leases/break`: what it does, and its form.
pub(super) async fn ask(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    allowed(&visit)?;
    let mut query = Query::parse(raw.as_deref())?;
    let name = query.take("name").ok_or_else(|| Problem::new(Code::BadQuery, "`name` is missing"))?;
    query.end()?;
    form(&console, &visit, &name, "", None).await
}

async fn form(
    console: &Console,
    visit: &Visit,
    name: &str,
    reason: &str,
    wrong: Option<&str>,
) -> Result<Response, Problem> {
    let full = Desk::name(NAMESPACE, name).map_err(problem)?;
    let lease = console.app.desk.inspect(&full).await.map_err(|e| store_problem(&e))?;
    let (back, place) = home(name);
    let now = console.app.rt.clock().wall();
    let body = html! {
        div.narrow {
            h1 { "Take away " code { (name) } }
            @for holder in &lease.holders { p { "Held by " strong { (holder.owner) } " under token " code { (holder.token.get()) } (since(now, holder)) "." } }
            @if lease.holders.is_empty() { p { "Nobody holds it now." } }
            p { "The token is burned and the next in line gets a higher one. The old holder notices at its next renewal; until then it goes on." }
            p.notice.bad { strong { "Two may work at once for that time." } " Only a resource that checks tokens refuses the old holder's writes, and only once it knows of a higher one: the page after this one names the burned token for its " code { "advance" } "." }
            @if let Some(wrong) = wrong { p.notice.bad role="alert" #wrong { (wrong) } }
            form.stack method="post" action="break" data-once {
                (parts::form_token(visit))
                input type="hidden" name="lease" value=(name);
                label for="reason" { "Reason" }
                textarea #reason name="reason" rows="3" required maxlength="4000" aria-describedby="asks" { (reason) }
                p.dim #asks { "Why the holder may not keep it. It stands in the audit." }
                label for="name" { "Type its name: " code { (name) } }
                input #name name="name" required autocomplete="off" spellcheck="false";
                div.go {
                    button.danger type="submit" { "Take it away" }
                    a.button href={ "../" (back) } { "Leave it" }
                }
            }
        }
    };
    let status = if wrong.is_some() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::OK };
    let page = Page { root: "../", status, ..Page::new(console, visit, place, "Take a lease away") };
    Ok(page.render(body, html! {}).await)
}

/// `POST leases/break`.
pub(super) async fn submit(
    State(console): State<Arc<Console>>,
    axum::Extension(trace): axum::Extension<Trace>,
    visit: Visit,
    body: Bytes,
) -> Result<Response, Problem> {
    allowed(&visit)?;
    let mut query = login::fields(&visit.form, &body)?;
    let name = query.take("lease").ok_or_else(|| Problem::new(Code::BadQuery, "`lease` is missing"))?;
    let typed = query.take("name").unwrap_or_default();
    let reason = query.take("reason").unwrap_or_default();
    query.end()?;
    let wrong = match check_reason(&reason) {
        _ if typed.trim() != name => Some(format!("Type the name, {name}, to show that you mean it.")),
        Err(_) => Some(format!("Say why, in at most {MAX_REASON} bytes.")),
        Ok(()) => None,
    };
    if let Some(wrong) = wrong {
        return form(&console, &visit, &name, &reason, Some(&wrong)).await;
    }
    let full = Desk::name(NAMESPACE, &name).map_err(problem)?;
    let burned = force_release(&console.app, &visit.caller, &trace, &full, reason).await?.get();
    Ok(see_other(&format!("../{}?did={}&burned={burned}", home(&name).0, words::encode(&name))))
}
