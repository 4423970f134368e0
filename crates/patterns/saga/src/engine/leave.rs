//! How a saga leaves memory: what becomes of its claim, its row, its inbox.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mainstay_store::journal::{Append, Appended, Audit, Hash, Post, Row, SagaStatus, Summary, Uid};

use super::{Active, Inner};
use crate::wire;

/// Begins the error of a saga that waits for its definition.
pub(super) const PARKED: &str = "parked: ";

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

/// Why a saga is set aside, and what of its inbox was looked at: a message that came later takes it up again.
pub(super) struct Aside {
    pub(super) reason: String,
    pub(super) seen: u64,
    /// The definition that it waits for.
    pub(super) parked: Option<(String, u32, Hash)>,
    /// What is taken out of its inbox.
    pub(super) drain: Vec<u64>,
}

impl Aside {
    /// Set aside without a look at its inbox.
    pub(super) fn blind(reason: String) -> Self {
        Self::of(reason, u64::MAX)
    }

    pub(super) fn of(reason: String, seen: u64) -> Self {
        Self { reason, seen, parked: None, drain: Vec::new() }
    }

    /// Waits for its definition, which is not there or has another graph. Those who woke it in vain have been heard:
    /// left in its inbox they would fill it, and the one that counts found no place.
    pub(super) fn parked(summary: &Summary, why: &str, posts: &[Post]) -> Self {
        let (name, version) = (&summary.definition, summary.version);
        let reason = format!("{PARKED}definition `{name}` version {version} {why}");
        let parked = Some((name.clone(), version, summary.definition_hash));
        let drain = posts.iter().filter(|p| p.kind == wire::POST_WAKE).map(|p| p.number).collect();
        Self { reason, seen: last_of(posts), parked, drain }
    }
}

/// The number of the newest of these posts.
pub(super) fn last_of(posts: &[Post]) -> u64 {
    posts.iter().map(|p| p.number).max().unwrap_or_default()
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
            // What cannot be recorded is found again by the next poll.
            look = quarantine(inner, uid, epoch, &aside, Vec::new()).await;
            active.outcome.send_replace(Some(super::Outcome::NeedsAttention { steps: Vec::new() }));
            inner.hand_back(std::slice::from_ref(uid)).await;
            wake_if_deployed(inner, &aside).await;
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
        && let Err(error) = inner.wake_parked(name).await
    {
        tracing::error!(target: "mainstay::saga", name, %error, "parked sagas could not be woken");
    }
}

/// Puts the reason on the row; the log stays as it is. False when that failed.
pub(super) async fn quarantine(
    inner: &Inner,
    uid: &Uid,
    epoch: u64,
    aside: &Aside,
    audit: Vec<Audit>,
) -> bool {
    let (next_seq, row) = match inner.journal.summary(uid).await {
        Ok(Some(summary)) => (summary.next_seq, summary.row),
        Ok(None) => return false,
        Err(error) => {
            tracing::error!(target: "mainstay::saga", saga = %uid, %error, "quarantine could not be recorded");
            return false;
        }
    };
    let row = Row {
        status: SagaStatus::NeedsAttention,
        retrying: false,
        due: None,
        next_try: None,
        error: Some(aside.reason.clone()),
        ..row
    };
    let append = Append {
        drain: aside.drain.clone(),
        audit,
        seen: aside.seen,
        ..Append::new(uid.clone(), epoch, next_seq, Vec::new(), row)
    };
    match inner.journal.append(append).await {
        Ok(appended) => matches!(appended, Appended::Appended { .. }),
        Err(error) => {
            tracing::error!(target: "mainstay::saga", saga = %uid, %error, "quarantine could not be recorded");
            false
        }
    }
}
