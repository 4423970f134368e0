//! A primary, two standbys, and how they fail.

use std::io;
use std::sync::{Arc, Mutex};

use mainstay_chaos::proxy::TcpProxy;
use mainstay_chaos::sessions::Rig;
use mainstay_clock::Runtime;
use mainstay_consistency::session::RouterBuilder;
use mainstay_postgres::replicas::{Endpoint, EndpointConfig, Node, TransactionError};
use mainstay_sim::servers::{Postgres, PostgresKit};
use mainstay_store::{BoxFuture, Error, ErrorKind, Result};
use tokio_postgres::Client;
use tokio_postgres::types::Type;

/// A server, the link through which it follows the primary, and the way of clients to whoever has its place.
struct Place {
    server: Postgres,
    link: TcpProxy,
    endpoint: Arc<Mutex<Endpoint>>,
}

pub(crate) struct PostgresRig {
    places: Vec<Place>,
    primary: usize,
    failovers: u64,
}

fn endpoint(server: &Postgres) -> Endpoint {
    let config = EndpointConfig::builder(&server.url()).connections(12).build().unwrap();
    Endpoint::new(config, &Runtime::system())
}

async fn place(server: Postgres) -> io::Result<Place> {
    let link = TcpProxy::bind(Runtime::system(), 1).await?;
    let endpoint = Arc::new(Mutex::new(endpoint(&server)));
    Ok(Place { server, link, endpoint })
}

impl PostgresRig {
    pub(crate) async fn start(kit: &PostgresKit) -> io::Result<Self> {
        let primary = kit.primary(&[])?;
        primary.sql("create table t (k text primary key, v int8 not null) with (fillfactor = 50)")?;
        let mut places = vec![place(primary).await?];
        for _ in 0..2 {
            let link = TcpProxy::bind(Runtime::system(), 1).await?;
            link.set_upstream(Some(places[0].server.address()));
            let server = places[0].server.standby_through(link.address(), &[])?;
            places.push(Place { link, ..place(server).await? });
        }
        Ok(Self { places, primary: 0, failovers: 0 })
    }

    fn standbys(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().enumerate().filter(|(i, _)| *i != self.primary).map(|(_, place)| place)
    }

    /// Of two standbys of a dead primary the one that received more, so that the other one can follow it.
    ///
    /// One whose stream has not ended yet may still receive: then it would be ahead of the one that was chosen, and
    /// could follow nobody.
    fn successor(&self) -> io::Result<usize> {
        self.standbys().try_for_each(|place| place.server.stream_ended())?;
        let mut best: Option<(u64, usize)> = None;
        for i in (0..self.places.len()).filter(|i| *i != self.primary) {
            let text = "select pg_wal_lsn_diff(pg_last_wal_receive_lsn(), '0/0')";
            let received = self.places[i].server.sql(text)?.trim().parse().unwrap_or(0);
            if best.is_none_or(|(most, _)| received > most) {
                best = Some((received, i));
            }
        }
        Ok(best.map_or(0, |(_, i)| i))
    }
}

fn failed(error: TransactionError<tokio_postgres::Error>) -> Error {
    match error {
        TransactionError::Store(error) => error,
        TransactionError::Inner(error) => gone(error),
        _ => Error::new(ErrorKind::Internal, "a transaction failed"),
    }
}

fn gone(error: tokio_postgres::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "a statement failed").with_source(error)
}

impl Rig for PostgresRig {
    type Conn = Node;

    fn nodes(&self, mut router: RouterBuilder<Node>) -> RouterBuilder<Node> {
        for (i, place) in self.places.iter().enumerate() {
            let endpoint = Arc::clone(&place.endpoint);
            router = router.node(&format!("n{i}"), move || {
                let endpoint = endpoint.lock().unwrap().clone();
                Box::pin(async move { endpoint.connect().await })
            });
        }
        router
    }

    fn connections(&self) -> Vec<BoxFuture<'static, Result<Node>>> {
        let connect = |place: &Place| {
            let endpoint = place.endpoint.lock().unwrap().clone();
            Box::pin(async move { endpoint.connect().await }) as BoxFuture<'static, Result<Node>>
        };
        self.places.iter().map(connect).collect()
    }

    fn prepare(&mut self, keys: &[String]) -> io::Result<()> {
        let rows: Vec<String> = keys.iter().map(|key| format!("('{key}', 0)")).collect();
        self.places[self.primary].server.sql(&format!("insert into t values {}", rows.join(", ")))?;
        self.settle()
    }

    fn isolate(&mut self) -> io::Result<()> {
        for place in self.standbys() {
            place.link.set_upstream(None);
            place.link.cut();
        }
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        let primary = &self.places[self.primary].server;
        self.standbys().try_for_each(|place| place.server.caught_up(primary))
    }

    fn take_over(&mut self) -> io::Result<()> {
        let old = self.primary;
        self.failovers += 1;
        self.places[old].server.kill()?;
        let new = self.successor()?;
        self.places[new].server.promote()?;
        self.primary = new;
        let address = self.places[new].server.address();
        for place in self.standbys() {
            place.link.set_upstream(Some(address));
            place.link.cut();
        }
        if self.failovers % 4 == 1 {
            // It comes back as it was killed, and says that it is primary, while sessions go on.
            self.places[old].server.restart()?;
        }
        let follower = self.places[new].server.standby_through(self.places[old].link.address(), &[])?;
        self.places[old].server = follower;
        *self.places[old].endpoint.lock().unwrap() = endpoint(&self.places[old].server);
        self.settle()
    }

    fn write<'a>(conn: &'a mut Node, key: &'a str, version: i64) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let update = "update t set v = $2 where k = $1";
            let write = async |c: &Client| {
                c.execute_typed(update, &[(&key, Type::TEXT), (&version, Type::INT8)]).await
            };
            conn.write(write).await.map(drop).map_err(failed)
        })
    }

    fn read<'a>(conn: &'a mut Node, key: &'a str) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move {
            // One statement is one snapshot, and it begins after the judgment.
            let select = "select v from t where k = $1";
            let row = conn.client().query_typed_one(select, &[(&key, Type::TEXT)]).await.map_err(gone)?;
            Ok(row.get(0))
        })
    }
}
