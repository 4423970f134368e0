//! Where leases are handed over: each store is opened several times, as several processes do.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use mainstay_clock::Runtime;
use mainstay_coordination::Coordinator;
use mainstay_coordination::lock::Lock;
use mainstay_etcd::{EtcdConfig, EtcdLeases};
use mainstay_nats::{NatsConfig, NatsLeases};
use mainstay_postgres::{KeyProfile, Names, PostgresConfig, PostgresLeases, PostgresSessions};
use mainstay_redis::RedisLeases;
use mainstay_sim::servers::{EtcdKit, NatsKit, PostgresKit, RedisKit};
use mainstay_sqlite::SqliteLeases;
use mainstay_store::LeaseStore;

use crate::report::Section;
use crate::saga::http::Node;

pub(super) const NAMESPACE: &str = "bench";

/// One store.
pub(super) struct Place {
    pub(super) name: &'static str,
    /// The word by which [`open`] knows it; the server of ours has none.
    pub(super) kind: &'static str,
    pub(super) url: String,
    /// Dies with it.
    _server: Box<dyn Any>,
}

impl Place {
    fn new(name: &'static str, kind: &'static str, url: String, server: impl Any) -> Self {
        Self { name, kind, url, _server: Box::new(server) }
    }

    /// A lock of a connection of its own, as another process has it.
    pub(super) async fn lock(&self, name: &str, owner: &str, ttl: Duration) -> anyhow::Result<Lock> {
        let store = open(self.kind, &self.url).await?;
        let locks =
            Coordinator::builder(store, Runtime::system()).namespace(NAMESPACE).owner(owner).build()?;
        Ok(locks.mutex(name).ttl(ttl).build()?)
    }
}

/// Opens a store once more.
pub(super) async fn open(kind: &str, url: &str) -> anyhow::Result<Arc<dyn LeaseStore>> {
    let rt = Runtime::system();
    Ok(match kind {
        "redis" => Arc::new(RedisLeases::new(url, &rt)?),
        "sqlite" => Arc::new(SqliteLeases::builder(url).open(&rt)?),
        "postgres" => Arc::new(PostgresLeases::open(PostgresConfig::builder(url).build()?, &rt).await?),
        "advisory" => {
            let config = PostgresConfig::builder(url).build()?;
            Arc::new(PostgresSessions::open(config, KeyProfile::Sqlx, Names::Whole, &rt).await?)
        }
        "etcd" => Arc::new(EtcdLeases::open(EtcdConfig::builder(url).build()?, &rt).await?),
        "nats" => Arc::new(NatsLeases::open(NatsConfig::builder(url).build()?, &rt).await?),
        _ => bail!("there is no store `{kind}`"),
    })
}

/// The kind of `mainstay serve`.
pub(super) const SERVER: &str = "server";

/// Starts everything that is installed, and says what is not.
pub(super) fn all(dir: &Path, server: Option<&Path>, section: &mut Section) -> anyhow::Result<Vec<Place>> {
    let mut places = Vec::new();
    match RedisKit::new().map(|kit| kit.primary(&[])).transpose()? {
        Some(redis) => places.push(Place::new("Redis", "redis", redis.url(), redis)),
        None => section.note("Not measured: Redis, which is not installed."),
    }
    places.push(Place::new("SQLite", "sqlite", dir.join("leases.db").display().to_string(), ()));
    match PostgresKit::new()?.map(|kit| kit.primary(&[])).transpose()? {
        Some(postgres) => {
            let url = postgres.url();
            places.push(Place::new("PostgreSQL, rows", "postgres", url.clone(), ()));
            places.push(Place::new("PostgreSQL, advisory locks", "advisory", url, postgres));
        }
        None => section.note("Not measured: PostgreSQL, which is not installed."),
    }
    match server {
        Some(program) => {
            let node = Node::serve(program, dir, |_| ())?;
            places.push(Place::new("`mainstay serve`", SERVER, node.address.clone(), node));
        }
        None => section.note("Not measured: `mainstay serve`, which was not built."),
    }
    match EtcdKit::new().map(|kit| kit.single()).transpose()? {
        Some(etcd) => places.push(Place::new("etcd", "etcd", etcd.url(), etcd)),
        None => section.note("Not measured: etcd, which is not installed."),
    }
    match NatsKit::new().map(|kit| kit.server("").context("nats-server does not start")).transpose()? {
        Some(nats) => places.push(Place::new("NATS", "nats", nats.url(), nats)),
        None => section.note("Not measured: NATS, which is not installed."),
    }
    Ok(places)
}
