//! Waiting for each other.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Deadline};
use mainstay_coordination::ErrorKind;
use mainstay_coordination::barrier::{Barrier, Builder};
use mainstay_store::LeaseStore;

use crate::drops::{dropped_after, settled};
use crate::faulty::Faulty;
use crate::world::{TTL, World, virtually};

fn barrier(w: &World, owner: &str, size: u32) -> Barrier {
    w.node(owner).barrier("phase", size).ttl(TTL).build().unwrap()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|n| (*n).to_owned()).collect()
}

/// A member that enters the round and dies: nothing of it is renewed or taken back.
async fn dies(w: &World, id: &'static str, build: impl Fn(Builder) -> Builder) -> Arc<Faulty> {
    let store = Faulty::new(w.store.clone());
    let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), id);
    let barrier = build(node.barrier("phase", 3).ttl(TTL)).build().unwrap();
    let mut future = Box::pin(async move { barrier.wait(id, Deadline::NONE).await });
    let waits = w.clock.sleep(Duration::from_millis(100));
    tokio::select! {
        biased;
        _ = &mut future => panic!("nobody else is there"),
        () = waits => {}
    }
    store.hang_renewals(true);
    std::mem::forget(future);
    store
}

#[test]
fn all_pass_when_the_last_one_comes_and_it_can_be_used_again() {
    virtually(|w| async move {
        let (a, b, c) = (barrier(&w, "a", 3), barrier(&w, "b", 3), barrier(&w, "c", 3));
        for round in 1..=5 {
            let start = w.clock.now();
            let later = |b: &Barrier, id: &'static str, seconds| {
                let (b, clock) = (b.clone(), w.clock.clone());
                async move {
                    clock.sleep(Duration::from_secs(seconds)).await;
                    b.wait(id, Deadline::NONE).await.unwrap()
                }
            };
            let (x, y, z) = tokio::join!(later(&a, "a", 0), later(&b, "b", 40), later(&c, "c", 80));
            assert_eq!((x.generation, &x.members, x.dead.len()), (round, &names(&["a", "b", "c"]), 0));
            assert!(x == y && y == z);
            let took = w.clock.now().saturating_duration_since(start);
            assert!(took >= Duration::from_secs(80) && took < Duration::from_millis(80_100), "{took:?}");
        }
    });
}

#[test]
fn f21_a_dead_member_is_subtracted_and_reported_and_live_ones_are_needed() {
    virtually(|w| async move {
        let _store = dies(&w, "dead", |b| b).await;
        let (a, b, c) = (barrier(&w, "a", 3), barrier(&w, "b", 3), barrier(&w, "c", 3));
        let (limit, clock) = (w.within(600), &w.clock);
        // While its lease lasts nobody can know: it counts.
        let later = async |ttls, barrier: &Barrier, id| {
            clock.sleep(TTL * ttls).await;
            barrier.wait(id, limit).await
        };
        let (x, y, z) = tokio::join!(a.wait("a", limit), later(2, &b, "b"), later(3, &c, "c"));
        let passage = x.unwrap();
        assert_eq!((&passage.members, &passage.dead), (&names(&["a", "b", "c"]), &names(&["dead"])));
        assert!(passage == y.unwrap() && passage == z.unwrap());
    });
}

#[test]
fn it_breaks_for_those_who_wait_when_that_is_wanted() {
    virtually(|w| async move {
        let _store = dies(&w, "dead", Builder::breaks).await;
        let build = |o| w.node(o).barrier("phase", 3).ttl(TTL).breaks().build().unwrap();
        let (a, limit) = (build("a"), w.within(600));
        let error = a.wait("a", limit).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Broken { dead: vec!["dead".to_owned()] });
        let (b, c) = (build("b"), build("c"));
        let (x, y, z) = tokio::join!(a.wait("a", limit), b.wait("b", limit), c.wait("c", limit));
        assert_eq!(x.unwrap().members.len(), 3);
        assert!(y.is_ok() && z.is_ok());
    });
}

#[test]
fn a_double_barrier_lets_nobody_out_before_all_want_to_and_nobody_in_before_all_are_out() {
    virtually(|w| async move {
        let (a, b) = (barrier(&w, "a", 2), barrier(&w, "b", 2));
        let limit = w.within(6_000);
        let (x, y) = tokio::join!(a.enter("a", limit), b.enter("b", limit));
        let (x, y) = (x.unwrap(), y.unwrap());
        assert_eq!(x.passage(), y.passage());
        let start = w.clock.now();
        let slow = async {
            w.clock.sleep(TTL * 4).await;
            y.leave(limit).await.unwrap()
        };
        let (first, second) = tokio::join!(x.leave(limit), slow);
        assert_eq!(first.unwrap(), second);
        assert!(w.clock.now().saturating_duration_since(start) >= TTL * 4);
        // Who is still inside keeps the next round waiting; who died there does not.
        let (x, y) = tokio::join!(a.enter("a", limit), b.enter("b", limit));
        let x = x.unwrap();
        let short = x.leave(w.within(3)).await.unwrap_err();
        assert!(matches!(short.kind(), ErrorKind::TimedOut { .. }), "{short}");
        let (c, d) = (barrier(&w, "c", 2), barrier(&w, "d", 2));
        let early = tokio::join!(c.enter("c", w.within(20)), d.enter("d", w.within(20)));
        assert!(early.0.is_err() && early.1.is_err(), "b is inside");
        drop(y);
        let (c, d) = tokio::join!(c.enter("c", limit), d.enter("d", limit));
        assert_eq!(c.unwrap().passage().generation, 3);
        drop(d);
    });
}

#[test]
fn another_size_is_told_and_a_late_member_is_not_counted() {
    virtually(|w| async move {
        let (a, other) = (barrier(&w, "a", 2), barrier(&w, "b", 3));
        let waits = a.wait("a", w.within(5));
        let (timed_out, mismatch) = tokio::join!(waits, async {
            w.clock.sleep(Duration::from_secs(1)).await;
            other.wait("b", w.within(5)).await
        });
        assert_eq!(*mismatch.unwrap_err().kind(), ErrorKind::ConfigMismatch);
        assert!(matches!(timed_out.unwrap_err().kind(), ErrorKind::TimedOut { .. }));
        let alone = a.wait("b", w.within(5)).await.unwrap_err();
        assert!(matches!(alone.kind(), ErrorKind::TimedOut { .. }), "who gave up is not counted: {alone}");
        let node = w.node("a");
        assert_eq!(node.barrier("x", 0).build().unwrap_err().field(), "size");
        assert_eq!(node.barrier("", 1).build().unwrap_err().field(), "name");
        assert_eq!(*a.wait("", w.within(1)).await.unwrap_err().kind(), ErrorKind::ApiMisuse);
    });
}

#[test]
fn f19_waiting_dropped_at_every_await_point_is_giving_up() {
    virtually(|w| async move {
        let node = w.node("a");
        let barrier = node.barrier("phase", 2).ttl(TTL).build().unwrap();
        for polls in 1..30 {
            assert!(!dropped_after(barrier.wait("a", Deadline::NONE), polls).await);
            settled(&w, &node).await;
            w.freed("barrier/phase/a").await;
            let alone = barrier.wait("b", w.within(3)).await.unwrap_err();
            assert!(matches!(alone.kind(), ErrorKind::TimedOut { .. }), "after {polls} polls: {alone}");
        }
        let two = tokio::join!(barrier.wait("a", w.within(9)), barrier.wait("b", w.within(9)));
        assert!(two.0.is_ok() && two.1.is_ok());
    });
}
