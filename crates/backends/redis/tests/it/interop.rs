//! Clients of other make, as `redis-cli` runs their commands, and ours exclude each other on one key.

use std::time::Duration;

use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_coordination::{Coordinator, ErrorKind};
use mainstay_redis::{KeyProfile, Names, RedisLeases, RedisQuorum};
use mainstay_sim::servers::Server;
use mainstay_store::lease::{Acquired, Released};
use mainstay_store::{LeaseStore, RecordStore};

use crate::Test;
use crate::world::{
    ANSWER, ask, cli, coordinator, ms, other, pause, redis, run, scripts_run, soon, store, take, try_take,
    url,
};

pub(crate) const TESTS: &[Test] = &[
    ("foreign_families_exclude_ours_and_are_excluded", families),
    ("locks_of_a_coordinator_meet_foreign_clients_on_the_name_without_its_namespace", bare),
    ("a_majority_meets_foreign_clients_on_the_name_without_its_namespace", bare_majority),
    ("a_waiter_is_woken_by_a_foreign_unlock_without_polling", woken),
    ("f42_a_foreign_key_without_expiry_is_waited_for_without_a_loop", f42),
];

const TTL: Duration = Duration::from_secs(60);
const DELETE: &str =
    "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('del',KEYS[1]) else return 0 end";
const EXTEND: &str = "if redis.call('get',KEYS[1]) == ARGV[1] then return redis.call('pexpire',KEYS[1],ARGV[2]) else return 0 end";

fn families() {
    let server = redis(&[]);
    let hex = "0123456789abcdef0123456789abcdef";
    let prefixed = |p: &str| KeyProfile::Prefixed(p.to_owned());
    let families = [
        ("node-redlock", KeyProfile::Verbatim, "job", hex),
        ("redsync", KeyProfile::Verbatim, "job", "kTqKvL7zJ0y6j5f1q3m9Xg=="),
        ("bsm/redislock", KeyProfile::Verbatim, "job", "l0mYq8cOQ5q1s2t3u4v5wA some metadata"),
        ("pottery", prefixed("redlock:"), "redlock:job", "6f1d3c52-8e2b-4a0e-9a43-1f2e3d4c5b6a"),
        ("redis-semaphore", prefixed("mutex:"), "mutex:job", "6f1d3c52-8e2b-4a0e-9a43-1f2e3d4c5b6b"),
    ];
    for (family, profile, key, value) in families {
        run(async {
            let store = RedisLeases::builder(&url(&server)).profile(profile).request_timeout(ANSWER);
            let store = store.build(&Runtime::system()).unwrap();
            // They hold, we wait for them, we do not release them.
            assert_eq!(cli(&server, &["SET", key, value, "NX", "PX", "600000"]), "OK", "{family}");
            let held = store.acquire(ask("job", "ours", TTL)).await.unwrap();
            let Acquired::Held { by, remaining, since } = held else { panic!("{family}: {held:?}") };
            assert_eq!(since, None, "{family}: it writes nothing of that");
            assert!(by.starts_with("another client (") && !by.contains(value), "{by}");
            assert!(remaining.is_some_and(|d| d > ms(300_000) && d <= ms(600_000)));
            assert_eq!(store.release("ours").await.unwrap(), Released::AlreadyGone);
            assert_eq!(cli(&server, &["EVAL", EXTEND, "1", key, value, "600000"]), "1", "{family}");
            assert_eq!(cli(&server, &["EVAL", DELETE, "1", key, value]), "1", "{family}");
            // We hold, they neither take, nor extend, nor release it.
            take(&store, "job", "ours", TTL).await;
            assert_eq!(cli(&server, &["SET", key, value, "NX", "PX", "600000"]), "", "{family}");
            assert_eq!(cli(&server, &["EVAL", EXTEND, "1", key, value, "30000"]), "0", "{family}");
            assert_eq!(cli(&server, &["EVAL", DELETE, "1", key, value]), "0", "{family}");
            // A client of the family that knows our value can release it: the value is the capability.
            assert_eq!(cli(&server, &["GET", key]), "ours");
            assert_eq!(store.release("ours").await.unwrap(), Released::Clean);
            assert_eq!(cli(&server, &["SET", key, value, "NX", "PX", "600000"]), "OK", "{family}");
            assert_eq!(cli(&server, &["DEL", key]), "1");
        });
    }
    // 20 raw bytes, no text (rslock and the redlock crate).
    run(async {
        let (store, mut raw) = (store(&server), other(&server).await);
        let value: Vec<u8> = (236..=255).collect();
        let _: () = redis::cmd("SET")
            .arg("job")
            .arg(&value)
            .arg("NX")
            .arg("PX")
            .arg(600_000)
            .query_async(&mut raw)
            .await
            .unwrap();
        assert!(try_take(&store, "job", "ours", TTL).await.is_none());
        assert_eq!(store.inspect("job").await.unwrap().holders.len(), 1);
        let freed: i64 =
            redis::cmd("EVAL").arg(DELETE).arg(1).arg("job").arg(&value).query_async(&mut raw).await.unwrap();
        assert_eq!(freed, 1);
        assert!(try_take(&store, "job", "ours", TTL).await.is_some());
        // Readers too keep a foreign mutex out.
        store.release("ours").await.unwrap();
        let mut reader = ask("job", "reader", TTL);
        reader.share = mainstay_store::lease::Share::Shared;
        assert!(matches!(store.acquire(reader).await.unwrap(), Acquired::Granted(_)));
        assert_eq!(cli(&server, &["SET", "job", "x", "NX", "PX", "600000"]), "");
        store.release("reader").await.unwrap();
        assert_eq!(cli(&server, &["SET", "job", "x", "NX", "PX", "600000"]), "OK");
    });
}

/// Theirs keeps the lock `job` of our coordinator out, and ours keeps theirs out: of one server, or of a majority, which is
/// all that ours waits for.
async fn meet(servers: &[&Server], locks: &Coordinator, key: &str) {
    let majority = servers.len() / 2 + 1;
    let count = |words: &[&str], answer: &str| servers.iter().filter(|s| cli(s, words) == answer).count();
    let theirs = || count(&["SET", key, "theirs", "NX", "PX", "60000"], "OK");
    let given_back = || count(&["EVAL", DELETE, "1", key, "theirs"], "1");
    let lock = locks.mutex("job").ttl(TTL).build().unwrap();
    assert_eq!(theirs(), servers.len(), "{key}");
    let refused = lock.try_acquire().await.unwrap_err();
    assert!(
        matches!(refused.kind(), ErrorKind::Contended { holder, .. } if holder.starts_with("another client"))
    );
    assert_eq!(given_back(), servers.len(), "{key}: ours took nothing of theirs away");
    let guard = lock.acquire(soon()).await.unwrap();
    assert_eq!(guard.name(), "test/job", "to us it has its whole name");
    let got = theirs();
    assert!(got <= servers.len() - majority, "{key}: {got} of {} are theirs, too", servers.len());
    assert!(count(&["EXISTS", &format!("{{{key}}}:fence")], "1") >= majority, "{key}");
    assert_eq!(given_back(), got, "{key}: theirs takes nothing of ours away");
    assert!(count(&["EXISTS", key], "1") >= majority, "{key}");
    assert_eq!(guard.release().await.unwrap(), Released::Clean);
    lock.acquire(soon()).await.unwrap().release().await.unwrap();
}

fn bare() {
    let server = redis(&[]);
    let prefixed = |p: &str| KeyProfile::Prefixed(p.to_owned());
    run(async {
        for (profile, key) in [(KeyProfile::Verbatim, "job"), (prefixed("redlock:"), "redlock:job")] {
            let builder = RedisLeases::builder(&url(&server)).profile(profile).names(Names::Bare);
            let store = builder.build(&Runtime::system()).unwrap();
            meet(&[&server], &coordinator(store.clone(), "me"), key).await;
            // What is listed has the namespace that was asked for.
            take(&store, "test/job", "op", TTL).await;
            let listed = LeaseStore::list(&store, "test/", 10).await.unwrap();
            assert_eq!(listed.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(), ["test/job"], "{key}");
            assert!(LeaseStore::list(&store, "test/x", 10).await.unwrap().is_empty());
            assert!(try_take(&store, "other/job", "op2", TTL).await.is_none(), "namespaces meet, too");
            let mut two = ask("a/x", "two", TTL);
            two.names.push("b/x".to_owned());
            assert!(store.acquire(two).await.is_err(), "they are one key");
            store.release("op").await.unwrap();
            // Records are nobody else's: they keep their namespace.
            let records: &dyn RecordStore = &store;
            records.put_if("test/job", None, b"r".to_vec(), None).await.unwrap();
            assert!(records.get("other/job").await.unwrap().is_none());
            let found = records.list("test/", None, 10).await.unwrap();
            assert_eq!(found.iter().map(|r| r.key.as_str()).collect::<Vec<_>>(), ["test/job"]);
            assert!(records.delete_if("test/job", found[0].version).await.unwrap());
        }
    });
}

fn bare_majority() {
    let servers = crate::quorum::servers(3);
    run(async {
        for (prefix, key) in [(None, "job"), (Some("redlock:"), "redlock:job")] {
            let mut builder =
                RedisQuorum::builder(servers.iter().map(url)).require_durable().names(Names::Bare);
            if let Some(prefix) = prefix {
                builder = builder.profile(KeyProfile::Prefixed(prefix.to_owned()));
            }
            let store = builder.build(&Runtime::system()).unwrap();
            let all: Vec<&Server> = servers.iter().collect();
            meet(&all, &coordinator(store.clone(), "me"), key).await;
            take(&store, "test/job", "op", TTL).await;
            assert_eq!(LeaseStore::list(&store, "test/j", 10).await.unwrap()[0].name, "test/job");
            store.release("op").await.unwrap();
        }
    });
}

fn woken() {
    let server = redis(&[]);
    run(async {
        let raw = other(&server).await;
        assert_eq!(cli(&server, &["SET", "test/a", "foreign", "NX", "PX", "600000"]), "OK");
        let waiters: Vec<_> = (0..50)
            .map(|n| coordinator(store(&server), &format!("w{n}")).mutex("a").ttl(TTL).build().unwrap())
            .collect();
        let wait = futures_util::future::join_all(waiters.iter().map(async |lock| {
            lock.acquire(soon()).await.unwrap().release().await.unwrap();
        }));
        let free = async {
            crate::world::until("all asked", async || scripts_run(&mut raw.clone()).await >= 50).await;
            pause(ms(300)).await;
            let asked = scripts_run(&mut raw.clone()).await;
            assert!(asked <= 100, "{asked} questions of 50 waiters: that is polling");
            cli(&server, &["DEL", "test/a"]);
        };
        tokio::join!(wait, free);
        assert_eq!(cli(&server, &["EXISTS", "test/a"]), "0");
    });
}

fn f42() {
    let server = redis(&[]);
    run(async {
        let mut raw = other(&server).await;
        assert_eq!(cli(&server, &["SET", "test/a", "redis-py", "NX"]), "OK");
        let store = store(&server);
        let held = store.acquire(ask("test/a", "op", TTL)).await.unwrap();
        assert!(matches!(held, Acquired::Held { remaining: None, .. }), "{held:?}");
        assert_eq!(store.inspect("test/a").await.unwrap().holders[0].remaining, Duration::MAX, "no expiry");
        let lock = coordinator(store, "me").mutex("a").build().unwrap();
        let free = async {
            let start = SystemClock::new().now();
            pause(ms(500)).await;
            let asked = scripts_run(&mut raw).await;
            let passed = SystemClock::new().now().saturating_duration_since(start);
            assert!(asked < 15 + 2 * passed.as_secs(), "{asked} questions in {passed:?}");
            cli(&server, &["DEL", "test/a"]);
        };
        let (guard, ()) = tokio::join!(lock.acquire(soon()), free);
        guard.unwrap().release().await.unwrap();
    });
}
