//! Servers, stores and waiting.

use std::future::Future;
use std::time::Duration;

use mainstay_clock::{Clock as _, Deadline, Runtime, SystemClock};
use mainstay_coordination::Coordinator;
use mainstay_nats::{Builder, NatsConfig, NatsLeases};
use mainstay_sim::servers::{Nats, NatsKit};
use mainstay_store::lease::{AcquireRequest, Acquired, Grant};
use mainstay_store::{FencingToken, LeaseStore};

/// Long enough for a machine that builds beside.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server of its own. It dies with the thread that starts it: a trial's.
pub(crate) fn nats() -> Nats {
    NatsKit::new().unwrap().server("").unwrap()
}

pub(crate) fn config(url: &str) -> Builder {
    NatsConfig::builder(url)
}

pub(crate) async fn open(builder: Builder) -> NatsLeases {
    NatsLeases::open(builder.build().unwrap(), &Runtime::system()).await.unwrap()
}

pub(crate) async fn store(server: &Nats) -> NatsLeases {
    open(config(&server.url())).await
}

/// A store with settings of its own on a bucket of its own.
pub(crate) async fn bucket(server: &Nats, name: &str, set: impl FnOnce(Builder) -> Builder) -> NatsLeases {
    open(set(config(&server.url()).bucket(name))).await
}

pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn soon() -> Deadline {
    Deadline::after(SystemClock::new().now(), PATIENCE)
}

pub(crate) fn ask(name: &str, op: &str, ttl: Duration) -> AcquireRequest {
    AcquireRequest::exclusive(name, op, op, ttl)
}

/// The grant of one name, if it is granted.
pub(crate) async fn try_take(store: &dyn LeaseStore, name: &str, op: &str, ttl: Duration) -> Option<Grant> {
    match store.acquire(ask(name, op, ttl)).await.unwrap() {
        Acquired::Granted(mut grants) => grants.pop(),
        _ => None,
    }
}

pub(crate) async fn take(store: &dyn LeaseStore, name: &str, op: &str, ttl: Duration) -> FencingToken {
    try_take(store, name, op, ttl).await.unwrap().token
}

pub(crate) fn coordinator(store: impl LeaseStore + 'static, owner: &str) -> Coordinator {
    let store = std::sync::Arc::new(store);
    Coordinator::builder(store, Runtime::system()).namespace("test").owner(owner).build().unwrap()
}

/// Waits until `done` says so, for at most [`PATIENCE`].
pub(crate) async fn until(what: &str, done: impl AsyncFn() -> bool) {
    let clock = SystemClock::new();
    let end = soon();
    while !done().await {
        assert!(!end.is_over(&clock), "never: {what}");
        clock.sleep(ms(5)).await;
    }
}

pub(crate) async fn pause(d: Duration) {
    SystemClock::new().sleep(d).await;
}
