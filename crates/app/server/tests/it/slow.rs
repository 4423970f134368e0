//! Slow clients, by slowhttptest: the node cuts them, and serves others meanwhile (SEC-11).

use std::io::Write as _;
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use crate::end_to_end::order;
use crate::harness::{Node, PATIENCE, Request, eventually, within};
use crate::recorder::{Recorder, reply};

/// How long an attack lasts, in seconds; longer than every limit below.
const SECONDS: &str = "60";

/// Sockets that a process holds.
fn sockets(pid: u32) -> usize {
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = open.flatten().filter_map(|f| std::fs::read_link(f.path()).ok());
    links.filter(|l| l.to_string_lossy().starts_with("socket:")).count()
}

/// Whether some process holds the end at `local` of the connection from `remote`, by their ports.
fn held(local: u16, remote: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let is = |address: &str, port: u16| address.ends_with(&format!(":{port:04X}"));
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // The ninth is the inode: zero once the process closed its end.
        fields.len() > 9 && is(fields[1], local) && is(fields[2], remote) && fields[9] != "0"
    })
}

/// Runs one attack and asks for something meanwhile: the node holds the attackers' connections at first, and has
/// got rid of them while the attack goes on.
#[track_caller]
fn all_cut(name: &str, flags: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    // Long enough for a slow attacker to have many connections at once.
    let limits = "[server]\nheader_timeout = \"3s\"\nbody_timeout = \"3s\"\nwrite_timeout = \"3s\"\n";
    std::fs::write(&file, limits).unwrap();
    let node = Node::start(&dir.path().join("data"), &["--config", file.to_str().unwrap()]);
    let before = sockets(node.id());
    let attack = || {
        let mut command = Command::new("slowhttptest");
        command.args(flags).args(["-c", "60", "-r", "60", "-l", SECONDS, "-i", "1", "-p", "2", "-u"]);
        command.arg(format!("http://{}/openapi.json", node.address)).env("TERM", "dumb");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Attack)
    };
    let Ok(mut attacker) = attack() else {
        eprintln!("NOT COVERED slowhttptest: {name}");
        return;
    };
    let (mut peak, mut cut, mut best) = (0, usize::MAX, (0, usize::MAX));
    let seen = within(|| {
        // Again where this test itself was held up for so long that it was cut as well.
        let version = || Request::new("GET", "/version").try_to(&node.address).filter(|a| a.status == 200);
        eventually(&format!("{name}: others are served"), version);
        let held = sockets(node.id()).saturating_sub(before);
        if attacker.0.try_wait().unwrap().is_some() {
            // It ends by itself when all its connections are closed, which may have been between two looks.
            (peak, cut, attacker) = (0, usize::MAX, attack().unwrap());
            return None;
        }
        if held > peak {
            // The fewest that were held later, while the attack went on.
            (peak, cut) = (held, held);
        }
        cut = cut.min(held);
        best = best.max((peak, cut));
        (peak >= 20 && cut <= 5).then_some(())
    });
    assert!(
        seen.is_some(),
        "{name}: of {} connections at once never were fewer than {} held",
        best.0,
        best.1
    );
}

/// An attack; killed by its id when dropped.
struct Attack(Child);

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn sec_11_slow_headers_are_cut() {
    all_cut("slow headers", &["-H"]);
}

#[test]
fn sec_11_slow_bodies_are_cut() {
    all_cut("slow bodies", &["-B", "-s", "4096", "-t", "POST"]);
}

#[test]
fn sec_11_slow_readers_are_cut() {
    all_cut("slow readers", &["-X", "-w", "1", "-y", "1", "-n", "5", "-z", "1", "-k", "3"]);
}

/// A client that asks for more than its buffers take, and reads none of it.
#[test]
fn sec_08_a_reader_that_takes_nothing_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let large = "x".repeat(200 * 1024);
    let body = format!("\"{large}\"");
    let service = Recorder::start(move |_| reply("200 OK", "", &body));
    let file = dir.path().join("m.toml");
    let text =
        format!("[server]\nwrite_timeout = \"500ms\"\n[participants]\nallow = [\"{}\"]\n", service.origin);
    std::fs::write(&file, text).unwrap();
    let node = Node::start(&dir.path().join("data"), &["--config", file.to_str().unwrap()]);
    let put = Request::new("PUT", "/v1/definitions/order").header("content-type", "application/toml");
    assert_eq!(node.send(&put.body(order(&service.origin))).status, 201);
    let post = Request::new("POST", "/v1/sagas").header("idempotency-key", "k");
    let started = node.send(&post.body(format!("{{\"definition\":\"order\",\"input\":\"{large}\"}}")));
    let uid = started.json()["uid"].as_str().unwrap().to_owned();
    assert_eq!(node.settled(&uid)["status"], "completed");
    // Many answers on one connection: more than every buffer on the way.
    let mut stuck = TcpStream::connect(&node.address).unwrap();
    let one = format!("GET /v1/sagas/{uid}/export HTTP/1.1\r\nhost: {}\r\n\r\n", node.address);
    stuck.write_all(one.repeat(20).as_bytes()).unwrap();
    let ours = stuck.local_addr().unwrap().port();
    let theirs = node.address.rsplit(':').next().unwrap().parse().unwrap();
    // Its answer begins to come. It is looked at and not taken, so that this is seen also after the cut.
    stuck.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(stuck.peek(&mut [0; 1]).unwrap(), 1, "it is taken up");
    eventually("it is cut", || (!held(theirs, ours)).then_some(()));
    assert!(!node.log().contains("panic"), "{}", node.log());
}
