//! Tokens that reach a part of a node only.

use serde_json::Value;

use crate::end_to_end::node;
use crate::harness::{Answer, Node, Request, run, stderr, stdout, token};

/// Nobody listens there: the saga goes on retrying.
const NOWHERE: &str = "http://127.0.0.1:9";

fn definition(name: &str) -> String {
    format!(
        "name = \"{name}\"\nversion = 1\ndeadline = \"1h\"\ntimeout = \"1s\"\n[retry]\nattempts = 1000\n\
         [[steps]]\nname = \"a\"\naction = \"{NOWHERE}/a\"\nundo = \"{NOWHERE}/u\"\n"
    )
}

/// A token of `team-a` alone.
fn narrow(data: &std::path::Path, verb: &str) -> String {
    let name = format!("narrow-{verb}");
    let args = ["token", "create", "--data", data.to_str().unwrap(), "--name", &name, "--verb", verb];
    let output = run(&[&args[..], &["--namespace", "team-a"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim().to_owned()
}

fn start(node: &Node, secret: &str, definition: &str, key: &str) -> Answer {
    let post = Request::new("POST", "/v1/sagas").bearer(secret).header("idempotency-key", key);
    node.send(&post.body(format!("{{\"definition\":\"{definition}\"}}")))
}

/// Every route of the description of the API, asked by a token of another namespace with all the rights there are.
#[test]
fn sec_04_every_route_refuses_a_token_of_another_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path(), NOWHERE, &definition("team-b.x"));
    let data = dir.path().join("data");
    let (all, narrow) = (token(&data, "all", "admin"), narrow(&data, "admin"));
    let uid = start(&node, &all, "team-b.x", "k").json()["uid"].as_str().unwrap().to_owned();
    let document = node.send(&Request::new("GET", "/openapi.json").bearer(&all)).json();
    // What tells nothing about anybody's work.
    let open = ["/livez", "/readyz", "/version", "/openapi.json", "/problems/{code}"];
    let bodies = [
        ("/v1/sagas", "{\"definition\":\"team-b.x\"}"),
        ("/v1/sagas/actions", "{\"filter\":{\"status\":\"running\"},\"action\":\"cancel\",\"reason\":\"r\"}"),
        ("/v1/sagas/{uid}/actions", "{\"action\":\"cancel\",\"reason\":\"r\"}"),
        ("/v1/sagas/{uid}/steps/{step}/complete", "{\"attempt\":1,\"outcome\":\"done\"}"),
        (
            "/v1.0-alpha1/lock/{store}",
            "{\"resourceId\":\"team-b.x\",\"lockOwner\":\"o\",\"expiryInSeconds\":5}",
        ),
        ("/v1.0-alpha1/unlock/{store}", "{\"resourceId\":\"team-b.x\",\"lockOwner\":\"o\"}"),
    ];
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        if open.contains(&path.as_str()) || path.starts_with("/v1.0/") {
            continue;
        }
        for method in methods.as_object().unwrap().keys() {
            let real = path.replace("{uid}", &uid).replace("{step}", "a").replace("{id}", "j");
            let real = real
                .replace("{store}", "default")
                .replace("{name}", "team-b.x")
                .replace("{group}", "team-b.x");
            let mut request = Request::new(&method.to_uppercase(), &real).header("idempotency-key", "n");
            request = request.header("if-match", "\"1\"");
            if let Some((_, body)) = bodies.iter().find(|(p, _)| p == path) {
                request = request.body(*body);
            }
            let answer = node.send(&request.clone().bearer(&narrow));
            match (method.as_str(), path.as_str()) {
                // Lists of what may be reached: there is nothing.
                ("get", "/v1/definitions" | "/v1/locks") => {
                    assert_eq!(answer.json()["items"], Value::Array(Vec::new()), "{path}");
                }
                // What may not be reached does not exist.
                (_, p) if p.starts_with("/v1/sagas/{uid}") || p == "/v1/jobs/{id}" => {
                    assert_eq!(
                        (answer.status, answer.problem().as_str()),
                        (404, "MS0107"),
                        "{method} {path}"
                    );
                }
                _ => assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text()),
            }
            asked += 1;
        }
    }
    assert!(asked >= 38, "{asked} routes were asked");
    let after = node.send(&Request::new("GET", &format!("/v1/sagas/{uid}")).bearer(&all)).json();
    assert_eq!(after["status"], "running", "nobody moved it");
    for page in ["/console/now", "/console/sagas", "/metrics"] {
        assert_eq!(node.send(&Request::new("GET", page).bearer(&narrow)).status, 403, "{page}");
    }
}

#[test]
fn sec_04_a_token_works_in_its_own_namespace_by_its_verb() {
    let dir = tempfile::tempdir().unwrap();
    let node = node(dir.path(), NOWHERE, &definition("team-a.x"));
    let data = dir.path().join("data");
    let (operate, read) = (narrow(&data, "operate"), narrow(&data, "read"));
    let uid = start(&node, &operate, "team-a.x", "k").json()["uid"].as_str().unwrap().to_owned();
    let get = |path: &str| node.send(&Request::new("GET", path).bearer(&read));
    assert_eq!(get(&format!("/v1/sagas/{uid}/history")).status, 200);
    assert_eq!(get("/v1/sagas?definition=team-a.x").json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(get("/v1/sagas").problem(), "MS0103", "all definitions are more than its own");
    assert_eq!(get("/v1/definitions").json()["items"].as_array().unwrap().len(), 1);
    assert_eq!(get("/v1/attention?definition=team-a.x").json()["total"], Value::Null);
    let put = |path: &str, secret: &str| {
        let request = Request::new("PUT", path).bearer(secret).body("{\"owner\":\"o\",\"ttl\":\"1h\"}");
        node.send(&request).status
    };
    assert_eq!(put("/v1/locks/team-a%2Fnightly", &operate), 200);
    assert_eq!(put("/v1/locks/team-a%2Fnightly", &read), 403, "the verb counts besides");
    assert_eq!(put("/v1/locks/team-ab", &operate), 403);
    assert_eq!(
        put("/v1/locks/election%2Fteam-a", &operate),
        403,
        "the lock behind an election has another name"
    );
    assert_eq!(put("/v1/elections/team-a", &operate), 200);
    assert_eq!(get("/v1/locks").json()["items"].as_array().unwrap().len(), 1);
    let listed = stdout(&run(&["token", "ls", "--data", data.to_str().unwrap()]));
    assert!(listed.contains("team-a"), "{listed}");
    assert!(run(&["token", "revoke", "narrow-read", "--data", data.to_str().unwrap()]).status.success());
    assert_eq!(get("/v1/definitions").status, 401, "revoked at once");
}

#[test]
fn sec_04_a_token_ends_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    token(dir.path(), "other", "read");
    let output = run(&["token", "create", "--data", data, "--name", "brief", "--expires", "1ms"]);
    let node = Node::start(dir.path(), &[]);
    let get = Request::new("GET", "/version").bearer(stdout(&output).trim());
    assert_eq!(node.send(&get).status, 401);
}
