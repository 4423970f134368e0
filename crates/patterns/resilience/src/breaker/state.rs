//! The breaker as a pure state machine: time, randomness and results go in, transitions come out.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_clock::Instant;

use super::config::{BreakerConfig, ProbeRule};

/// What a breaker does with calls. Three states are its own, three are a person's hold on it ([`is_held`](State::is_held))
/// and win over them.
///
/// ```
/// use mainstay_resilience::breaker::State;
///
/// let held: Vec<_> = State::ALL.into_iter().filter(|state| state.is_held()).map(State::name).collect();
/// assert_eq!(held, ["forced_closed", "forced_open", "metrics_only"]);
/// assert_eq!(State::HalfOpen.to_string(), "half_open"); // the same text as in labels and files
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum State {
    /// Calls pass and are counted.
    Closed,
    /// A person lets every call pass; nothing is counted.
    ForcedClosed,
    /// A person refuses every call.
    ForcedOpen,
    /// Probes pass.
    HalfOpen,
    /// A person lets every call pass; results are counted, nothing trips.
    MetricsOnly,
    /// Calls are refused.
    Open,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Closed, Self::ForcedClosed, Self::ForcedOpen, Self::HalfOpen, Self::MetricsOnly, Self::Open];

    /// A stable name, for labels and files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ForcedClosed => "forced_closed",
            Self::ForcedOpen => "forced_open",
            Self::HalfOpen => "half_open",
            Self::MetricsOnly => "metrics_only",
            Self::Open => "open",
        }
    }

    /// Whether a person put it there.
    #[must_use]
    pub const fn is_held(self) -> bool {
        matches!(self, Self::ForcedClosed | Self::ForcedOpen | Self::MetricsOnly)
    }

    const fn code(self) -> u64 {
        match self {
            Self::Closed => 0,
            Self::ForcedClosed => 1,
            Self::ForcedOpen => 2,
            Self::HalfOpen => 3,
            Self::MetricsOnly => 4,
            Self::Open => 5,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Generation and state in one number: `generation << 8 | state`. Every transition has a new generation, so
/// that two equal words mean that nothing happened in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word(pub(crate) u64);

impl Word {
    pub(crate) const fn new(generation: u64, state: State) -> Self {
        Self(generation << 8 | state.code())
    }

    #[inline]
    pub(crate) const fn state(self) -> State {
        match self.0 & 0xff {
            0 => State::Closed,
            1 => State::ForcedClosed,
            2 => State::ForcedOpen,
            3 => State::HalfOpen,
            4 => State::MetricsOnly,
            _ => State::Open,
        }
    }

    pub(crate) const fn generation(self) -> u64 {
        self.0 >> 8
    }
}

/// Why a breaker changed its state.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Cause {
    /// Nothing conclusive, and too many calls were dropped.
    Abandoned {
        /// Dropped calls in the window.
        calls: u64,
    },
    /// Too many failures in a row.
    Consecutive {
        /// How many.
        failures: u64,
    },
    /// Too large a share of failures.
    FailureRate {
        /// Failures in the window.
        failures: u64,
        /// Conclusive results in the window.
        total: u64,
    },
    /// A person's hold is over.
    HoldOver,
    /// The open time is over.
    OpenTimeOver,
    /// A person did it.
    Person {
        /// What the person wrote.
        why: Arc<str>,
    },
    /// A probe failed, or too many of them.
    ProbeFailed,
    /// Enough probes succeeded.
    Recovered,
    /// Too large a share of slow calls.
    SlowRate {
        /// Slow calls in the window.
        slow: u64,
        /// Conclusive results in the window.
        total: u64,
    },
}

/// One change of state.
///
/// ```
/// use mainstay_resilience::Breaker;
/// use mainstay_resilience::breaker::{Cause, State};
///
/// let breaker = Breaker::builder("search").build().unwrap();
/// breaker.force_open("migration", None);
/// breaker.release();
/// let [opened, closed] = &breaker.snapshot().last[..] else { panic!("two changes") };
/// assert_eq!((opened.from(), opened.to()), (State::Closed, State::ForcedOpen));
/// assert_eq!(opened.cause(), &Cause::Person { why: "migration".into() });
/// assert_eq!(closed.generation(), opened.generation() + 1);
/// assert!(closed.at() >= opened.at());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    pub(crate) from: State,
    pub(crate) to: State,
    pub(crate) generation: u64,
    pub(crate) at: Instant,
    pub(crate) cause: Cause,
}

impl Transition {
    /// The old state.
    #[must_use]
    pub fn from(&self) -> State {
        self.from
    }

    /// The new state.
    #[must_use]
    pub fn to(&self) -> State {
        self.to
    }

    /// The number of the new state's generation; grows by one per transition.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When, in boot time.
    #[must_use]
    pub fn at(&self) -> Instant {
        self.at
    }

    /// Why.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        &self.cause
    }
}

/// What the window held when somebody looked.
///
/// ```
/// use mainstay_resilience::breaker::Counts;
///
/// assert_eq!(Counts::default().failure_rate(), 0.0); // of nothing, nothing failed
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Conclusive results: successes and failures.
    pub total: u64,
    /// Failures.
    pub failures: u64,
    /// Slow calls, successful or not.
    pub slow: u64,
    /// Calls that were dropped and did not count as failures. In a window of time: of that time; in the others: since the
    /// last conclusive result.
    pub abandoned: u64,
    /// Failures in a row; only a consecutive window knows.
    pub run: u64,
}

impl Counts {
    /// Share of failures, zero when there is nothing.
    #[must_use]
    pub fn failure_rate(&self) -> f64 {
        share(self.failures, self.total)
    }

    /// Share of slow calls, zero when there is nothing.
    #[must_use]
    pub fn slow_rate(&self) -> f64 {
        share(self.slow, self.total)
    }
}

fn share(part: u64, total: u64) -> f64 {
    if total == 0 { 0.0 } else { part as f64 / total as f64 }
}

/// What trips. `factor` below 1 lowers the thresholds of a pre-armed breaker.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Trip {
    pub(crate) consecutive: Option<u32>,
    pub(crate) failure_rate: f64,
    pub(crate) slow_rate: Option<f64>,
    pub(crate) min_calls: u32,
    /// Whether results leave the window by time. In the other kinds they stay for ever, and drops count since the last one.
    pub(crate) timed: bool,
}

impl Trip {
    pub(crate) fn of(config: &BreakerConfig, factor: f64) -> Self {
        let consecutive = match config.window {
            super::Window::Consecutive(k) => {
                // At least 1, at most k: the factor is in (0, 1].
                Some(((f64::from(k) * factor).ceil() as u32).clamp(1, k))
            }
            _ => None,
        };
        Self {
            consecutive,
            failure_rate: config.failure_rate * factor,
            slow_rate: config.slow.map(|(_, rate)| rate * factor),
            min_calls: config.min_calls,
            timed: matches!(config.window, super::Window::Time(_)),
        }
    }

    /// Whether these counts open a closed breaker.
    pub(crate) fn judge(&self, c: &Counts) -> Option<Cause> {
        let min = u64::from(self.min_calls);
        if let Some(k) = self.consecutive
            && c.run >= u64::from(k)
        {
            return Some(Cause::Consecutive { failures: c.run });
        }
        if self.consecutive.is_none() && c.total >= min {
            if c.failure_rate() >= self.failure_rate {
                return Some(Cause::FailureRate { failures: c.failures, total: c.total });
            }
            if self.slow_rate.is_some_and(|rate| c.slow_rate() >= rate) {
                return Some(Cause::SlowRate { slow: c.slow, total: c.total });
            }
        }
        // With nothing conclusive, drops are all there is: without this rule 500 of them leave it blind.
        let alone = c.total == 0 || !self.timed;
        (alone && c.abandoned >= min).then_some(Cause::Abandoned { calls: c.abandoned })
    }
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeEnd {
    Failure,
    NoEvidence,
    Success,
}

/// A probe's permit: it ends by itself.
#[derive(Clone, Copy, Debug)]
struct Lease {
    seq: u64,
    started: Instant,
    until: Instant,
    /// In which stage of a progressive round it was given.
    stage: usize,
}

/// The shares of calls that a progressive half-open admits, stage by stage.
const STAGES: [f64; 6] = [0.001, 0.01, 0.05, 0.1, 0.25, 0.5];

/// One half-open round.
#[derive(Clone, Debug, Default)]
struct Round {
    leases: Vec<Lease>,
    successes: u32,
    failures: u32,
    stage: usize,
    stage_since: Instant,
    arrived: u64,
    admitted: u64,
}

impl Round {
    /// Probes whose leases have not ended.
    fn in_flight(&self, now: Instant) -> u32 {
        self.leases.iter().filter(|lease| now < lease.until).count() as u32
    }

    /// Ends leases whose time is over.
    fn expire(&mut self, now: Instant) {
        let (stage, mut void) = (self.stage, 0);
        self.leases.retain(|lease| {
            let over = now >= lease.until;
            void += u64::from(over && lease.stage == stage);
            !over
        });
        self.admitted -= void;
    }

    /// A probe ended without a result: its turn in the stage goes to another.
    fn give_turn_back(&mut self, lease: &Lease) {
        self.admitted -= u64::from(lease.stage == self.stage);
    }

    /// Ends the running stage if it has lasted long enough and has a result; true if it was the last one.
    fn climb(&mut self, stage: Duration, now: Instant) -> bool {
        let has_result = self.successes + self.failures > 0;
        if has_result && now.saturating_duration_since(self.stage_since) >= stage {
            self.next_stage(now);
        }
        self.stage == STAGES.len()
    }

    fn next_stage(&mut self, now: Instant) {
        self.stage += 1;
        self.stage_since = now;
        (self.successes, self.failures, self.arrived, self.admitted) = (0, 0, 0, 0);
    }
}

/// Transitions kept for late listeners; a breaker that changes more often than this between two looks is
/// reported as a gap.
pub(crate) const LOG: usize = 32;

/// The machine. Its word is published by the shell after every change.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) config: BreakerConfig,
    state: State,
    generation: u64,
    since: Instant,
    hold_until: Option<Instant>,
    why: Option<Arc<str>>,
    open_until: Instant,
    /// Failed half-open rounds in a row, plus one.
    step: u32,
    round: Round,
    seq: u64,
    log: VecDeque<Transition>,
    logged: u64,
}

impl Machine {
    pub(crate) fn new(config: BreakerConfig, now: Instant) -> Self {
        Self {
            config,
            state: State::Closed,
            generation: 1,
            since: now,
            hold_until: None,
            why: None,
            open_until: now,
            step: 1,
            round: Round::default(),
            seq: 0,
            log: VecDeque::new(),
            logged: 0,
        }
    }

    pub(crate) fn word(&self) -> Word {
        Word::new(self.generation, self.state)
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    pub(crate) fn why(&self) -> Option<&Arc<str>> {
        self.why.as_ref()
    }

    pub(crate) fn hold_until(&self) -> Option<Instant> {
        self.hold_until
    }

    pub(crate) fn step(&self) -> u32 {
        self.step
    }

    /// Probes in flight, and those that succeeded.
    pub(crate) fn probes(&self, now: Instant) -> (u32, u32) {
        (self.round.in_flight(now), self.round.successes)
    }

    /// Whether it refuses calls, and so long that nobody need ask: open, and its time is not over.
    pub(crate) fn is_waiting(&self, now: Instant) -> bool {
        self.state == State::Open && now < self.open_until
    }

    /// The earliest instant at which an admission could end otherwise than now: callers before it can be
    /// answered without a look at the machine.
    pub(crate) fn until(&self) -> Instant {
        match self.state {
            State::Closed => Instant::FAR_FUTURE,
            State::Open => self.open_until,
            State::HalfOpen if self.round.leases.len() < self.config.half_open.permits as usize => {
                Instant::ZERO
            }
            State::HalfOpen => {
                self.round.leases.iter().map(|lease| lease.until).min().unwrap_or(Instant::ZERO)
            }
            State::ForcedClosed | State::ForcedOpen | State::MetricsOnly => {
                self.hold_until.unwrap_or(Instant::FAR_FUTURE)
            }
        }
    }

    fn go(&mut self, to: State, now: Instant, cause: Cause) -> Transition {
        let from = std::mem::replace(&mut self.state, to);
        self.generation += 1;
        self.since = now;
        self.round = Round { stage_since: now, ..Round::default() };
        if !to.is_held() {
            (self.hold_until, self.why) = (None, None);
        }
        let transition = Transition { from, to, generation: self.generation, at: now, cause };
        if self.log.len() == LOG {
            self.log.pop_front();
        }
        self.log.push_back(transition.clone());
        self.logged += 1;
        transition
    }

    /// Opens. `unit` in [0, 1) is the draw of the jitter.
    fn open(&mut self, now: Instant, unit: f64, cause: Cause) -> Transition {
        self.open_until = now.saturating_add(open_for(&self.config, self.step, unit));
        self.go(State::Open, now, cause)
    }

    /// A closed breaker trips.
    pub(crate) fn trip(&mut self, now: Instant, unit: f64, cause: Cause) -> Option<Transition> {
        (self.state == State::Closed).then(|| self.open(now, unit, cause))
    }

    /// Asks for a probe. Moves to half-open when the open time is over, or closes when the last stage of a ramp is; at
    /// most one transition.
    pub(crate) fn probe(&mut self, now: Instant) -> (Probe, Option<Transition>) {
        let mut moved = None;
        if self.state == State::Open {
            if now < self.open_until {
                return (Probe::Wait(self.open_until.saturating_duration_since(now)), None);
            }
            moved = Some(self.go(State::HalfOpen, now, Cause::OpenTimeOver));
        }
        if self.state != State::HalfOpen {
            return (Probe::Changed, None);
        }
        // A stage may end between two calls: with little traffic the next result is long in coming.
        if let ProbeRule::Progressive { stage, .. } = self.config.half_open.rule
            && self.round.climb(stage, now)
        {
            return (Probe::Changed, Some(self.close(now)));
        }
        (self.lease(now), moved)
    }

    fn lease(&mut self, now: Instant) -> Probe {
        let round = &mut self.round;
        round.expire(now);
        if round.leases.len() >= self.config.half_open.permits as usize {
            let first = round.leases.iter().map(|lease| lease.until).min().unwrap_or(now);
            return Probe::Wait(first.saturating_duration_since(now));
        }
        if let ProbeRule::Progressive { .. } = self.config.half_open.rule {
            round.arrived += 1;
            let stage = STAGES[round.stage.min(STAGES.len() - 1)];
            if round.admitted as f64 >= (stage * round.arrived as f64).ceil() {
                return Probe::NotChosen;
            }
        }
        round.admitted += 1;
        self.seq += 1;
        let until = now.saturating_add(self.config.probe_lease());
        let stage = self.round.stage;
        self.round.leases.push(Lease { seq: self.seq, started: now, until, stage });
        Probe::Admitted { seq: self.seq, word: self.word() }
    }

    /// When a probe began, unless its lease was given to another.
    pub(crate) fn probe_started(&self, seq: u64) -> Option<Instant> {
        self.round.leases.iter().find(|lease| lease.seq == seq).map(|lease| lease.started)
    }

    /// A probe ended. `None`: its lease had ended or its round is over, so its result is void.
    pub(crate) fn probe_ended(
        &mut self,
        word: Word,
        seq: u64,
        end: ProbeEnd,
        now: Instant,
        unit: f64,
    ) -> Option<Option<Transition>> {
        if word != self.word() {
            return None;
        }
        let held = self.round.leases.iter().position(|lease| lease.seq == seq)?;
        let lease = self.round.leases.swap_remove(held);
        if now >= lease.until {
            self.round.give_turn_back(&lease);
            return None;
        }
        match end {
            ProbeEnd::NoEvidence => {
                self.round.give_turn_back(&lease);
                return Some(None);
            }
            ProbeEnd::Failure => self.round.failures += 1,
            ProbeEnd::Success => self.round.successes += 1,
        }
        let verdict = self.decide(now);
        Some(verdict.map(|closes| if closes { self.close(now) } else { self.reopen(now, unit) }))
    }

    /// Whether the round closes (`true`), reopens (`false`) or goes on.
    fn decide(&mut self, now: Instant) -> Option<bool> {
        let (ok, failed) = (self.round.successes, self.round.failures);
        match self.config.half_open.rule {
            ProbeRule::Required(_) if failed > 0 => Some(false),
            ProbeRule::Required(n) => (ok >= n).then_some(true),
            ProbeRule::Ratio { samples, rate } => (ok + failed >= samples)
                .then(|| share(u64::from(failed), u64::from(ok) + u64::from(failed)) < rate),
            ProbeRule::Progressive { stage, rate } => {
                if share(u64::from(failed), u64::from(ok) + u64::from(failed)) >= rate {
                    return Some(false);
                }
                self.round.climb(stage, now).then_some(true)
            }
        }
    }

    fn close(&mut self, now: Instant) -> Transition {
        self.step = 1;
        self.go(State::Closed, now, Cause::Recovered)
    }

    fn reopen(&mut self, now: Instant, unit: f64) -> Transition {
        self.step = self.step.saturating_add(1);
        self.open(now, unit, Cause::ProbeFailed)
    }

    /// A person takes hold.
    pub(crate) fn hold(&mut self, to: State, why: &str, until: Option<Instant>, now: Instant) -> Transition {
        let why: Arc<str> = why.into();
        let transition = self.go(to, now, Cause::Person { why: Arc::clone(&why) });
        (self.why, self.hold_until) = (Some(why), until);
        transition
    }

    /// A hold ends, by a person or because its time is over: closed, with growth reset.
    pub(crate) fn release(&mut self, now: Instant, cause: Cause) -> Option<Transition> {
        self.state.is_held().then(|| {
            self.step = 1;
            self.go(State::Closed, now, cause)
        })
    }

    /// A person declares it recovered: closed with an empty window, whatever it was.
    pub(crate) fn reset(&mut self, now: Instant, why: &str) -> Transition {
        self.step = 1;
        self.go(State::Closed, now, Cause::Person { why: why.into() })
    }

    /// Ends a hold whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Transition> {
        let over = self.hold_until.is_some_and(|until| now >= until);
        over.then(|| self.release(now, Cause::HoldOver)).flatten()
    }

    /// The transitions from number `next` on, and how many were lost before them.
    pub(crate) fn after(&self, next: u64) -> Logged<'_> {
        let oldest = self.logged - self.log.len() as u64;
        if next < oldest {
            return Logged::Lost { count: oldest - next };
        }
        match self.log.get(usize::try_from(next - oldest).unwrap_or(usize::MAX)) {
            Some(transition) => Logged::Next(transition),
            None => Logged::UpToDate,
        }
    }

    /// Number of the next transition.
    pub(crate) fn logged(&self) -> u64 {
        self.logged
    }

    /// The last transitions, oldest first.
    pub(crate) fn log(&self) -> impl Iterator<Item = &Transition> {
        self.log.iter()
    }
}

/// A reader's place in the log.
#[derive(Debug)]
pub(crate) enum Logged<'a> {
    Lost { count: u64 },
    Next(&'a Transition),
    UpToDate,
}

/// The answer to a request for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    Admitted {
        seq: u64,
        word: Word,
    },
    /// The state changed since the caller looked.
    Changed,
    /// Progressive: another call's turn.
    NotChosen,
    Wait(Duration),
}

/// `min(cap, base * growth^(n-1) * U[1-j, 1+j])`, `n` from 1.
pub(crate) fn open_for(config: &BreakerConfig, n: u32, unit: f64) -> Duration {
    let exponent = i32::try_from(n.max(1) - 1).unwrap_or(i32::MAX);
    let jitter = 1.0 - config.jitter + 2.0 * config.jitter * unit;
    let seconds = config.open_for.as_secs_f64() * config.growth.powi(exponent) * jitter;
    Duration::try_from_secs_f64(seconds).unwrap_or(config.open_cap).min(config.open_cap)
}
