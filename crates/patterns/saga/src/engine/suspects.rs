//! Sagas whose owners vanished: bad luck, or what killed them?
//!
//! An owner that vanishes says nothing of the cause: the machine lost power, a neighbor used up the memory, somebody
//! killed a process in a loop. So a suspect is taken up alone: after everything else that was claimed has moved, by a
//! process that has lived for a while without it. Just before, a mark goes into its inbox; the first append drains all
//! of them. Only owners that vanish behind a mark count, and after [`MAX_ALONE`] of them the saga is set aside.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Instant;
use mainstay_store::journal::{Claimed, Posted};

use super::{Active, Inner, drive};
use crate::wire;

/// Claims without an append after which a saga is taken up alone, and the sagas of an earlier run one by one.
pub(super) const SUSPICIOUS: u32 = 2;
/// Owners that vanished while they took up nothing but this saga: once may be chance, three times is not.
const MAX_ALONE: u32 = 3;
/// A process that has lived this long without its suspects does not die of its own start.
const CALM: Duration = Duration::from_secs(1);

/// Claimed and not yet taken up.
pub(super) struct Suspects {
    waiting: VecDeque<Claimed>,
    /// Taken up, and not known to have moved.
    beside: Vec<Arc<Active>>,
    calm_at: Instant,
}

impl Suspects {
    pub(super) fn new(inner: &Inner) -> Self {
        let calm_at = inner.runtime.clock().now().saturating_add(CALM);
        Self { waiting: VecDeque::new(), beside: Vec::new(), calm_at }
    }

    /// Takes the saga if it is one.
    pub(super) fn take(&mut self, inner: &Inner, claimed: Claimed) -> Option<Claimed> {
        if claimed.strikes <= SUSPICIOUS {
            return Some(claimed);
        }
        inner.suspected().insert(claimed.saga.clone());
        self.waiting.push_back(claimed);
        None
    }

    /// Another saga was taken up.
    pub(super) fn beside(&mut self, active: Arc<Active>) {
        self.beside.retain(|a| !*a.moved.borrow());
        self.beside.push(active);
    }

    /// How long to sleep at most, when there is nothing else to do for `most`.
    pub(super) fn pause(&self, inner: &Inner, most: Duration) -> Duration {
        if self.waiting.is_empty() {
            return most;
        }
        most.min(self.calm_at.saturating_duration_since(inner.runtime.clock().now()))
    }

    /// Takes up the suspects one after the other, if it is time.
    pub(super) async fn go_on(&mut self, inner: &Arc<Inner>) {
        if self.waiting.is_empty() || inner.runtime.clock().now() < self.calm_at {
            return;
        }
        for active in self.beside.drain(..) {
            active.moved().await;
        }
        while let Some(claimed) = self.waiting.pop_front() {
            if inner.is_stopping() {
                self.waiting.push_front(claimed);
                return;
            }
            let saga = claimed.saga.clone();
            // Claimed again meanwhile: that claim counts.
            let driven = inner.active().contains_key(&saga);
            let active = (!driven).then(|| drive::take_up(inner, claimed));
            inner.suspected().remove(&saga);
            if let Some(active) = active {
                active.moved().await;
            }
        }
    }

    /// Gives back what was not taken up: the next owner suspects it anew.
    pub(super) async fn give_back(&mut self, inner: &Inner) {
        let sagas: Vec<_> = self.waiting.drain(..).map(|c| c.saga).collect();
        inner.suspected().clear();
        inner.hand_back(&sagas).await;
    }
}

/// Marks a suspect as about to be taken up alone. False when it is not ours any more or the store fails; `Err` is the
/// reason to set it aside.
pub(super) async fn mark(inner: &Inner, claimed: &Claimed) -> Result<bool, String> {
    let uid = &claimed.saga;
    let next_seq = match inner.journal.summary(uid).await {
        Ok(Some(summary)) if summary.epoch == claimed.epoch => summary.next_seq,
        Ok(_) => return Ok(false),
        Err(e) if e.is_retryable() => {
            tracing::warn!(target: "mainstay::saga", saga = %uid, error = %e, "a suspect could not be looked at");
            return Ok(false);
        }
        Err(e) => return Err(format!("the row is unreadable: {e}")),
    };
    for n in 1..=MAX_ALONE {
        // Progress moves the sequence, so that marks of an earlier time count no more.
        let message = format!("alone/{next_seq}/{n}");
        match inner.journal.post(uid, &message, wire::POST_ALONE, Vec::new()).await {
            Ok(Posted::Posted) => return Ok(true),
            Ok(Posted::Duplicate) => {}
            Ok(Posted::Final(_) | Posted::NoSuchSaga) => return Ok(false),
            Ok(Posted::InboxFull) => return Err("its owners vanish and its inbox is full".to_owned()),
            Err(error) => {
                tracing::warn!(target: "mainstay::saga", saga = %uid, %error, "a suspect could not be marked");
                return Ok(false);
            }
        }
    }
    Err(format!(
        "its owner vanished {MAX_ALONE} times while it took up nothing else, and it made no progress: it may be \
         what stops the process"
    ))
}
