//! A network in memory and in virtual time: it loses, delays and cuts, and counts every byte.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock as _, Rng as _, Runtime, SeededRng};
use mainstay_consistency::replicate::Replicated;
use mainstay_gossip::{Config, Gossip, Inbound, Keys, MAX_DATAGRAM, Network, Sent, Way, config};
use mainstay_store::{BoxFuture, DurableCell};
use tokio::sync::{Mutex as AsyncMutex, mpsc};

/// What IPv4 and UDP put in front of a datagram.
pub(crate) const HEADERS: u64 = 28;
/// Packets that wait for one node.
const INBOX: usize = 1_024;

#[derive(Debug, Default)]
pub(crate) struct Air {
    inboxes: BTreeMap<SocketAddr, mpsc::Sender<Inbound>>,
    /// In percent.
    pub(crate) loss: u64,
    /// What one node sends never reaches the other.
    pub(crate) cut: BTreeSet<(SocketAddr, SocketAddr)>,
    /// Who hears and says nothing.
    pub(crate) dark: BTreeSet<SocketAddr>,
    /// Bytes sent, with headers, by sender.
    pub(crate) bytes: BTreeMap<SocketAddr, u64>,
    /// Packets that were sent, while recording.
    pub(crate) tape: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
    pub(crate) largest_datagram: usize,
    pub(crate) frames: u64,
}

/// The world of a test.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) air: Arc<Mutex<Air>>,
    pub(crate) clock: VirtualClock,
    rng: Arc<SeededRng>,
    pub(crate) rt: Runtime,
}

/// Runs `test` in virtual time.
pub(crate) fn run(seed: u64, test: impl AsyncFnOnce(World)) {
    let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    rt.block_on(async {
        let (clock, rng) = (VirtualClock::new(), Arc::new(SeededRng::new(seed)));
        let rt = Runtime::on_tokio(Arc::new(clock.clone()), Arc::clone(&rng) as _);
        test(World { air: Arc::default(), clock, rng, rt }).await;
    });
}

pub(crate) fn address(n: usize) -> SocketAddr {
    (Ipv4Addr::new(10, 0, (n / 250) as u8, (n % 250) as u8 + 1), 7946).into()
}

pub(crate) fn keys() -> Keys {
    Keys::new(1, [7; 32])
}

pub(crate) fn name(n: usize) -> String {
    format!("n{n}")
}

impl World {
    /// A port at `address(n)`.
    pub(crate) fn port(&self, n: usize) -> Arc<Port> {
        let (tx, rx) = mpsc::channel(INBOX);
        let address = address(n);
        self.air.lock().unwrap().inboxes.insert(address, tx);
        Arc::new(Port { address, world: self.clone(), inbox: AsyncMutex::new(rx) })
    }

    /// Puts a packet on the wire.
    pub(crate) fn inject(&self, from: SocketAddr, to: SocketAddr, way: Way, bytes: Vec<u8>) {
        let inbox = self.air.lock().unwrap().inboxes.get(&to).cloned();
        if let Some(inbox) = inbox {
            inbox.try_send(Inbound::new(from, way, bytes)).unwrap();
        }
    }

    pub(crate) async fn sleep(&self, d: Duration) {
        self.clock.sleep(d).await;
    }

    pub(crate) async fn start<T: Replicated + Send + 'static>(
        &self,
        n: usize,
        config: Config,
        cell: Option<Arc<dyn DurableCell>>,
    ) -> Gossip<T> {
        Gossip::start(config, self.port(n), cell, &self.rt).await.unwrap()
    }

    /// `count` members that find each other at the first three, or know each other from a list.
    pub(crate) async fn fleet<T: Replicated + Send + 'static>(
        &self,
        count: usize,
        options: impl Fn(config::Builder) -> config::Builder,
    ) -> Vec<Gossip<T>> {
        let mut nodes = Vec::new();
        for n in 0..count {
            let config = Config::builder(&name(n), "test").keys(keys()).seeds((0..3.min(count)).map(address));
            nodes.push(self.start(n, options(config).build().unwrap(), None).await);
        }
        nodes
    }

    /// Waits until `done`, looking every 20 ms, for `most` at most; how long it took.
    pub(crate) async fn until(&self, most: Duration, mut done: impl FnMut() -> bool) -> Option<Duration> {
        let start = self.clock.now();
        loop {
            let passed = self.clock.now().saturating_duration_since(start);
            if done() {
                return Some(passed);
            }
            if passed > most {
                return None;
            }
            self.sleep(Duration::from_millis(20)).await;
        }
    }

    /// Bytes sent by everybody.
    pub(crate) fn bytes(&self) -> u64 {
        self.air.lock().unwrap().bytes.values().sum()
    }

    pub(crate) fn below(&self, n: usize) -> usize {
        self.rng.below(n as u64) as usize
    }
}

#[derive(Debug)]
pub(crate) struct Port {
    address: SocketAddr,
    world: World,
    inbox: AsyncMutex<mpsc::Receiver<Inbound>>,
}

impl Network for Port {
    fn address(&self) -> SocketAddr {
        self.address
    }

    fn send(&self, to: SocketAddr, way: Way, bytes: Vec<u8>) -> Sent {
        let mut air = self.world.air.lock().unwrap();
        *air.bytes.entry(self.address).or_default() += bytes.len() as u64 + HEADERS;
        match way {
            Way::Datagram => air.largest_datagram = air.largest_datagram.max(bytes.len()),
            _ => air.frames += 1,
        }
        assert!(way != Way::Datagram || bytes.len() <= MAX_DATAGRAM);
        if let Some(tape) = &mut air.tape {
            tape.push((self.address, to, bytes.clone()));
        }
        let lost = air.dark.contains(&self.address)
            || air.dark.contains(&to)
            || air.cut.contains(&(self.address, to))
            || self.world.rng.below(100) < air.loss;
        let Some(inbox) = air.inboxes.get(&to).filter(|_| !lost).cloned() else { return Sent::OnItsWay };
        let delay = Duration::from_micros(500 + self.world.rng.below(9_500));
        let (clock, from) = (self.world.clock.clone(), self.address);
        self.world.rt.spawn("packet", async move {
            clock.sleep(delay).await;
            let _ = inbox.try_send(Inbound::new(from, way, bytes));
        });
        Sent::OnItsWay
    }

    fn is_full(&self, _to: SocketAddr) -> bool {
        false
    }

    fn receive(&self) -> BoxFuture<'_, Inbound> {
        Box::pin(async move {
            match self.inbox.lock().await.recv().await {
                Some(inbound) => inbound,
                None => std::future::pending().await,
            }
        })
    }

    fn refuse(&self, _from: SocketAddr) {}
}
