//! Leases on one node: what the field has lost locks by.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_chaos::proxy::{TcpMode, TcpProxy};
use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_etcd::{EtcdConfig, EtcdLeases};
use mainstay_sim::servers::Etcd;
use mainstay_store::lease::{AcquireRequest, Acquired, Line, Released, Renewed, Share, Transferred};
use mainstay_store::{ErrorKind, FencingToken, LeaseStore, Outcome};

use crate::world::{
    SHORT, TTL, Test, World, ask, direct, dropped_after, granted, in_line, open, opened, short, sleep, take,
    through, until, wait_for,
};

pub(crate) const TESTS: &[Test] = &[
    ("f04_a_grant_whose_answer_was_lost_is_granted_again_with_its_token", |w| Box::pin(f04(w))),
    ("f04_a_lease_whose_answer_was_lost_is_asked_for_elsewhere_and_serves", |w| Box::pin(f04_again(w))),
    ("f04_a_transaction_that_was_applied_and_is_sent_again_elsewhere_is_not_undone", |w| {
        Box::pin(f04_applied(w))
    }),
    ("f05_an_acquisition_that_arrives_after_its_release_leaves_nothing", |w| Box::pin(f05(w))),
    ("f06_connections_are_kept_and_a_ttl_of_nothing_is_refused", |w| Box::pin(f06(w))),
    ("f08_one_of_many_takes_over_what_ran_out", |w| Box::pin(f08(w))),
    ("f10_a_release_reaches_the_next_in_line_at_once", |w| Box::pin(f10(w))),
    ("f12_a_key_of_another_layout_is_waited_for_and_left_alone", |w| Box::pin(f12(w))),
    ("f14_what_is_no_etcd_is_refused_at_open", |w| Box::pin(f14(w))),
    ("f16_asking_again_keeps_the_token_and_is_told_how_long_it_lasts", |w| Box::pin(f16(w))),
    ("f18_a_repeated_release_ends_no_newer_lease", |w| Box::pin(f18(w))),
    ("f18_a_waiter_whose_revision_was_compacted_looks_again", |w| Box::pin(f18_compacted(w))),
    ("f19_an_acquisition_dropped_at_every_point_leaves_nothing_after_its_release", |w| Box::pin(f19(w))),
    ("f19_every_other_call_can_be_dropped_at_every_point", |w| Box::pin(f19_others(w))),
    ("f20_the_same_owner_with_another_operation_frees_nothing", |w| Box::pin(f20(w))),
    ("f21_the_permit_of_the_dead_comes_back_by_the_servers_time", |w| Box::pin(f21(w))),
    ("f22_an_owners_earlier_lease_is_not_taken_for_its_present_one", |w| Box::pin(f22(w))),
    ("f26_a_store_that_went_back_grants_nothing", |w| Box::pin(f26(w))),
    ("f34_a_place_in_line_whose_lease_ended_leads_nothing", |w| Box::pin(f34(w))),
    ("f35_only_the_next_in_line_is_moved_up", |w| Box::pin(f35(w))),
    ("f38_tokens_are_drawn_in_the_order_of_the_grants", |w| Box::pin(f38(w))),
    ("f39_every_acquisition_has_a_lease_of_its_own_and_leaves_none", |w| Box::pin(f39(w))),
    ("f41_a_base_epoch_lies_above_every_earlier_token", |w| Box::pin(f41(w))),
    ("f42_a_key_without_end_is_held_and_its_time_is_unknown", |w| Box::pin(f42(w))),
    ("a_renewal_is_all_names_or_none", |w| Box::pin(all_or_none(w))),
    ("a_requirement_is_checked_in_the_transaction_of_the_grant", |w| Box::pin(requires(w))),
    ("a_grant_under_way_does_not_overtake_another_limit", |w| Box::pin(limits(w))),
    ("a_turn_under_way_does_not_overtake_another_limit", |w| Box::pin(limits_in_line(w))),
    ("names_that_begin_alike_are_told_apart", |w| Box::pin(alike(w))),
    ("another_process_goes_on_with_the_same_operation", |w| Box::pin(adopts(w))),
];

async fn f04(world: World) {
    let (slow, prefix) = (world.proxy().await, world.prefix());
    let store = through(&[&slow], &prefix, Duration::from_secs(60)).await;
    let direct = open(world.config(&prefix)).await;
    for (n, request) in [ask("n", "op"), in_line("m", "op-2")].into_iter().enumerate() {
        let mut latency = Duration::from_millis(150);
        // A machine that stands still for longer than the answer takes is given a slower wire.
        while !given_up(&slow, [&store, &direct], &request, latency).await {
            assert!(latency < Duration::from_secs(10), "{n}: it was never seen before it was answered");
            latency *= 2;
        }
    }
}

/// Asks through a wire that is so slow, gives up while the answer is on its way, and asks again. Not, when the answer
/// came before the grant was seen.
async fn given_up(
    slow: &TcpProxy,
    [store, direct]: [&EtcdLeases; 2],
    request: &AcquireRequest,
    latency: Duration,
) -> bool {
    slow.set_mode(TcpMode::Latency { least: latency, jitter: Duration::ZERO });
    let first = Mutex::new(FencingToken::ZERO);
    let seen = until("it was granted", || async {
        let info = direct.inspect(&request.names[0]).await.unwrap();
        info.holders.first().is_some_and(|h| {
            *first.lock().unwrap() = h.token;
            true
        })
    });
    let early = tokio::select! {
        biased;
        answer = store.acquire(request.clone()) => Some(answer),
        () = seen => None,
    };
    slow.set_mode(TcpMode::Pass);
    if let Some(answer) = early {
        assert!(granted(&answer.unwrap()).is_some());
        store.release(&request.op_id).await.unwrap();
        return false;
    }
    let again = granted(&store.acquire(request.clone()).await.unwrap());
    assert_eq!(again, Some(*first.lock().unwrap()));
    assert_eq!(store.release(&request.op_id).await.unwrap(), Released::Clean);
    true
}

async fn f04_again(world: World) {
    // A node of its own, to see when its first lease is there.
    let etcd = world.kit.single().unwrap();
    let slow = world.proxy().await;
    slow.set_upstream(Some(etcd.address()));
    let direct = open(direct(&etcd)).await;
    let both = EtcdConfig::builder(&format!("etcd://{},{}", slow.address(), etcd.address()));
    for request in [ask("n", "op"), in_line("m", "op-2")] {
        let store = opened(both.clone().request_timeout(Duration::from_secs(9))).await;
        slow.set_mode(TcpMode::Latency { least: Duration::from_millis(250), jitter: Duration::ZERO });
        let lose = async {
            // The rest of the answer to that is lost; another member is asked for the same lease.
            until("the lease is made", || async {
                etcd.ctl(&["lease", "list"]).unwrap().lines().count() > 1
            })
            .await;
            slow.set_mode(TcpMode::RepliesLost);
        };
        let (answer, ()) = tokio::join!(store.acquire(request.clone()), lose);
        let token = granted(&answer.unwrap()).expect("nobody else wants it");
        assert_eq!(direct.inspect(&request.names[0]).await.unwrap().holders[0].token, token);
        assert!(matches!(store.renew(&request.op_id).await.unwrap(), Renewed::Renewed(_)));
        assert_eq!(store.release(&request.op_id).await.unwrap(), Released::Clean);
        until("no lease is left", || async { etcd.ctl(&["lease", "list"]).unwrap().lines().count() == 1 })
            .await;
        slow.set_mode(TcpMode::Pass);
    }
}

async fn f04_applied(world: World) {
    let prefix = world.prefix();
    let (slow, direct) = (world.proxy().await, open(world.config(&prefix)).await);
    let both = EtcdConfig::builder(&format!("etcd://{},{}", slow.address(), world.node.address()));
    let both = both.prefix(&prefix).request_timeout(Duration::from_secs(9));
    for request in [ask("n", "op"), in_line("m", "op-2")] {
        let (store, name) = (opened(both.clone()).await, &request.names[0]);
        slow.set_mode(TcpMode::Latency { least: Duration::from_millis(200), jitter: Duration::ZERO });
        let lose = async {
            // The beginning of the answer is on its way; the rest of it is lost.
            until("it was applied", || async { !direct.inspect(name).await.unwrap().holders.is_empty() })
                .await;
            slow.set_mode(TcpMode::RepliesLost);
        };
        let (answer, ()) = tokio::join!(store.acquire(request.clone()), lose);
        let token = granted(&answer.unwrap()).expect("nobody else wants it");
        assert_eq!(direct.inspect(name).await.unwrap().holders[0].token, token);
        assert!(matches!(store.renew(&request.op_id).await.unwrap(), Renewed::Renewed(_)));
        assert_eq!(store.release(&request.op_id).await.unwrap(), Released::Clean);
        slow.set_mode(TcpMode::Pass);
    }
}

async fn f05(world: World) {
    let (slow, prefix) = (world.proxy().await, world.prefix());
    let store = through(&[&slow], &prefix, Duration::from_secs(3)).await;
    // Held back on its way; the caller gives up.
    slow.set_mode(TcpMode::Blackhole);
    let lost = store.acquire(in_line("n", "op")).await.unwrap_err();
    assert_eq!((lost.kind(), lost.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
    slow.set_mode(TcpMode::Pass);
    assert_eq!(store.release("op").await.unwrap(), Released::AlreadyGone);
    let direct = open(world.config(&prefix)).await;
    assert!(take(&direct, "n", "other").await.is_some(), "what arrived late holds nothing");
    direct.release("other").await.unwrap();
    // The keys of an acquisition are put under its lease; after the release there is none.
    take(&store, "n", "late").await.unwrap();
    let key = world.keys(&format!("{prefix}n/")).pop().unwrap();
    let lease = key.rsplit('/').next().unwrap().to_owned();
    assert_eq!(store.release("late").await.unwrap(), Released::Clean);
    let late = world.node.ctl(&["put", "--lease", &lease, &key, ""]).unwrap_err();
    assert!(late.to_string().contains("lease not found"), "{late}");
    assert!(world.keys(&prefix).is_empty());
}

async fn f06(world: World) {
    // A node of its own, to count its connections.
    let node = world.kit.single().unwrap();
    let ours = format!("{:08X}:{:04X}", ip(&node), node.address().port());
    let connected = || {
        let sockets: Vec<PathBuf> =
            std::fs::read_dir("/proc/self/fd").unwrap().flatten().map(|e| e.path()).collect();
        let sockets: Vec<PathBuf> = sockets.iter().filter_map(|fd| fd.read_link().ok()).collect();
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        // Number, local address, remote address, state: 01 is connected; six more, and the socket. The server
        // connects to itself, too.
        let row = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words[2..4] == [ours.as_str(), "01"]
                && sockets.contains(&PathBuf::from(format!("socket:[{}]", words[9])))
        };
        table.lines().skip(1).filter(row).count()
    };
    let store = open(direct(&node)).await;
    let pair = async |n: u32| {
        let op = format!("op-{n}");
        assert!(take(&store, &format!("n-{n}"), &op).await.is_some());
        assert_eq!(store.release(&op).await.unwrap(), Released::Clean);
    };
    futures_util::future::join_all((0..20).map(pair)).await;
    assert_eq!(connected(), 1, "one for everything");
    let nothing = AcquireRequest { ttl: Duration::ZERO, ..ask("n", "op") };
    assert_eq!(store.acquire(nothing).await.unwrap_err().kind(), ErrorKind::ApiMisuse);
    let names = (0..40).map(|n| format!("n{n:02}")).collect();
    let many = AcquireRequest { names, ..ask("n", "op") };
    assert_eq!(store.acquire(many).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let names = (0..31).map(|n| format!("n{n:02}")).collect();
    let most = AcquireRequest { names, ..in_line("n", "op") };
    assert!(granted(&store.acquire(most.clone()).await.unwrap()).is_some());
    let waits = AcquireRequest { op_id: "op-2".to_owned(), ..most };
    assert!(matches!(store.acquire(waits).await.unwrap(), Acquired::Queued { .. }));
    store.release("op").await.unwrap();
    assert_eq!(store.release("op-2").await.unwrap(), Released::AlreadyGone);
}

/// As the system's table of connections has it.
fn ip(node: &Etcd) -> u32 {
    match node.address().ip() {
        std::net::IpAddr::V4(ip) => u32::from_ne_bytes(ip.octets()),
        std::net::IpAddr::V6(ip) => panic!("{ip}"),
    }
}

async fn f08(world: World) {
    let stores: [EtcdLeases; 4] = world.stores().await;
    for name in ["x", "y", "z"] {
        assert!(matches!(
            stores[0].acquire(short(name, &format!("dead-{name}"))).await.unwrap(),
            Acquired::Granted(_)
        ));
    }
    for name in ["x", "y", "z"] {
        until("it ran out", || async { stores[0].inspect(name).await.unwrap().holders.is_empty() }).await;
        let tries = stores
            .iter()
            .enumerate()
            .map(async |(i, s)| take(s, name, &format!("{name}-{i}")).await.map(|_| i));
        let won: Vec<usize> = futures_util::future::join_all(tries).await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1, "{name}: {won:?}");
    }
}

/// Whoever waits is told: it looks at no clock. Why it is told at once is a matter of where its watch begins, which the
/// tests of the watches see to; how long it takes is measured by the bench.
async fn f10(world: World) {
    let stores: [EtcdLeases; 2] = world.stores().await;
    let clock = SystemClock::new();
    let mut times = Vec::new();
    for round in 0..9 {
        let op = |who: &str| format!("{who}-{round}");
        take(&stores[0], "n", &op("a")).await.unwrap();
        let holder = async {
            until("it waits", || async { stores[0].inspect("n").await.unwrap().waiting == 1 }).await;
            // Something else happens meanwhile, as in every cluster.
            take(&stores[0], "other", &op("o")).await.unwrap();
            stores[0].release(&op("o")).await.unwrap();
            let at = clock.now();
            stores[0].release(&op("a")).await.unwrap();
            at
        };
        let waiter = async {
            loop {
                let hint = stores[1].watch("n");
                if granted(&stores[1].acquire(in_line("n", &op("b"))).await.unwrap()).is_some() {
                    return clock.now();
                }
                hint.await.unwrap();
            }
        };
        let (released, taken) = tokio::join!(holder, waiter);
        times.push(taken.saturating_duration_since(released));
        stores[1].release(&op("b")).await.unwrap();
    }
    times.sort();
    println!("hand-over p50 {:?}, worst {:?}", times[times.len() / 2], times[times.len() - 1]);
}

async fn f12(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    let key = format!("{prefix}n/some/thing else");
    world.node.ctl(&["put", &key, "deeper"]).unwrap();
    assert!(take(&store, "n", "a").await.is_some(), "what lies deeper is no key of this name");
    store.release("a").await.unwrap();
    let key = format!("{prefix}n/thing");
    world.node.ctl(&["put", &key, "whoever"]).unwrap();
    assert!(take(&store, "n", "b").await.is_none());
    assert!(matches!(store.acquire(in_line("n", "c")).await.unwrap(), Acquired::Queued { .. }));
    assert_eq!(store.release("c").await.unwrap(), Released::AlreadyGone);
    let fields = world.node.ctl(&["get", &key, "-w", "fields"]).unwrap();
    assert!(fields.contains("\"Version\" : 1\n") && fields.contains("whoever"), "{fields}");
}

async fn f14(world: World) {
    let nowhere = EtcdConfig::builder("etcd://127.255.255.254:1").request_timeout(Duration::from_millis(300));
    let refused = EtcdLeases::open(nowhere.build().unwrap(), &Runtime::system()).await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.outcome()),
        (ErrorKind::Unavailable, Outcome::NotApplied),
        "{refused}"
    );
    // Something that speaks another language.
    let proxy = world.proxy().await;
    proxy.set_upstream(None);
    let closed = EtcdConfig::builder(&format!("etcd://{}", proxy.address()))
        .request_timeout(Duration::from_millis(300));
    let refused = EtcdLeases::open(closed.build().unwrap(), &Runtime::system()).await.unwrap_err();
    assert_eq!(
        (refused.kind(), refused.outcome()),
        (ErrorKind::Unavailable, Outcome::NotApplied),
        "{refused}"
    );
}

async fn f16(world: World) {
    let store = world.store().await;
    let first = take(&store, "n", "op").await.unwrap();
    let longer = AcquireRequest { ttl: Duration::from_secs(600), ..ask("n", "op") };
    let Acquired::Granted(again) = store.acquire(longer).await.unwrap() else { panic!() };
    assert_eq!(
        (again[0].token, again[0].ttl),
        (first, TTL),
        "a lease of etcd does not grow, and that is told"
    );
    let left = store.inspect("n").await.unwrap().holders[0].remaining;
    assert!(left <= TTL, "{left:?}");
    let Renewed::Renewed(renewed) = store.renew("op").await.unwrap() else { panic!() };
    assert_eq!((renewed[0].token, renewed[0].ttl), (first, TTL));
    store.release("op").await.unwrap();
    assert!(take(&store, "n", "op").await.unwrap() > first, "a new lease has a new token");
}

async fn f18(world: World) {
    let [store, other] = world.stores().await;
    take(&store, "n", "a").await.unwrap();
    assert_eq!(store.release("a").await.unwrap(), Released::Clean);
    let token = take(&store, "n", "b").await.unwrap();
    assert_eq!(store.release("a").await.unwrap(), Released::AlreadyGone);
    // Another process that knows the id only.
    assert_eq!(other.release("a").await.unwrap(), Released::AlreadyGone);
    assert_eq!(store.inspect("n").await.unwrap().holders[0].token, token);
    // A key of the same name that is newer than the operation is left alone.
    store.break_lease("n").await.unwrap();
    let newer = take(&other, "n", "c").await.unwrap();
    assert_eq!(store.release("b").await.unwrap(), Released::AlreadyGone);
    assert_eq!(store.inspect("n").await.unwrap().holders[0].token, newer);
}

async fn f18_compacted(world: World) {
    // A node of its own: compaction is for all.
    let node = world.kit.single().unwrap();
    let [here, there] = [open(direct(&node)).await, open(direct(&node)).await];
    take(&here, "n", "a").await.unwrap();
    let work = async {
        until("it waits", || async { here.inspect("n").await.unwrap().waiting == 1 }).await;
        for n in 0..5 {
            node.ctl(&["put", "x", &n.to_string()]).unwrap();
        }
        let revision = node.ctl(&["get", "x", "-w", "fields"]).unwrap();
        let revision = revision.lines().find_map(|l| l.strip_prefix("\"Revision\" : ")).unwrap().to_owned();
        node.ctl(&["compact", &revision]).unwrap();
        here.release("a").await.unwrap();
    };
    let (token, ()) = tokio::join!(wait_for(&there, in_line("n", "b")), work);
    assert_eq!(here.inspect("n").await.unwrap().holders[0].token, token);
}

async fn f19(world: World) {
    let store = world.store().await;
    let requests = [
        ask("n", "single"),
        AcquireRequest { names: vec!["m1".to_owned(), "m2".to_owned()], ..ask("m1", "multi") },
        AcquireRequest { share: Share::Shared, ..ask("r", "shared") },
        in_line("held", "waiting"),
    ];
    take(&store, "held", "holder").await.unwrap();
    for request in requests {
        let mut ended = false;
        for polls in 1..400 {
            store.renew("holder").await.unwrap();
            let op = format!("{}-{polls}", request.op_id);
            let request = AcquireRequest { op_id: op.clone(), ..request.clone() };
            ended = dropped_after(store.acquire(request.clone()), polls).await;
            store.release(&op).await.unwrap();
            for name in &request.names {
                let info = store.inspect(name).await.unwrap();
                let left: Vec<_> = info.holders.iter().filter(|h| h.owner != "holder").collect();
                assert!(left.is_empty() && info.waiting == 0, "{op}: {left:?}, {} wait", info.waiting);
            }
            if ended {
                break;
            }
        }
        assert!(ended, "{}: the drops never reached the end", request.op_id);
    }
}

async fn f19_others(world: World) {
    let store = world.store().await;
    let mut done = [false; 7];
    for polls in 1..100 {
        let op = format!("op-{polls}");
        let Some(token) = take(&store, "n", &op).await else { panic!("{polls}: not free") };
        store.acquire(in_line("n", "next")).await.unwrap();
        for (i, done) in done.iter_mut().enumerate().take(5) {
            *done |= match i {
                0 => dropped_after(store.renew(&op), polls).await,
                1 => dropped_after(store.inspect("n"), polls).await,
                2 => dropped_after(store.list("", 10), polls).await,
                3 => dropped_after(store.annotate("n", token, b"v".to_vec()), polls).await,
                _ => dropped_after(store.leave("next"), polls).await,
            };
        }
        assert!(matches!(store.renew(&op).await.unwrap(), Renewed::Renewed(_)), "it holds on");
        store.leave("next").await.unwrap();
        done[5] |= dropped_after(store.release(&op), polls).await;
        store.release(&op).await.unwrap();
        take(&store, "n", &format!("{op}-b")).await.expect("a dropped release can be repeated");
        done[6] |= dropped_after(store.break_lease("n"), polls).await;
        store.break_lease("n").await.unwrap();
        store.release(&format!("{op}-b")).await.unwrap();
        if done == [true; 7] {
            return;
        }
    }
    panic!("the drops never reached the end: {done:?}");
}

async fn f20(world: World) {
    let store = world.store().await;
    let own = |op: &str| AcquireRequest { owner: "host-7".to_owned(), ..ask("n", op) };
    assert!(matches!(store.acquire(own("old-run")).await.unwrap(), Acquired::Granted(_)));
    store.break_lease("n").await.unwrap();
    assert!(matches!(store.acquire(own("new-run")).await.unwrap(), Acquired::Granted(_)));
    assert_eq!(store.renew("old-run").await.unwrap(), Renewed::Broken);
    assert_eq!(store.release("old-run").await.unwrap(), Released::AlreadyGone);
    assert_eq!(store.renew("old-run").await.unwrap(), Renewed::Lost, "it was given up");
    assert_eq!(store.inspect("n").await.unwrap().holders.len(), 1);
}

async fn f21(world: World) {
    let store = world.store().await;
    let permit =
        |op: &str, ttl| AcquireRequest { share: Share::Permit { limit: 2, count: 1 }, ttl, ..ask("n", op) };
    for (op, ttl) in [("alive", Duration::from_secs(60)), ("dead", SHORT)] {
        assert!(matches!(store.acquire(permit(op, ttl)).await.unwrap(), Acquired::Granted(_)));
    }
    assert!(matches!(store.acquire(permit("next", TTL)).await.unwrap(), Acquired::Held { .. }));
    until("the dead one's permit comes back", || async {
        granted(&store.acquire(permit("next", TTL)).await.unwrap()).is_some()
    })
    .await;
    assert!(
        matches!(store.acquire(permit("more", TTL)).await.unwrap(), Acquired::Held { .. }),
        "and only that"
    );
}

async fn f22(world: World) {
    let store = world.store().await;
    let own = |op: &str| AcquireRequest { owner: "node-7".to_owned(), ..ask("n", op) };
    assert!(matches!(store.acquire(own("before-restart")).await.unwrap(), Acquired::Granted(_)));
    let Acquired::Held { by, .. } = store.acquire(own("after-restart")).await.unwrap() else { panic!() };
    assert_eq!(by, "node-7");
    assert_eq!(store.renew("after-restart").await.unwrap(), Renewed::Lost);
    let line = AcquireRequest { line: Line::Join, ..own("after-restart") };
    assert!(matches!(store.acquire(line).await.unwrap(), Acquired::Queued { .. }));
    assert_eq!(store.renew("after-restart").await.unwrap(), Renewed::Lost, "a place in line is no lease");
}

async fn f26(world: World) {
    // Two clusters behind one address: the second is what a restore from an early snapshot looks like.
    let (before, after) = (world.kit.single().unwrap(), world.kit.single().unwrap());
    let proxy = world.proxy().await;
    proxy.set_upstream(Some(before.address()));
    let store = through(&[&proxy], "", Duration::from_secs(10)).await;
    for n in 0..3 {
        take(&store, "n", &format!("op-{n}")).await.unwrap();
        store.release(&format!("op-{n}")).await.unwrap();
    }
    take(&store, "held", "kept").await.unwrap();
    proxy.set_upstream(Some(after.address()));
    proxy.cut();
    let refused = until_answered(&store).await;
    // Its holder is told the same.
    assert_eq!(store.renew("kept").await.unwrap_err().kind(), ErrorKind::Regressed);
    assert_eq!(refused.kind(), ErrorKind::Regressed, "{refused}");
    assert!(refused.to_string().contains("base epoch"), "{refused}");
    assert!(!refused.is_retryable());
    assert!(after.ctl(&["get", "--prefix", ""]).unwrap().is_empty(), "nothing was granted");
    // Raised, it goes on above everything that was ever told.
    let raised = direct(&after).base_epoch(1);
    assert!(take(&open(raised).await, "n", "op").await.unwrap() > FencingToken::new(1 << 48));
}

/// The first error that is no broken connection.
async fn until_answered(store: &EtcdLeases) -> mainstay_store::Error {
    let last = Mutex::new(None);
    until("an answer", || async {
        match store.acquire(ask("n", "again")).await {
            Ok(granted) => panic!("{granted:?}"),
            Err(e) => {
                let answered = e.kind() != ErrorKind::Unavailable;
                *last.lock().unwrap() = Some(e);
                answered
            }
        }
    })
    .await;
    last.into_inner().unwrap().unwrap()
}

async fn f34(world: World) {
    let prefix = world.prefix();
    let [here, there] = [open(world.config(&prefix)).await, open(world.config(&prefix)).await];
    take(&here, "n", "holder").await.unwrap();
    assert!(matches!(there.acquire(in_line("n", "b")).await.unwrap(), Acquired::Queued { .. }));
    // Its lease ends while it waits: an operator, or a pause of the waiter beyond its ttl.
    let lease = world.keys(&format!("{prefix}n/")).pop().unwrap().rsplit('/').next().unwrap().to_owned();
    let own = there.inspect("n").await.unwrap().waiting;
    assert_eq!(own, 1);
    let leases: Vec<String> =
        world.keys(&format!("{prefix}n/")).iter().map(|k| k.rsplit('/').next().unwrap().to_owned()).collect();
    let held = world.keys(&format!("{prefix}.mainstay/h/n")).pop().unwrap();
    let waiting = leases.iter().find(|l| !held.ends_with(l.as_str())).unwrap_or(&lease);
    world.node.ctl(&["lease", "revoke", waiting]).unwrap();
    here.release("holder").await.unwrap();
    take(&here, "n", "quick").await.expect("nobody is in line");
    // It must not believe that its turn has come.
    let answer = there.acquire(in_line("n", "b")).await.unwrap();
    assert!(matches!(answer, Acquired::Queued { .. }), "{answer:?}");
    here.release("quick").await.unwrap();
    assert!(wait_for(&there, in_line("n", "b")).await > FencingToken::ZERO);
}

async fn f35(world: World) {
    let [here, there] = world.stores().await;
    let token = take(&here, "n", "a").await.unwrap();
    assert_eq!(here.transfer("n", token, "b").await.unwrap(), Transferred::Unsupported, "nobody is in line");
    there.acquire(in_line("n", "b")).await.unwrap();
    there.acquire(in_line("n", "c")).await.unwrap();
    assert_eq!(here.transfer("n", token, "c").await.unwrap(), Transferred::Unsupported, "it is not the next");
    assert_eq!(here.transfer("n", token.next(), "b").await.unwrap(), Transferred::Unsupported);
    assert_eq!(here.inspect("n").await.unwrap().holders[0].token, token, "the leader stays");
    assert_eq!(here.transfer("n", token, "b").await.unwrap(), Transferred::Moved);
    assert_eq!(here.renew("a").await.unwrap(), Renewed::Lost);
    assert_eq!(here.release("a").await.unwrap(), Released::AlreadyGone);
    let moved = granted(&there.acquire(in_line("n", "b")).await.unwrap()).unwrap();
    assert!(moved > token);
    assert!(matches!(there.acquire(in_line("n", "c")).await.unwrap(), Acquired::Queued { .. }));
    there.release("b").await.unwrap();
    assert!(wait_for(&there, in_line("n", "c")).await > moved);
}

async fn f38(world: World) {
    let order: Arc<Mutex<Vec<FencingToken>>> = Arc::default();
    let stores: [EtcdLeases; 4] = world.stores().await;
    let tasks = stores.iter().enumerate().map(|(n, store)| {
        let order = Arc::clone(&order);
        async move {
            for round in 0..10 {
                let op = format!("{n}-{round}");
                // Half of them stand in line, the others try.
                let request = if n % 2 == 0 { in_line("n", &op) } else { ask("n", &op) };
                let token = wait_for(store, request).await;
                // Only the holder writes here.
                order.lock().unwrap().push(token);
                assert_eq!(store.release(&op).await.unwrap(), Released::Clean);
            }
        }
    });
    futures_util::future::join_all(tasks).await;
    let order = order.lock().unwrap();
    assert_eq!(order.len(), 40);
    assert!(order.windows(2).all(|w| w[0] < w[1]), "{order:?}");
}

async fn f39(world: World) {
    // A node of its own, to see all its leases.
    let node = world.kit.single().unwrap();
    let store = open(direct(&node)).await;
    let leases = || node.ctl(&["lease", "list"]).unwrap().lines().skip(1).filter(|l| !l.is_empty()).count();
    take(&store, "n", "a").await.unwrap();
    // The same process, the same name: in the recipes of etcd a second lock of one session owns at once.
    assert!(take(&store, "n", "b").await.is_none());
    assert!(matches!(store.acquire(in_line("n", "c")).await.unwrap(), Acquired::Queued { .. }));
    take(&store, "m", "d").await.unwrap();
    assert_eq!(leases(), 3, "one each, and none for what was refused");
    for op in ["a", "b", "c", "d"] {
        store.release(op).await.unwrap();
    }
    assert_eq!(leases(), 0, "nothing is left to run out");
    assert!(node.ctl(&["get", "--prefix", ""]).unwrap().is_empty());
}

async fn f41(world: World) {
    let prefix = world.prefix();
    let with = |epoch| world.config(&prefix).base_epoch(epoch);
    let (old, new) = (open(with(0)).await, open(with(5)).await);
    let first = take(&old, "n", "a").await.unwrap();
    assert_eq!(first.get() >> 48, 0);
    old.release("a").await.unwrap();
    let second = take(&new, "n", "b").await.unwrap();
    assert_eq!(second.get() >> 48, 5);
    assert!(new.annotate("n", second, b"v".to_vec()).await.unwrap());
    assert!(!new.annotate("n", FencingToken::new(second.get() & 0xffff_ffff), b"w".to_vec()).await.unwrap());
}

async fn f42(world: World) {
    let prefix = world.prefix();
    let store = open(world.config(&prefix)).await;
    world.node.ctl(&["put", &format!("{prefix}n/by-hand"), "a person"]).unwrap();
    let Acquired::Held { by, remaining, .. } = store.acquire(ask("n", "a")).await.unwrap() else { panic!() };
    assert_eq!((by.as_str(), remaining), ("a person", None));
    assert_eq!(store.inspect("n").await.unwrap().holders[0].remaining, Duration::MAX, "no end");
    store.acquire(in_line("n", "b")).await.unwrap();
    sleep(50).await;
    assert!(take(&store, "n", "a").await.is_none(), "a line does not end it either");
    store.leave("b").await.unwrap();
    store.break_lease("n").await.unwrap();
    assert!(take(&store, "n", "a").await.is_some());
}

async fn all_or_none(world: World) {
    let store = world.store().await;
    let both = AcquireRequest { names: vec!["m1".to_owned(), "m2".to_owned()], ..ask("m1", "op") };
    let Acquired::Granted(grants) = store.acquire(both.clone()).await.unwrap() else { panic!() };
    assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(g) if g == grants));
    store.break_lease("m1").await.unwrap();
    assert_eq!(store.renew("op").await.unwrap(), Renewed::Broken, "half of it is not it");
    let Acquired::Granted(anew) = store.acquire(both).await.unwrap() else { panic!() };
    assert!(anew[0].token > grants[0].token && anew[1].token > grants[1].token);
    assert_eq!(store.release("op").await.unwrap(), Released::Clean);
    let other = AcquireRequest { names: vec!["m3".to_owned()], ..ask("m3", "op-2") };
    store.acquire(other).await.unwrap();
    let misuse = store.acquire(ask("m4", "op-2")).await.unwrap_err();
    assert_eq!(misuse.kind(), ErrorKind::ApiMisuse);
}

async fn requires(world: World) {
    let store = world.store().await;
    let parent = take(&store, "parent", "p").await.unwrap();
    let child = |op: &str, line| AcquireRequest {
        require: vec![("parent".to_owned(), parent)],
        line,
        ..ask("child", op)
    };
    assert!(granted(&store.acquire(child("c", Line::Try)).await.unwrap()).is_some());
    assert!(matches!(store.acquire(child("d", Line::Join)).await.unwrap(), Acquired::Queued { .. }));
    store.leave("d").await.unwrap();
    assert!(matches!(store.acquire(child("w", Line::Join)).await.unwrap(), Acquired::Queued { .. }));
    store.release("p").await.unwrap();
    store.release("c").await.unwrap();
    let turn = store.acquire(child("w", Line::Join)).await.unwrap();
    assert!(matches!(turn, Acquired::Held { .. }), "its turn, but what it needs is gone: {turn:?}");
    store.leave("w").await.unwrap();
    let next = take(&store, "parent", "q").await.unwrap();
    assert!(next > parent);
    let refused = store.acquire(child("e", Line::Try)).await.unwrap();
    assert!(matches!(&refused, Acquired::Held { by, .. } if by == "q"), "{refused:?}");
    assert!(store.inspect("child").await.unwrap().holders.is_empty());
}

fn permit(name: &str, op: &str, limit: u32) -> AcquireRequest {
    AcquireRequest { share: Share::Permit { limit, count: 1 }, ..ask(name, op) }
}

/// The limit is changed while a request for a permit stands still, at every point of it.
async fn limits(world: World) {
    let [holder, other, admin] = world.stores().await;
    let mut overtaken = 0;
    for limit in [1, 5] {
        for polls in 1..100 {
            let (name, op) = (format!("n/{limit}/{polls}"), format!("op-{limit}-{polls}"));
            let held = holder.acquire(permit(&name, &format!("h-{op}"), 3)).await.unwrap();
            assert!(granted(&held).is_some());
            let mut asked = other.acquire(permit(&name, &op, 3));
            if dropped_after(&mut asked, polls).await {
                break;
            }
            admin.resize(&name, limit).await.unwrap();
            let alone = admin.inspect(&name).await.unwrap().holders.len() == 1;
            let answer = asked.await;
            if alone {
                overtaken += 1;
                assert!(
                    answer.as_ref().is_ok_and(|a| granted(a).is_none()) || answer.is_err(),
                    "{name} has {limit} now, and 3 were the base of {answer:?}"
                );
                let later = permit(&name, &format!("later-{op}"), limit);
                let later = admin.acquire(later).await.unwrap();
                assert_eq!(
                    granted(&later).is_some(),
                    limit == 5,
                    "nobody stands in the way with another limit"
                );
            }
        }
    }
    assert!(overtaken > 1, "{overtaken} of both limits");
}

/// The same for one whose turn has come. It requires another lease, which is looked at before its turn is taken.
async fn limits_in_line(world: World) {
    let [holder, other, admin] = world.stores().await;
    let lead = AcquireRequest { ttl: Duration::from_secs(60), ..ask("lead", "lead") };
    let lead = granted(&holder.acquire(lead).await.unwrap()).unwrap();
    let mut overtaken = 0;
    for polls in 1..100 {
        let (name, op) = (format!("n/{polls}"), format!("op-{polls}"));
        let last = format!("last-{polls}");
        for op in [format!("first-{polls}"), last.clone()] {
            assert!(granted(&holder.acquire(permit(&name, &op, 2)).await.unwrap()).is_some());
        }
        let require = vec![("lead".to_owned(), lead)];
        let request = AcquireRequest { line: Line::Join, require, ..permit(&name, &op, 2) };
        let joined = other.acquire(request.clone()).await.unwrap();
        assert!(matches!(joined, Acquired::Queued { .. }), "{joined:?}");
        holder.release(&last).await.unwrap();
        let mut asked = other.acquire(request.clone());
        if dropped_after(&mut asked, polls).await {
            break;
        }
        admin.resize(&name, 1).await.unwrap();
        let alone = admin.inspect(&name).await.unwrap().holders.len() == 1;
        let answer = asked.await.unwrap();
        if !alone {
            continue;
        }
        overtaken += 1;
        assert!(
            matches!(answer, Acquired::Queued { .. }),
            "one of one is out, and 2 were the base of {answer:?}"
        );
        assert_eq!(admin.inspect(&name).await.unwrap().waiting, 1, "it keeps its place");
        admin.resize(&name, 2).await.unwrap();
        let answer = other.acquire(request).await.unwrap();
        assert!(granted(&answer).is_some(), "{answer:?}");
    }
    assert!(overtaken > 0, "it never came after a look");
}

async fn alike(world: World) {
    let store = world.store().await;
    take(&store, "a/b", "long").await.unwrap();
    take(&store, "a", "short").await.expect("the lock of a longer name is another one");
    assert!(take(&store, "a", "other").await.is_none());
    assert!(matches!(store.acquire(in_line("a", "line")).await.unwrap(), Acquired::Queued { .. }));
    take(&store, "a/c", "later").await.unwrap();
    store.release("short").await.unwrap();
    assert!(granted(&store.acquire(in_line("a", "line")).await.unwrap()).is_some());
    assert_eq!(store.inspect("a").await.unwrap().holders.len(), 1);
    let misuse = store.acquire(ask(".mainstay/o", "op")).await.unwrap_err();
    assert_eq!(misuse.kind(), ErrorKind::ApiMisuse);
}

async fn adopts(world: World) {
    let [here, there] = world.stores().await;
    let token = take(&here, "n", "op").await.unwrap();
    assert_eq!(take(&there, "n", "op").await, Some(token), "the same operation, after a restart");
    assert!(matches!(there.renew("op").await.unwrap(), Renewed::Renewed(g) if g[0].token == token));
    assert_eq!(there.acquire(ask("m", "op")).await.unwrap_err().kind(), ErrorKind::ApiMisuse);
    assert_eq!(there.release("op").await.unwrap(), Released::Clean);
    assert_eq!(here.renew("op").await.unwrap(), Renewed::Lost);
    assert_eq!(here.release("op").await.unwrap(), Released::AlreadyGone);
}
