//! The HTTP proxy: one request at a time per connection, each with its own fate.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::{HeaderValue, Request, Response, StatusCode, header};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use mainstay_clock::Runtime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::MAX_CONNECTIONS;
use super::plan::{Counts, Fault, Forced, HttpFaults};

/// Largest body in either direction: far above what the services of a test exchange.
const MAX_BODY: usize = 4 * 1024 * 1024;
/// Entries of the log of injected faults; the oldest go.
const MAX_LOG: usize = 10_000;
/// Longest wait for the service: beyond it the caller has given up.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(30);

/// One injected fault.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Injected {
    /// Number of the request, from 1.
    pub request: u64,
    /// What was done.
    pub fault: Fault,
    /// Its path.
    pub path: String,
    /// The idempotency key, if it had one.
    pub key: Option<String>,
}

struct Shared {
    runtime: Runtime,
    seed: u64,
    state: Mutex<State>,
    stop: CancellationToken,
    slots: Arc<Semaphore>,
}

struct State {
    upstream: Option<SocketAddr>,
    faults: HttpFaults,
    forced: Vec<Forced>,
    /// Forced faults that are being done just now.
    in_hand: usize,
    counts: Counts,
    log: VecDeque<Injected>,
}

/// A proxy in front of one HTTP service. It stops when dropped.
///
/// Guarantees: listens on loopback only; a request that meets no fault is passed on unchanged, with its path,
/// headers and body, and so is the reply. Not guaranteed: keep-alive towards the service, upgrades, trailers.
pub struct HttpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

/// What comes back to the caller, or the end of its connection.
type Reply = Result<Response<Full<Bytes>>, Cut>;

/// The connection ends without a reply.
#[derive(Debug)]
struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cut off on purpose")
    }
}

impl std::error::Error for Cut {}

impl HttpProxy {
    /// Listens on a free port of loopback; the service may come later, see [`HttpProxy::set_upstream`].
    ///
    /// # Errors
    /// When no port can be bound.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing.
    pub async fn bind(runtime: Runtime, seed: u64, faults: HttpFaults) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let state = State {
            upstream: None,
            faults,
            forced: Vec::new(),
            in_hand: 0,
            counts: Counts::default(),
            log: VecDeque::new(),
        };
        let shared = Arc::new(Shared {
            runtime,
            seed,
            state: Mutex::new(state),
            stop: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        });
        let accepting = Arc::clone(&shared);
        shared.runtime.spawn("mainstay-proxy", async move { accept(&accepting, listener).await });
        Ok(Self { address, shared })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://` and the address.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Passes requests on to `upstream` from now on; `None` refuses them as a service that is down.
    pub fn set_upstream(&self, upstream: Option<SocketAddr>) {
        self.shared.state().upstream = upstream;
    }

    /// Replaces the shares of faults.
    pub fn set_faults(&self, faults: HttpFaults) {
        self.shared.state().faults = faults;
    }

    /// Adds a fault that happens whatever the seed says.
    pub fn force(&self, forced: Forced) {
        self.shared.state().forced.push(forced);
    }

    /// Forced faults that have not happened yet, with those that are just happening: one of them may still come to
    /// nothing.
    #[must_use]
    pub fn still_armed(&self) -> usize {
        let state = self.shared.state();
        state.forced.len() + state.in_hand
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.state().counts
    }

    /// The newest injected faults, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<Injected> {
        self.shared.state().log.iter().cloned().collect()
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl fmt::Debug for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers the request and draws its fate; a forced one is taken out until it is known to have happened.
    fn fate(&self, path: &str, body: &[u8]) -> (u64, Option<Fault>, Option<Forced>) {
        let mut state = self.state();
        state.counts.requests += 1;
        let n = state.counts.requests;
        if let Some(i) = state.forced.iter().position(|f| (f.matches)(path, body)) {
            let forced = state.forced.remove(i);
            state.in_hand += 1;
            return (n, Some(forced.fault), Some(forced));
        }
        (n, state.faults.nth(self.seed, n), None)
    }

    /// A forced fault happened as meant, or waits for the next request that matches: the service was away.
    fn settle(&self, request: u64, forced: Forced, done: bool, asked: &Asked) {
        if done {
            self.note(request, forced.fault, asked);
        }
        let mut state = self.state();
        state.in_hand -= 1;
        if !done {
            state.forced.push(forced);
        }
    }

    fn note(&self, request: u64, fault: Fault, asked: &Asked) {
        let mut state = self.state();
        state.counts.add(fault);
        if state.log.len() >= MAX_LOG {
            state.log.pop_front();
        }
        let key = asked.head.headers.get("idempotency-key").and_then(|v| v.to_str().ok()).map(str::to_owned);
        state.log.push_back(Injected { request, fault, path: asked.head.uri.path().to_owned(), key });
    }
}

async fn accept(shared: &Arc<Shared>, listener: TcpListener) {
    loop {
        let Ok(slot) = Arc::clone(&shared.slots).acquire_owned().await else { return };
        let stream = tokio::select! {
            biased;
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        // An accept that failed is the caller's connection gone; the next one may be fine.
        let Ok((stream, _)) = stream else { continue };
        let serving = Arc::clone(shared);
        shared.runtime.spawn("mainstay-proxy-connection", async move {
            let _slot = slot;
            let stop = serving.stop.clone();
            let service = service_fn(|request| pass(Arc::clone(&serving), request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                // Its end, planned or not, is all there is to know.
                _ = connection => {}
            }
        });
    }
}

/// A request, read whole.
struct Asked {
    head: ::http::request::Parts,
    body: Bytes,
}

async fn pass(shared: Arc<Shared>, request: Request<Incoming>) -> Reply {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, MAX_BODY).collect().await.map_err(|_| Cut)?.to_bytes();
    let asked = Asked { head, body };
    let path = asked.head.uri.path().to_owned();
    let (n, fault, forced) = shared.fate(&path, &asked.body);
    let Some(forced) = forced else {
        let (reply, done) = suffer(&shared, &asked, fault).await;
        if let Some(fault) = fault.filter(|_| done) {
            shared.note(n, fault, &asked);
        }
        return reply;
    };
    // It goes on when the caller gives up: what is forced happens whether or not somebody waits for it.
    let (tell, told) = oneshot::channel();
    let (tasks, stop) = (shared.runtime.clone(), shared.stop.clone());
    tasks.spawn("mainstay-proxy-forced", async move {
        let suffered = async {
            let (reply, done) = suffer(&shared, &asked, Some(forced.fault)).await;
            shared.settle(n, forced, done, &asked);
            // The caller may be gone.
            let _ = tell.send(reply);
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = suffered => {}
        }
    });
    told.await.unwrap_or(Err(Cut))
}

/// The reply under `fault`, and whether the fault happened as meant.
async fn suffer(shared: &Shared, asked: &Asked, fault: Option<Fault>) -> (Reply, bool) {
    match fault {
        None => (deliver(shared, asked).await, true),
        Some(Fault::Delay(by)) => {
            shared.runtime.clock().sleep(by).await;
            (deliver(shared, asked).await, true)
        }
        Some(Fault::Drop) => (Err(Cut), true),
        Some(Fault::Error) => {
            let mut reply = Response::new(Full::from("the proxy says 500"));
            *reply.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            (Ok(reply), true)
        }
        Some(Fault::Lost) => {
            let done = deliver(shared, asked).await.is_ok();
            (Err(Cut), done)
        }
        Some(Fault::Duplicate) => {
            let first = deliver(shared, asked).await;
            let second = deliver(shared, asked).await;
            let done = first.is_ok() && second.is_ok();
            (first, done)
        }
        Some(Fault::DuplicateLost) => {
            let first = deliver(shared, asked).await;
            let second = deliver(shared, asked).await;
            (Err(Cut), first.is_ok() && second.is_ok())
        }
    }
}

/// Passes the request on over a connection of its own.
async fn deliver(shared: &Shared, asked: &Asked) -> Reply {
    let upstream = shared.state().upstream;
    let exchange = async {
        let stream = TcpStream::connect(upstream?).await.ok()?;
        // Small requests and replies: waiting to fill a packet only adds delay.
        stream.set_nodelay(true).ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
        let reply = async {
            let reply = sender.send_request(request_of(asked)).await.ok()?;
            let (mut head, body) = reply.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.ok()?.to_bytes();
            strip_hop(&mut head.headers);
            Some(Response::from_parts(head, Full::new(body)))
        };
        tokio::pin!(connection, reply);
        tokio::select! {
            biased;
            reply = &mut reply => reply,
            _ = &mut connection => reply.await,
        }
    };
    let reply = tokio::select! {
        biased;
        reply = exchange => reply,
        () = shared.runtime.clock().sleep(UPSTREAM_TIMEOUT) => None,
    };
    reply.ok_or_else(|| {
        shared.state().counts.unreachable += 1;
        Cut
    })
}

fn request_of(asked: &Asked) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(asked.body.clone()));
    *request.method_mut() = asked.head.method.clone();
    *request.uri_mut() = asked.head.uri.clone();
    *request.headers_mut() = asked.head.headers.clone();
    strip_hop(request.headers_mut());
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    request
}

/// Headers that concern one connection only (RFC 9110, section 7.6.1).
fn strip_hop(headers: &mut ::http::HeaderMap) {
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::TE, header::UPGRADE] {
        headers.remove(name);
    }
}
