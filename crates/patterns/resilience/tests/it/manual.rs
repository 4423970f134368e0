//! A clock that stands still until it is told, and a queueing service on it.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mainstay_clock::{Clock, Instant, Rng, Runtime, SeededRng, Sleep, Tick, WallTime};

/// Stands still until told. Sleeping on it is not supported: tests that wait use the virtual clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Manual(Arc<AtomicU64>);

impl Manual {
    pub(crate) fn new() -> Self {
        let clock = Self::default();
        clock.set(3_600_000_000_000);
        clock
    }

    pub(crate) fn set(&self, nanos: u64) {
        self.0.store(nanos, Ordering::SeqCst);
    }

    pub(crate) fn advance(&self, d: Duration) {
        self.0.fetch_add(u64::try_from(d.as_nanos()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) fn runtime(&self, seed: u64) -> Runtime {
        Runtime::on_tokio(self.arc(), Arc::new(SeededRng::new(seed)))
    }

    pub(crate) fn arc(&self) -> Arc<dyn Clock> {
        Arc::new(self.clone())
    }
}

impl Clock for Manual {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> WallTime {
        WallTime::default()
    }

    fn tick(&self) -> Tick {
        Tick::of(self.arc())
    }

    fn sleep_until(&self, _deadline: Instant) -> Sleep {
        unimplemented_sleep()
    }
}

#[allow(clippy::panic, reason = "a test that sleeps on this clock is wrong")]
fn unimplemented_sleep() -> Sleep {
    panic!("the manual clock does not sleep")
}

/// A first-in first-out queue in front of `servers` servers, in discrete events.
pub(crate) struct Queueing<C> {
    pub(crate) clock: Manual,
    pub(crate) rng: SeededRng,
    servers: usize,
    busy: usize,
    waiting: VecDeque<C>,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    running: std::collections::BTreeMap<u64, C>,
    next: u64,
}

impl<C> Queueing<C> {
    pub(crate) fn new(servers: usize, seed: u64) -> Self {
        Self {
            clock: Manual::new(),
            rng: SeededRng::new(seed),
            servers,
            busy: 0,
            waiting: VecDeque::new(),
            events: BinaryHeap::new(),
            running: std::collections::BTreeMap::new(),
            next: 0,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    /// Calls in service and waiting.
    pub(crate) fn load(&self) -> usize {
        self.busy + self.waiting.len()
    }

    /// A call arrives; its service time is exponential with this mean.
    pub(crate) fn arrive(&mut self, call: C, mean: Duration) {
        if self.busy < self.servers {
            self.busy += 1;
            self.begin(call, mean);
        } else {
            self.waiting.push_back(call);
        }
    }

    /// Moves to the next end of service and returns its call.
    pub(crate) fn finish(&mut self, mean: Duration) -> Option<C> {
        let Reverse((at, id)) = self.events.pop()?;
        self.clock.set(at);
        match self.waiting.pop_front() {
            Some(call) => self.begin(call, mean),
            None => self.busy -= 1,
        }
        self.running.remove(&id)
    }

    fn begin(&mut self, call: C, mean: Duration) {
        let service = mean.as_secs_f64() * -(1.0 - self.rng.unit()).ln();
        let at = self.now().saturating_add(Duration::from_secs_f64(service));
        self.next += 1;
        self.events.push(Reverse((at.as_nanos(), self.next)));
        self.running.insert(self.next, call);
    }
}
