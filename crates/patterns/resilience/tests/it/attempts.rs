//! What attempts need before they start: a permit of their own (`attempt_bulkhead`), a turn at the send rate.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock as _, Deadline};
use mainstay_resilience::hedge::Hedge;
use mainstay_resilience::limit::SendRate;
use mainstay_resilience::policy::PolicyBuilder;
use mainstay_resilience::{Attempt, Breaker, Budget, Bulkhead, CallContext, Policy, Reason, Retry, Verdict};

use crate::drops::everywhere;
use crate::world::{Oops, World, ms, now, poll_once, secs, world};

fn policy(w: &World) -> PolicyBuilder {
    Policy::builder("p").runtime(&w.runtime).idempotent()
}

fn pool(w: &World, limit: u32) -> Bulkhead {
    Bulkhead::builder("pool", limit).runtime(&w.runtime).build().unwrap()
}

#[test]
fn an_attempt_holds_its_permit_while_it_runs_and_not_during_backoff() {
    world(|w| async move {
        let (calls, attempts) = (pool(&w, 5), pool(&w, 1));
        let retry = Retry::constant(ms(100)).attempts(2).build().unwrap();
        let p = policy(&w).bulkhead(&calls).attempt_bulkhead(&attempts).retry(retry).build().unwrap();
        let cx = CallContext::new();
        let held = RefCell::new(Vec::new());
        let operation = |a: Attempt<'_>| {
            held.borrow_mut().push((calls.snapshot().in_flight, attempts.snapshot().in_flight));
            std::future::ready(if a.number() == 1 { Err(Oops::Broken) } else { Ok(()) })
        };
        let mut first = Box::pin(p.call(&cx, operation));
        assert!(poll_once(&mut first).is_pending());
        assert_eq!((calls.snapshot().in_flight, attempts.snapshot().in_flight), (1, 0), "backing off");
        // Meanwhile the only permit serves another call.
        assert!(now(p.call(&cx, |_| async { Ok::<_, Oops>(()) })).is_ok());
        first.await.unwrap();
        assert_eq!(*held.borrow(), [(1, 1), (1, 1)]);
        assert_eq!((calls.snapshot().in_flight, attempts.snapshot().in_flight), (0, 0));
        assert_eq!(p.snapshot().attempt_bulkhead.unwrap().limit, 1);
    });
}

#[test]
fn a_full_pool_ends_the_call_and_is_no_evidence_for_the_breaker() {
    world(|w| async move {
        let attempts = pool(&w, 1);
        let breaker = Breaker::builder("b").runtime(&w.runtime).consecutive(1).build().unwrap();
        let retry = Retry::constant(ms(1)).attempts(3).build().unwrap();
        let p = policy(&w).retry(retry).attempt_bulkhead(&attempts).breaker(&breaker).build().unwrap();
        let held = attempts.try_acquire().unwrap();
        let error = p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.unwrap_err();
        assert_eq!((error.code(), error.was_started(), p.snapshot().retries), ("full", false, 0));
        assert_eq!((breaker.snapshot().lifetime.failures, breaker.snapshot().lifetime.abandoned), (0, 0));
        assert_eq!(error.rejected().unwrap().policy(), "pool");
        drop(held);
        assert!(p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.is_ok());
    });
}

#[test]
fn an_attempt_waits_in_line_within_its_deadline_and_outside_its_timeout() {
    world(|w| async move {
        let attempts = Bulkhead::builder("pool", 1).queue(5, secs(1)).runtime(&w.runtime).build().unwrap();
        let p =
            policy(&w).deadline(ms(500)).attempt_timeout(ms(50)).attempt_bulkhead(&attempts).build().unwrap();
        let cx = CallContext::new();
        let held = attempts.try_acquire().unwrap();
        let t0 = w.now();
        let remaining = Cell::new(None);
        let waits = p.call(&cx, |a| {
            remaining.set(a.remaining());
            async { Ok::<_, Oops>(()) }
        });
        let free = async {
            w.advance(ms(200)).await;
            drop(held);
        };
        let (result, ()) = futures_util::future::join(waits, free).await;
        result.unwrap();
        // The attempt begins, and its timeout with it, when the permit is there.
        assert_eq!(remaining.get(), Some(ms(50)));
        assert!(w.now().saturating_duration_since(t0) >= ms(200));
        // Never past the deadline.
        let held = attempts.try_acquire().unwrap();
        let t0 = w.now();
        let late = p.call(&cx, |_| async { Ok::<_, Oops>(()) }).await.unwrap_err();
        assert_eq!((late.code(), late.was_started()), ("deadline", false));
        let waited = w.now().saturating_duration_since(t0);
        assert!(waited >= ms(499) && waited <= ms(502), "{waited:?}");
        drop(held);
        assert_eq!((attempts.snapshot().in_flight, attempts.snapshot().queued), (0, 0));
    });
}

/// A policy with a hedge after 50 ms and a budget that counts.
fn hedged(w: &World, attempts: &Bulkhead) -> (Policy, Budget) {
    let budget = Budget::builder("x").in_flight(1.0, 5).runtime(&w.runtime).build().unwrap();
    let hedge = Hedge::after(ms(50)).build().unwrap();
    let p = policy(w).hedge_plan(hedge.plan()).budget(&budget).attempt_bulkhead(attempts).build().unwrap();
    (p, budget)
}

#[test]
fn a_hedge_needs_a_free_permit_and_never_waits_for_one() {
    world(|w| async move {
        let slow = |_: Attempt<'_>| async {
            w.advance(ms(200)).await;
            Ok::<_, Oops>(())
        };
        let one = pool(&w, 1);
        let (p, budget) = hedged(&w, &one);
        p.call(&CallContext::new(), slow).await.unwrap();
        assert_eq!((p.snapshot().hedges, budget.snapshot().available), (0, 5.0), "nothing was paid");
        let two = pool(&w, 2);
        let (p, _) = hedged(&w, &two);
        p.call(&CallContext::new(), slow).await.unwrap();
        assert_eq!((p.snapshot().hedges, two.snapshot().in_flight), (1, 0));
        // A primary that fails at once frees its permit for the hedge.
        let (p, _) = hedged(&w, &one);
        let fails =
            |a: Attempt<'_>| std::future::ready(if a.is_hedge() { Ok(()) } else { Err(Oops::Broken) });
        p.call(&CallContext::new(), fails).await.unwrap();
        assert_eq!((p.snapshot().hedges, one.snapshot().in_flight), (1, 0));
    });
}

/// The service throttles so many attempts, one after the other, each sent at its turn.
pub(crate) async fn throttle(rate: &SendRate, times: u32) {
    for _ in 0..times {
        rate.acquire(Deadline::NONE).await.unwrap().report(Verdict::Throttled { after: None });
    }
}

#[test]
fn pl1_a_call_dropped_while_its_attempts_wait_gives_everything_back() {
    world(|w| async move {
        let attempts = Bulkhead::builder("pool", 1).queue(2, secs(1)).runtime(&w.runtime).build().unwrap();
        let rate = SendRate::builder("r").runtime(&w.runtime).build().unwrap();
        let hedge = Hedge::after(ms(2)).build().unwrap();
        let p = policy(&w)
            .retry(Retry::constant(ms(3)).attempts(3).build().unwrap())
            .without_budget()
            .hedge_plan(hedge.plan())
            .send_rate(&rate)
            .attempt_bulkhead(&attempts)
            .build()
            .unwrap();
        let cx = CallContext::new();
        let clock = &w.clock;
        let call = || {
            p.call(&cx, |a| {
                let n = a.number();
                async move {
                    clock.sleep(ms(3)).await;
                    if n == 3 { Ok(()) } else { Err(Oops::Broken) }
                }
            })
        };
        let clean = || assert_eq!((attempts.snapshot().in_flight, attempts.snapshot().queued), (0, 0));
        everywhere(&w, "free", call, clean).await;
        // With the pool taken every call waits in line, and leaves it.
        let held = attempts.try_acquire().unwrap();
        let taken = || assert_eq!((attempts.snapshot().in_flight, attempts.snapshot().queued), (1, 0));
        for _ in 0..50 {
            assert!(poll_once(call()).is_pending());
            taken();
        }
        drop(held);
        // Paced: a dropped wait gives its token back, so the next one waits no longer than the first.
        throttle(&rate, 3).await;
        while poll_once(rate.acquire(Deadline::NONE)).is_ready() {}
        let a_token_and_a_half = Duration::from_secs_f64(1.5 / rate.snapshot().rate.unwrap());
        for _ in 0..50 {
            assert!(poll_once(call()).is_pending());
            let soon = Deadline::after(w.now(), a_token_and_a_half);
            assert!(poll_once(rate.acquire(soon)).is_pending());
            clean();
        }
    });
}

#[test]
fn rt12_the_adaptive_mode_paces_every_attempt_after_throttling_and_none_before() {
    world(|w| async move {
        let rate = SendRate::builder("table").runtime(&w.runtime).build().unwrap();
        let retry = Retry::constant(ms(1)).attempts(2).build().unwrap();
        let p = policy(&w).retry(retry).without_budget().send_rate(&rate).build().unwrap();
        let cx = CallContext::new();
        // Ten per second for ten seconds, all well: no bound.
        for _ in 0..100 {
            now(p.call(&cx, |_| async { Ok::<_, Oops>(()) })).unwrap();
            w.advance(ms(100)).await;
        }
        assert_eq!(p.snapshot().send_rate.unwrap().rate, None);
        // One throttled attempt: 0.7 of what was sent, and its retry already waits for its turn.
        let t0 = w.now();
        let starts = RefCell::new(Vec::new());
        let throttled = |a: Attempt<'_>| {
            starts.borrow_mut().push(w.now().saturating_duration_since(t0).as_secs_f64());
            std::future::ready(if a.number() == 1 { Err(Oops::Slow(None)) } else { Ok(()) })
        };
        p.call(&cx, throttled).await.unwrap();
        let bound = 0.7 * 10.0;
        let second = starts.borrow()[1];
        assert!((second - 1.0 / bound).abs() < 0.02, "{second}");
        // First attempts wait too: ten calls at once leave one by one.
        let t0 = w.now();
        let done = RefCell::new(Vec::new());
        let calls = (0..10).map(|_| async {
            p.call(&cx, |_| async { Ok::<_, Oops>(()) }).await.unwrap();
            done.borrow_mut().push(w.now().saturating_duration_since(t0).as_secs_f64());
        });
        futures_util::future::join_all(calls).await;
        let done = done.into_inner();
        assert!(done.windows(2).all(|d| d[1] > d[0]), "in order: {done:?}");
        assert!((1.0..2.0).contains(&done[9]), "ten at 7 to 10 per second: {done:?}");
    });
}

#[test]
fn rt12_a_turn_beyond_the_deadline_is_refused_at_once_and_says_when() {
    world(|w| async move {
        let rate = SendRate::builder("table").runtime(&w.runtime).build().unwrap();
        let hedge = Hedge::after(ms(50)).build().unwrap();
        let p = policy(&w).deadline(secs(1)).send_rate(&rate).hedge_plan(hedge.plan()).build().unwrap();
        throttle(&rate, 5).await;
        assert_eq!(rate.snapshot().rate, Some(0.5), "the floor");
        let t0 = w.now();
        let refused = p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.unwrap_err();
        assert_eq!((refused.rejected().unwrap().why(), w.now()), (&Reason::Rate, t0));
        let wait = refused.retry_after().unwrap();
        assert_eq!(refused.rejected().unwrap().policy(), "table");
        assert!(wait > ms(1_990) && wait < ms(2_010), "one token at 0.5 per second: {wait:?}");
        // A token that is there serves the first attempt; none is left for a hedge, which does not wait.
        w.advance(secs(2)).await;
        let slow = |_: Attempt<'_>| async {
            w.advance(ms(200)).await;
            Ok::<_, Oops>(())
        };
        p.call(&CallContext::new(), slow).await.unwrap();
        assert_eq!(p.snapshot().hedges, 0);
        for bad in [Duration::ZERO, secs(3_601)] {
            let refused = SendRate::builder("r").longest_wait(bad).build().unwrap_err();
            assert_eq!(refused.field(), "longest_wait");
        }
        let heard = Arc::new(crate::world::Heard::default());
        let deaf = SendRate::builder("r").runtime(&w.runtime).listener(heard.clone()).build().unwrap();
        throttle(&deaf, 1).await;
        let soon = Deadline::after(w.now(), ms(1));
        assert_eq!(deaf.acquire(soon).await.unwrap_err().why(), &Reason::Rate);
        assert_eq!(heard.take(), ["rejected rate"]);
    });
}
