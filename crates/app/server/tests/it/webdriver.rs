//! A headless Chromium, driven by chromedriver over the WebDriver protocol.

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::harness::{Request, eventually, line, within};

/// What the machine needs for the tests with a browser.
const DRIVER: &str = "chromedriver";
/// The key under which elements come.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Whether a browser can be started. Where one is demanded, its absence fails.
pub(crate) fn present(test: &str) -> bool {
    let found = Command::new(DRIVER).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_ok_and(|s| s.success()) {
        return true;
    }
    #[allow(
        clippy::disallowed_methods,
        reason = "the test command says by a variable that nothing may be left out"
    )]
    let demanded = std::env::var("MAINSTAY_REQUIRE_SERVERS").is_ok_and(|v| v == "1");
    assert!(!demanded, "{DRIVER} and chromium are needed: apt-get install chromium chromium-driver");
    // Not by a macro: the runner would keep it to itself.
    let _ = writeln!(std::io::stderr().lock(), "NOT COVERED chromium: {test}");
    false
}

/// How the browser is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scripts {
    Off,
    On,
}

/// A browser with a profile of its own; ends with the test.
pub(crate) struct Browser {
    driver: Child,
    address: String,
    session: String,
    _profile: tempfile::TempDir,
}

/// A driver that listens, and its port. It takes one free port for both address families and ends
/// where another process holds that port in the second one: then it is started again.
fn listening(home: &Path) -> (Child, String) {
    let mut said = String::new();
    for _ in 0..10 {
        let mut driver = Command::new(DRIVER)
            .arg("--port=0")
            .env("HOME", home)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut pipe = driver.stdout.take().unwrap();
        loop {
            let line_of_it;
            (line_of_it, pipe) = line("the driver listens", pipe);
            if let Some((_, port)) = line_of_it.trim().split_once("successfully on port ") {
                // Whatever it says later is read by nobody and must not stop it.
                driver.stdout = Some(pipe);
                return (driver, port.trim_end_matches('.').to_owned());
            }
            if line_of_it.is_empty() {
                break;
            }
            said.push_str(&line_of_it);
        }
        let _ = driver.kill();
        let _ = driver.wait();
    }
    panic!("{DRIVER} never listened:\n{said}");
}

impl Browser {
    pub(crate) fn start(scripts: Scripts) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let (driver, port) = listening(profile.path());
        let mut browser =
            Self { driver, address: format!("127.0.0.1:{port}"), session: String::new(), _profile: profile };
        let data = browser._profile.path().join("data");
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            "--host-resolver-rules=MAP plain.test 127.0.0.1",
        ];
        let mut args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        args.push(format!("--user-data-dir={}", data.display()));
        let scripts = if scripts == Scripts::Off { 2 } else { 1 };
        let options = json!({
            "args": args,
            "prefs": {"profile.managed_default_content_settings.javascript": scripts},
        });
        // By default a script has 30 s; all of these are less than what a request waits.
        let times = json!({"script": 80_000, "pageLoad": 80_000, "implicit": 0});
        let wanted = json!({"alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
            "timeouts": times,
        }});
        // A browser that does not come up within the driver's own time is started again.
        let mut made = Err(String::new());
        for _ in 0..3 {
            made = browser.call("POST", "", &json!({"capabilities": wanted}));
            if made.is_ok() {
                break;
            }
        }
        let made = made.unwrap_or_else(|why| panic!("no browser: {why}"));
        browser.session = format!("/{}", made["sessionId"].as_str().unwrap());
        browser
    }

    /// One command; the error is the driver's word for it.
    fn call(&self, method: &str, command: &str, body: &Value) -> Result<Value, String> {
        let path = format!("/session{}{command}", self.session);
        let request = Request::new(method, &path).header("content-type", "application/json");
        let request = if method == "POST" { request.body(body.to_string()) } else { request };
        let answer = request.to(&self.address);
        let value = answer.json()["value"].clone();
        if answer.status == 200 { Ok(value) } else { Err(value.to_string()) }
    }

    fn post(&self, command: &str, body: Value) -> Value {
        self.call("POST", command, &body).unwrap_or_else(|e| panic!("{command} {body}: {e}"))
    }

    pub(crate) fn go(&self, url: &str) {
        self.post("/url", json!({"url": url}));
    }

    pub(crate) fn url(&self) -> String {
        self.call("GET", "/url", &Value::Null).unwrap().as_str().unwrap().to_owned()
    }

    /// Runs a function body in the page.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", json!({"script": script, "args": []}))
    }

    /// Runs a function body that ends by calling `done`.
    pub(crate) fn run_async(&self, script: &str) -> Value {
        let script = format!("const done = arguments[arguments.length - 1]; {script}");
        self.post("/execute/async", json!({"script": script, "args": []}))
    }

    pub(crate) fn devtools(&self, command: &str, params: Value) -> Value {
        self.post("/goog/cdp/execute", json!({"cmd": command, "params": params}))
    }

    fn find(&self, css: &str) -> Option<String> {
        let found = self.call("POST", "/element", &json!({"using": "css selector", "value": css})).ok()?;
        Some(found[ELEMENT].as_str().unwrap().to_owned())
    }

    fn element(&self, css: &str) -> String {
        eventually(&format!("{css} on {}", self.url()), || self.find(css))
    }

    /// Does something to an element. A live page may exchange it between the look and the deed; then nothing was done,
    /// and it is looked for again.
    fn to(&self, css: &str, deed: &str, body: &Value) {
        let gone = ["stale element reference", "no such element"];
        eventually(&format!("{deed} {css}"), || {
            let id = self.element(css);
            // By itself the driver brings it into the view by its edge, where what it clicks on may be another element.
            self.run(&format!("document.querySelector({})?.scrollIntoView({{block: 'center'}})", json!(css)));
            let answer = self.call("POST", &format!("/element/{id}/{deed}"), body);
            match answer {
                Err(why) if gone.iter().any(|word| why.contains(word)) => None,
                done => Some(done.unwrap_or_else(|why| panic!("{deed} {css}: {why}"))),
            }
        });
    }

    pub(crate) fn click(&self, css: &str) {
        self.to(css, "click", &json!({}));
    }

    /// Types into a field.
    pub(crate) fn keys(&self, css: &str, text: &str) {
        self.to(css, "value", &json!({"text": text}));
    }

    /// The text that a person sees; empty while there is no such element.
    pub(crate) fn text(&self, css: &str) -> String {
        let read = |id: String| self.call("GET", &format!("/element/{id}/text"), &Value::Null).ok();
        let text = self.find(css).and_then(read);
        text.and_then(|t| t.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until the text of an element holds this.
    pub(crate) fn shows(&self, css: &str, text: &str) {
        let found = within(|| self.text(css).contains(text).then_some(()));
        assert!(found.is_some(), "no `{text}` in {css} on {}: {}", self.url(), self.text(css));
    }

    /// Opens another window and returns its handle and that of this one.
    pub(crate) fn windows(&self) -> (String, String) {
        let this = self.call("GET", "/window", &Value::Null).unwrap().as_str().unwrap().to_owned();
        let other = self.post("/window/new", json!({"type": "window"}));
        (this, other["handle"].as_str().unwrap().to_owned())
    }

    pub(crate) fn turn_to(&self, window: &str) {
        self.post("/window", json!({"handle": window}));
    }

    /// A screen of this size and scheme.
    pub(crate) fn screen(&self, width: u32, scheme: &str) {
        let metrics = json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics);
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.devtools("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// What the browser complained about: blocked scripts and styles, failed loads, exceptions.
    pub(crate) fn complaints(&self) -> Vec<String> {
        let log = self.post("/se/log", json!({"type": "browser"}));
        let lines = log.as_array().unwrap().iter().filter(|l| l["level"] == "SEVERE");
        lines.map(|l| l["message"].to_string()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // The driver ends the browser; killing the driver alone would leave it.
            let request = Request::new("DELETE", &format!("/session{}", self.session));
            let _ = request.try_to(&self.address);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
