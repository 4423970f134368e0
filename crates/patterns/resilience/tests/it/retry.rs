//! RT1-RT8, RT11-RT13, M-T1, M-T3, M-T4, M-T5.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay_clock::backoff::Jitter;
use mainstay_clock::{Deadline, Rng, SeededRng, WallTime};
use mainstay_resilience::retry::{Pushback, RetryBuilder, pushback, retry_after};
use mainstay_resilience::{
    Breaker, Bulkhead, CallContext, CallError, Policy, Reason, Retry, Stop, TimeoutKind,
};

use crate::world::{Oops, World, ms, secs, world};

fn plain() -> RetryBuilder {
    Retry::exponential(ms(100), secs(2)).jitter(Jitter::None)
}

fn policy(w: &World, retry: &RetryBuilder) -> Policy {
    let retry = retry.build().unwrap();
    Policy::builder("p").runtime(&w.runtime).idempotent().without_budget().retry(retry).build().unwrap()
}

/// Calls with an operation that always fails so; the result and when each attempt started.
async fn failing(w: &World, p: &Policy, cx: &CallContext, oops: Oops) -> (CallError<Oops>, Vec<Duration>) {
    let (t0, starts) = (w.now(), Mutex::new(Vec::new()));
    let result = p
        .call(cx, |_| async {
            starts.lock().unwrap().push(w.now().saturating_duration_since(t0));
            Err::<(), _>(oops)
        })
        .await;
    let starts = starts.into_inner().unwrap();
    (result.unwrap_err(), starts)
}

#[test]
fn rt1_attempts_are_calls() {
    world(|w| async move {
        for k in [1, 2, 3, 10] {
            let (error, starts) =
                failing(&w, &policy(&w, &plain().attempts(k)), &CallContext::new(), Oops::Broken).await;
            assert_eq!((starts.len(), error.attempts()), (k as usize, k));
            assert_eq!(error.inner(), Some(&Oops::Broken));
            if k == 1 {
                assert!(matches!(error, CallError::Inner(_)));
            } else {
                let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
                assert_eq!((gave_up.stop(), gave_up.attempts()), (Stop::Attempts, k));
            }
        }
        let refused = plain().attempts(0).build().unwrap_err();
        assert_eq!((refused.field(), refused.value()), ("attempts", "0"));
    });
}

#[test]
fn m_t1_the_schedule_is_exact_and_permanent_errors_are_not_repeated() {
    world(|w| async move {
        let (_, starts) =
            failing(&w, &policy(&w, &plain().attempts(8)), &CallContext::new(), Oops::Broken).await;
        let expected: [u64; 8] = [0, 100, 300, 700, 1_500, 3_100, 5_100, 7_100];
        for (start, want) in starts.iter().zip(expected) {
            // Two timers of up to a millisecond may round up per wait.
            assert!(*start >= ms(want) && *start <= ms(want + 16), "{starts:?}");
        }
        for (oops, calls) in [(Oops::Fatal, 1), (Oops::Invalid, 1), (Oops::Broken, 3), (Oops::Slow(None), 3)]
        {
            let (error, starts) = failing(&w, &policy(&w, &plain()), &CallContext::new(), oops).await;
            assert_eq!((starts.len(), error.inner()), (calls, Some(&oops)));
        }
    });
}

#[test]
fn rt2_no_delay_exceeds_the_cap_jitter_included() {
    let rng = SeededRng::new(42);
    for jitter in [Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Decorrelated] {
        for builder in
            [Retry::exponential(ms(7), ms(900)), Retry::linear(ms(7), ms(900)), Retry::constant(ms(7))]
        {
            let retry = builder.jitter(jitter).build().unwrap();
            let schedule = retry.schedule();
            let mut previous = None;
            for n in 0..83_400_u32 {
                let delay = schedule.delay(n % 40 + 1, previous, &rng);
                assert!(delay <= schedule.cap(), "{jitter:?} {n}: {delay:?}");
                previous = Some(delay);
            }
        }
    }
}

#[test]
fn rt3_attempt_ten_thousand_neither_overflows_nor_panics() {
    world(|w| async move {
        let retry = Retry::exponential(ms(1), ms(2)).jitter(Jitter::Full).attempts(10_001);
        let (error, starts) = failing(&w, &policy(&w, &retry), &CallContext::new(), Oops::Broken).await;
        assert_eq!((starts.len(), error.attempts()), (10_001, 10_001));
        let schedule = *Retry::exponential(ms(1), secs(2)).factor(1e300).build().unwrap().schedule();
        assert_eq!(schedule.plain(u32::MAX), secs(2));
    });
}

#[test]
fn rt4_m_t4_no_attempt_starts_that_cannot_finish_and_no_sleep_passes_the_deadline() {
    world(|w| async move {
        let p = policy(&w, &plain().attempts(10).min_attempt_time(ms(50)));
        let t0 = w.now();
        let cx = CallContext::new().with_deadline(Deadline::after(t0, ms(750)));
        let (error, starts) = failing(&w, &p, &cx, Oops::Broken).await;
        // The fourth would start at 700 ms and need 50: it cannot finish, so the call ends at 300 at once.
        assert_eq!(starts.len(), 3);
        assert!(w.now().saturating_duration_since(t0) <= ms(305));
        let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
        assert_eq!(gave_up.stop(), Stop::Deadline);
        assert!(matches!(gave_up.first(), Some(CallError::Inner(Oops::Broken))));
        assert!(matches!(gave_up.last(), CallError::Inner(Oops::Broken)));
        // An attempt that is cut by the deadline keeps the first cause beside the last.
        let first = AtomicU32::new(0);
        let cx = CallContext::new().with_deadline(Deadline::after(w.now(), ms(200)));
        let t0 = w.now();
        let error = p
            .call(&cx, |_| async {
                if first.fetch_add(1, Ordering::SeqCst) == 0 {
                    Err(Oops::Broken)
                } else {
                    std::future::pending::<Result<(), _>>().await
                }
            })
            .await
            .unwrap_err();
        assert!(w.now().saturating_duration_since(t0) <= ms(202));
        assert_eq!(error.timeout().unwrap().kind(), TimeoutKind::Deadline);
        let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
        assert!(matches!(gave_up.first(), Some(CallError::Inner(Oops::Broken))));
    });
}

#[test]
fn rt5_local_refusals_are_not_retried_and_spend_no_token() {
    world(|w| async move {
        let budget = mainstay_resilience::Budget::builder("p").aws().runtime(&w.runtime).build().unwrap();
        let open = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        open.force_open("test", None);
        let full = Bulkhead::builder("k", 1).runtime(&w.runtime).build().unwrap();
        let _held = full.try_acquire().unwrap();
        let base = || {
            Policy::builder("p")
                .runtime(&w.runtime)
                .idempotent()
                .budget(&budget)
                .retry(plain().build().unwrap())
        };
        let over = CallContext::new().with_deadline(Deadline::at(w.now()));
        let cases = [
            (base().breaker(&open).build().unwrap(), CallContext::new(), "forced_open"),
            (base().bulkhead(&full).build().unwrap(), CallContext::new(), "full"),
            (base().build().unwrap(), over, "deadline"),
        ];
        for (p, cx, code) in cases {
            let before = w.now();
            let (error, starts) = failing(&w, &p, &cx, Oops::Broken).await;
            assert_eq!((error.code(), starts.len(), error.attempts()), (code, 0, 0));
            assert!(error.rejected().is_some());
            assert_eq!((w.now(), budget.tokens()), (before, Some(500.0)));
        }
        // A refusal that an inner policy reports is not retried by an outer one either.
        let inner = base().breaker(&open).build().unwrap();
        let outer = base().build().unwrap();
        let calls = AtomicU32::new(0);
        let result = outer
            .call(&CallContext::new(), |a| {
                calls.fetch_add(1, Ordering::SeqCst);
                let (inner, cx) = (&inner, a.nest());
                async move { inner.call(&cx, |_| async { Ok::<_, Oops>(()) }).await }
            })
            .await;
        assert_eq!((result.unwrap_err().inner().unwrap().code(), calls.into_inner()), ("forced_open", 1));
        assert_eq!(budget.tokens(), Some(500.0));
    });
}

#[test]
fn rt6_m_t5_server_advice_is_bounded() {
    let wall = WallTime::from_unix_millis(784_111_777_000);
    for (text, want) in [
        ("0", Some(0)),
        ("7", Some(7)),
        (" 7 ", Some(7)),
        ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
        ("Sun, 06 Nov 1994 08:48:37 GMT", Some(0)),
        ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
        ("-5", None),
        ("1.5", None),
        ("", None),
        ("soon", None),
        ("99999999999999999999999", Some(u64::MAX)),
    ] {
        assert_eq!(retry_after(text, wall), want.map(secs), "{text}");
    }
    assert_eq!(
        (pushback("0"), pushback("x"), pushback("-7")),
        (Pushback::Wait(ms(0)), Pushback::Stop, Pushback::Stop)
    );
    world(|w| async move {
        let p = policy(&w, &plain().attempts(2).max_retry_after(secs(60)));
        for (advice, waited) in
            [(secs(0), ms(100)), (ms(50), ms(100)), (secs(5), secs(5)), (secs(60), secs(60))]
        {
            let (error, starts) = failing(&w, &p, &CallContext::new(), Oops::Slow(Some(advice))).await;
            assert_eq!(starts.len(), 2, "{error:?}");
            assert!(starts[1] >= waited && starts[1] <= waited + ms(130), "{advice:?}: {starts:?}");
        }
        for advice in [secs(61), Duration::MAX] {
            let before = w.now();
            let (error, starts) = failing(&w, &p, &CallContext::new(), Oops::Slow(Some(advice))).await;
            assert_eq!((starts.len(), w.now(), error.retry_after()), (1, before, Some(advice)));
            let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
            assert_eq!(gave_up.stop(), Stop::Advice);
        }
        // Within max_retry_after, but past the deadline.
        let cx = CallContext::new().with_deadline(Deadline::after(w.now(), secs(3)));
        let before = w.now();
        let (error, _) = failing(&w, &p, &cx, Oops::Slow(Some(secs(5)))).await;
        assert_eq!((w.now(), error.retry_after()), (before, Some(secs(5))));
    });
}

#[test]
fn rt7_every_attempt_sees_the_same_request_and_key() {
    world(|w| async move {
        let p = policy(&w, &plain());
        let cx = CallContext::new().with_key("order-17/charge");
        let body = vec![1_u8, 2, 3];
        let seen = Mutex::new(Vec::new());
        let result = p
            .call(&cx, |a| {
                let (body, seen) = (body.clone(), &seen);
                async move {
                    seen.lock().unwrap().push((a.number(), body, a.key().map(str::to_owned)));
                    Err::<(), _>(Oops::Broken)
                }
            })
            .await;
        assert!(result.is_err());
        let key = Some("order-17/charge".to_owned());
        let expected: Vec<_> = (1..=3).map(|n| (n, vec![1, 2, 3], key.clone())).collect();
        assert_eq!(seen.into_inner().unwrap(), expected);
    });
}

/// The Kolmogorov-Smirnov statistic of `samples` against the uniform distribution on `[0, 1]`.
fn ks(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let n = samples.len() as f64;
    let far = |(i, x): (usize, &f64)| (x - i as f64 / n).abs().max(((i + 1) as f64 / n - x).abs());
    samples.iter().enumerate().map(far).fold(0.0, f64::max)
}

#[test]
fn rt8_jitter_is_distributed_as_documented() {
    const N: usize = 20_000;
    // 1 % critical value.
    let critical = 1.63 / (N as f64).sqrt();
    let rng = SeededRng::new(2_026);
    let sample = |jitter: Jitter, low: f64, high: f64| {
        let retry = Retry::exponential(ms(100), secs(100)).jitter(jitter).build().unwrap();
        let draw = |_| (retry.schedule().delay(3, Some(ms(200)), &rng).as_secs_f64() - low) / (high - low);
        ks((0..N).map(draw).collect())
    };
    assert!(sample(Jitter::Full, 0.0, 0.4) < critical);
    assert!(sample(Jitter::Equal, 0.2, 0.4) < critical);
    assert!(sample(Jitter::Decorrelated, 0.1, 0.6) < critical);
    // The test can fail: the wrong range is seen.
    assert!(sample(Jitter::Full, 0.0, 0.41) > critical);
}

#[test]
fn rt11_a_drop_during_backoff_leaves_nothing() {
    world(|w| async move {
        let budget =
            mainstay_resilience::Budget::builder("p").in_flight(0.2, 3).runtime(&w.runtime).build().unwrap();
        let b = Bulkhead::builder("k", 1).runtime(&w.runtime).build().unwrap();
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent()
            .budget(&budget)
            .bulkhead(&b)
            .retry(Retry::constant(secs(10)).build().unwrap())
            .build()
            .unwrap();
        let cx = CallContext::new();
        for _ in 0..100 {
            let mut call = Box::pin(p.call(&cx, |_| async { Err::<(), _>(Oops::Broken) }));
            tokio::select! {
                biased;
                _ = &mut call => panic!("it backs off for 10 s"),
                () = w.advance(ms(5)) => {}
            }
            assert_eq!((b.snapshot().in_flight, budget.snapshot().available), (1, 2.0));
            drop(call);
            assert_eq!((b.snapshot().in_flight, budget.snapshot().available), (0, 3.0));
        }
    });
}

/// Draws that are handed out in order.
#[derive(Debug)]
struct Script(Mutex<Vec<f64>>);

impl Rng for Script {
    fn next_u64(&self) -> u64 {
        let mut draws = self.0.lock().unwrap();
        // The inverse of `unit`: 53 bits, shifted back.
        ((draws.remove(0) * (1_u64 << 53) as f64) as u64) << 11
    }
}

#[test]
fn rt12_the_aws_preset_follows_its_rules_step_by_step() {
    world(|w| async move {
        let draws = std::sync::Arc::new(Script(Mutex::new(vec![0.5, 0.25, 0.5, 0.5, 0.5, 0.0])));
        let runtime = mainstay_clock::Runtime::on_tokio(std::sync::Arc::new(w.clock.clone()), draws);
        let budget = mainstay_resilience::Budget::builder("aws").aws().runtime(&runtime).build().unwrap();
        let retry = Retry::aws().build().unwrap();
        let p = Policy::builder("aws")
            .runtime(&runtime)
            .idempotent()
            .budget(&budget)
            .retry(retry)
            .build()
            .unwrap();
        let cx = CallContext::new();
        // 0.5 * 50 ms, then 0.25 * 100 ms; two retries at 14.
        let (error, starts) = failing(&w, &p, &cx, Oops::Broken).await;
        assert_eq!((error.attempts(), budget.tokens()), (3, Some(472.0)));
        assert!(
            starts[1] >= ms(25)
                && starts[1] <= ms(28)
                && starts[2] >= starts[1] + ms(25)
                && starts[2] <= ms(56),
            "{starts:?}"
        );
        // Success at the second attempt: the last cost comes back.
        let n = AtomicU32::new(0);
        let second =
            |_| async { if n.fetch_add(1, Ordering::SeqCst) == 0 { Err(Oops::Broken) } else { Ok(()) } };
        p.call(&cx, second).await.unwrap();
        assert_eq!(budget.tokens(), Some(472.0));
        // A first success adds one, never above capacity.
        p.call(&cx, |_| async { Ok::<_, Oops>(()) }).await.unwrap();
        assert_eq!(budget.tokens(), Some(473.0));
        // Throttled: base 1 s, 0.5 * 1 s = 500 ms; advice of 10 s is clamped to 5.5 s, 5 tokens.
        let n = AtomicU32::new(0);
        let t0 = w.now();
        let throttled = |_| async {
            if n.fetch_add(1, Ordering::SeqCst) == 0 {
                Err::<(), _>(Oops::Slow(Some(secs(10))))
            } else {
                Err(Oops::Fatal)
            }
        };
        assert_eq!(p.call(&cx, throttled).await.unwrap_err().attempts(), 2);
        let waited = w.now().saturating_duration_since(t0);
        assert!(waited >= ms(5_500) && waited <= ms(5_510), "{waited:?}");
        assert_eq!(budget.tokens(), Some(468.0));
        // An empty bucket stops, and still says how long it would have waited.
        while budget.spend(mainstay_resilience::budget::Cost::Retry).is_ok() {}
        let (error, starts) = failing(&w, &p, &cx, Oops::Broken).await;
        assert_eq!((starts.len(), error.retry_after()), (1, Some(ms(25))));
        let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
        assert_eq!(gave_up.stop(), Stop::Budget);
    });
}

#[test]
fn rt13_m_t3_nothing_is_repeated_that_was_not_declared() {
    world(|w| async move {
        let retry = || plain().build().unwrap();
        let refused = Policy::builder("p").retry(retry()).build().unwrap_err();
        assert_eq!((refused.field(), refused.value()), ("idempotent", "undeclared"));
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent_per_call()
            .retry(retry())
            .attempt_timeout(ms(300))
            .build()
            .unwrap();
        let undeclared = CallContext::new();
        let cases =
            [(&undeclared, 1), (&undeclared.clone().idempotent(), 3), (&undeclared.clone().with_key("k"), 3)];
        for (cx, calls) in cases {
            let (_, starts) = failing(&w, &p, cx, Oops::Broken).await;
            assert_eq!(starts.len(), calls);
            // Applied, but the reply is lost: whether it happened is unknown.
            let applied = AtomicU32::new(0);
            let lost = |_| async {
                applied.fetch_add(1, Ordering::SeqCst);
                std::future::pending::<Result<(), Oops>>().await
            };
            assert!(p.call(cx, lost).await.unwrap_err().timeout().is_some());
            assert_eq!(applied.load(Ordering::SeqCst) as usize, calls);
        }
    });
}

#[test]
fn a_predicate_and_a_total_time_stop_the_loop() {
    world(|w| async move {
        let only_two = plain().attempts(10).when(|failed| failed.attempt < 2);
        let (error, starts) = failing(&w, &policy(&w, &only_two), &CallContext::new(), Oops::Broken).await;
        let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
        assert_eq!((starts.len(), gave_up.stop()), (2, Stop::When));
        let total = plain().attempts(10).total_time(ms(650));
        let (error, starts) = failing(&w, &policy(&w, &total), &CallContext::new(), Oops::Broken).await;
        let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
        assert_eq!((starts.len(), gave_up.stop()), (3, Stop::TotalTime));
    });
}

#[test]
fn a_breaker_that_opens_between_attempts_ends_the_call_with_both_causes() {
    world(|w| async move {
        let b = Breaker::builder("b").runtime(&w.runtime).consecutive(2).build().unwrap();
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent()
            .retry(plain().attempts(5).build().unwrap())
            .breaker(&b)
            .build()
            .unwrap();
        let (error, starts) = failing(&w, &p, &CallContext::new(), Oops::Broken).await;
        assert_eq!((starts.len(), error.code(), error.attempts()), (2, "open", 2));
        assert_eq!(error.rejected().unwrap().why(), &Reason::Open);
        let CallError::GaveUp(gave_up) = error else { panic!("{error:?}") };
        assert!(matches!(gave_up.first(), Some(CallError::Inner(Oops::Broken))));
    });
}
