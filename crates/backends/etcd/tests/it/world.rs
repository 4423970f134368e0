//! One node that most tests share, each under a prefix of its own.

use std::fs::File;
use std::future::Future;
use std::os::unix::process::CommandExt as _;
use std::pin::Pin;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use mainstay_chaos::proxy::TcpProxy;
use mainstay_clock::{Clock, Deadline, Instant, Runtime, Sleep, SystemClock, Tick, WallTime};
use mainstay_coordination::Coordinator;
use mainstay_etcd::{Builder, EtcdConfig, EtcdLeases};
use mainstay_sim::servers::{Etcd, EtcdKit};
use mainstay_store::FencingToken;
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired, Line};
use tempfile::NamedTempFile;

/// A name and what it runs.
pub(crate) type Test = (&'static str, fn(World) -> Pin<Box<dyn Future<Output = ()>>>);

/// No machine stands still for as long.
pub(crate) const TTL: Duration = Duration::from_secs(60);
/// A third of it is a renewal that is waited for, and the rest is for a machine that stands still.
pub(crate) const RENEWED: Duration = Duration::from_secs(9);
/// The shortest lease that etcd has.
pub(crate) const SHORT: Duration = Duration::from_secs(2);
/// A wait that ends a broken test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Longest wait for one answer where answers come.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) kit: EtcdKit,
    pub(crate) node: Arc<Etcd>,
    count: Arc<AtomicU64>,
}

impl World {
    pub(crate) fn start(kit: EtcdKit) -> Self {
        let node = Arc::new(kit.single().unwrap());
        Self { kit, node, count: Arc::default() }
    }

    /// A prefix that no other test has.
    pub(crate) fn prefix(&self) -> String {
        format!("t{}/", self.count.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn config(&self, prefix: &str) -> Builder {
        direct(&self.node).prefix(prefix)
    }

    pub(crate) async fn store(&self) -> EtcdLeases {
        open(self.config(&self.prefix())).await
    }

    /// Several processes on the same names.
    pub(crate) async fn stores<const N: usize>(&self) -> [EtcdLeases; N] {
        let prefix = self.prefix();
        let mut stores = Vec::new();
        for _ in 0..N {
            stores.push(open(self.config(&prefix)).await);
        }
        stores.try_into().unwrap()
    }

    pub(crate) async fn proxy(&self) -> TcpProxy {
        let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
        proxy.set_upstream(Some(self.node.address()));
        proxy
    }

    /// The keys under a prefix, as `etcdctl` shows them.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        let text = self.node.ctl(&["get", "--prefix", "--keys-only", prefix]).unwrap();
        text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }
}

/// The way to one node, with patience for its answers.
pub(crate) fn direct(node: &Etcd) -> Builder {
    EtcdConfig::builder(&node.url()).request_timeout(ANSWER)
}

pub(crate) async fn open(config: Builder) -> EtcdLeases {
    EtcdLeases::open(config.build().unwrap(), &Runtime::system()).await.unwrap()
}

/// A store whose requests end early, so that only several tries may open it.
pub(crate) async fn opened(config: Builder) -> EtcdLeases {
    let config = config.build().unwrap();
    let opened = std::sync::Mutex::new(None);
    until("the store is open", || async {
        let store = EtcdLeases::open(config.clone(), &Runtime::system()).await.ok();
        *opened.lock().unwrap() = store;
        opened.lock().unwrap().is_some()
    })
    .await;
    opened.into_inner().unwrap().unwrap()
}

/// A store that reaches the node through proxies only.
pub(crate) async fn through(proxies: &[&TcpProxy], prefix: &str, timeout: Duration) -> EtcdLeases {
    let all: Vec<String> = proxies.iter().map(|p| p.address().to_string()).collect();
    let config = EtcdConfig::builder(&format!("etcd://{}", all.join(","))).prefix(prefix);
    opened(config.request_timeout(timeout)).await
}

pub(crate) fn node(store: &EtcdLeases, owner: &str) -> Coordinator {
    let store = Arc::new(store.clone());
    Coordinator::builder(store, Runtime::system()).namespace("app").owner(owner).build().unwrap()
}

pub(crate) fn within(seconds: u64) -> Deadline {
    Deadline::after(SystemClock::new().now(), Duration::from_secs(seconds))
}

pub(crate) async fn sleep(millis: u64) {
    SystemClock::new().sleep(Duration::from_millis(millis)).await;
}

pub(crate) fn ask(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest::exclusive(name, op, op, TTL)
}

pub(crate) fn short(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest { ttl: SHORT, ..ask(name, op) }
}

pub(crate) fn in_line(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest { line: Line::Join, ..ask(name, op) }
}

pub(crate) async fn take(store: &dyn LeaseStore, name: &str, op: &str) -> Option<FencingToken> {
    granted(&store.acquire(ask(name, op)).await.unwrap())
}

pub(crate) fn granted(answer: &Acquired) -> Option<FencingToken> {
    match answer {
        Acquired::Granted(grants) => Some(grants[0].token),
        _ => None,
    }
}

/// Stands in line until it is served.
pub(crate) async fn wait_for(store: &dyn LeaseStore, request: AcquireRequest) -> FencingToken {
    let clock = SystemClock::new();
    let end = clock.now().saturating_add(PATIENCE);
    loop {
        let hint = store.watch(&request.names[0]);
        match store.acquire(request.clone()).await {
            Ok(answer) => {
                if let Some(token) = granted(&answer) {
                    return token;
                }
            }
            // A server that has just come back.
            Err(e) => assert!(e.is_retryable(), "{e}"),
        }
        assert!(clock.now() < end, "not served in {PATIENCE:?}");
        let late = clock.sleep(Duration::from_secs(1));
        tokio::select! {
            biased;
            Ok(()) = hint => {}
            () = late => {}
        }
    }
}

/// Waits until `done` says so.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let clock = SystemClock::new();
    let end = clock.now().saturating_add(PATIENCE);
    while !done().await {
        assert!(clock.now() < end, "not in {PATIENCE:?}: {what}");
        clock.sleep(Duration::from_millis(5)).await;
    }
}

/// Polls `future` at most `polls` times, as often as it is woken, and drops it then. True when it had ended.
pub(crate) async fn dropped_after<F: Future + Unpin>(mut future: F, polls: usize) -> bool {
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        left -= 1;
        let ended = Pin::new(&mut future).poll(cx).is_ready();
        if ended || left == 0 { Poll::Ready(ended) } else { Poll::Pending }
    })
    .await
}

/// `etcdctl` in the background: what it prints goes to a file. Dropped, it is killed.
pub(crate) struct Ctl {
    child: Child,
    said: NamedTempFile,
}

impl Ctl {
    pub(crate) fn start(node: &Etcd, args: &[&str]) -> Self {
        let said = NamedTempFile::new().unwrap();
        let out = File::options().append(true).open(said.path()).unwrap();
        let mut command = node.etcdctl();
        // A group of its own: what it started ends with it.
        command.process_group(0);
        let child = command.args(args).stdout(out).stderr(Stdio::null()).spawn().unwrap();
        Self { child, said }
    }

    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(self.said.path()).unwrap()
    }

    /// It prints its key once it holds.
    pub(crate) async fn holds(&self) {
        until("etcdctl holds", || async { self.said().contains('\n') }).await;
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    /// Lets it give back what it holds.
    pub(crate) async fn end(&mut self) {
        self.signal("-INT");
        until("etcdctl ended", || std::future::ready(self.child.try_wait().unwrap().is_some())).await;
    }
}

impl Drop for Ctl {
    fn drop(&mut self) {
        // It may have ended.
        let group = format!("-{}", self.child.id());
        let _ = Command::new("kill").args(["-KILL", "--", &group]).stderr(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// The system clock, but a wait for the end of a lease takes as long as etcd takes to notice: it looks twice a
/// second, and then a majority has to agree.
#[derive(Debug)]
pub(crate) struct Patient {
    clock: SystemClock,
    /// A wait of more than this is one for an end.
    least: Duration,
}

impl Patient {
    pub(crate) fn from(least: Duration) -> Self {
        Self { clock: SystemClock::new(), least }
    }
}

impl Clock for Patient {
    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn wall(&self) -> WallTime {
        self.clock.wall()
    }

    fn tick(&self) -> Tick {
        self.clock.tick()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        let whole = deadline.saturating_duration_since(self.clock.now());
        let slack = if whole > self.least { Duration::from_secs(6) } else { Duration::ZERO };
        self.clock.sleep_until(deadline.saturating_add(slack))
    }
}
