//! The frame of every page.

use axum::response::Response;
use http::StatusCode;
use maud::{DOCTYPE, Markup, html};

use crate::api::json::bytes;
use crate::console::activity::MANY;
use crate::console::visit::Visit;
use crate::console::{Console, assets, parts, words};
use crate::http::Problem;

/// Which page of the navigation it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Attention,
    Audit,
    Elections,
    Locks,
    Members,
    Nodes,
    Now,
    Sagas,
    System,
}

const PLACES: [(Place, &str, &str); 9] = [
    (Place::Now, "now", "Now"),
    (Place::Attention, "attention", "Attention"),
    (Place::Sagas, "sagas", "Sagas"),
    (Place::Locks, "locks", "Locks"),
    (Place::Elections, "elections", "Elections"),
    (Place::Members, "members", "Members"),
    (Place::Nodes, "nodes", "Nodes"),
    (Place::Audit, "audit", "Audit"),
    (Place::System, "system", "System"),
];

/// A page to render.
pub(super) struct Page<'a> {
    pub(super) console: &'a Console,
    pub(super) visit: &'a Visit,
    pub(super) title: &'a str,
    pub(super) place: Place,
    /// From this page to the mount: `""`, `"../"` and so on.
    pub(super) root: &'a str,
    /// The stream of hints, relative to the mount; none for pages with a form.
    pub(super) live: Option<String>,
    pub(super) status: StatusCode,
}

impl<'a> Page<'a> {
    /// A page at the mount.
    pub(super) fn new(console: &'a Console, visit: &'a Visit, place: Place, title: &'a str) -> Self {
        Self { console, visit, title, place, root: "", live: None, status: StatusCode::OK }
    }

    /// The answer. `fixed` stays while the page lives, `live` is replaced.
    pub(super) async fn render(self, fixed: Markup, live: Markup) -> Response {
        let waiting = self.console.activity.attention(&self.console.app).await;
        let now = self.console.app.rt.clock().wall();
        let needed = self.console.access.needed().unwrap_or(true);
        let stream = self.live.as_ref().map(|l| format!("{}{l}", self.root));
        let body = html! {
            header.top {
                a.brand href={ (self.root) "now" } { img src={ (self.root) (assets::address("icon.svg")) } alt="" width="20" height="20"; "mainstay" }
                nav aria-label="Pages" { (self.links(waiting)) }
                div.visitor {
                    @if self.live.is_some() {
                        button #pause type="button" hidden aria-pressed="false" { "Pause" }
                        span #state role="status" {}
                    }
                    @if needed {
                        span { (self.visit.caller.name) " (" (self.visit.caller.scope.as_str()) ")" }
                        form method="post" action={ (self.root) "logout" } {
                            (parts::form_token(self.visit))
                            button.quiet type="submit" { "Log out" }
                        }
                    } @else {
                        span.dim title="No token exists, so everybody who reaches this loopback address may do everything." { "no login" }
                    }
                }
            }
            main #main tabindex="-1" {
                (fixed)
                div #live data-swap { (live) }
            }
            footer {
                "mainstay " (env!("CARGO_PKG_VERSION")) " \u{b7} "
                @if needed { "tokens needed" } @else { "no authentication, loopback only" }
                " \u{b7} rendered " (words::moment(now))
            }
        };
        let html = frame(self.title, self.root, stream.as_deref(), now.unix_millis(), &body);
        bytes(self.status, "text/html; charset=utf-8", html.0)
    }

    fn links(&self, waiting: u64) -> Markup {
        let seen = |place: &Place| match place {
            Place::Audit | Place::System => self.visit.administers(),
            _ => true,
        };
        html! {
            @for (place, address, name) in PLACES.iter().filter(|(p, _, _)| seen(p)) {
                a href={ (self.root) (address) } aria-current=[(*place == self.place).then_some("page")] {
                    (name)
                    @if *place == Place::Attention {
                        span #waiting data-swap {
                            @if waiting > 0 { " " span.count { @if waiting > MANY as u64 { (MANY) "+" } @else { (waiting) } span.sr { " waiting" } } }
                        }
                    }
                }
            }
        }
    }
}

/// Head and body around everything.
fn frame(title: &str, root: &str, live: Option<&str>, now: i64, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " - mainstay" }
                link rel="icon" href={ (root) (assets::address("icon.svg")) };
                link rel="stylesheet" href={ (root) (assets::address("console.css")) };
                script defer src={ (root) (assets::address("console.js")) } {}
            }
            body data-live=[live] data-now=(now) {
                a.skip href="#main" { "Skip to the content" }
                (body)
            }
        }
    }
}

/// A page without navigation: the login, and problems that the gate finds.
pub(super) fn bare(status: StatusCode, title: &str, root: &str, body: &Markup) -> Response {
    let body = html! {
        header.top { a.brand href={ (root) "now" } { img src={ (root) (assets::address("icon.svg")) } alt="" width="20" height="20"; "mainstay" } }
        main #main.narrow tabindex="-1" { (body) }
    };
    bytes(status, "text/html; charset=utf-8", frame(title, root, None, 0, &body).0)
}

/// The page of a problem: what, why, how to go on.
pub(super) fn problem(problem: &Problem, root: &str, trace: &str) -> Response {
    let code = problem.code();
    let body = html! {
        h1 { (code.title()) }
        p { (problem.detail()) }
        @if let Some(seconds) = problem.wait() { p { "Try again in " (seconds) " s." } }
        p.dim {
            a href={ (root) "../problems/" (code.name()) } { (code.name()) }
            @if !trace.is_empty() { " \u{b7} trace " code { (trace) } }
        }
        p { a.button href={ (root) "now" } { "Back to the console" } }
    };
    let mut response = bare(problem.status(), code.title(), root, &body);
    if let Some(seconds) = problem.wait() {
        response.headers_mut().insert(http::header::RETRY_AFTER, seconds.into());
    }
    response
}
