//! A machine's calendar that is set back, or forward and back: what waits does not wait for it.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Runtime, SeededRng};
use mainstay_sqlite::{Driver, SqliteConfig, SqliteStore};
use mainstay_store::Journal;
use mainstay_store::journal::{Append, ClaimRequest, Claimant, Create, Row, Uid};

use crate::conformance::Files;
use crate::durability::create;

const HOUR: i64 = 3_600_000;

fn open(file: &std::path::Path, clock: &VirtualClock) -> SqliteStore {
    let runtime = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)));
    SqliteStore::open(SqliteConfig::new(file).with_driver(Driver::Inline), &runtime).unwrap()
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
