//! One server: one ordered connection for all handles, made again when it broke.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::{Clock, Instant};
use mainstay_store::{Error, ErrorKind, Outcome, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError};

use super::Store;
use super::chain::Lives;
use super::info::{Info, run_id};
use crate::node::locked;
use crate::{ConfigError, error, tls};

/// Requests of one connection that wait to be written; more wait for a place.
const BUFFER: usize = 1_024;
/// After a connection could not be made, callers are told so for this long without another try.
const PAUSE: Duration = Duration::from_millis(50);
/// A connection that let so many requests in a row go without an answer is given up. Fewer keep it: what waits in it
/// stays in order, so that a write cannot overtake the one before.
const SILENCES: u32 = 8;

/// A connection to one process.
#[derive(Clone)]
pub(crate) struct Link {
    pub(crate) connection: MultiplexedConnection,
    /// For writes that wait for acknowledgements, so that nobody else does.
    pub(crate) slow: MultiplexedConnection,
    pub(crate) run_id: Arc<str>,
    /// The server's life when it was last asked.
    pub(crate) life: Arc<AtomicU64>,
    number: u64,
    silences: Arc<AtomicU32>,
}

/// One server.
pub(crate) struct Line {
    client: Client,
    pub(crate) name: String,
    pub(crate) store: Arc<Store>,
    live: Mutex<Option<Link>>,
    connecting: tokio::sync::Mutex<()>,
    retry_at: Mutex<Instant>,
    links: AtomicU64,
    asked: AtomicU64,
    lives: Mutex<(u64, Lives)>,
}

impl Line {
    pub(crate) fn new(url: &str, store: Arc<Store>) -> std::result::Result<Self, ConfigError> {
        let client = tls::client(url)?;
        let name = client.get_connection_info().addr().to_string();
        Ok(Self {
            client,
            name,
            store,
            live: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            retry_at: Mutex::new(Instant::ZERO),
            links: AtomicU64::new(0),
            asked: AtomicU64::new(0),
            lives: Mutex::default(),
        })
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        &**self.store.runtime.clock()
    }

    /// The life of the server that the open connection leads to.
    pub(crate) fn life(&self) -> Option<u64> {
        locked(&self.live).as_ref().map(|link| link.life.load(Ordering::Acquire))
    }

    /// The place of a question among all questions to this server. Taken right before the question is written.
    pub(crate) fn turn(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::SeqCst)
    }

    /// In which life the answer to question `turn` was given. Answers that are looked at late count for the life that
    /// is known by then: within a connection the later question has the later answer.
    pub(crate) fn see(&self, link: &Link, turn: u64, info: &Info) -> u64 {
        let mut lives = locked(&self.lives);
        if turn >= lives.0 {
            let life = lives.1.see(&link.run_id, info);
            lives.0 = turn;
            link.life.store(life, Ordering::Release);
        }
        link.life.load(Ordering::Acquire)
    }

    /// The open connection, or a new one.
    pub(crate) async fn link(&self) -> Result<Link> {
        if let Some(link) = locked(&self.live).clone() {
            return Ok(link);
        }
        let _one = self.connecting.lock().await;
        if let Some(link) = locked(&self.live).clone() {
            return Ok(link);
        }
        let left = locked(&self.retry_at).saturating_duration_since(self.clock().now());
        if !left.is_zero() {
            let text = format!("redis {} could not be reached a moment ago", self.name);
            return Err(Error::new(ErrorKind::Unavailable, text).with_retry_after(left));
        }
        match self.connect().await {
            Ok(link) => {
                *locked(&self.live) = Some(link.clone());
                Ok(link)
            }
            Err(error) => {
                *locked(&self.retry_at) = self.clock().now().saturating_add(PAUSE);
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Link> {
        let failed = |e: RedisError| error::unreachable(&self.name, e);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.store.timeout))
            .set_response_timeout(Some(self.store.timeout))
            .set_pipeline_buffer_size(BUFFER);
        let open = || self.client.get_multiplexed_async_connection_with_config(&config);
        let mut connection = open().await.map_err(failed)?;
        let slow =
            if self.store.acknowledge.is_some() { open().await.map_err(failed)? } else { connection.clone() };
        let mut ask = redis::pipe();
        ask.cmd("INFO").arg("server").cmd("INFO").arg("replication");
        let turn = self.turn();
        let (server, replication): (String, String) =
            ask.query_async(&mut connection).await.map_err(failed)?;
        if server.lines().any(|line| line.trim_end() == "redis_mode:cluster") {
            let text = format!("redis {} is part of a cluster; a store here is one primary", self.name);
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        let run_id = run_id(&server).ok_or_else(|| error::garbled(&self.name, &"INFO server"))?;
        let info = Info::read(&replication).ok_or_else(|| error::garbled(&self.name, &"INFO replication"))?;
        let number = self.links.fetch_add(1, Ordering::Relaxed);
        let (run_id, life, silences) = (run_id.into(), Arc::default(), Arc::default());
        let link = Link { connection, slow, run_id, life, number, silences };
        self.see(&link, turn, &info);
        Ok(link)
    }

    /// What a failed request says about the connection, and the error of it.
    pub(crate) fn failed(&self, link: &Link, error: RedisError) -> Error {
        let give_up = match error.code() {
            Some(code) => matches!(code, "NOAUTH" | "NOPERM"),
            None if error.is_timeout() => link.silences.fetch_add(1, Ordering::Relaxed) + 1 >= SILENCES,
            None => error.is_io_error() || error.is_connection_dropped(),
        };
        if give_up {
            let mut live = locked(&self.live);
            if live.as_ref().is_some_and(|l| l.number == link.number) {
                *live = None;
            }
        }
        match error.code() {
            Some(_) => error::refused_by(&self.name, error),
            None if error.is_timeout() || error.is_io_error() || error.is_connection_dropped() => {
                error::sent(&self.name, error)
            }
            None => {
                let text = format!("redis {} answered with another type than was asked for", self.name);
                Error::new(ErrorKind::ApiMisuse, text).with_outcome(Outcome::Unknown).with_source(error)
            }
        }
    }

    pub(crate) fn answered(&self, link: &Link) {
        link.silences.store(0, Ordering::Relaxed);
    }
}
