//! Real sockets on loopback, and futures that are dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_consistency::crdt::AwSet;
use mainstay_gossip::{Config, Gossip, Network as _, Presence, Sent, Sockets, Way};
use mainstay_sim::servers::free_address;
use mainstay_sim::sim::cancel_at_every_poll;
use mainstay_store::memory::MemoryCell;
use tokio::io::AsyncWriteExt as _;

use crate::Test;
use crate::net::{address, keys, name, run};

pub(crate) const TESTS: &[Test] = &[
    ("a_fresh_socket_drops_nothing", a_fresh_socket_drops_nothing),
    ("three_nodes_over_sockets_agree_and_notice_a_death", three_nodes_over_sockets_agree_and_notice_a_death),
    (
        "garbage_on_the_stream_port_is_bounded_and_harmless",
        garbage_on_the_stream_port_is_bounded_and_harmless,
    ),
    (
        "a_peer_that_does_not_read_fills_its_own_queue_only",
        a_peer_that_does_not_read_fills_its_own_queue_only,
    ),
    ("streams_that_say_nothing_keep_nobody_out", streams_that_say_nothing_keep_nobody_out),
    ("every_future_may_be_dropped_at_every_await", every_future_may_be_dropped_at_every_await),
];

/// No test takes as long on a machine that builds beside.
const LIMIT: Duration = Duration::from_secs(180);

fn block(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        // A test that hangs fails.
        tokio::select! {
            biased;
            () = test => {}
            () = SystemClock::new().sleep(LIMIT) => panic!("not over after {LIMIT:?}"),
        }
    });
}

async fn within(what: &str, mut done: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    let end = clock.now().saturating_add(Duration::from_secs(60));
    while !done() {
        assert!(clock.now() < end, "not in a minute: {what}");
        clock.sleep(Duration::from_millis(10)).await;
    }
}

async fn start<T>(name: &str, bind: SocketAddr, seed: SocketAddr) -> Gossip<T>
where
    T: mainstay_consistency::replicate::Replicated + Send + 'static,
{
    let rt = Runtime::system();
    let config = Config::builder(name, "real").keys(keys()).seeds([seed]).build().unwrap();
    let net = Sockets::bind(bind, None, &rt).await.unwrap();
    Gossip::start(config, Arc::new(net), None, &rt).await.unwrap()
}

/// The first datagram of a node asks its seeds to take it in. It was dropped, so every start took a second longer.
fn a_fresh_socket_drops_nothing() {
    block(async {
        let rt = Runtime::system();
        for _ in 0..20 {
            let net = Sockets::bind("127.0.0.1:0".parse().unwrap(), None, &rt).await.unwrap();
            assert_eq!(net.send(net.address(), Way::Datagram, vec![1]), Sent::OnItsWay);
        }
    });
}

fn three_nodes_over_sockets_agree_and_notice_a_death() {
    block(async {
        let addresses = [free_address().unwrap(), free_address().unwrap(), free_address().unwrap()];
        let mut nodes = Vec::new();
        for (n, at) in addresses.into_iter().enumerate() {
            nodes.push(start::<AwSet<String>>(&name(n), at, addresses[0]).await);
        }
        let up =
            |n: &Gossip<AwSet<String>>| n.members().iter().filter(|m| m.presence == Presence::Up).count();
        within("all see all", || nodes.iter().all(|n| up(n) == 2)).await;
        // A small one by datagram, a large one by stream.
        let large = "x".repeat(60_000);
        nodes[1].change(|set, actor| set.add(actor, "small".into())).unwrap();
        nodes[2].change(|set, actor| set.add(actor, large.clone())).unwrap();
        for node in &nodes {
            node.wait_until(|set| set.contains(&"small".to_owned()) && set.contains(&large)).await.unwrap();
        }
        // No good-bye.
        let last = nodes.pop().unwrap();
        drop(last);
        within("a death is noticed", || nodes.iter().all(|n| up(n) == 1)).await;
    });
}

fn garbage_on_the_stream_port_is_bounded_and_harmless() {
    block(async {
        let nodes = [free_address().unwrap(), free_address().unwrap()];
        let one = start::<AwSet<String>>("a", nodes[0], nodes[0]).await;
        let two = start::<AwSet<String>>("b", nodes[1], nodes[0]).await;
        // Many connections that say nothing, one with a huge length, one with a frame of nonsense.
        let mut held = Vec::new();
        for _ in 0..100 {
            held.push(tokio::net::TcpStream::connect(nodes[0]).await.unwrap());
        }
        drop(held);
        let mut huge = tokio::net::TcpStream::connect(nodes[0]).await.unwrap();
        huge.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        let before = one.stats();
        within("nonsense is counted", || {
            let fresh = std::net::TcpStream::connect(nodes[0]);
            if let Ok(mut fresh) = fresh {
                use std::io::Write as _;
                let _ = fresh.write_all(&[0, 0, 0, 3, 1, 2, 3]);
            }
            one.stats().malformed > before.malformed
        })
        .await;
        let large = "y".repeat(30_000);
        two.change(|set, actor| set.add(actor, large.clone())).unwrap();
        one.wait_until(|set| set.contains(&large)).await.unwrap();
    });
}

fn streams_that_say_nothing_keep_nobody_out() {
    block(async {
        let nodes = [free_address().unwrap(), free_address().unwrap()];
        let one = start::<AwSet<String>>("a", nodes[0], nodes[0]).await;
        let two = start::<AwSet<String>>("b", nodes[1], nodes[0]).await;
        // As many as there are places for, and nobody who has a key.
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(tokio::net::TcpStream::connect(nodes[0]).await.unwrap());
        }
        let large = "z".repeat(30_000);
        two.change(|set, actor| set.add(actor, large.clone())).unwrap();
        one.wait_until(|set| set.contains(&large)).await.unwrap();
        // Not because their time was over: only the oldest ones gave way.
        let last = held.last().unwrap().try_read(&mut [0]);
        assert_eq!(last.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    });
}

fn a_peer_that_does_not_read_fills_its_own_queue_only() {
    block(async {
        let rt = Runtime::system();
        let net = Sockets::bind("127.0.0.1:0".parse().unwrap(), None, &rt).await.unwrap();
        let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = deaf.local_addr().unwrap();
        let mut taken = 0;
        within("the queue is full", || {
            taken += u32::from(net.send(to, Way::Stream, vec![0; 60_000]) == Sent::OnItsWay);
            net.is_full(to) && net.send(to, Way::Stream, vec![0; 60_000]) == Sent::Full
        })
        .await;
        // What the system buffers, and the queue: no more than some megabytes.
        assert!(taken < 500, "{taken} frames");
        let other = Sockets::bind("127.0.0.1:0".parse().unwrap(), None, &rt).await.unwrap();
        assert!(!net.is_full(other.address()));
        assert_eq!(net.send(other.address(), Way::Stream, vec![7; 10]), Sent::OnItsWay);
        assert_eq!(other.receive().await.bytes, vec![7; 10]);
    });
}

fn every_future_may_be_dropped_at_every_await() {
    run(51, async |world| {
        let cell = MemoryCell::new();
        let config = || Config::builder("n0", "test").keys(keys()).seeds([address(1)]).build().unwrap();
        // start: whatever happened, a later one works, in a later epoch.
        let begin = || {
            let (port, cell, rt) = (world.port(0), cell.clone(), world.rt.clone());
            let config = config();
            async move {
                let node =
                    Gossip::<AwSet<u64>>::start(config, port, Some(Arc::new(cell)), &rt).await.unwrap();
                node.shutdown().await.unwrap();
            }
        };
        cancel_at_every_poll(begin, async || {}).await;
        let node = world.start::<AwSet<u64>>(0, config(), Some(Arc::new(cell.clone()))).await;
        let mut value = 0;
        let check = async || {
            value += 1;
            node.change(|set, actor| set.add(actor, value)).unwrap();
            node.flush().await.unwrap();
        };
        cancel_at_every_poll(async || node.flush().await.unwrap(), check).await;
        let version = node.changed_since(0).await.unwrap();
        let mut turn = 0;
        let waits = cancel_at_every_poll(
            || node.changed_since(version),
            async || {
                turn += 1;
                if turn == 3 {
                    node.change(|set, actor| set.add(actor, 500)).unwrap();
                }
            },
        )
        .await;
        assert!(waits.dropped >= 2);
        cancel_at_every_poll(|| node.wait_until(|set| set.contains(&500)), async || {}).await;
        // shutdown: dropped and called again, it ends.
        cancel_at_every_poll(async || node.shutdown().await.unwrap(), async || {}).await;
        node.shutdown().await.unwrap();
        let again = world.start::<AwSet<u64>>(0, config(), Some(Arc::new(cell))).await;
        assert!(again.read(|set| set.contains(&500)));
    });
}
