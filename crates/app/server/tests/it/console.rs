//! The console of the real binary: who may come in, and what a browser may be tricked into.

use std::path::Path;

use crate::end_to_end::{node, order};
use crate::harness::{Answer, Node, Request, mainstay, run, stderr, token};
use crate::ledger::Ledger;

const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

/// The token that forms carry, from a page that has one.
pub(crate) fn form_token(page: &Answer) -> String {
    let text = page.text();
    let rest = text.split("name=\"form\" value=\"").nth(1).unwrap_or_else(|| panic!("{text}"));
    rest.split('"').next().unwrap().to_owned()
}

/// A browser: sends its cookie and what browsers say of themselves.
struct Browser<'a> {
    node: &'a Node,
    cookie: String,
}

impl<'a> Browser<'a> {
    fn new(node: &'a Node) -> Self {
        Self { node, cookie: String::new() }
    }

    fn with(&self, request: Request) -> Request {
        let request = request.header("accept", "text/html").header("sec-fetch-site", "same-origin");
        if self.cookie.is_empty() { request } else { request.header("cookie", &self.cookie) }
    }

    fn get(&self, path: &str) -> Answer {
        self.node.send(&self.with(Request::new("GET", path)))
    }

    fn post(&self, path: &str, body: &str) -> Answer {
        self.node.send(&self.with(Request::new("POST", path)).header(FORM.0, FORM.1).body(body))
    }

    /// Logs in and keeps the cookie; the answer tells how it went.
    fn login(&mut self, secret: &str) -> Answer {
        let form = form_token(&self.get("/console/login"));
        let answer = self.post("/console/login", &format!("form={form}&next=attention&token={secret}"));
        if let Some(cookie) = answer.header("set-cookie") {
            self.cookie = cookie.split(';').next().unwrap().to_owned();
        }
        answer
    }
}

/// A node with one saga that waits for a person; its number and version.
fn stuck(dir: &Path, ledger: &Ledger) -> (Node, String, String, String) {
    let definition = order(&ledger.origin).replace("attempts = 20", "attempts = 1");
    let lost = definition.replace("[[steps]]", "[[steps]]\non_unknown = \"ask\"");
    let node = node(dir, &ledger.origin, &lost);
    let admin = token(&dir.join("data"), "boss", "admin");
    let start = Request::new("POST", "/v1/sagas").header("idempotency-key", "k").bearer(&admin);
    let started =
        node.send(&start.body("{\"definition\":\"order\",\"id\":\"o-1\",\"input\":{\"lose\":\"ship\"}}"));
    assert_eq!(started.status, 202, "{}", started.text());
    let uid = started.json()["uid"].as_str().unwrap().to_owned();
    let saga = node.settled_as(&uid, |request| request.clone().bearer(&admin)).json();
    assert_eq!(saga["status"], "needs_attention", "{saga}");
    (node, admin, uid, saga["next_seq"].as_str().unwrap().to_owned())
}

#[test]
fn if_c01_scopes_hold_in_the_console_on_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let (node, admin, uid, seen) = stuck(dir.path(), &ledger);
    let read = token(&dir.path().join("data"), "r", "read");
    let operate = token(&dir.path().join("data"), "o", "operate");
    let act = format!("/console/sagas/{uid}/act");
    let fields = |form: &str| format!("form={form}&do=resolve_done&step=ship&seen={seen}&reason=ledger");

    let mut reader = Browser::new(&node);
    assert_eq!(reader.login(&read).status, 303);
    let page = reader.get(&format!("/console/sagas/{uid}"));
    assert_eq!(page.status, 200);
    assert_eq!(reader.get(&format!("{act}?do=resolve_done&step=ship&seen={seen}")).status, 403);
    let refused = reader.post(&act, &fields(&form_token(&page)));
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("MS0103"), "a page, not JSON: {}", refused.text());
    for admins in ["/console/audit", "/console/system"] {
        assert_eq!(reader.get(admins).status, 403);
    }

    let mut operator = Browser::new(&node);
    operator.login(&operate);
    assert_eq!(operator.get("/console/audit").status, 403);
    let done = operator.post(&act, &fields(&form_token(&operator.get(&format!("/console/sagas/{uid}")))));
    assert_eq!(
        (done.status, done.header("location").unwrap()),
        (303, format!("../{uid}?did=resolve_done").as_str())
    );
    let ended = node.settled_as(&uid, |request| request.clone().bearer(&admin)).json();
    assert_eq!(ended["status"], "completed", "{ended}");

    let mut boss = Browser::new(&node);
    boss.login(&admin);
    let audit = boss.get("/console/audit").text();
    assert!(audit.contains("<strong>o</strong>") && audit.contains("ledger"), "{audit}");
    assert_eq!(boss.get("/console/system").status, 200);
}

#[test]
fn sec_03_no_page_opens_without_a_login_and_the_way_in_tells_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let secret = token(dir.path(), "r", "read");
    let node = Node::start(dir.path(), &[]);
    let browser = Browser::new(&node);
    for (path, to) in [
        ("/console", "console/login?next="),
        ("/console/", "login?next="),
        ("/console/now", "login?next=now"),
        ("/console/sagas?status=running", "login?next=sagas%3Fstatus%3Drunning"),
        ("/console/sagas/u/act?do=skip", "../../login?next=sagas%2Fu%2Fact%3Fdo%3Dskip"),
        ("/console/audit", "login?next=audit"),
        ("/", "console/login?next="),
    ] {
        let answer = browser.get(path);
        assert_eq!((answer.status, answer.header("location").unwrap()), (303, to), "{path}");
        assert!(answer.body.is_empty());
    }
    assert_eq!(browser.get("/console/events").status, 401);
    let login = browser.get("/console/login");
    assert_eq!(login.status, 200);
    assert!(!login.text().contains(env!("CARGO_PKG_VERSION")), "no version before the login");
    assert_eq!(browser.get("/console/assets/console.css").status, 200);
    let bearer = Request::new("GET", "/console/now").bearer(&secret);
    assert_eq!(node.send(&bearer).status, 200);
}

#[test]
fn sec_17_a_login_gives_an_opaque_cookie_that_dies_with_its_token() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let secret = token(dir.path(), "r", "read");
    token(dir.path(), "other", "read");
    let node = Node::start(dir.path(), &[]);
    let mut browser = Browser::new(&node);
    let wrong = browser.login("ms_wrong");
    assert_eq!((wrong.status, wrong.header("set-cookie")), (401, None));
    let answer = browser.login(&secret);
    assert_eq!((answer.status, answer.header("location").unwrap()), (303, "attention"));
    let cookie = answer.header("set-cookie").unwrap();
    let port = node.address.rsplit(':').next().unwrap();
    assert!(cookie.starts_with(&format!("mainstay-session-{port}=")), "{cookie}");
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict"), "{cookie}");
    assert!(!cookie.contains(&secret[3..]), "the cookie is not the token");
    assert_eq!(browser.get("/console/now").status, 200);
    // A session reads what its token reads: the stream of the page, and the API.
    assert_eq!(browser.get("/v1/sagas").status, 200);

    let form = form_token(&browser.get("/console/now"));
    assert_eq!(browser.post("/console/logout", "form=wrong").status, 403);
    let left = browser.post("/console/logout", &format!("form={form}"));
    assert_eq!((left.status, left.header("location").unwrap()), (303, "login"));
    assert!(left.header("set-cookie").unwrap().contains("Max-Age=0"));
    assert_eq!(browser.get("/console/now").status, 303, "the old cookie is worth nothing");

    browser.login(&secret);
    assert_eq!(browser.get("/console/now").status, 200);
    assert!(run(&["token", "revoke", "r", "--data", data]).status.success());
    assert_eq!(browser.get("/console/now").status, 303, "revoked at once");
    // Enough by themselves: the wrong one of the beginning may be forgotten by now.
    for _ in 0..10 {
        Browser::new(&node).login("ms_guess");
    }
    assert_eq!(Browser::new(&node).login("ms_guess").status, 429, "guessing by the form is slowed too");
    assert!(!node.log().contains("ms_"), "{}", node.log());
}

#[test]
fn sec_17_behind_tls_the_cookie_is_bound_to_the_host() {
    let dir = tempfile::tempdir().unwrap();
    let secret = token(dir.path(), "r", "read");
    let data = dir.path().to_str().unwrap();
    let args = ["serve", "--data", data, "--listen", "127.0.0.1:0", "--behind-tls-proxy"];
    let node = Node::spawn(mainstay(&args));
    let mut browser = Browser::new(&node);
    let cookie = browser.login(&secret).header("set-cookie").unwrap().to_owned();
    assert!(cookie.starts_with("__Host-mainstay="), "{cookie}");
    assert!(cookie.ends_with("; Path=/; HttpOnly; SameSite=Strict; Secure"), "{cookie}");
    assert_eq!(browser.get("/console/now").status, 200);
    browser.cookie = format!("__Host-mainstay={secret}");
    assert_eq!(browser.get("/console/now").status, 303, "a token is no session");
}

#[test]
fn if_c14_sec_18_console_posts_of_other_sites_are_refused_whatever_they_carry() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::start();
    let (node, admin, uid, seen) = stuck(dir.path(), &ledger);
    let mut browser = Browser::new(&node);
    browser.login(&admin);
    let form = form_token(&browser.get(&format!("/console/sagas/{uid}")));
    let act = format!("/console/sagas/{uid}/act");
    let body = format!("form={form}&do=resolve_done&step=ship&seen={seen}&reason=x");
    let post = || Request::new("POST", &act).header(FORM.0, FORM.1).header("cookie", &browser.cookie);
    for evil in [
        post().header("sec-fetch-site", "cross-site"),
        post().header("sec-fetch-site", "same-site"),
        post().header("origin", "http://evil.example"),
        post().header("origin", "null"),
    ] {
        let answer = node.send(&evil.body(body.clone()));
        assert_eq!(answer.status, 403);
        assert!(answer.text().contains("MS0105"), "{}", answer.text());
    }
    // Same site, but without the token of the page, or with that of another login.
    let other = form_token(&Browser::new(&node).get("/console/login"));
    for bad in [body.replace(&form, ""), body.replace(&form, &other)] {
        assert_eq!(browser.post(&act, &bad).status, 403);
    }
    let saga = node.send(&Request::new("GET", &format!("/v1/sagas/{uid}")).bearer(&admin)).json();
    assert_eq!(saga["next_seq"].as_str().unwrap(), seen, "nothing happened");
    assert_eq!(browser.post(&act, &body).status, 303);
}

#[test]
fn sec_19_sec_20_pages_check_the_host_and_carry_the_policy() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    assert!(node.log().is_empty() || !node.log().contains("warn"));
    let rebound = node.send(&Request::new("GET", "/console/now").header("host", "evil.example"));
    assert_eq!(rebound.status, 403);
    assert!(rebound.text().contains("MS0106"), "{}", rebound.text());
    for path in
        ["/console/now", "/console/nope", "/console/assets/console.js", "/console/sagas?x=1", "/console"]
    {
        let answer = node.get(path);
        assert_eq!(
            answer.header("content-security-policy").unwrap(),
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
             frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
            "{path}"
        );
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
        let kept = answer.header("cache-control").unwrap();
        assert_eq!(kept == "no-store", !path.contains("assets"), "{path}: {kept}");
    }
}

#[test]
fn if_c07_the_console_speaks_of_the_address_that_the_proxy_tells() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let page = Request::new("GET", "/console/sagas")
        .header("x-forwarded-prefix", "/tools/mainstay/")
        .header("x-forwarded-proto", "https")
        .header("host", "localhost");
    let text = node.send(&page).text();
    assert!(text.contains("curl -sS 'https://localhost/tools/mainstay/v1/sagas'"), "{text}");
    let evil = Request::new("GET", "/console/sagas").header("x-forwarded-prefix", "/'; rm -rf / #<script>");
    let text = node.send(&evil).text();
    assert!(!text.contains("<script>") && !text.contains("rm -rf"), "{text}");
}

#[test]
fn a_node_whose_log_nobody_reads_still_stops() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["serve", "--data", dir.path().to_str().unwrap(), "--listen", "127.0.0.1:0"];
    let mut node = Node::unread(mainstay(&args));
    assert_eq!(node.get("/console/now").status, 200);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn the_address_of_the_console_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    node.says(&format!("mainstay: the console is at http://{}/console", node.address));
    let moved = node.get("/");
    assert_eq!((moved.status, moved.header("location")), (303, Some("console/now")));
    let usage = run(&["serve", "--help"]);
    assert!(usage.status.success(), "{}", stderr(&usage));
}
