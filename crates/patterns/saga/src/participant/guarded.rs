//! Participants behind policies: a breaker, a bulkhead, a rate per participant.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use mainstay_clock::{Deadline, Instant};
use mainstay_resilience::{Attempt, CallContext, CallError, Policy, Verdict};
use mainstay_store::BoxFuture;

use super::{Kind, Participant, Reply, Request};

/// Which policy guards calls of an address; `None`: no policy.
type Choose = Arc<dyn Fn(&str) -> Option<Policy> + Send + Sync>;

/// Calls a participant through the policy of its address.
///
/// What a policy refuses (breaker open, bulkhead full, over a rate) was never sent, and the saga is told so
/// ([`Reply::Withheld`]): no effect, worth repeating, and no attempt used up. What it cuts off by a timeout is
/// unknown. Replies that blame the participant (429, 5xx, nothing at all) count against its breaker; a business no
/// does not.
///
/// Give the policy no retry: the engine's retries are durable, and each is on the log before it is made.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::{Clock, Deadline, Instant, SystemClock};
/// use mainstay_resilience::{Bulkhead, Policy};
/// use mainstay_saga::participant::{Guarded, Participant, Reply, Request};
/// use mainstay_store::BoxFuture;
///
/// #[derive(Debug)]
/// struct Nobody;
/// impl Participant for Nobody {
///     fn call(&self, _: Request, _: Instant) -> BoxFuture<'_, Reply> {
///         Box::pin(async { Reply::Unknown("nobody answers".to_owned()) })
///     }
/// }
///
/// let bulkhead = Bulkhead::builder("payments", 8).build().unwrap();
/// let payments = Policy::builder("payments").bulkhead(&bulkhead).build().unwrap();
/// let choose = move |url: &str| url.starts_with("https://pay.example/").then(|| payments.clone());
/// let guarded: Arc<dyn Participant> = Arc::new(Guarded::new(Arc::new(Nobody), choose));
/// assert!(guarded.check("https://pay.example/charge").is_ok());
/// ```
#[derive(Clone)]
pub struct Guarded {
    inner: Arc<dyn Participant>,
    choose: Choose,
}

impl Guarded {
    /// Guards the calls of `inner`: each by the policy that `choose` gives for its address.
    #[must_use]
    pub fn new(
        inner: Arc<dyn Participant>,
        choose: impl Fn(&str) -> Option<Policy> + Send + Sync + 'static,
    ) -> Self {
        Self { inner, choose: Arc::new(choose) }
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guarded").field("inner", &self.inner).finish_non_exhaustive()
    }
}

/// What a reply says about the participant's health.
fn judge(reply: &Result<Reply, Infallible>) -> Verdict {
    match reply {
        Ok(Reply::Answered(attempt)) => Verdict::of_http(attempt.status, None),
        Ok(Reply::NotSent(_) | Reply::Unknown(_)) => Verdict::RETRYABLE,
        // A policy further in refused it: the participant was not asked.
        Ok(Reply::Withheld { .. }) => Verdict::Ignore,
        Err(never) => match *never {},
    }
}

/// What a saga is told when the policy ended the call.
fn refused(kind: Kind, error: &CallError<Infallible>) -> Reply {
    let why = match error.last() {
        CallError::Rejected(rejected) => rejected.to_string(),
        CallError::Timeout(timeout) => timeout.to_string(),
        _ => "the policy ended the call".to_owned(),
    };
    // A question that was not asked says nothing about the action that it asks after.
    match error.was_started() || kind != Kind::Act {
        true => Reply::Unknown(why),
        false => Reply::Withheld { reason: why, retry_after: error.retry_after() },
    }
}

/// One call through `policy`. Boxed here, where the lifetime has a name: the compiler cannot see otherwise that it
/// is `Send`.
fn through<'a>(
    policy: &'a Policy,
    cx: &'a CallContext,
    inner: &'a dyn Participant,
    request: &'a Request,
    deadline: Instant,
) -> BoxFuture<'a, Result<Reply, CallError<Infallible>>> {
    let call = move |_: Attempt<'_>| -> BoxFuture<'a, Result<Reply, Infallible>> {
        let call = inner.call(request.clone(), deadline);
        Box::pin(async move { Ok(call.await) })
    };
    Box::pin(policy.call_with(cx, judge, call))
}

impl Participant for Guarded {
    fn call(&self, request: Request, deadline: Instant) -> BoxFuture<'_, Reply> {
        let Some(policy) = (self.choose)(&request.url) else { return self.inner.call(request, deadline) };
        Box::pin(async move {
            let cx = CallContext::default().with_deadline(Deadline::at(deadline));
            match through(&policy, &cx, &*self.inner, &request, deadline).await {
                Ok(reply) => reply,
                Err(error) => refused(request.kind, &error),
            }
        })
    }

    fn check(&self, url: &str) -> Result<(), String> {
        self.inner.check(url)
    }
}
