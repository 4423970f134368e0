//! Gossip over real sockets of loopback: how long until all nodes of a fresh fleet know all, and one change later.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_consistency::crdt::AwSet;
use mainstay_gossip::{Config, Gossip, Keys, Network as _, Sockets};

use crate::report::Section;

/// What both ours and the rival use, and the rival's fan-out.
const TICK: Duration = Duration::from_millis(300);
/// A fleet that takes longer has not converged.
const LIMIT: Duration = Duration::from_secs(30);

/// How long both took.
struct Took {
    cold: Duration,
    change: Duration,
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

async fn ours(count: usize) -> anyhow::Result<Took> {
    let rt = Runtime::system();
    let keys = Keys::new(1, [7; 32]);
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
        nodes.push(Gossip::start(config, Arc::new(net), None, &rt).await?);
    }
    for (n, node) in nodes.iter().enumerate() {
        node.change(|set, actor| set.add(actor, format!("n{n}")))?;
    }
    let has = |wanted: usize| nodes.iter().all(|node| node.read(|set| set.elements().count() == wanted));
    let cold = until("ours, cold", || has(count)).await?;
    nodes[0].change(|set, actor| set.add(actor, "late".to_owned()))?;
    let change = until("ours, a change", || has(count + 1)).await?;
    for node in nodes {
        node.shutdown().await?;
    }
    Ok(Took { cold, change })
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
    Ok(Took { cold, change })
}

fn rows_of(what: &str, count: usize, took: &[Took]) -> Vec<String> {
    let middle = |of: fn(&Took) -> Duration| {
        let mut all: Vec<f64> = took.iter().map(|t| of(t).as_secs_f64()).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let (cold, change) = (middle(|t| t.cold), middle(|t| t.change));
    let tick = TICK.as_secs_f64();
    vec![
        what.to_owned(),
        count.to_string(),
        format!("{cold:.2}"),
        format!("{:.1}", cold / tick),
        format!("{change:.2}"),
        format!("{:.1}", change / tick),
    ]
}

pub(super) fn run(smoke: bool, section: &mut Section) -> anyhow::Result<()> {
    let (sizes, repeat): (&[usize], _) = if smoke { (&[5], 1) } else { (&[10, 40, 100], 3) };
    let rt = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut rows = Vec::new();
    for &count in sizes {
        let mut took = Vec::new();
        for _ in 0..repeat {
            took.push(rt.block_on(ours(count))?);
        }
        rows.push(rows_of("mainstay", count, &took));
        #[cfg(feature = "rivals")]
        {
            let mut took = Vec::new();
            for _ in 0..repeat {
                took.push(rt.block_on(theirs(count))?);
            }
            rows.push(rows_of("chitchat 0.13.0", count, &took));
        }
    }
    section.note(
        "A fleet on sockets of loopback, a tick of 300 ms, one seed, every node in this process; the middle of three runs. \
         Cold: from the start of the last node until every node knows a value of each. A change: from one node to all.",
    );
    section.table(&["gossip", "nodes", "cold, s", "ticks", "a change, s", "ticks"], &rows);
    Ok(())
}
