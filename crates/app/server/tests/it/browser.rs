//! The console in a real browser, on the real binary.

use std::path::Path;

use serde_json::{Value, json};

use crate::end_to_end::{node, order};
use crate::harness::{Node, Request, eventually, token};
use crate::ledger::Ledger;
use crate::webdriver::{Browser, Scripts, present};

/// Tools of accessibility checking, for tests only.
const AXE: &str = include_str!("../axe/axe.min.js");

/// Counts what the page asks for from now on, and what of it is over.
const COUNTS: &str = "window.asked = 0; window.answered = 0; \
    const ask = window.fetch; \
    window.fetch = (...what) => { \
      window.asked += 1; \
      const answer = ask(...what); \
      const over = () => { window.answered += 1; }; \
      answer.then(over, over); \
      return answer; \
    }; \
    const Stream = window.EventSource; \
    window.EventSource = class extends Stream { \
      constructor(...what) { super(...what); window.asked += 1; window.answered += 1; } \
    };";

fn start(node: &Node, id: &str, input: &Value) -> String {
    let body = json!({"definition": "order", "id": id, "input": input}).to_string();
    let post = Request::new("POST", "/v1/sagas").header("idempotency-key", &id[..id.len().min(100)]);
    let started = node.send(&post.body(body));
    assert_eq!(started.status, 202, "{}", started.text());
    started.json()["uid"].as_str().unwrap().to_owned()
}

/// A node whose orders give up at the first failure.
fn impatient(dir: &Path, ledger: &Ledger) -> Node {
    node(dir, &ledger.origin, &order(&ledger.origin).replace("attempts = 20", "attempts = 1"))
}

/// An order that only a person can end: shipping says no, and the refund is refused.
fn stuck(node: &Node, id: &str) -> String {
    let uid = start(
        node,
        id,
        &json!({"no": "ship", "closed": "charge", "note": "<img src=x onerror=window.pwned=1>"}),
    );
    let saga = node.settled(&uid);
    assert_eq!(saga["status"], "needs_attention", "{saga}");
    uid
}

/// Goes from *Now* to the one stuck order and says that it is undone.
fn resolve(browser: &Browser, base: &str) {
    browser.go(base);
    browser.shows("h1", "1 saga needs a person");
    browser.click(".verdict a");
    browser.shows("h1", "Attention");
    browser.shows(".item", "order-stuck");
    browser.shows(".need", "The undo of charge was refused or keeps failing.");
    browser.click("a[href*='do=resolve_undone']");
    browser.shows("h1", "It is undone");
    browser.keys("#reason", "refunded by hand, ticket 4711");
    browser.click("button.primary");
    browser.shows(".notice.good", "On the log");
}

#[test]
fn a_person_finds_the_stuck_order_resolves_it_and_sees_it_end() {
    if !present("a_person_finds_the_stuck_order_resolves_it_and_sees_it_end") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = impatient(dir.path(), &ledger);
    let uid = stuck(&node, "order-stuck");
    let browser = Browser::start(Scripts::On);
    let base = format!("http://{}/console", node.address);
    resolve(&browser, &base);
    assert!(browser.url().ends_with(&format!("/console/sagas/{uid}?did=resolve_undone")));
    // No reload: the page tells by itself.
    browser.shows(".title", "compensated");
    browser.shows(".timeline", "refunded by hand, ticket 4711");
    browser.click("nav a[href$='attention']");
    browser.shows("#live", "Nobody is needed.");
    let entry = &ledger.book()[&(uid.clone(), "reserve".to_owned())];
    assert_eq!((entry.done, entry.undone), (1, 1), "the saga went on by itself");
    assert_eq!(node.get(&format!("/v1/sagas/{uid}")).json()["status"], "compensated");
    assert_eq!(browser.run("return window.pwned === undefined"), json!(true), "if_c13");
    assert_eq!(browser.complaints(), [""; 0], "if_c08 nothing was blocked, nothing failed");
}

#[test]
fn if_c12_the_same_without_javascript() {
    if !present("if_c12_the_same_without_javascript") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = impatient(dir.path(), &ledger);
    let uid = stuck(&node, "order-stuck");
    let browser = Browser::start(Scripts::Off);
    let base = format!("http://{}/console", node.address);
    browser.go(&format!("{base}/now"));
    assert!(
        browser.text("#state").is_empty() && browser.text("#pause").is_empty(),
        "no button that does nothing"
    );
    resolve(&browser, &base);
    eventually("the page, loaded again, shows the end", || {
        browser.go(&format!("{base}/sagas/{uid}"));
        browser.text(".title").contains("compensated").then_some(())
    });
    browser.go(&format!("{base}/attention"));
    browser.shows("#live", "Nobody is needed.");
}

#[test]
fn if_c09_a_paused_page_stays_as_it_is_whatever_happens_and_whoever_looks() {
    if !present("if_c09_a_paused_page_stays_as_it_is_whatever_happens_and_whoever_looks") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = impatient(dir.path(), &ledger);
    let browser = Browser::start(Scripts::On);
    let page = format!("http://{}/console/sagas", node.address);
    let (paused, live) = browser.windows();
    browser.go(&page);
    browser.run(COUNTS);
    start(&node, "before", &json!({}));
    browser.shows("#live", "before");
    browser.click("#pause");
    browser.shows("#state", "paused");
    // What was asked for before is still answered.
    eventually("nothing is under way", || {
        (browser.run("return window.asked === window.answered") == json!(true)).then_some(())
    });
    let state = "return document.querySelector('main').innerHTML + window.asked";
    let still = browser.run(state);
    browser.turn_to(&live);
    browser.go(&page);
    start(&node, "meanwhile-1", &json!({}));
    browser.shows("#live", "meanwhile-1");
    // Back and forth: the other page stands still while this one, fed by the same node, goes on.
    for n in 2..5 {
        browser.turn_to(&paused);
        browser
            .run("dispatchEvent(new Event('focus')); document.dispatchEvent(new Event('visibilitychange'))");
        browser.turn_to(&live);
        start(&node, &format!("meanwhile-{n}"), &json!({}));
        browser.shows("#live", &format!("meanwhile-{n}"));
    }
    browser.turn_to(&paused);
    assert_eq!(browser.run(state), still, "nothing was asked for and nothing moved");
    browser.click("#pause");
    browser.shows("#live", "meanwhile-4");
}

#[test]
fn if_c05_copying_works_over_plain_http() {
    if !present("if_c05_copying_works_over_plain_http") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let mut command = crate::harness::mainstay(&["serve", "--data", data, "--listen", "127.0.0.1:0"]);
    let node = Node::spawn({
        command.env("MAINSTAY_SERVER__ALLOWED_HOSTS", "plain.test");
        command
    });
    let browser = Browser::start(Scripts::On);
    let base = format!("http://plain.test:{}/console", node.address.rsplit(':').next().unwrap());
    browser.go(&format!("{base}/sagas?status=running"));
    let place = browser.run("return [window.isSecureContext, navigator.clipboard === undefined]");
    assert_eq!(place, json!([false, true]), "the clipboard API is missing here");
    browser.click("#d-c-list summary");
    // The word stands there for two seconds, which may be less than a look takes.
    browser.run(
        "window.told = ''; const tell = () => document.querySelectorAll('button[data-copy]').forEach((b) => { \
           window.told += b.textContent; }); \
         new MutationObserver(tell).observe(document.body, {childList: true, characterData: true, subtree: true});",
    );
    browser.click("button[data-copy]");
    eventually("it says `Copied`", || {
        browser.run("return window.told").as_str().unwrap().contains("Copied").then_some(())
    });
    browser.keys("#f-id", "\u{e009}v");
    let pasted = browser.run("return document.getElementById('f-id').value");
    let expected = format!("curl -sS '{}/v1/sagas?status=running'", base.trim_end_matches("/console"));
    assert_eq!(pasted, json!(expected));
}

#[test]
fn sec_17_a_person_logs_in_and_no_script_can_read_the_session() {
    if !present("sec_17_a_person_logs_in_and_no_script_can_read_the_session") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let secret = token(dir.path(), "ann", "operate");
    let node = Node::start(dir.path(), &[]);
    let browser = Browser::start(Scripts::On);
    browser.go(&format!("http://{}/console/sagas?status=running", node.address));
    browser.shows("h1", "Log in");
    browser.keys("#token", "ms_wrong");
    browser.click("button.primary");
    browser.shows(".notice.bad", "not valid");
    browser.keys("#token", &secret);
    browser.click("button.primary");
    browser.shows("h1", "Sagas");
    assert!(browser.url().ends_with("/console/sagas?status=running"), "{}", browser.url());
    browser.shows("#state", "live");
    browser.shows(".visitor", "ann (operate)");
    let kept = browser.run("return [document.cookie, localStorage.length, JSON.stringify(sessionStorage)]");
    assert_eq!(kept, json!(["", 0, "{}"]));
    browser.click(".visitor form button");
    browser.shows("h1", "Log in");
    browser.go(&format!("http://{}/console/now", node.address));
    browser.shows("h1", "Log in");
}

/// What axe finds, and what it does not look for: overflow, and targets too small for a finger.
fn violations(browser: &Browser) -> Vec<String> {
    browser.run(AXE);
    let found = browser.run_async(
        "axe.run(document, {resultTypes: ['violations']}).then(\
         (r) => done(r.violations.map((v) => v.id + ': ' + v.nodes.map((n) => n.html.slice(0, 160)).join(' | '))), \
         (e) => done(['axe: ' + e]));",
    );
    let mut all: Vec<String> = found.as_array().unwrap().iter().map(Value::to_string).collect();
    let ours = browser.run(
        "const wide = document.documentElement.scrollWidth - innerWidth; \
         const small = [...document.querySelectorAll('a, button, input:not([type=hidden]), select, textarea, summary')] \
           .filter((e) => e.checkVisibility() && !e.closest('.skip') && !e.closest('p:not(.lead)')) \
           .filter((e) => { const r = e.getBoundingClientRect(); return r.height < 23.5 || r.width < 23.5; }) \
           .map((e) => 'small: ' + e.outerHTML.slice(0, 120)); \
         return wide > 0 ? ['wide by ' + wide, ...small] : small;",
    );
    all.extend(ours.as_array().unwrap().iter().map(Value::to_string));
    all
}

#[test]
fn if_c12_no_accessibility_violation_on_wide_and_narrow_in_light_and_dark() {
    if !present("if_c12_no_accessibility_violation_on_wide_and_narrow_in_light_and_dark") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = impatient(dir.path(), &ledger);
    let uid = stuck(&node, "order-stuck");
    start(&node, &"x".repeat(250), &json!({"no": "charge"}));
    let held = r#"{"owner": "node-a:4711", "ttl": "1h", "note": "nightly"}"#;
    for path in ["/v1/locks/backup", "/v1/elections/scheduler"] {
        let put = Request::new("PUT", path).header("content-type", "application/json").body(held);
        assert_eq!(node.send(&put).status, 200);
    }
    let browser = Browser::start(Scripts::On);
    let seen = node.get(&format!("/v1/sagas/{uid}")).json()["next_seq"].as_str().unwrap().to_owned();
    let act = |what: &str| format!("sagas/{uid}/act?do={what}&seen={seen}");
    let pages = [
        "now".to_owned(),
        "attention".to_owned(),
        "sagas".to_owned(),
        "sagas?status=abandoned&attempt_lte=3".to_owned(),
        format!("sagas/{uid}"),
        act("skip&step=charge"),
        act("retry_with_input&step=charge"),
        format!("sagas/{uid}/act?do=pause&seen=1"),
        "locks".to_owned(),
        "elections".to_owned(),
        "leases/break?name=backup".to_owned(),
        "nodes".to_owned(),
        "audit".to_owned(),
        "system".to_owned(),
        "sagas/nope".to_owned(),
    ];
    let mut wrong = Vec::new();
    for (width, scheme) in [(1280, "light"), (400, "dark")] {
        browser.screen(width, scheme);
        for page in &pages {
            browser.go(&format!("http://{}/console/{page}", node.address));
            let found = violations(&browser);
            wrong.extend(found.into_iter().map(|v| format!("{page} at {width} {scheme}: {v}")));
        }
    }
    // The ways to see that the checks can fail.
    browser.run("document.querySelector('main').innerHTML = '<img src=\"x\"><button></button>'");
    assert!(violations(&browser).len() >= 2, "axe finds what is planted");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn if_c12_the_keyboard_reaches_everything_and_shows_where_it_is() {
    if !present("if_c12_the_keyboard_reaches_everything_and_shows_where_it_is") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let node = impatient(dir.path(), &ledger);
    stuck(&node, "order-stuck");
    let browser = Browser::start(Scripts::On);
    browser.go(&format!("http://{}/console/attention", node.address));
    browser.shows("#state", "live");
    browser.click("#pause");
    browser.run("document.activeElement.blur()");
    let mut stops = Vec::new();
    for _ in 0..40 {
        for kind in ["rawKeyDown", "keyUp"] {
            let key = json!({"type": kind, "key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9});
            browser.devtools("Input.dispatchKeyEvent", key);
        }
        let at = browser.run(
            "const e = document.activeElement; const s = getComputedStyle(e); \
             return [e.textContent.trim().slice(0, 40), e === document.body || (s.outlineStyle === 'solid' && parseFloat(s.outlineWidth) >= 3)];",
        );
        assert_eq!(at[1], json!(true), "the focus cannot be seen on {at}");
        stops.push(at[0].as_str().unwrap().to_owned());
    }
    for wanted in [
        "Skip to the content",
        "Sagas",
        "Go on",
        "order-stuck",
        "Try again now (step charge)",
        "It is undone (step charge)",
    ] {
        assert!(stops.iter().any(|s| s == wanted), "{wanted}: {stops:?}");
    }
}
