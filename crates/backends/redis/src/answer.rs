//! What the scripts answer.

use std::time::Duration;

use mainstay_clock::WallTime;
use mainstay_store::lease::{self, AcquireRequest, Acquired, Grant, LeaseInfo, Since, mismatch};
use mainstay_store::{Error, ErrorKind, FencingToken, Result};
use redis::Value;
use serde::Deserialize;

use crate::config::EPOCH_SHIFT;
use crate::error::garbled;
use crate::keys::Keys;

/// What a lock says while it is shared. No client of other make releases it, since it is nobody's value.
pub(crate) const SHARED: &str = "mainstay-shared";
/// A remaining time longer than this is told as this: the holder set no expiry.
pub(crate) const NO_EXPIRY: Duration = Duration::MAX;
/// As much of a foreign value is shown: it is what releases the lock, so nobody may see all of it.
const SHOWN: usize = 6;

/// The token of a counter.
pub(crate) fn token(epoch: u64, counter: u64) -> FencingToken {
    FencingToken::new((epoch << EPOCH_SHIFT) | counter)
}

/// The counter of a token of this epoch.
pub(crate) fn counter(epoch: u64, token: FencingToken) -> Option<u64> {
    (token.get() >> EPOCH_SHIFT == epoch).then_some(token.get() & ((1 << EPOCH_SHIFT) - 1))
}

/// The grants of a request that was granted these counters.
pub(crate) fn grants(request: &AcquireRequest, epoch: u64, counters: &[u64]) -> Vec<Grant> {
    let grant = |(name, counter): (&String, &u64)| Grant {
        name: name.clone(),
        token: token(epoch, *counter),
        ttl: request.ttl,
    };
    request.names.iter().zip(counters).map(grant).collect()
}

/// What a holder wrote about itself.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Holder {
    #[serde(default)]
    pub(crate) owner: String,
    #[serde(default)]
    pub(crate) note: String,
    /// Milliseconds since 1970 by the server's clock; the script that granted wrote it.
    #[serde(default)]
    since: Option<i64>,
    /// The same by the holder's clock, where there are several servers, each with another clock.
    #[serde(default)]
    at: Option<i64>,
}

impl Holder {
    fn since(&self) -> Option<Since> {
        let at = |ms| WallTime::from_unix_millis(ms);
        self.at.map(|ms| Since::holder(at(ms))).or(self.since.map(|ms| Since::store(at(ms))))
    }

    fn told(self, token: FencingToken, remaining: Duration) -> lease::Holder {
        let since = self.since();
        lease::Holder::new(self.owner, token, remaining).with_since(since)
    }
}

/// The part of what a holder writes about itself that the client knows; the script adds the time. Where several servers
/// would each add their own, `at` is the one that all of them show.
pub(crate) fn about(owner: &str, note: &str, at: Option<WallTime>) -> Vec<u8> {
    let mut about = Vec::with_capacity(owner.len() + note.len() + 56);
    if let Some(at) = at {
        about.extend_from_slice(format!("\"at\":{},", at.unix_millis()).as_bytes());
    }
    for (field, text) in [("\"owner\":", owner), (",\"note\":", note)] {
        about.extend_from_slice(field.as_bytes());
        // A buffer takes everything, and every text is JSON.
        let _ = serde_json::to_writer(&mut about, text);
    }
    about.push(b'}');
    about
}

/// Reads `op \n json [\n annotation]`, as far as it is `op`'s.
pub(crate) fn holder(info: &[u8], op: &[u8]) -> Option<(Holder, Option<Vec<u8>>)> {
    let rest = info.strip_prefix(op)?.strip_prefix(b"\n")?;
    let end = rest.iter().position(|b| *b == b'\n');
    let (json, annotation) = match end {
        Some(end) => (&rest[..end], Some(rest[end + 1..].to_vec())),
        None => (rest, None),
    };
    Some((serde_json::from_slice(json).ok()?, annotation))
}

/// Reads `limit token json`.
fn sharer(text: &[u8]) -> Option<(u64, Holder)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut parts = text.splitn(3, ' ');
    let counter = parts.nth(1)?.parse().ok()?;
    Some((counter, serde_json::from_str(parts.next()?).ok()?))
}

/// Names somebody who is none of ours.
fn stranger(value: &[u8]) -> String {
    let shown: String =
        value.iter().take(SHOWN).map(|b| if b.is_ascii_graphic() { *b as char } else { '.' }).collect();
    format!("another client ({shown}..)")
}

fn foreign(kind: &str) -> String {
    format!("a foreign layout ({kind})")
}

/// -1 is no expiry and -2 is gone; neither is no time left.
fn left(pttl: i64) -> Option<Duration> {
    u64::try_from(pttl).ok().map(Duration::from_millis)
}

/// What an acquisition was answered by one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Released before it came.
    Cancelled,
    /// The counter of each name.
    Granted(Vec<u64>),
    /// In the way: the value that holds, who that is, how long it lasts and since when it is there.
    Held { value: Vec<u8>, by: String, remaining: Option<Duration>, since: Option<Since> },
    /// In line.
    Queued { position: Option<u32>, remaining: Option<Duration> },
}

/// A reply taken apart.
struct Parts<'a> {
    node: &'a str,
    parts: Vec<Value>,
}

impl Parts<'_> {
    fn bytes(&self, at: usize) -> Option<&[u8]> {
        match self.parts.get(at)? {
            Value::BulkString(bytes) => Some(bytes),
            Value::SimpleString(text) => Some(text.as_bytes()),
            _ => None,
        }
    }

    fn text(&self, at: usize) -> Option<&str> {
        std::str::from_utf8(self.bytes(at)?).ok()
    }

    fn number(&self, at: usize) -> i64 {
        match self.parts.get(at) {
            Some(Value::Int(n)) => *n,
            _ => self.text(at).and_then(|t| t.parse().ok()).unwrap_or(-2),
        }
    }

    fn garbled(&self) -> Error {
        garbled(self.node, &self.parts)
    }
}

fn parts(node: &str, reply: Value) -> Result<Parts<'_>> {
    match reply {
        Value::Array(parts) => Ok(Parts { node, parts }),
        other => Err(garbled(node, &other)),
    }
}

/// Reads the reply to an acquisition.
///
/// # Errors
/// `TooLarge` when a counter ran out, `Corrupt` when it is no number.
pub(crate) fn asked(node: &str, keys: &[Keys], reply: Value) -> Result<Asked> {
    // The short form of a grant of one name.
    if let Value::BulkString(digits) = &reply {
        let counter = std::str::from_utf8(digits).ok().and_then(|t| t.parse().ok());
        return counter.map(|c| Asked::Granted(vec![c])).ok_or_else(|| garbled(node, &reply));
    }
    let reply = parts(node, reply)?;
    let name = || {
        let at = usize::try_from(reply.number(1)).ok();
        at.and_then(|at| keys.get(at)).map_or("?", |k| k.name.as_str())
    };
    match reply.text(0) {
        Some("ok") => {
            let counters: Option<Vec<u64>> =
                (1..reply.parts.len()).map(|at| reply.text(at)?.parse().ok()).collect();
            counters.map(Asked::Granted).ok_or_else(|| reply.garbled())
        }
        Some("cancelled") => Ok(Asked::Cancelled),
        Some("held") => {
            let value = reply.bytes(2).unwrap_or_default().to_vec();
            let who = reply.bytes(4).unwrap_or_default();
            let known = holder(who, &value).map(|(h, _)| h);
            let known = known.or_else(|| sharer(who).filter(|_| value == SHARED.as_bytes()).map(|(_, h)| h));
            let since = known.as_ref().and_then(Holder::since);
            let by = known.map_or_else(|| stranger(&value), |h| h.owner);
            Ok(Asked::Held { value, by, remaining: left(reply.number(3)), since })
        }
        Some("queued") => {
            Ok(Asked::Queued { position: reply.number(1).try_into().ok(), remaining: left(reply.number(2)) })
        }
        // Free, and somebody came before.
        Some("waits") => {
            let first = sharer(reply.bytes(2).unwrap_or_default());
            let by = first.map_or_else(String::new, |(_, holder)| holder.owner);
            Ok(Asked::Held { value: Vec::new(), by, remaining: left(reply.number(3)), since: None })
        }
        Some("foreign") => {
            let by = foreign(reply.text(2).unwrap_or_default());
            Ok(Asked::Held { value: Vec::new(), by, remaining: left(reply.number(3)), since: None })
        }
        Some("mismatch") => {
            Err(mismatch(name(), format_args!("is a semaphore of {} permits", reply.number(2))))
        }
        // Not what was required: nobody has to be in the way.
        Some("unmet") => {
            let value = reply.bytes(2).unwrap_or_default().to_vec();
            Ok(Asked::Held { by: stranger(&value), value, remaining: None, since: None })
        }
        Some("range") => Err(ran_out(name())),
        Some("corrupt") => {
            let text = format!("`{}`: what should be its counter of fencing tokens is no number", name());
            Err(Error::new(ErrorKind::Corrupt, text))
        }
        _ => Err(reply.garbled()),
    }
}

/// No larger token is left.
pub(crate) fn ran_out(name: &str) -> Error {
    let text = format!("`{name}`: its counter of fencing tokens ran out; raise the epoch");
    Error::new(ErrorKind::TooLarge, text)
}

impl Asked {
    /// As the contract says it, where nothing was granted.
    pub(crate) fn refusal(self, op_id: &str) -> Result<Acquired> {
        match self {
            Self::Held { by, remaining, since, .. } => Ok(Acquired::Held { by, remaining, since }),
            Self::Queued { position, remaining } => Ok(Acquired::Queued { position, remaining }),
            Self::Cancelled => {
                let text = format!("op id `{:.8}..` was released: a new acquisition needs a new one", op_id);
                Err(Error::new(ErrorKind::ApiMisuse, text))
            }
            Self::Granted(_) => Err(Error::new(ErrorKind::Internal, "a grant is no refusal")),
        }
    }
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Renewed, at this time of the server: seconds and microseconds.
    At(i64, i64),
    /// Somebody ended it by force.
    Broken,
    /// It is not held.
    Gone,
}

/// Reads the reply to a renewal: the server's time in seconds and microseconds when it was extended.
pub(crate) fn renewed(node: &str, reply: Value) -> Result<Kept> {
    let reply = parts(node, reply)?;
    match reply.number(0) {
        0 => Ok(Kept::Gone),
        1 => Ok(Kept::At(reply.number(1), reply.number(2))),
        2 => Ok(Kept::Broken),
        _ => Err(reply.garbled()),
    }
}

/// Reads a count.
pub(crate) fn count(node: &str, reply: Value) -> Result<i64> {
    match reply {
        Value::Int(n) => Ok(n),
        other => Err(garbled(node, &other)),
    }
}

/// What one server knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Inspected {
    pub(crate) info: LeaseInfo,
    /// What holds it, to be compared between servers.
    pub(crate) value: Vec<u8>,
    pub(crate) counter: u64,
}

/// Reads the reply to an inspection.
pub(crate) fn inspected(node: &str, epoch: u64, name: &str, reply: Value) -> Result<Inspected> {
    let reply = parts(node, reply)?;
    let counter = reply.text(3).and_then(|t| t.parse().ok()).unwrap_or(0);
    let last = if counter == 0 { FencingToken::ZERO } else { token(epoch, counter) };
    let mut info = LeaseInfo::free(name, last);
    info.waiting = reply.number(8).try_into().unwrap_or(0);
    let kind = reply.text(0).ok_or_else(|| reply.garbled())?;
    let value = reply.bytes(1).unwrap_or_default().to_vec();
    let remaining = left(reply.number(2)).unwrap_or(NO_EXPIRY);
    let mut unknown = |who| info.holders.push(lease::Holder::new(who, FencingToken::ZERO, remaining));
    match (kind, holder(reply.bytes(4).unwrap_or_default(), &value)) {
        ("none", _) => {}
        ("string", Some((holder, annotation))) => {
            info.note.clone_from(&holder.note);
            info.annotation = annotation;
            info.holders.push(holder.told(last, remaining));
        }
        ("string", None) if value == SHARED.as_bytes() => shared(&reply, epoch, &mut info),
        ("string", None) => unknown(stranger(&value)),
        (other, _) => unknown(foreign(other)),
    }
    Ok(Inspected { info, value, counter })
}

fn shared(reply: &Parts<'_>, epoch: u64, info: &mut LeaseInfo) {
    let list = |at: usize| match reply.parts.get(at) {
        Some(Value::Array(items)) => items.as_slice(),
        _ => &[],
    };
    let bytes = |v: &Value| match v {
        Value::BulkString(b) => b.clone(),
        _ => Vec::new(),
    };
    let number =
        |v: &Value| String::from_utf8(bytes(v)).ok().and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
    let now = u64::try_from(reply.number(7)).unwrap_or(0);
    for end in list(6).chunks_exact(2) {
        let of = list(5).chunks_exact(2).find(|pair| pair[0] == end[0]);
        let Some((counter, holder)) = of.and_then(|pair| sharer(&bytes(&pair[1]))) else { continue };
        let remaining = Duration::from_millis(number(&end[1]).saturating_sub(now));
        info.note.clone_from(&holder.note);
        info.holders.push(holder.told(token(epoch, counter), remaining));
    }
    info.holders.sort_by_key(|h| h.token);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f13_a_token_keeps_every_digit() {
        let largest = (1_u64 << EPOCH_SHIFT) - 1;
        let reply = Value::Array(vec![
            Value::BulkString(b"ok".to_vec()),
            Value::BulkString(largest.to_string().into_bytes()),
        ]);
        assert_eq!(asked("n", &[], reply).unwrap(), Asked::Granted(vec![largest]));
        let token = token(32_767, largest);
        assert_eq!(token.get(), (1 << 63) - 1);
        assert_eq!(counter(32_767, token), Some(largest));
        assert_eq!(counter(0, token), None);
    }

    #[test]
    fn f42_no_expiry_and_gone_are_no_time_left() {
        assert_eq!([left(-1), left(-2), left(0)], [None, None, Some(Duration::ZERO)]);
    }

    #[test]
    fn what_a_holder_wrote_is_read_back_only_as_its_own() {
        let about = |at| about("host \"7\"", "why\n", at);
        let at = WallTime::from_unix_millis(7);
        let several = [&b"op\n{\"since\":1767225600123,"[..], &about(Some(at))].concat();
        assert_eq!(holder(&several, b"op").unwrap().0.since(), Some(Since::holder(at)));
        let info = [&b"op\n{\"since\":1767225600123,"[..], &about(None), b"\nva\nlue"].concat();
        let (holder_, annotation) = holder(&info, b"op").unwrap();
        let since = Since::store(WallTime::from_unix_millis(1_767_225_600_123));
        assert_eq!(holder_.since(), Some(since));
        assert_eq!((holder_.owner.as_str(), holder_.note.as_str()), ("host \"7\"", "why\n"));
        assert_eq!(annotation.as_deref(), Some(&b"va\nlue"[..]));
        assert!(holder(&info, b"o").is_none());
    }

    #[test]
    fn a_foreign_value_is_shown_in_part_only() {
        assert_eq!(stranger(b"\xff3abcdefgh"), "another client (.3abcd..)");
    }
}
