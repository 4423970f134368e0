//! The run: processes up, orders in, faults and kills, processes down, audit.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_chaos::proxy::{Fault, Forced, HttpFaults, HttpProxy};
use mainstay_clock::{Instant, Runtime};
use mainstay_store::journal::SagaStatus;
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::Args;
use super::audit::{Accepted, audit, refused_so_far};
use super::board::{Board, Score, Seen};
use super::children::{Places, Server, within};
use super::orders::{Kill, Order, SERVICES, definition, faults, kills, orders};
use super::report::{self, Faults, Outcome, Report};
use crate::error::{Code, Error, Result};

/// The demo has a verdict by then, or none.
const HARD_LIMIT: Duration = Duration::from_secs(120);
/// What each order beyond the usual thousand adds: the time between two starts, four times, for machines that cannot
/// keep up with them.
const LIMIT_PER_ORDER: Duration = PACE.saturating_mul(4);

/// Callers that start orders at the same time.
const CALLERS: usize = 32;
/// Time between two starts: a thousand orders come in over about eight seconds, so that there is always work
/// under way when something is killed.
const PACE: Duration = Duration::from_millis(8);
/// Pause between two looks at the node, and before a failed start is repeated.
const LOOK: Duration = Duration::from_millis(50);
/// How often the ledgers are asked for the screen.
const LOOK_AT_LEDGERS_MS: u64 = 500;
/// Rows of one page of verdicts.
const PAGE: usize = 500;
/// Most runs that leave their evidence under one number of a process and one seed.
const FOLDERS: u32 = 1_000;

/// When a demo of so many orders has a verdict, or none.
fn limit(orders: u32) -> Duration {
    HARD_LIMIT + LIMIT_PER_ORDER * orders.saturating_sub(1_000)
}

/// Runs the demo; a signal ends it, and with it every child.
pub(super) async fn until_a_signal(args: &Args, seed: u64) -> Result<u8> {
    let failed = |e| Error::with(Code::Internal, "cannot listen for signals", e);
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    // The code of the verdict, once there is one: then a signal only ends `--keep`.
    let verdict = Mutex::new(None);
    let kept = || *verdict.lock().unwrap_or_else(PoisonError::into_inner);
    let demo = async {
        let rt = Runtime::system();
        let mut demo = Demo::new(args, seed, rt.clone()).await?;
        let limit = args.limit.unwrap_or_else(|| limit(args.orders));
        let code = within(&rt, limit, demo.verdict()).await?;
        *verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(code);
        if args.keep {
            super::keep::keep(&rt, &demo.places, &demo.proxies).await?;
        }
        Ok(code)
    };
    tokio::select! {
        biased;
        _ = int.recv() => Ok(kept().unwrap_or(130)),
        _ = term.recv() => Ok(kept().unwrap_or(143)),
        done = demo => done,
    }
}

struct Demo<'a> {
    args: &'a Args,
    seed: u64,
    rt: Runtime,
    begun: Instant,
    orders: Arc<Vec<Order>>,
    places: Places,
    proxies: Vec<HttpProxy>,
    services: Vec<Option<Server>>,
    node: Option<Server>,
    /// Where the node is; `None` while it is down.
    address: watch::Sender<Option<SocketAddr>>,
    intake: Arc<Intake>,
    http: reqwest::Client,
    node_kills: u32,
    service_kills: u32,
    seen: Seen,
    refused: (u64, u64),
}

/// What the callers share.
struct Intake {
    next: AtomicUsize,
    /// Saga by order.
    accepted: Mutex<BTreeMap<String, String>>,
    /// An answer that can only be a mistake of ours.
    broken: Mutex<Option<String>>,
}

impl Intake {
    fn accepted(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new folder, for its owner only. That of an earlier run would bring its ledgers into the audit, and in a container
/// each run may have the number of the one before.
fn folder(seed: u64) -> Result<PathBuf> {
    let first = std::env::temp_dir().join(format!("mainstay-demo-{seed}-{}", std::process::id()));
    let mut folder = first.clone();
    for n in 2..=FOLDERS {
        match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                folder.clone_from(&first);
                folder.as_mut_os_string().push(format!("-{n}"));
            }
            other => {
                let made = other.and_then(|()| std::fs::create_dir(folder.join("definitions")));
                let failed = |e| Error::with(Code::DataDir, format!("cannot make {}", folder.display()), e);
                return made.map_err(failed).map(|()| folder);
            }
        }
    }
    let why = format!("{} and {FOLDERS} more are there; remove those of earlier runs", first.display());
    Err(Error::new(Code::DataDir, why))
}

impl<'a> Demo<'a> {
    async fn new(args: &'a Args, seed: u64, rt: Runtime) -> Result<Self> {
        let failed = |e| Error::with(Code::CannotListen, "a proxy cannot listen", e);
        let mut proxies = Vec::with_capacity(SERVICES.len());
        for i in 0..SERVICES.len() as u64 {
            // Until the forced fault of a broken barrier has happened, nothing may keep an order from it.
            let shares = if args.break_barrier { HttpFaults::none() } else { faults(args.faults) };
            let proxy = HttpProxy::bind(rt.clone(), seed.wrapping_add(i), shares).await;
            proxies.push(proxy.map_err(failed)?);
        }
        if args.break_barrier {
            // Done twice, answered never: without a barrier the order is charged twice, whatever comes next.
            proxies[1].force(Forced::new(Fault::DuplicateLost, |path, body| {
                path == "/charge" && String::from_utf8_lossy(body).contains("\"card\":\"fine\"")
            }));
        }
        let origins = proxies.iter().map(HttpProxy::origin).collect();
        let places = Places { evidence: folder(seed)?, origins, barrier: !args.break_barrier };
        let intake =
            Intake { next: AtomicUsize::new(0), accepted: Mutex::default(), broken: Mutex::default() };
        Ok(Self {
            args,
            seed,
            begun: rt.clock().now(),
            rt,
            orders: Arc::new(orders(seed, args.orders, args.break_barrier)),
            places,
            proxies,
            services: Vec::new(),
            node: None,
            address: watch::Sender::new(None),
            intake: Arc::new(intake),
            http: client()?,
            node_kills: 0,
            service_kills: 0,
            seen: Seen::default(),
            refused: (0, 0),
        })
    }

    /// Everything up to the verdict; the exit code.
    async fn verdict(&mut self) -> Result<u8> {
        self.start().await?;
        self.work().await?;
        let verdicts = self.verdicts().await?;
        self.stop().await?;
        let accepted = self.intake.accepted().clone();
        let accepted: Vec<Accepted<'_>> = self
            .orders
            .iter()
            .filter_map(|order| {
                let uid = accepted.get(&order.id)?.clone();
                Some(Accepted { order, verdict: verdicts.get(&uid).copied(), uid })
            })
            .collect();
        let report = Report {
            args: self.args,
            seed: self.seed,
            findings: audit(&self.places, &accepted)?,
            faults: Faults::of(&self.proxies),
            node_kills: self.node_kills,
            service_kills: self.service_kills,
            elapsed_ms: self.elapsed_ms(),
            evidence: self.places.evidence.display().to_string(),
        };
        self.leave_evidence(&report)?;
        if self.args.json {
            print(&format!("{}\n", report.json()))?
        } else {
            print(&report.text())?
        };
        if report.outcome() == Outcome::NoVerdict {
            eprintln!("mainstay demo: no verdict: {}", report::NOTHING_FIRED);
        }
        Ok(report.outcome().code())
    }

    fn elapsed_ms(&self) -> u64 {
        let elapsed = self.rt.clock().now().saturating_duration_since(self.begun);
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }

    async fn start(&mut self) -> Result<()> {
        let text = definition(&self.places.origins, self.places.barrier);
        let file = self.places.evidence.join("definitions/order.toml");
        std::fs::write(&file, &text)
            .map_err(|e| Error::with(Code::DataDir, format!("cannot write {}", file.display()), e))?;
        if !self.args.json {
            let head = format!("mainstay demo: {} orders, seed {}\n\n{text}\n", self.args.orders, self.seed);
            print(&head)?;
        }
        for (service, proxy) in SERVICES.iter().zip(&self.proxies) {
            let server = self.places.service(&self.rt, service.name).await?;
            proxy.set_upstream(Some(server.address));
            self.services.push(Some(server));
        }
        let node = self.places.node(&self.rt).await?;
        self.address.send_replace(Some(node.address));
        self.node = Some(node);
        for _ in 0..CALLERS {
            let caller = Caller {
                rt: self.rt.clone(),
                http: self.http.clone(),
                address: self.address.subscribe(),
                orders: Arc::clone(&self.orders),
                intake: Arc::clone(&self.intake),
                begun: self.rt.clock().now(),
            };
            self.rt.spawn("demo-caller", caller.run());
        }
        Ok(())
    }

    /// Watches the node until every order has ended, and kills on schedule.
    async fn work(&mut self) -> Result<()> {
        let mut board = Board::new(self.args.json);
        let mut is_armed = self.args.break_barrier;
        let mut kills = kills(self.seed, self.args.faults, self.args.orders).into_iter().peekable();
        loop {
            let broken = self.intake.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if let Some(why) = broken {
                return Err(Error::new(Code::Internal, why));
            }
            self.look().await;
            board.show(&self.score());
            if is_armed && self.proxies.iter().all(|p| p.still_armed() == 0) {
                is_armed = false;
                self.proxies.iter().for_each(|p| p.set_faults(faults(self.args.faults)));
            }
            if !is_armed && let Some(kill) = kills.next_if(|k| u64::from(k.after) <= self.seen.ended()) {
                self.kill(kill).await?;
                continue;
            }
            let all = self.intake.accepted().len() == self.orders.len();
            if all && self.seen.open == 0 && self.seen.ended() >= self.orders.len() as u64 {
                return Ok(());
            }
            self.rt.clock().sleep(LOOK).await;
        }
    }

    /// Asks the node how far it is; while it does not answer, the last answer stands.
    async fn look(&mut self) {
        let Some(address) = *self.address.borrow() else { return };
        if let Ok(reply) = self.http.get(format!("http://{address}/metrics")).send().await
            && let Ok(text) = reply.text().await
        {
            self.seen = Seen::of_metrics(&text);
        }
        let now = self.elapsed_ms();
        if now >= self.refused.0 {
            self.refused = (now + LOOK_AT_LEDGERS_MS, refused_so_far(&self.places));
        }
    }

    fn score(&self) -> Score {
        Score {
            orders: self.args.orders,
            accepted: self.intake.accepted().len() as u64,
            seen: self.seen,
            faults: Faults::of(&self.proxies),
            node_kills: self.node_kills,
            service_kills: self.service_kills,
            refused: self.refused.1,
            elapsed_ms: self.elapsed_ms(),
        }
    }

    async fn kill(&mut self, kill: Kill) -> Result<()> {
        if let Some(i) = kill.service {
            if let Some(server) = self.services[i].take() {
                server.kill().await?;
            }
            self.proxies[i].set_upstream(None);
            let server = self.places.service(&self.rt, SERVICES[i].name).await?;
            self.proxies[i].set_upstream(Some(server.address));
            self.services[i] = Some(server);
            self.service_kills += 1;
            return Ok(());
        }
        if let Some(node) = self.node.take() {
            node.kill().await?;
        }
        self.address.send_replace(None);
        let node = self.places.node(&self.rt).await?;
        self.address.send_replace(Some(node.address));
        self.node = Some(node);
        self.node_kills += 1;
        Ok(())
    }

    /// What the node says became of each saga.
    async fn verdicts(&self) -> Result<BTreeMap<String, SagaStatus>> {
        let failed = |e: reqwest::Error| Error::with(Code::Unreachable, "the node does not answer", e);
        let address =
            (*self.address.borrow()).ok_or_else(|| Error::new(Code::Internal, "the node is down"))?;
        let mut verdicts = BTreeMap::new();
        let mut cursor = String::new();
        loop {
            let url = format!("http://{address}/v1/sagas?limit={PAGE}{cursor}");
            let text = self.http.get(url).send().await.map_err(failed)?.text().await.map_err(failed)?;
            let page: Value = serde_json::from_str(&text)
                .map_err(|e| Error::with(Code::Internal, "the node's page is no JSON", e))?;
            for item in page["items"].as_array().into_iter().flatten() {
                let status = item["status"].as_str().and_then(SagaStatus::parse);
                if let (Some(uid), Some(status)) = (item["uid"].as_str(), status) {
                    verdicts.insert(uid.to_owned(), status);
                }
            }
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={}", crate::cli::segment(next)),
                None => return Ok(verdicts),
            }
        }
    }

    async fn stop(&mut self) -> Result<()> {
        self.address.send_replace(None);
        if let Some(node) = self.node.take() {
            node.stop(&self.rt).await?;
        }
        for (proxy, service) in self.proxies.iter().zip(&mut self.services) {
            proxy.set_upstream(None);
            if let Some(service) = service.take() {
                service.kill().await?;
            }
        }
        Ok(())
    }

    fn leave_evidence(&self, report: &Report<'_>) -> Result<()> {
        let write = |name: &str, text: String| {
            let file = self.places.evidence.join(name);
            let failed = |e| Error::with(Code::DataDir, format!("cannot write {}", file.display()), e);
            std::fs::write(&file, text).map_err(failed)
        };
        write("report.json", format!("{:#}\n", report.json()))?;
        let mut log = String::new();
        for (service, proxy) in SERVICES.iter().zip(&self.proxies) {
            for one in proxy.log() {
                let key = one.key.unwrap_or_default();
                log.push_str(&format!(
                    "{} {} {} {} {key}\n",
                    service.name,
                    one.request,
                    one.fault.name(),
                    one.path
                ));
            }
        }
        write("faults.log", log)
    }
}

/// Starts orders, each until it is accepted.
struct Caller {
    rt: Runtime,
    http: reqwest::Client,
    address: watch::Receiver<Option<SocketAddr>>,
    orders: Arc<Vec<Order>>,
    intake: Arc<Intake>,
    begun: Instant,
}

impl Caller {
    async fn run(mut self) {
        loop {
            let i = self.intake.next.fetch_add(1, Ordering::Relaxed);
            let Some(order) = self.orders.get(i).cloned() else { return };
            let pace = PACE.saturating_mul(u32::try_from(i).unwrap_or(u32::MAX));
            self.rt.clock().sleep_until(self.begun.saturating_add(pace)).await;
            let body = json!({"definition": "order", "id": order.id, "input": order.input()}).to_string();
            while !self.start(&order, &body).await {
                self.rt.clock().sleep(LOOK).await;
            }
        }
    }

    /// One try; true when there is nothing more to do. The key makes repeating it safe.
    async fn start(&mut self, order: &Order, body: &str) -> bool {
        let Ok(address) = self.address.wait_for(Option::is_some).await.map(|a| *a) else { return true };
        let Some(address) = address else { return false };
        let request = self
            .http
            .post(format!("http://{address}/v1/sagas"))
            .header("content-type", "application/json")
            .header("idempotency-key", format!("\"start-{}\"", order.id))
            .body(body.to_owned());
        let Ok(reply) = request.send().await else { return false };
        let status = reply.status().as_u16();
        let Ok(text) = reply.text().await else { return false };
        match status {
            202 => {
                let uid = serde_json::from_str::<Value>(&text)
                    .ok()
                    .and_then(|v| v["uid"].as_str().map(str::to_owned));
                let Some(uid) = uid else { return false };
                self.intake.accepted().insert(order.id.clone(), uid);
                true
            }
            // Busy, or an earlier try is still at work.
            409 | 429 | 503 => false,
            _ => {
                let why = format!("the node answered {status} to {}: {text}", order.id);
                *self.intake.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                true
            }
        }
    }
}

/// Longest wait for an answer of the node. One that is killed meanwhile is noticed at once.
pub(super) const ANSWER: Duration = Duration::from_secs(30);

fn client() -> Result<reqwest::Client> {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWER)
        .build()
        .map_err(|e| Error::with(Code::Internal, "no HTTP client", e))
}

fn print(text: &str) -> Result<()> {
    crate::cli::print(text).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an earlier run had left under the same number of a process was read as this one's ledgers.
    #[test]
    fn each_run_has_a_folder_of_its_own() {
        let (one, other) = (folder(u64::MAX).unwrap(), folder(u64::MAX).unwrap());
        assert_ne!(one, other);
        for made in [one, other] {
            let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&made).unwrap());
            assert_eq!(mode & 0o777, 0o700);
            std::fs::remove_dir_all(made).unwrap();
        }
    }

    #[test]
    fn if_d09_there_is_time_for_every_number_of_orders_that_is_accepted() {
        assert_eq!(limit(1_000), Duration::from_secs(120), "as promised");
        assert_eq!(limit(1), limit(1_000));
        for orders in [15_000, 100_000] {
            assert!(
                limit(orders) >= HARD_LIMIT + 3 * PACE * orders,
                "{orders} come in and end: {:?}",
                limit(orders)
            );
        }
    }
}
