//! A machine's calendar that is set back, or forward and back: what waits does not wait for it.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Runtime, SeededRng};
use mainstay_sqlite::{Driver, SqliteStore};
use mainstay_store::Journal;
use mainstay_store::journal::{Append, ClaimRequest, Claimant, Create, Row, Uid};

use crate::conformance::Files;
use crate::durability::create;

const HOUR: i64 = 3_600_000;

fn open(file: &std::path::Path, clock: &VirtualClock) -> SqliteStore {
    let runtime = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)));
    SqliteStore::builder(file).driver(Driver::Inline).open(&runtime).unwrap()
}

/// A saga that waits ten seconds, by the store's time.
async fn waiting(store: &SqliteStore, id: &str) -> Create {
    let now = store.now().await.unwrap().unwrap();
    let row = Row::running(now.saturating_add(Duration::from_secs(10)));
    let waits = Create { row, ..create(id) };
    store.create(waits.clone()).await.unwrap();
    waits
}

async fn claimed(store: &SqliteStore, node: &str) -> Vec<Uid> {
    let claimant = Claimant { node: node.to_owned(), incarnation: 1, ttl: Duration::from_secs(5) };
    let claimed = store.claim(ClaimRequest { claimant, limit: 10 }).await.unwrap();
    claimed.into_iter().map(|c| c.saga).collect()
}

#[tokio::test(start_paused = true)]
async fn sg_f22_a_calendar_that_is_set_back_holds_up_no_saga_and_no_takeover() {
    for restart in [false, true] {
        let (files, clock) = (Files::new(), VirtualClock::new());
        let file = files.fresh();
        let mut store = open(&file, &clock);
        let saga = waiting(&store, "one").await;
        clock.jump_wall(-HOUR);
        if restart {
            drop(store);
            store = open(&file, &clock);
        }
        clock.sleep(Duration::from_secs(9)).await;
        assert!(claimed(&store, "a").await.is_empty(), "restart {restart}: never early");
        clock.sleep(Duration::from_millis(1_001)).await;
        assert_eq!(claimed(&store, "a").await, std::slice::from_ref(&saga.uid), "restart {restart}");
        // The claim ends with its time, not an hour later.
        clock.jump_wall(-HOUR);
        clock.sleep(Duration::from_secs(4)).await;
        assert!(claimed(&store, "b").await.is_empty(), "restart {restart}: the claim still holds");
        clock.sleep(Duration::from_secs(2)).await;
        assert_eq!(claimed(&store, "b").await, [saga.uid], "restart {restart}");
    }
}

#[tokio::test(start_paused = true)]
async fn sg_f22_an_hour_that_was_only_shown_is_not_waited_for() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let store = open(&file, &clock);
    let early = waiting(&store, "early").await;
    clock.jump_wall(HOUR);
    assert_eq!(claimed(&store, "a").await, std::slice::from_ref(&early.uid), "a jump forward is followed");
    // Committed at that hour, which is then taken back, before the next run.
    let row = Row::running(store.now().await.unwrap().unwrap().saturating_add(Duration::from_secs(10)));
    store.append(Append::new(early.uid.clone(), 1, 2, early.records.clone(), row)).await.unwrap();
    store.hand_back("a", 1, std::slice::from_ref(&early.uid)).await.unwrap();
    drop(store);
    clock.jump_wall(-HOUR);
    let store = open(&file, &clock);
    let before = store.now().await.unwrap().unwrap();
    assert!(before > clock.wall(), "time never goes back");
    clock.sleep(Duration::from_millis(10_001)).await;
    assert_eq!(claimed(&store, "a").await, [early.uid]);
}

/// A claim and a message leave no record with their time. The machine goes down, its calendar is set back, and another node
/// opens the file: it waited for the length of the jump.
#[tokio::test(start_paused = true)]
async fn sg_f22_a_claim_and_a_message_of_before_the_jump_hold_no_longer_than_they_should() {
    let (files, clock) = (Files::new(), VirtualClock::new());
    let file = files.fresh();
    let store = open(&file, &clock);
    let sagas = [waiting(&store, "renewed").await.uid, waiting(&store, "asked").await.uid];
    clock.sleep(Duration::from_secs(11)).await;
    assert_eq!(claimed(&store, "a").await, sagas);
    store.hand_back("a", 1, std::slice::from_ref(&sagas[1])).await.unwrap();
    let idle = Row { due: None, ..Row::running(clock.wall()) };
    let append = Append::new(sagas[1].clone(), 1, 2, create("asked").records, idle);
    store.append(append).await.unwrap();
    // Two hours later the node still lives, and somebody asks for something.
    clock.sleep(Duration::from_secs(7_200)).await;
    assert!(store.renew_node("a", 1, Duration::from_secs(5)).await.unwrap());
    store.post(&sagas[1], "m", 1, Vec::new()).await.unwrap();
    let shown = store.now().await.unwrap().unwrap();
    drop(store);
    clock.jump_wall(-HOUR);
    let store = open(&file, &clock);
    let now = store.now().await.unwrap().unwrap();
    assert!(now.saturating_add(Duration::from_secs(1)) >= shown, "{now:?} after {shown:?}");
    assert!(!claimed(&store, "b").await.contains(&sagas[0]), "the claim still holds");
    clock.sleep(Duration::from_secs(1)).await;
    claimed(&store, "b").await;
    let row = async |i: usize| store.summary(&sagas[i]).await.unwrap().unwrap();
    assert_eq!(row(1).await.owner.as_deref(), Some("b"), "the message was heard at once");
    clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(claimed(&store, "b").await, std::slice::from_ref(&sagas[0]));
}
