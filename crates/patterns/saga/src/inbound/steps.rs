//! A service that runs the steps of a participant.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use mainstay_store::BoxFuture;
use mainstay_store::barrier::Performed;
use tower_service::Service;

use super::answer::{answer, refuse};
use super::call::Call;

/// Why a transaction failed: it is rolled back, logged, and answered with 503, so that the engine repeats.
pub type ExecuteError = Box<dyn std::error::Error + Send + Sync>;

/// Runs one call in one transaction of the participant's database.
pub trait Executor: Send + Sync + fmt::Debug {
    /// Begins a transaction, calls [`perform`](mainstay_store::barrier::perform) with the barrier's rows on it,
    /// commits or rolls back as [`Performed::commits`] says, and only then returns.
    ///
    /// # Errors
    /// When the transaction failed; nothing of it may remain.
    ///
    /// # Cancel safety
    /// A dropped future leaves it open whether the transaction was committed. The engine takes that as unknown
    /// and repeats with the same key.
    fn execute(&self, call: Call) -> BoxFuture<'_, Result<Performed, ExecuteError>>;
}

/// Answers calls by an [`Executor`]. It stands behind an [`InboundLayer`](super::InboundLayer), without which it
/// answers 500.
#[derive(Clone, Debug)]
pub struct Steps {
    executor: Arc<dyn Executor>,
}

impl Steps {
    /// The steps that `executor` knows.
    #[must_use]
    pub fn new(executor: Arc<dyn Executor>) -> Self {
        Self { executor }
    }
}

impl<B> Service<Request<B>> for Steps {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = StepsFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> StepsFuture {
        let call = request.extensions_mut().remove::<Call>();
        let posted = request.method() == Method::POST;
        let executor = Arc::clone(&self.executor);
        StepsFuture(Box::pin(async move {
            match call {
                None => refuse(StatusCode::INTERNAL_SERVER_ERROR, "no inbound layer stands in front", false),
                Some(_) if !posted => refuse(StatusCode::METHOD_NOT_ALLOWED, "a step is posted", false),
                Some(call) => run(&*executor, call).await,
            }
        }))
    }
}

async fn run(executor: &dyn Executor, call: Call) -> Response<Bytes> {
    let (saga, step) = (call.saga.clone(), call.step.clone());
    match executor.execute(call).await {
        Ok(performed) => answer(performed),
        Err(error) => {
            // The text may carry SQL or paths: it is for the log.
            tracing::error!(target: "mainstay::saga", saga, step, error = %error, "a step's transaction failed");
            let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, "the transaction failed", false);
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
            response
        }
    }
}

/// The future of [`Steps`].
pub struct StepsFuture(BoxFuture<'static, Response<Bytes>>);

impl fmt::Debug for StepsFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepsFuture").finish_non_exhaustive()
    }
}

impl Future for StepsFuture {
    type Output = Result<Response<Full<Bytes>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(|response| Ok(response.map(Full::new)))
    }
}
