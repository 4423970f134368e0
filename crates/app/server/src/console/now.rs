//! *Now*: is anything wrong?

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use mainstay_clock::WallTime;
use mainstay_store::journal::{Filter, SagaStatus, StatusCount};
use maud::{Markup, html};

use crate::api::json::store_problem;
use crate::api::query::Query;
use crate::console::activity::{COLUMNS, Columns, Totals};
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, breakers, parts, sagas, words};
use crate::http::Problem;

/// Newest sagas shown.
const NEWEST: usize = 8;
/// Most definitions with a row of their own; the list can be filtered for the others.
const MAX_DEFINITIONS: usize = 50;

/// `GET now`.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let app = &console.app;
    let counts = console.activity.counts(app).await?;
    let totals = Totals::of(&counts);
    let newest = app.journal.query(&Filter::default(), None, NEWEST).await.map_err(|e| store_problem(&e))?;
    let now = app.rt.clock().wall();
    let live = html! {
        (verdict(&counts, totals, now, app.engine.is_recovered()))
        (cards(&counts, totals))
        (breakers::section(&app.participants.breakers(), &app.rt))
        (charts(&console.activity.columns(totals)))
        (definitions(&counts))
        section aria-labelledby="h-new" {
            h2 #h-new { "Newest sagas" }
            @if newest.rows.is_empty() {
                p.empty { "No saga was started yet. " code { "POST /v1/sagas" } " or " code { "mainstay saga run" } " starts one." }
            } @else {
                (sagas::table("", &newest.rows, now))
            }
        }
    };
    let page = Page { live: Some("events".to_owned()), ..Page::new(&console, &visit, Place::Now, "Now") };
    Ok(page.render(html! {}, live).await)
}

/// The one sentence that the page exists for.
fn verdict(counts: &[StatusCount], totals: Totals, now: WallTime, recovered: bool) -> Markup {
    let stuck = counts.iter().filter(|c| c.status == SagaStatus::NeedsAttention);
    let oldest = stuck.map(|c| c.oldest).min();
    let retrying: u64 = counts.iter().map(|c| c.retrying).sum();
    html! {
        @if let Some(oldest) = oldest.filter(|_| totals.waiting > 0) {
            div.verdict.bad {
                h1 { (words::plural(totals.waiting, "saga")) @if totals.waiting == 1 { " needs" } @else { " need" } " a person" }
                p { "The oldest has been waiting for " (words::lasting(now, oldest)) ". "
                    a href="attention" { "See what may be pressed" } }
            }
        } @else if totals.waiting > 0 {
            div.verdict.warn {
                h1 { (words::plural(totals.waiting, "saga")) @if totals.waiting == 1 { " is" } @else { " are" } " overdue" }
                p { "Past the deadline with no way back, and going on. " a href="attention" { "See what may be pressed" } }
            }
        } @else if !recovered {
            div.verdict.warn { h1 { "Taking up the sagas of the last run" } p { "The node is not ready yet." } }
        } @else if retrying > 0 {
            div.verdict.warn {
                h1 { "No saga needs a person" }
                p { (words::plural(retrying, "saga")) @if retrying == 1 { " is" } @else { " are" } " between two attempts; they go on by themselves. "
                    a href="sagas?status=retrying" { "See them" } }
            }
        } @else {
            div.verdict.good { h1 { "Nothing is wrong" } p { "No saga needs a person, none is being retried." } }
        }
    }
}

fn sum(counts: &[StatusCount], status: SagaStatus) -> u64 {
    counts.iter().filter(|c| c.status == status).map(|c| c.count).sum()
}

fn cards(counts: &[StatusCount], totals: Totals) -> Markup {
    let retrying: u64 = counts.iter().map(|c| c.retrying).sum();
    let moving = sum(counts, SagaStatus::Running) + sum(counts, SagaStatus::Waiting);
    let all = [
        ("attention", "needs attention", totals.waiting, if totals.waiting > 0 { "bad" } else { "" }),
        ("sagas?status=retrying", "retrying", retrying, if retrying > 0 { "warn" } else { "" }),
        ("sagas?status=running,waiting", "running", moving, ""),
        ("sagas?status=compensating", "compensating", sum(counts, SagaStatus::Compensating), ""),
        ("sagas?status=completed", "completed", totals.done, ""),
        ("sagas?status=compensated", "compensated", sum(counts, SagaStatus::Compensated), ""),
        ("sagas?status=abandoned", "abandoned", sum(counts, SagaStatus::Abandoned), ""),
    ];
    // What a person gave up is rare: no card says zero.
    let all = all.into_iter().filter(|(_, name, count, _)| *name != "abandoned" || *count > 0);
    html! {
        ul.cards aria-label="Sagas by state" {
            @for (address, name, count, class) in all {
                li class=(class) { a href=(address) { strong { (words::number(count)) } span { (name) } } }
            }
        }
    }
}

fn charts(columns: &Columns) -> Markup {
    let all = [
        ("started", &columns.started, "run"),
        ("completed", &columns.completed, "good"),
        ("compensated", &columns.compensated, "back"),
    ];
    html! {
        section aria-labelledby="h-act" {
            h2 #h-act { "The last 15 minutes" }
            div.charts {
                @for (name, values, class) in all {
                    @let total: u64 = values.iter().sum();
                    @let most = values.iter().copied().max().unwrap_or(0);
                    @let text = format!("{name}: {total} in all, at most {most} in 15 seconds");
                    figure {
                        figcaption { strong { (words::number(total)) } " " (name) }
                        @if values.is_empty() { p.dim { "no samples yet" } } @else {
                            (parts::columns(values, COLUMNS, class, &text))
                            p.dim { "at most " (words::number(most)) " in 15 s" }
                        }
                    }
                }
            }
        }
    }
}

fn definitions(counts: &[StatusCount]) -> Markup {
    let mut rows: BTreeMap<&str, Vec<&StatusCount>> = BTreeMap::new();
    for count in counts {
        rows.entry(&count.definition).or_default().push(count);
    }
    let states = [
        SagaStatus::NeedsAttention,
        SagaStatus::Running,
        SagaStatus::Compensating,
        SagaStatus::Completed,
        SagaStatus::Compensated,
    ];
    html! {
        @if !rows.is_empty() {
            section aria-labelledby="h-def" {
                h2 #h-def { "By definition" }
                div.scroll tabindex="0" role="region" aria-label="Counts by definition and state" {
                    table.numbers {
                        thead { tr { th scope="col" { "Definition" } @for s in states { th scope="col" { (heading(s)) } } } }
                        tbody {
                            @for (name, counts) in rows.iter().take(MAX_DEFINITIONS) {
                                tr {
                                    th scope="row" { a href={ "sagas?definition=" (words::encode(name)) } { (name) } }
                                    @for s in states { td { (cell(name, s, counts)) } }
                                }
                            }
                        }
                    }
                }
                @if rows.len() > MAX_DEFINITIONS { p.dim { (rows.len() - MAX_DEFINITIONS) " more: use the filters of the list." } }
            }
        }
    }
}

/// The sign and the word; narrow screens show the sign.
fn heading(status: SagaStatus) -> Markup {
    let sign = words::of_status(status);
    html! { i aria-hidden="true" { (sign.1) } " " span.word { (sign.2) } }
}

fn cell(name: &str, status: SagaStatus, counts: &[&StatusCount]) -> Markup {
    let n: u64 = counts.iter().filter(|c| c.status == status).map(|c| c.count).sum();
    html! {
        @if n == 0 { span.dim { "0" } } @else {
            a href={ "sagas?definition=" (words::encode(name)) "&status=" (status.as_str()) } { (words::number(n)) }
        }
    }
}
