//! The command line as a client of a node: of one that is there, and of what is there instead.

use std::process::Output;

use crate::end_to_end::{WAIT, node, order};
use crate::harness::{Node, Request, run, stderr, stdout, token};
use crate::ledger::Ledger;
use crate::recorder::{Recorder, reply};

fn at(server: &str, args: &[&str]) -> Output {
    run(&[args, &["--server", server]].concat())
}

/// A list of no sagas, an audit without a line and a healthy node were read from whatever answered 200.
#[test]
fn what_is_no_node_is_said_and_its_answers_are_not_believed() {
    let page = Recorder::start(|_| reply("200 OK", "content-type: text/html\r\n", "<html>welcome</html>"));
    let json = Recorder::content();
    let error = Recorder::start(|_| reply("502 Bad Gateway", "", "<html>no backend</html>"));
    for (server, status) in [(&page.origin, "200"), (&json.origin, "200"), (&error.origin, "502")] {
        for verb in [
            &["saga", "ls"][..],
            &["saga", "run", "order"],
            &["saga", "cancel", "order-7", "--reason", "x"],
            &["audit", "export"],
            &["audit", "verify"],
        ] {
            let output = at(server, verb);
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{verb:?} {status}: {}{said}", stdout(&output));
            assert!(said.contains("MS0012") && said.contains("no node of mainstay"), "{verb:?}: {said}");
            assert!(said.contains(status) && said.contains(server), "{verb:?}: {said}");
            assert_eq!(stdout(&output), "", "{verb:?}");
        }
        let output = at(server, &["doctor", "--live"]);
        assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    }
}

/// A proxy that leads from http to https made a GET of a start, and nobody said so.
#[test]
fn a_redirect_is_named_and_not_followed() {
    let node = Recorder::content();
    let location = format!("location: {}/v1/sagas\r\n", node.origin);
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect"] {
        let head = location.clone();
        let proxy = Recorder::start(move |_| reply(status, &head, ""));
        let output = at(&proxy.origin, &["saga", "run", "order"]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("MS0012") && said.contains(&node.origin), "{said}");
    }
    assert!(node.seen().is_empty(), "{:?}", node.seen());
}

/// Nobody knew the key that was made for them, so that a start without an answer could not be repeated.
#[test]
fn if_a02_a_start_without_an_answer_names_the_key_to_repeat_it_with() {
    // The request is read, and nothing that could be understood comes back: to the start, or to the look at what began.
    let nonsense = || b"nonsense\r\n\r\n".to_vec();
    let begun = "{\"uid\": \"u-1\", \"id\": \"u-1\"}";
    let begins = move |head: &str| match head.starts_with("POST ") {
        true => reply("202 Accepted", "", begun),
        false => nonsense(),
    };
    for silent in [Recorder::start(move |_| nonsense()), Recorder::start(begins)] {
        let output = at(&silent.origin, &["saga", "run", "order", "--wait", "1s"]);
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let key = said.split("--key ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        let (head, _) = silent.seen().into_iter().find(|(head, _)| head.starts_with("POST ")).unwrap();
        assert!(!key.is_empty() && head.contains(&format!("idempotency-key: {key}")), "{said}\n{head}");
    }
}

#[test]
fn if_a02_a_run_again_repeated_under_its_key_is_one_saga() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = node(dir.path(), &ledger.origin, &order(&ledger.origin));
    let server = format!("http://{}", node.address);
    // An id of one's own may look like a uid; it was "no such saga".
    let id = "0b8e7c5a-5f0e-4d0e-9d0f-2c8f3d1a4e11";
    assert!(at(&server, &["saga", "run", "order", "--id", id, "--wait", WAIT]).status.success());
    let again =
        ["saga", "run-again", id, "--reason", "the parcel was lost", "--key", "again-7", "-o", "json"];
    let uid = |output: &Output| -> String {
        assert!(output.status.success(), "{}", stderr(output));
        let saga: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        saga["uid"].as_str().unwrap().to_owned()
    };
    let first = uid(&at(&server, &again));
    assert_eq!(uid(&at(&server, &again)), first, "one answer was lost, and one saga runs");
    assert_eq!(uid(&at(&server, &["saga", "show", &first, "-o", "json"])), first, "a uid is one");
    let unknown = at(&server, &["saga", "show", "0b8e7c5a-5f0e-4d0e-9d0f-2c8f3d1a4e12"]);
    assert!(stderr(&unknown).contains("MS0107: no saga has the uid or the id `0b8e"), "{}", stderr(&unknown));
}

#[test]
fn what_is_no_json_is_said_with_its_argument() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("in.json");
    std::fs::write(&file, "{").unwrap();
    let named = format!("@{}", file.display());
    for (args, said) in [
        (&["saga", "run", "order", "--input", "{"][..], "--input is not JSON".to_owned()),
        (&["saga", "run", "order", "--input", &named], format!("--input: {} is not JSON", file.display())),
        (
            &["saga", "run", "order", "--input", "@/dev/zero"],
            "--input: cannot read /dev/zero: it is larger".to_owned(),
        ),
        (
            &["saga", "resolve", "x", "--step", "s", "--as", "done", "--output-json", "{", "--reason", "r"],
            "--output-json is not JSON".to_owned(),
        ),
    ] {
        let output = at("http://127.0.0.1:1", args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(&said), "{args:?}: {}", stderr(&output));
    }
}

/// What was no UTF-8 became another text, which the node stored; a device was read until memory was gone.
#[test]
fn a_definition_that_is_no_text_or_has_no_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = "name = \"two\"\nversion = 1\ndeadline = \"20s\"\n[[steps]]\nname = \"a\"\n\
        action = \"http://127.0.0.1:1/a\"\nno_undo = \"caf\u{e9}\"\n";
    let latin: Vec<u8> = text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    let file = dir.path().join("latin.toml");
    std::fs::write(&file, latin).unwrap();
    for file in [file.to_str().unwrap(), "/dev/zero"] {
        let output = run(&["saga", "check", file]);
        assert_eq!(output.status.code(), Some(1), "{file}: {}", stdout(&output));
        assert!(stderr(&output).contains("MS0011") && stderr(&output).contains(file), "{}", stderr(&output));
    }
    let endless = run(&["config", "check", "--config", "/dev/zero"]);
    assert!(stderr(&endless).contains("MS0003: cannot read /dev/zero: it is larger"), "{}", stderr(&endless));
}

/// It said that the configuration is valid, and the node did not start with it.
#[test]
fn config_check_refuses_what_the_node_would() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("m.toml");
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::create_dir(path("definitions")).unwrap();
    let definition = "name = \"d\"\nversion = 1\ndeadline = \"1h\"\n[[steps]]\nname = \"s\"\n\
        action = \"http://127.0.0.1:9/s\"\nno_undo = \"it reads\"\n";
    std::fs::write(path("definitions/d.toml"), definition).unwrap();
    std::fs::write(path("not-a-certificate"), "x").unwrap();
    let (definitions, pem) = (path("definitions"), path("not-a-certificate"));
    let allowed = format!(
        "[saga]\ndefinitions = \"{definitions}\"\n[participants]\nallow = [\"http://127.0.0.1:9\"]\n"
    );
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        run(&["config", "check", "--config", file.to_str().unwrap()])
    };
    let good = check(&allowed);
    assert!(good.status.success(), "{}", stderr(&good));
    for (text, code) in [
        (allowed.replace("127.0.0.1:9\"]", "127.0.0.1:10\"]"), "MS0011"),
        (format!("[saga]\ndefinitions = \"{}\"\n", path("no")), "MS0011"),
        ("[participants]\nallow = [\"nonsense\"]\n".to_owned(), "MS0002"),
        ("[participants]\nallow_network = [\"10.0.0.0/99\"]\n".to_owned(), "MS0002"),
        (format!("[participants]\nsign = [\"http://a.test={}\"]\n", path("no")), "MS0002"),
        (format!("[participants]\npolicies = \"{}\"\n", path("no")), "MS0002"),
        ("[log]\nfilter = \"a=b=c\"\n".to_owned(), "MS0002"),
        ("[server]\nlisten = \"nonsense\"\n".to_owned(), "MS0006"),
        ("[server]\nlisten = \"0.0.0.0:4600\"\n".to_owned(), "MS0005"),
        (format!("[server]\ntls_cert = \"{pem}\"\n"), "MS0015"),
        (format!("[server]\ntls_cert = \"{pem}\"\ntls_key = \"{pem}\"\n"), "MS0015"),
        ("[server]\ntls_clients = [\"dns:a=read\"]\n".to_owned(), "MS0002"),
        (format!("[gossip]\nbind = \"127.0.0.1:0\"\nkey_file = \"{}\"\n", path("no")), "MS0002"),
    ] {
        let output = check(&text);
        let (said, data) = (stderr(&output), path("data"));
        assert!(!output.status.success() && said.contains(code), "{text}: {said}");
        // The node says the same.
        let serve = run(&["serve", "--config", file.to_str().unwrap(), "--data", &data]);
        assert!(!serve.status.success(), "{text}");
        // Of many definitions with a step of one name, which one.
        assert!(
            !said.contains("not allowed") || stderr(&serve).contains("`d`: step `s`"),
            "{}",
            stderr(&serve)
        );
        let token_first = code == "MS0005" && stderr(&serve).contains("MS0004");
        assert!(token_first || stderr(&serve).contains(code), "{text}: {}", stderr(&serve));
    }
}

/// A job of which the audit could not take a line was running for ever, in one of a hundred places.
#[test]
fn if_h06_a_bulk_action_that_is_not_on_record_is_no_job() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let db = rusqlite::Connection::open(dir.path().join("mainstay.db")).unwrap();
    db.busy_timeout(crate::harness::PATIENCE).unwrap();
    let bulk = |filter: &str| {
        let body = format!("{{\"filter\": {filter}, \"action\": \"pause\", \"reason\": \"x\"}}");
        node.send(&Request::new("POST", "/v1/sagas/actions").body(body))
    };
    let jobs = || node.get("/v1/jobs").json()["items"].as_array().unwrap().len();
    db.execute_batch("alter table audit rename to gone").unwrap();
    assert_eq!(bulk("{\"definition\": \"order\"}").status, 503);
    assert_eq!(jobs(), 0, "{}", node.get("/v1/jobs").text());
    db.execute_batch("alter table gone rename to audit").unwrap();
    assert_eq!(bulk("{\"definition\": \"order\"}").status, 202);
    assert_eq!(jobs(), 1);
    // What a filter says is in the audit for ever.
    let long = bulk(&format!("{{\"error~\": \"{}\"}}", "x".repeat(9_000)));
    assert_eq!((long.status, long.problem().as_str()), (400, "MS0127"), "{}", long.text());
    assert_eq!(jobs(), 1);
}

/// The folder of a node that is reachable by others is made by the command that makes its first token.
#[test]
fn sec_02_the_database_of_a_folder_made_for_a_token_is_for_its_owner_only() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    token(&data, "ann", "admin");
    let _node = Node::start(&data, &[]);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&data).unwrap());
    assert!(data.join("mainstay.db").exists());
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}
