//! Every future is dropped at every await point; nothing stays behind.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use mainstay_clock::Clock;
use mainstay_coordination::Coordinator;
use mainstay_store::LeaseStore;

use crate::faulty::{Fault, Faulty};
use crate::world::{TTL, World, virtually};

/// Polls `future` at most `polls` times and drops it then. True when it had ended before.
pub(crate) async fn dropped_after<F: Future>(future: F, polls: usize) -> bool {
    let mut future = Box::pin(future);
    let mut left = polls;
    poll_fn(move |cx| {
        if left == 0 {
            return Poll::Ready(false);
        }
        left -= 1;
        let ended = future.as_mut().poll(cx).is_ready();
        if ended || left == 0 { Poll::Ready(ended) } else { Poll::Pending }
    })
    .await
}

pub(crate) async fn settled(w: &World, node: &Coordinator) {
    for _ in 0..10_000 {
        if node.in_background() == 0 {
            return;
        }
        w.clock.sleep(Duration::from_millis(10)).await;
    }
    panic!("{} background tasks did not end", node.in_background());
}

#[test]
fn f19_acquire_dropped_at_every_await_point_leaves_nothing_held() {
    virtually(|w| async move {
        let store = Faulty::new(w.store.clone());
        let node = w.node_on(Arc::clone(&store) as Arc<dyn LeaseStore>, w.clock.clone(), "a");
        let lock = node.mutex("n").ttl(TTL).build().unwrap();
        let faults = [vec![], vec![Fault::AppliedThenUnknown, Fault::Refused], vec![Fault::AppliedThenHangs]];
        // What is free is granted by the question that is not answered.
        let cases = faults.into_iter().flat_map(|faults| [(faults.clone(), true), (faults, false)]);
        for (faults, is_held) in cases {
            let mut ended = false;
            for polls in 1..200 {
                let blocker = if is_held { Some(w.held("z", "n").await) } else { None };
                store.acquisitions(faults.clone());
                let release = async {
                    w.clock.sleep(Duration::from_secs(1)).await;
                    if let Some(blocker) = blocker {
                        blocker.release().await.unwrap();
                    }
                };
                let (done, ()) = tokio::join!(dropped_after(lock.acquire(w.within(60)), polls), release);
                settled(&w, &node).await;
                // Long before a lease that nobody gave back would end by itself.
                assert_eq!(w.holder("n").await, "", "after {polls} polls under {faults:?}");
                ended = done;
                if ended {
                    break;
                }
            }
            assert!(ended, "the last round must run to its end");
        }
    });
}

#[test]
fn run_lost_and_release_dropped_at_every_await_point() {
    virtually(|w| async move {
        let node = w.node("a");
        let lock = node.mutex("n").ttl(TTL).build().unwrap();
        for polls in 1..20 {
            let guard = lock.try_acquire().await.unwrap();
            let clock = &w.clock;
            let work = |_| async move {
                for _ in 0..5 {
                    clock.sleep(Duration::from_millis(10)).await;
                }
            };
            let _ = dropped_after(guard.run(work), polls).await;
            let _ = dropped_after(guard.lost(), 1).await;
            guard.check().unwrap();
            let _ = dropped_after(guard.release(), polls).await;
            settled(&w, &node).await;
            w.freed("n").await;
        }
    });
}

#[test]
fn a_campaign_dropped_at_every_await_point_leaves_the_line() {
    virtually(|w| async move {
        let node = w.node("b");
        let election = node.election("e").ttl(TTL).build().unwrap();
        let leader = w.node("a").election("e").ttl(TTL).build().unwrap().campaign(w.within(1)).await.unwrap();
        for polls in 1..10 {
            assert!(!dropped_after(election.campaign(w.within(600)), polls).await);
            settled(&w, &node).await;
            assert_eq!(w.store.inspect("test/election/e").await.unwrap().waiting, 0, "after {polls} polls");
        }
        leader.check().unwrap();
    });
}
