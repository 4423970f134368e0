//! Background work: claims, their renewal, recovery and purging.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mainstay_clock::{Instant, WallTime};
use mainstay_store::journal::{ClaimRequest, Claimed, Filter, PurgeRequest, SagaStatus, Uid};
use mainstay_store::{ErrorKind as StoreErrorKind, Outcome};

use super::suspects::{SUSPICIOUS, Suspects};
use super::{Inner, drive};
use crate::{Error, ErrorKind};

/// How often finished sagas past their retention, and claims that nobody drives, are looked for.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// Sagas purged at once: short enough not to hold up commits.
const PURGE_BATCH: usize = 200;
/// A clock that went back since the last run makes our incarnation look old; it is raised this often, by
/// doubling steps, before giving up.
const INCARNATION_TRIES: u32 = 48;

impl Inner {
    /// First claims of a new run: takes over what an earlier incarnation of this node held.
    pub(super) async fn take_over(&mut self) -> Result<Vec<Claimed>, Error> {
        let mut step = 1_u64;
        for _ in 0..INCARNATION_TRIES {
            match self.claim(1).await {
                Ok(first) => return Ok(first),
                Err(e) if e.kind() == StoreErrorKind::ApiMisuse => {
                    self.incarnation = self.incarnation.saturating_add(step);
                    step = step.saturating_mul(2);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Err(Error::new(ErrorKind::Internal, "the journal refuses every incarnation of this node"))
    }

    async fn claim(&self, most: usize) -> mainstay_store::Result<Vec<Claimed>> {
        let (sagas, most_in_memory) = (self.active().len(), self.config.max_in_flight.get());
        self.watch.in_memory(sagas, most_in_memory);
        let room = most_in_memory.saturating_sub(sagas);
        let limit = room.min(most);
        // Set before the look: an end that happens meanwhile is not missed.
        self.crowded.store(room <= most, Ordering::Release);
        if limit == 0 {
            return Ok(Vec::new());
        }
        // Taken before the request: the claim never lasts shorter than we believe.
        let sent = self.runtime.clock().now();
        let claimed = match self.journal.claim(ClaimRequest { claimant: self.claimant(), limit }).await {
            Err(error) if error.outcome() != Outcome::NotApplied => {
                self.doubt_claims(sent);
                return Err(error);
            }
            other => other?,
        };
        self.extend_claims(sent);
        Ok(claimed)
    }

    /// A claim or a creation that was sent then has no answer: it may take effect, now or later, for something that
    /// nobody here knows of. [`find_orphans`](Self::find_orphans) looks for a while.
    pub(super) fn doubt_claims(&self, sent: Instant) {
        let doubt = self.config.claim_ttl.saturating_mul(2) + self.config.poll;
        self.claims_in_doubt.fetch_max(sent.saturating_add(doubt).as_nanos(), Ordering::AcqRel);
    }

    /// After a claim whose answer was lost: looks until one whole look succeeded when the claim could take effect
    /// no more.
    async fn settle_doubt(&self) {
        let now = self.runtime.clock().now().as_nanos();
        let until = self.claims_in_doubt.load(Ordering::Acquire);
        if until != 0 && self.find_orphans().await && now >= until {
            // A newer doubt stays.
            let _ = self.claims_in_doubt.compare_exchange(until, 0, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// Finds sagas that the journal says are ours and that nobody here drives, to be given back. They would be
    /// renewed with all others and never be taken up again while this run lives. True after a whole look.
    async fn find_orphans(&self) -> bool {
        /// Rows looked at together.
        const PAGE: usize = 500;
        // What was written just now may be about to be driven: the next look will tell.
        self.time.compare(self.journal.as_ref()).await;
        let fresh =
            self.time.shown().saturating_sub(i64::try_from(self.config.poll.as_millis()).unwrap_or(0));
        let open = SagaStatus::ALL.into_iter().filter(|s| !s.is_final()).collect();
        let filter = Filter { status: open, ..Filter::default() };
        let mut cursor = None;
        loop {
            let page = match self.journal.query(&filter, cursor.as_ref(), PAGE).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(target: "mainstay::saga", %error, "claims could not be compared");
                    return false;
                }
            };
            let ours = page.rows.into_iter().filter(|row| {
                row.owner.as_deref() == Some(&self.config.node) && row.updated.unix_millis() < fresh
            });
            let orphans: Vec<_> = {
                let (active, suspected) = (self.active(), self.suspected());
                let driven = |uid: &Uid| active.contains_key(uid) || suspected.contains(uid);
                ours.map(|row| row.uid).filter(|uid| !driven(uid)).collect()
            };
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(orphans);
            cursor = page.next;
            if cursor.is_none() {
                return true;
            }
        }
    }

    /// Gives back what is claimed here and driven by nobody, so that the next look finds it.
    async fn give_back_lost(&self) {
        let lost: Vec<_> = {
            // What is driven now was not lost: the answer to its claim was on the way when it was looked for, or it was
            // taken up again since.
            let active = self.active();
            let mut all = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
            let lost = all.iter().filter(|uid| !active.contains_key(*uid)).cloned().collect();
            all.retain(|uid| active.contains_key(uid));
            lost
        };
        if lost.is_empty() {
            return;
        }
        if let Err(error) = self.journal.hand_back(&self.config.node, self.incarnation, &lost).await {
            tracing::warn!(target: "mainstay::saga", %error, "claims could not be handed back");
            self.lost.lock().unwrap_or_else(PoisonError::into_inner).extend(lost);
        }
    }

    fn extend_claims(&self, sent: Instant) {
        // A hundredth off for clocks that drift.
        let ttl = self.config.claim_ttl - self.config.claim_ttl / 100;
        self.claimed_until.fetch_max(sent.saturating_add(ttl).as_nanos(), Ordering::AcqRel);
    }

    /// Whether this node's claims are certainly still its own.
    pub(super) fn holds_claims(&self) -> bool {
        self.runtime.clock().now().as_nanos() < self.claimed_until.load(Ordering::Acquire)
    }

    /// Drops every saga in memory: somebody else may own them. Those that nobody took meanwhile are given back
    /// before the next look; otherwise they would be renewed with all others and never be driven again.
    fn drop_all(&self) {
        let left: Vec<_> = self.active().drain().collect();
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        for (uid, active) in left {
            tracing::warn!(target: "mainstay::saga", saga = %uid, "claim lost");
            active.cut_short();
            lost.insert(uid);
        }
        drop(lost);
        self.poke.notify_one();
        self.emptied.notify_waiters();
    }

    /// Resolves when this node's claims are certainly its own no more.
    async fn claims_end(&self) {
        while self.holds_claims() {
            let until = Instant::from_nanos(self.claimed_until.load(Ordering::Acquire));
            self.runtime.clock().sleep_until(until).await;
        }
    }

    async fn renew(&self) {
        let sent = self.runtime.clock().now();
        let held = self.holds_claims();
        let answer = self.journal.renew_node(&self.config.node, self.incarnation, self.config.claim_ttl);
        tokio::pin!(answer);
        let answer = tokio::select! {
            biased;
            answer = &mut answer => answer,
            // A store that is silent may have given them to somebody else.
            () = self.claims_end(), if held => {
                self.drop_all();
                answer.await
            }
        };
        match answer {
            Ok(true) => self.extend_claims(sent),
            Ok(false) => {
                tracing::error!(target: "mainstay::saga", node = self.config.node,
                    "a newer run of this node exists; this one stops");
                self.stopping.send_replace(true);
                self.drop_all();
            }
            Err(error) => {
                tracing::warn!(target: "mainstay::saga", %error, outcome = ?error.outcome(), "claims not renewed");
                if error.outcome() != Outcome::Applied && !self.holds_claims() {
                    self.drop_all();
                }
            }
        }
    }

    async fn purge(&self) {
        let now = WallTime::from_unix_millis(self.time.shown());
        let ago = |d: Duration| {
            let millis = i64::try_from(d.as_millis()).unwrap_or(i64::MAX);
            WallTime::from_unix_millis(now.unix_millis().saturating_sub(millis))
        };
        let request = PurgeRequest {
            completed_before: ago(self.config.keep_completed),
            compensated_before: ago(self.config.keep_compensated),
            tombstones_before: ago(self.config.keep_tombstones),
            limit: PURGE_BATCH,
        };
        loop {
            match self.journal.purge(request).await {
                Ok(purged) if purged.sagas >= PURGE_BATCH || purged.tombstones >= PURGE_BATCH => {}
                Ok(_) => return,
                Err(error) => {
                    tracing::warn!(target: "mainstay::saga", %error, "purge failed");
                    return;
                }
            }
        }
    }
}

/// Starts the background tasks. `first` are the claims taken at the start.
pub(super) fn run(inner: &Arc<Inner>, first: Vec<Claimed>) {
    let claimer = Arc::clone(inner);
    inner.runtime.spawn("mainstay-saga-claim", async move { claim_loop(&claimer, first).await });
    let renewer = Arc::clone(inner);
    inner.runtime.spawn("mainstay-saga-renew", async move { renew_loop(&renewer).await });
    let purger = Arc::clone(inner);
    inner.runtime.spawn("mainstay-saga-purge", async move {
        while pause(&purger, PURGE_EVERY).await {
            purger.purge().await;
            // Also without a doubt: a claim may be repeated on its way, and nobody hears the second answer.
            purger.find_orphans().await;
            purger.poke.notify_one();
        }
    });
}

/// Keeps this node's claims as long as it drives anything, also while it stops. What is driven under claims that ended
/// is dropped at once: somebody else may drive it.
async fn renew_loop(inner: &Inner) {
    let clock = inner.runtime.clock();
    let next = || clock.now().saturating_add(inner.config.claim_ttl / 3);
    let is_over = || inner.is_stopping() && inner.active().is_empty();
    let mut at = next();
    while !is_over() {
        let (held, stopping) = (inner.holds_claims(), inner.is_stopping());
        tokio::select! {
            biased;
            () = inner.stopped(), if !stopping => continue,
            () = inner.emptied.notified(), if stopping => continue,
            () = inner.claims_end(), if held => inner.drop_all(),
            () = clock.sleep_until(at) => {}
        }
        if is_over() {
            return;
        }
        inner.renew().await;
        inner.watch.look_at(clock.as_ref());
        at = next();
    }
}

/// Sleeps; false when the engine stops.
async fn pause(inner: &Inner, d: Duration) -> bool {
    tokio::select! {
        biased;
        () = inner.stopped() => false,
        () = inner.runtime.clock().sleep(d) => true,
    }
}

async fn claim_loop(inner: &Arc<Inner>, first: Vec<Claimed>) {
    let mut batch = first;
    // Until a claim comes back empty, an earlier run of ours left something that is due.
    let mut recovering = true;
    // What stops the process is then found without blaming its neighbors.
    let mut one_by_one = batch.iter().any(|c| c.strikes > SUSPICIOUS);
    let mut suspects = Suspects::new(inner);
    loop {
        let full = !batch.is_empty();
        for claimed in batch {
            let Some(claimed) = suspects.take(inner, claimed) else { continue };
            let active = drive::take_up(inner, claimed);
            if one_by_one {
                active.moved().await;
            } else {
                suspects.beside(active);
            }
        }
        suspects.go_on(inner).await;
        if !full {
            if recovering {
                recovering = false;
                one_by_one = false;
                inner.recovered.store(true, Ordering::Release);
            }
            tokio::select! {
                biased;
                () = inner.stopped() => {}
                () = inner.poke.notified() => {}
                () = inner.runtime.clock().sleep(suspects.pause(inner, inner.config.poll)) => {}
            }
        }
        if inner.is_stopping() {
            return suspects.give_back(inner).await;
        }
        inner.settle_doubt().await;
        inner.give_back_lost().await;
        let most = if one_by_one { 1 } else { inner.config.claim_batch.get() };
        batch = inner.claim(most).await.unwrap_or_else(|error| {
            tracing::warn!(target: "mainstay::saga", %error, "sagas could not be claimed");
            Vec::new()
        });
    }
}
