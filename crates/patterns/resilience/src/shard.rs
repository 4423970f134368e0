//! Which of a few counters a thread adds to, so that threads do not fight for one cache line.

use std::cell::Cell;
use std::hash::{Hash as _, Hasher};

/// More shards cost memory in every breaker and help little: beyond four cores the counters are no longer
/// what is contended.
const MAX: usize = 4;

/// Number of shards on this machine: the number of cores, at most [`MAX`], a power of two.
pub(crate) fn count() -> usize {
    if cfg!(any(loom, shuttle)) {
        return 1;
    }
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX).next_power_of_two()
}

/// The number of the calling thread; threads started one after the other have consecutive numbers.
#[inline(always)]
pub(crate) fn thread() -> usize {
    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(usize::MAX) };
    }
    match NUMBER.get() {
        usize::MAX => {
            let found = ask();
            NUMBER.set(found);
            found
        }
        known => known,
    }
}

#[cold]
fn ask() -> usize {
    let mut number = Number(0);
    std::thread::current().id().hash(&mut number);
    usize::try_from(number.0 % 0xffff).unwrap_or(0)
}

/// A hasher that hands back what it was given: a thread id hashes its serial number.
struct Number(u64);

impl Hasher for Number {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*b);
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = n;
    }
}
