//! Positions and reads on one shared cluster that nothing happens to.

use std::time::Duration;

use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::{SessionEvent, TokenKeys, Why};
use mainstay_postgres::replicas::{Checked, Endpoint, EndpointConfig, TransactionError};
use mainstay_sim::servers::{Postgres, PostgresKit};
use mainstay_store::replicated::{Judgment, Mark, Position};
use mainstay_store::{Outcome, ReplicatedStore as _};
use tokio_postgres::Client;

use crate::cluster::{
    Routed, at, commit, endpoint, get, has, judged, kind, look_up, lsn, node, number, put, routed,
};
use crate::world::{Test, World, connect, until};

pub(crate) const TESTS: &[Test] = &[
    ("p1_a_position_is_past_the_commit", |w| Box::pin(p1(w))),
    ("p2_p3_commits_that_nobody_waits_for", |w| Box::pin(p2_p3(w))),
    ("p4_p5_p32_the_snapshot_comes_after_the_judgment", |w| Box::pin(p4_p5_p32(w))),
    ("p12_before_version_19_a_wait_is_a_poll_with_a_bound", |w| Box::pin(p12(w))),
    ("p16_a_token_of_another_cluster_is_foreign_at_once", |w| Box::pin(p16(w))),
    ("p17_p18_forged_and_unreadable_tokens_read_from_no_replica", |w| Box::pin(p17_p18(w))),
    ("p24_p26_a_write_reads_itself_and_changes_the_token", |w| Box::pin(p24_p26(w))),
    ("p25_reads_change_nothing_on_either_side", |w| Box::pin(p25(w))),
    ("p27_what_is_no_physical_replica_is_refused", |w| Box::pin(p27(w))),
    ("p28_a_transaction_that_failed_has_no_position", |w| Box::pin(p28(w))),
    ("p31_a_standby_that_may_not_say_its_history_is_not_read", |w| Box::pin(p31(w))),
    ("p4_a_transaction_left_open_by_hand_is_no_ones_snapshot", |w| Box::pin(p4_by_hand(w))),
    ("cancel_safety_of_write_and_read", |w| Box::pin(cancel(w))),
];

async fn p1(w: World) {
    let (mut primary, mut standby) = (node(&w.primary).await, node(&w.standbys[0]).await);
    for v in 0..100 {
        let mark = commit(&mut primary, "p1", v).await;
        has(&standby, &mark).await;
        let seen = standby.read(async |c: &Client| look_up(c, "p1").await).await.unwrap();
        assert!(seen >= Some(v), "{seen:?} at {mark:?}");
    }
}

async fn p2_p3(w: World) {
    // However the session is set, and even inside: the commit is waited for.
    let mut synced = node(&w.primary).await;
    synced.client().batch_execute("set synchronous_commit = off").await.unwrap();
    for v in 0..50_i64 {
        let written = synced
            .write(async |c: &Client| {
                c.batch_execute("set local synchronous_commit = off").await?;
                c.execute("insert into t values ('p2', $1) on conflict (k) do update set v = $1", &[&v]).await
            })
            .await;
        written.unwrap();
        let mark = synced.commit_position().await.unwrap();
        let flushed = synced.report().await.unwrap().other_lsn;
        assert!(matches!(mark.position, Position::Lsn(lsn) if lsn <= flushed), "{mark:?}");
    }
    // The same with what others take for a position: the flushed one is before the commit, nearly always.
    // On a server where nobody else commits, and whose log is written by nobody but who commits.
    let lone = w.kit.primary(&[]).unwrap();
    lone.sql(crate::cluster::TABLE).unwrap();
    lone.stop_log_writer().unwrap();
    let naive = connect(&lone.url()).await;
    naive.batch_execute("set synchronous_commit = off").await.unwrap();
    let mut stale = 0;
    for v in 0..50 {
        let text = format!("insert into t values ('naive', {v}) on conflict (k) do update set v = {v}");
        naive.batch_execute(&text).await.unwrap();
        let row = naive
            .query_one("select pg_current_wal_flush_lsn()::text, pg_current_wal_insert_lsn()::text", &[])
            .await
            .unwrap();
        stale += i32::from(number(row.get(0)) < number(row.get(1)));
    }
    assert!(stale > 25, "{stale} of 50");
    // Where it is allowed: marked, off the page headers, the primary's alone.
    let config = EndpointConfig::builder(&w.primary.url()).allow_async_commit().build().unwrap();
    let mut fast = Endpoint::new(config, &Runtime::system()).connect().await.unwrap();
    fast.client().batch_execute("set synchronous_commit = off").await.unwrap();
    for v in 0..400 {
        let mark = commit(&mut fast, "p3", v).await;
        let Position::LsnUnsynced { lsn, start } = mark.position else { panic!("{mark:?}") };
        assert_eq!(Some(start), fast.incarnation());
        assert!(lsn % 8_192 != 24 && lsn % (16 << 20) != 40, "{lsn}");
        if v % 100 == 0 {
            assert_eq!(judged(&w.primary, &mark).await, Judgment::Satisfied);
            assert_eq!(judged(&w.standbys[0], &mark).await, Judgment::Behind);
        }
    }
}

/// Starts `statement` on a standby, lets it take its snapshot and wait for a lock that the test holds, commits a row
/// that the standby then replays, and gives what the statement says after that: its last row.
async fn overtaken(w: &World, key: &str, statement: &str) -> (Mark, tokio_postgres::SimpleQueryRow) {
    let standby = &w.standbys[0];
    let (holder, asker) = (connect(&standby.url()).await, connect(&standby.url()).await);
    let lock = i64::from(u32::from_be_bytes(*b"snap")) + i64::try_from(key.len()).unwrap();
    holder.execute("select pg_advisory_lock($1)", &[&lock]).await.unwrap();
    let text = statement.replace("LOCK", &lock.to_string()).replace("KEY", key);
    let write = async {
        until("the statement waits", || async {
            let waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted and objid = $1::int8::oid";
            let waiting = holder.query_one(waits, &[&(lock & 0xffff_ffff)]).await.unwrap().get::<_, i64>(0);
            waiting > 0
        })
        .await;
        let mark = commit(&mut node(&w.primary).await, key, 1).await;
        has(&node(standby).await, &mark).await;
        holder.execute("select pg_advisory_unlock($1)", &[&lock]).await.unwrap();
        mark
    };
    let (said, mark) = tokio::join!(asker.simple_query(&text), write);
    let row = said.unwrap().into_iter().rev().find_map(|m| match m {
        tokio_postgres::SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    (mark, row.unwrap())
}

async fn p4_p5_p32(w: World) {
    let count = "(select count(*) from t where k = 'KEY')";
    for (key, statement) in [
        // P5: one statement has one snapshot, taken before the position is looked at.
        ("p5", format!("select pg_advisory_lock(LOCK), pg_last_wal_replay_lsn(), {count}")),
        // P4: the snapshot of the transaction is older than the check.
        (
            "p4_",
            format!(
                "begin isolation level repeatable read; select count(*) from t; select pg_advisory_lock(LOCK);
                 select 0, pg_last_wal_replay_lsn(), {count}; commit"
            ),
        ),
        // P32: one message is one transaction.
        (
            "p32__",
            format!(
                "set default_transaction_isolation = 'repeatable read'; commit; select pg_advisory_lock(LOCK);
                 select 0, pg_last_wal_replay_lsn(), {count}"
            ),
        ),
    ] {
        let (mark, row) = overtaken(&w, key, &statement).await;
        assert!(number(row.get(1).unwrap()) >= lsn(&mark), "the check passes");
        assert_eq!(row.get(2), Some("0"), "{key}: and the row is absent");
        // Judged and then read, on a role whose transactions are all of one snapshot.
        let url =
            format!("{}?options=-cdefault_transaction_isolation%3Drepeatable%5C%20read", w.standbys[0].url());
        let mut careful = endpoint(&url).connect().await.unwrap();
        let read = careful.read_after(&mark, async |c: &Client| look_up(c, key).await).await.unwrap();
        assert_eq!(read, Checked::Read(Some(1)), "{key}");
    }
}

async fn p12(w: World) {
    let mut standby = node(&w.standbys[0]).await;
    let report = standby.report().await.unwrap();
    let timeline = report.timeline.unwrap().to_string();
    let far = Mark { system: report.system, timeline, position: Position::Lsn(u64::MAX >> 1) };
    let clock = SystemClock::new();
    let start = clock.now();
    let limit = Duration::from_millis(100);
    assert_eq!(standby.wait(&far, limit).await.unwrap(), Judgment::Behind);
    assert!(clock.now().saturating_duration_since(start) >= limit);
    let refused = standby.read_after(&far, async |c: &Client| look_up(c, "p12").await).await.unwrap();
    assert_eq!(refused, Checked::Refused(Judgment::Behind));
    assert!(!w.standbys[0].log().contains("WAIT FOR"), "this version does not know the statement");
}

async fn p16(w: World) {
    let other = PostgresKit::new().unwrap().unwrap().primary(&[]).unwrap();
    other.sql(crate::cluster::TABLE).unwrap();
    let mark = commit(&mut node(&other).await, "k", 1).await;
    assert_eq!(judged(&w.primary, &mark).await, Judgment::Foreign);
    let routed = shared(&w);
    routed.router.poll_once().await;
    let mut session = routed.router.session().resume(&at(&mark)).unwrap();
    assert_eq!(kind(get(&mut session, "k").await), ErrorKind::ForeignToken);
    assert_eq!(kind(put(&mut session, "k", 2).await), ErrorKind::ForeignToken);
    let asked =
        |e: &SessionEvent| matches!(e, SessionEvent::ToReplica { .. } | SessionEvent::ToPrimary { .. });
    assert_eq!(routed.heard(asked), 0, "nobody is asked, so nobody is asked again");
}

fn shared(w: &World) -> Routed {
    let nodes: [(&str, &Postgres); 3] = [("p", &w.primary), ("s0", &w.standbys[0]), ("s1", &w.standbys[1])];
    routed(&nodes.map(|(name, server)| (name, endpoint(&server.url()))), |b| b)
}

async fn p17_p18(w: World) {
    let routed = shared(&w);
    routed.router.poll_once().await;
    let mark = commit(&mut node(&w.primary).await, "p17", 1).await;
    let mut session = routed.router.session().resume(&at(&mark)).unwrap();
    assert_eq!(get(&mut session, "p17").await.unwrap(), Some(1));
    // Past everything: the seal would not open; without one it is lost, not satisfied, and nobody waits for it.
    let far = Mark { position: Position::Lsn(u64::MAX), ..mark.clone() };
    let mut session = routed.router.session().resume(&at(&far)).unwrap();
    assert_eq!(kind(get(&mut session, "p17").await), ErrorKind::WriteLost);
    let keys = TokenKeys::builder("orders").key(1, [7; 32]).build().unwrap();
    let text = keys.seal(&at(&mark), SystemClock::new().wall());
    assert!(text.len() <= 64, "{}", text.len());
    for (i, text) in ["", "garbage", &text[1..], &text.to_lowercase()].into_iter().enumerate() {
        let replicas = routed.heard(|e| matches!(e, SessionEvent::ToReplica { .. }));
        let mut session = routed.router.session().resume_sealed(text, &keys);
        assert_eq!(get(&mut session, "p17").await.unwrap(), Some(1));
        assert_eq!(routed.heard(|e| *e == SessionEvent::ToPrimary { why: Why::TokenRefused }), i + 1);
        assert_eq!(routed.heard(|e| matches!(e, SessionEvent::ToReplica { .. })), replicas);
    }
}

async fn p24_p26(w: World) {
    let routed = shared(&w);
    routed.router.poll_once().await;
    let mut session = routed.router.session();
    put(&mut session, "p24", 1).await.unwrap();
    let before = session.token().await.unwrap();
    let write = session.write(async |n: &mut mainstay_postgres::replicas::Node| {
        n.write(async |c: &Client| {
            c.execute("update t set v = v + 1 where k = 'p24'", &[]).await?;
            look_up(c, "p24").await
        })
        .await
    });
    assert_eq!(write.await.unwrap(), Some(2), "on the connection of the write");
    // P26: a cache in front has the token in its key, and so misses after a write.
    assert_ne!(session.token().await.unwrap(), before);
    assert_eq!(get(&mut session, "p24").await.unwrap(), Some(2));
}

async fn p25(w: World) {
    w.primary.sql("create sequence p25").unwrap();
    w.standbys[0].caught_up(&w.primary).unwrap();
    for server in [&*w.primary, &w.standbys[0]] {
        let mut node = node(server).await;
        for statement in ["select nextval('p25')", "select 1 from t for update", "delete from t"] {
            let read = node.read(async |c: &Client| c.batch_execute(statement).await).await;
            let Err(TransactionError::Inner(error)) = read else { panic!("{statement}: {read:?}") };
            assert_eq!(error.code().map(|c| c.code()), Some("25006"), "{statement}");
            // The connection is as good as before.
            node.read(async |c: &Client| look_up(c, "p25").await).await.unwrap();
        }
    }
}

async fn p27(w: World) {
    // What Aurora is known by: its readers replay no log.
    w.primary.sql("create database aurora").unwrap();
    let url = format!("postgres://postgres@{}/aurora", w.primary.address());
    connect(&url)
        .await
        .batch_execute("create function aurora_version() returns text language sql as 'select ''3''' ")
        .await
        .unwrap();
    let refused = endpoint(&url).connect().await.unwrap_err();
    assert_eq!(refused.kind(), mainstay_store::ErrorKind::Unsupported, "{refused}");
    // A logical replica is another system, so its positions are Foreign: see P16.
}

async fn p28(w: World) {
    let mut node = node(&w.primary).await;
    // The closure swallows an error and goes on; COMMIT alone would answer ROLLBACK, and no error.
    let swallowed = node
        .write(async |c: &Client| {
            c.execute("insert into t values ('p28', 1)", &[]).await?;
            let _ = c.execute("select 1 / 0", &[]).await;
            Ok::<_, tokio_postgres::Error>(())
        })
        .await;
    let Err(TransactionError::Store(error)) = swallowed else { panic!("{swallowed:?}") };
    assert_eq!(error.outcome(), Outcome::NotApplied, "{error}");
    assert!(node.commit_position().await.is_err(), "no position");
    assert_eq!(look_up(node.client(), "p28").await.unwrap(), None);
    // What fails at the commit itself.
    let deferred =
        "create table p28 (n int unique deferrable initially deferred); insert into p28 values (1)";
    w.primary.sql(deferred).unwrap();
    let failed =
        node.write(async |c: &Client| c.execute("insert into p28 values (1)", &[]).await).await.unwrap_err();
    assert_eq!(failed.outcome(), Outcome::NotApplied, "{failed:?}");
    assert!(node.commit_position().await.is_err());
    commit(&mut node, "p28", 2).await;
}

async fn p31(w: World) {
    w.primary.sql("create role plain login; grant all on t to plain").unwrap();
    w.standbys.iter().for_each(|s| s.caught_up(&w.primary).unwrap());
    let plain = |server: &Postgres| endpoint(&server.url().replace("postgres@", "plain@"));
    let standby = plain(&w.standbys[0]).connect().await.unwrap();
    let blind = standby.observe().await.unwrap_err();
    assert_eq!(blind.kind(), mainstay_store::ErrorKind::Unavailable);
    assert!(blind.to_string().contains("pg_read_all_stats"), "{blind}");
    // Two connections of such a role conclude nothing from each other.
    let primary = plain(&w.primary);
    let (one, two) = (primary.connect().await.unwrap(), primary.connect().await.unwrap());
    assert_ne!(one.incarnation(), two.incarnation());
    assert_eq!(node(&w.primary).await.incarnation(), node(&w.primary).await.incarnation());
    // Its sessions go to the primary, and hold there.
    let routed = routed(&[("p", primary), ("s0", plain(&w.standbys[0]))], |b| b);
    routed.router.poll_once().await;
    let mut session = routed.router.session();
    put(&mut session, "p31", 1).await.unwrap();
    assert_eq!(get(&mut session, "p31").await.unwrap(), Some(1));
    assert_eq!(routed.placed(), None);
    let config =
        EndpointConfig::builder(&w.primary.url().replace("postgres@", "plain@")).allow_async_commit();
    let refused = Endpoint::new(config.build().unwrap(), &Runtime::system()).connect().await.unwrap_err();
    assert_eq!(refused.kind(), mainstay_store::ErrorKind::Unsupported);
}

/// Who gets a connection in which somebody left a transaction open reads what is there now, and commits only what is its own.
async fn p4_by_hand(w: World) {
    let config = EndpointConfig::builder(&w.primary.url()).connections(1).build().unwrap();
    let one = Endpoint::new(config, &Runtime::system());
    let mut other = node(&w.primary).await;
    let begun = "begin isolation level repeatable read; insert into t values ('p4 by hand', 1)";
    for (v, left) in [begun, "begin; select 1 / 0", "select 1"].into_iter().enumerate() {
        let careless = one.connect().await.unwrap();
        let before = process(careless.client()).await;
        let _ = careless.client().batch_execute(left).await;
        drop(careless);
        let v = i64::try_from(v).unwrap();
        commit(&mut other, "p4 seen", v).await;
        let mut next = one.connect().await.unwrap();
        let seen = next.read(async |c: &Client| look_up(c, "p4 seen").await).await.unwrap();
        assert_eq!(seen, Some(v), "{left}");
        next.write(async |c: &Client| c.execute("select 1", &[]).await).await.unwrap();
        assert_eq!(look_up(other.client(), "p4 by hand").await.unwrap(), None, "{left}");
        assert_eq!(process(next.client()).await, before, "the connection is used again");
    }
}

async fn process(client: &Client) -> i32 {
    client.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0)
}

/// Dropped at any await, a call leaves no transaction behind, and its connection is not lent again.
async fn cancel(w: World) {
    let config = EndpointConfig::builder(&w.primary.url()).connections(1).build().unwrap();
    let one = Endpoint::new(config, &Runtime::system());
    for polls in 0..6 {
        let mut node = one.connect().await.unwrap();
        let write = node.write(async |c: &Client| c.execute("insert into t values ('cancel', 1)", &[]).await);
        let mut write = std::pin::pin!(write);
        for _ in 0..polls {
            let once = std::future::poll_fn(|cx| std::task::Poll::Ready(write.as_mut().poll(cx).is_ready()));
            if once.await {
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let mut last = one.connect().await.unwrap();
    let open = "select count(*) from pg_locks l join pg_class c on c.oid = l.relation where c.relname = 't' and l.pid <> pg_backend_pid() and mode = 'RowExclusiveLock'";
    until("nothing is left open", || async {
        last.client().query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    let state = last
        .read(async |c: &Client| c.query_one("select count(*) from t where k = 'cancel'", &[]).await)
        .await;
    assert!(state.unwrap().get::<_, i64>(0) <= 1, "a commit that was sent may have been applied");
}
