//! How a saga leaves memory: what becomes of its claim, its row, its inbox.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mainstay_store::journal::Uid;

use super::aside::{self, Aside, Settled};
use super::{Active, Inner};

/// Why a saga leaves memory.
pub(super) enum Leave {
    /// Recorded as finished.
    Finished,
    /// Nothing to do for a long while, or until a person or a post; the claim goes back.
    Idle,
    /// Somebody else owns it, or the log says something we did not write.
    Lost,
    /// It must not be driven: the reason goes to its row.
    Quarantine(Aside),
}

pub(super) async fn leave_memory(
    inner: &Arc<Inner>,
    uid: &Uid,
    epoch: u64,
    active: &Arc<Active>,
    leave: Leave,
) {
    // A post that came while the saga was leaving made it due; one that is finished takes no posts. What was lost, or
    // could not be read or written, waits for the next poll: it may be so again.
    let mut look = !matches!(leave, Leave::Finished | Leave::Lost);
    let is_ours = inner.active().get(uid).is_some_and(|a| Arc::ptr_eq(a, active));
    match leave {
        Leave::Finished => {}
        // Claimed anew: the claim is that of whoever drives it now.
        _ if !is_ours => look = false,
        Leave::Lost | Leave::Idle => inner.hand_back(std::slice::from_ref(uid)).await,
        Leave::Quarantine(aside) => {
            tracing::error!(target: "mainstay::saga", saga = %uid, aside.reason, "saga set aside");
            let settled = aside::settle(inner, uid, epoch, &aside).await;
            // What cannot be recorded is found again by the next poll.
            look = settled == Settled::Aside;
            if settled != Settled::Closed {
                active.outcome.send_replace(Some(super::Outcome::NeedsAttention { steps: Vec::new() }));
                inner.hand_back(std::slice::from_ref(uid)).await;
                wake_if_deployed(inner, &aside).await;
            }
        }
    }
    {
        let mut map = inner.active();
        if map.get(uid).is_some_and(|a| Arc::ptr_eq(a, active)) {
            map.remove(uid);
        }
    }
    active.moved.send_replace(true);
    inner.emptied.notify_waiters();
    look |= inner.crowded.load(Ordering::Acquire);
    if look {
        inner.poke.notify_one();
    }
}

/// A definition that was registered while its saga was being parked found nothing to wake.
async fn wake_if_deployed(inner: &Inner, aside: &Aside) {
    let Some((name, version, hash)) = &aside.parked else { return };
    let there = inner.registry.find(name, Some(*version));
    if there.is_some_and(|r| r.definition.hash() == *hash)
        && let Err(error) = inner.wake_parked(Some(name)).await
    {
        tracing::error!(target: "mainstay::saga", name, %error, "parked sagas could not be woken");
    }
}
