//! What only threads can show: T3, T12, T17, T20, T21, T23.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex};

use mainstay_resilience::breaker::{HalfOpen, State, Transition};
use mainstay_resilience::{Breaker, Event, Listener, Source};

use crate::world::{HandClock, is_soak, ms, secs};

fn open(permits: u32) -> (HandClock, Breaker) {
    let (clock, runtime) = HandClock::runtime();
    let b = Breaker::builder("b")
        .runtime(&runtime)
        .consecutive(5)
        .open_for(ms(60))
        .jitter(0.0)
        .half_open(HalfOpen::permits(permits))
        .build()
        .unwrap();
    (0..5).for_each(|_| b.admit().unwrap().failure());
    (clock, b)
}

/// `threads` threads ask `each` times at the same moment and hold what they get; how many were admitted.
fn stampede(b: &Breaker, threads: usize, each: u32) -> u32 {
    let (admitted, gate) = (AtomicU32::new(0), Barrier::new(threads));
    let done = Barrier::new(threads);
    std::thread::scope(|s| {
        for _ in 0..threads {
            s.spawn(|| {
                gate.wait();
                let held: Vec<_> = (0..each).filter_map(|_| b.admit_owned().ok()).collect();
                admitted.fetch_add(u32::try_from(held.len()).unwrap(), Ordering::SeqCst);
                done.wait();
                held.into_iter().for_each(|ticket| ticket.ignore());
            });
        }
    });
    admitted.load(Ordering::SeqCst)
}

#[test]
fn t03_one_permit_admits_one_of_fifty() {
    for _ in 0..50 {
        let (clock, b) = open(1);
        clock.advance(ms(60));
        assert_eq!(stampede(&b, 10, 5), 1);
        b.admit().unwrap().success();
        assert_eq!(b.state(), State::Closed);
    }
}

#[test]
fn t12_exactly_the_permits_pass_at_the_instant_of_expiry() {
    for permits in [1, 3, 7] {
        for _ in 0..20 {
            let (clock, b) = open(permits);
            clock.advance(ms(59));
            assert_eq!(stampede(&b, 8, 125), 0);
            clock.advance(ms(1));
            assert_eq!(stampede(&b, 8, 125), permits);
            assert_eq!((b.state(), b.snapshot().probes), (State::HalfOpen, 0));
        }
    }
}

#[test]
fn t17_rollover_under_load_loses_no_event_and_an_idle_gap_empties_the_window() {
    const EACH: u64 = 100_000;
    let (clock, runtime) = HandClock::runtime();
    let b = Breaker::builder("b").runtime(&runtime).window(ms(100)).failure_rate(1.0).build().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                s.spawn(|| {
                    for i in 0..EACH {
                        let ticket = b.admit().unwrap();
                        if i % 100 == 0 { ticket.failure() } else { ticket.success() }
                    }
                })
            })
            .collect();
        s.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                clock.advance(ms(3));
                std::thread::yield_now();
            }
        });
        workers.into_iter().for_each(|w| w.join().unwrap());
        done.store(true, Ordering::SeqCst);
    });
    let life = b.snapshot().lifetime;
    assert_eq!((life.successes, life.failures, life.late), (Some(3 * EACH / 100 * 99), 3 * EACH / 100, 0));
    clock.advance(ms(101));
    assert_eq!(b.snapshot().counts.total, 0);
}

#[derive(Debug, Default)]
struct Chain(Mutex<Vec<Transition>>);

impl Listener for Chain {
    fn event(&self, _: &Source, event: &Event<'_>) {
        if let Event::Transition(t) = event {
            self.0.lock().unwrap().push((*t).clone());
        }
    }
}

#[test]
fn t20_contended_transitions_are_one_unbroken_chain() {
    let (clock, runtime) = HandClock::runtime();
    let chain = Arc::new(Chain::default());
    let b = Breaker::builder("b")
        .runtime(&runtime)
        .consecutive(2)
        .open_for(ms(1))
        .half_open(HalfOpen::permits(2))
        .listener(chain.clone())
        .build()
        .unwrap();
    std::thread::scope(|s| {
        for t in 0..4_u32 {
            let (b, clock) = (&b, &clock);
            s.spawn(move || {
                for i in 0..2_000_u32 {
                    clock.advance(std::time::Duration::from_micros(50));
                    if let Ok(ticket) = b.admit() {
                        if (i / 7 + t) % 3 == 0 { ticket.success() } else { ticket.failure() }
                    }
                }
            });
        }
    });
    let heard = chain.0.lock().unwrap();
    assert!(heard.len() > 100, "{}", heard.len());
    let mut before = (1, State::Closed);
    for t in heard.iter() {
        assert_eq!((t.generation() - 1, t.from()), before);
        before = (t.generation(), t.to());
    }
    assert_eq!(before, (b.snapshot().generation, b.state()));
}

#[test]
fn t21_new_settings_under_load_keep_window_state_and_timer() {
    const EACH: u64 = 50_000;
    let (clock, runtime) = HandClock::runtime();
    let b = Breaker::builder("b").runtime(&runtime).window(secs(10)).failure_rate(1.0).build().unwrap();
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| (0..EACH).for_each(|_| b.admit().unwrap().success()));
        }
        s.spawn(|| {
            for i in 0..1_000_u64 {
                b.reconfigure(|c| {
                    c.set_window(mainstay_resilience::breaker::Window::Time(secs(10 + i % 3)));
                    c.set_min_calls(u32::try_from(20 + i % 5).unwrap());
                })
                .unwrap();
            }
        });
    });
    let s = b.snapshot();
    assert_eq!((s.counts.total, s.generation, s.state), (3 * EACH, 1, State::Closed));
    // The running open timer stays.
    b.reconfigure(|c| {
        c.set_failure_rate(0.000_001).set_open_for(secs(1)).set_jitter(0.0);
    })
    .unwrap();
    b.admit().unwrap().failure();
    assert_eq!(b.admit().unwrap_err().retry_after(), Some(secs(1)));
    b.reconfigure(|c| {
        c.set_open_for(secs(60));
    })
    .unwrap();
    assert_eq!(b.admit().unwrap_err().retry_after(), Some(secs(1)));
    clock.advance(secs(1));
    assert!(b.admit().is_ok());
}

#[test]
fn t21_a_shorter_count_window_keeps_the_newest_results() {
    let (_, runtime) = HandClock::runtime();
    let b = Breaker::builder("b")
        .runtime(&runtime)
        .count_window(10)
        .failure_rate(1.0)
        .min_calls(2)
        .build()
        .unwrap();
    (0..3).for_each(|_| b.admit().unwrap().success());
    (0..2).for_each(|_| b.admit().unwrap().failure());
    let size = |n| {
        move |c: &mut mainstay_resilience::breaker::BreakerConfig| {
            c.set_window(mainstay_resilience::breaker::Window::Count(n));
        }
    };
    b.reconfigure(size(3)).unwrap();
    assert_eq!((b.snapshot().counts.total, b.snapshot().counts.failures), (3, 2));
    assert_eq!(b.reconfigure(size(1)).unwrap_err().field(), "min_calls");
    assert_eq!(b.snapshot().counts.total, 3);
    let other = b.reconfigure(|c| {
        c.set_window(mainstay_resilience::breaker::Window::Time(secs(10)));
    });
    assert_eq!(other.unwrap_err().field(), "window");
}

#[test]
fn t23_memory_is_constant_and_counters_do_not_wrap() {
    let calls = if is_soak() { 100_000_000 } else { 1_000_000 };
    let (clock, runtime) = HandClock::runtime();
    let b = Breaker::builder("b").runtime(&runtime).window(secs(1)).failure_rate(1.0).build().unwrap();
    let mut sum = AtomicU64::new(0);
    let used = allocation_counter::measure(|| {
        for i in 0..calls {
            let ticket = b.admit().unwrap();
            if i % 1_000 == 0 {
                ticket.failure()
            } else {
                ticket.success()
            }
            if i % 1_000 == 0 {
                clock.advance(ms(1));
            }
            *sum.get_mut() += 1;
        }
    });
    assert_eq!((used.count_total, used.bytes_current), (0, 0));
    let life = b.snapshot().lifetime;
    assert_eq!(life.successes.unwrap() + life.failures, calls);
    // Probes for ever: the number of a probe does not wrap and no slot leaks.
    let (clock, b) = open(2);
    for _ in 0..20_000 {
        clock.advance(ms(60));
        b.admit().unwrap().ignore();
    }
    assert_eq!(b.snapshot().probes, 0);
}

/// Hears the first transition only after all others have happened.
#[derive(Debug)]
struct Late {
    gate: Barrier,
    heard: Mutex<Vec<u64>>,
    missed: AtomicU64,
}

impl Listener for Late {
    fn event(&self, _: &Source, event: &Event<'_>) {
        match event {
            Event::Transition(t) => {
                if t.generation() == 2 {
                    self.gate.wait();
                    self.gate.wait();
                }
                self.heard.lock().unwrap().push(t.generation());
            }
            Event::Missed { transitions } => {
                self.missed.fetch_add(*transitions, Ordering::SeqCst);
            }
            _ => {}
        }
    }
}

#[test]
fn t19_t20_a_blocked_listener_blocks_nobody_and_hears_every_transition_within_its_bound() {
    for (transitions, kept) in [(5_000_u64, 5_000), (12_000, 10_001)] {
        let (_, runtime) = HandClock::runtime();
        let late = Arc::new(Late {
            gate: Barrier::new(2),
            heard: Mutex::new(Vec::new()),
            missed: AtomicU64::new(0),
        });
        let b = Breaker::builder("b").runtime(&runtime).listener(late.clone()).build().unwrap();
        std::thread::scope(|s| {
            s.spawn(|| b.reset("the first blocks its teller"));
            late.gate.wait();
            (1..transitions).for_each(|_| b.reset("nobody waits"));
            assert_eq!(b.snapshot().generation, transitions + 1);
            late.gate.wait();
        });
        let heard = late.heard.lock().unwrap();
        assert_eq!((heard.len() as u64, late.missed.load(Ordering::SeqCst)), (kept, transitions - kept));
        assert!(heard.windows(2).all(|w| w[0] < w[1]));
    }
}
