//! A saga over real HTTP participants, by the API and by the command line.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Node, Request, eventually, mainstay, run, stderr, stdout};
use crate::ledger::Ledger;
use crate::recorder::{Recorder, header, reply};

/// How long the command line waits for a saga: less than [`PATIENCE`](crate::harness::PATIENCE).
pub(crate) const WAIT: &str = "80s";

/// The order saga: three compensable steps in a row. Its times are such that no slow machine runs out of them: a step
/// fails for what its participant answers.
pub(crate) fn order(origin: &str) -> String {
    let step = |name: &str, after: &str| {
        format!(
            "[[steps]]\nname = \"{name}\"\nafter = [{after}]\naction = \"{origin}/{name}\"\nundo = \"{origin}/{name}/undo\"\n"
        )
    };
    let head = "name = \"order\"\nversion = 1\ndeadline = \"1h\"\ntimeout = \"60s\"\n\
         [retry]\nattempts = 20\nbase = \"5ms\"\ncap = \"50ms\"\n[undo_retry]\nattempts = 20\nbase = \"5ms\"\ncap = \"50ms\"\n";
    format!("{head}{}{}{}", step("reserve", ""), step("charge", "\"reserve\""), step("ship", "\"charge\""))
}

/// A node with one definition in its folder.
#[track_caller]
pub(crate) fn node(dir: &Path, origin: &str, definition: &str) -> Node {
    Node::spawn(serve(dir, origin, definition))
}

/// The command that starts it.
pub(crate) fn serve(dir: &Path, origin: &str, definition: &str) -> Command {
    let (data, folder) = (dir.join("data"), dir.join("definitions"));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("it.toml"), definition).unwrap();
    let mut command = mainstay(&["serve", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    command.args(["--allow-participant", origin, "--definitions", folder.to_str().unwrap()]);
    command
}

fn saga(node: &Node, args: &[&str]) -> (bool, Value) {
    let server = format!("http://{}", node.address);
    let mut all = vec!["saga", "-o", "json", "--server", &server];
    all.extend(args);
    let output = run(&all);
    assert!(!stderr(&output).contains("MS0"), "{}", stderr(&output));
    (output.status.success(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn the_command_line_runs_a_saga_through_and_another_one_back() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = node(dir.path(), &ledger.origin, &order(&ledger.origin));
    let (fine, done) = saga(&node, &["run", "order", "--wait", WAIT, "--id", "o-1"]);
    assert!(fine && done["status"] == "completed", "{done}");
    let back = ["run", "order", "--wait", WAIT, "--input", "{\"no\":\"ship\"}"];
    let (fine, undone) = saga(&node, &back);
    assert!(!fine && undone["status"] == "compensated", "{undone}");
    let uid = undone["uid"].as_str().unwrap();
    let book = ledger.book();
    for step in ["reserve", "charge"] {
        let entry = &book[&(uid.to_owned(), step.to_owned())];
        assert_eq!((entry.done, entry.undone), (1, 1), "{step}");
    }
    let (_, list) = saga(&node, &["ls", "status=completed"]);
    assert_eq!(list["items"][0]["id"], "o-1");
    let (_, export) = saga(&node, &["export", uid]);
    assert_eq!(export["format"], "mainstay-export/1");
    assert_eq!(export["history"][0]["type"], "created");
    let server = format!("http://{}", node.address);
    let table = run(&["saga", "show", uid, "--server", &server]);
    assert!(
        stdout(&table).contains("reserve") && stdout(&table).contains("compensated"),
        "{}",
        stdout(&table)
    );
    assert!(run(&["doctor", "--live", "--server", &server]).status.success());
}

#[test]
fn if_h08_participants_get_the_trace_with_what_tracing_systems_added() {
    let dir = tempfile::tempdir().unwrap();
    let service = Recorder::content();
    let node = node(dir.path(), &service.origin, &order(&service.origin));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-";
    let post = Request::new("POST", "/v1/sagas")
        .header("idempotency-key", "k")
        .header("traceparent", &format!("{trace}00f067aa0ba902b7-01"))
        .header("tracestate", "rojo=1")
        .header("tracestate", "congo=t61 r")
        .body("{\"definition\": \"order\"}");
    let uid = node.send(&post).json()["uid"].as_str().unwrap().to_owned();
    assert_eq!(node.settled(&uid)["status"], "completed");
    let seen = service.seen();
    assert_eq!(seen.len(), 3, "{seen:?}");
    for (head, _) in seen {
        assert!(header(&head, "traceparent").unwrap().starts_with(trace), "{head}");
        assert_eq!(header(&head, "tracestate"), Some("rojo=1,congo=t61 r"), "{head}");
    }
    let metrics = node.get("/metrics").text();
    for step in ["reserve", "charge", "ship"] {
        let labels = format!("{{definition=\"order\",step=\"{step}\",op=\"action\"}}");
        assert!(
            metrics.contains(&format!("mainstay_saga_step_duration_seconds_count{labels} 1\n")),
            "{metrics}"
        );
    }
    let value = |name: &str| -> f64 {
        let line = metrics
            .lines()
            .find_map(|l| l.strip_prefix(name))
            .unwrap_or_else(|| panic!("no {name}: {metrics}"));
        line.trim().parse().unwrap()
    };
    assert!(value("mainstay_store_fsync_seconds_count ") >= 4.0, "{metrics}");
    assert!(value("mainstay_store_fsync_seconds_sum ") > 0.0, "{metrics}");
    let all = value("mainstay_store_fsync_seconds_count ");
    assert_eq!(value("mainstay_store_fsync_seconds_bucket{le=\"+Inf\"} "), all, "{metrics}");
    assert!(value("mainstay_store_queue_depth ") >= 0.0 && value("mainstay_metric_names_hidden ") == 0.0);
}

/// A participant that answers everything with these bytes, once it has read the whole request: a connection closed with
/// unread bytes would be reset, and the answer lost.
pub(crate) fn rude(answer: Vec<u8>) -> String {
    Recorder::start(move |_| answer.clone()).origin
}

#[test]
fn if_a07_a_participant_that_streams_for_ever_is_cut_and_a_person_resolves_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n".to_vec();
    answer.extend(std::iter::repeat_n(b' ', 2 * 1024 * 1024));
    let origin = rude(answer);
    let definition = format!(
        "name = \"rude\"\nversion = 1\ndeadline = \"1h\"\ntimeout = \"60s\"\n[retry]\nattempts = 1\n\
         [[steps]]\nname = \"a\"\naction = \"{origin}/a\"\nundo = \"{origin}/u\"\non_unknown = \"ask\"\n"
    );
    let node = node(dir.path(), &origin, &definition);
    let (_, stuck) = saga(&node, &["run", "rude", "--wait", WAIT]);
    assert_eq!(stuck["status"], "needs_attention", "{stuck}");
    let error = stuck["steps"][0]["last_error"].as_str().unwrap();
    assert!(error.contains("more than 262144 bytes"), "{error}");
    let uid = stuck["uid"].as_str().unwrap();
    let resolve = ["resolve", uid, "--step", "a", "--as", "not_done", "--reason", "the ledger has no line"];
    let (_, resolved) = saga(&node, &resolve);
    assert_eq!(resolved["uid"], uid);
    let ended = node.settled(uid);
    assert_eq!(ended["status"], "compensated", "{ended}");
}

#[test]
fn if_a09_a_redirect_is_not_followed_and_a_forbidden_address_is_refused_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let target = format!("{}/a", ledger.origin);
    let origin =
        rude(format!("HTTP/1.1 302 Found\r\nlocation: {target}\r\ncontent-length: 0\r\n\r\n").into_bytes());
    let definition = format!(
        "name = \"moved\"\nversion = 1\ndeadline = \"1h\"\ntimeout = \"60s\"\n[retry]\nattempts = 1\n\
         [[steps]]\nname = \"a\"\naction = \"{origin}/a\"\nundo = \"{origin}/u\"\n"
    );
    let node = node(dir.path(), &origin, &definition);
    let (_, stuck) = saga(&node, &["run", "moved", "--wait", WAIT]);
    assert_eq!(stuck["status"], "needs_attention", "{stuck}");
    assert!(ledger.book().is_empty(), "the redirect was followed");
    let put = Request::new("PUT", "/v1/definitions/evil").header("content-type", "application/toml");
    let evil = definition.replace(&origin, "http://169.254.169.254").replace("moved", "evil");
    let answer = node.send(&put.body(evil));
    assert_eq!((answer.status, answer.problem().as_str()), (422, "MS0011"));
}

/// A cancel that is said again, by whoever did not hear the answer: on the command line and over HTTP.
#[test]
fn a_cancel_said_twice_is_no_mistake_and_one_of_what_is_completed_is() {
    let dir = tempfile::tempdir().unwrap();
    // The step never answers well, and its undo not before it is told to.
    let undoes = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = std::sync::Arc::clone(&undoes);
    let service = Recorder::start(move |head| {
        let fine = head.starts_with("POST /fine") || told.load(std::sync::atomic::Ordering::SeqCst);
        reply(if fine { "200 OK" } else { "503 Service Unavailable" }, "", "{}")
    });
    let origin = &service.origin;
    let slow = "{ attempts = 20, base = \"1h\", cap = \"1h\" }";
    let definition = format!(
        "name = \"it\"\nversion = 1\nno_deadline = true\nretry = {slow}\nundo_retry = {slow}\n\
         [[steps]]\nname = \"a\"\naction = \"{origin}/a\"\nundo = \"{origin}/u\"\n"
    );
    let node = node(dir.path(), origin, &definition);
    let put = Request::new("PUT", "/v1/definitions/fine").header("content-type", "application/toml");
    let fine =
        definition.replace("\"it\"", "\"fine\"").replace(&format!("{origin}/a"), &format!("{origin}/fine"));
    assert_eq!(node.send(&put.body(fine)).status, 201);
    let (_, begun) = saga(&node, &["run", "it"]);
    let uid = begun["uid"].as_str().unwrap();
    let cancel = ["cancel", uid, "--reason", "the customer left"];
    for _ in 0..2 {
        let (done, shown) = saga(&node, &cancel);
        assert!(done && shown["status"] == "compensating", "{shown}");
        assert!(!shown["actions"].as_array().unwrap().iter().any(|a| a == "cancel"), "{shown}");
    }
    let post = |uid: &str, action: &str| {
        let seen = node.get(&format!("/v1/sagas/{uid}"));
        let post = Request::new("POST", &format!("/v1/sagas/{uid}/actions"));
        let post = post.header("if-match", seen.header("etag").unwrap());
        node.send(&post.body(format!("{{{action},\"reason\":\"again\"}}")))
    };
    let cancels = "\"action\":\"cancel\"";
    undoes.store(true, std::sync::atomic::Ordering::SeqCst);
    // Not while an undo is in flight.
    let retries = "\"action\":\"retry\",\"step\":\"a\"";
    eventually("the undo is brought forward", || (post(uid, retries).status == 200).then_some(()));
    assert_eq!(node.settled(uid)["status"], "compensated");
    assert_eq!(post(uid, cancels).status, 200, "it came true");
    let (done, shown) = saga(&node, &cancel);
    assert!(done && shown["status"] == "compensated", "{shown}");
    let (_, completed) = saga(&node, &["run", "fine", "--wait", WAIT]);
    assert_eq!(completed["status"], "completed", "{completed}");
    let refused = post(completed["uid"].as_str().unwrap(), cancels);
    assert_eq!(refused.status, 409, "{}", refused.text());
}

/// A folder that was restored from a copy: its participants had seen later claims. Sagas turned back then.
#[test]
fn a_saga_of_a_restored_folder_waits_until_the_epoch_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let token = |head: &str| -> u64 { header(head, "fencing-token").unwrap().parse().unwrap() };
    let service = Recorder::start(move |head| match token(head) > 7 << 32 {
        true => reply("200 OK", "", "{\"ok\":true}"),
        false => reply("412 Precondition Failed", "", ""),
    });
    let definition = order(&service.origin);
    let mut before = node(dir.path(), &service.origin, &definition);
    let lock = |node: &Node, name: &str| -> u64 {
        let put = Request::new("PUT", &format!("/v1/locks/{name}"));
        let held = node.send(&put.body("{\"owner\": \"a\", \"ttl\": \"1h\"}"));
        held.json()["token"].as_str().unwrap_or_else(|| panic!("{}", held.text())).parse().unwrap()
    };
    let first = lock(&before, "x");
    let post = Request::new("POST", "/v1/sagas").header("idempotency-key", "k");
    let uid =
        before.send(&post.body("{\"definition\": \"order\"}")).json()["uid"].as_str().unwrap().to_owned();
    let waits = before.settled(&uid);
    let why = waits["error"].as_str().unwrap_or_default();
    assert!(waits["status"] == "needs_attention" && why.contains("raise the epoch"), "{waits}");
    assert_eq!(service.seen().len(), 1, "nothing is repeated, nothing is turned back");
    before.stop();

    let mut command = serve(dir.path(), &service.origin, &definition);
    command.args(["--epoch", "7"]);
    let node = Node::spawn(command);
    assert!(lock(&node, "y") >= first + (7 << 48), "tokens of leases are above those of before too");
    // As the page of operations says it.
    let all = ["status=needs_attention", "error~=fenced:", "--reason", "the epoch is raised", "--yes"];
    let (fine, said) = saga(&node, &[&["bulk", "retry"][..], &all].concat());
    assert!(fine && said["done"] == 1, "{said}");
    assert_eq!(node.settled(&uid)["status"], "completed");
    assert!(service.seen().iter().skip(1).all(|(head, _)| token(head) == (7 << 32) + 1));
}
