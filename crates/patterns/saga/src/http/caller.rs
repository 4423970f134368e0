//! The caller: one request, one bounded reply.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use mainstay_clock::{Clock, Instant, WallTime};
use mainstay_store::BoxFuture;
use reqwest::Url;

use super::address::{AddressPolicy, Refusal, origin_of, parse_origin};
use super::resolve::{Checked, Resolve, SystemResolver};
use crate::definition::MAX_PAYLOAD;
use crate::participant::{Attempt, Kind, Participant, Reply, Request};
use crate::signature::{Secret, sign};
use crate::{Error, ErrorKind};

/// Longest connect, with the name's resolution and the TLS handshake: within it nothing was sent, which is
/// worth knowing for certain.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections kept per participant: as many as sagas are usually in flight at once.
const IDLE: usize = 256;
/// How long an idle connection is kept: shorter than the 60 s after which common servers close theirs, so
/// that a request rarely meets a closing one.
const IDLE_FOR: Duration = Duration::from_secs(30);

/// Calls participants over HTTP/1.1.
///
/// Guaranteed: only what the [`AddressPolicy`] admits is dialed; a reply over the limit, late or cut is
/// `Unknown`; nothing is sent twice by itself. Not guaranteed: that a request which is `Unknown` had no effect.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_saga::http::{AddressPolicy, HttpParticipant, install_tls};
///
/// install_tls();
/// let policy = AddressPolicy::only(["https://pay.example"]).unwrap();
/// let caller = HttpParticipant::builder(policy, Arc::new(SystemClock::new())).build().unwrap();
/// assert!(caller.policy().check("https://pay.example/charge").is_ok());
/// ```
pub struct HttpParticipant {
    client: reqwest::Client,
    policy: Arc<AddressPolicy>,
    secrets: BTreeMap<String, Vec<Secret>>,
    max_reply: usize,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for HttpParticipant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpParticipant").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Builds an [`HttpParticipant`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `max_reply` | 256 KiB | the largest output of a step |
/// | `connect_timeout` | 5 s | within it a failure is proven not sent |
/// | `resolver` | the operating system's | |
/// | `sign` | no signature | a participant must know the secret first |
/// | `trust` | the operating system's roots | |
#[derive(Debug)]
#[must_use]
pub struct Builder {
    policy: AddressPolicy,
    clock: Arc<dyn Clock>,
    max_reply: usize,
    connect_timeout: Duration,
    resolver: Arc<dyn Resolve>,
    secrets: Vec<(String, Vec<Secret>)>,
    roots: Vec<Vec<u8>>,
}

impl Builder {
    /// Largest body of a reply, in bytes.
    pub fn max_reply(mut self, bytes: usize) -> Self {
        self.max_reply = bytes;
        self
    }

    /// Longest connect, with resolution and TLS.
    pub fn connect_timeout(mut self, d: Duration) -> Self {
        self.connect_timeout = d;
        self
    }

    /// Resolves names in another way. Its answers are checked all the same.
    pub fn resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.resolver = resolver;
        self
    }

    /// Signs requests to `origin` with each of `secrets`; two while one takes the other's place. Secrets are
    /// per origin: a participant that knows another's secret could speak in this node's name.
    pub fn sign(mut self, origin: &str, secrets: impl IntoIterator<Item = Secret>) -> Self {
        self.secrets.push((origin.to_owned(), secrets.into_iter().collect()));
        self
    }

    /// Trusts this root certificate (PEM) too.
    pub fn trust(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.roots.push(pem.into());
        self
    }

    /// The caller.
    ///
    /// # Errors
    /// `Config` when a limit is zero, an origin or a certificate cannot be read, or the process has no TLS
    /// provider ([`install_tls`]).
    pub fn build(self) -> Result<HttpParticipant, Error> {
        let config = |text: String| Error::new(ErrorKind::Config, text);
        if self.max_reply == 0 || self.connect_timeout.is_zero() {
            return Err(config("the reply limit and the connect time must not be zero".to_owned()));
        }
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(config("the process has no TLS provider; call `http::install_tls` first".to_owned()));
        }
        let policy = Arc::new(self.policy);
        let mut client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(self.connect_timeout)
            .pool_max_idle_per_host(IDLE)
            .pool_idle_timeout(IDLE_FOR)
            .tcp_nodelay(true)
            .dns_resolver(Arc::new(Checked { policy: Arc::clone(&policy), inner: self.resolver }));
        for pem in self.roots {
            let root = reqwest::Certificate::from_pem(&pem).map_err(|e| config(plain(&e)))?;
            client = client.tls_certs_merge([root]);
        }
        let mut secrets = BTreeMap::new();
        for (origin, some) in self.secrets {
            secrets.insert(parse_origin(&origin)?, some);
        }
        let client = client.build().map_err(|e| config(format!("no HTTP client: {}", plain(&e))))?;
        Ok(HttpParticipant { client, policy, secrets, max_reply: self.max_reply, clock: self.clock })
    }
}

/// Installs a TLS provider for the process unless it has one. An application calls it once, at its start.
pub fn install_tls() {
    // The other one wins where two race; either will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl HttpParticipant {
    /// A builder for callers under this policy.
    pub fn builder(policy: AddressPolicy, clock: Arc<dyn Clock>) -> Builder {
        Builder {
            policy,
            clock,
            max_reply: MAX_PAYLOAD,
            connect_timeout: CONNECT,
            resolver: Arc::new(SystemResolver),
            secrets: Vec::new(),
            roots: Vec::new(),
        }
    }

    /// The policy that decides which addresses are called.
    #[must_use]
    pub fn policy(&self) -> &AddressPolicy {
        &self.policy
    }

    async fn exchange(&self, request: Request) -> Reply {
        // A question that was not sent says nothing about the action that it asks after.
        let not_sent = match request.kind {
            Kind::Act => Reply::NotSent,
            Kind::Poll | Kind::Status => Reply::Unknown,
        };
        let url = match self.policy.parse(&request.url) {
            Ok(url) => url,
            Err(refusal) => {
                tracing::warn!(target: "mainstay::saga", saga = request.saga, step = request.step, %refusal,
                    "an address was refused");
                return not_sent(refusal.to_string());
            }
        };
        let answer = match self.client.execute(self.prepare(url.clone(), request)).await {
            Ok(answer) => answer,
            Err(e) if e.is_connect() || e.is_builder() => return not_sent(plain(&e)),
            Err(e) => return Reply::Unknown(plain(&e)),
        };
        let (status, mut headers) = (answer.status().as_u16(), answer.headers().clone());
        self.absolute(&url, &mut headers);
        match self.body(answer).await {
            Ok(body) => Reply::Answered(Attempt { status, headers, body }),
            Err(why) => Reply::Unknown(why),
        }
    }

    fn prepare(&self, url: Url, request: Request) -> reqwest::Request {
        let secrets = if self.secrets.is_empty() { None } else { origin_of(&url) };
        let secrets = secrets.and_then(|origin| self.secrets.get(&origin));
        let posts = request.kind == Kind::Act;
        let mut call = reqwest::Request::new(if posts { http::Method::POST } else { http::Method::GET }, url);
        let headers = call.headers_mut();
        headers.reserve(12);
        put_headers(headers, &request);
        let body = if posts { request.body } else { Vec::new() };
        if let Some(secrets) = secrets {
            let now = self.clock.wall().unix_millis() / 1_000;
            put(headers, "webhook-signature", &sign(secrets, &request.idempotency_key, now, &body));
            put(headers, "webhook-timestamp", &now.to_string());
            put(headers, "webhook-id", &request.idempotency_key);
        }
        if posts {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *call.body_mut() = Some(body.into());
        }
        call
    }

    /// Turns what is relative to this exchange into what stands alone: a place into a URL, a date into seconds.
    fn absolute(&self, url: &Url, headers: &mut HeaderMap) {
        let place = headers.get(LOCATION).and_then(|l| url.join(l.to_str().ok()?).ok());
        if let Some(place) = place.and_then(|p| p.as_str().parse().ok()) {
            headers.insert(LOCATION, place);
        }
        let date = headers.get(RETRY_AFTER).and_then(|v| httpdate::parse_http_date(v.to_str().ok()?).ok());
        if let Some(since) = date.and_then(|at| at.duration_since(UNIX_EPOCH).ok()) {
            let now = u64::try_from(self.clock.wall().unix_millis()).unwrap_or(0);
            let wait = since.saturating_sub(Duration::from_millis(now));
            // Rounded up: not before the date.
            headers.insert(RETRY_AFTER, (wait.as_millis().div_ceil(1_000) as u64).into());
        }
    }

    /// The body within its limit; what is longer is cut off, not read.
    async fn body(&self, mut answer: reqwest::Response) -> Result<Vec<u8>, String> {
        let too_large = || format!("the reply has more than {} bytes", self.max_reply);
        let expected = answer.content_length().unwrap_or(0);
        if expected > self.max_reply as u64 {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(|e| plain(&e))? {
            if body.len() + chunk.len() > self.max_reply {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

impl Participant for HttpParticipant {
    fn call(&self, request: Request, deadline: Instant) -> BoxFuture<'_, Reply> {
        Box::pin(async move {
            let late = self.clock.sleep_until(deadline);
            tokio::select! {
                biased;
                reply = self.exchange(request) => reply,
                () = late => Reply::Unknown("no complete reply in time".to_owned()),
            }
        })
    }

    fn check(&self, url: &str) -> Result<(), String> {
        self.policy.check(url).map_err(|refusal: Refusal| refusal.to_string())
    }
}

fn put_headers(headers: &mut HeaderMap, request: &Request) {
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    put(headers, "idempotency-key", &format!("\"{}\"", request.idempotency_key));
    put(headers, "saga-id", &request.saga);
    put(headers, "saga-step", &request.step);
    put(headers, "saga-op", &request.op.text());
    headers.insert("saga-attempt", request.attempt.into());
    headers.insert("fencing-token", request.fencing_token.get().into());
    if let Some(at) = request.deadline_wall {
        put(headers, "saga-deadline", &rfc3339(at));
    }
    if let Some(trace) = &request.traceparent {
        put(headers, "traceparent", trace);
        if let Some(state) = &request.tracestate {
            put(headers, "tracestate", state);
        }
    }
}

fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Ids, names and keys are checked to be visible ASCII where they come in.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn rfc3339(at: WallTime) -> String {
    let since = Duration::from_millis(u64::try_from(at.unix_millis()).unwrap_or(0));
    humantime::format_rfc3339_millis(UNIX_EPOCH + since).to_string()
}

/// The error with its causes and without the URL, which may carry secrets.
fn plain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "timeout" } else { "the exchange failed" }.to_owned();
    let mut next = std::error::Error::source(error);
    while let Some(e) = next {
        text.push_str(": ");
        text.push_str(&e.to_string());
        next = e.source();
    }
    text
}
