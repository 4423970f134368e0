//! What requests mean: JSON in, JSON out, problems for the rest.

mod json;
mod system;

use std::sync::Arc;

use axum::Router;
pub(crate) use json::instant;
use mainstay_clock::Runtime;
use tokio_util::sync::CancellationToken;

/// What the handlers share.
#[derive(Clone, Debug)]
pub(crate) struct App {
    pub(crate) rt: Runtime,
    pub(crate) drain: CancellationToken,
    /// Whether tokens are needed, for `/version`.
    pub(crate) auth: bool,
}

/// All routes.
pub(crate) fn router(app: App) -> Router {
    system::routes().with_state(Arc::new(app))
}
