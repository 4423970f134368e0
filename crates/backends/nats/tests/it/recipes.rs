//! Locks and elections: what the original sketch got wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mainstay_chaos::proxy::TcpMode;
use mainstay_clock::{Deadline, Runtime, SystemClock};
use mainstay_coordination::{Coordinator, ErrorKind as LockError, LossReason};
use mainstay_store::LeaseStore;
use mainstay_store::lease::{Fencing, Released, Renewed};

use crate::Test;
use crate::world::{
    ANSWER, RENEWED, coordinator, last, ms, nats, other, pause, proxied, publish, run, soon, store, take,
    until, written,
};

pub(crate) const TESTS: &[Test] = &[
    ("f03_a_grant_that_comes_too_late_is_given_back", f03),
    ("f27_a_dropped_guard_is_given_back_behind_its_owners_back", f27),
    ("k01_a_lease_of_somebody_else_is_never_extended", k01),
    ("k02_k15_a_loss_is_told_and_ends_the_work", k02),
    ("k03_the_renewer_ends_with_its_term", k03),
    ("k04_work_that_hangs_does_not_hold_for_ever", k04),
    ("k05_k12_a_holder_that_is_cut_off_stops_before_the_next_begins", k05),
    ("k06_a_renewal_that_failed_is_repeated", k06),
    ("k07_a_restarted_node_of_the_same_name_is_a_new_candidate", k07),
    ("k09_every_grant_has_a_token", k09),
    ("f23_k10_a_value_is_seen_with_its_leader_and_ends_with_its_term", k10),
    ("k11_two_applications_on_one_server_do_not_meet", k11),
    ("k13_a_release_after_the_end_says_so_and_hides_nothing", k13),
    ("k14_the_callers_deadline_decides_how_long_it_waits", k14),
    ("k16_several_names_are_taken_in_one_order", k16),
    ("f35_a_leader_hands_over_to_a_candidate_that_waits", transfer),
    ("readers_and_permits_share_and_a_writer_waits_for_both", sharing),
];

const TTL: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_secs(1);

fn within(d: Duration) -> Deadline {
    Deadline::after(mainstay_clock::Clock::now(&SystemClock::new()), d)
}

fn f03() {
    let server = nats();
    run(async {
        let (proxy, through) = proxied(&server, ANSWER).await;
        let locks = coordinator(through, "me");
        let lock = locks.mutex("a").ttl(SHORT).build().unwrap();
        // To look and to write takes longer than the lease is waited for.
        proxy.set_mode(TcpMode::Latency { least: ms(400), jitter: Duration::ZERO });
        let late = lock.try_acquire().await.unwrap_err();
        assert!(matches!(late.kind(), LockError::Expired | LockError::Unreachable), "{late}");
        proxy.set_mode(TcpMode::Pass);
        until("it was given back", async || locks.in_background() == 0).await;
        let direct = store(&server).await;
        until("nobody holds", async || direct.inspect("test/a").await.unwrap().holders.is_empty()).await;
    });
}

fn f27() {
    let server = nats();
    run(async {
        let store = store(&server).await;
        let locks = coordinator(store.clone(), "me");
        drop(locks.mutex("a").ttl(TTL).build().unwrap().acquire(soon()).await.unwrap());
        until("it is free", async || store.inspect("test/a").await.unwrap().holders.is_empty()).await;
        until("nothing goes on", async || locks.in_background() == 0).await;
    });
}

fn k01() {
    let server = nats();
    run(async {
        let (paused, next) = (store(&server).await, store(&server).await);
        take(&paused, "a", "paused", ms(200)).await;
        next.inspect("a").await.unwrap();
        pause(ms(210)).await;
        take(&next, "a", "next", TTL).await;
        let other = other(&server).await;
        let before = last(&other, "a").await;
        assert_eq!(paused.renew("paused").await.unwrap(), Renewed::Lost);
        assert_eq!(last(&other, "a").await, before);
    });
}

fn k02() {
    let server = nats();
    run(async {
        let locks = coordinator(store(&server).await, "me");
        let lock = locks.mutex("a").ttl(RENEWED).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let (work, breaker) = (Arc::clone(&done), store(&server).await);
        let run = guard.run(|_| async move {
            pause(Duration::from_secs(600)).await;
            work.store(true, Ordering::SeqCst);
        });
        let (result, burned) = tokio::join!(run, breaker.break_lease("test/a"));
        let error = result.unwrap_err();
        assert_eq!(*error.kind(), LockError::Lost(LossReason::TakenOver), "told by the next renewal");
        assert_eq!(guard.lost().await, LossReason::TakenOver);
        assert!(!done.load(Ordering::SeqCst));
        assert!(burned.unwrap() > guard.token());
        // A store that does not answer: the holder stops by its own clock.
        let lock = locks.mutex("a").ttl(SHORT).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        server.server().pause().unwrap();
        let reason = guard.lost().await;
        server.server().resume().unwrap();
        assert_eq!(reason, LossReason::DeadlinePassed);
    });
}

fn k03() {
    let server = nats();
    run(async {
        let store = store(&server).await;
        let election = |ttl| coordinator(store.clone(), "a").election("e").ttl(ttl).build().unwrap();
        let first = election(SHORT).campaign(soon()).await.unwrap().resign().await;
        assert_eq!(first.unwrap(), Released::Clean);
        let term = election(Duration::from_secs(600)).campaign(soon()).await.unwrap();
        let other = other(&server).await;
        let before = written(&other).await;
        pause(ms(1_100)).await;
        assert_eq!(written(&other).await, before, "nobody renews for the term that ended");
        term.resign().await.unwrap();
    });
}

fn k04() {
    let server = nats();
    run(async {
        let locks = coordinator(store(&server).await, "a");
        // It is renewed once before.
        let lock = locks.mutex("n").ttl(RENEWED).max_hold(RENEWED / 2).build().unwrap();
        let guard = lock.try_acquire().await.unwrap();
        let hung = guard.run(|_| std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(hung.kind(), &LockError::Lost(LossReason::HeldTooLong));
        let next = coordinator(store(&server).await, "b").mutex("n").build().unwrap();
        assert!(next.acquire(soon()).await.unwrap().token() > guard.token());
    });
}

/// Says that work is there until it is dropped.
struct Mark(Arc<AtomicBool>);

impl Drop for Mark {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

fn k05() {
    let server = nats();
    run(async {
        let (proxy, cut_off) = proxied(&server, ms(1_000)).await;
        let leader = coordinator(cut_off, "a").election("e").ttl(RENEWED).build().unwrap();
        let leader = leader.campaign(soon()).await.unwrap();
        let running = Arc::new(AtomicBool::new(true));
        let mark = Mark(Arc::clone(&running));
        let work = leader.run(|_| async move {
            let _mark = mark;
            std::future::pending::<()>().await;
        });
        let follower = coordinator(store(&server).await, "b").election("e").build().unwrap();
        let next = async {
            proxy.set_mode(TcpMode::Blackhole);
            assert!(follower.campaign(within(ms(100))).await.is_err(), "it still leads");
            let term = follower.campaign(soon()).await.unwrap();
            (term, running.load(Ordering::SeqCst))
        };
        let (done, (term, overlapped)) = tokio::join!(work, next);
        assert_eq!(done.unwrap_err().kind(), &LockError::Lost(LossReason::DeadlinePassed));
        assert!(!overlapped, "the work had ended when the lease passed on");
        assert!(term.token() > leader.token());
    });
}

fn k06() {
    let server = nats();
    run(async {
        let (proxy, store) = proxied(&server, ms(1_500)).await;
        let lock = coordinator(store, "a").mutex("n").ttl(ms(12_000)).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let known = guard.deadline();
        proxy.set_mode(TcpMode::Blackhole);
        // A third of the ttl, less than a sixth for an answer, and the first renewal has failed at half of it.
        pause(ms(6_000)).await;
        proxy.set_mode(TcpMode::Pass);
        tokio::select! {
            biased;
            renewed = guard.renewed(known) => assert!(renewed.instant() > known.instant()),
            reason = guard.lost() => panic!("{reason}: a renewal that failed is repeated"),
        }
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
    });
}

fn k07() {
    let server = nats();
    run(async {
        let election =
            async || coordinator(store(&server).await, "node-7").election("e").ttl(TTL).build().unwrap();
        let first = election().await.campaign(soon()).await.unwrap();
        let token = first.token();
        let after = election().await;
        assert!(after.campaign(within(ms(200))).await.is_err(), "the same name leads nothing yet");
        first.resign().await.unwrap();
        assert!(after.campaign(soon()).await.unwrap().token() > token, "the same name, another term");
    });
}

fn k09() {
    let server = nats();
    run(async {
        let locks = coordinator(store(&server).await, "a");
        let term = locks.election("e").build().unwrap().campaign(soon()).await.unwrap();
        assert_ne!(term.token().get(), 0);
        for lock in [locks.mutex("n"), locks.semaphore("s", 2), locks.read("r")] {
            assert_ne!(lock.build().unwrap().try_acquire().await.unwrap().token().get(), 0);
        }
    });
}

fn k10() {
    let server = nats();
    run(async {
        let build = async |owner: &str| {
            coordinator(store(&server).await, owner).election("e").ttl(TTL).build().unwrap()
        };
        let (leading, watching) = (build("n1").await, build("n2").await);
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
    let server = nats();
    run(async {
        let store = Arc::new(store(&server).await);
        let build = |namespace: &str| {
            let store = Arc::clone(&store) as Arc<dyn LeaseStore>;
            Coordinator::builder(store, Runtime::system()).namespace(namespace).owner("me").build()
        };
        let (one, two) = (build("billing").unwrap(), build("search").unwrap());
        let first = one.mutex("leader").build().unwrap().try_acquire().await.unwrap();
        let second = two.mutex("leader").build().unwrap().try_acquire().await.unwrap();
        assert!(build("").is_err());
        assert_eq!(one.guarantees().fencing, Fencing::WhileStateSurvives);
        let refused = one.mutex("x").require(Fencing::Strict).build().unwrap_err();
        assert_eq!(refused.field(), "require");
        first.release().await.unwrap();
        second.release().await.unwrap();
    });
}

fn k13() {
    let server = nats();
    run(async {
        let lock = coordinator(store(&server).await, "me").mutex("a").ttl(TTL).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let result = guard.run(|_| async { 42 }).await;
        let other = other(&server).await;
        let (seq, ..) = last(&other, "test/a").await.unwrap();
        assert_eq!(publish(&other, "test/a", seq, "of another client").await, 0);
        assert_eq!(guard.release().await.unwrap(), Released::AlreadyGone);
        assert_eq!(result.unwrap(), 42);
        let (_, _, value) = last(&other, "test/a").await.unwrap();
        assert_eq!(value, "of another client", "untouched");
    });
}

fn k14() {
    let server = nats();
    run(async {
        let _held = coordinator(store(&server).await, "a").mutex("n").build().unwrap().try_acquire().await;
        let lock = coordinator(store(&server).await, "b").mutex("n").build().unwrap();
        let late = lock.acquire(within(ms(300))).await.unwrap_err();
        assert_eq!(late.kind(), &LockError::TimedOut { holder: Some("a".to_owned()) });
    });
}

fn k16() {
    let server = nats();
    run(async {
        let busy = AtomicU32::new(0);
        let stores = futures_util::future::join_all((0..4).map(|_| store(&server))).await;
        let all = stores.iter().enumerate().map(async |(n, store)| {
            let names = if n % 2 == 0 { ["x", "y", "z"] } else { ["z", "y", "x"] };
            let lock = coordinator(store.clone(), &format!("n{n}")).multi(names).ttl(TTL).build().unwrap();
            for _ in 0..5 {
                let guard = lock.acquire(soon()).await.unwrap();
                assert_eq!(busy.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                assert_eq!(guard.tokens().count(), 3);
                busy.fetch_sub(1, Ordering::SeqCst);
                assert_eq!(guard.release().await.unwrap(), Released::Clean);
            }
        });
        futures_util::future::join_all(all).await;
    });
}

fn transfer() {
    let server = nats();
    run(async {
        let build = async |owner: &str| {
            coordinator(store(&server).await, owner).election("e").ttl(TTL).build().unwrap()
        };
        let (leading, next, third) = (build("n1").await, build("n2").await, build("n3").await);
        let term = leading.campaign(soon()).await.unwrap();
        let before = term.token();
        let (term, error) = term.transfer("n2").await.unwrap_err();
        assert!(matches!(error.kind(), LockError::Contended { .. }), "nobody of that name waits: {error}");
        assert!(term.check().is_ok(), "it goes on");
        let watching = store(&server).await;
        let hand = async {
            until("both stand in line", async || {
                watching.inspect("test/election/e").await.unwrap().waiting == 2
            })
            .await;
            term.transfer("n3").await.map_err(|(_, e)| e).unwrap();
        };
        let second = next.campaign(soon());
        let elected = async {
            let term = third.campaign(soon()).await.unwrap();
            assert!(term.token() > before);
            assert_eq!(third.leader().await.unwrap().unwrap().owner, "n3", "not the first in line");
            term.resign().await.unwrap();
        };
        let (after, (), ()) = tokio::join!(second, elected, hand);
        after.unwrap().resign().await.unwrap();
    });
}

fn sharing() {
    let server = nats();
    run(async {
        let locks = coordinator(store(&server).await, "me");
        let reader = locks.read("a").ttl(TTL).build().unwrap();
        let readers = [reader.acquire(soon()).await.unwrap(), reader.acquire(soon()).await.unwrap()];
        let writer = locks.write("a").ttl(TTL).build().unwrap();
        let LockError::Contended { holder, remaining, .. } =
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
