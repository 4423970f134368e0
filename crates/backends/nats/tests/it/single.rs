//! One server: the catalogue of failures.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::join_all;
use mainstay_chaos::proxy::TcpMode;
use mainstay_clock::Runtime;
use mainstay_coordination::ErrorKind as LockError;
use mainstay_nats::{Expiry, Names, NatsLeases};
use mainstay_sim::servers::NatsKit;
use mainstay_store::lease::{Acquired, Fencing, Released, Renewed, Share};
use mainstay_store::{ErrorKind, LeaseStore, Outcome};
use serde_json::json;

use crate::Test;
use crate::world::{
    ANSWER, api, ask, bucket, config, coordinator, last, ms, nats, open, other, pause, proxied, publish, run,
    soon, store, take, try_take, until, written,
};

pub(crate) const TESTS: &[Test] = &[
    ("f04_a_repeated_request_after_a_lost_reply_keeps_its_token", f04),
    ("f33_a_try_whose_answer_was_lost_finds_itself", f33),
    ("s4_a_release_whose_answer_was_lost_is_clean_when_it_is_tried_again", released_unheard),
    ("f05_what_lands_after_its_release_is_refused", f05),
    ("f06_a_ttl_shorter_than_the_store_can_is_refused", f06),
    ("f08_of_many_that_see_an_expired_lease_one_takes_it", f08),
    ("f13_tokens_beyond_a_double_keep_every_digit", f13),
    ("f16_ttl_and_token_are_kept_in_every_variant", f16),
    ("f20_a_release_frees_only_its_own", f20),
    ("f21_a_permit_ends_for_itself", f21),
    ("f22_f39_another_lease_of_the_same_owner_is_not_mine", f22),
    ("f24_one_server_promises_no_more_than_it_keeps", f24),
    ("f25_a_killed_server_keeps_its_leases", f25),
    ("f26_a_bucket_that_is_made_anew_outranks_or_is_found_out", f26),
    ("f31_every_write_that_holds_ends_by_itself", f31),
    ("f32_a_ttl_is_rounded_up_for_the_server", f32),
    ("f41_a_name_that_moves_here_gets_larger_tokens_by_the_epoch", f41),
    ("f42_keys_of_other_clients_exclude_and_are_excluded", f42),
    ("a_lock_without_its_namespace_meets_other_clients_on_the_bare_key", bare),
    ("k17_held_and_unreachable_are_two_errors", k17),
    ("a_bucket_that_could_lose_leases_is_refused", refused_bucket),
    ("requirements_hold_or_nothing_is_granted", requirements),
];

/// What Debian has, which is too old.
pub(crate) const OLD: &[Test] = &[("f14_a_server_before_2_10_is_refused_by_its_version", f14)];

const TTL: Duration = Duration::from_secs(60);

pub(crate) fn old() -> Option<PathBuf> {
    let program = PathBuf::from("/usr/sbin/nats-server");
    let output = std::process::Command::new(&program).arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).contains("v2.9.").then_some(program)
}

fn f14() {
    let server = NatsKit::at(old().unwrap()).server("").unwrap();
    run(async {
        let config = config(&server.url()).build().unwrap();
        let error = NatsLeases::open(config, &Runtime::system()).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unsupported, Outcome::NotApplied));
        assert!(error.to_string().contains("2.9.10 is too old"), "{error}");
    });
}

fn f04() {
    let server = nats();
    run(async {
        let (proxy, store) = proxied(&server, ms(5_000)).await;
        let other = other(&server).await;
        known(&store, "a").await;
        let (expected, ..) = last(&other, "a").await.unwrap();
        proxy.set_mode(TcpMode::RepliesLost);
        let error = store.acquire(ask("a", "op", TTL)).await.unwrap_err();
        assert_eq!((error.outcome(), error.is_retryable()), (Outcome::Unknown, true));
        until("it was granted, and nobody heard", async || {
            last(&other, "a").await.unwrap().2.contains("\"op\":\"op\"")
        })
        .await;
        let (seq, _, value) = last(&other, "a").await.unwrap();
        // A plain repetition is refused: the sequence answers before any message id could.
        assert_eq!(publish(&other, "a", expected, &value).await, 10_071);
        proxy.set_mode(TcpMode::Pass);
        proxy.cut();
        until("it is connected again", async || store.inspect("a").await.is_ok()).await;
        assert_eq!(take(&store, "a", "op", TTL).await.get(), seq);
        assert_eq!(store.release("op").await.unwrap(), Released::Clean);
    });
}

/// The store knows where the name stands, so that the next acquisition is one write.
async fn known(store: &NatsLeases, name: &str) {
    take(store, name, "before", TTL).await;
    assert_eq!(store.release("before").await.unwrap(), Released::Clean);
}

/// The same within one call: a try whose answer is lost is tried again, and finds itself.
fn f33() {
    let server = nats();
    run(async {
        let (proxy, store) = proxied(&server, ANSWER).await;
        let other = other(&server).await;
        known(&store, "a").await;
        let before = written(&other).await;
        proxy.set_mode(TcpMode::RepliesLost);
        let mend = async {
            until("it was written", async || written(&other).await > before).await;
            proxy.set_mode(TcpMode::Pass);
            proxy.cut();
        };
        let (granted, ()) = tokio::join!(take(&store, "a", "op", TTL), mend);
        assert_eq!(granted.get(), before + 1, "the token of the first try");
        assert_eq!(store.release("op").await.unwrap(), Released::Clean);
    });
}

fn released_unheard() {
    let server = nats();
    run(async {
        // No machine stands still for as long.
        const LONG: Duration = Duration::from_secs(900);
        let (proxy, store) = proxied(&server, ANSWER).await;
        let (direct, other) = (self::store(&server).await, other(&server).await);
        take(&store, "a", "op", LONG).await;
        let before = written(&other).await;
        proxy.set_mode(TcpMode::RepliesLost);
        let mend = async {
            until("it was written", async || written(&other).await > before).await;
            take(&direct, "a", "next", LONG).await;
            proxy.set_mode(TcpMode::Pass);
            proxy.cut();
        };
        let (released, ()) = tokio::join!(store.release("op"), mend);
        assert_eq!(released.unwrap(), Released::Clean, "though somebody else has it by now");
        assert_eq!(store.release("op").await.unwrap(), Released::AlreadyGone, "that was answered");
        assert_eq!(direct.release("next").await.unwrap(), Released::Clean);
        // Ended by force, it is no release of anybody.
        take(&store, "a", "broken", LONG).await;
        direct.break_lease("a").await.unwrap();
        assert_eq!(store.release("broken").await.unwrap(), Released::AlreadyGone);
    });
}

fn f05() {
    let server = nats();
    run(async {
        let other = other(&server).await;
        let (proxy, slow) = proxied(&server, ms(5_000)).await;
        known(&slow, "a").await;
        let (expected, ..) = last(&other, "a").await.unwrap();
        // It is granted, and nobody heard.
        proxy.set_mode(TcpMode::RepliesLost);
        assert!(slow.acquire(ask("a", "op", TTL)).await.is_err());
        proxy.set_mode(TcpMode::Pass);
        proxy.cut();
        let (_, _, value) = last(&other, "a").await.unwrap();
        until("it is given back", async || slow.release("op").await.is_ok()).await;
        let again = publish(&other, "a", expected, &value).await;
        assert_eq!(again, 10_071, "the same once more, as a slow network brings it");
        // It never arrived, and is still on its way: the name moves on from where it was expected.
        known(&slow, "b").await;
        let (expected, ..) = last(&other, "b").await.unwrap();
        proxy.set_mode(TcpMode::Blackhole);
        assert_eq!(slow.acquire(ask("b", "late", TTL)).await.unwrap_err().outcome(), Outcome::Unknown);
        proxy.cut();
        proxy.set_mode(TcpMode::Pass);
        until("it is given back", async || slow.release("late").await.is_ok()).await;
        assert_eq!(publish(&other, "b", expected, &value).await, 10_071, "it comes after all");
        let near = store(&server).await;
        take(&near, "a", "another", TTL).await;
        take(&near, "b", "another-b", TTL).await;
    });
}

fn f06() {
    let server = nats();
    run(async {
        let locks = coordinator(store(&server).await, "me");
        assert_eq!(locks.mutex("a").ttl(ms(999)).build().unwrap_err().field(), "ttl");
        assert!(locks.mutex("a").ttl(ms(1_000)).build().is_ok());
    });
}

fn f08() {
    let server = nats();
    run(async {
        let stores = join_all((0..4).map(|_| store(&server))).await;
        for round in 0..5 {
            let dead = take(&stores[0], "a", &format!("dead{round}"), ms(200)).await;
            // Everybody has seen it, so everybody's time for it runs.
            join_all(stores.iter().map(|s| s.inspect("a"))).await;
            pause(ms(205)).await;
            let racers = (0..32).map(async |n: usize| {
                try_take(&stores[n % 4], "a", &format!("{round}-{n}"), TTL).await.map(|g| g.token)
            });
            let won: Vec<_> = join_all(racers).await.into_iter().flatten().collect();
            assert!(won.len() == 1 && won[0] > dead, "round {round}: {won:?} after {dead}");
            stores[0].break_lease("a").await.unwrap();
        }
    });
}

fn f13() {
    let server = nats();
    run(async {
        let store = bucket(&server, "mainstay_leases", |b| b.epoch(32_767)).await;
        let other = other(&server).await;
        let token = take(&store, "a", "op", TTL).await;
        let (seq, ..) = last(&other, "a").await.unwrap();
        assert_eq!(token.get(), (32_767 << 48) | seq, "more than 2^53, digit by digit");
        assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(g) if g[0].token == token));
        let (_, _, value) = last(&other, "a").await.unwrap();
        assert!(value.contains(&format!("\"token\":\"{token}\"")), "as text: {value}");
    });
}

fn f16() {
    let server = nats();
    run(async {
        let (store, other) = (store(&server).await, other(&server).await);
        let token = take(&store, "a", "op", ms(60_000)).await;
        assert_eq!(take(&store, "a", "op", ms(60_000)).await, token, "again is no new lease");
        for (n, share) in [Share::Shared, Share::Permit { limit: 2, count: 1 }].into_iter().enumerate() {
            let name = format!("shared{n}");
            let mut request = ask(&name, &name, ms(60_000));
            request.share = share;
            assert!(matches!(store.acquire(request).await.unwrap(), Acquired::Granted(_)));
            let left = store.inspect(&name).await.unwrap().holders[0].remaining;
            assert!(left > ms(40_000) && left <= ms(60_000), "{share:?}: {left:?}");
            let (_, headers, value) = last(&other, &name).await.unwrap();
            assert!(
                headers.contains("Nats-TTL: 60") && value.contains("\"ttl_ms\":60000"),
                "{headers} {value}"
            );
        }
        store.release("op").await.unwrap();
        assert!(take(&store, "a", "op2", ms(60_000)).await > token);
    });
}

fn f20() {
    let server = nats();
    run(async {
        let (first, second) = (store(&server).await, store(&server).await);
        take(&first, "a", "stale", ms(100)).await;
        until("it is over", async || try_take(&second, "a", "fresh", TTL).await.is_some()).await;
        assert_eq!(first.release("stale").await.unwrap(), Released::AlreadyGone);
        assert_eq!(first.renew("stale").await.unwrap(), Renewed::Lost);
        assert_eq!(first.inspect("a").await.unwrap().holders[0].owner, "fresh");
        assert_eq!(second.release("fresh").await.unwrap(), Released::Clean);
    });
}

fn f21() {
    let server = nats();
    run(async {
        let store = store(&server).await;
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
    let server = nats();
    run(async {
        let store = store(&server).await;
        let own = |op: &str| {
            let mut request = ask("a", op, TTL);
            request.owner = "host-7".to_owned();
            request
        };
        assert!(matches!(store.acquire(own("earlier")).await.unwrap(), Acquired::Granted(_)));
        assert!(
            matches!(store.acquire(own("later")).await.unwrap(), Acquired::Held { by, .. } if by == "host-7")
        );
    });
}

fn f24() {
    let server = NatsKit::new().unwrap().server("sync_interval: always").unwrap();
    run(async {
        // It syncs, and that can be shown; but there is one copy.
        let store = open(config(&server.url()).system(&server.system_url())).await;
        assert_eq!(store.guarantees().fencing, Fencing::WhileStateSurvives);
        let info = api(&other(&server).await, "STREAM.INFO.KV_mainstay_leases", json!({})).await;
        let config = &info["config"];
        assert_eq!(config["allow_direct"], json!(false), "reads are the leader's: {config}");
        assert_eq!((&config["discard"], &config["deny_delete"]), (&json!("new"), &json!(true)));
        assert_eq!(config["max_msgs_per_subject"], json!(1));
    });
}

fn f25() {
    let mut server = nats();
    run(async {
        let store = store(&server).await;
        let token = take(&store, "a", "op", Duration::from_secs(60)).await;
        server.restart().unwrap();
        until("it answers", async || store.inspect("a").await.is_ok()).await;
        assert!(try_take(&store, "a", "op2", TTL).await.is_none(), "it kept it");
        assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(g) if g[0].token == token));
        assert_eq!(store.release("op").await.unwrap(), Released::Clean);
        assert!(take(&store, "a", "op3", TTL).await > token);
    });
}

fn f26() {
    let server = nats();
    run(async {
        let other = other(&server).await;
        let store = store(&server).await;
        let lock = coordinator(store.clone(), "me").mutex("a").ttl(TTL).build().unwrap();
        let guard = lock.acquire(soon()).await.unwrap();
        let before = guard.token();
        // Gone with everything in it; whoever comes next makes it anew, above what it was.
        api(&other, "STREAM.DELETE.KV_mainstay_leases", json!({})).await;
        let next = lock.acquire(soon());
        let (next, released) = tokio::join!(next, guard.release());
        assert_eq!(released.unwrap(), Released::AlreadyGone);
        let next = next.unwrap();
        assert!(next.token() > before, "{} after {before}", next.token());
        next.release().await.unwrap();
        // Made anew by somebody who counts from 1.
        api(&other, "STREAM.DELETE.KV_mainstay_leases", json!({})).await;
        let plain = json!({"name": "KV_mainstay_leases", "subjects": ["$KV.mainstay_leases.>"],
            "max_msgs_per_subject": 1, "discard": "new", "storage": "file", "allow_msg_ttl": true});
        let made = api(&other, "STREAM.CREATE.KV_mainstay_leases", plain).await;
        assert!(made["error"].is_null(), "{made}");
        let error = lock.try_acquire().await.unwrap_err();
        assert_eq!(*error.kind(), LockError::StoreRegressed);
        until("it was given back", async || store.inspect("test/a").await.unwrap().holders.is_empty()).await;
        // A holder whose bucket was made anew can see that all in it is older than its own.
        assert!(store.inspect("test/a").await.unwrap().last_token < before);
    });
}

fn f31() {
    let server = nats();
    run(async {
        let (store, other) = (store(&server).await, other(&server).await);
        let ends = async |what: &str| {
            let (_, headers, value) = last(&other, "a").await.unwrap();
            assert!(headers.contains("Nats-TTL: 10") && value.contains("\"op\""), "{what}: {headers}");
        };
        take(&store, "a", "first", ms(10_000)).await;
        ends("new").await;
        store.renew("first").await.unwrap();
        ends("renewed").await;
        store.release("first").await.unwrap();
        take(&store, "a", "second", ms(10_000)).await;
        ends("over a deletion").await;
        // Nobody looks at it but the server.
        until("the server ended it", async || {
            last(&other, "a")
                .await
                .is_some_and(|(_, headers, _)| headers.contains("Nats-Marker-Reason: MaxAge"))
        })
        .await;
        take(&store, "a", "third", ms(10_000)).await;
        ends("over a mark of the server").await;
    });
}

fn f32() {
    let server = nats();
    run(async {
        let (store, other) = (store(&server).await, other(&server).await);
        for (ttl, seconds) in [(200, 1), (1_000, 1), (1_001, 2), (1_500, 2), (1_900, 2)] {
            let name = format!("a{ttl}");
            // It may have ended before it is seen; then it is taken again.
            until("its ttl is seen", async || {
                take(&store, &name, &name, ms(ttl)).await;
                let Some((_, headers, value)) = last(&other, &name).await else { return false };
                let told = headers.contains(&format!("Nats-TTL: {seconds}\r"));
                assert!(told || !value.contains("\"op\""), "{ttl} ms: {headers}");
                told
            })
            .await;
        }
        // Who never saw it before, and so has to leave it to the server, does not get it early either.
        let clock = mainstay_clock::SystemClock::new();
        let start = mainstay_clock::Clock::now(&clock);
        take(&store, "b", "holder", ms(1_500)).await;
        let (fresh, after) = (crate::world::store(&server).await, ms(1_500));
        until("it is free", async || try_take(&fresh, "b", "next", TTL).await.is_some()).await;
        let passed = mainstay_clock::Clock::now(&clock).saturating_duration_since(start);
        assert!(passed >= after, "freed after {passed:?}");
    });
}

fn f41() {
    let server = nats();
    run(async {
        let before = mainstay_store::FencingToken::new(1 << 47);
        let plain = bucket(&server, "b", |b| b).await;
        assert!(take(&plain, "a", "op", TTL).await < before, "the resource would refuse everybody");
        plain.release("op").await.unwrap();
        let raised = bucket(&server, "b", |b| b.epoch(1)).await;
        let token = take(&raised, "a", "op2", TTL).await;
        assert!(token > before);
        // Whoever still has the old setting sees, and keeps, the holder's own.
        assert_eq!(plain.inspect("a").await.unwrap().holders[0].token, token);
    });
}

fn bare() {
    let server = nats();
    run(async {
        let store = open(config(&server.url()).names(Names::Bare)).await;
        let client = other(&server).await;
        let lock = coordinator(store.clone(), "me").mutex("job").ttl(ms(5_000)).build().unwrap();
        assert_eq!(publish(&client, "job", 0, "theirs").await, 0);
        let refused = lock.try_acquire().await.unwrap_err();
        assert!(matches!(refused.kind(), LockError::Contended { .. }), "{refused}");
        let (at, ..) = last(&client, "job").await.unwrap();
        let free = async {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("KV-Operation", "DEL");
            headers.insert("Nats-Expected-Last-Subject-Sequence", at.to_string());
            client.request_with_headers("$KV.mainstay_leases.job", headers, "".into()).await.unwrap();
        };
        let (guard, ()) = tokio::join!(lock.acquire(soon()), free);
        let guard = guard.unwrap();
        let (ours, ..) = last(&client, "job").await.unwrap();
        assert!(last(&client, "test/job").await.is_none(), "nothing lies under its whole name");
        assert_ne!(publish(&client, "job", 0, "theirs").await, 0);
        assert_ne!(publish(&client, "job", at, "theirs").await, 0, "it moved on to {ours}");
        assert_eq!(store.list("test/", 10).await.unwrap()[0].name, "test/job");
        assert_eq!(store.inspect("test/job").await.unwrap().name, "test/job");
        assert!(store.list("test/x", 10).await.unwrap().is_empty());
        let told = store.acquire(ask("other/job", "op2", ms(5_000))).await.unwrap();
        assert!(matches!(told, Acquired::Held { by, .. } if by == "me"), "namespaces meet, too");
        assert_eq!(guard.release().await.unwrap(), Released::Clean);
        take(&store, "test/job", "op3", ms(5_000)).await;
        let Renewed::Renewed(grants) = store.renew("op3").await.unwrap() else { panic!("it is held") };
        assert_eq!(grants[0].name, "test/job");
    });
}

fn f42() {
    let server = nats();
    run(async {
        let (store, other) = (store(&server).await, other(&server).await);
        let kv = async_nats::jetstream::new(other.clone()).get_key_value("mainstay_leases").await.unwrap();
        kv.create("a", "worker-7".into()).await.unwrap();
        let held = store.acquire(ask("a", "op", TTL)).await.unwrap();
        let Acquired::Held { by, remaining: None, since: None } = held else { panic!("{held:?}") };
        assert_eq!(by, "another client (worker..)");
        assert_eq!(store.inspect("a").await.unwrap().holders[0].remaining, Duration::MAX, "no expiry");
        assert_eq!(store.break_lease("a").await.unwrap_err().kind(), ErrorKind::Unsupported);
        assert_eq!(store.list("", 9).await.unwrap().len(), 1);
        kv.delete("a").await.unwrap();
        take(&store, "a", "op", TTL).await;
        assert!(kv.create("a", "worker-7".into()).await.is_err(), "ours excludes theirs");
        store.release("op").await.unwrap();
        kv.create("a", "worker-7".into()).await.unwrap();
    });
}

fn k17() {
    let server = nats();
    run(async {
        let (proxy, store) = proxied(&server, ms(5_000)).await;
        take(&store, "test/a", "them", TTL).await;
        let lock = coordinator(store, "me").mutex("a").build().unwrap();
        let held = lock.try_acquire().await.unwrap_err();
        let LockError::Contended { holder, remaining, .. } = held.kind() else { panic!("{held}") };
        assert!(holder == "them" && remaining.is_some());
        proxy.set_mode(TcpMode::Blackhole);
        assert_eq!(lock.try_acquire().await.unwrap_err().kind(), &LockError::Unreachable);
        proxy.set_mode(TcpMode::Pass);
        proxy.set_upstream(None);
        proxy.cut();
        assert_eq!(lock.try_acquire().await.unwrap_err().kind(), &LockError::Unreachable);
    });
}

fn refused_bucket() {
    let server = nats();
    run(async {
        let other = other(&server).await;
        let aged = json!({"name": "KV_aged", "subjects": ["$KV.aged.>"], "max_age": 60_000_000_000_u64});
        api(&other, "STREAM.CREATE.KV_aged", aged).await;
        let config = |b: &str| config(&server.url()).bucket(b);
        let error = NatsLeases::open(config("aged").build().unwrap(), &Runtime::system()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("max_age"), "{error}");
        // One that observers made stays theirs.
        open(config("observed").expiry(Expiry::Observer)).await;
        assert_eq!(open(config("observed")).await.guarantees().clock, "boot time of observers");
        let config = config("observed").expiry(Expiry::Server).build().unwrap();
        let error = NatsLeases::open(config, &Runtime::system()).await.unwrap_err();
        assert!(error.to_string().contains("allow_msg_ttl"), "{error}");
    });
}

fn requirements() {
    let server = nats();
    run(async {
        let store = store(&server).await;
        let token = take(&store, "parent", "op-p", TTL).await;
        let mut child = ask("child", "op-c", TTL);
        child.require = vec![("parent".to_owned(), token.next())];
        assert!(matches!(store.acquire(child.clone()).await.unwrap(), Acquired::Held { .. }));
        child.require = vec![("parent".to_owned(), token)];
        assert!(matches!(store.acquire(child).await.unwrap(), Acquired::Granted(_)));
        store.release("op-p").await.unwrap();
        let mut orphan = ask("orphan", "op-o", TTL);
        orphan.require = vec![("parent".to_owned(), token)];
        let before = written(&other(&server).await).await;
        assert!(matches!(store.acquire(orphan).await.unwrap(), Acquired::Held { .. }), "held by nobody");
        assert_eq!(written(&other(&server).await).await, before, "nothing was taken for it");
    });
}
