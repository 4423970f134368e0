//! A primary, a standby, and what a failover does to leases.

use std::time::Duration;

use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_postgres::fence::{self, Column};
use mainstay_postgres::{PostgresConfig, PostgresLeases};
use mainstay_sim::servers::Postgres;
use mainstay_store::lease::{AcquireRequest, Acquired, Released, Renewed};
use mainstay_store::{ErrorKind, FenceCheck, LeaseStore};

use crate::world::{Test, World, ask, connect, open, take, until};

pub(crate) const TESTS: &[Test] = &[
    ("f25_a_promotion_that_lost_the_grant_still_refuses_its_late_write", |w| Box::pin(f25_lossy(w))),
    ("f25_a_standby_grants_nothing_and_clients_follow_the_promotion", |w| Box::pin(f25_follow(w))),
    ("f25_a_server_that_was_killed_keeps_what_it_granted", |w| Box::pin(f25_killed(w))),
    ("f25_a_paused_server_leaves_the_outcome_open_and_the_lease_ends_by_its_ttl", |w| {
        Box::pin(f25_paused(w))
    }),
];

const TTL: Duration = Duration::from_secs(60);

fn long(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest { ttl: TTL, ..ask(name, op) }
}

/// A lease that the primary granted and the standby never saw.
async fn f25_lossy(world: World) {
    let mut primary = world.kit.primary(&[]).unwrap();
    let proxy = mainstay_chaos::proxy::TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(primary.address()));
    let standby = primary.standby_through(proxy.address(), &[]).unwrap();
    let table =
        "create table t (id int primary key, v text, fence int8 not null); insert into t values (1, '', 0)";
    primary.sql(table).unwrap();
    let old = open(PostgresConfig::builder(&primary.url())).await;
    take(&old, "n", "before").await.unwrap();
    old.release("before").await.unwrap();
    standby.caught_up(&primary).unwrap();
    // From here on nothing reaches the standby.
    proxy.set_upstream(None);
    proxy.cut();
    let Acquired::Granted(grants) = old.acquire(long("n", "lost")).await.unwrap() else { panic!() };
    let lost = grants[0].token;
    primary.kill().unwrap();
    standby.promote().unwrap();

    let new = open(PostgresConfig::builder(&standby.url())).await;
    assert!(new.inspect("n").await.unwrap().last_token < lost, "the grant is lost");
    let later = take(&new, "n", "next").await.expect("and so is the lease");
    assert!(later > lost, "{later} after {lost}");
    assert_eq!((lost.get() >> 48, later.get() >> 48), (1, 2), "the timeline");
    assert_eq!(new.renew("lost").await.unwrap(), Renewed::Lost);
    // Its holder wakes up and writes: the data refuses it.
    let client = connect(&standby.url()).await;
    let column = Column::new("t", "fence").unwrap();
    let update = format!("update t set v = $1, {} where id = 1 and {}", column.set(2), column.accepts(2));
    for (who, token, rows) in [("next", later, 1), ("lost", lost, 0)] {
        let token = i64::try_from(token.get()).unwrap();
        assert_eq!(client.execute(&update, &[&who, &token]).await.unwrap(), rows, "{who}");
    }
}

async fn f25_follow(world: World) {
    let mut primary = world.kit.primary(&[]).unwrap();
    let [first, second] = [primary.standby(&[]).unwrap(), primary.standby(&[]).unwrap()];
    let hosts = [&first, &primary, &second].map(|p| p.address());
    let (ips, ports): (Vec<String>, Vec<String>) =
        hosts.iter().map(|a| (a.ip().to_string(), a.port().to_string())).unzip();
    let url = format!("host={} port={} user=postgres dbname=postgres", ips.join(","), ports.join(","));
    let store = open(PostgresConfig::builder(&url).request_timeout(Duration::from_secs(2))).await;
    let Acquired::Granted(grants) = store.acquire(long("n", "op")).await.unwrap() else { panic!() };
    first.caught_up(&primary).unwrap();
    second.caught_up(&primary).unwrap();
    // A standby alone is refused when it is opened, not at the first lease.
    let alone = PostgresConfig::builder(&first.url()).build().unwrap();
    let refused = PostgresLeases::open(alone, &Runtime::system()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);

    primary.kill().unwrap();
    let down = store.renew("op").await.unwrap_err();
    assert!(down.is_retryable(), "{down}");
    first.promote().unwrap();
    second.follow(first.address()).unwrap();
    until("the client has found the new primary", || async {
        matches!(store.renew("op").await, Ok(Renewed::Renewed(g)) if g[0].token == grants[0].token)
    })
    .await;
    assert_eq!(
        store.release("op").await.unwrap(),
        Released::Clean,
        "a grant that was replicated is still there"
    );
    let later = take(&store, "n", "next").await.unwrap();
    assert_eq!(later.get() >> 48, 2);
    second.caught_up(&first).unwrap();
    let seen = second.sql("select token from mainstay_lease where name = 'n'").unwrap();
    assert_eq!(seen.trim(), later.to_string(), "the other standby follows");
}

async fn f25_killed(world: World) {
    let mut primary = world.kit.primary(&[]).unwrap();
    let store = open(PostgresConfig::builder(&primary.url()).request_timeout(Duration::from_secs(2))).await;
    let Acquired::Granted(grants) = store.acquire(long("n", "op")).await.unwrap() else { panic!() };
    primary.kill().unwrap();
    assert!(store.acquire(ask("n", "other")).await.unwrap_err().is_retryable());
    primary.restart().unwrap();
    until("it is there again", || async {
        matches!(store.acquire(ask("n", "other")).await, Ok(Acquired::Held { .. }))
    })
    .await;
    let Renewed::Renewed(renewed) = store.renew("op").await.unwrap() else {
        panic!("a synced grant survives")
    };
    assert_eq!(renewed[0].token, grants[0].token);
    store.release("op").await.unwrap();
    assert!(take(&store, "n", "next").await.unwrap() > grants[0].token);
}

async fn f25_paused(world: World) {
    let primary = world.kit.primary(&[]).unwrap();
    let store =
        open(PostgresConfig::builder(&primary.url()).request_timeout(Duration::from_millis(300))).await;
    take(&store, "n", "op").await.unwrap();
    store.release("op").await.unwrap();
    primary.pause().unwrap();
    let short = AcquireRequest { ttl: Duration::from_millis(500), ..ask("n", "unknown") };
    let open = store.acquire(short).await.unwrap_err();
    assert_eq!(open.outcome(), mainstay_store::Outcome::Unknown);
    SystemClock::new().sleep(Duration::from_millis(300)).await;
    primary.resume().unwrap();
    // Nobody releases: what may have been granted lasts one ttl at most.
    until("the name is free", || async { take(&store, "n", "next").await.is_some() }).await;
    fence_outlives(&primary, &store).await;
}

/// A table of fences on the same server: what was announced stays.
async fn fence_outlives(primary: &Postgres, store: &PostgresLeases) {
    let client = connect(&primary.url()).await;
    client.batch_execute(fence::CREATE).await.unwrap();
    let token = store.inspect("n").await.unwrap().last_token;
    assert_eq!(fence::advance(&client, "n", token).await.unwrap(), FenceCheck::Pass);
}
