//! What requests mean: JSON in, JSON out, problems for the rest.

pub(crate) mod actions;
mod complete;
mod dapr;
mod definitions;
mod events;
mod jobs;
pub(crate) mod json;
pub(crate) mod locks;
mod members;
mod metrics;
mod nodes;
mod observe;
mod openapi;
pub(crate) mod operation;
pub(crate) mod query;
mod running;
pub(crate) mod sagas;
mod session;
mod start;
mod system;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod tests_actions;
#[cfg(test)]
mod tests_bounds;
#[cfg(test)]
mod tests_locks;
#[cfg(test)]
mod tests_members;
pub(crate) mod view;
mod wait;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
pub(crate) use events::STALL as EVENT_STALL;
pub(crate) use jobs::Jobs;
pub(crate) use json::instant;
use mainstay_clock::Runtime;
use mainstay_saga::Engine;
use mainstay_sqlite::SqliteStore;
use mainstay_store::Journal;
pub(crate) use running::RunningKeys;
use tokio_util::sync::CancellationToken;

use crate::fleet::Fleet;
use crate::http::Tokens;
use crate::leases::Desk;
use crate::nearly::Watched;
use crate::participants::Participants;
use crate::redact::Redact;

/// What the handlers share.
pub(crate) struct App {
    pub(crate) engine: Engine,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) rt: Runtime,
    pub(crate) participants: Arc<Participants>,
    /// Cancelled when the node stops.
    pub(crate) drain: CancellationToken,
    pub(crate) tokens: Arc<Tokens>,
    /// Event readers that were cut because they were too slow.
    pub(crate) resets: AtomicU64,
    /// Keys of requests that are not answered yet.
    pub(crate) running: RunningKeys,
    pub(crate) jobs: Jobs,
    /// What payloads show.
    pub(crate) redact: Redact,
    /// Leases that clients hold.
    pub(crate) desk: Arc<Desk>,
    /// The other nodes; none without gossip.
    pub(crate) fleet: Option<Arc<Fleet>>,
    /// The store under the journal, for what it says of its writes.
    pub(crate) store: Option<Arc<SqliteStore>>,
    /// What of this node is nearly used up.
    pub(crate) watched: Arc<Watched>,
    /// How long an event reader may take nothing.
    pub(crate) stall: Duration,
}

/// All routes.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .merge(actions::routes())
        .merge(complete::routes())
        .merge(dapr::routes())
        .merge(definitions::routes())
        .merge(events::routes())
        .merge(jobs::routes())
        .merge(locks::routes())
        .merge(members::routes())
        .merge(metrics::routes())
        .merge(nodes::routes())
        .merge(observe::routes())
        .merge(openapi::routes())
        .merge(sagas::routes())
        .merge(start::routes())
        .merge(system::routes())
        .with_state(app)
}
