//! What people and programs rely on, word for word. `MAINSTAY_BLESS=1` writes the files anew; look at the diff.

use std::path::PathBuf;

use crate::end_to_end::{WAIT, node, order};
use crate::harness::{Node, Request, run, stderr, stdout};
use crate::ledger::Ledger;

#[track_caller]
pub(crate) fn golden(name: &str, text: &str) {
    let file = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).join(name);
    if std::env::var_os("MAINSTAY_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, text).unwrap();
    }
    let kept = std::fs::read_to_string(&file).unwrap_or_default();
    if kept != text {
        let first = kept.lines().zip(text.lines()).position(|(a, b)| a != b);
        let line = first.unwrap_or(kept.lines().count().min(text.lines().count()));
        let (was, is) = (kept.lines().nth(line), text.lines().nth(line));
        panic!("{name}, line {}: {was:?} became {is:?}; MAINSTAY_BLESS=1 writes it anew", line + 1);
    }
}

/// The names of the subcommands in a help text.
fn verbs(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or("");
    let lines = list.lines().take_while(|l| !l.is_empty());
    let names = lines.filter_map(|l| l.strip_prefix("  ")?.split(' ').next().filter(|n| !n.is_empty()));
    names.filter(|n| *n != "help").map(str::to_owned).collect()
}

#[test]
fn the_help_of_every_command() {
    let mut all = String::new();
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let output = run(&args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        let help = stdout(&output);
        for verb in verbs(&help).into_iter().rev() {
            open.push([&path[..], &[verb]].concat());
        }
        let trimmed: Vec<&str> = help.lines().map(str::trim_end).collect();
        all.push_str(&format!("$ mainstay {}\n{}\n\n", args.join(" "), trimmed.join("\n")));
    }
    assert!(all.contains("$ mainstay saga run --help") && all.contains("$ mainstay audit verify --help"));
    golden("help.txt", &all);
}

#[test]
fn every_command_has_a_manual_page() {
    let dir = tempfile::tempdir().unwrap();
    assert!(run(&["man", "--dir", dir.path().to_str().unwrap()]).status.success());
    for page in [
        "mainstay.1",
        "mainstay-serve.1",
        "mainstay-saga.1",
        "mainstay-saga-run.1",
        "mainstay-audit-verify.1",
    ] {
        let text = std::fs::read_to_string(dir.path().join(page)).unwrap_or_else(|e| panic!("{page}: {e}"));
        assert!(text.contains(".SH NAME"), "{page}");
    }
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&run(&["completions", shell]));
        assert!(script.contains("mainstay") && script.contains("saga"), "{shell}");
    }
}

#[test]
fn the_description_of_the_api() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let document = node.get("/openapi.json").json();
    golden("openapi.json", &format!("{document:#}\n"));
}

#[test]
fn the_keys_of_the_configuration_and_the_codes() {
    golden("config.json", &stdout(&run(&["config", "show", "--origin", "-o", "json"])));
    golden("config-schema.json", &stdout(&run(&["config", "schema"])));
    golden("codes.txt", &stdout(&run(&["explain"])));
}

/// A saga as table and as progress lines; what differs from run to run is replaced.
#[test]
fn a_saga_as_people_see_it() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = node(dir.path(), &ledger.origin, &order(&ledger.origin));
    let server = format!("http://{}", node.address);
    let base = ["saga", "run", "order", "--server", &server, "--id", "o-1", "--wait", WAIT];
    let done = run(&base);
    assert!(done.status.success());
    let uid = stdout(&done).split(' ').next().unwrap().to_owned();
    let plain = |text: String| text.replace(&uid, "UID");
    let said = stderr(&done);
    // Not a terminal: a line per change, the last says how it ended, and nothing moves a cursor.
    assert_eq!(said.lines().last(), Some("order o-1: completed"), "{said}");
    assert!(!said.contains('\r') && !said.contains('\u{1b}'), "{said}");
    let shown = run(&["saga", "show", &uid, "--server", &server, "--watch"]);
    golden("saga.txt", &plain(stdout(&done) + &stdout(&shown)));
    // People know the id that they gave.
    let by_id = run(&["saga", "show", "o-1", "--server", &server]);
    assert_eq!(stdout(&by_id), stdout(&shown), "{}", stderr(&by_id));
    let nobody = run(&["saga", "cancel", "o-2", "--reason", "x", "--server", &server]);
    assert!(stderr(&nobody).contains("MS0107: no saga has the uid or the id `o-2`"), "{}", stderr(&nobody));
    // The saga is run again from its last step, and a bulk action counts first.
    let again = [
        "saga",
        "run-again",
        &uid,
        "--from",
        "ship",
        "--reason",
        "lost parcel",
        "--server",
        &server,
        "-o",
        "json",
    ];
    let again = run(&again);
    assert!(again.status.success(), "{}", stderr(&again));
    let again: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(again["again_of"], uid.as_str());
    let ended = node.settled(again["uid"].as_str().unwrap());
    assert_eq!(ended["status"], "completed");
    let bulk = |more: &[&str]| {
        let base = ["saga", "bulk", "cancel", "status=completed", "--reason", "x", "--server", &server];
        run(&[&base[..], more].concat())
    };
    assert!(stdout(&bulk(&[])).contains('2'), "two match");
    let failed = bulk(&["--yes"]);
    assert_eq!(failed.status.code(), Some(1), "a finished saga cannot be cancelled: {}", stdout(&failed));
    assert_eq!(node.send(&Request::new("GET", "/v1/jobs")).json()["items"][0]["failures"], 2);
}
