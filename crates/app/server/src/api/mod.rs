//! What requests mean: JSON in, JSON out, problems for the rest.

pub(crate) mod actions;
mod definitions;
mod events;
pub(crate) mod json;
mod metrics;
mod openapi;
pub(crate) mod query;
pub(crate) mod sagas;
mod start;
mod system;
#[cfg(test)]
mod tests;
pub(crate) mod view;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::Router;
pub(crate) use json::instant;
use mainstay_clock::Runtime;
use mainstay_saga::Engine;
use mainstay_saga::http::HttpParticipant;
use mainstay_store::Journal;
use tokio_util::sync::CancellationToken;

use crate::http::Tokens;

/// What the handlers share.
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) rt: Runtime,
    pub(crate) participants: Arc<HttpParticipant>,
    /// Cancelled when the node stops.
    pub(crate) drain: CancellationToken,
    pub(crate) tokens: Arc<Tokens>,
    /// Event readers that were cut because they were too slow.
    pub(crate) resets: AtomicU64,
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .merge(actions::routes())
        .merge(definitions::routes())
        .merge(events::routes())
        .merge(metrics::routes())
        .merge(openapi::routes())
        .merge(sagas::routes())
        .merge(start::routes())
        .merge(system::routes())
        .with_state(app)
}
