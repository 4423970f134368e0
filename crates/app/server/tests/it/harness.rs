//! A node as a child process, and a client that speaks HTTP by hand: what is malformed must be sendable.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::finish;
pub(crate) use crate::machine::{PATIENCE, quick_dir};

/// The binary, with an environment of its own.
pub(crate) fn mainstay(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs the binary to its end.
#[track_caller]
pub(crate) fn run(args: &[&str]) -> Output {
    finish(mainstay(args), PATIENCE)
}

/// Work that may block for ever, for as long as patience lasts.
#[track_caller]
pub(crate) fn bounded<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, answer) = mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    match answer.recv_timeout(PATIENCE) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("waited too long: {what}"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("it panicked: {what}"),
    }
}

/// The next line of a child's pipe, with its end; empty when there is none. Not a byte more is taken.
#[track_caller]
pub(crate) fn line<R: Read + Send + 'static>(what: &str, mut pipe: R) -> (String, R) {
    bounded(what, move || {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while line.last() != Some(&b'\n') && pipe.read(&mut byte).unwrap() > 0 {
            line.push(byte[0]);
        }
        (String::from_utf8_lossy(&line).into_owned(), pipe)
    })
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Makes a token in `data`.
pub(crate) fn token(data: &Path, name: &str, scope: &str) -> String {
    let data = data.to_str().unwrap();
    let output = run(&["token", "create", "--data", data, "--name", name, "--scope", scope]);
    assert!(output.status.success(), "{}", stderr(&output));
    stdout(&output).trim().to_owned()
}

/// A running node; killed by its own id when dropped.
pub(crate) struct Node {
    child: Child,
    pub(crate) address: String,
    log: Arc<Mutex<String>>,
    /// Takes over what it writes to stderr.
    reader: Option<JoinHandle<()>>,
}

impl Node {
    /// Starts a node on `data` and waits for its line.
    #[track_caller]
    pub(crate) fn start(data: &Path, more: &[&str]) -> Self {
        let mut args = vec!["serve", "--data", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        args.extend(more);
        Self::spawn(mainstay(&args))
    }

    /// Starts a node from a prepared command.
    #[track_caller]
    pub(crate) fn spawn(command: Command) -> Self {
        let (mut node, pipe) = Self::listening(command);
        let kept = Arc::clone(&node.log);
        node.reader = Some(std::thread::spawn(move || {
            let (mut lines, mut line) = (BufReader::new(pipe), String::new());
            while lines.read_line(&mut line).is_ok_and(|n| n > 0) {
                kept.lock().unwrap().push_str(&line);
                line.clear();
            }
        }));
        node
    }

    /// The same, and its stderr is closed as soon as it has said where it listens.
    #[track_caller]
    pub(crate) fn unread(command: Command) -> Self {
        Self::listening(command).0
    }

    /// A node that has said where it listens, and the rest of its stderr.
    #[track_caller]
    fn listening(mut command: Command) -> (Self, ChildStderr) {
        let mut child = command.spawn().unwrap();
        let mut pipe = child.stderr.take().unwrap();
        let mut node = Self { child, address: String::new(), log: Arc::default(), reader: None };
        while node.address.is_empty() {
            let said;
            (said, pipe) = line("the node listens", pipe);
            assert!(!said.is_empty(), "the node ended before it listened:\n{}", node.log());
            node.log.lock().unwrap().push_str(&said);
            if let Some((_, found)) = said.trim().split_once("mainstay: listening on ") {
                node.address.push_str(found.split_once("://").unwrap().1);
            }
        }
        (node, pipe)
    }

    /// What it wrote to stderr so far, as far as it was read: all of it once it has [`ended`](Self::ended).
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGTERM, then its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.ended()
    }

    /// Waits for its end and for its last words; the exit code.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        let status = eventually("the node ends", || self.child.try_wait().unwrap());
        let read = || self.reader.as_ref().is_none_or(JoinHandle::is_finished);
        eventually("its last words are read", || read().then_some(()));
        status.code()
    }

    /// Waits until its log has this.
    pub(crate) fn says(&self, text: &str) {
        let found = within(|| self.log().contains(text).then_some(()));
        assert!(found.is_some(), "no `{text}` in the log:\n{}", self.log());
    }

    /// What became of a saga: it is asked for as long as the saga is at work.
    #[track_caller]
    pub(crate) fn settled(&self, uid: &str) -> Value {
        self.settled_as(uid, Request::clone).json()
    }

    /// The same with something added to the request: who asks.
    #[track_caller]
    pub(crate) fn settled_as(&self, uid: &str, with: impl Fn(&Request) -> Request) -> Answer {
        let request = with(&Request::new("GET", &format!("/v1/sagas/{uid}?wait=20s")));
        let mut last = String::new();
        let settled = within(|| {
            let answer = self.send(&request);
            last = answer.text();
            if answer.status == 503 {
                return None;
            }
            assert_eq!(answer.status, 200, "{last}");
            let at_work =
                matches!(answer.json()["status"].as_str(), Some("running" | "waiting" | "compensating"));
            (!at_work).then_some(answer)
        });
        settled.unwrap_or_else(|| panic!("the saga does not end: {last}"))
    }

    /// One request on a connection of its own.
    pub(crate) fn send(&self, request: &Request) -> Answer {
        request.to(&self.address)
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.send(&Request::new("GET", path))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request that is sent byte for byte.
#[derive(Clone)]
pub(crate) struct Request {
    line: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, path: &str) -> Self {
        Self { line: format!("{method} {path} HTTP/1.1"), headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(crate) fn bytes(&self, address: &str) -> Vec<u8> {
        let mut text = format!("{}\r\nconnection: close\r\n", self.line);
        if !self.headers.iter().any(|(n, _)| n == "host") {
            text.push_str(&format!("host: {address}\r\n"));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            text.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend(&self.body);
        bytes
    }

    /// Sends it; `None` when the connection gave no answer (a killed node).
    pub(crate) fn try_to(&self, address: &str) -> Option<Answer> {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        // A refused large body may break the pipe before everything is written; the answer still comes.
        let _ = stream.write_all(&self.bytes(address));
        let mut answer = Vec::new();
        let mut chunk = [0; 16 * 1024];
        loop {
            let n = match stream.read(&mut chunk) {
                Ok(0) => break,
                Ok(n) => n,
                // A read with a time limit ends so when the process was stopped and goes on.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(_) => break,
            };
            answer.extend(&chunk[..n]);
            // Not every server closes when it is asked to.
            if Answer::parse(&answer).is_some_and(|a| a.header("content-length").is_some()) {
                break;
            }
        }
        Answer::parse(&answer)
    }

    pub(crate) fn to(&self, address: &str) -> Answer {
        self.try_to(address).unwrap_or_else(|| panic!("no answer to {}", self.line))
    }
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let mut answer = Self { status, head, body: bytes[end + 4..].to_vec() };
        let length = answer.header("content-length").and_then(|l| l.parse::<usize>().ok());
        // A cut answer is no answer.
        if length.is_some_and(|l| answer.body.len() < l) && answer.status != 304 {
            return None;
        }
        answer.body.truncate(length.unwrap_or(usize::MAX));
        Some(answer)
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (n, v) = line.split_once(':')?;
            n.eq_ignore_ascii_case(name).then(|| v.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}\n{}", self.head, self.text()))
    }

    /// The code of a problem; its shape is checked on the way.
    pub(crate) fn problem(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{}", self.head);
        let body = self.json();
        assert_eq!(body["status"], self.status);
        assert_eq!(body["trace_id"].as_str().unwrap().len(), 32);
        let code = body["code"].as_str().unwrap().to_owned();
        assert_eq!(body["type"], format!("/problems/{code}"));
        code
    }
}

/// Waits for a condition, bounded.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(look).unwrap_or_else(|| panic!("waited too long: {what}"))
}

/// Waits for a condition; `None` when patience is over.
pub(crate) fn within<T>(mut look: impl FnMut() -> Option<T>) -> Option<T> {
    #[allow(clippy::disallowed_methods, reason = "a real process is waited for in real time")]
    let (start, pause) = (Instant::now(), || std::thread::sleep(Duration::from_millis(5)));
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        #[allow(clippy::disallowed_methods, reason = "a real process is waited for in real time")]
        let waited = start.elapsed();
        if waited >= PATIENCE {
            return None;
        }
        pause();
    }
}

/// A node that should have refused to start and serves instead ends its test, not the patience of whoever waits for it.
#[test]
fn a_command_that_does_not_end_is_killed_and_fails() {
    let dir = tempfile::tempdir().unwrap();
    let serve = mainstay(&["serve", "--data", dir.path().to_str().unwrap(), "--listen", "127.0.0.1:0"]);
    let ended = std::thread::spawn(|| finish(serve, Duration::from_secs(3))).join();
    let why = ended.unwrap_err().downcast::<String>().unwrap();
    assert!(why.contains("did not end within 3s") && why.contains("\"serve\""), "{why}");
    // It is gone: the folder can be served by another one.
    Node::start(dir.path(), &[]);
}
