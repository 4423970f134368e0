//! The one thread that keeps the coarse tick: lazily started, parked while nobody holds a handle.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Duration;

use crate::{Instant, os_boot_now};

/// Distance between two ticks: fine enough for windows and slow thresholds of 10 ms and more.
const PERIOD: Duration = Duration::from_millis(1);

static NOW: AtomicU64 = AtomicU64::new(0);
static HANDLES: AtomicUsize = AtomicUsize::new(0);
static THREAD: OnceLock<Option<Thread>> = OnceLock::new();

/// Keeps the ticker running while it lives.
#[derive(Debug)]
pub(crate) struct Handle {
    /// False when no thread could be started: then every read asks the operating system.
    ticking: bool,
}

impl Handle {
    pub(crate) fn new() -> Self {
        NOW.fetch_max(os_boot_now().as_nanos(), Ordering::Relaxed);
        let first = HANDLES.fetch_add(1, Ordering::AcqRel) == 0;
        let thread = THREAD.get_or_init(|| {
            let named = std::thread::Builder::new().name("mainstay-tick".to_owned());
            named.spawn(run).ok().map(|join| join.thread().clone())
        });
        if let (true, Some(thread)) = (first, thread) {
            thread.unpark();
        }
        Self { ticking: thread.is_some() }
    }

    #[inline]
    pub(crate) fn read(&self) -> Instant {
        if self.ticking { Instant::from_nanos(NOW.load(Ordering::Relaxed)) } else { asked() }
    }
}

/// Out of line, so that a read of the tick stays one load wherever it is inlined.
#[cold]
#[inline(never)]
fn asked() -> Instant {
    os_boot_now()
}

impl Clone for Handle {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        HANDLES.fetch_sub(1, Ordering::AcqRel);
    }
}

fn run() {
    loop {
        NOW.fetch_max(os_boot_now().as_nanos(), Ordering::Relaxed);
        if HANDLES.load(Ordering::Acquire) == 0 {
            std::thread::park();
        } else {
            std::thread::park_timeout(PERIOD);
        }
    }
}
