//! Semaphores: many permits at once, another size, and others who use another one.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_coordination::{ErrorKind, Lock};
use mainstay_store::LeaseStore;
use mainstay_store::lease::Released;
use mainstay_store::memory::MemoryLeaseStore;
use tokio::task::JoinSet;

use crate::faulty::{Fault, Faulty, Swap};
use crate::world::{TTL, World, virtually};

fn semaphore(w: &World, owner: &str, size: u32) -> Lock {
    w.node(owner).semaphore("s", size).ttl(TTL).build().unwrap()
}

#[test]
fn another_size_than_that_of_the_others_is_a_config_mismatch() {
    virtually(|w| async move {
        let held = semaphore(&w, "a", 3).try_acquire().await.unwrap();
        let other = semaphore(&w, "b", 4);
        for error in [
            other.try_acquire().await.unwrap_err(),
            other.acquire(w.within(60)).await.unwrap_err(),
            other.try_acquire_many(2).await.unwrap_err(),
            other.try_acquire_many(5).await.unwrap_err(),
        ] {
            assert_eq!(
                (error.kind(), error.code()),
                (&ErrorKind::ConfigMismatch, "lock_config_mismatch"),
                "{error}"
            );
            assert!(!error.is_retryable());
        }
        let text = other.try_acquire().await.unwrap_err().to_string();
        assert!(text.contains('3') && text.contains('4'), "{text}");
        assert_eq!(held.release().await.unwrap(), Released::Clean);
        drop(other.try_acquire().await.unwrap());
    });
}

#[test]
fn a_permit_whose_answer_is_overtaken_is_no_proof_that_the_store_lost_state() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        for lock in [node.semaphore("s", 2), node.read("r")] {
            let lock = lock.ttl(TTL).build().unwrap();
            store.acquisitions(vec![Fault::AppliedThenHeld]);
            let overtaking = async {
                let second = lock.try_acquire().await.unwrap();
                store.held_answers.notify_one();
                second
            };
            let (first, second) = tokio::join!(lock.try_acquire(), overtaking);
            let first = first.unwrap();
            assert!(first.token() < second.token(), "the answers came the other way round");
            first.check().unwrap();
            assert_eq!(first.release().await.unwrap(), Released::Clean);
            assert_eq!(second.release().await.unwrap(), Released::Clean);
        }
    });
}

#[test]
fn f29_a_store_that_went_back_grants_no_permit_either() {
    virtually(|w| async move {
        let (swap, clock) = (Swap::new(w.store.clone()), w.clock.clone());
        let node = w.node_on(Arc::clone(&swap) as Arc<dyn LeaseStore>, clock.clone(), "a");
        let lock = node.semaphore("s", 2).ttl(TTL).build().unwrap();
        for _ in 0..3 {
            lock.try_acquire().await.unwrap().release().await.unwrap();
        }
        swap.replace(MemoryLeaseStore::new(Arc::new(clock)));
        let refused = lock.try_acquire().await.unwrap_err();
        assert_eq!(*refused.kind(), ErrorKind::StoreRegressed, "{refused}");
    });
}

#[test]
fn two_who_want_many_permits_do_not_wait_for_each_other() {
    virtually(|w| async move {
        let mut tasks = JoinSet::new();
        for owner in ["a", "b", "c"] {
            let (lock, limit, clock) = (semaphore(&w, owner, 3), w.within(60), w.clock.clone());
            tasks.spawn(async move {
                for _ in 0..5 {
                    let guard = lock.acquire_many(2, limit).await.unwrap();
                    clock.sleep(Duration::from_millis(300)).await;
                    assert_eq!(guard.release().await.unwrap(), Released::Clean);
                }
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
}

#[test]
fn whoever_wants_all_permits_is_not_starved_by_those_who_want_one() {
    virtually(|w| async move {
        let mut tasks = JoinSet::new();
        for n in 0..4 {
            let (lock, limit, clock) = (
                w.node(&format!("small{n}")).semaphore("s", 3).ttl(TTL).fair(),
                w.within(300),
                w.clock.clone(),
            );
            let lock = lock.build().unwrap();
            tasks.spawn(async move {
                loop {
                    let Ok(guard) = lock.acquire(limit).await else { return };
                    clock.sleep(Duration::from_millis(200)).await;
                    drop(guard.release().await);
                }
            });
        }
        w.clock.sleep(Duration::from_secs(1)).await;
        let start = w.clock.now();
        let all = semaphore(&w, "big", 3).acquire_many(3, w.within(60)).await.unwrap();
        let waited = w.clock.now().saturating_duration_since(start);
        assert!(waited < Duration::from_secs(2), "{waited:?}");
        assert_eq!(all.release().await.unwrap(), Released::Clean);
    });
}

#[test]
fn a_resize_wakes_who_waits_and_takes_no_permit_away() {
    virtually(|w| async move {
        let lock = semaphore(&w, "a", 2);
        let (first, second) = (lock.try_acquire().await.unwrap(), lock.try_acquire().await.unwrap());
        let waiting = w.node("b").semaphore("s", 2).ttl(TTL).fair().build().unwrap();
        let (limit, mut tasks) = (w.within(60), JoinSet::new());
        tasks.spawn(async move { waiting.acquire(limit).await.unwrap() });
        w.clock.sleep(Duration::from_secs(1)).await;
        let start = w.clock.now();
        lock.resize(3).await.unwrap();
        let third = tasks.join_next().await.unwrap().unwrap();
        assert!(
            w.clock.now().saturating_duration_since(start) < Duration::from_millis(50),
            "woken by the resize"
        );

        lock.resize(1).await.unwrap();
        w.clock.sleep(TTL * 2).await;
        for guard in [&first, &second, &third] {
            guard.check().unwrap();
        }
        assert!(matches!(lock.try_acquire().await.unwrap_err().kind(), ErrorKind::Contended { .. }));
        for guard in [first, second] {
            assert_eq!(guard.release().await.unwrap(), Released::Clean);
            let refused = lock.try_acquire().await.unwrap_err();
            assert!(
                matches!(refused.kind(), ErrorKind::Contended { .. }),
                "one is out and one is all there are"
            );
        }
        assert_eq!(third.release().await.unwrap(), Released::Clean);
        drop(lock.try_acquire().await.unwrap());
    });
}

#[test]
fn what_is_no_semaphore_has_no_permits_and_no_size() {
    virtually(|w| async move {
        let lock = w.lock("a", "n");
        for error in [
            lock.try_acquire_many(1).await.unwrap_err(),
            lock.acquire_many(1, w.within(1)).await.unwrap_err(),
            lock.resize(2).await.unwrap_err(),
            semaphore(&w, "a", 2).try_acquire_many(0).await.unwrap_err(),
            semaphore(&w, "a", 2).resize(0).await.unwrap_err(),
        ] {
            assert_eq!(*error.kind(), ErrorKind::ApiMisuse, "{error}");
        }
        let _held = w.held("a", "s").await;
        assert_eq!(*semaphore(&w, "b", 2).resize(3).await.unwrap_err().kind(), ErrorKind::ConfigMismatch);
    });
}
