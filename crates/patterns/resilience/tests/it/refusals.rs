//! Refusals in the middle of a call: what they say about it, and what they give back.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Deadline, Instant};
use mainstay_resilience::breaker::{HalfOpen, State};
use mainstay_resilience::fallback::{Fallback, When};
use mainstay_resilience::hedge::Hedge;
use mainstay_resilience::limit::SendRate;
use mainstay_resilience::policy::seam::HedgePlan;
use mainstay_resilience::{
    Attempt, Breaker, Budget, Bulkhead, CallContext, CallError, Policy, Retry, Stop, Verdict,
};

use crate::attempts::throttle;
use crate::world::{Oops, World, ms, poll_once, secs, world};

/// A retry of three attempts, ten milliseconds apart.
fn policy(w: &World) -> mainstay_resilience::policy::PolicyBuilder {
    let retry = Retry::constant(ms(10)).attempts(3).build().unwrap();
    Policy::builder("p").runtime(&w.runtime).idempotent().without_budget().retry(retry)
}

fn by_status(result: &Result<u16, Oops>) -> Verdict {
    match result {
        Ok(status) => Verdict::of_http(*status, None),
        Err(_) => Verdict::RETRYABLE,
    }
}

/// A rate of one attempt in two seconds, with one token saved up.
async fn slow_rate(w: &World) -> SendRate {
    let rate = SendRate::builder("r").runtime(&w.runtime).longest_wait(secs(1)).build().unwrap();
    throttle(&rate, 1).await;
    w.advance(secs(2)).await;
    assert_eq!(rate.snapshot().rate, Some(1.4));
    rate
}

/// The call had one attempt, which was answered, and was refused a second one by `code`.
#[track_caller]
fn ran(error: &CallError<Oops>, code: &str) {
    assert_eq!((error.code(), error.attempts(), error.was_started()), (code, 1, true));
    let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
    assert!(gave_up.first().is_none(), "the first attempt had an answer");
    let stop = if code == "deadline" { Stop::Deadline } else { Stop::NotRetryable };
    assert_eq!(gave_up.stop(), stop, "{code}");
}

#[test]
fn an_answer_that_counts_as_a_failure_was_an_attempt_whoever_refuses_the_next_one() {
    world(|w| async move {
        let cx = CallContext::new();
        let unwell = |_: Attempt<'_>| async { Ok::<_, Oops>(503) };
        // The breaker, opened by that answer for less than the backoff; another call has the only probe.
        let breaker = Breaker::builder("b").runtime(&w.runtime).consecutive(1).open_for(ms(5));
        let breaker = breaker.half_open(HalfOpen::permits(1)).build().unwrap();
        let p = policy(&w).breaker(&breaker).build().unwrap();
        let mut call = Box::pin(p.call_with(&cx, by_status, unwell));
        assert!(poll_once(&mut call).is_pending());
        w.jump(ms(6));
        let probe = breaker.admit().unwrap();
        ran(&call.await.unwrap_err(), "open");
        probe.ignore();
        // A full pool. Nothing may be answered in place of a call that may have had an effect.
        let pool = Bulkhead::builder("pool", 1).runtime(&w.runtime).build().unwrap();
        let p = policy(&w).attempt_bulkhead(&pool).build().unwrap();
        let refused_only = Fallback::when("cached", When::Refused).unwrap();
        let call = p.call_with(&cx, by_status, unwell);
        let second = |_: &CallError<Oops>| async { Ok(200) };
        let mut call = Box::pin(refused_only.call(call, second));
        assert!(poll_once(&mut call).is_pending());
        let held = pool.try_acquire().unwrap();
        let failed = call.await.unwrap_err();
        assert_eq!((failed.fallback(), refused_only.used()), (None, 0));
        ran(failed.primary(), "full");
        drop(held);
        // A turn that would come too late.
        let rate = slow_rate(&w).await;
        let p = policy(&w).deadline(ms(100)).send_rate(&rate).build().unwrap();
        ran(&p.call_with(&cx, by_status, unwell).await.unwrap_err(), "rate");
    });
}

#[test]
fn rt5_a_retry_that_the_breaker_will_refuse_is_neither_waited_nor_paid_for() {
    world(|w| async move {
        let budget = Budget::builder("x").aws().runtime(&w.runtime).build().unwrap();
        let breaker = Breaker::builder("b").runtime(&w.runtime).consecutive(1).build().unwrap();
        let p = policy(&w).budget(&budget).breaker(&breaker).build().unwrap();
        let (cx, t0) = (CallContext::new(), w.now());
        let error = p.call(&cx, |_| async { Err::<u16, _>(Oops::Broken) }).await.unwrap_err();
        assert_eq!((error.code(), error.attempts(), w.now()), ("open", 1, t0));
        let CallError::GaveUp(gave_up) = &error else { panic!("{error:?}") };
        assert_eq!(gave_up.first().and_then(CallError::inner), Some(&Oops::Broken));
        // An answer is returned as it is: there is no further attempt.
        breaker.reset("again");
        assert_eq!(p.call_with(&cx, by_status, |_| async { Ok(503) }).await.unwrap(), 503);
        let snapshot = p.snapshot();
        assert_eq!((snapshot.retries, snapshot.rejected, w.now()), (0, 2, t0));
        assert_eq!(budget.tokens(), Some(500.0));
    });
}

#[test]
fn rt11_what_a_retry_paid_comes_back_if_it_does_not_start() {
    world(|w| async move {
        let budget = Budget::builder("x").aws().runtime(&w.runtime).build().unwrap();
        let pool = Bulkhead::builder("pool", 1).runtime(&w.runtime).build().unwrap();
        let p = policy(&w).budget(&budget).attempt_bulkhead(&pool).build().unwrap();
        let cx = CallContext::new();
        let call = || Box::pin(p.call(&cx, |_| async { Err::<u16, _>(Oops::Broken) }));
        // Dropped during its backoff.
        let mut dropped = call();
        assert!(poll_once(&mut dropped).is_pending());
        assert_eq!(budget.tokens(), Some(486.0));
        drop(dropped);
        assert_eq!(budget.tokens(), Some(500.0));
        // Refused a permit after it.
        let mut refused = call();
        assert!(poll_once(&mut refused).is_pending());
        let held = pool.try_acquire().unwrap();
        assert_eq!(refused.await.unwrap_err().code(), "full");
        assert_eq!(budget.tokens(), Some(500.0));
        drop(held);
        // Both retries start: both are paid.
        assert_eq!(call().await.unwrap_err().attempts(), 3);
        assert_eq!(budget.tokens(), Some(472.0));
    });
}

#[test]
fn rt4_no_attempt_starts_after_a_backoff_that_outlived_the_deadline() {
    world(|w| async move {
        let p = policy(&w).deadline(secs(1)).build().unwrap();
        let cx = CallContext::new();
        let started = Cell::new(0);
        let fails = |_: Attempt<'_>| {
            started.set(started.get() + 1);
            async { Err::<u16, _>(Oops::Broken) }
        };
        let mut call = Box::pin(p.call(&cx, fails));
        assert!(poll_once(&mut call).is_pending());
        // The machine was suspended: the timer of the backoff fires long after the deadline.
        w.jump(secs(5));
        let error = call.await.unwrap_err();
        assert_eq!((started.get(), error.code(), error.attempts()), (1, "deadline", 1));
        let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
        assert_eq!(gave_up.first().and_then(CallError::inner), Some(&Oops::Broken));
        // The same after an answer.
        let unwell = |_: Attempt<'_>| async { Ok::<_, Oops>(503) };
        let mut call = Box::pin(p.call_with(&cx, by_status, unwell));
        assert!(poll_once(&mut call).is_pending());
        w.jump(secs(5));
        ran(&call.await.unwrap_err(), "deadline");
    });
}

/// Whether the token that was saved up is still there; takes it, and saves up another one.
async fn has_token(w: &World, rate: &SendRate) -> bool {
    let there = poll_once(rate.acquire(Deadline::NONE)).is_ready();
    w.advance(secs(5)).await;
    there
}

#[test]
fn a_token_of_the_send_rate_comes_back_unless_an_attempt_started() {
    world(|w| async move {
        let rate = slow_rate(&w).await;
        let cx = CallContext::new();
        let ok = |_: Attempt<'_>| async { Ok::<_, Oops>(()) };
        let base = || Policy::builder("p").runtime(&w.runtime).send_rate(&rate);
        // An attempt that starts keeps it.
        base().build().unwrap().call(&cx, ok).await.unwrap();
        assert!(!has_token(&w, &rate).await);
        w.advance(secs(5)).await;
        // The pool is full.
        let pool = Bulkhead::builder("pool", 1).runtime(&w.runtime).build().unwrap();
        let held = pool.try_acquire().unwrap();
        let p = base().attempt_bulkhead(&pool).build().unwrap();
        assert_eq!(p.call(&cx, ok).await.unwrap_err().code(), "full");
        assert!(has_token(&w, &rate).await, "full");
        // The call is dropped in the line for a permit.
        let line = Bulkhead::builder("line", 1).queue(4, secs(60)).runtime(&w.runtime).build().unwrap();
        let taken = line.try_acquire().unwrap();
        let p = base().attempt_bulkhead(&line).build().unwrap();
        assert!(poll_once(p.call(&cx, ok)).is_pending());
        assert!(has_token(&w, &rate).await, "dropped in line");
        // The permit comes too late.
        let p = base().deadline(secs(1)).attempt_bulkhead(&line).build().unwrap();
        let mut call = Box::pin(p.call(&cx, ok));
        assert!(poll_once(&mut call).is_pending());
        w.jump(secs(2));
        drop(taken);
        assert_eq!(call.await.unwrap_err().code(), "deadline");
        assert!(has_token(&w, &rate).await, "too late");
        // The breaker is half-open without a free permit.
        let half_open = HalfOpen::permits(1);
        let breaker = Breaker::builder("b").runtime(&w.runtime).consecutive(1).half_open(half_open);
        let breaker = breaker.open_for(ms(60)).build().unwrap();
        breaker.admit().unwrap().failure();
        w.advance(secs(1)).await;
        let probe = breaker.admit().unwrap();
        let p = base().breaker(&breaker).build().unwrap();
        assert_eq!(p.call(&cx, ok).await.unwrap_err().code(), "open");
        assert!(has_token(&w, &rate).await, "half-open");
        probe.failure();
        drop(held);
    });
}

#[test]
fn an_open_breaker_is_not_waited_for() {
    world(|w| async move {
        let rate = slow_rate(&w).await;
        let breaker = Breaker::builder("b").runtime(&w.runtime).consecutive(1).build().unwrap();
        let p = Policy::builder("p").runtime(&w.runtime).send_rate(&rate).breaker(&breaker).build().unwrap();
        assert!(poll_once(rate.acquire(Deadline::NONE)).is_ready());
        breaker.force_open("migration", None);
        // The turn would come in most of a second; the answer is known now.
        let t0 = w.now();
        let refused = p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.unwrap_err();
        assert_eq!((refused.code(), w.now(), breaker.snapshot().lifetime.rejected), ("forced_open", t0, 1));
        breaker.release();
        breaker.admit().unwrap().failure();
        let refused = p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.unwrap_err();
        assert_eq!((refused.code(), w.now()), ("open", t0));
        assert!(refused.retry_after().is_some());
    });
}

#[test]
fn hg4_a_hedge_that_the_breaker_refuses_costs_no_budget() {
    world(|w| async move {
        let budget = Budget::builder("x").ratio(0.0, 3.0).runtime(&w.runtime).build().unwrap();
        let breaker = Breaker::builder("b")
            .runtime(&w.runtime)
            .consecutive(1)
            .open_for(ms(60))
            .half_open(HalfOpen::permits(1))
            .build()
            .unwrap();
        let hedge = Hedge::after(ms(50)).build().unwrap();
        let p = Policy::builder("p").runtime(&w.runtime).idempotent().hedge_plan(hedge.plan());
        let p = p.budget(&budget).breaker(&breaker).build().unwrap();
        let slow = |_: Attempt<'_>| async {
            w.advance(ms(200)).await;
            Ok::<_, Oops>(())
        };
        // The first attempt is the only probe; there is no permit for a second one.
        breaker.admit().unwrap().failure();
        w.advance(secs(1)).await;
        p.call(&CallContext::new(), slow).await.unwrap();
        assert_eq!((p.snapshot().hedges, budget.snapshot().available), (0, 3.0));
        assert_eq!(breaker.state(), State::Closed);
        // A person closes the door while the first attempt is inside.
        let cx = CallContext::new();
        let mut call = Box::pin(p.call(&cx, slow));
        assert!(poll_once(&mut call).is_pending());
        breaker.force_open("migration", None);
        call.await.unwrap();
        assert_eq!((p.snapshot().hedges, budget.snapshot().available), (0, 3.0));
    });
}

#[test]
fn a_refused_call_earns_nothing_for_retries() {
    world(|w| async move {
        let budget = Budget::builder("x").ratio(1.0, 0.0).runtime(&w.runtime).build().unwrap();
        let breaker = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        breaker.force_open("migration", None);
        let p = Policy::builder("p").runtime(&w.runtime).budget(&budget).breaker(&breaker).build().unwrap();
        for _ in 0..10 {
            assert!(p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.is_err());
        }
        assert_eq!(budget.snapshot().available, 0.0);
        breaker.release();
        p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.unwrap();
        assert_eq!(budget.snapshot().available, 1.0);
    });
}

/// A plan that is not to be hedged by, at the moment.
#[derive(Debug)]
struct NotNow;

impl HedgePlan for NotNow {
    fn delay(&self, _: Instant) -> Option<Duration> {
        None
    }
    fn succeeded(&self, _: Instant, _: Duration) {}
}

#[test]
fn a_plan_that_says_no_also_means_attempts_that_fail_at_once() {
    world(|w| async move {
        let p = Policy::builder("p").runtime(&w.runtime).idempotent().hedge_plan(Arc::new(NotNow));
        let p = p.build().unwrap();
        let fails = |_: Attempt<'_>| std::future::ready(Err::<(), _>(Oops::Broken));
        let failed = p.call(&CallContext::new(), fails).await.unwrap_err();
        assert_eq!((failed.inner(), p.snapshot().hedges), (Some(&Oops::Broken), 0));
    });
}

#[test]
fn t09_a_policy_tells_its_breaker_how_long_callers_wait() {
    world(|w| async move {
        let cx = CallContext::new();
        for (ran, attempt_timeout, state) in [
            (ms(160), Some(ms(300)), State::Open),
            (ms(140), Some(ms(300)), State::Closed),
            (ms(160), None, State::Closed),
            (ms(1_010), None, State::Open),
        ] {
            let breaker = Breaker::builder("b").runtime(&w.runtime).consecutive(1).build().unwrap();
            let mut p = Policy::builder("p").runtime(&w.runtime).breaker(&breaker);
            if let Some(d) = attempt_timeout {
                p = p.attempt_timeout(d);
            }
            let p = p.build().unwrap();
            let mut call = Box::pin(p.call(&cx, |_| std::future::pending::<Result<(), Oops>>()));
            assert!(poll_once(&mut call).is_pending());
            w.jump(ran);
            drop(call);
            assert_eq!(breaker.state(), state, "{ran:?} of {attempt_timeout:?}");
        }
        // What the breaker says itself wins.
        let breaker = Breaker::builder("b").runtime(&w.runtime).consecutive(1);
        let breaker = breaker.attempt_timeout(secs(2)).build().unwrap();
        let p = Policy::builder("p").runtime(&w.runtime).breaker(&breaker).attempt_timeout(ms(300)).build();
        let p = p.unwrap();
        let mut call = Box::pin(p.call(&cx, |_| std::future::pending::<Result<(), Oops>>()));
        assert!(poll_once(&mut call).is_pending());
        w.jump(ms(290));
        drop(call);
        assert_eq!(breaker.state(), State::Closed);
    });
}
