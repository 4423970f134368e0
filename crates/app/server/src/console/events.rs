//! `GET events`: hints that a page may be old. No data: the page is fetched again, so that what is shown is
//! always what the server says, and a burst of events costs a browser one message.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use mainstay_store::journal::{Cursor, SagaStatus, Uid};
use tokio::sync::mpsc;

use crate::api::json::{bytes, store_problem};
use crate::api::query::Query;
use crate::console::Console;
use crate::console::visit::Visit;
use crate::http::Problem;

/// At least this long between two hints.
const PAUSE: Duration = Duration::from_millis(200);
/// Comment that keeps proxies from closing a silent stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A reader that takes nothing for this long is cut; it comes back by itself.
const STALL: Duration = Duration::from_secs(10);

/// The stream: for everything, for one saga, or by the clock.
pub(super) async fn stream(
    State(console): State<Arc<Console>>,
    RawQuery(raw): RawQuery,
    _: Visit,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let saga = query.take("saga").map(|s| Uid::new(s.as_str()));
    let every = query.take_as::<u64>("every")?.map(|s| Duration::from_secs(s.clamp(1, 60)));
    query.end()?;
    let at = console.app.journal.last_cursor().await.map_err(|e| store_problem(&e))?;
    let (sender, receiver) = mpsc::channel(1);
    let rt = console.app.rt.clone();
    let reader = Reader { console, saga, every, sender };
    rt.spawn("console-events", async move {
        // The end of the stream is the only answer there is; the browser comes back.
        let _ = reader.run(at).await;
    });
    let body = stream::unfold(receiver, |mut receiver| async move {
        let message: Option<Bytes> = receiver.recv().await;
        message.map(|m| (Ok::<_, std::convert::Infallible>(m), receiver))
    });
    Ok(bytes(StatusCode::OK, "text/event-stream", Body::from_stream(body)))
}

struct Reader {
    console: Arc<Console>,
    saga: Option<Uid>,
    /// For pages about what changes without an event.
    every: Option<Duration>,
    sender: mpsc::Sender<Bytes>,
}

/// The browser is gone or too slow, the node stops, or the journal fails.
struct End;

impl Reader {
    async fn run(&self, mut at: Cursor) -> Result<(), End> {
        let journal = &self.console.app.journal;
        let clock = self.console.app.rt.clock();
        let mut version = self.version().await?;
        // A page may be older than this stream: the first hint closes that gap.
        self.send("retry: 1000\nevent: changed\ndata:\n\n").await?;
        loop {
            tokio::select! {
                biased;
                () = self.console.app.drain.cancelled() => return Err(End),
                () = self.sender.closed() => return Err(End),
                changed = journal.changed(&at) => changed.map_err(|_| End)?,
                () = clock.sleep(self.every.unwrap_or(HEARTBEAT)) => {
                    let due = self.every.is_some();
                    self.send(if due { "event: changed\ndata:\n\n" } else { ": heartbeat\n\n" }).await?;
                    continue;
                }
            }
            at = journal.last_cursor().await.map_err(|_| End)?;
            let now = self.version().await?;
            if self.saga.is_none() || now != version {
                version = now;
                self.send("event: changed\ndata:\n\n").await?;
            }
            clock.sleep(PAUSE).await;
        }
    }

    /// The version of the one saga. One that is set aside changes its status only.
    async fn version(&self) -> Result<Option<(u64, SagaStatus)>, End> {
        let Some(uid) = &self.saga else { return Ok(None) };
        let summary = self.console.app.journal.summary(uid).await.map_err(|_| End)?;
        Ok(summary.map(|s| (s.next_seq, s.row.status)))
    }

    async fn send(&self, text: &'static str) -> Result<(), End> {
        tokio::select! {
            biased;
            sent = self.sender.send(Bytes::from_static(text.as_bytes())) => sent.map_err(|_| End),
            () = self.console.app.drain.cancelled() => Err(End),
            () = self.console.app.rt.clock().sleep(STALL) => Err(End),
        }
    }
}
