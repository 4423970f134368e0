//! Longer random schedules of the same cores. Run with
//! `RUSTFLAGS="--cfg shuttle" cargo test -p mainstay-resilience --test shuttle --release`; otherwise this is empty.

#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "a failed call is a failed test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};
use mainstay_resilience::breaker::{HalfOpen, State};
use mainstay_resilience::{Breaker, Bulkhead};
use shuttle::thread;

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

/// Schedules per test.
const RUNS: usize = 2_000;

#[test]
fn m_b1_probes_in_flight_never_exceed_the_permits() {
    shuttle::check_random(
        || {
            let (hand, runtime) = runtime();
            let b = Breaker::builder("b")
                .runtime(&runtime)
                .consecutive(1)
                .open_for(Duration::from_millis(60))
                .jitter(0.0)
                .half_open(HalfOpen::permits(2).required(3))
                .build()
                .unwrap();
            b.admit().unwrap().failure();
            hand.0.fetch_add(60_000_000, Ordering::SeqCst);
            let inside = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let (b, inside) = (b.clone(), Arc::clone(&inside));
                    thread::spawn(move || {
                        for _ in 0..3 {
                            let Ok(ticket) = b.admit_owned() else { continue };
                            if b.state() == State::HalfOpen {
                                assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                                thread::yield_now();
                                inside.fetch_sub(1, Ordering::SeqCst);
                            }
                            ticket.success();
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
            assert_eq!(b.snapshot().probes, 0);
        },
        RUNS,
    );
}

/// The thread that counts first owns its cells, the others share theirs, and the window turns under all of them.
#[test]
fn a_window_that_turns_loses_no_event() {
    shuttle::check_random(
        || {
            let (hand, runtime) = runtime();
            let b = Breaker::builder("b").runtime(&runtime).build().unwrap();
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let (b, hand) = (b.clone(), hand.clone());
                    thread::spawn(move || {
                        for _ in 0..4 {
                            b.admit_owned().unwrap().success();
                            hand.0.fetch_add(1_700_000_000, Ordering::SeqCst);
                            thread::yield_now();
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
            let after = b.snapshot();
            assert_eq!(after.lifetime.successes.unwrap() + after.lifetime.late, 12);
            // About twenty seconds have passed: what is old has left a window of ten.
            assert!(after.counts.total < 12, "{:?}", after.counts);
        },
        RUNS,
    );
}

#[test]
fn m_k1_holders_never_exceed_the_limit() {
    shuttle::check_random(
        || {
            let (_, runtime) = runtime();
            let b = Bulkhead::builder("b", 2).runtime(&runtime).build().unwrap();
            let inside = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    let (b, inside) = (b.clone(), Arc::clone(&inside));
                    thread::spawn(move || {
                        for _ in 0..3 {
                            let Ok(permit) = b.try_acquire() else { continue };
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                            thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(permit);
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().unwrap());
            assert_eq!(b.snapshot().in_flight, 0);
        },
        RUNS,
    );
}
