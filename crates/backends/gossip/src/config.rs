//! Options of a node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mainstay_consistency::hlc::Hlc;

use crate::error::ConfigError;
use crate::seal::Keys;

/// Longest names, of clusters and of members.
const MAX_NAME: usize = 255;
/// Most members that are remembered: with every member's news a few kilobytes a second. Above, use several clusters.
const MAX_MEMBERS: usize = 1_024;

/// How a node learns who else is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Joining {
    /// By SWIM, starting from these addresses.
    Seeds(Vec<SocketAddr>),
    /// By a list of names and addresses.
    List(BTreeMap<String, SocketAddr>),
}

/// The options; made by [`Config::builder`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `tick` | 300 ms | as the rivals have it; jittered by a quarter |
/// | `fanout` | 3 | rounds to converge grow with the logarithm of the fleet |
/// | `snapshot_every` | 5 s | what a crash may lose of the own changes that nobody heard of |
/// | `members` | none | then nothing is ever forgotten: tombstones stay |
/// | `seeds` | none | this node waits to be found |
/// | `max_members` | 1,024 | a bound on memory; more are not learned of |
/// | `log_bytes` | 1 MiB | peers further behind repair by digests |
/// | `clock` | none | most types have no stamps; [`LwwMap`](mainstay_consistency::crdt::LwwMap) does |
#[derive(Clone, Debug)]
pub struct Config {
    pub(crate) name: String,
    pub(crate) cluster: String,
    pub(crate) keys: Option<Keys>,
    pub(crate) members: Vec<String>,
    pub(crate) joining: Joining,
    pub(crate) tick: Duration,
    pub(crate) fanout: usize,
    pub(crate) snapshot_every: Duration,
    pub(crate) max_members: usize,
    pub(crate) log_bytes: usize,
    pub(crate) schema: u32,
    pub(crate) clock: Option<Hlc>,
}

impl Config {
    /// Options of the node `name` in `cluster`. Names are unique within a cluster.
    #[must_use]
    pub fn builder(name: &str, cluster: &str) -> Builder {
        Builder(Self {
            name: name.to_owned(),
            cluster: cluster.to_owned(),
            keys: None,
            members: Vec::new(),
            joining: Joining::Seeds(Vec::new()),
            tick: Duration::from_millis(300),
            fanout: 3,
            snapshot_every: Duration::from_secs(5),
            max_members: MAX_MEMBERS,
            log_bytes: 1 << 20,
            schema: 1,
            clock: None,
        })
    }

    pub(crate) fn keys(&self) -> &Keys {
        self.keys.as_ref().expect("invariant: build() refuses a configuration without keys")
    }
}

/// Builds a [`Config`].
///
/// ```
/// use mainstay_gossip::{Config, Keys};
///
/// let config = Config::builder("a", "shop")
///     .keys(Keys::new(1, [7; 32]))
///     .members(["a", "b", "c"])
///     .seeds(["127.0.0.1:7946".parse()?])
///     .build()?;
/// let error = Config::builder("a", "shop").build().unwrap_err();
/// assert_eq!(error.field(), "keys");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder(Config);

impl Builder {
    /// The shared keys. Required.
    #[must_use]
    pub fn keys(mut self, keys: Keys) -> Self {
        self.0.keys = Some(keys);
        self
    }

    /// The names of the configured members. They, and only they, decide what may be forgotten; without them nothing is.
    #[must_use]
    pub fn members<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.0.members = names.into_iter().map(Into::into).collect();
        self
    }

    /// Addresses where the cluster is found, of nodes that are usually there. Members find each other by SWIM.
    #[must_use]
    pub fn seeds(mut self, seeds: impl IntoIterator<Item = SocketAddr>) -> Self {
        self.0.joining = Joining::Seeds(seeds.into_iter().collect());
        self
    }

    /// All members with their addresses, in place of SWIM; for up to about twenty. They are the configured members too.
    #[must_use]
    pub fn list<N: Into<String>>(mut self, list: impl IntoIterator<Item = (N, SocketAddr)>) -> Self {
        let list: BTreeMap<String, SocketAddr> = list.into_iter().map(|(n, a)| (n.into(), a)).collect();
        self.0.members = list.keys().cloned().collect();
        self.0.joining = Joining::List(list);
        self
    }

    /// Time between two rounds.
    #[must_use]
    pub fn tick(mut self, tick: Duration) -> Self {
        self.0.tick = tick;
        self
    }

    /// Peers that are talked to in a round.
    #[must_use]
    pub fn fanout(mut self, peers: usize) -> Self {
        self.0.fanout = peers;
        self
    }

    /// How often a changed state is written to disk.
    #[must_use]
    pub fn snapshot_every(mut self, every: Duration) -> Self {
        self.0.snapshot_every = every;
        self
    }

    /// Most members that are remembered.
    #[must_use]
    pub fn max_members(mut self, members: usize) -> Self {
        self.0.max_members = members;
        self
    }

    /// Bytes of changes kept for peers that are behind.
    #[must_use]
    pub fn log_bytes(mut self, bytes: usize) -> Self {
        self.0.log_bytes = bytes;
        self
    }

    /// The clock that stamps this node's writes, for values in which the last writer wins: what others stamped further ahead
    /// than its skew allows is held back until its time has come, and it takes note of every other stamp.
    #[must_use]
    pub fn clock(mut self, clock: Hlc) -> Self {
        self.0.clock = Some(clock);
        self
    }

    /// The version of the data's schema: nodes with another one are refused by name.
    #[must_use]
    pub fn schema(mut self, version: u32) -> Self {
        self.0.schema = version;
        self
    }

    /// The options.
    ///
    /// # Errors
    /// No keys, an empty or overlong name, members without this node, a tick outside 10 ms to 1 min, a fanout outside
    /// 1 to 32, a snapshot interval outside 10 ms to 1 h, room for no member or more than 65,536.
    pub fn build(self) -> Result<Config, ConfigError> {
        let c = self.0;
        for (field, text) in [("name", &c.name), ("cluster", &c.cluster)] {
            check_name(field, text)?;
        }
        c.members.iter().try_for_each(|name| check_name("members", name))?;
        if c.keys.is_none() {
            return Err(ConfigError::new("keys", "nothing", "at least one key"));
        }
        if !c.members.is_empty() && !c.members.contains(&c.name) {
            let allowed = format!("names that include this node's, `{}`", c.name);
            return Err(ConfigError::new("members", c.members.join(", "), allowed));
        }
        within("tick", c.tick, Duration::from_millis(10), Duration::from_secs(60))?;
        within("snapshot_every", c.snapshot_every, Duration::from_millis(10), Duration::from_secs(3_600))?;
        if !(1..=32).contains(&c.fanout) {
            return Err(ConfigError::new("fanout", c.fanout, "1 to 32"));
        }
        if !(1..=65_536).contains(&c.max_members) {
            return Err(ConfigError::new("max_members", c.max_members, "1 to 65536"));
        }
        Ok(c)
    }
}

fn check_name(field: &'static str, text: &str) -> Result<(), ConfigError> {
    if text.is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        let allowed = "1 to 255 bytes without control characters";
        return Err(ConfigError::new(field, text.escape_debug(), allowed));
    }
    Ok(())
}

fn within(field: &'static str, value: Duration, low: Duration, high: Duration) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(field, format!("{value:?}"), format!("{low:?} to {high:?}")))
}
