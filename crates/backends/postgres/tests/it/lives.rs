//! Standbys that stand still, servers that come back, and replies that do not.

use std::process::Command;
use std::time::Duration;

use mainstay_chaos::proxy::TcpMode;
use mainstay_clock::Runtime;
use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::{CallError, SessionEvent, Why};
use mainstay_postgres::replicas::{Endpoint, EndpointConfig, Node, TransactionError};
use mainstay_sim::servers::Postgres;
use mainstay_store::replicated::{Judgment, Position};
use mainstay_store::{Outcome, ReplicatedStore as _};
use tokio_postgres::Client;

use crate::cluster::{
    Cluster, TABLE, ask_lsn, at, commit, endpoint, get, has, judged, kind, link, lsn, node, put, routed,
};
use crate::world::{Test, World, connect, until};

pub(crate) const TESTS: &[Test] = &[
    ("p6_behind_one_address_a_sample_counts_for_one_server", |w| Box::pin(p6(w))),
    ("p10_remote_apply_is_no_promise_of_every_standby", |w| Box::pin(p10(w))),
    ("p11_a_standby_that_is_late_on_purpose_costs_max_wait", |w| Box::pin(p11(w))),
    ("p29_an_open_transaction_of_others_holds_nobody_up", |w| Box::pin(p29(w))),
    ("p30_p40_received_is_not_replayed_and_a_read_may_have_seen_it", |w| Box::pin(p30_p40(w))),
    ("p33_a_standby_that_came_back_is_asked_anew", |w| Box::pin(p33(w))),
    ("p39_what_a_crash_took_is_lost_on_the_same_timeline", |w| Box::pin(p39(w))),
    ("p41_a_commit_without_an_answer_is_unknown_and_read_on_the_primary", |w| Box::pin(p41(w))),
];

fn pause(standby: &Postgres, on: bool) {
    standby.sql(if on { "select pg_wal_replay_pause()" } else { "select pg_wal_replay_resume()" }).unwrap();
}

async fn paused(standby: &Postgres) {
    pause(standby, true);
    let state = "select pg_get_wal_replay_pause_state()";
    until("replay is paused", || async { standby.sql(state).unwrap().trim() == "paused" }).await;
}

async fn p6(w: World) {
    let c = Cluster::start(&w.kit, &[]).await;
    let vip = link(&c.standbys[0]).await;
    let nodes = [("p", endpoint(&c.primary.url())), ("vip", endpoint(&Postgres::url_at(vip.address())))];
    let routed = routed(&nodes, |b| b);
    c.links[1].set_upstream(None);
    c.links[1].cut();
    routed.router.poll_once().await;
    let mut session = routed.router.session();
    put(&mut session, "k", 1).await.unwrap();
    let mark = session.token().await.unwrap().positions()[0].clone();
    has(&node(&c.standbys[0]).await, &mark).await;
    routed.router.poll_once().await;
    assert_eq!(get(&mut session, "k").await.unwrap(), Some(1));
    assert_eq!(routed.placed().as_deref(), Some("vip"));
    // The address moves to a standby without the row; the sample, young as it is, says that it has it.
    vip.set_upstream(Some(c.standbys[1].address()));
    vip.cut();
    let mut answers = 0;
    until("it answers again", || {
        let mut session = routed.router.session().resume(&at(&mark)).unwrap();
        async move { matches!(get(&mut session, "k").await, Ok(found) if { assert_eq!(found, Some(1)); true }) }
    })
    .await;
    for _ in 0..6 {
        let mut session = routed.router.session().resume(&at(&mark)).unwrap();
        assert_eq!(get(&mut session, "k").await.unwrap(), Some(1));
        answers += usize::from(routed.placed().is_none());
    }
    assert_eq!(answers, 6, "all from the primary");
}

async fn p10(w: World) {
    let c = Cluster::start(&w.kit, &[]).await;
    c.primary.sql("alter system set synchronous_standby_names = 'ANY 1 (*)'").unwrap();
    c.primary.sql("select pg_reload_conf()").unwrap();
    let both = "select count(*) from pg_stat_replication where sync_state = 'quorum'";
    until("both are candidates", || async { c.primary.sql(both).unwrap().trim() == "2" }).await;
    paused(&c.standbys[1]).await;
    let mut writer = node(&c.primary).await;
    writer.client().batch_execute("set synchronous_commit = remote_apply").await.unwrap();
    let mark = commit(&mut writer, "k", 1).await;
    // Whoever acknowledged has it at once; the other one has not.
    assert_eq!(judged(&c.standbys[0], &mark).await, Judgment::Satisfied);
    assert_eq!(judged(&c.standbys[1], &mark).await, Judgment::Behind);
    assert_eq!(c.standbys[1].sql("select count(*) from t where k = 'k'").unwrap().trim(), "0");
    let routed = c.router(|b| b.max_wait(Duration::from_millis(20)));
    routed.router.poll_once().await;
    for _ in 0..6 {
        let mut session = routed.router.session().resume(&at(&mark)).unwrap();
        assert_eq!(get(&mut session, "k").await.unwrap(), Some(1));
        assert_eq!(routed.placed().as_deref(), Some("s0"));
    }
    pause(&c.standbys[1], false);
}

async fn p11(w: World) {
    let delayed = w.primary.standby(&[("recovery_min_apply_delay", "1h")]).unwrap();
    let nodes = [("p", endpoint(&w.primary.url())), ("late", endpoint(&delayed.url()))];
    let routed = routed(&nodes, |b| b.max_wait(Duration::from_millis(50)));
    let mut session = routed.router.session();
    routed.router.poll_once().await;
    put(&mut session, "p11", 1).await.unwrap();
    assert_eq!(get(&mut session, "p11").await.unwrap(), Some(1));
    assert_eq!(routed.heard(|e| matches!(e, SessionEvent::ToReplica { .. })), 0);
    let mark = session.token().await.unwrap().positions()[0].clone();
    // While it is late with what its copy brought it receives nothing, and does not say which history it is on.
    match node(&delayed).await.wait(&mark, Duration::from_millis(50)).await {
        Ok(judgment) => assert_eq!(judgment, Judgment::Behind),
        Err(error) => assert_eq!(error.kind(), mainstay_store::ErrorKind::Unavailable, "{error}"),
    }
}

async fn p29(w: World) {
    let primary = w.kit.primary(&[]).unwrap();
    primary.sql(TABLE).unwrap();
    primary.stop_log_writer().unwrap();
    let standby = primary.standby(&[]).unwrap();
    let (mut writer, reader) = (node(&primary).await, node(&standby).await);
    let other = connect(&primary.url()).await;
    other.batch_execute("begin").await.unwrap();
    let (mut ahead, mut rows) = (0, 0);
    for v in 0..40 {
        // The other one writes without a pause, so that some of it stands between the commit and the question where it went.
        let done = std::cell::Cell::new(false);
        let ours = async {
            let mark = commit(&mut writer, "k", v).await;
            done.set(true);
            mark
        };
        let theirs = async {
            while !done.get() {
                rows += 1;
                other.batch_execute(&format!("insert into t values ('open {rows}', 1)")).await.unwrap();
            }
        };
        let (mark, ()) = tokio::join!(ours, theirs);
        let report = writer.report().await.unwrap();
        ahead += i32::from(report.lsn > report.other_lsn);
        assert!(lsn(&mark) <= report.other_lsn, "flushed, so it travels at once: {mark:?}, {report:?}");
        has(&reader, &mark).await;
    }
    assert!(ahead > 0, "the log that nobody flushes was ahead");
}

async fn p30_p40(w: World) {
    let c = Cluster::start(&w.kit, &[]).await;
    for standby in &c.standbys {
        paused(standby).await;
    }
    let mark = commit(&mut node(&c.primary).await, "k", 1).await;
    let received = |s: &Postgres| ask_lsn(s, "pg_last_wal_receive_lsn()");
    until("it is received", || async { received(&c.standbys[0]) >= lsn(&mark) }).await;
    let observed = node(&c.standbys[0]).await.observe().await.unwrap();
    let Position::LsnRead { lsn: replayed, ahead } = observed.mark.position else { panic!("{observed:?}") };
    assert!(replayed < lsn(&mark) && replayed + ahead >= lsn(&mark));
    assert_eq!(observed.judge(&mark), Judgment::Behind, "received is not replayed");
    // What was read there may have been more than it said: only who has replayed all of it shows no less.
    assert_eq!(judged(&c.standbys[1], &observed.mark).await, Judgment::Behind);
    assert_eq!(judged(&c.primary, &observed.mark).await, Judgment::Satisfied);
    pause(&c.standbys[1], false);
    has(&node(&c.standbys[1]).await, &observed.mark).await;
    // The session's own token says so.
    let routed = c.router(|b| b);
    routed.router.poll_once().await;
    let mut session = routed.router.session();
    let seen = at(&observed.mark);
    session.merge(&seen).unwrap();
    assert_eq!(get(&mut session, "k").await.unwrap(), Some(1));
    assert_eq!(routed.placed().as_deref(), Some("s1"));
    pause(&c.standbys[0], false);
}

/// Ends one process of a server as a crash does; the server then ends all others and recovers, and goes on under the
/// same number.
async fn crash_inside(server: &Postgres) {
    let victim = connect(&server.url()).await;
    let pid: i32 = victim.query_one("select pg_backend_pid()", &[]).await.unwrap().get(0);
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    assert!(killed.success());
    until("the connection is gone", || async { victim.is_closed() }).await;
    until("it answers again", || async { server.sql("select 1").is_ok() }).await;
}

async fn p33(w: World) {
    let mut c = Cluster::start(&w.kit, &[]).await;
    let routed = c.router(|b| b.max_wait(Duration::from_secs(20)));
    let mut session = routed.router.session();
    let started = |s: &Postgres| s.sql("select pg_postmaster_start_time()").unwrap();
    let mut lives = vec![node(&c.standbys[0]).await.incarnation().unwrap()];
    let before = started(&c.standbys[0]);
    for round in 0..2 {
        routed.router.poll_once().await;
        put(&mut session, "k", round).await.unwrap();
        c.caught_up();
        routed.router.poll_once().await;
        for _ in 0..4 {
            assert_eq!(get(&mut session, "k").await.unwrap(), Some(round));
        }
        if round == 0 {
            crash_inside(&c.standbys[0]).await;
            assert_eq!(started(&c.standbys[0]), before, "the server itself does not say so");
        } else {
            c.standbys[0].kill().unwrap();
            c.standbys[0].restart().unwrap();
        }
        lives.push(node(&c.standbys[0]).await.incarnation().unwrap());
        // The samples are of a life that is over. Connections of it fail; none answers with less.
        for _ in 0..8 {
            match get(&mut session, "k").await {
                Ok(found) => assert_eq!(found, Some(round)),
                Err(CallError::Inner(TransactionError::Store(error))) => {
                    assert!(error.is_retryable(), "{error}")
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
    assert!(lives[0] < lives[1] && lives[1] < lives[2], "{lives:?}");
}

async fn p39(w: World) {
    let mut primary = w.kit.primary(&[]).unwrap();
    primary.sql(TABLE).unwrap();
    primary.stop_log_writer().unwrap();
    let config = EndpointConfig::builder(&primary.url()).allow_async_commit().build().unwrap();
    let mut fast = Endpoint::new(config, &Runtime::system()).connect().await.unwrap();
    let synced = commit(&mut node(&primary).await, "synced", 1).await;
    fast.client().batch_execute("set synchronous_commit = off").await.unwrap();
    let mut marks = Vec::new();
    for v in 0..20 {
        marks.push(commit(&mut fast, &format!("fast {v}"), v).await);
    }
    let last = marks.last().unwrap();
    assert_eq!(judged(&primary, last).await, Judgment::Satisfied);
    primary.kill().unwrap();
    primary.restart().unwrap();
    assert_eq!(primary.sql("select count(*) from t where k = 'fast 19'").unwrap().trim(), "0", "it is gone");
    let mut writer = node(&primary).await;
    while lsn(&commit(&mut writer, "filler", 0).await) <= lsn(last) {}
    let report = writer.report().await.unwrap();
    assert_eq!(
        report.timeline.unwrap().to_string(),
        last.timeline,
        "the same timeline, and the number is passed"
    );
    for mark in &marks {
        assert_eq!(judged(&primary, mark).await, Judgment::Lost);
    }
    assert_eq!(judged(&primary, &synced).await, Judgment::Satisfied);
    let routed = routed(&[("p", endpoint(&primary.url()))], |b| b);
    let mut session = routed.router.session().resume(&at(last)).unwrap();
    assert_eq!(kind(get(&mut session, "fast 19").await), ErrorKind::WriteLost);
}

async fn p41(w: World) {
    let proxy = link(&w.primary).await;
    let config = EndpointConfig::builder(&Postgres::url_at(proxy.address()));
    let config = config.request_timeout(Duration::from_secs(5)).build().unwrap();
    let through = Endpoint::new(config, &Runtime::system());
    let routed = routed(&[("p", through), ("s0", endpoint(&w.standbys[0].url()))], |b| b);
    routed.router.poll_once().await;
    let mut session = routed.router.session();
    let insert = "insert into t values ('p41', 1)";
    let write = session.write(async |n: &mut Node| {
        n.write(async |c: &Client| {
            let done = c.execute(insert, &[]).await;
            // The commit arrives, and its answer does not.
            proxy.set_mode(TcpMode::RepliesLost);
            done
        })
        .await
    });
    let Err(CallError::Inner(error)) = write.await else { panic!("it was answered") };
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    let token = session.token().await.unwrap();
    assert!(token.is_owed() && token.positions().is_empty(), "{token:?}");
    proxy.cut();
    proxy.set_mode(TcpMode::Pass);
    let mut other = routed.router.session().resume(&token).unwrap();
    assert_eq!(get(&mut other, "p41").await.unwrap(), Some(1), "never \"not written\"");
    assert_eq!(routed.placed(), None);
    assert_eq!(routed.heard(|e| *e == SessionEvent::ToPrimary { why: Why::Owed }), 1);
    assert!(!other.token().await.unwrap().is_owed());
}
