//! Waiting for a change of a lease without polling.
//!
//! A second connection reads the lock and what is known of its holder with client tracking on: the server
//! then tells when either changes, whoever changes it, also when it expires. Nothing has to be configured
//! on the server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use mainstay_store::{Error, ErrorKind, Result};
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ProtocolVersion, PushInfo, PushKind, RedisError, Value};
use tokio::sync::watch;

use super::locked;
use crate::error;
use crate::keys::Keys;

/// What a look at a lease saw: the lock's value, and what is known of its holder.
#[derive(Clone, Debug, PartialEq)]
struct Look {
    exists: bool,
    values: Value,
}

#[derive(Debug)]
struct Topic {
    watchers: usize,
    bell: watch::Sender<u64>,
}

#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
}

#[derive(Default)]
struct Shared {
    /// By key: both keys of a lease ring one bell.
    topics: Mutex<HashMap<String, Topic>>,
    live: Mutex<Option<Link>>,
}

impl Shared {
    fn heard(&self, push: &PushInfo) {
        match push.kind {
            PushKind::Invalidate => match push.data.first() {
                Some(Value::Array(keys)) => {
                    let topics = locked(&self.topics);
                    for key in keys {
                        let key = match key {
                            Value::BulkString(bytes) => std::str::from_utf8(bytes).unwrap_or_default(),
                            Value::SimpleString(text) => text,
                            _ => continue,
                        };
                        if let Some(topic) = topics.get(key) {
                            topic.bell.send_modify(|n| *n += 1);
                        }
                    }
                }
                // Everything was flushed.
                _ => self.ring_all(),
            },
            PushKind::Disconnection => {
                *locked(&self.live) = None;
                self.ring_all();
            }
            _ => {}
        }
    }

    fn ring_all(&self) {
        for topic in locked(&self.topics).values() {
            topic.bell.send_modify(|n| *n += 1);
        }
    }
}

/// A watcher of one key; gone, nobody is told any more.
struct Listening<'a> {
    shared: &'a Shared,
    key: String,
    bell: watch::Receiver<u64>,
}

impl<'a> Listening<'a> {
    fn new(shared: &'a Shared, key: String) -> Self {
        let mut topics = locked(&shared.topics);
        let topic =
            topics.entry(key.clone()).or_insert_with(|| Topic { watchers: 0, bell: watch::Sender::new(0) });
        topic.watchers += 1;
        let bell = topic.bell.subscribe();
        drop(topics);
        Self { shared, key, bell }
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        let mut topics = locked(&self.shared.topics);
        if let Some(topic) = topics.get_mut(&self.key) {
            topic.watchers -= 1;
            if topic.watchers == 0 {
                topics.remove(&self.key);
            }
        }
    }
}

/// The listening connection of one server, made at the first use.
pub(crate) struct Ears {
    client: Client,
    node: String,
    timeout: Duration,
    connecting: tokio::sync::Mutex<()>,
    shared: Arc<Shared>,
}

impl Ears {
    pub(crate) fn new(
        client: &Client,
        node: String,
        timeout: Duration,
    ) -> std::result::Result<Self, RedisError> {
        let info = client.get_connection_info().clone();
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(info.set_redis_settings(settings))?;
        Ok(Self { client, node, timeout, connecting: tokio::sync::Mutex::new(()), shared: Arc::default() })
    }

    /// Resolves when the lease is free, or changed since the first poll. Renewals are no change.
    pub(crate) async fn changed(&self, keys: &Keys) -> Result<()> {
        let mut lock = Listening::new(&self.shared, keys.lock.clone());
        let mut info = Listening::new(&self.shared, keys.info());
        let mut known = None;
        loop {
            // Before the look, so that a change in between rings.
            lock.bell.mark_unchanged();
            info.bell.mark_unchanged();
            let now = self.look(keys).await?;
            if !now.exists || known.as_ref().is_some_and(|k| *k != now) {
                return Ok(());
            }
            known = Some(now);
            tokio::select! {
                biased;
                _ = lock.bell.changed() => {}
                _ = info.bell.changed() => {}
            }
        }
    }

    async fn look(&self, keys: &Keys) -> Result<Look> {
        let mut link = self.link().await?;
        let mut pipe = redis::pipe();
        // A lock of a foreign layout reads as nothing, but it exists.
        pipe.cmd("EXISTS").arg(&keys.lock).cmd("MGET").arg(&keys.lock).arg(keys.info());
        let (exists, values): (bool, Value) = match pipe.query_async(&mut link.connection).await {
            Ok(both) => both,
            Err(e) => {
                *locked(&self.shared.live) = None;
                return Err(error::unreachable(&self.node, e));
            }
        };
        Ok(Look { exists, values })
    }

    async fn link(&self) -> Result<Link> {
        if let Some(link) = locked(&self.shared.live).clone() {
            return Ok(link);
        }
        let _one = self.connecting.lock().await;
        if let Some(link) = locked(&self.shared.live).clone() {
            return Ok(link);
        }
        let failed = |e: RedisError| error::unreachable(&self.node, e);
        let shared: Weak<Shared> = Arc::downgrade(&self.shared);
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout))
            .set_push_sender(move |push: PushInfo| -> std::result::Result<(), redis::aio::SendError> {
                let shared = shared.upgrade().ok_or(redis::aio::SendError)?;
                shared.heard(&push);
                Ok(())
            });
        let mut connection =
            self.client.get_multiplexed_async_connection_with_config(&config).await.map_err(failed)?;
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON");
        if let Err(e) = tracking.query_async::<Value>(&mut connection).await {
            let text = format!("redis {} does not let this user track keys; waiters use timers", self.node);
            return Err(Error::new(ErrorKind::Unsupported, text).with_source(e));
        }
        let link = Link { connection };
        *locked(&self.shared.live) = Some(link.clone());
        Ok(link)
    }
}
