//! An open Poisson load through a policy, and what became of it.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::Request;
use hyper_util::client::legacy::{Client, Error as HttpError, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use mainstay::clock::{Rng as _, SeededRng};
use mainstay::resilience::breaker::BreakerBuilder;
use mainstay::resilience::timeout::wire;
use mainstay::resilience::{Attempt, Breaker, Budget, CallContext, Policy, Retry, Verdict};

use crate::server::Server;
use crate::{Mode, Pace};

/// Arrivals per second.
const RATE: f64 = 700.0;

type Http = Client<HttpConnector, Empty<Bytes>>;

/// Counts per second of the scenario.
#[derive(Clone, Debug, Default)]
pub(crate) struct Curve {
    pub(crate) arrivals: Vec<u32>,
    pub(crate) completed: Vec<u32>,
    /// Requests that reached the server.
    pub(crate) sent: Vec<u64>,
}

impl Curve {
    /// Share of the arrivals of these seconds that were answered.
    pub(crate) fn share(&self, seconds: Range<usize>) -> f64 {
        let sum = |v: &[u32]| v[seconds.clone()].iter().map(|n| f64::from(*n)).sum::<f64>();
        sum(&self.completed) / sum(&self.arrivals).max(1.0)
    }

    /// Seconds after `end` until three in a row complete 95 %.
    pub(crate) fn recovery(&self, end: usize) -> Option<usize> {
        // The last seconds' calls may still have been under way.
        let last = self.arrivals.len().saturating_sub(5);
        (end..last).find(|s| (*s..s + 3).all(|s| self.share(s..s + 1) >= 0.95)).map(|s| s - end)
    }

    /// The highest number of requests per arrival in one second, from the first timeouts on.
    pub(crate) fn amplification(&self) -> f64 {
        let at = |s: usize| self.sent[s] as f64 / f64::from(self.arrivals[s]).max(1.0);
        (22..self.sent.len()).map(at).fold(0.0, f64::max)
    }
}

/// The client's policy: defaults, at the scenario's scale of time.
fn policy(mode: Mode, pace: Pace) -> anyhow::Result<Policy> {
    let retry = Retry::exponential(pace.time(0.05), pace.time(2.0)).build()?;
    let policy = Policy::builder("server").idempotent().attempt_timeout(pace.time(1.0)).retry(retry);
    Ok(match mode {
        Mode::Unprotected => policy.without_budget().build()?,
        Mode::Protected => {
            let budget = Budget::builder("server").ratio(0.2, 10.0).credit(pace.time(1.0)).build()?;
            policy.budget(&budget).breaker(&breaker(pace).build()?).build()?
        }
    })
}

fn breaker(pace: Pace) -> BreakerBuilder {
    Breaker::builder("server")
        .window(pace.time(10.0))
        .growing_open(pace.time(2.0), 2.0, pace.time(30.0))
        .precise()
}

pub(crate) async fn run(mode: Mode, server: &Server, seconds: usize) -> anyhow::Result<Curve> {
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let pace = server.pace;
    let policy = policy(mode, pace)?;
    let curve = Arc::new(Mutex::new(Curve {
        arrivals: vec![0; seconds],
        completed: vec![0; seconds],
        sent: vec![0; seconds],
    }));
    let rng = SeededRng::new(7);
    let clock = server.runtime.clock();
    let (mut at, mut seen, mut open_second) = (0.0_f64, 0, 0);
    loop {
        at += -(1.0 - rng.unit()).ln() / pace.rate(RATE);
        let second = pace.second(at);
        clock.sleep_until(server.start.saturating_add(Duration::from_secs_f64(at))).await;
        if second != open_second {
            let received = server.received();
            lock(&curve).sent[open_second] += received - seen;
            (seen, open_second) = (received, second);
        }
        if second >= seconds {
            break;
        }
        lock(&curve).arrivals[second] += 1;
        let address = server.addresses[(rng.below(server.addresses.len() as u64)) as usize];
        let (http, policy, curve) = (http.clone(), policy.clone(), Arc::clone(&curve));
        server.runtime.spawn("call", async move {
            let cx = CallContext::new();
            let result =
                policy.call_with(&cx, verdict, |attempt: Attempt<'_>| send(&http, address, attempt)).await;
            if matches!(result, Ok(status) if status < 400) {
                lock(&curve).completed[second] += 1;
            }
        });
    }
    // The last calls end within their attempts.
    clock.sleep(pace.time(5.0)).await;
    let curve = lock(&curve).clone();
    Ok(curve)
}

fn lock(curve: &Mutex<Curve>) -> std::sync::MutexGuard<'_, Curve> {
    curve.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request with the time that remains; its future owns what it needs.
fn send(
    http: &Http,
    address: std::net::SocketAddr,
    attempt: Attempt<'_>,
) -> impl Future<Output = Result<u16, HttpError>> + use<> {
    let mut request = Request::get(format!("http://{address}/"));
    for (name, value) in wire::headers(&attempt) {
        request = request.header(name, value);
    }
    let sent = request.body(Empty::new()).map(|request| http.request(request));
    async move {
        match sent {
            Ok(response) => response.await.map(|response| response.status().as_u16()),
            // Headers made by this crate are always valid; a request that cannot be made is a bad request.
            Err(_) => Ok(400),
        }
    }
}

fn verdict(result: &Result<u16, HttpError>) -> Verdict {
    result.as_ref().map_or(Verdict::RETRYABLE, |status| Verdict::of_http(*status, None))
}
