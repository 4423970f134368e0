//! Hybrid logical clocks: stamps that respect causality and stay close to the wall clock.
//!
//! A stamp is eight bytes: 48 bits of milliseconds and 16 bits of counter. Whatever happened before has the smaller
//! stamp, also across nodes that exchange stamps; whatever is unrelated is ordered as the wall clocks were, within
//! their skew. A stamp is neither a time for people nor a fencing token.
//!
//! Source: Kulkarni, Demirbas, Madappa, Avva, Leone, "Logical Physical Clocks" (2014).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Tick};
use mainstay_store::DurableCell;

use crate::error::{ConfigError, Error, ErrorKind, Result};
use crate::turn::Turn;
use crate::wire::{Reader, Wire, Writer};

/// How far stamps may run ahead of the wall clock: more than machines with NTP differ, less than people notice.
pub const MAX_SKEW: Duration = Duration::from_millis(500);
/// How far ahead of its use a bound is made durable: a write per half of it.
pub const PERSIST_WINDOW: Duration = Duration::from_millis(250);
const COUNTER_BITS: u32 = 16;
/// The largest millisecond: in the year 10889.
const MAX_MS: u64 = (1 << 48) - 1;

/// A stamp: comparable with every other one. Only clocks make them.
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_consistency::hlc::Hlc;
///
/// let hlc = Hlc::builder(Arc::new(SystemClock::new())).build()?;
/// let (first, second) = (hlc.now()?, hlc.now()?);
/// assert!(first < second);
/// # Ok::<(), mainstay_consistency::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// Its milliseconds since 1970; for people, never for comparisons.
    #[must_use]
    pub const fn physical_ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// How many stamps of that millisecond came before it.
    #[must_use]
    pub const fn counter(self) -> u64 {
        self.0 & ((1 << COUNTER_BITS) - 1)
    }

    /// The eight bytes, for a log or a message. They order as the stamps do.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0.to_be_bytes()
    }

    /// Reads what [`to_bytes`](Timestamp::to_bytes) gave. A made-up one is caught by [`Hlc::observe`].
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_be_bytes(bytes))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.physical_ms(), self.counter())
    }
}

impl Wire for Timestamp {
    fn write(&self, out: &mut Writer) {
        out.raw(&self.to_bytes());
    }

    fn read(input: &mut Reader<'_>) -> Result<Self> {
        Ok(Self::from_bytes(input.array()?))
    }
}

/// Where milliseconds come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// The coarse tick, set to the wall clock when the clock is built and at every [`Hlc::sync`]. One atomic load; steps
    /// of the wall clock are noticed at the next `sync`.
    Cached,
    /// The wall clock, at every stamp.
    Wall,
}

/// A hybrid logical clock. Clones are the same clock; threads share it without a lock.
///
/// Guarantees: stamps strictly increase, also when the wall clock goes back; a stamp observed is smaller than every
/// later one; a stamp from further ahead than `max_skew` is refused and changes nothing. With a durable bound
/// ([`DurableHlc`]) also over restarts. Not guaranteed: that stamps are close to true time.
///
/// # Defaults
/// `max_skew` 500 ms ([`MAX_SKEW`]); source [`Source::Wall`]; no durable bound.
#[derive(Clone)]
pub struct Hlc(Arc<State>);

struct State {
    clock: Arc<dyn Clock>,
    tick: Tick,
    source: Source,
    max_skew: Duration,
    max_skew_ms: u64,
    last: AtomicU64,
    /// The first stamp that may not be handed out.
    bound: AtomicU64,
    /// Wall time minus boot time in milliseconds, as last read.
    offset: AtomicI64,
    /// The largest of these that was believed: a step back and its correction are no jump.
    believed: AtomicI64,
}

/// Builds an [`Hlc`].
#[derive(Debug)]
pub struct Builder {
    clock: Arc<dyn Clock>,
    max_skew: Duration,
    source: Source,
}

impl Builder {
    /// How far stamps of others may be ahead.
    #[must_use]
    pub fn max_skew(mut self, max_skew: Duration) -> Self {
        self.max_skew = max_skew;
        self
    }

    /// Where milliseconds come from.
    #[must_use]
    pub fn source(mut self, source: Source) -> Self {
        self.source = source;
        self
    }

    /// The clock.
    ///
    /// # Errors
    /// A skew below 1 ms or above an hour.
    pub fn build(self) -> std::result::Result<Hlc, ConfigError> {
        let allowed = Duration::from_millis(1)..=Duration::from_secs(3_600);
        if !allowed.contains(&self.max_skew) {
            return Err(ConfigError::new("max_skew", format!("{:?}", self.max_skew), "1ms to 1h"));
        }
        let tick = self.clock.tick();
        let state = State {
            tick,
            source: self.source,
            max_skew: self.max_skew,
            max_skew_ms: millis(self.max_skew),
            last: AtomicU64::new(0),
            bound: AtomicU64::new(u64::MAX),
            offset: AtomicI64::new(0),
            believed: AtomicI64::new(0),
            clock: self.clock,
        };
        let hlc = Hlc(Arc::new(state));
        hlc.accept_jump();
        Ok(hlc)
    }
}

/// Before 1970 the wall clock says nothing, and stamps go on from the last one; past the largest they stand. Apart,
/// because a branch that is never taken costs the stamp nothing, and bounding every reading does.
#[cold]
fn beyond(wall: i64) -> u64 {
    if wall < 0 { 0 } else { MAX_MS }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl State {
    fn wall_now(&self) -> i64 {
        self.clock.wall().unix_millis()
    }

    #[inline]
    fn boot_now(&self) -> i64 {
        // Below 2^63 for three hundred years of boot time.
        (self.tick.read().as_nanos() / 1_000_000) as i64
    }

    /// Milliseconds of the wall clock, once it was compared with the monotonic one.
    #[inline]
    fn physical(&self) -> Result<u64> {
        let wall = match self.source {
            Source::Cached => self.boot_now() + self.offset.load(Ordering::Relaxed),
            Source::Wall => {
                let wall = self.wall_now();
                let offset = wall - self.boot_now();
                if offset > self.believed.load(Ordering::Relaxed) {
                    self.believe(offset)?;
                }
                wall
            }
        };
        Ok(match u64::try_from(wall) {
            Ok(ms) if ms <= MAX_MS => ms,
            _ => beyond(wall),
        })
    }

    #[cold]
    fn believe(&self, offset: i64) -> Result<()> {
        let believed = self.believed.load(Ordering::Relaxed);
        let ahead = u64::try_from(offset.saturating_sub(believed)).unwrap_or(0);
        if ahead > self.max_skew_ms {
            let ahead = Duration::from_millis(ahead);
            let text = format!("the wall clock jumped ahead by {ahead:?}; call accept_jump if that is right");
            return Err(Error::new(ErrorKind::ClockJump { ahead }, text));
        }
        self.believed.fetch_max(offset, Ordering::Relaxed);
        Ok(())
    }
}

impl Hlc {
    /// Builds a clock over `clock`.
    #[must_use]
    pub fn builder(clock: Arc<dyn Clock>) -> Builder {
        Builder { clock, max_skew: MAX_SKEW, source: Source::Wall }
    }

    /// A stamp larger than every one before, observed ones included.
    ///
    /// # Errors
    /// - [`ErrorKind::ClockJump`]: the wall clock is ahead of the monotonic one by more than `max_skew`;
    /// - [`ErrorKind::ClockBehind`]: the wall clock is behind the newest stamp by more than `max_skew`;
    /// - [`ErrorKind::Unbounded`]: the durable bound is used up.
    #[inline]
    pub fn now(&self) -> Result<Timestamp> {
        let state = &*self.0;
        let physical = state.physical()?;
        let (floor, bound) = (physical << COUNTER_BITS, state.bound.load(Ordering::Acquire));
        let mut last = state.last.load(Ordering::Relaxed);
        loop {
            // A full counter carries into the milliseconds by itself.
            let next = floor.max(last + 1);
            if next >= bound || (next >> COUNTER_BITS) > physical + state.max_skew_ms {
                return Err(self.refuse(next, bound, physical));
            }
            match state.last.compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(Timestamp(next)),
                Err(seen) => last = seen,
            }
        }
    }

    #[cold]
    fn refuse(&self, next: u64, bound: u64, physical: u64) -> Error {
        if next >= bound {
            return Error::new(ErrorKind::Unbounded, "no stamp before the next bound is durable");
        }
        let behind = Duration::from_millis((next >> COUNTER_BITS) - physical);
        Error::new(
            ErrorKind::ClockBehind { behind },
            format!("the wall clock is {behind:?} behind the newest stamp"),
        )
    }

    /// Takes note of a stamp from elsewhere: every later one of this clock is larger.
    ///
    /// # Errors
    /// [`ErrorKind::Skew`] when it is further ahead of the wall clock than `max_skew`, and
    /// [`ErrorKind::ClockJump`]; the clock is as before then.
    #[inline]
    pub fn observe(&self, stamp: Timestamp) -> Result<()> {
        let state = &*self.0;
        let physical = state.physical()?;
        if stamp.physical_ms() > physical + state.max_skew_ms {
            let ahead = Duration::from_millis(stamp.physical_ms() - physical);
            let text = format!("a stamp is {ahead:?} ahead of this clock; {:?} are allowed", state.max_skew);
            return Err(Error::new(ErrorKind::Skew { ahead }, text));
        }
        state.last.fetch_max(stamp.0, Ordering::AcqRel);
        Ok(())
    }

    /// The largest stamp that [`observe`](Self::observe) takes now.
    ///
    /// # Errors
    /// [`ErrorKind::ClockJump`].
    pub fn horizon(&self) -> Result<Timestamp> {
        let ms = self.0.physical()?.saturating_add(self.0.max_skew_ms).min(MAX_MS);
        Ok(Timestamp(ms << COUNTER_BITS | ((1 << COUNTER_BITS) - 1)))
    }

    /// Compares the tick with the wall clock again; call it every second or so with [`Source::Cached`].
    ///
    /// # Errors
    /// [`ErrorKind::ClockJump`].
    pub fn sync(&self) -> Result<()> {
        let state = &*self.0;
        let offset = state.wall_now() - state.boot_now();
        state.believe(offset)?;
        state.offset.store(offset, Ordering::Relaxed);
        Ok(())
    }

    /// A person says that the wall clock is right after all.
    pub fn accept_jump(&self) {
        let state = &*self.0;
        let offset = state.wall_now() - state.boot_now();
        state.offset.store(offset, Ordering::Relaxed);
        state.believed.store(offset, Ordering::Relaxed);
    }

    /// The newest stamp, made or observed.
    #[must_use]
    pub fn last(&self) -> Timestamp {
        Timestamp(self.0.last.load(Ordering::Acquire))
    }

    /// The allowed skew.
    #[must_use]
    pub fn max_skew(&self) -> Duration {
        self.0.max_skew
    }

    /// From here on no stamp at or above `bound` is handed out, and none below `start`.
    fn restart(&self, start: u64, bound: u64) {
        self.0.last.fetch_max(start, Ordering::AcqRel);
        self.0.bound.store(bound, Ordering::Release);
    }

    /// Stamps below `bound` may be handed out, too.
    fn extend(&self, bound: u64) {
        self.0.bound.fetch_max(bound, Ordering::AcqRel);
    }

    /// The bound that should be durable next, if half of the window is used.
    fn wanted(&self, window: u64) -> Result<Option<u64>> {
        let physical = self.0.physical()?;
        let reached = physical.max(self.last().physical_ms());
        let bound = self.0.bound.load(Ordering::Acquire) >> COUNTER_BITS;
        let due = bound.saturating_sub(reached) <= window / 2;
        // A crash loop must not run away from the wall clock: ahead of it, bounds grow in small steps only.
        let next = (physical + window).max(reached + (window / 8).max(1)).min(MAX_MS);
        Ok((due && next > bound).then_some(next))
    }
}

impl fmt::Debug for Hlc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hlc")
            .field("last", &self.last())
            .field("max_skew", &self.0.max_skew)
            .finish_non_exhaustive()
    }
}

/// A clock that never goes back over a restart: it hands out nothing above a bound that is on disk.
///
/// The one who owns it calls [`extend`](DurableHlc::extend) a few times per window, from a task of its own. If that
/// stops, stamps end with [`ErrorKind::Unbounded`] rather than to risk going back.
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use mainstay_clock::SystemClock;
/// use mainstay_consistency::hlc::{DurableHlc, Hlc, PERSIST_WINDOW};
/// use mainstay_store::memory::MemoryCell;
///
/// # let rt = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # rt.block_on(async {
/// let (clock, cell) = (Arc::new(SystemClock::new()), Arc::new(MemoryCell::new()));
/// let before = DurableHlc::open(Hlc::builder(clock.clone()).build()?, cell.clone(), PERSIST_WINDOW).await?;
/// let stamp = before.hlc().now()?;
/// // The process dies and comes back.
/// let after = DurableHlc::open(Hlc::builder(clock).build()?, cell, PERSIST_WINDOW).await?;
/// assert!(after.hlc().now()? > stamp);
/// # Ok::<(), mainstay_consistency::Error>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct DurableHlc {
    hlc: Hlc,
    cell: Arc<dyn DurableCell>,
    window: u64,
    /// Whose write it is: of two at once the cell may keep the smaller bound, with the larger one in force.
    turn: Arc<Turn>,
}

impl DurableHlc {
    /// Starts `hlc` above the bound in `cell`, and makes the first one durable.
    ///
    /// # Errors
    /// A window outside 2 ms to `max_skew` (after a restart peers would refuse the first stamps), a cell that is not
    /// one of ours ([`ErrorKind::Malformed`]), [`ErrorKind::Store`], and those of [`Hlc::now`].
    ///
    /// # Cancel safety
    /// A dropped future may have made a bound durable; opening again starts above it.
    pub async fn open(hlc: Hlc, cell: Arc<dyn DurableCell>, window: Duration) -> Result<Self> {
        if window < Duration::from_millis(2) || window > hlc.max_skew() {
            let allowed = format!("2ms to max_skew ({:?})", hlc.max_skew());
            return Err(ConfigError::new("persist_window", format!("{window:?}"), allowed).into());
        }
        let stored = match cell.load().await? {
            None => 0,
            Some(bytes) => {
                let bytes = <[u8; 8]>::try_from(bytes)
                    .map_err(|_| Error::malformed("the cell holds no clock bound"))?;
                let bound = u64::from_be_bytes(bytes);
                if bound > MAX_MS {
                    return Err(Error::malformed("the cell holds a clock bound that no clock reaches"));
                }
                bound
            }
        };
        hlc.restart(stored << COUNTER_BITS, stored << COUNTER_BITS);
        let durable = Self { hlc, cell, window: millis(window), turn: Arc::default() };
        durable.extend().await?;
        Ok(durable)
    }

    /// The clock.
    #[must_use]
    pub fn hlc(&self) -> &Hlc {
        &self.hlc
    }

    /// Makes the next bound durable when half of the window is used; whether it did. Several tasks may call it: one writes
    /// at a time, and who comes second looks again whether there is anything left to do.
    ///
    /// # Errors
    /// [`ErrorKind::Store`] and [`ErrorKind::ClockJump`]; the old bound stays in force.
    ///
    /// # Cancel safety
    /// A dropped future may have made the bound durable; it is not in force then, and the next call makes another.
    pub async fn extend(&self) -> Result<bool> {
        let _turn = self.turn.take().await;
        let Some(next) = self.hlc.wanted(self.window)? else { return Ok(false) };
        self.cell.store_synced(next.to_be_bytes().to_vec()).await?;
        self.hlc.extend(next << COUNTER_BITS);
        Ok(true)
    }
}
