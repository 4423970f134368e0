//! Work of others under one guard, and work that blocks.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, mpsc};

use futures_util::FutureExt as _;
use mainstay_clock::Clock;
use mainstay_coordination::{ErrorKind, LossReason};
use mainstay_store::LeaseStore;
use mainstay_store::lease::Released;
use tokio::sync::oneshot;

use crate::faulty::Faulty;
use crate::world::{TTL, virtually};

#[test]
fn the_last_share_gives_the_lock_back() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        let (one, token) = (guard.share(), guard.token());
        let two = one.clone();
        drop(guard);
        drop(one);
        w.clock.sleep(TTL * 5).await;
        assert_eq!(w.holder("n").await, "a", "it is renewed for the one that is left");
        two.check().unwrap();
        assert_eq!(two.run(|fence| async move { fence.token() }).await.unwrap(), token);
        drop(two);
        w.freed("n").await;
    });
}

#[test]
fn a_release_waits_for_whoever_may_be_at_work() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        let share = guard.share();
        let mut released = Box::pin(guard.release());
        let waited = tokio::select! {
            biased;
            answer = &mut released => panic!("released under work: {answer:?}"),
            () = w.clock.sleep(TTL * 3) => share.check(),
        };
        waited.unwrap();
        assert_eq!(w.holder("n").await, "a");
        drop(share);
        assert_eq!(released.await.unwrap(), Released::Clean);
        assert_eq!(w.holder("n").await, "");
    });
}

#[test]
fn a_loss_ends_all_shares_and_their_work() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        let (one, two) = (guard.share(), guard.share());
        let working = one.run(|_| std::future::pending::<()>());
        let broken = async {
            w.clock.sleep(TTL / 2).await;
            w.store.break_lease("test/n").await.unwrap()
        };
        let (stopped, _) = tokio::join!(working, broken);
        assert_eq!(*stopped.unwrap_err().kind(), ErrorKind::Lost(LossReason::Forced));
        assert_eq!(two.lost().await, LossReason::Forced);
        assert!(guard.check().is_err() && two.check().is_err());
    });
}

#[test]
fn a_right_that_is_shared_is_not_given_away() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        let share = guard.share();
        assert_eq!(*guard.downgrade().await.unwrap_err().kind(), ErrorKind::ApiMisuse);
        drop(share);
        guard.downgrade().await.unwrap();
        let term =
            w.node("a").election("boss").ttl(TTL).build().unwrap().campaign(w.within(1)).await.unwrap();
        let share = term.share();
        let (term, refused) = term.transfer("b").await.unwrap_err();
        assert_eq!(*refused.kind(), ErrorKind::ApiMisuse);
        drop(share);
        let (_, refused) = term.transfer("b").await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::Contended { .. }), "nobody waits: {refused}");
    });
}

#[test]
fn work_that_blocks_is_told_and_its_late_result_is_a_loss() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let guard = node.mutex("n").ttl(TTL).build().unwrap().try_acquire().await.unwrap();
        let (token, name) = (guard.token(), std::thread::current().id());
        let done =
            guard.run_blocking(move |share| (share.token(), std::thread::current().id() != name)).await;
        assert_eq!(done.unwrap(), (token, true), "on a thread of its own");
        store.hang_renewals(true);
        let late = guard.run_blocking(|share| {
            while share.check().is_ok() {
                std::thread::yield_now();
            }
            "written all the same"
        });
        let lost = late.await.unwrap_err();
        assert_eq!(*lost.kind(), ErrorKind::Lost(LossReason::DeadlinePassed));
        let never = guard.run_blocking(|_| panic!("work must not start")).await;
        assert!(never.is_err());
    });
}

#[test]
fn work_that_blocks_keeps_the_lock_until_its_end_though_nobody_waits_for_it() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        let ((go, gate), (began, begins), (tell, told)) =
            (mpsc::channel::<()>(), oneshot::channel(), oneshot::channel());
        let mut working = Box::pin(guard.run_blocking(move |share| {
            began.send(()).unwrap();
            gate.recv().unwrap();
            drop(share);
            tell.send(()).unwrap();
        }));
        tokio::select! {
            biased;
            done = &mut working => panic!("it ended by itself: {done:?}"),
            begun = begins => begun.unwrap(),
        }
        drop(working);
        drop(guard);
        w.clock.sleep(TTL * 5).await;
        assert_eq!(w.holder("n").await, "a", "nobody stops a thread");
        go.send(()).unwrap();
        told.await.unwrap();
        w.freed("n").await;
    });
}

#[test]
fn a_panic_of_work_that_blocks_is_the_callers() {
    virtually(|w| async move {
        let guard = w.held("a", "n").await;
        let work = guard.run_blocking(|_| -> () { panic!("on purpose") });
        let panic = AssertUnwindSafe(work).catch_unwind().await.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"on purpose"));
        guard.check().unwrap();
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
    });
}
