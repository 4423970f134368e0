//! Batches, the log's length and damage: one thing going wrong stays one thing.

use std::sync::Arc;
use std::sync::mpsc;

use mainstay_clock::Runtime;
use mainstay_sqlite::{Driver, SqliteStore, tx};
use mainstay_store::journal::{
    Append, Appended, AppendedWith, Created, Filter, MAX_RECORD_BYTES, NewRecord, PurgeRequest, SagaStatus,
    Uid,
};
use mainstay_store::{ErrorKind, Journal, Outcome};
use rusqlite::Connection;

use crate::conformance::Files;
use crate::durability::{create, open, row};

/// Stops the writer inside a transaction until told to go on: what is sent meanwhile becomes one batch.
struct Held(mpsc::Sender<()>);

impl Held {
    async fn take(store: &SqliteStore) -> (Self, tokio::task::JoinHandle<()>) {
        let uid = Uid::new("uid-hold");
        store.create(create("hold")).await.unwrap();
        let (go, wait) = mpsc::channel::<()>();
        let (inside, is_inside) = tokio::sync::oneshot::channel();
        let work = tx(move |_| {
            let _ = inside.send(());
            let _ = wait.recv();
            Ok(Vec::new())
        });
        let holder = store.clone();
        #[allow(clippy::disallowed_methods, reason = "a test holds the writer from a task of its own")]
        let task = tokio::spawn(async move {
            holder.append_with(Append::new(uid, 0, 2, Vec::new(), row()), work).await.unwrap();
        });
        is_inside.await.unwrap();
        (Self(go), task)
    }

    fn release(&self) {
        self.0.send(()).unwrap();
    }
}

fn append(id: &str, seq: u64, bytes: usize) -> Append {
    let record = NewRecord { kind: 2, bytes: vec![7; bytes] };
    Append::new(Uid::new(format!("uid-{id}")), 0, seq, vec![record], row())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_statement_fails_its_own_caller_only() {
    let files = Files::new();
    let file = files.fresh();
    let store = open(&file).unwrap();
    for id in ["a", "b", "c"] {
        store.create(create(id)).await.unwrap();
    }
    // A statement of `b` fails, and not as a refusal: the trigger stands for whatever may go wrong.
    let conn = Connection::open(&file).unwrap();
    conn.execute_batch(
        "create trigger planted before insert on log when new.rid = 2 begin select raise(fail, 'planted'); end;",
    )
    .unwrap();
    let (held, holder) = Held::take(&store).await;
    let batch = ["a", "b", "c"].map(|id| store.append(append(id, 2, 10)));
    let all = futures_util::future::join_all(batch);
    let released = async { held.release() };
    let (answers, ()) = tokio::join!(all, released);
    holder.await.unwrap();
    assert!(matches!(answers[0], Ok(Appended::Appended { next_seq: 3, .. })), "{:?}", answers[0]);
    let failed = answers[1].as_ref().unwrap_err();
    assert_eq!(failed.outcome(), Outcome::NotApplied, "{failed}");
    assert!(matches!(answers[2], Ok(Appended::Appended { next_seq: 3, .. })), "{:?}", answers[2]);
    let records =
        async |id: &str| store.load(&Uid::new(format!("uid-{id}"))).await.unwrap().unwrap().records.len();
    assert_eq!((records("a").await, records("b").await, records("c").await), (2, 1, 2));
    conn.execute_batch("drop trigger planted").unwrap();
    let again = store.append(append("b", 2, 10)).await.unwrap();
    assert!(matches!(again, Appended::Appended { next_seq: 3, .. }), "it goes on where it was: {again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sg_x2_one_fenced_item_of_sixty_four_fails_alone() {
    let files = Files::new();
    let store = open(&files.fresh()).unwrap();
    for i in 0..64 {
        store.create(create(&i.to_string())).await.unwrap();
    }
    let (held, holder) = Held::take(&store).await;
    let batch = (0..64).map(|i| {
        let mut item = append(&i.to_string(), 2, 10);
        item.epoch = u64::from(i == 17) * 9;
        store.append(item)
    });
    let (answers, ()) = tokio::join!(futures_util::future::join_all(batch), async { held.release() });
    holder.await.unwrap();
    let fenced: Vec<usize> = (0..64).filter(|i| matches!(answers[*i], Ok(Appended::Fenced))).collect();
    let appended = answers.iter().filter(|a| matches!(a, Ok(Appended::Appended { .. }))).count();
    assert_eq!((fenced, appended), (vec![17], 63));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_ran_once_survives_a_failing_neighbor() {
    let files = Files::new();
    let file = files.fresh();
    let store = open(&file).unwrap();
    store.create(create("a")).await.unwrap();
    store.create(create("b")).await.unwrap();
    let conn = Connection::open(&file).unwrap();
    conn.execute_batch(
        "create table stock (n integer);
         create trigger planted before insert on log when new.rid = 2 begin select raise(fail, 'planted'); end;",
    )
    .unwrap();
    let (held, holder) = Held::take(&store).await;
    let work = tx(|conn| {
        conn.execute("insert into stock values (1)", [])?;
        Ok(Vec::new())
    });
    let (with, failed, ()) =
        tokio::join!(store.append_with(append("a", 2, 10), work), store.append(append("b", 2, 10)), async {
            held.release()
        });
    holder.await.unwrap();
    assert!(matches!(with, Ok(AppendedWith::Append(Appended::Appended { .. }, _))), "{with:?}");
    assert!(failed.is_err());
    let rows: i64 = conn.query_row("select count(*) from stock", [], |r| r.get(0)).unwrap();
    assert_eq!(rows, 1, "its effect stands once");
}

/// Appends of one round: the log has two occasions to start over.
const ROUND: u64 = 520;

/// Appends to a new saga; the length of the log after that.
async fn churn(store: &SqliteStore, file: &std::path::Path, id: &str) -> u64 {
    store.create(create(id)).await.unwrap();
    for seq in 2..ROUND + 2 {
        let done = store.append(append(id, seq, 8_000)).await.unwrap();
        assert!(matches!(done, Appended::Appended { .. }), "{done:?}");
    }
    let mut wal = file.as_os_str().to_owned();
    wal.push("-wal");
    std::fs::metadata(wal).unwrap().len()
}

#[tokio::test]
async fn the_log_starts_over_also_after_a_reader_stood_in_it() {
    const LIMIT: u64 = 1024 * 1024;
    let files = Files::new();
    let file = files.fresh();
    let config = SqliteStore::builder(&file).max_wal_bytes(LIMIT);
    let store = config.open(&Runtime::system()).unwrap();
    // A log that is too long is noticed within a round: until then it grows by a known amount.
    let round = ROUND * 5 * 4_120;
    let short = churn(&store, &file, "a").await;
    assert!(short < LIMIT + round, "{short}");
    let reader = Connection::open(&file).unwrap();
    reader.execute_batch("begin; select count(*) from saga;").unwrap();
    let held = churn(&store, &file, "b").await;
    reader.execute_batch("commit").unwrap();
    drop(reader);
    churn(&store, &file, "c").await;
    let after = churn(&store, &file, "d").await;
    assert!(held > short, "the reader was in the way: {held}");
    assert!(after < LIMIT + round, "{after} after {held} with a reader in it");
}

#[test]
fn a_log_too_short_to_work_with_is_refused() {
    let config = SqliteStore::builder("unused.db").max_wal_bytes(10);
    let refused = config.open(&Runtime::system()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ApiMisuse);
    assert!(refused.to_string().contains("max_wal_bytes"), "{refused}");
}

#[tokio::test]
async fn a_damaged_row_is_shown_in_the_stream_and_passed_over() {
    let files = Files::new();
    let file = files.fresh();
    let config = SqliteStore::builder(&file).driver(Driver::Inline);
    let store = config.open(&Runtime::system()).unwrap();
    for id in ["before", "hurt", "after"] {
        store.create(create(id)).await.unwrap();
    }
    let conn = Connection::open(&file).unwrap();
    conn.execute("update log set records = x'0100040000007878787a' where rid = 2", []).unwrap();
    let page = store.events(None, 10).await.unwrap();
    let ids: Vec<&str> = page.events.iter().map(|e| e.id.as_str()).collect();
    assert_eq!(ids, ["before", "after"]);
    let [hurt] = page.unreadable.as_slice() else { panic!("{:?}", page.unreadable) };
    assert_eq!((hurt.id.as_str(), hurt.saga.as_str()), ("hurt", "uid-hurt"));
    assert!(hurt.why.contains("checksum"), "{}", hurt.why);
    assert!(page.events[0].cursor < hurt.cursor && hurt.cursor < page.events[1].cursor);
    // One at a time: it is told once, and nobody stops at it.
    let (mut at, mut seen, mut told) = (None, Vec::new(), 0);
    for _ in 0..5 {
        let page = store.events(at.as_ref(), 1).await.unwrap();
        seen.extend(page.events.iter().map(|e| e.id.clone()));
        told += page.unreadable.len();
        at = Some(page.next);
    }
    assert_eq!((seen, told), (vec!["before".to_owned(), "after".to_owned()], 1));
}

#[tokio::test]
async fn a_purge_is_bounded_and_takes_each_status_at_its_own_age() {
    let files = Files::new();
    let config = SqliteStore::builder(files.fresh()).driver(Driver::Inline);
    let store = config.open(&Runtime::system()).unwrap();
    let ended = [
        ("done-1", SagaStatus::Completed),
        ("done-2", SagaStatus::Completed),
        ("back", SagaStatus::Compensated),
        ("given-up", SagaStatus::Abandoned),
    ];
    for (id, status) in ended {
        store.create(create(id)).await.unwrap();
        let mut end = append(id, 2, 1);
        end.row.status = status;
        store.append(end).await.unwrap();
    }
    let (never, ever) =
        (mainstay_clock::WallTime::default(), mainstay_clock::WallTime::from_unix_millis(i64::MAX));
    let mut purge = PurgeRequest {
        completed_before: ever,
        compensated_before: never,
        tombstones_before: never,
        limit: 1,
    };
    assert_eq!(store.purge(purge).await.unwrap().sagas, 1);
    purge.limit = 10;
    assert_eq!(store.purge(purge).await.unwrap().sagas, 1, "the completed ones only");
    assert_eq!(store.query(&Filter::default(), None, 10).await.unwrap().rows.len(), 2);
    purge.compensated_before = ever;
    assert_eq!(store.purge(purge).await.unwrap().sagas, 2);
    (purge.tombstones_before, purge.limit) = (ever, 3);
    assert_eq!(store.purge(purge).await.unwrap().tombstones, 3);
    assert_eq!(store.purge(purge).await.unwrap().tombstones, 1);
}

#[tokio::test]
async fn a_record_over_the_limit_is_refused_and_the_saga_goes_on() {
    let files = Files::new();
    let store = Arc::new(open(&files.fresh()).unwrap());
    assert!(matches!(store.create(create("a")).await.unwrap(), Created::Created { .. }));
    let refused = store.append(append("a", 2, MAX_RECORD_BYTES + 1)).await.unwrap_err();
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::TooLarge, Outcome::NotApplied));
    assert!(matches!(store.append(append("a", 2, 5)).await.unwrap(), Appended::Appended { .. }));
}

/// The counts are kept as sagas finish: they must say what a count of all rows says, also beside a neighbor that
/// fails, after a restart and after a purge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn if_c12_the_counts_say_what_the_rows_say() {
    let files = Files::new();
    let file = files.fresh();
    let store = open(&file).unwrap();
    let conn = Connection::open(&file).unwrap();
    let agree = async |store: &SqliteStore, when: &str| {
        let kept = store
            .counts()
            .await
            .unwrap()
            .into_iter()
            .map(|c| (c.definition, c.status.as_str().to_owned(), c.count, c.oldest.unix_millis()));
        let sql = "select definition, status, count(*), min(updated) from saga group by 1, 2 order by 1, 2";
        let mut rows = conn.prepare(sql).unwrap();
        let rows = rows.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?))).unwrap();
        assert_eq!(kept.collect::<Vec<_>>(), rows.collect::<rusqlite::Result<Vec<_>>>().unwrap(), "{when}");
    };
    agree(&store, "empty").await;
    for i in 0..40 {
        let mut new = create(&i.to_string());
        new.definition = if i % 3 == 0 { "rare" } else { "order" }.to_owned();
        store.create(new).await.unwrap();
    }
    agree(&store, "created").await;
    conn.execute_batch(
        "create trigger planted before update of status on saga when new.rid = 7 begin select raise(fail, 'no'); end;",
    )
    .unwrap();
    let (held, holder) = Held::take(&store).await;
    let batch = (0..30).map(|i| {
        let mut end = append(&i.to_string(), 2, 10);
        end.row.status = if i % 4 == 0 { SagaStatus::Compensated } else { SagaStatus::Completed };
        end.row.due = None;
        store.append(end)
    });
    let (answers, ()) = tokio::join!(futures_util::future::join_all(batch), async { held.release() });
    holder.await.unwrap();
    assert_eq!(answers.iter().filter(|a| a.is_err()).count(), 1);
    agree(&store, "finished").await;
    store.close().await;
    let store = open(&file).unwrap();
    agree(&store, "opened again").await;
    let far = mainstay_clock::WallTime::from_unix_millis(i64::MAX);
    let never = mainstay_clock::WallTime::from_unix_millis(0);
    let request =
        PurgeRequest { completed_before: far, compensated_before: never, tombstones_before: never, limit: 9 };
    assert_eq!(store.purge(request).await.unwrap().sagas, 9);
    agree(&store, "purged a part").await;
    let request = PurgeRequest { compensated_before: far, limit: 100, ..request };
    assert_eq!(store.purge(request).await.unwrap().sagas, 20);
    agree(&store, "purged all").await;
}
