//! Nanoseconds, allocations and heap of one guarded call. Part of this program and of the rivals'.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Barrier;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

/// Rounds on one thread, of which the fastest counts: what else runs only ever slows down.
const ROUNDS: u32 = 60;
/// Rounds on two threads, of which the median of the undisturbed ones counts.
const PAIRS: u32 = 25;
/// Length of a round.
const ROUND: Duration = Duration::from_millis(2);
/// Most calls of a round, so that a limiter can be made with a burst for all of them.
pub(crate) const MOST: u32 = 200_000;
/// Share of a round of two threads in which both were at work, at least.
const OVERLAP: f64 = 0.85;
/// Calls of which the allocations are counted.
const COUNTED: u32 = 1_000;

/// What was measured of one way to make a call.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) path: String,
    pub(crate) system: String,
    /// Nanoseconds per call on one thread.
    pub(crate) one: f64,
    /// Nanoseconds per call and thread on two threads that share the object; none without undisturbed rounds.
    pub(crate) two: Option<f64>,
    /// Undisturbed rounds of two threads.
    pub(crate) pairs: u32,
    pub(crate) allocations: f64,
    pub(crate) bytes: f64,
    /// Bytes of heap of one instance.
    pub(crate) heap: u64,
}

impl Row {
    /// One line for whoever started this program.
    pub(crate) fn line(&self) -> String {
        let two = self.two.map_or_else(|| "null".to_owned(), |ns| format!("{ns:.3}"));
        format!(
            "{{\"path\":\"{}\",\"system\":\"{}\",\"one\":{:.3},\"two\":{two},\"pairs\":{},\"allocations\":{:.3},\"bytes\":{:.1},\"heap\":{}}}",
            self.path, self.system, self.one, self.pairs, self.allocations, self.bytes, self.heap
        )
    }
}

/// The output of a future that is ready at once.
#[inline(always)]
pub(crate) fn ready<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => patiently(future),
    }
}

/// Some guards wait for a lock when two threads call at once.
#[cold]
#[inline(never)]
fn patiently<F: Future>(mut future: Pin<&mut F>) -> F::Output {
    for _ in 0..100_000_000 {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return output;
        }
        std::hint::spin_loop();
    }
    panic!("a ready operation made its guard wait for ever");
}

/// Measures `call` on what `make` makes. `quick` shortens everything for a smoke run.
pub(crate) fn row<S: Sync>(
    (path, system): (&str, &str),
    quick: bool,
    make: impl Fn() -> S,
    call: impl Fn(&S) + Sync,
) -> Row {
    let mut kept = None;
    let heap = allocation_counter::measure(|| kept = Some(make())).bytes_current;
    drop(kept);
    let shared = make();
    call(&shared);
    let counted = allocation_counter::measure(|| (0..COUNTED).for_each(|_| call(&shared)));
    let (rounds, pairs) = if quick { (3, 2) } else { (ROUNDS, PAIRS) };
    let calls = calls_per_round(&shared, &call);
    let one = (0..rounds).map(|_| alone(&make(), calls, &call)).fold(f64::INFINITY, f64::min);
    let mut both = Vec::new();
    for _ in 0..pairs {
        both.extend(pair(&make(), calls, &call).into_iter().flatten());
    }
    both.sort_by(f64::total_cmp);
    Row {
        path: path.to_owned(),
        system: system.to_owned(),
        one,
        two: (!both.is_empty()).then(|| both[both.len() / 2]),
        pairs: u32::try_from(both.len() / 2).unwrap_or(u32::MAX),
        allocations: counted.count_total as f64 / f64::from(COUNTED),
        bytes: counted.bytes_total as f64 / f64::from(COUNTED),
        heap: u64::try_from(heap).unwrap_or(0),
    }
}

/// So many that a round takes its time.
fn calls_per_round<S>(shared: &S, call: &impl Fn(&S)) -> u32 {
    let (nanos, _) = time(shared, 2_000, call);
    ((ROUND.as_nanos() as f64 / nanos.max(0.1)) as u32).clamp(1_000, MOST)
}

/// Nanoseconds per call, and when the calls began and ended.
#[allow(clippy::disallowed_methods, reason = "a clock behind a port would be part of what is measured")]
fn time<S>(shared: &S, calls: u32, call: &impl Fn(&S)) -> (f64, (Instant, Instant)) {
    let began = Instant::now();
    for _ in 0..calls {
        call(shared);
    }
    let ended = Instant::now();
    ((ended - began).as_nanos() as f64 / f64::from(calls), (began, ended))
}

/// A round on one pinned thread. What is measured was made by a thread that is not: how many cores there are, as it sees
/// them, decides how it counts.
fn alone<S: Sync>(shared: &S, calls: u32, call: &(impl Fn(&S) + Sync)) -> f64 {
    let side = || {
        pin_to(1);
        call(shared);
        time(shared, calls, call).0
    };
    std::thread::scope(|scope| scope.spawn(side).join().expect("a measuring thread panicked"))
}

/// A round of two pinned threads, started one after the other as the workers of a runtime are: nothing unless both
/// ran side by side and undisturbed.
fn pair<S: Sync>(shared: &S, calls: u32, call: &(impl Fn(&S) + Sync)) -> Option<[f64; 2]> {
    let barrier = Barrier::new(2);
    let side = |core: usize| {
        pin_to(core);
        // Threads number themselves at their first call; both shall have done so before the race.
        call(shared);
        barrier.wait();
        let before = disturbed();
        let (nanos, span) = time(shared, calls / 2, call);
        (nanos, span, disturbed() == before)
    };
    let (a, b) = std::thread::scope(|scope| {
        let both = [scope.spawn(|| side(0)), scope.spawn(|| side(1))];
        let [a, b] = both.map(|thread| thread.join().expect("a measuring thread panicked"));
        (a, b)
    });
    let (from, to) = (a.1.0.max(b.1.0), a.1.1.min(b.1.1));
    let longest = (a.1.1 - a.1.0).max(b.1.1 - b.1.0).as_secs_f64();
    let overlap = to.saturating_duration_since(from).as_secs_f64() / longest;
    (a.2 && b.2 && overlap >= OVERLAP).then_some([a.0, b.0])
}

/// Involuntary switches of this thread so far.
fn disturbed() -> u64 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("nonvoluntary_ctxt_switches:"));
    line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
}

fn pin_to(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    // Without the right to, the figures are only noisier.
    let _ = rustix::thread::sched_setaffinity(None, &set);
}
