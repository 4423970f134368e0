//! Health, version and the pages of problems.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use serde_json::json;

use crate::api::App;
use crate::api::json::{bytes, reply, store_problem};
use crate::error::Code;
use crate::http::Problem;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/livez", get(async || bytes(StatusCode::OK, "text/plain", "up\n")))
        .route("/readyz", get(readyz))
        .route("/version", get(version))
        .route("/problems/{code}", get(problem))
}

/// Up or down, nothing else: this route is open.
async fn readyz(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    if app.drain.is_cancelled() {
        return Err(Problem::new(Code::Draining, "the server is stopping").retry_after(1));
    }
    if !app.engine.is_recovered() {
        return Err(Problem::new(Code::Overloaded, "sagas of the last run are being taken up").retry_after(1));
    }
    if !app.engine.holds_claims() {
        let why = "the journal takes no writes: nothing is driven here";
        return Err(Problem::new(Code::StoreUnavailable, why).retry_after(1));
    }
    app.journal.last_cursor().await.map_err(|e| store_problem(&e))?;
    Ok(bytes(StatusCode::OK, "text/plain", "ready\n"))
}

async fn version(State(app): State<Arc<App>>) -> Response {
    let needed = app.tokens.needed().unwrap_or(true);
    let body = json!({
        "name": "mainstay",
        "version": env!("CARGO_PKG_VERSION"),
        "api": "v1",
        "auth": if needed { "tokens" } else { "none (loopback)" },
        "time": crate::api::instant(app.rt.clock().wall()),
    });
    reply(StatusCode::OK, &body)
}

async fn problem(Path(name): Path<String>) -> Result<Response, Problem> {
    let code = Code::parse(&name);
    let code = code.ok_or_else(|| Problem::new(Code::NotFound, "no such error code"))?;
    Ok(bytes(StatusCode::OK, "text/markdown; charset=utf-8", code.page()))
}
