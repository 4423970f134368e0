//! The futures of a service under a policy, by name.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tower_service::Service;

use crate::policy::{Core, Head, Operation, Run};
use crate::{Attempt, CallContext, CallError, Verdict};

type Classifier<S, Request> =
    fn(&Result<<S as Service<Request>>::Response, <S as Service<Request>>::Error>) -> Verdict;

type Prepare<Request> = fn(&mut Request, &Attempt<'_>);

/// What a layer was told about requests and results.
pub(super) struct Calls<S: Service<Request>, Request> {
    pub(super) classify: Classifier<S, Request>,
    pub(super) prepare: Prepare<Request>,
}

type Guarded<S, Request> = Run<
    Arc<Core>,
    Owned,
    Attempts<S, Request>,
    Classifier<S, Request>,
    Once<S, Request>,
    <S as Service<Request>>::Response,
    <S as Service<Request>>::Error,
>;

pin_project_lite::pin_project! {
    /// The future of [`PolicyService`](super::PolicyService): the whole call, all attempts included.
    ///
    /// # Cancel safety
    /// Dropping it gives back permits, passes and tickets, as dropping [`Policy::call`](crate::Policy::call)
    /// does.
    #[must_use = "futures do nothing unless polled"]
    pub struct PolicyFuture<S, Request>
    where
        S: Service<Request>,
        S: Clone,
        Request: Clone,
    {
        #[pin]
        run: Guarded<S, Request>,
    }
}

impl<S, Request> PolicyFuture<S, Request>
where
    S: Service<Request> + Clone,
    Request: Clone,
{
    pub(super) fn new(
        core: Arc<Core>,
        cx: CallContext,
        service: S,
        request: Request,
        calls: Calls<S, Request>,
    ) -> Self {
        let attempts = Attempts { service, request, prepare: calls.prepare };
        Self { run: Run::new(core, Owned(cx), attempts, calls.classify) }
    }
}

impl<S, Request> Future for PolicyFuture<S, Request>
where
    S: Service<Request> + Clone,
    Request: Clone,
{
    type Output = Result<S::Response, CallError<S::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().run.poll(cx)
    }
}

impl<S, Request> fmt::Debug for PolicyFuture<S, Request>
where
    S: Service<Request> + Clone,
    Request: Clone,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyFuture").finish_non_exhaustive()
    }
}

/// A context that the future owns.
struct Owned(CallContext);

impl Deref for Owned {
    type Target = CallContext;

    fn deref(&self) -> &CallContext {
        &self.0
    }
}

/// Starts attempts on clones of the service, with clones of the request.
struct Attempts<S, Request> {
    service: S,
    request: Request,
    prepare: Prepare<Request>,
}

impl<S, Request> Operation for Attempts<S, Request>
where
    S: Service<Request> + Clone,
    Request: Clone,
{
    type Value = S::Response;
    type Error = S::Error;
    type Future = Once<S, Request>;

    fn start(&mut self, head: Head, core: &Core, cx: &CallContext) -> Self::Future {
        let mut request = self.request.clone();
        (self.prepare)(&mut request, &Attempt { head, core, cx });
        Once::Waits { pending: Some((self.service.clone(), request)) }
    }
}

pin_project_lite::pin_project! {
    /// One attempt: waits until its own clone of the service is ready, then calls it.
    #[project = OnceProj]
    enum Once<S, Request>
    where
        S: Service<Request>,
    {
        Waits { pending: Option<(S, Request)> },
        Runs {
            // The clone lives as long as its call: some services do their work in it.
            service: S,
            #[pin]
            future: S::Future,
        },
    }
}

impl<S, Request> Future for Once<S, Request>
where
    S: Service<Request>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            match self.as_mut().project() {
                OnceProj::Runs { future, .. } => return future.poll(cx),
                OnceProj::Waits { pending } => {
                    let Some((service, _)) = pending else { return Poll::Pending };
                    ready!(service.poll_ready(cx))?;
                    let Some((mut service, request)) = pending.take() else { return Poll::Pending };
                    let future = service.call(request);
                    self.set(Once::Runs { service, future });
                }
            }
        }
    }
}
