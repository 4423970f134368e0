//! The TCP proxy before a service that echoes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_chaos::proxy::{TcpMode, TcpProxy};
use mainstay_clock::Runtime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// Echoes, and tells what arrived.
async fn echo() -> (SocketAddr, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (arrived, seen) = mpsc::channel(100);
    let runtime = Runtime::system();
    runtime.clone().spawn("echo", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let arrived = arrived.clone();
            runtime.spawn("echo", async move {
                let mut bytes = [0; 1024];
                while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                    let _ = arrived.send(bytes[..n].to_vec()).await;
                    let _ = stream.write_all(&bytes[..n]).await;
                }
            });
        }
    });
    (address, seen)
}

async fn pair() -> (TcpProxy, TcpStream, mpsc::Receiver<Vec<u8>>) {
    let (address, seen) = echo().await;
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(address));
    let stream = TcpStream::connect(proxy.address()).await.unwrap();
    (proxy, stream, seen)
}

async fn read(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = vec![0; 64];
    let n = stream.read(&mut bytes).await.unwrap_or(0);
    bytes.truncate(n);
    bytes
}

#[tokio::test]
async fn bytes_pass_late_and_slowly_but_whole() {
    let (proxy, mut stream, _seen) = pair().await;
    let short = Duration::from_millis(1);
    for mode in [TcpMode::Pass, TcpMode::Latency { least: short, jitter: short }, TcpMode::Rate(100_000)] {
        proxy.set_mode(mode);
        stream.write_all(b"ping").await.unwrap();
        assert_eq!(read(&mut stream).await, b"ping", "{mode:?}");
    }
}

#[tokio::test]
async fn a_blackhole_holds_bytes_back_until_it_ends() {
    let (proxy, mut stream, mut seen) = pair().await;
    proxy.set_mode(TcpMode::Blackhole);
    stream.write_all(b"held").await.unwrap();
    let runtime = Runtime::system();
    let early = tokio::select! {
        biased;
        early = seen.recv() => early,
        // Far longer than loopback takes: a proxy that let it through would show.
        () = runtime.clock().sleep(Duration::from_millis(30)) => None,
    };
    assert_eq!(early, None);
    proxy.set_mode(TcpMode::Pass);
    assert_eq!(seen.recv().await.unwrap(), b"held");
    assert_eq!(read(&mut stream).await, b"held");
}

#[tokio::test]
async fn lost_replies_leave_the_effect() {
    let (proxy, mut stream, mut seen) = pair().await;
    proxy.set_mode(TcpMode::RepliesLost);
    stream.write_all(b"do it").await.unwrap();
    assert_eq!(seen.recv().await.unwrap(), b"do it");
    proxy.cut();
    assert_eq!(read(&mut stream).await, b"", "cut without a reply");
}

#[tokio::test]
async fn a_service_that_is_away_closes_at_once() {
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
    assert_eq!(read(&mut stream).await, b"");
}

/// A service that sends without a pause; what it sends changes with `marked`.
async fn chatter(marked: Arc<AtomicBool>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Runtime::system().spawn("chatter", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            while stream.write_all(if marked.load(Ordering::SeqCst) { b"!" } else { b"." }).await.is_ok() {}
        }
    });
    address
}

/// What is sent after a call has returned must not arrive: tests lose writes that way, and say that they are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_that_is_sent_after_a_cut_arrives() {
    let marked = Arc::new(AtomicBool::new(false));
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(chatter(Arc::clone(&marked)).await));
    for round in 0..300 {
        marked.store(false, Ordering::SeqCst);
        let mut stream = TcpStream::connect(proxy.address()).await.unwrap();
        assert_eq!(read(&mut stream).await.first(), Some(&b'.'));
        let (tell, told) = oneshot::channel();
        Runtime::system().spawn("reader", async move {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            let _ = tell.send(all);
        });
        if round % 2 == 0 {
            proxy.cut();
            marked.store(true, Ordering::SeqCst);
        } else {
            proxy.set_mode(TcpMode::RepliesLost);
            marked.store(true, Ordering::SeqCst);
            proxy.cut();
            proxy.set_mode(TcpMode::Pass);
        }
        let arrived = told.await.unwrap();
        assert!(!arrived.contains(&b'!'), "round {round}: {} bytes", arrived.len());
    }
}
