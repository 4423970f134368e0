//! What is asked for wrongly, repeated, hidden, or larger than one answer should be.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::to_bytes;
use mainstay_clock::SystemClock;
use mainstay_saga::wire::{Fact, Note, encode};
use mainstay_store::journal::{Append, Appended, Uid};
use mainstay_store::memory::{MemoryJournal, MemoryLeaseStore};
use serde_json::{Value, json};

use super::tests::{Bench, bench, bench_hiding, read_events, set_aside, until};
use crate::error::Code;

/// Two keys for one saga: the second one was answered, when it was repeated, with a saga that was never made.
#[tokio::test]
async fn if_a01_a_repeated_key_never_answers_with_a_saga_that_does_not_exist() {
    let bench = bench().await;
    let body = json!({"definition": "two", "id": "order-1", "input": {}});
    let first = bench.start("k1", &body).await;
    for key in ["k2", "k2", "k1"] {
        let again = bench.start(key, &body).await;
        assert_eq!((again.status, &again.body), (202, &first.body), "{key}");
    }
    assert_eq!(bench.get(first.body["location"].as_str().unwrap()).await.status, 200);
}

#[tokio::test]
async fn what_is_asked_for_wrongly_is_the_callers_mistake() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    for path in ["/v1/attention?cursor=abc", "/v1/sagas?cursor=abc", "/v1/attention?status=running"] {
        let got = bench.get(path).await;
        assert_eq!((got.status, got.code), (400, Some(Code::BadQuery)), "{path}");
    }
    let same = bench.get("/v1/attention?status=needs_attention").await;
    assert_eq!((same.status, &same.body["items"][0]["uid"]), (200, &json!(uid)));
    for after in [u64::MAX, i64::MAX as u64 + 1] {
        let got = bench.get(&format!("/v1/audit?after={after}")).await;
        assert_eq!((got.status, &got.body["items"]), (200, &json!([])), "{after}");
    }
    for prefer in ["wait=5, respond-async", "respond-async; x=1, Wait=\"5\""] {
        let got = bench.send("GET", &format!("/v1/sagas/{uid}"), &[("prefer", prefer)], Vec::new()).await;
        assert_eq!(got.status, 200, "{prefer}");
        assert_eq!(got.headers["preference-applied"], "wait", "{prefer}");
    }
}

/// A list was read as the fields in their order; of two keys the first one counted, and the caller may have meant the other
/// one; an id with a control character looks like another id, and `saga show` never finds it.
#[tokio::test]
async fn a_start_that_can_be_read_in_two_ways_is_refused() {
    let bench = bench().await;
    let start = async |headers: &[(&str, &str)], body: &Value| {
        bench.send("POST", "/v1/sagas", headers, body.to_string().into_bytes()).await
    };
    let fine = json!({"definition": "two"});
    let key: &[(&str, &str)] = &[("idempotency-key", "k")];
    let two: &[(&str, &str)] = &[("idempotency-key", "k"), ("idempotency-key", "l")];
    for (headers, body, said) in [
        (key, json!(["two", null, "x", {}, {}]), "send an object"),
        (two, fine.clone(), "comes twice"),
        (key, json!({"definition": "two", "id": "a\u{0}b"}), "the id has control characters"),
        (key, json!({"definition": "two", "attrs": {"a\nb": "x"}}), "the name of an attribute"),
        (key, json!({"definition": "two", "input": [1_u64]}).clone(), ""),
    ] {
        let got = start(headers, &body).await;
        if said.is_empty() {
            assert_eq!(got.status, 202, "the key was not spent: {}", got.body);
        } else {
            assert_eq!((got.status, got.code), (400, Some(Code::BadRequest)), "{body}");
            assert!(got.detail.contains(said), "{body}: {}", got.detail);
        }
    }
    let (uid, _) = bench.settled(&json!({})).await;
    let etag = bench.get(&format!("/v1/sagas/{uid}")).await.headers["etag"].to_str().unwrap().to_owned();
    let again = json!({"action": "run_again", "reason": "x", "id": "a\u{7f}"});
    let again = bench.act(&uid, &etag, again).await;
    assert_eq!((again.status, again.code), (400, Some(Code::BadRequest)), "{}", again.detail);
}

/// What was too large was said to be "the journal failed", and a time that is none to be "malformed".
#[tokio::test]
async fn a_refusal_says_what_is_expected() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    let path = format!("/v1/sagas/{uid}/steps/{}/complete", "x".repeat(3_000));
    let report = json!({"attempt": 1, "outcome": "done"}).to_string().into_bytes();
    let large = bench.send("POST", &path, &[], report).await;
    assert_eq!((large.status, large.code), (413, Some(Code::BodyTooLarge)));
    assert!(large.detail.contains("allowed: 1 to 255"), "{}", large.detail);
    let time = bench.get("/v1/sagas?created_gte=yesterday").await;
    assert!(time.status == 400 && time.detail.contains("such as 2026-"), "{}", time.detail);
}

/// A person who sees `[hidden]` and sends it on would put these words in the place of what was hidden.
#[tokio::test]
async fn a_payload_that_says_hidden_is_refused_for_one_saga_and_for_many() {
    let clock = Arc::new(SystemClock::new());
    let leases = Arc::new(MemoryLeaseStore::new(clock.clone()));
    let bench = bench_hiding(leases, Arc::new(MemoryJournal::new(clock)), &["pin"]).await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    let etag = bench.get(&format!("/v1/sagas/{uid}")).await.headers["etag"].to_str().unwrap().to_owned();
    let payload = json!({"pin": "[hidden]"});
    for mut body in [
        json!({"action": "retry", "step": "b", "reason": "x", "input": payload}),
        json!({"action": "resolve", "step": "b", "as": "done", "reason": "x", "output": payload}),
    ] {
        let one = bench.act(&uid, &etag, body.clone()).await;
        assert_eq!((one.status, one.code), (400, Some(Code::BadRequest)), "{body}");
        body["filter"] = json!({"status": "needs_attention"});
        let many = bench.send("POST", "/v1/sagas/actions", &[], body.to_string().into_bytes()).await;
        assert_eq!((many.status, many.code), (400, Some(Code::BadRequest)), "{body}");
    }
}

/// Makes the log of a saga that waits for a person longer, by half a MiB each time.
async fn fill(bench: &Bench, uid: &str, times: usize) {
    let there = bench.app.journal.summary(&Uid::new(uid)).await.unwrap().unwrap();
    let note = encode(&Fact::Note(Note { text: "x".repeat(512 * 1024 - 100) }));
    let append =
        Append::new(there.uid.clone(), there.epoch, there.next_seq, vec![note; times], there.row.clone());
    assert!(matches!(bench.app.journal.append(append).await.unwrap(), Appended::Appended { .. }));
}

/// Five hundred logs of 16 MiB were read for one answer.
#[tokio::test]
async fn a_page_of_details_ends_where_it_has_read_enough() {
    let bench = bench().await;
    let mut uids = Vec::new();
    for _ in 0..4 {
        let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
        fill(&bench, &uid, 18).await;
        uids.push(uid);
    }
    uids.reverse();
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = bench.get(&format!("/v1/attention?limit=500{cursor}")).await.body;
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 2, "{} of nine MiB each", items.len());
        seen.extend(items.iter().map(|i| i["uid"].as_str().unwrap().to_owned()));
        match &page["next"] {
            Value::String(next) => cursor = format!("&cursor={next}"),
            _ => break,
        }
    }
    assert_eq!(seen, uids, "each once, newest first");
}

/// Sixty-four messages of half a MiB each were kept for a reader that takes none.
#[tokio::test]
async fn if_a04_what_waits_for_a_slow_reader_is_bounded_in_bytes() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    fill(&bench, &uid, 18).await;
    let response = bench.raw("GET", "/v1/events?after=0", &[], Vec::new()).await;
    until("the reader is cut", async || bench.app.resets.load(Ordering::Relaxed) == 1).await;
    let text = to_bytes(response.into_body(), 1 << 24).await.unwrap();
    assert!(text.len() <= 2 * 1024 * 1024 + 1_000, "{} bytes were kept", text.len());
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("event: note") && text.trim_end().ends_with('}'), "whole messages");
    assert!(text.contains("event: reset"), "and where to go on");
}

/// A saga that is set aside has no record of that; whoever followed the events never heard of it.
#[tokio::test]
async fn a_saga_that_is_set_aside_is_an_event() {
    let bench = bench().await;
    let started = bench.start("k", &json!({"definition": "two", "input": {"a": "held"}})).await;
    let uid = started.body["uid"].as_str().unwrap().to_owned();
    set_aside(bench.app.journal.as_ref(), &uid, "its owner vanished").await;
    for path in ["/v1/events?after=0".to_owned(), format!("/v1/events?after=0&saga={uid}")] {
        let text = read_events(&bench, &path, &[], "event: status").await;
        let data = text.lines().filter_map(|l| l.strip_prefix("data: ")).next_back().unwrap();
        let event: Value = serde_json::from_str(data).unwrap();
        assert_eq!(event["type"], "mainstay.saga.status", "{event}");
        assert_eq!(
            (&event["data"]["uid"], &event["data"]["status"]),
            (&json!(uid), &json!("needs_attention"))
        );
    }
}
