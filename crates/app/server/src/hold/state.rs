//! When the job of a lease is told to end and when it is killed: no processes, no async.
//!
//! The rule is the one of `timeout`-like wrappers over a lease: the group is told to end a grace before the
//! lease can pass on, and killed before it does. The clock is the boot clock, which goes on in suspend.

use std::time::Duration;

use clap::ValueEnum;
use mainstay_clock::Instant;

/// What the wrapper keeps between the guard's deadline and its own: the guard counts 2 ms for what it cannot
/// see, a wrapper with processes in between 10 ms.
const FLOOR: Duration = Duration::from_millis(8);

/// What happens to the job when its lease is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnLost {
    /// It is killed at the instant at which it would have been told.
    Kill,
    /// It goes on, and the exit code says that it was not protected.
    None,
    /// It is told by TERM, and killed when its grace is over.
    #[default]
    Term,
}

/// The instants of one deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) term: Instant,
    pub(crate) kill: Instant,
}

impl Limits {
    pub(crate) fn of(deadline: Instant, grace: Duration) -> Self {
        let kill = deadline.saturating_sub(FLOOR);
        Self { term: kill.saturating_sub(grace), kill }
    }
}

/// What the watchdog hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The lease was renewed.
    Renewed(Limits),
    /// The lease is gone, or the wrapper is.
    Lost,
    /// Time has passed.
    Tick,
}

/// What the watchdog does to the process group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Term,
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The lease is held.
    Held,
    /// The group was told to end and is killed at this instant.
    Told { kill: Instant },
    /// It was killed, or is left alone.
    Over,
}

/// Decides over one job.
#[derive(Debug)]
pub(crate) struct Watch {
    grace: Duration,
    on_lost: OnLost,
    limits: Limits,
    phase: Phase,
}

impl Watch {
    pub(crate) fn new(grace: Duration, on_lost: OnLost, limits: Limits) -> Self {
        Self { grace, on_lost, limits, phase: Phase::Held }
    }

    /// When to send [`Event::Tick`].
    pub(crate) fn next(&self) -> Option<Instant> {
        match self.phase {
            Phase::Held => Some(self.limits.term),
            Phase::Told { kill } => Some(kill),
            Phase::Over => None,
        }
    }

    /// Once the job was told to end, no renewal takes that back.
    pub(crate) fn on(&mut self, now: Instant, event: Event) -> Option<Act> {
        match (self.phase, event) {
            (Phase::Held, Event::Renewed(limits)) => {
                self.limits = limits;
                None
            }
            (Phase::Held, Event::Lost) => self.end(now, now.saturating_add(self.grace)),
            (Phase::Held, Event::Tick) if now >= self.limits.term => self.end(now, self.limits.kill),
            (Phase::Told { kill }, Event::Tick) if now >= kill => {
                self.phase = Phase::Over;
                Some(Act::Kill)
            }
            _ => None,
        }
    }

    fn end(&mut self, now: Instant, kill: Instant) -> Option<Act> {
        let kill = kill.min(self.limits.kill);
        let act = match self.on_lost {
            OnLost::None => None,
            OnLost::Term if now < kill => {
                self.phase = Phase::Told { kill };
                return Some(Act::Term);
            }
            OnLost::Kill | OnLost::Term => Some(Act::Kill),
        };
        self.phase = Phase::Over;
        act
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    const GRACE: Duration = Duration::from_millis(500);

    fn watch(on_lost: OnLost) -> Watch {
        Watch::new(GRACE, on_lost, Limits { term: at(1_000), kill: at(1_500) })
    }

    #[test]
    fn the_job_is_told_a_grace_before_it_is_killed_and_killed_before_the_deadline() {
        let limits = Limits::of(at(10_000), GRACE);
        assert_eq!((limits.term, limits.kill), (at(9_492), at(9_992)));
        let mut watch = watch(OnLost::Term);
        assert_eq!(watch.on(at(999), Event::Tick), None);
        assert_eq!(watch.next(), Some(at(1_000)));
        assert_eq!(watch.on(at(1_000), Event::Tick), Some(Act::Term));
        assert_eq!(watch.next(), Some(at(1_500)));
        assert_eq!(watch.on(at(1_499), Event::Tick), None);
        assert_eq!(watch.on(at(1_500), Event::Tick), Some(Act::Kill));
        assert_eq!(watch.next(), None);
    }

    #[test]
    fn a_renewal_moves_both_but_never_takes_the_word_back() {
        let mut watch = watch(OnLost::Term);
        let later = Event::Renewed(Limits { term: at(2_000), kill: at(2_500) });
        assert_eq!(watch.on(at(900), later), None);
        assert_eq!(watch.on(at(1_000), Event::Tick), None);
        assert_eq!(watch.on(at(2_100), Event::Tick), Some(Act::Term));
        let late = Event::Renewed(Limits { term: at(3_000), kill: at(3_500) });
        assert_eq!(watch.on(at(2_200), late), None);
        assert_eq!(watch.on(at(2_500), Event::Tick), Some(Act::Kill));
    }

    #[test]
    fn what_is_lost_early_has_its_grace_and_never_more_than_the_lease() {
        let mut early = watch(OnLost::Term);
        assert_eq!(early.on(at(100), Event::Lost), Some(Act::Term));
        assert_eq!(early.next(), Some(at(600)));
        let mut late = watch(OnLost::Term);
        assert_eq!(late.on(at(1_300), Event::Lost), Some(Act::Term));
        assert_eq!(late.next(), Some(at(1_500)));
        let mut over = watch(OnLost::Term);
        assert_eq!(over.on(at(1_600), Event::Tick), Some(Act::Kill), "woken after the deadline");
    }

    #[test]
    fn kill_does_not_tell_and_none_does_nothing() {
        assert_eq!(watch(OnLost::Kill).on(at(1_000), Event::Tick), Some(Act::Kill));
        assert_eq!(watch(OnLost::None).on(at(1_000), Event::Tick), None);
        assert_eq!(watch(OnLost::None).on(at(10), Event::Lost), None);
    }
}
