//! A primary, two replicas, and how they fail.

use std::io;

use mainstay_chaos::proxy::TcpProxy;
use mainstay_chaos::sessions::Rig;
use mainstay_clock::Runtime;
use mainstay_consistency::session::RouterBuilder;
use mainstay_redis::{RedisEndpoint, RedisReplicas};
use mainstay_sim::servers::{Redis, RedisKit};
use mainstay_store::{BoxFuture, Result};

/// A server, the link through which it follows the primary, and the way of clients to it.
struct Place {
    server: Redis,
    link: TcpProxy,
    endpoint: RedisEndpoint,
}

pub(crate) struct RedisRig {
    places: Vec<Place>,
    primary: usize,
    failovers: u64,
}

impl RedisRig {
    pub(crate) async fn start(kit: &RedisKit) -> io::Result<Self> {
        let store = RedisReplicas::builder("campaign").build(&Runtime::system()).map_err(io::Error::other)?;
        let mut places: Vec<Place> = Vec::new();
        for _ in 0..3 {
            let link = TcpProxy::bind(Runtime::system(), 1).await?;
            let server = match places.first() {
                None => kit.primary(&[])?,
                Some(primary) => {
                    link.set_upstream(Some(primary.server.address()));
                    primary.server.replica_through(link.address(), &[])?
                }
            };
            let endpoint = store.endpoint(&server.url()).map_err(io::Error::other)?;
            places.push(Place { server, link, endpoint });
        }
        Ok(Self { places, primary: 0, failovers: 0 })
    }

    fn replicas(&self) -> impl Iterator<Item = &Place> {
        self.places.iter().enumerate().filter(|(i, _)| *i != self.primary).map(|(_, place)| place)
    }

    /// Of two replicas the one that has more, so that the other one can follow it.
    fn successor(&self) -> io::Result<usize> {
        let mut best: Option<(u64, usize)> = None;
        for i in (0..self.places.len()).filter(|i| *i != self.primary) {
            let applied = self.places[i].server.replication("slave_repl_offset")?.parse().unwrap_or(0);
            if best.is_none_or(|(most, _)| applied > most) {
                best = Some((applied, i));
            }
        }
        Ok(best.map_or(0, |(_, i)| i))
    }
}

impl Rig for RedisRig {
    type Conn = RedisEndpoint;

    fn nodes(&self, mut router: RouterBuilder<RedisEndpoint>) -> RouterBuilder<RedisEndpoint> {
        for (i, place) in self.places.iter().enumerate() {
            router = router.shared(&format!("n{i}"), place.endpoint.clone());
        }
        router
    }

    fn connections(&self) -> Vec<BoxFuture<'static, Result<RedisEndpoint>>> {
        let connect = |place: &Place| {
            let endpoint = place.endpoint.clone();
            Box::pin(async move { Ok(endpoint) }) as BoxFuture<'static, Result<RedisEndpoint>>
        };
        self.places.iter().map(connect).collect()
    }

    fn prepare(&mut self, keys: &[String]) -> io::Result<()> {
        for key in keys {
            self.places[self.primary].server.command(&["SET", key, "0"])?;
        }
        self.settle()
    }

    fn isolate(&mut self) -> io::Result<()> {
        for place in self.replicas() {
            place.link.set_upstream(None);
            place.link.cut();
        }
        Ok(())
    }

    fn settle(&mut self) -> io::Result<()> {
        let primary = &self.places[self.primary].server;
        self.replicas().try_for_each(|place| place.server.caught_up(primary))
    }

    fn take_over(&mut self) -> io::Result<()> {
        let (old, new) = (self.primary, self.successor()?);
        self.failovers += 1;
        self.places[old].server.kill()?;
        if self.failovers % 4 == 1 {
            // It comes back empty and says that it is primary, before there is another one.
            self.places[old].server.restart()?;
        }
        self.places[new].server.promote()?;
        self.primary = new;
        let address = self.places[new].server.address();
        for place in self.replicas() {
            place.link.set_upstream(Some(address));
            place.link.cut();
        }
        if self.failovers % 4 != 1 {
            self.places[old].server.restart()?;
        }
        self.places[old].server.follow(self.places[old].link.address())?;
        self.settle()
    }

    fn write<'a>(conn: &'a mut RedisEndpoint, key: &'a str, version: i64) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let mut pipe = redis::pipe();
            pipe.cmd("SET").arg(key).arg(version).ignore();
            conn.write(&pipe).await
        })
    }

    fn read<'a>(conn: &'a mut RedisEndpoint, key: &'a str) -> BoxFuture<'a, Result<i64>> {
        Box::pin(async move {
            let mut pipe = redis::pipe();
            pipe.cmd("GET").arg(key);
            // A key that is not there was never written, as far as this server knows.
            let (version,): (Option<i64>,) = conn.read(&pipe).await?;
            Ok(version.unwrap_or(0))
        })
    }
}
