//! Five servers: some paused, killed, restarted, cut off.

use std::time::Duration;

use mainstay_chaos::proxy::{TcpMode, TcpProxy};
use mainstay_clock::Runtime;
use mainstay_coordination::ErrorKind as LockError;
use mainstay_redis::{RedisQuorum, Redlock};
use mainstay_sim::servers::Server;
use mainstay_store::lease::{Acquired, Fencing, Released, Renewed, Share};
use mainstay_store::{Answered, ErrorKind, FencingToken, LeaseStore, Outcome};

use crate::Test;
use crate::world::{
    ANSWER, ask, coordinator, exists, ms, number, other, pause, redis, run, scripts_run, soon, take, text,
    try_take, until, url,
};

pub(crate) const TESTS: &[Test] = &[
    ("any_minority_may_die_and_a_dead_majority_is_unreachable", deaths),
    ("a_partition_leaves_one_side_that_grants", partition),
    ("tokens_grow_while_servers_are_paused_killed_and_restarted", nemesis),
    ("asking_again_in_vain_gives_nothing_back", in_vain),
    ("one_server_behind_two_addresses_is_no_quorum", one_behind_two),
    ("what_a_quorum_cannot_do_it_refuses", refusals),
    ("f01_a_split_is_contended_in_one_round_and_leaves_nothing", f01),
    ("f02_own_keys_do_not_vote_against_their_own_retry", f02),
    ("f05_a_paused_server_is_left_without_a_key_in_the_end", f05),
    ("f07_a_hung_server_is_not_waited_for", f07),
    ("f07_a_hung_server_is_asked_again_by_one_for_all", f07_again),
    ("a_release_leaves_a_mark_only_where_an_acquisition_may_come_behind_it", marks),
    ("f25_a_server_that_forgot_its_leases_is_silent_until_they_ended", f25),
    ("f30_counters_that_differ_are_made_equal_in_a_second_phase", f30),
    ("s4_a_release_whose_answers_were_lost_is_clean_when_it_is_repeated", released_unheard),
    ("f40_a_break_burns_a_token_of_the_one_order", f40),
    ("k05_k08_an_election_goes_on_without_a_minority", election),
    ("k14_the_textbooks_schedule_gives_up_after_eleven_tries", k14),
];

/// The longest lease that a quorum takes unless told otherwise: no machine stands still for as long.
const TTL: Duration = Duration::from_secs(30);
/// Of leases whose end is waited for.
const SHORT: Duration = Duration::from_secs(10);
/// Longest wait for a server that says nothing.
const SILENCE: Duration = Duration::from_secs(3);
/// Survives a restart with its data.
const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

pub(crate) fn servers(count: usize) -> Vec<Server> {
    (0..count).map(|_| redis(&DURABLE)).collect()
}

pub(crate) fn quorum(servers: &[Server]) -> RedisQuorum {
    quorum_within(servers, ANSWER)
}

fn quorum_within(servers: &[Server], limit: Duration) -> RedisQuorum {
    let builder = RedisQuorum::builder(servers.iter().map(url)).require_durable();
    builder.request_timeout(limit).build(&Runtime::system()).unwrap()
}

fn deaths() {
    let mut servers = servers(5);
    run(async {
        let store = quorum_within(&servers, SILENCE);
        let first = take(&store, "a", "op", TTL).await;
        servers[0].kill().unwrap();
        servers[1].pause().unwrap();
        assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(_)));
        assert_eq!(store.inspect("a").await.unwrap().holders.len(), 1);
        assert_eq!(store.release("op").await.unwrap(), Released::Clean);
        let second = take(&store, "a", "op2", SHORT).await;
        assert!(second > first);
        servers[2].kill().unwrap();
        let error = store.renew("op2").await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
        let error = store.acquire(ask("b", "op3", TTL)).await.unwrap_err();
        assert!(error.is_retryable() && error.to_string().starts_with("2 of 5"), "{error}");
        let lock = coordinator(store.clone(), "me").mutex("b").ttl(TTL).build().unwrap();
        let error = lock.try_acquire().await.unwrap_err();
        assert_eq!(*error.kind(), LockError::Unreachable, "K17: not contended");
        assert_eq!(error.answered(), Some(Answered { answered: 2, needed: 3 }));
        for server in &mut servers[..3] {
            server.restart().unwrap();
        }
        until("it grants again", async || try_take(&store, "c", "op4", TTL).await.is_some()).await;
        let third = take_in_time(&store, "a", "op5").await;
        assert!(third > second);
        // One that restarted and two that never stopped are a majority: the others may be heard of later.
        until("the restarts were noticed", async || {
            store.ready().await.is_ok() && store.health().iter().filter(|h| h.restarts > 0).count() >= 2
        })
        .await;
    });
}

/// Waits until whoever held it is gone.
async fn take_in_time(store: &RedisQuorum, name: &str, op: &str) -> FencingToken {
    until("it is free", async || matches!(store.acquire(ask(name, op, TTL)).await, Ok(Acquired::Granted(_))))
        .await;
    take(store, name, op, TTL).await
}

async fn behind_proxies(servers: &[Server]) -> (Vec<TcpProxy>, RedisQuorum) {
    behind_proxies_for(servers, TTL).await
}

/// For leases of up to so much.
async fn behind_proxies_for(servers: &[Server], most: Duration) -> (Vec<TcpProxy>, RedisQuorum) {
    let mut proxies = Vec::new();
    for server in servers {
        let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
        proxy.set_upstream(Some(server.address()));
        proxies.push(proxy);
    }
    let urls = proxies.iter().map(|p| format!("redis://{}/", p.address()));
    let builder = RedisQuorum::builder(urls).require_durable().max_ttl(most).request_timeout(SILENCE);
    let store = builder.build(&Runtime::system()).unwrap();
    until("it is connected", async || store.ready().await.is_ok()).await;
    (proxies, store)
}

fn partition() {
    let servers = servers(5);
    run(async {
        let ((few, here), (many, there)) = (behind_proxies(&servers).await, behind_proxies(&servers).await);
        let first = take(&here, "a", "here", SHORT).await;
        // One side sees two servers, the other three.
        for (at, proxy) in few.iter().enumerate() {
            proxy.set_mode(if at < 2 { TcpMode::Pass } else { TcpMode::Blackhole });
        }
        for (at, proxy) in many.iter().enumerate() {
            proxy.set_mode(if at < 2 { TcpMode::Blackhole } else { TcpMode::Pass });
        }
        assert!(try_take(&there, "a", "there", TTL).await.is_none(), "the lease still lasts");
        assert_eq!(here.renew("here").await.unwrap_err().outcome(), Outcome::Unknown);
        let second = take_in_time(&there, "a", "there").await;
        assert!(second > first);
        assert_eq!(here.acquire(ask("a", "here2", TTL)).await.unwrap_err().kind(), ErrorKind::Unavailable);
        for proxy in few.iter().chain(&many) {
            proxy.set_mode(TcpMode::Pass);
        }
        until("it hears that it lost", async || matches!(here.renew("here").await, Ok(Renewed::Lost))).await;
        assert!(matches!(there.renew("there").await.unwrap(), Renewed::Renewed(_)));
    });
}

fn nemesis() {
    let mut servers = servers(5);
    run(async {
        let stores = [(); 2].map(|()| quorum_within(&servers, SILENCE));
        let (mut last, mut grants) = (FencingToken::ZERO, 0);
        for round in 0..60_usize {
            let victim = round % 5;
            match round % 6 {
                0 => servers[victim].pause().unwrap(),
                3 => servers[victim].restart().unwrap(),
                _ => {}
            }
            let (op, store) = (format!("op{round}"), &stores[round % 2]);
            if let Ok(Acquired::Granted(granted)) = store.acquire(ask("a", &op, TTL)).await {
                assert!(granted[0].token > last, "round {round}: {} after {last}", granted[0].token);
                last = granted[0].token;
                grants += 1;
            }
            until("given back", async || store.release(&op).await.is_ok()).await;
            if round % 6 == 0 {
                servers[victim].resume().unwrap();
            }
        }
        assert!(grants >= 50, "{grants} of 60");
    });
}

fn in_vain() {
    let servers = servers(3);
    run(async {
        let store = quorum_within(&servers, SILENCE);
        take(&store, "a", "op", TTL).await;
        for server in &servers[1..] {
            server.pause().unwrap();
        }
        assert!(store.acquire(ask("a", "op", TTL)).await.is_err());
        for server in &servers[1..] {
            server.resume().unwrap();
        }
        until("it is still held", async || matches!(store.renew("op").await, Ok(Renewed::Renewed(_)))).await;
        assert_eq!(store.release("op").await.unwrap(), Released::Clean);
    });
}

fn one_behind_two() {
    let servers = servers(2);
    run(async {
        let urls = [url(&servers[0]), url(&servers[1]), format!("{}1", url(&servers[0]))];
        let store = RedisQuorum::builder(urls).request_timeout(ANSWER).build(&Runtime::system()).unwrap();
        let error = store.ready().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("are one"), "{error}");
    });
    let (plain, more) = (redis(&[]), servers);
    run(async {
        let urls = [url(&plain), url(&more[0]), url(&more[1])];
        let builder = RedisQuorum::builder(urls).require_durable().request_timeout(ANSWER);
        let store = builder.build(&Runtime::system()).unwrap();
        assert!(store.ready().await.unwrap_err().to_string().contains("not durable"));
    });
}

fn refusals() {
    let servers = servers(3);
    run(async {
        let store = quorum(&servers);
        let mut reader = ask("a", "op", TTL);
        reader.share = Share::Shared;
        assert_eq!(store.acquire(reader).await.unwrap_err().kind(), ErrorKind::Unsupported);
        let urls: Vec<String> = servers.iter().map(url).collect();
        let weak = RedisQuorum::builder(&urls).max_ttl(ms(1_000)).build(&Runtime::system()).unwrap();
        assert_eq!(weak.guarantees().fencing, Fencing::WhileStateSurvives);
        let error = weak.acquire(ask("a", "op", TTL)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ApiMisuse, "longer than a restarted server is silent");
        let none = RedisQuorum::builder(&urls).without_fencing().build(&Runtime::system()).unwrap();
        let refused = coordinator(none, "me").mutex("a").require(Fencing::Strict).build().unwrap_err();
        assert_eq!(refused.field(), "require");
        // F6: nothing is left of such a ttl, and that is not a large number. Nor is anything left of the lease.
        store.ready().await.unwrap();
        let error = store.acquire(ask("a", "tiny", ms(1))).await.unwrap_err();
        assert_eq!((error.kind(), error.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
        for server in &servers {
            assert!(!exists(&mut other(server).await, "a").await);
        }
    });
}

fn f01() {
    let servers = servers(4);
    run(async {
        let urls = servers.iter().map(url);
        let builder = RedisQuorum::builder(urls).allow_even().require_durable().request_timeout(ANSWER);
        let store = builder.build(&Runtime::system()).unwrap();
        for server in &servers[..2] {
            text(&mut other(server).await, &["SET", "a", "theirs", "PX", "60000"]).await;
        }
        let held = store.acquire(ask("a", "op", TTL)).await.unwrap();
        let Acquired::Held { remaining, .. } = held else { panic!("{held:?}") };
        assert!(remaining.unwrap() <= ms(400), "nobody holds it: come back after a random pause");
        for server in &servers[2..] {
            let own = other(server).await;
            until("own minority is given back", async || !exists(&mut own.clone(), "a").await).await;
        }
    });
}

fn f02() {
    let servers = servers(3);
    run(async {
        let store = quorum(&servers);
        text(&mut other(&servers[0]).await, &["SET", "a", "op", "PX", "30000"]).await;
        text(&mut other(&servers[1]).await, &["SET", "a", "theirs", "PX", "60000"]).await;
        let token = take(&store, "a", "op", TTL).await;
        assert_eq!(take(&store, "a", "op", TTL).await, token, "again is no new lease");
    });
}

fn f05() {
    let servers = servers(3);
    run(async {
        let store = quorum(&servers);
        store.ready().await.unwrap();
        servers[2].pause().unwrap();
        take(&store, "a", "op", TTL).await;
        assert_eq!(store.release("op").await.unwrap(), Released::Clean);
        servers[2].resume().unwrap();
        let mut third = other(&servers[2]).await;
        until("it caught up", async || scripts_run(&mut third.clone()).await >= 2).await;
        until("nobody is heard any more", async || store.in_background() == 0).await;
        assert!(!exists(&mut third, "a").await);
    });
}

fn f07() {
    let servers = servers(3);
    run(async {
        // Each store asks once: what a hung server does not answer for long is asked over another connection.
        let stores = [(); 6].map(|()| quorum(&servers));
        for store in &stores {
            until("all are connected", async || {
                store.ready().await.is_ok() && store.health().iter().all(|h| h.connected)
            })
            .await;
        }
        servers[1].pause().unwrap();
        for (round, store) in stores.iter().enumerate() {
            let name = format!("a{round}");
            take(store, &name, &name, TTL).await;
            assert!(store.in_background() > 0, "{round}: the hung one is heard behind the caller's back");
        }
        servers[1].resume().unwrap();
        for store in &stores {
            until("nobody is heard any more", async || store.in_background() == 0).await;
        }
    });
}

fn f07_again() {
    // Longer than the test waits: what is over comes to an end by itself.
    const LONG: Duration = Duration::from_secs(180);
    let servers = servers(3);
    run(async {
        let builder = RedisQuorum::builder(servers.iter().map(url)).require_durable().max_ttl(LONG);
        let store = builder.request_timeout(SILENCE).build(&Runtime::system()).unwrap();
        until("all are connected", async || {
            store.ready().await.is_ok() && store.health().iter().all(|h| h.connected)
        })
        .await;
        servers[2].pause().unwrap();
        for name in ["a", "b", "c", "d", "e", "f"] {
            take(&store, name, name, LONG).await;
            assert_eq!(store.release(name).await.unwrap(), Released::Clean);
        }
        until("one tries for all", async || store.in_background() == 1).await;
        servers[2].resume().unwrap();
        until("it has heard of all", async || store.in_background() == 0).await;
        let third = other(&servers[2]).await;
        for name in ["a", "b", "c", "d", "e", "f"] {
            assert!(!exists(&mut third.clone(), name).await, "{name}");
        }
    });
}

fn marks() {
    let servers = servers(3);
    run(async {
        let store = quorum(&servers);
        until("all are connected", async || {
            store.ready().await.is_ok() && store.health().iter().all(|h| h.connected)
        })
        .await;
        servers[2].pause().unwrap();
        take(&store, "a", "op", TTL).await;
        assert_eq!(store.release("op").await.unwrap(), Released::Clean);
        servers[2].resume().unwrap();
        until("nobody is heard any more", async || store.in_background() == 0).await;
        let mut third = other(&servers[2]).await;
        // It heard the acquisition first, and found it held.
        assert!(!exists(&mut third, "a").await && !exists(&mut third, "{a}:t:op").await);
        // Where nothing is held the acquisition may still come; where it was sent twice, one of the two may in any case.
        let mut release = async |held: &str, life: &str| {
            number(&mut third, &["DEL", "{a}:t:op"]).await;
            text(&mut third, &["SET", "a", held]).await;
            let script = include_str!("../../src/lua/release.lua");
            let call = ["EVAL", script, "4", "{a}:t:op", "a", "{a}:info", "{a}:ch", "op", life];
            let freed = number(&mut third, &call).await;
            (freed, exists(&mut third, "{a}:t:op").await)
        };
        assert_eq!(release("op", "-30000").await, (1, false));
        assert_eq!(release("theirs", "-30000").await, (0, true));
        assert_eq!(release("op", "30000").await, (1, true));
        assert_eq!(release("theirs", "0").await, (0, false));
    });
}

fn f25() {
    let mut servers: Vec<Server> = (0..3).map(|_| redis(&[])).collect();
    run(async {
        let urls: Vec<String> = servers.iter().map(url).collect();
        let build = || RedisQuorum::builder(&urls).max_ttl(SHORT).request_timeout(ANSWER);
        let ours = build().build(&Runtime::system()).unwrap();
        let error = ours.acquire(ask("a", "op", SHORT)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "all of them are new");
        let granted = async |store: &RedisQuorum, op: &str| {
            matches!(store.acquire(ask("a", op, SHORT)).await, Ok(Acquired::Granted(_)))
        };
        // Each ends its silence for itself; a majority is not enough for what follows.
        until("all may grant", async || {
            let mut all = granted(&ours, "op").await;
            for server in &servers {
                all &= exists(&mut other(server).await, "a").await;
            }
            all
        })
        .await;
        until("nobody is heard any more", async || ours.in_background() == 0).await;
        // Held on the first two, for longer than this takes; the third has not heard of it, the second forgets it.
        number(&mut other(&servers[0]).await, &["PEXPIRE", "a", "600000"]).await;
        number(&mut other(&servers[2]).await, &["DEL", "a"]).await;
        servers[1].restart().unwrap();
        let theirs = build().build(&Runtime::system()).unwrap();
        assert!(!granted(&theirs, "careful").await);
        let careless = build().trust_restarts().build(&Runtime::system()).unwrap();
        until("without the silence", async || granted(&careless, "careless").await).await;
        let first = text(&mut other(&servers[0]).await, &["GET", "a"]).await;
        assert_eq!(first, "op", "there are two holders");
    });
}

fn f30() {
    let servers = servers(3);
    run(async {
        let store = quorum(&servers);
        // Far apart, one of them as after a lost data set.
        for (server, counter) in servers.iter().zip(["200000000000000", "200000000000777", ""]) {
            if !counter.is_empty() {
                text(&mut other(server).await, &["SET", "{a}:fence", counter]).await;
            }
        }
        let mut last = FencingToken::ZERO;
        for round in 0..6 {
            let op = format!("op{round}");
            let token = take(&store, "a", &op, TTL).await;
            assert!(token > last, "{token} after {last}");
            assert_eq!(store.inspect("a").await.unwrap().holders[0].token, token);
            assert!(store.annotate("a", token, b"v".to_vec()).await.unwrap());
            last = token;
            until("stragglers were lifted", async || store.in_background() == 0).await;
            store.release(&op).await.unwrap();
        }
        let mut counters = Vec::new();
        for server in &servers {
            counters.push(text(&mut other(server).await, &["GET", "{a}:fence"]).await);
        }
        assert!(
            counters.iter().all(|c| *c == last.to_string()),
            "equal, so one round is enough: {counters:?}"
        );
    });
}

fn released_unheard() {
    let servers = servers(3);
    run(async {
        const LONG: Duration = Duration::from_secs(900);
        let (proxies, store) = behind_proxies_for(&servers, LONG).await;
        let direct = quorum(&servers);
        // All answers are lost, then those of a majority.
        for (op, deaf, broken) in [("all", 3, false), ("most", 2, false), ("broken", 3, true)] {
            take(&store, op, op, LONG).await;
            if broken {
                direct.break_lease(op).await.unwrap();
            }
            proxies[..deaf].iter().for_each(|p| p.set_mode(TcpMode::RepliesLost));
            let lost = store.release(op).await.unwrap_err();
            assert_eq!((lost.outcome(), lost.is_retryable()), (Outcome::Unknown, true), "{lost}");
            for server in &servers {
                let mut other = other(server).await;
                until("it was done", async || !exists(&mut other, op).await).await;
            }
            take(&direct, op, "next", TTL).await;
            direct.release("next").await.unwrap();
            proxies.iter().for_each(|p| p.set_mode(TcpMode::Pass));
            proxies.iter().for_each(TcpProxy::cut);
            until("it is connected", async || store.ready().await.is_ok()).await;
            let expected = if broken { Released::AlreadyGone } else { Released::Clean };
            assert_eq!(store.release(op).await.unwrap(), expected, "{op}");
        }
    });
}

fn f40() {
    let servers = servers(3);
    run(async {
        let store = quorum(&servers);
        let old = take(&store, "a", "stuck", TTL).await;
        let burned = store.break_lease("a").await.unwrap();
        assert!(burned > old);
        assert!(take(&store, "a", "next", TTL).await > burned);
        assert_eq!(store.renew("stuck").await.unwrap(), Renewed::Broken, "though somebody has it since");
    });
}

fn election() {
    let mut servers = servers(5);
    run(async {
        let build =
            |owner: &str| coordinator(quorum(&servers), owner).election("e").ttl(TTL).build().unwrap();
        let (first, second) = (build("n1"), build("n2"));
        let term = first.campaign(soon()).await.unwrap();
        servers[4].kill().unwrap();
        servers[3].kill().unwrap();
        assert_eq!(second.leader().await.unwrap().unwrap().owner, "n1");
        let (next, ()) = tokio::join!(second.campaign(soon()), async {
            pause(ms(100)).await;
            assert_eq!(term.resign().await.unwrap(), Released::Clean);
        });
        let next = next.unwrap();
        assert_eq!(second.leader().await.unwrap().unwrap().token, next.token());
        next.resign().await.unwrap();
    });
}

fn k14() {
    let servers = servers(3);
    run(async {
        let store = quorum(&servers);
        let mut preset = Redlock::default();
        assert_eq!((preset.retries, preset.delay, preset.jitter), (10, ms(200), ms(200)));
        (preset.delay, preset.jitter) = (ms(1), ms(1));
        take(&store, "a", "holder", TTL).await;
        let mut first = other(&servers[0]).await;
        until("the holder is settled", async || store.in_background() == 0).await;
        let before = scripts_run(&mut first).await;
        let held = store.redlock(ask("a", "op", TTL), &preset).await.unwrap();
        assert!(matches!(held, Acquired::Held { .. }));
        until("all tries arrived", async || scripts_run(&mut first.clone()).await - before >= 11).await;
        let ran = scripts_run(&mut first).await - before;
        assert!((11..=22).contains(&ran), "11 tries, each given back where one had not answered: {ran}");
        store.release("holder").await.unwrap();
        let granted = store.redlock(ask("a", "op", TTL), &preset).await.unwrap();
        assert!(matches!(granted, Acquired::Granted(_)));
    });
}
