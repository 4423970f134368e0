//! The life of one acquisition: when to ask, how long to wait, when to give up. No I/O.

use std::time::Duration;

use mainstay_clock::{Deadline, Instant};
use mainstay_store::Outcome;
use mainstay_store::lease::{Acquired, Since};

use crate::guard::deadline_of;

/// Between two questions when nobody says how long the holder stays: from this, doubling, to what the store's hints
/// allow; to [`WAIT_MAX`] while it does not answer.
const WAIT_MIN: Duration = Duration::from_millis(100);
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(1);
/// Doublings of [`WAIT_MIN`]: 25.6 s, where no hint is ever lost.
const DOUBLINGS: u32 = 8;
/// Waiters that know when a lease ends ask just after it, spread over this time.
const SPREAD: Duration = Duration::from_millis(5);

/// After a hint that led to nothing the next one is not listened to for this long, doubling to
/// [`DEAF_MAX`]: hints may be spurious, and one's own question may cause one.
const DEAF_MIN: Duration = Duration::from_millis(1);
const DEAF_MAX: Duration = Duration::from_millis(100);

/// What the caller's future does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Ask the store.
    Ask,
    /// Give up: somebody else holds it.
    Contended {
        /// The owner that stands in the way.
        holder: String,
        /// How long its lease lasts without renewal.
        remaining: Option<Duration>,
        /// Since when it is there.
        since: Option<Since>,
    },
    /// Give up: the grant came too late to be used.
    Expired,
    /// Give up: the store does not answer.
    Fail,
    /// Take it.
    Take,
    /// The wait is over and somebody else still holds it.
    TimedOut {
        /// The owner that stands in the way, if the store said it.
        holder: Option<String>,
    },
    /// Ask again at `until`, or when the store hints at a change after `listen`.
    Wait {
        /// When hints count.
        listen: Instant,
        /// When to ask in any case.
        until: Instant,
    },
}

/// Whether the caller waits for the holder to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Patience {
    /// One question.
    None,
    /// Until the deadline.
    Until(Deadline),
}

/// One acquisition.
#[derive(Clone, Debug)]
pub(crate) struct Acquisition {
    ttl: Duration,
    patience: Patience,
    /// The longest silence of the store that is believed.
    recheck: Duration,
    /// Questions without progress: they space out.
    rounds: u32,
    /// Hints in a row that led to nothing.
    hints: u32,
    /// Who stood in the way at the last answer.
    holder: Option<String>,
    /// The last question was answered.
    answered: bool,
    /// A question is on its way.
    asking: bool,
    /// A question ended without an answer: it may still land.
    unknown: bool,
    /// The store keeps a place in the line.
    queued: bool,
}

impl Acquisition {
    /// An acquisition of leases of `ttl`, on a store that may be believed for `recheck` when it says nothing.
    pub(crate) fn new(ttl: Duration, patience: Patience, recheck: Duration) -> Self {
        Self {
            ttl,
            patience,
            recheck,
            rounds: 0,
            hints: 0,
            holder: None,
            answered: false,
            asking: false,
            unknown: false,
            queued: false,
        }
    }

    /// Whether the caller waits for the holder to go; who does not, does not stand in line either.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.patience, Patience::Until(_))
    }

    /// How long the answer to a question of `now` is waited for, `most` at the longest: no wait outlives the caller's,
    /// but who asks though that is over asks once, as whoever does not wait.
    pub(crate) fn patience(&self, now: Instant, most: Duration) -> Duration {
        let most = most.min(self.ttl / 2);
        match self.patience {
            Patience::Until(limit) if limit.is_some() && now < limit.instant() => {
                most.min(limit.instant().saturating_duration_since(now))
            }
            _ => most,
        }
    }

    /// Whether the store may hold something of ours now or later, so that giving up has to tell it.
    pub(crate) fn maybe_held(&self) -> bool {
        self.asking || self.unknown || self.queued
    }

    /// The caller asks: from now on a lease may exist.
    pub(crate) fn asked(&mut self) {
        self.asking = true;
    }

    /// The answer to a question sent at `sent`. `unit` in `[0, 1)` spreads waiters.
    pub(crate) fn answered(&mut self, sent: Instant, now: Instant, answer: &Acquired, unit: f64) -> Command {
        // A grant stays in question until the caller took it.
        self.answered = true;
        self.asking = matches!(answer, Acquired::Granted(_));
        self.queued = matches!(answer, Acquired::Queued { .. });
        match answer {
            Acquired::Granted(_) if now < deadline_of(sent, self.ttl) => Command::Take,
            Acquired::Granted(_) => Command::Expired,
            Acquired::Held { by, remaining, since } => {
                self.holder = Some(by.clone());
                match self.patience {
                    Patience::None => {
                        Command::Contended { holder: by.clone(), remaining: *remaining, since: *since }
                    }
                    Patience::Until(_) => {
                        let pause = match remaining {
                            Some(left) => self.due(*left, unit),
                            None => self.guess(self.recheck, unit),
                        };
                        self.wait(now, pause)
                    }
                }
            }
            // In line: the store remembers us, so giving up has to leave the line. The place is kept as a lease is.
            Acquired::Queued { remaining, .. } => match self.patience {
                Patience::None => {
                    Command::Contended { holder: String::new(), remaining: *remaining, since: None }
                }
                Patience::Until(_) => {
                    let pause = self.due(remaining.unwrap_or(Duration::MAX), unit);
                    self.wait(now, pause.min(self.ttl / 3))
                }
            },
        }
    }

    /// The store failed. What may pass is asked again, under the same op id; what cannot ends the wait, however long
    /// it may be: what may have been granted is then given back.
    pub(crate) fn failed(&mut self, now: Instant, outcome: Outcome, retryable: bool, unit: f64) -> Command {
        self.asking = false;
        self.unknown |= outcome != Outcome::NotApplied;
        self.answered = false;
        match self.patience {
            Patience::Until(_) if retryable => {
                let pause = self.guess(WAIT_MAX, unit);
                self.wait(now, pause)
            }
            _ => Command::Fail,
        }
    }

    /// The time that the last [`Command::Wait`] named has come, or a hint.
    pub(crate) fn woke(&mut self, now: Instant, hinted: bool) -> Command {
        if hinted {
            (self.hints, self.rounds) = (self.hints.saturating_add(1), 0);
        } else {
            self.hints = 0;
        }
        if self.is_over(now) { self.give_up() } else { Command::Ask }
    }

    /// The caller's wait ended before the last question was answered: what was heard before that stands.
    pub(crate) fn cut_off(&mut self) -> Command {
        (self.asking, self.unknown) = (false, true);
        self.give_up()
    }

    /// Whether the caller's wait has ended.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        matches!(self.patience, Patience::Until(d) if d.is_some() && now >= d.instant())
    }

    fn give_up(&self) -> Command {
        if self.answered { Command::TimedOut { holder: self.holder.clone() } } else { Command::Fail }
    }

    /// How long to wait for what ends in `left`, unless the store is silent for too long.
    fn due(&self, left: Duration, unit: f64) -> Duration {
        left.saturating_add(SPREAD.mul_f64(unit)).min(half_to_all(self.recheck, unit))
    }

    /// How long to wait for nobody knows what: longer each time, up to `most`.
    fn guess(&mut self, most: Duration, unit: f64) -> Duration {
        let grown = WAIT_MIN.saturating_mul(1_u32 << self.rounds.min(DOUBLINGS)).min(most);
        self.rounds = self.rounds.saturating_add(1);
        half_to_all(grown, unit)
    }

    fn wait(&self, now: Instant, pause: Duration) -> Command {
        if self.is_over(now) {
            return self.give_up();
        }
        let limit = match self.patience {
            Patience::None => now,
            Patience::Until(d) => d.instant(),
        };
        let until = now.saturating_add(pause).min(limit);
        Command::Wait { listen: now.saturating_add(deaf(self.hints)).min(until), until }
    }
}

/// How long hints are not listened to after so many in a row that led to nothing.
pub(crate) fn deaf(vain: u32) -> Duration {
    match vain {
        0 => Duration::ZERO,
        n => DEAF_MIN.saturating_mul(1_u32 << (n - 1).min(8)).min(DEAF_MAX),
    }
}

/// From half of `d` to all of it, so that waiters spread out.
fn half_to_all(d: Duration, unit: f64) -> Duration {
    let half = d / 2;
    half.saturating_add(half.mul_f64(unit))
}

#[cfg(test)]
mod tests {
    use mainstay_clock::WallTime;
    use mainstay_store::lease::{UNWATCHED, WATCHED};

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    const TTL: Duration = Duration::from_secs(10);

    fn held(ms: Option<u64>) -> Acquired {
        Acquired::Held {
            by: "host-7".to_owned(),
            remaining: ms.map(Duration::from_millis),
            since: Some(Since::store(WallTime::from_unix_millis(7))),
        }
    }

    fn queued(ms: Option<u64>) -> Acquired {
        Acquired::Queued { position: None, remaining: ms.map(Duration::from_millis) }
    }

    /// On a store whose hints may be lost.
    fn begin(patience: Patience) -> Acquisition {
        Acquisition::new(TTL, patience, WATCHED)
    }

    fn pause(command: &Command, now: Instant) -> Duration {
        let Command::Wait { until, .. } = command else { panic!("{command:?}") };
        until.saturating_duration_since(now)
    }

    fn granted() -> Acquired {
        Acquired::Granted(Vec::new())
    }

    #[test]
    fn f03_a_grant_that_arrives_after_its_deadline_is_not_handed_out() {
        let mut a = begin(Patience::None);
        assert_eq!(a.answered(at(0), at(9_897), &granted(), 0.0), Command::Take);
        assert_eq!(a.answered(at(0), at(9_898), &granted(), 0.0), Command::Expired);
    }

    #[test]
    fn k14_the_callers_deadline_decides_how_long_to_wait() {
        let mut a = begin(Patience::Until(Deadline::at(at(30_000))));
        assert_eq!(
            a.answered(at(0), at(0), &held(Some(8_000)), 0.5),
            Command::Wait { listen: at(0), until: Instant::from_nanos(8_002_500_000) }
        );
        assert_eq!(
            a.answered(at(0), at(29_000), &held(Some(8_000)), 0.0),
            Command::Wait { listen: at(29_000), until: at(30_000) }
        );
        assert_eq!(a.woke(at(29_999), false), Command::Ask);
        assert_eq!(a.woke(at(30_000), false), Command::TimedOut { holder: Some("host-7".to_owned()) });
    }

    #[test]
    fn k14_no_answer_is_waited_for_beyond_the_callers_deadline() {
        let most = Duration::from_secs(3);
        let check = |patience, now, expected| {
            assert_eq!(
                begin(patience).patience(at(now), most).as_millis(),
                expected,
                "{patience:?} at {now}"
            );
        };
        let until = |ms| Patience::Until(Deadline::at(at(ms)));
        check(Patience::None, 0, 3_000);
        check(Patience::Until(Deadline::NONE), 0, 3_000);
        check(until(10_000), 0, 3_000);
        check(until(10_000), 9_900, 100);
        check(until(10_000), 10_000, 3_000);
        let short = Acquisition::new(Duration::from_secs(1), Patience::None, WATCHED);
        assert_eq!(short.patience(at(0), most).as_millis(), 500, "half of a lease is left to hold");
    }

    #[test]
    fn k17_a_question_that_the_callers_deadline_cut_off_says_nothing_of_the_holder() {
        let mut a = begin(Patience::Until(Deadline::at(at(100))));
        a.asked();
        assert_eq!(a.clone().cut_off(), Command::Fail, "nothing was heard at all");
        a.answered(at(0), at(1), &held(None), 0.0);
        a.asked();
        assert_eq!(a.cut_off(), Command::TimedOut { holder: Some("host-7".to_owned()) });
        assert!(a.maybe_held(), "it may still land");
    }

    #[test]
    fn k17_held_and_unreachable_are_told_apart() {
        let mut a = begin(Patience::None);
        let contended = Command::Contended {
            holder: "host-7".to_owned(),
            remaining: Some(Duration::from_millis(5)),
            since: Some(Since::store(WallTime::from_unix_millis(7))),
        };
        assert_eq!(a.answered(at(0), at(0), &held(Some(5)), 0.0), contended);
        assert_eq!(a.failed(at(0), Outcome::Unknown, true, 0.0), Command::Fail);
        let mut a = begin(Patience::Until(Deadline::at(at(100))));
        a.answered(at(0), at(0), &held(None), 0.0);
        assert!(matches!(a.failed(at(50), Outcome::NotApplied, true, 0.0), Command::Wait { .. }));
        assert_eq!(a.woke(at(100), false), Command::Fail, "the last answer was no answer");
    }

    #[test]
    fn f42_a_holder_without_expiry_is_asked_after_at_a_bounded_pace() {
        for (recheck, most) in [(UNWATCHED, WAIT_MAX), (WATCHED, WATCHED), (Duration::MAX, WATCHED)] {
            let mut a = Acquisition::new(TTL, Patience::Until(Deadline::NONE), recheck);
            let mut now = at(0);
            for round in 0..20 {
                let pause = pause(&a.answered(now, now, &held(None), 0.0), now);
                assert!(pause >= WAIT_MIN / 2 && pause <= most, "round {round}: {pause:?}");
                now = now.saturating_add(pause);
            }
        }
    }

    #[test]
    fn who_stands_in_line_asks_when_a_lease_is_due_to_keep_its_place_and_after_too_long_a_silence() {
        let check = |recheck, remaining, unit, expected| {
            let mut a = Acquisition::new(TTL, Patience::Until(Deadline::NONE), recheck);
            let waits = pause(&a.answered(at(0), at(0), &queued(remaining), unit), at(0));
            assert_eq!(waits.as_millis(), expected, "{recheck:?} {remaining:?}");
        };
        check(Duration::MAX, Some(2_000), 0.0, 2_000);
        check(Duration::MAX, Some(2_000), 0.6, 2_003);
        check(UNWATCHED, Some(2_000), 0.5, 750);
        check(UNWATCHED, None, 0.0, 500);
        check(WATCHED, None, 0.0, 3_333);
        check(Duration::MAX, Some(9_000), 0.9, 3_333);
    }

    #[test]
    fn a_store_that_does_not_answer_is_asked_each_second_however_sure_its_hints_are() {
        let mut a = Acquisition::new(TTL, Patience::Until(Deadline::NONE), Duration::MAX);
        for _ in 0..20 {
            let command = a.failed(at(0), Outcome::NotApplied, true, 0.99);
            assert!(pause(&command, at(0)) <= WAIT_MAX);
        }
    }

    #[test]
    fn a_store_that_says_what_cannot_pass_is_not_asked_again() {
        for outcome in [Outcome::NotApplied, Outcome::Unknown] {
            let mut a = begin(Patience::Until(Deadline::NONE));
            a.asked();
            assert_eq!(a.failed(at(0), outcome, false, 0.0), Command::Fail);
            assert_eq!(
                a.maybe_held(),
                outcome == Outcome::Unknown,
                "what may have been granted is given back"
            );
        }
    }

    #[test]
    fn hints_that_lead_to_nothing_are_listened_to_less_and_less() {
        let mut a = begin(Patience::Until(Deadline::NONE));
        let deaf = |a: &mut Acquisition| {
            let Command::Wait { listen, .. } = a.answered(at(0), at(0), &held(Some(9_000)), 0.0) else {
                panic!()
            };
            listen.as_nanos() / 1_000_000
        };
        assert_eq!(deaf(&mut a), 0, "the first hint counts at once");
        let mut pauses = Vec::new();
        for _ in 0..9 {
            assert_eq!(a.woke(at(0), true), Command::Ask);
            pauses.push(deaf(&mut a));
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 100, 100]);
        a.woke(at(0), false);
        assert_eq!(deaf(&mut a), 0);
    }

    #[test]
    fn f19_what_may_exist_is_known() {
        let mut a = begin(Patience::None);
        assert!(!a.maybe_held());
        a.asked();
        assert!(a.maybe_held());
        a.answered(at(0), at(0), &held(None), 0.0);
        assert!(!a.maybe_held(), "a no leaves nothing");
        a.asked();
        a.failed(at(0), Outcome::NotApplied, true, 0.0);
        assert!(!a.maybe_held());
        a.asked();
        a.failed(at(0), Outcome::Unknown, true, 0.0);
        a.answered(at(0), at(0), &held(None), 0.0);
        assert!(a.maybe_held(), "the question that got no answer may still land");
    }
}
