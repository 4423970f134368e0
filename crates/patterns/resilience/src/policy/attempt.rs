//! One execution of the operation, as the operation sees it.

use std::time::Duration;

use mainstay_clock::Deadline;

use super::Core;
use crate::CallContext;

/// What an operation is told about the attempt it runs in. Copy it into the future.
///
/// Whatever goes to another layer goes through [`nest`](Attempt::nest), whatever goes to another machine through
/// [`wire::headers`](crate::timeout::wire::headers).
///
/// ```
/// use std::time::Duration;
/// use mainstay_resilience::{CallContext, Policy};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let policy = Policy::builder("shop").attempt_timeout(Duration::from_secs(60)).build().unwrap();
/// let cx = CallContext::new().with_key("order-17");
/// let seen = policy
///     .call(&cx, |attempt| async move {
///         let below = attempt.nest();
///         assert_eq!((below.depth(), below.key()), (1, Some("order-17")));
///         assert_eq!(below.deadline(), attempt.deadline());
///         Ok::<_, std::io::Error>((attempt.number(), attempt.is_hedge(), attempt.remaining()))
///     })
///     .await
///     .unwrap();
/// assert_eq!((seen.0, seen.1), (1, false));
/// assert!(seen.2.unwrap() <= Duration::from_secs(60));
/// # });
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    pub(crate) head: Head,
    pub(crate) core: &'a Core,
    pub(crate) cx: &'a CallContext,
}

/// The part of an attempt that borrows nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) number: u32,
    pub(crate) hedge: bool,
    pub(crate) deadline: Deadline,
}

impl Head {
    /// The context for layers below.
    pub(crate) fn nest(&self, core: &Core, cx: &CallContext) -> CallContext {
        cx.below(self.deadline, core.budget_for(cx))
    }
}

impl<'a> Attempt<'a> {
    /// Number of the attempt, from 1. A hedge has the number of the attempt it races.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.head.number
    }

    /// Whether it runs beside a slow first one.
    #[must_use]
    pub fn is_hedge(&self) -> bool {
        self.head.hedge
    }

    /// By when this attempt must have ended: the attempt timeout or the deadline, whichever comes first.
    #[must_use]
    pub fn deadline(&self) -> Deadline {
        self.head.deadline
    }

    /// Time left for this attempt, `None` without a bound. This is what goes on the wire.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.head.deadline.remaining(self.core.clock.now())
    }

    /// The idempotency key, the same for every attempt.
    #[must_use]
    pub fn key(&self) -> Option<&'a str> {
        self.cx.key()
    }

    /// The context of the logical call.
    #[must_use]
    pub fn cx(&self) -> &'a CallContext {
        self.cx
    }

    /// The context for a layer below: this attempt's deadline, one level deeper, sharing the budget. Passing
    /// the outer context instead would feed a shared budget twice.
    #[must_use]
    pub fn nest(&self) -> CallContext {
        self.head.nest(self.core, self.cx)
    }
}
