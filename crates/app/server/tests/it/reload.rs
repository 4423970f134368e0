//! A hangup takes over what a running node can, all or nothing, and says what it did.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::end_to_end::order;
use crate::harness::{Node, Request, eventually};
use crate::recorder::{Recorder, header};

const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXM=";

fn reloads(node: &Node) -> Vec<Value> {
    let audit = node.get("/v1/audit").json();
    audit["items"].as_array().unwrap().iter().filter(|l| l["action"] == "reload").cloned().collect()
}

/// Sends a hangup and waits for its line in the audit.
fn reload(node: &Node) -> Value {
    let before = reloads(node).len();
    node.signal(Signal::HUP);
    eventually("the reload is audited", || {
        let all = reloads(node);
        (all.len() > before).then(|| all[all.len() - 1].clone())
    })
}

fn put(node: &Node, origin: &str) -> u16 {
    let put = Request::new("PUT", "/v1/definitions/order").header("content-type", "application/toml");
    node.send(&put.body(order(origin))).status
}

/// Waits until the first step of a saga was refused here for these reasons, then cancels it: what was never sent leaves
/// nothing to undo.
#[track_caller]
fn turned_away(node: &Node, uid: &str, whys: &[&str]) {
    let saga = format!("/v1/sagas/{uid}");
    eventually("it is turned away", || {
        let shown = node.get(&saga).json();
        let error = shown["steps"][0]["last_error"].as_str().unwrap_or_default();
        whys.iter().all(|why| error.contains(why)).then_some(())
    });
    eventually("it is cancelled", || {
        let seen = node.get(&saga);
        let cancel =
            Request::new("POST", &format!("{saga}/actions")).header("if-match", seen.header("etag")?);
        let cancel = cancel.header("content-type", "application/json");
        let answer = node.send(&cancel.body("{\"action\":\"cancel\",\"reason\":\"enough\"}"));
        (answer.status == 200 || seen.json()["status"] == "compensated").then_some(())
    });
    assert_eq!(node.settled(uid)["status"], "compensated");
}

fn start(dir: &Path, config: &Path) -> Node {
    Node::start(&dir.join("data"), &["--config", config.to_str().unwrap()])
}

#[test]
fn allowed_addresses_and_definitions_change_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let service = Recorder::content();
    let config = dir.path().join("m.toml");
    std::fs::write(&config, "").unwrap();
    let node = start(dir.path(), &config);
    assert_eq!(put(&node, &service.origin), 422);
    let folder = dir.path().join("definitions");
    std::fs::create_dir(&folder).unwrap();
    let other = order(&service.origin).replace("name = \"order\"", "name = \"other\"");
    std::fs::write(folder.join("other.toml"), other).unwrap();
    let text = format!(
        "[participants]\nallow = [\"{}\"]\n[saga]\ndefinitions = \"{}\"\n[server]\nmax_in_flight = 7\n",
        service.origin,
        folder.display()
    );
    std::fs::write(&config, text).unwrap();
    let line = reload(&node);
    assert_eq!(line["after"], "applied", "{line}");
    let diff = line["before"].as_str().unwrap();
    assert!(diff.contains("definition other version 1: new"), "{diff}");
    assert!(diff.contains(&format!("participants.allow: [] -> [\"{}\"]", service.origin)), "{diff}");
    assert!(diff.contains("server.max_in_flight: 512 -> 7 (after a restart)"), "{diff}");
    assert_eq!(put(&node, &service.origin), 201);
    assert_eq!(node.get("/v1/definitions/other").status, 200);
    // The same again: no harm, and the secrets and origins are read again.
    assert_eq!(reload(&node)["after"], "applied");
}

#[test]
fn a_reload_with_one_mistake_changes_nothing_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let service = Recorder::content();
    let config = dir.path().join("m.toml");
    let folder = dir.path().join("definitions");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.toml"), order(&service.origin)).unwrap();
    let base = format!(
        "[participants]\nallow = [\"{}\"]\n[saga]\ndefinitions = \"{}\"\n",
        service.origin,
        folder.display()
    );
    std::fs::write(&config, &base).unwrap();
    let node = start(dir.path(), &config);
    let before = node.get("/v1/definitions").json();
    let fresh = order(&service.origin).replace("name = \"order\"", "name = \"fresh\"");
    std::fs::write(folder.join("b.toml"), &fresh).unwrap();
    let mistakes: [(&str, String, Option<String>); 6] = [
        ("MS0001", format!("{base}[server]\nlistne = \"x\"\n"), None),
        ("MS0002", base.replace("[saga]", "sign = [\"nonsense\"]\n[saga]"), None),
        ("MS0002", format!("{base}[log]\nfilter = \"=/=\"\n"), None),
        ("MS0011", base.clone(), Some(fresh.replace("after = [\"reserve\"]", "after = [\"zzz\"]"))),
        // The same version with another graph, while sagas of it may be in flight.
        ("MS0122", base.clone(), Some(order(&service.origin).replace("after = [\"charge\"]", "after = []"))),
        // Two files that do not agree on a new one.
        ("MS0122", base.clone(), Some(fresh.replace("after = [\"charge\"]", "after = []"))),
    ];
    for (code, text, definition) in mistakes {
        std::fs::write(&config, text).unwrap();
        match &definition {
            Some(text) => std::fs::write(folder.join("c.toml"), text).unwrap(),
            None => drop(std::fs::remove_file(folder.join("c.toml"))),
        }
        let before_it = node.log().len();
        let line = reload(&node);
        assert!(line["after"].as_str().unwrap().starts_with("refused"), "{code}: {line}");
        eventually(&format!("{code} is in the log"), || node.log()[before_it..].contains(code).then_some(()));
        assert_eq!(
            node.get("/v1/definitions").json(),
            before,
            "{code}: nothing was stored, not even what is fine"
        );
    }
    std::fs::remove_file(folder.join("c.toml")).unwrap();
    std::fs::write(&config, &base).unwrap();
    assert_eq!(reload(&node)["after"], "applied");
    assert_eq!(node.get("/v1/definitions/fresh").status, 200);
}

#[test]
fn sec_16_requests_are_signed_and_a_secret_is_exchanged_by_a_reload() {
    let dir = tempfile::tempdir().unwrap();
    let service = Recorder::content();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, format!("{OLD}\n")).unwrap();
    let config = dir.path().join("m.toml");
    let sign = format!("{}={}", service.origin, secret.display());
    let text = format!("[participants]\nallow = [\"{}\"]\nsign = [\"{sign}\"]\n", service.origin);
    std::fs::write(&config, text).unwrap();
    let node = start(dir.path(), &config);
    assert_eq!(put(&node, &service.origin), 201);
    let run = |id: &str| {
        let post = Request::new("POST", "/v1/sagas").header("idempotency-key", id);
        let started = node.send(&post.body(format!("{{\"definition\":\"order\",\"id\":\"{id}\"}}")));
        let uid = started.json()["uid"].as_str().unwrap().to_owned();
        assert_eq!(node.settled(&uid)["status"], "completed");
        service.seen().into_iter().rev().find(|(head, _)| head.contains(&uid)).unwrap()
    };
    let signed_by = |(head, body): &(String, Vec<u8>)| {
        let count = header(head, "webhook-signature").unwrap().split(' ').count();
        let mut headers = http::HeaderMap::new();
        for name in ["webhook-id", "webhook-timestamp", "webhook-signature"] {
            headers.insert(name, header(head, name).unwrap().parse().unwrap());
        }
        let key = header(head, "idempotency-key").unwrap().trim_matches('"').to_owned();
        assert_eq!(header(head, "webhook-id"), Some(key.as_str()));
        let fits = |secret: &str| {
            let secret = mainstay_saga::signature::Secret::parse(secret).unwrap();
            let now = mainstay_clock::os_wall_now();
            let tolerance = mainstay_saga::signature::TOLERANCE;
            mainstay_saga::signature::verify(&[secret], &headers, body, now, tolerance).is_ok()
        };
        (count, fits(OLD), fits(NEW))
    };
    assert_eq!(signed_by(&run("one")), (1, true, false));
    std::fs::write(&secret, format!("{NEW}\n{OLD}\n")).unwrap();
    reload(&node);
    assert_eq!(signed_by(&run("two")), (2, true, true), "both, while participants change over");
    std::fs::write(&secret, format!("{NEW}\n")).unwrap();
    reload(&node);
    assert_eq!(signed_by(&run("three")), (1, false, true));
    // A file that cannot be read leaves the old secrets in force.
    std::fs::write(&secret, "whsec_short\n").unwrap();
    assert!(reload(&node)["after"].as_str().unwrap().starts_with("refused"));
    assert_eq!(signed_by(&run("four")), (1, false, true));
    let all = node.get("/v1/audit").text() + &node.log();
    assert!(!all.contains(&OLD[6..]) && !all.contains(&NEW[6..]), "no secret is told: {all}");
}

/// One call of an origin at a time: the second saga waits, and what was not sent leaves nothing to undo.
#[test]
fn a_participant_gets_no_more_calls_at_once_than_configured() {
    let dir = tempfile::tempdir().unwrap();
    let service = Recorder::start(|_| Vec::new());
    let config = dir.path().join("m.toml");
    let text =
        format!("[participants]\nallow = [\"{}\"]\nmax_in_flight = 1\nbreaker = true\n", service.origin);
    std::fs::write(&config, &text).unwrap();
    let node = start(dir.path(), &config);
    let definition = order(&service.origin).replace("attempts = 20", "attempts = 1");
    let short = definition.replace("timeout = \"60s\"", "timeout = \"300ms\"");
    // It has the place until the test is over.
    let long = definition.replace("timeout = \"60s\"", "timeout = \"30m\"").replace("\"order\"", "\"long\"");
    assert!(short != definition && long.contains("30m"));
    for (name, text) in [("order", &short), ("long", &long)] {
        let put = Request::new("PUT", &format!("/v1/definitions/{name}"))
            .header("content-type", "application/toml");
        assert_eq!(node.send(&put.body(text.clone())).status, 201);
    }
    let begin = |name: &str, key: &str| {
        let post = Request::new("POST", "/v1/sagas").header("idempotency-key", key);
        let started = node.send(&post.body(format!("{{\"definition\":\"{name}\"}}")));
        started.json()["uid"].as_str().unwrap().to_owned()
    };
    begin("long", "long");
    eventually("the place is taken", || (service.seen().len() == 1).then_some(()));
    turned_away(&node, &begin("order", "order"), &["rejected the call"]);
    assert_eq!(service.seen().len(), 1, "nothing of the second saga was sent");
    let metrics = node.get("/metrics").text();
    let name = format!("{{name=\"{}\"", service.origin);
    for line in [
        format!("mainstay_bulkhead_in_flight{name}}} 1\n"),
        format!("mainstay_bulkhead_limit{name}}} 1\n"),
        format!("mainstay_bulkhead_queued{name}}} 0\n"),
        format!("mainstay_breaker_state{name},state=\"closed\"}} 1\n"),
        format!("mainstay_breaker_state{name},state=\"open\"}} 0\n"),
        format!("mainstay_breaker_calls_total{name},outcome=\"success\"}} 0\n"),
    ] {
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    // A reload forgets no call that is under way, whether the limit changes or not.
    for (most, sent) in [(1, 1), (2, 2)] {
        let text = text.replace("max_in_flight = 1", &format!("max_in_flight = {most}"));
        std::fs::write(&config, text).unwrap();
        assert_eq!(reload(&node)["after"], "applied");
        if most == 2 {
            begin("long", "other");
            eventually("the second place is taken", || (service.seen().len() == 2).then_some(()));
        }
        turned_away(&node, &begin("order", &format!("order-{most}")), &["rejected the call"]);
        assert_eq!(service.seen().len(), sent, "{most} at once");
    }
}

/// The policy of a step, from a file: one call at a time of what names it, whatever else its participant is sent.
#[test]
fn a_step_is_guarded_by_the_policy_that_it_names_and_a_reload_keeps_what_it_knows() {
    let dir = tempfile::tempdir().unwrap();
    let service = Recorder::start(|_| Vec::new());
    let (config, policies) = (dir.path().join("m.toml"), dir.path().join("policies.toml"));
    let one = "[targets.payments.bulkhead]\nlimit = 1\n";
    std::fs::write(&policies, one).unwrap();
    let file = policies.display();
    let text = format!("[participants]\nallow = [\"{}\"]\npolicies = \"{file}\"\n", service.origin);
    std::fs::write(&config, &text).unwrap();
    let node = start(dir.path(), &config);
    let long = order(&service.origin).replace("timeout = \"60s\"", "timeout = \"30m\"");
    let long = long.replace("attempts = 20", "attempts = 1");
    let named = |name: &str, policy: &str| {
        let text = long.replace("name = \"order\"", &format!("name = \"{name}\""));
        text.replace("name = \"reserve\"", &format!("name = \"reserve\"\npolicy = \"{policy}\""))
    };
    let put = |name: &str, text: String| {
        let put = Request::new("PUT", &format!("/v1/definitions/{name}"));
        node.send(&put.header("content-type", "application/toml").body(text))
    };
    let refused = put("order", named("order", "payment"));
    assert_eq!((refused.status, refused.problem().as_str()), (422, "MS0011"), "{}", refused.text());
    assert!(refused.text().contains("(known: `payments`)"), "{}", refused.text());
    assert_eq!(node.get("/v1/definitions/order").status, 404);
    assert_eq!(put("order", named("order", "payments")).status, 201);
    assert_eq!(put("free", long.replace("name = \"order\"", "name = \"free\"")).status, 201);
    let begin = |name: &str, key: &str| {
        let post = Request::new("POST", "/v1/sagas").header("idempotency-key", key);
        let started = node.send(&post.body(format!("{{\"definition\":\"{name}\"}}")));
        started.json()["uid"].as_str().unwrap().to_owned()
    };
    begin("order", "first");
    eventually("the place is taken", || (service.seen().len() == 1).then_some(()));
    let turned_away = |key: &str| turned_away(&node, &begin("order", key), &["`payments`", "full"]);
    turned_away("second");
    assert_eq!(service.seen().len(), 1, "nothing of it was sent");
    begin("free", "third");
    eventually("what names no policy is sent", || (service.seen().len() == 2).then_some(()));
    let metrics = node.get("/metrics").text();
    assert!(metrics.contains("mainstay_bulkhead_in_flight{name=\"payments\"} 1\n"), "{metrics}");
    // The same text again forgets no call that is under way; a mistake, or a policy that is still named, changes nothing.
    assert_eq!(reload(&node)["after"], "applied");
    turned_away("fourth");
    for (wrong, says) in [
        ("[targets.other.bulkhead]\nlimit = 1\n", "MS0011"),
        ("[targets.payments.bulkhead]\nlimits = 1\n", "MS0002"),
        ("[targets.payments]\nidempotent = \"always\"\nattempt_timeout = \"1s\"\nretry = {}\n", "MS0002"),
    ] {
        std::fs::write(&policies, wrong).unwrap();
        let before = node.log().len();
        let line = reload(&node);
        assert!(line["after"].as_str().unwrap().starts_with("refused"), "{wrong}: {line}");
        eventually(&format!("{says} is in the log"), || node.log()[before..].contains(says).then_some(()));
        turned_away(&format!("wrong-{}", wrong.len()));
    }
    // Another limit forgets no call that is under way either.
    std::fs::write(&policies, one.replace("limit = 1", "limit = 2")).unwrap();
    assert_eq!(reload(&node)["after"], "applied");
    let sent = service.seen().len();
    begin("order", "last");
    eventually("there is room again", || (service.seen().len() == sent + 1).then_some(()));
    turned_away("one too many");
    assert_eq!(service.seen().len(), sent + 1, "nothing of it was sent");
}
