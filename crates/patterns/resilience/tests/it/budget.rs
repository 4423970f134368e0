//! RT9, RT10 (unit form), M-T2, and the rules of the presets.

use std::sync::atomic::{AtomicU64, Ordering};

use mainstay_clock::{Runtime, SeededRng};
use mainstay_resilience::budget::Cost;
use mainstay_resilience::{Budget, CallContext, Policy, Retry};

use crate::world::{HandClock, Oops, World, ms, secs, world};

fn drain(b: &Budget) -> u64 {
    (0..).take_while(|_| b.spend(Cost::Retry).is_ok()).count() as u64
}

#[test]
fn rt9_sixteen_threads_never_overspend() {
    let (clock, runtime) = HandClock::runtime();
    let b = Budget::builder("b").ratio(0.0, 1_000.0).runtime(&runtime).build().unwrap();
    let spent = AtomicU64::new(0);
    std::thread::scope(|s| {
        for _ in 0..16 {
            s.spawn(|| {
                for _ in 0..500 {
                    spent.fetch_add(u64::from(b.spend(Cost::Hedge).is_ok()), Ordering::SeqCst);
                }
            });
        }
        s.spawn(|| (0..100).for_each(|_| clock.advance(ms(1))));
    });
    let spent = spent.into_inner();
    assert!((1_000..=1_100).contains(&spent), "{spent}");
}

#[test]
fn rt9_credit_expires_and_slow_clients_get_the_floor() {
    let (clock, runtime) = HandClock::runtime();
    let b = Budget::builder("b").runtime(&runtime).build().unwrap();
    assert_eq!(drain(&b), 10);
    // An hour of saving is worth one second.
    clock.advance(secs(3_600));
    assert_eq!(drain(&b), 10);
    // One call in four seconds: less than one per second of floor still adds up.
    let slow = Budget::builder("b").ratio(0.0, 0.25).runtime(&runtime).build().unwrap();
    assert_eq!(drain(&slow), 0);
    let mut paid = 0;
    for _ in 0..10 {
        clock.advance(secs(4));
        paid += drain(&slow);
    }
    assert_eq!(paid, 10);
}

#[test]
fn the_ratio_rule_pays_a_share_of_first_attempts() {
    world(|w| async move {
        let b = Budget::builder("b").ratio(0.2, 0.0).runtime(&w.runtime).build().unwrap();
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent()
            .budget(&b)
            .retry(Retry::constant(ms(1)).build().unwrap())
            .build()
            .unwrap();
        for _ in 0..100 {
            p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.unwrap();
        }
        assert_eq!(drain(&b), 20);
        assert_eq!(b.snapshot().refused, 1);
    });
}

#[test]
fn the_finagle_preset_keeps_ten_seconds() {
    let (clock, runtime) = HandClock::runtime();
    let b = Budget::builder("b").finagle().runtime(&runtime).build().unwrap();
    assert_eq!(drain(&b), 100);
    clock.advance(secs(5));
    assert_eq!(drain(&b), 50);
    clock.advance(secs(500));
    assert_eq!(drain(&b), 100);
}

#[test]
fn the_grpc_preset_pauses_below_half() {
    world(|w| async move {
        let b = Budget::builder("b").grpc(10, 0.5).runtime(&w.runtime).build().unwrap();
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent()
            .budget(&b)
            .retry(Retry::constant(ms(1)).attempts(100).build().unwrap())
            .build()
            .unwrap();
        let failed = p.call(&CallContext::new(), |_| async { Err::<(), _>(Oops::Broken) }).await.unwrap_err();
        assert_eq!((failed.attempts(), b.tokens()), (5, Some(5.0)));
        p.call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) }).await.unwrap();
        assert_eq!(b.tokens(), Some(5.5));
    });
}

#[test]
fn the_in_flight_preset_counts_what_runs() {
    world(|w| async move {
        let b = Budget::builder("b").in_flight(0.2, 1).runtime(&w.runtime).build().unwrap();
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent()
            .budget(&b)
            .retry(Retry::constant(secs(1)).build().unwrap())
            .build()
            .unwrap();
        let cx = CallContext::new();
        let calls: Vec<_> = (0..20).map(|_| p.call(&cx, |_| async { Err::<(), _>(Oops::Broken) })).collect();
        let results = futures_util::future::join_all(calls).await;
        let most = results.iter().map(|r| r.as_ref().unwrap_err().attempts()).max();
        let retried = results.iter().filter(|r| r.as_ref().unwrap_err().attempts() > 1).count();
        assert!(most > Some(1) && (1..=4).contains(&retried), "{retried}");
        assert_eq!(b.snapshot().available, 1.0);
    });
}

/// One dependency that is down for good, below three layers of three attempts; what reaches it per first call.
async fn amplification(w: &World, budget: Option<&Budget>, calls: u64, gap: std::time::Duration) -> f64 {
    let layer = |name: &str| {
        let retry = Retry::constant(ms(1)).attempts(3).build().unwrap();
        let b = Policy::builder(name).runtime(&w.runtime).idempotent().retry(retry);
        budget.map_or_else(|| b.clone().without_budget(), |budget| b.clone().budget(budget)).build().unwrap()
    };
    let (a, b, c) = (layer("a"), layer("b"), layer("c"));
    let sent = AtomicU64::new(0);
    for _ in 0..calls {
        let cx = CallContext::new();
        let result = a
            .call(&cx, |at| {
                let (b, c, sent, cx) = (&b, &c, &sent, at.nest());
                async move {
                    b.call(&cx, |at| {
                        let cx = at.nest();
                        async move {
                            c.call(&cx, |_| async move {
                                sent.fetch_add(1, Ordering::SeqCst);
                                Err::<(), _>(Oops::Broken)
                            })
                            .await
                        }
                    })
                    .await
                }
            })
            .await;
        assert!(result.is_err());
        w.advance(gap).await;
    }
    sent.into_inner() as f64 / calls as f64
}

#[test]
fn rt10_m_t2_nested_layers_share_one_budget() {
    world(|w| async move {
        assert_eq!(amplification(&w, None, 10, ms(1)).await, 27.0);
        let strict = Budget::builder("b").ratio(0.2, 0.0).runtime(&w.runtime).build().unwrap();
        let strict = amplification(&w, Some(&strict), 2_000, ms(1)).await;
        assert!(strict > 1.0 && strict <= 1.2, "{strict}");
    });
}

#[test]
fn a_budget_of_the_context_serves_layers_without_their_own() {
    world(|w| async move {
        let shared = Budget::builder("b").ratio(0.0, 1.0).runtime(&w.runtime).build().unwrap();
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent()
            .retry(Retry::constant(ms(1)).attempts(10).build().unwrap())
            .build()
            .unwrap();
        let cx = CallContext::new().with_budget(&shared);
        let failed = p.call(&cx, |_| async { Err::<(), _>(Oops::Broken) }).await.unwrap_err();
        assert_eq!((failed.attempts(), shared.snapshot().refused), (2, 1));
        // Without one above: the policy's default, ten of credit.
        let failed = p.call(&CallContext::new(), |_| async { Err::<(), _>(Oops::Broken) }).await.unwrap_err();
        assert_eq!(failed.attempts(), 10);
    });
}

#[test]
fn budgets_refuse_what_means_nothing() {
    let (_, runtime) = HandClock::runtime();
    let field =
        |b: mainstay_resilience::budget::BudgetBuilder| b.runtime(&runtime).build().unwrap_err().field();
    let b = || Budget::builder("b");
    assert_eq!(field(b().ratio(-0.1, 1.0)), "ratio");
    assert_eq!(field(b().ratio(f64::NAN, 1.0)), "ratio");
    assert_eq!(field(b().ratio(0.0, 0.0)), "ratio");
    assert_eq!(field(b().ratio(0.1, f64::INFINITY)), "floor");
    assert_eq!(field(b().credit(ms(0))), "credit");
    assert_eq!(field(b().in_flight(1.1, 3)), "share");
    assert_eq!(field(b().grpc(0, 0.0)), "max");
    let system = Runtime::system();
    let seeded = Runtime::on_tokio(system.clock().clone(), std::sync::Arc::new(SeededRng::new(1)));
    assert!(b().runtime(&seeded).build().is_ok());
}
