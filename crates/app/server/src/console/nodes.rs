//! *Nodes*: who is there, and whose breakers are open.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use maud::{Markup, html};

use crate::api::query::Query;
use crate::console::page::{Page, Place};
use crate::console::visit::Visit;
use crate::console::{Console, parts, words};
use crate::fleet::{Fleet, Seen};
use crate::http::Problem;

/// Nodes come and go without an event: the page is fetched again after this many seconds.
const REFRESH: &str = "events?every=2";

/// `GET nodes`.
pub(super) async fn show(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    visit: Visit,
) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let needed = console.access.needed()?;
    let live = html! {
        @match console.app.fleet.as_deref() {
            None => p.empty { "This node is on its own. " code { "[gossip] bind" } " in the configuration lets it find others." },
            Some(fleet) => (fleet_of(fleet)),
        }
        (parts::command("c-nodes", "The same by the API", &parts::curl_get(&visit, needed, "/v1/nodes")))
    };
    let page = Page { live: Some(REFRESH.to_owned()), ..Page::new(&console, &visit, Place::Nodes, "Nodes") };
    Ok(page.render(html! { h1 { "Nodes" } }, live).await)
}

fn fleet_of(fleet: &Fleet) -> Markup {
    let nodes = fleet.nodes();
    let there = nodes.iter().filter(|n| matches!(n.state, "here" | "up")).count();
    let open = fleet.open_breakers();
    html! {
        section aria-labelledby="h-nodes" {
            h2 #h-nodes { (there) " of " (nodes.len()) " nodes of " code { (fleet.cluster()) } " are there" }
            ul.rows { @for node in &nodes { (row(node)) } }
        }
        section aria-labelledby="h-open" {
            h2 #h-open { "Open breakers" }
            @if open.is_empty() { p.empty { "No node sees one." } } @else {
                ul.rows {
                    @for o in &open {
                        li.row {
                            div.main { p.lead { strong { (o.origin) } } p { "seen open by " (o.nodes.join(", ")) } }
                            div.side { (o.nodes.len()) " of " (there) }
                        }
                    }
                }
            }
        }
    }
}

fn row(node: &Seen) -> Markup {
    let word = match node.state {
        "here" => "this node",
        "unseen" => "never seen",
        other => other,
    };
    html! {
        li.row {
            div.main {
                p.lead { strong { (node.name) } " " @if node.state == "down" { strong { (word) } } @else { span.dim { (word) } } }
                @if let Some(s) = &node.status {
                    p { "version " (s.version) ", since " (s.since) ", " (words::plural(s.sagas as u64, "saga")) " in memory" }
                }
                @if !node.configured { p.dim { "not among the configured members: it does not decide what may be forgotten" } }
            }
            div.side { @if let Some(a) = node.address { code { (a) } } }
        }
    }
}
