//! *Attention*: what only a person can move on, why, and what may be pressed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use mainstay_clock::WallTime;
use mainstay_saga::definition::Definition;
use mainstay_saga::fold::State as SagaState;
use mainstay_saga::wire::{Fact, decode};
use mainstay_store::ErrorKind;
use mainstay_store::journal::{Filter, Loaded, PageCursor, SagaStatus, Summary};
use maud::{Markup, html};

use crate::api::json::store_problem;
use crate::api::query::Query;
use crate::api::view;
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, parts, press, words};
use crate::error::Code;
use crate::http::Problem;

/// Sagas of a page: each is loaded whole.
const SAGAS: usize = 20;

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
    let filter = Filter { status: vec![SagaStatus::NeedsAttention], ..Filter::default() };
    let page = journal.query(&filter, after.as_ref(), SAGAS).await.map_err(|e| match e.kind() {
        ErrorKind::ApiMisuse => Problem::new(Code::BadQuery, "`cursor` is malformed"),
        _ => store_problem(&e),
    })?;
    let now = console.app.rt.clock().wall();
    let mut items = Vec::new();
    for row in &page.rows {
        // A damaged log cannot be loaded; its row still says what is known.
        let loaded = journal.load(&row.uid).await.ok().flatten();
        items.push(item(&console, &visit, row, loaded.as_ref(), now));
    }
    let with_token = console.access.needed()?;
    let live = html! {
        @if items.is_empty() {
            p.empty.good { strong { "Nobody is needed." } " Sagas that only a person can move on appear here, with what may be pressed." }
        }
        @for item in &items { (item) }
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

fn item(console: &Console, visit: &Visit, row: &Summary, loaded: Option<&Loaded>, now: WallTime) -> Markup {
    let uid = row.uid.as_str();
    let definition = console.app.engine.definition(&row.definition, Some(row.version));
    let state = loaded.and_then(|l| view::state(definition.as_deref(), l));
    html! {
        article.item aria-labelledby={ "i-" (uid) } {
            div.head {
                h2 id={ "i-" (uid) } { a href={ "sagas/" (words::encode(uid)) } { (row.id) } }
                span.dim { (row.definition) " version " (row.version) }
                span.since { "waiting for " (words::lasting(now, loaded.map_or(row.updated, since))) }
            }
            @if let (Some(d), Some(s), Some(l)) = (definition.as_deref(), &state, loaded) {
                (needs(console, visit, "", d, s, l))
            } @else {
                (unreadable(row))
            }
        }
    }
}

/// Since when a person is needed without a break: an attempt that fails again opens nothing new.
fn since(loaded: &Loaded) -> WallTime {
    let mut open: BTreeMap<String, WallTime> = BTreeMap::new();
    for record in &loaded.records {
        let (step, needed) = match decode(record) {
            Ok(Fact::StepEnded(end)) => (end.at.step, end.item.is_some()),
            Ok(Fact::UndoEnded(end)) => (end.at.step, end.item.is_some()),
            Ok(Fact::Action(action)) => (action.operation.step().unwrap_or_default().to_owned(), false),
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

/// What can be said of a saga whose definition or log cannot be used.
pub(super) fn unreadable(row: &Summary) -> Markup {
    html! {
        p.notice.bad {
            "The node cannot read this saga: "
            @match &row.row.error { Some(error) => (words::cut(error, 1_000)), None => "its definition is unknown here, or its log is damaged." }
        }
        p { "Nothing is guessed and nothing is lost. Store the missing definition or start the version of the node that knows it; the saga then goes on by itself." }
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
    definition.steps()[i].input.render(&state.input, |other| {
        let j = definition.index(other)?;
        state.nodes[j].current().output.clone()
    })
}
