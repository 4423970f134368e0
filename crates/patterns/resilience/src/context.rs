//! What travels with a call through nested layers.

use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::{Clock, Deadline};

use crate::budget::Budget;

/// How much a call matters when not all can be served. Ordered: later is more important.
///
/// ```
/// use mainstay_resilience::Priority;
///
/// assert!(Priority::Low < Priority::default() && Priority::High < Priority::Critical);
/// assert_eq!(Priority::Critical.index() + 1, Priority::CLASSES);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Priority {
    /// Can wait or be dropped: prefetch, batch.
    Low,
    /// The default.
    #[default]
    Normal,
    /// A person waits.
    High,
    /// Losing it costs money or data.
    Critical,
}

impl Priority {
    /// Number of classes.
    pub const CLASSES: usize = 4;

    /// 0 for the least important class.
    #[must_use]
    pub fn index(self) -> usize {
        match self {
            Self::Low => 0,
            Self::Normal => 1,
            Self::High => 2,
            Self::Critical => 3,
        }
    }
}

/// Deadline, priority, tenant, idempotency and retry budget of one logical call. Creating one allocates
/// nothing.
///
/// A layer below gets [`Attempt::nest`](crate::Attempt::nest) of the context above, so that deadlines only
/// shrink and only the outermost first attempt feeds the shared budget.
///
/// ```
/// use mainstay_clock::{Deadline, Instant};
/// use mainstay_resilience::{CallContext, Priority};
///
/// let cx = CallContext::new()
///     .with_deadline(Deadline::at(Instant::from_nanos(5)))
///     .with_priority(Priority::High)
///     .with_key("order-17/charge");
/// assert!(cx.is_idempotent());
/// assert_eq!(cx.key(), Some("order-17/charge"));
/// ```
#[derive(Clone, Debug, Default)]
pub struct CallContext {
    deadline: Deadline,
    priority: Priority,
    idempotent: bool,
    depth: u8,
    tenant: Option<Arc<str>>,
    key: Option<Arc<str>>,
    budget: Option<Budget>,
    fed: [usize; FED],
}

/// How many budgets of layers above are remembered: more distinct budgets than nested dependencies that
/// anyone stacks; an older one that is forgotten is fed once more.
const FED: usize = 4;

impl CallContext {
    /// No deadline, normal priority, nothing declared.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            deadline: Deadline::NONE,
            priority: Priority::Normal,
            idempotent: false,
            depth: 0,
            tenant: None,
            key: None,
            budget: None,
            fed: [0; FED],
        }
    }

    /// Must have ended by `deadline`, or earlier if it already had to: a deadline only ever shrinks on its way down.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_clock::{Deadline, Instant};
    /// use mainstay_resilience::CallContext;
    ///
    /// let at = |s: u64| Deadline::at(Instant::from_nanos(s * 1_000_000_000));
    /// let cx = CallContext::new().with_deadline(at(5)).with_deadline(at(9));
    /// assert_eq!(cx.deadline(), at(5)); // a later one does not extend it
    /// assert_eq!(cx.deadline().remaining(Instant::from_nanos(2_000_000_000)), Some(Duration::from_secs(3)));
    /// ```
    #[must_use]
    pub fn with_deadline(mut self, deadline: Deadline) -> Self {
        self.deadline = self.deadline.min(deadline);
        self
    }

    /// Must have ended `d` from now.
    ///
    /// ```
    /// use std::time::Duration;
    /// use mainstay_clock::{Clock as _, SystemClock};
    /// use mainstay_resilience::CallContext;
    ///
    /// let clock = SystemClock::new();
    /// let cx = CallContext::new().within(Duration::from_secs(2), &clock);
    /// assert!(cx.deadline().remaining(clock.now()).unwrap() <= Duration::from_secs(2));
    /// ```
    #[must_use]
    pub fn within(self, d: Duration, clock: &dyn Clock) -> Self {
        self.with_deadline(Deadline::after(clock.now(), d))
    }

    /// With this priority: who waits first in a bulkhead's line, and who is shed last.
    ///
    /// ```
    /// use mainstay_resilience::{CallContext, Priority, limit::Shedder};
    ///
    /// let shedder = Shedder::builder("api").limit(10).build().unwrap();
    /// let batch = CallContext::new().with_priority(Priority::Low);
    /// let taken: Vec<_> = (0..100).filter_map(|_| shedder.admit(&batch).ok()).collect();
    /// assert!(taken.len() < 30); // from here on nothing of this class passes ...
    /// let payment = CallContext::new().with_priority(Priority::Critical);
    /// assert!(shedder.admit(&payment).is_ok()); // ... and the others still do
    /// ```
    #[must_use]
    pub fn with_priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// On behalf of `tenant`; shedding is fair among tenants. A name, not a secret: it appears in debug output.
    #[must_use]
    pub fn with_tenant(mut self, tenant: impl Into<Arc<str>>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Declares that the operation may be repeated: a second execution changes nothing.
    #[must_use]
    pub fn idempotent(mut self) -> Self {
        self.idempotent = true;
        self
    }

    /// Declares that the operation may be repeated under this idempotency key, the same for every attempt. The service must
    /// honor it; nothing on this side can.
    ///
    /// ```
    /// use mainstay_resilience::CallContext;
    ///
    /// let cx = CallContext::new();
    /// assert!(!cx.is_idempotent());
    /// assert!(cx.clone().idempotent().is_idempotent());
    /// assert!(cx.with_key("order-17/charge").is_idempotent());
    /// ```
    #[must_use]
    pub fn with_key(mut self, key: impl Into<Arc<str>>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Shares `budget` with every layer below that has none of its own. Layers below get it through
    /// [`Attempt::nest`](crate::Attempt::nest).
    ///
    /// ```
    /// use mainstay_resilience::{Budget, CallContext, Policy, Retry};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let budget = Budget::builder("request").ratio(0.0, 1.0).build().unwrap();
    /// let retry = Retry::constant(std::time::Duration::from_millis(1)).attempts(10).build().unwrap();
    /// let policy = Policy::builder("search").idempotent().retry(retry).build().unwrap();
    /// let cx = CallContext::new().with_budget(&budget);
    /// let down = |_| async { Err::<(), _>(std::io::Error::from(std::io::ErrorKind::ConnectionReset)) };
    /// let failed = policy.call(&cx, down).await.unwrap_err();
    /// assert_eq!(failed.attempts(), 2); // one retry was paid for, of the nine that the retry would allow
    /// # });
    /// ```
    #[must_use]
    pub fn with_budget(mut self, budget: &Budget) -> Self {
        self.budget = Some(budget.clone());
        self
    }

    /// By when it must have ended.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// How much it matters.
    #[must_use]
    pub fn priority(&self) -> Priority {
        self.priority
    }

    /// On whose behalf.
    #[must_use]
    pub fn tenant(&self) -> Option<&str> {
        self.tenant.as_deref()
    }

    /// The idempotency key.
    #[must_use]
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// The budget shared from above.
    #[must_use]
    pub fn budget(&self) -> Option<&Budget> {
        self.budget.as_ref()
    }

    /// Whether the caller declared that the operation may be repeated.
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        self.idempotent || self.key.is_some()
    }

    /// How many policies are above: 0 outside any.
    ///
    /// ```
    /// use mainstay_resilience::{CallContext, Policy};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
    /// let (outer, inner) = (Policy::builder("outer").build().unwrap(), Policy::builder("inner").build().unwrap());
    /// let cx = CallContext::new();
    /// let depth = outer.call(&cx, |attempt| {
    ///     let (inner, below) = (inner.clone(), attempt.nest());
    ///     async move { inner.call(&below, |a| async move { Ok::<_, std::io::Error>(a.cx().depth()) }).await }
    /// });
    /// assert_eq!((cx.depth(), depth.await.unwrap()), (0, 1));
    /// # });
    /// ```
    #[must_use]
    pub fn depth(&self) -> u8 {
        self.depth
    }

    /// One layer further down: an earlier deadline, and the budget that the layer above fed.
    pub(crate) fn below(&self, deadline: Deadline, budget: Option<&Budget>) -> Self {
        let mut below = self.clone();
        below.deadline = below.deadline.min(deadline);
        below.depth = below.depth.saturating_add(1);
        if let Some(budget) = budget {
            if !below.is_fed(budget) {
                below.fed.rotate_right(1);
                below.fed[0] = budget.id();
            }
            below.budget = Some(budget.clone());
        }
        below
    }

    /// Whether a layer above already counted this call as a first attempt in `budget`.
    pub(crate) fn is_fed(&self, budget: &Budget) -> bool {
        self.depth > 0 && self.fed.contains(&budget.id())
    }
}
