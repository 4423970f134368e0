//! `GET /v1/nodes`: who is there, and whose breakers are open. `GET /v1/nodes/state`: all that the nodes told each other.

use std::sync::Arc;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use serde_json::{Value, json};

use crate::api::App;
use crate::api::json::{bytes, reply};
use crate::api::query::Query;
use crate::error::Code;
use crate::fleet::{Fleet, MAX_STATE, Seen};
use crate::http::Problem;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/nodes", get(nodes)).route("/v1/nodes/state", get(state))
}

/// The same bytes as `gossip.state` on disk would have now.
async fn state(State(app): State<Arc<App>>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let Some(fleet) = app.fleet.as_deref() else {
        return Err(Problem::new(Code::NotFound, "this node is on its own: `gossip.bind` is not set"));
    };
    let state = fleet.state();
    if state.len() > MAX_STATE {
        let size = state.len();
        let why = format!("the state takes {size} bytes, over {MAX_STATE}: compare the files `gossip.state`");
        return Err(Problem::new(Code::BodyTooLarge, why));
    }
    Ok(bytes(StatusCode::OK, "application/octet-stream", state))
}

async fn nodes(State(app): State<Arc<App>>, RawQuery(raw): RawQuery) -> Result<Response, Problem> {
    Query::parse(raw.as_deref())?.end()?;
    let body = app
        .fleet
        .as_deref()
        .map_or_else(|| json!({"gossip": false, "cluster": null, "nodes": [], "breakers": []}), described);
    Ok(reply(StatusCode::OK, &body))
}

fn described(fleet: &Fleet) -> Value {
    let nodes = fleet.nodes();
    let there = nodes.iter().filter(|n| matches!(n.state, "here" | "up")).count();
    let breakers: Vec<Value> = fleet
        .open_breakers()
        .into_iter()
        .map(|open| json!({"name": open.origin, "open_on": open.nodes.len(), "of": there, "nodes": open.nodes}))
        .collect();
    json!({
        "gossip": true,
        "cluster": fleet.cluster(),
        "nodes": nodes.iter().map(node).collect::<Vec<Value>>(),
        "breakers": breakers,
    })
}

fn node(seen: &Seen) -> Value {
    let status = seen.status.as_ref();
    json!({
        "name": seen.name,
        "state": seen.state,
        "configured": seen.configured,
        "address": seen.address.map(|a| a.to_string()),
        "version": status.map(|s| &s.version),
        "since": status.map(|s| &s.since),
        "sagas": status.map(|s| s.sagas),
        "api": status.map(|s| &s.api),
    })
}
