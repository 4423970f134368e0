//! The pages over an engine in memory, read like a browser reads them: by their links and forms.

mod attention;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;

use axum::body::{Body, to_bytes};
use futures_util::StreamExt as _;
use http::Request as HttpRequest;
use mainstay_clock::{Runtime, SystemClock};
use mainstay_saga::definition::Definition;
use mainstay_saga::engine::StartOptions;
use mainstay_saga::http::{AddressPolicy, HttpParticipant};
use mainstay_saga::{Engine, LocalStep, StepCx, StepError, Told, UndoError};
use mainstay_store::journal::{Loaded, Uid};
use mainstay_store::memory::{MemoryJournal, MemoryLeaseStore, MemoryRecordStore};
use mainstay_store::{BoxFuture, Journal};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::*;
use crate::api::tests::{set_aside, until};
use crate::api::{EVENT_STALL, Jobs, RunningKeys};
use crate::http::{Caller, FormToken, Scope, Sessions, Tokens};
use crate::leases::{Ask, Desk};
use crate::participants::Participants;

/// A name that needs care everywhere.
const ODD: &str = "a/b.c%d#e?f&g=\"'<i>";

/// Does what the input says for its step, `held` until the bench lets it go; an undo is refused where the input says so.
struct Scripted(Arc<Notify>);

impl LocalStep for Scripted {
    fn act(&self, cx: StepCx, input: Value) -> BoxFuture<'_, Result<Value, StepError>> {
        let word = input[&*cx.step].as_str().unwrap_or("ok").to_owned();
        let note = input["note"].as_str().unwrap_or("the reply was lost").to_owned();
        let go = Arc::clone(&self.0);
        Box::pin(async move {
            match word.as_str() {
                "no" => return Err(StepError::rejected_for_good(note)),
                "lost" => return Err(StepError::unknown(note)),
                "held" => go.notified().await,
                _ => {}
            }
            Ok(json!({"by": cx.step.to_string(), "token": "secret-output"}))
        })
    }

    fn undo(&self, _: StepCx, _: Told<Value>, input: Value) -> BoxFuture<'_, Result<(), UndoError>> {
        Box::pin(async move {
            match input["undo"].as_str() {
                Some("refused") => Err(UndoError::refused("the account was closed")),
                _ => Ok(()),
            }
        })
    }
}

struct Bench {
    router: Router,
    engine: Engine,
    /// Lets a step go that is held.
    go: Arc<Notify>,
    desk: Arc<Desk>,
    form: FormToken,
    mount: &'static str,
    caller: Caller,
    _dir: tempfile::TempDir,
}

struct Got {
    status: u16,
    location: String,
    body: String,
}

async fn bench_at(mount: &'static str) -> Bench {
    let rt = Runtime::system();
    let journal: Arc<dyn Journal> = Arc::new(MemoryJournal::new(Arc::new(SystemClock::new())));
    let mut builder = Engine::builder(Arc::clone(&journal), rt.clone());
    let go = Arc::new(Notify::new());
    for name in ["two", ODD] {
        let text = json!({
            "name": name, "version": 1, "deadline": "1h", "timeout": "30m",
            "retry": {"attempts": 1}, "undo_retry": {"attempts": 1},
            "steps": [
                {"name": "a", "local_undo": true},
                {"name": "b", "local_undo": true, "after": ["a"], "on_unknown": "ask", "runbook": "Ask <b>Ann</b>."},
            ],
        });
        let definition = Definition::from_json(text.to_string().as_bytes()).unwrap();
        let step = |name: &str| (name.to_owned(), Arc::new(Scripted(Arc::clone(&go))) as Arc<dyn LocalStep>);
        builder = builder.definition(definition, [step("a"), step("b")]);
    }
    let engine = builder.open().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    mainstay_saga::http::install_tls();
    let nowhere = AddressPolicy::only([""; 0]).unwrap();
    let participants = HttpParticipant::builder(nowhere, Arc::clone(rt.clock())).build().unwrap();
    let tokens = Arc::new(Tokens::of(dir.path()));
    let leases = Arc::new(MemoryLeaseStore::new(Arc::new(SystemClock::new())));
    let grants = Arc::new(MemoryRecordStore::new(Arc::new(SystemClock::new())));
    let app = Arc::new(App {
        engine: engine.clone(),
        journal,
        participants: Arc::new(Participants::of(participants)),
        rt,
        drain: CancellationToken::new(),
        tokens: Arc::clone(&tokens),
        resets: AtomicU64::new(0),
        running: RunningKeys::default(),
        jobs: Jobs::default(),
        redact: crate::redact::Redact::default(),
        desk: Arc::new(Desk::new(leases, grants, Runtime::system())),
        fleet: None,
        store: None,
        watched: Arc::default(),
        stall: EVENT_STALL,
    });
    let desk = Arc::clone(&app.desk);
    let sessions = Sessions::new(false).unwrap();
    let form = sessions.form_token(None);
    let access = Arc::new(Access::new(tokens, sessions, crate::http::Clients::default()));
    let config = Config::load(None, [], &[]).unwrap();
    let console = Arc::new(Console::new(app, access, &config));
    let router = Router::new().nest(mount, router(console));
    Bench { router, engine, go, desk, form, mount, caller: Caller::anonymous(), _dir: dir }
}

async fn bench() -> Bench {
    bench_at(MOUNT).await
}

impl Bench {
    async fn raw(&self, method: &str, path: &str, body: String) -> Response {
        let request = HttpRequest::builder().method(method).uri(path).header("host", "127.0.0.1:4600");
        let mut request = request.body(Body::from(body)).unwrap();
        request.extensions_mut().insert(self.caller.clone());
        request.extensions_mut().insert(self.form.clone());
        request.extensions_mut().insert(Trace::of(&HeaderMap::new(), self.engine.runtime().rng().as_ref()));
        self.router.clone().oneshot(request).await.unwrap()
    }

    async fn send(&self, method: &str, path: &str, body: String) -> Got {
        let response = self.raw(method, path, body).await;
        let location = response.headers().get("location").map(|v| v.to_str().unwrap().to_owned());
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 24).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Got { status, location: location.unwrap_or_default(), body }
    }

    /// A page below the mount.
    async fn get(&self, page: &str) -> Got {
        self.send("GET", &format!("{}/{page}", self.mount), String::new()).await
    }

    /// Takes a lease, with its namespace.
    async fn hold(&self, name: &str, owner: &str) -> u64 {
        let ask = Ask {
            name: name.to_owned(),
            owner: owner.to_owned(),
            op_id: uuid::Uuid::now_v7().simple().to_string(),
            key: None,
            ttl: std::time::Duration::from_secs(3_600),
            note: "why <b>not</b>".to_owned(),
            wait: std::time::Duration::ZERO,
        };
        self.desk.take(&ask).await.unwrap().token.get()
    }

    /// Starts a saga and waits until it ends or needs a person.
    async fn settled(&self, definition: &str, id: &str, input: Value) -> Uid {
        let handle = self.engine.start(definition, input, StartOptions::id(id)).await.unwrap();
        let uid = handle.uid().clone();
        handle.outcome().await.unwrap();
        uid
    }

    async fn loaded(&self, uid: &Uid) -> Loaded {
        self.engine.journal().load(uid).await.unwrap().unwrap()
    }

    /// Opens the form of an action as the operator sees it now.
    async fn form(&self, uid: &Uid, what: &str) -> (String, BTreeMap<String, String>, String) {
        let seen = self.loaded(uid).await.summary.next_seq;
        let page = self.get(&format!("sagas/{}/act?{what}&seen={seen}", uid.as_str())).await;
        assert_eq!(page.status, 200, "{}", page.body);
        let fields = hidden(&page.body);
        (format!("{}/sagas/{}/act", self.mount, uid.as_str()), fields, page.body)
    }

    async fn submit(&self, path: &str, fields: &BTreeMap<String, String>) -> Got {
        let pairs = fields.iter().map(|(k, v)| format!("{}={}", words::encode(k), words::encode(v)));
        self.send("POST", path, pairs.collect::<Vec<_>>().join("&")).await
    }
}

/// The hidden fields of the form of a page.
fn hidden(html: &str) -> BTreeMap<String, String> {
    let inputs = html.split("<input type=\"hidden\" ").skip(1);
    inputs
        .map(|rest| {
            let part = |name: &str| {
                let start = rest.split_once(&format!("{name}=\"")).unwrap().1;
                plain(start.split('"').next().unwrap())
            };
            (part("name"), part("value"))
        })
        .collect()
}

/// Text as a browser reads it.
fn plain(text: &str) -> String {
    text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

/// The values of an attribute.
fn values<'a>(html: &'a str, attribute: &str) -> Vec<&'a str> {
    let start = format!(" {attribute}=\"");
    html.split(start.as_str()).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

/// Every page that links lead to from *Now*, by address.
async fn crawl(bench: &Bench) -> BTreeMap<String, String> {
    let host = "http://127.0.0.1:4600";
    let mut open = vec![format!("{host}{}/now", bench.mount)];
    let mut pages = BTreeMap::new();
    let mut assets = BTreeSet::new();
    while let Some(address) = open.pop() {
        if pages.contains_key(&address) {
            continue;
        }
        let url = reqwest::Url::parse(&address).unwrap();
        let target = url.query().map_or(url.path().to_owned(), |q| format!("{}?{q}", url.path()));
        assert!(!target.contains("//") && target.starts_with(bench.mount), "{target}");
        let got = bench.send("GET", &target, String::new()).await;
        assert_eq!(got.status, 200, "{target}: {}", got.body);
        for link in values(&got.body, "href").into_iter().chain(values(&got.body, "src")) {
            let mut next = url.join(&plain(link)).unwrap();
            assert_eq!(next.origin(), url.origin(), "{link} on {address}");
            next.set_fragment(None);
            if next.path().contains("/assets/") {
                assets.insert(next.path().to_owned());
            } else {
                open.push(next.to_string());
            }
        }
        pages.insert(address, got.body);
    }
    for asset in &assets {
        assert_eq!(bench.send("GET", asset, String::new()).await.status, 200, "{asset}");
    }
    assert_eq!(assets.len(), 3, "{assets:?}");
    pages
}

/// Sagas of every kind, with names, inputs and errors that mean harm.
async fn populated(mount: &'static str) -> Bench {
    let bench = bench_at(mount).await;
    let evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>";
    bench.settled("two", "fine", json!({"n": 1})).await;
    bench.settled("two", "no", json!({"b": "no", "note": evil})).await;
    bench.settled("two", evil, json!({"b": "lost", "note": evil, evil: evil})).await;
    bench.settled(ODD, ODD, json!({"b": "lost", "undo": "refused"})).await;
    bench.settled("two", "undo", json!({"b": "no", "undo": "refused"})).await;
    bench
}

#[tokio::test]
async fn if_c02_hostile_queries_are_refused_and_cost_nothing() {
    let bench = bench().await;
    let many: String = (0..500).map(|i| format!("attr.{i}=x&")).collect();
    let long = "x".repeat(7_000);
    for bad in [
        "sagas?limit=100000000",
        "sagas?attempt_gte=99999999999999999999",
        "sagas?cursor=%00garbage",
        "sagas?status=nope",
        "sagas?a=1&a=2",
        "sagas?id=%ff",
        "audit?before=x",
        "now?x=1",
        &format!("sagas?{many}"),
    ] {
        let got = bench.get(bad).await;
        assert_eq!(got.status, 400, "{bad}");
        assert!(got.body.contains("MS0127") && got.body.len() < 5_000, "{}", got.body);
    }
    for fine in [format!("sagas?id={long}"), format!("sagas?error~={long}"), "audit?before=0".to_owned()] {
        assert_eq!(bench.get(&fine).await.status, 200);
    }
    assert_eq!(bench.get(&format!("audit?before={}", u64::MAX)).await.status, 200);
}

#[tokio::test]
async fn if_c03_odd_and_long_names_can_be_found_read_and_acted_on() {
    let bench = bench().await;
    let long = "x".repeat(255);
    for id in [ODD, "..", ".", "\u{e9}\u{4e2d} &=+", &long] {
        bench.settled(ODD, id, json!({"b": "lost"})).await;
        let list =
            bench.get(&format!("sagas?definition={}&id={}", words::encode(ODD), words::encode(id))).await;
        let link = values(&list.body, "href").into_iter().find(|l| l.starts_with("sagas/")).unwrap();
        let page = bench.get(link).await;
        assert!(plain(&page.body).contains(id), "{id}: {}", page.body);
        let uid = Uid::new(link.trim_start_matches("sagas/"));
        let (path, mut fields, _) = bench.form(&uid, "do=resolve_done&step=b").await;
        fields.insert("reason".to_owned(), "ledger".to_owned());
        let done = bench.submit(&path, &fields).await;
        assert_eq!(done.status, 303, "{}", done.body);
    }
    let everything = crawl(&bench).await;
    assert!(everything.len() > 10);
}

#[tokio::test]
async fn if_c04_large_integers_are_shown_exactly() {
    let bench = bench().await;
    let input = json!({"n": 9_007_199_254_740_993_u64, "m": u64::MAX, "b": "lost"});
    let uid = bench.settled("two", "big", input).await;
    let page = bench.get(&format!("sagas/{}", uid.as_str())).await.body;
    assert!(page.contains("9007199254740993") && page.contains("18446744073709551615"), "{page}");
    let (path, mut fields, form) = bench.form(&uid, "do=retry_with_input&step=b").await;
    let shown = form.split("name=\"json\"").nth(1).unwrap().split_once('>').unwrap().1;
    let shown = plain(shown.split("</textarea>").next().unwrap());
    fields.insert("json".to_owned(), shown.replace("lost", "ok"));
    fields.insert("reason".to_owned(), "the bank is back".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 303);
    let loaded = bench.loaded(&uid).await;
    let action = loaded.records.iter().map(|r| String::from_utf8_lossy(&r.bytes).into_owned());
    assert!(action.into_iter().any(|t| t.contains("retry") && t.contains("18446744073709551615")));
}

#[tokio::test]
async fn if_c06_sec_22_destruction_names_its_count_and_needs_the_typed_name_and_a_reason() {
    let bench = bench().await;
    let uid = bench.settled("two", "order-7", json!({"b": "no", "undo": "refused"})).await;
    for (what, counted) in [
        ("do=abandon", "This closes 1 saga; 1 effect remains in the world."),
        ("do=skip&step=a", "This gives up 1 step of 1 saga."),
    ] {
        let (path, mut fields, html) = bench.form(&uid, what).await;
        assert!(html.contains(counted), "{html}");
        assert!(!fields.contains_key("name") && !fields.contains_key("reason"), "a link fills nothing in");
        let before = bench.loaded(&uid).await;
        for (reason, name) in [("", ""), ("why", ""), ("", "order-7"), ("why", "order-8"), ("  ", "order-7")]
        {
            fields.insert("reason".to_owned(), reason.to_owned());
            fields.insert("name".to_owned(), name.to_owned());
            let refused = bench.submit(&path, &fields).await;
            assert_eq!(refused.status, 422, "{what} {reason} {name}");
            assert!(refused.body.contains("role=\"alert\""));
        }
        assert_eq!(bench.loaded(&uid).await, before, "nothing happened");
    }
    let running = bench.settled("two", "asked", json!({"b": "lost"})).await;
    let (_, _, html) = bench.form(&running, "do=compensate").await;
    assert!(html.contains("This turns back 1 saga: 2 steps will be undone."), "{html}");
    let (path, mut fields, _) = bench.form(&uid, "do=abandon").await;
    fields.insert("reason".to_owned(), "paid by hand, ticket 12".to_owned());
    fields.insert("name".to_owned(), "order-7".to_owned());
    let done = bench.submit(&path, &fields).await;
    assert_eq!((done.status, done.location), (303, format!("../{}?did=abandon", uid.as_str())));
    assert_eq!(bench.loaded(&uid).await.summary.row.status.as_str(), "abandoned");
    let audit = bench.get("audit").await.body;
    assert!(audit.contains("paid by hand, ticket 12") && audit.contains("abandon"), "{audit}");
}

#[tokio::test]
async fn if_c07_every_link_works_under_any_base_path() {
    let mut counts = Vec::new();
    for mount in ["/console", "/ops/deep/er"] {
        let bench = populated(mount).await;
        let entered = bench.send("GET", mount, String::new()).await;
        let base = format!("http://h{mount}");
        let first = reqwest::Url::parse(&base).unwrap().join(&entered.location).unwrap();
        assert_eq!((entered.status, first.path()), (303, format!("{mount}/now").as_str()));
        // Exports are links too, so this reads them all; forms post to where they came from.
        let pages = crawl(&bench).await;
        counts.push(pages.len());
        for (address, html) in &pages {
            for action in values(html, "action") {
                let to = reqwest::Url::parse(address).unwrap().join(action).unwrap();
                assert!(to.path().starts_with(mount) && !to.path().contains("//"), "{action} on {address}");
            }
        }
    }
    assert!(counts[0] > 40 && counts[0] == counts[1], "{counts:?}");
}

#[tokio::test]
async fn if_c08_sec_20_pages_carry_no_inline_script_or_style_and_ask_no_other_host() {
    let bench = populated(MOUNT).await;
    for (address, html) in crawl(&bench).await.iter().filter(|(a, _)| !a.contains("/export")) {
        for script in html.split("<script").skip(1) {
            assert!(script.starts_with(" defer src=\"") && script.contains("></script>"), "{address}");
        }
        assert!(!html.contains("<style") && values(html, "style").is_empty(), "{address}");
        let tags = html.split('<').map(|t| t.split('>').next().unwrap());
        for tag in tags {
            assert!(!tag.split('"').step_by(2).any(|t| t.contains(" on")), "{address}: {tag}");
        }
        for link in values(html, "href").into_iter().chain(values(html, "src")) {
            assert!(!link.contains(':'), "{address}: {link}");
        }
    }
    let script = include_str!("assets/console.js");
    for banned in ["eval(", "innerHTML = ", "document.write", "localStorage", "http:", "https:", ".style"] {
        assert!(!script.contains(banned), "{banned}");
    }
}

#[tokio::test]
async fn if_c11_an_unknown_id_is_a_page_of_404_and_not_a_crash() {
    let bench = bench().await;
    for page in
        ["sagas/nope", "sagas/nope/act?do=pause&seen=1", "sagas/nope/export", "nope", "assets/nope", "a/b/c"]
    {
        let got = bench.get(page).await;
        assert_eq!(got.status, 404, "{page}");
        assert!(got.body.contains("MS0107") && got.body.contains("Back to the console"), "{page}");
    }
}

#[tokio::test]
async fn if_c13_sec_21_nothing_that_others_wrote_becomes_markup() {
    let bench = populated(MOUNT).await;
    let evil = bench.settled("two", "acted", json!({"b": "lost"})).await;
    let (path, mut fields, _) = bench.form(&evil, "do=resolve_done&step=b").await;
    fields.insert("reason".to_owned(), "<script>alert(2)</script>".to_owned());
    fields.insert("json".to_owned(), "{\"<script>\": \"</pre><script>alert(3)</script>\"}".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 303);
    let mut seen = 0;
    for (address, html) in crawl(&bench).await.iter().filter(|(a, _)| !a.contains("/export")) {
        for bad in ["<script>", "<img src=x", "<b>Ann", "<i>\"", "</pre><script"] {
            assert!(!html.contains(bad), "{bad} on {address}");
        }
        seen += html.matches("&lt;script&gt;alert(").count();
    }
    assert!(seen > 10, "the attack is on the pages, as text: {seen}");
    for (query, status) in [("did=%3Cscript%3E", 200), ("%3Cscript%3Ealert(1)=1", 400)] {
        let page = bench.get(&format!("sagas/{}?{query}", evil.as_str())).await;
        assert!(page.status == status && !page.body.contains("<script>"), "{}", page.body);
    }
}

#[tokio::test]
async fn if_c14_a_form_without_our_token_changes_nothing() {
    let bench = bench().await;
    let uid = bench.settled("two", "o", json!({"b": "lost"})).await;
    let before = bench.loaded(&uid).await;
    let (path, mut fields, _) = bench.form(&uid, "do=resolve_done&step=b").await;
    fields.insert("reason".to_owned(), "x".to_owned());
    let good = fields.insert("form".to_owned(), "0".repeat(64)).unwrap();
    let wrong = bench.submit(&path, &fields).await;
    assert_eq!(wrong.status, 403, "{}", wrong.body);
    assert!(wrong.body.contains("MS0105"));
    fields.remove("form");
    assert_eq!(bench.submit(&path, &fields).await.status, 403);
    assert_eq!(bench.loaded(&uid).await, before);
    fields.insert("form".to_owned(), good);
    assert_eq!(bench.submit(&path, &fields).await.status, 303);
}

#[tokio::test]
async fn if_c01_a_reader_sees_no_buttons_and_is_refused_here_too() {
    let mut bench = bench().await;
    let uid = bench.settled("two", "o", json!({"b": "lost"})).await;
    bench.caller = Caller { name: "r".to_owned(), scope: Scope::Read, namespaces: Vec::new() };
    let before = bench.loaded(&uid).await;
    for page in ["attention".to_owned(), format!("sagas/{}", uid.as_str())] {
        let html = bench.get(&page).await.body;
        assert!(!html.contains("/act?") && !html.contains("href=\"audit\""), "{html}");
    }
    let seen = before.summary.next_seq;
    let path = format!("sagas/{}/act", uid.as_str());
    assert_eq!(bench.get(&format!("{path}?do=pause&seen={seen}")).await.status, 403);
    let body = format!("form={}&do=pause&seen={seen}&reason=x", bench.form.0);
    assert_eq!(bench.send("POST", &format!("{MOUNT}/{path}"), body).await.status, 403);
    assert_eq!(bench.loaded(&uid).await, before);
}

#[tokio::test]
async fn two_operators_the_second_is_told_plainly_and_nothing_of_theirs_happens() {
    let bench = bench().await;
    let uid = bench.settled("two", "o", json!({"b": "lost"})).await;
    let (path, mut first, _) = bench.form(&uid, "do=resolve_done&step=b").await;
    let (_, mut second, _) = bench.form(&uid, "do=resolve_not_done&step=b").await;
    first.insert("reason".to_owned(), "the ledger has it".to_owned());
    second.insert("reason".to_owned(), "the ledger has nothing".to_owned());
    assert_eq!(bench.submit(&path, &first).await.status, 303);
    let late = bench.submit(&path, &second).await;
    assert_eq!(late.status, 409);
    for text in ["Nothing of yours was done.", "local", "was faster", "resolve_done"] {
        assert!(late.body.contains(text), "{text}: {}", late.body);
    }
    let again = bench.submit(&path, &first).await;
    assert_eq!(again.status, 303, "the same form sent twice is one action");
    let loaded = bench.loaded(&uid).await;
    let acted =
        loaded.records.iter().filter(|r| String::from_utf8_lossy(&r.bytes).contains("\"who\"")).count();
    assert_eq!(acted, 1);
    assert_eq!(loaded.summary.row.status.as_str(), "completed");
}

#[tokio::test]
async fn secrets_in_payloads_are_hidden_everywhere_and_survive_an_edit() {
    let bench = bench().await;
    let input = json!({"b": "lost", "card": "4111-1111", "deep": [{"apiToken": "t-canary"}]});
    let uid = bench.settled("two", "o", input).await;
    for (address, page) in crawl(&bench).await {
        for secret in ["4111-1111", "t-canary", "secret-output"] {
            assert!(!page.contains(secret), "{secret} on {address}");
        }
    }
    let (path, mut fields, form) = bench.form(&uid, "do=retry_with_input&step=b").await;
    assert!(form.contains("[hidden]"));
    let edited = json!({"b": "ok", "card": "[hidden]", "deep": [{"apiToken": "[hidden]"}]});
    fields.insert("json".to_owned(), edited.to_string());
    fields.insert("reason".to_owned(), "x".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 303);
    let log = bench
        .loaded(&uid)
        .await
        .records
        .iter()
        .map(|r| String::from_utf8_lossy(&r.bytes).into_owned())
        .collect::<String>();
    assert!(log.matches("4111-1111").count() == 2 && !log.contains("[hidden]"), "{log}");
}

#[tokio::test]
async fn no_page_changes_anything_and_every_action_shows_its_call() {
    let bench = populated(MOUNT).await;
    let sagas = bench.engine.journal().query(&Default::default(), None, 100).await.unwrap();
    let pages = crawl(&bench).await;
    assert_eq!(bench.engine.journal().query(&Default::default(), None, 100).await.unwrap(), sagas);
    assert_eq!(bench.engine.journal().audit(0, 10).await.unwrap(), []);
    let forms: Vec<&String> = pages.iter().filter(|(a, _)| a.contains("/act?")).map(|(_, p)| p).collect();
    assert!(forms.len() > 10);
    for form in forms {
        let call = plain(form.split("<pre id=\"c-act\"").nth(1).unwrap().split("</pre>").next().unwrap());
        assert!(call.contains("curl -sS -X POST 'http://127.0.0.1:4600/v1/sagas/"), "{call}");
        let body = call.split("-d '").nth(1).unwrap().trim_end_matches('\'').replace(r"'\''", "'");
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|e| panic!("{e}: {body}"));
        assert!(body["action"].is_string() && body["reason"].is_string(), "{body}");
    }
}

/// Every page, in words that a screen reader needs.
#[tokio::test]
async fn if_c12_pages_have_labels_one_main_heading_and_ids_once() {
    let bench = populated(MOUNT).await;
    let mut pages = crawl(&bench).await;
    pages.retain(|a, _| !a.contains("/export"));
    let missing = bench.get("sagas/nope").await.body;
    pages.insert("404".to_owned(), missing);
    for (address, html) in &pages {
        let mut level = 0;
        for heading in html.split("<h").skip(1) {
            let Some(next) = heading.chars().next().and_then(|c| c.to_digit(10)) else { continue };
            assert!(next <= level + 1, "{address}: h{next} after h{level}");
            level = next;
        }
        assert_eq!(html.matches("<h1").count(), 1, "{address}");
        assert!(html.contains("<html lang=\"en\">") && html.contains("<title>") && html.contains("<main "));
        let ids = values(html, "id");
        let once: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), once.len(), "{address}: {ids:?}");
        for kind in ["<input ", "<select ", "<textarea "] {
            for field in html.split(kind).skip(1).map(|f| f.split('>').next().unwrap()) {
                if !field.starts_with("type=\"hidden\"") {
                    let id = values(&format!(" {field}"), "id")[0].to_owned();
                    assert!(html.contains(&format!("<label for=\"{id}\"")), "{address}: {field}");
                }
            }
        }
        for svg in html.split("<svg").skip(1).map(|s| s.split('>').next().unwrap()) {
            assert!(svg.contains("aria-label=") || svg.contains("aria-hidden"), "{address}: {svg}");
        }
    }
}

#[tokio::test]
async fn a_page_with_style_and_script_weighs_at_most_60_kib_even_uncompressed() {
    let bench = bench().await;
    for n in 0..60 {
        let input = if n % 3 == 0 {
            json!({"b": "lost", "note": "the bank did not answer within the attempt timeout"})
        } else {
            json!({})
        };
        bench.settled("two", &format!("order-{n:06}"), input).await;
    }
    let assets = include_str!("assets/console.css").len()
        + include_str!("assets/console.js").len()
        + include_str!("assets/icon.svg").len();
    for n in 0..60 {
        bench.hold(&format!("default/order/{n:06}"), "node-a.example:4711").await;
    }
    for page in ["now", "attention", "sagas", "locks", "elections", "members", "nodes", "audit", "system"] {
        let html = bench.get(page).await.body.len();
        println!("{page}: {html} bytes of HTML, {} with everything", html + assets);
        assert!(html + assets <= 60 * 1024, "{page}: {html} + {assets}");
    }
}

#[tokio::test]
async fn a_saga_that_was_set_aside_says_why_and_has_its_buttons() {
    let bench = bench().await;
    let handle = bench.engine.start("two", json!({"a": "held"}), StartOptions::id("crashes")).await.unwrap();
    let uid = handle.uid().clone();
    let reason = "its owner vanished 3 times <i>alone</i>";
    set_aside(bench.engine.journal().as_ref(), uid.as_str(), reason).await;
    for page in ["attention".to_owned(), format!("sagas/{}", uid.as_str())] {
        let html = bench.get(&page).await.body;
        assert!(html.contains("The node set this saga aside."), "{page}: {html}");
        assert!(html.contains("vanished 3 times &lt;i&gt;alone"), "{page}: {html}");
        for what in ["compensate", "cancel", "pause"] {
            assert_eq!(
                html.matches(&format!("/act?do={what}&amp;seen=")).count(),
                1,
                "{page} {what}: {html}"
            );
        }
    }
    let (path, mut fields, _) = bench.form(&uid, "do=compensate").await;
    fields.insert("reason".to_owned(), "it stops the node".to_owned());
    fields.insert("name".to_owned(), "crashes".to_owned());
    assert_eq!(bench.submit(&path, &fields).await.status, 303);
    bench.go.notify_one();
    until("it is undone", async || bench.loaded(&uid).await.summary.row.status.as_str() == "compensated")
        .await;
    assert!(!bench.get(&format!("sagas/{}", uid.as_str())).await.body.contains("set this saga aside"));
}

/// No record says that a saga was set aside: a page that was open, of that saga or of all, did not hear of it.
#[tokio::test]
async fn a_page_that_is_open_hears_of_a_saga_that_is_set_aside() {
    /// Waits for a hint; by the third heartbeat it would have come.
    async fn hint(stream: &mut axum::body::BodyDataStream) {
        let mut text = String::new();
        while !text.contains("event: changed") {
            assert!(text.matches("heartbeat").count() < 3, "no hint: {text}");
            text.push_str(std::str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
        }
    }
    let bench = bench().await;
    let handle = bench.engine.start("two", json!({"a": "held"}), StartOptions::id("aside")).await.unwrap();
    let uid = handle.uid().clone();
    until("its step runs", async || bench.loaded(&uid).await.summary.next_seq > 2).await;
    let mut streams = Vec::new();
    for page in ["events".to_owned(), format!("events?saga={uid}")] {
        let path = format!("{}/{page}", bench.mount);
        let mut stream = bench.raw("GET", &path, String::new()).await.into_body().into_data_stream();
        hint(&mut stream).await;
        streams.push(stream);
    }
    set_aside(bench.engine.journal().as_ref(), uid.as_str(), "its owner vanished").await;
    for stream in &mut streams {
        hint(stream).await;
    }
}

#[tokio::test]
async fn locks_and_elections_show_who_holds_and_are_taken_away_by_their_typed_name() {
    let mut bench = bench().await;
    let empty = bench.get("locks").await;
    assert!(empty.status == 200 && empty.body.contains("Nothing is locked."), "{}", empty.body);
    let token = bench.hold(&format!("default/{ODD}"), "node <a>").await;
    let term = bench.hold("default/election/boss", "node-b").await;
    let locks = bench.get("locks").await.body;
    assert!(locks.contains("node &lt;a&gt;") && locks.contains(&token.to_string()), "{locks}");
    assert!(locks.contains("why &lt;b&gt;not&lt;/b&gt;") && !locks.contains("boss"), "{locks}");
    assert!(locks.contains(", since <time datetime=") && !locks.contains("nobody knows"), "{locks}");
    assert!(!locks.contains("its own clock"), "the store has one: {locks}");
    bench.hold("default/member/workers/w1", "node-c").await;
    bench.hold("default/left/workers/w2", "17").await;
    let members = bench.get("members").await.body;
    assert!(members.contains("workers/w1") && members.contains("node-c"), "{members}");
    assert!(members.contains("incarnation") && !members.contains("node-b"), "{members}");
    let locks = bench.get("locks").await.body;
    assert!(!locks.contains("workers/w"), "members and their traces are no locks: {locks}");
    let elections = bench.get("elections").await.body;
    assert!(elections.contains("led by") && elections.contains(&term.to_string()), "{elections}");
    assert!(!elections.contains("node &lt;a&gt;"), "{elections}");

    let ask = format!("leases/break?name={}", words::encode(ODD));
    assert!(locks.contains(&ask.replace('&', "&amp;")), "{locks}");
    let form = bench.get(&ask).await;
    assert_eq!(form.status, 200, "{}", form.body);
    let path = format!("{}/leases/break", bench.mount);
    let mut fields = hidden(&form.body);
    fields.insert("name".to_owned(), "another".to_owned());
    let wrong = bench.submit(&path, &fields).await;
    assert_eq!(wrong.status, 422, "{}", wrong.body);
    fields.insert("name".to_owned(), ODD.to_owned());
    let mut forged = fields.clone();
    forged.insert("form".to_owned(), "forged".to_owned());
    assert_eq!(bench.submit(&path, &forged).await.status, 403);
    for silent in ["", "  "] {
        fields.insert("reason".to_owned(), silent.to_owned());
        let wrong = bench.submit(&path, &fields).await;
        assert!(wrong.status == 422 && wrong.body.contains("Say why"), "sec_22: {}", wrong.body);
    }
    assert!(bench.get("locks").await.body.contains(&token.to_string()), "nothing was taken away");
    fields.insert("reason".to_owned(), "host-7 died".to_owned());
    let done = bench.submit(&path, &fields).await;
    assert_eq!((done.status, done.location.starts_with("../locks?did=")), (303, true), "{}", done.location);
    let told = done.location.trim_start_matches("../");
    let (page, burned) = told.split_once("&burned=").unwrap();
    let burned: u64 = burned.parse().unwrap();
    assert!(burned > token, "{burned} after {token}");
    let shown = bench.get(told).await.body;
    assert!(shown.contains(&format!("advance({burned})")), "f40: {shown}");
    // A link that somebody made up would lock every holder out.
    let forged = bench.get(&format!("{page}&burned={}", burned + 1)).await.body;
    assert!(!forged.contains("advance("), "{forged}");
    assert!(!bench.get("locks").await.body.contains("node &lt;a&gt;"));
    assert!(bench.hold(&format!("default/{ODD}"), "next").await > token);

    bench.caller = Caller { name: "op".to_owned(), scope: Scope::Operate, namespaces: Vec::new() };
    assert!(!bench.get("elections").await.body.contains("step down"), "not offered");
    assert_eq!(bench.get("leases/break?name=election%2Fboss").await.status, 403);
    let boss = BTreeMap::from([("lease".to_owned(), "election/boss".to_owned())]);
    assert_eq!(bench.submit(&path, &boss).await.status, 403);
}
