//! etcd against the suites.

use std::sync::Arc;
use std::time::Duration;

use mainstay_chaos::proxy::TcpMode;
use mainstay_chaos::recipes;
use mainstay_clock::{Runtime, SystemClock};
use mainstay_coordination::Coordinator;
use mainstay_sim::conformance;
use mainstay_store::lease::ToldBy;
use mainstay_store::{ErrorKind, LeaseStore, Outcome, PutIf, RecordStore};

use crate::world::{Patient, TTL, Test, World, direct, open, through, until, within};

pub(crate) const TESTS: &[Test] = &[
    ("etcd_conforms", |w| Box::pin(conforms(w))),
    ("records_conform", |w| Box::pin(records(w))),
    ("a_record_whose_answer_was_lost_is_never_called_a_conflict", |w| Box::pin(lost_answer(w))),
    ("a_record_that_was_replaced_leaves_no_lease_behind", |w| Box::pin(no_lease_left(w))),
    ("records_of_others_and_of_impossible_keys_are_left_alone", |w| Box::pin(strangers(w))),
    ("members_jobs_barriers_and_latches_hold_between_two_stores", |w| Box::pin(between(w))),
];

async fn conforms(world: World) {
    let store = world.store().await;
    // The lease whose end the suite waits for has five seconds.
    let patient = Patient::from(Duration::from_millis(4_950));
    let sections = conformance::leases(&store, &patient).await;
    assert_eq!(
        sections.ran,
        ["mutex", "annotate", "break_lease", "line", "list", "permit", "shared", "watch"]
    );
    assert_eq!(sections.refused, ["transfer"], "only the next in line can be moved up (F35)");
    assert_eq!(conformance::since_when(&store, &SystemClock::new()).await, ToldBy::Holder);
    println!("etcd: {} sections", sections.ran.len() + sections.refused.len());
}

async fn records(world: World) {
    let store = world.store().await;
    assert_eq!(conformance::records(&store, &Patient::from(Duration::from_secs(1))).await, 6);
    assert_eq!(store.now().await.unwrap(), None, "etcd tells nobody the time");
}

async fn lost_answer(world: World) {
    let (proxy, prefix) = (world.proxy().await, world.prefix());
    let there = through(&[&proxy], &prefix, Duration::from_secs(5)).await;
    let here = open(world.config(&prefix)).await;
    let connected = async || {
        proxy.set_mode(TcpMode::Pass);
        proxy.cut();
        until("it is connected", || async { there.get("k").await.is_ok() }).await;
        proxy.set_mode(TcpMode::RepliesLost);
    };
    let PutIf::Stored(first) = there.put_if("k", None, b"1".to_vec(), None).await.unwrap() else { panic!() };
    connected().await;
    let lost = there.put_if("k", Some(first), b"2".to_vec(), None).await.unwrap_err();
    assert_eq!((lost.kind(), lost.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{lost}");
    until("it was done", || async { here.get("k").await.unwrap().unwrap().value == b"2" }).await;
    let second = here.get("k").await.unwrap().unwrap();
    assert!(second.version > first);
    // Sent again over another connection it finds another version, its own or somebody's.
    connected().await;
    let again = there.put_if("k", Some(second.version), b"again".to_vec(), None);
    let heal = async {
        until("it was done", || async { here.get("k").await.unwrap().unwrap().value == b"again" }).await;
        proxy.set_mode(TcpMode::Pass);
        proxy.cut();
    };
    let (lost, ()) = tokio::join!(again, heal);
    assert_eq!(lost.unwrap_err().outcome(), Outcome::Unknown);
    let second = here.get("k").await.unwrap().unwrap();
    // With a ttl the lease is asked for first: nothing was written.
    connected().await;
    let lost = there.put_if("k", Some(second.version), b"3".to_vec(), Some(TTL)).await.unwrap_err();
    assert_eq!((lost.kind(), lost.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied), "{lost}");
    assert_eq!(here.get("k").await.unwrap().unwrap(), second);
    connected().await;
    let lost = there.delete_if("k", second.version).await.unwrap_err();
    assert_eq!((lost.kind(), lost.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{lost}");
    until("it was done", || async { here.get("k").await.unwrap().is_none() }).await;
}

async fn no_lease_left(world: World) {
    // A node of its own, to see all its leases.
    let node = world.kit.single().unwrap();
    let store = open(direct(&node)).await;
    let leases = || node.ctl(&["lease", "list"]).unwrap().lines().filter(|line| line.len() == 16).count();
    let day = Some(Duration::from_secs(86_400));
    let PutIf::Stored(first) = store.put_if("k", None, b"1".to_vec(), day).await.unwrap() else { panic!() };
    assert_eq!(leases(), 1);
    // A lost race gives back the lease that it drew.
    assert!(matches!(store.put_if("k", None, b"2".to_vec(), day).await.unwrap(), PutIf::Conflict(Some(_))));
    let PutIf::Stored(second) = store.put_if("k", Some(first), b"2".to_vec(), None).await.unwrap() else {
        panic!()
    };
    until("that of the first write has ended, too", || async { leases() == 0 }).await;
    assert!(second > first && store.get("k").await.unwrap().is_some(), "and the record has not");
}

async fn strangers(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    for (key, version) in [("", 1), (&"k".repeat(1_025), 1), ("k", u64::MAX), ("k", 0)] {
        let refused = store.delete_if(key, version).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ApiMisuse, "{refused}");
    }
    store.put_if("a\0b", None, b"1".to_vec(), None).await.unwrap();
    store.put_if("a", None, b"2".to_vec(), None).await.unwrap();
    // More than one answer has room for.
    for n in 0..70 {
        store.put_if(&format!("many/{n:02}"), None, b"x".to_vec(), None).await.unwrap();
    }
    let all = RecordStore::list(&store, "", None, usize::MAX).await.unwrap();
    assert_eq!(all.len(), 72);
    assert!(all.is_sorted_by(|a, b| a.key < b.key));
    assert_eq!(RecordStore::list(&store, "many/", Some("many/64"), 100).await.unwrap().len(), 5);
    assert_eq!(RecordStore::list(&store, "many/", Some("a"), 66).await.unwrap().len(), 66);
    assert!(LeaseStore::list(&store, "", 10).await.unwrap().is_empty(), "none of them is a lease");
}

async fn between(world: World) {
    let prefix = world.prefix();
    let make = async |owner: &str| {
        let store = Arc::new(open(world.config(&prefix)).await);
        let builder = Coordinator::builder(Arc::clone(&store) as Arc<dyn LeaseStore>, Runtime::system());
        builder.records(store).namespace("app").owner(owner).build().unwrap()
    };
    let (a, b) = (make("a").await, make("b").await);
    assert_eq!(recipes::between(&a, &b, within(60)).await, 5);
}
