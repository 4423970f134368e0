//! Servers, stores and waiting.

use std::future::Future;
use std::time::Duration;

use mainstay_chaos::proxy::TcpProxy;
use mainstay_clock::{Clock as _, Deadline, Runtime, SystemClock};
use mainstay_mysql::{MysqlConn, MysqlReplicas, MysqlServer};
use mainstay_sim::servers::{MariaDb, MariaDbKit};
use mainstay_store::ReplicatedStore as _;
use mainstay_store::replicated::{Judgment, Mark, Observed};
use mysql_async::prelude::Queryable as _;

/// Long enough for a machine that builds beside.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// No test takes as long on a machine that builds beside.
const LIMIT: Duration = Duration::from_secs(240);
/// Longest wait for one answer where answers come.
pub(crate) const ANSWER: Duration = Duration::from_secs(30);

/// Proxies go on while a test waits for a program.
pub(crate) fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.unwrap().block_on(async {
        // A test that hangs fails.
        tokio::select! {
            biased;
            () = test => {}
            () = SystemClock::new().sleep(LIMIT) => panic!("not over after {LIMIT:?}"),
        }
    });
}

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn store() -> MysqlReplicas {
    MysqlReplicas::builder("orders").request_timeout(ANSWER).build(&Runtime::system()).unwrap()
}

pub(crate) fn at(store: &MysqlReplicas, server: &MariaDb) -> MysqlServer {
    store.server(&server.url()).unwrap()
}

/// A primary with a table, and a replica that has it.
pub(crate) fn pair(kit: &MariaDbKit) -> (MariaDb, MariaDb) {
    let primary = kit.primary(1, &[]).unwrap();
    primary
        .sql("create database shop; create table shop.k (id int primary key, v int) engine = innodb")
        .unwrap();
    let replica = primary.replica(2, &[]).unwrap();
    (primary, replica)
}

/// The same, with a wire in between.
pub(crate) async fn wired(kit: &MariaDbKit, more: &[&str]) -> (MariaDb, TcpProxy, MariaDb) {
    let primary = kit.primary(1, more).unwrap();
    primary
        .sql("create database shop; create table shop.k (id int primary key, v int) engine = innodb")
        .unwrap();
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(primary.address()));
    let replica = primary.replica_through(proxy.address(), 2, more).unwrap();
    (primary, proxy, replica)
}

pub(crate) async fn put(conn: &mut MysqlConn, id: u32, v: u32) -> mainstay_store::Result<()> {
    let sql = format!("replace into shop.k values ({id}, {v})");
    conn.write(async |c: &mut mysql_async::Conn| c.query_drop(sql).await).await
}

/// Writes a row, and gives where it is.
pub(crate) async fn row(server: &MysqlServer, id: u32, v: u32) -> Mark {
    let mut conn = server.connect().await.unwrap();
    put(&mut conn, id, v).await.unwrap();
    conn.commit_position().await.unwrap()
}

pub(crate) async fn value(conn: &mut MysqlConn, id: u32) -> mainstay_store::Result<Option<u32>> {
    let sql = format!("select v from shop.k where id = {id}");
    conn.read(async |c: &mut mysql_async::Conn| c.query_first(sql).await).await
}

pub(crate) async fn look(server: &MysqlServer) -> Observed {
    server.connect().await.unwrap().observe().await.unwrap()
}

pub(crate) async fn judged(server: &MysqlServer, mark: &Mark) -> Judgment {
    look(server).await.judge(mark)
}

/// Waits until `done` says so, for at most [`PATIENCE`].
pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let clock = SystemClock::new();
    let end = Deadline::after(clock.now(), PATIENCE);
    while !done().await {
        assert!(!end.is_over(&clock), "never: {what}");
        clock.sleep(ms(10)).await;
    }
}
