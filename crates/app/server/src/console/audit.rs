//! *Audit*: who did what, newest first.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use mainstay_store::Journal;
use mainstay_store::journal::StoredAudit;
use maud::{Markup, html};

use crate::api::json::store_problem;
use crate::api::query::Query;
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, parts, words};
use crate::http::Problem;

/// Lines of a page.
const LINES: u64 = 50;

/// `GET audit`.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let before: Option<u64> = query.take_as("before")?;
    query.end()?;
    let journal = &*console.app.journal;
    let end = match before {
        Some(before) => before.max(1),
        None => last(journal).await? + 1,
    };
    let from = end.saturating_sub(LINES + 1);
    let limit = usize::try_from(end - 1 - from).unwrap_or(0);
    let mut lines = match limit {
        0 => Vec::new(),
        limit => journal.audit(from, limit).await.map_err(|e| store_problem(&e))?,
    };
    lines.retain(|l| l.seq < end);
    lines.reverse();
    let older = lines.last().map(|l| l.seq).filter(|s| *s > 1);
    let now = console.app.rt.clock().wall();
    let with_token = console.access.needed()?;
    let live = html! {
        @if lines.is_empty() { p.empty { "Nobody has acted yet." } } @else {
            ul.rows { @for line in &lines { (entry(line, now)) } }
        }
        p.pages {
            @if before.is_some() { a.button href="audit" { "Newest" } }
            @if let Some(seq) = older { a.button href={ "audit?before=" (seq) } { "Older" } }
        }
        (parts::command("c-audit", "The same by the API", &parts::curl_get(&visit, with_token, &format!("/v1/audit?after={from}"))))
    };
    let fixed = html! {
        h1 { "Audit" }
        p.dim { "Every action of a person, accepted or refused. Each line carries a hash over the one before: a missing or changed line breaks the chain." }
    };
    let live_stream = before.is_none().then(|| "events".to_owned());
    let page = Page { live: live_stream, ..Page::new(&console, &visit, Place::Audit, "Audit") };
    Ok(page.render(fixed, live).await)
}

fn entry(line: &StoredAudit, now: mainstay_clock::WallTime) -> Markup {
    let e = &line.entry;
    html! {
        li.row {
            div.main {
                p.lead { strong { (e.who) } " \u{b7} " code { (e.action) } " \u{b7} "
                    (target(&e.target)) }
                @if !e.reason.is_empty() { p.quote { (e.reason) } }
                @if !e.before.is_empty() || !e.after.is_empty() {
                    p.dim { (words::cut(&e.before, 200)) " \u{2192} " (words::cut(&e.after, 200)) }
                }
            }
            div.side { span.dim { "#" (line.seq) } " " (words::ago(now, line.at)) }
        }
    }
}

/// A saga, and the step of it; else what it is: a lock, a filter, a definition, which have no page under `sagas`.
fn target(text: &str) -> Markup {
    let (uid, step) = text.split_once('/').unwrap_or((text, ""));
    if uuid::Uuid::parse_str(uid).is_err() {
        return html! { (words::cut(text, 200)) };
    }
    html! {
        a href={ "sagas/" (words::encode(uid)) } { (uid) }
        @if !step.is_empty() { " step " code { (step) } }
    }
}

/// The number of the newest line: doubled until nothing is behind it, then halved.
async fn last(journal: &dyn Journal) -> Result<u64, Problem> {
    let mut low = 0;
    let mut step = 1_u64;
    while let Some(seq) = after(journal, low + step - 1).await? {
        low = seq;
        step = step.saturating_mul(2);
    }
    while step > 1 {
        step /= 2;
        if let Some(seq) = after(journal, low + step - 1).await? {
            low = seq;
        }
    }
    Ok(low)
}

async fn after(journal: &dyn Journal, seq: u64) -> Result<Option<u64>, Problem> {
    let lines = journal.audit(seq, 1).await.map_err(|e| store_problem(&e))?;
    Ok(lines.first().map(|l| l.seq))
}
