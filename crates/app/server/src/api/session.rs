//! Leases bound to a connection: `?bind=connection`. The answer is a stream that stays open; when the client's end
//! of it is gone, the lease is given back at once instead of after its ttl.
//!
//! The lease is renewed by its holder as ever, by PATCH: an open connection proves that the client's machine answers,
//! not that its work is well, and only its own request tells the holder until when it may go on. A node that stops
//! ends the stream and takes nothing away: the holder is alive, and its lease lasts.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use mainstay_clock::Instant;
use mainstay_store::FencingToken;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::api::App;
use crate::api::json::bytes;
use crate::api::observe::HEARTBEAT;
use crate::api::query::Query;
use crate::error::Code;
use crate::http::Problem;
use crate::leases::Desk;

/// Hints come with every change of a store's file: looks at a lease are at least so far apart.
const APART: Duration = Duration::from_millis(100);

/// Whether the request binds its lease to its connection.
///
/// # Errors
/// 400 for another word.
pub(super) fn asked(query: &mut Query) -> Result<bool, Problem> {
    match query.take("bind").as_deref() {
        None => Ok(false),
        Some("connection") => Ok(true),
        Some(_) => Err(Problem::new(Code::BadQuery, "`bind` is connection or absent")),
    }
}

/// Gives the lease back when it is dropped: the client's end is gone.
struct Bound {
    desk: Arc<Desk>,
    name: String,
    token: FencingToken,
    drain: CancellationToken,
    /// The lease is gone already.
    lost: bool,
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.lost || self.drain.is_cancelled() {
            return;
        }
        self.desk.give_back_later(&self.name, self.token);
    }
}

/// The stream of a bound lease: `held` with `body`, then heartbeats, and `lost` when it is no longer the holder's.
pub(super) fn stream_of(app: &Arc<App>, name: &str, token: FencingToken, body: &Value) -> Response {
    let bound = Bound {
        desk: Arc::clone(&app.desk),
        name: name.to_owned(),
        token,
        drain: app.drain.clone(),
        lost: false,
    };
    let first = format!("retry: 1000\n\nid: {}\nevent: held\ndata: {body}\n\n", token.get());
    let state = (Arc::clone(app), bound, Some(first));
    let body = stream::unfold(state, |(app, mut bound, mut first)| async move {
        if let Some(text) = first.take() {
            return Some((Ok::<_, Infallible>(Bytes::from(text)), (app, bound, None)));
        }
        let text = next(&app, &mut bound).await?;
        Some((Ok(Bytes::from(text)), (app, bound, None)))
    });
    bytes(StatusCode::OK, "text/event-stream", Body::from_stream(body))
}

/// The next message; none when the stream ends.
async fn next(app: &App, bound: &mut Bound) -> Option<String> {
    if bound.lost {
        return None;
    }
    let clock = app.rt.clock();
    let beat = clock.now().saturating_add(HEARTBEAT);
    loop {
        // Armed before the look, so that a change in between is not slept over.
        let hint = bound.desk.hint(&bound.name, 0);
        let now = clock.now();
        let look = match bound.desk.inspect(&bound.name).await {
            Ok(info) => match info.holders.iter().find(|h| h.token == bound.token) {
                Some(holder) => now.saturating_add(holder.remaining).saturating_add(APART),
                None => {
                    bound.lost = true;
                    let token = bound.token.get();
                    return Some(format!("id: {token}\nevent: lost\ndata: {{\"token\":\"{token}\"}}\n\n"));
                }
            },
            // The store fails: the holder goes by its own deadline.
            Err(_) => Instant::FAR_FUTURE,
        };
        tokio::select! {
            biased;
            () = app.drain.cancelled() => return None,
            () = clock.sleep_until(beat.min(look)) => {}
            () = async {
                clock.sleep(APART).await;
                hint.await;
            } => {}
        }
        if clock.now() >= beat {
            return Some(": heartbeat\n\n".to_owned());
        }
    }
}
