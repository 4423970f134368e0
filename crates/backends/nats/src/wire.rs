//! What a key's value says. Versioned by its fields: an unknown one is ignored, a missing one has a default.

use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::FencingToken;
use mainstay_store::lease::Share;
use serde::{Deserialize, Serialize};

use crate::state::{Content, Entry, Record};

/// As much of a foreign value is shown: it may be what releases the lock.
const SHOWN: usize = 6;

/// One holder, or one place in line.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Place {
    op: String,
    owner: String,
    ttl_ms: u64,
    /// Decimal text, as tokens are on every wire. Missing: the sequence of this very message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    /// The upper bits of the token that is not written yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    epoch: u64,
    /// Changes whenever the holder says that it lives. Missing: every message says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beat: Option<u64>,
    /// `shared`, or the limit of a semaphore; missing: exclusive.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    share: Option<Shared>,
    /// How many permits; missing: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    count: Option<u32>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    note: String,
    /// Its place in line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    /// Since when it holds, for people: milliseconds since 1970 by the clock of who wrote it. Missing: nobody wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    since_ms: Option<i64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Shared {
    Permits(u32),
    Readers,
}

/// The first holder stands at the top, so that a mutex reads `{op, owner, ttl_ms, ..}`.
#[derive(Debug, Serialize, Deserialize)]
struct Value {
    #[serde(flatten)]
    first: Option<Place>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    more: Vec<Place>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    line: Vec<Place>,
    #[serde(default, skip_serializing_if = "is_zero")]
    arrivals: u64,
    /// What the holder attached, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    /// Whoever held it until its release was written: the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    released: Option<String>,
}

/// The names at the top of a value.
type Names = std::collections::BTreeMap<String, serde::de::IgnoredAny>;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Whole milliseconds, rounded up: an observer must not end a lease before its holder does.
pub(crate) fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl From<&Entry> for Place {
    fn from(entry: &Entry) -> Self {
        Self {
            op: entry.op.clone(),
            owner: entry.owner.clone(),
            ttl_ms: millis(entry.ttl),
            token: entry.token.map(|t| t.to_string()),
            epoch: if entry.token.is_some() { 0 } else { entry.epoch },
            beat: entry.beat,
            share: match entry.share {
                Share::Exclusive => None,
                Share::Permit { limit, .. } => Some(Shared::Permits(limit)),
                Share::Shared => Some(Shared::Readers),
            },
            count: match entry.share {
                Share::Permit { count, .. } if count > 1 => Some(count),
                _ => None,
            },
            note: entry.note.clone(),
            number: entry.number,
            since_ms: entry.since.map(WallTime::unix_millis),
        }
    }
}

impl Place {
    fn entry(self) -> Option<Entry> {
        let token = match self.token {
            Some(digits) => Some(FencingToken::new(digits.parse().ok()?)),
            None => None,
        };
        Some(Entry {
            op: self.op,
            owner: self.owner,
            ttl: Duration::from_millis(self.ttl_ms),
            token,
            epoch: self.epoch,
            beat: self.beat,
            share: match self.share {
                None => Share::Exclusive,
                Some(Shared::Permits(limit)) => Share::Permit { limit, count: self.count.unwrap_or(1) },
                Some(Shared::Readers) => Share::Shared,
            },
            note: self.note,
            number: self.number,
            since: self.since_ms.map(WallTime::from_unix_millis),
        })
    }
}

/// The bytes of a record that has somebody in it.
pub(crate) fn write(record: &Record) -> Vec<u8> {
    use base64::Engine as _;
    let (line, holders): (Vec<&Entry>, Vec<&Entry>) = record.entries.iter().partition(|e| e.number.is_some());
    let mut holders = holders.into_iter().map(Place::from);
    let value = Value {
        first: holders.next(),
        more: holders.collect(),
        line: line.into_iter().map(Place::from).collect(),
        arrivals: record.arrivals,
        released: record.released.clone(),
        value: record.annotation.as_ref().map(|v| base64::engine::general_purpose::STANDARD.encode(v)),
    };
    // Maps with text keys and numbers: nothing in it can fail to be written.
    serde_json::to_vec(&value).unwrap_or_default()
}

/// What the value of a key means.
pub(crate) fn read(bytes: &[u8]) -> Content {
    let foreign = || Content::Foreign(stranger(bytes));
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return foreign() };
    // A holder that cannot be read reads as none, and the first in line would hold beside it.
    let holds = || serde_json::from_slice::<Names>(bytes).is_ok_and(|names| names.contains_key("op"));
    if value.first.is_none() && holds() {
        return foreign();
    }
    let Some(record) = record(value) else { return foreign() };
    // JSON of somebody else.
    if record.entries.is_empty() { foreign() } else { Content::Ours(record) }
}

fn record(value: Value) -> Option<Record> {
    use base64::Engine as _;
    let holders = value.first.into_iter().chain(value.more);
    let mut entries: Vec<Entry> = holders.map(Place::entry).collect::<Option<_>>()?;
    for place in value.line {
        let entry = place.entry()?;
        entry.number?;
        entries.push(entry);
    }
    let annotation = match value.value {
        Some(text) => Some(base64::engine::general_purpose::STANDARD.decode(text).ok()?),
        None => None,
    };
    Some(Record { entries, annotation, arrivals: value.arrivals, released: value.released })
}

/// Names somebody who is none of ours.
fn stranger(value: &[u8]) -> String {
    let shown: String =
        value.iter().take(SHOWN).map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '.' }).collect();
    format!("another client ({shown}..)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(op: &str, number: Option<u64>) -> Entry {
        Entry {
            op: op.to_owned(),
            owner: "host-7".to_owned(),
            ttl: Duration::from_millis(1_500),
            token: None,
            epoch: 3,
            beat: Some(1),
            share: Share::Exclusive,
            note: String::new(),
            number,
            since: None,
        }
    }

    #[test]
    fn a_mutex_reads_as_its_holder() {
        let mut holder = entry("op1", None);
        holder.beat = None;
        holder.epoch = 0;
        let record = Record { entries: vec![holder], ..Record::default() };
        assert_eq!(write(&record), br#"{"op":"op1","owner":"host-7","ttl_ms":1500}"#);
        assert_eq!(read(br#"{"op":"op1","owner":"host-7","ttl_ms":1500,"new":true}"#), Content::Ours(record));
    }

    #[test]
    fn everything_comes_back() {
        let mut second = entry("op2", None);
        second.share = Share::Permit { limit: 7, count: 3 };
        second.token = Some(FencingToken::new(u64::MAX >> 1));
        second.since = Some(WallTime::from_unix_millis(1_767_225_600_123));
        second.epoch = 0;
        let mut reader = entry("op3", None);
        reader.share = Share::Shared;
        let record = Record {
            entries: vec![entry("op1", None), second, reader, entry("op4", Some(9))],
            annotation: Some(b"\0\xffv".to_vec()),
            arrivals: 9,
            released: Some("op0".to_owned()),
        };
        assert_eq!(read(&write(&record)), Content::Ours(record.clone()));
        // A line without a holder is somebody, too.
        let line = Record { entries: vec![entry("op4", Some(9))], arrivals: 9, ..Record::default() };
        assert_eq!(read(&write(&line)), Content::Ours(line));
    }

    /// Of a later version, say. Its waiters were read, and it was not.
    #[test]
    fn a_holder_that_cannot_be_read_keeps_its_lock() {
        let line = r#""line":[{"op":"c","owner":"d","ttl_ms":1,"number":1}],"arrivals":1}"#;
        let holder = format!(r#"{{"op":"a","owner":"b","ttl_ms":1,"share":"for two",{line}"#);
        assert!(matches!(read(holder.as_bytes()), Content::Foreign(_)));
        assert!(matches!(read(format!("{{{line}").as_bytes()), Content::Ours(_)), "nobody holds it");
    }

    #[test]
    fn values_of_others_are_foreign_and_shown_in_part_only() {
        for bytes in [&b"worker-7-secret"[..], b"{}", b"{\"op\":1}", b"\xff\xfe", br#"{"a":"b"}"#] {
            let Content::Foreign(by) = read(bytes) else { panic!("{bytes:?}") };
            assert!(by.starts_with("another client (") && !by.contains("secret"), "{by}");
        }
        let torn = br#"{"op":"a","owner":"b","ttl_ms":1,"token":"x"}"#;
        assert!(matches!(read(torn), Content::Foreign(_)), "a token is digits");
    }
}
