//! Half-open with little traffic, and drops that are all there is.

use mainstay_resilience::Breaker;
use mainstay_resilience::breaker::{HalfOpen, State};

use crate::world::{World, ms, secs, world};

/// Open with its time over; half-open by stages of a second.
fn ramping(w: &World) -> Breaker {
    let breaker = Breaker::builder("b")
        .runtime(&w.runtime)
        .consecutive(1)
        .open_for(ms(60))
        .half_open(HalfOpen::progressive(10, secs(1)))
        .build()
        .unwrap();
    breaker.admit().unwrap().failure();
    w.jump(ms(100));
    breaker
}

#[test]
fn t24_a_ramp_recovers_with_one_call_per_second() {
    world(|w| async move {
        let b = ramping(&w);
        let mut calls = 0;
        while b.state() != State::Closed {
            calls += 1;
            assert!(calls < 20, "{calls} calls and no recovery");
            if let Ok(probe) = b.admit() {
                w.jump(ms(5));
                probe.success();
            }
            w.jump(ms(995));
        }
        // Six stages of a second, one call in each; a seventh finds the last one over.
        assert_eq!(calls, 7);
        let closed = b.snapshot();
        assert_eq!((closed.counts.total, closed.round), (0, 1));
    });
}

#[test]
fn t24_a_stage_of_a_ramp_needs_a_result_and_time() {
    world(|w| async move {
        let b = ramping(&w);
        // A result and no time: the stage of one in a thousand goes on.
        b.admit().unwrap().success();
        assert!((0..500).all(|_| b.admit().is_err()));
        // Time and no result: a call that hangs is no reason to let more in.
        w.jump(secs(1));
        let hangs = b.admit().unwrap();
        w.jump(secs(5));
        assert!((0..50).all(|_| b.admit().is_err()), "the stage of one in a hundred");
        hangs.failure();
        assert_eq!(b.state(), State::Open);
    });
}

#[test]
fn t13_a_probe_without_a_result_does_not_cost_a_stage_its_turn() {
    world(|w| async move {
        let b = ramping(&w);
        b.admit().unwrap().ignore();
        drop(b.admit().unwrap());
        // One hangs beyond its lease.
        let hangs = b.admit().unwrap();
        assert!(b.admit().is_err(), "its turn is taken");
        w.jump(secs(11));
        let next = b.admit().unwrap();
        hangs.success();
        assert_eq!((b.snapshot().probe_successes, b.snapshot().lifetime.late), (0, 1));
        next.success();
        assert_eq!(b.state(), State::HalfOpen);
    });
}

#[test]
fn t14_a_probe_whose_lease_is_over_is_not_in_flight() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).consecutive(1).open_for(ms(60)).build().unwrap();
        b.admit().unwrap().failure();
        w.jump(ms(100));
        let hangs = b.admit().unwrap();
        assert_eq!(b.snapshot().probes, 1);
        w.jump(secs(10));
        assert_eq!(b.snapshot().probes, 0);
        hangs.ignore();
    });
}

#[test]
fn t09_drops_alone_since_the_last_result_open_every_window() {
    world(|w| async move {
        let base = || Breaker::builder("b").runtime(&w.runtime).min_calls(5);
        for builder in [base().count_window(10), base().consecutive(3), base().window(secs(10))] {
            let b = builder.build().unwrap();
            b.admit().unwrap().failure();
            b.admit().unwrap().success();
            b.admit().unwrap().failure();
            // In a window of time the results have to leave it first.
            w.advance(secs(11)).await;
            for _ in 0..4 {
                drop(b.admit().unwrap());
            }
            assert_eq!(b.state(), State::Closed);
            drop(b.admit().unwrap());
            assert_eq!(b.state(), State::Open, "{:?}", b.config().window());
        }
        // A result in between, and they count from there.
        for builder in [base().count_window(10), base().consecutive(3)] {
            let b = builder.build().unwrap();
            for _ in 0..3 {
                for _ in 0..4 {
                    drop(b.admit().unwrap());
                }
                b.admit().unwrap().success();
            }
            assert_eq!(b.state(), State::Closed);
        }
    });
}

#[test]
fn t22_what_ends_while_it_is_forced_closed_is_counted_nowhere() {
    world(|w| async move {
        let base = || Breaker::builder("b").runtime(&w.runtime).slow(ms(50), 0.5);
        for builder in [base(), base().count_window(30)] {
            let b = builder.build().unwrap();
            b.force_closed("month end", None);
            for _ in 0..30 {
                b.admit().unwrap().failure();
                b.admit().unwrap().success();
                b.admit().unwrap().ignore();
                drop(b.admit().unwrap());
                let slow = b.admit().unwrap();
                w.jump(secs(2));
                drop(slow);
            }
            let life = b.snapshot().lifetime;
            let all = life.failures + life.ignored + life.abandoned + life.slow + life.late;
            assert_eq!((all, life.successes), (0, Some(0)));
        }
    });
}

#[test]
fn t22_a_persons_hold_outlives_the_bound_of_a_registry() {
    world(|w| async move {
        let hosts = Breaker::builder("hosts").runtime(&w.runtime).consecutive(1).keyed(2, secs(60)).unwrap();
        hosts.get("held").force_open("migration", None);
        w.advance(secs(1)).await;
        for host in ["a", "b", "c"] {
            // Open and used last, and all the same it goes before one that is held.
            hosts.get(host).admit().unwrap().failure();
            assert_eq!((hosts.len(), hosts.get("held").state()), (2, State::ForcedOpen), "{host}");
        }
        w.advance(secs(120)).await;
        assert_eq!((hosts.sweep(), hosts.len()), (1, 1));
        // Where every place is held, a new key is served and not remembered.
        hosts.get("also held").force_closed("month end", None);
        assert!(hosts.get("d").admit().is_ok());
        let keys: Vec<_> = hosts.all().into_iter().map(|(key, _)| key.to_string()).collect();
        assert_eq!(keys, ["also held", "held"]);
    });
}
