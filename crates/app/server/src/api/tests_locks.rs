//! Locks, elections and the routes of Dapr over leases in memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock as _, SystemClock};
use mainstay_store::lease::{AcquireRequest, Acquired, Guarantees, LeaseInfo, Line, Released, Renewed};
use mainstay_store::memory::MemoryLeaseStore;
use mainstay_store::{BoxFuture, Error, ErrorKind, FencingToken, LeaseStore, Result};
use serde_json::{Value, json};

use super::tests::{Bench, Got, bench, bench_on, until};
use crate::error::Code;
use crate::http::{Caller, Scope};

async fn put(bench: &Bench, path: &str, headers: &[(&str, &str)], body: Value) -> Got {
    bench.send("PUT", path, headers, body.to_string().into_bytes()).await
}

async fn with_token(bench: &Bench, method: &str, path: &str, etag: &str) -> Got {
    bench.send(method, path, &[("if-match", etag)], Vec::new()).await
}

fn etag(got: &Got) -> String {
    got.headers["etag"].to_str().unwrap().to_owned()
}

fn ask(owner: &str, ttl: &str) -> Value {
    json!({"owner": owner, "ttl": ttl})
}

#[tokio::test]
async fn a_lock_is_acquired_renewed_and_released_by_its_token() {
    let bench = bench().await;
    let path = "/v1/locks/invoice%2F42";
    let first = put(&bench, path, &[], ask("a", "1000s")).await;
    assert_eq!(first.status, 200, "{}", first.body);
    assert_eq!((&first.body["name"], &first.body["owner"]), (&json!("invoice/42"), &json!("a")));
    assert_eq!(etag(&first), format!("\"{}\"", first.body["token"].as_str().unwrap()));
    let left = first.body["left_ms"].as_u64().unwrap();
    assert!(left <= 990_000 && left > 500_000, "counted from before the request, less the drift: {left}");

    let held = put(&bench, path, &[], ask("b", "1000s")).await;
    assert_eq!((held.status, held.code), (409, Some(Code::LeaseHeld)));
    let shown = bench.get(path).await;
    assert_eq!(shown.body["holders"][0]["owner"], "a");
    let since = shown.body["holders"][0]["since"].as_str().unwrap();
    assert_eq!((since.len(), &shown.body["holders"][0]["since_by"]), (24, &json!("store")), "{since}");
    assert_eq!(etag(&shown), etag(&first));

    let renewed = with_token(&bench, "PATCH", path, &etag(&first)).await;
    assert_eq!((renewed.status, etag(&renewed)), (200, etag(&first)));
    let missing = bench.send("PATCH", path, &[], Vec::new()).await;
    assert_eq!((missing.status, missing.code), (428, Some(Code::PreconditionRequired)));
    let bare = etag(&first).replace('"', "");
    let weak = format!("W/{}", etag(&first));
    assert_eq!(with_token(&bench, "PATCH", path, &bare).await.status, 200, "without its quotes");
    for wrong in ["\"99999\"", "\"x\"", "\"-1\"", "\"+1\"", "", &weak] {
        let refused = with_token(&bench, "DELETE", path, wrong).await;
        assert_eq!((refused.status, refused.code), (412, Some(Code::LeaseGone)), "{wrong}");
    }
    let released = with_token(&bench, "DELETE", path, &etag(&first)).await;
    assert_eq!((released.status, &released.body["released"]), (200, &json!("clean")));
    let again = with_token(&bench, "DELETE", path, &etag(&first)).await;
    assert_eq!((again.status, &again.body["released"]), (200, &json!("clean")), "A2: its answer may be lost");

    let second = put(&bench, path, &[], ask("b", "1000s")).await;
    let token = |got: &Got| got.body["token"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(token(&second) > token(&first));
    let late = with_token(&bench, "PATCH", path, &etag(&first)).await;
    assert_eq!((late.status, late.code), (412, Some(Code::LeaseGone)), "the old holder renews nothing");
}

#[tokio::test]
async fn if_a1_a_key_stands_for_one_lease_and_one_body() {
    let bench = bench().await;
    let key = [("idempotency-key", "\"nightly\"")];
    let first = put(&bench, "/v1/locks/x", &key, ask("a", "1000s")).await;
    let again = put(&bench, "/v1/locks/x", &key, ask("a", "1000s")).await;
    assert_eq!((first.status, again.status, etag(&again)), (200, 200, etag(&first)), "the same acquisition");
    let noted = json!({"owner": "a", "ttl": "1000s", "note": "n"});
    for (path, body) in [
        ("/v1/locks/x", ask("b", "1000s")),
        ("/v1/locks/x", ask("a", "999s")),
        ("/v1/locks/x", noted),
        ("/v1/locks/y", ask("a", "1000s")),
        ("/v1/elections/x", ask("a", "1000s")),
        ("/v1/members/g/x", json!({"ttl": "1000s"})),
    ] {
        let other = put(&bench, path, &key, body.clone()).await;
        assert_eq!((other.status, other.code), (422, Some(Code::KeyReused)), "{path} {body}");
    }
    let candidate = json!({"owner": "a", "ttl": "1000s", "value": "v1"});
    let mine = [("idempotency-key", "leads")];
    assert_eq!(put(&bench, "/v1/elections/e", &mine, candidate).await.status, 200);
    let other = json!({"owner": "a", "ttl": "1000s", "value": "v2"});
    assert_eq!(put(&bench, "/v1/elections/e", &mine, other).await.status, 422);
    assert_eq!(bench.get("/v1/elections/e").await.body["value"], "v1", "nothing was proclaimed");
}

#[tokio::test]
async fn a_key_that_is_used_for_another_lease_meanwhile_keeps_neither_waiting_nor_held() {
    let bench = bench().await;
    let holder = put(&bench, "/v1/locks/x", &[], ask("a", "1000s")).await;
    let key = [("idempotency-key", "k"), ("prefer", "wait=60")];
    let waits = put(&bench, "/v1/locks/x", &key, ask("b", "1000s"));
    let rest = async {
        until("it stands in line", async || bench.get("/v1/locks/x").await.body["waiting"] == 1).await;
        assert_eq!(put(&bench, "/v1/locks/y", &key[..1], ask("b", "1000s")).await.status, 200);
        with_token(&bench, "DELETE", "/v1/locks/x", &etag(&holder)).await;
    };
    let (waited, ()) = tokio::join!(waits, rest);
    assert_eq!((waited.status, waited.code), (422, Some(Code::KeyReused)));
    until("it was given back", async || bench.get("/v1/locks/x").await.body["holders"] == json!([])).await;
    assert_eq!(bench.get("/v1/locks/y").await.body["holders"][0]["owner"], "b", "and the other one was not");
}

#[tokio::test]
async fn a_tag_that_is_known_is_waited_beyond_in_quotes_and_without() {
    let bench = bench().await;
    assert_eq!(put(&bench, "/v1/elections/e", &[], ask("a", "1000s")).await.status, 200);
    assert_eq!(put(&bench, "/v1/members/g/m", &[], json!({"ttl": "1000s"})).await.status, 200);
    for path in ["/v1/elections/e", "/v1/elections/nobody", "/v1/members/g"] {
        let (tag, target) = (etag(&bench.get(path).await), format!("{path}?wait=60s"));
        let (bare, weak) = (tag.replace('"', ""), format!("W/{tag}"));
        let list = format!("\"7777\", {tag}");
        for (known, is_news) in
            [(&tag, false), (&bare, false), (&weak, false), (&list, false), (&"\"7777\"".into(), true)]
        {
            let headers = [("if-none-match", known.as_str())];
            let asked = bench.send("GET", &target, &headers, Vec::new());
            // What is known is waited for; what is not is answered at once.
            let answered = tokio::select! {
                biased;
                got = asked => got.status == 200,
                () = SystemClock::new().sleep(Duration::from_millis(if is_news { 60_000 } else { 50 })) => false,
            };
            assert_eq!(answered, is_news, "{path} {known}");
        }
    }
}

/// Every route of the document that may say 428 does so without `If-Match`; a version that is gone is 412. Neither
/// changes anything.
#[tokio::test]
async fn if_h03_nothing_changes_without_the_version_that_was_seen() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    for path in ["/v1/locks/two", "/v1/elections/two"] {
        assert_eq!(put(&bench, path, &[], ask("a", "1000s")).await.status, 200, "{path}");
    }
    assert_eq!(put(&bench, "/v1/members/w/two", &[], json!({"ttl": "1000s"})).await.status, 200);
    let mut tuned = bench.get("/v1/definitions/two").await.body["definition"].clone();
    tuned["timeout"] = json!("7s");
    let document = bench.get("/openapi.json").await.body;
    let mut needed = 0;
    for (template, methods) in document["paths"].as_object().unwrap() {
        let answers = |of: &Value| of["responses"].get("428").is_some();
        for method in ["put", "patch", "delete", "post"].into_iter().filter(|m| answers(&methods[*m])) {
            let path = template.replace("{uid}", &uid).replace("{group}", "w").replace("{name}", "two");
            let of = path.trim_end_matches("/actions");
            let body = match method {
                "put" => tuned.clone(),
                "post" => json!({"action": "skip", "step": "b", "reason": "as the test says"}),
                _ => json!({}),
            };
            let body = body.to_string().into_bytes();
            let seen = bench.get(of).await;
            let blind = bench.send(&method.to_uppercase(), &path, &[], body.clone()).await;
            assert_eq!(
                (blind.status, blind.code),
                (428, Some(Code::PreconditionRequired)),
                "{method} {path}"
            );
            let stale = [("if-match", "\"7777\"")];
            let stale = bench.send(&method.to_uppercase(), &path, &stale, body).await;
            assert_eq!(stale.status, 412, "{method} {path}: {}", stale.detail);
            let now = bench.get(of).await;
            assert_eq!((now.status, etag(&now)), (200, etag(&seen)), "{method} {path}");
            needed += 1;
        }
    }
    assert_eq!(needed, 8, "one of definitions and of sagas, two of each kind of lease");
}

#[tokio::test]
async fn what_became_of_requests_for_leases_is_counted() {
    let bench = bench().await;
    let path = "/v1/locks/x";
    let first = put(&bench, path, &[], ask("a", "1000s")).await;
    put(&bench, path, &[], ask("b", "1000s")).await;
    put(&bench, path, &[], ask("b", "1ms")).await;
    with_token(&bench, "PATCH", path, &etag(&first)).await;
    bench.app.desk.force("default/x").await.unwrap();
    with_token(&bench, "PATCH", path, &etag(&first)).await;
    let second = put(&bench, path, &[], ask("b", "1000s")).await;
    with_token(&bench, "DELETE", path, &etag(&second)).await;
    let metrics = bench.raw("GET", "/metrics", &[], Vec::new()).await;
    let text = axum::body::to_bytes(metrics.into_body(), 1 << 20).await.unwrap();
    let text = String::from_utf8_lossy(&text);
    for line in [
        "mainstay_lease_requests_total{outcome=\"granted\"} 2",
        "mainstay_lease_requests_total{outcome=\"held\"} 1",
        "mainstay_lease_requests_total{outcome=\"refused\"} 1",
        "mainstay_lease_requests_total{outcome=\"failed\"} 0",
        "mainstay_lease_renewals_total{outcome=\"renewed\"} 1",
        "mainstay_lease_renewals_total{outcome=\"lost\"} 1",
        "mainstay_lease_ends_total{outcome=\"broken\"} 1",
        "mainstay_lease_ends_total{outcome=\"released\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
}

#[tokio::test]
async fn if_a02_a_repeated_acquire_is_one_lease() {
    let bench = bench().await;
    let key = [("idempotency-key", "k1")];
    let first = put(&bench, "/v1/locks/x", &key, ask("a", "1000s")).await;
    let again = put(&bench, "/v1/locks/x", &key, ask("a", "1000s")).await;
    assert_eq!((first.status, again.status), (200, 200));
    assert_eq!(first.body["token"], again.body["token"]);
    let other = put(&bench, "/v1/locks/x", &[("idempotency-key", "k2")], ask("a", "1000s")).await;
    assert_eq!(other.status, 409, "another key is another acquisition");
}

#[tokio::test]
async fn a_waiter_gets_the_lock_when_it_is_released_and_leaves_the_line_when_it_goes_away() {
    let bench = Arc::new(bench().await);
    let held = put(&bench, "/v1/locks/x", &[], ask("a", "2000s")).await;
    let waiting = |n: u64| {
        let bench = Arc::clone(&bench);
        async move {
            until("as many wait", async || bench.get("/v1/locks/x").await.body["waiting"] == n).await;
        }
    };
    // One whose client goes away, at whatever point the request is.
    {
        let gone = put(&bench, "/v1/locks/x?wait=60s", &[], ask("gone", "2000s"));
        tokio::select! {
            biased;
            () = waiting(1) => {}
            got = gone => panic!("{}", got.body),
        }
    }
    waiting(0).await;
    let next = put(&bench, "/v1/locks/x", &[("prefer", "wait=60")], ask("b", "2000s"));
    let release = async {
        waiting(1).await;
        with_token(&bench, "DELETE", "/v1/locks/x", &etag(&held)).await
    };
    let (next, released) = tokio::join!(next, release);
    assert_eq!(released.status, 200);
    assert_eq!((next.status, &next.body["owner"]), (200, &json!("b")));
    assert_eq!(next.headers["preference-applied"], "wait");
    let late = put(&bench, "/v1/locks/x?wait=20ms", &[], ask("c", "2000s")).await;
    assert_eq!((late.status, late.code), (409, Some(Code::LeaseHeld)));
    waiting(0).await;
}

#[tokio::test]
async fn bad_leases_are_refused_by_name() {
    let bench = bench().await;
    let bad = [
        json!({"owner": "a"}),
        json!({"owner": "", "ttl": "1000s"}),
        json!({"owner": "a", "ttl": "soon"}),
        json!({"owner": "a", "ttl": "1ms"}),
        json!({"owner": "a", "ttl": "25h"}),
        json!({"owner": "a", "ttl": "1000s", "value": "only leaders"}),
        json!({"owner": "a", "ttl": "1000s", "tll": 1}),
        json!({"owner": "a\u{7}", "ttl": "1000s"}),
    ];
    for body in bad {
        let got = put(&bench, "/v1/locks/x", &[], body.clone()).await;
        assert_eq!((got.status, got.code), (400, Some(Code::BadRequest)), "{body}");
    }
    let long = format!("/v1/locks/{}", "x".repeat(1_100));
    assert_eq!(put(&bench, &long, &[], ask("a", "1000s")).await.status, 400);
    assert_eq!(bench.get("/v1/locks/x").await.body["holders"], json!([]));
    assert_eq!(bench.get("/v1/locks?prefix=a&limit=3").await.status, 400);
}

#[tokio::test]
async fn a_lease_taken_away_burns_its_token_and_is_in_the_audit() {
    let bench = bench().await;
    let held = put(&bench, "/v1/locks/x", &[], ask("a", "2000s")).await;
    for (query, code) in [
        ("force=true", Code::BadRequest),
        ("force=true&reason=%20", Code::BadRequest),
        ("reason=gone", Code::BadQuery),
        ("force=false&reason=gone", Code::BadQuery),
    ] {
        let refused = bench.send("DELETE", &format!("/v1/locks/x?{query}"), &[], Vec::new()).await;
        assert_eq!((refused.status, refused.code), (400, Some(code)), "sec_22 {query}: {}", refused.body);
    }
    assert_eq!(bench.get("/v1/locks/x").await.body["holders"][0]["owner"], "a", "nothing was taken away");
    let forced = bench.send("DELETE", "/v1/locks/x?force=true&reason=host-7%20died", &[], Vec::new()).await;
    assert_eq!((forced.status, &forced.body["released"]), (200, &json!("forced")), "{}", forced.body);
    let lost = with_token(&bench, "PATCH", "/v1/locks/x", &etag(&held)).await;
    assert_eq!(lost.status, 412);
    let next = put(&bench, "/v1/locks/x", &[], ask("b", "2000s")).await;
    let number = |v: &Value| v.as_str().unwrap().parse::<u64>().unwrap();
    assert!(number(&next.body["token"]) > number(&forced.body["token"]), "{}", next.body);
    let audit = bench.get("/v1/audit").await.body;
    let line = audit["items"].as_array().unwrap().iter().find(|l| l["action"] == "lease.break").unwrap();
    assert_eq!((&line["before"], &line["reason"]), (&json!("a"), &json!("host-7 died")), "{audit}");
    let list = bench.get("/v1/locks").await.body;
    assert_eq!(list["items"][0]["name"], "x");
}

#[tokio::test]
async fn a_leader_is_seen_replaced_and_handed_over() {
    let bench = Arc::new(bench().await);
    let path = "/v1/elections/scheduler";
    let nobody = bench.get(path).await;
    assert_eq!((&nobody.body["leader"], etag(&nobody)), (&Value::Null, "\"0\"".to_owned()));
    let watch =
        bench.send("GET", "/v1/elections/scheduler?wait=60s", &[("if-none-match", "\"0\"")], Vec::new());
    let body = json!({"owner": "n1", "ttl": "2000s", "value": "http://n1"});
    let (seen, first) = tokio::join!(watch, put(&bench, path, &[], body));
    assert_eq!((seen.status, &seen.body["leader"]), (200, &json!("n1")), "{}", seen.body);
    assert_eq!(seen.body["term"], first.body["token"]);
    assert_eq!(bench.get(path).await.body["value"], "http://n1");

    let value = json!({"value": "http://n1:2"}).to_string().into_bytes();
    let kept = bench.send("PATCH", path, &[("if-match", &etag(&first))], value).await;
    assert_eq!(kept.status, 200, "{}", kept.body);
    assert_eq!(bench.get(path).await.body["value"], "http://n1:2");

    let step = |to: &str| json!({"to": to, "reason": "n1 is slow"}).to_string().into_bytes();
    let none = bench.send("POST", "/v1/elections/scheduler/step-down", &[], step("n2")).await;
    assert_eq!((none.status, none.code), (409, Some(Code::IllegalAction)), "the leader stays");
    let candidate = put(&bench, "/v1/elections/scheduler?wait=60s", &[], ask("n2", "2000s"));
    let hand_over = async {
        until("one waits", async || bench.get(path).await.body["candidates"] == 1).await;
        bench.send("POST", "/v1/elections/scheduler/step-down", &[], step("n2")).await
    };
    let (second, moved) = tokio::join!(candidate, hand_over);
    assert_eq!((moved.status, second.status), (200, 200), "{} {}", moved.body, second.body);
    assert_eq!(bench.get(path).await.body["leader"], "n2");
    assert_eq!(with_token(&bench, "PATCH", path, &etag(&first)).await.status, 412);
    let resigned = with_token(&bench, "DELETE", path, &etag(&second)).await;
    assert_eq!(resigned.body["released"], "clean", "{}", resigned.body);
}

#[tokio::test]
async fn if_c12_leadership_is_handed_on_by_the_leader_or_an_admin_only() {
    let mut bench = bench().await;
    let path = "/v1/elections/scheduler";
    let first = put(&bench, path, &[], ask("n1", "2000s")).await;
    bench.caller = Caller { scope: Scope::Operate, ..Caller::anonymous() };
    let to = json!({"to": "n2"}).to_string().into_bytes();
    let step = "/v1/elections/scheduler/step-down";
    let refused = bench.send("POST", step, &[], to.clone()).await;
    assert_eq!((refused.status, refused.code), (403, Some(Code::Forbidden)));
    let wrong = bench.send("POST", step, &[("if-match", "\"7777\"")], to.clone()).await;
    assert_eq!((wrong.status, wrong.code), (412, Some(Code::LeaseGone)));
    assert_eq!(bench.get(path).await.body["leader"], "n1");
    let candidate = put(&bench, "/v1/elections/scheduler?wait=60s", &[], ask("n2", "2000s"));
    let hand_over = async {
        until("one waits", async || bench.get(path).await.body["candidates"] == 1).await;
        bench.send("POST", step, &[("if-match", &etag(&first))], to).await
    };
    let (second, moved) = tokio::join!(candidate, hand_over);
    assert_eq!((moved.status, second.status), (200, 200), "{} {}", moved.body, second.body);
    let lines = |list: Value| list["items"].as_array().map_or(0, Vec::len);
    bench.caller = Caller::anonymous();
    assert_eq!(lines(bench.get("/v1/audit").await.body), 0, "a leader's own step is nobody's business");
    let third = put(&bench, "/v1/elections/scheduler?wait=60s", &[], ask("n3", "2000s"));
    let taken = async {
        until("one waits", async || bench.get(path).await.body["candidates"] == 1).await;
        for silent in [json!({"to": "n3"}), json!({"to": "n3", "reason": ""}), json!({})] {
            let refused = bench.send("POST", step, &[], silent.to_string().into_bytes()).await;
            assert_eq!((refused.status, refused.code), (400, Some(Code::BadRequest)), "sec_22 {silent}");
        }
        let asked = json!({"to": "n3", "reason": "n2 is slow"});
        bench.send("POST", step, &[], asked.to_string().into_bytes()).await
    };
    let (third, taken) = tokio::join!(third, taken);
    assert_eq!((third.status, taken.status), (200, 200), "{}", taken.body);
    let audit = bench.get("/v1/audit").await.body;
    assert_eq!(lines(audit.clone()), 1, "{audit}");
    assert_eq!(
        (&audit["items"][0]["action"], &audit["items"][0]["before"], &audit["items"][0]["reason"]),
        (&json!("lease.transfer"), &json!("n2"), &json!("n2 is slow"))
    );
}

/// A leader that resigned, or whose term ran out, shows a token that was real: the term of who leads now, by whatever
/// way they came, is not theirs to hand on.
#[tokio::test]
async fn a_token_of_a_term_that_is_over_hands_nothing_on() {
    let leases = Arc::new(MemoryLeaseStore::new(Arc::new(SystemClock::new())));
    let mut bench = bench_on(Arc::clone(&leases) as _).await;
    bench.caller = Caller { scope: Scope::Operate, ..Caller::anonymous() };
    let (path, step) = ("/v1/elections/boss", "/v1/elections/boss/step-down");
    let step_down = async |etag: &str| {
        let to = json!({"to": "n3"}).to_string().into_bytes();
        bench.send("POST", step, &[("if-match", etag)], to).await
    };
    let ttl = std::time::Duration::from_secs(60);
    for way in ["resigned", "ran out"] {
        let first = put(&bench, path, &[], ask("n1", if way == "resigned" { "60s" } else { "100ms" })).await;
        assert_eq!(first.status, 200, "{}", first.body);
        if way == "resigned" {
            assert_eq!(with_token(&bench, "DELETE", path, &etag(&first)).await.status, 200);
        }
        let empty = step_down(&etag(&first)).await;
        assert!(
            way == "ran out" || (empty.status, empty.code) == (412, Some(Code::LeaseGone)),
            "{}",
            empty.body
        );
        // Another one leads, as `mainstay elect` on the same store does, and a candidate waits.
        let (name, leads, waits) = ("default/election/boss", format!("l {way}"), format!("c {way}"));
        let mut leads = AcquireRequest::exclusive(name, "n2", &leads, ttl);
        leads.line = Line::Join;
        while !matches!(leases.acquire(leads.clone()).await.unwrap(), Acquired::Granted(_)) {
            tokio::task::yield_now().await;
        }
        let mut candidate = AcquireRequest::exclusive(name, "n3", &waits, ttl);
        candidate.line = Line::Join;
        assert!(matches!(leases.acquire(candidate).await.unwrap(), Acquired::Queued { .. }));
        let stale = step_down(&etag(&first)).await;
        assert_eq!((stale.status, stale.code), (412, Some(Code::LeaseGone)), "{way}: {}", stale.body);
        assert_eq!(bench.get(path).await.body["leader"], "n2", "{way}");
        leases.leave(&waits).await.unwrap();
        leases.release(&leads.op_id).await.unwrap();
    }
}

/// Leases whose values cannot be written.
#[derive(Debug)]
struct Mute {
    leases: MemoryLeaseStore,
    /// It does not even say so.
    hangs: bool,
    asked: AtomicBool,
}

impl Mute {
    fn new(leases: &MemoryLeaseStore, hangs: bool) -> Arc<Self> {
        Arc::new(Self { leases: leases.clone(), hangs, asked: AtomicBool::new(false) })
    }
}

impl LeaseStore for Mute {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.leases.acquire(request)
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        self.leases.renew(op_id)
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.leases.release(op_id)
    }

    fn annotate(&self, _: &str, _: FencingToken, _: Vec<u8>) -> BoxFuture<'_, Result<bool>> {
        self.asked.store(true, Ordering::Relaxed);
        Box::pin(async {
            if self.hangs {
                std::future::pending::<()>().await;
            }
            Err(Error::new(ErrorKind::Unavailable, "no value can be written"))
        })
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.leases.inspect(name)
    }

    fn watch(&self, name: &str) -> BoxFuture<'_, Result<()>> {
        self.leases.watch(name)
    }

    fn guarantees(&self) -> Guarantees {
        self.leases.guarantees()
    }
}

#[tokio::test]
async fn nobody_leads_whose_value_could_not_be_told() {
    let store = MemoryLeaseStore::new(Arc::new(SystemClock::new()));
    let bench = bench_on(Mute::new(&store, false)).await;
    let path = "/v1/elections/scheduler";
    let untold = put(&bench, path, &[], json!({"owner": "n1", "ttl": "600s", "value": "http://n1"})).await;
    assert!(untold.status >= 500, "{} {}", untold.status, untold.body);
    // Given back in the background, ten minutes before it would end; the line is told.
    let next = put(&bench, "/v1/elections/scheduler?wait=60s", &[], ask("n2", "2000s")).await;
    assert_eq!(next.status, 200, "{}", next.body);
    assert_eq!(bench.get(path).await.body["leader"], "n2");
}

#[tokio::test]
async fn f19_a_member_whose_client_goes_away_before_it_has_said_anything_keeps_no_name() {
    let store = MemoryLeaseStore::new(Arc::new(SystemClock::new()));
    let mute = Mute::new(&store, true);
    let bench = bench_on(mute.clone()).await;
    tokio::select! {
        biased;
        got = put(&bench, "/v1/members/workers/w1", &[], ask("n1", "600s")) => panic!("{}", got.body),
        () = until("its value is written", async || mute.asked.load(Ordering::Relaxed)) => {}
    }
    let holders = async || store.inspect("default/member/workers/w1").await.unwrap().holders.len();
    until("it is given back, long before it would end", async || holders().await == 0).await;
}

/// Leases whose hints say nothing.
#[derive(Debug)]
struct Alarmed {
    leases: MemoryLeaseStore,
    asked: AtomicU64,
}

impl LeaseStore for Alarmed {
    fn acquire(&self, request: AcquireRequest) -> BoxFuture<'_, Result<Acquired>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.leases.acquire(request)
    }

    fn renew(&self, op_id: &str) -> BoxFuture<'_, Result<Renewed>> {
        self.leases.renew(op_id)
    }

    fn release(&self, op_id: &str) -> BoxFuture<'_, Result<Released>> {
        self.leases.release(op_id)
    }

    fn leave(&self, op_id: &str) -> BoxFuture<'_, Result<()>> {
        self.leases.leave(op_id)
    }

    fn inspect(&self, name: &str) -> BoxFuture<'_, Result<LeaseInfo>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.leases.inspect(name)
    }

    fn list(&self, prefix: &str, limit: usize) -> BoxFuture<'_, Result<Vec<LeaseInfo>>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.leases.list(prefix, limit)
    }

    fn watch(&self, _: &str) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }

    fn guarantees(&self) -> Guarantees {
        self.leases.guarantees()
    }
}

#[tokio::test]
async fn hints_that_lead_to_nothing_are_listened_to_less_and_less() {
    let leases = MemoryLeaseStore::new(Arc::new(SystemClock::new()));
    let store = Arc::new(Alarmed { leases: leases.clone(), asked: AtomicU64::new(0) });
    let bench = bench_on(store.clone()).await;
    let of = |name: &str| AcquireRequest::exclusive(name, "n1", name, Duration::from_secs(1000));
    for name in ["default/x", "default/election/boss"] {
        assert!(matches!(leases.acquire(of(name)).await.unwrap(), Acquired::Granted(_)));
    }
    // Some ten each, as the pauses double to a tenth of a second.
    let held = put(&bench, "/v1/locks/x?wait=300ms", &[], ask("n2", "1000s")).await;
    assert_eq!(held.status, 409, "{}", held.body);
    let asked = store.asked.swap(0, Ordering::Relaxed);
    assert!((2..100).contains(&asked), "a waiter asked {asked} times");
    for (path, who) in [("/v1/elections/boss", "an observer"), ("/v1/members/g", "who waits for members")] {
        let now = bench.get(path).await;
        let known = [("if-none-match", now.headers["etag"].to_str().unwrap())];
        let same = bench.send("GET", &format!("{path}?wait=300ms"), &known, Vec::new()).await;
        assert!(same.status < 400, "{}", same.body);
        let asked = store.asked.swap(0, Ordering::Relaxed);
        assert!((2..100).contains(&asked), "{who} asked {asked} times");
    }
}

async fn dapr(bench: &Bench, verb: &str, store: &str, body: &str) -> Got {
    bench.send("POST", &format!("/v1.0-alpha1/{verb}/{store}"), &[], body.as_bytes().to_vec()).await
}

#[tokio::test]
async fn clients_of_dapr_find_what_they_know() {
    let bench = bench().await;
    let mine = r#"{"resourceId": "r", "lockOwner": "me", "expiryInSeconds": 1000, "unknown": 1}"#;
    let got = dapr(&bench, "lock", "default", mine).await;
    assert_eq!((got.status, &got.body["success"]), (200, &json!(true)));
    let token = got.body["fencingToken"].as_str().unwrap().to_owned();
    assert!(got.body["leaseDeadline"].as_str().unwrap().ends_with('Z'));
    let same = dapr(&bench, "lock", "default", mine).await;
    assert_eq!((same.status, &same.body), (200, &json!({"success": false})), "also for the same owner");
    let renew = r#"{"resourceId": "r", "lockOwner": "me", "expiryInSeconds": 1000, "renew": true}"#;
    let renewed = dapr(&bench, "lock", "default", renew).await;
    assert_eq!((&renewed.body["success"], &renewed.body["fencingToken"]), (&json!(true), &json!(token)));
    let theirs = mine.replace("me", "them");
    assert_eq!(dapr(&bench, "unlock", "default", &theirs).await.body, json!({"status": 2}));
    assert_eq!(dapr(&bench, "unlock", "default", mine).await.body, json!({"status": 0}));
    assert_eq!(dapr(&bench, "unlock", "default", mine).await.body, json!({"status": 1}));
    assert_eq!(dapr(&bench, "lock", "default", renew).await.body, json!({"success": false}));

    let bad = [
        "",
        "{",
        r#"{"resourceId": "", "lockOwner": "me", "expiryInSeconds": 1}"#,
        r#"{"resourceId": "r", "expiryInSeconds": 1}"#,
        r#"{"resourceId": "r", "lockOwner": "me"}"#,
        r#"{"resourceId": "r", "lockOwner": "me", "expiryInSeconds": -1}"#,
    ];
    for body in bad {
        let got = dapr(&bench, "lock", "default", body).await;
        assert_eq!((got.status, &got.body["errorCode"]), (400, &json!("ERR_MALFORMED_REQUEST")), "{body}");
    }
    let nowhere = dapr(&bench, "lock", "redis", mine).await;
    assert_eq!((nowhere.status, &nowhere.body["errorCode"]), (400, &json!("ERR_LOCK_STORE_NOT_FOUND")));
    assert_eq!(bench.get("/v1.0/healthz").await.status, 204);
    assert_eq!(bench.get("/v1.0/metadata").await.body["components"][0]["name"], "default");
}
