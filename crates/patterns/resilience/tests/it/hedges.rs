//! Hedges, run by a policy in virtual time.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock as _, Instant, Runtime, SeededRng};
use mainstay_resilience::hedge::Hedge;
use mainstay_resilience::policy::PolicyBuilder;
use mainstay_resilience::{Breaker, Budget, Bulkhead, CallContext, Classify, Policy, Retry, Verdict};

use crate::des::World;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[derive(Debug, PartialEq)]
enum Failure {
    Down(&'static str),
    Invalid,
}

impl Classify for Failure {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Down(_) => Verdict::RETRYABLE,
            Self::Invalid => Verdict::Ignore,
        }
    }
}

/// A world, its runtime, and a policy builder with a hedge after 50 ms.
fn hedged(hedge: &Hedge) -> (World, Runtime, PolicyBuilder) {
    let world = World::new();
    let runtime = world.clock.runtime(1);
    let policy = Policy::builder("x").runtime(&runtime).idempotent().hedge_plan(hedge.plan());
    (world, runtime, policy)
}

/// Runs one call to its end; operations are numbered and take what `f` says.
fn call<T: 'static>(
    world: &World,
    policy: &Policy,
    cx: CallContext,
    f: impl Fn(bool) -> (u64, Result<T, Failure>) + 'static,
) -> (Result<T, Option<Failure>>, f64) {
    let out = Rc::new(RefCell::new(None));
    let (policy, clock, slot) = (policy.clone(), world.clock.clone(), Rc::clone(&out));
    let begun = world.clock.seconds();
    world.spawn(async move {
        let clock = &clock;
        let f = &f;
        let result = policy
            .call(&cx, |a| async move {
                let (takes, result) = f(a.is_hedge());
                clock.sleep(ms(takes)).await;
                result
            })
            .await;
        *slot.borrow_mut() = Some((result.map_err(|e| e.into_inner()), clock.seconds() - begun));
    });
    world.run(begun + 100.0);
    out.take().unwrap()
}

fn near(seconds: f64, expected_ms: u64) -> bool {
    (seconds - expected_ms as f64 / 1e3).abs() < 0.001
}

struct Live(Arc<AtomicU32>);

impl Live {
    fn new(count: &Arc<AtomicU32>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[test]
fn hg1_the_loser_is_cancelled_and_its_permit_and_ticket_come_back() {
    let hedge = Hedge::after(ms(50)).build().unwrap();
    let (world, runtime, policy) = hedged(&hedge);
    let bulkhead = Bulkhead::builder("x", 1).runtime(&runtime).build().unwrap();
    let breaker = Breaker::builder("x").runtime(&runtime).build().unwrap();
    let policy = policy.bulkhead(&bulkhead).breaker(&breaker).build().unwrap();
    let live = Arc::new(AtomicU32::new(0));
    let most = Arc::new(AtomicU32::new(0));
    let (count, peak) = (Arc::clone(&live), Arc::clone(&most));
    let out = Rc::new(RefCell::new(None));
    let (clock, slot, caller) = (world.clock.clone(), Rc::clone(&out), policy.clone());
    world.spawn(async move {
        let cx = CallContext::new();
        let result = caller
            .call(&cx, |a| {
                let live = Live::new(&count);
                peak.fetch_max(count.load(Ordering::SeqCst), Ordering::SeqCst);
                let clock = clock.clone();
                async move {
                    clock.sleep(ms(if a.is_hedge() { 20 } else { 5_000 })).await;
                    drop(live);
                    Ok::<_, Failure>(a.is_hedge())
                }
            })
            .await;
        *slot.borrow_mut() = Some((result.unwrap(), clock.seconds()));
    });
    world.run(1.0);
    let (won, at) = out.take().unwrap();
    assert!(won && near(at, 70), "{at}");
    assert_eq!((most.load(Ordering::SeqCst), live.load(Ordering::SeqCst)), (2, 0), "the loser is gone");
    assert_eq!(bulkhead.snapshot().in_flight, 0);
    let lifetime = breaker.snapshot().lifetime;
    assert_eq!((lifetime.successes, lifetime.abandoned), (Some(1), 1), "each arm had its own ticket");
}

#[test]
fn hg2_the_delay_follows_the_live_percentile() {
    let hedge = Hedge::at_percentile(0.95).initially(ms(500)).window(Duration::from_secs(4)).build().unwrap();
    let (world, _, policy) = hedged(&hedge);
    let policy = policy.without_budget().build().unwrap();
    let rng = SeededRng::new(5);
    let serve = |base: u64, calls: u64| {
        for _ in 0..calls {
            let takes = base + mainstay_clock::Rng::below(&rng, base);
            let (result, _) = call(&world, &policy, CallContext::new(), move |hedge| {
                (if hedge { 1 } else { takes }, Ok(()))
            });
            assert!(result.is_ok());
        }
    };
    serve(10, 99);
    assert_eq!(hedge.delay(), Some(ms(500)), "fixed until 100 samples");
    serve(10, 200);
    let fast = hedge.delay().unwrap();
    assert!(fast >= ms(18) && fast <= ms(21), "{fast:?}: p95 of 10 to 20 ms");
    serve(100, 400);
    let slow = hedge.delay().unwrap();
    assert!(slow > 3 * fast, "{slow:?}: the latency has shifted tenfold");
}

#[test]
fn hg3_only_operations_declared_idempotent_are_hedged() {
    let hedge = Hedge::after(ms(50)).build().unwrap();
    let refused = Policy::builder("x").hedge_plan(hedge.plan()).build().unwrap_err();
    assert_eq!(refused.field(), "idempotent");
    let world = World::new();
    let runtime = world.clock.runtime(1);
    let policy = Policy::builder("x")
        .runtime(&runtime)
        .idempotent_per_call()
        .hedge_plan(hedge.plan())
        .build()
        .unwrap();
    let slow = |hedge| (if hedge { 1 } else { 300 }, Ok(hedge));
    let (result, took) = call(&world, &policy, CallContext::new(), slow);
    assert!(result == Ok(false) && near(took, 300), "undeclared: {result:?} after {took}");
    let (result, took) = call(&world, &policy, CallContext::new().with_key("k"), slow);
    assert!(result == Ok(true) && near(took, 51), "with a key: {result:?} after {took}");
}

#[test]
fn hg4_without_budget_no_hedge_and_each_costs_one() {
    let hedge = Hedge::after(ms(50)).build().unwrap();
    let (world, runtime, policy) = hedged(&hedge);
    let budget = Budget::builder("x").ratio(0.0, 3.0).runtime(&runtime).build().unwrap();
    let policy = policy.budget(&budget).build().unwrap();
    let slow = |hedge| (if hedge { 1 } else { 300 }, Ok(hedge));
    let begun = world.clock.seconds();
    let hedges = (0..10).filter(|_| call(&world, &policy, CallContext::new(), slow).0.unwrap()).count();
    assert_eq!(policy.snapshot().hedges, hedges as u64);
    // 3 tokens at the start and 3 per second: ten calls of 51 or 300 ms.
    let earned = 3.0 * (world.clock.seconds() - begun);
    assert!((3..10).contains(&hedges) && hedges as f64 <= 3.0 + earned, "{hedges} with {earned} earned");
    let broke = Budget::builder("y").ratio(0.001, 0.0).runtime(&runtime).build().unwrap();
    let policy = Policy::builder("y").runtime(&runtime).idempotent().hedge_plan(hedge.plan()).budget(&broke);
    let policy = policy.build().unwrap();
    let (result, took) = call(&world, &policy, CallContext::new(), slow);
    assert!(result == Ok(false) && near(took, 300), "an empty budget hedges nothing: {took}");
    assert_eq!(policy.snapshot().hedges, 0);
}

#[test]
fn hg5_the_first_success_wins_not_the_first_result() {
    let hedge = Hedge::after(ms(50)).build().unwrap();
    let (world, _, policy) = hedged(&hedge);
    let policy = policy.build().unwrap();
    // A primary that fails fast starts the hedge at once.
    let (result, took) = call(&world, &policy, CallContext::new(), |hedge| {
        if hedge { (20, Ok("hedge")) } else { (5, Err(Failure::Down("primary"))) }
    });
    assert!(result == Ok("hedge") && near(took, 25), "{result:?} after {took}");
    // A hedge that fails first does not end the call.
    let (result, took) = call(&world, &policy, CallContext::new(), |hedge| {
        if hedge { (5, Err(Failure::Down("hedge"))) } else { (200, Ok("primary")) }
    });
    assert!(result == Ok("primary") && near(took, 200), "{result:?} after {took}");
    // Both fail: the primary's error.
    for (first, second) in [(5, 20), (200, 5)] {
        let (result, _) = call::<()>(&world, &policy, CallContext::new(), move |hedge| {
            if hedge { (second, Err(Failure::Down("hedge"))) } else { (first, Err(Failure::Down("primary"))) }
        });
        assert_eq!(result, Err(Some(Failure::Down("primary"))));
    }
    // What says nothing about the dependency is an answer: nothing to hedge.
    let (result, took) = call::<()>(&world, &policy, CallContext::new(), |_| (5, Err(Failure::Invalid)));
    assert!(result == Err(Some(Failure::Invalid)) && near(took, 5), "{took}");
}

#[test]
fn hg6_retry_and_hedge_do_not_cancel_each_other() {
    let hedge = Hedge::after(ms(50)).build().unwrap();
    let (world, _, policy) = hedged(&hedge);
    let retry = Retry::constant(ms(10)).attempts(3).build().unwrap();
    let policy = policy.retry(retry).without_budget().build().unwrap();
    let log = Rc::new(RefCell::new(Vec::new()));
    let calls = Rc::new(RefCell::new(0));
    let (seen, count) = (Rc::clone(&log), Rc::clone(&calls));
    let (result, took) = call(&world, &policy, CallContext::new(), move |hedge| {
        *count.borrow_mut() += 1;
        seen.borrow_mut().push(hedge);
        // The first round fails in both arms; in the second the hedge is still running when its primary fails.
        match *count.borrow() {
            1 => (60, Err(Failure::Down("first"))),
            2 => (40, Err(Failure::Down("first hedge"))),
            3 => (80, Err(Failure::Down("second"))),
            _ => (90, Ok(vec![1, 2, 3])),
        }
    });
    // 90 ms: both of round one failed; 10 ms backoff; hedge 50 ms later; its 90 ms.
    assert!(near(took, 90 + 10 + 50 + 90), "{took}");
    assert_eq!(result, Ok(vec![1, 2, 3]), "the winner's value is whole");
    assert_eq!(*log.borrow(), [false, true, false, true]);
}

#[test]
fn m_t6_a_slow_primary_costs_at_most_the_budget_and_has_one_effect() {
    let hedge = Hedge::after(ms(50)).build().unwrap();
    let (world, runtime, policy) = hedged(&hedge);
    let budget = Budget::builder("x").ratio(0.2, 0.0).runtime(&runtime).build().unwrap();
    let policy = policy.budget(&budget).build().unwrap();
    let (started, effects) = (Rc::new(RefCell::new(0)), Rc::new(RefCell::new(0)));
    for i in 0..500_u64 {
        let (started, effects) = (Rc::clone(&started), Rc::clone(&effects));
        let (clock, policy) = (world.clock.clone(), policy.clone());
        world.spawn(async move {
            clock.until(i as f64 * 0.01).await;
            let cx = CallContext::new();
            let (clock, started, effects) = (&clock, &started, &effects);
            let result = policy
                .call(&cx, |_| async move {
                    *started.borrow_mut() += 1;
                    clock.sleep(ms(400)).await;
                    // A cancelled loser never comes this far.
                    *effects.borrow_mut() += 1;
                    Ok::<_, Failure>(())
                })
                .await;
            assert!(result.is_ok());
        });
    }
    world.run(60.0);
    assert_eq!(*effects.borrow(), 500, "one effect per call");
    let extra = *started.borrow() - 500;
    assert!(extra > 50 && extra <= 100, "{extra} hedges for 500 calls at 20 %");
}

#[test]
fn bad_hedges_are_refused() {
    let field = |b: mainstay_resilience::hedge::HedgeBuilder| b.build().map(drop).unwrap_err().field();
    assert_eq!(field(Hedge::after(Duration::ZERO)), "delay");
    assert_eq!(field(Hedge::after(Duration::MAX)), "delay");
    for p in [0.0, 0.49, 1.0, 1.5, f64::NAN, -1.0] {
        assert_eq!(field(Hedge::at_percentile(p)), "percentile");
    }
    assert_eq!(field(Hedge::at_percentile(0.9).window(Duration::ZERO)), "window");
    assert_eq!(Hedge::at_percentile(0.9).build().unwrap().delay(), None, "no delay before samples");
    let plan = Hedge::after(ms(5)).build().unwrap().plan();
    assert_eq!(plan.delay(Instant::ZERO), Some(ms(5)));
}

#[test]
fn if_l02_a_hedged_loser_cannot_keep_a_breaker_blind() {
    // Every primary hangs on host A and is dropped because the hedge on host B wins.
    let hedge = Hedge::after(ms(50)).build().unwrap();
    let (world, runtime, policy) = hedged(&hedge);
    let policy = policy.without_budget().build().unwrap();
    let host_a = Breaker::builder("host a").runtime(&runtime).build().unwrap();
    for _ in 0..30 {
        let (clock, policy, host_a) = (world.clock.clone(), policy.clone(), host_a.clone());
        world.spawn(async move {
            let cx = CallContext::new();
            let (clock, host_a) = (&clock, &host_a);
            let result = policy
                .call(&cx, |a| async move {
                    if a.is_hedge() {
                        clock.sleep(ms(5)).await;
                        return Ok(());
                    }
                    let hung = || async { std::future::pending::<Result<(), Failure>>().await };
                    host_a.call(hung).await.map_err(|_| Failure::Down("a"))
                })
                .await;
            assert!(result.is_ok());
        });
        world.run(world.clock.seconds() + 10.0);
    }
    assert_eq!(host_a.state().to_string(), "open", "thirty dropped calls and no answer are evidence");
}
