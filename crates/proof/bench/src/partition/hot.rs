//! Hot keys: a fleet of caches under a Zipf workload, with and without bounded loads.

use std::collections::{HashMap, VecDeque};

use anyhow::Context as _;
use mainstay_partition::{Bounded, Lease, Load, Node, NodeIdx, Ring};

use super::name;
use crate::Options;
use crate::report::Section;

const NODES: usize = 100;
/// Calls in flight per node.
const FLIGHT: usize = 20;
/// Distinct keys, and how many of them one node's cache holds.
const POPULATION: usize = 200_000;
const CACHE: usize = 1_000;

/// Draws ranks with probability proportional to `1 / rank^s`, by inversion of the summed weights.
struct Zipf(Vec<f64>);

impl Zipf {
    fn new(s: f64) -> Self {
        let mut sum = 0.0;
        let mut add = |rank: usize| {
            sum += (rank as f64).powf(-s);
            sum
        };
        Self((1..=POPULATION).map(&mut add).collect())
    }

    fn draw(&self, unit: f64) -> usize {
        let all = self.0.last().copied().unwrap_or(1.0);
        self.0.partition_point(|sum| *sum < unit * all)
    }
}

/// Least recently used, by a counter per entry and lazy removal.
#[derive(Default)]
struct Cache {
    used: HashMap<usize, u64>,
    order: VecDeque<(usize, u64)>,
    clock: u64,
}

impl Cache {
    /// Whether the key was there; it is afterwards.
    fn touch(&mut self, key: usize) -> bool {
        self.clock += 1;
        let hit = self.used.insert(key, self.clock).is_some();
        self.order.push_back((key, self.clock));
        while self.used.len() > CACHE {
            let Some((old, at)) = self.order.pop_front() else { break };
            if self.used.get(&old) == Some(&at) {
                self.used.remove(&old);
            }
        }
        hit
    }
}

struct Outcome {
    /// The largest in-flight of any node over the mean, averaged over the run.
    peak: f64,
    hits: f64,
    spilled: f64,
}

/// `load` bounds the load; `None` lets every call go to the owner.
fn simulate(s: f64, load: Option<Load>, calls: usize) -> anyhow::Result<Outcome> {
    let ring = Ring::builder().textbook().nodes((0..NODES).map(|i| Node::new(name(i)))).build()?;
    // A factor of a thousand bounds nothing here.
    let bounded = Bounded::new(ring, load.unwrap_or_else(|| Load::default().factor(1_000.0)))?;
    let (zipf, rng) = (Zipf::new(s), mainstay_clock::SeededRng::new(7));
    let mut caches: Vec<Cache> = (0..NODES).map(|_| Cache::default()).collect();
    let mut flight: Vec<Lease> = Vec::new();
    let (mut hits, mut spilled, mut counted, mut peaks, mut samples) = (0, 0, 0, 0.0, 0);
    for call in 0..calls {
        let unit = || mainstay_clock::Rng::unit(&rng);
        let key = zipf.draw(unit());
        let lease = bounded.acquire(&(key as u64).to_le_bytes()).context("one always accepts")?;
        let hit = caches[lease.node().as_usize()].touch(key);
        if call > calls / 2 {
            counted += 1;
            hits += usize::from(hit);
            spilled += usize::from(lease.spilled() > 0);
        }
        flight.push(lease);
        if flight.len() > NODES * FLIGHT {
            // Calls last exponentially long: any one may end.
            let at = (unit() * flight.len() as f64) as usize;
            drop(flight.swap_remove(at));
        }
        if call > calls / 2 && call % 500 == 0 {
            let max = (0..NODES as u32).map(|i| bounded.in_flight(NodeIdx::new(i))).max().unwrap_or(0);
            peaks += max as f64 / FLIGHT as f64;
            samples += 1;
        }
    }
    let part = |n: usize| n as f64 / counted.max(1) as f64;
    Ok(Outcome { peak: peaks / f64::from(samples.max(1)), hits: part(hits), spilled: part(spilled) })
}

pub(super) fn run(options: &Options, section: &mut Section) -> anyhow::Result<()> {
    let calls = if options.smoke { 20_000 } else { 2_000_000 };
    let mut rows = Vec::new();
    for s in [1.1, 0.9] {
        let plain = simulate(s, None, calls)?;
        let mut line = |what: &str, o: &Outcome| {
            let points = (plain.hits - o.hits) * 100.0;
            let cells = [format!("{:.2}", o.peak), format!("{:.1}%", o.hits * 100.0), format!("{points:.1}")];
            rows.push(
                [
                    vec![format!("Zipf {s}, {what}")],
                    cells.to_vec(),
                    vec![format!("{:.1}%", o.spilled * 100.0)],
                ]
                .concat(),
            );
        };
        line("plain ring", &plain);
        for (factor, stay) in [(1.25, false), (1.25, true), (1.5, false), (1.5, true)] {
            let load = Load::default().factor(factor);
            // That hot keys yield is the default, and so is the first factor.
            let how = if stay { ", hot keys stay" } else { ", hot keys yield" };
            let default = if factor == 1.25 && !stay { " (default)" } else { "" };
            let load = if stay { load.hot_keys_stay() } else { load };
            let bounded = simulate(s, Some(load), calls)?;
            line(&format!("factor {factor}{how}{default}"), &bounded);
            if s == 1.1 && !default.is_empty() {
                let lost = (plain.hits - bounded.hits) * 100.0;
                let found = format!("{:.2}, {lost:.1} points", bounded.peak);
                let met = bounded.peak <= 1.3 && lost <= 2.5;
                section.gate(
                    "bounded load by default, Zipf 1.1",
                    "max/mean <= 1.3 for <= 2.5 points of hits",
                    found,
                    met,
                );
            }
        }
    }
    section.note(&format!(
        "Simulation: {NODES} caches of {CACHE} keys each, {POPULATION} keys, {FLIGHT} calls in flight per node, {calls} calls, \
         the first half warms up."
    ));
    section.table(&["workload", "in flight, max/mean", "hits", "points lost", "spilled"], &rows);
    Ok(())
}
