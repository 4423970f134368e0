//! L18: stamps that only rise, respect causality, and stay near the wall clock.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock as _, Rng, SeededRng};

use crate::hlc::{DurableHlc, Hlc, Timestamp};
use crate::laws::{Law, ManualClock, Violation};

/// A clock under test.
pub trait Stamping {
    /// What it hands out.
    type Stamp: Copy + Ord + fmt::Debug;

    /// The next stamp; `None` when it refuses to give one now.
    fn now(&mut self) -> Option<Self::Stamp>;

    /// Takes note of a stamp of another node; `false` when it refuses that.
    fn observe(&mut self, stamp: Self::Stamp) -> bool;

    /// The wall time in a stamp, in milliseconds since 1970.
    fn millis(stamp: Self::Stamp) -> i64;
}

impl Stamping for Hlc {
    type Stamp = Timestamp;

    fn now(&mut self) -> Option<Timestamp> {
        Self::now(self).ok()
    }

    fn observe(&mut self, stamp: Timestamp) -> bool {
        Self::observe(self, stamp).is_ok()
    }

    fn millis(stamp: Timestamp) -> i64 {
        i64::try_from(stamp.physical_ms()).unwrap_or(i64::MAX)
    }
}

impl Stamping for DurableHlc {
    type Stamp = Timestamp;

    fn now(&mut self) -> Option<Timestamp> {
        self.hlc().now().ok()
    }

    fn observe(&mut self, stamp: Timestamp) -> bool {
        self.hlc().observe(stamp).is_ok()
    }

    fn millis(stamp: Timestamp) -> i64 {
        <Hlc as Stamping>::millis(stamp)
    }
}

/// More stamps than a counter of 16 bits tells apart in a millisecond.
const OF_ONE_MS: usize = 70_000;
/// How far the wall clock may step back at once.
const STEP_BACK: u64 = 50;
/// Steps of the run that a violation shows.
const SHOWN: usize = 12;
/// Nodes: one whose wall clock is right, one a little ahead, one further than any skew that is allowed.
const NODES: usize = 3;

/// Checks L18 of clocks on three nodes that tell each other their stamps, whose wall clocks differ, step back and stand
/// still, and that crash: per node stamps only rise, over restarts too; who takes note of a stamp gives later ones; no
/// stamp is further ahead of its node's wall clock than `max_skew`; and more stamps in one millisecond than a counter
/// holds carry. `start` opens the clock of a node on its disk, at first and after each crash. How many stamps there were:
/// what refuses all shows nothing.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_consistency::hlc::{DurableHlc, Hlc, MAX_SKEW, PERSIST_WINDOW};
/// use mainstay_consistency::laws;
/// use mainstay_store::memory::MemoryCell;
///
/// let rt = tokio::runtime::Builder::new_current_thread().build()?;
/// let disks = [(); 3].map(|()| Arc::new(MemoryCell::new()));
/// let stamps = laws::clocks(1, 2_000, MAX_SKEW, |node, wall| {
///     let hlc = Hlc::builder(wall).build().unwrap();
///     rt.block_on(DurableHlc::open(hlc, disks[node].clone(), PERSIST_WINDOW)).unwrap()
/// })?;
/// assert!(stamps > 1_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The first violation, with the last steps before it.
pub fn clocks<C: Stamping>(
    seed: u64,
    steps: usize,
    max_skew: Duration,
    start: impl FnMut(usize, Arc<ManualClock>) -> C,
) -> Result<usize, Violation> {
    let skew = i64::try_from(max_skew.as_millis()).unwrap_or(i64::MAX / 8);
    let mut run = Run::new(skew, start);
    let rng = SeededRng::new(seed);
    run.steps(&rng, steps).map_err(|found| Violation {
        seed,
        schedule: run.shown.iter().cloned().collect(),
        ..found
    })?;
    Ok(run.stamps)
}

struct Run<C: Stamping, F> {
    start: F,
    skew: i64,
    walls: Vec<Arc<ManualClock>>,
    nodes: Vec<C>,
    last: Vec<Option<C::Stamp>>,
    stamps: usize,
    shown: VecDeque<String>,
}

impl<C: Stamping, F: FnMut(usize, Arc<ManualClock>) -> C> Run<C, F> {
    fn new(skew: i64, mut start: F) -> Self {
        let ahead = [0, 30, 3 * skew];
        let walls: Vec<_> = ahead.iter().map(|ms| Arc::new(ManualClock::new(1_000_000 + ms))).collect();
        let nodes = (0..NODES).map(|node| start(node, Arc::clone(&walls[node]))).collect();
        Self { start, skew, walls, nodes, last: vec![None; NODES], stamps: 0, shown: VecDeque::new() }
    }

    fn show(&mut self, step: String) {
        if self.shown.len() == SHOWN {
            self.shown.pop_front();
        }
        self.shown.push_back(step);
    }

    fn steps(&mut self, rng: &SeededRng, steps: usize) -> Result<(), Violation> {
        let node = || usize::try_from(rng.below(NODES as u64)).unwrap_or(0);
        let ms = |most| i64::try_from(rng.below(most)).unwrap_or(0);
        let mut now: Vec<i64> = self.walls.iter().map(|wall| wall.wall().unix_millis()).collect();
        for _ in 0..steps {
            let (at, to) = (node(), node());
            // Clocks go on, stand still, and step back a little.
            for (wall, now) in self.walls.iter().zip(&mut now) {
                *now += ms(4);
                wall.set(*now - ms(STEP_BACK));
            }
            if rng.below(16) == 0 {
                self.show(format!("n{at} crashes and starts"));
                self.nodes[at] = (self.start)(at, Arc::clone(&self.walls[at]));
            }
            let Some(stamp) = self.stamp(at)? else { continue };
            let taken = self.nodes[to].observe(stamp);
            self.show(format!("n{to} takes note of {stamp:?}: {taken}"));
            let next = self.stamp(to)?;
            if let Some(next) = next.filter(|next| taken && *next <= stamp) {
                let detail = format!("n{to} took note of {stamp:?} and went on with {next:?}");
                return Err(Violation::of(Law::L18, detail));
            }
        }
        for _ in 0..OF_ONE_MS {
            self.stamp(0)?;
        }
        Ok(())
    }

    fn stamp(&mut self, at: usize) -> Result<Option<C::Stamp>, Violation> {
        let wall = self.walls[at].wall().unix_millis();
        let Some(stamp) = self.nodes[at].now() else { return Ok(None) };
        self.show(format!("n{at} gives {stamp:?} at {wall}"));
        if self.last[at].is_some_and(|last| stamp <= last) {
            let detail = format!("n{at} gives {stamp:?} after {:?}", self.last[at]);
            return Err(Violation::of(Law::L18, detail));
        }
        let ahead = C::millis(stamp) - wall;
        if ahead > self.skew {
            let detail = format!("n{at} gives {stamp:?}, {ahead} ms ahead of its wall clock");
            return Err(Violation::of(Law::L18, detail));
        }
        self.last[at] = Some(stamp);
        self.stamps += 1;
        Ok(Some(stamp))
    }
}
