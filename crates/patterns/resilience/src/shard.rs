//! Where a thread counts, so that threads do not fight for one cache line.
//!
//! A few *places* belong to one thread at a time. Nobody else writes what lies at a place, so its thread counts there with
//! a load and a store, without the barrier of an atomic addition, which costs more than all the rest of a call. A thread
//! takes a place once it has counted much, and gives it back when it ends. Threads without one share a few counters.

use std::cell::Cell;
use std::hash::{Hash as _, Hasher};
use std::sync::OnceLock;

/// Most places. More cost memory in every breaker and help little: beyond four cores the counters are no longer what is
/// contended.
pub(crate) const MAX: usize = 4;

/// Number of counters that all threads share by their number, where none has a place: the number of cores, at most
/// [`MAX`], a power of two.
pub(crate) fn count() -> usize {
    if cfg!(any(loom, shuttle)) { 1 } else { cores().min(MAX).next_power_of_two() }
}

/// Number of places, and of the counters that threads without one share. At most five together: a breaker takes 128 bytes
/// for each, and at most 2 KiB.
///
/// Where cores are few there is a place for each and one for a main thread that counted much once. Where they are many
/// most threads have none.
pub(crate) fn places() -> (usize, usize) {
    match cores() {
        _ if cfg!(any(loom, shuttle)) => (1, 1),
        cores if cores > MAX => (MAX - 1, 2),
        cores => ((cores + 1).min(MAX), 1),
    }
}

/// As the first thread saw it that asked: one that is pinned sees fewer.
fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
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

/// No place.
#[cfg(not(any(loom, shuttle)))]
pub(crate) const NOWHERE: usize = usize::MAX;

#[cfg(not(any(loom, shuttle)))]
pub(crate) use imp::{place, want};

#[cfg(not(any(loom, shuttle)))]
mod imp {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::NOWHERE;

    /// A thread asks for a place each time it has counted this often without one: the few calls of a main thread
    /// should not keep places from workers, and the cost of those that come before is nothing.
    const OFTEN: u32 = 1_024;

    static PLACES: Places = Places(AtomicUsize::new(0));

    thread_local! {
        static PLACE: Cell<usize> = const { Cell::new(NOWHERE) };
        static COUNTED: Cell<u32> = const { Cell::new(0) };
        static LEASE: Lease = const { Lease };
    }

    /// Gives the place back when its thread ends. What ends still later counts without one.
    struct Lease;

    impl Drop for Lease {
        fn drop(&mut self) {
            PLACES.give_back(PLACE.replace(NOWHERE));
        }
    }

    /// The place of this thread, or [`NOWHERE`].
    #[inline(always)]
    pub(crate) fn place() -> usize {
        PLACE.get()
    }

    /// This thread has counted without a place.
    #[inline]
    pub(crate) fn want() {
        let counted = COUNTED.get().wrapping_add(1);
        COUNTED.set(counted);
        if counted.is_multiple_of(OFTEN) {
            take();
        }
    }

    #[cold]
    fn take() {
        if PLACE.get() == NOWHERE {
            // A thread whose lease has ended is at its end itself.
            let _ = LEASE.try_with(|_| PLACE.set(PLACES.take(super::places().0)));
        }
    }

    /// Which places are taken, one bit each.
    pub(super) struct Places(pub(super) AtomicUsize);

    impl Places {
        /// A free place below `most`, or [`NOWHERE`]. Whoever gets it sees all that its last owner has written.
        pub(super) fn take(&self, most: usize) -> usize {
            let free = |taken: usize| {
                let place = taken.trailing_ones() as usize;
                (place < most).then_some(taken | 1 << place)
            };
            match self.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, free) {
                Ok(before) => before.trailing_ones() as usize,
                Err(_) => NOWHERE,
            }
        }

        pub(super) fn give_back(&self, place: usize) {
            if place != NOWHERE {
                self.0.fetch_and(!(1 << place), Ordering::Release);
            }
        }
    }
}

#[cfg(loom)]
use loom as model;
#[cfg(all(shuttle, not(loom)))]
use shuttle as model;

#[cfg(any(loom, shuttle))]
model::lazy_static! {
    static ref THREADS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
}

#[cfg(any(loom, shuttle))]
model::thread_local! {
    static PLACE: usize = THREADS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
}

/// The first thread of a model has a place.
#[cfg(any(loom, shuttle))]
pub(crate) fn place() -> usize {
    PLACE.with(|place| *place)
}

#[cfg(any(loom, shuttle))]
pub(crate) fn want() {}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::imp::Places;
    use super::{NOWHERE, place, want};

    #[test]
    fn a_place_is_one_threads_until_it_is_given_back() {
        let places = Places(AtomicUsize::new(0));
        assert_eq!([(); 4].map(|()| places.take(3)), [0, 1, 2, NOWHERE]);
        places.give_back(1);
        places.give_back(NOWHERE);
        assert_eq!([places.take(3), places.take(3)], [1, NOWHERE]);
    }

    /// More threads one after the other than there are places, each of which gets one: other tests may hold some, but
    /// not for ever.
    #[test]
    fn a_thread_that_counts_much_gets_a_place_and_gives_it_back_when_it_ends() {
        for _ in 0..3 * super::MAX {
            let worker = || {
                assert_eq!(place(), NOWHERE);
                for _ in 0..1_000_000 {
                    (0..1_024).for_each(|_| want());
                    if place() != NOWHERE {
                        return place();
                    }
                    std::thread::yield_now();
                }
                NOWHERE
            };
            assert!(std::thread::spawn(worker).join().unwrap() < super::places().0);
        }
    }
}
