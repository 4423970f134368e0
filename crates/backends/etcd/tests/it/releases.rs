//! Releases whose answers are lost.

use std::time::Duration;

use mainstay_chaos::proxy::{TcpMode, TcpProxy};
use mainstay_etcd::EtcdLeases;
use mainstay_store::lease::Released;
use mainstay_store::{LeaseStore, Outcome};

use crate::world::{Test, World, ask, granted, open, through, until};

pub(crate) const TESTS: &[Test] =
    &[("s4_a_release_whose_answer_was_lost_is_clean_when_it_is_repeated", |w| Box::pin(released_unheard(w)))];

/// The release of `op` is applied and its answer lost.
async fn release_unheard(proxy: &TcpProxy, store: &EtcdLeases, op: &str) {
    proxy.set_mode(TcpMode::RepliesLost);
    let lost = store.release(op).await.unwrap_err();
    assert_eq!((lost.is_retryable(), lost.outcome()), (true, Outcome::Unknown), "{lost}");
    proxy.set_mode(TcpMode::Pass);
    proxy.cut();
}

async fn released_unheard(world: World) {
    let (proxy, prefix) = (world.proxy().await, world.prefix());
    let store = through(&[&proxy], &prefix, Duration::from_secs(3)).await;
    let direct = open(world.config(&prefix)).await;
    let (take, again) = (
        async |name: &str, op: &str| {
            until("it is granted", || async { store.acquire(ask(name, op)).await.is_ok() }).await;
        },
        async |op: &str| {
            let answer = std::sync::Mutex::new(None);
            until("it is answered", || async {
                *answer.lock().unwrap() = store.release(op).await.ok();
                answer.lock().unwrap().is_some()
            })
            .await;
            answer.into_inner().unwrap().unwrap()
        },
    );
    take("n", "a").await;
    release_unheard(&proxy, &store, "a").await;
    until("it was done", || async { direct.inspect("n").await.unwrap().holders.is_empty() }).await;
    assert!(granted(&direct.acquire(ask("n", "next")).await.unwrap()).is_some());
    assert_eq!(again("a").await, Released::Clean, "though somebody else has it by now");
    assert_eq!(again("a").await, Released::AlreadyGone, "that was answered");
    // Ended by force before the first of them: that is no clean end.
    take("m", "b").await;
    direct.break_lease("m").await.unwrap();
    release_unheard(&proxy, &store, "b").await;
    assert_eq!(again("b").await, Released::AlreadyGone);
}
