//! Who calls, what they may do, and how often somebody may guess.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Method, header};
use mainstay_clock::{Instant, WallTime};

use crate::error::Code;
use crate::http::{FormToken, Problem, Sessions, Tokens};

/// What a token may do; each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Scope {
    Read,
    Operate,
    Admin,
}

impl Scope {
    /// Its text in files and on the command line.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    /// Reads what [`Scope::as_str`] wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Read, Self::Operate, Self::Admin].into_iter().find(|s| s.as_str() == text)
    }
}

/// Who sent a request. In the audit by `name`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) scope: Scope,
}

impl Caller {
    /// Everybody, on loopback without tokens.
    pub(crate) fn anonymous() -> Self {
        Self { name: "local".to_owned(), scope: Scope::Admin }
    }
}

/// The scope that a request needs; `None` for the open routes, which tell nothing but up or down.
pub(crate) fn required(method: &Method, path: &str) -> Option<Scope> {
    let safe = matches!(*method, Method::GET | Method::HEAD);
    match path {
        "/livez" | "/readyz" | "/v1.0/healthz" | "/v1.0/healthz/outbound" if safe => None,
        // The way in: the form, its style, its answer.
        "/console/login" => None,
        _ if safe && path.starts_with("/console/assets/") => None,
        "/console/logout" => Some(Scope::Read),
        "/v1/audit" | "/console/audit" | "/console/system" => Some(Scope::Admin),
        _ if safe => Some(Scope::Read),
        _ if path.starts_with("/v1/definitions") => Some(Scope::Admin),
        _ => Some(Scope::Operate),
    }
}

/// Most wrong tokens of one address within [`WINDOW`].
const MAX_FAILURES: u32 = 10;
/// How long wrong tokens are remembered.
const WINDOW: Duration = Duration::from_secs(60);
/// Most addresses remembered: beyond it the oldest is forgotten, so memory stays bounded under a flood.
const MAX_ADDRESSES: usize = 4_096;

/// Counts wrong tokens per address.
#[derive(Debug, Default)]
pub(crate) struct Failures(Mutex<BTreeMap<IpAddr, (Instant, u32)>>);

impl Failures {
    /// Seconds until this address may try again.
    fn blocked(&self, ip: IpAddr, now: Instant) -> Option<u64> {
        let map = self.0.lock().expect("invariant: no panic under this lock");
        let (since, count) = map.get(&ip)?;
        let left = since.saturating_add(WINDOW).saturating_duration_since(now);
        (*count >= MAX_FAILURES && !left.is_zero()).then(|| left.as_secs() + 1)
    }

    fn count(&self, ip: IpAddr, now: Instant) {
        let mut map = self.0.lock().expect("invariant: no panic under this lock");
        if map.len() >= MAX_ADDRESSES && !map.contains_key(&ip) {
            let oldest = map.iter().min_by_key(|(_, (since, _))| *since).map(|(ip, _)| *ip);
            oldest.map(|ip| map.remove(&ip));
        }
        let entry = map.entry(ip).or_insert((now, 0));
        if now.saturating_duration_since(entry.0) >= WINDOW {
            *entry = (now, 0);
        }
        entry.1 += 1;
    }
}

/// Tokens, sessions and wrong guesses: what decides who calls.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) sessions: Sessions,
    failures: Failures,
}

impl Access {
    /// Nobody is known yet.
    pub(crate) fn new(tokens: Arc<Tokens>, sessions: Sessions) -> Self {
        Self { tokens, sessions, failures: Failures::default() }
    }

    /// Says who calls, or why they may not.
    ///
    /// # Errors
    /// 401, 403 or 429 as a problem.
    pub(crate) fn check(
        &self,
        request: (&Method, &str, &HeaderMap),
        from: IpAddr,
        now: (Instant, WallTime),
    ) -> Result<Caller, Problem> {
        let (method, path, headers) = request;
        let Some(needed) = required(method, path) else { return Ok(Caller::anonymous()) };
        if !self.needed()? {
            return Ok(Caller::anonymous());
        }
        self.slowed(from, now.0)?;
        let caller = match bearer(headers) {
            Some(secret) => self.holder(secret, from, now)?,
            None => self.visitor(headers, now)?,
        };
        if caller.scope < needed {
            let why =
                format!("this needs scope {}, the token has {}", needed.as_str(), caller.scope.as_str());
            return Err(Problem::new(Code::Forbidden, why));
        }
        Ok(caller)
    }

    /// Swaps a token for a session id.
    ///
    /// # Errors
    /// 401 or 429 as a problem.
    pub(crate) fn login(
        &self,
        secret: &str,
        from: IpAddr,
        now: (Instant, WallTime),
    ) -> Result<String, Problem> {
        self.slowed(from, now.0)?;
        self.holder(secret, from, now)?;
        let opened = self.sessions.open(Tokens::hash(secret), now.0);
        opened.map_err(|e| Problem::new(e.code(), "no session can be opened"))
    }

    /// The token that forms of this browser carry.
    pub(crate) fn form_token(&self, headers: &HeaderMap) -> FormToken {
        self.sessions.form_token(self.sessions.presented(headers))
    }

    /// Whether anybody has to say who they are.
    ///
    /// # Errors
    /// 401 as a problem when the token file is damaged.
    pub(crate) fn needed(&self) -> Result<bool, Problem> {
        self.tokens.needed().map_err(|e| {
            tracing::error!(error = %e.chain(), "the token file is not usable: nobody is admitted");
            Problem::new(Code::Unauthenticated, "the token file is not usable")
        })
    }

    fn slowed(&self, from: IpAddr, now: Instant) -> Result<(), Problem> {
        match self.failures.blocked(from, now) {
            Some(seconds) => {
                Err(Problem::new(Code::TooManyFailures, "too many wrong tokens").retry_after(seconds))
            }
            None => Ok(()),
        }
    }

    fn holder(&self, secret: &str, from: IpAddr, now: (Instant, WallTime)) -> Result<Caller, Problem> {
        self.tokens.caller(secret, now.1).ok().flatten().ok_or_else(|| {
            self.failures.count(from, now.0);
            Problem::new(Code::Unauthenticated, "the token is not valid")
        })
    }

    /// Who logged in with this browser; their token must still be good.
    fn visitor(&self, headers: &HeaderMap, now: (Instant, WallTime)) -> Result<Caller, Problem> {
        let id = self.sessions.presented(headers);
        let token = id.and_then(|id| self.sessions.token(id, now.0));
        let caller = token.and_then(|hash| self.tokens.holder(&hash, now.1).ok().flatten());
        caller.ok_or_else(|| Problem::new(Code::Unauthenticated, "send `Authorization: Bearer TOKEN`"))
    }
}

/// The token of a request; clients of Dapr send it in a header of their own.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    if let Some(token) = headers.get("dapr-api-token") {
        return token.to_str().ok().map(str::trim);
    }
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
