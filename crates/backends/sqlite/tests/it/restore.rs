//! Files that were restored from an older copy, or lost: tokens go on above those of before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Runtime, SeededRng};
use mainstay_sqlite::{Driver, SqliteLeases};
use mainstay_store::lease::{AcquireRequest, Acquired};
use mainstay_store::{ErrorKind, FencingToken, LeaseStore};
use rusqlite::Connection;

use crate::conformance::Files;

const TTL: Duration = Duration::from_secs(5);

fn runtime(clock: &VirtualClock) -> Runtime {
    Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)))
}

fn backup(file: &Path, files: &Files) -> PathBuf {
    let copy = files.fresh();
    Connection::open(file).unwrap().execute("vacuum into ?1", [copy.to_str().unwrap()]).unwrap();
    copy
}

async fn token(store: &SqliteLeases, op: &str) -> FencingToken {
    let ask = AcquireRequest::exclusive("n", op, op, TTL);
    let Acquired::Granted(grants) = store.acquire(ask).await.unwrap() else { panic!("`n` is held") };
    store.release(op).await.unwrap();
    grants[0].token
}

/// The file counts boots from when it was made: after several of them a lost or restored one gave smaller tokens, and
/// resources refused every new holder.
#[tokio::test(start_paused = true)]
async fn tokens_of_a_restored_or_lost_lease_file_go_on_above_those_of_before() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let open = |file: &Path, base| {
        SqliteLeases::builder(file).driver(Driver::Inline).base_epoch(base).open(&runtime(&clock))
    };
    let store = open(&file, 0).unwrap();
    token(&store, "a").await;
    let copy = backup(&file, &files);
    let raw = Connection::open(&file).unwrap();
    raw.execute("update meta set epoch = 40", []).unwrap();
    let before = token(&store, "b").await;
    assert_eq!(before.get() >> 48, 40);
    for file in [copy, files.fresh()] {
        assert!(token(&open(&file, 0).unwrap(), "c").await < before, "without a larger base");
        let restored = open(&file, 1_000).unwrap();
        let first = token(&restored, "d").await;
        assert!(first > before, "{first:?} after {before:?}");
        assert!(token(&restored, "e").await > first);
        // Whoever shares the file without the setting continues.
        assert!(token(&open(&file, 0).unwrap(), "f").await > first);
    }
    for (base, boots) in [(1 << 15, 0), (32_767, 1)] {
        let full = files.fresh();
        drop(open(&full, 0).unwrap());
        Connection::open(&full).unwrap().execute("update meta set epoch = ?1", [boots]).unwrap();
        let refused = open(&full, base).unwrap_err();
        assert!(refused.kind() == ErrorKind::ApiMisuse && refused.to_string().contains("32767"), "{refused}");
    }
}
