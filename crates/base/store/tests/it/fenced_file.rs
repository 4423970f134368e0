//! The guard of a file: smaller tokens are refused, whoever crashed and whoever else writes.

use std::fs;

use mainstay_store::{ErrorKind, FenceCheck, FencedFile, FencingToken};

fn token(n: u64) -> FencingToken {
    FencingToken::new(n)
}

#[test]
fn k09_a_file_takes_writes_of_the_newest_token_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = FencedFile::new(dir.path().join("data"));
    assert_eq!((file.read().unwrap(), file.seen().unwrap()), (None, FencingToken::ZERO));
    assert_eq!(file.replace(token(5), b"a").unwrap(), FenceCheck::Pass);
    assert_eq!(file.replace(token(5), b"b").unwrap(), FenceCheck::Pass, "one holder writes often");
    assert_eq!(file.advance(token(9)).unwrap(), FenceCheck::Pass);
    let stale = FenceCheck::Stale { seen: token(9) };
    assert_eq!(file.replace(token(8), b"late").unwrap(), stale);
    assert_eq!(file.advance(token(8)).unwrap(), stale);
    let mut called = false;
    file.update(token(8), |_| {
        called = true;
        Vec::new()
    })
    .unwrap();
    assert!(!called, "a stale change is not even made");
    assert_eq!(file.read().unwrap().as_deref(), Some(&b"b"[..]));
    // Another handle, as in another process or after a restart.
    let again = FencedFile::new(dir.path().join("data"));
    assert_eq!((again.seen().unwrap(), again.replace(token(8), b"late").unwrap()), (token(9), stale));
    assert_eq!(again.replace(token(u64::MAX), b"last").unwrap(), FenceCheck::Pass);
}

#[test]
fn a_fence_that_holds_no_token_refuses_everything() {
    let dir = tempfile::tempdir().unwrap();
    let file = FencedFile::new(dir.path().join("data"));
    file.replace(token(5), b"a").unwrap();
    for spoiled in ["", "\n", "x", "-1", "+7", "5 6", "99999999999999999999999"] {
        fs::write(dir.path().join("data.fence"), spoiled).unwrap();
        let refused = file.replace(token(u64::MAX), b"b").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{spoiled:?}");
        assert_eq!(file.read().unwrap().as_deref(), Some(&b"a"[..]), "{spoiled:?}");
    }
}

#[test]
fn a_crash_between_fence_and_data_leaves_the_old_data_behind_the_new_fence() {
    let dir = tempfile::tempdir().unwrap();
    let file = FencedFile::new(dir.path().join("data"));
    file.replace(token(5), b"old").unwrap();
    // What such a crash leaves: the fence was renamed, the data was not, a temporary file lies around.
    fs::write(dir.path().join("data.fence"), "6\n").unwrap();
    fs::write(dir.path().join("data.new"), "half").unwrap();
    assert_eq!(file.replace(token(5), b"late").unwrap(), FenceCheck::Stale { seen: token(6) });
    assert_eq!(file.read().unwrap().as_deref(), Some(&b"old"[..]));
    assert_eq!(file.replace(token(6), b"new").unwrap(), FenceCheck::Pass);
    assert_eq!(file.read().unwrap().as_deref(), Some(&b"new"[..]));
}

#[test]
fn a_missing_folder_is_said_and_nothing_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let file = FencedFile::new(dir.path().join("no/data"));
    assert_eq!(file.replace(token(1), b"a").unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Read, change and write are one step: nothing is lost between writers, and tokens never go back.
#[test]
fn f25_writers_side_by_side_lose_no_change_of_an_accepted_token() {
    const WRITERS: u64 = 4;
    const EACH: u64 = 50;
    let dir = tempfile::tempdir().unwrap();
    let accepted: u64 = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let file = FencedFile::new(dir.path().join("data"));
                scope.spawn(move || {
                    let writes = (0..EACH).filter(|n| {
                        let token = token(n * WRITERS + writer);
                        let line = |before: &[u8]| [before, format!("{token}\n").as_bytes()].concat();
                        file.update(token, line).unwrap() == FenceCheck::Pass
                    });
                    writes.count() as u64
                })
            })
            .collect();
        writers.into_iter().map(|w| w.join().unwrap()).sum()
    });
    let text = fs::read_to_string(dir.path().join("data")).unwrap();
    let tokens: Vec<u64> = text.lines().map(|l| l.parse().unwrap()).collect();
    assert!(tokens.is_sorted(), "{tokens:?}");
    assert_eq!(tokens.len() as u64, accepted);
    assert!(accepted >= EACH, "the writer of the largest tokens is never refused for ever: {accepted}");
}
