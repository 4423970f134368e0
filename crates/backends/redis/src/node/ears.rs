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
use crate::answer::SHARED;
use crate::error;
use crate::keys::{INFO, Keys, LINE, SHARERS, lock_of_side};

/// Leases whose last look is kept though nobody waits for them now, at least: whoever waits for a lease asks again and
/// again, and goes on from there. From twice as many as are waited for on, the others are forgotten.
const KEPT: usize = 1_024;

/// What a look at a lease saw: the lock's value and what is known of its holder, who shares it, and who waits first.
#[derive(Clone, Debug, PartialEq)]
struct Look {
    exists: bool,
    values: Value,
    sharers: Value,
    first: Value,
}

impl Look {
    fn is_shared(&self) -> bool {
        let Value::Array(values) = &self.values else { return false };
        matches!(values.first(), Some(Value::BulkString(lock)) if lock == SHARED.as_bytes())
    }
}

/// A look, and how often the bell had rung before it.
type Seen = (u64, Look);

/// Whether a look tells something to whoever has seen `before`. Renewals touch what is held and change nothing of it;
/// whatever touches what is free was taken and given back. Who has seen nothing yet, and comes because somebody holds
/// it alone, waits for the end of that; of anything else it cannot know what it missed.
fn is_news(before: Option<&Seen>, rung: u64, now: &Look) -> bool {
    match before {
        None => !now.exists || now.is_shared(),
        Some((at, before)) => before != now || (!before.exists && *at != rung),
    }
}

/// One lease that somebody waits for, or did.
#[derive(Debug)]
struct Topic {
    /// Rung when one of its keys is touched.
    bell: watch::Sender<u64>,
    seen: Mutex<Option<Seen>>,
}

impl Topic {
    /// Keeps the latest look.
    fn saw(&self, rung: u64, look: &Look) {
        let mut seen = locked(&self.seen);
        if seen.as_ref().is_none_or(|(at, _)| *at <= rung) {
            *seen = Some((rung, look.clone()));
        }
    }
}

/// What this process has seen of a lease so far.
#[derive(Debug, Default)]
pub(crate) struct Known(Option<(Arc<Topic>, Seen)>);

#[derive(Clone)]
struct Link {
    connection: MultiplexedConnection,
}

#[derive(Default)]
struct Topics {
    by_lock: HashMap<String, Arc<Topic>>,
    /// With so many, those that nobody waits for are forgotten.
    sweep_at: usize,
}

#[derive(Default)]
struct Shared {
    topics: Mutex<Topics>,
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
                        let beside =
                            [INFO, LINE, SHARERS].into_iter().filter_map(|side| lock_of_side(key, side));
                        for topic in beside.chain([key]).filter_map(|lock| topics.by_lock.get(lock)) {
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
        for topic in locked(&self.topics).by_lock.values() {
            topic.bell.send_modify(|n| *n += 1);
        }
    }

    fn known(&self, lock: &str) -> Known {
        let topic = locked(&self.topics).by_lock.get(lock).cloned();
        Known(topic.and_then(|topic| {
            let seen = locked(&topic.seen).clone()?;
            Some((topic, seen))
        }))
    }

    fn topic(&self, lock: &str) -> Arc<Topic> {
        let mut topics = locked(&self.topics);
        if let Some(topic) = topics.by_lock.get(lock) {
            return Arc::clone(topic);
        }
        if topics.by_lock.len() >= topics.sweep_at {
            topics.by_lock.retain(|_, topic| Arc::strong_count(topic) > 1);
            topics.sweep_at = (topics.by_lock.len() * 2).max(KEPT);
        }
        let topic = Arc::new(Topic { bell: watch::Sender::new(0), seen: Mutex::default() });
        topics.by_lock.insert(lock.to_owned(), Arc::clone(&topic));
        topic
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

    /// What was seen of the lease so far: what changes from now on is told by [`changed`](Self::changed), also before
    /// that is polled.
    pub(crate) fn known(&self, keys: &Keys) -> Known {
        self.shared.known(&keys.lock)
    }

    /// Resolves when the lease is another than it is known, whoever changed it. Of one that nobody has looked at yet it
    /// is not known what was missed, so it resolves at once unless somebody holds it alone. Renewals are no change.
    pub(crate) async fn changed(&self, keys: &Keys, known: Known) -> Result<()> {
        let (topic, mut before) = match known.0 {
            Some((topic, seen)) => (topic, Some(seen)),
            None => (self.shared.topic(&keys.lock), None),
        };
        let mut bell = topic.bell.subscribe();
        loop {
            // Before the look, so that a change in between rings.
            let rung = *bell.borrow_and_update();
            let now = self.look(keys).await?;
            topic.saw(rung, &now);
            if is_news(before.as_ref(), rung, &now) {
                return Ok(());
            }
            before = Some((rung, now));
            // The sender lives in the topic.
            let _ = bell.changed().await;
        }
    }

    async fn look(&self, keys: &Keys) -> Result<Look> {
        let mut link = self.link().await?;
        let mut pipe = redis::pipe();
        // A lock of a foreign layout reads as nothing, but it exists.
        pipe.cmd("EXISTS").arg(&keys.lock).cmd("MGET").arg(&keys.lock).arg(keys.info());
        pipe.cmd("HGETALL").arg(keys.sharers()).cmd("ZRANGE").arg(keys.line()).arg(0).arg(0);
        let (exists, values, sharers, first): (bool, Value, Value, Value) =
            match pipe.query_async(&mut link.connection).await {
                Ok(all) => all,
                Err(e) => {
                    *locked(&self.shared.live) = None;
                    // Nobody is told anything over that connection any more.
                    self.shared.ring_all();
                    return Err(error::unreachable(&self.node, e));
                }
            };
        Ok(Look { exists, values, sharers, first })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn look(lock: Option<&str>, sharers: &[&str]) -> Look {
        let text = |text: &&str| Value::BulkString(text.as_bytes().to_vec());
        let values = Value::Array(vec![lock.as_ref().map_or(Value::Nil, text), Value::Nil]);
        let sharers = Value::Array(sharers.iter().map(text).collect());
        Look { exists: lock.is_some(), values, sharers, first: Value::Array(Vec::new()) }
    }

    #[test]
    fn what_is_news_to_whom() {
        let (free, alone, next) = (look(None, &[]), look(Some("a"), &[]), look(Some("b"), &[]));
        let (full, room) = (look(Some(SHARED), &["a", "b"]), look(Some(SHARED), &["b"]));
        let check = |before: Option<(u64, &Look)>, rung: u64, now: &Look| {
            is_news(before.map(|(at, look)| (at, look.clone())).as_ref(), rung, now)
        };
        assert!(check(None, 0, &free) && check(None, 0, &full), "something may have been missed");
        assert!(!check(None, 0, &alone), "whoever came because of that waits for its end");
        assert!(check(Some((0, &alone)), 1, &free) && check(Some((0, &alone)), 1, &next));
        assert!(!check(Some((0, &alone)), 1, &alone) && !check(Some((0, &full)), 1, &full), "renewed");
        assert!(check(Some((0, &full)), 1, &room), "a permit came back");
        assert!(!check(Some((0, &free)), 0, &free), "nobody was there");
        assert!(check(Some((0, &free)), 1, &free), "taken and given back in between");
    }

    #[test]
    fn all_keys_of_a_lease_ring_and_those_that_nobody_waits_for_are_forgotten() {
        let shared = Shared::default();
        let keys = crate::keys::KeyProfile::Verbatim.keys("a", "a").unwrap();
        let topic = shared.topic("a");
        topic.saw(0, &look(None, &[]));
        for (n, key) in [keys.lock.clone(), keys.info(), keys.sharers(), keys.line(), keys.fence()]
            .into_iter()
            .enumerate()
        {
            let data = vec![Value::Array(vec![Value::BulkString(key.into_bytes())])];
            shared.heard(&PushInfo { kind: PushKind::Invalidate, data });
            assert_eq!(*topic.bell.borrow(), n.min(3) as u64 + 1, "the fence is not looked at");
        }
        topic.saw(7, &look(Some("x"), &[]));
        topic.saw(3, &look(None, &[]));
        assert!(shared.known("a").0.is_some_and(|(_, (at, look))| at == 7 && look.exists), "the latest look");
        for n in 0..3 * KEPT {
            shared.topic(&format!("n{n}")).saw(0, &look(None, &[]));
        }
        assert!(locked(&shared.topics).by_lock.len() <= KEPT + 1);
        assert!(shared.known("a").0.is_some(), "somebody still waits for it");
        assert!(shared.known("n0").0.is_none());
    }
}
