//! *Sagas*: the list. Its filters are its address, and the parameters of the API.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use mainstay_clock::WallTime;
use mainstay_store::ErrorKind;
use mainstay_store::journal::{SagaStatus, Summary};
use maud::{Markup, html};

use crate::api::json::store_problem;
use crate::api::query::Query;
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, parts, words};
use crate::error::Code;
use crate::http::Problem;

/// Rows of a page.
const ROWS: usize = 50;

/// `GET sagas`.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    let given = Given::read(raw.as_deref())?;
    let mut query = Query::parse(Some(&given.address(None)))?;
    let (filter, after) = query.filter()?;
    query.end()?;
    let page =
        console.app.journal.query(&filter, after.as_ref(), ROWS).await.map_err(|e| match e.kind() {
            ErrorKind::ApiMisuse => Problem::new(Code::BadQuery, "`cursor` is malformed"),
            _ => store_problem(&e),
        })?;
    let now = console.app.rt.clock().wall();
    let next = page.next.as_ref().map(|c| given.address(Some(&c.0)));
    let mut names: Vec<String> =
        console.app.engine.definitions().iter().map(|d| d.name().to_owned()).collect();
    names.dedup();
    let filtered = !given.pairs.iter().all(|(name, _)| name == "cursor");
    let api = format!("/v1/sagas?{}", given.address(None));
    let with_token = console.access.needed()?;
    let live = html! {
        @if page.rows.is_empty() {
            p.empty { @if filtered { "No saga matches. " a href="sagas" { "Show all" } } @else { "No saga was started yet." } }
        } @else {
            (table("", &page.rows, now))
        }
        p.pages {
            @if after.is_some() { a.button href={ "sagas?" (given.first()) } { "Newest" } }
            @if let Some(next) = &next { a.button rel="next" href={ "sagas?" (next) } { "Older" } }
        }
        (parts::command("c-list", "The same by the API", &parts::curl_get(&visit, with_token, api.trim_end_matches('?'))))
    };
    let fixed = html! { h1 { "Sagas" } (views(&given)) (form(&given, &names)) };
    let live_stream = after.is_none().then(|| "events".to_owned());
    let page = Page { live: live_stream, ..Page::new(&console, &visit, Place::Sagas, "Sagas") };
    Ok(page.render(fixed, live).await)
}

/// What was asked for, without empty fields.
struct Given {
    pairs: Vec<(String, String)>,
}

impl Given {
    fn read(raw: Option<&str>) -> Result<Self, Problem> {
        let kept: Vec<&str> =
            raw.unwrap_or("").split('&').filter(|p| !p.is_empty() && !p.ends_with('=')).collect();
        let pairs = Query::parse(Some(&kept.join("&")))?.pairs();
        Ok(Self { pairs })
    }

    fn of(&self, name: &str) -> &str {
        self.pairs.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
    }

    /// The same address, from `cursor` on when given.
    fn address(&self, cursor: Option<&str>) -> String {
        let own = self.pairs.iter().filter(|(n, _)| cursor.is_none() || n != "cursor");
        let own = own.map(|(n, v)| (n.as_str(), v.as_str()));
        join(own.chain(cursor.map(|c| ("cursor", c))))
    }

    /// The same filters, at the newest.
    fn first(&self) -> String {
        self.without("cursor")
    }

    fn without(&self, name: &str) -> String {
        let kept = self.pairs.iter().filter(|(n, _)| n != name && n != "cursor");
        join(kept.map(|(n, v)| (n.as_str(), v.as_str())))
    }
}

fn join<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    // The names of filters are ours, or `attr.` and a name of the user's.
    let coded = pairs.map(|(n, v)| format!("{}={}", words::encode(n), words::encode(v).replace("%2C", ",")));
    coded.collect::<Vec<_>>().join("&")
}

/// What is asked for again and again, as filters.
const VIEWS: [(&str, &str); 6] = [
    ("All", ""),
    ("Waiting for a person", "attention=true"),
    ("Overdue", "overdue=true"),
    ("Retrying", "status=retrying"),
    ("Tried five times or more", "attempt_gte=5"),
    ("Paused", "paused=true"),
];

fn views(given: &Given) -> Markup {
    let now = given.first();
    html! {
        nav.views aria-label="Views" {
            @for (name, filters) in VIEWS {
                @let address = if filters.is_empty() { "sagas".to_owned() } else { format!("sagas?{filters}") };
                a href=(address) aria-current=[(filters == now).then_some("true")] { (name) }
            }
        }
    }
}

/// Filters with a field of their own; the others are shown as removable words.
const FIELDS: [&str; 6] = ["status", "definition", "id", "step", "error~", "attempt_gte"];

fn form(given: &Given, names: &[String]) -> Markup {
    let states: Vec<&str> = SagaStatus::ALL.iter().map(|s| s.as_str()).collect();
    let status = given.of("status");
    let more: Vec<&(String, String)> =
        given.pairs.iter().filter(|(n, _)| !FIELDS.contains(&n.as_str()) && n != "cursor").collect();
    html! {
        form.filters method="get" action="sagas" role="search" aria-label="Filter sagas" {
            div { label for="f-status" { "State" }
                select #f-status name="status" {
                    option value="" { "any" }
                    option value="retrying" selected[status == "retrying"] { "retrying" }
                    @for s in &states { option value=(s) selected[*s == status] { (s.replace('_', " ")) } }
                    @if status.contains(',') { option value=(status) selected { (status.replace('_', " ").replace(',', ", ")) } }
                } }
            div { label for="f-def" { "Definition" }
                select #f-def name="definition" {
                    option value="" { "any" }
                    @let chosen = given.of("definition");
                    @for n in names { option value=(n) selected[n == chosen] { (n) } }
                    @if !chosen.is_empty() && !names.iter().any(|n| n == chosen) { option value=(chosen) selected { (chosen) } }
                } }
            div { label for="f-id" { "Id is" } input #f-id name="id" value=(given.of("id")) spellcheck="false"; }
            div { label for="f-step" { "At step" } input #f-step name="step" value=(given.of("step")) spellcheck="false"; }
            div { label for="f-error" { "Error contains" } input #f-error name="error~" value=(given.of("error~")) spellcheck="false"; }
            div.short { label for="f-att" { "Attempt from" } input #f-att name="attempt_gte" value=(given.of("attempt_gte")) inputmode="numeric" pattern="[0-9]*"; }
            @for (name, value) in &more { input type="hidden" name=(name) value=(value); }
            div.go { button.primary type="submit" { "Filter" } @if !given.pairs.is_empty() { a.button href="sagas" { "Clear" } } }
        }
        @if !more.is_empty() {
            p.chips { "Also: " @for (name, value) in &more {
                span.chip { (name) " = " (value) " " a href={ "sagas?" (given.without(name)) } aria-label={ "Remove the filter " (name) } { "\u{d7}" } } " "
            } }
        }
    }
}

/// Rows of sagas. A list, not a table: on a narrow screen its parts go below each other.
pub(super) fn table(root: &str, rows: &[Summary], now: WallTime) -> Markup {
    html! {
        ul.rows.sagas {
            @for s in rows {
                li.row {
                    div.state { (words::of_row(&s.row).badge()) }
                    div.main {
                        p.lead {
                            a href={ (root) "sagas/" (words::encode(s.uid.as_str())) } { (short(&s.id)) }
                            " " span.dim { (s.definition) }
                        }
                        @if let Some(step) = s.row.step.as_deref().filter(|_| !done(s)) {
                            p.why { span.dim { "at " } code { (step) } span.dim { ", attempt " (s.row.attempt) }
                                @if let Some(error) = &s.row.error { ": " (words::cut(error, 160)) } }
                        }
                    }
                    div.side {
                        @if let Some(at) = s.row.next_try.filter(|_| s.row.retrying) {
                            span.next { "next try " (words::countdown(now, at)) }
                        }
                        (words::ago(now, s.updated))
                    }
                }
            }
        }
    }
}

/// Whether there is nothing to say about where it stands.
fn done(s: &Summary) -> bool {
    s.row.status == SagaStatus::Completed || (s.row.step.is_none() && s.row.status.is_final())
}

/// An id that fits a line; the page of the saga has the whole.
fn short(id: &str) -> String {
    /// Characters.
    const LONGEST: usize = 80;
    if id.chars().count() <= LONGEST {
        return id.to_owned();
    }
    let head: String = id.chars().take(LONGEST - 1).collect();
    format!("{head}\u{2026}")
}
