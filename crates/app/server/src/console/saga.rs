//! *Saga*: one saga, whole: why it stands where it stands, and what may be pressed.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use mainstay_clock::WallTime;
use mainstay_saga::definition::{Call, Definition, Step, StepKind, Undo};
use mainstay_saga::fold::{Effect, Node, State as SagaState};
use mainstay_saga::wire::Cause;
use mainstay_store::journal::Loaded;
use maud::{Markup, html};
use serde_json::Value;

use crate::api::json::reply;
use crate::api::query::Query;
use crate::api::{sagas, view};
use crate::console::attention::{LATE, needs, set_aside, unreadable};
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, graph, parts, press, timeline, words};
use crate::http::Problem;
use crate::redact::HIDDEN;

/// Steps listed; a larger definition is read in the export.
const MAX_STEPS: usize = 200;

/// `GET sagas/{uid}`.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let did = query.take("did");
    query.end()?;
    let loaded = sagas::look(&console.app, &uid).await?;
    let s = &loaded.summary;
    let definition = console.app.engine.definition(&s.definition, Some(s.version));
    let state = view::state(definition.as_deref(), &loaded);
    let now = console.app.rt.clock().wall();
    let live = html! {
        (head(&loaded, definition.as_deref(), state.as_ref(), now))
        @match (definition.as_deref(), &state) {
            (Some(d), Some(state)) => (known(&console, &visit, d, state, &loaded)),
            (d, _) => {
                (unreadable(d, &loaded))
                @if visit.operates() { (press::links("../", &uid, s.next_seq, None, &view::legal_on_saga(s, None))) }
            },
        }
        section aria-labelledby="h-time" {
            h2 #h-time { "What happened" }
            (timeline::draw(&console.redact, definition.as_deref(), &loaded, now))
        }
        (about(&console, &visit, &loaded)?)
    };
    let done = did.as_deref().and_then(press::find);
    let fixed = html! {
        @if let Some(done) = done { p.notice.good role="status" { "On the log: \u{201c}" (done.title) "\u{201d}." } }
    };
    let title = format!("{} ({})", s.id, s.definition);
    let stream = format!("events?saga={}", words::encode(&uid));
    let page = Page { root: "../", live: Some(stream), ..Page::new(&console, &visit, Place::Sagas, &title) };
    Ok(page.render(fixed, live).await)
}

fn head(
    loaded: &Loaded,
    definition: Option<&Definition>,
    state: Option<&SagaState>,
    now: WallTime,
) -> Markup {
    let s = &loaded.summary;
    html! {
        div.title {
            h1 { (s.id) }
            (words::of_row(&s.row).badge())
            @if s.row.paused && !s.row.status.is_final() { (words::Sign("off", "\u{2016}", "paused").badge()) }
        }
        p.sub {
            a href={ "../sagas?definition=" (words::encode(&s.definition)) } { (s.definition) } " version " (s.version)
            " \u{b7} started " (words::ago(now, s.created))
            " \u{b7} last moved " (words::ago(now, s.updated))
            @if let Some(at) = s.row.next_try.filter(|_| s.row.retrying) { " \u{b7} " strong { "next try " (words::countdown(now, at)) } }
            @if let Some(at) = state.filter(|s| s.stop.is_none()).and_then(|s| s.deadline).filter(|_| !s.row.status.is_final()) {
                " \u{b7} deadline " (words::countdown(now, WallTime::from_unix_millis(at)))
            }
        }
        @if let (Some(d), Some(state)) = (definition, state) {
            @if let Some(cause) = &state.stop { p.why { "Turned back because " (because(cause)) } }
            @if s.row.overdue { p.notice.warn { (LATE) } }
            @if state.acknowledged { p.dim { "The deadline passed after the pivot: it goes on, late. A person has seen that." } }
            @if state.past_pivot(d) && !s.row.status.is_final() { p.dim { "Past its pivot: it only goes forward." } }
        }
    }
}

fn because(cause: &Cause) -> Markup {
    html! {
        @match cause {
            Cause::Cancelled { by, reason } => { strong { (by) } " cancelled it: " (reason) },
            Cause::DeadlineExceeded => { "its deadline passed." },
            Cause::Operator { by, reason } => { strong { (by) } " decided so: " (reason) },
            Cause::StepFailed { step, reason } => { code { (step) } " failed: " (words::cut(reason, 600)) },
            _ => { "of a cause that this version does not know." },
        }
    }
}

fn known(
    console: &Console,
    visit: &Visit,
    definition: &Definition,
    state: &SagaState,
    loaded: &Loaded,
) -> Markup {
    let s = &loaded.summary;
    let waits = state.nodes.iter().any(|n| n.item.is_some());
    let whole = view::legal_on_saga(s, Some((definition, state)));
    html! {
        @if let Some(why) = view::set_aside(s, Some(state)) { (set_aside(why)) }
        @if waits { div.item { (needs(console, visit, "../", definition, state, loaded)) } }
        @if !whole.is_empty() && visit.operates() {
            section aria-labelledby="h-all" {
                h2 #h-all { "The whole saga" }
                (press::links("../", s.uid.as_str(), s.next_seq, None, &whole))
            }
        }
        section aria-labelledby="h-graph" { h2 #h-graph { "Graph" } (graph::draw(definition, state)) }
        section aria-labelledby="h-steps" {
            h2 #h-steps { "Steps" }
            ul.steps {
                @for (step, node) in definition.steps().iter().zip(&state.nodes).take(MAX_STEPS) {
                    li { (one(console, visit, definition, state, loaded, step, node)) }
                }
            }
            @if definition.steps().len() > MAX_STEPS { p.dim { "The others are in the export." } }
        }
    }
}

fn one(
    console: &Console,
    visit: &Visit,
    definition: &Definition,
    state: &SagaState,
    loaded: &Loaded,
    step: &Step,
    node: &Node,
) -> Markup {
    let now = console.app.rt.clock().wall();
    let seen = loaded.summary.next_seq;
    let legal = state.legal_on_step(definition, &step.name);
    let kind = match step.kind {
        StepKind::Compensable => "can be undone",
        StepKind::Pivot => "pivot: no way back after it",
        StepKind::Retriable => "after the pivot: must finish",
    };
    let effect = match node.remaining() {
        Effect::None => None,
        Effect::Maybe => Some("may have an effect"),
        Effect::Did => Some("has an effect"),
    };
    let name = &step.name;
    html! {
        div.lead { code { (name) } (words::of_step(view::word(node)).badge()) span.dim { (kind)
            @if let Some(effect) = effect { " \u{b7} " (effect) }
            @if node.current().attempts > 0 { " \u{b7} " (words::plural(u64::from(node.current().attempts), "attempt")) }
            @if node.current().undo_attempts > 0 { ", " (words::plural(u64::from(node.current().undo_attempts), "undo attempt")) }
            @if let Some(at) = node.retry_at { " \u{b7} next try " (words::countdown(now, WallTime::from_unix_millis(at))) }
        } }
        @if let Some(error) = node.last_error.as_ref().filter(|_| !node.done && node.item.is_none()) { p.why { (words::cut(error, 600)) } }
        details id={ "s-" (name) } {
            summary { "Calls and data" span.sr { " of " (name) } }
            p.pair { span.dim { "Action" } " " (call(&step.action)) }
            p.pair { span.dim { "Undo" } " " @match &step.undo { Undo::Call(c) => (call(c)), Undo::None(why) => { "none: " (why) } } }
            @if let Some(status) = &step.status { p.pair { span.dim { "Status" } " " code { (words::address(status)) } } }
            p.pair { span.dim { "Timeout" } " " (words::took(step.timeout)) ", at most " (words::plural(u64::from(step.retry.attempts), "attempt")) }
            (parts::payload(&format!("i-{name}"), "Input", &console.redact.shown(&super::attention::input(definition, state, name))))
            @if let Some(output) = &node.current().output { (parts::payload(&format!("o-{name}"), "Output", &console.redact.shown(output))) }
        }
        // What needs a person has its buttons above.
        @if node.item.is_none() && visit.operates() { (press::links("../", loaded.summary.uid.as_str(), seen, Some(name), &legal)) }
    }
}

fn call(call: &Call) -> Markup {
    html! { @match call { Call::Http(url) => { "POST " code { (words::address(url)) } }, Call::Local => "in the process" } }
}

fn about(console: &Console, visit: &Visit, loaded: &Loaded) -> Result<Markup, Problem> {
    let s = &loaded.summary;
    let uid = words::encode(s.uid.as_str());
    let with_token = console.access.needed()?;
    let input = loaded.records.first().and_then(|r| serde_json::from_slice::<Value>(&r.bytes).ok());
    let input = input.map(|v| console.redact.shown(&v["input"]));
    Ok(html! {
        section aria-labelledby="h-about" {
            h2 #h-about { "About it" }
            dl.facts {
                div { dt { "Uid" } dd { code { (s.uid.as_str()) } } }
                div { dt { "Version seen" } dd { (s.next_seq) } }
                div { dt { "Node" } dd { (s.owner.as_deref().unwrap_or("none")) } }
                div { dt { "Fencing token" } dd { (s.epoch) } }
                div { dt { "Definition hash" } dd { code { (s.definition_hash.to_string()[..16]) } } }
                @for (k, v) in &s.row.attrs {
                    div {
                        dt { (k) }
                        @if console.redact.hides(k) {
                            dd { (HIDDEN) }
                        } @else {
                            dd { a href={ "../sagas?attr." (words::encode(k)) "=" (words::encode(v)) } { (v) } }
                        }
                    }
                }
            }
            @if let Some(input) = &input { (parts::payload("input", "Input of the saga", input)) }
            p { a.button href={ (uid) "/export" } { "Export" } " " span.dim { "its definition and whole history as one file; hidden values stay hidden" } }
            (parts::command("c-saga", "The same by the API", &parts::curl_get(visit, with_token, &format!("/v1/sagas/{uid}"))))
        }
    })
}

/// `GET sagas/{uid}/export`: as the export of the API, with hidden values hidden.
pub(super) async fn export(
    State(console): State<Arc<Console>>,
    Path(uid): Path<String>,
    RawQuery(raw): RawQuery,
    _: Visit,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let loaded = sagas::look(&console.app, &uid).await?;
    let mut body = sagas::exported(&console.app, &console.redact, &loaded);
    body["hidden"] = true.into();
    let mut response = reply(StatusCode::OK, &body);
    let safe: String = uid.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').collect();
    if let Ok(value) = HeaderValue::from_str(&format!("attachment; filename=\"saga-{safe}.json\"")) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
    }
    Ok(response)
}
