//! The API over an engine in memory with closures as steps; limits and authentication are tested on the
//! real binary.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use futures_util::StreamExt as _;
use http::{HeaderMap, Request};
use mainstay_clock::{Clock as _, SystemClock};
use mainstay_saga::definition::Definition;
use mainstay_saga::http::{AddressPolicy, HttpParticipant};
use mainstay_saga::wire::{Fact, decode};
use mainstay_saga::{LocalStep, StepCx, StepError, Told, UndoError};
use mainstay_sqlite::SqliteStore;
use mainstay_store::journal::{Append, Appended, Row, SagaStatus, Summary, Uid};
use mainstay_store::memory::{MemoryJournal, MemoryLeaseStore, MemoryRecordStore};
use mainstay_store::{BoxFuture, LeaseStore};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tower::ServiceExt as _;

use super::*;
use crate::error::Code;
use crate::http::{Caller, Problem, Trace};

pub(super) const TWO: &str = r#"{
    "name": "two", "version": 1, "deadline": "1h", "timeout": "30m",
    "retry": {"attempts": 1}, "undo_retry": {"attempts": 1},
    "steps": [
        {"name": "a", "local_undo": true},
        {"name": "b", "local_undo": true, "after": ["a"], "on_unknown": "ask"}
    ]
}"#;

/// Does what the input says for its step: `ok`, `no`, `lost`, or `held` until the bench lets it go.
struct Scripted(Arc<AtomicUsize>, Arc<Notify>);

impl LocalStep for Scripted {
    fn act(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        let word = input[&*cx.step].as_str().unwrap_or("ok").to_owned();
        let go = Arc::clone(&self.1);
        Box::pin(async move {
            match word.as_str() {
                "no" => return Err(StepError::rejected_for_good("sold out")),
                "lost" => return Err(StepError::unknown("the reply was lost")),
                "held" => go.notified().await,
                _ => {}
            }
            Ok(json!({"by": cx.step.to_string()}))
        })
    }

    fn undo(&self, _: StepCx, _: Told<Value>, _: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async { Ok(()) })
    }
}

/// Longest wait for anything: only a failure takes that long, on however slow a machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for a condition, bounded.
pub(crate) async fn until(what: &str, mut look: impl AsyncFnMut() -> bool) {
    let clock = SystemClock::new();
    let end = clock.now().saturating_add(PATIENCE);
    while !look().await {
        assert!(clock.now() < end, "waited too long: {what}");
        clock.sleep(Duration::from_millis(1)).await;
    }
}

pub(super) struct Bench {
    router: Router,
    pub(super) app: Arc<App>,
    pub(super) engine: Engine,
    pub(super) actions: Arc<AtomicUsize>,
    /// Lets a step go that is held.
    go: Arc<Notify>,
    pub(super) caller: Caller,
    _dir: tempfile::TempDir,
}

pub(super) struct Got {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
    pub(super) code: Option<Code>,
    /// What a refusal says.
    pub(super) detail: String,
}

pub(super) async fn bench() -> Bench {
    bench_on(Arc::new(MemoryLeaseStore::new(Arc::new(SystemClock::new())))).await
}

/// With these leases.
pub(super) async fn bench_on(leases: Arc<dyn LeaseStore>) -> Bench {
    bench_with(leases, Arc::new(MemoryJournal::new(Arc::new(SystemClock::new())))).await
}

/// With these leases and this journal.
pub(super) async fn bench_with(leases: Arc<dyn LeaseStore>, journal: Arc<dyn Journal>) -> Bench {
    bench_hiding(leases, journal, &[]).await
}

/// Where values under these names are hidden.
pub(super) async fn bench_hiding(
    leases: Arc<dyn LeaseStore>,
    journal: Arc<dyn Journal>,
    names: &[&str],
) -> Bench {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let rt = Runtime::system();
    let actions = Arc::new(AtomicUsize::new(0));
    let go = Arc::new(Notify::new());
    let step = |name: &str| {
        let step = Scripted(Arc::clone(&actions), Arc::clone(&go));
        (name.to_owned(), Arc::new(step) as Arc<dyn LocalStep>)
    };
    let definition = Definition::from_json(TWO.as_bytes()).unwrap();
    let builder = Engine::builder(Arc::clone(&journal), rt.clone());
    let engine = builder.definition(definition, [step("a"), step("b")]).open().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    mainstay_saga::http::install_tls();
    let nowhere = AddressPolicy::only([""; 0]).unwrap();
    let participants = HttpParticipant::builder(nowhere, Arc::clone(rt.clock())).build().unwrap();
    let grants = Arc::new(MemoryRecordStore::new(Arc::new(SystemClock::new())));
    let desk = Arc::new(Desk::new(leases, grants, rt.clone()));
    let app = App {
        engine: engine.clone(),
        journal,
        participants: Arc::new(Participants::of(participants)),
        rt,
        drain: CancellationToken::new(),
        tokens: Arc::new(Tokens::of(dir.path())),
        resets: AtomicU64::new(0),
        running: RunningKeys::default(),
        jobs: Jobs::default(),
        redact: crate::redact::Redact::new(&names, &[]),
        desk,
        fleet: None,
        store: None,
        watched: Arc::default(),
        stall: Duration::from_millis(200),
    };
    let app = Arc::new(app);
    Bench {
        router: router(Arc::clone(&app)),
        app,
        engine,
        actions,
        go,
        caller: Caller::anonymous(),
        _dir: dir,
    }
}

impl Bench {
    pub(super) async fn raw(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> axum::response::Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body)).unwrap();
        let trace = Trace::of(&HeaderMap::new(), self.engine.runtime().rng().as_ref());
        request.extensions_mut().insert(self.caller.clone());
        request.extensions_mut().insert(trace);
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Got {
        let response = self.raw(method, path, headers, body).await;
        let problem = response.extensions().get::<Problem>();
        let (code, detail) = (problem.map(Problem::code), problem.map_or("", Problem::detail).to_owned());
        let (parts, body) = response.into_parts();
        let bytes = to_bytes(body, 1 << 24).await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Got { status: parts.status.as_u16(), headers: parts.headers, body, code, detail }
    }

    pub(super) async fn get(&self, path: &str) -> Got {
        self.send("GET", path, &[], Vec::new()).await
    }

    pub(super) async fn start(&self, key: &str, body: &Value) -> Got {
        self.send("POST", "/v1/sagas", &[("idempotency-key", key)], body.to_string().into_bytes()).await
    }

    /// Starts a saga and waits until it ends or needs a person.
    pub(super) async fn settled(&self, input: &Value) -> (String, Value) {
        let key = format!("k{}", self.engine.runtime().rng().next_u64());
        let started = self.start(&key, &json!({"definition": "two", "input": input})).await;
        assert_eq!(started.status, 202, "{}", started.body);
        let uid = started.body["uid"].as_str().unwrap().to_owned();
        let ended = self.get(&format!("/v1/sagas/{uid}?wait=60s")).await;
        (uid, ended.body)
    }

    pub(super) async fn act(&self, uid: &str, etag: &str, body: Value) -> Got {
        let path = format!("/v1/sagas/{uid}/actions");
        self.send("POST", &path, &[("if-match", etag)], body.to_string().into_bytes()).await
    }
}

#[tokio::test]
async fn if_a01_one_key_is_one_reply_and_another_body_is_refused() {
    let bench = bench().await;
    let body = json!({"definition": "two", "id": "order-1", "input": {"n": 9_007_199_254_740_993_u64}});
    let first = bench.start("\"k 1\"", &body).await;
    assert_eq!(first.status, 202);
    assert_eq!(first.headers["location"].to_str().unwrap(), first.body["location"]);
    let again = bench.start("k 1", &body).await;
    assert_eq!((again.status, &again.body), (202, &first.body), "quoted and bare are one key");
    let other = bench.start("k 1", &json!({"definition": "two", "id": "order-1", "input": {}})).await;
    assert_eq!((other.status, other.code), (422, Some(Code::KeyReused)));
    let missing = bench.send("POST", "/v1/sagas", &[], body.to_string().into_bytes()).await;
    assert_eq!((missing.status, missing.code), (400, Some(Code::KeyMissing)));
    let conflict = bench.start("k 2", &json!({"definition": "two", "id": "order-1", "input": 1})).await;
    assert_eq!((conflict.status, conflict.code), (409, Some(Code::SagaConflict)));
    let unknown = bench.start("k 3", &json!({"definition": "nope"})).await;
    assert_eq!((unknown.status, unknown.code), (422, Some(Code::UnknownDefinition)));
    // C4: integers beyond 2^53 come back exactly.
    let uid = first.body["uid"].as_str().unwrap();
    let shown = bench.get(&format!("/v1/sagas/{uid}?wait=60s")).await;
    assert_eq!(shown.body["input"]["n"], 9_007_199_254_740_993_u64);
    assert!(shown.body["next_seq"].is_string());
}

#[tokio::test]
async fn if_a02_a_start_repeated_at_once_is_one_saga() {
    let bench = bench().await;
    let body = json!({"definition": "two", "input": {}});
    let all = futures_util::future::join_all((0..16).map(|_| bench.start("same", &body))).await;
    assert!(all.iter().all(|g| g.status == 202 && g.body == all[0].body));
    bench.get(&format!("/v1/sagas/{}?wait=60s", all[0].body["uid"].as_str().unwrap())).await;
    assert_eq!(bench.get("/v1/sagas").await.body["items"].as_array().unwrap().len(), 1);
    assert_eq!(bench.actions.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn if_a03_a_stale_if_match_changes_nothing() {
    let bench = bench().await;
    let (uid, saga) = bench.settled(&json!({"b": "lost"})).await;
    assert_eq!(saga["status"], "needs_attention", "{saga}");
    let seen = bench.get(&format!("/v1/sagas/{uid}")).await;
    let etag = seen.headers["etag"].to_str().unwrap().to_owned();
    let body =
        || json!({"action": "resolve", "step": "b", "as": "done", "output": 1, "reason": "seen in ledger"});
    let path = format!("/v1/sagas/{uid}/actions");
    let without = bench.send("POST", &path, &[], body().to_string().into_bytes()).await;
    assert_eq!((without.status, without.code), (428, Some(Code::PreconditionRequired)));
    let stale = bench.act(&uid, "\"1\"", body()).await;
    assert_eq!((stale.status, stale.code), (412, Some(Code::PreconditionFailed)));
    assert_eq!(bench.get(&format!("/v1/sagas/{uid}")).await.body, seen.body, "nothing changed");
    let illegal = bench.act(&uid, &etag, json!({"action": "skip", "step": "nope", "reason": "x"})).await;
    assert_eq!((illegal.status, illegal.code), (409, Some(Code::IllegalAction)));
    let now = bench.get(&format!("/v1/sagas/{uid}")).await.headers["etag"].to_str().unwrap().to_owned();
    let weak = bench.act(&uid, &format!("W/{now}"), body()).await;
    assert_eq!((weak.status, weak.code), (412, Some(Code::PreconditionFailed)));
    // As the token of a lease, it may come without its quotes.
    let done = bench.act(&uid, &now.replace('"', ""), body()).await;
    assert_eq!(done.status, 200, "{:?} {}", done.code, done.body);
    assert_eq!(bench.get(&format!("/v1/sagas/{uid}?wait=60s")).await.body["status"], "completed");
    let audit = bench.get("/v1/audit").await.body;
    let line = audit["items"].as_array().unwrap().iter().find(|l| l["action"] == "resolve_done");
    assert_eq!(line.unwrap()["reason"], "seen in ledger", "{audit}");
    let over = bench.act(&uid, &now, body()).await;
    assert!(matches!(over.status, 409 | 412), "{}", over.status);
}

#[tokio::test]
async fn if_a04_events_resume_without_a_gap_or_say_reset() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({})).await;
    let ids = |text: &str| -> Vec<u64> {
        text.lines().filter_map(|l| l.strip_prefix("id: ")?.parse().ok()).collect()
    };
    let all = read_events(&bench, "/v1/events?after=0", &[], "event: finished").await;
    assert!(
        all.contains("event: created") && all.contains(&uid) && all.contains("\"specversion\":\"1.0\""),
        "{all}"
    );
    let seen = ids(&all);
    assert!(seen.windows(2).all(|w| w[0] < w[1]), "{seen:?}");
    let from = seen[1].to_string();
    let rest = read_events(&bench, "/v1/events", &[("last-event-id", &from)], "event: finished").await;
    assert_eq!(ids(&rest), seen[2..], "exactly what came after");
    let foreign = read_events(&bench, "/v1/events?after=999999999", &[], "event: reset").await;
    assert!(foreign.contains("event: reset"), "{foreign}");
    let bad = bench.send("GET", "/v1/events", &[("last-event-id", "x")], Vec::new()).await;
    assert_eq!((bad.status, bad.code), (400, Some(Code::BadQuery)));
}

pub(super) async fn read_events(bench: &Bench, path: &str, headers: &[(&str, &str)], until: &str) -> String {
    let response = bench.raw("GET", path, headers, Vec::new()).await;
    assert_eq!(response.status(), 200);
    let mut stream = response.into_body().into_data_stream();
    let mut text = String::new();
    while !(text.contains(until) && text.ends_with("\n\n")) {
        let late = bench.engine.runtime().clock().sleep(PATIENCE);
        tokio::select! {
            biased;
            chunk = stream.next() => text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap()),
            () = late => panic!("no `{until}` in {text}"),
        }
    }
    text
}

#[tokio::test]
async fn if_a05_no_get_changes_anything() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    let bulk = json!({"filter": {"definition": "none"}, "action": "cancel", "reason": "a job to look at"});
    let job = bench.send("POST", "/v1/sagas/actions", &[], bulk.to_string().into_bytes()).await.body;
    let before = (bench.get(&format!("/v1/sagas/{uid}")).await.body, bench.get("/v1/audit").await.body);
    let document = bench.get("/openapi.json").await.body;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let streams = path == "/v1/events" || path.starts_with("/v1/observe/");
        if methods.get("get").is_some() && !streams {
            let path = path.replace("{uid}", &uid).replace("{name}", "two").replace("{code}", "MS0001");
            let path = path.replace("{id}", job["id"].as_str().unwrap());
            // The health of Dapr has nothing to say.
            let fine = match path.as_str() {
                health if health.starts_with("/v1.0/healthz") => 204,
                nobody if nobody.starts_with("/v1/members/{group}/") => 404,
                // The bench has no gossip.
                "/v1/nodes/state" => 404,
                _ => 200,
            };
            assert_eq!(bench.get(&path).await.status, fine, "{path}");
            assert_eq!(bench.send("HEAD", &path, &[], Vec::new()).await.status, fine, "{path}");
        }
    }
    let get = bench.send("GET", &format!("/v1/sagas/{uid}/actions"), &[], Vec::new()).await;
    assert_eq!(get.status, 405);
    let after = (bench.get(&format!("/v1/sagas/{uid}")).await.body, bench.get("/v1/audit").await.body);
    assert_eq!(before, after);
}

#[tokio::test]
async fn if_a06_pages_under_inserts_skip_nothing_and_repeat_nothing() {
    let bench = bench().await;
    let mut first: Vec<String> = Vec::new();
    for _ in 0..25 {
        first.push(bench.settled(&json!({})).await.0);
    }
    let mut seen = Vec::new();
    let mut path = "/v1/sagas?definition=two&limit=4".to_owned();
    loop {
        let page = bench.get(&path).await;
        let items = page.body["items"].as_array().unwrap();
        seen.extend(items.iter().map(|i| i["uid"].as_str().unwrap().to_owned()));
        bench.settled(&json!({})).await;
        let Some(link) = page.headers.get("link") else { break };
        let text = link.to_str().unwrap();
        path = text.strip_prefix('<').unwrap().split('>').next().unwrap().to_owned();
    }
    first.reverse();
    assert_eq!(seen, first);
    for bad in ["?limit=0", "?limit=501", "?nope=1", "?status=nope", "?attempt_gte=x", "?cursor=%00garbage"] {
        let got = bench.get(&format!("/v1/sagas{bad}")).await;
        assert_eq!((got.status, got.code), (400, Some(Code::BadQuery)), "{bad}");
    }
}

#[tokio::test]
async fn if_a10_malformed_requests_get_declared_answers_and_never_5xx() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    let document = bench.get("/openapi.json").await.body;
    let bodies = [
        "",
        "{",
        "[]",
        "null",
        "{\"action\":1}",
        "{\"definition\":\"two\",\"x\":1}",
        "\u{0}",
        "{\"a\":{\"a\":{}}}",
        "{\"action\":\"pause\",\"reason\":\"r\"}",
    ];
    let headers: [&[(&str, &str)]; 3] =
        [&[("if-match", "\"x\""), ("idempotency-key", "k")], &[("idempotency-key", "k")], &[]];
    let mut seen = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, described) in methods.as_object().unwrap() {
            if path == "/v1/events" || path.starts_with("/v1/observe/") {
                continue;
            }
            for name in [uid.as_str(), "%2F%2E%25%23%3F", "%00", "..%2f..", "%F0%9F%92%A9", "%ff"] {
                let target = ["{uid}", "{name}", "{code}", "{id}", "{step}"]
                    .iter()
                    .fold(path.clone(), |p, k| p.replace(k, name));
                for (body, headers) in bodies.iter().flat_map(|b| headers.map(|h| (*b, h))) {
                    let got = bench.send(&method.to_uppercase(), &target, headers, body.into()).await;
                    seen.insert(got.status);
                    assert!(got.status < 500, "{method} {target} {body}: {}", got.status);
                    let declared = described["responses"].get(got.status.to_string());
                    assert!(declared.is_some(), "{method} {target} {body}: {} is not declared", got.status);
                }
            }
        }
    }
    let reached = [200, 400, 404, 412, 422, 428];
    assert!(reached.iter().all(|status| seen.contains(status)), "{seen:?}");
}

#[tokio::test]
async fn if_c03_ids_with_any_characters_survive_the_way_through_filters() {
    let bench = bench().await;
    for id in ["a/b.c%d#e?f", "\u{e9}\u{4e2d} &=+", &"x".repeat(255)] {
        let started = bench.start(&format!("k-{}", id.len()), &json!({"definition": "two", "id": id})).await;
        assert_eq!(started.status, 202, "{id}");
        let coded = percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
        let found = bench.get(&format!("/v1/sagas?id={coded}")).await.body;
        assert_eq!(found["items"][0]["id"], id);
    }
    let long = bench.start("k", &json!({"definition": "two", "id": "x".repeat(1_000)})).await;
    assert_eq!((long.status, long.code), (400, Some(Code::BadRequest)));
}

#[tokio::test]
async fn attention_offers_what_may_be_pressed_and_a_business_no_compensates() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({"b": "lost"})).await;
    let (_, no) = bench.settled(&json!({"b": "no"})).await;
    assert_eq!(no["status"], "compensated", "{no}");
    assert_eq!(no["steps"][0]["state"], "undone");
    let list = bench.get("/v1/attention").await.body;
    assert_eq!((&list["total"], &list["items"][0]["uid"]), (&json!(1), &json!(uid)));
    let step = &list["items"][0]["steps"][1];
    assert_eq!(step["state"], "needs_attention");
    assert!(step["actions"].as_array().unwrap().iter().any(|a| a == "resolve_done"), "{step}");
    let metrics = bench.raw("GET", "/metrics", &[], Vec::new()).await;
    let text = to_bytes(metrics.into_body(), 1 << 20).await.unwrap();
    let text = String::from_utf8_lossy(&text);
    assert!(text.contains("mainstay_sagas{definition=\"two\",state=\"needs_attention\"} 1"), "{text}");
}

/// Ids are as many as there are sagas and locks: as labels they would fill the memory of whoever collects them.
#[tokio::test]
async fn if_x05_no_id_of_a_saga_or_a_lock_is_a_label() {
    let bench = bench().await;
    let body =
        json!({"definition": "two", "id": "order-4711", "input": {"b": "lost"}, "attrs": {"who": "c-0815"}});
    let started = bench.start("k", &body).await;
    assert_eq!(started.status, 202, "{}", started.body);
    let uid = started.body["uid"].as_str().unwrap().to_owned();
    let waits = bench.get(&format!("/v1/sagas/{uid}?wait=60s")).await.body;
    assert_eq!(waits["status"], "needs_attention", "{waits}");
    let lock = json!({"owner": "host-23", "ttl": "1000s"}).to_string().into_bytes();
    assert_eq!(bench.send("PUT", "/v1/locks/invoice-42", &[], lock).await.status, 200);
    let metrics = bench.raw("GET", "/metrics", &[], Vec::new()).await;
    let text = String::from_utf8(to_bytes(metrics.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap();
    assert!(text.contains("state=\"needs_attention\"} 1"), "both are counted: {text}");
    for id in ["order-4711", "c-0815", "invoice-42", "host-23", &uid] {
        assert!(!text.contains(id), "{id}: {text}");
    }
}

/// 409 has two readers: what a participant says to a step is a business no, and no conflict of whoever asks the API.
#[tokio::test]
async fn if_x07_a_business_no_of_a_participant_is_no_conflict_of_the_api() {
    let bench = bench().await;
    let started = bench.start("k", &json!({"definition": "two", "input": {"b": "no"}})).await;
    assert_eq!(started.status, 202, "{}", started.body);
    let path = format!("/v1/sagas/{}", started.body["uid"].as_str().unwrap());
    let ended = bench.get(&format!("{path}?wait=60s")).await;
    assert_eq!((ended.status, &ended.body["status"]), (200, &json!("compensated")));
    assert_eq!(ended.body["cause"]["step"], "b", "{}", ended.body);
    // The conflict of the API is its own: the same id with another input.
    let body = |n: u32| json!({"definition": "two", "id": "one", "input": {"n": n}});
    assert_eq!(bench.start("k1", &body(1)).await.status, 202);
    let conflict = bench.start("k2", &body(2)).await;
    assert_eq!((conflict.status, conflict.code), (409, Some(Code::SagaConflict)));
}

/// A saga whose log lost a record is shown with what is known, and nobody else pays for it.
#[tokio::test]
async fn sg_f05_a_damaged_log_hides_neither_its_row_nor_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mainstay.db");
    let store = SqliteStore::builder(&file).open(&Runtime::system()).unwrap();
    let leases = Arc::new(MemoryLeaseStore::new(Arc::new(SystemClock::new())));
    let bench = bench_with(leases, Arc::new(store)).await;
    let (bad, before) = bench.settled(&json!({"b": "lost"})).await;
    let (good, _) = bench.settled(&json!({"b": "lost"})).await;
    let cut = rusqlite::Connection::open(&file).unwrap();
    let first = "delete from log where n = (select min(n) from log where rid = (select rid from saga where uid = ?1))";
    assert_eq!(cut.execute(first, [&bad]).unwrap(), 1);
    assert!(bench.app.journal.load(&Uid::new(bad.as_str())).await.is_err(), "it is damaged");

    let list = bench.get("/v1/attention").await;
    assert_eq!((list.status, &list.body["total"]), (200, &json!(2)), "{}", list.body);
    let items = list.body["items"].as_array().unwrap();
    let of = |uid: &str| items.iter().find(|i| i["uid"] == *uid).unwrap();
    assert_eq!(of(&good)["steps"][1]["state"], "needs_attention", "the other one is whole");
    assert_eq!((&of(&bad)["readable"], &of(&bad)["unreadable"]), (&json!(false), &json!(view::DAMAGED)));
    assert_eq!(of(&bad)["id"], before["id"]);

    let shown = bench.get(&format!("/v1/sagas/{bad}?wait=20s")).await;
    assert_eq!((shown.status, &shown.body["unreadable"]), (200, &json!(view::DAMAGED)), "{}", shown.body);
    assert_eq!(shown.body["error"], before["error"]);
    for part in ["history", "export"] {
        let got = bench.get(&format!("/v1/sagas/{bad}/{part}")).await;
        assert_eq!(
            (got.status, &got.body["unreadable"]),
            (200, &json!(view::DAMAGED)),
            "{part}: {}",
            got.body
        );
        let whole = bench.get(&format!("/v1/sagas/{good}/{part}")).await;
        assert!(whole.status == 200 && whole.body.get("unreadable").is_none(), "{part}: {}", whole.body);
    }
    let etag = shown.headers["etag"].to_str().unwrap();
    let acted = bench.act(&bad, etag, json!({"action": "cancel", "reason": "x"})).await;
    assert_eq!((acted.status, acted.code), (409, Some(Code::IllegalAction)), "{}", acted.body);
    let again = bench.act(&bad, etag, json!({"action": "run_again", "reason": "x"})).await;
    assert_eq!((again.status, again.code), (409, Some(Code::IllegalAction)), "{}", again.body);
}

/// Nobody could end it: no action was taken, and what was written into the damaged log would have stood on sand.
#[tokio::test]
async fn a_saga_with_a_damaged_log_is_closed_by_a_person_and_its_log_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("mainstay.db");
    let store = SqliteStore::builder(&file).open(&Runtime::system()).unwrap();
    let leases = Arc::new(MemoryLeaseStore::new(Arc::new(SystemClock::new())));
    let bench = bench_with(leases, Arc::new(store)).await;
    let (bad, _) = bench.settled(&json!({"b": "lost"})).await;
    let db = rusqlite::Connection::open(&file).unwrap();
    let rid = "(select rid from saga where uid = ?1)";
    let spoil = format!(
        "update log set records = x'00' || records where n = (select max(n) from log where rid = {rid})"
    );
    assert_eq!(db.execute(&spoil, [&bad]).unwrap(), 1);
    let rows = || -> (i64, i64) {
        let sql = format!(
            "select count(*), sum(length(records)) from log where rid = {rid} and length(records) > 0"
        );
        db.query_row(&sql, [&bad], |r| Ok((r.get(0)?, r.get(1)?))).unwrap()
    };
    let before = rows();
    let shown = bench.get(&format!("/v1/sagas/{bad}")).await;
    let etag = shown.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(shown.body["actions"], json!(["abandon", "retry"]), "{}", shown.body);

    let path = format!("/v1/sagas/{bad}/actions");
    let send = async |etag: &str, key: &str, body: Value| {
        let headers = [("if-match", etag), ("idempotency-key", key)];
        bench.send("POST", &path, &headers, body.to_string().into_bytes()).await
    };
    let retry = send(&etag, "k1", json!({"action": "retry", "reason": "was it mended?"})).await;
    assert_eq!((retry.status, retry.code), (409, Some(Code::IllegalAction)), "{}", retry.body);
    assert!(retry.detail.contains("damaged"), "{}", retry.detail);
    let closes = json!({"action": "abandon", "reason": "the ledgers were put right by hand, OPS-7"});
    for time in ["once", "and again, as if the answer was lost"] {
        let closed = send(&etag, "k2", closes.clone()).await;
        assert_eq!(
            (closed.status, &closed.body["status"]),
            (200, &json!("abandoned")),
            "{time}: {}",
            closed.body
        );
        assert_eq!(closed.body["actions"], json!([]), "{time}: {}", closed.body);
    }
    assert_eq!(rows(), before, "what is left of the log is evidence");
    let late = send(&etag, "k3", json!({"action": "retry", "reason": "x"})).await;
    assert!(late.status == 409 && late.detail.contains("abandoned already"), "{}", late.detail);
    assert_eq!(bench.get("/v1/attention").await.body["total"], 0);
    let audit = bench.get("/v1/audit").await.body;
    let lines: Vec<_> =
        audit["items"].as_array().unwrap().iter().filter(|l| l["action"] == "abandon").collect();
    assert_eq!(lines.len(), 1, "{audit}");
    assert_eq!((&lines[0]["who"], &lines[0]["reason"]), (&json!("local"), &closes["reason"]));
    assert!(lines[0]["after"].as_str().unwrap().starts_with("abandoned"), "{audit}");
}

/// Puts a saga into a journal whose definition no node here has.
pub(crate) async fn unknown(journal: &dyn Journal, uid: &str) {
    let input = json!({"n": 1});
    let started =
        mainstay_saga::wire::Started { input, deadline: None, trace: None, trace_state: None, again: None };
    let now = journal.now().await.unwrap().unwrap();
    let create = mainstay_store::journal::Create {
        uid: Uid::new(uid),
        id: uid.to_owned(),
        definition: "gone".to_owned(),
        version: 3,
        definition_hash: mainstay_store::journal::Hash::of(b"gone"),
        input_hash: mainstay_store::journal::Hash::of(b"n"),
        records: vec![mainstay_saga::wire::encode(&Fact::Created(started))],
        row: Row::running(now),
        owner: None,
        reply: None,
        parent: None,
        locks: Vec::new(),
    };
    journal.create(create).await.unwrap();
}

#[tokio::test]
async fn a_saga_without_its_definition_is_retried_or_abandoned_by_the_api() {
    let bench = bench().await;
    unknown(bench.app.journal.as_ref(), "u-gone").await;
    until("it is set aside", async || bench.get("/v1/attention").await.body["total"] == 1).await;
    let shown = bench.get("/v1/sagas/u-gone").await;
    assert_eq!(
        (&shown.body["readable"], &shown.body["actions"]),
        (&json!(false), &json!(["abandon", "retry"]))
    );
    let why = "parked: definition `gone` version 3 is not known to this node";
    assert_eq!(shown.body["set_aside"], why, "{}", shown.body);
    let etag = shown.headers["etag"].to_str().unwrap().to_owned();
    let input = bench.act("u-gone", &etag, json!({"action": "retry", "input": {}, "reason": "x"})).await;
    assert_eq!((input.status, input.code), (400, Some(Code::BadRequest)), "an input is for a step");
    let retry = bench.act("u-gone", &etag, json!({"action": "retry", "reason": "is it there?"})).await;
    assert_eq!((retry.status, retry.code), (409, Some(Code::IllegalAction)), "{}", retry.body);
    assert!(retry.detail.contains(why), "{}", retry.detail);
    let bulk = json!({"filter": {"attention": true}, "action": "abandon", "reason": "x", "dry_run": true});
    let count = bench.send("POST", "/v1/sagas/actions", &[], bulk.to_string().into_bytes()).await;
    assert_eq!(count.body["total"], 1, "{}", count.body);
    let closed = bench.act("u-gone", &etag, json!({"action": "abandon", "evidence": "OPS-7"})).await;
    assert_eq!((closed.status, &closed.body["status"]), (200, &json!("abandoned")), "{}", closed.body);
    let history = bench.get("/v1/sagas/u-gone/history").await.body;
    let last = history["items"].as_array().unwrap().last().unwrap();
    assert_eq!(
        (&last["type"], &last["data"]["reason"], &last["data"]["why"]),
        (&json!("closed"), &json!("OPS-7"), &json!(why))
    );
}

/// Marks a saga whose first step is in flight as overdue, as its engine does when the deadline passes behind the pivot.
pub(crate) async fn late(journal: &dyn Journal, uid: &str) {
    let summary = in_flight(journal, &Uid::new(uid)).await;
    let row = Row { overdue: true, ..summary.row };
    let append = Append::new(Uid::new(uid), summary.epoch, summary.next_seq, Vec::new(), row);
    assert!(matches!(journal.append(append).await.unwrap(), Appended::Appended { .. }));
}

#[tokio::test]
async fn an_overdue_saga_waits_for_a_person_in_lists_and_counts_until_it_ends() {
    let bench = bench().await;
    let started = bench.start("k", &json!({"definition": "two", "input": {"a": "held"}})).await;
    let uid = started.body["uid"].as_str().unwrap().to_owned();
    assert_eq!(bench.get("/v1/attention").await.body["total"], 0);
    late(bench.app.journal.as_ref(), &uid).await;
    let list = bench.get("/v1/attention").await.body;
    assert_eq!((&list["total"], &list["items"][0]["uid"]), (&json!(1), &json!(uid)));
    assert_eq!(list["items"][0]["status"], "running", "it goes on");
    for filter in ["overdue=true", "attention=true", "status=running&overdue=true"] {
        let found = bench.get(&format!("/v1/sagas?{filter}")).await.body;
        assert_eq!(
            (&found["items"][0]["uid"], &found["items"][0]["overdue"]),
            (&json!(uid), &json!(true)),
            "{filter}"
        );
    }
    let metrics = bench.raw("GET", "/metrics", &[], Vec::new()).await;
    let text = String::from_utf8(to_bytes(metrics.into_body(), 1 << 20).await.unwrap().to_vec()).unwrap();
    assert!(
        text.contains("mainstay_sagas_overdue 1") && text.contains("mainstay_sagas_in_memory_limit 10000"),
        "{text}"
    );
    assert!(text.contains("mainstay_warnings_total{about=\"log_nearly_full\"} 0"), "{text}");
    bench.go.notify_one();
    bench.get(&format!("/v1/sagas/{uid}?wait=60s")).await;
    assert_eq!(bench.get("/v1/attention").await.body["total"], 0);
    assert!(bench.get("/v1/sagas?overdue=true").await.body["items"].as_array().unwrap().is_empty());
}

/// The node set it aside as a whole: no step says why, so the saga does, with what may be pressed.
#[tokio::test]
async fn a_saga_that_was_set_aside_says_why_and_what_is_possible() {
    let bench = bench().await;
    let started = bench.start("k", &json!({"definition": "two", "input": {"a": "held"}})).await;
    let uid = started.body["uid"].as_str().unwrap().to_owned();
    let reason = "its owner vanished 3 times while it took up nothing else";
    set_aside(bench.app.journal.as_ref(), &uid, reason).await;
    for body in [bench.get(&format!("/v1/sagas/{uid}")).await.body, bench.get("/v1/attention").await.body] {
        let saga = if body["items"].is_array() { &body["items"][0] } else { &body };
        assert_eq!((&saga["error"], &saga["readable"]), (&json!(reason), &json!(true)), "{saga}");
        assert!(saga["actions"].as_array().unwrap().contains(&json!("compensate")), "{saga}");
    }
    let etag = bench.get(&format!("/v1/sagas/{uid}")).await.headers["etag"].to_str().unwrap().to_owned();
    let acted = bench.act(&uid, &etag, json!({"action": "compensate", "reason": "give it up"})).await;
    assert_eq!(acted.status, 200, "{}", acted.body);
    bench.go.notify_one();
    let ended = bench.get(&format!("/v1/sagas/{uid}?wait=60s")).await.body;
    assert_eq!(ended["status"], "compensated", "{ended}");
}

/// What the engine does to a saga that stops processes, or whose log is full.
pub(crate) async fn set_aside(journal: &dyn Journal, uid: &str, reason: &str) {
    let uid = Uid::new(uid);
    let summary = in_flight(journal, &uid).await;
    let row = Row {
        status: SagaStatus::NeedsAttention,
        due: None,
        next_try: None,
        error: Some(reason.to_owned()),
        ..summary.row
    };
    let append = Append::new(uid, summary.epoch, summary.next_seq, Vec::new(), row);
    assert!(matches!(journal.append(append).await.unwrap(), Appended::Appended { .. }));
}

/// The row of a saga once its first step hangs: nothing else appends then.
async fn in_flight(journal: &dyn Journal, uid: &Uid) -> Summary {
    loop {
        let loaded = journal.load(uid).await.unwrap().unwrap();
        let started = |r| matches!(decode(r), Ok(Fact::StepStarted(at)) if at.step == "a");
        if loaded.records.iter().any(started) {
            return loaded.summary;
        }
        journal.changed(&journal.last_cursor().await.unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn a_refused_definition_lists_its_problems_and_stores_nothing() {
    let bench = bench().await;
    let body = TWO.replace("[\"a\"]", "[\"zzz\"]").replace("\"two\"", "\"three\"");
    let put = bench.send("PUT", "/v1/definitions/three", &[], body.into_bytes()).await;
    assert_eq!((put.status, put.code), (422, Some(Code::BadDefinition)));
    assert_eq!(bench.get("/v1/definitions/three").await.status, 404);
    let media = bench.send("PUT", "/v1/definitions/two", &[("content-type", "text/plain")], TWO.into()).await;
    assert_eq!((media.status, media.code), (415, Some(Code::UnsupportedMedia)));
    let name = bench.send("PUT", "/v1/definitions/other", &[], TWO.into()).await;
    assert_eq!((name.status, name.code), (400, Some(Code::BadRequest)));
    let evil = r#"{"name": "evil", "version": 1, "deadline": "1h", "steps": [
        {"name": "a", "action": "http://169.254.169.254/latest", "no_undo": "reads"}]}"#;
    let refused = bench.send("PUT", "/v1/definitions/evil", &[], evil.into()).await;
    assert_eq!((refused.status, refused.code), (422, Some(Code::BadDefinition)));
    assert_eq!(bench.get("/v1/definitions/evil").await.status, 404);
    let two =
        r#"{"name": "evil", "version": 1, "steps": [{"name": "a", "after": ["b"], "no_undo": "reads"}]}"#;
    for (body, pointers) in [(evil, &["/steps/0"][..]), (two, &["/deadline", "/steps/0/after/0"])] {
        let response = bench.raw("PUT", "/v1/definitions/evil", &[], body.into()).await;
        let trace = Trace::of(&HeaderMap::new(), bench.engine.runtime().rng().as_ref());
        let rendered = response.extensions().get::<Problem>().unwrap().render("/", &trace);
        let shown = to_bytes(rendered.into_body(), 1 << 20).await.unwrap();
        let shown: Value = serde_json::from_slice(&shown).unwrap();
        let errors = shown["errors"].as_array().unwrap();
        assert_eq!(errors.iter().map(|e| e["pointer"].as_str().unwrap()).collect::<Vec<_>>(), pointers);
    }
}

#[tokio::test]
async fn if_h04_a_wait_ends_with_the_saga_or_with_its_time() {
    let bench = bench().await;
    let (uid, _) = bench.settled(&json!({})).await;
    let path = format!("/v1/sagas/{uid}");
    let preferred = bench.send("GET", &path, &[("prefer", "wait=5")], Vec::new()).await;
    assert_eq!((preferred.status, &preferred.body["status"]), (200, &json!("completed")));
    assert_eq!(preferred.headers["preference-applied"], "wait");
    let bad = bench.get(&format!("{path}?wait=soon")).await;
    assert_eq!((bad.status, bad.code), (400, Some(Code::BadQuery)));
    let gone = bench.get("/v1/sagas/nope?wait=1ms").await;
    assert_eq!((gone.status, gone.code), (404, Some(Code::NotFound)));
}
