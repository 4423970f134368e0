//! Exhaustive models of the lock-free cores. Run with
//! `RUSTFLAGS="--cfg loom" cargo test -p mainstay-resilience --test loom --release`; otherwise this is empty.

#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;
use std::time::Duration;

use loom::thread;
use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};
use mainstay_resilience::breaker::{HalfOpen, State};
use mainstay_resilience::{Breaker, Bulkhead, CallContext};

/// A clock outside the model: the test moves it between two steps.
#[derive(Clone, Debug)]
struct Hand(Arc<AtomicU64>);

impl Clock for Hand {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::SeqCst))
    }
    fn wall(&self) -> WallTime {
        WallTime::default()
    }
    fn tick(&self) -> Tick {
        Tick::of(Arc::new(self.clone()))
    }
    fn sleep_until(&self, _: Instant) -> Sleep {
        Box::pin(std::future::pending())
    }
}

fn runtime() -> (Hand, Runtime) {
    let hand = Hand(Arc::new(AtomicU64::new(1_000_000_000)));
    (hand.clone(), Runtime::on_tokio(Arc::new(hand), Arc::new(SeededRng::new(7))))
}

/// An open breaker whose time is over.
fn due(permits: u32) -> Breaker {
    let (hand, runtime) = runtime();
    let b = Breaker::builder("b")
        .runtime(&runtime)
        .consecutive(1)
        .open_for(Duration::from_millis(60))
        .half_open(HalfOpen::permits(permits))
        .build()
        .unwrap();
    b.admit().unwrap().failure();
    hand.0.fetch_add(60_000_000, Ordering::SeqCst);
    b
}

/// `others` threads and this one ask for the only permit at once.
fn edge(others: usize) {
    let b = due(1);
    let threads: Vec<_> = (0..others)
        .map(|_| {
            let b = b.clone();
            thread::spawn(move || b.admit_owned().ok())
        })
        .collect();
    let mine = b.admit_owned().ok();
    let mut held: Vec<_> = threads.into_iter().filter_map(|t| t.join().unwrap()).collect();
    held.extend(mine);
    assert_eq!((held.len(), b.state()), (1, State::HalfOpen));
    held.into_iter().for_each(|ticket| ticket.ignore());
    assert_eq!(b.snapshot().probes, 0);
}

#[test]
fn m_b1_t12_the_half_open_edge_admits_exactly_its_permits() {
    loom::model(|| edge(1));
}

/// Three threads are too many for every schedule: those with at most three preemptions.
#[test]
fn m_b1_t12_the_same_with_three_threads() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| edge(2));
}

#[test]
fn m_b1_a_straggler_and_a_probe_decide_only_their_own_generation() {
    loom::model(|| {
        let (hand, runtime) = runtime();
        let b = Breaker::builder("b")
            .runtime(&runtime)
            .consecutive(1)
            .open_for(Duration::from_millis(60))
            .half_open(HalfOpen::permits(1))
            .build()
            .unwrap();
        let straggler = b.admit_owned().unwrap();
        b.admit().unwrap().failure();
        hand.0.fetch_add(60_000_000, Ordering::SeqCst);
        let old = thread::spawn(move || straggler.failure());
        let other = b.clone();
        let probe = thread::spawn(move || match other.admit_owned() {
            Ok(ticket) => ticket.success(),
            Err(_) => panic!("the permit is free"),
        });
        old.join().unwrap();
        probe.join().unwrap();
        // The straggler failed in an old generation, whenever it came.
        assert_eq!(b.state(), State::Closed);
        assert_eq!(b.snapshot().lifetime.late, 1);
    });
}

#[test]
fn m_b1_two_failures_at_once_open_it_and_neither_is_missed() {
    loom::model(|| {
        let (_, runtime) = runtime();
        let b = Breaker::builder("b").runtime(&runtime).consecutive(2).build().unwrap();
        let tickets = (b.admit_owned().unwrap(), b.admit_owned().unwrap());
        let first = thread::spawn(move || tickets.0.failure());
        tickets.1.failure();
        first.join().unwrap();
        assert_eq!((b.state(), b.snapshot().generation), (State::Open, 2));
    });
}

/// The thread that counts first owns its cells and counts with a load and a store; another one empties the window.
#[test]
fn a_success_at_an_owned_place_races_a_reset() {
    loom::model(|| {
        let (_, runtime) = runtime();
        let b = Breaker::builder("b").runtime(&runtime).build().unwrap();
        b.admit().unwrap().success();
        let other = b.clone();
        let reset = thread::spawn(move || other.reset("restarted"));
        b.admit().unwrap().success();
        reset.join().unwrap();
        let after = b.snapshot();
        // The first one is gone. The second counts if it began after the reset; whatever else, it is not lost.
        assert!(after.counts.total <= 1, "{:?}", after.counts);
        assert_eq!(after.lifetime.successes.unwrap() + after.lifetime.late, 2);
        b.admit().unwrap().success();
        assert_eq!(b.snapshot().counts.total, after.counts.total + 1);
    });
}

#[test]
fn m_k1_permits_are_conserved_and_never_exceeded() {
    loom::model(|| {
        let (_, runtime) = runtime();
        let b = Bulkhead::builder("b", 1).queue(1, Duration::from_secs(1)).runtime(&runtime).build().unwrap();
        let other = b.clone();
        let t = thread::spawn(move || {
            let held = other.try_acquire();
            let one = held.is_ok();
            drop(held);
            one
        });
        let mine = b.try_acquire();
        let got = mine.is_ok();
        drop(mine);
        assert!(t.join().unwrap() || got);
        assert_eq!((b.snapshot().in_flight, b.snapshot().queued), (0, 0));
    });
}

#[test]
fn bh2_a_release_races_a_cancel() {
    loom::model(|| {
        let (_, runtime) = runtime();
        let b = Bulkhead::builder("b", 1).queue(1, Duration::from_secs(1)).runtime(&runtime).build().unwrap();
        let held = b.try_acquire().unwrap();
        let other = b.clone();
        let t = thread::spawn(move || {
            let cx = CallContext::new();
            // Queued or admitted, and gone again.
            let mut wait = Box::pin(other.acquire(&cx));
            let polled = wait.as_mut().poll(&mut std::task::Context::from_waker(Waker::noop()));
            drop(polled);
            drop(wait);
        });
        drop(held);
        t.join().unwrap();
        assert_eq!((b.snapshot().in_flight, b.snapshot().queued), (0, 0));
        assert!(b.try_acquire().is_ok());
    });
}
