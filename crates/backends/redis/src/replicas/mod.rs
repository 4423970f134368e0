//! Positions of a Redis and its replicas, for sessions that read their own writes.

mod chain;
mod endpoint;
mod info;
mod link;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_store::replicated::TimelineSwitch;

use crate::ConfigError;
use crate::node::locked;
use chain::Chain;
pub use endpoint::RedisEndpoint;
use info::Info;
use link::Line;

/// A Redis that replicates, as one store of sessions: its name, and what is known of its histories.
///
/// Guarantees: a position names the history (replication id) and the offset in it, so that a failover that lost a write
/// is told from a replica that lags; what servers remember of one failover only is kept here over the last 64. Not
/// guaranteed: that a write survives. Redis replicates without waiting; `WAIT` ([`acknowledge`](ReplicasBuilder::acknowledge))
/// makes a loss less likely and rules nothing out.
///
/// ```
/// use mainstay_clock::Runtime;
/// use mainstay_redis::RedisReplicas;
///
/// let store = RedisReplicas::builder("orders").shard("7").build(&Runtime::system())?;
/// assert_eq!(store.system(), "orders/7", "seal tokens under this name: they open for no other shard");
/// let a = store.endpoint("redis://10.0.0.1/")?; // one server; nothing is connected yet
/// assert_eq!(a.name(), "10.0.0.1:6379");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct RedisReplicas(Arc<Store>);

/// What all endpoints of a store share.
pub(crate) struct Store {
    system: String,
    timeout: Duration,
    acknowledge: Option<(u32, Duration)>,
    runtime: Runtime,
    chain: Mutex<Chain>,
}

impl Store {
    /// Takes in what a server says, and gives the histories before its own.
    fn learn(&self, run_id: &str, info: &Info) -> Vec<TimelineSwitch> {
        let mut chain = locked(&self.chain);
        chain.learn(run_id, info);
        chain.before(if info.counts { &info.id } else { run_id })
    }
}

impl fmt::Debug for RedisReplicas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisReplicas").field("system", &self.0.system).finish_non_exhaustive()
    }
}

/// Settings of a [`RedisReplicas`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `shard` | none | one primary holds all keys |
/// | `request_timeout` | 500 ms | far above a round trip, and less than a router's patience |
/// | `acknowledge` | nobody | it costs each write a round trip of the slowest replica, and promises nothing |
#[derive(Clone, Debug)]
#[must_use]
pub struct ReplicasBuilder {
    name: String,
    shard: Option<String>,
    timeout: Duration,
    acknowledge: Option<(u32, Duration)>,
}

impl ReplicasBuilder {
    /// Which part of the keys this store holds, where several primaries share them. Positions of another shard are
    /// foreign.
    pub fn shard(mut self, shard: &str) -> Self {
        self.shard = Some(shard.to_owned());
        self
    }

    /// Longest wait for one answer.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.timeout = limit;
        self
    }

    /// Lets each write wait until so many replicas have it, for at most `limit`; how many had it is
    /// [`RedisEndpoint::acknowledged`]. Writes through one endpoint then wait for each other.
    ///
    /// This is no durability: replicas acknowledge what they keep in memory, and a failover may promote another one.
    pub fn acknowledge(mut self, replicas: u32, limit: Duration) -> Self {
        self.acknowledge = Some((replicas, limit));
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    /// An empty name or shard, or one over 200 bytes; a timeout outside 1 ms to 60 s; acknowledgements of no replica,
    /// or for no time, or not in half the timeout.
    pub fn build(self, runtime: &Runtime) -> Result<RedisReplicas, ConfigError> {
        for (field, text) in
            std::iter::once(("name", &self.name)).chain(self.shard.iter().map(|s| ("shard", s)))
        {
            if text.is_empty() || text.len() > 200 {
                return Err(ConfigError::new(field, text, "1 to 200 bytes"));
            }
        }
        if self.timeout < Duration::from_millis(1) || self.timeout > Duration::from_secs(60) {
            return Err(ConfigError::new("request_timeout", format!("{:?}", self.timeout), "1 ms to 60 s"));
        }
        if let Some((replicas, limit)) = self.acknowledge {
            // WAIT takes whole milliseconds, and 0 means for ever.
            if replicas == 0 || limit < Duration::from_millis(1) || limit > self.timeout / 2 {
                let allowed = "at least one replica, for 1 ms to half the request_timeout";
                return Err(ConfigError::new("acknowledge", format!("{replicas} within {limit:?}"), allowed));
            }
        }
        let system = match &self.shard {
            Some(shard) => format!("{}/{shard}", self.name),
            None => self.name,
        };
        Ok(RedisReplicas(Arc::new(Store {
            system,
            timeout: self.timeout,
            acknowledge: self.acknowledge,
            runtime: runtime.clone(),
            chain: Mutex::default(),
        })))
    }
}

impl RedisReplicas {
    /// The store named `name`: a name that you give, because no id of a Redis survives its restart.
    pub fn builder(name: &str) -> ReplicasBuilder {
        let timeout = Duration::from_millis(500);
        ReplicasBuilder { name: name.to_owned(), shard: None, timeout, acknowledge: None }
    }

    /// The name in positions and tokens: store and shard.
    #[must_use]
    pub fn system(&self) -> &str {
        &self.0.system
    }

    /// One server of it, primary or replica: no virtual address, no balancer. Nothing is connected yet.
    ///
    /// # Errors
    /// An URL that cannot be read.
    pub fn endpoint(&self, url: &str) -> Result<RedisEndpoint, ConfigError> {
        Ok(RedisEndpoint::new(Line::new(url, Arc::clone(&self.0))?))
    }
}
