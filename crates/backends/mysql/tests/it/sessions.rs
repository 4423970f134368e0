//! Sessions over a real MariaDB and its replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mainstay_chaos::proxy::TcpMode;
use mainstay_clock::{Clock as _, Runtime, SystemClock};
use mainstay_consistency::session::{CallError, Router, Session, SessionEvent, TokenKeys};
use mainstay_mysql::{MysqlConn, MysqlReplicas};
use mainstay_sim::servers::{MariaDb, MariaDbKit};
use mainstay_store::Error;
use mysql_async::prelude::Queryable as _;

use crate::Test;
use crate::world::{ANSWER, at, pair, put, run, store, until, value, wired};

pub(crate) const TESTS: &[Test] = &[
    ("sl1_sl2_a_session_sees_what_it_wrote_and_read", |kit| run(sl1_sl2(kit))),
    ("sl6_p7_a_lost_write_is_said_and_a_kept_one_is_found", |kit| run(sl6_p7(kit))),
    ("sl3_sl4_writes_follow_what_was_read", |kit| run(sl3_sl4(kit))),
    ("p9_an_old_primary_that_comes_back_is_not_believed", |kit| run(p9_an_old_primary(kit))),
    ("p24_a_read_inside_a_write_sees_it", |kit| run(p24_inside_a_write(kit))),
    ("p37_a_write_that_logged_nothing_keeps_the_floor", |kit| run(p37_keeps_the_floor(kit))),
];

fn router(store: &MysqlReplicas, servers: &[&MariaDb], count: &Arc<AtomicU32>) -> Router<MysqlConn> {
    let count = Arc::clone(count);
    let mut setup = Router::builder("orders", Arc::new(SystemClock::new()))
        .call_timeout(ANSWER)
        .trust(std::time::Duration::from_secs(600))
        .on_event(move |event| {
            if matches!(event, SessionEvent::ToReplica { .. }) {
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    for (i, server) in servers.iter().enumerate() {
        setup = setup.node(&i.to_string(), at(store, server).lender());
    }
    setup.build().unwrap()
}

async fn write(session: &mut Session<MysqlConn>, id: u32, v: u32) -> Result<(), CallError<Error>> {
    session.write(async |conn: &mut MysqlConn| put(conn, id, v).await).await
}

async fn read(session: &mut Session<MysqlConn>, id: u32) -> Result<Option<u32>, CallError<Error>> {
    session.read(async |conn: &mut MysqlConn| value(conn, id).await).await
}

async fn sl1_sl2(kit: &MariaDbKit) {
    let (primary, wire, replica) = wired(kit, &[]).await;
    let (store, count) = (store(), Arc::default());
    let router = router(&store, &[&primary, &replica], &count);
    let _poller = router.start(&Runtime::system());
    until("both are known", async || router.status().iter().all(|s| s.eligible)).await;
    let least = std::time::Duration::from_millis(2);
    wire.set_mode(TcpMode::Latency { least, jitter: least });
    let mut session = router.session();
    for n in 0..6_000 {
        // How many reads find a replica that has caught up is up to the machine.
        if n >= 150 && count.load(Ordering::Relaxed) > 50 {
            break;
        }
        write(&mut session, 1, n).await.unwrap();
        for _ in 0..2 {
            assert_eq!(read(&mut session, 1).await.unwrap(), Some(n));
        }
    }
    assert!(count.load(Ordering::Relaxed) > 50, "{count:?} reads came from the replica");
    let token = session.token().await.unwrap();
    let keys = TokenKeys::builder(store.system()).key(1, [7; 32]).build().unwrap();
    let text = keys.seal(&token, SystemClock::new().wall());
    assert!(text.len() <= 64, "{} characters", text.len());
    assert_eq!(keys.open(&text, SystemClock::new().wall()).unwrap(), token);
}

async fn sl6_p7(kit: &MariaDbKit) {
    for lossy in [false, true] {
        let (mut primary, wire, replica) = wired(kit, &[]).await;
        let (store, count) = (store(), Arc::default());
        let router = router(&store, &[&primary, &replica], &count);
        router.poll_once().await;
        let mut session = router.session();
        write(&mut session, 1, 1).await.unwrap();
        replica.caught_up(&primary).unwrap();
        if lossy {
            wire.set_mode(TcpMode::Blackhole);
        }
        write(&mut session, 1, 2).await.unwrap();
        if !lossy {
            replica.caught_up(&primary).unwrap();
        }
        primary.kill().unwrap();
        wire.cut();
        replica.promote().unwrap();
        router.poll_once().await;
        let by_session = read(&mut session, 1).await;
        if lossy {
            assert!(by_session.unwrap_err().is_lost());
            assert!(write(&mut session, 1, 3).await.unwrap_err().is_lost());
            assert!(session.accept_loss());
            assert_eq!(read(&mut session, 1).await.unwrap(), Some(1));
        } else {
            assert_eq!(by_session.unwrap(), Some(2));
        }
    }
}

async fn sl3_sl4(kit: &MariaDbKit) {
    let (mut primary, wire, replica) = wired(kit, &[]).await;
    let (store, count) = (store(), Arc::default());
    let router = router(&store, &[&primary, &replica], &count);
    router.poll_once().await;
    wire.set_mode(TcpMode::Blackhole);
    write(&mut router.session(), 1, 1).await.unwrap();
    let how = mainstay_consistency::session::Consistency::Primary;
    let mut reader = router.session();
    let seen = reader.read_at(&how, async |conn: &mut MysqlConn| value(conn, 1).await).await.unwrap();
    assert_eq!(seen, Some(1));
    // Its position, while somebody can tell.
    reader.token().await.unwrap();
    primary.kill().unwrap();
    wire.cut();
    replica.promote().unwrap();
    router.poll_once().await;
    let answer = write(&mut reader, 2, 2).await.unwrap_err();
    assert!(answer.is_lost(), "no answer without its question: {answer:?}");
    assert_eq!(replica.sql("select count(*) from shop.k").unwrap(), "0");
}

async fn p9_an_old_primary(kit: &MariaDbKit) {
    let (mut primary, wire, replica) = wired(kit, &[]).await;
    let (store, count) = (store(), Arc::default());
    let router = router(&store, &[&primary, &replica], &count);
    router.poll_once().await;
    let mut session = router.session();
    write(&mut session, 1, 1).await.unwrap();
    replica.caught_up(&primary).unwrap();
    wire.set_mode(TcpMode::Blackhole);
    primary.sql("insert into shop.k values (9, 9)").unwrap(); // lost
    primary.kill().unwrap();
    wire.cut();
    replica.promote().unwrap();
    router.poll_once().await;
    write(&mut session, 1, 2).await.unwrap();
    // It comes back as it was, takes writes, and knows nothing of its successor.
    primary.restart().unwrap();
    for _ in 0..3 {
        router.poll_once().await;
        assert_eq!(read(&mut session, 1).await.unwrap(), Some(2));
    }
    // A program that starts now hears of it first.
    let late = self::router(&store, &[&primary, &replica], &Arc::default());
    late.poll_once().await;
    let mut fresh = late.session();
    assert_eq!(read(&mut fresh, 1).await.unwrap(), Some(2));
    assert_eq!(read(&mut fresh, 9).await.unwrap(), None, "nothing of a history that was left");
    write(&mut session, 1, 3).await.unwrap();
    assert_eq!(replica.sql("select v from shop.k where id = 1").unwrap(), "3");
}

async fn p24_inside_a_write(kit: &MariaDbKit) {
    let (primary, replica) = pair(kit);
    let router = router(&store(), &[&primary, &replica], &Arc::default());
    router.poll_once().await;
    replica.sql("stop slave sql_thread").unwrap();
    let mut session = router.session();
    let write = async |c: &mut mysql_async::Conn| {
        c.query_drop("insert into shop.k values (1, 7)").await?;
        c.query_first("select v from shop.k where id = 1").await
    };
    let seen: Option<u32> =
        session.write(async |conn: &mut MysqlConn| conn.write(write).await).await.unwrap();
    assert_eq!(seen, Some(7));
    replica.sql("start slave sql_thread").unwrap();
}

async fn p37_keeps_the_floor(kit: &MariaDbKit) {
    let (primary, replica) = pair(kit);
    let (store, count) = (store(), Arc::default());
    let router = router(&store, &[&primary, &replica], &count);
    router.poll_once().await;
    let mut session = router.session();
    replica.sql("stop slave sql_thread").unwrap();
    write(&mut session, 1, 1).await.unwrap();
    let floor = session.token().await.unwrap();
    session
        .write(async |conn: &mut MysqlConn| {
            conn.write(async |c: &mut mysql_async::Conn| {
                c.query_drop("update shop.k set v = 5 where id = 99").await
            })
            .await
        })
        .await
        .unwrap();
    assert_eq!(session.token().await.unwrap(), floor);
    for _ in 0..4 {
        router.poll_once().await;
        assert_eq!(read(&mut session, 1).await.unwrap(), Some(1), "never from the replica that lacks it");
    }
    assert_eq!(count.load(Ordering::Relaxed), 0);
    replica.sql("start slave sql_thread").unwrap();
}
