//! What takes a place in flight, and what does not. Over a socket: a body that comes in is hyper's.

use std::net::SocketAddr;

use axum::routing::get;
use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::*;
use crate::api::tests::until;
use crate::http::{Clients, Sessions, Tokens, bind, serve};

const BODY: usize = 1_024;

/// A gate with one place, before a router with an answer that takes as long as the bench wants.
struct Bench {
    address: SocketAddr,
    gate: Arc<Gate>,
    begun: Arc<Notify>,
    go: Arc<Notify>,
    _dir: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.gate.drain.cancel();
    }
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let rt = Runtime::system();
    let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, goes) = (Arc::clone(&begun), Arc::clone(&go));
    let held = get(move || async move {
        begins.notify_one();
        goes.notified().await;
        "done"
    });
    let router = Router::new()
        .route("/held", held)
        .route("/livez", get(async || "up"))
        .route("/version", get(async || "one"));
    let long = Duration::from_secs(600);
    let limits = Limits {
        allowed_hosts: Vec::new(),
        body: BODY,
        body_timeout: long,
        connections: 100,
        connections_per_ip: 100,
        drain: Duration::ZERO,
        header_timeout: long,
        in_flight: 1,
        request_timeout: long,
        write_timeout: long,
    };
    let tokens = Arc::new(Tokens::of(dir.path()));
    let access = Arc::new(Access::new(tokens, Sessions::new(false).unwrap(), Clients::default()));
    let pages = crate::console::PAGES;
    let gate = Arc::new(Gate::new(
        limits,
        rt.clone(),
        CancellationToken::new(),
        access,
        pages,
        (Arc::default(), router),
    ));
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.address;
    rt.spawn("gate", serve(listener, Arc::clone(&gate), None));
    Bench { address, gate, begun, go, _dir: dir }
}

impl Bench {
    /// Sends a request, or as much of it as is given.
    async fn begin(&self, method: &Method, path: &str, more: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{more}", self.address);
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    }

    async fn get(&self, path: &str, more: &str) -> String {
        answer(self.begin(&Method::GET, path, &format!("{more}\r\n")).await).await
    }
}

async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[track_caller]
fn is(answer: &str, status: u16) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status}: {answer}");
}

/// Whoever sends two bytes of a body and then none held a place until the body's time was over, without saying who they
/// are where a route is open; so many of them held them all.
#[tokio::test]
async fn sec_11_a_body_that_comes_slowly_takes_no_place_in_flight() {
    let bench = bench().await;
    let mut slow = Vec::new();
    for _ in 0..3 {
        slow.push(bench.begin(&Method::POST, "/console/login", "content-length: 10\r\n\r\nab").await);
    }
    until("all of them are being read", async || bench.gate.body_bytes.available_permits() == BODY - 6).await;
    is(&bench.get("/version", "").await, 200);
    // What all bodies hold together is bounded all the same.
    let whole = format!("content-length: {BODY}\r\n\r\n{}", "x".repeat(BODY));
    let refused = answer(bench.begin(&Method::POST, "/console/login", &whole).await).await;
    is(&refused, 503);
    drop(slow);
    until("what they held is free", async || bench.gate.body_bytes.available_permits() == BODY).await;
    is(&answer(bench.begin(&Method::POST, "/nowhere", &whole).await).await, 404);
}

#[tokio::test]
async fn overload_is_refused_with_advice_while_health_answers() {
    let bench = bench().await;
    let held = bench.begin(&Method::GET, "/held", "\r\n").await;
    bench.begun.notified().await;
    let refused = bench.get("/version", "").await;
    is(&refused, 503);
    assert!(refused.contains("MS0113") && refused.contains("retry-after: 1\r\n"), "{refused}");
    is(&bench.get("/livez", "").await, 200);
    assert_eq!(bench.gate.watched.requests.times(), 1, "told once, however many come");
    // Who says `wait` where nothing waits is one of many, by query or by header; where something waits it is let in.
    for path in ["/version?wait=1s", "/v1/sagas?wait=60s", "/v1/definitions/x?bind=connection"] {
        is(&bench.get(path, "").await, 503);
    }
    for prefers in ["prefer: wait=60\r\n", "prefer: respond-async, wait=60\r\n"] {
        is(&bench.get("/v1/attention", prefers).await, 503);
        is(&bench.get("/v1/sagas/nobody", prefers).await, 404);
    }
    bench.go.notify_one();
    is(&answer(held).await, 200);
    until("the place is free again", async || bench.gate.in_flight.available_permits() == 1).await;
    is(&bench.get("/version", "").await, 200);
}
