//! The middleware: bounds, signature, call.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body::Body;
use mainstay_clock::Clock;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::answer::refuse;
use super::call::Call;
use crate::definition::MAX_PAYLOAD;
use crate::signature::{Secret, TOLERANCE, verify};
use crate::{Error, ErrorKind};

/// Largest body: an undo carries an input and an output at their longest, and a few words around them.
const MAX_BODY: usize = 2 * MAX_PAYLOAD + 1_024;

/// Makes [`Inbound`] services. Clones share their secrets.
#[derive(Clone, Debug)]
pub struct InboundLayer {
    check: Option<Arc<Check>>,
}

struct Check {
    secrets: Vec<Secret>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Check").field("secrets", &self.secrets.len()).finish_non_exhaustive()
    }
}

impl InboundLayer {
    /// Takes only requests that are signed with one of `secrets`, and signed within five minutes of this clock.
    ///
    /// # Errors
    /// `Config` without a secret.
    pub fn signed(secrets: impl IntoIterator<Item = Secret>, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let secrets: Vec<Secret> = secrets.into_iter().collect();
        if secrets.is_empty() {
            return Err(Error::new(ErrorKind::Config, "signed requests need at least one secret"));
        }
        Ok(Self { check: Some(Arc::new(Check { secrets, clock })) })
    }

    /// Takes requests of anybody: for a participant that only its engine can reach.
    #[must_use]
    pub fn unsigned() -> Self {
        Self { check: None }
    }
}

impl<S> Layer<S> for InboundLayer {
    type Service = Inbound<S>;

    fn layer(&self, inner: S) -> Inbound<S> {
        Inbound { inner, check: self.check.clone() }
    }
}

/// Reads and checks requests of saga engines; the inner service finds a [`Call`] among the extensions, and the
/// whole body.
///
/// Answers by itself: 400 for what is no call, 401 for a signature that does not fit, 413 for a body over 513 KiB.
/// How slowly a body may come is the server's affair.
#[derive(Clone, Debug)]
pub struct Inbound<S> {
    inner: S,
    check: Option<Arc<Check>>,
}

impl<S, B, R> Service<Request<B>> for Inbound<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    B: Body + From<Bytes>,
    R: From<Bytes>,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = InboundFuture<S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        // The one that was polled ready makes the call; the clone is polled before its own.
        let clone = self.inner.clone();
        let service = std::mem::replace(&mut self.inner, clone);
        let (parts, body) = request.into_parts();
        let head = Head { parts, check: self.check.clone(), service };
        InboundFuture { state: State::Reading { body, read: BytesMut::new(), head: Some(head) } }
    }
}

struct Head<S> {
    parts: Parts,
    check: Option<Arc<Check>>,
    service: S,
}

pin_project! {
    /// The future of [`Inbound`].
    ///
    /// # Cancel safety
    /// Dropped before the inner service is called nothing was done; later it is as the inner service says.
    pub struct InboundFuture<S, B> where S: Service<Request<B>> {
        #[pin]
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B> where S: Service<Request<B>> {
        Reading { #[pin] body: B, read: BytesMut, head: Option<Head<S>> },
        Calling { #[pin] call: S::Future },
    }
}

impl<S: Service<Request<B>>, B> fmt::Debug for InboundFuture<S, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InboundFuture").finish_non_exhaustive()
    }
}

impl<S, B, R> Future for InboundFuture<S, B>
where
    S: Service<Request<B>, Response = Response<R>>,
    B: Body + From<Bytes>,
    R: From<Bytes>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut state = self.as_mut().project().state;
            let call = match state.as_mut().project() {
                StateProj::Calling { call } => return call.poll(cx),
                StateProj::Reading { body, read, head } => {
                    let whole = match ready!(collect(body, read, cx)) {
                        Ok(whole) => whole,
                        Err(refusal) => return Poll::Ready(Ok(refusal.map(R::from))),
                    };
                    let head = head.take().expect("invariant: a body is read to its end once");
                    match admit(head, whole) {
                        Admitted::Call(mut service, request) => service.call(request),
                        Admitted::Refused(refusal) => return Poll::Ready(Ok(refusal.map(R::from))),
                    }
                }
            };
            state.set(State::Calling { call });
        }
    }
}

/// The whole body, or the answer to one that is too long or breaks off.
fn collect<B: Body>(
    mut body: Pin<&mut B>,
    read: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<Result<Bytes, Response<Bytes>>> {
    while let Some(frame) = ready!(body.as_mut().poll_frame(cx)) {
        let Ok(frame) = frame else {
            return Poll::Ready(Err(refuse(StatusCode::BAD_REQUEST, "the body broke off", false)));
        };
        // Trailers say nothing here.
        let Ok(mut data) = frame.into_data() else { continue };
        if read.len() + data.remaining() > MAX_BODY {
            let why = format!("the body has more than {MAX_BODY} bytes");
            return Poll::Ready(Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, &why, false)));
        }
        while data.has_remaining() {
            let chunk = data.chunk();
            let n = chunk.len();
            read.extend_from_slice(chunk);
            data.advance(n);
        }
    }
    Poll::Ready(Ok(std::mem::take(read).freeze()))
}

/// A ready service with its request, or the answer without it.
enum Admitted<S, B> {
    Call(S, Request<B>),
    Refused(Response<Bytes>),
}

/// The request for the inner service, or why it gets none.
fn admit<S, B: From<Bytes>>(head: Head<S>, body: Bytes) -> Admitted<S, B> {
    let Head { mut parts, check, service } = head;
    let refused = |status, why: &str| Admitted::Refused(refuse(status, why, false));
    if let Some(check) = check
        && let Err(why) = verify(&check.secrets, &parts.headers, &body, check.clock.wall(), TOLERANCE)
    {
        return refused(StatusCode::UNAUTHORIZED, &why.to_string());
    }
    let call = match Call::read(&parts.headers, &body) {
        Ok(call) => call,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why.to_string()),
    };
    // The signature covers `webhook-id`; everything here is read from the idempotency key.
    let id = parts.headers.get("webhook-id").and_then(|v| v.to_str().ok());
    if id.is_some_and(|id| id != call.idempotency_key) {
        return refused(StatusCode::UNAUTHORIZED, "`webhook-id` is not the idempotency key");
    }
    parts.extensions.insert(call);
    Admitted::Call(service, Request::from_parts(parts, B::from(body)))
}
