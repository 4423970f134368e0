//! A fleet on chitchat: over loopback, in real time, every node in this process. Says what the suite `gossip` reads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chitchat::transport::{RecvOutcome, SendOutcome, Socket, Transport, UdpTransport};
use chitchat::{
    ChitchatConfig, ChitchatEnvelope, ChitchatHandle, ChitchatId, FailureDetectorConfig, ProtocolVersion,
    spawn_chitchat,
};

/// Counts what is sent: datagrams and bytes.
#[derive(Clone, Default)]
struct Counting(Arc<[AtomicU64; 2]>);

struct Counted(Box<dyn Socket>, Counting);

#[async_trait]
impl Transport for Counting {
    async fn open(&self, at: SocketAddr) -> Result<Box<dyn Socket>, Error> {
        Ok(Box::new(Counted(UdpTransport.open(at).await?, self.clone())))
    }
}

/// The error type of their trait.
type Error = anyhow::Error;

#[async_trait]
impl Socket for Counted {
    fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.0.local_addr()
    }

    async fn send(&mut self, to: SocketAddr, envelope: ChitchatEnvelope) -> Result<SendOutcome, Error> {
        let sent = self.0.send(to, envelope).await?;
        self.1.0[0].fetch_add(1, Ordering::Relaxed);
        self.1.0[1].fetch_add(sent.num_bytes_sent as u64, Ordering::Relaxed);
        Ok(sent)
    }

    async fn recv(&mut self) -> Result<RecvOutcome, Error> {
        self.0.recv().await
    }
}

async fn until(handles: &[ChitchatHandle], holds: impl Fn(&chitchat::Chitchat) -> bool) -> Duration {
    let began = Instant::now();
    loop {
        let mut all = true;
        for handle in handles {
            all &= handle.with_chitchat(|node| holds(node)).await;
        }
        if all {
            return began.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let number = |at| std::env::args().nth(at).and_then(|word| word.parse().ok());
    let (Some(count), Some(tick), Some(idle), Some(version)) = (number(1), number(2), number(3), number(4)) else {
        anyhow::bail!("usage: rival-chitchat NODES TICK_MS IDLE_S VERSION");
    };
    let (count, tick) = (count as usize, Duration::from_millis(tick));
    let counting = Counting::default();
    // Ports of our own choice: theirs must be known before a socket is open.
    let mut addresses: Vec<SocketAddr> = Vec::new();
    let mut held = Vec::new();
    for _ in 0..count {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
        addresses.push(socket.local_addr()?);
        held.push(socket);
    }
    drop(held);
    let mut handles = Vec::new();
    for (n, address) in addresses.iter().enumerate() {
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(format!("n{n}"), 0, *address),
            cluster_id: "bench".to_owned(),
            gossip_interval: tick,
            listen_addr: *address,
            seed_nodes: addresses.iter().take(3).map(SocketAddr::to_string).collect(),
            failure_detector_config: FailureDetectorConfig::default(),
            marked_for_deletion_grace_period: Duration::from_secs(3_600),
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: if version == 0 { ProtocolVersion::V0 } else { ProtocolVersion::V1 },
        };
        handles.push(spawn_chitchat(config, vec![("own".to_owned(), "1".to_owned())], &counting).await?);
    }
    let formed = until(&handles, |node| {
        node.live_nodes().count() + 1 >= count
            && node.node_states().values().filter(|state| state.get("own").is_some()).count() == count
    });
    eprintln!("formed in {:?}", formed.await);
    let mut micros = Vec::new();
    for value in 0..11 {
        let (at, value) = (value * 7 % count, value.to_string());
        handles[at].with_chitchat(|node| node.self_node_state().set("value", &value)).await;
        let id = handles[at].chitchat_id().clone();
        let has = |node: &chitchat::Chitchat| {
            node.node_state(&id).is_some_and(|state| state.get("value") == Some(value.as_str()))
        };
        micros.push(until(&handles, has).await.as_micros());
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    let read = || [0, 1].map(|at: usize| counting.0[at].load(Ordering::Relaxed));
    let before = read();
    tokio::time::sleep(Duration::from_secs(idle)).await;
    let after = read();
    println!("{{\"micros\":{micros:?},\"packets\":{},\"bytes\":{}}}", after[0] - before[0], after[1] - before[1]);
    Ok(())
}
