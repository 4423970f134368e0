//! Limits and problems of the HTTP edge.

use std::io::{Read, Write};
use std::net::TcpStream;

use crate::harness::{Node, PATIENCE, Request, eventually, run, stderr};

#[test]
fn if_a05_health_and_version_answer_and_unknown_paths_are_problems() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    assert_eq!(node.get("/livez").status, 200);
    assert_eq!(node.get("/readyz").status, 200);
    assert_eq!(node.get("/version").json()["auth"], "none (loopback)");
    let missing = node.get("/nothing?x=1");
    assert_eq!((missing.status, missing.problem().as_str()), (404, "MS0107"));
    let wrong = node.send(&Request::new("DELETE", "/version"));
    assert_eq!((wrong.status, wrong.problem().as_str()), (405, "MS0108"));
    assert!(wrong.header("allow").unwrap().contains("GET"));
    let page = node.get("/problems/MS0107");
    assert!(page.text().starts_with("# MS0107"), "{}", page.text());
}

#[test]
fn if_a07_oversized_body_header_and_url_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let url = node.get(&format!("/livez?{}", "x".repeat(9_000)));
    assert_eq!((url.status, url.problem().as_str()), (414, "MS0110"));
    let headers = node.send(&Request::new("GET", "/livez").header("x-a", &"x".repeat(17_000)));
    assert_eq!((headers.status, headers.problem().as_str()), (431, "MS0111"));
    let huge = node.send(&Request::new("GET", "/livez").header("x-a", &"x".repeat(100_000)));
    assert_eq!(huge.status, 431, "beyond the read buffer the connection answers by itself");
    let body = node.send(&Request::new("POST", "/livez").body(vec![b'x'; 1024 * 1024 + 1]));
    assert_eq!((body.status, body.problem().as_str()), (413, "MS0109"));
    // Without an announced length the bytes themselves are counted.
    let mut stream = TcpStream::connect(&node.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head =
        format!("POST /livez HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked\r\n\r\n", node.address);
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 64 * 1024, "x".repeat(64 * 1024));
    for _ in 0..32 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[test]
fn if_h08_a_trace_is_taken_over_and_a_malformed_one_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{trace}-00f067aa0ba902b7-01");
    let answer = node.send(&Request::new("GET", "/nothing").header("traceparent", &given));
    assert_eq!(answer.json()["trace_id"], trace);
    let answer = node.send(&Request::new("GET", "/nothing").header("traceparent", "garbage"));
    assert_eq!(answer.problem(), "MS0107");
    assert_ne!(answer.json()["trace_id"], trace);
}

/// Problems said "see the log for the trace id", and the lines of the log had none.
#[test]
fn if_h08_what_failed_is_in_the_log_under_the_trace_of_its_request() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let db = rusqlite::Connection::open(dir.path().join("mainstay.db")).unwrap();
    db.busy_timeout(PATIENCE).unwrap();
    db.execute_batch("alter table audit rename to gone").unwrap();
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let given = format!("00-{trace}-00f067aa0ba902b7-01");
    let failed = node.send(&Request::new("GET", "/v1/audit").header("traceparent", &given));
    assert_eq!((failed.status, failed.json()["trace_id"].as_str()), (503, Some(trace)), "{}", failed.text());
    let found = || node.log().lines().find(|l| l.contains("the journal failed")).map(str::to_owned);
    let line = eventually("the failure is logged", found);
    assert!(line.contains(trace) && line.contains("no such table"), "{line}");
}

#[test]
fn a_stop_by_signal_is_quick_also_with_a_silent_client() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[]);
    let _silent = TcpStream::connect(&node.address).unwrap();
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_port_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let output = run(&["serve", "--data", dir.path().to_str().unwrap(), "--listen", &address]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("MS0006") && stderr(&output).contains(&address), "{}", stderr(&output));
}

#[test]
fn sec_12_silent_and_slow_clients_are_cut_while_others_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, "[server]\nheader_timeout = \"300ms\"\n").unwrap();
    let node = Node::start(dir.path(), &["--config", file.to_str().unwrap()]);
    let silent = TcpStream::connect(&node.address).unwrap();
    let mut slow = TcpStream::connect(&node.address).unwrap();
    slow.write_all(b"GET /livez HTTP/1.1\r\nhost: 127.0.0.1\r\n").unwrap();
    // Whoever is held up for so long between its connection and its header is cut, too: on a slow machine this test.
    let livez = || Request::new("GET", "/livez").try_to(&node.address).filter(|answer| answer.status == 200);
    eventually("others are served", livez);
    for (name, mut stream) in [("silent", silent), ("slow", slow)] {
        stream.set_nonblocking(true).unwrap();
        eventually(name, || {
            let _ = stream.write(b"x");
            match stream.read(&mut [0; 512]) {
                Ok(0) => Some(()),
                Err(e) if e.kind() != std::io::ErrorKind::WouldBlock => Some(()),
                _ => None,
            }
        });
    }
    eventually("others are served", livez);
}

#[test]
fn sec_08_a_slow_body_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, "[server]\nbody_timeout = \"200ms\"\n").unwrap();
    let node = Node::start(dir.path(), &["--config", file.to_str().unwrap()]);
    let mut stream = TcpStream::connect(&node.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("POST /livez HTTP/1.1\r\nhost: {}\r\ncontent-length: 10\r\n\r\nab", node.address);
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[test]
fn sec_08_a_body_that_trickles_is_cut_long_before_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, "[server]\nbody_timeout = \"1h\"\n").unwrap();
    let node = Node::start(dir.path(), &["--config", file.to_str().unwrap()]);
    let mut stream = TcpStream::connect(&node.address).unwrap();
    let head = format!("POST /livez HTTP/1.1\r\nhost: {}\r\ncontent-length: 100000\r\n\r\n", node.address);
    stream.write_all(head.as_bytes()).unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut answer = [0; 12];
    eventually("it is cut for its pace", || {
        // A byte with each look: never silent, and never fast enough.
        let _ = stream.write(b"x");
        matches!(stream.read(&mut answer), Ok(12)).then_some(())
    });
    assert_eq!(&answer, b"HTTP/1.1 408");
}

/// A body may be neither longer nor deeper than what is read, and what is refused leaves the node as it was.
#[test]
fn sec_09_bodies_are_bounded_in_size_and_depth() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let mib = 1024 * 1024;
    let start = |body: Vec<u8>| {
        let request = Request::new("POST", "/v1/sagas").header("idempotency-key", "k");
        node.send(&request.header("content-type", "application/json").body(body))
    };
    let longest = start([b"{\"definition\":\"none\"", vec![b' '; mib - 22].as_slice(), b"}"].concat());
    assert_eq!((longest.status, longest.problem().as_str()), (422, "MS0121"), "as long as may be");
    let longer = start(vec![b' '; mib + 1]);
    assert_eq!((longer.status, longer.problem().as_str()), (413, "MS0109"));
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        for depth in [200, 100_000] {
            let nested = format!("{}1{}", open.repeat(depth), close.repeat(depth));
            let deep = start(format!("{{\"definition\":\"none\",\"input\":{nested}}}").into_bytes());
            assert_eq!(deep.status, 400, "{open} {depth}: {}", deep.text());
        }
    }
    let toml = format!("name = \"x\"\nversion = 1\nlabels = {}{}", "[".repeat(50_000), "]".repeat(50_000));
    let put = Request::new("PUT", "/v1/definitions/x").header("content-type", "application/toml");
    assert_eq!(node.send(&put.body(toml)).status, 422);
    assert_eq!(node.get("/readyz").status, 200);
}

#[test]
fn sec_06_connections_of_one_address_are_capped() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, "[server]\nmax_connections_per_ip = 2\n").unwrap();
    let node = Node::start(dir.path(), &["--config", file.to_str().unwrap()]);
    let held = [TcpStream::connect(&node.address).unwrap(), TcpStream::connect(&node.address).unwrap()];
    let mut third = TcpStream::connect(&node.address).unwrap();
    third.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(third.read(&mut [0; 1]), Ok(0) | Err(_)), "the third is closed at once");
    drop(held);
    eventually("places are given back", || Request::new("GET", "/livez").try_to(&node.address));
}

#[test]
fn a_data_folder_in_use_is_refused_and_free_again_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[]);
    let output = run(&["serve", "--data", dir.path().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("MS0010"), "{}", stderr(&output));
    assert_eq!(node.stop(), Some(0));
    Node::start(dir.path(), &[]);
}

#[test]
fn bad_definitions_are_refused_at_start_with_every_problem() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("definitions");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("x.toml"), "name = \"x\"\nversion = 1\nstpes = []\n").unwrap();
    let data = dir.path().join("data");
    let folder = folder.to_str().unwrap();
    let args =
        ["serve", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--definitions", folder];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("MS0011") && stderr(&output).contains("stpes"), "{}", stderr(&output));
}

/// Nobody has to say who they are to send a body slowly.
#[test]
fn sec_11_slow_bodies_keep_nobody_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, "[server]\nmax_in_flight = 1\n").unwrap();
    let node = Node::start(dir.path(), &["--config", file.to_str().unwrap()]);
    let head =
        format!("POST /console/login HTTP/1.1\r\nhost: {}\r\ncontent-length: 10\r\n\r\nab", node.address);
    let mut slow = Vec::new();
    for _ in 0..20 {
        let mut stream = TcpStream::connect(&node.address).unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        slow.push(stream);
        assert_eq!(node.get("/version").status, 200);
    }
}

#[test]
fn a_stop_ends_event_streams_and_a_hangup_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = Node::start(dir.path(), &[]);
    let mut stream = TcpStream::connect(&node.address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&Request::new("GET", "/v1/events").bytes(&node.address)).unwrap();
    let mut text = String::new();
    while !text.contains("retry: 1000") {
        let mut chunk = [0; 512];
        let n = stream.read(&mut chunk).unwrap();
        assert!(n > 0, "{text}");
        text.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    assert!(text.contains("text/event-stream"), "{text}");
    let pid = rustix::process::Pid::from_raw(i32::try_from(node.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
    node.says("configuration reloaded");
    assert_eq!(node.get("/readyz").status, 200);
    assert_eq!(node.stop(), Some(0));
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
}
