//! What the nodes of a fleet tell each other: that they are there, and whose breakers are open. Gossip carries it; it
//! decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Runtime;
use mainstay_consistency::crdt::{Any, Document};
use mainstay_gossip::{Config as GossipConfig, FileCell, Gossip, Keys, Member, Presence, Sockets, Stats};
use mainstay_saga::Engine;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::api::instant;
use crate::config::Config;
use crate::error::{Code, Error, Result};
use crate::participants::Participants;

/// Largest key file.
const MAX_FILE: u64 = 16 * 1024;
/// Most bytes of state that one node asks of another: a thousand nodes and as many open breakers take about one MiB.
pub(crate) const MAX_STATE: usize = 16 << 20;
/// Between two looks at the own breakers.
const LOOK: Duration = Duration::from_secs(1);
/// Between two reports of the load: at a hundred nodes twenty small changes a second.
const REPORT: Duration = Duration::from_secs(5);
/// Names in the replicated document.
const NODE: &str = "node/";
const OPEN: &str = "open/";

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) version: String,
    /// When it started.
    pub(crate) since: String,
    /// Sagas in memory.
    pub(crate) sagas: usize,
    /// Where its API and console are.
    pub(crate) api: String,
}

/// A node as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Its name, or the identity of one that has not said its name yet.
    pub(crate) name: String,
    /// `here`, `up`, `down` or `unseen`.
    pub(crate) state: &'static str,
    pub(crate) configured: bool,
    pub(crate) address: Option<SocketAddr>,
    pub(crate) status: Option<Status>,
}

/// The nodes that see an origin's breaker open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Open {
    pub(crate) origin: String,
    pub(crate) nodes: Vec<String>,
}

/// The fleet as this node sees it.
#[derive(Debug)]
pub(crate) struct Fleet {
    gossip: Gossip<Document>,
    name: String,
    cluster: String,
    configured: Vec<String>,
}

impl Fleet {
    /// Joins the fleet of the configuration; none when gossip is off.
    ///
    /// # Errors
    /// A setting that is wrong, a key file that cannot be used, a damaged snapshot, an address that is taken.
    pub(crate) async fn join(config: &Config, rt: &Runtime) -> Result<Option<Arc<Self>>> {
        let bind = config.text("gossip.bind");
        if bind.is_empty() {
            return Ok(None);
        }
        let (name, cluster) = (name(config), config.text("gossip.cluster").to_owned());
        let configured = config.list("gossip.members").to_vec();
        let mut seeds = Vec::new();
        for seed in config.list("gossip.seeds") {
            match resolve("gossip.seeds", seed) {
                Ok(address) => seeds.push(address),
                // A name that is not known yet must not keep a node from starting.
                Err(error) => tracing::warn!(seed, error = error.chain(), "a seed is left out"),
            }
        }
        let built = GossipConfig::builder(&name, &cluster)
            .keys(keys(config)?)
            .members(configured.clone())
            .seeds(seeds)
            .build();
        let options = built.map_err(|e| Error::with(Code::BadValue, "gossip", e))?;
        let advertise = match config.text("gossip.advertise") {
            "" => None,
            text => Some(resolve("gossip.advertise", text)?),
        };
        let net = Sockets::bind(resolve("gossip.bind", bind)?, advertise, rt);
        let net = net.await.map_err(|e| Error::with(Code::CannotListen, "gossip.bind", e))?;
        let file = Path::new(config.text("store.data")).join("gossip.state");
        let unusable = |e| Error::with(Code::GossipState, format!("cannot use {}", file.display()), e);
        let cell = FileCell::open(&file).map_err(|e| unusable(mainstay_gossip::Error::from(e)))?;
        let gossip = Gossip::start(options, Arc::new(net), Some(Arc::new(cell)), rt);
        let gossip = gossip.await.map_err(unusable)?;
        Ok(Some(Arc::new(Self { gossip, name, cluster, configured })))
    }

    /// The name of this node.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The name of the cluster.
    pub(crate) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Where others reach this node.
    pub(crate) fn address(&self) -> SocketAddr {
        self.gossip.address()
    }

    /// What this node and the others told each other, as it is in `gossip.state`.
    pub(crate) fn state(&self) -> Vec<u8> {
        self.gossip.snapshot().encode()
    }

    /// What was counted.
    pub(crate) fn stats(&self) -> Stats {
        self.gossip.stats()
    }

    /// Takes the keys of the file over.
    pub(crate) fn set_keys(&self, keys: Keys) {
        self.gossip.set_keys(keys);
    }

    /// Tells the others about this node until it stops, then says good-bye.
    pub(crate) async fn run(
        &self,
        rt: &Runtime,
        drain: &CancellationToken,
        engine: &Engine,
        participants: &Participants,
        api: &str,
    ) {
        let since = instant(rt.clock().wall());
        let mut reported = None;
        while !drain.is_cancelled() {
            self.tell_breakers(&participants.open_breakers());
            let now = rt.clock().now();
            if reported.is_none_or(|at| now.saturating_duration_since(at) >= REPORT) {
                reported = Some(now);
                let version = env!("CARGO_PKG_VERSION").to_owned();
                let (since, sagas, api) = (since.clone(), engine.in_flight(), api.to_owned());
                self.tell_status(&Status { version, since, sagas, api });
            }
            tokio::select! {
                biased;
                () = drain.cancelled() => {}
                () = rt.clock().sleep(LOOK) => {}
            }
        }
        if let Err(error) = self.gossip.shutdown().await {
            tracing::warn!(error = %error, "the last snapshot of gossip could not be written");
        }
    }

    fn tell_status(&self, status: &Status) {
        let Ok(bytes) = serde_json::to_vec(status) else { return };
        let key = format!("{NODE}{}", self.name);
        if self.gossip.read(|doc| doc.get(&key).and_then(register) == Some(bytes.clone())) {
            return;
        }
        let change = self.gossip.change(|doc, actor| {
            doc.update(actor, key, |any, mint| any.register(mint, |r, mint| r.write_value(mint, bytes)))
        });
        if let Err(error) = change {
            tracing::warn!(error = %error, "the status was not told");
        }
    }

    /// Names this node under every origin whose breaker is open here, and under no other.
    fn tell_breakers(&self, open: &BTreeSet<String>) {
        let me = self.name.as_bytes().to_vec();
        let told: BTreeSet<String> = self.gossip.read(|doc| {
            let named = doc.iter().filter(|(_, any)| any.as_set().is_some_and(|s| s.get(&me).is_some()));
            named.filter_map(|(key, _)| Some(key.strip_prefix(OPEN)?.to_owned())).collect()
        });
        for origin in open.symmetric_difference(&told) {
            let (key, opens) = (format!("{OPEN}{origin}"), open.contains(origin));
            let change = self.gossip.change(|doc, actor| {
                doc.update(actor, key, |any, mint| {
                    any.set(mint, |set, mint| {
                        if opens { set.insert(mint, me.clone()) } else { set.remove_key(mint, &me) }
                    })
                })
            });
            if let Err(error) = change {
                tracing::warn!(error = %error, origin, "the breaker was not told");
            }
        }
    }

    /// Everybody: this node, who is configured, who is seen, and who once said something.
    pub(crate) fn nodes(&self) -> Vec<Seen> {
        let said = self.statuses();
        let mut names: BTreeMap<u64, String> = BTreeMap::new();
        for name in said.keys().chain(&self.configured).chain([&self.name]) {
            names.insert(Member::id_of(name), name.clone());
        }
        let me = self.gossip.me();
        let members: BTreeMap<u64, Member> = self.gossip.members().into_iter().map(|m| (m.id, m)).collect();
        let ids: BTreeSet<u64> = names.keys().chain(members.keys()).copied().collect();
        let mut all: Vec<Seen> = ids
            .into_iter()
            .map(|id| {
                let member = members.get(&id);
                let name = names.get(&id).cloned().unwrap_or_else(|| format!("#{id:016x}"));
                let state = match member.map(|m| m.presence) {
                    _ if id == me.id => "here",
                    Some(Presence::Up) => "up",
                    Some(Presence::Unseen) => "unseen",
                    _ => "down",
                };
                let address = if id == me.id { me.address } else { member.and_then(|m| m.address) };
                let configured = self.configured.contains(&name);
                Seen { status: said.get(&name).cloned(), name, state, configured, address }
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    fn statuses(&self) -> BTreeMap<String, Status> {
        self.gossip.read(|doc| {
            let entry = |(key, any): (&String, &Any)| {
                let name = key.strip_prefix(NODE)?;
                Some((name.to_owned(), serde_json::from_slice(&register(any)?).ok()?))
            };
            doc.iter().filter_map(entry).collect()
        })
    }

    /// Origins whose breaker is open somewhere, with the nodes that are there and see it so.
    pub(crate) fn open_breakers(&self) -> Vec<Open> {
        let alive: BTreeSet<String> =
            self.nodes().into_iter().filter(|n| matches!(n.state, "here" | "up")).map(|n| n.name).collect();
        self.gossip.read(|doc| {
            let mut all = Vec::new();
            for (key, any) in doc.iter() {
                let (Some(origin), Some(set)) = (key.strip_prefix(OPEN), any.as_set()) else { continue };
                let names = set.iter().map(|(name, _)| String::from_utf8_lossy(name).into_owned());
                let nodes: Vec<String> = names.filter(|name| alive.contains(name)).collect();
                if !nodes.is_empty() {
                    all.push(Open { origin: origin.to_owned(), nodes });
                }
            }
            all
        })
    }
}

/// The value of a register. Only one node writes each; after a copied disk the last one in order counts.
fn register(any: &Any) -> Option<Vec<u8>> {
    any.as_register()?.values().last().cloned()
}

fn name(config: &Config) -> String {
    match config.text("gossip.name") {
        "" => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        name => name.to_owned(),
    }
}

fn resolve(key: &str, text: &str) -> Result<SocketAddr> {
    let wrong = || Error::new(Code::BadValue, format!("{key}: `{text}` is not HOST:PORT"));
    let found =
        text.to_socket_addrs().map_err(|e| Error::with(Code::BadValue, format!("{key}: `{text}`"), e));
    found?.next().ok_or_else(wrong)
}

/// The keys of `gossip.key_file`. Their text is never repeated.
///
/// # Errors
/// No file, one that others may read, or one that holds no keys.
pub(crate) fn keys(config: &Config) -> Result<Keys> {
    let file = config.text("gossip.key_file");
    if file.is_empty() {
        let why = "gossip.bind needs gossip.key_file: whoever may send packets could write anything";
        return Err(Error::new(Code::BadValue, why));
    }
    let place = || format!("gossip.key_file: {file}");
    let unreadable = |e: std::io::Error| Error::with(Code::BadValue, place(), e);
    let meta = std::fs::metadata(file).map_err(unreadable)?;
    if meta.mode() & 0o077 != 0 {
        let why = format!("{}: others may read it; chmod 600 it", place());
        return Err(Error::new(Code::BadValue, why));
    }
    if meta.len() > MAX_FILE {
        return Err(Error::new(Code::BadValue, format!("{}: larger than 16 KiB", place())));
    }
    let text = std::fs::read_to_string(file).map_err(unreadable)?;
    Keys::parse(&text).map_err(|e| Error::with(Code::BadValue, place(), e))
}
