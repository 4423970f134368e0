//! Failpoints of one world: scoped, async, typed, seeded; inert without a registry.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::faults::{draw, unit};
use super::pause;

/// Chance that a point is on in a run, and that it then fires when it is passed.
const ON: f64 = 0.25;
const FIRES: f64 = 0.25;

/// A named place in code where something rare but legal may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point(&'static str);

impl Point {
    /// The point of this name.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// What a point does when it fires.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Wait until [`Points::unblock`].
    Block,
    /// Wait.
    Delay(Duration),
    /// Answer [`Fired::DropReply`]: the code at the point forgets the reply that it just got.
    DropReply,
    /// Answer [`Fired::Error`].
    Error,
    /// Panic.
    Panic,
    /// Never go on: the future can only be dropped there.
    Stall,
}

/// What the code at a point is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the code at a point handles each")]
pub enum Fired {
    /// Forget the reply.
    DropReply,
    /// Fail as if the call had.
    Error,
    /// Nothing happened, or only time passed.
    No,
}

/// The points of one world. Clones share them; the default registry is empty and does nothing.
#[derive(Clone, Default)]
pub struct Points(Option<Arc<Registry>>);

struct Registry {
    seed: u64,
    declared: BTreeMap<&'static str, Action>,
    state: Mutex<State>,
    unblocked: Notify,
}

#[derive(Default)]
struct State {
    passed: BTreeMap<&'static str, u64>,
    fired: BTreeMap<&'static str, u64>,
    open: BTreeSet<&'static str>,
    sometimes: BTreeMap<&'static str, u64>,
}

impl Points {
    /// A registry of `declared` points for one run.
    #[must_use]
    pub fn new(seed: u64, declared: &[(Point, Action)]) -> Self {
        let declared = declared.iter().map(|(p, a)| (p.0, a.clone())).collect();
        Self(Some(Arc::new(Registry { seed, declared, state: Mutex::default(), unblocked: Notify::new() })))
    }

    /// The names of all declared points.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        self.0.as_ref().map(|r| r.declared.keys().copied().collect()).unwrap_or_default()
    }

    /// Passes a point: use [`crate::buggify!`]. Two draws decide: whether it is on in this run, and whether
    /// it fires this time.
    ///
    /// # Panics
    /// When its action is [`Action::Panic`].
    ///
    /// # Cancel safety
    /// Dropping the future is what a stalled point is for.
    pub async fn pass(&self, point: Point) -> Fired {
        let Some(registry) = &self.0 else { return Fired::No };
        let Some(action) = registry.decide(point.0) else { return Fired::No };
        match action {
            Action::Block => {
                while !registry.state().open.contains(point.0) {
                    registry.unblocked.notified().await;
                }
                Fired::No
            }
            Action::Delay(d) => {
                pause(d).await;
                Fired::No
            }
            Action::DropReply => Fired::DropReply,
            Action::Error => Fired::Error,
            Action::Panic => panic!("failpoint `{}`", point.0),
            Action::Stall => std::future::pending().await,
        }
    }

    /// Lets everybody at a blocked point go on, now and later.
    pub fn unblock(&self, point: Point) {
        if let Some(registry) = &self.0 {
            registry.state().open.insert(point.0);
            registry.unblocked.notify_waiters();
        }
    }

    /// Counts that a state was reached: use [`crate::sometimes!`].
    pub fn reached(&self, name: &'static str) {
        if let Some(registry) = &self.0 {
            *registry.state().sometimes.entry(name).or_default() += 1;
        }
    }

    /// How often each point fired.
    #[must_use]
    pub fn fired(&self) -> BTreeMap<&'static str, u64> {
        self.0.as_ref().map(|r| r.state().fired.clone()).unwrap_or_default()
    }

    /// How often each state was reached.
    #[must_use]
    pub fn sometimes(&self) -> BTreeMap<&'static str, u64> {
        self.0.as_ref().map(|r| r.state().sometimes.clone()).unwrap_or_default()
    }
}

impl Registry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, name: &'static str) -> Option<Action> {
        let action = self.declared.get(name)?;
        let mut state = self.state();
        let passed = state.passed.entry(name).or_default();
        *passed += 1;
        let n = *passed;
        let on = unit(draw(self.seed, "point on", name, 0)) < ON;
        if !on || unit(draw(self.seed, "point", name, n)) >= FIRES {
            return None;
        }
        *state.fired.entry(name).or_default() += 1;
        Some(action.clone())
    }
}

impl fmt::Debug for Points {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Points").field("names", &self.names()).finish()
    }
}

/// Passes a failpoint: `buggify!(ctx, POINT)` awaits whatever the registry of `ctx.points()` decides and
/// answers a [`Fired`](crate::sim::Fired).
///
/// ```
/// use mainstay_sim::buggify;
/// use mainstay_sim::sim::{Fired, Point, Points};
///
/// const SKIP: Point = Point::new("skip");
/// struct Cx(Points);
/// impl Cx {
///     fn points(&self) -> &Points {
///         &self.0
///     }
/// }
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let cx = Cx(Points::default());
/// assert_eq!(buggify!(cx, SKIP), Fired::No); // inert without a registry
/// # });
/// ```
#[macro_export]
macro_rules! buggify {
    ($ctx:expr, $point:expr) => {
        $ctx.points().pass($point).await
    };
}

/// Counts that a state was reached: `sometimes!(ctx, "leader changed")`. A campaign in which a declared one
/// was never reached is unknown, not passed.
#[macro_export]
macro_rules! sometimes {
    ($ctx:expr, $name:expr) => {
        $ctx.points().reached($name)
    };
}
