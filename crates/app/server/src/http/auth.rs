//! Who calls, what they may do, and how often somebody may guess.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Method, header};
use mainstay_clock::{Instant, WallTime};
use mainstay_store::journal::{Hash, MAX_ID_BYTES};

use crate::error::Code;
use crate::http::reach::{Reach, covers, is_namespace};
use crate::http::{FormToken, Peer, Problem, Sessions, Tokens};

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
    /// What the caller may reach; none: everything.
    pub(crate) namespaces: Vec<String>,
}

impl Caller {
    /// Everybody, on loopback without tokens.
    pub(crate) fn anonymous() -> Self {
        Self { name: "local".to_owned(), scope: Scope::Admin, namespaces: Vec::new() }
    }

    /// Whether the caller may reach the whole node.
    pub(crate) fn is_free(&self) -> bool {
        self.namespaces.is_empty()
    }

    /// Whether the caller may reach what has this name.
    pub(crate) fn reaches(&self, name: &str) -> bool {
        self.is_free() || self.namespaces.iter().any(|namespace| covers(namespace, name))
    }

    /// As [`Caller::reaches`], as a problem.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn demand(&self, name: &str) -> Result<(), Problem> {
        if self.reaches(name) { Ok(()) } else { Err(self.outside(&format!("`{name}`"))) }
    }

    /// As [`Caller::demand`] for what reaches everything unless it is narrowed to a definition.
    ///
    /// # Errors
    /// 403.
    pub(crate) fn demand_definition(&self, definition: Option<&str>) -> Result<(), Problem> {
        match definition {
            Some(name) => self.demand(name),
            None if self.is_free() => Ok(()),
            None => Err(self.outside("all definitions; name one as `definition`")),
        }
    }

    fn outside(&self, what: &str) -> Problem {
        let own = self.namespaces.join(", ");
        Problem::new(
            Code::Forbidden,
            format!("the namespaces of `{}` ({own}) do not cover {what}", self.name),
        )
    }
}

/// The name for the audit, which takes so many bytes. Of a longer one the beginning and a hash: still nobody else's.
fn bounded(mut name: String) -> String {
    if name.len() > MAX_ID_BYTES {
        let hash = Hash::of(name.as_bytes()).to_string();
        let most = MAX_ID_BYTES - hash.len() - 1;
        let end = (0..=most).rev().find(|i| name.is_char_boundary(*i)).unwrap_or(0);
        name.truncate(end);
        name = format!("{name}~{hash}");
    }
    name
}

/// Clients that are known by their certificates.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clients(BTreeMap<String, Caller>);

impl Clients {
    /// Reads `NAME=SCOPE` or `NAME=SCOPE@NAMESPACE+NAMESPACE` each.
    ///
    /// # Errors
    /// The first entry that is neither.
    pub(crate) fn read(entries: &[String]) -> Result<Self, String> {
        let mut all = BTreeMap::new();
        for entry in entries {
            let wrong = || format!("`{entry}` is not NAME=SCOPE or NAME=SCOPE@NAMESPACE+NAMESPACE");
            let (name, rights) = entry.rsplit_once('=').ok_or_else(wrong)?;
            if !["dns:", "uri:"].iter().any(|kind| name.len() > kind.len() && name.starts_with(kind)) {
                return Err(format!("`{name}` does not begin with dns: or uri:"));
            }
            let (scope, namespaces) = match rights.split_once('@') {
                None => (rights, Vec::new()),
                Some((scope, list)) => (scope, list.split('+').map(str::to_owned).collect()),
            };
            if !namespaces.iter().all(|n| is_namespace(n)) {
                return Err(wrong());
            }
            let scope = Scope::parse(scope).ok_or_else(wrong)?;
            let caller = Caller { name: name.to_owned(), scope, namespaces };
            if all.insert(name.to_owned(), caller).is_some() {
                return Err(format!("`{name}` comes twice"));
            }
        }
        Ok(Self(all))
    }

    /// Whether no client is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
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
        let (since, count) = map.get(&whole(ip))?;
        let left = since.saturating_add(WINDOW).saturating_duration_since(now);
        (*count >= MAX_FAILURES && !left.is_zero()).then(|| left.as_secs() + 1)
    }

    fn count(&self, ip: IpAddr, now: Instant) {
        let ip = whole(ip);
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

/// Who it is: an IPv6 host has a whole /64 to come from.
pub(super) fn whole(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 => v4,
    }
}

/// Tokens, certificates, sessions and wrong guesses: what decides who calls.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) sessions: Sessions,
    clients: Clients,
    failures: Failures,
}

impl Access {
    /// Nobody is known yet.
    pub(crate) fn new(tokens: Arc<Tokens>, sessions: Sessions, clients: Clients) -> Self {
        Self { tokens, sessions, clients, failures: Failures::default() }
    }

    /// Says who calls, or why they may not. A token decides what its bearer may do, whatever the certificate of the
    /// connection; without a token and without a login a certificate that is bound to a scope does.
    ///
    /// # Errors
    /// 401, 403 or 429 as a problem.
    pub(crate) fn check(
        &self,
        request: (&Method, &str, &HeaderMap),
        from: &Peer,
        now: (Instant, WallTime),
    ) -> Result<Caller, Problem> {
        let (method, path, headers) = request;
        let Some(needed) = required(method, path) else { return Ok(Caller::anonymous()) };
        if !self.needed()? {
            return Ok(Caller::anonymous());
        }
        let named = match bearer(headers) {
            Some(secret) => self.holder(secret, from.ip, now),
            None => self.visitor(headers, now),
        };
        let caller = match (named, from.name.as_deref()) {
            (Ok(caller), None) => caller,
            // In the audit by both: neither can be the name of the other.
            (Ok(caller), Some(name)) => Caller { name: bounded(format!("{}/{name}", caller.name)), ..caller },
            (Err(problem), name) => {
                let known = name.filter(|_| bearer(headers).is_none()).and_then(|n| self.clients.0.get(n));
                let known = known.cloned().ok_or(problem)?;
                Caller { name: bounded(known.name), ..known }
            }
        };
        if caller.scope < needed {
            let why =
                format!("this needs scope {}, the token has {}", needed.as_str(), caller.scope.as_str());
            return Err(Problem::new(Code::Forbidden, why));
        }
        if !caller.is_free() {
            match Reach::of(path) {
                Reach::Asked | Reach::Nothing => {}
                Reach::Everything => return Err(caller.outside("this address, which reaches the whole node")),
                Reach::Named(name) => caller.demand(&name)?,
            }
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

    /// Who holds the token. Wrong ones slow down each other only: those who have a good one may come from the same
    /// address, as all do behind a proxy.
    fn holder(&self, secret: &str, from: IpAddr, now: (Instant, WallTime)) -> Result<Caller, Problem> {
        if let Some(caller) = self.tokens.caller(secret, now.1).ok().flatten() {
            return Ok(caller);
        }
        self.slowed(from, now.0)?;
        self.failures.count(from, now.0);
        Err(Problem::new(Code::Unauthenticated, "the token is not valid"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_05_bindings_of_certificates_are_read_whole_or_refused() {
        let read = |entry: &str| Clients::read(&[entry.to_owned()]);
        let clients = read("uri:spiffe://x/a?b=c=operate@team-a+team-b").unwrap();
        let caller = &clients.0["uri:spiffe://x/a?b=c"];
        assert_eq!((caller.scope, caller.namespaces.len()), (Scope::Operate, 2));
        assert!(caller.reaches("team-b/x") && !caller.reaches("team-c"));
        assert!(read("dns:a=admin").unwrap().0["dns:a"].is_free());
        for bad in
            ["", "dns:a", "a=read", "dns:=read", "dns:a=root", "dns:a=read@", "dns:a=read@x+", "cn:a=read"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
        let twice = ["dns:a=read".to_owned(), "dns:a=admin".to_owned()];
        assert!(Clients::read(&twice).unwrap_err().contains("twice"));
    }

    #[test]
    fn sec_05_a_name_that_is_too_long_for_the_audit_is_still_nobody_elses() {
        let name = |end: &str| format!("uri:spiffe://x/{}\u{e9}{end}", "a".repeat(500));
        let (a, b) = (bounded(name("a")), bounded(name("b")));
        assert!(a.len() <= MAX_ID_BYTES && b.len() <= MAX_ID_BYTES && a != b, "{a} {b}");
        assert!(a.starts_with("uri:spiffe://x/aaa"), "{a}");
        assert_eq!(bounded("dns:a".to_owned()), "dns:a");
    }

    #[test]
    fn sec_04_one_host_has_one_count_of_wrong_guesses() {
        let (failures, now) = (Failures::default(), mainstay_clock::os_boot_now());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for n in 0..MAX_FAILURES {
            failures.count(ip(&format!("2001:db8::{n:x}")), now);
        }
        assert!(failures.blocked(ip("2001:db8::ffff:1"), now).is_some(), "the same /64");
        assert!(failures.blocked(ip("2001:db8:0:1::1"), now).is_none());
        assert!(failures.blocked(ip("2001:db8::1"), now.saturating_add(WINDOW)).is_none());
        for _ in 0..MAX_FAILURES {
            failures.count(ip("::ffff:192.0.2.1"), now);
        }
        assert!(failures.blocked(ip("192.0.2.1"), now).is_some(), "the same host, mapped");
        assert!(failures.blocked(ip("192.0.2.2"), now).is_none());
    }
}
