//! A participant in the test process: an HTTP service with a barrier and a ledger in memory.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, RwLock, RwLockWriteGuard};
use std::time::Duration;

/// How long a reply takes after its effect.
const WORK: Duration = Duration::from_millis(3);

/// What happened to one step of one saga.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) done: u32,
    pub(crate) undone: u32,
    pub(crate) refused: u32,
    pub(crate) duplicates: u32,
    undo_first: bool,
    said_no: bool,
}

/// By (saga, step).
type Book = BTreeMap<(String, String), Entry>;

/// The service. Its thread ends with the test process.
pub(crate) struct Ledger {
    pub(crate) origin: String,
    book: Arc<Mutex<Book>>,
    /// Whoever has it for writing keeps replies back.
    gate: Arc<RwLock<()>>,
}

impl Ledger {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let (book, gate): (Arc<Mutex<Book>>, Arc<RwLock<()>>) = Default::default();
        let kept = (Arc::clone(&book), Arc::clone(&gate));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (book, gate) = kept.clone();
                std::thread::spawn(move || serve(stream, &book, &gate));
            }
        });
        Self { origin, book, gate }
    }

    /// From now on effects happen and nobody is told, until this is dropped.
    pub(crate) fn silent(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap()
    }

    /// How often something took effect.
    pub(crate) fn effects(&self) -> u32 {
        self.book.lock().unwrap().values().map(|e| e.done + e.undone).sum()
    }

    pub(crate) fn book(&self) -> Book {
        self.book.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, book: &Mutex<Book>, gate: &RwLock<()>) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut reader = BufReader::new(stream);
    loop {
        let mut headers = BTreeMap::new();
        let mut line = String::new();
        if !reader.read_line(&mut line).is_ok_and(|n| n > 0) {
            return;
        }
        loop {
            let mut header = String::new();
            if !reader.read_line(&mut header).is_ok_and(|n| n > 0) {
                return;
            }
            match header.trim().split_once(':') {
                Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
                None => break,
            };
        }
        let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        let status = decide(book, &headers, &body);
        // Between the effect and the reply lies time, in which the node may die.
        #[allow(clippy::disallowed_methods, reason = "a participant that takes real time")]
        std::thread::sleep(WORK);
        drop(gate.read().unwrap());
        let text = if status == 200 { "{\"ok\":true}" } else { "{\"error\":\"no\"}" };
        let answer = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
            text.len()
        );
        if out.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The barrier of the contract: once, refused after an undo, nothing to do for an undo that came first.
fn decide(book: &Mutex<Book>, headers: &BTreeMap<String, String>, body: &[u8]) -> u16 {
    let saga = headers["saga-id"].clone();
    let step = headers["saga-step"].clone();
    let said = |word: &str| String::from_utf8_lossy(body).contains(&format!("\"{word}\":\"{step}\""));
    let (no, undo) = (said("no"), headers["saga-op"] == "undo");
    // A service that is down for this step, and one that refuses to take it back.
    if (!undo && said("lose")) || (undo && said("closed")) {
        return if undo { 409 } else { 503 };
    }
    let mut book = book.lock().unwrap();
    let entry = book.entry((saga, step)).or_default();
    if undo {
        if entry.undone > 0 || entry.undo_first || entry.said_no {
            entry.duplicates += 1;
        } else if entry.done == 0 {
            entry.undo_first = true;
        } else {
            entry.undone += 1;
        }
        return 200;
    }
    if entry.undo_first || entry.undone > 0 {
        entry.refused += 1;
        return 409;
    }
    if no {
        entry.said_no = true;
        return 409;
    }
    if entry.done > 0 {
        entry.duplicates += 1;
    } else {
        entry.done += 1;
    }
    200
}
