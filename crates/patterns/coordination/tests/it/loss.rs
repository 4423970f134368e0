//! Losing a right while work runs under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};
use mainstay_coordination::{Coordinator, ErrorKind, LossReason};
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired, Released};
use mainstay_store::memory::MemoryLeaseStore;

use crate::faulty::{Fault, Faulty, Swap};
use crate::world::{TTL, virtually};

/// Counts how often work went on, and when it was dropped.
#[derive(Default)]
struct Work {
    rounds: AtomicU64,
}

impl Work {
    async fn go_on(&self, clock: &VirtualClock) {
        loop {
            self.rounds.fetch_add(1, Ordering::Relaxed);
            clock.sleep(Duration::from_millis(100)).await;
        }
    }
}

#[test]
fn k12_a_guard_is_renewed_for_as_long_as_it_is_held() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        w.clock.sleep(TTL * 10).await;
        guard.check().unwrap();
        assert_eq!(w.holder("n").await, "a");
        guard.release().await.unwrap();
        w.freed("n").await;
    });
}

#[test]
fn k02_k15_work_is_dropped_before_the_lease_can_pass_on() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let guard = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        store.hang_renewals(true);
        let work = Work::default();
        let lost = guard.run(|_| work.go_on(&w.clock)).await.unwrap_err();
        assert_eq!(*lost.kind(), ErrorKind::Lost(LossReason::DeadlinePassed));
        assert_eq!(w.holder("n").await, "a", "it stopped while the lease was still there");
        assert_eq!(guard.lost().await, LossReason::DeadlinePassed, "level-triggered");
        assert!(guard.run(|_| async { panic!("work must not start") }).await.is_err());
        let next = w.lock("b", "n").acquire(w.within(5)).await.unwrap();
        assert!(next.token() > guard.token());
    });
}

#[test]
fn f25_after_a_pause_the_first_poll_finds_the_right_gone() {
    virtually(|w| async move {
        let mine = VirtualClock::new();
        let node = w.node_on(Arc::new(w.store.clone()), mine.clone(), "a");
        let guard = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        // Its timers stand still while the store's time goes on: a stopped process.
        mine.pause();
        w.clock.sleep(TTL * 2).await;
        assert_eq!(w.holder("n").await, "", "the store let it go");
        let next = w.held("b", "n").await;
        mine.jump_boot(TTL * 2);
        mine.resume();
        // Ready at its first poll, and yet not reported as done.
        let late = guard.run(|_| async { "wrote" }).await.unwrap_err();
        assert!(matches!(late.kind(), ErrorKind::Lost(_)), "{late}");
        assert!(next.token() > guard.token(), "what it wrote meanwhile is refused by the token");
    });
}

/// A machine that was suspended: boot time went on, and timers have not noticed yet.
#[derive(Clone, Debug, Default)]
struct Suspended(Arc<AtomicU64>);

impl Clock for Suspended {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn wall(&self) -> WallTime {
        WallTime::from_unix_millis(0)
    }

    fn tick(&self) -> Tick {
        Tick::system()
    }

    fn sleep_until(&self, _: Instant) -> Sleep {
        Box::pin(std::future::pending())
    }
}

#[test]
fn f27_work_does_not_go_on_after_a_suspend_though_no_timer_has_woken_yet() {
    virtually(|w| async move {
        let mine = Suspended::default();
        let rt = Runtime::on_tokio(Arc::new(mine.clone()), Arc::new(SeededRng::new(7)));
        let node = Coordinator::builder(Arc::new(w.store.clone()), rt).namespace("test").owner("a").build();
        let guard = node.unwrap().mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        let rounds = AtomicU64::new(0);
        let work = async {
            while rounds.fetch_add(1, Ordering::Relaxed) < 5 {
                if rounds.load(Ordering::Relaxed) == 3 {
                    mine.0.fetch_add(u64::try_from(TTL.as_nanos()).unwrap(), Ordering::Relaxed);
                }
                tokio::task::yield_now().await;
            }
        };
        let lost = guard.run(|_| work).await.unwrap_err();
        assert_eq!(*lost.kind(), ErrorKind::Lost(LossReason::DeadlinePassed));
        assert_eq!(rounds.load(Ordering::Relaxed), 3, "it was polled after the machine woke up");
    });
}

/// The store granted it, and the answer met a process that stood still for longer than the lease.
#[test]
fn if_w7_a_grant_that_comes_after_its_own_end_is_no_right() {
    virtually(|w| async move {
        let (mine, store) = (VirtualClock::new(), Faulty::new(w.store.clone()));
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, mine.clone(), "a");
        let lock = node.mutex("n").ttl(TTL).build().unwrap();
        store.acquisitions(vec![Fault::AppliedThenHeld]);
        let stopped = async {
            while w.holder("n").await != "a" {
                w.clock.sleep(Duration::from_millis(1)).await;
            }
            mine.pause();
            w.clock.sleep(TTL * 2).await;
            let next = w.held("b", "n").await;
            mine.jump_boot(TTL * 2);
            store.held_answers.notify_one();
            mine.resume();
            next
        };
        let (late, next) = tokio::join!(lock.try_acquire(), stopped);
        assert_eq!(*late.unwrap_err().kind(), ErrorKind::Expired);
        next.check().unwrap();
        assert_eq!(w.holder("n").await, "b", "giving back takes nothing from the next one");
    });
}

#[test]
fn f40_a_broken_lease_is_noticed_at_the_next_renewal() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        let burned = w.store.break_lease("test/n").await.unwrap();
        assert!(burned > guard.token());
        let start = w.clock.now();
        assert_eq!(guard.lost().await, LossReason::Forced);
        assert_eq!(guard.check().unwrap_err().to_string(), "`test/n` is lost: it was ended by force");
        let noticed = w.clock.now().saturating_duration_since(start);
        assert!(noticed <= TTL / 3 + Duration::from_millis(10), "{noticed:?}");
    });
}

#[test]
fn f26_a_guard_is_told_that_its_store_went_back() {
    virtually(|w| async move {
        let (young, empty) = (w.store.snapshot(), MemoryLeaseStore::new(Arc::new(w.clock.clone())));
        for back in [young, empty] {
            let swap = Swap::new(w.store.clone());
            let node = w.node_on(Arc::clone(&swap) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
            let guard = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
            swap.replace(back);
            let start = w.clock.now();
            let lost = guard.run(|_| std::future::pending::<()>()).await.unwrap_err();
            assert_eq!(*lost.kind(), ErrorKind::Lost(LossReason::StoreRegressed), "{lost}");
            let noticed = w.clock.now().saturating_duration_since(start);
            assert!(noticed <= TTL / 3 + Duration::from_millis(10), "by the next renewal: {noticed:?}");
            w.store.break_lease("test/n").await.unwrap();
        }
    });
}

#[test]
fn a_store_that_lost_the_lease_alone_did_not_go_back() {
    virtually(|w| async move {
        let swap = Swap::new(w.store.clone());
        let node = w.node_on(Arc::clone(&swap) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let guard = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        // Its tokens are as new as ours: whoever comes next outranks us.
        let without = w.store.snapshot();
        for op in 0..3 {
            let request = AcquireRequest::exclusive("test/other", "b", &format!("op{op}"), TTL);
            without.acquire(request).await.unwrap();
        }
        without.break_lease("test/n").await.unwrap();
        w.clock.sleep(TTL / 10).await;
        let next = AcquireRequest::exclusive("test/n", "b", "next", TTL);
        assert!(matches!(without.acquire(next).await.unwrap(), Acquired::Granted(_)));
        swap.replace(without);
        assert_ne!(guard.lost().await, LossReason::StoreRegressed);
    });
}

#[test]
fn k04_a_hold_with_a_limit_ends_though_the_work_hangs() {
    virtually(|w| async move {
        let node = w.node("a");
        let lock = node.mutex("n").ttl(TTL).max_hold(Duration::from_secs(25)).build().unwrap();
        let guard = lock.try_acquire().await.unwrap();
        let lost = guard.run(|_| std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(*lost.kind(), ErrorKind::Lost(LossReason::HeldTooLong));
        drop(guard);
        w.freed("n").await;
    });
}

#[test]
fn k03_f17_no_renewal_outlives_its_guard() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let guard = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        w.clock.sleep(TTL).await;
        assert!(store.renewals.load(Ordering::Relaxed) >= 2);
        drop(guard);
        w.freed("n").await;
        let after = store.renewals.load(Ordering::Relaxed);
        w.clock.sleep(TTL * 5).await;
        assert_eq!(store.renewals.load(Ordering::Relaxed), after);
        assert_eq!(node.in_background(), 0);
    });
}

#[test]
fn k06_renewals_that_fail_are_tried_again_and_only_the_deadline_ends_the_hold() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let guard = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        store.hang_renewals(true);
        w.clock.sleep(TTL * 2 / 5).await;
        assert!(
            store.renewals.load(Ordering::Relaxed) >= 1 && guard.check().is_ok(),
            "one failed, none is lost"
        );
        store.hang_renewals(false);
        w.clock.sleep(TTL * 3).await;
        guard.check().unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
    });
}

#[test]
fn a_wall_clock_that_jumps_changes_nothing() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        for hours in [1, -2, 3] {
            w.clock.jump_wall(hours * 3_600_000);
            w.clock.sleep(TTL).await;
            guard.check().unwrap();
            assert_eq!(w.holder("n").await, "a");
        }
    });
}
