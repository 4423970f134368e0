//! Leases bound to a connection: the holder's machine says by FIN or RST that it is gone.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use mainstay_clock::{Clock as _, Instant, SystemClock};
use serde_json::json;

use crate::harness::{Node, Request, line};

fn ask(path: &str, owner: &str) -> Request {
    let body = json!({"owner": owner, "ttl": "1h"}).to_string();
    Request::new("PUT", path).header("content-type", "application/json").body(body)
}

/// A process that holds a lease for as long as it lives: a shell that reads the stream.
struct Holder(Child);

impl Holder {
    fn start(node: &Node, path: &str, owner: &str) -> Self {
        let (host, port) = node.address.rsplit_once(':').unwrap();
        let request = String::from_utf8(ask(path, owner).bytes(&node.address)).unwrap();
        let script = format!("exec 3<>/dev/tcp/{host}/{port}; printf %s \"$REQUEST\" >&3; exec cat <&3");
        let mut command = Command::new("bash");
        command.args(["-c", &script]).env("REQUEST", request).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = Self(command.spawn().unwrap());
        let (mut out, mut text) = (holder.0.stdout.take().unwrap(), String::new());
        while !text.contains("event: held") {
            let said;
            (said, out) = line("the lease is held", out);
            assert!(!said.is_empty(), "not held: {text}");
            text.push_str(&said);
        }
        holder.0.stdout = Some(out);
        holder
    }

    /// SIGKILL; when it was sent.
    fn kill(mut self) -> Instant {
        let at = SystemClock::new().now();
        self.0.kill().unwrap();
        at
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Until somebody stands in line.
fn waits(node: &Node) {
    crate::harness::eventually("one waits", || {
        (node.get("/v1/locks/x").json()["waiting"] == 1).then_some(())
    });
}

/// The next holder, who waits longer than any renewal and far less than the ttl; when it was told.
fn next(node: &Node) -> std::thread::JoinHandle<Instant> {
    let (address, request) = (node.address.clone(), ask("/v1/locks/x?wait=50s", "next"));
    std::thread::spawn(move || {
        let answer = request.to(&address);
        let at = SystemClock::new().now();
        assert_eq!(answer.status, 200, "{}", answer.text());
        let token = answer.header("etag").unwrap().to_owned();
        assert_eq!(Request::new("DELETE", "/v1/locks/x").header("if-match", &token).to(&address).status, 200);
        at
    })
}

#[test]
fn a_killed_holder_is_followed_at_once_though_its_lease_lasts_an_hour() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let mut took: Vec<Duration> = Vec::new();
    for round in 0..20 {
        let holder = Holder::start(&node, "/v1/locks/x?bind=connection", &format!("holder-{round}"));
        let next = next(&node);
        waits(&node);
        let killed = holder.kill();
        took.push(next.join().unwrap().saturating_duration_since(killed));
    }
    took.sort();
    println!("kill -9 of a bound holder to the next one: p50 {:?}, max {:?}", took[10], took[19]);
}

#[test]
fn a_reset_connection_frees_its_lease_too_and_a_holder_that_reads_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let mut stream = TcpStream::connect(&node.address).unwrap();
    stream.write_all(&ask("/v1/locks/x?bind=connection", "reset").bytes(&node.address)).unwrap();
    crate::harness::eventually("it is held", || {
        (node.get("/v1/locks/x").json()["holders"][0]["owner"] == "reset").then_some(())
    });
    let next = next(&node);
    waits(&node);
    // Closed with unread bytes in its buffer, a socket resets the connection.
    drop(stream);
    next.join().unwrap();
    // A stream that is read holds on, also over other requests of its holder.
    let holder = Holder::start(&node, "/v1/locks/x?bind=connection", "reads");
    for _ in 0..20 {
        let shown = node.get("/v1/locks/x");
        assert_eq!(shown.json()["holders"][0]["owner"], "reads");
        let token = shown.header("etag").unwrap().to_owned();
        assert_eq!(node.send(&Request::new("PATCH", "/v1/locks/x").header("if-match", &token)).status, 200);
    }
    drop(holder);
}
