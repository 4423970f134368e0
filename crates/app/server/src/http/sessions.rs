//! Browser sessions: a login swaps a token for an opaque id in a cookie. They live in memory only, so a
//! restart ends them all.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use http::HeaderMap;
use mainstay_clock::Instant;
use mainstay_store::journal::Hash;
use subtle::ConstantTimeEq;

use crate::error::{Code, Error, Result};

/// Most sessions; beyond it the one unused for longest ends, so that logins cannot exhaust memory.
const MAX_SESSIONS: usize = 1_024;
/// A session ends this long after its login: a working day.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);
/// A session ends when it is not used for this long.
const IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// The cookie when browsers reach us by TLS: never sent in the clear, by no other host or path.
const SECURE: &str = "__Host-mainstay";
/// The cookie on plain HTTP, which is loopback only; with the port, because cookies do not tell ports apart.
const PLAIN: &str = "mainstay-session";

/// One login.
#[derive(Debug)]
struct Session {
    /// The hash of its token: revoking the token ends the session.
    token: [u8; 32],
    since: Instant,
    used: Instant,
}

/// All logins, and the secret that form tokens are derived from.
#[derive(Debug)]
pub(crate) struct Sessions {
    /// By the hash of the id, so that a look-up compares nothing secret byte by byte.
    open: Mutex<BTreeMap<Hash, Session>>,
    secret: [u8; 32],
    /// Browsers come by TLS, ours or that of a proxy in front.
    secure: bool,
}

impl Sessions {
    /// No sessions yet; `secure` when browsers come by TLS.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub(crate) fn new(secure: bool) -> Result<Self> {
        Ok(Self { open: Mutex::default(), secret: random()?, secure })
    }

    /// Whether browsers come by TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.secure
    }

    /// Opens a session for the holder of a token and returns its id.
    ///
    /// # Errors
    /// When the operating system gives no randomness.
    pub(crate) fn open(&self, token: [u8; 32], now: Instant) -> Result<String> {
        let id: String = random()?.iter().map(|b| format!("{b:02x}")).collect();
        let mut open = self.open.lock().expect("invariant: no panic under this lock");
        open.retain(|_, s| s.lives(now));
        if open.len() >= MAX_SESSIONS {
            let oldest = open.iter().min_by_key(|(_, s)| s.used).map(|(k, _)| *k);
            oldest.map(|k| open.remove(&k));
        }
        open.insert(key(&id), Session { token, since: now, used: now });
        Ok(id)
    }

    /// The hash of the token behind a session that lives.
    pub(crate) fn token(&self, id: &str, now: Instant) -> Option<[u8; 32]> {
        let mut open = self.open.lock().expect("invariant: no panic under this lock");
        let session = open.get_mut(&key(id)).filter(|s| s.lives(now))?;
        session.used = now;
        Some(session.token)
    }

    /// Ends a session.
    pub(crate) fn close(&self, id: &str) {
        self.open.lock().expect("invariant: no panic under this lock").remove(&key(id));
    }

    /// What a form must carry to be ours: derived from the session, unknown to other sites.
    pub(crate) fn form_token(&self, id: Option<&str>) -> FormToken {
        let mut text = self.secret.to_vec();
        text.extend(Hash::of(id.unwrap_or("").as_bytes()).0);
        FormToken(Hash::of(&text).to_string())
    }

    /// The session id that a browser sent.
    pub(crate) fn presented<'h>(&self, headers: &'h HeaderMap) -> Option<&'h str> {
        let name = self.cookie_name(headers);
        headers.get_all(http::header::COOKIE).iter().find_map(|line| {
            let mut cookies = line.to_str().ok()?.split(';');
            cookies.find_map(|c| c.trim().strip_prefix(&*name)?.strip_prefix('='))
        })
    }

    /// The cookie that carries `id`; an empty id takes it back.
    pub(crate) fn cookie(&self, headers: &HeaderMap, id: &str) -> String {
        let name = self.cookie_name(headers);
        let secure = if self.secure { "; Secure" } else { "" };
        let end = if id.is_empty() { "; Max-Age=0" } else { "" };
        format!("{name}={id}; Path=/; HttpOnly; SameSite=Strict{secure}{end}")
    }

    fn cookie_name(&self, headers: &HeaderMap) -> String {
        if self.secure {
            return SECURE.to_owned();
        }
        let host = headers.get(http::header::HOST).and_then(|v| v.to_str().ok()).unwrap_or("");
        let port = host.rsplit_once(':').map_or("", |(_, p)| p);
        let port: String = port.chars().filter(char::is_ascii_digit).take(5).collect();
        format!("{PLAIN}-{port}")
    }
}

impl Session {
    fn lives(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) < LONGEST && now.saturating_duration_since(self.used) < IDLE
    }
}

/// The token of the forms of one session.
#[derive(Clone, Debug)]
pub(crate) struct FormToken(pub(crate) String);

impl FormToken {
    /// Whether a form carries it, in constant time.
    pub(crate) fn is(&self, given: &str) -> bool {
        bool::from(self.0.as_bytes().ct_eq(given.as_bytes()))
    }
}

fn key(id: &str) -> Hash {
    Hash::of(id.as_bytes())
}

fn random() -> Result<[u8; 32]> {
    let mut bytes = [0_u8; 32];
    let taken = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    match taken {
        Ok(n) if n == bytes.len() => Ok(bytes),
        _ => Err(Error::new(Code::Internal, "the operating system gave no randomness")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(hours: u64) -> Instant {
        mainstay_clock::os_boot_now().saturating_add(Duration::from_secs(hours * 3_600))
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (k.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn sec_17_a_session_is_opaque_ends_by_itself_and_can_be_closed() {
        let sessions = Sessions::new(true).unwrap();
        let id = sessions.open([7; 32], at(0)).unwrap();
        assert_eq!(id.len(), 64);
        assert_eq!(sessions.token(&id, at(1)), Some([7; 32]));
        assert_eq!(sessions.token(&id, at(4)), None, "two hours unused");
        let other = sessions.open([8; 32], at(0)).unwrap();
        assert!((1..12).all(|h| sessions.token(&other, at(h)).is_some()));
        assert_eq!(sessions.token(&other, at(12)), None, "a day's end");
        let third = sessions.open([9; 32], at(0)).unwrap();
        sessions.close(&third);
        assert_eq!(sessions.token(&third, at(0)), None);
        assert_eq!(sessions.token("", at(0)), None);
    }

    #[test]
    fn if_c02_logins_cannot_exhaust_memory() {
        let sessions = Sessions::new(true).unwrap();
        for _ in 0..MAX_SESSIONS + 50 {
            sessions.open([1; 32], at(0)).unwrap();
        }
        assert_eq!(sessions.open.lock().unwrap().len(), MAX_SESSIONS);
    }

    #[test]
    fn sec_17_the_cookie_is_bound_to_the_host_and_to_tls_where_there_is_tls() {
        let secure = Sessions::new(true).unwrap();
        let plain = Sessions::new(false).unwrap();
        let host = headers(&[("host", "127.0.0.1:4600")]);
        assert_eq!(secure.cookie(&host, "x"), "__Host-mainstay=x; Path=/; HttpOnly; SameSite=Strict; Secure");
        assert_eq!(plain.cookie(&host, "x"), "mainstay-session-4600=x; Path=/; HttpOnly; SameSite=Strict");
        assert!(plain.cookie(&host, "").ends_with("; Max-Age=0"));
        let sent = headers(&[("host", "h"), ("cookie", "a=b; __Host-mainstay=yes; mainstay-session-=no")]);
        assert_eq!(secure.presented(&sent), Some("yes"));
        assert_eq!(plain.presented(&sent), Some("no"), "a cookie of the other kind counts for nothing");
    }

    #[test]
    fn if_c14_form_tokens_differ_by_session_and_by_process() {
        let (one, two) = (Sessions::new(true).unwrap(), Sessions::new(true).unwrap());
        let token = one.form_token(Some("a")).0;
        assert!(one.form_token(Some("a")).is(&token));
        for other in [one.form_token(Some("b")), one.form_token(None), two.form_token(Some("a"))] {
            assert!(!other.is(&token));
        }
        assert!(!one.form_token(None).is(""));
    }
}
