//! Changes of a placement while readers go on: epochs, prepare and commit, handoff.

mod damper;
mod member;
mod state;
mod sync;
mod view;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Instant};
use mainstay_store::FencingToken;

use crate::error::{ConfigError, Error};
use crate::place::Place;
use state::{State, Summary};
use sync::{Locked, Published};

pub use damper::{Damper, DamperConfig};
pub use member::{EpochFence, Member, Verdict};
pub use state::Stage;
pub use view::{Reader, Routed, View};

/// When a change is let through.
///
/// # Defaults
/// | option | default | why |
/// |---|---|---|
/// | `max_shrink` | 0.5 | a discovery that lost more than half of the fleet is usually broken itself; others in place of the lost do not count |
/// | `hold` | 3 | seen three times in a row, it is the truth |
/// | `force` | false | a person's decision |
/// | `timeout` | 5 min | a prepared change freezes writes of moving keys; nobody may forget it |
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    max_shrink: f64,
    hold: u32,
    force: bool,
    timeout: Duration,
}

impl Default for Guard {
    fn default() -> Self {
        Self { max_shrink: 0.5, hold: 3, force: false, timeout: Duration::from_secs(300) }
    }
}

impl Guard {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The part of the nodes, and of the weight, that a change may drop at once: 0 to 1. New nodes make up for none that
    /// left.
    #[must_use]
    pub fn max_shrink(mut self, part: f64) -> Self {
        self.max_shrink = part;
        self
    }

    /// How often in a row a larger shrink must be offered.
    #[must_use]
    pub fn hold(mut self, times: u32) -> Self {
        self.hold = times;
        self
    }

    /// Lets any shrink through: somebody decided it.
    #[must_use]
    pub fn force(mut self) -> Self {
        self.force = true;
        self
    }

    /// How long a change may stay prepared before it is dropped.
    #[must_use]
    pub fn timeout(mut self, d: Duration) -> Self {
        self.timeout = d;
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let bad = |field, value: String, allowed| Err(ConfigError::new(field, value, allowed));
        if !(0.0..=1.0).contains(&self.max_shrink) {
            return bad("guard.max_shrink", self.max_shrink.to_string(), "0 to 1");
        }
        if self.hold == 0 {
            return bad("guard.hold", self.hold.to_string(), "at least 1");
        }
        if self.timeout.is_zero() {
            return bad("guard.timeout", format!("{:?}", self.timeout), "above 0");
        }
        Ok(())
    }
}

/// When a lease has certainly ended: its end by its store, and by how much clocks may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "an end and its uncertainty, nothing else proves it")]
pub struct LeaseEnd {
    /// The end of the lease.
    pub ends: Instant,
    /// How far clocks may be apart.
    pub uncertainty: Duration,
}

struct Shared<P: ?Sized> {
    state: Locked<(State, Option<Arc<P>>)>,
    published: Published<View<P>>,
    clock: Arc<dyn Clock>,
}

/// A placement that changes: one epoch after the other, each prepared, acknowledged and committed.
///
/// Guaranteed: epochs only rise; every lookup sees exactly one pair of epoch and placement; a coordinator with
/// a fencing token below the highest one seen commits and aborts nothing; dropping a [`Change`] aborts it.
/// Readers are wait-free and write nothing shared.
///
/// Not guaranteed: agreement between processes. This is the state of one process; the token comes from a
/// lease that only one coordinator holds, other processes follow with [`Topology::observe`], and the stores
/// refuse old epochs with an [`EpochFence`].
///
/// ```
/// use std::sync::Arc;
/// use mainstay_clock::SystemClock;
/// use mainstay_partition::{Node, Ring, topology::{Guard, Topology}};
/// use mainstay_store::FencingToken;
///
/// let ring = |ids: &[&str]| Ring::builder().nodes(ids.iter().map(|id| Node::new(*id))).build();
/// let topology = Topology::new(1, Arc::new(ring(&["a", "b"])?), Arc::new(SystemClock::new()));
/// let mut reader = topology.reader();
///
/// let mut change = topology.prepare(Arc::new(ring(&["a", "b", "c"])?), &Guard::new())?;
/// for member in ["a", "b", "c"] {
///     change.ack(member)?;
/// }
/// change.commit(FencingToken::new(7))?;
/// assert_eq!(reader.owner(b"user:17").unwrap().epoch, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Topology<P: ?Sized>(Arc<Shared<P>>);

impl<P: ?Sized> Clone for Topology<P> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<P: Place + ?Sized> fmt::Debug for Topology<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology").field("epoch", &self.epoch()).field("stage", &self.stage()).finish()
    }
}

impl<P: Place + ?Sized> Topology<P> {
    /// A stable topology at `epoch`.
    #[must_use]
    pub fn new(epoch: u64, place: Arc<P>, clock: Arc<dyn Clock>) -> Self {
        let summary = Summary::of(place.nodes(), place.fingerprint());
        let view = Arc::new(View::stable(epoch, place));
        let state = Locked::new((State::new(epoch, summary), None));
        Self(Arc::new(Shared { state, published: Published::new(view), clock }))
    }

    /// A reader for one thread or task.
    #[must_use]
    pub fn reader(&self) -> Reader<P> {
        Reader::new(self.0.published.cached())
    }

    /// The view now. For lookups take a [`Reader`], which is faster.
    #[must_use]
    pub fn view(&self) -> Arc<View<P>> {
        self.0.published.load()
    }

    /// The epoch in force.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.state.with(|(s, _)| s.epoch())
    }

    /// Where the protocol stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        let now = self.0.clock.now();
        self.0.state.with(|(s, _)| {
            s.expire(now);
            s.stage()
        })
    }

    /// The fingerprint of the placement in force. The same epoch with another fingerprint elsewhere is a
    /// conflict: raise an alarm.
    #[must_use]
    pub fn fingerprint(&self) -> u128 {
        self.view().place().fingerprint()
    }

    /// The placement that a prepared change would bring: a hint to warm up, not yet the truth.
    #[must_use]
    pub fn hint(&self) -> Option<Arc<P>> {
        let now = self.0.clock.now();
        self.0.state.with(|(s, next)| {
            s.expire(now);
            matches!(s.stage(), Stage::Prepared { .. }).then(|| next.clone()).flatten()
        })
    }

    /// Begins the change to `next`. Lookups go on with the old placement.
    ///
    /// # Errors
    /// `InProgress` while another change is prepared or moving, `Guarded` when too much would go at once,
    /// `ApiMisuse` when `next` is in force already, `Config` for a refused guard.
    /// # Examples
    /// ```
    /// use std::sync::Arc;
    /// use mainstay_clock::SystemClock;
    /// use mainstay_partition::{ErrorKind, Node, Ring, topology::{Guard, Topology}};
    ///
    /// let ring = |ids: &[&str]| Ring::builder().nodes(ids.iter().map(|id| Node::new(*id))).build().map(Arc::new);
    /// let topology = Topology::new(1, ring(&["a", "b", "c"])?, Arc::new(SystemClock::new()));
    /// let shrunk = topology.prepare(ring(&["a"])?, &Guard::new()).unwrap_err();
    /// assert_eq!(shrunk.kind(), ErrorKind::Guarded { seen: 1, hold: 3 });
    /// let decided = topology.prepare(ring(&["a"])?, &Guard::new().force())?;
    /// drop(decided);
    /// assert_eq!(topology.epoch(), 1, "a dropped change is aborted");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn prepare(&self, next: Arc<P>, guard: &Guard) -> Result<Change<P>, Error> {
        let summary = Summary::of(next.nodes(), next.fingerprint());
        let now = self.0.clock.now();
        let number = self.0.state.with(|(state, held)| {
            let number = state.prepare(summary, guard, now)?;
            *held = Some(next);
            Ok::<u64, Error>(number)
        })?;
        Ok(Change { topology: self.clone(), number, done: false })
    }

    /// Takes a prepared change over from a coordinator that is gone. Its handle is void from now on.
    ///
    /// # Errors
    /// `StaleToken` unless the token is higher than every one seen, `ApiMisuse` when nothing is prepared.
    pub fn take_over(&self, token: FencingToken) -> Result<Change<P>, Error> {
        let now = self.0.clock.now();
        let number = self.0.state.with(|(state, _)| state.take_over(token, now))?;
        Ok(Change { topology: self.clone(), number, done: false })
    }

    /// Confirms that a former owner handed over everything it lost in this epoch, or that what it had is
    /// given up. True when it was the last one: lookups name no previous owner any more.
    ///
    /// # Errors
    /// `StaleEpoch` for an epoch that is over, `ApiMisuse` for one to come or when nothing moves, `Config` for a
    /// member of neither fleet.
    pub fn handoff_done(&self, epoch: u64, member: &str) -> Result<bool, Error> {
        self.0.state.with(|(state, _)| {
            let last = state.handoff_done(epoch, member)?;
            let view = self.0.published.load();
            self.0.published.store(Arc::new(view.confirmed(member, last)));
            Ok(last)
        })
    }

    /// Follows what a coordinator committed elsewhere. False when it is in force here already. A change that
    /// was prepared here is void then.
    ///
    /// # Errors
    /// `StaleEpoch` for a lower epoch, `Conflict` for the same epoch with another fingerprint.
    pub fn observe(&self, epoch: u64, place: Arc<P>) -> Result<bool, Error> {
        let summary = Summary::of(place.nodes(), place.fingerprint());
        self.0.state.with(|(state, held)| {
            let new = state.observe(epoch, summary)?;
            if new {
                *held = None;
                let old = self.0.published.load();
                self.0.published.store(Arc::new(View::moving(epoch, place, &old)));
            }
            Ok(new)
        })
    }
}

/// A prepared change. Dropping it aborts the change, unless it was committed or taken over.
#[must_use = "dropping a change aborts it"]
pub struct Change<P: Place + ?Sized> {
    topology: Topology<P>,
    number: u64,
    done: bool,
}

impl<P: Place + ?Sized> fmt::Debug for Change<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Change").field("topology", &self.topology).field("done", &self.done).finish()
    }
}

impl<P: Place + ?Sized> Change<P> {
    /// A member is ready. A former owner acknowledges once it takes no more writes for keys that it will
    /// lose ([`Member::prepare`] does that); a new one once it can take them.
    ///
    /// # Errors
    /// `Config` for a member of neither fleet, `ApiMisuse` when the change is decided, timed out or taken
    /// over.
    pub fn ack(&self, member: &str) -> Result<(), Error> {
        let now = self.topology.0.clock.now();
        self.topology.0.state.with(|(state, _)| state.ack(self.number, member, now))
    }

    /// Goes on without a member that cannot answer but also cannot act any more: its lease has ended.
    ///
    /// # Errors
    /// `ApiMisuse` while its lease may be in force; otherwise as [`Change::ack`].
    pub fn excuse(&self, member: &str, lease: LeaseEnd) -> Result<(), Error> {
        let now = self.topology.0.clock.now();
        self.topology.0.state.with(|(state, _)| state.excuse(self.number, member, lease, now))
    }

    /// Makes the change the truth. On an error the change stays prepared.
    ///
    /// # Errors
    /// `NotAcknowledged`, `StaleToken`, or `ApiMisuse` when it is decided, timed out or taken over.
    pub fn commit(&mut self, token: FencingToken) -> Result<u64, Error> {
        let shared = &self.topology.0;
        let now = shared.clock.now();
        let epoch = shared.state.with(|(state, held)| {
            state.commit(self.number, token, now)?;
            let old = shared.published.load();
            let place = held.take().unwrap_or_else(|| Arc::clone(old.shared()));
            shared.published.store(Arc::new(View::moving(state.epoch(), place, &old)));
            Ok::<u64, Error>(state.epoch())
        })?;
        self.done = true;
        Ok(epoch)
    }

    /// Drops the change, as the coordinator that the token belongs to.
    ///
    /// # Errors
    /// As [`Change::commit`].
    pub fn abort(mut self, token: FencingToken) -> Result<(), Error> {
        let now = self.topology.0.clock.now();
        self.topology.0.state.with(|(state, _)| state.abort(self.number, token, now))?;
        self.done = true;
        Ok(())
    }
}

impl<P: Place + ?Sized> Drop for Change<P> {
    fn drop(&mut self) {
        if !self.done {
            self.topology.0.state.with(|(state, _)| state.abandon(self.number));
        }
    }
}
