//! Leases in rows: what the field has lost locks by.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use mainstay_clock::{Clock, Runtime};
use mainstay_postgres::{Connected, Connector, PostgresConfig, Wake};
use mainstay_store::lease::{AcquireRequest, Acquired, Line, Released, Renewed, Share};
use mainstay_store::{BoxFuture, ErrorKind, FencingToken, LeaseStore, Outcome};
use tokio_postgres::NoTls;

use mainstay_chaos::proxy::{TcpMode, TcpProxy};
use mainstay_sim::servers::Postgres;

use crate::world::{SILENCE, ServerClock, TTL, Test, World, ask, connect, direct, open, opened, take, until};

pub(crate) const TESTS: &[Test] = &[
    ("tables_of_an_earlier_program_are_given_what_they_lack", |w| Box::pin(earlier(w))),
    ("f04_a_grant_whose_reply_was_lost_is_granted_again_with_its_token", |w| Box::pin(f04(w))),
    ("f05_an_acquisition_that_arrives_after_its_release_leaves_nothing", |w| Box::pin(f05(w))),
    ("s4_a_release_whose_answer_was_lost_is_clean_when_it_is_repeated", |w| Box::pin(released_unheard(w))),
    ("f06_connections_are_kept_and_bounded", |w| Box::pin(f06(w))),
    ("f08_one_of_many_takes_over_what_ran_out", |w| Box::pin(f08(w))),
    ("f11_a_server_clock_that_jumps_never_lowers_a_token", |w| Box::pin(f11(w))),
    ("f12_a_table_that_is_not_ours_is_refused", |w| Box::pin(f12(w))),
    ("f14_settings_that_cannot_hold_are_refused_at_open", |w| Box::pin(f14(w))),
    ("f14_nothing_is_granted_once_commits_are_no_longer_synced", |w| Box::pin(f14_switched_off(w))),
    ("f16_asking_again_keeps_the_token_and_sets_the_ttl", |w| Box::pin(f16(w))),
    ("f18_a_repeated_release_ends_no_newer_lease", |w| Box::pin(f18(w))),
    ("f19_an_acquisition_dropped_at_every_point_leaves_nothing_after_its_release", |w| Box::pin(f19(w))),
    ("f20_the_same_owner_with_another_operation_frees_nothing", |w| Box::pin(f20(w))),
    ("f21_the_permit_of_the_dead_comes_back_by_the_servers_time", |w| Box::pin(f21(w))),
    ("f22_an_owners_earlier_lease_is_not_taken_for_its_present_one", |w| Box::pin(f22(w))),
    ("f26_a_row_that_was_deleted_does_not_restart_its_tokens", |w| Box::pin(f26(w))),
    ("f28_the_ttl_counts_from_the_grant_and_not_from_the_question", |w| Box::pin(f28(w))),
    ("f38_tokens_are_drawn_in_the_order_of_the_grants", |w| Box::pin(f38(w))),
    ("f41_an_epoch_lies_above_every_earlier_token", |w| Box::pin(f41(w))),
    ("f42_a_row_without_end_is_held_and_its_time_is_unknown", |w| Box::pin(f42(w))),
    ("a_renewal_is_all_names_or_none", |w| Box::pin(all_or_none(w))),
    ("a_release_wakes_another_process", |w| Box::pin(wakes(w))),
    ("the_listener_comes_back_and_tells_everybody_to_look", |w| Box::pin(listens_again(w))),
    ("used_up_tokens_are_an_error_and_never_wrap", |w| Box::pin(used_up(w))),
];

/// Connects to wherever it is told at the moment.
#[derive(Debug)]
pub(crate) struct Switch(pub(crate) Mutex<String>);

impl Switch {
    pub(crate) fn to(url: String) -> Arc<Self> {
        Arc::new(Self(Mutex::new(url)))
    }

    fn set(&self, url: String) {
        *self.0.lock().unwrap() = url;
    }
}

impl Connector for Switch {
    fn connect(&self) -> BoxFuture<'_, Result<Connected, tokio_postgres::Error>> {
        let url = self.0.lock().unwrap().clone();
        Box::pin(async move {
            let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
            Ok(Connected::new(client, connection))
        })
    }
}

pub(crate) async fn proxied(world: &World) -> TcpProxy {
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(world.primary.address()));
    proxy
}

async fn f04(world: World) {
    let (proxy, table) = (proxied(&world).await, world.table());
    let config = direct(&Postgres::url_at(proxy.address())).table(&table);
    let store = open(config.wake(Wake::Timers)).await;
    let seen = open(direct(&world.primary.url()).table(&table).wake(Wake::Timers)).await;
    proxy.set_mode(TcpMode::RepliesLost);
    let lose = async {
        until("it was granted", || async { !seen.inspect("n").await.unwrap().holders.is_empty() }).await;
        proxy.cut();
        proxy.set_mode(TcpMode::Pass);
    };
    let (lost, ()) = tokio::join!(store.acquire(ask("n", "op")), lose);
    let lost = lost.unwrap_err();
    assert_eq!((lost.kind(), lost.outcome()), (ErrorKind::Unavailable, Outcome::Unknown));
    let first = seen.inspect("n").await.unwrap().last_token;
    assert_eq!(take(&store, "n", "op").await, Some(first));
    assert_eq!(store.release("op").await.unwrap(), Released::Clean);
}

async fn released_unheard(world: World) {
    /// No machine stands still for as long.
    const LONG: Duration = Duration::from_secs(900);
    let (proxy, table) = (proxied(&world).await, world.table());
    let config = direct(&Postgres::url_at(proxy.address())).table(&table);
    let store = open(config.wake(Wake::Timers)).await;
    let seen = open(direct(&world.primary.url()).table(&table).wake(Wake::Timers)).await;
    let of = |names: &[&str], op: &str| AcquireRequest {
        names: names.iter().map(|&n| n.to_owned()).collect(),
        ttl: LONG,
        ..ask("n", op)
    };
    for (request, broken, expected) in [
        (of(&["n"], "one"), false, Released::Clean),
        (of(&["n", "o"], "two"), false, Released::Clean),
        (of(&["n"], "broken"), true, Released::AlreadyGone),
    ] {
        assert!(matches!(store.acquire(request.clone()).await.unwrap(), Acquired::Granted(_)));
        let (first, op) = (request.names[0].as_str(), request.op_id.as_str());
        if broken {
            seen.break_lease(first).await.unwrap();
        }
        proxy.set_mode(TcpMode::RepliesLost);
        let lose = async {
            until("it was done", || async { seen.inspect(first).await.unwrap().holders.is_empty() }).await;
            proxy.cut();
            proxy.set_mode(TcpMode::Pass);
        };
        let (lost, ()) = tokio::join!(store.release(op), lose);
        let lost = lost.unwrap_err();
        assert_eq!((lost.is_retryable(), lost.outcome()), (true, Outcome::Unknown), "{op}: {lost}");
        let next = format!("after {op}");
        assert!(take(&seen, first, &next).await.is_some());
        assert_eq!(store.release(op).await.unwrap(), expected, "{op}");
        assert_eq!(store.release(op).await.unwrap(), Released::AlreadyGone, "{op}: that was answered");
        assert_eq!(seen.release(&next).await.unwrap(), Released::Clean);
    }
}

async fn f05(world: World) {
    let proxy = proxied(&world).await;
    let switch = Switch::to(format!("{}?application_name=f05", Postgres::url_at(proxy.address())));
    let table = world.table();
    let config = PostgresConfig::through(Arc::clone(&switch) as Arc<dyn Connector>).table(&table);
    let store = opened(config.request_timeout(SILENCE).wake(Wake::Timers)).await;
    // Held back on its way; the caller gives up.
    proxy.set_mode(TcpMode::Blackhole);
    let lost = store.acquire(ask("n", "op")).await.unwrap_err();
    assert_eq!(lost.outcome(), Outcome::Unknown);
    // Its release takes another way and is there first.
    switch.set(world.primary.url());
    until("it is given back", || async {
        store.release("op").await.is_ok_and(|released| {
            assert_eq!(released, Released::AlreadyGone);
            true
        })
    })
    .await;
    proxy.set_mode(TcpMode::Pass);
    // What was held back has reached the server when its connection has ended there.
    let admin = world.client().await;
    until("the delayed connection has ended", || async {
        let sql = "select count(*) from pg_stat_activity where application_name = 'f05'";
        admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    // The same table, with patience.
    let store = open(direct(&world.primary.url()).table(&table)).await;
    let left = store.inspect("n").await.unwrap();
    assert!(
        left.holders.is_empty() && left.last_token == FencingToken::ZERO,
        "refused when it came: {left:?}"
    );
    assert!(take(&store, "n", "other").await.is_some());
}

async fn f06(world: World) {
    let url = format!("{}?application_name=f06", world.primary.url());
    let store = open(direct(&url).table(&world.table()).connections(2)).await;
    let admin = world.client().await;
    let pids = async || -> Vec<i32> {
        let sql = "select coalesce(array_agg(pid order by pid), '{}') from pg_stat_activity where application_name = 'f06'";
        admin.query_one(sql, &[]).await.unwrap().get(0)
    };
    let pair = async |n: u32| {
        let op = format!("op-{n}");
        assert!(take(&store, &format!("n-{n}"), &op).await.is_some());
        assert_eq!(store.release(&op).await.unwrap(), Released::Clean);
    };
    futures_util::future::join_all((0..40).map(pair)).await;
    let first = pids().await;
    assert!((1..=2).contains(&first.len()), "{first:?}");
    for n in 100..120 {
        pair(n).await;
    }
    assert_eq!(pids().await, first, "nobody connected anew");
}

async fn f08(world: World) {
    let clock = ServerClock::make(&world, "f08").await;
    let table = world.table();
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(open(direct(&clock.url(&world)).table(&table).connections(2)).await);
    }
    for round in 0..20 {
        assert!(take(&stores[0], "n", &format!("dead-{round}")).await.is_some());
        clock.sleep(TTL).await;
        let tries = stores
            .iter()
            .enumerate()
            .map(|(i, s)| async move { take(s, "n", &format!("{round}-{i}")).await.map(|_| i) });
        let won: Vec<usize> = futures_util::future::join_all(tries).await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1, "round {round}: {won:?}");
        stores[0].release(&format!("{round}-{}", won[0])).await.unwrap();
    }
}

async fn f11(world: World) {
    let clock = ServerClock::make(&world, "f11").await;
    let store = open(direct(&clock.url(&world)).table(&world.table())).await;
    let first = take(&store, "n", "a").await.unwrap();
    // An hour back: the lease is stuck, and that can be seen and ended.
    clock.jump(-3_600_000_000).await;
    let Acquired::Held { remaining: Some(left), .. } = store.acquire(ask("n", "b")).await.unwrap() else {
        panic!()
    };
    assert!(left > Duration::from_secs(3_000), "{left:?}");
    let burned = store.break_lease("n").await.unwrap();
    let second = take(&store, "n", "b").await.unwrap();
    assert!(first < burned && burned < second, "{first} {burned} {second}");
    // Two hours on: it ends early, the next token is larger, and whoever held it learns it.
    clock.jump(7_200_000_000).await;
    let third = take(&store, "n", "c").await.unwrap();
    assert!(third > second);
    assert_eq!(store.renew("b").await.unwrap(), Renewed::Lost);
}

async fn f12(world: World) {
    let table = world.table();
    world.client().await.batch_execute(&format!("create table {table} (name text)")).await.unwrap();
    let config = direct(&world.primary.url()).table(&table).build().unwrap();
    let refused = mainstay_postgres::PostgresLeases::open(config, &Runtime::system()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    let columns = world.primary.sql(&format!(
        "select count(*) from pg_attribute where attrelid = '{table}'::regclass and attnum > 0"
    ));
    assert_eq!(columns.unwrap().trim(), "1", "it was not touched");
    let table = world.table();
    let newer =
        format!("create table {table} (n int); comment on table {table} is 'mainstay leases, version 2'");
    world.client().await.batch_execute(&newer).await.unwrap();
    let config = direct(&world.primary.url()).table(&table).build().unwrap();
    let refused = mainstay_postgres::PostgresLeases::open(config, &Runtime::system()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NewerVersion);
}

async fn f14(world: World) {
    let url = format!("{}?options=-csynchronous_commit%3Doff", world.primary.url());
    let config = direct(&url).table(&world.table());
    let refused = mainstay_postgres::PostgresLeases::open(config.build().unwrap(), &Runtime::system())
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert!(refused.to_string().contains("synchronous_commit"), "{refused}");
    let weak = mainstay_store::lease::Fencing::WhileStateSurvives;
    let config = direct(&url).table(&world.table()).fencing(weak);
    assert_eq!(open(config).await.guarantees().fencing, weak);
    let nowhere = direct("postgres://nobody@127.255.255.254:1/x").request_timeout(SILENCE).build().unwrap();
    let refused = mainstay_postgres::PostgresLeases::open(nowhere, &Runtime::system()).await.unwrap_err();
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Unavailable, Outcome::NotApplied));
    for (field, builder) in [
        ("connections", world.config().connections(0)),
        ("request_timeout", world.config().request_timeout(Duration::ZERO)),
        ("epoch", world.config().epoch(20_000)),
        ("table", world.config().table("lease; drop table x")),
        ("fencing", world.config().fencing(mainstay_store::lease::Fencing::None)),
        ("url", PostgresConfig::builder("postgres://me:secret@/x?port=1&hurz=2")),
    ] {
        let refused = builder.build().unwrap_err();
        assert_eq!(refused.field(), field);
        assert!(!refused.to_string().contains("secret"), "{refused}");
    }
}

/// The setting is changed under connections that were looked at when they were opened.
async fn f14_switched_off(world: World) {
    let server = world.kit.primary(&[]).unwrap();
    let one = || open(direct(&server.url()).connections(1));
    let joined = AcquireRequest { line: Line::Join, ttl: Duration::from_secs(60), ..ask("w", "waiter") };
    let requests = [
        AcquireRequest { share: Share::Permit { limit: 3, count: 1 }, ..ask("p", "permit") },
        AcquireRequest { share: Share::Shared, ..ask("r", "reader") },
        AcquireRequest { names: vec!["m1".to_owned(), "m2".to_owned()], ..ask("m1", "several") },
        joined.clone(),
    ];
    let holder = one().await;
    take(&holder, "w", "holder").await.unwrap();
    assert!(matches!(holder.acquire(joined).await.unwrap(), Acquired::Queued { .. }));
    let mut stores = Vec::new();
    for request in requests {
        stores.push((one().await, request));
    }
    server.sql("alter system set synchronous_commit = off").unwrap();
    server.sql("select pg_reload_conf()").unwrap();
    assert_eq!(holder.release("holder").await.unwrap(), Released::Clean, "what is given back may be lost");
    for (n, (store, request)) in stores.iter().enumerate() {
        // Its only connection is kept after this refusal, so what follows meets the setting in a transaction.
        until("the setting is read", async || {
            let probe = store.acquire(ask(&format!("probe/{n}"), &format!("probe-{n}"))).await;
            probe.is_err_and(|e| e.kind() == ErrorKind::Unsupported)
        })
        .await;
        let refused = store.acquire(request.clone()).await.unwrap_err();
        assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::Unsupported, Outcome::NotApplied));
        assert!(refused.to_string().contains("switched off"), "{refused}");
    }
    server.sql("alter system reset synchronous_commit").unwrap();
    server.sql("select pg_reload_conf()").unwrap();
    for (store, request) in &stores {
        until("it is granted", async || {
            let answer = store.acquire(request.clone()).await;
            matches!(answer, Ok(Acquired::Granted(_)))
        })
        .await;
        assert_eq!(store.inspect(&request.names[0]).await.unwrap().holders.len(), 1, "nobody before it");
    }
}

async fn f16(world: World) {
    let store = world.store().await;
    let first = take(&store, "n", "op").await.unwrap();
    let longer = AcquireRequest { ttl: 10 * TTL, ..ask("n", "op") };
    let Acquired::Granted(again) = store.acquire(longer).await.unwrap() else { panic!() };
    assert_eq!(again[0].token, first);
    let left = store.inspect("n").await.unwrap().holders[0].remaining;
    assert!(left > 5 * TTL, "the new ttl counts: {left:?}");
    let Renewed::Renewed(renewed) = store.renew("op").await.unwrap() else { panic!() };
    assert_eq!((renewed[0].token, renewed[0].ttl), (first, 10 * TTL));
    store.release("op").await.unwrap();
    assert!(take(&store, "n", "op-2").await.unwrap() > first, "the counter outlives the lease");
}

async fn f18(world: World) {
    let store = world.store().await;
    take(&store, "n", "a").await.unwrap();
    assert_eq!(store.release("a").await.unwrap(), Released::Clean);
    let token = take(&store, "n", "b").await.unwrap();
    assert_eq!(store.release("a").await.unwrap(), Released::AlreadyGone);
    assert_eq!(store.inspect("n").await.unwrap().holders[0].token, token);
}

async fn f19(world: World) {
    let store = world.store().await;
    let requests = [
        ask("n", "single"),
        AcquireRequest { names: vec!["m1".to_owned(), "m2".to_owned()], ..ask("m1", "multi") },
        AcquireRequest { share: Share::Shared, ..ask("r", "shared") },
        AcquireRequest { line: Line::Join, ..ask("held", "waiting") },
    ];
    take(&store, "held", "holder").await.unwrap();
    for request in requests {
        let mut ended = false;
        for polls in 1..400 {
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

/// Polls `future` at most `polls` times, as often as it is woken, and drops it then. True when it had ended.
async fn dropped_after<F: Future + Unpin>(mut future: F, polls: usize) -> bool {
    let mut left = polls;
    std::future::poll_fn(move |cx| {
        left -= 1;
        let ended = std::pin::Pin::new(&mut future).poll(cx).is_ready();
        if ended || left == 0 { std::task::Poll::Ready(ended) } else { std::task::Poll::Pending }
    })
    .await
}

async fn f20(world: World) {
    let store = world.store().await;
    let own = |op: &str| AcquireRequest { owner: "host-7".to_owned(), ..ask("n", op) };
    assert!(matches!(store.acquire(own("old-run")).await.unwrap(), Acquired::Granted(_)));
    store.break_lease("n").await.unwrap();
    assert!(matches!(store.acquire(own("new-run")).await.unwrap(), Acquired::Granted(_)));
    assert_eq!(store.release("old-run").await.unwrap(), Released::AlreadyGone);
    assert_eq!(store.renew("old-run").await.unwrap(), Renewed::Lost);
    assert_eq!(store.inspect("n").await.unwrap().holders.len(), 1);
}

async fn f21(world: World) {
    let clock = ServerClock::make(&world, "f21").await;
    let store = open(direct(&clock.url(&world)).table(&world.table())).await;
    let permit = |op: &str| AcquireRequest { share: Share::Permit { limit: 2, count: 1 }, ..ask("n", op) };
    for op in ["alive", "dead"] {
        assert!(matches!(store.acquire(permit(op)).await.unwrap(), Acquired::Granted(_)));
    }
    assert!(matches!(store.acquire(permit("next")).await.unwrap(), Acquired::Held { .. }));
    clock.sleep(TTL / 2).await;
    assert!(matches!(store.renew("alive").await.unwrap(), Renewed::Renewed(_)));
    clock.sleep(TTL / 2).await;
    assert!(
        matches!(store.acquire(permit("next")).await.unwrap(), Acquired::Granted(_)),
        "the dead one's permit"
    );
    assert!(matches!(store.acquire(permit("more")).await.unwrap(), Acquired::Held { .. }), "and only that");
}

async fn f22(world: World) {
    let store = world.store().await;
    let own = |op: &str| AcquireRequest { owner: "node-7".to_owned(), ..ask("n", op) };
    assert!(matches!(store.acquire(own("before-restart")).await.unwrap(), Acquired::Granted(_)));
    let Acquired::Held { by, .. } = store.acquire(own("after-restart")).await.unwrap() else { panic!() };
    assert_eq!(by, "node-7");
    assert_eq!(store.renew("after-restart").await.unwrap(), Renewed::Lost);
}

async fn f26(world: World) {
    let table = world.table();
    let store = open(direct(&world.primary.url()).table(&table)).await;
    let first = take(&store, "n", "a").await.unwrap();
    world.primary.sql(&format!("delete from {table}")).unwrap();
    assert_eq!(store.renew("a").await.unwrap(), Renewed::Lost);
    assert!(take(&store, "n", "b").await.unwrap() > first, "the clock is a floor");
}

async fn f28(world: World) {
    let clock = ServerClock::make(&world, "f28").await;
    let table = world.table();
    let store = open(direct(&clock.url(&world)).table(&table)).await;
    take(&store, "n", "a").await.unwrap();
    store.release("a").await.unwrap();
    let mut admin = connect(&clock.url(&world)).await;
    let blocker = admin.transaction().await.unwrap();
    blocker.execute(&format!("select from {table} where name = 'n' for update"), &[]).await.unwrap();
    let waiting = store.acquire(ask("n", "b"));
    let unlock = async {
        let client = world.client().await;
        until("the question waits", || async {
            let waits = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%' || $1 || '%'";
            client.query_one(waits, &[&table]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
        // Longer than the ttl: counted from the question the lease would be over when it is granted.
        clock.sleep(2 * TTL).await;
        blocker.commit().await.unwrap();
    };
    let (granted, ()) = tokio::join!(waiting, unlock);
    assert!(matches!(granted.unwrap(), Acquired::Granted(_)));
    let left = store.inspect("n").await.unwrap().holders[0].remaining;
    assert!(left > TTL / 2, "{left:?}");
}

async fn f38(world: World) {
    let table = world.table();
    let mut tasks = Vec::new();
    let order: Arc<Mutex<Vec<FencingToken>>> = Arc::default();
    for n in 0..4 {
        let store = open(direct(&world.primary.url()).table(&table).connections(1)).await;
        let order = Arc::clone(&order);
        tasks.push(async move {
            let mut won = 0;
            for round in 0..2_000 {
                let op = format!("{n}-{round}");
                if let Some(token) = take(&store, "n", &op).await {
                    // Only the holder writes here.
                    order.lock().unwrap().push(token);
                    store.release(&op).await.unwrap();
                    won += 1;
                }
                if won == 10 {
                    break;
                }
            }
        });
    }
    futures_util::future::join_all(tasks).await;
    let order = order.lock().unwrap();
    assert_eq!(order.len(), 40);
    assert!(order.windows(2).all(|w| w[0] < w[1]), "{order:?}");
}

async fn f41(world: World) {
    let table = world.table();
    let with = |epoch| direct(&world.primary.url()).table(&table).epoch(epoch);
    let (old, new) = (open(with(0)).await, open(with(5)).await);
    let first = take(&old, "n", "a").await.unwrap();
    assert_eq!(first.get() >> 48, 1, "the timeline");
    old.release("a").await.unwrap();
    let second = take(&new, "n", "b").await.unwrap();
    assert_eq!(second.get() >> 48, 6);
    new.release("b").await.unwrap();
    assert!(take(&old, "n", "c").await.unwrap() > second, "whoever was not told goes on above it");
}

async fn f42(world: World) {
    let table = world.table();
    let store = open(direct(&world.primary.url()).table(&table)).await;
    let foreign = format!(
        "insert into {table} (name, op_id, owner, token, expires_at) values ('n', '\\x00', 'by hand', 7, 'infinity')"
    );
    world.primary.sql(&foreign).unwrap();
    let Acquired::Held { by, remaining, .. } = store.acquire(ask("n", "a")).await.unwrap() else { panic!() };
    assert_eq!((by.as_str(), remaining), ("by hand", None));
    let line = AcquireRequest { line: Line::Join, ..ask("n", "b") };
    store.acquire(line).await.unwrap();
    assert!(take(&store, "n", "a").await.is_none(), "a line does not end it either");
    assert!(store.break_lease("n").await.unwrap() > FencingToken::new(7));
}

async fn all_or_none(world: World) {
    let store = world.store().await;
    let both = AcquireRequest { names: vec!["m1".to_owned(), "m2".to_owned()], ..ask("m1", "op") };
    let Acquired::Granted(grants) = store.acquire(both.clone()).await.unwrap() else { panic!() };
    assert!(matches!(store.renew("op").await.unwrap(), Renewed::Renewed(g) if g == grants));
    store.break_lease("m1").await.unwrap();
    assert_eq!(store.renew("op").await.unwrap(), Renewed::Lost, "half of it is not it");
    let Acquired::Granted(anew) = store.acquire(both).await.unwrap() else { panic!() };
    assert!(anew[0].token > grants[0].token && anew[1].token > grants[1].token);
    assert_eq!(store.release("op").await.unwrap(), Released::Clean);
}

async fn wakes(world: World) {
    let table = world.table();
    let config = || direct(&world.primary.url()).table(&table);
    let (here, there) = (open(config()).await, open(config()).await);
    let admin = world.client().await;
    take(&here, "space/n", "a").await.unwrap();
    let mut hint = there.watch("space/n");
    // The first hint says that somebody listens now.
    hint.await.unwrap();
    hint = there.watch("space/n");
    let listens =
        format!("select count(*) from pg_stat_activity where query like 'listen \"{table}:space\"%'");
    assert_eq!(admin.query_one(&listens, &[]).await.unwrap().get::<_, i64>(0), 1);
    here.release("a").await.unwrap();
    hint.await.unwrap();
}

async fn listens_again(world: World) {
    let table = world.table();
    let store = open(direct(&world.primary.url()).table(&table)).await;
    store.watch("space/n").await.unwrap();
    let hint = store.watch("space/n");
    let cut = format!(
        "select pg_terminate_backend(pid) from pg_stat_activity where query like 'listen \"{table}:%'"
    );
    world.primary.sql(&cut).unwrap();
    // Nobody released anything; what happened meanwhile is unknown, so everybody looks.
    hint.await.unwrap();
    let client = connect(&world.primary.url()).await;
    until("it listens again", || async {
        let sql = format!("select count(*) from pg_stat_activity where query like 'listen \"{table}:%'");
        client.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
}

async fn used_up(world: World) {
    let table = world.table();
    let store = open(direct(&world.primary.url()).table(&table)).await;
    take(&store, "n", "a").await.unwrap();
    store.release("a").await.unwrap();
    let last = (1_i64 << 50) - 1;
    world.primary.sql(&format!("update {table} set token = {last}")).unwrap();
    let refused = store.acquire(ask("n", "b")).await.unwrap_err();
    assert_eq!((refused.kind(), refused.outcome()), (ErrorKind::TooLarge, Outcome::NotApplied));
    let shared = AcquireRequest { share: Share::Shared, ..ask("n", "b") };
    assert_eq!(store.acquire(shared).await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert!(store.inspect("n").await.unwrap().holders.is_empty());
}

async fn earlier(world: World) {
    let table = world.table();
    let config = || direct(&world.primary.url()).table(&table);
    drop(open(config()).await);
    world.primary.sql(&format!("alter table {table}_place drop column granted_at")).unwrap();
    let store = open(config()).await;
    let read = |op| AcquireRequest { share: Share::Shared, ..ask("n", op) };
    for op in ["a", "b"] {
        assert!(matches!(store.acquire(read(op)).await.unwrap(), Acquired::Granted(_)));
    }
    world.primary.sql(&format!("update {table}_place set granted_at = null where owner = 'a'")).unwrap();
    let info = store.inspect("n").await.unwrap();
    let told: Vec<_> = info.holders.iter().map(|h| (h.owner.as_str(), h.since.is_some())).collect();
    assert_eq!(told, [("a", false), ("b", true)], "what an earlier program wrote is unknown");
    // Renewed, it is still what it was.
    assert!(matches!(store.renew("a").await.unwrap(), Renewed::Renewed(_)));
    assert_eq!(store.inspect("n").await.unwrap().holders[0].since, None);
}
