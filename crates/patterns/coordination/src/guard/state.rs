//! The life of one held lease: when to renew, when to stop. Time and events go in, decisions come out.

use std::time::Duration;

use mainstay_clock::Instant;

use crate::LossReason;

/// Clocks of two machines run apart by at most this share of a ttl (Antirez, "Distributed Locks with
/// Redis": drift factor 0.01), plus [`DRIFT_FLOOR`] for what a short ttl would round away.
const DRIFT_DIVISOR: u32 = 100;
const DRIFT_FLOOR: Duration = Duration::from_millis(2);
/// Work stops this share of a ttl before the deadline, so that dropping it fits in between.
const MARGIN_DIVISOR: u32 = 20;
const MARGIN_MIN: Duration = Duration::from_millis(2);
const MARGIN_MAX: Duration = Duration::from_secs(1);
/// The first renewal leaves room for two more.
const RENEW_DIVISOR: u32 = 3;
/// A failed renewal is tried again after this share of a ttl. So long the first answer is waited for, too, and each after
/// one that did not come so much longer: then three tries fit before the work must stop, and a store that takes up to
/// three tenths of a ttl still renews.
const RETRY_DIVISOR: u32 = 10;

/// The instant by which a lease asked for at `sent` must be regarded as gone.
pub(crate) fn deadline_of(sent: Instant, ttl: Duration) -> Instant {
    sent.saturating_add(ttl.saturating_sub(ttl / DRIFT_DIVISOR).saturating_sub(DRIFT_FLOOR))
}

/// How long a loss may wait to learn its reason: no longer than clocks are allowed to differ.
pub(crate) fn why_patience(ttl: Duration) -> Duration {
    ttl / DRIFT_DIVISOR + DRIFT_FLOOR
}

/// How long before the deadline work is stopped.
pub(crate) fn margin_of(ttl: Duration) -> Duration {
    (ttl / MARGIN_DIVISOR).clamp(MARGIN_MIN, MARGIN_MAX)
}

/// Whether the margin would leave too little of a lease: a quarter of it or more.
pub(crate) fn is_too_short(ttl: Duration) -> bool {
    margin_of(ttl) >= ttl / 4
}

/// What the holder's task does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The hold is over; nothing is sent any more.
    Ended,
    /// Ask the store to renew.
    Renew,
    /// Look again then.
    Wait(Instant),
}

/// The store's answer to a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nobody knows whether it was renewed.
    Failed,
    /// There was none in time: it may still be renewed.
    Missing,
    /// Not ours any more, for this reason.
    NotOurs(LossReason),
    /// Renewed.
    Renewed,
}

/// One held lease.
#[derive(Clone, Debug)]
pub(crate) struct Hold {
    ttl: Duration,
    deadline: Instant,
    /// The hold ends then, however often it was renewed.
    limit: Instant,
    due: Instant,
    sent: Option<Instant>,
    /// Tries in a row whose answer did not come.
    unheard: u32,
    lost: Option<LossReason>,
    released: bool,
}

impl Hold {
    /// A lease granted for `ttl` by a request sent at `sent`, held until `limit` at the longest.
    pub(crate) fn granted(sent: Instant, ttl: Duration, limit: Instant) -> Self {
        Self {
            ttl,
            deadline: deadline_of(sent, ttl),
            limit,
            due: sent.saturating_add(ttl / RENEW_DIVISOR),
            sent: None,
            unheard: 0,
            lost: None,
            released: false,
        }
    }

    /// The instant after which the lease may belong to somebody else.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The instant by which work must have stopped.
    pub(crate) fn stop_at(&self) -> Instant {
        self.deadline.saturating_sub(margin_of(self.ttl)).min(self.limit)
    }

    /// Whether the right is still there. Once it is gone it never comes back, whatever the store answers.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), LossReason> {
        if self.lost.is_none() && now >= self.stop_at() {
            let reason = if now >= self.limit { LossReason::HeldTooLong } else { LossReason::DeadlinePassed };
            self.lost = Some(reason);
        }
        self.lost.map_or(Ok(()), Err)
    }

    /// What to do at `now`.
    pub(crate) fn next(&mut self, now: Instant) -> Next {
        if self.released || self.check(now).is_err() {
            return Next::Ended;
        }
        if self.sent.is_none() && now >= self.due {
            return Next::Renew;
        }
        Next::Wait(if self.sent.is_some() { self.stop_at() } else { self.due.min(self.stop_at()) })
    }

    /// A renewal was sent; at most one is on its way. Says how long to wait for its answer before it counts
    /// as failed.
    pub(crate) fn sent(&mut self, now: Instant) -> Duration {
        self.sent = Some(now);
        self.ttl / RETRY_DIVISOR * self.unheard.saturating_add(1)
    }

    /// The renewal was answered at `now`; `unit` in `[0, 1)` spreads the retries of many holders.
    pub(crate) fn answered(&mut self, now: Instant, answer: Answer, unit: f64) {
        let Some(sent) = self.sent.take() else { return };
        if self.released || self.check(now).is_err() {
            return;
        }
        self.unheard = if answer == Answer::Missing { self.unheard.saturating_add(1) } else { 0 };
        match answer {
            Answer::Renewed => {
                self.deadline = self.deadline.max(deadline_of(sent, self.ttl));
                self.due = sent.saturating_add(self.ttl / RENEW_DIVISOR);
            }
            // It was waited for long enough.
            Answer::Missing => self.due = now,
            // Neither shortened nor extended: the old deadline is still true.
            Answer::Failed => {
                self.due = now.saturating_add((self.ttl / RETRY_DIVISOR).mul_f64(0.5 + unit / 2.0));
            }
            Answer::NotOurs(reason) => self.lost = Some(reason),
        }
    }

    /// The holder gives the lease back: nothing is renewed any more.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    /// Whether the holder gave it back.
    pub(crate) fn is_released(&self) -> bool {
        self.released
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(30);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    fn hold() -> Hold {
        Hold::granted(at(0), TTL, Instant::FAR_FUTURE)
    }

    #[test]
    fn f03_the_deadline_counts_from_the_send_of_the_attempt_and_saturates() {
        assert_eq!(hold().deadline(), at(30_000 - 300 - 2));
        assert_eq!(hold().stop_at(), at(30_000 - 302 - 1_000));
        // F6: a ttl shorter than the drift allowance leaves nothing, never a number from below zero.
        assert_eq!(deadline_of(at(5), Duration::from_millis(1)), at(5));
        assert!(Hold::granted(at(5), Duration::from_millis(1), at(9)).check(at(5)).is_err());
    }

    #[test]
    fn f17_nothing_is_sent_after_the_release_and_late_replies_change_nothing() {
        let mut h = hold();
        assert_eq!(h.next(at(9_999)), Next::Wait(at(10_000)));
        assert_eq!(h.next(at(10_000)), Next::Renew);
        h.sent(at(10_000));
        assert!(matches!(h.next(at(10_001)), Next::Wait(_)), "one request in flight");
        h.release();
        let deadline = h.deadline();
        h.answered(at(10_002), Answer::Renewed, 0.0);
        assert_eq!(h.deadline(), deadline);
        assert_eq!(h.next(at(40_000)), Next::Ended);
    }

    #[test]
    fn a_renewal_extends_from_its_own_send_and_a_failure_changes_nothing() {
        let mut h = hold();
        h.sent(at(10_000));
        h.answered(at(10_500), Answer::Failed, 0.0);
        assert_eq!(h.deadline(), deadline_of(at(0), TTL));
        assert_eq!(h.next(at(10_600)), Next::Wait(at(10_500 + 1_500)));
        h.sent(at(12_000));
        h.answered(at(12_400), Answer::Renewed, 0.0);
        assert_eq!(h.deadline(), deadline_of(at(12_000), TTL));
        assert_eq!(h.next(at(12_500)), Next::Wait(at(22_000)));
    }

    #[test]
    fn three_tries_of_a_renewal_without_an_answer_fit_before_the_work_must_stop() {
        let mut h = hold();
        let (mut now, mut waits) = (at(10_000), Vec::new());
        while h.next(now) == Next::Renew {
            let patience = h.sent(now);
            waits.push(patience.as_millis());
            let end = now.saturating_add(patience);
            match h.next(now) {
                // The work stops first.
                Next::Wait(until) if until < end => now = until,
                _ => now = end,
            }
            h.answered(now, Answer::Missing, 0.5);
        }
        assert_eq!((waits, now), (vec![3_000, 6_000, 9_000, 12_000], h.stop_at()));
        // The third has as long as it may take; the fourth was hardly sent.
        let mut h = hold();
        for (sent, late) in [(10_000, 13_000), (13_000, 19_000)] {
            h.sent(at(sent));
            h.answered(at(late), Answer::Missing, 0.5);
        }
        h.sent(at(19_000));
        h.answered(at(27_900), Answer::Renewed, 0.5);
        assert_eq!(h.deadline(), deadline_of(at(19_000), TTL));
        assert_eq!(h.sent(at(29_000)).as_millis(), 3_000, "it answers again");
    }

    #[test]
    fn k01_a_lost_right_never_comes_back() {
        let mut h = hold();
        h.sent(at(28_000));
        assert_eq!(h.check(h.stop_at()), Err(LossReason::DeadlinePassed));
        h.answered(at(28_900), Answer::Renewed, 0.0);
        assert_eq!(h.check(at(28_900)), Err(LossReason::DeadlinePassed));
        assert_eq!(h.deadline(), deadline_of(at(0), TTL));
    }

    #[test]
    fn a_store_that_says_no_ends_the_hold_at_once() {
        for reason in
            [LossReason::TakenOver, LossReason::Forced, LossReason::SessionClosed, LossReason::StoreRegressed]
        {
            let mut h = hold();
            h.sent(at(10_000));
            h.answered(at(10_001), Answer::NotOurs(reason), 0.0);
            assert_eq!(h.check(at(10_001)), Err(reason));
            assert_eq!(h.next(at(10_001)), Next::Ended);
            assert_eq!(h.check(h.stop_at()), Err(reason), "the first reason stays");
        }
    }

    #[test]
    fn k04_a_hold_with_a_limit_ends_though_it_is_renewed() {
        let mut h = Hold::granted(at(0), TTL, at(15_000));
        h.sent(at(10_000));
        h.answered(at(10_001), Answer::Renewed, 0.0);
        assert_eq!(h.check(at(14_999)), Ok(()));
        assert_eq!(h.check(at(15_000)), Err(LossReason::HeldTooLong));
    }
}
