//! The writer under load: what shares a batch is answered for itself, and readers wait for nobody.

use std::sync::mpsc;

use mainstay_clock::{Runtime, WallTime};
use mainstay_sqlite::{SqliteStore, tx};
use mainstay_store::Journal;
use mainstay_store::journal::{
    Append, Appended, Claimant, Create, Created, Filter, Hash, NewRecord, Row, Uid,
};

fn create(n: usize) -> Create {
    Create {
        uid: Uid::new(format!("uid-{n}")),
        id: n.to_string(),
        definition: "order".to_owned(),
        version: 1,
        definition_hash: Hash::of(b"d"),
        input_hash: Hash::of(b"i"),
        records: vec![NewRecord { kind: 1, bytes: b"{}".to_vec() }],
        row: Row::running(WallTime::from_unix_millis(1)),
        owner: Some(Claimant {
            node: "n".to_owned(),
            incarnation: 1,
            ttl: std::time::Duration::from_secs(600),
        }),
        reply: None,
        parent: None,
        locks: Vec::new(),
    }
}

fn append(n: usize, epoch: u64, seq: u64) -> Append {
    let record = NewRecord { kind: 2, bytes: b"{}".to_vec() };
    let row = Row::running(WallTime::from_unix_millis(1));
    Append::new(Uid::new(format!("uid-{n}")), epoch, seq, vec![record], row)
}

/// A store whose writer is held until the returned end is dropped or used.
struct Held {
    store: SqliteStore,
    _dir: tempfile::TempDir,
}

impl Held {
    async fn new(sagas: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::builder(dir.path().join("a.db")).open(&Runtime::system()).unwrap();
        for n in 0..sagas {
            assert!(matches!(
                store.create(create(n)).await.unwrap(),
                Created::Created { epoch: 1, next_seq: 2 }
            ));
        }
        Self { store, _dir: dir }
    }

    /// Work on the writer that ends when the sender goes.
    fn hold(&self, n: usize) -> (mpsc::Sender<()>, impl Future<Output = ()> + use<>) {
        let (release, held) = mpsc::channel::<()>();
        let store = self.store.clone();
        let work = tx(move |_| {
            let _ = held.recv();
            Ok(Vec::new())
        });
        (release, async move { drop(store.append_with(append(n, 1, 2), work).await.unwrap()) })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sg_x02_in_a_batch_of_64_one_fenced_item_fails_alone() {
    let held = Held::new(65).await;
    let (release, holding) = held.hold(64);
    let store = &held.store;
    // While the writer is held these queue up, and so become one batch.
    let items = futures_util::future::join_all((0..64).map(|n| {
        let epoch = if n == 30 { 0 } else { 1 };
        store.append(append(n, epoch, 2))
    }));
    let release_later = async {
        // The futures above are polled first; then the writer may go on.
        tokio::task::yield_now().await;
        drop(release);
    };
    let ((), answers, ()) = tokio::join!(holding, items, release_later);
    let fenced: Vec<usize> = (0..64).filter(|n| matches!(answers[*n], Ok(Appended::Fenced))).collect();
    let landed = answers.iter().filter(|a| matches!(a, Ok(Appended::Appended { next_seq: 3, .. }))).count();
    assert_eq!((fenced, landed), (vec![30], 63));
}

#[tokio::test(flavor = "multi_thread")]
async fn sg_f25_a_status_view_answers_while_the_writer_is_stuck() {
    let held = Held::new(3).await;
    let (release, holding) = held.hold(0);
    let view = async {
        let uid = Uid::new("uid-1");
        // All of these would hang until the patience of the test run if they waited for the writer.
        assert_eq!(held.store.load(&uid).await.unwrap().unwrap().records.len(), 1);
        assert!(held.store.summary(&uid).await.unwrap().is_some());
        assert_eq!(held.store.query(&Filter::default(), None, 10).await.unwrap().rows.len(), 3);
        assert_eq!(held.store.counts().await.unwrap()[0].count, 3);
        drop(release);
    };
    tokio::join!(holding, view);
}
