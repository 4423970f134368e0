//! The lock routes of Dapr, for clients that speak them already: `POST /v1.0-alpha1/lock/{store}` and `unlock`.
//!
//! The store is a namespace, of which there is one; the owner is compared. Beyond Dapr an answer carries the
//! fencing token and the deadline, and a request may ask to renew.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::StatusCode;
use mainstay_store::lease::Released;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::api::json::{bytes, reply};
use crate::api::locks::NAMESPACE;
use crate::api::{App, instant};
use crate::http::Caller;
use crate::leases::{Ask, Desk, Refused, Taken};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1.0/healthz", get(async || bytes(StatusCode::NO_CONTENT, "text/plain", "")))
        .route("/v1.0/healthz/outbound", get(async || bytes(StatusCode::NO_CONTENT, "text/plain", "")))
        .route("/v1.0/metadata", get(metadata))
        .route("/v1.0-alpha1/lock/{store}", post(lock))
        .route("/v1.0-alpha1/unlock/{store}", post(unlock))
}

async fn metadata() -> Response {
    let component = json!({"name": NAMESPACE, "type": "lock.mainstay", "version": "v1"});
    reply(StatusCode::OK, &json!({"id": "mainstay", "components": [component]}))
}

/// Unknown fields are ignored here, as Dapr does.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wanted {
    #[serde(default)]
    resource_id: String,
    #[serde(default)]
    lock_owner: String,
    #[serde(default)]
    expiry_in_seconds: i64,
    #[serde(default)]
    renew: bool,
}

fn failed(status: StatusCode, code: &str, message: &str) -> Response {
    reply(status, &json!({"errorCode": code, "message": message}))
}

fn malformed(message: &str) -> Response {
    failed(StatusCode::BAD_REQUEST, "ERR_MALFORMED_REQUEST", message)
}

/// The request and the name of the lock, or the answer that says what is wrong.
fn asked(
    caller: &Caller,
    store: &str,
    body: &[u8],
    expires: bool,
) -> Result<(Wanted, String), Box<Response>> {
    if store != NAMESPACE {
        let message = format!("lock store {store} not found");
        return Err(Box::new(failed(StatusCode::BAD_REQUEST, "ERR_LOCK_STORE_NOT_FOUND", &message)));
    }
    let wanted: Wanted = serde_json::from_slice(body).map_err(|e| Box::new(malformed(&e.to_string())))?;
    if wanted.resource_id.is_empty() {
        return Err(Box::new(malformed("resourceId is empty")));
    }
    if wanted.lock_owner.is_empty() {
        return Err(Box::new(malformed("lockOwner is empty")));
    }
    if expires && wanted.expiry_in_seconds <= 0 {
        return Err(Box::new(malformed("expiryInSeconds must be positive")));
    }
    if let Err(problem) = caller.demand(&wanted.resource_id) {
        return Err(Box::new(problem.into_response()));
    }
    match Desk::name(store, &wanted.resource_id) {
        Ok(name) => Ok((wanted, name)),
        Err(_) => Err(Box::new(malformed("resourceId is too long or has control characters"))),
    }
}

async fn lock(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(store): Path<String>,
    body: Bytes,
) -> Response {
    let (wanted, name) = match asked(&caller, &store, &body, true) {
        Ok(asked) => asked,
        Err(answer) => return *answer,
    };
    let seconds = u64::try_from(wanted.expiry_in_seconds).unwrap_or(0);
    let result = if wanted.renew {
        renewed(&app, &name, &wanted.lock_owner).await
    } else {
        let ask = Ask {
            name,
            owner: wanted.lock_owner,
            op_id: uuid::Uuid::now_v7().simple().to_string(),
            key: None,
            ttl: Duration::from_secs(seconds),
            note: String::new(),
            wait: Duration::ZERO,
        };
        app.desk.take(&ask).await
    };
    match result {
        Ok(taken) => reply(StatusCode::OK, &granted(&app, &taken)),
        Err(Refused::Held { .. } | Refused::Gone | Refused::Late) => {
            reply(StatusCode::OK, &json!({"success": false}))
        }
        Err(Refused::Bad(why)) => malformed(&why),
        Err(Refused::Reused) => malformed("no request of Dapr has a key"),
        Err(Refused::Store(error)) => {
            tracing::error!(%error, "a lock was not tried");
            failed(StatusCode::INTERNAL_SERVER_ERROR, "ERR_TRY_LOCK", "the lease store failed")
        }
    }
}

/// The same owner, unexpired: a new deadline under the same token.
async fn renewed(app: &App, name: &str, owner: &str) -> Result<Taken, Refused> {
    match app.desk.last(name).await? {
        Some((last, token)) if last == owner => app.desk.renew(name, token).await,
        _ => Err(Refused::Gone),
    }
}

fn granted(app: &App, taken: &Taken) -> Value {
    let clock = app.rt.clock();
    let left = taken.deadline.saturating_duration_since(clock.now());
    json!({
        "success": true,
        "fencingToken": taken.token.get().to_string(),
        "leaseDeadline": instant(clock.wall().saturating_add(left)),
    })
}

async fn unlock(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    Path(store): Path<String>,
    body: Bytes,
) -> Response {
    /// The statuses of Dapr.
    const RELEASED: u8 = 0;
    const NO_LOCK: u8 = 1;
    const ANOTHERS: u8 = 2;
    const FAILED: u8 = 3;
    let (wanted, name) = match asked(&caller, &store, &body, false) {
        Ok(asked) => asked,
        Err(answer) => return *answer,
    };
    let released = async {
        let info = app.desk.inspect(&name).await?;
        let Some(holder) = info.holders.first() else { return Ok(NO_LOCK) };
        if holder.owner != wanted.lock_owner {
            return Ok(ANOTHERS);
        }
        match app.desk.give_back(&name, holder.token).await {
            Ok(Released::Clean) => Ok(RELEASED),
            Ok(Released::AlreadyGone) => Ok(NO_LOCK),
            // Held under this owner's name by somebody who does not come by HTTP.
            Err(Refused::Gone) => Ok(ANOTHERS),
            Err(refused) => Err(refused),
        }
    };
    let status = released.await.unwrap_or_else(|refused: Refused| {
        tracing::error!(?refused, "a lock was not given back");
        FAILED
    });
    reply(StatusCode::OK, &json!({"status": status}))
}
