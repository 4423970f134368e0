//! T16: windows trip exactly when a naive model does.

use std::time::Duration;

use mainstay_clock::{Rng as _, SeededRng};
use mainstay_resilience::Breaker;
use mainstay_resilience::breaker::{State, Window};
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::{prop_assert_eq, proptest};

use crate::world::{HandClock, is_soak, ms};

#[derive(Clone, Copy, Debug)]
enum Op {
    Fail { slow: bool },
    Ok { slow: bool },
    Wait(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => any::<bool>().prop_map(|slow| Op::Ok { slow }),
        2 => any::<bool>().prop_map(|slow| Op::Fail { slow }),
        2 => (0_u64..40).prop_map(Op::Wait),
        1 => (0_u64..400).prop_map(Op::Wait),
    ];
    proptest::collection::vec(op, 0..120)
}

/// Every result ever, with the moment it came.
struct Naive {
    window: Window,
    origin: u64,
    results: Vec<(u64, bool, bool)>,
    run: u32,
}

impl Naive {
    fn trips(&self, now: u64, min: usize, rate: f64, slow_rate: f64) -> bool {
        let kept: Vec<_> = match self.window {
            Window::Consecutive(k) => return self.run >= k,
            Window::Count(n) => self.results.iter().rev().take(n as usize).collect(),
            Window::Time(span) => {
                let bucket = u64::try_from(span.as_millis()).unwrap() / 10;
                let of = |t: u64| (t - self.origin) / bucket;
                self.results.iter().filter(|(t, ..)| of(*t) + 10 > of(now)).collect()
            }
            _ => unreachable!(),
        };
        let total = kept.len() as f64;
        let fails = kept.iter().filter(|(_, fail, _)| *fail).count() as f64;
        let slow = kept.iter().filter(|(_, _, slow)| *slow).count() as f64;
        kept.len() >= min && (fails / total >= rate || slow / total >= slow_rate)
    }
}

/// Runs the ops; after each, the breaker is open exactly when the model says so.
fn check(
    window: Window,
    ops: &[Op],
    min: u32,
    rate: f64,
) -> Result<(), proptest::test_runner::TestCaseError> {
    const SLOW: Duration = Duration::from_millis(50);
    let slow_rate = 0.6;
    let (clock, runtime) = HandClock::runtime();
    let mut builder = Breaker::builder("b").runtime(&runtime).failure_rate(rate).min_calls(min);
    if !matches!(window, Window::Consecutive(_)) {
        builder = builder.slow(SLOW, slow_rate);
    }
    let b = builder
        .configure(|c| {
            c.set_window(window);
        })
        .build()
        .unwrap();
    let mut now = 0;
    let mut naive = Naive { window, origin: 0, results: Vec::new(), run: 0 };
    for op in ops {
        let (fail, slow) = match op {
            Op::Wait(d) => {
                clock.advance(ms(*d));
                now += d;
                continue;
            }
            Op::Fail { slow } => (true, *slow),
            Op::Ok { slow } => (false, *slow),
        };
        let ticket = b.admit().unwrap();
        if slow {
            clock.advance(SLOW);
            now += 50;
        }
        if fail {
            ticket.failure()
        } else {
            ticket.success()
        }
        naive.results.push((now, fail, slow));
        naive.run = if fail { naive.run + 1 } else { 0 };
        // A plain success never trips (D2): the next failure or slow call looks.
        let looks = fail || (slow && !matches!(window, Window::Consecutive(_)));
        let trips = looks && naive.trips(now, min as usize, rate, slow_rate);
        prop_assert_eq!(b.state() == State::Open, trips, "at {} ms after {:?}", now, naive.results);
        if trips {
            break;
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn t16_m_b4_a_time_window_equals_the_model(ops in ops(), min in 1_u32..15, percent in 1_u32..=100) {
        check(Window::Time(ms(200)), &ops, min, f64::from(percent) / 100.0)?;
    }

    #[test]
    fn t16_a_count_window_equals_the_model(ops in ops(), n in 1_u32..30, percent in 1_u32..=100) {
        check(Window::Count(n), &ops, n.div_ceil(2), f64::from(percent) / 100.0)?;
    }

    #[test]
    fn t16_a_run_equals_the_model(ops in ops(), k in 1_u32..8) {
        check(Window::Consecutive(k), &ops, 20, 0.5)?;
    }
}

/// A trace of up to 120 steps from one seed: bursts, pauses around the edges of buckets, idle gaps; about `fails` per
/// cent of the results are failures.
fn trace(rng: &SeededRng, fails: u64) -> Vec<Op> {
    let step = |_| match rng.below(8) {
        0 => Op::Wait(rng.below(400)),
        // A bucket has 20 ms: one less, exactly, one more.
        1 => Op::Wait(19 + rng.below(3)),
        2 => Op::Wait(rng.below(40)),
        _ if rng.below(100) < fails => Op::Fail { slow: rng.below(10) == 0 },
        _ => Op::Ok { slow: rng.below(10) == 0 },
    };
    (0..rng.below(120)).map(step).collect()
}

#[test]
fn m_b4_random_traces_around_the_threshold_trip_exactly_by_the_spec() {
    // A hundred thousand in the long run.
    let traces = if is_soak() { 100_000 } else { 2_000 };
    for seed in 0..traces {
        let rng = SeededRng::new(seed);
        let ops = trace(&rng, 45 + rng.below(11));
        let min = u32::try_from(1 + rng.below(15)).unwrap();
        let window = match rng.below(3) {
            0 => Window::Count(min.max(2) + 10),
            _ => Window::Time(ms(200)),
        };
        check(window, &ops, min, 0.5).unwrap_or_else(|wrong| panic!("seed {seed}: {wrong}"));
    }
}
