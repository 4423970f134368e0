//! Streams of what changes: locks, elections, groups. One message each, with an id to come back with.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, StatusCode};

use crate::api::App;
use crate::api::json::bytes;
use crate::api::locks::{ELECTION, NAMESPACE, problem};
use crate::api::query::Query;
use crate::error::Code;
use crate::feeds::{Message, Reader, Subject};
use crate::http::Problem;
use crate::leases::Desk;

/// Comment that keeps proxies from closing a silent stream.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(15);

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/observe/elections/{name}", get(election))
        .route("/v1/observe/locks/{name}", get(lock))
        .route("/v1/observe/members/{group}", get(members))
}

type Asked = (State<Arc<App>>, Path<String>, RawQuery, HeaderMap);

async fn election((State(app), Path(name), RawQuery(raw), headers): Asked) -> Result<Response, Problem> {
    let full = Desk::name(NAMESPACE, &format!("{ELECTION}{name}")).map_err(problem)?;
    observed(&app, Subject::Election(full), raw.as_deref(), &headers)
}

async fn lock((State(app), Path(name), RawQuery(raw), headers): Asked) -> Result<Response, Problem> {
    let full = Desk::name(NAMESPACE, &name).map_err(problem)?;
    observed(&app, Subject::Lock(full), raw.as_deref(), &headers)
}

async fn members((State(app), Path(group), RawQuery(raw), headers): Asked) -> Result<Response, Problem> {
    app.desk.group(&group).map_err(problem)?;
    observed(&app, Subject::Members(group), raw.as_deref(), &headers)
}

fn observed(
    app: &Arc<App>,
    subject: Subject,
    raw: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw)?;
    let after = query.take("after");
    query.end()?;
    let last = headers.get("last-event-id").and_then(|v| v.to_str().ok()).map(|t| t.trim().to_owned());
    let reader = app.desk.feeds().read(subject, last.or(after)).ok_or_else(|| {
        Problem::new(Code::Overloaded, "as many observe as this node serves at once").retry_after(5)
    })?;
    let start = stream::once(async { Ok::<_, Infallible>(Bytes::from_static(b"retry: 1000\n\n")) });
    let body = stream::unfold((Arc::clone(app), reader), |(app, mut reader)| async move {
        let text = next(&app, &mut reader).await?;
        Some((Ok::<_, Infallible>(Bytes::from(text)), (app, reader)))
    });
    let body = Body::from_stream(futures_util::StreamExt::chain(start, body));
    Ok(bytes(StatusCode::OK, "text/event-stream", body))
}

/// The next message or heartbeat; none when the node stops. The client reads when it can: nothing piles up here.
async fn next(app: &App, reader: &mut Reader) -> Option<String> {
    tokio::select! {
        biased;
        () = app.drain.cancelled() => None,
        message = reader.next() => Some(written(&message)),
        () = app.rt.clock().sleep(HEARTBEAT) => Some(": heartbeat\n\n".to_owned()),
    }
}

/// JSON has no line breaks, so one `data` field is enough.
pub(super) fn written(message: &Message) -> String {
    let Message { id, event, data } = message;
    format!("id: {id}\nevent: {event}\ndata: {data}\n\n")
}
