//! SK1-SK12: the bugs of the textbook's sketch, each against the preset with its numbers.

use std::time::Duration;

use mainstay_clock::SeededRng;
use mainstay_clock::backoff::Jitter;
use mainstay_resilience::breaker::State;
use mainstay_resilience::bulkhead::Partitions;
use mainstay_resilience::{Breaker, Bulkhead, CallContext, Policy, Reason, Retry};

use crate::world::{Oops, World, ms, poll_once, secs, world};

fn classic(w: &World) -> Breaker {
    Breaker::builder("b").classic().runtime(&w.runtime).build().unwrap()
}

fn fail(b: &Breaker, n: u32) {
    (0..n).for_each(|_| b.admit().unwrap().failure());
}

#[test]
fn sk1_half_open_does_not_flood() {
    world(|w| async move {
        let b = classic(&w);
        fail(&b, 5);
        assert_eq!(b.admit().unwrap_err().retry_after(), Some(secs(60)));
        w.advance(secs(60)).await;
        let probes: Vec<_> = (0..1_000).filter_map(|_| b.admit().ok()).collect();
        assert_eq!(probes.len(), 3);
    });
}

#[test]
fn sk2_one_success_neither_closes_nor_is_a_straggler_heard() {
    world(|w| async move {
        let b = classic(&w);
        let straggler = b.admit().unwrap();
        fail(&b, 5);
        straggler.success();
        assert_eq!(b.state(), State::Open);
        w.advance(secs(60)).await;
        for left in (0..3).rev() {
            b.admit().unwrap().success();
            assert_eq!(b.state() == State::Closed, left == 0);
        }
    });
}

#[test]
fn sk3_four_of_five_failures_trip_a_rate() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        for i in 0..20 {
            let Ok(ticket) = b.admit() else { break };
            if i % 5 == 4 { ticket.success() } else { ticket.failure() }
        }
        fail_if_closed(&b);
        assert_eq!(b.state(), State::Open);
    });
}

fn fail_if_closed(b: &Breaker) {
    if let Ok(ticket) = b.admit() {
        ticket.failure();
    }
}

#[test]
fn sk4_failures_while_open_do_not_postpone_recovery() {
    world(|w| async move {
        let b = classic(&w);
        let old: Vec<_> = (0..10).map(|_| b.admit().unwrap()).collect();
        fail(&b, 5);
        for ticket in old {
            w.advance(secs(5)).await;
            ticket.failure();
        }
        w.advance(secs(10)).await;
        assert!(b.admit().is_ok());
    });
}

#[test]
fn sk5_the_wall_clock_does_not_matter() {
    world(|w| async move {
        let b = classic(&w);
        fail(&b, 5);
        w.clock.jump_wall(3_600_000);
        assert!(b.admit().is_err());
        w.clock.jump_wall(-7_200_000);
        w.advance(secs(60)).await;
        assert!(b.admit().is_ok());
    });
}

#[test]
fn sk6_hung_calls_count() {
    world(|w| async move {
        let b = classic(&w);
        let p =
            Policy::builder("p").runtime(&w.runtime).breaker(&b).attempt_timeout(ms(300)).build().unwrap();
        for _ in 0..5 {
            assert!(
                p.call(&CallContext::new(), |_| std::future::pending::<Result<(), Oops>>()).await.is_err()
            );
        }
        assert_eq!(b.state(), State::Open);
        // Without any timeout: callers that lose patience are evidence too.
        let b = classic(&w);
        for _ in 0..5 {
            let hung = b.admit().unwrap();
            w.advance(secs(1)).await;
            drop(hung);
        }
        assert_eq!(b.state(), State::Open);
    });
}

#[test]
fn sk7_business_errors_and_short_drops_do_not_count() {
    world(|w| async move {
        let b = classic(&w);
        for _ in 0..100 {
            assert!(b.call(|| async { Err::<(), _>(Oops::Invalid) }).await.is_err());
        }
        b.admit().unwrap().success();
        assert!(poll_once(b.call(std::future::pending::<Result<(), Oops>>)).is_pending());
        assert_eq!((b.state(), b.snapshot().lifetime.failures), (State::Closed, 0));
    });
}

#[test]
fn sk8_refusals_are_typed_breakers_are_keyed_and_a_person_can_steer() {
    world(|w| async move {
        let all = Breaker::builder("hosts").classic().runtime(&w.runtime).keyed(10, secs(60)).unwrap();
        fail(&all.get("a"), 5);
        let refused = all.get("a").admit().unwrap_err();
        assert_eq!(
            (refused.policy(), refused.why(), refused.retry_after()),
            ("hosts", &Reason::Open, Some(secs(60)))
        );
        assert!(all.get("b").admit().is_ok());
        all.get("a").reset("fixed");
        assert!(all.get("a").admit().is_ok());
        let rate = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        fail(&rate, 19);
        assert_eq!(rate.state(), State::Closed, "a minimum of calls");
    });
}

#[test]
fn sk9_an_unknown_partition_is_not_full_and_an_unsettled_call_leaks_nothing() {
    world(|w| async move {
        let b = |name: &str, n| Bulkhead::builder(name, n).runtime(&w.runtime).build().unwrap();
        let all =
            Partitions::new([b("payment-service", 10), b("email-service", 5), b("analytics", 20)]).unwrap();
        assert_eq!(all.get("billing").unwrap_err().field(), "partition");
        let email = all.get("email-service").unwrap();
        for _ in 0..100 {
            let cx = CallContext::new();
            let call = email.call(&cx, std::future::pending::<Result<(), Oops>>);
            assert!(poll_once(call).is_pending());
        }
        assert_eq!(email.snapshot().in_flight, 0);
    });
}

#[test]
fn sk10_attempts_are_attempts_and_none_is_refused() {
    world(|w| async move {
        let retry = |n| Retry::constant(ms(1)).attempts(n).build();
        assert_eq!(retry(0).unwrap_err().field(), "attempts");
        let p = Policy::builder("p").runtime(&w.runtime).retry(retry(1).unwrap()).build().unwrap();
        let calls = std::cell::Cell::new(0);
        let cx = CallContext::new();
        let result = p.call(&cx, |_| {
            calls.set(calls.get() + 1);
            async { Err::<(), _>(Oops::Broken) }
        });
        assert_eq!((result.await.unwrap_err().inner(), calls.get()), (Some(&Oops::Broken), 1));
    });
}

#[test]
fn sk11_jitter_stays_below_the_cap() {
    let rng = SeededRng::new(3);
    for jitter in [Jitter::Full, Jitter::Equal, Jitter::Decorrelated] {
        let retry = Retry::exponential(ms(100), secs(1)).jitter(jitter).build().unwrap();
        let most = (0..100_000).map(|_| retry.schedule().delay(30, Some(secs(1)), &rng)).max();
        assert!(most <= Some(secs(1)) && most > Some(ms(990)), "{jitter:?} {most:?}");
    }
}

#[test]
fn sk12_refusals_are_not_retried_and_the_deadline_holds() {
    world(|w| async move {
        let b = classic(&w);
        fail(&b, 5);
        let retry = Retry::exponential(ms(100), secs(10)).attempts(100).build().unwrap();
        let p = Policy::builder("p").runtime(&w.runtime).idempotent().deadline(secs(2)).retry(retry);
        let t0 = w.now();
        let refused = p.clone().breaker(&b).build().unwrap();
        let error = refused.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.unwrap_err();
        assert_eq!((error.code(), error.attempts(), w.now()), ("open", 0, t0));
        let p = p.build().unwrap();
        let error = p.call(&CallContext::new(), |_| async { Err::<(), _>(Oops::Broken) }).await.unwrap_err();
        assert!(
            error.attempts() > 1
                && w.now().saturating_duration_since(t0) <= secs(2) + Duration::from_millis(1)
        );
    });
}
