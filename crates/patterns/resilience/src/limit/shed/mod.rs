//! What a server takes in beyond its limit, and whom it refuses first.
//!
//! The thresholds of two and three times the limit are those of failsafe-go's prioritizers; the fairness among tenants is
//! by their shares of what is taken in.

mod state;
mod tenants;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use mainstay_clock::{Clock, Rng, Runtime};

use super::AdaptiveLimiter;
use super::parts::{Parts, Voice};
use crate::policy::seam::{self, Ask, Pass};
use crate::sync::Mutex;
use crate::{CallContext, ConfigError, Listener, Reason, Rejected};
use state::chance;
use tenants::Tenants;

/// Sheds load by priority, fairly among tenants.
///
/// Up to twice the limit everything is taken (in service or waiting), from three times on nothing; in
/// between the least important class gives way first, and within it the tenant with the largest share.
///
/// Guarantees: never more than three times the limit of permits out; a class gives way only after every
/// lower one is refused entirely. Does not guarantee: that a heavy tenant is refused before a light one of
/// the same class every time; it is by chance, in proportion to the shares.
///
/// ```
/// use mainstay_resilience::{CallContext, Priority, limit::Shedder};
///
/// let shedder = Shedder::builder("api").limit(4).build().unwrap();
/// let batch = CallContext::new().with_tenant("batch").with_priority(Priority::Low);
/// let pay = CallContext::new().with_tenant("shop").with_priority(Priority::Critical);
/// let taken: Vec<_> = (0..9).filter_map(|_| shedder.admit(&batch).ok()).collect();
/// assert!(taken.len() >= 8);
/// assert!(shedder.admit(&pay).is_ok());
/// ```
///
/// # Defaults
/// The limit is required: a number, or that of an [`AdaptiveLimiter`].
#[derive(Clone)]
pub struct Shedder(Arc<Inner>);

struct Inner {
    voice: Voice,
    limit: Limit,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    load: AtomicU32,
    tenants: Mutex<Tenants>,
}

#[derive(Clone, Debug)]
enum Limit {
    Fixed(u32),
    Follow(AdaptiveLimiter),
}

/// Settings of a [`Shedder`].
///
/// ```
/// use mainstay_resilience::limit::{AdaptiveLimiter, Shedder};
///
/// let measured = AdaptiveLimiter::builder("database").initial(8).build().unwrap();
/// let shedder = Shedder::builder("api").follow(&measured).build().unwrap();
/// assert_eq!(shedder.load(), 0);
/// assert_eq!(Shedder::builder("api").build().unwrap_err().field(), "limit"); // a number, or whom to follow
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ShedderBuilder {
    parts: Parts,
    limit: Limit,
}

impl Shedder {
    /// Starts a shedder named `name`; the limit is required.
    pub fn builder(name: impl Into<Arc<str>>) -> ShedderBuilder {
        ShedderBuilder { parts: Parts::new(name), limit: Limit::Fixed(0) }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.voice.name
    }

    /// Permits out: calls in service and waiting, of all tenants.
    #[must_use]
    pub fn load(&self) -> u32 {
        self.0.load.load(Ordering::Acquire)
    }

    /// Tenants with at least one permit.
    #[must_use]
    pub fn tenants(&self) -> usize {
        self.0.tenants.lock().len()
    }

    /// Takes the call in, by its priority and tenant. Calls without a tenant are one tenant.
    ///
    /// # Errors
    /// [`Rejected`] with [`Reason::Shed`].
    pub fn admit(&self, cx: &CallContext) -> Result<ShedPermit, Rejected> {
        let tenant = self.0.take(cx)?;
        Ok(ShedPermit { shedder: Arc::clone(&self.0), tenant })
    }
}

impl Inner {
    /// A permit; the number of its tenant.
    fn take(&self, cx: &CallContext) -> Result<u64, Rejected> {
        let limit = self.limit.now();
        let tenant = cx.tenant().unwrap_or_default();
        let mut tenants = self.tenants.lock();
        let load = self.load.load(Ordering::Acquire);
        let share = tenants.share(tenant);
        let others = tenants.len() + usize::from(share == 0);
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        let p = chance(load, limit, cx.priority(), share, others);
        if p >= 1.0 || (p > 0.0 && self.rng.unit() < p) {
            drop(tenants);
            return Err(self.voice.refuse(Reason::Shed, None, self.clock.now()));
        }
        self.load.fetch_add(1, Ordering::AcqRel);
        Ok(tenants.take(tenant))
    }

    fn give_back(&self, tenant: u64) {
        let mut tenants = self.tenants.lock();
        self.load.fetch_sub(1, Ordering::AcqRel);
        tenants.give_back(tenant);
    }
}

/// In the adaptive slot of a policy: a place per call, by the context's priority and tenant.
impl seam::Limiter for Shedder {
    fn admit(&self, ask: &Ask<'_>) -> Result<Pass, Rejected> {
        self.0.take(ask.cx).map(Pass)
    }

    fn done(&self, pass: Pass, _sample: seam::Sample) {
        self.0.give_back(pass.0);
    }
}

impl Limit {
    fn now(&self) -> u32 {
        match self {
            Self::Fixed(limit) => *limit,
            Self::Follow(limiter) => limiter.limit(),
        }
    }
}

/// The right to be in the server, from admission to the end of the answer. Dropping it gives the place back.
#[must_use]
pub struct ShedPermit {
    shedder: Arc<Inner>,
    tenant: u64,
}

impl Drop for ShedPermit {
    fn drop(&mut self) {
        self.shedder.give_back(self.tenant);
    }
}

impl fmt::Debug for ShedPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShedPermit").field("shedder", &self.shedder.voice.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shedder").field("name", &self.0.voice.name).field("load", &self.load()).finish()
    }
}

impl ShedderBuilder {
    /// Calls that the server can work on at once: twice as many are taken in freely, three times as many never.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Limit::Fixed(limit);
        self
    }

    /// Follows the limit of `limiter`, as it is at each admission, in place of a fixed number.
    pub fn follow(mut self, limiter: &AdaptiveLimiter) -> Self {
        self.limit = Limit::Follow(limiter.clone());
        self
    }

    /// Clock and randomness. Default: the system's. Tests and simulations pass their own.
    pub fn runtime(mut self, runtime: &Runtime) -> Self {
        self.parts.runtime = Some(runtime.clone());
        self
    }

    /// Hears every refusal, as [`Event::Rejected`](crate::Event::Rejected) from a source of the kind
    /// [`Limit`](crate::Kind::Limit) with this limit's name.
    pub fn listener(mut self, listener: Arc<dyn Listener>) -> Self {
        self.parts.listener = Some(listener);
        self
    }

    /// The shedder.
    ///
    /// # Errors
    /// [`ConfigError`] when the limit is missing, zero or above 1,000,000.
    pub fn build(self) -> Result<Shedder, ConfigError> {
        const MOST: u32 = 1_000_000;
        match self.limit {
            Limit::Fixed(limit) if limit == 0 || limit > MOST => {
                return Err(ConfigError::new("limit", limit, format!("1 to {MOST}")));
            }
            _ => {}
        }
        let runtime = self.parts.runtime();
        Ok(Shedder(Arc::new(Inner {
            clock: Arc::clone(runtime.clock()),
            rng: Arc::clone(runtime.rng()),
            voice: self.parts.voice(),
            limit: self.limit,
            load: AtomicU32::new(0),
            tenants: Mutex::new(Tenants::default()),
        })))
    }
}
