//! Which placement to take and why, and what it costs: before it is taken.
//!
//! [`advise`] answers from the decision table of the manual, [`simulate`] measures a choice on a fleet of yours: shares
//! at both ends, and what a change would move against what it must. Both are cheap enough for a test of your own that
//! pins the answer.

mod simulate;

use std::fmt;

use crate::error::{ConfigError, Error};
use crate::node::MAX_NODES;
use crate::ring::MAX_POINTS;
use crate::slots::{DEFAULT_SLOTS, MAX_SLOTS};

pub use simulate::{Choice, Simulation, simulate};

/// What the nodes do with the keys they are given.
///
/// It decides what a moved key costs, and that is what placements differ in most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// They cache: a moved key is a miss.
    Cache,
    /// They own data, locks or sagas: a moved key must be handed over.
    OwnData,
    /// They serve requests; affinity is a wish.
    Traffic,
}

/// A system whose clients or servers must agree with the placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum System {
    /// Cassandra or Scylla tokens.
    Cassandra,
    /// Envoy `ring_hash`.
    EnvoyRing,
    /// Envoy `maglev`.
    EnvoyMaglev,
    /// Guava `consistentHash`.
    Guava,
    /// `HAProxy` `hash-type consistent`.
    Haproxy,
    /// memcached clients of the ketama family.
    Memcached,
    /// nginx `hash KEY consistent`.
    Nginx,
    /// Redis Cluster.
    Redis,
}

impl System {
    fn profile(self) -> &'static str {
        match self {
            Self::Cassandra => "compat::cassandra_murmur3",
            Self::EnvoyRing => "compat::envoy_ring",
            Self::EnvoyMaglev => "compat::envoy_maglev",
            Self::Guava => "compat::guava_jump",
            Self::Haproxy => "compat::haproxy",
            Self::Memcached => "compat::ketama",
            Self::Nginx => "compat::nginx",
            Self::Redis => "compat::redis_slots",
        }
    }

    /// The profile of `mainstay ring verify`.
    fn verified_as(self) -> &'static str {
        match self {
            Self::Cassandra => "cassandra",
            Self::EnvoyRing => "envoy-ring",
            Self::EnvoyMaglev => "envoy-maglev",
            Self::Guava => "guava",
            Self::Haproxy => "haproxy",
            Self::Memcached => "ketama",
            Self::Nginx => "nginx",
            Self::Redis => "redis",
        }
    }
}

/// What you have and need.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `replicas` | 1 | more copies are a decision |
/// | `zones` | 1 | zones are known only where someone names them |
/// | the rest | no | say what is so |
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraints {
    purpose: Purpose,
    nodes: usize,
    replicas: usize,
    zones: usize,
    unequal: bool,
    no_shared_map: bool,
    numbered: bool,
    hot_keys: bool,
    hostile_keys: bool,
    agree_with: Option<System>,
}

impl Constraints {
    /// So many nodes for this purpose.
    #[must_use]
    pub fn new(purpose: Purpose, nodes: usize) -> Self {
        Self {
            purpose,
            nodes,
            replicas: 1,
            zones: 1,
            unequal: false,
            no_shared_map: false,
            numbered: false,
            hot_keys: false,
            hostile_keys: false,
            agree_with: None,
        }
    }

    /// Distinct nodes per key.
    #[must_use]
    pub fn replicas(mut self, replicas: usize) -> Self {
        self.replicas = replicas;
        self
    }

    /// Distinct zones per key.
    #[must_use]
    pub fn zones(mut self, zones: usize) -> Self {
        self.zones = zones;
        self
    }

    /// Nodes differ in weight.
    #[must_use]
    pub fn unequal(mut self) -> Self {
        self.unequal = true;
        self
    }

    /// Clients can share a list of names and nothing more: no map of some 100 KB, no epoch.
    #[must_use]
    pub fn no_shared_map(mut self) -> Self {
        self.no_shared_map = true;
        self
    }

    /// Nodes are numbered shards, and only the last one is ever added or removed.
    #[must_use]
    pub fn numbered(mut self) -> Self {
        self.numbered = true;
        self
    }

    /// Single keys can be hotter than a node can take, or requests are long streams.
    ///
    /// ```
    /// use mainstay_partition::advise::{Constraints, Purpose, advise};
    ///
    /// let streams = advise(&Constraints::new(Purpose::Cache, 200).no_shared_map().hot_keys())?;
    /// assert!(streams.bounded && streams.to_string().ends_with("under bounded loads"));
    /// # Ok::<(), mainstay_partition::Error>(())
    /// ```
    #[must_use]
    pub fn hot_keys(mut self) -> Self {
        self.hot_keys = true;
        self
    }

    /// Users choose keys and may be hostile.
    ///
    /// Then the answer asks for [`Hash::keyed`](crate::Hash::keyed), unless another system fixes the hash.
    #[must_use]
    pub fn hostile_keys(mut self) -> Self {
        self.hostile_keys = true;
        self
    }

    /// Must give the same answers as this system.
    ///
    /// It outweighs everything else: the answer is that system's profile, and the limits say what it lacks.
    ///
    /// ```
    /// use mainstay_partition::advise::{Constraints, Purpose, System, advise};
    ///
    /// let beside = advise(&Constraints::new(Purpose::Traffic, 8).agree_with(System::Nginx))?;
    /// assert_eq!((beside.choice, beside.profile), (None, Some("compat::nginx")));
    /// # Ok::<(), mainstay_partition::Error>(())
    /// ```
    #[must_use]
    pub fn agree_with(mut self, system: System) -> Self {
        self.agree_with = Some(system);
        self
    }

    fn check(&self) -> Result<(), Error> {
        let bad = |field, value: usize, allowed: String| Err(ConfigError::new(field, value, allowed).into());
        if !(1..=MAX_NODES).contains(&self.nodes) {
            return bad("nodes", self.nodes, format!("1 to {MAX_NODES}"));
        }
        if self.replicas == 0 || self.replicas > self.nodes {
            return bad("replicas", self.replicas, format!("1 to {}, the number of nodes", self.nodes));
        }
        if self.zones == 0 || self.zones > self.replicas {
            return bad("zones", self.zones, format!("1 to {}, the number of replicas", self.replicas));
        }
        Ok(())
    }
}

/// What to take.
///
/// Its `Display` is one line. Print `reasons`, `limits` and `rejected` with it: they are sentences for a person.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recommendation {
    /// The placement, when it is one of ours.
    pub choice: Option<Choice>,
    /// The compat profile, when answers must agree with another system.
    pub profile: Option<&'static str>,
    /// Whether to wrap it in [`crate::Bounded`].
    pub bounded: bool,
    /// Whether to hash with a secret, [`crate::Hash::keyed`].
    pub keyed: bool,
    /// Why.
    pub reasons: Vec<String>,
    /// What it will not give you.
    pub limits: Vec<String>,
    /// The others, and why not.
    pub rejected: Vec<(&'static str, String)>,
}

impl fmt::Display for Recommendation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match (&self.choice, self.profile) {
            (_, Some(profile)) => profile.to_owned(),
            (Some(choice), None) => choice.to_string(),
            (None, None) => "nothing".to_owned(),
        };
        let bounded = if self.bounded { " under bounded loads" } else { "" };
        let keyed = if self.keyed { ", keyed hash" } else { "" };
        write!(f, "{name}{bounded}{keyed}")
    }
}

/// Up to here scoring every node costs no more than walking a ring (about 10 to 30 ns, measured).
const FEW_NODES: usize = 64;
/// Beyond it the points of a ring leave the cache.
const MANY_NODES: usize = 10_000;

/// Answers from the decision table of the manual.
///
/// # Errors
/// No nodes or more than [`MAX_NODES`], more replicas than nodes, more zones than replicas.
///
/// ```
/// use mainstay_partition::advise::{Choice, Constraints, Purpose, advise};
///
/// let owns = advise(&Constraints::new(Purpose::OwnData, 12).replicas(3).zones(3))?;
/// assert_eq!(owns.choice, Some(Choice::Slots { slots: 16384 }));
/// let few = advise(&Constraints::new(Purpose::Cache, 12).no_shared_map())?;
/// assert_eq!(few.choice, Some(Choice::Rendezvous));
/// # Ok::<(), mainstay_partition::Error>(())
/// ```
pub fn advise(constraints: &Constraints) -> Result<Recommendation, Error> {
    constraints.check()?;
    let c = constraints;
    let mut answer = Recommendation {
        choice: None,
        profile: None,
        bounded: c.hot_keys,
        keyed: c.hostile_keys,
        reasons: Vec::new(),
        limits: Vec::new(),
        rejected: Vec::new(),
    };
    match c.agree_with {
        Some(system) => agree(c, system, &mut answer),
        None => {
            let choice = choose(c, &mut answer);
            reject(c, &choice, &mut answer);
            answer.choice = Some(choice);
        }
    }
    if c.hot_keys {
        answer.reasons.push(
            "hot keys: bounded loads keep in-flight max/mean near 1.3 where a plain ring reaches 14 under Zipf \
             1.1, for about one point of cache hits (four under Zipf 0.9)"
                .into(),
        );
        answer.limits.push("the bound is per process: each of N gateways bounds its own share".into());
    }
    if c.hostile_keys {
        answer.reasons.push("hostile keys: without a secret a user can aim all keys at one node".into());
    }
    Ok(answer)
}

fn agree(c: &Constraints, system: System, answer: &mut Recommendation) {
    answer.profile = Some(system.profile());
    answer.reasons.push("answers must agree with another system, so its rules apply, flaws included".into());
    let profile = system.verified_as();
    answer.limits.push(format!(
        "check it: `mainstay ring verify --profile {profile}` compares with that system's own answers"
    ));
    if c.hostile_keys {
        answer.keyed = false;
        answer
            .limits
            .push("that system does not hash with a secret, so hostile keys can aim at a node".into());
    }
    if system == System::Memcached {
        answer.limits.push("any change of weight moves points of other servers too".into());
    }
}

fn choose(c: &Constraints, answer: &mut Recommendation) -> Choice {
    let mut why = |text: &str| answer.reasons.push(text.to_owned());
    if c.numbered && c.purpose != Purpose::OwnData && !c.unequal && c.replicas == 1 {
        why("numbered shards that change only at the end: no table at all, 5 to 13 ns");
        answer
            .limits
            .push("only the last shard may go; removing one in the middle moves 39-50% of all keys".into());
        return Choice::JumpBack;
    }
    if c.purpose == Purpose::OwnData && !c.no_shared_map {
        why("nodes own data: a stored map with an epoch is the truth, and the planner moves provably little");
        why("exact balance, replicas and zones as hard rules, 1.5 to 2 ns");
        let slots = slots_for(c.nodes);
        if c.nodes > slots / 16 {
            answer.limits.push(format!("{} nodes share {slots} slots: shares are coarse", c.nodes));
        }
        return Choice::Slots { slots };
    }
    if c.purpose == Purpose::OwnData {
        answer.limits.push(
            "data without a stored map: clients with different lists disagree silently; compare fingerprints"
                .into(),
        );
    }
    if c.nodes <= FEW_NODES {
        why("few nodes and no state: the best balance of all, exact replicas and weights, 10 to 30 ns");
        if c.zones > 1 {
            why("zones: first the zone, then the node in it");
            return Choice::RendezvousByZone;
        }
        return Choice::Rendezvous;
    }
    if c.purpose == Purpose::Traffic && c.replicas == 1 {
        why("traffic: constant 1.7 ns, 128 KiB, cheap rebuilds; some churn is fine");
        answer
            .limits
            .push("moves 1.03 to 10 times the ideal when the fleet changes; `ring simulate` shows it".into());
        return Choice::Maglev { table: maglev_table(c.nodes) };
    }
    why("only a list of names and many nodes: 2 to 10 ns and no key moves without need");
    let points = ring_points(c.nodes);
    answer.limits.push(if c.nodes > MANY_NODES {
        format!("shares deviate by about {:.0}% at {points} points", 100.0 / f64::from(points).sqrt())
    } else {
        format!("shares deviate by about 8% at {points} points; max/mean 1.1 to 1.4")
    });
    if c.nodes > MANY_NODES {
        answer
            .limits
            .push("beyond 10,000 nodes the points leave the cache; a stored slot map is better".into());
    }
    Choice::Ring { points }
}

fn reject(c: &Constraints, choice: &Choice, answer: &mut Recommendation) {
    let mut no = |name: &'static str, why: &str| answer.rejected.push((name, why.to_owned()));
    if !matches!(choice, Choice::Slots { .. }) {
        no(
            "slots",
            if c.no_shared_map {
                "no map can be shared"
            } else {
                "a stored map and an epoch are more than this needs"
            },
        );
    }
    if !matches!(choice, Choice::Ring { .. }) {
        no("ring", "shares deviate by 8% at 160 points, and replicas of neighbours fall together");
    }
    if !matches!(choice, Choice::Rendezvous | Choice::RendezvousByZone) {
        let why = if c.nodes > FEW_NODES {
            "scores every node: linear in their number"
        } else {
            "gives no explicit handoff"
        };
        no("rendezvous", why);
    }
    if !matches!(choice, Choice::Maglev { .. }) {
        let why = if c.purpose == Purpose::Traffic {
            "no order of replicas of its own"
        } else {
            "moves up to ten times the ideal"
        };
        no("maglev", why);
    }
    if !matches!(choice, Choice::JumpBack) {
        let why = if c.numbered {
            "no weights, no replicas, no handoff"
        } else {
            "only the last shard may ever go"
        };
        no("jump", why);
    }
    no("modulo", "one more node moves nearly everything");
}

/// The default, fewer for large fleets, and never more than a ring takes in total.
fn ring_points(nodes: usize) -> u32 {
    if nodes <= MANY_NODES {
        return 160;
    }
    u32::try_from(MAX_POINTS / nodes).unwrap_or(u32::MAX).clamp(1, 40)
}

/// At least 16 slots per node where that is possible, so that rounding stays within some percent.
fn slots_for(nodes: usize) -> usize {
    nodes.min(MAX_SLOTS).saturating_mul(16).next_power_of_two().clamp(DEFAULT_SLOTS, MAX_SLOTS)
}

/// The usual prime up to 655 nodes, then at least 100 entries per node.
fn maglev_table(nodes: usize) -> u32 {
    [65_537, 655_373, 5_000_011]
        .into_iter()
        .find(|t| nodes.saturating_mul(100) <= *t as usize)
        .unwrap_or(5_000_011)
}
