//! BH1-BH9, M-K1, M-K4.

use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::future::FutureExt as _;
use mainstay_clock::Deadline;
use mainstay_resilience::bulkhead::{Bulkhead, Partitions};
use mainstay_resilience::{CallContext, Priority, Reason};

use crate::world::{HandClock, Oops, World, ms, poll_once, secs, world};

fn one(w: &World, queue: u32) -> Bulkhead {
    Bulkhead::builder("b", 1).queue(queue, secs(1)).runtime(&w.runtime).build().unwrap()
}

fn idle(b: &Bulkhead) {
    let s = b.snapshot();
    assert_eq!((s.in_flight, s.queued), (0, 0));
}

#[test]
fn bh1_every_end_gives_the_permit_back() {
    world(|w| async move {
        let cx = CallContext::new();
        let b = one(&w, 5);
        b.call(&cx, || async { Ok::<_, Oops>(()) }).await.unwrap();
        idle(&b);
        b.call(&cx, || async { Err::<(), _>(Oops::Broken) }).await.unwrap_err();
        idle(&b);
        let boom =
            || async { if b.snapshot().in_flight == 1 { panic!("planned") } else { Ok::<_, Oops>(()) } };
        assert!(AssertUnwindSafe(b.call(&cx, boom)).catch_unwind().await.is_err());
        idle(&b);
        assert!(poll_once(b.call(&cx, std::future::pending::<Result<(), Oops>>)).is_pending());
        idle(&b);
        let held = b.acquire(&cx).await.unwrap();
        assert!(poll_once(b.acquire(&cx)).is_pending());
        assert_eq!(b.snapshot().queued, 0);
        assert_eq!(
            b.acquire(&cx).await.unwrap_err().why(),
            &Reason::Waited { in_flight: 1, queued: 0, limit: 1 }
        );
        let task = tokio::task::LocalSet::new();
        let other = b.clone();
        task.run_until(async {
            let queued =
                tokio::task::spawn_local(async move { other.acquire(&CallContext::new()).await.map(drop) });
            w.advance(ms(1)).await;
            assert_eq!(b.snapshot().queued, 1);
            queued.abort();
            assert!(queued.await.unwrap_err().is_cancelled());
        })
        .await;
        drop(held);
        idle(&b);
    });
}

#[test]
fn bh2_a_release_that_races_a_cancel_loses_no_wakeup() {
    world(|w| async move {
        let cx = CallContext::new();
        let b = one(&w, 2);
        let mut noop = Context::from_waker(Waker::noop());
        let held = b.try_acquire().unwrap();
        let mut first = Box::pin(b.acquire(&cx));
        let mut second = Box::pin(b.acquire(&cx));
        assert!(first.as_mut().poll(&mut noop).is_pending());
        assert!(second.as_mut().poll(&mut noop).is_pending());
        // Granted to the first, which goes before it looks: the second must get it.
        drop(held);
        drop(first);
        let Poll::Ready(Ok(permit)) = second.as_mut().poll(&mut noop) else { panic!("a lost permit") };
        // The cancelled slots are free again.
        let waits: Vec<_> = (0..2)
            .map(|_| {
                let mut f = Box::pin(b.acquire(&cx));
                assert!(f.as_mut().poll(&mut noop).is_pending());
                f
            })
            .collect();
        drop((waits, permit));
        drop(second);
        idle(&b);
    });
}

#[test]
fn bh2_m_k1_threads_never_exceed_the_limit_and_lose_no_permit() {
    let (_, runtime) = HandClock::runtime();
    let b = Bulkhead::builder("b", 3).queue(100, secs(1)).runtime(&runtime).build().unwrap();
    let inside = AtomicU32::new(0);
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(4).build().unwrap();
    let inside = Arc::new(inside);
    tokio.block_on(async {
        let tasks: Vec<_> = (0..16_u32)
            .map(|t| {
                let (b, inside) = (b.clone(), Arc::clone(&inside));
                #[allow(clippy::disallowed_methods, reason = "real threads")]
                tokio::spawn(async move {
                    let cx = CallContext::new();
                    for i in 0..500_u32 {
                        if (i + t) % 5 == 0 {
                            // Queued and gone again.
                            let _ = poll_once(b.acquire(&cx));
                            continue;
                        }
                        let permit = b.acquire(&cx).await.unwrap();
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 3);
                        if i % 3 == 0 {
                            tokio::task::yield_now().await;
                        }
                        inside.fetch_sub(1, Ordering::SeqCst);
                        drop(permit);
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    idle(&b);
}

#[test]
fn bh3_first_in_first_out_within_a_class_and_important_classes_first() {
    world(|w| async move {
        let b = one(&w, 10);
        let mut noop = Context::from_waker(Waker::noop());
        let low = CallContext::new().with_priority(Priority::Low);
        let normal = CallContext::new();
        let critical = CallContext::new().with_priority(Priority::Critical);
        let held = b.try_acquire().unwrap();
        let mut line: Vec<_> = [
            (&low, "l1"),
            (&normal, "n1"),
            (&critical, "c1"),
            (&normal, "n2"),
            (&low, "l2"),
            (&critical, "c2"),
        ]
        .into_iter()
        .map(|(cx, name)| (name, Box::pin(b.acquire(cx))))
        .collect();
        for (_, f) in &mut line {
            assert!(f.as_mut().poll(&mut noop).is_pending());
        }
        drop(held);
        let mut order = Vec::new();
        while !line.is_empty() {
            let (at, permit) = line
                .iter_mut()
                .enumerate()
                .find_map(|(i, (_, f))| match f.as_mut().poll(&mut noop) {
                    Poll::Ready(permit) => Some((i, permit.unwrap())),
                    Poll::Pending => None,
                })
                .unwrap();
            order.push(line.remove(at).0);
            drop(permit);
        }
        assert_eq!(order, ["c1", "c2", "n1", "n2", "l1", "l2"]);
    });
}

#[test]
fn bh4_exactly_n_wait_and_the_next_is_refused_at_once() {
    world(|w| async move {
        let cx = CallContext::new();
        for n in [1, 7, 100] {
            let b = one(&w, n);
            let mut noop = Context::from_waker(Waker::noop());
            let _held = b.try_acquire().unwrap();
            let mut line: Vec<_> = (0..n).map(|_| Box::pin(b.acquire(&cx))).collect();
            assert!(line.iter_mut().all(|f| f.as_mut().poll(&mut noop).is_pending()));
            let before = w.now();
            let refused = b.acquire(&cx).await.unwrap_err();
            assert_eq!(refused.why(), &Reason::Full { in_flight: 1, queued: n, limit: 1 });
            assert_eq!(w.now(), before);
            line.pop();
            assert!(poll_once(b.acquire(&cx)).is_pending());
        }
    });
}

#[test]
fn bh5_growing_wakes_waiters_and_shrinking_lets_holders_finish() {
    world(|w| async move {
        let cx = CallContext::new();
        let b = Bulkhead::builder("b", 2).queue(10, secs(1)).runtime(&w.runtime).build().unwrap();
        let mut noop = Context::from_waker(Waker::noop());
        let mut held = vec![b.try_acquire().unwrap(), b.try_acquire().unwrap()];
        let mut line: Vec<_> = (0..3).map(|_| Box::pin(b.acquire(&cx))).collect();
        assert!(line.iter_mut().all(|f| f.as_mut().poll(&mut noop).is_pending()));
        b.resize(4).unwrap();
        for f in &mut line[..2] {
            let Poll::Ready(Ok(permit)) = f.as_mut().poll(&mut noop) else { panic!("not woken") };
            held.push(permit);
        }
        assert!(line[2].as_mut().poll(&mut noop).is_pending());
        b.resize(1).unwrap();
        for left in (1..=3).rev() {
            held.pop();
            assert_eq!(b.snapshot().in_flight, left);
            assert!(line[2].as_mut().poll(&mut noop).is_pending(), "above the new limit");
        }
        held.clear();
        assert!(line[2].as_mut().poll(&mut noop).is_ready());
        assert_eq!(b.resize(0).unwrap_err().field(), "limit");
    });
}

#[test]
fn bh6_no_permits_is_refused_when_built() {
    let refused = Bulkhead::builder("b", 0).build().unwrap_err();
    assert_eq!((refused.field(), refused.value(), refused.allowed()), ("limit", "0", "1 to 65535"));
}

#[test]
fn bh7_nested_bulkheads_taken_in_opposite_order_are_freed_by_the_wait_limit() {
    world(|w| async move {
        let (a, b) = (one(&w, 1), one(&w, 1));
        let cx = CallContext::new();
        let ab = a.call(&cx, || async {
            w.advance(ms(1)).await;
            b.acquire(&cx).await.map(drop)
        });
        let ba = b.call(&cx, || async {
            w.advance(ms(1)).await;
            a.acquire(&cx).await.map(drop)
        });
        let (ab, ba) = tokio::join!(ab, ba);
        assert!(ab.is_err() || ba.is_err());
        idle(&a);
        idle(&b);
    });
}

#[test]
fn bh8_an_unknown_partition_is_its_own_error_and_partitions_do_not_touch() {
    world(|w| async move {
        let build = |name: &str, n| Bulkhead::builder(name, n).runtime(&w.runtime).build().unwrap();
        let all = Partitions::new([build("payment-service", 10), build("email-service", 5)]).unwrap();
        let unknown = all.get("paymentservice").unwrap_err();
        assert_eq!((unknown.field(), unknown.allowed()), ("partition", "email-service, payment-service"));
        let payment = all.get("payment-service").unwrap();
        let held: Vec<_> = (0..10).map(|_| payment.try_acquire().unwrap()).collect();
        assert_eq!(payment.try_acquire().unwrap_err().policy(), "payment-service");
        assert!(all.get("email-service").unwrap().try_acquire().is_ok());
        assert_eq!(all.iter().count(), 2);
        drop(held);
        assert!(Partitions::new([build("x", 1), build("x", 2)]).is_err());
    });
}

#[test]
fn bh9_a_hung_holder_shows_its_age_and_the_wait_limit_frees_callers() {
    world(|w| async move {
        let cx = CallContext::new();
        let b = Bulkhead::builder("b", 2).queue(3, secs(1)).runtime(&w.runtime).build().unwrap();
        w.advance(secs(100)).await;
        let _hung = b.try_acquire().unwrap();
        for _ in 0..30 {
            b.call(&cx, || async {
                w.advance(secs(1)).await;
                Ok::<_, Oops>(())
            })
            .await
            .unwrap();
        }
        let age = b.snapshot().oldest_holder.unwrap();
        assert!(age.at_least >= secs(28) && age.at_most >= secs(30) && age.at_most <= secs(31), "{age:?}");
        let _other = b.try_acquire().unwrap();
        let before = w.now();
        let mut waiting = pin!(b.acquire(&cx));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        w.jump(ms(500));
        assert_eq!(b.snapshot().oldest_waiter, Some(ms(500)));
        assert_eq!(waiting.await.unwrap_err().why(), &Reason::Waited { in_flight: 2, queued: 0, limit: 2 });
        let waited = w.now().saturating_duration_since(before);
        assert!(waited >= secs(1) && waited <= ms(1_002), "{waited:?}");
    });
}

#[test]
fn m_k4_the_deadline_counts_while_waiting_and_expired_work_never_starts() {
    world(|w| async move {
        let b = one(&w, 5);
        let held = b.try_acquire().unwrap();
        let over = CallContext::new().with_deadline(Deadline::at(w.now()));
        assert_eq!(b.acquire(&over).await.unwrap_err().why(), &Reason::Deadline);
        let soon = CallContext::new().with_deadline(Deadline::after(w.now(), ms(50)));
        let before = w.now();
        let refused = b.call(&soon, || async { Ok::<_, Oops>(()) }).await.unwrap_err();
        assert_eq!((refused.code(), refused.was_started()), ("deadline", false));
        assert!(w.now().saturating_duration_since(before) <= ms(52));
        // Granted too late: the permit goes back, the work is not started.
        let mut late = Box::pin(b.acquire(&soon));
        let fresh = CallContext::new().with_deadline(Deadline::after(w.now(), ms(50)));
        let mut queued = Box::pin(b.acquire(&fresh));
        let mut noop = Context::from_waker(Waker::noop());
        assert!(late.as_mut().poll(&mut noop).is_ready());
        assert!(queued.as_mut().poll(&mut noop).is_pending());
        w.advance(ms(60)).await;
        drop(held);
        let Poll::Ready(refused) = queued.as_mut().poll(&mut noop) else { panic!("not granted") };
        assert_eq!(refused.unwrap_err().why(), &Reason::Deadline);
        idle(&b);
    });
}

#[test]
fn a_refusal_says_since_when() {
    world(|w| async move {
        let b = Bulkhead::builder("b", 1).runtime(&w.runtime).build().unwrap();
        let _held = b.try_acquire().unwrap();
        let first = w.now();
        for _ in 0..5 {
            assert_eq!(b.try_acquire().unwrap_err().since(), Some(first));
            w.advance(ms(900)).await;
        }
        w.advance(secs(1)).await;
        assert_eq!(b.try_acquire().unwrap_err().since(), Some(w.now()));
    });
}
