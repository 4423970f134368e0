//! What is refused at the door, and what damage does.

use std::sync::Arc;

use futures_util::poll;
use mainstay_clock::Runtime;
use mainstay_clock::virtual_time::VirtualClock;
use mainstay_sqlite::{SqliteStore, tx};
use mainstay_store::journal::{
    Append, Appended, AppendedWith, Create, Created, Filter, Hash, NewRecord, Row, Uid,
};
use mainstay_store::{DurableCell, ErrorKind, Journal, Outcome};
use rusqlite::Connection;

use crate::conformance::{Files, inline};

pub(crate) fn create(id: &str) -> Create {
    Create {
        uid: Uid::new(format!("uid-{id}")),
        id: id.to_owned(),
        definition: "order".to_owned(),
        version: 1,
        definition_hash: Hash::of(b"d"),
        input_hash: Hash::of(id.as_bytes()),
        records: vec![NewRecord { kind: 1, bytes: id.as_bytes().to_vec() }],
        row: row(),
        owner: None,
        reply: None,
        parent: None,
        locks: Vec::new(),
    }
}

pub(crate) fn row() -> Row {
    Row::running(mainstay_clock::WallTime::from_unix_millis(1))
}

pub(crate) fn open(file: &std::path::Path) -> mainstay_store::Result<SqliteStore> {
    SqliteStore::builder(file).open(&Runtime::system())
}

#[tokio::test]
async fn a_second_engine_on_one_file_fails_loudly() {
    let files = Files::new();
    let file = files.fresh();
    let first = open(&file).unwrap();
    assert_eq!(open(&file).unwrap_err().kind(), ErrorKind::Occupied);
    drop(first);
}

/// Whoever dropped a store and opened its file again raced with the writer, which ends by itself.
#[tokio::test]
async fn a_file_that_was_closed_is_free_once_its_last_handle_is_gone() {
    let files = Files::new();
    let file = files.fresh();
    let store = open(&file).unwrap();
    let cell = store.cell("kept");
    let mut closing = Box::pin(store.close());
    assert!(poll!(closing.as_mut()).is_pending(), "a cell still writes");
    cell.store_synced(b"1".to_vec()).await.unwrap();
    assert!(poll!(closing.as_mut()).is_pending());
    assert_eq!(open(&file).unwrap_err().kind(), ErrorKind::Occupied);
    drop(cell);
    closing.await;
    for _ in 0..20 {
        open(&file).unwrap().close().await;
    }
    let store = open(&file).unwrap();
    assert_eq!(store.cell("kept").load().await.unwrap().as_deref(), Some(&b"1"[..]));
}

#[tokio::test]
async fn cancel_safety_of_close_the_file_is_freed_without_anybody_who_waits() {
    let files = Files::new();
    let file = files.fresh();
    let store = open(&file).unwrap();
    let cell = store.cell("kept");
    let mut closing = Box::pin(store.close());
    assert!(poll!(closing.as_mut()).is_pending());
    drop(closing);
    cell.store_synced(b"1".to_vec()).await.unwrap();
    drop(cell);
    loop {
        match open(&file) {
            Ok(_) => break,
            Err(e) if e.kind() == ErrorKind::Occupied => tokio::task::yield_now().await,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_newer_file_and_a_damaged_one_are_refused() {
    let files = Files::new();
    let newer = files.fresh();
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    assert_eq!(open(&newer).unwrap_err().kind(), ErrorKind::NewerVersion);
    let garbage = files.fresh();
    std::fs::write(&garbage, vec![0x5a; 8192]).unwrap();
    assert_eq!(open(&garbage).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[tokio::test(start_paused = true)]
async fn m_g5_a_flipped_bit_is_found_and_a_gap_too() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let runtime = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(mainstay_clock::SeededRng::new(1)));
    let config = SqliteStore::builder(&file).driver(mainstay_sqlite::Driver::Inline);
    let store = config.open(&runtime).unwrap();
    for id in ["flip", "gap", "fine"] {
        store.create(create(id)).await.unwrap();
    }
    let conn = Connection::open(&file).unwrap();
    conn.execute("update log set records = x'0100040000007878787a' where rid = 1", []).unwrap();
    conn.execute("delete from log where rid = 2", []).unwrap();
    for id in ["flip", "gap"] {
        let uid = Uid::new(format!("uid-{id}"));
        assert_eq!(store.load(&uid).await.unwrap_err().kind(), ErrorKind::Corrupt, "sg_f06 {id}");
        assert!(store.summary(&uid).await.unwrap().is_some(), "its row still answers");
    }
    assert!(store.load(&Uid::new("uid-fine")).await.unwrap().is_some());
}

#[tokio::test]
async fn m_g5_a_full_disk_refuses_and_keeps_what_was_acknowledged() {
    let files = Files::new();
    let file = files.fresh();
    let config = SqliteStore::builder(&file).max_pages(60);
    let store = config.open(&Runtime::system()).unwrap();
    let mut acknowledged = 0;
    let refused = loop {
        let mut big = create(&acknowledged.to_string());
        big.records[0].bytes = vec![7; 20_000];
        match store.create(big).await {
            Ok(_) => acknowledged += 1,
            Err(e) => break e,
        }
        assert!(acknowledged < 100, "the limit must bite");
    };
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Full, Outcome::NotApplied));
    let rows = store.query(&Filter::default(), None, 500).await.unwrap().rows;
    assert_eq!(rows.len(), acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sg_f13_sixty_four_callers_never_see_busy() {
    let files = Files::new();
    let store = open(&files.fresh()).unwrap();
    let work = (0..64).map(|caller| {
        let store = store.clone();
        async move {
            for i in 0..20 {
                let id = format!("{caller}-{i}");
                assert!(matches!(store.create(create(&id)).await.unwrap(), Created::Created { .. }));
                store.query(&Filter::default(), None, 5).await.unwrap();
            }
        }
    });
    futures_util::future::join_all(work).await;
    assert_eq!(store.counts().await.unwrap()[0].count, 64 * 20);
}

#[tokio::test(start_paused = true)]
async fn work_and_record_commit_together_or_not_at_all() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let store = inline(&files, &clock);
    store.create(create("one")).await.unwrap();
    let uid = Uid::new("uid-one");
    let with = |epoch, seq, fail: bool| {
        let work = tx(move |conn| {
            conn.execute_batch("create table if not exists stock (n integer); insert into stock values (1)")?;
            if fail {
                Err("the work says no".into())
            } else {
                Ok(vec![NewRecord { kind: 2, bytes: b"did".to_vec() }])
            }
        });
        store.append_with(Append::new(uid.clone(), epoch, seq, Vec::new(), row()), work)
    };
    assert!(matches!(with(0, 2, true).await.unwrap(), AppendedWith::WorkFailed(_)));
    assert!(matches!(with(9, 2, false).await.unwrap(), AppendedWith::Append(Appended::Fenced, _)));
    assert!(
        matches!(with(0, 2, false).await.unwrap(), AppendedWith::Append(Appended::Appended { .. }, made) if made.len() == 1)
    );
    let panics = tx(|_| panic!("planted"));
    let head = Append::new(uid.clone(), 0, 3, Vec::new(), row());
    assert!(matches!(store.append_with(head.clone(), panics).await.unwrap(), AppendedWith::WorkFailed(_)));
    let ends = tx(|conn| {
        conn.execute_batch("commit")?;
        Ok(Vec::new())
    });
    let ended = store.append_with(head, ends).await.unwrap_err();
    assert_eq!((ended.kind(), ended.outcome()), (ErrorKind::ApiMisuse, Outcome::Unknown));
    // A repeated call after a lost reply finds out by the sequence.
    assert!(
        matches!(
            with(0, 2, false).await.unwrap(),
            AppendedWith::Append(Appended::Conflict { next_seq: 3 }, _)
        ),
        "sg_x03"
    );
    let loaded = store.load(&uid).await.unwrap().unwrap();
    assert_eq!(loaded.records.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn cursors_never_go_back_after_a_purge_of_the_newest() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let store = inline(&files, &clock);
    for id in ["old", "newest"] {
        store.create(create(id)).await.unwrap();
    }
    let last = store.last_cursor().await.unwrap();
    let mut done = Row::running(mainstay_clock::WallTime::from_unix_millis(1));
    done.status = mainstay_store::journal::SagaStatus::Completed;
    let end = Append::new(Uid::new("uid-newest"), 0, 2, Vec::new(), done);
    store.append(end).await.unwrap();
    let later = mainstay_clock::WallTime::from_unix_millis(i64::MAX);
    let purge = mainstay_store::journal::PurgeRequest {
        completed_before: later,
        compensated_before: later,
        tombstones_before: later,
        limit: 9,
    };
    assert_eq!(store.purge(purge).await.unwrap().sagas, 1);
    store.create(create("after")).await.unwrap();
    let page = store.events(Some(&last), 10).await.unwrap();
    assert_eq!(page.events.iter().map(|e| e.id.as_str()).collect::<Vec<_>>(), ["after"]);
}

/// A cell under a name that was damaged was simply not there: whoever keeps a bound in it began anew.
#[tokio::test]
async fn m_g5_a_cell_with_a_damaged_name_is_not_taken_for_one_that_never_was() {
    let files = Files::new();
    let file = files.fresh();
    let store = open(&file).unwrap();
    store.cell("hlc").store_synced(b"8".to_vec()).await.unwrap();
    store.close().await;
    let conn = Connection::open(&file).unwrap();
    assert_eq!(conn.execute("update cell set name = 'hlb'", []).unwrap(), 1);
    drop(conn);
    let store = open(&file).unwrap();
    assert_eq!(store.cell("hlc").load().await.unwrap_err().kind(), ErrorKind::Corrupt);
    // Of those that were never written nothing is known either.
    assert_eq!(store.cell("other").load().await.unwrap_err().kind(), ErrorKind::Corrupt);
    store.cell("other").store_synced(b"1".to_vec()).await.unwrap();
    assert_eq!(store.cell("other").load().await.unwrap(), Some(b"1".to_vec()));
}

/// A cell of before its name was part of its checksum is read, and written anew with it.
#[tokio::test]
async fn an_older_cell_is_read() {
    let files = Files::new();
    let file = files.fresh();
    open(&file).unwrap().close().await;
    let conn = Connection::open(&file).unwrap();
    let sum = Hash::of(b"8").0;
    conn.execute("insert into cell values ('hlc', ?1, ?2)", rusqlite::params![b"8".as_slice(), sum]).unwrap();
    drop(conn);
    let store = open(&file).unwrap();
    assert_eq!(store.cell("hlc").load().await.unwrap(), Some(b"8".to_vec()));
    assert_eq!(store.cell("none").load().await.unwrap(), None);
}
