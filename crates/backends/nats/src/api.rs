//! The few requests of `JetStream` that a lease needs, as the server documents them.

use std::sync::Arc;

use async_nats::header::{HeaderMap, HeaderValue};
use async_nats::{Client, Message, Request, RequestErrorKind, StatusCode};
use base64::Engine as _;
use bytes::Bytes;
use mainstay_clock::{Clock, Instant};
use mainstay_store::{Error, ErrorKind, Outcome, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{self, Refusal, garbled, nobody, unanswered};
use crate::key::{escape, unescape};
use crate::state::{Content, Record, Version, seconds};
use crate::wire;

/// How long the server keeps the mark of a name that is free, where it can forget it at all: longer than anything
/// can be on its way that expects the sequence before.
pub(crate) const MARK_SECONDS: u64 = 3_600;
/// Largest value: a server takes 1 MiB in all as shipped.
pub(crate) const MAX_VALUE: usize = 512 * 1024;

/// A write that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// Somebody wrote meanwhile.
    Conflict,
    /// The sequence of the message.
    Done(u64),
}

/// The last message of a subject.
#[derive(Debug)]
pub(crate) enum Last {
    /// Its sequence, what its headers say, its payload.
    At(u64, Marks, Vec<u8>),
    /// The stream is gone.
    NoStream,
    /// There is none, or none any more.
    Nothing,
}

/// One bucket over one connection. Clones share both.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) client: Client,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) stream: Arc<str>,
    pub(crate) bucket: Arc<str>,
    /// Messages may end by themselves.
    pub(crate) ends: bool,
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("stream", &self.stream).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Answer<T> {
    Refused { error: Refusal },
    Done(T),
}

#[derive(Debug, Deserialize)]
struct Acked {
    seq: u64,
}

#[derive(Deserialize)]
struct Got {
    message: Stored,
}

#[derive(Deserialize)]
struct Stored {
    seq: u64,
    #[serde(default)]
    time: String,
    #[serde(default)]
    hdrs: Option<String>,
    #[serde(default)]
    data: Option<String>,
}

/// The headers of a message that say what it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// Nobody is there: a deletion, or the server's mark of what ended by itself.
    pub(crate) is_free: bool,
    /// The token of a [fenced write](crate::fence).
    pub(crate) fence: Option<String>,
    /// What a [record](crate::records) says about itself.
    pub(crate) record: Option<String>,
    /// Whose [release](RELEASED) it was.
    pub(crate) released: Option<String>,
    /// When the server stored it, as it writes times.
    pub(crate) stored: String,
}

impl Marks {
    /// Of no message.
    pub(crate) fn free() -> Self {
        Self { is_free: true, ..Self::default() }
    }

    fn note(&mut self, name: &str, value: &str) {
        if name.eq_ignore_ascii_case("KV-Operation") {
            self.is_free |= matches!(value, "DEL" | "PURGE");
        } else if name.eq_ignore_ascii_case("Nats-Marker-Reason") {
            self.is_free = true;
        } else if name.eq_ignore_ascii_case(crate::fence::HEADER) {
            self.fence = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case(crate::records::HEADER) {
            self.record = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case(RELEASED) {
            self.released = Some(value.to_owned());
        }
    }

    /// Of headers as they are stored: a first line, then `name: value`.
    fn of_text(text: &str) -> Self {
        let mut marks = Self::default();
        for (name, value) in text.lines().skip(1).filter_map(|line| line.split_once(':')) {
            marks.note(name.trim(), value.trim());
        }
        marks
    }

    pub(crate) fn of(headers: Option<&HeaderMap>) -> Self {
        let mut marks = Self::default();
        for (name, values) in headers.into_iter().flat_map(HeaderMap::iter) {
            for value in values {
                marks.note(name.as_ref(), value.as_str());
            }
        }
        marks
    }
}

/// The header of a deletion that says whose release it was.
const RELEASED: &str = "Mainstay-Released";

/// What a message of a key says.
pub(crate) fn version(seq: u64, marks: Marks, payload: &[u8]) -> Version {
    let content = if marks.is_free { Content::Free } else { wire::read(payload) };
    Version { seq, content, released: marks.released }
}

impl Api {
    fn subject(&self, name: &str) -> String {
        format!("$KV.{}.{}", self.bucket, escape(name))
    }

    /// The subjects of the stream.
    pub(crate) fn all(&self) -> String {
        format!("$KV.{}.>", self.bucket)
    }

    /// The filter of every lease.
    pub(crate) fn leases(&self) -> String {
        format!("$KV.{}.*", self.bucket)
    }

    /// The subject of a record: two parts, where a lease has one.
    pub(crate) fn record(&self, key: &str) -> String {
        format!("$KV.{}.r.{}", self.bucket, escape(key))
    }

    /// The filter of every record.
    pub(crate) fn records(&self) -> String {
        format!("$KV.{}.r.*", self.bucket)
    }

    /// The key of a record's subject.
    pub(crate) fn recorded(&self, subject: &str) -> Option<String> {
        unescape(subject.strip_prefix("$KV.")?.strip_prefix(&*self.bucket)?.strip_prefix(".r.")?)
    }

    /// The name of a subject of this bucket.
    pub(crate) fn name(&self, subject: &str) -> Option<String> {
        unescape(subject.strip_prefix("$KV.")?.strip_prefix(&*self.bucket)?.strip_prefix('.')?)
    }

    /// Sends and waits until `limit`.
    ///
    /// # Cancel safety
    /// What was sent may take effect.
    pub(crate) async fn send(
        &self,
        subject: String,
        headers: Option<HeaderMap>,
        payload: Bytes,
        limit: Instant,
    ) -> Result<Message> {
        let what = subject.clone();
        let mut request = Request::new().payload(payload).timeout(None);
        if let Some(headers) = headers {
            request = request.headers(headers);
        }
        let reply = self.client.send_request(subject, request);
        let reply = tokio::select! {
            biased;
            reply = reply => reply,
            () = self.clock.sleep_until(limit) => return Err(unanswered(&what)),
        };
        reply.map_err(|e| match e.kind() {
            RequestErrorKind::NoResponders => nobody(&what),
            RequestErrorKind::TimedOut => unanswered(&what),
            RequestErrorKind::MaxPayloadExceeded => {
                Error::new(ErrorKind::TooLarge, "nats takes no message of that size")
            }
            RequestErrorKind::InvalidSubject => Error::new(ErrorKind::Internal, "nats: no subject"),
            RequestErrorKind::Other => Error::new(ErrorKind::Unavailable, "the connection to nats is closed")
                .with_outcome(Outcome::Unknown)
                .with_source(e),
        })
    }

    /// A request of the management interface.
    pub(crate) async fn ask<T: DeserializeOwned>(
        &self,
        what: &str,
        body: &Value,
        limit: Instant,
    ) -> Result<std::result::Result<T, Refusal>> {
        let subject = format!("$JS.API.{what}");
        let message = self.send(subject, None, body.to_string().into(), limit).await?;
        answer(what, &message.payload)
    }

    /// The last message of `subject`, as the leader of the stream has it: direct reads may be stale.
    pub(crate) async fn last(&self, subject: &str, limit: Instant) -> Result<Last> {
        let what = format!("STREAM.MSG.GET.{}", self.stream);
        let got = self.ask::<Got>(&what, &json!({ "last_by_subj": subject }), limit).await;
        // Looking changes nothing, so nothing is in doubt.
        let got = got.map_err(|e| e.with_outcome(Outcome::NotApplied))?;
        let stored = match got {
            Ok(got) => got.message,
            Err(refusal) if refusal.is_no_message() => return Ok(Last::Nothing),
            Err(refusal) if refusal.is_no_stream() => return Ok(Last::NoStream),
            Err(refusal) => return Err(refusal.error().with_outcome(Outcome::NotApplied)),
        };
        let decode = |text: Option<String>| {
            base64::engine::general_purpose::STANDARD
                .decode(text.unwrap_or_default())
                .map_err(|_| garbled(&what, b"what is no base64"))
        };
        let mut marks = Marks::of_text(&String::from_utf8_lossy(&decode(stored.hdrs)?));
        marks.stored = stored.time;
        Ok(Last::At(stored.seq, marks, decode(stored.data)?))
    }

    /// What the key of `name` says; none when the bucket is gone.
    pub(crate) async fn read(&self, name: &str, limit: Instant) -> Result<Option<Version>> {
        Ok(match self.last(&self.subject(name), limit).await? {
            Last::At(seq, marks, payload) => Some(version(seq, marks, &payload)),
            Last::NoStream => None,
            Last::Nothing => Some(Version::NEVER),
        })
    }

    /// Writes the key of `name` if it still stands at `expected`; of nobody it becomes a deletion.
    ///
    /// # Cancel safety
    /// What was sent may take effect, as long as the key stands there.
    pub(crate) async fn write(
        &self,
        name: &str,
        expected: u64,
        record: &Record,
        limit: Instant,
    ) -> Result<Put> {
        let mut headers = HeaderMap::new();
        let (body, keep) = if record.entries.is_empty() {
            headers.insert("KV-Operation", "DEL");
            // An op id that is no header is not told.
            if let Some(op) = record.released.as_deref().and_then(|op| op.parse::<HeaderValue>().ok()) {
                headers.insert(RELEASED, op);
            }
            (Vec::new(), MARK_SECONDS)
        } else {
            (wire::write(record), seconds(record))
        };
        if body.len() > MAX_VALUE {
            return Err(Error::new(ErrorKind::Full, format!("`{name}`: too many hold it or wait for it")));
        }
        if self.ends {
            headers.insert("Nats-TTL", keep.to_string());
        }
        self.put(self.subject(name), expected, headers, body.into(), limit).await
    }

    /// Writes `subject` if its last sequence is `expected`.
    pub(crate) async fn put(
        &self,
        subject: String,
        expected: u64,
        mut headers: HeaderMap,
        body: Bytes,
        limit: Instant,
    ) -> Result<Put> {
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        let what = subject.clone();
        let message = self.send(subject, Some(headers), body, limit).await?;
        match answer::<Acked>(&what, &message.payload)? {
            Ok(acked) => Ok(Put::Done(acked.seq)),
            Err(refusal) if refusal.is_conflict() => Ok(Put::Conflict),
            Err(refusal) => Err(refusal.error()),
        }
    }
}

fn answer<T: DeserializeOwned>(what: &str, payload: &[u8]) -> Result<std::result::Result<T, Refusal>> {
    match serde_json::from_slice::<Answer<T>>(payload) {
        Ok(Answer::Done(done)) => Ok(Ok(done)),
        Ok(Answer::Refused { error }) => Ok(Err(error)),
        Err(_) => Err(error::garbled(what, payload)),
    }
}

/// Whether a message of a consumer is no message but a word of the server.
pub(crate) fn is_control(message: &Message) -> bool {
    message.status == Some(StatusCode::IDLE_HEARTBEAT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_what_a_message_is() {
        let of = |text: &str| Marks::of_text(text);
        assert!(of("NATS/1.0\r\nKV-Operation: DEL\r\n\r\n").is_free);
        assert!(of("NATS/1.0\r\nnats-marker-reason:MaxAge\r\nNats-TTL: 1h\r\n\r\n").is_free);
        assert!(!of("NATS/1.0\r\nKV-Operation: PUT\r\n\r\n").is_free);
        assert_eq!(of("NATS/1.0\r\nFencing-Token: 7\r\n\r\n").fence.as_deref(), Some("7"));
        assert_eq!(of(""), Marks::default());
    }

    #[test]
    fn f33_refusals_are_told_apart_by_number() {
        let refused = |text: &str| answer::<Acked>("x", text.as_bytes()).unwrap().unwrap_err();
        let wrong = refused(
            r#"{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 3"},"stream":"KV_x","seq":0}"#,
        );
        assert!(wrong.is_conflict());
        assert_eq!(wrong.error().outcome(), Outcome::NotApplied);
        let down = refused(r#"{"error":{"code":503,"err_code":10008,"description":"no"}}"#);
        assert_eq!((down.error().kind(), down.error().outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
        assert!(answer::<Acked>("x", b"hello").is_err());
        assert_eq!(answer::<Acked>("x", br#"{"stream":"KV_x","seq":7}"#).unwrap().unwrap().seq, 7);
    }
}
