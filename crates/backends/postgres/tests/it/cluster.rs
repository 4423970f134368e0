//! A primary with two standbys behind links that can be cut, and sessions over them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_chaos::proxy::TcpProxy;
use mainstay_clock::{Runtime, SystemClock};
use mainstay_consistency::ErrorKind;
use mainstay_consistency::session::{CallError, Router, RouterBuilder, Session, SessionEvent, SessionToken};
use mainstay_postgres::replicas::{Endpoint, EndpointConfig, Node, TransactionError};
use mainstay_sim::servers::{Postgres, PostgresKit};
use mainstay_store::ReplicatedStore as _;
use mainstay_store::replicated::{Judgment, Mark, Position};
use tokio_postgres::Client;

use crate::world::PATIENCE;

pub(crate) type Failed = CallError<TransactionError<tokio_postgres::Error>>;

pub(crate) const TABLE: &str = "create table t (k text primary key, v int8 not null)";
const PUT: &str = "insert into t values ($1, $2) on conflict (k) do update set v = excluded.v";

pub(crate) struct Cluster {
    pub(crate) primary: Postgres,
    pub(crate) standbys: [Postgres; 2],
    pub(crate) links: [TcpProxy; 2],
}

pub(crate) async fn link(to: &Postgres) -> TcpProxy {
    let proxy = TcpProxy::bind(Runtime::system(), 1).await.unwrap();
    proxy.set_upstream(Some(to.address()));
    proxy
}

impl Cluster {
    pub(crate) async fn start(kit: &PostgresKit, settings: &[(&str, &str)]) -> Self {
        let primary = kit.primary(settings).unwrap();
        primary.sql(TABLE).unwrap();
        let links = [link(&primary).await, link(&primary).await];
        let standbys = [&links[0], &links[1]].map(|l| primary.standby_through(l.address(), &[]).unwrap());
        let cluster = Self { primary, standbys, links };
        cluster.caught_up();
        cluster
    }

    pub(crate) fn caught_up(&self) {
        self.standbys.iter().for_each(|s| s.caught_up(&self.primary).unwrap());
    }

    /// From here on nothing reaches the standbys.
    pub(crate) fn cut(&self) {
        for link in &self.links {
            link.set_upstream(None);
            link.cut();
        }
    }

    /// Kills the primary, and lets the first standby take over and the second one follow it.
    pub(crate) fn fail_over(&mut self) {
        self.primary.kill().unwrap();
        self.standbys[0].promote().unwrap();
        self.links[1].set_upstream(Some(self.standbys[0].address()));
    }

    /// A router over all three, and what it decided.
    pub(crate) fn router(&self, setup: impl FnOnce(RouterBuilder<Node>) -> RouterBuilder<Node>) -> Routed {
        let nodes = [("p", &self.primary), ("s0", &self.standbys[0]), ("s1", &self.standbys[1])];
        routed(&nodes.map(|(name, server)| (name, endpoint(&server.url()))), setup)
    }
}

/// A router and its events.
pub(crate) struct Routed {
    pub(crate) router: Router<Node>,
    events: Arc<Mutex<Vec<SessionEvent>>>,
}

impl Routed {
    pub(crate) fn heard(&self, wanted: impl Fn(&SessionEvent) -> bool) -> usize {
        self.events.lock().unwrap().iter().filter(|e| wanted(e)).count()
    }

    /// The last decision about a read: the replica, or none for the primary.
    pub(crate) fn placed(&self) -> Option<String> {
        let events = self.events.lock().unwrap();
        let last = events.iter().rev().find_map(|e| match e {
            SessionEvent::ToReplica { node, .. } => Some(Some(node.clone())),
            SessionEvent::ToPrimary { .. } => Some(None),
            _ => None,
        });
        last.expect("nothing was read")
    }
}

pub(crate) fn routed(
    nodes: &[(&str, Endpoint)],
    setup: impl FnOnce(RouterBuilder<Node>) -> RouterBuilder<Node>,
) -> Routed {
    let events: Arc<Mutex<Vec<SessionEvent>>> = Arc::default();
    let heard = Arc::clone(&events);
    let mut builder = Router::builder("orders", Arc::new(SystemClock::new()))
        .on_event(move |e| heard.lock().unwrap().push(e.clone()));
    for (name, endpoint) in nodes {
        builder = builder.node(name, endpoint.lender());
    }
    // Machines that build beside are slow to connect.
    let builder = builder.call_timeout(Duration::from_secs(5)).trust(Duration::from_secs(600));
    Routed { router: setup(builder).build().unwrap(), events }
}

pub(crate) fn endpoint(url: &str) -> Endpoint {
    Endpoint::new(EndpointConfig::builder(url).build().unwrap(), &Runtime::system())
}

pub(crate) async fn node(server: &Postgres) -> Node {
    endpoint(&server.url()).connect().await.unwrap()
}

/// Writes through a node and gives the position.
pub(crate) async fn commit(node: &mut Node, k: &str, v: i64) -> Mark {
    node.write(async |c: &Client| c.execute(PUT, &[&k, &v]).await).await.unwrap();
    node.commit_position().await.unwrap()
}

pub(crate) async fn look_up(client: &Client, k: &str) -> Result<Option<i64>, tokio_postgres::Error> {
    Ok(client.query_opt("select v from t where k = $1", &[&k]).await?.map(|row| row.get(0)))
}

/// Waits until the node has `mark`.
pub(crate) async fn has(node: &Node, mark: &Mark) {
    assert_eq!(node.wait(mark, PATIENCE).await.unwrap(), Judgment::Satisfied, "{mark:?}");
}

pub(crate) async fn judged(server: &Postgres, mark: &Mark) -> Judgment {
    node(server).await.observe().await.unwrap().judge(mark)
}

pub(crate) async fn put(session: &mut Session<Node>, k: &str, v: i64) -> Result<(), Failed> {
    let write = async |n: &mut Node| n.write(async |c: &Client| c.execute(PUT, &[&k, &v]).await).await;
    session.write(write).await.map(drop)
}

pub(crate) async fn get(session: &mut Session<Node>, k: &str) -> Result<Option<i64>, Failed> {
    session.read(async |n: &mut Node| n.read(async |c: &Client| look_up(c, k).await).await).await
}

pub(crate) fn kind<T: std::fmt::Debug>(result: Result<T, Failed>) -> ErrorKind {
    match result {
        Err(CallError::Refused(error)) => error.kind(),
        other => panic!("not refused: {other:?}"),
    }
}

pub(crate) fn at(mark: &Mark) -> SessionToken {
    SessionToken::at(mark.clone())
}

pub(crate) fn lsn(mark: &Mark) -> u64 {
    match mark.position {
        Position::Lsn(lsn) | Position::LsnRead { lsn, .. } | Position::LsnUnsynced { lsn, .. } => lsn,
        _ => panic!("{mark:?}"),
    }
}

/// `0/306EE20` as a number.
pub(crate) fn number(text: &str) -> u64 {
    let (high, low) = text.trim().split_once('/').unwrap();
    u64::from_str_radix(high, 16).unwrap() << 32 | u64::from_str_radix(low, 16).unwrap()
}

pub(crate) fn ask_lsn(server: &Postgres, question: &str) -> u64 {
    number(&server.sql(&format!("select {question}")).unwrap())
}
