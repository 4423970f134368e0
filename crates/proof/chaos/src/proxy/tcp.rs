//! The TCP proxy: bytes only, with faults that are switched while connections live.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Rng, Runtime, SeededRng};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::MAX_CONNECTIONS;

/// Bytes passed on at once.
const CHUNK: usize = 16 * 1024;

/// What happens to bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum TcpMode {
    /// Connections stay open and nothing moves in either direction.
    Blackhole,
    /// Each chunk waits this long, plus a part of the jitter drawn from the seed.
    Latency {
        /// The least wait.
        least: Duration,
        /// The most on top.
        jitter: Duration,
    },
    /// Bytes move unharmed.
    #[default]
    Pass,
    /// At most this many bytes per second and direction.
    Rate(u64),
    /// Requests arrive, replies do not: the caller cannot know.
    RepliesLost,
}

/// A proxy in front of one TCP service. It stops, and cuts its connections, when dropped.
pub struct TcpProxy {
    address: SocketAddr,
    mode: watch::Sender<TcpMode>,
    upstream: watch::Sender<Option<SocketAddr>>,
    /// Raised to cut every connection that is open.
    cuts: watch::Sender<u64>,
    stop: CancellationToken,
}

struct Wires {
    runtime: Runtime,
    seed: u64,
    mode: watch::Receiver<TcpMode>,
    upstream: watch::Receiver<Option<SocketAddr>>,
    cuts: watch::Receiver<u64>,
    stop: CancellationToken,
}

impl TcpProxy {
    /// Listens on a free port of loopback.
    ///
    /// # Errors
    /// When no port can be bound.
    ///
    /// # Cancel safety
    /// A dropped future leaves nothing.
    pub async fn bind(runtime: Runtime, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let proxy = Self {
            address,
            mode: watch::Sender::new(TcpMode::Pass),
            upstream: watch::Sender::new(None),
            cuts: watch::Sender::new(0),
            stop: CancellationToken::new(),
        };
        let wires = Wires {
            runtime: runtime.clone(),
            seed,
            mode: proxy.mode.subscribe(),
            upstream: proxy.upstream.subscribe(),
            cuts: proxy.cuts.subscribe(),
            stop: proxy.stop.clone(),
        };
        runtime.spawn("mainstay-tcp-proxy", accept(Arc::new(wires), listener));
        Ok(proxy)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Connects new callers to `upstream` from now on; `None` closes their connections at once.
    pub fn set_upstream(&self, upstream: Option<SocketAddr>) {
        self.upstream.send_replace(upstream);
    }

    /// Changes what happens to bytes, for open connections too. When it returns, no byte moves under the old mode.
    pub fn set_mode(&self, mode: TcpMode) {
        self.mode.send_replace(mode);
    }

    /// Cuts every connection that is open now. When it returns, nothing that is sent from here on passes through them;
    /// what was passed on before may still lie in front of its reader.
    pub fn cut(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }
}

impl Drop for TcpProxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for TcpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpProxy").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn accept(wires: Arc<Wires>, listener: TcpListener) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut number = 0;
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let accepted = tokio::select! {
            biased;
            () = wires.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((caller, _)) = accepted else { continue };
        number += 1;
        let (own, seed) = (Arc::clone(&wires), wires.seed ^ number);
        wires.runtime.spawn("mainstay-tcp-proxy-connection", async move {
            let _slot = slot;
            connection(&own, caller, seed).await;
        });
    }
}

async fn connection(wires: &Wires, caller: TcpStream, seed: u64) {
    let mut cuts = wires.cuts.clone();
    let cut = *cuts.borrow_and_update();
    let upstream = *wires.upstream.borrow();
    let Some(upstream) = upstream else { return };
    let Ok(service) = TcpStream::connect(upstream).await else { return };
    let ((from_caller, to_caller), (from_service, to_service)) = (caller.into_split(), service.into_split());
    let there = pump(wires, from_caller, to_service, Way { cut, seed, is_reply: false });
    let back = pump(wires, from_service, to_caller, Way { cut, seed: seed ^ u64::MAX, is_reply: true });
    tokio::select! {
        biased;
        () = wires.stop.cancelled() => {}
        _ = cuts.changed() => {}
        _ = async { tokio::join!(there, back) } => {}
    }
}

/// One direction of a connection.
#[derive(Clone, Copy)]
struct Way {
    /// How many cuts there had been when it was opened.
    cut: u64,
    seed: u64,
    is_reply: bool,
}

/// Moves bytes in one direction until it ends; then the other side learns that it ended.
async fn pump(wires: &Wires, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, way: Way) {
    let rng = SeededRng::new(way.seed);
    let mut chunk = vec![0; CHUNK];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        let mode = *wires.mode.borrow();
        match mode {
            TcpMode::Latency { least, jitter } => {
                wires.runtime.clock().sleep(least.saturating_add(jitter.mul_f64(rng.unit()))).await;
            }
            TcpMode::Rate(per_second) => {
                let nanos = (n as u64).saturating_mul(1_000_000_000) / per_second.max(1);
                wires.runtime.clock().sleep(Duration::from_nanos(nanos)).await;
            }
            TcpMode::Blackhole | TcpMode::Pass | TcpMode::RepliesLost => {}
        }
        if pass_on(wires, &chunk[..n], &to, way).await.is_none() {
            return;
        }
    }
    // The other side may be gone already.
    let _ = to.shutdown().await;
}

/// Writes bytes, or drops them, as the mode of that moment says; none when the connection is to end.
async fn pass_on(wires: &Wires, mut bytes: &[u8], to: &OwnedWriteHalf, way: Way) -> Option<()> {
    let mut mode = wires.mode.clone();
    while !bytes.is_empty() {
        // A mode that holds bytes back holds those that were read before it ends.
        mode.wait_for(|m| *m != TcpMode::Blackhole).await.ok()?;
        to.writable().await.ok()?;
        // While these are borrowed nobody changes them, so whoever changed them sees no byte move any more.
        let (cuts, now) = (wires.cuts.borrow(), mode.borrow());
        if *cuts != way.cut {
            return None;
        }
        match *now {
            TcpMode::Blackhole => {}
            TcpMode::RepliesLost if way.is_reply => return Some(()),
            _ => match to.try_write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return None,
            },
        }
    }
    Some(())
}
