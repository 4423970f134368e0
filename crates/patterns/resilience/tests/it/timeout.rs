//! TO1-TO3 and the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Deadline, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};
use mainstay_resilience::timeout::{bounded, wire};
use mainstay_resilience::{Breaker, Bulkhead, CallContext, Policy, Retry, TimeoutKind};
use proptest::{prop_assert, proptest};

use crate::world::{HandClock, Oops, ms, now, poll_once, secs, world};

/// Counts the timers that are armed.
#[derive(Clone, Debug)]
struct Counting(HandClock, Arc<AtomicU32>);

impl Clock for Counting {
    fn now(&self) -> Instant {
        self.0.now()
    }
    fn wall(&self) -> WallTime {
        self.0.wall()
    }
    fn tick(&self) -> Tick {
        self.0.tick()
    }
    fn sleep_until(&self, at: Instant) -> Sleep {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.sleep_until(at)
    }
}

#[test]
fn to1_a_ready_operation_arms_no_timer() {
    let (hand, _) = HandClock::runtime();
    let clock = Counting(hand, Arc::new(AtomicU32::new(0)));
    let runtime = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(1)));
    let p = Policy::builder("p")
        .runtime(&runtime)
        .idempotent()
        .deadline(secs(2))
        .bulkhead(&Bulkhead::builder("k", 4).queue(4, secs(1)).runtime(&runtime).build().unwrap())
        .retry(Retry::standard().build().unwrap())
        .breaker(&Breaker::builder("b").runtime(&runtime).build().unwrap())
        .attempt_timeout(ms(300))
        .build()
        .unwrap();
    let cx = CallContext::new();
    now(p.call(&cx, |_| async { Ok::<_, Oops>(()) })).unwrap();
    assert_eq!(now(bounded(&clock, ms(5), Deadline::NONE, async { 1 })), Ok(1));
    assert_eq!(clock.1.load(Ordering::SeqCst), 0);
    assert!(poll_once(p.call(&cx, |_| std::future::pending::<Result<(), Oops>>())).is_pending());
    assert_eq!(clock.1.load(Ordering::SeqCst), 1, "one timer per attempt, at the earlier of both bounds");
}

#[test]
fn to2_the_parents_deadline_wins_and_the_wire_carries_what_remains() {
    world(|w| async move {
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .deadline(secs(5))
            .attempt_timeout(secs(3))
            .build()
            .unwrap();
        let cx = CallContext::new().with_deadline(Deadline::after(w.now(), secs(1)));
        let t0 = w.now();
        let cut = p
            .call(&cx, |a| {
                let w = w.clone();
                async move {
                    assert_eq!(a.deadline(), Deadline::after(t0, secs(1)));
                    w.advance(ms(400)).await;
                    let headers = wire::headers(&a);
                    let get = |n: &str| headers.iter().find(|(k, _)| *k == n).map(|(_, v)| v.as_str());
                    let there = wire::read(get, Instant::ZERO).unwrap();
                    let left = there.remaining(Instant::ZERO).unwrap();
                    assert!(left <= ms(600) && left >= ms(597), "{left:?}");
                    let nested = a.nest();
                    assert_eq!((nested.deadline(), nested.depth()), (a.deadline(), 1));
                    std::future::pending::<Result<(), Oops>>().await
                }
            })
            .await
            .unwrap_err();
        assert_eq!(cut.timeout().unwrap().kind(), TimeoutKind::Deadline);
        let took = w.now().saturating_duration_since(t0);
        assert!(took >= secs(1) && took <= ms(1_003), "{took:?}");
        // The own one wins where it is earlier.
        let t0 = w.now();
        let cut =
            p.call(&CallContext::new(), |_| std::future::pending::<Result<(), Oops>>()).await.unwrap_err();
        assert_eq!(cut.timeout().unwrap().kind(), TimeoutKind::Attempt);
        assert!(w.now().saturating_duration_since(t0) <= ms(3_003));
    });
}

#[test]
fn to2_the_attempt_number_and_the_key_travel_too() {
    world(|w| async move {
        let p = Policy::builder("p")
            .runtime(&w.runtime)
            .idempotent_per_call()
            .retry(Retry::constant(ms(1)).build().unwrap())
            .build()
            .unwrap();
        let seen = std::sync::Mutex::new(Vec::new());
        let cx = CallContext::new().with_key("k1");
        let failed = p.call(&cx, |a| {
            seen.lock().unwrap().push(wire::headers(&a));
            async { Err::<(), _>(Oops::Broken) }
        });
        assert!(failed.await.is_err());
        let key = (wire::IDEMPOTENCY_KEY, "k1".to_owned());
        let previous = |n: &str| (wire::GRPC_PREVIOUS_ATTEMPTS, n.to_owned());
        let expected = [vec![key.clone()], vec![previous("1"), key.clone()], vec![previous("2"), key]];
        assert_eq!(seen.into_inner().unwrap(), expected);
    });
}

#[test]
fn to3_work_that_expired_in_the_queue_is_not_started() {
    world(|w| async move {
        let b = Bulkhead::builder("server", 1).queue(10, secs(10)).runtime(&w.runtime).build().unwrap();
        let p = Policy::builder("server").runtime(&w.runtime).bulkhead(&b).build().unwrap();
        let started = AtomicU32::new(0);
        let work = |_| async {
            started.fetch_add(1, Ordering::SeqCst);
            w.advance(ms(500)).await;
            Ok::<_, Oops>(())
        };
        // Ten requests with 1 s each, served one at a time in 500 ms: the third is over when its turn comes.
        let cxs: Vec<_> =
            (0..10).map(|_| CallContext::new().with_deadline(Deadline::after(w.now(), secs(1)))).collect();
        let results = futures_util::future::join_all(cxs.iter().map(|cx| p.call(cx, work))).await;
        assert_eq!(started.load(Ordering::SeqCst), 2);
        let refused = results.iter().filter(|r| r.as_ref().is_err_and(|e| e.code() == "deadline")).count();
        assert_eq!(refused, 8, "{results:?}");
    });
}

#[test]
fn a_bound_says_which_one_cut() {
    world(|w| async move {
        let never = std::future::pending::<()>;
        for (d, deadline, kind) in [
            (ms(50), Deadline::NONE, TimeoutKind::Attempt),
            (ms(50), Deadline::after(w.now(), secs(60)), TimeoutKind::Attempt),
            (secs(600), Deadline::after(w.now(), secs(60)), TimeoutKind::Deadline),
        ] {
            assert_eq!(bounded(&w.clock, d, deadline, never()).await.unwrap_err().kind(), kind);
        }
    });
}

#[test]
fn the_wire_forms_refuse_garbage() {
    for bad in ["", "5", "S", "123456789S", "-1S", "1.5S", "1s", "1 S", "+1S", "\u{b5}"] {
        assert!(wire::read_grpc(bad).is_err(), "{bad}");
    }
    for bad in ["", "-1", "1.0", "1s", "x"] {
        assert!(wire::read_ms(bad).is_err(), "{bad}");
    }
    for (text, d) in
        [("1H", secs(3_600)), ("99999999H", secs(99_999_999 * 3_600)), ("0n", ms(0)), ("7m", ms(7))]
    {
        assert_eq!(wire::read_grpc(text), Ok(d));
    }
    assert_eq!(wire::write_grpc(Duration::MAX), "99999999H");
    assert_eq!(wire::write_grpc(ms(0)), "1n");
    assert_eq!(wire::read_ms("99999999999999999999999"), Ok(Duration::from_millis(u64::MAX)));
    assert!(wire::read(|_| Some("x"), Instant::ZERO).is_err());
}

proptest! {
    #[test]
    fn to2_a_deadline_never_grows_on_the_wire(nanos in 1_u64..=u64::MAX) {
        let d = Duration::from_nanos(nanos);
        let text = wire::write_grpc(d);
        prop_assert!(text.len() <= 9);
        let back = wire::read_grpc(&text).unwrap();
        // At most one unit of eight significant digits is lost.
        prop_assert!(back <= d && d - back <= d / 1_000_000, "{text}");
        prop_assert!(wire::read_ms(&wire::write_ms(d)).unwrap() <= d);
    }
}
