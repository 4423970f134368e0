//! Policies as layers of `tower` (feature `tower`; only its two trait crates).
//!
//! A [`PolicyLayer`] holds a handle: however often it is applied, per service or per request, the state is one.
//! The futures have names, box nothing and add no `Send` bound.
//!
//! - A refusal comes out of the call's future, never out of `poll_ready`: a readiness error may tear down a
//!   buffer and with it every other caller. `poll_ready` is therefore always ready and never polls the service
//!   inside, so an open breaker does not wait for a service that is not ready.
//! - Every attempt clones the service and polls it to readiness within the attempt: the wait is bounded by the
//!   attempt's timeout and the deadline, and no reservation is held by an idle clone.
//! - The request must be `Clone`: each attempt gets its own. A request that is not fails to compile instead of
//!   being tried silently only once.
//!
//! | wants | takes |
//! |---|---|
//! | one pattern around a client | `breaker.layer()`, `bulkhead.layer()`, the limiters' `layer()` |
//! | several of them | `policy.layer()`: the order is fixed; hand-made stacks are what [`lint::stack`](crate::lint::stack) is for |
//! | deadlines, keys or priorities from requests and written into them, failures from `Ok` responses | [`adapt`](PolicyLayer::adapt) with an [`Adapt`] |
//! | to shed load in a server | [`Shedder::layer`](crate::limit::Shedder::layer) with an `Adapt` that reads tenant and priority |
//!
//! ```
//! use mainstay_resilience::Breaker;
//! use tower::{Service as _, ServiceBuilder, ServiceExt as _, service_fn};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let breaker = Breaker::builder("search").consecutive(1).build().unwrap();
//! let failing = service_fn(|_: u32| async { Err::<u32, _>(std::io::Error::from(std::io::ErrorKind::TimedOut)) });
//! let mut service = ServiceBuilder::new().layer(breaker.layer()).service(failing);
//! assert_eq!(service.ready().await.unwrap().call(1).await.unwrap_err().code(), "inner");
//! assert_eq!(service.ready().await.unwrap().call(2).await.unwrap_err().code(), "open");
//! # });
//! ```
//!
//! ```compile_fail
//! use mainstay_resilience::Policy;
//! use tower::{Layer as _, Service as _, service_fn};
//!
//! struct NotClone;
//! let inner = service_fn(|_: NotClone| async { Ok::<_, std::io::Error>(()) });
//! let mut service = Policy::builder("p").build().unwrap().layer().layer(inner);
//! let _ = service.call(NotClone);
//! ```

mod future;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use future::Calls;
pub use future::PolicyFuture;

use crate::limit::{AdaptiveLimiter, ClientThrottle, RateLimiter, Shedder};
use crate::policy::LimitSlot;
use crate::{Attempt, Breaker, Bulkhead, CallContext, CallError, Classify, Policy, Verdict};

/// What a layer has to know about requests and results. Implement it on a marker type for what needs more than
/// [`ByTrait`]: a deadline from a header, or responses that are failures.
///
/// ```
/// use mainstay_resilience::{CallContext, Policy, Verdict, tower::Adapt};
///
/// #[derive(Clone, Copy)]
/// struct Status;
///
/// impl<E> Adapt<u32, u16, E> for Status {
///     fn context(_request: &u32) -> CallContext {
///         CallContext::new().idempotent()
///     }
///     fn verdict(result: &Result<u16, E>) -> Verdict {
///         result.as_ref().map_or(Verdict::RETRYABLE, |status| Verdict::of_http(*status, None))
///     }
/// }
/// let layer = Policy::builder("p").build().unwrap().layer().adapt::<Status>();
/// assert_eq!(layer.policy().name(), "p");
/// assert_eq!(<Status as Adapt<u32, u16, ()>>::verdict(&Ok(503)), Verdict::RETRYABLE);
/// ```
pub trait Adapt<Request, Response, Error> {
    /// The context of a call: its deadline, priority, idempotency key.
    fn context(request: &Request) -> CallContext {
        let _ = request;
        CallContext::new()
    }

    /// Prepares the clone of the request that one attempt sends: writes into it what the other side must know. Called
    /// before each attempt, hedges included.
    ///
    /// ```
    /// use mainstay_resilience::timeout::wire;
    /// use mainstay_resilience::{Attempt, CallContext, Verdict, tower::Adapt};
    ///
    /// #[derive(Clone)]
    /// struct Request { path: String, headers: Vec<(&'static str, String)> }
    ///
    /// struct Http;
    ///
    /// impl Adapt<Request, u16, std::io::Error> for Http {
    ///     fn context(request: &Request) -> CallContext {
    ///         CallContext::new().with_key(request.path.clone())
    ///     }
    ///     fn attempt(request: &mut Request, attempt: &Attempt<'_>) {
    ///         request.headers.extend(wire::headers(attempt)); // time left, attempt number, idempotency key
    ///     }
    ///     fn verdict(result: &Result<u16, std::io::Error>) -> Verdict {
    ///         result.as_ref().map_or(Verdict::RETRYABLE, |status| Verdict::of_http(*status, None))
    ///     }
    /// }
    /// ```
    fn attempt(request: &mut Request, attempt: &Attempt<'_>) {
        let _ = (request, attempt);
    }

    /// What a result means.
    fn verdict(result: &Result<Response, Error>) -> Verdict;
}

/// No context; errors say themselves what they mean ([`Classify`]).
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct ByTrait;

impl<Request, Response, Error: Classify> Adapt<Request, Response, Error> for ByTrait {
    fn verdict(result: &Result<Response, Error>) -> Verdict {
        crate::outcome::by_trait(result)
    }
}

/// Puts a policy around services. Clones, and everything they are applied to, share the policy's state.
pub struct PolicyLayer<A = ByTrait> {
    policy: Policy,
    adapt: PhantomData<fn() -> A>,
}

/// A service under a policy.
///
/// Its error is [`CallError`] around the inner service's own.
pub struct PolicyService<S, A = ByTrait> {
    inner: S,
    policy: Policy,
    adapt: PhantomData<fn() -> A>,
}

impl<A> PolicyLayer<A> {
    fn new(policy: Policy) -> Self {
        Self { policy, adapt: PhantomData }
    }

    /// The same layer with another reading of requests and results.
    #[must_use]
    pub fn adapt<B>(self) -> PolicyLayer<B> {
        PolicyLayer::new(self.policy)
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl<S, A> Layer<S> for PolicyLayer<A> {
    type Service = PolicyService<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        PolicyService { inner, policy: self.policy.clone(), adapt: PhantomData }
    }
}

impl<S, A, Request> Service<Request> for PolicyService<S, A>
where
    S: Service<Request> + Clone,
    A: Adapt<Request, S::Response, S::Error>,
    Request: Clone,
{
    type Response = S::Response;
    type Error = CallError<S::Error>;
    type Future = PolicyFuture<S, Request>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let cx = A::context(&request);
        let calls = Calls { classify: A::verdict, prepare: A::attempt };
        PolicyFuture::new(Arc::clone(self.policy.core()), cx, self.inner.clone(), request, calls)
    }
}

impl<A> Clone for PolicyLayer<A> {
    fn clone(&self) -> Self {
        Self::new(self.policy.clone())
    }
}

impl<S: Clone, A> Clone for PolicyService<S, A> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), policy: self.policy.clone(), adapt: PhantomData }
    }
}

impl<A> fmt::Debug for PolicyLayer<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyLayer").field("policy", &self.policy).finish()
    }
}

impl<S, A> fmt::Debug for PolicyService<S, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyService").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Policy {
    /// This policy as a layer (feature `tower`).
    #[must_use]
    pub fn layer(&self) -> PolicyLayer {
        PolicyLayer::new(self.clone())
    }
}

/// A policy with one slot. There is no setting in it that could be refused.
fn single(builder: crate::policy::PolicyBuilder) -> PolicyLayer {
    PolicyLayer::new(builder.build().expect("invariant: a single slot has no setting to refuse"))
}

impl Breaker {
    /// A layer with only this breaker (feature `tower`).
    #[must_use]
    pub fn layer(&self) -> PolicyLayer {
        single(Policy::builder(self.name()).breaker(self))
    }
}

impl Bulkhead {
    /// A layer with only this bulkhead (feature `tower`).
    #[must_use]
    pub fn layer(&self) -> PolicyLayer {
        single(Policy::builder(self.name()).bulkhead(self))
    }
}

impl RateLimiter {
    /// A layer with only this rate limit (feature `tower`).
    #[must_use]
    pub fn layer(&self) -> PolicyLayer {
        single(Policy::builder(self.name()).limit(LimitSlot::Rate, Arc::new(self.clone())))
    }
}

impl AdaptiveLimiter {
    /// A layer with only this concurrency limit (feature `tower`).
    #[must_use]
    pub fn layer(&self) -> PolicyLayer {
        single(Policy::builder(self.name()).limit(LimitSlot::Adaptive, Arc::new(self.clone())))
    }
}

impl ClientThrottle {
    /// A layer with only this throttle (feature `tower`).
    #[must_use]
    pub fn layer(&self) -> PolicyLayer {
        single(Policy::builder(self.name()).limit(LimitSlot::Throttle, Arc::new(self.clone())))
    }
}

impl Shedder {
    /// A layer with only this shedder (feature `tower`), for a server. Priority and tenant come from the request by
    /// [`adapt`](PolicyLayer::adapt): without it all calls are alike.
    #[must_use]
    pub fn layer(&self) -> PolicyLayer {
        single(Policy::builder(self.name()).limit(LimitSlot::Adaptive, Arc::new(self.clone())))
    }
}
