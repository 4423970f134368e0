//! The console: pages for whoever is on duty. Rendered here, live by a stream of hints, whole without
//! JavaScript. Every link is relative, so it works wherever its router is mounted and behind any prefix.

mod act;
mod activity;
mod assets;
mod attention;
mod audit;
mod breakers;
mod bulk;
mod events;
mod graph;
mod leases;
mod login;
mod nodes;
mod now;
mod page;
mod parts;
mod press;
mod saga;
mod sagas;
mod system;
#[cfg(test)]
mod tests;
mod timeline;
mod visit;
mod words;

use std::sync::Arc;

use axum::Router;
use axum::extract::{OriginalUri, Request};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};

use crate::api::App;
use crate::config::Config;
use crate::error::Code;
use crate::http::{Access, Pages, Problem, Trace};
use crate::redact::Redact;
use activity::Activity;

/// Where `serve` mounts it. The scopes of its routes (`http::auth`) are written with this prefix.
pub(crate) const MOUNT: &str = "/console";

/// A configuration key as shown to people.
pub(crate) struct Setting {
    path: &'static str,
    value: String,
    origin: String,
}

/// What the pages share.
pub(crate) struct Console {
    app: Arc<App>,
    access: Arc<Access>,
    activity: Activity,
    redact: Redact,
    settings: Vec<Setting>,
}

impl Console {
    /// The console of a node.
    pub(crate) fn new(app: Arc<App>, access: Arc<Access>, config: &Config) -> Self {
        let settings = config.entries().map(|(path, value, origin)| Setting {
            path,
            value: value.to_toml(),
            origin: origin.to_string(),
        });
        Self {
            activity: Activity::default(),
            redact: Redact::new(config.list("payload.redact"), config.list("console.redact")),
            settings: settings.collect(),
            app,
            access,
        }
    }

    /// How commands find the leases of this node. As the configuration is shown: without passwords.
    fn lease_store(&self) -> &str {
        let set = self.settings.iter().find(|s| s.path == "store.leases").map(|s| s.value.trim_matches('"'));
        set.filter(|url| !url.is_empty()).unwrap_or("sqlite:DATA/leases.sqlite")
    }

    /// Samples what the charts show until the node stops.
    pub(crate) async fn sample(&self) {
        self.activity.run(&self.app).await;
    }
}

/// The pages, for any place. Whatever stands in front puts `Caller`, `FormToken`, `Trace` and `Peer` in.
pub(crate) fn router(console: Arc<Console>) -> Router {
    Router::new()
        .route("/", get(enter))
        .route("/now", get(now::show))
        .route("/attention", get(attention::show))
        .route("/attention/act", get(bulk::show).post(bulk::submit))
        .route("/sagas", get(sagas::show))
        .route("/sagas/{uid}", get(saga::show))
        .route("/sagas/{uid}/act", get(act::show).post(act::submit))
        .route("/sagas/{uid}/export", get(saga::export))
        .route("/locks", get(leases::locks))
        .route("/elections", get(leases::elections))
        .route("/members", get(leases::members))
        .route("/leases/break", get(leases::ask).post(leases::submit))
        .route("/nodes", get(nodes::show))
        .route("/audit", get(audit::show))
        .route("/system", get(system::show))
        .route("/login", get(login::show).post(login::submit))
        .route("/logout", axum::routing::post(login::leave))
        .route("/events", get(events::stream))
        .route("/assets/{name}", get(assets::serve))
        .fallback(nowhere)
        .layer(from_fn(as_pages))
        .with_state(console)
}

/// The router under [`MOUNT`], with the bare address leading there.
pub(crate) fn mounted(console: Arc<Console>) -> Router {
    let slash = format!("{MOUNT}/");
    Router::new()
        .route("/", get(async || see_other(&format!("{}/now", &MOUNT[1..]))))
        .route(&slash, get(async || see_other("now")))
        .nest(MOUNT, router(console))
}

/// How the gate answers problems of pages.
pub(crate) const PAGES: Pages = Pages { is_page, render: refusal };

fn is_page(uri: &Uri, headers: &HeaderMap) -> bool {
    let below = uri.path().strip_prefix(MOUNT);
    let asks = || headers.get(header::ACCEPT).is_some_and(|v| v.to_str().unwrap_or("").contains("text/html"));
    match below {
        Some(rest) => rest.is_empty() || rest.starts_with('/'),
        None => uri.path() == "/" && asks(),
    }
}

/// The page of a problem that the gate found; who is not known is asked.
fn refusal(problem: &Problem, uri: &Uri, trace: &Trace) -> Response {
    let below = uri.path().strip_prefix(MOUNT).unwrap_or("").trim_start_matches('/');
    if problem.code() == Code::Unauthenticated && !below.starts_with("events") {
        let query = uri.query().map(|q| format!("?{q}")).unwrap_or_default();
        let root =
            if uri.path() == "/" || uri.path() == MOUNT { format!("{}/", &MOUNT[1..]) } else { up(below) };
        let next = words::encode(&format!("{below}{query}"));
        return see_other(&format!("{root}login?next={next}"));
    }
    page::problem(problem, &up(below), trace.id())
}

/// Turns problems of the pages into pages.
async fn as_pages(request: Request, next: Next) -> Response {
    let path = request.uri().path().trim_start_matches('/').to_owned();
    let trace = request.extensions().get::<Trace>().map(|t| t.id().to_owned()).unwrap_or_default();
    let mut response = next.run(request).await;
    match response.extensions_mut().remove::<Problem>() {
        Some(problem) => page::problem(&problem, &up(&path), &trace),
        None => response,
    }
}

/// From a page below the mount back to it.
fn up(below: &str) -> String {
    "../".repeat(below.matches('/').count())
}

async fn enter(OriginalUri(uri): OriginalUri) -> Response {
    let last = uri.path().rsplit('/').next().unwrap_or("");
    see_other(&if last.is_empty() { "now".to_owned() } else { format!("{last}/now") })
}

async fn nowhere() -> Response {
    Problem::new(Code::NotFound, "no page has this address").into_response()
}

/// Leads a browser to another page by GET.
fn see_other(to: &str) -> Response {
    let mut response = Response::new(axum::body::Body::empty());
    *response.status_mut() = StatusCode::SEE_OTHER;
    if let Ok(value) = HeaderValue::from_str(to) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    // An empty body with a type: the gate leaves answers for people alone.
    response
}
