//! The load-aware loop: notices hot slots and nodes, and moves or splits them without thrashing.

use std::time::Duration;

use mainstay_clock::Instant;

use super::planner::{Note, Plan, Planner, check_loads};
use super::{MAX_SLOTS, SlotHash, SlotMap};
use crate::error::{ConfigError, Error};
use crate::node::NodeId;
use crate::owners::Spread;
use crate::place::Place as _;

/// Settings of a [`Steer`].
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `trigger` | 1.25 | of the share: below it nobody notices |
/// | `goal` | 1.1 | once moving, stop only well below the trigger, or the next gust starts it again |
/// | `hold` | 3 | observations in a row above the trigger: one spike is no trend |
/// | `smoothing` | 0.3 | weight of the newest observation |
/// | `moves_per_minute` | 60 | churn that a cache or a disk survives |
/// | `rest` | 10 min | a slot that moved stays, so that no slot goes to and fro |
/// | `rf`, `zones` | 1, [`Spread::Any`] | the rules of the map; one with more replicas is refused |
#[derive(Clone, Debug, PartialEq)]
pub struct SteerConfig {
    trigger: f64,
    goal: f64,
    hold: u32,
    smoothing: f64,
    moves_per_minute: u32,
    rest: Duration,
    rf: usize,
    zones: Spread,
}

impl Default for SteerConfig {
    fn default() -> Self {
        Self {
            trigger: 1.25,
            goal: 1.1,
            hold: 3,
            smoothing: 0.3,
            moves_per_minute: 60,
            rest: Duration::from_secs(600),
            rf: 1,
            zones: Spread::Any,
        }
    }
}

impl SteerConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How far above its share a node must be to start moving, and how far it may stay when moving ends:
    /// `1 < goal < trigger`.
    ///
    /// Two thresholds instead of one, so that a load near the line does not start and stop the moving at every gust.
    ///
    /// ```
    /// use mainstay_partition::slots::{Steer, SteerConfig};
    ///
    /// assert!(Steer::new(SteerConfig::new().band(1.05, 1.5)).is_ok());
    /// let upside_down = Steer::new(SteerConfig::new().band(1.5, 1.05)).unwrap_err();
    /// assert_eq!(upside_down.field(), "band");
    /// ```
    #[must_use]
    pub fn band(mut self, goal: f64, trigger: f64) -> Self {
        (self.goal, self.trigger) = (goal, trigger);
        self
    }

    /// Observations in a row above the trigger until anything moves.
    #[must_use]
    pub fn hold(mut self, observations: u32) -> Self {
        self.hold = observations;
        self
    }

    /// Weight of the newest observation, above 0 and at most 1.
    #[must_use]
    pub fn smoothing(mut self, weight: f64) -> Self {
        self.smoothing = weight;
        self
    }

    /// The churn budget. It saves up for one minute at most.
    #[must_use]
    pub fn moves_per_minute(mut self, moves: u32) -> Self {
        self.moves_per_minute = moves;
        self
    }

    /// How long a slot stays after it moved.
    #[must_use]
    pub fn rest(mut self, d: Duration) -> Self {
        self.rest = d;
        self
    }

    /// The rules of the map. Load moves within them; what breaks them is not mended beyond the budget,
    /// see [`Action::Repair`].
    #[must_use]
    pub fn rules(mut self, rf: usize, zones: Spread) -> Self {
        (self.rf, self.zones) = (rf, zones);
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, value: String, allowed| Err(ConfigError::new(field, value, allowed));
        if !(self.goal > 1.0 && self.goal < self.trigger && self.trigger.is_finite() && self.goal <= 2.0) {
            return bad(
                "band",
                format!("{} to {}", self.goal, self.trigger),
                "1 < goal < trigger, goal at most 2",
            );
        }
        if self.hold == 0 {
            return bad("hold", "0".into(), "at least 1");
        }
        if !(self.smoothing > 0.0 && self.smoothing <= 1.0) {
            return bad("smoothing", self.smoothing.to_string(), "above 0, at most 1");
        }
        if self.moves_per_minute == 0 {
            return bad("moves_per_minute", "0".into(), "at least 1");
        }
        Ok(())
    }
}

/// A slot with more load than a node's share.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct HotSlot {
    /// The slot.
    pub slot: usize,
    /// Its smoothed load.
    pub load: f64,
    /// As a multiple of what its primary should hold in total.
    pub of_share: f64,
}

/// What to do after an observation.
///
/// `Move` and `Split` are advice: the caller carries them out, and hands the map that came of it to the next
/// observation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Action {
    /// Nothing.
    Rest,
    /// Carry this out and hand the map at its end to the next observation.
    Move(Box<Plan>),
    /// The map breaks its own rules, and mending it takes more than the budget or moves a slot that rests. Nothing moves
    /// until somebody repairs it with a [`Planner`].
    Repair {
        /// Replicas that are missing or may not stay where they are.
        replicas: u64,
    },
    /// Moving cannot help: these slots are more than a node should hold. [`SlotMap::split`] halves them.
    Split(Vec<usize>),
    /// Neither can splitting: the map has as many slots as there can be.
    Stuck(Vec<usize>),
}

/// Decides, from loads per slot, whether slots should move. Pure: the time goes in, an [`Action`] comes out.
///
/// Guaranteed: at most the budget moves per minute (and one minute's savings), no slot moves twice within
/// its rest, and nothing moves before the trigger was passed `hold` times in a row. That holds for what the rules
/// demand too: what is more is left to [`Action::Repair`]. No replica is given up. Not guaranteed: fewest moves; see
/// [`Planner::load`].
///
/// The idea is that of Adya et al.: "Slicer: Auto-Sharding for Datacenter Applications", OSDI 2016.
///
/// ```
/// use mainstay_clock::Instant;
/// use mainstay_partition::{Node, slots::{Action, Planner, SlotMap, Steer, SteerConfig}};
///
/// let empty = SlotMap::builder(1).slots(4096).build()?;
/// let map = Planner::new(&empty).target(["a", "b"].map(Node::new)).solve()?.next().clone();
/// let mut load = vec![1.0; 4096];
/// (0..4096).filter(|s| map.replicas(*s)[0].get() == 0).take(900).for_each(|s| load[s] = 3.0);
/// let mut steer = Steer::new(SteerConfig::new().hold(2))?;
/// let at = |s: u64| Instant::from_nanos(s * 1_000_000_000);
/// assert!(matches!(steer.observe(&map, &load, at(1))?, Action::Rest));
/// let Action::Move(plan) = steer.observe(&map, &load, at(2))? else { panic!("two are enough") };
/// assert_eq!(plan.moves().len(), 60);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Steer {
    config: SteerConfig,
    smoothed: Vec<f64>,
    above: u32,
    moving: bool,
    tokens: f64,
    last: Option<Instant>,
    moved: Vec<Option<Instant>>,
}

impl Steer {
    /// A loop that has seen nothing.
    ///
    /// # Errors
    /// A setting out of range.
    pub fn new(config: SteerConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let tokens = f64::from(config.moves_per_minute);
        Ok(Self {
            config,
            smoothed: Vec::new(),
            above: 0,
            moving: false,
            tokens,
            last: None,
            moved: Vec::new(),
        })
    }

    /// Takes in the load of every slot since the last observation.
    ///
    /// # Errors
    /// Loads that are negative, no numbers or of another length than the slots; a slot with more replicas than
    /// [`SteerConfig::rules`] says, of which all but so many would be given up; whatever [`Planner::solve`] refuses.
    ///
    /// # Examples
    /// A spike moves nothing; what lasts does.
    /// ```
    /// use mainstay_clock::Instant;
    /// use mainstay_partition::{Node, slots::{Action, Planner, SlotMap, Steer, SteerConfig}};
    ///
    /// let empty = SlotMap::builder(1).slots(4096).build()?;
    /// let map = Planner::new(&empty).target(["a", "b"].map(Node::new)).solve()?.next().clone();
    /// let calm = vec![1.0; 4096];
    /// let mut spike = calm.clone();
    /// (0..4096).filter(|s| map.replicas(*s)[0].get() == 0).for_each(|s| spike[s] = 3.0);
    /// let mut steer = Steer::new(SteerConfig::new())?;
    /// for (second, load) in [&spike, &spike, &calm, &spike, &spike, &calm].into_iter().enumerate() {
    ///     let now = Instant::from_nanos(second as u64 * 1_000_000_000);
    ///     assert!(matches!(steer.observe(&map, load, now)?, Action::Rest), "never three in a row");
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn observe(&mut self, map: &SlotMap, load: &[f64], now: Instant) -> Result<Action, Error> {
        if load.len() != map.slots() {
            let allowed = format!("{}, one per slot", map.slots());
            let value = format!("{} values", load.len());
            return Err(ConfigError::new("load", value, allowed).into());
        }
        check_loads(load)?;
        let rf = self.config.rf;
        if let Some(slot) = (0..map.slots()).find(|slot| map.replicas(*slot).len() > rf) {
            let allowed = format!("at least {}, the replicas of slot {slot}", map.replicas(slot).len());
            return Err(ConfigError::new("rf", rf, allowed).into());
        }
        self.take_in(load, now);
        let worst = worst_of(map, &self.smoothed);
        // The newest observation must say so too: smoothing alone remembers a spike that is over.
        let passed = worst.min(worst_of(map, load)) > self.config.trigger;
        self.above = if passed { self.above.saturating_add(1) } else { 0 };
        if self.moving && worst <= self.config.goal {
            self.moving = false;
        } else if self.above >= self.config.hold {
            self.moving = true;
        }
        let budget = self.tokens.max(0.0).floor();
        if !self.moving || budget < 1.0 {
            return Ok(Action::Rest);
        }
        let resting: Vec<bool> = self
            .moved
            .iter()
            .map(|at| at.is_some_and(|at| now.saturating_duration_since(at) < self.config.rest))
            .collect();
        // A budget is at most a u32.
        let budget = budget as u64;
        let planner = Planner::new(map)
            .rf(rf)
            .zones(self.config.zones)
            .load(&self.smoothed)
            .tolerance(self.config.goal - 1.0)
            .pinned(&resting);
        let mut plan = planner.clone().budget(budget).solve()?;
        let replicas = plan.demanded();
        if (1..=budget).contains(&replicas) {
            plan = planner.budget(budget - replicas).solve()?;
        }
        if replicas > budget || plan.moves().iter().any(|m| resting[m.slot]) {
            return Ok(Action::Repair { replicas });
        }
        Ok(self.act(map, plan, now))
    }

    fn act(&mut self, map: &SlotMap, plan: Plan, now: Instant) -> Action {
        if plan.moves().is_empty() {
            let hot = plan.notes().iter().find_map(|n| match n {
                Note::TooHot { slots } => Some(slots.clone()),
                _ => None,
            });
            return match hot {
                Some(slots) if map.slots() < MAX_SLOTS && map.slot_hash() != SlotHash::Redis => {
                    Action::Split(slots)
                }
                Some(slots) => Action::Stuck(slots),
                None => Action::Rest,
            };
        }
        self.tokens -= plan.moves().len() as f64;
        for m in plan.moves() {
            self.moved[m.slot] = Some(now);
        }
        Action::Move(Box::new(plan))
    }

    fn take_in(&mut self, load: &[f64], now: Instant) {
        if self.smoothed.len() == load.len() {
            let weight = self.config.smoothing;
            for (smooth, new) in self.smoothed.iter_mut().zip(load) {
                *smooth += weight * (new - *smooth);
            }
        } else {
            // The first observation, or the map was split: nothing older says anything.
            self.smoothed = load.to_vec();
            self.moved = vec![None; load.len()];
            self.above = 0;
        }
        let per_minute = f64::from(self.config.moves_per_minute);
        if let Some(last) = self.last {
            let minutes = now.saturating_duration_since(last).as_secs_f64() / 60.0;
            self.tokens = (self.tokens + minutes * per_minute).min(per_minute);
        }
        self.last = Some(self.last.map_or(now, |last| last.max(now)));
    }

    /// The slots that are hot now, hottest first: each is more than half of its primary's share.
    #[must_use]
    pub fn hot_slots(&self, map: &SlotMap) -> Vec<HotSlot> {
        let all: f64 = self.smoothed.iter().sum();
        let weight = map.nodes().total_weight() as f64;
        let hot = self.smoothed.iter().enumerate().filter_map(|(slot, load)| {
            let primary = map.replicas(slot).first()?;
            let share = all * f64::from(map.nodes()[*primary].weight) / weight;
            let of_share = load / share;
            (of_share > 0.5).then_some(HotSlot { slot, load: *load, of_share })
        });
        let mut hot: Vec<HotSlot> = hot.collect();
        hot.sort_by(|a, b| b.of_share.total_cmp(&a.of_share).then(a.slot.cmp(&b.slot)));
        hot
    }

    /// Nodes by how far they are above their share: load as a multiple of it.
    #[must_use]
    pub fn nodes(&self, map: &SlotMap) -> Vec<(NodeId, f64)> {
        let ratio = ratios(map, &self.smoothed);
        map.nodes().as_slice().iter().map(|n| n.id.clone()).zip(ratio).collect()
    }
}

fn ratios(map: &SlotMap, load: &[f64]) -> Vec<f64> {
    let nodes = map.nodes();
    let mut held = vec![0.0; nodes.len()];
    for (slot, load) in load.iter().enumerate().take(map.slots()) {
        for idx in map.replicas(slot) {
            held[idx.as_usize()] += load;
        }
    }
    let all: f64 = held.iter().sum();
    let weight = nodes.total_weight() as f64;
    let ratio = |(held, n): (f64, &crate::node::Node)| {
        let share = all * f64::from(n.weight) / weight;
        if share > 0.0 { held / share } else { 0.0 }
    };
    held.into_iter().zip(nodes.as_slice()).map(ratio).collect()
}

fn worst_of(map: &SlotMap, load: &[f64]) -> f64 {
    ratios(map, load).into_iter().fold(0.0, f64::max)
}
