//! A middleware that refuses requests of holders that lost their right (feature `tower`).
//!
//! Whoever writes under a lock sends its token as `Fencing-Token`. The layer keeps the largest token of each resource in
//! a [`RecordStore`] and answers by itself: 412 to a smaller one, with the largest seen as `Fencing-Token`; 428 without
//! one; 400 to what is none; 503 when the store cannot be asked, because nobody knows then.

mod state;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use http::request::Parts;
use http::{Request, Response};
use mainstay_store::{BoxFuture, FencingToken, PutIf, RecordStore};
use pin_project_lite::pin_project;
use tokio::sync::OwnedMutexGuard;
use tower_layer::Layer;
use tower_service::Service;

use state::{HEADER, Refusal};

/// A record that others change at the same time is looked at again this often, then the request is refused as unknown.
const TRIES: u32 = 8;

type Resource = dyn Fn(&Parts) -> Option<String> + Send + Sync;
type Turn = tokio::sync::Mutex<()>;

/// Makes [`Fencing`] services. Clones share what is under way.
///
/// Guarantees: in one process, requests for a resource run one after the other, and none begins after one with a larger
/// token did; the largest token survives whatever the store survives. Not guaranteed: an order between processes beyond
/// the check itself. Where several serve one resource, the write must carry the token to its own store, which the handler
/// finds as [`FencingToken`] among the extensions. A handler that hangs holds up its resource: put a timeout around it,
/// inside this layer.
///
/// ```
/// use std::convert::Infallible;
/// use std::sync::Arc;
/// use http::{Method, Request, Response};
/// use mainstay_clock::SystemClock;
/// use mainstay_coordination::FencingLayer;
/// use mainstay_store::memory::MemoryRecordStore;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let records = Arc::new(MemoryRecordStore::new(Arc::new(SystemClock::new())));
/// let writes = |parts: &http::request::Parts| (parts.method != Method::GET).then(|| parts.uri.path().to_owned());
/// let handler = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) });
/// let service = FencingLayer::new(records, writes).layer(handler);
/// let put = |token: &str| Request::put("/account/7").header("fencing-token", token).body(()).unwrap();
///
/// assert_eq!(service.clone().oneshot(put("12")).await.unwrap().status(), 200);
/// let late = service.oneshot(put("11")).await.unwrap();
/// assert_eq!((late.status().as_u16(), &late.headers()["fencing-token"]), (412, &"12".parse().unwrap()));
/// # });
/// ```
#[derive(Clone)]
pub struct FencingLayer(Arc<Shared>);

struct Shared {
    records: Arc<dyn RecordStore>,
    resource: Box<Resource>,
    turns: Mutex<HashMap<String, Weak<Turn>>>,
}

impl FencingLayer {
    /// Guards what `resource` names; a request for which it names nothing passes without a token.
    pub fn new(
        records: Arc<dyn RecordStore>,
        resource: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared { records, resource: Box::new(resource), turns: Mutex::default() }))
    }
}

impl fmt::Debug for FencingLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencingLayer").field("records", &self.0.records).finish_non_exhaustive()
    }
}

impl Shared {
    /// The line of requests for `resource`.
    fn turn(&self, resource: &str) -> Arc<Turn> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(resource).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(Turn::new(()));
        turns.insert(resource.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Waits for its turn, then compares and remembers.
    async fn admit(
        self: Arc<Self>,
        resource: String,
        token: FencingToken,
    ) -> Result<OwnedMutexGuard<()>, Refusal> {
        let turn = self.turn(&resource).lock_owned().await;
        let key = format!("fence/{resource}");
        let unknown = |error: mainstay_store::Error| {
            tracing::warn!(resource, %error, "the largest fencing token is not known");
            Refusal::Unknown
        };
        for _ in 0..TRIES {
            let record = self.records.get(&key).await.map_err(unknown)?;
            if !state::judge(token, record.as_ref().map(|r| r.value.as_slice()))? {
                return Ok(turn);
            }
            let value = token.to_string().into_bytes();
            let put = self.records.put_if(&key, record.map(|r| r.version), value, None);
            if let PutIf::Stored(_) = put.await.map_err(unknown)? {
                return Ok(turn);
            }
        }
        Err(Refusal::Unknown)
    }
}

impl<S> Layer<S> for FencingLayer {
    type Service = Fencing<S>;

    fn layer(&self, inner: S) -> Fencing<S> {
        Fencing { inner, shared: Arc::clone(&self.0) }
    }
}

/// Lets requests through whose token is the largest, one after the other for each resource.
#[derive(Clone)]
pub struct Fencing<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> fmt::Debug for Fencing<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fencing").field("records", &self.shared.records).finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for Fencing<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = FencingFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that was polled ready makes the call; the clone is polled before its own.
        let clone = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, clone);
        let (mut parts, body) = request.into_parts();
        let state = match (self.shared.resource)(&parts) {
            None => State::Calling { call: service.call(Request::from_parts(parts, body)), _turn: None },
            Some(resource) => match state::token(&parts.headers) {
                Err(refusal) => State::Refused { refusal },
                Ok(token) => {
                    parts.extensions.insert(token);
                    let admit = Box::pin(Arc::clone(&self.shared).admit(resource, token));
                    State::Admitting { admit, held: Some((service, Request::from_parts(parts, body))) }
                }
            },
        };
        FencingFuture { state }
    }
}

pin_project! {
    /// The future of [`Fencing`].
    ///
    /// # Cancel safety
    /// Dropped before the inner service is called, a larger token may have been remembered and nothing was done; later it
    /// is as the inner service says. The next request for the resource begins in either case.
    pub struct FencingFuture<S, B> where S: Service<Request<B>> {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B> where S: Service<Request<B>> {
        Admitting {
            admit: BoxFuture<'static, Result<OwnedMutexGuard<()>, Refusal>>,
            held: Option<(S, Request<B>)>,
        },
        Calling { #[pin] call: S::Future, _turn: Option<OwnedMutexGuard<()>> },
        Refused { refusal: Refusal },
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for FencingFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencingFuture").finish_non_exhaustive()
    }
}

impl<S, B, R> Future for FencingFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut state = self.as_mut().project().state;
            let next = match state.as_mut().project() {
                StateProj::Calling { call, .. } => return call.poll(cx),
                StateProj::Refused { refusal } => return Poll::Ready(Ok(answer(*refusal))),
                StateProj::Admitting { admit, held } => match ready!(admit.as_mut().poll(cx)) {
                    Err(refusal) => State::Refused { refusal },
                    Ok(turn) => {
                        let (mut service, request) = held.take().expect("invariant: it is admitted once");
                        State::Calling { call: service.call(request), _turn: Some(turn) }
                    }
                },
            };
            state.set(next);
        }
    }
}

fn answer<R: Default>(refusal: Refusal) -> Response<R> {
    let mut response = Response::new(R::default());
    *response.status_mut() = refusal.status();
    if let Some(seen) = refusal.seen() {
        response.headers_mut().insert(HEADER, seen);
    }
    response
}
