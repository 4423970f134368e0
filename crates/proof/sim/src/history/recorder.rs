//! Writing a history while it happens.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_clock::Clock;
use mainstay_store::{Error, Outcome};

use super::{Datum, Effect, Ended, Event, Fault, Op, Text};

/// Collects events, stamped by one observer's clock. Clones share it.
///
/// No two stamps are equal: events of one instant are numbered in the order in which they were recorded.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    clock: Arc<dyn Clock>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    last_ns: u64,
    last_proc: u64,
    events: Vec<Event>,
}

impl Log {
    fn stamp(&mut self, now: u64) -> u64 {
        self.last_ns = now.max(self.last_ns + 1);
        self.last_ns
    }
}

impl Recorder {
    /// An empty history, stamped by `clock`.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Shared { clock, log: Mutex::default() }))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stamp of now, later than every earlier one.
    #[must_use]
    pub fn stamp(&self) -> u64 {
        let now = self.0.clock.now().as_nanos();
        self.log().stamp(now)
    }

    /// A new process.
    #[must_use]
    pub fn process(&self) -> Process {
        Process { recorder: self.clone(), proc: Mutex::new(None), session: None }
    }

    fn next_proc(&self) -> u64 {
        let mut log = self.log();
        log.last_proc += 1;
        log.last_proc
    }

    /// Adds an event as it is.
    pub fn push(&self, event: Event) {
        self.log().events.push(event);
    }

    /// Adds an effect, stamped now: call it where the resource applies.
    pub fn effect(&self, mut effect: Effect) {
        let now = self.0.clock.now().as_nanos();
        let mut log = self.log();
        effect.at_ns = log.stamp(now);
        log.events.push(Event::Effect(effect));
    }

    /// Adds a fault.
    pub fn fault(&self, fault: Fault) {
        self.push(Event::Fault { fault });
    }

    /// The history so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.log().events.clone()
    }

    /// Takes the history so far out.
    #[must_use]
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.log().events)
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("events", &self.log().events.len()).finish()
    }
}

/// Who operates. After an unknown outcome it goes on under a new number, because the old operation may
/// still take effect beside the next one.
#[derive(Debug)]
pub struct Process {
    recorder: Recorder,
    proc: Mutex<Option<u64>>,
    session: Option<Text>,
}

impl Process {
    /// The same, with every operation in `session`.
    #[must_use]
    pub fn in_session(mut self, session: &str) -> Self {
        self.session = Some(session.into());
        self
    }

    fn proc(&self) -> MutexGuard<'_, Option<u64>> {
        self.proc.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an operation. Dropped without an end it is unknown: its caller was cancelled or crashed.
    pub fn begin(&self, f: &str, key: &str) -> Pending<'_> {
        let proc = *self.proc().get_or_insert_with(|| self.recorder.next_proc());
        let mut op = Op::new(proc, f, key, self.recorder.stamp(), None, Ended::Unknown);
        op.session.clone_from(&self.session);
        Pending { process: self, op: Some(op) }
    }
}

/// An operation that has not ended.
#[must_use = "an operation that is dropped is recorded as unknown"]
#[derive(Debug)]
pub struct Pending<'p> {
    process: &'p Process,
    op: Option<Op>,
}

impl Pending<'_> {
    /// Sets details of the operation.
    pub fn with(mut self, set: impl FnOnce(&mut Op)) -> Self {
        if let Some(op) = &mut self.op {
            set(op);
        }
        self
    }

    /// Sets its argument.
    pub fn arg(self, arg: impl Into<Datum>) -> Self {
        let arg = arg.into();
        self.with(|op| op.arg = Some(arg))
    }

    /// Sets the link it uses.
    pub fn via(self, via: &str) -> Self {
        self.with(|op| op.via = Some(via.into()))
    }

    /// It succeeded.
    pub fn ok(self) {
        self.finish(Ended::Ok);
    }

    /// It succeeded with a result.
    pub fn ok_with(self, value: impl Into<Datum>) {
        let value = value.into();
        self.with(|op| op.value = Some(value)).finish(Ended::Ok);
    }

    /// It certainly had no effect.
    pub fn fail(self) {
        self.finish(Ended::Fail);
    }

    /// It failed: what the error says about the effect, without interpretation. An effect whose reply
    /// cannot be read is `ok` for a write and unknown for a read.
    pub fn error(self, error: &Error, is_write: bool) {
        match (error.outcome(), is_write) {
            (Outcome::NotApplied, _) => self.fail(),
            (Outcome::Applied, true) => self.ok(),
            (Outcome::Applied, false) | (Outcome::Unknown, _) => drop(self),
        }
    }

    fn finish(mut self, outcome: Ended) {
        if let Some(mut op) = self.op.take() {
            op.outcome = outcome;
            op.return_ns = Some(self.process.recorder.stamp());
            self.process.recorder.push(Event::Op(op));
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(op) = self.op.take() {
            *self.process.proc() = None;
            self.process.recorder.push(Event::Op(op));
        }
    }
}
