//! Acquiring, waiting, sharing and refusing.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, SeededRng};
use mainstay_coordination::{Coordinator, ErrorKind, lock};
use mainstay_store::lease::{Fencing, Released};
use mainstay_store::{LeaseStore, Outcome};

use crate::faulty::{Fault, Faulty, Swap};
use crate::world::{TTL, virtually};

#[test]
fn a_lock_passes_on_with_a_larger_token_and_without_waiting_for_the_ttl() {
    virtually(|w| async move {
        let first = w.held("a", "n").await;
        let refused = w.lock("b", "n").try_acquire().await.unwrap_err();
        assert!(
            matches!(refused.kind(), ErrorKind::Contended { holder, remaining: Some(_), .. } if holder == "a")
        );
        assert_eq!(refused.outcome(), Outcome::NotApplied);
        assert!(refused.is_retryable() && refused.retry_after().is_some());

        let (lock, limit) = (w.lock("b", "n"), w.within(60));
        let mut waiter = tokio::task::JoinSet::new();
        waiter.spawn(async move { lock.acquire(limit).await.unwrap() });
        w.clock.sleep(Duration::from_secs(1)).await;
        let token = first.token();
        let start = w.clock.now();
        assert_eq!(first.release().await.unwrap(), Released::Clean);
        let second = waiter.join_next().await.unwrap().unwrap();
        assert!(second.token() > token);
        assert!(
            w.clock.now().saturating_duration_since(start) < Duration::from_millis(50),
            "woken by the release"
        );
    });
}

#[test]
fn k14_a_waiter_stays_until_its_own_deadline_and_is_told_who_held_it() {
    virtually(|w| async move {
        let _guard = w.held("a", "n").await;
        let start = w.clock.now();
        let error = w.lock("b", "n").acquire(w.within(45)).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::TimedOut { holder: Some("a".to_owned()) });
        let waited = w.clock.now().saturating_duration_since(start);
        assert!(waited >= Duration::from_secs(45) && waited < Duration::from_secs(46), "{waited:?}");
    });
}

#[test]
fn k14_a_store_that_hangs_holds_nobody_beyond_the_own_deadline() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let lock = node.mutex("n").ttl(TTL).build().unwrap();
        store.acquisitions(vec![Fault::Hangs]);
        let start = w.clock.now();
        let error = lock.acquire(w.within(1)).await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Unreachable, "{error}");
        let waited = w.clock.now().saturating_duration_since(start);
        assert!(waited < Duration::from_millis(1_050), "{waited:?}");
        let over = Deadline::at(w.clock.now());
        lock.acquire(over).await.expect("it is asked once").release().await.unwrap();
    });
}

#[test]
fn k17_whoever_waits_behind_others_is_told_that_the_store_does_not_answer() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let lock = node.mutex("n").ttl(TTL).build().unwrap();
        store.acquisitions(vec![Fault::Refused; 100]);
        let (first, second) = tokio::join!(lock.acquire(w.within(10)), lock.acquire(w.within(5)));
        for error in [first.unwrap_err(), second.unwrap_err()] {
            assert_eq!(*error.kind(), ErrorKind::Unreachable, "{error}");
        }
        store.acquisitions(Vec::new());
        let _held = w.held("b", "n").await;
        let (first, second) = tokio::join!(lock.acquire(w.within(10)), lock.acquire(w.within(5)));
        for error in [first.unwrap_err(), second.unwrap_err()] {
            assert!(matches!(error.kind(), ErrorKind::TimedOut { .. }), "{error}");
        }
    });
}

#[test]
fn f04_k17_a_lost_reply_is_asked_for_again_and_gives_the_same_grant() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let lock = node.mutex("n").ttl(TTL).build().unwrap();
        for fault in [Fault::AppliedThenUnknown, Fault::AppliedThenHangs, Fault::Hangs] {
            store.acquisitions(vec![fault]);
            let guard = lock.acquire(w.within(30)).await.unwrap();
            let info = w.store.inspect("test/n").await.unwrap();
            assert_eq!(info.holders.len(), 1, "one holder after {fault:?}");
            assert_eq!(info.last_token, guard.token(), "the same grant after {fault:?}");
            guard.release().await.unwrap();
        }
        store.acquisitions(vec![Fault::Refused; 100]);
        let unreachable = lock.acquire(w.within(3)).await.unwrap_err();
        assert_eq!(*unreachable.kind(), ErrorKind::Unreachable);
        assert!(store.questions.load(Ordering::Relaxed) < 40, "a failing store is not hammered");
    });
}

#[test]
fn f19_what_was_granted_after_the_caller_gave_up_is_given_back() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        store.acquisitions(vec![Fault::AppliedThenUnknown]);
        let error = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (&ErrorKind::Unreachable, Outcome::Unknown));
        w.freed("n").await;
        assert_eq!(node.in_background(), 0);
    });
}

#[test]
fn k16_several_names_are_taken_in_one_order_all_or_none() {
    virtually(|w| async move {
        let lock = w.node("a").multi(["y", "x"]).ttl(TTL).build().unwrap();
        let guard = lock.try_acquire().await.unwrap();
        let names: Vec<&str> = guard.tokens().map(|(name, _)| name).collect();
        assert_eq!(names, ["test/x", "test/y"]);
        let other = w.node("b").multi(["x", "z"]).ttl(TTL).build().unwrap();
        assert!(matches!(other.try_acquire().await.unwrap_err().kind(), ErrorKind::Contended { .. }));
        assert_eq!(w.holder("z").await, "", "none of them");
        guard.release().await.unwrap();
        drop(other.try_acquire().await.unwrap());
    });
}

#[test]
fn whoever_waits_for_several_names_is_woken_by_each_of_them() {
    virtually(|w| async move {
        for held in ["x", "y", "z"] {
            let guard = w.held("a", held).await;
            let several = w.node("b").multi(["x", "y", "z"]).ttl(TTL).build().unwrap();
            let start = w.clock.now();
            let release = async {
                w.clock.sleep(Duration::from_secs(1)).await;
                guard.release().await.unwrap()
            };
            let (granted, released) = tokio::join!(several.acquire(w.within(60)), release);
            let waited = w.clock.now().saturating_duration_since(start);
            assert_eq!((granted.unwrap().tokens().count(), released), (3, Released::Clean));
            assert!(
                waited >= Duration::from_secs(1) && waited < Duration::from_millis(1_050),
                "woken by `{held}`, which was the last one held: {waited:?}"
            );
            w.freed("x").await;
        }
    });
}

#[test]
fn what_a_store_says_of_itself_keeps_its_kind_and_only_what_may_pass_is_tried_again() {
    use mainstay_store::ErrorKind as Store;
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let lock = node.mutex("n").ttl(TTL).build().unwrap();
        for (said, code) in [
            (Store::Corrupt, "lock_store_corrupt"),
            (Store::Internal, "lock_store_failed"),
            (Store::NewerVersion, "lock_store_newer_version"),
            (Store::Occupied, "lock_store_occupied"),
            (Store::TooLarge, "lock_store_too_large"),
        ] {
            store.acquisitions(vec![Fault::Fails(said)]);
            let error = lock.acquire(Deadline::NONE).await.expect_err("no wait helps");
            assert_eq!((error.kind(), error.code()), (&ErrorKind::Store(said), code));
            assert!(!error.is_retryable(), "{said:?}");
        }
        store.acquisitions(vec![Fault::Fails(Store::Full)]);
        let full = lock.try_acquire().await.unwrap_err();
        assert_eq!((full.kind(), full.is_retryable()), (&ErrorKind::Store(Store::Full), true));
        // Somebody makes room; somebody starts the server again.
        store.acquisitions(vec![Fault::Fails(Store::Full), Fault::Fails(Store::Unavailable)]);
        lock.acquire(Deadline::NONE).await.unwrap().release().await.unwrap();
    });
}

#[test]
fn readers_share_and_a_writer_has_it_alone() {
    virtually(|w| async move {
        let node = w.node("a");
        let read = node.read("n").ttl(TTL).build().unwrap();
        let write = node.write("n").ttl(TTL).build().unwrap();
        let (r1, r2) = (read.try_acquire().await.unwrap(), read.try_acquire().await.unwrap());
        assert!(write.try_acquire().await.is_err());
        r1.release().await.unwrap();
        r2.release().await.unwrap();
        let writer = write.try_acquire().await.unwrap();
        assert!(read.try_acquire().await.is_err());
        writer.release().await.unwrap();
    });
}

#[test]
fn f21_a_dead_holders_permit_comes_back_at_its_own_expiry() {
    virtually(|w| async move {
        let permits = w.node("a").semaphore("n", 2).ttl(TTL).build().unwrap();
        let store = Faulty::new(w.store.clone());
        store.hang_renewals(true);
        let dead = w.node_on(store, w.clock.clone(), "dead").semaphore("n", 2).ttl(TTL).build().unwrap();
        let _alive = permits.try_acquire().await.unwrap();
        let ghost = dead.try_acquire().await.unwrap();
        assert!(permits.try_acquire().await.is_err());
        std::mem::forget(ghost);
        let _third = permits.acquire(w.within(11)).await.unwrap();
        assert!(permits.try_acquire().await.is_err(), "two hold it again");
    });
}

#[test]
fn f26_a_store_that_lost_its_tokens_is_noticed() {
    virtually(|w| async move {
        let young = w.store.snapshot();
        let swap = Swap::new(w.store.clone());
        let node = w.node_on(Arc::clone(&swap) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let lock = node.mutex("n").ttl(TTL).build().unwrap();
        for _ in 0..3 {
            lock.try_acquire().await.unwrap().release().await.unwrap();
        }
        swap.replace(young);
        let error = lock.try_acquire().await.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::StoreRegressed);
        assert!(!error.is_retryable());
    });
}

#[test]
fn what_cannot_hold_is_refused_when_it_is_built() {
    virtually(|w| async move {
        let node = w.node("a");
        let field = |b: mainstay_coordination::lock::Builder| b.build().unwrap_err().field();
        assert_eq!(field(node.mutex("")), "name");
        assert_eq!(field(node.mutex(&"n".repeat(1_024))), "name");
        assert_eq!(field(node.mutex("a\nb")), "name");
        assert_eq!(field(node.mutex("n").ttl(Duration::ZERO)), "ttl");
        // F6: all of it would be drift and margin.
        assert_eq!(field(node.mutex("n").ttl(Duration::from_millis(8))), "ttl");
        assert!(node.mutex("n").ttl(Duration::from_millis(9)).build().is_ok());
        assert_eq!(field(node.mutex("n").ttl(Duration::from_secs(86_400 * 31))), "ttl");
        assert_eq!(field(node.mutex("n").require(Fencing::Strict)), "require");
        assert_eq!(field(node.mutex("n").max_hold(Duration::ZERO)), "max_hold");
        assert_eq!(field(node.semaphore("n", 0)), "limit");
        assert_eq!(field(node.multi(["n", "n"])), "names");
        assert_eq!(field(node.multi([""; 0])), "names");
        // K11: two applications on one store must not meet by accident.
        let rt = mainstay_clock::Runtime::system();
        let store = Arc::new(w.store.clone());
        let nameless = Coordinator::builder(store.clone(), rt.clone()).owner("a").build().unwrap_err();
        assert_eq!(nameless.field(), "namespace");
        let slash = Coordinator::builder(store, rt).namespace("a/b").owner("a").build().unwrap_err();
        assert_eq!(slash.field(), "namespace");
    });
}

/// A lock that is asked for.
type Ask = fn(&Coordinator) -> lock::Builder;

#[test]
fn what_the_store_does_not_declare_is_refused_when_it_is_built() {
    virtually(|w| async move {
        let mut declared = w.store.guarantees();
        declared.fair = false;
        declared.max_ttl = Duration::from_secs(30);
        let field = |native: &'static [&'static str], ask: Ask| {
            let mut declared = declared.clone();
            declared.native = native;
            let store = Faulty::declaring(w.store.clone(), declared);
            ask(&w.node_on(store, w.clock.clone(), "a")).build().err().map(|e| e.field())
        };
        // As one Redis declares itself, and as a majority does.
        let (redis, majority): (&[&str], &[&str]) = (&["permit", "shared", "watch"], &["watch"]);
        let asks: [(Ask, _, _); 8] = [
            (|c| c.mutex("n"), None, None),
            (|c| c.multi(["a", "b"]), None, None),
            (|c| c.write("n"), None, None),
            (|c| c.read("n"), None, Some("read")),
            (|c| c.semaphore("n", 2), None, Some("semaphore")),
            (|c| c.mutex("n").fair(), Some("fair"), Some("fair")),
            (|c| c.mutex("n").ttl(Duration::from_secs(31)), Some("ttl"), Some("ttl")),
            (|c| c.read("n").fair(), Some("fair"), Some("read")),
        ];
        for (at, (ask, on_redis, on_majority)) in asks.into_iter().enumerate() {
            assert_eq!(field(redis, ask), on_redis, "{at}");
            assert_eq!(field(majority, ask), on_majority, "{at}");
        }
        let store = Faulty::declaring(w.store.clone(), declared);
        let term = w.node_on(store, w.clock.clone(), "a").election("e").ttl(TTL).build().unwrap();
        assert!(
            term.campaign(w.within(1)).await.is_ok(),
            "an election stands in line only where there is one"
        );
    });
}

#[test]
fn a_thousand_waiters_of_one_process_ask_one_at_a_time_and_none_is_forgotten() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let lock = node.mutex("n").ttl(Duration::from_secs(60)).build().unwrap();
        let first = lock.try_acquire().await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..1_000 {
            let lock = lock.clone();
            tasks.spawn(async move { lock.acquire(Deadline::NONE).await.unwrap().release().await.unwrap() });
        }
        w.clock.sleep(Duration::from_secs(30)).await;
        let parked = store.questions.load(Ordering::Relaxed);
        assert!(parked < 40, "{parked} questions while a thousand waited for half a minute");
        first.release().await.unwrap();
        let mut served = 0;
        while let Some(done) = tasks.join_next().await {
            assert_eq!(done.unwrap(), Released::Clean);
            served += 1;
        }
        assert_eq!(served, 1_000);
    });
}

#[test]
fn k13_a_late_release_does_not_replace_the_works_result() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        let done = guard.run(|_| async { 7 }).await.unwrap();
        w.store.break_lease("test/n").await.unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::AlreadyGone);
        assert_eq!(done, 7);
    });
}

#[test]
fn a_writer_becomes_a_reader_in_one_step_and_no_writer_comes_in_between() {
    virtually(|w| async move {
        let node = w.node("a");
        let (read, write) =
            (node.read("n").ttl(TTL).build().unwrap(), node.write("n").ttl(TTL).build().unwrap());
        let guard = write.try_acquire().await.unwrap();
        // Another writer stands in line; it must not get in between.
        let other = w.node("b").write("n").ttl(TTL).build().unwrap();
        let (late, reader) = tokio::join!(other.acquire(w.within(5)), async {
            guard.downgrade().await.unwrap();
            guard.downgrade().await.unwrap();
            read.acquire(w.within(1)).await.unwrap()
        });
        assert!(late.is_err(), "readers are there");
        w.clock.sleep(TTL * 3).await;
        guard.check().unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
        assert!(write.try_acquire().await.is_err(), "the other reader is there");
        reader.release().await.unwrap();
        write.try_acquire().await.unwrap().release().await.unwrap();
        let permit = node.semaphore("s", 2).ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        assert_eq!(*permit.downgrade().await.unwrap_err().kind(), ErrorKind::ApiMisuse);
        let lost = w.held("a", "x").await;
        w.store.break_lease("test/x").await.unwrap();
        assert!(matches!(lost.downgrade().await.unwrap_err().kind(), ErrorKind::Lost(_)));
    });
}

#[test]
fn k09_every_right_has_a_token_and_it_grows() {
    virtually(|w| async move {
        let node = w.node("a");
        let mut last = mainstay_store::FencingToken::ZERO;
        for _ in 0..3 {
            let guards = [
                node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap(),
                node.read("r").ttl(TTL).build().unwrap().try_acquire().await.unwrap(),
                node.semaphore("s", 2).ttl(TTL).build().unwrap().try_acquire().await.unwrap(),
            ];
            for guard in guards {
                assert!(guard.token() > last);
                last = guard.token();
                guard.release().await.unwrap();
            }
        }
    });
}

#[test]
fn k11_two_applications_on_one_store_do_not_meet_and_must_have_a_name() {
    virtually(|w| async move {
        let rng = Arc::new(SeededRng::new(9));
        let rt = mainstay_clock::Runtime::on_tokio(Arc::new(w.clock.clone()), rng);
        let build = |namespace: &str| {
            Coordinator::builder(Arc::new(w.store.clone()), rt.clone())
                .namespace(namespace)
                .owner("me")
                .build()
        };
        let (one, two) = (build("billing").unwrap(), build("search").unwrap());
        let first = one.election("leader").build().unwrap().campaign(w.within(1)).await.unwrap();
        let second = two.election("leader").build().unwrap().campaign(w.within(1)).await.unwrap();
        assert!(first.check().is_ok() && second.check().is_ok());
        assert_eq!(build("").unwrap_err().field(), "namespace");
        assert_eq!(one.guarantees().fencing, Fencing::WhileStateSurvives, "it is said what is promised");
    });
}

#[test]
fn f27_a_guard_that_is_dropped_in_another_task_is_given_back_without_waiting() {
    virtually(|w| async move {
        let node = w.node("a");
        let guard = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        let start = w.clock.now();
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { drop(guard) });
        tasks.join_next().await.unwrap().unwrap();
        assert_eq!(w.clock.now(), start, "dropping waits for nothing");
        w.freed("n").await;
        assert_eq!(node.in_background(), 0);
    });
}
