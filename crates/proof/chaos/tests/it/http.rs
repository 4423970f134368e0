//! The HTTP proxy before a service that counts.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_chaos::proxy::{Fault, Forced, HttpFaults, HttpProxy};
use mainstay_clock::Runtime;

/// A service that counts requests and echoes the body.
fn service() -> (SocketAddr, Arc<AtomicU64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&seen);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let text = request(&mut stream);
            assert!(text.starts_with("POST /do?x=1 HTTP/1.1\r\n"), "{text}");
            assert!(text.contains("idempotency-key: \"k\""), "{text}");
            count.fetch_add(1, Ordering::SeqCst);
            let body = text.split("\r\n\r\n").nth(1).unwrap_or("").to_owned();
            let _ = write!(
                stream,
                "HTTP/1.1 201 Created\r\nx-own: yes\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
        }
    });
    (address, seen)
}

/// One request with all of its body, however many pieces it comes in.
fn request(stream: &mut TcpStream) -> String {
    let (mut all, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&all).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length =
                head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text;
            }
        }
        match stream.read(&mut bytes) {
            Ok(n @ 1..) => all.extend_from_slice(&bytes[..n]),
            _ => return text,
        }
    }
}

/// Everything that comes back; empty when the connection was cut.
async fn ask(proxy: SocketAddr, body: &'static str) -> String {
    let call = move || {
        let mut stream = TcpStream::connect(proxy).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let head = format!(
            "POST /do?x=1 HTTP/1.1\r\nhost: a\r\nidempotency-key: \"k\"\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    };
    tokio::task::spawn_blocking(call).await.unwrap()
}

/// A proxy whose every request meets one fault.
async fn proxy(faults: HttpFaults) -> (HttpProxy, Arc<AtomicU64>) {
    let (address, seen) = service();
    let proxy = HttpProxy::bind(Runtime::system(), 7, faults).await.unwrap();
    proxy.set_upstream(Some(address));
    (proxy, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_fault_passes_unchanged() {
    let (proxy, seen) = proxy(HttpFaults::none()).await;
    let reply = ask(proxy.address(), "hello").await;
    assert!(
        reply.starts_with("HTTP/1.1 201") && reply.contains("x-own: yes") && reply.ends_with("hello"),
        "{reply}"
    );
    assert_eq!((seen.load(Ordering::SeqCst), proxy.counts().requests, proxy.log().len()), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_does_what_its_name_says() {
    let all = HttpFaults::builder();
    let cases = [
        (all.clone().drop(1.0), "drop", 0, false),
        (all.clone().lost(1.0), "lost", 1, false),
        (all.clone().duplicate(1.0), "duplicate", 2, true),
        (all.clone().delay(1.0, Duration::from_millis(1)..=Duration::from_millis(2)), "delay", 1, true),
    ];
    for (faults, name, delivered, answered) in cases {
        let (proxy, seen) = proxy(faults.build().unwrap()).await;
        let reply = ask(proxy.address(), "x").await;
        assert_eq!(
            (seen.load(Ordering::SeqCst), reply.starts_with("HTTP/1.1 201")),
            (delivered, answered),
            "{name}"
        );
        assert_eq!(proxy.log()[0].fault.name(), name);
        assert_eq!(proxy.log()[0].key.as_deref(), Some("\"k\""));
    }
    let (proxy, seen) = proxy(all.error(1.0).build().unwrap()).await;
    assert!(ask(proxy.address(), "x").await.starts_with("HTTP/1.1 500"));
    assert_eq!((seen.load(Ordering::SeqCst), proxy.counts().errors), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_fault_waits_until_it_can_happen() {
    let (proxy, seen) = proxy(HttpFaults::none()).await;
    let (address, counted) = service();
    proxy.force(Forced::new(Fault::DuplicateLost, |path, body| path == "/do" && body == b"this"));
    proxy.set_upstream(None);
    assert_eq!(ask(proxy.address(), "this").await, "", "the service is away");
    assert_eq!(proxy.still_armed(), 1);
    proxy.set_upstream(Some(address));
    assert!(ask(proxy.address(), "other").await.starts_with("HTTP/1.1 201"));
    assert_eq!(ask(proxy.address(), "this").await, "");
    assert_eq!((counted.load(Ordering::SeqCst), seen.load(Ordering::SeqCst), proxy.still_armed()), (3, 0, 0));
    assert!(ask(proxy.address(), "this").await.starts_with("HTTP/1.1 201"), "once only");
}

#[test]
fn a_seed_repeats_its_schedule_and_the_shares_hold() {
    let faults = HttpFaults::builder()
        .drop(0.1)
        .error(0.1)
        .lost(0.1)
        .duplicate(0.1)
        .delay(0.1, Duration::ZERO..=Duration::from_millis(9))
        .build()
        .unwrap();
    let schedule = |seed| (1..=10_000).map(|n| faults.nth(seed, n)).collect::<Vec<_>>();
    assert_eq!(schedule(3), schedule(3));
    assert_ne!(schedule(3), schedule(4));
    for fault in ["drop", "error", "lost", "duplicate", "delay"] {
        let met = schedule(3).iter().flatten().filter(|f| f.name() == fault).count();
        assert!((850..1_150).contains(&met), "{fault}: {met} of 10,000");
    }
}
