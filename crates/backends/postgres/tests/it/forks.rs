//! Failovers that lose writes, and histories that part.

use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::SessionEvent;
use mainstay_store::ReplicatedStore as _;
use mainstay_store::replicated::{Judgment, Mark, Position, Role};

use crate::cluster::{
    Cluster, TABLE, ask_lsn, at, commit, endpoint, get, has, judged, kind, lsn, node, put, routed,
};
use crate::world::{Test, World, connect, until};

pub(crate) const TESTS: &[Test] = &[
    ("p7_a_write_that_a_kill_and_a_failover_lost_is_lost", |w| Box::pin(p7(w))),
    ("p8_p9_of_two_primaries_the_later_timeline_counts", |w| Box::pin(p8_p9(w))),
    ("p38_a_position_does_not_include_what_others_have_not_committed", |w| Box::pin(p38(w))),
    ("p42_two_standbys_promoted_to_one_number_are_a_fork", |w| Box::pin(p42(w))),
    ("a_past_that_the_role_may_not_read_is_unproven", |w| Box::pin(unproven(w))),
];

/// Writes until the log of `server` is past `lsn`: a check of numbers alone would pass.
async fn overtake(server: &mainstay_sim::servers::Postgres, lsn: u64) {
    let mut writer = node(server).await;
    while ask_lsn(server, "pg_current_wal_flush_lsn()") <= lsn {
        commit(&mut writer, "filler", 0).await;
    }
}

async fn p7(w: World) {
    let mut c = Cluster::start(&w.kit, &[]).await;
    let routed = c.router(|b| b);
    routed.router.poll_once().await;
    let (mut kept, mut lost) = (routed.router.session(), routed.router.session());
    put(&mut kept, "kept", 1).await.unwrap();
    c.caught_up();
    c.cut();
    put(&mut lost, "lost", 1).await.unwrap();
    let mark = lost.token().await.unwrap().positions()[0].clone();
    c.fail_over();
    overtake(&c.standbys[0], lsn(&mark)).await;
    c.standbys[1].caught_up(&c.standbys[0]).unwrap();
    for standby in &c.standbys {
        assert_eq!(judged(standby, &mark).await, Judgment::Lost, "its number is passed, its history is not");
    }
    routed.router.poll_once().await;
    for _ in 0..6 {
        assert_eq!(get(&mut kept, "kept").await.unwrap(), Some(1));
    }
    assert_eq!(kind(get(&mut lost, "lost").await), ErrorKind::WriteLost);
    assert_eq!(kind(put(&mut lost, "lost", 2).await), ErrorKind::WriteLost);
    assert!(lost.accept_loss());
    assert_eq!(get(&mut lost, "lost").await.unwrap(), None);
    put(&mut lost, "lost", 3).await.unwrap();
    assert_eq!(get(&mut lost, "lost").await.unwrap(), Some(3));
    // The old primary comes back as it was: nobody follows it, and nothing is read from it.
    c.primary.restart().unwrap();
    let stale = node(&c.primary).await.observe().await.unwrap();
    assert_eq!(
        (stale.role, stale.judge(&mark)),
        (Role::Primary, Judgment::Satisfied),
        "it has what was lost"
    );
    let back = c.router(|b| b);
    back.router.poll_once().await;
    let mut session = back.router.session().resume(&lost.token().await.unwrap()).unwrap();
    assert_eq!(get(&mut session, "lost").await.unwrap(), Some(3));
    assert!(!back.router.status()[0].eligible, "{:?}", back.router.status());
}

async fn p8_p9(w: World) {
    let c = Cluster::start(&w.kit, &[]).await;
    let routed = c.router(|b| b);
    routed.router.poll_once().await;
    let mut session = routed.router.session();
    put(&mut session, "k", 1).await.unwrap();
    c.caught_up();
    c.cut();
    // Promoted beside a primary that is alive and says so.
    c.standbys[0].promote().unwrap();
    let control = c.standbys[0].sql("select timeline_id from pg_control_checkpoint()").unwrap();
    let report = node(&c.standbys[0]).await.report().await.unwrap();
    assert_eq!((report.role, report.timeline), (Role::Primary, Some(2)), "the control file said {control}");
    let history = report.history.unwrap();
    assert_eq!((history[0].timeline.as_str(), history[0].next.as_str()), ("1", "2"));
    routed.router.poll_once().await;
    put(&mut session, "k", 2).await.unwrap();
    let mark = session.token().await.unwrap().positions()[0].clone();
    assert_eq!(mark.timeline, "2");
    assert_eq!(c.standbys[0].sql("select v from t where k = 'k'").unwrap().trim(), "2");
    assert_eq!(c.primary.sql("select v from t where k = 'k'").unwrap().trim(), "1");
    assert_eq!(judged(&c.primary, &mark).await, Judgment::Behind, "it never satisfies what came after it");
    for _ in 0..6 {
        assert_eq!(get(&mut session, "k").await.unwrap(), Some(2));
    }
}

async fn p38(w: World) {
    // Nobody but a commit flushes.
    let mut primary = w.kit.primary(&[]).unwrap();
    primary.sql(TABLE).unwrap();
    primary.stop_log_writer().unwrap();
    let standby = primary.standby(&[]).unwrap();
    let mut writer = node(&primary).await;
    let other = connect(&primary.url()).await;
    other.batch_execute("begin; insert into t values ('open', 1)").await.unwrap();
    let mark = commit(&mut writer, "ours", 1).await;
    other.batch_execute("insert into t select 'more' || n, n from generate_series(1, 20) n").await.unwrap();
    let report = writer.report().await.unwrap();
    assert!(report.lsn > report.other_lsn, "inserted {} and flushed {}", report.lsn, report.other_lsn);
    let naive = Mark { position: Position::Lsn(report.lsn), ..mark.clone() };
    has(&node(&standby).await, &mark).await;
    primary.kill().unwrap();
    standby.promote().unwrap();
    assert_eq!(judged(&standby, &mark).await, Judgment::Satisfied, "ours was replicated");
    assert_eq!(judged(&standby, &naive).await, Judgment::Lost, "theirs was not");
    assert_eq!(standby.sql("select v from t where k = 'ours'").unwrap().trim(), "1");
}

async fn p42(w: World) {
    let mut c = Cluster::start(&w.kit, &[]).await;
    c.links[0].set_upstream(None);
    c.links[0].cut();
    let mark = commit(&mut node(&c.primary).await, "k", 1).await;
    has(&node(&c.standbys[1]).await, &mark).await;
    c.cut();
    c.primary.kill().unwrap();
    c.standbys.iter().for_each(|s| s.promote().unwrap());
    let nodes = ["s0", "s1"].into_iter().zip(&c.standbys).map(|(n, s)| (n, endpoint(&s.url())));
    let routed = routed(&nodes.collect::<Vec<_>>(), |b| b);
    for _ in 0..2 {
        routed.router.poll_once().await;
    }
    let status = routed.router.status();
    let timelines: Vec<_> = status.iter().map(|s| s.mark.as_ref().unwrap().timeline.as_str()).collect();
    assert_eq!(timelines, ["2", "2"], "the same number");
    assert!(!status[0].forked && status[1].forked && !status[1].eligible, "{status:?}");
    assert_eq!(routed.heard(|e| matches!(e, SessionEvent::Forked { .. })), 1, "said once");
    // What only the fork has is lost for those who follow the other one.
    assert_eq!(judged(&c.standbys[0], &mark).await, Judgment::Lost);
    let mut session = routed.router.session().resume(&at(&mark)).unwrap();
    assert_eq!(kind(get(&mut session, "k").await), ErrorKind::WriteLost);
}

async fn unproven(w: World) {
    let mut c = Cluster::start(&w.kit, &[]).await;
    c.primary.sql("create role seer login; grant pg_read_all_stats to seer; grant all on t to seer").unwrap();
    c.caught_up();
    let mark = commit(&mut node(&c.primary).await, "k", 1).await;
    has(&node(&c.standbys[0]).await, &mark).await;
    c.fail_over();
    c.standbys[1].caught_up(&c.standbys[0]).unwrap();
    let seer = |i: usize| endpoint(&c.standbys[i].url().replace("postgres@", "seer@"));
    until("the standby receives the new timeline", || async {
        let report = seer(1).connect().await.unwrap().report().await.unwrap();
        report.timeline == Some(2)
    })
    .await;
    let routed = routed(&[("s0", seer(0)), ("s1", seer(1))], |b| b);
    routed.router.poll_once().await;
    for i in 0..2 {
        let judgment = seer(i).connect().await.unwrap().observe().await.unwrap().judge(&mark);
        assert_eq!(judgment, Judgment::Behind, "it is there, and nobody can tell");
    }
    let mut session = routed.router.session().resume(&at(&mark)).unwrap();
    assert_eq!(kind(get(&mut session, "k").await), ErrorKind::Unproven);
    // One grant, and it can be told, as soon as the past is asked for.
    c.standbys[0]
        .sql("grant execute on function pg_read_file(text, bigint, bigint, boolean) to seer")
        .unwrap();
    assert_eq!(get(&mut session, "k").await.unwrap(), Some(1));
}
