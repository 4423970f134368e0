//! Many nodes, one dependency: what the others see, without letting them decide.
//!
//! Every node publishes the counters of its breakers once per period and reads those of its peers. When a
//! quorum of the peers that have evidence reports the same dependency failing, the node's own breaker is
//! *pre-armed*: its thresholds are halved for a while. It never opens on the word of others, so one node with
//! a broken network card trips nobody else. While breakers are open, the probes of all nodes together are
//! rationed, so that a recovering service meets a few calls and not a few per node.
//!
//! The call path never waits for the network: it reads what the fleet's task last concluded. Losing the
//! transport changes nothing; after three periods the reports of the others have expired and every breaker
//! is as if it were alone.
//!
//! | conclusion | from | effect |
//! |---|---|---|
//! | open | its open time runs, a probe is in flight, or a call was refused within three periods | failing, and one of those who probe |
//! | failing | a peer's open breaker, or half of at least 3 calls of its last period failed | counts towards the quorum |
//! | armed | failing peers are at least the quorum's share of those with evidence, and at least its number | thresholds halved for three periods |
//! | share of probes | the permits, dealt to all nodes whose breakers are open: fewest failed rounds first | the gate lets so many pass |
//!
//! A node without traffic stays open until a call asks. It says so no longer than the table allows: its permits serve
//! others, and what it saw last arms nobody. When calls come back its first probe waits one period, in which the others
//! hear of it.
//!
//! The order in which nodes probe is by rounds and then by a hash of node and dependency: the same on every machine, and
//! another one for every dependency.

mod state;
mod transport;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Runtime, TaskHandle};

pub use transport::{MemoryHub, MemoryTransport, PeerReport, Transport};

use crate::breaker::BreakerSnapshot;
use crate::policy::ProbeGate;
use crate::sync::Mutex;
use crate::{Breaker, ConfigError};
use state::{Judgement, Settings, judge};
use wire::{Report, decode, encode};

/// Halved thresholds: a factor that trips at a quarter of failures where half was needed.
const ARMED: f64 = 0.5;
/// Reports older than so many periods do not count.
const EXPIRES: u32 = 3;
/// Looks at the peers per period: reading is cheap, and what they say is up to a period old already.
const LOOKS: u32 = 4;
/// Shortest time between two probes that one node starts: the breaker counts the first before the second is
/// asked for.
const GAP: Duration = Duration::from_millis(1);

/// One node's part in the fleet.
///
/// Guarantees: never opens, closes or holds a breaker; without fresh reports every breaker behaves as if
/// there were no fleet. Does not guarantee: that the ration of probes is exact. Reports are up to one period
/// old, so a node that opens may probe beside the others until they have heard of it; an open time of at
/// least two periods prevents that.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::{Clock, Runtime, SystemClock};
/// use mainstay_resilience::{Breaker, fleet::{Fleet, MemoryHub}};
///
/// let hub = MemoryHub::new(Arc::new(SystemClock::new()));
/// let fleet = Fleet::builder("node-1", Arc::new(hub.join("node-1"))).build().unwrap();
/// let breaker = Breaker::builder("payments").probe_gate(fleet.gate()).build().unwrap();
/// fleet.watch(&breaker);
/// fleet.step();
/// assert!(!fleet.is_armed("payments"));
/// // In a service: `fleet.start(&Runtime::system())` steps in the background.
/// ```
///
/// # Defaults
/// Period 1 s, quorum one half of the peers with evidence and at least 2, 3 probes fleet-wide: what one
/// breaker alone would send.
#[derive(Clone)]
pub struct Fleet(Arc<Inner>);

struct Inner {
    node: Arc<str>,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
    period: Duration,
    settings: Settings,
    watched: Mutex<BTreeMap<Arc<str>, Watched>>,
    schedule: Mutex<Schedule>,
}

#[derive(Debug, Default)]
struct Schedule {
    publish_at: Instant,
    /// Reports that were not understood.
    garbage: u64,
}

struct Watched {
    breaker: Breaker,
    /// Calls and failures at the last publication.
    before: (u64, u64),
    own: Report,
    judgement: Judgement,
    armed_until: Instant,
    last_probe: Option<Instant>,
    /// Refusals at the last look.
    refused: u64,
    /// Until when what was refused last counts as calls that come.
    wanted_until: Instant,
    /// When a call first asked for a probe that nobody in the fleet reckoned with, since the breaker was last closed.
    woke: Option<Instant>,
}

/// Settings of a [`Fleet`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | period | 1 s | a second of delay against a few hundred bytes per node |
/// | quorum | half of the peers with evidence, at least 2 | one broken network card is no quorum |
/// | probes | 3, all nodes together | what a single breaker would send |
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use mainstay_clock::SystemClock;
/// use mainstay_resilience::fleet::{Fleet, MemoryHub};
///
/// let hub = MemoryHub::new(Arc::new(SystemClock::new()));
/// let of = || Fleet::builder("node-1", Arc::new(hub.join("node-1")));
/// assert!(of().period(Duration::from_millis(500)).quorum(0.6, 3).probes(5).build().is_ok());
/// let gullible = of().quorum(0.5, 1).build().unwrap_err();
/// assert_eq!(gullible.field(), "min_peers"); // the word of one peer arms nobody
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct FleetBuilder {
    node: Arc<str>,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
    period: Duration,
    settings: Settings,
}

impl Fleet {
    /// The part of the node named `node`; the name must be unique in the fleet, or two nodes overwrite each other's
    /// reports.
    pub fn builder(node: impl Into<Arc<str>>, transport: Arc<dyn Transport>) -> FleetBuilder {
        FleetBuilder {
            node: node.into(),
            transport,
            clock: Arc::new(mainstay_clock::SystemClock::new()),
            period: Duration::from_secs(1),
            settings: Settings { quorum: 0.5, min_peers: 2, permits: 3 },
        }
    }

    /// The gate to build breakers with ([`probe_gate`](crate::breaker::BreakerBuilder::probe_gate)); without it their
    /// probes are not rationed. It does not keep the fleet alive.
    #[must_use]
    pub fn gate(&self) -> Arc<dyn ProbeGate> {
        Arc::new(Gate(Arc::downgrade(&self.0)))
    }

    /// Watches a breaker; its name is the name of the dependency in the whole fleet.
    pub fn watch(&self, breaker: &Breaker) {
        let snapshot = breaker.snapshot();
        let own =
            Report { dependency: breaker.name().to_owned(), open: false, calls: 0, failures: 0, round: 1 };
        let watched = Watched {
            breaker: breaker.clone(),
            before: totals(&snapshot),
            own,
            judgement: Judgement { armed: false, share: self.0.settings.permits, has_peers: false },
            armed_until: Instant::ZERO,
            last_probe: None,
            refused: snapshot.lifetime.rejected,
            wanted_until: Instant::ZERO,
            woke: None,
        };
        self.0.watched.lock().insert(snapshot.name, watched);
    }

    /// Publishes when a period has passed, reads the peers and draws the conclusions. The background task does
    /// nothing else.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_clock::SystemClock;
    /// use mainstay_resilience::{Breaker, fleet::{Fleet, MemoryHub}};
    ///
    /// let hub = MemoryHub::new(Arc::new(SystemClock::new()));
    /// let nodes: Vec<_> = ["a", "b", "c", "d"]
    ///     .map(|name| {
    ///         let fleet = Fleet::builder(name, Arc::new(hub.join(name))).build().unwrap();
    ///         let breaker = Breaker::builder("payments").consecutive(1).probe_gate(fleet.gate()).build().unwrap();
    ///         fleet.watch(&breaker);
    ///         (fleet, breaker)
    ///     })
    ///     .into();
    /// for (_, breaker) in &nodes[1..] {
    ///     breaker.admit().unwrap().failure(); // three nodes have found out
    /// }
    /// nodes.iter().for_each(|(fleet, _)| fleet.step());
    /// nodes[0].0.step();
    /// assert!(nodes[0].0.is_armed("payments")); // the fourth is warned ...
    /// assert!(nodes[0].1.admit().is_ok()); // ... and still decides itself
    /// ```
    pub fn step(&self) {
        self.0.step();
    }

    /// Steps in the background until the handle is aborted.
    ///
    /// # Panics
    /// As [`Runtime::spawn`]: outside a tokio runtime.
    ///
    /// # Cancel safety
    /// Aborting the task leaves every breaker to itself: what it has armed ends after three periods.
    pub fn start(&self, runtime: &Runtime) -> TaskHandle {
        let (fleet, clock) = (Arc::downgrade(&self.0), Arc::clone(runtime.clock()));
        runtime.spawn("fleet breaker", async move {
            loop {
                let Some(pause) = fleet.upgrade().map(|fleet| fleet.step()) else { return };
                clock.sleep(pause).await;
            }
        })
    }

    /// Whether the dependency is pre-armed by a quorum of peers.
    #[must_use]
    pub fn is_armed(&self, dependency: &str) -> bool {
        let now = self.0.clock.now();
        self.0.watched.lock().get(dependency).is_some_and(|w| now < w.armed_until)
    }

    /// Probes that this node may have in flight to the dependency now.
    #[must_use]
    pub fn probe_share(&self, dependency: &str) -> u32 {
        self.0.watched.lock().get(dependency).map_or(0, |w| w.judgement.share)
    }

    /// Reports that were not understood: another version, or garbage.
    #[must_use]
    pub fn garbage(&self) -> u64 {
        self.0.schedule.lock().garbage
    }
}

impl Inner {
    fn step(&self) -> Duration {
        let now = self.clock.now();
        // The transport is asked outside every lock: it is foreign code.
        if let Some(bytes) = self.due(now) {
            self.transport.publish(&bytes);
        }
        let fresh = self.period.saturating_mul(EXPIRES);
        let mut peers = BTreeMap::new();
        for heard in self.transport.peers() {
            if heard.age > fresh || heard.peer == self.node {
                continue;
            }
            match decode(&heard.bytes) {
                Some(reports) => drop(peers.insert(heard.peer, reports)),
                None => self.schedule.lock().garbage += 1,
            }
        }
        self.conclude(&peers, now);
        self.period / LOOKS
    }

    /// The report to publish, when it is time or when a breaker has just opened or closed.
    fn due(&self, now: Instant) -> Option<Vec<u8>> {
        let mut watched = self.watched.lock();
        let mut schedule = self.schedule.lock();
        let memory = self.period.saturating_mul(EXPIRES);
        let mut moved = false;
        for watched in watched.values_mut() {
            let open = watched.look(now, memory);
            moved |= open != watched.own.open;
            watched.own.open = open;
        }
        if now < schedule.publish_at && !moved {
            return None;
        }
        schedule.publish_at = now.saturating_add(self.period);
        let reports: Vec<Report> = watched.values_mut().map(Watched::report).collect();
        Some(encode(&reports))
    }

    fn conclude(&self, peers: &BTreeMap<Arc<str>, Vec<Report>>, now: Instant) {
        let mut watched = self.watched.lock();
        for (name, watched) in watched.iter_mut() {
            let seen = peers.iter().filter_map(|(peer, reports)| {
                reports.iter().find(|r| *r.dependency == **name).map(|r| (&**peer, r))
            });
            watched.judgement = judge(&self.settings, &self.node, &watched.own, seen);
            if watched.judgement.armed {
                let ttl = self.period.saturating_mul(EXPIRES);
                watched.armed_until = now.saturating_add(ttl);
                // The factor is a constant in range.
                let _ = watched.breaker.prearm(ARMED, ttl);
            }
        }
    }
}

impl Watched {
    /// Whether the breaker refuses calls that come, or probes; a refused call is remembered for `memory`.
    fn look(&mut self, now: Instant, memory: Duration) -> bool {
        let standing = self.breaker.core().standing();
        if standing.rejected > self.refused {
            self.wanted_until = now.saturating_add(memory);
        }
        self.refused = standing.rejected;
        if !standing.refuses {
            self.woke = None;
        }
        standing.refuses && (standing.is_waiting || standing.probes > 0 || now < self.wanted_until)
    }

    /// Whether a call asks for a probe so soon after a time without calls that the others do not reckon with it yet.
    fn wakes(&mut self, now: Instant, period: Duration) -> bool {
        if !self.judgement.has_peers {
            return false;
        }
        if self.woke.is_none() && !self.own.open {
            self.woke = Some(now);
        }
        self.woke.is_some_and(|woke| now.saturating_duration_since(woke) < period)
    }

    /// The counters since the last report.
    fn report(&mut self) -> Report {
        let snapshot = self.breaker.snapshot();
        let now = totals(&snapshot);
        let grown = |now: u64, before: u64| u32::try_from(now.saturating_sub(before)).unwrap_or(u32::MAX);
        let (calls, failures) = (grown(now.0, self.before.0), grown(now.1, self.before.1));
        self.before = now;
        self.own = Report {
            dependency: self.own.dependency.clone(),
            open: self.own.open,
            calls,
            failures: failures.min(calls),
            round: snapshot.round,
        };
        self.own.clone()
    }
}

/// Calls and failures since the start. A consecutive window does not count successes: then all calls failed if
/// the run says so, and else as many succeeded and one more, which is no evidence of failing.
fn totals(snapshot: &BreakerSnapshot) -> (u64, u64) {
    let failures = snapshot.lifetime.failures;
    let successes =
        snapshot.lifetime.successes.unwrap_or_else(|| if snapshot.counts.run > 0 { 0 } else { failures + 1 });
    (successes + failures, failures)
}

/// Asked by a breaker before a probe passes. Holds the fleet weakly: breakers hold their gate.
struct Gate(Weak<Inner>);

impl ProbeGate for Gate {
    fn admit(&self, breaker: &str, now: Instant) -> Result<(), Option<Duration>> {
        let Some(fleet) = self.0.upgrade() else { return Ok(()) };
        let found = fleet.watched.lock().get(breaker).map(|w| w.breaker.clone());
        let Some(found) = found else { return Ok(()) };
        // Looked at outside our lock: the breaker has its own. A probe whose lease is over counts no more, or one that hangs
        // would keep its node from asking again for ever.
        let probes = found.core().standing().probes;
        let mut watched = fleet.watched.lock();
        let Some(watched) = watched.get_mut(breaker) else { return Ok(()) };
        let gap = watched.last_probe.is_some_and(|last| now.saturating_duration_since(last) < GAP);
        if watched.wakes(now, fleet.period) {
            return Err(Some(fleet.period / LOOKS));
        }
        if watched.judgement.share >= fleet.settings.permits {
            // Nobody else probes: the breaker's own permits are the bound.
            return Ok(());
        }
        if probes >= watched.judgement.share || gap {
            return Err(Some(fleet.period / LOOKS));
        }
        watched.last_probe = Some(now);
        Ok(())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("node", &self.0.node).finish_non_exhaustive()
    }
}

impl FleetBuilder {
    /// How often this node publishes; it reads its peers four times as often. 10 ms to 1 min; reports expire after three.
    pub fn period(mut self, period: Duration) -> Self {
        self.period = period;
        self
    }

    /// The share of the peers with evidence, and how many peers at least, that must report failing.
    pub fn quorum(mut self, share: f64, at_least: u32) -> Self {
        (self.settings.quorum, self.settings.min_peers) = (share, at_least);
        self
    }

    /// Probes in flight to one dependency, all nodes together, at least 1. As exact as the reports are fresh.
    pub fn probes(mut self, permits: u32) -> Self {
        self.settings.permits = permits;
        self
    }

    /// Clock. Default: the system's.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.clock = Arc::clone(runtime.clock());
        self
    }

    /// The node's part.
    ///
    /// # Errors
    /// [`ConfigError`] for a period outside 10 ms to 1 min, a quorum outside `(0, 1]` or of less than 2 peers
    /// (one peer's word arms nobody), no permits, or an empty name.
    pub fn build(self) -> Result<Fleet, ConfigError> {
        if self.node.is_empty() {
            return Err(ConfigError::new("node", "\"\"", "a name of at least one character"));
        }
        if self.period < Duration::from_millis(10) || self.period > Duration::from_secs(60) {
            return Err(ConfigError::new("period", format!("{:?}", self.period), "10ms to 1min"));
        }
        let s = &self.settings;
        if !(s.quorum > 0.0 && s.quorum <= 1.0) {
            return Err(ConfigError::new("quorum", s.quorum, "a number in (0, 1]"));
        }
        if s.min_peers < 2 {
            return Err(ConfigError::new("min_peers", s.min_peers, "at least 2"));
        }
        if s.permits == 0 {
            return Err(ConfigError::new("probes", 0, "at least 1"));
        }
        Ok(Fleet(Arc::new(Inner {
            node: self.node,
            transport: self.transport,
            clock: self.clock,
            period: self.period,
            settings: self.settings,
            watched: Mutex::new(BTreeMap::new()),
            schedule: Mutex::new(Schedule::default()),
        })))
    }
}
