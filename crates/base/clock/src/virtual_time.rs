//! Virtual time: every node's clock derives from tokio's paused clock.
//!
//! Run inside `tokio::time::pause`d current-thread runtimes. Tokio jumps to the next timer when every
//! task waits, and because all sleeps here are tokio timers underneath, our time jumps with it.
//!
//! A [`VirtualClock`] is one node's view: `node time = offset + rate * global time`, boot time and
//! wall time apart. While a node is paused its sleeps do not fire; all that came due fire at
//! [`resume`](VirtualClock::resume).

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::{Clock, Instant, Sleep, Tick, WallTime};

/// Where virtual wall clocks start: 2026-01-01T00:00:00Z, so that times look like times.
const WALL_ORIGIN_MS: i64 = 1_767_225_600_000;

/// One node's clock. Clones share it.
///
/// ```
/// use mainstay_clock::{Clock, virtual_time::VirtualClock};
/// use std::time::Duration;
///
/// let rt = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
/// rt.block_on(async {
///     let clock = VirtualClock::new();
///     clock.set_rate(2.0);
///     let start = clock.now();
///     clock.sleep(Duration::from_secs(3600)).await; // ends at once in real time
///     assert!(clock.now().saturating_duration_since(start) >= Duration::from_secs(3600));
/// });
/// ```
#[derive(Clone)]
pub struct VirtualClock(Arc<Shared>);

struct Shared {
    origin: tokio::time::Instant,
    state: Mutex<State>,
    changed: Changes,
}

/// A counter that can be waited on. Its waiters wake in the order in which they began to wait.
///
/// tokio's `watch` spreads its waiters over shards at random, so what several of them do next differs from
/// run to run; a simulation needs this instead.
///
/// ```
/// use mainstay_clock::virtual_time::Changes;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let changes = Changes::default();
/// let seen = changes.count();
/// changes.bump();
/// assert_eq!(changes.after(seen).await, 1);
/// # });
/// ```
#[derive(Debug, Default)]
pub struct Changes {
    count: Mutex<u64>,
    waiters: Notify,
}

impl Changes {
    /// How often it changed.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a change and wakes everybody who waits.
    pub fn bump(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.waiters.notify_waiters();
    }

    /// Resolves with the count once it is larger than `seen`.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn after(&self, seen: u64) -> u64 {
        loop {
            let changed = self.waiters.notified();
            tokio::pin!(changed);
            // Waits from here on: a change before the look is seen, one after it wakes.
            changed.as_mut().enable();
            let count = self.count();
            if count > seen {
                return count;
            }
            changed.await;
        }
    }
}

/// Node time is `node + rate * (global - anchor)`: every change moves the anchor, so time never jumps
/// when the rate changes.
struct State {
    anchor: Duration,
    node: Duration,
    rate: f64,
    wall_ms: i64,
    paused: bool,
}

impl VirtualClock {
    /// A clock that starts at one hour of boot time, runs at rate 1 and is not paused.
    #[must_use]
    #[allow(clippy::disallowed_methods, reason = "reads tokio's virtual clock")]
    pub fn new() -> Self {
        let state = State {
            anchor: Duration::ZERO,
            node: Duration::from_secs(3_600),
            rate: 1.0,
            wall_ms: WALL_ORIGIN_MS,
            paused: false,
        };
        Self(Arc::new(Shared {
            origin: tokio::time::Instant::now(),
            state: Mutex::new(state),
            changed: Changes::default(),
        }))
    }

    /// A clock of another node on the same global time, `offset` ahead in boot time.
    #[must_use]
    pub fn node(&self, offset: Duration, rate: f64) -> Self {
        let other = Self::new();
        {
            let mut state = other.0.lock();
            state.anchor = other.0.global();
            state.node = state.node.saturating_add(offset);
            state.rate = rate;
        }
        other
    }

    /// Makes node time pass `rate` times as fast as global time, from now on. Rates below or equal to
    /// zero stop it.
    pub fn set_rate(&self, rate: f64) {
        self.0.change(|state| state.rate = rate.max(0.0));
    }

    /// Jumps the wall clock; boot time is not touched.
    pub fn jump_wall(&self, millis: i64) {
        self.0.change(|state| state.wall_ms = state.wall_ms.saturating_add(millis));
    }

    /// Jumps boot time forward, as a suspend does.
    pub fn jump_boot(&self, d: Duration) {
        self.0.change(|state| state.node = state.node.saturating_add(d));
    }

    /// Stops firing sleeps. Time itself goes on: a stopped process does not stop the world.
    pub fn pause(&self) {
        self.0.change(|state| state.paused = true);
    }

    /// Fires every sleep that came due during the pause.
    pub fn resume(&self) {
        self.0.change(|state| state.paused = false);
    }

    /// Global time until this clock shows `at`, at today's rate: zero once it does, `None` when it stands
    /// still.
    #[must_use]
    pub fn until(&self, at: Instant) -> Option<Duration> {
        let state = self.0.lock();
        let left = at.saturating_duration_since(instant(state.node_at(self.0.global())));
        if left.is_zero() { Some(left) } else { state.global_wait(left) }
    }

    /// Whether the node is paused.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.lock().paused
    }

    /// Resolves when the node is not paused.
    ///
    /// # Cancel safety
    /// Dropping the future only stops waiting.
    pub async fn running(&self) {
        loop {
            let seen = self.0.changed.count();
            if !self.is_paused() {
                return;
            }
            self.0.changed.after(seen).await;
        }
    }
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for VirtualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtualClock").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[allow(clippy::disallowed_methods, reason = "reads tokio's virtual clock")]
    fn global(&self) -> Duration {
        tokio::time::Instant::now().saturating_duration_since(self.origin)
    }

    fn change(&self, f: impl FnOnce(&mut State)) {
        {
            let mut state = self.lock();
            let global = self.global();
            state.node = state.node_at(global);
            state.anchor = global;
            f(&mut state);
        }
        self.changed.bump();
    }

    async fn sleep_until(self: Arc<Self>, deadline: Instant) {
        loop {
            let seen = self.changed.count();
            let wait = {
                let state = self.lock();
                let now = instant(state.node_at(self.global()));
                let left = deadline.saturating_duration_since(now);
                match (state.paused, left.is_zero()) {
                    (false, true) => return,
                    (true, _) => None,
                    (false, false) => state.global_wait(left),
                }
            };
            match wait {
                // A paused or stopped node waits for a change, not for time.
                None => {
                    self.changed.after(seen).await;
                }
                Some(wait) => sleep_or_change(wait, &self.changed, seen).await,
            }
        }
    }
}

impl State {
    fn node_at(&self, global: Duration) -> Duration {
        self.node.saturating_add(global.saturating_sub(self.anchor).mul_f64(self.rate))
    }

    /// How long `left` of node time takes globally; `None` when the clock stands still.
    fn global_wait(&self, left: Duration) -> Option<Duration> {
        if self.rate <= 0.0 {
            return None;
        }
        let seconds = left.as_secs_f64() / self.rate;
        // Round up: a sleep may be late, never early, and must make progress.
        Some(
            Duration::try_from_secs_f64(seconds)
                .unwrap_or(Duration::MAX / 4)
                .saturating_add(Duration::from_nanos(1)),
        )
    }
}

#[allow(clippy::disallowed_methods, reason = "sleeps on tokio's virtual clock")]
async fn sleep_or_change(wait: Duration, changes: &Changes, seen: u64) {
    /// Longer than any simulated run; keeps tokio's timer arithmetic in range.
    const LONGEST: Duration = Duration::from_secs(86_400 * 365);
    let _ = tokio::time::timeout(wait.min(LONGEST), changes.after(seen)).await;
}

fn instant(d: Duration) -> Instant {
    Instant::from_nanos(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

impl Clock for VirtualClock {
    fn now(&self) -> Instant {
        instant(self.0.lock().node_at(self.0.global()))
    }

    fn wall(&self) -> WallTime {
        let state = self.0.lock();
        let node = state.node_at(self.0.global());
        WallTime::from_unix_millis(state.wall_ms).saturating_add(node)
    }

    fn tick(&self) -> Tick {
        Tick::of(Arc::new(self.clone()))
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Box::pin(Arc::clone(&self.0).sleep_until(deadline))
    }
}
