//! A forced fault happens, whoever waits for it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use mainstay_chaos::proxy::{Fault, Forced, HttpFaults, HttpProxy};
use mainstay_clock::{Runtime, os_boot_now};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(90);

async fn until(what: &str, mut look: impl FnMut() -> bool) {
    let end = os_boot_now().saturating_add(PATIENCE);
    while !look() {
        assert!(os_boot_now() < end, "waited too long: {what}");
        Runtime::system().clock().sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_fault_happens_also_when_its_caller_gives_up_and_is_armed_until_then() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // The service keeps each request until it is told to answer it.
    let (came, arrivals) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            came.send(stream).unwrap();
        }
    });
    let (next, mut requests) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for mut stream in arrivals {
            let mut bytes = [0; 4096];
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0);
            if next.send(stream).is_err() {
                return;
            }
        }
    });
    let answer = |mut stream: TcpStream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
    };
    let proxy = HttpProxy::bind(Runtime::system(), 7, HttpFaults::none()).await.unwrap();
    proxy.set_upstream(Some(address));
    proxy.force(Forced::new(Fault::DuplicateLost, |path, _| path == "/do"));
    let mut caller = TcpStream::connect(proxy.address()).unwrap();
    caller.write_all(b"POST /do HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").unwrap();
    let first = requests.recv().await.unwrap();
    assert_eq!((proxy.still_armed(), proxy.counts().duplicated), (1, 0), "it has not happened yet");
    drop(caller);
    answer(first);
    answer(requests.recv().await.unwrap());
    until("it has happened", || proxy.still_armed() == 0).await;
    assert_eq!((proxy.counts().duplicated, proxy.counts().lost), (1, 1));
}
