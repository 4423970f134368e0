//! *Attention*: what only a person can move on, why, and what may be pressed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use mainstay_clock::WallTime;
use mainstay_saga::definition::{Definition, MAX_PAYLOAD};
use mainstay_saga::fold::State as SagaState;
use mainstay_saga::wire::{Fact, decode};
use mainstay_store::ErrorKind;
use mainstay_store::journal::{Filter, Loaded, PageCursor, SagaStatus};
use maud::{Markup, html};

use crate::api::json::store_problem;
use crate::api::query::Query;
use crate::api::{sagas, view};
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, bulk, parts, press, words};
use crate::error::Code;
use crate::http::Problem;

/// Sagas of a page: each is loaded whole.
pub(super) const SAGAS: usize = 16;

/// `GET attention`.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let after = query.take("cursor").map(PageCursor);
    query.end()?;
    let journal = &console.app.journal;
    let filter = Filter { attention: true, ..Filter::default() };
    let page = journal.query(&filter, after.as_ref(), SAGAS).await.map_err(|e| match e.kind() {
        ErrorKind::ApiMisuse => Problem::new(Code::BadQuery, "`cursor` is malformed"),
        _ => store_problem(&e),
    })?;
    let now = console.app.rt.clock().wall();
    let mut items = Vec::new();
    for row in &page.rows {
        // Between the page and this load a saga may have moved on or gone.
        if let Some(loaded) = sagas::find(&console.app, &row.uid).await? {
            items.push(item(&console, &visit, &loaded, now));
        }
    }
    let with_token = console.access.needed()?;
    let live = html! {
        @if items.is_empty() {
            p.empty.good { strong { "Nobody is needed." } " Sagas that only a person can move on, and those that are overdue, appear here with what may be pressed." }
        }
        @for item in &items { (item) }
        @if visit.operates() && items.len() > 1 { (bulk::chooser()) }
        p.pages {
            @if after.is_some() { a.button href="attention" { "Newest" } }
            @if let Some(next) = &page.next { a.button href={ "attention?cursor=" (words::encode(&next.0)) } { "Older" } }
        }
        (parts::command("c-att", "The same by the API", &parts::curl_get(&visit, with_token, "/v1/attention")))
    };
    let fixed = html! { h1 { "Attention" } };
    let live_stream = after.is_none().then(|| "events".to_owned());
    let page = Page { live: live_stream, ..Page::new(&console, &visit, Place::Attention, "Attention") };
    Ok(page.render(fixed, live).await)
}

fn item(console: &Console, visit: &Visit, loaded: &Loaded, now: WallTime) -> Markup {
    let row = &loaded.summary;
    let uid = row.uid.as_str();
    let definition = console.app.engine.definition(&row.definition, Some(row.version));
    let state = view::state(definition.as_deref(), loaded);
    let known = definition.as_deref().zip(state.as_ref());
    let since = if state.is_some() { since(loaded) } else { row.updated };
    let stuck = row.row.status == SagaStatus::NeedsAttention;
    html! {
        article.item.late[!stuck] aria-labelledby={ "i-" (uid) } {
            div.head {
                @if visit.operates() { (bulk::pick(row)) }
                h2 id={ "i-" (uid) } { a href={ "sagas/" (words::encode(uid)) } { (row.id) } }
                span.dim { (row.definition) " version " (row.version) }
                @if row.row.paused { (words::Sign("off", "\u{2016}", "paused").badge()) }
                span.since { @if stuck { "waiting for " } @else { "late for " } (words::lasting(now, since)) }
            }
            @if state.is_none() {
                (unreadable(definition.as_deref(), loaded))
            } @else if let Some(why) = view::set_aside(row, state.as_ref()) {
                (set_aside(why))
            } @else if row.row.overdue {
                section.need aria-label="The whole saga" { p.why { strong { (LATE) } } }
            }
            @if row.row.paused { p { "It is paused: what is pressed is noted, and nothing starts until somebody resumes it." } }
            @let whole = row.row.overdue || view::set_aside(row, state.as_ref()).is_some();
            @if whole || row.row.paused {
                @if visit.operates() {
                    @let legal = view::legal_on_saga(row, known);
                    // What gives up has its place on the page of the saga.
                    (press::links("", uid, row.next_seq, None, if whole { &legal } else { &["resume"] }))
                } @else {
                    p.dim { "Your token may look, not act." }
                }
            }
            @if let Some((d, s)) = known { (needs(console, visit, "", d, s, loaded)) }
        }
    }
}

/// What is said of a saga that is overdue.
pub(super) const LATE: &str =
    "The deadline passed after the pivot: it goes on, late, and nobody has acknowledged that yet.";

/// Since when a person is needed without a break: an attempt that fails again opens nothing new.
fn since(loaded: &Loaded) -> WallTime {
    let mut open: BTreeMap<String, WallTime> = BTreeMap::new();
    for record in &loaded.records {
        let (step, needed) = match decode(record) {
            Ok(Fact::StepEnded(end)) => (end.at.step, end.item.is_some()),
            Ok(Fact::UndoEnded(end)) => (end.at.step, end.item.is_some()),
            Ok(Fact::Action(action)) => (action.operation.step().unwrap_or_default().to_owned(), false),
            // No step has this name.
            Ok(Fact::Overdue(_)) => (String::new(), true),
            _ => continue,
        };
        if needed {
            open.entry(step).or_insert(record.at);
        } else {
            open.remove(&step);
        }
    }
    open.into_values().min().unwrap_or(loaded.summary.updated)
}

/// Why the node does not drive a saga although none of its steps needs a person.
pub(super) fn set_aside(why: &str) -> Markup {
    html! {
        section.need aria-label="The whole saga" {
            p.why { strong { "The node set this saga aside. " } (words::cut(why, 1_000)) }
            p { "Nothing is called until a person acts. What you press is taken up where its log ends; what ends in the same way is set aside again." }
        }
    }
}

/// In the place of what cannot be drawn: why not, and what helps.
pub(super) fn unreadable(definition: Option<&Definition>, loaded: &Loaded) -> Markup {
    let damaged = loaded.records.is_empty();
    html! {
        p.notice.bad {
            "The node cannot read this saga: " (view::unreadable(definition, loaded)) "."
            @if let Some(error) = &loaded.summary.row.error { " " span.quote { (words::cut(error, 1_000)) } }
        }
        @if damaged {
            p { "Nothing is guessed: what it did stands in the ledgers of its participants. Other sagas are not concerned. Look at the disk, and at a backup of the database. When its log is mended it can be read anew; else it can be closed, which stands in the audit and leaves the log as it is." }
        } @else {
            p { "Nothing is guessed and nothing is lost. Store the missing definition or start the version of the node that knows it; the saga then goes on by itself. If nobody has it any more, the saga can be closed as it is." }
        }
    }
}

/// The steps that need a person, and what may be pressed. Shared with the page of the saga.
pub(super) fn needs(
    console: &Console,
    visit: &Visit,
    root: &str,
    definition: &Definition,
    state: &SagaState,
    loaded: &Loaded,
) -> Markup {
    let steps = definition.steps().iter().zip(&state.nodes);
    let summary = &loaded.summary;
    let uid = summary.uid.as_str();
    let now = console.app.rt.clock().wall();
    html! {
        @for (step, node) in steps {
            @if let Some(item) = node.item {
                section.need aria-label={ "Step " (step.name) } {
                    p.why { strong { (press::why(&step.name, node, item)) } }
                    @if let Some(error) = &node.last_error {
                        p.pair { span.dim { "Last answer" } " " span.quote { (words::cut(error, 600)) } }
                    }
                    p.pair { span.dim { "Tried" } " "
                        (words::plural(u64::from(node.current().attempts), "attempt")) ", "
                        (words::plural(u64::from(node.current().undo_attempts), "undo attempt"))
                        @if let Some(at) = node.retry_at { ", next " (words::countdown(now, WallTime::from_unix_millis(at))) }
                    }
                    @if let Some(runbook) = &step.runbook { p.runbook { span.dim { "Runbook" } " " (runbook) } }
                    (parts::payload(&format!("in-{uid}-{}", step.name), "Input", &console.redact.shown(&input(definition, state, &step.name))))
                    @if visit.operates() {
                        (press::links(root, uid, summary.next_seq, Some(&step.name), &state.legal_on_step(definition, &step.name)))
                    } @else {
                        p.dim { "Your token may look, not act." }
                    }
                }
            }
        }
    }
}

/// The input of a step, as its next attempt would get it.
pub(super) fn input(definition: &Definition, state: &SagaState, name: &str) -> serde_json::Value {
    let Some(i) = definition.index(name) else { return serde_json::Value::Null };
    if let Some(given) = &state.nodes[i].current().input {
        return given.clone();
    }
    let made = definition.steps()[i].input.render_within(MAX_PAYLOAD, &state.input, |other| {
        let j = definition.index(other)?;
        state.nodes[j].current().output.clone()
    });
    // One that has more is not sent either.
    made.unwrap_or_default()
}
