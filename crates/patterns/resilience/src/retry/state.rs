//! The decision to try again, as a function.

use std::time::Duration;

use mainstay_clock::backoff::Backoff;
use mainstay_clock::{Deadline, Instant, Rng};

use super::{Advice, Retry};
use crate::{Stop, Verdict};

/// How an attempt failed, as far as a retry cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Failed {
    /// What it meant.
    pub verdict: Verdict,
    /// Whether it was cut off by its timeout.
    pub timed_out: bool,
    /// Its number, from 1.
    pub attempt: u32,
    /// Time since the call began.
    pub elapsed: Duration,
}

/// What one call has used up.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    previous: Option<Duration>,
}

/// When the call began and must end, and whether it may be repeated at all.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) now: Instant,
    pub(crate) deadline: Deadline,
    pub(crate) repeatable: bool,
}

/// The answer: wait so long, or stop. The hint is when the caller might come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    After(Duration),
    Stop(Stop, Option<Duration>),
}

impl Retry {
    /// Decides after `failed`, before the budget is asked. Order: is it of a kind to retry, are attempts left,
    /// what does the server say, is there time.
    pub(crate) fn decide(&self, failed: &Failed, used: &mut Used, bounds: Bounds, rng: &dyn Rng) -> Decision {
        let advice = match failed.verdict {
            Verdict::Fail { retryable: true } => None,
            Verdict::Throttled { after } => after,
            _ => return Decision::Stop(Stop::NotRetryable, None),
        };
        if !bounds.repeatable {
            return Decision::Stop(Stop::NotRetryable, advice);
        }
        if failed.attempt >= self.attempts {
            return Decision::Stop(Stop::Attempts, advice);
        }
        if self.when.as_ref().is_some_and(|when| !when.0(failed)) {
            return Decision::Stop(Stop::When, advice);
        }
        let throttled = matches!(failed.verdict, Verdict::Throttled { .. });
        let own = self.delay(throttled, failed.attempt, used, rng);
        let delay = match (advice, self.advice) {
            (None, _) => own,
            (Some(asked), Advice::Clamped { extra }) => asked.clamp(own, own.saturating_add(extra)),
            (Some(asked), Advice::Followed { at_most }) if asked > at_most => {
                return Decision::Stop(Stop::Advice, Some(asked));
            }
            (Some(asked), Advice::Followed { .. }) => own.max(asked),
        };
        if self.total.is_some_and(|total| failed.elapsed.saturating_add(delay) >= total) {
            return Decision::Stop(Stop::TotalTime, advice);
        }
        let ready = bounds.now.saturating_add(delay).saturating_add(self.min_attempt_time);
        if bounds.deadline.is_some() && ready >= bounds.deadline.instant() {
            let why = if advice.is_some_and(|asked| asked >= delay) { Stop::Advice } else { Stop::Deadline };
            return Decision::Stop(why, advice);
        }
        Decision::After(delay)
    }

    fn delay(&self, throttled: bool, attempt: u32, used: &mut Used, rng: &dyn Rng) -> Duration {
        let schedule: &Backoff = match &self.throttled {
            Some(slower) if throttled => slower,
            _ => &self.schedule,
        };
        let delay = schedule.delay(attempt, used.previous, rng);
        used.previous = Some(delay);
        delay
    }
}
