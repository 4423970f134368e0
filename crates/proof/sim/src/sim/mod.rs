//! The simulator: real library code on virtual time that jumps, with seeded faults.
//!
//! A run is one tokio `current_thread` runtime with a paused clock: when every task waits, time jumps to the
//! next timer. Nodes get their clock, generator, stores, messages and disk from a [`World`] and from nothing
//! else, so one seed is one execution. What they do goes into a history that checkers judge.
//!
//! ```
//! use mainstay_sim::Sim;
//! use mainstay_sim::check::{epochs_grow, mutual_exclusion};
//! use mainstay_sim::sim::{FaultKind, Faults};
//! use mainstay_store::lease::{AcquireRequest, Acquired};
//! use std::time::Duration;
//!
//! let sim = Sim::builder("doc")
//!     .seeds(0..20)
//!     .nodes(2)
//!     .faults(Faults::only(&[FaultKind::ReplyLost]).rate(0.2).healing_after(Duration::from_secs(20)))
//!     .build()?;
//! let report = sim
//!     .run(|world| async move {
//!         world.start_all(|node| async move {
//!             let (clock, store, process) = (node.clock(), node.lease_store(), node.process());
//!             for i in 0.. {
//!                 let op = format!("{}-{}-{i}", node.name(), node.incarnation());
//!                 let request = AcquireRequest::exclusive("lock", node.name(), &op, Duration::from_secs(3));
//!                 let sent = clock.now();
//!                 let call = process.begin("acquire", "lock").via(&node.via());
//!                 match store.acquire(request).await {
//!                     Ok(Acquired::Granted(grants)) => {
//!                         let until = node.observed(sent.saturating_add(grants[0].ttl));
//!                         call.with(|o| (o.epoch, o.until_ns) = (Some(grants[0].token.get()), Some(until))).ok();
//!                         clock.sleep(Duration::from_secs(4)).await;
//!                     }
//!                     Ok(_) => call.fail(),
//!                     Err(error) => call.error(&error, true),
//!                 }
//!                 clock.sleep(Duration::from_millis(500)).await;
//!             }
//!         });
//!         world.finished().await;
//!     })
//!     .check(mutual_exclusion)
//!     .check(epochs_grow)
//!     .judge();
//! report.assert_pass();
//! # Ok::<(), mainstay_sim::sim::ConfigError>(())
//! ```

mod cancel;
mod faults;
mod link;
mod minimize;
mod nemesis;
mod node;
mod points;
mod run;
mod stores;
mod switch;
mod world;

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::time::Duration;

pub use cancel::{Polls, cancel_at_every_poll};
pub use faults::{FaultKind, Faults};
pub use mainstay_clock::ConfigError;
pub use node::Node;
pub use points::{Action, Fired, Point, Points};
pub use run::{Campaign, Failure, Report};
pub use switch::{Recorded, SeedLineError, seed_lines};
pub use world::World;

use crate::history::Config;

/// Waits in global virtual time.
#[allow(clippy::disallowed_methods, reason = "the simulator is the clock here")]
async fn pause(d: Duration) {
    tokio::time::sleep(d).await;
}

/// Everything that changes a run: one value of this is one execution.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) suite: String,
    pub(crate) seed: u64,
    pub(crate) nodes: usize,
    pub(crate) ops: u64,
    pub(crate) faults: Faults,
    pub(crate) liveness: Option<Duration>,
    pub(crate) limit: Duration,
    pub(crate) points: Vec<(Point, Action)>,
    /// Kinds of fault and single faults that are left out.
    pub(crate) without: BTreeSet<String>,
}

impl Options {
    fn is_off(&self, id: &str) -> bool {
        !self.without.is_empty() && self.without.contains(id)
    }

    /// How long a run lasts.
    fn length(&self) -> Duration {
        self.faults.heal + self.liveness.unwrap_or_default()
    }

    fn config(&self) -> Config {
        let mut config = Config::new(&self.suite, self.seed, "S");
        config.versions = vec![format!("mainstay-sim {}", env!("CARGO_PKG_VERSION")).into()];
        let kinds: Vec<&str> = self.faults.kinds.iter().map(|k| k.name()).collect();
        config.options = [
            format!("nodes={}", self.nodes),
            format!("ops={}", self.ops),
            format!("rate={}", self.faults.rate),
            format!("windows={}", self.faults.windows),
            format!("heal={:?}", self.faults.heal),
            format!("clock_rate={}", self.faults.clock_rate),
            format!("longest_pause={:?}", self.faults.longest_pause),
            format!("liveness={:?}", self.liveness),
            format!("faults={}", kinds.join(",")),
            format!("points={}", self.points.iter().map(|(p, _)| p.name()).collect::<Vec<_>>().join(",")),
            format!("without={}", self.without.iter().cloned().collect::<Vec<_>>().join(",")),
        ]
        .into_iter()
        .map(Into::into)
        .collect();
        config
    }
}

/// A simulation that can be run: the same scenario over many seeds.
#[derive(Debug)]
pub struct Sim {
    options: Options,
    seeds: Range<u64>,
    sometimes: Vec<&'static str>,
}

/// Sets up a [`Sim`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `seeds` | `0..100` | a small batch for every test run; campaigns say more |
/// | `nodes` | 3 | the smallest number with a majority and a minority |
/// | `ops` | 20 | enough to overlap faults, few enough to read |
/// | `faults` | none | a scenario must first work unbroken |
/// | `liveness` | none (safety mode) | what must happen after the heal is the scenario's to say |
/// | `limit` | 1 hour of virtual time | a scenario that hangs ends as unknown |
#[derive(Debug)]
#[must_use = "a builder does nothing until `build`"]
pub struct SimBuilder {
    sim: Sim,
    enabled: Vec<String>,
}

impl Sim {
    /// Starts to set up the suite `name`: the name that `cargo xtask sim NAME` runs.
    pub fn builder(name: &str) -> SimBuilder {
        let options = Options {
            suite: name.to_owned(),
            seed: 0,
            nodes: 3,
            ops: 20,
            faults: Faults::none(),
            liveness: None,
            limit: Duration::from_secs(3_600),
            points: Vec::new(),
            without: BTreeSet::new(),
        };
        SimBuilder { sim: Sim { options, seeds: 0..100, sometimes: Vec::new() }, enabled: Vec::new() }
    }

    /// Binds the scenario. Nothing runs until [`Campaign::judge`].
    pub fn run<F, Fut>(self, scenario: F) -> Campaign
    where
        F: Fn(World) -> Fut + 'static,
        Fut: Future<Output = ()> + 'static,
    {
        Campaign::new(self, Box::new(move |world| Box::pin(scenario(world))))
    }
}

impl SimBuilder {
    /// The seeds to run.
    pub fn seeds(mut self, seeds: Range<u64>) -> Self {
        self.sim.seeds = seeds;
        self
    }

    /// How many nodes.
    pub fn nodes(mut self, n: usize) -> Self {
        self.sim.options.nodes = n;
        self
    }

    /// How many operations each client of the scenario makes.
    pub fn ops(mut self, n: u64) -> Self {
        self.sim.options.ops = n;
        self
    }

    /// What is broken.
    pub fn faults(mut self, faults: Faults) -> Self {
        self.sim.options.faults = faults;
        self
    }

    /// Liveness mode: every fault ends at the heal, and the run goes on for `d` after it, in which the core
    /// must progress. Without it the run is in safety mode: faults go on to the end.
    pub fn liveness(mut self, d: Duration) -> Self {
        self.sim.options.liveness = Some(d);
        self
    }

    /// Longest virtual time of a run.
    pub fn limit(mut self, d: Duration) -> Self {
        self.sim.options.limit = d;
        self
    }

    /// Declares a failpoint and what it does when it fires.
    pub fn point(mut self, point: Point, action: Action) -> Self {
        self.sim.options.points.push((point, action));
        self
    }

    /// Demands that a declared failpoint of this name exists: a misspelt name is an error.
    pub fn expects_point(mut self, name: &str) -> Self {
        self.enabled.push(name.to_owned());
        self
    }

    /// Declares a state that the campaign must reach: see [`crate::sometimes!`].
    pub fn sometimes(mut self, name: &'static str) -> Self {
        self.sim.sometimes.push(name);
        self
    }

    /// Checks the options and applies the switches of the environment: `MAINSTAY_SEED`, `MAINSTAY_SEEDS`,
    /// `MAINSTAY_FROM`, `MAINSTAY_MINUTES`, `MAINSTAY_NODES`, `MAINSTAY_OPS`, `MAINSTAY_WITHOUT`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the option, its value and what it takes.
    pub fn build(self) -> Result<Sim, ConfigError> {
        let refuse = |field, value: &dyn fmt::Display, allowed| Err(ConfigError::new(field, value, allowed));
        let mut sim = self.sim;
        let options = &sim.options;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '-';
        if options.suite.is_empty() || !options.suite.chars().all(plain) {
            return refuse("name", &options.suite, "lower-case letters, digits, `-`, `_`");
        }
        if !(1..=1_000).contains(&options.nodes) {
            return refuse("nodes", &options.nodes, "1 to 1,000");
        }
        if options.ops == 0 {
            return refuse("ops", &options.ops, "at least 1");
        }
        if sim.seeds.is_empty() {
            return refuse("seeds", &format!("{:?}", sim.seeds), "at least one seed");
        }
        if !(0.0..=1.0).contains(&options.faults.rate) {
            return refuse("faults.rate", &options.faults.rate, "0 to 1");
        }
        if !(0.0..1.0).contains(&options.faults.clock_rate) {
            return refuse("faults.clock_rate", &options.faults.clock_rate, "0 to less than 1");
        }
        if options.faults.heal.is_zero() || options.length() > options.limit {
            return refuse(
                "faults.heal",
                &format!("{:?}", options.faults.heal),
                "more than 0, and within `limit`",
            );
        }
        if let Some(name) = self.enabled.iter().find(|n| !options.points.iter().any(|(p, _)| p.name() == **n))
        {
            return refuse("point", name, "the name of a declared failpoint");
        }
        switch::apply(&mut sim)?;
        Ok(sim)
    }
}
