//! Locks and elections on one Redis and on a quorum: what the original sketch got wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_coordination::{ErrorKind as LockError, LossReason};
use mainstay_store::LeaseStore;
use mainstay_store::lease::{Fencing, Released, Renewed};

use crate::Test;
use crate::quorum::{quorum, servers};
use crate::world::{
    coordinator, exists, ms, number, other, pause, redis, run, scripts_run, soon, store, take, text, until,
};

pub(crate) const TESTS: &[Test] = &[
    ("f17_nothing_is_sent_after_the_release", f17),
    ("f27_a_dropped_guard_is_given_back_behind_its_owners_back", f27),
    ("k01_a_lease_of_somebody_else_is_never_extended", k01),
    ("k02_k15_a_loss_is_told_and_ends_the_work", k02),
    ("k07_a_restarted_node_of_the_same_name_is_a_new_candidate", k07),
    ("k08_a_leader_that_resigns_is_followed_at_once", k08),
    ("k10_a_value_is_seen_by_others_and_ends_with_its_term", k10),
    ("k11_two_applications_on_one_redis_do_not_meet", k11),
    ("k13_a_release_after_the_end_says_so_and_hides_nothing", k13),
    ("k16_several_names_are_taken_in_one_order", k16),
    ("readers_and_permits_share_and_a_writer_waits_for_both", sharing),
];

const TTL: Duration = Duration::from_secs(10);

fn f17() {
    let server = redis(&[]);
    run(async {
        let lock = coordinator(store(&server), "me").mutex("a").ttl(ms(300)).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let mut other = other(&server).await;
        until("it was renewed", async || scripts_run(&mut other.clone()).await >= 3).await;
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
        let after = scripts_run(&mut other).await;
        pause(ms(400)).await;
        assert_eq!(scripts_run(&mut other).await, after);
    });
}

fn f27() {
    let (server, three) = (redis(&[]), servers(3));
    run(async {
        let stores: [Arc<dyn LeaseStore>; 2] = [Arc::new(store(&server)), Arc::new(quorum(&three))];
        for store in stores {
            let rt = mainstay_clock::Runtime::system();
            let locks = mainstay_coordination::Coordinator::builder(Arc::clone(&store), rt);
            let locks = locks.namespace("test").owner("me").build().unwrap();
            drop(locks.mutex("a").ttl(TTL).build().unwrap().acquire(soon()).await.unwrap());
            until("it is free", async || store.inspect("test/a").await.unwrap().holders.is_empty()).await;
            until("nothing goes on", async || locks.in_background() == 0).await;
        }
    });
}

fn k01() {
    let server = redis(&[]);
    run(async {
        let (paused, next) = (store(&server), store(&server));
        take(&paused, "a", "paused", ms(100)).await;
        pause(ms(101)).await;
        take(&next, "a", "next", ms(2_000)).await;
        let mut other = other(&server).await;
        let before = number(&mut other, &["PTTL", "a"]).await;
        assert_eq!(paused.renew("paused").await.unwrap(), Renewed::Lost);
        assert!(number(&mut other, &["PTTL", "a"]).await <= before);
        assert_eq!(text(&mut other, &["GET", "a"]).await, "next");
    });
}

fn k02() {
    let server = redis(&[]);
    run(async {
        let lock = coordinator(store(&server), "me").mutex("a").ttl(ms(600)).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let (work, breaker) = (Arc::clone(&done), store(&server));
        let run = guard.run(|_| async move {
            pause(Duration::from_secs(30)).await;
            work.store(true, Ordering::SeqCst);
        });
        let (result, burned) = tokio::join!(run, breaker.break_lease("test/a"));
        let error = result.unwrap_err();
        assert_eq!(*error.kind(), LockError::Lost(LossReason::TakenOver), "told by the next renewal");
        assert_eq!(guard.lost().await, LossReason::TakenOver);
        assert!(!done.load(Ordering::SeqCst));
        assert!(burned.unwrap() > guard.token());
        // A store that does not answer: the holder stops by its own clock.
        let guard = lock.acquire(soon()).await.unwrap();
        server.pause().unwrap();
        let reason = guard.lost().await;
        server.resume().unwrap();
        assert_eq!(reason, LossReason::DeadlinePassed);
    });
}

fn k07() {
    let server = redis(&[]);
    run(async {
        let election = |_| coordinator(store(&server), "node-7").election("e").ttl(ms(500)).build().unwrap();
        let first = election(1).campaign(soon()).await.unwrap();
        let token = first.token();
        // The process dies: nothing is renewed and nothing is given back.
        std::mem::forget(first);
        server.pause().unwrap();
        pause(ms(501)).await;
        server.resume().unwrap();
        let second = election(2).campaign(soon()).await.unwrap();
        assert!(second.token() > token, "the same name, another term");
    });
}

fn k08() {
    let server = redis(&[]);
    run(async {
        let build = |owner: &str| coordinator(store(&server), owner).election("e").build().unwrap();
        let (first, second) = (build("n1"), build("n2"));
        let term = first.campaign(soon()).await.unwrap();
        let resign = async {
            pause(ms(200)).await;
            term.resign().await.unwrap()
        };
        // Well before the 30 seconds of the lease: the deadline of the test is shorter.
        let (next, resigned) = tokio::join!(second.campaign(soon()), resign);
        assert_eq!(resigned, Released::Clean);
        next.unwrap().resign().await.unwrap();
    });
}

fn k10() {
    let server = redis(&[]);
    run(async {
        let build = |owner: &str| coordinator(store(&server), owner).election("e").ttl(TTL).build().unwrap();
        let (leading, watching) = (build("n1"), build("n2"));
        let term = leading.campaign(soon()).await.unwrap();
        let known = watching.leader().await.unwrap();
        let (seen, proclaimed) =
            tokio::join!(watching.changed(known.as_ref()), term.proclaim(b"10.0.0.7".to_vec()));
        proclaimed.unwrap();
        let seen = seen.unwrap().unwrap();
        assert_eq!((seen.value.as_deref(), seen.token), (Some(&b"10.0.0.7"[..]), term.token()));
        let (gone, resigned) = tokio::join!(watching.changed(Some(&seen)), term.resign());
        assert_eq!((gone.unwrap(), resigned.unwrap()), (None, Released::Clean));
    });
}

fn k11() {
    let server = redis(&[]);
    run(async {
        let build = |namespace: &str| {
            let store = Arc::new(store(&server));
            mainstay_coordination::Coordinator::builder(store, mainstay_clock::Runtime::system())
                .namespace(namespace)
                .owner("me")
                .build()
        };
        let (one, two) = (build("billing").unwrap(), build("search").unwrap());
        let first = one.mutex("leader").build().unwrap().try_acquire().await.unwrap();
        let second = two.mutex("leader").build().unwrap().try_acquire().await.unwrap();
        assert!(build("").is_err());
        assert_eq!(one.guarantees().fencing, Fencing::WhileStateSurvives);
        let refused = one.mutex("x").require(Fencing::Strict).build().unwrap_err();
        assert_eq!(refused.field, "require");
        first.release().await.unwrap();
        second.release().await.unwrap();
    });
}

fn k13() {
    let server = redis(&[]);
    run(async {
        let lock = coordinator(store(&server), "me").mutex("a").ttl(TTL).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let result = guard.run(|_| async { 42 }).await;
        let mut other = other(&server).await;
        number(&mut other, &["DEL", "test/a"]).await;
        assert_eq!(guard.release().await.unwrap(), Released::AlreadyGone);
        assert_eq!(result.unwrap(), 42);
        assert!(!exists(&mut other, "test/a").await);
    });
}

fn k16() {
    let (server, three) = (redis(&[]), servers(3));
    run(async {
        let many = [coordinator(store(&server), "a"), coordinator(quorum(&three), "a")];
        for locks in many {
            let cross = async |first: &str, second: &str| {
                for _ in 0..10 {
                    let both = locks.multi([first, second]).ttl(TTL).build().unwrap();
                    let guard = both.acquire(soon()).await.unwrap();
                    assert_eq!(guard.tokens().count(), 2);
                    guard.release().await.unwrap();
                }
            };
            tokio::join!(cross("x", "y"), cross("y", "x"));
        }
    });
}

fn sharing() {
    let server = redis(&[]);
    run(async {
        let locks = coordinator(store(&server), "me");
        let reader = locks.read("a").ttl(TTL).build().unwrap();
        let readers = [reader.acquire(soon()).await.unwrap(), reader.acquire(soon()).await.unwrap()];
        let writer = locks.write("a").ttl(TTL).build().unwrap();
        let LockError::Contended { holder, remaining } =
            writer.try_acquire().await.unwrap_err().kind().clone()
        else {
            panic!("a writer waits for readers")
        };
        assert_eq!(holder, "me");
        assert!(remaining.is_some_and(|d| d <= TTL));
        let highest = readers.iter().map(mainstay_coordination::Guard::token).max().unwrap();
        let (guard, ()) = tokio::join!(writer.acquire(soon()), async {
            for reader in readers {
                pause(ms(50)).await;
                assert_eq!(reader.release().await.unwrap(), Released::Clean);
            }
        });
        assert!(guard.unwrap().token() > highest);
        let permit = locks.semaphore("s", 2).ttl(TTL).build().unwrap();
        let (one, two) = (permit.acquire(soon()).await.unwrap(), permit.acquire(soon()).await.unwrap());
        assert!(matches!(permit.try_acquire().await.unwrap_err().kind(), LockError::Contended { .. }));
        one.release().await.unwrap();
        permit.try_acquire().await.unwrap().release().await.unwrap();
        two.release().await.unwrap();
    });
}
