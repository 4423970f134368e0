//! A real HTTP client (reqwest) under policies from a TOML file, against a local server that fails now and then: once by
//! calling the policy, once as a tower service.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mainstay::clock::{Runtime, SystemClock};
use mainstay::resilience::config::Policies;
use mainstay::resilience::retry::retry_after;
use mainstay::resilience::timeout::wire;
use mainstay::resilience::tower::Adapt;
use mainstay::resilience::{CallContext, CallError, Policy, Verdict};
use tower::{Layer as _, ServiceExt as _};

const POLICIES: &str = r#"
[defaults]
deadline = "60s"
attempt_timeout = "20s"
idempotent = "per_call"
retry = { attempts = 3, base = "10ms", cap = "100ms" }
breaker = { window = "10s", failure_rate = 0.5, min_calls = 20 }

[targets.shop.breaker]
consecutive = 5
open_for = "1min"
"#;

/// Fails every first attempt of a key with 503, and everything once it is told to be down.
#[derive(Default)]
struct Shop {
    requests: AtomicU32,
    with_deadline: AtomicU32,
    down: std::sync::atomic::AtomicBool,
}

impl Shop {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        let headers = request.headers();
        let timed = headers.contains_key(wire::TIMEOUT_MS) && headers.contains_key(wire::IDEMPOTENCY_KEY);
        self.with_deadline.fetch_add(u32::from(timed), Ordering::Relaxed);
        let failing = self.down.load(Ordering::Relaxed) || number.is_multiple_of(2);
        let mut response = Response::new(Full::from(format!("answer {number}")));
        if failing {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(response)
    }
}

async fn serve(shop: Arc<Shop>, runtime: &Runtime) -> anyhow::Result<SocketAddr> {
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let tasks = runtime.clone();
    runtime.spawn("accept", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let shop = Arc::clone(&shop);
            tasks.spawn("connection", async move {
                let service = service_fn(move |request| Arc::clone(&shop).answer(request));
                // A client that went away is its own affair.
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    Ok(address)
}

/// What an HTTP result means to a policy: the status decides, and `Retry-After` is listened to.
fn verdict(result: &Result<reqwest::Response, reqwest::Error>) -> Verdict {
    match result {
        Ok(response) => {
            let advice = response.headers().get("retry-after").and_then(|v| v.to_str().ok());
            let wall = mainstay::clock::Clock::wall(&SystemClock::new());
            Verdict::of_http(response.status().as_u16(), advice.and_then(|v| retry_after(v, wall)))
        }
        Err(error) if error.is_builder() => Verdict::Ignore,
        Err(_) => Verdict::RETRYABLE,
    }
}

/// One guarded GET; the attempt's deadline, number and key travel with the request.
async fn get(
    policy: &Policy,
    client: &reqwest::Client,
    url: &str,
    key: &str,
) -> Result<reqwest::Response, CallError<reqwest::Error>> {
    let cx = CallContext::new().with_key(key);
    policy
        .call_with(&cx, verdict, |attempt| {
            let mut request = client.get(url);
            for (name, value) in wire::headers(&attempt) {
                request = request.header(name, value);
            }
            request.send()
        })
        .await
}

/// The same for tower: a request is a URL here, so that it can be cloned.
struct Http;

impl Adapt<String, reqwest::Response, reqwest::Error> for Http {
    fn context(url: &String) -> CallContext {
        CallContext::new().with_key(url.as_str())
    }

    fn verdict(result: &Result<reqwest::Response, reqwest::Error>) -> Verdict {
        verdict(result)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    // reqwest needs a TLS provider even for plain HTTP.
    let installed = rustls::crypto::ring::default_provider().install_default();
    ensure!(installed.is_ok(), "another TLS provider is installed");
    let runtime = Runtime::system();
    let shop = Arc::new(Shop::default());
    let url = format!("http://{}/orders", serve(Arc::clone(&shop), &runtime).await?);
    let policies = Policies::from_toml(POLICIES)?.build(&runtime)?;
    let policy = policies.get("shop").context("the file has a shop")?;
    let client = reqwest::Client::new();

    let response = get(policy, &client, &url, "order-1").await?;
    ensure!(response.status() == 200 && response.text().await? == "answer 1", "the second attempt's answer");
    ensure!(shop.with_deadline.load(Ordering::Relaxed) == 2, "both attempts carried deadline and key");
    println!("called: 200 after {} requests", shop.requests.load(Ordering::Relaxed));

    let sender = client.clone();
    let service =
        policy.layer().adapt::<Http>().layer(tower::service_fn(move |url: String| sender.get(url).send()));
    let response = service.clone().oneshot(url.clone()).await?;
    ensure!(response.status() == 200);
    println!("as a layer: 200 after {} requests", shop.requests.load(Ordering::Relaxed));

    shop.down.store(true, Ordering::Relaxed);
    let refused = loop {
        match get(policy, &client, &url, "order-2").await {
            Ok(response) => ensure!(response.status() == 503, "the server is down"),
            Err(error) => break error,
        }
    };
    let before = shop.requests.load(Ordering::Relaxed);
    let rejected = refused.rejected().context("not refused by the breaker")?;
    ensure!(rejected.policy() == "shop" && rejected.retry_after().is_some(), "{rejected}");
    ensure!(service.oneshot(url).await.is_err_and(|e| e.code() == "open"), "one breaker for both ways");
    ensure!(shop.requests.load(Ordering::Relaxed) == before, "nothing was sent");
    println!("down: {rejected}; come back in {:?}", rejected.retry_after());
    Ok(())
}
