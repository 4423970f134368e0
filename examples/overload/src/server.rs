//! One unbounded queue, one worker with a constant service time, behind real HTTP.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use mainstay::clock::{Deadline, Instant, Runtime};
use mainstay::resilience::timeout::wire;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};

use crate::{BROWN_OUT, Mode, Pace};

/// Jobs per second.
const CAPACITY: f64 = 1_000.0;
/// Jobs in the queue from which an arrival is shed, scaled like a time: a queue is a time.
const SHED_AT: usize = 20;
/// Addresses: every timed-out request leaves a connection in TIME_WAIT, and ports are counted per address.
const ADDRESSES: u8 = 8;
/// A sleep shorter than this takes about as long as it; the worker owes the rest.
const GRAIN: Duration = Duration::from_millis(1);

pub(crate) struct Server {
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) runtime: Runtime,
    /// The scenario begins here.
    pub(crate) start: Instant,
    pub(crate) pace: Pace,
    received: Arc<AtomicU64>,
}

impl Server {
    /// Requests that have arrived.
    pub(crate) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

struct Job {
    until: Deadline,
    reply: oneshot::Sender<StatusCode>,
}

struct Queue {
    mode: Mode,
    pace: Pace,
    runtime: Runtime,
    jobs: Mutex<VecDeque<Job>>,
    more: Notify,
    received: Arc<AtomicU64>,
}

pub(crate) async fn start(mode: Mode, pace: Pace) -> anyhow::Result<Server> {
    let runtime = Runtime::system();
    let received = Arc::new(AtomicU64::new(0));
    let queue = Arc::new(Queue {
        mode,
        pace,
        runtime: runtime.clone(),
        jobs: Mutex::default(),
        more: Notify::new(),
        received: Arc::clone(&received),
    });
    let mut addresses = Vec::new();
    for i in 1..=ADDRESSES {
        let listener = TcpListener::bind((std::net::Ipv4Addr::new(127, 0, 0, i), 0)).await?;
        addresses.push(listener.local_addr()?);
        let (queue, tasks) = (Arc::clone(&queue), runtime.clone());
        runtime.spawn("accept", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let queue = Arc::clone(&queue);
                tasks.spawn("connection", async move {
                    let service = service_fn(move |request| Arc::clone(&queue).answer(request));
                    // A client that went away is its own affair; its job stays in the queue.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
    }
    let start = runtime.clock().now();
    runtime.spawn("worker", queue.work(start));
    Ok(Server { addresses, runtime, start, pace, received })
}

impl Queue {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        self.received.fetch_add(1, Ordering::Relaxed);
        let header = |name: &str| request.headers().get(name).and_then(|v| v.to_str().ok());
        let until = wire::read(header, self.runtime.clock().now()).unwrap_or(Deadline::NONE);
        let status = match self.enqueue(until) {
            Some(reply) => reply.await.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            None => StatusCode::SERVICE_UNAVAILABLE,
        };
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        Ok(response)
    }

    fn enqueue(&self, until: Deadline) -> Option<oneshot::Receiver<StatusCode>> {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if self.mode == Mode::Protected && jobs.len() >= SHED_AT {
            return None;
        }
        let (reply, answer) = oneshot::channel();
        jobs.push_back(Job { until, reply });
        self.more.notify_one();
        Some(answer)
    }

    async fn work(self: Arc<Self>, start: Instant) {
        let clock = Arc::clone(self.runtime.clock());
        let mut free = clock.now();
        loop {
            let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(job) = job else {
                self.more.notified().await;
                continue;
            };
            let now = clock.now();
            if self.mode == Mode::Protected && job.until.is_over(&*clock) {
                let _ = job.reply.send(StatusCode::GATEWAY_TIMEOUT);
                continue;
            }
            let (from, to) = (self.pace.time(BROWN_OUT.0), self.pace.time(BROWN_OUT.1));
            let passed = now.saturating_duration_since(start);
            let slow = passed >= from && passed < to;
            let service = Duration::from_secs_f64(if slow { 10.0 } else { 1.0 } / self.pace.rate(CAPACITY));
            free = free.max(now.saturating_sub(GRAIN)).saturating_add(service);
            if free.saturating_duration_since(now) >= GRAIN {
                clock.sleep_until(free).await;
            }
            // Served, whether or not anybody still waits.
            let _ = job.reply.send(StatusCode::OK);
        }
    }
}
