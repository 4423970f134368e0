//! Servers, stores and waiting.

use std::future::Future;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use futures_util::{FutureExt as _, StreamExt as _};
use mainstay_chaos::proxy::TcpProxy;
use mainstay_clock::{Clock as _, Deadline, Runtime, SystemClock};
use mainstay_coordination::Coordinator;
use mainstay_nats::{Builder, NatsConfig, NatsLeases};
use mainstay_sim::servers::{Nats, NatsKit};
use mainstay_store::lease::{AcquireRequest, Acquired, Grant};
use mainstay_store::{FencingToken, LeaseStore};
use serde_json::{Value, json};

/// Long enough for a machine that builds beside.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// No test takes as long on a machine that builds beside.
const LIMIT: Duration = Duration::from_secs(400);
/// Longest wait for one answer where answers come.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);
/// A third of it is a renewal that is waited for, and the rest is for a machine that stands still.
pub(crate) const RENEWED: Duration = Duration::from_secs(9);

/// A server of its own. It dies with the thread that starts it: a trial's.
pub(crate) fn nats() -> Nats {
    NatsKit::new().unwrap().server("").unwrap()
}

pub(crate) fn config(url: &str) -> Builder {
    NatsConfig::builder(url).request_timeout(ANSWER)
}

pub(crate) async fn open(builder: Builder) -> NatsLeases {
    NatsLeases::open(builder.build().unwrap(), &Runtime::system()).await.unwrap()
}

pub(crate) async fn store(server: &Nats) -> NatsLeases {
    open(config(&server.url())).await
}

/// A store of servers that have just come back, or whose requests end early: only several tries may open it.
pub(crate) async fn opened(builder: Builder) -> NatsLeases {
    let config = builder.build().unwrap();
    let store = std::cell::RefCell::new(None);
    until("the store is open", async || {
        let tried = NatsLeases::open(config.clone(), &Runtime::system()).await.ok();
        *store.borrow_mut() = tried;
        store.borrow().is_some()
    })
    .await;
    store.into_inner().unwrap()
}

/// A store with settings of its own on a bucket of its own.
pub(crate) async fn bucket(server: &Nats, name: &str, set: impl FnOnce(Builder) -> Builder) -> NatsLeases {
    open(set(config(&server.url()).bucket(name))).await
}

pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(in_time(test));
}

/// The same where servers that the test starts, and waits for, need what it runs beside.
pub(crate) fn run_beside<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(in_time(test));
}

/// A test that hangs fails.
async fn in_time<F: Future<Output = ()>>(test: F) {
    tokio::select! {
        biased;
        () = test => {}
        () = pause(LIMIT) => panic!("not over after {LIMIT:?}"),
    }
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

/// A client of other make.
pub(crate) async fn other(server: &Nats) -> Client {
    async_nats::connect(server.url()).await.unwrap()
}

/// What a management request of another client is answered.
pub(crate) async fn api(client: &Client, what: &str, body: Value) -> Value {
    let reply = client.request(format!("$JS.API.{what}"), body.to_string().into()).await.unwrap();
    serde_json::from_slice(&reply.payload).unwrap()
}

/// The last message of a key: its sequence, its headers as text, its value.
pub(crate) async fn last(client: &Client, name: &str) -> Option<(u64, String, String)> {
    use base64::Engine as _;
    let body = json!({ "last_by_subj": format!("$KV.mainstay_leases.{name}") });
    let reply = api(client, "STREAM.MSG.GET.KV_mainstay_leases", body).await;
    let text = |part: &str| {
        let coded = reply["message"][part].as_str().unwrap_or_default();
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(coded).unwrap()).unwrap()
    };
    Some((reply["message"]["seq"].as_u64()?, text("hdrs"), text("data")))
}

/// How many messages the bucket ever got.
pub(crate) async fn written(client: &Client) -> u64 {
    let reply = api(client, "STREAM.INFO.KV_mainstay_leases", json!({})).await;
    reply["state"]["last_seq"].as_u64().unwrap()
}

/// Publishes as another client does, conditional on a sequence; the number of the error, or 0.
pub(crate) async fn publish(client: &Client, name: &str, expected: u64, value: &str) -> u64 {
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
    let subject = format!("$KV.mainstay_leases.{name}");
    let reply = client.request_with_headers(subject, headers, value.to_owned().into()).await.unwrap();
    let reply: Value = serde_json::from_slice(&reply.payload).unwrap();
    reply["error"]["err_code"].as_u64().unwrap_or(0)
}

/// Hears every write of a bucket and every question about one.
pub(crate) struct Spy(Client, Vec<Subscriber>);

impl Spy {
    pub(crate) async fn on(server: &Nats) -> Self {
        let client = other(server).await;
        let mut ears = Vec::new();
        for subject in ["$KV.>", "$JS.API.STREAM.MSG.GET.>"] {
            ears.push(client.subscribe(subject).await.unwrap());
        }
        client.flush().await.unwrap();
        Self(client, ears)
    }

    /// How many since the last look.
    pub(crate) async fn count(&mut self) -> usize {
        // What the server had before this question is here after its answer.
        let _ = api(&self.0, "INFO", json!({})).await;
        let mut count = 0;
        for ear in &mut self.1 {
            while let Some(Some(_)) = ear.next().now_or_never() {
                count += 1;
            }
        }
        count
    }
}

/// A store behind a proxy.
pub(crate) async fn proxied(server: &Nats, timeout: Duration) -> (TcpProxy, NatsLeases) {
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(server.address()));
    let store = opened(config(&format!("nats://{}", proxy.address())).request_timeout(timeout)).await;
    (proxy, store)
}

/// Polls `future` at most `polls` times, as often as it is woken, and drops it then. True when it had ended.
pub(crate) async fn dropped_after<F: Future + Unpin>(mut future: F, polls: usize) -> bool {
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        left -= 1;
        let ended = std::pin::Pin::new(&mut future).poll(cx).is_ready();
        if ended || left == 0 { std::task::Poll::Ready(ended) } else { std::task::Poll::Pending }
    })
    .await
}
