//! Actions on one saga and on many, reports of participants, keys in flight, slow readers, any input at all.

use std::sync::atomic::Ordering;

use futures_util::StreamExt as _;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use super::tests::{Bench, Got, PATIENCE, bench, until};
use crate::error::Code;

async fn post(bench: &Bench, path: &str, body: &Value) -> Got {
    bench.send("POST", path, &[], body.to_string().into_bytes()).await
}

/// Waits until a job is over.
async fn finished(bench: &Bench, job: &Value) -> Value {
    let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    let mut seen = Value::Null;
    until("the job ends", async || {
        seen = bench.get(&path).await.body;
        seen["status"] == "finished"
    })
    .await;
    seen
}

#[tokio::test]
async fn if_h06_a_bulk_action_counts_first_then_acts_on_what_matched() {
    let bench = bench().await;
    let mut stuck = Vec::new();
    for _ in 0..3 {
        stuck.push(bench.settled(&json!({"b": "lost"})).await.0);
    }
    bench.settled(&json!({})).await;
    let body = |more: Value| {
        let mut body = json!({"filter": {"status": ["needs_attention"], "definition": "two"},
            "action": "resolve", "step": "b", "as": "done", "reason": "seen in the ledger"});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let dry = post(&bench, "/v1/sagas/actions", &body(json!({"dry_run": true}))).await;
    assert_eq!((dry.status, dry.body), (200, json!({"dry_run": true, "total": 3})));
    assert_eq!(bench.get("/v1/jobs").await.body["items"], json!([]), "nothing was begun");
    let begun = post(&bench, "/v1/sagas/actions", &body(json!({}))).await;
    assert_eq!(begun.status, 202, "{:?} {}", begun.code, begun.body);
    assert_eq!(
        begun.headers["location"].to_str().unwrap(),
        format!("/v1/jobs/{}", begun.body["id"].as_str().unwrap())
    );
    let job = finished(&bench, &begun.body).await;
    assert_eq!((&job["total"], &job["done"], &job["failures"]), (&json!(3), &json!(3), &json!(0)), "{job}");
    for uid in &stuck {
        let ended = bench.get(&format!("/v1/sagas/{uid}?wait=60s")).await.body;
        assert_eq!(ended["status"], "completed", "{ended}");
    }
    let audit = bench.get("/v1/audit").await.body;
    let count =
        |action: &str| audit["items"].as_array().unwrap().iter().filter(|l| l["action"] == action).count();
    assert_eq!((count("bulk_resolve"), count("resolve_done")), (1, 3), "{audit}");
    // Again: nothing matches any more.
    let again = post(&bench, "/v1/sagas/actions", &body(json!({}))).await;
    assert_eq!(finished(&bench, &again.body).await["total"], 0);
    assert_eq!(bench.get("/v1/jobs").await.body["items"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn if_h06_each_item_fails_for_itself_and_a_bulk_without_a_filter_is_refused() {
    let bench = bench().await;
    bench.settled(&json!({"b": "lost"})).await;
    bench.settled(&json!({"b": "lost"})).await;
    let skip = json!({"filter": {"status": "needs_attention"}, "action": "skip", "step": "b", "reason": "x"});
    let begun = post(&bench, "/v1/sagas/actions", &skip).await;
    let job = finished(&bench, &begun.body).await;
    // Not legal where nobody knows whether it happened: each says so, with the code of a single action.
    assert_eq!((&job["done"], &job["failures"]), (&json!(0), &json!(2)), "{job}");
    assert!(job["failed"][0]["why"].as_str().unwrap().starts_with("MS0119: "), "{job}");
    for (body, status) in [
        (json!({"action": "cancel", "reason": "x"}), 400),
        (json!({"filter": {}, "action": "cancel", "reason": "x"}), 400),
        (json!({"filter": {"nope": 1}, "action": "cancel", "reason": "x"}), 400),
        (json!({"filter": {"attention": false}, "action": "cancel", "reason": "x"}), 400),
        (
            json!({"filter": {"attention": "false", "definition": "two"}, "action": "cancel", "reason": "x"}),
            400,
        ),
        (json!({"filter": {"status": {}}, "action": "cancel", "reason": "x"}), 400),
        (json!({"filter": {"cursor": "x"}, "action": "cancel", "reason": "x"}), 400),
        (json!({"filter": {"step": "b"}, "action": "cancel", "reason": " "}), 400),
        (json!({"filter": {"step": "b"}, "action": "cancel", "reason": "x", "extra": 1}), 400),
        (json!({"filter": {"step": "b"}, "action": "run_again", "reason": "x"}), 400),
    ] {
        let got = post(&bench, "/v1/sagas/actions", &body).await;
        assert_eq!(got.status, status, "{body}: {:?}", got.code);
    }
}

#[tokio::test]
async fn a_finished_saga_is_run_again_over_the_api_and_its_key_repeats_the_answer() {
    let bench = bench().await;
    let (uid, saga) = bench.settled(&json!({"b": "no"})).await;
    assert_eq!(saga["status"], "compensated");
    let etag = bench.get(&format!("/v1/sagas/{uid}")).await.headers["etag"].to_str().unwrap().to_owned();
    let path = format!("/v1/sagas/{uid}/actions");
    let body = json!({"action": "run_again", "input": {}, "reason": "sold again"}).to_string().into_bytes();
    let headers = [("if-match", etag.as_str()), ("idempotency-key", "again-1")];
    let first = bench.send("POST", &path, &headers, body.clone()).await;
    assert_eq!(first.status, 202, "{:?} {}", first.code, first.body);
    let again = bench.send("POST", &path, &headers, body).await;
    assert_eq!((again.status, &again.body), (202, &first.body));
    let other = json!({"action": "run_again", "reason": "sold again"}).to_string().into_bytes();
    let other = bench.send("POST", &path, &headers, other).await;
    assert_eq!((other.status, other.code), (422, Some(Code::KeyReused)));
    let new = first.body["uid"].as_str().unwrap();
    let ended = bench.get(&format!("/v1/sagas/{new}?wait=60s")).await.body;
    assert_eq!((&ended["status"], &ended["again_of"]), (&json!("completed"), &json!(uid)), "{ended}");
    let stale = bench.act(&uid, "\"1\"", json!({"action": "run_again", "reason": "x"})).await;
    assert_eq!((stale.status, stale.code), (412, Some(Code::PreconditionFailed)));
    let cut = bench.act(&uid, &etag, json!({"action": "run_again", "from": "zzz", "reason": "x"})).await;
    assert_eq!((cut.status, cut.code), (404, Some(Code::NotFound)));
}

#[tokio::test]
async fn if_a01_a_key_of_another_action_is_refused_and_does_nothing() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    let path = format!("/v1/sagas/{uid}/actions");
    let etag = bench.get(&format!("/v1/sagas/{uid}")).await.headers["etag"].to_str().unwrap().to_owned();
    let headers = [("if-match", etag.as_str()), ("idempotency-key", "k")];
    let act = |body: Value| bench.send("POST", &path, &headers, body.to_string().into_bytes());
    let pause = json!({"action": "pause", "reason": "wait"});
    assert_eq!(act(pause.clone()).await.status, 200);
    for other in [
        json!({"action": "cancel", "reason": "wait"}),
        json!({"action": "pause", "reason": "another"}),
        json!({"action": "run_again", "reason": "wait"}),
    ] {
        let got = act(other.clone()).await;
        assert_eq!((got.status, got.code), (422, Some(Code::KeyReused)), "{other}");
    }
    assert_eq!(act(pause).await.status, 200, "a repetition is answered");
    let saga = bench.get(&format!("/v1/sagas/{uid}")).await.body;
    assert_eq!(saga["paused"], true, "{saga}");
}

#[tokio::test]
async fn a_report_of_an_attempt_that_is_not_in_flight_is_refused() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    let path = format!("/v1/sagas/{uid}/steps/b/complete");
    let late = post(&bench, &path, &json!({"attempt": 1, "outcome": "done", "output": 1})).await;
    assert_eq!((late.status, late.code), (409, Some(Code::IllegalAction)));
    let missing =
        post(&bench, "/v1/sagas/nope/steps/b/complete", &json!({"attempt": 1, "outcome": "done"})).await;
    assert_eq!((missing.status, missing.code), (404, Some(Code::NotFound)));
    for bad in [
        json!({"attempt": 1}),
        json!({"attempt": -1, "outcome": "done"}),
        json!({"attempt": 1, "outcome": "maybe"}),
        json!({"attempt": 1, "outcome": "done", "op": "redo"}),
        json!({"attempt": 1, "outcome": "failed", "output": 1}),
        json!({"attempt": 1, "outcome": "done", "op": "undo", "output": 1}),
        json!({"attempt": 1, "outcome": "rejected", "effect": "some"}),
    ] {
        assert_eq!(post(&bench, &path, &bad).await.status, 400, "{bad}");
    }
    let large = json!({"attempt": 1, "outcome": "done", "output": "x".repeat(300_000)});
    assert_eq!(post(&bench, &path, &large).await.status, 413);
}

#[tokio::test]
async fn if_a01_a_key_whose_first_request_still_runs_is_busy() {
    let bench = bench().await;
    let body = json!({"definition": "two", "input": {}});
    let first = bench.app.running.take("start/local/k").unwrap();
    let busy = bench.start("k", &body).await;
    assert_eq!((busy.status, busy.code), (409, Some(Code::KeyBusy)));
    assert_eq!(bench.start("other", &body).await.status, 202, "another key is free");
    drop(first);
    assert_eq!(bench.start("k", &body).await.status, 202);
    assert_eq!(bench.start("k", &body).await.status, 202, "it is given back when the answer is out");
}

#[tokio::test]
async fn if_a03_a_definition_is_tuned_only_from_the_version_that_was_seen() {
    let bench = bench().await;
    let put = async |timeout: &str, tag: Option<&str>| {
        let body = json!({"name": "tune", "version": 1, "deadline": "1h", "timeout": timeout,
            "steps": [{"name": "a", "local_undo": true}]});
        let headers: Vec<(&str, &str)> = tag.iter().map(|t| ("if-match", *t)).collect();
        bench.send("PUT", "/v1/definitions/tune", &headers, body.to_string().into_bytes()).await
    };
    // Closures cannot be given over the API.
    assert_eq!((put("5s", None).await.status), 422);
    let remote = |timeout: &str| {
        json!({"name": "two", "version": 1, "deadline": "1h", "timeout": timeout,
            "retry": {"attempts": 1}, "undo_retry": {"attempts": 1},
            "steps": [{"name": "a", "local_undo": true}, {"name": "b", "local_undo": true, "after": ["a"], "on_unknown": "ask"}]})
        .to_string()
        .into_bytes()
    };
    let put = async |timeout: &str, tag: Option<&str>| {
        let headers: Vec<(&str, &str)> = tag.iter().map(|t| ("if-match", *t)).collect();
        bench.send("PUT", "/v1/definitions/two", &headers, remote(timeout)).await
    };
    let seen = bench.get("/v1/definitions/two").await.headers["etag"].to_str().unwrap().to_owned();
    let blind = put("7s", None).await;
    assert_eq!((blind.status, blind.code), (428, Some(Code::PreconditionRequired)));
    let stale = put("7s", Some("\"other\"")).await;
    assert_eq!((stale.status, stale.code), (412, Some(Code::PreconditionFailed)));
    assert_eq!(
        bench.get("/v1/definitions/two").await.headers["etag"].to_str().unwrap(),
        seen,
        "nothing changed"
    );
    // The right version is admitted; that the engine refuses closures is its own answer.
    for tag in [seen.clone(), seen.replace('"', "")] {
        assert_eq!(put("7s", Some(&tag)).await.code, Some(Code::BadDefinition), "{tag}");
    }
    assert_eq!(put("7s", Some(&format!("W/{seen}"))).await.code, Some(Code::PreconditionFailed));
}

/// What a reader gets that comes back with an id, up to this or to its end.
async fn read_until(bench: &Bench, from: &str, last: &str) -> String {
    let response = bench.raw("GET", "/v1/events", &[("last-event-id", from)], Vec::new()).await;
    let mut stream = response.into_body().into_data_stream();
    let (mut text, clock) = (String::new(), bench.engine.runtime().clock());
    let late = clock.sleep(PATIENCE);
    let read = async {
        while !text.contains(last)
            && let Some(chunk) = stream.next().await
        {
            text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        }
    };
    tokio::select! {
        biased;
        () = read => {}
        () = late => panic!("no `{last}` in time"),
    }
    text
}

/// A reader that takes nothing is cut, and the last thing it can read says from where to go on.
#[tokio::test]
async fn if_a04_a_slow_reader_gets_a_last_reset_and_resumes_without_a_gap() {
    let bench = bench().await;
    for _ in 0..30 {
        bench.settled(&json!({})).await;
    }
    let response = bench.raw("GET", "/v1/events?after=0", &[], Vec::new()).await;
    let mut stream = response.into_body().into_data_stream();
    // The reader stalls: the node cuts it by itself, and nothing else waits for it.
    until("it is cut", async || bench.app.resets.load(Ordering::Relaxed) > 0).await;
    assert_eq!(bench.app.resets.load(Ordering::Relaxed), 1);
    let mut text = String::new();
    while let Some(chunk) = stream.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
    }
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains("event: reset"), "{last}");
    let ids = |text: &str| -> Vec<u64> {
        text.lines().filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).collect()
    };
    let seen = ids(&text);
    assert_eq!(seen[seen.len() - 1], seen[seen.len() - 2], "it stands where the last event stood: {seen:?}");
    // From there nothing is missing and nothing comes twice. Should the machine stand still for so long that this
    // reader is cut too, it goes on in the same way.
    let mut all = seen[..seen.len() - 1].to_vec();
    let newest = bench.app.journal.last_cursor().await.unwrap().0;
    until("the rest is read", async || {
        let from = all[all.len() - 1].to_string();
        let rest = read_until(&bench, &from, &format!("id: {newest}\n")).await;
        let mut more = ids(&rest);
        if rest.contains("event: reset") {
            more.pop();
        }
        all.extend(more);
        all.last() == Some(&newest)
    })
    .await;
    assert!(all.windows(2).all(|w| w[0] < w[1]), "{all:?}");
    let everything =
        bench.app.journal.events(Some(&mainstay_store::journal::Cursor(0)), 10_000).await.unwrap();
    assert_eq!(all, everything.events.iter().map(|e| e.cursor.0).collect::<Vec<_>>());
}

/// JSON that is often nearly right: known fields with values of any kind.
fn nearly() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(|f| json!(f)),
        ".{0,12}".prop_map(Value::from),
        prop_oneof![
            Just("retry"),
            Just("resolve"),
            Just("run_again"),
            Just("cancel"),
            Just("done"),
            Just("not_done"),
            Just("a"),
            Just("b"),
            Just("two"),
            Just("undo"),
            Just("action~2"),
            Just("needs_attention"),
        ]
        .prop_map(Value::from),
    ];
    let names = prop_oneof![
        Just("action"),
        Just("step"),
        Just("input"),
        Just("as"),
        Just("output"),
        Just("reason"),
        Just("from"),
        Just("id"),
        Just("definition"),
        Just("version"),
        Just("attrs"),
        Just("filter"),
        Just("dry_run"),
        Just("attempt"),
        Just("op"),
        Just("outcome"),
        Just("effect"),
        Just("name"),
        Just("steps"),
        Just("status"),
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((names.clone(), inner), 0..6).prop_map(|pairs| pairs
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect::<serde_json::Map<_, _>>()
                .into()),
        ]
    })
}

/// A body that some route takes, with one field of it replaced or taken away.
fn valid_but_for_one() -> impl Strategy<Value = Value> {
    let mut definition: Value = serde_json::from_str(super::tests::TWO).unwrap();
    definition["timeout"] = "7s".into();
    let bodies = vec![
        definition,
        json!({"definition": "two", "version": 1, "id": "x", "input": {"b": "no"}, "attrs": {"k": "v"}}),
        json!({"action": "resolve", "step": "b", "as": "done", "output": 1, "reason": "seen"}),
        json!({"action": "run_again", "from": "a", "id": "y", "reason": "again"}),
        json!({"filter": {"definition": "two"}, "action": "cancel", "reason": "x", "dry_run": true}),
        json!({"attempt": 1, "op": "action", "outcome": "done", "output": 1}),
    ];
    (prop::sample::select(bodies), any::<prop::sample::Index>(), prop::option::of(nearly()), 0..3_u8)
        .prop_map(|(mut body, index, value, keep)| {
            let keys: Vec<String> = body.as_object().unwrap().keys().cloned().collect();
            let key = keys[index.index(keys.len())].clone();
            match value {
                // As it is: what is valid is input too.
                _ if keep == 0 => {}
                Some(value) => body[key] = value,
                None => drop(body.as_object_mut().unwrap().remove(&key)),
            }
            body
        })
}

/// Any input, valid or not: no 5xx, and nothing that the document does not declare.
#[test]
fn if_a10_whatever_is_sent_the_answer_is_declared() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let bench = runtime.block_on(bench());
    let (uid, _) = runtime.block_on(bench.settled(&json!({"b": "lost"})));
    let document = runtime.block_on(bench.get("/openapi.json")).body;
    let operations: Vec<(String, String, Value)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(path, _)| *path != "/v1/events" && !path.starts_with("/v1/observe/"))
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().iter();
            methods.map(|(m, d)| (path.clone(), m.to_uppercase(), d["responses"].clone())).collect::<Vec<_>>()
        })
        .collect();
    // The seed is printed with a failure, and a failing input is shrunk.
    let mut runner = TestRunner::new(Config { cases: 1_500, failure_persistence: None, ..Config::default() });
    let text =
        || prop_oneof!["[ -~]{0,10}", "[0-9]{1,22}", Just("\"1\"".to_owned()), Just("wait=1".to_owned())];
    let strategy = (
        0..operations.len(),
        prop_oneof![Just(uid), Just("two".to_owned()), "[a-zA-Z0-9%._~-]{1,12}"],
        prop_oneof![
            3 => valid_but_for_one().prop_map(|v| v.to_string().into_bytes()),
            3 => nearly().prop_map(|v| v.to_string().into_bytes()),
            1 => prop::collection::vec(any::<u8>(), 0..40),
        ],
        prop::collection::vec(("[a-z_.~%]{1,10}", "[a-z0-9%+-]{0,10}"), 0..3),
        (
            prop::option::of(text()),
            text(),
            prop_oneof!["application/json", "application/toml", "text/html", "[ -~]{0,10}"],
        ),
    );
    let result = runner.run(&strategy, |(i, name, body, query, (tag, key, kind))| {
        let (path, method, responses) = &operations[i];
        let mut target = ["{uid}", "{name}", "{code}", "{id}", "{step}"]
            .iter()
            .fold(path.clone(), |p, k| p.replace(k, &name));
        let pairs: Vec<String> = query.iter().map(|(k, v)| format!("{k}={v}")).collect();
        if !pairs.is_empty() {
            target.push_str(&format!("?{}", pairs.join("&")));
        }
        prop_assume!(target.parse::<http::Uri>().is_ok() && !target.contains("wait"));
        let mut headers = vec![("idempotency-key", key.trim()), ("content-type", kind.trim())];
        headers.extend(tag.as_deref().map(|tag| ("if-match", tag.trim())));
        let got = runtime.block_on(bench.send(method, &target, &headers, body));
        prop_assert!(got.status < 500, "{method} {target}: {}", got.status);
        prop_assert!(
            responses.get(got.status.to_string()).is_some(),
            "{method} {target}: {} is not declared",
            got.status
        );
        prop_assert!(
            got.status < 400 || got.code.is_some() || matches!(got.status, 400 | 404 | 405),
            "{method} {target}: {}",
            got.status
        );
        Ok(())
    });
    result.unwrap();
}
