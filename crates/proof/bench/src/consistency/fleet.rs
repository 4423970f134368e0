//! Gossip over real sockets of loopback: how long until all nodes of a fresh fleet know all, and one change later; what
//! they send when nothing happens, and what becomes of a change when half of all datagrams are lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_consistency::crdt::AwSet;
use mainstay_gossip::{Config, Gossip, Inbound, Keys, Network, Sent, Sockets, Way};
use mainstay_store::BoxFuture;

use crate::report::Section;

/// What both ours and the rival use, and the rival's fan-out.
const TICK: Duration = Duration::from_millis(300);
/// A fleet that takes longer has not converged.
const LIMIT: Duration = Duration::from_secs(30);
/// How long a fleet is left alone before its traffic is counted: the news of its start have died down.
const SETTLE: Duration = Duration::from_secs(5);
/// And how long it is counted.
const IDLE: Duration = Duration::from_secs(5);
/// What IPv4 and UDP put in front of a datagram.
const HEADERS: u64 = 28;
/// Changes of which the middle one counts.
const CHANGES: usize = 5;

/// How long things took.
#[derive(Debug)]
struct Took {
    cold: Duration,
    /// Of several changes the middle one.
    change: Duration,
    /// Bytes per second that an idle node sends, with headers, where that was counted.
    idle: Option<u64>,
    /// The same change while half of all datagrams are lost.
    lossy: Option<Duration>,
}

/// Sockets that lose every second datagram, once they are told to.
#[derive(Debug)]
struct Lossy {
    net: Sockets,
    /// Shared by the fleet: 0 loses nothing, and else it is the state of the draws.
    draws: Arc<AtomicU64>,
}

impl Lossy {
    /// Whether the next datagram is lost (the upper bits of Weyl's sequence, mixed).
    fn loses(&self) -> bool {
        let draw = self.draws.load(Ordering::Relaxed);
        if draw == 0 {
            return false;
        }
        let draw = self.draws.fetch_add(0x9e37_79b9_7f4a_7c16, Ordering::Relaxed);
        (draw ^ (draw >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 63 == 1
    }
}

impl Network for Lossy {
    fn address(&self) -> SocketAddr {
        self.net.address()
    }

    fn send(&self, to: SocketAddr, way: Way, bytes: Vec<u8>) -> Sent {
        if way == Way::Datagram && self.loses() {
            return Sent::OnItsWay;
        }
        self.net.send(to, way, bytes)
    }

    fn is_full(&self, to: SocketAddr) -> bool {
        self.net.is_full(to)
    }

    fn receive(&self) -> BoxFuture<'_, Inbound> {
        self.net.receive()
    }

    fn refuse(&self, from: SocketAddr) {
        self.net.refuse(from);
    }
}

/// Waits until `done`, at most [`LIMIT`].
async fn until(what: &str, mut done: impl FnMut() -> bool) -> anyhow::Result<Duration> {
    let clock = SystemClock::new();
    let began = clock.now();
    loop {
        let took = clock.now().saturating_duration_since(began);
        if done() {
            return Ok(took);
        }
        anyhow::ensure!(took < LIMIT, "{what}: not in {LIMIT:?}");
        clock.sleep(Duration::from_millis(5)).await;
    }
}

/// The middle of several changes, each made by another node.
async fn changed(nodes: &[Gossip<AwSet<String>>], what: &str) -> anyhow::Result<Duration> {
    let mut all = Vec::new();
    for i in 0..CHANGES {
        let late = format!("{what} {i}");
        nodes[i * nodes.len() / CHANGES].change(|set, actor| set.add(actor, late.clone()))?;
        all.push(until(what, || nodes.iter().all(|node| node.read(|set| set.contains(&late)))).await?);
    }
    all.sort_unstable();
    Ok(all[CHANGES / 2])
}

/// A fleet of `count`; `whole` also counts what it sends when idle and loses half of its datagrams.
async fn ours(count: usize, whole: bool) -> anyhow::Result<Took> {
    let rt = Runtime::system();
    let keys = Keys::new(1, [7; 32]);
    let draws = Arc::new(AtomicU64::new(0));
    let mut nodes: Vec<Gossip<AwSet<String>>> = Vec::new();
    let mut seed: Option<SocketAddr> = None;
    for n in 0..count {
        let net = Sockets::bind("127.0.0.1:0".parse()?, None, &rt).await?;
        let first = *seed.get_or_insert(net.address());
        let config = Config::builder(&format!("n{n}"), "bench")
            .keys(keys.clone())
            .seeds([first])
            .tick(TICK)
            .build()?;
        let net = Lossy { net, draws: Arc::clone(&draws) };
        nodes.push(Gossip::start(config, Arc::new(net), None, &rt).await?);
    }
    for (n, node) in nodes.iter().enumerate() {
        node.change(|set, actor| set.add(actor, format!("n{n}")))?;
    }
    let has = |wanted: usize| nodes.iter().all(|node| node.read(|set| set.elements().count() == wanted));
    let cold = until("ours, cold", || has(count)).await?;
    let change = changed(&nodes, "ours, a change").await?;
    let (mut idle, mut lossy) = (None, None);
    if whole {
        let clock = SystemClock::new();
        clock.sleep(SETTLE).await;
        let sent = || -> u64 {
            nodes.iter().map(Gossip::stats).map(|stats| stats.sent_bytes + stats.sent * HEADERS).sum()
        };
        let before = sent();
        clock.sleep(IDLE).await;
        idle = Some((sent() - before) / IDLE.as_secs() / count as u64);
        draws.store(1, Ordering::Relaxed);
        lossy = Some(changed(&nodes, "ours, half lost").await?);
    }
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(Took { cold, change, idle, lossy })
}

#[cfg(feature = "rivals")]
async fn theirs(count: usize) -> anyhow::Result<Took> {
    use chitchat::transport::UdpTransport;
    use chitchat::{ChitchatConfig, ChitchatId, FailureDetectorConfig, ProtocolVersion, spawn_chitchat};

    let mut nodes = Vec::new();
    let mut seeds = Vec::new();
    for n in 0..count {
        // It takes no socket, only an address: one that is free now.
        let at = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(format!("n{n}"), 0, at),
            cluster_id: "bench".to_owned(),
            gossip_interval: TICK,
            listen_addr: at,
            seed_nodes: seeds.clone(),
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: Duration::from_secs(3600),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V1,
        };
        let first = vec![("me".to_owned(), format!("n{n}"))];
        nodes.push(spawn_chitchat(config, first, &UdpTransport).await?);
        seeds.truncate(1);
        if seeds.is_empty() {
            seeds.push(at.to_string());
        }
    }
    let all: Vec<_> = nodes.iter().map(chitchat::ChitchatHandle::chitchat).collect();
    let knows = |key: &str, wanted: usize| {
        all.iter().all(|node| {
            let Ok(node) = node.try_lock() else { return false };
            node.node_states().values().filter(|state| state.get(key).is_some()).count() == wanted
        })
    };
    let cold = until("chitchat, cold", || knows("me", count)).await?;
    nodes[0].with_chitchat(|c| c.self_node_state().set("late", "1")).await;
    let change = until("chitchat, a change", || knows("late", 1)).await?;
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(Took { cold, change, idle: None, lossy: None })
}

/// The middle of what was measured, if it was.
fn middle<T: Ord + Copy>(took: &[Took], of: impl Fn(&Took) -> Option<T>) -> Option<T> {
    let mut all: Vec<T> = took.iter().filter_map(of).collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied()
}

fn cells(what: &str, count: usize, took: &[Took]) -> Vec<String> {
    let both = |found: Option<Duration>| match found.map(|d| d.as_secs_f64()) {
        Some(seconds) => [format!("{seconds:.2}"), format!("{:.1}", seconds / TICK.as_secs_f64())],
        None => ["-", "-"].map(str::to_owned),
    };
    let idle = middle(took, |t| t.idle).map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
    let mut row = vec![what.to_owned(), count.to_string()];
    row.extend(both(middle(took, |t| Some(t.cold))));
    row.extend(both(middle(took, |t| Some(t.change))));
    row.extend(both(middle(took, |t| t.lossy)));
    row.push(idle);
    row
}

/// The goals of a hundred nodes.
fn gates(took: &[Took], section: &mut Section) {
    let rounds =
        |found: Option<Duration>| found.map_or(f64::INFINITY, |d| d.as_secs_f64() / TICK.as_secs_f64());
    let change = rounds(middle(took, |t| Some(t.change)));
    section.gate("gossip, a change to 100 nodes", "<= 3 rounds", format!("{change:.1}"), change <= 3.0);
    let idle = middle(took, |t| t.idle).unwrap_or(u64::MAX);
    section.gate("gossip, idle node of 100", "<= 10,000 bytes/s", idle.to_string(), idle <= 10_000);
}

/// Runs a fleet on threads of its own, which end with it however it ends.
fn alone(fleet: impl Future<Output = anyhow::Result<Took>>) -> anyhow::Result<Took> {
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let took = rt.block_on(fleet);
    rt.shutdown_background();
    took
}

/// A row; a fleet that did not converge is a loss that is told.
fn add(
    what: &str,
    count: usize,
    took: anyhow::Result<Vec<Took>>,
    rows: &mut Vec<Vec<String>>,
    section: &mut Section,
) {
    match took {
        Ok(took) => rows.push(cells(what, count, &took)),
        Err(error) => section.note(&format!("{what} with {count} nodes: {error}.")),
    }
}

pub(super) fn run(smoke: bool, section: &mut Section) -> anyhow::Result<()> {
    let (sizes, repeat): (&[usize], _) = if smoke { (&[5], 1) } else { (&[10, 40, 100, 500], 3) };
    let mut rows = Vec::new();
    for &count in sizes {
        let took: anyhow::Result<Vec<_>> =
            (0..repeat).map(|turn| alone(ours(count, !smoke && turn == 0))).collect();
        if count == 100 {
            gates(took.as_deref().unwrap_or_default(), section);
        }
        anyhow::ensure!(!smoke || took.is_ok(), "a fleet of {count}: {took:?}");
        add("mainstay", count, took, &mut rows, section);
        #[cfg(feature = "rivals")]
        add(
            "chitchat 0.13.0",
            count,
            (0..repeat).map(|_| alone(theirs(count))).collect(),
            &mut rows,
            section,
        );
    }
    section.note(
        "A fleet on sockets of loopback, a tick of 300 ms, one seed, every node in this process; the middle of three runs. \
         Cold: from the start of the last node until every node knows a value of each. A change: from one node to all, the \
         middle of five. Half lost: the same while every second datagram is dropped at random, once. Idle: bytes per second \
         that a node sends when nothing happens, with the headers of UDP and IP, once.",
    );
    let head = [
        "gossip",
        "nodes",
        "cold, s",
        "ticks",
        "a change, s",
        "ticks",
        "half lost, s",
        "ticks",
        "idle, bytes/s",
    ];
    section.table(&head, &rows);
    Ok(())
}
