//! Files that were restored from an older copy, or lost: what is fenced goes on above what was before.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Runtime, SeededRng};
use mainstay_sqlite::{Driver, SqliteLeases, SqliteStore};
use mainstay_store::journal::{Append, Appended, ClaimRequest, Claimant, Create, Row};
use mainstay_store::lease::{AcquireRequest, Acquired};
use mainstay_store::{ErrorKind, FencingToken, Journal, LeaseStore};
use rusqlite::Connection;

use crate::conformance::Files;
use crate::durability::{create, row};

const TTL: Duration = Duration::from_secs(5);

fn runtime(clock: &VirtualClock) -> Runtime {
    Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)))
}

fn backup(file: &Path, files: &Files) -> PathBuf {
    let copy = files.fresh();
    Connection::open(file).unwrap().execute("vacuum into ?1", [copy.to_str().unwrap()]).unwrap();
    copy
}

fn journal(file: &Path, epoch: u16, clock: &VirtualClock) -> SqliteStore {
    let config = SqliteStore::builder(file).driver(Driver::Inline).epoch(epoch);
    config.open(&runtime(clock)).unwrap()
}

/// The epoch of a claim of the only saga, which is given back.
async fn claim(store: &SqliteStore) -> u64 {
    let claimant = Claimant { node: "n".to_owned(), incarnation: 1, ttl: TTL };
    let claimed = store.claim(ClaimRequest { claimant, limit: 10 }).await.unwrap();
    assert_eq!(claimed.len(), 1);
    store.hand_back("n", 1, std::slice::from_ref(&claimed[0].saga)).await.unwrap();
    claimed[0].epoch
}

/// Participants had seen later claims of a restored saga, and refused every call until its claims had caught up.
#[tokio::test(start_paused = true)]
async fn claims_of_a_restored_journal_go_on_above_those_of_before() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let store = journal(&file, 0, &clock);
    let saga = Create { row: Row::running(clock.wall()), ..create("one") };
    store.create(saga.clone()).await.unwrap();
    assert_eq!(claim(&store).await, 1);
    let copy = backup(&file, &files);
    let mut last = 0;
    for _ in 0..9 {
        last = claim(&store).await;
    }
    let restored = journal(&copy, 0, &clock);
    assert!(claim(&restored).await < last, "without a larger base the restored one begins again");
    drop(restored);
    let restored = journal(&copy, 1, &clock);
    let first = claim(&restored).await;
    assert!(first > last && first < 1 << 53, "{first} after {last}");
    assert_eq!(claim(&restored).await, first + 1);
    // What was appended under it counts, as under any other.
    let claimant = Claimant { node: "n".to_owned(), incarnation: 1, ttl: TTL };
    let claimed = restored.claim(ClaimRequest { claimant, limit: 1 }).await.unwrap();
    let append = Append::new(saga.uid.clone(), claimed[0].epoch, 2, saga.records, row());
    assert!(matches!(restored.append(append).await.unwrap(), Appended::Appended { .. }));
    restored.hand_back("n", 1, std::slice::from_ref(&saga.uid)).await.unwrap();
    drop(restored);
    let restored = journal(&copy, 2, &clock);
    assert!(claim(&restored).await > claimed[0].epoch + 1_000_000, "restored once more");
    drop(restored);
    let config = SqliteStore::builder(&copy).driver(Driver::Inline).epoch(1 << 15);
    let refused = config.open(&runtime(&clock)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ApiMisuse);
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
        SqliteLeases::builder(file).driver(Driver::Inline).epoch(base).open(&runtime(&clock))
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
