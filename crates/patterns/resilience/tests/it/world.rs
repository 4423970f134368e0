//! Virtual time, a clock for threads, and operations that end when the test says.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use mainstay_clock::virtual_time::VirtualClock;
use mainstay_clock::{Clock, Instant, Runtime, SeededRng, Sleep, Tick, WallTime};
use mainstay_resilience::{Classify, Event, Listener, Source, Verdict};

/// One virtual world.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) clock: VirtualClock,
    pub(crate) runtime: Runtime,
}

impl World {
    pub(crate) async fn advance(&self, d: Duration) {
        self.clock.sleep(d).await;
    }

    /// Exactly `d` passes; timers that come due meanwhile fire at the next wait.
    pub(crate) fn jump(&self, d: Duration) {
        self.clock.jump_boot(d);
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }
}

/// Whether the long runs were asked for (`MAINSTAY_SOAK`, set by `cargo xtask soak`).
pub(crate) fn is_soak() -> bool {
    #[allow(clippy::disallowed_methods, reason = "the switch of the long runs")]
    std::env::var_os("MAINSTAY_SOAK").is_some()
}

/// Runs `f` in virtual time with a fixed seed.
pub(crate) fn world<F: Future>(f: impl FnOnce(World) -> F) -> F::Output {
    let tokio =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    tokio.block_on(async {
        let clock = VirtualClock::new();
        let runtime = Runtime::on_tokio(Arc::new(clock.clone()), Arc::new(SeededRng::new(7)));
        f(World { clock, runtime }).await
    })
}

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A clock that only the test moves, for tests on real threads. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct HandClock(Arc<AtomicU64>);

impl HandClock {
    pub(crate) fn runtime() -> (HandClock, Runtime) {
        let clock = Self(Arc::new(AtomicU64::new(1_000_000_000)));
        let rng = Arc::new(SeededRng::new(7));
        (clock.clone(), Runtime::on_tokio(Arc::new(clock), rng))
    }

    pub(crate) fn advance(&self, d: Duration) {
        self.0.fetch_add(u64::try_from(d.as_nanos()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.load(Ordering::SeqCst))
    }

    fn wall(&self) -> WallTime {
        WallTime::default()
    }

    fn tick(&self) -> Tick {
        Tick::of(Arc::new(self.clone()))
    }

    fn sleep_until(&self, _: Instant) -> Sleep {
        Box::pin(std::future::pending())
    }
}

/// An error that says what it means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Oops {
    Broken,
    Fatal,
    Invalid,
    Slow(Option<Duration>),
}

impl std::fmt::Display for Oops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Oops {}

impl Classify for Oops {
    fn verdict(&self) -> Verdict {
        match self {
            Self::Broken => Verdict::RETRYABLE,
            Self::Fatal => Verdict::FATAL,
            Self::Invalid => Verdict::Ignore,
            Self::Slow(after) => Verdict::Throttled { after: *after },
        }
    }
}

/// Polls `f` once with a waker that does nothing, then drops it.
pub(crate) fn poll_once<F: Future>(f: F) -> Poll<F::Output> {
    pin!(f).as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// The output of a future that is ready at once.
pub(crate) fn now<F: Future>(f: F) -> F::Output {
    match poll_once(f) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("the future was not ready"),
    }
}

/// Remembers events as text.
#[derive(Debug, Default)]
pub(crate) struct Heard(pub(crate) Mutex<Vec<String>>);

impl Heard {
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl Listener for Heard {
    fn event(&self, _: &Source, event: &Event<'_>) {
        let text = match event {
            Event::Transition(t) => format!("{} {}->{}", t.generation(), t.from(), t.to()),
            Event::Rejected(r) => format!("rejected {}", r.why().code()),
            Event::Call { outcome, attempts, .. } => format!("call {outcome:?} {attempts}"),
            Event::Retry { attempt, .. } => format!("retry {attempt}"),
            other => format!("{other:?}"),
        };
        self.0.lock().unwrap().push(text);
    }
}
