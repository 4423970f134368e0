//! The breaker's shell around its state machine: a hot path of loads, a slow path under one small lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Rng, Tick};

use super::config::{Abandoned, BreakerConfig};
use super::snapshot::{BreakerSnapshot, Lifetime};
use super::state::{Cause, Logged, Machine, Probe, ProbeEnd, State, Transition, Trip, Word};
use super::tally::{Mark, Plain, Tally};
use crate::event::Ear;
use crate::pad::CacheLined;
use crate::policy::ProbeGate;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::{ConfigError, Event, Outcome, Reason, Rejected};

/// Everything a closed breaker's success path reads; written only by transitions and new settings.
#[derive(Debug)]
struct Hot {
    word: AtomicU64,
    /// Before this instant an admission that is refused now will be refused again.
    until: AtomicU64,
    since: AtomicU64,
    slow_after: AtomicU64,
    abandon_after: AtomicU64,
    /// Half the attempt timeout of a policy replaces `abandon_after`, as nobody has set it: 0 or 1.
    abandon_open: AtomicU64,
    min_calls: AtomicU64,
    consecutive: AtomicU64,
    failure_rate: AtomicU64,
    slow_rate: AtomicU64,
    armed_factor: AtomicU64,
    armed_until: AtomicU64,
}

/// "Never", for thresholds that are off.
const NEVER: u64 = u64::MAX;

/// Transitions that wait for a listener. A thread that tells may be off its core for milliseconds while others
/// go on changing the state; more than this is no listener but a wall.
const OUTBOX: usize = 10_000;

#[derive(Debug)]
enum Untold {
    Missed(u64),
    Transition(Transition),
}

#[derive(Debug)]
struct Slow {
    machine: Machine,
    /// Transitions that the listener has not heard, and how many were too many to keep.
    outbox: VecDeque<Transition>,
    missed: u64,
    /// Whether a thread is telling right now: others leave their transitions to it, so order is kept.
    telling: bool,
    wakers: Vec<(u64, Waker)>,
    readers: u64,
}

/// Rare events since the start.
#[derive(Debug)]
struct Life {
    failures: AtomicU64,
    slow: AtomicU64,
    ignored: AtomicU64,
    abandoned: AtomicU64,
    late: AtomicU64,
    rejected: AtomicU64,
}

/// One admission. It borrows nothing, so that a future without lifetimes can hold it.
///
/// Two numbers and no more: they stay in registers. Three would be moved through memory, where reading as a
/// whole what was just written in parts stalls for longer than all the rest of a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Raw {
    pub(crate) word: u64,
    /// When the call began; for a probe its number, and the machine knows when.
    pub(crate) stamp: u64,
}

impl Raw {
    /// No admission. Generations start at 1, so no word is 0.
    pub(crate) const NONE: Self = Self { word: 0, stamp: 0 };

    #[inline(always)]
    fn word(self) -> Word {
        Word(self.word)
    }

    /// Number of the probe; an ordinary call is never admitted half-open.
    fn probe(self) -> Option<u64> {
        (self.word().state() == State::HalfOpen).then_some(self.stamp)
    }
}

/// How an admitted call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Abandoned,
    Failure,
    Ignored,
    Success,
}

#[derive(Debug)]
pub(crate) struct Core {
    hot: CacheLined<Hot>,
    tally: Tally,
    tick: Tick,
    precise: bool,
    pub(crate) name: Arc<str>,
    pub(crate) key: Option<Arc<str>>,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    gate: Option<Arc<dyn ProbeGate>>,
    ear: Ear,
    life: Life,
    slow: Mutex<Slow>,
    /// One change of settings at a time: the closure that makes it runs outside every other lock.
    edit: Mutex<()>,
}

/// Where a breaker stands in a fleet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Standing {
    /// Open or half-open.
    pub(crate) refuses: bool,
    /// Open, and its time is not over.
    pub(crate) is_waiting: bool,
    /// Probes in flight.
    pub(crate) probes: u32,
    /// Refusals since the start.
    pub(crate) rejected: u64,
}

/// What a breaker is put together from, besides its settings.
pub(crate) struct Parts {
    pub(crate) name: Arc<str>,
    pub(crate) key: Option<Arc<str>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) gate: Option<Arc<dyn ProbeGate>>,
    pub(crate) ear: Ear,
    pub(crate) precise: bool,
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(NEVER)
}

impl Core {
    /// `config` has been checked.
    pub(crate) fn new(config: BreakerConfig, parts: Parts) -> Self {
        let now = parts.clock.now();
        let tally = Tally::new(config.window, now);
        let machine = Machine::new(config, now);
        let zero = || AtomicU64::new(0);
        let core = Self {
            hot: CacheLined::new(Hot {
                word: AtomicU64::new(machine.word().0),
                until: AtomicU64::new(NEVER),
                since: AtomicU64::new(now.as_nanos()),
                slow_after: zero(),
                abandon_after: zero(),
                abandon_open: zero(),
                min_calls: zero(),
                consecutive: zero(),
                failure_rate: zero(),
                slow_rate: zero(),
                armed_factor: zero(),
                armed_until: zero(),
            }),
            tally,
            tick: parts.clock.tick(),
            precise: parts.precise,
            name: parts.name,
            key: parts.key,
            clock: parts.clock,
            rng: parts.rng,
            gate: parts.gate,
            ear: parts.ear,
            life: Life {
                failures: zero(),
                slow: zero(),
                ignored: zero(),
                abandoned: zero(),
                late: zero(),
                rejected: zero(),
            },
            slow: Mutex::new(Slow {
                machine,
                outbox: VecDeque::new(),
                missed: 0,
                telling: false,
                wakers: Vec::new(),
                readers: 0,
            }),
            edit: Mutex::new(()),
        };
        core.settle(&core.slow.lock().machine.config);
        core
    }

    /// Copies the settings that the lock-free paths read.
    fn settle(&self, config: &BreakerConfig) {
        let hot = &self.hot;
        let trip = Trip::of(config, 1.0);
        hot.slow_after.store(config.slow.map_or(NEVER, |(d, _)| nanos(d)), Ordering::Relaxed);
        let abandon_after = match config.abandoned() {
            Abandoned::Failure => 0,
            Abandoned::FailureIfElapsed(d) => nanos(d),
            Abandoned::Ignore => NEVER,
        };
        hot.abandon_after.store(abandon_after, Ordering::Relaxed);
        hot.abandon_open.store(u64::from(config.is_abandoned_open()), Ordering::Relaxed);
        hot.min_calls.store(u64::from(trip.min_calls), Ordering::Relaxed);
        hot.consecutive.store(trip.consecutive.map_or(NEVER, u64::from), Ordering::Relaxed);
        hot.failure_rate.store(trip.failure_rate.to_bits(), Ordering::Relaxed);
        let slow_rate = trip.slow_rate.unwrap_or(f64::INFINITY);
        hot.slow_rate.store(slow_rate.to_bits(), Ordering::Relaxed);
    }

    /// Publishes the machine's state. Needs its lock; the word goes last.
    fn publish(&self, machine: &Machine) {
        self.hot.since.store(machine.since().as_nanos(), Ordering::Relaxed);
        self.hot.until.store(machine.until().as_nanos(), Ordering::Release);
        self.hot.word.store(machine.word().0, Ordering::Release);
    }

    #[inline(always)]
    pub(crate) fn now(&self) -> Instant {
        if self.precise { self.exactly() } else { self.tick.read() }
    }

    #[cold]
    #[inline(never)]
    fn exactly(&self) -> Instant {
        self.clock.now()
    }

    #[inline]
    fn word(&self) -> Word {
        Word(self.hot.word.load(Ordering::Acquire))
    }

    /// Admits or refuses one call.
    #[inline(always)]
    pub(crate) fn admit(&self) -> Result<Raw, Rejected> {
        match self.admit_closed() {
            Some(raw) => Ok(raw),
            None => self.admit_slow(),
        }
    }

    /// The admission of a closed breaker.
    #[inline(always)]
    pub(crate) fn admit_closed(&self) -> Option<Raw> {
        let word = self.word();
        (word.state() == State::Closed).then(|| self.plain(word))
    }

    #[inline(always)]
    fn plain(&self, word: Word) -> Raw {
        Raw { word: word.0, stamp: self.now().as_nanos() }
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn admit_slow(&self) -> Result<Raw, Rejected> {
        loop {
            let word = self.word();
            let now = self.clock.now();
            let until = Instant::from_nanos(self.hot.until.load(Ordering::Acquire));
            match word.state() {
                State::Closed => return Ok(self.plain(word)),
                state if state.is_held() => {
                    if now >= until {
                        self.change(|machine| machine.expire(now));
                    } else if state == State::ForcedOpen {
                        return Err(self.refuse_forced(now, until));
                    } else {
                        return Ok(self.plain(word));
                    }
                }
                _ if now < until => {
                    let left = until.saturating_duration_since(now);
                    return Err(self.refuse((until != Instant::FAR_FUTURE).then_some(left)));
                }
                _ => {
                    if let Some(raw) = self.ask_for_probe(now)? {
                        return Ok(raw);
                    }
                }
            }
        }
    }

    /// The refusal of a call that would ask `then`, where only a person can change it: for those who would have to wait for
    /// something else before they ask.
    #[cold]
    pub(crate) fn refused_at(&self, then: Instant) -> Option<Rejected> {
        let state = self.word().state();
        if !matches!(state, State::Open | State::ForcedOpen) {
            return None;
        }
        let until = Instant::from_nanos(self.hot.until.load(Ordering::Acquire));
        (then < until).then(|| {
            let now = self.clock.now();
            match state {
                State::ForcedOpen => self.refuse_forced(now, until),
                _ => self.refuse(Some(until.saturating_duration_since(now))),
            }
        })
    }

    /// A probe's admission; `None` when the state changed meanwhile.
    fn ask_for_probe(&self, now: Instant) -> Result<Option<Raw>, Rejected> {
        if let Some(gate) = &self.gate {
            gate.admit(&self.name, now).map_err(|wait| self.refuse(wait))?;
        }
        let (probe, moved) = {
            let mut slow = self.slow.lock();
            let (probe, moved) = slow.machine.probe(now);
            self.moved(&mut slow, moved.as_ref());
            (probe, moved.is_some())
        };
        if moved {
            self.announce();
        }
        match probe {
            Probe::Admitted { seq, word } => Ok(Some(Raw { word: word.0, stamp: seq })),
            Probe::Wait(left) => Err(self.refuse(Some(left))),
            Probe::NotChosen => Err(self.refuse(None)),
            Probe::Changed => Ok(None),
        }
    }

    #[cold]
    fn refuse(&self, retry_after: Option<Duration>) -> Rejected {
        self.refused(Reason::Open, retry_after)
    }

    #[cold]
    fn refuse_forced(&self, now: Instant, until: Instant) -> Rejected {
        let why = self.slow.lock().machine.why().cloned().unwrap_or_else(|| "".into());
        let left = (until != Instant::FAR_FUTURE).then(|| until.saturating_duration_since(now));
        self.refused(Reason::ForcedOpen { why }, left)
    }

    fn refused(&self, why: Reason, retry_after: Option<Duration>) -> Rejected {
        self.life.rejected.fetch_add(1, Ordering::Relaxed);
        let since = Instant::from_nanos(self.hot.since.load(Ordering::Relaxed));
        let rejected = Rejected::new(Arc::clone(&self.name), why);
        self.ear.told(rejected.with_retry_after(retry_after).with_since(Some(since)))
    }

    /// A call succeeded. The common case: closed, same generation, not slow, nobody listens.
    #[inline(always)]
    pub(crate) fn succeed(&self, raw: Raw) {
        let now = self.now();
        let elapsed = now.as_nanos().wrapping_sub(raw.stamp);
        let word = raw.word();
        let plain = word.state() == State::Closed && !self.ear.is_open();
        if plain && elapsed < self.hot.slow_after.load(Ordering::Relaxed) {
            match &self.tally {
                Tally::Time(window) => {
                    let bucket = window.bucket(now);
                    if self.word() == word {
                        window.add(bucket);
                        return;
                    }
                }
                Tally::Plain(Plain::Run(run)) => {
                    if self.word() == word {
                        run.success(word);
                        return;
                    }
                }
                Tally::Plain(Plain::Count(_)) => {}
            }
        }
        self.end(raw, End::Success);
    }

    /// A call ended, in any way.
    #[cold]
    #[inline(never)]
    pub(crate) fn end(&self, raw: Raw, end: End) {
        self.end_by(raw, end, None);
    }

    /// A call was dropped that would have been cut off `timeout` after its start.
    #[cold]
    pub(crate) fn abandon(&self, raw: Raw, timeout: Option<Duration>) {
        self.end_by(raw, End::Abandoned, timeout);
    }

    /// How long a dropped call must have run to count as a failure, in nanoseconds.
    fn abandon_after(&self, timeout: Option<Duration>) -> u64 {
        match timeout {
            Some(timeout) if self.hot.abandon_open.load(Ordering::Relaxed) != 0 => nanos(timeout / 2),
            _ => self.hot.abandon_after.load(Ordering::Relaxed),
        }
    }

    fn end_by(&self, raw: Raw, end: End, timeout: Option<Duration>) {
        let now = self.now();
        let began = match raw.probe() {
            None => Instant::from_nanos(raw.stamp),
            Some(seq) => self.slow.lock().machine.probe_started(seq).unwrap_or(now),
        };
        let elapsed = now.saturating_duration_since(began);
        let slow = nanos(elapsed) >= self.hot.slow_after.load(Ordering::Relaxed);
        // While a person holds it closed nothing is counted: failures alone would look like an outage to a fleet.
        let counts = raw.word().state() != State::ForcedClosed;
        let end = match end {
            End::Abandoned if nanos(elapsed) >= self.abandon_after(timeout) => {
                self.life.abandoned.fetch_add(u64::from(counts), Ordering::Relaxed);
                End::Failure
            }
            end => end,
        };
        let outcome = match raw.probe() {
            None => self.end_plain(raw.word(), end, slow, now),
            Some(seq) => self.end_probe(raw.word(), seq, end, slow),
        };
        if counts {
            self.count(outcome, slow);
        }
        if self.ear.is_open() {
            self.ear.tell(&Event::Call { outcome, elapsed, attempts: 1 });
        }
    }

    fn count(&self, outcome: Outcome, slow: bool) {
        let life = match outcome {
            Outcome::Failure => &self.life.failures,
            Outcome::Ignored => &self.life.ignored,
            Outcome::Abandoned => &self.life.abandoned,
            Outcome::Late => &self.life.late,
            Outcome::Success | Outcome::SlowSuccess | Outcome::Timeout(_) => {
                if slow {
                    self.life.slow.fetch_add(1, Ordering::Relaxed);
                }
                return;
            }
        };
        life.fetch_add(1, Ordering::Relaxed);
        if slow && outcome == Outcome::Failure {
            self.life.slow.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn end_plain(&self, word: Word, end: End, slow: bool, now: Instant) -> Outcome {
        let (mark, outcome) = match end {
            End::Success if slow => (Mark::Success { slow }, Outcome::SlowSuccess),
            End::Success => (Mark::Success { slow }, Outcome::Success),
            End::Failure => (Mark::Failure { slow }, Outcome::Failure),
            End::Abandoned => (Mark::Abandoned, Outcome::Abandoned),
            End::Ignored => return Outcome::Ignored,
        };
        if word.state() == State::ForcedClosed {
            return outcome;
        }
        if !self.tally.add(mark, word, now, &self.hot.word) {
            return Outcome::Late;
        }
        if word.state() == State::Closed && mark != (Mark::Success { slow: false }) {
            self.evaluate(word, now);
        }
        outcome
    }

    fn armed(&self, now: Instant) -> f64 {
        if now.as_nanos() < self.hot.armed_until.load(Ordering::Relaxed) {
            f64::from_bits(self.hot.armed_factor.load(Ordering::Relaxed))
        } else {
            1.0
        }
    }

    /// The thresholds as the lock-free paths see them; between two stores of new settings they may be a
    /// mixture, so what they say is checked again under the lock.
    fn glance(&self) -> Trip {
        let hot = &self.hot;
        let consecutive = hot.consecutive.load(Ordering::Relaxed);
        Trip {
            consecutive: u32::try_from(consecutive).ok(),
            failure_rate: f64::from_bits(hot.failure_rate.load(Ordering::Relaxed)),
            slow_rate: Some(f64::from_bits(hot.slow_rate.load(Ordering::Relaxed))),
            min_calls: u32::try_from(hot.min_calls.load(Ordering::Relaxed)).unwrap_or(u32::MAX),
            timed: matches!(self.tally, Tally::Time(_)),
        }
    }

    /// Opens if the window says so. Every caller looks after its own result was added: another thread's look
    /// may have missed it.
    #[cold]
    fn evaluate(&self, word: Word, now: Instant) {
        let factor = self.armed(now);
        if factor >= 1.0 && self.glance().judge(&self.tally.counts(word, now)).is_none() {
            return;
        }
        let exact = self.clock.now();
        self.change(|machine| {
            if machine.word() != word {
                return None;
            }
            let cause = Trip::of(&machine.config, factor).judge(&self.tally.counts(word, now))?;
            machine.trip(exact, self.rng.unit(), cause)
        });
    }

    fn end_probe(&self, word: Word, seq: u64, end: End, slow: bool) -> Outcome {
        let probe = match end {
            End::Success if slow => ProbeEnd::Failure,
            End::Success => ProbeEnd::Success,
            End::Failure => ProbeEnd::Failure,
            End::Ignored | End::Abandoned => ProbeEnd::NoEvidence,
        };
        let mut void = false;
        let now = self.clock.now();
        self.change(|machine| {
            let ended = machine.probe_ended(word, seq, probe, now, self.rng.unit());
            void = ended.is_none();
            ended.flatten()
        });
        match end {
            _ if void => Outcome::Late,
            End::Success if slow => Outcome::SlowSuccess,
            End::Success => Outcome::Success,
            End::Failure => Outcome::Failure,
            End::Ignored => Outcome::Ignored,
            End::Abandoned => Outcome::Abandoned,
        }
    }

    /// Changes the machine under its lock, publishes it, and tells the world outside the lock.
    fn change(&self, f: impl FnOnce(&mut Machine) -> Option<Transition>) {
        let moved = {
            let mut slow = self.slow.lock();
            let moved = f(&mut slow.machine);
            self.moved(&mut slow, moved.as_ref());
            moved.is_some()
        };
        if moved {
            self.announce();
        }
    }

    /// The machine may have moved: publishes what it is now. Needs its lock.
    fn moved(&self, slow: &mut Slow, moved: Option<&Transition>) {
        self.post(slow, moved);
        if moved.is_some_and(|t| t.to == State::Closed) {
            self.tally.clear(self.now());
        }
        self.publish(&slow.machine);
    }

    /// Leaves a transition for the listener. Needs the lock, so the order is that of the transitions.
    fn post(&self, slow: &mut Slow, moved: Option<&Transition>) {
        let Some(transition) = moved.filter(|_| self.ear.is_open()) else { return };
        if slow.outbox.len() == OUTBOX {
            slow.outbox.pop_front();
            slow.missed += 1;
        }
        slow.outbox.push_back(transition.clone());
    }

    /// Tells listeners and readers of transitions, one thread at a time and in order, outside the lock.
    fn announce(&self) {
        let wakers = std::mem::take(&mut self.slow.lock().wakers);
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
        if !self.ear.is_open() {
            return;
        }
        let mut first = true;
        while let Some(untold) = self.next_untold(first) {
            first = false;
            match untold {
                Untold::Transition(transition) => self.ear.tell(&Event::Transition(&transition)),
                Untold::Missed(transitions) => self.ear.tell(&Event::Missed { transitions }),
            }
        }
    }

    fn next_untold(&self, first: bool) -> Option<Untold> {
        let mut slow = self.slow.lock();
        if first && slow.telling {
            return None;
        }
        let next = match std::mem::take(&mut slow.missed) {
            0 => slow.outbox.pop_front().map(Untold::Transition),
            missed => Some(Untold::Missed(missed)),
        };
        slow.telling = next.is_some();
        next
    }

    pub(crate) fn hold(&self, to: State, why: &str, ttl: Option<Duration>) {
        let now = self.clock.now();
        let until = ttl.map(|ttl| now.saturating_add(ttl));
        self.change(|machine| Some(machine.hold(to, why, until, now)));
    }

    pub(crate) fn release(&self) {
        let now = self.clock.now();
        self.change(|machine| machine.release(now, Cause::Person { why: "released".into() }));
    }

    pub(crate) fn reset(&self, why: &str) {
        let now = self.clock.now();
        self.change(|machine| Some(machine.reset(now, why)));
    }

    pub(crate) fn prearm(&self, factor: f64, ttl: Duration) -> Result<(), ConfigError> {
        if !(factor > 0.0 && factor <= 1.0) {
            return Err(ConfigError::new("factor", factor, "a number in (0, 1]"));
        }
        self.hot.armed_factor.store(factor.to_bits(), Ordering::Relaxed);
        let until = self.clock.now().saturating_add(ttl).as_nanos();
        self.hot.armed_until.store(until, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn reconfigure(&self, f: impl FnOnce(&mut BreakerConfig)) -> Result<(), ConfigError> {
        let _one = self.edit.lock();
        let mut config = self.config();
        f(&mut config);
        config.check()?;
        let mut slow = self.slow.lock();
        let window = slow.machine.config.window;
        if std::mem::discriminant(&window) != std::mem::discriminant(&config.window) {
            let allowed = format!("another size of the running kind, {window:?}");
            return Err(ConfigError::new("window", format!("{:?}", config.window), allowed));
        }
        if window != config.window {
            self.tally.resize(config.window, self.now());
        }
        self.settle(&config);
        slow.machine.config = config;
        self.publish(&slow.machine);
        Ok(())
    }

    pub(crate) fn config(&self) -> BreakerConfig {
        self.slow.lock().machine.config.clone()
    }

    pub(crate) fn state(&self) -> State {
        self.word().state()
    }

    pub(crate) fn snapshot(&self) -> BreakerSnapshot {
        let now = self.clock.now();
        if self.word().state().is_held() {
            self.change(|machine| machine.expire(now));
        }
        let slow = self.slow.lock();
        let machine = &slow.machine;
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (probes, probe_successes) = machine.probes(now);
        let waits = matches!(machine.state(), State::Open | State::HalfOpen);
        BreakerSnapshot {
            name: Arc::clone(&self.name),
            key: self.key.clone(),
            state: machine.state(),
            generation: machine.word().generation(),
            since: machine.since(),
            why: machine.why().cloned(),
            hold_until: machine.hold_until(),
            retry_in: waits.then(|| machine.until().saturating_duration_since(now)),
            round: machine.step(),
            probes,
            probe_successes,
            counts: self.tally.counts(machine.word(), self.now()),
            lifetime: Lifetime {
                successes: self.tally.successes(),
                failures: read(&self.life.failures),
                slow: read(&self.life.slow),
                ignored: read(&self.life.ignored),
                abandoned: read(&self.life.abandoned),
                late: read(&self.life.late),
                rejected: read(&self.life.rejected),
            },
            config: machine.config.clone(),
            last: machine.log().cloned().collect(),
        }
    }

    /// What a fleet looks at, several times per period and before each probe: less than a snapshot costs.
    pub(crate) fn standing(&self) -> Standing {
        let now = self.clock.now();
        let slow = self.slow.lock();
        let machine = &slow.machine;
        Standing {
            refuses: matches!(machine.state(), State::Open | State::HalfOpen),
            is_waiting: machine.is_waiting(now),
            probes: machine.probes(now).0,
            rejected: self.life.rejected.load(Ordering::Relaxed),
        }
    }

    /// A reader of transitions starts after the last one.
    pub(crate) fn reader(&self) -> (u64, u64) {
        let mut slow = self.slow.lock();
        slow.readers += 1;
        (slow.readers, slow.machine.logged())
    }

    /// The next transition for a reader at `next`, or how many it missed; registers `waker` when there is
    /// none.
    pub(crate) fn read_log(&self, reader: u64, next: u64, waker: &Waker) -> Option<Result<Transition, u64>> {
        let mut slow = self.slow.lock();
        match slow.machine.after(next) {
            Logged::Next(transition) => return Some(Ok(transition.clone())),
            Logged::Lost { count } => return Some(Err(count)),
            Logged::UpToDate => {}
        }
        match slow.wakers.iter_mut().find(|(id, _)| *id == reader) {
            Some((_, old)) => old.clone_from(waker),
            None => slow.wakers.push((reader, waker.clone())),
        }
        None
    }

    pub(crate) fn forget_reader(&self, reader: u64) {
        self.slow.lock().wakers.retain(|(id, _)| *id != reader);
    }
}
