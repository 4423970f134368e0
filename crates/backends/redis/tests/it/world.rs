//! Servers, stores and waiting.

use std::future::Future;
use std::time::Duration;

use mainstay_clock::{Clock as _, Deadline, Runtime, SystemClock};
use mainstay_coordination::Coordinator;
use mainstay_redis::RedisLeases;
use mainstay_sim::servers::{Launch, Server, find};
use mainstay_store::lease::{AcquireRequest, Acquired, Grant};
use mainstay_store::{FencingToken, LeaseStore};
use redis::aio::MultiplexedConnection;

/// Long enough for a machine that builds beside.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// No test takes as long on a machine that builds beside.
const LIMIT: Duration = Duration::from_secs(180);
/// Longest wait for one answer where answers come.
pub(crate) const ANSWER: Duration = Duration::from_secs(20);

/// A server of its own. It dies with the thread that starts it: a trial's.
pub(crate) fn redis(more: &[&str]) -> Server {
    let program = find("redis-server").unwrap();
    Server::start(&program, |setup| {
        let (ip, port) = (setup.address.ip().to_string(), setup.address.port().to_string());
        Launch::new().args(["--bind", &ip, "--port", &port, "--save", "", "--daemonize", "no"]).args(more)
    })
    .unwrap()
}

pub(crate) fn url(server: &Server) -> String {
    format!("redis://{}/", server.address())
}

pub(crate) fn store(server: &Server) -> RedisLeases {
    store_within(server, ANSWER)
}

pub(crate) fn store_within(server: &Server, limit: Duration) -> RedisLeases {
    RedisLeases::builder(&url(server)).request_timeout(limit).build(&Runtime::system()).unwrap()
}

/// A client of other make.
pub(crate) async fn other(server: &Server) -> MultiplexedConnection {
    redis::Client::open(url(server)).unwrap().get_multiplexed_async_connection().await.unwrap()
}

pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(in_time(test));
}

/// A test that hangs fails.
pub(crate) async fn in_time<F: Future<Output = ()>>(test: F) {
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
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let clock = SystemClock::new();
    let end = soon();
    while !done().await {
        assert!(!end.is_over(&clock), "never: {what}");
        clock.sleep(ms(5)).await;
    }
}

/// The text of a command run by `redis-cli`.
pub(crate) fn cli(server: &Server, words: &[&str]) -> String {
    let (ip, port) = (server.address().ip().to_string(), server.address().port().to_string());
    let program = find("redis-cli").unwrap();
    let out =
        std::process::Command::new(program).args(["-h", &ip, "-p", &port]).args(words).output().unwrap();
    String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
}

/// How many scripts the server ran.
pub(crate) async fn scripts_run(connection: &mut MultiplexedConnection) -> u64 {
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(connection).await.unwrap();
    let calls = |name: &str| -> u64 {
        let line = info.lines().find_map(|l| l.strip_prefix(&format!("cmdstat_{name}:calls=")));
        line.and_then(|l| l.split(',').next()?.parse().ok()).unwrap_or(0)
    };
    calls("evalsha") + calls("eval")
}

pub(crate) async fn exists(connection: &mut MultiplexedConnection, key: &str) -> bool {
    redis::cmd("EXISTS").arg(key).query_async(connection).await.unwrap()
}

pub(crate) async fn text(connection: &mut MultiplexedConnection, words: &[&str]) -> String {
    let mut cmd = redis::cmd(words[0]);
    let value: Option<String> = cmd.arg(&words[1..]).query_async(connection).await.unwrap();
    value.unwrap_or_default()
}

pub(crate) async fn number(connection: &mut MultiplexedConnection, words: &[&str]) -> i64 {
    let mut cmd = redis::cmd(words[0]);
    cmd.arg(&words[1..]).query_async(connection).await.unwrap()
}

pub(crate) async fn pause(d: Duration) {
    SystemClock::new().sleep(d).await;
}
