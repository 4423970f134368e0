//! What every request passes: limits, host, cross-site, authentication, body, time; then the router.

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use mainstay_clock::Runtime;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::Instrument as _;

use crate::error::Code;
use crate::http::{Access, Problem, Trace, guard, preferred_wait};
use crate::nearly::Watched;

/// Longest request target.
const MAX_URL: usize = 8 * 1024;
/// Most bytes of header names and values.
const MAX_HEADERS: usize = 16 * 1024;
/// Slowest pace of a request body, in bytes a second: below it is nobody who wants an answer. Apache's default
/// is 500.
const MIN_BODY_RATE: u64 = 512;
/// What a body may be late before its pace counts: lost packets and slow starts.
const BODY_GRACE: Duration = Duration::from_secs(2);
/// Advice to a client that met the cap on requests in flight.
const OVERLOAD_RETRY: u64 = 1;

/// Everything from the server itself, no inline script, no frames: what a stored script would need.
const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
     frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// Bounds of the edge; each is a configuration key.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) allowed_hosts: Vec<String>,
    pub(crate) body: usize,
    pub(crate) body_timeout: Duration,
    pub(crate) connections: usize,
    pub(crate) connections_per_ip: usize,
    pub(crate) drain: Duration,
    pub(crate) header_timeout: Duration,
    pub(crate) in_flight: usize,
    pub(crate) request_timeout: Duration,
    pub(crate) write_timeout: Duration,
}

/// Where a request came from.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) ip: IpAddr,
    /// By the certificate of the connection.
    pub(crate) name: Option<Arc<str>>,
}

/// How problems look where people meet them: pages instead of JSON.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pages {
    /// Whether the request is for a page.
    pub(crate) is_page: fn(&Uri, &HeaderMap) -> bool,
    /// The page of a problem.
    pub(crate) render: fn(&Problem, &Uri, &Trace) -> Response,
}

/// The way from a connection to the router.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) limits: Limits,
    pub(crate) rt: Runtime,
    /// Cancelled when the server stops: nothing new is taken, streams end.
    pub(crate) drain: CancellationToken,
    access: Arc<Access>,
    pages: Pages,
    in_flight: Semaphore,
    /// Bytes of bodies that are held at once: as many as requests in flight may bring. Whoever sends slowly takes what
    /// has come from here, and no place in flight.
    body_bytes: Semaphore,
    watched: Arc<Watched>,
    router: Router,
}

/// A body, with its share of what all may hold.
struct Whole<'a> {
    body: Body,
    _share: Option<SemaphorePermit<'a>>,
}

impl Gate {
    /// A gate in front of `router`.
    pub(crate) fn new(
        limits: Limits,
        rt: Runtime,
        drain: CancellationToken,
        access: Arc<Access>,
        pages: Pages,
        (watched, router): (Arc<Watched>, Router),
    ) -> Self {
        let in_flight = Semaphore::new(limits.in_flight);
        let bytes = limits.in_flight.saturating_mul(limits.body);
        let body_bytes = Semaphore::new(bytes.min(Semaphore::MAX_PERMITS));
        Self { limits, rt, drain, access, pages, in_flight, body_bytes, watched, router }
    }

    /// Answers one request. Every answer that is not a success is a problem.
    pub(crate) async fn handle(&self, peer: Peer, request: Request<Incoming>) -> Response {
        let trace = Trace::of(request.headers(), self.rt.rng().as_ref());
        let uri = request.uri().clone();
        let page = (self.pages.is_page)(&uri, request.headers());
        let method = request.method().clone();
        // Whatever is logged on the way, deep below too, is found by the trace that the caller was told.
        let span = tracing::error_span!("request", trace = trace.id());
        let answer = match self.pass(peer, request, &trace).instrument(span).await {
            Ok(response) => response,
            Err(problem) => problem.into_response(),
        };
        let mut response = match answer.extensions().get::<Problem>() {
            Some(problem) if page => (self.pages.render)(problem, &uri, &trace),
            _ => rendered(answer, uri.path(), &trace),
        };
        let instance = uri.path();
        if response.status().is_server_error() {
            tracing::warn!(%method, path = instance, status = response.status().as_u16(), trace = trace.id());
        } else {
            tracing::debug!(%method, path = instance, status = response.status().as_u16(), trace = trace.id());
        }
        harden(response.headers_mut());
        response
    }

    async fn pass(&self, peer: Peer, request: Request<Incoming>, trace: &Trace) -> Result<Response, Problem> {
        let (mut parts, body) = request.into_parts();
        let target = parts.uri.path_and_query().map_or(0, |p| p.as_str().len());
        if target > MAX_URL {
            return Err(Problem::new(Code::UrlTooLong, format!("the URL has more than {MAX_URL} bytes")));
        }
        let size: usize = parts.headers.iter().map(|(k, v)| k.as_str().len() + v.len()).sum();
        if size > MAX_HEADERS {
            let why = format!("the headers have more than {MAX_HEADERS} bytes");
            return Err(Problem::new(Code::HeadersTooLarge, why));
        }
        if self.access.needed().is_ok_and(|needed| !needed) {
            guard::host(&parts.uri, &parts.headers, &self.limits.allowed_hosts)?;
        }
        guard::cross_site(&parts.method, &parts.headers)?;
        let now = (self.rt.clock().now(), self.rt.clock().wall());
        let line = (&parts.method, parts.uri.path(), &parts.headers);
        let caller = self.access.check(line, &peer, now)?;
        if self.drain.is_cancelled() && !is_health(parts.uri.path()) {
            return Err(Problem::new(Code::Draining, "the server is stopping").retry_after(OVERLOAD_RETRY));
        }
        let long = is_long(&parts.method, &parts.uri, &parts.headers);
        // Health answers also under overload: a node that is only busy must not be restarted.
        let spared = long || is_health(parts.uri.path());
        if self.in_flight.available_permits() == 0 && !spared {
            return Err(crowded());
        }
        // In flight is what is answered, not what still comes in: nobody has to say who they are to send slowly.
        let Whole { body, _share } = self.body(&parts.method, &parts.headers, body).await?;
        let permit = match self.in_flight.try_acquire() {
            Ok(permit) => Some(permit),
            Err(_) if spared => None,
            Err(_) => return Err(crowded()),
        };
        self.count();
        let form = self.access.form_token(&parts.headers);
        parts.extensions.insert(form);
        parts.extensions.insert(peer);
        parts.extensions.insert(caller);
        parts.extensions.insert(trace.clone());
        let call = self.router.clone().oneshot(Request::from_parts(parts, body));
        if long {
            drop(permit);
            return Ok(call.await.unwrap_or_else(|never| match never {}));
        }
        let late = self.rt.clock().sleep(self.limits.request_timeout);
        tokio::select! {
            biased;
            answer = call => Ok(answer.unwrap_or_else(|never| match never {})),
            () = late => Err(Problem::new(Code::TimedOut, "whether a change was applied is unknown").retry_after(1)),
        }
    }

    /// Tells when few more requests can be taken.
    fn count(&self) {
        let most = self.limits.in_flight;
        let used = most.saturating_sub(self.in_flight.available_permits());
        if self.watched.requests.passes(used as u64, most as u64) {
            tracing::warn!(
                used,
                most,
                "80 % of the requests that may be in flight are; what comes on top is refused"
            );
        }
    }

    /// The whole body, within its size and time.
    async fn body(&self, method: &Method, headers: &HeaderMap, body: Incoming) -> Result<Whole<'_>, Problem> {
        let limit = self.limits.body;
        let too_large = || Problem::new(Code::BodyTooLarge, format!("the body has more than {limit} bytes"));
        let announced =
            headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|n| n > limit as u64) {
            return Err(too_large());
        }
        if matches!(*method, Method::GET | Method::HEAD) {
            return Ok(Whole { body: Body::empty(), _share: None });
        }
        let mut share: Option<SemaphorePermit<'_>> = None;
        let clock = self.rt.clock();
        let begun = clock.now();
        let end = begun.saturating_add(self.limits.body_timeout);
        let (mut body, mut whole) = (Limited::new(body, limit), Vec::new());
        loop {
            let due = begun.saturating_add(patience(whole.len())).min(end);
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = clock.sleep_until(due) => {
                    return Err(Problem::new(Code::BodyTimeout, "the body did not arrive in time"));
                }
            };
            match frame {
                None => return Ok(Whole { body: Body::from(whole), _share: share }),
                Some(Ok(frame)) => {
                    // What is no data are trailers, which nobody here reads.
                    let data = frame.data_ref().map_or(&[][..], |data| &data[..]);
                    let more =
                        self.body_bytes.try_acquire_many(u32::try_from(data.len()).unwrap_or(u32::MAX));
                    let more = more.map_err(|_| crowded())?;
                    match &mut share {
                        Some(share) => share.merge(more),
                        None => share = Some(more),
                    }
                    whole.extend_from_slice(data);
                }
                Some(Err(e)) if e.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
                Some(Err(_)) => return Err(Problem::new(Code::BadRequest, "the body broke off")),
            }
        }
    }
}

/// How long after its begin a body of which so much is there may let us wait for more.
fn patience(received: usize) -> Duration {
    BODY_GRACE + Duration::from_millis(received as u64 * 1_000 / MIN_BODY_RATE)
}

fn crowded() -> Problem {
    Problem::new(Code::Overloaded, "too many requests are in flight").retry_after(OVERLOAD_RETRY)
}

fn is_health(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

/// Event streams, and waits where there is something to wait for, have their own bounds; they count as connections.
fn is_long(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let (path, query) = (uri.path(), uri.query().unwrap_or_default());
    if matches!(path, "/v1/events" | "/console/events") || path.starts_with("/v1/observe/") {
        return true;
    }
    let prefers = preferred_wait(headers).is_some();
    let asks = query.split('&').any(|p| p.starts_with("wait=") || p.starts_with("bind="));
    (prefers || asks) && may_wait(method.as_str(), path)
}

/// Whether a route knows `wait`: elsewhere the word frees nobody from a limit.
pub(crate) fn may_wait(method: &str, path: &str) -> bool {
    // A name is one segment: a slash in it is encoded.
    let mut segments = path.split('/').skip(1);
    let root = (segments.next(), segments.next().unwrap_or_default());
    let names = segments.count();
    root.0 == Some("v1")
        && match method {
            "GET" => names == 1 && matches!(root.1, "elections" | "members" | "sagas"),
            "PUT" => matches!((root.1, names), ("elections" | "locks", 1) | ("members", 2)),
            _ => false,
        }
}

/// Turns an answer that carries a problem, or an error of the router, into its final form.
fn rendered(mut answer: Response, instance: &str, trace: &Trace) -> Response {
    if let Some(problem) = answer.extensions_mut().remove::<Problem>() {
        if problem.code().status().is_none() {
            tracing::error!(code = problem.code().name(), "this code is not for requests");
        }
        return problem.render(instance, trace);
    }
    let status = answer.status();
    let html =
        answer.headers().get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"text/html"));
    // Pages for people say themselves what is wrong.
    if html || !(status.is_client_error() || status.is_server_error()) {
        return answer;
    }
    let allow = answer.headers().get(header::ALLOW).and_then(|v| v.to_str().ok()).map(str::to_owned);
    if status == StatusCode::INTERNAL_SERVER_ERROR {
        tracing::error!(path = instance, trace = trace.id(), "an answer of 500 without a problem");
    }
    Problem::of_status(status, allow).render(instance, trace)
}

fn harden(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CSP));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}
