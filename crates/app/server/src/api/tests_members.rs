//! Groups, streams and leases bound to a connection, over leases in memory.

use axum::body::BodyDataStream;
use axum::response::Response;
use futures_util::StreamExt as _;
use mainstay_clock::{Clock as _, SystemClock};
use serde_json::{Value, json};

use super::tests::{Bench, Got, PATIENCE, bench, until};
use crate::error::Code;

async fn put(bench: &Bench, path: &str, body: Value) -> Got {
    bench.send("PUT", path, &[], body.to_string().into_bytes()).await
}

async fn tagged(bench: &Bench, method: &str, path: &str, tag: &str, body: &str) -> Got {
    bench.send(method, path, &[("if-match", tag)], body.as_bytes().to_vec()).await
}

fn etag(got: &Got) -> String {
    got.headers["etag"].to_str().unwrap().to_owned()
}

fn names(got: &Got) -> Vec<&str> {
    got.body["members"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect()
}

/// An open stream of events.
struct Stream(BodyDataStream, String);

impl Stream {
    async fn open(bench: &Bench, path: &str, last: Option<&str>) -> Self {
        let headers: Vec<(&str, &str)> = last.iter().map(|id| ("last-event-id", *id)).collect();
        Self::of(bench.raw("GET", path, &headers, Vec::new()).await)
    }

    fn of(response: Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self(response.into_body().into_data_stream(), String::new())
    }

    /// The next event, bounded: its id, its name and its data; none at the end.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some((block, rest)) = self.1.split_once("\n\n") {
                let field = |name: &str| {
                    let line = block.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(": "));
                    line.unwrap_or_default().to_owned()
                };
                let (id, event, data) = (field("id"), field("event"), field("data"));
                self.1 = rest.to_owned();
                if !event.is_empty() {
                    return Some((id, event, serde_json::from_str(&data).unwrap()));
                }
                continue;
            }
            let clock = SystemClock::new();
            let chunk = tokio::select! {
                biased;
                chunk = self.0.next() => chunk?.unwrap(),
                () = clock.sleep(PATIENCE) => panic!("no event after {:?}", self.1),
            };
            self.1.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test]
async fn a_member_joins_renews_and_leaves_by_its_incarnation() {
    let bench = bench().await;
    let path = "/v1/members/work%2Fers/node%201";
    let joined = put(&bench, path, json!({"owner": "a", "ttl": "1000s", "meta": "10.0.0.7"})).await;
    assert_eq!(joined.status, 200, "{}", joined.body);
    assert_eq!((&joined.body["group"], &joined.body["name"]), (&json!("work/ers"), &json!("node 1")));
    let live = put(&bench, path, json!({"owner": "b", "ttl": "1000s"})).await;
    assert_eq!((live.status, live.code), (409, Some(Code::LeaseHeld)), "the name lives");
    let shown = bench.get(path).await;
    assert_eq!((&shown.body["meta"], etag(&shown)), (&json!("10.0.0.7"), etag(&joined)));
    let renewed = tagged(&bench, "PATCH", path, &etag(&joined), r#"{"meta": "10.0.0.8"}"#).await;
    assert_eq!(renewed.status, 200, "{}", renewed.body);
    assert_eq!(bench.get(path).await.body["meta"], "10.0.0.8");
    for wrong in ["\"99999\"", "\"x\"", ""] {
        let refused = tagged(&bench, "DELETE", path, wrong, "").await;
        assert_eq!((refused.status, refused.code), (412, Some(Code::LeaseGone)), "{wrong}");
    }
    let left = tagged(&bench, "DELETE", path, &etag(&joined), "").await;
    assert_eq!((left.status, &left.body["released"]), (200, &json!("clean")));
    assert_eq!(bench.get(path).await.status, 404);
    let again = put(&bench, path, json!({"ttl": "1000s"})).await;
    assert_eq!(bench.get(path).await.body["owner"], "local", "the caller, where nobody is named");
    assert_ne!(etag(&again), etag(&joined));
}

#[tokio::test]
async fn members_are_listed_and_waited_for() {
    let bench = bench().await;
    let empty = bench.get("/v1/members/w").await;
    assert!(names(&empty).is_empty());
    let path = "/v1/members/w?wait=60s";
    let tag = etag(&empty);
    let known = [("if-none-match", tag.as_str())];
    let (changed, joined) = tokio::join!(
        bench.send("GET", path, &known, Vec::new()),
        put(&bench, "/v1/members/w/one", json!({"ttl": "1000s"}))
    );
    assert_eq!((joined.status, names(&changed)), (200, vec!["one"]));
    let same =
        bench.send("GET", "/v1/members/w?wait=30ms", &[("if-none-match", &etag(&changed))], Vec::new()).await;
    assert_eq!((same.status, etag(&same)), (200, etag(&changed)));
}

#[tokio::test]
async fn what_is_no_member_is_refused() {
    let bench = bench().await;
    let long = "m".repeat(4_097);
    for (path, body) in [
        ("/v1/members/w/x", json!({"ttl": "1000s", "meta": long})),
        ("/v1/members/w/x", json!({"ttl": "never"})),
        ("/v1/members/w/x", json!({"owner": "a"})),
        ("/v1/members/w/x", json!({"ttl": "1000s", "other": 1})),
        ("/v1/members/w/x?bind=socket", json!({"ttl": "1000s"})),
        ("/v1/members/%0A/x", json!({"ttl": "1000s"})),
    ] {
        assert_eq!(put(&bench, path, body).await.status, 400, "{path}");
    }
    assert_eq!(bench.send("DELETE", "/v1/members/w/x", &[], Vec::new()).await.status, 428);
    assert_eq!(bench.get("/v1/members/w/x").await.status, 404);
    assert_eq!(bench.get("/v1/members/w?other=1").await.status, 400);
    assert_eq!(bench.get("/v1/observe/members/%0A").await.status, 400);
    assert!(names(&bench.get("/v1/members/w").await).is_empty());
}

#[tokio::test]
async fn if_a4_a_stream_of_a_group_begins_with_a_snapshot_and_goes_on_where_it_was_left() {
    let bench = bench().await;
    let one = put(&bench, "/v1/members/w/one", json!({"ttl": "1h", "meta": "1"})).await;
    let mut stream = Stream::open(&bench, "/v1/observe/members/w", None).await;
    // Held open, so that the stream lives on while the other comes and goes.
    let mut witness = Stream::open(&bench, "/v1/observe/members/w", None).await;
    let (id, event, data) = stream.next().await.unwrap();
    assert_eq!((event.as_str(), &data["members"][0]["name"]), ("snapshot", &json!("one")));
    drop(stream);
    // Each is seen before the next one: who comes and goes between two looks may not be told.
    let two = put(&bench, "/v1/members/w/two", json!({"ttl": "1h"})).await;
    while witness.next().await.unwrap().1 != "joined" {}
    tagged(&bench, "PATCH", "/v1/members/w/one", &etag(&one), r#"{"meta": "1b"}"#).await;
    while witness.next().await.unwrap().1 != "updated" {}
    tagged(&bench, "DELETE", "/v1/members/w/two", &etag(&two), "").await;
    while witness.next().await.unwrap().1 != "left" {}
    let mut back = Stream::open(&bench, "/v1/observe/members/w", Some(&id)).await;
    let mut told = Vec::new();
    while told.last().is_none_or(|t| t != "left two") {
        let (_, event, data) = back.next().await.unwrap();
        told.push(format!("{event} {}", data["name"].as_str().unwrap()));
    }
    assert_eq!(told, ["joined two", "updated one", "left two"], "nothing is missing and nothing comes twice");
    let mut foreign = Stream::open(&bench, "/v1/observe/members/w?after=0-7", None).await;
    assert_eq!(foreign.next().await.unwrap().1, "reset");
    assert_eq!(foreign.next().await.unwrap().1, "snapshot");
}

#[tokio::test]
async fn f23_an_observer_of_a_lock_and_of_an_election_gets_the_latest_holder() {
    let bench = bench().await;
    let mut lock = Stream::open(&bench, "/v1/observe/locks/x", None).await;
    let mut election = Stream::open(&bench, "/v1/observe/elections/e", None).await;
    assert_eq!(lock.next().await.unwrap().2["holders"], json!([]));
    assert_eq!(election.next().await.unwrap().2["leader"], Value::Null);
    let held = put(&bench, "/v1/locks/x", json!({"owner": "a", "ttl": "1h"})).await;
    let led = put(&bench, "/v1/elections/e", json!({"owner": "n1", "ttl": "1h", "value": "10.0.0.7"})).await;
    let (_, _, state) = lock.next().await.unwrap();
    assert_eq!(
        (&state["holders"][0]["owner"], &state["holders"][0]["token"]),
        (&json!("a"), &held.body["token"])
    );
    loop {
        let (_, _, state) = election.next().await.unwrap();
        assert!(state["leader"] != "n1" || state["term"] == led.body["token"], "never a mix: {state}");
        if state["value"] == "10.0.0.7" {
            break;
        }
    }
    tagged(&bench, "DELETE", "/v1/elections/e", &etag(&led), "").await;
    let (_, _, state) = election.next().await.unwrap();
    assert_eq!(state["leader"], Value::Null);
    bench.app.drain.cancel();
    assert_eq!(lock.next().await, None, "a node that stops ends its streams");
}

#[tokio::test]
async fn as_many_as_a_node_serves_observe_and_no_more() {
    let bench = bench().await;
    let mut readers = Vec::new();
    loop {
        let response = bench.raw("GET", "/v1/observe/locks/x", &[], Vec::new()).await;
        if response.status() != 200 {
            assert_eq!(response.status(), 503);
            break;
        }
        readers.push(response);
        assert!(readers.len() <= 1_000);
    }
    readers.pop();
    assert_eq!(bench.raw("GET", "/v1/observe/locks/x", &[], Vec::new()).await.status(), 200);
}

/// How many stand in line, whatever for.
async fn waiting(bench: &Bench) -> u32 {
    let store = bench.app.desk.list("", 100).await.unwrap();
    store.iter().map(|lease| lease.waiting).sum()
}

async fn bound(bench: &Bench, path: &str, body: Value) -> Stream {
    Stream::of(bench.raw("PUT", path, &[], body.to_string().into_bytes()).await)
}

#[tokio::test]
async fn a_lease_bound_to_a_connection_ends_with_it_and_not_before() {
    let bench = bench().await;
    let hour = |owner: &str| json!({"owner": owner, "ttl": "1h"});
    for path in ["/v1/locks/x", "/v1/elections/x", "/v1/members/w/x"] {
        let mut stream = bound(&bench, &format!("{path}?bind=connection"), hour("a")).await;
        let (_, event, held) = stream.next().await.unwrap();
        assert_eq!((event.as_str(), &held["owner"]), ("held", &json!("a")), "{path}");
        let renewed = tagged(&bench, "PATCH", path, held["token"].as_str().unwrap(), "").await;
        assert_eq!(renewed.status, 200, "renewed as ever: {}", renewed.body);
        let refused = put(&bench, path, hour("b")).await;
        assert_eq!(refused.status, 409, "{path}");
        let waits = format!("{path}?wait=60s");
        let (next, ()) = tokio::join!(put(&bench, &waits, hour("b")), async {
            until("b waits", async || waiting(&bench).await == 1).await;
            drop(stream);
        });
        assert_eq!((next.status, &next.body["owner"]), (200, &json!("b")), "{path}");
    }
}

#[tokio::test]
async fn f40_a_bound_holder_is_told_that_its_lease_was_taken_away() {
    let bench = bench().await;
    let mut stream = bound(&bench, "/v1/locks/x?bind=connection", json!({"owner": "a", "ttl": "1h"})).await;
    let (_, _, held) = stream.next().await.unwrap();
    bench.app.desk.force("default/x").await.unwrap();
    let (_, event, lost) = stream.next().await.unwrap();
    assert_eq!((event.as_str(), &lost["token"]), ("lost", &held["token"]));
    assert_eq!(stream.next().await, None);
    // A later holder is not touched by the end of the old stream.
    let next = put(&bench, "/v1/locks/x", json!({"owner": "b", "ttl": "1h"})).await;
    drop(stream);
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
    assert_eq!(tagged(&bench, "PATCH", "/v1/locks/x", &etag(&next), "").await.status, 200);
}

#[tokio::test]
async fn a_node_that_stops_takes_no_bound_lease_away() {
    let bench = bench().await;
    let mut stream = bound(&bench, "/v1/locks/x?bind=connection", json!({"owner": "a", "ttl": "1h"})).await;
    stream.next().await.unwrap();
    bench.app.drain.cancel();
    assert_eq!(stream.next().await, None);
    drop(stream);
    tokio::task::yield_now().await;
    let info = bench.app.desk.inspect("default/x").await.unwrap();
    assert_eq!(info.holders.len(), 1, "its holder lives and goes on");
}
