//! The command line without a node.

use crate::harness::{Node, PATIENCE, Request, mainstay, run, stderr, stdout};
use crate::machine::finish;

#[test]
fn usage_errors_exit_with_2() {
    for args in [&["nonsense"][..], &["serve", "--nonsense"], &["explain", "MS9999"]] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, "[server]\nlisten = \"127.0.0.1:0\"\nlistne = 1\n").unwrap();
    let data = dir.path().join("data");
    let args = ["serve", "--config", file.to_str().unwrap(), "--data", data.to_str().unwrap()];
    let output = run(&args);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("MS0001") && text.contains("m.toml:3"), "{text}");
    assert!(text.contains("did you mean `server.listen`?"), "{text}");
    assert!(!data.exists(), "nothing was made");
}

#[test]
fn what_was_mistyped_is_named_and_what_is_expected_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let refused = |args: &[&str], code: i32, said: &str| {
        let output = run(args);
        let text = stderr(&output);
        assert!(text.contains(said) && text.contains("help: mainstay explain MS"), "{args:?}: {text}");
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    };
    for server in ["nonsense", "localhost:4600", "ftp://localhost", "http://"] {
        refused(&["saga", "ls", "--server", server], 2, "expected http://HOST:PORT");
    }
    for verb in [&["ls"][..], &["revoke", "ci"]] {
        refused(&[&["token"], verb, &["--data", &path("no")]].concat(), 1, "MS0007: there is no folder");
    }
    assert!(!dir.path().join("no").exists());
    std::fs::write(path("file"), "").unwrap();
    refused(&["serve", "--listen", "127.0.0.1:0", "--data", &path("file")], 1, "is a file, not a folder");
    // The wrapper's own failures, too, say where to read on.
    refused(&["lock", "--store", "redis://127.0.0.1:1", "x", "--", "true"], 125, "MS0017");
    let store = format!("sqlite:{}", path("leases"));
    let broken =
        run(&["lease", "--store", &store, "break", "nihgtly", "--confirm", "nihgtly", "--reason", "x"]);
    assert!(stderr(&broken).contains("`nihgtly` was held by nobody"), "{}", stderr(&broken));
}

#[test]
fn config_show_names_every_origin() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, "[server]\ndrain = \"3s\"\n").unwrap();
    let args = ["config", "show", "--origin", "-o", "json", "--config", file.to_str().unwrap()];
    let output = mainstay(&args).env("MAINSTAY_LOG__JSON", "true").output().unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["server.drain"]["origin"], format!("{}:2", file.display()));
    assert_eq!(shown["log.json"]["origin"], "env MAINSTAY_LOG__JSON");
    assert_eq!(shown["server.listen"]["origin"], "default");
    let table = run(&["config", "show"]);
    assert!(stdout(&table).contains("server.max_in_flight"), "{}", stdout(&table));
}

#[test]
fn every_listed_code_is_explained() {
    let list = stdout(&run(&["explain"]));
    assert!(list.lines().count() >= 40, "{list}");
    for line in list.lines() {
        let code = line.split_whitespace().next().unwrap();
        let page = run(&["explain", code]);
        assert!(stdout(&page).starts_with(&format!("# {code}: ")), "{code}");
    }
}

#[test]
fn completions_and_the_manual_are_printed() {
    assert!(stdout(&run(&["completions", "bash"])).contains("mainstay"));
    assert!(stdout(&run(&["man"])).contains(".TH mainstay"));
}

#[test]
fn doctor_checks_the_machine_and_says_when_a_node_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let output =
        run(&["doctor", "--listen", "127.0.0.1:0", "--data", dir.path().to_str().unwrap(), "-o", "json"]);
    assert!(output.status.success(), "{}", stdout(&output));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the probes are gone");
    let down = run(&["doctor", "--live", "--server", "http://127.0.0.1:1"]);
    assert_eq!(down.status.code(), Some(1));
    assert!(stderr(&down).contains("MS0012"), "{}", stderr(&down));
}

/// What `doctor` says of one thing, and whether that is fine.
fn doctor(check: &str, args: &[&str]) -> (bool, String) {
    let output = run(&[&["doctor", "-o", "json"], args].concat());
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let all = all.as_array().unwrap();
    let found = all.iter().find(|f| f["check"] == check).unwrap_or_else(|| panic!("no {check}: {all:?}"));
    let fine = all.iter().all(|f| f["ok"] == true);
    assert_eq!(output.status.code(), Some(i32::from(!fine)), "{all:?}");
    (found["ok"] == true, found["seen"].as_str().unwrap().to_owned())
}

#[test]
fn doctor_looks_at_folders_ports_and_stores_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let missing = path("not/yet");
    let (fine, seen) = doctor("the data folder can be used", &["--data", &missing]);
    assert!(fine && seen.contains("not there yet"), "{seen}");
    let (fine, seen) = doctor("fsync reaches a disk", &["--data", &missing]);
    assert!(fine, "{seen}");
    let leases = format!("sqlite:{}", path("leases"));
    let (fine, seen) = doctor("the lease store can be used", &["--data", &missing, "--store", &leases]);
    assert!(fine && seen.contains("not there yet"), "{seen}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "a check makes nothing");
    std::fs::write(path("file"), "").unwrap();
    let (fine, seen) = doctor("the data folder can be used", &["--data", &path("file")]);
    assert!(!fine && seen.contains("Not a directory"), "{seen}");
    // Memory is no disk, however well it syncs.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (fine, seen) = doctor("fsync reaches a disk", &["--data", memory.path().to_str().unwrap()]);
    assert!(!fine && seen.contains("in memory"), "{seen}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (fine, seen) = doctor("the port is free", &["--data", &missing, "--listen", &address]);
    assert!(!fine && seen.contains("another program"), "{seen}");
    drop(taken);
    let (fine, seen) = doctor("the port is free", &["--data", &missing, "--listen", "127.0.0.1:0"]);
    assert!(fine, "{seen}");
    let node = Node::start(&dir.path().join("data"), &[]);
    let (fine, seen) = doctor("the port is free", &["--data", &missing, "--listen", &node.address]);
    assert!(fine && seen.contains("a node of mainstay"), "{seen}");

    let (fine, seen) =
        doctor("the lease store can be used", &["--data", &missing, "--store", "redis://127.0.0.1:1"]);
    assert!(!fine && seen.contains("Redis"), "{seen}");
    let (fine, seen) = doctor("SQLite", &["--data", &missing]);
    assert!(fine && seen.starts_with("3."), "{seen}");
    assert_eq!(run(&["doctor", "--store", "ftp:x"]).status.code(), Some(2));
}

#[test]
fn a_node_keeps_its_leases_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let store = format!("sqlite:{}", path("shared"));
    let node = Node::start(&dir.path().join("data"), &["--leases", &store]);
    let wanted = Request::new("PUT", "/v1/locks/nightly")
        .header("content-type", "application/json")
        .body(r#"{"owner": "api", "ttl": "1h", "note": "backup"}"#);
    let taken = node.send(&wanted);
    assert_eq!(taken.status, 200, "{}", taken.text());
    let refused = run(&["lock", "--store", &store, "-n", "nightly", "--", "true"]);
    assert_eq!(refused.status.code(), Some(124), "{}", stderr(&refused));
    assert!(stderr(&refused).contains("held by api since 20"), "{}", stderr(&refused));
    let json = run(&["lease", "--store", &store, "inspect", "nightly", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let holder = &shown["holders"][0];
    assert_eq!(
        (holder["owner"].as_str(), holder["since_by"].as_str()),
        (Some("api"), Some("store")),
        "{shown}"
    );
    assert_eq!(holder["since"], node.get("/v1/locks/nightly").json()["holders"][0]["since"], "{shown}");
    let table = run(&["lease", "--store", &store, "ls"]);
    let (table, since) = (stdout(&table), holder["since"].as_str().unwrap());
    assert!(table.contains("SINCE") && table.contains(since) && table.contains("backup"), "{table}");
    let page = node.get("/console/locks").text();
    assert!(page.contains("backup") && page.contains(since), "{page}");
    assert!(!dir.path().join("data/leases.sqlite").exists(), "not in two places");
    drop(node);
    let refuses = |url: &str| {
        let serve = ["serve", "--listen", "127.0.0.1:0", "--data", &path("other"), "--leases", url];
        let refused = run(&serve);
        (refused.status.code(), stderr(&refused))
    };
    let (code, said) = refuses("ftp:x");
    assert!(code == Some(2) && said.contains("store.leases"), "{said}");
    let (code, said) = refuses("redis://user:CANARY-41@127.0.0.1:1");
    assert!(code != Some(0) && said.contains("store.leases") && !said.contains("CANARY-41"), "{said}");
}

#[test]
fn the_lease_store_of_a_node_is_shown_without_its_password_and_tried_by_the_doctor() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    std::fs::write(&file, "[store]\nleases = \"redis://u:CANARY-42@a,redis://u:CANARY-42@b?durable=true\"\n")
        .unwrap();
    let mut show = mainstay(&["config", "show", "--origin", "--config", file.to_str().unwrap()]);
    // Those of commands are no keys of a node.
    show.env("MAINSTAY_LEASES", "redis://x").env("MAINSTAY_NAMESPACE", "billing");
    let shown = finish(show, PATIENCE);
    let text = stdout(&shown);
    let line = text.lines().find(|line| line.contains("store.leases")).unwrap_or_else(|| panic!("{text}"));
    assert!(line.contains("redis://***@b?durable=true") && line.contains("m.toml:2"), "{line}");
    assert!(!text.contains("CANARY-42"), "{text}");
    let missing = dir.path().join("not/yet").display().to_string();
    let leases = format!("sqlite:{}", dir.path().join("leases").display());
    let what = "the node's lease store can be used";
    let (fine, seen) = doctor(what, &["--data", &missing, "--leases", &leases]);
    assert!(fine && seen.contains("not there yet"), "{seen}");
    let (fine, seen) = doctor(what, &["--data", &missing, "--leases", "redis://127.0.0.1:1"]);
    assert!(!fine && seen.contains("Redis"), "{seen}");
}

#[test]
fn saga_check_lists_every_problem_of_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good.toml");
    std::fs::write(&good, GOOD).unwrap();
    let output = run(&["saga", "check", good.to_str().unwrap()]);
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, GOOD.replace("after = [\"a\"]", "after = [\"zzz\"]")).unwrap();
    let output = run(&["saga", "check", bad.to_str().unwrap(), "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(found["problems"][0].as_str().unwrap().contains("zzz"), "{found}");
}

/// What is suspicious is said and refuses nothing, unless it shall.
#[test]
fn saga_check_says_what_is_suspicious_and_refuses_it_only_when_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ship.toml");
    let check = |text: &str, more: &[&str]| {
        std::fs::write(&file, text).unwrap();
        run(&[&["saga", "check", file.to_str().unwrap()], more].concat())
    };
    let calm = "timeout = \"2s\"\nstatus = \"http://127.0.0.1:1/status\"\nrunbook = \"Ask the carrier.\"\n";
    let output = check(&format!("{SHIP}{calm}"), &["--strict", "-o", "json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success(), "{found}");
    assert_eq!(found["warnings"], serde_json::json!([]));
    let output = check(SHIP, &["-o", "json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let codes: Vec<&str> =
        found["warnings"].as_array().unwrap().iter().filter_map(|w| w["code"].as_str()).collect();
    assert_eq!(codes, ["no_status_address", "no_runbook", "longer_than_deadline"], "{found}");
    assert_eq!((found["ok"].as_bool(), found["warnings"][1]["step"].as_str()), (Some(true), Some("ship")));
    let output = check(SHIP, &["--strict"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stdout(&output).contains("WARNING") && stdout(&output).contains("`runbook`"),
        "{}",
        stdout(&output)
    );
}

const SHIP: &str = r#"
name = "ship"
version = 1
deadline = "20s"

[[steps]]
name = "ship"
kind = "pivot"
action = "http://127.0.0.1:1/a"
"#;

const GOOD: &str = r#"
name = "two"
version = 1
deadline = "20s"

[[steps]]
name = "a"
action = "http://127.0.0.1:1/a"
undo = "http://127.0.0.1:1/a/undo"

[[steps]]
name = "b"
after = ["a"]
action = "http://127.0.0.1:1/b"
undo = "http://127.0.0.1:1/b/undo"
"#;

/// A token of PostgreSQL, sealed with a key of 32 times 7 for the store `orders`, as the page on sessions has it.
const TOKEN: &str = include_str!("../golden/token.txt");

#[test]
fn a_token_is_explained_with_and_without_its_key() {
    let token = TOKEN.trim();
    let plain: serde_json::Value =
        serde_json::from_slice(&run(&["session", "explain", token, "-o", "json"]).stdout).unwrap();
    assert_eq!(plain["positions"][0]["position"], "0/306EE20");
    assert_eq!((&plain["positions"][0]["timeline"], &plain["key"]), (&"3".into(), &9.into()));
    assert_eq!(plain["seal"], serde_json::Value::Null);
    let table = stdout(&run(&["session", "explain", token]));
    assert!(table.contains("not checked") && table.contains("timeline 3, at 0/306EE20"), "{table}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("key");
    for (key, name, expected) in [
        ("07".repeat(32), "orders", "the token has expired"),
        ("08".repeat(32), "orders", "the token's seal does not fit"),
        ("07".repeat(32), "invoices", "the token's seal does not fit"),
    ] {
        std::fs::write(&file, key).unwrap();
        let args = ["session", "explain", token, "--name", name, "--key-file", file.to_str().unwrap()];
        let table = stdout(&run(&args));
        assert!(table.contains(expected), "{table}");
    }
}

#[test]
fn what_is_no_token_and_no_url_is_refused() {
    for args in [
        &["session", "explain", "nonsense"][..],
        &["session", "explain", TOKEN.trim(), "--key-file", "key"],
        &["session", "explain", TOKEN.trim(), "--at", "oracle://db/x"],
        &["session", "replicas"],
        &["session", "replicas", "oracle://db/x"],
    ] {
        assert_eq!(run(args).status.code(), Some(2), "{args:?}");
    }
    let down = run(&["session", "replicas", "postgres://app:secret@127.0.0.1:1/app"]);
    assert_eq!(down.status.code(), Some(1));
    let said = stdout(&down) + &stderr(&down);
    assert!(said.contains("127.0.0.1:1/app") && !said.contains("secret"), "{said}");
    assert!(said.contains("MS0012"), "it is no lease store that is out of reach: {said}");
}
