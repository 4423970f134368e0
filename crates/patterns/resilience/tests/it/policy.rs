//! PL1, PL3, PL4 and the seams.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::{Deadline, Instant};
use mainstay_resilience::budget::Cost;
use mainstay_resilience::limit::{AdaptiveLimiter, RateLimiter, Shedder};
use mainstay_resilience::policy::seam::{Ask, HedgePlan, LimitSlot, Limiter, Pass, Sample};
use mainstay_resilience::{
    Breaker, Budget, Bulkhead, CallContext, Policy, Priority, Reason, Rejected, Retry,
};

use crate::world::{HandClock, Heard, Oops, World, ms, now, secs, world};

/// Admits so many, remembers every end.
#[derive(Debug, Default)]
struct Limit {
    admit: AtomicU32,
    log: Mutex<Vec<String>>,
    name: &'static str,
}

impl Limiter for Limit {
    fn admit(&self, _: &Ask<'_>) -> Result<Pass, Rejected> {
        let n = self.admit.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        self.log.lock().unwrap().push(format!("{} {}", self.name, n.is_ok()));
        n.map(|n| Pass(u64::from(n)))
            .map_err(|_| Rejected::new(self.name.into(), Reason::Rate).with_retry_after(Some(ms(7))))
    }

    fn done(&self, pass: Pass, sample: Sample) {
        self.log.lock().unwrap().push(format!("{} done {} {:?}", self.name, pass.0, sample.outcome));
    }
}

fn limit(name: &'static str, n: u32) -> Arc<Limit> {
    Arc::new(Limit { admit: AtomicU32::new(n), name, ..Limit::default() })
}

#[test]
fn limits_are_asked_outside_in_and_hear_every_end_once() {
    world(|w| async move {
        let (throttle, rate, adaptive) = (limit("throttle", 10), limit("rate", 10), limit("adaptive", 1));
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .limit(LimitSlot::Adaptive, adaptive.clone())
            .limit(LimitSlot::Throttle, throttle.clone())
            .limit(LimitSlot::Rate, rate.clone())
            .build()
            .unwrap();
        let cx = CallContext::new();
        p.call(&cx, |_| async { Ok::<_, Oops>(()) }).await.unwrap();
        let refused = p.call(&cx, |_| async { Ok::<_, Oops>(()) }).await.unwrap_err();
        assert_eq!((refused.code(), refused.retry_after()), ("rate", Some(ms(7))));
        let take = |l: &Limit| std::mem::take(&mut *l.log.lock().unwrap());
        assert_eq!(
            take(&throttle),
            ["throttle true", "throttle done 10 Success", "throttle true", "throttle done 9 Ignored"]
        );
        assert_eq!(take(&adaptive), ["adaptive true", "adaptive done 1 Success", "adaptive false"]);
        adaptive.admit.store(5, Ordering::SeqCst);
        for (oops, outcome) in [(Oops::Broken, "Failure"), (Oops::Invalid, "Ignored")] {
            assert!(p.call(&cx, |_| async { Err::<(), _>(oops) }).await.is_err());
            assert!(take(&adaptive)[1].ends_with(outcome));
        }
        drop(crate::world::poll_once(p.call(&cx, |_| std::future::pending::<Result<(), Oops>>())));
        assert!(take(&adaptive)[1].ends_with("Abandoned"));
        take(&rate);
    });
}

/// A fixed delay.
#[derive(Debug, Default)]
struct After(Duration, AtomicU32);

impl HedgePlan for After {
    fn delay(&self, _: Instant) -> Option<Duration> {
        Some(self.0)
    }
    fn succeeded(&self, _: Instant, _: Duration) {
        self.1.fetch_add(1, Ordering::SeqCst);
    }
}

fn hedged(w: &World, budget: &Budget, breaker: &Breaker, heard: &Arc<Heard>) -> Policy {
    Policy::builder("p")
        .runtime(&w.runtime)
        .idempotent_per_call()
        .budget(budget)
        .hedge_plan(Arc::new(After(ms(50), AtomicU32::new(0))))
        .breaker(breaker)
        .attempt_timeout(secs(10))
        .listener(heard.clone())
        .build()
        .unwrap()
}

#[test]
fn a_hedge_races_a_slow_first_attempt_and_the_loser_gives_everything_back() {
    world(|w| async move {
        let heard = Arc::new(Heard::default());
        let budget = Budget::builder("b").ratio(0.0, 3.0).runtime(&w.runtime).build().unwrap();
        let breaker = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        let p = hedged(&w, &budget, &breaker, &heard);
        let declared = CallContext::new().idempotent();
        // The first hangs, the second wins.
        let op = |a: mainstay_resilience::Attempt<'_>| {
            let hedge = a.is_hedge();
            async move { if hedge { Ok::<_, Oops>("hedge") } else { std::future::pending().await } }
        };
        let t0 = w.now();
        assert_eq!(p.call(&declared, op).await.unwrap(), "hedge");
        assert!(w.now().saturating_duration_since(t0) <= ms(53));
        let s = breaker.snapshot();
        assert_eq!((s.lifetime.successes, s.lifetime.abandoned), (Some(1), 1));
        assert_eq!(budget.snapshot().available.floor(), 2.0);
        assert_eq!(heard.take().iter().filter(|e| *e == "HedgeWon").count(), 1);
        // The first fails early: the hedge starts at once and its success counts.
        let op = |a: mainstay_resilience::Attempt<'_>| {
            let hedge = a.is_hedge();
            async move { if hedge { Ok("hedge") } else { Err(Oops::Broken) } }
        };
        let t0 = w.now();
        assert_eq!(p.call(&declared, op).await.unwrap(), "hedge");
        assert_eq!(w.now(), t0);
        // Both fail: the first one's error. A business no of the first needs no second.
        let op = |a: mainstay_resilience::Attempt<'_>| {
            let hedge = a.is_hedge();
            async move { Err::<(), _>(if hedge { Oops::Fatal } else { Oops::Broken }) }
        };
        assert_eq!(p.call(&declared, op).await.unwrap_err().inner(), Some(&Oops::Broken));
        let calls = AtomicU32::new(0);
        let no = |_| async {
            calls.fetch_add(1, Ordering::SeqCst);
            Err::<(), _>(Oops::Invalid)
        };
        assert_eq!(p.call(&declared, no).await.unwrap_err().inner(), Some(&Oops::Invalid));
        // Not declared, or no budget: never.
        let slow = |_| async {
            calls.fetch_add(1, Ordering::SeqCst);
            w.advance(ms(100)).await;
            Ok::<_, Oops>(())
        };
        let undeclared = CallContext::new();
        p.call(&undeclared, slow).await.unwrap();
        while budget.spend(mainstay_resilience::budget::Cost::Hedge).is_ok() {}
        p.call(&declared, slow).await.unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), 3);
        assert_eq!(p.snapshot().hedges, 3);
    });
}

#[test]
fn pl3_every_refusal_names_policy_reason_time_and_begin() {
    world(|w| async move {
        let cx = CallContext::new();
        let op = |_| async { Ok::<_, Oops>(()) };
        let breaker = Breaker::builder("the-breaker")
            .runtime(&w.runtime)
            .open_for(secs(5))
            .jitter(0.0)
            .consecutive(1)
            .build()
            .unwrap();
        let since = w.now();
        breaker.admit().unwrap().failure();
        w.advance(secs(1)).await;
        let p = Policy::builder("p").runtime(&w.runtime).breaker(&breaker).build().unwrap();
        let r = p.call(&cx, op).await.unwrap_err().rejected().cloned().unwrap();
        assert_eq!((r.policy(), r.why(), r.since()), ("the-breaker", &Reason::Open, Some(since)));
        assert!(r.retry_after().unwrap() <= secs(4));
        let bulkhead = Bulkhead::builder("the-bulkhead", 1).runtime(&w.runtime).build().unwrap();
        let _held = bulkhead.try_acquire().unwrap();
        let p = Policy::builder("p").runtime(&w.runtime).bulkhead(&bulkhead).build().unwrap();
        let r = p.call(&cx, op).await.unwrap_err().rejected().cloned().unwrap();
        assert_eq!(
            (r.policy(), r.why()),
            ("the-bulkhead", &Reason::Full { in_flight: 1, queued: 0, limit: 1 })
        );
        assert_eq!(r.since(), Some(w.now()));
        let p = Policy::builder("the-policy").runtime(&w.runtime).build().unwrap();
        let over = CallContext::new().with_deadline(Deadline::at(w.now()));
        let r = p.call(&over, op).await.unwrap_err().rejected().cloned().unwrap();
        assert_eq!((r.policy(), r.why(), r.since()), ("the-policy", &Reason::Deadline, Some(w.now())));
        for _ in 0..200 {
            assert!(p.call(&over, op).await.is_err());
        }
        let s = p.snapshot();
        assert_eq!((s.rejected, s.last_rejected.len()), (201, 100));
    });
}

#[test]
fn pl3_a_limit_a_shedder_and_a_budget_say_since_when_they_refuse() {
    world(|w| async move {
        let rate = RateLimiter::builder("rate").rate(1, secs(60)).runtime(&w.runtime).build().unwrap();
        let adaptive = AdaptiveLimiter::builder("adaptive").initial(1).runtime(&w.runtime).build().unwrap();
        let shedder = Shedder::builder("shedder").limit(1).runtime(&w.runtime).build().unwrap();
        let budget = Budget::builder("budget").ratio(0.0, 1.0).runtime(&w.runtime).build().unwrap();
        let cx = CallContext::new();
        rate.check().unwrap();
        let _inside = adaptive.acquire().unwrap();
        let _taken: Vec<_> = (0..10).map_while(|_| shedder.admit(&cx).ok()).collect();
        budget.spend(Cost::Retry).unwrap();
        let refusals = || {
            [
                rate.check().unwrap_err(),
                adaptive.acquire().unwrap_err(),
                shedder.admit(&cx.clone().with_priority(Priority::Low)).unwrap_err(),
                budget.spend(Cost::Retry).unwrap_err(),
            ]
        };
        let begin = w.now();
        for _ in 0..3 {
            let told = refusals().map(|r| (r.policy().to_owned(), r.since()));
            let names = ["rate", "adaptive", "shedder", "budget"].map(|name| (name.to_owned(), Some(begin)));
            assert_eq!(told, names);
            w.advance(ms(300)).await;
        }
        // A pause ends the streak.
        w.advance(secs(2)).await;
        assert_eq!(rate.check().unwrap_err().since(), Some(w.now()));
    });
}

fn five(runtime: &mainstay_clock::Runtime) -> Policy {
    Policy::builder("p")
        .runtime(runtime)
        .idempotent()
        .deadline(secs(2))
        .bulkhead(&Bulkhead::builder("k", 64).runtime(runtime).build().unwrap())
        .retry(Retry::standard().build().unwrap())
        .breaker(&Breaker::builder("b").runtime(runtime).build().unwrap())
        .attempt_timeout(ms(300))
        .build()
        .unwrap()
}

#[test]
fn pl4_a_successful_call_allocates_nothing() {
    let (_, runtime) = HandClock::runtime();
    let cx = CallContext::new();
    let single = Breaker::builder("b").runtime(&runtime).build().unwrap();
    let run = Breaker::builder("b").runtime(&runtime).consecutive(5).build().unwrap();
    let count = Breaker::builder("b").runtime(&runtime).count_window(100).build().unwrap();
    let bulkhead = Bulkhead::builder("k", 4).queue(4, secs(1)).runtime(&runtime).build().unwrap();
    let p = five(&runtime);
    let used = allocation_counter::measure(|| {
        for _ in 0..1_000 {
            now(p.call(&cx, |a| async move { Ok::<_, Oops>(a.number()) })).unwrap();
            now(single.call(|| async { Ok::<_, Oops>(1) })).unwrap();
            now(run.call(|| async { Ok::<_, Oops>(1) })).unwrap();
            now(count.call(|| async { Ok::<_, Oops>(1) })).unwrap();
            now(bulkhead.call(&cx, || async { Ok::<_, Oops>(1) })).unwrap();
            drop(CallContext::new());
        }
    });
    assert_eq!(used.count_total, 0);
    // The check can fail.
    let used =
        allocation_counter::measure(|| drop(now(p.call(&cx, |_| async { Ok::<_, Oops>(Box::new(1)) }))));
    assert_eq!(used.count_total, 1);
}

#[test]
fn a_breaker_stays_within_two_kibibytes_by_default_and_with_a_thousand_results() {
    // A line of 128 bytes per core and two more, at most five: on this machine there may be fewer.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let missing = 3_i64.saturating_sub(cores as i64).max(0) * 128;
    let (_, runtime) = HandClock::runtime();
    let plain = || Breaker::builder("b").runtime(&runtime);
    for (name, builder) in [("default", plain()), ("a thousand results", plain().count_window(1_000))] {
        let mut kept = None;
        let used = allocation_counter::measure(|| kept = Some(builder.build().unwrap()));
        // The tick of a hand clock is an allocation of its own.
        assert!(used.bytes_current + missing <= 2_048, "{name}: {} bytes", used.bytes_current);
        drop(kept);
    }
}

#[test]
fn events_tell_the_story_of_a_call() {
    world(|w| async move {
        let heard = Arc::new(Heard::default());
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent()
            .retry(Retry::constant(ms(1)).build().unwrap())
            .listener(heard.clone())
            .build()
            .unwrap();
        let cx = CallContext::new();
        assert!(p.call(&cx, |_| async { Err::<(), _>(Oops::Broken) }).await.is_err());
        assert_eq!(heard.take(), ["retry 1", "retry 2", "call Failure 3"]);
        drop(crate::world::poll_once(p.call(&cx, |_| std::future::pending::<Result<(), Oops>>())));
        assert_eq!(heard.take(), ["call Abandoned 1"]);
        let over = CallContext::new().with_deadline(Deadline::at(w.now()));
        assert!(p.call(&over, |_| async { Ok::<_, Oops>(()) }).await.is_err());
        assert_eq!(heard.take(), ["rejected deadline", "call Ignored 0"]);
    });
}

#[test]
fn a_policy_refuses_settings_that_contradict_each_other() {
    let (_, runtime) = HandClock::runtime();
    let retry = || Retry::standard().build().unwrap();
    let breaker = Breaker::builder("b").probe_lease(secs(1)).runtime(&runtime).build().unwrap();
    let b = || Policy::builder("p").runtime(&runtime);
    let cases = [
        (b().deadline(ms(0)), "deadline"),
        (b().deadline(Duration::MAX), "deadline"),
        (b().attempt_timeout(ms(0)), "attempt_timeout"),
        (b().retry(retry()), "idempotent"),
        (b().hedge_plan(Arc::new(After::default())), "idempotent"),
        (b().idempotent().retry(retry()).deadline(secs(1)).attempt_timeout(secs(1)), "attempt_timeout"),
        (b().idempotent().retry(retry()).deadline(ms(50)), "base"),
        (b().breaker(&breaker).attempt_timeout(secs(2)), "probe_lease"),
    ];
    for (builder, field) in cases {
        assert_eq!(builder.build().unwrap_err().field(), field);
    }
}

fn sent<F: Future + Send>(future: F) -> F {
    future
}

/// Compiles only while a call inside a task that moves between threads is `Send`, whatever its closure borrows from
/// the attempt.
#[tokio::test]
async fn a_call_can_be_awaited_in_a_task_that_moves_between_threads() {
    let policy = Policy::builder("x").build().unwrap();
    let task = sent(async move {
        let cx = CallContext::new();
        let call = |attempt: mainstay_resilience::Attempt<'_>| {
            let number = attempt.number();
            async move { Ok::<_, std::io::Error>(number) }
        };
        let owned = policy.call(&cx, call).await.unwrap();
        let borrowing = policy.call(&cx, |attempt| async move {
            tokio::task::yield_now().await;
            Ok::<_, std::io::Error>(attempt.number())
        });
        owned + borrowing.await.unwrap()
    });
    assert_eq!(task.await, 2);
}
