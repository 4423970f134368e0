//! Discrete events: an executor without threads and a clock that jumps from event to event.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};

/// Virtual seconds to nanoseconds.
pub(crate) fn secs(s: f64) -> u64 {
    (s * 1e9) as u64
}

/// The time at which every world begins: one hour of boot time.
const START: u64 = 3_600_000_000_000;

type Timers = BinaryHeap<Reverse<(u64, u64)>>;

#[derive(Debug, Default)]
struct Time {
    now: u64,
    seq: u64,
    timers: Timers,
    wakers: BTreeMap<u64, Waker>,
    ready: VecDeque<u64>,
}

/// The clock of a world; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct DesClock(Arc<Mutex<Time>>);

impl DesClock {
    /// Seconds since the world began.
    pub(crate) fn seconds(&self) -> f64 {
        (self.0.lock().unwrap().now - START) as f64 / 1e9
    }

    pub(crate) fn runtime(&self, seed: u64) -> Runtime {
        Runtime::on_tokio(Arc::new(self.clone()), Arc::new(SeededRng::new(seed)))
    }

    /// Sleeps until `at` seconds after the beginning.
    pub(crate) fn until(&self, at: f64) -> Sleep {
        self.sleep_until(Instant::from_nanos(START + secs(at)))
    }
}

impl Clock for DesClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.lock().unwrap().now)
    }

    fn wall(&self) -> WallTime {
        WallTime::default()
    }

    fn tick(&self) -> Tick {
        Tick::of(Arc::new(self.clone()))
    }

    fn sleep_until(&self, deadline: Instant) -> Sleep {
        Box::pin(Timer { clock: self.clone(), at: deadline.as_nanos(), id: None })
    }
}

struct Timer {
    clock: DesClock,
    at: u64,
    id: Option<u64>,
}

impl Future for Timer {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let clock = self.clock.clone();
        let mut time = clock.0.lock().unwrap();
        if time.now >= self.at {
            return Poll::Ready(());
        }
        let id = self.id.unwrap_or_else(|| {
            time.seq += 1;
            let id = time.seq;
            time.timers.push(Reverse((self.at, id)));
            id
        });
        self.id = Some(id);
        time.wakers.insert(id, cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.clock.0.lock().unwrap().wakers.remove(&id);
        }
    }
}

struct TaskWaker {
    id: u64,
    clock: DesClock,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.clock.0.lock().unwrap().ready.push_back(self.id);
    }
}

type Task = (Pin<Box<dyn Future<Output = ()>>>, Waker);

/// Tasks and their clock. Everything in it is a function of its seeds.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) clock: DesClock,
    tasks: Rc<RefCell<BTreeMap<u64, Task>>>,
    next: Rc<RefCell<u64>>,
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = DesClock(Arc::new(Mutex::new(Time { now: START, ..Time::default() })));
        Self { clock, tasks: Rc::default(), next: Rc::default() }
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        *self.next.borrow_mut() += 1;
        let id = *self.next.borrow();
        let waker = Waker::from(Arc::new(TaskWaker { id, clock: self.clock.clone() }));
        self.tasks.borrow_mut().insert(id, (Box::pin(task), waker));
        self.clock.0.lock().unwrap().ready.push_back(id);
    }

    /// Runs until `at` seconds or until nothing can happen any more.
    pub(crate) fn run(&self, at: f64) {
        let end = START + secs(at);
        loop {
            loop {
                let ready = self.clock.0.lock().unwrap().ready.pop_front();
                let Some(id) = ready else { break };
                let task = self.tasks.borrow_mut().remove(&id);
                let Some((mut future, waker)) = task else { continue };
                if future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
                    self.tasks.borrow_mut().insert(id, (future, waker));
                }
            }
            if !self.jump(end) {
                return;
            }
        }
    }

    /// Moves to the next timer that somebody still waits for.
    fn jump(&self, end: u64) -> bool {
        let due = {
            let mut time = self.clock.0.lock().unwrap();
            loop {
                let Some(Reverse((at, id))) = time.timers.pop() else { return false };
                let Some(waker) = time.wakers.remove(&id) else { continue };
                if at > end {
                    time.timers.push(Reverse((at, id)));
                    time.wakers.insert(id, waker);
                    time.now = end;
                    return false;
                }
                time.now = time.now.max(at);
                break waker;
            }
        };
        due.wake();
        true
    }
}
