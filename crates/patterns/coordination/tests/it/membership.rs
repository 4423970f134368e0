//! Who is there, and how they went.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_coordination::membership::{Change, Event, Group, MAX_META, Watch};
use mainstay_coordination::{ErrorKind, LossReason};
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired};

use crate::drops::{dropped_after, settled};
use crate::faulty::Faulty;
use crate::world::{TTL, World, virtually};

fn group(w: &World, owner: &str) -> Group {
    w.node(owner).group("workers").ttl(TTL).build().unwrap()
}

async fn snapshot(watch: &mut Watch) -> Vec<String> {
    let Event::Snapshot(seen) = watch.next().await.unwrap() else { panic!("a snapshot comes first") };
    assert_eq!(seen.revision, 0);
    seen.members.into_iter().map(|m| m.name).collect()
}

/// The next change, in words.
async fn change(watch: &mut Watch) -> String {
    let Event::Delta(delta) = watch.next().await.unwrap() else { panic!("one snapshot is enough") };
    match delta.change {
        Change::Joined(m) => format!("{} +{} {}", delta.revision, m.name, String::from_utf8_lossy(&m.meta)),
        Change::Updated(m) => format!("{} ~{} {}", delta.revision, m.name, String::from_utf8_lossy(&m.meta)),
        Change::Gone { member, how } => format!("{} -{} {how:?}", delta.revision, member.name),
    }
}

#[test]
fn a_watch_tells_a_snapshot_and_then_every_change_at_once() {
    virtually(|w| async move {
        let here = group(&w, "a");
        let first = here.try_join("one", "1").await.unwrap();
        let mut watch = group(&w, "z").watch();
        assert_eq!(snapshot(&mut watch).await, ["one"]);
        let start = w.clock.now();
        let there = group(&w, "b");
        let (told, second) = tokio::join!(change(&mut watch), there.try_join("two", "2"));
        assert_eq!(told, "1 +two 2");
        let (told, updated) = tokio::join!(change(&mut watch), first.update("1b"));
        updated.unwrap();
        assert_eq!(told, "2 ~one 1b");
        let (told, left) = tokio::join!(change(&mut watch), second.unwrap().leave());
        left.unwrap();
        assert_eq!(told, "3 -two Left");
        let took = w.clock.now().saturating_duration_since(start);
        assert!(took < Duration::from_millis(100), "told by a hint, not by a timer: {took:?}");
        assert_eq!(here.members().await.unwrap().len(), 1);
    });
}

#[test]
fn a_name_that_lives_is_refused_and_one_that_died_is_waited_for() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "dead");
        let dead = node.group("workers").ttl(TTL).build().unwrap().try_join("one", "").await.unwrap();
        let group = group(&w, "b");
        let refused = group.try_join("one", "").await.unwrap_err();
        assert!(
            matches!(refused.kind(), ErrorKind::Contended { holder, .. } if holder == "dead"),
            "{refused}"
        );
        let other = w.node("b").group("other").ttl(TTL).build().unwrap();
        drop(other.try_join("one", "").await.unwrap());
        store.hang_renewals(true);
        let old = dead.incarnation();
        std::mem::forget(dead);
        let next = group.join("one", "", w.within(30)).await.unwrap();
        assert!(next.incarnation() > old, "f22: another incarnation");
    });
}

#[test]
fn f03_a_join_that_is_answered_after_its_entry_ended_is_no_join() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        store.hang_renewals(true);
        store.hold_annotations();
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "slow");
        let group = node.group("workers").ttl(TTL).build().unwrap();
        let late = async {
            w.clock.sleep(TTL).await;
            store.held_answers.notify_one();
        };
        let (joined, ()) = tokio::join!(group.try_join("one", ""), late);
        assert_eq!(*joined.unwrap_err().kind(), ErrorKind::Lost(LossReason::DeadlinePassed));
    });
}

#[test]
fn left_expired_and_taken_away_can_be_told_apart() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "dead");
        let dying = node.group("workers").ttl(TTL).build().unwrap().try_join("dies", "").await.unwrap();
        let group = group(&w, "b");
        let leaves = group.try_join("leaves", "").await.unwrap();
        let broken = group.try_join("taken", "").await.unwrap();
        let mut watch = group.watch();
        assert_eq!(snapshot(&mut watch).await, ["dies", "leaves", "taken"]);
        leaves.leave().await.unwrap();
        assert_eq!(change(&mut watch).await, "1 -leaves Left");
        w.store.break_lease("test/member/workers/taken").await.unwrap();
        assert_eq!(change(&mut watch).await, "2 -taken Unknown");
        assert_eq!(broken.lost().await, LossReason::Forced);
        store.hang_renewals(true);
        assert_eq!(change(&mut watch).await, "3 -dies Expired");
        assert_eq!(dying.lost().await, LossReason::DeadlinePassed);
        // The name comes back and leaves again, before the first goodbye is forgotten.
        let again = group.try_join("leaves", "").await.unwrap();
        assert_eq!(change(&mut watch).await, "4 +leaves ");
        again.leave().await.unwrap();
        assert_eq!(change(&mut watch).await, "5 -leaves Left");
    });
}

#[test]
fn a_group_does_not_see_another_whose_name_begins_like_it() {
    virtually(|w| async move {
        let node = w.node("a");
        let (outer, inner) = (node.group("a").build().unwrap(), node.group("a/b").build().unwrap());
        let _in = inner.try_join("x", "").await.unwrap();
        let _slash = outer.try_join("b/x", "").await.unwrap();
        let names = |members: Vec<mainstay_coordination::membership::Member>| {
            members.into_iter().map(|m| m.name).collect::<Vec<_>>()
        };
        assert_eq!(names(outer.members().await.unwrap()), ["b/x"]);
        assert_eq!(names(inner.members().await.unwrap()), ["x"]);
        assert_eq!(node.group("").build().unwrap_err().field(), "name");
        let long = outer.try_join("x", vec![0; MAX_META + 1]).await.unwrap_err();
        assert_eq!(*long.kind(), ErrorKind::ApiMisuse);
        assert_eq!(*outer.try_join("", "").await.unwrap_err().kind(), ErrorKind::ApiMisuse);
    });
}

#[test]
fn f19_join_leave_and_watch_dropped_at_every_await_point_leave_nothing() {
    virtually(|w| async move {
        let node = w.node("a");
        let group = node.group("workers").ttl(TTL).build().unwrap();
        let free = async || {
            settled(&w, &node).await;
            w.freed("member/workers/one").await;
        };
        let mut ended = false;
        for polls in 1..50 {
            ended = dropped_after(group.join("one", "m", w.within(60)), polls).await;
            free().await;
        }
        assert!(ended, "the last round must run to its end");
        for polls in 1..50 {
            let member = group.try_join("one", "m").await.unwrap();
            ended = dropped_after(member.leave(), polls).await;
            free().await;
        }
        assert!(ended, "the last round must run to its end");
        let mut watch = group.watch();
        assert!(snapshot(&mut watch).await.is_empty());
        for polls in 1..10 {
            let member = group.try_join("one", "m").await.unwrap();
            let _ = dropped_after(watch.next(), polls).await;
            member.leave().await.unwrap();
            // Whatever was dropped, the picture is whole again: an even number of comings and goings.
            let mut there = false;
            while dropped_after(watch.next(), 3).await {
                there = !there;
            }
            w.clock.sleep(Duration::from_secs(2)).await;
        }
        let _last = group.try_join("last", "m").await.unwrap();
        let mut told = change(&mut watch).await;
        while !told.contains("+last") {
            told = change(&mut watch).await;
        }
        let revision: u64 = told.split(' ').next().unwrap().parse().unwrap();
        assert!(revision <= 19, "no change is told twice: {told}");
    });
}

#[test]
fn a_lease_held_by_the_stores_contract_is_a_member_too() {
    virtually(|w| async move {
        let group = group(&w, "a");
        let mut watch = group.watch();
        assert!(snapshot(&mut watch).await.is_empty());
        let lease = group.lease("x").unwrap();
        let ask = AcquireRequest::exclusive(&lease, "by-hand", "op", TTL);
        let Acquired::Granted(grants) = w.store.acquire(ask).await.unwrap() else { panic!("it is free") };
        assert!(group.members().await.unwrap().is_empty(), "it has said nothing about itself");
        assert!(w.store.annotate(&lease, grants[0].token, b"m".to_vec()).await.unwrap());
        group.announce();
        assert_eq!(change(&mut watch).await, "1 +x m");
        group.goodbye("x", grants[0].token).await.unwrap();
        w.store.release("op").await.unwrap();
        group.announce();
        assert_eq!(change(&mut watch).await, "2 -x Left");
        assert_eq!(*group.lease("").unwrap_err().kind(), ErrorKind::ApiMisuse);
    });
}
