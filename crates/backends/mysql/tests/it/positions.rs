//! Positions of a real MariaDB and its replica, judged.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use mainstay_chaos::proxy::TcpMode;
use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_mysql::{MysqlReplicas, gtid};
use mainstay_sim::servers::MariaDbKit;
use mainstay_store::replicated::{Judgment, Mark, Position, Role};
use mainstay_store::{ErrorKind, Outcome, ReplicatedStore as _};
use mysql_async::prelude::Queryable as _;

use crate::Test;
use crate::world::{ANSWER, PATIENCE, at, judged, look, ms, pair, put, row, run, store, until, value, wired};

pub(crate) const TESTS: &[Test] = &[
    ("a_commit_is_behind_until_it_is_applied", |kit| run(a_commit_is_behind_until_it_is_applied(kit))),
    ("p21_p37_nothing_logged_is_no_new_position", |kit| run(p21_p37_nothing_logged(kit))),
    ("p1_a_write_by_hand_behind_a_commit_is_in_the_position", |kit| run(p1_a_write_by_hand(kit))),
    ("p21_a_server_that_does_not_log_what_it_applies_is_refused", |kit| run(p21_refused(kit))),
    ("p22_p7_waiting_by_sequence_is_blind_to_forks_and_the_state_is_not", |kit| {
        run(p22_p7_forks(kit, &[]));
    }),
    ("p36_strict_mode_sees_no_fork_either", |kit| run(p22_p7_forks(kit, &["--gtid-strict-mode=1"]))),
    ("p22_an_unknown_domain_is_not_waited_for_for_ever", |kit| run(p22_an_unknown_domain(kit))),
    ("p4_a_snapshot_older_than_the_judgment_lacks_the_row", |kit| run(p4_an_old_snapshot(kit))),
    ("p25_a_read_that_writes_is_refused_on_the_primary_too", |kit| run(p25_reads_that_write(kit))),
    ("p28_a_refused_transaction_has_no_position", |kit| run(p28_refused_transactions(kit))),
    ("p33_a_life_ends_with_the_process", |kit| run(p33_a_life_ends_with_the_process(kit))),
    ("p40_what_a_read_saw_is_in_the_position_that_is_asked_for_behind_it", |kit| {
        run(p40_what_a_read_saw_is_in_the_position_behind_it(kit));
    }),
    ("p41_a_commit_without_an_answer_has_no_position", |kit| run(p41_a_lost_answer(kit))),
    ("p16_a_position_of_another_store_is_foreign", |kit| run(p16_another_store(kit))),
    ("a_connection_is_given_on_in_its_first_state", |kit| run(a_connection_is_given_on_clean(kit))),
];

async fn a_commit_is_behind_until_it_is_applied(kit: &MariaDbKit) {
    let (primary, replica) = pair(kit);
    let store = store();
    let (a, b) = (at(&store, &primary), at(&store, &replica));
    replica.sql("stop slave sql_thread").unwrap();
    let mark = row(&a, 1, 7).await;
    assert_eq!(mark.timeline, "s1");
    assert_eq!(judged(&a, &mark).await, Judgment::Satisfied);
    let observed = look(&b).await;
    assert_eq!((observed.role, observed.judge(&mark)), (Role::Replica, Judgment::Behind));
    let clock = SystemClock::new();
    let start = clock.now();
    assert_eq!(b.connect().await.unwrap().wait(&mark, ms(120)).await.unwrap(), Judgment::Behind);
    assert!(clock.now().saturating_duration_since(start) >= ms(120));
    replica.sql("start slave sql_thread").unwrap();
    let mut conn = b.connect().await.unwrap();
    assert_eq!(conn.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
    assert_eq!(value(&mut conn, 1).await.unwrap(), Some(7));
}

async fn p21_p37_nothing_logged(kit: &MariaDbKit) {
    let (primary, _replica) = pair(kit);
    let store = store();
    let a = at(&store, &primary);
    let mut conn = a.connect().await.unwrap();
    let update = "update shop.k set v = 1 where id = 99";
    conn.write(async |c: &mut mysql_async::Conn| c.query_drop(update).await).await.unwrap();
    let nothing = conn.commit_position().await.unwrap();
    assert_eq!(nothing.position, Position::MariaGtid(gtid::State::new()));
    assert_eq!(judged(&a, &nothing).await, Judgment::Satisfied);
    // Behind a write, the position stays that of the write.
    put(&mut conn, 1, 1).await.unwrap();
    let write = conn.commit_position().await.unwrap();
    conn.write(async |c: &mut mysql_async::Conn| c.query_drop(update).await).await.unwrap();
    assert_eq!(conn.commit_position().await.unwrap(), write);
    assert_ne!(write, nothing);
}

async fn p1_a_write_by_hand(kit: &MariaDbKit) {
    let (primary, replica) = pair(kit);
    let store = store();
    let (a, b) = (at(&store, &primary), at(&store, &replica));
    let mut conn = a.connect().await.unwrap();
    put(&mut conn, 1, 1).await.unwrap();
    let first = conn.commit_position().await.unwrap();
    assert_eq!(b.connect().await.unwrap().wait(&first, PATIENCE).await.unwrap(), Judgment::Satisfied);
    replica.sql("stop slave sql_thread").unwrap();
    conn.conn().query_drop("insert into shop.k values (2, 2)").await.unwrap();
    let second = conn.commit_position().await.unwrap();
    assert_eq!(judged(&a, &second).await, Judgment::Satisfied);
    assert_eq!(judged(&b, &second).await, Judgment::Behind, "{second:?} behind {first:?}");
}

async fn p21_refused(kit: &MariaDbKit) {
    let lone = kit.primary(1, &["--log-slave-updates=0"]).unwrap();
    let error = at(&store(), &lone).connect().await.unwrap().observe().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("log_slave_updates"), "{error}");
}

async fn p22_p7_forks(kit: &MariaDbKit, more: &[&str]) {
    let (mut primary, wire, replica) = wired(kit, more).await;
    let store = store();
    let (a, b) = (at(&store, &primary), at(&store, &replica));
    let kept = row(&a, 1, 1).await;
    replica.caught_up(&primary).unwrap();
    wire.set_mode(TcpMode::Blackhole);
    let lost = row(&a, 2, 2).await;
    primary.kill().unwrap();
    wire.cut();
    replica.promote().unwrap();
    for n in 10..20 {
        row(&b, n, n).await;
    }
    let observed = look(&b).await;
    assert_eq!(observed.role, Role::Primary);
    assert_eq!(observed.judge(&kept), Judgment::Satisfied);
    assert_eq!(observed.judge(&lost), Judgment::Lost);
    assert_eq!(value(&mut b.connect().await.unwrap(), 2).await.unwrap(), None);
    // A replica of the new history: by its sequence, the lost one is long there.
    let third = replica.replica(3, more).unwrap();
    third.caught_up(&replica).unwrap();
    let Position::MariaGtid(state) = &lost.position else { panic!("{lost:?}") };
    let text = gtid::mariadb_text(state);
    assert_eq!(third.sql(&format!("select master_gtid_wait('{text}', 0.2)")).unwrap(), "0", "fork-blind");
    let mut conn = at(&store, &third).connect().await.unwrap();
    assert_eq!(conn.wait(&kept, PATIENCE).await.unwrap(), Judgment::Satisfied);
    assert_eq!(conn.wait(&lost, ms(200)).await.unwrap(), Judgment::Behind, "never Satisfied");
    assert_eq!(value(&mut conn, 2).await.unwrap(), None);
}

async fn p22_an_unknown_domain(kit: &MariaDbKit) {
    let (primary, replica) = pair(kit);
    let store = store();
    let mark = Mark {
        system: "orders".into(),
        timeline: "s1".into(),
        position: Position::MariaGtid(gtid::mariadb("77-1-5").unwrap()),
    };
    let conn = at(&store, &replica).connect().await.unwrap();
    // Whoever waited for it to come would wait for ever.
    assert_eq!(conn.wait(&mark, ms(150)).await.unwrap(), Judgment::Behind);
    let foreign = Mark { position: Position::MariaGtid(gtid::mariadb("77-9-5").unwrap()), ..mark };
    assert_eq!(judged(&at(&store, &primary), &foreign).await, Judgment::Lost);
}

async fn p4_an_old_snapshot(kit: &MariaDbKit) {
    let (primary, replica) = pair(kit);
    let store = store();
    let mut conn = at(&store, &replica).connect().await.unwrap();
    let open = "set transaction isolation level repeatable read; start transaction with consistent snapshot";
    conn.conn().query_drop(open).await.unwrap();
    let mark = row(&at(&store, &primary), 1, 1).await;
    assert_eq!(conn.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
    let select = "select v from shop.k where id = 1";
    let inside: Option<u32> = conn.conn().query_first(select).await.unwrap();
    assert_eq!(inside, None, "judged inside the snapshot: the check passes and the row is absent");
    // Judged before: `read` begins its transaction afterwards.
    let mut fresh = at(&store, &replica).connect().await.unwrap();
    assert_eq!(fresh.wait(&mark, PATIENCE).await.unwrap(), Judgment::Satisfied);
    assert_eq!(value(&mut fresh, 1).await.unwrap(), Some(1));
}

async fn p25_reads_that_write(kit: &MariaDbKit) {
    let (primary, replica) = pair(kit);
    let store = store();
    for server in [&primary, &replica] {
        let mut conn = at(&store, server).connect().await.unwrap();
        let write = "insert into shop.k values (1, 1)";
        let error = conn.read(async |c: &mut mysql_async::Conn| c.query_drop(write).await).await.unwrap_err();
        assert_eq!(error.outcome(), Outcome::NotApplied, "{error:?}");
        assert_eq!(value(&mut conn, 1).await.unwrap(), None);
    }
}

async fn p28_refused_transactions(kit: &MariaDbKit) {
    let (primary, _replica) = pair(kit);
    let store = store();
    let mut conn = at(&store, &primary).connect().await.unwrap();
    let error = conn
        .write(async |c: &mut mysql_async::Conn| {
            c.query_drop("insert into shop.k values (1, 1)").await?;
            c.query_drop("insert into shop.k values (1, 2)").await
        })
        .await
        .unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied);
    let position = conn.commit_position().await.unwrap().position;
    assert_eq!(position, Position::MariaGtid(gtid::State::new()), "rolled back: no position");
    assert_eq!(value(&mut conn, 1).await.unwrap(), None);
}

async fn p33_a_life_ends_with_the_process(kit: &MariaDbKit) {
    let (mut primary, _replica) = pair(kit);
    let store = store();
    let a = at(&store, &primary);
    let mark = row(&a, 1, 1).await;
    let mut conn = a.connect().await.unwrap();
    let before = conn.observe().await.unwrap().incarnation;
    assert_eq!(conn.incarnation(), Some(before));
    assert_eq!(look(&a).await.incarnation, before, "the same number each time");
    // Its start is told in seconds.
    let clock = SystemClock::new();
    clock.sleep(Duration::from_millis(1_100)).await;
    primary.kill().unwrap();
    primary.restart().unwrap();
    assert!(value(&mut conn, 1).await.is_err(), "a connection leads to one life");
    drop(conn);
    until("it can be asked", async || match a.connect().await {
        Ok(conn) => conn.observe().await.is_ok_and(|o| o.incarnation != before),
        Err(_) => false,
    })
    .await;
    assert_eq!(judged(&a, &mark).await, Judgment::Satisfied, "what was synced is there");
}

async fn p40_what_a_read_saw_is_in_the_position_behind_it(kit: &MariaDbKit) {
    let (primary, replica) = pair(kit);
    let store = store();
    let (a, b) = (at(&store, &primary), at(&store, &replica));
    let (done, found) = (AtomicBool::new(false), AtomicU32::new(0));
    let writer = async {
        let mut marks = Vec::new();
        // How many reads come meanwhile is up to the machine.
        for n in 1..=20_000 {
            if n > 400 && found.load(Ordering::Relaxed) > 20 {
                break;
            }
            marks.push(row(&a, 1, n).await);
        }
        done.store(true, Ordering::Relaxed);
        marks
    };
    let reader = async {
        let (mut seen, mut conn) = (Vec::new(), b.connect().await.unwrap());
        while !done.load(Ordering::Relaxed) {
            let v = value(&mut conn, 1).await.unwrap().unwrap_or(0);
            seen.push((v, conn.observe().await.unwrap()));
            found.fetch_add(u32::from(v > 0), Ordering::Relaxed);
        }
        seen
    };
    let (marks, seen) = tokio::join!(writer, reader);
    assert!(seen.iter().filter(|(v, _)| *v > 0).count() > 20, "{} reads", seen.len());
    for (v, observed) in seen {
        // What was judged to be there later is what had been seen before.
        if v > 0 {
            let mark = &marks[v as usize - 1];
            assert_eq!(observed.judge(mark), Judgment::Satisfied, "{v}: {mark:?} in {observed:?}");
        }
    }
}

async fn p41_a_lost_answer(kit: &MariaDbKit) {
    let (primary, wire, _replica) = wired(kit, &[]).await;
    let store = MysqlReplicas::builder("orders").request_timeout(ANSWER).build(&Runtime::system()).unwrap();
    let server = store.server(&format!("mysql://root@{}/mysql", wire.address())).unwrap();
    let mut conn = server.connect().await.unwrap();
    conn.conn().query_drop("start transaction; insert into shop.k values (1, 1)").await.unwrap();
    wire.set_mode(TcpMode::RepliesLost);
    let commit = async { conn.commit().await };
    let cut = async {
        until("it is committed", async || primary.sql("select count(*) from shop.k").unwrap() == "1").await;
        wire.cut();
    };
    let (committed, ()) = tokio::join!(commit, cut);
    assert_eq!(committed.unwrap_err().outcome(), Outcome::Unknown);
    assert!(conn.commit_position().await.is_err(), "never a position for what may not be in it");
}

async fn p16_another_store(kit: &MariaDbKit) {
    let (primary, _replica) = pair(kit);
    let mark = row(&at(&store(), &primary), 1, 1).await;
    let other = MysqlReplicas::builder("invoices").build(&Runtime::system()).unwrap();
    assert_eq!(judged(&at(&other, &primary), &mark).await, Judgment::Foreign);
}

async fn a_connection_is_given_on_clean(kit: &MariaDbKit) {
    let (primary, _replica) = pair(kit);
    let store = store();
    let server = at(&store, &primary);
    let mut conn = server.connect().await.unwrap();
    let id = conn.conn().id();
    conn.conn()
        .query_drop("set @mine = 1; start transaction; insert into shop.k values (1, 1)")
        .await
        .unwrap();
    drop(conn);
    let mut again = None;
    until("it is there again", async || {
        let mut conn = server.connect().await.unwrap();
        let found = conn.conn().id() == id;
        again = Some(conn);
        found
    })
    .await;
    let mut conn = again.unwrap();
    let mine: Option<Option<u32>> = conn.conn().query_first("select @mine").await.unwrap();
    assert_eq!(mine, Some(None));
    assert_eq!(value(&mut conn, 1).await.unwrap(), None, "an open transaction ends with its user");
}
