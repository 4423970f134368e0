//! PL1, L1: every async function is dropped at every poll, and nothing stays held.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mainstay_clock::{Deadline, Instant};
use mainstay_resilience::breaker::Followed;
use mainstay_resilience::fallback::Fallback;
use mainstay_resilience::limit::{AdaptiveLimiter, ClientThrottle, RateLimiter};
use mainstay_resilience::policy::seam::HedgePlan;
use mainstay_resilience::timeout::bounded;
use mainstay_resilience::{Breaker, Budget, Bulkhead, CallContext, CallError, Policy, Retry};

use crate::world::{Oops, World, ms, now, poll_once, secs, world};

/// Polls what `make` makes `polls` times, a millisecond apart, and drops it. True when it ended before.
async fn drop_after<F: Future>(w: &World, polls: usize, make: impl FnOnce() -> F) -> bool {
    let mut f = Box::pin(make());
    for _ in 0..polls {
        let step = f.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        if step.is_ready() {
            return true;
        }
        w.advance(ms(1)).await;
    }
    false
}

/// Drops it at every poll until it ends by itself; `clean` looks after each.
pub(crate) async fn everywhere<F: Future>(w: &World, what: &str, make: impl Fn() -> F, clean: impl Fn()) {
    for polls in 0..2_000 {
        let ended = drop_after(w, polls, &make).await;
        clean();
        if ended {
            assert!(polls > 1, "{what} was never pending");
            return;
        }
    }
    panic!("{what} never ended");
}

/// Pending for so many polls.
struct Turns(u32);

impl Future for Turns {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[derive(Debug)]
struct Soon;

impl HedgePlan for Soon {
    fn delay(&self, _: Instant) -> Option<Duration> {
        Some(ms(2))
    }
    fn succeeded(&self, _: Instant, _: Duration) {}
}

#[test]
fn pl1_a_call_dropped_at_every_await_gives_everything_back() {
    world(|w| async move {
        let heard = Arc::new(crate::world::Heard::default());
        let budget = Budget::builder("b").in_flight(1.0, 5).runtime(&w.runtime).build().unwrap();
        let bulkhead = Bulkhead::builder("k", 1).queue(2, secs(1)).runtime(&w.runtime).build().unwrap();
        let breaker =
            Breaker::builder("b").consecutive(1_000).min_calls(10_000).runtime(&w.runtime).build().unwrap();
        let base = || {
            Policy::builder("p")
                .runtime(&w.runtime)
                .idempotent()
                .deadline(secs(10))
                .bulkhead(&bulkhead)
                .retry(Retry::constant(ms(3)).attempts(4).build().unwrap())
                .budget(&budget)
                .breaker(&breaker)
                .attempt_timeout(ms(20))
                .listener(heard.clone())
        };
        let cx = CallContext::new();
        for (name, p) in [
            ("plain", base().build().unwrap()),
            ("hedged", base().hedge_plan(Arc::new(Soon)).build().unwrap()),
        ] {
            let made = std::cell::Cell::new(0);
            let call = || {
                p.call(&cx, |a| {
                    let n = a.number();
                    made.set(made.get() + 1);
                    async move {
                        Turns(4).await;
                        match n {
                            4 => Ok(()),
                            // One attempt hangs until its timeout.
                            2 => std::future::pending().await,
                            _ => Err(Oops::Broken),
                        }
                    }
                })
            };
            let ended = std::cell::Cell::new(0);
            everywhere(&w, name, call, || {
                let (b, s) = (bulkhead.snapshot(), breaker.snapshot());
                assert_eq!((b.in_flight, b.queued, budget.snapshot().available), (0, 0, 5.0), "{name}");
                let told = u64::from(s.lifetime.failures + s.lifetime.abandoned > 0);
                ended.set(ended.get() + told);
                let calls = heard.take().iter().filter(|e| e.starts_with("call ")).count();
                assert!(calls <= 1, "a call ends once");
            })
            .await;
            assert!(made.get() > 10);
        }
    });
}

#[test]
fn pl1_a_queued_call_dropped_at_every_await_leaves_the_line() {
    world(|w| async move {
        let bulkhead = Bulkhead::builder("k", 1).queue(2, ms(20)).runtime(&w.runtime).build().unwrap();
        let p = Policy::builder("p").runtime(&w.runtime).bulkhead(&bulkhead).build().unwrap();
        let cx = CallContext::new();
        let held = bulkhead.try_acquire().unwrap();
        everywhere(
            &w,
            "policy",
            || p.call(&cx, |_| async { Ok::<_, Oops>(()) }),
            || {
                assert_eq!((bulkhead.snapshot().in_flight, bulkhead.snapshot().queued), (1, 0));
            },
        )
        .await;
        everywhere(
            &w,
            "acquire",
            || bulkhead.acquire(&cx),
            || {
                assert_eq!((bulkhead.snapshot().in_flight, bulkhead.snapshot().queued), (1, 0));
            },
        )
        .await;
        everywhere(
            &w,
            "acquire_owned",
            || bulkhead.acquire_owned(&cx),
            || {
                assert_eq!((bulkhead.snapshot().in_flight, bulkhead.snapshot().queued), (1, 0));
            },
        )
        .await;
        drop(held);
        let owned = bulkhead.try_acquire_owned().unwrap();
        assert_eq!(bulkhead.try_acquire_owned().unwrap_err().why().code(), "full");
        drop(owned);
        assert_eq!(bulkhead.snapshot().in_flight, 0);
        let slow = || {
            bulkhead.call(&cx, || async {
                Turns(5).await;
                Ok::<_, Oops>(())
            })
        };
        everywhere(&w, "call", slow, || assert_eq!(bulkhead.snapshot().in_flight, 0)).await;
    });
}

#[test]
fn pl1_breaker_calls_and_bounded_futures_dropped_at_every_await() {
    world(|w| async move {
        let b = Breaker::builder("b").consecutive(1).open_for(ms(1)).runtime(&w.runtime).build().unwrap();
        b.admit().unwrap().failure();
        w.advance(ms(2)).await;
        let op = || async {
            Turns(5).await;
            Ok::<_, Oops>(())
        };
        everywhere(&w, "probe", || b.call(op), || assert_eq!(b.snapshot().probes, 0)).await;
        let dropped = std::rc::Rc::new(());
        let held = || {
            let kept = std::rc::Rc::clone(&dropped);
            bounded(&w.clock, ms(10), Deadline::NONE, async move {
                Turns(5).await;
                drop(kept)
            })
        };
        everywhere(&w, "bounded", held, || assert_eq!(std::rc::Rc::strong_count(&dropped), 1)).await;
    });
}

#[test]
fn pl1_a_panic_inside_a_policy_is_a_failure_and_gives_everything_back() {
    use futures_util::future::FutureExt as _;
    world(|w| async move {
        let bulkhead = Bulkhead::builder("k", 1).runtime(&w.runtime).build().unwrap();
        let breaker = Breaker::builder("b").consecutive(1_000).runtime(&w.runtime).build().unwrap();
        let p =
            Policy::builder("p").runtime(&w.runtime).bulkhead(&bulkhead).breaker(&breaker).build().unwrap();
        let cx = CallContext::new();
        for late in [false, true] {
            let call = p.call(&cx, |_| {
                assert!(late, "planned: while it is being made");
                async move {
                    if late {
                        Turns(1).await;
                        panic!("planned");
                    }
                    Ok::<(), Oops>(())
                }
            });
            let before = breaker.snapshot().lifetime.failures;
            assert!(std::panic::AssertUnwindSafe(call).catch_unwind().await.is_err());
            assert_eq!(breaker.snapshot().lifetime.failures, before + 1);
            assert_eq!(bulkhead.snapshot().in_flight, 0);
        }
    });
}

#[test]
fn pl1_limits_fallbacks_and_readers_dropped_at_every_await() {
    world(|w| async move {
        let turns = || async {
            Turns(5).await;
            Ok::<_, Oops>(())
        };
        // A turn that is not waited for goes to the next one: nobody ever waits for two.
        let rate = RateLimiter::builder("r").rate(1, ms(20)).runtime(&w.runtime).build().unwrap();
        rate.check().unwrap();
        let next = || {
            if let Err(refused) = rate.check() {
                assert!(refused.retry_after() <= Some(ms(20)), "{refused:?}");
            }
        };
        everywhere(&w, "rate", || rate.acquire(Deadline::NONE), next).await;

        let adaptive = AdaptiveLimiter::builder("a").runtime(&w.runtime).build().unwrap();
        everywhere(
            &w,
            "adaptive",
            || adaptive.call(turns),
            || assert_eq!(adaptive.snapshot().in_flight(), 0),
        )
        .await;

        let throttle = ClientThrottle::builder("t").runtime(&w.runtime).build().unwrap();
        let refused = || {
            throttle.call(|| async {
                Turns(5).await;
                Err::<(), _>(Oops::Slow(None))
            })
        };
        for polls in 0..5 {
            assert!(!drop_after(&w, polls, refused).await);
            assert_eq!(throttle.refusal(), 0.0, "a dropped call counts as nothing");
        }
        assert!(drop_after(&w, 6, refused).await && throttle.refusal() > 0.0);

        let kept = std::rc::Rc::new(());
        let fallback = Fallback::new("f").unwrap();
        let twice = || {
            let (first, second) = (std::rc::Rc::clone(&kept), std::rc::Rc::clone(&kept));
            let call = async move {
                Turns(3).await;
                drop(first);
                Err::<(), _>(CallError::Inner(Oops::Broken))
            };
            fallback.call(call, |_| async move {
                Turns(3).await;
                drop(second);
                Ok(())
            })
        };
        everywhere(&w, "fallback", twice, || assert_eq!(std::rc::Rc::strong_count(&kept), 1)).await;

        let breaker = Breaker::builder("b").runtime(&w.runtime).build().unwrap();
        let mut transitions = breaker.transitions();
        for generation in 2..10 {
            assert!(poll_once(transitions.next()).is_pending());
            breaker.reset("a transition");
            let Followed::Transition(seen) = now(transitions.next()) else { panic!("nothing was missed") };
            assert_eq!(seen.generation(), generation, "a dropped wait loses nothing");
        }
    });
}
