//! One server that most tests share, each in tables of its own.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime, Sleep, SystemClock, Tick, WallTime};
use mainstay_postgres::{Builder, PostgresConfig, PostgresLeases};
use mainstay_sim::servers::{Postgres, PostgresKit};
use mainstay_store::FencingToken;
use mainstay_store::LeaseStore;
use mainstay_store::lease::{AcquireRequest, Acquired};
use tokio_postgres::{Client, NoTls};

/// A name and what it runs.
pub(crate) type Test = (&'static str, fn(World) -> Pin<Box<dyn Future<Output = ()>>>);

/// No machine stands still for as long.
pub(crate) const TTL: Duration = Duration::from_secs(60);
/// A third of it is a renewal that is waited for, and the rest is for a machine that stands still.
pub(crate) const RENEWED: Duration = Duration::from_secs(9);
/// A wait that ends a broken test.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);
/// Longest wait for one answer where answers come.
pub(crate) const ANSWER: Duration = Duration::from_secs(60);
/// Longest wait for one that does not come.
pub(crate) const SILENCE: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(crate) struct World {
    pub(crate) kit: PostgresKit,
    pub(crate) primary: Arc<Postgres>,
    /// They follow it, and nothing happens to them.
    pub(crate) standbys: Arc<[Postgres; 2]>,
    tables: Arc<AtomicU64>,
}

impl World {
    pub(crate) fn start(kit: PostgresKit) -> Self {
        let primary = Arc::new(kit.primary(&[]).unwrap());
        primary.sql(crate::cluster::TABLE).unwrap();
        // What tests hold open on a standby must not stop its replay.
        let patient = [("hot_standby_feedback", "on")];
        let standbys = Arc::new([primary.standby(&patient).unwrap(), primary.standby(&patient).unwrap()]);
        Self { kit, primary, standbys, tables: Arc::default() }
    }

    /// A table name that no other test has.
    pub(crate) fn table(&self) -> String {
        format!("lease_{}", self.tables.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn config(&self) -> Builder {
        direct(&self.primary.url()).table(&self.table())
    }

    pub(crate) async fn store(&self) -> PostgresLeases {
        open(self.config()).await
    }

    pub(crate) async fn client(&self) -> Client {
        connect(&self.primary.url()).await
    }
}

/// With patience for answers.
pub(crate) fn direct(url: &str) -> Builder {
    PostgresConfig::builder(url).request_timeout(ANSWER)
}

/// A store whose requests end early, so that only several tries may open it.
pub(crate) async fn opened(config: Builder) -> PostgresLeases {
    let config = config.build().unwrap();
    let opened = std::sync::Mutex::new(None);
    until("the store is open", || async {
        let store = PostgresLeases::open(config.clone(), &Runtime::system()).await.ok();
        *opened.lock().unwrap() = store;
        opened.lock().unwrap().is_some()
    })
    .await;
    opened.into_inner().unwrap().unwrap()
}

pub(crate) async fn open(config: Builder) -> PostgresLeases {
    PostgresLeases::open(config.build().unwrap(), &Runtime::system()).await.unwrap()
}

/// A plain connection: whoever else uses the database.
pub(crate) async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let _driver = Runtime::system().spawn("client", async move {
        // Ends with the test, or with the server.
        let _ = connection.await;
    });
    client
}

pub(crate) fn ask(name: &str, op: &str) -> AcquireRequest {
    AcquireRequest::exclusive(name, op, op, TTL)
}

pub(crate) async fn take(store: &dyn LeaseStore, name: &str, op: &str) -> Option<FencingToken> {
    match store.acquire(ask(name, op)).await.unwrap() {
        Acquired::Granted(grants) => Some(grants[0].token),
        _ => None,
    }
}

/// Waits until `done` says so.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut done: impl FnMut() -> F) {
    let clock = SystemClock::new();
    let end = clock.now().saturating_add(PATIENCE);
    while !done().await {
        assert!(clock.now() < end, "not in {PATIENCE:?}: {what}");
        clock.sleep(Duration::from_millis(5)).await;
    }
}

/// The server's clock as the statements of one schema see it: a function of the same name that stands before the
/// built-in one. It goes on as time does, and a sleep moves it.
#[derive(Debug)]
pub(crate) struct ServerClock {
    admin: Arc<Client>,
    schema: String,
    shift: AtomicU64,
}

impl ServerClock {
    /// Makes the schema; open the store with [`url`](Self::url).
    pub(crate) async fn make(world: &World, schema: &str) -> Self {
        let admin = Arc::new(world.client().await);
        let text = format!(
            "create schema {schema}; create table {schema}.shift (micros int8 not null); insert into {schema}.shift values (0);
             create function {schema}.clock_timestamp() returns timestamptz volatile language sql as
               'select pg_catalog.clock_timestamp() + micros * interval ''1 microsecond'' from {schema}.shift'"
        );
        admin.batch_execute(&text).await.unwrap();
        Self { admin, schema: schema.to_owned(), shift: AtomicU64::new(0) }
    }

    pub(crate) fn url(&self, world: &World) -> String {
        format!("{}?options=-csearch_path%3D{},pg_catalog,public", world.primary.url(), self.schema)
    }

    /// Moves the server's clock, also back.
    pub(crate) async fn jump(&self, micros: i64) {
        let text = format!("update {}.shift set micros = micros + {micros}", self.schema);
        self.admin.batch_execute(&text).await.unwrap();
    }
}

impl Clock for ServerClock {
    fn now(&self) -> Instant {
        SystemClock::new().now().saturating_add(Duration::from_micros(self.shift.load(Ordering::SeqCst)))
    }

    fn wall(&self) -> WallTime {
        SystemClock::new().wall()
    }

    fn tick(&self) -> Tick {
        Tick::system()
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        let step = deadline.saturating_duration_since(self.now()).as_nanos().div_ceil(1_000);
        self.shift.fetch_add(u64::try_from(step).unwrap(), Ordering::SeqCst);
        let text = format!("update {}.shift set micros = micros + {step}", self.schema);
        let admin = Arc::clone(&self.admin);
        Box::pin(async move { admin.batch_execute(&text).await.unwrap() })
    }
}
