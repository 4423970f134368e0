//! The clock contract and the clock of the operating system.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
#[cfg(feature = "test-util")]
use std::sync::Arc;
use std::time::Duration;

use crate::{Instant, WallTime, ticker};

/// The future of [`Clock::sleep_until`]. Dropping it cancels the sleep.
pub type Sleep = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// Reads time and sleeps.
///
/// Guarantees: [`now`](Clock::now) never goes back and goes on while the machine is suspended;
/// [`sleep_until`](Clock::sleep_until) never resolves early by this clock. Not guaranteed: that a sleep
/// ends on time; late is allowed.
///
/// ```
/// # #[cfg(feature = "tokio")] {
/// use mainstay_clock::{Clock, SystemClock};
///
/// let clock = SystemClock::new();
/// let a = clock.now();
/// assert!(clock.now() >= a);
/// # }
/// ```
pub trait Clock: Send + Sync + fmt::Debug {
    /// Boot time now.
    fn now(&self) -> Instant;

    /// Calendar time now, for people and for the wire.
    fn wall(&self) -> WallTime;

    /// A handle that reads this clock coarsely (about 1 ms) at the price of one atomic load.
    fn tick(&self) -> Tick;

    /// Resolves once [`now`](Clock::now) is at or after `deadline`.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the sleep and leaks nothing.
    fn sleep_until(&self, deadline: Instant) -> Sleep;

    /// Resolves once `d` has passed.
    ///
    /// # Cancel safety
    /// Dropping the future cancels the sleep and leaks nothing.
    fn sleep(&self, d: Duration) -> Sleep {
        self.sleep_until(self.now().saturating_add(d))
    }
}

/// A coarse reading of a clock: one atomic load, about 1 ms behind at most while the ticker runs.
///
/// A handle keeps the system ticker alive; when the last one is dropped the ticker thread parks.
#[derive(Clone, Debug)]
pub struct Tick(Source);

#[derive(Clone, Debug)]
enum Source {
    Ticker(ticker::Handle),
    #[cfg(feature = "test-util")]
    Clock(Arc<dyn Clock>),
}

impl Tick {
    /// The tick of the system clock. Starts the ticker thread on first use.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::Ticker(ticker::Handle::new()))
    }

    /// A tick that reads `clock` exactly; for clocks whose time does not pass by itself.
    #[cfg(feature = "test-util")]
    #[must_use]
    pub fn of(clock: Arc<dyn Clock>) -> Self {
        Self(Source::Clock(clock))
    }

    /// Boot time, about 1 ms coarse.
    #[inline]
    #[must_use]
    pub fn read(&self) -> Instant {
        match &self.0 {
            Source::Ticker(handle) => handle.read(),
            #[cfg(feature = "test-util")]
            Source::Clock(clock) => clock.now(),
        }
    }
}

/// Boot time of the operating system (`CLOCK_BOOTTIME`): it goes on while the machine sleeps.
#[must_use]
pub fn os_boot_now() -> Instant {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let nanos = u64::try_from(t.tv_nsec).unwrap_or(0);
    Instant::from_nanos(
        u64::try_from(t.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(nanos),
    )
}

/// Calendar time of the operating system.
#[must_use]
pub fn os_wall_now() -> WallTime {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    // Below 10^9.
    WallTime::from_unix_millis(unix_millis(t.tv_sec, t.tv_nsec as u32))
}

/// In 32 bits, for whoever asked waits for this division, and it takes half as long.
fn unix_millis(seconds: i64, nanos: u32) -> i64 {
    let exact = seconds.checked_mul(1_000).and_then(|ms| ms.checked_add(i64::from(nanos / 1_000_000)));
    exact.unwrap_or_else(|| out_of_range(seconds))
}

/// Apart, because a branch that is never taken costs a reading nothing, and saturating does.
#[cold]
fn out_of_range(seconds: i64) -> i64 {
    if seconds < 0 { i64::MIN } else { i64::MAX }
}

/// The clock of the operating system, sleeping on tokio.
///
/// A tokio timer stands still while the machine is suspended, so a long sleep looks at boot time at
/// least every second and ends at most one second after the machine woke up.
#[cfg(feature = "tokio")]
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct SystemClock;

#[cfg(feature = "tokio")]
impl SystemClock {
    /// The system clock.
    #[must_use]
    pub const fn new() -> Self {
        Self
    }
}

#[cfg(feature = "tokio")]
impl Clock for SystemClock {
    fn now(&self) -> Instant {
        os_boot_now()
    }

    fn wall(&self) -> WallTime {
        os_wall_now()
    }

    fn tick(&self) -> Tick {
        Tick::system()
    }

    #[allow(clippy::disallowed_methods, reason = "the one place that sleeps on tokio")]
    fn sleep_until(&self, deadline: Instant) -> Sleep {
        /// How long a tokio timer may stand still unnoticed after a suspend.
        const LOOK: Duration = Duration::from_secs(1);
        Box::pin(async move {
            loop {
                let left = deadline.saturating_duration_since(os_boot_now());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(LOOK)).await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::unix_millis;

    #[test]
    fn milliseconds_are_exact_and_saturate() {
        for (seconds, nanos, millis) in [
            (0, 999_999, 0),
            (0, 1_000_000, 1),
            (1_764_000_000, 999_999_999, 1_764_000_000_999),
            (-1, 999_000_000, -1),
            (i64::MAX / 1_000, 999_999_999, i64::MAX),
            (i64::MAX, 0, i64::MAX),
            (i64::MIN, 0, i64::MIN),
        ] {
            assert_eq!(unix_millis(seconds, nanos), millis, "{seconds} s and {nanos} ns");
        }
    }
}
