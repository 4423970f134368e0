//! Bad input of every kind: a typed error with a code, as early as can be, and nothing half-applied.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::end_to_end::{node, order, serve};
use crate::harness::{Node, Request, eventually, run, stderr, stdout};
use crate::ledger::Ledger;
use crate::recorder::{Recorder, reply};

/// One step as TOML.
fn step(name: &str, more: &str) -> String {
    format!("[[steps]]\nname = \"{name}\"\naction = \"http://127.0.0.1:9/{name}\"\n{more}\n")
}

const UNDO: &str = "undo = \"http://127.0.0.1:9/undo\"";

/// Every definition that must be refused, and what the refusal must name.
fn refused() -> Vec<(&'static str, String, &'static [&'static str])> {
    let head = "name = \"bad\"\nversion = 1\ndeadline = \"20s\"\n";
    let ok = step("a", UNDO);
    let after = |name: &str| format!("after = [\"{name}\"]\n{UNDO}");
    vec![
        (
            "cycle",
            format!("{head}{}{}", step("a", &after("b")), step("b", &after("a"))),
            &["circle", "a", "b"],
        ),
        ("unreachable", format!("{head}{}", step("a", &after("nowhere"))), &["a", "nowhere"]),
        (
            "undo after the pivot",
            format!(
                "{head}{ok}{}{}",
                step("p", "kind = \"pivot\"\nafter = [\"a\"]"),
                step("r", &format!("kind = \"retriable\"\nafter = [\"p\"]\n{UNDO}"))
            ),
            &["r", "undo"],
        ),
        (
            "compensable after the pivot",
            format!("{head}{ok}{}{}", step("p", "kind = \"pivot\"\nafter = [\"a\"]"), step("c", &after("p"))),
            &["c", "p"],
        ),
        (
            "an output nobody produces",
            format!("{head}{ok}{}", step("b", &format!("input = \"$nobody.x\"\n{UNDO}"))),
            &["b", "nobody"],
        ),
        (
            "a retriable step without an idempotent participant",
            format!(
                "{head}{ok}{}{}",
                step("p", "kind = \"pivot\"\nafter = [\"a\"]"),
                step("r", "kind = \"retriable\"\nafter = [\"p\"]\nidempotent = false")
            ),
            &["r", "idempoten"],
        ),
        ("unknown key", format!("{head}colour = \"red\"\n{ok}"), &["colour"]),
        (
            "unknown key of a step",
            format!("{head}{}", step("a", &format!("retires = 3\n{UNDO}"))),
            &["retires"],
        ),
        ("no undo", format!("{head}{}", step("a", "")), &["a", "undo"]),
        ("no deadline", format!("name = \"bad\"\nversion = 1\n{ok}"), &["deadline"]),
        (
            "two pivots",
            format!("{head}{}{}", step("p", "kind = \"pivot\""), step("q", "kind = \"pivot\"")),
            &["p", "q"],
        ),
        ("version 0", format!("{}{ok}", head.replace("= 1", "= 0")), &["version"]),
        ("no steps", format!("{head}steps = []\n"), &["steps"]),
        ("no duration", format!("{head}timeout = \"soon\"\n{ok}"), &["soon"]),
        ("zero attempts", format!("{head}retry = {{ attempts = 0 }}\n{ok}"), &["attempts"]),
        ("no address", format!("{head}{}", ok.replace("http://127.0.0.1:9/a", "ftp://x/a")), &["action"]),
        ("no TOML", "name = ".to_owned(), &["1"]),
    ]
}

#[test]
fn every_bad_definition_is_refused_with_its_reason_and_nothing_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    let node = Node::start(&dir.path().join("data"), &["--allow-participant", "http://127.0.0.1:9"]);
    for (what, text, names) in refused() {
        std::fs::write(&file, &text).unwrap();
        let checked = run(&["saga", "check", file.to_str().unwrap()]);
        assert_eq!(checked.status.code(), Some(1), "{what}: {}", stdout(&checked));
        let put = Request::new("PUT", "/v1/definitions/bad").header("content-type", "application/toml");
        let answer = node.send(&put.body(text));
        assert_eq!((answer.status, answer.problem().as_str()), (422, "MS0011"), "{what}");
        for name in names {
            assert!(stdout(&checked).contains(name), "{what}: `{name}` in {}", stdout(&checked));
            assert!(answer.text().contains(name), "{what}: `{name}` in {}", answer.text());
        }
        assert_eq!(node.get("/v1/definitions/bad").status, 404, "{what}: nothing was stored");
    }
    let fine = format!("name = \"bad\"\nversion = 1\ndeadline = \"20s\"\n{}", step("a", UNDO));
    let put = Request::new("PUT", "/v1/definitions/bad").header("content-type", "application/toml");
    assert_eq!(
        node.send(&put.clone().body(fine.clone())).status,
        201,
        "the frame of the cases is fine itself"
    );
    let forbidden = fine.replace("127.0.0.1:9", "169.254.169.254");
    let answer = node.send(&put.body(forbidden.replace("version = 1", "version = 2")));
    assert_eq!((answer.status, answer.problem().as_str()), (422, "MS0011"));
    assert_eq!(node.get("/v1/definitions/bad?version=2").status, 404);
    let audit = node.get("/v1/audit").text();
    assert!(audit.contains("169.254.169.254"), "the attempt is on record: {audit}");
}

#[test]
fn a_payload_over_the_limit_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = node(dir.path(), &ledger.origin, &order(&ledger.origin));
    let post = Request::new("POST", "/v1/sagas").header("idempotency-key", "k");
    let body = format!("{{\"definition\":\"order\",\"input\":\"{}\"}}", "x".repeat(300 * 1024));
    let answer = node.send(&post.clone().body(body));
    assert_eq!((answer.status, answer.problem().as_str()), (413, "MS0109"));
    assert_eq!(node.get("/v1/sagas").json()["items"], serde_json::json!([]));
    let answer = node.send(&post.body("{\"definition\":\"order\"}"));
    assert_eq!(answer.status, 202, "the key was not spent on the refusal");
}

/// A saga is in flight while the folder of definitions gets another graph under the same version.
#[test]
fn sg_f18_m_g7_a_definition_changed_under_a_saga_in_flight_is_refused_and_the_old_one_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    // It refuses the charge for as long as the file is not there.
    let open = dir.path().join("open");
    let gate = open.clone();
    let service = Recorder::start(move |head| match head.contains("/charge") && !gate.exists() {
        true => reply("503 Busy", "", ""),
        false => reply("200 OK", "", "{}"),
    });
    let definition = order(&service.origin).replace("attempts = 20", "attempts = 100000");
    let first = node(dir.path(), &service.origin, &definition);
    let post = Request::new("POST", "/v1/sagas").header("idempotency-key", "k");
    let uid = first.send(&post.body("{\"definition\":\"order\"}")).json()["uid"].as_str().unwrap().to_owned();
    eventually("the charge is tried", || {
        service.seen().iter().any(|(h, _)| h.contains("/charge")).then_some(())
    });
    first.kill();
    let folder = dir.path().join("definitions");
    std::fs::write(
        folder.join("it.toml"),
        definition.replace("after = [\"charge\"]", "after = [\"reserve\"]"),
    )
    .unwrap();
    let data = dir.path().join("data");
    let args = [
        "serve",
        "--data",
        data.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--definitions",
        folder.to_str().unwrap(),
        "--allow-participant",
        &service.origin,
    ];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let said = stderr(&output);
    assert!(said.contains("MS0011") && said.contains("step `ship` changed"), "{said}");
    // With the old file everything goes on.
    std::fs::write(&open, "").unwrap();
    let again = node(dir.path(), &service.origin, &definition);
    assert_eq!(again.settled(&uid)["status"], "completed");
}

#[test]
fn a_damaged_and_a_newer_database_are_refused_and_left_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut node = Node::start(&data, &[]);
    assert_eq!(node.stop(), Some(0));
    let file = data.join("mainstay.db");
    // Everything into the one file.
    let conn = rusqlite::Connection::open(&file).unwrap();
    conn.execute_batch("pragma wal_checkpoint(truncate)").unwrap();
    drop(conn);
    let good = std::fs::read(&file).unwrap();
    let start = || {
        let before = std::fs::read(&file).unwrap();
        let output = run(&["serve", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(std::fs::read(&file).unwrap() == before, "the file was touched");
        stderr(&output)
    };
    let mut torn = good.clone();
    let middle = torn.len() / 2;
    torn[middle..].fill(0xff);
    std::fs::write(&file, &torn).unwrap();
    let said = start();
    assert!(said.contains("MS0008"), "{said}");
    std::fs::write(
        &file,
        b"this is no database, but some text that is long enough to be taken for one".repeat(100),
    )
    .unwrap();
    let said = start();
    assert!(said.contains("MS0008"), "{said}");
    std::fs::write(&file, &good).unwrap();
    let conn = rusqlite::Connection::open(&file).unwrap();
    conn.pragma_update(None, "user_version", 999).unwrap();
    conn.execute_batch("pragma wal_checkpoint(truncate)").unwrap();
    drop(conn);
    let said = start();
    assert!(said.contains("MS0009"), "{said}");
    std::fs::write(&file, &good).unwrap();
    Node::start(&data, &[]);
}

/// A small file system that goes away with this value.
struct Small(tempfile::TempDir);

impl Small {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
            .arg(dir.path())
            .output()
            .is_ok_and(|o| o.status.success());
        mounted.then(|| Self(dir))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_refuses_starts_keeps_what_was_accepted_and_heals() {
    let Some(small) = Small::mount() else {
        eprintln!("NOT COVERED a full disk: mounting a file system needs root");
        return;
    };
    let ledger = Ledger::start();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("it.toml"), order(&ledger.origin)).unwrap();
    let data = small.0.path().join("data");
    let ballast = small.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1024 * 1024]).unwrap();
    let start = || {
        let folder = folder.path().to_str().unwrap();
        Node::start(&data, &["--allow-participant", &ledger.origin, "--definitions", folder])
    };
    let node = start();
    let mut accepted = Vec::new();
    let mut refusal = None;
    for n in 0..400 {
        let post = Request::new("POST", "/v1/sagas").header("idempotency-key", &format!("k{n}"));
        let body = format!("{{\"definition\":\"order\",\"input\":\"{}\"}}", "x".repeat(20_000));
        let answer = node.send(&post.body(body));
        match answer.status {
            202 => accepted.push(answer.json()["uid"].as_str().unwrap().to_owned()),
            _ => {
                refusal = Some((n, answer));
                break;
            }
        }
    }
    let (n, refused) = refusal.expect("the disk does not fill up");
    assert_eq!((refused.status, refused.problem().as_str()), (503, "MS0123"));
    assert!(
        !refused.text().contains(data.to_str().unwrap()) && !refused.text().contains("SQL"),
        "{}",
        refused.text()
    );
    assert!(!accepted.is_empty());
    assert_eq!(node.get("/livez").status, 200, "the node lives");
    for uid in &accepted {
        assert_eq!(node.get(&format!("/v1/sagas/{uid}")).status, 200, "what was accepted can be read");
    }
    std::fs::remove_file(&ballast).unwrap();
    let again = eventually("it takes starts again", || {
        let post = Request::new("POST", "/v1/sagas").header("idempotency-key", &format!("k{n}"));
        Some(node.send(&post.body("{\"definition\":\"order\"}"))).filter(|a| a.status != 503)
    });
    assert_eq!(again.status, 202, "the refused start left nothing behind: {}", again.text());
    accepted.push(again.json()["uid"].as_str().unwrap().to_owned());
    for uid in &accepted {
        let ended = eventually("every accepted saga ends", || {
            let saga = node.get(&format!("/v1/sagas/{uid}")).json();
            (saga["status"] == "completed").then_some(saga)
        });
        assert_eq!(ended["uid"], uid.as_str());
    }
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What participants answer that is no answer: each an unknown outcome or a broken contract, bounded in time and
/// memory, and never success.
#[test]
fn m_g10_a_participant_that_answers_nonsense_or_never_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let endless = |head: &str| {
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend(std::iter::repeat_n(b'x', 4 * 1024 * 1024));
        bytes
    };
    let replies: Vec<(&str, Vec<u8>)> = vec![
        ("noise", vec![0xfe; 64 * 1024]),
        ("endless-status", endless("HTTP/1.1 200 ")),
        ("endless-header", endless("HTTP/1.1 200 OK\r\nx-a: ")),
        ("endless-body", endless("HTTP/1.1 200 OK\r\n\r\n")),
        ("chunks", {
            let mut bytes = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
            (0..4_000).for_each(|_| bytes.extend(format!("400\r\n{}\r\n", "x".repeat(1_024)).bytes()));
            bytes
        }),
        ("huge", b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n".to_vec()),
        ("silence", Vec::new()),
        ("half", b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{".to_vec()),
        ("no-json", reply("200 OK", "", "<html>")),
        ("redirect", reply("302 Found", "location: http://169.254.169.254/latest\r\n", "")),
        ("teapot", reply("418 No", "", "")),
    ];
    let known = replies.clone();
    let service = Recorder::start(move |head| {
        let name = head.split('/').nth(1).and_then(|p| p.split(' ').next()).unwrap_or("");
        known
            .iter()
            .find(|(n, _)| *n == name)
            .map_or_else(|| reply("200 OK", "", "{}"), |(_, bytes)| bytes.clone())
    });
    let folder = dir.path().join("definitions");
    std::fs::create_dir_all(&folder).unwrap();
    for (name, _) in &replies {
        let origin = &service.origin;
        let text = format!(
            "name = \"{name}\"\nversion = 1\ndeadline = \"1h\"\ntimeout = \"1s\"\n[retry]\nattempts = 1\n\
             [[steps]]\nname = \"a\"\naction = \"{origin}/{name}\"\nundo = \"{origin}/undo\"\non_unknown = \"ask\"\n"
        );
        std::fs::write(folder.join(format!("{name}.toml")), text).unwrap();
    }
    let node = Node::start(
        &dir.path().join("data"),
        &["--allow-participant", &service.origin, "--definitions", folder.to_str().unwrap()],
    );
    let before = resident(node.id());
    let start = |name: &str, key: &str| -> String {
        let post = Request::new("POST", "/v1/sagas").header("idempotency-key", key);
        let answer = node.send(&post.body(format!("{{\"definition\":\"{name}\"}}")));
        answer.json()["uid"].as_str().unwrap().to_owned()
    };
    let mut sagas = Vec::new();
    for round in 0..4 {
        sagas.extend(replies.iter().map(|(name, _)| (*name, start(name, &format!("{name}-{round}")))));
    }
    for (name, uid) in sagas {
        let ended: Value = eventually(name, || {
            let saga = node.get(&format!("/v1/sagas/{uid}?wait=1s")).json();
            (saga["status"] == "needs_attention").then_some(saga)
        });
        let needs = ended["steps"][0]["needs"].as_str().unwrap();
        assert!(matches!(needs, "unknown_outcome" | "contract_broken"), "{name}: {ended}");
        let error = ended["steps"][0]["last_error"].as_str().unwrap();
        assert!(!error.is_empty() && error.len() < 5_000, "{name}: {error}");
    }
    let grown = resident(node.id()).saturating_sub(before);
    assert!(grown < 64 * 1024, "44 endless replies took {grown} KiB");
    assert!(service.seen().iter().all(|(head, _)| !head.contains("latest")), "no redirect was followed");
}

/// The second signal ends at once; what was accepted goes on in the next run.
#[test]
fn a_second_signal_ends_at_once_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let open = dir.path().join("open");
    let gate = open.clone();
    // The first call is never answered, so that the graceful stop has something to wait for.
    let service = Recorder::start(move |_| match gate.exists() {
        true => reply("200 OK", "", "{}"),
        false => Vec::new(),
    });
    // Neither the call nor the graceful stop ends by itself while the test runs.
    let definition = order(&service.origin).replace("timeout = \"60s\"", "timeout = \"30m\"");
    let mut patient = serve(dir.path(), &service.origin, &definition);
    patient.env("MAINSTAY_SERVER__DRAIN", "30m");
    let mut first = Node::spawn(patient);
    let post = Request::new("POST", "/v1/sagas").header("idempotency-key", "k");
    let uid = first.send(&post.body("{\"definition\":\"order\"}")).json()["uid"].as_str().unwrap().to_owned();
    eventually("the first step is called", || (!service.seen().is_empty()).then_some(()));
    first.signal(rustix::process::Signal::TERM);
    first.says("a second signal ends at once");
    first.signal(rustix::process::Signal::INT);
    assert_eq!(first.ended(), Some(130));
    std::fs::write(&open, "").unwrap();
    let again = node(dir.path(), &service.origin, &definition);
    let ended = again.settled(&uid);
    assert_eq!(ended["status"], "completed", "{ended}");
}

/// What a data folder that cannot be used looks like.
#[test]
fn a_data_folder_that_is_a_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("data");
    std::fs::write(&file, "").unwrap();
    let output = run(&["serve", "--data", path(&file), "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("MS0007") && stderr(&output).contains(path(&file)),
        "{}",
        stderr(&output)
    );
}

fn path(file: &Path) -> &str {
    file.to_str().unwrap()
}
