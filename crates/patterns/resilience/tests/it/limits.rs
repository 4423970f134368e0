//! Rate limits, adaptive concurrency, client throttling and shedding.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use mainstay_clock::{Clock, Deadline, Instant, Runtime, SeededRng, SystemClock, virtual_time::VirtualClock};
use mainstay_resilience::limit::{
    AdaptiveLimiter, AdaptivePermit, Algorithm, ClientThrottle, KeyedRateLimiter, RateError, RateLimiter,
    Shedder,
};
use mainstay_resilience::policy::LimitSlot;
use mainstay_resilience::{Attempt, CallContext, Policy, Priority, Reason, Verdict};

use crate::manual::{Manual, Queueing};
use crate::world::{now, poll_once};

const SECOND: Duration = Duration::from_secs(1);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Hammers `limiter` with 16 threads for `cells` worth of time and returns (admitted, allowed at most).
fn hammer(limiter: &RateLimiter, clock: &SystemClock, rate: f64, burst: f64) -> (u64, f64) {
    let (admitted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let start = clock.now();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    admitted.fetch_add(u64::from(limiter.check().is_ok()), Ordering::Relaxed);
                }
            });
        }
        // Ends by what passed, not by a sleep: the bound below holds at every instant.
        while admitted.load(Ordering::Relaxed) < 20_000 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let elapsed = clock.now().saturating_duration_since(start).as_secs_f64();
    (admitted.load(Ordering::Relaxed), burst + rate * elapsed)
}

#[test]
fn rl1_sixteen_threads_never_exceed_rate_and_burst() {
    let clock = SystemClock::new();
    for burst in [100, 10_000_u32] {
        let limiter = RateLimiter::builder("x").rate(50_000, SECOND).burst(burst).build().unwrap();
        let (admitted, most) = hammer(&limiter, &clock, 50_000.0, f64::from(burst));
        assert!(admitted as f64 <= most, "{admitted} of at most {most}");
    }
}

/// Raised when it is dropped, so that threads end when whoever waits for them panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Real threads, and a clock that goes on only when they have used what there is: how fast they run is all the same.
#[test]
fn rl1_sixteen_threads_get_all_of_rate_and_burst() {
    let clock = Manual::new();
    let limiter = RateLimiter::builder("x").rate(50_000, SECOND).burst(100).runtime(&clock.runtime(1));
    let limiter = limiter.build().unwrap();
    let (admitted, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stop = Stop(&stop);
        for _ in 0..16 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    match limiter.check() {
                        Ok(_) => drop(admitted.fetch_add(1, Ordering::SeqCst)),
                        Err(_) => std::thread::yield_now(),
                    }
                }
            });
        }
        let real = SystemClock::new();
        for step in 0..100 {
            let (due, start) = (100 + 50 * step, real.now());
            loop {
                let now = admitted.load(Ordering::SeqCst);
                assert!(now <= due, "{now} after {step} ms, and {due} are allowed");
                if now == due {
                    break;
                }
                let waited = real.now().saturating_duration_since(start);
                assert!(waited < Duration::from_secs(60), "{now} of {due}: the limiter refuses too much");
                std::thread::yield_now();
            }
            clock.advance(ms(1));
        }
    });
}

#[test]
fn rl1_ten_seconds_of_virtual_time_give_exactly_rate_and_burst() {
    let clock = Manual::new();
    let build = || RateLimiter::builder("x").rate(100, SECOND).burst(7).runtime(&clock.runtime(1));
    for limiter in [build().build().unwrap(), build().coarse_clock().build().unwrap()] {
        let mut admitted = 0;
        for _ in 0..10_000 {
            admitted += (0..3).filter(|_| limiter.check().is_ok()).count();
            clock.advance(ms(1));
        }
        assert_eq!(admitted, 7 + 1_000 - 1);
    }
}

/// A clock whose first reading after an arm is an hour old.
#[derive(Debug)]
struct Stale {
    inner: Manual,
    reads: AtomicU64,
}

impl Clock for Stale {
    fn now(&self) -> Instant {
        let now = self.inner.now();
        // Every other reading comes from a thread that was preempted for a second.
        if self.reads.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
            return now.saturating_sub(SECOND);
        }
        now
    }

    fn wall(&self) -> mainstay_clock::WallTime {
        self.inner.wall()
    }

    fn tick(&self) -> mainstay_clock::Tick {
        self.inner.tick()
    }

    fn sleep_until(&self, deadline: Instant) -> mainstay_clock::Sleep {
        self.inner.sleep_until(deadline)
    }
}

/// A clock that is behind another by a fixed time; its tick is even later.
#[derive(Debug)]
struct Late {
    inner: Manual,
    behind: Duration,
    tick_behind: Duration,
}

impl Clock for Late {
    fn now(&self) -> Instant {
        self.inner.now().saturating_sub(self.behind)
    }

    fn wall(&self) -> mainstay_clock::WallTime {
        self.inner.wall()
    }

    fn tick(&self) -> mainstay_clock::Tick {
        let (inner, behind) = (self.inner.clone(), self.behind + self.tick_behind);
        mainstay_clock::Tick::of(Arc::new(Self { inner, behind, tick_behind: Duration::ZERO }))
    }

    fn sleep_until(&self, deadline: Instant) -> mainstay_clock::Sleep {
        self.inner.sleep_until(deadline)
    }
}

#[test]
fn rl2_a_tick_that_is_late_changes_no_answer_of_the_exact_rule() {
    use mainstay_clock::Rng as _;
    // 1,000 per second, a burst of two seconds: the tick decides while 100 ms of it are used up.
    let (cell, tau) = (1_000_000_u64, 1_999_000_000_u64);
    for (seed, late) in [(1, 0), (2, 1), (3, 60), (4, 99)] {
        let (manual, rng) = (Manual::new(), SeededRng::new(seed));
        let clock = Late { inner: manual.clone(), behind: Duration::ZERO, tick_behind: ms(late) };
        let limiter = RateLimiter::builder("x")
            .rate(1_000, SECOND)
            .burst(2_000)
            .runtime(&Runtime::on_tokio(Arc::new(clock), Arc::new(SeededRng::new(1))))
            .build()
            .unwrap();
        let (mut tat, mut admitted) = (0_u64, 0);
        for step in 0..40_000 {
            let now = manual.now().as_nanos();
            let may = now >= tat.saturating_sub(tau);
            if may {
                tat = tat.max(now) + cell;
                admitted += 1;
            }
            assert_eq!(limiter.check().is_ok(), may, "seed {seed}, step {step}, tick {late} ms late");
            // Bursts, calls at about the rate, and pauses that refill.
            let pause = match rng.unit() {
                u if u < 0.95 => 0,
                u if u < 0.999 => 2,
                _ => 700,
            };
            manual.advance(ms(pause));
        }
        assert!(admitted > 20_000 && admitted < 40_000, "{admitted}: both answers occur");
    }
}

#[test]
fn rl2_an_old_reading_neither_admits_early_nor_steps_back() {
    let manual = Manual::new();
    let clock = Arc::new(Stale { inner: manual.clone(), reads: AtomicU64::new(0) });
    let limiter = RateLimiter::builder("x")
        .rate(10, SECOND)
        .burst(5)
        .runtime(&Runtime::on_tokio(clock, Arc::new(SeededRng::new(1))))
        .build()
        .unwrap();
    let mut admitted = 0_u64;
    for step in 0..1_000_u64 {
        admitted += u64::from(limiter.check().is_ok());
        manual.advance(ms(10));
        let most = 5 + (step + 1) * 10 / 1_000 * 10 + 10;
        assert!(admitted <= most, "{admitted} after {step} steps");
    }
    assert!(admitted <= 5 + 100, "{admitted}");
    // A stale reading refuses at most what a fresh one would have admitted; it never resets the state.
    assert!(admitted >= 90, "{admitted}");
}

#[test]
fn rl3_more_cells_than_the_burst_is_an_error_not_a_wait() {
    let limiter = RateLimiter::builder("x").rate(10, SECOND).burst(5).build().unwrap();
    let Err(RateError::OverBurst(error)) = limiter.check_n(6) else { panic!("6 cells of 5") };
    assert_eq!((error.policy(), error.n(), error.burst()), ("x", 6, 5));
    assert!(limiter.check_n(5).is_ok());
    assert!(matches!(limiter.check_n(5), Err(RateError::Rejected(_))));
    assert!(limiter.check_n(0).is_ok());
    let keyed: KeyedRateLimiter<u32> = RateLimiter::builder("x").rate(1, SECOND).build_keyed().unwrap();
    assert!(matches!(keyed.check_n(&1, 2), Err(RateError::OverBurst(_))));
}

#[test]
fn rl4_a_million_idle_keys_are_evicted() {
    let clock = Manual::new();
    let limiter: KeyedRateLimiter<u64> = RateLimiter::builder("x")
        .rate(1_000, SECOND)
        .max_keys(2_000_000)
        .runtime(&clock.runtime(1))
        .build_keyed()
        .unwrap();
    let mut most = 0;
    for key in 0..1_000_000_u64 {
        assert!(limiter.check(&key).is_ok());
        if key % 1_000 == 0 {
            clock.advance(ms(2));
            most = most.max(limiter.keys());
        }
    }
    // Idle after 1 ms, and swept when a shard doubles or 100 ms after the last sweep: 50,000 come per 100 ms.
    assert!(most < 200_000, "{most} keys remembered");
    clock.advance(SECOND);
    limiter.sweep();
    assert_eq!(limiter.keys(), 0);
}

#[test]
fn rl4_busy_keys_beyond_the_bound_share_one_rate() {
    let clock = Manual::new();
    let limiter: KeyedRateLimiter<u32> = RateLimiter::builder("x")
        .rate(1, SECOND)
        .max_keys(160)
        .runtime(&clock.runtime(1))
        .build_keyed()
        .unwrap();
    let passed = (0..10_000).filter(|key| limiter.check(key).is_ok()).count();
    assert!(limiter.keys() <= 160);
    assert!(passed <= 161, "{passed}");
    let again = (0..10_000).filter(|key| limiter.check(key).is_ok()).count();
    assert_eq!(again, 0, "a remembered key is still bound");
}

#[tokio::test(start_paused = true)]
async fn if_l08_acquire_waits_in_order_and_never_past_its_deadline() {
    let clock = VirtualClock::new();
    let limiter = RateLimiter::builder("x")
        .rate(10, SECOND)
        .runtime(&Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1))))
        .build()
        .unwrap();
    let start = clock.now();
    let deadline = Deadline::after(start, ms(250));
    assert!(limiter.acquire(deadline).await.is_ok());
    assert!(limiter.acquire(deadline).await.is_ok());
    assert!(limiter.acquire(deadline).await.is_ok());
    let waited = clock.now().saturating_duration_since(start);
    assert!(waited >= ms(200) && waited < ms(205), "{waited:?}");
    let refused = limiter.acquire(deadline).await.unwrap_err();
    assert_eq!((refused.policy(), refused.why()), ("x", &Reason::Rate));
    assert!(refused.retry_after().unwrap() > ms(90));
    assert!(clock.now().saturating_duration_since(start) < ms(205), "refused at once");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_wait_gives_its_cell_back() {
    let clock = VirtualClock::new();
    let limiter = RateLimiter::builder("x")
        .rate(10, SECOND)
        .runtime(&Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1))))
        .build()
        .unwrap();
    limiter.check().unwrap();
    for _ in 0..50 {
        let mut wait = Box::pin(limiter.acquire(Deadline::NONE));
        assert!(futures_util::poll!(wait.as_mut()).is_pending());
    }
    let wait = limiter.check().unwrap_err().retry_after().unwrap();
    assert!(wait <= ms(101), "{wait:?}: fifty dropped waits took no cell");
}

// Adaptive concurrency.

/// Runs a closed loop of callers that always use the whole limit, against `servers` exponential servers.
/// Returns the time-weighted mean of the limit outside probes over the second half.
fn converge<'a>(
    limiter: &'a AdaptiveLimiter,
    queue: &mut Queueing<AdaptivePermit<'a>>,
    mean: Duration,
    until: Duration,
) -> f64 {
    let start = queue.now();
    let (mut weighted, mut time) = (0.0, 0.0);
    loop {
        while let Ok(permit) = take(limiter) {
            queue.arrive(permit, mean);
        }
        let before = queue.now();
        let snapshot = limiter.snapshot();
        let permit = queue.finish(mean).unwrap();
        let step = queue.now().saturating_duration_since(before).as_secs_f64();
        let passed = queue.now().saturating_duration_since(start);
        if passed > until / 2 && !snapshot.is_probing() {
            weighted += step * f64::from(snapshot.limit());
            time += step;
        }
        permit.success();
        if passed > until {
            return weighted / time;
        }
    }
}

fn take(limiter: &AdaptiveLimiter) -> Result<AdaptivePermit<'_>, ()> {
    if limiter.snapshot().in_flight() >= limiter.limit() {
        Err(())
    } else {
        limiter.acquire().map_err(|_| ())
    }
}

fn adaptive(algorithm: Algorithm, clock: &Manual, seed: u64) -> mainstay_resilience::limit::AdaptiveBuilder {
    AdaptiveLimiter::builder("x").algorithm(algorithm).runtime(&clock.runtime(seed))
}

/// Limits after convergence on `servers` servers, sorted, one per seed.
fn knees(algorithm: Algorithm, servers: usize, initial: u32, seeds: u64) -> Vec<f64> {
    let mut limits: Vec<f64> = (0..seeds)
        .map(|seed| {
            let clock = Manual::new();
            let limiter = adaptive(algorithm, &clock, seed).initial(initial).build().unwrap();
            let mut queue = Queueing::new(servers, seed);
            queue.clock = clock;
            converge(&limiter, &mut queue, ms(10), Duration::from_secs(20))
        })
        .collect();
    limits.sort_by(f64::total_cmp);
    limits
}

#[test]
fn ad1_the_gradient_finds_the_knee_of_a_queue() {
    for (servers, initial) in [(10, 20), (20, 20), (20, 200), (50, 20), (100, 20), (100, 300)] {
        let limits = knees(Algorithm::gradient(), servers, initial, 5);
        let knee = servers as f64;
        let median = limits[limits.len() / 2];
        assert!((median / knee - 1.0).abs() <= 0.10, "{servers} servers from {initial}: {limits:?}");
    }
}

#[test]
fn ad1_vegas_finds_the_knee_of_a_large_queue() {
    // Vegas keeps 3 to 6 log10(L) calls waiting, so only a large knee is within a tenth.
    let limits = knees(Algorithm::Vegas, 200, 20, 3);
    assert!((limits[1] / 200.0 - 1.0).abs() <= 0.10, "{limits:?}");
}

#[test]
fn ad1_aimd_finds_the_knee_of_a_service_that_refuses() {
    let (servers, mean) = (50, ms(10));
    let clock = Manual::new();
    let limiter = adaptive(Algorithm::aimd(), &clock, 1).build().unwrap();
    let mut queue = Queueing::new(servers, 1);
    queue.clock = clock;
    let (mut sum, mut count) = (0.0, 0.0);
    for step in 0..50_000 {
        while let Ok(permit) = take(&limiter) {
            if queue.load() < servers { queue.arrive(permit, mean) } else { permit.dropped() }
        }
        queue.finish(mean).unwrap().success();
        if step > 10_000 {
            sum += f64::from(limiter.limit());
            count += 1.0;
        }
    }
    let mean = sum / count;
    assert!((mean / servers as f64 - 1.0).abs() <= 0.10, "{mean}");
}

#[test]
fn ad2_the_limit_does_not_grow_while_the_application_is_the_limit() {
    for algorithm in [Algorithm::aimd(), Algorithm::gradient(), Algorithm::Vegas] {
        let clock = Manual::new();
        let limiter = adaptive(algorithm, &clock, 1).initial(20).build().unwrap();
        // 5 of 20 at a time, always fast.
        for _ in 0..5_000 {
            let permits: Vec<_> = (0..5).map(|_| limiter.acquire().unwrap()).collect();
            clock.advance(ms(10));
            permits.into_iter().for_each(AdaptivePermit::success);
        }
        let limit = loop_until_no_probe(&limiter, &clock);
        assert_eq!(limit, 20, "{algorithm:?}");
    }
}

/// The limit outside a probe: one may be under way.
fn loop_until_no_probe(limiter: &AdaptiveLimiter, clock: &Manual) -> u32 {
    while limiter.snapshot().is_probing() {
        let permit = limiter.acquire().unwrap();
        clock.advance(ms(10));
        permit.success();
    }
    limiter.limit()
}

#[test]
fn ad3_a_steady_ratio_and_a_lasting_overload_do_not_raise_the_limit() {
    // A queue that keeps the latency at 1.25 of the baseline, whatever the limit: the raw ratio is 0.8, which
    // a tolerance of 1.5 would take for room.
    let clock = Manual::new();
    let limiter = adaptive(Algorithm::gradient(), &clock, 1).initial(50).build().unwrap();
    for _ in 0..3_000 {
        let limit = limiter.limit();
        let rtt = if limiter.snapshot().is_probing() { 8 } else { 10 };
        let permits: Vec<_> = (0..limit).map(|_| limiter.acquire().unwrap()).collect();
        clock.advance(ms(rtt));
        permits.into_iter().for_each(AdaptivePermit::success);
    }
    let limit = loop_until_no_probe(&limiter, &clock);
    assert!(limit <= 50, "{limit}");

    // Every call waits behind every other: the baseline of a limiter that follows the load would rise with it.
    let limits = knees(Algorithm::gradient(), 5, 200, 3);
    assert!(limits[2] <= 8.0, "{limits:?}");
}

#[test]
fn ad4_a_baseline_that_shifts_for_good_is_learned() {
    for algorithm in [Algorithm::gradient(), Algorithm::Vegas] {
        let clock = Manual::new();
        let limiter = adaptive(algorithm, &clock, 3).build().unwrap();
        let mut queue = Queueing::new(50, 3);
        queue.clock = clock;
        converge(&limiter, &mut queue, ms(10), Duration::from_secs(10));
        // The service becomes three times slower and stays so: the knee is where it was.
        let limit = converge(&limiter, &mut queue, ms(30), Duration::from_secs(60));
        assert!((40.0..=62.0).contains(&limit), "{algorithm:?}: {limit}");
        let baseline = limiter.snapshot().baseline().unwrap();
        assert!(baseline > ms(24) && baseline < ms(38), "{algorithm:?}: {baseline:?}");
    }
}

#[test]
fn ad5_cancelled_calls_never_feed_the_latency() {
    let run = |cancel: bool| {
        let clock = Manual::new();
        let limiter = adaptive(Algorithm::gradient(), &clock, 1).initial(20).build().unwrap();
        for _ in 0..2_000 {
            let permits: Vec<_> = (0..limiter.limit().min(10)).map(|_| limiter.acquire().unwrap()).collect();
            clock.advance(ms(10));
            permits.into_iter().for_each(AdaptivePermit::success);
            if cancel {
                // Hung for a second, then dropped; and one that was ignored.
                let hung = limiter.acquire().unwrap();
                let ignored = limiter.acquire().unwrap();
                clock.advance(SECOND);
                drop(hung);
                ignored.ignore();
            }
        }
        let snapshot = limiter.snapshot();
        (snapshot.baseline().unwrap(), snapshot.limit(), snapshot.in_flight())
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn ad6_probes_of_many_limiters_are_spread() {
    let clock = Manual::new();
    let limiters: Vec<_> =
        (0..200).map(|seed| adaptive(Algorithm::gradient(), &clock, seed).build().unwrap()).collect();
    // All start together and so probe together; the question is how many do after a while.
    let mut most = 0;
    for round in 0..12_000 {
        let mut probing = 0;
        for limiter in &limiters {
            let permits: Vec<_> = (0..4).map(|_| limiter.acquire().unwrap()).collect();
            permits.into_iter().for_each(AdaptivePermit::success);
            probing += usize::from(limiter.snapshot().is_probing());
        }
        clock.advance(ms(10));
        if round > 8_000 {
            most = most.max(probing);
        }
    }
    assert!(most > 0 && most < 60, "{most} of 200 probe at once");
}

#[test]
fn ad7_minimum_limit_and_probe_concurrency_are_two_settings() {
    let clock = Manual::new();
    let build = |min, probe| {
        adaptive(Algorithm::gradient(), &clock, 1)
            .initial(40)
            .min(min)
            .probe_concurrency(probe)
            .build()
            .unwrap()
    };
    // A new limiter probes first, at half its limit or at the probe's concurrency.
    assert_eq!(build(30, 1).limit(), 20, "a probe may go below a high minimum");
    assert_eq!(build(1, 36).limit(), 36, "a probe need not go down to a low minimum");
    let refused = adaptive(Algorithm::Vegas, &clock, 1).probe_concurrency(0).build().unwrap_err();
    assert_eq!(refused.field(), "probe_concurrency");
}

#[test]
fn m_k5_a_latency_step_converges_and_never_falls_below_the_minimum() {
    for algorithm in [Algorithm::gradient(), Algorithm::Vegas] {
        let clock = Manual::new();
        let limiter = adaptive(algorithm, &clock, 2).min(5).build().unwrap();
        let mut queue = Queueing::new(40, 2);
        queue.clock = clock;
        converge(&limiter, &mut queue, ms(10), Duration::from_secs(10));
        let mut lowest = u32::MAX;
        for _ in 0..20 {
            converge(&limiter, &mut queue, ms(200), Duration::from_secs(2));
            let snapshot = limiter.snapshot();
            if !snapshot.is_probing() {
                lowest = lowest.min(snapshot.limit());
            }
        }
        let limit = converge(&limiter, &mut queue, ms(200), Duration::from_secs(200));
        assert!(lowest >= 5, "{algorithm:?}: {lowest}");
        assert!((30.0..=52.0).contains(&limit), "{algorithm:?}: {limit}");
    }
}

#[test]
fn drops_lower_the_limit_once_per_round_trip() {
    let clock = Manual::new();
    let limiter = adaptive(Algorithm::aimd(), &clock, 1).initial(100).build().unwrap();
    let permits: Vec<_> = (0..100).map(|_| limiter.acquire().unwrap()).collect();
    permits.into_iter().for_each(AdaptivePermit::dropped);
    assert_eq!(limiter.limit(), 90, "a hundred drops of one overload are one piece of news");
}

// Throttling and shedding.

#[test]
fn throttling_spares_a_service_that_refuses_and_notices_its_recovery() {
    let clock = Manual::new();
    let throttle = ClientThrottle::builder("x").runtime(&clock.runtime(7)).build().unwrap();
    let run = |seconds: u64, accept: bool| {
        let mut sent = 0;
        for _ in 0..seconds * 100 {
            clock.advance(ms(10));
            if let Ok(ticket) = throttle.check() {
                sent += 1;
                if accept { ticket.accepted() } else { ticket.refused() }
            }
        }
        sent as f64 / (seconds * 100) as f64
    };
    assert!(run(120, true) > 0.999, "nothing is refused while everything is accepted");
    run(240, false);
    let trickle = run(60, false);
    assert!(trickle > 0.003 && trickle < 0.03, "{trickle}: a trickle remains");
    // The share that passes about doubles with what was accepted: from 1 % this takes some windows.
    let minutes = (1..=20).find(|_| run(60, true) > 0.999);
    assert!(minutes.is_some_and(|m| m <= 12), "{minutes:?} minutes until nothing is refused");
    // Cancelled calls count as nothing.
    for _ in 0..1_000 {
        drop(throttle.check());
    }
    assert!(throttle.refusal() <= 0.0);
}

#[test]
fn a_throttle_forgets_an_outage_also_without_calls() {
    let clock = Manual::new();
    let throttle = ClientThrottle::builder("x").runtime(&clock.runtime(7)).build().unwrap();
    let outage = || {
        (0..1_000).filter_map(|_| throttle.check().ok()).for_each(|ticket| ticket.refused());
        assert!(throttle.refusal() > 0.9);
    };
    outage();
    // An hour later nothing of the window of two minutes is left, whoever asks first.
    clock.advance(SECOND * 3_600);
    assert!(throttle.refusal() <= 0.0);
    for hour in 0..20 {
        outage();
        clock.advance(SECOND * 3_600);
        assert!(throttle.check().is_ok(), "hour {hour}");
    }
}

#[test]
fn shedding_takes_the_least_important_and_the_heaviest_first() {
    let shedder = Shedder::builder("x").limit(100).runtime(&Manual::new().runtime(3)).build().unwrap();
    let cx = |tenant: &'static str, priority| CallContext::new().with_tenant(tenant).with_priority(priority);
    let heavy = cx("heavy", Priority::Normal);
    let light = cx("light", Priority::Normal);
    let mut held: Vec<_> = (0..180).map(|_| shedder.admit(&heavy).unwrap()).collect();
    held.extend((0..20).map(|_| shedder.admit(&light).unwrap()));
    held.extend((0..28).map(|_| shedder.admit(&cx("pay", Priority::Critical)).unwrap()));
    // 228 of 100: the lowest class is out, the normal one is giving way.
    assert_eq!(shedder.load(), 228);
    let taken = |cx: &CallContext| (0..1_000).filter(|_| shedder.admit(cx).is_ok()).count();
    let (low, heavy, light, critical) = (
        taken(&cx("light", Priority::Low)),
        taken(&heavy),
        taken(&light),
        taken(&cx("pay", Priority::Critical)),
    );
    assert_eq!((low, critical), (0, 1_000));
    assert!(heavy < 800 && light > 950, "heavy {heavy}, light {light}");
    while shedder.load() < 300 {
        held.extend(shedder.admit(&cx("pay", Priority::Critical)));
    }
    let refused = shedder.admit(&cx("pay", Priority::Critical)).map(drop).unwrap_err();
    assert_eq!((refused.policy(), refused.why()), ("x", &Reason::Shed));
    drop(held);
    assert_eq!((shedder.load(), shedder.tenants()), (0, 0));
}

// Rows of the library's own catalogue.

#[test]
fn if_l07_bad_settings_are_errors_when_built() {
    let rate = || RateLimiter::builder("x").rate(1, SECOND);
    assert_eq!(RateLimiter::builder("x").build().unwrap_err().field(), "rate");
    assert_eq!(rate().burst(0).build().unwrap_err().field(), "burst");
    assert_eq!(rate().max_keys(0).build_keyed::<u32>().unwrap_err().field(), "max_keys");
    let field = |b: mainstay_resilience::limit::AdaptiveBuilder| b.build().map(drop).unwrap_err().field();
    let adaptive = || AdaptiveLimiter::builder("x");
    assert_eq!(field(adaptive().min(0)), "min");
    assert_eq!(field(adaptive().max(0)), "max");
    assert_eq!(field(adaptive().max(u32::MAX)), "max");
    assert_eq!(field(adaptive().initial(5).min(6)), "initial");
    assert_eq!(field(adaptive().probe_every(0)), "probe_every");
    let aimd = |timeout, backoff| Algorithm::Aimd { timeout, backoff };
    assert_eq!(field(adaptive().algorithm(aimd(Duration::ZERO, 0.9))), "aimd.timeout");
    assert_eq!(field(adaptive().algorithm(aimd(SECOND, 1.0))), "aimd.backoff");
    let gradient = |tolerance, growth, smoothing| Algorithm::Gradient { tolerance, growth, smoothing };
    assert_eq!(field(adaptive().algorithm(gradient(0.9, 4.0, 0.2))), "gradient.tolerance");
    assert_eq!(field(adaptive().algorithm(gradient(1.5, f64::NAN, 0.2))), "gradient.growth");
    assert_eq!(field(adaptive().algorithm(gradient(1.5, 4.0, 0.0))), "gradient.smoothing");
    let throttle = || ClientThrottle::builder("x");
    assert_eq!(throttle().k(1.0).build().unwrap_err().field(), "k");
    assert_eq!(throttle().window(Duration::ZERO).build().unwrap_err().field(), "window");
    assert_eq!(throttle().trickle(f64::NAN).build().unwrap_err().field(), "trickle");
    assert_eq!(Shedder::builder("x").build().unwrap_err().field(), "limit");
}

#[tokio::test]
async fn if_l10_a_panic_under_a_limit_poisons_nothing() {
    let limiter = AdaptiveLimiter::builder("x").initial(1).min(1).build().unwrap();
    let boom = || async { if true { panic!("the operation's own") } else { Ok::<(), std::io::Error>(()) } };
    let panicked = std::panic::AssertUnwindSafe(limiter.call(boom)).catch_unwind().await;
    assert!(panicked.is_err());
    assert_eq!(limiter.snapshot().in_flight(), 0);
    assert!(limiter.call(|| async { Ok::<_, std::io::Error>(()) }).await.is_ok());
}

#[test]
fn a_shedder_in_a_policy_takes_in_by_priority_and_gives_every_place_back() {
    let shedder = Shedder::builder("api").limit(1).build().unwrap();
    let policy =
        Policy::builder("api").limit(LimitSlot::Adaptive, Arc::new(shedder.clone())).build().unwrap();
    let (batch, shop) = (
        CallContext::new().with_tenant("batch").with_priority(Priority::Low),
        CallContext::new().with_tenant("shop").with_priority(Priority::Critical),
    );
    // Three places at most: two are free for all, the third is for what matters.
    let pending = |_: Attempt<'_>| std::future::pending::<Result<(), std::io::Error>>();
    let mut held: Vec<_> = (0..2).map(|_| Box::pin(policy.call(&batch, pending))).collect();
    held.iter_mut().for_each(|call| assert!(poll_once(call).is_pending()));
    assert_eq!((shedder.load(), shedder.tenants()), (2, 1));
    let mut paid = Box::pin(policy.call(&shop, pending));
    assert!(poll_once(&mut paid).is_pending());
    let refused = now(policy.call(&shop, pending)).unwrap_err();
    assert_eq!((refused.code(), refused.rejected().unwrap().policy()), ("shed", "api"));
    assert_eq!((shedder.load(), shedder.tenants()), (3, 2));
    drop(held);
    assert_eq!((shedder.load(), shedder.tenants()), (1, 1));
    drop(paid);
    assert_eq!((shedder.load(), shedder.tenants()), (0, 0));
}

#[test]
fn limits_in_a_policy_tell_throttling_from_other_failures() {
    let manual = Manual::new();
    let runtime = manual.runtime(1);
    let aimd = || AdaptiveLimiter::builder("a").algorithm(Algorithm::aimd()).initial(10).runtime(&runtime);
    let throttle = || ClientThrottle::builder("t").k(1.5).runtime(&runtime).build().unwrap();
    let verdict = |v: Verdict| move |_: &Result<(), ()>| v;
    let cx = CallContext::new();
    for (v, limit, refuses) in [
        (Verdict::RETRYABLE, 10, false),
        (Verdict::Ignore, 10, false),
        (Verdict::Throttled { after: None }, 9, true),
    ] {
        let (adaptive, throttle) = (aimd().build().unwrap(), throttle());
        let policy = Policy::builder("p")
            .runtime(&runtime)
            .limit(LimitSlot::Adaptive, Arc::new(adaptive.clone()))
            .limit(LimitSlot::Throttle, Arc::new(throttle.clone()))
            .build()
            .unwrap();
        assert!(now(policy.call_with(&cx, verdict(v), |_| async { Err::<(), ()>(()) })).is_err());
        assert_eq!((adaptive.limit(), throttle.refusal() > 0.0), (limit, refuses), "{v:?}");
    }
}
