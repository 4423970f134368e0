//! Records beside the leases, for recipes that remember more than a lease can.
//!
//! A record is the last message of a subject of two parts, so it is no lease's; its version is the sequence of that
//! message. It has one header of ours: a word that no other write has, and how long it lasts.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::header::HeaderMap;
use mainstay_clock::{Instant, WallTime};
use mainstay_store::lease::MAX_TEXT;
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, PutIf, RecordStore, Result, VersionedRecord};
use serde::Deserialize;
use serde_json::json;

use crate::api::{Last, MARK_SECONDS, MAX_VALUE, Marks, Put};
use crate::bucket;
use crate::error::garbled;
use crate::exec::{Core, PAUSE, TRY, told};
use crate::store::NatsLeases;
use crate::wire::millis;

/// `<word>`, and behind a space `<milliseconds>` if the record ends.
pub(crate) const HEADER: &str = "Mainstay-Record";

/// The last message of a record's subject.
#[derive(Debug, Default)]
struct Seen {
    /// What the next write has to expect.
    seq: u64,
    /// Which write it was.
    word: String,
    /// It is there and lasts; when it ends, if it does.
    value: Option<(Vec<u8>, Option<WallTime>)>,
}

impl Seen {
    fn record(&self, key: &str) -> Option<VersionedRecord> {
        let (value, _) = self.value.as_ref()?;
        Some(VersionedRecord { key: key.to_owned(), version: self.seq, value: value.clone() })
    }

    fn version(&self) -> Option<u64> {
        self.value.is_some().then_some(self.seq)
    }
}

/// Reads a message of a record.
fn seen(seq: u64, marks: &Marks, payload: Vec<u8>) -> Option<Seen> {
    let mut words = marks.record.as_deref().unwrap_or_default().splitn(2, ' ');
    let word = words.next().unwrap_or_default().to_owned();
    let end = match words.next() {
        None => None,
        Some(ms) => Some(time(&marks.stored)?.saturating_add(Duration::from_millis(ms.parse().ok()?))),
    };
    let value = (!marks.is_free).then_some((payload, end));
    Some(Seen { seq, word, value })
}

/// A time as servers write it: RFC 3339, in UTC.
fn time(text: &str) -> Option<WallTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let numbers = |text: &str, by| text.split(by).map(|n| n.parse().ok()).collect::<Option<Vec<i64>>>();
    let (seconds, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let (&[year, month, day], &[hour, minute, second]) =
        (numbers(date, '-')?.as_slice(), numbers(seconds, ':')?.as_slice())
    else {
        return None;
    };
    if !(1..=12).contains(&month) {
        return None;
    }
    let ms: i64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    // Days since 1970 in the calendar that begins each year in March, so that the leap day is its last.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400) + (153 * m + 2) / 5 + day
        - 1
        - 719_468;
    Some(WallTime::from_unix_millis((((days * 24 + hour) * 60 + minute) * 60 + second) * 1_000 + ms))
}

#[derive(Deserialize)]
struct Info {
    ts: String,
    state: State,
    #[serde(default)]
    total: usize,
}

#[derive(Deserialize)]
struct State {
    #[serde(default)]
    subjects: Option<BTreeMap<String, u64>>,
}

fn check(key: &str) -> Result<()> {
    if (1..=MAX_TEXT).contains(&key.len()) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::ApiMisuse, "the key of a record has 1 to 1,024 bytes"))
}

impl Core {
    /// What the leader of the stream says about it; of its subjects those that `filter` names.
    async fn info(&self, filter: &str, offset: usize, limit: Instant) -> Result<Info> {
        let what = format!("STREAM.INFO.{}", self.api.stream);
        let body = json!({ "subjects_filter": filter, "offset": offset });
        loop {
            let soon = self.now().saturating_add(TRY).min(limit);
            match self.api.ask::<Info>(&what, &body, soon).await {
                Ok(Ok(info)) => return Ok(info),
                Ok(Err(refusal)) if refusal.is_no_stream() => {
                    bucket::ensure(&self.api, &self.config, self.can_end, limit).await?;
                }
                Ok(Err(refusal)) => return Err(refusal.error().with_outcome(Outcome::NotApplied)),
                Err(e) if e.kind() == ErrorKind::Unavailable && self.now() < limit => {
                    self.rt.clock().sleep(PAUSE).await;
                }
                Err(e) => return Err(e.with_outcome(Outcome::NotApplied)),
            }
        }
    }

    /// The time of the server that leads the bucket.
    async fn time(&self, limit: Instant) -> Result<WallTime> {
        let told = self.info("$none", 0, limit).await?.ts;
        time(&told).ok_or_else(|| garbled("the time", told.as_bytes()))
    }

    /// The last message of a record, as the leader has it. One that has ended counts as gone.
    async fn seen(&self, key: &str, limit: Instant) -> Result<Seen> {
        let subject = self.api.record(key);
        let mut found = loop {
            let soon = self.now().saturating_add(TRY).min(limit);
            match self.api.last(&subject, soon).await {
                Ok(Last::At(seq, marks, payload)) => {
                    break seen(seq, &marks, payload).ok_or_else(|| garbled(&subject, b"its header"))?;
                }
                Ok(Last::Nothing) => break Seen::default(),
                Ok(Last::NoStream) => {
                    bucket::ensure(&self.api, &self.config, self.can_end, limit).await?;
                }
                Err(e) if e.kind() == ErrorKind::Unavailable && self.now() < limit => {
                    self.rt.clock().sleep(PAUSE).await;
                }
                Err(e) => return Err(e),
            }
        };
        if let Some((_, Some(end))) = &found.value
            && self.time(limit).await? >= *end
        {
            found.value = None;
        }
        Ok(found)
    }

    /// Writes a record if it is at `expected`; a deletion without a value. What stood there otherwise.
    ///
    /// # Cancel safety
    /// A write that was sent may take effect.
    async fn put_record(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Option<Vec<u8>>,
        ttl: Option<Duration>,
    ) -> Result<PutIf> {
        check(key)?;
        if value.as_ref().is_some_and(|v| v.len() > MAX_VALUE) {
            let text = format!("the record `{key}` is larger than {MAX_VALUE} bytes");
            return Err(Error::new(ErrorKind::TooLarge, text));
        }
        let (limit, rng) = (self.limit(), self.rt.rng());
        let word = format!("{:016x}{:016x}", rng.next_u64(), rng.next_u64());
        let headers = self.headers(&word, value.is_some(), ttl);
        let body = bytes::Bytes::from(value.unwrap_or_default());
        let mut doubt = false;
        loop {
            let seen = self.seen(key, limit).await.map_err(|e| told(e, doubt))?;
            if seen.word == word {
                // Written by a try whose answer was lost (coordination F33).
                return Ok(PutIf::Stored(seen.seq));
            }
            if seen.version() != expected {
                if doubt {
                    let text = format!("nats lost an answer about the record `{key}`");
                    return Err(Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Unknown));
                }
                return Ok(PutIf::Conflict(seen.record(key)));
            }
            let soon = self.now().saturating_add(TRY).min(limit);
            match self.api.put(self.api.record(key), seen.seq, headers.clone(), body.clone(), soon).await {
                Ok(Put::Done(seq)) => return Ok(PutIf::Stored(seq)),
                // Somebody wrote since the look, or an earlier try of this one: the next look tells.
                Ok(Put::Conflict) => {}
                Err(e) if e.kind() == ErrorKind::Unavailable && self.now() < limit => {
                    doubt |= e.outcome() == Outcome::Unknown;
                    self.rt.clock().sleep(PAUSE).await;
                }
                Err(e) => return Err(told(e, doubt)),
            }
        }
    }

    fn headers(&self, word: &str, is_value: bool, ttl: Option<Duration>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let says = match ttl.filter(|_| is_value) {
            None => word.to_owned(),
            Some(ttl) => format!("{word} {}", millis(ttl)),
        };
        headers.insert(HEADER, says);
        if !is_value {
            headers.insert("KV-Operation", "DEL");
        }
        // The server forgets what has ended, in whole seconds.
        let keep =
            if is_value { ttl.map(|ttl| millis(ttl).div_ceil(1_000).max(1)) } else { Some(MARK_SECONDS) };
        if let Some(keep) = keep.filter(|_| self.api.ends) {
            headers.insert("Nats-TTL", keep.to_string());
        }
        headers
    }

    async fn list_records(
        &self,
        prefix: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<VersionedRecord>> {
        let limit = self.limit();
        let mut keys: Vec<String> = Vec::new();
        let mut offset = 0;
        loop {
            let info = self.info(&self.api.records(), offset, limit).await?;
            let page = info.state.subjects.unwrap_or_default();
            offset += page.len();
            let all = page.keys().filter_map(|subject| self.api.recorded(subject));
            keys.extend(
                all.filter(|k| k.starts_with(prefix) && after.is_none_or(|after| k.as_str() > after)),
            );
            if page.is_empty() || offset >= info.total {
                break;
            }
        }
        keys.sort();
        let mut found = Vec::new();
        for key in keys {
            if found.len() >= most {
                break;
            }
            // Deleted or ended since, or before.
            found.extend(self.seen(&key, limit).await?.record(&key));
        }
        Ok(found)
    }
}

/// Every answer comes from the leader of the bucket; a ttl and the time are by its server's clock.
impl RecordStore for NatsLeases {
    fn now(&self) -> BoxFuture<'_, Result<Option<WallTime>>> {
        Box::pin(async move { self.core().time(self.core().limit()).await.map(Some) })
    }

    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<VersionedRecord>>> {
        let key = key.to_owned();
        Box::pin(async move {
            check(&key)?;
            Ok(self.core().seen(&key, self.core().limit()).await?.record(&key))
        })
    }

    fn put_if(
        &self,
        key: &str,
        expected: Option<u64>,
        value: Vec<u8>,
        ttl: Option<Duration>,
    ) -> BoxFuture<'_, Result<PutIf>> {
        let key = key.to_owned();
        Box::pin(async move { self.core().put_record(&key, expected, Some(value), ttl).await })
    }

    fn delete_if(&self, key: &str, expected: u64) -> BoxFuture<'_, Result<bool>> {
        let key = key.to_owned();
        Box::pin(async move {
            let deleted = self.core().put_record(&key, Some(expected), None, None).await?;
            Ok(matches!(deleted, PutIf::Stored(_)))
        })
    }

    fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> BoxFuture<'_, Result<Vec<VersionedRecord>>> {
        let (prefix, after) = (prefix.to_owned(), after.map(str::to_owned));
        Box::pin(async move { self.core().list_records(&prefix, after.as_deref(), limit).await })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_servers_are_read() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-11-26T14:50:00.123456789Z", 1_795_704_600_123),
            ("2024-02-29T23:59:59.9Z", 1_709_251_199_900),
            ("2000-03-01T00:00:00.05Z", 951_868_800_050),
        ] {
            assert_eq!(time(text), Some(WallTime::from_unix_millis(ms)), "{text}");
        }
        for text in ["", "2026-11-26", "2026-13-01T00:00:00Z", "2026-11-26T14:50:00+01:00", "a-b-cT0:0:0Z"] {
            assert_eq!(time(text), None, "{text}");
        }
    }

    #[test]
    fn a_message_says_which_write_it_was_and_when_it_ends() {
        let marks = |record: &str, is_free| Marks {
            is_free,
            record: Some(record.to_owned()),
            stored: "1970-01-01T00:00:01Z".to_owned(),
            ..Marks::default()
        };
        let lasting = seen(7, &marks("w", false), b"v".to_vec()).unwrap();
        assert!(lasting.word == "w" && lasting.value == Some((b"v".to_vec(), None)));
        let ending = seen(7, &marks("w 1500", false), Vec::new()).unwrap();
        assert_eq!(ending.value.unwrap().1, Some(WallTime::from_unix_millis(2_500)));
        assert_eq!(seen(7, &marks("w", true), Vec::new()).unwrap().version(), None);
        assert!(seen(7, &marks("w x", false), Vec::new()).is_none(), "none of ours");
        // A value that another client put there is one without an end.
        assert_eq!(seen(7, &Marks::default(), Vec::new()).unwrap().version(), Some(7));
    }
}
