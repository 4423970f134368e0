//! Policies as tower layers.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::poll_fn;
use mainstay_clock::{Runtime, SeededRng, virtual_time::VirtualClock};
use mainstay_resilience::limit::{RateLimiter, Shedder};
use mainstay_resilience::tower::{Adapt, PolicyService};
use mainstay_resilience::{
    Breaker, Budget, Bulkhead, CallContext, Classify, Policy, Priority, Reason, Retry, Verdict,
};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};

use crate::world::{now, poll_once};

#[derive(Debug, PartialEq)]
struct Down;

impl Classify for Down {
    fn verdict(&self) -> Verdict {
        Verdict::RETRYABLE
    }
}

fn runtime() -> Runtime {
    Runtime::on_tokio(Arc::new(VirtualClock::new()), Arc::new(SeededRng::new(1)))
}

/// Fails, and counts how often it was polled for readiness and called.
#[derive(Clone, Default)]
struct Probe {
    ready: Arc<AtomicU32>,
    calls: Arc<AtomicU32>,
    pending: bool,
    /// Readiness reserved by this clone and not used yet.
    reserved: bool,
}

impl Service<u32> for Probe {
    type Response = u32;
    type Error = Down;
    type Future = std::future::Ready<Result<u32, Down>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Down>> {
        self.ready.fetch_add(1, Ordering::SeqCst);
        self.reserved = true;
        if self.pending { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn call(&mut self, request: u32) -> Self::Future {
        assert!(std::mem::take(&mut self.reserved), "called without having been ready");
        let calls = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        std::future::ready(if calls > request { Ok(calls) } else { Err(Down) })
    }
}

/// Writes into each attempt's request what the other side must know.
struct Told;

impl Adapt<(u32, String), String, Down> for Told {
    fn context(request: &(u32, String)) -> CallContext {
        CallContext::new().with_key(format!("order-{}", request.0))
    }

    fn attempt(request: &mut (u32, String), attempt: &mainstay_resilience::Attempt<'_>) {
        let left = attempt.remaining().map(|d| d.as_millis());
        request.1 = format!("{} {:?} {:?} {left:?}", attempt.number(), attempt.key(), attempt.cx().depth());
    }

    fn verdict(result: &Result<String, Down>) -> Verdict {
        result.as_ref().map_or(Verdict::RETRYABLE, |_| Verdict::Ok)
    }
}

#[tokio::test(start_paused = true)]
async fn rt7_each_attempt_writes_its_number_deadline_and_key_into_its_own_request() {
    let retry = Retry::constant(Duration::from_millis(1)).attempts(2).build().unwrap();
    let policy = Policy::builder("p").runtime(&runtime()).idempotent_per_call().retry(retry);
    let policy = policy.attempt_timeout(Duration::from_millis(300)).build().unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let inner = service_fn(move |(_, told): (u32, String)| {
        log.lock().unwrap().push(told.clone());
        std::future::ready(if told.starts_with('1') { Err(Down) } else { Ok(told) })
    });
    let service = policy.layer().adapt::<Told>().layer(inner);
    let answer = service.oneshot((17, String::new())).await.unwrap();
    assert_eq!(answer, "2 Some(\"order-17\") 0 Some(300)");
    assert_eq!(*seen.lock().unwrap(), ["1 Some(\"order-17\") 0 Some(300)", &answer]);
}

#[tokio::test(start_paused = true)]
async fn t18_a_layer_applied_twice_or_per_request_shares_its_state() {
    let breaker = Breaker::builder("x").consecutive(4).runtime(&runtime()).build().unwrap();
    let policy = Policy::builder("p").breaker(&breaker).build().unwrap();
    let probe = Probe::default();
    let mut twice = [policy.layer().layer(probe.clone()), breaker.layer().layer(probe.clone())];
    for service in &mut twice {
        assert_eq!(service.call(99).await.unwrap_err().inner(), Some(&Down));
    }
    // Per request, through a clone of the layer and of the service.
    let layer = policy.layer();
    for _ in 0..2 {
        assert!(layer.clone().layer(probe.clone()).clone().oneshot(99).await.is_err());
    }
    assert_eq!(probe.calls.load(Ordering::SeqCst), 4);
    for service in &mut twice {
        assert_eq!(service.call(0).await.unwrap_err().code(), "open");
    }
    let snapshot = policy.snapshot();
    assert_eq!(snapshot.breaker.unwrap().state.to_string(), "open", "the snapshot shows what is live");
    assert_eq!(probe.calls.load(Ordering::SeqCst), 4);
}

#[tokio::test(start_paused = true)]
async fn if_l04_a_rejection_comes_from_the_call_and_an_open_breaker_polls_nothing() {
    let breaker = Breaker::builder("x").runtime(&runtime()).build().unwrap();
    breaker.force_open("test", None);
    let probe = Probe { pending: true, ..Probe::default() };
    let mut service = breaker.layer().layer(probe.clone());
    let ready = futures_util::poll!(poll_fn(|cx| service.poll_ready(cx)));
    assert!(matches!(ready, Poll::Ready(Ok(()))), "readiness is no refusal");
    let rejected = service.call(0).await.unwrap_err();
    let rejected = rejected.rejected().unwrap();
    assert_eq!((rejected.policy(), rejected.why().code()), ("x", "forced_open"));
    assert_eq!(probe.ready.load(Ordering::SeqCst), 0, "the pending service inside was never polled");
}

#[tokio::test(start_paused = true)]
async fn if_l05_every_attempt_is_ready_before_it_is_called() {
    let policy = Policy::builder("p")
        .runtime(&runtime())
        .idempotent()
        .retry(Retry::standard().attempts(5).build().unwrap())
        .without_budget()
        .build()
        .unwrap();
    let probe = Probe::default();
    let mut service = policy.layer().layer(probe.clone());
    // Ready, then cloned: the clone has no reservation and must not need one.
    assert!(poll_fn(|cx| service.poll_ready(cx)).await.is_ok());
    let mut clone = service.clone();
    assert_eq!(clone.call(3).await.unwrap(), 4);
    assert_eq!(probe.ready.load(Ordering::SeqCst), 4, "polled before each attempt");
    assert_eq!(service.call(0).await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn if_l05_a_service_that_is_never_ready_is_bounded_by_the_attempt_timeout() {
    let policy =
        Policy::builder("p").runtime(&runtime()).attempt_timeout(Duration::from_millis(50)).build().unwrap();
    let mut service = policy.layer().layer(Probe { pending: true, ..Probe::default() });
    assert_eq!(service.call(0).await.unwrap_err().code(), "timeout");
}

#[tokio::test(start_paused = true)]
async fn if_l06_a_clonable_request_is_retried_with_its_content() {
    // The other half of L6, a request that is not `Clone`, is a compile_fail example of the module.
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let inner = service_fn(move |request: String| {
        log.lock().unwrap().push(request);
        async { Err::<(), _>(Down) }
    });
    let policy = Policy::builder("p")
        .runtime(&runtime())
        .idempotent()
        .retry(Retry::standard().build().unwrap())
        .without_budget()
        .build()
        .unwrap();
    let gave_up = policy.layer().layer(inner).oneshot("body".to_owned()).await.unwrap_err();
    assert_eq!(gave_up.attempts(), 3);
    assert_eq!(*seen.lock().unwrap(), ["body", "body", "body"]);
}

#[tokio::test(start_paused = true)]
async fn if_l01_dropping_the_future_at_any_poll_gives_everything_back() {
    let runtime = runtime();
    let bulkhead = Bulkhead::builder("x", 1).runtime(&runtime).build().unwrap();
    let breaker = Breaker::builder("x").runtime(&runtime).build().unwrap();
    let policy = Policy::builder("p")
        .runtime(&runtime)
        .bulkhead(&bulkhead)
        .breaker(&breaker)
        .idempotent()
        .retry(Retry::standard().attempts(4).build().unwrap())
        .without_budget()
        .build()
        .unwrap();
    let inner = service_fn(|()| async {
        tokio::task::yield_now().await;
        Err::<(), _>(Down)
    });
    for polls in 0..12 {
        let mut future = Box::pin(policy.layer().layer(inner).oneshot(()));
        for _ in 0..polls {
            if futures_util::poll!(future.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
            runtime.clock().sleep(Duration::from_millis(60)).await;
        }
        drop(future);
        assert_eq!(bulkhead.snapshot().in_flight, 0, "after {polls} polls");
        breaker.reset("next round");
    }
}

#[tokio::test(start_paused = true)]
async fn if_l09_nested_retries_are_bounded_by_the_shared_budget() {
    struct Nested;
    thread_local! {
        static BUDGET: std::cell::RefCell<Option<Budget>> = const { std::cell::RefCell::new(None) };
    }
    impl Adapt<u32, u32, Down> for Nested {
        fn context(_: &u32) -> CallContext {
            BUDGET.with_borrow(|b| {
                b.as_ref().map_or_else(CallContext::new, |b| CallContext::new().with_budget(b))
            })
        }
        fn verdict(result: &Result<u32, Down>) -> Verdict {
            result.as_ref().map_or(Verdict::RETRYABLE, |_| Verdict::Ok)
        }
    }
    let runtime = runtime();
    let budget = Budget::builder("x").ratio(0.0, 5.0).runtime(&runtime).build().unwrap();
    BUDGET.set(Some(budget));
    let layer = || {
        let retry = Retry::constant(Duration::from_nanos(1)).attempts(3).build().unwrap();
        Policy::builder("p")
            .runtime(&runtime)
            .idempotent()
            .retry(retry)
            .build()
            .unwrap()
            .layer()
            .adapt::<Nested>()
    };
    let probe = Probe::default();
    let mut inner = layer().layer(probe.clone());
    for _ in 0..20 {
        assert!(inner.call(u32::MAX).await.is_err());
    }
    let calls = probe.calls.load(Ordering::SeqCst);
    assert_eq!(calls, 20 + 5, "twenty first attempts and the five of the budget");
}

#[tokio::test(start_paused = true)]
async fn no_send_bound_is_added() {
    let policy = Policy::builder("p").runtime(&runtime()).build().unwrap();
    let local = Rc::new(Cell::new(0));
    let count = Rc::clone(&local);
    let inner = service_fn(move |(): ()| {
        let count = Rc::clone(&count);
        async move {
            count.set(count.get() + 1);
            Ok::<_, Down>(())
        }
    });
    let mut service: PolicyService<_> = policy.layer().layer(inner);
    service.call(()).await.unwrap();
    assert_eq!(local.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn pl3_every_refusal_of_a_layer_names_policy_reason_and_advice() {
    let runtime = runtime();
    let rate = RateLimiter::builder("rate").rate(1, Duration::from_secs(5)).runtime(&runtime);
    let rate = rate.build().unwrap();
    let mut limited = rate.layer().layer(Probe::default());
    assert!(limited.call(0).await.is_ok());
    let error = limited.call(0).await.unwrap_err();
    let rejected = error.rejected().unwrap();
    assert_eq!((rejected.policy(), rejected.why()), ("rate", &Reason::Rate));
    assert!(rejected.retry_after().unwrap() > Duration::from_secs(4));

    let bulkhead = Bulkhead::builder("few", 1).runtime(&runtime).build().unwrap();
    let held = bulkhead.try_acquire().unwrap();
    let error = bulkhead.layer().layer(Probe::default()).oneshot(0).await.unwrap_err();
    let rejected = error.rejected().unwrap();
    assert_eq!((rejected.policy(), rejected.why().code()), ("few", "full"));
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn if_l03_half_open_admits_exactly_its_permits_through_any_number_of_layers() {
    let runtime = runtime();
    let breaker = Breaker::builder("x").classic().runtime(&runtime).build().unwrap();
    let down = breaker.layer().layer(Probe::default());
    for _ in 0..5 {
        assert!(down.clone().oneshot(99).await.is_err());
    }
    runtime.clock().sleep(Duration::from_secs(61)).await;
    let hanging = Probe { pending: true, ..Probe::default() };
    let mut calls: Vec<_> =
        (0..50).map(|_| Box::pin(breaker.layer().layer(hanging.clone()).oneshot(0))).collect();
    let mut admitted = 0;
    for call in &mut calls {
        admitted += usize::from(futures_util::poll!(call.as_mut()).is_pending());
    }
    assert_eq!(admitted, 3, "three permits, fifty layers");
}

/// Tenant and priority of a request: its number says who sends it.
struct Tenants;

impl<T, E> Adapt<u32, T, E> for Tenants {
    fn context(request: &u32) -> CallContext {
        let priority = if *request == 0 { Priority::Low } else { Priority::Critical };
        CallContext::new().with_tenant(format!("tenant {request}")).with_priority(priority)
    }

    fn verdict(result: &Result<T, E>) -> Verdict {
        if result.is_ok() { Verdict::Ok } else { Verdict::RETRYABLE }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_sheds_by_what_its_requests_say() {
    let shedder = Shedder::builder("api").limit(4).runtime(&runtime()).build().unwrap();
    let hang = service_fn(|_: u32| std::future::pending::<Result<(), Down>>());
    let mut server = shedder.layer().adapt::<Tenants>().layer(hang);
    let mut inside: Vec<_> = (0..12).map(|i| Box::pin(server.call(u32::from(i % 2 == 0)))).collect();
    // Eight are taken freely; of four more only those that matter.
    let taken = inside.iter_mut().map(poll_once).filter(Poll::is_pending).count();
    assert_eq!(shedder.load() as usize, taken);
    assert!((10..12).contains(&taken), "{taken}");
    let refused = now(server.call(0)).unwrap_err();
    assert_eq!(refused.rejected().unwrap().why(), &Reason::Shed);
    drop(inside);
    assert_eq!((shedder.load(), shedder.tenants()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn attempts_of_a_layer_have_a_bulkhead_of_their_own() {
    let attempts = Bulkhead::builder("pool", 1).runtime(&runtime()).build().unwrap();
    let policy = Policy::builder("p").runtime(&runtime()).attempt_bulkhead(&attempts).build().unwrap();
    let hang = service_fn(|_: u32| std::future::pending::<Result<(), Down>>());
    let mut service = policy.layer().layer(hang);
    let mut first = Box::pin(service.call(1));
    assert!(poll_once(&mut first).is_pending());
    assert_eq!(now(service.call(2)).unwrap_err().code(), "full");
    drop(first);
    assert_eq!(attempts.snapshot().in_flight, 0);
}
