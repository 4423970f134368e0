//! What makes a test indifferent to a slow machine: how long it waits, commands that end or fail with what they said,
//! files that need no disk.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest wait for anything in these tests: only a failure takes that long, on however slow a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A folder in memory where there is one: for files whose disk is not what a test is about, so that a slow one takes
/// no part in it.
pub(crate) fn quick_dir() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// What one pipe of a child has given so far, and whether it is closed.
#[derive(Default)]
struct Heard {
    bytes: Vec<u8>,
    closed: bool,
}

/// Reads a pipe to its end, in the background: a child whose pipe is full would never end.
fn hear(mut pipe: impl Read + Send + 'static) -> Arc<Mutex<Heard>> {
    let heard: Arc<Mutex<Heard>> = Arc::default();
    let kept = Arc::clone(&heard);
    std::thread::spawn(move || {
        let mut chunk = [0; 16 * 1024];
        while let Ok(n @ 1..) = pipe.read(&mut chunk) {
            kept.lock().unwrap().bytes.extend_from_slice(&chunk[..n]);
        }
        kept.lock().unwrap().closed = true;
    });
    heard
}

/// Runs a command to its end and to the end of its pipes. What takes longer than `limit`, a server that should have
/// refused to start, is killed by its id and fails with what it said.
#[track_caller]
pub(crate) fn finish(mut command: Command, limit: Duration) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (out, err) = (hear(child.stdout.take().unwrap()), hear(child.stderr.take().unwrap()));
    let text = |pipe: &Mutex<Heard>| String::from_utf8_lossy(&pipe.lock().unwrap().bytes).into_owned();
    #[allow(clippy::disallowed_methods, reason = "a real process is waited for in real time")]
    let begun = Instant::now();
    let mut status = None;
    loop {
        status = status.or_else(|| child.try_wait().unwrap());
        if let Some(status) = status
            && [&out, &err].iter().all(|pipe| pipe.lock().unwrap().closed)
        {
            let bytes = |pipe: &Mutex<Heard>| std::mem::take(&mut pipe.lock().unwrap().bytes);
            return Output { status, stdout: bytes(&out), stderr: bytes(&err) };
        }
        #[allow(clippy::disallowed_methods, reason = "a real process is waited for in real time")]
        let waited = begun.elapsed();
        if waited >= limit {
            child.kill().unwrap();
            child.wait().unwrap();
            let ended = status.map_or("did not end".to_owned(), |s| format!("left its pipes open after {s}"));
            panic!("{command:?} {ended} within {limit:?}; it said:\n{}\n{}", text(&out), text(&err));
        }
        #[allow(clippy::disallowed_methods, reason = "a real process is waited for in real time")]
        std::thread::sleep(Duration::from_millis(2));
    }
}
