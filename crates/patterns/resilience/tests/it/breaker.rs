//! T1-T24 of the breaker, in virtual time. What needs threads is in `breaker_threads`.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

use futures_util::future::{CatchUnwind, FutureExt as _};
use mainstay_resilience::breaker::{Abandoned, BreakerBuilder, Followed, HalfOpen, State};
use mainstay_resilience::{Breaker, CallContext, CallError, Policy, Reason, Verdict};

use crate::world::{Heard, Oops, World, ms, now, poll_once, secs, world};

/// The three kinds of windows, set so that five failures trip an empty one.
fn kinds(w: &World) -> [BreakerBuilder; 3] {
    let base = || {
        Breaker::builder("b")
            .runtime(&w.runtime)
            .open_for(ms(60))
            .jitter(0.0)
            .half_open(HalfOpen::permits(1))
            .min_calls(5)
    };
    [base().window(secs(10)), base().count_window(10), base().consecutive(5)]
}

fn fail(b: &Breaker, n: u32) {
    for _ in 0..n {
        b.admit().unwrap().failure();
    }
}

fn succeed(b: &Breaker, n: u32) {
    for _ in 0..n {
        b.admit().unwrap().success();
    }
}

async fn opened(w: &World, builder: &BreakerBuilder) -> Breaker {
    let b = builder.build().unwrap();
    fail(&b, 5);
    assert_eq!(b.state(), State::Open);
    w.advance(ms(60)).await;
    b
}

#[test]
fn t01_a_tripped_breaker_starts_nothing_through_any_entry_point() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = builder.build().unwrap();
            fail(&b, 5);
            let policy = Policy::builder("p").runtime(&w.runtime).breaker(&b).build().unwrap();
            let started = AtomicU32::new(0);
            let op = || async {
                started.fetch_add(1, Ordering::SeqCst);
                Ok::<_, Oops>(())
            };
            assert_eq!(b.call(op).await.unwrap_err().code(), "open");
            assert_eq!(b.call_with(|_| Verdict::Ok, op).await.unwrap_err().code(), "open");
            assert_eq!(policy.call(&CallContext::new(), |_| op()).await.unwrap_err().code(), "open");
            let refused = b.admit().unwrap_err();
            assert_eq!((refused.why(), refused.policy()), (&Reason::Open, "b"));
            assert_eq!(refused.retry_after(), Some(ms(60)));
            assert!(b.admit_owned().is_err());
            assert_eq!(started.load(Ordering::SeqCst), 0);
        }
    });
}

#[test]
fn t02_a_count_window_slides() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).count_window(10).min_calls(10).build().unwrap();
        succeed(&b, 10_000);
        fail(&b, 4);
        assert_eq!(b.state(), State::Closed);
        fail(&b, 1);
        assert_eq!(b.state(), State::Open);
    });
}

#[test]
fn t04_a_dropped_probe_gives_its_permit_back() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = opened(&w, &builder).await;
            for _ in 0..3 {
                assert!(poll_once(b.call(std::future::pending::<Result<(), Oops>>)).is_pending());
                assert_eq!(b.snapshot().probes, 0);
            }
            assert!(b.call(|| async { Ok::<_, Oops>(()) }).await.is_ok());
            assert_eq!(b.state(), State::Closed);
        }
    });
}

/// A future whose panic is caught outside, as a task does: it is dropped later, when nobody panics any more.
fn caught<F: Future>(f: F) -> CatchUnwind<AssertUnwindSafe<F>> {
    AssertUnwindSafe(f).catch_unwind()
}

async fn explode() -> Result<(), Oops> {
    panic!("planned");
}

#[test]
fn t05_a_panicking_probe_recovers_after_the_next_open_period() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = opened(&w, &builder).await;
            assert!(caught(b.call(explode)).await.is_err());
            assert_eq!(b.state(), State::Open);
            w.advance(ms(60)).await;
            assert!(b.call(|| async { Ok::<_, Oops>(()) }).await.is_ok());
            assert_eq!(b.state(), State::Closed);
        }
    });
}

#[test]
fn t06_m_b2_a_straggler_of_the_closed_generation_does_not_close_an_open_breaker() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = builder.build().unwrap();
            let straggler = b.admit().unwrap();
            fail(&b, 5);
            straggler.success();
            assert_eq!(b.state(), State::Open);
            assert_eq!(b.snapshot().lifetime.late, 1);
        }
    });
}

#[test]
fn t07_a_straggler_does_not_close_or_admit_in_half_open() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = builder.build().unwrap();
            let straggler = b.admit().unwrap();
            fail(&b, 5);
            w.advance(ms(60)).await;
            let probe = b.admit().unwrap();
            straggler.success();
            assert_eq!(b.state(), State::HalfOpen);
            for _ in 0..5 {
                assert!(b.admit().is_err());
            }
            probe.success();
            assert_eq!(b.state(), State::Closed);
        }
    });
}

#[test]
fn t08_a_failing_straggler_decides_nothing_in_later_generations() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = builder.build().unwrap();
            let (in_half_open, after_a_cycle) = (b.admit().unwrap(), b.admit().unwrap());
            fail(&b, 5);
            w.advance(ms(60)).await;
            let probe = b.admit().unwrap();
            in_half_open.failure();
            assert_eq!(b.state(), State::HalfOpen);
            probe.success();
            // Same state name, another generation: four failures and the old one must not make five.
            fail(&b, 4);
            after_a_cycle.failure();
            assert_eq!(b.state(), State::Closed);
            assert_eq!(b.snapshot().lifetime.late, 2);
        }
    });
}

#[test]
fn t09_calls_dropped_at_once_and_nothing_else_open_it() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = builder.build().unwrap();
            let mut admitted = 0;
            for _ in 0..500 {
                admitted += u32::from(b.state() == State::Closed);
                assert!(!matches!(
                    poll_once(b.call(std::future::pending::<Result<(), Oops>>)),
                    Poll::Ready(Ok(()))
                ));
            }
            assert_eq!((b.state(), admitted), (State::Open, 5));
        }
    });
}

#[test]
fn t09_long_running_drops_count_beside_successes_and_short_ones_do_not() {
    world(|w| async move {
        for (abandoned, ran, state) in [
            (Abandoned::FailureIfElapsed(secs(1)), secs(1), State::Open),
            (Abandoned::FailureIfElapsed(secs(1)), ms(999), State::Closed),
            (Abandoned::Failure, ms(0), State::Open),
            (Abandoned::Ignore, secs(9), State::Closed),
        ] {
            let b =
                Breaker::builder("b").runtime(&w.runtime).abandoned(abandoned).min_calls(10).build().unwrap();
            succeed(&b, 5);
            let calls: Vec<_> = (0..5).map(|_| b.admit().unwrap()).collect();
            w.jump(ran);
            drop(calls);
            assert_eq!(b.state(), state, "{abandoned:?} {ran:?}");
        }
    });
}

#[test]
fn t10_panics_are_failures_and_reach_the_caller() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = builder.build().unwrap();
            let mut reached = 0;
            for _ in 0..200 {
                reached += u32::from(caught(b.call(explode)).await.is_err());
            }
            assert_eq!((b.state(), reached), (State::Open, 5));
            // While the operation is being made, and through a ticket.
            let b = builder.build().unwrap();
            for _ in 0..5 {
                let make = || -> std::future::Ready<Result<(), Oops>> { panic!("planned") };
                assert!(caught(b.call(make)).await.is_err());
            }
            assert_eq!(b.state(), State::Open);
            let b = builder.build().unwrap();
            for _ in 0..5 {
                let held = AssertUnwindSafe(|| {
                    let _ticket = b.admit().unwrap();
                    panic!("planned");
                });
                assert!(std::panic::catch_unwind(held).is_err());
            }
            assert_eq!(b.state(), State::Open);
        }
    });
}

#[test]
fn t11_old_failures_do_not_move_the_expiry() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = builder.build().unwrap();
            let old: Vec<_> = (0..20).map(|_| b.admit().unwrap()).collect();
            fail(&b, 5);
            w.jump(ms(30));
            old.into_iter().for_each(|ticket| ticket.failure());
            assert_eq!(b.admit().unwrap_err().retry_after(), Some(ms(30)));
            w.jump(ms(30));
            assert!(b.admit().is_ok());
        }
    });
}

#[test]
fn t13_an_ignored_probe_gives_its_permit_back_and_a_look_takes_none() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = opened(&w, &builder).await;
            for _ in 0..10 {
                assert_eq!((b.state(), b.snapshot().probes), (State::Open, 0));
            }
            for _ in 0..10 {
                b.admit().unwrap().ignore();
                assert_eq!((b.state(), b.snapshot().probes), (State::HalfOpen, 0));
            }
            b.admit().unwrap().success();
            assert_eq!(b.state(), State::Closed);
        }
    });
}

#[test]
fn t14_a_hung_probe_loses_its_lease_and_its_late_end_is_void() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = opened(&w, &builder.probe_lease(secs(1))).await;
            let hung = b.admit().unwrap();
            let refused = b.admit().unwrap_err();
            assert_eq!(refused.retry_after(), Some(secs(1)));
            w.advance(secs(1)).await;
            let second = b.admit().unwrap();
            // Its end neither frees the second's permit nor decides.
            hung.failure();
            assert_eq!(b.state(), State::HalfOpen);
            assert!(b.admit().is_err());
            second.success();
            assert_eq!(b.state(), State::Closed);
        }
    });
}

#[test]
fn t15_m_b3_a_jumping_wall_clock_changes_nothing() {
    world(|w| async move {
        for jump in [3_600_000, -3_600_000] {
            for builder in kinds(&w) {
                let b = builder.build().unwrap();
                fail(&b, 4);
                w.clock.jump_wall(jump);
                fail(&b, 1);
                w.clock.jump_wall(jump);
                assert_eq!(b.admit().unwrap_err().retry_after(), Some(ms(60)));
                w.advance(ms(60)).await;
                b.admit().unwrap().success();
                assert_eq!(b.state(), State::Closed);
            }
        }
    });
}

#[test]
fn t18_every_handle_shares_the_state_and_the_snapshot_shows_what_is_live() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).consecutive(5).build().unwrap();
        let policies: Vec<_> = (0..5)
            .map(|i| Policy::builder(format!("p{i}")).runtime(&w.runtime).breaker(&b).build().unwrap())
            .collect();
        for p in &policies {
            let failed = p.call(&CallContext::new(), |_| async { Err::<(), _>(Oops::Broken) }).await;
            assert_eq!(failed.unwrap_err().inner(), Some(&Oops::Broken));
        }
        for p in &policies {
            let s = p.snapshot().breaker.unwrap();
            assert_eq!((s.state, s.config.window()), (State::Open, b.config().window()));
            assert_eq!(
                p.clone()
                    .call(&CallContext::new(), |_| async { Ok::<_, Oops>(()) })
                    .await
                    .unwrap_err()
                    .code(),
                "open"
            );
        }
    });
}

/// Panics, and changes the breaker it hears, again and again.
#[derive(Debug, Default)]
struct Rude(std::sync::OnceLock<Breaker>);

impl mainstay_resilience::Listener for Rude {
    fn event(&self, _: &mainstay_resilience::Source, event: &mainstay_resilience::Event<'_>) {
        if let (mainstay_resilience::Event::Transition(t), Some(b)) = (event, self.0.get()) {
            if t.generation() < 20 {
                b.force_open("again", None);
                b.release();
                let _ = (b.snapshot(), b.admit().is_ok());
            }
            panic!("planned");
        }
    }
}

#[test]
fn t19_a_listener_may_panic_and_reenter() {
    world(|w| async move {
        let rude = Arc::new(Rude::default());
        let b =
            Breaker::builder("b").runtime(&w.runtime).consecutive(5).listener(rude.clone()).build().unwrap();
        assert!(rude.0.set(b.clone()).is_ok());
        fail(&b, 4);
        b.admit().unwrap().failure();
        assert!(b.snapshot().generation >= 20);
        b.reset("test");
        succeed(&b, 3);
        fail(&b, 4);
        assert_eq!(b.state(), State::Closed);
    });
}

#[test]
fn t20_each_transition_is_told_once_and_in_order() {
    world(|w| async move {
        let heard = Arc::new(Heard::default());
        let b = Breaker::builder("b")
            .runtime(&w.runtime)
            .consecutive(1)
            .open_for(ms(60))
            .jitter(0.0)
            .half_open(HalfOpen::permits(1))
            .listener(heard.clone())
            .build()
            .unwrap();
        let mut stream = b.transitions();
        fail(&b, 1);
        w.advance(ms(60)).await;
        b.admit().unwrap().failure();
        w.advance(ms(60)).await;
        b.admit().unwrap().success();
        let told: Vec<_> = heard.take().into_iter().filter(|t| t.contains("->")).collect();
        let expected = [
            "2 closed->open",
            "3 open->half_open",
            "4 half_open->open",
            "5 open->half_open",
            "6 half_open->closed",
        ];
        assert_eq!(told, expected);
        for want in expected {
            let Followed::Transition(t) = stream.next().await else { panic!("lagged") };
            assert_eq!(format!("{} {}->{}", t.generation(), t.from(), t.to()), want);
        }
        for _ in 0..40 {
            b.reset("again");
        }
        assert_eq!(stream.next().await, Followed::Lagged(8));
    });
}

#[test]
fn t20_a_reader_wakes_at_the_next_transition() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        let mut stream = b.transitions();
        let other = b.clone();
        let clock = w.clone();
        let (seen, ()) = tokio::join!(stream.next(), async move {
            clock.advance(secs(1)).await;
            other.force_open("test", None);
        });
        assert!(matches!(seen, Followed::Transition(t) if t.to() == State::ForcedOpen));
    });
}

#[test]
fn t22_a_hold_in_any_state_holds_until_release() {
    world(|w| async move {
        for builder in kinds(&w) {
            for setup in 0..4 {
                let b = builder.build().unwrap();
                if setup > 0 {
                    fail(&b, 5);
                }
                if setup > 1 {
                    w.advance(ms(60)).await;
                }
                let probe = (setup > 1).then(|| b.admit().unwrap());
                if setup == 3 {
                    b.metrics_only("look", None);
                }
                b.force_open("maintenance", None);
                probe.into_iter().for_each(|probe| probe.success());
                w.advance(secs(7_200)).await;
                let refused = b.admit().unwrap_err();
                assert_eq!(refused.why(), &Reason::ForcedOpen { why: "maintenance".into() });
                b.release();
                assert_eq!((b.state(), b.snapshot().counts.total), (State::Closed, 0));
                fail(&b, 4);
                assert_eq!(b.state(), State::Closed);
            }
        }
    });
}

#[test]
fn t22_metrics_only_and_force_closed_never_refuse() {
    world(|w| async move {
        for builder in kinds(&w) {
            let b = builder.build().unwrap();
            b.metrics_only("look", None);
            fail(&b, 100);
            assert_eq!((b.state(), b.snapshot().counts.failures > 0), (State::MetricsOnly, true));
            b.force_closed("trust me", None);
            b.release();
            b.force_closed("trust me", None);
            fail(&b, 100);
            assert_eq!((b.state(), b.snapshot().counts.failures), (State::ForcedClosed, 0));
            b.release();
            fail(&b, 5);
            assert_eq!(b.state(), State::Open);
            b.release();
            assert_eq!(b.state(), State::Open, "release ends holds, nothing else");
        }
    });
}

#[test]
fn t22_a_hold_with_a_time_ends_by_itself() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        b.force_open("deploy", Some(secs(60)));
        assert_eq!(b.admit().unwrap_err().retry_after(), Some(secs(60)));
        w.advance(secs(60)).await;
        assert!(b.admit().is_ok());
        assert_eq!(b.state(), State::Closed);
        b.metrics_only("look", Some(secs(60)));
        w.advance(secs(60)).await;
        assert_eq!(b.snapshot().state, State::Closed);
    });
}

#[test]
fn t24_half_open_ramps_and_never_exceeds_its_permits() {
    world(|w| async move {
        let b = Breaker::builder("b")
            .runtime(&w.runtime)
            .consecutive(1)
            .open_for(ms(60))
            .half_open(HalfOpen::progressive(10, ms(100)))
            .build()
            .unwrap();
        fail(&b, 1);
        w.jump(ms(60));
        // Ten calls per millisecond, each taking 5 ms.
        let mut running = std::collections::VecDeque::new();
        let mut admitted = Vec::new();
        for step in 0..10_000 {
            while running.front().is_some_and(|(end, _)| *end <= step) {
                let (_, ticket): (_, mainstay_resilience::breaker::Ticket<'_>) = running.pop_front().unwrap();
                ticket.success();
            }
            if b.state() == State::Closed {
                break;
            }
            let mut passed = 0;
            for _ in 0..10 {
                if let Ok(ticket) = b.admit() {
                    running.push_back((step + 5, ticket));
                    passed += 1;
                }
            }
            assert!(b.snapshot().probes <= 10);
            admitted.push(passed);
            w.jump(ms(1));
        }
        assert_eq!(b.state(), State::Closed);
        let per_stage: Vec<u32> = admitted.chunks(101).map(|c| c.iter().sum()).collect();
        assert!(per_stage.len() >= 6, "{per_stage:?}");
        assert!(per_stage[0] <= 3 && per_stage[0] < per_stage[3], "{per_stage:?}");
    });
}

#[test]
fn t24_permits_and_ratio_bound_what_is_in_flight() {
    world(|w| async move {
        for half_open in [HalfOpen::permits(3).required(5), HalfOpen::ratio(3, 5, 0.5)] {
            let b = Breaker::builder("b")
                .runtime(&w.runtime)
                .consecutive(1)
                .open_for(ms(60))
                .half_open(half_open)
                .build()
                .unwrap();
            fail(&b, 1);
            w.advance(ms(60)).await;
            for _ in 0..4 {
                let probes: Vec<_> = (0..100).filter_map(|_| b.admit().ok()).collect();
                assert!(probes.len() == 3 || b.state() == State::Closed, "{half_open:?}");
                if b.state() == State::HalfOpen {
                    let mut probes = probes.into_iter();
                    probes.next().unwrap().success();
                    probes.for_each(|p| p.ignore());
                }
            }
            assert_eq!(b.state(), State::HalfOpen);
            b.admit().unwrap().success();
            assert_eq!(b.state(), State::Closed);
        }
    });
}

#[test]
fn a_ratio_round_decides_after_its_samples() {
    world(|w| async move {
        for (failures, state) in [(2, State::Closed), (3, State::Open)] {
            let b = Breaker::builder("b")
                .runtime(&w.runtime)
                .consecutive(1)
                .open_for(ms(60))
                .half_open(HalfOpen::ratio(1, 5, 0.5))
                .build()
                .unwrap();
            fail(&b, 1);
            w.advance(ms(60)).await;
            for i in 0..5 {
                assert_eq!(b.state() == State::HalfOpen, i > 0);
                let probe = b.admit().unwrap();
                if i < failures { probe.failure() } else { probe.success() }
            }
            assert_eq!(b.state(), state);
        }
    });
}

#[test]
fn open_time_grows_to_its_cap_and_starts_anew_after_recovery() {
    world(|w| async move {
        let b = Breaker::builder("b")
            .runtime(&w.runtime)
            .consecutive(1)
            .growing_open(secs(2), 2.0, secs(10))
            .jitter(0.0)
            .half_open(HalfOpen::permits(1))
            .build()
            .unwrap();
        b.admit().unwrap().failure();
        for open in [2, 4, 8, 10, 10] {
            assert_eq!(b.admit().unwrap_err().retry_after(), Some(secs(open)));
            w.advance(secs(open)).await;
            b.admit().unwrap().failure();
        }
        w.advance(secs(10)).await;
        b.admit().unwrap().success();
        b.admit().unwrap().failure();
        assert_eq!(b.admit().unwrap_err().retry_after(), Some(secs(2)));
    });
}

#[test]
fn slow_calls_trip_by_their_share_and_fail_a_probe() {
    world(|w| async move {
        let slow =
            Breaker::builder("b").runtime(&w.runtime).slow(ms(500), 0.8).min_calls(10).open_for(ms(60));
        let b = slow.half_open(HalfOpen::permits(1)).build().unwrap();
        for i in 0..10 {
            assert_eq!(b.state(), State::Closed, "{i}");
            let t = b.admit().unwrap();
            w.jump(ms(if i < 2 { 499 } else { 500 }));
            t.success();
        }
        assert_eq!(b.state(), State::Open);
        assert_eq!(b.snapshot().lifetime.slow, 8);
        w.jump(ms(60));
        let probe = b.admit().unwrap();
        w.jump(ms(500));
        probe.success();
        assert_eq!(b.state(), State::Open);
    });
}

#[test]
fn m_b4_error_rates_around_the_threshold_trip_exactly_by_the_spec() {
    world(|w| async move {
        for (failures, state) in [(49, State::Closed), (50, State::Open), (51, State::Open)] {
            let b = Breaker::builder("b").runtime(&w.runtime).min_calls(100).build().unwrap();
            succeed(&b, 100 - failures);
            fail(&b, failures);
            assert_eq!(b.state(), state, "{failures} of 100");
        }
        // Low traffic: 19 failures of 19 calls say too little, in any number of windows.
        let b = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        for _ in 0..10 {
            fail(&b, 19);
            w.advance(secs(10)).await;
        }
        assert_eq!(b.state(), State::Closed);
    });
}

#[test]
fn m_b5_nothing_stays_outstanding() {
    world(|w| async move {
        let b = opened(&w, &kinds(&w)[0]).await;
        // Dropped before its first poll: nothing has happened.
        drop(b.call(|| async { Ok::<_, Oops>(()) }));
        assert_eq!((b.state(), b.snapshot().probes), (State::Open, 0));
        assert!(poll_once(b.call(std::future::pending::<Result<(), Oops>>)).is_pending());
        assert_eq!(b.snapshot().probes, 0);
        assert!(caught(b.call(explode)).await.is_err());
        assert_eq!(b.snapshot().probes, 0);
        w.advance(ms(60)).await;
        drop(b.admit_owned().unwrap());
        assert_eq!(b.snapshot().probes, 0);
    });
}

#[test]
fn m_b6_a_recovered_dependency_is_used_again_within_open_time_and_probes() {
    world(|w| async move {
        let heard = Arc::new(Heard::default());
        let b = Breaker::builder("b").runtime(&w.runtime).listener(heard.clone()).build().unwrap();
        let recovery = w.now().saturating_add(secs(10));
        let mut closed_at = None;
        for _ in 0..600 {
            let up = w.now() >= recovery;
            let result = b.call(|| async move { if up { Ok(()) } else { Err(Oops::Broken) } }).await;
            if up && b.state() == State::Closed && closed_at.is_none() {
                closed_at = Some(w.now().saturating_duration_since(recovery));
            }
            assert!(!up || !matches!(result, Err(CallError::Inner(_))));
            w.advance(ms(100)).await;
        }
        // The open time of a third round is at most 8 s and a tenth; three probes follow at 100 ms each.
        assert!(closed_at.unwrap() <= secs(9), "{closed_at:?}");
        let transitions = heard.take().iter().filter(|t| t.contains("->")).count();
        assert!(transitions <= 10, "{transitions} transitions in a minute");
    });
}

#[test]
fn classification_decides_also_over_an_ok() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).consecutive(3).build().unwrap();
        let http =
            |r: &Result<u16, Oops>| r.as_ref().map_or(Verdict::RETRYABLE, |s| Verdict::of_http(*s, None));
        for status in [200, 404, 400, 404] {
            assert_eq!(now(b.call_with(http, || async move { Ok(status) })).unwrap(), status);
        }
        assert_eq!(b.state(), State::Closed);
        for status in [503, 500, 429] {
            assert_eq!(now(b.call_with(http, || async move { Ok(status) })).unwrap(), status);
        }
        assert_eq!(b.state(), State::Open);
    });
}

#[test]
fn a_registry_keeps_one_breaker_per_key_within_its_bound() {
    world(|w| async move {
        let all = Breaker::builder("hosts").runtime(&w.runtime).consecutive(1).keyed(3, secs(60)).unwrap();
        fail(&all.get("a"), 1);
        w.advance(secs(1)).await;
        all.get("b").force_open("held", None);
        w.advance(secs(1)).await;
        let _ = all.get("c");
        // Full: the closed one goes before the open and the held one, though it is the youngest.
        let _ = all.get("d");
        let keys: Vec<_> = all.all().into_iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(keys, ["a", "b", "d"]);
        assert_eq!(all.get("a").state(), State::Open);
        assert_eq!(all.get("a").snapshot().key.as_deref(), Some("a"));
        for i in 0..10_000 {
            let _ = all.get(&format!("k{i}"));
            assert!(all.len() <= 3);
        }
        w.advance(secs(60)).await;
        assert_eq!(all.sweep(), all.len() + 1, "what a person holds stays");
        assert_eq!(all.len(), 1);
    });
}

#[test]
fn prearmed_it_trips_earlier_and_never_by_itself() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).min_calls(10).build().unwrap();
        b.prearm(0.5, secs(10)).unwrap();
        assert_eq!(b.state(), State::Closed);
        succeed(&b, 7);
        fail(&b, 2);
        assert_eq!(b.state(), State::Closed);
        fail(&b, 1);
        assert_eq!(b.state(), State::Open, "3 of 10 reach half of 0.5");
        let b = Breaker::builder("b").runtime(&w.runtime).min_calls(10).build().unwrap();
        b.prearm(0.5, secs(1)).unwrap();
        w.advance(secs(1)).await;
        succeed(&b, 7);
        fail(&b, 3);
        assert_eq!(b.state(), State::Closed);
        assert_eq!(b.prearm(0.0, secs(1)).unwrap_err().field(), "factor");
    });
}

#[derive(Debug)]
struct Quota(AtomicU32);

impl mainstay_resilience::policy::ProbeGate for Quota {
    fn admit(&self, _: &str, _: mainstay_clock::Instant) -> Result<(), Option<std::time::Duration>> {
        let take = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        take.map(drop).map_err(|_| Some(secs(3)))
    }
}

#[test]
fn a_probe_gate_rations_probes() {
    world(|w| async move {
        let b = Breaker::builder("b")
            .runtime(&w.runtime)
            .consecutive(1)
            .open_for(ms(60))
            .probe_gate(Arc::new(Quota(AtomicU32::new(2))))
            .build()
            .unwrap();
        fail(&b, 1);
        w.advance(ms(60)).await;
        let _held = (b.admit().unwrap(), b.admit().unwrap());
        assert_eq!(b.admit().unwrap_err().retry_after(), Some(secs(3)));
    });
}

#[test]
fn a_stream_of_transitions_registers_one_waker_however_often_it_is_polled() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        let mut stream = b.transitions();
        for _ in 0..1_000 {
            let next = std::pin::pin!(stream.next());
            assert!(next.poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(stream);
        b.reset("test");
        assert_eq!(b.state(), State::Closed);
    });
}
