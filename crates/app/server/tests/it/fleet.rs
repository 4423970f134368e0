//! Three nodes as real processes on loopback: they find each other, name each other's open breakers, and notice a death.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Node, Request, eventually, run, stderr, stdout, token, within};

/// Two shared keys, hexadecimal.
pub(crate) const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const OTHER: &str = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

pub(crate) fn key_file(path: &Path, text: &str, mode: u32) {
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new().create_new(true).write(true).mode(mode).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// An origin that refuses every connection. Not a port that was free a moment ago: another test may get it next.
const NOBODY: &str = "http://127.0.0.1:1";

fn settings(dir: &Path, name: &str, seed: &str) -> std::path::PathBuf {
    let text = format!(
        "[gossip]\nbind = \"127.0.0.1:0\"\nname = \"{name}\"\ncluster = \"test\"\nkey_file = \"{key}\"\n\
         members = [\"a\", \"b\", \"c\"]\nseeds = [{seed}]\n\
         [participants]\nallow = [\"{NOBODY}\"]\nallow_network = [\"127.0.0.0/8\"]\nbreaker = true\n",
        key = dir.join("key").display(),
    );
    let folder = dir.join("definitions");
    std::fs::create_dir_all(&folder).unwrap();
    let ping = format!(
        "name = \"ping\"\nversion = 1\ndeadline = \"600s\"\ntimeout = \"2s\"\n[retry]\nattempts = 1000\nbase = \"5ms\"\n\
         cap = \"50ms\"\n[[steps]]\nname = \"ping\"\naction = \"{NOBODY}/ping\"\nundo = \"{NOBODY}/undo\"\n"
    );
    std::fs::write(folder.join("ping.toml"), ping).unwrap();
    let text = format!("{text}[saga]\ndefinitions = \"{}\"\n", folder.display());
    let file = dir.join(format!("{name}.toml"));
    std::fs::write(&file, text).unwrap();
    file
}

fn start(dir: &Path, name: &str, seed: &str) -> Node {
    let config = settings(dir, name, seed);
    Node::start(&dir.join(name), &["--config", config.to_str().unwrap()])
}

/// Where a node's gossip is.
fn gossip_of(node: &Node) -> String {
    let log = node.log();
    let line = log.lines().find(|l| l.contains("mainstay: gossip of")).unwrap();
    line.rsplit_once(" is at ").unwrap().1.to_owned()
}

fn nodes(node: &Node) -> Value {
    let answer = node.get("/v1/nodes");
    assert_eq!(answer.status, 200);
    answer.json()
}

fn states(node: &Node) -> Vec<(String, String)> {
    let text = |v: &Value| v.as_str().unwrap_or("").to_owned();
    nodes(node)["nodes"].as_array().unwrap().iter().map(|n| (text(&n["name"]), text(&n["state"]))).collect()
}

fn see(node: &Node, want: [&str; 3]) {
    let want: Vec<(String, String)> =
        ["a", "b", "c"].iter().zip(want).map(|(n, s)| ((*n).to_owned(), s.to_owned())).collect();
    eventually("the fleet is seen as it is", || (states(node) == want).then_some(()));
}

/// Waits until a text has all of these.
fn shows<const N: usize>(what: &str, parts: [&str; N], text: impl Fn() -> String) {
    let mut last = String::new();
    let found = within(|| {
        last = text();
        parts.iter().all(|part| last.contains(part)).then_some(())
    });
    assert!(found.is_some(), "{what} never had {parts:?}: {last}");
}

/// Sagas whose only step nobody takes, until the breaker of `node` opens.
fn trip(node: &Node) {
    for n in 0..30 {
        let start = Request::new("POST", "/v1/sagas")
            .header("content-type", "application/json")
            .header("idempotency-key", &format!("ping-{n}"))
            .body(json!({"definition": "ping"}).to_string());
        let answer = node.send(&start);
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
}

#[test]
fn three_nodes_see_each_other_their_breakers_and_a_death() {
    let dir = tempfile::tempdir().unwrap();
    key_file(&dir.path().join("key"), &format!("1:{SECRET}\n"), 0o600);
    let a = start(dir.path(), "a", "");
    let seed = format!("\"{}\"", gossip_of(&a));
    let b = start(dir.path(), "b", &seed);
    let c = start(dir.path(), "c", &seed);
    see(&a, ["here", "up", "up"]);
    see(&c, ["up", "up", "here"]);
    let status = eventually("a knows the status of c", || {
        let all = nodes(&a);
        all["nodes"][2]["version"].is_string().then_some(all)
    });
    assert_eq!(status["nodes"][2]["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["nodes"][2]["api"].as_str().unwrap().contains(&c.address));
    assert_eq!((&status["gossip"], &status["cluster"]), (&json!(true), &json!("test")));

    trip(&b);
    let open = eventually("a and c name the open breaker of b", || {
        let seen = [nodes(&a), nodes(&c)];
        let named = |n: &Value| n["breakers"][0]["nodes"] == json!(["b"]) && n["breakers"][0]["of"] == 3;
        seen.iter().all(named).then(|| seen[0].clone())
    });
    assert_eq!(open["breakers"][0]["name"], json!(NOBODY));
    assert_eq!(open["breakers"][0]["open_on"], json!(1));
    // Each of these looks for itself, and a node that stood still is suspected for a moment.
    let (up, open) = (
        "mainstay_fleet_nodes{state=\"up\"} 2",
        format!("mainstay_fleet_breaker_open_nodes{{name=\"{NOBODY}\"}} 1"),
    );
    shows("the page", ["3 of 3 nodes", "seen open by b"], || a.get("/console/nodes").text());
    shows("the metrics", [up, open.as_str()], || a.get("/metrics").text());
    let server = format!("http://{}", a.address);
    shows("the doctor", ["3 of 3 nodes are there"], || {
        let doctor = run(&["doctor", "--live", "--server", &server]);
        stdout(&doctor) + &stderr(&doctor)
    });

    // Its breaker does not count any more when it is gone.
    b.kill();
    see(&a, ["here", "down", "up"]);
    see(&c, ["up", "down", "here"]);
    eventually("its breaker is forgotten", || (nodes(&a)["breakers"] == json!([])).then_some(()));
    let b = start(dir.path(), "b", &seed);
    see(&c, ["up", "up", "here"]);
    see(&b, ["up", "here", "up"]);
    compare(dir.path(), a, c);
}

/// What the nodes wrote when they stopped, compared and replayed.
fn compare(dir: &Path, mut a: Node, mut c: Node) {
    assert_eq!((a.stop(), c.stop()), (Some(0), Some(0)));
    let [a, c] = ["a", "c"].map(|n| dir.join(n).join("gossip.state"));
    let log = dir.join("log");
    std::fs::write(&log, [std::fs::read(&a).unwrap(), std::fs::read(&c).unwrap()].concat()).unwrap();
    let replayed = run(&["replica", "replay", log.to_str().unwrap(), "-o", "json"]);
    assert!(replayed.status.success(), "{}", stderr(&replayed));
    let shown: Value = serde_json::from_str(&stdout(&replayed)).unwrap();
    assert_eq!((&shown["snapshots"], &shown["converged"]), (&json!(2), &json!(true)));
    assert_eq!(shown["keys"]["node/a"]["version"], env!("CARGO_PKG_VERSION"));
    let same = run(&["replica", "diff", a.to_str().unwrap(), a.to_str().unwrap()]);
    assert!(same.status.success() && stderr(&same).contains("no key differs"));
}

/// Two nodes with different keys, so that they do not hear each other; the file of both holds that of the second one.
fn strangers(dir: &Path) -> (Node, Node) {
    let key = dir.join("key");
    key_file(&key, &format!("1:{SECRET}\n"), 0o600);
    let a = start(dir, "a", "");
    let seed = format!("\"{}\"", gossip_of(&a));
    key_file(&key, &format!("1:{OTHER}\n"), 0o600);
    let b = start(dir, "b", &seed);
    (a, b)
}

#[test]
fn running_nodes_are_compared_over_their_api() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = strangers(dir.path());
    // The same token on both.
    let secret = token(&dir.path().join("a"), "reader", "read");
    std::fs::copy(dir.path().join("a").join("tokens"), dir.path().join("b").join("tokens")).unwrap();
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, secret).unwrap();
    let urls = [&a, &b].map(|node| format!("http://{}", node.address));
    let diff = |more: &[&str]| {
        let compared = run(&[&["replica", "diff", &urls[0], &urls[1], "-o", "json"], more].concat());
        (compared.status.code(), stdout(&compared), stderr(&compared))
    };
    let refused = eventually("tokens are needed", || {
        let (code, out, said) = diff(&[]);
        (code == Some(1) && out.is_empty()).then_some(said)
    });
    assert!(refused.contains("MS0102"), "{refused}");

    let with = ["--token-file", token_file.to_str().unwrap()];
    let shown = eventually("each knows itself", || {
        let shown: Value = serde_json::from_str(&diff(&with).1).ok()?;
        (shown["keys"].as_array().unwrap().len() == 2).then_some(shown)
    });
    assert_eq!((&shown["a"]["name"], &shown["b"]["name"]), (&json!("a"), &json!("b")));
    assert_eq!((&shown["a"]["unseen"], &shown["b"]["unseen"]), (&json!(1), &json!(1)), "{shown}");
    let only = &shown["keys"][0];
    assert_eq!((&only["key"], &only["b"]), (&json!("node/a"), &Value::Null));
    assert_eq!(only["a"]["version"], env!("CARGO_PKG_VERSION"));
    assert!(only["why"][0].as_str().unwrap().starts_with("B has not seen "), "{only}");

    a.signal(rustix::process::Signal::HUP);
    eventually("they agree", || {
        let (code, _, said) = diff(&with);
        (code == Some(0) && said.contains("no key differs")).then_some(())
    });
}

#[test]
fn keys_are_exchanged_by_hup_and_strangers_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = strangers(dir.path());
    eventually("the stranger is counted", || {
        let text = a.get("/metrics").text();
        let line = text.lines().find(|l| l.contains("reason=\"unauthenticated\""))?.to_owned();
        (!line.ends_with(" 0")).then_some(())
    });
    assert_eq!(
        states(&a),
        [("a", "here"), ("b", "unseen"), ("c", "unseen")].map(|(n, s)| (n.into(), s.into()))
    );
    a.signal(rustix::process::Signal::HUP);
    see(&a, ["here", "up", "unseen"]);
    see(&b, ["up", "here", "unseen"]);
}

#[test]
fn what_gossip_needs_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let key = dir.path().join("key");
    let refused = |what: &str| {
        let config = settings(dir.path(), "a", "");
        let data = dir.path().join("a");
        let args = ["serve", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0", "--config"];
        let output = run(&[&args[..], &[config.to_str().unwrap()]].concat());
        assert!(!output.status.success());
        let said = stderr(&output);
        assert!(said.contains(what), "{said}");
        assert!(!said.contains(&SECRET[8..]), "a secret is shown: {said}");
    };
    refused("MS0002");
    key_file(&key, &format!("1:{SECRET}\n"), 0o644);
    refused("others may read it");
    key_file(&key, &format!("1:{}\n", &SECRET[..62]), 0o600);
    refused("line 1");
    key_file(&key, &format!("1:{SECRET}\n"), 0o600);
    std::fs::write(dir.path().join("a").join("gossip.state"), b"not one").unwrap();
    refused("MS0018");
}

#[test]
fn without_gossip_a_node_is_on_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let want = json!({"gossip": false, "cluster": null, "nodes": [], "breakers": []});
    assert_eq!(nodes(&node), want);
    assert!(node.get("/console/nodes").text().contains("on its own"));
    assert_eq!(node.get("/v1/nodes/state").problem(), "MS0107");
    let url = format!("http://{}", node.address);
    let compared = run(&["replica", "diff", &url, &url]);
    assert!(!compared.status.success() && stderr(&compared).contains("on its own"), "{}", stderr(&compared));
}
