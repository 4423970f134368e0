//! `GET /v1/events`: the journal as server-sent events. Pulled by each reader, so no reader can hold up the
//! engine; ids are journal cursors, so a reader resumes without a gap.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, StatusCode};
use mainstay_clock::WallTime;
use mainstay_store::journal::{Cursor, EventPage, JournalEvent, StatusChange, Uid, Unreadable};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::api::json::{bytes, store_problem};
use crate::api::query::Query;
use crate::api::{App, instant, view};
use crate::error::Code;
use crate::http::{Caller, Problem};
use crate::redact::Redact;

/// Messages buffered for one reader beyond its socket.
const BUFFER: usize = 64;
/// Bytes of them: a message carries a record, which may have half a MiB.
const BUFFER_BYTES: u32 = 2 * 1024 * 1024;
/// Events read from the journal at once.
const PAGE: usize = 128;
/// Comment that keeps proxies from closing a silent stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// A reader that takes nothing for this long is cut: it resumes by `Last-Event-ID`.
pub(crate) const STALL: Duration = Duration::from_secs(10);

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/v1/events", get(events))
}

/// Which events a reader wants.
struct Wanted {
    saga: Option<String>,
    definition: Option<String>,
}

impl Wanted {
    fn takes(&self, saga: &Uid, definition: &str) -> bool {
        let same = |want: &Option<String>, is: &str| want.as_ref().is_none_or(|w| w == is);
        same(&self.saga, saga.as_str()) && same(&self.definition, definition)
    }
}

async fn events(
    State(app): State<Arc<App>>,
    Extension(caller): Extension<Caller>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut query = Query::parse(raw.as_deref())?;
    let wanted = Wanted { saga: query.take("saga"), definition: query.take("definition") };
    caller.demand_definition(wanted.definition.as_deref())?;
    let after: Option<u64> = query.take_as("after")?;
    query.end()?;
    let last = match headers.get("last-event-id").map(|v| v.to_str().ok().and_then(|t| t.trim().parse().ok()))
    {
        Some(None) => return Err(Problem::new(Code::BadQuery, "`Last-Event-ID` is none of our ids")),
        Some(id) => id,
        None => after,
    };
    let newest = app.journal.last_cursor().await.map_err(|e| store_problem(&e))?;
    // An id from the future belongs to another journal: say so and start here.
    let foreign = last.is_some_and(|l| Cursor(l) > newest);
    let from = last.map(Cursor).filter(|_| !foreign).unwrap_or(newest);
    let (sender, receiver) = mpsc::channel(BUFFER);
    let rt = app.rt.clone();
    let cut = Arc::new(Mutex::new(None));
    let room = Arc::new(Semaphore::new(BUFFER_BYTES as usize));
    let reader = Reader { app, wanted, sender, room, cut: Arc::clone(&cut) };
    rt.spawn("events", async move {
        // The end of the stream is the only answer there is; the reader comes back with its last id.
        let _ = reader.run(from, foreign).await;
    });
    let body = stream::unfold((receiver, cut), |(mut receiver, cut)| async move {
        let message: Option<Bytes> = receiver.recv().await.map(|(message, _): Message| message);
        // What was buffered goes out first; then a reader that was too slow is told where it stands.
        let last = || cut.lock().unwrap_or_else(PoisonError::into_inner).take().map(|at| reset(at).into());
        let message = message.or_else(last);
        message.map(|m| (Ok::<_, std::convert::Infallible>(m), (receiver, cut)))
    });
    Ok(bytes(StatusCode::OK, "text/event-stream", Body::from_stream(body)))
}

/// A message with its share of the buffer.
type Message = (Bytes, OwnedSemaphorePermit);

struct Reader {
    app: Arc<App>,
    wanted: Wanted,
    sender: mpsc::Sender<Message>,
    /// Bytes that may be buffered.
    room: Arc<Semaphore>,
    /// Where a reader that was too slow must go on.
    cut: Arc<Mutex<Option<Cursor>>>,
}

/// The reader is gone, too slow, or the node stops.
struct End;

impl Reader {
    async fn run(&self, from: Cursor, foreign: bool) -> Result<(), End> {
        let mut at = from;
        self.send(at, "retry: 1000\n\n".to_owned()).await?;
        if foreign {
            self.send(at, reset(at)).await?;
        }
        loop {
            let began = at;
            let page = self.app.journal.events(Some(&at), PAGE).await.map_err(|_| End)?;
            if page.reset {
                self.send(at, reset(at)).await?;
            }
            for place in Place::all(&page) {
                if self.wanted.takes(place.saga(), place.definition()) {
                    self.send(at, place.message(&self.app.redact)).await?;
                    at = place.cursor();
                }
            }
            let moved = page.next != began;
            at = page.next;
            if !moved {
                self.wait(&at).await?;
            }
        }
    }

    /// Until there may be more, with heartbeats.
    async fn wait(&self, at: &Cursor) -> Result<(), End> {
        tokio::select! {
            biased;
            () = self.app.drain.cancelled() => Err(End),
            () = self.sender.closed() => Err(End),
            changed = self.app.journal.changed(at) => changed.map_err(|_| End),
            () = self.app.rt.clock().sleep(HEARTBEAT) => self.send(*at, ": heartbeat\n\n".to_owned()).await,
        }
    }

    /// Hands a message to the reader, who has everything up to `at`.
    async fn send(&self, at: Cursor, text: String) -> Result<(), End> {
        // One that is larger than the buffer has it for itself.
        let size = u32::try_from(text.len()).unwrap_or(u32::MAX).min(BUFFER_BYTES);
        let sent = async {
            let share = Arc::clone(&self.room).acquire_many_owned(size).await.map_err(|_| End)?;
            self.sender.send((Bytes::from(text), share)).await.map_err(|_| End)
        };
        tokio::select! {
            biased;
            sent = sent => sent,
            () = self.app.drain.cancelled() => Err(End),
            () = self.app.rt.clock().sleep(self.app.stall) => {
                self.app.resets.fetch_add(1, Ordering::Relaxed);
                *self.cut.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
                Err(End)
            }
        }
    }
}

/// What a page has at one place of the stream.
enum Place<'a> {
    Change(&'a StatusChange),
    Event(&'a JournalEvent),
    Unreadable(&'a Unreadable),
}

impl<'a> Place<'a> {
    /// In commit order.
    fn all(page: &'a EventPage) -> Vec<Self> {
        let changes = page.changes.iter().map(Self::Change);
        let unreadable = page.unreadable.iter().map(Self::Unreadable);
        let mut all: Vec<Self> =
            page.events.iter().map(Self::Event).chain(changes).chain(unreadable).collect();
        all.sort_by_key(Self::cursor);
        all
    }

    fn cursor(&self) -> Cursor {
        match self {
            Self::Change(c) => c.cursor,
            Self::Event(e) => e.cursor,
            Self::Unreadable(u) => u.cursor,
        }
    }

    fn saga(&self) -> &Uid {
        match self {
            Self::Change(c) => &c.saga,
            Self::Event(e) => &e.saga,
            Self::Unreadable(u) => &u.saga,
        }
    }

    fn definition(&self) -> &str {
        match self {
            Self::Change(c) => &c.definition,
            Self::Event(e) => &e.definition,
            Self::Unreadable(u) => &u.definition,
        }
    }

    /// The same, as the reader gets it.
    fn message(&self, redact: &Redact) -> String {
        match self {
            // No record says that it was set aside.
            Self::Change(c) => {
                self.cloud_event("status", Some(c.at), &c.id, json!({"status": c.status.as_str()}))
            }
            Self::Event(e) => {
                let record = redact.document(view::record(&e.record));
                let data = json!({"status": e.status.as_str(), "record": record});
                self.cloud_event(view::kind(&e.record), Some(e.record.at), &e.id, data)
            }
            // Its records are damaged: the stream goes on behind them.
            Self::Unreadable(u) => self.cloud_event("unreadable", None, &u.id, json!({"why": u.why})),
        }
    }

    /// A CloudEvent 1.0 in JSON about the saga: one line, so one `data` field.
    fn cloud_event(&self, kind: &str, at: Option<WallTime>, id: &str, mut data: Value) -> String {
        let (cursor, uid) = (self.cursor().0, self.saga().as_str());
        data["uid"] = uid.into();
        data["id"] = id.into();
        data["definition"] = self.definition().into();
        let mut event = json!({
            "specversion": "1.0",
            "id": cursor.to_string(),
            "source": format!("/v1/sagas/{uid}"),
            "type": format!("mainstay.saga.{kind}"),
            "subject": uid,
            "datacontenttype": "application/json",
            "data": data,
        });
        if let Some(at) = at {
            event["time"] = instant(at).into();
        }
        format!("id: {cursor}\nevent: {kind}\ndata: {event}\n\n")
    }
}

/// Says that events may be missing before this point.
fn reset(at: Cursor) -> String {
    format!("id: {0}\nevent: reset\ndata: {{\"from\":\"{0}\"}}\n\n", at.0)
}
