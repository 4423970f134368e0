//! A primary, a standby, and what a failover does to leases.

use std::time::Duration;

use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_postgres::PostgresLeases;
use mainstay_postgres::fence::{self, Column};
use mainstay_sim::servers::Postgres;
use mainstay_store::lease::{AcquireRequest, Acquired, Renewed};
use mainstay_store::{ErrorKind, FenceCheck, LeaseStore};

use crate::world::{SILENCE, Test, World, ask, connect, direct, open, opened, take, until};

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

/// The first answer of a store whose requests end early.
async fn answered(store: &PostgresLeases, request: AcquireRequest) -> Acquired {
    let answer = std::sync::Mutex::new(None);
    until("an acquisition is answered", || async {
        match store.acquire(request.clone()).await {
            Ok(acquired) => *answer.lock().unwrap() = Some(acquired),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        answer.lock().unwrap().is_some()
    })
    .await;
    answer.into_inner().unwrap().unwrap()
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
    let old = open(direct(&primary.url())).await;
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

    let new = open(direct(&standby.url())).await;
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
    let store = opened(direct(&url).request_timeout(SILENCE)).await;
    let Acquired::Granted(grants) = answered(&store, long("n", "op")).await else { panic!() };
    first.caught_up(&primary).unwrap();
    second.caught_up(&primary).unwrap();
    // A standby alone is refused when it is opened, not at the first lease.
    let alone = direct(&first.url()).request_timeout(SILENCE).build().unwrap();
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
    // Nobody else ends it: a grant that was replicated is still there until it is given back.
    until("it is given back", || async { store.release("op").await.is_ok() }).await;
    let Acquired::Granted(grants) = answered(&store, long("n", "next")).await else { panic!() };
    let later = grants[0].token;
    assert_eq!(later.get() >> 48, 2);
    second.caught_up(&first).unwrap();
    let seen = second.sql("select token from mainstay_lease where name = 'n'").unwrap();
    assert_eq!(seen.trim(), later.to_string(), "the other standby follows");
}

async fn f25_killed(world: World) {
    let mut primary = world.kit.primary(&[]).unwrap();
    let store = opened(direct(&primary.url()).request_timeout(SILENCE)).await;
    let Acquired::Granted(grants) = answered(&store, long("n", "op")).await else { panic!() };
    primary.kill().unwrap();
    assert!(store.acquire(ask("n", "other")).await.unwrap_err().is_retryable());
    primary.restart().unwrap();
    until("it is there again", || async {
        matches!(store.acquire(ask("n", "other")).await, Ok(Acquired::Held { .. }))
    })
    .await;
    until("a synced grant survives", || async {
        match store.renew("op").await {
            Ok(Renewed::Renewed(renewed)) => {
                assert_eq!(renewed[0].token, grants[0].token);
                true
            }
            Ok(lost) => panic!("{lost:?}"),
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                false
            }
        }
    })
    .await;
    until("it is given back", || async { store.release("op").await.is_ok() }).await;
    let Acquired::Granted(next) = answered(&store, long("n", "next")).await else { panic!() };
    assert!(next[0].token > grants[0].token);
}

async fn f25_paused(world: World) {
    let primary = world.kit.primary(&[]).unwrap();
    let store = opened(direct(&primary.url()).request_timeout(SILENCE)).await;
    answered(&store, ask("n", "op")).await;
    until("it is given back", || async { store.release("op").await.is_ok() }).await;
    primary.pause().unwrap();
    let short = AcquireRequest { ttl: Duration::from_millis(500), ..ask("n", "unknown") };
    let silent = store.acquire(short).await.unwrap_err();
    assert_eq!(silent.outcome(), mainstay_store::Outcome::Unknown);
    SystemClock::new().sleep(Duration::from_millis(300)).await;
    primary.resume().unwrap();
    // Nobody releases: what may have been granted lasts one ttl at most.
    until("the name is free", || async {
        matches!(store.acquire(ask("n", "next")).await, Ok(Acquired::Granted(_)))
    })
    .await;
    fence_outlives(&primary, &open(direct(&primary.url())).await).await;
}

/// A table of fences on the same server: what was announced stays.
async fn fence_outlives(primary: &Postgres, store: &PostgresLeases) {
    let client = connect(&primary.url()).await;
    client.batch_execute(fence::CREATE).await.unwrap();
    let token = store.inspect("n").await.unwrap().last_token;
    assert_eq!(fence::advance(&client, "n", token).await.unwrap(), FenceCheck::Pass);
}
