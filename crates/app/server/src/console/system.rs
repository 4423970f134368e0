//! *System*: what runs here, with which settings, and who may come in.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};

use crate::api::query::Query;
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, parts, words};
use crate::http::Problem;

/// `GET system`.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let needed = console.access.needed()?;
    let app = &console.app;
    let live = html! {
        section aria-labelledby="h-node" {
            h2 #h-node { "Node" }
            dl.facts {
                div { dt { "Version" } dd { (env!("CARGO_PKG_VERSION")) } }
                div { dt { "Authentication" } dd {
                    @if needed { "tokens needed" } @else { "none: whoever reaches this loopback address may do everything" }
                } }
                div { dt { "Recovery" } dd { @if app.engine.is_recovered() { "done" } @else { "taking up sagas of the last run" } } }
                div { dt { "Sagas in memory" } dd { (words::number(app.engine.in_flight() as u64)) } }
                div { dt { "Wall clock" } dd { (words::moment(app.rt.clock().wall())) } }
            }
        }
        (tokens(&console))
        section aria-labelledby="h-defs" {
            h2 #h-defs { "Definitions" }
            @if app.engine.definitions().is_empty() { p.empty { "None is stored. " code { "PUT /v1/definitions/{name}" } " stores one." } }
            ul.plain {
                @for d in app.engine.definitions() {
                    li { a href={ "sagas?definition=" (words::encode(d.name())) } { (d.name()) } " "
                        span.dim { "version " (d.version()) " \u{b7} " (words::plural(d.steps().len() as u64, "step")) } }
                }
            }
        }
        (settings(&console))
        (parts::command("c-version", "The same by the API", &parts::curl_get(&visit, needed, "/version")))
    };
    let page =
        Page { live: Some("events".to_owned()), ..Page::new(&console, &visit, Place::System, "System") };
    Ok(page.render(html! { h1 { "System" } }, live).await)
}

fn tokens(console: &Console) -> Markup {
    let list = console.access.tokens.all();
    let now = console.app.rt.clock().wall();
    html! {
        section aria-labelledby="h-tok" {
            h2 #h-tok { "Tokens" }
            @match list {
                Err(_) => p.notice.bad { "The token file cannot be used: nobody new is admitted." },
                Ok(list) if list.is_empty() => p.empty { "None. " code { "mainstay token create" } " makes one; from then on everybody needs one." },
                Ok(list) => ul.plain {
                    @for t in list.iter() {
                        li { strong { (t.name) } " " span.dim { (t.scope.as_str()) " \u{b7} "
                            @match t.expires {
                                None => "does not expire",
                                Some(at) if at <= now => "expired",
                                Some(at) => { "expires " (words::countdown(now, at)) },
                            } } }
                    }
                },
            }
        }
    }
}

fn settings(console: &Console) -> Markup {
    html! {
        section aria-labelledby="h-conf" {
            h2 #h-conf { "Configuration" }
            ul.rows {
                @for s in &console.settings {
                    li.row {
                        div.main { p.lead { code { (s.path) } } p.value { (s.value) } }
                        div.side { @if s.origin == "default" { span.dim { "default" } } @else { (s.origin) } }
                    }
                }
            }
        }
    }
}
