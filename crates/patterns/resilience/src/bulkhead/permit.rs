//! Permits and the wait for them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mainstay_clock::{Deadline, Instant, Sleep};

use super::Bulkhead;
use super::core::{Core, Entry};
use super::queue::Waiter;
use crate::{CallContext, Priority, Reason, Rejected};

/// One call's place in a bulkhead. Dropping it gives it back, to the first in line if somebody waits, also while a panic
/// unwinds. It borrows its bulkhead: for a task take an [`OwnedPermit`].
#[must_use = "a permit that is dropped at once bounds nothing"]
pub struct Permit<'a> {
    core: &'a Core,
    parity: u8,
}

impl<'a> Permit<'a> {
    pub(super) fn new(core: &'a Core, parity: u8) -> Self {
        Self { core, parity }
    }
}

impl Drop for Permit<'_> {
    #[inline]
    fn drop(&mut self) {
        self.core.leave(self.parity);
    }
}

impl fmt::Debug for Permit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("bulkhead", &self.core.name).finish_non_exhaustive()
    }
}

/// A [`Permit`] without a lifetime, at the price of a shared counter: for work that outlives its scope, such as a task
/// or a streamed body. Dropping it gives it back.
#[must_use = "a permit that is dropped at once bounds nothing"]
pub struct OwnedPermit {
    bulkhead: Bulkhead,
    parity: u8,
}

impl OwnedPermit {
    pub(super) fn new(bulkhead: Bulkhead, permit: Permit<'_>) -> Self {
        let parity = permit.parity;
        std::mem::forget(permit);
        Self { bulkhead, parity }
    }
}

impl Drop for OwnedPermit {
    fn drop(&mut self) {
        self.bulkhead.core().leave(self.parity);
    }
}

impl fmt::Debug for OwnedPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnedPermit").field("bulkhead", &self.bulkhead.name()).finish_non_exhaustive()
    }
}

/// A wait for a permit that borrows nothing: the policy's future holds one beside its bulkhead.
#[derive(Default)]
pub(crate) struct Wait {
    waiter: Option<Arc<Waiter>>,
    until: Instant,
    timer: Option<Sleep>,
}

impl Wait {
    /// Asks, waits, gives up.
    pub(crate) fn poll(
        &mut self,
        core: &Core,
        priority: Priority,
        deadline: Deadline,
        cx: &mut Context<'_>,
    ) -> Poll<Result<u8, Rejected>> {
        let Some(waiter) = self.waiter.clone() else {
            return self.begin(core, priority, deadline, cx);
        };
        if let Some(parity) = core.poll_waiter(&waiter, cx.waker()) {
            self.waiter = None;
            return Poll::Ready(self.in_time(core, deadline, parity));
        }
        self.tick(core, deadline, cx)
    }

    fn begin(
        &mut self,
        core: &Core,
        priority: Priority,
        deadline: Deadline,
        cx: &mut Context<'_>,
    ) -> Poll<Result<u8, Rejected>> {
        let now = core.clock.now();
        match core.enter(priority, cx.waker(), now) {
            Err(rejected) => Poll::Ready(Err(rejected)),
            Ok(Entry::In { parity }) => Poll::Ready(Ok(parity)),
            Ok(Entry::Queued(waiter)) => {
                self.waiter = Some(waiter);
                self.until = now.saturating_add(core.wait).min(deadline.instant());
                self.tick(core, deadline, cx)
            }
        }
    }

    /// A permit that comes when the deadline is over is given back: the work would be done for nobody.
    fn in_time(&self, core: &Core, deadline: Deadline, parity: u8) -> Result<u8, Rejected> {
        if deadline.is_over(&*core.clock) {
            core.leave(parity);
            return Err(core.refuse(Reason::Deadline, core.clock.now()));
        }
        Ok(parity)
    }

    fn tick(&mut self, core: &Core, deadline: Deadline, cx: &mut Context<'_>) -> Poll<Result<u8, Rejected>> {
        let until = self.until;
        let timer = self.timer.get_or_insert_with(|| core.clock.sleep_until(until));
        if timer.as_mut().poll(cx).is_pending() {
            return Poll::Pending;
        }
        if let Some(parity) = self.cancel(core) {
            return Poll::Ready(self.in_time(core, deadline, parity));
        }
        let now = core.clock.now();
        let over = deadline.is_some() && now >= deadline.instant();
        Poll::Ready(Err(if over { core.refuse(Reason::Deadline, now) } else { core.refuse_waited(now) }))
    }

    /// Leaves the line: the permit, if it was granted meanwhile.
    pub(crate) fn cancel(&mut self, core: &Core) -> Option<u8> {
        self.timer = None;
        self.waiter.take().and_then(|waiter| core.cancel(&waiter))
    }
}

impl fmt::Debug for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wait").field("queued", &self.waiter.is_some()).finish_non_exhaustive()
    }
}

/// The future of [`Bulkhead::acquire`](super::Bulkhead::acquire).
pub(super) struct Acquire<'a> {
    core: &'a Core,
    priority: Priority,
    deadline: Deadline,
    wait: Wait,
}

impl<'a> Acquire<'a> {
    pub(super) fn new(core: &'a Core, cx: &CallContext) -> Self {
        Self { core, priority: cx.priority(), deadline: cx.deadline(), wait: Wait::default() }
    }
}

impl<'a> Future for Acquire<'a> {
    type Output = Result<Permit<'a>, Rejected>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (core, priority, deadline) = (self.core, self.priority, self.deadline);
        if self.wait.waiter.is_none() && deadline.is_over(&*core.clock) {
            return Poll::Ready(Err(core.refuse(Reason::Deadline, core.clock.now())));
        }
        self.wait.poll(core, priority, deadline, cx).map_ok(|parity| Permit::new(core, parity))
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        if let Some(parity) = self.wait.cancel(self.core) {
            self.core.leave(parity);
        }
    }
}
