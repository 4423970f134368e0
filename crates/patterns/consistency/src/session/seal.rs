//! Tokens as text: sealed, bounded, and refused by reason (feature `tokens`).

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac as _};
use mainstay_clock::WallTime;
use mainstay_store::replicated::{Mark, Position};
use sha2::Sha256;

use super::token::{MAX_POSITIONS, MAX_TEXT, Refusal, SessionToken, kind, read_at, rise};
use crate::error::ConfigError;

/// Shortest key: the size of the hash, below which HMAC loses strength (RFC 2104, section 3).
const MIN_KEY: usize = 32;
/// Tokens from further ahead than this are no skew of clocks.
const MAX_AHEAD: Duration = Duration::from_secs(60);
/// 2020-01-01, so that 32 bits of seconds last until 2156.
const EPOCH_MS: i64 = 1_577_836_800_000;
const MAC: usize = 16;
const HEAD: usize = 6;
/// What of a text of [`MAX_TEXT`] characters is not its seal.
const MAX_BYTES: usize = MAX_TEXT / 4 * 3 - MAC;
const VERSION: u8 = 1;
const SEVERAL: u8 = 15;

/// The keys that seal and open the tokens of one store, and for how long.
///
/// The name of the store and the tenant are sealed in but never sent: a token of another store does not open. Rotation
/// is two keys: the first one seals, each one opens.
///
/// ```
/// use mainstay_clock::WallTime;
/// use mainstay_consistency::session::{SessionToken, TokenKeys};
/// use mainstay_store::replicated::{Mark, Position};
///
/// let mark = Mark { system: "db".into(), timeline: "1".into(), position: Position::Counter(7) };
/// let token = SessionToken::at(mark);
/// let keys = TokenKeys::builder("orders").key(1, [7; 32]).build()?;
/// let now = WallTime::from_unix_millis(1_767_225_600_000);
/// let text = keys.seal(&token, now);
/// assert!(text.len() <= 64);
/// assert_eq!(keys.open(&text, now).unwrap(), token);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `ttl` | 1 h | longer than any replica lags that still serves; a returning visitor then starts at the primary |
/// | `tenant` | none | one tenant |
#[derive(Clone)]
pub struct TokenKeys {
    store: String,
    tenant: String,
    ttl: Duration,
    keys: Vec<(u8, Vec<u8>)>,
}

impl fmt::Debug for TokenKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<u8> = self.keys.iter().map(|(id, _)| *id).collect();
        f.debug_struct("TokenKeys").field("store", &self.store).field("keys", &ids).finish_non_exhaustive()
    }
}

/// Sets up [`TokenKeys`].
#[derive(Debug)]
pub struct TokenKeysBuilder(TokenKeys);

impl TokenKeysBuilder {
    /// The tenant whose tokens these are.
    #[must_use]
    pub fn tenant(mut self, tenant: &str) -> Self {
        tenant.clone_into(&mut self.0.tenant);
        self
    }

    /// How old a token may be.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.0.ttl = ttl;
        self
    }

    /// Adds a key. The first one seals.
    #[must_use]
    pub fn key(mut self, id: u8, secret: impl AsRef<[u8]>) -> Self {
        self.0.keys.push((id, secret.as_ref().to_vec()));
        self
    }

    /// The keys.
    ///
    /// # Errors
    /// [`ConfigError`] for no key, a short key, an id used twice, or no time to live.
    pub fn build(self) -> std::result::Result<TokenKeys, ConfigError> {
        let keys = &self.0.keys;
        if keys.is_empty() {
            return Err(ConfigError::new("key", "none", "at least one"));
        }
        if let Some((_, key)) = keys.iter().find(|(_, key)| key.len() < MIN_KEY) {
            return Err(ConfigError::new(
                "key",
                format!("{} bytes", key.len()),
                format!("at least {MIN_KEY} bytes"),
            ));
        }
        if let Some((i, (id, _))) =
            keys.iter().enumerate().find(|(i, (id, _))| keys[..*i].iter().any(|k| k.0 == *id))
        {
            return Err(ConfigError::new("key", format!("id {id} again as key {i}"), "each id once"));
        }
        if self.0.ttl < Duration::from_secs(1) {
            return Err(ConfigError::new("ttl", format!("{:?}", self.0.ttl), "at least 1s"));
        }
        Ok(self.0)
    }
}

impl TokenKeys {
    /// Keys for the store named `store`.
    #[must_use]
    pub fn builder(store: &str) -> TokenKeysBuilder {
        let ttl = Duration::from_secs(3600);
        TokenKeysBuilder(Self { store: store.to_owned(), tenant: String::new(), ttl, keys: Vec::new() })
    }

    /// The token as text for a header or a cookie: base64url without padding, never longer than [`MAX_TEXT`].
    ///
    /// Positions that take more, of stores with very many servers, are cut to what their history's own writer did, and the
    /// token is [owed](SessionToken::is_owed): whoever goes on from it reads from the primary, and is told of the loss of
    /// what that writer did. A cookie above some 4 KiB a browser would leave out, and go on with the one before.
    #[must_use]
    pub fn seal(&self, token: &SessionToken, now: WallTime) -> String {
        let mut out = self.written(token, now);
        if out.len() > MAX_BYTES {
            out = self.written(&shortened(token), now);
        }
        if out.len() > MAX_BYTES {
            out = self.written(&SessionToken { floors: Vec::new(), owed: true }, now);
        }
        let mac = self.mac(&self.keys[0].1, &out).finalize().into_bytes();
        out.extend_from_slice(&mac[..MAC]);
        URL_SAFE_NO_PAD.encode(out)
    }

    /// All of the text but the seal.
    fn written(&self, token: &SessionToken, now: WallTime) -> Vec<u8> {
        let seconds = now.unix_millis().saturating_sub(EPOCH_MS).max(0) / 1000;
        let issued = u32::try_from(seconds).unwrap_or(u32::MAX);
        let mut out = vec![VERSION << 4, self.keys[0].0];
        out.extend_from_slice(&issued.to_be_bytes());
        match token.floors.as_slice() {
            [mark] if !token.owed => {
                out[0] |= kind(&mark.position);
                self.write(mark, &mut out);
            }
            floors => {
                out[0] |= SEVERAL;
                out.push(u8::from(token.owed));
                for mark in floors {
                    out.push(kind(&mark.position));
                    self.write(mark, &mut out);
                }
            }
        }
        out
    }

    /// The token that `text` is.
    ///
    /// # Errors
    /// Why it is none; the request then has to read from the primary.
    pub fn open(&self, text: &str, now: WallTime) -> std::result::Result<SessionToken, Refusal> {
        let bytes = decoded(text)?;
        let (signed, mac) = bytes.split_at(bytes.len() - MAC);
        let (_, key) = self.keys.iter().find(|(id, _)| *id == signed[1]).ok_or(Refusal::UnknownKey)?;
        // Compares in constant time.
        self.mac(key, signed).verify_truncated_left(mac).map_err(|_| Refusal::Seal)?;
        let issued = issued(signed);
        if now.saturating_duration_since(issued) > self.ttl {
            return Err(Refusal::Expired);
        }
        if issued.saturating_duration_since(now) > MAX_AHEAD {
            return Err(Refusal::FromTheFuture);
        }
        read(&self.store, signed[0] & 0xf, &signed[HEAD..]).ok_or(Refusal::Malformed)
    }

    fn mac(&self, key: &[u8], bytes: &[u8]) -> Hmac<Sha256> {
        let mut mac =
            Hmac::<Sha256>::new_from_slice(key).expect("invariant: HMAC takes keys of every length");
        mac.update(b"mainstay session token");
        for part in [&self.store, &self.tenant] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part.as_bytes());
        }
        mac.update(bytes);
        mac
    }

    fn write(&self, mark: &Mark, out: &mut Vec<u8>) {
        if mark.system == self.store {
            out.push(Form::Scope as u8)
        } else {
            text(&mark.system, out)
        }
        match histories(&mark.position).iter().position(|name| *name == mark.timeline) {
            Some(at) => varint((at as u64 + OF_SERVER) << 2 | Form::Number as u64, out),
            None => text(&mark.timeline, out),
        }
        match &mark.position {
            Position::Counter(n) | Position::Offset(n) => varint(*n, out),
            Position::Lsn(lsn) => log(*lsn, 0, None, out),
            Position::LsnRead { lsn, ahead } => log(*lsn, *ahead, None, out),
            Position::LsnUnsynced { lsn, start } => log(*lsn, 0, Some(*start), out),
            Position::MariaGtid(set) => {
                varint(set.len() as u64, out);
                for ((domain, server), sequence) in set {
                    [u64::from(*domain), u64::from(*server), *sequence]
                        .into_iter()
                        .for_each(|n| varint(n, out));
                }
            }
            Position::Gtid(set) => {
                varint(set.len() as u64, out);
                for (server, end) in set {
                    text(server, out);
                    varint(*end, out);
                }
            }
            _ => {}
        }
    }
}

/// What is left of a token that no text holds: of every position what the server did that its history is named after. It
/// wants less, so its next read is owed to the primary.
fn shortened(token: &SessionToken) -> SessionToken {
    let floor = |mark: &Mark| {
        let of_writer = |named: String| named == mark.timeline;
        let position = match &mark.position {
            Position::Gtid(set) => {
                let own = set.iter().filter(|(uuid, _)| of_writer(history_of_uuid(uuid)));
                Position::Gtid(own.map(|(uuid, n)| (uuid.clone(), *n)).collect())
            }
            Position::MariaGtid(set) => {
                let own = set.iter().filter(|((_, server), _)| of_writer(history_of_server(*server)));
                Position::MariaGtid(own.map(|(key, n)| (*key, *n)).collect())
            }
            other => other.clone(),
        };
        Mark { position, ..mark.clone() }
    };
    SessionToken { floors: token.floors.iter().map(floor).collect(), owed: true }
}

/// The bytes of a text that may be a token, long enough to look at.
fn decoded(text: &str) -> std::result::Result<Vec<u8>, Refusal> {
    if text.len() > MAX_TEXT {
        return Err(Refusal::TooLong);
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| Refusal::Malformed)?;
    if bytes.len() < HEAD + MAC {
        return Err(Refusal::Malformed);
    }
    if bytes[0] >> 4 != VERSION {
        return Err(Refusal::Version);
    }
    Ok(bytes)
}

fn issued(signed: &[u8]) -> WallTime {
    let seconds = u32::from_be_bytes([signed[2], signed[3], signed[4], signed[5]]);
    WallTime::from_unix_millis(EPOCH_MS + i64::from(seconds) * 1000)
}

fn read(store: &str, kind: u8, body: &[u8]) -> Option<SessionToken> {
    let mut input = Input { rest: body, store };
    let mut token = SessionToken::new();
    if kind == SEVERAL {
        token.owed = input.byte()? == 1;
        while !input.rest.is_empty() {
            let kind = input.byte()?;
            rise(&mut token.floors, &input.mark(kind)?);
        }
    } else {
        token.floors.push(input.mark(kind)?);
    }
    (input.rest.is_empty() && token.floors.len() <= MAX_POSITIONS).then_some(token)
}

/// What a text says, whoever sealed it: for people who look into a token without its key.
///
/// Nothing in it may be believed. A session goes on from [`TokenKeys::open`] alone.
///
/// ```
/// use mainstay_clock::WallTime;
/// use mainstay_consistency::session::{SessionToken, TokenKeys, Unopened};
/// use mainstay_store::replicated::{Mark, Position};
///
/// let mark = Mark { system: "7231980518912837461".into(), timeline: "3".into(), position: Position::Lsn(0x306_EE20) };
/// let keys = TokenKeys::builder("orders").key(9, [7; 32]).build()?;
/// let text = keys.seal(&SessionToken::at(mark.clone()), WallTime::from_unix_millis(1_767_225_600_000));
/// let seen = Unopened::read(&text).unwrap();
/// assert_eq!((seen.key, seen.token.positions()), (9, &[mark][..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unopened {
    /// The number of the key that it says to be sealed with.
    pub key: u8,
    /// When it says to be issued.
    pub issued: WallTime,
    /// What it says. A system with an empty name is the store's own, which is not in the text.
    pub token: SessionToken,
}

impl Unopened {
    /// Reads a text without opening it.
    ///
    /// # Errors
    /// Why it is no token of any key.
    pub fn read(text: &str) -> std::result::Result<Self, Refusal> {
        let bytes = decoded(text)?;
        let signed = &bytes[..bytes.len() - MAC];
        let token = read("", signed[0] & 0xf, &signed[HEAD..]).ok_or(Refusal::Malformed)?;
        Ok(Self { key: signed[1], issued: issued(signed), token })
    }
}

/// Instead of what a read saw ahead: nobody waited for the commit.
const UNSYNCED: u64 = 1;

/// A position of PostgreSQL.
fn log(lsn: u64, ahead: u64, start: Option<u64>, out: &mut Vec<u8>) {
    varint(lsn, out);
    match start {
        // Half of the range is more log than there is.
        None => varint(ahead.min(u64::MAX >> 1) << 1, out),
        Some(start) => {
            varint(UNSYNCED, out);
            varint(start, out);
        }
    }
}

/// How a name is written: most are numbers or hexadecimal, and would cost twice their size as text.
#[derive(Clone, Copy)]
enum Form {
    Text = 0,
    Hex = 1,
    Number = 2,
    /// The name of the store, which both sides know.
    Scope = 3,
}

/// A number never has a length; with one it is a UUID, of which the hyphens need not travel.
const UUID: u64 = 1 << 2 | Form::Number as u64;

/// From this length on a number stands for a server that the position names: the history is that of its writes.
const OF_SERVER: u64 = 2;

/// The names of histories that a position gives away: MariaDB and MySQL name one after the server that writes it.
fn histories(position: &Position) -> Vec<String> {
    match position {
        Position::Gtid(set) => set.keys().map(|uuid| history_of_uuid(uuid)).collect(),
        Position::MariaGtid(set) => set.keys().map(|(_, server)| history_of_server(*server)).collect(),
        _ => Vec::new(),
    }
}

fn history_of_uuid(uuid: &str) -> String {
    format!("g{}", uuid.get(..8).unwrap_or(uuid))
}

fn history_of_server(server: u32) -> String {
    format!("s{server}")
}

fn text(name: &str, out: &mut Vec<u8>) {
    if let Ok(number) = name.parse::<u64>()
        && number.to_string() == name
    {
        out.push(Form::Number as u8);
        return varint(number, out);
    }
    if let Some(bytes) = uuid(name) {
        varint(UUID, out);
        return out.extend_from_slice(&bytes);
    }
    let (form, bytes) = match unhex(name) {
        Some(bytes) => (Form::Hex, bytes),
        None => (Form::Text, name.as_bytes().to_vec()),
    };
    varint((bytes.len() as u64) << 2 | form as u64, out);
    out.extend_from_slice(&bytes);
}

/// The 16 bytes of a UUID in lower case, as MySQL writes those of its servers.
fn uuid(name: &str) -> Option<Vec<u8>> {
    let bytes = name.as_bytes();
    let hyphens = [8, 13, 18, 23];
    if bytes.len() != 36 || hyphens.iter().any(|i| bytes[*i] != b'-') {
        return None;
    }
    unhex(&name.replace('-', "")).filter(|bytes| bytes.len() == 16)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(name: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None,
    };
    if name.is_empty() || !name.len().is_multiple_of(2) {
        return None;
    }
    name.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

struct Input<'a> {
    rest: &'a [u8],
    store: &'a str,
}

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut n = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            if part << shift >> shift != part {
                return None;
            }
            n |= part << shift;
            if byte < 0x80 {
                return Some(n);
            }
        }
        None
    }

    fn name(&mut self) -> Option<String> {
        let head = self.number()?;
        if head == UUID {
            let (bytes, rest) = self.rest.split_at_checked(16)?;
            self.rest = rest;
            let text = hex(bytes);
            return Some(format!(
                "{}-{}-{}-{}-{}",
                &text[..8],
                &text[8..12],
                &text[12..16],
                &text[16..20],
                &text[20..]
            ));
        }
        let len = usize::try_from(head >> 2).ok().filter(|len| *len <= self.rest.len())?;
        match head & 3 {
            2 => Some(self.number()?.to_string()),
            3 => Some(self.store.to_owned()),
            form => {
                let (bytes, rest) = self.rest.split_at(len);
                self.rest = rest;
                if form == Form::Hex as u64 {
                    Some(hex(bytes))
                } else {
                    String::from_utf8(bytes.to_vec()).ok()
                }
            }
        }
    }

    /// The name of a history, or which server of the position it is named after.
    fn history(&mut self) -> Option<Result<String, usize>> {
        let mut ahead = Input { rest: self.rest, store: self.store };
        let head = ahead.number()?;
        if head & 3 == Form::Number as u64 && head >> 2 >= OF_SERVER {
            self.rest = ahead.rest;
            return usize::try_from((head >> 2) - OF_SERVER).ok().map(Err);
        }
        self.name().map(Ok)
    }

    fn log(&mut self) -> Option<Position> {
        let (lsn, more) = (self.number()?, self.number()?);
        if more == UNSYNCED {
            return Some(Position::LsnUnsynced { lsn, start: self.number()? });
        }
        Some(read_at(lsn, more >> 1))
    }

    fn mark(&mut self, kind: u8) -> Option<Mark> {
        let (system, history) = (self.name()?, self.history()?);
        let position = match kind {
            1 => self.log()?,
            2 => Position::Offset(self.number()?),
            3 => {
                let count = self.number()?;
                let mut set = BTreeMap::new();
                for _ in 0..count {
                    let server = self.name()?;
                    set.insert(server, self.number()?);
                }
                Position::Gtid(set)
            }
            4 => {
                let count = self.number()?;
                let mut set = BTreeMap::new();
                for _ in 0..count {
                    let of = (self.number()?.try_into().ok()?, self.number()?.try_into().ok()?);
                    set.insert(of, self.number()?);
                }
                Position::MariaGtid(set)
            }
            5 => Position::Counter(self.number()?),
            _ => return None,
        };
        let timeline = history.or_else(|at| histories(&position).into_iter().nth(at).ok_or(())).ok()?;
        Some(Mark { system, timeline, position })
    }
}
