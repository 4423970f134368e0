//! Randomness behind a port.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of random numbers that can be shared.
///
/// Not for secrets: use it for jitter, sampling and workloads.
///
/// ```
/// use mainstay_clock::{Rng, SeededRng};
///
/// let (a, b) = (SeededRng::new(7), SeededRng::new(7));
/// assert_eq!(a.next_u64(), b.next_u64());
/// assert!(a.unit() < 1.0);
/// ```
pub trait Rng: Send + Sync + fmt::Debug {
    /// The next 64 random bits.
    fn next_u64(&self) -> u64;

    /// Fills `bytes`. [`SystemRng`] takes every byte from the operating system, so that what must never repeat, as a
    /// nonce, does not repeat in a copy of this process either.
    fn fill(&self, bytes: &mut [u8]) {
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&self.next_u64().to_le_bytes()[..part.len()]);
        }
    }

    /// A number in `[0, 1)` with 53 random bits.
    fn unit(&self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number in `[0, n)`; zero when `n` is zero. Multiply-shift: the bias is below `n / 2^64`.
    fn below(&self, n: u64) -> u64 {
        u64::try_from((u128::from(self.next_u64()) * u128::from(n)) >> 64).unwrap_or(0)
    }
}

/// A lock-free seeded generator: `SplitMix64` (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
/// Generators", OOPSLA 2014). One atomic add per number, so threads may share it.
#[derive(Debug)]
pub struct SeededRng(AtomicU64);

impl SeededRng {
    /// A generator whose sequence `seed` fixes.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Rng for SeededRng {
    fn next_u64(&self) -> u64 {
        const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut z = self.0.fetch_add(GAMMA, Ordering::Relaxed).wrapping_add(GAMMA);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A generator seeded once from the entropy of the operating system.
#[derive(Debug)]
pub struct SystemRng(SeededRng);

impl SystemRng {
    /// Seeds from the operating system; falls back to the boot clock if it has no entropy to give.
    #[must_use]
    pub fn new() -> Self {
        Self(SeededRng::new(entropy().unwrap_or_else(|| crate::os_boot_now().as_nanos())))
    }
}

/// Eight bytes from the operating system. So few are never cut short.
fn entropy() -> Option<u64> {
    let mut bytes = [0; 8];
    from_system(&mut bytes).then(|| u64::from_ne_bytes(bytes))
}

/// Whether the system filled `bytes`.
fn from_system(bytes: &mut [u8]) -> bool {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[done..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) if n > 0 => done += n,
            Err(rustix::io::Errno::INTR) => {}
            _ => return false,
        }
    }
    true
}

impl Default for SystemRng {
    fn default() -> Self {
        Self::new()
    }
}

impl Rng for SystemRng {
    fn next_u64(&self) -> u64 {
        self.0.next_u64()
    }

    fn fill(&self, bytes: &mut [u8]) {
        if !from_system(bytes) {
            // No entropy to give: as good as the seed was.
            self.0.fill(bytes);
        }
    }
}
