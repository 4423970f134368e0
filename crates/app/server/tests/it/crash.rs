//! kill -9 of the real node at random moments: every accepted saga ends, and its effects balance.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mainstay_clock::{Rng, SeededRng, os_boot_now};

use crate::end_to_end::{node, order};
use crate::harness::{Node, Request, eventually, run, stderr, within};
use crate::ledger::Ledger;

/// Kills of one run.
const KILLS: u32 = 50;

/// Starts a saga; the same key for every try, so a lost reply cannot start a second one.
pub(crate) fn start(address: &str, number: u64) -> Option<String> {
    let no = match number % 5 {
        0 => "charge",
        1 => "ship",
        _ => "nothing",
    };
    let body =
        format!("{{\"definition\":\"order\",\"id\":\"order-{number}\",\"input\":{{\"no\":\"{no}\"}}}}");
    let request = Request::new("POST", "/v1/sagas").header("idempotency-key", &format!("key-{number}"));
    let answer = request.body(body).try_to(address)?;
    assert!(matches!(answer.status, 202 | 503), "{} {}", answer.status, answer.text());
    (answer.status == 202).then(|| answer.text())
}

/// Starts a saga and repeats that until it is answered or the node is `gone`.
fn persist(address: &str, number: u64, gone: &AtomicBool) -> Option<String> {
    let answered = within(|| match start(address, number) {
        Some(reply) => Some(Some(reply)),
        None => gone.load(Ordering::SeqCst).then_some(None),
    });
    answered.unwrap_or_else(|| panic!("start {number} was never answered"))
}

/// Waits until no saga is at work.
pub(crate) fn drained(node: &Node) {
    let open = || node.get("/v1/sagas?status=running,waiting,compensating&limit=1").json()["items"].clone();
    eventually("every saga ends", || open().as_array().unwrap().is_empty().then_some(()));
}

#[test]
fn kill_9_at_random_moments_loses_no_saga_and_repeats_no_effect() {
    let seed = os_boot_now().as_nanos();
    eprintln!("seed {seed}");
    let rng = SeededRng::new(seed);
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let definition = order(&ledger.origin);
    let mut accepted: BTreeMap<u64, String> = BTreeMap::new();
    let mut number = 0;
    for round in 0..KILLS {
        let node = node(dir.path(), &ledger.origin, &definition);
        // A saga that is taken up five times without any progress is set aside by design; so every third
        // node may finish what the ones before it left.
        if round % 3 == 2 {
            drained(&node);
        }
        // Starts are in flight when the kill comes, and so is the work of those that were accepted: at least one was,
        // however slow the disk is. Some kills come between an effect and its reply.
        let silence = (round % 5 == 4).then(|| ledger.silent());
        let before = ledger.effects();
        let gone = Arc::new(AtomicBool::new(false));
        let answers = Arc::new(AtomicU64::new(0));
        let clients: Vec<_> = (number..=number + rng.below(8))
            .map(|n| {
                let (address, gone) = (node.address.clone(), Arc::clone(&gone));
                let answers = Arc::clone(&answers);
                let client = move || {
                    let reply = persist(&address, n, &gone);
                    answers.fetch_add(u64::from(reply.is_some()), Ordering::SeqCst);
                    reply
                };
                (n, std::thread::spawn(client))
            })
            .collect();
        number += clients.len() as u64;
        let enough = 1 + rng.below(clients.len() as u64);
        eventually("starts are answered", || (answers.load(Ordering::SeqCst) >= enough).then_some(()));
        if silence.is_some() {
            eventually("something took effect", || (ledger.effects() > before).then_some(()));
        }
        let until = os_boot_now().as_nanos() + rng.below(40_000_000);
        eventually("the moment of the kill", || (os_boot_now().as_nanos() >= until).then_some(()));
        node.kill();
        gone.store(true, Ordering::SeqCst);
        drop(silence);
        for (n, client) in clients {
            accepted.extend(client.join().unwrap().map(|reply| (n, reply)));
        }
    }
    let node = node(dir.path(), &ledger.origin, &definition);
    for (number, reply) in &accepted {
        let again = eventually("a repeated start is answered", || start(&node.address, *number));
        assert_eq!(&again, reply, "the same reply after kill -9");
    }
    drained(&node);
    let stuck = node.get("/v1/attention?limit=1").json();
    assert_eq!(stuck["total"], 0, "{stuck:#}");
    let book = ledger.book();
    let mut checked = 0;
    for reply in accepted.values() {
        let uid =
            serde_json::from_str::<serde_json::Value>(reply).unwrap()["uid"].as_str().unwrap().to_owned();
        let saga = node.get(&format!("/v1/sagas/{uid}")).json();
        for step in ["reserve", "charge", "ship"] {
            let entry = book.get(&(uid.clone(), step.to_owned())).cloned().unwrap_or_default();
            assert!(entry.done <= 1, "{step} of {uid} took effect {} times", entry.done);
            match saga["status"].as_str().unwrap() {
                "completed" => assert_eq!((entry.done, entry.undone), (1, 0), "{step} of {uid}"),
                "compensated" => assert_eq!(entry.done, entry.undone, "{step} of {uid}"),
                other => panic!("{uid} is {other}"),
            }
        }
        checked += 1;
    }
    assert!(checked >= KILLS, "only {checked} sagas were accepted");
    // The kills must have hit work: some request was repeated to a participant that had served it.
    let repeated: u32 = book.values().map(|e| e.duplicates + e.refused).sum();
    eprintln!("{checked} sagas, {KILLS} kills, {repeated} requests repeated");
    assert!(repeated > 0, "no kill hit a saga at work");
}

#[test]
fn a_corrupt_and_a_newer_database_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mainstay.db");
    let serve = || run(&["serve", "--data", dir.path().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    std::fs::write(&file, "this is no database, it only has its name. ".repeat(200)).unwrap();
    let before = std::fs::read(&file).unwrap();
    let output = serve();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("MS0008"), "{}", stderr(&output));
    assert_eq!(std::fs::read(&file).unwrap(), before);
    std::fs::remove_file(&file).unwrap();
    Node::start(dir.path(), &[]).stop();
    let conn = rusqlite::Connection::open(&file).unwrap();
    conn.pragma_update(None, "user_version", 999).unwrap();
    drop(conn);
    let output = serve();
    assert!(stderr(&output).contains("MS0009"), "{}", stderr(&output));
}

#[test]
fn a_graceful_stop_has_the_same_result_as_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let definition = order(&ledger.origin);
    let mut first = node(dir.path(), &ledger.origin, &definition);
    let replies: Vec<String> =
        (0..20).map(|n| eventually("a start is answered", || start(&first.address, n))).collect();
    assert_eq!(first.stop(), Some(0));
    let second = node(dir.path(), &ledger.origin, &definition);
    eventually("the node is ready", || (second.get("/readyz").status == 200).then_some(()));
    for (n, reply) in replies.iter().enumerate() {
        let again = eventually("a repeated start is answered", || start(&second.address, n as u64));
        assert_eq!(&again, reply);
        let saga: serde_json::Value = serde_json::from_str(reply).unwrap();
        let ended = second.settled(saga["uid"].as_str().unwrap());
        assert!(matches!(ended["status"].as_str(), Some("completed" | "compensated")), "{ended}");
    }
    let book = ledger.book();
    assert!(book.values().all(|e| e.done <= 1 && e.undone <= e.done), "{book:?}");
}
