//! A node whose leases are on a server: its API, its console and commands of the same store exclude each other.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::machine::{PATIENCE, finish};
use crate::{Wrapper, run, until};

/// A running node; killed by its id when dropped.
struct Node {
    child: Child,
    address: String,
}

fn serve(store: &str, data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--leases", store, "--data"]).arg(data);
    command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null());
    command
}

impl Node {
    fn start(store: &str, data: &Path) -> Self {
        let mut child = serve(store, data).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let mut node = Self { child, address: String::new() };
        let mut said = String::new();
        for line in &mut lines {
            if let Some((_, url)) = line.split_once("mainstay: listening on http://") {
                url.clone_into(&mut node.address);
                break;
            }
            said.push_str(&line);
        }
        assert!(!node.address.is_empty(), "the node ended before it listened: {said}");
        // A node whose log nobody reads would wait for a reader.
        std::thread::spawn(move || lines.for_each(drop));
        node
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Status and body; the token is shown as `If-Match`.
    fn ask(&self, line: &str, token: Option<&str>, body: &Value) -> (u16, Value) {
        let (status, text) = self.text(line, token, body);
        (status, serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}")))
    }

    fn text(&self, line: &str, token: Option<&str>, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let shown = token.map_or(String::new(), |token| format!("if-match: \"{token}\"\r\n"));
        let head = format!(
            "{line} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n{shown}\r\n",
            self.address,
            body.len(),
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.unwrap_or_else(|| panic!("{line}: no answer: {answer}"));
        (status, answer.split_once("\r\n\r\n").unwrap_or_default().1.to_owned())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn number(token: &Value) -> u64 {
    token.as_str().unwrap().parse().unwrap()
}

/// What a node that starts again finds of what its clients hold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restart {
    /// All of it.
    Keeps,
    /// Maybe nothing: on a majority the same acquisition may come back under a newer token, and is then given back.
    MayEnd,
}

/// Locks, elections and members of a node are on the server of this URL.
pub(crate) fn serves(store: &str, restart: Restart) {
    let data = tempfile::tempdir().unwrap();
    let node = Node::start(store, data.path());
    let wanted = |owner: &str| json!({"owner": owner, "ttl": "30s", "note": "nightly"});
    let mut first = Value::Null;
    // Servers of a majority that have just started grant nothing for a while: they may have forgotten somebody.
    until("the store grants", || {
        let (status, body) = node.ask("PUT /v1/locks/api", None, &wanted("a"));
        first = body;
        status == 200
    });
    let token = first["token"].as_str().unwrap().to_owned();
    let (_, shown) = node.ask("GET /v1/locks/api", None, &Value::Null);
    let holder = &shown["holders"][0];
    assert_eq!(
        (holder["owner"].as_str(), holder["token"].as_str()),
        (Some("a"), Some(token.as_str())),
        "{shown}"
    );
    assert!(holder["since"].is_string() && holder["since_by"].is_string(), "{shown}");
    let refused = run(store, "lock", &["-n", "api", "--", "true"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(124) && said.contains("held by a since 20"), "{said}");
    let (status, held) = node.ask("PUT /v1/locks/api", None, &wanted("b"));
    assert!(status == 409 && held["detail"].as_str().unwrap().contains("held by `a` since 20"), "{held}");
    let (status, page) = node.text("GET /console/locks", None, &Value::Null);
    assert!(
        status == 200 && page.contains("held by <strong>a</strong>") && page.contains("since <time"),
        "{page}"
    );
    match restart {
        Restart::Keeps => goes_on(node, store, data.path(), &token),
        Restart::MayEnd => node.kill(),
    }
    let node = Node::start(store, data.path());
    // Given back, or it was before: nobody has it then.
    let (status, released) = node.ask("DELETE /v1/locks/api", Some(&token), &Value::Null);
    assert_eq!(status, 200, "{released}");
    until("it is free", || node.ask("GET /v1/locks/api", None, &Value::Null).1["holders"] == json!([]));
    hands_on(&node);
    leads(&node);
    let dapr = json!({"resourceId": "r", "lockOwner": "me", "expiryInSeconds": 30});
    let (_, taken) = node.ask("POST /v1.0-alpha1/lock/default", None, &dapr);
    assert_eq!(taken["success"], true, "{taken}");
    let (_, freed) =
        node.ask("POST /v1.0-alpha1/unlock/default", None, &json!({"resourceId": "r", "lockOwner": "me"}));
    assert_eq!(freed["status"], 0, "{freed}");
    // And the other way: what a command holds keeps the API out.
    let holder = Wrapper::holds(store, "api");
    assert_eq!(node.ask("PUT /v1/locks/api", None, &wanted("a")).0, 409);
    let (status, freed) = node.ask("DELETE /v1/locks/api?force=true&reason=tried", None, &Value::Null);
    assert!(status == 200 && number(&freed["token"]) > 0, "{freed}");
    assert_eq!(holder.code(), Some(75));
}

/// A node that was killed goes on with what its clients hold, and gives it back when they ask for that.
fn goes_on(node: Node, store: &str, data: &Path, token: &str) {
    node.kill();
    let node = Node::start(store, data);
    let (status, renewed) = node.ask("PATCH /v1/locks/api", Some(token), &Value::Null);
    assert!(status == 200 && renewed["token"] == token, "{renewed}");
    node.kill();
    let node = Node::start(store, data);
    let (status, released) = node.ask("DELETE /v1/locks/api", Some(token), &Value::Null);
    assert!(status == 200 && released["released"] == "clean", "{released}");
    let (_, shown) = node.ask("GET /v1/locks/api", None, &Value::Null);
    assert_eq!(shown["holders"], json!([]));
    assert_eq!(node.ask("PATCH /v1/locks/api", Some(token), &Value::Null).0, 412, "it is nobody's");
    let (_, shown) = node.ask("GET /v1/locks/api", None, &Value::Null);
    assert_eq!(shown["holders"], json!([]), "nobody asked for another one");
}

/// Whoever waits gets what is given back.
fn hands_on(node: &Node) {
    let wanted = |owner: &str| json!({"owner": owner, "ttl": "30s"});
    let (_, first) = node.ask("PUT /v1/locks/queue", None, &wanted("a"));
    let token = first["token"].as_str().unwrap();
    let second = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| node.ask("PUT /v1/locks/queue?wait=25s", None, &wanted("b")));
        let (status, released) = node.ask("DELETE /v1/locks/queue", Some(token), &Value::Null);
        assert_eq!(status, 200, "{released}");
        waiting.join().unwrap()
    });
    assert_eq!(second.0, 200, "{}", second.1);
    assert!(number(&second.1["token"]) > number(&first["token"]));
}

fn leads(node: &Node) {
    let wanted = json!({"owner": "a", "ttl": "30s", "value": "10.0.0.1:80"});
    let (status, term) = node.ask("PUT /v1/elections/boss", None, &wanted);
    assert_eq!(status, 200, "{term}");
    let (_, shown) = node.ask("GET /v1/elections/boss", None, &Value::Null);
    assert_eq!(
        (shown["leader"].as_str(), shown["value"].as_str()),
        (Some("a"), Some("10.0.0.1:80")),
        "{shown}"
    );
    assert!(shown["since"].is_string(), "{shown}");
    let token = term["token"].as_str();
    let (status, stays) = node.ask("POST /v1/elections/boss/step-down", token, &json!({"to": "nobody"}));
    assert!(status == 409 && stays["detail"].as_str().unwrap().contains("the leader stays"), "{stays}");
    assert_eq!(node.ask("DELETE /v1/elections/boss", token, &Value::Null).0, 200);
    let joined = json!({"owner": "a", "ttl": "30s", "meta": "zone=1"});
    let (status, member) = node.ask("PUT /v1/members/web/one", None, &joined);
    assert_eq!(status, 200, "{member}");
    until("the member is seen", || {
        node.ask("GET /v1/members/web", None, &Value::Null).1.to_string().contains("zone=1")
    });
}

/// A store that cannot do what the API asks for is refused at the start.
pub(crate) fn refuses(store: &str, why: &str) {
    let data = tempfile::tempdir().unwrap();
    let refused = finish(serve(store, data.path()), PATIENCE);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains(why), "{said}");
}
