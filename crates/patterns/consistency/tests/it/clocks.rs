//! Hybrid logical clocks.

use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use mainstay_clock::{Rng, SeededRng};
use mainstay_consistency::ErrorKind;
use mainstay_consistency::hlc::{DurableHlc, Hlc, Timestamp};
use mainstay_consistency::laws::ManualClock;
use mainstay_store::memory::MemoryCell;
use mainstay_store::{BoxFuture, DurableCell};

use crate::{block_on, clock};

const WINDOW: Duration = Duration::from_millis(250);

#[test]
fn l18_stamps_increase_and_respect_causality() {
    let rng = SeededRng::new(1);
    let nodes: Vec<_> = (0..3).map(|i| clock(1_000_000 + i * 30)).collect();
    let mut last = [None; 3];
    for step in 0..5_000_i64 {
        let at = rng.below(3) as usize;
        // Clocks go on, stand still and step back a little.
        nodes[at].1.set(1_000_000 + step / 10 + at as i64 * 30 - rng.below(50) as i64);
        let stamp = nodes[at].0.now().unwrap();
        assert!(last[at] < Some(stamp), "step {step}");
        last[at] = Some(stamp);
        let to = rng.below(3) as usize;
        nodes[to].0.observe(stamp).unwrap();
        let next = nodes[to].0.now().unwrap();
        assert!(next > stamp && last[to] < Some(next));
        last[to] = Some(next);
    }
}

#[test]
fn l18_a_full_counter_carries_into_the_milliseconds() {
    let (hlc, _) = clock(1_000);
    let mut last = hlc.now().unwrap();
    for _ in 0..70_000 {
        let next = hlc.now().unwrap();
        assert!(next > last);
        last = next;
    }
    assert_eq!(last.physical_ms(), 1_001);
}

#[test]
fn l18_threads_never_share_a_stamp() {
    let (hlc, _) = clock(1_000);
    let mut all: Vec<Timestamp> = std::thread::scope(|scope| {
        let work = |_| scope.spawn(|| (0..5_000).map(|_| hlc.now().unwrap()).collect::<Vec<_>>());
        let running: Vec<_> = (0..4).map(work).collect();
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    all.sort_unstable();
    assert!(all.windows(2).all(|w| w[0] < w[1]));
}

#[test]
fn c7_a_stamp_from_the_future_is_refused_and_changes_nothing() {
    let (slow, _) = clock(1_000);
    let (fast, _) = clock(1_000 + 3_600_000);
    let before = slow.now().unwrap();
    let refused = slow.observe(fast.now().unwrap()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Skew { ahead: Duration::from_secs(3_600) });
    assert!(refused.is_retryable());
    assert_eq!(slow.last(), before);
    let (near, _) = clock(1_500);
    slow.observe(near.now().unwrap()).unwrap();
    assert!(slow.now().unwrap() > near.last());
}

#[test]
fn c8_a_step_back_and_a_restart_repeat_no_stamp() {
    block_on(async {
        let cell = Arc::new(MemoryCell::new());
        let wall = Arc::new(ManualClock::new(10_000));
        let open = async || {
            let hlc = Hlc::builder(wall.clone()).build().unwrap();
            DurableHlc::open(hlc, cell.clone(), WINDOW).await.unwrap()
        };
        let mut last = None;
        for round in 0..6 {
            let durable = open().await;
            for _ in 0..50 {
                let stamp = durable.hlc().now().unwrap();
                assert!(last < Some(stamp), "round {round}");
                last = Some(stamp);
            }
            // The machine restarts with a clock that went back.
            wall.set(10_000 - round * 20);
        }
    });
}

#[test]
fn c8_no_stamp_beyond_the_durable_bound() {
    block_on(async {
        let cell = Arc::new(MemoryCell::new());
        let wall = Arc::new(ManualClock::new(10_000));
        let durable =
            DurableHlc::open(Hlc::builder(wall.clone()).build().unwrap(), cell, WINDOW).await.unwrap();
        assert!(!durable.extend().await.unwrap(), "the window is fresh");
        wall.set(10_249);
        let stamp = durable.hlc().now().unwrap();
        wall.set(10_250);
        assert_eq!(durable.hlc().now().unwrap_err().kind(), ErrorKind::Unbounded);
        assert!(durable.extend().await.unwrap());
        assert!(durable.hlc().now().unwrap() > stamp);
    });
}

/// A cell on which, of two writes at once, the later one is done first and told last.
#[derive(Debug, Default)]
struct Overtaking {
    value: Mutex<Option<Vec<u8>>>,
    begun: AtomicUsize,
    done: AtomicUsize,
}

impl Overtaking {
    /// Gives way until `more` further writes are done, or nobody else writes.
    async fn give_way(&self, more: usize) {
        let wanted = self.done.load(Ordering::SeqCst) + more;
        for _ in 0..20 {
            if self.done.load(Ordering::SeqCst) >= wanted {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

impl DurableCell for Overtaking {
    fn load(&self) -> BoxFuture<'_, mainstay_store::Result<Option<Vec<u8>>>> {
        Box::pin(async { Ok(self.value.lock().unwrap().clone()) })
    }

    fn store_synced(&self, value: Vec<u8>) -> BoxFuture<'_, mainstay_store::Result<()>> {
        Box::pin(async move {
            let first = self.begun.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            if first {
                self.give_way(1).await;
            }
            *self.value.lock().unwrap() = Some(value);
            self.done.fetch_add(1, Ordering::SeqCst);
            if !first {
                self.give_way(1).await;
            }
            Ok(())
        })
    }
}

#[test]
fn c8_two_tasks_that_extend_at_once_leave_no_bound_in_force_that_is_not_durable() {
    block_on(async {
        let (cell, wall) = (Arc::new(Overtaking::default()), Arc::new(ManualClock::new(10_000)));
        let open = async || {
            let hlc = Hlc::builder(wall.clone()).build().unwrap();
            DurableHlc::open(hlc, cell.clone(), WINDOW).await.unwrap()
        };
        let durable = open().await;
        cell.begun.store(0, Ordering::SeqCst);
        wall.set(10_130);
        let late = async {
            // By the time it looks, the larger bound is due.
            wall.set(10_160);
            durable.extend().await.unwrap()
        };
        let (first, second) = tokio::join!(durable.extend(), late);
        assert!(first.unwrap() && !second, "what one has done there is no need to do again");
        let mut last = durable.hlc().now().unwrap();
        for ms in 10_161..11_000 {
            wall.set(ms);
            match durable.hlc().now() {
                Ok(stamp) => last = stamp,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Unbounded);
                    break;
                }
            }
        }
        // It crashes, and comes back with a clock that is a little behind.
        wall.set(10_160);
        let first = open().await.hlc().now().unwrap();
        assert!(first > last, "{first:?} was handed out before {last:?}");
    });
}

#[test]
fn a_dropped_extend_gives_its_turn_to_those_who_wait() {
    block_on(async {
        let (cell, wall) = (Arc::new(Overtaking::default()), Arc::new(ManualClock::new(10_000)));
        let hlc = Hlc::builder(wall.clone()).build().unwrap();
        let durable = DurableHlc::open(hlc, cell.clone(), WINDOW).await.unwrap();
        wall.set(10_130);
        cell.begun.store(0, Ordering::SeqCst);
        let mut dropped = Box::pin(durable.extend());
        let mut waits = Box::pin(durable.extend());
        poll_fn(|cx| {
            assert!(dropped.as_mut().poll(cx).is_pending(), "in the middle of its write");
            assert!(waits.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
        assert_eq!(cell.begun.load(Ordering::SeqCst), 1, "one writes at a time");
        drop(dropped);
        assert!(waits.await.unwrap());
        assert!(!durable.extend().await.unwrap());
    });
}

#[test]
fn a_jump_ahead_is_noticed_and_accepted_by_a_person_only() {
    let (hlc, wall) = clock(1_000_000);
    hlc.now().unwrap();
    wall.set(1_000_000 + 60_000);
    assert!(matches!(hlc.now().unwrap_err().kind(), ErrorKind::ClockJump { .. }));
    assert!(matches!(hlc.now().unwrap_err().kind(), ErrorKind::ClockJump { .. }));
    hlc.accept_jump();
    assert_eq!(hlc.now().unwrap().physical_ms(), 1_060_000);
}

#[test]
fn a_clock_far_behind_its_own_stamps_is_an_error() {
    let (hlc, wall) = clock(1_000_000);
    let stamp = hlc.now().unwrap();
    wall.set(1_000_000 - 400);
    assert!(hlc.now().unwrap() > stamp);
    wall.set(1_000_000 - 10_000);
    assert_eq!(hlc.now().unwrap_err().kind(), ErrorKind::ClockBehind { behind: Duration::from_secs(10) });
    wall.set(1_000_000 - 400);
    assert!(hlc.now().unwrap() > stamp);
}

#[test]
fn years_before_1970_do_not_panic() {
    let (hlc, _) = clock(-5_000);
    let first = hlc.now().unwrap();
    assert!(hlc.now().unwrap() > first);
}

/// A bound beyond 48 bits of milliseconds went round, and with it the promise that nothing below it comes again.
#[test]
fn c8_a_cell_that_holds_no_bound_of_a_clock_is_refused() {
    block_on(async {
        for bytes in [vec![], vec![0; 7], vec![0; 9], (1_u64 << 48).to_be_bytes().to_vec(), vec![0xff; 8]] {
            let cell = Arc::new(MemoryCell::new());
            cell.store_synced(bytes.clone()).await.unwrap();
            let refused = DurableHlc::open(clock(1_000).0, cell.clone(), WINDOW).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Malformed, "{bytes:?}");
            assert_eq!(cell.load().await.unwrap(), Some(bytes), "it is left as it is");
        }
    });
}

#[test]
fn a_window_that_peers_would_refuse_is_refused() {
    block_on(async {
        for window in [Duration::ZERO, Duration::from_millis(501)] {
            let hlc = clock(1_000).0;
            let refused = DurableHlc::open(hlc, Arc::new(MemoryCell::new()), window).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Config);
        }
    });
}
