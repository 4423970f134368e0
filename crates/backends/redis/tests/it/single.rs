//! One server: the catalogue of failures.

use std::time::Duration;

use futures_util::future::join_all;
use mainstay_chaos::proxy::{TcpMode, TcpProxy};
use mainstay_clock::Runtime;
use mainstay_coordination::ErrorKind as LockError;
use mainstay_redis::{KeyProfile, RedisLeases};
use mainstay_sim::servers::Server;
use mainstay_store::lease::{AcquireRequest, Acquired, Line, Released, Renewed, Share, Transferred};
use mainstay_store::{Error, ErrorKind, LeaseStore, Outcome};

use crate::Test;
use crate::world::{
    ask, coordinator, exists, ms, number, other, pause, redis, run, scripts_run, soon, store, store_within,
    take, text, try_take, until, url,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_server_that_forgot_its_scripts_is_told_them_again", forgotten_scripts),
    ("a_replica_is_refused", replica),
    ("a_restart_is_noticed_and_survived", restart),
    ("sixty_four_callers_share_one_connection", one_connection),
    ("f04_a_repeated_request_after_a_lost_reply_keeps_its_token", f04),
    ("f05_what_lands_after_its_release_leaves_no_key", f05),
    ("f05_on_one_connection_a_release_never_overtakes_its_acquisition", f05_order),
    ("f06_a_ttl_shorter_than_the_drift_is_no_long_lease", f06),
    ("f08_of_many_that_see_an_expired_lease_one_takes_it", f08),
    ("f12_a_foreign_layout_is_waited_for_and_never_written", f12),
    ("f13_tokens_beyond_a_double_keep_every_digit_and_never_wrap", f13),
    ("f16_ttl_token_and_counter_are_kept_in_every_variant", f16),
    ("f19_an_acquisition_that_was_given_up_leaves_nothing", f19),
    ("f20_a_release_frees_only_its_own", f20),
    ("f21_a_permit_ends_by_the_servers_clock_for_itself", f21),
    ("f22_another_lease_of_the_same_owner_is_not_mine", f22),
    ("f26_a_store_that_lost_its_counter_is_found_out", f26),
    ("s4_a_release_whose_answer_was_lost_is_clean_when_it_is_repeated", released_unheard),
    ("s4_a_release_that_found_nothing_of_its_own_is_not_taken_for_a_repetition", released_nothing),
    ("f36_every_key_of_a_lease_lives_in_one_slot", f36),
    ("f41_a_name_that_moves_here_gets_larger_tokens_by_the_epoch", f41),
    ("requirements_hold_or_nothing_is_granted", requirements),
];

const TTL: Duration = Duration::from_secs(60);
/// Longest wait for an answer that does not come.
const SILENCE: Duration = Duration::from_secs(3);

fn forgotten_scripts() {
    let server = redis(&[]);
    run(async {
        let store = store(&server);
        take(&store, "a", "op", TTL).await;
        let _: () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut other(&server).await).await.unwrap();
        assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(_)));
        assert_eq!(store.release("op").await.unwrap(), Released::Clean);
    });
}

fn replica() {
    let master = redis(&[]);
    let (ip, port) = (master.address().ip().to_string(), master.address().port().to_string());
    let server = redis(&["--replicaof", &ip, &port]);
    run(async {
        let error = store(&server).ready().await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        assert!(error.to_string().contains("is a slave"), "{error}");
    });
}

fn restart() {
    let mut server = redis(&[]);
    run(async {
        let store = store(&server);
        let token = take(&store, "a", "op", TTL).await;
        let before = store.health();
        server.restart().unwrap();
        until("it is reached again", async || store.ready().await.is_ok()).await;
        assert_eq!(store.renew("op").await.unwrap(), Renewed::Lost, "it kept nothing");
        let again = take(&store, "a", "op2", TTL).await;
        assert!(again > token, "the clock keeps tokens growing");
        let after = store.health();
        assert_eq!((before.restarts, after.restarts), (0, 1));
        assert_ne!(before.run_id, after.run_id);
    });
}

fn one_connection() {
    let server = redis(&[]);
    run(async {
        let store = store(&server);
        let pairs = (0..64).map(async |n| {
            let (name, op) = (format!("n{n}"), format!("op{n}"));
            take(&store, &name, &op, TTL).await;
            assert_eq!(store.release(&op).await.unwrap(), Released::Clean);
        });
        join_all(pairs).await;
        let info: String =
            redis::cmd("INFO").arg("stats").query_async(&mut other(&server).await).await.unwrap();
        // The harness looked once, the store has one, the question is asked on one.
        let received = info.lines().find_map(|l| l.strip_prefix("total_connections_received:")).unwrap();
        assert_eq!(received.trim(), "3");
    });
}

pub(crate) async fn proxied(server: &Server, timeout: Duration) -> (TcpProxy, RedisLeases) {
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(server.address()));
    let url = format!("redis://{}/", proxy.address());
    let store = RedisLeases::builder(&url).request_timeout(timeout).build(&Runtime::system()).unwrap();
    until("it is connected", async || store.ready().await.is_ok()).await;
    (proxy, store)
}

/// The error of an acquisition of `a` that is done, and whose answer is lost. Whoever asked may ask again then.
async fn lost(proxy: &TcpProxy, server: &Server, store: &RedisLeases) -> Error {
    let other = other(server).await;
    proxy.set_mode(TcpMode::RepliesLost);
    let error = store.acquire(ask("a", "op", TTL)).await.unwrap_err();
    // It was sent; the server may be busy.
    until("it was done", async || exists(&mut other.clone(), "a").await).await;
    proxy.set_mode(TcpMode::Pass);
    proxy.cut();
    until("it is connected", async || store.ready().await.is_ok()).await;
    error
}

fn f04() {
    let server = redis(&[]);
    run(async {
        let (proxy, store) = proxied(&server, SILENCE).await;
        let mut other = other(&server).await;
        let error = lost(&proxy, &server, &store).await;
        assert_eq!((error.outcome(), error.is_retryable()), (Outcome::Unknown, true));
        let counter = text(&mut other, &["GET", "{a}:fence"]).await;
        assert!(exists(&mut other, "a").await, "it was granted, and nobody heard");
        let token = take(&store, "a", "op", TTL).await;
        assert_eq!(token.to_string(), counter);
    });
}

/// No machine stands still for as long.
const LONG: Duration = Duration::from_secs(900);

/// The release of `op` is applied, and its answer lost.
async fn release_unheard(proxy: &TcpProxy, server: &Server, store: &RedisLeases, op: &str) {
    let mut other = other(server).await;
    let before = scripts_run(&mut other).await;
    proxy.set_mode(TcpMode::RepliesLost);
    let lost = store.release(op).await.unwrap_err();
    assert_eq!((lost.outcome(), lost.is_retryable()), (Outcome::Unknown, true), "{lost}");
    until("it was done", async || scripts_run(&mut other.clone()).await > before).await;
    proxy.set_mode(TcpMode::Pass);
    proxy.cut();
    until("it is connected", async || store.ready().await.is_ok()).await;
}

fn released_unheard() {
    let server = redis(&[]);
    run(async {
        let (proxy, store) = proxied(&server, SILENCE).await;
        let direct = self::store(&server);
        take(&store, "a", "op", LONG).await;
        release_unheard(&proxy, &server, &store, "op").await;
        take(&direct, "a", "next", LONG).await;
        assert_eq!(store.release("op").await.unwrap(), Released::Clean, "though somebody else has it by now");
        assert_eq!(store.release("op").await.unwrap(), Released::AlreadyGone, "that was answered");
        let readers = AcquireRequest { share: Share::Shared, ..ask("r", "reader", LONG) };
        assert!(matches!(store.acquire(readers).await.unwrap(), Acquired::Granted(_)));
        assert!(matches!(store.renew("reader").await.unwrap(), Renewed::Renewed(_)));
        release_unheard(&proxy, &server, &store, "reader").await;
        assert_eq!(store.release("reader").await.unwrap(), Released::Clean);
    });
}

fn released_nothing() {
    let mut server = redis(&[]);
    run(async {
        let (proxy, store) = proxied(&server, SILENCE).await;
        let direct = self::store(&server);
        take(&store, "a", "broken", LONG).await;
        direct.break_lease("a").await.unwrap();
        release_unheard(&proxy, &server, &store, "broken").await;
        assert_eq!(store.release("broken").await.unwrap(), Released::AlreadyGone, "it was ended by force");
        let token = take(&store, "b", "moved", LONG).await;
        let waits = AcquireRequest { line: Line::Join, ..ask("b", "waits", LONG) };
        assert!(matches!(direct.acquire(waits).await.unwrap(), Acquired::Queued { .. }));
        assert_eq!(direct.transfer("b", token, "waits").await.unwrap(), Transferred::Moved);
        release_unheard(&proxy, &server, &store, "moved").await;
        assert_eq!(store.release("moved").await.unwrap(), Released::AlreadyGone, "somebody handed it on");
        take(&store, "c", "forgotten", LONG).await;
        server.restart().unwrap();
        until("it is reached again", async || direct.ready().await.is_ok()).await;
        take(&direct, "c", "next", LONG).await;
        // The first sending of it meets a connection that is dead.
        let released = store.release("forgotten").await.unwrap();
        assert_eq!(released, Released::AlreadyGone, "nobody knows who had it since");
    });
}

fn f05() {
    let server = redis(&[]);
    run(async {
        let (proxy, early) = proxied(&server, SILENCE).await;
        lost(&proxy, &server, &early).await;
        assert_eq!(early.release("op").await.unwrap(), Released::Clean);
        // The same request once more, as a slow network would bring it.
        let late = store(&server);
        let error = late.acquire(ask("a", "op", TTL)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ApiMisuse);
        let mut other = other(&server).await;
        assert!(!exists(&mut other, "a").await);
        let life = number(&mut other, &["PTTL", "{a}:t:op"]).await;
        assert!(life > 30_000, "the mark outlives whatever is on its way: {life} ms");
        take(&late, "a", "another", TTL).await;
    });
}

fn f05_order() {
    let server = redis(&[]);
    run(async {
        let store = store_within(&server, SILENCE);
        until("it is connected", async || store.ready().await.is_ok()).await;
        server.pause().unwrap();
        assert_eq!(store.acquire(ask("a", "op", TTL)).await.unwrap_err().outcome(), Outcome::Unknown);
        assert_eq!(store.release("op").await.unwrap_err().outcome(), Outcome::Unknown);
        server.resume().unwrap();
        let mut other = other(&server).await;
        until("both were run, in order", async || scripts_run(&mut other.clone()).await >= 2).await;
        assert!(!exists(&mut other, "a").await);
    });
}

fn f06() {
    let server = redis(&[]);
    run(async {
        let store = store(&server);
        assert!(try_take(&store, "a", "op", Duration::from_micros(1_500)).await.is_some());
        let left = number(&mut other(&server).await, &["PTTL", "a"]).await;
        assert!(left <= 2, "{left} ms");
        let locks = coordinator(store, "me");
        let refused = locks.mutex("b").ttl(ms(1)).build().unwrap_err();
        assert_eq!(refused.field(), "ttl", "shorter than the store declares");
    });
}

fn f08() {
    let server = redis(&[]);
    run(async {
        let stores: Vec<RedisLeases> = (0..4).map(|_| store(&server)).collect();
        for round in 0..5 {
            take(&stores[0], "a", &format!("dead{round}"), ms(30)).await;
            pause(ms(31)).await;
            let racers = (0..32).map(async |n: usize| {
                try_take(&stores[n % 4], "a", &format!("{round}-{n}"), ms(30)).await.map(|g| g.token)
            });
            let won: Vec<_> = join_all(racers).await.into_iter().flatten().collect();
            assert!(!won.is_empty());
            assert!(won.windows(2).all(|w| w[0] != w[1]), "a token was given twice");
            if won.len() > 1 {
                // Only where the machine was so slow that a lease ended meanwhile.
                println!("round {round}: {} leases, one after the other", won.len());
            }
            pause(ms(31)).await;
        }
    });
}

fn f12() {
    let server = redis(&[]);
    run(async {
        let mut other = other(&server).await;
        let _: i64 =
            redis::cmd("HSET").arg("test/a").arg("uuid:1").arg(1).query_async(&mut other).await.unwrap();
        number(&mut other, &["PEXPIRE", "test/a", "600000"]).await;
        let store = store(&server);
        let held = store.acquire(ask("test/a", "op", TTL)).await.unwrap();
        let Acquired::Held { by, remaining, .. } = held else { panic!("{held:?}") };
        assert_eq!(by, "a foreign layout (hash)");
        assert!(remaining.unwrap() > ms(300_000));
        assert_eq!(store.break_lease("test/a").await.unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(store.inspect("test/a").await.unwrap().holders.len(), 1);
        assert_eq!(text(&mut other, &["HGET", "test/a", "uuid:1"]).await, "1", "untouched");
        // Somebody waits, and is woken by the other client's unlock.
        let lock = coordinator(store, "me").mutex("a").build().unwrap();
        let (guard, ()) = tokio::join!(lock.acquire(soon()), async {
            pause(ms(100)).await;
            number(&mut other.clone(), &["DEL", "test/a"]).await;
        });
        guard.unwrap().release().await.unwrap();
    });
}

fn f13() {
    let server = redis(&[]);
    run(async {
        let store = RedisLeases::builder(&url(&server)).epoch(32_767).build(&Runtime::system()).unwrap();
        let largest = (1_u64 << 48) - 1;
        text(&mut other(&server).await, &["SET", "{a}:fence", &(largest - 1).to_string()]).await;
        let token = take(&store, "a", "op", TTL).await;
        assert_eq!(token.get(), (32_767 << 48) | largest, "2^63 - 1, digit by digit");
        store.release("op").await.unwrap();
        let error = store.acquire(ask("a", "op2", TTL)).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::TooLarge, Outcome::NotApplied));
        assert!(store.break_lease("a").await.is_err());
        assert!(!exists(&mut other(&server).await, "a").await);
    });
}

fn f16() {
    let server = redis(&[]);
    run(async {
        let (store, mut other) = (store(&server), other(&server).await);
        let token = take(&store, "a", "op", ms(60_000)).await;
        assert_eq!(take(&store, "a", "op", ms(60_000)).await, token, "again is no new lease");
        for share in [Share::Shared, Share::Permit { limit: 2, count: 1 }] {
            let mut request = ask("shared", "op-s", ms(60_000));
            request.share = share;
            assert!(matches!(store.acquire(request).await.unwrap(), Acquired::Granted(_)));
            let left = number(&mut other, &["PTTL", "shared"]).await;
            assert!((30_000..=60_000).contains(&left), "{share:?}: {left} ms");
            store.release("op-s").await.unwrap();
        }
        assert!((30_000..=60_000).contains(&number(&mut other, &["PTTL", "a"]).await));
        store.release("op").await.unwrap();
        assert_eq!(number(&mut other, &["PTTL", "{a}:fence"]).await, -1, "the counter never expires");
        assert!(take(&store, "a", "op2", ms(60_000)).await > token);
    });
}

fn f19() {
    let server = redis(&[]);
    run(async {
        let lock = coordinator(store(&server), "me").mutex("a").ttl(ms(3_000)).build().unwrap();
        lock.acquire(soon()).await.unwrap().release().await.unwrap();
        server.pause().unwrap();
        tokio::select! {
            biased;
            _ = lock.acquire(soon()) => panic!("nobody answers"),
            () = pause(ms(30)) => {}
        }
        server.resume().unwrap();
        let mut other = other(&server).await;
        until("it was run and given back", async || {
            scripts_run(&mut other.clone()).await >= 4 && !exists(&mut other.clone(), "test/a").await
        })
        .await;
        assert!(!exists(&mut other, "test/a").await);
    });
}

fn f20() {
    let server = redis(&[]);
    run(async {
        let (first, second) = (store(&server), store(&server));
        take(&first, "a", "stale", ms(100)).await;
        pause(ms(101)).await;
        take(&second, "a", "fresh", TTL).await;
        assert_eq!(first.release("stale").await.unwrap(), Released::AlreadyGone);
        assert_eq!(first.renew("stale").await.unwrap(), Renewed::Lost);
        assert_eq!(text(&mut other(&server).await, &["GET", "a"]).await, "fresh");
        assert_eq!(second.release("fresh").await.unwrap(), Released::Clean);
    });
}

fn f21() {
    let server = redis(&[]);
    run(async {
        let store = store(&server);
        let permit = async |op: &str, ttl| {
            let mut request = ask("a", op, ttl);
            request.share = Share::Permit { limit: 2, count: 1 };
            matches!(store.acquire(request).await.unwrap(), Acquired::Granted(_))
        };
        assert!(permit("dead", ms(5_000)).await && permit("alive", TTL).await);
        assert!(!permit("third", TTL).await);
        until("the dead holder's permit is back", async || permit("third", TTL).await).await;
        assert_eq!(store.renew("dead").await.unwrap(), Renewed::Lost);
        assert!(matches!(store.renew("alive").await.unwrap(), Renewed::Renewed(_)));
        assert!(try_take(&store, "a", "alone", TTL).await.is_none());
        let holders = store.inspect("a").await.unwrap().holders;
        assert_eq!(holders.iter().map(|h| h.owner.as_str()).collect::<Vec<_>>(), ["alive", "third"]);
        let burned = store.break_lease("a").await.unwrap();
        assert!(holders.iter().all(|h| h.token < burned));
        assert!(try_take(&store, "a", "alone", TTL).await.unwrap().token > burned);
    });
}

fn f22() {
    let server = redis(&[]);
    run(async {
        let store = store(&server);
        let mut earlier = ask("a", "earlier", TTL);
        earlier.owner = "host-7".to_owned();
        assert!(matches!(store.acquire(earlier).await.unwrap(), Acquired::Granted(_)));
        let mut later = ask("a", "later", TTL);
        later.owner = "host-7".to_owned();
        assert!(matches!(store.acquire(later).await.unwrap(), Acquired::Held { by, .. } if by == "host-7"));
    });
}

fn f26() {
    let server = redis(&[]);
    run(async {
        let mut other = other(&server).await;
        // As if its clock had been ahead for years when it granted, and then it lost its data.
        text(&mut other, &["SET", "{test/a}:fence", &(1_u64 << 47).to_string()]).await;
        let lock = coordinator(store(&server), "me").mutex("a").ttl(TTL).build().unwrap();
        lock.acquire(soon()).await.unwrap().release().await.unwrap();
        number(&mut other, &["DEL", "{test/a}:fence"]).await;
        let error = lock.try_acquire().await.unwrap_err();
        assert_eq!(*error.kind(), LockError::StoreRegressed);
        until("it was given back", async || !exists(&mut other.clone(), "test/a").await).await;
        // And by what a holder is told it can see that all is older than its own.
        let store = store(&server);
        let token = take(&store, "b", "op", TTL).await;
        text(&mut other, &["FLUSHALL"]).await;
        assert_eq!(store.renew("op").await.unwrap(), Renewed::Lost);
        assert!(store.inspect("b").await.unwrap().last_token < token);
    });
}

fn f36() {
    let (server, node) = (redis(&[]), redis(&["--cluster-enabled", "yes", "--cluster-port", "0"]));
    run(async {
        let (store, mut plain, mut cluster) = (store(&server), other(&server).await, other(&node).await);
        for name in ["a", "{a}b", "x{a}b{c}", "a{"] {
            let _: () = redis::cmd("FLUSHALL").query_async(&mut plain).await.unwrap();
            let token = take(&store, name, "op", TTL).await;
            assert!(store.annotate(name, token, b"v".to_vec()).await.unwrap());
            let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query_async(&mut plain).await.unwrap();
            assert_eq!(keys.len(), 3, "lock, fence, info: {keys:?}");
            store.release("op").await.unwrap();
            let mut shared = ask(name, "op-s", TTL);
            shared.share = Share::Shared;
            store.acquire(shared).await.unwrap();
            keys.extend(redis::cmd("KEYS").arg("*").query_async::<Vec<String>>(&mut plain).await.unwrap());
            store.release("op-s").await.unwrap();
            let mut slots = Vec::new();
            for key in &keys {
                slots.push(number(&mut cluster, &["CLUSTER", "KEYSLOT", key]).await);
            }
            assert!(slots.windows(2).all(|w| w[0] == w[1]), "{keys:?}: {slots:?}");
        }
        for name in ["a}b", "a{}b"] {
            let error = store.acquire(ask(name, "op", TTL)).await.unwrap_err();
            assert_eq!((error.kind(), error.outcome()), (ErrorKind::ApiMisuse, Outcome::NotApplied));
        }
        assert_eq!(crate::world::store(&node).ready().await.unwrap_err().kind(), ErrorKind::Unsupported);
    });
}

fn f41() {
    let (old, new) = (redis(&[]), redis(&[]));
    run(async {
        text(&mut other(&old).await, &["SET", "{a}:fence", &(1_u64 << 47).to_string()]).await;
        let before = take(&store(&old), "a", "op", TTL).await;
        assert!(take(&store(&new), "a", "op", TTL).await < before, "the resource would refuse everybody");
        let raised = RedisLeases::builder(&url(&new)).epoch(1).build(&Runtime::system()).unwrap();
        assert!(take(&raised, "b", "op", TTL).await > before);
        let refused = RedisLeases::builder(&url(&new)).epoch(1 << 15).build(&Runtime::system()).unwrap_err();
        assert_eq!(refused.field(), "epoch");
        let refused = RedisLeases::builder("nonsense").build(&Runtime::system()).unwrap_err();
        assert_eq!(refused.field(), "url");
        let empty = KeyProfile::Prefixed(String::new());
        let refused = RedisLeases::builder(&url(&new)).profile(empty).build(&Runtime::system()).unwrap_err();
        assert_eq!(refused.field(), "profile");
    });
}

fn requirements() {
    let server = redis(&[]);
    run(async {
        let store = store(&server);
        let token = take(&store, "parent", "op-p", TTL).await;
        let mut child = ask("child", "op-c", TTL);
        child.require = vec![("parent".to_owned(), token.next())];
        assert!(matches!(store.acquire(child.clone()).await.unwrap(), Acquired::Held { .. }));
        child.require = vec![("parent".to_owned(), token)];
        assert!(matches!(store.acquire(child).await.unwrap(), Acquired::Granted(_)));
        store.release("op-p").await.unwrap();
        let mut orphan = ask("orphan", "op-o", TTL);
        orphan.require = vec![("parent".to_owned(), token)];
        assert!(matches!(store.acquire(orphan).await.unwrap(), Acquired::Held { .. }), "held by nobody");
    });
}
