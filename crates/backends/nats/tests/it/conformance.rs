//! The suites of the contracts, and the recipes over both.

use std::sync::Arc;

use mainstay_chaos::proxy::TcpMode;
use mainstay_chaos::recipes;
use mainstay_clock::{Runtime, SystemClock};
use mainstay_coordination::Coordinator;
use mainstay_nats::Expiry;
use mainstay_sim::conformance;
use mainstay_store::lease::ToldBy;
use mainstay_store::{ErrorKind, LeaseStore, Outcome, PutIf, RecordStore};

use crate::Test;
use crate::world::{bucket, ms, nats, proxied, run, soon, store, until};

pub(crate) const TESTS: &[Test] = &[
    ("both_ways_of_expiry_conform", conform),
    ("records_conform_whoever_ends_them", records),
    ("f33_a_record_whose_answer_was_lost_is_found_to_be_written", lost_answer),
    ("records_and_leases_of_one_bucket_are_kept_apart", apart),
    ("members_jobs_barriers_and_latches_hold_between_two_stores", between),
];

fn conform() {
    let server = nats();
    // Side by side: most of the time is spent waiting for leases to end.
    run(async {
        let clock = SystemClock::new();
        let observed = bucket(&server, "observed", |b| b.expiry(Expiry::Observer)).await;
        let ended = bucket(&server, "ended", |b| b.expiry(Expiry::Server)).await;
        let (one, two) =
            tokio::join!(conformance::leases(&observed, &clock), conformance::leases(&ended, &clock));
        assert_eq!(conformance::since_when(&observed, &clock).await, ToldBy::Holder);
        for sections in [one, two] {
            assert_eq!(
                sections.ran,
                ["mutex", "annotate", "break_lease", "line", "list", "permit", "shared", "transfer", "watch"]
            );
            println!("nats: {} checks", sections.ran.len() + sections.refused.len());
        }
        assert_ne!(observed.guarantees().clock, ended.guarantees().clock);
    });
}

fn records() {
    let server = nats();
    run(async {
        let clock = SystemClock::new();
        let observed = bucket(&server, "observed", |b| b.expiry(Expiry::Observer)).await;
        let ended = bucket(&server, "ended", |b| b.expiry(Expiry::Server)).await;
        let both =
            tokio::join!(conformance::records(&observed, &clock), conformance::records(&ended, &clock));
        assert_eq!(both, (6, 6));
        let (before, told, after) = (wall(), observed.now().await.unwrap().unwrap().unix_millis(), wall());
        assert!((before - 1..=after + 1).contains(&told), "the server's clock is this machine's");
    });
}

fn wall() -> i64 {
    mainstay_clock::os_wall_now().unix_millis()
}

fn lost_answer() {
    let server = nats();
    run(async {
        let here = store(&server).await;
        let (proxy, there) = proxied(&server, ms(10_000)).await;
        let PutIf::Stored(first) = there.put_if("k", None, b"1".to_vec(), None).await.unwrap() else {
            panic!("nobody wrote it before")
        };
        // So slow that there is time to cut the connection between the write and its answer.
        let slow = TcpMode::Latency { least: ms(300), jitter: ms(0) };
        let lose = async |value: Option<&[u8]>, then| {
            until("it was done", async || here.get("k").await.unwrap().map(|r| r.value).as_deref() == value)
                .await;
            proxy.set_mode(then);
            proxy.cut();
        };
        proxy.set_mode(slow);
        let write = there.put_if("k", Some(first), b"2".to_vec(), None);
        let (written, ()) = tokio::join!(write, lose(Some(b"2"), TcpMode::Pass));
        let second = here.get("k").await.unwrap().unwrap().version;
        assert_eq!(written.unwrap(), PutIf::Stored(second), "found by its word");
        until("it is connected", async || there.get("k").await.is_ok()).await;
        // Nobody answers any more: then nobody knows, and whoever asks again finds out.
        proxy.set_mode(slow);
        let delete = there.delete_if("k", second);
        let (lost, ()) = tokio::join!(delete, lose(None, TcpMode::RepliesLost));
        let lost = lost.unwrap_err();
        assert_eq!((lost.kind(), lost.outcome()), (ErrorKind::Unavailable, Outcome::Unknown), "{lost}");
    });
}

fn apart() {
    let server = nats();
    run(async {
        let store = store(&server).await;
        for key in ["a", "a.b", "r", "r.a"] {
            assert!(matches!(store.put_if(key, None, b"v".to_vec(), None).await.unwrap(), PutIf::Stored(_)));
            crate::world::take(&store, key, &format!("op-{key}"), ms(60_000)).await;
        }
        let keys: Vec<String> =
            RecordStore::list(&store, "", None, 10).await.unwrap().into_iter().map(|r| r.key).collect();
        assert_eq!(keys, ["a", "a.b", "r", "r.a"]);
        let names: Vec<String> =
            LeaseStore::list(&store, "", 10).await.unwrap().into_iter().map(|i| i.name).collect();
        assert_eq!(names, keys);
        for (key, version) in [("", 1), (&"k".repeat(1_025), 1)] {
            let refused = store.delete_if(key, version).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ApiMisuse, "{refused}");
        }
        let large = store.put_if("large", None, vec![0; 600_000], None).await.unwrap_err();
        assert_eq!(large.kind(), ErrorKind::TooLarge, "{large}");
    });
}

fn between() {
    let server = nats();
    run(async {
        let make = async |owner: &str| {
            let store = Arc::new(store(&server).await);
            let builder = Coordinator::builder(Arc::clone(&store) as Arc<dyn LeaseStore>, Runtime::system());
            builder.records(store).namespace("test").owner(owner).build().unwrap()
        };
        let (a, b) = (make("a").await, make("b").await);
        assert_eq!(recipes::between(&a, &b, soon()).await, 5);
    });
}
