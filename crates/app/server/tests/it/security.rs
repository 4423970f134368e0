//! Who may reach a node, and what they may do.

use std::path::Path;

use crate::harness::{Node, Request, run, stderr, stdout, token};

fn refused(data: &Path, more: &[&str]) -> String {
    let mut args = vec!["serve", "--data", data.to_str().unwrap()];
    args.extend(more);
    let output = run(&args);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    stderr(&output)
}

#[test]
fn if_a08_sec_01_a_listener_beyond_loopback_needs_tokens_and_tls() {
    let dir = tempfile::tempdir().unwrap();
    for listen in [&["--listen", "0.0.0.0:0"][..], &["--listen", "127.0.0.1:0", "--behind-tls-proxy"]] {
        let why = refused(dir.path(), listen);
        assert!(why.contains("MS0004") && why.contains("mainstay token create --data"), "{listen:?}: {why}");
    }
    let secret = token(dir.path(), "op", "operate");
    let why = refused(dir.path(), &["--listen", "0.0.0.0:0"]);
    assert!(why.contains("MS0005"), "{why}");
    let args =
        ["serve", "--data", dir.path().to_str().unwrap(), "--listen", "0.0.0.0:0", "--behind-tls-proxy"];
    let node = Node::spawn(crate::harness::mainstay(&args));
    let port = node.address.rsplit(':').next().unwrap();
    let address = format!("127.0.0.1:{port}");
    assert_eq!(Request::new("GET", "/version").to(&address).status, 401);
    assert_eq!(Request::new("GET", "/version").bearer(&secret).to(&address).status, 200);
}

#[test]
fn sec_02_only_the_command_prints_a_token_and_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let secret = token(dir.path(), "op", "admin");
    assert!(secret.starts_with("ms_") && secret.len() == 67, "{secret}");
    let stored = std::fs::read_to_string(dir.path().join("tokens")).unwrap();
    assert!(!stored.contains(&secret[3..]));
    let listed = run(&["token", "ls", "--data", data]);
    assert!(stdout(&listed).contains("op") && !stdout(&listed).contains(&secret[3..]));
    let node = Node::start(dir.path(), &[]);
    assert_eq!(node.send(&Request::new("GET", "/version").bearer(&secret)).status, 200);
    assert!(run(&["token", "revoke", "op", "--data", data]).status.success());
    // The last token is gone; the node must not open itself to everybody.
    assert_eq!(node.send(&Request::new("GET", "/version").bearer(&secret)).status, 401, "revoked at once");
    assert!(!node.log().contains("ms_"), "{}", node.log());
}

#[test]
fn sec_03_reading_needs_a_token_too_and_health_tells_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let secret = token(dir.path(), "r", "read");
    let node = Node::start(dir.path(), &[]);
    for path in
        ["/version", "/metrics", "/v1/sagas", "/v1/events", "/v1/audit", "/openapi.json", "/", "/nothing"]
    {
        let answer = node.get(path);
        assert_eq!((answer.status, answer.problem().as_str()), (401, "MS0102"), "{path}");
        assert!(answer.header("www-authenticate").is_some());
    }
    assert_eq!(node.get("/livez").text(), "up\n");
    assert_eq!(node.get("/readyz").text(), "ready\n");
    assert_eq!(node.send(&Request::new("GET", "/version").bearer(&secret)).status, 200);
}

#[test]
fn if_c01_sec_04_scopes_hold_and_guessing_is_slowed() {
    let dir = tempfile::tempdir().unwrap();
    let read = token(dir.path(), "r", "read");
    let operate = token(dir.path(), "o", "operate");
    let node = Node::start(dir.path(), &[]);
    let post = Request::new("POST", "/v1/sagas").body("{}");
    let answer = node.send(&post.clone().bearer(&read));
    assert_eq!((answer.status, answer.problem().as_str()), (403, "MS0103"));
    let put = Request::new("PUT", "/v1/definitions/x").body("{}");
    assert_eq!(node.send(&put.bearer(&operate)).problem(), "MS0103");
    for _ in 0..10 {
        assert_eq!(node.send(&Request::new("GET", "/version").bearer("ms_guess")).status, 401);
    }
    // Some more are answered on a machine that stands still: as many as come back meanwhile.
    let mut more = (0..1_000).map(|_| node.send(&Request::new("GET", "/version").bearer("ms_guess")));
    let slowed = more.find(|answer| answer.status != 401).expect("guessing is slowed");
    assert_eq!((slowed.status, slowed.problem().as_str()), (429, "MS0104"));
    assert_eq!(slowed.header("retry-after").unwrap(), slowed.json()["retry_after"].to_string());
    let known = node.send(&Request::new("GET", "/version").bearer(&read));
    assert_eq!(known.status, 200, "somebody else's guesses from the same address lock nobody out");
}

#[test]
fn if_c14_sec_18_cross_site_writes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let post = || Request::new("POST", "/v1/sagas").body("{}");
    for evil in [
        post().header("sec-fetch-site", "cross-site"),
        post().header("sec-fetch-site", "same-site"),
        post().header("origin", "http://evil.example"),
        post().header("origin", "null"),
    ] {
        let answer = node.send(&evil);
        assert_eq!((answer.status, answer.problem().as_str()), (403, "MS0105"));
    }
    let own = post().header("origin", &format!("http://{}", node.address));
    assert_ne!(node.send(&own).status, 403);
}

#[test]
fn sec_19_a_rebound_name_is_refused_without_authentication() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    let answer = node.send(&Request::new("GET", "/version").header("host", "evil.example"));
    assert_eq!((answer.status, answer.problem().as_str()), (403, "MS0106"));
    assert_eq!(node.send(&Request::new("GET", "/version").header("host", "localhost")).status, 200);
}

#[test]
fn sec_20_every_answer_carries_the_security_headers() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::start(dir.path(), &[]);
    for path in ["/livez", "/version", "/nothing", "/problems/MS0001"] {
        let answer = node.get(path);
        let csp = answer.header("content-security-policy").unwrap();
        for rule in
            ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "form-action 'self'"]
        {
            assert!(csp.contains(rule), "{csp}");
        }
        assert!(!csp.contains("unsafe"), "{csp}");
        assert_eq!(answer.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(answer.header("referrer-policy"), Some("no-referrer"));
    }
}

#[test]
fn sec_23_sec_24_planted_secrets_appear_in_no_output() {
    let dir = tempfile::tempdir().unwrap();
    let secret = token(dir.path(), "op", "admin");
    let canary = "CANARY-5f1c";
    let data = dir.path().to_str().unwrap();
    let args = ["serve", "--data", data, "--listen", "127.0.0.1:0"];
    let mut command = crate::harness::mainstay(&args);
    command.env("MAINSTAY_LOG__FILTER", "trace").env("MAINSTAY_TOKEN", canary);
    let mut node = Node::spawn(command);
    let good = Request::new("GET", "/version").bearer(&secret);
    let guess = Request::new("GET", "/version").bearer(canary).header("cookie", canary);
    let body = Request::new("POST", "/v1/sagas").bearer(&secret).header("idempotency-key", "k");
    let body = body.body(format!("{{\"definition\":\"x\",\"input\":{{\"password\":\"{canary}\"}}}}"));
    let mut seen = String::new();
    for request in [&good, &guess, &body] {
        let answer = node.send(request);
        seen.push_str(&answer.head);
        seen.push_str(&answer.text());
    }
    for path in ["/metrics", "/openapi.json", "/v1/audit", "/version"] {
        seen.push_str(&node.send(&Request::new("GET", path).bearer(&secret)).text());
    }
    seen.push_str(&stdout(&run(&["config", "show", "--origin"])));
    assert_eq!(node.stop(), Some(0));
    seen.push_str(&node.log());
    assert!(!seen.contains(canary), "{seen}");
    assert!(!seen.contains(&secret[3..]), "{seen}");
    assert!(node.log().contains("status=422"), "the log is on: {}", node.log());
}

/// What the rules hide is in no answer, page, event, audit line or log line, and in the store as it was sent.
#[test]
fn sec_23_sec_24_hidden_values_of_payloads_appear_nowhere_but_in_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let canary = "CANARY-7be2";
    let (folder, config) = (dir.path().join("definitions"), dir.path().join("m.toml"));
    std::fs::create_dir(&folder).unwrap();
    // What became of the step is unknown, so the saga waits for a person.
    let origin = crate::end_to_end::rude(b"HTTP/1.1 500 Internal\r\ncontent-length: 0\r\n\r\n".to_vec());
    let definition = format!(
        "name = \"pay\"\nversion = 1\ndeadline = \"1h\"\n[retry]\nattempts = 1\n[[steps]]\nname = \"a\"\n\
         action = \"{origin}/a\"\nundo = \"{origin}/u\"\non_unknown = \"ask\"\n"
    );
    std::fs::write(folder.join("pay.toml"), definition).unwrap();
    let rules = "[payload]\nredact = [\"PIN\", \"/card/number\"]\n[log]\nfilter = \"trace\"\n";
    std::fs::write(&config, rules).unwrap();
    let data = dir.path().join("data");
    let more = ["--allow-participant", &*origin, "--definitions", folder.to_str().unwrap()];
    let mut node = Node::start(&data, &[&more[..], &["--config", config.to_str().unwrap()]].concat());
    let payload = format!("{{\"pin\":\"{canary}\",\"card\":{{\"number\":\"{canary}\",\"year\":2031}}}}");
    let mut body =
        format!("{{\"definition\":\"pay\",\"input\":{payload},\"attrs\":{{\"pin\":\"{canary}\"}}}}");
    let post = |path: &str, body: &str| {
        let request = Request::new("POST", path).header("content-type", "application/json");
        request.header("idempotency-key", path).body(body)
    };
    let started = node.send(&post("/v1/sagas", &body));
    let uid = started.json()["uid"].as_str().unwrap().to_owned();
    let saga = format!("/v1/sagas/{uid}");
    let stuck = node.settled_as(&uid, Request::clone);
    assert_eq!(stuck.json()["status"], "needs_attention", "{}", stuck.text());
    assert_eq!(stuck.json()["input"]["card"], serde_json::json!({"number": "[hidden]", "year": 2031}));
    // An edited input is sent whole, or not at all.
    let action = format!("{saga}/actions");
    let retry =
        |input: &str| format!("{{\"action\":\"retry\",\"step\":\"a\",\"reason\":\"r\",\"input\":{input}}}");
    let hidden = node.send(&post(&action, &retry("{\"pin\":\"[hidden]\"}")).header("if-match", "\"1\""));
    assert_eq!(hidden.problem(), "MS0101");
    let etag = stuck.header("etag").unwrap();
    let retried = node.send(&post(&action, &retry(&payload)).header("if-match", etag));
    assert_eq!(retried.status, 200, "{}", retried.text());
    body = format!("{{\"filter\":{{\"attr.pin\":\"{canary}\"}},\"action\":\"pause\",\"reason\":\"r\"}}");
    let bulk = node.send(&post("/v1/sagas/actions", &body));
    assert_eq!(bulk.status, 202, "{}", bulk.text());
    let mut seen = [&started, &stuck, &hidden, &retried, &bulk].map(crate::harness::Answer::text).concat();
    let mut paths: Vec<String> =
        ["/v1/sagas", "/v1/attention", "/v1/jobs", "/v1/audit", "/metrics", "/console/now"]
            .map(str::to_owned)
            .to_vec();
    paths.extend(["/console/attention", "/console/sagas", "/console/audit"].map(str::to_owned));
    paths.extend(["", "/history", "/export"].map(|part| format!("{saga}{part}")));
    paths.extend(["", "/export", "/act?do=retry&step=a"].map(|part| format!("/console/sagas/{uid}{part}")));
    for path in &paths {
        let answer = node.get(path);
        assert!(answer.status < 500, "{path}: {}", answer.text());
        seen.push_str(&answer.text());
    }
    let events = first_events(&node, "/v1/events?after=0", "mainstay.saga.step_started");
    seen.push_str(&events);
    assert_eq!(node.stop(), Some(0));
    seen.push_str(&node.log());
    let at = seen.find(canary).map(|at| seen[at.saturating_sub(300)..].chars().take(400).collect::<String>());
    assert_eq!(at, None);
    assert!(seen.matches("[hidden]").count() > 10);
    let stored: Vec<u8> = ["mainstay.db", "mainstay.db-wal"]
        .iter()
        .flat_map(|file| std::fs::read(data.join(file)).unwrap_or_default())
        .collect();
    assert!(stored.windows(canary.len()).any(|w| w == canary.as_bytes()), "what is stored is what was sent");
}

/// Secrets of the node itself: the key that requests are signed with and what it makes of them, the token and the cookie of
/// who logs in, the query of an address, users and passwords in the configuration, also where it is refused.
#[test]
fn sec_23_sec_24_keys_signatures_and_credentials_appear_in_no_output() {
    let dir = tempfile::tempdir().unwrap();
    let canary = "CANARY-3d90";
    let service = crate::recorder::Recorder::content();
    let (origin, data) = (&service.origin, dir.path().join("data"));
    let admin = token(&data, "boss", "admin");
    let (folder, config, secret) =
        (dir.path().join("definitions"), dir.path().join("m.toml"), dir.path().join("secret"));
    let key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    std::fs::write(&secret, key).unwrap();
    std::fs::create_dir(&folder).unwrap();
    let definition = format!(
        "name = \"pay\"\nversion = 1\ndeadline = \"1h\"\n[[steps]]\nname = \"a\"\n\
         action = \"{origin}/a?key={canary}\"\nno_undo = \"nothing is kept\"\n"
    );
    std::fs::write(folder.join("pay.toml"), definition).unwrap();
    let settings = |allow: &str, sign: &str| {
        format!(
            "[log]\nfilter = \"trace\"\n[saga]\ndefinitions = \"{}\"\n\
             [participants]\nallow = [\"{origin}\"{allow}]\nsign = [\"{origin}={}\"{sign}]\n",
            folder.display(),
            secret.display()
        )
    };
    std::fs::write(&config, settings("", "")).unwrap();
    let mut node = Node::start(&data, &["--config", config.to_str().unwrap()]);
    let body = "{\"definition\":\"pay\",\"input\":{}}";
    let start = Request::new("POST", "/v1/sagas").header("idempotency-key", "k").bearer(&admin).body(body);
    let started = node.send(&start);
    let uid = started.json()["uid"].as_str().unwrap().to_owned();
    let ended = node.settled_as(&uid, |request| request.clone().bearer(&admin));
    assert_eq!(ended.json()["status"], "completed", "{}", ended.text());
    let (head, _) = service.seen().pop().unwrap();
    assert!(head.contains(canary), "the participant is sent the address as it is");
    let signature = crate::recorder::header(&head, "webhook-signature").unwrap().to_owned();
    // Somebody looks at it.
    let login = Request::new("GET", "/console/login").header("accept", "text/html").to(&node.address);
    let form = crate::console::form_token(&login);
    let post = Request::new("POST", "/console/login").header("sec-fetch-site", "same-origin");
    let post = post.header("content-type", "application/x-www-form-urlencoded");
    let entered = node.send(&post.body(format!("form={form}&next=now&token={admin}")));
    let cookie = entered.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    let session = cookie.split_once('=').unwrap().1.to_owned();
    let saga = format!("/console/sagas/{uid}");
    let mut seen = [&started, &ended].map(crate::harness::Answer::text).concat();
    for path in ["/console/now", saga.as_str(), "/console/system"] {
        let page =
            node.send(&Request::new("GET", path).header("cookie", &cookie).header("accept", "text/html"));
        assert_eq!(page.status, 200, "{path}");
        seen.push_str(&page.text());
    }
    // Mistakes that a reload refuses, with what they say.
    let mistakes = [
        (format!(", \"https://boss:{canary}@pay.example\""), String::new()),
        (String::new(), format!(", \"https://boss:{canary}@pay.example={}\"", secret.display())),
        (String::new(), format!(", \"https://pay.example whsec_{canary}\"")),
    ];
    for (n, (allow, sign)) in mistakes.iter().enumerate() {
        std::fs::write(&config, settings(allow, sign)).unwrap();
        node.signal(rustix::process::Signal::HUP);
        crate::harness::eventually("the reload is refused", || {
            (node.log().matches("reload refused").count() == n + 1).then_some(())
        });
    }
    for path in ["/v1/audit", "/metrics", "/v1/sagas", "/version"] {
        seen.push_str(&node.send(&Request::new("GET", path).bearer(&admin)).text());
    }
    assert_eq!(node.stop(), Some(0));
    seen.push_str(&node.log());
    let log = node.log();
    assert!(log.contains("TRACE"), "the log is on");
    for (what, planted) in [
        ("what stands in an address", canary),
        ("the key", &key[6..]),
        ("a signature", &signature[3..]),
        ("a token", &admin[3..]),
        ("a session", &session),
    ] {
        let at =
            seen.find(planted).map(|at| seen[at.saturating_sub(300)..].chars().take(400).collect::<String>());
        assert_eq!(at, None, "{what}");
    }
}

/// A stream of events until it has told of `wanted`.
fn first_events(node: &Node, path: &str, wanted: &'static str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(&node.address).unwrap();
    stream.write_all(&Request::new("GET", path).bytes(&node.address)).unwrap();
    // Bounded as a whole: heartbeats keep the stream alive for ever.
    crate::harness::bounded(wanted, move || {
        let mut text = String::new();
        while !text.contains(wanted) {
            let mut chunk = [0; 4096];
            let n = stream.read(&mut chunk).unwrap();
            assert!(n > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&chunk[..n]));
        }
        text
    })
}
