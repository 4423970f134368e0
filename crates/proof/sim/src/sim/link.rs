//! One exchange between a node and the store, with everything that can go wrong on the way.

use std::sync::atomic::Ordering;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_store::{BoxFuture, Error, ErrorKind, Outcome, Result};
use tokio::sync::oneshot;

use super::faults::{ERROR_CLASSES, FaultKind, draw, unit};
use super::pause;
use super::world::{CALL_TIMEOUT, World, nanos};
use crate::history::Fault;

/// The link of a node to the store.
#[derive(Clone, Debug)]
pub(super) struct Link {
    pub(super) world: World,
    pub(super) node: usize,
}

impl Link {
    pub(super) fn new(world: World, node: usize) -> Self {
        Self { world, node }
    }

    fn store(&self) -> usize {
        self.world.nodes()
    }

    pub(super) fn via(&self) -> String {
        self.world.via(self.node, self.store())
    }

    pub(super) fn next(&self) -> u64 {
        self.world.0.nodes[self.node].calls.fetch_add(1, Ordering::Relaxed)
    }

    /// Records that call `n` suffered `kind` since `start`.
    pub(super) fn record(&self, kind: FaultKind, n: u64, start: u64) {
        let via = self.via();
        let id = format!("{}@{via}#{n}", kind.name());
        self.world.recorder().fault(Fault::new(&id, kind.name(), &via, start, self.world.recorder().stamp()));
    }

    /// Asks the store. `apply` runs there: perhaps twice, perhaps after the caller gave up or died.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        apply: impl Fn() -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> Result<T> {
        let (via, n) = (self.via(), self.next());
        let start = self.world.recorder().stamp();
        let suffers = |kind: FaultKind| self.world.suffers(kind, &via, n);
        if suffers(FaultKind::ErrorReply) {
            pause(self.world.latency(&via, n)).await;
            self.record(FaultKind::ErrorReply, n, start);
            let class = draw(self.world.seed(), "error class", &via, n) % ERROR_CLASSES.len() as u64;
            let (text, kind) = ERROR_CLASSES[usize::try_from(class).unwrap_or(0)];
            return Err(Error::new(kind, text));
        }
        let call_faults = [
            FaultKind::RequestLost,
            FaultKind::LateRequest,
            FaultKind::DuplicateRequest,
            FaultKind::Slow,
            FaultKind::ReplyLost,
            FaultKind::LateReply,
        ];
        let suffered: Vec<FaultKind> = call_faults.into_iter().filter(|k| suffers(*k)).collect();
        let (tx, rx) = oneshot::channel();
        let exchange = self.clone().exchange(via, n, suffered.clone(), apply, tx);
        self.world.spawn(exchange);
        let result = self.wait(rx).await;
        suffered.iter().for_each(|kind| self.record(*kind, n, start));
        result
    }

    async fn wait<T>(&self, rx: oneshot::Receiver<Result<T>>) -> Result<T> {
        let unknown =
            |text: &str| Err(Error::new(ErrorKind::Unavailable, text).with_outcome(Outcome::Unknown));
        let reset = self.world.until_reset(self.node, self.store());
        let reply = async {
            match rx.await {
                Ok(result) => result,
                // Lost on the way: nobody tells the caller.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = reply => result,
            () = reset => unknown("connection reset"),
            () = self.world.0.nodes[self.node].clock.sleep(CALL_TIMEOUT) => unknown("no reply in time"),
        }
    }

    async fn exchange<T: Send + 'static>(
        self,
        via: String,
        n: u64,
        suffered: Vec<FaultKind>,
        apply: impl Fn() -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
        reply: oneshot::Sender<Result<T>>,
    ) {
        /// What a gray failure adds at most; every second one stays within the patience of the caller.
        const SLOW: Duration = Duration::from_secs(10);
        const SLOWISH: Duration = Duration::from_millis(900);
        let suffers = |kind| suffered.contains(&kind);
        // After the caller gave up, up to three times as long.
        let late =
            || CALL_TIMEOUT + CALL_TIMEOUT.mul_f64(2.0 * unit(draw(self.world.seed(), "late", &via, n)));
        let mut wait = self.world.latency(&via, n * 2);
        if suffers(FaultKind::LateRequest) {
            wait += late();
        }
        let gray = draw(self.world.seed(), "slow", &via, n);
        let slow = if gray.is_multiple_of(2) { SLOW } else { SLOWISH.mul_f64(unit(gray)) };
        // On the way there or on the way back.
        let (there, back) = if gray & 2 == 0 { (slow, Duration::ZERO) } else { (Duration::ZERO, slow) };
        if suffers(FaultKind::Slow) {
            wait += there;
        }
        pause(wait).await;
        if suffers(FaultKind::RequestLost) || !self.world.passes(self.node, self.store()).await {
            return;
        }
        self.world.0.backend.clock.running().await;
        let result = apply().await;
        if suffers(FaultKind::DuplicateRequest) {
            let delay = self.world.latency(&via, n * 2 + 1);
            self.world.spawn(async move {
                pause(delay).await;
                drop(apply().await);
            });
        }
        pause(self.world.latency(&via, n * 2 + 1)).await;
        if suffers(FaultKind::Slow) {
            pause(back).await;
        }
        if suffers(FaultKind::LateReply) {
            pause(late()).await;
        }
        if !suffers(FaultKind::ReplyLost) && self.world.passes(self.store(), self.node).await {
            // The caller may be gone.
            let _ = reply.send(result);
        }
    }

    /// Waits for a hint of the store, which may be spurious or never come.
    pub(super) async fn hint(&self, hint: BoxFuture<'static, Result<()>>) -> Result<()> {
        let (via, n) = (self.via(), self.next());
        let start = self.world.recorder().stamp();
        if self.world.suffers(FaultKind::SpuriousWake, &via, n) {
            pause(self.world.latency(&via, n)).await;
            self.record(FaultKind::SpuriousWake, n, start);
            return Ok(());
        }
        let result = hint.await;
        if self.world.suffers(FaultKind::MissedEvent, &via, n) {
            let fault = Fault::new(
                &format!("{}@{via}#{n}", FaultKind::MissedEvent.name()),
                FaultKind::MissedEvent.name(),
                &via,
                start,
                start.saturating_add(nanos(CALL_TIMEOUT)),
            );
            self.world.recorder().fault(fault);
            std::future::pending::<()>().await;
        }
        pause(self.world.latency(&via, n)).await;
        if !self.world.passes(self.store(), self.node).await {
            std::future::pending::<()>().await;
        }
        result
    }
}
