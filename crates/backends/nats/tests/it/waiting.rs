//! Who waits: woken by hints, kept by a timer, without polling.

use futures_util::future::join_all;
use mainstay_clock::{Clock as _, SystemClock};
use mainstay_nats::Expiry;
use mainstay_store::LeaseStore;
use mainstay_store::lease::Released;

use crate::Test;
use crate::world::{
    RENEWED, Spy, bucket, coordinator, ms, nats, other, pause, publish, run, soon, store, take, until,
};

pub(crate) const TESTS: &[Test] = &[
    ("f15_where_nothing_tells_of_an_expiry_a_timer_wakes", f15),
    ("f17_nothing_is_sent_after_the_release", f17),
    ("k08_a_leader_that_resigns_is_followed_long_before_its_lease_ends", k08),
    ("waiters_do_not_poll_and_one_release_serves_one", parked),
    ("a_hand_over_takes_a_notification_and_a_write", hand_over),
];

const LONG: std::time::Duration = std::time::Duration::from_secs(600);

fn f15() {
    let server = nats();
    run(async {
        for expiry in [Expiry::Observer, Expiry::Auto] {
            let open = async || bucket(&server, &format!("b{expiry:?}"), |b| b.expiry(expiry)).await;
            let (dead, waiting) = (open().await, open().await);
            let before = take(&dead, "test/a", "dead", ms(1_200)).await;
            let lock = coordinator(waiting, "next").mutex("a").build().unwrap();
            let guard = lock.acquire(soon()).await.unwrap();
            assert!(guard.token() > before, "{expiry:?}");
            guard.release().await.unwrap();
        }
    });
}

fn f17() {
    let server = nats();
    run(async {
        let lock = coordinator(store(&server).await, "me").mutex("a").ttl(RENEWED).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let known = guard.deadline();
        let mut spy = Spy::on(&server).await;
        guard.renewed(known).await;
        assert!(spy.count().await >= 1, "a renewal is heard");
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
        spy.count().await;
        // Longer than the time between two renewals.
        pause(RENEWED / 2).await;
        assert_eq!(spy.count().await, 0);
    });
}

fn k08() {
    let server = nats();
    run(async {
        let election = async |owner: &str| {
            coordinator(store(&server).await, owner).election("e").ttl(LONG).build().unwrap()
        };
        let (first, second) = (election("n1").await, election("n2").await);
        let term = first.campaign(soon()).await.unwrap();
        let watching = store(&server).await;
        let resign = async {
            until("it stands in line", async || {
                watching.inspect("test/election/e").await.unwrap().waiting == 1
            })
            .await;
            term.resign().await.unwrap()
        };
        let (next, resigned) = tokio::join!(second.campaign(soon()), resign);
        assert_eq!(resigned, Released::Clean);
        next.unwrap().resign().await.unwrap();
    });
}

/// Forty processes wait for one name that somebody of other make holds, who says nothing of an end.
fn parked() {
    let server = nats();
    run(async {
        let raw = other(&server).await;
        // The bucket is there once somebody opened it.
        let stores = join_all((0..40).map(|_| store(&server))).await;
        take(&stores[0], "test/a", "holder", LONG).await;
        let waiters = stores.iter().skip(1).enumerate().map(async |(n, store)| {
            let lock = coordinator(store.clone(), &format!("w{n}")).mutex("a").ttl(LONG).build().unwrap();
            lock.acquire(soon()).await.unwrap().release().await.unwrap();
        });
        let free = async {
            let mut spy = Spy::on(&server).await;
            // However long it takes until all have asked, and however often it is looked at: then there is silence.
            let mut asked = usize::MAX;
            for _ in 0..60 {
                pause(ms(1_000)).await;
                asked = spy.count().await;
                if asked == 0 {
                    break;
                }
            }
            assert_eq!(asked, 0, "{asked} messages of 39 waiters in a second: that is polling");
            assert_eq!(stores[0].release("holder").await.unwrap(), Released::Clean);
        };
        tokio::join!(join_all(waiters), free);
        assert!(stores[0].inspect("test/a").await.unwrap().holders.is_empty());
        assert_ne!(publish(&raw, "test/a", 1, "x").await, 0);
    });
}

fn hand_over() {
    let server = nats();
    run(async {
        let (one, two) = (store(&server).await, store(&server).await);
        let clock = SystemClock::new();
        let locks =
            [coordinator(one, "a"), coordinator(two, "b")].map(|c| c.mutex("n").ttl(LONG).build().unwrap());
        let mut times = Vec::new();
        let mut guard = locks[0].acquire(soon()).await.unwrap();
        for round in 1..=40 {
            let hand = async {
                // Long enough that it waits; if not, it takes even less.
                pause(ms(20)).await;
                let at = clock.now();
                guard.release().await.unwrap();
                at
            };
            let (next, at) = tokio::join!(locks[round % 2].acquire(soon()), hand);
            times.push(clock.now().saturating_duration_since(at));
            let next = next.unwrap();
            guard = next;
        }
        times.sort();
        println!("hand-over p50 {:?}, max {:?}", times[20], times[39]);
        assert!(times[20] < ms(60_000), "by a notification, not by the end of the lease");
        guard.release().await.unwrap();
    });
}
